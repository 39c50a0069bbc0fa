//! Tests over real processes live in `tests/`.
