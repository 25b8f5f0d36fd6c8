//! HTTP clients with one address filter and bounded bodies.
