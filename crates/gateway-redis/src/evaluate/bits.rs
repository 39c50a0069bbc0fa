//! Commands on the bits of a value. Bit 0 is the highest of the first byte.

use bytes::Bytes;

use crate::{BitFieldAction, BitFieldOverflow, BitFieldStep, BitOperation, BitUnit, Reply, view::View};

pub(super) fn set(key: &Bytes, at: u64, bit: bool, view: &mut View) -> Result<Reply, Reply> {
    let (index, mask) = place(at);
    let byte = &mut view.edit(key, index + 1)?[index];
    let old = *byte & mask != 0;
    *byte = if bit { *byte | mask } else { *byte & !mask };
    Ok(Reply::Integer(old.into()))
}

pub(super) fn get(key: &Bytes, at: u64, view: &View) -> Reply {
    Reply::Integer(bit_at(view.value(key), at).into())
}

pub(super) fn count(key: &Bytes, range: Option<(i64, i64)>, unit: BitUnit, view: &mut View) -> Result<Reply, Reply> {
    view.spend(view.value_bytes(key))?;
    let value = view.value(key);
    let (start, end) = range.unwrap_or((0, -1));
    let Some((first, last)) = span(value.len(), start, end, unit) else { return Ok(Reply::Integer(0)) };
    let (from, to) = ((first / 8) as usize, (last / 8) as usize);
    let ones: i64 = value[from..=to].iter().map(|byte| i64::from(byte.count_ones())).sum();
    let before = value[from] & !low_bits(8 - (first % 8) as u32);
    let after = value[to] & low_bits(7 - (last % 8) as u32);
    Ok(Reply::Integer(ones - i64::from(before.count_ones()) - i64::from(after.count_ones())))
}

pub(super) fn position(
    key: &Bytes,
    bit: bool,
    (start, end): (Option<i64>, Option<i64>),
    unit: BitUnit,
    view: &mut View,
) -> Result<Reply, Reply> {
    view.spend(view.value_bytes(key))?;
    let value = view.value(key);
    if value.is_empty() {
        return Ok(Reply::Integer(if bit { -1 } else { 0 }));
    }
    let Some((first, last)) = span(value.len(), start.unwrap_or(0), end.unwrap_or(-1), unit) else {
        return Ok(Reply::Integer(-1));
    };
    let full: u8 = if bit { 0 } else { u8::MAX };
    let mut at = first;
    while at <= last {
        // Skips bytes that do not contain the bit.
        if at % 8 == 0 && value[(at / 8) as usize] == full {
            at += 8;
        } else if bit_at(value, at) == bit {
            return Ok(Reply::Integer(at as i64));
        } else {
            at += 1;
        }
    }
    // A value without an end is followed by zeros.
    Ok(Reply::Integer(if bit || end.is_some() { -1 } else { value.len() as i64 * 8 }))
}

pub(super) fn combine(operation: BitOperation, to: &Bytes, from: &[Bytes], view: &mut View) -> Result<Reply, Reply> {
    let bytes = from.iter().map(|key| view.value_bytes(key)).sum();
    view.spend(bytes)?;
    let length = from.iter().map(|key| view.value_bytes(key)).max().unwrap_or(0);
    let mut result = vec![0; length];
    for (ordinal, key) in from.iter().enumerate() {
        let value = view.value(key).iter().copied().chain(std::iter::repeat(0));
        for (byte, operand) in result.iter_mut().zip(value) {
            *byte = match operation {
                BitOperation::Not => !operand,
                _ if ordinal == 0 => operand,
                BitOperation::And => *byte & operand,
                BitOperation::Or => *byte | operand,
                BitOperation::Xor => *byte ^ operand,
            };
        }
    }
    if length == 0 {
        view.remove(to);
    } else {
        view.put(to, result.into(), None)?;
    }
    Ok(Reply::Integer(length as i64))
}

pub(super) fn field(key: &Bytes, steps: &[BitFieldStep], view: &mut View) -> Result<Reply, Reply> {
    // Each bit is looked at, a few times if it is written.
    view.spend(steps.iter().map(|step| step.bits as usize).sum())?;
    let writes = steps.iter().filter(|step| step.action != BitFieldAction::Get);
    let highest = writes.map(|step| (step.at + u64::from(step.bits)).div_ceil(8)).max();
    if let Some(length) = highest {
        // As in Redis, the value grows even if every write fails.
        view.edit(key, (length as usize).max(view.value_bytes(key)))?;
    }
    let mut replies = Vec::with_capacity(steps.len());
    for step in steps {
        let old = read_field(view.value(key), step);
        let reply = match step.action {
            BitFieldAction::Get => Some(old),
            BitFieldAction::Set(value) => {
                // An unsigned field takes a negative number as a large one.
                let value = if step.signed { i128::from(value) } else { i128::from(value.cast_unsigned()) };
                let fitted = fit(value, step);
                if let Some(new) = fitted {
                    write_field(view.edit(key, 0)?, step, new);
                }
                fitted.map(|_| old)
            }
            BitFieldAction::Add(delta) => {
                let fitted = fit(old + i128::from(delta), step);
                if let Some(new) = fitted {
                    write_field(view.edit(key, 0)?, step, new);
                }
                fitted
            }
        };
        replies.push(reply.map_or(Reply::Null, |number| Reply::Integer(i64::try_from(number).unwrap_or(i64::MAX))));
    }
    Ok(Reply::Array(replies))
}

