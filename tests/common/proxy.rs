//! A counting proxy between a reader and a publisher: what was really asked of the source. It can also play dead.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Forwards every connection to `target`, and remembers the requests.
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    requests: Mutex<Vec<String>>,
    body_bytes: AtomicU64,
    /// Accepts, reads, and never answers.
    hanging: AtomicBool,
    /// Refuses: closes each connection at once.
    dead: AtomicBool,
}

impl Proxy {
    /// Starts a proxy on a free port of loopback. `target` is an URL such as `http://127.0.0.1:8420`.
    pub(crate) fn new(target: &str) -> Proxy {
        let target = target
            .strip_prefix("http://")
            .expect("an http URL")
            .to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (target, state) = (target.clone(), Arc::clone(&shared));
                std::thread::spawn(move || forward(client, &target, &state));
            }
        });
        Proxy { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the first lines of the requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Returns how many blocks were asked for so far.
    pub(crate) fn block_requests(&self) -> usize {
        self.requests()
            .iter()
            .filter(|line| line.starts_with("GET /ipfs/"))
            .count()
    }

    /// Returns the bytes that went to the reader so far, heads included.
    pub(crate) fn bytes(&self) -> u64 {
        self.state.body_bytes.load(Ordering::SeqCst)
    }

    /// From now on accepts, reads, and never answers; open connections too.
    pub(crate) fn hang(&self) {
        self.state.hanging.store(true, Ordering::SeqCst);
    }

    /// From now on closes every connection.
    pub(crate) fn die(&self) {
        self.state.dead.store(true, Ordering::SeqCst);
    }

    /// Forwards again.
    pub(crate) fn revive(&self) {
        self.state.dead.store(false, Ordering::SeqCst);
        self.state.hanging.store(false, Ordering::SeqCst);
    }
}

fn forward(mut client: TcpStream, target: &str, state: &Arc<State>) {
    if state.dead.load(Ordering::SeqCst) {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target) else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (Ok(mut back), Ok(mut answers)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    let shared = Arc::clone(state);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 18];
        while let Ok(count @ 1..) = answers.read(&mut buffer) {
            if shared.dead.load(Ordering::SeqCst) {
                break;
            }
            shared.body_bytes.fetch_add(count as u64, Ordering::SeqCst);
            if back.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut head = Vec::new();
    let mut buffer = vec![0; 1 << 14];
    while let Ok(count @ 1..) = client.read(&mut buffer) {
        if state.dead.load(Ordering::SeqCst) {
            break;
        }
        head.extend_from_slice(&buffer[..count]);
        while let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            let line = String::from_utf8_lossy(&head[..end])
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned();
            state.requests.lock().unwrap().push(line);
            head.drain(..end + 4);
        }
        if state.hanging.load(Ordering::SeqCst) {
            // Swallowed: the reader waits until its own deadline.
            continue;
        }
        if server.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}
