//! Measures a store of a million small objects: memory and time of an open, of holding them, of asking which are
//! missing, of letting go of all of them, and of collections.
//!
//! `million fill DIR` makes the store, `million open DIR` measures it.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use flotilla_objects::{Collected, ObjectError, ObjectStore, Options, Scope};
use flotilla_types::{Holder, ObjectId, ReplicaId};
use rustix::time::{ClockId, clock_gettime};

const OBJECTS: u64 = 1_000_000;
/// Children of each manifest.
const CHILDREN: usize = 50_000;
const BEFORE: Holder = Holder::Checkpoint(ReplicaId(1));
const AFTER: Holder = Holder::Checkpoint(ReplicaId(2));

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, mode, dir] = &arguments[..] else { return Err("million fill|open DIR".into()) };
    let pieces: Vec<_> = (0..OBJECTS).map(|n| ObjectId::of(&bytes(n))).collect();
    let manifests: Vec<_> = pieces.chunks(CHILDREN).map(|children| (manifest(children), children)).collect();
    let resident = resident_bytes()?;
    let per_object = || resident_bytes().map(|now| now.saturating_sub(resident) / OBJECTS);
    let options = Options { segment_bytes: 4 << 20, ..Options::default() };
    let store = timed("open", || ObjectStore::open(Path::new(dir), options))?;
    println!("  {} bytes per object", per_object()?);
    if mode == "fill" {
        return Ok(timed("fill", || fill(&store, &manifests))?);
    }
    let roots: Vec<_> = manifests.iter().map(|(bytes, _)| ObjectId::of(bytes)).collect();
    timed("hold all by manifests", || store.hold(BEFORE, roots.iter().copied()));
    println!("  {} bytes per object", per_object()?);
    timed("hold all by a second holder", || store.hold(AFTER, roots.iter().copied()));
    timed("first holder lets go of one manifest of 50,000", || store.hold(BEFORE, roots[1..].iter().copied()));
    println!("  {:?}", timed("collect: no garbage", || store.collect(Scope::All))?);
    timed("second holder too", || store.hold(AFTER, roots[1..].iter().copied()));
    println!("  {:?}", timed("collect: 5 % is garbage", || store.collect(Scope::All))?);
    timed("hold all flat", || store.hold(BEFORE, pieces.iter().copied()));
    timed("hold all flat again", || store.hold(BEFORE, pieces.iter().copied()));
    println!("  {} bytes per object", per_object()?);
    ask(&store, &pieces)?;
    let (asked, longest) = meanwhile(&store, pieces[0], || {
        timed("let go of all", || {
            store.let_go(BEFORE);
            store.let_go(AFTER);
        });
    });
    println!("  a reader asked {asked} times meanwhile, and waited {longest:?} at most");
    let before = store.usage();
    let mut done = Collected { segments: 1, ..Collected::default() };
    while done.segments > 0 {
        done = timed("collect: all is garbage", || store.collect(Scope::All))?;
        println!("  {done:?}");
    }
    println!("  {before:?} to {:?}", store.usage());
    Ok(())
}

/// Asks for some thousands of the objects, spread over all, and for as many that are absent.
fn ask(store: &ObjectStore, pieces: &[ObjectId]) -> Result<(), Box<dyn std::error::Error>> {
    let (upload, now, time) = (1, Instant::now(), Duration::from_secs(60));
    store.begin_upload(upload, now, time)?;
    let spread: Vec<_> = pieces.iter().copied().step_by(37).collect();
    let absent: Vec<_> = spread.iter().map(|id| ObjectId::of(id.as_bytes())).collect();
    timed("need of 1,024 ids that nobody has read", || store.need(upload, now, &spread[..1_024]))?;
    for (what, ids) in [("present", &spread), ("held already", &spread), ("absent", &absent)] {
        let asked = 16 * 1_024;
        for ids in ids[1_024..][..asked].chunks(1_024) {
            ids.iter().try_for_each(|id| store.get(*id).map(drop).or_else(is_missing))?;
        }
        let start = cpu_time();
        for ids in ids[1_024..][..asked].chunks(1_024) {
            store.need(upload, now, ids)?;
        }
        println!("need of 1,024 ids, {what}: {} ns of CPU per id", (cpu_time() - start).as_nanos() / asked as u128);
    }
    store.end_upload(upload);
    Ok(())
}

/// How often somebody else can ask for an object during the work, and the longest time that this took.
fn meanwhile(store: &ObjectStore, id: ObjectId, work: impl FnOnce()) -> (u64, Duration) {
    let is_done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let reader = threads.spawn(|| {
            let (mut asked, mut longest) = (0, Duration::ZERO);
            while !is_done.load(Ordering::Acquire) {
                let start = Instant::now();
                std::hint::black_box(store.contains(id));
                longest = longest.max(start.elapsed());
                asked += 1;
            }
            (asked, longest)
        });
        work();
        is_done.store(true, Ordering::Release);
        reader.join().unwrap_or_default()
    })
}

fn is_missing(error: ObjectError) -> Result<(), ObjectError> {
    if matches!(error, ObjectError::Missing(_)) { Ok(()) } else { Err(error) }
}

fn fill(store: &ObjectStore, manifests: &[(Vec<u8>, &[ObjectId])]) -> Result<(), ObjectError> {
    let mut n = 0..OBJECTS;
    for (manifest, children) in manifests {
        // The manifest first: the store writes the format with tables of contents from then on.
        store.put(manifest, children)?;
        for n in n.by_ref().take(children.len()) {
            store.put(&bytes(n), &[])?;
        }
    }
    // The last segment is closed as well.
    store.put(&vec![0; 4 << 20], &[])?;
    store.sync()
}

fn bytes(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(8)
}

fn manifest(children: &[ObjectId]) -> Vec<u8> {
    children.iter().flat_map(|child| *child.as_bytes()).collect()
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (start, cpu) = (Instant::now(), cpu_time());
    let done = work();
    println!("{what}: {:?}, {:?} of CPU", start.elapsed(), cpu_time() - cpu);
    done
}

/// CPU time of this process: the machine may be busy.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Memory of this process.
fn resident_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    let pages = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = pages.split(' ').nth(1).ok_or("no resident pages")?.parse()?;
    Ok(pages * 4_096)
}
