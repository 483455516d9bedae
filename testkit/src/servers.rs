//! Real servers on free ports, in folders of their own: Apache Kafka, MySQL, MariaDB, Redis and a Redis Cluster.
//!
//! A test that only needs a server takes a shared one ([`kafka`], [`mysql`], [`mariadb`], [`redis`],
//! [`redis_cluster`]): the one that `LIKEWISE_TEST_KAFKA` and so on name, or one started once for this process. A test
//! that kills or stops a server starts its own. All end with the process that started them, however it ends.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection, Row};
use tempfile::TempDir;

use crate::{certificates::Files, wait_until};

/// How long a server may take to start.
const START_MAX: Duration = Duration::from_secs(90);
/// Starts the server, says its process id, and ends it when nobody holds the other end of standard input any more.
const GUARD: &str = r#"log=$1; shift; "$@" >>"$log" 2>&1 </dev/null & echo $!; cat >/dev/null; kill -9 $! 2>/dev/null"#;

/// A server's process; killed when dropped, or when the process that started it ends.
pub struct Server {
    name: &'static str,
    arguments: Vec<String>,
    /// Where it listens.
    pub port: u16,
    dir: TempDir,
    running: Option<Running>,
}

struct Running {
    guard: Child,
    id: u32,
}

impl Server {
    fn new(name: &'static str, dir: TempDir, port: u16, arguments: Vec<String>) -> Self {
        Self { name, arguments, port, dir, running: None }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where it keeps its data.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The server's own process.
    pub fn id(&self) -> u32 {
        self.running.as_ref().expect("the server runs").id
    }

    /// Sends a signal by name, such as STOP or CONT.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{name} of {} failed", self.name);
    }

    /// `kill -9`; its data stay for [`start`](Self::start).
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            drop(running.guard.stdin.take());
            let _reaped = running.guard.wait();
        }
    }

    /// Starts it (again) on the same port and data, and waits until it is ready.
    pub fn start(&mut self) {
        assert!(self.running.is_none(), "{} runs already", self.name);
        let log = self.dir.path().join("server.log");
        fs::write(&log, "").expect("the server's log is written");
        // MySQL believes that it still runs if another process has got the number that its socket's lock names.
        let _none = fs::remove_file(self.dir.path().join("socket.lock"));
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "sh"])
            .arg(&log)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let mut line = String::new();
        let out = guard.stdout.take().expect("stdout is piped");
        BufReader::new(out).read_line(&mut line).expect("the guard says the process id");
        let id = line.trim().parse().expect("a process id");
        self.running = Some(Running { guard, id });
        let ready = || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let gone = !Path::new(&format!("/proc/{id}")).exists();
            assert!(!gone, "{} did not start:\n{text}", self.name);
            is_ready(self.name, self.port, &text)
        };
        wait_until(self.name, START_MAX, ready);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_ready(name: &str, port: u16, log: &str) -> bool {
    if name == "Kafka" {
        return log.contains("Kafka Server started");
    }
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    if name == "Redis over TLS" {
        return true;
    }
    let _on_loopback = stream.set_read_timeout(Some(Duration::from_secs(1)));
    if name == "Redis" {
        let _refused = stream.write_all(b"PING\r\n");
    }
    // Both MySQLs greet on their own.
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).is_ok() && (name != "Redis" || &answer == b"+PONG")
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

fn installed(what: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/services").join(what);
    let found = path.canonicalize();
    found.unwrap_or_else(|_| panic!("{} is missing: run scripts/install-servers", path.display()))
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn texts(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|text| (*text).to_owned()).collect()
}

/// A Kafka broker that is its own controller, made to start fast. `settings` are lines of `server.properties`.
pub fn start_kafka(settings: &[&str]) -> Server {
    start_kafka_with(&["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"], settings)
}

/// The same with the virtual machine's flags as given.
pub fn start_kafka_with(flags: &[&str], settings: &[&str]) -> Server {
    let dir = tempfile::tempdir().expect("a folder");
    let (port, controller) = (free_port(), free_port());
    let data = dir.path().join("data");
    let properties = dir.path().join("server.properties");
    let mut text = format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
",
        data.display()
    );
    settings.iter().for_each(|line| text.extend([line, "\n"]));
    let text = text.replace("{port}", &port.to_string()).replace("{controller}", &controller.to_string());
    fs::write(&properties, text).expect("properties are written");
    let classes = format!("{}/*", installed("kafka-4.1.0").display());
    let java = |arguments: &[&str]| texts(&[&["java"], flags, &["-cp", &classes], arguments].concat());
    let properties = properties.display().to_string();
    let format = java(&["kafka.tools.StorageTool", "format", "-t", "bGlrZXdpc2UtdGVzdC1pZA", "-c", &properties]);
    run(Command::new(&format[0]).args(&format[1..]).args(["--add-scram", KAFKA_USER]));
    let mut server = Server::new("Kafka", dir, port, java(&["kafka.Kafka", &properties]));
    server.start();
    server
}

