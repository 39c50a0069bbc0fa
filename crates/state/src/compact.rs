//! Compaction: merges runs of a checkpoint with each other, or folds all of them into the base.
//!
//! Runs are merged in tiers by size (universal compaction): when [`TIER_RUNS`] runs are of one tier, they and
//! the newer ones become one run of the next, so that a record is rewritten about once per tier. When all runs
//! together outgrow a share of the base, they and the base become a new base, which holds no deletions. From
//! [`LOGGED_FOLDS`](flotilla_types::ClusterVersion::LOGGED_FOLDS) on the log of the shard orders that (see
//! [`fold`](crate::fold)).
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
use flotilla_storage::{EngineError, KeyRanges};
use flotilla_types::{CheckpointFormat, Folding, LogIndex, ReplicaId};

use crate::{
    Options,
    clip::{clipped, hidden_bytes},
    merge::{Merge, Record},
    sorted::{Cut, write_table},
    table::{Table, sources, total_bytes},
};

/// Adjacent runs of one tier that are merged.
const TIER_RUNS: usize = 4;
/// What clips hide is folded away once it exceeds this share of what they show, in percent. After a split in the
/// middle that is so for both halves.
const HIDDEN_PERCENT: u64 = 50;
/// Records between two pauses.
const PACE_RECORDS: usize = 4_096;
/// A pause is at most this long.
const PACE_PAUSE_MAX: Duration = Duration::from_millis(100);

/// What a compaction merges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// These runs, by their place among the runs, oldest first.
    Runs(Range<usize>),
    /// Everything.
    Fold,
}

/// What a compaction has made. The table is `None` if no record is left.
#[derive(Debug)]
pub(crate) enum Compacted {
    /// A table that replaces others.
    Merged { replaced: Vec<Arc<Table>>, table: Option<Arc<Table>> },
    /// The base as of an entry, which replaces every table that has no later records. It has these keys only.
    Folded { index: LogIndex, base: Option<Arc<Table>>, keys: KeyRanges },
}

