//! The second reading: before the target says FAIL, it asks what the files concerned are now.
//!
//! What it asks for is its word only: paths are validated and opened below the roots without following links, and what was
//! not copied from a live file is not read.

use std::{fs::File, io, sync::Arc, time::Duration};

use assay_common::{
    confined::Folder, limits::MAX_READ_AGAIN, manifest::Header, path::TreePath, profile::FileRules,
    sqlite::is_database, tls::MeteredChannel, uncached,
};
use assay_proto::v1::{
    ReadAgain, ReportReadingsRequest, SecondReading, replication_service_client::ReplicationServiceClient,
    second_reading::State,
};
use rustix::fs::{FileType, Stat};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How often the target hears that there is still somebody reading.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// Bytes that are read at a time.
const BLOCK_BYTES: usize = 1024 * 1024;

/// Where the files of a run are.
pub(super) struct Places {
    pub(super) header: Header,
    pub(super) roots: Vec<Arc<Folder>>,
    pub(super) rules: FileRules,
}

/// Reads what the target asks for and tells it. A target that does not want to know any more is no fault of the run.
pub(super) async fn answer(
    mut client: ReplicationServiceClient<MeteredChannel>,
    about: ReportReadingsRequest,
    wanted: Vec<ReadAgain>,
    places: Places,
    cancel: CancellationToken,
) {
    // However this ends, nobody goes on reading.
    let _stop = cancel.clone().drop_guard();
    let (readings, mut queue) = mpsc::channel(16);
    tracing::info!(files = wanted.len(), "the target asks for a second reading");
    let span = tracing::Span::current();
    let reading = tokio::task::spawn_blocking(move || {
        let _of_run = span.entered();
        for file in wanted.into_iter().take(MAX_READ_AGAIN) {
            let reading = places.read(&file, &cancel);
            if cancel.is_cancelled() || readings.blocking_send(reading).is_err() {
                return;
            }
        }
    });
    loop {
        let mut report = about.clone();
        let mut next = Vec::new();
        match tokio::time::timeout(SIGN_OF_LIFE, queue.recv_many(&mut next, MAX_READ_AGAIN)).await {
            Ok(0) => report.last = true,
            Ok(_) => report.readings = next,
            Err(_) => {}
        }
        let last = report.last;
        if let Err(status) = client.report_readings(report).await {
            tracing::warn!(error = status.message(), "the second reading is not taken");
            break;
        }
        if last {
            break;
        }
    }
    drop(queue);
    drop(reading.await);
}

impl Places {
    fn read(&self, wanted: &ReadAgain, cancel: &CancellationToken) -> SecondReading {
        let of = |state: State| SecondReading {
            path: wanted.path.clone(),
            state: state.into(),
            ..Default::default()
        };
        let Some((root, path)) = self.place(&wanted.path) else {
            return of(State::Unreadable);
        };
        let is_database = || root.open_file_below(&path).is_ok_and(|file| is_database(file).unwrap_or(false));
        if self.rules.is_of_mark(&path) || self.rules.has_databases() && is_database() {
            return of(State::OfMark);
        }
        match read(root, &path, wanted.size, cancel) {
            Ok(Some(reading)) => SecondReading { path: wanted.path.clone(), ..reading },
            Ok(None) => of(State::Gone),
            Err(error) => {
                tracing::warn!(%path, %error, "a file cannot be read again");
                of(State::Unreadable)
            }
        }
    }

    /// The root that a path of the tree is in, and the path in it.
    fn place(&self, path: &[u8]) -> Option<(&Folder, TreePath)> {
        let path = TreePath::parse(path).ok().filter(|path| !path.is_root())?;
        self.header.roots.iter().zip(&self.roots).find_map(|(root, folder)| {
            let inner = match root.subdirectory.as_bytes() {
                b"" => path.as_bytes(),
                folder => path.as_bytes().strip_prefix(folder)?.strip_prefix(b"/")?,
            };
            Some((&**folder, TreePath::parse(inner).ok()?))
        })
    }
}

