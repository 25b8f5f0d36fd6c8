//! The tree of one version as a file that is read by position.
