//! All groups of a node. A panic in one group fails that group only.
//!
//! Invariants: every group counts every tick, at the latest before its next input; a tick visits the groups
//! whose timers end with it, in the order of their ids. Nothing that is done for one input grows with the
//! number of groups.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_storage::{Log, ReplicaLog};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, HardState, LogIndex, Message, ReplicaId, ShardDescriptor, ShardId, Term,
};

use crate::{
    ChangeError, ConfChange, Config, Group, GroupError, Origin, ProposeError, Role, ShardChange, group::Round,
    timers::Timers,
};

/// An event that the caller feeds into the groups.
#[derive(Debug)]
pub enum Input {
    /// One tick has passed, for every group.
    Tick,
    /// A message arrived.
    Message(Message),
    /// The write with this number and all before it are durable.
    Persisted {
        /// The replica that wrote.
        replica: ReplicaId,
        /// [`Persist::number`].
        number: u64,
    },
    /// The state machine has applied every entry up to an index.
    Applied {
        /// The replica.
        replica: ReplicaId,
        /// The last applied entry.
        index: LogIndex,
    },
    /// A new checkpoint is durable, and the log is truncated up to `truncate`.
    Checkpointed {
        /// The replica.
        replica: ReplicaId,
        /// The checkpoint.
        checkpoint: Checkpoint,
        /// The last truncated entry.
        truncate: Option<(LogIndex, Term)>,
    },
    /// The log is truncated, under the same checkpoint.
    Truncated {
        /// The replica.
        replica: ReplicaId,
        /// The last truncated entry.
        to: (LogIndex, Term),
    },
    /// A message could not be delivered.
    Unreachable {
        /// The sender.
        replica: ReplicaId,
        /// The receiver.
        to: ReplicaId,
    },
    /// A snapshot message was delivered, or failed.
    SnapshotSent {
        /// The sender.
        replica: ReplicaId,
        /// The receiver.
        to: ReplicaId,
        /// Whether it was delivered.
        delivered: bool,
    },
    /// A follower has the snapshot that it was sent, or needs another one: until then it is sent the same one
    /// again, whatever the newest checkpoint is.
    OfferEnded {
        /// The sender.
        replica: ReplicaId,
        /// The receiver.
        to: ReplicaId,
    },
    /// Transfers leadership.
    Transfer {
        /// The leader.
        replica: ReplicaId,
        /// The voter that should lead.
        to: ReplicaId,
    },
    /// Something happened to a node on which a resting replica depends.
    Wake {
        /// The replica.
        replica: ReplicaId,
        /// The node of its leader has sent nothing for at least an election timeout.
        leader_is_silent: bool,
    },
    /// Campaigns without waiting for the election timeout; pre-vote still applies. Ignored while a leader may
    /// rely on this replica's promise not to elect another one.
    Campaign {
        /// The candidate.
        replica: ReplicaId,
    },
}

/// A write that must be durable before the messages in `after` may be sent.
#[derive(Debug)]
pub struct Persist {
    /// The replica that writes.
    pub replica: ReplicaId,
    /// Identifies the write in [`Input::Persisted`]; report writes in order.
    pub number: u64,
    /// The hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Entries to append; they replace all entries from the first one's index on.
    pub entries: Vec<Entry>,
    /// A checkpoint that replaces log and state; installed before the entries are appended.
    pub install: Option<Checkpoint>,
    /// Messages that wait for this write.
    pub after: Vec<Message>,
}

/// Committed entries, with the configuration and descriptor after the last of them.
#[derive(Debug)]
pub struct CommittedEntries {
    /// The replica that applies them.
    pub replica: ReplicaId,
    /// The entries; a change of the configuration or of the shard is always the last entry of its batch.
    pub entries: Vec<Entry>,
    /// The change of the shard that the last entry makes.
    pub shard_change: Option<ShardChange>,
    /// The configuration after them.
    pub conf: Arc<ConfState>,
    /// The descriptor after them.
    pub descriptor: Arc<ShardDescriptor>,
}

/// A quorum confirmed a read index.
#[derive(Debug)]
pub struct ReadReady {
    /// The leader that requested it.
    pub replica: ReplicaId,
    /// The context of the request.
    pub context: Bytes,
    /// Reads may be served once this index is applied.
    pub index: LogIndex,
}

