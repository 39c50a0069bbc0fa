//! The Redis protocol for the gateway: RESP2 and RESP3, with pipelining.
//!
//! [`serve`] serves the gateway's store on a listener. The protocol part is pure: it turns bytes into
//! requests and commands, and replies into bytes, without a socket, a clock or the store.

mod answer;
mod clients;
mod clock;
mod command;
mod compute;
mod cursors;
mod database;
mod decode;
mod dump;
mod error;
mod evaluate;
mod execute;
mod float;
mod glob;
mod introspection;
mod keyspace;
mod parse;
mod plan;
mod process;
mod reply;
mod script;
mod server;
mod stripes;
mod table;
mod usage;
mod view;
mod window;

pub use command::{
    ClientCommand, ClientFilter, ClientInfo, Command, CommandFilter, Deadline, ExpireCondition, Hello, Introspection,
    ReplyMode, Scan, ScriptCommand, Set, SetCondition, SetExpiry, TimeUnit, When,
};
pub use compute::{
    BitFieldAction, BitFieldOverflow, BitFieldStep, BitOperation, BitUnit, Compute, Lcs, LcsReply, ObjectQuery,
};
pub use database::Database;
pub use decode::{Decoder, DecoderLimits, ProtocolError, Request, Sender};
pub use dump::PayloadError;
pub use error::CommandError;
pub use float::Float;
pub use glob::Glob;
pub use introspection::{config_reply, hello_reply, help_reply, introspection_reply};
pub use parse::parse;
pub use reply::{Protocol, Reply};
pub use script::{Eval, Script};
pub use server::{ServerConfig, ServerConfigError, serve};
pub use table::{Spec, TABLE};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
