//! Paths and inodes to bytes; no fuser type, no socket, no errno.
