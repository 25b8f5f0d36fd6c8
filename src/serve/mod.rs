//! What is served to others: the gateway, seeding, mirrors and the control socket.

pub mod control;
pub(crate) mod copy;
pub mod gateway;
pub(crate) mod mirror;
pub mod seed;
pub mod share;
