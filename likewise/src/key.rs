//! `likewise key`: keys for backends that act for users.

use std::{fs::File, io::Write, path::Path};

use clap::{Args, Subcommand, ValueEnum};
use likewise_http::{Scope, ServiceKeys};
use likewise_schema::Timestamp;
use likewise_storage::Clock;

use crate::{Failure, config::Settings, private, serve::directory_of};

#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Make a key and print it, once: the file keeps its hash only. Services that run take it within a second.
    Create {
        /// What it is for.
        #[arg(long)]
        name: String,
        /// What it may be used for; repeatable.
        #[arg(long = "scope", value_name = "SCOPE", required = true)]
        scopes: Vec<ScopeName>,
        /// How long it is accepted, such as 90days; for ever if it is left out.
        #[arg(long, value_name = "TIME")]
        expires_in: Option<humantime::Duration>,
    },
    /// A line for each key: its id, name, scopes, and until when it is accepted.
    List,
    /// Accept a key no more.
    Revoke {
        /// Its id in the list.
        id: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum ScopeName {
    /// Send commands for any user
    Commands,
    /// Read any user's statuses and lists
    Reads,
    /// The admin port
    Admin,
}

impl From<ScopeName> for Scope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Commands => Self::Commands,
            ScopeName::Reads => Self::Reads,
            ScopeName::Admin => Self::Admin,
        }
    }
}

/// Longest name of a key.
const NAME_CHARS_MAX: usize = 100;

/// What the file at `path` holds; nothing if there is none.
fn read(path: &Path) -> Result<ServiceKeys, Failure> {
    match std::fs::read(path) {
        Ok(bytes) => ServiceKeys::parse(&bytes).map_err(|what| format!("the file {} {what}", path.display()).into()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(ServiceKeys::default()),
        Err(e) => Err(format!("the file {} cannot be read ({e})", path.display()).into()),
    }
}

fn write(path: &Path, keys: &ServiceKeys) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(keys)?;
    text.push(b'\n');
    private::write(path, &text).map_err(|e| format!("the file {} cannot be written ({e})", path.display()).into())
}

/// Waits until nobody else changes the file; given back when it is dropped.
fn lock(path: &Path) -> Result<File, Failure> {
    std::fs::create_dir_all(directory_of(path))?;
    let file = File::create(path.with_extension("lock"))?;
    file.lock()?;
    Ok(file)
}

pub(crate) fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let path = &settings.security.keys_file;
    // One at a time: each reads the file and writes it anew.
    let _lock = match options.what {
        What::List => None,
        _ => Some(lock(path)?),
    };
    let mut keys = read(path)?;
    let mut out = std::io::stdout().lock();
    match &options.what {
        What::Create { name, scopes, expires_in } => {
            if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
                return Err(format!("--name must be 1 to {NAME_CHARS_MAX} printable characters").into());
            }
            let now = Clock::system().now();
            let expires = expires_in.map(|life| {
                let millis = i64::try_from(life.as_millis()).unwrap_or(i64::MAX);
                Timestamp::saturating_from_millis(now.millis().saturating_add(millis))
            });
            let random: [u8; 40] = std::array::from_fn(|_| rand::random());
            let mut scopes: Vec<Scope> = scopes.iter().copied().map(Scope::from).collect();
            scopes.dedup();
            let key = keys.create(name, scopes, now, expires, &random);
            write(path, &keys)?;
            writeln!(out, "{key}")?;
            eprintln!("This is the only time that the key is shown.");
        }
        What::List => {
            for key in &keys.keys {
                let scopes: Vec<String> = key.scopes.iter().map(|scope| format!("{scope:?}").to_lowercase()).collect();
                let until = key.expires.map_or_else(|| "for ever".to_owned(), |end| format!("until {end}"));
                writeln!(out, "{}  {}  {until}  {}", key.id, scopes.join(","), key.name)?;
            }
        }
        What::Revoke { id } => {
            let known = keys.keys.len();
            keys.keys.retain(|key| key.id != *id);
            if keys.keys.len() == known {
                return Err("there is no key with this id; likewise key list shows them".into());
            }
            write(path, &keys)?;
            writeln!(out, "revoked; services that run refuse it within a second")?;
        }
    }
    Ok(())
}
