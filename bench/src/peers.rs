//! What the service is compared with.

use std::{
    io::Result,
    net::TcpListener,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use actix_web::{App, HttpResponse, HttpServer, web};
use clap::ValueEnum;
use likewise_command_api::{BacklogLimit, Commands, Limits, Ports, State};
use likewise_http::{Edge, Server};
use likewise_storage::{
    Clock,
    counters::MemoryCounters,
    log::SqliteLog,
    records::{Shards, SqliteRecords},
    requests::MemoryRequests,
};
use serde::{Deserialize, Serialize};

use crate::process::Server as Process;

/// A server to compare with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// The framework alone: parses the command and answers.
    Bare,
    /// The same with one SQLite transaction (synchronous=FULL) per like, as a first version is often written.
    TransactionPerLike,
    /// The product's command API on its log, without projection.
    AcceptOnly,
    /// The framework alone: answers a read with a constant.
    BareRead,
}

/// Starts a peer as a process of its own, with a folder in `dir`.
pub(crate) fn start(kind: Kind, dir: &Path) -> Result<Process> {
    let name = match kind {
        Kind::Bare => "bare",
        Kind::TransactionPerLike => "transaction-per-like",
        Kind::AcceptOnly => "accept-only",
        Kind::BareRead => "bare-read",
    };
    let dir = dir.join(format!("{name}-{:x}", uuid::Uuid::now_v7().as_u128()));
    std::fs::create_dir(&dir)?;
    Process::start(Command::new(std::env::current_exe()?).args(["peer", name, "--data-dir"]).arg(dir))
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Like {
    request_id: String,
    user_id: i64,
    content_type: String,
    content_id: i64,
    liked: bool,
}

pub(crate) async fn serve(kind: Kind, data_dir: &Path) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("http://{}", listener.local_addr()?);
    match kind {
        Kind::Bare => {
            let app = || App::new().route("/v1/likes", web::post().to(bare));
            HttpServer::new(app).workers(2).listen(listener)?.run().await
        }
        Kind::BareRead => {
            let app = || App::new().route("/v1/contents/{contentType}/{contentId}/likes", web::get().to(constant));
            HttpServer::new(app).workers(2).listen(listener)?.run().await
        }
        Kind::TransactionPerLike => {
            let connection = open(&data_dir.join("likes.db")).map_err(std::io::Error::other)?;
            let connection = web::Data::new(Mutex::new(connection));
            let app = move || App::new().app_data(connection.clone()).route("/v1/likes", web::post().to(transaction));
            HttpServer::new(app).workers(2).listen(listener)?.run().await
        }
        Kind::AcceptOnly => {
            let clock = Clock::system();
            let log = SqliteLog::open(&data_dir.join("log.db"), Default::default()).map_err(std::io::Error::other)?;
            let records =
                SqliteRecords::open(&data_dir.join("records.db"), &Shards::all()).map_err(std::io::Error::other)?;
            let ports = Ports {
                log: Arc::new(log),
                records: Arc::new(records),
                counters: Arc::new(MemoryCounters::new(clock.clone())),
                requests: Arc::new(MemoryRequests::new(clock.clone())),
                clock,
            };
            let state = Arc::new(State::new(Commands::new(ports, BacklogLimit::new(0), Limits::default()), Vec::new()));
            let server =
                Server::start(listener, Edge::open(), move |routes| likewise_command_api::routes(routes, &state))?;
            tokio::signal::ctrl_c().await?;
            server.stop().await;
            Ok(())
        }
    }
}

async fn bare(like: web::Json<Like>) -> HttpResponse {
    HttpResponse::Accepted().json(like.into_inner())
}

async fn constant() -> HttpResponse {
    let body = r#"{"contentType":"post","contentId":"1","count":1,"liked":null,"position":"AQABAAAAAAAAAAA"}"#;
    HttpResponse::Ok().content_type("application/json").body(body)
}

fn open(path: &Path) -> rusqlite::Result<rusqlite::Connection> {
    let connection = rusqlite::Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(
        "CREATE TABLE likes (user_id INTEGER, content_type TEXT, content_id INTEGER, liked INTEGER, request_id TEXT,
                             PRIMARY KEY (user_id, content_type, content_id)) WITHOUT ROWID",
    )?;
    Ok(connection)
}

async fn transaction(like: web::Json<Like>, connection: web::Data<Mutex<rusqlite::Connection>>) -> HttpResponse {
    let write = web::block(move || {
        let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut statement = connection.prepare_cached("INSERT OR REPLACE INTO likes VALUES (?1, ?2, ?3, ?4, ?5)")?;
        statement.execute((like.user_id, &like.content_type, like.content_id, like.liked, &like.request_id))?;
        Ok::<_, rusqlite::Error>(like.into_inner())
    });
    match write.await {
        Ok(Ok(like)) => HttpResponse::Accepted().json(like),
        _ => HttpResponse::InternalServerError().finish(),
    }
}
