//! Opens live files: a file that another program has leased is waited for, and what a program may still write through a mapping is
//! seen to leave a trace.

use std::{
    fs::File,
    io,
    time::{Duration, Instant},
};

use assay_common::confined::Folder;
use fiemap::{Fiemap, FiemapFlags};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::basis::{changed, file_clock};

/// How long the holder of a lease may take when the kernel does not say, in seconds.
const LEASE_BREAK_SECONDS: u64 = 45;
/// Added to what the kernel says: it takes the lease away itself when that time is over.
const LEASE_GRACE: Duration = Duration::from_secs(5);
/// Pause between two attempts to open a leased file, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// A file whose content changed less than this ago may have pages that are not written back, when the kernel does not say: the
/// defaults of `/proc/sys/vm/dirty_expire_centisecs` and twice `dirty_writeback_centisecs`.
const WRITE_BACK: Duration = Duration::from_secs(40);

/// Opens `name` for reading. A file server's lease on it (Samba's oplocks, NFS delegations) is broken by the attempt, and its holder
/// has the time that the kernel gives it to let go.
///
/// # Errors
/// As the kernel says; `EWOULDBLOCK` when the lease is not given up, and `Interrupted` when `stop` says so.
pub(super) fn open_live(folder: &Folder, name: &[u8], stop: &CancellationToken) -> io::Result<File> {
    let (mut started, mut pause) = (None::<Instant>, PAUSES.0);
    loop {
        match folder.open_file(name) {
            Err(error) if error.raw_os_error() == Some(Errno::WOULDBLOCK.raw_os_error()) => {
                if stop.is_cancelled() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                if started.get_or_insert_with(Instant::now).elapsed() > lease_break_time() + LEASE_GRACE {
                    return Err(error);
                }
                super::pause(pause);
                pause = (pause * 2).min(PAUSES.1);
            }
            opened => return opened,
        }
    }
}

fn lease_break_time() -> Duration {
    Duration::from_secs(kernel_number("/proc/sys/fs/lease-break-time").unwrap_or(LEASE_BREAK_SECONDS))
}

fn kernel_number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// How long a page may stay dirty before the kernel has begun to write it back. `None`: for ever.
fn write_back_time() -> Option<Duration> {
    let centiseconds = |name: &str| kernel_number(&format!("/proc/sys/vm/{name}"));
    match (centiseconds("dirty_expire_centisecs"), centiseconds("dirty_writeback_centisecs")) {
        (_, Some(0)) => None,
        (Some(expire), Some(every)) => {
            Some(Duration::from_millis(10) * u32::try_from(expire + 2 * every).unwrap_or(u32::MAX))
        }
        _ => Some(WRITE_BACK),
    }
}

/// True when the last change is so long ago that nothing of it can be dirty.
fn is_written_back(file: &File) -> bool {
    let age = rustix::fs::fstat(file).ok().and_then(|stat| file_clock().checked_sub(changed(&stat)));
    age.zip(write_back_time()).is_some_and(|(age, time)| age > time)
}

/// Writes back what of `file` is dirty, and waits for it. A page that is written back is write-protected: the next write through a
/// mapping is noticed by the kernel, and leaves a new time. Before that a program writes to a dirty page without a trace.
///
/// The call asks for the places of the file's extents, which
/// must be known on the disk for that, and waits for a write that is under way (seen on ext4, XFS and btrfs), whose time was set when it began: it writes back that file's pages, and neither commits a journal nor empties a disk's cache, as
/// `fdatasync` would. That one is for file systems without such a call.
///
/// # Errors
/// When the pages cannot be written back.
pub(super) fn protect_mapped_pages(file: &File) -> io::Result<()> {
    let is_no_call = |error: &io::Error| {
        let code = error.raw_os_error().map(Errno::from_raw_os_error);
        matches!(code, Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::INVAL | Errno::BADR))
    };
    match Fiemap::with_flags(file, FiemapFlags::SYNC).next().transpose() {
        Ok(_) => Ok(()),
        Err(error) if is_no_call(&error) => {
            match if is_written_back(file) { Ok(()) } else { file.sync_data() } {
                // Nor that: there is nothing to be written back, or it is not known how.
                Err(error) if is_no_call(&error) => Ok(()),
                done => done,
            }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lease that is given up is waited for; one that is not is an error that says so.
    #[test]
    fn a_leased_file_is_opened_when_its_holder_lets_go() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("leased");
        std::fs::write(&path, "x").expect("write");
        // Python's, because a lease is taken by fcntl alone. It is let go when the kernel asks for it.
        let script = "import fcntl,os,signal,sys\n\
            f=os.open(sys.argv[1],os.O_RDWR)\n\
            signal.signal(signal.SIGIO,lambda *_:fcntl.fcntl(f,fcntl.F_SETLEASE,fcntl.F_UNLCK))\n\
            fcntl.fcntl(f,fcntl.F_SETLEASE,fcntl.F_WRLCK)\nprint('leased',flush=True)\n\
            sys.stdin.read()";
        let mut holder = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3 is needed for this test");
        let mut line = String::new();
        let output = holder.stdout.take().expect("piped");
        std::io::BufRead::read_line(&mut io::BufReader::new(output), &mut line).expect("read");
        assert_eq!(line, "leased\n");
        let held = Folder::open(folder.path()).expect("open");
        let stopped = CancellationToken::new();
        stopped.cancel();
        let refused = open_live(&held, b"leased", &stopped).map(drop).map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::Interrupted), "nobody waits for a run that is cancelled");
        open_live(&held, b"leased", &CancellationToken::new()).expect("it is let go");
        drop(holder.stdin.take());
        holder.wait().expect("waited for");
    }

    #[test]
    fn a_file_system_without_extents_is_flushed() {
        let on_disk = tempfile::tempfile().expect("temp");
        protect_mapped_pages(&on_disk).expect("written back");
        let shm = std::path::Path::new("/dev/shm");
        if shm.is_dir() {
            let in_memory = tempfile::tempfile_in(shm).expect("temp");
            protect_mapped_pages(&in_memory).expect("nothing to be done");
        }
        assert!(write_back_time().is_none_or(|time| time > Duration::ZERO));
    }
}
