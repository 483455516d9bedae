//! A system on real servers: Kafka, MySQL with shards 0 to 7, MariaDB with 8 to 15, and Redis.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Executor};
use tempfile::TempDir;

use crate::{
    Service, Settings,
    audit::{self, Found, Places},
    load::History,
    proxy::Proxy,
    servers::{self, Server},
};

/// The servers, which may be shared with other tests, and what is the system's own on them.
pub struct Rig {
    binary: String,
    dir: TempDir,
    /// The topic, the consumer group and the databases are called so.
    pub name: String,
    kafka: Place,
    mysql: Place,
    mariadb: Place,
    redis: Place,
    /// In front of those servers that are its own, where it was asked for them.
    proxies: Proxies,
    /// The database on Redis, so that systems that share a server share no token bucket.
    database: usize,
}

/// What the processes of a system see of its own servers.
struct Proxies {
    kafka: Option<Proxy>,
    mysql: Option<Proxy>,
    redis: Option<Proxy>,
}

enum Place {
    /// The server's URL or address.
    Shared(String),
    Own(Box<Server>),
}

/// Which servers a test kills, stops or empties: it gets them for itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own {
    /// The broker.
    pub kafka: bool,
    /// The server of shards 0 to 7.
    pub mysql: bool,
    /// The cache.
    pub redis: bool,
    /// With a fault proxy in front of each that it gets for itself.
    pub proxied: bool,
}

impl Place {
    fn get(&self, url: fn(&Server) -> String) -> String {
        match self {
            Place::Shared(url) => url.clone(),
            Place::Own(server) => url(server),
        }
    }

    fn own(&mut self) -> &mut Server {
        match self {
            Place::Own(server) => server,
            Place::Shared(_) => panic!("the server is shared with other tests"),
        }
    }
}

/// Starts a server, or names the shared one.
fn place(
    is_own: bool,
    start: impl FnOnce() -> Server + Send + 'static,
    shared: fn() -> String,
) -> thread::JoinHandle<Place> {
    thread::spawn(move || if is_own { Place::Own(Box::new(start())) } else { Place::Shared(shared()) })
}

impl Rig {
    /// Starts what is to be its own, makes topics and tables. `binary` is a test's `env!("CARGO_BIN_EXE_likewise")`.
    pub async fn start(binary: &str, own: Own) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("rig_{}_{number}", std::process::id());
        let proxy = |is_own| (is_own && own.proxied).then(|| Proxy::start(""));
        let proxies = Proxies { kafka: proxy(own.kafka), mysql: proxy(own.mysql), redis: proxy(own.redis) };
        // Clients are told by the broker where it is.
        let advertised = |proxy: &Proxy| format!("advertised.listeners=PLAINTEXT://{}", proxy.address());
        let advertised: Vec<String> = proxies.kafka.iter().map(advertised).collect();
        let mysql = place(own.mysql, || servers::start_mysql(&[]), servers::mysql);
        let mariadb = place(false, || servers::start_mariadb(&[]), servers::mariadb);
        let start_kafka = move || servers::start_kafka(&advertised.iter().map(String::as_str).collect::<Vec<_>>());
        let kafka = place(own.kafka, start_kafka, servers::kafka);
        let redis = place(own.redis, || servers::start_redis(&[]), servers::redis);
        let joined = |place: thread::JoinHandle<Place>| place.join().expect("the server starts");
        let (mysql, mariadb, kafka, redis) = (joined(mysql), joined(mariadb), joined(kafka), joined(redis));
        for (proxy, place) in [(&proxies.kafka, &kafka), (&proxies.mysql, &mysql), (&proxies.redis, &redis)] {
            if let (Some(proxy), Place::Own(server)) = (proxy, place) {
                proxy.lead_to(&server.address());
            }
        }
        let dir = tempfile::tempdir().expect("a folder");
        let rig =
            Self { binary: binary.into(), dir, name, kafka, mysql, mariadb, redis, proxies, database: number % 16 };
        let () = redis::cmd("FLUSHDB").query(&mut rig.redis_connection()).expect("Redis answers");
        for server in [&rig.mysql, &rig.mariadb] {
            servers::create_database(&server.get(servers::mysql_url), &rig.name).await;
        }
        for command in [&["topic", "create"][..], &["migrate"]] {
            let output = rig.settings("setup").output(command);
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        rig
    }

    /// The broker, if it is this rig's own.
    pub fn kafka(&mut self) -> &mut Server {
        self.kafka.own()
    }

    /// The server of shards 0 to 7, if it is this rig's own.
    pub fn mysql(&mut self) -> &mut Server {
        self.mysql.own()
    }

    /// The cache, if it is this rig's own.
    pub fn redis(&mut self) -> &mut Server {
        self.redis.own()
    }

