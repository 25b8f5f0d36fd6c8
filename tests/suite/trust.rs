//! The trust policy: its file, its rules, and each refusal.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use manifs::manifest::{
    IndexFields, Links, Mention, Pattern, PolicyError, ReleaseIndex, Stale, TrustError, TrustPolicy,
};

use crate::common::signed::{
    index, index_fields, key, manifest, name, package, sign, time, trusting,
};

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap()
}

fn rule(pattern: &str, numbers: &[u8], rest: &str) -> String {
    let keys: Vec<String> = numbers
        .iter()
        .map(|&number| format!("{:?}", key(number).public().to_line()))
        .collect();
    format!(
        "[[rule]]\npattern = {pattern:?}\nkeys = [{}]\n{rest}\n",
        keys.join(", ")
    )
}

#[test]
fn the_most_specific_rule_decides_alone() {
    let policy = TrustPolicy::parse(
        &[
            rule("*", &[1], ""),
            rule("acme/*", &[2], ""),
            rule("acme/tool", &[3], ""),
            rule("acme", &[4], ""),
        ]
        .concat(),
    )
    .unwrap();
    let which = |text: &str| policy.rule_for(&name(text)).unwrap().pattern.to_string();
    assert_eq!(which("other"), "*");
    assert_eq!(which("other/tool"), "*");
    assert_eq!(which("acme/thing"), "acme/*");
    assert_eq!(which("acme/tool"), "acme/tool");
    assert_eq!(which("acme"), "acme");
    // Neither the key of a wider rule nor that of a narrower one of something else helps.
    for (package_text, signer, accepted) in [
        ("acme/tool@1.0.0", 3, true),
        ("acme/tool@1.0.0", 2, false),
        ("acme/tool@1.0.0", 1, false),
        ("acme/thing@1.0.0", 2, true),
        ("acme/thing@1.0.0", 1, false),
        ("other@1.0.0", 1, true),
        ("other@1.0.0", 3, false),
    ] {
        let envelope = sign(manifest(package_text, "x"), &[&key(signer)]);
        let result = policy.verify_manifest(&envelope, &package(package_text));
        assert_eq!(result.is_ok(), accepted, "{package_text} by {signer}");
    }
    assert!(TrustPolicy::default().rule_for(&name("a")).is_none());
}

#[test]
fn thresholds_count_distinct_keys() {
    let policy = trusting("*", &[&key(1), &key(2), &key(3)], 2);
    let expected = package("hello@1.0.0");
    let signed = |numbers: &[u8]| {
        let keys: Vec<_> = numbers.iter().map(|&number| key(number)).collect();
        let keys: Vec<_> = keys.iter().collect();
        policy.verify_manifest(&sign(manifest("hello@1.0.0", "x"), &keys), &expected)
    };
    assert_eq!(signed(&[1, 3]).unwrap().signers().len(), 2);
    assert_eq!(signed(&[1, 2, 3]).unwrap().signers().len(), 3);
    assert_eq!(signed(&[1, 2, 9]).unwrap().signers().len(), 2);
    assert!(matches!(
        signed(&[1, 9]).unwrap_err(),
        TrustError::TooFewSignatures {
            have: 1,
            need: 2,
            ..
        }
    ));
    assert!(matches!(
        signed(&[8, 9]).unwrap_err(),
        TrustError::UnknownKeys { signers, .. } if signers.len() == 2
    ));
}

