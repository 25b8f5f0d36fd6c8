//! Message stream encryption, as who is called: the encrypted handshake that most programs try first, and some insist on.
//!
//! The specification is the "Message Stream Encryption" page of the Vuze wiki; every BitTorrent program speaks it. It
//! hides from devices on the way what is spoken, and proves nothing: the key is the info hash. So plain text follows the
//! handshake where the other end takes that, and RC4 where it takes nothing else.

use std::io::{self, Cursor};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use num_bigint::BigUint;
use rand::Rng as _;
use rc4::{KeyInit as _, Rc4, StreamCipher as _};
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::wire::WireError;
use crate::torrent::Sha1Hash;

/// The prime of 768 bits, modulo which keys are agreed on. The generator is 2.
const PRIME: [u8; KEY_BYTES] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xc9, 0x0f, 0xda, 0xa2, 0x21, 0x68, 0xc2, 0x34,
    0xc4, 0xc6, 0x62, 0x8b, 0x80, 0xdc, 0x1c, 0xd1, 0x29, 0x02, 0x4e, 0x08, 0x8a, 0x67, 0xcc, 0x74,
    0x02, 0x0b, 0xbe, 0xa6, 0x3b, 0x13, 0x9b, 0x22, 0x51, 0x4a, 0x08, 0x79, 0x8e, 0x34, 0x04, 0xdd,
    0xef, 0x95, 0x19, 0xb3, 0xcd, 0x3a, 0x43, 0x1b, 0x30, 0x2b, 0x0a, 0x6d, 0xf2, 0x5f, 0x14, 0x37,
    0x4f, 0xe1, 0x35, 0x6d, 0x6d, 0x51, 0xc2, 0x45, 0xe4, 0x85, 0xb5, 0x76, 0x62, 0x5e, 0x7e, 0xc6,
    0xf4, 0x4c, 0x42, 0xe9, 0xa6, 0x3a, 0x36, 0x21, 0x00, 0x00, 0x00, 0x00, 0x00, 0x09, 0x05, 0x63,
];

/// Bytes of a public key, and of the shared secret.
const KEY_BYTES: usize = 96;

/// Random bytes at most that either end adds to each of its first two messages.
const PAD_BYTES_MAX: usize = 512;

/// Bytes at most that the other end may send before it has our answer: its handshake, and what it says next.
const EARLY_BYTES_MAX: usize = 4 << 10;

/// Bytes of each key stream that are thrown away.
const DISCARDED: usize = 1024;

/// Zeros by which the other end's stream is seen to be decrypted rightly.
const CHECK: [u8; 8] = [0; 8];

/// What follows the handshake.
const PLAIN: u32 = 1;
const RC4: u32 = 2;

/// The bytes of a connection as they were meant, whatever way they came.
pub(super) struct Incoming<R> {
    /// What came with the handshake.
    early: Cursor<Vec<u8>>,
    stream: R,
    cipher: Option<Rc4>,
}

