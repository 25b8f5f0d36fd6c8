//! The peer wire protocol as a seed needs it: what leechers send, bounded, and what they are answered.
//!
//! BEP 3, with the extension protocol (BEP 10) for the info dictionary (BEP 9). Everything else is passed over.

use std::collections::BTreeMap;
use std::time::Duration;

use librqbit_peer_protocol::{Handshake, Message as Known};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use crate::net::bencode::{self, get, number};
use crate::torrent::{CLIENT, HANDSHAKE_BYTES};

/// The most bytes that one request may want. 16 KiB is usual, some ask for more.
pub(super) const REQUEST_BYTES_MAX: u32 = 128 << 10;

/// Bytes of a piece of the info dictionary, BEP 9.
pub(super) const METADATA_PIECE_BYTES: usize = 16 << 10;

/// Bytes of a message at most. The longest that a leecher has reason to send is its bitfield: 12.5 KiB for the 100,000
/// pieces that a torrent of ours has at most.
const MESSAGE_BYTES_MAX: usize = 32 << 10;

/// Lists and dictionaries within each other in a message of an extension.
const DEPTH_MAX: usize = 8;

/// Time for a message once its length is here.
const MESSAGE: Duration = Duration::from_secs(30);

/// Our number for messages about the info dictionary.
const UT_METADATA: u8 = 1;

const BITFIELD: u8 = 5;
const REQUEST: u8 = 6;
const PIECE: u8 = 7;
const CANCEL: u8 = 8;
const EXTENDED: u8 = 20;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The system's word.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Nothing for too long.
    #[error("{0}")]
    Slow(&'static str),
    /// No BitTorrent, or not what a leecher may send.
    #[error("{0}")]
    Wrong(&'static str),
}

/// Bytes that a leecher asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) piece: u32,
    pub(super) begin: u32,
    pub(super) length: u32,
}

/// What a leecher says, as far as it matters to a seed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Request(Request),
    Cancel(Request),
    /// It has so many pieces.
    Bitfield {
        pieces: u64,
    },
    /// It wants messages about the info dictionary under this number; none: it knows no such messages.
    Extensions {
        metadata: Option<u8>,
    },
    /// It asks for a piece of the info dictionary.
    Metadata {
        piece: u32,
    },
    /// A keep-alive, or something that changes nothing here.
    Other,
}

/// How a handshake begins that is not encrypted.
pub(super) const PROTOCOL: [u8; 20] = *b"\x13BitTorrent protocol";

/// Reads the handshake of who has just come.
pub(super) async fn read_handshake(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Handshake, WireError> {
    let mut bytes = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut bytes).await?;
    let (handshake, _) =
        Handshake::deserialize(&bytes).map_err(|_| WireError::Wrong("no BitTorrent handshake"))?;
    Ok(handshake)
}

/// Reads the next message; waits for it as long as `idle`. `buffer` is used again for each.
pub(super) async fn read_message(
    stream: &mut (impl AsyncRead + Unpin),
    idle: Duration,
    buffer: &mut Vec<u8>,
) -> Result<Message, WireError> {
    let length = timeout(idle, stream.read_u32()).await;
    let length = length.map_err(|_| WireError::Slow("silent for too long"))??;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        return Err(WireError::Wrong("a message that is too long"));
    }
    buffer.clear();
    buffer.resize(length, 0);
    let read = timeout(MESSAGE, stream.read_exact(buffer)).await;
    read.map_err(|_| WireError::Slow("a message that does not end"))??;
    parse(buffer)
}

fn parse(message: &[u8]) -> Result<Message, WireError> {
    let Some((id, body)) = message.split_first() else {
        return Ok(Message::Other);
    };
    match *id {
        REQUEST => Ok(Message::Request(request(body)?)),
        CANCEL => Ok(Message::Cancel(request(body)?)),
        BITFIELD => Ok(Message::Bitfield {
            pieces: body.iter().map(|byte| u64::from(byte.count_ones())).sum(),
        }),
        PIECE => Err(WireError::Wrong("bytes that nobody asked for")),
        EXTENDED => match body.split_first() {
            Some((0, body)) => Ok(extensions(body)),
            Some((&UT_METADATA, body)) => Ok(metadata(body)),
            _ => Ok(Message::Other),
        },
        // Choke, unchoke, interested, have, a DHT port, whatever extensions say: a seed gives to everybody and takes
        // nothing.
        _ => Ok(Message::Other),
    }
}