/// A replica's role, term or leader changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleChange {
    /// The replica.
    pub replica: ReplicaId,
    /// Its new role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader it knows, or [`ReplicaId::NONE`].
    pub leader: ReplicaId,
}

/// The work that the caller must perform, in the order of the fields.
#[derive(Debug, Default)]
pub struct Effects {
    /// Roles that changed.
    pub roles: Vec<RoleChange>,
    /// Messages that may be sent at once.
    pub sends: Vec<(ShardId, Message)>,
    /// Confirmed read indexes.
    pub reads: Vec<ReadReady>,
    /// Writes to the log.
    pub persists: Vec<(ShardId, Persist)>,
    /// Entries to apply, in this order.
    pub committed: Vec<CommittedEntries>,
    /// Replicas with a follower that needs a newer checkpoint.
    pub wants_checkpoint: Vec<ReplicaId>,
    /// Replicas that rest now, also those that had rested already: they may have another leader.
    pub rests: Vec<ReplicaId>,
    /// Replicas that rested and do not any more.
    pub wakes: Vec<ReplicaId>,
    /// Replicas that failed and were removed from the [`MultiRaft`].
    pub failed: Vec<(ReplicaId, GroupError)>,
}

/// All groups of a node.
pub struct MultiRaft {
    config: Config,
    log: Arc<dyn Log>,
    /// In boxes: a map has room for about as many groups as it holds.
    groups: BTreeMap<ReplicaId, Box<Group>>,
    /// Groups with input since the last drain.
    dirty: BTreeSet<ReplicaId>,
    timers: Timers,
    /// Ticks since the process started.
    ticks: usize,
    /// Groups that ticks have visited since then.
    visits: u64,
    /// Leaders as of the last drain.
    leaders: BTreeSet<ReplicaId>,
    /// Groups that were drained since the caller last asked.
    drained: BTreeSet<ReplicaId>,
    /// Groups that rest, as of the last drain.
    resting: BTreeSet<ReplicaId>,
    /// Whether leaders may let their groups rest.
    may_rest: bool,
    /// Replicas whose election timeout has ended and that wait for their turn to campaign.
    campaigns: BTreeSet<ReplicaId>,
    /// The last replica that had its turn.
    last_campaign: ReplicaId,
    /// Replicas that campaign at one tick, at most.
    campaigns_max: usize,
}

impl MultiRaft {
    /// Creates a core without groups.
    #[must_use]
    pub fn new(config: Config, log: Arc<dyn Log>) -> Self {
        Self {
            config,
            log,
            groups: BTreeMap::new(),
            dirty: BTreeSet::new(),
            timers: Timers::default(),
            ticks: 0,
            visits: 0,
            leaders: BTreeSet::new(),
            drained: BTreeSet::new(),
            resting: BTreeSet::new(),
            may_rest: false,
            campaigns: BTreeSet::new(),
            last_campaign: ReplicaId::NONE,
            campaigns_max: usize::MAX,
        }
    }

    /// From now on leaders may let their groups rest: every member understands
    /// [`MessageKind::Rest`](flotilla_types::MessageKind).
    pub fn allow_rest(&mut self) {
        self.may_rest = true;
    }

    /// From now on at most so many replicas campaign at one tick because their election timeout has ended. The
    /// others have their turn at later ticks. A node whose every group campaigns at once has no time for the
    /// answers, and the elections are repeated without end.
    pub fn limit_campaigns(&mut self, per_tick: usize) {
        self.campaigns_max = per_tick;
    }

    /// The number of groups that rest.
    #[must_use]
    pub fn resting(&self) -> usize {
        self.resting.len()
    }

