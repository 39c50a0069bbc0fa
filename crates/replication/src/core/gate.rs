//! Entries and commands that wait for the objects that they refer to.
//!
//! Invariants: an entry is stepped only when the objects that it refers to are durable here and held; everything
//! else of its group goes on, so that no heartbeat, vote or snapshot, and no message of another group, waits for
//! bytes. A leader proposes a command only when it has the objects itself, and has compared them with what the
//! command says of them: followers believe it.
//!
//! At most one tail of a leader's appends is parked for each replica, of a bounded size. What does not fit is dropped
//! without an answer: an answer would refuse it, and the leader would send everything again. It finds out what the
//! follower has when the tail is stepped.

use std::collections::{BTreeSet, VecDeque};

use flotilla_consensus as consensus;
use flotilla_types::{ClusterVersion, Entry, Holder, LogIndex, Message, ReplicaId, Term};

use super::{
    Background, Core, Effects, Gather, GatherEnd, Hold, Request, RequestError, log_refs::is_in_log, replica::Replica,
};
use crate::{refs_of, work};

/// Bytes of entries that wait for objects, of each replica, besides the first message.
const PARKED_BYTES_MAX: usize = 1 << 20;
/// Milliseconds for which what was fetched of a tail is kept when the rest could not be had.
const KEPT_MS: u64 = 10_000;
/// Milliseconds after a replica gave its leadership away for lack of room until it does so again.
const GIVES_WAY_EVERY_MS: u64 = 10_000;
/// Commands of a leader that wait for objects; further ones are refused as busy.
const REQUESTS_GATHERING_MAX: usize = 64;

/// Appends of one leader that wait for objects.
#[derive(Debug)]
pub(super) struct Parked {
    term: Term,
    /// In the order in which they came. The first one begins with an entry that waits.
    messages: VecDeque<Message>,
    bytes: usize,
    /// How many of them the order is for, and its number.
    ordered: (usize, u64),
}

impl<T> Replica<T> {
    /// Whether a tail is parked that a leader of an earlier term has sent.
    pub(super) fn parked_of_earlier_term(&self, term: Term) -> bool {
        self.parked.as_ref().is_some_and(|parked| parked.term < term)
    }
}

impl<T> Core<T> {
    /// Steps an append as far as its objects are here.
    pub(super) fn receive_append(&mut self, message: Message, effects: &mut Effects<T>) {
        let id = message.to;
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if let Some(parked) = &mut replica.parked {
            if message.term == parked.term {
                if message.entries.is_empty() && self.raft.group(id).is_some_and(|group| message.index <= group.last())
                {
                    // It says what is committed of the entries that are here.
                    self.step_append(message, effects);
                } else if !message.entries.is_empty() && parked.bytes + bytes_of(&message) <= PARKED_BYTES_MAX {
                    parked.bytes += bytes_of(&message);
                    parked.messages.push_back(message);
                }
                return;
            }
            if message.term > parked.term {
                self.drop_parked(id);
            }
        }
        self.pass(message, effects);
    }

    /// Steps what of an append needs no object, and parks the rest.
    fn pass(&mut self, mut message: Message, effects: &mut Effects<T>) {
        let Some(group) = self.raft.group(message.to) else { return };
        // An entry that is in the log has its objects, and one that a checkpoint covers needs none.
        let is_new =
            |entry: &Entry| entry.index > group.truncated().0 && group.term_of(entry.index) != Some(entry.term);
        let waits = |entry: &Entry| !refs_of(entry).is_empty() && is_new(entry);
        let cut = message.entries.iter().position(waits);
        // Raft ignores messages of an earlier term.
        let Some(cut) = cut.filter(|_| message.term >= group.status().term) else {
            self.step_append(message, effects);
            return;
        };
        let entries = message.entries.split_off(cut);
        let (index, log_term) =
            message.entries.last().map_or((message.index, message.log_term), |last| (last.index, last.term));
        let rest = Message { index, log_term, entries, ..message.clone() };
        self.step_append(message, effects);
        self.park(rest, effects);
    }

