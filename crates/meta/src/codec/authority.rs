//! The encoding of the cluster's authority.

use bytes::Bytes;
use flotilla_storage::VersionNeed;
use flotilla_types::ClusterVersion;

use super::{CodecError, decode_versioned, encode_at, number, required};
use crate::{AuthorityRecord, PreparedAuthority};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AuthorityPb {
    #[prost(uint64, tag = "1")]
    serial: u64,
    #[prost(bytes = "bytes", tag = "2")]
    certificate: Bytes,
    /// Empty for none; so are the next ones.
    #[prost(bytes = "bytes", tag = "3")]
    cross: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    previous: Bytes,
    #[prost(message, optional, tag = "5")]
    prepared: Option<PreparedAuthorityPb>,
    #[prost(uint64, repeated, tag = "6")]
    certified: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PreparedAuthorityPb {
    #[prost(bytes = "bytes", tag = "1")]
    certificate: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    cross: Bytes,
}

/// Encodes the stored authority. Its version keeps older binaries from reading it.
pub(crate) fn encode_authority(record: &AuthorityRecord) -> Bytes {
    encode_at(VersionNeed::InForce(ClusterVersion::AUTHORITY_ROTATION), &AuthorityPb::from(record))
}

/// Decodes the stored authority.
pub(crate) fn decode_authority(bytes: &[u8]) -> Result<AuthorityRecord, CodecError> {
    decode_versioned::<AuthorityPb>(bytes)?.try_into()
}

impl From<&AuthorityRecord> for AuthorityPb {
    fn from(record: &AuthorityRecord) -> Self {
        Self {
            serial: record.serial,
            certificate: record.certificate.clone(),
            cross: record.cross.clone().unwrap_or_default(),
            previous: record.previous.clone().unwrap_or_default(),
            prepared: record.prepared.as_ref().map(PreparedAuthorityPb::from),
            certified: record.certified.iter().map(|node| node.0).collect(),
        }
    }
}

impl TryFrom<AuthorityPb> for AuthorityRecord {
    type Error = CodecError;

    fn try_from(pb: AuthorityPb) -> Result<Self, CodecError> {
        let filled = |bytes: Bytes| Some(bytes).filter(|bytes| !bytes.is_empty());
        Ok(Self {
            serial: number(pb.serial)?,
            certificate: required(filled(pb.certificate))?,
            cross: filled(pb.cross),
            previous: filled(pb.previous),
            prepared: pb.prepared.map(PreparedAuthority::from),
            certified: pb.certified.into_iter().map(number).collect::<Result<_, CodecError>>()?,
        })
    }
}

impl From<&PreparedAuthority> for PreparedAuthorityPb {
    fn from(next: &PreparedAuthority) -> Self {
        Self { certificate: next.certificate.clone(), cross: next.cross.clone() }
    }
}

impl From<PreparedAuthorityPb> for PreparedAuthority {
    fn from(pb: PreparedAuthorityPb) -> Self {
        Self { certificate: pb.certificate, cross: pb.cross }
    }
}
