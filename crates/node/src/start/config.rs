//! How a node is configured: flags, then `FLOTILLA_*` variables, then a TOML file, then defaults.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use flotilla_replication::{HostConfig, Leases, RaftConfig};
use flotilla_state::ViewOptions;
use flotilla_types::Locality;
use serde::Deserialize;

use super::founding::BUCKETS;

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7110);
const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7111);
const REDIS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7112);

/// Shards of a new collection when nobody says otherwise: one to lead for each of three nodes. More nodes need more shards to
/// have work for all; more shards than that cost, because fewer requests gather in each.
pub(crate) const SHARDS: u16 = 3;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object to a line.
    Json,
}

/// Where the records behind the memtables are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum View {
    /// In the checkpoints' own objects.
    #[default]
    Objects,
    /// In sled, which every checkpoint is fed to.
    Sled,
}

impl View {
    /// For the whole node. sled takes about twice what it is told.
    const SLED_CACHE_BYTES: u64 = 32 << 20;

    pub(crate) fn options(self) -> ViewOptions {
        match self {
            Self::Objects => ViewOptions::default(),
            Self::Sled => ViewOptions::Sled { cache_bytes: Self::SLED_CACHE_BYTES },
        }
    }
}

/// Runs a node until it is told to stop (SIGTERM, Ctrl-C).
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// A TOML file with any of these settings, named as the flags (with underscores)
    #[arg(long, env = "FLOTILLA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Everything that may be set, each from a flag, a variable or the file.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Folder for everything this node keeps [default: flotilla-data]
    #[arg(long, env = "FLOTILLA_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// UDP address for other nodes (QUIC) [default: 127.0.0.1:7110]
    #[arg(long, env = "FLOTILLA_LISTEN", value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Address that other nodes reach this one at, when it differs from --listen
    #[arg(long, env = "FLOTILLA_ADVERTISE", value_name = "ADDR")]
    advertise: Option<SocketAddr>,
    /// Address of the HTTP interface [default: 127.0.0.1:7111]
    #[arg(long, env = "FLOTILLA_HTTP", value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Address of the Redis interface [default: 127.0.0.1:7112]
    #[arg(long, env = "FLOTILLA_REDIS", value_name = "ADDR")]
    redis: Option<SocketAddr>,
    /// Name of this node, for people [default: from the port]
    #[arg(long, env = "FLOTILLA_NAME", value_name = "NAME")]
    name: Option<String>,
    /// Where this node stands: key=value labels, outermost first, for example region=eu,zone=a
    #[arg(long, env = "FLOTILLA_LOCALITY", value_name = "LABELS")]
    locality: Option<String>,

    /// Found a new cluster with this node; a folder that has an identity already just goes on
    #[arg(long, env = "FLOTILLA_BOOTSTRAP", conflicts_with = "join")]
    #[serde(default)]
    bootstrap: bool,
    /// Run one node with nothing else to configure: found a cluster when the folder is empty
    #[arg(long, env = "FLOTILLA_SINGLE", conflicts_with = "join")]
    #[serde(default)]
    single: bool,
    /// Join the cluster that these peers belong to (their --listen addresses, comma-separated)
    #[arg(long, env = "FLOTILLA_JOIN", value_name = "ADDRS", value_delimiter = ',')]
    join: Option<Vec<SocketAddr>>,
    /// Join token, from `flotilla token create` on the cluster
    #[arg(long, env = "FLOTILLA_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// Shards of the collection `default` when this node founds a cluster, 1 to 16: best one for each node, because fewer requests gather where there are more [default: 3]
    #[arg(long, env = "FLOTILLA_SHARDS", value_name = "N")]
    shards: Option<u16>,

    /// Milliseconds to a tick of all groups [default: 50]
    #[arg(long, env = "FLOTILLA_TICK_MS", value_name = "MS")]
    tick_ms: Option<u64>,
    /// Ticks without a leader before an election; each replica waits 1–2 times as long [default: 8]
    #[arg(long, env = "FLOTILLA_ELECTION_TICKS", value_name = "N")]
    election_ticks: Option<usize>,
    /// Ticks between heartbeats; at most a third of the election ticks [default: 2]
    #[arg(long, env = "FLOTILLA_HEARTBEAT_TICKS", value_name = "N")]
    heartbeat_ticks: Option<usize>,
    /// Whether leaders answer strong reads by lease; --tick-ms and --election-ticks must then be the same on all nodes [default: true]
    #[arg(long, env = "FLOTILLA_LEASES", value_name = "BOOL")]
    leases: Option<bool>,
    /// Bytes of applied records that a replica keeps in memory before a checkpoint [default: 33554432]
    #[arg(long, env = "FLOTILLA_MEMTABLE_BYTES", value_name = "BYTES")]
    memtable_bytes: Option<usize>,
    /// Where records behind the memtables are found: in the checkpoints' own objects, or in sled, fed from them [default: objects]
    #[arg(long, env = "FLOTILLA_VIEW", value_name = "VIEW")]
    view: Option<View>,
    /// Bytes of log behind a replica's checkpoint that trigger the next one [default: 67108864]
    #[arg(long, env = "FLOTILLA_LOG_BYTES", value_name = "BYTES")]
    log_bytes: Option<u64>,
    /// Entries that stay in the log for followers that are a little behind [default: 1024]
    #[arg(long, env = "FLOTILLA_LOG_TAIL_ENTRIES", value_name = "N")]
    log_tail_entries: Option<u64>,
    /// Origins that browsers may call the HTTP interface from (comma-separated; none by default)
    #[arg(long, env = "FLOTILLA_CORS_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    cors_origins: Option<Vec<String>>,

    /// How log lines look [default: text]
    #[arg(long, env = "FLOTILLA_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as info,flotilla_control=debug [default: info]
    #[arg(long, env = "FLOTILLA_LOG", value_name = "FILTER")]
    log: Option<String>,
}

