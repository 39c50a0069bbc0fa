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

use flotilla_consensus::{ConfChange, Role};
use flotilla_storage::{NodeMark, ReplicaLog};
use flotilla_types::{ConfState, EntryKind, Incarnation, NodeId, ReplicaId, WalSequence};

use super::{Beat, Core, Effects, LostReason, Notice};

/// Bits of a [`WalSequence`] that count batches within one incarnation; the incarnation stands above them.
const BATCH_BITS: u32 = 34;
/// A peer's clock is judged by its last beat for so many times the pause between two.
const CLOCK_BEATS: u64 = 8;
/// The mark that a node has of itself while it has forgotten nothing.
const TRUSTED: WalSequence = WalSequence(0);
/// Bytes of a log that are looked through at a time.
const READ_BYTES_MAX: usize = 1 << 20;

/// No log gets here: the last incarnation that a sequence has room for. What counts on from beyond would overflow.
const SEQUENCE_END: WalSequence = first_sequence(Incarnation(u64::MAX >> BATCH_BITS));

/// The first sequence of an incarnation.
#[must_use]
pub const fn first_sequence(incarnation: Incarnation) -> WalSequence {
    WalSequence(incarnation.0 << BATCH_BITS)
}

pub(super) struct Greeting {
    incarnation: Incarnation,
    recovered: WalSequence,
    synced: WalSequence,
    /// `None` until we are told who they are: then nobody can have cleared us.
    peers: Option<Vec<NodeId>>,
    /// Peers that have judged us in this incarnation, and how far we told each of them that we are since.
    judges: BTreeMap<NodeId, WalSequence>,
    /// Peers that cleared us in this incarnation.
    cleared: BTreeSet<NodeId>,
    /// The highest sequence heard of each peer.
    marks: BTreeMap<NodeId, WalSequence>,
    /// What we found of each peer at its last beat.
    verdicts: BTreeMap<NodeId, (Incarnation, Option<WalSequence>)>,
    /// Peers whose clock is too far ahead.
    ahead: BTreeSet<NodeId>,
    /// What each peer's wall clock said, and when that was by ours that does not jump. Milliseconds.
    clocks: BTreeMap<NodeId, (u64, u64)>,
    rolled_back: bool,
    /// Whether this node may have forgotten whole replicas. None is created before those have tombstones, in whatever life that is:
    /// a mark of our own in the log says so.
    forgetful: bool,
}

impl Greeting {
    pub(super) fn new(me: NodeId, incarnation: Incarnation, recovered: WalSequence, marks: Vec<NodeMark>) -> Self {
        let forgetful = marks.iter().any(|mark| mark.node == me && mark.sequence > TRUSTED);
        Self {
            incarnation,
            recovered,
            synced: recovered,
            peers: None,
            judges: BTreeMap::new(),
            cleared: BTreeSet::new(),
            marks: marks.into_iter().map(|mark| (mark.node, mark.sequence)).collect(),
            verdicts: BTreeMap::new(),
            ahead: BTreeSet::new(),
            clocks: BTreeMap::new(),
            rolled_back: false,
            forgetful,
        }
    }

    pub(super) fn set_peers(&mut self, peers: Vec<NodeId>) {
        self.clocks.retain(|peer, _| peers.contains(peer));
        self.peers = Some(peers);
    }

    pub(super) fn is_ahead(&self, node: NodeId) -> bool {
        self.ahead.contains(&node)
    }

    /// Whether our wall clock is more than `ahead_ms_max` ahead of those of most peers that were heard since `since_ms`. What we date
    /// then would bind everybody to our error: a shard's time never goes back.
    pub(super) fn are_we_ahead(&self, now_ms: u64, wall_ms: u64, since_ms: u64, ahead_ms_max: u64) -> bool {
        let heard = self.clocks.values().filter(|(_, heard_ms)| *heard_ms >= since_ms);
        let (mut peers, mut behind) = (0, 0);
        for (theirs_ms, heard_ms) in heard {
            peers += 1;
            behind += usize::from(
                wall_ms.saturating_sub(ahead_ms_max) > theirs_ms.saturating_add(now_ms.saturating_sub(*heard_ms)),
            );
        }
        2 * behind > peers
    }

    pub(super) fn synced(&mut self, sequence: WalSequence) {
        self.synced = self.synced.max(sequence);
    }

