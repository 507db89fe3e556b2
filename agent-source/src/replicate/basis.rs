//! What the source remembers of the generation that the target sealed last: its manifest, and for each entry how the live
//! file looked to `stat` when it was read. The manifest can be had again from the target; without the second part every
//! file is read again, and nothing is sent that the target has.

mod origin;

use std::{
    fs::{self, File},
    io::{self, BufReader, Read as _},
    path::PathBuf,
};

use assay_common::{
    closed,
    digest::{MANIFEST_CONTEXT, RootDigest},
    error::{IoContext as _, PathError},
    fault::{self, Point},
    manifest::{Entry, Header, ManifestError, ManifestReader},
};
use assay_proto::v1::Counts;
use prost::Message as _;
use rustix::fs::Stat;

pub use origin::Origin;

use super::readings::{self, ClockSince, Moment, MomentReader};

/// A file is trusted to be unchanged only when it had been at rest for this long when it was read: a write within the
/// same tick of the kernel's clock would leave the same times (10 ms at 100 Hz; ten ticks to be safe).
const RESTING: std::time::Duration = std::time::Duration::from_millis(100);
/// The same for a file whose time of change has no fraction of a second, as all have where times are whole seconds (ext3, ext4 with
/// inodes of 128 bytes, sshfs) or every other one (vfat). Each file tells that for itself: inodes of one ext4 differ in it.
const RESTING_COARSE: std::time::Duration = std::time::Duration::from_millis(2100);
/// A tick of the kernel's clock, at most: a write this long after the last one has another time.
const TICK: std::time::Duration = std::time::Duration::from_millis(10);
/// The same where times are whole seconds.
const TICK_COARSE: std::time::Duration = std::time::Duration::from_millis(2010);
/// Size of a [`Seen`] on disk.
pub const SEEN_BYTES: usize = 49;

/// How an entry looked when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
    /// False: whatever stat says, read it again.
    trusted: bool,
    /// How many names it had. Not remembered on disk.
    names: u64,
    /// When its content was read last, where the basis knows. Stands in a file of its own.
    read: Moment,
}

