//! One HTTP server: listen, handle, drain.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    net::{IpAddr, TcpListener},
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix_cors::Cors;
use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::{
    App, HttpMessage, HttpRequest, HttpResponse, HttpServer, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{Extensions, ServerHandle, Service, ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{self, HeaderMap, HeaderValue},
    },
    middleware::Condition,
    rt::net::TcpStream,
    web,
};
use futures::FutureExt;
use metrics::{Counter, Histogram, counter, histogram};
use socket2::SockRef;
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    access,
    address::Proxies,
    authority::Authority,
    problem::{Kind, Outcome, Problem},
    pulse::{Class, Pulse},
    routes::{RoutePath, Routes},
    tls::Certificate,
    unread::Held,
};

/// Threads that serve requests.
const WORKERS: usize = 2;
/// Connections waiting to be accepted.
const BACKLOG: u32 = 4096;
/// How long an idle connection is kept, and a head may take to arrive.
const IDLE: Duration = Duration::from_secs(5);
/// How long a client may take to close a connection that is closed to it.
const LEAVE: Duration = Duration::from_secs(1);
/// How long requests in flight may take after the server was asked to stop.
const DRAIN_SECONDS: u64 = 5;
/// Longest URI.
const URI_BYTES_MAX: usize = 8192;

/// How long what was sent to a client may remain untaken.
const UNTAKEN_MAX: Duration = Duration::from_secs(10);
/// How long a browser may remember what a page of another site may send.
const PREFLIGHT_SECONDS: usize = 600;
/// The answers are data: nothing in them is to be run, shown in a frame, or taken for something else.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
/// The documentation brings its own scripts, and styles within its pages.
const DOCS_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// Once reached over TLS, a browser does not come without for a year.
const ONLY_TLS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// A connection on which a request was refused for want of room or quota tells so for as long as `Retry-After` tells at
/// least; what is refused on it within that time is held for so long. Refusing costs a seventh of a like, and a client
/// that does not wait would have the processors for itself.
const HELD_FOR: Duration = Duration::from_millis(250);
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// When a request on a connection was last refused.
#[derive(Default)]
struct LastRefused(Cell<Option<Instant>>);

impl LastRefused {
    /// Notes a refusal; true if it came too soon after another.
    fn note(&self) -> bool {
        let last = self.0.replace(Some(Instant::now()));
        last.is_some_and(|last| last.elapsed() < REFUSED_FOR)
    }
}

/// How a server meets the world.
#[derive(Clone)]
pub struct Edge {
    /// Whom it believes.
    pub authority: Arc<Authority>,
    /// Whose word on a client's address counts.
    pub proxies: Proxies,
    /// Origins whose pages may call it.
    pub origins: Vec<String>,
    /// Its certificate; none is plain HTTP.
    pub tls: Option<Arc<Certificate>>,
    /// Set, all is for holders of an admin token or key, but for health and these paths.
    pub admin_but: Option<&'static [&'static str]>,
}

impl Edge {
    /// For loopback: believes everybody, no TLS.
    pub fn open() -> Self {
        Self {
            authority: Arc::new(Authority::open()),
            proxies: Proxies::default(),
            origins: Vec::new(),
            tls: None,
            admin_but: None,
        }
    }

    fn cors(&self) -> Cors {
        let cors = Cors::default()
            .allowed_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            .allowed_headers([
                "authorization",
                "content-type",
                "idempotency-key",
                "if-none-match",
                "last-event-id",
                "prefer",
                "traceparent",
            ])
            .expose_headers([
                "Retry-After",
                "RateLimit",
                "RateLimit-Policy",
                "Location",
                "ETag",
                "Preference-Applied",
                "Idempotent-Replayed",
            ])
            .block_on_origin_mismatch(false)
            .max_age(PREFLIGHT_SECONDS);
        self.origins.iter().fold(cors, |cors, origin| cors.allowed_origin(origin))
    }

    /// Why a request is refused before anything looks at it.
    fn refuse(&self, request: &ServiceRequest, is_api: bool, pulse: &Pulse) -> Option<Problem> {
        if let Some(problem) = refuse_form(request, self.authority.is_open()) {
            return Some(problem);
        }
        let class = Class::of(request.method(), request.path());
        if pulse.refuses(class) {
            let problem = Problem::from(&Kind::REDUCED_CAPACITY).with_retry_after(retry_after());
            return Some(if class == Class::Command { problem.with_outcome(Outcome::Rejected) } else { problem });
        }
        let path = request.path();
        let is_for_admins =
            self.admin_but.is_some_and(|free| !free.contains(&path) && !["/livez", "/readyz"].contains(&path));
        if !is_api && !is_for_admins {
            return None;
        }
        match self.authority.sender(request.headers()) {
            Err(problem) => Some(problem),
            Ok(sender) if is_for_admins => sender.must_be_admin().err(),
            Ok(sender) => {
                request.extensions_mut().insert(sender);
                None
            }
        }
    }
}

/// When to come again: not all at once.
pub fn retry_after() -> Duration {
    Duration::from_secs(fastrand::u64(1..=3))
}

/// A server that runs.
pub struct Server {
    handle: ServerHandle,
    task: JoinHandle<std::io::Result<()>>,
    keep_up: JoinHandle<()>,
}

