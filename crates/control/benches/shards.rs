//! What the control loops of a node cost with many shards: a table of medians.
//!
//! Node 1 of three holds every shard, leads a third of them and the metadata group. *Idle* is a pass when
//! nothing has changed since the last one; *report* is the pass after one shard has reported a new
//! configuration and one replica here has committed an entry. The last rows are what a node does seldom, and
//! how seldom.

use std::time::{Duration, Instant};

use flotilla_control::{
    ClusterView, FeedFollower, Leaders, Lifecycle, LocalNode, MemberState, Placement, Reconciler, ShardsLed, View,
};
use flotilla_meta::{
    Addresses, CollectionSettings, Feed, Increment, JoinRequest, MetaCommand, MetaFollower, MetaState, NewNode,
    NodeRole, Setting, TokenId,
};
use flotilla_placement::Sharding;
use flotilla_replication::{Follower, GroupStatus, ReplicaStatus, Replicas, Role};
use flotilla_storage::Usage;
use flotilla_types::{
    ClusterId, ConfState, Incarnation, Locality, LogIndex, NodeId, ShardId, Term, Timestamp, VersionRange,
};

/// Passes that a median is of.
const PASSES: u64 = 41;
const NODES: u64 = 3;
/// Shards of one collection.
const COLLECTION: u64 = 1_000;
const ME: NodeId = NodeId(1);
/// Long after every node has joined and come up.
const NOW_MS: u64 = 100_000_000;

fn main() {
    println!("| shards | what | median |");
    println!("|---|---|---|");
    for shards in [1_000, 5_000, 20_000] {
        let mut world = World::new(shards);
        for (what, median) in world.table() {
            println!("| {shards} | {what} | {median:.1?} |");
        }
    }
}

struct World {
    follower: MetaFollower,
    cluster: ClusterView,
    replicas: Replicas,
    now_ms: u64,
    reports: u64,
}

impl World {
    fn new(shards: u64) -> Self {
        let mut follower = MetaFollower::default();
        let token = TokenId(1);
        apply(&mut follower, &MetaCommand::Bootstrap { cluster: ClusterId([1; 16]), node: new_node(1) });
        apply(
            &mut follower,
            &MetaCommand::CreateToken { id: token, hash: [1; 32], expires_at_ms: u64::MAX / 2, uses: 100 },
        );
        for id in 2..=NODES {
            let (node, versions, displaced, role) = (new_node(id), None, Vec::new(), NodeRole::default());
            let join = JoinRequest { token, secret_hash: [1; 32], node, versions, displaced, role };
            apply(&mut follower, &MetaCommand::Join(join));
        }
        let replicas = MetaCommand::PutSetting { key: Setting::MetaReplicas.key().to_owned(), value: "1".to_owned() };
        apply(&mut follower, &replicas);
        for collection in 0..shards / COLLECTION {
            // One shard less in all: the metadata group is one too.
            let buckets = COLLECTION - u64::from(collection == 0);
            let create = MetaCommand::CreateCollection {
                name: format!("c{collection}"),
                sharding: Sharding::Hash,
                buckets: u16::try_from(buckets).expect("few buckets"),
                replicas: 3,
                initial_nodes: (0..buckets).map(|_| (1..=NODES).map(NodeId).collect()).collect(),
                settings: CollectionSettings::NONE,
            };
            apply(&mut follower, &create);
        }
        let mut cluster = ClusterView::new(ME, MetaState::clone(follower.state()));
        for id in 2..=NODES {
            cluster.member_changed(NodeId(id), MemberState::Alive, 0);
        }
        let replicas: Replicas = follower.state().shards().map(replica).collect();
        for replica in replicas.iter() {
            cluster.observe_leader(replica.shard, Term(2), leader_of(replica.shard));
        }
        Self { follower, cluster, replicas, now_ms: NOW_MS, reports: 0 }
    }

    fn table(&mut self) -> Vec<(String, Duration)> {
        let mut table = Vec::new();
        let applied = median(|| {
            let report = self.next_report();
            timed(|| apply(&mut self.follower, &report)).1
        });
        table.push(("report applied".to_owned(), applied));
        let both = median(|| {
            let report = self.next_report();
            timed(|| {
                apply(&mut self.follower, &report);
                assert!(self.cluster.offer(self.follower.state()));
            })
            .1
        });
        table.push(("report applied, and in the routing map".to_owned(), both));
        self.passes("Lifecycle", &mut Lifecycle::default(), &mut table);
        self.passes("ShardsLed", &mut ShardsLed::default(), &mut table);
        self.passes("Leaders", &mut Leaders::default(), &mut table);
        self.passes("Placement", &mut Placement::default(), &mut table);
        let published = median(|| {
            let _reader = self.replicas.clone();
            timed(|| self.commit()).1
        });
        table.push(("status: one replica published while a reader holds the last version".to_owned(), published));
        let (mut feed, state) = (FeedFollower::default(), self.follower.state().clone());
        let next = median(|| timed(|| feed.next(NodeId(9), &state, &[], &self.replicas)).1);
        table.push(("FeedFollower: next".to_owned(), next));
        let cleared = median(|| timed(|| self.cluster.clear_leader(NodeId(9))).1);
        table.push(("leader hints: a node that leads nothing is cleared".to_owned(), cleared));
        self.seldom(&mut table);
        let saved = median(|| timed(|| state.encode().len()).1);
        table.push(("metadata encoded to be saved: a twentieth of the time".to_owned(), saved));
        table
    }