impl Seen {
    /// From a stat that was made at `now` (time since 1970).
    #[allow(clippy::useless_conversion, reason = "the number of names has 32 bits on some machines")]
    pub fn new(stat: &Stat, now: std::time::Duration) -> Self {
        let ctime = (stat.st_ctime, stat.st_ctime_nsec as u32);
        let resting = if ctime.1 == 0 { RESTING_COARSE } else { RESTING };
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            ctime,
            names: u64::from(stat.st_nlink),
            read: readings::UNKNOWN,
            // A time in the future says nothing either.
            trusted: now.checked_sub(changed(stat)).is_some_and(|age| age >= resting),
        }
    }

    /// True unless it has to be read again, whatever stat says.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// The same, to be read again next time.
    pub fn distrusted(self) -> Self {
        Self { trusted: false, ..self }
    }

    /// True when the entry surely is as it was: same file, same size, same times (a change of mode, owner or attributes
    /// changes ctime too).
    pub fn still_holds(&self, stat: &Stat) -> bool {
        self.trusted && self.looks_like(stat)
    }

    /// True for the same file of the same size and times.
    pub fn looks_like(&self, stat: &Stat) -> bool {
        self.device == stat.st_dev && self.looks_like_on_any_device(stat)
    }

    /// The same, whatever number its device has now: a file system that was mounted again may have another one.
    pub fn looks_like_on_any_device(&self, stat: &Stat) -> bool {
        self.inode == stat.st_ino
            && self.size == stat.st_size as u64
            && self.mtime == (stat.st_mtime, stat.st_mtime_nsec as u32)
            && self.ctime == (stat.st_ctime, stat.st_ctime_nsec as u32)
    }

    /// The same for two looks at it. That the root is on the same file system is known by other means.
    pub fn is_same_as(&self, other: &Self) -> bool {
        (self.inode, self.size, self.mtime, self.ctime) == (other.inode, other.size, other.mtime, other.ctime)
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many names it had, where that is known.
    pub fn names(&self) -> u64 {
        self.names
    }

    /// When its content was read last.
    pub fn read(&self) -> Moment {
        self.read
    }

    /// Device and inode.
    pub fn file(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// True for the same file with the same content, whatever its name is: a rename changes ctime alone.
    pub fn is_moved_to(&self, other: &Self) -> bool {
        self.file() == other.file() && self.size == other.size && self.mtime == other.mtime
    }

    /// As it stands on disk.
    pub fn encode(&self) -> [u8; SEEN_BYTES] {
        let mut bytes = [0; SEEN_BYTES];
        bytes[..8].copy_from_slice(&self.device.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.inode.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.mtime.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.mtime.1.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.ctime.0.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.ctime.1.to_le_bytes());
        bytes[48] = u8::from(self.trusted);
        bytes
    }

    /// Reads what [`Seen::encode`] wrote.
    pub fn decode(bytes: &[u8; SEEN_BYTES]) -> Self {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Self {
            device: word(0),
            inode: word(8),
            size: word(16),
            mtime: (word(24) as i64, half(32)),
            ctime: (word(36) as i64, half(44)),
            trusted: bytes[48] == 1,
            names: 1,
            read: readings::UNKNOWN,
        }
    }
}

/// The folder that holds the basis: `manifest`, `seen`, `origin`, `read` (when each entry was), `standing`, `blocks`, and `root` with the digest of the manifest they belong to.
#[derive(Debug, Clone)]
pub struct BasisFolder(PathBuf);

impl BasisFolder {
    /// The basis in this folder, which need not exist.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The manifest's file.
    pub fn manifest(&self) -> PathBuf {
        self.0.join("manifest")
    }

    /// The file of [`Seen`] records.
    pub fn seen(&self) -> PathBuf {
        self.0.join("seen")
    }

    /// When each entry was read last.
    pub fn moments(&self) -> PathBuf {
        self.0.join("read")
    }

    /// Where reading again stands.
    pub fn standing(&self) -> PathBuf {
        self.0.join("standing")
    }

    /// What is remembered of the blocks of large files.
    pub fn blocks(&self) -> PathBuf {
        self.0.join("blocks")
    }

    /// What the manifest adds up to: the part of the counts that says what a tree holds.
    fn held(&self) -> PathBuf {
        self.0.join("held")
    }

    /// Keeps what the manifest adds up to.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_held(&self, counts: &Counts) -> Result<(), PathError> {
        closed::write(&self.held(), counts.encode_to_vec()).at("write", &self.held())
    }

    /// Takes over all of `other`, of which nothing has changed. Its root digest, and what it adds up to; `None` when
    /// something of it is missing.
    pub fn same_as(&self, other: &Self) -> Option<(RootDigest, Counts)> {
        let (root, held) =
            (other.root_digest()?, Counts::decode(fs::read(other.held()).ok()?.as_slice()).ok()?);
        for (from, to) in
            [(other.manifest(), self.manifest()), (other.seen(), self.seen()), (other.held(), self.held())]
        {
            fs::hard_link(from, to).ok()?;
        }
        // It can be had again by reading.
        fs::hard_link(other.blocks(), self.blocks()).ok();
        Some((root, held))
    }

    fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    /// The root digest of the manifest that is here, if there is one.
    pub fn root_digest(&self) -> Option<RootDigest> {
        RootDigest::from_hex(fs::read_to_string(self.root()).ok()?.trim())
    }

    /// True when the manifest that is here is that of `root`. Nothing here is synced, because all of it can be had again: after a
    /// power cut the name of a tree may stand beside a manifest that never came to the disk.
    pub fn is_whole(&self, root: RootDigest) -> bool {
        let mut hasher = blake3::Hasher::new_derive_key(MANIFEST_CONTEXT);
        let hashed = File::open(self.manifest()).and_then(|file| hasher.update_reader(file).map(drop));
        let counted = fs::metadata(self.held()).is_ok_and(|held| held.len() > 0);
        hashed.is_ok()
            && hasher.finalize() == root.0
            && (counted || fs::remove_file(self.held()).is_ok() || !self.held().exists())
    }

    /// Makes an empty folder of it.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn clear(&self) -> Result<(), PathError> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("remove", &self.0),
            _ => {}
        }
        closed::create_folder(&self.0).at("create", &self.0)
    }

    /// Removes what an earlier attempt left of a basis here, and nothing else. Its files are removed, not written into: they
    /// may be further names of another basis' files.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn forget(&self) -> Result<(), PathError> {
        let files = [
            self.root(),
            self.held(),
            self.blocks(),
            self.standing(),
            self.moments(),
            self.origin_path(),
            self.seen(),
            self.manifest(),
        ];
        for path in files {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).at("remove", &path);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Says of what tree the manifest in this folder is. The last file to be written.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_root_digest(&self, root: RootDigest) -> Result<(), PathError> {
        closed::write(&self.root(), format!("{root}\n")).at("write", &self.root())
    }

    /// Takes the place of `other`. A crash in between leaves a basis without a root digest, or none: the next run then asks
    /// the target for the manifest and reads all files.
    ///
    /// # Errors
    /// When the folders cannot be moved.
    pub fn replace(&self, other: &Self) -> Result<(), PathError> {
        fault::at(Point::BasisReplace).at("remove", &other.0)?;
        match fs::remove_dir_all(&other.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).at("remove", &other.0);
            }
            _ => {}
        }
        fault::at(Point::BasisReplaced).at("rename", &self.0)?;
        fs::rename(&self.0, &other.0).at("rename", &self.0)
    }
}

