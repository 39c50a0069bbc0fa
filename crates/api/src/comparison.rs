//! Compares the digests of several nodes and gives a verdict on each shard.
//!
//! Invariants: replicas are compared only at the same applied entry; a shard is `equal` only when every one
//! of its voters was read at one entry; what could not be compared is `inconclusive`, never `equal`.
//! Deliberately absent: asking the nodes, and deciding how long to try.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::{Epoch, NodeId, ReplicaId, ReplicaRole, ShardId};

use crate::{
    ClusterStatus, DigestList, DigestReport, LocalRole, RecordsDigest, ReplicaDigest, ReplicaInfo, ShardInfo,
    ShardVerdict, Verdict,
};

/// Applied entries per shard at which digests are kept, the newest ones.
const ENTRIES_MAX: usize = 64;
/// Reasons in a report, and shards named in one of them.
const SHOWN_MAX: usize = 10;

/// Digests collected over one or more rounds of asking the nodes.
///
/// A replica that is read in one round and another that is read later are compared if both had applied the
/// same entries, so that further rounds can only add certainty.
#[derive(Debug, Default)]
pub struct DigestComparison {
    /// Nodes that answered when they were last asked.
    nodes: BTreeMap<NodeId, NodeView>,
    /// Endpoints that did not answer when they were last asked, and why.
    silent: BTreeMap<String, String>,
    /// What was read of each shard.
    seen: BTreeMap<ShardId, SeenAt>,
    /// The first difference of each shard, with its entry. It never goes away.
    differences: BTreeMap<ShardId, (u64, String)>,
}

/// Digests of a shard by applied entry and replica, each with the node that has it.
type SeenAt = BTreeMap<u64, BTreeMap<ReplicaId, (NodeId, String)>>;

/// What one node reported last.
#[derive(Debug)]
struct NodeView {
    endpoint: String,
    shards: BTreeMap<ShardId, (Epoch, Vec<ReplicaInfo>)>,
    /// Its last digest, or reason, of each of its replicas.
    digests: BTreeMap<(ShardId, ReplicaId), ReplicaDigest>,
}

impl DigestComparison {
    /// Adds the answers of a node: its status, and the digests of all or some of its replicas, read after the
    /// status.
    pub fn add(&mut self, endpoint: &str, status: &ClusterStatus, digests: DigestList) {
        self.silent.remove(endpoint);
        let shards = status.shards.iter().map(|shard| (shard.id, (shard.epoch, shard.replicas.clone()))).collect();
        let local: BTreeMap<ShardId, &ShardInfo> = status.shards.iter().map(|shard| (shard.id, shard)).collect();
        let mut kept = self.nodes.remove(&digests.node).map(|view| view.digests).unwrap_or_default();
        // An answer has all replicas of each shard in it.
        let answered: BTreeSet<ShardId> = digests.replicas.iter().map(|replica| replica.shard).collect();
        kept.retain(|(shard, _), _| local.contains_key(shard) && !answered.contains(shard));
        for mut replica in digests.replicas {
            let shard = local.get(&replica.shard);
            let is_inactive = shard.and_then(|shard| shard.local.as_ref()).is_some_and(|local| {
                local.replica == replica.replica && matches!(local.role, LocalRole::Quarantined | LocalRole::Stopped)
            });
            if is_inactive {
                replica.held = None;
                replica.reason = Some("the replica is quarantined or stopped".to_owned());
            }
            let is_member = shard.is_some_and(|shard| shard.replicas.iter().any(|it| it.replica == replica.replica));
            if let (true, Some(held)) = (is_member, &replica.held) {
                self.see(replica.shard, digests.node, replica.replica, held);
            }
            kept.insert((replica.shard, replica.replica), replica);
        }
        self.nodes.insert(digests.node, NodeView { endpoint: endpoint.to_owned(), shards, digests: kept });
    }

    /// Records that a node did not answer.
    pub fn add_silent(&mut self, endpoint: &str, error: impl Into<String>) {
        self.silent.insert(endpoint.to_owned(), error.into());
        self.nodes.retain(|_, view| view.endpoint != endpoint);
    }

    /// The shards without a verdict that another round could give one: all nodes of their voters answer.
    #[must_use]
    pub fn undecided(&self) -> Vec<ShardId> {
        let shards = self.shards();
        let may_be_decided = |(shard, replicas): (&ShardId, &&[ReplicaInfo])| {
            let voters: Vec<_> = voters(replicas).collect();
            let can_be_read = voters.len() > 1 && voters.iter().all(|voter| self.nodes.contains_key(&voter.node));
            (can_be_read && self.judge(*shard, replicas).verdict == Verdict::Inconclusive).then_some(*shard)
        };
        shards.iter().filter_map(may_be_decided).collect()
    }

