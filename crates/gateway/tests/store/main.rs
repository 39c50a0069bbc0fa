//! The store over a real shard host, in one process: outdated shard maps and causal time.
//!
//! The metadata has one shard of one collection at its first range epoch. The shard host has what became of
//! it, so whoever knows no more than the metadata is first refused.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_control::{Shards, Topology};
use flotilla_gateway::{Consistency, GatewayStart, Scan, ScanSnapshot, SnapshotId, Store, StoreError};
use flotilla_identity::{ClusterAuthority, NodeIdentity, NodeKey};
use flotilla_kv::{Action, Command, Expiry, KvMachine, Limits, Operation, Otherwise, encode_command};
use flotilla_meta::{
    Addresses, CollectionSettings, Feed, Increment, MetaCommand, MetaFollower, MetaState, NewNode, SeenNode,
};
use flotilla_placement::{Collection, Sharding};
use flotilla_replication::{Host, HostConfig, HostParts, clock};
use flotilla_route::AHEAD_MS_MAX;
use flotilla_storage::{MemoryEngine, MemoryLog};
use flotilla_transport::{BoxFuture, Class, Config, Handler, PeerState, Transport};
use flotilla_types::{
    ClusterId, ClusterVersion, Incarnation, Locality, LogIndex, NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole,
    ShardDescriptor, ShardId, Timestamp, VersionRange,
};

mod http;
mod values;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const ME: NodeId = NodeId(1);
/// The one shard that the metadata knows, and one that takes over a part of its keys.
const SHARD: ShardId = ShardId(1);
const HEIR: ShardId = ShardId(9);

/// No test calls this node.
struct Alone;

impl Handler for Alone {
    fn on_frame(&self, _: NodeId, _: Class, _: Bytes) {}

    fn on_datagram(&self, _: NodeId, _: Bytes) {}

    fn on_call(&self, _: NodeId, _: Class, _: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { Bytes::new() })
    }

    fn on_join(&self, _: SocketAddr, _: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { Bytes::new() })
    }

    fn on_peer(&self, _: NodeId, _: PeerState) {}

    fn admit(&self, _: NodeId) -> bool {
        false
    }
}

/// Metadata with one collection in one shard on this node, at a cluster version.
fn metadata(version: ClusterVersion) -> Arc<MetaState> {
    let mut follower = MetaFollower::default();
    let node = NewNode {
        name: "n1".to_owned(),
        addresses: Addresses { quic: "127.0.0.1:1".to_owned(), ..Addresses::default() },
        locality: Locality::default(),
        key_digest: [1; 32],
    };
    let create = MetaCommand::CreateCollection {
        name: "c".to_owned(),
        sharding: Sharding::Range,
        buckets: 1,
        replicas: 1,
        initial_nodes: vec![vec![ME]],
        settings: CollectionSettings::NONE,
    };
    let raises = (2..=version.0).map(|version| MetaCommand::SetClusterVersion {
        version: ClusterVersion(version),
        seen: vec![SeenNode { node: ME, incarnation: Incarnation(1), versions: VersionRange::supported() }],
    });
    for command in [MetaCommand::Bootstrap { cluster: CLUSTER, node }, create].into_iter().chain(raises) {
        let previous = follower.state().version();
        let (index, timestamp) = (LogIndex(previous + 1), Timestamp::from_millis(1));
        let increment = Increment { previous, index, timestamp, commands: vec![command.encode()] };
        assert_eq!(follower.apply(&Feed::Increments(vec![increment])), Ok(true), "{command:?}");
    }
    follower.state().clone()
}

/// One node: its shard host, and as many gateways as a test wants, each with its own view.
struct Node {
    meta: Arc<MetaState>,
    host: Host,
    network: Arc<Transport>,
    engine: Arc<MemoryEngine>,
}

impl Node {
    async fn start() -> Self {
        Self::start_at(ClusterVersion::FIRST).await
    }

