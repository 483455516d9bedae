//! One server at its edge: what a handler does wrong, what a client sends or does not, what an answer carries.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{HttpRequest, HttpResponse, http::Method, web};
use likewise_http::{BodyLimit, Edge, Problem, Routes, Server, read_body};

/// Handlers that began, and that ended.
#[derive(Clone, Default)]
struct Seen {
    began: Arc<AtomicU32>,
    ended: Arc<AtomicU32>,
    dropped: Arc<AtomicU32>,
}

/// Counts when it is dropped.
struct Guard(Arc<AtomicU32>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

async fn body(request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, Problem> {
    let body = read_body(&request, payload, BodyLimit(4096)).await?;
    Ok(HttpResponse::Ok().body(body.len().to_string()))
}

fn routes(routes: &mut Routes, seen: &Seen) {
    routes.add(Method::GET, "/fine", async || "fine");
    routes.add(Method::GET, "/panic", async || -> HttpResponse { panic!("with a secret in its words") });
    routes.add(Method::GET, "/large", async || HttpResponse::Ok().body(vec![b'x'; 64 << 20]));
    routes.add(Method::POST, "/body", body);
    let seen = seen.clone();
    routes.add(Method::GET, "/long", move || {
        let seen = seen.clone();
        async move {
            let _guard = Guard(Arc::clone(&seen.dropped));
            seen.began.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(20)).await;
            seen.ended.fetch_add(1, Ordering::Relaxed);
            "at last"
        }
    });
}

/// Runs `check` in a thread beside a server.
fn with_server(edge: Edge, check: impl FnOnce(SocketAddr, &Seen) + Send + 'static) {
    let system = actix_web::rt::System::new();
    system.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Seen::default());
        let told = seen.clone();
        let server = Server::start(listener, edge, move |table| routes(table, &told)).unwrap();
        tokio::task::spawn_blocking(move || check(address, &seen)).await.unwrap();
        server.stop().await;
    });
}

/// Sends bytes and gives what comes back until the server has no more to say, or closes.
fn exchange(address: SocketAddr, sent: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.write_all(sent).unwrap();
    let mut answer = Vec::new();
    let _cut_off = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(address: SocketAddr, path: &str, headers: &str) -> String {
    exchange(
        address,
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n").as_bytes(),
    )
}

#[test]
fn a_panic_costs_one_answer() {
    with_server(Edge::open(), |address, _| {
        for _ in 0..20 {
            let answer = get(address, "/panic", "");
            assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("/problems/internal"), "{answer}");
            assert!(!answer.contains("secret"), "{answer}");
            assert!(get(address, "/fine", "").starts_with("HTTP/1.1 200"));
        }
    });
}

#[test]
fn every_answer_carries_what_keeps_browsers_safe() {
    with_server(Edge::open(), |address, _| {
        for path in ["/fine", "/nothing", "/panic"] {
            let answer = get(address, path, "").to_lowercase();
            for header in ["x-content-type-options: nosniff", "frame-ancestors 'none'", "referrer-policy: no-referrer"]
            {
                assert!(answer.contains(header), "{path}: {header} in {answer}");
            }
        }
    });
}

#[test]
fn pages_of_other_sites_may_call_only_if_they_are_listed() {
    let origins = vec!["https://app.example".to_owned()];
    with_server(Edge { origins, ..Edge::open() }, |address, _| {
        let preflight = |origin: &str| {
            let head = format!(
                "OPTIONS /body HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
                 Access-Control-Request-Headers: authorization, content-type, idempotency-key, prefer\r\nConnection: close\r\n\r\n"
            );
            exchange(address, head.as_bytes()).to_lowercase()
        };
        let allowed = preflight("https://app.example");
        assert!(allowed.starts_with("http/1.1 200"), "{allowed}");
        assert!(allowed.contains("access-control-allow-origin: https://app.example"), "{allowed}");
        assert!(!allowed.contains("access-control-allow-credentials"), "{allowed}");
        for origin in [
            "https://evil.example",
            "null",
            "https://app.example.evil",
            "https://APP.example",
            "https://app.example:8443",
            "http://app.example",
            "https://app.exampl",
            "*",
        ] {
            let answer = preflight(origin);
            assert!(!answer.contains("access-control-allow-origin"), "{origin}: {answer}");
        }
        let answer = get(address, "/fine", "Origin: https://app.example\r\n").to_lowercase();
        for header in ["retry-after", "ratelimit", "ratelimit-policy", "location", "etag", "idempotent-replayed"] {
            let exposed = answer.lines().find(|line| line.starts_with("access-control-expose-headers")).unwrap();
            assert!(exposed.contains(header), "{header}: {exposed}");
        }
    });
    with_server(Edge::open(), |address, _| {
        let answer = get(address, "/fine", "Origin: https://app.example\r\n").to_lowercase();
        assert!(!answer.contains("access-control"), "{answer}");
    });
}

#[test]
fn a_body_that_never_ends_and_a_head_that_never_ends_are_cut_off() {
    with_server(Edge::open(), |address, _| {
        let head = "POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        let parts = [
            format!("{head}Content-Length: 100\r\n\r\nhalf"),
            format!("{head}Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        ];
        std::thread::scope(|scope| {
            for part in &parts {
                scope.spawn(move || {
                    let started = Instant::now();
                    let answer = exchange(address, part.as_bytes());
                    assert!(
                        answer.starts_with("HTTP/1.1 408") && answer.contains("/problems/body-timeout"),
                        "{answer}"
                    );
                    println!("a body that never ends: 408 after {:?} (5 s)", started.elapsed());
                    assert!(started.elapsed() < Duration::from_secs(15));
                });
            }
            scope.spawn(move || {
                let started = Instant::now();
                let answer = exchange(address, b"GET /fine HTTP/1.1\r\nHost: local");
                assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
                println!("a head that never ends: closed after {:?} (5 s)", started.elapsed());
                assert!(started.elapsed() < Duration::from_secs(15));
            });
            scope.spawn(move || {
                let started = Instant::now();
                let answer = exchange(address, b"");
                assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
                println!("nothing at all: closed after {:?} (5 s)", started.elapsed());
                assert!(started.elapsed() < Duration::from_secs(15));
            });
        });
    });
}

#[test]
fn work_whose_client_has_gone_is_not_finished() {
    with_server(Edge::open(), |address, seen| {
        let socket = TcpStream::connect(address).unwrap();
        (&socket).write_all(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        while seen.began.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        drop(socket);
        let started = Instant::now();
        while seen.dropped.load(Ordering::Relaxed) == 0 {
            assert!(started.elapsed() < Duration::from_secs(10), "it is done for nobody");
            std::thread::yield_now();
        }
        println!("given up {:?} after its client had gone", started.elapsed());
        assert_eq!(seen.ended.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    with_server(Edge::open(), |address, _| {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let started = Instant::now();
        // A connection that is reset tells so when something is sent on it.
        while socket.write_all(b"\r\n").is_ok() {
            assert!(started.elapsed() < Duration::from_secs(45), "it is held for ever");
            std::thread::sleep(Duration::from_millis(200));
        }
        println!("a client that takes nothing: cut off after {:?} (10 s)", started.elapsed());
    });
}
