//! A folder of objects that were fetched once.
//!
//! Each object is a file named by its id, in a folder named by the first byte of the id. It is written under
//! another name and renamed, and verified when it is read, so that several processes can use one folder, and a file
//! that was damaged or is incomplete is fetched again. The least recently used objects are removed first.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use flotilla_types::ObjectId;
use flotilla_values::CHUNK_BYTES_MAX;

/// Beginning of the names of files that are being written.
const UNFINISHED: &str = ".unfinished-";
/// How old such a file is at least if its process has ended without removing it.
const UNFINISHED_FOR: Duration = Duration::from_secs(3_600);
/// The folder is looked through after so much of its limit was written.
const LOOK_AFTER_ONE_IN: u64 = 16;

/// A cache of objects in a folder, which other processes can use at the same time. Clones share it.
///
/// Its files have `bytes_max` bytes together at most, and a sixteenth more for each further process that writes.
#[derive(Debug, Clone)]
pub struct ValueCache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    bytes_max: u64,
    /// Bytes written since the folder was looked through.
    written: AtomicU64,
}

impl ValueCache {
    /// Opens a cache, and creates its folder if there is none.
    ///
    /// # Errors
    /// The folder cannot be created, or is none.
    pub fn open(root: impl AsRef<Path>, bytes_max: u64) -> io::Result<Self> {
        let root = root.as_ref().to_owned();
        fs::create_dir_all(&root)?;
        // The first write looks at what earlier processes left.
        Ok(Self(Arc::new(Inner { root, bytes_max, written: AtomicU64::new(u64::MAX / 2) })))
    }

    /// Reads an object. One that is damaged is removed. Blocks.
    pub(super) fn read(&self, id: ObjectId) -> Option<Bytes> {
        let path = self.path(id);
        let file = File::open(&path).ok()?;
        let mut bytes = Vec::new();
        // Chunks are the longest objects.
        let read = (&file).take(u64::from(CHUNK_BYTES_MAX) + 1).read_to_end(&mut bytes);
        if read.is_err() || ObjectId::of(&bytes) != id {
            let _ = fs::remove_file(path);
            return None;
        }
        // Without it the object is removed earlier, which costs no more than fetching it again.
        let _ = file.set_modified(SystemTime::now());
        Some(bytes.into())
    }

    /// Writes an object. Blocks. Whether that succeeds makes no difference but that it may be fetched again.
    pub(super) fn write(&self, id: ObjectId, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(id);
        let folder = path.parent().unwrap_or(&self.0.root);
        fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.persist(&path)?;
        let written = self.0.written.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
        if written >= self.0.bytes_max / LOOK_AFTER_ONE_IN {
            self.0.written.store(0, Ordering::Relaxed);
            self.trim()?;
        }
        Ok(())
    }

    fn path(&self, id: ObjectId) -> PathBuf {
        let name = id.to_string();
        self.0.root.join(&name[..2]).join(name)
    }

    /// Removes the least recently used objects, if there is no room for what is written until the next time.
    fn trim(&self) -> io::Result<()> {
        let part = self.0.bytes_max / LOOK_AFTER_ONE_IN;
        let mut files = Vec::new();
        let mut total = 0;
        for first in 0..=u8::MAX {
            let folder = self.0.root.join(format!("{first:02x}"));
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                // Another process may have removed it.
                let Ok(metadata) = entry.metadata() else { continue };
                let used = metadata.modified()?;
                match Kind::of(&entry.file_name().to_string_lossy(), used) {
                    Kind::Object(id) => {
                        total += metadata.len();
                        files.push((used, metadata.len(), id));
                    }
                    Kind::Abandoned => drop(fs::remove_file(entry.path())),
                    Kind::Other => {}
                }
            }
        }
        if total <= self.0.bytes_max - part {
            return Ok(());
        }
        files.sort_unstable();
        for (_, bytes, id) in files {
            if total <= self.0.bytes_max - 2 * part {
                break;
            }
            let _ = fs::remove_file(self.path(id));
            total -= bytes;
        }
        Ok(())
    }
}

/// A file in the folder of a cache.
enum Kind {
    Object(ObjectId),
    /// What a process left that has ended.
    Abandoned,
    /// What is being written, or does not belong to the cache, which leaves it alone.
    Other,
}

