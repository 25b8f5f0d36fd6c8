//! Ed25519 keys: how they are made, kept in files and written on a line.
//!
//! A private key is a PKCS#8 PEM file that only its owner can read, encrypted when a password is given. A public
//! key is an SPKI PEM file or one line: the 32 raw bytes in base64, 44 characters. Secrets have no `Debug` and are
//! wiped when dropped.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::pkcs8::KeypairBytes;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use pkcs8::der::pem::PemLabel;
use pkcs8::der::{Decode as _, SecretDocument};
use pkcs8::spki::SubjectPublicKeyInfoRef;
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef};
use rand::TryRng as _;
use zeroize::Zeroizing;

use super::envelope::Signature;
use super::name::KeyId;
use crate::block::Digest;
use crate::durable;

/// The largest key file that is read, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;

/// The most memory that reading an encrypted key may take: scrypt needs 128 * N * r bytes. Ours need 16 MiB.
const SCRYPT_BYTES_MAX: u64 = 256 << 20;

/// The most parallel lanes of scrypt: each costs as much time again.
const SCRYPT_LANES_MAX: u16 = 8;

/// Why a key cannot be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file is not there.
    #[error("there is no key file {0}")]
    NotFound(PathBuf),
    /// A key is never overwritten.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// Others could read the private key.
    #[error("the private key {path} is readable by others (mode {mode:04o})")]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file cannot be read or written.
    #[error("key file {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        error: io::Error,
    },
    /// The text is not a key of the form that was expected.
    #[error("not a key: {0}")]
    Syntax(&'static str),
    /// A key of another kind than Ed25519.
    #[error("not an Ed25519 key")]
    Algorithm,
    /// The public key has small order or is not written in the one canonical way: signatures by it prove nothing.
    #[error("a weak public key")]
    Weak,
    /// The key is encrypted and no password was given.
    #[error("the private key is encrypted and needs its password")]
    PasswordNeeded,
    /// The password is wrong, or the file is damaged.
    #[error("the password does not decrypt the private key")]
    PasswordWrong,
    /// The file asks for more work than is done for a key file.
    #[error("the private key's encryption is not scrypt within 256 MiB and 8 lanes")]
    Cost,
    /// The system has no randomness to give.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
}

impl KeyError {
    /// Returns what a person can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            KeyError::NotFound(_) => "make a key with 'manifs keygen'".to_owned(),
            KeyError::Exists(_) => {
                "choose another name; a key is never overwritten, since what it signed would be orphaned".to_owned()
            }
            KeyError::Permissions { path, .. } => format!("chmod 600 {}", path.display()),
            KeyError::Syntax(_) => {
                "a private key is PKCS#8 PEM; a public key is SPKI PEM or its 32 bytes in base64".to_owned()
            }
            KeyError::Weak => {
                "no proper key generator makes such a key; do not trust whoever sent it".to_owned()
            }
            KeyError::Cost => {
                "rewrite it with 'openssl pkcs8 -topk8 -scrypt -in OLD -out NEW'".to_owned()
            }
            KeyError::PasswordNeeded | KeyError::PasswordWrong => {
                "give the password at the prompt, in a file or in the environment".to_owned()
            }
            KeyError::Io { .. } | KeyError::Algorithm | KeyError::Random(_) => return None,
        })
    }
}

/// A password; wiped when dropped, never shown.
pub type Password = Zeroizing<String>;