impl<R> Incoming<R> {
    /// Reads a stream that begins with these bytes, which have been read of it, and is not encrypted.
    pub(super) fn plain(early: Vec<u8>, stream: R) -> Self {
        let early = Cursor::new(early);
        Incoming {
            early,
            stream,
            cipher: None,
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Incoming<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let early = io::Read::read(&mut self.early, into.initialize_unfilled())?;
        if early > 0 || into.remaining() == 0 {
            into.advance(early);
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        if let Some(cipher) = &mut self.cipher {
            cipher.apply_keystream(&mut into.filled_mut()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

/// The other way of a connection.
pub(super) struct Outgoing<W> {
    stream: W,
    cipher: Option<Rc4>,
}

impl<W: AsyncWrite + Unpin> Outgoing<W> {
    /// Writes to a stream that is not encrypted.
    pub(super) fn plain(stream: W) -> Self {
        Outgoing {
            stream,
            cipher: None,
        }
    }

    /// Writes bytes, which are no longer what they were afterwards.
    pub(super) async fn write_all(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        if let Some(cipher) = &mut self.cipher {
            cipher.apply_keystream(bytes);
        }
        self.stream.write_all(bytes).await
    }
}

/// Takes the encrypted handshake of who has just come, and answers it. `begun` are the first bytes of it, which have been
/// read; `find` tells which torrent is asked for by the hash that hides it, [`hidden`].
///
/// # Errors
/// [`WireError`], also where what came is no such handshake.
pub(super) async fn accept<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    begun: &[u8],
    mut read: R,
    mut write: W,
    find: impl FnOnce(&Sha1Hash) -> Option<Sha1Hash>,
) -> Result<(Incoming<R>, Outgoing<W>), WireError> {
    let mut theirs = [0; KEY_BYTES];
    let (first, rest) = theirs.split_at_mut(begun.len());
    first.copy_from_slice(begun);
    read.read_exact(rest).await?;
    let ours = Secret::new();
    let shared = ours.shared_with(&theirs)?;
    let mut out = ours.public().to_vec();
    out.extend(padding());
    write.write_all(&out).await?;

    find_mark(&mut read, &hash(b"req1", &[&shared])).await?;
    let mut hidden_as = [0; 20];
    read.read_exact(&mut hidden_as).await?;
    let mask = hash(b"req3", &[&shared]);
    hidden_as
        .iter_mut()
        .zip(mask)
        .for_each(|(byte, mask)| *byte ^= mask);
    let info_hash = find(&hidden_as);
    let info_hash = info_hash.ok_or(WireError::Wrong("a torrent that is not seeded here"))?;

    let mut from_them = cipher(b"keyA", &shared, &info_hash);
    let mut to_them = cipher(b"keyB", &shared, &info_hash);
    let check = read_some::<8>(&mut read, &mut from_them).await?;
    if check != CHECK {
        return Err(WireError::Wrong(
            "an encrypted handshake of another torrent",
        ));
    }
    let offered = u32::from_be_bytes(read_some(&mut read, &mut from_them).await?);
    read_part(&mut read, &mut from_them, PAD_BYTES_MAX).await?;
    let early = read_part(&mut read, &mut from_them, EARLY_BYTES_MAX).await?;
    let chosen = match offered {
        offered if offered & PLAIN != 0 => PLAIN,
        offered if offered & RC4 != 0 => RC4,
        _ => return Err(WireError::Wrong("an encryption that nobody knows")),
    };
    let mut answer = CHECK.to_vec();
    answer.extend(chosen.to_be_bytes());
    // No padding.
    answer.extend([0; 2]);
    to_them.apply_keystream(&mut answer);
    write.write_all(&answer).await?;
    let ciphers = (chosen == RC4).then_some((from_them, to_them));
    let (from_them, to_them) = ciphers.unzip();
    let incoming = Incoming {
        early: Cursor::new(early),
        stream: read,
        cipher: from_them,
    };
    let outgoing = Outgoing {
        stream: write,
        cipher: to_them,
    };
    Ok((incoming, outgoing))
}

/// Returns the hash by which a torrent is asked for without being named.
pub(super) fn hidden(info_hash: &Sha1Hash) -> Sha1Hash {
    hash(b"req2", &[info_hash])
}

/// Reads on until a mark has been read.
async fn find_mark(read: &mut (impl AsyncRead + Unpin), mark: &Sha1Hash) -> Result<(), WireError> {
    let mut window = [0; 20];
    read.read_exact(&mut window).await?;
    // It comes at the latest after the longest padding.
    for _ in 0..PAD_BYTES_MAX {
        if window == *mark {
            return Ok(());
        }
        window.rotate_left(1);
        window[19] = read.read_u8().await?;
    }
    match window == *mark {
        true => Ok(()),
        false => Err(WireError::Wrong("no BitTorrent handshake")),
    }
}

async fn read_some<const N: usize>(
    read: &mut (impl AsyncRead + Unpin),
    cipher: &mut Rc4,
) -> Result<[u8; N], WireError> {
    let mut bytes = [0; N];
    read.read_exact(&mut bytes).await?;
    cipher.apply_keystream(&mut bytes);
    Ok(bytes)
}

/// Reads bytes that follow their length.
async fn read_part(
    read: &mut (impl AsyncRead + Unpin),
    cipher: &mut Rc4,
    most: usize,
) -> Result<Vec<u8>, WireError> {
    let length = u16::from_be_bytes(read_some(read, cipher).await?);
    if usize::from(length) > most {
        return Err(WireError::Wrong("an encrypted handshake that is too long"));
    }
    let mut bytes = vec![0; usize::from(length)];
    read.read_exact(&mut bytes).await?;
    cipher.apply_keystream(&mut bytes);
    Ok(bytes)
}

/// One end's secret of one connection.
struct Secret(BigUint);

impl Secret {
    /// Makes one of 160 bits, as the specification advises.
    fn new() -> Self {
        let mut bytes = [0; 20];
        rand::rng().fill_bytes(&mut bytes);
        Secret(BigUint::from_bytes_be(&bytes))
    }

    fn public(&self) -> [u8; KEY_BYTES] {
        to_key(&BigUint::from(2_u8).modpow(&self.0, &prime()))
    }

    /// Returns the secret that both ends know.
    ///
    /// # Errors
    /// [`WireError::Wrong`] when the other end's key makes a secret that everybody knows.
    fn shared_with(&self, theirs: &[u8; KEY_BYTES]) -> Result<[u8; KEY_BYTES], WireError> {
        let (theirs, one, prime) = (BigUint::from_bytes_be(theirs), BigUint::from(1_u8), prime());
        if theirs <= one || theirs >= &prime - one {
            return Err(WireError::Wrong("no key of an encrypted handshake"));
        }
        Ok(to_key(&theirs.modpow(&self.0, &prime)))
    }
}

fn prime() -> BigUint {
    BigUint::from_bytes_be(&PRIME)
}

fn to_key(number: &BigUint) -> [u8; KEY_BYTES] {
    let bytes = number.to_bytes_be();
    let mut key = [0; KEY_BYTES];
    // What is less than the prime is not longer.
    key[KEY_BYTES - bytes.len()..].copy_from_slice(&bytes);
    key
}

fn padding() -> Vec<u8> {
    let mut bytes = vec![0; rand::random_range(0..=PAD_BYTES_MAX)];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

fn hash(word: &[u8; 4], parts: &[&[u8]]) -> Sha1Hash {
    let mut hash = Sha1::new_with_prefix(word);
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

/// Returns the cipher of one direction: `keyA` from who called, `keyB` to it.
fn cipher(word: &[u8; 4], shared: &[u8; KEY_BYTES], info_hash: &Sha1Hash) -> Rc4 {
    let key = hash(word, &[shared, info_hash]);
    let mut cipher = Rc4::new_from_slice(&key).expect("RC4 takes keys of 20 bytes");
    cipher.apply_keystream(&mut [0; DISCARDED]);
    cipher
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpStream;

    use super::super::Limits;
    use super::super::tests::{INFO_HASH, Scene, answers, read_greeting, requests, scene, usual};
    use super::*;
    use crate::store::Verify;
    use crate::torrent::handshake;

    /// What who calls may do, and the hostile do otherwise.
    struct Call {
        key: Option<[u8; KEY_BYTES]>,
        padding: usize,
        mark: &'static [u8; 4],
        info_hash: Sha1Hash,
        check: [u8; 8],
        offered: u32,
        more_padding: u16,
        early: Vec<u8>,
    }

    impl Call {
        fn offering(offered: u32) -> Self {
            Call {
                key: None,
                padding: 100,
                mark: b"req1",
                info_hash: INFO_HASH,
                check: CHECK,
                offered,
                more_padding: 7,
                early: handshake(INFO_HASH, [7; 20]).to_vec(),
            }
        }

        /// Calls the seed; returns what was chosen, and both ways; none when the seed hangs up.
        async fn dial(self, scene: &Scene) -> Option<(u32, Incoming<TcpStream>, Rc4)> {
            let mut stream = TcpStream::connect(scene.address).await.unwrap();
            let ours = Secret::new();
            let mut out = self.key.unwrap_or_else(|| ours.public()).to_vec();
            out.resize(KEY_BYTES + self.padding, 1);
            stream.write_all(&out).await.ok()?;
            let mut theirs = [0; KEY_BYTES];
            stream.read_exact(&mut theirs).await.ok()?;
            let shared = ours.shared_with(&theirs).unwrap();
            let mut out = hash(self.mark, &[&shared]).to_vec();
            let mask = hash(b"req3", &[&shared]);
            let hidden = hidden(&self.info_hash).into_iter().zip(mask);
            out.extend(hidden.map(|(byte, mask)| byte ^ mask));
            let mut encrypted = self.check.to_vec();
            encrypted.extend(self.offered.to_be_bytes());
            encrypted.extend(self.more_padding.to_be_bytes());
            encrypted.resize(encrypted.len() + usize::from(self.more_padding), 2);
            encrypted.extend(u16::try_from(self.early.len()).unwrap().to_be_bytes());
            encrypted.extend(&self.early);
            let mut to_seed = cipher(b"keyA", &shared, &INFO_HASH);
            let mut from_seed = cipher(b"keyB", &shared, &INFO_HASH);
            to_seed.apply_keystream(&mut encrypted);
            out.extend(encrypted);
            // It may hang up before all is written.
            let _ = stream.write_all(&out).await;
            // Their answer begins behind padding of unknown length.
            let mut start = CHECK;
            from_seed.apply_keystream(&mut start);
            let mut window = [0; 8];
            stream.read_exact(&mut window).await.ok()?;
            while window != start {
                window.rotate_left(1);
                window[7] = stream.read_u8().await.ok()?;
            }
            let chosen = u32::from_be_bytes(read_some(&mut stream, &mut from_seed).await.ok()?);
            assert!(read_part(&mut stream, &mut from_seed, 0).await.is_ok());
            let incoming = Incoming {
                early: Cursor::default(),
                stream,
                cipher: (chosen == RC4).then_some(from_seed),
            };
            Some((chosen, incoming, to_seed))
        }
    }

    #[tokio::test]
    async fn who_calls_encrypted_gets_every_byte() {
        let scene = usual().await;
        for (offered, expected) in [(1, PLAIN), (2, RC4), (3, PLAIN), (0xffff_fffe, RC4)] {
            for early in [true, false] {
                for padding in [0, 100, PAD_BYTES_MAX] {
                    let mut call = Call::offering(offered);
                    call.padding = padding;
                    let late = if early {
                        Vec::new()
                    } else {
                        std::mem::take(&mut call.early)
                    };
                    let (chosen, mut incoming, mut cipher) = call.dial(&scene).await.unwrap();
                    assert_eq!(chosen, expected, "{offered}");
                    let mut out = late;
                    out.extend(requests(&scene));
                    if chosen == RC4 {
                        cipher.apply_keystream(&mut out);
                    }
                    incoming.stream.write_all(&out).await.unwrap();
                    read_greeting(&scene.seeds, &mut incoming).await;
                    assert!(answers(&scene, &mut incoming).await == scene.bytes);
                }
            }
        }
    }

    #[tokio::test]
    async fn who_calls_wrongly_is_hung_up_on() {
        let scene = usual().await;
        let (zero, mut one, mut last) = ([0; KEY_BYTES], [0; KEY_BYTES], PRIME);
        one[KEY_BYTES - 1] = 1;
        last[KEY_BYTES - 1] -= 1;
        let mut calls: Vec<Call> = (0..12).map(|_| Call::offering(3)).collect();
        calls[0].key = Some(zero);
        calls[1].key = Some(one);
        calls[2].key = Some(last);
        calls[3].key = Some([0xff; KEY_BYTES]);
        calls[4].padding = PAD_BYTES_MAX + 1;
        calls[5].mark = b"req0";
        // Long enough for the search for the mark to end.
        calls[5].early = vec![0; PAD_BYTES_MAX];
        calls[6].info_hash = [1; 20];
        calls[7].check = [1; 8];
        calls[8].offered = 4;
        calls[9].more_padding = 513;
        calls[10].early = vec![0; EARLY_BYTES_MAX + 1];
        // Another torrent than the one that it was encrypted for.
        calls[11].early = handshake([1; 20], [7; 20]).to_vec();
        for (nth, call) in calls.into_iter().enumerate() {
            match call.dial(&scene).await {
                None => {}
                Some((_, mut incoming, _)) if nth == 11 => {
                    assert_eq!(incoming.read(&mut [0]).await.unwrap_or(0), 0);
                }
                Some(_) => panic!("call {nth} was answered"),
            }
        }
    }

    #[tokio::test]
    async fn who_speaks_something_else_or_stops_in_the_middle_has_the_time_of_a_handshake() {
        let limits = Limits {
            handshake: Duration::from_millis(200),
            ..Limits::default()
        };
        let scene = scene(limits, Verify::FirstTouch).await;
        for hello in [
            &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            &PRIME[1..],
            &[7; 300],
        ] {
            let mut stream = TcpStream::connect(scene.address).await.unwrap();
            stream.write_all(hello).await.unwrap();
            let mut answer = Vec::new();
            // At most a key, and then the end.
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.len() <= KEY_BYTES + PAD_BYTES_MAX);
        }
    }

    #[test]
    fn both_ends_find_the_same_secret() {
        let (one, other) = (Secret::new(), Secret::new());
        let shared = one.shared_with(&other.public()).unwrap();
        assert_eq!(shared, other.shared_with(&one.public()).unwrap());
        assert_ne!(hidden(&[0; 20]), hidden(&[1; 20]));
    }
}
