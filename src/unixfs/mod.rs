//! CIDs, dag-pb nodes, the UnixFS builder of profile unixfs-v1-2025, and CAR files.
