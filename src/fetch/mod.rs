//! One flight per block: ranks, hedges, deadlines, the memory tier, prefetch.
