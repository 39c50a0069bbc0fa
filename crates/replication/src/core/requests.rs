//! Writes and reads: admission, merging commands into entries, read rounds, deadlines.
//!
//! Invariants: every admitted request gets exactly one answer; a strong read is served only at an index that
//! a quorum round or a lease confirmed after the read arrived. Requests are never forwarded or retried here.

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_consensus::ProposeError;
use flotilla_types::{Entry, EntryKind, LogIndex, ReplicaId};

use super::{
    ApplyTask, Core, Effects, Freshness, Hold, Request, RequestError,
    lease::LeaseState,
    replica::{NextBatch, ReadRound},
};
use crate::Batch;

/// Ticks until an unanswered read round is started again: its heartbeats may have been lost.
const READ_RETRY_TICKS: u64 = 3;
/// Read rounds of one group in flight at a time; later reads share the next one.
const READ_ROUNDS_MAX: usize = 4;

impl<T> Core<T> {
    pub(super) fn propose(&mut self, request: Request<T>, effects: &mut Effects<T>) {
        let Some((id, request)) = self.admit_request(request, effects) else { return };
        let admitted = self.admits_version(request.shard, &request.payload);
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let bytes = request.payload.len();
        let full = replica.pending.len() >= self.config.pending_commands_max
            || replica.pending_bytes + bytes > self.config.pending_bytes_max.max(bytes)
            || replica.is_backlogged(&self.config);
        if !replica.leads() {
            let leader = replica.leader_node();
            effects.replies.push((request.reply, Err(RequestError::NotLeader { leader })));
            self.wake_for_client(id);
        } else if request.after.millis() > self.wall_ms + self.config.clock_ahead_ms_max {
            effects.replies.push((request.reply, Err(RequestError::AfterAhead)));
        } else if !admitted {
            effects.replies.push((request.reply, Err(RequestError::VersionNotInForce)));
        } else if full {
            effects.replies.push((request.reply, Err(RequestError::Busy)));
        } else if !request.refs.refs.is_empty() {
            self.gather_request(id, request, effects);
        } else {
            replica.pending_bytes += bytes;
            replica.pending.push_back(request);
            self.touched.insert(id);
            self.schedule.waiting.insert(id);
        }
    }

    pub(super) fn read(&mut self, request: Request<T>, freshness: Freshness, effects: &mut Effects<T>) {
        let Some((id, request)) = self.admit_request(request, effects) else { return };
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if freshness == Freshness::Local {
            let queries = vec![request.into()];
            replica.hand_over(ApplyTask::Read { replica: id, index: LogIndex(0), queries }, effects);
        } else if !replica.leads() {
            let leader = replica.leader_node();
            effects.replies.push((request.reply, Err(RequestError::NotLeader { leader })));
            self.wake_for_client(id);
        } else if replica.reads_waiting >= self.config.pending_reads_max {
            effects.replies.push((request.reply, Err(RequestError::Busy)));
        } else {
            replica.reads_waiting += 1;
            replica.reads.push(request);
            self.touched.insert(id);
            self.schedule.waiting.insert(id);
        }
    }

    fn admit_request(&self, request: Request<T>, effects: &mut Effects<T>) -> Option<(ReplicaId, Request<T>)> {
        let replica = self.serving.get(&request.shard).and_then(|id| Some((*id, self.replicas.get(id)?)));
        let error = match replica {
            None => RequestError::UnknownShard,
            Some((id, replica)) => match replica.outdated(&request) {
                Some(outdated) => outdated,
                None if request.deadline_ms <= self.now_ms => RequestError::Deadline,
                None => return Some((id, request)),
            },
        };
        effects.replies.push((request.reply, Err(error)));
        None
    }

