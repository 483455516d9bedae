//! One run: clients, command APIs, projectors and readers under faults; then calm, quiescence and the checks.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use likewise_command_api::{
    Accepted, BacklogLimit, Command, Commands, Limits as CommandLimits, Ports as CommandPorts, Refusal,
};
use likewise_projector::{Limits, Ports as ProjectorPorts, Status};
use likewise_query_api::{After, Ports as QueryPorts, Reads};
use likewise_schema::{Content, Pair, Partition, PartitionCount, Position, RequestId, UserId};
use likewise_storage::{
    Clock, CounterStore, EventLog, RecordStore, RequestStore, StoreError,
    conformance::{post, user},
    counters::{Ask, MemoryCounters},
    log::{LogRecord, Membership},
    planted::{self, Bug},
    records::Count,
    requests::{Intent, MemoryRequests},
};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    check::{self, History},
    faulty::Faulty,
    log::SimLog,
    records::SimRecords,
    world::{Process, Switch, World},
};

/// Virtual time under faults.
const STORM: Duration = Duration::from_secs(64);
/// Virtual time in which everything must be in order again.
const QUIESCE: Duration = Duration::from_secs(60);
const CLIENTS: usize = 4;
/// Posts 1, 2 and 17: two partitions, one of them with two contents.
const POSTS: [i64; 3] = [1, 2, 17];
const USERS: i64 = 3;

/// What a run saw.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Faults that hit.
    pub faults: u64,
    /// Commands acknowledged.
    pub acknowledged: usize,
    /// Records in the log.
    pub records: usize,
    /// Reads whose answer was checked.
    pub reads: u64,
}

/// Runs `seed`, with `bug` planted. The error tells which invariant does not hold.
pub fn run(seed: u64, bug: Option<Bug>) -> Result<Report, String> {
    planted::plant(bug);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let outcome = runtime.map_err(|e| e.to_string()).and_then(|runtime| runtime.block_on(simulate(seed)));
    planted::plant(None);
    outcome
}

/// The servers: they outlive every process.
struct Servers {
    world: Arc<World>,
    clock: Clock,
    log: Arc<SimLog>,
    records: Arc<SimRecords>,
    /// Behind, until it follows.
    replica: Arc<SimRecords>,
    counters: Arc<MemoryCounters>,
    requests: Mutex<Arc<MemoryRequests>>,
    partitions: Vec<Partition>,
}

/// What the clients and readers noted.
#[derive(Default)]
struct Notes {
    histories: BTreeMap<RequestId, History>,
    reads: u64,
    violation: Option<String>,
}

type Shared = Arc<Mutex<Notes>>;

impl Servers {
    fn command_api(&self, process: &Process) -> Arc<Commands> {
        let requests = Arc::clone(&self.requests.lock());
        let requests: Arc<dyn RequestStore> = Faulty::new(process, &requests);
        let ports = CommandPorts {
            log: Faulty::new(process, &self.log),
            records: Faulty::new(process, &self.records),
            counters: Faulty::new(process, &self.counters),
            requests,
            clock: self.clock.clone(),
        };
        Arc::new(Commands::new(ports, BacklogLimit::new(0), CommandLimits::default()))
    }

    fn query_api(&self, process: &Process) -> Reads {
        Reads::new(QueryPorts {
            counters: Faulty::new(process, &self.counters),
            records: Faulty::new(process, &self.records),
            replica: Some(Faulty::new(process, &self.replica)),
            partitions: PartitionCount::DEFAULT,
            clock: self.clock.clone(),
        })
    }

    /// Starts a projector that owns all partitions, in a process of its own.
    fn projector(&self, batch_events: usize) -> Running {
        let (process, switch) = Process::new(&self.world);
        let ports = ProjectorPorts {
            log: Faulty::new(&process, &self.log),
            records: Faulty::new(&process, &self.records),
            counters: Faulty::new(&process, &self.counters),
            clock: self.clock.clone(),
        };
        let pause = Duration::from_millis(5);
        let limits = Limits { batch_events, pause, batch_bytes: 1 << 20, rows_remembered: 4, counts_remembered: 2 };
        let (stop, asked) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let status = Arc::new(Status::default());
        let membership = Membership::fixed(self.partitions.iter().copied().collect());
        tasks.spawn(async move { likewise_projector::run(ports, limits, &membership, status, asked).await });
        Running { _tasks: tasks, switch, _stop: stop }
    }

