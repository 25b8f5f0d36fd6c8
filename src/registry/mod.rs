//! Places that hold envelopes.
