//! Snapshots that this leader has offered to followers.
//!
//! An offer is a promise: the objects of its checkpoint stay here, and so does the log after it, until the
//! follower has installed it and has caught up with the newest checkpoint. Otherwise a transfer that takes
//! longer than the next checkpoints would end with objects that are gone, or with a log that begins too late,
//! and start over, again and again.
//!
//! An offer ends early when it has lasted for [`OFFER_MS_MAX`] or the log kept for it reaches
//! `offer_log_bytes_max`. The follower is then offered the newest checkpoint, and needs only what it did not
//! receive before. Offers end with leadership: another leader has other checkpoints.

use std::{collections::BTreeMap, ops::Bound};

use flotilla_consensus::{self as consensus, Follower, Group};
use flotilla_types::{Checkpoint, Holder, LogIndex, NodeId, ReplicaId};

use super::{Core, Effects, Hold, replica::Replica};
use crate::HostConfig;

/// Milliseconds that an offer lasts, at most.
const OFFER_MS_MAX: u64 = 600_000;
/// Milliseconds until an offer is sent again to a follower that has not begun to fetch its objects: the
/// message was lost, or the follower's node has not created the replica yet.
const RESEND_MS: u64 = 500;
/// The same for a follower that has fetched objects: it may have restarted, or be installing them. The list
/// of a large shard's objects takes megabytes.
const RESEND_FETCHED_MS: u64 = 5_000;

/// A snapshot offered to a follower.
#[derive(Debug)]
pub(super) struct Offer {
    /// The last entry that its checkpoint covers.
    index: LogIndex,
    since_ms: u64,
    sent_ms: u64,
    /// When the follower was last served objects of it.
    fetched_ms: Option<u64>,
    /// The follower has installed it, and needs the log after it.
    installed: bool,
}

/// What becomes of an offer at a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Stands,
    SendAgain,
    /// The follower has caught up, or is no follower any more.
    Done,
    /// It is of no use any more, or holds too much.
    Expired,
}

impl Offer {
    /// The last entry that the follower does not need.
    fn kept_from(&self, matched: LogIndex) -> LogIndex {
        if self.installed { matched } else { self.index }
    }

    fn judge<T>(
        &self,
        now_ms: u64,
        group: &Group,
        replica: &Replica<T>,
        follower: &Follower,
        config: &HostConfig,
    ) -> Verdict {
        let kept_from = self.kept_from(follower.matched);
        // Without a newer checkpoint nothing else could be offered or truncated.
        let is_outdated = kept_from < replica.checkpoint;
        let kept_bytes = replica.entry_bytes.since(kept_from);
        let holds_too_much = kept_bytes >= config.offer_log_bytes_max() || now_ms >= self.since_ms + OFFER_MS_MAX;
        let resend_ms = match self.fetched_ms {
            Some(fetched_ms) => fetched_ms.max(self.sent_ms) + RESEND_FETCHED_MS,
            None => self.sent_ms + RESEND_MS,
        };
        if self.installed && !is_outdated {
            Verdict::Done
        } else if kept_from < group.truncated().0 || (holds_too_much && is_outdated) {
            Verdict::Expired
        } else if !self.installed && follower.in_snapshot && resend_ms <= now_ms {
            Verdict::SendAgain
        } else {
            Verdict::Stands
        }
    }
}

/// The last entry that no follower with an offer needs.
pub(super) fn kept_from_by_offers(offers: &BTreeMap<ReplicaId, Offer>, followers: &[Follower]) -> LogIndex {
    let kept_from = |(to, offer): (&ReplicaId, &Offer)| {
        let follower = followers.iter().find(|follower| follower.replica == *to);
        follower.map(|follower| offer.kept_from(follower.matched))
    };
    offers.iter().filter_map(kept_from).min().unwrap_or(LogIndex(u64::MAX))
}

impl<T> Core<T> {
    /// A snapshot message leaves: the first one of an offer, or the same again.
    pub(super) fn on_offer_sent(
        &mut self,
        from: ReplicaId,
        to: ReplicaId,
        checkpoint: &Checkpoint,
        effects: &mut Effects<T>,
    ) {
        let Some(replica) = self.replicas.get_mut(&from) else { return };
        let (index, now_ms) = (checkpoint.position.index, self.now_ms);
        match replica.offers.get_mut(&to) {
            Some(offer) if offer.index == index && !offer.installed => offer.sent_ms = now_ms,
            _ => {
                let offer = Offer { index, since_ms: now_ms, sent_ms: now_ms, fetched_ms: None, installed: false };
                replica.offers.insert(to, offer);
                effects
                    .holds
                    .push(Hold { holder: Holder::Offer { from, to }, objects: checkpoint.objects().collect() });
                self.schedule.offers.insert(from);
                self.offers_to.insert(to, from);
            }
        }
    }

