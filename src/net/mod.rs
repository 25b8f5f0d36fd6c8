//! HTTP clients with one address filter and bounded bodies.
//!
//! Every request of the program leaves through [`Client`]: it knows which addresses may be dialled
//! ([`AddressFilter`]), never reads more than it was told to, never waits longer than it was told to, follows no redirect
//! unless asked, decompresses nothing. It does not know what the bytes are for.

pub(crate) mod bencode;
mod client;
pub mod dht;
mod filter;
mod rate;
pub mod tracker;

pub use client::{Answer, Client, ContentRange, Get, NetError, Options, Secret};
pub use filter::{AddressFilter, Allow, AllowSyntax, FilterError, Route, inward};
pub use rate::Rate;
