//! What is typed, and what is meant by it.

use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "config.toml", [])
}

#[test]
fn peers_are_hosts_with_ports() {
    let read = |peer: &str| {
        let text = format!("[sources]\npeers = [{peer:?}]\n");
        Config::parse(&text, "config.toml", [])
    };
    for peer in ["127.0.0.1:6881", "seed.example:1", "[::1]:6881"] {
        assert_eq!(read(peer).unwrap().sources.peers, [peer]);
    }
    for peer in [
        "",
        "seed.example",
        ":1",
        "a:0",
        "a:65536",
        "::1:6881",
        "http://a:1",
        "[a]:1",
    ] {
        let error = read(peer).unwrap_err().to_string();
        assert!(error.contains("peers"), "{peer}: {error}");
    }
}

#[test]
fn everything_has_a_default() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(
        (config.store.quota, config.fetch.deadline),
        (Bytes(20 << 30), Duration::from_secs(30))
    );
    assert_eq!(config.gateway, None);
    let served = parse("[gateway]\n").unwrap().gateway.unwrap();
    assert_eq!(
        (served.listen.to_string().as_str(), served.share.len()),
        ("127.0.0.1:8420", 0)
    );
}

#[test]
fn sizes_durations_and_patterns_are_read_as_people_write_them() {
    let text = "[store]\nquota = \"64 MiB\"\nverify = \"always\"\n[fetch]\ndeadline = \"5m\"\ndown = 1000\n\
        [gateway]\nshare = [\"*\", \"acme/*\", \"tools\"]\n[mount]\ninstall = \"latest\"\n";
    let config = parse(text).unwrap();
    assert_eq!(
        (config.store.quota.0, config.store.verify),
        (64 << 20, Verify::Always)
    );
    assert_eq!(
        (config.fetch.deadline, config.fetch.down.0),
        (Duration::from_secs(300), 1000)
    );
    assert_eq!(config.mount.install, Install::Latest);
    let share = config.gateway.unwrap().share;
    let covers = |name: &str| {
        share[1..]
            .iter()
            .any(|share| share.0.matches(&name.parse().unwrap()))
    };
    assert_eq!(
        [
            covers("acme/x"),
            covers("tools"),
            covers("acme"),
            covers("other/x")
        ],
        [true, true, false, false]
    );
}

