//! Frames: a length of four bytes (little-endian), a kind, the payload. Descriptors come with the first one.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Bytes of a payload at most: a block, and room for the signed envelopes of a publication.
pub const FRAME_BYTES_MAX: usize = 10 << 20;

/// Descriptors that may come with a request.
const DESCRIPTORS_MAX: usize = 2;

/// Bytes before a payload.
pub(super) const HEAD_BYTES: usize = 5;

/// What a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// JSON.
    Message,
    /// Bytes of a file.
    Data,
}

/// Encodes the head of a frame.
pub(super) fn head(kind: Kind, len: usize) -> io::Result<[u8; HEAD_BYTES]> {
    let len = u32::try_from(len)
        .ok()
        .filter(|len| *len as usize <= FRAME_BYTES_MAX);
    let len =
        len.ok_or_else(|| io::Error::other("a message is too long for the control socket"))?;
    let [a, b, c, d] = len.to_le_bytes();
    Ok([a, b, c, d, if kind == Kind::Message { 0 } else { 1 }])
}

/// Decodes the head of a frame.
pub(super) fn parse_head(head: [u8; HEAD_BYTES]) -> io::Result<(Kind, usize)> {
    let [a, b, c, d, kind] = head;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    let kind = match kind {
        0 => Kind::Message,
        1 => Kind::Data,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    if len > FRAME_BYTES_MAX {
        Err(io::ErrorKind::InvalidData.into())
    } else {
        Ok((kind, len))
    }
}

/// Sends a frame with descriptors. Blocking.
pub(super) fn send_first(
    socket: BorrowedFd<'_>,
    payload: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut bytes = head(Kind::Message, payload.len())?.to_vec();
    bytes.extend_from_slice(payload);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // Asked by number too: the buffer's padding may have room for one more.
    if descriptors.len() > DESCRIPTORS_MAX
        || !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors))
    {
        return Err(io::Error::other("too many descriptors"));
    }
    let mut sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    while sent < bytes.len() {
        sent += rustix::net::send(socket, &bytes[sent..], SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Receives the first frame, and the descriptors that come with it.
pub(super) async fn receive_first(stream: &mut UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut descriptors = Vec::new();
    let mut start = [0; HEAD_BYTES];
    let mut have = 0;
    while have < HEAD_BYTES {
        let (count, mut more) = stream
            .async_io(Interest::READABLE, || {
                receive(stream.as_fd(), &mut start[have..])
            })
            .await?;
        descriptors.append(&mut more);
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        have += count;
    }
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (Kind::Message, len) = parse_head(start)? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let mut payload = vec![0; len];
    stream.read_exact(&mut payload).await?;
    Ok((payload, descriptors))
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    Ok((received.bytes, descriptors.collect()))
}

/// Sends a frame.
pub(super) async fn send(
    stream: &mut (impl AsyncWriteExt + Unpin),
    kind: Kind,
    payload: &[u8],
) -> io::Result<()> {
    stream.write_all(&head(kind, payload.len())?).await?;
    stream.write_all(payload).await
}
