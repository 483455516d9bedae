//! What the Redis adapters share: a server or a cluster behind one type, with bounded waits.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use futures::StreamExt;
use parking_lot::Mutex;
use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline, RedisError, RedisFuture, Script,
    ServerErrorKind, TlsCertificates, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig, PubSubSink, PubSubStream},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    cluster_routing::{RoutingInfo, SingleNodeRoutingInfo},
};

use tokio::sync::mpsc;

use crate::{
    StoreError,
    breaker::{self, Breaker},
};

/// How long Redis may take. It is a cache: past that an answer comes from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedisTimeouts {
    /// What a request waits for: reads, leases, fills, commands in flight, buckets.
    pub request: Duration,
    /// What an owner waits for: publishes and takeovers.
    pub publish: Duration,
    /// Making a connection.
    pub connect: Duration,
}

impl Default for RedisTimeouts {
    fn default() -> Self {
        Self {
            request: Duration::from_millis(50),
            publish: Duration::from_secs(1),
            connect: Duration::from_millis(500),
        }
    }
}

/// Keys that are looked at in one call when all are listed.
const SCAN_KEYS: u32 = 1000;
/// Calls in a row without an answer in time after which a connection counts as dead.
const SILENT_MAX: u32 = 20;
/// Where Redis does not answer, requests do not wait for it, and one in ten a second looks whether it does again.
const BREAKER: breaker::Limits =
    breaker::Limits { failures: 5, lasting: Duration::from_millis(300), probe_every: Duration::from_millis(100) };

fn tcp_settings() -> redis::io::tcp::TcpSettings {
    redis::io::tcp::TcpSettings::default().set_nodelay(true).set_user_timeout(Duration::from_secs(2))
}

/// Where Redis is: `redis://host:port/database`, `rediss://…` over TLS, `redis+cluster://host:port,host:port` or
/// `rediss+cluster://…`.
#[derive(Clone)]
pub(crate) enum Address {
    Server(Box<Client>),
    /// With a client of each node that the URL names.
    Cluster(Box<ClusterClient>, Arc<[Client]>),
}

impl Address {
    /// Fails, with a sentence that holds no credential, if the URL is not one of those above.
    ///
    /// Over TLS the server's certificate is always verified, by the system's authorities or by those in the PEM file
    /// that `?ca=` names.
    pub(crate) fn parse(store: &'static str, url: &str) -> Result<Self, StoreError> {
        if url.contains('#') {
            return Err(StoreError::unusable(
                store,
                "its URL turns something off after a #; a certificate is always verified: name its authority with ?ca=FILE",
            ));
        }
        let (url, ca) = url.split_once("?ca=").map_or((url, None), |(url, file)| (url, Some(file)));
        let authority = ca.map(fs::read).transpose();
        let root_cert =
            authority.map_err(|e| StoreError::unusable(store, format!("the file of ?ca= cannot be read ({e})")))?;
        let certificates = || TlsCertificates { client_tls: None, root_cert: root_cert.clone() };
        if root_cert.is_some() && !url.starts_with("rediss") {
            return Err(StoreError::unusable(store, "?ca= is for rediss://, which speaks TLS"));
        }
        let wrong = |_| {
            let forms = "redis://host:6379, rediss://host:6379 or redis+cluster://host:6379,host:6379";
            StoreError::unusable(store, format!("its URL must be such as {forms}"))
        };
        match url.split_once("+cluster://") {
            Some((scheme @ ("redis" | "rediss"), rest)) => {
                // What comes before an @ counts for every node.
                let (credentials, nodes) = rest.rsplit_once('@').map_or(("", rest), |(who, nodes)| (who, nodes));
                let at = if credentials.is_empty() { "" } else { "@" };
                let nodes = nodes.split(',').map(|node| format!("{scheme}://{credentials}{at}{node}"));
                let nodes: Vec<String> = nodes.collect();
                let open = |node: &String| match &root_cert {
                    Some(_) => Client::build_with_tls(node.as_str(), certificates()),
                    None => Client::open(node.as_str()),
                };
                let each = nodes.iter().map(open).collect::<Result<_, _>>();
                let all = ClusterClient::builder(nodes).tcp_settings(tcp_settings());
                let all = if root_cert.is_some() { all.certs(certificates()) } else { all };
                Ok(Self::Cluster(Box::new(all.build().map_err(wrong)?), each.map_err(wrong)?))
            }
            _ => {
                let info = url.into_connection_info().map_err(wrong)?.set_tcp_settings(tcp_settings());
                let client = match &root_cert {
                    Some(_) => Client::build_with_tls(info, certificates()),
                    None => Client::open(info),
                };
                Ok(Self::Server(Box::new(client.map_err(wrong)?)))
            }
        }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(..))
    }

    /// Clients of single nodes; what is said on one node's channels is heard on all.
    fn nodes(&self) -> &[Client] {
        match self {
            Self::Server(client) => std::slice::from_ref(client),
            Self::Cluster(_, nodes) => nodes,
        }
    }
}

