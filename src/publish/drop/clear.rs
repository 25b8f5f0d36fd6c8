//! Takes away what was published, and nothing else.
//!
//! A tree is compared with its inventory in place, renamed out of everybody's way, compared once more, and then moved, or
//! removed entry by entry as far as each is still what it was. What somebody put there meanwhile is given back. So is, at
//! the next start, what a process that died had out of the way: what of it was published, only that one knew.

use std::cmp::Ordering;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, RenameFlags};
use rustix::io::Errno;

use super::board::ENTRIES_MAX;
use super::inventory::{Inventory, Step, order, walk, writer};
use super::place::{DropDirectory, Entry, OWN, below, shown, visible};
use super::rights::make_in;
use crate::publish::disk::{self, Disk, FileKind, Stat};

/// A directory that is being cleared away; something that makes it unique and its old name follow.
const REMOVING: &str = ".manifs-removing-";

/// Where directories go with `after = "move"`.
const PUBLISHED: &str = ".published";

/// How many names are tried for a directory whose own is taken.
const NAMES_TRIED: u32 = 1000;

/// What becomes of a directory that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum After {
    /// It is removed.
    #[default]
    Remove,
    /// It stays.
    Keep,
    /// It is moved below `.published/` in the drop directory.
    Move,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Cleared {
    /// It is gone.
    Removed,
    /// It lies here now, below the drop directory.
    Moved(String),
    /// It is where it was, since somebody is still at work in it.
    Kept {
        /// The path in it.
        path: String,
        /// What about it.
        why: &'static str,
    },
    /// The most of it is gone.
    Left {
        /// Where the rest lies now, below the drop directory.
        place: String,
        /// What the rest is.
        why: String,
    },
}

impl DropDirectory {
    /// Clears an entry away whose content was published as the inventory says.
    ///
    /// # Errors
    /// Whatever the file system says; then it is where it was, or what is left of it is given back at the next start.
    pub fn clear(
        &self,
        entry: &Entry,
        inventory: &mut Inventory,
        after: After,
    ) -> io::Result<Cleared> {
        if let Some(difference) = difference(&entry.disk, inventory)? {
            return Ok(kept(difference));
        }
        let published = match after {
            After::Keep => return Ok(kept((Vec::new(), "kept"))),
            After::Move => Some(self.published()?),
            After::Remove => None,
        };
        let hidden = Hidden::new(entry)?;
        let judged = hidden.judge(inventory);
        if !matches!(judged, Ok(None)) {
            hidden.give_back(entry.key.name())?;
        }
        if let Some(kept) = judged? {
            return Ok(kept);
        }
        match published {
            Some(published) => hidden.move_to(published.as_fd()),
            None => hidden.remove(inventory),
        }
    }

    /// Opens the directory that what was published is moved to.
    fn published(&self) -> io::Result<OwnedFd> {
        let root = self.root().map_err(io::Error::other)?;
        let published = make_in(root.as_fd(), PUBLISHED.as_bytes(), self.group.as_ref())?;
        if disk::stat(&published)?.uid != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other(format!(
                "{PUBLISHED} belongs to somebody else"
            )));
        }
        Ok(published)
    }

    /// Gives back what a process that died had out of the way, and takes away what it was about to write.
    ///
    /// Nothing here keeps a daemon from starting: whoever may write to the directory can make names like ours.
    pub(super) fn sweep(&self) {
        let swept = self.root().map_err(io::Error::other).and_then(|root| {
            sweep_place(root.as_fd())?;
            for found in visible(root.as_fd())?.iter().take(ENTRIES_MAX) {
                if let Some((scope, _)) = self.scope(root.as_fd(), found) {
                    let swept = below(root.as_fd(), scope.as_bytes())
                        .and_then(|opened| sweep_place(opened.as_fd()));
                    if let Err(error) = swept {
                        tracing::warn!(scope, %error, "not looked through for what was left there");
                    }
                }
            }
            Ok(())
        });
        if let Err(error) = swept {
            tracing::warn!(%error, "the drop directory is not looked through for what was left there");
        }
    }
}

