//! What a pull wants: objects, and what they are to whoever names them.
//!
//! What an object needs follows from what it is and from its bytes. The bytes alone say nothing: those of a chunk are
//! a client's, and may look like a manifest. So a peer cannot make the chain of objects longer than
//! [`What`] allows.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use flotilla_storage::{EngineError, ListRefs, Manifest, StateEngine};
use flotilla_types::{Checkpoint, ObjectId, ObjectRef, Tables};

/// What an object is to whoever names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum What {
    /// It needs no other.
    Plain,
    /// It lists pieces.
    Manifest,
    /// It has records, which may refer to objects.
    Piece,
    /// An entry, a record or a list refers to it.
    Part {
        /// Levels of lists.
        height: u8,
        /// Its length, or how much it covers.
        bytes: u64,
    },
}

/// An object that a pull wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Wanted {
    pub(super) id: ObjectId,
    pub(super) what: What,
    /// Its length; zero if that is not known.
    pub(super) bytes: u32,
}

/// An object is not what it is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotAsSaid;

/// What was found of wanted objects, and of all that they need.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) missing: Vec<Wanted>,
    /// How many are here, as far as they were looked at.
    pub(super) here: usize,
    /// Whether one that is here is not what it is said to be.
    pub(super) is_invalid: bool,
}

impl Wanted {
    /// The objects that a checkpoint names.
    pub(super) fn of_checkpoint(checkpoint: &Checkpoint) -> Vec<Self> {
        let plain = |id| Self { id, what: What::Plain, bytes: 0 };
        let system = checkpoint.system.map(plain);
        let named: Vec<_> = match &checkpoint.tables {
            // The pieces of this format refer to nothing.
            Tables::Pieces { base, runs } => base.iter().chain(runs).copied().map(plain).collect(),
            Tables::Manifests(tables) => {
                let manifest = |id| Self { id, what: What::Manifest, bytes: 0 };
                tables.iter().map(|table| manifest(table.manifest)).collect()
            }
        };
        named.into_iter().chain(system).collect()
    }

    /// An object that something refers to.
    pub(super) fn of_ref(reference: &ObjectRef) -> Self {
        let ObjectRef { id, height, bytes } = *reference;
        // The length of a list is not said; it is far below what is below it.
        let length = if height == 0 { u32::try_from(bytes).unwrap_or(u32::MAX) } else { 0 };
        Self { id, what: What::Part { height, bytes }, bytes: length }
    }

    fn is_part(&self) -> bool {
        matches!(self.what, What::Part { .. })
    }

    /// Stores the object, which needs these.
    pub(super) fn import(
        &self,
        engine: &dyn StateEngine,
        object: Bytes,
        children: &[ObjectId],
    ) -> Result<(), EngineError> {
        if self.is_part() {
            engine.import_part(self.id, object, children)
        } else {
            engine.import(self.id, object, children)
        }
    }

    /// What the object needs, by its bytes, which match its id.
    pub(super) fn needs(
        &self,
        engine: &dyn StateEngine,
        lists: ListRefs,
        object: &Bytes,
    ) -> Result<Vec<Self>, NotAsSaid> {
        match self.what {
            What::Plain => Ok(Vec::new()),
            // One that does not parse is of no use to anybody, and refused where it is read.
            What::Manifest => {
                let pieces = Manifest::decode(object.clone()).unwrap_or_default().pieces.into_iter();
                Ok(pieces.map(|piece| Self { id: piece.id, what: What::Piece, bytes: piece.bytes }).collect())
            }
            What::Piece => Ok(engine.piece_refs(object).unwrap_or_default().iter().map(Self::of_ref).collect()),
            What::Part { height: 0, bytes } if object.len() as u64 == bytes => Ok(Vec::new()),
            What::Part { height: 0, .. } => Err(NotAsSaid),
            What::Part { height, bytes } => {
                let refs = lists(&ObjectRef { id: self.id, height, bytes }, object).map_err(|_| NotAsSaid)?;
                let is_lower = |below: &ObjectRef| below.height < height;
                if refs.iter().all(is_lower) { Ok(refs.iter().map(Self::of_ref).collect()) } else { Err(NotAsSaid) }
            }
        }
    }
}

/// Looks for objects and for all that they need. Reads lists, manifests, and pieces that lack something. Lists that are
/// here as something else get to know what they need. What entries and records refer to is read too, unless somebody
/// has read it since the start: a replica says that it has it.
pub(super) fn find(
    engine: &dyn StateEngine,
    lists: ListRefs,
    wanted: impl IntoIterator<Item = Wanted>,
) -> Result<Found, EngineError> {
    let (mut found, mut seen): (Found, HashSet<Wanted>) = (Found::default(), HashSet::new());
    let mut level: Vec<_> = wanted.into_iter().filter(|wanted| seen.insert(*wanted)).collect();
    while !level.is_empty() {
        let (parts, others): (Vec<_>, Vec<_>) = level.iter().partition(|wanted| wanted.is_part());
        let mut lacking: HashSet<_> = engine.missing(&ids_of(&others)).into_iter().collect();
        lacking.extend(engine.missing_or_damaged(&ids_of(&parts))?);
        let mut below = Vec::new();
        for wanted in level {
            if lacking.contains(&wanted.id) {
                found.missing.push(wanted);
                continue;
            }
            found.here += 1;
            let is_whole = || lacking.is_empty() || engine.missing(&[wanted.id]).is_empty();
            if wanted.what == What::Plain || (wanted.what == What::Piece && is_whole()) {
                continue;
            }
            if let What::Part { height: 0, bytes } = wanted.what {
                // It is verified by now, and needs nothing: its length says all.
                match engine.object_bytes(wanted.id) {
                    Some(found_bytes) => found.is_invalid |= found_bytes != bytes,
                    None => {
                        // It was found damaged just now.
                        found.here -= 1;
                        found.missing.push(wanted);
                    }
                }
                continue;
            }
            let object = match engine.object(wanted.id) {
                Ok(object) => object,
                Err(EngineError::Object(_)) => {
                    // It was found damaged just now.
                    found.here -= 1;
                    found.missing.push(wanted);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match wanted.needs(engine, lists, &object) {
                Ok(needs) => {
                    if matches!(wanted.what, What::Part { height: 1.., .. }) {
                        wanted.import(engine, object, &ids_of(&needs))?;
                    }
                    below.extend(needs);
                }
                Err(NotAsSaid) => found.is_invalid = true,
            }
        }
        level = below.into_iter().filter(|wanted| seen.insert(*wanted)).collect();
    }
    Ok(found)
}

/// The objects, each once.
pub(super) fn ids_of(wanted: &[Wanted]) -> Vec<ObjectId> {
    wanted.iter().map(|wanted| wanted.id).collect::<BTreeSet<_>>().into_iter().collect()
}
