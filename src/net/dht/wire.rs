//! Datagrams of BEP 5: bencoded dictionaries, one question or answer each.

use std::net::SocketAddr;

use super::lookup::Node;
use crate::net::bencode::{self, Value, bytes, get};

/// A node's id or an info hash; what is near to each other is decided by them.
pub type Id = [u8; 20];

/// Bytes of a datagram that are read; honest ones fit a packet.
pub(super) const DATAGRAM_BYTES_MAX: usize = 2048;

/// Bytes of a token at most; they are sent back as they came.
const TOKEN_BYTES_MAX: usize = 64;

/// Lists and dictionaries within each other; an honest answer has three.
const DEPTH_MAX: usize = 6;

/// Which of our questions something answers.
pub(super) type Transaction = [u8; 4];

/// Returns the question who has a torrent. `v6`: the nodes that are named are to have IPv6 addresses.
pub(super) fn get_peers(transaction: Transaction, id: &Id, info_hash: &Id, v6: bool) -> Vec<u8> {
    let mut out = b"d1:ad2:id20:".to_vec();
    out.extend_from_slice(id);
    out.extend_from_slice(b"9:info_hash20:");
    out.extend_from_slice(info_hash);
    if v6 {
        // BEP 32.
        out.extend_from_slice(b"4:wantl2:n6e");
    }
    out.extend_from_slice(b"e1:q9:get_peers");
    end(out, transaction)
}

/// Returns the news that we have a torrent, for a node that gave `token`.
pub(super) fn announce_peer(
    transaction: Transaction,
    id: &Id,
    info_hash: &Id,
    port: u16,
    token: &[u8],
) -> Vec<u8> {
    let mut out = b"d1:ad2:id20:".to_vec();
    out.extend_from_slice(id);
    out.extend_from_slice(b"12:implied_porti0e9:info_hash20:");
    out.extend_from_slice(info_hash);
    out.extend_from_slice(format!("4:porti{port}e5:token{}:", token.len()).as_bytes());
    out.extend_from_slice(token);
    out.extend_from_slice(b"e1:q13:announce_peer");
    end(out, transaction)
}

/// Ends a question: we only ask (BEP 43), so that nobody takes us for a node.
fn end(mut out: Vec<u8>, transaction: Transaction) -> Vec<u8> {
    out.extend_from_slice(b"2:roi1e1:t4:");
    out.extend_from_slice(&transaction);
    out.extend_from_slice(b"1:y1:qe");
    out
}

/// What a node answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Whom it answers for.
    pub(super) id: Id,
    /// Lets us announce there.
    pub(super) token: Option<Vec<u8>>,
    /// Who has the torrent.
    pub(super) peers: Vec<SocketAddr>,
    /// Who may know more.
    pub(super) nodes: Vec<Node>,
}

/// Reads an answer to one of our questions; none for anything else. An error is an answer without content.
pub(super) fn answer(datagram: &[u8], v6: bool) -> Option<(Transaction, Option<Answer>)> {
    let message = bencode::read(datagram, DEPTH_MAX)?;
    let transaction = bytes(&message, b"t")?.try_into().ok()?;
    match bytes(&message, b"y")? {
        b"r" => {}
        b"e" => return Some((transaction, None)),
        _ => return None,
    }
    let said = get(&message, b"r")?;
    let mut answer = Answer {
        id: bytes(said, b"id")?.try_into().ok()?,
        token: bytes(said, b"token")
            .filter(|token| token.len() <= TOKEN_BYTES_MAX)
            .map(<[u8]>::to_vec),
        ..Answer::default()
    };
    if let Some(Value::List(values)) = get(said, b"values") {
        let all = values.iter().filter_map(|value| match value {
            Value::Bytes(compact) => address(compact.0),
            _ => None,
        });
        answer.peers = all.filter(|peer| peer.is_ipv6() == v6).collect();
    }
    let (key, len): (&[u8], _) = if v6 { (b"nodes6", 38) } else { (b"nodes", 26) };
    let nodes = bytes(said, key).unwrap_or_default().chunks_exact(len);
    answer.nodes = nodes
        .filter_map(|node| {
            let (id, compact) = node.split_first_chunk()?;
            Some(Node {
                id: *id,
                address: address(compact)?,
            })
        })
        .collect();
    Some((transaction, Some(answer)))
}

