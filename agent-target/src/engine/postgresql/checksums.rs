//! Page checksums of every file that belongs to a relation.
//!
//! `pg_checksums` takes every file of a database's folder for a relation's, an administrator's saved copy too, and stops at one that is
//! no number of pages. Here a wrong page counts when the catalogue says that a relation owns the file.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use assay_common::verdict::HexDigest;

use super::{
    page::{PAGE_BYTES, checksum, is_new, stored_checksum},
    report::Report,
};

/// Pages that are read at once.
const BATCH: usize = 128;
/// Files that are read side by side.
const MAX_READERS: usize = 4;

/// A page that is not what its checksum says.
#[derive(Debug)]
pub(super) struct BadFile {
    /// Below the data directory.
    pub(super) shown: String,
    /// The same without a fork's or a segment's ending.
    pub(super) relation: String,
    /// The first such page, the checksum in it, the checksum of it.
    first: (u64, u16, u16),
    pages: u64,
}

/// What a file of a relation is called: a number, a fork, a segment.
pub(super) fn relation_of(name: &str) -> Option<(&str, u64)> {
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) => (stem, segment.parse().ok()?),
        None => (name, 0),
    };
    let number = match stem.split_once('_') {
        Some((number, "fsm" | "vm" | "init")) => number,
        Some(_) => return None,
        None => stem,
    };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some((number, segment))
}

/// The folders in which relations lie, below the data directory.
fn folders(data: &Path) -> io::Result<Vec<String>> {
    let mut found = vec!["global".to_owned()];
    let below = |folder: &str| -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(data.join(folder))? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && fs::metadata(entry.path()).is_ok_and(|it| it.is_dir())
            {
                names.push(format!("{folder}/{name}"));
            }
        }
        names.sort();
        Ok(names)
    };
    let databases = |folder: &str| -> io::Result<Vec<String>> {
        let is_database = |path: &String| {
            path.rsplit('/').next().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        };
        Ok(below(folder)?.into_iter().filter(is_database).collect())
    };
    found.extend(databases("base")?);
    for space in below("pg_tblspc")? {
        for version in below(&space)? {
            if version.contains("/PG_") {
                found.extend(databases(&version)?);
            }
        }
    }
    Ok(found)
}

/// A file that may be a relation's.
pub(super) struct Candidate {
    /// Below the data directory.
    pub(super) shown: String,
    /// The same without a fork's or a segment's ending.
    pub(super) relation: String,
    segment: u64,
}

/// Every file that may be a relation's.
pub(super) fn candidates(data: &Path) -> io::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for folder in folders(data)? {
        let mut names: Vec<String> = Vec::new();
        for entry in fs::read_dir(data.join(&folder))? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && entry.file_type()?.is_file()
            {
                names.push(name);
            }
        }
        names.sort();
        for name in &names {
            let Some((number, segment)) = relation_of(name) else { continue };
            let (shown, relation) = (format!("{folder}/{name}"), format!("{folder}/{number}"));
            found.push(Candidate { shown, relation, segment });
        }
    }
    Ok(found)
}

/// What the pages of a relation's files are called as a part of the check.
pub(super) fn pages_of(relation: &str) -> String {
    format!("pages of {relation}")
}

