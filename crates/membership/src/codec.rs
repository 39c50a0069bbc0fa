//! The packet format, version 1. All numbers are big-endian.
//!
//! ```text
//! packet   = version:u8(1) src:identity src_incarnation:u16 dst:identity message [count:u16 member*count]
//! identity = flags:u8 (1 = IPv6, 2 = left) node:u64 generation:u64 renewal:u32 port:u16 ip:4 or 16 bytes
//! message  = tag:u8, then for 1 and 2 probe:u8, for 3 to 6 identity probe:u8
//! member   = identity incarnation:u16 state:u8 (1 alive, 2 suspect, 3 down)
//! ```
//! foca writes the count. Nothing is allocated for a count that a packet claims: a member is allocated when its
//! bytes are read. Any bytes decode to a packet or to an error; none panic.

use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, BufMut};
use flotilla_types::NodeId;
use foca::{Header, Message, State};

use crate::identity::{Identity, Member};

/// The only version that this code writes and reads.
const VERSION: u8 = 1;
const FLAG_IPV6: u8 = 1;
const FLAG_LEFT: u8 = 2;

/// Why bytes are not a packet, or why a packet could not be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The packet ends early.
    #[error("truncated")]
    Truncated,
    /// There are bytes after the packet's end.
    #[error("trailing bytes")]
    Trailing,
    /// An unsupported version.
    #[error("unsupported version {0}")]
    Version(u8),
    /// A flag, message kind or state that does not exist.
    #[error("unknown tag {0}")]
    Tag(u8),
    /// Node id 0, which is invalid.
    #[error("node id 0")]
    NoNode,
    /// The packet does not fit the buffer.
    #[error("does not fit the buffer")]
    Full,
}

impl From<bytes::TryGetError> for PacketError {
    fn from(_: bytes::TryGetError) -> Self {
        Self::Truncated
    }
}

/// A packet, fully decoded before foca sees it, so that an invalid one changes nothing.
pub(crate) struct Packet {
    pub(crate) src: Identity,
    pub(crate) dst: Identity,
    /// Nodes about which the packet has updates.
    pub(crate) about: Vec<NodeId>,
}

impl Packet {
    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, PacketError> {
        let header = get_header(&mut bytes)?;
        let mut about = Vec::new();
        if !bytes.is_empty() {
            for _ in 0..bytes.try_get_u16()? {
                about.push(get_member(&mut bytes)?.id().node());
            }
        }
        if bytes.is_empty() { Ok(Self { src: header.src, dst: header.dst, about }) } else { Err(PacketError::Trailing) }
    }
}

/// The packet format as a foca codec.
pub(crate) struct Codec;

impl foca::Codec<Identity> for Codec {
    type Error = PacketError;

