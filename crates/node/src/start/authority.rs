//! Custody of the cluster's authority: the nodes of the metadata group hold its key, certify others, and
//! replace it.
//!
//! Invariants:
//! - Only the key of the authority in force signs, and which one that is says the metadata.
//! - A node takes a key only if the metadata names its authority, as the one in force or as the next one.
//! - A node that left the metadata group deletes the key. A key that it was given has the version of the
//!   metadata of the giver, and older metadata never makes it delete that one.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_control::{AuthorityService, PeerRequest, Shards, Topology, decode_answer};
use flotilla_identity::{Authorities, CaFingerprint, ClusterAuthority, Life, NodeIdentity, csr_public_key_digest};
use flotilla_meta::{AuthorityRecord, MetaCommand, MetaReply, MetaState, PreparedAuthority};
use flotilla_replication::clock;
use flotilla_transport::{BoxFuture, Class, Transport};
use flotilla_types::{ClusterVersion, NodeId, ShardId};
use flotilla_wire::{encode, peer};
use parking_lot::RwLock;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::{
    client_tls::{HOSTS_MAX, client_hosts_of},
    folder::{Folder, HeldAuthority, Which},
};

/// The longest life of a certificate that the authority issues.
pub(crate) const VALID_MAX: Duration = Duration::from_secs(90 * 24 * 3_600);
/// How far the validity of a client port's certificate starts in the past, for clients whose clocks are slow.
const BACKDATED_S: u64 = 3_600;
/// Timeout of one request to give a key to a node.
const GIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before a node that did not take a key is asked again.
const GIVE_AGAIN: Duration = Duration::from_millis(100);

/// The identity of this node, which is replaced when its certificate is renewed.
pub(crate) type IdentityWatch = watch::Receiver<NodeIdentity>;

/// What this node holds of the authority.
pub(crate) struct Custody {
    folder: Arc<Folder>,
    topology: Arc<Topology>,
    identity: IdentityWatch,
    held: RwLock<Held>,
}

#[derive(Default)]
struct Held {
    current: Option<HeldAuthority>,
    /// The one that a rotation may put in force.
    next: Option<HeldAuthority>,
}

impl Held {
    fn find(&self, certificate: &[u8]) -> Option<&ClusterAuthority> {
        let held = self.current.iter().chain(&self.next).map(|held| &held.authority);
        held.into_iter().find(|authority| authority.cert_der()[..] == *certificate)
    }
}

impl Custody {
    pub(crate) fn open(
        folder: Arc<Folder>,
        topology: Arc<Topology>,
        identity: IdentityWatch,
    ) -> anyhow::Result<Arc<Self>> {
        let held = Held { current: folder.authority(Which::Current)?, next: folder.authority(Which::Next)? };
        Ok(Arc::new(Self { folder, topology, identity, held: RwLock::new(held) }))
    }

    /// The cluster's authorities as far as this node knows.
    pub(crate) fn authorities(&self) -> Authorities {
        let der = |bytes: &Bytes| CertificateDer::from(bytes.to_vec());
        match self.topology.meta().authority() {
            Some(record) => Authorities {
                current: der(&record.certificate),
                cross: record.cross.as_ref().map(der),
                previous: record.previous.as_ref().map(der),
            },
            None => Authorities::only(self.identity.borrow().ca_cert().clone()),
        }
    }

    /// Whether this node holds the authority in force.
    pub(crate) fn holds(&self) -> bool {
        self.held.read().find(&self.authorities().current).is_some()
    }

    /// Certifies a node of the cluster by the key that the metadata has of it. `None` if this node cannot.
    pub(crate) fn certify_node(&self, node: NodeId, csr: &[u8], valid_s: u64) -> Option<Certified> {
        let meta = self.topology.meta();
        let record = meta.node(node).filter(|record| !record.state.is_gone())?;
        // Without this, a node could get a certificate for a key that was never admitted.
        if csr_public_key_digest(csr).ok()? != record.key_digest {
            tracing::warn!(%node, "a node asks for a certificate of another key than its own");
            return None;
        }
        self.certify_key(node, csr, valid_s)
    }

