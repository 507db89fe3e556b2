//! The judge of the crash suite. It knows the formats and nothing of the agents' ways: it looks at a store from the outside, with
//! the agents down, and says what of their promises is broken.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use assay_common::{
    digest::MANIFEST_CONTEXT,
    manifest::{Entry, EntryKind, ManifestReader},
    signing::VerifyingKey,
    verdict::{HexDigest, Outcome, link_digest, verify_verdict},
};

/// What somebody was told, and may therefore not be lost.
#[derive(Debug, Default, Clone)]
pub(crate) struct Promises {
    /// Envelopes that the source has received, byte for byte.
    pub(crate) verdicts: BTreeMap<String, Vec<u8>>,
    /// Root digests of generations that were there, by their folders' names.
    pub(crate) generations: BTreeMap<String, String>,
    /// Entries of the ledger, by their files' names.
    pub(crate) ledger: BTreeMap<String, Vec<u8>>,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What is wrong, in words. Nothing may be.
    pub(crate) faults: Vec<String>,
    /// What is there now.
    pub(crate) promises: Promises,
    /// Files whose content was compared.
    pub(crate) files: u64,
}

/// Holds the store of a repository against what was promised.
pub(crate) fn judge(store: &Path, keys: (&VerifyingKey, &VerifyingKey), promised: &Promises) -> Found {
    let mut found = Found::default();
    let generations = names(&store.join("generations"));
    for name in &generations {
        let folder = store.join("generations").join(name);
        match judge_generation(&folder, &mut found.files) {
            Ok(root) => drop(found.promises.generations.insert(name.clone(), root)),
            Err(fault) => found.faults.push(format!("generation {name}: {fault}")),
        }
    }
    for (name, root) in &promised.generations {
        match found.promises.generations.get(name) {
            Some(now) if now == root => {}
            Some(_) => found.faults.push(format!("generation {name} is another than it was")),
            None => found.faults.push(format!("generation {name} is gone, or not whole")),
        }
    }
    judge_ledger(store, keys, promised, &mut found);
    found
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn judge_ledger(
    store: &Path,
    (target, source): (&VerifyingKey, &VerifyingKey),
    promised: &Promises,
    found: &mut Found,
) {
    let folder = store.join("ledger");
    if !folder.exists() {
        if !promised.ledger.is_empty() {
            found.faults.push("the ledger is gone".to_owned());
        }
        return;
    }
    // Before the ledger is read: a target that runs may add to it and then move the link.
    let verified = fs::read_link(store.join("verified"));
    let mut newest: BTreeMap<u64, Outcome> = BTreeMap::new();
    let mut envelopes = BTreeSet::new();
    let mut link = HexDigest::ZERO;
    for (place, name) in names(&folder).into_iter().filter(|name| name.ends_with(".json")).enumerate() {
        let bytes = fs::read(folder.join(&name)).unwrap_or_default();
        if name != format!("{:09}.json", place + 1) {
            found.faults.push(format!("the ledger has {name} in place {}", place + 1));
        }
        match verify_verdict(&bytes, target, Some(source)) {
            Ok(verified) => {
                let verdict = verified.verdict;
                if verdict.sequence != place as u64 + 1 || verdict.previous != link {
                    found.faults.push(format!("ledger entry {name} does not follow the one before it"));
                }
                if let (Some(generation), Outcome::Pass | Outcome::Fail) =
                    (verdict.generation, verdict.outcome)
                {
                    newest.insert(generation.0, verdict.outcome);
                }
            }
            Err(error) => found.faults.push(format!("ledger entry {name}: {error}")),
        }
        link = link_digest(&bytes);
        envelopes.insert(bytes.clone());
        found.promises.ledger.insert(name, bytes);
    }
    for (name, bytes) in &promised.ledger {
        if found.promises.ledger.get(name) != Some(bytes) {
            found.faults.push(format!("ledger entry {name} is gone, or another than it was"));
        }
    }
    for (run, envelope) in &promised.verdicts {
        if !envelopes.contains(envelope) {
            found
                .faults
                .push(format!("the verdict of run {run}, which the source has, is not in the ledger"));
        }
    }
    match verified {
        Ok(link) => {
            let number = link.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
            let passed = number.and_then(|number| newest.get(&number)) == Some(&Outcome::Pass);
            if !passed || !store.join(&link).is_dir() {
                found.faults.push(format!("verified points at {}, which has no PASS", link.display()));
            }
        }
        // Absent until the agent that was killed between the first verdict and the link starts again.
        Err(_) if newest.values().filter(|outcome| **outcome == Outcome::Pass).count() <= 1 => {}
        Err(error) => found.faults.push(format!("verified: {error}")),
    }
}

/// What must hold besides when the agents are up and nothing is under way: nothing of the crash is left, and the links point at
/// the newest.
pub(crate) fn judge_settled(store: &Path, state: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    let generations = names(&store.join("generations"));
    let link = |name: &str| {
        let target = fs::read_link(store.join(name)).ok();
        target.and_then(|target| Some(target.file_name()?.to_str()?.to_owned()))
    };
    if link("latest").as_ref() != generations.last() {
        faults.push(format!(
            "latest points at {:?}, and the newest is {:?}",
            link("latest"),
            generations.last()
        ));
    }
    for empty in ["staging", "workspaces"] {
        let left = names(&store.join(empty));
        if !left.is_empty() {
            faults.push(format!("{empty} holds {left:?}"));
        }
    }
    faults.extend(
        temporary(store).into_iter().chain(temporary(state)).map(|path| format!("{path:?} is left over")),
    );
    faults.extend(mounts_below(store).into_iter().map(|mount| format!("{mount:?} is mounted")));
    faults
}

/// Unfinished files anywhere but in generations.
fn temporary(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let unfinished = name.as_bytes().starts_with(b".assay-tmp-") || name.as_bytes().ends_with(b".new");
        if unfinished {
            found.push(entry.path());
        } else if name != "generations" && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(temporary(&entry.path()));
        }
    }
    found
}

