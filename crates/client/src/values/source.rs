//! Where a value comes from: memory or a file, which is read twice.

use std::{
    fs::File,
    io::{self, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    task::spawn_blocking,
};

use super::LARGE_VALUE_BYTES_MAX;

/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;
/// Bytes of a stream that are kept in memory. Longer ones go to a temporary file.
const IN_MEMORY_BYTES_MAX: usize = 1 << 20;

/// The content of a value, which can be read at any place, any number of times.
#[derive(Debug, Clone)]
pub struct ValueSource(Content);

#[derive(Debug, Clone)]
enum Content {
    Bytes(Bytes),
    /// A file, and its length when it was opened.
    File(Arc<File>, u64),
}

impl ValueSource {
    /// Opens a file. What is no regular file, such as a pipe, is read to its end.
    ///
    /// # Errors
    /// The file cannot be read, or it is no regular file and longer than [`LARGE_VALUE_BYTES_MAX`].
    pub async fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        blocking(move || Self::open_sync(path)).await
    }

    /// As [`open`](Self::open). Blocks.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_sync(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_file() { Ok(Self::file(file, metadata.len())) } else { Self::read_sync(file) }
    }

    /// Reads a stream to its end. More than 1 MiB is kept in a temporary file.
    ///
    /// # Errors
    /// The stream fails, the temporary file cannot be written, or the stream is longer than
    /// [`LARGE_VALUE_BYTES_MAX`].
    pub async fn read(mut reader: impl AsyncRead + Unpin) -> io::Result<Self> {
        let mut spool = Spool::default();
        let mut buffer = Vec::with_capacity(READ_BYTES);
        while reader.read_buf(&mut buffer).await? > 0 {
            let filled = std::mem::replace(&mut buffer, Vec::with_capacity(READ_BYTES));
            spool = blocking(move || spool.push(&filled)).await?;
        }
        Ok(spool.finish())
    }

    /// As [`read`](Self::read), for a reader that blocks.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_sync(mut reader: impl io::Read) -> io::Result<Self> {
        let mut spool = Spool::default();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(spool.finish()),
                Ok(bytes) => spool = spool.push(&buffer[..bytes])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The length, bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.0 {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(_, bytes) => *bytes,
        }
    }

    /// Whether there is not a byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A reader that begins at the first byte. It blocks.
    #[must_use]
    pub fn reader(&self) -> ValueSourceReader {
        ValueSourceReader { source: self.clone(), offset: 0 }
    }

    fn file(file: File, bytes: u64) -> Self {
        Self(Content::File(Arc::new(file), bytes))
    }

    /// These bytes. Blocks. Fails if the file has become shorter.
    pub(crate) fn slice(&self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        match &self.0 {
            Content::Bytes(content) => {
                let start = usize::try_from(offset).ok().filter(|start| content.len().saturating_sub(*start) >= bytes);
                let start = start.ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(content.slice(start..start + bytes))
            }
            Content::File(file, _) => {
                let mut slice = vec![0; bytes];
                file.read_exact_at(&mut slice, offset)?;
                Ok(slice.into())
            }
        }
    }

    /// All bytes, piece after piece. Blocks.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = io::Result<Bytes>> {
        (0..self.len()).step_by(READ_BYTES).map(|offset| self.piece(offset))
    }

    /// All bytes, piece after piece.
    pub(crate) fn stream(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold((self.clone(), 0), async |(source, offset)| {
            if offset >= source.len() {
                return Ok(None);
            }
            let reader = source.clone();
            let piece = blocking(move || reader.piece(offset)).await?;
            let end = offset + piece.len() as u64;
            Ok(Some((piece, (source, end))))
        })
    }

    fn piece(&self, offset: u64) -> io::Result<Bytes> {
        let bytes = (self.len() - offset).min(READ_BYTES as u64);
        self.slice(offset, bytes as usize)
    }
}

impl<T: Into<Bytes>> From<T> for ValueSource {
    fn from(bytes: T) -> Self {
        Self(Content::Bytes(bytes.into()))
    }
}

/// Reads a [`ValueSource`] from any place. Blocks.
#[derive(Debug)]
pub struct ValueSourceReader {
    source: ValueSource,
    offset: u64,
}

impl io::Read for ValueSourceReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.source.len().saturating_sub(self.offset);
        let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        if bytes == 0 {
            return Ok(0);
        }
        match &self.source.0 {
            Content::Bytes(_) => into[..bytes].copy_from_slice(&self.source.slice(self.offset, bytes)?),
            Content::File(file, _) => file.read_exact_at(&mut into[..bytes], self.offset)?,
        }
        self.offset += bytes as u64;
        Ok(bytes)
    }
}

impl io::Seek for ValueSourceReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let moved = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(by) => self.source.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.offset.checked_add_signed(by),
        };
        self.offset = moved.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.offset)
    }
}

/// A stream as far as it was read.
#[derive(Default)]
pub(super) struct Spool {
    memory: Vec<u8>,
    file: Option<(File, u64)>,
}

impl Spool {
    pub(super) fn push(mut self, bytes: &[u8]) -> io::Result<Self> {
        let length = self.file.as_ref().map_or(self.memory.len() as u64, |(_, length)| *length) + bytes.len() as u64;
        if length > LARGE_VALUE_BYTES_MAX {
            let reason = format!("it is longer than {LARGE_VALUE_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
        }
        if self.file.is_none() && length <= IN_MEMORY_BYTES_MAX as u64 {
            self.memory.extend_from_slice(bytes);
            return Ok(self);
        }
        let mut file = match self.file.take() {
            Some((file, _)) => file,
            None => tempfile::tempfile()?,
        };
        file.write_all(&std::mem::take(&mut self.memory))?;
        file.write_all(bytes)?;
        self.file = Some((file, length));
        Ok(self)
    }

    pub(super) fn finish(self) -> ValueSource {
        match self.file {
            Some((file, length)) => ValueSource::file(file, length),
            None => self.memory.into(),
        }
    }
}

/// Runs work that blocks where it may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
