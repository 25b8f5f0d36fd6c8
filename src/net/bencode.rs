//! Reads bencoded dictionaries of strangers (BEP 3): answers of trackers, datagrams of nodes, messages of leechers.

use librqbit_bencode::{BencodeDeserializer, BencodeValueBorrowed, ByteBuf};
use serde::Deserialize as _;

/// A value, borrowed from the bytes it was read of.
pub(crate) type Value<'a> = BencodeValueBorrowed<'a>;

/// Reads a value with at most `depth_max` lists and dictionaries within each other; none of what is no bencode.
pub(crate) fn read(bytes: &[u8], depth_max: usize) -> Option<Value<'_>> {
    let mut deserializer = BencodeDeserializer::new_from_buf(bytes).with_max_depth(depth_max);
    Value::deserialize(&mut deserializer).ok()
}

/// Returns a member of a dictionary; none of anything else.
pub(crate) fn get<'a, 'b>(value: &'a Value<'b>, key: &'static [u8]) -> Option<&'a Value<'b>> {
    match value {
        Value::Dict(dictionary) => dictionary.get(&ByteBuf(key)),
        _ => None,
    }
}

/// Returns a member that is a string of bytes.
pub(crate) fn bytes<'a>(value: &'a Value<'_>, key: &'static [u8]) -> Option<&'a [u8]> {
    match get(value, key)? {
        Value::Bytes(bytes) => Some(bytes.0),
        _ => None,
    }
}

/// Returns a member that is a number of a type.
pub(crate) fn number<T: TryFrom<i64>>(value: &Value<'_>, key: &'static [u8]) -> Option<T> {
    match get(value, key)? {
        Value::Integer(number) => T::try_from(*number).ok(),
        _ => None,
    }
}
