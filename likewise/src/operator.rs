//! What a running service does for an operator's commands. The files of an embedded service are written by it alone, and
//! its cache is in its memory, so a command that needs them asks the service, over the admin port.

use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{Method, header},
    web,
};
use async_trait::async_trait;
use clap::Args;
use likewise_analyst::{reader::Pace, verify::Stores};
use likewise_http::{BodyLimit, Kind, Problem, Routes, read_body};
use likewise_storage::{
    StoreError,
    records::{ReplaceableRecords, Successor},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    DIFFERENT, Failure, reading,
    rebuild::{self, Rebuild, Switch},
    verify, wiring,
};

const VERIFY: &str = "/operator/verify";
const REBUILD: &str = "/operator/rebuild";
/// How long a rebuild that is given up may take to end, and how often that is looked at.
const GIVEN_UP_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes of what is asked.
const ASKED_BYTES: usize = 4096;

/// A comparison that is asked for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Verify {
    pub(crate) sample: Option<u16>,
    pub(crate) repair: bool,
    pub(crate) max_rate: u32,
}

/// Does one thing at a time.
pub(crate) struct Operator {
    stores: Arc<Stores>,
    /// Where the records are.
    urls: Vec<String>,
    /// The same store as in `stores`, where this process owns its files.
    files: Arc<ReplaceableRecords>,
    is_busy: AtomicBool,
    /// Of the rebuild that is under way.
    is_given_up: Arc<AtomicBool>,
}

/// Replaces files while everything else goes on.
struct Online {
    files: Arc<ReplaceableRecords>,
    urls: Vec<String>,
}

#[async_trait]
impl Switch for Online {
    async fn switch(&self, successor: &dyn Successor) -> Result<(), StoreError> {
        let open = || async {
            let records = wiring::writable_records(&self.urls).await;
            records.map_err(|failure| StoreError::unavailable("the record store", failure.sentence))
        };
        let replace = || async {
            successor.switch().await?;
            open().await
        };
        self.files.replace(replace, open).await
    }
}

/// Held while something is done.
struct Turn(Arc<Operator>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.is_busy.store(false, Ordering::Release);
    }
}

impl Operator {
    pub(crate) fn new(stores: Stores, urls: Vec<String>, files: Arc<ReplaceableRecords>) -> Arc<Self> {
        let (is_busy, is_given_up) = (AtomicBool::new(false), Arc::default());
        Arc::new(Self { stores: Arc::new(stores), urls, files, is_busy, is_given_up })
    }

    fn turn(self: &Arc<Self>) -> Result<Turn, Problem> {
        if self.is_busy.swap(true, Ordering::AcqRel) {
            return Err(Problem::new(&Kind::UNAVAILABLE, "Another operator's command is under way."));
        }
        Ok(Turn(Arc::clone(self)))
    }

    async fn verify(self: Arc<Self>, asked: Verify) -> Result<Value, Problem> {
        let turn = self.turn()?;
        let stores = Arc::clone(&self.stores);
        let work = async move {
            let _turn = turn;
            verify::verify(&stores, asked, &Pace::new(asked.max_rate), &(Arc::new(|_| {}) as _)).await
        };
        told(beside(work).await)
    }

    async fn rebuild(self: Arc<Self>, asked: rebuild::Asked) -> Result<Value, Problem> {
        let mut turn = self.turn();
        let started = Instant::now();
        while asked.what == rebuild::What::Cancel && turn.is_err() && started.elapsed() < GIVEN_UP_MAX {
            // What is under way ends soon.
            self.is_given_up.store(true, Ordering::Relaxed);
            tokio::time::sleep(LOOK_EVERY).await;
            turn = self.turn();
        }
        let turn = turn?;
        self.is_given_up.store(false, Ordering::Relaxed);
        let files = Arc::clone(&self.files);
        let work = async move {
            let _turn = turn;
            let (log, live, urls) = (Arc::clone(&self.stores.log), Arc::clone(&self.stores.records), self.urls.clone());
            let mut rebuild = Rebuild::new(log, live, &urls)?;
            rebuild.is_given_up = Arc::clone(&self.is_given_up);
            rebuild.run(asked, &indicatif::ProgressBar::hidden(), &Online { files, urls }).await
        };
        told(beside(work).await)
    }
}

/// Does what takes long on threads of its own, so that nobody who is served waits for it.
async fn beside(work: impl Future<Output = Result<Value, Failure>> + Send + 'static) -> Result<Value, Failure> {
    let (done, outcome) = oneshot::channel();
    // A second projector counts for nothing in the service's metrics.
    let quietly = || std::mem::forget(metrics::set_default_local_recorder(&metrics::NoopRecorder));
    let run = move || {
        quietly();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).on_thread_start(quietly).enable_all().build();
        let outcome = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(work));
        let _nobody_waits = done.send(outcome);
    };
    thread::Builder::new().name("operator".into()).spawn(run)?;
    outcome.await.unwrap_or_else(|_| Err("it failed".into()))
}

