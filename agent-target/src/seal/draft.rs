//! The new manifest while it is being put together, and the plan that goes with it.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{BufReader, BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use assay_common::{
    closed,
    digest::RootDigest,
    error::IoContext as _,
    fidelity::CopyRules,
    id::GenerationNumber,
    limits::{MAX_CONTENT, MAX_ENTRIES},
    manifest::{
        DeltaFault, DeltaMerger, Entry, EntryFault, EntryKind, EntryPicker, Header, ManifestError,
        ManifestReader, ManifestWriter, Origin, Piece, content_pieces,
    },
    path::{display_bytes, display_short},
};
use assay_proto::v1::{ManifestStep, manifest_step::Kind};

use super::charge::{Charge, Cost};
use super::names::is_full;
use super::{SealError, open_manifest, parse_header};
use crate::{
    store::{FolderCost, MANIFEST, MANIFEST_B3, PLAN, POSITIONS, Record, Staging, Store},
    workspace::Oddities,
};

/// In the plan: the entry is the base's.
const FROM_BASE: u64 = u64::MAX;

type BaseEntries = Box<dyn FnMut() -> Result<Option<Entry>, ManifestError> + Send>;

/// Where an entry of the new tree comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The base has the same entry under the same path.
    Base,
    /// A file with new content, which lies in staging under this number.
    Content(u64),
    /// Made from the entry alone: a folder, a link, a FIFO, a device.
    Entry,
}

/// A manifest that is being put together in staging.
pub struct Draft {
    merger: DeltaMerger<BaseEntries>,
    manifest: ManifestWriter<BufWriter<File>>,
    plan: BufWriter<File>,
    plan_path: PathBuf,
    positions: BufWriter<File>,
    positions_path: PathBuf,
    base: Option<GenerationNumber>,
    /// The base's record, while it may still be that nothing has changed.
    unchanged: Option<Record>,
    /// What a step that takes over all of the base stands for, until it is known whether another one follows.
    kept_all: Option<ManifestStep>,
    /// True when an entry is a hard link.
    has_links: bool,
    /// Files of the base that are not what they were.
    rotten: HashSet<Vec<u8>>,
    /// What is taken from the source; everything when it is not set.
    rules: Option<CopyRules>,
    charge: Option<Charge>,
    finished: Finished,
}

/// What the finished manifest adds up to.
#[derive(Debug)]
pub struct Finished {
    /// Its header.
    pub header: Header,
    /// Entries.
    pub entries: u64,
    /// Files among them.
    pub files: u64,
    /// Bytes of all files, and of those with new content.
    pub total_bytes: u64,
    /// Bytes of the files with new content.
    pub new_bytes: u64,
    /// The data in it, holes left out.
    pub stored_bytes: u64,
    /// It is the base's manifest, and the base's files were linked.
    pub unchanged: bool,
    /// With `unchanged`: files that stand not in `manifest.b3`.
    pub not_in_manifest_b3: u64,
    /// What the tree takes beside content; `None` when that is not known of the base.
    pub(super) overhead: Option<Cost>,
    /// What its folders take.
    pub folders: Option<FolderCost>,
    /// See [`Record::is_plain`].
    pub is_plain: Option<bool>,
}

/// Hard links whose first names are looked up at a time: what a manifest full of them may cost in memory.
const LINKS_AT_A_TIME: usize = 1_000_000;

/// Checks that the first name of every hard link stands in the manifest and is no folder and no link of this kind: the rule of
/// an entry cannot say so, and a kept link may have lost the name that it had.
fn check_links(manifest: &Path, links_at_a_time: usize) -> Result<(), SealError> {
    let open = || -> Result<_, SealError> {
        let file = BufReader::with_capacity(256 * 1024, File::open(manifest).at("open", manifest)?);
        Ok(ManifestReader::open(file)?)
    };
    let mut links = open()?;
    loop {
        let mut wanted: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        while wanted.len() < links_at_a_time
            && let Some(entry) = links.next_entry()?
        {
            if entry.kind() == EntryKind::Hardlink {
                wanted.entry(entry.link_target).or_insert(entry.path);
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let mut entries = open()?;
        while !wanted.is_empty()
            && let Some(entry) = entries.next_entry()?
        {
            if !matches!(entry.kind(), EntryKind::Directory | EntryKind::Hardlink) {
                wanted.remove(&entry.path);
            }
        }
        if let Some((target, path)) = wanted.pop_first() {
            let (path, target) = (display_bytes(&path), display_bytes(&target));
            return Err(DeltaFault::NoFirstName { path, target }.into());
        }
    }
}

/// Creates a file under a name that an earlier attempt may have left, and never writes into what that is: it may be a further
/// name of a file of the base.
pub(super) fn create_fresh(path: &Path) -> Result<File, SealError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", path)?,
        _ => Ok(closed::options().write(true).create_new(true).open(path).at("create", path)?),
    }
}

