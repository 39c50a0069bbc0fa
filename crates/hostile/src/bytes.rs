//! Malformed bytes: mutations of valid encodings, and arbitrary ones.

use proptest::{collection::vec, prelude::*, sample::Index, strategy::Union};

/// Maximum mutations of one encoding.
const MUTATIONS_MAX: usize = 6;
/// Exclusive maximum of the copies of a repeated part.
const REPEATS_MAX: usize = 300;
/// A repetition that would make an encoding longer than this is skipped.
const BYTES_MAX: usize = 1 << 20;

/// A mutation of an encoding.
#[derive(Debug, Clone)]
enum Mutation {
    Flip(Index, u8),
    Put(Index, u8),
    /// Overwrites bytes, possibly a length field, with an extreme number.
    Number(Index, Vec<u8>),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, Index),
    /// Inserts n more copies of a part after it.
    Repeat(Index, Index, usize),
    /// Swaps the parts before and after a position.
    Rotate(Index),
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        let place = |index: &Index| index.index(length + 1);
        let part = |from: &Index, to: &Index| {
            let (from, to) = (place(from), place(to));
            from.min(to)..from.max(to)
        };
        match self {
            Self::Flip(at, bit) => bytes.iter_mut().skip(place(at)).take(1).for_each(|byte| *byte ^= 1 << (bit % 8)),
            Self::Put(at, with) => bytes.iter_mut().skip(place(at)).take(1).for_each(|byte| *byte = *with),
            Self::Number(at, number) => {
                let from = place(at);
                let to = (from + number.len()).min(length);
                bytes.splice(from..to, number.iter().copied());
            }
            Self::Cut(at) => bytes.truncate(place(at)),
            Self::Insert(at, new) => {
                let at = place(at);
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Remove(from, to) => drop(bytes.drain(part(from, to))),
            Self::Repeat(from, to, times) => {
                let part = part(from, to);
                if length + part.len() * times <= BYTES_MAX {
                    let copies = bytes[part.clone()].repeat(*times);
                    bytes.splice(part.end..part.end, copies);
                }
            }
            Self::Rotate(at) => bytes.rotate_left(place(at)),
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<Index>;
    prop_oneof![
        4 => (index(), any::<u8>()).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        3 => (index(), any::<u8>()).prop_map(|(at, byte)| Mutation::Put(at, byte)),
        4 => (index(), number()).prop_map(|(at, number)| Mutation::Number(at, number)),
        2 => index().prop_map(Mutation::Cut),
        2 => (index(), vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        2 => (index(), index()).prop_map(|(from, to)| Mutation::Remove(from, to)),
        2 => (index(), index(), 1..REPEATS_MAX).prop_map(|(from, to, times)| Mutation::Repeat(from, to, times)),
        1 => index().prop_map(Mutation::Rotate),
    ]
}

/// An encoded extreme number: fixed width in either byte order, varint, or decimal digits.
fn number() -> impl Strategy<Value = Vec<u8>> {
    extreme_u64().prop_flat_map(|number| {
        let mut varint = Vec::new();
        let mut rest = number;
        while rest >= 0x80 {
            varint.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        varint.push(rest as u8);
        Union::new(
            [
                number.to_be_bytes().to_vec(),
                number.to_le_bytes().to_vec(),
                (number as u32).to_be_bytes().to_vec(),
                (number as u32).to_le_bytes().to_vec(),
                (number as u16).to_be_bytes().to_vec(),
                varint,
                number.to_string().into_bytes(),
                format!("-{number}").into_bytes(),
            ]
            .map(Just),
        )
    })
}

/// Small numbers, numbers near the limits of integer types, powers of two, and arbitrary ones.
pub fn extreme_u64() -> impl Strategy<Value = u64> {
    let near = |edge: u64| {
        (0..3_u64, any::<bool>())
            .prop_map(move |(by, above)| if above { edge.saturating_add(by) } else { edge.saturating_sub(by) })
    };
    prop_oneof![
        4 => 0..20_u64,
        2 => near(u64::MAX),
        1 => near(i64::MAX as u64),
        1 => near(u64::from(u32::MAX)),
        1 => near(i32::MAX as u64),
        1 => near(1 << 53),
        1 => (0..64_u32).prop_map(|bit| 1 << bit),
        1 => any::<u64>(),
    ]
}

/// Arbitrary bytes of at most `length_max`; some repeat one byte or a short pattern.
pub fn any_bytes(length_max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..=length_max),
        1 => (any::<u8>(), 0..=length_max).prop_map(|(byte, length)| vec![byte; length]),
        1 => (vec(any::<u8>(), 1..4), 0..=length_max / 4).prop_map(|(part, times)| part.repeat(times)),
    ]
}

/// Mutated valid encodings: bits flipped, bytes and numbers replaced, parts truncated, inserted, removed,
/// repeated and moved. A few stay valid, and a few are [`any_bytes`].
pub fn mutated<S: Strategy>(valid: S) -> impl Strategy<Value = Vec<u8>>
where
    S::Value: AsRef<[u8]>,
{
    let mutated = (valid, vec(mutation(), 0..=MUTATIONS_MAX)).prop_map(|(valid, mutations)| {
        let mut bytes = valid.as_ref().to_vec();
        mutations.iter().for_each(|mutation| mutation.apply(&mut bytes));
        bytes
    });
    prop_oneof![9 => mutated, 1 => any_bytes(256)]
}

/// Calls `check` with every proper prefix of an encoding.
pub fn at_every_cut(bytes: &[u8], mut check: impl FnMut(&[u8])) {
    for length in 0..bytes.len() {
        check(&bytes[..length]);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::attack;

    #[test]
    fn mutations_stay_within_their_bound_and_change_most_encodings() {
        let (changed, longest) = (Cell::new(0), Cell::new(0));
        let valid = b"valid as it can be".to_vec();
        attack(500, mutated(Just(valid.clone())), |bytes| {
            changed.set(changed.get() + usize::from(bytes != valid));
            longest.set(longest.get().max(bytes.len()));
        });
        assert!(changed.get() > 300, "{}", changed.get());
        assert!((100..=BYTES_MAX + 200).contains(&longest.get()), "{}", longest.get());
    }
}
