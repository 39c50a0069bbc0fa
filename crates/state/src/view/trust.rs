//! The trust file: whether the view on disk can be used after a restart.
//!
//! A small file beside the view has the view's identity, whether it was closed cleanly, and the boot and
//! mount on which it was last used. After a clean close the whole view is on disk. After a crash of the
//! process alone, its writes are still in the page cache, provided that neither the machine nor the file
//! system was restarted: same boot, same mount. In all other cases, and when the file is absent or malformed,
//! the view is not trusted.
//!
//! The content of the view is not judged here: the markers of its replicas tell what it holds.

use std::{
    fmt::Write as _,
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io,
    path::Path,
    time::SystemTime,
};

use flotilla_storage::{replace_file, sync_dir};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

const FORMAT: &str = "flotilla-view 1";

/// `STATX_MNT_ID_UNIQUE` of Linux 6.8: a mount id that is never reused, unlike the older one.
const MOUNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// The boot and mount within which the page cache keeps everything that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BootAndMount {
    boot: String,
    device: String,
    mount: u64,
}

impl BootAndMount {
    /// `None` when the system does not provide them; then only a clean close is trusted.
    pub(super) fn of(dir: &Path) -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let stat = statx(CWD, dir, AtFlags::empty(), StatxFlags::BASIC_STATS | MOUNT_ID_UNIQUE).ok()?;
        let known = !boot.is_empty() && stat.stx_mask & MOUNT_ID_UNIQUE.bits() != 0;
        let device = format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor);
        known.then_some(Self { boot, device, mount: stat.stx_mnt_id })
    }
}

/// The content of the trust file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trust {
    /// Random; also stored in the view, to detect a view that was swapped.
    pub(super) identity: String,
    /// Closed cleanly: everything is on disk.
    pub(super) clean: bool,
    /// The boot and mount of its last use.
    pub(super) place: Option<BootAndMount>,
}

impl Trust {
    /// The trust of a new view, with a new identity.
    pub(super) fn of_new_view(place: Option<BootAndMount>) -> Self {
        let mut seed = blake3::Hasher::new();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        seed.update(&now.as_nanos().to_le_bytes());
        seed.update(&std::process::id().to_le_bytes());
        // The standard library's only source of randomness; the identity only needs to be unique.
        seed.update(&RandomState::new().hash_one(0_u8).to_le_bytes());
        let identity = seed.finalize().to_hex()[..32].to_owned();
        Self { identity, clean: false, place }
    }

    /// Whether a process on this boot and mount can use the view.
    pub(super) fn is_valid_at(&self, place: Option<&BootAndMount>) -> bool {
        self.clean || (place.is_some() && self.place.as_ref() == place)
    }

    /// Reads the file; `None` when it is absent or malformed.
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
            (Some(boot), Some(device), Some(mount)) => Some(BootAndMount { boot, device, mount: mount.parse().ok()? }),
            _ => None,
        };
        Some(Self { identity, clean, place })
    }

    /// Replaces the file, durably.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text =
            format!("{FORMAT}\nidentity={}\nclean={}\n", self.identity, if self.clean { "yes" } else { "no" });
        if let Some(BootAndMount { boot, device, mount }) = &self.place {
            let _infallible = write!(text, "boot={boot}\ndevice={device}\nmount={mount}\n");
        }
        replace_file(path, text.as_bytes(), 0o666, |_| Ok(()))
    }

    /// Removes the file, durably: the view is no longer trusted.
    pub(super) fn remove(path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| path.parent().map_or(Ok(()), sync_dir)),
        }
    }
}

/// Makes every file of a folder durable.
pub(super) fn sync_tree(dir: &Path) -> io::Result<()> {
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        if path.is_dir() { sync_tree(&path)? } else { File::open(path)?.sync_all()? }
    }
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(boot: &str) -> Option<BootAndMount> {
        Some(BootAndMount { boot: boot.to_owned(), device: "8:1".to_owned(), mount: 7 })
    }

    #[test]
    fn trust_needs_a_clean_close_or_the_same_boot_and_mount() {
        let mut trust = Trust::of_new_view(place("boot1"));
        assert!(trust.is_valid_at(place("boot1").as_ref()));
        assert!(!trust.is_valid_at(place("boot2").as_ref()));
        assert!(!trust.is_valid_at(None));
        trust.place = None;
        assert!(!trust.is_valid_at(None), "unknown is not equal to unknown");
        trust.clean = true;
        assert!(trust.is_valid_at(place("boot2").as_ref()));
    }

    #[test]
    fn the_file_round_trips_and_a_damaged_one_is_not_trusted() {
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
    fn hostile_trust_files_never_panic() {
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
