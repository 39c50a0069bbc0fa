//! The table of all scenarios.

mod clocks;
mod disks;
mod files;
mod network;
mod processes;
mod shape;

use crate::{
    scenario::{Needs, Scenario, Set},
    support::{SMALL_LIMITS, SMALL_LIMITS_SLED},
};

const BASE: Scenario = Scenario::DEFAULT;

macro_rules! fault {
    ($path:path) => {
        |testbed| Box::pin($path(testbed))
    };
}

/// Every scenario.
pub const ALL: &[Scenario] = &[
    // ── processes ──────────────────────────────────────────────────────────
    Scenario {
        name: "each_node_is_killed_in_turn",
        about: "kill -9 of each node in turn",
        set: Set::Short,
        fault: fault!(processes::kill_in_turn),
        ..BASE
    },
    Scenario {
        name: "all_nodes_are_killed_at_once",
        about: "kill -9 of all nodes, twice",
        fault: fault!(processes::kill_all),
        ..BASE
    },
    Scenario {
        name: "nodes_are_killed_amid_checkpoints_and_snapshots",
        about: "kill -9 of random nodes while all checkpoint and truncate continuously",
        arguments: &SMALL_LIMITS,
        fault: fault!(processes::kill_amid_checkpoints),
        ..BASE
    },
    Scenario {
        name: "a_node_is_stopped_and_continued",
        about: "SIGSTOP for longer than an election takes, then SIGCONT",
        set: Set::Short,
        fault: fault!(processes::stop_and_continue),
        ..BASE
    },
    Scenario {
        name: "nodes_pause_often",
        about: "short SIGSTOPs of random nodes",
        fault: fault!(processes::pause_often),
        ..BASE
    },
    Scenario {
        name: "nodes_are_restarted_cleanly_in_turn",
        about: "SIGTERM and restart of each node in turn",
        fault: fault!(processes::rolling_restart),
        ..BASE
    },
    Scenario {
        name: "a_node_is_killed_while_it_starts",
        about: "kill -9 at increasing delays after the start",
        arguments: &SMALL_LIMITS,
        fault: fault!(processes::kill_while_starting),
        ..BASE
    },
    Scenario {
        name: "memory_runs_out",
        about: "the kernel kills a node for lack of memory: it keeps its replicas and can be restarted",
        needs: Needs::MemoryLimit,
        fault: fault!(processes::lack_of_memory),
        ..BASE
    },
    Scenario {
        name: "entries_are_not_applied",
        about: "one node applies nothing for a while: it bounds what waits, and catches up by itself",
        needs: Needs::Failpoints,
        arguments: &["--unapplied-bytes", "65536"],
        fault: fault!(processes::apply_stalls),
        ..BASE
    },
    // ── network ────────────────────────────────────────────────────────────
    Scenario {
        name: "a_node_is_partitioned",
        about: "a full partition of each node in turn",
        set: Set::Short,
        needs: Needs::Proxy,
        fault: fault!(network::isolate_in_turn),
        ..BASE
    },
    Scenario {
        name: "a_partition_is_one_way",
        about: "one-way partitions, in each direction",
        set: Set::Short,
        needs: Needs::Proxy,
        fault: fault!(network::one_way),
        ..BASE
    },
    Scenario {
        name: "two_nodes_reach_only_the_third",
        about: "a bridge partition over each node in turn",
        needs: Needs::Proxy,
        fault: fault!(network::bridge),
        ..BASE
    },
    Scenario {
        name: "all_nodes_are_isolated",
        about: "no node reaches another",
        needs: Needs::Proxy,
        fault: fault!(network::isolate_all),
        ..BASE
    },
    Scenario {
        name: "partitions_come_and_go",
        about: "random links are cut and healed again and again",
        needs: Needs::Proxy,
        fault: fault!(network::flap),
        ..BASE
    },
    Scenario {
        name: "packets_are_lost_and_duplicated",
        about: "5 % lost, 3 % duplicated",
        needs: Needs::Proxy,
        fault: fault!(network::lose_and_duplicate),
        ..BASE
    },
    Scenario {
        name: "packets_are_delayed_and_reordered",
        about: "a random delay of 0 to 60 ms for each packet",
        set: Set::Short,
        needs: Needs::Proxy,
        fault: fault!(network::delay_and_reorder),
        ..BASE
    },
    Scenario {
        name: "a_node_is_unplugged",
        about: "the link of a node's namespace goes down, which cuts off its clients as well",
        needs: Needs::Namespaces,
        fault: fault!(network::unplug_in_turn),
        ..BASE
    },
    Scenario {
        name: "a_majority_is_unplugged",
        about: "the links of two of three nodes go down",
        needs: Needs::Namespaces,
        fault: fault!(network::unplug_majority),
        ..BASE
    },
    // ── disks ──────────────────────────────────────────────────────────────
    Scenario {
        name: "a_node_loses_power",
        about: "the file system is shut down without a flush, the node killed, the journal replayed",
        set: Set::Short,
        needs: Needs::PowerCut,
        arguments: &SMALL_LIMITS,
        fault: fault!(disks::power_cut),
        ..BASE
    },
    Scenario {
        name: "all_nodes_lose_power",
        about: "the same, for all nodes at once",
        needs: Needs::PowerCut,
        arguments: &SMALL_LIMITS,
        fault: fault!(disks::power_cut_of_all),
        ..BASE
    },
    Scenario {
        name: "a_disk_is_full",
        about: "one node's disk is full for a while",
        set: Set::Short,
        needs: Needs::SmallDisk,
        fault: fault!(disks::full),
        ..BASE
    },
    Scenario {
        name: "the_log_has_no_space",
        about: "a write to the log fails with ENOSPC",
        needs: Needs::Failpoints,
        fault: fault!(disks::log_without_space),
        ..BASE
    },
    Scenario {
        name: "objects_have_no_space",
        about: "one node's checkpoints fail with ENOSPC for a while; it must recover by itself",
        needs: Needs::Failpoints,
        arguments: &SMALL_LIMITS,
        fault: fault!(disks::objects_without_space),
        ..BASE
    },
    Scenario {
        name: "an_fsync_of_the_log_fails",
        about: "an fsync of the log fails: the node must exit and can be restarted",
        set: Set::Short,
        needs: Needs::Failpoints,
        panics: Some("raft-engine"),
        fault: fault!(disks::log_sync_fails),
        ..BASE
    },
    Scenario {
        name: "an_fsync_fails_after_the_data_arrived",
        about: "the log reports a failure although the data is durable",
        needs: Needs::Failpoints,
        fault: fault!(disks::written_but_failed),
        ..BASE
    },
    Scenario {
        name: "an_fsync_of_objects_fails",
        about: "an fsync of objects fails: the node must exit, keeps its replicas and can be restarted",
        needs: Needs::Failpoints,
        arguments: &SMALL_LIMITS,
        fault: fault!(disks::object_sync_fails),
        ..BASE
    },
    Scenario {
        name: "objects_fail_with_an_io_error",
        about: "a write of objects fails: the node must exit, keeps its replicas and can be restarted",
        needs: Needs::Failpoints,
        arguments: &SMALL_LIMITS,
        fault: fault!(disks::objects_fail),
        ..BASE
    },
    Scenario {
        name: "a_node_restarts_on_a_full_disk",
        about: "a node on a full disk is killed and starts again, in the space of its ballast file",
        needs: Needs::SmallDisk,
        arguments: &["--ballast-bytes", "33554432"],
        fault: fault!(disks::full_at_start),
        ..BASE
    },
    Scenario {
        name: "a_disk_is_slow",
        about: "each fsync of one node's log takes 100 ms longer",
        needs: Needs::Failpoints,
        fault: fault!(disks::slow),
        ..BASE
    },
    // ── files ──────────────────────────────────────────────────────────────
    Scenario {
        name: "a_bit_of_the_log_flips",
        about: "one bit somewhere in a stopped node's log",
        set: Set::Short,
        arguments: &SMALL_LIMITS,
        // The replica that finds the damage is given up and replaced.
        panics: Some("raft-0.7"),
        fault: fault!(files::flip_in_log),
        ..BASE
    },
    Scenario {
        name: "a_bit_of_an_object_flips",
        about: "one bit in each object segment of a stopped node",
        arguments: &SMALL_LIMITS,
        fault: fault!(files::flip_in_objects),
        ..BASE
    },
    Scenario {
        name: "damaged_objects_are_folded",
        about: "many bits of a node's objects flip, and the next checkpoints read them",
        arguments: &SMALL_LIMITS,
        fault: fault!(files::fold_damaged_objects),
        ..BASE
    },
    Scenario {
        name: "a_bit_of_the_view_flips",
        about: "one bit in each file of a stopped node's view",
        arguments: &SMALL_LIMITS_SLED,
        panics: Some("sled-0"),
        fault: fault!(files::flip_in_view),
        ..BASE
    },
    Scenario {
        name: "a_bit_of_a_small_file_flips",
        about: "one bit in each of the other files of a data folder, one file at a time",
        arguments: &SMALL_LIMITS_SLED,
        fault: fault!(files::flip_in_small_files),
        ..BASE
    },
    Scenario {
        name: "a_data_folder_is_deleted",
        about: "a node loses all its data and joins again as a new node",
        set: Set::Short,
        fault: fault!(files::wipe),
        ..BASE
    },
    Scenario {
        name: "a_data_folder_is_rolled_back",
        about: "an old copy of a node's folder is restored",
        set: Set::Short,
        arguments: &SMALL_LIMITS,
        fault: fault!(files::roll_back),
        ..BASE
    },
    Scenario {
        name: "a_view_is_deleted",
        about: "a killed node restarts without its view",
        arguments: &SMALL_LIMITS_SLED,
        fault: fault!(files::wipe_view),
        ..BASE
    },
    Scenario {
        name: "view_kinds_are_switched",
        about: "killed nodes restart with the other kind of view, and back again",
        arguments: &SMALL_LIMITS,
        fault: fault!(files::switch_views),
        ..BASE
    },
    // ── clocks ─────────────────────────────────────────────────────────────
    Scenario {
        name: "a_clock_is_wrong",
        about: "one node's wall clock is hours slow, 400 ms fast, then hours fast",
        set: Set::Short,
        needs: Needs::Failpoints,
        fault: fault!(clocks::shift_one),
        ..BASE
    },
    Scenario {
        name: "clocks_jump",
        about: "the wall clocks of all nodes jump back and forth",
        needs: Needs::Failpoints,
        fault: fault!(clocks::jump),
        ..BASE
    },
    Scenario {
        name: "all_clocks_are_wrong_together",
        about: "the wall clocks of all nodes are an hour fast, then right, then an hour slow, then right",
        needs: Needs::Failpoints,
        fault: fault!(clocks::shift_all),
        ..BASE
    },
    // ── shape ──────────────────────────────────────────────────────────────
    Scenario {
        name: "a_dead_node_is_replaced",
        about: "one of four nodes stays down; its replicas are replaced",
        nodes: 4,
        fault: fault!(shape::replace_dead),
        ..BASE
    },
    Scenario {
        name: "shards_are_split_while_nodes_are_killed",
        about: "shards are split one after the other; nodes are killed in between",
        set: Set::Short,
        arguments: &["--shards", "1"],
        fault: fault!(shape::split_and_kill),
        ..BASE
    },
    Scenario {
        name: "shards_are_merged_while_nodes_are_killed",
        about: "shards are split and merged again in any order; nodes are killed in between",
        set: Set::Short,
        arguments: &["--shards", "1"],
        fault: fault!(shape::merge_and_kill),
        ..BASE
    },
    Scenario {
        name: "a_node_joins_over_a_bad_network",
        about: "a fourth node joins while packets are lost and delayed",
        needs: Needs::Proxy,
        fault: fault!(shape::join_over_bad_network),
        ..BASE
    },
    Scenario {
        name: "faults_of_all_kinds_are_mixed",
        about: "random kills, pauses, partitions and delays",
        needs: Needs::Proxy,
        arguments: &SMALL_LIMITS,
        fault: fault!(shape::mix),
        ..BASE
    },
];

/// The scenario of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