impl Kind {
    fn of(name: &str, written: SystemTime) -> Self {
        match name.parse() {
            Ok(id) => Self::Object(id),
            Err(_) if !name.starts_with(UNFINISHED) => Self::Other,
            Err(_) => match written.elapsed() {
                Ok(age) if age > UNFINISHED_FOR => Self::Abandoned,
                Ok(_) | Err(_) => Self::Other,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;

    use super::*;

    const OBJECT_BYTES: u64 = 1_000;

    fn object(number: u64) -> (ObjectId, Vec<u8>) {
        let bytes = number.to_le_bytes().repeat(OBJECT_BYTES as usize / 8);
        (ObjectId::of(&bytes), bytes)
    }

    /// Makes an object look as if it was used so many hours ago.
    fn age(cache: &ValueCache, id: ObjectId, hours: u64) {
        let at = SystemTime::now() - Duration::from_secs(3_600 * hours);
        let file = File::options().write(true).open(cache.path(id)).expect("a file");
        file.set_times(FileTimes::new().set_modified(at)).expect("a time");
    }

    fn bytes_in(root: &Path) -> u64 {
        walk(root).iter().map(|path| fs::metadata(path).expect("a file").len()).sum()
    }

    fn walk(root: &Path) -> Vec<PathBuf> {
        let folders = fs::read_dir(root).expect("a folder").map(|entry| entry.expect("an entry").path());
        folders
            .flat_map(|folder| fs::read_dir(folder).expect("a folder"))
            .map(|file| file.expect("one").path())
            .collect()
    }

    #[test]
    fn an_object_is_read_as_it_was_written_and_a_damaged_one_is_not_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = ValueCache::open(folder.path(), 1 << 20).expect("a cache");
        let (id, bytes) = object(1);
        assert_eq!(cache.read(id), None);
        cache.write(id, &bytes).expect("written");
        let other = ValueCache::open(folder.path(), 1 << 20).expect("another process");
        assert_eq!(other.read(id).expect("an object"), bytes);
        fs::write(cache.path(id), &bytes[1..]).expect("damage");
        assert_eq!(cache.read(id), None);
        assert!(!cache.path(id).exists(), "the damaged file is gone");
    }

    #[test]
    fn the_cache_stays_below_its_limit_and_keeps_what_was_used_last() {
        let folder = tempfile::tempdir().expect("a folder");
        let bytes_max = 50 * OBJECT_BYTES;
        let cache = ValueCache::open(folder.path(), bytes_max).expect("a cache");
        let (kept, bytes) = object(0);
        cache.write(kept, &bytes).expect("written");
        for number in 1..200 {
            let (id, bytes) = object(number);
            cache.write(id, &bytes).expect("written");
            age(&cache, id, 1_000 - number);
            age(&cache, kept, 2_000);
            assert!(cache.read(kept).is_some(), "reading makes it the one that was used last: {number}");
            assert!(bytes_in(folder.path()) <= bytes_max, "{number}");
        }
        assert!(bytes_in(folder.path()) > bytes_max / 2);
        assert!(cache.read(object(199).0).is_some() && cache.read(object(1).0).is_none());
    }

    #[test]
    fn what_ended_processes_left_is_removed_and_other_files_are_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = ValueCache::open(folder.path(), 1 << 20).expect("a cache");
        let (id, bytes) = object(1);
        let beside = |name: &str| cache.path(id).with_file_name(name);
        fs::create_dir_all(folder.path().join(&id.to_string()[..2])).expect("a folder");
        for (name, hours) in [(".unfinished-old", 2), (".unfinished-new", 0), ("notes", 2)] {
            let file = File::create(beside(name)).expect("a file");
            file.set_modified(SystemTime::now() - Duration::from_secs(3_600 * hours)).expect("a time");
        }
        cache.write(id, &bytes).expect("written");
        assert!(!beside(".unfinished-old").exists());
        assert!(beside(".unfinished-new").exists() && beside("notes").exists());
    }

    #[test]
    fn processes_share_a_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let bytes_max = 40 * OBJECT_BYTES;
        let writers: Vec<_> = (0..4)
            .map(|writer: u64| {
                let cache = ValueCache::open(folder.path(), bytes_max).expect("a cache");
                std::thread::spawn(move || {
                    for number in 0..300 {
                        let (id, bytes) = object((number * (writer + 1)) % 100);
                        cache.write(id, &bytes).expect("written");
                        if let Some(read) = cache.read(id) {
                            assert_eq!(read, bytes);
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().expect("a thread"));
        assert!(bytes_in(folder.path()) <= bytes_max + 3 * bytes_max / LOOK_AFTER_ONE_IN);
        for path in walk(folder.path()) {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            assert_eq!(ObjectId::of(&fs::read(&path).expect("a file")).to_string(), name);
        }
    }
}
