//! The entries of a replica's log that refer to objects, each of which holds what it refers to.
//!
//! Invariants: an entry is held from when Raft takes it into its log, so before it is written, until a truncation of
//! it, or what replaces it, is durable: a crash in between brings it back. An entry with references is never
//! written without a hold.

use std::collections::BTreeMap;

use flotilla_consensus::Group;
use flotilla_types::{Entry, Holder, LogIndex, ObjectId, ReplicaId, Term};

use super::{Effects, Hold};
use crate::refs_of;

/// Entries that refer to objects.
#[derive(Debug, Default)]
pub(super) struct LogRefs {
    entries: BTreeMap<LogIndex, Term>,
    /// Entries that others replaced, with the round that writes those.
    replaced: Vec<(u64, LogIndex, Term)>,
}

/// The objects that an entry refers to, each once.
pub(super) fn ids_of(entry: &Entry) -> Vec<ObjectId> {
    let mut ids: Vec<_> = refs_of(entry).ids().collect();
    ids.dedup();
    ids
}

/// What an entry counts for in the bounds of the log: also what it refers to, which the log keeps on the disk.
pub(super) fn bytes_of(entry: &Entry) -> u64 {
    let own = entry.size_bytes() as u64;
    refs_of(entry).iter().fold(own, |bytes, reference| bytes.saturating_add(reference.bytes))
}

impl LogRefs {
    /// Raft has taken an entry into its log: holds what it refers to.
    pub(super) fn add<T>(&mut self, id: ReplicaId, entry: &Entry, effects: &mut Effects<T>) {
        let objects = ids_of(entry);
        if objects.is_empty() || self.entries.get(&entry.index) == Some(&entry.term) {
            return;
        }
        if let Some(term) = self.entries.insert(entry.index, entry.term) {
            // Whatever writes this entry replaces the other one. That round is not known yet.
            self.replaced.push((u64::MAX, entry.index, term));
        }
        effects.holds.push(Hold { holder: holder(id, entry.index, entry.term), objects });
    }

    /// A round writes entries, or replaces the whole log: what is no longer in Raft's log is let go of after it.
    pub(super) fn writes(&mut self, group: &Group, number: u64, from: Option<LogIndex>, entries: &[Entry]) {
        for entry in entries {
            let is_held = self.entries.get(&entry.index) == Some(&entry.term)
                || self.replaced.iter().any(|(_, index, term)| (*index, *term) == (entry.index, entry.term));
            assert!(is_held || refs_of(entry).is_empty(), "{} is written without a hold", entry.index);
        }
        let first = from.or_else(|| entries.first().map(|entry| entry.index));
        let Some(first) = first else { return };
        let is_gone = |(index, term): &(LogIndex, Term)| !is_in_log(group, *index, *term);
        let later = self.entries.range(first..).map(|(index, term)| (*index, *term));
        let gone: Vec<_> = later.filter(is_gone).collect();
        for (index, _) in &gone {
            self.entries.remove(index);
        }
        self.replaced.extend(gone.into_iter().map(|(index, term)| (number, index, term)));
        for (round, index, _) in &mut self.replaced {
            if *round == u64::MAX && *index >= first {
                *round = number;
            }
        }
    }

    /// A round is durable.
    pub(super) fn written<T>(&mut self, id: ReplicaId, number: u64, effects: &mut Effects<T>) {
        let done = self.replaced.extract_if(.., |(round, ..)| *round <= number);
        effects.holds.extend(done.map(|(_, index, term)| Hold::end(holder(id, index, term))));
    }

    /// A truncation up to this entry is durable.
    pub(super) fn truncated<T>(&mut self, id: ReplicaId, to: LogIndex, effects: &mut Effects<T>) {
        let kept = self.entries.split_off(&to.next());
        let gone = std::mem::replace(&mut self.entries, kept).into_iter();
        effects.holds.extend(gone.map(|(index, term)| Hold::end(holder(id, index, term))));
        let replaced = self.replaced.extract_if(.., |(round, index, _)| *round == u64::MAX && *index <= to);
        effects.holds.extend(replaced.map(|(_, index, term)| Hold::end(holder(id, index, term))));
    }

