//! The rules by which commands change the state.
//!
//! Invariants: a command checks everything before it changes anything, so that a refused command has no
//! effect; a batch works on a copy for the same reason, which costs a few pointers. Nothing here reads a clock:
//! time is the entry's timestamp.

mod authority;
mod keys;
#[cfg(test)]
mod merge_tests;
mod merges;
mod nodes;
#[cfg(test)]
mod operation_tests;
mod operations;
mod shards;
#[cfg(test)]
mod split_tests;
mod splits;
#[cfg(test)]
mod tests;
mod versions;

use std::ops::RangeInclusive;

use bytes::Bytes;
use flotilla_placement::Collection;
use flotilla_types::{LogIndex, NodeId, RecordKey, Timestamp};

use crate::{CodecError, Limit, MetaCommand, MetaRefusal, MetaReply, MetaState, NodeRole, Setting};

/// Limit on nodes that are neither removed nor lost.
pub const NODES_MAX: usize = 1_000;
/// Limit on records of removed and lost nodes, which are kept to be shown and so that their keys are refused
/// by name. Above it the oldest ones that no shard names are deleted; their ids stay refused
/// ([`MetaState::is_gone`]).
pub const NODES_GONE_MAX: usize = 1_000;
/// Limit on join tokens that have not expired.
pub const TOKENS_MAX: usize = 1_000;
/// Limit on uses of one join token.
pub const TOKEN_USES_MAX: u32 = 1_000_000;
/// Limit on client keys that have not expired.
pub const KEYS_MAX: usize = 1_000;
/// Limit on the collections that one client key names.
pub const KEY_COLLECTIONS_MAX: usize = 64;
/// Limit on the bytes of an authority's certificate.
pub const AUTHORITY_BYTES_MAX: usize = 4_096;
/// Limit on collections.
pub const COLLECTIONS_MAX: usize = 1_000;
/// The least length, in bytes, up to which a collection keeps values in its records: below it, references outweigh
/// what they name.
pub const OBJECTS_FROM_MIN: u32 = Collection::OBJECTS_FROM_MIN;
/// The greatest such length: what a record may have of a value.
pub const OBJECTS_FROM_MAX: u32 = 4 << 20;
/// Bytes of a value that every chunking must be able to cut.
pub const VALUE_BYTES_CUT_MIN: u64 = 64 << 20;
/// Limit on buckets of a collection.
pub const BUCKETS_MAX: u16 = 1_024;
/// Limit on shards, with those that are to be split off.
pub const SHARDS_MAX: usize = 20_000;
/// What a collection's shards may grow to, in bytes, before they are split.
pub const SPLIT_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 40;
/// Limit on the bytes of the record key at which a shard is split: those of the longest key of a record.
pub const SPLIT_KEY_BYTES_MAX: usize = RecordKey::PREFIX_BYTES + 4_096;
/// Limit on replicas in one shard's intent: five and their replacements.
pub const INTENT_MAX: usize = 10;
/// Limit on commands of one batch.
pub const BATCH_COMMANDS_MAX: usize = 1_024;
/// Operations that have ended and are kept, so that their outcome can be asked for: the latest.
pub const OPERATIONS_ENDED_MAX: usize = 256;
/// Limit on the bytes of a node's or collection's name.
pub const NAME_BYTES_MAX: usize = 64;
/// Limit on the bytes of one address.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// Limit on labels of a locality, whose keys and values have at most [`NAME_BYTES_MAX`] bytes each.
pub const LABELS_MAX: usize = 16;

pub(crate) type ApplyResult = Result<MetaReply, MetaRefusal>;

/// Applies the commands of one entry to the state. The version becomes `index` only when the entry changed
/// something. Fails, leaving the state unchanged, only when a command has a newer format.
pub(crate) fn apply_entry(
    state: &mut MetaState,
    index: LogIndex,
    timestamp: Timestamp,
    commands: &[Bytes],
) -> Result<Vec<MetaReply>, CodecError> {
    let mut next = state.clone();
    let mut replies = Vec::with_capacity(commands.len());
    for (command, ordinal) in commands.iter().zip(0..) {
        let reply = match MetaCommand::decode(command) {
            Ok(command) => next.apply(timestamp.plus(ordinal), &command),
            Err(CodecError::Malformed) => MetaReply::Refused(MetaRefusal::Malformed),
            Err(newer @ CodecError::Version { .. }) => return Err(newer),
        };
        replies.push(reply);
    }
    if next != *state {
        next.header.version = index.0;
        *state = next;
    }
    Ok(replies)
}

impl MetaState {
    /// Applies one command at a hybrid time. Does not change the version.
    pub(crate) fn apply(&mut self, now: Timestamp, command: &MetaCommand) -> MetaReply {
        self.execute(now.millis(), command).unwrap_or_else(MetaReply::Refused)
    }

