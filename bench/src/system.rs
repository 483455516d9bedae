//! The whole service in roles on real servers, with everything and the load generator on one machine.

use std::{
    io::{Error, Result},
    path::Path,
    time::Duration,
};

use clap::Args;
use likewise_testkit::{
    Service, Settings,
    servers::{self, Server},
};
use tokio::time::Instant;

use crate::{
    lag::{self, Lag},
    load::{self, Outcome, Pace, Plan, Requests, quantiles},
    peers::{self, Kind},
    process::cpu_seconds,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Seconds of the load of likes on one post beside reads.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// One process (`likewise serve`) instead of one for each role.
    #[arg(long)]
    together: bool,
    /// Seconds of a first load that is not measured.
    #[arg(long, default_value_t = 90)]
    warm_up_seconds: u64,
    /// Seconds of each step of the search for the highest rate.
    #[arg(long, default_value_t = 15)]
    step_seconds: u64,
    /// Likes a second on one post.
    #[arg(long, default_value_t = 3000.0)]
    likes: f64,
    /// Reads a second beside them.
    #[arg(long, default_value_t = 7000.0)]
    reads: f64,
    /// Where the search begins, in likes a second; each step is a quarter more.
    #[arg(long, default_value_t = 3000.0)]
    from: f64,
}

/// Lag that a rate must stay below.
const LAG_MAX_SECONDS: f64 = 1.0;
/// The share of what is due that must be accepted.
const ACCEPTED_MIN: f64 = 0.98;
/// Connections of each load.
const CONNECTIONS: usize = 256;
/// The share of likes that are for one post, where they are for many.
const ON_ONE_POST: f64 = 1.0 / 3.0;

/// Everything that runs, and what it used of the processors.
pub(crate) struct System {
    kafka: Server,
    pub(crate) mysql: Server,
    pub(crate) redis: Server,
    /// Command API, projector and query API, or one process that is all three.
    roles: Vec<(&'static str, Service)>,
}

impl System {
    /// Starts everything in a folder, from a thread that may block.
    pub(crate) fn start(likewise: &Path, dir: &Path, together: bool) -> Result<Self> {
        // As a broker comes, with the compiler that takes its time and pays for it.
        let kafka = servers::start_kafka_with(&["-Xmx1g"], &[]);
        // As a server comes: a commit is on disk before it is answered.
        let mysql = servers::start_mysql(&["--innodb-flush-log-at-trx-commit=1"]);
        let redis = servers::start_redis(&[]);
        let url = servers::mysql_url(&mysql);
        tokio::runtime::Handle::current().block_on(servers::create_database(&url, "likewise"));
        let settings = |folder: &str| {
            Settings::new(&likewise.display().to_string(), &dir.join(folder))
                .arg("--log")
                .arg(&format!("kafka://{}/likes", kafka.address()))
                .arg("--records")
                .arg(&format!("{url}/likewise?ssl-mode=disabled"))
                .arg("--counters")
                .arg(&servers::redis_url(&redis))
        };
        for command in [&["topic", "create"][..], &["migrate"]] {
            let output = settings("setup").output(command);
            if !output.status.success() {
                return Err(Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
            }
        }
        let names: &[&str] = if together { &["serve"] } else { &["command-api", "projector", "query-api"] };
        let roles: Vec<_> = names.iter().map(|name| (*name, settings(name).role(name).start())).collect();
        for (_, service) in &roles {
            service.wait_ready();
        }
        Ok(Self { kafka, mysql, redis, roles })
    }

    /// The process that has a role.
    pub(crate) fn role(&self, name: &str) -> &Service {
        let (_, service) = self.roles.iter().find(|(role, _)| *role == name).unwrap_or(&self.roles[0]);
        service
    }

    /// Seconds of processor time that each part has used, the load generator last.
    fn cpu(&self) -> Vec<(&'static str, f64)> {
        let roles = self.roles.iter().map(|(name, service)| (*name, service.id()));
        let servers = [("Kafka", &self.kafka), ("MySQL", &self.mysql), ("Redis", &self.redis)];
        let servers = servers.map(|(name, server)| (name, server.id()));
        let all = roles.chain(servers).chain([("load generator", std::process::id())]);
        all.map(|(name, id)| (name, cpu_seconds(id))).collect()
    }
}

pub(crate) async fn run(likewise: &Path, options: &Options) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let bare = bare(dir.path()).await?;
    println!("A bare POST, closed loop, 64 connections: {bare:.0}/s");
    let together = options.together;
    let (binary, folder) = (likewise.to_owned(), dir.path().to_owned());
    let starting = tokio::task::spawn_blocking(move || System::start(&binary, &folder, together));
    let system = starting.await.map_err(Error::other)??;
    let mut first = 0;