    /// The fault proxy in front of the broker.
    pub fn kafka_proxy(&self) -> &Proxy {
        self.proxies.kafka.as_ref().expect("the broker is proxied")
    }

    /// The fault proxy in front of the server of shards 0 to 7.
    pub fn mysql_proxy(&self) -> &Proxy {
        self.proxies.mysql.as_ref().expect("MySQL is proxied")
    }

    /// The fault proxy in front of the cache.
    pub fn redis_proxy(&self) -> &Proxy {
        self.proxies.redis.as_ref().expect("Redis is proxied")
    }

    /// Without proxies.
    fn redis_url(&self) -> String {
        format!("{}/{}", self.redis.get(servers::redis_url), self.database)
    }

    /// The broker as its clients see it.
    fn kafka_address(&self) -> String {
        self.proxies.kafka.as_ref().map_or_else(|| self.kafka.get(Server::address), Proxy::address)
    }

    /// A connection to the cache.
    pub fn redis_connection(&self) -> redis::Connection {
        let client = redis::Client::open(self.redis_url()).expect("a URL");
        client.get_connection().expect("Redis answers")
    }

    /// The log's URL.
    pub fn log_url(&self) -> String {
        format!("kafka://{}/{name}?group={name}", self.kafka_address(), name = self.name)
    }

    fn database(&self, server: &Place) -> String {
        self.database_at(&server.get(servers::mysql_url))
    }

    fn database_at(&self, url: &str) -> String {
        format!("{url}/{}?ssl-mode=disabled", self.name)
    }

    /// Settings of a process that shares these servers, with a folder of its own.
    pub fn settings(&self, folder: &str) -> Settings {
        let redis = self.proxies.redis.as_ref().map_or_else(|| self.redis_url(), |proxy| self.redis_through(proxy));
        self.settings_with_cache(folder, &redis)
    }

    /// The cache's URL through a proxy.
    pub fn redis_through(&self, proxy: &Proxy) -> String {
        format!("redis://{}/{}", proxy.address(), self.database)
    }

    /// The same with another way to the cache.
    pub fn settings_with_cache(&self, folder: &str, redis: &str) -> Settings {
        let mysql = self.proxies.mysql.as_ref().map_or_else(
            || self.database(&self.mysql),
            |proxy| self.database_at(&format!("mysql://root@{}", proxy.address())),
        );
        let dir: &Path = self.dir.path();
        Settings::new(&self.binary, &dir.join(folder))
            .arg("--log")
            .arg(&self.log_url())
            .arg("--records")
            .arg(&format!("{mysql}&shards=0-7"))
            .arg("--records")
            .arg(&self.mariadb_url("8-15"))
            .arg("--counters")
            .arg(redis)
    }

    /// A server that follows the one of shards 0 to 7, so much later.
    pub async fn start_replica(&self, delay: Duration) -> Server {
        let Place::Own(source) = &self.mysql else { panic!("the server is shared with other tests") };
        let replica = servers::start_mysql_replica(source, delay).await;
        let mut connection = servers::connect(&servers::mysql_url(&replica)).await;
        let look = || AssertSqlSafe(format!("SELECT version FROM {}._sqlx_migrations WHERE success", self.name));
        let started = Instant::now();
        while connection.fetch_one(look()).await.is_err() {
            assert!(started.elapsed() < Duration::from_secs(60), "the replica has no finished tables");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        replica
    }

    /// The URL of a replica's records.
    pub fn replica_url(&self, replica: &Server, shards: &str) -> String {
        format!("{}&shards={shards}", self.database_at(&servers::mysql_url(replica)))
    }

    /// The URL of the records on the second server.
    pub fn mariadb_url(&self, shards: &str) -> String {
        format!("{}&shards={shards}", self.database(&self.mariadb))
    }

    /// One role.
    pub fn role(&self, role: &str, folder: &str) -> Service {
        self.settings(folder).role(role).start()
    }

    /// A projector that keeps its partitions when it starts again under the same name.
    pub fn projector(&self, name: &str) -> Service {
        self.settings(name).role("projector").arg("--instance-id").arg(name).start()
    }

    /// Where an audit looks.
    pub fn places(&self) -> Places {
        Places {
            kafka: self.kafka_address(),
            topic: self.name.clone(),
            records: vec![self.database(&self.mysql), self.database(&self.mariadb)],
            redis: vec![self.redis_url()],
        }
    }

    /// Waits until everything agrees with the log, and checks that the log agrees with what clients were told.
    pub async fn audit(&self, history: &History) -> Found {
        let took = audit::quiesce(&self.places(), Duration::from_secs(90)).await;
        println!("records and Redis reflect the whole log {took:?} after the last command");
        let found = audit::audit(&self.places()).await.unwrap_or_else(|wrong| panic!("{wrong}"));
        let wrong = history.contradictions(|id| found.keys.contains(id));
        assert_eq!(wrong, Vec::<String>::new());
        found
    }
}
