//! The Redis protocol in front of the gateway: RESP2 and RESP3, pipelined.
//!
//! The protocol part is pure: bytes in, requests and commands out; replies in, bytes out. It owns no socket, no clock and
//! no store.

mod command;
mod decode;
mod error;
mod glob;
mod introspection;
mod parse;
mod reply;
mod table;

pub use command::{
    ClientCommand, ClientInfo, Command, Deadline, ExpireCondition, Hello, Introspection, Scan, Set, SetCondition,
    SetExpiry, TimeUnit,
};
pub use decode::{Decoder, DecoderLimits, ProtocolError, Request};
pub use error::CommandError;
pub use glob::Glob;
pub use introspection::{config_reply, hello_reply, introspection_reply};
pub use parse::parse;
pub use reply::{Protocol, Reply};
pub use table::{Spec, TABLE};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
