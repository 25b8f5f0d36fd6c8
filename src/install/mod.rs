//! Versions made visible.
//!
//! A version is *listed* from its manifest alone ([`Listed`], in [`Names`]) and *installed* once its whole catalog is in
//! the store and valid ([`Tree`], by the [`Installer`]). [`Updater`] carries envelopes from registries through the trust
//! policy into the [`Listing`]; nothing else lists anything, also on the machine that published it.

mod index;
mod installer;
mod listed;
mod listing;
mod names;
mod pages;
mod tree;
mod update;

pub use index::{CATALOG_ROW, IndexingError, index_version};
pub use installer::{InstallError, Installer};
pub use listed::{Hints, Listed};
pub use listing::{Change, Listing, Refusal};
pub use names::{Child, Directory, DirectoryId, LATEST, Names, ROOT};
pub use pages::PageCache;
pub use tree::{StoredCatalog, Tree, catalog_file, catalog_want, torrent_layout, want_of};
pub use update::{UpdateError, Updater};
