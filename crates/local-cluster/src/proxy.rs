//! A UDP proxy between the nodes that injects network faults without privileges. Every node advertises a
//! listener of this proxy instead of its own address.
//!
//! A packet from node *a* that arrives at the listener of *b* is forwarded to *b* from the listener of *a*.
//! So each node sees its peers at the addresses that they advertise, and the proxy knows the sender and the
//! receiver of each packet. Packets of unknown senders (a joining node is not registered yet) are forwarded
//! through a socket per sender, and belong to the link from [`OUTSIDE`].
//!
//! Random decisions come from a seed, but which packet gets which decision depends on timing: a seed
//! reproduces the conditions, not the run.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use socket2::{Domain, Protocol, Socket, Type};

/// Number that stands for all senders that are not nodes.
pub const OUTSIDE: usize = 0;
/// Delayed packets at most; further ones are dropped.
const DELAYED_MAX: usize = 65_536;
/// Unknown senders at most; packets of further ones are dropped.
const UNKNOWN_SENDERS_MAX: usize = 64;
/// How long a thread blocks before it checks whether it should stop.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// Bytes of the largest UDP packet.
const PACKET_BYTES_MAX: usize = 65_536;
/// Bytes of the kernel's buffers of each socket; best effort.
const BUFFER_BYTES: usize = 4 << 20;

/// Faults of the packets in one direction between two nodes. The default has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// All packets are dropped.
    pub cut: bool,
    /// Packets in a thousand that are dropped.
    pub lost_permille: u32,
    /// Packets in a thousand that are delivered twice.
    pub duplicated_permille: u32,
    /// Shortest delay of a packet, in milliseconds.
    pub delay_ms_min: u32,
    /// Longest delay, in milliseconds; 0 disables delays. The delay is drawn per packet, so a wide range
    /// reorders.
    pub delay_ms_max: u32,
}

impl Link {
    /// Drops all packets.
    pub const CUT: Self =
        Self { cut: true, lost_permille: 0, duplicated_permille: 0, delay_ms_min: 0, delay_ms_max: 0 };
}

/// Packet counters since the start of the proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets that were delivered.
    pub passed: u64,
    /// Packets that were dropped, for any reason.
    pub lost: u64,
    /// Packets that were delivered twice.
    pub duplicated: u64,
    /// Packets that were delayed.
    pub delayed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    passed: AtomicU64,
    lost: AtomicU64,
    duplicated: AtomicU64,
    delayed: AtomicU64,
}

/// The proxy of a cluster. Its threads stop when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// By node number, from 1.
    listeners: Mutex<Vec<Listener>>,
    /// By sender and receiver.
    links: Mutex<BTreeMap<(usize, usize), Link>>,
    /// By the sender's address and the receiver.
    unknown_senders: Mutex<BTreeMap<(SocketAddr, usize), Arc<UdpSocket>>>,
    random_state: Mutex<u64>,
    delayed: Mutex<BinaryHeap<Reverse<Delayed>>>,
    wake: Condvar,
    counters: Counters,
    stop: AtomicBool,
}

/// The socket that a node advertises.
#[derive(Debug, Clone)]
struct Listener {
    /// Address where the node itself listens.
    node: SocketAddr,
    socket: Arc<UdpSocket>,
}

