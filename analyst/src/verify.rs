//! Proof that records and cache are what the log says, while they are written to.
//!
//! One snapshot of the records names an offset in each partition. The log up to there is folded by [`model`](crate::model),
//! apart from the projector, and each row, count and bucket is compared with it. Entries of the cache are read after that
//! snapshot; what had an event in between is left out. Everything is sorted into buckets on disk first, so memory is
//! bounded.

mod repair;
mod stored;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use likewise_schema::{Content, Offset, Pair, Partition, PartitionCount, Timestamp, UserId};
use likewise_storage::{
    Clock, CounterStore, EventLog, RecordStore, StoreError,
    counters::{Cached, CachedCount, Scope, Status, Version},
    records::{Beside, BucketDelta, Checkpoint, Digest, DigestBuilder, KeptCount, LikeRecord, SCAN_CHUNKS, Scan},
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use self::repair::{Repaired, repair};
use self::stored::{StoredCount, StoredRow};
use crate::{
    Error, Progress,
    ledger::{ContentKey, Key, Ledger, Prefix, buckets_for, number_of_content, number_of_pair},
    model::{Effect, Life},
    range::Range,
    reader::{Pace, PartitionReader, decode},
    spill::Spill,
};

/// Differences that are kept one by one; more are only counted.
pub const FINDINGS_MAX: usize = 100_000;
/// What a cache on a server is called in its errors.
const CACHE: &str = "Redis";
/// Slots of ten minutes in which a bucket lives: 48 hours.
const SLOTS_KEPT: i64 = 288;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A row differs in its state, times, version, ring or floor.
    Row,
    /// A pair has no row.
    MissingRow,
    /// A row of a pair that the log does not know.
    ExtraRow,
    /// A content's count, version, first position or partition differs.
    Count,
    /// A content has no count.
    MissingCount,
    /// A count of a content that the log does not know.
    ExtraCount,
    /// A bucket within its life differs.
    Bucket,
    /// A count in the cache differs.
    CachedCount,
    /// A status in the cache differs.
    CachedStatus,
    /// Something that no owner writes, or that lists depend on.
    Damaged,
}

impl Kind {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Row => "row",
            Kind::MissingRow => "missing row",
            Kind::ExtraRow => "extra row",
            Kind::Count => "count",
            Kind::MissingCount => "missing count",
            Kind::ExtraCount => "extra count",
            Kind::Bucket => "bucket",
            Kind::CachedCount => "cached count",
            Kind::CachedStatus => "cached status",
            Kind::Damaged => "damaged",
        }
    }
}

/// One difference.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Which partition; none where what is damaged does not say.
    #[serde(serialize_with = "partition")]
    pub partition: Option<Partition>,
    /// What is wrong.
    pub kind: Kind,
    /// Of which content.
    #[serde(serialize_with = "content")]
    pub content: Option<Content>,
    /// Of which user.
    pub user: Option<UserId>,
    /// What is there.
    pub found: String,
    /// What the log says.
    pub expected: String,
    /// What would mend it.
    #[serde(skip)]
    mend: Mend,
}

fn partition<S: serde::Serializer>(partition: &Option<Partition>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_some(&partition.map(Partition::get))
}

fn content<S: serde::Serializer>(content: &Option<Content>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_some(&content.map(|content| content.to_string()))
}

/// What would mend a difference.
#[derive(Clone, Debug)]
enum Mend {
    /// The row must follow from this life; none: there must be no row.
    Row(Option<Life>),
    /// The count must follow from the rows; its first position if the content is known.
    Count(Option<Offset>),
    /// So much must be added to the bucket.
    Bucket(BucketDelta),
    /// The cache must forget it.
    Forget,
    /// Nothing that is known.
    Nothing,
}