/// How this node comes to its identity when the folder holds none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It must have one already.
    Resume,
    /// It founds a cluster.
    Found,
    /// It joins one.
    Join {
        /// Peers to ask, in any order.
        peers: Vec<SocketAddr>,
        /// The token.
        token: String,
    },
}

/// A validated configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) redis: SocketAddr,
    pub(crate) name: String,
    pub(crate) locality: Locality,
    pub(crate) origin: Origin,
    /// Of the collection `default`, when this node founds a cluster.
    pub(crate) shards: u16,
    pub(crate) host: HostConfig,
    pub(crate) view: View,
    pub(crate) cors_origins: Vec<String>,
    pub(crate) log_format: LogFormat,
    pub(crate) log: String,
}

impl StartArgs {
    /// Reads the file, if one is named, fills in defaults and checks everything.
    pub(crate) fn resolve(self) -> anyhow::Result<Config> {
        let file = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?
            }
            None => Settings::default(),
        };
        self.settings.or(file).resolve()
    }
}

impl Settings {
    fn or(self, file: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(file.data_dir),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            http: self.http.or(file.http),
            redis: self.redis.or(file.redis),
            name: self.name.or(file.name),
            locality: self.locality.or(file.locality),
            bootstrap: self.bootstrap || file.bootstrap,
            single: self.single || file.single,
            join: self.join.or(file.join),
            token: self.token.or(file.token),
            shards: self.shards.or(file.shards),
            tick_ms: self.tick_ms.or(file.tick_ms),
            election_ticks: self.election_ticks.or(file.election_ticks),
            heartbeat_ticks: self.heartbeat_ticks.or(file.heartbeat_ticks),
            leases: self.leases.or(file.leases),
            memtable_bytes: self.memtable_bytes.or(file.memtable_bytes),
            view: self.view.or(file.view),
            log_bytes: self.log_bytes.or(file.log_bytes),
            log_tail_entries: self.log_tail_entries.or(file.log_tail_entries),
            cors_origins: self.cors_origins.or(file.cors_origins),
            log_format: self.log_format.or(file.log_format),
            log: self.log.or(file.log),
        }
    }

    fn resolve(self) -> anyhow::Result<Config> {
        let listen = self.listen.unwrap_or(LISTEN);
        let origin = match (self.bootstrap || self.single, self.join, self.token) {
            (true, None, _) => Origin::Found,
            (false, Some(peers), Some(token)) if !peers.is_empty() => Origin::Join { peers, token },
            (false, Some(_), None) => {
                bail!("--join needs --token; get one with `flotilla token create` on the cluster")
            }
            (true, Some(_), _) => bail!("a node either founds a cluster or joins one"),
            _ => Origin::Resume,
        };
        let defaults = HostConfig::default();
        let host = HostConfig {
            tick_ms: self.tick_ms.unwrap_or(defaults.tick_ms),
            memtable_bytes_max: self.memtable_bytes.unwrap_or(defaults.memtable_bytes_max),
            log_bytes_max: self.log_bytes.unwrap_or(defaults.log_bytes_max),
            log_tail_entries: self.log_tail_entries.unwrap_or(defaults.log_tail_entries),
            raft: RaftConfig {
                election_ticks: self.election_ticks.unwrap_or(defaults.raft.election_ticks),
                heartbeat_ticks: self.heartbeat_ticks.unwrap_or(defaults.raft.heartbeat_ticks),
                ..defaults.raft
            },
            leases: if self.leases.unwrap_or(true) { defaults.leases } else { Leases::Off },
            ..HostConfig::default()
        };
        host.validate()?;
        let shards = self.shards.unwrap_or(SHARDS);
        if !(1..=BUCKETS).contains(&shards) {
            bail!("--shards must be 1 to {BUCKETS}: the collection `default` has {BUCKETS} buckets");
        }
        let locality = self.locality.unwrap_or_default().parse()?;
        Ok(Config {
            data_dir: self.data_dir.unwrap_or_else(|| "flotilla-data".into()),
            listen,
            advertise: self.advertise.unwrap_or(listen),
            http: self.http.unwrap_or(HTTP),
            redis: self.redis.unwrap_or(REDIS),
            name: self.name.unwrap_or_else(|| format!("node-{}", listen.port())),
            locality,
            origin,
            shards,
            host,
            view: self.view.unwrap_or_default(),
            cors_origins: self.cors_origins.unwrap_or_default(),
            log_format: self.log_format.unwrap_or_default(),
            log: self.log.unwrap_or_else(|| "info".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{attack, extreme_u64, mutated};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file: Settings = toml::from_str("name = \"file\"\ntick_ms = 20\n").unwrap();
        let flags = Settings { name: Some("flag".to_owned()), ..Settings::default() };
        let config = flags.or(file).resolve().unwrap();
        assert_eq!((config.name.as_str(), config.host.tick_ms, config.listen), ("flag", 20, LISTEN));
    }

    #[test]
    fn a_mistyped_setting_is_refused() {
        assert!(toml::from_str::<Settings>("tick_mss = 20").is_err());
    }

    #[test]
    fn joining_needs_a_token() {
        let settings = Settings { join: Some(vec![LISTEN]), ..Settings::default() };
        assert!(settings.resolve().unwrap_err().to_string().contains("--token"));
    }

    #[test]
    fn heartbeats_that_are_too_rare_are_refused() {
        let settings = Settings { heartbeat_ticks: Some(7), ..Settings::default() };
        assert!(settings.resolve().is_err());
    }

    #[test]
    fn absurd_ticks_are_refused_not_multiplied() {
        for absurd in [usize::MAX, usize::MAX / 3] {
            let settings = Settings { heartbeat_ticks: Some(absurd), ..Settings::default() };
            assert!(settings.resolve().is_err());
            let settings = Settings { election_ticks: Some(absurd), ..Settings::default() };
            assert!(settings.resolve().is_err());
        }
        let settings = Settings { tick_ms: Some(u64::MAX), ..Settings::default() };
        assert!(settings.resolve().is_err());
    }

    /// The command line as far as `start` goes.
    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: StartArgs,
    }

    #[test]
    fn hostile_files_and_flags_are_refused_or_within_bounds() {
        use clap::Parser as _;

        let valid = (extreme_u64(), extreme_u64(), extreme_u64(), any::<bool>()).prop_map(|(tick, election, bytes, file)| {
            let text = format!(
                "name=n\nlisten=127.0.0.1:7110\nhttp=[::1]:80\nlocality=zone=a\njoin=10.0.0.1:1\ntoken=flt1.x\n\
                 tick_ms={tick}\nelection_ticks={election}\nheartbeat_ticks={tick}\nmemtable_bytes={bytes}\nlog_format=json"
            );
            if !file {
                return text.lines().map(|line| format!("--{}\n", line.replacen('_', "-", 1))).collect();
            }
            let quoted = |line: &str| match line.split_once('=') {
                Some((name @ "join", value)) => format!("{name}=[\"{value}\"]\n"),
                Some((name, value)) if value.parse::<u64>().is_err() => format!("{name}=\"{value}\"\n"),
                _ => format!("{line}\n"),
            };
            text.lines().map(quoted).collect::<String>()
        });
        let nested = (0..20_000_usize).prop_map(|times| format!("name={}", "[".repeat(times)).into_bytes());
        attack(300, prop_oneof![9 => mutated(valid), 1 => nested], |bytes| {
            let text = String::from_utf8_lossy(&bytes);
            let file = toml::from_str::<Settings>(&text).ok();
            let line = Line::try_parse_from(std::iter::once("start").chain(text.lines())).ok();
            for settings in file.into_iter().chain(line.map(|line| line.args.settings)) {
                if let Ok(config) = settings.resolve() {
                    assert!(config.host.tick_ms <= 60_000 && config.host.raft.election_ticks <= 100_000);
                }
            }
        });
    }
}
