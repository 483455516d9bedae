//! A fault proxy: passes TCP on to a server, and spoils it as it is told.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// What happens to what passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// The server gets what is sent to it; what it answers is lost.
    AnswersLost,
    /// Nothing reaches the server, and nothing comes back.
    Silence,
    /// The same on each connection from the first request on that holds this text.
    AnswersLostFrom(&'static str),
    /// What the server answers comes so much later.
    AnswersLate(Duration),
}

#[derive(Default)]
struct Shared {
    target: Mutex<String>,
    fault: Mutex<Fault>,
    hits: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
}

/// A proxy that listens; it stops listening when dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    listener: TcpListener,
    port: u16,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// In front of `target`, `host:port`, which need not be there yet.
    pub fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared { target: Mutex::new(target.into()), ..Shared::default() });
        let (accepting, passed) = (listener.try_clone().expect("a second handle"), Arc::clone(&shared));
        thread::spawn(move || {
            while let Ok((client, _)) = accepting.accept() {
                let target = lock(&passed.target).clone();
                // What is refused here is closed, as by a server that is away.
                let Ok(server) = TcpStream::connect(&target) else { continue };
                pass(client, server, &passed);
            }
        });
        Self { shared, listener, port }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Passes new connections on to another server.
    pub fn lead_to(&self, target: &str) {
        *lock(&self.shared.target) = target.into();
    }

    /// From now on.
    pub fn set(&self, fault: Fault) {
        *lock(&self.shared.fault) = fault;
    }

    /// How many pieces of traffic a fault has hit.
    pub fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::Relaxed)
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        for stream in lock(&self.shared.streams).drain(..) {
            let _closed_already = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Wakes the thread that accepts, whose listener then fails.
        let _no_longer_waits = self.listener.set_nonblocking(true);
        let _woken = TcpStream::connect(self.address());
        self.cut();
    }
}

fn pass(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) {
    let both = |stream: &TcpStream| stream.try_clone().expect("a second handle");
    for stream in [&client, &server] {
        let _slower = stream.set_nodelay(true);
    }
    lock(&shared.streams).extend([both(&client), both(&server)]);
    let (to_server, to_client) = ((both(&client), both(&server)), (server, client));
    let is_asked = Arc::new(AtomicBool::new(false));
    for ((from, to), is_answer) in [(to_server, false), (to_client, true)] {
        let (shared, is_asked) = (Arc::clone(shared), Arc::clone(&is_asked));
        thread::spawn(move || copy(from, to, is_answer, &is_asked, &shared));
    }
}

/// `is_asked` tells that a request of the connection held the text that a fault waits for.
fn copy(mut from: TcpStream, mut to: TcpStream, is_answer: bool, is_asked: &AtomicBool, shared: &Shared) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let fault = *lock(&shared.fault);
        let is_lost = match fault {
            Fault::None => false,
            Fault::AnswersLost => is_answer,
            Fault::AnswersLostFrom(text) => {
                if !is_answer && buffer[..count].windows(text.len()).any(|part| part == text.as_bytes()) {
                    is_asked.store(true, Ordering::Release);
                }
                is_answer && is_asked.load(Ordering::Acquire)
            }
            Fault::Silence => true,
            Fault::AnswersLate(delay) => {
                if is_answer {
                    thread::sleep(delay);
                    shared.hits.fetch_add(1, Ordering::Relaxed);
                }
                false
            }
        };
        if is_lost {
            shared.hits.fetch_add(1, Ordering::Relaxed);
        } else if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        let _closed_already = stream.shutdown(Shutdown::Both);
    }
}
