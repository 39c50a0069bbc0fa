//! The layer rules: who may depend on whom, and which crate owns which library.
//!
//! Arrows go only downwards. A crate may use what its row allows; `below` stands for every lower layer. Crates that a
//! test needs (dev-dependencies) are free. Checked by `cargo xtask lint` and by a test here.

use anyhow::{Result, ensure};

use crate::workspace::{self, Package};

/// How many crates of the workspace one crate may use, the vocabulary (`types`) not counted. The assemblies
/// ([`ASSEMBLIES`]) may use more.
const INTERNAL_MAX: usize = 6;
/// Crates that use more than that all the same, and how many: these numbers may only become smaller.
const OVER_MAX: &[(&str, usize)] = &[("control", 7)];
/// Crates that put everything together.
const ASSEMBLIES: &[&str] = &["node", "sim"];

/// What a crate may use of the workspace.
enum May {
    /// These.
    Use(&'static [&'static str]),
    /// Every lower layer, and these of its own.
    Below(&'static [&'static str]),
}

/// A crate's name without `flotilla-`, its layer, and what it may use.
type Row = (&'static str, u8, May);

const LAYERS: &[Row] = &[
    ("types", 0, May::Use(&[])),
    ("failpoints", 0, May::Use(&[])),
    // Judges histories of anything; knows nothing of Flotilla.
    ("checker", 0, May::Use(&[])),
    // Spoils the bytes of anything; only tests use it.
    ("hostile", 0, May::Use(&[])),
    ("wire", 1, May::Use(&["types"])),
    ("identity", 1, May::Use(&["types"])),
    ("objects", 1, May::Use(&["types", "failpoints"])),
    ("storage", 1, May::Use(&["types"])),
    ("api", 1, May::Use(&["types"])),
    ("membership", 2, May::Use(&["types"])),
    ("placement", 2, May::Use(&["types"])),
    ("consensus", 2, May::Use(&["types", "storage"])),
    ("kv", 2, May::Use(&["types", "storage"])),
    ("meta", 2, May::Use(&["types", "storage", "placement"])),
    ("transport", 2, May::Use(&["types", "wire", "identity"])),
    ("raft-log", 2, May::Use(&["types", "failpoints", "storage"])),
    ("state", 2, May::Use(&["types", "failpoints", "storage", "objects"])),
    // Generic over the state machine: it knows neither kv nor meta.
    (
        "replication",
        3,
        May::Use(&[
            "types",
            "failpoints",
            "wire",
            "identity",
            "objects",
            "storage",
            "api",
            "membership",
            "placement",
            "consensus",
            "transport",
            "raft-log",
            "state",
        ]),
    ),
    // route is pure and below everything that waits; control tries again by its rules.
    ("control", 4, May::Below(&["route"])),
    ("route", 4, May::Use(&["types", "placement"])),
    ("gateway", 5, May::Below(&[])),
    ("gateway-redis", 5, May::Below(&["gateway"])),
    ("client", 5, May::Use(&["types", "api", "route"])),
    ("node", 6, May::Below(&[])),
    ("sim", 6, May::Below(&[])),
    ("local-cluster", 6, May::Use(&["types", "api", "client"])),
    // Outside the product: nothing may use these.
    ("tests", 7, May::Below(&[])),
    ("xtask", 7, May::Use(&["api", "client", "local-cluster", "placement"])),
];

/// Libraries that stay behind one crate's walls, and the crates that may name them.
const OWNERS: &[(&str, &[&str])] = &[
    // raft-log may use raft's entry type, privately, because raft-engine asks for a protobuf 2 message.
    ("raft", &["consensus", "raft-log"]),
    ("raft-proto", &["consensus", "raft-log"]),
    ("protobuf", &["consensus", "raft-log"]),
    ("slog", &["consensus"]),
    ("raft-engine", &["raft-log"]),
    ("sled", &["state"]),
    ("quinn", &["transport"]),
    ("foca", &["membership"]),
    ("rcgen", &["identity"]),
    // The node installs the provider once.
    ("rustls", &["identity", "transport", "node"]),
    ("rustls-webpki", &["identity"]),
    ("axum", &["gateway"]),
    ("redis-protocol", &["gateway-redis"]),
    ("reqwest", &["client", "local-cluster"]),
    ("fastcdc", &["objects"]),
    // So that its registry, which is global, has one way in.
    ("fail", &["failpoints"]),
];

/// Checks the workspace as it is.
pub(crate) fn check_workspace() -> Result<()> {
    let problems = problems(&workspace::metadata()?.packages);
    ensure!(problems.is_empty(), "\n  {}", problems.join("\n  "));
    Ok(())
}

fn problems(packages: &[Package]) -> Vec<String> {
    let mut problems = Vec::new();
    for package in packages {
        let name = short(&package.name);
        let Some(row) = row(name) else {
            problems.push(format!("{name} has no row in the layer table"));
            continue;
        };
        let mut internal = 0;
        for dependency in &package.dependencies {
            let used = short(&dependency.name);
            let owners = OWNERS.iter().find(|(library, _)| *library == dependency.name);
            if owners.is_some_and(|(_, owners)| !owners.contains(&name)) {
                problems.push(format!("{name} may not use the library {used}"));
            }
            if dependency.kind.as_deref() == Some("dev") || packages.iter().all(|other| other.name != dependency.name) {
                continue;
            }
            internal += usize::from(used != "types");
            if !allows(row, used) {
                problems.push(format!("{name} may not use {used}"));
            }
        }
        let max = OVER_MAX.iter().find(|(over, _)| *over == name).map_or(INTERNAL_MAX, |(_, max)| *max);
        if internal > max && !ASSEMBLIES.contains(&name) {
            problems.push(format!("{name} uses {internal} crates of the workspace, more than {max}"));
        }
    }
    problems
}

fn allows((_, layer, may): &Row, used: &str) -> bool {
    match may {
        May::Use(names) => names.contains(&used),
        May::Below(names) => names.contains(&used) || row(used).is_some_and(|(_, below, _)| below < layer),
    }
}

fn row(name: &str) -> Option<&'static Row> {
    LAYERS.iter().find(|(crate_name, ..)| *crate_name == name)
}

