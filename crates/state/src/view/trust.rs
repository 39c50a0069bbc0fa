//! Whether the view on disk may be believed.
//!
//! A small file beside the view says which view it is, whether it was closed cleanly, and on which boot and mount it was
//! last used. After a clean close the view is on disk whole. After the process alone died, what it had written is still
//! in the page cache, provided that neither the machine nor the file system was restarted: same boot, same mount. In all
//! other cases, and when the file is absent or does not parse, the view is not trusted.
//!
//! It does not judge what is inside the view: that is for the markers of its replicas.

use std::{
    fmt::Write as _,
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{self, Write as _},
    path::Path,
    time::SystemTime,
};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

const FORMAT: &str = "flotilla-view 1";

/// `STATX_MNT_ID_UNIQUE` of Linux 6.8: a mount's number that is never used again, unlike the older one.
const MOUNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Where and since when the page cache vouches for what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    boot: String,
    device: String,
    mount: u64,
}

impl Place {
    /// `None` when the system does not say; nothing is then vouched for.
    pub(super) fn of(dir: &Path) -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let stat = statx(CWD, dir, AtFlags::empty(), StatxFlags::BASIC_STATS | MOUNT_ID_UNIQUE).ok()?;
        let vouched = !boot.is_empty() && stat.stx_mask & MOUNT_ID_UNIQUE.bits() != 0;
        let device = format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor);
        vouched.then_some(Self { boot, device, mount: stat.stx_mnt_id })
    }
}

/// What the file beside the view says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trust {
    /// Also stored in the view: tells it from another one put in its place.
    pub(super) identity: String,
    /// Closed in order, everything on disk.
    pub(super) clean: bool,
    /// Where it was last used.
    pub(super) place: Option<Place>,
}

impl Trust {
    /// A view that nobody has seen before.
    pub(super) fn of_new_view(place: Option<Place>) -> Self {
        let mut seed = blake3::Hasher::new();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        seed.update(&now.as_nanos().to_le_bytes());
        seed.update(&std::process::id().to_le_bytes());
        // The only source of randomness in the standard library; uniqueness is all that is asked for.
        seed.update(&RandomState::new().hash_one(0_u8).to_le_bytes());
        let identity = seed.finalize().to_hex()[..32].to_owned();
        Self { identity, clean: false, place }
    }

    /// Whether the view may be believed by a process at this place.
    pub(super) fn holds_at(&self, place: Option<&Place>) -> bool {
        self.clean || (place.is_some() && self.place.as_ref() == place)
    }

    /// Reads the file; `None` when it is absent or does not parse.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(FORMAT) {
            return None;
        }
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        let (identity, clean) = (field("identity")?, field("clean")? == "yes");
        let place = match (field("boot"), field("device"), field("mount")) {
            (Some(boot), Some(device), Some(mount)) => Some(Place { boot, device, mount: mount.parse().ok()? }),
            _ => None,
        };
        Some(Self { identity, clean, place })
    }

    /// Replaces the file, durably.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text =
            format!("{FORMAT}\nidentity={}\nclean={}\n", self.identity, if self.clean { "yes" } else { "no" });
        if let Some(Place { boot, device, mount }) = &self.place {
            let _infallible = write!(text, "boot={boot}\ndevice={device}\nmount={mount}\n");
        }
        let scratch = path.with_extension("new");
        let mut file = File::create(&scratch)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&scratch, path)?;
        sync_parent(path)
    }

    /// Removes the file, durably: nothing will trust the view any more.
    pub(super) fn remove(path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| sync_parent(path)),
        }
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Makes every file of a folder durable.
pub(super) fn sync_tree(dir: &Path) -> io::Result<()> {
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        if path.is_dir() { sync_tree(&path)? } else { File::open(path)?.sync_all()? }
    }
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(boot: &str) -> Option<Place> {
        Some(Place { boot: boot.to_owned(), device: "8:1".to_owned(), mount: 7 })
    }

    #[test]
    fn trust_needs_a_clean_close_or_the_same_boot_and_mount() {
        let mut trust = Trust::of_new_view(place("boot1"));
        assert!(trust.holds_at(place("boot1").as_ref()));
        assert!(!trust.holds_at(place("boot2").as_ref()));
        assert!(!trust.holds_at(None));
        trust.place = None;
        assert!(!trust.holds_at(None), "unknown is not equal to unknown");
        trust.clean = true;
        assert!(trust.holds_at(place("boot2").as_ref()));
    }

    #[test]
    fn the_file_reads_back_and_damage_means_no_trust() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("view.trust");
        assert_eq!(Trust::read(&path).unwrap(), None);
        for trust in [Trust::of_new_view(place("b")), Trust { clean: true, ..Trust::of_new_view(None) }] {
            trust.write(&path).unwrap();
            assert_eq!(Trust::read(&path).unwrap(), Some(trust));
        }
        fs::write(&path, b"flotilla-view 2\nidentity=x\nclean=yes\n").unwrap();
        assert_eq!(Trust::read(&path).unwrap(), None);
        fs::write(&path, [0xFF, 0xFE]).unwrap();
        assert_eq!(Trust::read(&path).unwrap(), None);
    }

    #[test]
    fn hostile_marks_of_trust_are_believed_or_not() {
        use flotilla_hostile::{Proportion, attack, mutated};
        use proptest::prelude::*;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("view.trust");
        Trust::of_new_view(place("b")).write(&path).unwrap();
        let written = fs::read(&path).unwrap();
        attack(200, mutated(Just(written)), |bytes| {
            fs::write(&path, &bytes).unwrap();
            let _ = Proportion::DEFAULT.of(bytes.len(), || Trust::read(&path).unwrap());
        });
    }
}
