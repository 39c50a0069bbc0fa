//! Measures what objects take on disk, and what it costs to compress them.
//!
//! `space ratio DIR FILE…` stores the content of files in pieces, plain and compressed. `space pieces DIR` stores
//! 100,000 objects of 4 to 64 KiB. `space overwrite DIR ROUNDS` overwrites one value of 64 MiB.

use std::{fs, path::Path, time::Duration};

use flotilla_objects::{ObjectStore, Options, Scope};
use flotilla_types::{Holder, ObjectId, ReplicaId};
use rustix::time::{ClockId, clock_gettime};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const HOLDER: Holder = Holder::Checkpoint(ReplicaId(1));
const VALUE_BYTES: usize = 64 << 20;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ratio", dir, ref files @ ..] => ratio(Path::new(dir), files),
        ["pieces", dir] => pieces(Path::new(dir)),
        ["overwrite", dir, rounds] => overwrite(Path::new(dir), rounds.parse()?),
        _ => Err("space ratio DIR FILE… | pieces DIR | overwrite DIR ROUNDS".into()),
    }
}

fn ratio(dir: &Path, files: &[&str]) -> Result<()> {
    let mut contents = Vec::new();
    for file in files {
        contents.push((*file, fs::read(file)?));
    }
    contents.push(("JSON", json(VALUE_BYTES)));
    contents.push(("random", random(0, VALUE_BYTES)));
    for (what, content) in contents {
        for piece_bytes in [4 << 10, 16 << 10, 64 << 10] {
            let mut plain_cpu = Duration::ZERO;
            for compressible in [false, true] {
                let store = ObjectStore::open(dir.join("ratio"), Options::default())?;
                store.allow_compression();
                let before = cpu_time();
                for piece in content.chunks(piece_bytes) {
                    let id = if compressible { store.put_compressible(piece, &[])? } else { store.put(piece, &[])? };
                    store.unpin(id);
                }
                let put_cpu = cpu_time() - before;
                if !compressible {
                    plain_cpu = put_cpu;
                } else {
                    let before = cpu_time();
                    for piece in content.chunks(piece_bytes) {
                        store.get(ObjectId::of(piece))?;
                    }
                    let per_mib = |cpu: Duration| cpu.as_secs_f64() * 1e3 / (content.len() as f64 / 1_048_576.0);
                    println!(
                        "{what}, pieces of {piece_bytes}: {:.3} of the bytes on disk; ms of CPU per MiB: put {:.2} \
                         plain, {:.2} compressible; get {:.2} with two hashes",
                        store.usage().disk_bytes as f64 / content.len() as f64,
                        per_mib(plain_cpu),
                        per_mib(put_cpu),
                        per_mib(cpu_time() - before),
                    );
                }
                drop(store);
                fs::remove_dir_all(dir.join("ratio"))?;
            }
        }
    }
    Ok(())
}

fn pieces(dir: &Path) -> Result<()> {
    for (what, content) in [("JSON", json(VALUE_BYTES)), ("random", random(0, VALUE_BYTES))] {
        let store = ObjectStore::open(dir.join("pieces"), Options::default())?;
        store.allow_compression();
        let mut plain_bytes = 0;
        for n in 0..100_000_usize {
            // 4 to 64 KiB, 16 KiB on average, from all over the content.
            let bytes = 4_096 + [0, 2, 5, 7, 9, 12, 15, 20, 30, 60][n % 10] * 784;
            let start = n * 7_919 % (content.len() - bytes);
            let id = store.put_compressible(&content[start..start + bytes], &[])?;
            store.unpin(id);
            plain_bytes += bytes;
        }
        store.sync()?;
        let (files, bytes, blocks) = on_disk(&dir.join("pieces"))?;
        println!("{what}: {plain_bytes} bytes plain; {files} files of {bytes} bytes, {blocks} with their blocks");
        drop(store);
        fs::remove_dir_all(dir.join("pieces"))?;
    }
    Ok(())
}

fn overwrite(dir: &Path, rounds: u64) -> Result<()> {
    let dir = &dir.join("overwrite");
    let store = ObjectStore::open(dir, Options::default())?;
    store.allow_compression();
    let (mut most, mut moved, before) = (0, 0, cpu_time());
    for round in 0..rounds {
        let value = random(round, VALUE_BYTES);
        let (mut rest, mut pieces) = (&value[..], Vec::new());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(4_096 + 96 * usize::from(rest[0])));
            pieces.push(store.put_compressible(piece, &[])?);
            rest = after;
        }
        let list: Vec<u8> = pieces.iter().flat_map(|id| id.0).collect();
        let root = store.put(&list, &pieces)?;
        store.sync()?;
        store.hold(HOLDER, [root]);
        pieces.iter().chain([&root]).for_each(|id| store.unpin(*id));
        most = most.max(on_disk(dir)?.2);
        moved += store.collect(Scope::All)?.moved_bytes;
    }
    let after = on_disk(dir)?.2;
    println!(
        "{rounds} rounds: at most {:.2} of the value on disk, {:.2} at the end; {:.3} of what was stored was moved; \
         {:?} of CPU",
        most as f64 / VALUE_BYTES as f64,
        after as f64 / VALUE_BYTES as f64,
        moved as f64 / (rounds as f64 * VALUE_BYTES as f64),
        cpu_time() - before,
    );
    fs::remove_dir_all(dir)?;
    Ok(())
}

fn random(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut content);
    content
}

/// Lines of records whose values differ.
fn json(bytes: usize) -> Vec<u8> {
    let line = |n: u64| {
        let hash = blake3::hash(&n.to_le_bytes());
        let name = &hash.to_hex()[..12];
        format!(
            "{{\"id\":{n},\"name\":\"{name}\",\"score\":{},\"active\":{},\"tags\":[\"red\",\"blue\"],\"updated\":\"2026-11-{:02}T09:{:02}:00Z\"}}\n",
            hash.as_bytes()[0],
            hash.as_bytes()[1] > 127,
            n % 30 + 1,
            n % 60,
        )
    };
    (0..).flat_map(|n| line(n).into_bytes()).take(bytes).collect()
}

/// Files of a folder, their bytes, and the bytes of their blocks.
fn on_disk(dir: &Path) -> Result<(u64, u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let mut sums = (0, 0, 0);
    for file in fs::read_dir(dir)? {
        let metadata = file?.metadata()?;
        sums = (sums.0 + 1, sums.1 + metadata.len(), sums.2 + metadata.blocks() * 512);
    }
    Ok(sums)
}

/// CPU time of this process: the machine may be busy.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