impl Server {
    /// Serves on `listener` what `build` adds, once per worker.
    pub fn start(
        listener: TcpListener,
        edge: Edge,
        build: impl Fn(&mut Routes) + Send + Clone + 'static,
    ) -> std::io::Result<Self> {
        let (authority, tls) = (Arc::clone(&edge.authority), edge.tls.clone());
        let app = move || {
            let mut routes = Routes::default();
            build(&mut routes);
            let (has_origins, cors) = (!edge.origins.is_empty(), edge.cors());
            let (meters, pulse, edge) = (Rc::new(Meters::default()), Pulse::start(), edge.clone());
            App::new()
                .app_data(edge.proxies.clone())
                .wrap_fn(move |mut request, service| {
                    let held = Held::of(&mut request);
                    let (meters, started) = (Rc::clone(&meters), Instant::now());
                    let method = known_method(request.method());
                    let is_api = request.path().starts_with("/v1/");
                    let (is_docs, has_tls) = (request.path().starts_with("/docs"), edge.tls.is_some());
                    let answer = match edge.refuse(&request, is_api, &pulse) {
                        Some(problem) => Err(request.into_response(problem.error_response()).map_into_right_body()),
                        None => Ok(AssertUnwindSafe(service.call(request)).catch_unwind()),
                    };
                    async move {
                        let answer = match answer {
                            Ok(answer) => match answer.await {
                                Ok(answer) => answer.map(ServiceResponse::map_into_left_body),
                                Err(_panic) => Err(Problem::from(&Kind::INTERNAL).into()),
                            },
                            Err(refused) => Ok(refused),
                        };
                        match answer {
                            Ok(mut response) => {
                                let route = response.request().app_data::<RoutePath>().map(|RoutePath(path)| *path);
                                let status = response.status().as_u16();
                                meters.count((method, route, status), started.elapsed());
                                access::log(response.request(), method, route, status, started.elapsed());
                                let last = response.request().conn_data::<LastRefused>();
                                if is_api && [429, 503].contains(&status) && last.is_some_and(LastRefused::note) {
                                    tokio::time::sleep(HELD_FOR).await;
                                }
                                let headers = response.headers_mut();
                                if is_docs {
                                    headers.insert(header::CONTENT_SECURITY_POLICY, DOCS_POLICY);
                                }
                                if has_tls {
                                    headers.insert(header::STRICT_TRANSPORT_SECURITY, ONLY_TLS);
                                }
                                secure(headers);
                                Ok(response.map_body(|_, body| match held {
                                    Some(held) => EitherBody::right(held.until_sent(body.boxed())),
                                    None => EitherBody::left(body),
                                }))
                            }
                            Err(error) => {
                                let status = error.as_response_error().status_code().as_u16();
                                meters.count((method, None, status), started.elapsed());
                                Err(error)
                            }
                        }
                    }
                })
                .wrap(Condition::new(has_origins, cors))
                .configure(|config| routes.configure(config))
                .default_service(web::to(async || Err::<HttpResponse, _>(Problem::from(&Kind::NOT_FOUND))))
        };
        let server = HttpServer::new(app)
            .workers(WORKERS)
            .backlog(BACKLOG)
            .keep_alive(IDLE)
            .client_request_timeout(IDLE)
            .client_disconnect_timeout(LEAVE)
            .h1_allow_half_closed(false)
            .on_connect(begin)
            .shutdown_timeout(DRAIN_SECONDS)
            .disable_signals();
        let server = match &tls {
            Some(certificate) => server.listen_rustls_0_23(listener, certificate.config())?,
            None => server.listen(listener)?,
        };
        let server = server.run();
        let keep_up = tokio::spawn(async move {
            let certificate = async {
                match tls {
                    Some(certificate) => certificate.keep_up().await,
                    None => std::future::pending().await,
                }
            };
            tokio::join!(authority.keep_up(), certificate);
        });
        Ok(Self { handle: server.handle(), task: tokio::spawn(server), keep_up })
    }

    /// Stops accepting and finishes the requests in flight.
    pub async fn stop(self) {
        self.handle.stop(true).await;
        let _ended = self.task.await;
        self.keep_up.abort();
    }
}

/// What every answer carries, unless it carries its own.
pub(crate) fn secure(headers: &mut HeaderMap) {
    if !headers.contains_key(header::CONTENT_SECURITY_POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

/// Of each connection. A client that takes nothing of what is sent to it is cut off by the system.
fn begin(connection: &dyn Any, data: &mut Extensions) {
    data.insert(LastRefused::default());
    let plain = connection.downcast_ref::<TcpStream>();
    let socket = plain.or_else(|| connection.downcast_ref::<TlsStream<TcpStream>>().map(|tls| tls.get_ref().0));
    if let Some(socket) = socket {
        let _not_supported = SockRef::from(socket).set_tcp_user_timeout(Some(UNTAKEN_MAX));
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

fn refuse_form(request: &ServiceRequest, is_open: bool) -> Option<Problem> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if is_open && !host.is_some_and(names_this_machine) {
        return Some((&Kind::MISDIRECTED).into());
    }
    let uri = request.uri();
    let length = uri.path_and_query().map_or(0, |text| text.as_str().len());
    if length > URI_BYTES_MAX {
        return Some((&Kind::URI_TOO_LONG).into());
    }
    let path = uri.path();
    // Nothing here has a name that needs an escape; one would hide what is asked for from whoever looks at the path.
    let suspicious = path.contains(['\0', '%']);
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
