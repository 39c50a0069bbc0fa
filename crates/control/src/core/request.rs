//! What nodes ask of each other over the RPC stream, and how it is written.
//!
//! Invariants: bytes of a peer never panic, and no peer can ask for a longer wait than the bounds here. What does not parse as
//! an answer may have been executed.

use bytes::Bytes;
use flotilla_replication::{Answer, RequestError};
use flotilla_types::{NodeId, ShardId};
use flotilla_wire::{decode, encode, peer};

use super::Ask;

/// A request that names a longer time gets this.
const TIMEOUT_MS_MAX: u32 = 60_000;

const CODES: [RequestError; 7] = [
    RequestError::UnknownShard,
    RequestError::NotLeader { leader: None },
    RequestError::Busy,
    RequestError::StaleEpoch,
    RequestError::Deadline,
    RequestError::Unknown,
    RequestError::Stopped,
];

/// A request from one node to another. Not to be printed: it may hold the authority's key.
#[derive(Clone, PartialEq, Eq)]
pub enum PeerRequest {
    /// Something for a shard that the receiver leads.
    Ask {
        /// What is asked.
        ask: Ask,
        /// Of which shard.
        shard: ShardId,
        /// The range epoch that the sender routed by, or `None` not to check it.
        range_epoch: Option<u64>,
        /// The command or query, in the state machine's format.
        payload: Bytes,
        /// How long the receiver may take, in milliseconds; a minute at most.
        timeout_ms: u32,
    },
    /// Metadata after a version ([`super::feed_wait_ms`]).
    Feed {
        /// The version.
        version: u64,
        /// How long the receiver may wait for news, in milliseconds.
        wait_ms: u32,
    },
    /// The cluster's authority, for a node that is about to vote in the metadata group. Answered by nothing once it is durable.
    Authority(Bytes),
}

/// A request does not parse, or is of a kind that this version does not know. Nothing was done; it is answered by
/// [`RequestError::Stopped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request does not parse")]
pub struct MalformedRequest;

impl PeerRequest {
    /// The request as bytes.
    #[must_use]
    pub fn encode(self) -> Bytes {
        use peer::request::Kind;
        let kind = match self {
            Self::Ask { ask, shard, range_epoch, payload, timeout_ms } => {
                let range_epoch_plus_one = range_epoch.map_or(0, |epoch| epoch + 1);
                let (shard, deadline_ms) = (shard.0, timeout_ms);
                match ask {
                    Ask::Propose => {
                        Kind::Propose(peer::Propose { shard, range_epoch_plus_one, command: payload, deadline_ms })
                    }
                    Ask::Query => Kind::Query(peer::Query { shard, range_epoch_plus_one, query: payload, deadline_ms }),
                }
            }
            Self::Feed { version, wait_ms } => Kind::Feed(peer::Feed { version, wait_ms }),
            Self::Authority(authority) => Kind::Authority(authority),
        };
        encode(&peer::Request { kind: Some(kind) })
    }

    /// Takes back what [`PeerRequest::encode`] gave.
    ///
    /// # Errors
    /// The bytes are not a request.
    pub fn decode(bytes: Bytes) -> Result<Self, MalformedRequest> {
        use peer::request::Kind;
        let request: peer::Request = decode(bytes).map_err(|_| MalformedRequest)?;
        Ok(match request.kind.ok_or(MalformedRequest)? {
            Kind::Propose(asked) => Self::Ask {
                ask: Ask::Propose,
                shard: ShardId(asked.shard),
                range_epoch: asked.range_epoch_plus_one.checked_sub(1),
                payload: asked.command,
                timeout_ms: asked.deadline_ms.min(TIMEOUT_MS_MAX),
            },
            Kind::Query(asked) => Self::Ask {
                ask: Ask::Query,
                shard: ShardId(asked.shard),
                range_epoch: asked.range_epoch_plus_one.checked_sub(1),
                payload: asked.query,
                timeout_ms: asked.deadline_ms.min(TIMEOUT_MS_MAX),
            },
            Kind::Feed(feed) => Self::Feed { version: feed.version, wait_ms: feed.wait_ms },
            Kind::Authority(authority) => Self::Authority(authority),
        })
    }
}

