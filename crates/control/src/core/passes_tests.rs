//! Passes that look at what has changed do the same as passes that look at everything, whatever happens.

use flotilla_membership::NodeState;
use flotilla_meta::{CollectionSettings, MetaCommand, MetaReply, NodeState as AdminState, Setting};
use flotilla_placement::Sharding;
use flotilla_replication::{LostReason, ReplicaStatus, Role};
use flotilla_types::{NodeId, ReplicaId, ReplicaRole, ShardId};
use proptest::{collection::vec, prelude::*, sample::Index};

use super::{
    Action, Leaders, Lifecycle, Lost, Outcome, Placement, Reconciler, ShardsLed,
    testing::{Meta, World, leads, node, replica},
};

const NODES: u64 = 4;

#[derive(Debug, Clone)]
enum Step {
    Found(Vec<(u64, bool)>),
    Drop,
    Assign(Index, u64),
    Unassign(Index, Index),
    Report(Index),
    Admin(u64, AdminState),
    MetaReplicas(u64),
    Hear(u64, NodeState),
    /// The host has a replica that the metadata wants here, as a leader or not.
    Open(Index, bool),
    /// The host has a replica that is newer than the metadata.
    OpenUnknown(u64),
    Close(Index),
    Lose(Index),
    Change(Index, Status),
    Wait(u64),
    /// The metadata group answers what was proposed.
    Answer,
}

/// A change of a replica's status.
#[derive(Debug, Clone, Copy)]
enum Status {
    Lead,
    Follow,
    Commit,
    CatchUp,
    /// A replica that the metadata wants becomes a learner.
    Learn,
    /// All learners vote.
    Promote,
    Reconfigure,
    Joint,
    Transfer,
}

fn any_status() -> impl Strategy<Value = Status> {
    use Status::*;
    prop::sample::select(vec![Lead, Follow, Commit, CatchUp, Learn, Promote, Reconfigure, Joint, Transfer])
}

fn any_step() -> impl Strategy<Value = Step> {
    let admin = prop::sample::select(vec![AdminState::Active, AdminState::Draining, AdminState::Leaving]);
    let heard = prop::sample::select(vec![NodeState::Alive, NodeState::Suspect, NodeState::Down]);
    let any_node = 1..=NODES;
    prop_oneof![
        3 => vec((any_node.clone(), any::<bool>()), 1..4).prop_map(Step::Found),
        1 => Just(Step::Drop),
        3 => (any::<Index>(), any_node.clone()).prop_map(|(shard, to)| Step::Assign(shard, to)),
        3 => (any::<Index>(), any::<Index>()).prop_map(|(shard, held)| Step::Unassign(shard, held)),
        3 => any::<Index>().prop_map(Step::Report),
        1 => (any_node.clone(), admin).prop_map(|(node, state)| Step::Admin(node, state)),
        1 => (1_u64..4).prop_map(Step::MetaReplicas),
        2 => (any_node.clone(), heard).prop_map(|(node, state)| Step::Hear(node, state)),
        6 => (any::<Index>(), any::<bool>()).prop_map(|(shard, leads)| Step::Open(shard, leads)),
        // No id of the metadata: a replica never changes its shard.
        1 => (1_000_u64..1_020).prop_map(Step::OpenUnknown),
        1 => any::<Index>().prop_map(Step::Close),
        1 => any::<Index>().prop_map(Step::Lose),
        8 => (any::<Index>(), any_status()).prop_map(|(replica, change)| Step::Change(replica, change)),
        3 => prop::sample::select(vec![1, 1_000, 5_000, 40_000]).prop_map(Step::Wait),
        2 => Just(Step::Answer),
    ]
}

/// The two ways of passing: by what has changed, and by looking at everything.
#[derive(Default)]
struct Twins {
    lifecycles: [Lifecycle; 2],
    led: [ShardsLed; 2],
    leaders: [Leaders; 2],
    placements: [Placement; 2],
    proposed: Vec<MetaCommand>,
}