    /// A follower's node was served objects of its snapshot; `complete` unless one of them is missing or
    /// damaged here.
    pub(super) fn on_objects_served(&mut self, node: NodeId, to: ReplicaId, complete: bool) {
        let Some(from) = self.offers_to.get(&to) else { return };
        if self.raft.group(*from).and_then(|group| group.node_of(to)) != Some(node) {
            return;
        }
        let offer = self.replicas.get_mut(from).and_then(|replica| replica.offers.get_mut(&to));
        let Some(offer) = offer.filter(|offer| !offer.installed) else { return };
        if complete {
            offer.fetched_ms = Some(self.now_ms);
        } else {
            // The next message offers the newest checkpoint, which may do without the object.
            (offer.sent_ms, offer.fetched_ms) = (self.now_ms, None);
            self.raft.step(consensus::Input::OfferEnded { replica: *from, to }, &mut self.raft_effects);
        }
    }

    /// A peer may have restarted: it gets the lists that it needs again soon.
    pub(super) fn forget_fetches(&mut self, node: NodeId) {
        for id in &self.schedule.offers {
            let (Some(replica), Some(group)) = (self.replicas.get_mut(id), self.raft.group(*id)) else { continue };
            let offers = replica.offers.iter_mut().filter(|(to, _)| group.node_of(**to) == Some(node));
            offers.for_each(|(_, offer)| offer.fetched_ms = None);
        }
    }

    /// Sends offers again, and ends those that are done or hold too much.
    pub(super) fn visit_offers(&mut self, effects: &mut Effects<T>) {
        self.schedule.visits += self.schedule.offers.len() as u64;
        let mut next = self.schedule.offers.first().copied();
        while let Some(id) = next {
            self.visit_offers_of(id, effects);
            next = self.schedule.offers.range((Bound::Excluded(id), Bound::Unbounded)).next().copied();
        }
    }

    fn visit_offers_of(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let (Some(group), Some(replica)) = (self.raft.group(id), self.replicas.get(&id)) else { return };
        let followers = group.status().followers;
        let offered: Vec<_> = replica.offers.keys().copied().collect();
        for to in offered {
            match followers.iter().find(|follower| follower.replica == to) {
                Some(follower) => self.visit_offer(id, follower, effects),
                None => self.end_offer(id, to, effects),
            }
        }
    }

    fn visit_offer(&mut self, id: ReplicaId, follower: &Follower, effects: &mut Effects<T>) {
        let to = follower.replica;
        let (Some(group), Some(replica)) = (self.raft.group(id), self.replicas.get_mut(&id)) else { return };
        let Some(offer) = replica.offers.get_mut(&to) else { return };
        let installs = !offer.installed && follower.matched >= offer.index;
        offer.installed |= installs;
        let Some(offer) = replica.offers.get(&to) else { return };
        let verdict = offer.judge(self.now_ms, group, replica, follower, &self.config);
        if installs {
            effects.holds.push(Hold::end(Holder::Offer { from: id, to }));
            self.raft.step(consensus::Input::OfferEnded { replica: id, to }, &mut self.raft_effects);
        }
        match verdict {
            Verdict::Stands => {}
            Verdict::SendAgain => self.send_snapshot_again(id, to),
            Verdict::Done => self.end_offer(id, to, effects),
            Verdict::Expired => {
                tracing::info!(replica = %id, %to, "what is kept for a follower that receives a snapshot is at its bound");
                self.end_offer(id, to, effects);
                self.send_snapshot_again(id, to);
            }
        }
    }

    /// Makes the group find out again what the follower needs.
    fn send_snapshot_again(&mut self, id: ReplicaId, to: ReplicaId) {
        let failed = consensus::Input::SnapshotSent { replica: id, to, delivered: false };
        self.raft.step(failed, &mut self.raft_effects);
    }

    fn end_offer(&mut self, id: ReplicaId, to: ReplicaId, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.offers.remove(&to).is_some_and(|offer| !offer.installed) {
            effects.holds.push(Hold::end(Holder::Offer { from: id, to }));
        }
        if replica.offers.is_empty() {
            self.schedule.offers.remove(&id);
        }
        if self.offers_to.get(&to) == Some(&id) {
            self.offers_to.remove(&to);
        }
        self.raft.step(consensus::Input::OfferEnded { replica: id, to }, &mut self.raft_effects);
    }

    /// Ends every offer of a replica that does not lead any more.
    pub(super) fn end_offers(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let to: Vec<_> =
            self.replicas.get(&id).into_iter().flat_map(|replica| replica.offers.keys().copied()).collect();
        for to in to {
            self.end_offer(id, to, effects);
        }
    }
}
