//! Beats between nodes, and the question they answer: did this node's log go backwards?
//!
//! A restored or damaged data folder forgets acknowledged entries and votes and cannot know it. Every synced log batch
//! carries a node-wide sequence; beats advertise it and peers remember the highest, durably, with their own next
//! write. A node that starts keeps its replicas dormant (no votes, no acknowledgements) until it has heard from a
//! majority of each group that it recovered no less than they remember.
//!
//! The window that remains: what a node synced after its last beat to a peer, and what peers heard and had not written
//! when they crashed too. A beat goes out several times a second.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_consensus::Role;
use flotilla_storage::NodeMark;
use flotilla_types::{ConfState, Incarnation, NodeId, ReplicaId, WalSequence};

use super::{Beat, Core, Effects, LostReason, Notice};

/// Bits of a [`WalSequence`] that count batches within one incarnation; the incarnation stands above them.
const BATCH_BITS: u32 = 34;

/// The first sequence of an incarnation.
#[must_use]
pub fn first_sequence(incarnation: Incarnation) -> WalSequence {
    WalSequence(incarnation.0 << BATCH_BITS)
}

pub(super) struct Greeting {
    incarnation: Incarnation,
    recovered: WalSequence,
    synced: WalSequence,
    peers: Vec<NodeId>,
    /// Peers that cleared us in this incarnation.
    cleared: BTreeSet<NodeId>,
    /// The highest sequence heard of each peer.
    marks: BTreeMap<NodeId, WalSequence>,
    /// What we found of each peer when we first heard its current incarnation.
    verdicts: BTreeMap<NodeId, (Incarnation, Option<WalSequence>)>,
    /// Peers whose clock is too far ahead.
    ahead: BTreeSet<NodeId>,
    rolled_back: bool,
}

impl Greeting {
    pub(super) fn new(incarnation: Incarnation, recovered: WalSequence, marks: Vec<NodeMark>) -> Self {
        Self {
            incarnation,
            recovered,
            synced: recovered,
            peers: Vec::new(),
            cleared: BTreeSet::new(),
            marks: marks.into_iter().map(|mark| (mark.node, mark.sequence)).collect(),
            verdicts: BTreeMap::new(),
            ahead: BTreeSet::new(),
            rolled_back: false,
        }
    }

    pub(super) fn set_peers(&mut self, peers: Vec<NodeId>) {
        self.peers = peers;
    }

    pub(super) fn is_ahead(&self, node: NodeId) -> bool {
        self.ahead.contains(&node)
    }

    pub(super) fn synced(&mut self, sequence: WalSequence) {
        self.synced = self.synced.max(sequence);
    }

    /// Whether enough peers cleared this node for it to take new replicas on.
    pub(super) fn may_create(&self) -> bool {
        2 * self.cleared.len() >= self.peers.len()
    }

    /// Whether a replica under this configuration has been cleared by enough of its group.
    fn clears(&self, me: NodeId, conf: &ConfState, node_of: impl Fn(ReplicaId) -> Option<NodeId>) -> bool {
        let heard =
            |replica: &ReplicaId| node_of(*replica).is_some_and(|node| node == me || self.cleared.contains(&node));
        let majority = |voters: &[ReplicaId]| {
            voters.is_empty() || voters.iter().filter(|voter| heard(voter)).count() > voters.len() / 2
        };
        majority(&conf.voters) && majority(&conf.voters_outgoing)
    }

    /// Judges a peer by what we remember of it, once for each of its incarnations.
    fn judge(&mut self, from: NodeId, beat: &Beat) -> Option<WalSequence> {
        let mark = self.marks.get(&from).copied().unwrap_or_default();
        let known = self.verdicts.get(&from).copied();
        let verdict = match known {
            Some((incarnation, verdict)) if incarnation == beat.incarnation => verdict,
            // What it wrote in its present life says nothing about what it had before.
            _ if beat.settled || mark.0 >> BATCH_BITS == beat.incarnation.0 => None,
            _ => (mark > beat.recovered).then_some(mark),
        };
        // Once it has settled, it has given up what it lost.
        let verdict = verdict.filter(|_| !beat.settled);
        self.verdicts.insert(from, (beat.incarnation, verdict));
        verdict
    }

    fn beat_for(&self, peer: NodeId, wall_ms: u64, settled: bool) -> Beat {
        let (your_incarnation, you_lost_up_to) = self.verdicts.get(&peer).copied().unwrap_or_default();
        Beat {
            incarnation: self.incarnation,
            recovered: self.recovered,
            synced: self.synced,
            wall_ms,
            settled,
            your_incarnation,
            you_lost_up_to,
            leaders: Vec::new(),
        }
    }
}

impl<T> Core<T> {
    fn is_settled(&self) -> bool {
        !self.replicas.values().any(|replica| replica.dormant)
    }