/// A delayed packet, ordered by due time, then by arrival.
#[derive(Debug)]
struct Delayed {
    due: Instant,
    number: u64,
    through: Arc<UdpSocket>,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Delayed {}
impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl Proxy {
    /// Starts a proxy without nodes.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            listeners: Mutex::default(),
            links: Mutex::default(),
            unknown_senders: Mutex::default(),
            random_state: Mutex::new(seed),
            delayed: Mutex::default(),
            wake: Condvar::new(),
            counters: Counters::default(),
            stop: AtomicBool::new(false),
        });
        let delaying = shared.clone();
        thread::Builder::new().name("proxy-delay".to_owned()).spawn(move || delaying.send_delayed())?;
        Ok(Self { shared })
    }

    /// Adds the next node (numbered from 1), which itself listens at `node`. Returns the address that it must
    /// advertise.
    ///
    /// # Errors
    /// No socket can be bound, or no thread started.
    pub fn add(&self, node: SocketAddr) -> io::Result<SocketAddr> {
        let socket = Arc::new(socket(SocketAddr::new(node.ip(), 0))?);
        let address = socket.local_addr()?;
        let number = {
            let mut listeners = self.shared.listeners.lock();
            listeners.push(Listener { node, socket: socket.clone() });
            listeners.len()
        };
        let shared = self.shared.clone();
        let receive = move || shared.receive(&socket, |from, bytes| forward_to_node(&shared, number, from, bytes));
        thread::Builder::new().name(format!("proxy-{number}")).spawn(receive)?;
        Ok(address)
    }

    /// Sets the faults of packets from one node to another from now on. Packets already delayed are not
    /// affected.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        self.shared.links.lock().insert((from, to), link);
    }

    /// Sets the faults of all links between nodes, in both directions.
    pub fn set_all(&self, link: Link) {
        let nodes = self.shared.listeners.lock().len();
        for from in 1..=nodes {
            (1..=nodes).filter(|to| *to != from).for_each(|to| self.set(from, to, link));
        }
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.shared.links.lock().clear();
    }

    /// Packet counters so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let Counters { passed, lost, duplicated, delayed } = &self.shared.counters;
        Traffic {
            passed: passed.load(Relaxed),
            lost: lost.load(Relaxed),
            duplicated: duplicated.load(Relaxed),
            delayed: delayed.load(Relaxed),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn receive(&self, socket: &UdpSocket, take: impl Fn(SocketAddr, &[u8])) {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        while !self.stop.load(Relaxed) {
            // Errors are timeouts, or ICMP errors because a node is down: neither matters here.
            if let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
                take(from, &buffer[..bytes]);
            }
        }
    }

    /// Forwards a packet from node `from` to node `to`, subject to the faults of its link.
    fn forward(&self, from: usize, to: usize, through: Arc<UdpSocket>, target: SocketAddr, bytes: &[u8]) {
        let link = self.links.lock().get(&(from, to)).copied().unwrap_or_default();
        if link.cut || self.random_below(1_000) < link.lost_permille.into() {
            self.counters.lost.fetch_add(1, Relaxed);
            return;
        }
        let copies = if self.random_below(1_000) < link.duplicated_permille.into() { 2 } else { 1 };
        self.counters.duplicated.fetch_add(copies - 1, Relaxed);
        for _ in 0..copies {
            let (shortest, longest) = (u64::from(link.delay_ms_min), u64::from(link.delay_ms_max));
            if longest == 0 {
                let _ = through.send_to(bytes, target);
                self.counters.passed.fetch_add(1, Relaxed);
                continue;
            }
            let delay = shortest + self.random_below(longest.saturating_sub(shortest) + 1);
            let number = self.counters.delayed.fetch_add(1, Relaxed);
            let mut delayed = self.delayed.lock();
            if delayed.len() >= DELAYED_MAX {
                self.counters.lost.fetch_add(1, Relaxed);
                continue;
            }
            let due = Instant::now() + Duration::from_millis(delay);
            delayed.push(Reverse(Delayed { due, number, through: through.clone(), to: target, bytes: bytes.to_vec() }));
            self.wake.notify_one();
        }
    }

    /// Sends delayed packets when they are due, until the proxy stops.
    fn send_delayed(&self) {
        let mut delayed = self.delayed.lock();
        while !self.stop.load(Relaxed) {
            let now = Instant::now();
            let wait = delayed.peek().map_or(POLL_EVERY, |next| next.0.due.saturating_duration_since(now));
            if !wait.is_zero() {
                self.wake.wait_for(&mut delayed, wait.min(POLL_EVERY));
                continue;
            }
            if let Some(Reverse(next)) = delayed.pop() {
                let _ = next.through.send_to(&next.bytes, next.to);
                self.counters.passed.fetch_add(1, Relaxed);
            }
        }
    }

    /// A pseudo-random number below `end` (splitmix64, Steele et al. 2014).
    fn random_below(&self, end: u64) -> u64 {
        let mut state = self.random_state.lock();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}

/// Forwards a packet that arrived from `from` at the listener of node `to`.
fn forward_to_node(shared: &Arc<Shared>, to: usize, from: SocketAddr, bytes: &[u8]) {
    let (sender, target) = {
        let listeners = shared.listeners.lock();
        let sender = listeners.iter().position(|listener| listener.node == from);
        (sender.map(|i| (i + 1, listeners[i].socket.clone())), listeners[to - 1].node)
    };
    if let Some((number, through)) = sender {
        shared.forward(number, to, through, target, bytes);
    } else if let Some(through) = socket_of_unknown_sender(shared, to, from) {
        shared.forward(OUTSIDE, to, through, target, bytes);
    }
}

