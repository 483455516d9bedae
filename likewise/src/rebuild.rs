//! `likewise rebuild`: the whole log folded anew beside the live tables, which it then takes the place of.

mod reread;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::ProgressBar;
use likewise_analyst::{
    reader::Pace,
    verify::{Report, Stores, verify},
};
use likewise_projector::{Limits, Ports, Status};
use likewise_schema::{Offset, Partition};
use likewise_storage::{
    Clock, EventLog, RecordStore, StoreError,
    counters::MemoryCounters,
    log::Membership,
    records::{Shards, SqliteSuccessor, Standing, Successor},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use self::reread::Reread;
use crate::{
    Failure,
    config::Settings,
    operator::Owner,
    reading::{self, Reading},
    serve::own_directories,
    wiring::{self, Place},
};

/// Fold the whole log into new tables beside the live ones, compare them with the log, and switch.
///
/// Reads and commands go on meanwhile. A run that was cut off goes on where it was; the live tables stay as they are until
/// the new ones take their place in one step. The old ones are kept until --drop-old.
#[derive(Args)]
#[command(after_help = "Examples:
  likewise rebuild --dry-run     what differs between the live tables and the log
  likewise rebuild               make new ones, and switch
  likewise rebuild --drop-old    drop those of before")]
pub(crate) struct Options {
    /// Change nothing: say what would.
    #[arg(long)]
    dry_run: bool,
    /// Give up a rebuild that was cut off.
    #[arg(long, conflicts_with = "dry_run")]
    cancel: bool,
    /// Drop the tables that the last rebuild replaced.
    #[arg(long, conflicts_with_all = ["dry_run", "cancel"])]
    drop_old: bool,
    #[command(flatten)]
    owner: Owner,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

/// What is asked of a rebuild.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Asked {
    pub(crate) what: What,
    pub(crate) max_rate: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum What {
    Rebuild,
    DryRun,
    Cancel,
    DropOld,
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let what = match options {
        Options { dry_run: true, .. } => What::DryRun,
        Options { cancel: true, .. } => What::Cancel,
        Options { drop_old: true, .. } => What::DropOld,
        _ => What::Rebuild,
    };
    let asked = Asked { what, max_rate: options.reading.max_rate() };
    let outcome = match options.owner.of(&settings.records)? {
        Some(service) => service.rebuild(asked).await?,
        None => {
            // Files are replaced by whoever owns them.
            let _owned = own_directories(settings)?;
            let log = wiring::readable_log(&settings.log).await?;
            let live = wiring::readable_records(&settings.records).await;
            let rebuild = Rebuild::new(log, live?, &settings.records)?;
            let bar = reading::bar_of(&rebuild.log).await?;
            let rebuilt = rebuild.run(asked, &bar, &Offline).await;
            bar.finish_and_clear();
            rebuilt?
        }
    };
    if options.json {
        return reading::print(&outcome.to_string()).map(drop);
    }
    reading::print(outcome["told"].as_str().unwrap_or_default()).map(drop)
}

/// One store, and what is to take its place.
struct Part {
    shards: Shards,
    successor: Arc<dyn Successor>,
}

/// Puts a successor in its place, whoever uses the live tables.
#[async_trait::async_trait]
pub(crate) trait Switch: Send + Sync {
    /// Tries once.
    async fn switch(&self, successor: &dyn Successor) -> Result<(), StoreError>;
}

/// Where nobody has the live tables open, or a server sees to it.
struct Offline;

#[async_trait::async_trait]
impl Switch for Offline {
    async fn switch(&self, successor: &dyn Successor) -> Result<(), StoreError> {
        successor.switch().await
    }
}

/// How long a switch is tried, and after which pause: somebody may be reading from what is replaced.
const SWITCH_MAX: Duration = Duration::from_secs(30);
const SWITCH_AGAIN: Duration = Duration::from_millis(500);

/// A rebuild of all records.
pub(crate) struct Rebuild {
    log: Arc<dyn EventLog>,
    live: Arc<dyn RecordStore>,
    parts: Vec<Part>,
    /// Somebody wants it to end.
    pub(crate) is_given_up: Arc<AtomicBool>,
}

/// How long the new tables may get nowhere.
const STUCK_MAX: Duration = Duration::from_secs(60);
/// How far the new tables may be behind the log's end before they are compared.
const BEHIND_MAX: u64 = 1000;
/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the new tables may take to have what the live ones have.
const LEVEL_MAX: Duration = Duration::from_secs(120);

impl Rebuild {
    pub(crate) fn new(log: Arc<dyn EventLog>, live: Arc<dyn RecordStore>, urls: &[String]) -> Result<Self, Failure> {
        let part = |(shards, place)| match place {
            Place::Server(server) => Part { shards, successor: server },
            Place::File(path) => Part { successor: Arc::new(SqliteSuccessor::new(&path, &shards)), shards },
        };
        let parts = wiring::record_places(urls)?.into_iter().map(part).collect();
        Ok(Self { log, live, parts, is_given_up: Arc::default() })
    }

    pub(crate) async fn run(&self, asked: Asked, bar: &ProgressBar, switch: &dyn Switch) -> Result<Value, Failure> {
        match asked.what {
            What::DryRun => self.compare_live(asked, bar).await,
            What::Cancel => {
                for part in &self.parts {
                    part.successor.discard().await?;
                }
                Ok(json!({ "told": "what was rebuilt so far is dropped; the live tables were not touched" }))
            }
            What::DropOld => {
                let mut standings = Vec::new();
                for part in &self.parts {
                    standings.push(part.successor.standing().await?);
                }
                if standings.contains(&Standing::Begun) || !standings.contains(&Standing::Switched) {
                    return Err("a rebuild is under way, or there was none: nothing is dropped".into());
                }
                for part in &self.parts {
                    part.successor.discard_old().await?;
                }
                Ok(json!({ "told": "the tables of before the last rebuild are dropped" }))
            }
            What::Rebuild => self.rebuild(asked, bar, switch).await,
        }
    }

    async fn compare_live(&self, asked: Asked, bar: &ProgressBar) -> Result<Value, Failure> {
        let (log, records) = (Arc::clone(&self.log), Arc::clone(&self.live));
        let stores = Stores { log, records, counters: None };
        let report = verify(&stores, None, &Pace::new(asked.max_rate), &reading::moves(bar)).await?;
        let kinds = report.differences.iter().map(|(kind, count)| format!("{count} of {}", kind.name()));
        let kinds: Vec<String> = kinds.collect();
        let told = match report.total() {
            0 => "a rebuild would change nothing: the live tables are what the log says".to_owned(),
            total => format!("a rebuild would mend {total} differences: {}", kinds.join(", ")),
        };
        if report.total() > 0 {
            return Err(Failure::different(told));
        }
        Ok(json!({ "told": told }))
    }

    async fn rebuild(&self, asked: Asked, bar: &ProgressBar, switch: &dyn Switch) -> Result<Value, Failure> {
        let mut waiting = Vec::new();
        for part in &self.parts {
            if part.successor.standing().await? != Standing::Switched {
                waiting.push(part);
            }
        }
        if waiting.is_empty() {
            return Err(
                "the tables of before the last rebuild are still there: likewise rebuild --drop-old drops them".into(),
            );
        }
        // Those that a run switched before it was cut off stay as they are.
        let mut fresh = Vec::new();
        for part in &waiting {
            fresh.push(Fresh::start(self, part, asked.max_rate).await?);
        }
        let rebuilt = self.follow(&fresh, asked, bar).await;
        let mut events = 0;
        for part in fresh {
            events += part.stop().await;
        }
        rebuilt?;
        for part in &waiting {
            part.successor.prepare().await?;
        }
        // One after the other, so that nobody waits for more than one.
        for part in &waiting {
            let started = Instant::now();
            while let Err(error) = switch.switch(&*part.successor).await {
                if started.elapsed() > SWITCH_MAX || matches!(error, StoreError::Unusable { .. }) {
                    return Err(error.into());
                }
                sleep(SWITCH_AGAIN).await;
            }
        }
        let left = self.parts.len() - waiting.len();
        let others = match left {
            0 => String::new(),
            _ => format!(" (of {left} others a run before had switched already)"),
        };
        let told = format!(
            "{events} events folded anew, compared with the log, and in the place of the live tables{others}; likewise rebuild --drop-old drops those of before"
        );
        Ok(json!({ "told": told, "events": events }))
    }

    /// Waits until the new tables have the whole log, compares them with it, and waits until they have what the live ones
    /// have.
    async fn follow(&self, fresh: &[Fresh], asked: Asked, bar: &ProgressBar) -> Result<(), Failure> {
        let (mut reached, mut since) = (0, Instant::now());
        loop {
            if self.is_given_up.load(Ordering::Relaxed) {
                return Err("the rebuild was given up; the live tables were not touched".into());
            }
            let (mut applied, mut behind) = (0, 0);
            for part in fresh {
                for (partition, next) in part.next().await? {
                    let end = self.log.bounds(partition).await?.end;
                    applied += next.get().unsigned_abs();
                    behind += (end.get() - next.get()).max(0).unsigned_abs();
                }
                part.check()?;
            }
            bar.set_position(applied);
            if behind <= BEHIND_MAX {
                break;
            }
            if applied > reached {
                (reached, since) = (applied, Instant::now());
            } else if since.elapsed() > STUCK_MAX {
                let why = fresh.iter().find_map(Fresh::fault).unwrap_or_else(|| "nothing says why".into());
                return Err(format!(
                    "the new tables get nowhere: {why}; likewise rebuild goes on later, --cancel drops them"
                )
                .into());
            }
            sleep(LOOK_EVERY).await;
        }
        bar.set_message("comparing ");
        for part in fresh {
            let (log, records) = (Arc::clone(&self.log), Arc::clone(&part.records));
            let stores = Stores { log, records, counters: None };
            let nothing = Arc::new(|_| {}) as _;
            let report: Report = verify(&stores, Some(&part.partitions), &Pace::new(asked.max_rate), &nothing).await?;
            if report.total() > 0 {
                return Err(Failure::different(format!(
                    "the new tables differ from the log in {} places and are not switched to: likewise rebuild --cancel drops them",
                    report.total()
                )));
            }
        }
        let level = async {
            for part in fresh {
                for partition in &part.partitions {
                    // Live tables of another log, or beyond this one's end, are halted: there is nothing to be level with.
                    let live = self.live.checkpoint(*partition).await?;
                    let live = live.filter(|stored| stored.log_identity == self.log.identity());
                    let live = match live.map(|stored| stored.next_offset) {
                        Some(next) => Some(next.min(self.log.bounds(*partition).await?.end)),
                        None => None,
                    };
                    while part.records.checkpoint(*partition).await?.map(|stored| stored.next_offset) < live {
                        part.check()?;
                        sleep(Duration::from_millis(5)).await;
                    }
                }
            }
            Ok(())
        };
        let in_time = tokio::time::timeout(LEVEL_MAX, level).await;
        in_time.unwrap_or_else(|_| {
            Err("the new tables do not catch up with the live ones: try again with less load".into())
        })
    }
}

/// New tables that are being filled.
struct Fresh {
    records: Arc<dyn RecordStore>,
    partitions: BTreeSet<Partition>,
    status: Arc<Status>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Fresh {
    async fn start(rebuild: &Rebuild, part: &Part, max_rate: u32) -> Result<Self, Failure> {
        let records = part.successor.open().await?;
        let count = rebuild.log.partitions();
        let partitions: BTreeSet<Partition> =
            count.all().filter(|partition| part.shards.contains(partition.shard())).collect();
        let clock = Clock::system();
        let ports = Ports {
            log: Arc::new(Reread::new(&rebuild.log, max_rate)),
            records: Arc::clone(&records),
            // Nobody reads the new tables yet: what is published is forgotten.
            counters: Arc::new(MemoryCounters::new(clock.clone())),
            clock,
        };
        let (status, membership) = (Arc::new(Status::default()), Membership::fixed(partitions.clone()));
        let (stop, stopping) = watch::channel(false);
        let told = Arc::clone(&status);
        let task = tokio::spawn(async move {
            likewise_projector::run(ports, Limits::default(), &membership, told, stopping).await;
        });
        Ok(Self { records, partitions, status, stop, task })
    }

    /// Where each partition is.
    async fn next(&self) -> Result<BTreeMap<Partition, Offset>, Failure> {
        let mut next = BTreeMap::new();
        for partition in &self.partitions {
            let stored = self.records.checkpoint(*partition).await?;
            next.insert(*partition, stored.map(|stored| stored.next_offset).unwrap_or_default());
        }
        Ok(next)
    }

    /// Why a partition is not filled right now.
    fn fault(&self) -> Option<String> {
        let store = self.records.fault().map(|error| error.to_string());
        store.or_else(|| {
            self.status.all().into_values().find_map(|state| match state {
                likewise_projector::PartitionState::Acquiring(reason) => reason,
                _ => None,
            })
        })
    }

    /// Fails if a partition is halted.
    fn check(&self) -> Result<(), Failure> {
        for (partition, state) in self.status.all() {
            if let likewise_projector::PartitionState::Halted(reason) = state {
                return Err(format!(
                    "partition {partition} cannot be rebuilt: {reason}; likewise rebuild --cancel drops what there is"
                )
                .into());
            }
        }
        Ok(())
    }

    /// Ends the filling, closes the tables, and gives how many events they have.
    async fn stop(mut self) -> u64 {
        let _has_ended = self.stop.send(true);
        let _it_panicked = (&mut self.task).await;
        self.next().await.unwrap_or_default().values().map(|next| next.get().unsigned_abs()).sum()
    }
}