/// Connections that are made when they are needed, shared by all that clone this, and made again when they break.
#[derive(Clone)]
pub(crate) struct Connection {
    store: &'static str,
    address: Address,
    wait: Duration,
    connect: Duration,
    /// One for each thread that calls: a thread that serves requests drives its own, and is woken by nobody else's.
    made: Arc<Mutex<HashMap<ThreadId, Made>>>,
    /// Calls in a row that were not answered in time.
    silent: Arc<AtomicU32>,
    breaker: Arc<Breaker>,
}

#[derive(Clone)]
enum Made {
    Server(ConnectionManager),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Made {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Made::Server(server) => server.req_packed_command(cmd),
            Made::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Made::Server(server) => server.req_packed_commands(pipeline, offset, count),
            Made::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        0
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

/// A key or an argument of a script.
pub(crate) enum Part {
    Key(String),
    Argument(String),
}

impl Connection {
    /// For answers within `wait`. Nothing is connected yet.
    pub(crate) fn new(store: &'static str, address: Address, wait: Duration, connect: Duration) -> Self {
        let breaker = Arc::new(Breaker::new(store, BREAKER));
        Self { store, address, wait, connect, made: Arc::default(), silent: Arc::default(), breaker }
    }

    /// The connection, which is made in the background where there is none.
    fn made(&self) -> Result<Made, RedisError> {
        let mut made = self.made.lock();
        let me = thread::current().id();
        if let Some(made) = made.get(&me) {
            return Ok(made.clone());
        }
        let fresh = match &self.address {
            Address::Server(client) => {
                let config = ConnectionManagerConfig::new()
                    .set_number_of_retries(1)
                    .set_max_delay(Duration::from_millis(200))
                    .set_connection_timeout(Some(self.connect))
                    .set_response_timeout(Some(self.wait));
                Made::Server(ConnectionManager::new_lazy_with_config(Client::clone(client), config)?)
            }
            Address::Cluster(client, _) => {
                let config = redis::cluster::ClusterConfig::new()
                    .set_connection_timeout(self.connect)
                    .set_response_timeout(self.wait);
                Made::Cluster(client.get_pending_async_connection_with_config(config))
            }
        };
        made.insert(me, fresh.clone());
        Ok(fresh)
    }

    /// Makes a call in time. An error leaves it unknown whether the call had its effect.
    async fn within<T>(&self, call: impl AsyncFnOnce(&mut Made) -> Result<T, RedisError>) -> Result<T, StoreError> {
        let Some(attempt) = self.breaker.attempt(self.wait) else {
            return Err(StoreError::unavailable(self.store, "it has not answered for a while"));
        };
        let made_and_called = async { call(&mut self.made()?).await };
        let outcome = tokio::time::timeout(self.wait, made_and_called).await;
        let is_silent = match &outcome {
            Ok(Err(error)) => error.is_timeout(),
            Err(_) => true,
            Ok(Ok(_)) => false,
        };
        let silent = if is_silent { self.silent.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
        let is_away = is_silent
            || matches!(&outcome, Ok(Err(error)) if error.is_io_error() || error.is_connection_refusal() || error.is_connection_dropped());
        if is_away {
            attempt.failed()
        } else {
            attempt.succeeded()
        }
        // A server that is no longer the one to write to, one that does not know us any more, one that is gone without a
        // word: the next call makes another connection.
        let is_useless = outcome.as_ref().is_ok_and(|answer| {
            let kind = answer.as_ref().err().map(RedisError::kind);
            matches!(kind, Some(ErrorKind::Server(ServerErrorKind::ReadOnly) | ErrorKind::AuthenticationFailed))
        });
        if is_useless || silent >= SILENT_MAX {
            self.made.lock().clear();
        }
        if !is_silent || silent >= SILENT_MAX {
            self.silent.store(0, Ordering::Relaxed);
        }
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
            // The text of an error can hold an address, never a credential or a value.
            Ok(Err(error)) => Err(StoreError::unavailable(self.store, error.category())),
            Err(_) => Err(StoreError::unavailable(self.store, "it does not answer in time")),
        }
    }

    pub(crate) async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        self.within(async |made| command.query_async(made).await).await
    }

    /// Sends every key that matches a pattern, of all nodes, in chunks; a key can come twice.
    pub(crate) async fn keys(&self, pattern: &str, out: &mpsc::Sender<Vec<String>>) -> Result<(), StoreError> {
        for node in self.nodes().await? {
            let mut cursor = 0;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_KEYS);
                let page = self.within(async |made| match (made, &node) {
                    (Made::Cluster(cluster), Some(node)) => {
                        cluster.route_command(scan, RoutingInfo::SingleNode(node.clone())).await
                    }
                    (made, _) => scan.query_async(made).await,
                });
                let (next, keys): (u64, Vec<String>) = redis::from_redis_value(page.await?)
                    .map_err(|_| StoreError::unavailable(self.store, "it lists keys in a way that is not known"))?;
                if out.send(keys).await.is_err() {
                    return Ok(());
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The nodes that hold slots; of a single server none has a name.
    async fn nodes(&self) -> Result<Vec<Option<SingleNodeRoutingInfo>>, StoreError> {
        if !self.address.is_cluster() {
            return Ok(vec![None]);
        }
        // Each entry: first slot, last slot, then the nodes that have them, the primary first.
        let slots: Vec<Vec<Value>> = self.command(redis::cmd("CLUSTER").arg("SLOTS")).await?;
        let primary = |slots: &Vec<Value>| {
            let node: Vec<Value> = redis::from_redis_value(slots.get(2)?.clone()).ok()?;
            let host = redis::from_redis_value(node.first()?.clone()).ok()?;
            Some((host, redis::from_redis_value::<u16>(node.get(1)?.clone()).ok()?))
        };
        let nodes: Option<BTreeSet<(String, u16)>> = slots.iter().map(primary).collect();
        let nodes = nodes
            .ok_or_else(|| StoreError::unavailable(self.store, "it names its nodes in a way that is not known"))?;
        Ok(nodes.into_iter().map(|(host, port)| Some(SingleNodeRoutingInfo::ByAddress { host, port })).collect())
    }

    pub(crate) async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, StoreError> {
        self.within(async |made| pipeline.query_async(made).await).await
    }

    /// Runs a script by its SHA; where the server does not know it, it is loaded first.
    pub(crate) async fn script<T: FromRedisValue>(
        &self,
        script: &Script,
        parts: impl IntoIterator<Item = Part>,
    ) -> Result<T, StoreError> {
        let mut invocation = script.prepare_invoke();
        for part in parts {
            match part {
                Part::Key(key) => invocation.key(key),
                Part::Argument(argument) => invocation.arg(argument),
            };
        }
        self.within(async |made| invocation.invoke_async(made).await).await
    }
}

/// How long a subscription may be silent before it is asked whether it is alive, and how long that may take.
const QUIET_MAX: Duration = Duration::from_secs(1);

/// A connection that hears what is said on a channel.
pub(crate) struct Subscription {
    sink: PubSubSink,
    stream: PubSubStream,
}

impl Subscription {
    /// On the first node that answers.
    pub(crate) async fn new(address: &Address, channel: &str) -> Result<Self, RedisError> {
        let subscribe = async |client: &Client| {
            let (mut sink, stream) = client.get_async_pubsub().await?.split();
            sink.subscribe(channel).await?;
            Ok(Self { sink, stream })
        };
        let mut outcome = Err(silent());
        for client in address.nodes() {
            outcome = tokio::time::timeout(QUIET_MAX, subscribe(client)).await.unwrap_or_else(|_| Err(silent()));
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// The next message; none if the channel was quiet for a while, but is alive.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, RedisError> {
        match tokio::time::timeout(QUIET_MAX, self.stream.next()).await {
            Ok(Some(message)) => message.get_payload().map(Some),
            Ok(None) => Err(silent()),
            Err(_) => {
                let alive = tokio::time::timeout(QUIET_MAX, self.sink.ping::<Value>()).await;
                alive.unwrap_or_else(|_| Err(silent())).map(|_| None)
            }
        }
    }
}

fn silent() -> RedisError {
    RedisError::from((ErrorKind::Io, "a subscription is silent"))
}

/// A sentence if the server may drop keys that are to stay, or refuses to drop any.
pub(crate) async fn advice(connection: &Connection) -> Result<Option<String>, StoreError> {
    let memory: Value = connection.command(redis::cmd("INFO").arg("memory")).await?;
    let text = match memory {
        // A cluster answers once for each node.
        Value::Map(nodes) => {
            nodes.into_iter().filter_map(|(_, info)| redis::from_redis_value::<String>(info).ok()).collect()
        }
        one => redis::from_redis_value::<String>(one).unwrap_or_default(),
    };
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let (limit, policy) = (field("maxmemory"), field("maxmemory_policy").unwrap_or("unknown"));
    Ok(match (limit, policy) {
        (Some("0"), _) => Some("maxmemory is not set: its memory has no bound".into()),
        (_, policy) if policy.starts_with("volatile-") => None,
        (_, policy) => Some(format!(
            "maxmemory-policy is {policy}; a volatile- policy such as volatile-lfu keeps progress and drops what can be filled again"
        )),
    })
}
