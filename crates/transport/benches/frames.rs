//! The cost of frames and calls between two endpoints on one machine and in one thread, including TLS.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use divan::{
    Bencher,
    counter::{BytesCount, ItemsCount},
};
use flotilla_identity::{ClusterAuthority, NodeIdentity, NodeKey};
use flotilla_transport::{BoxFuture, Breaker, Class, Config, Handler, PeerState, Transport};
use flotilla_types::{ClusterId, NodeId};
use tokio::{runtime::Runtime, sync::Notify};

/// Frames sent before the sender waits: fewer than the queue holds.
const FRAMES_PER_ROUND: usize = 256;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

fn main() {
    divan::main();
}

/// One-way frames, until the last one has arrived.
#[divan::bench(args = [128, 4_096], sample_count = 50)]
fn frames(bencher: Bencher, frame_bytes: usize) {
    let pair = Pair::connected();
    let frame = Bytes::from(vec![7; frame_bytes]);
    let counted =
        bencher.counter(ItemsCount::new(FRAMES_PER_ROUND)).counter(BytesCount::new(FRAMES_PER_ROUND * frame_bytes));
    counted.bench_local(|| pair.runtime.block_on(pair.send(&frame)));
    pair.close();
}

/// A call and its answer, with nothing else in flight.
#[divan::bench(args = [128, 4_096], sample_count = 50)]
fn call(bencher: Bencher, request_bytes: usize) {
    let pair = Pair::connected();
    let request = Bytes::from(vec![7; request_bytes]);
    bencher.bench_local(|| {
        let call = pair.one.call(NodeId(2), Class::Rpc, request.clone(), CALL_TIMEOUT);
        pair.runtime.block_on(call).expect("an answer")
    });
    pair.close();
}

struct Pair {
    runtime: Runtime,
    one: Transport,
    two: Transport,
    arrived: Arc<Arrived>,
}

impl Pair {
    fn connected() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let arrived = Arc::new(Arrived::default());
        let (one, two) = runtime.block_on(async {
            let authority = ClusterAuthority::mint(ClusterId([7; 16])).expect("an authority");
            let any = Config::new(SocketAddr::from(([127, 0, 0, 1], 0)));
            let handler: Arc<dyn Handler> = arrived.clone();
            let start = |node| Transport::start(any.clone(), identity(&authority, node), handler.clone());
            let (one, two) = (start(1).await.expect("an endpoint"), start(2).await.expect("an endpoint"));
            one.set_peer(NodeId(2), two.local_addr());
            while one.peers()[0].breaker != Breaker::Closed {
                tokio::task::yield_now().await;
            }
            (one, two)
        });
        Self { runtime, one, two, arrived }
    }

    async fn send(&self, frame: &Bytes) {
        self.arrived.count.store(0, Ordering::Relaxed);
        for _ in 0..FRAMES_PER_ROUND {
            self.one.send(NodeId(2), Class::Urgent, frame.clone()).expect("room in the queue");
        }
        self.arrived.all.notified().await;
    }

    fn close(self) {
        self.runtime.block_on(async {
            self.one.close().await;
            self.two.close().await;
        });
    }
}

/// Counts frames and notifies when a round is complete.
#[derive(Default)]
struct Arrived {
    count: AtomicUsize,
    all: Notify,
}

impl Handler for Arrived {
    fn on_frame(&self, _: NodeId, _: Class, _: Bytes) {
        if self.count.fetch_add(1, Ordering::Relaxed) + 1 == FRAMES_PER_ROUND {
            self.all.notify_one();
        }
    }

    fn on_datagram(&self, _: NodeId, _: Bytes) {}

    fn on_call(&self, _: NodeId, _: Class, request: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async move { request })
    }

    fn on_join(&self, _: SocketAddr, _: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { Bytes::new() })
    }

    fn on_peer(&self, _: NodeId, _: PeerState) {}

    fn admit(&self, _: NodeId) -> bool {
        true
    }
}

fn identity(authority: &ClusterAuthority, node: u64) -> NodeIdentity {
    let key = NodeKey::generate().expect("randomness");
    let cert = authority.issue(NodeId(node), &key.csr_der().expect("a request"), u64::MAX).expect("a certificate");
    NodeIdentity::new(authority.cluster(), NodeId(node), authority.cert_der().clone(), cert, key).expect("an identity")
}
