//! Several who publish one package at a time: nobody's version is lost, and no version gets two manifests.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use manifs::manifest::{Envelope, PackageVersion, ReleaseIndex, Signed};
use manifs::publish::{Finished, Options, Outcome, Prepared, Progress, PublishError};
use manifs::registry::{Directory, Registry};
use tempfile::TempDir;

use crate::common::publishing::{self, Fault, Home, failing, tempdir};
use crate::common::signed::package;
use crate::machine;

fn options(text: &str) -> Options {
    Options::new(package(text))
}

/// A tree with one file that says `text`.
fn tree(text: &str) -> TempDir {
    let dir = tempdir();
    fs::write(dir.path().join("file"), text).unwrap();
    dir
}

fn journal_is_empty(home: &Home) -> bool {
    fs::read_dir(home.state.journal()).unwrap().next().is_none()
}

/// Returns a registry's index of `a`, after looking whether each version has the manifest that it names.
async fn checked_index(registry: &dyn Registry) -> ReleaseIndex {
    let bytes = registry.index(&package("a@1.0.0").name).await.unwrap();
    let envelope = Envelope::parse(&bytes.unwrap()).unwrap();
    let Signed::Index(index) = envelope.unverified() else {
        panic!("no index");
    };
    for (version, id) in &index.versions {
        let package = PackageVersion::new(index.name.clone(), version.clone());
        let bytes = registry.manifest(&package).await.unwrap().unwrap();
        match Envelope::parse(&bytes).unwrap().unverified() {
            Signed::Manifest(manifest) => assert_eq!(manifest.id(), *id, "{version}"),
            Signed::Index(_) => panic!("no manifest"),
        }
    }
    index.clone()
}

/// Signs a job with the home's key and finishes it.
async fn finish(home: &Home, prepared: &Prepared) -> Result<Finished, PublishError> {
    let signed = prepared.sign(&home.key).unwrap();
    let (trust, progress) = (Arc::clone(&home.trust), Arc::new(Progress::new()));
    home.publisher
        .finish(&prepared.job, signed, trust, progress)
        .await
}

fn done(finished: Finished) -> Outcome {
    match finished {
        Finished::Done(outcome) => outcome,
        Finished::Again(_) => panic!("nobody was faster"),
    }
}

#[tokio::test]
async fn who_was_overtaken_signs_what_the_other_left() {
    let one = Home::new();
    let mut two = Home::new();
    two.registry = Arc::clone(&one.registry);
    let tree_one = tree("1");
    let prepared = one
        .prepare(tree_one.path(), options("a@1.0.0"))
        .await
        .unwrap();
    two.publish(tree("2").path(), options("a@2.0.0"))
        .await
        .unwrap();
    let Finished::Again(again) = finish(&one, &prepared).await.unwrap() else {
        panic!("the other was not seen");
    };
    assert!(one.state.published().versions().unwrap().is_empty());
    assert!(one.state.seen().names().is_empty());
    assert!(journal_is_empty(&one));
    assert_eq!((&again.job, again.id), (&prepared.job, prepared.id));
    assert_eq!(again.index.as_ref().unwrap().sequence, 2);
    assert!(done(finish(&one, &again).await.unwrap()).changed);
    let index = one.index(&package("a@1.0.0")).unwrap();
    assert_eq!((index.sequence, index.versions.len()), (2, 2));
    assert_eq!(index.latest.as_ref().unwrap().as_str(), "2.0.0");

    // Both make the same version of other trees: one is refused, and shows nothing of its own.
    let prepared = one
        .prepare(tree("x").path(), options("a@3.0.0"))
        .await
        .unwrap();
    two.publish(tree("y").path(), options("a@3.0.0"))
        .await
        .unwrap();
    let error = finish(&one, &prepared).await.unwrap_err();
    assert!(matches!(error, PublishError::Exists { .. }), "{error}");
    assert_eq!(one.manifest(&package("a@3.0.0")), None);
    let seen = one.state.seen().manifest(&package("a@3.0.0")).unwrap();
    assert_eq!(seen, None);
    one.publish(tree("z").path(), options("a@4.0.0"))
        .await
        .unwrap();
    // Of equal trees, the second takes the first one's manifest.
    let mut wanted = options("a@5.0.0");
    wanted.mtime = Some(1_700_000_000);
    let mut later = wanted.clone();
    later.about.description = Some("said by the second".to_owned());
    let prepared = one.prepare(tree("=").path(), later).await.unwrap();
    let first = two.publish(tree("=").path(), wanted).await.unwrap();
    let Finished::Again(again) = finish(&one, &prepared).await.unwrap() else {
        panic!("the other was not seen");
    };
    assert_eq!(again.id, first.manifest);
    assert!(again.manifest.is_none() && again.index.is_none());
    assert!(!done(finish(&one, &again).await.unwrap()).changed);
}