/// What a run looked at, and what it found.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The partitions compared, each up to which offset.
    pub partitions: BTreeMap<u16, i64>,
    /// Events folded.
    pub events: u64,
    /// Rows compared.
    pub rows: u64,
    /// Counts compared.
    pub counts: u64,
    /// Entries of the cache compared; none where it could not be looked at.
    pub cached: Option<u64>,
    /// Why it could not, if it should have been.
    pub cache_fault: Option<String>,
    /// The SHA-256 over all rows, of all partitions.
    pub sha256: String,
    /// Differences, by kind.
    pub differences: BTreeMap<Kind, u64>,
    /// The first [`FINDINGS_MAX`] of them.
    pub findings: Vec<Finding>,
    /// The newest slot that the store has anything of.
    #[serde(skip)]
    newest_slot: i64,
    /// The partitions as the records had them.
    #[serde(skip)]
    scopes: BTreeMap<Partition, Scope>,
}

impl Report {
    /// How many differences there are.
    pub fn total(&self) -> u64 {
        self.differences.values().sum()
    }

    fn add(&mut self, finding: Finding) {
        *self.differences.entry(finding.kind).or_default() += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

fn now() -> Timestamp {
    Clock::system().now()
}

/// What is compared with what.
pub struct Stores {
    /// The truth.
    pub log: Arc<dyn EventLog>,
    /// What was derived from it.
    pub records: Arc<dyn RecordStore>,
    /// And cached of that; none if it cannot be looked at.
    pub counters: Option<Arc<dyn CounterStore>>,
}

/// An entry of a status in the cache, as it is kept in a file.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct KeptStatus {
    key: Key,
    generation: u32,
    partition: u16,
    liked: bool,
    version: Version,
}

/// What is known of a content, from the log or from a store, as it is kept in a file.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum OfContent {
    /// From the log: its part of the count, its last and its first accepted event.
    Counted { partition: u16, change: i64, version: i64, first: i64 },
    /// From the log: likes that came and went in a slot.
    Slot { slot: i64, gained: i64, lost: i64 },
    /// A count as it is stored.
    Stored(StoredCount),
    /// A part of a bucket as it is stored.
    StoredSlot { slot: i64, gained: i64, lost: i64 },
    /// A count in the cache.
    Cached { generation: u32, partition: u16, count: i64, version: Version },
}

/// Everything sorted into buckets.
struct Sorted {
    rows: Spill<StoredRow>,
    statuses: Spill<KeptStatus>,
    contents: Spill<(ContentKey, OfContent)>,
}

/// Compares `partitions`, or all. What is found comes in no particular order.
pub async fn verify(
    stores: &Stores,
    partitions: Option<&BTreeSet<Partition>>,
    pace: &Arc<Pace>,
    progress: &Progress,
) -> Result<Report, Error> {
    let log = &stores.log;
    let buckets = buckets_for(log).await?;
    let sorted = Sorted { rows: Spill::new(buckets)?, statuses: Spill::new(buckets)?, contents: Spill::new(buckets)? };
    let mut report = Report::default();
    let checkpoints = read_records(stores, partitions, &sorted, &mut report).await?;
    let ends: BTreeMap<Partition, Offset> =
        checkpoints.iter().map(|(one, stored)| (*one, stored.next_offset)).collect();
    report.scopes = checkpoints.iter().map(|(partition, stored)| (*partition, stored.scope())).collect();
    report.partitions = ends.iter().map(|(partition, end)| (partition.get(), end.get())).collect();
    let cache = match read_cache(stores, &checkpoints, &sorted, &mut report).await {
        Err(Error::Store(error @ StoreError::Unavailable { store: CACHE, .. })) => {
            // What was sorted of it is not compared, for nothing is known of how far it reached.
            report.cached = None;
            report.cache_fault = Some(error.to_string());
            Cache::default()
        }
        read => read?,
    };
    let prefix = Prefix::Offsets(ends);
    let ledger = Ledger::read_into(buckets, log, &Range::default(), &prefix, pace, progress).await?;
    report.events = ledger.events;
    let compare = move || {
        let newest = compare_pairs(&ledger, &sorted, &cache, &mut report)?.max(report.newest_slot);
        compare_contents(ledger.count, &sorted, &cache, newest, &mut report)?;
        Ok(report)
    };
    tokio::task::spawn_blocking(compare).await.map_err(|e| Error::file("comparing failed", e))?
}