#[test]
fn mistakes_name_the_place_and_the_line() {
    for (text, want) in [
        ("[store]\nquotas = 1\n", "line 2"),
        ("[stroe]\n", "stroe"),
        ("[store]\nquota = \"20 pounds\"\n", "20 pounds"),
        ("[store]\nquota = \"1MiB\"\n", "16MiB"),
        ("[store]\nverify = \"never\"\n", "first-touch"),
        ("[fetch]\ndeadline = \"0s\"\n", "deadline"),
        ("[gateway]\nlisten = \"nowhere\"\n", "line 2"),
        ("[gateway]\nshare = [\"A\"]\n", "pattern"),
        ("[sources]\nhttp = [\"mirror.example\"]\n", "mirror.example"),
        ("[sources]\nhttp = [\"ftp://mirror.example\"]\n", "http://"),
        (
            "[sources]\nhttp = [\"http://mirror.example/?tree=\"]\n",
            "query",
        ),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(
            error.starts_with("config.toml: ") && error.contains(want),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn variables_override_the_file() {
    let variables = [
        ("MANIFS_STORE_QUOTA", "32MiB"),
        ("MANIFS_MOUNT_ALLOW_OTHER", "true"),
        ("MANIFS_HOME", "/h"),
        ("HOME", "/"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::parse("[store]\nquota = \"64MiB\"\n", "config.toml", variables).unwrap();
    assert_eq!(
        (config.store.quota.0, config.mount.allow_other),
        (32 << 20, true)
    );
    let wrong = [("MANIFS_STORE_QUOTAS".to_owned(), "1".to_owned())];
    let error = Config::parse("", "config.toml", wrong)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("MANIFS_STORE_QUOTAS: "), "{error}");
}

#[test]
fn a_home_is_one_directory() {
    let paths = Paths::below(Path::new("/h"));
    assert_eq!(
        paths.private_key("default"),
        Path::new("/h/keys/default.pem")
    );
    assert_eq!(paths.socket(), Path::new("/h/run/control"));
}

#[test]
fn what_is_shown_can_be_read_again() {
    let text = "[store]\nquota = \"64MiB\"\n[fetch]\ndeadline = \"90s\"\nup = 1000\n\
        [gateway]\nshare = [\"acme/*\"]\n[net.auth]\n\"h:1\" = \"bearer-file:/t\"\n";
    let config = parse(text).unwrap();
    let shown = toml::to_string(&config).unwrap();
    assert_eq!(parse(&shown).unwrap(), config, "{shown}");
    let sizes = [
        (0, "0"),
        (1023, "1023"),
        (1 << 10, "1KiB"),
        (3 << 40, "3TiB"),
    ];
    for (bytes, text) in sizes {
        assert_eq!(Bytes(bytes).to_string(), text);
        assert_eq!(text.parse(), Ok(Bytes(bytes)));
    }
}

#[test]
fn the_variable_that_is_wrong_is_named() {
    let variables = [
        ("MANIFS_FETCH_DEADLINE", "soon"),
        ("MANIFS_STORE_QUOTA", "32MiB"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let error = Config::parse("", "config.toml", variables)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("MANIFS_FETCH_DEADLINE: "), "{error}");
}

#[test]
fn paths_begin_at_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let text = "[store]\npath = \"blocks\"\n[sources]\nlocal = [\"/mirror\", \"~/m\"]\n\
        [net.auth]\n\"h:1\" = \"bearer-file:token\"\n";
    std::fs::write(&file, text).unwrap();
    let config = Config::load(&file).unwrap();
    assert_eq!(config.store.path, Some(directory.path().join("blocks")));
    assert_eq!(config.sources.local[0], Path::new("/mirror"));
    let home = variable("HOME").unwrap_or_default();
    assert_eq!(config.sources.local[1], Path::new(&home).join("m"));
    let token = format!("bearer-file:{}", directory.path().join("token").display());
    assert_eq!(config.net.auth["h:1"], token);
}

#[test]
fn seeding_is_off_unless_configured_and_what_is_not_there_is_refused() {
    assert_eq!(parse("").unwrap().torrent, None);
    let torrent = parse("[torrent]").unwrap().torrent.unwrap();
    assert_eq!(torrent.listen, "127.0.0.1:6881".parse().unwrap());
    assert!(!torrent.seed && !torrent.dht && torrent.announce_port.is_none());
    for text in [
        "announce_port = 0",
        "lsd = false",
        "dht_bootstrap = [\"a:1\"]",
        "dht = true\ndht_bootstrap = []",
        "dht = true\ndht_bootstrap = [\"a\"]",
    ] {
        assert!(parse(&format!("[torrent]\n{text}")).is_err(), "{text}");
    }
    let torrent = parse("[torrent]\ndht = true\ndht_bootstrap = [\"a:1\", \"[::1]:2\"]");
    let torrent = torrent.unwrap().torrent.unwrap();
    assert!(torrent.dht && torrent.dht_bootstrap.unwrap().len() == 2);
}

#[test]
fn every_key_is_described() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.md"));
    let page = page.unwrap();
    let shown = toml::Table::try_from(Config {
        gateway: Some(toml::from_str("").unwrap()),
        torrent: Some(toml::from_str("announce_port = 1\ndht_bootstrap = []").unwrap()),
        store: StoreSection {
            path: Some("p".into()),
            ..StoreSection::default()
        },
        net: NetSection {
            proxy: Some("p".into()),
            ca: Some("p".into()),
            ..NetSection::default()
        },
        ..Config::default()
    });
    let mut keys = 0;
    for (section, values) in shown.unwrap() {
        assert!(page.contains(&format!("`[{section}]`")), "[{section}]");
        for key in values.as_table().unwrap().keys() {
            assert!(page.contains(&format!("| `{key}` |")), "[{section}] {key}");
            keys += 1;
        }
    }
    assert_eq!(keys, 25, "a new key needs a place here too");
}

#[test]
fn unattended_publishing_says_what_it_signs() {
    let config = parse("[publish]\nnames = [\"acme/*\", \"tool\"]\n").unwrap();
    let publish = config.publish.unwrap();
    assert_eq!(publish.key, Path::new("default"));
    assert_eq!(publish.settle, Duration::from_secs(60));
    assert_eq!(publish.after, crate::publish::drop::After::Remove);
    let publish = parse(
        "[publish]\nnames = [\"*\"]\nto = [\"torrent\"]\nsettle = \"0s\"\nafter = \"move\"\ngroup = \"staff\"\n",
    );
    assert!(publish.unwrap().publish.unwrap().seeds());
    for (text, word) in [
        ("[publish]\n", "names"),
        ("[publish]\nnames = []\n", "which packages"),
        ("[publish]\nnames = [\"a*\"]\n", "no pattern"),
        (
            "[publish]\nnames = [\"*\"]\nto = [\"mirror\"]\n",
            "mirror: no such network: a directory is written ./mirror",
        ),
        (
            "[publish]\nnames = [\"*\"]\nto = [\"http://m/\"]\n",
            "a mirror is written as a directory",
        ),
        (
            "[publish]\nnames = [\"*\"]\nregistry = \"http://r\"\n",
            "only be read",
        ),
        ("[publish]\nnames = [\"*\"]\nafter = \"burn\"\n", "burn"),
        ("[publish]\nnames = [\"*\"]\nallow = [\"links\"]\n", "allow"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn paths_of_unattended_publishing_begin_at_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    let read = |key: &str| {
        let text = format!(
            "[publish]\nnames = [\"*\"]\nkey = {key:?}\ndirectory = \"in\"\nregistry = \"out\"\nto = [\"torrent\", \"m/\", \"/srv/m/\"]\n"
        );
        std::fs::write(&path, text).unwrap();
        Config::load(&path).unwrap().publish.unwrap()
    };
    let publish = read("release");
    assert_eq!(publish.key, Path::new("release"));
    assert_eq!(publish.directory, Some(directory.path().join("in")));
    assert_eq!(publish.registry, Some(directory.path().join("out")));
    assert!(publish.seeds());
    let mirrors = [directory.path().join("m"), PathBuf::from("/srv/m")];
    assert_eq!(publish.mirrors(), mirrors);
    assert_eq!(
        read("k/release.pem").key,
        directory.path().join("k/release.pem")
    );
}
