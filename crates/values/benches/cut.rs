//! The cost of cutting: finding the ends of chunks, hashing each chunk and the whole content.

use std::hint::black_box;

use divan::{Bencher, counter::BytesCount};
use flotilla_types::ObjectId;
use flotilla_values::{Chunking, Cutter};

const VALUE_BYTES: usize = 64 << 20;

fn main() {
    divan::main();
}

fn random() -> Vec<u8> {
    let mut bytes = vec![0; VALUE_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn cut(chunking: Chunking, value: &[u8], push_bytes: usize) {
    let mut cutter = Cutter::new(chunking, value.len() as u64);
    for mut push in value.chunks(push_bytes) {
        while let Some(object) = cutter.push(&mut push).expect("short enough") {
            black_box(object);
        }
    }
    black_box(cutter.finish());
}

/// By the average length of chunks, KiB.
#[divan::bench(args = [16, 64, 256], sample_count = 10)]
fn whole(bencher: Bencher, average_kib: u32) {
    let value = random();
    let average = average_kib << 10;
    let chunking = Chunking::new(average / 4, average, average * 4).expect("valid lengths");
    bencher.counter(BytesCount::new(VALUE_BYTES)).bench_local(|| cut(chunking, &value, VALUE_BYTES));
}

/// By the length of a push, bytes.
#[divan::bench(args = [1_000, 8_192, 65_536], sample_count = 10)]
fn streamed(bencher: Bencher, push_bytes: usize) {
    let value = random();
    bencher.counter(BytesCount::new(VALUE_BYTES)).bench_local(|| cut(Chunking::default(), &value, push_bytes));
}

/// The hash alone, as the bound.
#[divan::bench(sample_count = 10)]
fn hash(bencher: Bencher) {
    let value = random();
    bencher.counter(BytesCount::new(VALUE_BYTES)).bench_local(|| ObjectId::of(&value));
}
