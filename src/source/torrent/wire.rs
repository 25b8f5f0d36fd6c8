//! The words of the peer protocol (BEP 3, BEP 10) that a reader says and understands.
//!
//! `librqbit-peer-protocol` reads and writes the messages; this module cuts the stream into frames first, since a length
//! prefix is a stranger's word: a frame longer than any that we have a use for ends the connection, and one of an unknown
//! kind is skipped by its length.

use bytes::BytesMut;
use librqbit_peer_protocol::extended::ExtendedMessage;
use librqbit_peer_protocol::{Handshake, Message, Request};

use crate::torrent::{CLIENT, HANDSHAKE_BYTES};

/// Bytes of a request at most; clients refuse longer ones.
pub(super) const REQUEST_BYTES: u32 = 16 << 10;

/// Pieces of a torrent at most. Torrents of packages have at most 100,000.
pub(super) const PIECES_MAX: u32 = 131_072;

/// Bytes of a frame at most: a request's bytes, or a bitfield of [`PIECES_MAX`], with what goes before them.
const FRAME_BYTES_MAX: usize = (REQUEST_BYTES as usize) + 512;

/// Characters of a client's name that are kept.
const CLIENT_CHARS_MAX: usize = 64;

const CHOKE: u8 = 0;
const CANCEL: u8 = 8;
const EXTENDED: u8 = 20;

/// Part of a piece that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Which piece.
    pub(super) piece: u32,
    /// Where in it, in bytes.
    pub(super) begin: u32,
    /// How many bytes.
    pub(super) len: u32,
}

/// What a peer said, as far as a reader cares.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard<'a> {
    /// It answers no more requests, and forgets those it has.
    Choke,
    /// It answers requests.
    Unchoke,
    /// It has a piece.
    Have(u32),
    /// It has these pieces, one bit for each, the highest bit first.
    Bitfield(&'a [u8]),
    /// Bytes of a piece.
    Piece {
        /// Which piece.
        piece: u32,
        /// Where in it.
        begin: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Its extension handshake.
    Hello {
        /// Its client's name.
        client: Option<String>,
        /// Requests that may wait at it.
        queue: Option<u32>,
    },
    /// Anything else: keep-alives, requests to us, extensions that we did not offer.
    Noise,
}

/// What a peer said is not the protocol, or more than we take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("a message of {0} bytes")]
    TooLong(u32),
    #[error("no valid message of kind {0}")]
    Malformed(u8),
    #[error("no BitTorrent handshake")]
    Handshake,
    #[error("another torrent's handshake")]
    OtherTorrent,
}

/// Judges a peer's handshake; returns whether it knows extensions.
pub(super) fn judge_handshake(
    bytes: &[u8; HANDSHAKE_BYTES],
    info_hash: [u8; 20],
) -> Result<bool, Broken> {
    let (theirs, _) = Handshake::deserialize(bytes).map_err(|_| Broken::Handshake)?;
    if theirs.info_hash.0 != info_hash {
        return Err(Broken::OtherTorrent);
    }
    Ok(theirs.supports_extended())
}

/// Writes our extension handshake: a name, and no extension offered.
pub(super) fn say_hello(out: &mut BytesMut) {
    let hello = format!("d1:mde1:v{}:{CLIENT}e", CLIENT.len());
    // Two bytes go before the dictionary; a name of the package's own is short.
    let len = u32::try_from(hello.len() + 2).unwrap_or_default();
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&[EXTENDED, 0]);
    out.extend_from_slice(hello.as_bytes());
}

/// Writes that we want pieces.
pub(super) fn say_interested(out: &mut BytesMut) {
    say(out, &Message::Interested);
}

/// Writes that we are still there.
pub(super) fn say_alive(out: &mut BytesMut) {
    say(out, &Message::KeepAlive);
}

/// Writes a request.
pub(super) fn ask(out: &mut BytesMut, key: Key) {
    say(
        out,
        &Message::Request(Request::new(key.piece, key.begin, key.len)),
    );
}

/// Writes that a request needs no answer any more.
pub(super) fn cancel(out: &mut BytesMut, key: Key) {
    say(
        out,
        &Message::Cancel(Request::new(key.piece, key.begin, key.len)),
    );
}

fn say(out: &mut BytesMut, message: &Message<'_>) {
    // The longest message that a reader sends is a request: 17 bytes.
    let mut bytes = [0; 32];
    let written = message.serialize(&mut bytes, &Default::default);
    let len = written.unwrap_or_default();
    out.extend_from_slice(&bytes[..len]);
}

/// Reads the first message of `bytes`, and how many bytes it takes. `None`: it is not all there yet.
pub(super) fn hear(bytes: &[u8]) -> Result<Option<(Heard<'_>, usize)>, Broken> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let prefix = u32::from_be_bytes(*prefix);
    let len = usize::try_from(prefix).unwrap_or(usize::MAX);
    if len > FRAME_BYTES_MAX {
        return Err(Broken::TooLong(prefix));
    }
    if rest.len() < len {
        return Ok(None);
    }
    let used = 4 + len;
    let frame = &bytes[..used];
    let heard = match rest[..len] {
        [] => Heard::Noise,
        [EXTENDED, 0, ..] => hello(frame),
        [kind @ CHOKE..=CANCEL, ..] => core(frame).ok_or(Broken::Malformed(kind))?,
        _ => Heard::Noise,
    };
    Ok(Some((heard, used)))
}

