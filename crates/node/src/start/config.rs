//! The configuration of a node: flags, then `FLOTILLA_*` variables, then a TOML file, then defaults.

use std::{net::SocketAddr, num::NonZero, path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum, builder::BoolishValueParser};
use flotilla_gateway::{CLIENT_BYTES_DEFAULT, CLIENT_BYTES_MIN};
use flotilla_meta::NodeRole;
use flotilla_replication::{FolderTrust, HostConfig, Leases, RaftConfig, ScrubConfig};
use flotilla_state::ViewOptions;
use flotilla_types::{HostPort, Locality, is_printable};
use serde::Deserialize;
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::{
    authority::VALID_MAX,
    ending::Usage,
    places::{Location, advertised, hints, to_bind},
};

const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7110);
const HTTP_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7111);
const REDIS_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7112);

/// Default shards of a new collection: one leader for each of three nodes. A larger cluster needs more shards
/// to use all of its nodes; shards beyond one per node cost throughput, because each batches fewer requests.
pub(crate) const SHARDS_DEFAULT: u16 = 3;
/// Default hash buckets of a new collection, and those of the collection `default`: the maximum of its
/// shards.
pub(crate) const BUCKETS_DEFAULT: u16 = 16;
/// Default replicas of a new collection, and those of the collection `default`.
pub(crate) const REPLICAS_DEFAULT: u8 = 3;

/// Default size of the ballast file: enough to start, and for the first checkpoints.
const BALLAST_BYTES_DEFAULT: u64 = 64 << 20;

/// The format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// Human-readable.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Where checkpointed records, which are no longer in a memtable, are read from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum View {
    /// The checkpoints' own objects.
    #[default]
    Objects,
    /// A sled database, which every checkpoint updates.
    Sled,
}

impl View {
    /// Cache size of sled for the whole node. sled uses about twice as much memory.
    const SLED_CACHE_BYTES: u64 = 32 << 20;

    /// The options of this view, with so many bytes for indexes if that is set.
    fn options(self, index_bytes: Option<u64>) -> anyhow::Result<ViewOptions> {
        Ok(match (self, index_bytes) {
            (Self::Objects, None) => ViewOptions::default(),
            (Self::Objects, Some(0)) => bail!("--index-bytes must be at least 1"),
            (Self::Objects, Some(index_bytes)) => ViewOptions::Objects { index_bytes },
            (Self::Sled, Some(_)) => bail!("--index-bytes is for --view objects: sled has indexes of its own"),
            (Self::Sled, None) => ViewOptions::Sled { cache_bytes: Self::SLED_CACHE_BYTES },
        })
    }
}

/// The name of what a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum RoleName {
    /// It holds replicas and serves clients.
    Storage,
    /// It serves clients.
    Gateway,
}

impl FromStr for RoleName {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        match text {
            "storage" => Ok(Self::Storage),
            "gateway" => Ok(Self::Gateway),
            "reader" | "witness" => {
                Err(Usage(format!("this version has no nodes with the role {text}; the roles are storage and gateway")))
            }
            _ => Err(Usage("the roles are storage and gateway".to_owned())),
        }
    }
}

impl TryFrom<String> for RoleName {
    type Error = Usage;

    fn try_from(text: String) -> Result<Self, Usage> {
        text.parse()
    }
}

/// When the log is trusted to be complete at start, without asking peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TrustFolder {
    /// Never: every start waits for its peers. For machines or block devices that may be set back as a whole.
    Never,
    /// If there is evidence that the folder is the newest.
    #[default]
    Evidence,
    /// You vouch that the folder is the newest: for a node without evidence whose peers are gone for good.
    Always,
}

impl TrustFolder {
    fn folder_trust(self) -> FolderTrust {
        match self {
            Self::Never => FolderTrust::Never,
            Self::Evidence => FolderTrust::Evidence,
            Self::Always => FolderTrust::Always,
        }
    }
}

/// Run a node until SIGTERM, SIGHUP or Ctrl-C
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// TOML file with any of these settings, named like the flags but with underscores
    #[arg(long, env = "FLOTILLA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

