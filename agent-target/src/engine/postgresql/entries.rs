//! Looks from indexes and visibility maps to their tables, and from rows to the commit log, in the files: what they name must be there.
//!
//! amcheck looks the other way: each row of a table must have its entry. A table that lost its end, a segment or a page has no rows
//! there, so nothing is missed. PostgreSQL itself takes an entry that leads nowhere for damage when it meets one (nbtree.c,
//! `index_delete_check_htid`): the rules here are the same.

use std::{collections::HashMap, io, path::Path};

use super::{
    catalog::{Index, Relation, Unique},
    commits::CommitLog,
    files::{Folders, Segments},
    page::{Leaf, PAGE_BYTES, RowPlace, heap_targets, is_new, is_sequence, long, versions, visible_blocks},
    prepare::UsableFolders,
    report::Report,
    trees::{self, Kind, LostFault},
    unique,
};

/// Tables with more blocks are kept as the number of rows of each block: two bytes for 8 KiB.
const MAX_MAPPED_BLOCKS: u64 = 16 << 20;

/// Which rows of a table may be pointed at.
struct Table {
    /// For each block where its bits begin, in bytes; the last is their end. Empty when only counts are kept.
    starts: Vec<u32>,
    bits: Vec<u8>,
    /// For each block how many rows it has.
    counts: Vec<u16>,
}

/// What is wrong with a place that is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    BeyondEnd,
    EmptyPage,
    NoRow,
}

/// Versions of rows whose transaction the commit log has lost: the first, and how many there are.
#[derive(Debug, Default)]
struct LostCommits {
    first: Option<(RowPlace, u32)>,
    count: u64,
}

impl LostCommits {
    fn add(&mut self, block: u64, page: &[u8], log: &mut CommitLog) -> io::Result<()> {
        for version in versions(page) {
            for transaction in version.committed.into_iter().flatten() {
                if log.lost(transaction)? {
                    self.count += 1;
                    let block = u32::try_from(block).unwrap_or(u32::MAX);
                    let place = RowPlace { block, number: version.number };
                    self.first = self.first.or(Some((place, transaction)));
                }
            }
        }
        Ok(())
    }
}

impl Table {
    /// Reads the table's pages; `indexed` when an index or a map will ask for its rows.
    fn read(segments: &Segments, log: &mut CommitLog, indexed: bool) -> io::Result<(Self, LostCommits)> {
        let blocks = segments.blocks();
        let with_bits = blocks <= MAX_MAPPED_BLOCKS;
        let mut table = Self { starts: Vec::new(), bits: Vec::new(), counts: Vec::new() };
        let mut lost = LostCommits::default();
        let mut failed = Ok(());
        segments.each_page(|block, page| {
            if indexed {
                table.add(page, with_bits);
            }
            if failed.is_ok() {
                failed = lost.add(block, page, log);
            }
        })?;
        failed?;
        if with_bits {
            table.starts.push(u32::try_from(table.bits.len()).unwrap_or(u32::MAX));
        }
        Ok((table, lost))
    }

    fn add(&mut self, page: &[u8], with_bits: bool) {
        let start = self.bits.len();
        let mut count = 0_u16;
        for is_target in heap_targets(page) {
            if with_bits {
                if count.is_multiple_of(8) {
                    self.bits.push(0);
                }
                if is_target && let Some(last) = self.bits.last_mut() {
                    *last |= 1 << (count % 8);
                }
            }
            count = count.saturating_add(1);
        }
        if with_bits {
            // 16 million blocks of at most 2048 rows: 32 bits hold it.
            self.starts.push(u32::try_from(start).unwrap_or(u32::MAX));
        }
        self.counts.push(count);
    }

    fn fault(&self, place: RowPlace) -> Option<Fault> {
        let block = place.block as usize;
        let Some(count) = self.counts.get(block) else { return Some(Fault::BeyondEnd) };
        let Some(row) = place.number.checked_sub(1) else { return Some(Fault::NoRow) };
        if *count == 0 {
            return Some(Fault::EmptyPage);
        }
        if row >= *count {
            return Some(Fault::NoRow);
        }
        let (Some(start), false) = (self.starts.get(block), self.starts.is_empty()) else { return None };
        let byte = self.bits.get(*start as usize + usize::from(row) / 8).copied().unwrap_or_default();
        (byte >> (row % 8) & 1 == 0).then_some(Fault::NoRow)
    }
}

