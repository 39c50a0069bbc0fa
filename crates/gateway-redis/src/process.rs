//! What the operating system says about this process, for `INFO`. Linux only; elsewhere nothing is known.

use std::fs;

/// Clock ticks in a second, as `/proc` counts them on every architecture.
const TICKS_PER_S: f64 = 100.0;

/// Memory of the process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident: u64,
    /// The most that was resident.
    pub(crate) peak: u64,
}

pub(crate) fn memory() -> Option<Memory> {
    memory_in(&fs::read_to_string("/proc/self/status").ok()?)
}

fn memory_in(status: &str) -> Option<Memory> {
    let kib = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    Some(Memory { resident: kib("VmRSS:")? << 10, peak: kib("VmHWM:")? << 10 })
}

/// Processor time used in user mode and in the kernel, in seconds.
pub(crate) fn cpu_s() -> Option<(f64, f64)> {
    cpu_in(&fs::read_to_string("/proc/self/stat").ok()?)
}

fn cpu_in(stat: &str) -> Option<(f64, f64)> {
    // The second field is the name, in parentheses, and may contain blanks.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? / TICKS_PER_S, ticks()? / TICKS_PER_S))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(memory_in(status), Some(Memory { resident: 1 << 20, peak: 2 << 20 }));
        let stat = "1 (a (b) c) S 2 3 4 5 6 7 8 9 10 11 150 50 0 0 20";
        assert_eq!(cpu_in(stat), Some((1.5, 0.5)));
        assert_eq!((memory_in(""), cpu_in("")), (None, None));
    }
}
