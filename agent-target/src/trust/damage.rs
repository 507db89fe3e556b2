//! Damage on purpose, in a workspace: what a negative control does to a file before the check sees it.
//!
//! Places lie in the first half of a file: in a file that only grows, what lies behind the mark is not part of the backup,
//! and no check looks at it.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::{FileExt as _, MetadataExt as _},
    },
};

use assay_common::{
    confined::open_beneath,
    path::TreePath,
    profile::DamageKind,
    sqlite::{damaged_wal, is_database},
};
use rusqlite::{Connection, OpenFlags};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::engine::postgresql::page::{LINE_POINTERS, PAGE_BYTES, checksum as postgresql_checksum};

/// Numbers that depend on nothing but the seed.
pub(super) struct Dice(blake3::OutputReader);

impl Dice {
    /// For one damage of a control.
    pub(super) fn new(seed: u64, control: usize, place: usize) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("assay v1 negative control");
        for number in [seed, control as u64, place as u64] {
            hasher.update(&number.to_le_bytes());
        }
        Self(hasher.finalize_xof())
    }

    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit.max(1)
    }
}

/// Damages the file at `path` below `folder`, and says what was done. `None` when there is no place in it for this damage.
///
/// # Errors
/// When it cannot be opened or written.
pub(super) fn damage(
    folder: impl AsFd,
    path: &TreePath,
    kind: DamageKind,
    page_bytes: u32,
    dice: &mut Dice,
) -> io::Result<Option<String>> {
    let file = open_to_damage(folder.as_fd(), path)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    match kind {
        DamageKind::FlipByte => flip_byte(&file, dice),
        DamageKind::ZeroPage => zero_page(&file, page_bytes as usize, dice),
        DamageKind::Truncate => truncate(&file),
        DamageKind::SwapPages => swap_pages(&file, page_bytes as usize, dice),
        DamageKind::PostgresqlItem => postgresql_item(&file, dice),
        DamageKind::PostgresqlVisibility => postgresql_visibility(&file),
        DamageKind::SqliteFullText => sqlite_full_text(&file, dice).map_err(io::Error::other),
        DamageKind::SqliteWalFrame => sqlite_wal_frame(folder, path, &file, dice),
    }
}

/// Opens a file of the workspace for writing, also where its mode forbids that to an agent that is not root (git's objects, Subversion's
/// revisions). Its mode stays as it is.
fn open_to_damage(folder: BorrowedFd<'_>, path: &TreePath) -> io::Result<File> {
    let open = |access: OFlags| open_beneath(folder, path, access | OFlags::NONBLOCK);
    match open(OFlags::RDWR) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let held = open(OFlags::RDONLY)?;
            let mode = Mode::from_raw_mode(rustix::fs::fstat(&held)?.st_mode & 0o7777);
            rustix::fs::fchmod(&held, mode | Mode::WUSR)?;
            let opened = open(OFlags::RDWR);
            rustix::fs::fchmod(&held, mode)?;
            Ok(File::from(opened?))
        }
        opened => Ok(File::from(opened?)),
    }
}

fn flip_byte(file: &File, dice: &mut Dice) -> io::Result<Option<String>> {
    let size = file.metadata()?.len();
    if size == 0 {
        return Ok(None);
    }
    let offset = dice.below(size.div_ceil(2));
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    let other = byte[0] ^ (1 << dice.below(8));
    file.write_all_at(&[other], offset)?;
    Ok(Some(format!("byte {offset}: {:02x} to {other:02x}", byte[0])))
}

fn truncate(file: &File) -> io::Result<Option<String>> {
    let size = file.metadata()?.len();
    if size < 2 {
        return Ok(None);
    }
    file.set_len(size / 2)?;
    Ok(Some(format!("cut from {size} to {} bytes", size / 2)))
}

/// The pages of the first half, from a chosen one on, each once.
fn pages(size: u64, page_bytes: usize, dice: &mut Dice) -> impl Iterator<Item = u64> + use<> {
    let count = (size / page_bytes as u64).div_ceil(2);
    let start = dice.below(count);
    (0..count).map(move |turn| (start + turn) % count)
}

fn zero_page(file: &File, page_bytes: usize, dice: &mut Dice) -> io::Result<Option<String>> {
    let size = file.metadata()?.len();
    let mut page = vec![0; page_bytes];
    for number in pages(size, page_bytes, dice) {
        let offset = number * page_bytes as u64;
        file.read_exact_at(&mut page, offset)?;
        if page.iter().any(|byte| *byte != 0) {
            page.fill(0);
            file.write_all_at(&page, offset)?;
            return Ok(Some(format!("bytes {offset} to {}: zeros", offset + page_bytes as u64)));
        }
    }
    Ok(None)
}

