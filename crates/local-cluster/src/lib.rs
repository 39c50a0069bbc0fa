//! Clusters of real node processes on one machine: starts them, waits for them, and injects faults.
//!
//! [`Cluster`] is for tests: it owns its processes and its folder, and removes both when dropped. [`Layout`]
//! is for `cargo xtask cluster-*`: a file that lists processes which outlive the command that started them.
//! Both use the same command line ([`command`]) and HTTP calls ([`is_ready`], [`has_possible_replicas`],
//! [`status`], [`token`]).
//!
//! Faults beyond signals: a [`Proxy`] between nodes, network namespaces and small disks ([`ClusterOptions`]),
//! failpoints, [`flip_bit`]. Faults that need root say so ([`missing_privilege`]) and clean up after
//! themselves, and after test processes that were killed.
//!
//! Deliberately absent: anything that reads or writes records, and any knowledge of the contents of a
//! data folder, except that the view is a folder called `view`.

mod cluster;
mod disk;
mod error;
mod faults;
mod folder;
mod http;
mod launch;
mod layout;
mod memory;
mod namespaces;
mod ports;
mod privileged;
mod process;
mod proxy;

pub use cluster::{Cluster, ClusterOptions, Network, READY_WITHIN, STOP_WITHIN};
pub use disk::{DISK_TOOLS, POWER_TOOLS};
pub use error::ClusterError;
pub use faults::flip_bit;
pub use folder::WipeScope;
pub use http::{Credentials, TOKEN_TTL, has_possible_replicas, is_ready, status, token};
pub use launch::{Start, built_binary, command};
pub use layout::{LAYOUT_FILE, Layout, Node};
pub use memory::missing_memory_limit;
pub use namespaces::NAMESPACE_TOOLS;
pub use ports::{BASE_STEP, Ports, loopback};
pub use privileged::missing_privilege;
pub use process::{Signal, log_tail};
pub use proxy::{Link, OUTSIDE, Proxy, Traffic};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
