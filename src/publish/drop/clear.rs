//! Takes away what was published, and nothing else.
//!
//! A tree is compared with its inventory in place, renamed out of everybody's way, compared once more, and then removed
//! entry by entry as far as each is still what it was. What somebody put there meanwhile is given back.

use std::cmp::Ordering;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::AtFlags;

use super::inventory::{Inventory, Step, order, walk, writer};
use crate::publish::disk::{Disk, FileKind, Stat};

/// How coarse change times may be.
const TICK_NS: i128 = 10_000_000;

/// Returns the first path that is not as the inventory says, or that somebody has open for writing, and what it is.
pub(super) fn difference(
    disk: &Disk,
    inventory: &mut Inventory,
) -> io::Result<Option<(Vec<u8>, &'static str)>> {
    inventory.rewind()?;
    let mut next = inventory.next()?;
    let mut differs = None;
    let walked = walk(disk, &|| false, &mut |step| {
        if let Step::Entry { path, found, .. } = step {
            let expected = next.as_ref().map(|record| record.path.clone());
            let there = inventory.has(&mut next, &path, &found.stat)?;
            differs = match expected {
                Some(expected) if order(&expected, &path) == Ordering::Less => {
                    Some((expected, "gone since"))
                }
                _ if !there => Some((path, "changed since")),
                _ => None,
            };
            if differs.is_some() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            next = inventory.next()?;
        }
        Ok(())
    });
    match (walked, differs, next) {
        (_, Some(found), _) => return Ok(Some(found)),
        (Err(error), None, _) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some((Vec::new(), "changing")));
        }
        (Err(error), None, _) => return Err(error),
        (Ok(()), None, Some(gone)) => return Ok(Some((gone.path, "gone since"))),
        (Ok(()), None, None) => {}
    }
    Ok(writer(disk, &|| false)?.map(|path| (path, "open for writing")))
}

/// Removes what `ours` says is ours; returns whether anything is left.
fn remove(disk: &Disk, ours: &mut dyn FnMut(&[u8], &Stat) -> io::Result<bool>) -> io::Result<bool> {
    let mut left = false;
    walk(disk, &|| false, &mut |step| {
        match step {
            Step::Entry {
                directory,
                path,
                found,
            } => {
                let ours = ours(&path, &found.stat)?;
                if found.stat.kind != FileKind::Directory {
                    left |= !ours || !unlink(directory, &found.name, AtFlags::empty());
                }
            }
            Step::Left { above, path } => {
                let name = crate::publish::disk::last_name(&path);
                // Fails when something is left in it.
                left |= !unlink(above, name, AtFlags::REMOVEDIR);
            }
        }
        Ok(())
    })?;
    Ok(left)
}

fn unlink(directory: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> bool {
    rustix::fs::unlinkat(directory, name, flags).is_ok()
}

/// Removes what the inventory says; returns whether anything is left.
pub(super) fn remove_inventory(disk: &Disk, inventory: &mut Inventory) -> io::Result<bool> {
    inventory.rewind()?;
    let mut next = inventory.next()?;
    remove(disk, &mut |path, stat| inventory.has(&mut next, path, stat))
}

/// Removes what has not been touched since `ns` (since 1970), when a process that died was about to remove it all.
pub(super) fn remove_older(disk: &Disk, ns: i128) -> io::Result<bool> {
    remove(disk, &mut |_, stat| {
        let changed = i128::from(stat.ctime.0) * 1_000_000_000 + i128::from(stat.ctime.1);
        Ok(changed < ns - TICK_NS)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> Disk {
        Disk::new(File::open(path).unwrap()).unwrap()
    }

    fn tree(root: &Path) {
        for name in ["a/b/1", "a/2", "c/3", "4"] {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        std::os::unix::fs::symlink("/etc", root.join("c/link")).unwrap();
    }

    #[test]
    fn only_what_was_there_is_removed() {
        let around = tempfile::tempdir().unwrap();
        let root = around.path().join("root");
        tree(&root);
        let disk = open(&root);
        let mut inventory = Inventory::take(&disk, around.path(), &|| false).unwrap();
        assert_eq!(difference(&disk, &mut inventory).unwrap(), None);
        fs::write(root.join("a/new"), b"x").unwrap();
        let found = difference(&disk, &mut inventory).unwrap();
        assert_eq!(found, Some((b"a".to_vec(), "changed since")));
        assert!(remove_inventory(&disk, &mut inventory).unwrap());
        let left: Vec<_> = fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["a"]);
        assert_eq!(fs::read(root.join("a/new")).unwrap(), b"x");
        assert_eq!(fs::read_dir(root.join("a")).unwrap().count(), 1);
    }

    #[test]
    fn differences_are_named() {
        let around = tempfile::tempdir().unwrap();
        let root = around.path().join("root");
        type Change<'a> = &'a dyn Fn(&Path);
        let cases: [(Change<'_>, &str, &str); 4] = [
            (
                &|root| fs::write(root.join("4"), b"more").unwrap(),
                "4",
                "changed since",
            ),
            (
                &|root| fs::write(root.join("zz"), b"").unwrap(),
                "zz",
                "changed since",
            ),
            (
                &|root| fs::remove_file(root.join("4")).unwrap(),
                "4",
                "gone since",
            ),
            (&|_| {}, "", ""),
        ];
        for (change, path, what) in cases {
            let _ = fs::remove_dir_all(&root);
            tree(&root);
            let disk = open(&root);
            let mut inventory = Inventory::take(&disk, around.path(), &|| false).unwrap();
            change(&root);
            let found = difference(&disk, &mut inventory).unwrap();
            if what.is_empty() {
                assert_eq!(found.is_some(), !path.is_empty());
            } else {
                assert_eq!(found, Some((path.as_bytes().to_vec(), what)));
            }
        }
        let disk = open(&root);
        let mut inventory = Inventory::take(&disk, around.path(), &|| false).unwrap();
        let _writer = File::options().append(true).open(root.join("c/3")).unwrap();
        let found = difference(&disk, &mut inventory).unwrap();
        assert_eq!(found, Some((b"c/3".to_vec(), "open for writing")));
    }

    #[test]
    fn what_a_dead_process_left_is_removed_unless_it_was_touched() {
        let around = tempfile::tempdir().unwrap();
        let root = around.path().join("root");
        tree(&root);
        let ctime = |name: &str| {
            use std::os::unix::fs::MetadataExt;
            let meta = fs::metadata(root.join(name)).unwrap();
            i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec())
        };
        let disk = open(&root);
        assert!(remove_older(&disk, ctime("a/b/1")).unwrap());
        assert!(root.join("4").exists());
        assert!(!remove_older(&disk, ctime("4") + 10 * TICK_NS).unwrap());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }
}
