//! A line of a known rate: whatever comes back over any of its connections takes its turn.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes that take their turn at once.
const PART: usize = 16 << 10;

/// Debt below this is not waited for: a thread cannot wait so shortly.
const SHORT: Duration = Duration::from_millis(5);

/// Forwards TCP connections to a server, all its answers together at no more than a rate.
pub(crate) struct Throttle {
    address: SocketAddr,
}

struct Line {
    bytes_per_second: f64,
    free: Mutex<Instant>,
}

impl Line {
    /// Waits until the line has taken so many bytes.
    fn pay(&self, bytes: usize) {
        let until = {
            let mut free = self.free.lock().unwrap();
            let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
            *free = Instant::now().max(*free) + takes;
            *free
        };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left < SHORT {
                return;
            }
            // The rate is what this is for; it returns early at most.
            std::thread::park_timeout(left);
        }
    }
}

impl Throttle {
    /// Listens on a free port of loopback. `target` is an address such as `127.0.0.1:8420`.
    pub(crate) fn new(target: &str, bytes_per_second: u64) -> Throttle {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let target = target.to_owned();
        let line = Arc::new(Line {
            bytes_per_second: bytes_per_second as f64,
            free: Mutex::new(Instant::now()),
        });
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&target) else {
                    continue;
                };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let pair = client
                    .try_clone()
                    .and_then(|c| Ok((c, server.try_clone()?)));
                let Ok((from, to)) = pair else { continue };
                std::thread::spawn(move || forward(from, to, None));
                let line = Arc::clone(&line);
                std::thread::spawn(move || forward(server, client, Some(&line)));
            }
        });
        Throttle { address }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, line: Option<&Line>) {
    let mut buffer = vec![0; PART];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if let Some(line) = line {
            line.pay(read);
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}
