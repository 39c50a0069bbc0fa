//! `flotilla start`: builds a node from its parts and runs it until it is told to stop.

mod admin;
mod config;
mod events;
mod folder;
mod founding;
mod inbound;
mod join;
mod machines;
mod metrics;
mod status;

use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use flotilla_control::{Control, ControlParts, Me, MembershipConfig, RpcServer, Topology, notices};
use flotilla_failpoints::{Place, reached};
use flotilla_gateway::{HttpConfig, Store};
use flotilla_identity::NodeIdentity;
use flotilla_raft_log::EngineLog;
use flotilla_replication::{Handle, Host, HostParts, clock};
use flotilla_state::Engine;
use flotilla_transport::Transport;
use flotilla_types::{NodeId, SessionId};
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::RwLock;
use tokio::{net::TcpListener, sync::watch};

use admin::NodeAdmin;
pub(crate) use config::StartArgs;
use config::{Config, LogFormat, Origin};
use events::Events;
use folder::Folder;
use founding::Founding;
use inbound::{Door, Inbound, Parts};
use join::{Authority, Doorkeeper};

/// How long a node that leaves waits for others to take its leaderships over.
const HAND_OVER: Duration = Duration::from_secs(3);
/// Bytes of one frame between nodes: the largest entry (a batch of 8 MiB) and its envelope.
const FRAME_BYTES_MAX: usize = 16 << 20;
/// Exit code when the node cannot go on.
const EXIT_FATAL: i32 = 70;