    /// Opens a replica from its log. `seed` determines its election timeouts. A recovered one rests until
    /// [`Input::Wake`] or a message for it, unless it is of the metadata.
    pub fn open(
        &mut self,
        replica: ReplicaId,
        state: &ReplicaLog,
        origin: Origin,
        seed: u64,
    ) -> Result<(), GroupError> {
        let (config, log, tick) = (&self.config, self.log.clone(), self.ticks);
        let ticks_since_leader = match origin {
            Origin::Created | Origin::Heir => usize::MAX,
            Origin::Recovered => self.ticks,
        };
        let open = AssertUnwindSafe(|| {
            if origin == Origin::Heir {
                return Group::open_leading(config, replica, log, state, seed, tick);
            }
            Group::open(config, replica, log, state, seed, tick, ticks_since_leader)
        });
        let mut group = catch_unwind(open).unwrap_or_else(|_| {
            // What the group's store has noted is lost with it. raft-rs reads this term when it begins.
            let unreadable = self.log.term(replica, state.last).err();
            Err(unreadable.map_or(GroupError::Library, GroupError::Log))
        })?;
        if matches!(origin, Origin::Recovered) {
            group.rest_until_woken();
        }
        self.groups.insert(replica, Box::new(group));
        self.dirty.insert(replica);
        Ok(())
    }

    /// Removes a replica; its log is unchanged.
    pub fn close(&mut self, replica: ReplicaId) {
        self.groups.remove(&replica);
        self.dirty.remove(&replica);
        self.timers.remove(replica);
        self.campaigns.remove(&replica);
        self.leaders.remove(&replica);
        self.resting.remove(&replica);
    }

    /// A replica of this node.
    #[must_use]
    pub fn group(&self, replica: ReplicaId) -> Option<&Group> {
        self.groups.get(&replica).map(Box::as_ref)
    }