fn plan_path(staging: &Staging) -> PathBuf {
    staging.path().join(PLAN)
}

pub(super) fn remove_plan(staging: &Staging) -> Result<(), SealError> {
    let path = plan_path(staging);
    Ok(std::fs::remove_file(&path).at("remove", &path)?)
}

impl Draft {
    /// Starts the manifest of `staging` upon `base`.
    ///
    /// # Errors
    /// When the header is not valid or staging cannot be written to.
    pub fn create(
        store: &Store,
        staging: &Staging,
        base: Option<GenerationNumber>,
        header: &str,
    ) -> Result<Self, SealError> {
        let header = parse_header(header)?;
        let unchanged = match base {
            None => None,
            Some(base) => Some(store.record(base)?).filter(|record| record.roots == header.roots),
        };
        let entries: BaseEntries = match base {
            None => Box::new(|| Ok(None)),
            Some(base) => {
                let mut reader = open_manifest(store, base)?;
                Box::new(move || reader.next_entry())
            }
        };
        let path = staging.path().join(MANIFEST);
        let file = BufWriter::with_capacity(256 * 1024, create_fresh(&path)?);
        let plan_path = plan_path(staging);
        let plan = BufWriter::new(closed::create_file(&plan_path).at("create", &plan_path)?);
        let positions_path = staging.path().join(POSITIONS);
        let positions = BufWriter::new(create_fresh(&positions_path)?);
        Ok(Self {
            merger: DeltaMerger::new(entries, MAX_ENTRIES),
            manifest: ManifestWriter::create(file, &header)?,
            plan,
            plan_path,
            positions,
            positions_path,
            base,
            unchanged,
            kept_all: None,
            has_links: false,
            rotten: HashSet::new(),
            rules: None,
            charge: None,
            finished: Finished {
                header,
                entries: 0,
                files: 0,
                total_bytes: 0,
                new_bytes: 0,
                stored_bytes: 0,
                unchanged: false,
                not_in_manifest_b3: 0,
                overhead: Some(Cost::default()),
                folders: Some(FolderCost::default()),
                is_plain: Some(true),
            },
        })
    }

    /// Claims what the generation takes beside content, before it is written.
    pub fn charge_to(&mut self, charge: Charge) {
        self.charge = Some(charge);
    }

    /// The generation that the steps are against.
    pub fn base(&self) -> Option<GenerationNumber> {
        self.base
    }

    /// Takes nothing but what these rules allow, from the source and from the base.
    pub fn allow(&mut self, rules: CopyRules) {
        // A base of other rules may have what these do not allow: each of its entries is looked at.
        let fingerprint = rules.fingerprint();
        self.unchanged =
            self.unchanged.take().filter(|record| record.copy_rules.as_ref() == Some(&fingerprint));
        self.rules = Some(rules);
    }

    /// What tells the rules from others.
    pub(super) fn rules_fingerprint(&self) -> Option<String> {
        self.rules.as_ref().map(CopyRules::fingerprint)
    }

    /// Takes none of these files over from the base: they have rotted there.
    pub fn refuse(&mut self, rotten: HashSet<Vec<u8>>) {
        if !rotten.is_empty() {
            self.unchanged = None;
        }
        self.rotten = rotten;
    }

