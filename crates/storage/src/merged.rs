//! The tables of a shard that was merged: those of both shards, each with the part that its shard had.
//!
//! Invariants: no record is copied; of two tables that may have a record of one key, the later one in the log comes
//! later, as in the checkpoints before; parts of one table that a split had separated are one part again.

use flotilla_types::{KeyRange, TableKind, TableRef, Tables};

/// The tables of both checkpoints, of which the left one has the records of `left_range`, and the right one those of
/// `right_range`, which follows. Both leave out [`KeyRange::internal`].
///
/// `None` if one of the checkpoints has tables without manifests: those have no clips.
#[must_use]
pub fn merged_tables(left: (&Tables, &KeyRange), right: (&Tables, &KeyRange)) -> Option<Tables> {
    let (left, right) = (parts(left)?, parts(right)?);
    let merged = [TableKind::Base, TableKind::Run].map(|kind| merged_of(kind, &left, &right));
    Some(Tables::Manifests(merged.concat()))
}

/// The parts of tables that lie within a range. The log of the merged shard has ordered none of their folds.
fn parts((tables, range): (&Tables, &KeyRange)) -> Option<Vec<TableRef>> {
    let users = KeyRange::of_users().intersection(range);
    match tables {
        Tables::Manifests(tables) => {
            let part =
                |table: &TableRef| TableRef { clip: table.clip.intersection(&users), fold: None, ..table.clone() };
            Some(tables.iter().map(part).filter(|part| !part.clip.is_empty()).collect())
        }
        Tables::Pieces { base, runs } => (base.is_empty() && runs.is_empty()).then(Vec::new),
    }
}

fn merged_of(kind: TableKind, left: &[TableRef], right: &[TableRef]) -> Vec<TableRef> {
    let of_kind = |tables: &[TableRef]| tables.iter().filter(|table| table.kind == kind).cloned().collect::<Vec<_>>();
    let (left, right) = (of_kind(left), of_kind(right));
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let mut rest = &right[..];
    for table in left {
        let continues = |other: &TableRef| other.manifest == table.manifest && other.clip.start == table.clip.end;
        let Some(at) = rest.iter().position(continues) else {
            merged.push(table);
            continue;
        };
        merged.extend_from_slice(&rest[..at]);
        let clip = KeyRange { end: rest[at].clip.end.clone(), ..table.clip };
        merged.push(TableRef { clip, ..table });
        rest = &rest[at + 1..];
    }
    merged.extend_from_slice(rest);
    merged
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_types::ObjectId;

    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange { start: start.into(), end: end.into() }
    }

    fn table(kind: TableKind, name: &str, start: &'static str, end: &'static str) -> TableRef {
        TableRef { kind, clip: range(start, end), manifest: ObjectId::of(name.as_bytes()), fold: None }
    }

    fn merged(left: Vec<TableRef>, right: Vec<TableRef>) -> Vec<TableRef> {
        let (left, right) = (Tables::Manifests(left), Tables::Manifests(right));
        let merged = merged_tables((&left, &range("b", "m")), (&right, &range("m", "y")));
        let Some(Tables::Manifests(merged)) = merged else { panic!("both have manifests") };
        merged
    }

    #[test]
    fn each_table_shows_what_its_shard_had() {
        let (base, run) = (TableKind::Base, TableKind::Run);
        let folded = TableRef { fold: Some(flotilla_types::LogIndex(4)), ..table(base, "1", "", "") };
        let found = merged(
            vec![folded, table(run, "2", "", "c"), table(run, "3", "x", "")],
            vec![table(base, "4", "", "n"), table(run, "5", "c", "d"), table(run, "6", "", "")],
        );
        let expected = [
            table(base, "1", "b", "m"),
            table(base, "4", "m", "n"),
            table(run, "2", "b", "c"),
            table(run, "6", "m", "y"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_a_split_had_separated_is_one_part_again() {
        let run = |name, start, end| table(TableKind::Run, name, start, end);
        let found = merged(
            vec![run("1", "", "m"), run("2", "", "m"), run("left", "", "")],
            vec![run("1", "m", ""), run("between", "", ""), run("2", "m", ""), run("right", "", "")],
        );
        let expected = [
            run("1", "b", "y"),
            run("between", "m", "y"),
            run("2", "b", "y"),
            run("left", "b", "m"),
            run("right", "m", "y"),
        ];
        assert_eq!(found, expected);
        let crossed = merged(vec![run("1", "", "m"), run("2", "", "m")], vec![run("2", "m", ""), run("1", "m", "")]);
        assert_eq!(crossed, [run("2", "m", "y"), run("1", "b", "y"), run("2", "b", "m")]);
    }

    #[test]
    fn tables_without_manifests_are_refused_and_none_are_nothing() {
        let pieces = |base| Tables::Pieces { base, runs: Vec::new() };
        let (none, some) = (pieces(Vec::new()), pieces(vec![ObjectId::of(b"1")]));
        let merge = |left: &Tables, right: &Tables| merged_tables((left, &range("b", "m")), (right, &range("m", "")));
        assert_eq!(merge(&none, &none), Some(Tables::Manifests(Vec::new())));
        assert_eq!((merge(&none, &some), merge(&some, &none)), (None, None));
        let all = Tables::Manifests(vec![table(TableKind::Base, "1", "", "")]);
        let Some(Tables::Manifests(merged)) = merge(&none, &all) else { panic!("both have manifests") };
        assert_eq!(merged[0].clip, KeyRange { start: Bytes::from("m"), ..KeyRange::of_users() });
    }
}
