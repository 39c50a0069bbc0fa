//! Node heartbeats and the recovery handshake: after a restart, peers verify that this node's log did not go
//! backwards.
//!
//! A restored or damaged data folder forgets acknowledged entries and votes. A log with evidence that it is
//! complete ([`flotilla_storage::LogEvidence`]) is trusted at once. Without evidence the node must ask: every
//! synced log batch carries a node-wide sequence, node heartbeats and the messages that wait for the batch
//! name it, and each peer remembers the highest one durably, with its own next write. The node keeps its
//! replicas unverified (no votes, no acknowledgements) until enough peers have confirmed that it recovered at
//! least as much as they remember.
//!
//! Enough are n − q + 1 voters *other than this node*, with n voters and commit quorums of q. An entry that
//! this node acknowledged and forgot was committed by q − 1 others with it, and so many others are too many
//! to miss all of them. A majority that counts the node itself is not enough: with three voters it could
//! consist of the node that forgot and of one that was down at the time. Voters beyond that number must
//! answer as well while they are members of the cluster: between two heartbeats only a leader learns the
//! sequence of an acknowledgement.
//!
//! Not covered: sequences that peers received but had not written when they crashed as well, between a
//! promise of this node and their own next write.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_consensus::{ConfChange, Origin};
use flotilla_storage::{PeerSequence, ReplicaLog};
use flotilla_types::{
    ConfState, EntryKind, Incarnation, LogIndex, NodeId, ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Term,
    VersionRange, WalSequence,
};

use super::{Core, Effects, LostReason, NodeHeartbeat, Notice, announced::Announced, replica::RecentConfs};

/// Low bits of a [`WalSequence`], which count batches within one incarnation; the high bits are the
/// incarnation.
const BATCH_BITS: u32 = 34;
/// A peer's clock reading counts for this many heartbeat intervals.
const CLOCK_HEARTBEATS: u64 = 8;
/// The peer sequence that a node stores for itself while its data folder is trusted.
const TRUSTED: WalSequence = WalSequence(0);
/// Bytes of a log that are scanned per read.
const READ_BYTES_MAX: usize = 1 << 20;

/// First sequence of the last incarnation that fits. No log reaches it; counting on from beyond would
/// overflow.
const SEQUENCE_END: WalSequence = first_sequence(Incarnation(u64::MAX >> BATCH_BITS));

/// The first sequence of an incarnation.
#[must_use]
pub const fn first_sequence(incarnation: Incarnation) -> WalSequence {
    WalSequence(incarnation.0 << BATCH_BITS)
}

/// What this node knows of its peers' logs and clocks, and what they said of its own log.
pub(super) struct RecoveryHandshake {
    incarnation: Incarnation,
    recovered: WalSequence,
    synced: WalSequence,
    /// `None` until the peer set is known; until then this node is not verified.
    peers: Option<Vec<NodeId>>,
    /// Peers that have checked this node in this incarnation, and the last sequence advertised to each since.
    advertised: BTreeMap<NodeId, WalSequence>,
    /// Peers that verified this node in this incarnation.
    verified_by: BTreeSet<NodeId>,
    /// The highest sequence that each peer advertised.
    peer_sequences: BTreeMap<NodeId, WalSequence>,
    /// Those of them that the next log write must record.
    unrecorded: BTreeMap<NodeId, WalSequence>,
    /// The result of checking each peer at its last heartbeat: its incarnation, and what it lost, if
    /// anything.
    peer_checks: BTreeMap<NodeId, (Incarnation, Option<WalSequence>)>,
    /// Peers whose clock is too far ahead.
    ahead: BTreeSet<NodeId>,
    /// Each peer's wall clock, and our monotonic clock when it arrived. Milliseconds.
    clocks: BTreeMap<NodeId, (u64, u64)>,
    /// The last start of each peer and the cluster versions that its binary supports.
    pub(super) peer_versions: BTreeMap<NodeId, (Incarnation, VersionRange)>,
    rolled_back: bool,
    /// Whether the log was opened with evidence that it is complete.
    trusted: bool,
    /// Whether the log is, durably, to be opened without evidence again.
    in_doubt: bool,
    /// Whether this node may have forgotten whole replicas. It creates none until those have tombstones.
    /// Survives restarts as this node's own peer sequence in the log.
    may_have_forgotten_replicas: bool,
}

