//! The engine's file system, with zeros written ahead of the log.
//!
//! An fsync is fast if the file's metadata is unchanged: same length, no allocated block that was never
//! written. The engine only allocates; this module also writes zeros into the allocated space, a little ahead
//! of the log, so that most syncs write the log's own bytes only and wait for no commit of the file system's
//! journal.
//!
//! A reader sees the same as without it: zeros after the last batch, which the engine truncates when it
//! closes a file and skips when it opens one. If zeros cannot be written, the log works without them.

use std::{
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    sync::Arc,
};

use crate::evidence;
use raft_engine::env::{DefaultFileSystem as System, FileSystem, Permission, WriteExt};

/// Bytes of zeros written ahead. One sync per this many bytes of log is slow.
const ZERO_FILL_BYTES: u64 = 256 << 10;
/// Bytes per write of zeros. One large write could become one large folio of the page cache, and a few bytes
/// written into it later would dirty all of it.
const PAGE_BYTES: u64 = 4 << 10;

/// The system's files, with zeros ahead of every writer.
pub(crate) struct ZeroFillFileSystem;

impl FileSystem for ZeroFillFileSystem {
    type Handle = <System as FileSystem>::Handle;
    type Reader = <System as FileSystem>::Reader;
    type Writer = ZeroFillWriter<<System as FileSystem>::Writer>;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<Self::Handle> {
        let handle = System.create(&path)?;
        evidence::mark_birth(path.as_ref());
        Ok(handle)
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> io::Result<Self::Handle> {
        System.open(path, permission)
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        System.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        System.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<Self::Handle>) -> io::Result<Self::Reader> {
        System.new_reader(handle)
    }

    fn new_writer(&self, handle: Arc<Self::Handle>) -> io::Result<Self::Writer> {
        Ok(ZeroFillWriter { file: System.new_writer(handle)?, at: 0, zeroed_to: 0, allocated_to: 0 })
    }
}

/// Writes a file, and zeros ahead within the allocated space.
pub(crate) struct ZeroFillWriter<W> {
    file: W,
    /// The position of the next write.
    at: u64,
    /// Blocks up to this position are written.
    zeroed_to: u64,
    /// The end of the allocated space; the engine does not truncate zeros beyond it.
    allocated_to: u64,
}

impl<W: Write + Seek> ZeroFillWriter<W> {
    /// Writes the next zeros, as far as possible.
    fn extend(&mut self) -> io::Result<()> {
        let end = self.allocated_to.min(self.at + ZERO_FILL_BYTES);
        self.zeroed_to = self.at;
        while self.zeroed_to < end {
            let next = end.min((self.zeroed_to / PAGE_BYTES + 1) * PAGE_BYTES);
            let zeros = &[0; PAGE_BYTES as usize][..(next - self.zeroed_to) as usize];
            if self.file.write_all(zeros).is_err() {
                break;
            }
            self.zeroed_to = next;
        }
        self.file.seek(SeekFrom::Start(self.at))?;
        Ok(())
    }
}

impl<W: Write + Seek> Write for ZeroFillWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.at += written as u64;
        if self.at > self.zeroed_to {
            self.extend()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl<W: Seek> Seek for ZeroFillWriter<W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = self.file.seek(to)?;
        Ok(self.at)
    }
}

impl<W: WriteExt> WriteExt for ZeroFillWriter<W> {
    fn truncate(&mut self, len: usize) -> io::Result<()> {
        self.file.truncate(len)?;
        self.at = len as u64;
        self.zeroed_to = self.at;
        self.allocated_to = self.at;
        Ok(())
    }

    fn allocate(&mut self, offset: usize, len: usize) -> io::Result<()> {
        self.allocated_to = (offset + len) as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO_FILL: usize = ZERO_FILL_BYTES as usize;

    /// A file of at most `bytes_max` bytes.
    #[derive(Default)]
    struct Memory {
        bytes: Vec<u8>,
        at: usize,
        bytes_max: usize,
    }

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let end = self.at + bytes.len();
            if end > self.bytes_max {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.bytes.resize(end.max(self.bytes.len()), 0xee);
            self.bytes[self.at..end].copy_from_slice(bytes);
            self.at = end;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Memory {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            let SeekFrom::Start(at) = to else { unreachable!("files are only seeked from their start") };
            self.at = at as usize;
            Ok(at)
        }
    }

    impl WriteExt for Memory {
        fn truncate(&mut self, len: usize) -> io::Result<()> {
            self.bytes.truncate(len);
            self.at = len;
            Ok(())
        }

        fn allocate(&mut self, _: usize, _: usize) -> io::Result<()> {
            unreachable!("zeros are written instead")
        }
    }

    fn file(bytes_max: usize) -> ZeroFillWriter<Memory> {
        ZeroFillWriter { file: Memory { bytes_max, ..Memory::default() }, at: 0, zeroed_to: 0, allocated_to: 0 }
    }

    /// Asserts that the file holds exactly these bytes and this many zeros.
    #[track_caller]
    fn holds(file: &ZeroFillWriter<Memory>, written: &[u8], zeros: usize) {
        let (found, ahead) = file.file.bytes.split_at(written.len());
        assert_eq!(found, written);
        assert_eq!(ahead, vec![0; zeros]);
    }

    #[test]
    fn zeros_are_written_in_steps_and_never_beyond_the_allocated_space() {
        let mut file = file(usize::MAX);
        file.allocate(0, ZERO_FILL + 12).unwrap();
        file.write_all(b"ab").unwrap();
        holds(&file, b"ab", ZERO_FILL);
        file.write_all(b"cd").unwrap();
        holds(&file, b"abcd", ZERO_FILL - 2);
        let mut written = [&b"abcd"[..], &[7; ZERO_FILL - 1]].concat();
        file.write_all(&written[4..]).unwrap();
        holds(&file, &written, 9);
        file.allocate(written.len(), 10).unwrap();
        file.write_all(&[8; 10]).unwrap();
        written.extend([8; 10]);
        holds(&file, &written, 0);
    }

    #[test]
    fn a_file_that_is_truncated_and_rewritten_holds_nothing_else() {
        let mut file = file(usize::MAX);
        file.allocate(0, 100).unwrap();
        file.write_all(b"abcdef").unwrap();
        file.truncate(3).unwrap();
        holds(&file, b"abc", 0);
        file.allocate(3, 20).unwrap();
        file.write_all(b"x").unwrap();
        holds(&file, b"abcx", 19);
        file.seek(SeekFrom::Start(1)).unwrap();
        file.write_all(b"yz").unwrap();
        holds(&file, b"ayzx", 19);
    }

    #[test]
    fn writes_succeed_when_zeros_do_not_fit() {
        let mut file = file(10);
        file.allocate(0, 100).unwrap();
        file.write_all(b"abc").unwrap();
        file.write_all(b"def").unwrap();
        holds(&file, b"abcdef", 0);
        assert!(file.write_all(b"ghijk").is_err());
    }
}
