//! Follows a path through directories and their shards.

use bytes::Bytes;

use crate::unixfs::decode::{DecodeError, Decoded, decode};
use crate::unixfs::{AnyCid, Multihash};

use super::reply::Failure;
use super::request::ContentRequest;
use super::{Shared, SharedError};

/// Where a path leads.
pub(super) struct Found {
    /// Every node on the way, from the root, without the one it ends at.
    pub(super) way: Vec<(AnyCid, Bytes)>,
    /// The CID of each name's entry, the root first.
    pub(super) roots: Vec<AnyCid>,
    /// Where it ends; it has not been looked at.
    pub(super) end: AnyCid,
}

/// Reads the node that `cid` names, wherever its bytes are.
pub(super) async fn node(shared: &dyn Shared, cid: &AnyCid) -> Result<Option<Bytes>, SharedError> {
    match (cid.multihash(), cid.codec()) {
        (Multihash::Identity(content), _) => Ok(Some(Bytes::copy_from_slice(content))),
        (Multihash::Sha2_256(digest), Some(_)) => shared.node(*digest).await,
        _ => Ok(None),
    }
}

/// Returns the length of the node that `cid` names.
pub(super) async fn len(shared: &dyn Shared, cid: &AnyCid) -> Result<Option<u64>, SharedError> {
    match (cid.multihash(), cid.codec()) {
        (Multihash::Identity(content), _) => Ok(Some(content.len() as u64)),
        (Multihash::Sha2_256(digest), Some(_)) => shared.node_len(*digest).await,
        _ => Ok(None),
    }
}

/// Follows the path of a request. A symlink on the way is not followed: that is the reader's to do.
pub(super) async fn resolve(
    shared: &dyn Shared,
    request: &ContentRequest,
) -> Result<Found, Failure> {
    let mut found = Found {
        way: Vec::new(),
        roots: vec![request.root.clone()],
        end: request.root.clone(),
    };
    for name in &request.segments {
        let mut depth = 0;
        loop {
            let bytes = node(shared, &found.end).await?.ok_or(Failure::NotFound)?;
            let next = match decode(&found.end, &bytes)? {
                Decoded::Directory(entries) => entries
                    .into_iter()
                    .find(|entry| entry.name == *name)
                    .map(|entry| (entry.cid, true)),
                Decoded::Shard(shard) => {
                    let slot = shard.lookup(name, depth)?;
                    slot.map(|slot| (slot.cid.clone(), slot.name.is_some()))
                }
                Decoded::File(_) | Decoded::Symlink(_) => None,
            };
            let (cid, arrived) = next.ok_or(Failure::NotFound)?;
            found
                .way
                .push((std::mem::replace(&mut found.end, cid), bytes));
            if arrived {
                break;
            }
            depth += 1;
        }
        found.roots.push(found.end.clone());
    }
    Ok(found)
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        match error {
            // Somebody else's data; whoever wants it has to take the blocks one by one.
            DecodeError::UnknownCodec(_) => Failure::NotFound,
            error => Failure::Failed(error.to_string()),
        }
    }
}
