//! `likewise backup` and `likewise restore`: the embedded files while they are in use.
//!
//! Records are copied before the log, so that they never reflect more than the copy of the log holds. A backup counts once
//! its manifest is there, which names every file with its SHA-256.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use clap::Args;
use likewise_storage::{DataDir, EventLog, StoreError, backup as copy, log::SqliteLog};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Failure,
    config::Settings,
    private, reading,
    serve::{directory_of, own_directories},
    wiring::{self, Place},
};

/// Copy the embedded files, while the service runs, into a new folder.
///
/// Kafka and MySQL have tools of their own: docs/backup.md says how.
#[derive(Args)]
#[command(after_help = "Examples:
  likewise backup --to /backups/2026-11-26
  likewise restore --from /backups/2026-11-26 --data-dir likewise-data")]
pub(crate) struct Backup {
    /// A folder, which must be new or empty.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Put a backup into a data directory that has no files yet.
#[derive(Args)]
#[command(after_help = "Examples:
  likewise restore --from /backups/2026-11-26
  likewise restore --from /backups/2026-11-26 --data-dir elsewhere")]
pub(crate) struct Restore {
    /// A folder that likewise backup made.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

const MANIFEST: &str = "backup.json";
const SECRET: &str = "secret";

/// What a backup holds.
#[derive(Serialize, Deserialize)]
struct Manifest {
    /// Of this file.
    version: u32,
    log: String,
    partitions: u16,
    events: u64,
    made_at: String,
    /// SHA-256 by name.
    files: BTreeMap<String, String>,
}

/// The embedded files of these settings: the log, and the records.
fn files(settings: &Settings) -> Result<(PathBuf, Vec<PathBuf>), Failure> {
    let only = "backup and restore are for embedded files; docs/backup.md says how servers are backed up";
    if !wiring::is_embedded(&settings.log) {
        return Err(only.into());
    }
    let log = wiring::sqlite_path("log", &settings.log)?;
    let mut records = Vec::new();
    for (_, place) in wiring::record_places(&settings.records)? {
        match place {
            Place::File(path) => records.push(path),
            Place::Server(_) => return Err(only.into()),
        }
    }
    Ok((log, records))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn hash(path: &Path) -> Result<String, Failure> {
    let fail = |e: std::io::Error| format!("{} cannot be read ({e})", path.display());
    let mut file = fs::File::open(path).map_err(fail)?;
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1024 * 1024]);
    loop {
        let read = file.read(&mut buffer).map_err(fail)?;
        if read == 0 {
            return Ok(likewise_schema::hex(&digest.finalize()));
        }
        digest.update(&buffer[..read]);
    }
}

/// How many events a log has.
async fn events(log: &SqliteLog) -> Result<u64, Failure> {
    let mut events = 0;
    for partition in log.partitions().all() {
        events += log.bounds(partition).await?.end.get().unsigned_abs();
    }
    Ok(events)
}

pub(crate) async fn backup(settings: &Settings, options: &Backup) -> Result<(), Failure> {
    let (log, records) = files(settings)?;
    let to = &options.to;
    let fail = |e: std::io::Error| format!("{} cannot be written ({e})", to.display());
    fs::create_dir_all(to).map_err(fail)?;
    if fs::read_dir(to).map_err(fail)?.next().is_some() {
        return Err(format!("{} is not empty; name a new folder", to.display()).into());
    }
    let mut hashes = BTreeMap::new();
    let bar = reading::progress_bar(records.len() as u64 + 1);
    type Copy = fn(&Path, &Path) -> Result<(), StoreError>;
    let mut all: Vec<(&PathBuf, Copy)> = records.iter().map(|path| (path, copy::copy_records as Copy)).collect();
    all.push((&log, copy::copy_log));
    for (path, copied) in all {
        let copy = to.join(name_of(path));
        copied(path, &copy)?;
        hashes.insert(name_of(path), hash(&copy)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if settings.secret_file.exists() {
        let secret = fs::read(&settings.secret_file).map_err(|e| format!("secret_file cannot be read ({e})"))?;
        private::write(&to.join(SECRET), &secret).map_err(fail)?;
        hashes.insert(SECRET.into(), hash(&to.join(SECRET))?);
    }
    let copy = SqliteLog::open_readable(&to.join(name_of(&log)))?;
    let manifest = Manifest {
        version: 1,
        log: copy.identity().to_owned(),
        partitions: copy.partitions().get(),
        events: events(&copy).await?,
        made_at: reading::now().to_string(),
        files: hashes,
    };
    drop(copy);
    // Looking at a file in WAL mode leaves files beside it.
    for end in ["-wal", "-shm"] {
        let _there_is_none = fs::remove_file(to.join(format!("{}{end}", name_of(&log))));
    }
    private::write(&to.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?).map_err(fail)?;
    if options.json {
        return reading::print(&serde_json::to_string(&manifest)?).map(drop);
    }
    reading::print(&format!("{} events and their records are in {}", manifest.events, to.display())).map(drop)
}

pub(crate) async fn restore(settings: &Settings, options: &Restore) -> Result<(), Failure> {
    let (log, records) = files(settings)?;
    let from = &options.from;
    let unusable = |what: &str| format!("{} {what}", from.display());
    let manifest = fs::read(from.join(MANIFEST));
    let manifest = manifest.map_err(|_| unusable("is no whole backup: it has no backup.json"))?;
    let manifest: Manifest =
        serde_json::from_slice(&manifest).map_err(|_| unusable("has a backup.json that cannot be read"))?;
    if manifest.version != 1 {
        return Err(unusable("was made by a newer version of likewise").into());
    }
    let _owned: Vec<DataDir> = own_directories(settings)?;
    let mut all: Vec<&PathBuf> = records.iter().collect();
    all.push(&log);
    // Also what SQLite keeps beside a file: it would take it for the restored file's own.
    let with_its_own =
        |path: &PathBuf| ["", "-wal", "-shm"].map(|end| PathBuf::from(format!("{}{end}", path.display())));
    if let Some(there) = all.iter().flat_map(|path| with_its_own(path)).find(|path| path.exists()) {
        return Err(format!("{} exists: a backup is put where there are no files yet", there.display()).into());
    }
    // All of it is looked at before anything is put in place.
    for (name, expected) in &manifest.files {
        if hash(&from.join(name))? != *expected {
            return Err(unusable(&format!("has a {name} that is not as it was written")).into());
        }
    }
    let place = |name: &str, to: &Path| -> Result<(), Failure> {
        if !manifest.files.contains_key(name) {
            return Err(unusable(&format!("has no {name}: are the settings those of the backup?")).into());
        }
        let fail = |e: std::io::Error| format!("{} cannot be written ({e})", to.display());
        let unfinished = to.with_extension("restoring");
        fs::copy(from.join(name), &unfinished).map_err(fail)?;
        fs::File::open(&unfinished).and_then(|file| file.sync_all()).map_err(fail)?;
        fs::rename(&unfinished, to).map_err(fail)?;
        fs::File::open(directory_of(to)).and_then(|folder| folder.sync_all()).map_err(fail)?;
        Ok(())
    };
    for path in &records {
        place(&name_of(path), path)?;
    }
    if manifest.files.contains_key(SECRET) && !settings.secret_file.exists() {
        place(SECRET, &settings.secret_file)?;
    }
    // Last: without a log nothing starts on the records.
    place(&name_of(&log), &log)?;
    if options.json {
        return reading::print(&serde_json::to_string(&manifest)?).map(drop);
    }
    reading::print(&format!(
        "{} events up to {} are restored; likes that were taken after that are not in this backup",
        manifest.events, manifest.made_at
    ))
    .map(drop)
}
