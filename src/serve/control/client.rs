//! The command's side. Blocking: a command does one thing.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::wire::{self, HEAD_BYTES, Kind};
use super::{Event, Failure, Request, address};

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers on {}", .0.display())]
    NoDaemon(PathBuf),
    /// Somebody else's daemon listens: it is shown nothing, and given no descriptor.
    #[error("the daemon of this home belongs to user {uid}")]
    Foreign {
        /// Whose it is.
        uid: u32,
    },
    /// The daemon said no.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The daemon went away, or does not speak our language.
    #[error("the daemon went away: {0}")]
    Lost(io::Error),
    /// What was done with an answer failed: standard output was closed, a disk was full.
    #[error(transparent)]
    Output(io::Error),
}

/// What comes while a request is worked on.
pub enum Reply {
    /// An event that is not the last.
    Event(Event),
    /// Bytes of a file.
    Data(Vec<u8>),
}

/// A connection to a daemon, or to a handler in this process.
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the daemon that listens on `socket`.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`] when nobody does.
    pub fn connect(socket: &Path) -> Result<Client, ClientError> {
        match address::connect(socket) {
            Ok(stream) => Ok(Client { stream }),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Err(ClientError::NoDaemon(socket.to_path_buf()))
            }
            Err(error) => Err(ClientError::Lost(error)),
        }
    }

    /// Takes one end of a socket pair, whose other end a handler serves.
    pub fn over(stream: UnixStream) -> Client {
        Client { stream }
    }

    /// Sends a request, gives what comes to `visit`, and returns the result.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn ask(
        mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        visit: &mut dyn FnMut(Reply) -> io::Result<()>,
    ) -> Result<Value, ClientError> {
        if !request.is_harmless() {
            self.check_owner()?;
        }
        let payload =
            serde_json::to_vec(request).map_err(|error| ClientError::Lost(error.into()))?;
        wire::send_first(self.stream.as_fd(), &payload, descriptors).map_err(ClientError::Lost)?;
        loop {
            let (kind, payload) = self.receive().map_err(ClientError::Lost)?;
            let reply = match kind {
                Kind::Data => Reply::Data(payload),
                Kind::Message => {
                    match serde_json::from_slice(&payload)
                        .map_err(|error| ClientError::Lost(error.into()))?
                    {
                        Event::Done(value) => return Ok(value),
                        Event::Failed(failure) => return Err(failure.into()),
                        event => Reply::Event(event),
                    }
                }
            };
            visit(reply).map_err(ClientError::Output)?;
        }
    }

    /// Sends a request that has one result of a known form.
    ///
    /// # Errors
    /// [`ClientError`]
    pub fn get<T: DeserializeOwned>(self, request: &Request) -> Result<T, ClientError> {
        let value = self.ask(request, &[], &mut |_| Ok(()))?;
        serde_json::from_value(value).map_err(|error| ClientError::Lost(error.into()))
    }

    /// Root may ask anybody's daemon, and root's daemon may be asked by anybody.
    fn check_owner(&self) -> Result<(), ClientError> {
        let peer = rustix::net::sockopt::socket_peercred(&self.stream);
        let uid = peer
            .map_err(|error| ClientError::Lost(error.into()))?
            .uid
            .as_raw();
        let own = rustix::process::geteuid().as_raw();
        if own == 0 || uid == 0 || uid == own {
            Ok(())
        } else {
            Err(ClientError::Foreign { uid })
        }
    }

    fn receive(&mut self) -> io::Result<(Kind, Vec<u8>)> {
        let mut head = [0; HEAD_BYTES];
        self.stream
            .read_exact(&mut head)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "its log says why"),
                _ => error,
            })?;
        let (kind, len) = wire::parse_head(head)?;
        let mut payload = vec![0; len];
        self.stream.read_exact(&mut payload)?;
        Ok((kind, payload))
    }
}