fn swap_pages(file: &File, page_bytes: usize, dice: &mut Dice) -> io::Result<Option<String>> {
    let size = file.metadata()?.len();
    let (mut first, mut second) = (vec![0; page_bytes], vec![0; page_bytes]);
    let mut known = None;
    for number in pages(size, page_bytes, dice) {
        let offset = number * page_bytes as u64;
        let Some(start) = known else {
            file.read_exact_at(&mut first, offset)?;
            known = Some(offset);
            continue;
        };
        file.read_exact_at(&mut second, offset)?;
        if first != second {
            file.write_all_at(&second, start)?;
            file.write_all_at(&first, offset)?;
            return Ok(Some(format!("{page_bytes} bytes at {start} and at {offset}: exchanged")));
        }
    }
    Ok(None)
}

/// Makes a row's pointer in a heap page point where no row can begin, and makes the page's checksum good again.
fn postgresql_item(file: &File, dice: &mut Dice) -> io::Result<Option<String>> {
    let size = file.metadata()?.len();
    let mut page = vec![0; PAGE_BYTES];
    for number in pages(size, PAGE_BYTES, dice) {
        let offset = number * PAGE_BYTES as u64;
        file.read_exact_at(&mut page, offset)?;
        let Ok(block) = u32::try_from(number) else { return Ok(None) };
        let Some(item) = heap_item(&page) else { continue };
        let stored = word(&page, 8);
        let has_checksum = stored != 0;
        if has_checksum && stored != postgresql_checksum(&page, block) {
            // Not a page as we know them: what it would mean to change it is not known either.
            continue;
        }
        let at = LINE_POINTERS + 4 * item;
        let pointer = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        // The offset is in the lowest 15 bits, and rows begin at multiples of eight.
        page[at..at + 4].copy_from_slice(&(pointer ^ 1).to_le_bytes());
        if has_checksum {
            let checksum = postgresql_checksum(&page, block);
            page[8..10].copy_from_slice(&checksum.to_le_bytes());
        }
        file.write_all_at(&page, offset)?;
        let checksum = if has_checksum { ", its checksum made good again" } else { "" };
        return Ok(Some(format!("page {block}: item {} begins where no row can{checksum}", item + 1)));
    }
    Ok(None)
}

/// Sets the last bit of a visibility map's first page, for a block far behind the table's end, and makes the page's checksum good again.
fn postgresql_visibility(file: &File) -> io::Result<Option<String>> {
    const LAST: usize = PAGE_BYTES - 1;
    if file.metadata()?.len() != PAGE_BYTES as u64 {
        return Ok(None);
    }
    let mut page = vec![0; PAGE_BYTES];
    file.read_exact_at(&mut page, 0)?;
    let has_checksum = word(&page, 8) != 0;
    let is_map = word(&page, 16) as usize == PAGE_BYTES && page[LAST] == 0;
    if !is_map || (has_checksum && word(&page, 8) != postgresql_checksum(&page, 0)) {
        return Ok(None);
    }
    page[LAST] = 0x40;
    if has_checksum {
        let checksum = postgresql_checksum(&page, 0);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
    }
    file.write_all_at(&page, 0)?;
    let checksum = if has_checksum { ", its checksum made good again" } else { "" };
    Ok(Some(format!("the map says of a page far behind the table's end that all see its rows{checksum}")))
}

/// Deletes a part of a full-text index, by SQLite itself, so that every page is as sound as before.
fn sqlite_full_text(file: &File, dice: &mut Dice) -> rusqlite::Result<Option<String>> {
    if !is_database(file).unwrap_or(false) {
        return Ok(None);
    }
    // SQLite opens the file by a path: that of the descriptor leads to this file and no other.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags)?;
    // Nothing is left beside the database.
    database.query_row("pragma journal_mode = delete", [], |_| Ok(()))?;
    database.query_row("pragma journal_mode = memory", [], |_| Ok(()))?;
    let mut statement = database.prepare(
        "select name from sqlite_schema where type = 'table' and sql like 'create virtual table%using fts5%'",
    )?;
    let tables = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    for turn in 0..tables.len() {
        let table = &tables[(turn + dice.below(tables.len() as u64) as usize) % tables.len()];
        let data = format!("\"{}_data\"", table.replace('"', "\"\""));
        // The first ten are the index' own notes.
        let deleted = database.execute(
            &format!("delete from {data} where id = (select max(id) from {data} where id > 10)"),
            [],
        )?;
        if deleted > 0 {
            return Ok(Some(format!("a part of the full-text index {table} is gone")));
        }
    }
    Ok(None)
}

