//! The distributed hash table of libtorrent on loopback: no tracker, no address of a peer in any configuration.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::clients::{Here, LibTorrent, What, installed, make_torrent};
use crate::kubo::assert_same;
use crate::machine::free_port;
use crate::peers::{publish, read_by};

/// What a node says when somebody has announced himself to it.
const ANNOUNCED: &str = "incoming dht announce";

/// A node of libtorrent's, which works on something else.
struct Node {
    client: LibTorrent,
    _files: TempDir,
}

impl Node {
    fn start() -> Node {
        let files = tempfile::tempdir().unwrap();
        let tree = files.path().join("something else");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), "text").unwrap();
        let torrent = files.path().join("torrent");
        make_torrent(&tree, &torrent, &[]);
        let (what, dht) = (What::File(&torrent), json!({"dht": []}));
        let client = LibTorrent::start_with(&Here, what, files.path(), &[], &dht);
        Node {
            client,
            _files: files,
        }
    }

    /// Starts a client that knows nothing but this node.
    fn client(&self, torrent: &Path, directory: &Path) -> LibTorrent {
        let more = json!({"dht": [self.client.address.to_string()], "no_trackers": true});
        LibTorrent::start_with(&Here, What::File(torrent), directory, &[], &more)
    }

    fn config(&self) -> String {
        format!(
            "[torrent]\nlisten = \"127.0.0.1:{}\"\ndht = true\ndht_bootstrap = [\"{}\"]\n\
             [net]\nallow = [\"127.0.0.1\"]\n",
            free_port(),
            self.client.address
        )
    }
}

#[test]
fn a_package_is_read_from_a_seed_that_only_the_hash_table_knows() {
    if !installed("a_package_is_read_from_a_seed_that_only_the_hash_table_knows") {
        return;
    }
    let published = publish();
    let mut node = Node::start();
    let mut seed = node.client(&published.torrent, published.mirror.path());
    seed.wait();
    node.client.wait_for_word(ANNOUNCED);
    read_by(&published, &node.config(), seed.address, "libtorrent");
}

#[test]
fn libtorrent_finds_a_seed_of_ours_by_the_hash_table_alone() {
    if !installed("libtorrent_finds_a_seed_of_ours_by_the_hash_table_alone") {
        return;
    }
    let mut published = publish();
    let mut node = Node::start();
    published.home.config(&node.config());
    published.home.start_daemon();
    node.client.wait_for_word(ANNOUNCED);
    let download = tempfile::tempdir().unwrap();
    let mut client = node.client(&published.torrent, download.path());
    client.wait();
    let came = download.path().join("acme-tools-1.0.0");
    assert!(came.join(".manifs/catalog").is_file());
    std::fs::remove_dir_all(came.join(".manifs")).unwrap();
    assert_same(published.source.path(), &came);
}