    /// Whether a majority of the nodes, with this one, cleared it to take new replicas on.
    pub(super) fn may_create(&self) -> bool {
        !self.forgetful && self.is_cleared()
    }

    fn is_cleared(&self) -> bool {
        self.peers.as_ref().is_some_and(|peers| {
            let cleared = peers.iter().filter(|peer| self.cleared.contains(peer)).count();
            2 * cleared >= peers.len()
        })
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

    /// Judges a peer by what we remember of it. Until a node was judged, it says to have synced no more than it recovered;
    /// once it has settled, it has given up what it lost.
    fn judge(&mut self, from: NodeId, beat: &Beat) -> Option<WalSequence> {
        let mark = self.marks.get(&from).copied().unwrap_or_default();
        let verdict = (!beat.settled && mark > beat.synced).then_some(mark);
        self.verdicts.insert(from, (beat.incarnation, verdict));
        verdict
    }

    /// A connection came or went: what is at its other end may have started anew and must be judged anew.
    fn forget_verdict(&mut self, node: NodeId) {
        self.verdicts.remove(&node);
    }

    /// A peer's verdict on us: what it remembers beyond what we recovered, or `None` when it clears us. What we told it
    /// ourselves since it judged us is no loss; an old beat of ours came late.
    fn judged(&mut self, by: NodeId, remembered: Option<WalSequence>) -> Option<WalSequence> {
        let told = *self.judges.entry(by).or_insert(self.recovered);
        remembered.filter(|remembered| *remembered > told)
    }

    fn beat_for(&mut self, peer: NodeId, wall_ms: u64, settled: bool) -> Beat {
        let (your_incarnation, you_lost_up_to) = self.verdicts.get(&peer).copied().unwrap_or_default();
        let synced = match self.judges.get_mut(&peer) {
            Some(told) => {
                *told = (*told).max(self.synced);
                *told
            }
            None => self.recovered,
        };
        Beat {
            incarnation: self.incarnation,
            recovered: self.recovered,
            synced,
            wall_ms,
            settled,
            your_incarnation,
            you_lost_up_to,
            leaders: Vec::new(),
        }
    }
}

impl Beat {
    /// A sequence that is believed is remembered durably, and numbers batches from there on.
    fn is_possible(&self) -> bool {
        let named = [self.recovered, self.synced, self.you_lost_up_to.unwrap_or_default()];
        named.iter().all(|sequence| *sequence < SEQUENCE_END)
    }
}

impl<T> Core<T> {
    /// Whether nothing of what this node may have lost can do harm any more. A node that recovered nothing is settled only
    /// once it was judged: it may have lost everything.
    fn is_settled(&self) -> bool {
        let judged = self.greeting.rolled_back || self.greeting.is_cleared();
        judged && !self.replicas.values().any(|replica| replica.dormant)
    }

    pub(super) fn beat_all(&mut self, effects: &mut Effects<T>) {
        for peer in self.greeting.peers.clone().unwrap_or_default() {
            self.beat_to(peer, effects);
        }
    }

    fn beat_to(&mut self, peer: NodeId, effects: &mut Effects<T>) {
        let settled = self.is_settled();
        let mut beat = self.greeting.beat_for(peer, self.wall_ms, settled);
        let led = self.raft.groups().filter(|group| group.role().0 == Role::Leader);
        beat.leaders = led.map(|group| (group.shard(), group.role().1)).collect();
        effects.beats.push((peer, beat));
    }

    pub(super) fn peer_changed(&mut self, node: NodeId, connected: bool, effects: &mut Effects<T>) {
        self.greeting.forget_verdict(node);
        if connected {
            self.beat_to(node, effects);
        }
    }

    /// Whether this node's wall clock is too far ahead to date anything by it.
    pub(super) fn is_clock_ahead(&self) -> bool {
        let since_ms = self.now_ms.saturating_sub(CLOCK_BEATS * self.config.beat_ticks * self.config.tick_ms);
        self.greeting.are_we_ahead(self.now_ms, self.wall_ms, since_ms, self.config.clock_ahead_ms_max)
    }

