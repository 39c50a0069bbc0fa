//! The encoding of the machine's own state in checkpoints: the clock, the counts, the sessions.
//!
//! Format: one version byte (2 once the machine has switched to a later version than the first), then a
//! protobuf message with sessions and sequence numbers in ascending order, so that equal states give equal
//! bytes. Of records that expire it holds the number. From [`ClusterVersion::EXPIRY_RECORDS`] on the other
//! counts of them follow, and how far their places are records; before, a load must look for them. From the first
//! split or merge of the shard on its keys follow, too, how many places of others it has, and which are still to be written.

use std::collections::BTreeMap;

use bytes::{Buf as _, Bytes};
use flotilla_storage::MachineError;
use flotilla_types::{ClusterVersion, KeyRange, SessionId, Timestamp, VersionRange};
use prost::Message;

use crate::{
    DecodeError, OUTCOME_BYTES_MAX,
    codec::{FORMAT_VERSION, check_version, seal_at},
    expiries::{Form, Owned, Stored, Unplaced},
    place::Place,
    session::{Remembered, Session, Sessions},
};

const MALFORMED: MachineError = MachineError::Corrupt("the system state does not parse");

/// The state in a checkpoint besides the records and sessions.
#[derive(Debug)]
pub(crate) struct System {
    /// The version that the machine has switched to.
    pub(crate) version: ClusterVersion,
    pub(crate) clock: Timestamp,
    /// Stored records, due ones included.
    pub(crate) records: u64,
    /// Bytes of their keys and values.
    pub(crate) bytes: u64,
    /// Those of them with an expiry.
    pub(crate) expiries: Stored,
}

/// The version byte of a state that names the machine's version. Until the switch, binaries that know only
/// the first version read the state.
const SWITCHED: u8 = 2;

impl Default for System {
    fn default() -> Self {
        let (version, clock) = (ClusterVersion::FIRST, Timestamp::ZERO);
        Self { version, clock, records: 0, bytes: 0, expiries: Stored::default() }
    }
}

impl System {
    pub(crate) fn encode(&self, sessions: &Sessions) -> Bytes {
        let switched = self.version > ClusterVersion::FIRST;
        let message = SystemMessage {
            clock: self.clock.0,
            records: self.records,
            bytes: self.bytes,
            expiring: self.expiries.count,
            sessions: sessions.iter().map(|(id, session)| session_message(id, session)).collect(),
            version: if switched { self.version.0 } else { 0 },
            expiries: expiries_message(&self.expiries),
        };
        seal_at(if switched { SWITCHED } else { FORMAT_VERSION }, &message)
    }