    /// Every replica of this node, ordered.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values().map(Box::as_ref)
    }

    /// The groups that this node leads as of the last drain, ordered.
    pub fn led(&self) -> impl Iterator<Item = &Group> {
        self.leaders.iter().filter_map(|replica| self.group(*replica))
    }

    /// As [`led`](Self::led), those after a replica only.
    pub fn led_after(&self, replica: ReplicaId) -> impl Iterator<Item = &Group> {
        self.leaders.range((Bound::Excluded(replica), Bound::Unbounded)).filter_map(|replica| self.group(*replica))
    }

    /// The replicas whose status may have changed since the last call.
    pub fn take_drained(&mut self) -> BTreeSet<ReplicaId> {
        std::mem::take(&mut self.drained)
    }

    /// Groups that ticks have visited so far. It grows by the timers that end, not by the groups there are.
    #[must_use]
    pub fn tick_visits(&self) -> u64 {
        self.visits
    }

    /// Feeds an input. [`drain`](Self::drain) collects the resulting work, so that many inputs share one
    /// round; `effects` only reports failed replicas here.
    pub fn step(&mut self, input: Input, effects: &mut Effects) {
        match input {
            Input::Tick => {
                self.ticks = self.ticks.saturating_add(1);
                self.end_timers(effects);
            }
            Input::Message(message) => self.with(message.to, effects, |group| group.step(message)),
            Input::Persisted { replica, number } => self.with(replica, effects, |group| group.persisted(number)),
            Input::Applied { replica, index } => self.with(replica, effects, |group| group.applied(index)),
            Input::Checkpointed { replica, checkpoint, truncate } => {
                self.with(replica, effects, |group| group.set_checkpoint(checkpoint, truncate));
            }
            Input::Truncated { replica, to } => self.with(replica, effects, |group| group.truncate(to)),
            Input::Unreachable { replica, to } => self.with(replica, effects, |group| group.unreachable(to)),
            Input::SnapshotSent { replica, to, delivered } => {
                self.with(replica, effects, |group| group.snapshot_sent(to, delivered));
            }
            Input::OfferEnded { replica, to } => self.with(replica, effects, |group| group.end_offer(to)),
            Input::Transfer { replica, to } => self.with(replica, effects, |group| group.transfer(to)),
            Input::Wake { replica, leader_is_silent } => {
                self.with(replica, effects, |group| group.wake(leader_is_silent));
            }
            Input::Campaign { replica } => self.with(replica, effects, Group::campaign),
        }
    }

    /// Visits the groups whose timers end with this tick, and those with undrained input, whose timers are
    /// not queued yet.
    fn end_timers(&mut self, effects: &mut Effects) {
        let mut due = self.timers.take_due(self.ticks);
        due.extend(&self.dirty);
        self.visits += due.len() as u64;
        for replica in due {
            let Some(group) = self.groups.get_mut(&replica) else { continue };
            if self.may_rest && group.try_rest(self.ticks) {
                self.dirty.insert(replica);
                continue;
            }
            match group.timer_ends_at() {
                // Input has postponed it.
                Some(tick) if tick > self.ticks && !self.dirty.contains(&replica) => {
                    self.timers.visit_at(replica, tick);
                }
                Some(tick) if tick <= self.ticks && group.ends_in_election() => {
                    if group.shard() == ShardId::META {
                        self.with(replica, effects, Group::campaign_if_due);
                    } else {
                        self.campaigns.insert(replica);
                    }
                }
                _ => self.with(replica, effects, |_| {}),
            }
        }
        self.start_campaigns(effects);
    }

    /// Lets the replicas campaign whose turn it is, those after the last one first.
    fn start_campaigns(&mut self, effects: &mut Effects) {
        for _ in 0..self.campaigns_max {
            let after = (Bound::Excluded(self.last_campaign), Bound::Unbounded);
            let next = self.campaigns.range(after).next().or_else(|| self.campaigns.first()).copied();
            let Some(replica) = next else { return };
            self.campaigns.remove(&replica);
            self.last_campaign = replica;
            self.with(replica, effects, Group::campaign_if_due);
        }
    }

    /// Appends an entry on the leader, in its current term.
    pub fn propose(
        &mut self,
        replica: ReplicaId,
        data: Bytes,
        effects: &mut Effects,
    ) -> Result<LogIndex, ProposeError> {
        self.with_result(replica, effects, |group| group.propose(data))
    }

    /// Appends a configuration change on the leader.
    pub fn propose_change(
        &mut self,
        replica: ReplicaId,
        change: &ConfChange,
        effects: &mut Effects,
    ) -> Result<LogIndex, ProposeError> {
        self.with_result(replica, effects, |group| group.propose_change(change))
    }

    /// Appends a change of the shard on the leader.
    pub fn propose_shard_change(
        &mut self,
        replica: ReplicaId,
        change: &ShardChange,
        effects: &mut Effects,
    ) -> Result<LogIndex, ProposeError> {
        self.with_result(replica, effects, |group| group.propose_shard_change(change))
    }

    /// Asks a quorum whether this replica still leads (dissertation §6.4). `context` must be unique across
    /// restarts. `now_ms` is the caller's monotonic clock, read before this call: the lease starts then, if a
    /// quorum confirms.
    pub fn read_index(
        &mut self,
        replica: ReplicaId,
        context: Bytes,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<(), ProposeError> {
        self.with_result(replica, effects, |group| group.read_index(context, now_ms))
    }

    fn with_result<T>(
        &mut self,
        replica: ReplicaId,
        effects: &mut Effects,
        act: impl FnOnce(&mut Group) -> Result<T, ProposeError>,
    ) -> Result<T, ProposeError> {
        let mut result = Err(ProposeError::NotLeader);
        self.with(replica, effects, |group| result = act(group));
        result
    }

    /// Runs `act` on a group and contains panics: raft-rs panics on states it considers impossible, which
    /// must fail one replica and not the node.
    fn with(&mut self, replica: ReplicaId, effects: &mut Effects, act: impl FnOnce(&mut Group)) {
        let Some(group) = self.groups.get_mut(&replica) else { return };
        let tick = self.ticks;
        let act = || {
            group.advance_to(tick);
            act(group);
        };
        let failure = match catch_unwind(AssertUnwindSafe(act)) {
            Ok(()) => group.take_failure().map(GroupError::Log),
            Err(_) => Some(after_panic(group)),
        };
        match failure {
            None => {
                self.dirty.insert(replica);
            }
            Some(error) => self.fail(replica, error, effects),
        }
    }

    fn fail(&mut self, replica: ReplicaId, error: GroupError, effects: &mut Effects) {
        self.close(replica);
        effects.failed.push((replica, error));
    }

    /// Collects the work of every group that was touched since the last call.
    pub fn drain(&mut self, effects: &mut Effects) {
        while let Some(replica) = self.dirty.pop_first() {
            let Some(group) = self.groups.get_mut(&replica) else { continue };
            let drained = catch_unwind(AssertUnwindSafe(|| drain_group(group, effects)));
            let failure = match drained {
                Ok(drained) => drained.err().or_else(|| group.take_failure().map(GroupError::Log)),
                Err(_) => Some(after_panic(group)),
            };
            self.drained.insert(replica);
            if let Some(error) = failure {
                self.fail(replica, error, effects);
                continue;
            }
            if group.role().0 == Role::Leader {
                self.leaders.insert(replica);
            } else {
                self.leaders.remove(&replica);
            }
            if group.is_resting() {
                self.resting.insert(replica);
                effects.rests.push(replica);
            } else if self.resting.remove(&replica) {
                effects.wakes.push(replica);
            }
            if let Some(tick) = group.timer_ends_at() {
                self.timers.visit_at(replica, tick);
            }
        }
    }
}

