//! A host with real threads, on an engine whose disk reads do not return.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_identity::{ClusterAuthority, NodeIdentity, NodeKey};
use flotilla_kv::{KvMachine, Limits, Outcome, decode_outcome};
use flotilla_replication::{Answer, Freshness, Handle, Host, HostConfig, HostParts};
use flotilla_storage::{
    CompactionDue, DamagedReplica, EngineError, Fold, FoldCounts, MemoryEngine, MemoryLog, ScanBounds, ScanPage,
    Scrubbed, SplitOff, StateEngine, StateReader, Usage, WriteSet,
};
use flotilla_transport::{BoxFuture, Class, Config, Handler, PeerState, Transport};
use flotilla_types::{
    Checkpoint, CheckpointFormat, ClusterId, Epoch, Folding, Holder, Incarnation, KeyRange, LogIndex, NodeId, ObjectId,
    ObjectRef, Position, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Timestamp,
};
use parking_lot::{Condvar, Mutex};

use crate::{
    applier,
    harness::{get, key},
};

const TIMEOUT: Duration = Duration::from_secs(20);
/// Records whose key contains this are on the disk only.
const COLD: &str = "cold";

/// A disk whose reads wait while it hangs.
#[derive(Default)]
struct HangingDisk {
    state: Mutex<DiskState>,
    changed: Condvar,
}

#[derive(Default)]
struct DiskState {
    hangs: bool,
    reads_waiting: usize,
}

impl HangingDisk {
    fn set_hangs(&self, hangs: bool) {
        self.state.lock().hangs = hangs;
        self.changed.notify_all();
    }

    fn read(&self) {
        let mut state = self.state.lock();
        state.reads_waiting += 1;
        while state.hangs {
            self.changed.wait(&mut state);
        }
        state.reads_waiting -= 1;
    }
}

struct Engine {
    memory: MemoryEngine,
    disk: Arc<HangingDisk>,
}

struct Reader {
    records: Arc<dyn StateReader>,
    disk: Arc<HangingDisk>,
}

fn is_cold(key: &[u8]) -> bool {
    key.windows(COLD.len()).any(|part| part == COLD.as_bytes())
}

impl StateReader for Reader {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if is_cold(key) {
            self.disk.read();
        }
        self.records.get(key)
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.records.scan(range, items_max, bytes_max)
    }

    fn get_in_memory(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if is_cold(key) { Err(EngineError::NotInMemory) } else { self.records.get(key) }
    }

    fn scan_page_in_memory(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
        self.records.scan_page(range, bounds)
    }
}

impl Engine {
    fn wrap(&self, records: Arc<dyn StateReader>) -> Arc<dyn StateReader> {
        Arc::new(Reader { records, disk: self.disk.clone() })
    }
}

impl StateEngine for Engine {
    fn open(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.memory.open(replica, checkpoint)
    }

    fn install_snapshot(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.memory.install_snapshot(replica, checkpoint)
    }

    fn destroy(&self, replica: ReplicaId) -> Result<(), EngineError> {
        self.memory.destroy(replica)
    }

