//! Three real hosts, with threads, QUIC and state engines on a disk: a value goes from the node that stored it to all.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_identity::{ClusterAuthority, NodeIdentity, NodeKey};
use flotilla_kv::{KvMachine, Limits};
use flotilla_replication::{CommandRefs, Handle, Host, HostConfig, HostParts, RequestError, Role};
use flotilla_state::{Engine, Options};
use flotilla_storage::{MemoryLog, StateEngine, conformance::Referring};
use flotilla_transport::{BoxFuture, Class, Config, Handler, PeerState, Transport};
use flotilla_types::{
    ClusterId, ClusterVersion, Epoch, Holder, Incarnation, KeyRange, NodeId, ObjectId, ReplicaDescriptor, ReplicaId,
    ReplicaRole, ShardDescriptor, ShardId, Timestamp,
};
use flotilla_values::{Chunking, Cutter, Finished, ValueRef, list_refs};

const SHARD: ShardId = ShardId(1);
const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
const TIMEOUT: Duration = Duration::from_secs(30);

/// Passes what arrives to the host.
#[derive(Default)]
struct Passes(OnceLock<Handle>);

impl Handler for Passes {
    fn on_frame(&self, from: NodeId, _: Class, frame: Bytes) {
        if let Some(host) = self.0.get() {
            host.frame(from, frame);
        }
    }

    fn on_datagram(&self, _: NodeId, _: Bytes) {}

    fn on_call(&self, from: NodeId, _: Class, request: Bytes) -> BoxFuture<'static, Bytes> {
        let host = self.0.get().cloned();
        Box::pin(async move {
            match host {
                Some(host) => host.objects(from, request).await,
                None => Bytes::new(),
            }
        })
    }

    fn on_join(&self, _: std::net::SocketAddr, request: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { request })
    }

    fn on_peer(&self, peer: NodeId, state: PeerState) {
        if let Some(host) = self.0.get() {
            host.peer_changed(peer, state == PeerState::Connected);
        }
    }

    fn admit(&self, _: NodeId) -> bool {
        true
    }
}

struct Node {
    id: NodeId,
    host: Host,
    network: Arc<Transport>,
    engine: Arc<Engine>,
    _dir: tempfile::TempDir,
}

async fn start(authority: &ClusterAuthority, id: NodeId) -> Node {
    let key = NodeKey::generate().unwrap();
    let cert = authority.issue(id, &key.csr_der().unwrap(), u64::MAX).unwrap();
    let identity = NodeIdentity::new(authority.cluster(), id, authority.cert_der().clone(), cert, key).unwrap();
    let passes = Arc::new(Passes::default());
    let config = Config::new(([127, 0, 0, 1], 0).into());
    let network = Arc::new(Transport::start(config, identity, passes.clone()).await.unwrap());
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(Engine::open(dir.path(), Options::default()).unwrap());
    let parts = HostParts {
        node: id,
        incarnation: Incarnation(1),
        config: HostConfig::default(),
        log: Arc::new(MemoryLog::default()),
        engine: engine.clone(),
        machines: Arc::new(|_| Box::new(Referring::over(Box::new(KvMachine::new(Limits::default()))))),
        lists: list_refs,
        seed: id.0,
        notices: Box::new(|_| {}),
        fatal: Arc::new(|reason| panic!("{reason}")),
    };
    let host = Host::start(parts, network.clone(), tokio::runtime::Handle::current()).unwrap();
    assert!(passes.0.set(host.handle()).is_ok());
    Node { id, host, network, engine, _dir: dir }
}

/// Stores a value as a gateway does.
fn upload(engine: &Engine, content: &[u8]) -> ValueRef {
    let mut cutter = Cutter::new(Chunking::default(), content.len() as u64);
    let (mut rest, mut objects) = (content, Vec::new());
    while let Some(object) = cutter.push(&mut rest).unwrap() {
        objects.push(object);
    }
    let Finished { value, objects: last } = cutter.finish();
    objects.extend(last);
    engine.hold(Holder::Upload(1), &value.refs().ids().collect::<Vec<_>>());
    let find = |id: ObjectId| objects.iter().find(|object| object.id == id).unwrap().bytes.clone();
    let mut queue = value.refs().to_vec();
    while let Some(reference) = queue.pop() {
        let bytes = find(reference.id);
        let below = if reference.height > 0 { list_refs(&reference, &bytes).unwrap() } else { Vec::new() };
        let children: Vec<_> = below.iter().map(|below| below.id).collect();
        engine.import(reference.id, bytes, &children).unwrap();
        queue.extend(below);
    }
    engine.sync().unwrap();
    value
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < TIMEOUT, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn leader(nodes: &[Node]) -> Option<&Node> {
    nodes.iter().find(|node| {
        let status = node.host.handle().status();
        status.iter().any(|replica| replica.group.as_ref().is_some_and(|group| group.role == Role::Leader))
    })
}

/// Proposes until it is done: the leader may have changed, or may not know the version yet.
async fn write(nodes: &[Node], key: &[u8], value: &ValueRef, held_by: NodeId) {
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < TIMEOUT, "the value is not written");
        if let Some(leader) = leader(nodes) {
            let command = Referring::put(key, &value.encode(), &value.refs());
            let refs = CommandRefs::new(value.refs(), held_by);
            let answer =
                leader.host.handle().propose_referring(SHARD, None, Timestamp::ZERO, command, refs, TIMEOUT).await;
            match answer {
                Ok(_) => return,
                Err(RequestError::NotLeader { .. } | RequestError::VersionNotInForce) => {}
                Err(error) => panic!("{error}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_value_that_one_node_stored_is_on_the_disks_of_all_before_its_entry() {
    let authority = ClusterAuthority::mint(ClusterId([7; 16])).unwrap();
    let mut nodes = Vec::new();
    for id in NODES {
        nodes.push(start(&authority, id).await);
    }
    for node in &nodes {
        for peer in nodes.iter().filter(|peer| peer.id != node.id) {
            node.network.set_peer(peer.id, peer.network.local_addr());
        }
        let host = node.host.handle();
        host.set_peers(NODES.into_iter().filter(|peer| *peer != node.id).collect());
        host.set_cluster_version(ClusterVersion::VALUE_REFS);
        let on = |id: NodeId| ReplicaDescriptor { replica: ReplicaId(id.0), node: id, role: ReplicaRole::Voter };
        let epoch = Epoch { range: 1, config: 1 };
        let replicas = NODES.map(on).to_vec();
        let descriptor = ShardDescriptor { shard: SHARD, range: KeyRange::all(), epoch, replicas };
        host.create(ReplicaId(node.id.0), descriptor, true);
    }
    // Of more chunks than its reference names: there are lists.
    let contents = [3_000_000_usize, 20_000]
        .map(|len| (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect::<Vec<_>>());
    let mut all = Vec::new();
    for (round, content) in contents.iter().enumerate() {
        let gateway = &nodes[round + 1];
        let value = upload(&gateway.engine, content);
        write(&nodes, &[round as u8], &value, gateway.id).await;
        gateway.engine.hold(Holder::Upload(1), &[]);
        all.extend(value.refs().ids());
    }
    let records = |node: &Node| {
        let reader = node.engine.reader(ReplicaId(node.id.0)).unwrap();
        reader.scan(&Referring::range(), 9, 99_999).unwrap().len()
    };
    until("all have applied it", || nodes.iter().all(|node| records(node) == contents.len())).await;
    for node in &nodes {
        assert!(node.engine.missing(&all).is_empty(), "objects are missing on {}", node.id);
    }
    for Node { host, network, .. } in nodes {
        host.stop();
        network.close().await;
    }
}