/// The socket that represents an unknown sender to node `to`; responses return through the node's listener.
/// `None` if there are too many or none can be made: the packet is dropped.
fn socket_of_unknown_sender(shared: &Arc<Shared>, to: usize, sender: SocketAddr) -> Option<Arc<UdpSocket>> {
    let mut unknown_senders = shared.unknown_senders.lock();
    if let Some(existing) = unknown_senders.get(&(sender, to)) {
        return Some(existing.clone());
    }
    if unknown_senders.len() >= UNKNOWN_SENDERS_MAX {
        return None;
    }
    let listener = shared.listeners.lock()[to - 1].clone();
    let own = Arc::new(socket(SocketAddr::new(listener.node.ip(), 0)).ok()?);
    let (receiving, shared) = (own.clone(), shared.clone());
    let respond = move || {
        shared.receive(&receiving, |_, bytes| shared.forward(to, OUTSIDE, listener.socket.clone(), sender, bytes));
    };
    thread::Builder::new().name("proxy-unknown".to_owned()).spawn(respond).ok()?;
    unknown_senders.insert((sender, to), own.clone());
    Some(own)
}

fn socket(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    // The system may grant less; then bursts lose packets, as on real networks.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    socket.set_read_timeout(Some(POLL_EVERY))?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes that reach each other only through the proxy.
    struct Pair {
        proxy: Proxy,
        nodes: [UdpSocket; 2],
        advertised: [SocketAddr; 2],
    }

    impl Pair {
        fn new() -> Self {
            let proxy = Proxy::start(7).expect("a thread");
            let at = SocketAddr::from(([127, 0, 0, 1], 0));
            let nodes = [(); 2].map(|()| socket(at).expect("a socket"));
            let advertised = [0, 1].map(|i: usize| {
                let node = nodes[i].local_addr().expect("a bound socket");
                proxy.add(node).expect("a listener")
            });
            Self { proxy, nodes, advertised }
        }

        fn send(&self, from: usize, text: &str) {
            self.nodes[from].send_to(text.as_bytes(), self.advertised[1 - from]).expect("a packet");
        }

        /// Waits for a packet, for at most a second.
        fn receive(&self, at: usize) -> Option<(String, SocketAddr)> {
            let mut buffer = [0; 64];
            let got = (0..10).find_map(|_| self.nodes[at].recv_from(&mut buffer).ok());
            got.map(|(bytes, from)| (String::from_utf8_lossy(&buffer[..bytes]).into_owned(), from))
        }
    }

    #[test]
    fn packets_arrive_from_the_advertised_address_of_their_sender() {
        let pair = Pair::new();
        pair.send(0, "there");
        assert_eq!(pair.receive(1), Some(("there".to_owned(), pair.advertised[0])));
        pair.send(1, "and back");
        assert_eq!(pair.receive(0), Some(("and back".to_owned(), pair.advertised[1])));
    }

    #[test]
    fn a_cut_affects_one_direction_until_it_is_healed() {
        let pair = Pair::new();
        pair.proxy.set(1, 2, Link::CUT);
        pair.send(0, "lost");
        pair.send(1, "delivered");
        assert_eq!(pair.receive(0).map(|got| got.0), Some("delivered".to_owned()));
        let start = Instant::now();
        while pair.proxy.traffic().lost == 0 {
            assert!(start.elapsed().as_secs() < 60, "no packet is lost");
            thread::yield_now();
        }
        pair.proxy.heal();
        pair.send(0, "healed");
        assert_eq!(pair.receive(1).map(|got| got.0), Some("healed".to_owned()));
    }

    #[test]
    fn packets_are_duplicated_and_reordered() {
        let pair = Pair::new();
        pair.proxy.set_all(Link { duplicated_permille: 1_000, delay_ms_max: 50, ..Link::default() });
        for number in 0..20 {
            pair.send(0, &format!("{number:02}"));
        }
        let got: Vec<_> = (0..40).filter_map(|_| pair.receive(1)).map(|got| got.0).collect();
        assert_eq!(got.len(), 40);
        assert!(!got.is_sorted(), "{got:?}");
    }

    #[test]
    fn an_unknown_sender_receives_responses_at_its_own_address() {
        let pair = Pair::new();
        let sender = socket(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
        sender.send_to(b"hello", pair.advertised[0]).expect("a packet");
        let (text, from) = pair.receive(0).expect("the sender's packet");
        assert_eq!(text, "hello");
        pair.nodes[0].send_to(b"welcome", from).expect("a packet");
        let mut buffer = [0; 64];
        let (bytes, from) = (0..10).find_map(|_| sender.recv_from(&mut buffer).ok()).expect("a response");
        assert_eq!((&buffer[..bytes], from), (&b"welcome"[..], pair.advertised[0]));
    }
}
