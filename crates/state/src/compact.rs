//! Compaction: merges runs of a checkpoint with each other, or folds all of them into the base.
//!
//! Runs are merged in tiers by size (universal compaction): when [`TIER_RUNS`] runs are of one tier, they and
//! the newer ones become one run of the next, so that a record is rewritten about once per tier. When all runs
//! together outgrow a share of the base, they and the base become a new base, which holds no deletions.
//!
//! A compaction works beside flushes. It takes tables that exist and writes the table that replaces them; the
//! next build puts it into its checkpoint. Meanwhile flushes add runs behind those that it merges, so that
//! the replacement stands at the same place. Everything streams: one piece of each source is in memory.

use std::{
    ops::Range,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use flotilla_failpoints::{Place, reached};
use flotilla_objects::ObjectStore;
use flotilla_storage::EngineError;
use flotilla_types::{Checkpoint, ObjectId, ReplicaId};

use crate::{
    Options,
    merge::{Merge, Record, Source},
    sorted::{Cut, Pinned, Written, pieces, run_groups, total_bytes, write_pieces},
};

/// Adjacent runs of one tier that are merged.
const TIER_RUNS: usize = 4;
/// Records between two pauses.
const PACE_RECORDS: usize = 4_096;
/// A pause is at most this long.
const PACE_PAUSE_MAX: Duration = Duration::from_millis(100);

/// What a compaction merges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// These runs, by their place among the runs, oldest first.
    Runs(Range<usize>),
    /// The base and so many of the oldest runs.
    Fold(usize),
}

/// The tables that a compaction replaces, and the table that replaces them. Its objects are stored, and pinned
/// until it is part of an installed checkpoint or dropped.
#[derive(Debug)]
pub(crate) struct Compacted {
    /// The base before, if it is replaced.
    base: Option<Vec<ObjectId>>,
    /// The pieces of the runs that are replaced.
    runs: Vec<ObjectId>,
    pub(crate) table: Vec<ObjectId>,
    pub(crate) written: Written,
    _pinned: Pinned,
}

/// What is due for a checkpoint with a base and runs of these sizes, oldest first.
pub(crate) fn plan(options: &Options, base_bytes: u64, runs_bytes: &[u64]) -> Option<Plan> {
    let base_share = base_bytes / 100 * options.fold_percent;
    if runs_bytes.iter().sum::<u64>() > options.fold_bytes_min.max(base_share) {
        return Some(Plan::Fold(runs_bytes.len()));
    }
    let (mut largest, mut of_largest) = (0, 0);
    for (from, bytes) in runs_bytes.iter().enumerate().rev() {
        let tier = tier(*bytes, options);
        if tier > largest {
            if of_largest >= TIER_RUNS {
                return Some(Plan::Runs(from + 1..runs_bytes.len()));
            }
            (largest, of_largest) = (tier, 0);
        }
        of_largest += usize::from(tier == largest);
    }
    (of_largest >= TIER_RUNS).then_some(Plan::Runs(0..runs_bytes.len()))
}

/// Each tier is `TIER_RUNS` times as large as the one before.
fn tier(bytes: u64, options: &Options) -> u32 {
    (bytes / options.tier_bytes_min.max(1)).checked_ilog(TIER_RUNS as u64).map_or(0, |tier| tier + 1)
}

/// What is due for a checkpoint with these runs.
pub(crate) fn plan_for(
    objects: &ObjectStore,
    options: &Options,
    checkpoint: &Checkpoint,
    runs: &[Vec<ObjectId>],
) -> Option<Plan> {
    let runs_bytes: Vec<_> = runs.iter().map(|run| total_bytes(objects, run.iter().copied())).collect();
    plan(options, total_bytes(objects, checkpoint.base.iter().copied()), &runs_bytes)
}

/// Does what is due for a checkpoint. Ends early without a result once `is_stopped`.
pub(crate) fn compact(
    objects: &Arc<ObjectStore>,
    options: &Options,
    replica: ReplicaId,
    checkpoint: &Checkpoint,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Option<Compacted>, EngineError> {
    let groups = run_groups(objects, &checkpoint.runs)?;
    let Some(plan) = plan_for(objects, options, checkpoint, &groups) else { return Ok(None) };
    let is_late = groups.len() > options.runs_max / 2;
    let (base, range) = match plan {
        Plan::Fold(count) => (Some(checkpoint.base.clone()), 0..count),
        Plan::Runs(range) => (None, range),
    };
    let groups = groups[range].to_vec();
    let runs = groups.concat();
    let mut pinned = Pinned::pin(objects, &runs)?;
    pinned.add(base.as_deref().unwrap_or_default())?;
    let mut paced = Paced { is_stopped, is_late, records: 0, since: Instant::now() };
    let written = if let Some(base) = &base {
        reached(Place::CheckpointBeforeFold);
        let live = Merge::new(sources(objects, replica, base, groups)).filter(is_live);
        write_pieces(&mut pinned, Cut::Content, options.piece_bytes, paced.pace(live))?
    } else {
        let records = Merge::new(run_sources(objects, replica, groups));
        write_pieces(&mut pinned, Cut::Size, options.piece_bytes, paced.pace(records))?
    };
    if is_stopped() {
        return Ok(None);
    }
    reached(Place::CheckpointFolded);
    let table = written.ids();
    Ok(Some(Compacted { base, runs, table, written, _pinned: pinned }))
}

impl Compacted {
    /// The base and the runs of a checkpoint with the tables replaced; `None` if it does not have them any
    /// more.
    pub(crate) fn apply(&self, checkpoint: &Checkpoint) -> Option<(Vec<ObjectId>, Vec<ObjectId>)> {
        let Checkpoint { base, runs, .. } = checkpoint;
        let at = match self.runs.first() {
            Some(first) => runs.iter().position(|id| id == first)?,
            None => 0,
        };
        let after = at + self.runs.len();
        if runs.get(at..after) != Some(&self.runs[..]) {
            return None;
        }
        match &self.base {
            Some(replaced) => (base == replaced && at == 0).then(|| (self.table.clone(), runs[after..].to_vec())),
            None => Some((base.clone(), [&runs[..at], &self.table, &runs[after..]].concat())),
        }
    }
}

/// Passes records on, slowly enough to leave the processor to others for half of the time, unless flushes are
/// quicker than that. Ends when stopped.
struct Paced<'a> {
    is_stopped: &'a dyn Fn() -> bool,
    is_late: bool,
    records: usize,
    since: Instant,
}

