//! Settings: defaults, then a TOML file, then `LIKEWISE_…` variables, then flags. An unknown key or a bad value stops
//! the start with one sentence that names the key, never its value.

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Args;
use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Env, Format, Serialized, Toml},
    value::{Dict, Map},
};
use likewise_schema::PartitionCount;
use serde::{Deserialize, Serialize};

use crate::{Failure, security::Security};

/// Flags; each has a `LIKEWISE_…` variable and a key of the TOML file with the same name.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub(crate) struct Flags {
    /// TOML file with settings; likewise.toml, if there is one, when left out.
    #[arg(long, global = true, value_name = "FILE", env = "LIKEWISE_CONFIG", help_heading = "Settings")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Where the APIs listen; port 0 picks one [default: 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "ADDRESS", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    /// Where metrics and administration listen [default: 127.0.0.1:8081]
    #[arg(long, global = true, value_name = "ADDRESS", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_listen: Option<String>,
    /// Where the embedded stores live [default: likewise-data]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<String>,
    /// The log: sqlite://FILE, kafka://HOST:PORT,…/TOPIC or kafkas://USER:PASSWORD@HOST:PORT,…/TOPIC [default: sqlite://<data-dir>/log.db]
    #[arg(long, global = true, value_name = "URL", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    /// The records: sqlite://FILE or mysql://USER:PASSWORD@HOST/DATABASE; repeated, each with ?shards=first-last, to
    /// spread them [default: two files in <data-dir>]
    #[arg(long, global = true, value_name = "URL", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    records: Vec<String>,
    /// Copies of the record servers that may lag, for reads; repeated as --records is [default: none]
    #[arg(long, global = true, value_name = "URL", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    records_replica: Vec<String>,
    /// Counters, requests and token buckets: memory://, redis://HOST:PORT or redis+cluster://HOST:PORT,…; rediss over
    /// TLS
    /// [default: memory://]
    #[arg(long, global = true, value_name = "URL", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    counters: Option<String>,
    /// Partitions of a log that is made anew: a multiple of 16 [default: 16]; a log that is there keeps its own
    #[arg(long, global = true, value_name = "N", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<u32>,
    /// This process's name among the projectors of a Kafka log: a restart under the same name moves no partition
    /// [default: none]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<String>,
    /// Events per partition that may wait to be projected; past it commands get 503; 0 is no limit [default: 2000]
    #[arg(long, global = true, value_name = "EVENTS", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_backlog: Option<u32>,
    /// File with at least 32 bytes that sign cursors, shared by replicas [default: <data-dir>/secret, made at first start]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<String>,
    /// Milliseconds between "not ready" and the end of listening on a stop [default: 200]
    #[arg(long, global = true, value_name = "MS", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_delay_ms: Option<u64>,
    /// What goes to stderr: error, warn, info, debug, or a filter such as likewise_projector=debug [default: warn,likewise=info]
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_level: Option<String>,
    /// File with the secret (32 bytes or more) of tokens signed by HS256; turns authentication on
    #[arg(long, global = true, value_name = "FILE", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_secret_file: Option<String>,
    /// JWKS file with the public keys of tokens signed by EdDSA or RS256, read again when it changes; turns
    /// authentication on
    #[arg(long, global = true, value_name = "FILE", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_jwks_file: Option<String>,
    /// What a token's iss must be; needed with either of those files
    #[arg(long, global = true, value_name = "ISSUER", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_issuer: Option<String>,
    /// What a token's aud must be or hold; needed with either of those files
    #[arg(long, global = true, value_name = "AUDIENCE", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_audience: Option<String>,
    /// The same for the admin port [default: the audience with /admin after it]
    #[arg(long, global = true, value_name = "AUDIENCE", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_admin_audience: Option<String>,
    /// The claim of a token that holds the user's number [default: sub]
    #[arg(long, global = true, value_name = "CLAIM", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    user_claim: Option<String>,
    /// File with the hashes of service keys, which likewise key makes; set, it turns authentication on [default:
    /// <data-dir>/keys.json]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    keys_file: Option<String>,
    /// Whom lists of likers are for: public, signed-in or service [default: signed-in]
    #[arg(long, global = true, value_name = "WHOM", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    likers: Option<String>,
    /// Types of contents that can be liked, separated by commas [default: any]
    #[arg(long, global = true, value_name = "TYPES", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    content_types: Option<String>,
    /// Commands of one user: how many in which time, or off [default: 20/2s with authentication, else off]
    #[arg(long, global = true, value_name = "N/TIME", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_user: Option<String>,
    /// Commands from one address (an IPv6 network of 64 bits), service keys apart [default: 200/2s with
    /// authentication, else off]
    #[arg(long, global = true, value_name = "N/TIME", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_address: Option<String>,
    /// Networks of proxies whose X-Forwarded-For counts, separated by commas [default: none]
    #[arg(long, global = true, value_name = "NETWORKS", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted_proxies: Option<String>,
    /// Origins whose pages may call the APIs, such as https://app.example, separated by commas [default: none]
    #[arg(long, global = true, value_name = "ORIGINS", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    cors_origins: Option<String>,
    /// PEM file with the certificate chain for TLS on both ports, read again when it changes [default: no TLS]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert_file: Option<String>,
    /// PEM file with its private key
    #[arg(long, global = true, value_name = "FILE", help_heading = "Security")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key_file: Option<String>,
    /// Let the demo page call a crowd of invented users; without authentication it may always [default: false]
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    demo: Option<bool>,
    /// What lines on stderr look like: pretty or json [default: pretty]
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Settings")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_format: Option<String>,
}

