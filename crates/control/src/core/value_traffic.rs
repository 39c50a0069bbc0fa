//! What values have cost the network of a node, as nodes tell each other.

use bytes::Bytes;
use flotilla_replication::{LinkTraffic, ValueTraffic};
use flotilla_types::NodeId;
use flotilla_wire::{WireError, decode, encode, peer};

/// Links that are taken from one answer, at most.
const LINKS_MAX: usize = 1_024;

/// As bytes, for a peer.
#[must_use]
pub(crate) fn encode_traffic(traffic: &ValueTraffic) -> Bytes {
    let ValueTraffic { reference_bytes, needed_here, needed_fetched, saved_bytes, .. } = *traffic;
    let links = traffic.links.iter().map(|(node, link)| {
        let LinkTraffic { received_objects, received_bytes, sent_objects, sent_bytes } = *link;
        peer::LinkTraffic { node: node.0, received_objects, received_bytes, sent_objects, sent_bytes }
    });
    encode(&peer::ValueTraffic {
        reference_bytes,
        needed_here,
        needed_fetched,
        saved_bytes,
        links: links.take(LINKS_MAX).collect(),
    })
}

/// The output of [`encode_traffic`].
///
/// # Errors
/// The bytes are something else.
pub(crate) fn decode_traffic(bytes: Bytes) -> Result<ValueTraffic, WireError> {
    let answer: peer::ValueTraffic = decode(bytes)?;
    let peer::ValueTraffic { reference_bytes, needed_here, needed_fetched, saved_bytes, links } = answer;
    let links = links.into_iter().take(LINKS_MAX).map(|link| {
        let peer::LinkTraffic { node, received_objects, received_bytes, sent_objects, sent_bytes } = link;
        (NodeId(node), LinkTraffic { received_objects, received_bytes, sent_objects, sent_bytes })
    });
    Ok(ValueTraffic { reference_bytes, needed_here, needed_fetched, saved_bytes, links: links.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_survives_the_wire_and_is_bounded() {
        let link = LinkTraffic { received_objects: 5, received_bytes: 6, sent_objects: 7, sent_bytes: 8 };
        let links = |count: u64| (0..count).map(|node| (NodeId(node), link)).collect();
        let traffic = |count| ValueTraffic {
            reference_bytes: 1,
            needed_here: 2,
            needed_fetched: 3,
            saved_bytes: 4,
            links: links(count),
        };
        assert_eq!(decode_traffic(encode_traffic(&traffic(3))).expect("it parses"), traffic(3));
        let bounded = LINKS_MAX as u64;
        assert_eq!(decode_traffic(encode_traffic(&traffic(bounded + 1))).expect("it parses"), traffic(bounded));
        assert!(decode_traffic(Bytes::from_static(b"\xff\xff")).is_err());
    }
}