impl<'a> Paced<'a> {
    fn pace(
        &'a mut self,
        mut records: impl Iterator<Item = Result<Record, EngineError>> + 'a,
    ) -> impl Iterator<Item = Result<Record, EngineError>> + 'a {
        std::iter::from_fn(move || {
            self.records += 1;
            if self.records.is_multiple_of(PACE_RECORDS) {
                if (self.is_stopped)() {
                    return None;
                }
                if !self.is_late {
                    thread::sleep(self.since.elapsed().min(PACE_PAUSE_MAX));
                }
                self.since = Instant::now();
            }
            records.next()
        })
    }
}

/// The records of a checkpoint as merge sources: runs, newest first, then the base.
pub(crate) fn sources<'a>(
    objects: &'a ObjectStore,
    replica: ReplicaId,
    base: &[ObjectId],
    groups: Vec<Vec<ObjectId>>,
) -> Vec<Source<'a>> {
    let mut sources = run_sources(objects, replica, groups);
    sources.push(pieces(objects, replica, Cut::Content, base.to_vec()));
    sources
}

pub(crate) fn run_sources(objects: &ObjectStore, replica: ReplicaId, groups: Vec<Vec<ObjectId>>) -> Vec<Source<'_>> {
    groups.into_iter().rev().map(|group| pieces(objects, replica, Cut::Size, group)).collect()
}

pub(crate) fn is_live(record: &Result<Record, EngineError>) -> bool {
    !matches!(record, Ok((_, None)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn options() -> Options {
        Options { fold_bytes_min: 64 * MIB, tier_bytes_min: MIB, ..Options::default() }
    }

    #[test]
    fn runs_of_one_tier_are_merged_and_larger_ones_are_left_alone() {
        let plan =
            |base, runs: &[u64]| plan(&options(), base * MIB, &runs.iter().map(|run| run * MIB).collect::<Vec<_>>());
        assert_eq!(plan(1_000, &[1, 1, 1]), None);
        assert_eq!(plan(1_000, &[1, 1, 1, 1]), Some(Plan::Runs(0..4)));
        assert_eq!(plan(1_000, &[20, 5, 1, 1, 1, 1]), Some(Plan::Runs(2..6)));
        assert_eq!(plan(1_000, &[20, 5, 5, 5, 1, 1, 1]), None);
        assert_eq!(plan(1_000, &[20, 5, 5, 5, 4]), Some(Plan::Runs(1..5)));
        assert_eq!(plan(1_000, &[20, 5, 5, 5, 4, 1]), Some(Plan::Runs(1..6)), "smaller ones go along");
        assert_eq!(plan(1_000, &[600, 300, 90, 11]), Some(Plan::Fold(4)));
        assert_eq!(plan(0, &[60, 5]), Some(Plan::Fold(2)));
        assert_eq!(plan(0, &[]), None);
    }

    /// 1 MiB is flushed at a time over a base of 1 GiB.
    #[test]
    fn a_record_is_rewritten_a_logarithmic_number_of_times() {
        let options = options();
        let (mut base, mut runs, mut written, flushes) = (1_024 * MIB, Vec::new(), 0, 4_096);
        for _ in 0..flushes {
            runs.push(MIB);
            written += MIB;
            while let Some(plan) = plan(&options, base, &runs) {
                let merged: u64 = match plan {
                    Plan::Runs(range) => runs.drain(range).sum(),
                    Plan::Fold(count) => {
                        runs.drain(..count);
                        written += base;
                        base = 1_024 * MIB;
                        continue;
                    }
                };
                written += merged;
                runs.push(merged);
            }
            assert!(runs.len() <= 6 * TIER_RUNS, "{} runs", runs.len());
        }
        let amplification = written / (flushes * MIB);
        assert!((3..=8).contains(&amplification), "{amplification}");
    }
}