/// Takes a pass both ways, and returns the actions.
fn both<R: Reconciler>(world: &World, twins: &mut [R; 2], look_anew: fn(&mut R)) -> Result<Vec<Action>, TestCaseError> {
    let [by_changes, anew] = twins;
    look_anew(anew);
    let actions = world.reconcile(by_changes);
    prop_assert_eq!(&actions, &world.reconcile(anew), "{}", std::any::type_name::<R>());
    Ok(actions)
}

impl Twins {
    fn pass(&mut self, world: &World) -> Result<(), TestCaseError> {
        let actions = both(world, &mut self.lifecycles, Lifecycle::look_anew)?;
        both(world, &mut self.led, ShardsLed::look_anew)?;
        prop_assert_eq!(self.led[0].operations(), self.led[1].operations());
        both(world, &mut self.leaders, Leaders::look_anew)?;
        both(world, &mut self.placements, Placement::look_anew)?;
        let proposed = actions.into_iter().filter_map(|action| match action {
            Action::Propose(command) => Some(command),
            _ => None,
        });
        self.proposed = proposed.collect();
        Ok(())
    }

    fn take(&mut self, step: &Step, world: &mut World) {
        match step {
            Step::Wait(ms) => {
                world.now_ms += ms;
                world.wall_ms += ms;
            }
            Step::Hear(id, state) => world.hears(*id, *state),
            Step::Lose(at) if !world.replicas.is_empty() => {
                let lost = world.replicas.remove(at.index(world.replicas.len()));
                let lost = Lost { replicas: vec![(lost.shard, lost.replica)], reason: LostReason::Broken };
                self.lifecycles.iter_mut().for_each(|lifecycle| lifecycle.on_loss(&lost));
            }
            Step::Answer => {
                for command in &self.proposed {
                    world.meta.try_apply(command);
                    let answered = || Outcome::Answered(Box::new(command.clone()), MetaReply::Done);
                    self.lifecycles.iter_mut().for_each(|lifecycle| lifecycle.on_outcome(answered()));
                }
            }
            Step::Close(at) if !world.replicas.is_empty() => {
                world.replicas.remove(at.index(world.replicas.len()));
            }
            Step::OpenUnknown(id) if world.replicas.iter().all(|held| held.replica.0 != *id) => {
                world.replicas.push(replica(1, *id));
            }
            Step::Change(at, change) if !world.replicas.is_empty() => {
                let intent = world.meta.state();
                let at = at.index(world.replicas.len());
                let status = &mut world.replicas[at];
                let intent = intent.shard(status.shard).map_or(&[][..], |record| &record.intent);
                change_status(status, *change, intent.iter().map(|held| (held.node, held.replica)));
            }
            step => take_command(step, world),
        }
    }
}

fn change_status(status: &mut ReplicaStatus, change: Status, wanted: impl Iterator<Item = (NodeId, ReplicaId)>) {
    let me = status.replica;
    let Some(group) = status.group.as_mut() else { return };
    let other = group.conf.voters.iter().copied().find(|voter| *voter != me);
    match change {
        Status::Lead => (group.role, group.leader) = (Role::Leader, me),
        Status::Follow => (group.role, group.leader) = (Role::Follower, other.unwrap_or(ReplicaId::NONE)),
        Status::Commit => group.commit.0 += 1_000,
        Status::CatchUp => group.followers.iter_mut().for_each(|follower| follower.matched = group.commit),
        Status::Learn => {
            for (on, new) in wanted {
                if !group.conf.contains(new) && status.descriptor.replica_on(on).is_none() {
                    group.conf.learners.push(new);
                    let mut learner = leads(1, &[(on.0, new.0)], &[]).descriptor.replicas.remove(0);
                    learner.role = ReplicaRole::Learner;
                    status.descriptor.replicas.push(learner);
                    status.descriptor.epoch.config += 1;
                }
            }
        }
        Status::Promote => {
            group.conf.voters.append(&mut group.conf.learners);
            group.conf.voters_outgoing.clear();
            status.descriptor.replicas.iter_mut().for_each(|held| held.role = ReplicaRole::Voter);
            status.descriptor.epoch.config += 1;
        }
        Status::Reconfigure => status.descriptor.epoch.config += 1,
        Status::Joint => group.conf.voters_outgoing = group.conf.voters.clone(),
        Status::Transfer => group.transfers_to = group.transfers_to.xor(other),
    }
}