/// The entries of a basis with how they looked, in order.
pub struct BasisReader {
    manifest: Option<ManifestReader<BufReader<File>>>,
    seen: Option<BufReader<File>>,
    moments: Option<MomentReader>,
    clock: ClockSince,
    next: Option<(Entry, Option<Seen>)>,
}

impl BasisReader {
    /// A basis without entries.
    pub fn empty() -> Self {
        Self { manifest: None, seen: None, moments: None, clock: ClockSince::default(), next: None }
    }

    /// Reads the basis in `folder`; `clock` says what its times mean today.
    ///
    /// # Errors
    /// When it is not there or not one.
    pub fn open(folder: &BasisFolder, clock: ClockSince) -> Result<Self, ManifestError> {
        let manifest =
            ManifestReader::open(BufReader::with_capacity(256 * 1024, File::open(folder.manifest())?))?;
        let seen = File::open(folder.seen()).ok().map(|file| BufReader::with_capacity(64 * 1024, file));
        let moments = Some(MomentReader::open(&folder.moments()));
        let mut reader = Self { manifest: Some(manifest), seen, moments, clock, next: None };
        reader.advance()?;
        Ok(reader)
    }

    /// The header of its manifest.
    pub fn header(&self) -> Option<&Header> {
        self.manifest.as_ref().map(ManifestReader::header)
    }