/// Settings as they are written, before they are checked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Raw {
    listen: String,
    admin_listen: String,
    data_dir: String,
    log: Option<String>,
    records: Option<Urls>,
    records_replica: Option<Urls>,
    counters: String,
    partitions: Option<u32>,
    instance_id: Option<String>,
    max_backlog: u32,
    secret_file: Option<String>,
    drain_delay_ms: u64,
    log_level: String,
    log_format: String,
    demo: bool,
    pub(crate) user_claim: String,
    pub(crate) likers: String,
    pub(crate) auth_secret_file: Option<String>,
    pub(crate) auth_jwks_file: Option<String>,
    pub(crate) auth_issuer: Option<String>,
    pub(crate) auth_audience: Option<String>,
    pub(crate) auth_admin_audience: Option<String>,
    pub(crate) keys_file: Option<String>,
    pub(crate) content_types: Option<String>,
    pub(crate) limit_user: Option<String>,
    pub(crate) limit_address: Option<String>,
    pub(crate) trusted_proxies: Option<String>,
    pub(crate) cors_origins: Option<String>,
    pub(crate) tls_cert_file: Option<String>,
    pub(crate) tls_key_file: Option<String>,
}

/// One URL or a list of them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Urls {
    One(String),
    Several(Vec<String>),
}

impl From<Urls> for Vec<String> {
    fn from(urls: Urls) -> Self {
        match urls {
            Urls::One(url) => vec![url],
            Urls::Several(urls) => urls,
        }
    }
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".into(),
            admin_listen: "127.0.0.1:8081".into(),
            data_dir: "likewise-data".into(),
            log: None,
            records: None,
            records_replica: None,
            counters: "memory://".into(),
            partitions: None,
            instance_id: None,
            max_backlog: 2000,
            secret_file: None,
            drain_delay_ms: 200,
            log_level: "warn,likewise=info".into(),
            log_format: "pretty".into(),
            demo: false,
            user_claim: "sub".into(),
            likers: "signed-in".into(),
            auth_secret_file: None,
            auth_jwks_file: None,
            auth_issuer: None,
            auth_audience: None,
            auth_admin_audience: None,
            keys_file: None,
            content_types: None,
            limit_user: None,
            limit_address: None,
            trusted_proxies: None,
            cors_origins: None,
            tls_cert_file: None,
            tls_key_file: None,
        }
    }
}