    /// The holders of all entries.
    pub(super) fn holders(&self, id: ReplicaId) -> Vec<Holder> {
        let replaced = self.replaced.iter().map(|(_, index, term)| (*index, *term));
        let all = self.entries.iter().map(|(index, term)| (*index, *term)).chain(replaced);
        all.map(|(index, term)| holder(id, index, term)).collect()
    }
}

/// Whether Raft's log has this entry. The last truncated one has a term there, too, and is no part of it.
pub(super) fn is_in_log(group: &Group, index: LogIndex, term: Term) -> bool {
    index > group.truncated().0 && group.term_of(index) == Some(term)
}

fn holder(replica: ReplicaId, index: LogIndex, term: Term) -> Holder {
    Holder::Log { replica, index, term }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_types::{EntryKind, ObjectRef, Timestamp};

    use super::*;
    use crate::Batch;

    const REPLICA: ReplicaId = ReplicaId(4);

    fn entry(index: u64, term: u64) -> Entry {
        let reference = ObjectRef { id: ObjectId::of(&index.to_le_bytes()), height: 0, bytes: 8 };
        let refs = [reference].into_iter().collect();
        let data = Batch { timestamp: Timestamp(1), refs, commands: vec![Bytes::from_static(b"put")] }.encode();
        Entry { index: LogIndex(index), term: Term(term), kind: EntryKind::Normal, data, context: Bytes::new() }
    }

    fn log_of(entries: &[(u64, u64)]) -> LogRefs {
        let (mut refs, mut effects) = (LogRefs::default(), Effects::<()>::default());
        for (index, term) in entries {
            refs.add(REPLICA, &entry(*index, *term), &mut effects);
        }
        refs
    }

    /// The entries whose holds end, and whether nothing is held.
    fn ended(effects: &Effects<()>) -> Vec<(u64, u64)> {
        assert!(effects.holds.iter().all(|hold| hold.objects.is_empty()));
        let entry = |hold: &Hold| match hold.holder {
            Holder::Log { replica: REPLICA, index, term } => (index.0, term.0),
            other => panic!("{other:?}"),
        };
        effects.holds.iter().map(entry).collect()
    }

    #[test]
    fn an_entry_holds_what_it_refers_to_from_when_it_is_taken() {
        let (mut refs, mut effects) = (LogRefs::default(), Effects::<()>::default());
        refs.add(REPLICA, &entry(3, 1), &mut effects);
        let held = Hold { holder: holder(REPLICA, LogIndex(3), Term(1)), objects: ids_of(&entry(3, 1)) };
        assert_eq!(effects.holds, [held]);
        refs.add(REPLICA, &entry(3, 1), &mut effects);
        assert_eq!(effects.holds.len(), 1, "once");
    }

    #[test]
    fn a_truncation_lets_go_of_what_it_covers_and_of_nothing_else() {
        let mut refs = log_of(&[(3, 1), (5, 1), (6, 2), (9, 2)]);
        let mut effects = Effects::default();
        refs.truncated(REPLICA, LogIndex(5), &mut effects);
        assert_eq!(ended(&effects), [(3, 1), (5, 1)]);
        assert_eq!(refs.holders(REPLICA).len(), 2, "the entries behind it are in the log");
        let mut effects = Effects::default();
        refs.truncated(REPLICA, LogIndex(9), &mut effects);
        assert_eq!(ended(&effects), [(6, 2), (9, 2)]);
        assert_eq!(refs.holders(REPLICA), []);
    }

    #[test]
    fn an_entry_and_the_one_that_replaces_it_are_held_side_by_side() {
        let mut refs = log_of(&[(3, 1), (3, 2)]);
        assert_eq!(refs.holders(REPLICA).len(), 2, "a crash brings the first one back");
        let mut effects = Effects::default();
        refs.truncated(REPLICA, LogIndex(3), &mut effects);
        assert_eq!(ended(&effects), [(3, 2), (3, 1)]);
    }
}
