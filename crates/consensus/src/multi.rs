//! All groups of a node behind one door, with a panic in one contained to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_storage::{Log, ReplicaLog};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, HardState, LogIndex, Message, ReplicaId, ShardDescriptor, ShardId, Term,
};

use crate::{ConfChange, Config, Group, GroupError, Origin, ProposeError, Role, group::Round};

/// Something happened.
#[derive(Debug)]
pub enum Input {
    /// One tick passed, for every group.
    Tick,
    /// A message arrived.
    Message(Message),
    /// The write with this number is durable, and all before it.
    Persisted {
        /// Whose write.
        replica: ReplicaId,
        /// Its number.
        number: u64,
    },
    /// The state machine applied everything up to here.
    Applied {
        /// Whose.
        replica: ReplicaId,
        /// Up to here.
        index: LogIndex,
    },
    /// A new checkpoint is durable, and entries up to `truncate` are gone from the log.
    Checkpointed {
        /// Whose.
        replica: ReplicaId,
        /// The checkpoint.
        checkpoint: Checkpoint,
        /// The last entry that is gone.
        truncate: Option<(LogIndex, Term)>,
    },
    /// A message to this replica was not delivered.
    Unreachable {
        /// Who sent.
        replica: ReplicaId,
        /// Who did not get it.
        to: ReplicaId,
    },
    /// A snapshot message was handed to the network, or not.
    SnapshotSent {
        /// Who sent.
        replica: ReplicaId,
        /// To whom.
        to: ReplicaId,
        /// Whether it went out.
        arrived: bool,
    },
    /// Hand leadership over.
    Transfer {
        /// Who leads.
        replica: ReplicaId,
        /// Who should.
        to: ReplicaId,
    },
    /// Campaign without waiting for the election timeout; pre-vote still decides. Nothing happens where a leader was heard so lately
    /// that it may count on this replica.
    Campaign {
        /// Who.
        replica: ReplicaId,
    },
}

/// A write that must be durable before `after` may leave.
#[derive(Debug)]
pub struct Persist {
    /// Whose write.
    pub replica: ReplicaId,
    /// To be reported back with [`Input::Persisted`], in order.
    pub number: u64,
    /// The hard state, when it must be written.
    pub hard_state: Option<HardState>,
    /// Entries to append, replacing what lies at or behind the first one's index.
    pub entries: Vec<Entry>,
    /// A checkpoint that replaces log and state. Comes before the entries.
    pub install: Option<Checkpoint>,
    /// Messages that wait for this write.
    pub after: Vec<Message>,
}

/// Committed entries, with the configuration after the last of them.
#[derive(Debug)]
pub struct CommittedEntries {
    /// Whose.
    pub replica: ReplicaId,
    /// The entries; a configuration change is always the last one of its batch.
    pub entries: Vec<Entry>,
    /// The configuration after them.
    pub conf: ConfState,
    /// The descriptor after them.
    pub descriptor: ShardDescriptor,
}

/// A read index was confirmed by a quorum.
#[derive(Debug)]
pub struct ReadReady {
    /// Whose.
    pub replica: ReplicaId,
    /// The context of the request.
    pub context: Bytes,
    /// Reads may be served once this index is applied.
    pub index: LogIndex,
}

/// A replica's role, term or leader changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleChange {
    /// Whose.
    pub replica: ReplicaId,
    /// What it does now.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader it knows, or [`ReplicaId::NONE`].
    pub leader: ReplicaId,
}

/// What the caller must do, in the order of the fields.
#[derive(Debug, Default)]
pub struct Effects {
    /// Roles that changed.
    pub roles: Vec<RoleChange>,
    /// Messages that may leave at once.
    pub sends: Vec<(ShardId, Message)>,
    /// Read indexes that were confirmed.
    pub reads: Vec<ReadReady>,
    /// Writes.
    pub persists: Vec<(ShardId, Persist)>,
    /// Entries to apply, in this order.
    pub committed: Vec<CommittedEntries>,
    /// Replicas whose followers need a fresh checkpoint.
    pub wants_checkpoint: Vec<ReplicaId>,
    /// Replicas that cannot go on. They are gone from the [`MultiRaft`].
    pub failed: Vec<(ReplicaId, GroupError)>,
}

