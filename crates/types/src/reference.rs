//! References: what an entry of the log or a record says about objects that it needs.

use std::{collections::BTreeSet, ops::Deref, sync::Arc};

use bytes::{Buf, BufMut};

use crate::ObjectId;

/// An object that an entry or a record needs, with everything below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// The object.
    pub id: ObjectId,
    /// How many levels of lists it has: 0 for an object that needs no other. What the object needs follows
    /// from this and from its bytes.
    pub height: u8,
    /// Its length, or how many bytes are below it if it is a list.
    pub bytes: u64,
}

impl ObjectRef {
    /// The encoded length, bytes.
    pub const ENCODED_BYTES: usize = 32 + 1 + 8;
    /// Levels of lists at most.
    pub const HEIGHT_MAX: u8 = 2;
}

/// References, ascending and each once. A copy shares them; without any they take no memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refs(Option<Arc<Vec<ObjectRef>>>);

/// Bytes are not references: too few, too many, not ascending, or with an unknown height.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a list of references does not parse")]
pub struct RefsError;

impl Refs {
    /// No references.
    pub const NONE: Self = Self(None);
    /// References of an entry at most, and so of a record.
    pub const MAX: usize = 4_096;

    /// Writes count and references: at least one, and at most [`MAX`](Self::MAX).
    pub fn encode(&self, bytes: &mut impl BufMut, order: ByteOrder) {
        match order {
            ByteOrder::Big => bytes.put_u16(self.len() as u16),
            ByteOrder::Little => bytes.put_u16_le(self.len() as u16),
        }
        for reference in self.iter() {
            bytes.put_slice(reference.id.as_bytes());
            bytes.put_u8(reference.height);
            match order {
                ByteOrder::Big => bytes.put_u64(reference.bytes),
                ByteOrder::Little => bytes.put_u64_le(reference.bytes),
            }
        }
    }

    /// The encoded length.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        2 + self.len() * ObjectRef::ENCODED_BYTES
    }

    /// Reads what [`encode`](Self::encode) wrote, from the start of `bytes`. Each list has one encoding.
    pub fn decode(bytes: &mut impl Buf, order: ByteOrder) -> Result<Self, RefsError> {
        let big = order == ByteOrder::Big;
        let count = if big { bytes.try_get_u16() } else { bytes.try_get_u16_le() };
        let count = usize::from(count.map_err(|_| RefsError)?);
        if !(1..=Self::MAX).contains(&count) || count > bytes.remaining() / ObjectRef::ENCODED_BYTES {
            return Err(RefsError);
        }
        let mut refs: Vec<ObjectRef> = Vec::with_capacity(count);
        for _ in 0..count {
            let mut id = ObjectId([0; 32]);
            bytes.copy_to_slice(&mut id.0);
            let height = bytes.get_u8();
            let covered = if big { bytes.get_u64() } else { bytes.get_u64_le() };
            let reference = ObjectRef { id, height, bytes: covered };
            if height > ObjectRef::HEIGHT_MAX || refs.last().is_some_and(|last| *last >= reference) {
                return Err(RefsError);
            }
            refs.push(reference);
        }
        Ok(Self(Some(Arc::new(refs))))
    }

    /// The objects. An object that is named with two heights is there twice.
    pub fn ids(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.iter().map(|reference| reference.id)
    }
}

impl FromIterator<ObjectRef> for Refs {
    fn from_iter<I: IntoIterator<Item = ObjectRef>>(refs: I) -> Self {
        let refs: BTreeSet<_> = refs.into_iter().collect();
        Self((!refs.is_empty()).then(|| Arc::new(refs.into_iter().collect())))
    }
}

impl Deref for Refs {
    type Target = [ObjectRef];

    fn deref(&self) -> &[ObjectRef] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

/// The order of an integer's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// The highest byte comes first.
    Big,
    /// The lowest byte comes first.
    Little,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refs(count: u64) -> Refs {
        (0..count).map(|n| ObjectRef { id: ObjectId::of(&n.to_le_bytes()), height: (n % 3) as u8, bytes: n }).collect()
    }

    #[test]
    fn references_decode_to_what_was_encoded_and_leave_the_rest() {
        for order in [ByteOrder::Big, ByteOrder::Little] {
            for count in [1, 2, Refs::MAX as u64] {
                let refs = refs(count);
                let mut bytes = Vec::new();
                refs.encode(&mut bytes, order);
                assert_eq!(bytes.len(), refs.encoded_bytes());
                bytes.extend(b"rest");
                let mut rest = &bytes[..];
                assert_eq!(Refs::decode(&mut rest, order), Ok(refs));
                assert_eq!(rest, b"rest");
            }
        }
    }

    #[test]
    fn each_list_has_one_encoding() {
        let mut bytes = Vec::new();
        refs(2).encode(&mut bytes, ByteOrder::Big);
        for cut in 0..bytes.len() {
            assert_eq!(Refs::decode(&mut &bytes[..cut], ByteOrder::Big), Err(RefsError), "{cut}");
        }
        let (first, second) = (bytes[2..43].to_vec(), bytes[43..].to_vec());
        let of = |parts: &[&[u8]]| Refs::decode(&mut &parts.concat()[..], ByteOrder::Big);
        assert!(of(&[&[0, 2], &first, &second]).is_ok());
        for parts in [&[&[0, 2], &second[..], &first[..]][..], &[&[0, 2], &first, &first], &[&[0, 0]]] {
            assert_eq!(of(parts), Err(RefsError));
        }
        let mut high = first.clone();
        high[32] = ObjectRef::HEIGHT_MAX + 1;
        assert_eq!(of(&[&[0, 1], &high]), Err(RefsError));
        let count = (Refs::MAX as u16 + 1).to_be_bytes();
        assert_eq!(of(&[&count, &vec![0; 8_000 * ObjectRef::ENCODED_BYTES]]), Err(RefsError));
    }
}