    fn park(&mut self, message: Message, effects: &mut Effects<T>) {
        let id = message.to;
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let (term, bytes) = (message.term, bytes_of(&message));
        let (messages, ordered) = (VecDeque::from([message]), (0, replica.gathers));
        replica.parked = Some(Box::new(Parked { term, messages, bytes, ordered }));
        self.order_parked(id, effects);
    }

    /// Orders the objects of all that is parked.
    fn order_parked(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let node = self.node;
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.gathers += 1;
        let number = replica.gathers;
        let Some(parked) = &mut replica.parked else { return };
        parked.ordered = (parked.messages.len(), number);
        let entries = parked.messages.iter().flat_map(|message| &message.entries);
        let refs: BTreeSet<_> = entries.flat_map(|entry| refs_of(entry).to_vec()).collect();
        let leader = parked.messages.front().map(|message| message.from);
        (replica.holds_parked, replica.parked_kept_ms) = (true, None);
        let from = leader.and_then(|leader| replica.node_of(leader));
        let sources = work::sources(node, from, &replica.descriptor);
        let refs = refs.into_iter().collect();
        let holder = Holder::Parked(id);
        order(Gather { holder, number, refs, sources, deadline_ms: None, spares: true }, effects);
    }

    /// Steps an append whose objects are here, and holds them for the entries that Raft takes.
    fn step_append(&mut self, message: Message, effects: &mut Effects<T>) {
        let id = message.to;
        let referring: Vec<_> = message.entries.iter().filter(|entry| !refs_of(entry).is_empty()).cloned().collect();
        self.raft.step(consensus::Input::Message(message), &mut self.raft_effects);
        let (Some(replica), Some(group)) = (self.replicas.get_mut(&id), self.raft.group(id)) else { return };
        // One that was truncated may come once more, and no truncation would end its hold.
        for entry in referring.iter().filter(|entry| is_in_log(group, entry.index, entry.term)) {
            replica.log_refs.add(id, entry, effects);
        }
    }

    /// An order has ended.
    pub(super) fn on_gathered(&mut self, holder: Holder, number: u64, end: GatherEnd, effects: &mut Effects<T>) {
        match holder {
            Holder::Parked(id) => self.on_parked_gathered(id, number, end, effects),
            Holder::Request { replica, number } => self.on_request_gathered(replica, number, end, effects),
            _ => {}
        }
    }

    fn on_parked_gathered(&mut self, id: ReplicaId, number: u64, end: GatherEnd, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let Some(mut parked) = replica.parked.take_if(|parked| parked.ordered.1 == number) else { return };
        if end != GatherEnd::Complete {
            self.drop_parked(id);
            return;
        }
        let rest = parked.messages.split_off(parked.ordered.0);
        for message in parked.messages {
            self.step_append(message, effects);
        }
        for message in rest {
            self.receive_append(message, effects);
        }
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.parked.is_none() {
            Self::end_parked(id, replica, effects);
        }
    }

    /// Drops what is parked. The leader, or another one, may send the entries again: what came stays held for a while.
    pub(super) fn drop_parked(&mut self, id: ReplicaId) {
        if let Some(replica) = self.replicas.get_mut(&id) {
            replica.parked = None;
            replica.parked_kept_ms = replica.holds_parked.then_some(self.now_ms + KEPT_MS);
            self.schedule.waiting.insert(id);
        }
    }

    /// Drops what is parked, and lets go of what was fetched for it.
    pub(super) fn end_parked(id: ReplicaId, replica: &mut Replica<T>, effects: &mut Effects<T>) {
        (replica.parked, replica.parked_kept_ms) = (None, None);
        if std::mem::take(&mut replica.holds_parked) {
            effects.holds.push(Hold::end(Holder::Parked(id)));
        }
    }

