//! Two gateways, one of them lying, in every way there is: every byte is right all the same.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use crate::common::hostile::{Hostile, Manner};
use crate::machine::{Home, noise, sh};

/// Small files, and a large one; returns their blocks.
fn tree(at: &Path) -> Vec<Bytes> {
    let mut blocks = Vec::new();
    for file in 0..40 {
        let content = noise(file, 1000 + 37 * file as usize);
        std::fs::write(at.join(format!("small-{file}")), &content).unwrap();
        blocks.push(content.into());
    }
    let content = noise(99, 6 << 20 | 5);
    std::fs::write(at.join("large"), &content).unwrap();
    blocks.extend(content.chunks(1 << 20).map(Bytes::copy_from_slice));
    blocks
}

#[test]
fn every_byte_is_right_beside_a_liar() {
    let source = tempfile::tempdir().unwrap();
    let blocks = tree(source.path());
    let mut publisher = Home::new();
    publisher.publish(source.path(), "pkg", "1.0.0");
    let url = publisher.serve();
    let own = [
        Manner::Status(429, "Retry-After: 1\r\n"),
        Manner::Status(404, ""),
        // An address that is neither public nor allowed; who followed would fall to the deadline or the network.
        Manner::Redirect("http://10.0.0.1/ipfs/".into()),
    ];
    let lies = Manner::lies(Duration::from_millis(50));
    for manner in own.into_iter().chain(lies) {
        println!("beside {manner:?}");
        let liar = Hostile::start(manner, &blocks);
        let mut reader = Home::new();
        reader.config(&format!("[sources]\ngateways = [\"{}\"]\n", liar.url()));
        reader.follow(&publisher, &url);
        let version = reader.mount().join("pkg/1.0.0");
        sh("diff -r \"$1\" \"$2\"", &[source.path(), &version]);
        assert!(liar.requests() > 0, "the liar was never asked");
    }
}
