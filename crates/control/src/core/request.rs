//! Requests between nodes over the RPC stream, and their wire format.
//!
//! Invariants: bytes from a peer never cause a panic, and no peer can request a longer wait than the bounds
//! here. A request whose answer does not parse may have been executed.

use bytes::Bytes;
use flotilla_replication::{Answer, Answered, CommandRefs, RequestError};
use flotilla_types::{ByteOrder, NodeId, Refs, ReplicaId, ShardId, Timestamp};
use flotilla_wire::{decode, descriptor_from_wire, descriptor_to_wire, encode, peer};

use super::{Evidence, PlacementQuestion, RequestKind};

/// Longest timeout of a request; longer ones are cut to it.
const TIMEOUT_MS_MAX: u32 = 60_000;

/// Descriptors that are taken from one refusal, at most.
const DESCRIPTORS_MAX: usize = 64;

/// A request from one node to another. No `Debug`, because it may hold the authority's key.
#[derive(Clone, PartialEq, Eq)]
pub enum PeerRequest {
    /// A command or query for a shard that the receiver leads.
    Shard(ShardRequest),
    /// The metadata changes after a version ([`super::feed_wait_ms`]).
    Feed {
        /// The version.
        version: u64,
        /// How long the receiver may wait for changes, in milliseconds.
        wait_ms: u32,
    },
    /// The cluster's authority, for a node that is about to become a voter of the metadata group, or the next
    /// authority, for one that may be. The answer is empty and comes once the authority is durable.
    Authority(Bytes),
    /// A new certificate for the sender, whose key stays the same. The answer is a [`peer::Certified`], if
    /// the receiver holds the authority and the metadata knows the sender by this key.
    CertifyNode {
        /// Signing request in DER.
        csr: Bytes,
        /// How long the certificate is to be valid, in seconds.
        valid_s: u64,
    },
    /// Replace the cluster's authority, for which the receiver must hold it. The answer is empty, or says in
    /// words why the authority was not replaced.
    RotateAuthority {
        /// How long the receiver may take, in milliseconds; a peer may ask for at most one minute.
        timeout_ms: u32,
    },
    /// What changes the shards that the receiver leads, and the snapshots that it receives: a
    /// [`super::Operations`].
    Operations,
    /// How the receiver's scrub stands: a [`super::NodeScrub`].
    Scrub {
        /// Whether a pass is to begin.
        start: bool,
    },
    /// What a replica of the receiver says of its state: a [`super::Said`].
    Fingerprints {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// A replica of the receiver differs from a majority of its shard: it is to be used no more, if the receiver
    /// sees by the evidence that it does. The answer is empty.
    GiveUp {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// What the majority has.
        evidence: Evidence,
    },
    /// Verdicts on the shards that the receiver leads: a [`super::Comparisons`].
    Comparisons,
    /// What values have cost the receiver's network.
    ValueTraffic,
    /// Objects that the sender holds, and that an entry will refer to which is about to come. The answer is empty,
    /// and comes when they are durable.
    Prefetch {
        /// The objects.
        refs: Refs,
        /// How long the receiver may take, in milliseconds; a peer may ask for at most one minute.
        timeout_ms: u32,
    },
    /// What the receiver, which leads the metadata group, says of where replicas are and go: a
    /// [`super::PlacementReport`].
    Placement(PlacementQuestion),
    /// How much disk the receiver has, and what its replicas take: a [`super::Capacity`].
    Capacity,
    /// How much work the shards are that the receiver leads: a [`super::NodeLoad`].
    Load,
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

/// A command or query for a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRequest {
    /// Command or query.
    pub kind: RequestKind,
    /// The shard.
    pub shard: ShardId,
    /// The range epoch by which the sender routed; `None` skips the check.
    pub range_epoch: Option<u64>,
    /// Hybrid time that a command must follow; zero for none, and for a query.
    pub after: Timestamp,
    /// The command or query, in the state machine's format.
    pub payload: Bytes,
    /// What a command refers to, all of which the sender holds until the answer.
    pub refs: Refs,
    /// How long the receiver may take, in milliseconds; a peer may ask for at most one minute.
    pub timeout_ms: u32,
}

impl ShardRequest {
    /// What a command of this sender refers to. A peer can name no other node as the one that holds it.
    #[must_use]
    pub fn command_refs(&self, from: NodeId) -> CommandRefs {
        if self.refs.is_empty() { CommandRefs::default() } else { CommandRefs::new(self.refs.clone(), from) }
    }
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
            Self::Shard(ShardRequest { kind, shard, range_epoch, after, payload, refs, timeout_ms }) => {
                let range_epoch_plus_one = range_epoch.map_or(0, |epoch| epoch + 1);
                let (shard, deadline_ms) = (shard.0, timeout_ms);
                match kind {
                    RequestKind::Propose => {
                        let (command, after) = (payload, after.0);
                        let refs = refs_to_wire(&refs);
                        Kind::Propose(peer::Propose { shard, range_epoch_plus_one, command, deadline_ms, after, refs })
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
            Self::CertifyNode { csr, valid_s } => Kind::CertifyNode(peer::CertifyNode { csr, valid_s }),
            Self::Operations => Kind::ReadOperations(peer::ReadOperations {}),
            Self::Scrub { start } => Kind::Scrub(peer::Scrub { start }),
            Self::Fingerprints { shard, replica } => {
                Kind::ReadFingerprints(peer::ReadFingerprints { shard: shard.0, replica: replica.0 })
            }
            Self::GiveUp { shard, replica, evidence } => {
                let (kind, index, digest) = evidence.to_wire();
                Kind::GiveUp(peer::GiveUp { shard: shard.0, replica: replica.0, kind, index, digest })
            }
            Self::Comparisons => Kind::ReadComparisons(peer::ReadComparisons {}),
            Self::ValueTraffic => Kind::ReadValueTraffic(peer::ReadValueTraffic {}),
            Self::Prefetch { refs, timeout_ms } => {
                Kind::Prefetch(peer::Prefetch { refs: refs_to_wire(&refs), deadline_ms: timeout_ms })
            }
            Self::Capacity => Kind::ReadCapacity(peer::ReadCapacity {}),
            Self::Load => Kind::ReadLoad(peer::ReadLoad {}),
            Self::Placement(question) => Kind::AskPlacement(question.to_wire()),
            Self::RotateAuthority { timeout_ms } => {
                Kind::RotateAuthority(peer::RotateAuthority { deadline_ms: timeout_ms })
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
            Kind::Propose(propose) => Self::Shard(ShardRequest {
                kind: RequestKind::Propose,
                shard: ShardId(propose.shard),
                range_epoch: propose.range_epoch_plus_one.checked_sub(1),
                after: Timestamp(propose.after),
                payload: propose.command,
                refs: refs_from_wire(propose.refs).ok_or(MalformedRequest)?,
                timeout_ms: propose.deadline_ms.min(TIMEOUT_MS_MAX),
            }),
            Kind::Query(query) => Self::Shard(ShardRequest {
                kind: RequestKind::Query,
                shard: ShardId(query.shard),
                range_epoch: query.range_epoch_plus_one.checked_sub(1),
                after: Timestamp::ZERO,
                payload: query.query,
                refs: Refs::NONE,
                timeout_ms: query.deadline_ms.min(TIMEOUT_MS_MAX),
            }),
            Kind::Feed(feed) => Self::Feed { version: feed.version, wait_ms: feed.wait_ms },
            Kind::Authority(authority) => Self::Authority(authority),
            Kind::CertifyClientPorts(certify) => {
                Self::CertifyClientPorts { csr: certify.csr, hosts: certify.hosts, valid_s: certify.valid_s }
            }
            Kind::CertifyNode(certify) => Self::CertifyNode { csr: certify.csr, valid_s: certify.valid_s },
            Kind::ReadOperations(peer::ReadOperations {}) => Self::Operations,
            Kind::Scrub(peer::Scrub { start }) => Self::Scrub { start },
            Kind::ReadFingerprints(read) => {
                Self::Fingerprints { shard: ShardId(read.shard), replica: ReplicaId(read.replica) }
            }
            Kind::GiveUp(order) => Self::GiveUp {
                shard: ShardId(order.shard),
                replica: ReplicaId(order.replica),
                evidence: Evidence::from_wire(order.kind, order.index, &order.digest).ok_or(MalformedRequest)?,
            },
            Kind::ReadComparisons(peer::ReadComparisons {}) => Self::Comparisons,
            Kind::ReadValueTraffic(peer::ReadValueTraffic {}) => Self::ValueTraffic,
            Kind::Prefetch(prefetch) => Self::Prefetch {
                refs: refs_from_wire(prefetch.refs).ok_or(MalformedRequest)?,
                timeout_ms: prefetch.deadline_ms.min(TIMEOUT_MS_MAX),
            },
            Kind::ReadCapacity(peer::ReadCapacity {}) => Self::Capacity,
            Kind::ReadLoad(peer::ReadLoad {}) => Self::Load,
            Kind::AskPlacement(ask) => Self::Placement(PlacementQuestion::from_wire(&ask).ok_or(MalformedRequest)?),
            Kind::RotateAuthority(rotate) => {
                Self::RotateAuthority { timeout_ms: rotate.deadline_ms.min(TIMEOUT_MS_MAX) }
            }
        })
    }
}

fn refs_to_wire(refs: &Refs) -> Bytes {
    if refs.is_empty() {
        return Bytes::new();
    }
    let mut bytes = Vec::with_capacity(refs.encoded_bytes());
    refs.encode(&mut bytes, ByteOrder::Big);
    bytes.into()
}

/// The references, at most [`Refs::MAX`], of a request; `None` if they do not parse.
fn refs_from_wire(mut bytes: Bytes) -> Option<Refs> {
    if bytes.is_empty() {
        return Some(Refs::NONE);
    }
    Refs::decode(&mut bytes, ByteOrder::Big).ok().filter(|_| bytes.is_empty())
}

/// Encodes an answer.
#[must_use]
pub fn encode_answer(answer: Answer) -> Bytes {
    let (kind, clock) = match answer {
        Ok(answered) => (peer::response::Kind::Value(answered.payload), answered.clock.0),
        Err(error) => (peer::response::Kind::Failure(failure_to_wire(&error)), 0),
    };
    encode(&peer::Response { kind: Some(kind), clock })
}

fn failure_to_wire(error: &RequestError) -> peer::Failure {
    let mut failure = peer::Failure::default();
    failure.code = match error {
        RequestError::UnknownShard => 0,
        RequestError::NotLeader { leader } => {
            failure.leader = leader.map_or(0, |node| node.0);
            1
        }
        RequestError::Busy => 2,
        RequestError::StaleEpoch { now } => {
            failure.now = now.iter().take(DESCRIPTORS_MAX).map(|now| encode(&descriptor_to_wire(now))).collect();
            3
        }
        RequestError::Deadline => 4,
        RequestError::Unknown => 5,
        RequestError::Stopped => 6,
        RequestError::VersionNotInForce => 7,
        RequestError::AfterAhead => 8,
        RequestError::Damaged => 9,
        RequestError::SnapshotExpired => 10,
        RequestError::ObjectsMissing => 11,
    };
    failure
}

fn failure_from_wire(failure: peer::Failure) -> RequestError {
    match failure.code {
        0 => RequestError::UnknownShard,
        1 => RequestError::NotLeader { leader: (failure.leader != 0).then_some(NodeId(failure.leader)) },
        2 => RequestError::Busy,
        3 => {
            let descriptors = failure.now.into_iter().take(DESCRIPTORS_MAX).filter_map(|bytes| decode(bytes).ok());
            RequestError::StaleEpoch { now: descriptors.map(descriptor_from_wire).collect() }
        }
        4 => RequestError::Deadline,
        6 => RequestError::Stopped,
        7 => RequestError::VersionNotInForce,
        8 => RequestError::AfterAhead,
        9 => RequestError::Damaged,
        10 => RequestError::SnapshotExpired,
        11 => RequestError::ObjectsMissing,
        // Errors of later versions may mean anything.
        _ => RequestError::Unknown,
    }
}

/// Decodes a peer's answer. One that does not parse is [`RequestError::Unknown`]: the request may have been
/// executed.
pub fn decode_answer(response: Bytes) -> Answer {
    let Ok(response) = decode::<peer::Response>(response) else { return Err(RequestError::Unknown) };
    match response.kind {
        Some(peer::response::Kind::Value(payload)) => Ok(Answered { payload, clock: Timestamp(response.clock) }),
        Some(peer::response::Kind::Failure(failure)) => Err(failure_from_wire(failure)),
        None => Err(RequestError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, extreme_u64, mutated};
    use flotilla_types::{
        Epoch, KeyRange, ObjectId, ObjectRef, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor,
    };
    use proptest::{collection::vec, option, prelude::*, sample::select};

    use super::*;

    fn stale(shards: impl Iterator<Item = u64>) -> RequestError {
        let descriptor = |shard| ShardDescriptor {
            shard: ShardId(shard),
            range: KeyRange::of_prefix(b"k"),
            epoch: Epoch { range: shard, config: 2 },
            replicas: vec![ReplicaDescriptor { replica: ReplicaId(shard), node: NodeId(3), role: ReplicaRole::Voter }],
        };
        RequestError::StaleEpoch { now: shards.map(descriptor).collect() }
    }

    fn errors() -> Vec<RequestError> {
        vec![
            RequestError::UnknownShard,
            RequestError::NotLeader { leader: None },
            RequestError::NotLeader { leader: Some(NodeId(3)) },
            RequestError::Busy,
            stale(std::iter::empty()),
            stale(1..4),
            RequestError::Deadline,
            RequestError::Unknown,
            RequestError::Stopped,
            RequestError::VersionNotInForce,
            RequestError::AfterAhead,
            RequestError::Damaged,
            RequestError::SnapshotExpired,
            RequestError::ObjectsMissing,
        ]
    }

    #[test]
    fn every_answer_survives_the_wire() {
        for error in errors() {
            assert_eq!(decode_answer(encode_answer(Err(error.clone()))), Err(error));
        }
        let answered = Answered { payload: Bytes::from_static(b"value"), clock: Timestamp(7) };
        assert_eq!(decode_answer(encode_answer(Ok(answered.clone()))), Ok(answered));
    }

    #[test]
    fn descriptors_of_a_refusal_are_bounded_on_both_sides() {
        let bounded = stale(0..DESCRIPTORS_MAX as u64);
        let RequestError::StaleEpoch { now } = stale(0..9_999) else { unreachable!() };
        let flood =
            peer::Failure { code: 3, leader: 0, now: now.iter().map(|now| encode(&descriptor_to_wire(now))).collect() };
        assert_eq!(failure_from_wire(flood), bounded);
        assert_eq!(failure_from_wire(failure_to_wire(&RequestError::StaleEpoch { now })), bounded);
    }

    fn refs(count: u64) -> Refs {
        let reference = |n: u64| ObjectRef { id: ObjectId::of(&n.to_le_bytes()), height: (n % 3) as u8, bytes: n };
        (0..count).map(reference).collect()
    }

    #[test]
    fn what_a_command_refers_to_is_held_by_its_sender_and_by_nobody_else() {
        let request = |refs| ShardRequest {
            kind: RequestKind::Propose,
            shard: ShardId(4),
            range_epoch: None,
            after: Timestamp::ZERO,
            payload: Bytes::new(),
            refs,
            timeout_ms: 7,
        };
        assert_eq!(request(refs(2)).command_refs(NodeId(3)), CommandRefs::new(refs(2), NodeId(3)));
        assert_eq!(request(Refs::NONE).command_refs(NodeId(3)), CommandRefs::default());
    }

    #[test]
    fn references_that_do_not_parse_are_a_malformed_request() {
        let mut valid = Vec::new();
        refs(3).encode(&mut valid, ByteOrder::Big);
        let none = [0, 0];
        let too_many = (Refs::MAX as u16 + 1).to_be_bytes();
        let flood = [&too_many[..], &vec![0; (Refs::MAX + 1) * ObjectRef::ENCODED_BYTES]].concat();
        let followed = [&valid[..], b"x"].concat();
        let decode = |refs: &[u8]| {
            let propose = peer::Propose { refs: Bytes::copy_from_slice(refs), ..peer::Propose::default() };
            PeerRequest::decode(encode(&peer::Request { kind: Some(peer::request::Kind::Propose(propose)) }))
        };
        assert!(decode(&valid).is_ok() && decode(&[]).is_ok());
        for refs in [&none[..], &flood, &followed, &valid[..valid.len() - 1]] {
            assert!(decode(refs).is_err());
        }
    }

    #[test]
    fn every_request_survives_the_wire() {
        let shard = |kind, range_epoch, after| {
            PeerRequest::Shard(ShardRequest {
                kind,
                shard: ShardId(4),
                range_epoch,
                after: Timestamp(after),
                payload: Bytes::from_static(b"payload"),
                refs: if kind == RequestKind::Propose { refs(after) } else { Refs::NONE },
                timeout_ms: 7,
            })
        };
        let requests = [
            shard(RequestKind::Propose, None, 0),
            shard(RequestKind::Propose, None, Refs::MAX as u64),
            shard(RequestKind::Propose, None, 9),
            shard(RequestKind::Query, Some(0), 0),
            PeerRequest::Feed { version: 3, wait_ms: 9 },
            PeerRequest::Authority(Bytes::from_static(b"key")),
            PeerRequest::CertifyNode { csr: Bytes::from_static(b"csr"), valid_s: 9 },
            PeerRequest::RotateAuthority { timeout_ms: 5 },
            PeerRequest::Operations,
            PeerRequest::ValueTraffic,
            PeerRequest::Prefetch { refs: refs(3), timeout_ms: 8 },
            PeerRequest::Capacity,
            PeerRequest::Load,
            PeerRequest::Placement(PlacementQuestion::Explain(ShardId(4))),
            PeerRequest::Placement(PlacementQuestion::Preview),
            PeerRequest::Placement(PlacementQuestion::Rebalance),
            PeerRequest::Placement(PlacementQuestion::Journal { limit: 9 }),
            PeerRequest::Scrub { start: true },
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
        let long = PeerRequest::Shard(ShardRequest {
            kind: RequestKind::Query,
            shard: ShardId(1),
            range_epoch: None,
            after: Timestamp::ZERO,
            payload: Bytes::new(),
            refs: Refs::NONE,
            timeout_ms: u32::MAX,
        });
        let decoded = PeerRequest::decode(long.encode());
        assert!(matches!(decoded, Ok(PeerRequest::Shard(ShardRequest { timeout_ms: TIMEOUT_MS_MAX, .. }))));
        assert!(PeerRequest::decode(Bytes::new()).is_err());
        assert!(PeerRequest::decode(Bytes::from_static(b"\xff\xff")).is_err());
        assert_eq!(decode_answer(Bytes::from_static(b"\xff\xff")), Err(RequestError::Unknown));
    }

    /// Encoded immediately, because requests have no `Debug`.
    fn requests() -> impl Strategy<Value = Bytes> {
        let payload = || vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let range_epoch = option::of(0..u64::MAX);
        let shard = (any::<bool>(), extreme_u64(), range_epoch, extreme_u64(), payload(), 0..=TIMEOUT_MS_MAX).prop_map(
            |(propose, id, range_epoch, after, payload, timeout_ms)| {
                let kind = if propose { RequestKind::Propose } else { RequestKind::Query };
                let after = if propose { Timestamp(after) } else { Timestamp::ZERO };
                let shard = ShardId(id);
                let refs = if propose { refs(id % 4) } else { Refs::NONE };
                PeerRequest::Shard(ShardRequest { kind, shard, range_epoch, after, payload, refs, timeout_ms }).encode()
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
            if let Ok(PeerRequest::Shard(ShardRequest { timeout_ms, refs, .. })) =
                Proportion::DEFAULT.of(bytes.len(), || PeerRequest::decode(bytes))
            {
                assert!(timeout_ms <= TIMEOUT_MS_MAX && refs.len() <= Refs::MAX);
            }
        });
    }

    #[test]
    fn hostile_answers_decode_to_an_unknown_outcome_at_worst() {
        let valid = prop_oneof![
            (vec(any::<u8>(), 0..40), extreme_u64()).prop_map(|(value, clock)| {
                encode_answer(Ok(Answered { payload: value.into(), clock: Timestamp(clock) }))
            }),
            (select(errors()), extreme_u64()).prop_map(|(error, node)| match error {
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
