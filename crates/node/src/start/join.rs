//! Membership of this node: founding a cluster or joining one; and the admission of nodes that join or
//! return.
//!
//! A join is idempotent: the joiner stores its key before the first request, and the cluster answers a retry
//! with the same key with the same node id.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use flotilla_control::{MemberState, RequestKind, ShardError, Shards};
use flotilla_failpoints::{Place, reached};
use flotilla_identity::{
    Authorities, CaFingerprint, ClusterAuthority, JoinToken, Life, NodeIdentity, NodeKey, TokenHash,
    csr_public_key_digest,
};
use flotilla_meta::{
    Addresses, Displaced, Feed, JoinRequest, MetaCommand, MetaFollower, MetaQuery, MetaRefusal, MetaReply, MetaState,
    NewNode, NodeRole, TokenId, TokenRecord,
};
use flotilla_replication::clock;
use flotilla_transport::{PeerError, Transport, TransportError, join_call};
use flotilla_types::{ClusterId, ClusterVersion, HostPort, NodeId, ShardId, VersionRange, is_printable};
use flotilla_wire::{decode, encode, peer};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use rustls_pki_types::CertificateDer;

use super::{
    authority::{Certified, Custody, authorities_from_wire, authorities_to_wire, now_s},
    config::Config,
    folder::{Folder, HeldAuthority, Which},
};

/// How long the name of a peer may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of one join request.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a peer is asked again.
const JOIN_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long the metadata group may take to admit a node.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node of which membership knows nothing must be unreachable before another one may take its
/// place. Above the time that a node takes to find its peers after its own start.
const SILENT_FOR: Duration = Duration::from_secs(10);
/// Redirects followed before the next peer is tried.
const REDIRECTS_MAX: usize = 3;
/// How often the same reason why a node cannot join is logged.
const REMINDER_INTERVAL: Duration = Duration::from_secs(10);

/// Mints a new cluster's id and authority, and the identity of its first node.
pub(crate) fn found_cluster(folder: &Folder, valid: Duration) -> anyhow::Result<NodeIdentity> {
    let cluster = ClusterId(rand::random());
    let authority = ClusterAuthority::mint(cluster)?;
    let key = NodeKey::generate()?;
    let life = Life { issued_s: now_s(), valid_s: valid.as_secs() };
    let cert = authority.issue(NodeId(1), &key.csr_der()?, life.expires_s())?;
    let identity = NodeIdentity::new(cluster, NodeId(1), authority.cert_der().clone(), cert, key)?.with_life(life);
    // The identity is written last: its presence means that the other files exist.
    folder.set_authority(Which::Current, &HeldAuthority { authority, since: 0 })?;
    folder.set_founding()?;
    folder.set_identity(&identity)?;
    reached(Place::FoundIdentityKept);
    tracing::info!(%cluster, "founded a cluster");
    Ok(identity)
}

/// What a node receives when it is admitted.
pub(crate) struct Joined {
    pub(crate) identity: NodeIdentity,
    pub(crate) peers: Vec<(NodeId, HostPort)>,
}