    /// Merges pending commands into entries. While the group writes its log, commands accumulate, so batches
    /// grow with the load.
    pub(super) fn propose_pending(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let idle = self.replicas.get(&id).is_none_or(|replica| replica.pending.is_empty());
        // With its clock ahead, this leader stamps nothing: until the clock is corrected, or followers ignore
        // this node and elect another leader.
        if idle || self.is_clock_ahead() {
            return;
        }
        loop {
            let Some(replica) = self.replicas.get_mut(&id) else { return };
            let Some(group) = self.raft.group(id) else { return };
            let full = replica.pending.len() >= self.config.batch_commands_max
                || replica.pending_bytes >= self.config.batch_bytes_max;
            if replica.pending.is_empty()
                || !replica.may_propose()
                || replica.inflight.len() >= self.config.entries_inflight_max
                || (group.is_writing() && !full)
            {
                return;
            }
            let term = replica.term;
            let NextBatch { commands, waiters, after, refs, holders } =
                replica.take_batch(&self.config, self.now_ms, effects);
            if commands.is_empty() {
                continue;
            }
            let timestamp = replica.clock.max(after).advance(self.wall_ms);
            let last = timestamp.plus(commands.len() as u64 - 1);
            let (shard, count) = (replica.shard, commands.len());
            let data = Batch { timestamp, refs: refs.into_iter().collect(), commands }.encode();
            match self.raft.propose(id, data.clone(), &mut self.raft_effects) {
                Ok(index) => {
                    self.demands.wrote(shard, count, data.len());
                    let Some(replica) = self.replicas.get_mut(&id) else { return };
                    replica.clock = last;
                    replica.inflight.push_back((index, term, waiters));
                    let entry = Entry { index, term, kind: EntryKind::Normal, data, context: Bytes::new() };
                    replica.log_refs.add(id, &entry, effects);
                }
                Err(error) => {
                    let error = match error {
                        ProposeError::NotLeader => RequestError::NotLeader { leader: None },
                        ProposeError::Busy | ProposeError::Configuration => RequestError::Busy,
                    };
                    effects.replies.extend(waiters.into_iter().map(|reply| (reply, Err(error.clone()))));
                }
            }
            // The entry holds them now.
            effects.holds.extend(holders.into_iter().map(Hold::end));
        }
    }

    /// Serves waiting reads by the lease, and starts a quorum round for those without one, or to renew the
    /// lease.
    pub(super) fn start_reads(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get(&id) else { return };
        let rounds = replica.read_rounds.len();
        if replica.reads.is_empty() {
            return;
        }
        let rounds_max = match self.read_by_lease(id, effects) {
            LeaseState::Fresh => 0,
            LeaseState::Expiring => 1,
            LeaseState::None => READ_ROUNDS_MAX,
        };
        if rounds < rounds_max {
            self.start_round(id, effects);
        }
    }

    fn start_round(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        self.reads_started += 1;
        let context = read_context(self.read_nonce, self.reads_started);
        match self.raft.read_index(id, context.clone(), self.now_ms, &mut self.raft_effects) {
            Ok(()) => {
                let Some(replica) = self.replicas.get_mut(&id) else { return };
                let reads = std::mem::take(&mut replica.reads);
                replica.read_rounds.push_back(ReadRound { context, started_ms: self.now_ms, reads });
                self.schedule.waiting.insert(id);
            }
            // The first entry of the term is not committed yet; `on_applied` touches the replica again.
            Err(ProposeError::Busy | ProposeError::Configuration) => {}
            Err(ProposeError::NotLeader) => {
                let Some(replica) = self.replicas.get_mut(&id) else { return };
                replica.fail_leader_requests(effects);
            }
        }
    }