/// Runs a node. Returns when it was told to stop.
pub(crate) fn run(args: StartArgs) -> ExitCode {
    let config = match args.resolve() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("flotilla: {error:#}");
            return ExitCode::from(2);
        }
    };
    init_logging(&config);
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn init_logging(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log).unwrap_or_else(|_| "info".into());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    match config.log_format {
        LogFormat::Text => subscriber.with_ansi(colours).init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    let metrics = metrics::install().context("cannot set up metrics")?;
    let folder = Arc::new(Folder::open(&config.data_dir)?);
    #[cfg(feature = "failpoints")]
    {
        tracing::warn!("this build has failpoints: it is for tests");
        flotilla_failpoints::watch(&config.data_dir)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.spawn(metrics::upkeep(metrics.clone()));
    let host = runtime.block_on(serve(config, folder, metrics, runtime.handle().clone()))?;
    // Its threads may still wait for tasks of the runtime.
    host.stop();
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

/// Who this node is, and whom it can ask for metadata when it knows none.
async fn identity(config: &Config, folder: &Folder) -> anyhow::Result<(NodeIdentity, Vec<(NodeId, SocketAddr)>)> {
    if let Some(identity) = folder.identity()? {
        return Ok((identity, folder.seeds()?));
    }
    match &config.origin {
        Origin::Found => Ok((join::found(folder)?, Vec::new())),
        Origin::Join { peers, token } => {
            let joined = join::join(folder, config, peers, token).await?;
            Ok((joined.identity, joined.peers))
        }
        Origin::Resume => anyhow::bail!(
            "{} holds no identity: found a cluster with --bootstrap (or --single), or join one with --join ADDR --token TOKEN",
            config.data_dir.display()
        ),
    }
}

async fn serve(
    config: Config,
    folder: Arc<Folder>,
    metrics: PrometheusHandle,
    runtime: tokio::runtime::Handle,
) -> anyhow::Result<Host> {
    let (identity, seeds) = identity(&config, &folder).await?;
    let incarnation = folder.next_incarnation(clock::wall_ms())?;
    let me = Me {
        node: identity.node(),
        incarnation,
        addresses: join::addresses_of(&config),
        locality: config.locality.clone(),
    };
    tracing::info!(node = %me.node, cluster = %identity.cluster(), %incarnation, name = config.name, "starting");
    let topology = Arc::new(Topology::new(me.node, folder.metadata()));
    let authority: Authority = Arc::new(RwLock::new(folder.authority()?));

    // Ports are taken before anything is opened, so that a second node on them fails at once.
    let http =
        TcpListener::bind(config.http).await.with_context(|| format!("cannot listen on {} (HTTP)", config.http))?;
    let redis =
        TcpListener::bind(config.redis).await.with_context(|| format!("cannot listen on {} (Redis)", config.redis))?;
    let inbound = Arc::new(Inbound::default());
    inbound.know(topology.clone());
    let mut transport = flotilla_transport::Config::new(config.listen);
    transport.frame_bytes_max = FRAME_BYTES_MAX;
    let network = Transport::start(transport, identity.clone(), Arc::new(Door(inbound.clone()))).await?;
    let network = Arc::new(network);
    for (node, address) in seeds.iter().filter(|_| topology.meta().version() == 0) {
        network.set_peer(*node, *address);
    }

    let events = Arc::new(Events::new());
    let tell: Arc<dyn Fn(flotilla_control::Event) + Send + Sync> = {
        let events = events.clone();
        Arc::new(move |event| events.push(event))
    };
    let (notices, losses) = notices(topology.clone(), tell.clone());
    let host = open_host(&config, &folder, &me, topology.clone(), network.clone(), notices, runtime)?;

    let control = Control::start(ControlParts {
        me: me.clone(),
        topology: topology.clone(),
        host: host.handle(),
        network: network.clone(),
        notices: losses,
        membership: MembershipConfig::default(),
        listen: config.advertise,
        seed: rand::random(),
        seeds: seeds.iter().map(|(node, _)| *node).collect(),
        authority: {
            let authority = authority.clone();
            Arc::new(move || authority.read().as_ref().and_then(|authority| folder::authority_to(authority).ok()))
        },
        events: tell,
        keep: {
            let folder = folder.clone();
            Arc::new(move |meta| {
                if meta.version() > 0 {
                    reached(Place::FeedBeforeKeep);
                    if let Err(error) = folder.set_metadata(meta) {
                        tracing::warn!(%error, "the metadata cache could not be written");
                    }
                    reached(Place::FeedKept);
                }
            })
        },
    })?;
    let shards = control.shards().clone();
    let door = Doorkeeper { identity: identity.clone(), authority: authority.clone(), shards: shards.clone() };
    inbound.open(Parts {
        host: host.handle(),
        rpc: RpcServer::new(topology.clone(), host.handle(), take_authority(folder.clone(), authority, &identity)),
        gossip: control.gossip().clone(),
        door: Arc::new(door),
    });
    if folder.is_founding() {
        let digest = identity.key().public_key_digest();
        let (name, locality) = (config.name.clone(), config.locality.clone());
        let founding = Founding::new(identity.cluster(), name, me.addresses.clone(), locality, digest, config.shards);
        tokio::spawn(founding.run(folder.clone(), host.handle(), shards.clone()));
    }

    let draining = Arc::new(AtomicBool::new(false));
    let admin = NodeAdmin {
        identity,
        topology,
        host: host.handle(),
        network: network.clone(),
        shards: shards.clone(),
        events,
        metrics,
        draining: draining.clone(),
        started_ms: clock::wall_ms(),
    };
    let store = Store::new(shards, SessionId(rand::random()));
    let (stop, stopping) = watch::channel(false);
    let gateways = serve_clients(&config, http, redis, store, Arc::new(admin), &stopping)?;

    wait_for_stop().await?;
    tracing::info!("stopping: handing leaderships over");
    draining.store(true, Ordering::Relaxed);
    leave(&host.handle(), &control).await;
    let _ = stop.send(true);
    let _ = tokio::time::timeout(HAND_OVER, gateways).await;
    network.close().await;
    Ok(host)
}

fn open_host(
    config: &Config,
    folder: &Folder,
    me: &Me,
    topology: Arc<Topology>,
    network: Arc<Transport>,
    notices: Box<dyn Fn(flotilla_replication::Notice) + Send>,
    runtime: tokio::runtime::Handle,
) -> anyhow::Result<Host> {
    let log =
        EngineLog::open(&folder.log_dir(), flotilla_raft_log::Options::default()).context("cannot open the log")?;
    let options = flotilla_state::Options { view: config.view.options(), ..flotilla_state::Options::default() };
    let engine = Engine::open(folder.state_dir(), options).context("cannot open the state")?;
    let parts = HostParts {
        node: me.node,
        incarnation: me.incarnation,
        config: config.host.clone(),
        log: Arc::new(log),
        engine: Arc::new(engine),
        machines: machines::machines(topology),
        seed: rand::random(),
        notices,
        fatal: Arc::new(|reason| {
            tracing::error!(reason, "this node cannot go on");
            eprintln!("flotilla: this node cannot go on: {reason}");
            std::process::exit(EXIT_FATAL);
        }),
    };
    Ok(Host::start(parts, network, runtime)?)
}

/// Takes the cluster authority from the metadata group's leader, durably, if it is this cluster's.
fn take_authority(
    folder: Arc<Folder>,
    authority: Authority,
    identity: &NodeIdentity,
) -> flotilla_control::TakeAuthority {
    let pinned = identity.ca_fingerprint();
    Arc::new(move |bytes| match folder::authority_from(bytes) {
        Ok(taken) if taken.fingerprint() == pinned => {
            if let Err(error) = folder.set_authority(&taken) {
                tracing::error!(error = format!("{error:#}"), "the cluster authority could not be kept");
                return false;
            }
            *authority.write() = Some(taken);
            true
        }
        Ok(_) | Err(_) => false,
    })
}

fn serve_clients(
    config: &Config,
    http: TcpListener,
    redis: TcpListener,
    store: Store,
    admin: Arc<NodeAdmin>,
    stopping: &watch::Receiver<bool>,
) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let stopped = |mut stopping: watch::Receiver<bool>| async move {
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let http_config = HttpConfig { cors_origins: config.cors_origins.clone(), ..HttpConfig::default() };
    http_config.validate()?;
    let redis_config = flotilla_gateway_redis::ServerConfig::default();
    let http_task =
        tokio::spawn(flotilla_gateway::serve(http, store.clone(), admin, http_config, stopped(stopping.clone())));
    let redis_task = tokio::spawn(flotilla_gateway_redis::serve(redis, store, redis_config, stopped(stopping.clone())));
    tracing::info!(http = %config.http, redis = %config.redis, quic = %config.listen, "serving");
    Ok(async move {
        let _ = http_task.await;
        let _ = redis_task.await;
    })
}

/// Hands leaderships over, then says goodbye. Bounded: a node that cannot hand over leaves all the same.
async fn leave(host: &Handle, control: &Control) {
    host.step_down();
    let until = Instant::now() + HAND_OVER;
    while host.leads_shared() > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    control.leave().await;
}

async fn wait_for_stop() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}
