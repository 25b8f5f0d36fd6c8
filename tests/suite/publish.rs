//! The steps of a publish: what is signed, when it is visible, and what a crash between two steps leaves.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use manifs::manifest::{Envelope, Signed, TrustError, Version};
use manifs::publish::{Envelopes, Latest, Options, Progress, PublishError};
use manifs::registry::{Place, Registry};
use tempfile::TempDir;

use crate::common::publishing::{self, Fault, Home, failing, tempdir};
use crate::common::signed::{key, package};

fn options(text: &str) -> Options {
    Options::new(package(text))
}

/// A tree with one file that says `text`.
fn tree(text: &str) -> TempDir {
    let dir = tempdir();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/file"), text).unwrap();
    dir
}

/// Asserts that nothing of any version is visible, in this home or in its registry.
fn nothing_visible(home: &Home) {
    assert!(home.state.published().versions().unwrap().is_empty());
    assert!(home.state.seen().names().is_empty());
    assert!(publishing::files(&home.registry_path()).is_empty());
}

fn journal_is_empty(home: &Home) -> bool {
    fs::read_dir(home.state.journal()).unwrap().next().is_none()
}

#[tokio::test]
async fn a_directory_becomes_a_version_that_is_kept_and_announced() {
    let home = Home::new();
    let tree = tree("one");
    let mut wanted = options("acme/tool@1.0.0");
    wanted.about.description = Some("A tool".to_owned());
    wanted.about.provenance = Some(r#"{"commit":"abc"}"#.to_owned());
    wanted.hints.http = Some(vec!["https://example.org/".to_owned()]);
    let outcome = home.publish(tree.path(), wanted).await.unwrap();
    assert!(outcome.changed);
    let version = package("acme/tool@1.0.0");
    let manifest = home.manifest(&version).unwrap();
    assert_eq!(outcome.manifest, manifest.id());
    assert_eq!(
        (manifest.files, manifest.directories, manifest.bytes),
        (1, 2, 3)
    );
    assert_eq!(manifest.description.as_deref(), Some("A tool"));
    let index = home.index(&version).unwrap();
    assert_eq!(
        (index.sequence, index.latest.as_ref()),
        (1, Some(&version.version))
    );
    assert_eq!(index.versions[&version.version], manifest.id());
    assert_eq!(index.http, ["https://example.org/"]);

    let announced = home.registry.manifest(&version).await.unwrap().unwrap();
    assert_eq!(
        announced,
        home.state.published().manifest(&version).unwrap().unwrap()
    );
    let announced = home.registry.index(&version.name).await.unwrap().unwrap();
    assert_eq!(
        announced,
        home.state
            .published()
            .index(&version.name)
            .unwrap()
            .unwrap()
    );
    let sums = home.registry.sums(&version).await.unwrap().unwrap();
    let digest = manifs::block::Digest::of(b"one");
    assert_eq!(sums, format!("{digest}  d/file\n"));
    let pem = fs::read_to_string(
        home.registry_path()
            .join(Place::Key(key(1).public().id()).to_string()),
    );
    assert_eq!(pem.unwrap(), key(1).public().to_pem());
    assert!(journal_is_empty(&home));

    let catalog = home.catalog(&manifest);
    assert_eq!(home.content(&catalog, "d/file"), b"one");
}

#[tokio::test]
async fn an_equal_tree_changes_nothing_and_another_is_refused() {
    let home = Home::new();
    home.publish(tree("one").path(), options("a@1.0.0"))
        .await
        .unwrap();
    let before = publishing::files(home.dir.path());
    // Another directory with the same content; its file is newer, so the time has to be given.
    let mut wanted = options("b@1.0.0");
    wanted.mtime = Some(1_700_000_000);
    let first = home
        .publish(tree("two").path(), wanted.clone())
        .await
        .unwrap();
    let kept = publishing::files(home.dir.path());
    assert_ne!(before, kept);
    let again = home
        .publish(tree("two").path(), wanted.clone())
        .await
        .unwrap();
    assert_eq!((again.changed, again.manifest), (false, first.manifest));
    assert_eq!(publishing::files(home.dir.path()), kept, "nothing changed");

    let error = home
        .publish(tree("three").path(), wanted)
        .await
        .unwrap_err();
    match error {
        PublishError::Exists {
            package,
            ours,
            there,
        } => {
            assert_eq!(package.to_string(), "b@1.0.0");
            assert_eq!(there, first.manifest);
            assert_ne!(ours, there);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(home.index(&package("b@1.0.0")).unwrap().sequence, 1);
}

#[tokio::test]
async fn equal_trees_give_equal_manifests_with_a_time_given() {
    let mut ids = Vec::new();
    for _ in 0..2 {
        let home = Home::new();
        let mut wanted = options("a@1.0.0");
        wanted.mtime = Some(1_700_000_000);
        ids.push(
            home.publish(tree("same").path(), wanted)
                .await
                .unwrap()
                .manifest,
        );
    }
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn latest_follows_the_highest_release_unless_told_otherwise() {
    let home = Home::new();
    let mut sequence = 0;
    for (version, latest, expected) in [
        ("0.9.0-rc.1", Latest::Highest, None),
        ("1.0.0", Latest::Highest, Some("1.0.0")),
        ("2.0.0-rc.1", Latest::Highest, Some("1.0.0")),
        ("1.0.1", Latest::Keep, Some("1.0.0")),
        ("0.8.0", Latest::Highest, Some("1.0.1")),
        ("0.9.0", Latest::This, Some("0.9.0")),
        ("1.0.2", Latest::Highest, Some("1.0.2")),
    ] {
        let mut wanted = options(&format!("a@{version}"));
        wanted.latest = latest;
        home.publish(tree(version).path(), wanted).await.unwrap();
        let index = home.index(&package("a@1.0.0")).unwrap();
        sequence += 1;
        assert_eq!(index.sequence, sequence);
        let found = index.latest.as_ref().map(Version::to_string);
        assert_eq!(found.as_deref(), expected, "{version}");
    }
    assert_eq!(home.index(&package("a@1.0.0")).unwrap().versions.len(), 7);
}

#[tokio::test]
async fn two_homes_with_one_key_continue_one_index() {
    let one = Home::new();
    let mut two = Home::new();
    two.registry = Arc::clone(&one.registry);
    one.publish(tree("1").path(), options("a@1.0.0"))
        .await
        .unwrap();
    two.publish(tree("2").path(), options("a@2.0.0"))
        .await
        .unwrap();
    one.publish(tree("3").path(), options("a@3.0.0"))
        .await
        .unwrap();
    let index = one.index(&package("a@1.0.0")).unwrap();
    assert_eq!((index.sequence, index.versions.len()), (3, 3));
    // A version that the other home has published is known here too.
    let error = one
        .publish(tree("x").path(), options("a@2.0.0"))
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::Exists { .. }), "{error}");
}

#[tokio::test]
async fn a_second_registry_gets_all_versions_and_what_it_says_is_kept() {
    let mut home = Home::new();
    home.publish(tree("1").path(), options("a@1.0.0"))
        .await
        .unwrap();
    home.registry = Arc::new(manifs::registry::Directory::new(
        home.dir.path().join("second"),
    ));
    home.publish(tree("2").path(), options("a@2.0.0"))
        .await
        .unwrap();
    let versions = home
        .registry
        .versions(&package("a@1.0.0").name)
        .await
        .unwrap();
    assert_eq!(versions.len(), 2);
}

#[tokio::test]
async fn a_stranger_is_never_replaced() {
    let one = Home::new();
    one.publish(tree("1").path(), options("a@1.0.0"))
        .await
        .unwrap();
    let mut two = Home::new();
    two.registry = Arc::clone(&one.registry);
    two.key = key(2);
    two.trust = publishing::trusting(2);
    let before = publishing::files(&one.registry_path());
    let error = two
        .publish(tree("2").path(), options("a@2.0.0"))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PublishError::Stranger {
                what: "release index",
                ..
            }
        ),
        "{error}"
    );
    assert!(error.hint().is_some());
    assert_eq!(publishing::files(&one.registry_path()), before);
    assert!(two.state.published().versions().unwrap().is_empty());
}

