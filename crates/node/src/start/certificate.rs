//! Keeps this node certified: renews its certificate, follows a rotation of the authority, and returns after
//! the certificate has run out.
//!
//! A certificate is renewed at two thirds of its life, and when another authority is in force, by a node that
//! holds the authority, over the connection that the certificate authenticates. If peers refuse the
//! certificate (because it ran out while this node was down, say), the node asks over the joining protocol,
//! which needs none: a request is signed by the node's key, and only the key that the metadata has of the
//! node is certified. The node itself trusts only nodes of the authority that it knows, or of one that this
//! has signed.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use flotilla_control::{PeerRequest, Shards, Topology, decode_answer};
use flotilla_identity::{CaFingerprint, JoinTrust, Life, NodeIdentity};
use flotilla_meta::{MetaCommand, MetaState};
use flotilla_transport::{Breaker, Class, PeerError, Transport, join_call, resolve};
use flotilla_types::{HostPort, NodeId};
use flotilla_wire::{decode, encode, peer};
use tokio::sync::watch;

use super::{
    authority::{Certified, Custody, authorities_from_wire, holders, now_s},
    ending::Ending,
    folder::Folder,
};

/// Pause between two tries to get a certificate.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often a node looks whether it has to renew.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the name of a node may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of one request over the joining protocol.
const RETURN_TIMEOUT: Duration = Duration::from_secs(3);
/// Age of a certificate in seconds from which refusals of peers count.
const REFUSAL_AGE_S: u64 = 10;
/// Places of nodes that a returning node tries before it looks again whether it must.
const RETURN_TRIES_MAX: usize = 8;
/// Tries between two warnings about a certificate that cannot be renewed.
const TRIES_PER_WARNING: u32 = 30;

/// What keeping this node certified needs.
pub(crate) struct Keeper {
    pub(crate) identity: watch::Sender<NodeIdentity>,
    pub(crate) folder: Arc<Folder>,
    pub(crate) custody: Arc<Custody>,
    pub(crate) topology: Arc<Topology>,
    pub(crate) network: Arc<Transport>,
    pub(crate) shards: Shards,
    pub(crate) valid: Duration,
    /// Peers to ask while the metadata names none.
    pub(crate) seeds: Vec<HostPort>,
    /// Where other nodes may be if they have moved.
    pub(crate) hints: Vec<HostPort>,
    /// Told if this node was removed.
    pub(crate) ending: Ending,
    /// Which authority certified the client ports, if it is to certify them.
    pub(crate) client_ports: Option<watch::Receiver<Option<CaFingerprint>>>,
}

impl Keeper {
    pub(crate) async fn run(self) {
        let mut metadata = self.topology.watch();
        let mut failures = 0_u32;
        loop {
            let meta = metadata.borrow_and_update().clone();
            let pause = match self.step(&meta, failures).await {
                Ok(()) => {
                    failures = 0;
                    CHECK_INTERVAL.min(self.valid / 8)
                }
                Err(error) => {
                    if failures.is_multiple_of(TRIES_PER_WARNING) {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "this node's certificate is not settled; retrying"
                        );
                    }
                    failures = failures.saturating_add(1);
                    RETRY_INTERVAL
                }
            };
            // New metadata may bring another authority. After a failure it would only repeat the request
            // sooner.
            let changed = async {
                if failures > 0 || metadata.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let _ = tokio::time::timeout(pause, changed).await;
        }
    }

    async fn step(&self, meta: &MetaState, failures: u32) -> anyhow::Result<()> {
        let custody = self.custody.clone();
        tokio::task::spawn_blocking(move || custody.tend()).await.context("the custody ended")??;
        let identity = self.identity.borrow().clone();
        if is_due(&identity, meta, now_s()) || self.is_refused(&identity) {
            let renewed = self.renew(&identity, meta, failures).await?;
            self.adopt(renewed).await?;
        } else if let Some(trusting) = trust_after_rotation(&identity, meta) {
            self.adopt(trusting).await?;
            tracing::info!("the rotation of the authority has ended: its predecessor is no longer trusted");
        }
        self.confirm(meta).await
    }

