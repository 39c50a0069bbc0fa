//! Where a peer may be, and dialling it there.
//!
//! A peer has one address that the layers above name, and a few that this node learnt: where connections of
//! the peer come from, and what other nodes say. TLS proves who answers, so a wrong address costs a dial and
//! nothing else. A name is resolved for every dial.

use std::{future::Future, net::SocketAddr, time::Duration};

use flotilla_types::HostPort;
use tokio::{
    net::lookup_host,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::PeerError;

/// Learnt addresses that are kept of a peer; the oldest is forgotten.
const LEARNT_MAX: usize = 3;
/// Addresses of a name that are dialled.
pub(crate) const RESOLVED_MAX: usize = 4;
/// How long one address may take before the next one is dialled too (RFC 8305). Above a handshake's three
/// round trips on most paths: when two dials succeed, the peer closes the connection of the first.
const STAGGER: Duration = Duration::from_millis(750);

/// The addresses of a peer.
#[derive(Debug)]
pub(crate) struct Targets {
    /// Where it last was connected.
    last: Option<SocketAddr>,
    /// Newest first.
    learnt: Vec<SocketAddr>,
    /// Whether the newest learnt address is newer than the named one.
    learnt_first: bool,
}

impl Targets {
    pub(crate) const fn new() -> Self {
        Self { last: None, learnt: Vec::new(), learnt_first: false }
    }

    /// Adds an address at which the peer was seen.
    pub(crate) fn learn(&mut self, address: SocketAddr) {
        self.learnt.retain(|known| *known != address);
        self.learnt.insert(0, address);
        self.learnt.truncate(LEARNT_MAX);
        self.learnt_first = true;
    }

    /// Called when the peer is said to be elsewhere.
    pub(crate) fn renamed(&mut self) {
        self.last = None;
        self.learnt_first = false;
    }

    /// Called when the peer is connected.
    pub(crate) fn connected(&mut self, address: SocketAddr) {
        self.last = Some(address);
    }

    /// The addresses to dial, the most promising first. `named` are those of the named address.
    pub(crate) fn to_dial(&self, named: &[SocketAddr]) -> Vec<SocketAddr> {
        let (first, second) = if self.learnt_first { (&self.learnt[..], named) } else { (named, &self.learnt[..]) };
        let mut targets = Vec::with_capacity(1 + LEARNT_MAX + RESOLVED_MAX);
        for address in self.last.iter().chain(first).chain(second) {
            if !targets.contains(address) {
                targets.push(*address);
            }
        }
        targets
    }
}

/// The addresses of a host now, a few of them; none when its name does not resolve within this time.
pub async fn resolve(host: &HostPort, within: Duration) -> Vec<SocketAddr> {
    match host {
        HostPort::Address(address) => vec![*address],
        HostPort::Name { host, port } => match timeout(within, lookup_host((host.as_str(), *port))).await {
            Ok(Ok(found)) => found.take(RESOLVED_MAX).collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        },
    }
}

/// Dials the addresses in turn, the next one when a dial fails or takes longer than [`STAGGER`], until one
/// succeeds.
///
/// # Errors
/// Why the last dial failed, but rather what the peer itself said: only there is this node refused.
pub(crate) async fn dial_first<T, D>(
    targets: Vec<SocketAddr>,
    dial: impl Fn(SocketAddr) -> D,
) -> Result<(SocketAddr, T), PeerError>
where
    T: Send + 'static,
    D: Future<Output = Result<T, PeerError>> + Send + 'static,
{
    // Dropping the set ends the dials that are not needed any more.
    let mut dials = JoinSet::new();
    let mut failed = PeerError::Address;
    for target in targets {
        let dialling = dial(target);
        dials.spawn(async move { (target, dialling.await) });
        tokio::select! {
            dialled = next(&mut dials, &mut failed) => if let Some(dialled) = dialled { return Ok(dialled) },
            () = sleep(STAGGER) => {}
        }
    }
    while !dials.is_empty() {
        if let Some(dialled) = next(&mut dials, &mut failed).await {
            return Ok(dialled);
        }
    }
    Err(failed)
}

/// How much a failure says of this node at its peer, which has proved who it is before it refuses another.
fn said_by_peer(error: PeerError) -> u8 {
    match error {
        PeerError::Removed => 2,
        PeerError::HandshakeRefused { .. } => 1,
        _ => 0,
    }
}

/// Waits for one dial. `None` if it failed.
async fn next<T: 'static>(
    dials: &mut JoinSet<(SocketAddr, Result<T, PeerError>)>,
    failed: &mut PeerError,
) -> Option<(SocketAddr, T)> {
    match dials.join_next().await? {
        Ok((target, Ok(dialled))) => Some((target, dialled)),
        Ok((_, Err(error))) => {
            if said_by_peer(error) >= said_by_peer(*failed) {
                *failed = error;
            }
            None
        }
        // Only if the runtime shuts down.
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn the_newest_knowledge_is_dialled_first() {
        let named = [address(1)];
        let mut targets = Targets::new();
        assert_eq!(targets.to_dial(&named), [address(1)]);
        targets.learn(address(2));
        targets.learn(address(3));
        targets.learn(address(2));
        assert_eq!(targets.to_dial(&named), [address(2), address(3), address(1)]);
        targets.connected(address(3));
        assert_eq!(targets.to_dial(&named), [address(3), address(2), address(1)]);
        targets.renamed();
        assert_eq!(targets.to_dial(&[address(4)]), [address(4), address(2), address(3)]);
        for port in 10..20 {
            targets.learn(address(port));
        }
        assert_eq!(targets.to_dial(&named), [address(19), address(18), address(17), address(1)]);
    }

    #[tokio::test]
    async fn a_silent_address_does_not_hold_up_the_next_one() {
        let dialled = Arc::new(Mutex::new(Vec::new()));
        let dial = |target: SocketAddr| {
            dialled.lock().unwrap().push(target.port());
            async move {
                match target.port() {
                    1 => std::future::pending().await,
                    2 => Err(PeerError::TimedOut),
                    port => Ok(port),
                }
            }
        };
        let all = vec![address(1), address(2), address(3), address(4)];
        let start = std::time::Instant::now();
        assert_eq!(dial_first(all, dial).await, Ok((address(3), 3)));
        assert!(start.elapsed() >= STAGGER);
        assert_eq!(*dialled.lock().unwrap(), [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_refusal_is_not_hidden_by_other_failures() {
        let refused = PeerError::HandshakeRefused { alert: 45 };
        let dial = |target: SocketAddr| async move {
            Err::<(), _>(match target.port() {
                1 => PeerError::Removed,
                3 => refused,
                _ => PeerError::TimedOut,
            })
        };
        assert_eq!(dial_first(vec![address(1), address(2)], dial).await, Err(PeerError::Removed));
        assert_eq!(dial_first(vec![address(1), address(3)], dial).await, Err(PeerError::Removed));
        assert_eq!(dial_first(vec![address(2), address(3), address(4)], dial).await, Err(refused));
        assert_eq!(dial_first(vec![address(2)], dial).await, Err(PeerError::TimedOut));
        assert_eq!(dial_first(Vec::new(), dial).await, Err(PeerError::Address));
    }
}
