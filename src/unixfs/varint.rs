//! Unsigned LEB128 integers, minimal form only.

/// The input is not a varint in its minimal form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a varint is cut off, too large or not in its shortest form")]
pub struct VarintError;

/// Bytes of a varint in protobuf, which carries 64 bits.
pub(crate) const PROTOBUF: usize = 10;

/// Bytes of a varint in a CID or a CAR, which carries 63 bits.
pub(crate) const MULTIFORMATS: usize = 9;

/// Returns the encoded length of `value`.
pub(crate) const fn len(value: u64) -> u64 {
    // Seven bits to a byte, rounded up; zero takes one byte.
    let bits = 64 - (value | 1).leading_zeros();
    bits.div_ceil(7) as u64
}

/// Appends `value`.
pub(crate) fn push(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Takes a varint of at most `max` bytes from the front of `input`.
pub(crate) fn take(input: &mut &[u8], max: usize) -> Result<u64, VarintError> {
    let mut value = 0_u64;
    for (index, &byte) in input.iter().take(max).enumerate() {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if index == 9 && bits > 1 {
            return Err(VarintError);
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            if byte == 0 && index > 0 {
                return Err(VarintError);
            }
            *input = &input[index + 1..];
            return Ok(value);
        }
    }
    Err(VarintError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_at_every_length() {
        for shift in 0..64 {
            for value in [1 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                push(&mut out, value);
                assert_eq!(out.len() as u64, len(value), "{value}");
                let mut input = out.as_slice();
                assert_eq!(take(&mut input, PROTOBUF), Ok(value));
                assert!(input.is_empty());
                assert_eq!(
                    take(&mut &out[..], MULTIFORMATS).is_ok(),
                    out.len() <= MULTIFORMATS
                );
                assert!(take(&mut &out[..out.len() - 1], PROTOBUF).is_err(), "cut");
            }
        }
    }

    #[test]
    fn refuses_padding_and_overflow() {
        assert!(take(&mut &[0x80, 0x00][..], PROTOBUF).is_err());
        assert!(take(&mut &[0xff; 9][..], PROTOBUF).is_err());
        let mut wide = [0xff; 10];
        wide[9] = 2;
        assert!(take(&mut &wide[..], PROTOBUF).is_err());
        assert!(take(&mut &[][..], PROTOBUF).is_err());
    }
}