/// `None` when there is no regular file.
fn read(
    root: &Folder,
    path: &TreePath,
    prefix: u64,
    cancel: &CancellationToken,
) -> io::Result<Option<SecondReading>> {
    let file = match root.open_file_below(path) {
        Ok(file) => file,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let before = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let (digest, prefix_digest) = digests(&file, before.st_size as u64, prefix, cancel)?;
    let after = rustix::fs::fstat(&file)?;
    let shape =
        |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
    Ok(Some(SecondReading {
        path: Vec::new(),
        state: State::Read.into(),
        size: before.st_size as u64,
        mtime_seconds: before.st_mtime,
        mtime_nanos: before.st_mtime_nsec as u32,
        held_still: shape(&before) == shape(&after),
        digest,
        prefix_digest,
    }))
}

/// Digest of the first `length` bytes, and of the first `prefix` of them; that one is empty when there are fewer.
fn digests(
    file: &File,
    length: u64,
    prefix: u64,
    cancel: &CancellationToken,
) -> io::Result<(Vec<u8>, Vec<u8>)> {
    uncached::read_once(file);
    let mut hasher = blake3::Hasher::new();
    let mut of_prefix = if prefix == 0 { hasher.finalize().as_bytes().to_vec() } else { Vec::new() };
    let mut block = vec![0; BLOCK_BYTES];
    let mut offset = 0;
    while offset < length {
        if cancel.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // A block ends where the prefix does.
        let end = if offset < prefix { length.min(prefix) } else { length };
        let want = usize::try_from(end - offset).unwrap_or(usize::MAX).min(block.len());
        let got = uncached::read_full_at(file, &mut block[..want], offset)?;
        if got == 0 {
            break;
        }
        hasher.update(&block[..got]);
        offset += got as u64;
        if offset == prefix {
            of_prefix = hasher.finalize().as_bytes().to_vec();
        }
    }
    Ok((hasher.finalize().as_bytes().to_vec(), of_prefix))
}

fn is_gone(error: &io::Error) -> bool {
    let link = Some(rustix::io::Errno::LOOP.raw_os_error());
    let no_folder = Some(rustix::io::Errno::NOTDIR.raw_os_error());
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == link
        || error.raw_os_error() == no_folder
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use assay_common::{digest::ContentDigest, manifest::Root, profile::Profile};

    use super::*;

    fn places(root: &Path) -> Places {
        let live_path = root.display().to_string();
        let text = "name = \"x\"\ndescription = \"x\"\nversion = \"1\"\ndepth = \"L0\"\n[copy]\nexclude = [\"made\"]\n\
                    [[check]]\nname = \"x\"\nargv = [\"x\"]\nfail_exit = [1]\n";
        let profile = Profile::parse(Path::new("x.toml"), text).expect("profile");
        Places {
            header: Header {
                roots: vec![Root { name: "main".into(), live_path, subdirectory: String::new() }],
            },
            roots: vec![Arc::new(Folder::open(root).expect("open"))],
            rules: FileRules::new(&profile, &Default::default(), &[]).expect("rules"),
        }
    }

    /// What the target asks for cannot lead out of the roots, and each file is told by what it is.
    #[test]
    fn files_are_told_by_what_they_are() {
        let folder = tempfile::tempdir().expect("temp");
        let root = folder.path().join("root");
        std::fs::create_dir(&root).expect("mkdir");
        std::fs::write(root.join("file"), "0123456789").expect("write");
        std::fs::write(root.join("made"), "by the engine").expect("write");
        std::fs::write(folder.path().join("secret"), "not ours").expect("write");
        std::os::unix::fs::symlink("../secret", root.join("link")).expect("symlink");
        let places = places(&root);
        let read = |path: &str, size| {
            let wanted = ReadAgain { path: path.into(), size, ..Default::default() };
            places.read(&wanted, &CancellationToken::new())
        };
        for (path, state) in [
            ("file", State::Read),
            ("made", State::OfMark),
            ("none", State::Gone),
            ("link", State::Gone),
            ("../secret", State::Unreadable),
            ("/etc/passwd", State::Unreadable),
            ("", State::Unreadable),
        ] {
            assert_eq!(read(path, 4).state(), state, "{path}");
        }
        let reading = read("file", 4);
        assert_eq!((reading.size, reading.held_still), (10, true));
        assert_eq!(reading.digest, ContentDigest::of(b"0123456789").0);
        assert_eq!(reading.prefix_digest, ContentDigest::of(b"0123").0);
        assert_eq!(read("file", 0).prefix_digest, ContentDigest::of(b"").0);
        assert_eq!(read("file", 11).prefix_digest, b"");
    }
}
