//! Versions that exist: withdrawn, made the latest, compared.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use manifs::manifest::TrustError;
use manifs::publish::{Change, Finished, Options, Outcome, Progress, PublishError};
use tempfile::TempDir;

use crate::common::publishing::{self, Fault, Home, failing, tempdir};
use crate::common::signed::{key, package};
use crate::machine;

/// Publishes versions of `a`, each with a file of its own.
async fn publish(home: &Home, versions: &[&str]) {
    for version in versions {
        let tree = tempdir();
        fs::write(tree.path().join("file"), version).unwrap();
        let options = Options::new(package(&format!("a@{version}")));
        home.publish(tree.path(), options).await.unwrap();
    }
}

async fn change(home: &Home, version: &str, change: Change) -> Result<Outcome, PublishError> {
    let (registry, trust) = (Arc::clone(&home.registry), Arc::clone(&home.trust));
    let package = package(&format!("a@{version}"));
    let prepared = home
        .publisher
        .prepare_change(package, change, registry, Arc::clone(&trust))
        .await?;
    assert!(prepared.manifest.is_none() && prepared.summary.is_none());
    home.publisher
        .sign_and_finish(prepared, trust, &home.key, Arc::new(Progress::new()))
        .await
}

fn withdraw(reason: &str) -> Change {
    Change::Withdraw(reason.to_owned())
}

fn latest(home: &Home) -> Option<String> {
    let index = home.index(&package("a@1.0.0")).unwrap();
    index.latest.as_ref().map(ToString::to_string)
}

#[tokio::test]
async fn latest_goes_on_from_a_withdrawn_version() {
    let home = Home::new();
    publish(&home, &["1.0.0", "1.1.0", "2.0.0-rc.1"]).await;
    let outcome = change(&home, "1.1.0", withdraw("loses data")).await;
    let outcome = outcome.unwrap();
    assert!(outcome.changed);
    let index = home.index(&package("a@1.0.0")).unwrap();
    assert_eq!(index.sequence, 4);
    assert_eq!(
        outcome.manifest,
        index.versions[&package("a@1.1.0").version]
    );
    assert_eq!(index.withdrawn[&package("a@1.1.0").version], "loses data");
    assert_eq!(latest(&home).as_deref(), Some("1.0.0"));
    let announced = home.registry.index(&index.name).await.unwrap().unwrap();
    assert_eq!(announced, home.index_bytes(&package("a@1.0.0")));
    // The last release: a pre-release is no latest version by itself.
    change(&home, "1.0.0", withdraw("also")).await.unwrap();
    assert_eq!(latest(&home), None);
    change(&home, "2.0.0-rc.1", Change::Latest).await.unwrap();
    assert_eq!(latest(&home).as_deref(), Some("2.0.0-rc.1"));
    publish(&home, &["3.0.0"]).await;
    assert_eq!(latest(&home).as_deref(), Some("3.0.0"));
    let index = home.index(&package("a@1.0.0")).unwrap();
    assert_eq!(index.withdrawn.len(), 2, "for ever");
}

#[tokio::test]
async fn saying_it_again_changes_nothing() {
    let home = Home::new();
    publish(&home, &["1.0.0", "2.0.0"]).await;
    for wanted in [withdraw("old"), Change::Latest] {
        let version = if wanted == Change::Latest {
            "2.0.0"
        } else {
            "1.0.0"
        };
        change(&home, version, wanted.clone()).await.unwrap();
        let before = publishing::files(home.dir.path());
        let again = change(&home, version, wanted).await.unwrap();
        assert!(!again.changed);
        assert_eq!(publishing::files(home.dir.path()), before);
    }
}