impl RecoveryHandshake {
    pub(super) fn new(
        me: NodeId,
        incarnation: Incarnation,
        recovered: WalSequence,
        trusted: bool,
        peer_sequences: Vec<PeerSequence>,
    ) -> Self {
        let may_have_forgotten_replicas = peer_sequences.iter().any(|peer| peer.node == me && peer.sequence > TRUSTED);
        Self {
            incarnation,
            recovered,
            synced: recovered,
            peers: None,
            advertised: BTreeMap::new(),
            verified_by: BTreeSet::new(),
            peer_sequences: peer_sequences.into_iter().map(|peer| (peer.node, peer.sequence)).collect(),
            unrecorded: BTreeMap::new(),
            peer_checks: BTreeMap::new(),
            ahead: BTreeSet::new(),
            clocks: BTreeMap::new(),
            peer_versions: BTreeMap::new(),
            rolled_back: false,
            trusted,
            in_doubt: !trusted,
            may_have_forgotten_replicas,
        }
    }

    pub(super) fn set_peers(&mut self, peers: Vec<NodeId>) {
        self.clocks.retain(|peer, _| peers.contains(peer));
        self.peer_versions.retain(|peer, _| peers.contains(peer));
        self.peers = Some(peers);
    }

    pub(super) fn is_ahead(&self, node: NodeId) -> bool {
        self.ahead.contains(&node)
    }

    /// Whether our wall clock is more than `ahead_ms_max` ahead of most peers that sent a heartbeat since
    /// `since_ms`. Timestamps from such a clock would bind the whole cluster to its error: a shard's time
    /// never goes back.
    pub(super) fn is_clock_ahead(&self, now_ms: u64, wall_ms: u64, since_ms: u64, ahead_ms_max: u64) -> bool {
        let recent = self.clocks.values().filter(|(_, received_ms)| *received_ms >= since_ms);
        let (mut peers, mut behind) = (0, 0);
        for (peer_wall_ms, received_ms) in recent {
            peers += 1;
            let peer_now_ms = peer_wall_ms.saturating_add(now_ms.saturating_sub(*received_ms));
            behind += usize::from(wall_ms.saturating_sub(ahead_ms_max) > peer_now_ms);
        }
        2 * behind > peers
    }

    pub(super) fn synced(&mut self, sequence: WalSequence) {
        self.synced = self.synced.max(sequence);
    }

    /// Whether this node may create a replica of this shard. A node whose disk was wiped under its old
    /// identity would recreate its old replicas and break their promises.
    pub(super) fn may_create(&self, me: NodeId, descriptor: &ShardDescriptor) -> bool {
        if self.may_have_forgotten_replicas {
            return false;
        }
        let voters = descriptor.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
        let others: Vec<_> = voters.map(|voter| voter.node).filter(|node| *node != me).collect();
        self.trusted
            || (self.is_verified()
                && (others.is_empty() || (self.enough_verified(&others) && self.none_to_wait_for(&others))))
    }

    /// Whether a majority of the nodes, this one included, verified this node's log.
    fn is_verified(&self) -> bool {
        self.peers.as_ref().is_some_and(|peers| {
            let verified = peers.iter().filter(|peer| self.verified_by.contains(peer)).count();
            2 * verified >= peers.len()
        })
    }

    /// Whether every other node verified this node's log.
    fn is_verified_by_all(&self) -> bool {
        self.peers.as_ref().is_some_and(|peers| peers.iter().all(|peer| self.verified_by.contains(peer)))
    }