    pub(super) fn on_read_confirmed(
        &mut self,
        id: ReplicaId,
        context: &Bytes,
        index: LogIndex,
        effects: &mut Effects<T>,
    ) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let Some(at) = replica.read_rounds.iter().position(|round| round.context == *context) else { return };
        let Some(round) = replica.read_rounds.remove(at) else { return };
        self.touched.insert(id);
        // A round without reads has only renewed the lease.
        if !round.reads.is_empty() {
            self.reads.by_round += round.reads.len() as u64;
            replica.confirmed.push_back((index, round.reads));
            self.serve_confirmed(id, effects);
        }
    }

    /// Queues confirmed reads at the state machine once the entries up to their index have been delivered to
    /// it. Reads that were routed by a range which one of those entries, or a later one, has changed are
    /// refused.
    pub(super) fn serve_confirmed(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let demands = &mut self.demands;
        let delivered = replica.delivered;
        let mut waiting = std::mem::take(&mut replica.confirmed);
        waiting.retain_mut(|(index, reads)| {
            if *index > delivered {
                return true;
            }
            replica.reads_waiting -= reads.len();
            let mut queries = Vec::with_capacity(reads.len());
            for read in reads.drain(..) {
                match replica.outdated(&read) {
                    Some(outdated) => effects.replies.push((read.reply, Err(outdated))),
                    None => queries.push(read.into()),
                }
            }
            demands.read(replica.shard, queries.len());
            if !queries.is_empty() {
                replica.hand_over(ApplyTask::Read { replica: id, index: *index, queries }, effects);
            }
            false
        });
        replica.confirmed = waiting;
    }

    pub(super) fn expire_requests(&mut self, effects: &mut Effects<T>) {
        let now_ms = self.now_ms;
        let retry_ms = READ_RETRY_TICKS * self.config.tick_ms;
        self.schedule.visits += self.schedule.waiting.len() as u64;
        self.schedule.waiting.retain(|id| {
            let Some(replica) = self.replicas.get_mut(id) else { return false };
            // Deadlines are nearly in order; one that is queued after a later deadline waits a little longer.
            while replica.pending.front().is_some_and(|request| request.deadline_ms <= now_ms) {
                if let Some(request) = replica.pending.pop_front() {
                    replica.pending_bytes -= request.payload.len();
                    request.refuse(RequestError::Deadline, effects);
                }
            }
            if replica.parked_kept_ms.is_some_and(|kept_ms| kept_ms <= now_ms) {
                Self::end_parked(*id, replica, effects);
            }
            let is_late = |request: &Request<T>| request.deadline_ms <= now_ms;
            let late = replica.gathering.iter().filter(|(_, request)| is_late(request)).map(|(number, _)| *number);
            for number in late.collect::<Vec<_>>() {
                if let Some(request) = replica.gathering.remove(&number) {
                    request.refuse(RequestError::Deadline, effects);
                }
            }
            while replica.read_rounds.front().is_some_and(|round| round.started_ms + retry_ms <= now_ms) {
                if let Some(round) = replica.read_rounds.pop_front() {
                    replica.reads.extend(round.reads);
                }
            }
            let (expired, kept) = replica.reads.drain(..).partition(|read| read.deadline_ms <= now_ms);
            replica.reads = kept;
            let expired: Vec<Request<T>> = expired;
            replica.reads_waiting -= expired.len();
            effects.replies.extend(expired.into_iter().map(|read| (read.reply, Err(RequestError::Deadline))));
            if !replica.reads.is_empty() || !replica.pending.is_empty() {
                self.touched.insert(*id);
            }
            !replica.reads.is_empty()
                || !replica.pending.is_empty()
                || !replica.gathering.is_empty()
                || replica.parked_kept_ms.is_some()
                || !replica.read_rounds.is_empty()
        });
    }
}

impl<T> Request<T> {
    /// Answers that nothing was done, and lets go of what the command refers to.
    pub(super) fn refuse(self, error: RequestError, effects: &mut Effects<T>) {
        effects.holds.extend(self.refs.holder.map(Hold::end));
        effects.replies.push((self.reply, Err(error)));
    }
}

fn read_context(nonce: u64, number: u64) -> Bytes {
    let mut context = BytesMut::with_capacity(16);
    context.put_u64(nonce);
    context.put_u64(number);
    context.freeze()
}