    /// Certifies a node whose key was just admitted. Zero seconds stand for as long as possible.
    pub(crate) fn certify_key(&self, node: NodeId, csr: &[u8], valid_s: u64) -> Option<Certified> {
        let authorities = self.authorities();
        let valid_s = if valid_s == 0 { VALID_MAX.as_secs() } else { valid_s.min(VALID_MAX.as_secs()) };
        let held = self.held.read();
        let issued = held.find(&authorities.current)?.issue(node, csr, now_s().saturating_add(valid_s));
        let certificate = issued.inspect_err(|error| tracing::warn!(%node, %error, "cannot certify a node")).ok()?;
        Some(Certified { certificate, authorities })
    }

    /// Certifies client ports of this node, whose hosts it knows itself. In DER.
    pub(crate) fn certify_own_ports(&self, csr: &[u8], hosts: &[String], valid_s: u64) -> Option<Bytes> {
        let node = self.identity.borrow().node();
        self.sign_ports(node, csr, hosts, valid_s)
    }

    fn sign_ports(&self, node: NodeId, csr: &[u8], hosts: &[String], valid_s: u64) -> Option<Bytes> {
        let current = self.authorities().current;
        let now_s = now_s();
        let valid = now_s.saturating_sub(BACKDATED_S)..now_s.saturating_add(valid_s.min(VALID_MAX.as_secs()));
        let held = self.held.read();
        let issued = held.find(&current)?.issue_client_ports(node, hosts, csr, valid);
        let cert = issued.inspect_err(|error| tracing::warn!(%node, %error, "cannot certify client ports")).ok()?;
        Some(Bytes::copy_from_slice(&cert))
    }

    /// The authority in force, in the form in which it is given to a node of the metadata group.
    pub(crate) fn to_give(&self) -> Option<Vec<u8>> {
        let version = self.topology.meta().version();
        let held = self.held.read();
        held.find(&self.authorities().current).map(|authority| HeldAuthority::encode(authority, version))
    }

    /// Stores an authority that the metadata names. Blocks for the disk.
    fn take(&self, bytes: &[u8]) -> bool {
        let Ok(given) = HeldAuthority::decode(bytes) else { return false };
        let meta = self.topology.meta();
        let certificate = given.authority.cert_der();
        let which = if *certificate == self.authorities().current {
            Which::Current
        } else if prepared(&meta).is_some_and(|next| next.certificate[..] == certificate[..]) {
            Which::Next
        } else {
            return false;
        };
        // Held while the file is written, so that no older decision deletes it.
        let mut held = self.held.write();
        if let Err(error) = self.folder.set_authority(which, &given) {
            tracing::error!(error = format!("{error:#}"), "the cluster authority could not be stored");
            return false;
        }
        match which {
            Which::Current => held.current = Some(given),
            Which::Next => held.next = Some(given),
        }
        true
    }

    /// Keeps what the metadata says that this node should hold, and deletes the rest. Blocks for the disk.
    pub(crate) fn tend(&self) -> anyhow::Result<()> {
        let meta = self.topology.meta();
        let (node, cluster_known) = (self.identity.borrow().node(), meta.version() > 0);
        if !cluster_known || self.folder.is_founding() {
            return Ok(());
        }
        let mut held = self.held.write();
        if let Some(next) = held.next.take_if(|next| meta.authority().is_some_and(|record| in_force(record, next))) {
            self.folder.set_authority(Which::Current, &next)?;
            self.folder.remove_authority(Which::Next)?;
            tracing::info!(authority = %next.authority.fingerprint(), "holding the new authority");
            held.current = Some(next);
        }
        let is_member = meta.meta_group().contains(&node);
        let outlived = |held: &HeldAuthority| meta.version() > held.since;
        let replaced = |held: &HeldAuthority| meta.authority().is_some_and(|record| !in_force(record, held));
        let unwanted = |held: &HeldAuthority| outlived(held) && (!is_member || replaced(held));
        if held.current.as_ref().is_some_and(unwanted) {
            self.folder.remove_authority(Which::Current)?;
            held.current = None;
            tracing::info!(is_member, "deleted the authority's key: this node should no longer hold it");
        }
        let superseded = |next: &HeldAuthority| {
            let is_prepared =
                prepared(&meta).is_some_and(|known| known.certificate[..] == next.authority.cert_der()[..]);
            outlived(next) && (!is_member || !is_prepared)
        };
        if held.next.as_ref().is_some_and(superseded) {
            self.folder.remove_authority(Which::Next)?;
            held.next = None;
        }
        Ok(())
    }
}

fn prepared(meta: &MetaState) -> Option<&PreparedAuthority> {
    meta.authority().and_then(|record| record.prepared.as_ref())
}