#[test]
fn each_refusal_of_a_manifest_has_its_error_and_hint() {
    let policy = TrustPolicy::parse(
        &[
            rule("hello", &[1, 2], ""),
            format!(
                "[[revoked]]\nkey = '{}'\nreason = 'stolen'\n",
                key(2).public().id()
            ),
            "[[blocked]]\npackage = 'hello@6.6.6'\nreason = 'evil'\n".to_owned(),
        ]
        .concat(),
    )
    .unwrap();
    let verify = |text: &str, signer: u8, expected: &str| {
        let envelope = sign(manifest(text, "x"), &[&key(signer)]);
        policy
            .verify_manifest(&envelope, &package(expected))
            .unwrap_err()
    };
    let check = |error: TrustError, message: &str| {
        assert!(error.to_string().contains(message), "{error}");
        assert!(!error.hint().is_empty());
        error
    };
    let error = verify("hello@1.0.0", 1, "hello@1.0.1");
    assert!(matches!(
        check(error, "signed as hello@1.0.0"),
        TrustError::WrongPackage { .. }
    ));
    let error = verify("other@1.0.0", 1, "other@1.0.0");
    assert!(matches!(
        check(error, "no trust rule"),
        TrustError::NoRule(_)
    ));
    let error = verify("hello@6.6.6", 1, "hello@6.6.6");
    assert!(matches!(
        check(error, "blocked by the trust policy: evil"),
        TrustError::Blocked { .. }
    ));
    let error = verify("hello@1.0.0", 2, "hello@1.0.0");
    assert!(matches!(
        check(error, "revoked: stolen"),
        TrustError::RevokedKey { .. }
    ));
    let error = verify("hello@1.0.0", 3, "hello@1.0.0");
    assert!(matches!(
        check(error, "no key of the rule for hello"),
        TrustError::UnknownKeys { .. }
    ));

    let both = sign(manifest("hello@1.0.0", "x"), &[&key(1), &key(2)]);
    let trusted = policy
        .verify_manifest(&both, &package("hello@1.0.0"))
        .unwrap();
    assert_eq!(
        trusted.signers(),
        [key(1).public().id()],
        "a revoked key counts for nothing"
    );
    assert_eq!(trusted.envelope(), both.bytes());

    let forged = both
        .with_signatures(&[key(1).sign(b"something else")])
        .unwrap();
    let error = policy
        .verify_manifest(&forged, &package("hello@1.0.0"))
        .unwrap_err();
    assert!(matches!(
        check(error, "not right"),
        TrustError::BadSignature { .. }
    ));

    let list = sign(index("hello", 1, &[]), &[&key(1)]);
    let error = policy
        .verify_manifest(&list, &package("hello@1.0.0"))
        .unwrap_err();
    assert!(matches!(
        check(error, "release index"),
        TrustError::WrongKind { .. }
    ));
    let error = policy
        .verify_index(&both, &name("hello"), None)
        .unwrap_err();
    assert!(matches!(error, TrustError::WrongKind { .. }));
    let error = policy
        .verify_index(&list, &name("hallo"), None)
        .unwrap_err();
    assert!(matches!(error, TrustError::WrongPackage { .. }));
}

#[test]
fn an_index_only_moves_forward() {
    let policy = trusting("*", &[&key(1)], 1);
    let one = manifest("hello@1.0.0", "x");
    let verify = |index: ReleaseIndex, seen| {
        policy.verify_index(&sign(index, &[&key(1)]), &name("hello"), seen)
    };
    let fifth = verify(index("hello", 5, &[&one]), None).unwrap();
    let seen = Some(fifth.seen());
    assert!(verify(index("hello", 5, &[&one]), seen).is_ok());
    assert!(verify(index("hello", 6, &[]), seen).is_ok());
    assert!(matches!(
        verify(index("hello", 5, &[]), seen).unwrap_err(),
        TrustError::SameSequence { sequence: 5, .. }
    ));
    assert!(matches!(
        verify(index("hello", 4, &[&one]), seen).unwrap_err(),
        TrustError::Rollback {
            sequence: 4,
            seen: 5,
            ..
        }
    ));
}

#[test]
fn an_index_grows_stale_by_itself_or_by_the_rule() {
    let policy = TrustPolicy::parse(&rule("*", &[1], "max_age = '30d'")).unwrap();
    let mut fields = index_fields("hello", 1);
    let made = fields.created;
    let day = Duration::from_secs(86_400);
    let verify = |fields: &IndexFields| {
        let envelope = sign(ReleaseIndex::new(fields).unwrap(), &[&key(1)]);
        policy
            .verify_index(&envelope, &name("hello"), None)
            .unwrap()
    };
    let trusted = verify(&fields);
    assert_eq!(trusted.stale_at(made.after(30 * day)), None);
    let stale = trusted.stale_at(made.after(30 * day + Duration::from_secs(1)));
    assert!(matches!(stale, Some(Stale::TooOld { .. })));
    assert!(stale.unwrap().to_string().contains("more than 30d ago"));
    // A reader whose clock is behind sees nothing stale.
    assert_eq!(trusted.stale_at(time("2000-01-01T00:00:00Z")), None);

    fields.expires = Some(made.after(day));
    let trusted = verify(&fields);
    assert_eq!(
        trusted.stale_at(made.after(day - Duration::from_secs(1))),
        None
    );
    assert!(matches!(
        trusted.stale_at(made.after(day)),
        Some(Stale::Expired(_))
    ));
}