    /// Whether n − q + 1 of these voters, all on other nodes, verified this node, which is the n-th voter.
    fn enough_verified(&self, others: &[NodeId]) -> bool {
        let (voters, verified) =
            (others.len() + 1, others.iter().filter(|node| self.verified_by.contains(node)).count());
        let quorum = voters / 2 + 1;
        verified > voters - quorum
    }

    /// Whether each of these nodes verified this one or is no member of the cluster any more.
    fn none_to_wait_for(&self, others: &[NodeId]) -> bool {
        self.peers
            .as_ref()
            .is_some_and(|members| others.iter().all(|node| self.verified_by.contains(node) || !members.contains(node)))
    }

    /// Whether all other voters of a configuration that are still members verified this node, and of one half
    /// of it, if joint, enough: commits and elections need a quorum of each half.
    fn is_verified_by(&self, me: NodeId, conf: &ConfState, nodes: &BTreeMap<ReplicaId, NodeId>) -> bool {
        let halves = [&conf.voters, &conf.voters_outgoing];
        let halves = halves.into_iter().filter(|voters| !voters.is_empty()).map(|voters| {
            // A voter whose node is unknown counts as one that did not answer.
            let node_of = |voter: &ReplicaId| nodes.get(voter).copied().unwrap_or(NodeId(0));
            voters.iter().map(node_of).filter(|node| *node != me).collect::<Vec<_>>()
        });
        // A replica that waits for its first snapshot knows no voter; if it was more than that, some node knows.
        let mut enough = conf.voters.is_empty() && self.is_verified_by_all();
        for others in halves {
            if !self.none_to_wait_for(&others) {
                return false;
            }
            // The only voter has no other to ask. Others may have become voters since, and some node knows.
            enough |= if others.is_empty() { self.is_verified_by_all() } else { self.enough_verified(&others) };
        }
        enough
    }

    /// Checks a peer's log against what we remember of it; returns what it lost. Until it is checked, a node
    /// advertises only what it recovered; once its recovery is complete, it has abandoned what it lost.
    fn check_peer(&mut self, from: NodeId, heartbeat: &NodeHeartbeat) -> Option<WalSequence> {
        let remembered = self.peer_sequences.get(&from).copied().unwrap_or_default();
        let lost = (!heartbeat.recovery_complete && remembered > heartbeat.synced).then_some(remembered);
        self.peer_checks.insert(from, (heartbeat.incarnation, lost));
        lost
    }

    /// Remembers what a peer has synced, unless it lost something or was not checked in this incarnation.
    pub(super) fn note_synced(&mut self, from: NodeId, sequence: WalSequence) {
        let Some((incarnation, None)) = self.peer_checks.get(&from) else { return };
        if sequence < first_sequence(*incarnation) || sequence >= SEQUENCE_END {
            return;
        }
        self.remember(from, sequence);
    }

    fn remember(&mut self, peer: NodeId, sequence: WalSequence) {
        let remembered = self.peer_sequences.entry(peer).or_default();
        if sequence > *remembered {
            *remembered = sequence;
            self.unrecorded.insert(peer, sequence);
        }
    }

    pub(super) fn take_unrecorded(&mut self) -> BTreeMap<NodeId, WalSequence> {
        std::mem::take(&mut self.unrecorded)
    }

    /// A connection came up or went down: the peer may have restarted and must be checked again.
    fn forget_check(&mut self, node: NodeId) {
        self.peer_checks.remove(&node);
    }

    /// What a peer remembers of our log beyond what we recovered; `None` when it verifies us. Sequences of
    /// this incarnation, and those advertised to it since its first check, are not losses: it accepts them
    /// only after a check that found none, and an older heartbeat of ours arrived late.
    fn lost_according_to(&mut self, peer: NodeId, remembered: Option<WalSequence>) -> Option<WalSequence> {
        let advertised = *self.advertised.entry(peer).or_insert(self.recovered);
        let ours = first_sequence(self.incarnation)..=self.synced;
        remembered.filter(|remembered| *remembered > advertised && !ours.contains(remembered))
    }

