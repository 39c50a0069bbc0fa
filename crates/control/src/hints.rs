//! Hints: addresses at which nodes of the cluster may be, whatever the metadata says. They bring a node back
//! whose peers all have other addresses than before: whoever is found there knows where the others are.
//!
//! A hint is dialled while some peer is not connected. The node that answers is known by its certificate, and
//! its address is then one of those at which it is dialled.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use flotilla_transport::{PeerStatus, resolve};
use flotilla_types::HostPort;
use futures_util::future::join_all;

use crate::loops::Context;

/// The pause before the first try of all hints. Doubles up to [`PAUSE_MAX`]; starts again when all peers were
/// connected in between.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// How long the names of the hints may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Tries the hints until the node stops.
pub(crate) async fn follow(context: Arc<Context>, hints: Vec<HostPort>) {
    if hints.is_empty() {
        return;
    }
    // Addresses of this node: an operator may give every node the same list.
    let mut own = BTreeSet::new();
    let mut pause = PAUSE_MIN;
    loop {
        // The first pause lets the addresses in the metadata be tried before.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        let peers = context.network.peers();
        if is_complete(&peers) {
            pause = PAUSE_MIN;
        } else {
            let connected: BTreeSet<_> = peers.iter().filter_map(|peer| peer.connected).collect();
            let resolved = join_all(hints.iter().map(|hint| resolve(hint, RESOLVE_TIMEOUT))).await;
            let untried: BTreeSet<SocketAddr> = resolved.into_iter().flatten().collect();
            let untried = untried.into_iter().filter(|at| !connected.contains(at) && !own.contains(at));
            for at in join_all(untried.map(|at| find(&context, at))).await.into_iter().flatten() {
                own.insert(at);
            }
        }
    }
}

/// Whether every peer is connected. A node that knows no peer has somebody to find.
fn is_complete(peers: &[PeerStatus]) -> bool {
    !peers.is_empty() && peers.iter().all(|peer| peer.connected.is_some())
}

/// Asks who is at an address, and lets the transport dial it there. Returns the address if it is this node's.
async fn find(context: &Context, at: SocketAddr) -> Option<SocketAddr> {
    let found = match context.network.identify(at).await {
        Ok(node) if node == context.me.node => return Some(at),
        Ok(node) => node,
        Err(error) => {
            tracing::debug!(%at, %error, "no node of this cluster answers at this address of --join");
            return None;
        }
    };
    let meta = context.topology.meta();
    match meta.node(found) {
        _ if meta.is_gone(found) => {}
        Some(_) => {
            tracing::debug!(node = %found, %at, "found at an address of --join");
            context.network.learn_address(found, at);
        }
        // It joined after the metadata that this node has.
        None => {
            tracing::info!(node = %found, %at, "found a node of this cluster at an address of --join");
            context.network.set_peer(found, at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use flotilla_transport::Breaker;
    use flotilla_types::NodeId;

    use super::*;

    #[test]
    fn hints_are_needed_until_every_peer_is_connected() {
        let at = SocketAddr::from(([127, 0, 0, 1], 1));
        let peer = |node: u64, connected| PeerStatus {
            node: NodeId(node),
            address: at.into(),
            connected,
            breaker: Breaker::Open,
            rtt: None,
            since: Instant::now(),
            last_error: None,
        };
        assert!(!is_complete(&[]));
        assert!(!is_complete(&[peer(1, Some(at)), peer(2, None)]));
        assert!(is_complete(&[peer(1, Some(at)), peer(2, Some(at))]));
    }
}