fn request(body: &[u8]) -> Result<Request, WireError> {
    let numbers: &[u8; 12] = body
        .try_into()
        .map_err(|_| WireError::Wrong("a request of another length"))?;
    let (numbers, _) = numbers.as_chunks::<4>();
    let [piece, begin, length] = [numbers[0], numbers[1], numbers[2]].map(u32::from_be_bytes);
    Ok(Request {
        piece,
        begin,
        length,
    })
}

fn extensions(body: &[u8]) -> Message {
    let value = bencode::read(body, DEPTH_MAX);
    let metadata = value
        .as_ref()
        .and_then(|value| number(get(value, b"m")?, b"ut_metadata"));
    Message::Extensions {
        // 0 takes an extension back.
        metadata: metadata.filter(|number| *number != 0),
    }
}

fn metadata(body: &[u8]) -> Message {
    let value = bencode::read(body, DEPTH_MAX);
    let number = |key| number::<u32>(value.as_ref()?, key);
    // 0 is a request; 1 and 2, data and a refusal, answer nothing of ours.
    match (number(b"msg_type"), number(b"piece")) {
        (Some(0), Some(piece)) => Message::Metadata { piece },
        _ => Message::Other,
    }
}

#[derive(Serialize)]
struct Extensions<'a> {
    m: BTreeMap<&'a str, u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_size: Option<u64>,
    reqq: u64,
    upload_only: u8,
    v: &'a str,
}

/// Appends our list of extensions.
pub(super) fn write_extensions(out: &mut Vec<u8>, metadata_bytes: Option<u64>, queue: usize) {
    let extensions = Extensions {
        m: BTreeMap::from([("ut_metadata", UT_METADATA)]),
        metadata_size: metadata_bytes,
        reqq: queue as u64,
        // BEP 21: we want nothing, so that other seeds need not stay.
        upload_only: 1,
        v: CLIENT,
    };
    let mut body = Vec::new();
    librqbit_bencode::bencode_serialize_to_writer(&extensions, &mut body)
        .expect("numbers and text are always bencode");
    write_head(out, body.len() + 1, EXTENDED);
    out.push(0);
    out.extend(body);
}

/// Appends a bitfield in which all bits of `pieces` are set.
pub(super) fn write_full_bitfield(out: &mut Vec<u8>, pieces: u32) {
    let bytes = usize::try_from(pieces.div_ceil(8)).unwrap_or(0);
    write_head(out, bytes, BITFIELD);
    out.resize(out.len() + bytes, 0xff);
    // Bits of no piece have to be zero.
    let spare = (8 - pieces % 8) % 8;
    if let (Some(last), true) = (out.last_mut(), bytes > 0) {
        *last <<= spare;
    }
}

/// Appends an unchoke or a keep-alive.
pub(super) fn write_plain(out: &mut Vec<u8>, message: &Known<'_>) {
    let mut bytes = [0; 16];
    let length = message
        .serialize(&mut bytes, &Default::default)
        .expect("a message without a body fits");
    out.extend(&bytes[..length]);
}

/// Appends the head of the answer to a request; as many bytes as it asked for have to follow.
pub(super) fn write_piece_head(out: &mut Vec<u8>, request: Request) {
    out.extend((request.length + 9).to_be_bytes());
    out.push(PIECE);
    out.extend(request.piece.to_be_bytes());
    out.extend(request.begin.to_be_bytes());
}

#[derive(Serialize)]
struct MetadataHead {
    msg_type: u8,
    piece: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_size: Option<u64>,
}

/// Appends a piece of the info dictionary under the number that the leecher gave, or that there is none.
pub(super) fn write_metadata(out: &mut Vec<u8>, number: u8, piece: u32, info: Option<&[u8]>) {
    let at = usize::try_from(piece)
        .ok()
        .and_then(|piece| piece.checked_mul(METADATA_PIECE_BYTES));
    let bytes = info.and_then(|info| {
        let rest = info.get(at?..).filter(|rest| !rest.is_empty())?;
        Some(&rest[..rest.len().min(METADATA_PIECE_BYTES)])
    });
    let head = MetadataHead {
        msg_type: if bytes.is_some() { 1 } else { 2 },
        piece,
        total_size: bytes.and(info).map(|info| info.len() as u64),
    };
    let mut body = Vec::new();
    librqbit_bencode::bencode_serialize_to_writer(&head, &mut body)
        .expect("numbers are always bencode");
    body.extend(bytes.unwrap_or_default());
    write_head(out, body.len() + 1, EXTENDED);
    out.push(number);
    out.extend(body);
}

