//! The record that describes an archive.

use flotilla_api::Encoding;
use serde::{Serialize, Serializer};

use super::formats::{Format, Headers, Member, MemberKind, Owner};

/// An archive and its members, in order.
pub(super) struct Manifest {
    format: Format,
    bytes: u64,
    hash: blake3::Hash,
    headers: Headers,
    members: Vec<Described>,
}

/// A member and what was found in it.
pub(super) struct Described {
    pub(super) member: Member,
    /// Its key below that of the archive; none for what is no file.
    pub(super) key: Option<Vec<u8>>,
    pub(super) bytes: u64,
    pub(super) hash: Option<blake3::Hash>,
    /// Content of what is no file.
    pub(super) data: Vec<u8>,
}

/// Bytes that usually are text: a string, or `{"base64": …}` if they are not UTF-8.
#[derive(Debug)]
pub(super) struct Text(Vec<u8>);

#[derive(Debug, Serialize)]
pub(super) struct GzipHeader {
    pub(super) modified_at: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) comment: Option<Text>,
    pub(super) operating_system: u8,
}

#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    bytes: u64,
    blake3: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    gzip: Option<&'a GzipHeader>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<Text>,
    members: Vec<MemberDocument<'a>>,
}

#[derive(Serialize)]
struct MemberDocument<'a> {
    path: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Text>,
    kind: &'static str,
    /// Of a kind that has no name here: the type in the header.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    type_code: Option<u8>,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified_local: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<Text>,
}

impl Manifest {
    pub(super) fn new(
        format: Format,
        bytes: u64,
        hash: blake3::Hash,
        headers: Headers,
        members: Vec<Described>,
    ) -> Self {
        Self { format, bytes, hash, headers, members }
    }

    /// The record's value.
    pub(super) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let Self { format, bytes, hash, headers: Headers { gzip, comment }, members } = self;
        serde_json::to_vec_pretty(&Document {
            format: format.name(),
            bytes: *bytes,
            blake3: hash.to_hex().to_string(),
            gzip: gzip.as_ref(),
            comment: text(Some(comment)),
            members: members.iter().map(MemberDocument::new).collect(),
        })
    }

    pub(super) fn into_members(self) -> impl Iterator<Item = Described> {
        self.members.into_iter()
    }
}

impl<'a> MemberDocument<'a> {
    fn new(described: &'a Described) -> Self {
        let Described { member, key, bytes, hash, data } = described;
        let Member { path, kind, mode, modified_at, modified_local, owner, link, compression, comment, .. } = member;
        let (kind, type_code) = match kind {
            MemberKind::File => ("file", None),
            MemberKind::Folder => ("folder", None),
            MemberKind::Link => ("link", None),
            MemberKind::HardLink => ("hard_link", None),
            MemberKind::Other(code) => ("other", Some(*code)),
        };
        let of_owner = |part: fn(&Owner) -> &Vec<u8>| text(owner.as_ref().map(part));
        Self {
            path: Text(path.clone()),
            key: text(key.as_ref()),
            kind,
            type_code,
            bytes: *bytes,
            blake3: hash.map(|hash| hash.to_hex().to_string()),
            data: text(Some(data)),
            mode: *mode,
            modified_at: *modified_at,
            modified_local: modified_local.as_deref(),
            uid: owner.as_ref().and_then(|owner| owner.uid),
            gid: owner.as_ref().and_then(|owner| owner.gid),
            user: of_owner(|owner| &owner.user),
            group: of_owner(|owner| &owner.group),
            link: text(link.as_ref()),
            compression: compression.as_deref(),
            comment: text(comment.as_ref()),
        }
    }
}

/// None if there is nothing to say.
fn text(bytes: Option<&Vec<u8>>) -> Option<Text> {
    bytes.filter(|bytes| !bytes.is_empty()).map(|bytes| Text(bytes.clone()))
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let encoded = Encoding::Base64.encode(&self.0).map_err(serde::ser::Error::custom)?;
                serde_json::json!({ "base64": encoded }).serialize(serializer)
            }
        }
    }
}