/// Sorts one snapshot of the records. Gives the checkpoints of that snapshot, of the partitions that are compared.
async fn read_records(
    stores: &Stores,
    partitions: Option<&BTreeSet<Partition>>,
    sorted: &Sorted,
    report: &mut Report,
) -> Result<BTreeMap<Partition, Checkpoint>, Error> {
    let count = stores.log.partitions();
    let is_compared = |content: &Content| partitions.is_none_or(|only| only.contains(&count.partition_of(content)));
    let (rows, mut rows_found) = mpsc::channel::<Vec<LikeRecord>>(SCAN_CHUNKS);
    let (beside, mut beside_found) = mpsc::channel::<Vec<Beside>>(SCAN_CHUNKS);
    let scan = stores.records.scan(Scan { rows, beside: Some(beside) });
    let mut digest = DigestBuilder::default();
    let (mut compared, mut counts, mut newest) = (0, 0, i64::MIN);
    let this_slot = now().ten_minute_slot();
    let sort_rows = async {
        while let Some(chunk) = rows_found.recv().await {
            chunk.iter().for_each(|row| digest.add(row));
            let kept = chunk.iter().filter(|row| is_compared(&row.pair.content));
            let kept: Vec<_> = kept.map(|row| (number_of_pair(&row.pair), StoredRow::of(row))).collect();
            compared += kept.len() as u64;
            sorted.rows.put(kept)?;
        }
        Ok::<_, Error>(())
    };
    let mut damaged = Vec::new();
    let sort_beside = async {
        while let Some(chunk) = beside_found.recv().await {
            let mut kept = Vec::with_capacity(chunk.len());
            for found in chunk {
                let (content, value) = match found {
                    Beside::Count(stored) => (stored.count.content, OfContent::Stored(StoredCount::of(&stored))),
                    Beside::Bucket(BucketDelta { content, slot, gained, lost }) => {
                        // What lives follows from the newest of a whole store, whatever is compared.
                        newest = newest.max(slot.min(this_slot));
                        (content, OfContent::StoredSlot { slot, gained, lost })
                    }
                    Beside::Damaged(content, what) => {
                        damaged.push((content, what));
                        continue;
                    }
                };
                counts += u64::from(matches!(value, OfContent::Stored(_)) && is_compared(&content));
                if is_compared(&content) {
                    kept.push((number_of_content(&content), (ContentKey::of(&content), value)));
                }
            }
            sorted.contents.put(kept)?;
        }
        Ok::<_, Error>(())
    };
    let scan = async { scan.await.map_err(Error::from) };
    let (checkpoints, (), ()) = tokio::try_join!(scan, sort_rows, sort_beside)?;
    let Digest { sha256, .. } = digest.finish();
    report.sha256 = likewise_schema::hex(&sha256);
    report.rows = compared;
    report.counts = counts;
    report.newest_slot = newest;
    for (content, found) in damaged.into_iter().filter(|(content, _)| content.as_ref().is_none_or(is_compared)) {
        let partition = content.map(|content| count.partition_of(&content));
        // A row or a count that cannot be read is missing, too, and is mended as such.
        let mend = content.map_or(Mend::Nothing, |_| Mend::Count(None));
        let (user, expected) = (None, "what an owner writes".into());
        report.add(Finding { partition, kind: Kind::Damaged, content, user, found, expected, mend });
    }
    let compared = |stored: &Checkpoint| partitions.is_none_or(|only| only.contains(&stored.partition));
    let checkpoints = checkpoints.into_iter().filter(compared);
    let checkpoints: BTreeMap<_, _> = checkpoints.map(|stored| (stored.partition, stored)).collect();
    for partition in count.all().filter(|one| partitions.is_none_or(|only| only.contains(one))) {
        // An owner makes the checkpoint before it applies anything.
        if !checkpoints.contains_key(&partition) && !checkpoints.is_empty() {
            let end = stores.log.bounds(partition).await?.end;
            if end > Offset::ZERO {
                report.add(Finding {
                    partition: Some(partition),
                    kind: Kind::Damaged,
                    content: None,
                    user: None,
                    found: format!("no checkpoint, so that it was not compared; the log has {end} events of it"),
                    expected: "a checkpoint".into(),
                    mend: Mend::Nothing,
                });
            }
        }
    }
    for stored in checkpoints.values() {
        if stored.log_identity != stores.log.identity() || stored.partitions != count {
            return Err(Error::asked("the records were made from another log: name that log"));
        }
    }
    Ok(checkpoints)
}