    fn reader(&self, replica: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError> {
        Ok(self.wrap(self.memory.reader(replica)?))
    }

    fn snapshot(&self, replica: ReplicaId) -> Result<Arc<dyn StateReader>, EngineError> {
        Ok(self.wrap(self.memory.snapshot(replica)?))
    }

    fn write(&self, replica: ReplicaId, records: WriteSet, applied: LogIndex) -> Result<(), EngineError> {
        StateEngine::write(&self.memory, replica, records, applied)
    }

    fn usage(&self, replica: ReplicaId) -> Usage {
        self.memory.usage(replica)
    }

    fn freeze(&self, replica: ReplicaId, position: Position, system: Bytes) -> Result<bool, EngineError> {
        self.memory.freeze(replica, position, system)
    }

    fn freeze_split(
        &self,
        replica: ReplicaId,
        position: Position,
        system: Bytes,
        split: SplitOff,
    ) -> Result<bool, EngineError> {
        self.memory.freeze_split(replica, position, system, split)
    }

    fn built_split(&self, replica: ReplicaId) -> Option<Checkpoint> {
        self.memory.built_split(replica)
    }

    fn build(&self, replica: ReplicaId, format: CheckpointFormat) -> Result<Checkpoint, EngineError> {
        self.memory.build(replica, format)
    }

    fn install_checkpoint(&self, replica: ReplicaId, checkpoint: &Checkpoint) -> Result<(), EngineError> {
        self.memory.install_checkpoint(replica, checkpoint)
    }

    fn pin_fold(&self, replica: ReplicaId, fold: Fold) -> Result<(), EngineError> {
        self.memory.pin_fold(replica, fold)
    }

    fn compaction_due(&self, replica: ReplicaId) -> CompactionDue {
        self.memory.compaction_due(replica)
    }

    fn logged_base(&self, replica: ReplicaId) -> Option<(LogIndex, ObjectId)> {
        self.memory.logged_base(replica)
    }

    fn fold_counts(&self) -> FoldCounts {
        self.memory.fold_counts()
    }

    fn compact(
        &self,
        replica: ReplicaId,
        folding: Folding,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<bool, EngineError> {
        self.memory.compact(replica, folding, is_stopped)
    }

    fn system(&self, checkpoint: &Checkpoint) -> Result<Bytes, EngineError> {
        self.memory.system(checkpoint)
    }

    fn missing(&self, objects: &[ObjectId]) -> Vec<ObjectId> {
        self.memory.missing(objects)
    }

    fn missing_or_damaged(&self, objects: &[ObjectId]) -> Result<Vec<ObjectId>, EngineError> {
        self.memory.missing_or_damaged(objects)
    }

    fn object(&self, object: ObjectId) -> Result<Bytes, EngineError> {
        self.memory.object(object)
    }

    fn expect(&self, objects: &[ObjectId]) {
        self.memory.expect(objects);
    }

    fn piece_refs(&self, piece: &Bytes) -> Result<Vec<ObjectRef>, &'static str> {
        self.memory.piece_refs(piece)
    }

    fn import(&self, object: ObjectId, bytes: Bytes, children: &[ObjectId]) -> Result<(), EngineError> {
        self.memory.import(object, bytes, children)
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.memory.sync()
    }

    fn hold(&self, holder: Holder, objects: &[ObjectId]) {
        self.memory.hold(holder, objects);
    }

    fn scrub(&self, bytes_max: u64) -> Result<Scrubbed, EngineError> {
        self.memory.scrub(bytes_max)
    }

    fn damaged(&self) -> Vec<DamagedReplica> {
        self.memory.damaged()
    }

    fn close(&self) -> Result<(), EngineError> {
        self.memory.close()
    }
}

/// A node without peers.
struct Alone;

impl Handler for Alone {
    fn on_frame(&self, _: NodeId, _: Class, _: Bytes) {}
    fn on_datagram(&self, _: NodeId, _: Bytes) {}

    fn on_call(&self, _: NodeId, _: Class, request: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { request })
    }

    fn on_join(&self, _: std::net::SocketAddr, request: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async { request })
    }

    fn on_peer(&self, _: NodeId, _: PeerState) {}

    fn admit(&self, _: NodeId) -> bool {
        false
    }
}

async fn transport() -> Arc<Transport> {
    let authority = ClusterAuthority::mint(ClusterId([7; 16])).unwrap();
    let key = NodeKey::generate().unwrap();
    let cert = authority.issue(NodeId(1), &key.csr_der().unwrap(), u64::MAX).unwrap();
    let identity = NodeIdentity::new(authority.cluster(), NodeId(1), authority.cert_der().clone(), cert, key).unwrap();
    Arc::new(Transport::start(Config::new(([127, 0, 0, 1], 0).into()), identity, Arc::new(Alone)).await.unwrap())
}

