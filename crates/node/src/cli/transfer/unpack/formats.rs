//! Reading the members of archives, in order.

use std::{
    cell::Cell,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
};

use flate2::{GzHeader, read::MultiGzDecoder};
use flotilla_client::ValueSource;
use tar::{Archive, EntryType};
use zip::ZipArchive;

use super::{Stop, keep, manifest::GzipHeader};

/// A format of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Tar,
    TarGz,
    /// One file, compressed.
    Gzip,
    Zip,
}

/// A member of an archive, without its content.
#[derive(Debug, Default)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) kind: MemberKind,
    /// Length of the content, if the archive says it before.
    pub(super) bytes: Option<u64>,
    pub(super) mode: Option<u32>,
    /// Unix seconds.
    pub(super) modified_at: Option<u64>,
    /// Year to second, in a time zone that the archive does not say.
    pub(super) modified_local: Option<String>,
    pub(super) owner: Option<Owner>,
    /// Target of a link.
    pub(super) link: Option<Vec<u8>>,
    /// How it is compressed in a zip archive.
    pub(super) compression: Option<String>,
    pub(super) comment: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Owner {
    /// None if the field is blank.
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) user: Vec<u8>,
    pub(super) group: Vec<u8>,
}

/// The kind of a member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum MemberKind {
    #[default]
    File,
    Folder,
    Link,
    HardLink,
    /// The type in the header of a tar archive.
    Other(u8),
}

/// What an archive says of itself.
#[derive(Debug, Default)]
pub(super) struct Headers {
    pub(super) gzip: Option<GzipHeader>,
    pub(super) comment: Vec<u8>,
}

/// Takes a member and its content, of which it may leave the rest.
pub(super) type Visit<'a> = dyn FnMut(Member, &mut dyn Read) -> Result<(), Stop> + 'a;

impl Format {
    /// The format that a name says.
    pub(super) fn of(name: &[u8]) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let ends: [(&[u8], Self); 6] = [
            (b".tar", Self::Tar),
            (b".tar.gz", Self::TarGz),
            (b".tgz", Self::TarGz),
            (b".gz", Self::Gzip),
            (b".zip", Self::Zip),
            (b".whl", Self::Zip),
        ];
        ends.into_iter().find(|(end, _)| name.ends_with(end)).map(|(_, format)| format)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::TarGz => "tar.gz",
            Self::Gzip => "gzip",
            Self::Zip => "zip",
        }
    }

    /// Visits all members. Fails if there is anything besides them.
    pub(super) fn walk(self, name: &[u8], content: &ValueSource, visit: &mut Visit<'_>) -> Result<Headers, Stop> {
        let reader = BufReader::new(content.reader());
        match self {
            Self::Tar => tar(reader, visit).map(|_| Headers::default()),
            Self::TarGz => {
                let decoder = tar(MultiGzDecoder::new(reader), visit)?;
                Ok(Headers { gzip: decoder.header().map(GzipHeader::new), ..Headers::default() })
            }
            Self::Gzip => gzip(name, MultiGzDecoder::new(reader), visit),
            Self::Zip => zip(content, visit),
        }
    }
}

/// Long names and other headers of one member, bytes: the library keeps them in memory.
const HEADERS_BYTES_MAX: u64 = 1 << 20;

/// A reader that fails after so many bytes, which change while it is read.
struct Limited<'a, R> {
    reader: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.reader.read(into)?;
        let left = self.left.get().checked_sub(bytes as u64);
        let reason = || io::Error::new(io::ErrorKind::InvalidData, "the headers of a member are too long");
        self.left.set(left.ok_or_else(reason)?);
        Ok(bytes)
    }
}