fn core(frame: &[u8]) -> Option<Heard<'_>> {
    let (message, _) = Message::deserialize(frame, &[]).ok()?;
    Some(match message {
        Message::Choke => Heard::Choke,
        Message::Unchoke => Heard::Unchoke,
        Message::Have(piece) => Heard::Have(piece),
        Message::Bitfield(bits) => Heard::Bitfield(bits.0),
        Message::Piece(piece) => Heard::Piece {
            piece: piece.index,
            begin: piece.begin,
            // All of it lies in the first buffer: the second was empty.
            bytes: piece.data().0,
        },
        _ => Heard::Noise,
    })
}

/// An extension handshake that does not parse is of no use, and no crime.
fn hello(frame: &[u8]) -> Heard<'_> {
    let Ok((Message::Extended(ExtendedMessage::Handshake(hello)), _)) =
        Message::deserialize(frame, &[])
    else {
        return Heard::Noise;
    };
    let client = hello.v.map(|name| {
        let name = String::from_utf8_lossy(name.0);
        let printable = name.chars().filter(|letter| !letter.is_control());
        printable.take(CLIENT_CHARS_MAX).collect()
    });
    Heard::Hello {
        client,
        queue: hello.reqq,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, rest: &[u8]) -> Vec<u8> {
        let len = u32::try_from(rest.len() + 1).unwrap();
        [&len.to_be_bytes()[..], &[kind], rest].concat()
    }

    #[test]
    fn what_we_say_is_what_the_specification_says() {
        let mut out = BytesMut::new();
        let key = Key {
            piece: 1,
            begin: 2,
            len: 3,
        };
        ask(&mut out, key);
        cancel(&mut out, key);
        say_interested(&mut out);
        say_alive(&mut out);
        let numbers = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
        let expected = [frame(6, &numbers), frame(8, &numbers), frame(2, &[])].concat();
        assert_eq!(out[..], [&expected[..], &[0; 4]].concat()[..]);
        let mut out = BytesMut::new();
        say_hello(&mut out);
        let heard = hear(&out).unwrap().unwrap();
        let client = Some(concat!("manifs ", env!("CARGO_PKG_VERSION")).to_owned());
        let queue = None;
        assert_eq!(heard, (Heard::Hello { client, queue }, out.len()));
    }

    #[test]
    fn messages_are_read_once_all_of_them_is_there() {
        let piece = frame(7, &[0, 0, 0, 1, 0, 0, 0, 2, 9, 9, 9]);
        for end in 0..piece.len() {
            assert_eq!(hear(&piece[..end]), Ok(None), "{end}");
        }
        let (piece, begin, bytes) = (1, 2, &[9, 9, 9][..]);
        let expected = Heard::Piece {
            piece,
            begin,
            bytes,
        };
        assert_eq!(
            hear(&frame(7, &[0, 0, 0, 1, 0, 0, 0, 2, 9, 9, 9])),
            Ok(Some((expected, 16)))
        );
        assert_eq!(hear(&[0; 9]), Ok(Some((Heard::Noise, 4))));
        assert_eq!(
            hear(&frame(5, &[0x80])),
            Ok(Some((Heard::Bitfield(&[0x80]), 6)))
        );
    }

    #[test]
    fn what_is_unknown_is_skipped_by_its_length() {
        for kind in [9, 13, 14, 15, 16, 17, 21, 255] {
            let long = frame(kind, &[7; 300]);
            assert_eq!(hear(&long), Ok(Some((Heard::Noise, 305))), "{kind}");
        }
        for extended in [&[0, b'x'][..], &[0], &[1, b'd', b'e'], &[]] {
            let frame = frame(EXTENDED, extended);
            assert_eq!(hear(&frame), Ok(Some((Heard::Noise, frame.len()))));
        }
        // A dictionary that is nested without end.
        let deep = [&[0][..], &vec![b'l'; 16_000]].concat();
        assert!(matches!(
            hear(&frame(EXTENDED, &deep)),
            Ok(Some((Heard::Noise, _)))
        ));
    }

    #[test]
    fn what_is_too_long_or_broken_ends_it() {
        assert_eq!(hear(&[255; 4]), Err(Broken::TooLong(u32::MAX)));
        let most = u32::try_from(FRAME_BYTES_MAX).unwrap();
        assert_eq!(hear(&most.to_be_bytes()), Ok(None));
        assert_eq!(
            hear(&(most + 1).to_be_bytes()),
            Err(Broken::TooLong(most + 1))
        );
        for (kind, rest) in [
            (0, &[1][..]),
            (1, &[1]),
            (4, &[0; 3]),
            (4, &[0; 5]),
            (5, &[]),
            (6, &[0; 11]),
            (7, &[0; 8]),
        ] {
            assert_eq!(
                hear(&frame(kind, rest)),
                Err(Broken::Malformed(kind)),
                "{kind}"
            );
        }
    }

    #[test]
    fn handshakes_are_of_the_protocol_and_of_the_torrent() {
        let ours = crate::torrent::handshake([7; 20], [8; 20]);
        assert_eq!(judge_handshake(&ours, [7; 20]), Ok(true));
        assert_eq!(judge_handshake(&ours, [6; 20]), Err(Broken::OtherTorrent));
        let mut other = ours;
        other[0] = 18;
        assert_eq!(judge_handshake(&other, [7; 20]), Err(Broken::Handshake));
    }
}
