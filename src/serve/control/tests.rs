//! The protocol over socket pairs, with a handler that does what the test wants.

use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::server::{Peer, serve_peer};
use super::*;

/// Chunks of the flood, and the bytes of each: more than any socket's buffer holds.
const FLOOD: usize = 64;
const CHUNK: usize = 1 << 20;

#[derive(Default)]
struct Fake {
    sent: AtomicUsize,
    started: Notify,
    dropped: Arc<Notify>,
}

struct TellsDrop(Arc<Notify>);

impl Drop for TellsDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[async_trait]
impl Handler for Fake {
    async fn handle(
        &self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        replies: &Replies,
    ) -> Result<Value, Failure> {
        match request {
            Request::Status => Ok(json!("status")),
            Request::List { .. } => {
                for number in 0..1000 {
                    replies.item(&number).await?;
                }
                Ok(json!(1000))
            }
            Request::Read { .. } => {
                for _ in 0..FLOOD {
                    replies.data(Bytes::from(vec![7; CHUNK])).await?;
                    self.sent.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Value::Null)
            }
            Request::PublishPrepare { .. } => {
                let mut texts = Vec::new();
                for descriptor in descriptors {
                    let mut text = String::new();
                    std::fs::File::from(descriptor)
                        .read_to_string(&mut text)
                        .map_err(Failure::failed)?;
                    texts.push(text);
                }
                Ok(json!(texts))
            }
            Request::Warm { .. } => {
                let _guard = TellsDrop(Arc::clone(&self.dropped));
                self.started.notify_one();
                for _ in 0..10_000 {
                    // Nobody reads these: they must not make the work wait.
                    replies.progress(Progress::default());
                }
                std::future::pending().await
            }
            _ => Err(Failure::new(FailureKind::NotFound, "no such thing").hint("look elsewhere")),
        }
    }
}

/// A runtime, a handler, and as many connections to it as a test wants.
struct Setup {
    runtime: Runtime,
    fake: Arc<Fake>,
}

impl Setup {
    fn new() -> Setup {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Setup {
            runtime,
            fake: Arc::default(),
        }
    }

