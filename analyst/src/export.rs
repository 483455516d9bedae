//! The log as Parquet files: `day=2026-11-26/partition=0003/<first>-<end>-<hash>.parquet`.
//!
//! Each file holds a contiguous range of offsets of one partition, appears whole or not at all, and never changes. A run
//! adds what is new. The day is that of the greatest `receivedAt` of the partition so far, so that files of a day are
//! contiguous too.

mod file;

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use futures::TryStreamExt;
use likewise_schema::{Offset, Partition, Timestamp};
use likewise_storage::EventLog;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, local::LocalFileSystem, path::Path as Key};
use tokio::{sync::Semaphore, task::JoinSet};

pub use self::file::{About, Making, SCHEMA, SCHEMA_VERSION};
use self::file::{FILE_ROWS, NotOurs, Opened};
use crate::{
    Error, Progress,
    reader::{Pace, PartitionReader, decode},
    stream::Entry,
};

/// Locked by the export that runs.
const LOCK: &str = ".export.lock";
/// Partitions that are exported at once: each holds a file in memory.
const WRITERS: usize = 2;
/// How long one request to an object store is tried.
#[cfg(feature = "s3")]
const RETRIED_MAX: std::time::Duration = std::time::Duration::from_secs(20);
/// Files that are looked at at once.
const OPENED: usize = 8;
/// As much of a file's end as its footer mostly takes.
const FOOTER_BYTES: u64 = 64 * 1024;
const CHUNK: usize = 16_384;

/// Where an export is.
#[derive(Clone)]
pub struct Target {
    store: Arc<dyn ObjectStore>,
    /// As it was named.
    name: String,
    /// Of a folder: held by the one export that may run into it.
    lock: Option<Arc<File>>,
}

impl Target {
    /// A folder, or `s3://bucket/prefix` with the credentials of the environment (`AWS_ACCESS_KEY_ID` and so on).
    pub fn open(name: &str) -> Result<Self, Error> {
        if let Some(rest) = name.strip_prefix("s3://") {
            return Self::bucket(name, rest);
        }
        if name.contains("://") && !name.starts_with("file://") {
            return Err(Error::asked(format!("{name} must be a folder or s3://bucket/prefix")));
        }
        let folder = Path::new(name.strip_prefix("file://").unwrap_or(name));
        let fail = |e: &dyn std::fmt::Display| Error::file(&format!("{} cannot be written", folder.display()), e);
        std::fs::create_dir_all(folder).map_err(|e| fail(&e))?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(folder.join(LOCK)).map_err(|e| fail(&e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::asked(format!("another export runs into {name}"))),
            Err(TryLockError::Error(error)) => return Err(fail(&error)),
        }
        remove_unfinished(folder);
        let mut target = Self::folder(name, folder)?;
        target.lock = Some(Arc::new(lock));
        Ok(target)
    }

