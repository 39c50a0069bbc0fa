//! `flotilla start`: assembles a node from the other crates and runs it until it is asked to stop.

mod admin;
mod audit;
mod authority;
mod ballast;
mod certificate;
mod client_tls;
mod config;
mod consistency;
mod departure;
mod descriptors;
mod ending;
mod events;
mod folder;
mod founding;
mod health;
mod inbound;
mod join;
mod load;
mod machines;
mod merges;
mod metrics;
mod moves;
mod node_change;
mod operations;
mod placement;
mod places;
mod scrub;
mod security;
mod shard_view;
mod splits;
mod status;
#[cfg(test)]
mod testing;

use std::{
    net::SocketAddr,
    num::NonZero,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use flotilla_control::{Control, ControlParts, DiskReader, LocalNode, MembershipConfig, RpcServer, Topology, notices};
use flotilla_failpoints::{Place, reached};
use flotilla_gateway::{ClientBudget, GatewayStart, HttpConfig, Security, Store};
use flotilla_identity::NodeIdentity;
use flotilla_meta::{MetaState, Setting};
use flotilla_raft_log::EngineLog;
use flotilla_replication::{Handle, Host, HostParts, clock};
use flotilla_state::Engine;
use flotilla_storage::ValueObjects;
use flotilla_transport::{BoundSocket, Transport};
use flotilla_types::{HostPort, NodeId, VersionRange};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::{Layer as _, fmt, layer::SubscriberExt as _, registry, util::SubscriberInitExt as _};

use crate::evidence;

use admin::NodeAdmin;
use audit::Audit;
use authority::{AuthorityDesk, Custody};
use certificate::Keeper;
use client_tls::CertificateSource;
pub(crate) use config::StartArgs;
use config::{Config, LogFormat, Origin};
use departure::Departure;
use descriptors::ConnectionLimits;
use ending::{EXIT_REMOVED, EXIT_USAGE, Ended, Removal, Usage};
use events::Events;
use folder::Folder;
use founding::Founding;
use inbound::{Inbound, InboundHandler, Services};
use join::JoinAdmission;

/// How long a stopping node waits for the transfer of its leaderships.
const LEADERSHIP_TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a stopping node waits for its gateways, which end earlier by themselves.
const GATEWAYS_STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// How long this node's own name may take to resolve.
const OWN_NAME_TIMEOUT: Duration = Duration::from_secs(3);
/// Exit code after a fatal error, such as a failed disk.
const EXIT_FATAL: i32 = 70;
/// The exit codes of a node, for `--help`.
pub(crate) const EXIT_CODES_HELP: &str = "\
Exit codes:
   0  it was told to stop, or has left the cluster as it was told
   1  it could not start
   2  the flags are wrong, or do not fit the data directory
  70  a fatal error, such as a failed disk; a supervisor may start it again
  77  it was removed from the cluster, or has left it before; it must not be started again on this data directory";

type PublishEvent = Arc<dyn Fn(flotilla_control::Event) + Send + Sync>;

/// Runs a node. Returns after it was asked to stop.
pub(crate) fn run(args: StartArgs) -> ExitCode {
    #[cfg(feature = "failpoints")]
    limit_versions();
    let config = match args.resolve() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("flotilla: {error:#}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    init_logging(&config);
    let data_dir = config.data_dir.clone();
    match start(config) {
        Ok(Ended::Stopped | Ended::Left) => ExitCode::SUCCESS,
        Ok(Ended::Removed) => ExitCode::from(EXIT_REMOVED),
        Err(error) => {
            tracing::error!("{error:#}");
            if let Some(shortage) = ballast::shortage(&data_dir) {
                tracing::error!("{shortage}");
            }
            if error.is::<Usage>() { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Makes this node as old as a test wants it.
#[cfg(feature = "failpoints")]
fn limit_versions() {
    let max = std::env::var(flotilla_failpoints::VERSION_VARIABLE).ok().and_then(|max| max.parse().ok());
    if let Some(max) = max {
        flotilla_types::limit_supported(flotilla_types::ClusterVersion(max));
    }
}

fn init_logging(config: &Config) {
    let filter = config.log.clone();
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let layer = fmt::layer().with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => registry().with(layer.with_ansi(colours).with_filter(filter)).init(),
        LogFormat::Json => registry().with(layer.json().with_filter(filter)).init(),
    }
}

fn start(config: Config) -> anyhow::Result<Ended> {
    let metrics = metrics::install().context("cannot set up metrics")?;
    descriptors::raise_limit();
    let folder = Arc::new(Folder::open(&config.data_dir)?);
    // Before anything is written.
    ballast::prepare(&config.data_dir, config.ballast_bytes);
    #[cfg(feature = "failpoints")]
    {
        tracing::warn!("this build has failpoints; use it for tests only");
        flotilla_failpoints::watch(&config.data_dir)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.spawn(metrics::upkeep(metrics.clone()));
    let Some((host, log, ended)) = runtime.block_on(serve(config, folder, metrics))? else {
        return Ok(Ended::Removed);
    };
    // Stopped while the runtime still exists, because the host's threads may wait for its tasks.
    host.stop();
    runtime.shutdown_timeout(Duration::from_secs(1));
    match Arc::into_inner(log).map(EngineLog::close) {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::warn!(%error, "no marker of the clean stop; the next start asks peers"),
        None => tracing::warn!("the log is still in use; no marker of the clean stop"),
    }
    Ok(ended)
}

/// This node's identity, and the peers to fetch metadata from while there is none. Founds or joins a cluster
/// if the data folder holds no identity.
async fn identity(config: &Config, folder: &Folder) -> anyhow::Result<(NodeIdentity, Vec<(NodeId, HostPort)>)> {
    if let Some(identity) = folder.identity()? {
        return Ok((identity, folder.seeds()?));
    }
    match &config.origin {
        Origin::Found => Ok((join::found_cluster(folder, config.certificate_ttl)?, Vec::new())),
        Origin::Join { token } => {
            let joined = join::join_cluster(folder, config, token).await?;
            Ok((joined.identity, joined.peers))
        }
        Origin::Resume if !config.hints.is_empty() => {
            let dir = config.data_dir.display();
            let text = "so --join needs --token; create one with `flotilla token create` on the cluster";
            Err(Usage(format!("{dir} holds no identity, {text}")).into())
        }
        Origin::Resume => anyhow::bail!(
            "{} holds no identity: found a cluster with --bootstrap (or --single), \
             or join one with --join ADDR --token TOKEN",
            config.data_dir.display()
        ),
    }
}

/// Builds the node, runs it until it is asked to stop or was removed, and shuts it down. Returns the host,
/// whose threads still run; `None` if it was clear before the start that the node was removed.
async fn serve(
    config: Config,
    folder: Arc<Folder>,
    metrics: PrometheusHandle,
) -> anyhow::Result<Option<(Host, Arc<EngineLog>, Ended)>> {
    // Ports are bound before anything else, so that a port conflict neither founds a cluster nor uses a
    // token.
    let ports = bind_ports(&config).await?;
    let (identity, seeds) = identity(&config, &folder).await?;
    let meta = folder.metadata()?;
    ending::check_name(&meta, identity.node(), config.given_name())?;
    ending::check_role(&meta, identity.node(), config.role)?;
    let left = folder.has_left().then_some(Removal::Left);
    if let Some(removal) = left.or_else(|| ending::recorded(&meta, identity.node())) {
        ending::report(removal, identity.node(), &meta, &config.data_dir.display().to_string());
        return Ok(None);
    }
    let me = local_node(&config, &folder, &identity)?;
    let topology = Arc::new(Topology::new(me.node, meta));
    tokio::spawn(stop_at_unsupported_version(topology.clone()));
    let renewed = watch::Sender::new(identity.clone());
    let custody = Custody::open(folder.clone(), topology.clone(), renewed.subscribe())?;

    let inbound = Arc::new(Inbound::default());
    inbound.set_topology(topology.clone());
    let network = start_network(&config, ports.quic, &identity, inbound.clone()).await?;
    if topology.meta().version() == 0 {
        for (node, address) in &seeds {
            network.set_peer(*node, address.clone());
        }
    }

    let events = Arc::new(Events::new());
    let publish: PublishEvent = {
        let events = events.clone();
        Arc::new(move |event| events.push(event))
    };
    let (notices, losses) = notices(topology.clone(), publish.clone());
    let log = open_log(&config, &folder)?;
    let (host, values) = open_host(&config, &folder, &me, log.clone(), topology.clone(), network.clone(), notices)?;
    let control = Control::start(ControlParts {
        me: me.clone(),
        topology: topology.clone(),
        host: host.handle(),
        network: network.clone(),
        notices: losses,
        membership: MembershipConfig::default(),
        located: located(&config.advertise).await,
        hints: config.hints.clone(),
        seed: rand::random(),
        seeds: seeds.iter().map(|(node, _)| *node).collect(),
        authority: authority_reader(custody.clone()),
        keep_evidence: evidence::keeper(&config.data_dir),
        disk: disk_reader(config.data_dir.clone()),
        cpu_used_us: Arc::new(metrics::cpu_used_us),
        events: publish,
        save_meta: metadata_writer(folder.clone()),
    })?;
    let shards = control.shards().clone();
    let join_admission = JoinAdmission {
        cluster: identity.cluster(),
        custody: custody.clone(),
        shards: shards.clone(),
        network: network.clone(),
    };
    let desk = AuthorityDesk {
        custody: custody.clone(),
        topology: topology.clone(),
        network: network.clone(),
        shards: shards.clone(),
    };
    inbound.set_services(Services {
        host: host.handle(),
        rpc: RpcServer::new(shards.clone(), Arc::new(desk.clone())),
        gossip: control.gossip().clone(),
        join_admission: Arc::new(join_admission),
    });
    if folder.is_founding() {
        let founding = Founding::new(&config, &identity, me.addresses.clone(), &folder)?;
        tokio::spawn(founding.run(folder.clone(), host.handle(), shards.clone()));
    }

    let stopping = Arc::new(AtomicBool::new(false));
    let departure = Departure::new(&topology, &shards, inbound.ending.clone());
    let store = Store::new(shards.clone(), values, GatewayStart(rand::random()));
    let ports_issued_by = watch::Sender::new(None);
    let certified_ports = security::certifies_ports(&config).then(|| ports_issued_by.subscribe());
    let security = Security {
        access: security::access(config.clients, topology.clone()),
        tls: security::tls(&config, || CertificateSource {
            identity: renewed.subscribe(),
            folder: folder.clone(),
            custody: custody.clone(),
            topology: topology.clone(),
            network: network.clone(),
            hosts: client_tls::client_hosts([&me.addresses.http, &me.addresses.redis]).into_iter().collect(),
            valid: config.certificate_ttl,
            client_authorities: Vec::new(),
            issued_by: ports_issued_by,
        })?,
    };
    folder.set_ca_pem(&identity.ca_pem())?;
    let admin = NodeAdmin {
        store: store.clone(),
        audit: Audit::open(&config.data_dir, identity.node())?,
        notes: security::notes(&config),
        identity: renewed.subscribe(),
        desk,
        topology: topology.clone(),
        host: host.handle(),
        network: network.clone(),
        shards: shards.clone(),
        events,
        metrics,
        stopping: stopping.clone(),
        started_ms: clock::wall_ms(),
        was_ready: AtomicBool::new(false),
    };
    let keeper = Keeper {
        identity: renewed,
        folder: folder.clone(),
        custody,
        topology: topology.clone(),
        network: network.clone(),
        shards,
        valid: config.certificate_ttl,
        seeds: seeds.into_iter().map(|(_, address)| address).collect(),
        hints: config.hints.clone(),
        ending: inbound.ending.clone(),
        client_ports: certified_ports,
    };
    tokio::spawn(keeper.run());
    if config.host.transfer_bytes_per_second.is_none() {
        tokio::spawn(follow_transfer_rate(topology.clone(), host.handle()));
    }
    let (stop, stopped) = watch::channel(false);
    let gateways = serve_clients(&config, ports.http, ports.redis, store, Arc::new(admin), security, &stopped)?;

    let ended = wait_for_end(&config, &departure, &inbound, &topology).await?;
    stopping.store(true, Ordering::Relaxed);
    if ended == Ended::Left {
        tracing::info!("leaving the cluster");
        // First, because after its removal no peer takes the requests that clients still send here.
        stop_gateways(&stop, gateways).await;
        if departure.complete().await
            && let Err(error) = folder.set_left()
        {
            tracing::warn!(%error, "the next start will not know that this node has left");
        }
        control.leave().await;
    } else {
        tracing::info!("stopping: transferring leaderships");
        step_down(&host.handle()).await;
        control.leave().await;
        stop_gateways(&stop, gateways).await;
    }
    network.close().await;
    Ok(Some((host, log, ended)))
}

/// Where gossip says that this node is. A name may resolve here to an address that means another machine
/// elsewhere, so a loopback address of a name is not passed on: others resolve the name.
async fn located(advertise: &HostPort) -> SocketAddr {
    let unspecified = SocketAddr::from(([0, 0, 0, 0], advertise.port()));
    if let Some(address) = advertise.address() {
        return address;
    }
    let found = flotilla_transport::resolve(advertise, OWN_NAME_TIMEOUT).await;
    if found.is_empty() {
        tracing::warn!("the name in --advertise {advertise} does not resolve here; other nodes need it to");
    }
    found.into_iter().find(|address| !address.ip().is_loopback()).unwrap_or(unspecified)
}

/// Describes this node for this start, which is counted durably.
fn local_node(config: &Config, folder: &Folder, identity: &NodeIdentity) -> anyhow::Result<LocalNode> {
    let incarnation = folder.next_incarnation(clock::wall_ms())?;
    let me = LocalNode {
        node: identity.node(),
        incarnation,
        addresses: join::addresses_of(config),
        locality: config.locality.clone(),
        role: config.role,
        versions: VersionRange::supported(),
    };
    tracing::info!(node = %me.node, cluster = %identity.cluster(), %incarnation, name = config.name, "starting");
    Ok(me)
}

/// Ends the process when the metadata shows a cluster version that this binary does not support.
async fn stop_at_unsupported_version(topology: Arc<Topology>) {
    let mut metadata = topology.watch();
    // The sender lives as long as the topology.
    while metadata.changed().await.is_ok() {
        let in_force = metadata.borrow_and_update().cluster_version();
        if let Err(error) = folder::check_cluster_version(in_force) {
            tracing::error!("{error:#}");
            eprintln!("flotilla: fatal error: {error:#}");
            std::process::exit(EXIT_FATAL);
        }
    }
}

/// Transfers at the cluster's rate: of a node that was started without one of its own.
async fn follow_transfer_rate(topology: Arc<Topology>, host: Handle) {
    let mut metadata = topology.watch();
    let mut rate = None;
    loop {
        let setting = NonZero::new(metadata.borrow_and_update().setting(Setting::TransferBytesPerSecond));
        if setting != rate {
            host.set_transfer_rate(setting);
            rate = setting;
        }
        // The sender lives as long as the topology.
        if metadata.changed().await.is_err() {
            return;
        }
    }
}

/// The bound ports of this node.
struct BoundPorts {
    http: TcpListener,
    redis: TcpListener,
    quic: BoundSocket,
}

async fn bind_ports(config: &Config) -> anyhow::Result<BoundPorts> {
    let http =
        TcpListener::bind(config.http).await.with_context(|| format!("cannot listen on {} (HTTP)", config.http))?;
    let redis =
        TcpListener::bind(config.redis).await.with_context(|| format!("cannot listen on {} (Redis)", config.redis))?;
    let quic = BoundSocket::bind(config.listen)
        .with_context(|| format!("cannot listen on {} (UDP, for other nodes)", config.listen))?;
    Ok(BoundPorts { http, redis, quic })
}

async fn start_network(
    config: &Config,
    socket: BoundSocket,
    identity: &NodeIdentity,
    inbound: Arc<Inbound>,
) -> anyhow::Result<Arc<Transport>> {
    let transport = flotilla_transport::Config::new(config.listen);
    let network = Transport::start_on(socket, transport, identity.clone(), Arc::new(InboundHandler(inbound))).await?;
    Ok(Arc::new(network))
}

/// Reads the cluster authority, in the form in which it is sent to a new voter of the metadata group.
fn authority_reader(custody: Arc<Custody>) -> Arc<dyn Fn() -> Option<Vec<u8>> + Send + Sync> {
    Arc::new(move || custody.to_give())
}

/// Reads how much disk the data folder has.
fn disk_reader(data_dir: PathBuf) -> DiskReader {
    Arc::new(move || {
        ballast::disk(&data_dir).inspect_err(|error| tracing::debug!(%error, "the disk is not known")).ok()
    })
}

/// Writes new metadata to the cache in the data folder.
fn metadata_writer(folder: Arc<Folder>) -> Arc<dyn Fn(&MetaState) + Send + Sync> {
    Arc::new(move |meta| {
        if meta.version() == 0 {
            return;
        }
        reached(Place::FeedBeforeKeep);
        if let Err(error) = folder.set_metadata(meta) {
            tracing::warn!(%error, "the metadata cache could not be written");
        }
        reached(Place::FeedKept);
    })
}

fn open_log(config: &Config, folder: &Folder) -> anyhow::Result<Arc<EngineLog>> {
    let options = flotilla_raft_log::Options::for_replica_log_bytes(config.host.log_bytes_max);
    let log_dir = folder.log_dir();
    let log =
        EngineLog::open(&log_dir, options).with_context(|| format!("cannot open the log in {}", log_dir.display()))?;
    match log.evidence() {
        Ok(evidence) => tracing::info!(?evidence, "the log is complete"),
        Err(doubt) => {
            tracing::info!(reason = %doubt, "no evidence that the log is complete: replicas wait for peers, if any (see --trust-folder)");
        }
    }
    Ok(Arc::new(log))
}

fn open_host(
    config: &Config,
    folder: &Folder,
    me: &LocalNode,
    log: Arc<EngineLog>,
    topology: Arc<Topology>,
    network: Arc<Transport>,
    notices: Box<dyn Fn(flotilla_replication::Notice) + Send>,
) -> anyhow::Result<(Host, Arc<dyn ValueObjects>)> {
    let options = flotilla_state::Options { view: config.view.clone(), ..flotilla_state::Options::default() };
    let state_dir = folder.state_dir();
    let engine = Engine::open(&state_dir, options)
        .with_context(|| format!("cannot open the state in {}", state_dir.display()))?;
    let engine = Arc::new(engine);
    let parts = HostParts {
        node: me.node,
        incarnation: me.incarnation,
        config: config.host.clone(),
        log,
        engine: engine.clone(),
        values: engine.clone(),
        machines: machines::machines(topology),
        lists: flotilla_values::list_refs,
        seed: rand::random(),
        notices,
        fatal: end_process(config.data_dir.clone()),
    };
    Ok((Host::start(parts, network, tokio::runtime::Handle::current())?, engine))
}

/// Ends the process after a fatal error. Everything that was acknowledged is durable.
fn end_process(data_dir: PathBuf) -> Arc<dyn Fn(&str) + Send + Sync> {
    Arc::new(move |reason| {
        let dir = data_dir.display();
        tracing::error!(reason, data_dir = %dir, "fatal error: the node ends");
        eprintln!("flotilla: fatal error: {reason} (data directory {dir})");
        if let Some(shortage) = ballast::shortage(&data_dir) {
            eprintln!("flotilla: {shortage}");
        }
        std::process::exit(EXIT_FATAL);
    })
}

/// Starts the HTTP and Redis gateways. The returned future ends when both have stopped.
fn serve_clients(
    config: &Config,
    http: TcpListener,
    redis: TcpListener,
    store: Store,
    admin: Arc<NodeAdmin>,
    security: Security,
    stopping: &watch::Receiver<bool>,
) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let stopped = |mut stopping: watch::Receiver<bool>| async move {
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let http_config = HttpConfig {
        cors_origins: config.cors_origins.clone(),
        host_names: config.host_names.clone(),
        ..HttpConfig::default()
    };
    let redis_config = flotilla_gateway_redis::ServerConfig::default();
    let budget = ClientBudget::new(config.client_bytes);
    let wanted = ConnectionLimits { http: http_config.connections_max, redis: redis_config.connections_max };
    let limits = wanted.within_process();
    let per_address = |wanted: usize, connections_max: usize| wanted.min(connections_max * 3 / 4).max(1);
    let http_config = HttpConfig {
        connections_max: limits.http,
        connections_per_address_max: per_address(http_config.connections_per_address_max, limits.http),
        ..http_config
    };
    http_config.validate()?;
    let redis_config = flotilla_gateway_redis::ServerConfig {
        connections_max: limits.redis,
        connections_per_address_max: per_address(redis_config.connections_per_address_max, limits.redis),
        ..redis_config
    };
    let http_task = tokio::spawn(flotilla_gateway::serve(
        http,
        store.clone(),
        admin.clone(),
        security.clone(),
        budget.clone(),
        http_config,
        stopped(stopping.clone()),
    ));
    let redis_task = tokio::spawn(flotilla_gateway_redis::serve(
        redis,
        store,
        admin,
        security,
        budget,
        redis_config,
        stopped(stopping.clone()),
    ));
    tracing::info!(http = %config.http, redis = %config.redis, quic = %config.listen, "serving");
    Ok(async move {
        let _ = http_task.await;
        let _ = redis_task.await;
    })
}

/// Transfers leaderships. A node whose transfers do not finish in time leaves all the same.
async fn step_down(host: &Handle) {
    host.step_down();
    let deadline = Instant::now() + LEADERSHIP_TRANSFER_TIMEOUT;
    while host.transferable_leaderships() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Closes the client ports after the requests that were read are answered.
async fn stop_gateways(stop: &watch::Sender<bool>, gateways: impl Future<Output = ()>) {
    let _ = stop.send(true);
    let _ = tokio::time::timeout(GATEWAYS_STOP_TIMEOUT, gateways).await;
}

/// Waits until the node is asked to stop, has nothing left to do before it leaves, or is found to be removed.
async fn wait_for_end(
    config: &Config,
    departure: &Departure,
    inbound: &Inbound,
    topology: &Arc<Topology>,
) -> anyhow::Result<Ended> {
    let removal = tokio::select! {
        stopped = wait_for_stop() => return stopped.map(|()| Ended::Stopped),
        () = departure.is_due() => Removal::Left,
        removal = inbound.ending.wait(topology, config.given_name(), config.role) => removal?,
    };
    if removal == Removal::Left {
        return Ok(Ended::Left);
    }
    ending::report(removal, topology.node(), &topology.meta(), &config.data_dir.display().to_string());
    Ok(Ended::Removed)
}

/// Waits for a signal that stops the node. A hangup is one: the terminal of a node in the foreground is gone.
async fn wait_for_stop() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}
