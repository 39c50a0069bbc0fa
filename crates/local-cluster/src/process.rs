//! Signals to processes by pid, and the tail of a log.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use rustix::process::{Pid, kill_process, test_kill_process};

/// Bytes read from the end of a log.
const TAIL_BYTES: u64 = 16 * 1024;

/// A signal that can be sent to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Kills it at once, as a crash does.
    Kill,
    /// Requests a clean shutdown.
    Term,
    /// Requests a clean shutdown, as Ctrl-C does.
    Int,
    /// Requests a clean shutdown, as the end of a terminal does.
    Hup,
    /// Suspends it.
    Stop,
    /// Continues it after [`Signal::Stop`].
    Cont,
}

impl std::str::FromStr for Signal {
    type Err = ();

    /// Parses `KILL`, `SIGKILL` or `kill`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let text = text.to_ascii_uppercase();
        Ok(match text.strip_prefix("SIG").unwrap_or(&text) {
            "KILL" => Self::Kill,
            "TERM" => Self::Term,
            "INT" => Self::Int,
            "HUP" => Self::Hup,
            "STOP" => Self::Stop,
            "CONT" => Self::Cont,
            _ => return Err(()),
        })
    }
}

impl Signal {
    /// Sends it to the process `pid`.
    ///
    /// # Errors
    /// There is no such process, or it may not be signalled.
    pub fn send(self, pid: u32) -> io::Result<()> {
        let signal = match self {
            Self::Kill => rustix::process::Signal::KILL,
            Self::Term => rustix::process::Signal::TERM,
            Self::Int => rustix::process::Signal::INT,
            Self::Hup => rustix::process::Signal::HUP,
            Self::Stop => rustix::process::Signal::STOP,
            Self::Cont => rustix::process::Signal::CONT,
        };
        Ok(kill_process(to_pid(pid).ok_or(io::ErrorKind::NotFound)?, signal)?)
    }
}

/// Whether process `pid` is running and has `data_dir` among its arguments. A zombie is not running.
pub(crate) fn is_running_on(pid: u32, data_dir: &Path) -> bool {
    if to_pid(pid).is_none_or(|pid| test_kill_process(pid).is_err()) {
        return false;
    }
    match fs::read(format!("/proc/{pid}/cmdline")) {
        // Either a zombie, or a process so new that its arguments are not set yet.
        Ok(arguments) if arguments.is_empty() => !is_zombie(pid),
        Ok(arguments) => {
            let data_dir = data_dir.as_os_str().as_encoded_bytes();
            arguments.split(|byte| *byte == 0).any(|argument| argument == data_dir)
        }
        // Without /proc, all that is known is that the process exists.
        Err(_) => !Path::new("/proc/self/cmdline").exists(),
    }
}

/// Whether a process has exited, reaped by its parent or not.
fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may itself contain parentheses.
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// `None` for 0, which `kill` would take as the caller's process group.
fn to_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// The last lines of a log, at most `lines_max`. Empty if the log cannot be read.
#[must_use]
pub fn log_tail(log: &Path, lines_max: usize) -> String {
    let read = || {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(lines_max)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_last_lines_only() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let log = dir.path().join("log");
        assert_eq!(log_tail(&log, 3), "");
        let text: Vec<String> = (0..10_000).map(|line| format!("line {line}")).collect();
        fs::write(&log, text.join("\n")).expect("a writable folder");
        assert_eq!(log_tail(&log, 2), "line 9998\nline 9999");
        assert!(log_tail(&log, usize::MAX).len() as u64 <= TAIL_BYTES);
    }

    #[test]
    fn another_program_with_the_same_pid_is_not_our_node() {
        assert!(!is_running_on(std::process::id(), Path::new("/some/data/folder")));
        assert!(!is_running_on(0, Path::new("/")));
    }
}
