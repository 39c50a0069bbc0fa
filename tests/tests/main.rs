//! Tests over real processes: clusters of the `flotilla` binary on the loopback interface, with injected
//! faults.
//!
//! Each test starts its own cluster and observes it from outside, over HTTP and through its logs.
//! [`flotilla_tests::support::Workload`] generates load and records the outcome of every write, so that lost
//! and duplicated writes are detected. A test whose load was too low before the fault is void, and fails.
//!
//! Deliberately absent: retries, fixed sleeps, fixed ports, and assertions on durations. All waiting is
//! polling with a timeout. `FLOTILLA_TEST_DIR=path` keeps data and logs in a folder for each test.

/// Runs a function as two tests, `NAME::open` and `NAME::secure`: on a cluster without TLS and keys, and on
/// one with both. The function takes the mode.
macro_rules! in_both_modes {
    ($test:ident) => {
        mod $test {
            use flotilla_tests::support::Mode;

            #[tokio::test]
            async fn open() {
                super::$test(Mode::Open).await;
            }

            #[tokio::test]
            async fn secure() {
                super::$test(Mode::Secure).await;
            }
        }
    };
}

mod addresses;
mod answers;
mod certificates;
mod checker;
mod consistency;
mod crash;
mod descriptors;
mod doors;
mod draining;
mod expiring;
mod faults;
mod forming;
mod health;
mod hostile;
mod leaving;
mod minority;
mod moving;
mod operations;
mod pause;
mod placement;
mod redis;
mod restarting;
mod roles;
mod rolled_back;
mod scrub;
mod secure;
mod shard_merges;
mod shard_moves;
mod size_splits;
mod snapshot;
mod takeover;
mod tokens;
mod transfer;
mod upgrade;
mod value_faults;
mod value_space;
mod value_transfers;
mod values;
mod view;
mod wiped;
