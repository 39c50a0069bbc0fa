//! The layer rules: which crate may depend on which, and which library belongs to which crate.
//!
//! Dependencies point only downwards. A crate may use what its row allows. Dev-dependencies on crates of the
//! workspace are not restricted. Checked by `cargo xtask lint` and by a test here.

use anyhow::{Result, ensure};

use crate::workspace::{self, Package};

/// Workspace crates that a crate may use at most, not counting `types`. [`ASSEMBLIES`] may use more.
const INTERNAL_MAX: usize = 6;
/// Exceptions to [`INTERNAL_MAX`] with their own limits, which may only decrease.
const OVER_MAX: &[(&str, usize)] = &[("control", 7), ("gateway", 8)];
/// Crates that assemble all others.
const ASSEMBLIES: &[&str] = &["node", "sim"];

/// The workspace crates that a crate may use.
enum May {
    /// Only these.
    Use(&'static [&'static str]),
    /// All crates of lower layers, and these of its own layer.
    Below(&'static [&'static str]),
}

/// A crate's name without `flotilla-`, its layer, and what it may use.
type Row = (&'static str, u8, May);

const LAYERS: &[Row] = &[
    ("types", 0, May::Use(&[])),
    ("failpoints", 0, May::Use(&[])),
    ("persistent", 0, May::Use(&[])),
    // Checks histories of any system; independent of Flotilla.
    ("checker", 0, May::Use(&[])),
    // Mutates arbitrary bytes; only tests use it.
    ("hostile", 0, May::Use(&[])),
    ("wire", 1, May::Use(&["types"])),
    ("identity", 1, May::Use(&["types"])),
    ("objects", 1, May::Use(&["types", "failpoints"])),
    ("values", 1, May::Use(&["types"])),
    ("storage", 1, May::Use(&["types"])),
    ("api", 1, May::Use(&["types"])),
    ("membership", 2, May::Use(&["types"])),
    ("placement", 2, May::Use(&["types", "persistent", "values"])),
    ("consensus", 2, May::Use(&["types", "storage"])),
    ("kv", 2, May::Use(&["types", "storage", "values"])),
    ("meta", 2, May::Use(&["types", "persistent", "storage", "placement", "values"])),
    ("transport", 2, May::Use(&["types", "wire", "identity"])),
    ("raft-log", 2, May::Use(&["types", "failpoints", "storage"])),
    ("state", 2, May::Use(&["types", "failpoints", "storage", "objects"])),
    // Generic over the state machine: independent of kv and meta.
    (
        "replication",
        3,
        May::Use(&[
            "types",
            "failpoints",
            "persistent",
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
    // route is pure; control uses its retry rules.
    ("control", 4, May::Below(&["route"])),
    ("route", 4, May::Use(&["types", "placement"])),
    ("gateway", 5, May::Below(&[])),
    ("gateway-redis", 5, May::Below(&["gateway"])),
    // Answers the calls of large values from memory; only tests use it.
    ("fake-gateway", 2, May::Use(&["types", "api", "values"])),
    ("client", 5, May::Use(&["types", "api", "route", "values"])),
    ("node", 6, May::Below(&[])),
    ("sim", 6, May::Below(&[])),
    ("local-cluster", 6, May::Use(&["types", "api", "client"])),
    // Not part of the product: no crate may use these.
    ("tests", 7, May::Below(&[])),
    ("xtask", 7, May::Use(&["api", "client", "local-cluster", "placement", "types"])),
];

/// Libraries that only the named crates may use, so that their types do not spread.
const OWNERS: &[(&str, &[&str])] = &[
    // raft-log uses raft's entry type internally, because raft-engine requires a protobuf 2 message.
    ("raft", &["consensus", "raft-log"]),
    ("raft-proto", &["consensus", "raft-log"]),
    ("protobuf", &["consensus", "raft-log"]),
    ("slog", &["consensus"]),
    ("raft-engine", &["raft-log"]),
    ("sled", &["state"]),
    ("quinn", &["transport"]),
    ("foca", &["membership"]),
    ("rcgen", &["identity"]),
    // The node installs the crypto provider.
    ("rustls", &["identity", "transport", "node", "client"]),
    ("tokio-rustls", &["gateway", "tests"]),
    ("rustls-webpki", &["identity"]),
    ("axum", &["gateway"]),
    ("redis-protocol", &["gateway-redis"]),
    ("mlua", &["gateway-redis"]),
    ("sha1_smol", &["gateway-redis"]),
    ("reqwest", &["client", "local-cluster"]),
    ("fastcdc", &["values"]),
    // Archives that `kv import --unpack` takes apart.
    ("tar", &["node"]),
    ("zip", &["node"]),
    ("flate2", &["node"]),
    ("zstd", &["objects", "replication", "gateway", "client", "fake-gateway"]),
    // Its registry is global, so only one crate accesses it.
    ("fail", &["failpoints"]),
];

/// Checks the dependencies of all workspace crates.
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
    fn the_workspace_follows_the_layer_rules() {
        let packages = workspace::metadata().expect("cargo metadata").packages;
        assert_eq!(problems(&packages), Vec::<String>::new());
    }

    #[test]
    fn default_build_has_no_failpoints() {
        let tree = |arguments: &[&str]| {
            let common =
                ["tree", "--package", "flotilla-node", "--edges", "normal", "--prefix", "none", "--format", "{p} {f}"];
            let output = workspace::cargo().args(common).args(arguments).output().expect("cargo tree");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // raft-engine always depends on `fail`, but only our feature enables its failpoints.
            let has =
                |name: &str, feature: &str| text.lines().any(|line| line.starts_with(name) && line.contains(feature));
            [has("fail v", "failpoints"), has("flotilla-types v", "version-limit")]
        };
        assert_eq!(tree(&["--features", "failpoints"]), [true; 2], "the feature enables the registry and the limit");
        assert_eq!(tree(&[]), [false; 2], "without the feature both must be disabled");
    }

    #[test]
    fn the_table_allows_no_dependency_upwards() {
        for (name, layer, may) in LAYERS {
            let (May::Use(names) | May::Below(names)) = may;
            for used in *names {
                let (_, below, _) = row(used).unwrap_or_else(|| panic!("{name} may use {used}, which has no row"));
                assert!(below <= layer, "{name} may use {used} above it");
            }
        }
    }

    #[test]
    fn dependencies_upwards_or_sideways_are_reported_except_in_tests() {
        let upwards = [
            package("flotilla-kv", &[("flotilla-gateway", None), ("flotilla-types", None)]),
            package("flotilla-gateway", &[("flotilla-client", None)]),
            package("flotilla-client", &[]),
            package("flotilla-types", &[("flotilla-kv", Some("dev"))]),
        ];
        assert_eq!(problems(&upwards), ["kv may not use gateway", "gateway may not use client"]);
    }

    #[test]
    fn a_library_outside_its_crate_is_reported_even_in_tests() {
        let leaks = [package("flotilla-kv", &[("sled", None), ("raft", Some("dev")), ("bytes", None)])];
        assert_eq!(problems(&leaks), ["kv may not use the library sled", "kv may not use the library raft"]);
    }

    #[test]
    fn a_crate_without_a_row_is_reported() {
        assert_eq!(problems(&[package("flotilla-util", &[])]), ["util has no row in the layer table"]);
    }
}