/// Reads 4 or 16 bytes of address and 2 of port.
fn address(compact: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = compact.split_last_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    if let Ok(ip) = <[u8; 4]>::try_from(ip) {
        return Some(SocketAddr::from((ip, port)));
    }
    let ip: [u8; 16] = ip.try_into().ok()?;
    Some(SocketAddr::from((ip, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_those_of_the_specification() {
        let (id, info_hash) = (b"abcdefghij0123456789", b"mnopqrstuvwxyz123456");
        // The examples of BEP 5, with BEP 43's mark and four bytes of transaction.
        let asked = get_peers(*b"aaaa", id, info_hash, false);
        let wanted = "d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz123456e\
                      1:q9:get_peers2:roi1e1:t4:aaaa1:y1:qe";
        assert_eq!(String::from_utf8(asked).unwrap(), wanted);
        let told = announce_peer(*b"aaaa", id, info_hash, 6881, b"aoeusnth");
        let wanted = "d1:ad2:id20:abcdefghij012345678912:implied_porti0e\
                      9:info_hash20:mnopqrstuvwxyz1234564:porti6881e5:token8:aoeusnthe\
                      1:q13:announce_peer2:roi1e1:t4:aaaa1:y1:qe";
        assert_eq!(String::from_utf8(told).unwrap(), wanted);
        let asked = get_peers(*b"aaaa", id, info_hash, true);
        assert!(String::from_utf8(asked).unwrap().contains("4:wantl2:n6ee"));
    }

    #[test]
    fn answers_are_read_and_anything_else_is_not() {
        let text = b"d1:rd2:id20:abcdefghij01234567895:nodes27:abcdefghij0123456789\x01\x02\x03\x04\x1a\xe1?\
                     5:token8:aoeusnth6:valuesl6:axje.u6:idhtnm18:aaaaaaaaaaaaaaaabb3:badi5eee1:t4:aaaa1:y1:re";
        let (transaction, said) = answer(text, false).unwrap();
        assert_eq!(transaction, *b"aaaa");
        let said = said.unwrap();
        assert_eq!(said.id, *b"abcdefghij0123456789");
        assert_eq!(said.token.as_deref(), Some(&b"aoeusnth"[..]));
        let peers = ["97.120.106.101:11893", "105.100.104.116:28269"];
        let peers = peers.map(|peer| peer.parse().unwrap());
        assert_eq!(said.peers, peers);
        let node = Node {
            id: *b"abcdefghij0123456789",
            address: "1.2.3.4:6881".parse().unwrap(),
        };
        assert_eq!(said.nodes, [node]);
        let six = answer(text, true).unwrap().1.unwrap();
        assert_eq!((six.peers.len(), six.nodes.len()), (1, 0));

        let error = b"d1:eli201e23:A Generic Error Ocurrede1:t4:aaaa1:y1:ee";
        assert_eq!(answer(error, false), Some((*b"aaaa", None)));
        let long = format!(
            "d1:rd2:id20:abcdefghij01234567895:token65:{}e1:t4:aaaa1:y1:re",
            "x".repeat(65)
        );
        let said = answer(long.as_bytes(), false).unwrap().1.unwrap();
        assert_eq!(said.token, None);
        let deep = format!(
            "d1:rd2:id{}{}e1:t4:aaaa1:y1:re",
            "l".repeat(900),
            "e".repeat(900)
        );
        for nonsense in [
            &b""[..],
            b"d",
            b"le",
            b"i5e",
            b"d1:t4:aaaa1:y1:qe",
            b"d1:t2:aa1:y1:re",
            b"d1:rle1:t4:aaaa1:y1:re",
            b"d1:rd2:id3:abce1:t4:aaaa1:y1:re",
            b"d1:rd2:id999999999999:abce1:t4:aaaa1:y1:re",
            deep.as_bytes(),
        ] {
            assert_eq!(answer(nonsense, false), None);
        }
    }
}
