//! One HTTP server: listen, handle, drain.

use std::{
    cell::RefCell,
    net::{IpAddr, TcpListener},
    rc::Rc,
    time::Duration,
};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::{ServerHandle, Service, ServiceRequest},
    http::{Method, header},
    web,
};
use metrics::{Counter, Histogram, counter, histogram};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    problem::{Kind, Problem},
    routes::{RoutePath, Routes},
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
                    let method = known_method(request.method());
                    let answer = match refuse_early(&request) {
                        Some(problem) => Err(problem),
                        None => Ok(service.call(request)),
                    };
                    async move {
                        match answer {
                            Ok(answer) => {
                                let response = answer.await?;
                                let route = response.request().app_data::<RoutePath>().map(|RoutePath(path)| *path);
                                let status = response.status().as_u16();
                                meters.count((method, route, status), started.elapsed());
                                Ok(response)
                            }
                            Err(problem) => {
                                meters.count((method, None, problem.status()), started.elapsed());
                                Err(problem.into())
                            }
                        }
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

/// A client may invent methods; they share one name, so that they cannot fill the memory with meters.
fn known_method(method: &Method) -> &'static str {
    ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"].into_iter().find(|known| method == known).unwrap_or("other")
}

/// While anybody who connects is trusted, a page of another site must not reach the server through a name that it
/// points at this machine (DNS rebinding).
fn names_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn refuse_early(request: &ServiceRequest) -> Option<Problem> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(names_this_machine) {
        return Some((&Kind::MISDIRECTED).into());
    }
    let uri = request.uri();
    let length = uri.path_and_query().map_or(0, |text| text.as_str().len());
    if length > URI_BYTES_MAX {
        return Some((&Kind::URI_TOO_LONG).into());
    }
    let path = uri.path();
    let escapes = || ["%00", "%2e", "%2f"].iter().any(|escape| path.to_ascii_lowercase().contains(escape));
    let suspicious = path.contains('\0') || (path.contains('%') && escapes());
    suspicious.then(|| Problem::new(&Kind::INVALID_PARAMETER, "The path holds a character that no path here has."))
}

/// Requests by route, method and status, counted without building labels for each request. There are few: they
/// are looked for in order.
#[derive(Default)]
struct Meters {
    known: RefCell<Vec<(MeterKey, Counter, Histogram)>>,
}

/// Method, route and status.
type MeterKey = (&'static str, Option<&'static str>, u16);

impl Meters {
    fn count(&self, key: MeterKey, took: Duration) {
        let mut known = self.known.borrow_mut();
        let index = known.iter().position(|(known, ..)| *known == key).unwrap_or_else(|| {
            let (method, route, status) = key;
            let route = route.unwrap_or("none").to_owned();
            let labels = [("method", method.to_owned()), ("route", route), ("status", status.to_string())];
            let requests = counter!("likewise_http_requests_total", &labels);
            let seconds = histogram!("likewise_http_request_seconds", &labels[1..2]);
            known.push((key, requests, seconds));
            known.len() - 1
        });
        let (_, requests, seconds) = &known[index];
        requests.increment(1);
        seconds.record(took.as_secs_f64());
    }
}

/// The request's W3C `traceparent` if it has a valid one, else a new one made of `random` numbers.
pub fn trace_parent(request: &HttpRequest, random: impl Fn() -> u128) -> String {
    let given = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    match given.filter(|text| likewise_schema::trace_parent_is_valid(text)) {
        Some(valid) => valid.to_owned(),
        None => likewise_schema::trace_parent(random(), random() as u64),
    }
}
