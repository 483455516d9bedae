//! The command API with every protection on, on Kafka and Redis, beside a handler that only produces, and beside one
//! transaction and one INCR per like.

use std::{
    io::{Error, Result},
    path::Path,
    time::Duration,
};

use clap::Args;
use likewise_testkit::{
    Service, Settings,
    servers::{self, Server},
    tokens::{AUDIENCE, ISSUER, SECRET, Signer, claims},
};
use serde_json::json;
use sqlx::{Connection, Executor};

use crate::{
    load::{self, Outcome, Pace, Plan, Requests, quantiles},
    median,
    peers::{self, Kind},
    process::{cpu_seconds, rss_kib},
};

#[derive(Args)]
pub(crate) struct Options {
    /// Seconds of each measured run.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Alternating rounds; medians are printed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Connections of each load.
    #[arg(long, default_value_t = 256)]
    connections: usize,
    /// Seconds of a first load that is not measured.
    #[arg(long, default_value_t = 60)]
    warm_up_seconds: u64,
    /// Seconds of overload, at ten times the highest rate; 0 leaves it out.
    #[arg(long, default_value_t = 60)]
    overload_seconds: u64,
}

/// Connections of an overload.
const OVERLOAD_CONNECTIONS: usize = 1024;

struct Servers {
    kafka: Server,
    mysql: Server,
    redis: Server,
}

impl Servers {
    fn start() -> Result<Self> {
        let servers = Self {
            kafka: servers::start_kafka_with(&["-Xmx1g"], &[]),
            // A commit is on disk before it is answered.
            mysql: servers::start_mysql(&["--innodb-flush-log-at-trx-commit=1"]),
            redis: servers::start_redis(&[]),
        };
        let url = servers::mysql_url(&servers.mysql);
        tokio::runtime::Handle::current()
            .block_on(async {
                servers::create_database(&url, "likewise").await;
                servers::create_database(&url, "plain").await;
                let mut connection = sqlx::MySqlConnection::connect(&format!("{url}/plain?ssl-mode=disabled")).await?;
                let table = "CREATE TABLE likes (id BIGINT AUTO_INCREMENT PRIMARY KEY, user_id BIGINT NOT NULL,
                         content_type VARCHAR(20) NOT NULL, content_id BIGINT NOT NULL, liked TINYINT NOT NULL,
                         UNIQUE KEY uk (user_id, content_id, content_type))";
                connection.execute(table).await.map(drop)
            })
            .map_err(Error::other)?;
        Ok(servers)
    }

    /// A command API that accepts the tokens of `signer`.
    fn command_api(&self, likewise: &Path, dir: &Path, signer: &Signer) -> Result<Service> {
        let folder = dir.join(signer.algorithm());
        std::fs::create_dir_all(&folder)?;
        let file = folder.join("keys");
        let setting = match signer {
            Signer::Secret(_) => {
                std::fs::write(&file, SECRET)?;
                "--auth-secret-file"
            }
            _ => {
                std::fs::write(&file, json!({ "keys": [signer.jwk("a")] }).to_string())?;
                "--auth-jwks-file"
            }
        };
        let settings = Settings::new(&likewise.display().to_string(), &folder)
            .role("command-api")
            .arg(&format!("{setting}={}", file.display()))
            .arg(&format!("--auth-issuer={ISSUER}"))
            .arg(&format!("--auth-audience={AUDIENCE}"))
            // Charged for each command, and never empty.
            .arg("--limit-user=1000000/1s")
            .arg("--limit-address=1000000/1s")
            // Nothing is projected here.
            .arg("--max-backlog=0")
            .arg(&format!("--log=kafka://{}/likes", self.kafka.address()))
            .arg(&format!("--records={}/likewise?ssl-mode=disabled", servers::mysql_url(&self.mysql)))
            .arg(&format!("--counters={}", servers::redis_url(&self.redis)));
        for command in [&["topic", "create", "--if-missing"][..], &["migrate"]] {
            let output = settings.output(command);
            if !output.status.success() {
                return Err(Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
            }
        }
        let service = settings.start();
        service.wait_ready();
        Ok(service)
    }
}

/// `Authorization` headers of so many users; each token is another one, even of one user, and in each round.
fn tokens(signer: &Signer, round: usize, count: usize) -> &'static [String] {
    let token = |number: usize| {
        let mut claims = claims(1 + number as i64 % 100_000);
        claims["jti"] = json!([round, number]);
        format!("Authorization: Bearer {}\r\n", signer.token(&json!({ "alg": signer.algorithm() }), &claims))
    };
    (0..count).map(token).collect::<Vec<_>>().leak()
}

