//! Manifests: objects that list the pieces of a table, in order.
//!
//! A manifest is a 12-byte header (`FLMF`, version u16, zero u16, count u32) and for each piece: id (32
//! bytes), length, records, length of its footer and the footer's CRC-32C (u32 each), length of its first key
//! (u32), first key. Integers are little-endian; first keys ascend strictly. The object's id is its checksum.
//!
//! A manifest follows from its pieces, and pieces from their records: replicas that fold the same records
//! name the same manifest.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flotilla_types::ObjectId;

const MAGIC: [u8; 4] = *b"FLMF";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 12;
/// A piece without its first key.
const PIECE_BYTES: usize = 32 + 5 * 4;

/// What a table consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Its pieces, by their first keys.
    pub pieces: Vec<PieceRef>,
}

/// A piece of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceRef {
    /// The object.
    pub id: ObjectId,
    /// The key of its first record.
    pub first_key: Bytes,
    /// Its length.
    pub bytes: u32,
    /// How many records it has, deletions included.
    pub records: u32,
    /// The length of the footer at its end; 0 if it has none.
    pub footer_bytes: u32,
    /// The CRC-32C of the footer.
    pub footer_crc: u32,
}

impl Manifest {
    /// The bytes of the object.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let keys_bytes: usize = self.pieces.iter().map(|piece| piece.first_key.len()).sum();
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + self.pieces.len() * PIECE_BYTES + keys_bytes);
        bytes.put_slice(&MAGIC);
        bytes.put_u16_le(VERSION);
        bytes.put_u16_le(0);
        bytes.put_u32_le(self.pieces.len() as u32);
        for piece in &self.pieces {
            bytes.put_slice(piece.id.as_bytes());
            bytes.put_u32_le(piece.bytes);
            bytes.put_u32_le(piece.records);
            bytes.put_u32_le(piece.footer_bytes);
            bytes.put_u32_le(piece.footer_crc);
            bytes.put_u32_le(piece.first_key.len() as u32);
            bytes.put_slice(&piece.first_key);
        }
        bytes.freeze()
    }

    /// The objects that it needs.
    #[must_use]
    pub fn children(&self) -> Vec<ObjectId> {
        self.pieces.iter().map(|piece| piece.id).collect()
    }

    /// Reads a manifest. Each list has one encoding.
    pub fn decode(mut bytes: Bytes) -> Result<Self, &'static str> {
        const SHORT: &str = "a manifest ends too early";
        if !is_manifest(&bytes) {
            return Err("an object is not a manifest of a known version");
        }
        bytes.advance(8);
        let count = bytes.get_u32_le() as usize;
        if count > bytes.len() / PIECE_BYTES {
            return Err(SHORT);
        }
        let mut pieces: Vec<PieceRef> = Vec::with_capacity(count);
        for _ in 0..count {
            if bytes.len() < PIECE_BYTES {
                return Err(SHORT);
            }
            let id = ObjectId::from_slice(&bytes.split_to(32)).ok_or(SHORT)?;
            let [len, records, footer_bytes, footer_crc, key_bytes] = [(); 5].map(|()| bytes.get_u32_le());
            if key_bytes as usize > bytes.len() {
                return Err(SHORT);
            }
            let first_key = bytes.split_to(key_bytes as usize);
            if pieces.last().is_some_and(|last| last.first_key >= first_key) {
                return Err("the pieces of a manifest do not ascend");
            }
            if footer_bytes > len {
                return Err("a footer is longer than its piece");
            }
            pieces.push(PieceRef { id, first_key, bytes: len, records, footer_bytes, footer_crc });
        }
        if !bytes.is_empty() {
            return Err("a manifest is longer than its pieces");
        }
        Ok(Self { pieces })
    }
}

fn is_manifest(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER_BYTES && bytes[..4] == MAGIC && bytes[4..6] == VERSION.to_le_bytes() && bytes[6..8] == [0, 0]
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    fn manifests() -> impl Strategy<Value = Manifest> {
        let key = proptest::collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from);
        let numbers = (any::<u8>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>());
        btree_map(key, numbers, 0..9).prop_map(|pieces| Manifest {
            pieces: pieces
                .into_iter()
                .map(|(first_key, (id, bytes, records, footer_bytes, footer_crc))| PieceRef {
                    id: ObjectId::of(&[id]),
                    first_key,
                    bytes,
                    records,
                    footer_bytes: footer_bytes.min(bytes),
                    footer_crc,
                })
                .collect(),
        })
    }

    #[test]
    fn manifests_round_trip_and_hostile_ones_are_refused_in_proportion() {
        attack(128, manifests(), |manifest| {
            assert_eq!(Manifest::decode(manifest.encode()), Ok(manifest));
        });
        attack(1_000, mutated(manifests().prop_map(|manifest| manifest.encode())), |bytes| {
            let bytes = Bytes::from(bytes);
            if let Ok(manifest) = Proportion::DEFAULT.of(bytes.len(), || Manifest::decode(bytes.clone())) {
                assert_eq!(manifest.encode(), bytes, "one encoding for each list");
            }
        });
    }

    #[test]
    fn the_format_is_fixed() {
        let piece = |id: &[u8], key: &'static str| PieceRef {
            id: ObjectId::of(id),
            first_key: key.into(),
            bytes: 100,
            records: 3,
            footer_bytes: 40,
            footer_crc: 7,
        };
        let manifest = Manifest { pieces: vec![piece(b"1", "a"), piece(b"2", "b")] };
        let id = ObjectId::of(&manifest.encode()).to_string();
        assert_eq!(id, "57c27d0d07e6642bc0c8be858aad4337a4c350543530b4c86428bc9ea58044f6");
    }

    #[test]
    fn other_objects_are_no_manifests() {
        for other in [&b"FLPC\x01\0\0\0\0\0\0\0"[..], b"FLMF\x02\0\0\0\0\0\0\0", b""] {
            assert!(Manifest::decode(Bytes::from_static(other)).is_err());
        }
    }
}
