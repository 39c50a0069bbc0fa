//! Three real hosts, with threads, QUIC and state engines on a disk: a value goes from the node that stored it to all.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_identity::{ClusterAuthority, NodeIdentity, NodeKey};
use flotilla_kv::{KvMachine, Limits};
use flotilla_replication::{
    CommandRefs, FetchError, Fetched, Handle, Host, HostConfig, HostParts, LinkTraffic, RequestError, Role,
};
use flotilla_state::{Engine, Options};
use flotilla_storage::{MemoryEngine, MemoryLog, StateEngine, UploadError, ValueObjects, conformance::Referring};
use flotilla_transport::{BoxFuture, Class, Config, Handler, PeerState, Transport};
use flotilla_types::{
    ClusterId, ClusterVersion, Epoch, Incarnation, KeyRange, NodeId, Refs, ReplicaDescriptor, ReplicaId, ReplicaRole,
    ShardDescriptor, ShardId, Timestamp,
};
use flotilla_values::{Chunking, Finished, ValueRef, cut, list_refs};

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

struct Node<E> {
    id: NodeId,
    host: Host,
    network: Arc<Transport>,
    engine: Arc<E>,
}

async fn start<E: StateEngine + ValueObjects>(authority: &ClusterAuthority, id: NodeId, engine: E) -> Node<E> {
    let key = NodeKey::generate().unwrap();
    let cert = authority.issue(id, &key.csr_der().unwrap(), u64::MAX).unwrap();
    let identity = NodeIdentity::new(authority.cluster(), id, authority.cert_der().clone(), cert, key).unwrap();
    let passes = Arc::new(Passes::default());
    let config = Config::new(([127, 0, 0, 1], 0).into());
    let network = Arc::new(Transport::start(config, identity, passes.clone()).await.unwrap());
    let engine = Arc::new(engine);
    let parts = HostParts {
        node: id,
        incarnation: Incarnation(1),
        config: HostConfig::default(),
        log: Arc::new(MemoryLog::default()),
        engine: engine.clone(),
        values: engine.clone(),
        machines: Arc::new(|_| Box::new(Referring::over(Box::new(KvMachine::new(Limits::default()))))),
        lists: list_refs,
        seed: id.0,
        notices: Box::new(|_| {}),
        fatal: Arc::new(|reason| panic!("{reason}")),
    };
    let host = Host::start(parts, network.clone(), tokio::runtime::Handle::current()).unwrap();
    assert!(passes.0.set(host.handle()).is_ok());
    Node { id, host, network, engine }
}

/// Stores a value as a gateway does, for an upload.
fn upload(values: &dyn ValueObjects, upload: u64, content: &[u8]) -> ValueRef {
    let Finished { value, objects } = cut(content, Chunking::default()).unwrap();
    values.begin_upload(upload, TIMEOUT).unwrap();
    for object in objects {
        let children: Vec<_> = object.children().collect();
        values.store(upload, object.id, object.bytes, &children).unwrap();
    }
    values.sync().unwrap();
    value
}

