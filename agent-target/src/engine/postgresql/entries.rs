//! Looks from indexes and visibility maps to their tables, in the files: what they name must be there.
//!
//! amcheck looks the other way: each row of a table must have its entry. A table that lost its end, a segment or a page has no rows
//! there, so nothing is missed. PostgreSQL itself takes an entry that leads nowhere for damage when it meets one (nbtree.c,
//! `index_delete_check_htid`): the rules here are the same.

use std::{collections::HashMap, io, path::Path};

use super::{
    catalog::Relation,
    files::{Folders, Segments},
    page::{RowPlace, heap_targets, is_new, leaf_entries, visible_blocks},
    report::Report,
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

impl Table {
    fn read(segments: &Segments) -> io::Result<Self> {
        let blocks = segments.blocks();
        let with_bits = blocks <= MAX_MAPPED_BLOCKS;
        let mut table = Self { starts: Vec::new(), bits: Vec::new(), counts: Vec::new() };
        segments.each_page(|_, page| table.add(page, with_bits))?;
        if with_bits {
            table.starts.push(u32::try_from(table.bits.len()).unwrap_or(u32::MAX));
        }
        Ok(table)
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
    let mut indexes: HashMap<(&str, u32), Vec<&Relation>> = HashMap::new();
    for relation in relations {
        if let Some(index) = &relation.index {
            indexes.entry((&relation.database, index.table)).or_default().push(relation);
        }
    }
    // Tables of the whole cluster are in the catalogue of each database.
    let mut seen = std::collections::HashSet::new();
    for relation in relations {
        if relation.file.is_empty() || !seen.insert(&relation.file) {
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
        if segments.blocks() == 0 && has_always_pages(relation) {
            report.damage(&format!("{}: the file is empty", title()));
        }
        if relation.is_table() && relation.access_method == "heap" {
            let own = indexes.get(&(relation.database.as_str(), relation.oid)).map_or(&[][..], Vec::as_slice);
            table(data, blocks_per_segment, (relation, &segments), own, &mut folders, report)?;
        }
    }
    Ok(())
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

fn table(
    data: &Path,
    blocks_per_segment: u64,
    (relation, segments): (&Relation, &Segments),
    indexes: &[&Relation],
    folders: &mut Folders,
    report: &mut Report,
) -> io::Result<()> {
    let map = data.join(format!("{}_vm", relation.file));
    let map = folders.segments(&map, blocks_per_segment)?;
    let usable = |index: &&&Relation| {
        index.access_method == "btree" && index.index.as_ref().is_some_and(|it| it.unusable.is_none())
    };
    let trees: Vec<_> = indexes.iter().filter(usable).collect();
    if trees.is_empty() && map.is_none() {
        return Ok(());
    }
    let table = Table::read(segments)?;
    let end = segments.blocks();
    if let Some(map) = map {
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
    }
    for index in trees {
        let path = data.join(&index.file);
        let Some(pages) = folders.segments(&path, blocks_per_segment)? else { continue };
        let mut faults: Vec<(Fault, RowPlace, u64)> = Vec::new();
        let mut count = 0_u64;
        pages.each_page(|block, page| {
            for place in leaf_entries(page) {
                if let Some(fault) = table.fault(place) {
                    count += 1;
                    if faults.is_empty() {
                        faults.push((fault, place, block));
                    }
                }
            }
        })?;
        report.count("B-tree indexes whose entries were looked up in the table", 1);
        if let Some((fault, place, block)) = faults.first() {
            let where_to = match fault {
                Fault::BeyondEnd => format!("where the table ends at block {end}"),
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
    }
    Ok(())
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
            "{} (file {}), block {first}: a page of zeros, and the visibility map says that it has rows ({} such pages)",
            relation.title(),
            file_of(relation, segments, *first),
            found.len()
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