    fn passes(&mut self, name: &str, reconciler: &mut impl Reconciler, table: &mut Vec<(String, Duration)>) {
        self.pass(reconciler);
        self.pass(reconciler);
        table.push((format!("{name}: idle"), median(|| self.pass(reconciler))));
        let after_report = median(|| {
            let report = self.next_report();
            apply(&mut self.follower, &report);
            self.commit();
            self.pass(reconciler)
        });
        table.push((format!("{name}: report"), after_report));
    }

    fn seldom(&mut self, table: &mut Vec<(String, Duration)>) {
        let mut leaders = Leaders::default();
        self.pass(&mut leaders);
        let mut is_up = true;
        let computed = median(|| {
            is_up = !is_up;
            let state = if is_up { MemberState::Alive } else { MemberState::Down };
            self.cluster.member_changed(NodeId(NODES), state, self.now_ms);
            self.pass(&mut leaders)
        });
        table.push(("Leaders: a node goes or comes, or voters changed 10 s ago".to_owned(), computed));
        self.cluster.member_changed(NodeId(NODES), MemberState::Alive, self.now_ms);
        let mut placement = Placement::default();
        self.pass(&mut placement);
        let mut threshold = 0;
        let searched = median(|| {
            threshold = 1 - threshold;
            let (key, value) = (Setting::BalanceThreshold.key().to_owned(), threshold.to_string());
            apply(&mut self.follower, &MetaCommand::PutSetting { key, value });
            self.pass(&mut placement)
        });
        table.push(("Placement: all shards have become settled, a search for moves".to_owned(), searched));
        let planned = median(|| self.pass(&mut Placement::default()));
        table.push(("Placement: this node has become the leader".to_owned(), planned));
    }

    fn pass(&mut self, reconciler: &mut impl Reconciler) -> Duration {
        self.now_ms += 20_000;
        let me = LocalNode {
            node: ME,
            incarnation: Incarnation(0),
            addresses: Addresses::default(),
            locality: Locality::default(),
            versions: VersionRange::supported(),
            role: NodeRole::default(),
        };
        let state = self.follower.state().clone();
        let view = View {
            me: &me,
            meta: &state,
            members: self.cluster.members(),
            replicas: &self.replicas,
            now_ms: self.now_ms,
            wall_ms: self.now_ms,
        };
        timed(|| reconciler.reconcile(&view)).1
    }

    /// A shard that is led elsewhere reports that its configuration has changed.
    fn next_report(&mut self) -> MetaCommand {
        self.reports += 1;
        let state = self.follower.state();
        let led_elsewhere = state.shards().filter(|shard| leader_of(shard.id) != ME);
        let mut descriptor = led_elsewhere.last().expect("a shard").descriptor.clone();
        descriptor.epoch.config += 1;
        MetaCommand::ReportShard { descriptor }
    }

    /// One replica here commits an entry.
    fn commit(&mut self) {
        let mut status = self.replicas.of_shard(ShardId(500)).next().expect("a replica").clone();
        let group = status.group.as_mut().expect("a group");
        group.commit.0 += 1;
        group.last.0 += 1;
        self.replicas.set(status);
    }
}

fn apply(follower: &mut MetaFollower, command: &MetaCommand) {
    let previous = follower.state().version();
    let increment = Increment {
        previous,
        index: LogIndex(previous + 1),
        timestamp: Timestamp::from_millis(1_000),
        commands: vec![command.encode()],
    };
    assert_eq!(follower.apply(&Feed::Increments(vec![increment])), Ok(true), "{command:?}");
}

fn new_node(id: u64) -> NewNode {
    let addresses = Addresses { quic: format!("10.0.0.{id}:1"), ..Addresses::default() };
    let key_digest = [u8::try_from(id).expect("a small id"); 32];
    NewNode { name: format!("n{id}"), addresses, locality: Locality::default(), key_digest }
}

fn leader_of(shard: ShardId) -> NodeId {
    NodeId(1 + shard.0 % NODES)
}

/// The replica of a shard on node 1.
fn replica(record: &flotilla_meta::ShardRecord) -> ReplicaStatus {
    let descriptor = record.descriptor.clone();
    let held = |node| descriptor.replica_on(node).map(|held| held.replica);
    let me = held(ME).expect("every shard is here");
    let leader = held(leader_of(record.id)).expect("every node has every shard");
    let index = LogIndex(1_000);
    let voters: Vec<_> = descriptor.replicas.iter().map(|held| held.replica).collect();
    let follows =
        |replica: &_| Follower { replica: *replica, matched: index, recently_active: true, in_snapshot: false };
    let role = if leader == me { Role::Leader } else { Role::Follower };
    let group = GroupStatus {
        role,
        term: Term(2),
        leader,
        commit: index,
        last: index,
        truncated: LogIndex(0),
        followers: if leader == me { voters.iter().map(follows).collect() } else { Vec::new() },
        conf: ConfState::of_voters(voters),
        transfers_to: None,
        rests: true,
    };
    ReplicaStatus {
        shard: record.id,
        replica: me,
        descriptor,
        group: Some(group),
        applied: index,
        version: None,
        checkpoint: LogIndex(0),
        frozen: None,
        usage: Usage::default(),
        damaged: false,
    }
}

fn median(mut pass: impl FnMut() -> Duration) -> Duration {
    let mut passes: Vec<_> = (0..PASSES).map(|_| pass()).collect();
    passes.sort_unstable();
    passes[passes.len() / 2]
}

fn timed<R>(run: impl FnOnce() -> R) -> (R, Duration) {
    let start = Instant::now();
    let result = run();
    (result, start.elapsed())
}