/// Settings, checked.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) admin_listen: SocketAddr,
    pub(crate) data_dir: PathBuf,
    pub(crate) log: String,
    pub(crate) records: Vec<String>,
    pub(crate) records_replica: Vec<String>,
    pub(crate) counters: String,
    /// None: as the log has, or 16 for a new one.
    pub(crate) partitions: Option<PartitionCount>,
    pub(crate) instance_id: Option<String>,
    pub(crate) max_backlog: u32,
    pub(crate) secret_file: PathBuf,
    pub(crate) drain_delay_ms: u64,
    pub(crate) log_level: String,
    pub(crate) is_log_json: bool,
    pub(crate) has_demo: bool,
    pub(crate) security: Security,
}

/// Settings with where each comes from.
pub(crate) struct Loaded {
    pub(crate) settings: Settings,
    figment: Figment,
}

/// The command line as a source of settings.
struct CommandLine<'a>(&'a Flags);

impl Provider for CommandLine<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named("command line")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Serialized::defaults(self.0).data()
    }
}

struct Defaults;

impl Provider for Defaults {
    fn metadata(&self) -> Metadata {
        Metadata::named("default")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Serialized::defaults(Raw::default()).data()
    }
}

/// A stop must end within ten seconds.
const DRAIN_DELAY_MS_MAX: u64 = 1000;

/// Loads and checks the settings.
pub(crate) fn load(flags: &Flags) -> Result<Loaded, Failure> {
    let mut figment = Figment::from(Defaults);
    match &flags.config {
        Some(file) if !file.exists() => {
            return Err(format!("there is no file {} (--config)", file.display()).into());
        }
        Some(file) => figment = figment.merge(Toml::file_exact(file)),
        None => figment = figment.merge(Toml::file("likewise.toml")),
    }
    // LIKEWISE_TEST_… names servers for tests.
    let env =
        Env::prefixed("LIKEWISE_").filter(|key| key != "config" && !key.as_str().to_lowercase().starts_with("test_"));
    let figment = figment.merge(env).merge(CommandLine(flags));
    let raw: Raw = figment.extract().map_err(|error| describe(&error))?;
    Ok(Loaded { settings: check(raw)?, figment })
}

/// One sentence, with the key and its source, without the value.
fn describe(error: &figment::Error) -> String {
    use figment::error::Kind;
    let source = error.metadata.as_ref().map_or_else(|| "the settings".into(), source);
    let key = error.path.join(".");
    match &error.kind {
        Kind::UnknownField(name, known) => {
            format!("{source} sets {name}, which is not a setting; the settings are {}", known.join(", "))
        }
        Kind::InvalidType(_, expected) => format!("{key}, set by {source}, must be {expected}"),
        Kind::InvalidValue(_, expected) => format!("{key}, set by {source}, must be {expected}"),
        Kind::Message(message) if key.is_empty() => {
            format!("{source} cannot be read: {}", message.lines().next().unwrap_or(""))
        }
        _ => format!("{key}, set by {source}, is not valid"),
    }
}

fn source(metadata: &Metadata) -> String {
    match &metadata.source {
        Some(figment::Source::File(path)) => path.display().to_string(),
        _ if metadata.name.contains("environment") => "the environment".into(),
        _ => format!("the {}", metadata.name),
    }
}