/// A private key.
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<PrivateKey, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        rand::rngs::SysRng
            .try_fill_bytes(seed.as_mut_slice())
            .map_err(|error| KeyError::Random(error.to_string()))?;
        Ok(PrivateKey(SigningKey::from_bytes(&seed)))
    }

    /// Takes the 32 secret bytes of RFC 8032: for tests and vectors.
    pub fn from_seed(seed: &[u8; 32]) -> PrivateKey {
        PrivateKey(SigningKey::from_bytes(seed))
    }

    /// Returns the public key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs bytes.
    pub fn sign(&self, payload: &[u8]) -> Signature {
        Signature {
            key: self.public().id(),
            bytes: self.0.sign(payload).to_bytes(),
        }
    }

    /// Writes the key as PKCS#8 PEM; with a password as PBES2 with scrypt (N 2^14, r 8, p 1) and AES-256-CBC.
    ///
    /// # Errors
    /// [`KeyError::Random`] when there is no salt to be had.
    pub fn to_pem(&self, password: Option<&Password>) -> Result<Zeroizing<String>, KeyError> {
        // Version 1, without the public key: what every OpenSSL reads.
        let pair = KeypairBytes {
            secret_key: self.0.to_bytes(),
            public_key: None,
        };
        let document = pkcs8::EncodePrivateKey::to_pkcs8_der(&pair)
            .map_err(|_| KeyError::Syntax("it cannot be encoded"))?;
        let Some(password) = password else {
            return to_pem(&document, PrivateKeyInfoRef::PEM_LABEL);
        };
        let info = PrivateKeyInfoRef::from_der(document.as_bytes())
            .map_err(|_| KeyError::Syntax("it cannot be encoded"))?;
        let encrypted = info
            .encrypt(password.as_bytes())
            .map_err(|error| KeyError::Random(error.to_string()))?;
        to_pem(&encrypted, EncryptedPrivateKeyInfoRef::PEM_LABEL)
    }

    /// Reads PKCS#8 PEM; `password` is asked only when the key is encrypted, and `None` means there is none.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_pem(
        text: &str,
        password: impl FnOnce() -> Result<Option<Password>, KeyError>,
    ) -> Result<PrivateKey, KeyError> {
        let (label, document) = SecretDocument::from_pem(text.trim())
            .map_err(|_| KeyError::Syntax("no PEM of a private key"))?;
        if label == PrivateKeyInfoRef::PEM_LABEL {
            return from_der(document.as_bytes());
        }
        if label != EncryptedPrivateKeyInfoRef::PEM_LABEL {
            return Err(KeyError::Syntax(
                "a PEM of something else than a PKCS#8 private key",
            ));
        }
        let encrypted = EncryptedPrivateKeyInfoRef::from_der(document.as_bytes())
            .map_err(|_| KeyError::Syntax("no encrypted private key that can be read"))?;
        check_cost(&encrypted)?;
        let password = password()?.ok_or(KeyError::PasswordNeeded)?;
        let document = encrypted
            .decrypt(password.as_bytes())
            .map_err(|_| KeyError::PasswordWrong)?;
        from_der(document.as_bytes()).map_err(|error| match error {
            // One wrong password in 256 leaves right padding and wrong bytes.
            KeyError::Syntax(_) => KeyError::PasswordWrong,
            other => other,
        })
    }

    /// Reads a key file; see [`PrivateKey::from_pem`]. It must be a regular file with no permissions for others.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read(
        path: &Path,
        password: impl FnOnce() -> Result<Option<Password>, KeyError>,
    ) -> Result<PrivateKey, KeyError> {
        let text = Zeroizing::new(read_text(path, |mode| mode & 0o077 == 0)?);
        PrivateKey::from_pem(&text, password)
    }

    /// Writes a new key file with mode 0600; durable when this returns.
    ///
    /// # Errors
    /// [`KeyError::Exists`], [`KeyError::Io`].
    pub fn write(&self, path: &Path, password: Option<&Password>) -> Result<(), KeyError> {
        create(path, self.to_pem(password)?.as_bytes(), 0o600)
    }
}

fn to_pem(document: &SecretDocument, label: &'static str) -> Result<Zeroizing<String>, KeyError> {
    document
        .to_pem(label, LineEnding::LF)
        .map_err(|_| KeyError::Syntax("it cannot be encoded"))
}

fn from_der(der: &[u8]) -> Result<PrivateKey, KeyError> {
    let info =
        PrivateKeyInfoRef::from_der(der).map_err(|_| KeyError::Syntax("no PKCS#8 private key"))?;
    if info.algorithm.oid != ed25519_dalek::pkcs8::ALGORITHM_OID {
        return Err(KeyError::Algorithm);
    }
    // A public key beside the secret one has to be its own.
    let key = SigningKey::try_from(info).map_err(|_| {
        KeyError::Syntax("no Ed25519 key in PKCS#8, or one with a foreign public key")
    })?;
    Ok(PrivateKey(key))
}

/// Refuses what would take minutes or gigabytes, before any work is done.
fn check_cost(encrypted: &EncryptedPrivateKeyInfoRef<'_>) -> Result<(), KeyError> {
    let scrypt = encrypted
        .encryption_algorithm
        .pbes2()
        .and_then(|parameters| parameters.kdf.scrypt())
        .ok_or(KeyError::Cost)?;
    let bytes = scrypt
        .cost_parameter
        .checked_mul(u64::from(scrypt.block_size))
        .and_then(|product| product.checked_mul(128));
    if bytes.is_none_or(|bytes| bytes > SCRYPT_BYTES_MAX)
        || scrypt.parallelization > SCRYPT_LANES_MAX
    {
        return Err(KeyError::Cost);
    }
    Ok(())
}