/// An answer as bytes.
#[must_use]
pub fn response_of(answer: Answer) -> Bytes {
    let kind = match answer {
        Ok(value) => peer::response::Kind::Value(value),
        Err(error) => {
            let (plain, leader) = match error {
                RequestError::NotLeader { leader } => {
                    (RequestError::NotLeader { leader: None }, leader.map_or(0, |node| node.0))
                }
                other => (other, 0),
            };
            let code = CODES.iter().position(|known| *known == plain).unwrap_or(CODES.len()) as u32;
            peer::response::Kind::Failure(peer::Failure { code, leader })
        }
    };
    encode(&peer::Response { kind: Some(kind) })
}

/// What a peer's response says. What does not parse may have been executed.
pub fn answer_of(response: Bytes) -> Answer {
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
            assert_eq!(answer_of(response_of(Err(error))), Err(error));
        }
        assert_eq!(answer_of(response_of(Ok(Bytes::from_static(b"value")))), Ok(Bytes::from_static(b"value")));
    }

    #[test]
    fn every_request_survives_the_wire() {
        let ask = |ask, range_epoch| PeerRequest::Ask {
            ask,
            shard: ShardId(4),
            range_epoch,
            payload: Bytes::from_static(b"payload"),
            timeout_ms: 7,
        };
        let requests = [
            ask(Ask::Propose, None),
            ask(Ask::Query, Some(0)),
            PeerRequest::Feed { version: 3, wait_ms: 9 },
            PeerRequest::Authority(Bytes::from_static(b"key")),
        ];
        for request in requests {
            assert!(PeerRequest::decode(request.clone().encode()).is_ok_and(|decoded| decoded == request));
        }
    }

    #[test]
    fn no_peer_is_waited_for_longer_than_a_minute_and_garbage_is_an_error() {
        let long = PeerRequest::Ask {
            ask: Ask::Query,
            shard: ShardId(1),
            range_epoch: None,
            payload: Bytes::new(),
            timeout_ms: u32::MAX,
        };
        let decoded = PeerRequest::decode(long.encode());
        assert!(matches!(decoded, Ok(PeerRequest::Ask { timeout_ms: TIMEOUT_MS_MAX, .. })));
        assert!(PeerRequest::decode(Bytes::new()).is_err());
        assert!(PeerRequest::decode(Bytes::from_static(b"\xff\xff")).is_err());
        assert_eq!(answer_of(Bytes::from_static(b"\xff\xff")), Err(RequestError::Unknown));
    }

    /// Encoded at once: requests are not to be printed.
    fn requests() -> impl Strategy<Value = Bytes> {
        let payload = || vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let range_epoch = option::of(0..u64::MAX);
        let ask = (any::<bool>(), extreme_u64(), range_epoch, payload(), 0..=TIMEOUT_MS_MAX).prop_map(
            |(propose, shard, range_epoch, payload, timeout_ms)| {
                let ask = if propose { Ask::Propose } else { Ask::Query };
                PeerRequest::Ask { ask, shard: ShardId(shard), range_epoch, payload, timeout_ms }.encode()
            },
        );
        let feed = (extreme_u64(), any::<u32>())
            .prop_map(|(version, wait_ms)| PeerRequest::Feed { version, wait_ms }.encode());
        prop_oneof![2 => ask, 1 => feed, 1 => payload().prop_map(|key| PeerRequest::Authority(key).encode())]
    }

    #[test]
    fn hostile_requests_are_refused_or_bounded() {
        attack(128, requests(), |request| {
            assert!(PeerRequest::decode(request.clone()).is_ok_and(|decoded| decoded.encode() == request));
        });
        attack(1_000, mutated(requests()), |bytes| {
            let bytes = Bytes::from(bytes);
            if let Ok(PeerRequest::Ask { timeout_ms, .. }) =
                Proportion::DEFAULT.of(bytes.len(), || PeerRequest::decode(bytes))
            {
                assert!(timeout_ms <= TIMEOUT_MS_MAX);
            }
        });
    }

    #[test]
    fn hostile_answers_are_an_outcome_that_is_not_known_at_worst() {
        let valid = prop_oneof![
            vec(any::<u8>(), 0..40).prop_map(|value| response_of(Ok(value.into()))),
            (select(CODES.to_vec()), extreme_u64()).prop_map(|(error, node)| match error {
                RequestError::NotLeader { .. } => {
                    response_of(Err(RequestError::NotLeader { leader: Some(NodeId(node)) }))
                }
                error => response_of(Err(error)),
            }),
        ];
        attack(1_000, mutated(valid), |bytes| {
            let bytes = Bytes::from(bytes);
            let answer = Proportion::DEFAULT.of(bytes.len(), || answer_of(bytes));
            assert_eq!(answer_of(response_of(answer.clone())), answer);
        });
    }
}
