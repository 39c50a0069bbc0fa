//! A network between the nodes that can be hurt without privileges: every node advertises a door of this proxy, and every packet passes
//! through the doors of both sides.
//!
//! A packet that comes in at the door of *b* from the address of *a* leaves through the door of *a* towards *b*. So each node sees its
//! peers at the addresses that they advertise, and the proxy knows for each packet whose it is and whose it will be. Packets of others (a
//! node that joins has no address yet) pass through a socket made for them, as link from [`OUTSIDE`].
//!
//! Chance comes from a seed. Which packet meets which chance depends on the machine's timing all the same: a seed repeats the
//! conditions, not the run.

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

/// Where packets come from that belong to no node.
pub const OUTSIDE: usize = 0;
/// Packets that may wait for their time; beyond it they are lost.
const DELAYED_MAX: usize = 65_536;
/// Sockets for strangers; beyond it their packets are lost.
const STRANGERS_MAX: usize = 64;
/// How long a thread waits for a packet before it looks whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The largest UDP packet.
const PACKET_BYTES_MAX: usize = 65_536;
/// The system's buffer for each door; best effort.
const BUFFER_BYTES: usize = 4 << 20;

/// What happens to packets in one direction. The default is a perfect wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// Nothing passes.
    pub cut: bool,
    /// Packets of a thousand that are lost.
    pub lost_permille: u32,
    /// Packets of a thousand that arrive twice.
    pub doubled_permille: u32,
    /// Shortest and longest delay in milliseconds, drawn for each packet: a wide range reorders.
    pub delay_ms: (u32, u32),
}

impl Link {
    /// Nothing passes.
    pub const CUT: Self = Self { cut: true, lost_permille: 0, doubled_permille: 0, delay_ms: (0, 0) };
}

/// What has passed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets that arrived.
    pub passed: u64,
    /// Packets that were lost, for whichever reason.
    pub lost: u64,
    /// Packets that arrived twice.
    pub doubled: u64,
    /// Packets that had to wait.
    pub delayed: u64,
}

/// The proxy of a cluster. Ends its threads when dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    doors: Mutex<Vec<Door>>,
    links: Mutex<BTreeMap<(usize, usize), Link>>,
    strangers: Mutex<BTreeMap<(SocketAddr, usize), Arc<UdpSocket>>>,
    chance: Mutex<u64>,
    delayed: Mutex<BinaryHeap<Reverse<Delayed>>>,
    wake: Condvar,
    counts: [AtomicU64; 4],
    stop: AtomicBool,
}

#[derive(Debug, Clone)]
struct Door {
    /// Where the node itself listens.
    node: SocketAddr,
    socket: Arc<UdpSocket>,
}

