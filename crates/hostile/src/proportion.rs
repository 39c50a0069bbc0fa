//! What reading an input may allocate: in proportion to the bytes that came, not to the lengths that they claim.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// A bound on memory at one time, beside the input itself.
#[derive(Debug, Clone, Copy)]
pub struct Proportion {
    /// Whatever the input; bytes.
    pub base: u64,
    /// For each byte of input; bytes.
    pub per_byte: u64,
}

impl Proportion {
    /// For most parsers: what grows by doubling holds a third of its room for nothing, and values are wider than their encoding.
    pub const DEFAULT: Self = Self { base: 16 << 10, per_byte: 64 };

    /// Reads, and panics when that took more memory on this thread than an input of `input_bytes` may.
    #[track_caller]
    pub fn of<T>(self, input_bytes: usize, read: impl FnOnce() -> T) -> T {
        let mut outcome = None;
        let allocated = allocation_counter::measure(|| {
            // A panic must not leave the counter in the middle of a measurement.
            outcome = Some(catch_unwind(AssertUnwindSafe(read)));
        });
        let bound = self.base + self.per_byte * input_bytes as u64;
        match outcome {
            Some(Ok(read)) => {
                let bytes = allocated.bytes_max;
                assert!(bytes <= bound, "{input_bytes} bytes of input took {bytes} bytes of memory, more than {bound}");
                read
            }
            Some(Err(panic)) => resume_unwind(panic),
            None => unreachable!("the measured closure was not run"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_by_a_claimed_length_is_noticed_even_if_it_is_given_back() {
        let claim = || drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
        assert!(catch_unwind(|| Proportion::DEFAULT.of(4, claim)).is_err());
        Proportion::DEFAULT.of(1 << 20, claim);
        assert_eq!(Proportion::DEFAULT.of(4, || 7), 7);
    }
}
