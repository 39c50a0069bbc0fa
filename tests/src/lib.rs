//! Nothing: the tests over real processes live in `tests/`, and need a library to stand beside.