/// What the cache held, as far as it can be compared.
#[derive(Default)]
struct Cache {
    /// By scope: up to which version the cache must show everything.
    reached: HashMap<Scope, Version>,
    /// By scope: the last event that anything in the cache can show.
    last: HashMap<Scope, Version>,
    /// Pairs and contents with events after the snapshot of the records.
    pairs: HashSet<Pair>,
    contents: HashSet<Content>,
}

/// Sorts the entries of the cache, and notes what had events after the records' snapshot until the entries were read.
async fn read_cache(
    stores: &Stores,
    checkpoints: &BTreeMap<Partition, Checkpoint>,
    sorted: &Sorted,
    report: &mut Report,
) -> Result<Cache, Error> {
    let mut cache = Cache::default();
    let Some(counters) = &stores.counters else { return Ok(cache) };
    for stored in checkpoints.values() {
        let scope = stored.scope();
        if let Some(progress) = counters.progress(scope).await?.filter(|progress| !progress.recovering) {
            cache.reached.insert(scope, progress.position);
        }
    }
    let (out, mut found) = mpsc::channel(SCAN_CHUNKS);
    let reached = &cache.reached;
    // Entries can show more than progress says: a fill shows what the records had.
    let mut greatest: HashMap<Scope, Version> = HashMap::new();
    let mut entries = 0;
    let mut damaged = Vec::new();
    let sort = async {
        while let Some(chunk) = found.recv().await {
            let (mut statuses, mut counts) = (Vec::new(), Vec::new());
            for entry in chunk {
                match entry {
                    Cached::Count(scope, content, CachedCount { count, version }) if reached.contains_key(&scope) => {
                        let (generation, partition) = (scope.generation.0, scope.partition.get());
                        greatest.entry(scope).and_modify(|known| *known = (*known).max(version)).or_insert(version);
                        let cached = OfContent::Cached { generation, partition, count, version };
                        counts.push((number_of_content(&content), (ContentKey::of(&content), cached)));
                    }
                    Cached::Status(scope, user, content, Status { liked, version, .. })
                        if reached.contains_key(&scope) =>
                    {
                        greatest.entry(scope).and_modify(|known| *known = (*known).max(version)).or_insert(version);
                        let (pair, generation) = (Pair { content, user }, scope.generation.0);
                        let (key, partition) = (Key::of(&pair), scope.partition.get());
                        statuses
                            .push((number_of_pair(&pair), KeptStatus { key, generation, partition, liked, version }));
                    }
                    Cached::Damaged(scope, key) if reached.contains_key(&scope) => damaged.push((scope, key)),
                    // Of tables that are gone, or of partitions that are not compared.
                    _ => {}
                }
            }
            entries += (statuses.len() + counts.len()) as u64;
            sorted.statuses.put(statuses)?;
            sorted.contents.put(counts)?;
        }
        Ok::<_, Error>(())
    };
    let list = async { counters.entries(out).await.map_err(Error::from) };
    tokio::try_join!(list, sort)?;
    report.cached = Some(entries);
    for (scope, key) in damaged {
        let (found, expected) = (format!("the key {key}"), "what an owner writes".into());
        let (partition, content, user) = (Some(scope.partition), None, None);
        report.add(Finding { partition, kind: Kind::Damaged, content, user, found, expected, mend: Mend::Nothing });
    }
    for (partition, stored) in checkpoints {
        let scope = stored.scope();
        let Some(progress) = counters.progress(scope).await? else { continue };
        // No entry can show more than the log has by now; one that says so is wrong.
        let end = stores.log.bounds(*partition).await?.end.max(stored.next_offset);
        let shown = greatest.get(&scope).copied().unwrap_or(-1).max(progress.position).min(end.get() - 1);
        cache.last.insert(scope, end.get() - 1);
        let shown = Offset::new(shown.saturating_add(1)).unwrap_or_default();
        let mut reader =
            PartitionReader::new(&stores.log, *partition, (stored.next_offset, shown), 4096, &Pace::new(0));
        loop {
            let records = reader.chunk().await?;
            if records.is_empty() {
                break;
            }
            for record in &records {
                if let Ok(event) = decode(&stores.log, *partition, record) {
                    cache.pairs.insert(event.pair());
                    cache.contents.insert(event.content());
                }
            }
        }
    }
    Ok(cache)
}

