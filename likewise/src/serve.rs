//! `likewise serve`: the command API, the projector and the query API in one process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{HttpResponse, http::Method, web};
use likewise_command_api::{BacklogLimit, Commands};
use likewise_http::{Audience, Health, HealthApi, Routes, Server, health_routes};
use likewise_projector::{Limits, PartitionState, Status};
use likewise_query_api::Secret;
use likewise_schema::Partition;
use likewise_storage::{
    Clock, CounterStore, DataDir, EventLog, RecordStore, RequestStore, log::Membership, records::ReplaceableRecords,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::info;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;
use utoipa::{
    OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};
use utoipa_swagger_ui::SwaggerUi;

use crate::{
    Failure,
    config::Settings,
    console::{self, Console},
    demo,
    operator::{self, Operator},
    pages, private, wiring,
};

/// How long the projector may take to finish what is in flight on a stop.
const STOP_WAIT: Duration = Duration::from_secs(3);
/// How long an owner may make no step; what it waits for is bounded below that.
const STUCK_AFTER: Duration = Duration::from_secs(40);
/// The exit code of a process whose owner is stuck.
const STUCK: i32 = 70;
/// How often histograms are folded, which keeps their memory bounded.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// The pause between commits to a record server. Each costs it about as much as twenty rows.
const COMMIT_PAUSE: Duration = Duration::from_millis(20);
/// Upper bounds of latency buckets, in seconds.
const LATENCY_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0];

/// The whole HTTP contract, generated from the handlers.
pub(crate) fn openapi() -> utoipa::openapi::OpenApi {
    let mut document = likewise_command_api::Api::openapi();
    document.merge(likewise_query_api::Api::openapi());
    document.merge(HealthApi::openapi());
    document.info = utoipa::openapi::InfoBuilder::new()
        .title("Likewise")
        .version("1")
        .description(Some("Likes: commands, counts, statuses and lists. Errors are problem+json (RFC 9457)."))
        .build();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
    let bearer = bearer.description(Some("A token of the issuer, or a service key. None in the open loopback mode."));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
    // Counts, streams and trending are for everybody; the others say so with 401.
    document.security =
        Some(vec![SecurityRequirement::default(), SecurityRequirement::new::<_, _, &str>("bearer", [])]);
    document
}

/// What this process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roles {
    pub(crate) commands: bool,
    pub(crate) projector: bool,
    pub(crate) queries: bool,
}

impl Roles {
    pub(crate) const ALL: Roles = Roles { commands: true, projector: true, queries: true };
    pub(crate) const COMMANDS: Roles = Roles { commands: true, projector: false, queries: false };
    pub(crate) const PROJECTOR: Roles = Roles { commands: false, projector: true, queries: false };
    pub(crate) const QUERIES: Roles = Roles { commands: false, projector: false, queries: true };
}

