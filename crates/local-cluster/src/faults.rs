//! Faults beyond signals: network, disks, files and failpoints of a running cluster; and observing its
//! processes.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    process::ExitStatus,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{cluster::Cluster, error::ClusterError, memory::MemoryLimit, proxy::Proxy};

/// The file in a data folder from which a node built with failpoints reads their settings.
const FAILPOINTS_FILE: &str = "failpoints";
/// Interval between polls of a process that should exit.
const POLL_EVERY: Duration = Duration::from_millis(10);

impl Cluster {
    /// The proxy between the nodes.
    ///
    /// # Errors
    /// The cluster has none.
    pub fn proxy(&self) -> Result<&Proxy, ClusterError> {
        self.proxy.as_ref().ok_or(ClusterError::NoProxy)
    }

    /// Disconnects node `i` from the network: its link goes down.
    ///
    /// # Errors
    /// The cluster has no namespaces.
    pub fn unplug(&self, i: usize) -> Result<(), ClusterError> {
        Ok(self.namespaces.as_ref().ok_or(ClusterError::NoNamespaces)?.unplug(i)?)
    }

    /// Connects node `i` to the network again.
    ///
    /// # Errors
    /// The cluster has no namespaces.
    pub fn plug(&self, i: usize) -> Result<(), ClusterError> {
        Ok(self.namespaces.as_ref().ok_or(ClusterError::NoNamespaces)?.plug(i)?)
    }

    /// Fills the disk of node `i`.
    ///
    /// # Errors
    /// It has no disk of its own, or a system tool fails.
    pub fn fill_disk(&self, i: usize) -> Result<(), ClusterError> {
        Ok(self.disk(i)?.fill()?)
    }

    /// Frees the space that [`Cluster::fill_disk`] took.
    ///
    /// # Errors
    /// See [`Cluster::fill_disk`].
    pub fn free_disk(&self, i: usize) -> Result<(), ClusterError> {
        Ok(self.disk(i)?.free()?)
    }

    /// Cuts the power of node `i`: nothing more reaches its disk, and the node is killed.
    ///
    /// # Errors
    /// See [`Cluster::fill_disk`].
    pub fn cut_power(&mut self, i: usize) -> Result<(), ClusterError> {
        self.disk(i)?;
        let is_running = self.is_running(i)?;
        if is_running {
            // It must not see its disk fail: a node without power does nothing more.
            self.pause(i)?;
        }
        self.disk(i)?.cut_power()?;
        if is_running { self.kill(i) } else { Ok(()) }
    }

    /// Restores the power of node `i`, which stays stopped until [`Cluster::start_node`].
    ///
    /// # Errors
    /// See [`Cluster::fill_disk`].
    pub fn restore_power(&self, i: usize) -> Result<(), ClusterError> {
        Ok(self.disk(i)?.restore_power()?)
    }