    /// Uses an identity from now on, after it is durable.
    async fn adopt(&self, identity: NodeIdentity) -> anyhow::Result<()> {
        let (folder, kept) = (self.folder.clone(), identity.clone());
        let stored = tokio::task::spawn_blocking(move || {
            folder.set_identity(&kept)?;
            Ok::<_, anyhow::Error>(folder.set_ca_pem(&kept.ca_pem())?)
        });
        stored.await.context("the store ended")??;
        self.network.set_identity(&identity)?;
        metrics::gauge!("flotilla_certificate_expires_seconds").set(identity.life().expires_s() as f64);
        self.identity.send_replace(identity);
        Ok(())
    }

    async fn renew(&self, identity: &NodeIdentity, meta: &MetaState, failures: u32) -> anyhow::Result<NodeIdentity> {
        let csr = identity.key().csr_der()?;
        let life = Life { issued_s: now_s(), valid_s: self.valid.as_secs() };
        let take = |certified: Certified| identity.renewed(certified.authorities, certified.certificate, life);
        if let Some(certified) = self.custody.certify_node(identity.node(), &csr, life.valid_s) {
            let renewed = take(certified)?;
            tracing::info!(
                valid_s = life.valid_s,
                "renewed the certificate of this node, as a holder of the authority"
            );
            return Ok(renewed);
        }
        for node in holders(&self.topology) {
            let request = PeerRequest::CertifyNode { csr: Bytes::copy_from_slice(&csr), valid_s: life.valid_s };
            let Ok(answer) = self.network.call(node, Class::Rpc, request.encode(), CALL_TIMEOUT).await else {
                continue;
            };
            let Ok(answered) = decode_answer(answer) else { continue };
            let certified = decode::<peer::Certified>(answered.payload).ok().and_then(|pb| Certified::from_wire(&pb));
            match certified.map(take) {
                Some(Ok(renewed)) => {
                    tracing::info!(valid_s = life.valid_s, by = %node, "renewed the certificate of this node");
                    return Ok(renewed);
                }
                Some(Err(error)) => tracing::warn!(%node, %error, "a renewed certificate is of no use"),
                None => {}
            }
        }
        if !identity.life().is_over(now_s()) && !self.is_refused(identity) {
            bail!("no node that holds the authority has renewed the certificate");
        }
        let renewed = self.come_back(identity, &csr, life, meta, failures).await?;
        tracing::info!(valid_s = life.valid_s, "got a new certificate for this node's key, and returns");
        Ok(renewed)
    }

    /// Asks for a certificate without one.
    async fn come_back(
        &self,
        identity: &NodeIdentity,
        csr: &[u8],
        life: Life,
        meta: &MetaState,
        failures: u32,
    ) -> anyhow::Result<NodeIdentity> {
        let request = encode(&peer::JoinRequest {
            csr: Bytes::copy_from_slice(csr),
            public_key_digest: Bytes::copy_from_slice(&identity.key().public_key_digest()),
            valid_s: life.valid_s,
            returning: identity.node().0,
            ..peer::JoinRequest::default()
        });
        let mut addresses = self.addresses(meta);
        // Another part of them in each round.
        let count = addresses.len().max(1);
        addresses.rotate_left((failures as usize * RETURN_TRIES_MAX) % count);
        let mut last = anyhow::anyhow!("no address of a node is known");
        for place in addresses.into_iter().take(RETURN_TRIES_MAX) {
            last = anyhow::anyhow!("the name in {place} does not resolve");
            for address in resolve(&place, RESOLVE_TIMEOUT).await {
                match self.return_by(identity, address, &request, life).await {
                    Ok(renewed) => return Ok(renewed),
                    Err(error) => last = error.context(format!("asked {address} to certify this node again")),
                }
            }
        }
        Err(last)
    }

    /// Places of other nodes, those of the metadata group first, and where they may have moved to last.
    fn addresses(&self, meta: &MetaState) -> Vec<HostPort> {
        let me = self.topology.node();
        let group = holders(&self.topology);
        let others = meta.nodes().map(|record| record.id).filter(|node| *node != me && !group.contains(node));
        let nodes: Vec<NodeId> = group.iter().copied().chain(others).collect();
        let known = nodes.into_iter().filter_map(|node| meta.node(node)).filter(|record| !record.state.is_gone());
        let known: Vec<HostPort> = known.filter_map(|record| record.addresses.quic.parse().ok()).collect();
        let mut places = if known.is_empty() { self.seeds.clone() } else { known };
        for hint in &self.hints {
            if !places.contains(hint) {
                places.push(hint.clone());
            }
        }
        places
    }

