//! Settings of the failure detector and their validation.
//!
//! The defaults suit a LAN or one region: a crash is `Down` after roughly `probe_period_ms × (nodes − 1)`, at
//! most, plus `suspect_after_ms`. They deliberately do not adapt to the size of the cluster.

use std::{
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

/// How often to probe, how long to wait, how much to send. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// One member is probed per period. 100 to 60,000. Shorter finds crashes sooner and costs one ping per
    /// node and period. Keep it at least twice `probe_rtt_ms`, because the indirect probe needs the second
    /// half.
    pub probe_period_ms: u64,
    /// How long a direct answer may take before other members are asked to probe. Should exceed the p99 round
    /// trip, with room for a busy core.
    pub probe_rtt_ms: u64,
    /// How long a suspect has to refute before it is `Down`. At least `probe_period_ms`. Longer tolerates
    /// long pauses (a stopped process, a slow disk), shorter reports crashes sooner.
    pub suspect_after_ms: u64,
    /// How often this node announces itself to members that are down, and to seeds while no member is
    /// present. 500 to 600,000. This heals a partition, in about two of these periods.
    pub announce_down_ms: u64,
    /// How often one random member is asked for all the members it knows. At least 1,000. Recovers updates
    /// that gossip lost.
    pub announce_period_ms: u64,
    /// How often pending updates are gossiped. 50 to 60,000.
    pub gossip_period_ms: u64,
    /// How many members get each gossip or request for an indirect probe. 1 to 16; 3 suffices for most
    /// clusters.
    pub fanout: u8,
    /// How often an update is sent before it is dropped. 1 to 64. About `3 × log10(nodes + 1)`, more on lossy
    /// networks.
    pub transmissions_max: u8,
    /// Largest packet, in bytes. 256 to 1,400. The default fits a QUIC datagram on any path.
    pub packet_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            probe_period_ms: 1_000,
            probe_rtt_ms: 400,
            suspect_after_ms: 3_000,
            announce_down_ms: 5_000,
            announce_period_ms: 30_000,
            gossip_period_ms: 200,
            fanout: 3,
            transmissions_max: 8,
            packet_bytes_max: 1_100,
        }
    }
}

/// A setting is out of range, or two do not fit together. Nothing was changed; do not retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number lies outside its range.
    #[error("{name} must be within {min}..={max}")]
    OutOfRange {
        /// The field.
        name: &'static str,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// `probe_rtt_ms` is more than half of `probe_period_ms`.
    #[error("probe_rtt_ms must be at most half of probe_period_ms")]
    RttTooLong,
    /// `suspect_after_ms` is shorter than `probe_period_ms`.
    #[error("suspect_after_ms must be at least probe_period_ms")]
    SuspicionTooShort,
}

impl Config {
    /// Checks every field against its documented range.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let within = |name, value: u64, min, max| {
            if (min..=max).contains(&value) { Ok(()) } else { Err(ConfigError::OutOfRange { name, min, max }) }
        };
        within("probe_period_ms", self.probe_period_ms, 100, 60_000)?;
        within("probe_rtt_ms", self.probe_rtt_ms, 10, 30_000)?;
        within("suspect_after_ms", self.suspect_after_ms, 100, 600_000)?;
        within("announce_down_ms", self.announce_down_ms, 500, 600_000)?;
        within("announce_period_ms", self.announce_period_ms, 1_000, 3_600_000)?;
        within("gossip_period_ms", self.gossip_period_ms, 50, 60_000)?;
        within("fanout", self.fanout.into(), 1, 16)?;
        within("transmissions_max", self.transmissions_max.into(), 1, 64)?;
        within("packet_bytes_max", self.packet_bytes_max as u64, 256, 1_400)?;
        if self.probe_rtt_ms * 2 > self.probe_period_ms {
            return Err(ConfigError::RttTooLong);
        }
        if self.suspect_after_ms < self.probe_period_ms {
            return Err(ConfigError::SuspicionTooShort);
        }
        Ok(())
    }

    /// Converts to foca's settings. Zeros, which `validate` refuses, become ones.
    pub(crate) fn to_foca(&self) -> foca::Config {
        let fanout = NonZeroUsize::new(self.fanout.into()).unwrap_or(NonZeroUsize::MIN);
        let every = |ms, num_members| Some(foca::PeriodicParams { frequency: Duration::from_millis(ms), num_members });
        foca::Config {
            probe_period: Duration::from_millis(self.probe_period_ms),
            probe_rtt: Duration::from_millis(self.probe_rtt_ms),
            num_indirect_probes: fanout,
            max_transmissions: NonZeroU8::new(self.transmissions_max).unwrap_or(NonZeroU8::MIN),
            suspect_to_down_after: Duration::from_millis(self.suspect_after_ms),
            // Forgetting is an input, given when the metadata group has removed the node: a timer could not
            // know.
            remove_down_after: None,
            max_packet_size: NonZeroUsize::new(self.packet_bytes_max).unwrap_or(NonZeroUsize::MIN),
            notify_down_members: true,
            periodic_announce: every(self.announce_period_ms, NonZeroUsize::MIN),
            periodic_announce_to_down_members: every(self.announce_down_ms, fanout),
            periodic_gossip: every(self.gossip_period_ms, fanout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn inconsistent_settings_are_refused() {
        let rtt = Config { probe_rtt_ms: 600, ..Config::default() };
        assert_eq!(rtt.validate(), Err(ConfigError::RttTooLong));
        let suspicion = Config { suspect_after_ms: 900, ..Config::default() };
        assert_eq!(suspicion.validate(), Err(ConfigError::SuspicionTooShort));
        let packet = Config { packet_bytes_max: 64, ..Config::default() };
        assert!(matches!(packet.validate(), Err(ConfigError::OutOfRange { name: "packet_bytes_max", .. })));
    }
}