    async fn start_at(version: ClusterVersion) -> Self {
        let authority = ClusterAuthority::mint(CLUSTER).expect("an authority");
        let key = NodeKey::generate().expect("a key");
        let csr = key.csr_der().expect("a request");
        let certificate = authority.issue(ME, &csr, u64::MAX).expect("a certificate");
        let identity = NodeIdentity::new(CLUSTER, ME, authority.cert_der().clone(), certificate, key);
        let config = Config::new(([127, 0, 0, 1], 0).into());
        let network = Transport::start(config, identity.expect("an identity"), Arc::new(Alone)).await;
        let network = Arc::new(network.expect("a free port"));
        let engine = Arc::new(MemoryEngine::default());
        let parts = HostParts {
            node: ME,
            incarnation: Incarnation(1),
            config: HostConfig::default(),
            log: Arc::new(MemoryLog::default()),
            engine: engine.clone(),
            values: engine.clone(),
            machines: Arc::new(|_| Box::new(KvMachine::new(Limits::default()))),
            lists: flotilla_values::list_refs,
            seed: 1,
            notices: Box::new(|_| {}),
            fatal: Arc::new(|error| panic!("{error}")),
        };
        let host = Host::start(parts, network.clone(), tokio::runtime::Handle::current()).expect("a host");
        host.handle().set_cluster_version(version);
        Self { meta: metadata(version), host, network, engine }
    }

    /// Creates a shard here that has this part of the collection's keys, at a later range epoch than the
    /// metadata's.
    fn create(&self, shard: ShardId, range_epoch: u64, first: &str, end: &str) -> ShardDescriptor {
        let mut descriptor = self.meta.shard(SHARD).expect("a shard").descriptor.clone();
        let collection = self.collection();
        descriptor.shard = shard;
        descriptor.epoch.range = range_epoch;
        if !first.is_empty() {
            descriptor.range.start = collection.record_key(first.as_bytes()).into_bytes();
        }
        if !end.is_empty() {
            descriptor.range.end = collection.record_key(end.as_bytes()).into_bytes();
        }
        let replica = ReplicaId(100 + shard.0);
        descriptor.replicas = vec![ReplicaDescriptor { replica, node: ME, role: ReplicaRole::Voter }];
        self.host.handle().create(replica, descriptor.clone(), true);
        descriptor
    }

    fn collection(&self) -> &Collection {
        self.meta.collection("c").expect("a collection")
    }

    /// A gateway that knows no more than the metadata.
    fn outdated(&self) -> Gateway {
        let topology = Arc::new(Topology::new(ME, MetaState::clone(&self.meta)));
        let shards = Shards::new(topology.clone(), self.host.handle(), self.network.clone());
        Gateway { store: Store::new(shards, self.engine.clone(), GatewayStart(next_start())), topology }
    }
}

