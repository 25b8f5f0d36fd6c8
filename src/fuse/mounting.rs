//! Makes and unmakes mounts: `mount(2)` as root, `fusermount3` for everybody else.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

const DEVICE: &str = "/dev/fuse";

/// What `mount -t` and `/proc/mounts` show; the part after the dot is the subtype.
const FILE_SYSTEM: &str = "fuse.manifs";

/// What a mount may be told; everything else is fixed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Whether other users may enter; `default_permissions` then decides who reads what.
    pub allow_other: bool,
}

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point cannot be looked at.
    #[error("cannot mount on {mountpoint}: {source}", mountpoint = mountpoint.display())]
    Mountpoint {
        /// Where.
        mountpoint: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It is not a directory.
    #[error("cannot mount on {}: not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// Something of ours is mounted there already and lives.
    #[error("{} is a mount of manifs already", .0.display())]
    Mounted(PathBuf),
    /// The FUSE device cannot be used.
    #[error("cannot open {DEVICE}: {0}")]
    Device(io::Error),
    /// The kernel refused.
    #[error("mounting on {mountpoint}: {source}", mountpoint = mountpoint.display())]
    Mount {
        /// Where.
        mountpoint: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// `fusermount3` is not installed.
    #[error("fusermount3 is not installed, and only root can mount without it")]
    NoHelper,
    /// `fusermount3` refused.
    #[error("{0}")]
    Helper(String),
    /// The session could not be started.
    #[error("serving {mountpoint}: {source}", mountpoint = mountpoint.display())]
    Serve {
        /// Where.
        mountpoint: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Detaching did not work.
    #[error("unmounting {mountpoint}: {source}", mountpoint = mountpoint.display())]
    Unmount {
        /// Where.
        mountpoint: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

impl MountError {
    /// Returns what the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            MountError::Mountpoint { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("make the directory first")
            }
            MountError::NoHelper => Some("install the package fuse3"),
            MountError::Device(_) => Some(
                "load the kernel module fuse, or ask the administrator for access to the device",
            ),
            MountError::Helper(text) if text.contains("user_allow_other") => Some(
                "add the line user_allow_other to /etc/fuse.conf, or mount without allow_other",
            ),
            MountError::Mounted(_) => Some("unmount it first, or use another directory"),
            _ => None,
        }
    }
}

/// Makes sure that `mountpoint` is a directory that can be mounted on, and returns it as an absolute path.
///
/// A dead FUSE mount of ours there is detached: its daemon was killed, and every access says "not connected". Blocking.
///
/// # Errors
/// [`MountError`] when there is no directory, or a live mount of ours.
pub fn prepare(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let at = |source| MountError::Mountpoint {
        mountpoint: mountpoint.to_path_buf(),
        source,
    };
    let absolute = std::path::absolute(mountpoint).map_err(at)?;
    if is_dead(&absolute) {
        unmount(&absolute)?;
    }
    let real = absolute.canonicalize().map_err(at)?;
    if !real.metadata().map_err(at)?.is_dir() {
        return Err(MountError::NotADirectory(real));
    }
    if mounts()
        .map_err(at)?
        .iter()
        .any(|mount| mount.mountpoint == real)
    {
        return Err(MountError::Mounted(real));
    }
    Ok(real)
}

/// Returns whether a mount is there whose daemon is gone. `statfs` is asked, since the kernel answers it from no cache.
pub fn is_dead(mountpoint: &Path) -> bool {
    rustix::fs::statfs(mountpoint).is_err_and(|error| error == Errno::NOTCONN)
}

/// Mounts and returns the device's descriptor, from which the session is served.
pub(super) fn mount(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = if rustix::process::geteuid().is_root() {
        mount_as_root(mountpoint, options)
    } else {
        mount_by_helper(mountpoint, options)
    }?;
    OURS.lock().push(mountpoint.to_path_buf());
    Ok(device)
}

/// Detaches the mount at once, whoever has files open in it.
///
/// # Errors
/// [`MountError::Unmount`] with the system's word, or the helper's.
pub fn unmount(mountpoint: &Path) -> Result<(), MountError> {
    if rustix::process::geteuid().is_root() {
        return rustix::mount::unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|error| MountError::Unmount {
                mountpoint: mountpoint.to_path_buf(),
                source: error.into(),
            });
    }
    let output = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(mountpoint)
        .output()
        .map_err(helper_error)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(helper_says(&output.stderr))
    }
}

/// Returns whether the device can be opened again, for a descriptor of its own in each thread.
pub(super) fn device_opens() -> bool {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .is_ok()
}

fn mount_as_root(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(MountError::Device)?
        .into();
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        if options.allow_other {
            ",allow_other"
        } else {
            ""
        },
    );
    let data = CString::new(data).expect("numbers and words only, so no NUL");
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(
        "manifs",
        mountpoint,
        FILE_SYSTEM,
        flags,
        Some(data.as_c_str()),
    )
    .map_err(|error| MountError::Mount {
        mountpoint: mountpoint.to_path_buf(),
        source: error.into(),
    })?;
    Ok(device)
}

