//! A directory becomes a signed version.