    fn log_by_partition(&self) -> BTreeMap<Partition, Vec<LogRecord>> {
        self.partitions.iter().map(|partition| (*partition, self.log.records(*partition))).collect()
    }

    fn rows_counts(&self) -> BTreeMap<Content, i64> {
        self.records.all_counts().into_iter().map(|(content, Count { count, .. })| (content, count)).collect()
    }
}

/// A projector's process. Dropping it kills it.
struct Running {
    _tasks: JoinSet<()>,
    switch: Arc<Switch>,
    _stop: watch::Sender<bool>,
}

async fn simulate(seed: u64) -> Result<Report, String> {
    let world = World::new(seed);
    let clock = world.clock();
    let partition = |id: i64| PartitionCount::DEFAULT.partition_of(&post(id));
    let mut partitions: Vec<Partition> = POSTS.iter().map(|id| partition(*id)).collect();
    partitions.dedup();
    partitions.sort_unstable();
    partitions.dedup();
    let servers = Arc::new(Servers {
        log: Arc::new(SimLog::new("simulated")),
        records: Arc::new(SimRecords::default()),
        replica: Arc::new(SimRecords::default()),
        counters: Arc::new(MemoryCounters::new(clock.clone())),
        requests: Mutex::new(Arc::new(MemoryRequests::new(clock.clone()))),
        world: Arc::clone(&world),
        clock,
        partitions,
    });
    let notes = Shared::default();
    storm(&servers, &notes).await;
    world.be_calm();
    let last = servers.projector(1000);
    let settled = quiesce(&servers, &notes).await;
    drop(last);
    let notes = notes.lock();
    if let Some(violation) = &notes.violation {
        return Err(violation.clone());
    }
    let records = servers.log_by_partition();
    check::acknowledgements(&notes.histories, &records)?;
    let mut accepted = BTreeMap::new();
    for (partition, records) in &records {
        accepted.extend(check::play(*partition, records, records.len()));
    }
    check::rows(&accepted, &servers.records.all_rows(), &servers.rows_counts())?;
    settled?;
    Ok(Report {
        faults: world.faults(),
        acknowledged: notes.histories.values().filter(|history| !history.accepted.is_empty()).count(),
        records: records.values().map(Vec::len).sum(),
        reads: notes.reads,
    })
}