/// Who may speak to [`start_kafka_tls`].
const KAFKA_USER: &str = "SCRAM-SHA-512=[name=likewise,password=kafka-secret]";

/// The same for clients that speak TLS and name themselves `likewise` with the password `kafka-secret`, by
/// SCRAM-SHA-512.
pub fn start_kafka_tls(certificate: &Files) -> Server {
    let keystore = format!("ssl.keystore.location={}", certificate.both.display());
    let inside = free_port();
    let listeners = format!(
        "listeners=INSIDE://127.0.0.1:{inside},OUTSIDE://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller}}"
    );
    start_kafka(&[
        &listeners,
        "listener.security.protocol.map=CONTROLLER:PLAINTEXT,INSIDE:PLAINTEXT,OUTSIDE:SASL_SSL",
        "inter.broker.listener.name=INSIDE",
        "sasl.enabled.mechanisms=SCRAM-SHA-512",
        "listener.name.outside.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
        "ssl.keystore.type=PEM",
        &keystore,
    ])
}

/// Redis that speaks TLS only, to whoever says the password `redis-secret`.
pub fn start_redis_tls(certificate: &Files) -> Server {
    let dir = tempfile::tempdir().expect("a folder");
    let (port, place) = (free_port(), dir.path().display().to_string());
    let (chain, key) = (certificate.certificate.display().to_string(), certificate.key.display().to_string());
    let arguments = [
        "redis-server",
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        &place,
        "--port",
        "0",
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &chain,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &chain,
        "--tls-auth-clients",
        "no",
        "--requirepass",
        "redis-secret",
    ];
    let mut server = Server::new("Redis over TLS", dir, port, texts(&arguments));
    server.start();
    server
}

/// The arguments with which MySQL or MariaDB speaks TLS.
pub fn mysql_tls(authority: &Path, certificate: &Files) -> [String; 3] {
    let setting = |name: &str, file: &Path| format!("--ssl-{name}={}", file.display());
    [setting("ca", authority), setting("cert", &certificate.certificate), setting("key", &certificate.key)]
}

