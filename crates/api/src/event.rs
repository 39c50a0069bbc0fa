//! Cluster events, as seen by one node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One event. Ids grow by one within one run of a node and have no meaning on other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its id: the `id` of the server-sent event, and what `Last-Event-ID` names.
    pub id: u64,
    /// When this node saw it, in Unix milliseconds.
    pub time_ms: u64,
    /// A stable slug, such as `node_joined` or `leader_changed`.
    pub kind: String,
    /// Details: stable names such as `node` or `shard`, each with a human-readable text.
    #[serde(default)]
    pub detail: BTreeMap<String, String>,
}

/// Answer to `GET /v1/cluster/events?follow=false`: the events that the node still remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventList {
    /// Oldest first.
    pub events: Vec<Event>,
}
