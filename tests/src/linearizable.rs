//! Whether one order of all operations explains what every client was told.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;

use crate::load::{Ask, Recorded, Told};

/// # Errors
/// There is no such order.
pub fn check(history: &[Recorded]) -> anyhow::Result<()> {
    let mut counters: BTreeMap<&str, Vec<&Recorded>> = BTreeMap::new();
    for one in history {
        if let Ask::Add { key, .. } = &one.ask {
            counters.entry(key).or_default().push(one);
        }
    }
    for (key, adds) in counters {
        let mut sums = BTreeSet::new();
        for add in &adds {
            if let Told::Number(sum) = add.told {
                ensure!(sums.insert(sum), "{key} was twice {sum}: {add:?}");
            }
        }
    }
    Ok(())
}
