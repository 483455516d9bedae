//! Servers over TLS: one with the right certificate is spoken to, one with any other is not.

use std::{sync::Arc, time::Duration};

use likewise_schema::{PartitionCount, Timestamp};
use likewise_storage::{
    CounterStore, EventLog, RecordStore, RedisTimeouts, RequestStore, StoreError,
    conformance::{self, request, user},
    counters::RedisCounters,
    log::{KafkaLog, KafkaUrl, NewRecord, create_topic},
    records::{MysqlRecords, Shards},
    requests::{Admitted, Bucket, Charge, Intent, Policy, RedisRequests, RequestKey},
};
use likewise_testkit::{
    certificates::{Authority, Files, Flaw},
    servers::{self, Server},
};
use uuid::Uuid;

const WRONG: [Flaw; 3] = [Flaw::OtherHost, Flaw::Expired, Flaw::SelfSigned];

/// Long enough for a handshake of a test build.
const PATIENT: RedisTimeouts =
    RedisTimeouts { request: Duration::from_secs(5), publish: Duration::from_secs(5), connect: Duration::from_secs(5) };

async fn redis(url: &str) -> Result<u32, StoreError> {
    RedisRequests::new(url, PATIENT)?.attend(Uuid::from_u128(1)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_spoken_to_over_tls_only_if_its_certificate_is_right() {
    let authority = Authority::new();
    let ca = authority.certificate().display().to_string();
    let url = |server: &Server| format!("rediss://:redis-secret@127.0.0.1:{}/?ca={ca}", server.port);
    let right = servers::start_redis_tls(&authority.issue("right", Flaw::None));
    assert_eq!(redis(&url(&right)).await, Ok(1));
    // Changes are heard over TLS too.
    let counters = RedisCounters::new(&url(&right), PATIENT).expect("a URL");
    assert_eq!(counters.advice().await.map(|advice| advice.is_some()), Ok(true));
    for flaw in WRONG {
        let server = servers::start_redis_tls(&authority.issue("wrong", flaw));
        assert!(redis(&url(&server)).await.is_err(), "{flaw:?}");
    }
    let unknown = format!("rediss://:redis-secret@127.0.0.1:{}", right.port);
    assert!(redis(&unknown).await.is_err(), "the system does not know the authority");
    let plain = servers::start_redis(&[]);
    assert!(redis(&format!("rediss://127.0.0.1:{}/?ca={ca}", plain.port)).await.is_err(), "no TLS there");
    assert!(redis(&format!("redis://:redis-secret@127.0.0.1:{}", right.port)).await.is_err(), "no TLS here");
    for refused in [
        format!("{}#insecure", url(&right)),
        "rediss://127.0.0.1/?ca=/nowhere".into(),
        "redis://127.0.0.1/?ca=x".into(),
    ] {
        let error = redis(&refused).await.expect_err("refused").to_string();
        assert!(error.contains("ca=") && !error.contains("redis-secret"), "{error}");
    }
}

/// A user who may do what the program does, and nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_needs_no_right_to_commands_that_endanger_it() {
    let server = servers::start_redis(&[]);
    let root = || ::redis::Client::open(servers::redis_url(&server)).expect("a URL").get_connection().expect("there");
    // As docs/production.md lists them, with the two that likewise verify needs.
    let commands = "scan hgetall hget hmget hset hlen get mget set del type pexpire time zadd zcard zremrangebyscore evalsha eval \
                    script|load multi exec info ping publish subscribe";
    let commands = commands.split_whitespace().map(|name| format!("+{name}"));
    let rights = ["reset", "on", ">secret", "~like:*", "resetchannels", "&like:changes"].map(str::to_owned);
    let rights: Vec<String> = rights.into_iter().chain(commands).collect();
    let () = ::redis::cmd("ACL").arg("SETUSER").arg("likewise").arg(&rights).query(&mut root()).expect("a user");
    let url = servers::redis_url(&server).replace("redis://", "redis://likewise:secret@");
    let url_of_all = url.clone();
    conformance::counter_store(async || {
        let () = ::redis::cmd("FLUSHALL").query(&mut root()).expect("emptied");
        Arc::new(RedisCounters::new(&url_of_all, PATIENT).expect("a URL")) as Arc<dyn CounterStore>
    })
    .await;
    let store: Arc<dyn RequestStore> = Arc::new(RedisRequests::new(&url, PATIENT).expect("a URL"));
    assert_eq!(store.attend(Uuid::from_u128(1)).await, Ok(1));
    let key = RequestKey { subject: user(7), request: request(1) };
    let intent = Intent { user: user(7), content: conformance::post(1), liked: true };
    let charge = Charge { bucket: Bucket::User(user(7)), policy: Policy { burst: 2, window: Duration::from_secs(60) } };
    assert!(matches!(store.admit(key, intent, &[charge]).await, Ok(Admitted::Fresh(_))));
    assert_eq!(store.release(key, &[charge]).await, Ok(()));
    assert_eq!(store.find(key).await, Ok(None));
    let refused: Result<(), _> = ::redis::Client::open(url)
        .expect("a URL")
        .get_connection()
        .and_then(|mut connection| ::redis::cmd("FLUSHALL").query(&mut connection));
    assert!(refused.is_err());
}

async fn mysql(url: &str) -> Result<(), StoreError> {
    let store = MysqlRecords::new(url, &Shards::all())?;
    store.migrate().await?;
    store.checkpoint(PartitionCount::DEFAULT.all().next().expect("a partition")).await.map(drop)
}

async fn mysql_is_verified(start: fn(&[&str]) -> Server, reload: &'static str) {
    let authority = Authority::new();
    let ca = authority.certificate().display().to_string();
    let files: Files = authority.issue("server", Flaw::None);
    let arguments = servers::mysql_tls(&authority.certificate(), &files);
    let server =
        tokio::task::spawn_blocking(move || start(&arguments.each_ref().map(String::as_str))).await.expect("it starts");
    let base = servers::mysql_url(&server);
    servers::create_database(&base, "likewise").await;
    let url = |query: &str| format!("{base}/likewise{query}");
    let verified = url(&format!("?ssl-ca={ca}"));
    assert_eq!(mysql(&verified).await, Ok(()), "its certificate is right");
    assert!(mysql(&url("?ssl-mode=VERIFY_IDENTITY")).await.is_err(), "the system does not know the authority");
    for flaw in WRONG {
        authority.issue("server", flaw);
        let read_again = sqlx::Executor::execute(&mut servers::connect(&base).await, sqlx::AssertSqlSafe(reload)).await;
        if let Err(error) = read_again {
            // MySQL itself does not show a certificate that its authority would not stand for.
            assert_ne!(flaw, Flaw::OtherHost, "{error}");
            continue;
        }
        let error = mysql(&verified).await.expect_err("it is refused").to_string();
        assert!(error.contains("secure connection"), "{flaw:?}: {error}");
    }
    assert_eq!(mysql(&url("?ssl-mode=disabled")).await, Ok(()), "whoever says so goes without");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_is_spoken_to_over_tls_only_if_its_certificate_is_right() {
    mysql_is_verified(servers::start_mysql, "ALTER INSTANCE RELOAD TLS").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_is_spoken_to_over_tls_only_if_its_certificate_is_right() {
    mysql_is_verified(servers::start_mariadb, "FLUSH SSL").await;
}

/// A server that has no TLS is refused, not spoken to in the clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_without_tls_is_not_spoken_to_where_it_has_to_be() {
    let server = tokio::task::spawn_blocking(|| servers::start_mariadb(&["--skip-ssl"])).await.expect("it starts");
    servers::create_database(&servers::mysql_url(&server), "likewise").await;
    let url = format!("{}/likewise?ssl-mode=VERIFY_IDENTITY", servers::mysql_url(&server));
    assert!(mysql(&url).await.is_err());
}

async fn kafka(url: String) -> Result<(), StoreError> {
    let url = KafkaUrl::parse(&url)?;
    create_topic(&url, PartitionCount::DEFAULT, 1).await?;
    let log = KafkaLog::open(url).await?;
    let partition = PartitionCount::DEFAULT.all().next().expect("a partition");
    let record = NewRecord {
        partition,
        timestamp: Timestamp::saturating_from_millis(1),
        key: Some(b"key".to_vec()),
        value: Some(b"value".to_vec()),
        headers: Default::default(),
    };
    let offset = log.append(record).await.map_err(|e| StoreError::unavailable("Kafka", format!("{e:?}")))?;
    assert_eq!(log.bounds(partition).await?.end, offset.next());
    Ok(())
}

#[cfg(feature = "kafka-tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_is_spoken_to_over_tls_only_if_its_certificate_is_right() {
    let authority = Authority::new();
    let ca = authority.certificate().display().to_string();
    let flaws = [Flaw::None, Flaw::OtherHost, Flaw::Expired, Flaw::SelfSigned];
    let brokers = flaws.map(|flaw| {
        let files = authority.issue(&format!("{flaw:?}"), flaw);
        tokio::task::spawn_blocking(move || servers::start_kafka_tls(&files))
    });
    let mut started = Vec::new();
    for broker in brokers {
        started.push(broker.await.expect("it starts"));
    }
    let url =
        |server: &Server, who: &str, query: &str| format!("kafkas://{who}127.0.0.1:{}/likes?{query}", server.port);
    let (who, by_ca) = ("likewise:kafka-secret@", format!("ca={ca}"));
    assert_eq!(kafka(url(&started[0], who, &by_ca)).await, Ok(()));
    let plain = servers::kafka();
    let refused = [
        url(&started[1], who, &by_ca),
        url(&started[2], who, &by_ca),
        url(&started[3], who, &by_ca),
        url(&started[0], who, ""),
        url(&started[0], "likewise:wrong@", &by_ca),
        url(&started[0], "", &by_ca),
        format!("kafkas://{who}{plain}/likes?{by_ca}"),
        format!("kafka://127.0.0.1:{}/likes", started[0].port),
    ];
    let outcomes = futures::future::join_all(refused.iter().cloned().map(kafka)).await;
    for (url, outcome) in refused.iter().zip(outcomes) {
        let error = outcome.expect_err(url).to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_url_of_kafka_is_refused_with_a_sentence() {
    for url in [
        "kafka://user:secret@host:9092/likes",
        "kafkas://user@host:9093/likes",
        "kafkas://user:secret@host/likes",
        "kafkas://user:secret@host:9093/likes?sasl=GSSAPI",
        "kafkas://host:9093/likes?sasl=PLAIN",
        "kafka://host:9092/likes?ca=x",
        "kafkas://user:secret@host:9093/likes?verify=no",
    ] {
        let error = kafka(url.into()).await.expect_err(url).to_string();
        assert!(error.contains("kafkas") && !error.contains("secret@host"), "{url}: {error}");
    }
}