/// What all roles work with.
struct Stores {
    log: Arc<dyn EventLog>,
    records: Arc<dyn RecordStore>,
    replica: Option<Arc<dyn RecordStore>>,
    counters: Arc<dyn CounterStore>,
    requests: Arc<dyn RequestStore>,
    clock: Clock,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) async fn run(settings: &Settings, roles: Roles) -> Result<(), Failure> {
    let _written_at_the_end = start_logging(settings)?;
    if roles != Roles::ALL {
        refuse_embedded(settings)?;
    }
    let (edge, admin_edge) = settings.security.edges()?;
    let metrics = start_metrics()?;
    let mut dirs = own_directories(settings)?;
    let clock = Clock::system();
    let log = wiring::writable_log(&settings.log, settings.partitions).await?;
    let mut records = wiring::writable_records(&settings.records).await?;
    // Files are replaced by the process that has them open.
    let is_embedded = settings.records.iter().all(|url| wiring::is_embedded(url));
    let files = is_embedded.then(|| Arc::new(ReplaceableRecords::new(Arc::clone(&records))));
    if let Some(files) = &files {
        records = Arc::clone(files) as Arc<dyn RecordStore>;
    }
    let replica = match &settings.records_replica[..] {
        [] => None,
        urls => Some(wiring::readable_records(urls).await?),
    };
    let (counters, requests) = wiring::counters(&settings.counters, &clock).await?;
    let stores = Stores { log, records, replica, counters, requests, clock };
    let secret = if roles.queries { Some(read_secret(&settings.secret_file)?) } else { None };
    let (listener, address) = bind("listen", settings.listen)?;
    let (admin_listener, admin_address) = bind("admin_listen", settings.admin_listen)?;
    for dir in &mut dirs {
        let scheme = if settings.security.has_tls() { "https" } else { "http" };
        dir.announce(Some((&address.to_string(), &format!("{scheme}://{admin_address}"))))?;
    }

    let mut projection = if roles.projector { Some(Projection::start(&stores, settings)?) } else { None };
    let commands = roles.commands.then(|| stores.commands(settings));
    let watched = commands.clone();
    let backlog = tokio::spawn(async move {
        if let Some(commands) = watched {
            commands.keep_up().await;
        }
    });
    let queries = secret.map(|secret| stores.queries(secret, settings.security.likers));
    let upkeep = queries.clone().map(|queries| tokio::spawn(async move { queries.keep_up().await }));
    let streaming = queries.clone();
    let draining = Arc::new(AtomicBool::new(false));
    let health =
        health(&stores, roles, projection.as_ref().map(|projection| Arc::clone(&projection.status)), &draining);
    let admin_health = Arc::clone(&health);
    let console = Console::new(&stores.log, queries.clone());
    let operator = files.map(|files| stores.operator(settings, files));
    let admin = Server::start(admin_listener, admin_edge, move |routes| {
        admin_routes(routes, &admin_health, &metrics, &console);
        operator.iter().for_each(|operator| operator::routes(routes, operator));
    })?;
    let demo = demo(settings, commands.as_ref());
    let public = Server::start(listener, edge, move |routes| {
        public_routes(routes, commands.as_ref(), queries.as_ref(), &health, &demo);
    })?;
    let stopped_by_signal = signals()?;
    greet(settings, roles, address, admin_address)?;

    let failed = tokio::select! {
        () = stopped_by_signal => None,
        reason = Projection::ended(projection.as_ref()) => Some(reason),
    };
    info!("stopping: not ready, then draining");
    draining.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(settings.drain_delay_ms)).await;
    if let Some(queries) = &streaming {
        queries.end_streams();
    }
    public.stop().await;
    backlog.abort();
    if let Some(upkeep) = upkeep {
        upkeep.abort();
    }
    stores.log.flush().await?;
    if let Some(projection) = projection.take() {
        projection.stop().await;
    }
    let _in_vain = tokio::time::timeout(STOP_WAIT, admin.stop()).await;
    info!("stopped");
    failed.map_or(Ok(()), |reason| Err(reason.into()))
}

/// A store in one process's files or memory cannot be shared by roles in several.
fn refuse_embedded(settings: &Settings) -> Result<(), Failure> {
    let stores = [
        ("log", "kafka://host:9092/likes"),
        ("records", "mysql://user:password@host/database"),
        ("counters", "redis://host:6379"),
    ];
    let urls = [vec![&settings.log], settings.records.iter().collect(), vec![&settings.counters]];
    for ((setting, server), urls) in stores.into_iter().zip(urls) {
        if urls.into_iter().any(|url| wiring::is_embedded(url)) {
            return Err(format!("a role of its own shares its stores with others: set --{setting} to a server such as {server}, or use likewise serve").into());
        }
    }
    Ok(())
}

impl Stores {
    fn commands(&self, settings: &Settings) -> Arc<likewise_command_api::State> {
        let ports = likewise_command_api::Ports {
            log: Arc::clone(&self.log),
            records: Arc::clone(&self.records),
            counters: Arc::clone(&self.counters),
            requests: Arc::clone(&self.requests),
            clock: self.clock.clone(),
        };
        let backlog = BacklogLimit::new(settings.max_backlog);
        let commands = Commands::new(ports, backlog, settings.security.limits);
        Arc::new(likewise_command_api::State::new(commands, settings.security.content_types.clone()))
    }

    fn operator(&self, settings: &Settings, files: Arc<ReplaceableRecords>) -> Arc<Operator> {
        let stores = likewise_analyst::verify::Stores {
            log: Arc::clone(&self.log),
            records: Arc::clone(&self.records),
            counters: Some(Arc::clone(&self.counters)),
        };
        Operator::new(stores, settings.records.clone(), files)
    }

