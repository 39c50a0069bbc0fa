//! The system state of a checkpoint: the host's part, then the machine's own.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flotilla_storage::MachineError;
use flotilla_types::{ReplicaId, Timestamp};

use super::Chain;

/// The system state of a checkpoint: the host's clock (u64, big-endian), the chain if there is one, then the
/// machine's own state.
pub(super) fn join_system(clock: Timestamp, (chain, maker): (Option<&Chain>, ReplicaId), machine: &[u8]) -> Bytes {
    let mut system = BytesMut::with_capacity(8 + machine.len());
    system.put_u64(clock.0);
    Chain::encode(chain, maker, &mut system);
    system.put_slice(machine);
    system.freeze()
}

/// The clock in a system state, and the rest of it.
pub(super) fn split_system(mut system: Bytes) -> Result<(Timestamp, Bytes), MachineError> {
    if system.is_empty() {
        return Ok((Timestamp::ZERO, system));
    }
    let clock = system.try_get_u64().map_err(|_| MachineError::Corrupt("the system state is cut short"))?;
    if Timestamp(clock) >= Timestamp::MAX {
        return Err(MachineError::Corrupt("the clock of the system state is out of range"));
    }
    Ok((Timestamp(clock), system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_state_with_a_clock_out_of_range_is_corrupt() {
        let split = |clock| split_system(join_system(clock, (None, ReplicaId(1)), b"machine"));
        assert!(matches!(split(Timestamp(7)), Ok((Timestamp(7), machine)) if &machine[..] == b"machine"));
        assert!(matches!(split(Timestamp(u64::MAX)), Err(MachineError::Corrupt(_))));
        assert!(split_system(Bytes::from_static(b"short")).is_err());
    }
}
