//! Runs commands on the store. Calls are plain futures inside their connection's task; nothing is spawned.

mod all_keys;
mod batch;
mod info;
mod positions;
mod scan;
mod task;
mod transaction;

use std::time::Instant;

pub(crate) use all_keys::time_reply;
pub(crate) use batch::{Chain, read_all, write_all};
pub(crate) use info::{Facts, info_text, wants_keyspace};
pub(crate) use task::run;
pub(crate) use transaction::{Step, Watch, exec, watch};

use futures_util::future::BoxFuture;

use crate::{Protocol, Reply, window::Ordinal};

/// A request that runs.
#[derive(Debug)]
pub(crate) struct Job<W> {
    pub(crate) ordinal: Ordinal,
    /// The protocol version of its reply.
    pub(crate) protocol: Protocol,
    pub(crate) deadline: Instant,
    pub(crate) work: W,
}

/// A request's reply.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) ordinal: Ordinal,
    pub(crate) protocol: Protocol,
    pub(crate) reply: Reply,
}

/// What a call has done.
pub(crate) struct Done {
    pub(crate) answered: Vec<Answered>,
    /// The call for the requests that are not answered yet.
    pub(crate) rest: Option<Call>,
}

/// A call for some requests.
pub(crate) type Call = BoxFuture<'static, Done>;

impl From<Vec<Answered>> for Done {
    fn from(answered: Vec<Answered>) -> Self {
        Self { answered, rest: None }
    }
}

impl<W> Job<W> {
    pub(crate) fn answered(&self, reply: Reply) -> Answered {
        Answered { ordinal: self.ordinal, protocol: self.protocol, reply }
    }
}