fn short(name: &str) -> &str {
    name.strip_prefix("flotilla-").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn package(name: &str, uses: &[(&str, Option<&str>)]) -> Package {
        let dependency = |(name, kind): &(&str, Option<&str>)| Dependency {
            name: (*name).to_owned(),
            kind: kind.map(str::to_owned),
        };
        Package { name: name.to_owned(), dependencies: uses.iter().map(dependency).collect() }
    }

    #[test]
    fn the_workspace_keeps_its_layers() {
        let packages = workspace::metadata().expect("cargo metadata").packages;
        assert_eq!(problems(&packages), Vec::<String>::new());
    }

    #[test]
    fn what_users_build_has_no_failpoints() {
        let tree = |arguments: &[&str]| {
            let common =
                ["tree", "--package", "flotilla-node", "--edges", "normal", "--prefix", "none", "--format", "{p} {f}"];
            let output = workspace::cargo().args(common).args(arguments).output().expect("cargo tree");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // raft-engine depends on it in any case, but only the feature switches it on.
            text.lines().any(|line| line.starts_with("fail v") && line.contains("failpoints"))
        };
        assert!(tree(&["--features", "failpoints"]), "the feature brings the registry");
        assert!(!tree(&[]), "without the feature it must not be there");
    }

    #[test]
    fn the_table_itself_has_no_arrow_upwards() {
        for (name, layer, may) in LAYERS {
            let (May::Use(names) | May::Below(names)) = may;
            for used in *names {
                let (_, below, _) = row(used).unwrap_or_else(|| panic!("{name} may use {used}, which has no row"));
                assert!(below <= layer, "{name} may use {used} above it");
            }
        }
    }

    #[test]
    fn an_arrow_upwards_or_sideways_is_found_but_not_in_tests() {
        let upwards = [
            package("flotilla-kv", &[("flotilla-gateway", None), ("flotilla-types", None)]),
            package("flotilla-gateway", &[("flotilla-client", None)]),
            package("flotilla-client", &[]),
            package("flotilla-types", &[("flotilla-kv", Some("dev"))]),
        ];
        assert_eq!(problems(&upwards), ["kv may not use gateway", "gateway may not use client"]);
    }

    #[test]
    fn a_library_outside_its_crate_is_found_even_in_tests() {
        let leaks = [package("flotilla-kv", &[("sled", None), ("raft", Some("dev")), ("bytes", None)])];
        assert_eq!(problems(&leaks), ["kv may not use the library sled", "kv may not use the library raft"]);
    }

    #[test]
    fn a_crate_without_a_row_is_found() {
        assert_eq!(problems(&[package("flotilla-util", &[])]), ["util has no row in the layer table"]);
    }
}