/// The number as its field can hold it; `None` if it must not be stored.
fn fit(number: i128, step: &BitFieldStep) -> Option<i128> {
    let (min, max) = match step.signed {
        true => (-(1_i128 << (step.bits - 1)), (1_i128 << (step.bits - 1)) - 1),
        false => (0, (1_i128 << step.bits) - 1),
    };
    if (min..=max).contains(&number) {
        return Some(number);
    }
    match step.overflow {
        BitFieldOverflow::Fail => None,
        BitFieldOverflow::Saturate => Some(number.clamp(min, max)),
        BitFieldOverflow::Wrap => {
            let low = number & ((1_i128 << step.bits) - 1);
            Some(if low > max { low - (1_i128 << step.bits) } else { low })
        }
    }
}

fn read_field(value: &[u8], step: &BitFieldStep) -> i128 {
    let bits = (0..u64::from(step.bits)).map(|offset| bit_at(value, step.at + offset));
    let number = bits.fold(0, |number: i128, bit| number << 1 | i128::from(bit));
    let negative = step.signed && number >> (step.bits - 1) & 1 == 1;
    if negative { number - (1_i128 << step.bits) } else { number }
}

fn write_field(value: &mut [u8], step: &BitFieldStep, number: i128) {
    for offset in 0..u64::from(step.bits) {
        let (index, mask) = place(step.at + offset);
        let bit = number >> (u64::from(step.bits) - 1 - offset) & 1 == 1;
        if let Some(byte) = value.get_mut(index) {
            *byte = if bit { *byte | mask } else { *byte & !mask };
        }
    }
}

/// The byte of a bit, and its place in it.
fn place(at: u64) -> (usize, u8) {
    ((at / 8) as usize, 0x80 >> (at % 8))
}

/// A bit of a value, which zeros follow.
fn bit_at(value: &[u8], at: u64) -> bool {
    let (index, mask) = place(at);
    value.get(index).is_some_and(|byte| byte & mask != 0)
}

fn low_bits(count: u32) -> u8 {
    u8::MAX.checked_shr(8 - count).unwrap_or(0)
}

/// The first and last bit of a range in a value of `bytes`; `None` if it is empty.
fn span(bytes: usize, start: i64, end: i64, unit: BitUnit) -> Option<(u64, u64)> {
    let bits_per = match unit {
        BitUnit::Byte => 8,
        BitUnit::Bit => 1,
    };
    let (first, last) = super::strings::clamp(bytes as u64 * 8 / bits_per, start, end)?;
    Some((first * bits_per, last * bits_per + bits_per - 1))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::view::testing::found;

    fn view(value: &[u8]) -> (Bytes, View) {
        let record = found("k", value, None);
        (record.0.clone(), View::new([record], true, flotilla_api::VALUE_BYTES_MAX, 0))
    }

    fn number(reply: Result<Reply, Reply>) -> i64 {
        match reply {
            Ok(Reply::Integer(number)) => number,
            other => panic!("{other:?}"),
        }
    }

    /// The bits of a value that lie in a range, with their positions.
    fn bits_in(value: &[u8], start: i64, end: i64, unit: BitUnit) -> Vec<(i64, bool)> {
        let per = if unit == BitUnit::Byte { 8 } else { 1 };
        let length = value.len() as i64 * 8 / per;
        let from_end = |at: i64| if at < 0 { (length + at).max(0) } else { at };
        let (first, last) = (from_end(start) * per, from_end(end).min(length - 1) * per + per);
        if start < 0 && end < 0 && start > end {
            return Vec::new();
        }
        (first..last).map(|at| (at, bit_at(value, at as u64))).collect()
    }

    fn unit() -> impl Strategy<Value = BitUnit> {
        prop_oneof![Just(BitUnit::Byte), Just(BitUnit::Bit)]
    }

    proptest! {
        #[test]
        fn counting_and_finding_agree_with_looking_at_each_bit(
            value in vec(prop_oneof![Just(0), Just(u8::MAX), any::<u8>()], 1..8),
            (start, end) in (-80_i64..80, -80_i64..80),
            unit in unit(),
            bit: bool,
        ) {
            let bits = bits_in(&value, start, end, unit);
            let (key, mut view) = view(&value);
            let ones = bits.iter().filter(|(_, bit)| *bit).count() as i64;
            prop_assert_eq!(number(count(&key, Some((start, end)), unit, &mut view)), ones);
            let first = bits.iter().find(|(_, found)| *found == bit).map_or(-1, |(at, _)| *at);
            prop_assert_eq!(number(position(&key, bit, (Some(start), Some(end)), unit, &mut view)), first);
        }

        #[test]
        fn a_field_is_read_as_it_was_written_and_its_neighbours_stay(
            value in vec(any::<u8>(), 0..20),
            at in 0_u64..100,
            bits in 1_u32..=63,
            signed: bool,
            new: i64,
            overflow in prop_oneof![
                Just(BitFieldOverflow::Wrap),
                Just(BitFieldOverflow::Saturate),
                Just(BitFieldOverflow::Fail),
            ],
            other in option::of(0_u64..200),
        ) {
            let (key, mut view) = view(&value);
            let outside = other.filter(|other| !(at..at + u64::from(bits)).contains(other));
            let before = outside.map(|other| bit_at(view.value(&key), other));
            let step = |action| BitFieldStep { at, bits, signed, action, overflow };
            let old = read_field(view.value(&key), &step(BitFieldAction::Get));
            let steps = [step(BitFieldAction::Set(new)), step(BitFieldAction::Get)];
            let Ok(Reply::Array(replies)) = field(&key, &steps, &mut view) else { panic!("refused") };
            let written = if signed { i128::from(new) } else { i128::from(new.cast_unsigned()) };
            let expected = fit(written, &steps[0]);
            prop_assert_eq!(read_field(view.value(&key), &steps[1]), expected.unwrap_or(old));
            prop_assert_eq!(replies[0] == Reply::Null, expected.is_none());
            prop_assert_eq!(outside.map(|other| bit_at(view.value(&key), other)), before);
        }
    }
}