    fn heartbeat_for(&mut self, peer: NodeId, wall_ms: u64, recovery_complete: bool) -> NodeHeartbeat {
        let (your_incarnation, you_lost_up_to) = self.peer_checks.get(&peer).copied().unwrap_or_default();
        let synced = match self.advertised.get_mut(&peer) {
            Some(advertised) => {
                *advertised = (*advertised).max(self.synced);
                *advertised
            }
            None => self.recovered,
        };
        NodeHeartbeat {
            incarnation: self.incarnation,
            recovered: self.recovered,
            synced,
            wall_ms,
            recovery_complete,
            your_incarnation,
            you_lost_up_to,
            leaders: Vec::new(),
            not_led: Vec::new(),
            versions: VersionRange::supported(),
        }
    }
}

impl NodeHeartbeat {
    /// Whether all sequences are ones a log can reach. An accepted sequence is stored durably, and may become
    /// the floor that later batches are numbered from.
    fn is_possible(&self) -> bool {
        let named = [self.recovered, self.synced, self.you_lost_up_to.unwrap_or_default()];
        named.iter().all(|sequence| *sequence < SEQUENCE_END)
    }
}

impl<T> Core<T> {
    /// Whether each replica was verified or abandoned, so that nothing lost can do harm any more. A node that
    /// recovered nothing must be checked too: it may have lost everything. Evidence does not replace the
    /// check here: the answer of a peer that remembers more still counts.
    fn is_recovery_complete(&self) -> bool {
        let checked = self.handshake.rolled_back || self.handshake.is_verified();
        checked && self.unverified == 0
    }

    /// Sends the heartbeats of a round. They name the leaders that are new since the last round, and some of
    /// the others in turn.
    pub(super) fn send_node_heartbeats(&mut self, effects: &mut Effects<T>) {
        let peers = self.handshake.peers.clone().unwrap_or_default();
        let leaders = self.schedule.announced.next_round(&self.raft);
        let not_led = self.rest.next_not_led();
        for peer in peers {
            self.send_node_heartbeat(peer, leaders.clone(), not_led.clone(), effects);
        }
    }

    /// Sends a heartbeat that names every shard led here, to a peer that may know none of them.
    fn send_whole_heartbeat(&mut self, peer: NodeId, effects: &mut Effects<T>) {
        let leaders = self.raft.led().filter_map(Announced::leader_of).collect();
        self.send_node_heartbeat(peer, leaders, Vec::new(), effects);
    }

    fn send_node_heartbeat(
        &mut self,
        peer: NodeId,
        leaders: Vec<(ShardId, Term)>,
        not_led: Vec<ShardId>,
        effects: &mut Effects<T>,
    ) {
        let recovery_complete = self.is_recovery_complete();
        let heartbeat = self.handshake.heartbeat_for(peer, self.wall_ms, recovery_complete);
        effects.node_heartbeats.push((peer, NodeHeartbeat { leaders, not_led, ..heartbeat }));
    }

    pub(super) fn on_peer_changed(&mut self, node: NodeId, connected: bool, effects: &mut Effects<T>) {
        self.handshake.forget_check(node);
        self.forget_fetches(node);
        self.wake_for_node(node, connected);
        if connected {
            self.send_whole_heartbeat(node, effects);
        }
    }

    /// Whether this node's wall clock is too far ahead to timestamp commands.
    pub(super) fn is_clock_ahead(&self) -> bool {
        let since_ms =
            self.now_ms.saturating_sub(CLOCK_HEARTBEATS * self.config.node_heartbeat_ticks * self.config.tick_ms);
        self.handshake.is_clock_ahead(self.now_ms, self.wall_ms, since_ms, self.config.clock_ahead_ms_max)
    }

