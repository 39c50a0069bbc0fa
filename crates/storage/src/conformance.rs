//! Conformance suites that every implementation of a seam runs.
