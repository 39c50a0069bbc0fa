//! What can go wrong in a step.

use flotilla_types::NodeId;

use crate::codec::PacketError;

/// A step was refused. Unless a variant says otherwise nothing changed, and retrying the same input does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The bytes are no packet of this protocol.
    #[error("malformed membership packet: {0}")]
    Malformed(#[from] PacketError),
    /// The packet is longer than `packet_bytes_max`.
    #[error("membership packet of {bytes} bytes")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The sender, known from its certificate, wrote another node's id into the packet.
    #[error("packet from {from} claims to be from {claimed}")]
    WrongSender {
        /// Who sent it.
        from: NodeId,
        /// Whom it names.
        claimed: NodeId,
    },
    /// The packet comes from ourselves, or asks us to probe ourselves for ourselves. State may have changed where
    /// the packet carried news; that is harmless.
    #[error("packet from or about this node")]
    Loop,
    /// A node that is not known yet, while as many as can be are known.
    #[error("too many members")]
    TooManyMembers,
    /// A new seed, while as many as can be are kept.
    #[error("too many seeds")]
    TooManySeeds,
    /// This node has left. It comes back as a new [`crate::Membership`] with a higher generation.
    #[error("this node has left the cluster")]
    Left,
    /// A packet could not be written. That is a fault of this crate; state may have changed.
    #[error("a membership packet could not be written")]
    Encode,
}

impl From<foca::Error> for StepError {
    fn from(error: foca::Error) -> Self {
        match error {
            foca::Error::DataFromOurselves | foca::Error::IndirectForOurselves => Self::Loop,
            foca::Error::Encode(_) => Self::Encode,
            _ => Self::Malformed(PacketError::Trailing),
        }
    }
}
