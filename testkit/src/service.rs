//! One running process of the binary.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use ureq::{Agent, http};
use uuid::Uuid;

use crate::{
    certificates::Files,
    tokens::{AUDIENCE, ISSUER, SECRET},
};

/// How long a start may take before it counts as failed. What it really takes is for the tests to judge.
const START_MAX: Duration = Duration::from_secs(30);

/// How to start a service.
#[derive(Clone, Debug)]
pub struct Settings {
    binary: PathBuf,
    data_dir: PathBuf,
    listen: String,
    role: String,
    extra: Vec<String>,
    authority: Option<PathBuf>,
}

impl Settings {
    /// The binary at `binary` (a test's `env!("CARGO_BIN_EXE_likewise")`) on `data_dir`, on free ports.
    pub fn new(binary: &str, data_dir: &Path) -> Self {
        Self {
            binary: binary.into(),
            data_dir: data_dir.into(),
            listen: "127.0.0.1:0".into(),
            role: "serve".into(),
            extra: Vec::new(),
            authority: None,
        }
    }

    /// On a given address.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        self.listen = address.into();
        self
    }

    /// One role alone, such as `projector`.
    #[must_use]
    pub fn role(mut self, role: &str) -> Self {
        self.role = role.into();
        self
    }

    /// Over TLS, with the certificate of `files`, which `authority` stands for.
    #[must_use]
    pub fn tls(mut self, authority: &Path, files: &Files) -> Self {
        self.authority = Some(authority.into());
        self.arg(&format!("--tls-cert-file={}", files.certificate.display()))
            .arg(&format!("--tls-key-file={}", files.key.display()))
    }

    /// With authentication by tokens of the tests' issuer, whose keys `content` holds, as the setting `name` takes them.
    #[must_use]
    pub fn guarded(self, name: &str, content: &str) -> Self {
        let file = self.data_dir.join(name);
        std::fs::create_dir_all(&self.data_dir).and_then(|()| std::fs::write(&file, content)).expect("keys");
        self.arg(&format!("--{name}={}", file.display()))
            .arg(&format!("--auth-issuer={ISSUER}"))
            .arg(&format!("--auth-audience={AUDIENCE}"))
    }

    /// The same by the secret that [`Signer::secret`] signs with.
    ///
    /// [`Signer::secret`]: crate::tokens::Signer::secret
    #[must_use]
    pub fn guarded_by_secret(self) -> Self {
        self.guarded("auth-secret-file", SECRET)
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.extra.push(argument.into());
        self
    }

    /// The command for any subcommand with these settings; nothing of the environment reaches it but the path.
    pub fn command(&self, subcommand: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(subcommand).arg("--data-dir").arg(&self.data_dir).args(&self.extra);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LIKEWISE_")) {
            command.env_remove(name);
        }
        command
    }

    /// Runs a reading command beside the service, and gives what it prints.
    pub fn output(&self, subcommand: &[&str]) -> std::process::Output {
        self.command(subcommand).output().expect("the binary runs")
    }

    /// Starts the service and waits for its first line.
    pub fn start(&self) -> Service {
        let mut command = self.command(&[&self.role]);
        command.args(["--listen", &self.listen, "--admin-listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let mut stderr = child.stderr.take().expect("stderr is piped");
        let log = thread::spawn(move || {
            let mut text = String::new();
            let _broken_off = stderr.read_to_string(&mut text);
            text
        });
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let mut banner = Vec::new();
        let mut next = || {
            let line = lines.next()?.ok()?;
            banner.push(line.clone());
            Some(line)
        };
        let address = next().and_then(|line| Some(line.split_once("://")?.1.to_owned()));
        let admin = std::iter::from_fn(&mut next).find_map(|line| {
            Some(line.split_once("Metrics")?.1.split_once("://")?.1.strip_suffix("/metrics")?.to_owned())
        });
        let (Some(address), Some(admin)) = (address, admin) else {
            let _gone = child.kill();
            panic!("the service did not start: {}", log.join().unwrap_or_default());
        };
        // Somebody must read on, or the service would wait for its own banner.
        thread::spawn(move || lines.for_each(drop));
        let client = self.client(&address);
        Service { address, admin, client, child, log: Some(log) }
    }
}

fn agent(authority: Option<&Path>) -> Agent {
    let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(30)));
    let tls = authority.map(|file| {
        let pem = std::fs::read(file).expect("the authority's certificate");
        let root = ureq::tls::Certificate::from_pem(&pem).expect("a certificate");
        ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::new_with_certs(&[root])).build()
    });
    let config = config.tls_config(tls.unwrap_or_default());
    config.max_idle_connections_per_host(64).build().into()
}