/// What is due for a checkpoint with a base and runs of these sizes, oldest first.
pub(crate) fn plan(options: &Options, base_bytes: u64, runs_bytes: &[u64], folding: Folding) -> Option<Plan> {
    if folding == Folding::Local && is_fold_due(options, base_bytes, runs_bytes) {
        return Some(Plan::Fold);
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

fn is_fold_due(options: &Options, base_bytes: u64, runs_bytes: &[u64]) -> bool {
    let base_share = base_bytes / 100 * options.fold_percent;
    runs_bytes.iter().sum::<u64>() > options.fold_bytes_min.max(base_share)
}

/// Each tier is `TIER_RUNS` times as large as the one before.
fn tier(bytes: u64, options: &Options) -> u32 {
    (bytes / options.tier_bytes_min.max(1)).checked_ilog(TIER_RUNS as u64).map_or(0, |tier| tier + 1)
}

/// What is due for these tables, oldest first.
pub(crate) fn plan_for(options: &Options, tables: &[Arc<Table>], folding: Folding) -> Option<Plan> {
    if tables.iter().any(|table| table.is_converted()) {
        // Their pieces are rewritten once, with footers.
        return Some(Plan::Fold);
    }
    if folding == Folding::Local && hides_much(options, tables) {
        return Some(Plan::Fold);
    }
    let (base_bytes, runs_bytes) = sizes(tables);
    plan(options, base_bytes, &runs_bytes, folding)
}

/// Whether the runs are large enough to be folded into the base, or clips hide enough of the tables.
pub(crate) fn is_fold_due_for(options: &Options, tables: &[Arc<Table>]) -> bool {
    let (base_bytes, runs_bytes) = sizes(tables);
    is_fold_due(options, base_bytes, &runs_bytes) || hides_much(options, tables)
}

/// Whether what clips hide of the tables is worth a fold.
fn hides_much(options: &Options, tables: &[Arc<Table>]) -> bool {
    let share = total_bytes(tables) / 100 * HIDDEN_PERCENT;
    hidden_bytes(tables) > options.fold_bytes_min.max(share)
}

/// The size of the base, and those of the runs.
fn sizes(tables: &[Arc<Table>]) -> (u64, Vec<u64>) {
    let (bases, runs) = tables.split_at(bases_of(tables));
    (total_bytes(bases), runs.iter().map(|run| run.bytes()).collect())
}

/// How many tables are bases: they come first.
fn bases_of(tables: &[Arc<Table>]) -> usize {
    tables.iter().take_while(|table| table.cut == Cut::Content).count()
}

/// Does what is due for a checkpoint. Ends early without a result once `is_stopped`.
pub(crate) fn compact(
    objects: &Arc<ObjectStore>,
    options: &Options,
    replica: ReplicaId,
    format: CheckpointFormat,
    tables: &[Arc<Table>],
    folding: Folding,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Option<Compacted>, EngineError> {
    let Some(plan) = plan_for(options, tables, folding) else { return Ok(None) };
    let bases = bases_of(tables);
    let is_late = tables.len() - bases > options.runs_max / 2;
    let mut paced = Paced::new(is_stopped, is_late);
    let (cut, replaced) = match &plan {
        Plan::Fold => (Cut::Content, tables),
        Plan::Runs(range) => (Cut::Size, &tables[bases + range.start..bases + range.end]),
    };
    let last = replaced.last().map_or(LogIndex(0), |newest| newest.last);
    let merged = Merge::new(sources(objects, replica, replaced));
    let table = if plan == Plan::Fold {
        reached(Place::CheckpointBeforeFold);
        write_table(objects, cut, format, options.piece_bytes, last, paced.pace(merged.filter(is_live)))?
    } else {
        write_table(objects, cut, format, options.piece_bytes, last, paced.pace(merged))?
    };
    if is_stopped() {
        return Ok(None);
    }
    reached(Place::CheckpointFolded);
    Ok(Some(Compacted::Merged { replaced: replaced.to_vec(), table: table.map(Arc::new) }))
}

impl Compacted {
    /// The table that was made.
    pub(crate) fn table(&self) -> Option<&Arc<Table>> {
        match self {
            Self::Merged { table, .. } | Self::Folded { base: table, .. } => table.as_ref(),
        }
    }

    /// Whether a checkpoint at this entry may name it.
    pub(crate) fn is_usable_at(&self, at: LogIndex) -> bool {
        match self {
            Self::Merged { .. } => true,
            Self::Folded { index, .. } => *index <= at,
        }
    }

    /// These tables of a replica with these keys, with those replaced that it stands for; `None` if they are not among
    /// them any more.
    pub(crate) fn apply(
        &self,
        objects: &ObjectStore,
        tables: &[Arc<Table>],
        keys: &KeyRanges,
    ) -> Option<Vec<Arc<Table>>> {
        match self {
            Self::Merged { replaced, table } => {
                let width = replaced.len();
                let is_here = |window: &[Arc<Table>]| window.iter().zip(replaced).all(|(a, b)| a.is_same(b));
                let at = tables.windows(width.max(1)).position(is_here)?;
                Some(tables[..at].iter().chain(table).chain(&tables[at + width..]).cloned().collect())
            }
            Self::Folded { index, base, keys: of_view } => {
                let mut bases: Vec<_> = base.iter().cloned().collect();
                if of_view != keys {
                    // The replica was split since.
                    bases = clipped(objects, &bases, keys);
                }
                let later = tables.iter().filter(|table| table.last > *index);
                // A later base would not hide what this one has.
                let is_newest = later.clone().all(|table| table.cut == Cut::Size);
                is_newest.then(|| bases.iter().chain(later).cloned().collect())
            }
        }
    }
}

/// Passes records on, slowly enough to leave the processor to others for half of the time, unless flushes are
/// quicker than that. Ends when stopped.
pub(crate) struct Paced<'a> {
    is_stopped: &'a dyn Fn() -> bool,
    is_late: bool,
    records: usize,
    since: Instant,
}

impl<'a> Paced<'a> {
    pub(crate) fn new(is_stopped: &'a dyn Fn() -> bool, is_late: bool) -> Self {
        Self { is_stopped, is_late, records: 0, since: Instant::now() }
    }

    pub(crate) fn pace(
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
        let plan_of = |base, runs: &[u64], folding| {
            plan(&options(), base * MIB, &runs.iter().map(|run| run * MIB).collect::<Vec<_>>(), folding)
        };
        let plan = |base, runs: &[u64]| plan_of(base, runs, Folding::Local);
        assert_eq!(plan(1_000, &[1, 1, 1]), None);
        assert_eq!(plan(1_000, &[1, 1, 1, 1]), Some(Plan::Runs(0..4)));
        assert_eq!(plan(1_000, &[20, 5, 1, 1, 1, 1]), Some(Plan::Runs(2..6)));
        assert_eq!(plan(1_000, &[20, 5, 5, 5, 1, 1, 1]), None);
        assert_eq!(plan(1_000, &[20, 5, 5, 5, 4]), Some(Plan::Runs(1..5)));
        assert_eq!(plan(1_000, &[20, 5, 5, 5, 4, 1]), Some(Plan::Runs(1..6)), "smaller ones go along");
        assert_eq!(plan(1_000, &[600, 300, 90, 11]), Some(Plan::Fold));
        assert_eq!(plan(0, &[60, 5]), Some(Plan::Fold));
        assert_eq!(plan(0, &[]), None);
        assert_eq!(plan_of(1_000, &[600, 300, 90, 11], Folding::Logged), None, "its log orders the fold");
        assert_eq!(plan_of(0, &[5, 5, 5, 5], Folding::Logged), Some(Plan::Runs(0..4)));
    }

    /// 1 MiB is flushed at a time over a base of 1 GiB.
    #[test]
    fn a_record_is_rewritten_a_logarithmic_number_of_times() {
        let options = options();
        let (mut base, mut runs, mut written, flushes) = (1_024 * MIB, Vec::new(), 0, 4_096);
        for _ in 0..flushes {
            runs.push(MIB);
            written += MIB;
            while let Some(plan) = plan(&options, base, &runs, Folding::Local) {
                let merged: u64 = match plan {
                    Plan::Runs(range) => runs.drain(range).sum(),
                    Plan::Fold => {
                        runs.clear();
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