/// Looks at all relations; `indexes` counts the B-trees whose entries were looked up.
pub(super) fn check(
    data: &Path,
    blocks_per_segment: u64,
    relations: &[Relation],
    report: &mut Report,
) -> io::Result<()> {
    let mut folders = Folders::default();
    let mut log = CommitLog::of(data);
    let mut indexes: HashMap<(&str, u32), Vec<&Relation>> = HashMap::new();
    for relation in relations {
        if let Some(index) = &relation.index {
            indexes.entry((&relation.database, index.table)).or_default().push(relation);
        }
    }
    // Tables of the whole cluster are in the catalogue of each database.
    let mut seen = std::collections::HashSet::new();
    for relation in relations {
        if relation.is_carried || relation.file.is_empty() || !seen.insert(&relation.file) {
            continue;
        }
        // An index that did not become valid has what its making had written until then. It has been named.
        if relation.index.as_ref().is_some_and(|index| index.unusable.is_some()) {
            continue;
        }
        let path = data.join(&relation.file);
        let segments = match folders.segments(&path, blocks_per_segment) {
            Ok(segments) => segments,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let title = || format!("{} (file {})", relation.title(), relation.shown_file());
        let Some(segments) = segments else {
            report.damage(&format!("{}: the file is missing", title()));
            continue;
        };
        if let Some(segment) = segments.behind_gap {
            report.damage(&format!(
                "{}: there is a segment {file}.{segment}, and the one before it is missing or is not full: the table \
                 ends at block {}",
                title(),
                segments.blocks(),
                file = relation.shown_file(),
            ));
        }
        if has_always_pages(relation) {
            if segments.blocks() == 0 {
                report.damage(&format!("{}: the file is empty", title()));
                continue;
            }
            let mut first = vec![0; PAGE_BYTES];
            segments.pages().read(0, &mut first)?;
            if is_new(&first) {
                report.damage(&format!("{}, block 0: a page of zeros", title()));
            } else if relation.kind == 'S' && !is_sequence(&first) {
                report.damage(&format!("{}, block 0: it is no page of a sequence", title()));
            }
        }
        if relation.is_table() && relation.access_method == "heap" {
            let own = indexes.get(&(relation.database.as_str(), relation.oid)).map_or(&[][..], Vec::as_slice);
            let table = Looked { data, blocks_per_segment, relation, segments: &segments };
            table.look(own, &mut folders, &mut log, report)?;
        }
    }
    Ok(())
}

/// Catalogues that have a map of their files, and their first B-tree: numbers and names of the table and of the index (catalog/pg_class.h and others).
const MAPPED: [(u32, &str, u32, &str); 6] = [
    (1259, "pg_class", 2662, "pg_class_oid_index"),
    (1249, "pg_attribute", 2659, "pg_attribute_relid_attnum_index"),
    (1255, "pg_proc", 2690, "pg_proc_oid_index"),
    (1247, "pg_type", 2703, "pg_type_oid_index"),
    (1262, "pg_database", 2672, "pg_database_oid_index"),
    (1260, "pg_authid", 2677, "pg_authid_oid_index"),
];

/// Looks at the catalogues that the server itself begins with, where it cannot read them: in the files, by the maps of files.
pub(super) fn check_mapped(
    data: &Path,
    blocks_per_segment: u64,
    usable: &UsableFolders,
    report: &mut Report,
) -> io::Result<()> {
    let mut left_over = Vec::new();
    for entry in std::fs::read_dir(data.join("base"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let folder = format!("base/{name}");
        if name.bytes().all(|byte| byte.is_ascii_digit()) && !usable.folders.contains(&folder) {
            left_over.push(folder);
        }
    }
    left_over.sort();
    let why = if usable.are_all {
        "the server names no database there that can be used: CREATE DATABASE or DROP DATABASE did not end"
    } else {
        "the server could not say whether a database is there"
    };
    for folder in left_over {
        report.not_covered(&format!("catalogues in the folder {folder}"), why);
    }
    let mut folders: Vec<_> =
        std::iter::once("global").chain(usable.folders.iter().map(String::as_str)).collect();
    folders.sort_unstable();
    for folder in folders {
        let Ok(map) = std::fs::read(data.join(folder).join("pg_filenode.map")) else { continue };
        let files = file_map(&map);
        let relation = |number: u32, name: &str, index: Option<Index>| {
            Some(Relation {
                oid: number,
                database: folder.to_owned(),
                schema: "pg_catalog".to_owned(),
                name: name.to_owned(),
                kind: if index.is_some() { 'i' } else { 'r' },
                owner: 0,
                access_method: if index.is_some() { "btree" } else { "heap" }.to_owned(),
                file: format!("{folder}/{}", files.get(&number)?),
                pages_once: 0,
                index,
                toast: 0,
                is_carried: false,
            })
        };
        let pairs = MAPPED.iter().flat_map(|(table, name, tree, tree_name)| {
            [relation(*table, name, None), relation(*tree, tree_name, Some(Index::plain(*table)))]
        });
        let relations: Vec<_> = pairs.flatten().collect();
        check(data, blocks_per_segment, &relations, report)?;
    }
    Ok(())
}

/// The files of relations, from a map of files (utils/cache/relmapper.c): a magic number, a count, and pairs of numbers.
fn file_map(map: &[u8]) -> HashMap<u32, u32> {
    const MAGIC: u32 = 0x59_2717;
    if long(map, 0) != MAGIC {
        return HashMap::new();
    }
    let count = (long(map, 4) as usize).min(64);
    (0..count).map(|pair| (long(map, 8 + 8 * pair), long(map, 12 + 8 * pair))).collect()
}

/// Sequences and indexes of every kind have a page from the start.
fn has_always_pages(relation: &Relation) -> bool {
    const METHODS: [&str; 6] = ["btree", "hash", "gin", "gist", "spgist", "brin"];
    match relation.kind {
        'S' => true,
        'i' => METHODS.contains(&relation.access_method.as_str()),
        _ => false,
    }
}

/// A table that is looked at.
struct Looked<'a> {
    data: &'a Path,
    blocks_per_segment: u64,
    relation: &'a Relation,
    segments: &'a Segments,
}

impl Looked<'_> {
    fn look(
        &self,
        indexes: &[&Relation],
        folders: &mut Folders,
        log: &mut CommitLog,
        report: &mut Report,
    ) -> io::Result<()> {
        let Self { relation, segments, .. } = self;
        let map = self.data.join(format!("{}_vm", relation.file));
        let map = folders.segments(&map, self.blocks_per_segment)?;
        let usable = |index: &&&Relation| {
            let names_rows = index.access_method == "btree" || Kind::of(&index.access_method).is_some();
            names_rows && index.index.as_ref().is_some_and(|it| it.unusable.is_none())
        };
        let usable: Vec<_> = indexes.iter().filter(usable).collect();
        let indexed = !usable.is_empty() || map.is_some();
        let (table, lost) = Table::read(segments, log, indexed)?;
        if let Some((place, transaction)) = lost.first {
            report.damage(&format!(
                "{} (file {file}): {} versions of rows say that their transaction has committed, and the commit log does not: the first in block \
                 {} row {}, transaction {transaction} ({})",
                relation.title(),
                lost.count,
                place.block,
                place.number,
                CommitLog::file_of(transaction),
                file = file_of(relation, segments, u64::from(place.block)),
            ));
        }
        if let Some(map) = map {
            self.visibility_map(&map, &table, report)?;
        }
        if !indexed && relation.pages_once > segments.blocks() {
            report.is_lacking(relation);
            report.not_covered(
                &format!("length of {} (file {})", relation.title(), relation.shown_file()),
                &format!(
                    "it has {} pages, and had {} when VACUUM or ANALYZE last looked; no index and no visibility map says how many it must have",
                    segments.blocks(),
                    relation.pages_once
                ),
            );
        }
        for index in usable {
            self.index(index, &table, folders, log, report)?;
        }
        Ok(())
    }

    fn visibility_map(&self, map: &Segments, table: &Table, report: &mut Report) -> io::Result<()> {
        let Self { relation, segments, .. } = self;
        let end = segments.blocks();
        let mut wrong = Vec::new();
        let mut new = Vec::new();
        map.each_page(|number, page| {
            for block in visible_blocks(page, number) {
                if block >= end {
                    wrong.push(block);
                } else if table.counts.get(block as usize) == Some(&0) {
                    new.push(block);
                }
            }
        })?;
        if let Some(first) = wrong.first() {
            report.damage(&format!(
                "{} (file {}): its visibility map names {} blocks from block {first} on, and the table ends at block {end}",
                relation.title(),
                file_of(relation, segments, *first),
                wrong.len()
            ));
        }
        if !new.is_empty() {
            blank(relation, segments, &new, report)?;
        }
        Ok(())
    }

    /// Looks up each entry of an index in the table.
    fn index(
        &self,
        index: &Relation,
        table: &Table,
        folders: &mut Folders,
        log: &mut CommitLog,
        report: &mut Report,
    ) -> io::Result<()> {
        let Self { relation, segments, .. } = self;
        let path = self.data.join(&index.file);
        // What is missing or empty has been named.
        let Some(pages) = folders.segments(&path, self.blocks_per_segment)?.filter(|it| it.blocks() > 0)
        else {
            return Ok(());
        };
        let mut first: Option<(Fault, RowPlace, u64)> = None;
        let mut count = 0_u64;
        let mut look_up = |place: RowPlace, block: u64| {
            if let Some(fault) = table.fault(place) {
                count += 1;
                first = first.or(Some((fault, place, block)));
            }
        };
        if let Some(kind) = Kind::of(&index.access_method) {
            let lost = trees::walk(kind, &pages, |place, block| look_up(place, u64::from(block)))?;
            lost_pages(index, &pages, &lost, report);
        } else {
            pages.each_page(|block, page| {
                for entry in Leaf::of(page).iter().flat_map(Leaf::entries) {
                    entry.rows().for_each(|place| look_up(place, block));
                }
            })?;
        }
        let kind = match index.access_method.as_str() {
            "btree" => "B-tree indexes whose entries were looked up in the table",
            "gin" => "GIN indexes whose entries were looked up in the table",
            "gist" => "GiST indexes whose entries were looked up in the table",
            "spgist" => "SP-GiST indexes whose entries were looked up in the table",
            _ => "hash indexes whose entries were looked up in the table",
        };
        report.count(kind, 1);
        let is_unique = index.index.as_ref().is_some_and(|it| it.unique == Unique::Whole);
        if is_unique && index.access_method == "btree" {
            self.duplicate_keys(index, &pages, log, report)?;
        }
        if let Some((fault, place, block)) = first {
            let where_to = match fault {
                Fault::BeyondEnd => format!("where the table ends at block {}", segments.blocks()),
                Fault::EmptyPage => "a page without rows".to_owned(),
                Fault::NoRow => "where there is no row that an index may point at".to_owned(),
            };
            let file = file_of(relation, segments, u64::from(place.block));
            report.damage(&format!(
                "{} (file {file}): {count} entries of its {} (file {}) lead to no row: the first, in block {block}, to block {} \
                 row {}, {where_to}",
                relation.title(),
                index.title(),
                index.shown_file(),
                place.block,
                place.number,
            ));
        }
        Ok(())
    }
}

