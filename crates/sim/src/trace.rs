//! Frames as text, for the event log of a failing seed.

use flotilla_replication::{Input, work};
use flotilla_types::NodeId;
use flotilla_wire::{decode, peer};

use crate::network::{CallKind, Frame};

/// The content of a frame.
pub(crate) fn describe(from: NodeId, frame: &Frame) -> String {
    match frame {
        Frame::Raft(bytes) => match work::unpack::<u64>(from, bytes.clone()) {
            Ok(inputs) => inputs.iter().map(input).collect::<Vec<_>>().join(" | "),
            Err(error) => format!("unparsable frame: {error}"),
        },
        Frame::Member(bytes) => format!("membership, {} bytes", bytes.len()),
        Frame::Call { call, kind: CallKind::Objects, .. } => format!("call {call} for objects"),
        Frame::Call { call, kind: CallKind::Rpc, body } => match decode::<peer::Request>(body.clone()) {
            Ok(peer::Request { kind: Some(kind) }) => format!("call {call} {}", request(&kind)),
            _ => format!("call {call}, unparsable"),
        },
        Frame::Answer { call, body } => format!("answer to call {call}, {} bytes", body.len()),
    }
}

fn input(input: &Input<u64>) -> String {
    match input {
        Input::Raft { shard, message, .. } => format!(
            "{shard} {:?} {}→{} {} at {} commit {} entries {}{}",
            message.kind,
            message.from,
            message.to,
            message.term,
            message.index,
            message.commit,
            message.entries.len(),
            if message.reject { " rejects" } else { "" },
        ),
        Input::PeerSynced { sequence, .. } => format!("peer synced {sequence}"),
        Input::NodeHeartbeat { heartbeat, .. } => format!(
            "heartbeat {} recovered {} synced {} recovery_complete {} of you {} lost {:?}",
            heartbeat.incarnation,
            heartbeat.recovered,
            heartbeat.synced,
            heartbeat.recovery_complete,
            heartbeat.your_incarnation,
            heartbeat.you_lost_up_to
        ),
        _ => "not a frame".to_owned(),
    }
}

fn request(kind: &peer::request::Kind) -> String {
    use peer::request::Kind;
    match kind {
        Kind::Propose(ask) => format!("propose to s{}, {} bytes", ask.shard, ask.command.len()),
        Kind::Query(ask) => format!("query of s{}", ask.shard),
        Kind::Feed(feed) => format!("feed from version {}", feed.version),
        Kind::Authority(_) => "the authority".to_owned(),
        Kind::CertifyNode(_) => "certify node".to_owned(),
        Kind::ReadOperations(_) => "operations".to_owned(),
        Kind::Scrub(scrub) => format!("scrub, start: {}", scrub.start),
        Kind::ReadFingerprints(read) => format!("fingerprints of r{}", read.replica),
        Kind::GiveUp(order) => format!("give up r{}, which differs at {}", order.replica, order.index),
        Kind::ReadComparisons(_) => "comparisons".to_owned(),
        Kind::ReadValueTraffic(_) => "value traffic".to_owned(),
        Kind::Prefetch(_) => "prefetch".to_owned(),
        Kind::AskPlacement(ask) => format!("placement, question {} on s{}", ask.question, ask.shard),
        Kind::ReadCapacity(_) => "capacity".to_owned(),
        Kind::ReadLoad(_) => "load".to_owned(),
        Kind::RotateAuthority(_) => "rotate the authority".to_owned(),
        Kind::CertifyClientPorts(certify) => format!("certify {}", certify.hosts.join(",")),
    }
}
