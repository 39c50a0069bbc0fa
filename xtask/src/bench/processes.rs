//! Resource usage of processes, from Linux's `/proc`.

use std::{fs, time::Duration};

use serde::Serialize;

/// Usage of one process since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    /// CPU time, user and system.
    pub(super) cpu: Duration,
    /// Bytes written to disks.
    pub(super) written_bytes: u64,
    /// Peak resident memory in bytes.
    pub(super) peak_bytes: u64,
}

impl Usage {
    /// Usage of process `pid`; `None` if there is no such process, or no `/proc`.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        Some(Self {
            cpu: cpu(&read("stat")?, rustix::param::clock_ticks_per_second())?,
            written_bytes: number_of(&read("io")?, "write_bytes:")?,
            peak_bytes: number_of(&read("status")?, "VmHWM:")? * 1_024,
        })
    }
}

/// CPU time that the whole machine has spent since its start; `None` without `/proc`.
pub(super) fn machine_cpu() -> Option<Duration> {
    busy(&fs::read_to_string("/proc/stat").ok()?, rustix::param::clock_ticks_per_second())
}

/// The sum of the first line's fields except `idle`, `iowait`, and the guest fields, which `user` already
/// includes.
fn busy(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let ticks = fields.map(|field| field.parse::<u64>().ok()).collect::<Option<Vec<_>>>()?;
    let busy = ticks.iter().enumerate().filter(|(i, _)| !matches!(i, 3 | 4 | 8..)).map(|(_, ticks)| ticks).sum::<u64>();
    Some(Duration::from_secs_f64(busy as f64 / ticks_per_second as f64))
}

/// Fields 14 and 15: `utime` and `stime`, in ticks. The name before them may contain parentheses and blanks.
fn cpu(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    Some(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
}

/// The number after a name at the start of a line.
fn number_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_after_any_process_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 2 3 4 5 150 50 8 9 20 0 5 0 1 2 3";
        assert_eq!(cpu(stat, 100), Some(Duration::from_secs(2)));
        assert_eq!(cpu("7 (a) S 1", 100), None);
    }

    #[test]
    fn idle_and_iowait_do_not_count_as_busy() {
        let stat = "cpu  100 20 30 4000 500 6 7 8 9 10\ncpu0 1 2 3\n";
        assert_eq!(busy(stat, 1), Some(Duration::from_secs(171)));
        assert_eq!(busy("intr 5", 1), None);
    }

    #[test]
    fn numbers_are_found_by_full_names() {
        let io = "wchar: 5\ncancelled_write_bytes: 1\nwrite_bytes: 4096\n";
        assert_eq!(number_of(io, "write_bytes:"), Some(4_096));
        assert_eq!(number_of("VmPeak: 9 kB\nVmHWM:\t  12 kB\n", "VmHWM:"), Some(12));
        assert_eq!(number_of(io, "VmHWM:"), None);
    }

    #[test]
    fn usage_of_this_process_is_available() {
        let usage = Usage::of(std::process::id()).expect("Linux");
        assert!(usage.peak_bytes > 0);
        assert_eq!(Usage::of(u32::MAX), None);
    }
}