    /// Fetches what a command refers to before it is proposed.
    pub(super) fn gather_request(&mut self, id: ReplicaId, mut request: Request<T>, effects: &mut Effects<T>) {
        let node = self.node;
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let error = if self.cluster_version < ClusterVersion::VALUE_REFS {
            Some(RequestError::VersionNotInForce)
        } else {
            (replica.gathering.len() >= REQUESTS_GATHERING_MAX).then_some(RequestError::Busy)
        };
        if let Some(error) = error {
            effects.replies.push((request.reply, Err(error)));
            return;
        }
        replica.gathers += 1;
        let (number, holder) = (replica.gathers, Holder::Request { replica: id, number: replica.gathers });
        let refs = request.refs.refs.to_vec();
        let sources = work::sources(node, request.refs.held_by, &replica.descriptor);
        let (deadline_ms, spares) = (Some(request.deadline_ms), request.refs.held_by != Some(node));
        order(Gather { holder, number, refs, sources, deadline_ms, spares }, effects);
        request.refs.holder = Some(holder);
        replica.gathering.insert(number, request);
        self.schedule.waiting.insert(id);
    }

    fn on_request_gathered(&mut self, id: ReplicaId, number: u64, end: GatherEnd, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let Some(request) = replica.gathering.remove(&number) else { return };
        match end {
            GatherEnd::Complete => {
                replica.pending_bytes += request.payload.len();
                replica.pending.push_back(request);
                self.touched.insert(id);
                self.schedule.waiting.insert(id);
            }
            GatherEnd::Incomplete => request.refuse(RequestError::ObjectsMissing, effects),
            GatherEnd::NotStored => {
                request.refuse(RequestError::Busy, effects);
                self.give_way(id);
            }
        }
    }

    /// The disk here is full, those of other replicas may not be: one of them leads, if there is one. Not at once
    /// again when the leadership comes back.
    fn give_way(&mut self, id: ReplicaId) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.gave_way_ms.is_some_and(|gave_way_ms| self.now_ms < gave_way_ms + GIVES_WAY_EVERY_MS) {
            return;
        }
        replica.gave_way_ms = Some(self.now_ms);
        tracing::warn!(replica = %id, "there is no room here for what commands refer to; another replica is to lead");
        self.transfer_leadership(id);
    }

    /// Reads the references in a log that was recovered, and holds what they name.
    pub(super) fn recover_log_refs(
        &mut self,
        id: ReplicaId,
        (truncated, last): (LogIndex, LogIndex),
        effects: &mut Effects<T>,
    ) -> Result<(), flotilla_storage::LogError> {
        let mut next = truncated.next();
        let mut objects = BTreeSet::new();
        while next <= last {
            let entries = self.log.entries(id, next, last.next(), READ_BYTES_MAX)?;
            let Some(end) = entries.last().map(|entry| entry.index) else { break };
            let Some(replica) = self.replicas.get_mut(&id) else { return Ok(()) };
            for entry in &entries {
                objects.extend(super::log_refs::ids_of(entry));
                replica.log_refs.add(id, entry, effects);
            }
            next = end.next();
        }
        if !objects.is_empty() {
            effects.background.push(Background::Expect { objects: objects.into_iter().collect() });
        }
        Ok(())
    }
}

/// Bytes of the log that are read at a time.
const READ_BYTES_MAX: usize = 1 << 20;

/// Holds objects, and then orders them.
fn order<T>(gather: Gather, effects: &mut Effects<T>) {
    let mut objects: Vec<_> = gather.refs.iter().map(|reference| reference.id).collect();
    objects.dedup();
    effects.holds.push(Hold { holder: gather.holder, objects });
    effects.background.push(Background::Gather(gather));
}

fn bytes_of(message: &Message) -> usize {
    message.entries.iter().map(Entry::size_bytes).sum()
}
