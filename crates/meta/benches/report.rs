//! What one report of a shard costs a node, by the number of shards: the entry applied in the metadata group,
//! and the change taken into the shard map. A table of medians; it fails above the bound.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_meta::{
    Addresses, CollectionSettings, MetaCommand, MetaMachine, MetaReply, MetaState, NewNode, ShardRecord,
};
use flotilla_placement::Sharding;
use flotilla_storage::{ApplyContext, EngineError, StateMachine, StateReader, WriteSet};
use flotilla_types::{
    ClusterId, Epoch, KeyRange, Locality, LogIndex, NodeId, Refs, ShardDescriptor, ShardId, Term, Timestamp,
};

const REPORTS: usize = 1_001;
/// Shards of one collection.
const COLLECTION: usize = 1_000;
/// What a report may cost with 20,000 shards, applied and in the map.
const BOUND: Duration = Duration::from_micros(50);

fn main() {
    println!("| shards | applied | in the map |");
    println!("|---|---|---|");
    for shards in [1_000, 5_000, 20_000] {
        let mut node = Node::with(shards);
        let [applied, mapped] = node.reports();
        println!("| {shards} | {applied:.2?} | {mapped:.2?} |");
        assert!(applied + mapped < BOUND, "a report costs more than {BOUND:?}");
    }
}

struct Node {
    machine: MetaMachine,
    index: u64,
}

impl Node {
    fn with(shards: usize) -> Self {
        let mut node = Self { machine: MetaMachine::new(Box::new(|_| ())), index: 1 };
        let founder = NewNode {
            name: "n1".to_owned(),
            addresses: Addresses { quic: "10.0.0.1:1".to_owned(), ..Addresses::default() },
            locality: Locality::default(),
            key_digest: [1; 32],
        };
        node.apply(&MetaCommand::Bootstrap { cluster: ClusterId([1; 16]), node: founder });
        for number in 0..shards / COLLECTION {
            // The metadata group is a shard too.
            let buckets = COLLECTION - usize::from(number == 0);
            node.apply(&MetaCommand::CreateCollection {
                name: format!("c{number}"),
                sharding: Sharding::Hash,
                buckets: u16::try_from(buckets).expect("few buckets"),
                replicas: 1,
                initial_nodes: vec![vec![NodeId(1)]; buckets],
                settings: CollectionSettings::NONE,
            });
        }
        assert_eq!(node.machine.state().shards().count(), shards);
        node
    }

    fn apply(&mut self, command: &MetaCommand) -> WriteSet {
        self.index += 1;
        let descriptor = ShardDescriptor {
            shard: ShardId::META,
            range: KeyRange::all(),
            epoch: Epoch::default(),
            replicas: Vec::new(),
        };
        let context = ApplyContext {
            index: LogIndex(self.index),
            term: Term(1),
            timestamp: Timestamp::from_millis(self.index),
            descriptor: &descriptor,
            refs: &Refs::NONE,
        };
        let mut writes = WriteSet::new();
        let replies = self.machine.apply(&context, &[command.encode()], &Empty, &mut writes).expect("a known format");
        assert!(!matches!(MetaReply::decode(&replies[0]), Ok(MetaReply::Refused(_)) | Err(_)), "{command:?}");
        writes
    }

    /// The medians of applying a report and of taking it into the map. Each report is of another shard.
    fn reports(&mut self) -> [Duration; 2] {
        let shards: Vec<ShardId> = self.machine.state().shards().map(|shard| shard.id).collect();
        let mut map = self.machine.state().shard_map();
        let mut times = [Vec::new(), Vec::new()];
        for number in 0..REPORTS {
            let before: Arc<MetaState> = self.machine.state().clone();
            let shard = shards[number * 7_919 % shards.len()];
            let mut descriptor = before.shard(shard).expect("a shard").descriptor.clone();
            descriptor.epoch.config += 1;
            let report = MetaCommand::ReportShard { descriptor };

            let start = Instant::now();
            let writes = self.apply(&report);
            times[0].push(start.elapsed());
            assert_eq!(writes.len(), 2, "the header and the shard");

            let start = Instant::now();
            let state = self.machine.state();
            let changes = state.shard_changes(&before);
            let reported = |record: &ShardRecord| Arc::new(record.reported());
            map = map.with(state.version(), changes.map(|(id, _, now)| (id, now.map(reported))));
            times[1].push(start.elapsed());
        }
        assert_eq!(map, self.machine.state().shard_map());
        times.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2]
        })
    }
}

/// A group without records: the machine only writes them.
struct Empty;

impl StateReader for Empty {
    fn get(&self, _: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(None)
    }

    fn scan(&self, _: &KeyRange, _: usize, _: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        Ok(Vec::new())
    }
}