    fn queries(&self, secret: Secret, likers: Audience) -> Arc<likewise_query_api::State> {
        let ports = likewise_query_api::Ports {
            counters: Arc::clone(&self.counters),
            records: Arc::clone(&self.records),
            replica: self.replica.clone(),
            partitions: self.log.partitions(),
            clock: self.clock.clone(),
        };
        Arc::new(likewise_query_api::State::new(ports, secret, likers))
    }
}

/// The projector role while it runs.
struct Projection {
    status: Arc<Status>,
    membership: Arc<Membership>,
    task: tokio::task::JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Projection {
    fn start(stores: &Stores, settings: &Settings) -> Result<Self, Failure> {
        let ports = likewise_projector::Ports {
            log: Arc::clone(&stores.log),
            records: Arc::clone(&stores.records),
            counters: Arc::clone(&stores.counters),
            clock: stores.clock.clone(),
        };
        let membership = Arc::new(stores.log.join(settings.instance_id.as_deref())?);
        let (stop, stopping) = watch::channel(false);
        let status = Arc::new(Status::default());
        let (member, told) = (Arc::clone(&membership), Arc::clone(&status));
        let is_on_a_server = settings.records.iter().any(|url| !wiring::is_embedded(url));
        let pause = if is_on_a_server { COMMIT_PAUSE } else { Duration::ZERO };
        let limits = Limits { pause, ..Limits::default() };
        let task = tokio::spawn(async move {
            likewise_projector::run(ports, limits, &member, told, stopping).await;
        });
        watch_for_stuck_owners(Arc::clone(&status))?;
        Ok(Self { status, membership, task, stop })
    }

    /// Waits until this process can project nothing any more, and says why.
    async fn ended(projection: Option<&Self>) -> String {
        match projection {
            Some(projection) => projection.membership.ended().await,
            None => std::future::pending().await,
        }
    }

    async fn stop(self) {
        let _has_ended = self.stop.send(true);
        let _in_vain = tokio::time::timeout(STOP_WAIT, self.task).await;
        let membership = self.membership;
        let _in_vain = tokio::time::timeout(STOP_WAIT, tokio::task::spawn_blocking(move || drop(membership))).await;
    }
}

/// Ends the process when an owner makes no step for [`STUCK_AFTER`], so that another process takes over: whatever it
/// hangs in may hang for ever. Watches from a thread of its own.
fn watch_for_stuck_owners(status: Arc<Status>) -> Result<(), Failure> {
    let watch = move || {
        let mut seen: BTreeMap<Partition, (u64, Instant)> = BTreeMap::new();
        loop {
            std::thread::sleep(STUCK_AFTER / 20);
            let steps = status.steps();
            seen.retain(|partition, _| steps.contains_key(partition));
            for (partition, steps) in steps {
                let known = seen.entry(partition).or_insert((steps, Instant::now()));
                if known.0 != steps {
                    *known = (steps, Instant::now());
                } else if known.1.elapsed() > STUCK_AFTER {
                    tracing::error!(%partition, "its owner is stuck; this process ends so that another takes over");
                    std::process::exit(STUCK);
                }
            }
        }
    };
    std::thread::Builder::new().name("stuck-owners".into()).spawn(watch)?;
    Ok(())
}

/// How the demo page is to behave.
#[derive(Clone)]
struct Demo {
    crowd: Option<Arc<demo::Crowd>>,
    is_open: bool,
}

/// Only where anybody may act for anybody, or somebody wants it, may a crowd be called.
fn demo(settings: &Settings, commands: Option<&Arc<likewise_command_api::State>>) -> Demo {
    let is_open = !settings.security.has_authentication();
    let crowd = commands.filter(|_| is_open || settings.has_demo).map(|state| demo::Crowd::new(state.commands()));
    Demo { crowd, is_open }
}

/// Everything that the public port serves.
fn public_routes(
    routes: &mut Routes,
    commands: Option<&Arc<likewise_command_api::State>>,
    queries: Option<&Arc<likewise_query_api::State>>,
    health: &Health,
    demo: &Demo,
) {
    if let Some(commands) = commands {
        likewise_command_api::routes(routes, commands);
    }
    if let Some(queries) = queries {
        likewise_query_api::routes(routes, queries);
    }
    health_routes(routes, health);
    if queries.is_some() {
        pages::button_routes(routes);
    }
    if commands.is_some() && queries.is_some() {
        pages::demo_routes(routes);
        demo::routes(routes, demo.crowd.as_ref(), demo.is_open);
    }
    routes.add_service(|config| {
        config.service(web::redirect("/docs", "/docs/"));
        config.service(SwaggerUi::new("/docs/{_:.*}").url("/openapi.json", openapi()));
    });
}

fn admin_routes(routes: &mut Routes, health: &Health, metrics: &PrometheusHandle, console: &Arc<Console>) {
    health_routes(routes, health);
    let metrics = metrics.clone();
    let render = move || {
        let metrics = metrics.clone();
        async move { HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(metrics.render()) }
    };
    routes.add(Method::GET, "/metrics", render);
    pages::console_routes(routes);
    console::routes(routes, console);
}

/// Logs to stderr from a thread of its own: a reader that stops reading costs lines, never requests. What is left is
/// written when the guard is dropped.
fn start_logging(settings: &Settings) -> Result<WorkerGuard, Failure> {
    let filter = EnvFilter::try_new(&settings.log_level);
    let filter = filter.map_err(|_| Failure::from("log_level is not a filter such as info"))?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(writer);
    if settings.is_log_json {
        logger.json().init();
    } else {
        logger.init();
    }
    // What a panic says can hold what a client sent: only its place is told.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "a panic; one request at most is lost");
    }));
    Ok(guard)
}