/// Reads every file that may be a relation's, but those of parts that are carried, and says how many pages and relations there were and which files have a wrong page. Several files are read side
/// by side: one core does not keep up with a fast disk.
pub(super) fn read(
    data: &Path,
    blocks_per_segment: u64,
    carried: &BTreeMap<String, HexDigest>,
) -> io::Result<(u64, u64, Vec<BadFile>)> {
    let mut candidates = candidates(data)?;
    candidates.retain(|file| !carried.contains_key(&pages_of(&file.relation)));
    let next = AtomicUsize::new(0);
    let take = || -> io::Result<Vec<(usize, u64, Option<Wrong>)>> {
        let mut read = Vec::new();
        let mut buffer = vec![0; BATCH * PAGE_BYTES];
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(candidate) = candidates.get(at) else { return Ok(read) };
            let first_block = candidate.segment * blocks_per_segment;
            let (pages, wrong) = file(&data.join(&candidate.shown), first_block, &mut buffer)?;
            read.push((at, pages, wrong));
        }
    };
    let readers = thread::available_parallelism().map_or(1, usize::from).clamp(1, MAX_READERS);
    let mut read = thread::scope(|scope| -> io::Result<Vec<_>> {
        let started: Vec<_> = (0..readers).map(|_| scope.spawn(take)).collect();
        let mut all = Vec::new();
        for reader in started {
            all.extend(reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })?;
    read.sort_unstable_by_key(|(at, ..)| *at);
    let pages = read.iter().map(|(_, pages, _)| pages).sum();
    let bad = read.into_iter().filter_map(|(at, _, wrong)| {
        let (candidate, (first, pages)) = (&candidates[at], wrong?);
        Some(BadFile { shown: candidate.shown.clone(), relation: candidate.relation.clone(), first, pages })
    });
    let relations: HashSet<&str> = candidates.iter().map(|it| it.relation.as_str()).collect();
    Ok((pages, relations.len() as u64, bad.collect()))
}

type Wrong = ((u64, u16, u16), u64);

fn file(path: &Path, first_block: u64, buffer: &mut [u8]) -> io::Result<(u64, Option<Wrong>)> {
    let file = File::open(path)?;
    let pages = file.metadata()?.len() / PAGE_BYTES as u64;
    let (mut page, mut wrong) = (0, None::<Wrong>);
    while page < pages {
        let batch = (pages - page).min(BATCH as u64) as usize;
        let part = &mut buffer[..batch * PAGE_BYTES];
        file.read_exact_at(part, page * PAGE_BYTES as u64)?;
        for (at, one) in part.chunks_exact(PAGE_BYTES).enumerate() {
            // A page of zeros has no checksum.
            if is_new(one) {
                continue;
            }
            let block = page + at as u64;
            let number = u32::try_from(first_block + block).unwrap_or(u32::MAX);
            let (stored, right) = (stored_checksum(one), checksum(one, number));
            if stored != right {
                let count = wrong.map_or(0, |(_, count)| count);
                let first = wrong.map_or((block, stored, right), |(first, _)| first);
                wrong = Some((first, count + 1));
            }
        }
        page += batch as u64;
    }
    Ok((pages, wrong))
}

/// Says what the wrong pages mean: `owned` holds the files of relations, as the catalogues name them.
pub(super) fn judge(bad: &[BadFile], owned: &HashSet<String>, report: &mut Report) {
    for file in bad {
        let (block, stored, right) = file.first;
        let more = if file.pages > 1 { format!(" ({} such pages)", file.pages) } else { String::new() };
        if owned.contains(&file.relation) {
            report.damage(&format!(
                "checksum verification failed in file {}, block {block}: the page has the checksum {right:04X} and says \
                 {stored:04X}{more}",
                file.shown
            ));
        } else {
            report.not_covered(
                &format!("file {}", file.shown),
                &format!("no relation owns it; its pages have no valid checksums{more}"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::postgresql::page::tests::{page_of, row};

    #[test]
    fn a_relations_file_is_a_number_a_fork_and_a_segment() {
        for (name, expected) in [
            ("16384", Some(("16384", 0))),
            ("16384.3", Some(("16384", 3))),
            ("16384_vm", Some(("16384", 0))),
            ("16384_fsm.1", Some(("16384", 1))),
            ("16384_init", Some(("16384", 0))),
            ("17174_save", None),
            ("16384.old", None),
            ("16384.1.gz", None),
            ("t3_16384", None),
            ("PG_VERSION", None),
            ("pg_filenode.map", None),
            ("_vm", None),
        ] {
            assert_eq!(relation_of(name), expected, "{name}");
        }
    }

    #[test]
    fn wrong_pages_count_where_a_relation_owns_the_file() {
        let data = tempfile::tempdir().expect("temp");
        for folder in ["global", "base/5", "base/notes", "pg_tblspc"] {
            fs::create_dir_all(data.path().join(folder)).expect("mkdir");
        }
        let mut page = page_of(&[(1, row(1))], &[]);
        let write = |name: &str, page: &[u8]| fs::write(data.path().join(name), page).expect("write");
        write("base/5/17174", &page);
        write("base/5/17174_save", &page);
        write("base/notes/1", &page);
        write("base/5/2", &[0; 8192]);
        // The second segment's first page is block 131072 of the relation.
        let sum = checksum(&page, 131_072);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        write("base/5/3.1", &page);
        write("base/5/3.2", &page);
        let (pages, _, bad) = read(data.path(), 131_072, &BTreeMap::new()).expect("read");
        let shown: Vec<_> = bad.iter().map(|it| (it.shown.as_str(), it.relation.as_str())).collect();
        assert_eq!(
            (pages, &shown[..]),
            (4, &[("base/5/17174", "base/5/17174"), ("base/5/3.2", "base/5/3")][..])
        );
        let mut report = Report::default();
        judge(&bad, &HashSet::from(["base/5/1".to_owned()]), &mut report);
        assert!(report.end(crate::engine::postgresql::Unchecked::Inconclusive).is_ok());
        judge(&bad, &HashSet::from(["base/5/3".to_owned()]), &mut report);
        assert!(report.end(crate::engine::postgresql::Unchecked::Inconclusive).is_err());
    }
}
