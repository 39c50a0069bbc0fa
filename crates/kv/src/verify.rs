//! Checks that the counts of a state, its records and what it keeps of their expiries agree. Reads all records
//! and holds those that expire in memory: for tests.

use flotilla_storage::{MachineError, StateReader};
use flotilla_types::KeyRange;

use crate::{
    expiries::{DISAGREES, Form},
    pages::Pages,
    place::{Place, decode_bytes},
    record::StoredRecord,
    stats::Footprint,
    system::System,
};

/// What [`verify`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Stored records of users.
    pub records: u64,
    /// Those of them that expire.
    pub expiring: u64,
    /// The first expiry, Unix milliseconds.
    pub first_expiry_ms: Option<u64>,
}

/// Checks a machine's state, as [`system`](flotilla_storage::StateMachine::system) returned it, against its
/// records. After a split that is the own half of its shard: records of the other half, which it may still have, are
/// ignored, and its places of them must be as many as the state says. After a merge some records have no places yet.
///
/// # Errors
/// They disagree, do not parse, or cannot be read.
pub fn verify(system: &[u8], records: &dyn StateReader) -> Result<Verified, MachineError> {
    let (system, _) = System::decode(system)?;
    let (mut count, mut bytes, mut expected) = (0, 0, Vec::new());
    for record in Pages::new(system.expiries.keys(), records) {
        let (key, value) = record?;
        let footprint = Footprint::of(&key, &StoredRecord::decode(value)?);
        (count, bytes) = (count + 1, bytes + footprint.bytes);
        expected.extend(footprint.expires_at_ms.map(|at_ms| (Place::new(at_ms, key), footprint.bytes)));
    }
    expected.sort();
    let expiring = expected.len() as u64;
    let first_expiry_ms = expected.first().map(|(place, _)| place.at_ms);
    let sum_of_all_ms: u128 = expected.iter().map(|(place, _)| u128::from(place.at_ms)).sum();
    expected.retain(|(place, _)| !system.expiries.is_unplaced(&place.key));
    let unplaced = expiring - expected.len() as u64;
    let first_place_ms = expected.first().map(|(place, _)| place.at_ms);
    let expiries = system.expiries;
    let no_earlier = first_place_ms.is_none_or(|at_ms| at_ms >= expiries.none_before_ms);
    let sums_agree = expiries.form == Form::Memory || (expiries.sum_ms == sum_of_all_ms && no_earlier);
    let counts = (system.records, system.bytes, expiries.count, expiries.unplaced());
    if counts != (count, bytes, expiring, unplaced) || !sums_agree {
        return Err(DISAGREES);
    }
    match &expiries.form {
        Form::Memory => expected.clear(),
        Form::Converting(to) => expected.retain(|(place, _)| place <= to),
        Form::Records => {}
    }
    let (mut expected, mut foreign) = (expected.into_iter(), 0);
    for record in Pages::new(KeyRange::internal(), records) {
        let (key, value) = record?;
        let found = (Place::of_stored_key(&key)?, decode_bytes(&value)?);
        if !expiries.owns(&found.0) {
            foreign += 1;
            let is_missed = expiries.form == Form::Records && found.0.at_ms < expiries.none_before_ms;
            if is_missed {
                return Err(DISAGREES);
            }
        } else if expected.next() != Some(found) {
            return Err(DISAGREES);
        }
    }
    let agree = expected.next().is_none() && foreign == expiries.foreign();
    if agree { Ok(Verified { records: count, expiring, first_expiry_ms }) } else { Err(DISAGREES) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use flotilla_storage::StateMachine as _;

    use super::*;
    use crate::{
        place::encode_bytes,
        testing::{Replica, key, put, put_expiring},
    };

    #[test]
    fn what_disagrees_is_found() {
        let mut replica = Replica::default();
        replica.switch(1, 4).unwrap();
        replica.apply(2, &[put("a", "1"), put_expiring("b", "1", 50), put_expiring("c", "1", 40)]);
        let system = replica.machine.system();
        let check = |change: &dyn Fn(&mut BTreeMap<Bytes, Bytes>)| {
            let mut records = replica.records.clone();
            change(&mut records.0);
            verify(&system, &records)
        };
        let found = Verified { records: 3, expiring: 2, first_expiry_ms: Some(40) };
        assert_eq!(check(&|_| {}).unwrap(), found);
        let stored = Place::new(50, key("b")).stored_key();
        for lost in [key("a"), key("b"), stored.clone()] {
            assert!(check(&|records| drop(records.remove(&lost))).is_err());
        }
        assert!(check(&|records| drop(records.insert(stored.clone(), Bytes::new()))).is_err());
        let surplus = Place::new(60, key("b")).stored_key();
        assert!(check(&|records| drop(records.insert(surplus.clone(), encode_bytes(8)))).is_err());
        let other = Place::new(40, key("c")).stored_key();
        assert!(check(&|records| drop(records.insert(other.clone(), encode_bytes(9)))).is_err());
    }
}
