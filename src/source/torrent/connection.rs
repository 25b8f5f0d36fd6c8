//! One TCP connection to a peer, from dialling to its end: bytes in, bytes out.
//!
//! Reading and writing go on side by side, so a peer that does not read cannot keep us from hearing it. What is heard goes
//! to the swarm's [`State`](super::state::State) at once; what there is to say is asked of it whenever the last words have
//! mostly been sent.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::book::{Blame, Peer};
use super::link::Doom;
use super::swarm::Swarm;
use super::wire;
use crate::torrent::{HANDSHAKE_BYTES, handshake};

/// Bytes that are read at once, and kept of an unfinished message.
const INBOX_BYTES: usize = 128 << 10;

/// No more requests are written while so many bytes wait to be sent: the peer does not read.
const OUTBOX_BYTES: usize = 32 << 10;

/// Peers close a connection that was silent for two minutes.
const ALIVE: Duration = Duration::from_secs(90);

/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Dials `peer` and talks with it until one of the two has enough.
pub(super) async fn run(swarm: &Arc<Swarm>, id: u64, peer: &Peer, wake: &Notify) -> Doom {
    let patience = swarm.patience();
    let dialled = match timeout(patience.connect, dial(swarm, peer)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Doom(Blame::Failure, why),
        Err(_) => return Doom(Blame::Failure, "no connection in time".to_owned()),
    };
    let mut stream = dialled;
    let mut outbox = BytesMut::new();
    match timeout(patience.handshake, shake_hands(swarm, &mut stream)).await {
        Ok(Ok(extended)) => {
            if extended {
                wire::say_hello(&mut outbox);
            }
        }
        Ok(Err(doom)) => return doom,
        Err(_) => return Doom(Blame::Failure, "no handshake in time".to_owned()),
    }
    wire::say_interested(&mut outbox);
    swarm.state().open(id, Instant::now());
    talk(swarm, id, wake, stream, outbox).await
}

async fn dial(swarm: &Swarm, peer: &Peer) -> Result<TcpStream, String> {
    let addresses: Vec<SocketAddr> = match peer.parse::<SocketAddr>() {
        Ok(address) => {
            // Also of configured peers: the client's filter lets through what the configuration names.
            let allowed = swarm.client().filter().dial(address);
            allowed.map_err(|error| error.to_string())?;
            vec![address]
        }
        // Only the configuration names peers by name, and so vouches for what the name leads to.
        Err(_) => {
            let found = tokio::net::lookup_host(&**peer).await;
            let found = found.map_err(|error| error.to_string())?;
            found.take(ADDRESSES_MAX).collect()
        }
    };
    let mut why = "the name has no address".to_owned();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Requests are small, and somebody waits for each.
                stream
                    .set_nodelay(true)
                    .map_err(|error| error.to_string())?;
                return Ok(stream);
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// Returns whether the peer knows extensions.
async fn shake_hands(swarm: &Swarm, stream: &mut TcpStream) -> Result<bool, Doom> {
    let gone = |error: std::io::Error| Doom(Blame::Failure, format!("no handshake ({error})"));
    let ours = handshake(swarm.info_hash(), swarm.peer_id());
    stream.write_all(&ours).await.map_err(gone)?;
    let mut theirs = [0; HANDSHAKE_BYTES];
    stream.read_exact(&mut theirs).await.map_err(gone)?;
    wire::judge_handshake(&theirs, swarm.info_hash())
        .map_err(|broken| Doom(Blame::Misdeed, broken.to_string()))
}

async fn talk(
    swarm: &Swarm,
    id: u64,
    wake: &Notify,
    mut stream: TcpStream,
    mut outbox: BytesMut,
) -> Doom {
    let (mut reader, mut writer) = stream.split();
    let mut inbox = BytesMut::with_capacity(INBOX_BYTES);
    let mut said = Instant::now();
    loop {
        if outbox.len() < OUTBOX_BYTES
            && let Err(doom) = swarm.state().fill(id, &mut outbox, Instant::now())
        {
            return doom;
        }
        if outbox.is_empty() && said.elapsed() >= ALIVE {
            wire::say_alive(&mut outbox);
        }
        inbox.reserve(INBOX_BYTES / 2);
        tokio::select! {
            biased;
            sent = writer.write_buf(&mut outbox), if !outbox.is_empty() => match sent {
                Ok(_) => said = Instant::now(),
                Err(error) => return Doom(Blame::Failure, error.to_string()),
            },
            read = reader.read_buf(&mut inbox) => {
                let read = match read {
                    Ok(0) => return Doom(Blame::Failure, "it hung up".to_owned()),
                    Ok(read) => read,
                    Err(error) => return Doom(Blame::Failure, error.to_string()),
                };
                if let Err(why) = hear_all(swarm, id, &mut inbox) {
                    return Doom(Blame::Misdeed, why);
                }
                acknowledge(reader.as_ref());
                swarm.client().pay(read as u64).await;
            }
            () = wake.notified() => {}
            () = sleep_until(said + ALIVE), if outbox.is_empty() => {}
        }
    }
}

/// Acknowledges what came at once. A peer that does not set TCP_NODELAY (libtorrent) holds the end of an answer back until
/// then, and the kernel would wait 40 ms for something to send along. The kernel forgets this wish, so it is told anew.
fn acknowledge(stream: &TcpStream) {
    // Without it everything is only slower.
    let _ = rustix::net::sockopt::set_tcp_quickack(stream, true);
}

/// Takes all whole messages out of `inbox`.
fn hear_all(swarm: &Swarm, id: u64, inbox: &mut BytesMut) -> Result<(), String> {
    let now = Instant::now();
    let mut state = swarm.state();
    loop {
        match wire::hear(inbox) {
            Ok(None) => return Ok(()),
            Ok(Some((heard, used))) => {
                let told = state.hear(id, heard, now);
                told.map_err(|misdeed| misdeed.to_string())?;
                inbox.advance(used);
            }
            Err(broken) => return Err(broken.to_string()),
        }
    }
}