impl Cache {
    /// Whether an entry is what it must be: it shows `expected`, and everything up to `last`, the last event behind it that
    /// the log has up to the records' snapshot. None where it cannot be told.
    fn is_right(
        &self,
        scope: Scope,
        has_changed: bool,
        last: Version,
        version: Version,
        is_expected: bool,
    ) -> Option<bool> {
        let reached = *self.reached.get(&scope)?;
        // A version that the log does not have would keep out every later one.
        if self.last.get(&scope).is_some_and(|greatest| version > *greatest) {
            return Some(false);
        }
        if has_changed || reached < last {
            return None;
        }
        Some(is_expected && version >= last)
    }
}

/// Compares rows and cached statuses, and sorts what follows for contents. Gives the newest slot in which anything changed.
fn compare_pairs(ledger: &Ledger, sorted: &Sorted, cache: &Cache, report: &mut Report) -> Result<i64, Error> {
    let mut newest = i64::MIN;
    for bucket in 0..ledger.buckets() {
        let mut counted: HashMap<Content, (u16, i64, i64, i64)> = HashMap::new();
        let mut slots: HashMap<(Content, i64), (i64, i64)> = HashMap::new();
        let mut lives = ledger.fold(bucket, |pair, logged, effect| {
            if effect != Effect::Ignored {
                let offset = logged.offset().get();
                let fresh = (logged.partition(), 0, offset, offset);
                let (_, change, version, first) = counted.entry(pair.content).or_insert(fresh);
                *change += effect.change();
                *version = (*version).max(offset);
                *first = (*first).min(offset);
            }
            if effect.change() != 0 {
                let slot = logged.received_at().ten_minute_slot();
                newest = newest.max(slot);
                let (gained, lost) = slots.entry((pair.content, slot)).or_default();
                *gained += i64::from(effect == Effect::Gained);
                *lost += i64::from(effect == Effect::Lost);
            }
            Ok(())
        })?;
        let counted = counted.into_iter().map(|(content, (partition, change, version, first))| {
            (content, OfContent::Counted { partition, change, version, first })
        });
        let slots = slots
            .into_iter()
            .map(|((content, slot), (gained, lost))| (content, OfContent::Slot { slot, gained, lost }));
        let of_contents = counted.chain(slots);
        sorted
            .contents
            .put(of_contents.map(|(content, of)| (number_of_content(&content), (ContentKey::of(&content), of))))?;
        sorted.statuses.each(bucket, |kept| {
            let pair = kept.key.pair()?;
            let scope = stored::scope(kept.generation, kept.partition)?;
            let life = lives.get(&pair).and_then(Option::as_ref);
            let (liked, last) = life.map_or((false, -1), |life| (life.is_liked, life.version.get()));
            let is_expected = kept.liked == liked;
            if cache.is_right(scope, cache.pairs.contains(&pair), last, kept.version, is_expected) == Some(false) {
                let words = |liked: bool, version: i64| {
                    format!("{} at version {version}", if liked { "liked" } else { "not liked" })
                };
                report.add(Finding {
                    partition: Some(scope.partition),
                    kind: Kind::CachedStatus,
                    content: Some(pair.content),
                    user: Some(pair.user),
                    found: words(kept.liked, kept.version),
                    expected: words(liked, last),
                    mend: Mend::Forget,
                });
            }
            Ok(())
        })?;
        let mut met: HashSet<Pair> = HashSet::new();
        sorted.rows.each(bucket, |stored| {
            let row = stored.record()?;
            let pair = row.pair;
            if !met.insert(pair) {
                // Of several tables that hold it nobody can say which one is read.
                report.add(Finding {
                    mend: Mend::Nothing,
                    ..of_row(ledger, Kind::ExtraRow, pair, "a second row", "one row", None)
                });
                return Ok(());
            }
            let Some(life) = lives.remove(&pair).flatten() else {
                report.add(of_row(ledger, Kind::ExtraRow, pair, &words_of(&row), "no row", None));
                return Ok(());
            };
            let expected = life.record(pair);
            if row != expected {
                let (found, wanted) = differences(&row, &expected);
                report.add(of_row(ledger, Kind::Row, pair, &found, &wanted, Some(life)));
            }
            Ok(())
        })?;
        for (pair, life) in lives.into_iter().filter_map(|(pair, life)| Some((pair, life?))) {
            let expected = words_of(&life.record(pair));
            report.add(of_row(ledger, Kind::MissingRow, pair, "no row", &expected, Some(life)));
        }
    }
    Ok(newest)
}

