//! What SQLite's files look like from the outside (<https://sqlite.org/fileformat2.html>): which file is a database, and whether a
//! write-ahead log has lost something.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
};

/// The first bytes of every database.
pub const DATABASE_HEADER: &[u8; 16] = b"SQLite format 3\0";
/// The first bytes of a rollback journal that holds something.
pub const JOURNAL_HEADER: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// What SQLite's files beside a database are called.
pub const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];

const WAL_HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;

/// True for the length of a file that may be a database. SQLite does not mind bytes behind the last page, and one that was cut has
/// any length.
pub fn may_be_database(length: u64) -> bool {
    length >= DATABASE_HEADER.len() as u64
}

/// True for what begins as a database does.
///
/// # Errors
/// When it cannot be read.
pub fn is_database(mut file: impl Read) -> io::Result<bool> {
    let mut header = [0; DATABASE_HEADER.len()];
    match file.read_exact(&mut header) {
        Ok(()) => Ok(header == *DATABASE_HEADER),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Blocks that are looked at to tell whether a file is encrypted, and how long each is.
const BLOCKS: u64 = 8;
const BLOCK_BYTES: usize = 512;
/// Of as many random bytes, fewer different ones are as unlikely as a lottery's first prize.
const DIFFERENT_BYTES: usize = 180;

/// True for a file in which every block looks random, as in an encrypted database, whose first bytes may be plain.
///
/// # Errors
/// When it cannot be read.
pub fn looks_encrypted(file: &File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    if !length.is_multiple_of(BLOCK_BYTES as u64) || length < 4096 {
        return Ok(false);
    }
    let mut block = [0; BLOCK_BYTES];
    for number in 0..BLOCKS {
        let room = length - 2 * BLOCK_BYTES as u64;
        let offset = BLOCK_BYTES as u64 + room * number / (BLOCKS - 1);
        file.read_exact_at(&mut block, offset)?;
        let mut seen = [false; 256];
        block.iter().for_each(|byte| seen[usize::from(*byte)] = true);
        if seen.iter().filter(|it| **it).count() < DIFFERENT_BYTES {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a write-ahead log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wal {
    /// The salts of its header, as they stand there. `None`: the header is not valid.
    pub salts: Option<[u8; 8]>,
    /// Frames from the start whose checksums hold.
    pub valid_frames: u32,
    /// The frame after them, if there is one.
    pub broken: Option<BrokenFrame>,
}

/// The first frame of a log whose checksum does not hold, and what comes after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokenFrame {
    /// Its number, from 1.
    pub number: u32,
    /// It was not written since the log was begun anew: it is zeros, or a frame of the log before.
    pub is_unwritten: bool,
    /// It has the salts of the header, so it belongs to the same log.
    pub has_salts: bool,
    /// Its header, to compare two readings.
    pub header: [u8; FRAME_HEADER_BYTES],
    /// Transactions that were committed in frames after it that belong to the same log and follow on each other. SQLite does not
    /// see them any more.
    pub commits_behind: u32,
}

/// What all processes that use a database have agreed on: the start of its `-shm` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalIndex {
    /// The salts of the log that it is about.
    pub salts: [u8; 8],
    /// The last frame that counts.
    pub last_frame: u32,
    /// Frames whose pages are in the database already.
    pub backfilled: u32,
}

impl WalIndex {
    /// Reads it from the first bytes of the file. `None`: it is not valid, so the next process makes it anew from the log.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (first, second) = (bytes.get(..48)?, bytes.get(48..96)?);
        let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        if first != second || first[12] != 1 || number(0)? != 3_007_000 {
            return None;
        }
        Some(Self { salts: first[32..40].try_into().ok()?, last_frame: number(16)?, backfilled: number(96)? })
    }
}

/// Reads a log to its end. `page_bytes` is the length of the database's pages, for a log whose header is damaged.
///
/// # Errors
/// When it cannot be read.
pub fn read_wal(mut log: impl Read, page_bytes: u32) -> io::Result<Wal> {
    let mut header = [0; WAL_HEADER_BYTES];
    let mut wal = Wal::default();
    if !fill(&mut log, &mut header)? {
        return Ok(wal);
    }
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let is_big_endian = word(0) & 1 == 1;
    let own_page_bytes = word(8);
    let mut sums = checksum(is_big_endian, (0, 0), &header[..24]);
    let is_sound = word(0) & !1 == 0x377f_0682 && word(4) == 3_007_000 && sums == (word(24), word(28));
    let is_size = |it: u32| it.is_power_of_two() && (512..=65536).contains(&it);
    let page_bytes = if is_sound && is_size(own_page_bytes) { own_page_bytes } else { page_bytes };
    if !is_size(page_bytes) {
        return Ok(wal);
    }
    let mut salts = is_sound.then(|| <[u8; 8]>::try_from(&header[16..24]).expect("eight bytes"));
    wal.salts = salts;
    let mut frame = vec![0; FRAME_HEADER_BYTES + page_bytes as usize];
    let (mut number, mut before) = (0_u32, None);
    while fill(&mut log, &mut frame)? {
        number = number.saturating_add(1);
        let (head, page) = frame.split_at(FRAME_HEADER_BYTES);
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let stored = (word(16), word(20));
        let follows =
            |sums| checksum(is_big_endian, checksum(is_big_endian, sums, &head[..8]), page) == stored;
        let has_salts = salts.is_some_and(|salts| salts == head[8..16]);
        match &mut wal.broken {
            None if is_sound && has_salts && word(0) > 0 && follows(sums) => {
                sums = stored;
                wal.valid_frames = number;
            }
            None => {
                let header = head.try_into().expect("a frame's header");
                let is_zero = frame.iter().all(|byte| *byte == 0);
                let is_unwritten = is_zero || salts.is_some_and(|salts| is_of_log_before(salts, head));
                wal.broken = Some(BrokenFrame { number, is_unwritten, has_salts, header, commits_behind: 0 });
                if salts.is_none() && !is_zero {
                    // The header is gone: what belongs together says so by its own salts.
                    salts = head[8..16].try_into().ok();
                }
            }
            Some(broken) => {
                let belongs = has_salts && word(0) > 0 && before.is_some_and(follows);
                if belongs && word(4) > 0 {
                    broken.commits_behind += 1;
                }
            }
        }
        before = Some(stored);
    }
    Ok(wal)
}

/// A log of four commits for a database with pages of this length, whose second frame is damaged. For a control of the check.
pub fn damaged_wal(page_bytes: u32, salt: u64) -> Vec<u8> {
    let mut log = wal_of(page_bytes, salt, &[1, 1, 1, 1]);
    log[WAL_HEADER_BYTES + FRAME_HEADER_BYTES + page_bytes as usize + 100] ^= 0xff;
    log
}

/// A sound log with a frame for each number: the size of the database after a commit, or 0.
fn wal_of(page_bytes: u32, salt: u64, commits: &[u32]) -> Vec<u8> {
    let put = |log: &mut Vec<u8>, sums: (u32, u32)| {
        log.extend_from_slice(&sums.0.to_be_bytes());
        log.extend_from_slice(&sums.1.to_be_bytes());
    };
    let mut log: Vec<_> =
        [0x377f_0683, 3_007_000, page_bytes, 0].into_iter().flat_map(u32::to_be_bytes).collect();
    log.extend_from_slice(&salt.to_be_bytes());
    let mut sums = checksum(true, (0, 0), &log);
    put(&mut log, sums);
    for (number, commit) in (1_u32..).zip(commits) {
        let mut head = [number.to_be_bytes(), commit.to_be_bytes()].concat();
        let page = vec![head[3] ^ salt.to_be_bytes()[0]; page_bytes as usize];
        sums = checksum(true, checksum(true, sums, &head), &page);
        head.extend_from_slice(&salt.to_be_bytes());
        put(&mut head, sums);
        log.extend_from_slice(&head);
        log.extend_from_slice(&page);
    }
    log
}

impl Wal {
    /// What the log has lost, in a sentence; `None` when it ends as a sound log ends.
    ///
    /// A log may end before its file does: it is written from its start again and again, and a transaction that was rolled back
    /// leaves frames behind. Such frames have other salts, or hold no commit. `index` is what living processes have agreed on.
    pub fn loss(&self, index: Option<&WalIndex>) -> Option<String> {
        let Some(broken) = &self.broken else { return self.cut(index?) };
        let behind = match broken.commits_behind {
            0 => String::new(),
            1 => "; 1 committed transaction behind it is not seen any more".to_owned(),
            more => format!("; {more} committed transactions behind it are not seen any more"),
        };
        let number = broken.number;
        let Some(salts) = self.salts else {
            return (broken.commits_behind > 0).then(|| format!("its header is damaged{behind}"));
        };
        match index.filter(|index| index.salts == salts) {
            // Everything is in the database: the next writer begins the log anew.
            Some(index) if index.backfilled >= index.last_frame => None,
            Some(index) if index.last_frame > self.valid_frames => Some(format!(
                "frame {number} is damaged, and the log has {} frames that count{behind}",
                index.last_frame
            )),
            // One commit alone can be that of a writer that was killed while it wrote.
            Some(_) if broken.commits_behind < 2 => None,
            // The file system had not written this frame when the power was cut: no commit was promised before.
            _ if broken.is_unwritten || broken.commits_behind == 0 => None,
            _ => Some(format!("frame {number} is damaged{behind}")),
        }
    }

    /// What a log without a broken frame has lost: it ends before the last frame on which living processes have agreed. Its own
    /// frames cannot tell, because a log may end after each commit.
    fn cut(&self, index: &WalIndex) -> Option<String> {
        let is_of_this_log = self.salts.is_none_or(|salts| salts == index.salts);
        let counts = index.last_frame > index.backfilled && index.last_frame > self.valid_frames;
        (is_of_this_log && counts).then(|| {
            let (frames, missing) = (index.last_frame, index.last_frame - self.valid_frames);
            format!("the file ends after frame {}, and the log has {frames} frames that count: {missing} are missing", self.valid_frames)
        })
    }
}

/// True for a frame's header that an earlier log in the same file left behind. Each time that a log is begun anew its first salt
/// grows by one and its second is drawn: no damage of a byte or a bit makes such a pair.
fn is_of_log_before(salts: [u8; 8], head: &[u8]) -> bool {
    /// More logs than there are between two that left frames in the same place.
    const LOGS: u32 = 1 << 16;
    let word = |of: &[u8]| u32::from_be_bytes([of[0], of[1], of[2], of[3]]);
    let age = word(&salts[..4]).wrapping_sub(word(&head[8..12]));
    (1..=LOGS).contains(&age) && salts[4..] != head[12..16]
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The checksum of a write-ahead log, continued over `bytes`, whose length is a multiple of eight.
fn checksum(is_big_endian: bool, (mut first, mut second): (u32, u32), bytes: &[u8]) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let word = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            if is_big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
        };
        first = first.wrapping_add(word(0)).wrapping_add(second);
        second = second.wrapping_add(word(4)).wrapping_add(first);
    }
    (first, second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 512;
    const FRAME: usize = FRAME_HEADER_BYTES + PAGE;

    /// A log with a frame for each number: the size of the database after a commit, or 0.
    fn log(salt: u8, commits: &[u32]) -> Vec<u8> {
        wal_of(PAGE as u32, u64::from_be_bytes([salt; 8]), commits)
    }

    fn read(log: &[u8]) -> Wal {
        read_wal(log, PAGE as u32).expect("read")
    }

    fn index(last_frame: u32, backfilled: u32) -> WalIndex {
        WalIndex { salts: [7; 8], last_frame, backfilled }
    }

    #[test]
    fn a_sound_log_has_lost_nothing() {
        let whole = read(&log(7, &[0, 2, 3, 4]));
        assert_eq!((whole.valid_frames, &whole.broken), (4, &None));
        assert_eq!(whole.loss(None), None);
        assert_eq!(read(&[]).loss(None), None);
        // It was begun anew: what is behind has other salts.
        let (new, old) = (log(7, &[0, 2]), log(9, &[0, 2, 3, 4]));
        let reused = read(&[&new[..], &old[new.len()..]].concat());
        assert_eq!((reused.valid_frames, reused.loss(None)), (2, None));
        // A long transaction was rolled back, and a shorter one was committed in its place.
        let (short, long) = (log(7, &[2, 3]), log(7, &[2, 0, 0, 0, 0]));
        let mut rolled_back = [&short[..], &long[short.len()..]].concat();
        assert_eq!(read(&rolled_back).loss(None), None);
        assert_eq!(read(&rolled_back).loss(Some(&index(2, 0))), None);
        // The power was cut, and one frame had not been written in this round: what lay there before is behind it and in front.
        let salt = |number: u32, drawn: u32| u64::from(number) << 32 | u64::from(drawn);
        let new = wal_of(PAGE as u32, salt(8, 0x1234_5678), &[1, 2, 3, 4, 5]);
        let old = wal_of(PAGE as u32, salt(7, 0x9abc_def0), &[1, 2, 3, 4, 5]);
        let third = WAL_HEADER_BYTES + 2 * FRAME..WAL_HEADER_BYTES + 3 * FRAME;
        let mut cut = new.clone();
        cut[third.clone()].copy_from_slice(&old[third.clone()]);
        assert_eq!((read(&cut).valid_frames, read(&cut).loss(None)), (2, None));
        // A frame of some other log is none of the one before.
        cut[third.clone()].copy_from_slice(&wal_of(PAGE as u32, salt(9, 0x9abc_def0), &[1; 5])[third]);
        assert!(read(&cut).loss(None).is_some());
        // The end of the file was cut in the middle of a frame.
        rolled_back.truncate(short.len() + 100);
        assert_eq!(read(&rolled_back).loss(None), None);
    }

    #[test]
    fn a_damaged_frame_loses_what_is_behind_it() {
        let sound = log(7, &[1, 2, 3, 4, 5]);
        for (at, name) in [(100, "the page"), (2, "the page's number"), (9, "a salt"), (17, "the checksum")] {
            let mut damaged = sound.clone();
            damaged[WAL_HEADER_BYTES + FRAME + at] ^= 0xff;
            let wal = read(&damaged);
            assert_eq!(wal.valid_frames, 1, "{name}");
            let loss = wal.loss(None).unwrap_or_else(|| panic!("{name} is damaged"));
            assert!(
                loss.starts_with("frame 2 is damaged; ") && loss.ends_with("not seen any more"),
                "{loss}"
            );
            // Living processes still count on it.
            assert!(wal.loss(Some(&index(5, 0))).expect("lost").contains("5 frames that count"), "{name}");
            // Everything is in the database by now.
            assert_eq!(wal.loss(Some(&index(5, 5))), None, "{name}");
        }
        // The last one: only who counts can tell.
        let mut last = sound.clone();
        last[WAL_HEADER_BYTES + 4 * FRAME + 100] ^= 0xff;
        assert_eq!(read(&last).loss(None), None);
        assert!(read(&last).loss(Some(&index(5, 0))).is_some());
        assert_eq!(read(&last).loss(Some(&index(4, 0))), None);
        // A frame that the file system never wrote.
        let mut hole = sound.clone();
        hole[WAL_HEADER_BYTES + FRAME..WAL_HEADER_BYTES + 2 * FRAME].fill(0);
        assert_eq!(read(&hole).loss(None), None);
        // The header: then nothing of the log is seen.
        for at in [0, 4, 9, 17, 25] {
            let mut header = sound.clone();
            header[at] ^= 0xff;
            let loss = read(&header).loss(None).unwrap_or_else(|| panic!("byte {at}"));
            assert!(loss.starts_with("its header is damaged; "), "{loss}");
        }
    }

    #[test]
    fn a_log_for_a_control_has_lost_something() {
        for page_bytes in [512, 4096, 65536] {
            let wal = read_wal(&damaged_wal(page_bytes, 9)[..], page_bytes).expect("read");
            let loss = wal.loss(None).expect("lost");
            assert_eq!(loss, "frame 2 is damaged; 2 committed transactions behind it are not seen any more");
        }
    }

    /// Cut at the end of a frame, the log itself looks whole.
    #[test]
    fn a_log_that_was_cut_between_frames_is_told_by_who_counts() {
        let sound = log(7, &[1, 2, 3, 4, 5]);
        for frames in 0..5 {
            let cut = read(&sound[..WAL_HEADER_BYTES + frames * FRAME]);
            assert_eq!((cut.valid_frames, &cut.broken, cut.loss(None)), (frames as u32, &None, None));
            let loss = cut.loss(Some(&index(5, 0))).expect("lost");
            assert!(loss.contains(&format!("after frame {frames}, and the log has 5 frames")), "{loss}");
            assert!(loss.ends_with(&format!(": {} are missing", 5 - frames)), "{loss}");
            // Everything is in the database, or the index is about another log.
            assert_eq!(cut.loss(Some(&index(5, 5))), None);
            assert_eq!(cut.loss(Some(&WalIndex { salts: [8; 8], ..index(5, 0) })), None);
        }
        // In the middle of a frame, and to nothing.
        assert!(read(&sound[..WAL_HEADER_BYTES + FRAME + 100]).loss(Some(&index(5, 0))).is_some());
        assert!(read(&[]).loss(Some(&index(5, 0))).is_some());
        assert_eq!(read(&[]).loss(Some(&index(0, 0))), None);
        assert_eq!(read(&sound).loss(Some(&index(5, 0))), None);
    }

    #[test]
    fn an_index_that_is_not_valid_is_none() {
        let mut bytes = vec![0_u8; 136];
        assert_eq!(WalIndex::parse(&bytes), None);
        let mut half = vec![0_u8; 48];
        half[..4].copy_from_slice(&3_007_000_u32.to_ne_bytes());
        half[12] = 1;
        half[16..20].copy_from_slice(&9_u32.to_ne_bytes());
        half[32..40].fill(7);
        bytes[..48].copy_from_slice(&half);
        assert_eq!(WalIndex::parse(&bytes), None, "the copies differ");
        bytes[48..96].copy_from_slice(&half);
        bytes[96..100].copy_from_slice(&4_u32.to_ne_bytes());
        assert_eq!(WalIndex::parse(&bytes), Some(index(9, 4)));
        assert_eq!(WalIndex::parse(&bytes[..90]), None);
    }

    #[test]
    fn an_encrypted_file_is_told_from_a_database_and_from_text() {
        let folder = tempfile::tempdir().expect("temp");
        let look = |content: &[u8]| {
            let path = folder.path().join("file");
            std::fs::write(&path, content).expect("write");
            looks_encrypted(&File::open(&path).expect("open")).expect("read")
        };
        let mut random = vec![0; 16 * 4096];
        blake3::Hasher::new().finalize_xof().fill(&mut random);
        assert!(look(&random));
        // A plain header, as SQLCipher can leave it.
        random[..32].copy_from_slice(b"SQLite format 3\0\x10\0\x02\x02\0\x40\x20\x20\0\0\0\x01\0\0\0\x10");
        assert!(look(&random));
        random[8 * 4096..9 * 4096].fill(0);
        random[12 * 4096..].fill(b'x');
        assert!(!look(&random), "a part of it is plain");
        assert!(!look(&random[..1024]) && !look(&random[..5000]) && !look(&[7; 8192]) && !look(b""));
    }

    #[test]
    fn a_database_is_known_by_its_first_bytes() {
        assert!(is_database(&b"SQLite format 3\0 and more"[..]).expect("read"));
        assert!(!is_database(&b"SQLite format 3"[..]).expect("read"));
        assert!(!is_database(&b"another file of some length"[..]).expect("read"));
        assert!(may_be_database(4096) && may_be_database(4097) && !may_be_database(0));
    }
}