    async fn return_by(
        &self,
        identity: &NodeIdentity,
        address: SocketAddr,
        request: &Bytes,
        life: Life,
    ) -> anyhow::Result<NodeIdentity> {
        let answer = join_call(address, JoinTrust::Known(identity.trusted()), request.clone(), RETURN_TIMEOUT).await?;
        let response: peer::JoinResponse = decode(answer)?;
        match response.kind.context("the answer is empty")? {
            peer::join_response::Kind::Joined(joined) => {
                let authorities = joined.authorities.as_ref().and_then(authorities_from_wire);
                let authorities = authorities.context("the answer names no authority")?;
                Ok(identity.renewed(authorities, joined.certificate.to_vec().into(), life)?)
            }
            peer::join_response::Kind::Refused(reason) | peer::join_response::Kind::Retry(reason) => bail!("{reason}"),
            peer::join_response::Kind::Removed(by) => {
                self.ending.refused_by(NodeId(by));
                bail!("this node was removed from the cluster")
            }
            peer::join_response::Kind::Redirect(to) => bail!("it does not hold the authority; {to} may"),
        }
    }

    /// Whether peers refuse this node's certificate, and none accepts it. Never so soon after it was issued
    /// that they may have refused the one before.
    fn is_refused(&self, identity: &NodeIdentity) -> bool {
        let refused = |error: Option<PeerError>| matches!(error, Some(PeerError::HandshakeRefused { .. }));
        let peers = self.network.peers();
        now_s() >= identity.life().issued_s.saturating_add(REFUSAL_AGE_S)
            && peers.iter().all(|peer| peer.breaker != Breaker::Closed)
            && peers.iter().any(|peer| refused(peer.last_error))
    }

    /// Tells the metadata group that this node needs the authority before no longer.
    async fn confirm(&self, meta: &MetaState) -> anyhow::Result<()> {
        let node = self.topology.node();
        let Some(record) = meta.authority().filter(|_| meta.uncertified().contains(&node)) else { return Ok(()) };
        let current = CaFingerprint::of(&record.certificate);
        let ports = self.client_ports.as_ref().map(|issued_by| *issued_by.borrow());
        let is_certified = self.identity.borrow().ca_fingerprint() == current;
        if !is_certified || ports.is_some_and(|issued_by| issued_by != Some(current)) {
            return Ok(());
        }
        let command = MetaCommand::NodeCertified { node, serial: record.serial };
        self.shards.propose_meta(&command, CALL_TIMEOUT).await.context("the metadata group did not answer")?;
        tracing::info!(serial = record.serial, "certified by the new authority");
        Ok(())
    }
}

/// Whether the certificate is to be replaced.
fn is_due(identity: &NodeIdentity, meta: &MetaState, now_s: u64) -> bool {
    let other = meta.authority().is_some_and(|record| record.certificate[..] != identity.ca_cert()[..]);
    now_s >= identity.life().renew_at_s() || other
}

/// The identity with the trust that the metadata asks for, if it differs: without the authority before, once
/// the rotation is over.
fn trust_after_rotation(identity: &NodeIdentity, meta: &MetaState) -> Option<NodeIdentity> {
    let record = meta.authority().filter(|record| record.certificate[..] == identity.ca_cert()[..])?;
    let ended = !record.is_rotating() && identity.authorities().previous.is_some();
    ended.then(|| identity.without_previous())
}

#[cfg(test)]
mod tests {
    use flotilla_identity::{ClusterAuthority, NodeKey};
    use flotilla_types::ClusterId;

    use super::*;

    #[test]
    fn a_certificate_is_due_at_two_thirds_of_its_life() {
        let authority = ClusterAuthority::mint(ClusterId([7; 16])).unwrap();
        let key = NodeKey::generate().unwrap();
        let cert = authority.issue(NodeId(1), &key.csr_der().unwrap(), u64::MAX).unwrap();
        let identity = NodeIdentity::new(authority.cluster(), NodeId(1), authority.cert_der().clone(), cert, key);
        let identity = identity.unwrap().with_life(Life { issued_s: 100, valid_s: 90 });
        let meta = MetaState::default();
        assert!(!is_due(&identity, &meta, 159) && is_due(&identity, &meta, 160));
    }
}