    fn folder(name: &str, folder: &Path) -> Result<Self, Error> {
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|e| Error::file(&format!("{} cannot be read", folder.display()), plain(&e)))?
            .with_fsync(true);
        Ok(Self { store: Arc::new(store), name: name.to_owned(), lock: None })
    }

    /// The same to look at only, which must be there already.
    pub fn existing(name: &str) -> Result<Self, Error> {
        let folder = name.strip_prefix("file://").unwrap_or(name);
        if name.contains("://") && folder == name {
            return Self::open(name);
        }
        if !Path::new(folder).is_dir() {
            return Err(Error::asked(format!("there is no folder {folder}")));
        }
        Self::folder(name, Path::new(folder))
    }

    #[cfg(feature = "s3")]
    fn bucket(name: &str, rest: &str) -> Result<Self, Error> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(Error::asked("an export to S3 needs a bucket: s3://bucket/prefix"));
        }
        // Another part of the program may have chosen already; it would have chosen the same.
        let _chosen = rustls::crypto::ring::default_provider().install_default();
        let retry = object_store::RetryConfig { max_retries: 5, retry_timeout: RETRIED_MAX, ..Default::default() };
        let store = object_store::aws::AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry).build();
        let store = store.map_err(|e| Error::file(&format!("{name} cannot be used"), plain(&e)))?;
        Ok(Self {
            store: Arc::new(object_store::prefix::PrefixStore::new(store, prefix)),
            name: name.to_owned(),
            lock: None,
        })
    }

    #[cfg(not(feature = "s3"))]
    fn bucket(name: &str, _rest: &str) -> Result<Self, Error> {
        Err(Error::asked(format!("{name} needs a program built with --features s3")))
    }

    fn failed(&self, what: &str, error: &object_store::Error) -> Error {
        Error::file(&format!("{} {what}", self.name), plain(error))
    }

    /// Writes a file that is not there yet.
    async fn put(&self, key: &Key, file: Bytes) -> Result<(), Error> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(key, file.into(), options).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {
                Err(Error::asked(format!("{key} was written meanwhile: another export runs into {}", self.name)))
            }
            Err(error) => Err(self.failed("cannot be written", &error)),
        }
    }

    async fn get(&self, key: &Key) -> Result<Bytes, Error> {
        let found = self.store.get(key).await;
        let bytes = match found {
            Ok(found) => found.bytes().await,
            Err(error) => Err(error),
        };
        bytes.map_err(|error| self.failed("cannot be read", &error))
    }

    /// What a file says of itself, from as much of its end as that takes.
    async fn about(&self, key: &Key, size: u64) -> Result<Result<About, NotOurs>, Error> {
        let mut bytes = FOOTER_BYTES;
        if size == 0 {
            return Ok(Err(NotOurs("is no whole Parquet file".into())));
        }
        loop {
            let end = self.store.get_range(key, size.saturating_sub(bytes)..size).await;
            let end = end.map_err(|error| self.failed("cannot be read", &error))?;
            match file::about(&end, size) {
                Ok(about) => return Ok(Ok(about)),
                Err(Ok(needed)) if needed as u64 > bytes && bytes < size => bytes = needed as u64,
                Err(Ok(_)) => return Ok(Err(NotOurs("is no whole Parquet file".into()))),
                Err(Err(not_ours)) => return Ok(Err(not_ours)),
            }
        }
    }

    /// Every file there is, with what it says of itself. Fails on one that is not of an export of this log.
    async fn files(&self, whole: bool, progress: &Progress) -> Result<Vec<(Key, About)>, Error> {
        let listed = self.store.list(None).map_err(|error| self.failed("cannot be listed", &error));
        let opened = listed.map_ok(async |found| {
            let key = found.location;
            if !key.as_ref().ends_with(".parquet") {
                return Ok(None);
            }
            let wrong = |NotOurs(what)| {
                Error::asked(format!("{key} in {} {what}: move it away, or export to another place", self.name))
            };
            let about = if whole {
                let opened = Opened::new(self.get(&key).await?, key.as_ref()).map_err(wrong)?;
                opened.check().map_err(wrong)?;
                opened.about
            } else {
                self.about(&key, found.size).await?.map_err(wrong)?
            };
            progress((about.until.get() - about.from.get()).unsigned_abs());
            Ok(Some((key.clone(), about)))
        });
        let files: Vec<Option<(Key, About)>> = opened.try_buffer_unordered(OPENED).try_collect().await?;
        Ok(files.into_iter().flatten().collect())
    }
}

/// What an object store says, without addresses or what it may hold of credentials.
fn plain(error: &object_store::Error) -> String {
    match error {
        object_store::Error::NotFound { .. } => "it does not exist".into(),
        object_store::Error::PermissionDenied { .. } => "permission is denied".into(),
        object_store::Error::Unauthenticated { .. } => "the credentials are refused".into(),
        object_store::Error::NotSupported { .. } | object_store::Error::NotImplemented { .. } => {
            "it does not do what is needed".into()
        }
        other => {
            let mut source: Option<&dyn std::error::Error> = Some(other);
            let mut all = String::new();
            while let Some(error) = source {
                if let Some(io) = error.downcast_ref::<std::io::Error>() {
                    return io.kind().to_string();
                }
                all += &error.to_string();
                source = error.source();
            }
            // What a store answered can hold anything, and is not repeated.
            let says = |words: &[&str]| words.iter().any(|word| all.contains(word));
            match () {
                () if says(&["NoSuchBucket", "404"]) => "the bucket does not exist".into(),
                () if says(&["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"]) => {
                    "permission is denied".into()
                }
                () if says(&["sending request", "connect", "timed out"]) => "it cannot be reached".into(),
                () => "it failed".into(),
            }
        }
    }
}

