//! A read fetches the blocks it touches, and looking at names fetches nothing: counted at the source.

use std::os::unix::fs::FileExt;

use crate::machine::{Home, count, noise, sh};
use crate::proxy::Proxy;

/// A reader that sees a publisher only through a counting proxy.
fn through_a_proxy(publisher: &mut Home) -> (Home, Proxy) {
    let proxy = Proxy::new(&publisher.serve());
    let reader = Home::new();
    reader.follow(publisher, &proxy.url());
    (reader, proxy)
}

#[test]
fn a_read_in_the_middle_of_a_large_file_fetches_one_block() {
    let size = count("MiB of the large file", 64, 1024) << 20;
    let source = tempfile::tempdir().unwrap();
    let content = noise(7, size);
    std::fs::write(source.path().join("large"), &content).unwrap();
    let mut publisher = Home::new();
    publisher.publish(source.path(), "large", "1.0.0");
    let (mut reader, proxy) = through_a_proxy(&mut publisher);
    let version = reader.mount().join("large/1.0.0");
    // Installs the version.
    assert_eq!(std::fs::read_dir(&version).unwrap().count(), 1);
    let before = (proxy.block_requests(), proxy.bytes());
    let file = std::fs::File::open(version.join("large")).unwrap();
    // As a random reader says; without it the kernel's own readahead may reach into the next block.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut part = vec![0; 64 << 10];
    let middle = size / 2 + (300 << 10);
    file.read_exact_at(&mut part, middle as u64).unwrap();
    assert_eq!(part, content[middle..middle + part.len()]);
    assert_eq!(
        proxy.block_requests() - before.0,
        1,
        "{:?}",
        proxy.requests()
    );
    assert!(
        proxy.bytes() - before.1 < (1 << 20) + 4096,
        "{} bytes",
        proxy.bytes() - before.1
    );
}

#[test]
fn listing_an_installed_version_fetches_nothing() {
    let source = tempfile::tempdir().unwrap();
    for directory in 0..20 {
        std::fs::create_dir(source.path().join(format!("d{directory}"))).unwrap();
        for file in 0..50 {
            std::fs::write(
                source.path().join(format!("d{directory}/f{file}")),
                format!("{directory} {file}"),
            )
            .unwrap();
        }
    }
    let mut publisher = Home::new();
    publisher.publish(source.path(), "many", "1.0.0");
    let (mut reader, proxy) = through_a_proxy(&mut publisher);
    let mountpoint = reader.mount();
    assert_eq!(
        sh("ls \"$1\"", &[&mountpoint.join("many")]),
        "1.0.0\nlatest\n"
    );
    assert_eq!(
        proxy.block_requests(),
        0,
        "listing versions needs no catalog"
    );
    let version = mountpoint.join("many/1.0.0");
    sh("ls \"$1\"", &[&version]);
    let installed = proxy.block_requests();
    assert_eq!(
        installed,
        1,
        "entering fetches the catalog: {:?}",
        proxy.requests()
    );
    assert_eq!(
        sh("find \"$1\" -type f | wc -l", &[&version]).trim(),
        "1000"
    );
    sh("ls -lR \"$1\"", &[&version]);
    assert_eq!(proxy.block_requests(), installed, "{:?}", proxy.requests());
}