// Each setting comes from a flag, a variable or the file. No doc comment: clap would show it as the help of
// `start`.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Directory for all data of this node [default: flotilla-data]
    #[arg(long, env = "FLOTILLA_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// UDP address to listen on for other nodes (QUIC), a host name or an address [default: 127.0.0.1:7110]
    #[arg(long, env = "FLOTILLA_LISTEN", value_name = "HOST:PORT")]
    listen: Option<Location>,
    /// Where other nodes reach this node, if it differs from --listen; a name is resolved by them for every
    /// connection. Needed if --listen is every address of the machine (0.0.0.0 or ::)
    #[arg(long, env = "FLOTILLA_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<Location>,
    /// TCP address to listen on for HTTP, a host name or an address [default: 127.0.0.1:7111]
    #[arg(long, env = "FLOTILLA_HTTP", value_name = "HOST:PORT")]
    http: Option<Location>,
    /// TCP address to listen on for the Redis protocol, a host name or an address [default: 127.0.0.1:7112]
    #[arg(long, env = "FLOTILLA_REDIS", value_name = "HOST:PORT")]
    redis: Option<Location>,
    /// Address (host:port) at which clients reach this node's HTTP port, if it differs from --http
    #[arg(long, env = "FLOTILLA_ADVERTISE_HTTP", value_name = "ADDR")]
    advertise_http: Option<String>,
    /// Address (host:port) at which clients reach this node's Redis port, if it differs from --redis
    #[arg(long, env = "FLOTILLA_ADVERTISE_REDIS", value_name = "ADDR")]
    advertise_redis: Option<String>,
    /// Display name of this node, for good: it is recorded when the node joins [default: `node-PORT`]
    #[arg(long, env = "FLOTILLA_NAME", value_name = "NAME")]
    name: Option<String>,
    /// What this node does: storage, or gateway for one that serves clients and holds no replicas
    /// [default: storage]
    #[arg(long, env = "FLOTILLA_ROLE", value_name = "ROLE")]
    role: Option<RoleName>,
    /// Share of replicas and leaderships that this node gets, relative to those of other nodes, 0 to 1000; with 0
    /// it gets no new replicas, and balancing moves those that it has to others [default: 1]
    #[arg(long, env = "FLOTILLA_WEIGHT", value_name = "N")]
    weight: Option<u32>,
    /// Location of this node: key=value labels, from the largest area to the smallest, such as
    /// region=eu,zone=a
    #[arg(long, env = "FLOTILLA_LOCALITY", value_name = "LABELS")]
    locality: Option<String>,

    /// Found a new cluster with this node; ignored if the data directory already holds an identity
    #[arg(long, env = "FLOTILLA_BOOTSTRAP", conflicts_with = "join", value_parser = BoolishValueParser::new())]
    #[serde(default)]
    bootstrap: bool,
    /// Run a single node without further configuration; found a cluster if the data directory is empty
    #[arg(long, env = "FLOTILLA_SINGLE", conflicts_with = "join", value_parser = BoolishValueParser::new())]
    #[serde(default)]
    single: bool,
    /// Where other nodes of the cluster are (their --advertise addresses, comma-separated). A new node asks
    /// them to let it join; a node that has joined looks for the others there too, in case they have moved
    #[arg(long, env = "FLOTILLA_JOIN", value_name = "HOST:PORT,…", value_delimiter = ',')]
    join: Option<Vec<Location>>,
    /// Join token, created with `flotilla token create` on the cluster; ignored if the data directory already
    /// holds an identity
    #[arg(long, env = "FLOTILLA_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// Shards of the collection `default` if this node founds a cluster, 1 to 16; one per node is best
    /// [default: 3]
    #[arg(long, env = "FLOTILLA_SHARDS", value_name = "N")]
    shards: Option<u16>,

    /// Milliseconds per Raft tick [default: 50]
    #[arg(long, env = "FLOTILLA_TICK_MS", value_name = "MS")]
    tick_ms: Option<u64>,
    /// Ticks without a leader before an election; each replica waits a random 1 to 1.5 times as
    /// long [default: 8]
    #[arg(long, env = "FLOTILLA_ELECTION_TICKS", value_name = "N")]
    election_ticks: Option<usize>,
    /// Ticks between Raft heartbeats; at most a third of the election ticks [default: 2]
    #[arg(long, env = "FLOTILLA_HEARTBEAT_TICKS", value_name = "N")]
    heartbeat_ticks: Option<usize>,
    /// Whether leaders serve strong reads under a lease; --tick-ms and --election-ticks must then be equal on
    /// all nodes [default: true]
    #[arg(long, env = "FLOTILLA_LEASES", value_name = "BOOL")]
    leases: Option<bool>,
    /// When the log is trusted to be complete at start, without asking peers [default: evidence]
    #[arg(long, env = "FLOTILLA_TRUST_FOLDER", value_name = "WHEN")]
    trust_folder: Option<TrustFolder>,
    /// Memtable size of a replica, in bytes, that triggers a checkpoint [default: 33554432]
    #[arg(long, env = "FLOTILLA_MEMTABLE_BYTES", value_name = "BYTES")]
    memtable_bytes: Option<usize>,
    /// Where checkpointed records are read from [default: objects]
    #[arg(long, env = "FLOTILLA_VIEW", value_name = "VIEW")]
    view: Option<View>,
    /// Memory for the indexes of recently read checkpoint pieces, in bytes; all indexes are about 1.5 % of the
    /// stored records [default: 67108864]
    #[arg(long, env = "FLOTILLA_INDEX_BYTES", value_name = "BYTES")]
    index_bytes: Option<u64>,
    /// Bytes of log after a replica's checkpoint that trigger the next checkpoint [default: 67108864]
    #[arg(long, env = "FLOTILLA_LOG_BYTES", value_name = "BYTES")]
    log_bytes: Option<u64>,
    /// Log entries that a checkpoint leaves in the log, for followers that lag slightly [default: 1024]
    #[arg(long, env = "FLOTILLA_LOG_TAIL_ENTRIES", value_name = "N")]
    log_tail_entries: Option<u64>,
    /// Threads for reads that may wait for the disk [default: as many as processors, 2 to 8]
    #[arg(long, env = "FLOTILLA_READ_THREADS", value_name = "N")]
    read_threads: Option<usize>,
    /// Committed bytes of a replica that may wait to be applied; beyond it, leaders refuse writes as busy and
    /// followers take no more [default: 67108864]
    #[arg(long, env = "FLOTILLA_UNAPPLIED_BYTES", value_name = "BYTES")]
    unapplied_bytes: Option<usize>,
    /// Bytes of a file that only takes up space; a start on a full disk deletes it, so that the node can
    /// start; 0 for none [default: 67108864]
    #[arg(long, env = "FLOTILLA_BALLAST_BYTES", value_name = "BYTES")]
    ballast_bytes: Option<u64>,
    /// Bytes of stored objects that the node reads per second, in the background, to find damage
    /// [default: 5000000]
    #[arg(long, env = "FLOTILLA_SCRUB_BYTES_PER_SECOND", value_name = "BYTES")]
    scrub_bytes_per_second: Option<u64>,
    /// Time from the end of one such pass over all objects to the next, at least; up to a quarter is added at
    /// random; 0s to begin passes only with `flotilla scrub --now` [default: 6h]
    #[arg(long, env = "FLOTILLA_SCRUB_PAUSE", value_name = "DURATION")]
    scrub_pause: Option<String>,
    /// Bytes that replicas on this node receive per second from others while they are moved or replaced, and as
    /// many that it sends to others; at least 262144. With 0 the cluster's setting of this name holds, which can be
    /// changed while nodes run [default: 0]
    #[arg(long, env = "FLOTILLA_TRANSFER_BYTES_PER_SECOND", value_name = "BYTES")]
    transfer_bytes_per_second: Option<u64>,
    /// Serve clients only over TLS and with keys (`flotilla key create`) [default: true if --http or --redis
    /// is not a loopback address]
    #[arg(long, env = "FLOTILLA_SECURE", conflicts_with = "insecure", value_parser = BoolishValueParser::new())]
    #[serde(default)]
    secure: bool,
    /// Serve anybody, without TLS and keys, on any address
    #[arg(long, env = "FLOTILLA_INSECURE", value_parser = BoolishValueParser::new())]
    #[serde(default)]
    insecure: bool,
    /// Certificate chain of the client ports (PEM); read again when it changes [default: one of the cluster's
    /// authority, renewed by the node]
    #[arg(long, env = "FLOTILLA_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert (PEM)
    #[arg(long, env = "FLOTILLA_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve only clients with a certificate that one of these authorities signed (PEM) [default: none
    /// needed]
    #[arg(long, env = "FLOTILLA_TLS_CLIENT_CA", value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// How long this node's certificates of the cluster's authority are valid (for peers, and for the client
    /// ports), at most 90 days; renewed at two thirds [default: 90days]
    #[arg(long, env = "FLOTILLA_CERTIFICATE_TTL", value_name = "DURATION")]
    certificate_ttl: Option<String>,
    /// Origins from which browsers may call the HTTP interface (comma-separated) [default: none]
    #[arg(long, env = "FLOTILLA_CORS_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    cors_origins: Option<Vec<String>>,

    /// Names by which clients reach this node over HTTP (comma-separated), besides addresses, localhost and
    /// the name in --advertise-http; a request with another name in `Host` is refused; *.example.com for all
    /// names below one, * for all [default: the host's name]
    #[arg(long, env = "FLOTILLA_HOST_NAMES", value_name = "NAMES", value_delimiter = ',')]
    host_names: Option<Vec<String>>,
    /// Bytes that this node holds for its clients, at least 64 MiB: requests that have not arrived
    /// completely, requests in progress and answers that were not read; beyond it, clients wait or are closed
    /// [default: 100663296]
    #[arg(long, env = "FLOTILLA_CLIENT_BYTES", value_name = "BYTES")]
    client_bytes: Option<usize>,

    /// Format of log lines [default: text]
    #[arg(long, env = "FLOTILLA_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Log level (error, warn, info, debug, trace) or a filter such as info,flotilla_control=debug
    /// [default: info]
    #[arg(long, env = "FLOTILLA_LOG", value_name = "FILTER")]
    log: Option<String>,
}

