//! The library without a mount: the example, as a test.

use crate::machine::{Home, noise};

#[path = "../../examples/read.rs"]
mod read;

#[tokio::test]
async fn a_program_reads_a_part_of_a_file_without_a_mount() {
    let source = tempfile::tempdir().unwrap();
    let content = noise(5, 3 << 20);
    std::fs::write(source.path().join("large"), &content).unwrap();
    std::os::unix::fs::symlink("large", source.path().join("link")).unwrap();
    let mut publisher = Home::new();
    publisher.publish(source.path(), "acme/data", "1.0.0");
    let url = publisher.serve();
    let reader = Home::new();
    reader.follow(&publisher, &url);
    reader.wait_for("the package", |home| {
        home.run(&["list"]).contains("acme/data@1.0.0")
    });
    let page = read::first_page(reader.path(), "acme/data/large")
        .await
        .unwrap();
    assert_eq!(page, content[..4096]);
    let missing = read::first_page(reader.path(), "acme/data/small")
        .await
        .unwrap_err();
    assert!(missing.message.contains("small"), "{}", missing.message);

    // Spans over the ends of blocks and of the file, through a link.
    let paths = manifs::config::Paths::below(reader.path());
    let home = manifs::daemon::Home::open(paths, manifs::config::Config::default())
        .await
        .unwrap();
    home.look().await.unwrap();
    let (mib, end) = (1 << 20, 3 << 20);
    for (from, to) in [
        (mib - 1, mib + 1),
        (0, end),
        (end - 1, end + 9),
        (end, end),
        (9 * end, 10 * end),
        (5, 5),
    ] {
        let got = home
            .read_range("acme/data@1.0.0/link", from..to)
            .await
            .unwrap();
        let span = from.min(end) as usize..to.min(end) as usize;
        assert!(got == content[span], "{from}..{to}: {} bytes", got.len());
    }
    home.close().await;
}