/// A public key that is not weak.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Takes the 32 raw bytes of RFC 8032.
    ///
    /// # Errors
    /// [`KeyError::Weak`] for a point of small order, a second spelling of a point, or no point at all.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<PublicKey, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Weak)?;
        let canonical = key.to_edwards().compress();
        if key.is_weak() || canonical.as_bytes() != bytes {
            return Err(KeyError::Weak);
        }
        Ok(PublicKey(key))
    }

    /// Returns the 32 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Returns the SHA-256 of the raw bytes.
    pub fn id(&self) -> KeyId {
        KeyId(Digest::of(self.as_bytes()))
    }

    /// Returns whether this key made `signature` of `payload`; `verify_strict`, so that there is one signature
    /// for a message and a key.
    pub fn verifies(&self, payload: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.0.verify_strict(payload, &signature).is_ok()
    }

    /// Reads the one-line form: base64 of the raw bytes.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_line(line: &str) -> Result<PublicKey, KeyError> {
        let bytes: [u8; 32] = BASE64
            .decode(line.trim())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(KeyError::Syntax("not the base64 of 32 bytes"))?;
        PublicKey::from_bytes(&bytes)
    }

    /// Returns the one-line form: base64 of the raw bytes, 44 characters.
    pub fn to_line(&self) -> String {
        BASE64.encode(self.as_bytes())
    }

    /// Reads SPKI PEM.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_pem(text: &str) -> Result<PublicKey, KeyError> {
        let (label, document) = pkcs8::Document::from_pem(text.trim())
            .map_err(|_| KeyError::Syntax("no PEM of a public key"))?;
        if label.contains("PRIVATE KEY") {
            return Err(KeyError::Syntax(
                "a private key where a public one is wanted",
            ));
        }
        let info = SubjectPublicKeyInfoRef::from_der(document.as_bytes())
            .map_err(|_| KeyError::Syntax("no SPKI public key"))?;
        if info.algorithm.oid != ed25519_dalek::pkcs8::ALGORITHM_OID {
            return Err(KeyError::Algorithm);
        }
        let bytes = info
            .subject_public_key
            .as_bytes()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(KeyError::Syntax("no Ed25519 public key"))?;
        PublicKey::from_bytes(bytes)
    }

    /// Returns SPKI PEM.
    pub fn to_pem(&self) -> String {
        // RFC 8410: SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING of 32 bytes }.
        const HEADER: [u8; 12] = [
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ];
        let der = [HEADER.as_slice(), self.as_bytes()].concat();
        // 44 bytes are 60 characters: one line of PEM.
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            BASE64.encode(der)
        )
    }

    /// Reads either form.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(text: &str) -> Result<PublicKey, KeyError> {
        if text.contains("-----BEGIN") {
            PublicKey::from_pem(text)
        } else {
            PublicKey::from_line(text)
        }
    }

    /// Reads a file that holds either form.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read(path: &Path) -> Result<PublicKey, KeyError> {
        PublicKey::parse(&read_text(path, |_| true)?)
    }

    /// Writes a new SPKI PEM file with mode 0644; durable when this returns.
    ///
    /// # Errors
    /// [`KeyError::Exists`], [`KeyError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        create(path, self.to_pem().as_bytes(), 0o644)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_line())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.to_line())
    }
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyError> {
    durable::create(path, bytes, mode).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
        _ => io_error(path, error),
    })
}

fn io_error(path: &Path, error: io::Error) -> KeyError {
    KeyError::Io {
        path: path.to_owned(),
        error,
    }
}

fn read_text(path: &Path, allowed: impl Fn(u32) -> bool) -> Result<String, KeyError> {
    // A FIFO would otherwise wait for a writer before it can be refused.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KeyError::NotFound(path.to_owned()),
        _ => io_error(path, error),
    })?;
    let metadata = file.metadata().map_err(|error| io_error(path, error))?;
    if !metadata.is_file() {
        return Err(KeyError::Syntax("not a regular file"));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if !allowed(mode) {
        return Err(KeyError::Permissions {
            path: path.to_owned(),
            mode,
        });
    }
    if metadata.size() > KEY_FILE_BYTES_MAX {
        return Err(KeyError::Syntax("the file is too large for a key"));
    }
    // Reserved in full (64 KiB), so that no copy of a secret is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(1 << 16));
    Read::by_ref(&mut file)
        .take(KEY_FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| io_error(path, error))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| KeyError::Syntax("not a text"))?;
    Ok(text.to_owned())
}