/// What was found different is an answer, which the command says; only what could not be done is a problem.
fn told(outcome: Result<Value, Failure>) -> Result<Value, Problem> {
    match outcome {
        Ok(value) => Ok(value),
        Err(Failure { sentence, code: DIFFERENT }) => Ok(json!({ "different": sentence })),
        Err(Failure { sentence, .. }) => Err(Problem::new(&Kind::UNAVAILABLE, sentence)),
    }
}

/// What is asked, as JSON: a form of another site's page cannot send that.
async fn asked<T: DeserializeOwned>(request: &HttpRequest, payload: web::Payload) -> Result<T, Problem> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind != Some("application/json") {
        return Err(Problem::from(&Kind::UNSUPPORTED_MEDIA_TYPE));
    }
    let body = read_body(request, payload, BodyLimit(ASKED_BYTES)).await?;
    serde_json::from_slice(&body).map_err(|_| Problem::new(&Kind::INVALID_BODY, "The body is not what this takes."))
}

/// Adds what commands ask for.
pub(crate) fn routes(routes: &mut Routes, operator: &Arc<Operator>) {
    let rebuilder = Arc::clone(operator);
    routes.add(Method::POST, REBUILD, move |request: HttpRequest, payload: web::Payload| {
        let operator = Arc::clone(&rebuilder);
        async move {
            let told = operator.rebuild(asked(&request, payload).await?).await?;
            Ok::<_, Problem>(HttpResponse::Ok().json(told))
        }
    });
    let operator = Arc::clone(operator);
    routes.add(Method::POST, VERIFY, move |request: HttpRequest, payload: web::Payload| {
        let operator = Arc::clone(&operator);
        async move {
            let report = operator.verify(asked(&request, payload).await?).await?;
            Ok::<_, Problem>(HttpResponse::Ok().json(report))
        }
    });
}

/// How a command speaks to the service that owns the data.
#[derive(Args)]
pub(crate) struct Owner {
    /// File with a token for the admin port of a service with authentication that owns the data.
    #[arg(long, value_name = "FILE")]
    credential_file: Option<PathBuf>,
}

impl Owner {
    /// The service that has embedded records open; none if there is none, or if some are on a server.
    pub(crate) fn of(&self, urls: &[String]) -> Result<Option<Service>, Failure> {
        let is_embedded = urls.iter().all(|url| wiring::is_embedded(url));
        let Some(base) = wiring::operator_of(urls)?.filter(|_| is_embedded) else { return Ok(None) };
        let read = |file: &PathBuf| {
            std::fs::read_to_string(file).map_err(|e| format!("{} cannot be read ({e})", file.display()))
        };
        let credential = self.credential_file.as_ref().map(read).transpose()?;
        Ok(Some(Service { base, credential: credential.map(|text| format!("Bearer {}", text.trim())) }))
    }
}

/// A service that runs, for a command of its operator.
pub(crate) struct Service {
    base: String,
    credential: Option<String>,
}

impl Service {
    /// Asks for a comparison, and waits for it.
    pub(crate) async fn verify(self, asked: Verify) -> Result<Value, Failure> {
        self.wait("the service that owns the data compares", VERIFY, asked).await
    }

    /// Asks for a rebuild, and waits for it.
    pub(crate) async fn rebuild(self, asked: rebuild::Asked) -> Result<Value, Failure> {
        self.wait("the service that owns the data rebuilds", REBUILD, asked).await
    }

    async fn wait(
        self,
        what: &'static str,
        path: &'static str,
        asked: impl Serialize + Send + 'static,
    ) -> Result<Value, Failure> {
        let bar = reading::spinner(what);
        let answered = tokio::task::spawn_blocking(move || self.ask(path, &asked)).await;
        bar.finish_and_clear();
        answered?
    }

    fn ask(&self, path: &str, asked: &impl Serialize) -> Result<Value, Failure> {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut request = agent.post(format!("{}{path}", self.base)).header("Content-Type", "application/json");
        if let Some(credential) = &self.credential {
            request = request.header("Authorization", credential);
        }
        let answer = request.send(serde_json::to_string(asked)?);
        let mut answer =
            answer.map_err(|e| format!("the service that owns the data does not answer at {} ({e})", self.base))?;
        let text = answer.body_mut().with_config().limit(u64::MAX).read_to_string()?;
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        if answer.status().is_success() {
            let different = value["different"].as_str().map(|sentence| Failure::different(sentence.to_owned()));
            return different.map_or(Ok(value), Err);
        }
        let detail = value["detail"].as_str().or(value["title"].as_str()).unwrap_or("no reason given");
        match answer.status().as_u16() {
            401 | 403 => Err(format!(
                "the service that owns the data asks who you are ({detail}); --credential-file names a token for its admin port"
            )
            .into()),
            _ => Err(format!("the service that owns the data answers: {detail}").into()),
        }
    }
}