/// Sends join requests to all peers at once, to each again and again, until one admits this node: the same
/// key gets the same answer. A refusal is final.
pub(crate) async fn join_cluster(folder: &Folder, config: &Config, token: &str) -> anyhow::Result<Joined> {
    let parsed = JoinToken::parse(token).context("the join token is not valid")?;
    let key = folder.joining_key()?;
    reached(Place::JoinKeyKept);
    let addresses = addresses_of(config);
    let request = encode(&peer::JoinRequest {
        token: token.to_owned(),
        csr: key.csr_der()?.into(),
        public_key_digest: Bytes::copy_from_slice(&key.public_key_digest()),
        name: config.name.clone(),
        quic: addresses.quic,
        http: addresses.http,
        redis: addresses.redis,
        locality: config.locality.to_string(),
        version_min: VersionRange::supported().min.0,
        version_max: VersionRange::supported().max.0,
        valid_s: config.certificate_ttl.as_secs(),
        returning: 0,
        role: u32::from(config.role == NodeRole::Gateway),
        weight: Some(config.role.weight()),
    });
    let peers = &config.hints;
    tracing::info!("joining the cluster {} through {}", parsed.cluster(), list(peers));
    let mut progress = Progress::default();
    let mut foreign = BTreeSet::new();
    // Each peer is asked again by itself, so that one that does not answer delays no other.
    let ask = |peer, pause| ask_after(pause, peer, &parsed, &request);
    let mut asking: FuturesUnordered<_> = peers.iter().map(|peer| ask(peer, Duration::ZERO)).collect();
    while let Some((peer, answer)) = asking.next().await {
        // While the authority is rotated, a peer may have the other one for a moment.
        foreign.remove(peer);
        match answer {
            Ok(peer::join_response::Kind::Joined(joined)) => {
                reached(Place::JoinAnswered);
                let valid_s = config.certificate_ttl.as_secs();
                let joined = verify_admission(&parsed, key, joined, Life { issued_s: now_s(), valid_s })?;
                folder.set_seeds(&joined.peers)?;
                folder.set_identity(&joined.identity)?;
                reached(Place::JoinIdentityKept);
                folder.remove_joining_key()?;
                let identity = &joined.identity;
                tracing::info!(node = %identity.node(), cluster = %identity.cluster(), %peer, "joined");
                return Ok(joined);
            }
            Ok(peer::join_response::Kind::Refused(reason)) => bail!("{peer} refused to admit this node: {reason}"),
            Ok(peer::join_response::Kind::Retry(reason)) => progress.failed(peer, &reason),
            // The second answers only a node that returns.
            Ok(peer::join_response::Kind::Redirect(_) | peer::join_response::Kind::Removed(_)) => {}
            Err(RequestError::Foreign) => {
                foreign.insert(peer);
                progress.failed(peer, "its authority is not the one in the token");
            }
            Err(RequestError::Other(error)) => progress.failed(peer, &format!("{error:#}")),
        }
        // A single foreign peer may be a mistake in the list; if all are foreign, the token is for another
        // cluster.
        if peers.iter().all(|peer| foreign.contains(peer)) {
            break;
        }
        asking.push(ask(peer, JOIN_RETRY_INTERVAL));
    }
    bail!(
        "the join token is for another cluster than the peers belong to, \
         or was created before the cluster's authority was rotated: create another one"
    )
}

async fn ask_after<'a>(
    pause: Duration,
    peer: &'a HostPort,
    token: &JoinToken,
    request: &Bytes,
) -> (&'a HostPort, Result<peer::join_response::Kind, RequestError>) {
    tokio::time::sleep(pause).await;
    (peer, request_join(peer, token, request).await)
}

