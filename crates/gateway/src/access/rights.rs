//! The table of rights: which role may do what.

use std::fmt;

use flotilla_types::Role;

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// Whether the node lives and serves. Needs no key.
    Probe,
    /// See the cluster: status, nodes, shards, operations, decisions of placement, events, metrics, settings.
    Inspect,
    /// Read records of the key's collections.
    Read,
    /// Write records of the key's collections.
    Write,
    /// Run the cluster: nodes, shards, rebalancing, collections, settings, upgrades.
    Operate,
    /// Give and take access: client keys, join tokens, the authority.
    Administer,
}

/// Each right, what it covers, and the roles that have it. The gateways' checks and the documentation are
/// this table.
pub const TABLE: [(Right, &str, &[Role]); 6] = [
    (Right::Probe, "liveness, health and readiness", &Role::ALL),
    (
        Right::Inspect,
        "status, nodes, shards, operations, decisions of placement, events, metrics, settings",
        &Role::ALL,
    ),
    (Right::Read, "read records of the key's collections", &[Role::Reader, Role::Writer, Role::Admin]),
    (Right::Write, "write records of the key's collections", &[Role::Writer, Role::Admin]),
    (Right::Operate, "nodes, shards, rebalancing, collections, settings, upgrades", &[Role::Operator, Role::Admin]),
    (Right::Administer, "client keys, join tokens, audit log, authority", &[Role::Admin]),
];

impl Right {
    /// Whether a role includes this right.
    #[must_use]
    pub fn is_held_by(self, role: Role) -> bool {
        TABLE.iter().any(|(right, _, roles)| *right == self && roles.contains(&role))
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Probe => "probe",
            Self::Inspect => "inspect",
            Self::Read => "read records",
            Self::Write => "write records",
            Self::Operate => "operate",
            Self::Administer => "administer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_table_is_this_one() {
        let mut rows = vec![
            "| right | covers | reader | writer | operator | admin |".to_owned(),
            "|---|---|---|---|---|---|".to_owned(),
        ];
        for (right, covers, _) in TABLE {
            let cells: Vec<_> = Role::ALL.iter().map(|role| if right.is_held_by(*role) { "yes" } else { "" }).collect();
            rows.push(format!("| {right} | {covers} | {} |", cells.join(" | ")));
        }
        let documented = include_str!("../../README.md");
        assert!(documented.contains(&rows.join("\n")), "the README must have:\n{}", rows.join("\n"));
    }
}