/// A number that no other gateway of this process has.
fn next_start() -> u64 {
    static STARTS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    STARTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

struct Gateway {
    store: Store,
    topology: Arc<Topology>,
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn put(key: &str) -> Operation {
    let action = Action::Put { value: key.to_owned().into(), expiry: Expiry::Never, return_old: false };
    Operation { key: key.to_owned().into(), condition: None, otherwise: Otherwise::Refuse, action }
}

impl Gateway {
    async fn write(&self, keys: &[&str]) -> Result<ShardId, StoreError> {
        let operations = keys.iter().map(|key| put(key)).collect();
        self.store.write("c", Vec::new(), operations, deadline()).await.map(|written| written.shard)
    }

    /// Writes a key and returns its version.
    async fn version_of_write(&self, key: &str) -> Timestamp {
        let written = self.store.write("c", Vec::new(), vec![put(key)], deadline()).await;
        written.expect("it is written").timestamp
    }

    async fn write_one(&self, number: u32) -> Result<(), StoreError> {
        self.write(&[&format!("many {number}")]).await.map(|_| ())
    }

    /// The values under these keys.
    async fn get(&self, keys: &[&str]) -> Vec<Option<Bytes>> {
        let keys = keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect();
        let found = self.store.get("c", keys, true, Consistency::Strong, deadline()).await.expect("an answer");
        found.into_iter().map(|found| found.and_then(|found| found.value.into_inline().ok())).collect()
    }

    /// All keys, in pages.
    async fn scan(&self, items_max: usize) -> Vec<Bytes> {
        let mut keys = Vec::new();
        let mut from = None;
        loop {
            let scan = Scan { from, items_max, ..Scan::default() };
            let page = self.store.scan("c", scan, Consistency::Strong, deadline()).await.expect("an answer");
            keys.extend(page.records.into_iter().map(|record| record.key));
            from = page.cursor;
            if from.is_none() {
                return keys;
            }
        }
    }

    async fn count(&self) -> u64 {
        self.store.count("c", deadline()).await.expect("an answer").records
    }

    fn range_epoch(&self) -> Option<u64> {
        self.topology.map().shard(SHARD).map(|shard| shard.descriptor.epoch.range)
    }
}

fn values(keys: &[&'static str]) -> Vec<Option<Bytes>> {
    keys.iter().map(|key| Some(Bytes::from_static(key.as_bytes()))).collect()
}

#[tokio::test]
async fn every_kind_of_request_goes_on_when_the_range_epoch_has_grown() {
    let node = Node::start().await;
    node.create(SHARD, 2, "", "");
    assert_eq!(node.outdated().write(&["a", "b"]).await, Ok(SHARD));
    let conditional = node.outdated();
    let mut operation = put("c");
    operation.condition = Some(flotilla_kv::Condition::Absent);
    let written = conditional.store.write("c", Vec::new(), vec![operation], deadline()).await;
    assert_eq!(written.map(|written| written.shard), Ok(SHARD));
    assert_eq!(node.outdated().get(&["c", "none", "a"]).await, [values(&["c"]), vec![None], values(&["a"])].concat());
    assert_eq!(node.outdated().scan(10).await, [&b"a"[..], b"b", b"c"]);
    assert_eq!(node.outdated().count().await, 3);
    // One refusal tells all requests of a gateway.
    let gateway = node.outdated();
    let many = (0..50).map(|n| gateway.write_one(n));
    assert_eq!(futures_util::future::join_all(many).await, vec![Ok(()); 50]);
    assert_eq!(gateway.range_epoch(), Some(2));
    node.host.stop();
}

/// The refusal names the shard that kept its keys, and nothing has named the one that took over the others.
#[tokio::test]
async fn requests_for_keys_that_went_elsewhere_wait_until_their_shard_is_known() {
    let node = Node::start().await;
    node.create(SHARD, 2, "", "m");
    let heir = node.create(HEIR, 2, "m", "");
    let keys = ["a", "b", "m", "z"];
    let [write, get, scan, count, atomic] = [(); 5].map(|()| node.outdated());
    let requests = async {
        for key in keys {
            let shard = if key < "m" { SHARD } else { HEIR };
            assert_eq!(write.write(&[key]).await, Ok(shard), "{key}");
        }
        assert_eq!(get.get(&keys).await, values(&keys));
        assert_eq!(scan.scan(3).await, keys.map(Bytes::from));
        assert_eq!(count.count().await, 4);
        assert_eq!(atomic.write(&["b", "z"]).await, Err(StoreError::CrossShard));
    };
    let tell = async {
        for gateway in [&write, &get, &scan, &count, &atomic] {
            while gateway.range_epoch() != Some(2) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            gateway.topology.learn(SHARD, std::slice::from_ref(&heir));
        }
    };
    tokio::join!(requests, tell);
    node.host.stop();
}

/// More expired records than a page may pass over: the page ends without a record, and others go on after it.
#[tokio::test]
async fn a_long_range_of_expired_records_costs_pages_and_no_error() {
    const BATCHES: u32 = 45;
    const BATCH: u32 = 1_000;
    let node = Node::start().await;
    node.create(SHARD, 1, "", "");
    let gateway = node.outdated();
    let expires_at_ms = clock::wall_ms() + 3_000;
    for batch in 0..BATCHES {
        let expiring = |number: u32| {
            let key: Bytes = format!("e{:06}", batch * BATCH + number).into();
            let action =
                Action::Put { value: key.clone().into(), expiry: Expiry::At(expires_at_ms), return_old: false };
            Operation { key, condition: None, otherwise: Otherwise::Refuse, action }
        };
        let written = gateway.store.write("c", Vec::new(), (0..BATCH).map(expiring).collect(), deadline()).await;
        written.expect("it is written");
    }
    gateway.write(&["z"]).await.expect("it is written");
    while clock::wall_ms() <= expires_at_ms {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (mut from, mut empty_pages) = (None, 0);
    let records = loop {
        let scan = Scan { from, items_max: 10, ..Scan::default() };
        let page = gateway.store.scan("c", scan, Consistency::Strong, deadline()).await.expect("an answer");
        match page.cursor {
            None => break page.records,
            Some(cursor) => from = Some(cursor),
        }
        assert!(page.records.is_empty(), "{:?}", page.records);
        empty_pages += 1;
    };
    assert_eq!(records.iter().map(|record| &record.key[..]).collect::<Vec<_>>(), [b"z"]);
    assert!(empty_pages > 0, "one page passed over all of them");
    node.host.stop();
}

/// The time of one shard runs ahead of the wall clock, as it does after many writes within a millisecond.
#[tokio::test]
async fn a_write_is_later_than_what_its_gateway_has_read_in_another_shard() {
    let node = Node::start().await;
    let ranges = [node.create(SHARD, 2, "", "m"), node.create(HEIR, 2, "m", "")];
    let gateway = node.outdated();
    gateway.topology.learn(SHARD, &ranges);
    gateway.version_of_write("a").await;
    let ahead = Timestamp::from_millis(clock::wall_ms() + AHEAD_MS_MAX - 100);
    let moved = encode_command(&Command::empty());
    let moved = node.host.handle().propose(SHARD, None, ahead, moved, Duration::from_secs(20)).await;
    assert!(moved.is_ok_and(|moved| moved.clock > ahead));
    let reader = node.outdated();
    reader.topology.learn(SHARD, &ranges);
    assert_eq!(reader.get(&["a"]).await, values(&["a"]));
    let version = reader.version_of_write("z").await;
    assert!(version > ahead, "{version:?} follows {ahead:?}, which the reader has seen");
    node.host.stop();
}

#[tokio::test]
async fn pages_of_a_snapshot_see_each_shard_at_one_moment() {
    let node = Node::start().await;
    let ranges = [node.create(SHARD, 2, "", "m"), node.create(HEIR, 2, "m", "")];
    let gateway = node.outdated();
    gateway.topology.learn(SHARD, &ranges);
    // In each shard, one of many keys has a record, and each write moves it to the next.
    let keys = |of: &str| -> Vec<String> { (0..40).map(|number| format!("{of}{number:02}")).collect() };
    let moves = |keys: &[String], at: usize| {
        let delete = Operation { action: Action::Delete { return_old: false }, ..put(&keys[at % keys.len()]) };
        vec![delete, put(&keys[(at + 7) % keys.len()])]
    };
    let all = [keys("a"), keys("z")];
    for keys in &all {
        gateway.write(&[&keys[0]]).await.expect("it is written");
    }
    let mut moved = 0;
    for _ in 0..10 {
        let (mut snapshot, mut from, mut found) = (ScanSnapshot::Begin, None, Vec::new());
        loop {
            let scan = Scan { from, items_max: 1, snapshot: Some(snapshot), ..Scan::default() };
            let page = gateway.store.scan("c", scan, Consistency::Strong, deadline()).await.expect("a page");
            found.extend(page.records.iter().map(|record| record.key[0]));
            snapshot = ScanSnapshot::At(page.snapshot.expect("the page is of a snapshot"));
            for keys in &all {
                let written = gateway.store.write("c", Vec::new(), moves(keys, moved), deadline()).await;
                written.expect("it is written");
            }
            moved += 7;
            from = page.cursor;
            if from.is_none() {
                break;
            }
        }
        assert_eq!(found, b"az", "each shard has one record at any moment");
    }
    // One that no shard has, as after a restart or a change of leader.
    let unknown = Some(ScanSnapshot::At(SnapshotId(7)));
    let scan = Scan { items_max: 1, snapshot: unknown, ..Scan::default() };
    let expired = gateway.store.scan("c", scan, Consistency::Strong, deadline()).await;
    assert!(matches!(expired, Err(StoreError::SnapshotExpired { .. })), "{expired:?}");
    node.host.stop();
}

#[tokio::test]
async fn records_that_expire_meanwhile_stay_in_a_snapshot() {
    let node = Node::start().await;
    node.create(SHARD, 2, "", "");
    let gateway = node.outdated();
    let expires_at_ms = clock::wall_ms() + 5_000;
    for key in ["a", "b", "c"] {
        let action = Action::Put { value: Bytes::new().into(), expiry: Expiry::At(expires_at_ms), return_old: false };
        let written = gateway.store.write("c", Vec::new(), vec![Operation { action, ..put(key) }], deadline()).await;
        written.expect("it is written");
    }
    let page = async |snapshot, from| {
        let scan = Scan { from, items_max: 1, snapshot: Some(snapshot), ..Scan::default() };
        gateway.store.scan("c", scan, Consistency::Strong, deadline()).await.expect("a page")
    };
    let first = page(ScanSnapshot::Begin, None).await;
    assert_eq!(first.records.len(), 1);
    while clock::wall_ms() <= expires_at_ms {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let snapshot = ScanSnapshot::At(first.snapshot.expect("the page is of a snapshot"));
    assert_eq!(page(snapshot, first.cursor).await.records.first().map(|record| record.key.clone()), Some("b".into()));
    assert_eq!(gateway.scan(10).await, Vec::<Bytes>::new(), "without a snapshot they have expired");
    node.host.stop();
}