fn take_command(step: &Step, world: &mut World) {
    let state = world.meta.state();
    let shards: Vec<_> = state.shards().collect();
    let command = match step {
        Step::Found(on) => MetaCommand::CreateCollection {
            name: "c".to_owned(),
            sharding: Sharding::Hash,
            buckets: 8,
            replicas: 3,
            initial_nodes: on
                .iter()
                .map(|(first, three)| (0..if *three { 3 } else { 1 }).map(|i| node(1 + (first + i) % NODES)).collect())
                .collect(),
            settings: CollectionSettings::NONE,
        },
        Step::Drop => match state.collection("c") {
            Some(collection) => MetaCommand::DropCollection { collection: collection.id },
            None => return,
        },
        Step::Assign(at, to) => {
            let shard = at.get(&shards);
            MetaCommand::AssignReplica { shard: shard.id, node: node(*to), intent_version: shard.intent_version }
        }
        Step::Unassign(at, held) => {
            let shard = at.get(&shards);
            MetaCommand::UnassignReplica { shard: shard.id, replica: held.get(&shard.intent).replica }
        }
        Step::Report(at) if !world.replicas.is_empty() => {
            MetaCommand::ReportShard { descriptor: at.get(&world.replicas).descriptor.clone() }
        }
        Step::Admin(id, state) => MetaCommand::SetNodeState { node: node(*id), state: *state },
        Step::MetaReplicas(count) => {
            let (key, value) = (Setting::MetaReplicas.key().to_owned(), count.to_string());
            MetaCommand::PutSetting { key, value }
        }
        Step::Open(at, leads_it) => return open(world, at.get(&shards).id, *leads_it),
        _ => return,
    };
    world.meta.try_apply(&command);
}

/// The replica of the shard that is wanted on node 1, among the voters that are recorded.
fn open(world: &mut World, shard: ShardId, leads_it: bool) {
    let state = world.meta.state();
    let Some(record) = state.shard(shard) else { return };
    let Some(me) = record.desired_on(node(1)) else { return };
    if world.replicas.iter().any(|held| held.replica == me) {
        return;
    }
    let others = record.descriptor.replicas.iter().filter(|held| held.replica != me);
    let voters: Vec<_> = [(1, me.0)].into_iter().chain(others.map(|held| (held.node.0, held.replica.0))).collect();
    let mut status = leads(shard.0, &voters, &[]);
    (status.descriptor.epoch, status.descriptor.range) = (record.descriptor.epoch, record.descriptor.range.clone());
    world.replicas.push(status);
    if !leads_it && let Some(status) = world.replicas.last_mut() {
        change_status(status, Status::Follow, std::iter::empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 200 } else { 2_000 }))]

    #[test]
    fn passes_by_changes_equal_passes_over_everything(steps in vec((any_step(), any::<bool>()), 1..80)) {
        let mut meta = Meta::of_nodes(NODES);
        meta.raise();
        let mut world = World::new(1, meta);
        world.wall_ms = 1_000_000;
        world.replicas = vec![leads(0, &[(1, 1)], &[])];
        (2..=NODES).for_each(|id| world.hears(id, NodeState::Alive));
        let mut twins = Twins::default();
        for (step, passes) in &steps {
            twins.take(step, &mut world);
            if *passes {
                twins.pass(&world)?;
            }
        }
        twins.pass(&world)?;
    }
}