fn sweep_place(place: BorrowedFd<'_>) -> io::Result<()> {
    // A descriptor of its own: one that was listed is at its end.
    let place = disk::open_directory(place, b".")?;
    let own = disk::list_living(place.as_fd(), &mut |name| !name.starts_with(OWN.as_bytes()))?;
    let user = rustix::process::geteuid().as_raw();
    for found in own.iter().take(ENTRIES_MAX) {
        match found.stat.kind {
            FileKind::Directory => {
                if let Some(old) = old_name(&found.name) {
                    sweep_one(place.as_fd(), &found.name, old);
                }
            }
            // In a directory of many, a name is no proof that it is ours.
            FileKind::File
                if found.stat.uid == user
                    && found.name.starts_with(format!("{OWN}status-").as_bytes()) =>
            {
                let _ = rustix::fs::unlinkat(&place, &*found.name, AtFlags::empty());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Returns the name that a directory had before it was hidden.
fn old_name(hidden: &[u8]) -> Option<&[u8]> {
    let rest = hidden.strip_prefix(REMOVING.as_bytes())?;
    let at = rest.iter().position(|byte| *byte == b'-')?;
    Some(&rest[at + 1..]).filter(|old| !old.is_empty())
}

/// Gives one back. What it holds is never removed: nobody knows any more what of it was published.
fn sweep_one(place: BorrowedFd<'_>, name: &[u8], old: &[u8]) {
    if rustix::fs::unlinkat(place, name, AtFlags::REMOVEDIR).is_ok() {
        return;
    }
    match give_back(place, name, &left_name(old)) {
        Ok(kept) => tracing::warn!(
            entry = shown(old),
            kept,
            "was published, and being cleared away when the daemon died: what is left of it is kept"
        ),
        Err(error) => tracing::warn!(
            entry = shown(name),
            %error,
            "was being cleared away when the daemon died, and cannot be given back"
        ),
    }
}

/// An entry that was renamed out of everybody's way.
struct Hidden<'a> {
    entry: &'a Entry,
    name: Vec<u8>,
}

impl Hidden<'_> {
    fn new(entry: &Entry) -> io::Result<Hidden<'_>> {
        let begin = format!("{REMOVING}{:016x}-", rand::random::<u64>());
        let (parent, old) = (&entry.parent, entry.key.name());
        let name = [begin.as_bytes(), old].concat();
        rustix::fs::renameat_with(parent, old, parent, &*name, RenameFlags::NOREPLACE)?;
        Ok(Hidden { entry, name })
    }

    /// Returns why it is to be kept: by its name, another one may have been renamed.
    fn judge(&self, inventory: &mut Inventory) -> io::Result<Option<Cleared>> {
        if !self.entry.is_in_place(&self.name)? {
            return Ok(Some(kept((Vec::new(), "replaced since"))));
        }
        Ok(difference(&self.entry.disk, inventory)?.map(kept))
    }

    /// Gives it back under a name, or a free one like it; returns which.
    fn give_back(&self, name: &[u8]) -> io::Result<String> {
        give_back(self.entry.parent.as_fd(), &self.name, name)
    }

    fn move_to(&self, there: BorrowedFd<'_>) -> io::Result<Cleared> {
        let name = self.entry.key.to_string().replace('/', "-");
        let moved = writable(&self.entry.disk, || {
            rename_free(
                self.entry.parent.as_fd(),
                &self.name,
                there,
                name.as_bytes(),
            )
        });
        if moved.is_err() {
            self.give_back(self.entry.key.name())?;
        }
        Ok(Cleared::Moved(format!("{PUBLISHED}/{}", moved?)))
    }

    fn remove(&self, inventory: &mut Inventory) -> io::Result<Cleared> {
        let parent = self.entry.parent.as_fd();
        let left = remove(&self.entry.disk, inventory)
            .or_else(|| unlink(parent, &self.name, b"", AtFlags::REMOVEDIR));
        match left {
            None => Ok(Cleared::Removed),
            Some(left) => Ok(Cleared::Left {
                // Never under its old name: half a tree must not be published.
                place: self.give_back(&left_name(self.entry.key.name()))?,
                why: left.to_string(),
            }),
        }
    }
}

/// Returns the name for what is left of an entry: no version that there can be.
fn left_name(name: &[u8]) -> Vec<u8> {
    [name, b"~1"].concat()
}

/// Renames a hidden directory back, or to a free name beside it; returns the name.
fn give_back(parent: BorrowedFd<'_>, hidden: &[u8], name: &[u8]) -> io::Result<String> {
    rename_free(parent, hidden, parent, name)
}

/// Renames a directory to the first free name, of which none but the first can be an entry's; returns it.
fn rename_free(
    from: BorrowedFd<'_>,
    old: &[u8],
    to: BorrowedFd<'_>,
    name: &[u8],
) -> io::Result<String> {
    for nth in 0..NAMES_TRIED {
        let tried = match nth {
            0 => name.to_vec(),
            nth => [name, format!("~{nth}").as_bytes()].concat(),
        };
        match rustix::fs::renameat_with(from, old, to, &*tried, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            renamed => {
                renamed?;
                return Ok(shown(&tried));
            }
        }
    }
    Err(Errno::EXIST.into())
}

fn kept((path, why): (Vec<u8>, &'static str)) -> Cleared {
    Cleared::Kept {
        path: shown(&path),
        why,
    }
}

/// Returns the first path that is not as the inventory says, or that somebody has open for writing, and what it is.
pub(super) fn difference(
    disk: &Disk,
    inventory: &mut Inventory,
) -> io::Result<Option<(Vec<u8>, &'static str)>> {
    inventory.rewind()?;
    let mut next = inventory.next()?;
    let mut differs = None;
    let walked = walk(disk, &mut |step| {
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
    Ok(writer(disk)?.map(|path| (path, "open for writing")))
}

/// What is left of a tree that was to be removed.
#[derive(Debug)]
enum Left {
    /// Something that was not in the inventory.
    New,
    /// Something that was, at this path.
    Stuck(Vec<u8>, io::Error),
}

impl fmt::Display for Left {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Left::New => to.write_str("what was put into the directory while it was removed"),
            Left::Stuck(path, error) if path.is_empty() => {
                write!(to, "what could not be removed: {error}")
            }
            Left::Stuck(path, error) => {
                write!(to, "what could not be removed: {}: {error}", shown(path))
            }
        }
    }
}

/// Remembers the first that is left; somebody has to do something about what is stuck, so it counts more.
fn note(left: &mut Option<Left>, more: Option<Left>) {
    if matches!(
        (&*left, &more),
        (None, _) | (Some(Left::New), Some(Left::Stuck(..)))
    ) {
        *left = more;
    }
}

/// Removes what the inventory says; returns what is left.
fn remove(disk: &Disk, inventory: &mut Inventory) -> Option<Left> {
    let mut left = None;
    let removed = (|| {
        inventory.rewind()?;
        let mut next = inventory.next()?;
        open_up(disk.directory(b"")?.as_fd(), disk.stat());
        walk(disk, &mut |step| {
            match step {
                Step::Entry {
                    directory,
                    path,
                    found,
                    inside,
                } => {
                    let ours = inventory.has(&mut next, &path, &found.stat)?;
                    match (found.stat.kind, inside) {
                        (FileKind::Directory, Some(inside)) if ours => open_up(inside, &found.stat),
                        // Removed after what is in it.
                        (FileKind::Directory, _) => {}
                        _ if !ours => note(&mut left, Some(Left::New)),
                        _ => note(
                            &mut left,
                            unlink(directory, &found.name, &path, AtFlags::empty()),
                        ),
                    }
                }
                Step::Left { above, path } => {
                    let name = disk::last_name(&path);
                    note(&mut left, unlink(above, name, &path, AtFlags::REMOVEDIR));
                }
            }
            Ok(())
        })
    })();
    if let Err(error) = removed {
        note(&mut left, Some(Left::Stuck(Vec::new(), error)));
    }
    left
}

/// Removes one name; returns what is left if it is still there.
fn unlink(directory: BorrowedFd<'_>, name: &[u8], path: &[u8], flags: AtFlags) -> Option<Left> {
    match rustix::fs::unlinkat(directory, name, flags) {
        Ok(()) | Err(Errno::NOENT) => None,
        Err(Errno::NOTEMPTY | Errno::EXIST) => Some(Left::New),
        Err(error) => Some(Left::Stuck(path.to_vec(), error.into())),
    }
}

/// Lets the owner of a directory take things out of it: those of Go's module cache, for one, may not be written to.
fn open_up(directory: BorrowedFd<'_>, stat: &Stat) {
    const OWNER: u16 = 0o700;
    if stat.mode & OWNER != OWNER {
        // Where this is not allowed, removing is not either, and that is told.
        let _ = rustix::fs::fchmod(directory, Mode::from_raw_mode((stat.mode | OWNER).into()));
    }
}

/// Does something with a directory that its owner may write to: one that he may not is not moved elsewhere, since its
/// `..` is written then.
fn writable<T>(disk: &Disk, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mode = disk.stat().mode;
    if mode & 0o200 != 0 {
        return work();
    }
    let root = disk.directory(b"")?;
    rustix::fs::fchmod(&root, Mode::from_raw_mode((mode | 0o200).into()))?;
    let done = work();
    // What it looks like matters less than where it is.
    let _ = rustix::fs::fchmod(&root, Mode::from_raw_mode(mode.into()));
    done
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
        let mut inventory = Inventory::take(&disk, around.path()).unwrap();
        assert_eq!(difference(&disk, &mut inventory).unwrap(), None);
        fs::write(root.join("a/new"), b"x").unwrap();
        let found = difference(&disk, &mut inventory).unwrap();
        assert_eq!(found, Some((b"a".to_vec(), "changed since")));
        assert!(matches!(remove(&disk, &mut inventory), Some(Left::New)));
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
            let mut inventory = Inventory::take(&disk, around.path()).unwrap();
            change(&root);
            let found = difference(&disk, &mut inventory).unwrap();
            if what.is_empty() {
                assert_eq!(found.is_some(), !path.is_empty());
            } else {
                assert_eq!(found, Some((path.as_bytes().to_vec(), what)));
            }
        }
        let disk = open(&root);
        let mut inventory = Inventory::take(&disk, around.path()).unwrap();
        let _writer = File::options().append(true).open(root.join("c/3")).unwrap();
        let found = difference(&disk, &mut inventory).unwrap();
        assert_eq!(found, Some((b"c/3".to_vec(), "open for writing")));
    }
}