/// Files with the certificate of the client ports and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// The shortest life of a certificate: renewals take seconds.
const CERTIFICATE_TTL_MIN: Duration = Duration::from_secs(10);

/// How this node serves clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientMode {
    /// Anybody may do everything, in clear text.
    Open,
    /// Over TLS, with keys.
    Secure,
}

/// How this node gets an identity if the data folder holds none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It does not: it must already have one.
    Resume,
    /// It founds a cluster.
    Found,
    /// It joins one.
    Join {
        /// The join token.
        token: String,
    },
}

/// A validated configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: HostPort,
    /// Where other nodes may be.
    pub(crate) hints: Vec<HostPort>,
    pub(crate) http: SocketAddr,
    pub(crate) redis: SocketAddr,
    pub(crate) name: String,
    /// Whether an operator gave the name.
    pub(crate) is_named: bool,
    pub(crate) role: NodeRole,
    pub(crate) locality: Locality,
    pub(crate) origin: Origin,
    /// Shards of the collection `default`, if this node founds a cluster.
    pub(crate) shards: u16,
    pub(crate) host: HostConfig,
    pub(crate) view: ViewOptions,
    /// Size of the ballast file; 0 for none.
    pub(crate) ballast_bytes: u64,
    /// Where clients reach this node, if it differs from where it listens.
    pub(crate) advertise_http: Option<String>,
    pub(crate) advertise_redis: Option<String>,
    pub(crate) clients: ClientMode,
    pub(crate) tls_files: Option<TlsFiles>,
    pub(crate) tls_client_ca: Option<PathBuf>,
    pub(crate) certificate_ttl: Duration,
    pub(crate) cors_origins: Vec<String>,
    pub(crate) host_names: Vec<String>,
    /// The budget of what clients hold.
    pub(crate) client_bytes: usize,
    pub(crate) log_format: LogFormat,
    /// Which events are logged.
    pub(crate) log: Targets,
}