    fn socket(&self, uid: u32) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let handler = Arc::clone(&self.fake) as Arc<dyn Handler>;
        self.runtime.spawn(async move {
            let stream = tokio::net::UnixStream::from_std(theirs).unwrap();
            let _ = serve_peer(stream, Peer { uid }, handler).await;
        });
        ours
    }

    fn client(&self) -> Client {
        Client::over(self.socket(own_uid()))
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn ask(client: Client, request: &Request) -> Result<Value, ClientError> {
    client.ask(request, &[], &mut |_| Ok(()))
}

fn read() -> Request {
    Request::Read {
        target: "p/f".into(),
        offset: 0,
        len: None,
    }
}

#[test]
fn items_come_in_order_and_then_the_result() {
    let setup = Setup::new();
    let mut numbers = Vec::new();
    let list = Request::List {
        package: None,
        all: false,
    };
    let result = setup.client().ask(&list, &[], &mut |reply| {
        if let Reply::Event(Event::Item(item)) = reply {
            numbers.push(item.as_u64().unwrap());
        }
        Ok(())
    });
    assert_eq!(result.unwrap(), json!(1000));
    assert!(numbers.into_iter().eq(0..1000));
    let status: String = setup.client().get(&Request::Status).unwrap();
    assert_eq!(status, "status");
}

#[test]
fn a_failure_comes_with_its_kind_and_hint() {
    let setup = Setup::new();
    match ask(setup.client(), &Request::Stop) {
        Err(ClientError::Failed(failure)) => {
            assert_eq!(failure.kind.exit_code(), 3);
            assert_eq!(failure.hint.as_deref(), Some("look elsewhere"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn descriptors_arrive_open_and_in_order() {
    let setup = Setup::new();
    let file = |text: &str| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    };
    let (one, two) = (file("one"), file("two"));
    let request = Request::PublishPrepare {
        options: Box::new(PublishOptions {
            // Longer than one read of the head: the descriptors come with its first byte.
            description: Some("d".repeat(300_000)),
            ..PublishOptions::default()
        }),
    };
    let texts = setup
        .client()
        .ask(&request, &[one.as_fd(), two.as_fd()], &mut |_| Ok(()));
    assert_eq!(texts.unwrap(), json!(["one", "two"]));
    let three = [one.as_fd(), two.as_fd(), one.as_fd()];
    let refused = setup.client().ask(&request, &three, &mut |_| Ok(()));
    assert!(matches!(refused, Err(ClientError::Lost(_))), "{refused:?}");
}

#[test]
fn a_client_that_leaves_cancels_what_it_asked_for() {
    let setup = Setup::new();
    let socket = setup.socket(own_uid());
    let request = Request::Warm { targets: vec![] };
    let payload = serde_json::to_vec(&request).unwrap();
    wire::send_first(socket.as_fd(), &payload, &[]).unwrap();
    setup.runtime.block_on(setup.fake.started.notified());
    drop(socket);
    setup.runtime.block_on(setup.fake.dropped.notified());
}

#[test]
fn a_slow_client_slows_the_handler_and_gets_every_byte() {
    let setup = Setup::new();
    let mut received = 0;
    let result = setup.client().ask(&read(), &[], &mut |reply| {
        let Reply::Data(bytes) = reply else {
            panic!("only data was sent")
        };
        assert!(bytes.iter().all(|byte| *byte == 7));
        received += bytes.len();
        // Ahead of us are what waits in the channel, in the socket, and one chunk on each side of both.
        let ahead = setup.fake.sent.load(Ordering::Relaxed) - received / CHUNK;
        assert!(ahead < 10, "the handler is {ahead} chunks ahead");
        Ok(())
    });
    result.unwrap();
    assert_eq!(received, FLOOD * CHUNK);
}

#[test]
fn an_output_that_fails_ends_the_request() {
    let setup = Setup::new();
    let broken = setup.client().ask(&read(), &[], &mut |_| {
        Err(std::io::ErrorKind::BrokenPipe.into())
    });
    assert!(
        matches!(&broken, Err(ClientError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe),
        "{broken:?}"
    );
}

#[test]
fn other_users_get_what_is_harmless_and_nothing_else() {
    let setup = Setup::new();
    let stranger = if own_uid() == 65_534 { 65_533 } else { 65_534 };
    let refused = [
        read(),
        Request::Ls {
            target: "p".into(),
            recursive: false,
        },
        Request::Warm { targets: vec![] },
        Request::Stop,
        Request::Reload,
        Request::PublishCancel { job: "j".into() },
        Request::Sums { target: "p".into() },
    ];
    for request in refused {
        let answer = ask(Client::over(setup.socket(stranger)), &request);
        match answer {
            Err(ClientError::Failed(failure)) => {
                assert_eq!(failure.kind, FailureKind::Refused, "{request:?}");
            }
            other => panic!("{request:?}: {other:?}"),
        }
    }
    let harmless = ask(Client::over(setup.socket(stranger)), &Request::Status);
    assert_eq!(harmless.unwrap(), json!("status"));
    let root = ask(Client::over(setup.socket(0)), &read());
    assert!(root.is_ok());
}

/// Sends bytes as they are, and returns the failure that comes back, if one does.
fn raw(setup: &Setup, bytes: &[u8]) -> Option<String> {
    let mut socket = setup.socket(own_uid());
    socket.write_all(bytes).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    // A reset is a refusal too.
    let _ = socket.read_to_end(&mut answer);
    (answer.len() > wire::HEAD_BYTES)
        .then(|| String::from_utf8(answer[wire::HEAD_BYTES..].to_vec()).unwrap())
}

#[test]
fn what_is_no_request_is_refused() {
    let setup = Setup::new();
    let frame = |kind: u8, payload: &[u8]| {
        let len = u32::try_from(payload.len()).unwrap();
        [&len.to_le_bytes()[..], &[kind], payload].concat()
    };
    let too_long = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_le_bytes();
    for silent in [
        Vec::new(),
        vec![1, 0],
        frame(1, b"data first"),
        frame(2, b"{}"),
        [&too_long[..], &[0]].concat(),
        frame(0, br#"{"request":"status"}"#)[..12].to_vec(),
    ] {
        assert_eq!(raw(&setup, &silent), None, "{silent:?}");
    }
    for unknown in [
        r#"{"request":"format-the-disk"}"#,
        r#"{"request":"ls","target":"p"}"#,
        r#"{"request":"warm","targets":[],"surprise":1}"#,
        "nonsense",
        "",
    ] {
        let answer = raw(&setup, &frame(0, unknown.as_bytes())).unwrap_or_default();
        assert!(
            answer.contains("does not know this request"),
            "{unknown}: {answer:?}"
        );
    }
}

#[test]
fn a_daemon_that_dies_is_said_to_have_gone_away() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let lost = ask(Client::over(ours), &Request::Status);
    assert!(matches!(lost, Err(ClientError::Lost(_))), "{lost:?}");
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&[9, 0, 0, 0, 0, b'{']).unwrap();
    drop(theirs);
    let lost = ask(Client::over(ours), &Request::Status);
    assert!(matches!(lost, Err(ClientError::Lost(_))), "{lost:?}");
}

#[test]
fn a_home_may_lie_deeper_than_a_socket_path_is_long() {
    let setup = Setup::new();
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(200));
    std::fs::create_dir(&deep).unwrap();
    let socket = deep.join("control");
    assert!(matches!(
        Client::connect(&socket),
        Err(ClientError::NoDaemon(_))
    ));
    let listener = bind(&socket).unwrap();
    assert!(socket.exists());
    listener.set_nonblocking(true).unwrap();
    let handler = Arc::clone(&setup.fake) as Arc<dyn Handler>;
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    let serving = setup.runtime.spawn(async move {
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let tasks = tokio_util::task::TaskTracker::new();
        serve(listener, handler, tasks, async move {
            stopped.notified().await;
        })
        .await;
    });
    let status: String = Client::connect(&socket)
        .unwrap()
        .get(&Request::Status)
        .unwrap();
    assert_eq!(status, "status");
    stop.notify_one();
    setup.runtime.block_on(serving).unwrap();
    assert!(matches!(
        Client::connect(&socket),
        Err(ClientError::NoDaemon(_))
    ));
}
