//! What is served to others: the gateway and the control socket.

pub mod control;
pub mod gateway;
pub mod seed;
pub mod share;