/// Clients, readers and the injector at work until the storm is over.
async fn storm(servers: &Arc<Servers>, notes: &Shared) {
    let mut actors = JoinSet::new();
    let apis: Arc<Mutex<Vec<Arc<Commands>>>> = Arc::default();
    for _ in 0..2 {
        let (process, _never_stopped) = Process::new(&servers.world);
        apis.lock().push(servers.command_api(&process));
    }
    for _ in 0..CLIENTS {
        actors.spawn(client(Arc::clone(servers), Arc::clone(&apis), Arc::clone(notes)));
    }
    for _ in 0..2 {
        actors.spawn(reader(Arc::clone(servers), Arc::clone(notes)));
    }
    let mut copy = servers.counters.copy();
    let end = Instant::now() + STORM;
    let mut projectors = vec![servers.projector(1 + servers.world.below(20) as usize)];
    let world = Arc::clone(&servers.world);
    while Instant::now() < end {
        sleep(Duration::from_millis(world.below(4_000))).await;
        world.count_fault();
        if world.chance(500) {
            servers.replica.follow(&servers.records);
        }
        if world.chance(300) {
            copy = servers.counters.copy();
        }
        match world.below(100) {
            // Kill and start again.
            0..25 => {
                if !projectors.is_empty() {
                    let which = world.below(projectors.len() as u64) as usize;
                    projectors.swap_remove(which);
                }
                projectors.push(servers.projector(1 + world.below(20) as usize));
            }
            // Stop one and start another: when it is resumed it is a zombie.
            25..45 => {
                if let Some(running) = projectors.last() {
                    running.switch.stop();
                }
                projectors.push(servers.projector(1 + world.below(20) as usize));
            }
            45..65 => projectors.iter().for_each(|running| running.switch.resume()),
            // Two owners at once.
            65..70 => projectors.push(servers.projector(1 + world.below(20) as usize)),
            70..78 => servers.counters.fail_over(&copy),
            78..80 => servers.counters.forget_progress(),
            80..87 => servers.counters.evict(&post(POSTS[world.below(3) as usize])),
            87..92 => servers.counters.flush(),
            // A command API is killed: what it had in hand is gone, and with it what it remembered.
            _ => {
                let (process, _never_stopped) = Process::new(&servers.world);
                *servers.requests.lock() = Arc::new(MemoryRequests::new(servers.clock.clone()));
                let which = world.below(2) as usize;
                apis.lock()[which] = servers.command_api(&process);
            }
        }
        while projectors.len() > 3 {
            projectors.remove(0);
        }
    }
    projectors.iter().for_each(|running| running.switch.resume());
    // The storm ends with every process killed wherever it is.
    drop(projectors);
    actors.shutdown().await;
}

/// Sends commands, retries what is unknown under the same id, and sends old ones again.
async fn client(servers: Arc<Servers>, apis: Arc<Mutex<Vec<Arc<Commands>>>>, notes: Shared) {
    let world = Arc::clone(&servers.world);
    let mut sent: Vec<Command> = Vec::new();
    loop {
        sleep(Duration::from_millis(world.below(3_000))).await;
        let again = !sent.is_empty() && world.chance(250);
        let command = if again { sent[world.below(sent.len() as u64) as usize].clone() } else { fresh(&servers) };
        if !again {
            sent.push(command.clone());
        }
        for _ in 0..=world.below(4) {
            let api = {
                let apis = apis.lock();
                Arc::clone(&apis[world.below(apis.len() as u64) as usize])
            };
            // Until an answer has come the outcome is unknown, whatever becomes of this client.
            let was_unknown =
                std::mem::replace(&mut notes.lock().histories.entry(command.request_id).or_default().unknown, true);
            // A client that gives up waiting: the request is cancelled wherever it is.
            let patience = Duration::from_millis(if world.chance(50) { world.below(50) } else { 60_000 });
            let outcome = tokio::time::timeout(patience, api.submit(&command)).await;
            if note(&notes, &command, was_unknown, outcome.ok()) {
                break;
            }
            sleep(Duration::from_millis(world.below(1_500))).await;
        }
    }
}

/// Notes an answer, or that none came. True if the command was accepted.
fn note(notes: &Shared, command: &Command, was_unknown: bool, outcome: Option<Result<Accepted, Refusal>>) -> bool {
    let mut notes = notes.lock();
    let history = notes.histories.entry(command.request_id).or_default();
    match outcome {
        Some(Ok(Accepted { position, .. })) => {
            history.unknown = was_unknown;
            history.accepted.push(position);
            return true;
        }
        None | Some(Err(Refusal::InFlight { .. } | Refusal::Unknown(_))) => {}
        Some(Err(_)) => history.unknown = was_unknown,
    }
    false
}

fn fresh(servers: &Servers) -> Command {
    let world = &servers.world;
    let content = post(POSTS[world.below(POSTS.len() as u64) as usize]);
    let user: UserId = user(1 + world.below(USERS as u64) as i64);
    Command {
        intent: Intent { user, content, liked: world.chance(500) },
        request_id: fresh_id(servers),
        occurred_at: None,
        trace_parent: String::new(),
        address: None,
    }
}

