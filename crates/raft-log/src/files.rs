//! The engine's files, with zeros written ahead of the log.
//!
//! An fsync is quick when it finds nothing to say about the file itself: neither a new length, nor blocks that were reserved and never
//! written. The engine reserves; here the reserved space is written as well, a little ahead of the log, so that most syncs carry
//! nothing but the log's own bytes and wait for no commit of the file system's journal.
//!
//! What a reader finds is the same as before: zeros behind the last batch, which the engine cuts when it closes a file and
//! passes over when it opens one. Zeros that cannot be written are done without.

use std::{
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    sync::Arc,
};

use raft_engine::env::{DefaultFileSystem as System, FileSystem, Permission, WriteExt};

/// How far zeros go ahead, in bytes. One sync in so many bytes of log is slow.
const AHEAD_BYTES: u64 = 256 << 10;
/// Zeros are written page by page: what is written at once may become one large page of the system's cache, and a few bytes that
/// are written into that later would count as all of it.
const PAGE_BYTES: u64 = 4 << 10;

/// The system's files, see the module's text.
pub(crate) struct LogFiles;

impl FileSystem for LogFiles {
    type Handle = <System as FileSystem>::Handle;
    type Reader = <System as FileSystem>::Reader;
    type Writer = Ahead<<System as FileSystem>::Writer>;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<Self::Handle> {
        System.create(path)
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
        Ok(Ahead { file: System.new_writer(handle)?, at: 0, zeros_to: 0, allocated_to: 0 })
    }
}

/// Writes a file, and zeros ahead within what is allocated.
pub(crate) struct Ahead<W> {
    file: W,
    /// Where the next bytes go.
    at: u64,
    /// Up to here nothing is left to be said about the file.
    zeros_to: u64,
    /// The engine cuts no zeros beyond this.
    allocated_to: u64,
}

impl<W: Write + Seek> Ahead<W> {
    /// Writes the next zeros.
    fn extend(&mut self) -> io::Result<()> {
        let end = self.allocated_to.min(self.at + AHEAD_BYTES);
        self.zeros_to = self.at;
        while self.zeros_to < end {
            let next = end.min((self.zeros_to / PAGE_BYTES + 1) * PAGE_BYTES);
            let zeros = &[0; PAGE_BYTES as usize][..(next - self.zeros_to) as usize];
            if self.file.write_all(zeros).is_err() {
                break;
            }
            self.zeros_to = next;
        }
        self.file.seek(SeekFrom::Start(self.at))?;
        Ok(())
    }
}

impl<W: Write + Seek> Write for Ahead<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.at += written as u64;
        if self.at > self.zeros_to {
            self.extend()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl<W: Seek> Seek for Ahead<W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = self.file.seek(to)?;
        Ok(self.at)
    }
}

impl<W: WriteExt> WriteExt for Ahead<W> {
    fn truncate(&mut self, len: usize) -> io::Result<()> {
        self.file.truncate(len)?;
        self.at = len as u64;
        self.zeros_to = self.at;
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

    const AHEAD: usize = AHEAD_BYTES as usize;

    /// A file that takes so many bytes.
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
            let SeekFrom::Start(at) = to else { unreachable!("files are only sought from their start") };
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

    fn file(bytes_max: usize) -> Ahead<Memory> {
        Ahead { file: Memory { bytes_max, ..Memory::default() }, at: 0, zeros_to: 0, allocated_to: 0 }
    }

    /// What is written, and how many zeros follow. Nothing else may.
    #[track_caller]
    fn holds(file: &Ahead<Memory>, written: &[u8], zeros: usize) {
        let (found, ahead) = file.file.bytes.split_at(written.len());
        assert_eq!(found, written);
        assert_eq!(ahead, vec![0; zeros]);
    }

    #[test]
    fn zeros_go_ahead_by_steps_and_never_beyond_what_is_allocated() {
        let mut file = file(usize::MAX);
        file.allocate(0, AHEAD + 12).unwrap();
        file.write_all(b"ab").unwrap();
        holds(&file, b"ab", AHEAD);
        file.write_all(b"cd").unwrap();
        holds(&file, b"abcd", AHEAD - 2);
        let mut written = [&b"abcd"[..], &[7; AHEAD - 1]].concat();
        file.write_all(&written[4..]).unwrap();
        holds(&file, &written, 9);
        file.allocate(written.len(), 10).unwrap();
        file.write_all(&[8; 10]).unwrap();
        written.extend([8; 10]);
        holds(&file, &written, 0);
    }

    #[test]
    fn a_file_that_is_cut_and_written_anew_holds_nothing_else() {
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
    fn zeros_that_find_no_room_are_done_without() {
        let mut file = file(10);
        file.allocate(0, 100).unwrap();
        file.write_all(b"abc").unwrap();
        file.write_all(b"def").unwrap();
        holds(&file, b"abcdef", 0);
        assert!(file.write_all(b"ghijk").is_err());
    }
}
