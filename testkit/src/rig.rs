//! A system on real servers: Kafka, MySQL with shards 0 to 7, MariaDB with 8 to 15, and Redis.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    Service, Settings,
    audit::{self, Found, Places},
    load::History,
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
    /// The database on Redis, so that systems that share a server share no token bucket.
    database: usize,
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

impl Rig {
    /// Starts what is to be its own, makes topics and tables. `binary` is a test's `env!("CARGO_BIN_EXE_likewise")`.
    pub async fn start(binary: &str, own: Own) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("rig_{}_{number}", std::process::id());
        let place = |is_own, start: fn() -> Server, shared: fn() -> String| {
            thread::spawn(move || if is_own { Place::Own(Box::new(start())) } else { Place::Shared(shared()) })
        };
        let mysql = place(own.mysql, || servers::start_mysql(&[]), servers::mysql);
        let mariadb = place(false, || servers::start_mariadb(&[]), servers::mariadb);
        let kafka = place(own.kafka, || servers::start_kafka(&[]), servers::kafka);
        let redis = place(own.redis, || servers::start_redis(&[]), servers::redis);
        let joined = |place: thread::JoinHandle<Place>| place.join().expect("the server starts");
        let (mysql, mariadb, kafka, redis) = (joined(mysql), joined(mariadb), joined(kafka), joined(redis));
        let dir = tempfile::tempdir().expect("a folder");
        let rig = Self { binary: binary.into(), dir, name, kafka, mysql, mariadb, redis, database: number % 16 };
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

    fn redis_url(&self) -> String {
        format!("{}/{}", self.redis.get(servers::redis_url), self.database)
    }

    /// A connection to the cache.
    pub fn redis_connection(&self) -> redis::Connection {
        let client = redis::Client::open(self.redis_url()).expect("a URL");
        client.get_connection().expect("Redis answers")
    }

    /// The log's URL.
    pub fn log_url(&self) -> String {
        format!("kafka://{}/{name}?group={name}", self.kafka.get(Server::address), name = self.name)
    }

    fn database(&self, server: &Place) -> String {
        format!("{}/{}?ssl-mode=disabled", server.get(servers::mysql_url), self.name)
    }

    /// Settings of a process that shares these servers, with a folder of its own.
    pub fn settings(&self, folder: &str) -> Settings {
        let records = |server, shards| format!("{}&shards={shards}", self.database(server));
        let dir: &Path = self.dir.path();
        Settings::new(&self.binary, &dir.join(folder))
            .arg("--log")
            .arg(&self.log_url())
            .arg("--records")
            .arg(&records(&self.mysql, "0-7"))
            .arg("--records")
            .arg(&records(&self.mariadb, "8-15"))
            .arg("--counters")
            .arg(&self.redis_url())
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
            kafka: self.kafka.get(Server::address),
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
