//! What is done to a running cluster beyond signals: its network, its disks, its files, its failpoints; and what is seen of it from outside.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    process::ExitStatus,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{cluster::Cluster, error::ClusterError, proxy::Proxy};

/// The file that a node of a test build takes the settings of its failpoints from.
const FAILPOINTS_FILE: &str = "failpoints";
/// Time between two looks at a process that should end.
const POLL_EVERY: Duration = Duration::from_millis(10);

impl Cluster {
    /// The proxy between the nodes.
    ///
    /// # Errors
    /// The cluster has none.
    pub fn proxy(&self) -> Result<&Proxy, ClusterError> {
        self.proxy.as_ref().ok_or(ClusterError::NoProxy)
    }

    /// Pulls the network cable of node `i`.
    ///
    /// # Errors
    /// The cluster has no namespaces.
    pub fn unplug(&self, i: usize) -> Result<(), ClusterError> {
        Ok(self.namespaces.as_ref().ok_or(ClusterError::NoNamespaces)?.unplug(i)?)
    }

    /// Puts it back.
    ///
    /// # Errors
    /// The cluster has no namespaces.
    pub fn plug(&self, i: usize) -> Result<(), ClusterError> {
        Ok(self.namespaces.as_ref().ok_or(ClusterError::NoNamespaces)?.plug(i)?)
    }

    /// Takes all the space on the disk of node `i`.
    ///
    /// # Errors
    /// It has no disk of its own. So for the other disk faults.
    pub fn fill_disk(&self, i: usize) -> Result<(), ClusterError> {
        Ok(self.disk(i)?.fill()?)
    }

    /// Gives it back.
    ///
    /// # Errors
    /// See [`Cluster::fill_disk`].
    pub fn drain_disk(&self, i: usize) -> Result<(), ClusterError> {
        Ok(self.disk(i)?.drain()?)
    }

    /// Cuts the power of node `i`: its disk is gone from one moment to the next, and so is the node.
    ///
    /// # Errors
    /// See [`Cluster::fill_disk`].
    pub fn cut_power(&mut self, i: usize) -> Result<(), ClusterError> {
        self.disk(i)?.cut_power()?;
        match self.kill(i) {
            // It may have noticed, and ended by itself.
            Ok(()) | Err(ClusterError::NoNode(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Switches the power of node `i` on again; [`Cluster::start_node`] starts it.
    ///
    /// # Errors
    /// See [`Cluster::fill_disk`].
    pub fn restore_power(&self, i: usize) -> Result<(), ClusterError> {
        Ok(self.disk(i)?.restore_power()?)
    }

    /// Sets the failpoints of node `i`, running or not, in place of those that were set. Needs a build with failpoints.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_failpoints(&self, i: usize, settings: &str) -> Result<(), ClusterError> {
        let dir = &self.node(i)?.data_dir;
        // Beside and renamed, so that half of it is never read.
        let beside = dir.join("failpoints.new");
        fs::write(&beside, settings)?;
        Ok(fs::rename(beside, dir.join(FAILPOINTS_FILE))?)
    }

    /// Sets none any more.
    ///
    /// # Errors
    /// The file is there and cannot be removed.
    pub fn clear_failpoints(&self, i: usize) -> Result<(), ClusterError> {
        match fs::remove_file(self.node(i)?.data_dir.join(FAILPOINTS_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Gives node `i` a variable from its next start on; an empty value takes it back.
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

    /// Takes back the variables that the options gave to all nodes.
    pub fn clear_variables(&mut self) {
        self.options.variables.clear();
    }

    /// Waits until node `i` has ended by itself, and says how.
    ///
    /// # Errors
    /// It does not run, or not within `within`: it runs on then.
    pub async fn wait_exit(&mut self, i: usize, within: Duration) -> Result<ExitStatus, ClusterError> {
        let begun = Instant::now();
        loop {
            let member = self.member(i)?;
            if let Some(status) = member.child.as_mut().ok_or(ClusterError::NoNode(i))?.try_wait()? {
                member.child = None;
                return Ok(status);
            }
            if begun.elapsed() > within {
                return Err(ClusterError::TimedOut { what: "the end of a node", within });
            }
            sleep(POLL_EVERY).await;
        }
    }

    /// The nodes that have ended by themselves and were not waited for, and how.
    ///
    /// # Errors
    /// A process cannot be asked.
    pub fn ended(&mut self) -> Result<Vec<(usize, ExitStatus)>, ClusterError> {
        let mut ended = Vec::new();
        for (at, member) in self.members.iter_mut().enumerate() {
            if let Some(status) = member.child.as_mut().map(|child| child.try_wait()).transpose()?.flatten() {
                ended.push((at + 1, status));
            }
        }
        Ok(ended)
    }

    /// Whether node `i` runs. One that ended by itself does not.
    ///
    /// # Errors
    /// There is no such node.
    pub fn runs(&mut self, i: usize) -> Result<bool, ClusterError> {
        Ok(self.member(i)?.is_running())
    }

    /// The most memory that node `i` has ever used, in bytes (VmHWM), over all its lives that did not end by themselves.
    ///
    /// # Errors
    /// There is no such node.
    pub fn peak_bytes(&self, i: usize) -> Result<u64, ClusterError> {
        let member = i.checked_sub(1).and_then(|i| self.members.get(i)).ok_or(ClusterError::NoNode(i))?;
        Ok(member.peak_bytes.max(peak_bytes(member.node.pid)))
    }
}

/// The most memory that a process has used so far, in bytes; 0 when it is gone.
pub(crate) fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0_u64) * 1_024
}

/// Flips one bit of a file: bit `bit % 8` of the byte at this share of its length, in millionths. Zeros at its end, which stand for space that
/// was allocated ahead, do not count.
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