/// Puts a write-ahead log beside a database whose second frame is damaged, with commits behind it.
fn sqlite_wal_frame(
    folder: impl AsFd,
    path: &TreePath,
    file: &File,
    dice: &mut Dice,
) -> io::Result<Option<String>> {
    let mut header = [0; 18];
    if !is_database(file).unwrap_or(false) || file.read_exact_at(&mut header, 0).is_err() {
        return Ok(None);
    }
    let page_bytes = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        bytes => u32::from(bytes),
    };
    if !page_bytes.is_power_of_two() || page_bytes < 512 {
        return Ok(None);
    }
    let parent = TreePath::parse(path.parent().unwrap_or_default()).map_err(io::Error::other)?;
    let parent = open_beneath(folder, &parent, OFlags::DIRECTORY | OFlags::PATH)?;
    let name = [path.name(), b"-wal"].concat();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let log = match rustix::fs::openat(&parent, &*name, flags, Mode::from_raw_mode(0o600)) {
        Ok(log) => File::from(log),
        Err(Errno::EXIST) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    log.write_all_at(&damaged_wal(page_bytes, dice.below(u64::MAX)), 0)?;
    // Whoever may read the database may read its log.
    let like = file.metadata()?;
    if (like.uid(), like.gid()) != (log.metadata()?.uid(), log.metadata()?.gid()) {
        std::os::unix::fs::fchown(&log, Some(like.uid()), Some(like.gid()))?;
    }
    log.set_permissions(like.permissions())?;
    Ok(Some("a write-ahead log is beside it, whose second frame is damaged".to_owned()))
}

