//! Protobuf fields: what dag-pb nodes and UnixFS messages are made of.

use super::varint::{self, VarintError};

/// The value of a field.
pub(crate) enum Value<'a> {
    /// An integer.
    Varint(u64),
    /// Bytes, a message, or packed integers.
    Bytes(&'a [u8]),
    /// Four or eight bytes, which no field that is read here has.
    Fixed,
}

/// Takes a field, its number and value, from the front of `input`.
pub(crate) fn take<'a>(input: &mut &'a [u8]) -> Result<(u64, Value<'a>), VarintError> {
    let tag = varint::take(input, varint::PROTOBUF)?;
    let value = match tag & 7 {
        0 => Value::Varint(varint::take(input, varint::PROTOBUF)?),
        1 => {
            split(input, 8)?;
            Value::Fixed
        }
        2 => {
            let len = varint::take(input, varint::PROTOBUF)?;
            Value::Bytes(split(input, len)?)
        }
        5 => {
            split(input, 4)?;
            Value::Fixed
        }
        _ => return Err(VarintError),
    };
    Ok((tag >> 3, value))
}

fn split<'a>(input: &mut &'a [u8], len: u64) -> Result<&'a [u8], VarintError> {
    let len = usize::try_from(len).map_err(|_| VarintError)?;
    let (head, rest) = input.split_at_checked(len).ok_or(VarintError)?;
    *input = rest;
    Ok(head)
}