fn in_force(record: &AuthorityRecord, held: &HeldAuthority) -> bool {
    record.certificate[..] == held.authority.cert_der()[..]
}

/// A node's certificate, and what its peers must know of the authorities.
pub(crate) struct Certified {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) authorities: Authorities,
}

impl Certified {
    pub(crate) fn to_wire(&self) -> peer::Certified {
        let certificate = Bytes::copy_from_slice(&self.certificate);
        peer::Certified { certificate, authorities: Some(authorities_to_wire(&self.authorities)) }
    }

    /// `None` when a part is missing.
    pub(crate) fn from_wire(pb: &peer::Certified) -> Option<Self> {
        let certificate = filled(&pb.certificate)?;
        Some(Self { certificate, authorities: authorities_from_wire(pb.authorities.as_ref()?)? })
    }
}

pub(crate) fn authorities_to_wire(authorities: &Authorities) -> peer::Authorities {
    let bytes = |der: Option<&CertificateDer<'_>>| der.map(|der| Bytes::copy_from_slice(der)).unwrap_or_default();
    peer::Authorities {
        current: bytes(Some(&authorities.current)),
        cross: bytes(authorities.cross.as_ref()),
        previous: bytes(authorities.previous.as_ref()),
    }
}

pub(crate) fn authorities_from_wire(pb: &peer::Authorities) -> Option<Authorities> {
    Some(Authorities { current: filled(&pb.current)?, cross: filled(&pb.cross), previous: filled(&pb.previous) })
}

fn filled(bytes: &Bytes) -> Option<CertificateDer<'static>> {
    (!bytes.is_empty()).then(|| CertificateDer::from(bytes.to_vec()))
}

pub(crate) fn now_s() -> u64 {
    clock::wall_ms() / 1_000
}

/// The nodes that may hold the authority, the leader of the metadata group first; not this one.
pub(crate) fn holders(topology: &Topology) -> Vec<NodeId> {
    let group = topology.meta().meta_group();
    let leader = topology.leader(ShardId::META).filter(|leader| group.contains(leader));
    let others = group.iter().copied().filter(|node| Some(*node) != leader);
    leader.into_iter().chain(others).filter(|node| *node != topology.node()).collect()
}

/// What peers and operators ask of the authority.
#[derive(Clone)]
pub(crate) struct AuthorityDesk {
    pub(crate) custody: Arc<Custody>,
    pub(crate) topology: Arc<Topology>,
    pub(crate) network: Arc<Transport>,
    pub(crate) shards: Shards,
}

impl AuthorityService for AuthorityDesk {
    fn take(&self, authority: &[u8]) -> bool {
        self.custody.take(authority)
    }

    fn certify_client_ports(&self, node: NodeId, csr: &[u8], hosts: &[String], valid_s: u64) -> Option<Bytes> {
        let allowed: BTreeSet<String> = client_hosts_of(&self.topology.meta(), node);
        let fits = hosts.len() <= HOSTS_MAX && hosts.iter().all(|host| allowed.contains(host));
        fits.then(|| self.custody.sign_ports(node, csr, hosts, valid_s)).flatten()
    }

    fn certify_node(&self, node: NodeId, csr: &[u8], valid_s: u64) -> Option<Bytes> {
        self.custody.certify_node(node, csr, valid_s).map(|certified| encode(&certified.to_wire()))
    }

    fn rotate(&self, timeout: Duration) -> BoxFuture<'static, Result<(), String>> {
        let desk = self.clone();
        Box::pin(async move { desk.rotate_here(Instant::now() + timeout).await })
    }
}

/// Why a node did not replace the authority.
pub(crate) enum RotateError {
    /// Nothing was changed.
    Refused(String),
    /// It may have been replaced.
    Unknown,
}