#[tokio::test]
async fn who_is_overtaken_each_time_shows_nothing_and_says_so() {
    let mut home = Home::new();
    let registry = failing(&mut home, Fault::Conflict);
    let tree = tree("3");
    let error = home
        .publish(tree.path(), options("a@3.0.0"))
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::Contended { .. }), "{error}");
    assert!(error.hint().is_some());
    assert!(home.state.published().versions().unwrap().is_empty());
    assert!(home.state.seen().names().is_empty());
    assert!(publishing::files(&home.registry_path()).is_empty());
    assert!(journal_is_empty(&home));
    *registry.fault.lock() = Fault::None;
    home.publish(tree.path(), options("a@3.0.0")).await.unwrap();
}

#[tokio::test]
async fn many_homes_lose_no_version_of_each_other() {
    const HOMES: usize = 8;
    let first = Home::new();
    let registry = Arc::clone(&first.registry);
    let tasks = (0..HOMES).map(|number| {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move {
            let mut home = Home::new();
            home.registry = registry;
            let wanted = options(&format!("a@1.0.{number}"));
            let outcome = home.publish(tree(&number.to_string()).path(), wanted).await;
            // The second of each pair of homes asks for a version that the first one has, too.
            let other = home
                .publish(
                    tree(&number.to_string()).path(),
                    options(&format!("a@2.0.{}", number / 2)),
                )
                .await;
            (outcome.unwrap(), other)
        })
    });
    let mut taken = 0;
    for task in tasks.collect::<Vec<_>>() {
        match task.await.unwrap().1 {
            Ok(outcome) => taken += usize::from(outcome.changed),
            Err(error) => assert!(matches!(error, PublishError::Exists { .. }), "{error}"),
        }
    }
    assert_eq!(taken, HOMES / 2);
    let index = checked_index(&*registry).await;
    assert_eq!(index.versions.len(), HOMES + HOMES / 2);
    assert_eq!(index.sequence, (HOMES + HOMES / 2) as u64);
}

#[tokio::test]
async fn what_others_went_on_from_counts_as_announced() {
    // The process died after its announcement, before it was shown here; somebody else went on from it.
    let mut home = Home::new();
    let registry = failing(&mut home, Fault::After);
    home.publish(tree("1").path(), options("a@1.0.0"))
        .await
        .unwrap_err();
    *registry.fault.lock() = Fault::None;
    let mut other = Home::new();
    other.registry = Arc::clone(&home.registry);
    other
        .publish(tree("2").path(), options("a@2.0.0"))
        .await
        .unwrap();
    let before = publishing::files(&home.registry_path());
    let home = home.restart();
    let inner = Arc::clone(&home.registry);
    let open = move |_: &str| Some(Arc::clone(&inner));
    let resumed = home.publisher.resume(&open, Arc::clone(&home.trust)).await;
    resumed[0].result.as_ref().unwrap();
    assert!(journal_is_empty(&home));
    assert_eq!(publishing::files(&home.registry_path()), before);
}