    fn encode_header(&mut self, header: &Header<Identity>, mut buf: impl BufMut) -> Result<(), PacketError> {
        let (tag, inner, probe) = parts(&header.message)?;
        let bytes = 1 + 2 + 1 + size(&header.src) + size(&header.dst) + inner.map_or(0, size) + probe.map_or(0, |_| 1);
        if buf.remaining_mut() < bytes {
            return Err(PacketError::Full);
        }
        buf.put_u8(VERSION);
        put_identity(&header.src, &mut buf);
        buf.put_u16(header.src_incarnation);
        put_identity(&header.dst, &mut buf);
        buf.put_u8(tag);
        if let Some(identity) = inner {
            put_identity(identity, &mut buf);
        }
        if let Some(probe) = probe {
            buf.put_u8(probe);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Identity>, PacketError> {
        get_header(&mut buf)
    }

    fn encode_member(&mut self, member: &foca::Member<Identity>, mut buf: impl BufMut) -> Result<(), PacketError> {
        if buf.remaining_mut() < size(member.id()) + 3 {
            return Err(PacketError::Full);
        }
        put_identity(member.id(), &mut buf);
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 1,
            State::Suspect => 2,
            State::Down => 3,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<foca::Member<Identity>, PacketError> {
        get_member(&mut buf)
    }
}

/// Tag, identity and probe number of a message.
type Parts<'a> = (u8, Option<&'a Identity>, Option<u8>);

fn parts(message: &Message<Identity>) -> Result<Parts<'_>, PacketError> {
    Ok(match message {
        Message::Ping(probe) => (1, None, Some(*probe)),
        Message::Ack(probe) => (2, None, Some(*probe)),
        Message::PingReq { target, probe_number } => (3, Some(target), Some(*probe_number)),
        Message::IndirectPing { origin, probe_number } => (4, Some(origin), Some(*probe_number)),
        Message::IndirectAck { target, probe_number } => (5, Some(target), Some(*probe_number)),
        Message::ForwardedAck { origin, probe_number } => (6, Some(origin), Some(*probe_number)),
        Message::Announce => (7, None, None),
        Message::Feed => (8, None, None),
        Message::Gossip => (9, None, None),
        Message::TurnUndead => (10, None, None),
        // This crate sends no custom broadcasts, so the format has no tag for them.
        Message::Broadcast => return Err(PacketError::Tag(0)),
    })
}

fn get_header(buf: &mut impl Buf) -> Result<Header<Identity>, PacketError> {
    let version = buf.try_get_u8()?;
    if version != VERSION {
        return Err(PacketError::Version(version));
    }
    let src = get_identity(buf)?;
    let src_incarnation = buf.try_get_u16()?;
    let dst = get_identity(buf)?;
    let message = match buf.try_get_u8()? {
        1 => Message::Ping(buf.try_get_u8()?),
        2 => Message::Ack(buf.try_get_u8()?),
        3 => Message::PingReq { target: get_identity(buf)?, probe_number: buf.try_get_u8()? },
        4 => Message::IndirectPing { origin: get_identity(buf)?, probe_number: buf.try_get_u8()? },
        5 => Message::IndirectAck { target: get_identity(buf)?, probe_number: buf.try_get_u8()? },
        6 => Message::ForwardedAck { origin: get_identity(buf)?, probe_number: buf.try_get_u8()? },
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        10 => Message::TurnUndead,
        tag => return Err(PacketError::Tag(tag)),
    };
    Ok(Header { src, src_incarnation, dst, message })
}

fn get_member(buf: &mut impl Buf) -> Result<foca::Member<Identity>, PacketError> {
    let identity = get_identity(buf)?;
    let incarnation = buf.try_get_u16()?;
    let state = match buf.try_get_u8()? {
        1 => State::Alive,
        2 => State::Suspect,
        3 => State::Down,
        tag => return Err(PacketError::Tag(tag)),
    };
    Ok(foca::Member::new(identity, incarnation, state))
}

fn size(identity: &Identity) -> usize {
    1 + 8 + 8 + 4 + 2 + if identity.member.addr.is_ipv6() { 16 } else { 4 }
}

fn put_identity(identity: &Identity, buf: &mut impl BufMut) {
    let Member { node, addr, generation } = &identity.member;
    let v6 = if addr.is_ipv6() { FLAG_IPV6 } else { 0 };
    let left = if identity.left { FLAG_LEFT } else { 0 };
    buf.put_u8(v6 | left);
    buf.put_u64(node.get());
    buf.put_u64(*generation);
    buf.put_u32(identity.renewal);
    buf.put_u16(addr.port());
    match addr.ip() {
        IpAddr::V4(ip) => buf.put_slice(&ip.octets()),
        IpAddr::V6(ip) => buf.put_slice(&ip.octets()),
    }
}

fn get_identity(buf: &mut impl Buf) -> Result<Identity, PacketError> {
    let flags = buf.try_get_u8()?;
    if flags & !(FLAG_IPV6 | FLAG_LEFT) != 0 {
        return Err(PacketError::Tag(flags));
    }
    let node = NodeId(buf.try_get_u64()?);
    if node == NodeId::NONE {
        return Err(PacketError::NoNode);
    }
    let generation = buf.try_get_u64()?;
    let renewal = buf.try_get_u32()?;
    let port = buf.try_get_u16()?;
    let ip = if flags & FLAG_IPV6 == 0 {
        IpAddr::from(buf.try_get_u32()?.to_be_bytes())
    } else {
        IpAddr::from(buf.try_get_u128()?.to_be_bytes())
    };
    let member = Member { node, addr: SocketAddr::new(ip, port), generation };
    Ok(Identity { member, renewal, left: flags & FLAG_LEFT != 0 })
}

#[cfg(test)]
pub(crate) mod tests {
    use foca::Codec as _;
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn identities() -> impl Strategy<Value = Identity> {
        let ip = prop_oneof![
            any::<u32>().prop_map(|ip| IpAddr::from(ip.to_be_bytes())),
            any::<u128>().prop_map(|ip| IpAddr::from(ip.to_be_bytes()))
        ];
        (1..=u64::MAX, any::<u64>(), any::<u32>(), any::<bool>(), ip, any::<u16>()).prop_map(
            |(node, generation, renewal, left, ip, port)| {
                let member = Member { node: NodeId(node), addr: SocketAddr::new(ip, port), generation };
                Identity { member, renewal, left }
            },
        )
    }

    pub(crate) fn messages() -> impl Strategy<Value = Message<Identity>> {
        (0..10, any::<u8>(), identities()).prop_map(|(kind, probe_number, other)| match kind {
            0 => Message::Ping(probe_number),
            1 => Message::Ack(probe_number),
            2 => Message::PingReq { target: other, probe_number },
            3 => Message::IndirectPing { origin: other, probe_number },
            4 => Message::IndirectAck { target: other, probe_number },
            5 => Message::ForwardedAck { origin: other, probe_number },
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            _ => Message::TurnUndead,
        })
    }

    proptest! {
        #[test]
        fn packets_round_trip_and_every_truncation_is_an_error(
            src in identities(), dst in identities(), src_incarnation: u16, message in messages(), update in identities()
        ) {
            let header = Header { src, src_incarnation, dst, message };
            let mut bytes = Vec::new();
            prop_assert_eq!(Codec.encode_header(&header, &mut bytes), Ok(()));
            prop_assert_eq!(Codec.decode_header(bytes.as_slice()), Ok(header));
            let header_bytes = bytes.len();
            bytes.put_u16(1);
            prop_assert_eq!(Codec.encode_member(&foca::Member::down(update.clone()), &mut bytes), Ok(()));
            prop_assert_eq!(Packet::decode(&bytes).map(|packet| packet.about), Ok(vec![update.node()]));
            for cut in (0..bytes.len()).filter(|cut| *cut != header_bytes) {
                prop_assert_eq!(Packet::decode(&bytes[..cut]).err(), Some(PacketError::Truncated));
            }
            bytes.push(0);
            prop_assert_eq!(Packet::decode(&bytes).err(), Some(PacketError::Trailing));
        }

        #[test]
        fn nothing_is_written_to_a_full_buffer(id in identities(), room in 0_usize..26) {
            let mut bytes = Vec::new();
            let result = Codec.encode_member(&foca::Member::alive(id), (&mut bytes).limit(room));
            prop_assert_eq!(result, Err(PacketError::Full));
            prop_assert!(bytes.is_empty());
        }
    }
}