impl Config {
    /// The name that an operator gave to this node.
    pub(crate) fn given_name(&self) -> Option<&str> {
        self.is_named.then_some(self.name.as_str())
    }
}

impl StartArgs {
    /// Reads the configuration file if there is one, fills in defaults and validates the result.
    pub(crate) fn resolve(self) -> anyhow::Result<Config> {
        let file = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                toml::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))?
            }
            None => Settings::default(),
        };
        self.settings.or(file).resolve()
    }
}

impl Settings {
    /// These settings, with those of the file where they are not set.
    fn or(self, file: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(file.data_dir),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            http: self.http.or(file.http),
            redis: self.redis.or(file.redis),
            name: self.name.or(file.name),
            role: self.role.or(file.role),
            weight: self.weight.or(file.weight),
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
            trust_folder: self.trust_folder.or(file.trust_folder),
            memtable_bytes: self.memtable_bytes.or(file.memtable_bytes),
            view: self.view.or(file.view),
            index_bytes: self.index_bytes.or(file.index_bytes),
            log_bytes: self.log_bytes.or(file.log_bytes),
            log_tail_entries: self.log_tail_entries.or(file.log_tail_entries),
            read_threads: self.read_threads.or(file.read_threads),
            unapplied_bytes: self.unapplied_bytes.or(file.unapplied_bytes),
            ballast_bytes: self.ballast_bytes.or(file.ballast_bytes),
            scrub_bytes_per_second: self.scrub_bytes_per_second.or(file.scrub_bytes_per_second),
            scrub_pause: self.scrub_pause.or(file.scrub_pause),
            transfer_bytes_per_second: self.transfer_bytes_per_second.or(file.transfer_bytes_per_second),
            secure: self.secure || (file.secure && !self.insecure),
            insecure: self.insecure || (file.insecure && !self.secure),
            advertise_http: self.advertise_http.or(file.advertise_http),
            advertise_redis: self.advertise_redis.or(file.advertise_redis),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            tls_client_ca: self.tls_client_ca.or(file.tls_client_ca),
            certificate_ttl: self.certificate_ttl.or(file.certificate_ttl),
            cors_origins: self.cors_origins.or(file.cors_origins),
            host_names: self.host_names.or(file.host_names),
            client_bytes: self.client_bytes.or(file.client_bytes),
            log_format: self.log_format.or(file.log_format),
            log: self.log.or(file.log),
        }
    }

    fn resolve(self) -> anyhow::Result<Config> {
        let place = |place: Option<Location>, default: SocketAddr| place.map_or(default.into(), |place| place.0);
        let listen_place = place(self.listen, LISTEN_DEFAULT);
        let listen = to_bind("--listen", &listen_place)?;
        let hints = hints(self.join)?;
        let origin = match (self.bootstrap || self.single, hints.is_empty(), self.token) {
            (true, true, _) => Origin::Found,
            (true, false, _) => bail!("a node either founds a cluster or joins one, not both"),
            (false, false, Some(token)) => Origin::Join { token },
            (false, ..) => Origin::Resume,
        };
        let role = role(self.role, self.weight)?;
        if role == NodeRole::Gateway && origin == Origin::Found {
            bail!("a gateway cannot found a cluster, because it holds no replicas; start it with --join");
        }
        let defaults = HostConfig::default();
        let host = HostConfig {
            tick_ms: self.tick_ms.unwrap_or(defaults.tick_ms),
            memtable_bytes_max: self.memtable_bytes.unwrap_or(defaults.memtable_bytes_max),
            log_bytes_max: self.log_bytes.unwrap_or(defaults.log_bytes_max),
            log_tail_entries: self.log_tail_entries.unwrap_or(defaults.log_tail_entries),
            read_threads: self.read_threads.unwrap_or(defaults.read_threads),
            unapplied_bytes_max: self.unapplied_bytes.unwrap_or(defaults.unapplied_bytes_max),
            raft: RaftConfig {
                election_ticks: self.election_ticks.unwrap_or(defaults.raft.election_ticks),
                heartbeat_ticks: self.heartbeat_ticks.unwrap_or(defaults.raft.heartbeat_ticks),
                ..defaults.raft
            },
            leases: if self.leases.unwrap_or(true) { defaults.leases } else { Leases::Off },
            folder_trust: self.trust_folder.map_or(defaults.folder_trust, TrustFolder::folder_trust),
            scrub: ScrubConfig {
                bytes_per_second: self.scrub_bytes_per_second.unwrap_or(defaults.scrub.bytes_per_second),
                pause_ms: scrub_pause_ms(self.scrub_pause.as_deref(), defaults.scrub.pause_ms)?,
            },
            transfer_bytes_per_second: self.transfer_bytes_per_second.and_then(NonZero::new),
            ..HostConfig::default()
        };
        host.validate()?;
        let shards = self.shards.unwrap_or(SHARDS_DEFAULT);
        if !(1..=BUCKETS_DEFAULT).contains(&shards) {
            bail!("--shards must be 1 to {BUCKETS_DEFAULT}: the collection `default` has {BUCKETS_DEFAULT} buckets");
        }
        let (http_place, redis_place) = (place(self.http, HTTP_DEFAULT), place(self.redis, REDIS_DEFAULT));
        let (http, redis) = (to_bind("--http", &http_place)?, to_bind("--redis", &redis_place)?);
        let clients = match (self.secure, self.insecure) {
            (true, true) => bail!("a node is either --secure or --insecure"),
            (false, true) => ClientMode::Open,
            (true, false) => ClientMode::Secure,
            (false, false) if http.ip().is_loopback() && redis.ip().is_loopback() => ClientMode::Open,
            (false, false) => ClientMode::Secure,
        };
        let tls_files = match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (None, None) => None,
            _ => bail!("--tls-cert and --tls-key go together"),
        };
        if clients == ClientMode::Open && (tls_files.is_some() || self.tls_client_ca.is_some()) {
            bail!("--tls-cert and --tls-client-ca need --secure: without it clients are served in clear text");
        }
        let locality = self.locality.unwrap_or_default();
        let is_named = self.name.is_some();
        let name = self.name.unwrap_or_else(|| format!("node-{}", listen.port()));
        if name.trim().is_empty() {
            bail!("--name may not be empty");
        }
        if !is_printable(&locality) || !is_printable(&name) {
            bail!("--name and --locality may not have control characters");
        }
        let locality = locality.parse()?;
        let client_bytes = self.client_bytes.unwrap_or(CLIENT_BYTES_DEFAULT);
        if client_bytes < CLIENT_BYTES_MIN {
            bail!("--client-bytes must be at least {CLIENT_BYTES_MIN}");
        }
        let advertise_http = client_address("--advertise-http", self.advertise_http, &http_place)?;
        let mut host_names = self.host_names.unwrap_or_else(own_host_names);
        host_names.extend(advertise_http.as_deref().and_then(name_of).map(str::to_owned));
        Ok(Config {
            data_dir: self.data_dir.unwrap_or_else(|| "flotilla-data".into()),
            listen,
            advertise: advertised(&listen_place, self.advertise.map(|place| place.0))?,
            hints,
            http,
            redis,
            advertise_http,
            advertise_redis: client_address("--advertise-redis", self.advertise_redis, &redis_place)?,
            clients,
            tls_files,
            tls_client_ca: self.tls_client_ca,
            certificate_ttl: certificate_ttl(self.certificate_ttl.as_deref())?,
            name,
            is_named,
            role,
            locality,
            origin,
            shards,
            host,
            view: self.view.unwrap_or_default().options(self.index_bytes)?,
            ballast_bytes: self.ballast_bytes.unwrap_or(BALLAST_BYTES_DEFAULT),
            cors_origins: self.cors_origins.unwrap_or_default(),
            host_names,
            client_bytes,
            log_format: self.log_format.unwrap_or_default(),
            log: log_filter(self.log.as_deref().unwrap_or(LOG_DEFAULT))?,
        })
    }
}