    pub(super) fn hear(&mut self, from: NodeId, beat: Beat, effects: &mut Effects<T>) {
        if !beat.is_possible() {
            tracing::debug!(peer = %from, "a beat names a log sequence that no log has");
            return;
        }
        self.greeting.clocks.insert(from, (beat.wall_ms, self.now_ms));
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
            match self.greeting.judged(from, beat.you_lost_up_to) {
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
        if !self.replicas.values().any(|replica| replica.dormant) {
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
            if self.replicas.get(&id).is_some_and(|replica| replica.dormant) && self.is_greeted(id, &state) {
                self.open_group(id, &state, effects);
            }
        }
    }

    fn is_greeted(&mut self, id: ReplicaId, state: &ReplicaLog) -> bool {
        let position = &state.checkpoint.position;
        if self.replicas.get(&id).is_some_and(|replica| replica.alone) {
            return true;
        }
        if position.conf.voters == [id] && !position.conf.is_joint() {
            // It was the only voter at its checkpoint, but others may have joined since.
            return !self.greeting.cleared.is_empty();
        }
        self.greeting.clears(self.node, &position.conf, |id| position.descriptor.node_of(id))
            || self.is_greeted_at_the_end(id, state)
    }

    /// Those who voted at the checkpoint may be gone for ever; those at the end of the log know more than they.
    fn is_greeted_at_the_end(&mut self, id: ReplicaId, state: &ReplicaLog) -> bool {
        if self.replicas.get(&id).is_some_and(|replica| replica.latest.is_none()) {
            let latest = self.latest(id, state);
            if let Some(replica) = self.replicas.get_mut(&id) {
                replica.latest = latest;
            }
        }
        let latest = self.replicas.get(&id).and_then(|replica| replica.latest.as_ref());
        latest.is_some_and(|(conf, nodes)| self.greeting.clears(self.node, conf, |id| nodes.get(&id).copied()))
    }

    /// The configuration at the end of a log, committed or not, and where its replicas live.
    fn latest(&self, id: ReplicaId, state: &ReplicaLog) -> Option<(ConfState, BTreeMap<ReplicaId, NodeId>)> {
        let position = &state.checkpoint.position;
        let mut conf = position.conf.clone();
        let mut nodes: BTreeMap<_, _> =
            position.descriptor.replicas.iter().map(|replica| (replica.replica, replica.node)).collect();
        for change in self.changes(id, state)? {
            if let ConfChange::AddLearner { replica, node } = change {
                nodes.insert(replica, node);
            }
            conf = change.after(&conf);
        }
        Some((conf, nodes))
    }

    /// Whether a recovered replica is its group's only voter: so its checkpoint says, and its log makes nobody else a voter.
    pub(super) fn is_alone(&self, id: ReplicaId, state: &ReplicaLog) -> bool {
        let conf = &state.checkpoint.position.conf;
        if conf.voters != [id] || conf.is_joint() {
            return false;
        }
        let keeps_voters =
            |change: &ConfChange| matches!(change, ConfChange::AddLearner { .. } | ConfChange::RemoveLearner { .. });
        self.changes(id, state).is_some_and(|changes| changes.iter().all(keeps_voters))
    }

    /// The changes of configuration that a log holds behind its checkpoint; `None` when it cannot be read.
    fn changes(&self, id: ReplicaId, state: &ReplicaLog) -> Option<Vec<ConfChange>> {
        let mut changes = Vec::new();
        let mut next = state.truncated.0.max(state.checkpoint.position.index).next();
        while next <= state.last {
            let entries = self.log.entries(id, next, state.last.next(), READ_BYTES_MAX).ok()?;
            for entry in entries.iter().filter(|entry| entry.kind == EntryKind::ConfChange) {
                changes.push(ConfChange::decode(&entry.context).ok()?);
            }
            next = entries.last()?.index.next();
        }
        Some(changes)
    }

    /// What was forgotten in an earlier life must be found out in this one.
    pub(super) fn remember_forgetting(&self, effects: &mut Effects<T>) {
        if self.greeting.forgetful {
            effects.notices.push(Notice::Lost { replicas: Vec::new(), reason: LostReason::RolledBack });
        }
    }

    /// Every replica that this node was to hold and does not know has a tombstone by now.
    pub(super) fn trust_folder(&mut self, effects: &mut Effects<T>) {
        if std::mem::take(&mut self.greeting.forgetful) {
            effects.marks.push((self.node, TRUSTED));
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
        self.greeting.forgetful = true;
        effects.marks.push((self.node, remembered));
        let recovered: Vec<_> = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.recovered && !replica.alone)
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
    }
}