fn list(peers: &[HostPort]) -> String {
    peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Tells why this node has not joined yet: each reason of each peer once, and again from time to time.
#[derive(Debug, Default)]
struct Progress {
    told: BTreeMap<HostPort, (String, Option<Instant>)>,
}

impl Progress {
    fn failed(&mut self, peer: &HostPort, reason: &str) {
        if self.is_news(peer, reason, Instant::now()) {
            tracing::warn!("cannot join through {peer} yet: {reason}; trying again");
        }
    }

    fn is_news(&mut self, peer: &HostPort, reason: &str, now: Instant) -> bool {
        let (last, at) = self.told.entry(peer.clone()).or_default();
        let is_news = last != reason || at.is_none_or(|at| now.duration_since(at) >= REMINDER_INTERVAL);
        if is_news {
            (*last, *at) = (reason.to_owned(), Some(now));
        }
        is_news
    }
}

/// Why a join request got no answer.
enum RequestError {
    /// The peer's certificate was not issued by the authority in the token.
    Foreign,
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for RequestError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

async fn request_join(
    peer: &HostPort,
    token: &JoinToken,
    request: &Bytes,
) -> Result<peer::join_response::Kind, RequestError> {
    let mut address = peer.clone();
    for _ in 0..=REDIRECTS_MAX {
        let answer = match join_through(&address, token, request).await {
            Err(TransportError::JoinConnect(PeerError::Handshake { .. })) => return Err(RequestError::Foreign),
            answer => answer?,
        };
        let response: peer::JoinResponse = decode(answer)?;
        match response.kind.context("the peer's answer is empty")? {
            peer::join_response::Kind::Redirect(to) => {
                address = to.parse().context("the peer's redirect does not parse")?
            }
            other => return Ok(other),
        }
    }
    Err(RequestError::Other(anyhow::anyhow!("redirected too often")))
}

/// Sends the request to the addresses of a host in turn, until somebody is there.
async fn join_through(host: &HostPort, token: &JoinToken, request: &Bytes) -> Result<Bytes, TransportError> {
    let mut answer = Err(TransportError::JoinConnect(PeerError::Unresolved));
    for address in flotilla_transport::resolve(host, RESOLVE_TIMEOUT).await {
        answer = join_call(address, token.fingerprint(), request.clone(), JOIN_TIMEOUT).await;
        if !matches!(answer, Err(TransportError::JoinConnect(_))) {
            break;
        }
    }
    answer
}

/// Checks the identity that the cluster issued.
fn verify_admission(token: &JoinToken, key: NodeKey, joined: peer::Joined, life: Life) -> anyhow::Result<Joined> {
    let authority = CertificateDer::from(joined.authority_certificate.to_vec());
    let cert = CertificateDer::from(joined.certificate.to_vec());
    let invalid = "the cluster issued an identity that is not valid";
    let identity = NodeIdentity::new(token.cluster(), NodeId(joined.node), authority.clone(), cert.clone(), key);
    let identity = identity.context(invalid)?;
    // A server of the pinned authority has sent the others.
    let authorities = joined.authorities.as_ref().and_then(authorities_from_wire);
    let pinned = |der: &CertificateDer<'_>| CaFingerprint::of(der) == token.fingerprint();
    let known = authorities.as_ref().and_then(|authorities| authorities.previous.as_ref());
    if !pinned(&authority) && !known.is_some_and(pinned) {
        bail!("the cluster's authority is not the one in the join token");
    }
    let authorities = authorities.unwrap_or_else(|| Authorities::only(authority));
    // Where the clocks of the two nodes differ much, the certificate is of no use.
    let identity = identity.renewed(authorities, cert, life).context(invalid)?;
    let peers = joined.peers.iter().filter_map(|peer| Some((NodeId(peer.node), peer.quic.parse().ok()?))).collect();
    Ok(Joined { identity, peers })
}

/// The addresses at which others reach this node.
pub(crate) fn addresses_of(config: &Config) -> Addresses {
    let or_listen = |advertised: &Option<String>, listen: SocketAddr| advertised.clone().unwrap_or(listen.to_string());
    Addresses {
        quic: config.advertise.to_string(),
        http: or_listen(&config.advertise_http, config.http),
        redis: or_listen(&config.advertise_redis, config.redis),
    }
}

/// Admits nodes that join, and nodes that return.
pub(crate) struct JoinAdmission {
    pub(crate) cluster: ClusterId,
    pub(crate) custody: Arc<Custody>,
    pub(crate) shards: Shards,
    pub(crate) network: Arc<Transport>,
}

impl JoinAdmission {
    /// Answers one join request from an unauthenticated node.
    pub(crate) async fn answer(&self, remote: SocketAddr, request: Bytes) -> Bytes {
        let kind = match decode::<peer::JoinRequest>(request) {
            Ok(request) if request.returning != 0 => self.readmit(remote, &request),
            Ok(request) => self.admit(remote, request).await,
            Err(_) => refused("the request does not parse"),
        };
        encode(&peer::JoinResponse { kind: Some(kind) })
    }

    /// Certifies a node of the cluster whose certificate is no longer accepted. It proves by the signature of
    /// its request that it has the key by which the metadata knows it; so an old request, sent again by
    /// anybody, gives a certificate that only the node can use.
    fn readmit(&self, remote: SocketAddr, request: &peer::JoinRequest) -> peer::join_response::Kind {
        let meta = self.shards.topology().meta();
        let node = NodeId(request.returning);
        if meta.is_gone(node) {
            return peer::join_response::Kind::Removed(self.shards.topology().node().0);
        }
        let digest = csr_public_key_digest(&request.csr);
        if !meta.node(node).is_some_and(|record| digest.is_ok_and(|digest| digest == record.key_digest)) {
            return refused("this cluster has no node with this id and key");
        }
        if !self.custody.holds() {
            return self.redirect();
        }
        tracing::info!(%node, %remote, "certifying a node that returns without a valid certificate");
        self.certify(self.custody.certify_node(node, &request.csr, request.valid_s), node)
    }

    async fn admit(&self, remote: SocketAddr, request: peer::JoinRequest) -> peer::join_response::Kind {
        let token = match JoinToken::parse(&request.token) {
            Ok(token) => token,
            Err(error) => return refused(&error.to_string()),
        };
        if token.cluster() != self.cluster {
            return refused("the join token belongs to another cluster");
        }
        let authorities = self.custody.authorities();
        let mut trusted = std::iter::once(&authorities.current).chain(&authorities.previous);
        if !trusted.any(|authority| CaFingerprint::of(authority) == token.fingerprint()) {
            return refused("the join token was created before the cluster's authority was rotated");
        }
        // Checked before anything is answered or proposed, because whoever knows the authority can make such
        // tokens.
        if let Err(answer) = self.check_token(&token).await {
            return answer;
        }
        let digest = csr_public_key_digest(&request.csr);
        let Some(digest) = digest.ok().filter(|digest| digest[..] == request.public_key_digest[..]) else {
            return refused("the certificate request does not match the key digest");
        };
        let Ok(locality) = request.locality.parse() else { return refused("the locality does not parse") };
        if !is_printable(&request.name) || !is_printable(&request.locality) {
            return refused("the name or the locality has control characters");
        }
        let place = request.quic.parse::<HostPort>().ok().filter(HostPort::is_reachable);
        let Some(place) = place else {
            return refused("other nodes cannot reach the address of this node; name another one with --advertise");
        };
        if !self.custody.holds() {
            return self.redirect();
        }
        let meta = self.shards.topology().meta();
        let (in_force, supported) =
            (meta.cluster_version(), VersionRange::announced(request.version_min, request.version_max));
        if !supported.supports(in_force) {
            return refused(&MetaRefusal::VersionNotSupported { in_force, supported }.to_string());
        }
        let role = match announced_role(&request) {
            Some(NodeRole::Gateway) if in_force < ClusterVersion::NODE_ROLES => {
                let needed = ClusterVersion::NODE_ROLES;
                return refused(&MetaRefusal::VersionNotInForce { needed, in_force }.to_string());
            }
            // The node announces its weight again once there is a place for it.
            Some(_) if in_force < ClusterVersion::NODE_ROLES => NodeRole::default(),
            Some(role) => role,
            None => return refused("this node does not know the role of the other one; install the same version"),
        };
        let displaced = match self.displaced(&meta, &place, &digest).await {
            Ok(displaced) => displaced,
            Err(in_use) => return in_use,
        };
        let versions = meta.announced(supported);
        let node = NewNode {
            name: request.name,
            addresses: Addresses { quic: place.to_string(), http: request.http, redis: request.redis },
            locality,
            key_digest: digest,
        };
        let join = JoinRequest {
            token: TokenId(token.id().0),
            secret_hash: token.hash().0,
            node,
            displaced: if versions.is_some() { displaced } else { Vec::new() },
            versions,
            role,
        };
        match self.shards.propose_meta(&MetaCommand::Join(join), ADMIT_TIMEOUT).await {
            Ok(MetaReply::Node(node)) => {
                tracing::info!(%node, %remote, "admitted a node");
                self.certify(self.custody.certify_key(node, &request.csr, request.valid_s), node)
            }
            Ok(MetaReply::Refused(MetaRefusal::AddressInUse(node))) => address_in_use(&meta, node),
            Ok(MetaReply::Refused(refusal)) => {
                tracing::warn!(%remote, %refusal, "refused to admit a node");
                refused(&refusal.to_string())
            }
            Ok(_) => refused("the metadata group gave an unexpected answer"),
            Err(
                error @ (ShardError::Unavailable
                | ShardError::Busy
                | ShardError::Stale(_)
                | ShardError::Damaged
                | ShardError::SnapshotExpired
                | ShardError::ObjectsMissing
                | ShardError::Unknown),
            ) => peer::join_response::Kind::Retry(error.to_string()),
        }
    }

    /// Checks that the cluster created this token. Expiry and uses are checked by the metadata group.
    async fn check_token(&self, token: &JoinToken) -> Result<(), peer::join_response::Kind> {
        let known = self.shards.topology().meta();
        let id = TokenId(token.id().0);
        let verdict = match known.token(id) {
            Some(record) => verify(Some(record), token),
            // This node's metadata may lag.
            None => match self.newer(known).await {
                Ok(newer) => verify(newer.token(id), token),
                Err(reason) => return Err(peer::join_response::Kind::Retry(reason)),
            },
        };
        verdict.map_err(|refusal| refused(&refusal.to_string()))
    }

    /// The metadata as the leader of the metadata group has it. A read, so that forged tokens write nothing.
    async fn newer(&self, known: Arc<MetaState>) -> Result<Arc<MetaState>, String> {
        let query = MetaQuery::FeedSince(known.version()).encode();
        let deadline_ms = clock::monotonic_ms() + ADMIT_TIMEOUT.as_millis() as u64;
        let answer = self.shards.request(RequestKind::Query, ShardId::META, None, query, deadline_ms).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let mut follower = MetaFollower::new(known);
        let feed = Feed::decode(&answer.payload).map_err(|error| error.to_string())?;
        follower.apply(&feed).map_err(|error| error.to_string())?;
        Ok(follower.state().clone())
    }

    /// The nodes recorded at the joiner's address, which it displaces: it has evidently returned there
    /// without their folder. A node that may be alive is not displaced.
    async fn displaced(
        &self,
        meta: &MetaState,
        place: &HostPort,
        key_digest: &[u8; 32],
    ) -> Result<Vec<Displaced>, peer::join_response::Kind> {
        let quic = place.to_string();
        let others: Vec<_> = meta.nodes_at(&quic).filter(|record| record.key_digest != *key_digest).collect();
        if others.is_empty() {
            return Ok(Vec::new());
        }
        let peers = self.network.peers();
        for record in &others {
            let peer = peers.iter().find(|peer| peer.node == record.id);
            let silent = peer.filter(|peer| peer.connected.is_none()).map(|peer| peer.since.elapsed());
            if !is_over(self.shards.topology().liveness(record.id).0, silent) {
                return Err(address_in_use(meta, record.id));
            }
        }
        // Nothing answers there as long as the joiner has no identity.
        for address in flotilla_transport::resolve(place, RESOLVE_TIMEOUT).await {
            if let Ok(node) = self.network.identify(address).await {
                return Err(address_in_use(meta, node));
            }
        }
        Ok(others.iter().map(|record| Displaced { node: record.id, incarnation: record.incarnation }).collect())
    }

    fn certify(&self, certified: Option<Certified>, node: NodeId) -> peer::join_response::Kind {
        // A refusal is final for a joiner; that the authority was just replaced is not.
        let Some(Certified { certificate, authorities }) = certified else {
            return peer::join_response::Kind::Retry("this node cannot certify others now".to_owned());
        };
        let meta = self.shards.topology().meta();
        let others = meta.nodes().filter(|record| !record.state.is_gone() && record.id != node);
        let peers =
            others.map(|record| peer::Peer { node: record.id.0, quic: record.addresses.quic.clone() }).collect();
        peer::join_response::Kind::Joined(peer::Joined {
            node: node.0,
            cluster: Bytes::copy_from_slice(&self.cluster.0),
            authority_certificate: Bytes::copy_from_slice(&authorities.current),
            certificate: Bytes::copy_from_slice(&certificate),
            peers,
            authorities: Some(authorities_to_wire(&authorities)),
        })
    }

    /// Redirects to a node that holds the authority: a voter of the metadata group, preferably its leader.
    fn redirect(&self) -> peer::join_response::Kind {
        let topology = self.shards.topology();
        let meta = topology.meta();
        let voters = meta.shard(ShardId::META).map(|shard| shard.descriptor.replicas.clone()).unwrap_or_default();
        let candidates = topology.leader(ShardId::META).into_iter().chain(voters.iter().map(|replica| replica.node));
        let mut others = candidates.filter(|node| *node != topology.node());
        match others.find_map(|node| meta.node(node)) {
            Some(record) => peer::join_response::Kind::Redirect(record.addresses.quic.clone()),
            None => peer::join_response::Kind::Retry("no voter of the metadata group is known here".to_owned()),
        }
    }
}

/// Whether the last start of a node is over, by what membership says of it and by how long this node has had
/// no connection to it; `None` if there is one.
fn is_over(liveness: MemberState, silent: Option<Duration>) -> bool {
    match (liveness, silent) {
        (_, None) | (MemberState::Alive | MemberState::Suspect, _) => false,
        (MemberState::Down | MemberState::Left, Some(_)) => true,
        // This node may have started a moment ago.
        (MemberState::Unknown, Some(silent)) => silent >= SILENT_FOR,
    }
}

fn address_in_use(meta: &MetaState, node: NodeId) -> peer::join_response::Kind {
    let name = meta.node(node).map(|record| format!(" ({})", record.name)).unwrap_or_default();
    peer::join_response::Kind::Retry(format!(
        "{node}{name} is at this address and not known to be down; if this is another node, name another address \
         with --advertise"
    ))
}

/// The role that a joining node names; `None` for one that this binary does not know.
fn announced_role(request: &peer::JoinRequest) -> Option<NodeRole> {
    match (request.role, request.weight) {
        (0, None) => Some(NodeRole::default()),
        (0, Some(weight)) => Some(NodeRole::Storage { weight }),
        (1, _) => Some(NodeRole::Gateway),
        _ => None,
    }
}

/// Compares a token's secret with what the cluster knows of it.
fn verify(known: Option<&TokenRecord>, token: &JoinToken) -> Result<(), MetaRefusal> {
    match known {
        Some(known) if TokenHash(known.hash) == token.hash() => Ok(()),
        Some(_) => Err(MetaRefusal::WrongSecret),
        None => Err(MetaRefusal::UnknownToken),
    }
}

fn refused(reason: &str) -> peer::join_response::Kind {
    peer::join_response::Kind::Refused(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_and_again_after_a_while() {
        let (a, b) = ("a:1".parse().unwrap(), "b:1".parse().unwrap());
        let mut progress = Progress::default();
        let start = Instant::now();
        assert!(progress.is_news(&a, "timed out", start) && progress.is_news(&b, "timed out", start));
        assert!(!progress.is_news(&a, "timed out", start + REMINDER_INTERVAL / 2));
        assert!(progress.is_news(&a, "busy", start + REMINDER_INTERVAL / 2));
        assert!(progress.is_news(&b, "timed out", start + REMINDER_INTERVAL));
        assert!(!progress.is_news(&a, "busy", start + REMINDER_INTERVAL));
    }

    #[test]
    fn a_node_that_may_be_alive_is_not_displaced() {
        let (long, short) = (Some(SILENT_FOR), Some(SILENT_FOR / 2));
        for (liveness, silent, over) in [
            (MemberState::Down, short, true),
            (MemberState::Left, short, true),
            (MemberState::Unknown, long, true),
            (MemberState::Unknown, short, false),
            (MemberState::Suspect, long, false),
            (MemberState::Alive, long, false),
            (MemberState::Down, None, false),
            (MemberState::Unknown, None, false),
        ] {
            assert_eq!(is_over(liveness, silent), over, "{liveness:?} {silent:?}");
        }
    }

    #[test]
    fn only_a_token_with_the_secret_that_the_cluster_knows_is_genuine() {
        let (cluster, authority, id) = (ClusterId([1; 16]), CaFingerprint([2; 32]), flotilla_identity::TokenId(3));
        let mint = || JoinToken::mint(cluster, authority, id, &mut rand::rng());
        let (genuine, forged) = (mint(), mint());
        let record = TokenRecord {
            id: TokenId(3),
            hash: genuine.hash().0,
            expires_at_ms: u64::MAX,
            uses_left: 1,
            uses_max: 1,
            created_at_ms: 0,
        };
        assert_eq!(verify(Some(&record), &genuine), Ok(()));
        assert_eq!(verify(Some(&record), &forged), Err(MetaRefusal::WrongSecret));
        assert_eq!(verify(None, &genuine), Err(MetaRefusal::UnknownToken));
    }
}
