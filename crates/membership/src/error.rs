//! Errors of a step.

use flotilla_types::NodeId;

use crate::codec::PacketError;

/// A step was refused. Unless a variant says otherwise nothing changed, and retrying the same input does not
/// help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The bytes are not a packet of this protocol.
    #[error("malformed membership packet: {0}")]
    Malformed(#[from] PacketError),
    /// The packet is longer than `packet_bytes_max`.
    #[error("membership packet of {bytes} bytes is too large")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The sender, known from its certificate, wrote another node's id into the packet.
    #[error("packet from {from} claims to be from {claimed}")]
    WrongSender {
        /// The authenticated sender.
        from: NodeId,
        /// The node id in the packet.
        claimed: NodeId,
    },
    /// The packet comes from this node itself, or asks it to probe itself on its own behalf. Updates in the
    /// packet may have been applied, which is harmless.
    #[error("packet from or about this node")]
    Loop,
    /// An unknown node, while [`crate::MEMBERS_MAX`] nodes are known.
    #[error("too many members")]
    TooManyMembers,
    /// A new seed, while there are [`crate::SEEDS_MAX`] seeds.
    #[error("too many seeds")]
    TooManySeeds,
    /// This node has left. It rejoins as a new [`crate::Membership`] with a higher generation.
    #[error("this node has left the cluster")]
    Left,
    /// A packet could not be encoded. That is a bug in this crate; state may have changed.
    #[error("a membership packet could not be encoded")]
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