fn start_metrics() -> Result<PrometheusHandle, Failure> {
    let builder = PrometheusBuilder::new();
    let seconds = Matcher::Suffix("_seconds".into());
    let handle = builder.set_buckets_for_metric(seconds, &LATENCY_BUCKETS)?.install_recorder()?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(METRICS_UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// The directories of the embedded stores, and the data directory where there are any.
pub(crate) fn own_directories(settings: &Settings) -> Result<Vec<DataDir>, Failure> {
    let mut named = BTreeSet::new();
    if wiring::is_embedded(&settings.log) {
        named.insert(directory_of(&wiring::sqlite_path("log", &settings.log)?));
    }
    for (_, place) in wiring::record_places(&settings.records)? {
        if let wiring::Place::File(path) = place {
            named.insert(directory_of(&path));
        }
    }
    if !named.is_empty() {
        named.insert(settings.data_dir.clone());
    }
    let mut paths = BTreeSet::new();
    for dir in named {
        // One directory may have been written in two ways.
        let real = fs::create_dir_all(&dir).and_then(|()| dir.canonicalize());
        paths.insert(real.map_err(|e| format!("the directory {} cannot be made ({e})", dir.display()))?);
    }
    paths.iter().map(|path| Ok(DataDir::acquire(path)?)).collect()
}

/// Where a file is; the working directory for a bare name.
pub(crate) fn directory_of(file: &Path) -> PathBuf {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// The secret that signs cursors, made at the first start.
fn read_secret(path: &Path) -> Result<Secret, Failure> {
    if !path.exists() {
        fs::create_dir_all(directory_of(path)).map_err(|e| format!("secret_file: {e}"))?;
        let fresh: [u8; 32] = std::array::from_fn(|_| rand::random());
        private::write(path, &fresh).map_err(|e| format!("secret_file: {e}"))?;
    }
    let bytes = fs::read(path).map_err(|e| format!("secret_file: {e}"))?;
    Secret::new(bytes).map_err(|_| "secret_file must hold at least 32 bytes".into())
}

fn bind(setting: &str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let fail =
        |e: std::io::Error| format!("cannot listen on {address} ({e}); choose another {setting}, port 0 picks one");
    let listener = TcpListener::bind(address).map_err(fail)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Ready once every partition of this process is projected and none is halted, until a stop begins.
fn health(stores: &Stores, roles: Roles, projection: Option<Arc<Status>>, draining: &Arc<AtomicBool>) -> Health {
    let (log, records, draining) = (Arc::clone(&stores.log), Arc::clone(&stores.records), Arc::clone(draining));
    Arc::new(move || {
        if draining.load(Ordering::Relaxed) {
            return Err("The server is stopping.".into());
        }
        // Reads need no log.
        if roles != Roles::QUERIES && log.fault().is_some() {
            return Err("The log takes no events.".into());
        }
        if records.fault().is_some() {
            return Err("The records cannot be written.".into());
        }
        let Some(status) = &projection else { return Ok(()) };
        let states = status.all();
        if states.is_empty() {
            return Err("The projection has not begun.".into());
        }
        for (partition, state) in states {
            match state {
                PartitionState::Running => {}
                PartitionState::Acquiring(_) => {
                    return Err(format!("The projection of partition {partition} is not running."));
                }
                PartitionState::Halted(_) => return Err(format!("The projection of partition {partition} is halted.")),
            }
        }
        Ok(())
    })
}

fn greet(settings: &Settings, roles: Roles, address: SocketAddr, admin: SocketAddr) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let scheme = if settings.security.has_tls() { "https" } else { "http" };
    writeln!(out, "Likewise listens on {scheme}://{address}\n")?;
    if roles == Roles::ALL {
        writeln!(out, "  Demo page     {scheme}://{address}/")?;
    }
    writeln!(out, "  API and UI    {scheme}://{address}/docs/")?;
    writeln!(out, "  Console       {scheme}://{admin}/")?;
    writeln!(out, "  Metrics       {scheme}://{admin}/metrics")?;
    if wiring::is_embedded(&settings.log) {
        writeln!(out, "  Data          {}", settings.data_dir.display())?;
    }
    let security = &settings.security;
    if let Some(tokens) = &security.tokens {
        writeln!(
            out,
            "\n  Tokens of {} for {} are accepted, and service keys.\n",
            tokens.rules.issuer, tokens.rules.audience
        )?;
    } else if security.has_authentication() {
        writeln!(out, "\n  Service keys are accepted.\n")?;
    } else {
        writeln!(
            out,
            "\n  WARNING: no authentication. Only this machine can connect, and whoever does may act for any user.\n"
        )?;
    }
    if security.has_authentication() && !security.has_tls() && !address.ip().is_loopback() {
        writeln!(out, "  WARNING: no TLS. Tokens are sent in the clear unless a proxy before it speaks TLS.\n")?;
    }
    if roles == Roles::ALL && !security.has_authentication() {
        writeln!(out, "  Try")?;
        writeln!(out, "    curl -X PUT -H 'Prefer: wait=2' 'http://{address}/v1/contents/post/42/like?viewer=7'")?;
        writeln!(out, "    curl 'http://{address}/v1/contents/post/42/likes?viewer=7'\n")?;
    }
    out.flush()?;
    Ok(())
}

/// From this call on, SIGTERM and SIGINT no longer end the process; the future ends when one comes.
fn signals() -> Result<impl Future<Output = ()>, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Flags;

    /// Two ways to the same contract: what the handlers are documented as, and what is registered.
    #[tokio::test]
    async fn the_route_table_is_the_openapi_document() {
        let dir = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("sqlite://{}", dir.path().join(name).display());
        let clock = Clock::system();
        let log = wiring::writable_log(&url("log.db"), None).await.unwrap();
        let records = wiring::writable_records(&[url("records.db")]).await.unwrap();
        let (counters, requests) = wiring::counters("memory://", &clock).await.unwrap();
        let stores = Stores { log, records, replica: None, counters, requests, clock };
        let settings = crate::config::load(&Flags::default()).unwrap().settings;
        let secret = Secret::new(vec![1; 32]).ok().unwrap();
        let mut routes = Routes::default();
        let health: Health = Arc::new(|| Ok(()));
        public_routes(
            &mut routes,
            Some(&stores.commands(&settings)),
            Some(&stores.queries(secret, settings.security.likers)),
            &health,
            &Demo { crowd: None, is_open: true },
        );

        let is_page = |path: &str| pages::PATHS.contains(&path);
        let served: BTreeSet<(String, String)> = routes
            .table()
            .into_iter()
            .filter(|(path, _)| !is_page(path))
            .map(|(path, method)| (path.to_owned(), method))
            .collect();
        let document = serde_json::to_value(openapi()).unwrap();
        let documented: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().unwrap().keys().map(|method| (path.clone(), method.to_uppercase()))
            })
            .collect();
        assert_eq!(served, documented);
        assert!(served.len() >= 12, "{served:?}");
    }
}
