//! All scenarios, in one table.

mod clocks;
mod disks;
mod files;
mod network;
mod processes;
mod shape;

use crate::{
    scenario::{Needs, Scenario, Set},
    support::{SMALL, SMALL_WITH_SLED},
};

const BASE: Scenario = Scenario::DEFAULT;

macro_rules! fault {
    ($path:path) => {
        |ground| Box::pin($path(ground))
    };
}

/// Every scenario.
pub const ALL: &[Scenario] = &[
    // ── processes ──────────────────────────────────────────────────────────
    Scenario {
        name: "each_node_is_killed_in_turn",
        about: "kill -9 of one node after the other",
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
        about: "kill -9 of changing nodes that checkpoint and truncate all the time",
        arguments: &SMALL,
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
        name: "nodes_stutter",
        about: "short SIGSTOPs of changing nodes",
        fault: fault!(processes::stutter),
        ..BASE
    },
    Scenario {
        name: "nodes_are_restarted_cleanly_in_turn",
        about: "SIGTERM and start of one node after the other",
        fault: fault!(processes::rolling_restart),
        ..BASE
    },
    Scenario {
        name: "a_node_is_killed_while_it_starts",
        about: "kill -9 at growing times after the start",
        arguments: &SMALL,
        fault: fault!(processes::kill_while_starting),
        ..BASE
    },
    // ── network ────────────────────────────────────────────────────────────
    Scenario {
        name: "a_node_is_cut_off",
        about: "a full partition of each node in turn",
        set: Set::Short,
        needs: Needs::Proxy,
        fault: fault!(network::cut_off),
        ..BASE
    },
    Scenario {
        name: "a_node_is_heard_but_does_not_hear",
        about: "one-way partitions, both ways",
        set: Set::Short,
        needs: Needs::Proxy,
        fault: fault!(network::one_way),
        ..BASE
    },
    Scenario {
        name: "two_nodes_see_each_other_only_through_the_third",
        about: "a bridge, over each node in turn",
        needs: Needs::Proxy,
        fault: fault!(network::bridge),
        ..BASE
    },
    Scenario {
        name: "everybody_is_cut_off_from_everybody",
        about: "no node reaches another",
        needs: Needs::Proxy,
        fault: fault!(network::cut_all),
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
        name: "packets_are_lost_and_doubled",
        about: "5 % lost, 3 % doubled",
        needs: Needs::Proxy,
        fault: fault!(network::lose_and_double),
        ..BASE
    },
    Scenario {
        name: "packets_are_delayed_and_reordered",
        about: "0 to 60 ms for each packet, drawn anew",
        set: Set::Short,
        needs: Needs::Proxy,
        fault: fault!(network::delay_and_reorder),
        ..BASE
    },
    Scenario {
        name: "a_cable_is_pulled",
        about: "the link of a node's namespace goes down, clients' traffic included",
        needs: Needs::Cable,
        fault: fault!(network::pull_cable),
        ..BASE
    },
    Scenario {
        name: "most_cables_are_pulled",
        about: "two of three links go down",
        needs: Needs::Cable,
        fault: fault!(network::pull_most_cables),
        ..BASE
    },
    // ── disks ──────────────────────────────────────────────────────────────
    Scenario {
        name: "a_node_loses_power",
        about: "the file system is shut down without its journal, the node killed, the journal replayed",
        set: Set::Short,
        needs: Needs::Power,
        arguments: &SMALL,
        fault: fault!(disks::power_cut),
        ..BASE
    },
    Scenario {
        name: "all_nodes_lose_power",
        about: "the same, for all nodes at once",
        needs: Needs::Power,
        arguments: &SMALL,
        fault: fault!(disks::power_cut_of_all),
        ..BASE
    },
    Scenario {
        name: "a_disk_is_full",
        about: "no space is left on one node's disk, until there is again",
        set: Set::Short,
        needs: Needs::Disk,
        fault: fault!(disks::full),
        ..BASE
    },
    Scenario {
        name: "the_log_has_no_space",
        about: "the log's write fails for want of space",
        needs: Needs::Failpoints,
        fault: fault!(disks::log_without_space),
        ..BASE
    },
    Scenario {
        name: "objects_have_no_space",
        about: "checkpoints find no space on one node for a while; it must get over it by itself",
        needs: Needs::Failpoints,
        arguments: &SMALL,
        fault: fault!(disks::objects_without_space),
        ..BASE
    },
    Scenario {
        name: "an_fsync_of_the_log_fails",
        about: "the log's fsync fails: the node must end and come back",
        set: Set::Short,
        needs: Needs::Failpoints,
        panics: Some("raft-engine"),
        fault: fault!(disks::log_sync_fails),
        ..BASE
    },
    Scenario {
        name: "an_fsync_fails_after_the_data_arrived",
        about: "the log reports a failure of what is durable all the same",
        needs: Needs::Failpoints,
        fault: fault!(disks::written_but_failed),
        ..BASE
    },
    Scenario {
        name: "an_fsync_of_objects_fails",
        about: "checkpoints cannot be made durable: the store refuses all further work",
        needs: Needs::Failpoints,
        arguments: &SMALL,
        fault: fault!(disks::object_sync_fails),
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
        arguments: &SMALL,
        // The replica that meets the damage is given up and replaced.
        panics: Some("raft-0.7"),
        fault: fault!(files::flip_in_log),
        ..BASE
    },
    Scenario {
        name: "a_bit_of_an_object_flips",
        about: "one bit in each segment of objects of a stopped node",
        arguments: &SMALL,
        fault: fault!(files::flip_in_objects),
        ..BASE
    },
    Scenario {
        name: "damaged_objects_are_to_be_folded",
        about: "many bits of a node's objects flip, and the next checkpoints need them",
        arguments: &SMALL,
        fault: fault!(files::fold_damaged_objects),
        ..BASE
    },
    Scenario {
        name: "a_bit_of_the_view_flips",
        about: "one bit in each file of a stopped node's view",
        arguments: &SMALL_WITH_SLED,
        panics: Some("sled-0"),
        fault: fault!(files::flip_in_view),
        ..BASE
    },
    Scenario {
        name: "a_bit_of_a_small_file_flips",
        about: "one bit in each of the other files of a data folder, one file after the other",
        arguments: &SMALL_WITH_SLED,
        fault: fault!(files::flip_in_small_files),
        ..BASE
    },
    Scenario {
        name: "a_data_folder_is_deleted",
        about: "a node loses everything and joins anew",
        set: Set::Short,
        fault: fault!(files::wipe),
        ..BASE
    },
    Scenario {
        name: "a_data_folder_is_rolled_back",
        about: "an old copy of a node's folder is put back",
        set: Set::Short,
        arguments: &SMALL,
        fault: fault!(files::roll_back),
        ..BASE
    },
    Scenario {
        name: "a_view_is_deleted",
        about: "a killed node comes back without its view",
        arguments: &SMALL_WITH_SLED,
        fault: fault!(files::wipe_view),
        ..BASE
    },
    Scenario {
        name: "views_are_exchanged",
        about: "killed nodes come back with the other view, and back again",
        arguments: &SMALL,
        fault: fault!(files::exchange_views),
        ..BASE
    },
    // ── clocks ─────────────────────────────────────────────────────────────
    Scenario {
        name: "a_clock_goes_wrong",
        about: "one node's wall clock is hours ahead, then hours behind",
        set: Set::Short,
        needs: Needs::Failpoints,
        fault: fault!(clocks::go_wrong),
        ..BASE
    },
    Scenario {
        name: "clocks_jump",
        about: "the wall clocks of all nodes jump to and fro",
        needs: Needs::Failpoints,
        fault: fault!(clocks::jump),
        ..BASE
    },
    Scenario {
        name: "all_clocks_go_wrong_together",
        about: "the wall clocks of all nodes are an hour ahead, then right, then an hour behind, then right",
        needs: Needs::Failpoints,
        fault: fault!(clocks::all_wrong),
        ..BASE
    },
    // ── shape ──────────────────────────────────────────────────────────────
    Scenario {
        name: "a_dead_node_is_replaced",
        about: "of four nodes one dies for good; its replicas move",
        nodes: 4,
        fault: fault!(shape::replace_dead),
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
        name: "faults_of_all_kinds_mix",
        about: "kills, stops, partitions and delays, drawn from the seed",
        needs: Needs::Proxy,
        arguments: &SMALL,
        fault: fault!(shape::mix),
        ..BASE
    },
];

/// The scenario of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