/// The default filter of log lines.
const LOG_DEFAULT: &str = "info";

/// Reads a filter of log lines. A word that is no level would be taken for the name of a part of the program,
/// so a mistyped level must not stand alone.
fn log_filter(text: &str) -> anyhow::Result<Targets> {
    let is_level = |text: &str| !text.is_empty() && text.parse::<LevelFilter>().is_ok();
    let fits = |part: &str| match part.trim().split_once('=') {
        None => is_level(part.trim()),
        Some((target, level)) => !target.is_empty() && is_level(level),
    };
    match text.parse() {
        Ok(filter) if text.split(',').all(fits) => Ok(filter),
        Ok(_) | Err(_) => bail!(
            "--log must be error, warn, info, debug, trace or off, or a filter such as info,flotilla_control=debug, \
             not `{text}`"
        ),
    }
}

/// Checks where clients reach this node. A wildcard that a node listens on is nowhere to be reached; a name
/// that it listens on is where clients reach it.
fn client_address(flag: &str, address: Option<String>, listen: &HostPort) -> anyhow::Result<Option<String>> {
    match &address {
        None if listen.ip().is_some_and(|ip| ip.is_unspecified()) => {
            bail!("{listen} is every address of this machine; name one at which clients reach it with {flag}")
        }
        None => return Ok(listen.address().is_none().then(|| listen.to_string())),
        Some(address) => {
            let parts = address.rsplit_once(':');
            let valid = parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            if !valid {
                bail!("{flag} must be host:port, not `{address}`");
            }
        }
    }
    Ok(address)
}