/// Gives a home the key and the trust of another one.
fn share_key(from: &machine::Home, to: &machine::Home) {
    fs::create_dir(to.path().join("keys")).unwrap();
    for name in ["keys/default.pem", "keys/default.pub.pem", "trust.toml"] {
        fs::copy(from.path().join(name), to.path().join(name)).unwrap();
    }
}

/// Has a process of a home publish a tree that says `text` as a version of `a`.
fn publishing_process(home: &machine::Home, text: &str, version: &str, place: &Path) -> Command {
    let directory = home.path().join(format!("tree{text}"));
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("file"), text).unwrap();
    let mut command = home.command();
    command
        .args(["publish", directory.to_str().unwrap(), "--name", "a"])
        .args(["--version", version, "--registry", place.to_str().unwrap()])
        .args(["--mtime", "1700000000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_lose_no_version_of_each_other() {
    let count = machine::count("publishing processes", 6, 20);
    let mut first = machine::Home::new();
    first.run(&["keygen"]);
    // One home has a daemon, which several commands ask at a time.
    first.start_daemon();
    let place = first.path().join("shared");
    let mut homes = vec![first];
    let mut children = Vec::new();
    for number in 0..count {
        // Three to a home.
        if number % 3 == 2 {
            let home = machine::Home::new();
            share_key(&homes[0], &home);
            homes.push(home);
        }
        // The last two want the same version, of other trees.
        let version = format!("1.0.{}", number.min(count - 2));
        let home = homes.last().unwrap();
        let mut command = publishing_process(home, &number.to_string(), &version, &place);
        children.push(command.spawn().unwrap());
    }
    let mut refused = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            let said = machine::describe(&output);
            assert_eq!(output.status.code(), Some(4), "{said}");
            refused += 1;
        }
    }
    assert_eq!(refused, 1, "of the two that want one version");
    let index = checked_index(&Directory::new(&place)).await;
    assert_eq!(index.versions.len(), count - 1);
    assert_eq!(index.sequence, count as u64 - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_publishers_lose_nothing_of_others() {
    let count = machine::count("publishers, most of them killed", 8, 40);
    let first = machine::Home::new();
    first.run(&["keygen"]);
    let place = first.path().join("shared");
    let homes: Vec<machine::Home> = (0..count)
        .map(|_| {
            let home = machine::Home::new();
            share_key(&first, &home);
            home
        })
        .collect();
    let process = |number: usize| {
        let (text, version) = (number.to_string(), format!("1.0.{number}"));
        publishing_process(&homes[number], &text, &version, &place)
    };
    let started = Instant::now();
    assert!(process(0).output().unwrap().status.success());
    let whole = started.elapsed();
    let mut children: Vec<_> = (1..count)
        .map(|number| process(number).spawn().unwrap())
        .collect();
    for (number, child) in children.iter_mut().enumerate() {
        if number % 4 > 0 {
            let random = u32::from(machine::noise(number as u64, 3)[1]);
            std::thread::park_timeout(whole * random / 1024);
            // One that is done already is not killed.
            child.kill().unwrap();
        }
    }
    let mut killed = 0;
    for (number, child) in (1..).zip(children) {
        let output = child.wait_with_output().unwrap();
        let index = checked_index(&Directory::new(&place)).await;
        let listed = index
            .versions
            .keys()
            .any(|version| version.as_str() == format!("1.0.{number}"));
        if output.status.success() {
            assert!(listed, "1.0.{number} was published and is lost");
        } else {
            assert_eq!(output.status.code(), None, "{}", machine::describe(&output));
            killed += 1;
        }
    }
    println!("{killed} of {count} killed within {whole:?}");
    for number in 1..count {
        let output = process(number).output().unwrap();
        assert!(output.status.success(), "{}", machine::describe(&output));
    }
    let index = checked_index(&Directory::new(&place)).await;
    assert_eq!(
        (index.versions.len(), index.sequence),
        (count, count as u64)
    );
}
