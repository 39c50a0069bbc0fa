//! The text of `INFO`: the fields that clients, monitoring and people look for, under Redis's names.
//!
//! Pure. It describes one node as its gateway sees it; the state of the cluster is on the HTTP interface.

use std::fmt::Write;

use bytes::Bytes;
use flotilla_gateway::Counted;

use crate::{Database, process::Memory};

/// The values that `INFO` reports.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Facts {
    /// The version of Redis to report.
    pub(crate) redis_version: &'static str,
    pub(crate) port: u16,
    pub(crate) process: u32,
    pub(crate) uptime_s: u64,
    pub(crate) clients: usize,
    pub(crate) clients_max: usize,
    pub(crate) accepted: u64,
    pub(crate) commands: u64,
    /// Whether new clients should use another node.
    pub(crate) draining: bool,
    /// Unix milliseconds.
    pub(crate) now_ms: u64,
    /// What the databases hold; without those that were not requested or not counted.
    pub(crate) databases: Vec<(Database, Counted)>,
    /// Absent where it is not known, like the next one.
    pub(crate) memory: Option<Memory>,
    /// Seconds in user mode and in the kernel.
    pub(crate) cpu_s: Option<(f64, f64)>,
}

const SECTIONS: &[&str] =
    &["server", "clients", "memory", "persistence", "stats", "replication", "cpu", "cluster", "keyspace"];

/// Whether the number of keys is requested.
pub(crate) fn wants_keyspace(sections: &[Bytes]) -> bool {
    wants(sections, "keyspace")
}

/// The text of the requested sections; all when none are named.
pub(crate) fn info_text(sections: &[Bytes], facts: &Facts) -> String {
    let mut text = String::new();
    for section in SECTIONS.iter().filter(|section| wants(sections, section)) {
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        for line in lines(section, facts).lines() {
            write!(text, "{line}\r\n").expect("writing to a string cannot fail");
        }
    }
    text
}

fn wants(sections: &[Bytes], section: &str) -> bool {
    let names = [section, "default", "all", "everything"];
    let named = |asked: &Bytes| names.iter().any(|name| asked.eq_ignore_ascii_case(name.as_bytes()));
    sections.is_empty() || sections.iter().any(named)
}

fn lines(section: &str, facts: &Facts) -> String {
    let Facts { redis_version, port, process, uptime_s, clients, clients_max, accepted, commands, databases, .. } =
        facts;
    match section {
        "server" => format!(
            "# Server\nredis_version:{redis_version}\nredis_mode:standalone\nserver_name:flotilla\n\
             flotilla_version:{}\nflotilla_draining:{}\nos:{}\narch_bits:{}\nprocess_id:{process}\ntcp_port:{port}\n\
             uptime_in_seconds:{uptime_s}\nuptime_in_days:{}",
            env!("CARGO_PKG_VERSION"),
            u8::from(facts.draining),
            std::env::consts::OS,
            usize::BITS,
            uptime_s / 86_400,
        ),
        "clients" => format!("# Clients\nconnected_clients:{clients}\nmaxclients:{clients_max}\nblocked_clients:0"),
        "memory" => facts.memory.map_or("# Memory".to_owned(), memory_lines),
        // Every acknowledged write is in the logs of a majority.
        "persistence" => {
            "# Persistence\nloading:0\nasync_loading:0\nrdb_bgsave_in_progress:0\naof_enabled:1".to_owned()
        }
        "cpu" => facts.cpu_s.map_or("# CPU".to_owned(), |(user, system)| {
            format!("# CPU\nused_cpu_sys:{system:.6}\nused_cpu_user:{user:.6}")
        }),
        "stats" => {
            format!("# Stats\ntotal_connections_received:{accepted}\ntotal_commands_processed:{commands}")
        }
        // Every node accepts writes; replicas are internal to the cluster.
        "replication" => "# Replication\nrole:master\nconnected_slaves:0".to_owned(),
        // Clients must not use the cluster protocol's hash slots.
        "cluster" => "# Cluster\ncluster_enabled:0".to_owned(),
        "keyspace" => {
            let lines = databases.iter().filter(|(_, counted)| counted.records > 0).map(|(database, counted)| {
                let Counted { records, expiring, mean_expiry_ms } = counted;
                let ttl_ms = mean_expiry_ms.map_or(0, |at_ms| at_ms.saturating_sub(facts.now_ms));
                format!("\ndb{database}:keys={records},expires={expiring},avg_ttl={ttl_ms}")
            });
            format!("# Keyspace{}", lines.collect::<String>())
        }
        _ => String::new(),
    }
}

fn memory_lines(Memory { resident, peak }: Memory) -> String {
    let human = |bytes: u64| format!("{:.2}M", bytes as f64 / f64::from(1 << 20));
    format!(
        "# Memory\nused_memory:{resident}\nused_memory_human:{}\nused_memory_rss:{resident}\n\
         used_memory_peak:{peak}\nused_memory_peak_human:{}\nmaxmemory:0\nmaxmemory_human:0B\n\
         maxmemory_policy:noeviction",
        human(resident),
        human(peak),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted((records, expiring): (u64, u64)) -> Counted {
        Counted { records, expiring, mean_expiry_ms: Some(1_000 + 10 * expiring).filter(|_| expiring > 0) }
    }

    fn facts() -> Facts {
        Facts {
            redis_version: "7.2.0",
            port: 6_379,
            process: 1,
            uptime_s: 90_000,
            clients: 2,
            clients_max: 10,
            accepted: 3,
            commands: 4,
            draining: true,
            now_ms: 1_000,
            databases: Database::all().zip([(5, 2), (0, 0), (7, 7)].map(counted)).collect(),
            memory: Some(Memory { resident: 3 << 19, peak: 2 << 20 }),
            cpu_s: Some((1.5, 0.25)),
        }
    }

    #[test]
    fn only_named_sections_are_included_and_none_means_all() {
        let text = |sections: &[&'static str]| {
            let sections: Vec<_> = sections.iter().map(|name| Bytes::from_static(name.as_bytes())).collect();
            info_text(&sections, &facts())
        };
        assert_eq!(
            text(&["Keyspace"]),
            "# Keyspace\r\ndb0:keys=5,expires=2,avg_ttl=20\r\ndb2:keys=7,expires=7,avg_ttl=70\r\n"
        );
        assert_eq!(text(&["nothing"]), "");
        assert_eq!(text(&[]), text(&["all"]));
        for line in [
            "redis_version:7.2.0\r\n",
            "uptime_in_days:1\r\n",
            "role:master\r\n",
            "connected_clients:2\r\n",
            "used_memory_human:1.50M\r\n",
            "used_cpu_sys:0.250000\r\n",
            "loading:0\r\n",
            "flotilla_draining:1\r\n",
        ] {
            assert!(text(&[]).contains(line), "{line}");
        }
    }
}