impl AuthorityDesk {
    /// Replaces the authority, here or on a node that holds it.
    pub(crate) async fn rotate_anywhere(&self, deadline: Instant) -> Result<(), RotateError> {
        let remaining = || deadline.saturating_duration_since(Instant::now());
        if self.custody.holds() {
            return self.rotate_here(deadline).await.map_err(RotateError::Refused);
        }
        for node in holders(&self.topology) {
            let timeout_ms = u32::try_from(remaining().as_millis()).unwrap_or(u32::MAX);
            let request = PeerRequest::RotateAuthority { timeout_ms }.encode();
            match self.network.call(node, Class::Rpc, request, remaining()).await {
                Err(flotilla_transport::CallError::NotSent(_)) => {}
                Err(flotilla_transport::CallError::MaybeExecuted(_)) => return Err(RotateError::Unknown),
                Ok(answer) => match decode_answer(answer) {
                    Ok(answered) if answered.payload.is_empty() => return Ok(()),
                    Ok(answered) => {
                        return Err(RotateError::Refused(String::from_utf8_lossy(&answered.payload).into_owned()));
                    }
                    Err(_) => {}
                },
            }
        }
        Err(RotateError::Refused("no node that holds the authority could be asked".to_owned()))
    }

    /// Mints the next authority, gives its key to the metadata group, and puts it in force.
    async fn rotate_here(&self, deadline: Instant) -> Result<(), String> {
        let meta = self.topology.meta();
        if meta.cluster_version() < ClusterVersion::AUTHORITY_ROTATION {
            return Err("the cluster version does not know of rotations; see `flotilla upgrade status`".to_owned());
        }
        let (next, command) = self.mint()?;
        let certificate = Bytes::copy_from_slice(next.cert_der());
        self.propose(&command, deadline).await?;
        let version = self.wait_prepared(&certificate, deadline).await;
        let version = version.ok_or("another rotation was begun, or the metadata lags")?;
        let group = self.topology.meta().meta_group();
        let key = Bytes::from(HeldAuthority::encode(&next, version));
        for node in &group {
            self.give(*node, key.clone(), deadline).await?;
        }
        let holders = group.into_iter().collect();
        self.propose(&MetaCommand::BeginRotation { certificate, holders }, deadline).await?;
        tracing::info!(authority = %next.fingerprint(), "replaced the cluster's authority");
        Ok(())
    }

    /// Waits until this node's metadata has the next authority; returns the version.
    async fn wait_prepared(&self, certificate: &Bytes, deadline: Instant) -> Option<u64> {
        let mut metadata = self.topology.watch();
        let is_prepared = |meta: &MetaState| prepared(meta).is_some_and(|next| next.certificate == *certificate);
        let seen = tokio::time::timeout_at(deadline.into(), metadata.wait_for(|meta| is_prepared(meta))).await;
        seen.ok()?.ok().map(|meta| meta.version())
    }

    /// The next authority, signed by the one in force.
    fn mint(&self) -> Result<(ClusterAuthority, MetaCommand), String> {
        let current = self.custody.authorities().current;
        let held = self.custody.held.read();
        let authority = held.find(&current).ok_or("this node does not hold the authority")?;
        let next = ClusterAuthority::mint(authority.cluster()).map_err(|error| error.to_string())?;
        let cross = authority.cross_sign(&next).map_err(|error| error.to_string())?;
        let bytes = |der: &CertificateDer<'_>| Bytes::copy_from_slice(der);
        let prepared = PreparedAuthority { certificate: bytes(next.cert_der()), cross: bytes(&cross) };
        Ok((next, MetaCommand::PrepareAuthority { current: bytes(&current), next: prepared }))
    }

    async fn propose(&self, command: &MetaCommand, deadline: Instant) -> Result<(), String> {
        let remaining = deadline.saturating_duration_since(Instant::now());
        match self.shards.propose_meta(command, remaining).await {
            Ok(MetaReply::Refused(refusal)) => Err(refusal.to_string()),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("the metadata group: {error}")),
        }
    }

    /// Gives the next authority's key to a node, until it holds it durably.
    async fn give(&self, node: NodeId, key: Bytes, deadline: Instant) -> Result<(), String> {
        loop {
            let taken = if node == self.topology.node() {
                let (custody, key) = (self.custody.clone(), key.clone());
                tokio::task::spawn_blocking(move || custody.take(&key)).await.unwrap_or(false)
            } else {
                let request = PeerRequest::Authority(key.clone()).encode();
                let answer = self.network.call(node, Class::Rpc, request, GIVE_TIMEOUT).await;
                answer.is_ok_and(|answer| decode_answer(answer).is_ok())
            };
            if taken {
                return Ok(());
            }
            if Instant::now() + GIVE_AGAIN >= deadline {
                return Err(format!(
                    "{node} of the metadata group did not take the next authority's key; all of its nodes must be up"
                ));
            }
            tokio::time::sleep(GIVE_AGAIN).await;
        }
    }
}