/// Mostly v7, by a clock that ticks every eight seconds, so that many ids share a millisecond.
fn fresh_id(servers: &Servers) -> RequestId {
    let mut bytes = servers.world.bits().to_be_bytes();
    let millis = servers.clock.now().millis() / 8000 * 8000;
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    let version = if servers.world.chance(850) { 0x70 } else { 0x40 };
    bytes[6] = version | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    RequestId::from_bytes(bytes)
}

/// Reads, and checks each answer against the log: it must be a state that the log had at or after its claim.
async fn reader(servers: Arc<Servers>, notes: Shared) {
    let (process, _never_stopped) = Process::new(&servers.world);
    let reads = Arc::new(servers.query_api(&process));
    tokio::join!(Arc::clone(&reads).keep_up(), read_for_ever(&servers, &reads, &notes));
}

async fn read_for_ever(servers: &Servers, reads: &Arc<Reads>, notes: &Shared) {
    let world = Arc::clone(&servers.world);
    loop {
        sleep(Duration::from_millis(world.below(1_500))).await;
        let viewer = user(1 + world.below(USERS as u64) as i64);
        let contents: Vec<Content> = POSTS.iter().map(|id| post(*id)).collect();
        let acknowledged: Vec<Position> =
            notes.lock().histories.values().flat_map(|history| history.accepted.clone()).collect();
        let after = match acknowledged.get(world.below(acknowledged.len().max(1) as u64 * 2) as usize) {
            Some(position) => After { positions: vec![*position], wait: Duration::from_millis(world.below(2_000)) },
            None => After::default(),
        };
        let Ok(items) = reads.items(&contents, Some(viewer), &after).await else { continue };
        let mut notes = notes.lock();
        notes.reads += 1;
        for item in items {
            let partition = item.claim.partition;
            let reached = after.positions.iter().filter(|position| position.partition == partition);
            if item.as_of.is_none() && reached.clone().any(|position| !item.claim.has_reached(position.offset)) {
                notes
                    .violation
                    .get_or_insert(format!("I8: an unmarked answer for {} does not reach `after`", item.content));
            }
            let pair = Pair { content: item.content, user: viewer };
            if let Err(violation) = was_true(servers, partition, &item, &pair) {
                notes.violation.get_or_insert(violation);
            }
        }
    }
}

fn was_true(
    servers: &Servers,
    partition: Partition,
    item: &likewise_query_api::Item,
    pair: &Pair,
) -> Result<(), String> {
    let records = servers.log.records(partition);
    let since = item.claim.next_offset.get() as usize;
    let mut accepted = check::play(partition, &records, since);
    let (mut count_was, mut status_was) = (false, false);
    for next in records.iter().skip(since).map(Some).chain([None]) {
        count_was |= check::count(&accepted, &item.content) == item.count;
        status_was |= Some(check::likes(&accepted, pair)) == item.liked;
        if let Some(record) = next {
            check::play_one(&mut accepted, partition, record);
        }
    }
    if !count_was {
        return Err(format!(
            "I8: {} was answered with {}, which the log never had since {:?}",
            item.content, item.count, item.claim
        ));
    }
    if !status_was {
        return Err(format!(
            "I8: {pair:?} was answered with {:?}, which the log never had since {:?}",
            item.liked, item.claim
        ));
    }
    Ok(())
}

/// Waits until the records and the counters reflect the whole log, then compares the counters and a rebuild.
async fn quiesce(servers: &Servers, notes: &Shared) -> Result<(), String> {
    let deadline = Instant::now() + QUIESCE;
    loop {
        // Late appends may still come; calm means that they are few.
        sleep(Duration::from_secs(4)).await;
        match is_settled(servers).await.map_err(|e| e.to_string())? {
            Ok(()) => break,
            Err(waiting) if Instant::now() >= deadline => return Err(format!("liveness: {waiting}")),
            Err(_) => {}
        }
    }
    if notes.lock().violation.is_some() {
        return Ok(());
    }
    cache_equals_model(servers).await?;
    rebuild_equals(servers).await
}

