//! Tests of the machine, its records and its followers under random commands.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use flotilla_hostile::{Proportion, attack, mutated};
use flotilla_placement::Sharding;
use flotilla_storage::{EngineError, VersionNeed, version_need};
use flotilla_types::{
    ClusterId, CollectionId, Epoch, Incarnation, KeyRange, Locality, LogIndex, NodeId, Refs, ReplicaDescriptor,
    ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Term, VersionRange,
};
use proptest::prelude::*;

use super::*;
use crate::{
    Addresses, CollectionSettings, FeedError, JoinRequest, MetaCommand, MetaFollower, MetaRefusal, NewNode, NodeRole,
    NodeState, SeenNode, TokenId,
};

/// Records in a map, with small pages so that loading needs several.
#[derive(Default)]
struct Records(BTreeMap<Bytes, Bytes>);

impl Records {
    fn write(&mut self, writes: WriteSet) {
        for (key, value) in writes {
            match value {
                Some(value) => self.0.insert(key, value.into_bytes()),
                None => self.0.remove(&key),
            };
        }
    }
}

impl StateReader for Records {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, range: &KeyRange, items_max: usize, _: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let found = self.0.iter().filter(|(key, _)| range.contains(key));
        Ok(found.take(items_max.min(3)).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

fn descriptor() -> ShardDescriptor {
    ShardDescriptor { shard: ShardId::META, range: KeyRange::all(), epoch: Epoch::default(), replicas: Vec::new() }
}

/// A machine with its records, as a host would run it.
struct Host {
    machine: MetaMachine,
    records: Records,
    index: u64,
    published: Arc<Mutex<Vec<u64>>>,
}

impl Host {
    fn new() -> Self {
        let published = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&published);
        let publish: Publish = Box::new(move |state| seen.lock().expect("no panic while held").push(state.version()));
        Self { machine: MetaMachine::new(publish), records: Records::default(), index: 1, published }
    }

    fn apply(&mut self, commands: &[Bytes]) -> Result<Vec<MetaReply>, MachineError> {
        self.index += 1;
        let descriptor = descriptor();
        let context = ApplyContext {
            index: LogIndex(self.index),
            term: Term(1),
            timestamp: Timestamp::from_millis(self.index * 100),
            descriptor: &descriptor,
            refs: &Refs::NONE,
        };
        let mut writes = Vec::new();
        let replies = self.machine.apply(&context, commands, &self.records, &mut writes)?;
        self.records.write(writes);
        Ok(replies.iter().map(|reply| MetaReply::decode(reply).expect("own reply")).collect())
    }

    fn run(&mut self, commands: &[MetaCommand]) -> Vec<MetaReply> {
        let bytes: Vec<Bytes> = commands.iter().map(MetaCommand::encode).collect();
        self.apply(&bytes).expect("known format")
    }

    fn read(&self, query: &[u8]) -> Feed {
        let descriptor = descriptor();
        let context = ReadContext { descriptor: &descriptor, now: Timestamp::ZERO };
        Feed::decode(&self.machine.read(&context, query, &self.records).expect("readable")).expect("own feed")
    }
}

fn new_node(number: u8) -> NewNode {
    NewNode {
        name: format!("n{number}"),
        addresses: Addresses { quic: format!("h{}:1", number % 4), ..Addresses::default() },
        locality: Locality::default(),
        key_digest: [number; 32],
    }
}

fn bootstrap() -> MetaCommand {
    MetaCommand::Bootstrap { cluster: ClusterId([1; 16]), node: new_node(0) }
}

fn reported(shard: u64, config: u64, replica: u64) -> ShardDescriptor {
    let replica = ReplicaDescriptor { replica: ReplicaId(replica), node: NodeId(1), role: ReplicaRole::Voter };
    let epoch = Epoch { range: 1, config };
    ShardDescriptor { shard: ShardId(shard), range: KeyRange::all(), epoch, replicas: vec![replica] }
}

fn any_command() -> impl Strategy<Value = MetaCommand> {
    let single = prop_oneof![
        1 => Just(bootstrap()),
        2 => (0_u64..3, 1_u32..4, 0_u64..6_000).prop_map(|(id, uses, expires_at_ms)| MetaCommand::CreateToken { id: TokenId(id), hash: [3; 32], expires_at_ms, uses }),
        1 => (0_u64..3).prop_map(|id| MetaCommand::RevokeToken { id: TokenId(id) }),
        4 => (0_u64..3, 0_u8..8).prop_map(|(token, number)| MetaCommand::Join(JoinRequest { token: TokenId(token), secret_hash: [3; 32], node: new_node(number), versions: None, displaced: Vec::new(), role: NodeRole::default() })),
        2 => (0_u64..6, 0_u64..4).prop_map(|(node, incarnation)| MetaCommand::UpdateNode { node: NodeId(node), incarnation: Incarnation(incarnation), addresses: new_node(9).addresses, locality: Locality::default(), versions: (incarnation == 3).then_some(VersionRange::supported()) }),
        1 => (0_u64..8).prop_map(|nodes| MetaCommand::SetClusterVersion { version: ClusterVersion(2), seen: (1..=nodes).map(|node| SeenNode { node: NodeId(node), incarnation: Incarnation(9), versions: VersionRange::supported() }).collect() }),
        1 => (0_u64..6, 0_usize..6).prop_map(|(node, state)| MetaCommand::SetNodeState { node: NodeId(node), state: [NodeState::Active, NodeState::Draining, NodeState::Removed, NodeState::Lost, NodeState::Leaving, NodeState::Decommissioning][state] }),
        1 => (0_u64..6).prop_map(|node| MetaCommand::CompleteLeave { node: NodeId(node) }),
        1 => (0_u64..6, 0_u64..4).prop_map(|(node, incarnation)| MetaCommand::ReportStart { node: NodeId(node), incarnation: Incarnation(incarnation), build: "1".to_owned() }),
        2 => (0_usize..3, 1_u16..4, 1_u64..4).prop_map(|(name, buckets, node)| MetaCommand::CreateCollection { name: ["a", "b", "c"][name].to_owned(), sharding: Sharding::Hash, buckets, replicas: 3, initial_nodes: vec![vec![NodeId(node)]; buckets.into()], settings: CollectionSettings::NONE }),
        1 => (1_u32..5).prop_map(|collection| MetaCommand::DropCollection { collection: CollectionId(collection) }),
        4 => (0_u64..5, 1_u64..5, 1_u64..4).prop_map(|(shard, node, intent_version)| MetaCommand::AssignReplica { shard: ShardId(shard), node: NodeId(node), intent_version }),
        2 => (0_u64..5, 1_u64..12).prop_map(|(shard, replica)| MetaCommand::UnassignReplica { shard: ShardId(shard), replica: ReplicaId(replica) }),
        1 => (0_u64..5, 1_u64..12).prop_map(|(shard, replica)| MetaCommand::ReplaceReplica { shard: ShardId(shard), replica: ReplicaId(replica) }),
        4 => (0_u64..5, 0_u64..4, 1_u64..12).prop_map(|(shard, config, replica)| MetaCommand::ReportShard { descriptor: reported(shard, config, replica) }),
        1 => (1_000_u64..9_000).prop_map(|value| MetaCommand::PutSetting { key: "dead_node_grace_ms".to_owned(), value: value.to_string() }),
    ];
    let single = single.boxed();
    prop_oneof![8 => single.clone(), 1 => proptest::collection::vec(single, 0..4).prop_map(MetaCommand::Batch)]
}

fn any_entries() -> impl Strategy<Value = Vec<Vec<MetaCommand>>> {
    proptest::collection::vec(proptest::collection::vec(any_command(), 0..4), 0..40).prop_map(|mut entries| {
        entries.insert(0, vec![bootstrap()]);
        entries
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn follower_equals_the_leader_at_every_version(entries in any_entries(), fetches in proptest::collection::vec(any::<bool>(), 41)) {
        let mut host = Host::new();
        let mut eager = MetaFollower::default();
        let mut lazy = MetaFollower::default();
        for (entry, ask) in entries.iter().zip(fetches) {
            host.run(entry);
            for (follower, fetches) in [(&mut eager, true), (&mut lazy, ask)] {
                if fetches {
                    let feed = host.read(&MetaQuery::FeedSince(follower.resume_version()).encode());
                    follower.apply(&feed).expect("follows");
                    prop_assert_eq!(follower.state(), host.machine.state());
                }
            }
        }
    }

    #[test]
    fn restored_machine_equals_the_original(entries in any_entries()) {
        let mut host = Host::new();
        entries.iter().for_each(|entry| { host.run(entry); });
        let mut restored = MetaMachine::new(Box::new(|_| ()));
        restored.restore(&host.machine.system(), &host.records).expect("restores");
        prop_assert_eq!(restored.state(), host.machine.state());
        prop_assert_eq!(restored.system(), host.machine.system());
        let copy = MetaState::decode(&host.machine.state().encode()).expect("decodes");
        prop_assert_eq!(&copy, host.machine.state().as_ref());
    }

    #[test]
    fn ids_are_never_allocated_twice(entries in any_entries()) {
        let mut host = Host::new();
        let mut replicas = BTreeMap::new();
        for entry in &entries {
            host.run(entry);
            for shard in host.machine.state().shards() {
                for held in &shard.intent {
                    let owner = (shard.id, held.node);
                    prop_assert_eq!(*replicas.entry(held.replica).or_insert(owner), owner);
                }
            }
        }
    }
}

/// Decoding metadata builds tables of named objects, and many names are only two bytes long.
const TABLES: Proportion = Proportion { base: 64 << 10, per_byte: 160 };

#[test]
fn hostile_commands_are_answered_and_leave_a_valid_state() {
    let deeds =
        (any_entries(), proptest::collection::vec(mutated(any_command().prop_map(|command| command.encode())), 1..6));
    attack(150, deeds, |(entries, commands)| {
        let mut host = Host::new();
        entries.iter().take(8).for_each(|entry| {
            host.run(entry);
        });
        for mut command in commands {
            // A newer format must stop the replica.
            if command.first().is_some_and(|format| *format > 2) {
                command[0] = 1;
            }
            let _ = TABLES.of(command.len(), || MetaCommand::decode(&command));
            assert_eq!(host.apply(&[command.into()]).expect("of a known format").len(), 1);
        }
        // The resulting state can be stored, loaded and followed.
        let copy = MetaState::decode(&host.machine.state().encode()).expect("decodes");
        assert_eq!(&copy, host.machine.state().as_ref());
        let mut restored = MetaMachine::new(Box::new(|_| ()));
        restored.restore(&host.machine.system(), &host.records).expect("restores");
        assert_eq!(restored.state(), host.machine.state());
    });
}

#[test]
fn hostile_queries_replies_and_feeds_cost_memory_in_proportion() {
    let valid = any_entries().prop_flat_map(|entries| {
        let mut host = Host::new();
        let replies: Vec<_> =
            entries.iter().take(8).flat_map(|entry| host.run(entry)).map(|reply| reply.encode()).collect();
        let state = host.machine.state().encode();
        let mut all = vec![
            state.clone(),
            Feed::Snapshot(state).encode(),
            host.machine.feed_since(2).encode(),
            MetaQuery::FeedSince(3).encode(),
            host.machine.system(),
        ];
        all.extend(replies);
        mutated(proptest::sample::select(all))
    });
    let mut whole = Host::new();
    whole.run(&[bootstrap()]);
    attack(500, valid, |bytes| {
        let _ = TABLES.of(bytes.len(), || MetaReply::decode(&bytes));
        let _ = TABLES.of(bytes.len(), || MetaQuery::decode(&bytes));
        let _ = TABLES.of(bytes.len(), || MetaState::decode(&bytes));
        if let Ok(feed) = TABLES.of(bytes.len(), || Feed::decode(&bytes)) {
            let mut follower = MetaFollower::default();
            let before = Arc::clone(follower.state());
            if follower.apply(&feed).is_err() {
                assert_eq!(follower.state(), &before, "a refused feed changes nothing");
            }
        }
        let _ = MetaFollower::default().apply(&Feed::Snapshot(bytes.clone().into()));
        let _ = whole.read(&bytes);
    });
}

#[test]
fn hostile_records_and_system_states_are_refused_or_loaded() {
    let damage = (any_entries(), any::<prop::sample::Index>(), any::<bool>()).prop_flat_map(|(entries, at, system)| {
        let mut host = Host::new();
        entries.iter().take(8).for_each(|entry| {
            host.run(entry);
        });
        let (records, state) = (host.records.0.clone(), host.machine.system());
        let (key, value) = records
            .iter()
            .nth(at.index(records.len()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .expect("a record");
        (Just(records), Just(state.clone()), Just(key), mutated(Just(if system { state } else { value })), Just(system))
    });
    attack(200, damage, |(mut records, state, key, bytes, system)| {
        let state = if system {
            Bytes::from(bytes)
        } else {
            records.insert(key, bytes.into());
            state
        };
        let mut machine = MetaMachine::new(Box::new(|_| ()));
        let before = Arc::clone(machine.state());
        if machine.restore(&state, &Records(records)).is_err() {
            assert_eq!(machine.state(), &before, "corrupt records are not partly loaded");
        }
    });
}

#[test]
fn only_changes_are_written_and_published() {
    let mut host = Host::new();
    host.run(&[bootstrap()]);
    assert_eq!(*host.published.lock().expect("not poisoned"), [2]);
    host.run(&[bootstrap(), MetaCommand::RevokeToken { id: TokenId(1) }]);
    host.run(&[]);
    assert_eq!(*host.published.lock().expect("not poisoned"), [2]);
    assert_eq!(host.machine.state().version(), 2);
    let setting = MetaCommand::PutSetting { key: "meta_replicas".to_owned(), value: "5".to_owned() };
    let records = host.records.0.clone();
    host.run(&[setting]);
    let changed = host.records.0.iter().filter(|(key, value)| records.get(*key) != Some(value)).count();
    assert_eq!(changed, 2, "the header and the setting");
    assert_eq!(*host.published.lock().expect("not poisoned"), [2, 5]);
    host.machine.restore(&host.machine.system(), &host.records).expect("restores");
    assert_eq!(*host.published.lock().expect("not poisoned"), [2, 5, 5]);
}

#[test]
fn gap_makes_a_follower_start_over() {
    let mut host = Host::new();
    host.run(&[bootstrap()]);
    let mut follower = MetaFollower::default();
    follower.apply(&host.machine.feed_since(0)).expect("snapshot");
    assert_eq!(follower.resume_version(), 2);
    for id in 0..3 {
        host.run(&[MetaCommand::CreateToken { id: TokenId(id), hash: [0; 32], expires_at_ms: 99_999, uses: 1 }]);
    }
    let gap = host.machine.feed_since(3);
    assert_eq!(follower.apply(&gap), Err(FeedError::Gap { have: 2, previous: 3 }));
    assert_eq!(follower.resume_version(), 0);
    let all = host.read(&MetaQuery::FeedSince(follower.resume_version()).encode());
    assert!(matches!(all, Feed::Snapshot(_)));
    assert_eq!(follower.apply(&all), Ok(true));
    assert_eq!((follower.state(), follower.resume_version()), (host.machine.state(), 5));
}

#[test]
fn follower_never_goes_backwards() {
    let mut host = Host::new();
    host.run(&[bootstrap()]);
    let old = host.read(&MetaQuery::State.encode());
    host.run(&[MetaCommand::CreateToken { id: TokenId(1), hash: [0; 32], expires_at_ms: 99_999, uses: 1 }]);
    let mut follower = MetaFollower::default();
    follower.apply(&host.machine.feed_since(0)).expect("snapshot");
    assert_eq!(follower.apply(&old), Err(FeedError::Backwards { have: 3, offered: 2 }));
    assert_eq!((follower.resume_version(), follower.state()), (3, host.machine.state()));
    assert_eq!(host.machine.feed_since(99), Feed::UpToDate, "a lagging node has nothing newer");
}

#[test]
fn increment_without_effect_is_an_error() {
    let mut host = Host::new();
    host.run(&[bootstrap()]);
    let mut follower = MetaFollower::default();
    follower.apply(&host.machine.feed_since(0)).expect("snapshot");
    let idle =
        Increment { previous: 2, index: LogIndex(3), timestamp: Timestamp(1), commands: vec![bootstrap().encode()] };
    assert_eq!(follower.apply(&Feed::Increments(vec![idle])), Err(FeedError::Diverged { index: 3 }));
    assert_eq!(follower.apply(&Feed::Refused), Err(FeedError::Refused));
}

#[test]
fn newer_format_stops_the_replica_and_garbage_does_not() {
    let mut host = Host::new();
    host.run(&[bootstrap()]);
    let garbage = [&b""[..], &[0], &[1], &[1, 0xff, 0xff]].map(Bytes::from_static);
    let replies = host.apply(&garbage).expect("answered");
    assert_eq!(replies, vec![MetaReply::Refused(MetaRefusal::Malformed); 4]);
    let ClusterVersion(newest) = VersionRange::supported().max;
    let newer = host.apply(&[Bytes::copy_from_slice(&[newest as u8 + 1, 1])]);
    assert!(matches!(newer, Err(MachineError::Version { found, known }) if (found, known) == (newest + 1, newest)));
    assert_eq!(host.read(&[9, 9]), Feed::Refused);
}

#[test]
fn records_of_another_position_are_refused() {
    let mut host = Host::new();
    host.run(&[bootstrap()]);
    let system = host.machine.system();
    host.run(&[MetaCommand::PutSetting { key: "meta_replicas".to_owned(), value: "5".to_owned() }]);
    let mut other = MetaMachine::new(Box::new(|_| ()));
    assert!(matches!(other.restore(&system, &host.records), Err(MachineError::Corrupt(_))));
    assert!(matches!(other.restore(&[], &host.records), Err(MachineError::Corrupt(_))));
    let header = host.records.0.keys().find(|key| key.ends_with(b"header")).expect("header").clone();
    host.records.0.remove(&header);
    assert!(matches!(other.restore(&host.machine.system(), &host.records), Err(MachineError::Corrupt(_))));
}

#[test]
fn only_a_raised_cluster_writes_what_old_binaries_refuse() {
    let mut host = Host::new();
    host.run(&[bootstrap()]);
    let first =
        |host: &Host| host.records.0.values().all(|value| value[0] == 1) && host.machine.state().encode()[0] == 1;
    assert!(first(&host));
    let seen = vec![SeenNode { node: NodeId(1), incarnation: Incarnation(0), versions: VersionRange::supported() }];
    let raise = MetaCommand::SetClusterVersion { version: ClusterVersion(2), seen };
    assert_eq!(version_need(&raise.encode()), VersionNeed::Raises(ClusterVersion(2)));
    assert_eq!(host.run(&[raise]), [MetaReply::Done]);
    let header = host.records.0.iter().find(|(key, _)| key.ends_with(b"header")).expect("a header").1;
    assert_eq!((header[0], host.machine.state().encode()[0]), (2, 2));
    let mut restored = MetaMachine::new(Box::new(|_| ()));
    restored.restore(&host.machine.system(), &host.records).expect("restores");
    assert_eq!(restored.state(), host.machine.state());
}