async fn start(disk: &Arc<HangingDisk>, read_threads: usize) -> Host {
    let memory = MemoryEngine::default();
    let parts = HostParts {
        node: NodeId(1),
        incarnation: Incarnation(1),
        config: HostConfig { read_threads, ..HostConfig::default() },
        log: Arc::new(MemoryLog::default()),
        engine: Arc::new(Engine { memory: memory.clone(), disk: disk.clone() }),
        values: Arc::new(memory),
        machines: Arc::new(|_| Box::new(KvMachine::new(Limits::default()))),
        lists: |_, _| Err("there are no lists"),
        seed: 7,
        notices: Box::new(|_| {}),
        fatal: Arc::new(|reason| panic!("{reason}")),
    };
    Host::start(parts, transport().await, tokio::runtime::Handle::current()).unwrap()
}

/// Polls until it holds.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < TIMEOUT, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn put(host: &Handle, shard: ShardId, name: &str) -> Answer {
    let outcome = host.propose(shard, None, Timestamp::ZERO, applier::put(name, "value"), TIMEOUT).await?;
    assert!(matches!(decode_outcome(outcome.payload.clone()), Ok(Outcome::Done { .. })));
    Ok(outcome)
}

async fn read(host: &Handle, shard: ShardId, name: &str) -> Answer {
    host.query(shard, None, get(key(name)), Freshness::Strong, TIMEOUT).await
}

fn applied(host: &Handle, shard: ShardId) -> LogIndex {
    host.status().iter().find(|replica| replica.shard == shard).unwrap().applied
}

#[tokio::test]
async fn a_disk_that_hangs_holds_up_only_the_reads_and_the_replica_that_need_it() {
    let disk = Arc::new(HangingDisk::default());
    let stopping = start(&disk, 2).await;
    let host = stopping.handle();
    let shards = [ShardId(1), ShardId(2)];
    for shard in shards {
        let replica = ReplicaDescriptor { replica: ReplicaId(shard.0), node: NodeId(1), role: ReplicaRole::Voter };
        let epoch = Epoch { range: 1, config: 1 };
        let descriptor = ShardDescriptor { shard, range: KeyRange::all(), epoch, replicas: vec![replica] };
        host.create(ReplicaId(shard.0), descriptor, true);
        until("the shard serves", || async { put(&host, shard, "warm").await.is_ok() }).await;
        put(&host, shard, COLD).await.unwrap();
    }
    disk.set_hangs(true);
    let waiting = |count| {
        let disk = &disk;
        move || async move { disk.state.lock().reads_waiting == count }
    };
    let spawn_read = |shard| {
        tokio::spawn({
            let host = host.clone();
            async move { read(&host, shard, COLD).await }
        })
    };
    // Two cold reads: one waits for the disk, and the other for a thread, since one thread is for entries.
    let cold_reads = [spawn_read(shards[0]), spawn_read(shards[1])];
    until("a read waits", waiting(1)).await;
    for shard in shards {
        put(&host, shard, "warm").await.unwrap();
        read(&host, shard, "warm").await.unwrap();
    }
    // A cold write: its shard waits, and no other.
    let cold_write = tokio::spawn({
        let host = host.clone();
        async move { put(&host, ShardId(1), COLD).await }
    });
    until("a write waits", waiting(2)).await;
    let before = applied(&host, shards[1]);
    for _ in 0..50 {
        put(&host, shards[1], "warm").await.unwrap();
        read(&host, shards[1], "warm").await.unwrap();
    }
    // The raft thread ticks: it publishes the status at each tick.
    until("a new status", || async { applied(&host, shards[1]) >= LogIndex(before.0 + 50) }).await;
    assert!(!cold_write.is_finished() && cold_reads.iter().all(|read| !read.is_finished()));
    disk.set_hangs(false);
    cold_write.await.unwrap().unwrap();
    for cold_read in cold_reads {
        cold_read.await.unwrap().unwrap();
    }
    read(&host, shards[0], "warm").await.unwrap();
    drop(host);
    tokio::task::spawn_blocking(|| stopping.stop()).await.unwrap();
}
