//! `SHA256SUMS`, as coreutils writes it: for people and `sha256sum -c`. It proves nothing to manifs.

use crate::block::Digest;

/// The largest `SHA256SUMS` that is written beside a manifest, in bytes: 64 MiB.
pub const SUMS_BYTES_MAX: u64 = 64 << 20;

/// Returns the line of a file, its path relative to the package's root, with the newline.
///
/// A path with a backslash, newline or carriage return is escaped, and the line begins with a backslash, as coreutils
/// 9 does. `-` would mean standard input and is written `./-`.
pub fn line(digest: Digest, path: &[u8]) -> Vec<u8> {
    let path = if path == b"-" { b"./-" } else { path };
    let mut name = Vec::with_capacity(path.len());
    for &byte in path {
        match byte {
            b'\\' => name.extend_from_slice(b"\\\\"),
            b'\n' => name.extend_from_slice(b"\\n"),
            b'\r' => name.extend_from_slice(b"\\r"),
            _ => name.push(byte),
        }
    }
    let mut line = Vec::with_capacity(name.len() + 68);
    if name.len() > path.len() {
        line.push(b'\\');
    }
    line.extend_from_slice(&digest.to_hex());
    line.extend_from_slice(b"  ");
    line.extend_from_slice(&name);
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_as_coreutils_does() {
        let hex = Digest::EMPTY.to_string();
        for (path, want) in [
            ("a b", format!("{hex}  a b\n")),
            ("dir/*x", format!("{hex}  dir/*x\n")),
            ("a\nb", format!("\\{hex}  a\\nb\n")),
            ("a\\b\r", format!("\\{hex}  a\\\\b\\r\n")),
            ("-", format!("{hex}  ./-\n")),
            ("d/-", format!("{hex}  d/-\n")),
        ] {
            assert_eq!(line(Digest::EMPTY, path.as_bytes()), want.as_bytes());
        }
    }
}
