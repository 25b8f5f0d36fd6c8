//! CAR files: many blocks in one stream.
