//! Requests between nodes over the RPC stream, and their wire format.
//!
//! Invariants: bytes from a peer never cause a panic, and no peer can request a longer wait than the bounds
//! here. A request whose answer does not parse may have been executed.

use bytes::Bytes;
use flotilla_replication::{Answer, RequestError};
use flotilla_types::{NodeId, ShardId};
use flotilla_wire::{decode, encode, peer};

use super::RequestKind;

/// Longest timeout of a request; longer ones are cut to it.
const TIMEOUT_MS_MAX: u32 = 60_000;

const CODES: [RequestError; 8] = [
    RequestError::UnknownShard,
    RequestError::NotLeader { leader: None },
    RequestError::Busy,
    RequestError::StaleEpoch,
    RequestError::Deadline,
    RequestError::Unknown,
    RequestError::Stopped,
    RequestError::VersionNotInForce,
];

/// A request from one node to another. No `Debug`, because it may hold the authority's key.
#[derive(Clone, PartialEq, Eq)]
pub enum PeerRequest {
    /// A command or query for a shard that the receiver leads.
    Shard {
        /// Command or query.
        kind: RequestKind,
        /// The shard.
        shard: ShardId,
        /// The range epoch by which the sender routed; `None` skips the check.
        range_epoch: Option<u64>,
        /// The command or query, in the state machine's format.
        payload: Bytes,
        /// How long the receiver may take, in milliseconds, at most one minute.
        timeout_ms: u32,
    },
    /// The metadata changes after a version ([`super::feed_wait_ms`]).
    Feed {
        /// The version.
        version: u64,
        /// How long the receiver may wait for changes, in milliseconds.
        wait_ms: u32,
    },
    /// The cluster's authority, for a node that is about to become a voter of the metadata group. The answer
    /// is empty and comes once the authority is durable.
    Authority(Bytes),
    /// A certificate for the sender's client ports. The answer is the certificate in DER, if the receiver
    /// holds the authority and the metadata has these hosts among the sender's addresses.
    CertifyClientPorts {
        /// Signing request in DER.
        csr: Bytes,
        /// The hosts at which clients reach the sender.
        hosts: Vec<String>,
        /// How long the certificate is to be valid, in seconds.
        valid_s: u64,
    },
}

/// The request does not parse, or its kind is unknown to this version. Nothing was done; the answer is
/// [`RequestError::Stopped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request does not parse")]
pub struct MalformedRequest;

impl PeerRequest {
    /// Encodes the request.
    #[must_use]
    pub fn encode(self) -> Bytes {
        use peer::request::Kind;
        let kind = match self {
            Self::Shard { kind, shard, range_epoch, payload, timeout_ms } => {
                let range_epoch_plus_one = range_epoch.map_or(0, |epoch| epoch + 1);
                let (shard, deadline_ms) = (shard.0, timeout_ms);
                match kind {
                    RequestKind::Propose => {
                        Kind::Propose(peer::Propose { shard, range_epoch_plus_one, command: payload, deadline_ms })
                    }
                    RequestKind::Query => {
                        Kind::Query(peer::Query { shard, range_epoch_plus_one, query: payload, deadline_ms })
                    }
                }
            }
            Self::Feed { version, wait_ms } => Kind::Feed(peer::Feed { version, wait_ms }),
            Self::Authority(authority) => Kind::Authority(authority),
            Self::CertifyClientPorts { csr, hosts, valid_s } => {
                Kind::CertifyClientPorts(peer::CertifyClientPorts { csr, hosts, valid_s })
            }
        };
        encode(&peer::Request { kind: Some(kind) })
    }

    /// Decodes the output of [`PeerRequest::encode`].
    ///
    /// # Errors
    /// The bytes are not a request.
    pub fn decode(bytes: Bytes) -> Result<Self, MalformedRequest> {
        use peer::request::Kind;
        let request: peer::Request = decode(bytes).map_err(|_| MalformedRequest)?;
        Ok(match request.kind.ok_or(MalformedRequest)? {
            Kind::Propose(propose) => Self::Shard {
                kind: RequestKind::Propose,
                shard: ShardId(propose.shard),
                range_epoch: propose.range_epoch_plus_one.checked_sub(1),
                payload: propose.command,
                timeout_ms: propose.deadline_ms.min(TIMEOUT_MS_MAX),
            },
            Kind::Query(query) => Self::Shard {
                kind: RequestKind::Query,
                shard: ShardId(query.shard),
                range_epoch: query.range_epoch_plus_one.checked_sub(1),
                payload: query.query,
                timeout_ms: query.deadline_ms.min(TIMEOUT_MS_MAX),
            },
            Kind::Feed(feed) => Self::Feed { version: feed.version, wait_ms: feed.wait_ms },
            Kind::Authority(authority) => Self::Authority(authority),
            Kind::CertifyClientPorts(certify) => {
                Self::CertifyClientPorts { csr: certify.csr, hosts: certify.hosts, valid_s: certify.valid_s }
            }
        })
    }
}

/// Encodes an answer.
#[must_use]
pub fn encode_answer(answer: Answer) -> Bytes {
    let kind = match answer {
        Ok(value) => peer::response::Kind::Value(value),
        Err(error) => {
            let (plain, leader) = match error {
                RequestError::NotLeader { leader } => {
                    (RequestError::NotLeader { leader: None }, leader.map_or(0, |node| node.0))
                }
                other => (other, 0),
            };
            let code = CODES.iter().position(|code| *code == plain).unwrap_or(CODES.len()) as u32;
            peer::response::Kind::Failure(peer::Failure { code, leader })
        }
    };
    encode(&peer::Response { kind: Some(kind) })
}