/// Mount points strictly below a folder.
pub(crate) fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    mounts.filter(|mount| mount.starts_with(folder) && mount != folder).collect()
}

/// Processes that were started for a folder's agents and are not among `own`: their command line or working folder names it.
pub(crate) fn stragglers(folder: &Path, own: &[u32]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("proc").flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let mut line = Vec::new();
        let read =
            fs::File::open(entry.path().join("cmdline")).and_then(|mut file| file.read_to_end(&mut line));
        let names_it = read.is_ok()
            && line.windows(folder.as_os_str().len()).any(|part| part == folder.as_os_str().as_bytes());
        let within = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        if (names_it || within) && !own.contains(&process) && process != std::process::id() {
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

/// Every entry of a generation as its manifest says, nothing more and nothing less. Returns the root digest.
fn judge_generation(folder: &Path, files: &mut u64) -> Result<String, String> {
    let read = |name: &str| fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"));
    let manifest = read("manifest")?;
    let root =
        blake3::Hasher::new_derive_key(MANIFEST_CONTEXT).update(&manifest).finalize().to_hex().to_string();
    let record: serde_json::Value =
        serde_json::from_slice(&read("record.json")?).map_err(|error| format!("record.json: {error}"))?;
    if record["root_digest"] != root.as_str() {
        return Err(format!(
            "its manifest has the root digest {root}, and the record says {}",
            record["root_digest"]
        ));
    }
    let mut reader =
        ManifestReader::open(manifest.as_slice()).map_err(|error| format!("manifest: {error}"))?;
    let mut entries = BTreeMap::new();
    while let Some(entry) = reader.next_entry().map_err(|error| format!("manifest: {error}"))? {
        entries.insert(entry.path.clone(), entry);
    }
    if record["entries"] != entries.len() {
        return Err(format!("{} entries, and the record says {}", entries.len(), record["entries"]));
    }
    if read("manifest.positions")?.len() != entries.len() * 8 {
        return Err("manifest.positions is not as long as the manifest".to_owned());
    }
    let sums = String::from_utf8_lossy(&read("manifest.b3")?).lines().count() as u64;
    let all = entries.values().filter(|entry| entry.kind() == EntryKind::File).count() as u64;
    if sums + record["not_in_manifest_b3"].as_u64().unwrap_or(u64::MAX / 2) != all {
        return Err(format!("manifest.b3 has {sums} lines for {all} files"));
    }
    let tree = folder.join("tree");
    let mut seen = 0;
    let mut open = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let full = join(&tree, &path);
        let entry = entries.get(&path).ok_or_else(|| format!("{} is not in the manifest", full.display()))?;
        judge_entry(&tree, entry, files).map_err(|fault| format!("{}: {fault}", full.display()))?;
        seen += 1;
        if entry.kind() == EntryKind::Directory {
            for inner in fs::read_dir(&full).map_err(|error| format!("{}: {error}", full.display()))? {
                let name = inner.map_err(|error| error.to_string())?.file_name();
                let mut inner = path.clone();
                if !inner.is_empty() {
                    inner.push(b'/');
                }
                inner.extend_from_slice(name.as_bytes());
                open.push(inner);
            }
        }
    }
    if seen == entries.len() {
        Ok(root)
    } else {
        Err(format!("{seen} of {} entries are in the tree", entries.len()))
    }
}

fn join(tree: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { tree.to_owned() } else { tree.join(std::ffi::OsStr::from_bytes(path)) }
}

fn judge_entry(tree: &Path, entry: &Entry, files: &mut u64) -> Result<(), String> {
    let path = join(tree, &entry.path);
    let stat = fs::symlink_metadata(&path).map_err(|error| error.to_string())?;
    if entry.kind() == EntryKind::Hardlink {
        let first =
            fs::symlink_metadata(join(tree, &entry.link_target)).map_err(|error| error.to_string())?;
        return if first.ino() == stat.ino() {
            Ok(())
        } else {
            Err("it is another file than its first name".to_owned())
        };
    }
    let kind = match stat.mode() & 0o170_000 {
        0o040_000 => EntryKind::Directory,
        0o100_000 => EntryKind::File,
        0o120_000 => EntryKind::Symlink,
        0o010_000 => EntryKind::Fifo,
        other => return Err(format!("a kind that the suite does not make: {other:o}")),
    };
    let same = |what: &str, now: String, then: String| {
        if now == then { Ok(()) } else { Err(format!("its {what} is {now}, and the manifest says {then}")) }
    };
    same("kind", format!("{kind:?}"), format!("{:?}", entry.kind()))?;
    same("owner", format!("{}:{}", stat.uid(), stat.gid()), format!("{}:{}", entry.uid, entry.gid))?;
    same(
        "time",
        format!("{}.{:09}", stat.mtime(), stat.mtime_nsec()),
        format!("{}.{:09}", entry.mtime_seconds, entry.mtime_nanos),
    )?;
    if kind != EntryKind::Symlink {
        same("mode", format!("{:o}", stat.mode() & 0o7777), format!("{:o}", entry.mode))?;
    }
    match kind {
        EntryKind::Symlink => {
            let text = fs::read_link(&path).map_err(|error| error.to_string())?;
            same(
                "target",
                format!("{text:?}"),
                format!("{:?}", std::ffi::OsStr::from_bytes(&entry.link_target)),
            )
        }
        EntryKind::File => {
            *files += 1;
            same("length", stat.len().to_string(), entry.size.to_string())?;
            let bytes = fs::read(&path).map_err(|error| error.to_string())?;
            same("content", blake3::hash(&bytes).to_hex().to_string(), hex::encode(&entry.digest))?;
            for attribute in &entry.xattrs {
                let mut value = vec![0; 4096];
                let length = rustix::fs::lgetxattr(&path, attribute.name.as_slice(), value.as_mut_slice())
                    .map_err(|error| format!("an attribute: {error}"))?;
                same("attribute", hex::encode(&value[..length]), hex::encode(&attribute.value))?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
