//! One HTTP server: listen, handle, drain.

use std::{cell::RefCell, collections::HashMap, net::TcpListener, rc::Rc, time::Duration};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    body::MessageBody,
    dev::{ServerHandle, Service, ServiceRequest, ServiceResponse},
    http::Method,
    web,
};
use metrics::{Counter, Histogram, counter, histogram};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    problem::{Kind, Problem},
    routes::Routes,
};

/// Threads that serve requests.
const WORKERS: usize = 2;
/// Connections waiting to be accepted.
const BACKLOG: u32 = 4096;
/// How long an idle connection is kept, and a head may take to arrive.
const IDLE: Duration = Duration::from_secs(5);
/// How long requests in flight may take after the server was asked to stop.
const DRAIN_SECONDS: u64 = 5;
/// Longest URI.
const URI_BYTES_MAX: usize = 8192;

/// A server that runs.
pub struct Server {
    handle: ServerHandle,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// Serves on `listener` what `build` adds, once per worker.
    pub fn start(listener: TcpListener, build: impl Fn(&mut Routes) + Send + Clone + 'static) -> std::io::Result<Self> {
        let app = move || {
            let mut routes = Routes::default();
            build(&mut routes);
            let meters = Rc::new(Meters::default());
            App::new()
                .wrap_fn(move |request, service| {
                    let (meters, started) = (Rc::clone(&meters), Instant::now());
                    let refusal = refuse_early(&request);
                    let method = request.method().clone();
                    let answer = refusal.is_none().then(|| service.call(request));
                    async move {
                        let response = match (refusal, answer) {
                            (Some(problem), _) => return Err(problem.into()),
                            (None, Some(answer)) => answer.await?,
                            (None, None) => return Err(Problem::from(&Kind::INTERNAL).into()),
                        };
                        meters.count(&method, &response, started.elapsed());
                        Ok(response)
                    }
                })
                .configure(|config| routes.configure(config))
                .default_service(web::to(async || Err::<HttpResponse, _>(Problem::from(&Kind::NOT_FOUND))))
        };
        let server = HttpServer::new(app)
            .workers(WORKERS)
            .backlog(BACKLOG)
            .keep_alive(IDLE)
            .client_request_timeout(IDLE)
            .shutdown_timeout(DRAIN_SECONDS)
            .disable_signals()
            .listen(listener)?
            .run();
        Ok(Self { handle: server.handle(), task: tokio::spawn(server) })
    }

    /// Stops accepting and finishes the requests in flight.
    pub async fn stop(self) {
        self.handle.stop(true).await;
        let _ended = self.task.await;
    }
}

fn refuse_early(request: &ServiceRequest) -> Option<Problem> {
    let uri = request.uri();
    let length = uri.path_and_query().map_or(0, |text| text.as_str().len());
    if length > URI_BYTES_MAX {
        return Some((&Kind::URI_TOO_LONG).into());
    }
    let path = uri.path().to_ascii_lowercase();
    let suspicious = path.contains("%00") || path.contains("%2e") || path.contains("%2f") || path.contains('\0');
    suspicious.then(|| Problem::new(&Kind::INVALID_PARAMETER, "The path holds a character that no path here has."))
}

/// Requests by route, method and status, counted without building labels for each request.
#[derive(Default)]
struct Meters {
    known: RefCell<HashMap<MeterKey, (Counter, Histogram)>>,
}

/// Method, route and status.
type MeterKey = (Method, Option<String>, u16);

impl Meters {
    fn count<B: MessageBody>(&self, method: &Method, response: &ServiceResponse<B>, took: Duration) {
        let key = (method.clone(), response.request().match_pattern(), response.status().as_u16());
        let mut known = self.known.borrow_mut();
        let (requests, seconds) = known.entry(key.clone()).or_insert_with(|| {
            let (method, route, status) = key;
            let route = route.unwrap_or_else(|| "none".into());
            // A client may invent methods; they share one label.
            let method = if method.as_str().len() > 7 { "other".to_owned() } else { method.to_string() };
            let labels = [("method", method), ("route", route), ("status", status.to_string())];
            (
                counter!("likewise_http_requests_total", &labels),
                histogram!("likewise_http_request_seconds", &labels[1..2]),
            )
        });
        requests.increment(1);
        seconds.record(took.as_secs_f64());
    }
}

/// The request's W3C `traceparent` if it has a valid one, else a new one.
pub fn trace_parent(request: &HttpRequest, random: impl Fn() -> u128) -> String {
    let given = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    match given.filter(|text| likewise_schema::trace_parent_is_valid(text)) {
        Some(valid) => valid.to_owned(),
        None => format!("00-{:032x}-{:016x}-00", random() | 1, (random() as u64) | 1),
    }
}