/// What a run that was killed left behind: object stores write beside, and rename.
fn remove_unfinished(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // Not through links, which lead elsewhere.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_unfinished(&path);
        } else if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".parquet#")) {
            let _it_is_in_nobodys_way = std::fs::remove_file(path);
        }
    }
}

fn key(about: &About, file: &[u8]) -> Key {
    let (day, partition) = (&about.greatest_received_at.to_string()[..10], about.partition.get());
    let (from, until, hash) = (about.from.get(), about.until.get(), file::hash(file));
    Key::from(format!("day={day}/partition={partition:04}/{from:019}-{until:019}-{hash}.parquet"))
}

/// What there is of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    from: Offset,
    until: Offset,
    greatest: Timestamp,
}

/// Puts the files of each partition one after the other. Fails where one is missing, or two hold the same.
async fn in_order(
    files: &[(Key, About)],
    log: &Arc<dyn EventLog>,
    name: &str,
) -> Result<BTreeMap<Partition, Known>, Error> {
    let mut known: BTreeMap<Partition, Known> = BTreeMap::new();
    let mut sorted: Vec<&(Key, About)> = files.iter().collect();
    sorted.sort_by_key(|(_, about)| (about.partition, about.from));
    for (key, about) in sorted {
        if about.log != log.identity() || about.partition.get() >= log.partitions().get() {
            return Err(Error::asked(format!("{key} in {name} is of another log: export to another place")));
        }
        let fresh = Known { from: about.from, until: about.until, greatest: about.greatest_received_at };
        let entry = known.entry(about.partition).or_insert(Known { until: about.from, ..fresh });
        let (partition, until) = (about.partition, entry.until);
        if about.from > until {
            return Err(Error::asked(format!(
                "{name} lacks offsets {until} to below {} of partition {partition}: restore the file, or export to another place",
                about.from
            )));
        }
        if about.from < until {
            return Err(Error::asked(format!(
                "{name} has offsets {} to below {until} of partition {partition} twice, the second time in {key}: remove that file",
                about.from
            )));
        }
        *entry = Known { from: entry.from, until: fresh.until, greatest: fresh.greatest };
    }
    for (partition, Known { from, .. }) in &known {
        let start = log.bounds(*partition).await?.start;
        if *from > start {
            return Err(Error::asked(format!(
                "{name} lacks offsets {start} to below {from} of partition {partition}: restore the file, or export to another place"
            )));
        }
    }
    Ok(known)
}

/// What a run or a check came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exported {
    /// Files that were added, or checked.
    pub files: u64,
    /// Records in them.
    pub records: u64,
    /// Records of the log, up to its end when the run began, that are in no file.
    pub missing: u64,
}

/// Adds what is not exported yet, up to the ends that the log has now.
pub async fn export(
    log: &Arc<dyn EventLog>,
    target: &Target,
    pace: &Arc<Pace>,
    progress: &Progress,
) -> Result<Exported, Error> {
    let nothing: Progress = Arc::new(|_| {});
    let files = target.files(false, &nothing).await?;
    let known = in_order(&files, log, &target.name).await?;
    let permits = Arc::new(Semaphore::new(WRITERS));
    let mut tasks = JoinSet::new();
    for partition in log.partitions().all() {
        let bounds = log.bounds(partition).await?;
        let known = known.get(&partition).copied();
        let from = known.map_or(bounds.start, |known| known.until);
        if from < bounds.start || from > bounds.end {
            return Err(Error::asked(format!(
                "{} ends at offset {from} of partition {partition}, which the log has from {} to below {}: export to another place",
                target.name, bounds.start, bounds.end
            )));
        }
        if from == bounds.end {
            continue;
        }
        let task = Exporting {
            log: Arc::clone(log),
            target: target.clone(),
            partition,
            greatest: known.map_or(Timestamp::default(), |known| known.greatest),
            reader: PartitionReader::new(log, partition, (from, bounds.end), CHUNK, pace),
            progress: Arc::clone(progress),
        };
        let permits = Arc::clone(&permits);
        tasks.spawn(async move {
            let _permit = permits.acquire_owned().await;
            task.run(from).await
        });
    }
    let mut done = Exported::default();
    while let Some(ended) = tasks.join_next().await {
        let (files, records) = ended.map_err(|e| Error::file("the export failed", e))??;
        done.files += files;
        done.records += records;
    }
    if target.lock.is_none() && done.files > 0 {
        // Nobody can be kept out of a bucket: another run at the same time is noticed.
        in_order(&target.files(false, &nothing).await?, log, &target.name).await?;
    }
    Ok(done)
}

