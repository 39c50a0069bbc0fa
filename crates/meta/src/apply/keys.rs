//! Rules for client keys.
//!
//! Invariants: only hashes of keys are stored; an id is never given a second key; a key that sees records of
//! some collections only has a role that sees records.

use std::{collections::BTreeSet, sync::Arc};

use flotilla_types::{ClusterVersion, Role};

use super::{ApplyResult, KEY_COLLECTIONS_MAX, KEYS_MAX, shards::is_collection_name};
use crate::{Field, KeyId, KeyRecord, Limit, MetaRefusal, MetaReply, MetaState};

impl MetaState {
    pub(super) fn create_key(
        &mut self,
        now_ms: u64,
        id: KeyId,
        hash: [u8; 32],
        role: Role,
        collections: &[String],
        expires_at_ms: u64,
    ) -> ApplyResult {
        self.check_in_force(ClusterVersion::CLIENT_KEYS)?;
        let names: BTreeSet<_> = collections.iter().cloned().collect();
        let collections = Vec::from_iter(names);
        if let Some(known) = self.keys.get(&id) {
            let same = known.hash == hash
                && known.role == role
                && known.collections == collections
                && known.expires_at_ms == expires_at_ms;
            return if same { Ok(MetaReply::Done) } else { Err(MetaRefusal::KeyExists) };
        }
        let sees_records = matches!(role, Role::Reader | Role::Writer);
        let valid = collections.len() <= KEY_COLLECTIONS_MAX
            && collections.iter().all(|name| is_collection_name(name))
            && (collections.is_empty() || sees_records);
        if !valid {
            return Err(MetaRefusal::Invalid(Field::KeyCollections));
        }
        let record = KeyRecord { id, hash, role, collections, expires_at_ms, created_at_ms: now_ms };
        if record.is_expired(now_ms) {
            return Err(MetaRefusal::Invalid(Field::KeyExpiry));
        }
        // Expired keys are kept until now, so that `key list` explains a refusal.
        let expired = |key: &KeyRecord| key.is_expired(now_ms);
        if self.keys().filter(|key| !expired(key)).count() >= KEYS_MAX {
            return Err(MetaRefusal::LimitReached(Limit::Keys));
        }
        self.keys.retain(|_, key| !expired(key));
        self.keys.insert(id, Arc::new(record));
        Ok(MetaReply::Done)
    }

    /// Refused for the last admin key: no other one could be created.
    pub(super) fn revoke_key(&mut self, now_ms: u64, id: KeyId) -> ApplyResult {
        self.check_in_force(ClusterVersion::CLIENT_KEYS)?;
        let is_admin = |key: &KeyRecord| key.role == Role::Admin && !key.is_expired(now_ms);
        let key = self.key(id).ok_or(MetaRefusal::UnknownKey)?;
        if is_admin(key) && !self.keys().any(|other| other.id != id && is_admin(other)) {
            return Err(MetaRefusal::LastAdminKey);
        }
        self.keys.remove(&id);
        Ok(MetaReply::Done)
    }
}