/// Why raft-rs panicked. It panics when the log cannot be read, which is no fault of the replica.
fn after_panic(group: &mut Group) -> GroupError {
    group.take_failure().map_or(GroupError::Library, GroupError::Log)
}

fn drain_group(group: &mut Group, effects: &mut Effects) -> Result<(), GroupError> {
    loop {
        while let Some(round) = group.round() {
            collect_round(group, round, effects)?;
        }
        if !group.step_down_if_removed() {
            break;
        }
    }
    group.keep_election_timeout();
    let shard = group.shard();
    effects.sends.extend(group.take_rest_messages().into_iter().map(|message| (shard, message)));
    if group.take_wants_checkpoint() {
        effects.wants_checkpoint.push(group.replica());
    }
    Ok(())
}

fn collect_round(group: &mut Group, round: Round, effects: &mut Effects) -> Result<(), GroupError> {
    let (shard, replica) = (group.shard(), group.replica());
    let has_write = round.has_write();
    if let Some((role, term, leader)) = round.role {
        effects.roles.push(RoleChange { replica, role, term, leader });
    }
    effects.sends.extend(round.sends.into_iter().map(|message| (shard, message)));
    effects.reads.extend(round.reads.into_iter().map(|(context, index)| ReadReady { replica, context, index }));
    deliver_committed(group, round.committed, effects)?;
    let persist = Persist {
        replica,
        number: round.number,
        hard_state: round.hard_state,
        entries: round.entries,
        install: round.install,
        after: round.after,
    };
    if has_write || (group.is_writing() && !persist.after.is_empty()) {
        effects.persists.push((shard, persist));
    } else {
        // There is no write to wait for.
        effects.sends.extend(persist.after.into_iter().map(|message| (shard, message)));
    }
    group.persist_empty_rounds();
    Ok(())
}

/// Splits committed entries behind each change, so that one configuration and one descriptor hold after every
/// batch, and before it for all its entries. Nothing is delivered behind a change that this binary does not
/// know.
fn deliver_committed(group: &mut Group, committed: Vec<Entry>, effects: &mut Effects) -> Result<(), GroupError> {
    let mut batch = Vec::with_capacity(committed.len());
    for entry in committed {
        let kind = entry.kind;
        let change = match kind {
            EntryKind::Normal => Ok(None),
            EntryKind::ConfChange => group.apply_change(&entry).map(|()| None),
            EntryKind::Shard => group.apply_shard_change(&entry).map(Some),
        };
        let shard_change = match change {
            Ok(shard_change) => shard_change,
            // It may have an effect on other replicas.
            Err(ChangeError::Version { found, known }) => return Err(GroupError::Version { found, known }),
            // It has no effect, on any replica.
            Err(ChangeError::Malformed | ChangeError::NotApplicable) => None,
        };
        batch.push(entry);
        if kind != EntryKind::Normal {
            push(group, std::mem::take(&mut batch), shard_change, effects);
        }
    }
    push(group, batch, None, effects);
    Ok(())
}

fn push(group: &Group, entries: Vec<Entry>, shard_change: Option<ShardChange>, effects: &mut Effects) {
    if !entries.is_empty() {
        effects.committed.push(CommittedEntries {
            replica: group.replica(),
            entries,
            shard_change,
            conf: group.conf().clone(),
            descriptor: group.descriptor().clone(),
        });
    }
}