impl Looked<'_> {
    /// Names the first duplicate key of a unique index.
    fn duplicate_keys(
        &self,
        index: &Relation,
        pages: &Segments,
        log: &mut CommitLog,
        report: &mut Report,
    ) -> io::Result<()> {
        let Self { relation, segments, .. } = self;
        let found = unique::find(pages, segments, log)?;
        report.count("unique indexes without duplicate keys", u64::from(found.first.is_none()));
        if let Some((block, [one, other])) = found.first {
            let more =
                if found.count > 1 { format!(" ({} such places)", found.count) } else { String::new() };
            report.damage(&format!(
                "{} (file {file}): {} is unique and has a duplicate key: block {} row {} and block {} row {}, by block {block} of file {}{more}",
                relation.title(),
                index.title(),
                one.block,
                one.number,
                other.block,
                other.number,
                file_of(index, pages, block),
                file = file_of(relation, segments, u64::from(one.block)),
            ));
        }
        Ok(())
    }
}

/// Names the first page of an index that another of its pages leads to and that is not there.
fn lost_pages(index: &Relation, pages: &Segments, lost: &[trees::Lost], report: &mut Report) {
    let Some(first) = lost.first() else { return };
    let from = first.from.map_or_else(|| "its root".to_owned(), |block| format!("block {block}"));
    let fault = match first.fault {
        LostFault::BeyondEnd => format!("and the index ends at block {}", pages.blocks()),
        LostFault::Zeros => "a page of zeros".to_owned(),
        LostFault::OtherKind => "which is no page of such an index".to_owned(),
    };
    let more = if lost.len() > 1 { format!(" ({} such pages)", lost.len()) } else { String::new() };
    report.damage(&format!(
        "{} (file {}): {from} leads to block {}, {fault}{more}",
        index.title(),
        file_of(index, pages, u64::from(first.block)),
        first.block
    ));
}