#[test]
fn the_index_has_a_word_on_each_version() {
    let policy = trusting("*", &[&key(1)], 1);
    let one = manifest("hello@1.0.0", "x");
    let two = manifest("hello@2.0.0", "x");
    let mut fields = index("hello", 1, &[&one, &two]).fields().clone();
    fields
        .withdrawn
        .insert("2.0.0".parse().unwrap(), "broken build".into());
    let envelope = sign(ReleaseIndex::new(&fields).unwrap(), &[&key(1)]);
    let list = policy
        .verify_index(&envelope, &name("hello"), None)
        .unwrap();
    let check = |package_text: &str, content: &str| {
        let envelope = sign(manifest(package_text, content), &[&key(1)]);
        let trusted = policy
            .verify_manifest(&envelope, &package(package_text))
            .unwrap();
        list.check(&trusted)
    };
    assert_eq!(check("hello@1.0.0", "x"), Ok(Mention::Listed));
    assert_eq!(check("hello@3.0.0", "x"), Ok(Mention::Unlisted));
    assert!(matches!(
        check("hello@1.0.0", "y"),
        Err(TrustError::OtherContent { .. })
    ));
    let withdrawn = check("hello@2.0.0", "x").unwrap_err();
    assert!(
        withdrawn.to_string().ends_with("broken build"),
        "{withdrawn}"
    );
    assert!(matches!(
        check("other@1.0.0", "x"),
        Err(TrustError::WrongPackage { .. })
    ));
    assert_eq!(
        ReleaseIndex::highest_release(&fields)
            .map(ToString::to_string)
            .as_deref(),
        Some("1.0.0")
    );
}

