//! Reads nodes of any writer.