/// Pages that a visibility map names must have been written. A page that has no rows may be sound: only zeros are not.
fn blank(relation: &Relation, segments: &Segments, blocks: &[u64], report: &mut Report) -> io::Result<()> {
    let wanted: std::collections::HashSet<u64> = blocks.iter().copied().collect();
    let mut found = Vec::new();
    segments.each_page(|number, page| {
        if wanted.contains(&number) && is_new(page) {
            found.push(number);
        }
    })?;
    if let Some(first) = found.first() {
        report.damage(&format!(
            "{} (file {}), block {first}: a page of zeros, and the visibility map says that it has rows{}",
            relation.title(),
            file_of(relation, segments, *first),
            if found.len() > 1 { format!(" ({} such pages)", found.len()) } else { String::new() }
        ));
    }
    Ok(())
}

/// The segment that a block is in, as the data directory names it.
fn file_of(relation: &Relation, segments: &Segments, block: u64) -> String {
    match segments.segment_of(block) {
        0 => relation.shown_file().to_owned(),
        segment => format!("{}.{segment}", relation.shown_file()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::postgresql::page::tests::{page_of, row};

    fn table(with_bits: bool) -> Table {
        let mut table = Table { starts: Vec::new(), bits: Vec::new(), counts: Vec::new() };
        let rows: Vec<_> = (0..10).map(|number| (1, row(if number == 9 { 0x8000 } else { 0 }))).collect();
        for page in [page_of(&rows, &[]), vec![0; 8192], page_of(&[(0, vec![]), (3, vec![])], &[])] {
            table.add(&page, with_bits);
        }
        table
    }

    #[test]
    fn a_map_of_files_is_read_and_rubbish_has_none() {
        let mut map = vec![0; 512];
        for (at, number) in [(0, 0x59_2717_u32), (4, 2), (8, 1259), (12, 16400), (16, 1249), (20, 1249)] {
            map[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        assert_eq!(file_map(&map), HashMap::from([(1259, 16400), (1249, 1249)]));
        assert_eq!(file_map(&[7; 512]), HashMap::new());
        assert_eq!(file_map(&[]), HashMap::new());
    }

    /// A map of files as the server writes it.
    fn map_of(pairs: &[(u32, u32)]) -> Vec<u8> {
        let numbers = pairs.iter().flat_map(|(relation, file)| [*relation, *file]);
        let head = [0x59_2717, u32::try_from(pairs.len()).expect("few")];
        head.into_iter().chain(numbers).flat_map(u32::to_le_bytes).collect()
    }

    /// A crash of CREATE DATABASE or DROP DATABASE leaves a map in a folder whose files are not all there. Nobody can use what is there.
    #[test]
    fn a_folder_that_belongs_to_no_database_is_no_damage() {
        use crate::engine::postgresql::Unchecked;

        let data = tempfile::tempdir().expect("temp");
        for folder in ["global", "base/5", "base/77", "base/78", "base/pgsql_tmp"] {
            std::fs::create_dir_all(data.path().join(folder)).expect("mkdir");
        }
        let page = page_of(&[(1, row(1))], &[]);
        std::fs::write(data.path().join("base/5/1259"), &page).expect("write");
        std::fs::write(data.path().join("base/5/pg_filenode.map"), map_of(&[(1259, 1259)])).expect("write");
        std::fs::write(data.path().join("base/77/pg_filenode.map"), map_of(&[(1259, 1259)])).expect("write");
        let ends = |folders: &[&str], are_all| {
            let folders = folders.iter().map(|it| (*it).to_owned()).collect();
            let mut report = Report::default();
            check_mapped(data.path(), 131_072, &UsableFolders { folders, are_all }, &mut report)
                .expect("read");
            report.end(Unchecked::Inconclusive).is_ok()
        };
        assert!(ends(&["base/5"], true));
        assert!(ends(&["base/5"], false));
        assert!(!ends(&["base/5", "base/77"], true), "a database that the server names has lost a file");
    }

    #[test]
    fn a_place_that_an_index_names_must_hold_a_row() {
        let fault = |table: &Table, block, number| table.fault(RowPlace { block, number });
        for with_bits in [true, false] {
            let table = table(with_bits);
            assert_eq!(fault(&table, 0, 1), None);
            assert_eq!(fault(&table, 0, 9), None);
            assert_eq!(fault(&table, 0, 11), Some(Fault::NoRow));
            assert_eq!(fault(&table, 0, 0), Some(Fault::NoRow));
            assert_eq!(fault(&table, 1, 1), Some(Fault::EmptyPage));
            assert_eq!(fault(&table, 2, 2), None, "dead, and not yet removed from the index");
            assert_eq!(fault(&table, 3, 1), Some(Fault::BeyondEnd));
            // Only with bits: a later version in a chain, and a pointer that is not in use.
            let only = with_bits.then_some(Fault::NoRow);
            assert_eq!((fault(&table, 0, 10), fault(&table, 2, 1)), (only, only));
        }
    }
}