/// All groups of a node.
pub struct MultiRaft {
    config: Config,
    log: Arc<dyn Log>,
    groups: BTreeMap<ReplicaId, Group>,
    dirty: BTreeSet<ReplicaId>,
    /// Since this life of the process began.
    ticks: usize,
}

impl MultiRaft {
    /// No groups yet.
    #[must_use]
    pub fn new(config: Config, log: Arc<dyn Log>) -> Self {
        Self { config, log, groups: BTreeMap::new(), dirty: BTreeSet::new(), ticks: 0 }
    }

    /// Opens a replica on what its log knows.
    pub fn open(
        &mut self,
        replica: ReplicaId,
        state: &ReplicaLog,
        origin: Origin,
        seed: u64,
    ) -> Result<(), GroupError> {
        let (config, log) = (&self.config, self.log.clone());
        let silent_ticks = match origin {
            Origin::Created => usize::MAX,
            Origin::Recovered => self.ticks,
        };
        let open = AssertUnwindSafe(|| Group::open(config, replica, log, state, seed, silent_ticks));
        let group = catch_unwind(open).unwrap_or(Err(GroupError::Library))?;
        self.groups.insert(replica, group);
        self.dirty.insert(replica);
        Ok(())
    }

    /// Forgets a replica.
    pub fn close(&mut self, replica: ReplicaId) {
        self.groups.remove(&replica);
        self.dirty.remove(&replica);
    }

    /// A replica of this node.
    #[must_use]
    pub fn group(&self, replica: ReplicaId) -> Option<&Group> {
        self.groups.get(&replica)
    }

    /// Every replica of this node, ordered.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// Takes an input in; [`drain`](Self::drain) brings the effects out, so that many inputs share one round.
    pub fn step(&mut self, input: Input, effects: &mut Effects) {
        match input {
            Input::Tick => {
                self.ticks = self.ticks.saturating_add(1);
                let replicas: Vec<_> = self.groups.keys().copied().collect();
                for replica in replicas {
                    self.with(replica, effects, Group::tick);
                }
            }
            Input::Message(message) => self.with(message.to, effects, |group| group.step(message)),
            Input::Persisted { replica, number } => self.with(replica, effects, |group| group.persisted(number)),
            Input::Applied { replica, index } => self.with(replica, effects, |group| group.applied(index)),
            Input::Checkpointed { replica, checkpoint, truncate } => {
                self.with(replica, effects, |group| group.set_checkpoint(checkpoint, truncate));
            }
            Input::Unreachable { replica, to } => self.with(replica, effects, |group| group.unreachable(to)),
            Input::SnapshotSent { replica, to, arrived } => {
                self.with(replica, effects, |group| group.snapshot_sent(to, arrived));
            }
            Input::Transfer { replica, to } => self.with(replica, effects, |group| group.transfer(to)),
            Input::Campaign { replica } => self.with(replica, effects, Group::campaign),
        }
    }

    /// Appends an entry on the leader; its term is the leader's current one.
    pub fn propose(
        &mut self,
        replica: ReplicaId,
        data: Bytes,
        effects: &mut Effects,
    ) -> Result<LogIndex, ProposeError> {
        self.ask(replica, effects, |group| group.propose(data))
    }

    /// Appends a configuration change on the leader.
    pub fn propose_change(
        &mut self,
        replica: ReplicaId,
        change: &ConfChange,
        effects: &mut Effects,
    ) -> Result<LogIndex, ProposeError> {
        self.ask(replica, effects, |group| group.propose_change(change))
    }