/// Ordered by time, then by arrival.
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
    /// A proxy without doors.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            doors: Mutex::default(),
            links: Mutex::default(),
            strangers: Mutex::default(),
            chance: Mutex::new(seed),
            delayed: Mutex::default(),
            wake: Condvar::new(),
            counts: Default::default(),
            stop: AtomicBool::new(false),
        });
        let clock = shared.clone();
        thread::Builder::new().name("proxy-delay".to_owned()).spawn(move || clock.deliver())?;
        Ok(Self { shared })
    }

    /// A door for the next node (nodes count from 1), which itself listens at `node`. The node advertises what this returns.
    ///
    /// # Errors
    /// No socket, or no thread.
    pub fn add(&self, node: SocketAddr) -> io::Result<SocketAddr> {
        let socket = Arc::new(socket(SocketAddr::new(node.ip(), 0))?);
        let address = socket.local_addr()?;
        let number = {
            let mut doors = self.shared.doors.lock();
            doors.push(Door { node, socket: socket.clone() });
            doors.len()
        };
        let shared = self.shared.clone();
        let receive = move || shared.receive(&socket, |from, bytes| come_in(&shared, number, from, bytes));
        thread::Builder::new().name(format!("proxy-{number}")).spawn(receive)?;
        Ok(address)
    }

    /// What happens from now on to packets from one node to another. Those under way are not called back.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        self.shared.links.lock().insert((from, to), link);
    }

    /// The same for all links between nodes, in both directions.
    pub fn set_all(&self, link: Link) {
        let nodes = self.shared.doors.lock().len();
        for from in 1..=nodes {
            (1..=nodes).filter(|to| *to != from).for_each(|to| self.set(from, to, link));
        }
    }

    /// All wires are perfect again.
    pub fn heal(&self) {
        self.shared.links.lock().clear();
    }

    /// What has passed so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let [passed, lost, doubled, delayed] = [0, 1, 2, 3].map(|i: usize| self.shared.counts[i].load(Relaxed));
        Traffic { passed, lost, doubled, delayed }
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
            // A timeout, or an answer to a packet that a dead node did not take: neither matters here.
            if let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
                take(from, &buffer[..bytes]);
            }
        }
    }

    /// Sends a packet on, as its link demands.
    fn pass(&self, from: usize, to: usize, through: Arc<UdpSocket>, target: SocketAddr, bytes: &[u8]) {
        let link = self.links.lock().get(&(from, to)).copied().unwrap_or_default();
        if link.cut || self.draw(1_000) < link.lost_permille.into() {
            self.counts[1].fetch_add(1, Relaxed);
            return;
        }
        let copies = if self.draw(1_000) < link.doubled_permille.into() { 2 } else { 1 };
        self.counts[2].fetch_add(copies - 1, Relaxed);
        for _ in 0..copies {
            let (shortest, longest) = (u64::from(link.delay_ms.0), u64::from(link.delay_ms.1));
            if longest == 0 {
                let _ = through.send_to(bytes, target);
                self.counts[0].fetch_add(1, Relaxed);
                continue;
            }
            let delay = shortest + self.draw(longest.saturating_sub(shortest) + 1);
            let number = self.counts[3].fetch_add(1, Relaxed);
            let mut delayed = self.delayed.lock();
            if delayed.len() >= DELAYED_MAX {
                self.counts[1].fetch_add(1, Relaxed);
                continue;
            }
            let due = Instant::now() + Duration::from_millis(delay);
            delayed.push(Reverse(Delayed { due, number, through: through.clone(), to: target, bytes: bytes.to_vec() }));
            self.wake.notify_one();
        }
    }

    /// Sends what has waited long enough.
    fn deliver(&self) {
        let mut delayed = self.delayed.lock();
        while !self.stop.load(Relaxed) {
            let now = Instant::now();
            let wait = delayed.peek().map_or(LOOK_EVERY, |next| next.0.due.saturating_duration_since(now));
            if !wait.is_zero() {
                self.wake.wait_for(&mut delayed, wait.min(LOOK_EVERY));
                continue;
            }
            if let Some(Reverse(next)) = delayed.pop() {
                let _ = next.through.send_to(&next.bytes, next.to);
                self.counts[0].fetch_add(1, Relaxed);
            }
        }
    }

    /// A number below `end`, from the seed (splitmix64, Steele et al. 2014).
    fn draw(&self, end: u64) -> u64 {
        let mut state = self.chance.lock();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}

/// A packet at the door of node `to`.
fn come_in(shared: &Arc<Shared>, to: usize, from: SocketAddr, bytes: &[u8]) {
    let (known, target) = {
        let doors = shared.doors.lock();
        let known = doors.iter().position(|door| door.node == from).map(|i| (i + 1, doors[i].socket.clone()));
        (known, doors[to - 1].node)
    };
    // A stranger that no socket can be made for is a stranger whose packets are lost.
    let known = known.or_else(|| Some((OUTSIDE, for_stranger(shared, to, from)?)));
    if let Some((number, through)) = known {
        shared.pass(number, to, through, target, bytes);
    }
}