#[tokio::test]
async fn what_cannot_be_said_is_refused() {
    let home = Home::new();
    let error = change(&home, "1.0.0", Change::Latest).await.unwrap_err();
    assert!(matches!(error, PublishError::NoPackage(_)), "{error}");
    publish(&home, &["1.0.0", "2.0.0"]).await;
    let error = change(&home, "9.0.0", withdraw("x")).await.unwrap_err();
    assert!(matches!(error, PublishError::NoVersion(_)), "{error}");
    for reason in [String::new(), "x".repeat(1001)] {
        let error = change(&home, "1.0.0", withdraw(&reason)).await.unwrap_err();
        assert!(matches!(error, PublishError::Reason(_)), "{error}");
        assert!(error.hint().is_some());
    }
    let error = change(&home, "1.0.0", withdraw("two\nlines")).await;
    assert!(matches!(error, Err(PublishError::Field(_))));
    change(&home, "1.0.0", withdraw("why")).await.unwrap();
    let tree = tempdir();
    fs::write(tree.path().join("file"), "1.0.0").unwrap();
    let again = Options::new(package("a@1.0.0"));
    for error in [
        change(&home, "1.0.0", withdraw("another")).await,
        change(&home, "1.0.0", Change::Latest).await,
        home.publish(tree.path(), again).await,
    ] {
        let error = error.unwrap_err();
        match &error {
            PublishError::Withdrawn { reason, .. } => assert_eq!(reason, "why"),
            other => panic!("{other:?}"),
        }
        assert!(error.hint().is_some());
    }
    // Signed by a key that this home does not trust: nothing changes.
    let before = publishing::files(home.dir.path());
    let (registry, trust) = (Arc::clone(&home.registry), Arc::clone(&home.trust));
    let package = package("a@2.0.0");
    let prepared = home
        .publisher
        .prepare_change(package, withdraw("x"), registry, Arc::clone(&trust))
        .await
        .unwrap();
    let signed = prepared.sign(&key(9)).unwrap();
    let progress = Arc::new(Progress::new());
    let done = home
        .publisher
        .finish(&prepared.job, signed, trust, progress);
    match done.await.unwrap_err() {
        PublishError::Untrusted {
            what: "release index",
            error: TrustError::UnknownKeys { .. },
        } => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(publishing::files(home.dir.path()), before);
}

#[tokio::test]
async fn a_withdrawal_and_a_version_at_a_time_are_both_kept() {
    let one = Home::new();
    let mut two = Home::new();
    two.registry = Arc::clone(&one.registry);
    publish(&one, &["1.0.0"]).await;
    let (registry, trust) = (Arc::clone(&one.registry), Arc::clone(&one.trust));
    let prepared = one
        .publisher
        .prepare_change(
            package("a@1.0.0"),
            withdraw("bad"),
            registry,
            Arc::clone(&trust),
        )
        .await
        .unwrap();
    publish(&two, &["2.0.0"]).await;
    let signed = prepared.sign(&one.key).unwrap();
    let progress = Arc::new(Progress::new());
    let done = one.publisher.finish(
        &prepared.job,
        signed,
        Arc::clone(&trust),
        Arc::clone(&progress),
    );
    let Finished::Again(again) = done.await.unwrap() else {
        panic!("the other was not seen");
    };
    let done = one
        .publisher
        .sign_and_finish(*again, trust, &one.key, progress);
    done.await.unwrap();
    let index = one.index(&package("a@1.0.0")).unwrap();
    assert_eq!((index.versions.len(), index.withdrawn.len()), (2, 1));
    assert_eq!(latest(&one).as_deref(), Some("2.0.0"));
}

#[tokio::test]
async fn a_withdrawal_that_could_not_be_announced_is_announced_by_the_next_process() {
    for fault in [Fault::Before, Fault::After] {
        let mut home = Home::new();
        publish(&home, &["1.0.0"]).await;
        failing(&mut home, fault);
        let error = change(&home, "1.0.0", withdraw("bad")).await.unwrap_err();
        assert!(matches!(error, PublishError::Announce(_)), "{error}");
        let home = home.restart();
        let registry = Arc::clone(&home.registry);
        let open = move |_: &str| Some(Arc::clone(&registry));
        let resumed = home.publisher.resume(&open, Arc::clone(&home.trust)).await;
        resumed[0].result.as_ref().unwrap();
        let index = home.registry.index(&package("a@1.0.0").name).await.unwrap();
        assert_eq!(index.unwrap(), home.index_bytes(&package("a@1.0.0")));
        assert_eq!(home.index(&package("a@1.0.0")).unwrap().withdrawn.len(), 1);
    }
}

/// Publishes the files of a map as a version, through the command.
fn publish_files(home: &machine::Home, version: &str, files: &[(&str, &str)]) -> TempDir {
    let tree = tempdir();
    for (path, text) in files {
        let path = tree.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    home.publish(tree.path(), "acme/tools", version);
    tree
}

#[test]
fn a_command_withdraws_and_moves_latest() {
    let home = machine::Home::new();
    publish_files(&home, "1.0.0", &[("file", "one")]);
    publish_files(&home, "1.1.0", &[("file", "two")]);
    let said = home.run(&["withdraw", "acme/tools@1.1.0", "--reason", "eats cats"]);
    assert!(said.contains("acme/tools@1.1.0 is withdrawn in"), "{said}");
    assert!(said.ends_with("latest leads to 1.0.0\n"), "{said}");
    assert_eq!(home.run(&["cat", "acme/tools/file"]), "one");
    let (code, said) = home.fail(&["cat", "acme/tools@1.1.0/file"]);
    assert!(code == 4 && said.contains("eats cats"), "{code}: {said}");
    for words in [&["why", "acme/tools@1.1.0"][..], &["list", "--all"]] {
        let said = home.run(words);
        assert!(
            said.contains("withdrawn by its publisher: eats cats"),
            "{said}"
        );
    }
    let again = [
        "withdraw",
        "acme/tools@1.1.0",
        "--reason",
        "eats cats",
        "--json",
    ];
    let again: serde_json::Value = serde_json::from_str(&home.run(&again)).unwrap();
    assert_eq!(
        (&again["unchanged"], &again["latest"]),
        (&true.into(), &"1.0.0".into())
    );

    publish_files(&home, "2.0.0", &[("file", "three")]);
    let said = home.run(&["latest", "acme/tools", "1.0.0"]);
    assert!(said.ends_with("latest leads to 1.0.0\n"), "{said}");
    assert_eq!(home.run(&["cat", "acme/tools/file"]), "one");

    for (code, what, words) in [
        (
            2,
            "names no version",
            &["withdraw", "acme/tools", "--reason", "x"][..],
        ),
        (2, "cannot be a version", &["latest", "acme/tools", "one"]),
        (
            2,
            "1 to 1000",
            &["withdraw", "acme/tools@1.0.0", "--reason", ""],
        ),
        (
            3,
            "no version 9.0.0 of acme/tools",
            &["latest", "acme/tools", "9.0.0"],
        ),
        (
            3,
            "no release index of other",
            &["latest", "other", "1.0.0"],
        ),
        (
            3,
            "no key",
            &["latest", "acme/tools", "2.0.0", "--key", "none"],
        ),
        (
            4,
            "is withdrawn: eats cats",
            &["latest", "acme/tools", "1.1.0"],
        ),
        (
            4,
            "is withdrawn: eats cats",
            &["withdraw", "acme/tools@1.1.0", "--reason", "x"],
        ),
    ] {
        let (got, said) = home.fail(words);
        assert!(
            got == code && said.contains(what),
            "{words:?}: {got} {said}"
        );
        assert!(code == 2 || said.contains("\nhint: "), "{said}");
    }
    home.run(&["keygen", "other"]);
    let words = ["latest", "acme/tools", "2.0.0", "--key", "other"];
    let (code, said) = home.fail(&words);
    assert!(
        code == 4 && said.contains("would be refused"),
        "{code} {said}"
    );
    // What makes no sense is said before any key is looked for.
    let words = [
        "publish",
        ".",
        "--name",
        "A",
        "--version",
        "1.0.0",
        "--key",
        "none",
    ];
    let (code, said) = home.fail(&words);
    assert!(code == 2 && said.contains("package name"), "{code} {said}");
}

#[test]
fn a_command_compares_versions() {
    let home = machine::Home::new();
    let old = [
        ("same", "same"),
        ("changed", "old"),
        ("gone/a", "a"),
        ("gone/b", "b"),
        ("kind/below", "x"),
        ("a\u{1b}[31m", "red"),
    ];
    let tree = publish_files(&home, "1.0.0", &old);
    let at = |path: &str| tree.path().join(path);
    fs::write(at("changed"), "new").unwrap();
    fs::remove_dir_all(at("gone")).unwrap();
    fs::remove_dir_all(at("kind")).unwrap();
    fs::write(at("kind"), "a file").unwrap();
    fs::write(at("new"), "new").unwrap();
    fs::write(at("a\u{1b}[31m"), "green").unwrap();
    fs::set_permissions(at("same"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = tree.path().to_str().unwrap();
    let dry = [
        "publish",
        path,
        "--name",
        "acme/tools",
        "--version",
        "1.1.0",
        "--dry-run",
    ];
    let said = home.run(&dry);
    let lines = "M a\\u{1b}[31m\nM changed\nD gone/\nD gone/a\nD gone/b\nT kind  directory -> file\n\
        D kind/below\nA new\nP same  0644 -> 0755\n";
    let counts = "1 added, 4 removed, 2 changed, 1 with another mode, 1 of another type";
    assert!(
        said.contains(&format!("since acme/tools@1.0.0: {counts}\n")),
        "{said}"
    );
    for line in lines.lines() {
        assert!(said.contains(&format!("  {line}\n")), "{said}");
    }
    home.publish(tree.path(), "acme/tools", "1.1.0");
    let versions = ["acme/tools@1.0.0", "acme/tools@1.1.0"];
    assert_eq!(
        home.run(&["diff", versions[0], versions[1]]),
        format!("{lines}{counts}\n")
    );
    assert_eq!(
        home.run(&["diff", "acme/tools", versions[1]]),
        "no difference\n"
    );
    let parts = versions.map(|version| format!("{version}/changed"));
    assert_eq!(
        home.run(&["diff", &parts[0], &parts[1]]),
        "M .\n1 changed\n"
    );
    let json = home.run(&["diff", versions[1], versions[0], "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["added"], &json["from"]),
        (&4.into(), &versions[1].into())
    );
    assert_eq!(json["entries"].as_array().unwrap().len(), 9);
    assert_eq!(json["entries"][0]["path"], "a\u{1b}[31m");
    let (code, said) = home.fail(&["diff", versions[0], "acme/tools@9.0.0"]);
    assert!(code == 3, "{said}");
    // Many differences: the first are named, the others counted. Times alone are no difference.
    for number in 0..100 {
        fs::write(at(&format!("new{number:03}")), "new").unwrap();
    }
    fs::write(at("changed"), "new").unwrap();
    let mut dry = dry.to_vec();
    dry[5] = "1.2.0";
    let said = home.run(&dry);
    assert!(
        said.contains("100 added") && said.contains("  and 80 more\n"),
        "{said}"
    );
    dry.push("--json");
    let json: serde_json::Value = serde_json::from_str(&home.run(&dry)).unwrap();
    assert_eq!(json["diff"]["entries"].as_array().unwrap().len(), 20);
}