    pub(super) fn on_node_heartbeat(&mut self, from: NodeId, heartbeat: NodeHeartbeat, effects: &mut Effects<T>) {
        if !heartbeat.is_possible() {
            tracing::debug!(peer = %from, "a node heartbeat names a log sequence that no log can reach");
            return;
        }
        self.handshake.clocks.insert(from, (heartbeat.wall_ms, self.now_ms));
        if heartbeat.wall_ms > self.wall_ms + self.config.clock_ahead_ms_max {
            if self.handshake.ahead.insert(from) {
                let ahead_ms = heartbeat.wall_ms - self.wall_ms;
                tracing::warn!(peer = %from, ahead_ms, "a peer's clock is too far ahead; ignoring it. Check NTP on both");
            }
            return;
        }
        self.handshake.ahead.remove(&from);
        self.rest.node_sent(from, self.ticks);
        self.wake_not_led(from, &heartbeat.not_led);
        self.note_peer_versions(from, &heartbeat, effects);
        let checked = self.handshake.peer_checks.get(&from);
        let is_first_check = checked.is_none_or(|(incarnation, _)| *incarnation != heartbeat.incarnation);
        let lost = self.handshake.check_peer(from, &heartbeat);
        if lost.is_none() {
            self.handshake.remember(from, heartbeat.synced);
        }
        if is_first_check {
            // The peer may be waiting for the result.
            self.send_whole_heartbeat(from, effects);
        }
        for (shard, term) in &heartbeat.leaders {
            effects.notices.push(Notice::Leader { shard: *shard, term: *term, node: Some(from) });
        }
        if heartbeat.your_incarnation == self.handshake.incarnation {
            match self.handshake.lost_according_to(from, heartbeat.you_lost_up_to) {
                None => {
                    if self.handshake.verified_by.insert(from) {
                        self.open_verified(effects);
                    }
                }
                Some(remembered) => self.on_rollback(from, remembered, effects),
            }
        }
    }

    /// Opens the group of every unverified replica that enough peers have verified by now.
    pub(super) fn open_verified(&mut self, effects: &mut Effects<T>) {
        self.open_verified_groups(effects);
        let handshake = &self.handshake;
        let none_forgotten = if handshake.rolled_back {
            !handshake.may_have_forgotten_replicas
        } else {
            // Any node may remember a replica that this one forgot altogether.
            handshake.is_verified_by_all() && (!handshake.verified_by.is_empty() || self.is_alone())
        };
        if handshake.in_doubt && none_forgotten && self.unverified == 0 {
            self.handshake.in_doubt = false;
            effects.log_complete = true;
        }
    }

    /// Whether there is nobody to ask: no other node is known, and this one alone votes in the metadata
    /// group, which would name one. A wiped or foreign folder has no such replica.
    fn is_alone(&self) -> bool {
        self.handshake.peers.as_ref().is_some_and(Vec::is_empty)
            && self.replicas.values().any(|replica| replica.shard == ShardId::META && replica.sole_voter)
    }

    fn open_verified_groups(&mut self, effects: &mut Effects<T>) {
        if self.unverified == 0 {
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
            if self.replicas.get(&id).is_some_and(|replica| replica.unverified) && self.is_verified_by_group(id, &state)
            {
                self.open_group(id, &state, Origin::Recovered, effects);
            }
        }
    }

    fn is_verified_by_group(&mut self, id: ReplicaId, state: &ReplicaLog) -> bool {
        if self.handshake.trusted {
            return true;
        }
        if self.replicas.get(&id).is_some_and(|replica| replica.sole_voter) {
            // Others may have become voters since. If they did, some node knows of later batches.
            return self.handshake.rolled_back || self.handshake.is_verified_by_all();
        }
        if self.replicas.get(&id).is_some_and(|replica| replica.recent_confs.is_none()) {
            let confs = self.recent_confs(id, state);
            if let Some(replica) = self.replicas.get_mut(&id) {
                replica.recent_confs = confs.map(Box::new);
            }
        }
        let recent = self.replicas.get(&id).and_then(|replica| replica.recent_confs.as_ref());
        recent.is_some_and(|recent| {
            recent.confs.iter().all(|conf| self.handshake.is_verified_by(self.node, conf, &recent.nodes))
        })
    }