    /// Replaces the failpoint settings of node `i`, running or not. Needs a binary built with failpoints.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_failpoints(&self, i: usize, settings: &str) -> Result<(), ClusterError> {
        let dir = &self.node(i)?.data_dir;
        // Written to a temporary file and renamed, so that the node never reads half of it.
        let temporary = dir.join("failpoints.new");
        fs::write(&temporary, settings)?;
        Ok(fs::rename(temporary, dir.join(FAILPOINTS_FILE))?)
    }

    /// Removes all failpoint settings of node `i`.
    ///
    /// # Errors
    /// The file exists and cannot be removed.
    pub fn clear_failpoints(&self, i: usize) -> Result<(), ClusterError> {
        match fs::remove_file(self.node(i)?.data_dir.join(FAILPOINTS_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Removes what this boot of the machine remembers of the log of stopped node `i`, as a reboot does. A
    /// restored folder then has no evidence against it, and none for it.
    ///
    /// # Errors
    /// The node runs, or has no log.
    pub fn forget_witness(&mut self, i: usize) -> Result<(), ClusterError> {
        let format = fs::read_to_string(self.data_of_stopped(i)?.join("log").join("FORMAT"))?;
        let log_number = format.split_whitespace().last().unwrap_or_default();
        let dir = format!("/dev/shm/flotilla-{}", rustix::process::getuid().as_raw());
        match fs::remove_file(Path::new(&dir).join(log_number)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Sets an environment variable of node `i`, effective from its next start; an empty value unsets it.
    ///
    /// # Errors
    /// There is no such node.
    pub fn set_variable(&mut self, i: usize, name: &str, value: &str) -> Result<(), ClusterError> {
        let variables = &mut self.member(i)?.variables;
        variables.retain(|(other, _)| other != name);
        if !value.is_empty() {
            variables.push((name.to_owned(), value.to_owned()));
        }
        Ok(())
    }

    /// Lets node `i`, which runs, allocate `bytes` more; then the kernel kills it for lack of memory. Needs root
    /// and control groups: see [`crate::missing_memory_limit`]. Its next start has no limit.
    ///
    /// # Errors
    /// It is not running, or the limit cannot be set.
    pub fn limit_memory(&mut self, i: usize, bytes: u64) -> Result<(), ClusterError> {
        let member = self.member(i)?;
        let pid = member.child.as_ref().ok_or(ClusterError::NoNode(i))?.id();
        member.memory = None;
        member.memory = Some(MemoryLimit::set(pid, bytes)?);
        Ok(())
    }

    /// Makes node `i` run this binary from its next start on, as an upgrade or its roll back does.
    ///
    /// # Errors
    /// There is no such node.
    pub fn set_binary(&mut self, i: usize, binary: &Path) -> Result<(), ClusterError> {
        self.member(i)?.binary = Some(binary.to_owned());
        Ok(())
    }

    /// Clears the environment variables that the options set for all nodes.
    pub fn clear_variables(&mut self) {
        self.options.variables.clear();
    }

    /// Waits until node `i` exits by itself, and returns its exit status.
    ///
    /// # Errors
    /// It was not running, or has not exited within `within`; in that case it keeps running.
    pub async fn wait_exit(&mut self, i: usize, within: Duration) -> Result<ExitStatus, ClusterError> {
        let start = Instant::now();
        loop {
            let member = self.member(i)?;
            if let Some(status) = member.child.as_mut().ok_or(ClusterError::NoNode(i))?.try_wait()? {
                member.child = None;
                return Ok(status);
            }
            if start.elapsed() > within {
                return Err(ClusterError::TimedOut { what: "the exit of a node", within });
            }
            sleep(POLL_EVERY).await;
        }
    }

    /// Nodes that exited by themselves without [`Cluster::wait_exit`] having noticed, with their exit
    /// statuses.
    ///
    /// # Errors
    /// The state of a process cannot be read.
    pub fn unexpected_exits(&mut self) -> Result<Vec<(usize, ExitStatus)>, ClusterError> {
        let mut exited = Vec::new();
        for (at, member) in self.members.iter_mut().enumerate() {
            if let Some(status) = member.child.as_mut().map(|child| child.try_wait()).transpose()?.flatten() {
                exited.push((at + 1, status));
            }
        }
        Ok(exited)
    }

    /// Whether the process of node `i` is running.
    ///
    /// # Errors
    /// There is no such node.
    pub fn is_running(&mut self, i: usize) -> Result<bool, ClusterError> {
        Ok(self.member(i)?.is_running())
    }

    /// Peak memory of node `i` in bytes (VmHWM), over its current process and those that [`Cluster::kill`]
    /// ended.
    ///
    /// # Errors
    /// There is no such node.
    pub fn peak_memory_bytes(&self, i: usize) -> Result<u64, ClusterError> {
        let member = i.checked_sub(1).and_then(|i| self.members.get(i)).ok_or(ClusterError::NoNode(i))?;
        Ok(member.peak_bytes.max(peak_memory_bytes(member.node.pid)))
    }
}

/// Peak memory of a process in bytes; 0 if it no longer exists.
pub(crate) fn peak_memory_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0_u64) * 1_024
}

/// Flips bit `bit % 8` of the byte at `at_ppm` millionths of the file's length, and returns the byte's
/// offset. Trailing zeros, which are preallocated space, do not count towards the length.
///
/// # Errors
/// The file is empty, or cannot be read and written.
pub fn flip_bit(path: &Path, at_ppm: u32, bit: u32) -> std::io::Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let all = fs::read(path)?;
    let bytes = all.iter().rposition(|byte| *byte != 0).map_or(all.len(), |last| last + 1) as u64;
    let at = u64::try_from(u128::from(bytes) * u128::from(at_ppm.min(999_999)) / 1_000_000).unwrap_or(0);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], at)?;
    file.sync_all()?;
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_bit_is_flipped() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), [1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]).expect("a writable file");
        assert_eq!(flip_bit(file.path(), 500_000, 3).expect("a flip"), 5);
        assert_eq!(fs::read(file.path()).expect("a file"), [1, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0]);
        assert_eq!(flip_bit(file.path(), 2_000_000, 9).expect("a flip"), 9);
        fs::write(file.path(), []).expect("a writable file");
        assert!(flip_bit(file.path(), 0, 0).is_err());
    }
}