/// Has `fusermount3` open the device and mount; it passes the descriptor through a socket (its `_FUSE_COMMFD` protocol).
fn mount_by_helper(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let io = |source| MountError::Mount {
        mountpoint: mountpoint.to_path_buf(),
        source,
    };
    let (ours, theirs) = UnixStream::pair().map_err(io)?;
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())
        .map_err(|error| io(error.into()))?;
    let mut words =
        String::from("ro,nosuid,nodev,noatime,default_permissions,fsname=manifs,subtype=manifs");
    if options.allow_other {
        words.push_str(",allow_other");
    }
    let child = Command::new("fusermount3")
        .arg0("fusermount3")
        .args(["-o", &words, "--"])
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(helper_error)?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(io)?;
    match received {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Err(error) if output.status.success() => Err(io(error)),
        _ => Err(helper_says(&output.stderr)),
    }
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err takes"
)]
fn helper_error(error: io::Error) -> MountError {
    if error.kind() == io::ErrorKind::NotFound {
        MountError::NoHelper
    } else {
        MountError::Helper(error.to_string())
    }
}

fn helper_says(stderr: &[u8]) -> MountError {
    let text = String::from_utf8_lossy(stderr);
    let line = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("fusermount3 refused without a word");
    MountError::Helper(line.trim().to_owned())
}

/// One FUSE mount of this program, as `/proc/self/mountinfo` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Where.
    pub mountpoint: PathBuf,
    /// The device number, `major:minor`.
    pub device: String,
}

/// Returns every mount of manifs that this process can see.
///
/// # Errors
/// The system's word when `/proc` cannot be read.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parse_mountinfo(&std::fs::read("/proc/self/mountinfo")?))
}

/// Returns whether a mount's daemon is this process: it has the device open, and no other mount of ours is asked.
pub fn is_served_by_us(mount: &MountEntry) -> bool {
    OURS.lock().contains(&mount.mountpoint)
}

/// Mount points that this process has made and not unmade.
static OURS: parking_lot::Mutex<Vec<PathBuf>> = parking_lot::Mutex::new(Vec::new());

/// Reads `36 35 0:98 / /mnt rw,noatime shared:1 - fuse.manifs manifs rw` (proc(5)).
fn parse_mountinfo(text: &[u8]) -> Vec<MountEntry> {
    let entry = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
        let mountpoint = unescape(fields.nth(1)?);
        let file_system = fields.skip_while(|field| *field != b"-").nth(1)?;
        (file_system == FILE_SYSTEM.as_bytes()).then(|| MountEntry {
            mountpoint: PathBuf::from(std::ffi::OsStr::from_bytes(&mountpoint)),
            device,
        })
    };
    text.split(|byte| *byte == b'\n')
        .filter_map(entry)
        .collect()
}

/// Undoes the kernel's `\040` for a space, and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| {
                let digits = std::str::from_utf8(digits).ok()?;
                u8::from_str_radix(digits, 8).ok()
            });
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Sets how far the kernel reads ahead; INIT cannot go above 128 KiB. Only root may, so elsewhere nothing happens.
pub(super) fn set_read_ahead(mountpoint: &Path, kib: u32) {
    let device = mounts().ok().and_then(|mounts| {
        mounts
            .into_iter()
            .rev()
            .find(|mount| mount.mountpoint == mountpoint)
    });
    let Some(MountEntry { device, .. }) = device else {
        return;
    };
    if let Err(error) = std::fs::write(
        format!("/sys/class/bdi/{device}/read_ahead_kb"),
        kib.to_string(),
    ) {
        tracing::debug!(%error, "the kernel's readahead stays as it is");
    }
}

/// Returns after how long the kernel gives a request up, and the whole mount with it; none: never, as by default.
///
/// `fs.fuse.default_request_timeout` and `max_request_timeout`, Linux 6.14.
pub fn request_timeout() -> Option<Duration> {
    let read = |name| std::fs::read_to_string(format!("/proc/sys/fs/fuse/{name}")).ok();
    ["default_request_timeout", "max_request_timeout"]
        .into_iter()
        .filter_map(|name| timeout_of(&read(name)?))
        .min()
}

fn timeout_of(text: &str) -> Option<Duration> {
    let seconds: u64 = text.trim().parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_request_timeout_is_zero_seconds() {
        assert_eq!(timeout_of("0\n"), None);
        assert_eq!(timeout_of("20\n"), Some(Duration::from_secs(20)));
        assert_eq!(timeout_of(""), None);
    }

    #[test]
    fn mountinfo_names_our_mounts_and_no_others() {
        let text = b"36 35 0:98 / /mnt/a\\040b\\134c ro,noatime shared:1 master:2 - fuse.manifs manifs ro\n\
            37 35 0:99 / /other rw - fuse.sshfs host rw\n38 1 0:3 / /short\n\n";
        let want = MountEntry {
            mountpoint: PathBuf::from("/mnt/a b\\c"),
            device: "0:98".into(),
        };
        assert_eq!(parse_mountinfo(text), [want]);
    }

    #[test]
    fn a_mount_point_must_be_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(prepare(&file), Err(MountError::NotADirectory(_))));
        let missing = prepare(&directory.path().join("missing")).unwrap_err();
        assert_eq!(missing.hint(), Some("make the directory first"));
        assert_eq!(
            prepare(directory.path()).unwrap(),
            directory.path().canonicalize().unwrap()
        );
    }
}
