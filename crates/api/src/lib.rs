//! JSON types of the HTTP interface, shared by gateway, client and command line.
//!
//! Plain data with serde: nothing here does I/O, validates a request as a whole or depends on an HTTP
//! library. The one computation is [`DigestComparison`], which every reader of digests must do alike.
//!
//! Replies may gain fields, so readers ignore unknown ones; requests refuse unknown fields, because a
//! mistyped condition must never be ignored. Ids of nodes, shards and replicas are texts such as `n4`, `s5`,
//! `r6`; other ids are numbers. Times end in `_ms` and are Unix milliseconds or durations, as documented.

mod authority;
mod batch;
mod cluster;
mod comparison;
mod consistency;
mod digests;
mod event;
mod hex_id;
mod keys;
mod kv;
mod limits;
mod load;
mod node_change;
mod objects;
mod operations;
mod operator;
mod placement;
mod problem;
mod scrub;
mod status;
mod text;

pub use authority::{AuthorityStatus, CertificateLife, NodeCertification};
pub use batch::{BatchCondition, BatchOperation, BatchReply, BatchRequest, BatchResult, BatchVerb, Outcome};
pub use cluster::{
    ChangeCollection, Check, Collection, CollectionList, CreateCollection, NodeList, Readiness, ShardList, Sharding,
    TokenReply, TokenRequest,
};
pub use comparison::DigestComparison;
pub use consistency::{ConsistencyReport, ShardConsistency};
pub use digests::{DigestList, DigestReport, RecordsDigest, ReplicaDigest, ShardVerdict, Verdict};
pub use event::{Event, EventList};
pub use hex_id::{InvalidKeyId, InvalidTokenId, InvalidUploadId, KeyId, TokenId, UploadId};
pub use keys::{KeyInfo, KeyList, KeyReply, KeyRequest};
pub use kv::{DeleteReply, PutReply, ScanItem, ScanPage};
pub use limits::{
    BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, DIGEST_SHARDS_MAX, KEY_BYTES_MAX, LARGE_VALUE_BYTES_MAX, SCAN_ITEMS_DEFAULT,
    SCAN_ITEMS_MAX, TIMEOUT_MS_DEFAULT, TIMEOUT_MS_MAX, VALUE_BYTES_MAX, header,
};
pub use load::{NodeLoad, SHARD_TOP_DEFAULT, SHARD_TOP_MAX, ShardLoad, ShardOrder, ShardTop, UnknownShardOrder};
pub use node_change::{NodeChange, NodeVerb, UnknownNodeVerb};
pub use objects::{
    FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FetchReply, FetchRequest, FetchedObject, FrameError, FrameKind, FrameReader,
    MissingReply, MissingRequest, NeedReply, NeedRequest, OBJECT_REFS_MAX, OBJECTS_FETCHED_MAX, ObjectName, ObjectNeed,
    PullReply, PullRequest, UPLOAD_BYTES_MAX, UPLOAD_OBJECTS_MAX, UploadReply, VALUE_REF_MEDIA_TYPE, put_frame,
};
pub use operations::{
    MergeShards, MoveShard, OperationInfo, OperationList, OperationProgress, OperationVerb, SplitShard,
    UnknownOperationVerb,
};
pub use operator::{NodeUpgrade, Setting, SettingList, SettingRequest, TokenInfo, TokenList, UpgradeStatus};
pub use placement::{
    Alternative, Blocker, DECISIONS_DEFAULT, DECISIONS_MAX, DecisionInfo, DecisionList, PlacementAction,
    RebalanceRequest, ReplicaExplanation, ReplicaVerdict, ShardExplanation,
};
pub use problem::{Problem, ProblemType};
pub use scrub::{DamagedReplica, NodeScrub, ScrubReport, ScrubState};
pub use status::{
    ClusterStatus, FollowerInfo, Health, LinkTraffic, Liveness, LocalReplica, LocalRole, MetadataRole, NodeInfo,
    NodeRole, NodeState, NodeTraffic, PeerInfo, PeerState, ReplicaInfo, ReplicationStats, ShardInfo, ValueTraffic,
    Versions,
};
pub use text::{Encoding, TextError};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