/// Returns the reader, at its end.
fn tar<R: Read>(reader: R, visit: &mut Visit<'_>) -> Result<R, Stop> {
    let left = Cell::new(HEADERS_BYTES_MAX);
    let mut archive = Archive::new(Limited { reader, left: &left });
    for entry in archive.entries()? {
        let mut entry = entry?;
        left.set(entry.size().saturating_add(HEADERS_BYTES_MAX));
        let header = entry.header();
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => MemberKind::File,
            EntryType::Directory => MemberKind::Folder,
            EntryType::Symlink => MemberKind::Link,
            EntryType::Link => MemberKind::HardLink,
            other => MemberKind::Other(other.as_byte()),
        };
        let owner = Owner {
            uid: header.uid().ok(),
            gid: header.gid().ok(),
            user: header.username_bytes().unwrap_or_default().to_vec(),
            group: header.groupname_bytes().unwrap_or_default().to_vec(),
        };
        let (mode, modified_at) = (header.mode().ok(), header.mtime().ok());
        let member = Member {
            path: entry.path_bytes().into_owned(),
            kind,
            bytes: Some(entry.size()),
            mode,
            modified_at,
            owner: Some(owner),
            link: entry.link_name_bytes().map(|link| link.into_owned()),
            ..Member::default()
        };
        visit(member, &mut entry)?;
    }
    let Limited { mut reader, .. } = archive.into_inner();
    let mut rest = [0; 8_192];
    loop {
        match reader.read(&mut rest)? {
            0 => return Ok(reader),
            bytes if rest[..bytes].iter().all(|byte| *byte == 0) => {}
            _ => return Err(keep("something follows its end")),
        }
    }
}

fn gzip<R: Read>(name: &[u8], mut reader: MultiGzDecoder<R>, visit: &mut Visit<'_>) -> Result<Headers, Stop> {
    let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let path = name.get(..name.len() - b".gz".len()).filter(|path| !path.is_empty()).unwrap_or(b"content");
    // Read so that the header is there.
    let mut first = [0];
    let is_empty = reader.read(&mut first)? == 0;
    let header = reader.header().ok_or_else(|| keep("it has no header"))?;
    let modified_at = Some(u64::from(header.mtime())).filter(|mtime| *mtime > 0);
    let member = Member { path: path.to_vec(), modified_at, ..Member::default() };
    let headers = Headers { gzip: Some(GzipHeader::new(header)), ..Headers::default() };
    visit(member, &mut (&first[..usize::from(!is_empty)]).chain(reader))?;
    Ok(headers)
}

fn zip(content: &ValueSource, visit: &mut Visit<'_>) -> Result<Headers, Stop> {
    let unreadable = |error: zip::result::ZipError| keep(error.to_string());
    let mut archive = ZipArchive::new(BufReader::new(content.reader())).map_err(unreadable)?;
    if archive.offset() != 0 {
        return Err(keep("something precedes it"));
    }
    // The library keeps the last of members with the same name.
    if members_of_zip(content)? != Some(archive.len()) {
        return Err(keep("two of its members have the same path, or it has too many"));
    }
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).map_err(unreadable)?;
        let kind = match (file.is_dir(), file.is_symlink()) {
            (true, _) => MemberKind::Folder,
            (_, true) => MemberKind::Link,
            _ => MemberKind::File,
        };
        let comment = Some(file.comment().as_bytes().to_vec()).filter(|comment| !comment.is_empty());
        let member = Member {
            path: file.name_raw().to_vec(),
            kind,
            bytes: Some(file.size()),
            mode: file.unix_mode(),
            modified_local: file.last_modified().map(|time| time.to_string()),
            compression: Some(file.compression().to_string().to_lowercase()),
            comment,
            ..Member::default()
        };
        visit(member, &mut file)?;
    }
    Ok(Headers { comment: archive.comment().to_vec(), ..Headers::default() })
}

/// How many members the end of a zip archive says; `None` for one with more than 65,534.
fn members_of_zip(content: &ValueSource) -> io::Result<Option<usize>> {
    /// The end of the archive without its comment, which has two bytes of length.
    const END_BYTES: usize = 22;
    let mut reader = content.reader();
    reader.seek(SeekFrom::Start(content.len().saturating_sub(END_BYTES as u64 + u64::from(u16::MAX))))?;
    let mut end = Vec::new();
    reader.read_to_end(&mut end)?;
    let found = end.windows(END_BYTES).rfind(|end| end.starts_with(b"PK\x05\x06"));
    Ok(found.map(|end| u16::from_le_bytes([end[10], end[11]])).filter(|count| *count < u16::MAX).map(usize::from))
}

impl GzipHeader {
    fn new(header: &GzHeader) -> Self {
        Self {
            modified_at: header.mtime(),
            name: header.filename().map(Into::into),
            comment: header.comment().map(Into::into),
            operating_system: header.operating_system(),
        }
    }
}
