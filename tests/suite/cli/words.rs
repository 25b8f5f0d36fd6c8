//! What is typed and what is printed: mistakes, help, escapes, closed pipes.

use std::fs;
use std::io::Read as _;

use super::Home;

#[test]
fn what_makes_no_sense_exits_with_2() {
    let home = Home::new();
    home.tree("tree");
    home.run(&["keygen"]).ok();
    let publish = |name, version| ["publish", "tree", "--name", name, "--version", version];
    for wrong in [
        &["frob"][..],
        &["ls"],
        &["publish", "tree"],
        &["-q", "-v", "list"],
        &["mount", "tree", "-o", "nothing"],
        &["mount", "tree", "-o", "umask=9"],
        &["cat", "UPPER/x"],
        &["ls", "tools@one"],
        &["list", "A B"],
        &["keygen", "../x"],
        &["trust", "add", "A*", "default"],
        &["trust", "add", "*", "no-such-key"],
        &["registry", "add", "ftp://example.org/"],
        &["--config", "missing.toml", "list"],
        &publish("UPPER", "1.0.0"),
        &publish("a/b/c", "1.0.0"),
        &publish("tools", "1"),
        &publish("tools", "1.0.0+build"),
        &[&publish("tools", "1.0.0")[..], &["--allow", "everything"]].concat(),
        &[&publish("tools", "1.0.0")[..], &["--latest", "--no-latest"]].concat(),
        &[
            &publish("tools", "1.0.0")[..],
            &["--registry", "http://example.org"],
        ]
        .concat(),
        &[&publish("tools", "1.0.0")[..], &["--mtime", "soon"]].concat(),
        &[&publish("tools", "1.0.0")[..], &["--to", "mirror"]].concat(),
        &[&publish("tools", "1.0.0")[..], &["--to", "http://a/b"]].concat(),
        &[&publish("tools", "1.0.0")[..], &["--http", "a/b"]].concat(),
        &["fetch", "tools"],
        &["fetch", "tools", "-o", "a", "--mirror", "b"],
    ] {
        let ran = home.run(wrong);
        assert_eq!(ran.out, "", "{wrong:?}");
        ran.failed(2, "");
    }
    // Without any word, the help is the answer.
    let ran = home.run(&[]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("Usage: manifs"), "{}", ran.err);
}

#[test]
fn help_version_manual_and_completions_need_no_home() {
    let home = Home::new();
    for words in [
        &["--help"][..],
        &["--version"],
        &["publish", "--help"],
        &["man"],
    ] {
        assert!(home.run(words).ok().out.contains("manifs"), "{words:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.run(&["completions", shell]).ok().out.len() > 1000);
    }
    fs::create_dir(home.at("pages")).unwrap();
    home.run(&["man", "--dir", "pages"]).ok();
    assert!(home.at("pages/manifs-publish.1").exists());
    assert!(!home.path.exists());
}

#[test]
fn names_cannot_steer_a_terminal() {
    let home = Home::publisher();
    fs::write(home.at("tree/\u{1b}[31mred\u{202e}"), "").unwrap();
    home.publish("1.1.0").ok();
    let ls = home.run(&["ls", "acme/tools"]).ok().out;
    assert!(ls.contains(r"\u{1b}[31mred\u{202e}"), "{ls:?}");
    let json = home.run(&["ls", "--json", "acme/tools"]).ok().json();
    assert_eq!(json["entries"][0]["path"], "\u{1b}[31mred\u{202e}");
    let missing = home
        .run(&["cat", "acme/tools/\u{1b}[2Jx"])
        .failed(3, "[2Jx");
    assert!(!missing.err.contains('\u{1b}'));
}

#[test]
fn a_closed_output_is_no_error() {
    let home = Home::publisher();
    let mut child = home.spawn(&["cat", "acme/tools/big"]);
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 10];
    out.read_exact(&mut first).unwrap();
    assert_eq!(first, [7; 10]);
    drop(out);
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
}

#[test]
fn quiet_says_nothing_but_results() {
    let home = Home::publisher();
    for words in [
        &["-q", "fetch", "acme/tools", "-o", "copy"][..],
        &["-q", "verify", "acme/tools", "copy"],
        &["-q", "warm", "acme/tools"],
        &["-q", "keygen", "another"],
    ] {
        assert_eq!(home.run(words).ok().err, "", "{words:?}");
    }
}