    pub(super) fn beat_all(&mut self, effects: &mut Effects<T>) {
        for peer in self.greeting.peers.clone() {
            self.beat_to(peer, effects);
        }
    }

    fn beat_to(&self, peer: NodeId, effects: &mut Effects<T>) {
        let mut beat = self.greeting.beat_for(peer, self.wall_ms, self.is_settled());
        let led = self.raft.groups().filter(|group| group.role().0 == Role::Leader);
        beat.leaders = led.map(|group| (group.shard(), group.role().1)).collect();
        effects.beats.push((peer, beat));
    }

    pub(super) fn peer_changed(&mut self, node: NodeId, connected: bool, effects: &mut Effects<T>) {
        if connected {
            self.beat_to(node, effects);
        }
    }

    pub(super) fn hear(&mut self, from: NodeId, beat: Beat, effects: &mut Effects<T>) {
        if beat.wall_ms > self.wall_ms + self.config.clock_ahead_ms_max {
            if self.greeting.ahead.insert(from) {
                let ahead_ms = beat.wall_ms - self.wall_ms;
                tracing::warn!(peer = %from, ahead_ms, "a peer's clock is too far ahead; not listening to it. Check NTP on both");
            }
            return;
        }
        self.greeting.ahead.remove(&from);
        let news = self.greeting.verdicts.get(&from).is_none_or(|(incarnation, _)| *incarnation != beat.incarnation);
        let lost = self.greeting.judge(from, &beat);
        if lost.is_none() && beat.synced > self.greeting.marks.get(&from).copied().unwrap_or_default() {
            self.greeting.marks.insert(from, beat.synced);
            effects.marks.push((from, beat.synced));
        }
        if news {
            // It may be waiting for our word.
            self.beat_to(from, effects);
        }
        for (shard, term) in &beat.leaders {
            effects.notices.push(Notice::Leader { shard: *shard, term: *term, node: Some(from) });
        }
        if beat.your_incarnation == self.greeting.incarnation {
            match beat.you_lost_up_to {
                None => {
                    if self.greeting.cleared.insert(from) {
                        self.open_greeted(effects);
                    }
                }
                Some(remembered) => self.rolled_back(from, remembered, effects),
            }
        }
    }

    /// Wakes every dormant replica whose group has cleared this node.
    pub(super) fn open_greeted(&mut self, effects: &mut Effects<T>) {
        if self.greeting.rolled_back || !self.replicas.values().any(|replica| replica.dormant) {
            return;
        }
        let states = match self.log.replicas() {
            Ok(states) => states,
            Err(error) => {
                tracing::error!(%error, "the log cannot be read");
                return;
            }
        };
        for (id, state) in states {
            let dormant = self.replicas.get(&id).is_some_and(|replica| replica.dormant);
            let position = &state.checkpoint.position;
            if dormant
                && self.greeting.clears(self.node, &position.conf, |replica| position.descriptor.node_of(replica))
            {
                self.open_group(id, &state, effects);
            }
        }
    }

    /// A peer remembers more of our log than we recovered. Votes and acknowledgements of every replica that we recovered
    /// are forgotten promises: their ids get a tombstone and they come back under new ids, as learners. A replica that is
    /// alone in its group stays, since nobody else has anything better.
    fn rolled_back(&mut self, peer: NodeId, remembered: WalSequence, effects: &mut Effects<T>) {
        if std::mem::replace(&mut self.greeting.rolled_back, true) {
            return;
        }
        tracing::error!(
            %peer, %remembered, recovered = %self.greeting.recovered,
            "this node's log went backwards: a peer remembers more than this data folder holds; giving up its replicas"
        );
        effects.sequence_floor = Some(remembered);
        let alone = |replica: &super::Replica<T>| replica.descriptor.replicas.len() <= 1;
        let recovered: Vec<_> = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.recovered && !alone(replica))
            .map(|(id, _)| *id)
            .collect();
        let mut lost = Vec::new();
        for id in recovered {
            if let Some(replica) = self.replicas.get(&id) {
                lost.push((replica.shard, id));
            }
            self.destroy(id, effects);
        }
        effects.notices.push(Notice::Lost { replicas: lost, reason: LostReason::RolledBack });
        // Whatever is left was alone.
        self.greeting.rolled_back = false;
        let alone: Vec<_> = self.replicas.iter().filter(|(_, replica)| replica.dormant).map(|(id, _)| *id).collect();
        if !alone.is_empty() {
            self.open_greeted(effects);
        }
        self.greeting.rolled_back = true;
    }
}

impl<T> Core<T> {
    pub(super) fn destroyed(&mut self, replica: ReplicaId, effects: &mut Effects<T>) {
        effects.apply.push(super::ApplyTask::Close { replica });
        effects.notices.push(Notice::Destroyed { replica });
    }
}
