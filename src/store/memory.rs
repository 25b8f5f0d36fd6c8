//! A disk in memory that crashes, tears writes, flips bits, fails and fills up, for tests of what a store promises.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Wait;
use super::disk::{Access, Disk, DiskFile, Folder, Listed, Name, Stat};

/// The unit of space, and of what a crash tears.
const PAGE_BYTES: u64 = 16 << 10;

/// Pages by number; one that is not there is a hole.
type Pages = BTreeMap<u64, Arc<[u8]>>;

/// A file apart from its names.
#[derive(Clone, Default)]
struct Content {
    len: u64,
    pages: Pages,
}

#[derive(Default)]
struct Inode {
    now: Content,
    /// As of the last sync.
    durable: Content,
}

type Names = BTreeMap<Name, u64>;

#[derive(Default)]
struct Disks {
    inodes: BTreeMap<u64, Inode>,
    names: Names,
    /// The names after each change since the last sync, the state then first.
    history: Vec<Names>,
    next: u64,
    capacity: Option<u64>,
    failures: u32,
    open: BTreeMap<u64, u32>,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    disks: Arc<Mutex<Disks>>,
}

struct MemoryFile {
    disk: MemoryDisk,
    inode: u64,
}

impl MemoryDisk {
    /// Makes an empty disk of any size.
    pub fn new() -> MemoryDisk {
        let disk = MemoryDisk::default();
        disk.disks.lock().history.push(Names::new());
        disk
    }

    /// Says how many bytes fit from now on; none means that all do.
    pub fn set_capacity(&self, capacity: Option<u64>) {
        self.disks.lock().capacity = capacity;
    }

    /// Lets the next `count` changes fail.
    pub fn fail(&self, count: u32) {
        self.disks.lock().failures = count;
    }

    /// Returns the bytes that everything takes, directories included.
    pub fn used(&self) -> u64 {
        self.disks.lock().used()
    }

    /// Returns the names of all files.
    pub fn names(&self) -> Vec<Name> {
        self.disks.lock().names.keys().copied().collect()
    }

    /// Flips bits of one byte of a file; returns whether it has data there.
    pub fn flip(&self, name: Name, offset: u64, mask: u8) -> bool {
        let mut disks = self.disks.lock();
        let Some(inode) = disks.names.get(&name).copied() else {
            return false;
        };
        let Some(inode) = disks.inodes.get_mut(&inode) else {
            return false;
        };
        let within = usize::try_from(offset % PAGE_BYTES).unwrap_or(0);
        for content in [&mut inode.now, &mut inode.durable] {
            if let Some(page) = content.pages.get_mut(&(offset / PAGE_BYTES)) {
                let mut bytes = page.to_vec();
                bytes[within] ^= mask;
                *page = bytes.into();
            }
        }
        inode.now.pages.contains_key(&(offset / PAGE_BYTES))
    }

    /// Returns what a power cut leaves. Names go back to some moment since the last sync; each page that was written
    /// since is new, old, or half of either, as `random` says.
    pub fn crash(&self, random: &mut dyn FnMut() -> u64) -> MemoryDisk {
        let disks = self.disks.lock();
        let count = disks.history.len() as u64;
        let moment = usize::try_from(random() % count).unwrap_or(0);
        let mut names = disks.history[moment].clone();
        // As a real disk does when it is opened.
        names.retain(|name, _| !matches!(name, Name::Temporary(_)));
        let mut inodes = BTreeMap::new();
        for number in names.values() {
            if let Some(inode) = disks.inodes.get(number) {
                let content = inode.torn(random);
                let durable = content.clone();
                inodes.insert(
                    *number,
                    Inode {
                        now: content,
                        durable,
                    },
                );
            }
        }
        let after = Disks {
            inodes,
            history: vec![names.clone()],
            names,
            next: disks.next,
            ..Disks::default()
        };
        MemoryDisk {
            disks: Arc::new(Mutex::new(after)),
        }
    }
}

impl Inode {
    fn torn(&self, random: &mut dyn FnMut() -> u64) -> Content {
        let len = if random().is_multiple_of(2) {
            self.now.len
        } else {
            self.durable.len
        };
        let mut pages = Pages::new();
        let numbers = self.now.pages.keys().chain(self.durable.pages.keys());
        for number in numbers {
            let (now, durable) = (self.now.pages.get(number), self.durable.pages.get(number));
            let page = match (now, durable) {
                (Some(now), Some(durable)) if Arc::ptr_eq(now, durable) => Some(Arc::clone(now)),
                _ => match random() % 4 {
                    0 => durable.cloned(),
                    1 => now.map(|now| {
                        let mut bytes = now.to_vec();
                        let half = bytes.len() / 2;
                        bytes[half..].fill(0);
                        bytes.into()
                    }),
                    _ => now.cloned(),
                },
            };
            if let Some(page) = page {
                pages.insert(*number, page);
            }
        }
        pages.retain(|number, _| number * PAGE_BYTES < len);
        Content { len, pages }
    }
}

