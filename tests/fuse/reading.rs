//! The whole way: publish in one home, serve, mount in another, read.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::machine::{Home, noise, sh};

/// A small tree with one of everything.
fn tree(at: &Path) {
    std::fs::create_dir_all(at.join("bin/deep")).unwrap();
    std::fs::write(at.join("hello.txt"), "hello world\n").unwrap();
    std::fs::write(at.join("empty"), "").unwrap();
    std::fs::write(at.join("bin/tool"), "#!/bin/sh\necho tool\n").unwrap();
    std::fs::set_permissions(at.join("bin/tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(at.join("bin/deep/large"), noise(1, 3 << 20 | 17)).unwrap();
    std::fs::write(at.join("name with spaces and \u{e9}"), "x").unwrap();
    symlink("hello.txt", at.join("link")).unwrap();
    symlink("../hello.txt", at.join("bin/up")).unwrap();
}

#[test]
fn a_published_tree_is_the_same_through_another_homes_mount() {
    let source = tempfile::tempdir().unwrap();
    tree(source.path());
    let mut publisher = Home::new();
    publisher.publish(source.path(), "acme/tools", "1.0.0");
    let url = publisher.serve();
    let mut reader = Home::new();
    reader.follow(&publisher, &url);
    let mountpoint = reader.mount();
    let version = mountpoint.join("acme/tools/1.0.0");
    let listed = sh("ls \"$1\"", &[&mountpoint.join("acme/tools")]);
    assert_eq!(listed.lines().collect::<Vec<_>>(), ["1.0.0", "latest"]);
    sh(
        "diff -r --no-dereference \"$1\" \"$2\"",
        &[source.path(), &version],
    );
    let copy = reader.path().join("copy");
    sh(
        "cp -a \"$1\" \"$2\" && diff -r --no-dereference \"$1\" \"$2\"",
        &[&version, &copy],
    );
    let metadata = std::fs::symlink_metadata(version.join("bin/tool")).unwrap();
    assert_eq!(
        (
            metadata.mode() & 0o7777,
            metadata.nlink(),
            metadata.blksize()
        ),
        (0o755, 1, 1 << 20)
    );
    assert_eq!(
        metadata.mtime(),
        std::fs::metadata(source.path().join("bin/tool"))
            .unwrap()
            .mtime()
    );
    assert_eq!(sh("\"$1\"", &[&version.join("bin/tool")]), "tool\n");
    assert_eq!(
        std::fs::read_link(mountpoint.join("acme/tools/latest")).unwrap(),
        Path::new("1.0.0")
    );
    assert_eq!(
        std::fs::read(mountpoint.join("acme/tools/latest/link")).unwrap(),
        b"hello world\n"
    );
}