/// Decodes a peer's answer. One that does not parse is [`RequestError::Unknown`]: the request may have been
/// executed.
pub fn decode_answer(response: Bytes) -> Answer {
    match decode::<peer::Response>(response).ok().and_then(|response| response.kind) {
        Some(peer::response::Kind::Value(value)) => Ok(value),
        Some(peer::response::Kind::Failure(failure)) => Err(match CODES.get(failure.code as usize) {
            Some(RequestError::NotLeader { .. }) => {
                RequestError::NotLeader { leader: (failure.leader != 0).then_some(NodeId(failure.leader)) }
            }
            Some(error) => *error,
            None => RequestError::Unknown,
        }),
        None => Err(RequestError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, extreme_u64, mutated};
    use proptest::{collection::vec, option, prelude::*, sample::select};

    use super::*;

    #[test]
    fn every_answer_survives_the_wire() {
        let named = RequestError::NotLeader { leader: Some(NodeId(3)) };
        for error in CODES.into_iter().chain([named]) {
            assert_eq!(decode_answer(encode_answer(Err(error))), Err(error));
        }
        assert_eq!(decode_answer(encode_answer(Ok(Bytes::from_static(b"value")))), Ok(Bytes::from_static(b"value")));
    }

    #[test]
    fn every_request_survives_the_wire() {
        let shard = |kind, range_epoch| PeerRequest::Shard {
            kind,
            shard: ShardId(4),
            range_epoch,
            payload: Bytes::from_static(b"payload"),
            timeout_ms: 7,
        };
        let requests = [
            shard(RequestKind::Propose, None),
            shard(RequestKind::Query, Some(0)),
            PeerRequest::Feed { version: 3, wait_ms: 9 },
            PeerRequest::Authority(Bytes::from_static(b"key")),
            PeerRequest::CertifyClientPorts {
                csr: Bytes::from_static(b"csr"),
                hosts: vec!["h".to_owned()],
                valid_s: 5,
            },
        ];
        for request in requests {
            assert!(PeerRequest::decode(request.clone().encode()).is_ok_and(|decoded| decoded == request));
        }
    }

    #[test]
    fn timeouts_are_cut_to_a_minute_and_garbage_is_an_error() {
        let long = PeerRequest::Shard {
            kind: RequestKind::Query,
            shard: ShardId(1),
            range_epoch: None,
            payload: Bytes::new(),
            timeout_ms: u32::MAX,
        };
        let decoded = PeerRequest::decode(long.encode());
        assert!(matches!(decoded, Ok(PeerRequest::Shard { timeout_ms: TIMEOUT_MS_MAX, .. })));
        assert!(PeerRequest::decode(Bytes::new()).is_err());
        assert!(PeerRequest::decode(Bytes::from_static(b"\xff\xff")).is_err());
        assert_eq!(decode_answer(Bytes::from_static(b"\xff\xff")), Err(RequestError::Unknown));
    }

    /// Encoded immediately, because requests have no `Debug`.
    fn requests() -> impl Strategy<Value = Bytes> {
        let payload = || vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let range_epoch = option::of(0..u64::MAX);
        let shard = (any::<bool>(), extreme_u64(), range_epoch, payload(), 0..=TIMEOUT_MS_MAX).prop_map(
            |(propose, id, range_epoch, payload, timeout_ms)| {
                let kind = if propose { RequestKind::Propose } else { RequestKind::Query };
                PeerRequest::Shard { kind, shard: ShardId(id), range_epoch, payload, timeout_ms }.encode()
            },
        );
        let feed = (extreme_u64(), any::<u32>())
            .prop_map(|(version, wait_ms)| PeerRequest::Feed { version, wait_ms }.encode());
        prop_oneof![2 => shard, 1 => feed, 1 => payload().prop_map(|key| PeerRequest::Authority(key).encode())]
    }

    #[test]
    fn hostile_requests_are_refused_or_bounded() {
        attack(128, requests(), |request| {
            assert!(PeerRequest::decode(request.clone()).is_ok_and(|decoded| decoded.encode() == request));
        });
        attack(1_000, mutated(requests()), |bytes| {
            let bytes = Bytes::from(bytes);
            if let Ok(PeerRequest::Shard { timeout_ms, .. }) =
                Proportion::DEFAULT.of(bytes.len(), || PeerRequest::decode(bytes))
            {
                assert!(timeout_ms <= TIMEOUT_MS_MAX);
            }
        });
    }

    #[test]
    fn hostile_answers_decode_to_an_unknown_outcome_at_worst() {
        let valid = prop_oneof![
            vec(any::<u8>(), 0..40).prop_map(|value| encode_answer(Ok(value.into()))),
            (select(CODES.to_vec()), extreme_u64()).prop_map(|(error, node)| match error {
                RequestError::NotLeader { .. } => {
                    encode_answer(Err(RequestError::NotLeader { leader: Some(NodeId(node)) }))
                }
                error => encode_answer(Err(error)),
            }),
        ];
        attack(1_000, mutated(valid), |bytes| {
            let bytes = Bytes::from(bytes);
            let answer = Proportion::DEFAULT.of(bytes.len(), || decode_answer(bytes));
            assert_eq!(decode_answer(encode_answer(answer.clone())), answer);
        });
    }
}
