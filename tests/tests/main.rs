//! Tests over real processes: clusters of the `flotilla` binary on the loopback interface, hurt on purpose.
//!
//! Each test starts its own cluster and looks at it from outside, over HTTP and through its logs. Load is made by
//! [`flotilla_tests::support::Workload`], which remembers what it was told about every write, so that losses and doublings show. A test
//! whose load was too thin before the fault is void, and fails.
//!
//! Deliberately absent: retries, fixed sleeps, fixed ports, and assertions on times. Whatever is waited for is polled with
//! a bound. `FLOTILLA_TEST_DIR=path` keeps data and logs in a folder for each test.

mod checker;
mod crash;
mod faults;
mod forming;
mod hostile;
mod leaving;
mod minority;
mod pause;
mod rolled_back;
mod snapshot;
mod takeover;
mod tokens;
mod transfer;
mod view;
mod wiped;