/// Reads every file whole: each must be as it was written, and together they must have no gap and no overlap. Says how much
/// of the log is not in them yet.
pub async fn check(log: &Arc<dyn EventLog>, target: &Target, progress: &Progress) -> Result<Exported, Error> {
    let files = target.files(true, progress).await?;
    let known = in_order(&files, log, &target.name).await?;
    let mut done = Exported { files: files.len() as u64, ..Exported::default() };
    for partition in log.partitions().all() {
        let bounds = log.bounds(partition).await?;
        let known = known.get(&partition);
        let until = known.map_or(bounds.start, |known| known.until);
        if until > bounds.end {
            return Err(Error::asked(format!(
                "{} goes up to offset {until} of partition {partition}, the log ends at {}: is it the same log?",
                target.name, bounds.end
            )));
        }
        done.records += known.map_or(0, |known| (known.until.get() - known.from.get()).unsigned_abs());
        done.missing += (bounds.end.get() - until.get()).unsigned_abs();
    }
    Ok(done)
}

/// One partition being exported.
struct Exporting {
    log: Arc<dyn EventLog>,
    target: Target,
    partition: Partition,
    /// The greatest `receivedAt` so far.
    greatest: Timestamp,
    reader: PartitionReader,
    progress: Progress,
}

fn day_of(time: Timestamp) -> i64 {
    time.millis() / 86_400_000
}

impl Exporting {
    /// Gives how many files and records were written.
    async fn run(mut self, mut from: Offset) -> Result<(u64, u64), Error> {
        let (mut files, mut records) = (0, 0);
        let mut making = Making::new(Vec::new())?;
        loop {
            let chunk = self.reader.chunk().await?;
            let is_over = chunk.is_empty();
            records += chunk.len() as u64;
            (self.progress)(chunk.len() as u64);
            for record in chunk {
                let event = decode(&self.log, self.partition, &record);
                let greatest = event.as_ref().map_or(self.greatest, |event| self.greatest.max(event.received_at));
                // A first record that is no event is of the day on which it was written.
                let greatest = if greatest == Timestamp::default() { record.timestamp } else { greatest };
                let is_next_day = day_of(greatest) != day_of(self.greatest);
                if making.len() > 0 && (is_next_day || making.len() >= FILE_ROWS) {
                    let full = std::mem::replace(&mut making, Making::new(Vec::new())?);
                    from = self.put(full, from, record.offset).await?;
                    files += 1;
                }
                self.greatest = greatest;
                making.push(&Entry { partition: self.partition, record, event })?;
            }
            if is_over {
                if making.len() > 0 {
                    let end = self.reader.end;
                    self.put(making, from, end).await?;
                    files += 1;
                }
                return Ok((files, records));
            }
        }
    }

    async fn put(&self, making: Making<Vec<u8>>, from: Offset, until: Offset) -> Result<Offset, Error> {
        let (log, partition) = (self.log.identity().to_owned(), self.partition);
        let about = About { log, partition, from, until, greatest_received_at: self.greatest };
        let file = making.finish(&about.log, Some(&about))?;
        self.target.put(&key(&about, &file), file.into()).await?;
        Ok(until)
    }
}