    /// Applies the next step.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn apply(&mut self, step: ManifestStep) -> Result<(), SealError> {
        // A run without changes is one step. Nothing is read or written for it unless something follows.
        if self.finished.entries == 0
            && self.kept_all.is_none()
            && let (Some(record), Some(Kind::Keep(count))) = (&self.unchanged, &step.kind)
            && record.entries == *count
        {
            self.kept_all = Some(step);
            return Ok(());
        }
        self.unchanged = None;
        if let Some(kept_all) = self.kept_all.take() {
            self.merge(kept_all)?;
        }
        self.merge(step)
    }

    fn merge(&mut self, step: ManifestStep) -> Result<(), SealError> {
        let Self {
            merger,
            manifest,
            plan,
            plan_path,
            positions,
            positions_path,
            has_links,
            finished,
            rotten,
            rules,
            charge,
            ..
        } = self;
        merger.apply(step, &mut |entry, origin| {
            if let Some(what) = rules.as_ref().and_then(|rules| rules.fault(&entry)) {
                return Err(SealError::NotAllowed { path: display_short(&entry.path), what });
            }
            let source = match origin {
                Origin::Base if rotten.contains(&entry.path) => {
                    return Err(SealError::Rotten { path: display_bytes(&entry.path) });
                }
                Origin::Base => FROM_BASE,
                Origin::Put { content } => {
                    // A file has a content and nothing else has: the plan below relies on it.
                    if (entry.kind() == EntryKind::File) != (1..=MAX_CONTENT).contains(&content) {
                        let path = display_bytes(&entry.path);
                        let rule = "is a file without a content, or has one and is no file";
                        return Err(DeltaFault::from(EntryFault::Field { path, rule }).into());
                    }
                    content
                }
            };
            let is_kept = source == FROM_BASE && matches!(origin, Origin::Base);
            let cost = Cost::of(&entry, is_kept);
            if let Some(charge) = charge {
                charge.claim_entry(cost, &entry, is_kept)?;
            }
            if let (Some(sum), Some(folders)) = (&mut finished.overhead, &mut finished.folders) {
                sum.made = sum.made.saturating_add(cost.made);
                sum.inodes = sum.inodes.saturating_add(cost.inodes);
                if entry.kind() == EntryKind::Directory {
                    folders.count += 1;
                    folders.bytes = folders.bytes.saturating_add(cost.made);
                }
            }
            finished.entries += 1;
            *has_links |= entry.kind() == EntryKind::Hardlink;
            if Oddities::concerns(&entry) {
                finished.is_plain = Some(false);
            }
            if entry.kind() == EntryKind::File {
                finished.files += 1;
                finished.total_bytes = finished.total_bytes.saturating_add(entry.size);
                if source != FROM_BASE {
                    finished.new_bytes = finished.new_bytes.saturating_add(entry.size);
                    let data =
                        content_pieces(&entry).filter(|(_, piece, _)| matches!(piece, Piece::Data { .. }));
                    let data: u64 = data.map(|(_, piece, _)| piece.bytes()).sum();
                    finished.stored_bytes = finished.stored_bytes.saturating_add(data);
                }
            }
            plan.write_all(&source.to_le_bytes()).at("write", plan_path)?;
            positions.write_all(&manifest.position().to_le_bytes()).at("write", positions_path)?;
            Ok::<_, SealError>(manifest.push(&entry)?)
        })
    }

    /// Ends the manifest, whose root digest must be `expected`.
    ///
    /// # Errors
    /// When it is another, or when entries of the base are left.
    pub fn finish(
        mut self,
        store: &Store,
        staging: &Staging,
        expected: RootDigest,
    ) -> Result<Finished, SealError> {
        if let (Some(record), Some(base), Some(_)) = (&self.unchanged, self.base, &self.kept_all) {
            let actual = RootDigest::from_hex(&record.root_digest);
            if let Some(actual) = actual.filter(|actual| *actual != expected) {
                return Err(SealError::RootMismatch { expected, actual });
            }
            self.finished.entries = record.entries;
            self.finished.files = record.files;
            self.finished.total_bytes = record.total_bytes;
            self.finished.not_in_manifest_b3 = record.not_in_manifest_b3;
            self.finished.unchanged = true;
            // Folders are not shared. Records of earlier versions do not say how many there are.
            self.finished.folders = record.folders;
            self.finished.is_plain = record.is_plain;
            let overhead =
                record.folders.map(|folders| Cost { listed: 0, made: folders.bytes, inodes: folders.count });
            self.finished.overhead = overhead;
            if let (Some(charge), Some(overhead)) = (&self.charge, overhead) {
                charge.claim(overhead.made, overhead.inodes)?;
            }
            let from = store.generation_path(base);
            for name in [MANIFEST, POSITIONS, MANIFEST_B3] {
                let (from, to) = (from.join(name), staging.path().join(name));
                // What was begun here, when it was not known yet that nothing would come.
                std::fs::remove_file(&to).ok();
                match std::fs::hard_link(&from, &to) {
                    Err(error) if is_full(&error) => drop(std::fs::copy(&from, &to).at("copy", &from)?),
                    linked => linked.at("link", &from)?,
                }
            }
            return Ok(self.finished);
        }
        self.merger.finish()?;
        self.plan.flush().at("write", &self.plan_path)?;
        self.positions.flush().at("write", &self.positions_path)?;
        let (_, actual, _) = self.manifest.finish()?;
        if actual != expected {
            return Err(SealError::RootMismatch { expected, actual });
        }
        if self.has_links {
            check_links(&staging.path().join(MANIFEST), LINKS_AT_A_TIME)?;
        }
        Ok(self.finished)
    }
}