    let reads = Requests::Reads { on_one_post: 0.9 };
    // The broker compiles what runs often for its first minutes: what is measured comes after them.
    println!("Warming up, {} s", options.warm_up_seconds);
    let (liked, _) = tokio::try_join!(
        load::run(&system.role("command-api").address, likes(options.warm_up_seconds, 2000.0, first, 0.7)),
        load::run(&system.role("query-api").address, plan(options.warm_up_seconds, 1000.0, reads)),
    )?;
    first += liked.sent;
    lag::settle(&system.role("projector").admin).await?;

    println!("\n{:.0} likes/s on one post beside {:.0} reads/s, {} s", options.likes, options.reads, options.seconds);
    let measured = Measured::start(&system);
    let (liked, read) = tokio::try_join!(
        load::run(&system.role("command-api").address, likes(options.seconds, options.likes, first, 1.0)),
        load::run(&system.role("query-api").address, plan(options.seconds, options.reads, reads)),
    )?;
    first += liked.sent;
    let lag = measured.stop(&system, &liked).await;
    print(&liked, &lag);
    println!("    read      {}; {:.0}/s, {} refused", quantiles(&read.latency), read.rate(), read.refused);
    lag::settle(&system.role("projector").admin).await?;

    println!("\nLikes over many posts, a third on one, {} s a step", options.step_seconds);
    let (mut rate, mut highest) = (options.from, 0.0);
    loop {
        println!("  {rate:.0}/s due");
        let measured = Measured::start(&system);
        let liked =
            load::run(&system.role("command-api").address, likes(options.step_seconds, rate, first, ON_ONE_POST))
                .await?;
        first += liked.sent;
        let lag = measured.stop(&system, &liked).await;
        print(&liked, &lag);
        lag::settle(&system.role("projector").admin).await?;
        if lag.seconds >= LAG_MAX_SECONDS || liked.rate() < ACCEPTED_MIN * rate {
            break;
        }
        highest = rate;
        rate *= 1.25;
    }
    println!(
        "\nThe highest rate with lag below {LAG_MAX_SECONDS} s and {ACCEPTED_MIN} of it accepted: {highest:.0}/s, {:.3} of the bare POST",
        highest / bare
    );
    Ok(())
}

fn plan(seconds: u64, rate: f64, requests: Requests) -> Plan {
    Plan { connections: CONNECTIONS, time: Duration::from_secs(seconds), pace: Pace::Open(rate), requests }
}

fn likes(seconds: u64, rate: f64, first: u64, on_one_post: f64) -> Plan {
    plan(seconds, rate, Requests::Likes { first, visible_every: (rate / 100.0) as u64, on_one_post })
}

async fn bare(dir: &Path) -> Result<f64> {
    let server = peers::start(Kind::Bare, dir)?;
    let requests = Requests::Likes { first: 0, visible_every: 0, on_one_post: 0.0 };
    let plan = Plan { connections: 64, time: Duration::from_secs(5), pace: Pace::Closed, requests };
    Ok(load::run(&server.address, plan).await?.rate())
}

/// A load under way.
struct Measured {
    lag: lag::Watch,
    cpu: Vec<(&'static str, f64)>,
    started: Instant,
}

impl Measured {
    fn start(system: &System) -> Self {
        let lag = lag::Watch::start(&system.role("projector").admin);
        Self { lag, cpu: system.cpu(), started: Instant::now() }
    }

    /// Prints what each part used, for each 1,000 likes; gives the worst lag.
    async fn stop(self, system: &System, liked: &Outcome) -> Lag {
        let seconds = self.started.elapsed().as_secs_f64();
        let used: Vec<(&str, f64)> =
            system.cpu().into_iter().zip(self.cpu).map(|((name, now), (_, before))| (name, now - before)).collect();
        let thousands = liked.accepted.max(1) as f64 / 1000.0;
        let parts: Vec<String> =
            used.iter().map(|(name, used)| format!("{name} {:.0}", used * 1000.0 / thousands)).collect();
        let all: f64 = used.iter().map(|(_, used)| used).sum();
        println!("    CPU       {} ms per 1,000 likes; {:.2} cores busy", parts.join(", "), all / seconds);
        self.lag.stop().await
    }
}

fn print(liked: &Outcome, lag: &Lag) {
    println!("    accepted  {}; {:.0}/s, {} refused", quantiles(&liked.latency), liked.rate(), liked.refused);
    println!("    visible   {}", quantiles(&liked.visible));
    println!("    lag       {lag}");
}