async fn is_settled(servers: &Servers) -> Result<Result<(), String>, StoreError> {
    for partition in &servers.partitions {
        let end = servers.log.bounds(*partition).await?.end;
        let Some(checkpoint) = servers.records.checkpoint(*partition).await? else {
            return Ok(Err(format!("partition {partition} was never owned")));
        };
        let progress = servers.counters.progress(checkpoint.scope()).await?;
        let claim = progress.map(|progress| progress.claim(*partition));
        if checkpoint.next_offset != end || claim.is_none_or(|claim| claim.next_offset != end || claim.recovering) {
            let next = checkpoint.next_offset;
            return Ok(Err(format!(
                "partition {partition} ends at {end}, records are at {next}, counters at {claim:?}"
            )));
        }
    }
    Ok(Ok(()))
}

/// I5: what the cache holds, and what is read through it, is what the log says.
async fn cache_equals_model(servers: &Servers) -> Result<(), String> {
    let (process, _never_stopped) = Process::new(&servers.world);
    let reads = Arc::new(servers.query_api(&process));
    let contents: Vec<Content> = POSTS.iter().map(|id| post(*id)).collect();
    for viewer in (1..=USERS).map(user) {
        for round in ["cached", "filled"] {
            for content in &contents {
                let partition = PartitionCount::DEFAULT.partition_of(content);
                let accepted = check::play(partition, &servers.log.records(partition), usize::MAX);
                let (count, liked) = (
                    check::count(&accepted, content),
                    check::likes(&accepted, &Pair { content: *content, user: viewer }),
                );
                let checkpoint = servers.records.checkpoint(partition).await.map_err(|e| e.to_string())?;
                let Some(checkpoint) = checkpoint else { continue };
                let ask = Ask { scope: checkpoint.scope(), counts: vec![*content], statuses: vec![*content] };
                let answers = servers.counters.read(&[ask], Some(viewer)).await.map_err(|e| e.to_string())?;
                let cached = answers[0].counts[0].map(|cached| cached.count);
                let status = answers[0].statuses[0].map(|status| status.liked);
                if cached.is_some_and(|cached| cached != count) || status.is_some_and(|status| status != liked) {
                    return Err(format!(
                        "I5 ({round}): {content} is {cached:?} and {status:?} in the cache, {count} and {liked} in the log"
                    ));
                }
            }
            let items = reads.items(&contents, Some(viewer), &After::default()).await;
            let items = items.map_err(|_| "liveness: a calm read fails".to_owned())?;
            if let Some(old) = items.iter().find(|item| item.as_of.is_some()) {
                return Err(format!("liveness: a calm answer is marked as stale: {old:?}"));
            }
        }
    }
    Ok(())
}

/// I6: empty stores and the log give the same digest, in batches of another size.
async fn rebuild_equals(servers: &Servers) -> Result<(), String> {
    let fresh = Servers {
        world: Arc::clone(&servers.world),
        clock: servers.clock.clone(),
        log: Arc::clone(&servers.log),
        records: Arc::new(SimRecords::default()),
        replica: Arc::new(SimRecords::default()),
        counters: Arc::new(MemoryCounters::new(servers.clock.clone())),
        requests: Mutex::new(Arc::new(MemoryRequests::new(servers.clock.clone()))),
        partitions: servers.partitions.clone(),
    };
    let _projector = fresh.projector(3);
    let deadline = Instant::now() + QUIESCE;
    while let Err(waiting) = is_settled(&fresh).await.map_err(|e| e.to_string())? {
        if Instant::now() >= deadline {
            return Err(format!("liveness: a rebuild does not end: {waiting}"));
        }
        sleep(Duration::from_millis(50)).await;
    }
    let digest =
        async |records: &SimRecords| records.digest().await.map(|snapshot| snapshot.value).map_err(|e| e.to_string());
    let (kept, rebuilt) = (digest(&servers.records).await?, digest(&fresh.records).await?);
    if kept != rebuilt {
        return Err("I6: a rebuild has another digest".into());
    }
    Ok(())
}
