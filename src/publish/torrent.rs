//! The version's torrent, made while its files are read: no byte is read a second time for it.

use std::io;
use std::sync::Arc;

use super::PublishError;
use super::reuse::KnownPieces;
use crate::catalog::Writer;
use crate::torrent::{Info, Layout, NotOffered, Outline, Pieces, TorrentError};

/// A torrent whose pieces are being hashed.
pub(crate) struct Begun {
    outline: Outline,
    pieces: Pieces,
}

/// The torrent of a tree that was read.
pub(crate) struct Torrent {
    pub(crate) info: Info,
    pub(crate) pieces: KnownPieces,
}

/// Lays out the tree that was walked, which says all but the hashes. The tree is called `name`.
pub(crate) fn begin(
    name: &str,
    catalog: &mut Writer,
) -> Result<Result<Begun, NotOffered>, PublishError> {
    let draft = catalog.draft()?;
    let begun = Layout::of(&draft).and_then(|layout| {
        let outline = Outline::new(name, &draft, &layout)?;
        let pieces = Pieces::new(Arc::new(layout));
        Ok(Begun { outline, pieces })
    });
    match begun {
        Ok(begun) => Ok(Ok(begun)),
        Err(TorrentError::NotOffered(reason)) => Ok(Err(reason)),
        Err(TorrentError::Catalog(error)) => Err(error.into()),
        Err(TorrentError::Io(error)) => Err(error.into()),
    }
}

impl Begun {
    /// Returns what takes the bytes.
    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// Ends it, when every byte was taken.
    pub(crate) fn finish(self) -> Result<Torrent, PublishError> {
        let piece_bytes = self.pieces.layout().piece_bytes();
        let hashes = self.pieces.finish();
        let missing = || io::Error::other("a piece of the torrent has no hash");
        let hashes = hashes.ok_or_else(missing)?;
        let info = self.outline.finish(&hashes).ok_or_else(missing)?;
        let pieces = KnownPieces {
            piece_bytes,
            hashes,
        };
        Ok(Torrent { info, pieces })
    }
}
