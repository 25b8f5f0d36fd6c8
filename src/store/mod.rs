//! Verified blocks on disk, under a quota.