fn check(raw: Raw) -> Result<Settings, Failure> {
    let address = |key: &str, text: &str| {
        text.parse::<SocketAddr>().map_err(|_| {
            Failure::from(format!("{key} must be an address such as 127.0.0.1:8080, with a port, 0 to pick one"))
        })
    };
    let listen = address("listen", &raw.listen)?;
    let admin_listen = address("admin_listen", &raw.admin_listen)?;
    if raw.drain_delay_ms > DRAIN_DELAY_MS_MAX {
        return Err(format!("drain_delay_ms must be at most {DRAIN_DELAY_MS_MAX}").into());
    }
    if raw.data_dir.is_empty() {
        return Err("data_dir must name a directory".into());
    }
    let data_dir = PathBuf::from(&raw.data_dir);
    let is_log_json = match raw.log_format.as_str() {
        "json" => true,
        "pretty" => false,
        _ => return Err("log_format must be pretty or json".into()),
    };
    let security = Security::check(&raw, &data_dir)?;
    for (key, address) in [("listen", &listen), ("admin_listen", &admin_listen)] {
        if !security.has_authentication() && !address.ip().is_loopback() {
            return Err(format!(
                "{key} must be a loopback address: without authentication anybody who reaches it could like for anybody; \
                 --auth-jwks-file, --auth-secret-file or --keys-file turn authentication on"
            )
            .into());
        }
    }
    let embedded = |file: &str| format!("sqlite://{}", data_dir.join(file).display());
    let partitions = raw.partitions.map(PartitionCount::new).transpose();
    let partitions = partitions.map_err(|invalid| Failure::from(format!("partitions {}", invalid.detail())))?;
    let is_name = |name: &String| {
        (1..=100).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    if !raw.instance_id.iter().all(is_name) {
        return Err("instance_id must be 1 to 100 letters, digits, dots, underscores and hyphens".into());
    }
    Ok(Settings {
        listen,
        admin_listen,
        log: raw.log.unwrap_or_else(|| embedded("log.db")),
        // Two files: each has a writer of its own, so that folding is not held to one processor.
        records: match raw.records {
            Some(urls) => urls.into(),
            None => ["0-7", "8-15"].map(|shards| embedded(&format!("records-{shards}.db?shards={shards}"))).into(),
        },
        records_replica: raw.records_replica.map(Into::into).unwrap_or_default(),
        counters: raw.counters,
        partitions,
        instance_id: raw.instance_id,
        max_backlog: raw.max_backlog,
        secret_file: raw.secret_file.map_or_else(|| data_dir.join("secret"), PathBuf::from),
        drain_delay_ms: raw.drain_delay_ms,
        log_level: raw.log_level,
        is_log_json,
        has_demo: raw.demo,
        security,
        data_dir,
    })
}

impl Loaded {
    /// Prints each setting as TOML, with its source as a comment. Passwords in URLs are left out.
    pub(crate) fn print(&self) -> Result<(), Failure> {
        let settings = &self.settings;
        let path = |path: &Path| format!("{:?}", path.display().to_string());
        let rows = [
            ("listen", format!("{:?}", settings.listen.to_string())),
            ("admin_listen", format!("{:?}", settings.admin_listen.to_string())),
            ("data_dir", path(&settings.data_dir)),
            ("log", format!("{:?}", without_password(&settings.log))),
            ("records", format!("{:?}", settings.records.iter().map(|url| without_password(url)).collect::<Vec<_>>())),
            (
                "records_replica",
                format!("{:?}", settings.records_replica.iter().map(|url| without_password(url)).collect::<Vec<_>>()),
            ),
            ("counters", format!("{:?}", without_password(&settings.counters))),
            ("partitions", settings.partitions.unwrap_or_default().get().to_string()),
            ("instance_id", format!("{:?}", settings.instance_id.as_deref().unwrap_or_default())),
            ("max_backlog", settings.max_backlog.to_string()),
            ("secret_file", path(&settings.secret_file)),
            ("drain_delay_ms", settings.drain_delay_ms.to_string()),
            ("log_level", format!("{:?}", settings.log_level)),
            ("demo", settings.has_demo.to_string()),
            ("log_format", format!("{:?}", if settings.is_log_json { "json" } else { "pretty" })),
        ];
        let rows = rows.into_iter().chain(settings.security.rows());
        let mut out = std::io::stdout().lock();
        for (key, value) in rows {
            let from = self.figment.find_metadata(key).map_or_else(|| "the default".into(), source);
            writeln!(out, "{:<48} # {from}", format!("{key} = {value}"))?;
        }
        Ok(())
    }
}

/// `scheme://user:***@host` in place of `scheme://user:password@host`.
fn without_password(url: &str) -> String {
    let parts = url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?)));
    match parts {
        Some((scheme, (credentials, host))) => {
            let user = credentials.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:***@{host}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::without_password;

    #[test]
    fn passwords_are_not_printed() {
        assert_eq!(without_password("mysql://me:p@ss:word@db/likewise"), "mysql://me:***@db/likewise");
        assert_eq!(without_password("sqlite://likewise-data/log.db"), "sqlite://likewise-data/log.db");
    }
}