/// Bytes that do not repeat.
fn content(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// Hosts that know each other.
async fn start_all<E: StateEngine + ValueObjects>(engines: impl Fn(NodeId) -> E) -> Vec<Node<E>> {
    let authority = ClusterAuthority::mint(ClusterId([7; 16])).unwrap();
    let mut nodes = Vec::new();
    for id in NODES {
        nodes.push(start(&authority, id, engines(id)).await);
    }
    for node in &nodes {
        for peer in nodes.iter().filter(|peer| peer.id != node.id) {
            node.network.set_peer(peer.id, peer.network.local_addr());
        }
        let host = node.host.handle();
        host.set_peers(NODES.into_iter().filter(|peer| *peer != node.id).collect());
        host.set_cluster_version(ClusterVersion::VALUE_REFS);
    }
    nodes
}

async fn stop_all<E>(nodes: Vec<Node<E>>) {
    for Node { host, network, .. } in nodes {
        host.stop();
        network.close().await;
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < TIMEOUT, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn leader<E>(nodes: &[Node<E>]) -> Option<&Node<E>> {
    nodes.iter().find(|node| {
        let status = node.host.handle().status();
        status.iter().any(|replica| replica.group.as_ref().is_some_and(|group| group.role == Role::Leader))
    })
}

/// Proposes until it is done: the leader may have changed, or may not know the version yet.
async fn write<E>(nodes: &[Node<E>], key: &[u8], value: &ValueRef, held_by: NodeId) {
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
    let dirs = NODES.map(|_| tempfile::tempdir().unwrap());
    let open = |id: NodeId| Engine::open(dirs[id.0 as usize - 1].path(), Options::default()).unwrap();
    let nodes = start_all(open).await;
    for node in &nodes {
        let host = node.host.handle();
        let on = |id: NodeId| ReplicaDescriptor { replica: ReplicaId(id.0), node: id, role: ReplicaRole::Voter };
        let epoch = Epoch { range: 1, config: 1 };
        let replicas = NODES.map(on).to_vec();
        let descriptor = ShardDescriptor { shard: SHARD, range: KeyRange::all(), epoch, replicas };
        host.create(ReplicaId(node.id.0), descriptor, true);
    }
    // Of more chunks than its reference names: there are lists.
    let contents = [3_000_000, 20_000].map(content);
    let mut all = Vec::new();
    for (round, content) in contents.iter().enumerate() {
        let gateway = &nodes[round + 1];
        let value = upload(&*gateway.engine, 1, content);
        write(&nodes, &[round as u8], &value, gateway.id).await;
        gateway.engine.end_upload(1);
        all.extend(value.refs().ids());
    }
    let records = |node: &Node<Engine>| {
        let reader = node.engine.reader(ReplicaId(node.id.0)).unwrap();
        reader.scan(&Referring::range(), 9, 99_999).unwrap().len()
    };
    until("all have applied it", || nodes.iter().all(|node| records(node) == contents.len())).await;
    for node in &nodes {
        assert!(node.engine.missing(&all).is_empty(), "objects are missing on {}", node.id);
    }
    stop_all(nodes).await;
}

#[tokio::test]
async fn what_a_reader_lacks_is_fetched_from_other_nodes_and_held_by_its_upload() {
    // An object that nobody holds is gone at once.
    let nodes = start_all(|_| MemoryEngine::default()).await;
    let (reader, held_by) = (&nodes[0], &nodes[1]);
    let contents = [content(3_000_000), content(400_000).into_iter().rev().collect()];
    let values = contents.map(|content| upload(&*held_by.engine, 1, &content));
    // The third node has one of them.
    upload(&*nodes[2].engine, 1, &content(3_000_000));
    let refs: Refs = values.iter().flat_map(|value| value.refs().to_vec()).collect();
    let ids: Vec<_> = refs.ids().collect();
    let (host, upload) = (reader.host.handle(), 9);
    let fetch = async |from: NodeId, timeout| host.fetch(upload, &refs, vec![reader.id, from], timeout).await;

    let ended = fetch(held_by.id, TIMEOUT).await;
    assert!(matches!(ended, Err(FetchError::Upload(UploadError::Ended(9)))), "{ended:?}");
    reader.engine.begin_upload(upload, TIMEOUT).unwrap();
    assert!(matches!(fetch(held_by.id, Duration::ZERO).await, Err(FetchError::Deadline)));
    let partly = fetch(nodes[2].id, TIMEOUT).await;
    assert!(matches!(partly, Err(FetchError::Missing)), "{partly:?}");
    let lacks = |value: &ValueRef| !reader.engine.missing(&value.refs().ids().collect::<Vec<_>>()).is_empty();
    assert_eq!([lacks(&values[0]), lacks(&values[1])], [false, true], "what came is held");

    let fetched = fetch(held_by.id, TIMEOUT).await.unwrap();
    assert!((400_000..450_000).contains(&fetched.bytes), "{fetched:?}");
    assert_eq!(reader.engine.missing(&ids), []);
    assert_eq!(fetch(nodes[2].id, TIMEOUT).await.unwrap(), Fetched::default(), "all is here");
    assert_eq!(reader.engine.holders(), []);
    let traffic = host.value_traffic();
    let links: BTreeMap<_, _> = traffic.links.iter().copied().collect();
    assert_eq!(links[&held_by.id].received_bytes, fetched.bytes);
    assert!(traffic.needed_fetched >= fetched.objects && traffic.needed_here >= fetched.objects);
    assert!(traffic.saved_bytes >= 900_000, "the last fetch saved all of it: {traffic:?}");
    let sent = held_by.host.handle().value_traffic().links;
    let received = links[&held_by.id];
    let expected = LinkTraffic {
        sent_objects: received.received_objects,
        sent_bytes: received.received_bytes,
        ..LinkTraffic::default()
    };
    assert_eq!(sent, [(reader.id, expected)]);
    reader.engine.end_upload(upload);
    assert!(lacks(&values[0]) && lacks(&values[1]), "nobody holds them any more");
    stop_all(nodes).await;
}