    /// The verdicts.
    #[must_use]
    pub fn report(&self) -> DigestReport {
        let known = self.shards();
        let mut shards: Vec<_> = known.iter().map(|(shard, replicas)| self.judge(*shard, replicas)).collect();
        // A shard that differed and was dropped since is still worth knowing.
        for (shard, (applied, reason)) in &self.differences {
            if !known.contains_key(shard) {
                shards.push(different(*shard, *applied, reason));
            }
        }
        shards.sort_by_key(|shard| shard.shard);
        let mut verdict = shards.iter().map(|shard| shard.verdict).max().unwrap_or_default();
        if !self.silent.is_empty() {
            verdict = verdict.max(Verdict::Inconclusive);
        }
        let nodes = self.nodes.iter().map(|(&node, view)| {
            let replicas = view.digests.values().cloned().collect();
            DigestList { node, replicas }
        });
        DigestReport { verdict, reasons: self.reasons(&shards), nodes: nodes.collect(), shards }
    }

    fn see(&mut self, shard: ShardId, node: NodeId, replica: ReplicaId, held: &RecordsDigest) {
        let entries = self.seen.entry(shard).or_default();
        let replicas = entries.entry(held.applied).or_default();
        // The replica itself may have been seen here before, with another digest.
        if let Some((other, _)) = replicas.values().find(|(_, digest)| *digest != held.digest) {
            let reason = format!("{other} and {node} differ after entry {}", held.applied);
            self.differences.entry(shard).or_insert((held.applied, reason));
        }
        replicas.insert(replica, (node, held.digest.clone()));
        while entries.len() > ENTRIES_MAX {
            entries.pop_first();
        }
    }

    /// The replicas of each shard, by the newest epoch that a node reported.
    fn shards(&self) -> BTreeMap<ShardId, &[ReplicaInfo]> {
        let mut newest: BTreeMap<ShardId, &(Epoch, Vec<ReplicaInfo>)> = BTreeMap::new();
        for (shard, found) in self.nodes.values().flat_map(|view| &view.shards) {
            let best = newest.entry(*shard).or_insert(found);
            if found.0 > best.0 {
                *best = found;
            }
        }
        newest.into_iter().map(|(shard, (_, replicas))| (shard, replicas.as_slice())).collect()
    }

    fn judge(&self, shard: ShardId, replicas: &[ReplicaInfo]) -> ShardVerdict {
        if let Some((applied, reason)) = self.differences.get(&shard) {
            return different(shard, *applied, reason);
        }
        let inconclusive =
            |reason| ShardVerdict { shard, verdict: Verdict::Inconclusive, applied: None, reason: Some(reason) };
        if voters(replicas).count() < 2 {
            return inconclusive("it has one replica, which cannot be compared with another".to_owned());
        }
        let entries = self.seen.get(&shard);
        let has_all = |seen: &BTreeMap<_, _>| voters(replicas).all(|voter| seen.contains_key(&voter.replica));
        let compared = entries.and_then(|entries| entries.iter().rev().find(|(_, seen)| has_all(seen)));
        match compared {
            Some((applied, _)) => {
                ShardVerdict { shard, verdict: Verdict::Equal, applied: Some(*applied), reason: None }
            }
            None => inconclusive(self.missing(shard, replicas)),
        }
    }

    /// Why the voters of a shard could not be compared.
    fn missing(&self, shard: ShardId, replicas: &[ReplicaInfo]) -> String {
        let (mut unread, mut read) = (Vec::new(), Vec::new());
        for voter in voters(replicas) {
            let Some(view) = self.nodes.get(&voter.node) else {
                unread.push(format!("{} was not asked or did not answer", voter.node));
                continue;
            };
            match view.digests.get(&(shard, voter.replica)) {
                None => unread.push(format!("{} has no replica {}", voter.node, voter.replica)),
                Some(ReplicaDigest { held: Some(held), .. }) => {
                    read.push(format!("{} at {}", voter.node, held.applied))
                }
                Some(ReplicaDigest { reason, .. }) => {
                    let reason = reason.as_deref().unwrap_or("no digest");
                    unread.push(format!("{}: {reason}", voter.node));
                }
            }
        }
        if unread.is_empty() { format!("read at different entries: {}", read.join(", ")) } else { unread.join("; ") }
    }

    fn reasons(&self, shards: &[ShardVerdict]) -> Vec<String> {
        let mut reasons = Vec::new();
        for verdict in [Verdict::Different, Verdict::Inconclusive] {
            let found: Vec<_> = shards.iter().filter(|shard| shard.verdict == verdict).collect();
            for shard in found.iter().take(SHOWN_MAX) {
                reasons.push(format!("{}: {}", shard.shard, shard.reason.as_deref().unwrap_or_default()));
            }
            if found.len() > SHOWN_MAX {
                reasons.push(format!("and {} more shards", found.len() - SHOWN_MAX));
            }
        }
        for (endpoint, error) in self.silent.iter().take(SHOWN_MAX) {
            reasons.push(format!("{endpoint} did not answer: {error}"));
        }
        if shards.is_empty() {
            reasons.push("no node reported a shard".to_owned());
        }
        reasons
    }
}

fn voters(replicas: &[ReplicaInfo]) -> impl Iterator<Item = &ReplicaInfo> {
    replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter)
}

fn different(shard: ShardId, applied: u64, reason: &str) -> ShardVerdict {
    ShardVerdict { shard, verdict: Verdict::Different, applied: Some(applied), reason: Some(reason.to_owned()) }
}

#[cfg(test)]
mod tests;