pub(crate) async fn run(likewise: &Path, options: &Options) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (binary, folder) = (likewise.to_owned(), dir.path().to_owned());
    let starting = tokio::task::spawn_blocking(move || {
        let servers = Servers::start()?;
        let hs256 = servers.command_api(&binary, &folder, &Signer::secret())?;
        let eddsa = servers.command_api(&binary, &folder, &Signer::ed25519(1))?;
        Ok::<_, Error>((servers, hs256, eddsa))
    });
    let (servers, hs256, eddsa) = starting.await.map_err(Error::other)??;
    let bare = peers::start_on(Kind::BareKafka, dir.path(), &[servers.kafka.address()])?;
    let plain = peers::start_on(
        Kind::TransactionAndIncr,
        dir.path(),
        &[
            format!("{}/plain?ssl-mode=disabled", servers::mysql_url(&servers.mysql)),
            servers::redis_url(&servers.redis),
        ],
    )?;
    let known = tokens(&Signer::secret(), 0, 1000);
    let mut first = 0;
    let mut load = async |address: &str, tokens: &'static [String], seconds: u64, connections: usize, pace: Pace| {
        let requests = Requests::LikesAs { first, tokens };
        let time = Duration::from_secs(seconds);
        let outcome = load::run(address, Plan { connections, time, pace, requests }).await?;
        first += outcome.sent;
        Ok::<Outcome, Error>(outcome)
    };

    println!("Warming up, {} s", options.warm_up_seconds);
    for address in [&bare.address, &hs256.address] {
        load(address, known, options.warm_up_seconds / 2, options.connections, Pace::Closed).await?;
    }
    println!(
        "\nHighest rates, closed loop, {} connections, {} s each, {} rounds",
        options.connections, options.seconds, options.rounds
    );
    let names = ["actix + rdkafka alone", "likewise, HS256", "likewise, EdDSA, each token new", "MySQL + Redis INCR"];
    let addresses = [&bare.address, &hs256.address, &eddsa.address, &plain.address];
    let processes = [bare.id(), hs256.id(), eddsa.id(), plain.id()];
    let parts = |index: usize| {
        let ids = [
            ("it", processes[index]),
            ("Kafka", servers.kafka.id()),
            ("Redis", servers.redis.id()),
            ("MySQL", servers.mysql.id()),
            ("load generator", std::process::id()),
        ];
        ids.map(|(name, id)| (name, cpu_seconds(id)))
    };
    let mut rates: [Vec<f64>; 4] = Default::default();
    for round in 0..options.rounds {
        for (index, address) in addresses.iter().enumerate() {
            // More than can be sent in this time.
            let fresh = || tokens(&Signer::ed25519(1), round, 12_000 * options.seconds as usize);
            let tokens = if index == 2 { fresh() } else { known };
            let before = parts(index);
            let outcome = load(address, tokens, options.seconds, options.connections, Pace::Closed).await?;
            let thousands = outcome.accepted.max(1) as f64 / 1000.0;
            let used = parts(index).into_iter().zip(before);
            let used =
                used.map(|((name, now), (_, before))| format!("{name} {:.0}", (now - before) * 1000.0 / thousands));
            let used = used.collect::<Vec<_>>().join(", ");
            println!("  {}: {:.0}/s, {}", names[index], outcome.rate(), quantiles(&outcome.done_after));
            println!("    CPU {used} ms per 1,000 likes");
            rates[index].push(outcome.rate());
        }
    }
    let [bare, ours, fresh, plain] = rates.map(median);
    println!("  with every protection on: {:.2} of actix + rdkafka alone, with EdDSA {:.2}", ours / bare, fresh / bare);
    println!("  {:.1} times one transaction and one INCR per like", ours / plain);

    if options.overload_seconds > 0 {
        let memory = rss_kib(hs256.id());
        let pace = Pace::Open(10.0 * ours);
        println!(
            "\nOverload: {:.0}/s due over {OVERLOAD_CONNECTIONS} connections, {} s",
            10.0 * ours,
            options.overload_seconds
        );
        let over = load(&hs256.address, known, options.overload_seconds, OVERLOAD_CONNECTIONS, pace).await?;
        println!(
            "  accepted {:.0}/s, {:.2} of the highest rate; after {}",
            over.rate(),
            over.rate() / ours,
            quantiles(&over.done_after)
        );
        println!("  refused  {:.0}/s; after {}", over.refused as f64 / over.seconds, quantiles(&over.refused_after));
        println!("  memory   {} MiB, {} MiB before", rss_kib(hs256.id()) / 1024, memory / 1024);
        let after = load(&hs256.address, known, 5, options.connections, Pace::Closed).await?;
        println!(
            "  in the 5 s after it: {:.0}/s, {:.2} of the highest rate; {} refused",
            after.rate(),
            after.rate() / ours,
            after.refused
        );
    }
    Ok(())
}
