//! Networks that may hold a block.