#[test]
fn errors_of_the_file_name_the_line() {
    let good = rule("*", &[1], "");
    let line = key(1).public().to_line();
    for (text, line, part) in [
        (format!("{good}treshold = 2\n"), 5, "treshold"),
        (format!("\n\ncolour = 'red'\n{good}"), 3, "colour"),
        (format!("{good}{good}"), 6, "two rules for *"),
        (rule("acme/*/x", &[1], ""), 2, "package name"),
        (rule("**", &[1], ""), 2, "package name"),
        (rule("latest", &[1], ""), 2, "reserved"),
        (rule("*", &[], ""), 2, "no keys"),
        (rule("*", &[1, 1], ""), 3, "twice"),
        (rule("*", &[1], "threshold = 0"), 4, "at least 1"),
        (rule("*", &[1], "threshold = -1"), 4, ""),
        (rule("*", &[1], "max_age = '30'"), 4, "length of time"),
        (rule("*", &[1], "links = 'all'"), 4, "all"),
        ("[[rule]]\npattern = '*'\n".to_owned(), 1, "keys"),
        (good.replace(&line, &line[1..]), 3, "base64"),
        ("[[rule\n".to_owned(), 1, ""),
        ("[[revoked]]\nkey = 'x'\n".to_owned(), 2, "key id"),
        ("[[blocked]]\npackage = 'A'\n".to_owned(), 2, "package name"),
    ] {
        let error = TrustPolicy::parse(&text).unwrap_err();
        match &error {
            PolicyError::Syntax { line: at, message } => {
                assert_eq!(*at, line, "{text}{error}");
                assert!(message.contains(part), "{text}{error}");
                assert!(!message.contains('\n'));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn edits_keep_what_the_user_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config/trust.toml");
    let add = |text: &str, number: u8, threshold| {
        TrustPolicy::edit(&path, |policy| {
            policy.add(&pattern(text), &key(number).public(), threshold)
        })
        .unwrap()
    };
    assert!(add("*", 1, None));
    assert!(!add("*", 1, None), "the same again changes nothing");
    assert!(add("acme/*", 2, Some(2)));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# Whose signatures"), "{text}");
    let mine = text.replace(
        "[[rule]]\npattern = \"acme/*\"",
        "# from Alice\n[[rule]]\npattern = 'acme/*' # ours",
    );
    assert_ne!(mine, text);
    fs::write(&path, &mine).unwrap();

    assert!(add("acme/*", 3, None));
    let text = fs::read_to_string(&path).unwrap();
    for kept in [
        "# from Alice\n",
        "pattern = 'acme/*' # ours",
        "threshold = 2",
    ] {
        assert!(text.contains(kept), "{text}");
    }
    for number in [1, 2, 3] {
        let line = format!("\n    \"{}\",\n", key(number).public().to_line());
        assert!(text.contains(&line), "each key has its line\n{text}");
    }
    let policy = TrustPolicy::load(&path).unwrap();
    let rule = policy.rule_for(&name("acme/x")).unwrap();
    assert_eq!(
        (rule.keys.len(), rule.threshold, rule.links),
        (2, 2, Links::Inside)
    );

    let remove = |text: &str, number: Option<u8>| {
        let id = number.map(|number| key(number).public().id());
        TrustPolicy::edit(&path, |policy| policy.remove(&pattern(text), id)).unwrap()
    };
    assert!(!remove("acme/*", Some(9)));
    assert!(!remove("nothing", None));
    assert!(remove("acme/*", Some(2)));
    assert!(
        remove("acme/*", Some(3)),
        "the last key takes the rule with it"
    );
    let policy = TrustPolicy::load(&path).unwrap();
    assert_eq!(policy.rules().len(), 1);
    assert!(remove("*", None));
    assert_eq!(TrustPolicy::load(&path).unwrap().rules().len(), 0);

    TrustPolicy::edit(&path, |policy| {
        policy.revoke(key(1).public().id(), Some("lost"))?;
        policy.block(&"acme/tool@1.0.0".parse().unwrap(), None)
    })
    .unwrap();
    let policy = TrustPolicy::load(&path).unwrap();
    assert_eq!(policy.revoked()[0].reason.as_deref(), Some("lost"));
    assert_eq!(policy.blocked()[0].0.to_string(), "acme/tool@1.0.0");
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn edits_understand_every_layout() {
    let line = |number: u8| key(number).public().to_line();
    for text in [
        format!("rule = [ {{ pattern = '*', keys = ['{}'] }} ]\n", line(1)),
        format!(
            "[[rule]]\npattern = '*'\nkeys = [\n  '{}', # mine\n]\n",
            line(1)
        ),
        format!(
            "[[rule]]\npattern = '*'\nkeys = [\n  '{}' # mine\n]\n",
            line(1)
        ),
        format!(
            "[[rule]]\nkeys = ['{}',]\nthreshold = 1\npattern = \"*\"",
            line(1)
        ),
        format!(
            "rule = [ {{ pattern = '*', keys = ['{}'] }} ] # all",
            line(1)
        ),
    ] {
        let mut policy = TrustPolicy::parse(&text).unwrap();
        assert!(
            policy
                .add(&Pattern::All, &key(2).public(), Some(2))
                .unwrap(),
            "{text}"
        );
        let rule = policy.rule_for(&name("a")).unwrap();
        assert_eq!(
            (rule.keys.len(), rule.threshold),
            (2, 2),
            "{}",
            policy.text()
        );
        assert_eq!(policy.text().contains("# mine"), text.contains("# mine"));
        assert!(
            policy
                .remove(&Pattern::All, Some(key(1).public().id()))
                .unwrap()
        );
        assert_eq!(policy.rule_for(&name("a")).unwrap().keys, [key(2).public()]);
    }
}

#[test]
fn comments_alone_stay_at_the_head() {
    let mut policy = TrustPolicy::parse("# mine\n").unwrap();
    policy.add(&Pattern::All, &key(1).public(), None).unwrap();
    assert!(
        policy.text().starts_with("# mine\n\n[[rule]]\n"),
        "{}",
        policy.text()
    );
}

#[test]
fn a_file_that_everybody_can_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trust.toml");
    assert_eq!(TrustPolicy::load(&path).unwrap().rules().len(), 0);
    fs::write(&path, rule("*", &[1], "")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(matches!(
        TrustPolicy::load(&path),
        Err(PolicyError::Permissions { mode: 0o666, .. })
    ));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(TrustPolicy::load(&path).unwrap().rules().len(), 1);
    // A broken file is never overwritten by an edit.
    fs::write(&path, "rule = 1\n").unwrap();
    let edited = TrustPolicy::edit(&path, |policy| {
        policy.add(&Pattern::All, &key(1).public(), None)
    });
    assert!(matches!(edited, Err(PolicyError::Syntax { line: 1, .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "rule = 1\n");
}

/// The examples of the documentation are what the code reads.
#[test]
fn the_documented_file_is_a_policy() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/trust.md");
    let text = fs::read_to_string(path).unwrap();
    let example: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("    [[rule]]"))
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .collect();
    let policy = TrustPolicy::parse(&example.join("\n")).unwrap();
    let rule = policy.rule_for(&name("acme/tool")).unwrap();
    assert_eq!(
        (rule.keys.len(), rule.threshold, rule.links),
        (2, 2, Links::Any)
    );
    assert_eq!(rule.max_age, Some(Duration::from_secs(30 * 86_400)));
    assert_eq!(policy.revoked().len(), 1);
    assert_eq!(policy.blocked().len(), 1);
}