fn role(name: Option<RoleName>, weight: Option<u32>) -> anyhow::Result<NodeRole> {
    match (name.unwrap_or(RoleName::Storage), weight) {
        (RoleName::Gateway, Some(_)) => bail!("--weight is for nodes that hold replicas, and a gateway holds none"),
        (RoleName::Gateway, None) => Ok(NodeRole::Gateway),
        (RoleName::Storage, None) => Ok(NodeRole::default()),
        (RoleName::Storage, Some(weight)) if weight <= NodeRole::WEIGHT_MAX => Ok(NodeRole::Storage { weight }),
        (RoleName::Storage, Some(_)) => bail!("--weight must be 0 to {}", NodeRole::WEIGHT_MAX),
    }
}

fn certificate_ttl(text: Option<&str>) -> anyhow::Result<Duration> {
    let Some(text) = text else { return Ok(VALID_MAX) };
    let ttl = humantime::parse_duration(text).context("--certificate-ttl is not a duration")?;
    if !(CERTIFICATE_TTL_MIN..=VALID_MAX).contains(&ttl) {
        bail!("--certificate-ttl must be 10s to 90days");
    }
    Ok(ttl)
}

/// Longest pause between two passes of the scrub.
const SCRUB_PAUSE_MAX: Duration = Duration::from_secs(365 * 86_400);

fn scrub_pause_ms(text: Option<&str>, default_ms: u64) -> anyhow::Result<u64> {
    let Some(text) = text else { return Ok(default_ms) };
    let pause = humantime::parse_duration(text).context("--scrub-pause is not a duration")?;
    if pause > SCRUB_PAUSE_MAX {
        bail!("--scrub-pause must be at most 365days");
    }
    Ok(pause.as_millis() as u64)
}

/// The host of an address, if it is a name.
fn name_of(address: &str) -> Option<&str> {
    let (host, _) = address.rsplit_once(':')?;
    is_plain_name(host).then_some(host)
}

/// The name of this host, if it is one that a client could use.
fn own_host_names() -> Vec<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if is_plain_name(&name) { vec![name] } else { Vec::new() }
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
}

#[cfg(test)]
mod tests;