/// A service that runs; killed when it is dropped.
pub struct Service {
    /// Where the APIs listen.
    pub address: String,
    /// Where metrics are.
    pub admin: String,
    client: Client,
    child: Child,
    log: Option<thread::JoinHandle<String>>,
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: http::HeaderMap,
    /// The body as it came.
    pub text: String,
}

impl Answer {
    /// The body as JSON; null if it is not.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// A header's text; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A client of a service, with connections of its own.
pub struct Client {
    scheme: &'static str,
    address: String,
    agent: Agent,
}

impl Settings {
    /// A client without connections of before, of what these settings started.
    pub fn client(&self, address: &str) -> Client {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        Client { scheme, address: address.into(), agent: agent(self.authority.as_deref()) }
    }
}

impl Client {
    /// Sends a request. The error tells that no answer came.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Answer, ureq::Error> {
        self.send_to(&self.address, method, path, headers, body)
    }

    fn send_to(
        &self,
        address: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Answer, ureq::Error> {
        let mut request = http::Request::builder().method(method).uri(format!("{}://{address}{path}", self.scheme));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = match body {
            Some(body) => self.agent.run(request.body(body)?),
            None => self.agent.run(request.body(())?),
        };
        let mut response = sent?;
        let text = response.body_mut().read_to_string()?;
        Ok(Answer { status: response.status().as_u16(), headers: response.headers().clone(), text })
    }
}

/// The body of a new like of a post, by whoever sends it.
pub fn like(content: u64) -> Value {
    json!({ "requestId": Uuid::now_v7().to_string(), "contentType": "post", "contentId": content, "liked": true })
}

/// Sends so many requests at the same moment, and gives their answers.
pub fn at_once(senders: usize, send: impl Fn(usize) -> Answer + Sync) -> Vec<Answer> {
    let start = Barrier::new(senders);
    thread::scope(|scope| {
        let one = |sender| {
            let (start, send) = (&start, &send);
            scope.spawn(move || {
                start.wait();
                send(sender)
            })
        };
        let under_way: Vec<_> = (0..senders).map(one).collect();
        under_way.into_iter().map(|sent| sent.join().expect("it is answered")).collect()
    })
}

impl std::ops::Deref for Service {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Service {
    /// Sends a request that must be answered.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> Answer {
        self.try_send(method, path, headers, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    /// Sends a request as the holder of a credential, with a JSON body if there is one.
    pub fn send_as(&self, credential: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let authorization = format!("Bearer {credential}");
        let mut headers = Vec::new();
        if !credential.is_empty() {
            headers.push(("Authorization", authorization.as_str()));
        }
        if body.is_some() {
            headers.push(("Content-Type", "application/json"));
        }
        self.send(method, path, &headers, body.map(Value::to_string).as_ref().map(String::as_bytes))
    }

    /// GETs a path.
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], None)
    }

    /// POSTs JSON.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("Content-Type", "application/json")], Some(body.to_string().as_bytes()))
    }

    /// GETs a path of the admin port.
    pub fn get_admin(&self, path: &str) -> Answer {
        self.get_admin_as("", path)
    }

    /// GETs a path of the admin port as the holder of a credential.
    pub fn get_admin_as(&self, credential: &str, path: &str) -> Answer {
        let authorization = format!("Bearer {credential}");
        let header = [("Authorization", authorization.as_str())];
        let headers = if credential.is_empty() { &[][..] } else { &header };
        self.client.send_to(&self.admin, "GET", path, headers, None).expect("the admin port answers")
    }

    /// The sum of a metric's values, whatever their labels; those that hold `label` if it is not empty.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        self.metric_as("", name, label)
    }

    /// The same as the holder of a credential for the admin port.
    pub fn metric_as(&self, credential: &str, name: &str, label: &str) -> f64 {
        let text = self.get_admin_as(credential, "/metrics").text;
        let is_named = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let values = text.lines().filter(is_named).filter(|line| line.contains(label));
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until it is ready, and gives how long that took.
    pub fn wait_ready(&self) -> Duration {
        wait_until("the service to be ready", START_MAX, || {
            self.try_send("GET", "/readyz", &[], None).is_ok_and(|answer| answer.status == 200)
        })
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, such as TERM or KILL.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{name} failed");
    }

    /// Waits for the process to end; gives its status, how long it took, and what it wrote to stderr.
    pub fn wait(mut self) -> (ExitStatus, Duration, String) {
        let started = Instant::now();
        let status = self.child.wait().expect("the process can be waited for");
        let log = self.log.take().and_then(|log| log.join().ok()).unwrap_or_default();
        (status, started.elapsed(), log)
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(self) {
        self.signal("KILL");
        let _killed = self.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}

/// Waits for a condition, looking often; gives how long it took. Panics after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut is_true: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !is_true() {
        assert!(started.elapsed() < limit, "waited {limit:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
    started.elapsed()
}