    /// The configurations that may be in force at the end of a log: the last one that is known to be
    /// committed, and those after it.
    fn recent_confs(&self, id: ReplicaId, state: &ReplicaLog) -> Option<RecentConfs> {
        let position = &state.checkpoint.position;
        let mut conf = (*position.conf).clone();
        let mut confs = vec![conf.clone()];
        let mut nodes: BTreeMap<_, _> =
            position.descriptor.replicas.iter().map(|replica| (replica.replica, replica.node)).collect();
        for (index, change) in self.logged_changes(id, state)? {
            if let ConfChange::AddLearner { replica, node } = change {
                nodes.insert(replica, node);
            }
            // What the only voter has in its log is committed.
            let committed = index <= state.hard_state.commit || (conf.voters == [id] && !conf.is_joint());
            conf = change.after(&conf);
            if committed {
                confs.clear();
            }
            confs.push(conf.clone());
        }
        Some(RecentConfs { confs, nodes })
    }

    /// Whether a recovered replica is its group's only voter: its checkpoint says so, and its log adds no
    /// other voter.
    pub(super) fn is_sole_voter(&self, id: ReplicaId, state: &ReplicaLog) -> bool {
        let conf = &state.checkpoint.position.conf;
        if conf.voters != [id] || conf.is_joint() {
            return false;
        }
        let keeps_voters =
            |change: &ConfChange| matches!(change, ConfChange::AddLearner { .. } | ConfChange::RemoveLearner { .. });
        self.logged_changes(id, state).is_some_and(|changes| changes.iter().all(|(_, change)| keeps_voters(change)))
    }

    /// The configuration changes in a log after its checkpoint, with their indexes; `None` when they cannot
    /// be read.
    fn logged_changes(&self, id: ReplicaId, state: &ReplicaLog) -> Option<Vec<(LogIndex, ConfChange)>> {
        let mut changes = Vec::new();
        let mut next = state.truncated.0.max(state.checkpoint.position.index).next();
        while next <= state.last {
            let entries = self.log.entries(id, next, state.last.next(), READ_BYTES_MAX).ok()?;
            for entry in entries.iter().filter(|entry| entry.kind == EntryKind::ConfChange) {
                changes.push((entry.index, ConfChange::decode(&entry.context).ok()?));
            }
            next = entries.last()?.index.next();
        }
        Some(changes)
    }

    /// Reports replicas forgotten in an earlier incarnation: the metadata group must still find out which
    /// they are.
    pub(super) fn report_forgotten_replicas(&self, effects: &mut Effects<T>) {
        if self.handshake.may_have_forgotten_replicas {
            effects.notices.push(Notice::Lost { replicas: Vec::new(), reason: LostReason::RolledBack });
        }
    }

    /// Trusts the data folder again: every replica that it forgot has a tombstone by now.
    pub(super) fn trust_folder(&mut self, effects: &mut Effects<T>) {
        if std::mem::take(&mut self.handshake.may_have_forgotten_replicas) {
            effects.peer_sequences.push((self.node, TRUSTED));
            self.open_verified(effects);
        }
    }

    /// A peer remembers more of our log than we recovered, so recovered replicas may have forgotten votes and
    /// acknowledgements. Their ids get tombstones, and they come back under new ids, as learners. The only
    /// voter of a group stays: no other replica has anything better.
    ///
    /// `witness` is the node that remembers: a peer, or this node itself if its log has evidence.
    pub(super) fn on_rollback(&mut self, witness: NodeId, remembered: WalSequence, effects: &mut Effects<T>) {
        if std::mem::replace(&mut self.handshake.rolled_back, true) {
            return;
        }
        self.handshake.trusted = false;
        self.handshake.in_doubt = true;
        tracing::error!(
            %witness, %remembered, recovered = %self.handshake.recovered,
            "this node's log went backwards: more was synced than this data folder holds; abandoning its replicas"
        );
        effects.sequence_floor = Some(remembered);
        self.handshake.may_have_forgotten_replicas = true;
        effects.peer_sequences.push((self.node, remembered));
        let recovered: Vec<_> = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.recovered && !replica.sole_voter)
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
        self.open_verified(effects);
    }
}