impl Disks {
    fn used(&self) -> u64 {
        let pages: usize = self
            .inodes
            .values()
            .map(|inode| inode.now.pages.len())
            .sum();
        let mut folders: BTreeMap<Folder, u64> = BTreeMap::new();
        for folder in self.names.keys().filter_map(Name::folder) {
            *folders.entry(folder).or_default() += 80;
        }
        let folders: u64 = folders
            .values()
            .map(|bytes| bytes.next_multiple_of(PAGE_BYTES))
            .sum();
        pages as u64 * PAGE_BYTES + folders
    }

    fn change(&mut self) -> io::Result<()> {
        if self.failures > 0 {
            self.failures -= 1;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    fn renamed(&mut self) {
        self.history.push(self.names.clone());
        self.collect();
    }

    /// Lets go of files that have neither a name, nor had one since the last sync, nor are open.
    fn collect(&mut self) {
        let open = &self.open;
        let names = &self.names;
        for (number, inode) in &mut self.inodes {
            if !open.contains_key(number) && !names.values().any(|other| other == number) {
                // It takes no space, but a crash may bring it back as it was at the last sync.
                inode.now.pages.clear();
            }
        }
    }
}

impl Disk for MemoryDisk {
    fn open(&self, name: Name, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut disks = self.disks.lock();
        let inode = match (disks.names.get(&name).copied(), access) {
            (Some(inode), Access::Existing(_)) => inode,
            (Some(inode), Access::New) => {
                disks.change()?;
                if let Some(inode) = disks.inodes.get_mut(&inode) {
                    inode.now = Content::default();
                }
                inode
            }
            (None, Access::Existing(_)) => return Err(io::ErrorKind::NotFound.into()),
            (None, Access::New) => {
                disks.change()?;
                if disks
                    .capacity
                    .is_some_and(|capacity| disks.used() + PAGE_BYTES > capacity)
                {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let inode = disks.next;
                disks.next += 1;
                disks.inodes.insert(inode, Inode::default());
                disks.names.insert(name, inode);
                disks.renamed();
                inode
            }
        };
        *disks.open.entry(inode).or_default() += 1;
        Ok(Arc::new(MemoryFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn read(&self, name: Name, offset: u64, buffer: &mut [u8], wait: Wait) -> io::Result<usize> {
        self.open(name, Access::Existing(wait))?
            .read_at(offset, buffer, wait)
    }

    fn read_vec(&self, name: Name, len: usize) -> io::Result<Vec<u8>> {
        self.open(name, Access::Existing(Wait::Yes))?
            .read_vec(0, len)
    }

    fn rename(&self, from: Name, to: Name) -> io::Result<()> {
        let mut disks = self.disks.lock();
        disks.change()?;
        let inode = disks.names.remove(&from).ok_or(io::ErrorKind::NotFound)?;
        disks.names.insert(to, inode);
        disks.renamed();
        Ok(())
    }

    fn remove(&self, name: Name) -> io::Result<()> {
        let mut disks = self.disks.lock();
        disks.change()?;
        if disks.names.remove(&name).is_some() {
            disks.renamed();
        }
        Ok(())
    }

    fn stat(&self, name: Name) -> io::Result<Stat> {
        self.open(name, Access::Existing(Wait::Yes))?.stat()
    }

    fn list(&self, folder: Folder, visit: &mut dyn FnMut(Name)) -> io::Result<Listed> {
        let names: Vec<Name> = (self.disks.lock().names.keys())
            .filter(|name| name.folder() == Some(folder))
            .copied()
            .collect();
        let taken = (names.len() as u64 * 80).next_multiple_of(PAGE_BYTES);
        names.into_iter().for_each(visit);
        Ok(Listed {
            folder: taken,
            strangers: 0,
        })
    }

    fn other_bytes(&self) -> io::Result<u64> {
        let disks = self.disks.lock();
        let others = disks
            .names
            .iter()
            .filter(|(name, _)| name.folder().is_none() && !matches!(name, Name::Temporary(_)));
        let pages: usize = others
            .filter_map(|(_, inode)| disks.inodes.get(inode))
            .map(|inode| inode.now.pages.len())
            .sum();
        Ok(pages as u64 * PAGE_BYTES)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disks = self.disks.lock();
        disks.change()?;
        disks.history = vec![disks.names.clone()];
        let live: Vec<u64> = disks.names.values().copied().collect();
        let open: Vec<u64> = disks.open.keys().copied().collect();
        disks
            .inodes
            .retain(|number, _| live.contains(number) || open.contains(number));
        for inode in disks.inodes.values_mut() {
            inode.durable = inode.now.clone();
        }
        Ok(())
    }

    fn granule(&self) -> u64 {
        PAGE_BYTES
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let mut disks = self.disk.disks.lock();
        let count = disks.open.entry(self.inode).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            disks.open.remove(&self.inode);
            disks.collect();
        }
    }
}

impl MemoryFile {
    fn content<T>(&self, see: impl FnOnce(&Content) -> T) -> io::Result<T> {
        let disks = self.disk.disks.lock();
        let inode = disks.inodes.get(&self.inode);
        inode
            .map(|inode| see(&inode.now))
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8], _: Wait) -> io::Result<usize> {
        let bytes = self.read_vec(offset, buffer.len())?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn read_vec(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.content(|content| {
            let end = content.len.min(offset.saturating_add(len as u64));
            let mut bytes = Vec::with_capacity(len);
            let mut at = offset;
            while at < end {
                let within = at % PAGE_BYTES;
                let count = (PAGE_BYTES - within).min(end - at);
                let span = usize::try_from(within).unwrap_or(0)
                    ..usize::try_from(within + count).unwrap_or(0);
                match content.pages.get(&(at / PAGE_BYTES)) {
                    Some(page) => bytes.extend_from_slice(&page[span]),
                    None => bytes.resize(bytes.len() + span.len(), 0),
                }
                at += count;
            }
            bytes
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disks = self.disk.disks.lock();
        disks.change()?;
        let mut room = disks
            .capacity
            .map(|capacity| capacity.saturating_sub(disks.used()) / PAGE_BYTES);
        let inode = disks
            .inodes
            .get_mut(&self.inode)
            .ok_or(io::ErrorKind::NotFound)?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let number = at / PAGE_BYTES;
            let within = usize::try_from(at % PAGE_BYTES).unwrap_or(0);
            let page_len = usize::try_from(PAGE_BYTES).unwrap_or(0);
            let count = (page_len - within).min(bytes.len() - done);
            let mut page = match inode.now.pages.get(&number) {
                Some(page) => page.to_vec(),
                None => {
                    match &mut room {
                        Some(0) => return Err(io::ErrorKind::StorageFull.into()),
                        Some(pages) => *pages -= 1,
                        None => {}
                    }
                    vec![0; page_len]
                }
            };
            page[within..within + count].copy_from_slice(&bytes[done..done + count]);
            inode.now.pages.insert(number, page.into());
            done += count;
            inode.now.len = inode.now.len.max(at + count as u64);
        }
        Ok(())
    }

    fn punch(&self, span: Range<u64>) -> io::Result<()> {
        let mut disks = self.disk.disks.lock();
        disks.change()?;
        let inode = disks
            .inodes
            .get_mut(&self.inode)
            .ok_or(io::ErrorKind::NotFound)?;
        let whole = span.start.div_ceil(PAGE_BYTES)..span.end / PAGE_BYTES;
        inode.now.pages.retain(|number, _| !whole.contains(number));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disks = self.disk.disks.lock();
        disks.change()?;
        let inode = disks
            .inodes
            .get_mut(&self.inode)
            .ok_or(io::ErrorKind::NotFound)?;
        inode.now.len = len;
        inode
            .now
            .pages
            .retain(|number, _| number * PAGE_BYTES < len);
        Ok(())
    }

    fn stat(&self) -> io::Result<Stat> {
        self.content(|content| Stat {
            len: content.len,
            allocated: content.pages.len() as u64 * PAGE_BYTES,
        })
    }

    fn data_after(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.content(|content| {
            let first = *content.pages.range(offset / PAGE_BYTES..).next()?.0;
            let mut last = first;
            while content.pages.contains_key(&(last + 1)) {
                last += 1;
            }
            let start = offset.max(first * PAGE_BYTES);
            Some(start..((last + 1) * PAGE_BYTES).min(content.len))
        })
    }
}
