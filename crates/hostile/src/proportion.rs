//! A limit on the memory that parsing allocates: in proportion to the input's bytes, not to the lengths that
//! it claims.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// A limit on peak memory, without the input itself.
#[derive(Debug, Clone, Copy)]
pub struct Proportion {
    /// Allowed for any input, bytes.
    pub base: u64,
    /// Allowed per byte of input, bytes.
    pub per_byte: u64,
}

impl Proportion {
    /// For most parsers. Leaves room for vectors that grow by doubling, and for values that are larger than
    /// their encoding.
    pub const DEFAULT: Self = Self { base: 16 << 10, per_byte: 64 };

    /// Calls `read`; panics when it used more memory on this thread than an input of `input_bytes` may.
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
    fn an_allocation_by_a_claimed_length_is_detected_even_if_it_is_freed() {
        let claim = || drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
        assert!(catch_unwind(|| Proportion::DEFAULT.of(4, claim)).is_err());
        Proportion::DEFAULT.of(1 << 20, claim);
        assert_eq!(Proportion::DEFAULT.of(4, || 7), 7);
    }
}
