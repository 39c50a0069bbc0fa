//! `LCS`: the longest common subsequence of two values, by the table of lengths of all pairs of prefixes.

use crate::{Lcs, LcsReply, Reply, view::View};

/// Cells of the table: 16 MiB, and about 20 ms.
const CELLS_MAX: usize = 4 << 20;

const TOO_LONG: &str = "ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len";

/// A range of both values that matches: its last positions and its length.
struct Match {
    ends: [usize; 2],
    length: usize,
}

pub(super) fn lcs(query: &Lcs, view: &mut View) -> Result<Reply, Reply> {
    let [one, two] = [&query.keys[0], &query.keys[1]].map(|key| view.value(key).to_vec());
    let cells = (one.len() + 1).checked_mul(two.len() + 1).filter(|cells| *cells <= CELLS_MAX);
    let Some(cells) = cells else { return Err(Reply::Error(TOO_LONG.into())) };
    view.spend(cells)?;
    let table = lengths(&one, &two);
    let length = table.last().map_or(0, |length| *length as usize);
    Ok(match query.reply {
        LcsReply::Length => Reply::Integer(length as i64),
        LcsReply::Text => {
            let mut text = Vec::with_capacity(length);
            for found in matches(&table, &one, &two) {
                text.extend(one[found.ends[0] + 1 - found.length..=found.ends[0]].iter().rev());
            }
            text.reverse();
            Reply::Bulk(text.into())
        }
        LcsReply::Ranges { length_min, with_lengths } => {
            let ranges = matches(&table, &one, &two);
            let long = ranges.into_iter().filter(|found| found.length as u64 >= length_min);
            let pairs = vec![
                (Reply::text("matches"), Reply::Array(long.map(|found| found.reply(with_lengths)).collect())),
                (Reply::text("len"), Reply::Integer(length as i64)),
            ];
            Reply::Map(pairs)
        }
    })
}

impl Match {
    fn reply(&self, with_length: bool) -> Reply {
        let range = |end: usize| [end + 1 - self.length, end].map(|at| Reply::Integer(at as i64)).to_vec();
        let mut items: Vec<_> = self.ends.into_iter().map(|end| Reply::Array(range(end))).collect();
        if with_length {
            items.push(Reply::Integer(self.length as i64));
        }
        Reply::Array(items)
    }
}

/// The lengths for all pairs of prefixes, row after row.
fn lengths(one: &[u8], two: &[u8]) -> Vec<u32> {
    let width = two.len() + 1;
    let mut table = vec![0_u32; width * (one.len() + 1)];
    for (i, a) in (1..).zip(one) {
        for (j, b) in (1..).zip(two) {
            table[i * width + j] = if a == b {
                table[(i - 1) * width + j - 1] + 1
            } else {
                table[(i - 1) * width + j].max(table[i * width + j - 1])
            };
        }
    }
    table
}

/// The ranges that match, the last one first.
fn matches(table: &[u32], one: &[u8], two: &[u8]) -> Vec<Match> {
    let width = two.len() + 1;
    let (mut i, mut j) = (one.len(), two.len());
    let mut found: Vec<Match> = Vec::new();
    // Whether the last range may still grow to the left.
    let mut is_open = false;
    while i > 0 && j > 0 {
        if one[i - 1] == two[j - 1] {
            match found.last_mut().filter(|_| is_open) {
                Some(range) => range.length += 1,
                None => found.push(Match { ends: [i - 1, j - 1], length: 1 }),
            }
            is_open = true;
            (i, j) = (i - 1, j - 1);
        } else {
            is_open = false;
            if table[(i - 1) * width + j] > table[i * width + j - 1] { i -= 1 } else { j -= 1 }
        }
    }
    found
}