/// The socket that stands for a stranger before node `to`; answers to it go back through the node's door.
fn for_stranger(shared: &Arc<Shared>, to: usize, stranger: SocketAddr) -> Option<Arc<UdpSocket>> {
    let mut strangers = shared.strangers.lock();
    if let Some(known) = strangers.get(&(stranger, to)) {
        return Some(known.clone());
    }
    if strangers.len() >= STRANGERS_MAX {
        return None;
    }
    let door = shared.doors.lock()[to - 1].clone();
    let own = Arc::new(socket(SocketAddr::new(door.node.ip(), 0)).ok()?);
    let (receiving, shared) = (own.clone(), shared.clone());
    let back = move || {
        shared.receive(&receiving, |_, bytes| shared.pass(to, OUTSIDE, door.socket.clone(), stranger, bytes));
    };
    thread::Builder::new().name("proxy-stranger".to_owned()).spawn(back).ok()?;
    strangers.insert((stranger, to), own.clone());
    Some(own)
}

fn socket(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    // The system may grant less; then bursts lose packets, as networks do.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    socket.set_read_timeout(Some(LOOK_EVERY))?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes that each know the other only by its door.
    struct Pair {
        proxy: Proxy,
        nodes: [UdpSocket; 2],
        doors: [SocketAddr; 2],
    }

    impl Pair {
        fn new() -> Self {
            let proxy = Proxy::start(7).expect("a thread");
            let at = SocketAddr::from(([127, 0, 0, 1], 0));
            let nodes = [(); 2].map(|()| socket(at).expect("a socket"));
            let doors = [0, 1].map(|i: usize| {
                let node = nodes[i].local_addr().expect("a bound socket");
                proxy.add(node).expect("a door")
            });
            Self { proxy, nodes, doors }
        }

        fn send(&self, from: usize, text: &str) {
            self.nodes[from].send_to(text.as_bytes(), self.doors[1 - from]).expect("a packet");
        }

        /// Waits for a packet, a second at most.
        fn receive(&self, at: usize) -> Option<(String, SocketAddr)> {
            let mut buffer = [0; 64];
            let got = (0..10).find_map(|_| self.nodes[at].recv_from(&mut buffer).ok());
            got.map(|(bytes, from)| (String::from_utf8_lossy(&buffer[..bytes]).into_owned(), from))
        }
    }

    #[test]
    fn a_packet_comes_from_the_door_of_its_sender() {
        let pair = Pair::new();
        pair.send(0, "there");
        assert_eq!(pair.receive(1), Some(("there".to_owned(), pair.doors[0])));
        pair.send(1, "and back");
        assert_eq!(pair.receive(0), Some(("and back".to_owned(), pair.doors[1])));
    }

    #[test]
    fn a_cut_is_one_way_until_it_is_healed() {
        let pair = Pair::new();
        pair.proxy.set(1, 2, Link::CUT);
        pair.send(0, "lost");
        pair.send(1, "heard");
        assert_eq!(pair.receive(0).map(|got| got.0), Some("heard".to_owned()));
        let begun = Instant::now();
        while pair.proxy.traffic().lost == 0 {
            assert!(begun.elapsed().as_secs() < 60, "nothing is lost");
            thread::yield_now();
        }
        pair.proxy.heal();
        pair.send(0, "healed");
        assert_eq!(pair.receive(1).map(|got| got.0), Some("healed".to_owned()));
    }

    #[test]
    fn packets_are_doubled_and_delayed_out_of_order() {
        let pair = Pair::new();
        pair.proxy.set_all(Link { doubled_permille: 1_000, delay_ms: (0, 50), ..Link::default() });
        for number in 0..20 {
            pair.send(0, &format!("{number:02}"));
        }
        let got: Vec<_> = (0..40).filter_map(|_| pair.receive(1)).map(|got| got.0).collect();
        assert_eq!(got.len(), 40);
        assert!(!got.is_sorted(), "{got:?}");
    }

    #[test]
    fn a_stranger_is_answered_at_its_own_address() {
        let pair = Pair::new();
        let stranger = socket(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
        stranger.send_to(b"hello", pair.doors[0]).expect("a packet");
        let (text, from) = pair.receive(0).expect("the stranger's packet");
        assert_eq!(text, "hello");
        pair.nodes[0].send_to(b"welcome", from).expect("a packet");
        let mut buffer = [0; 64];
        let (bytes, from) = (0..10).find_map(|_| stranger.recv_from(&mut buffer).ok()).expect("an answer");
        assert_eq!((&buffer[..bytes], from), (&b"welcome"[..], pair.doors[0]));
    }
}
