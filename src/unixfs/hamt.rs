//! The hash of large directories: which slot a name takes at each level of shards.

/// Levels that the 64 bits of a hash allow at 256 slots a level.
pub const DEPTH_MAX: u8 = 8;

/// Hashes a name: the first word of MurmurHash3 x64 128 with seed 0. Slots are taken from its most significant bits.
pub fn hash(name: &[u8]) -> u64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let scramble1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let scramble2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let (mut h1, mut h2) = (0_u64, 0_u64);
    let (chunks, tail) = name.as_chunks::<16>();
    for chunk in chunks {
        let (k1, k2) = words(chunk);
        h1 = (h1 ^ scramble1(k1)).rotate_left(27).wrapping_add(h2);
        h1 = h1.wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 = (h2 ^ scramble2(k2)).rotate_left(31).wrapping_add(h1);
        h2 = h2.wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let mut last = [0; 16];
    last[..tail.len()].copy_from_slice(tail);
    let (k1, k2) = words(&last);
    h1 ^= scramble1(k1) ^ name.len() as u64;
    h2 ^= scramble2(k2) ^ name.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    finish(h1).wrapping_add(finish(h2))
}

/// Returns the slot that `hash` takes at `depth` where each level has 2^`bits` slots; `None` when its bits are used up.
pub fn slot(hash: u64, depth: usize, bits: u32) -> Option<u32> {
    let start = u32::try_from(depth).ok()?.checked_mul(bits)?;
    let end = start.checked_add(bits).filter(|&end| end <= 64)?;
    let value = (hash >> (64 - end)) & ((1 << bits) - 1);
    u32::try_from(value).ok()
}

fn words(chunk: &[u8; 16]) -> (u64, u64) {
    let both = u128::from_le_bytes(*chunk);
    let low = both & u128::from(u64::MAX);
    (
        u64::try_from(low).unwrap_or_default(),
        u64::try_from(both >> 64).unwrap_or_default(),
    )
}

fn finish(mut k: u64) -> u64 {
    k ^= k >> 33;
    k = k.wrapping_mul(0xff51_afd7_ed55_8ccd);
    k ^= k >> 33;
    k = k.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^ (k >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(hash(b"470.txt"), 0x006e_88df_5847_e67c);
        assert_eq!(hash(b"DIRNAME0"), 0x2fd5_6337_4c70_4a00);
    }

    #[test]
    fn slots_are_eaten_from_the_top() {
        let hash = 0x0123_4567_89ab_cdef;
        assert_eq!(slot(hash, 0, 8), Some(0x01));
        assert_eq!(slot(hash, 7, 8), Some(0xef));
        assert_eq!(slot(hash, 8, 8), None);
        assert_eq!(slot(hash, 0, 10), Some(0x004));
        assert_eq!(slot(hash, 5, 10), Some(0x0de));
        assert_eq!(slot(hash, 6, 10), None);
        assert_eq!(slot(hash, usize::MAX, 8), None);
    }
}
