//! From requests to calls on the store: reads and writes that share one, and calls of their own.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Instant};

use bytes::Bytes;
use flotilla_gateway::StoreError;
use futures_util::future::FutureExt as _;

use super::{super::Shared, Connection};
use crate::{
    Database, Protocol, Reply,
    answer::{error_reply, held_bytes},
    execute::{Answered, Chain, Done, Job, Step, Watch, exec, read_all, run, watch, write_all},
    keyspace::Keyspace,
    plan::{Plan, Read, Write},
    window::Ordinal,
};

/// A request that waits until it may run.
pub(super) struct Pending {
    pub(super) work: Work,
    pub(super) database: Database,
    pub(super) protocol: Protocol,
    pub(super) deadline: Instant,
}

/// What a request does.
pub(super) enum Work {
    Plan(Plan),
    Watch(Vec<Bytes>, Arc<Watch>),
    Exec(Vec<Step>, Option<Arc<Watch>>),
}

impl Connection {
    /// Starts the calls for all requests that are ready.
    pub(super) fn start(&mut self) {
        let now = Instant::now();
        let mut shared_calls: BTreeMap<Database, (Vec<Chain>, Vec<Job<Read>>)> = BTreeMap::new();
        while let Some((ordinal, Pending { work, database, protocol, deadline })) = self.window.take_ready() {
            if deadline <= now {
                let reply = error_reply(&StoreError::DeadlineExceeded { shard: None });
                self.finish(Answered { ordinal, protocol, reply });
                continue;
            }
            let keyspace = self.keyspace(database);
            let calls = shared_calls.entry(database);
            match work {
                Work::Plan(Plan::Write(work)) => {
                    let chain = self.chain(Job { ordinal, protocol, deadline, work }, database, now);
                    calls.or_default().0.push(chain);
                }
                Work::Plan(Plan::Read(work)) => {
                    calls.or_default().1.push(Job { ordinal, protocol, deadline, work });
                }
                Work::Plan(Plan::Task(task)) => {
                    let account = self.account.clone();
                    self.spawn(ordinal, protocol, |shared| async move {
                        run(&shared, &keyspace, &account, task, deadline).await
                    });
                }
                Work::Watch(keys, of) => {
                    self.spawn(ordinal, protocol, |_| async move { watch(&keyspace, keys, &of, deadline).await });
                }
                Work::Exec(steps, watch) => {
                    self.spawn(ordinal, protocol, |shared| async move {
                        exec(&shared, &keyspace, steps, watch, deadline).await
                    });
                }
            }
        }
        for (database, (chains, reads)) in shared_calls {
            let keyspace = self.keyspace(database);
            self.running.extend(write_all(&keyspace, chains));
            self.running.extend(read_all(&keyspace, reads));
        }
    }

    /// The records of a database, for this client.
    pub(super) fn keyspace(&self, database: Database) -> Keyspace {
        self.shared.keyspace(database, self.session.caller())
    }

    /// Starts a call of its own for a request.
    fn spawn<F>(&self, ordinal: Ordinal, protocol: Protocol, call: impl FnOnce(Arc<Shared>) -> F)
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        let answered =
            call(self.shared.clone()).map(move |reply| Done::from(vec![Answered { ordinal, protocol, reply }]));
        self.running.push(answered.boxed());
    }

    /// A write, together with the writes of the same key that follow it.
    fn chain(&mut self, first: Job<Write>, database: Database, now: Instant) -> Chain {
        let mut last: Ordinal = first.ordinal;
        let mut chain = Chain::new(first);
        let joins = |chain: &Chain, next: &Pending| {
            next.deadline > now
                // The same key of another database is another record.
                && next.database == database
                && matches!(&next.work, Work::Plan(Plan::Write(write)) if chain.accepts(write))
        };
        while let Some((ordinal, Pending { work: Work::Plan(Plan::Write(work)), protocol, deadline, .. })) =
            self.window.take_follower(last, |next| joins(&chain, next))
        {
            chain.push(Job { ordinal, protocol, deadline, work });
            last = ordinal;
        }
        chain
    }

    pub(super) fn finish(&mut self, answered: Answered) {
        let Answered { ordinal, protocol, reply } = answered;
        let bytes = held_bytes(&reply);
        self.reply_bytes = bytes.max(self.reply_bytes / 8 * 7);
        if let Some((of, database)) = self.selecting
            && of == ordinal
        {
            self.selecting = None;
            if matches!(reply, Reply::Array(_)) {
                self.session.select(database);
            }
        }
        self.window.finish(ordinal, (protocol, reply), bytes);
    }
}