    /// Decodes the state; empty bytes are the state of a new replica.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, Sessions), MachineError> {
        let Some((format, message)) = bytes.split_first() else { return Ok(Default::default()) };
        let known = VersionRange::supported().max;
        if *format != SWITCHED || known < ClusterVersion(SWITCHED.into()) {
            check_version("system state", Some(*format)).map_err(|error| match error {
                DecodeError::Version { found, known } => MachineError::Version { found, known },
                _ => MALFORMED,
            })?;
        }
        let message = SystemMessage::decode(message).map_err(|_| MALFORMED)?;
        let version = match *format {
            SWITCHED if message.version > ClusterVersion::FIRST.0 => ClusterVersion(message.version),
            SWITCHED => return Err(MALFORMED),
            _ => ClusterVersion::FIRST,
        };
        if version > known {
            return Err(MachineError::Version { found: version.0, known: known.0 });
        }
        let mut sessions = Sessions::default();
        let mut previous = None;
        for message in message.sessions {
            let id = SessionId(message.id);
            if previous >= Some(id) {
                return Err(MALFORMED);
            }
            previous = Some(id);
            sessions.restore(id, session(message)?);
        }
        let system = Self {
            version,
            clock: Timestamp(message.clock),
            records: message.records,
            bytes: message.bytes,
            expiries: expiries(version, message.expiring, message.expiries)?,
        };
        Ok((system, sessions))
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct SystemMessage {
    #[prost(uint64, tag = "1")]
    clock: u64,
    #[prost(uint64, tag = "2")]
    records: u64,
    #[prost(uint64, tag = "3")]
    bytes: u64,
    #[prost(uint64, tag = "4")]
    expiring: u64,
    #[prost(message, repeated, tag = "5")]
    sessions: Vec<SessionMessage>,
    /// Only in a state of a machine that has switched.
    #[prost(uint32, tag = "6")]
    version: u32,
    /// From [`ClusterVersion::EXPIRY_RECORDS`] on, and once the shard was split.
    #[prost(message, optional, tag = "7")]
    expiries: Option<ExpiriesMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExpiriesMessage {
    #[prost(uint64, tag = "1")]
    none_before_ms: u64,
    /// The sum of all expiries, u128.
    #[prost(uint64, tag = "2")]
    sum_high: u64,
    #[prost(uint64, tag = "3")]
    sum_low: u64,
    /// The last place that is a record (its expiry in milliseconds u64, its key); absent once all are.
    #[prost(bytes = "bytes", optional, tag = "4")]
    converted_to: Option<Bytes>,
    /// Once the shard was split or merged, which needs [`ClusterVersion::SPLITS`]: so no older binary meets it.
    #[prost(message, optional, tag = "5")]
    owned: Option<OwnedMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OwnedMessage {
    /// The keys of the shard.
    #[prost(bytes = "bytes", tag = "1")]
    start: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    end: Bytes,
    /// Places of other keys that are records.
    #[prost(uint64, tag = "3")]
    foreign: u64,
    /// Records that expire and have no place, and the first key of theirs; after a merge, which needs
    /// [`ClusterVersion::MERGES`].
    #[prost(uint64, tag = "4")]
    unplaced: u64,
    #[prost(bytes = "bytes", tag = "5")]
    unplaced_from: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionMessage {
    #[prost(fixed64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    acked_below: u64,
    #[prost(uint64, tag = "3")]
    keep_until_ms: u64,
    #[prost(message, repeated, tag = "4")]
    outcomes: Vec<RememberedMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RememberedMessage {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(uint64, tag = "2")]
    expires_at_ms: u64,
    #[prost(bytes = "bytes", optional, tag = "3")]
    outcome: Option<Bytes>,
}

fn expiries_message(expiries: &Stored) -> Option<ExpiriesMessage> {
    let owned = expiries.owned.clone().map(|Owned { keys: KeyRange { start, end }, foreign, unplaced }| {
        let (unplaced, unplaced_from) = unplaced.map_or_else(Default::default, |rest| (rest.count, rest.from));
        OwnedMessage { start, end, foreign, unplaced, unplaced_from }
    });
    let converted_to = match &expiries.form {
        Form::Memory if owned.is_none() => return None,
        Form::Memory => return Some(ExpiriesMessage { owned, ..ExpiriesMessage::default() }),
        Form::Converting(to) => Some([&to.at_ms.to_be_bytes()[..], &to.key].concat().into()),
        Form::Records => None,
    };
    let (sum_high, sum_low) = ((expiries.sum_ms >> 64) as u64, expiries.sum_ms as u64);
    Some(ExpiriesMessage { none_before_ms: expiries.none_before_ms, sum_high, sum_low, converted_to, owned })
}

fn expiries(version: ClusterVersion, count: u64, message: Option<ExpiriesMessage>) -> Result<Stored, MachineError> {
    if version < ClusterVersion::EXPIRY_RECORDS {
        let Some(message) = message else { return Ok(Stored { count, ..Stored::default() }) };
        let owned = message.owned.clone().map(owned).transpose()?;
        let owned = owned.filter(|owned| owned.foreign == 0 && owned.unplaced.is_none());
        let has_others = message != ExpiriesMessage { owned: message.owned.clone(), ..ExpiriesMessage::default() };
        if has_others || owned.is_none() {
            return Err(MALFORMED);
        }
        return Ok(Stored { count, owned, ..Stored::default() });
    }
    let message = message.ok_or(MALFORMED)?;
    let form = match message.converted_to {
        None => Form::Records,
        Some(mut place) => {
            let at_ms = place.try_get_u64().map_err(|_| MALFORMED)?;
            Form::Converting(Place::new(at_ms, Bytes::copy_from_slice(&place)))
        }
    };
    let sum_ms = u128::from(message.sum_high) << 64 | u128::from(message.sum_low);
    let owned = message.owned.map(owned).transpose()?;
    let unplaced = owned.as_ref().and_then(|owned| owned.unplaced.as_ref()).map_or(0, |rest| rest.count);
    if unplaced > count || (unplaced > 0 && (form != Form::Records || version < ClusterVersion::MERGES)) {
        return Err(MALFORMED);
    }
    Ok(Stored { form, count, sum_ms, none_before_ms: message.none_before_ms, owned })
}

fn owned(message: OwnedMessage) -> Result<Owned, MachineError> {
    let OwnedMessage { start, end, foreign, unplaced, unplaced_from } = message;
    let keys = KeyRange { start, end };
    let rest_is_valid = if unplaced > 0 { keys.contains(&unplaced_from) } else { unplaced_from.is_empty() };
    if keys.start >= keys.end || keys.end > KeyRange::of_users().end || !rest_is_valid {
        return Err(MALFORMED);
    }
    let unplaced = (unplaced > 0).then_some(Unplaced { from: unplaced_from, count: unplaced });
    Ok(Owned { keys, foreign, unplaced })
}

fn session_message(id: SessionId, session: &Session) -> SessionMessage {
    SessionMessage {
        id: id.get(),
        acked_below: session.acked_below,
        keep_until_ms: session.keep_until_ms,
        outcomes: session
            .outcomes
            .iter()
            .map(|(sequence, remembered)| RememberedMessage {
                sequence: *sequence,
                expires_at_ms: remembered.expires_at_ms,
                outcome: remembered.outcome.clone(),
            })
            .collect(),
    }
}

fn session(message: SessionMessage) -> Result<Session, MachineError> {
    let mut outcomes = BTreeMap::new();
    for RememberedMessage { sequence, expires_at_ms, outcome } in message.outcomes {
        let valid = sequence > 0
            && expires_at_ms <= message.keep_until_ms
            && outcome.as_ref().is_none_or(|outcome| outcome.len() <= OUTCOME_BYTES_MAX)
            && outcomes.last_key_value().is_none_or(|(last, _)| *last < sequence);
        if !valid {
            return Err(MALFORMED);
        }
        outcomes.insert(sequence, Remembered { expires_at_ms, outcome });
    }
    Ok(Session { acked_below: message.acked_below, keep_until_ms: message.keep_until_ms, outcomes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::seal;

    #[test]
    fn only_a_switched_state_has_a_format_that_old_binaries_refuse() {
        let sessions = Sessions::default();
        let first = System { clock: Timestamp(5), ..System::default() };
        assert_eq!(first.encode(&sessions)[..], *b"\x01\x08\x05");
        let switched = System { version: ClusterVersion(2), ..first };
        let bytes = switched.encode(&sessions);
        assert_eq!(bytes[0], SWITCHED);
        assert_eq!(System::decode(&bytes).unwrap().0.version, ClusterVersion(2));
        let later = System { version: ClusterVersion(99), ..switched };
        assert!(matches!(System::decode(&later.encode(&sessions)), Err(MachineError::Version { found: 99, .. })));
    }

    #[test]
    fn sessions_round_trip() {
        let mut sessions = Sessions::default();
        sessions.remember(SessionId(9), 3, 2, 50, &Bytes::from_static(b"small"));
        sessions.remember(SessionId(9), 4, 2, 60, &Bytes::from(vec![0; OUTCOME_BYTES_MAX + 1]));
        sessions.remember(SessionId(1), 1, 0, 70, &Bytes::new());
        let system = System { clock: Timestamp(5), records: 1, bytes: 2, ..System::default() };
        let bytes = system.encode(&sessions);
        let (restored, mut restored_sessions) = System::decode(&bytes).unwrap();
        assert_eq!(restored.encode(&restored_sessions), bytes);
        sessions.expire(60);
        restored_sessions.expire(60);
        assert_eq!(restored.encode(&restored_sessions), system.encode(&sessions));
        assert_ne!(system.encode(&sessions), bytes);
    }

    #[test]
    fn a_split_state_names_its_keys_and_nonsense_is_refused() {
        let encode = |version, form, start: &'static [u8], end: &'static [u8], foreign| {
            let keys = KeyRange { start: Bytes::from_static(start), end: Bytes::from_static(end) };
            let expiries = Stored { form, owned: Some(Owned { keys, foreign, unplaced: None }), ..Stored::default() };
            System { version: ClusterVersion(version), expiries, ..System::default() }.encode(&Sessions::default())
        };
        let decode = |bytes: &Bytes| System::decode(bytes).map(|(system, sessions)| system.encode(&sessions));
        let converting = || Form::Converting(Place::new(5, Bytes::from_static(b"k")));
        for bytes in [
            encode(1, Form::Memory, b"", b"k", 0),
            encode(3, Form::Memory, b"k", b"l", 0),
            encode(4, converting(), b"k", b"l", 9),
            encode(7, Form::Records, b"k", b"\xff\xff\xff\xff", u64::MAX),
        ] {
            assert_eq!(decode(&bytes).unwrap(), bytes);
        }
        for bytes in [
            encode(3, Form::Memory, b"k", b"l", 1),
            encode(3, converting(), b"k", b"l", 0),
            encode(4, Form::Records, b"k", b"k", 0),
            encode(4, Form::Records, b"l", b"k", 0),
            encode(4, Form::Records, b"k", b"", 0),
            encode(4, Form::Records, b"k", b"\xff\xff\xff\xff\x00", 0),
        ] {
            assert!(matches!(decode(&bytes), Err(MachineError::Corrupt(_))), "{bytes:?}");
        }
    }

    #[test]
    fn damage_and_newer_versions_are_typed_errors() {
        assert!(System::decode(b"").is_ok());
        assert!(matches!(System::decode(b"\x02"), Err(MachineError::Corrupt(_))), "it names no version");
        assert!(matches!(System::decode(b"\x0b"), Err(MachineError::Version { found: 11, known: 10 })));
        assert!(matches!(System::decode(b"\x00"), Err(MachineError::Corrupt(_))));
        let twice = vec![SessionMessage::default(), SessionMessage::default()];
        let bytes = seal(&SystemMessage { sessions: twice, ..SystemMessage::default() });
        assert!(matches!(System::decode(&bytes), Err(MachineError::Corrupt(_))));
    }
}