fn word(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

/// The first item of a heap page that holds a row. Heap pages have nothing at their end (storage/bufpage.h).
fn heap_item(page: &[u8]) -> Option<usize> {
    let (lower, upper, special) = (word(page, 12) as usize, word(page, 14) as usize, word(page, 16) as usize);
    let size_and_version = word(page, 18);
    let sound = special == PAGE_BYTES
        && size_and_version & 0xff00 == PAGE_BYTES as u16
        && (LINE_POINTERS..=upper).contains(&lower)
        && upper <= special;
    let items = if sound { (lower - LINE_POINTERS) / 4 } else { 0 };
    (0..items).find(|item| {
        let at = LINE_POINTERS + 4 * item;
        let pointer = u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let (offset, state) = (pointer & 0x7fff, pointer >> 15 & 3);
        state == 1 && offset as usize >= upper && offset % 8 == 0
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn damaged(content: &[u8], kind: DamageKind, seed: u64) -> Option<(Vec<u8>, String)> {
        let folder = tempfile::tempdir().expect("temp");
        fs::write(folder.path().join("file"), content).expect("write");
        let held = File::open(folder.path()).expect("open");
        let path = TreePath::parse(b"file").expect("path");
        let what = damage(&held, &path, kind, 512, &mut Dice::new(seed, 0, 0)).expect("done")?;
        Some((fs::read(folder.path().join("file")).expect("read"), what))
    }

    #[test]
    fn each_damage_is_made_in_the_first_half_and_is_the_same_for_a_seed() {
        let content: Vec<u8> = (0..8192_u32).map(|number| (number / 512 + 1) as u8).collect();
        for kind in [DamageKind::FlipByte, DamageKind::ZeroPage, DamageKind::SwapPages] {
            for seed in 0..20 {
                let (bytes, what) = damaged(&content, kind, seed).expect("there is a place");
                assert_eq!(damaged(&content, kind, seed), Some((bytes.clone(), what)));
                assert!(
                    bytes[..4096] != content[..4096] && bytes[4096..] == content[4096..],
                    "{kind:?} {seed}"
                );
            }
        }
        let (bytes, what) = damaged(&content, DamageKind::Truncate, 1).expect("there is a place");
        assert_eq!((bytes.len(), &*what), (4096, "cut from 8192 to 4096 bytes"));
    }

    #[test]
    fn a_full_text_index_loses_a_part() {
        let folder = tempfile::tempdir().expect("temp");
        let make = |sql: &str| {
            let database = Connection::open(folder.path().join("file")).expect("open");
            database.execute_batch(&format!("pragma journal_mode = wal; {sql}")).expect("sql");
        };
        let run = || {
            let held = File::open(folder.path()).expect("open");
            let path = TreePath::parse(b"file").expect("path");
            damage(&held, &path, DamageKind::SqliteFullText, 4096, &mut Dice::new(1, 0, 0)).expect("done")
        };
        make("create table t (a)");
        assert_eq!(run(), None);
        make(
            "create virtual table ft using fts5(body); insert into ft values ('some words'), ('more words')",
        );
        assert_eq!(run().as_deref(), Some("a part of the full-text index ft is gone"));
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 1, "nothing is left beside it");
        let database = Connection::open(folder.path().join("file")).expect("open");
        let said: String = database.query_row("pragma integrity_check", [], |row| row.get(0)).expect("check");
        assert!(said.contains("malformed inverted index for FTS5 table main.ft"), "{said}");
    }

    #[test]
    fn a_damaged_log_is_put_beside_a_database() {
        let folder = tempfile::tempdir().expect("temp");
        fs::create_dir(folder.path().join("deep")).expect("mkdir");
        let database = Connection::open(folder.path().join("deep/file")).expect("open");
        database.execute_batch("create table t (a)").expect("sql");
        let held = File::open(folder.path()).expect("open");
        let path = TreePath::parse(b"deep/file").expect("path");
        let run =
            || damage(&held, &path, DamageKind::SqliteWalFrame, 4096, &mut Dice::new(1, 0, 0)).expect("done");
        assert!(run().is_some_and(|what| what.contains("second frame is damaged")));
        let log = File::open(folder.path().join("deep/file-wal")).expect("there");
        let wal = assay_common::sqlite::read_wal(log, 4096).expect("read");
        assert!(wal.loss(None).is_some());
        assert_eq!(run(), None, "there is a log already");
    }

    #[test]
    fn a_file_without_a_place_for_it_is_left_alone() {
        for (content, kind) in [
            (&b""[..], DamageKind::FlipByte),
            (b"x", DamageKind::Truncate),
            (&[0; 4096], DamageKind::ZeroPage),
            (&[7; 4096], DamageKind::SwapPages),
            (&[7; 8192], DamageKind::PostgresqlItem),
            (&[7; 8192], DamageKind::PostgresqlVisibility),
            (&[7; 8192], DamageKind::SqliteFullText),
            (&[7; 8192], DamageKind::SqliteWalFrame),
        ] {
            assert_eq!(damaged(content, kind, 1), None, "{kind:?}");
        }
    }

    #[test]
    fn a_visibility_map_names_a_page_far_away_and_its_checksum_is_good_again() {
        let mut page = vec![0; PAGE_BYTES];
        for (at, value) in [(12, 24_u16), (14, 8192), (16, 8192), (18, 8192 | 4)] {
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let checksum = postgresql_checksum(&page, 0);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        let (map, what) = damaged(&page, DamageKind::PostgresqlVisibility, 1).expect("a map");
        assert!(what.ends_with("made good again"), "{what}");
        assert_eq!((map[PAGE_BYTES - 1], word(&map, 8)), (0x40, postgresql_checksum(&map, 0)));
        page[8] ^= 1;
        assert_eq!(damaged(&page, DamageKind::PostgresqlVisibility, 1), None);
    }

    /// A page with one row, whose checksum is wrong, is not touched; without a checksum, or with a good one, it is.
    #[test]
    fn a_row_pointer_is_broken_and_the_checksum_is_good_again() {
        let mut page = vec![0; PAGE_BYTES];
        for (at, value) in [(12, 28_u16), (14, 8128), (16, 8192), (18, 8192 | 4)] {
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        page[24..28].copy_from_slice(&(8128_u32 | 1 << 15 | 64 << 17).to_le_bytes());
        let (plain, _) = damaged(&page, DamageKind::PostgresqlItem, 1).expect("a heap page");
        assert_eq!(plain[24] ^ page[24], 1);
        assert_eq!(plain[8..10], [0, 0]);
        let checksum = postgresql_checksum(&page, 0);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        let (made_good, what) = damaged(&page, DamageKind::PostgresqlItem, 1).expect("a heap page");
        assert!(what.ends_with("made good again"), "{what}");
        assert_eq!(word(&made_good, 8), postgresql_checksum(&made_good, 0));
        assert_ne!(word(&made_good, 8), checksum);
        page[8] ^= 1;
        assert_eq!(damaged(&page, DamageKind::PostgresqlItem, 1), None);
    }
}