    /// The next entry.
    pub fn peek(&self) -> Option<&(Entry, Option<Seen>)> {
        self.next.as_ref()
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// When the basis cannot be read.
    pub fn take(&mut self) -> Result<Option<(Entry, Option<Seen>)>, ManifestError> {
        let taken = self.next.take();
        self.advance()?;
        Ok(taken)
    }

    fn advance(&mut self) -> Result<(), ManifestError> {
        self.next = None;
        if let Some(manifest) = &mut self.manifest
            && let Some(entry) = manifest.next_entry()?
        {
            let mut record = [0; SEEN_BYTES];
            let known = self.seen.as_mut().is_some_and(|seen| seen.read_exact(&mut record).is_ok());
            let read = self.moments.as_mut().map_or(readings::UNKNOWN, MomentReader::next);
            let seen = known.then(|| Seen::decode(&record)).map(|seen| Seen {
                read: self.clock.put_right(read),
                trusted: seen.trusted && self.clock.has_passed(seen.ctime),
                ..seen
            });
            self.next = Some((entry, seen));
        }
        Ok(())
    }
}

/// When the kernel says that a file was changed last, as time since 1970.
pub fn changed(stat: &Stat) -> std::time::Duration {
    std::time::Duration::new(u64::try_from(stat.st_ctime).unwrap_or(0), stat.st_ctime_nsec as u32)
}

/// How long it takes at `now` until a write is sure to leave another time than the last one did; `None` when it does already. A time in
/// the future, by more than a tick, is one that no write of now leaves.
pub fn time_to_next_tick(stat: &Stat, now: std::time::Duration) -> Option<std::time::Duration> {
    let tick = if stat.st_ctime_nsec == 0 { TICK_COARSE } else { TICK };
    let left = (changed(stat) + tick).checked_sub(now)?;
    (!left.is_zero() && left <= tick * 2).then(|| left.min(tick))
}

/// Time since 1970 by this host's clock, which is the clock of its file times.
pub fn file_clock() -> std::time::Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its parts reach the disk in any order, or never.
    #[test]
    fn a_basis_that_a_power_cut_left_half_written_is_not_whole() {
        let folder = tempfile::tempdir().expect("temp");
        let basis = BasisFolder::new(folder.path().join("basis"));
        basis.clear().expect("mkdir");
        let manifest = b"a manifest";
        let root = blake3::Hasher::new_derive_key(MANIFEST_CONTEXT).update(manifest).finalize();
        let root = RootDigest(*root.as_bytes());
        basis.set_root_digest(root).expect("write");
        assert!(!basis.is_whole(root), "no manifest");
        for half in [&b""[..], b"a man", b"a manifes\0"] {
            fs::write(basis.manifest(), half).expect("write");
            assert!(!basis.is_whole(root));
        }
        fs::write(basis.manifest(), manifest).expect("write");
        fs::write(basis.held(), b"").expect("write");
        assert!(basis.is_whole(root));
        assert!(!basis.held().exists(), "counts that are not there are not counts of nothing");
        assert!(basis.is_whole(root));
    }

    #[test]
    fn a_file_that_changed_just_now_is_not_trusted() {
        let file = tempfile::NamedTempFile::new().expect("temp");
        let mut stat = rustix::fs::stat(file.path()).expect("stat");
        stat.st_ctime_nsec |= 1;
        let changed = changed(&stat);
        let fresh = Seen::new(&stat, changed + RESTING / 2);
        assert!(!fresh.still_holds(&stat));
        let rested = Seen::new(&stat, changed + RESTING);
        assert!(rested.still_holds(&stat));
        assert!(!Seen::new(&stat, changed - RESTING).still_holds(&stat), "a time in the future");
        assert_eq!(Seen::decode(&rested.encode()), rested);
        assert!(!rested.distrusted().still_holds(&stat));
        assert_eq!(time_to_next_tick(&stat, changed), Some(TICK));
        assert_eq!(time_to_next_tick(&stat, changed + TICK), None);
        assert_eq!(time_to_next_tick(&stat, changed - TICK / 2), Some(TICK), "a clock beside this one");
        assert_eq!(time_to_next_tick(&stat, changed - RESTING), None, "no write of now leaves that time");
    }

    /// Whole seconds are told by the file itself: a second write in the same one leaves the same times.
    #[test]
    fn a_file_with_a_coarse_time_rests_longer() {
        let file = tempfile::NamedTempFile::new().expect("temp");
        let mut stat = rustix::fs::stat(file.path()).expect("stat");
        stat.st_ctime_nsec = 0;
        let changed = changed(&stat);
        for (age, holds) in [(RESTING, false), (TICK_COARSE, false), (RESTING_COARSE, true)] {
            assert_eq!(Seen::new(&stat, changed + age).still_holds(&stat), holds, "{age:?}");
        }
        assert_eq!(time_to_next_tick(&stat, changed + RESTING), Some(TICK_COARSE - RESTING));
        assert_eq!(time_to_next_tick(&stat, changed + RESTING_COARSE), None);
    }
}
