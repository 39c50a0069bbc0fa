//! A bound on the memory of one process, beyond which the kernel kills it. Needs root and control groups.
//!
//! Only what the process allocates from then on counts, because a control group does not take over what was
//! charged to another one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

use crate::privileged::{is_orphan, missing_privilege};

/// Where each version of control groups keeps the memory controller, and its file with the limit.
const CONTROLLERS: [(&str, &str); 2] =
    [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
/// Files with a limit that counts swapped memory too; without them a process may be swapped out instead.
const SWAP_LIMITS: [&str; 2] = ["memory.memsw.limit_in_bytes", "memory.swap.max"];
/// Part of the name of a group; the owner's pid follows, so that orphans can be recognised.
const TAG: &str = "flotilla-memory-";

/// A control group of one process. Removed on drop, once the process has ended.
#[derive(Debug)]
pub(crate) struct MemoryLimit {
    group: PathBuf,
}

impl MemoryLimit {
    /// Lets a process allocate `bytes` more, and be killed by the kernel for the next.
    pub(crate) fn set(pid: u32, bytes: u64) -> io::Result<Self> {
        let (root, limit) = controller()?;
        remove_orphans(&root);
        let limited = Self { group: root.join(format!("{TAG}{}-{pid}", process::id())) };
        fs::create_dir(&limited.group)?;
        fs::write(limited.group.join(limit), bytes.to_string())?;
        for swap in SWAP_LIMITS.map(|name| limited.group.join(name)).iter().filter(|path| path.exists()) {
            // The one counts memory and swap, the other swap alone: with as much swap it ends as well, later.
            let _ = fs::write(swap, bytes.to_string());
        }
        fs::write(limited.group.join("cgroup.procs"), pid.to_string())?;
        Ok(limited)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A group whose process still runs stays until the next test process removes it.
        let _ = fs::remove_dir(&self.group);
    }
}

/// The folder of the memory controller whose groups can have limits, and the name of the limit.
fn controller() -> io::Result<(PathBuf, &'static str)> {
    for (root, limit) in CONTROLLERS {
        let probe = Path::new(root).join(format!("{TAG}{}-probe", process::id()));
        let has_limit = fs::create_dir(&probe).is_ok() && probe.join(limit).exists();
        let _ = fs::remove_dir(&probe);
        if has_limit {
            return Ok((root.into(), limit));
        }
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, "no control groups with limits of memory"))
}

fn remove_orphans(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(TAG));
        if name.and_then(|name| name.split('-').next()).is_some_and(is_orphan) {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Why the memory of a process cannot be limited on this machine, for people; `None` if it can.
#[must_use]
pub fn missing_memory_limit() -> Option<String> {
    missing_privilege(&[]).or_else(|| controller().err().map(|error| error.to_string()))
}