fn write_head(out: &mut Vec<u8>, body_bytes: usize, id: u8) {
    let length = u32::try_from(body_bytes + 1).expect("our messages are far shorter than 4 GiB");
    out.extend(length.to_be_bytes());
    out.push(id);
}

/// Appends a request, as leechers write it.
#[cfg(test)]
pub(super) fn write_request(out: &mut Vec<u8>, piece: u32, begin: u32, length: u32) {
    let mut bytes = [0; 17];
    let message = Known::Request(librqbit_peer_protocol::Request::new(piece, begin, length));
    let length = message.serialize(&mut bytes, &Default::default).unwrap();
    out.extend(&bytes[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitfields_have_no_spare_bits() {
        for (pieces, expected) in [
            (1, &[0x80][..]),
            (7, &[0xfe]),
            (8, &[0xff]),
            (9, &[0xff, 0x80]),
            (16, &[0xff, 0xff]),
        ] {
            let mut out = Vec::new();
            write_full_bitfield(&mut out, pieces);
            assert_eq!(&out[5..], expected, "{pieces}");
            assert_eq!(
                parse(&out[4..]).unwrap(),
                Message::Bitfield {
                    pieces: u64::from(pieces)
                }
            );
        }
    }

    #[test]
    fn extensions_are_told_and_understood() {
        let mut out = Vec::new();
        write_extensions(&mut out, Some(70_000), 500);
        assert_eq!(
            &out[6..],
            format!(
                "d1:md11:ut_metadatai1ee13:metadata_sizei70000e4:reqqi500e11:upload_onlyi1e1:v12:manifs {}e",
                env!("CARGO_PKG_VERSION")
            )
            .as_bytes()
        );
        assert_eq!(
            parse(&out[4..]).unwrap(),
            Message::Extensions { metadata: Some(1) }
        );
        for body in [
            &b"\x14\x00d1:md11:ut_metadatai0eee"[..],
            b"\x14\x00d1:md11:ut_metadatai256eee",
            b"\x14\x00d1:mi5ee",
            b"\x14\x00",
            b"\x14\x00garbage",
        ] {
            assert_eq!(parse(body).unwrap(), Message::Extensions { metadata: None });
        }
    }

    #[test]
    fn the_info_dictionary_goes_in_pieces_of_16_kib() {
        let info = vec![7; METADATA_PIECE_BYTES + 1];
        let mut out = Vec::new();
        write_metadata(&mut out, 9, 1, Some(&info));
        assert_eq!(
            &out[4..],
            b"\x14\x09d8:msg_typei1e5:piecei1e10:total_sizei16385ee\x07"
        );
        for (piece, info) in [(2, Some(&info[..])), (u32::MAX, Some(&info)), (0, None)] {
            out.clear();
            write_metadata(&mut out, 9, piece, info);
            assert_eq!(
                &out[6..],
                format!("d8:msg_typei2e5:piecei{piece}ee").as_bytes()
            );
        }
        assert_eq!(
            parse(b"\x14\x01d8:msg_typei0e5:piecei3ee").unwrap(),
            Message::Metadata { piece: 3 }
        );
        assert_eq!(
            parse(b"\x14\x01d8:msg_typei0e5:piecei-3ee").unwrap(),
            Message::Other
        );
    }

    #[tokio::test]
    async fn what_no_leecher_sends_ends_the_connection() {
        for bytes in [
            &b"\xff\xff\xff\xff"[..],
            &[0, 0, 128, 1, 4],
            &[0, 0, 0, 12, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 9, 7, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 13, 6],
        ] {
            let mut stream = bytes;
            let read = read_message(&mut stream, Duration::from_secs(1), &mut Vec::new()).await;
            assert!(read.is_err(), "{bytes:?}: {read:?}");
        }
    }
}
