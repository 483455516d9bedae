//! What the service is compared with.

use std::{
    io::Result,
    net::TcpListener,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
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
use rdkafka::{
    ClientConfig,
    producer::{FutureProducer, FutureRecord},
};
use serde::{Deserialize, Serialize};
use sqlx::{MySqlPool, mysql::MySqlPoolOptions};

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
    /// Parses the command, produces with acks=all and answers.
    BareKafka,
    /// A transaction in MySQL and an INCR in Redis per like.
    TransactionAndIncr,
}

/// Starts a peer as a process of its own, with a folder in `dir`.
pub(crate) fn start(kind: Kind, dir: &Path) -> Result<Process> {
    start_on(kind, dir, &[])
}

/// The same on servers that it uses.
pub(crate) fn start_on(kind: Kind, dir: &Path, servers: &[String]) -> Result<Process> {
    let name = match kind {
        Kind::Bare => "bare",
        Kind::TransactionPerLike => "transaction-per-like",
        Kind::AcceptOnly => "accept-only",
        Kind::BareRead => "bare-read",
        Kind::BareKafka => "bare-kafka",
        Kind::TransactionAndIncr => "transaction-and-incr",
    };
    let dir = dir.join(format!("{name}-{:x}", uuid::Uuid::now_v7().as_u128()));
    std::fs::create_dir(&dir)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["peer", name, "--data-dir"]).arg(dir);
    for server in servers {
        command.args(["--server", server]);
    }
    Process::start(&mut command)
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

/// A like by whoever the token says.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct LikeOfContent {
    request_id: String,
    content_type: String,
    content_id: i64,
    liked: bool,
}

pub(crate) async fn serve(kind: Kind, data_dir: &Path, servers: &[String]) -> Result<()> {
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
        Kind::BareKafka => {
            let producer: FutureProducer = ClientConfig::new()
                .set("bootstrap.servers", &servers[0])
                .set("acks", "all")
                .set("enable.idempotence", "true")
                .set("queue.buffering.max.ms", "5")
                .create()
                .map_err(std::io::Error::other)?;
            let producer = web::Data::new(producer);
            let app = move || App::new().app_data(producer.clone()).route("/v1/likes", web::post().to(produce));
            HttpServer::new(app).workers(2).listen(listener)?.run().await
        }
        Kind::TransactionAndIncr => {
            let pool = MySqlPoolOptions::new().max_connections(32).connect(&servers[0]).await;
            let pool = web::Data::new(pool.map_err(std::io::Error::other)?);
            let client = redis::Client::open(servers[1].as_str()).map_err(std::io::Error::other)?;
            let cache = client.get_connection_manager().await.map_err(std::io::Error::other)?;
            let cache = web::Data::new(cache);
            let app = move || {
                let app = App::new().app_data(pool.clone()).app_data(cache.clone());
                app.route("/v1/likes", web::post().to(transaction_and_incr))
            };
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
            let log = SqliteLog::open(&data_dir.join("log.db"), None).map_err(std::io::Error::other)?;
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

async fn produce(like: web::Json<LikeOfContent>, producer: web::Data<FutureProducer>) -> HttpResponse {
    let like = like.into_inner();
    let value = serde_json::to_vec(&like).unwrap_or_default();
    let record = FutureRecord::to("likes").key(&like.request_id).payload(&value);
    match producer.send(record, Duration::ZERO).await {
        Ok(_) => HttpResponse::Accepted().json(like),
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}

async fn transaction_and_incr(
    like: web::Json<LikeOfContent>,
    pool: web::Data<MySqlPool>,
    cache: web::Data<redis::aio::ConnectionManager>,
) -> HttpResponse {
    let like = like.into_inner();
    let write = async {
        let mut transaction = pool.begin().await?;
        let insert = "INSERT INTO likes (user_id, content_type, content_id, liked) VALUES (?, ?, ?, ?)
                      ON DUPLICATE KEY UPDATE liked = VALUES(liked)";
        let user = (number_of(&like.request_id) % 4_000_000) as i64;
        let insert = sqlx::query(insert).bind(user).bind(&like.content_type).bind(like.content_id).bind(like.liked);
        insert.execute(&mut *transaction).await?;
        transaction.commit().await
    };
    if write.await.is_err() {
        return HttpResponse::ServiceUnavailable().finish();
    }
    let key = format!("likes:{}:{}", like.content_type, like.content_id);
    let counted: redis::RedisResult<i64> = redis::cmd("INCR").arg(key).query_async(&mut cache.get_ref().clone()).await;
    match counted {
        Ok(_) => HttpResponse::Accepted().json(like),
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}

/// A number that follows from a requestId: whose like it is, where no token tells.
fn number_of(id: &str) -> u64 {
    id.bytes().fold(0, |number, byte| crate::load::mix(number ^ u64::from(byte)))
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
