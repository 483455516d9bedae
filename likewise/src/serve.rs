//! `likewise serve`: the command API, the projector and the query API in one process.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::{SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix_web::{HttpResponse, http::Method, web};
use likewise_command_api::{BacklogLimit, Commands};
use likewise_http::{Health, HealthApi, Routes, Server, health_routes};
use likewise_projector::{Limits, PartitionState, Status};
use likewise_query_api::Secret;
use likewise_storage::{Clock, DataDir, EventLog, RecordStore};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::info;
use tracing_subscriber::EnvFilter;
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use crate::{Failure, config::Settings, demo, wiring};

/// How long the projector may take to finish what is in flight on a stop.
const STOP_WAIT: Duration = Duration::from_secs(3);
/// How often histograms are folded, which keeps their memory bounded.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
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
    document
}

/// Serves until SIGTERM or SIGINT.
pub(crate) async fn run(settings: &Settings) -> Result<(), Failure> {
    start_logging(&settings.log_level)?;
    let metrics = start_metrics()?;
    let mut dirs = own_directories(settings)?;
    let clock = Clock::system();
    let log = wiring::writable_log(&settings.log, settings.partitions)?;
    let records = wiring::writable_records(&settings.records)?;
    let (counters, requests) = wiring::counters(&settings.counters, &clock)?;
    let secret = read_secret(&settings.secret_file)?;
    let (listener, address) = bind("listen", settings.listen)?;
    let (admin_listener, admin_address) = bind("admin_listen", settings.admin_listen)?;
    for dir in &mut dirs {
        dir.announce(Some(&address.to_string()))?;
    }

    let (stop, stopping) = watch::channel(false);
    let status = Arc::new(Status::default());
    let projector = likewise_projector::Ports {
        log: Arc::clone(&log),
        records: Arc::clone(&records),
        counters: Arc::clone(&counters),
        clock: clock.clone(),
    };
    let partitions = log.partitions();
    let all = partitions.all().collect();
    let projector =
        tokio::spawn(likewise_projector::run(projector, Limits::default(), all, Arc::clone(&status), stopping));
    let ports = likewise_command_api::Ports {
        log: Arc::clone(&log),
        records: Arc::clone(&records),
        counters: Arc::clone(&counters),
        requests,
        clock: clock.clone(),
    };
    let commands = Commands::new(ports, BacklogLimit::new(settings.max_backlog));
    let commands = Arc::new(likewise_command_api::State::new(commands));
    let watched = Arc::clone(&commands);
    let backlog = tokio::spawn(async move { watched.watch_backlog().await });
    let ports = likewise_query_api::Ports { counters, records: Arc::clone(&records), partitions, clock };
    let queries = Arc::new(likewise_query_api::State::new(ports, secret));
    let draining = Arc::new(AtomicBool::new(false));
    let health = health(Arc::clone(&log), Arc::clone(&records), status, Arc::clone(&draining));

    let admin_health = Arc::clone(&health);
    let admin = Server::start(admin_listener, move |routes| admin_routes(routes, &admin_health, &metrics))?;
    let public = Server::start(listener, move |routes| public_routes(routes, &commands, &queries, &health))?;
    let stopped_by_signal = signals()?;
    greet(settings, address, admin_address)?;

    stopped_by_signal.await;
    info!("stopping: not ready, then draining");
    draining.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(settings.drain_delay_ms)).await;
    public.stop().await;
    backlog.abort();
    log.flush().await?;
    let _projector_waits = stop.send(true);
    let _in_vain = tokio::time::timeout(STOP_WAIT, projector).await;
    let _in_vain = tokio::time::timeout(STOP_WAIT, admin.stop()).await;
    info!("stopped");
    Ok(())
}

/// Everything that the public port serves.
pub(crate) fn public_routes(
    routes: &mut Routes,
    commands: &Arc<likewise_command_api::State>,
    queries: &Arc<likewise_query_api::State>,
    health: &Health,
) {
    likewise_command_api::routes(routes, commands);
    likewise_query_api::routes(routes, queries);
    health_routes(routes, health);
    demo::routes(routes);
    routes.add_service(|config| {
        config.service(web::redirect("/docs", "/docs/"));
        config.service(SwaggerUi::new("/docs/{_:.*}").url("/openapi.json", openapi()));
    });
}

