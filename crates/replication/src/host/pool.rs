//! Threads for work on state machines that may wait for the disk.
//!
//! Entries go before queries, and queries never take all threads: a shard's writes wait for its own disk
//! reads and not for everyone's scans. Queries of different replicas take turns.
//!
//! The queue has no bound of its own: there is at most one task of entries for each replica, and the applier
//! bounds queries (`SLOW_READS_MAX`).

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use flotilla_storage::StateEngine;
use flotilla_types::ReplicaId;
use parking_lot::{Condvar, Mutex};

use super::{Reply, apply, inline::InlineExecutor};
use crate::{Slow, clock};

/// The work that waits for a thread.
pub(super) struct Pool {
    threads: usize,
    queue: Mutex<Queue<Slow<Reply>>>,
    ready: Condvar,
}

/// Which work comes next.
struct Queue<W> {
    entries: VecDeque<W>,
    queries: BTreeMap<ReplicaId, VecDeque<W>>,
    /// The replica whose query was taken last.
    last: ReplicaId,
    /// Threads that answer a query, and how many may.
    querying: usize,
    querying_max: usize,
    closed: bool,
}

/// Work that a thread takes.
enum Taken<W> {
    Entries(W),
    /// [`Queue::answered`] follows.
    Query(W),
}

impl<W> Queue<W> {
    fn new(threads: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            queries: BTreeMap::new(),
            last: ReplicaId(0),
            querying: 0,
            querying_max: threads.saturating_sub(1).max(1),
            closed: false,
        }
    }

    fn push_query(&mut self, replica: ReplicaId, work: W) {
        self.queries.entry(replica).or_default().push_back(work);
    }

    fn take(&mut self) -> Option<Taken<W>> {
        if let Some(work) = self.entries.pop_front() {
            return Some(Taken::Entries(work));
        }
        if self.querying >= self.querying_max {
            return None;
        }
        let mut after = self.queries.range((Bound::Excluded(self.last), Bound::Unbounded));
        let replica = after.next().or_else(|| self.queries.iter().next()).map(|(replica, _)| *replica)?;
        let waiting = self.queries.get_mut(&replica)?;
        let work = waiting.pop_front();
        if waiting.is_empty() {
            self.queries.remove(&replica);
        }
        self.last = replica;
        self.querying += 1;
        work.map(Taken::Query)
    }

    fn answered(&mut self) {
        self.querying -= 1;
    }
}

impl Pool {
    /// A pool for so many threads, each of which calls [`run`](Self::run).
    pub(super) fn new(threads: usize) -> Self {
        Self { threads, queue: Mutex::new(Queue::new(threads)), ready: Condvar::new() }
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Queues work. It is dropped, unanswered, once the pool is closed.
    pub(super) fn push(&self, work: Slow<Reply>) {
        let mut queue = self.queue.lock();
        if queue.closed {
            return;
        }
        match &work {
            Slow::Apply(_) => queue.entries.push_back(work),
            Slow::Read(_) => queue.push_query(work.replica(), work),
        }
        drop(queue);
        self.ready.notify_one();
    }

    /// Ends the threads after the work that they do now, and drops the rest.
    pub(super) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        let dropped = (std::mem::take(&mut queue.entries), std::mem::take(&mut queue.queries));
        drop(queue);
        self.ready.notify_all();
        drop(dropped);
    }

    /// The body of each thread.
    pub(super) fn run(
        &self,
        engine: &dyn StateEngine,
        apply: &InlineExecutor<apply::Apply>,
        fatal: &Arc<dyn Fn(&str) + Send + Sync>,
    ) {
        while let Some(taken) = self.next() {
            let (work, is_query) = match taken {
                Taken::Entries(work) => (work, false),
                Taken::Query(work) => (work, true),
            };
            let done = work.run(clock::monotonic_ms(), engine);
            for (reply, answer) in done.replies {
                let _ = reply.send(answer);
            }
            if let Some(error) = done.fatal {
                fatal(&error.to_string());
                return;
            }
            if let Some(returned) = done.returned {
                apply.enqueue(apply::Job::Returned(returned));
            }
            if is_query {
                // This thread takes the next query, if no entries came.
                self.queue.lock().answered();
            }
        }
    }

    fn next(&self) -> Option<Taken<Slow<Reply>>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(taken) = queue.take() {
                return Some(taken);
            }
            self.ready.wait(&mut queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(queue: &mut Queue<u64>) -> Option<u64> {
        queue.take().map(|taken| match taken {
            Taken::Entries(work) | Taken::Query(work) => work,
        })
    }

    #[test]
    fn queries_leave_a_thread_for_entries_which_go_first() {
        let mut queue = Queue::new(3);
        (1..=4).for_each(|query| queue.push_query(ReplicaId(query), query));
        queue.entries.push_back(100);
        assert_eq!([take(&mut queue), take(&mut queue), take(&mut queue)], [Some(100), Some(1), Some(2)]);
        assert_eq!(take(&mut queue), None, "the last thread is for entries");
        queue.entries.push_back(101);
        assert_eq!(take(&mut queue), Some(101));
        queue.answered();
        assert_eq!((take(&mut queue), take(&mut queue)), (Some(3), None));
    }

    #[test]
    fn one_thread_does_both() {
        let mut queue = Queue::new(1);
        queue.push_query(ReplicaId(1), 1);
        assert_eq!(take(&mut queue), Some(1));
    }

    #[test]
    fn replicas_take_turns() {
        let mut queue = Queue::new(100);
        (10..15).for_each(|query| queue.push_query(ReplicaId(1), query));
        queue.push_query(ReplicaId(2), 20);
        queue.push_query(ReplicaId(3), 30);
        let order: Vec<_> = std::iter::from_fn(|| take(&mut queue)).collect();
        assert_eq!(order, [10, 20, 30, 11, 12, 13, 14]);
        assert!(queue.queries.is_empty());
    }
}