    fn execute(&mut self, now_ms: u64, command: &MetaCommand) -> ApplyResult {
        if let MetaCommand::Bootstrap { cluster, node } = command {
            return self.bootstrap(now_ms, *cluster, node);
        }
        if self.header.cluster.is_none() {
            return Err(MetaRefusal::NotBootstrapped);
        }
        match command {
            MetaCommand::Batch(commands) => self.batch(now_ms, commands),
            MetaCommand::Bootstrap { .. } => Err(MetaRefusal::Malformed),
            MetaCommand::CreateToken { id, hash, expires_at_ms, uses } => {
                self.create_token(now_ms, *id, *hash, *expires_at_ms, *uses)
            }
            MetaCommand::RevokeToken { id } => self.revoke_token(*id),
            MetaCommand::CreateKey { id, hash, role, collections, expires_at_ms } => {
                self.create_key(now_ms, *id, *hash, *role, collections, *expires_at_ms)
            }
            MetaCommand::RevokeKey { id } => self.revoke_key(now_ms, *id),
            MetaCommand::PrepareAuthority { current, next } => self.prepare_authority(current, next),
            MetaCommand::BeginRotation { certificate, holders } => self.begin_rotation(certificate, holders),
            MetaCommand::NodeCertified { node, serial } => self.node_certified(*node, *serial),
            MetaCommand::Join(request) => self.join(now_ms, request),
            MetaCommand::UpdateNode { node, incarnation, addresses, locality, versions } => {
                self.update_node(*node, *incarnation, addresses, locality, *versions)
            }
            MetaCommand::SetNodeState { node, state } => self.set_node_state(*node, *state),
            MetaCommand::RemoveNode { node } => self.set_node_state(*node, crate::NodeState::Removed),
            MetaCommand::CompleteLeave { node } => self.complete_leave(*node),
            MetaCommand::ReportStart { node, incarnation, build } => {
                self.report_start(now_ms, *node, *incarnation, build)
            }
            MetaCommand::SetNodeRole { node, incarnation, role } => self.set_node_role(*node, *incarnation, *role),
            MetaCommand::CreateCollection { name, sharding, buckets, replicas, initial_nodes, settings } => {
                self.create_collection(name, *sharding, *buckets, *replicas, initial_nodes, *settings)
            }
            MetaCommand::ChangeCollection { collection, settings } => self.change_collection(*collection, *settings),
            MetaCommand::DropCollection { collection } => self.drop_collection(now_ms, *collection),
            MetaCommand::AssignReplica { shard, node, intent_version } => {
                self.assign_replica(now_ms, *shard, *node, *intent_version)
            }
            MetaCommand::UnassignReplica { shard, replica } => self.unassign_replica(now_ms, *shard, *replica),
            MetaCommand::ReplaceReplica { shard, replica } => self.replace_replica(now_ms, *shard, *replica),
            MetaCommand::MoveReplica { shard, replica, to, intent_version, reason } => {
                self.move_replica(now_ms, *shard, *replica, *to, (*intent_version, *reason))
            }
            MetaCommand::ChangeOperation { operation, changes, change } => {
                self.change_operation(now_ms, *operation, *changes, *change)
            }
            MetaCommand::SplitShard { shard, at, epoch, reason } => {
                self.split_shard(now_ms, *shard, at, *epoch, *reason)
            }
            MetaCommand::MergeShards { left, right, reason } => self.merge_shards(now_ms, *left, *right, *reason),
            MetaCommand::ReportFrozen { left, right_epoch, replica } => {
                self.report_frozen(*left, *right_epoch, *replica)
            }
            MetaCommand::ReportShard { descriptor } => self.report_shard(now_ms, descriptor),
            MetaCommand::PutSetting { key, value } => self.put_setting(key, value),
            MetaCommand::SetClusterVersion { version, seen } => self.set_cluster_version(*version, seen),
        }
    }

    fn batch(&mut self, now_ms: u64, commands: &[MetaCommand]) -> ApplyResult {
        if commands.len() > BATCH_COMMANDS_MAX {
            return Err(MetaRefusal::LimitReached(Limit::Batch));
        }
        let mut trial = self.clone();
        let mut replies = Vec::with_capacity(commands.len());
        for (command, position) in commands.iter().zip(0..) {
            let applied = match command {
                MetaCommand::Batch(_) | MetaCommand::Bootstrap { .. } | MetaCommand::SetClusterVersion { .. } => {
                    Err(MetaRefusal::Malformed)
                }
                command => trial.execute(now_ms, command),
            };
            replies.push(applied.map_err(|refusal| MetaRefusal::InBatch { position, refusal: Box::new(refusal) })?);
        }
        *self = trial;
        Ok(MetaReply::Batch(replies))
    }

    fn put_setting(&mut self, key: &str, value: &str) -> ApplyResult {
        let setting: Setting = key.parse()?;
        self.check_in_force(setting.since())?;
        let value = setting.parse(value)?;
        self.settings.insert(setting.key().to_owned(), value.to_string().into());
        Ok(MetaReply::Done)
    }

    /// Checks that a node may take replicas.
    fn check_active(&self, node: NodeId) -> Result<(), MetaRefusal> {
        let record = self.nodes.get(&node).ok_or(MetaRefusal::UnknownNode(node))?;
        match (record.role, record.state) {
            (NodeRole::Gateway, _) => Err(MetaRefusal::NodeIsGateway(node)),
            (NodeRole::Storage { .. }, crate::NodeState::Active) => Ok(()),
            (NodeRole::Storage { .. }, _) => Err(MetaRefusal::NodeNotActive(node)),
        }
    }
}
