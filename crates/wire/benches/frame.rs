//! The cost of a frame of Raft messages: encoding domain types, and decoding with all checks.

use bytes::Bytes;
use divan::{Bencher, counter::BytesCount};
use flotilla_types::{Entry, EntryKind, LogIndex, Message, MessageKind, ReplicaId, ShardId, Term};
use flotilla_wire::{decode_frame, encode, envelope_from_wire, envelope_to_wire, peer};

/// Shards with a message in the frame.
const SHARDS: u64 = 16;

fn main() {
    divan::main();
}

/// Encodes a frame; the append of each shard has one entry of `entry_bytes`.
#[divan::bench(args = [0, 256, 16_384])]
fn write(bencher: Bencher, entry_bytes: usize) {
    let bytes = framed(messages(entry_bytes)).len();
    let counted = bencher.counter(BytesCount::new(bytes));
    counted.with_inputs(|| messages(entry_bytes)).bench_local_values(framed);
}

/// Decodes the same frame.
#[divan::bench(args = [0, 256, 16_384])]
fn read(bencher: Bencher, entry_bytes: usize) {
    let frame = framed(messages(entry_bytes));
    let counted = bencher.counter(BytesCount::new(frame.len()));
    counted.with_inputs(|| frame.clone()).bench_local_values(|frame| {
        let frame = decode_frame(frame).expect("a valid frame");
        let messages = frame.raft.into_iter().map(|envelope| envelope_from_wire(envelope).expect("a valid frame"));
        messages.collect::<Vec<_>>()
    });
}

fn framed(messages: Vec<Message>) -> Bytes {
    let envelopes = messages.into_iter().zip(1..).map(|(message, shard)| envelope_to_wire(ShardId(shard), message));
    encode(&peer::Frame { raft: envelopes.collect(), heartbeat: None, synced: 0 })
}

fn messages(entry_bytes: usize) -> Vec<Message> {
    let data = Bytes::from(vec![7; entry_bytes]);
    let message = |shard| Message {
        kind: MessageKind::Append,
        from: ReplicaId(shard),
        to: ReplicaId(shard + 100),
        term: Term(5),
        log_term: Term(5),
        index: LogIndex(1_000),
        entries: vec![Entry {
            index: LogIndex(1_001),
            term: Term(5),
            kind: EntryKind::Normal,
            data: data.clone(),
            context: Bytes::new(),
        }],
        commit: LogIndex(999),
        commit_term: Term(5),
        snapshot: None,
        reject: false,
        reject_hint: LogIndex(0),
        context: Bytes::new(),
        priority: 0,
    };
    (1..=SHARDS).map(message).collect()
}