#[tokio::test]
async fn our_own_policy_judges_our_own_envelopes_first() {
    let home = Home::new();
    let tree = tree("one");
    let prepared = home.prepare(tree.path(), options("a@1.0.0")).await.unwrap();
    let finish = |envelopes: Envelopes| {
        let trust = Arc::clone(&home.trust);
        home.publisher
            .finish(&prepared.job, envelopes, trust, Arc::new(Progress::new()))
    };
    let wrong = prepared.sign(&key(9)).unwrap();
    let error = finish(wrong).await.unwrap_err();
    match error {
        PublishError::Untrusted {
            what: "manifest",
            error: TrustError::UnknownKeys { .. },
        } => {}
        other => panic!("{other:?}"),
    }
    let error = finish(Envelopes::default()).await.unwrap_err();
    assert!(matches!(error, PublishError::OtherSigned(_)), "{error}");
    // Something else, rightly signed.
    let mut fields = prepared.manifest.clone().unwrap().fields().clone();
    fields.description = Some("slipped in".to_owned());
    let other = Signed::from(manifs::manifest::Manifest::new(&fields).unwrap());
    let mut envelopes = prepared.sign(&key(1)).unwrap();
    let right = envelopes
        .manifest
        .replace(Envelope::sign(&other, &[&key(1)]).unwrap());
    let error = finish(envelopes.clone()).await.unwrap_err();
    assert!(
        matches!(error, PublishError::OtherSigned("the manifest")),
        "{error}"
    );
    nothing_visible(&home);
    // The job still waits for the right ones.
    envelopes.manifest = right;
    finish(envelopes.clone()).await.unwrap();
    let error = finish(envelopes).await.unwrap_err();
    assert!(matches!(error, PublishError::NoJob(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_nobody_signs_leaves_nothing_and_is_superseded() {
    let home = Home::new();
    let first = home
        .prepare(tree("1").path(), options("a@1.0.0"))
        .await
        .unwrap();
    // Not before its time is over, and not at all while it is copied.
    let hold = home.publisher.hold(&first.job).unwrap();
    let refused = home.prepare(tree("2").path(), options("a@1.0.0")).await;
    assert!(matches!(refused, Err(PublishError::Busy(_))));
    drop(hold);
    let second = home
        .prepare(tree("2").path(), options("a@1.0.0"))
        .await
        .unwrap();
    nothing_visible(&home);
    let trust = Arc::clone(&home.trust);
    let signed = first.sign(&home.key).unwrap();
    let done = home
        .publisher
        .finish(&first.job, signed, trust, Arc::new(Progress::new()));
    let error = done.await.unwrap_err();
    assert!(matches!(error, PublishError::NoJob(_)), "{error}");
    home.publisher.abandon(&second.job);
    assert!(journal_is_empty(&home));

    let home = home.restart();
    nothing_visible(&home);
    let open = |_: &str| -> Option<Arc<dyn Registry>> { panic!("there is nothing to resume") };
    assert!(
        home.publisher
            .resume(&open, Arc::clone(&home.trust))
            .await
            .is_empty()
    );
    home.publish(tree("3").path(), options("a@1.0.0"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_cancelled_publish_ends_and_leaves_nothing() {
    let home = Home::new();
    let progress = Arc::new(Progress::new());
    progress.cancel();
    let done = home.publisher.prepare(
        publishing::directory(tree("1").path()),
        options("a@1.0.0"),
        Arc::clone(&home.registry),
        Arc::clone(&home.trust),
        progress,
    );
    assert!(matches!(done.await.unwrap_err(), PublishError::Cancelled));
    nothing_visible(&home);
    home.publish(tree("1").path(), options("a@1.0.0"))
        .await
        .unwrap();
}

/// Returns the bytes of the registry's envelopes, which is all that readers see.
fn registry_files(path: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    publishing::files(path)
}

#[tokio::test]
async fn what_could_not_be_announced_is_announced_by_the_next_process() {
    for fault in [Fault::Before, Fault::After] {
        let mut home = Home::new();
        failing(&mut home, fault);
        let error = home
            .publish(tree("1").path(), options("a@1.0.0"))
            .await
            .unwrap_err();
        assert!(matches!(error, PublishError::Announce(_)), "{error}");
        // It is kept here, and the job is not forgotten.
        assert_eq!(
            home.state.published().versions().unwrap(),
            [package("a@1.0.0")]
        );
        assert!(!journal_is_empty(&home));
        let announced = registry_files(&home.registry_path());
        assert_eq!(announced.is_empty(), fault == Fault::Before);

        let home = home.restart();
        let registry = Arc::clone(&home.registry);
        let open = move |name: &str| (name == registry.name()).then(|| Arc::clone(&registry));
        let resumed = home.publisher.resume(&open, Arc::clone(&home.trust)).await;
        assert_eq!(resumed.len(), 1);
        resumed[0].result.as_ref().unwrap();
        assert!(journal_is_empty(&home));
        let index = home.registry.index(&package("a@1.0.0").name).await.unwrap();
        assert_eq!(index.unwrap(), home.index_bytes(&package("a@1.0.0")));
        if fault == Fault::After {
            assert_eq!(
                registry_files(&home.registry_path()),
                announced,
                "nothing is done twice"
            );
        }
        let again = home
            .publish(tree("2").path(), options("a@2.0.0"))
            .await
            .unwrap();
        assert!(again.changed);
    }
}

#[tokio::test]
async fn the_same_publish_again_announces_what_is_only_here() {
    let mut home = Home::new();
    let registry = failing(&mut home, Fault::Before);
    let tree = tree("1");
    let error = home
        .publish(tree.path(), options("a@1.0.0"))
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::Announce(_)), "{error}");
    *registry.fault.lock() = Fault::None;
    let outcome = home.publish(tree.path(), options("a@1.0.0")).await.unwrap();
    assert!(!outcome.changed, "nothing had to be signed again");
    assert!(
        home.registry
            .manifest(&package("a@1.0.0"))
            .await
            .unwrap()
            .is_some()
    );
    // The job of the first try finds everything done.
    let inner = Arc::clone(&home.registry);
    let open = move |_: &str| Some(Arc::clone(&inner));
    let resumed = home.publisher.resume(&open, Arc::clone(&home.trust)).await;
    resumed
        .iter()
        .for_each(|resumed| resumed.result.as_ref().map(|_| ()).unwrap());
    assert!(journal_is_empty(&home));
}

#[tokio::test]
async fn what_was_published_is_not_evicted_and_what_was_given_up_is() {
    let home = Home::with_quota(16 << 20);
    let bytes = |number: u8| -> Vec<u8> {
        (0..3 << 20)
            .map(|at: u32| (at / 3 % 251) as u8 ^ number)
            .collect()
    };
    let large = |number: u8| {
        let tree = tree("small");
        fs::write(tree.path().join("large"), bytes(number)).unwrap();
        tree
    };
    let held = |home: &Home| home.store.usage().unevictable;
    home.publish(large(1).path(), options("a@1.0.0"))
        .await
        .unwrap();
    let after_one = held(&home);
    assert!(after_one > 3 << 20, "{after_one}");
    // Given up, the second leaves nothing protected; published again, the first is not counted twice.
    let job = home
        .prepare(large(2).path(), options("a@2.0.0"))
        .await
        .unwrap()
        .job;
    assert!(held(&home) > after_one + (3 << 20) - 1);
    home.publisher.abandon(&job);
    assert_eq!(held(&home), after_one);
    home.publish(large(1).path(), options("a@1.0.0"))
        .await
        .unwrap_err();
    assert_eq!(held(&home), after_one);

    // The next process protects it again, and everything else gives way.
    let home = home.restart();
    let open = |_: &str| -> Option<Arc<dyn Registry>> { None };
    assert!(
        home.publisher
            .resume(&open, Arc::clone(&home.trust))
            .await
            .is_empty()
    );
    assert_eq!(held(&home), after_one);
    for number in 3..9 {
        let job = home
            .prepare(large(number).path(), options("b@1.0.0"))
            .await
            .unwrap()
            .job;
        home.publisher.abandon(&job);
    }
    let catalog = home.catalog(&home.manifest(&package("a@1.0.0")).unwrap());
    assert_eq!(home.content(&catalog, "large"), bytes(1));
    assert_eq!(home.content(&catalog, "d/file"), b"small");
}