/// MySQL 9 with an empty root password. `settings` are further arguments.
pub fn start_mysql(settings: &[&str]) -> Server {
    let dir = tempfile::tempdir().expect("a folder");
    let (home, port) = (installed("mysql/sys/usr"), free_port());
    let path = |name: &str| home.join(name).display().to_string();
    let libraries = format!("{}:{}", path("lib/x86_64-linux-gnu"), path("lib/mysql/private"));
    let loader = path("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let (base, messages, server) = (path(""), path("share/mysql"), path("sbin/mysqld"));
    let mut arguments = texts(&[&loader, "--library-path", &libraries, &server, "--no-defaults", "--user=root"]);
    arguments.extend([
        format!("--basedir={base}"),
        format!("--lc-messages-dir={messages}"),
        format!("--datadir={}", dir.path().join("data").display()),
    ]);
    arguments.push("--secure-file-priv=".into());
    run(Command::new(&arguments[0]).args(&arguments[1..]).arg("--initialize-insecure"));
    arguments.extend(mysql_arguments(dir.path(), port, settings));
    arguments.push("--mysqlx=0".into());
    let mut server = Server::new("MySQL", dir, port, arguments);
    server.start();
    server
}

/// MariaDB with an empty root password. `settings` are further arguments.
pub fn start_mariadb(settings: &[&str]) -> Server {
    let dir = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let data = format!("--datadir={}", dir.path().join("data").display());
    let mut install = Command::new("mariadb-install-db");
    let plain = ["--no-defaults", "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db"];
    run(install.args(plain).arg(&data));
    let mut arguments = texts(&["mariadbd", "--no-defaults", "--user=root", &data]);
    arguments.extend(mysql_arguments(dir.path(), port, settings));
    let mut server = Server::new("MariaDB", dir, port, arguments);
    server.start();
    server
}

/// What both take. Commits are left to the operating system: tests kill processes, they do not cut power.
fn mysql_arguments(dir: &Path, port: u16, settings: &[&str]) -> Vec<String> {
    let mut arguments = vec![
        format!("--socket={}", dir.join("socket").display()),
        format!("--port={port}"),
        "--bind-address=127.0.0.1".into(),
        "--innodb-flush-log-at-trx-commit=2".into(),
        "--innodb-buffer-pool-size=256M".into(),
    ];
    arguments.extend(settings.iter().map(|text| (*text).to_owned()));
    arguments
}

/// A MySQL that applies what `source` does, so much later.
pub async fn start_mysql_replica(source: &Server, delay: Duration) -> Server {
    let replica = tokio::task::spawn_blocking(|| start_mysql(&["--server-id=2"])).await.expect("the server starts");
    // From the first moment of the source's life.
    let logs = connect(&mysql_url(source)).await.fetch_all("SHOW BINARY LOGS").await.expect("a binary log");
    let file: String = logs[0].get(0);
    let follow = format!(
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {}, SOURCE_USER = 'root',
         GET_SOURCE_PUBLIC_KEY = 1, SOURCE_LOG_FILE = '{file}', SOURCE_LOG_POS = 4, SOURCE_DELAY = {}",
        source.port,
        delay.as_secs()
    );
    let mut connection = connect(&mysql_url(&replica)).await;
    for sql in [follow.as_str(), "START REPLICA"] {
        connection.execute(AssertSqlSafe(sql)).await.expect("the replica follows");
    }
    replica
}

/// A connection to a MySQL or MariaDB at a URL without a database.
pub async fn connect(url: &str) -> MySqlConnection {
    MySqlConnection::connect(&format!("{url}?ssl-mode=disabled")).await.expect("the server answers")
}

/// Makes a database on a MySQL or MariaDB at a URL without one.
pub async fn create_database(url: &str, name: &str) {
    let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
    connect(url).await.execute(create).await.expect("a database");
}

/// Redis without persistence. `settings` are further arguments, such as `--maxmemory 10mb`.
pub fn start_redis(settings: &[&str]) -> Server {
    let port = free_port();
    start_redis_on(port, settings)
}

fn start_redis_on(port: u16, settings: &[&str]) -> Server {
    let dir = tempfile::tempdir().expect("a folder");
    let (place, port_text) = (dir.path().display().to_string(), port.to_string());
    let plain = ["redis-server", "--bind", "127.0.0.1", "--save", "", "--dir", &place, "--port", &port_text];
    let mut server = Server::new("Redis", dir, port, texts(&[&plain, settings].concat()));
    server.start();
    server
}

/// Three Redis masters that share the slots.
pub fn start_redis_cluster() -> Vec<Server> {
    // A node's bus listens 10,000 ports above, so ports are taken from below 55,535.
    let port = || std::iter::repeat_with(free_port).find(|port| *port < 55_000).expect("a port");
    let node = |_| start_redis_on(port(), &["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
    let nodes: Vec<Server> = (0..3).map(node).collect();
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]).args(nodes.iter().map(Server::address));
    run(create.args(["--cluster-replicas", "0", "--cluster-yes"]));
    let port = nodes[0].port.to_string();
    let is_whole = || {
        let info = Command::new("redis-cli").args(["-p", &port, "cluster", "info"]).output();
        info.is_ok_and(|info| String::from_utf8_lossy(&info.stdout).contains("cluster_state:ok"))
    };
    wait_until("the cluster to be whole", START_MAX, is_whole);
    nodes
}

/// The URL of a Redis Cluster.
pub fn cluster_url(nodes: &[Server]) -> String {
    let addresses: Vec<String> = nodes.iter().map(Server::address).collect();
    format!("redis+cluster://{}", addresses.join(","))
}

fn shared<T: Send + Sync>(
    variable: &str,
    place: &'static OnceLock<T>,
    start: fn() -> T,
    url: fn(&T) -> String,
) -> String {
    env::var(variable).unwrap_or_else(|_| url(place.get_or_init(start)))
}

/// The address of a shared broker, `host:port`. Tests make their own topics.
pub fn kafka() -> String {
    static PLACE: OnceLock<Server> = OnceLock::new();
    shared("LIKEWISE_TEST_KAFKA", &PLACE, || start_kafka(&[]), Server::address)
}

/// The URL of a shared MySQL, without a database. Tests make their own databases.
pub fn mysql() -> String {
    static PLACE: OnceLock<Server> = OnceLock::new();
    shared("LIKEWISE_TEST_MYSQL", &PLACE, || start_mysql(&[]), mysql_url)
}

/// The URL of a shared MariaDB, without a database.
pub fn mariadb() -> String {
    static PLACE: OnceLock<Server> = OnceLock::new();
    shared("LIKEWISE_TEST_MARIADB", &PLACE, || start_mariadb(&[]), mysql_url)
}

/// The URL of a shared Redis. Tests are told apart by generations.
pub fn redis() -> String {
    static PLACE: OnceLock<Server> = OnceLock::new();
    shared("LIKEWISE_TEST_REDIS", &PLACE, || start_redis(&[]), redis_url)
}

/// The URL of a shared Redis Cluster.
pub fn redis_cluster() -> String {
    static PLACE: OnceLock<Vec<Server>> = OnceLock::new();
    shared("LIKEWISE_TEST_REDIS_CLUSTER", &PLACE, start_redis_cluster, |nodes| cluster_url(nodes))
}

/// `mysql://root@127.0.0.1:port`.
pub fn mysql_url(server: &Server) -> String {
    format!("mysql://root@{}", server.address())
}

/// `redis://127.0.0.1:port`.
pub fn redis_url(server: &Server) -> String {
    format!("redis://{}", server.address())
}
