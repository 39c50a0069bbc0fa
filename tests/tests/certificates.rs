//! Certificates between nodes: renewal, return after they ran out, rotation of the authority, and who holds
//! its key.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use flotilla_api::{ClusterStatus, PeerState};
use flotilla_client::{Client, ClientOptions, PutOptions};
use flotilla_local_cluster::{Cluster, ClusterOptions};
use flotilla_types::{NodeId, ShardId};
use serde_json::Value;
use tokio::task::JoinSet;

use flotilla_tests::support::{binary, client, eventually, log, status, wait_replicated};

/// Renewals that the test of renewals waits for, on each node.
const RENEWALS: usize = 3;
/// Writes that must have been acknowledged for the load to count.
const WRITES_MIN: u64 = 200;
/// How long a call may look for a node that serves it while nodes restart: leaders move, and certificates are
/// not what it waits for.
const SERVED_WITHIN: Duration = Duration::from_secs(20);
/// How long a removed node may take to learn that and to end.
const REMOVED_WITHIN: Duration = Duration::from_secs(30);
/// Exit code of a node that was removed from the cluster.
const REMOVED: i32 = 77;
/// Life of certificates: short enough to wait for its end, long enough for a node that is restarted.
const TTL: [&str; 2] = ["--certificate-ttl", "12s"];

async fn start(nodes: usize, secure: bool) -> Cluster {
    let mut options = ClusterOptions::new(nodes, binary());
    options.secure = secure;
    options.arguments = TTL.iter().map(|argument| (*argument).to_owned()).collect();
    Cluster::start(options).await.unwrap_or_else(|error| panic!("the cluster does not start: {error}"))
}

/// Where the calls of a load go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoints {
    /// Each task uses one node, and every call must succeed.
    One,
    /// Each task uses the next node when one does not serve it, as while that restarts. It must be served
    /// soon, and no connection may fail for its certificate.
    All,
}

/// Writers and readers, none of whose calls may fail.
struct StrictLoad {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl StrictLoad {
    /// Trusts the authority of now for as long as it runs.
    fn start(cluster: &Cluster, endpoints: Endpoints) -> Self {
        let mut load =
            Self { tasks: JoinSet::new(), stop: Arc::default(), written: Arc::default(), errors: Arc::default() };
        let urls = cluster.http_all();
        let options = |url: &String| cluster.credentials().client_options(url).expect("the files of a running cluster");
        let options: Vec<_> = urls.iter().map(options).collect();
        for i in 0..options.len() {
            let mut options = options.clone();
            options.rotate_left(i);
            if endpoints == Endpoints::One {
                options.truncate(1);
            }
            let (stop, written, errors) = (load.stop.clone(), load.written.clone(), load.errors.clone());
            load.tasks.spawn(async move {
                for step in 0_u64.. {
                    if stop.load(Relaxed) {
                        return;
                    }
                    match served(&options, step).await {
                        Ok(()) => drop(written.fetch_add(1, Relaxed)),
                        Err(error) => errors.lock().expect("no panic").push(error),
                    }
                }
            });
        }
        load
    }

    /// Waits until `calls` more have succeeded.
    async fn wait_served(&self, calls: u64) {
        let target = self.written.load(Relaxed) + calls;
        eventually("more calls", async || {
            let now = self.written.load(Relaxed);
            if now >= target { Ok(()) } else { Err(format!("{now} of {target}")) }
        })
        .await;
    }

