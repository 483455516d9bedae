//! The whole system on real servers, in roles, while parts of it are killed: afterwards records and cache are exactly
//! what an independent fold of the log says, and the log has everything that was acknowledged.

use std::{env, thread, time::Duration};

use likewise_testkit::{
    Service,
    load::{History, Load, read, read_each},
    rig::{Own, Rig},
    wait_until,
};

/// What happens to the system, each when a share of the commands is done.
fn disturb(
    rig: &mut Rig,
    projectors: &mut Vec<Service>,
    history: &History,
    before: usize,
    commands: usize,
    round: usize,
) {
    let wait_for = |share: f64| {
        let target = before + (commands as f64 * share) as usize;
        wait_until("commands to go through", Duration::from_secs(600), || history.done() >= target);
    };
    wait_for(0.05);
    println!("a projector is killed, and started again");
    projectors.remove(0).kill();
    projectors.push(rig.projector(&format!("projector-{round}-a")));
    wait_for(0.15);
    println!("a projector is stopped");
    projectors[0].signal("STOP");
    wait_for(0.30);
    println!("it goes on");
    projectors[0].signal("CONT");
    wait_for(0.40);
    println!("a projector is added");
    projectors.push(rig.projector(&format!("projector-{round}-b")));
    wait_for(0.50);
    println!("the broker is killed, and started again");
    rig.kafka().kill();
    rig.kafka().start();
    wait_for(0.65);
    println!("Redis is flushed");
    let () = redis::cmd("FLUSHALL").query(&mut rig.redis_connection()).expect("Redis answers");
    wait_for(0.75);
    println!("MySQL is killed, and started again");
    rig.mysql().kill();
    rig.mysql().start();
    wait_for(0.85);
    println!("Redis is killed, and started again");
    rig.redis().kill();
    rig.redis().start();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_projected_once_whatever_dies() {
    let commands: usize = env::var("LIKEWISE_TEST_COMMANDS").map_or(20_000, |text| text.parse().unwrap());
    let rounds = commands.div_ceil(100_000);
    let own = Own { kafka: true, mysql: true, redis: true, ..Own::default() };
    let mut rig = Rig::start(env!("CARGO_BIN_EXE_likewise"), own).await;
    let apis: Vec<Service> = (0..2).map(|number| rig.role("command-api", &format!("command-{number}"))).collect();
    let queries: Vec<Service> = (0..2).map(|number| rig.role("query-api", &format!("query-{number}"))).collect();
    let mut projectors: Vec<Service> = (0..3).map(|number| rig.projector(&format!("projector-{number}"))).collect();
    let history = History::default();
    let load = Load { commands: commands / rounds, clients: 64, users: 3000, contents: 300, seed: 7 };
    let mut answered = 0;
    for round in 0..=rounds {
        // The last round is a calm one, so that the cache is not empty in the end.
        let is_calm = round == rounds;
        let size = if is_calm { commands / 8 } else { load.commands };
        let load = Load { seed: load.seed + round as u64 * 1000, commands: size, ..load };
        let before = history.done();
        thread::scope(|scope| {
            let (apis, queries, history) = (&apis, &queries, &history);
            let sending = scope.spawn(move || load.run(apis, history));
            let reading = scope.spawn(move || read(queries, load, || history.done() >= before + size / 64 * 64));
            if !is_calm {
                disturb(&mut rig, &mut projectors, history, before, size, round);
            }
            sending.join().unwrap();
            answered += reading.join().unwrap();
        });
    }
    // The entries that live through the changes are compared, and one of everything.
    rig.audit(&history).await;
    read_each(&queries, load, 20);
    let found = rig.audit(&history).await;
    println!(
        "{} commands, {} accepted, {answered} feeds read; {} events, {} rows, {} cached entries compared",
        history.done(),
        history.accepted(),
        found.events,
        found.rows,
        found.cached
    );
    assert!(
        found.cached >= 21 * load.contents as usize && answered > 100,
        "the cache was filled and read: {} {answered}",
        found.cached
    );
    assert!(history.accepted() > commands / 2, "most commands are accepted: {}", history.accepted());
    for query in &queries {
        let hot = query.get("/v1/contents/post/1/likes").json();
        assert_eq!((&hot["count"], &hot["stale"]), (&found.counts["post:1"].into(), &serde_json::Value::Null), "{hot}");
    }
}