fn of_row(ledger: &Ledger, kind: Kind, pair: Pair, found: &str, expected: &str, life: Option<Life>) -> Finding {
    Finding {
        partition: Some(ledger.count.partition_of(&pair.content)),
        kind,
        content: Some(pair.content),
        user: Some(pair.user),
        found: found.to_owned(),
        expected: expected.to_owned(),
        mend: Mend::Row(life),
    }
}

fn words_of(row: &LikeRecord) -> String {
    let state = if row.is_canceled { "not liked" } else { "liked" };
    format!("{state} since {}, version {}", row.updated_at, row.version)
}

/// The columns in which two rows differ, as they are and as they must be.
fn differences(row: &LikeRecord, expected: &LikeRecord) -> (String, String) {
    let columns = |row: &LikeRecord| {
        let time = |time: Option<Timestamp>| time.map_or_else(|| "never".into(), |time| time.to_string());
        [
            ("is_canceled", u8::from(row.is_canceled).to_string()),
            ("created_at", row.created_at.to_string()),
            ("updated_at", row.updated_at.to_string()),
            ("liked_at", time(row.liked_at)),
            ("version", row.version.to_string()),
            ("request_ring", row.ring.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
            ("request_floor", row.floor.map_or_else(|| "none".into(), |floor| floor.to_string())),
        ]
    };
    let different = |mine: &LikeRecord, other: &LikeRecord| {
        let pairs = columns(mine).into_iter().zip(columns(other)).filter(|(mine, other)| mine != other);
        pairs.map(|((name, value), _)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
    };
    (different(row, expected), different(expected, row))
}

/// What the log and the stores say of a content.
#[derive(Default)]
struct OneContent {
    counted: Option<(u16, i64, i64, i64)>,
    slots: BTreeMap<i64, (i64, i64)>,
    stored: Option<KeptCount>,
    stored_slots: BTreeMap<i64, (i64, i64)>,
    cached: Vec<(Scope, i64, Version)>,
}

/// Compares counts, buckets and cached counts.
fn compare_contents(
    count: PartitionCount,
    sorted: &Sorted,
    cache: &Cache,
    newest: i64,
    report: &mut Report,
) -> Result<(), Error> {
    for bucket in 0..sorted.contents.buckets() {
        let mut contents: HashMap<Content, OneContent> = HashMap::new();
        sorted.contents.each(bucket, |(key, value)| {
            let content = key.content()?;
            let one = contents.entry(content).or_default();
            let add = |slots: &mut BTreeMap<i64, (i64, i64)>, slot, gained, lost| {
                let (all_gained, all_lost) = slots.entry(slot).or_default();
                *all_gained += gained;
                *all_lost += lost;
            };
            match value {
                OfContent::Counted { partition, change, version, first } => {
                    let (_, sum, last, earliest) = one.counted.get_or_insert((partition, 0, version, first));
                    *sum += change;
                    *last = (*last).max(version);
                    *earliest = (*earliest).min(first);
                }
                OfContent::Slot { slot, gained, lost } => add(&mut one.slots, slot, gained, lost),
                OfContent::StoredSlot { slot, gained, lost } => add(&mut one.stored_slots, slot, gained, lost),
                OfContent::Stored(stored) => one.stored = Some(stored.kept(content)?),
                OfContent::Cached { generation, partition, count, version } => {
                    one.cached.push((stored::scope(generation, partition)?, count, version));
                }
            }
            Ok(())
        })?;
        for (content, one) in contents {
            one.compare(count.partition_of(&content), content, cache, newest, report);
        }
    }
    Ok(())
}

impl OneContent {
    fn compare(&self, partition: Partition, content: Content, cache: &Cache, newest: i64, report: &mut Report) {
        let partition = Some(partition);
        let words = |count: i64, version: i64, first: i64, partition: u16| {
            format!("{count} at version {version}, first at {first}, partition {partition}")
        };
        let stored = self
            .stored
            .map(|kept| (kept.partition.get(), kept.count.count, kept.count.version.get(), kept.first_position.get()));
        let in_words = |of: Option<(u16, i64, i64, i64)>| {
            of.map_or_else(
                || "no count".into(),
                |(partition, count, version, first)| words(count, version, first, partition),
            )
        };
        let first = self.counted.and_then(|(.., first)| Offset::new(first).ok());
        if stored != self.counted {
            let kind = match (self.counted, stored) {
                (None, _) => Kind::ExtraCount,
                (_, None) => Kind::MissingCount,
                _ => Kind::Count,
            };
            let (found, expected) = (in_words(stored), in_words(self.counted));
            let mend = Mend::Count(first);
            report.add(Finding { partition, kind, content: Some(content), user: None, found, expected, mend });
        }
        let is_alive = |slot: &i64| *slot > newest.saturating_sub(SLOTS_KEPT);
        let slots: BTreeSet<i64> =
            self.slots.keys().chain(self.stored_slots.keys()).copied().filter(is_alive).collect();
        for slot in slots {
            let of = |slots: &BTreeMap<i64, (i64, i64)>| slots.get(&slot).copied().unwrap_or_default();
            let (wanted, found) = (of(&self.slots), of(&self.stored_slots));
            if wanted != found {
                let words = |(gained, lost): (i64, i64)| format!("{gained} gained and {lost} lost in slot {slot}");
                let delta = BucketDelta { content, slot, gained: wanted.0 - found.0, lost: wanted.1 - found.1 };
                let (found, expected) = (words(found), words(wanted));
                let (kind, mend) = (Kind::Bucket, Mend::Bucket(delta));
                report.add(Finding { partition, kind, content: Some(content), user: None, found, expected, mend });
            }
        }
        let (count, last) = self.counted.map_or((0, -1), |(_, count, version, _)| (count, version));
        for (scope, cached, version) in &self.cached {
            let has_changed = cache.contents.contains(&content);
            if cache.is_right(*scope, has_changed, last, *version, *cached == count) == Some(false) {
                report.add(Finding {
                    partition: Some(scope.partition),
                    kind: Kind::CachedCount,
                    content: Some(content),
                    user: None,
                    found: format!("{cached} at version {version}"),
                    expected: format!("{count} at version {last}"),
                    mend: Mend::Forget,
                });
            }
        }
    }
}