/// Whether a certificate should have been renewed long ago: after five sixths of its life.
pub(crate) fn is_overdue(life: Life, now_s: u64) -> bool {
    life.valid_s != 0 && now_s >= life.issued_s.saturating_add(life.valid_s / 6 * 5)
}

/// The fingerprint of an authority in force, for status pages.
pub(crate) fn fingerprint(authorities: &Authorities) -> CaFingerprint {
    CaFingerprint::of(&authorities.current)
}

#[cfg(test)]
mod tests {
    use flotilla_identity::NodeKey;
    use flotilla_meta::{Addresses, Feed, Increment, MetaFollower, NewNode};
    use flotilla_types::{ClusterId, Incarnation, Locality, LogIndex, Timestamp, VersionRange};

    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);
    const ME: NodeId = NodeId(1);

    /// A node that founded a cluster, alone in its metadata group, and what it holds.
    struct World {
        custody: Arc<Custody>,
        topology: Arc<Topology>,
        follower: MetaFollower,
        authority: ClusterAuthority,
        key: NodeKey,
        _identity: watch::Sender<NodeIdentity>,
        dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let (authority, key) = (ClusterAuthority::mint(CLUSTER).unwrap(), NodeKey::generate().unwrap());
            let cert = authority.issue(ME, &key.csr_der().unwrap(), u64::MAX).unwrap();
            let identity = NodeIdentity::new(CLUSTER, ME, authority.cert_der().clone(), cert, key.clone()).unwrap();
            let identity = watch::Sender::new(identity);
            let dir = tempfile::tempdir().unwrap();
            let folder = Arc::new(Folder::open(dir.path()).unwrap());
            let topology = Arc::new(Topology::new(ME, MetaState::default()));
            let custody = Custody::open(folder, topology.clone(), identity.subscribe()).unwrap();
            let follower = MetaFollower::default();
            let mut world = Self { custody, topology, follower, authority, key, _identity: identity, dir };
            let node = NewNode {
                name: "n".to_owned(),
                addresses: Addresses { quic: "a:1".to_owned(), ..Addresses::default() },
                locality: Locality::default(),
                key_digest: world.key.public_key_digest(),
            };
            world.apply(&MetaCommand::Bootstrap { cluster: CLUSTER, node });
            let seen =
                flotilla_meta::SeenNode { node: ME, incarnation: Incarnation(0), versions: VersionRange::supported() };
            world.apply(&MetaCommand::SetClusterVersion { version: ClusterVersion(2), seen: vec![seen] });
            assert!(world.take(&world.authority, 0));
            world
        }

        fn apply(&mut self, command: &MetaCommand) {
            let previous = self.follower.state().version();
            let increment = Increment {
                previous,
                index: LogIndex(previous + 1),
                timestamp: Timestamp::from_millis(1_000),
                commands: vec![command.encode()],
            };
            assert_eq!(self.follower.apply(&Feed::Increments(vec![increment])), Ok(true), "{command:?}");
            self.topology.offer(self.follower.state());
        }

        fn take(&self, authority: &ClusterAuthority, since: u64) -> bool {
            self.custody.take(&HeldAuthority::encode(authority, since))
        }

        fn prepare(&mut self, next: &ClusterAuthority) {
            let bytes = |der: &[u8]| Bytes::copy_from_slice(der);
            let cross = self.authority.cross_sign(next).unwrap();
            let prepared = PreparedAuthority { certificate: bytes(next.cert_der()), cross: bytes(&cross) };
            let current = bytes(self.authority.cert_der());
            self.apply(&MetaCommand::PrepareAuthority { current, next: prepared });
        }

        fn begin(&mut self, next: &ClusterAuthority) {
            let certificate = Bytes::copy_from_slice(next.cert_der());
            self.apply(&MetaCommand::BeginRotation { certificate, holders: vec![ME] });
        }

        /// The metadata group moves to other nodes; this one stays in the cluster.
        fn move_metadata_group(&mut self) {
            use flotilla_types::{Epoch, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor};
            let token = flotilla_meta::TokenId(1);
            let (hash, expires_at_ms) = ([1; 32], 5_000);
            self.apply(&MetaCommand::CreateToken { id: token, hash, expires_at_ms, uses: 1 });
            let node = NewNode {
                name: "m".to_owned(),
                addresses: Addresses { quic: "b:1".to_owned(), ..Addresses::default() },
                locality: Locality::default(),
                key_digest: [9; 32],
            };
            let versions = Some(VersionRange::supported());
            let join = flotilla_meta::JoinRequest {
                token,
                secret_hash: hash,
                node,
                versions,
                displaced: Vec::new(),
                role: flotilla_meta::NodeRole::default(),
            };
            self.apply(&MetaCommand::Join(join));
            let shard = ShardId::META;
            self.apply(&MetaCommand::AssignReplica { shard, node: NodeId(2), intent_version: 1 });
            self.apply(&MetaCommand::UnassignReplica { shard, replica: ReplicaId(1) });
            let record = self.follower.state().shard(shard).unwrap().descriptor.clone();
            let replica = ReplicaDescriptor { replica: ReplicaId(2), node: NodeId(2), role: ReplicaRole::Voter };
            let epoch = Epoch { config: record.epoch.config + 1, ..record.epoch };
            let descriptor = ShardDescriptor { epoch, replicas: vec![replica], ..record };
            self.apply(&MetaCommand::ReportShard { descriptor });
        }

        fn has(&self, which: &str) -> bool {
            self.dir.path().join(which).exists()
        }
    }

    #[test]
    fn a_node_is_certified_for_the_key_that_the_metadata_has_of_it_only() {
        let world = World::new();
        let csr = |key: &NodeKey| key.csr_der().unwrap();
        let certified = world.custody.certify_node(ME, &csr(&world.key), 60).expect("a certificate");
        let identity = world._identity.borrow().clone();
        let renew = |valid_s| {
            let life = Life { issued_s: now_s(), valid_s };
            identity.renewed(certified.authorities.clone(), certified.certificate.clone(), life)
        };
        assert!(renew(60).is_ok());
        assert!(renew(3_600).is_err(), "it is not valid for longer than asked for");
        let other = NodeKey::generate().unwrap();
        assert!(world.custody.certify_node(ME, &csr(&other), 60).is_none(), "a key that nobody admitted");
        assert!(world.custody.certify_node(NodeId(2), &csr(&world.key), 60).is_none(), "no such node");
    }

    #[test]
    fn a_node_takes_only_the_authorities_that_the_metadata_names() {
        let mut world = World::new();
        let next = ClusterAuthority::mint(CLUSTER).unwrap();
        assert!(!world.take(&next, 9));
        world.prepare(&next);
        assert!(world.take(&next, 9) && world.has("authority-next.json"));
        assert!(world.custody.certify_node(ME, &world.key.csr_der().unwrap(), 60).is_some());
        assert_eq!(world.custody.authorities().current, *world.authority.cert_der(), "not in force yet");

        world.begin(&next);
        let csr = world.key.csr_der().unwrap();
        let certified = world.custody.certify_node(ME, &csr, 60).expect("also before the file has its name");
        assert_eq!(certified.authorities.current, *next.cert_der());
        assert_eq!(certified.authorities.previous.as_ref(), Some(world.authority.cert_der()));
        world.custody.tend().unwrap();
        assert!(world.has("authority.json") && !world.has("authority-next.json"));
        assert!(world.custody.holds());
        assert!(!world.take(&world.authority, 99), "the last one is over");
    }

    #[test]
    fn a_superseded_offer_is_deleted() {
        let mut world = World::new();
        let (first, second) = (ClusterAuthority::mint(CLUSTER).unwrap(), ClusterAuthority::mint(CLUSTER).unwrap());
        world.prepare(&first);
        assert!(world.take(&first, 3));
        world.prepare(&second);
        world.custody.tend().unwrap();
        assert!(!world.has("authority-next.json") && world.custody.holds());
    }

    #[test]
    fn a_former_member_of_the_metadata_group_deletes_the_key_by_newer_metadata_only() {
        let mut world = World::new();
        world.custody.tend().unwrap();
        assert!(world.has("authority.json"), "it is a member");
        world.move_metadata_group();
        // Given again by a leader that knows newer metadata, for another replica.
        let newer = world.follower.state().version() + 1;
        assert!(world.take(&world.authority, newer));
        world.custody.tend().unwrap();
        assert!(world.has("authority.json"), "older metadata does not know of it");
        assert!(world.take(&world.authority, newer - 2));
        world.custody.tend().unwrap();
        assert!(!world.has("authority.json") && !world.custody.holds());
        assert!(world.custody.to_give().is_none());
    }
}