    async fn finish(mut self) {
        let written = self.written.load(Relaxed);
        // Also after what the test did last.
        eventually("more writes", async || {
            let now = self.written.load(Relaxed);
            if now >= written.max(WRITES_MIN) + 10 { Ok(()) } else { Err(format!("{now}")) }
        })
        .await;
        self.stop.store(true, Relaxed);
        while self.tasks.join_next().await.is_some() {}
        let errors = self.errors.lock().expect("no panic");
        assert!(errors.is_empty(), "{} calls failed, the first: {}", errors.len(), errors[0]);
    }
}

/// Calls the first of these nodes that serves it.
async fn served(nodes: &[ClientOptions], step: u64) -> Result<(), String> {
    let began = Instant::now();
    for options in nodes.iter().cycle() {
        match call(options, step).await {
            Ok(()) => break,
            Err(error) => {
                let error = format!("{:?}: {error}", options.endpoints);
                if nodes.len() == 1 || error.contains("certificate") || began.elapsed() > SERVED_WITHIN {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// A write and a read by a new client: a new connection, and a new handshake.
async fn call(options: &ClientOptions, step: u64) -> Result<(), String> {
    let client = Client::new(options.clone()).map_err(|error| error.to_string())?;
    let (key, value) = (format!("key/{}", step % 500), Bytes::from(step.to_string()));
    let put = client.put("default", key.as_bytes(), value, &PutOptions::default()).await;
    put.map_err(|error| format!("put: {}", with_causes(&error)))?;
    client.get("default", key.as_bytes()).await.map_err(|error| format!("get: {}", with_causes(&error)))?;
    Ok(())
}

/// The text of an error and of all its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn data(cluster: &Cluster, i: usize) -> &Path {
    &cluster.node(i).expect("a node of the cluster").data_dir
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// The certificate of the authority whose key node `i` holds, if it holds one.
fn held(cluster: &Cluster, i: usize) -> Option<String> {
    let path = data(cluster, i).join("authority.json");
    path.exists().then(|| read_json(&path)["cert"].as_str().expect("a certificate").to_owned())
}

/// The certificate of the authority that certified node `i`.
fn authority_of(cluster: &Cluster, i: usize) -> String {
    read_json(&data(cluster, i).join("identity.json"))["ca_cert"].as_str().expect("a certificate").to_owned()
}

/// The voters of the metadata group, as node `i` sees them.
async fn metadata_group(cluster: &Cluster, i: usize) -> BTreeSet<NodeId> {
    let status = status(cluster, i).await;
    let shard = status.shards.iter().find(|shard| shard.id == ShardId::META).expect("the metadata group");
    shard.replicas.iter().map(|replica| replica.node).collect()
}

/// Waits until a certificate that is no longer renewed has run out.
async fn wait_expired(cluster: &Cluster, i: usize) {
    let identity = read_json(&data(cluster, i).join("identity.json"));
    let number = |name: &str| identity[name].as_u64().expect("a number");
    // Its end is in whole seconds, and counted from when it was issued rather than asked for.
    let end = UNIX_EPOCH + Duration::from_secs(number("issued_s") + number("valid_s") + 2);
    eventually("the certificate has run out", async || match end.duration_since(SystemTime::now()) {
        Ok(left) => Err(format!("{left:?} left")),
        Err(_) => Ok(()),
    })
    .await;
}

/// Waits until node `i` is connected to all others of these, and they to it.
async fn wait_connected(cluster: &Cluster, nodes: &[usize]) {
    eventually("the nodes are connected", async || {
        for i in nodes {
            let status: ClusterStatus = client(cluster, *i).status().await.map_err(|error| error.to_string())?;
            let connected = status.peers.iter().filter(|peer| peer.state == PeerState::Connected).count();
            if connected + 1 < nodes.len() {
                return Err(format!("node {i}: {:?}", status.peers));
            }
        }
        Ok(())
    })
    .await;
}

/// Waits until every one of these nodes says that no rotation is in progress.
async fn wait_rotated(cluster: &Cluster, nodes: &[usize], serial: u64) {
    eventually("the rotation ends", async || {
        for i in nodes {
            let status = client(cluster, *i).authority_status().await.map_err(|error| error.to_string())?;
            let previous = read_json(&data(cluster, *i).join("identity.json")).get("ca_previous").is_some();
            if status.rotating || status.serial != serial || previous {
                return Err(format!("node {i}: {status:?}, trusts the authority before: {previous}"));
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn certificates_are_renewed_and_the_authority_is_replaced_without_an_error_at_any_client() {
    let cluster = start(3, true).await;
    let load = StrictLoad::start(&cluster, Endpoints::One);
    let renewals = |i| log(&cluster, i).matches("renewed the certificate of this node").count();
    eventually("renewals", async || {
        let counts = [1, 2, 3].map(renewals);
        if counts.iter().all(|count| *count >= RENEWALS) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;

    let before = authority_of(&cluster, 1);
    let rotated = client(&cluster, 2).rotate_authority().await.expect("a rotation");
    assert_eq!(rotated.serial, 1);
    wait_rotated(&cluster, &[1, 2, 3], 1).await;
    load.finish().await;
    let after = authority_of(&cluster, 1);
    assert_ne!(before, after);
    for i in 1..=3 {
        assert_eq!((authority_of(&cluster, i), held(&cluster, i)), (after.clone(), Some(after.clone())), "node {i}");
        assert!(!data(&cluster, i).join("authority-next.json").exists(), "node {i}");
        let ca = fs::read_to_string(data(&cluster, i).join("ca.pem")).expect("ca.pem");
        assert_eq!(ca, after, "clients get the new authority only");
    }
    let audit = client(&cluster, 2).recent_audit().await.expect("the audit log");
    let is_rotation = |action: &String| action == "POST /v1/cluster/authority/rotate";
    assert!(audit.iter().any(|entry| entry.detail.get("action").is_some_and(is_rotation)), "{audit:?}");
}

#[tokio::test]
async fn nodes_that_restart_in_the_middle_of_a_rotation_cost_no_client_a_refused_certificate() {
    let mut cluster = start(4, true).await;
    let outsider = outsider(&cluster).await;
    let others: Vec<usize> = (1..=4).filter(|i| *i != outsider).collect();
    let load = StrictLoad::start(&cluster, Endpoints::All);
    load.wait_served(WRITES_MIN).await;
    // A node that is down keeps the rotation from ending.
    cluster.stop(outsider).await.expect("a stop");
    client(&cluster, others[0]).rotate_authority().await.expect("a rotation");
    for i in &others {
        cluster.stop(*i).await.expect("a stop");
        cluster.start_node(*i).await.expect("a start");
        cluster.wait_node(*i).await.expect("a ready node");
        load.wait_served(20).await;
    }
    assert!(client(&cluster, others[0]).authority_status().await.expect("a status").rotating, "it goes on");
    cluster.start_node(outsider).await.expect("a start");
    wait_rotated(&cluster, &[1, 2, 3, 4], 1).await;
    // Once more, with what the nodes saved.
    cluster.stop(others[0]).await.expect("a stop");
    cluster.start_node(others[0]).await.expect("a start");
    cluster.wait_node(others[0]).await.expect("a ready node");
    wait_connected(&cluster, &[1, 2, 3, 4]).await;
    load.finish().await;
}

/// The node of four that is not in the metadata group.
async fn outsider(cluster: &Cluster) -> usize {
    let group = metadata_group(cluster, 1).await;
    for i in 1..=4 {
        if !group.contains(&status(cluster, i).await.node) {
            return i;
        }
    }
    panic!("one of four nodes is not in the metadata group: {group:?}");
}

#[tokio::test]
async fn a_former_voter_returns_after_its_certificate_ran_out_and_deletes_the_key() {
    let mut cluster = start(4, false).await;
    client(&cluster, 1).put_setting("dead_node_grace_ms", 1_000).await.expect("a setting");
    let group = metadata_group(&cluster, 1).await;
    let mut voter = None;
    for i in 1..=4 {
        let is_member = group.contains(&status(&cluster, i).await.node);
        assert_eq!(held(&cluster, i).is_some(), is_member, "node {i}");
        assert_eq!(client(&cluster, i).authority_status().await.expect("a status").holds_key, is_member);
        if i > 1 && is_member {
            voter = Some(i);
        }
    }
    let voter = voter.expect("a voter besides node 1");
    let id = status(&cluster, voter).await.node;
    cluster.kill(voter).expect("a running node");
    eventually("another node takes its place", async || {
        let group = metadata_group(&cluster, 1).await;
        if group.len() == 3 && !group.contains(&id) { Ok(()) } else { Err(format!("{group:?}")) }
    })
    .await;
    wait_expired(&cluster, voter).await;
    // Its replacement must not have needed this one.
    assert!((1..=4).filter(|i| *i != voter).all(|i| held(&cluster, i).is_some()));

    cluster.start_node(voter).await.expect("a start");
    wait_connected(&cluster, &[1, 2, 3, 4]).await;
    eventually("the key is deleted", async || {
        if held(&cluster, voter).is_none() { Ok(()) } else { Err("it is still there".to_owned()) }
    })
    .await;
    assert!(!client(&cluster, voter).authority_status().await.expect("a status").holds_key);
    assert_eq!(status(&cluster, voter).await.node, id);
}

#[tokio::test]
async fn a_whole_cluster_returns_after_all_certificates_ran_out() {
    let mut cluster = start(4, false).await;
    for i in 1..=4 {
        cluster.kill(i).expect("a running node");
    }
    for i in 1..=4 {
        wait_expired(&cluster, i).await;
    }
    for i in 1..=4 {
        cluster.start_node(i).await.expect("a start");
    }
    wait_connected(&cluster, &[1, 2, 3, 4]).await;
    client(&cluster, 4).put("default", b"k", "v".into(), &PutOptions::default()).await.expect("a put");
}

#[tokio::test]
async fn a_rotation_waits_for_a_node_that_is_down_and_a_removed_node_stays_refused() {
    let mut cluster = start(4, false).await;
    let outsider = outsider(&cluster).await;
    let others: Vec<usize> = (1..=4).filter(|i| *i != outsider).collect();
    let id = status(&cluster, outsider).await.node;
    cluster.kill(outsider).expect("a running node");

    client(&cluster, others[1]).rotate_authority().await.expect("a rotation");
    let waits_for = eventually("the others are certified", async || {
        let status = client(&cluster, others[0]).authority_status().await.map_err(|error| error.to_string())?;
        let waits_for: Vec<NodeId> = status.nodes.iter().filter(|node| !node.certified).map(|node| node.node).collect();
        if waits_for.len() <= 1 { Ok(waits_for) } else { Err(format!("{waits_for:?}")) }
    })
    .await;
    assert_eq!(waits_for, [id]);
    assert!(client(&cluster, others[0]).rotate_authority().await.is_err(), "one rotation at a time");
    // It trusts the old authority only, and its certificate of that one is of no use.
    wait_expired(&cluster, outsider).await;
    cluster.start_node(outsider).await.expect("a start");
    wait_rotated(&cluster, &[1, 2, 3, 4], 1).await;
    assert!(log(&cluster, outsider).contains("got a new certificate for this node's key"), "it asked without one");
    assert_eq!(held(&cluster, outsider), None);

    // The next one ends when the node that is down is removed.
    cluster.kill(outsider).expect("a running node");
    client(&cluster, others[0]).rotate_authority().await.expect("a rotation");
    client(&cluster, others[0]).remove_node(id, true).await.expect("removed");
    wait_rotated(&cluster, &others, 2).await;
    wait_replicated(&cluster, &others).await;
    wait_expired(&cluster, outsider).await;
    cluster.start_node(outsider).await.expect("a start");
    let exited = cluster.wait_exit(outsider, REMOVED_WITHIN).await.expect("an end by itself");
    assert_eq!(exited.code(), Some(REMOVED));
    assert!(log(&cluster, outsider).contains("was removed from the cluster"));
    for i in &others {
        let status = status(&cluster, *i).await;
        assert!(status.peers.iter().all(|peer| peer.node != id), "{:?}", status.peers);
    }
}