    /// Asks a quorum whether this replica still leads (dissertation §6.4). `context` must be unique across restarts; `now_ms` is what
    /// the caller's monotonic clock said before, and dates the lease that is earned when the quorum confirms.
    pub fn read_index(
        &mut self,
        replica: ReplicaId,
        context: Bytes,
        now_ms: u64,
        effects: &mut Effects,
    ) -> Result<(), ProposeError> {
        self.ask(replica, effects, |group| group.read_index(context, now_ms))
    }

    fn ask<T>(
        &mut self,
        replica: ReplicaId,
        effects: &mut Effects,
        question: impl FnOnce(&mut Group) -> Result<T, ProposeError>,
    ) -> Result<T, ProposeError> {
        let mut answer = Err(ProposeError::NotLeader);
        self.with(replica, effects, |group| answer = question(group));
        answer
    }

    /// raft-rs panics on what it takes for impossible; that must cost one replica, not the node.
    fn with(&mut self, replica: ReplicaId, effects: &mut Effects, act: impl FnOnce(&mut Group)) {
        let Some(group) = self.groups.get_mut(&replica) else { return };
        let failure = match catch_unwind(AssertUnwindSafe(|| act(group))) {
            Ok(()) => group.take_failure().map(GroupError::Log),
            Err(_) => Some(GroupError::Library),
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
            let run = catch_unwind(AssertUnwindSafe(|| run(group, effects)));
            let failure = match run {
                Ok(()) => group.take_failure().map(GroupError::Log),
                Err(_) => Some(GroupError::Library),
            };
            if let Some(error) = failure {
                self.fail(replica, error, effects);
            }
        }
    }
}

fn run(group: &mut Group, effects: &mut Effects) {
    loop {
        while let Some(round) = group.round() {
            take_round(group, round, effects);
        }
        if !group.step_down_if_removed() {
            break;
        }
    }
    group.keep_election_timeout();
    if group.take_wants_checkpoint() {
        effects.wants_checkpoint.push(group.replica());
    }
}

fn take_round(group: &mut Group, round: Round, effects: &mut Effects) {
    let (shard, replica) = (group.shard(), group.replica());
    if let Some((role, term, leader)) = round.role {
        effects.roles.push(RoleChange { replica, role, term, leader });
    }
    effects.sends.extend(round.sends.into_iter().map(|message| (shard, message)));
    effects.reads.extend(round.reads.into_iter().map(|(context, index)| ReadReady { replica, context, index }));
    hand_out(group, round.committed, effects);
    let persist = Persist {
        replica,
        number: round.number,
        hard_state: round.hard_state,
        entries: round.entries,
        install: round.install,
        after: round.after,
    };
    let writes = persist.hard_state.is_some() || !persist.entries.is_empty() || persist.install.is_some();
    if writes || (group.is_writing() && !persist.after.is_empty()) {
        effects.persists.push((shard, persist));
    } else {
        // Nothing to wait for.
        effects.sends.extend(persist.after.into_iter().map(|message| (shard, message)));
    }
    group.settle_if_idle();
}

/// Cuts committed entries behind each configuration change, so that every batch has one configuration after it.
fn hand_out(group: &mut Group, committed: Vec<Entry>, effects: &mut Effects) {
    let mut batch = Vec::with_capacity(committed.len());
    for entry in committed {
        let changes = entry.kind == EntryKind::ConfChange;
        if changes {
            // A change that does not fit changes nothing, on every replica alike.
            let _ = group.apply_change(&entry);
        }
        batch.push(entry);
        if changes {
            push(group, std::mem::take(&mut batch), effects);
        }
    }
    push(group, batch, effects);
}

fn push(group: &Group, entries: Vec<Entry>, effects: &mut Effects) {
    if !entries.is_empty() {
        effects.committed.push(CommittedEntries {
            replica: group.replica(),
            entries,
            conf: group.conf().clone(),
            descriptor: group.descriptor().clone(),
        });
    }
}
