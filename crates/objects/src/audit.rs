//! Recounts the index from nothing.

use std::collections::HashMap;

use crate::{index::Index, node::Slot};

impl Index {
    /// Panics if a count is not what it should be.
    pub(crate) fn audit(&self) {
        let mut holds: HashMap<Slot, u32> = HashMap::new();
        let mut queue: Vec<Slot> = self.roots.values().flatten().chain(self.pins.keys()).copied().collect();
        queue.extend(&self.ending);
        queue.extend(self.uploads.roots().flat_map(|(_, roots)| roots));
        while let Some(slot) = queue.pop() {
            let count = holds.entry(slot).or_default();
            *count += 1;
            if *count == 1 {
                queue.extend(self.children_of(slot));
            }
        }
        let mut named: HashMap<usize, u32> = HashMap::new();
        for child in self.nodes.iter().flat_map(|(_, node)| self.lists.of(node.children)) {
            *named.entry(child.index()).or_default() += 1;
        }
        let mut live: HashMap<u64, u64> = HashMap::new();
        for (index, node) in &self.nodes {
            let slot = self.slot(node.id).expect("every node is found by its id");
            assert_eq!(slot.index(), index);
            assert_eq!(node.holds, holds.get(&slot).copied().unwrap_or(0), "holds of {}", node.id);
            assert_eq!(node.named, named.get(&index).copied().unwrap_or(0), "names of {}", node.id);
            assert!(node.is_present() || node.holds + node.named > 0, "{} is not needed", node.id);
            assert!(node.is_present() || node.holds > 0 || node.children.is_empty(), "{} has children", node.id);
            if let Some(entry) = self.entry_of(slot) {
                assert!(self.tables.slots(entry.location.segment).contains(&slot), "{} is listed", node.id);
                if node.holds > 0 {
                    *live.entry(entry.location.segment).or_default() += self.record_bytes(slot);
                }
            }
        }
        for (segment, table) in &self.tables.tables {
            assert_eq!(table.live_bytes, live.remove(segment).unwrap_or(0), "live bytes of segment {segment}");
        }
        assert!(live.is_empty(), "every object is in a segment");
        for slot in &self.damaged {
            let node = &self.nodes[slot.index()];
            assert!(!node.is_present() && node.holds > 0, "{} is not damaged, or not needed", node.id);
        }
        let present = self.nodes.iter().filter(|(_, node)| node.is_present()).count();
        assert_eq!(self.present(), present);
        self.tables.audit();
        self.uploads.audit();
    }
}