/// The entries of a finished draft with where each comes from, in order.
pub struct PlannedEntries {
    manifest: ManifestReader<BufReader<File>>,
    plan: BufReader<File>,
    plan_path: PathBuf,
}

impl PlannedEntries {
    /// Opens manifest and plan of a staging area.
    ///
    /// # Errors
    /// When they are not there.
    pub fn open(staging: &Staging) -> Result<Self, SealError> {
        let path = staging.path().join(MANIFEST);
        let plan_path = plan_path(staging);
        let manifest = File::open(&path).at("open", &path)?;
        let plan = BufReader::new(File::open(&plan_path).at("open", &plan_path)?);
        let manifest = ManifestReader::open(BufReader::with_capacity(256 * 1024, manifest))?;
        Ok(Self { manifest, plan, plan_path })
    }

    /// The next entry.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn next_entry(&mut self) -> Result<Option<(Entry, Source)>, SealError> {
        let Some(entry) = self.manifest.next_entry()? else {
            return Ok(None);
        };
        let mut word = [0; 8];
        self.plan.read_exact(&mut word).at("read", &self.plan_path)?;
        let source = match u64::from_le_bytes(word) {
            FROM_BASE => Source::Base,
            0 => Source::Entry,
            content => Source::Content(content),
        };
        Ok(Some((entry, source)))
    }
}

/// The entries with new content of a finished draft, in order. Costs as much as there are of them, not as there are entries.
pub(super) struct PlannedContents {
    manifest: EntryPicker,
    plan: BufReader<File>,
    positions: BufReader<File>,
    /// Entries that are left.
    rest: u64,
    plan_path: PathBuf,
}

impl PlannedContents {
    /// Opens manifest, plan and positions of a staging area.
    ///
    /// # Errors
    /// When they are not there.
    pub(super) fn open(staging: &Staging) -> Result<Self, SealError> {
        let plan_path = plan_path(staging);
        let open = |path: &Path| File::open(path).at("open", path);
        let plan = open(&plan_path)?;
        let rest = plan.metadata().at("look at", &plan_path)?.len() / 8;
        let manifest = EntryPicker::new(open(&staging.path().join(MANIFEST))?);
        let positions = BufReader::new(open(&staging.path().join(POSITIONS))?);
        Ok(Self { manifest, plan: BufReader::new(plan), positions, rest, plan_path })
    }

    /// The next entry with the number of its content.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub(super) fn next_content(&mut self) -> Result<Option<(Entry, u64)>, SealError> {
        while self.rest > 0 {
            self.rest -= 1;
            let (mut content, mut position) = ([0; 8], [0; 8]);
            self.plan.read_exact(&mut content).at("read", &self.plan_path)?;
            self.positions.read_exact(&mut position).at("read", &self.plan_path)?;
            let content = u64::from_le_bytes(content);
            if content != FROM_BASE && content > 0 {
                let mut entry = self.manifest.entry_at(u64::from_le_bytes(position))?;
                // They are many megabytes in the worst case, and nobody who asks for contents looks at them.
                entry.xattrs = Vec::new();
                return Ok(Some((entry, content)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use assay_common::manifest::Root;

    use super::*;

    fn entry(path: &str, kind: EntryKind, target: &str) -> Entry {
        Entry { path: path.into(), kind: kind.into(), link_target: target.into(), ..Default::default() }
    }

    /// However few are looked up at a time.
    #[test]
    fn every_hard_link_has_its_first_name() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("manifest");
        let check = |entries: &[Entry], at_a_time| {
            let root = Root { name: "x".into(), live_path: "/x".into(), subdirectory: String::new() };
            let file = File::create(&path).expect("create");
            let mut writer = ManifestWriter::create(file, &Header { roots: vec![root] }).expect("write");
            entries.iter().for_each(|entry| writer.push(entry).expect("write"));
            writer.finish().expect("write");
            check_links(&path, at_a_time)
        };
        let mut entries = vec![entry("", EntryKind::Directory, "")];
        for file in ["a", "b", "c"] {
            entries.push(entry(file, EntryKind::Fifo, ""));
        }
        for (link, first) in [("d", "a"), ("e", "b"), ("f", "a"), ("g", "c")] {
            entries.push(entry(link, EntryKind::Hardlink, first));
        }
        for at_a_time in [1, 2, 100] {
            check(&entries, at_a_time).expect("each has one");
            for first in ["0", "d", ""] {
                let mut bad = entries.clone();
                bad[7].link_target = first.into();
                let refused = check(&bad, at_a_time).expect_err("it has none");
                assert!(
                    refused.to_string().contains(&format!("\"g\" is a hard link to {first:?}")),
                    "{refused}"
                );
            }
        }
    }
}