fn admin_routes(routes: &mut Routes, health: &Health, metrics: &PrometheusHandle) {
    health_routes(routes, health);
    let metrics = metrics.clone();
    let render = move || {
        let metrics = metrics.clone();
        async move { HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(metrics.render()) }
    };
    routes.add(Method::GET, "/metrics", render);
}

fn start_logging(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|_| Failure("log_level is not a filter such as info".into()))?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    Ok(())
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

/// The data directory, and any other that an embedded store is in.
fn own_directories(settings: &Settings) -> Result<Vec<DataDir>, Failure> {
    let log = wiring::sqlite_path("log", &settings.log)?;
    let records = wiring::record_files(&settings.records)?.into_iter().map(|(_, path)| path);
    let files = std::iter::once(log).chain(records);
    let named: Vec<_> = files.map(|path| directory_of(&path)).chain([settings.data_dir.clone()]).collect();
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
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let fresh: [u8; 32] = std::array::from_fn(|_| rand::random());
        // Whole or not at all, wherever the process is killed.
        let unfinished = path.with_extension("new");
        let write = options.open(&unfinished).and_then(|mut file| file.write_all(&fresh));
        write.and_then(|()| fs::rename(&unfinished, path)).map_err(|e| format!("secret_file: {e}"))?;
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

/// Ready once every partition is owned and none is halted, until a stop begins.
fn health(
    log: Arc<dyn EventLog>,
    records: Arc<dyn RecordStore>,
    status: Arc<Status>,
    draining: Arc<AtomicBool>,
) -> Health {
    Arc::new(move || {
        if draining.load(Ordering::Relaxed) {
            return Err("The server is stopping.".into());
        }
        if log.fault().is_some() {
            return Err("The log takes no events.".into());
        }
        if records.fault().is_some() {
            return Err("The records cannot be written.".into());
        }
        if status.all().is_empty() {
            return Err("The projection has not begun.".into());
        }
        for (partition, state) in status.all() {
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

fn greet(settings: &Settings, address: SocketAddr, admin: SocketAddr) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "Likewise listens on http://{address}")?;
    writeln!(
        out,
        "
  Demo page     http://{address}/
  API and UI    http://{address}/docs/
  Metrics       http://{admin}/metrics
  Data          {}

  Without authentication: only this machine can connect, and whoever does may act for any user.

  Try
    curl -X PUT -H 'Prefer: wait=2' 'http://{address}/v1/contents/post/42/like?viewer=7'
    curl 'http://{address}/v1/contents/post/42/likes?viewer=7'
",
        settings.data_dir.display()
    )?;
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

    /// Two ways to the same contract: what the handlers are documented as, and what is registered.
    #[tokio::test]
    async fn the_route_table_is_the_openapi_document() {
        let dir = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("sqlite://{}", dir.path().join(name).display());
        let clock = Clock::system();
        let log = wiring::writable_log(&url("log.db"), Default::default()).unwrap();
        let records = wiring::writable_records(&[url("records.db")]).unwrap();
        let (counters, requests) = wiring::counters("memory://", &clock).unwrap();
        let partitions = log.partitions();
        let commands = likewise_command_api::Ports {
            log,
            records: Arc::clone(&records),
            counters: Arc::clone(&counters),
            requests,
            clock: clock.clone(),
        };
        let commands = Commands::new(commands, BacklogLimit::new(0));
        let queries = likewise_query_api::Ports { counters, records, partitions, clock };
        let secret = Secret::new(vec![1; 32]).ok().unwrap();
        let mut routes = Routes::default();
        let health: Health = Arc::new(|| Ok(()));
        let commands = Arc::new(likewise_command_api::State::new(commands));
        public_routes(&mut routes, &commands, &Arc::new(likewise_query_api::State::new(queries, secret)), &health);

        let is_page = |path: &str| ["/", "/demo.css", "/demo.js"].contains(&path);
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
