//! What is known of a copy before anything of the check has run in it: which files are as the generation has them after the server
//! has recovered, and what the commit log says. Results of tables are carried on this ground alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

use assay_common::verdict::HexDigest;
use serde::{Deserialize, Serialize};

use super::{
    End,
    checksums::candidates,
    cluster::{Cluster, control},
    commits::History,
    tool,
};
use crate::{
    check::known::{FILE, Found, Known},
    engine::known_parts,
};

/// What the parts depend on as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    history: History,
    /// How often the numbers of transactions have gone round.
    epoch: u32,
    /// Lists of transactions: the oldest, and the first that there is not yet.
    lists: (u32, u32),
}

/// What is known before anything of the check has run.
#[derive(Debug)]
pub(super) struct Ground {
    known: Known,
    /// By the relation's file: the digests of all its files, which are as the generation has them.
    intact: BTreeMap<String, Vec<(String, HexDigest)>>,
    /// `None`: what the log says does not hold together, and nothing is remembered.
    state: Option<State>,
    /// The results of before may be carried, as far as the log goes.
    may_carry: bool,
}

/// A part, and what becomes of it.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) name: String,
    /// Digest of what its result depends on; `None`: it is checked each time.
    pub(super) inputs: Option<HexDigest>,
}

impl Ground {
    /// Looks at the files, and reads what the step is told. `None` when it is told nothing.
    pub(super) fn read(cluster: &Cluster, is_told: bool) -> Result<Option<Self>, End> {
        let Some(known) = is_told.then(known_parts::read).transpose().map_err(tool("the standard input"))?
        else {
            return Ok(None);
        };
        let intact = intact(&cluster.data, &known).map_err(tool("the files of the relations"))?;
        Ok(Some(Self { known, intact, state: None, may_carry: true }))
    }

    /// Reads the commit log as well, after the server has recovered and before any statement of the check.
    pub(super) fn with_log(mut self, cluster: &Cluster) -> Result<Self, End> {
        let control = control(&cluster.programs.join("pg_controldata"), &cluster.data)?;
        self.state = state(&cluster.data, &control).map_err(tool("the commit log"))?;
        let then = self.known.state.as_deref().and_then(|text| serde_json::from_str::<State>(text).ok());
        self.may_carry = match (&self.state, then) {
            (Some(now), Some(then)) => {
                now.follows(&then) && then.history.holds(&cluster.data).map_err(tool("the commit log"))?
            }
            _ => false,
        };
        Ok(self)
    }

    /// Digests of the files of a relation, if they are as the generation has them.
    pub(super) fn files(&self, relation: &str) -> Option<&[(String, HexDigest)]> {
        self.intact.get(relation).map(Vec::as_slice)
    }

    /// The relations whose files are as the generation has them.
    pub(super) fn relations(&self) -> impl Iterator<Item = &str> {
        self.intact.keys().map(String::as_str)
    }

    /// A digest that depends on what all parts depend on.
    pub(super) fn inputs(&self, kind: &str) -> Inputs {
        let mut inputs = Inputs::new(kind);
        inputs.add(self.known.common.as_bytes());
        inputs
    }

    /// True if the result of the part is to be carried.
    pub(super) fn carries(&self, part: &Part) -> bool {
        self.may_carry && part.inputs.is_some() && self.known.parts.get(&part.name) == part.inputs.as_ref()
    }

    /// True for a transaction that had ended when the copy was made. Of others it is not known what will become of them.
    pub(super) fn has_ended(&self, transaction: u32) -> bool {
        self.state.as_ref().is_some_and(|state| state.history.has_ended(transaction))
    }

    /// Leaves in the scratch folder what was found.
    pub(super) fn tell(&self, cluster: &Cluster, mut found: Found, needs_log: bool) -> Result<(), End> {
        found.state = self.state.as_ref().and_then(|state| serde_json::to_string(state).ok());
        if needs_log && found.state.is_none() {
            found.passed.clear();
        }
        known_parts::write(&found, &cluster.scratch).map_err(tool(FILE))
    }
}

/// A digest that is made of fields, each with its length.
#[derive(Debug, Clone)]
pub(super) struct Inputs(blake3::Hasher);

impl Inputs {
    pub(super) fn new(kind: &str) -> Self {
        let mut inputs = Self(blake3::Hasher::new_derive_key("assay v1 inputs of relations"));
        inputs.add(kind.as_bytes());
        inputs
    }

    pub(super) fn add(&mut self, field: &[u8]) -> &mut Self {
        self.0.update(&(field.len() as u64).to_le_bytes()).update(field);
        self
    }

    pub(super) fn files(&mut self, files: &[(String, HexDigest)]) -> &mut Self {
        self.add(&(files.len() as u64).to_le_bytes());
        for (path, digest) in files {
            self.add(path.as_bytes()).add(&digest.0);
        }
        self
    }

    pub(super) fn finish(&self) -> HexDigest {
        HexDigest(*self.0.finalize().as_bytes())
    }
}

impl State {
    /// True if this can be a later state of the same cluster, and nothing that is older than the span was looked at.
    fn follows(&self, then: &Self) -> bool {
        let (now, before) = (&self.history, &then.history);
        let number = |epoch: u32, transaction: u32| u64::from(epoch) << 32 | u64::from(transaction);
        now.oldest == before.oldest
            && self.lists.0 == then.lists.0
            && number(self.epoch, now.next) >= number(then.epoch, before.next)
            && self.lists.1.wrapping_sub(then.lists.1) < 1 << 31
    }
}

/// The relations all of whose files are as the manifest has them: none is missing, added, or written since.
fn intact(data: &Path, known: &Known) -> io::Result<BTreeMap<String, Vec<(String, HexDigest)>>> {
    let mut found: BTreeMap<String, Vec<(String, HexDigest)>> = BTreeMap::new();
    let mut touched = BTreeSet::new();
    let mut missing: BTreeSet<&str> = known.files.keys().map(String::as_str).collect();
    for file in candidates(data)? {
        let there = fs::symlink_metadata(data.join(&file.shown))?;
        missing.remove(file.shown.as_str());
        match known.files.get(&file.shown).filter(|known| known.matches(&there)) {
            Some(known) => found.entry(file.relation).or_default().push((file.shown, known.digest)),
            None => drop(touched.insert(file.relation)),
        }
    }
    for path in missing {
        if let Some(relation) = relation_in(path) {
            touched.insert(relation);
        }
    }
    found.retain(|relation, _| !touched.contains(relation));
    found.values_mut().for_each(|files| files.sort_by(|one, other| one.0.cmp(&other.0)));
    Ok(found)
}

fn relation_in(path: &str) -> Option<String> {
    let (folder, name) = path.rsplit_once('/')?;
    let (number, _) = super::checksums::relation_of(name)?;
    Some(format!("{folder}/{number}"))
}

/// Reads the numbers of transactions from what `pg_controldata` shows, and what the log says of them.
fn state(data: &Path, control: &str) -> io::Result<Option<State>> {
    let label = |label: &str| {
        let mut lines = control.lines().filter_map(|line| line.strip_prefix("Latest checkpoint's "));
        lines.find_map(|line| line.strip_prefix(label)?.strip_prefix(':')).map(str::trim)
    };
    let number = |text: Option<&str>| text.and_then(|it| it.parse::<u32>().ok());
    let Some((epoch, next)) = label("NextXID").and_then(|it| it.split_once(':')) else { return Ok(None) };
    let (Some(epoch), Some(next), Some(oldest), Some(oldest_list), Some(next_list)) = (
        number(Some(epoch)),
        number(Some(next)),
        number(label("oldestXID")),
        number(label("oldestMultiXid")),
        number(label("NextMultiXactId")),
    ) else {
        return Ok(None);
    };
    let history = History::read(data, oldest, next)?;
    Ok(history.map(|history| State { history, epoch, lists: (oldest_list, next_list) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::known::KnownFile;

    fn digest(number: u8) -> HexDigest {
        HexDigest([number; 32])
    }

    /// A folder with files, and what a manifest says of it.
    fn bed(names: &[&str]) -> (tempfile::TempDir, Known) {
        let data = tempfile::tempdir().expect("temp");
        for folder in ["global", "base/5", "pg_tblspc"] {
            fs::create_dir_all(data.path().join(folder)).expect("mkdir");
        }
        let mut known = Known::default();
        for (number, name) in (0..).zip(names) {
            let path = data.path().join(name);
            fs::write(&path, [number; 10]).expect("write");
            let there = fs::metadata(&path).expect("stat");
            known.files.insert((*name).to_owned(), KnownFile::of(digest(number), &there));
        }
        (data, known)
    }

    #[test]
    fn a_relation_counts_as_changed_when_any_of_its_files_is_another() {
        let names = ["base/5/100", "base/5/100.1", "base/5/100_vm", "base/5/200", "global/1260"];
        type Change = fn(&Path);
        let rows: [(&str, Change); 6] = [
            ("nothing", |_| {}),
            ("written in place", |data| fs::write(data.join("base/5/100_vm"), [2; 10]).expect("write")),
            ("longer", |data| fs::write(data.join("base/5/100.1"), [1; 11]).expect("write")),
            ("gone", |data| fs::remove_file(data.join("base/5/100")).expect("remove")),
            ("a further fork", |data| fs::write(data.join("base/5/100_fsm"), []).expect("write")),
            ("a further segment", |data| fs::write(data.join("base/5/100.2"), []).expect("write")),
        ];
        for (name, change) in rows {
            let (data, known) = bed(&names);
            change(data.path());
            let found = intact(data.path(), &known).expect("read");
            let expected: &[&str] = match name {
                "nothing" => &["base/5/100", "base/5/200", "global/1260"],
                _ => &["base/5/200", "global/1260"],
            };
            assert_eq!(found.keys().collect::<Vec<_>>(), expected, "{name}");
            assert_eq!(found["base/5/200"], [("base/5/200".to_owned(), digest(3))]);
        }
    }

    #[test]
    fn a_state_follows_an_older_one_of_the_same_cluster() {
        let state = |epoch, oldest, next, lists| State {
            history: serde_json::from_value(
                serde_json::json!({ "oldest": oldest, "next": next, "open": [], "digest": "" }),
            )
            .expect("a history"),
            epoch,
            lists,
        };
        let then = state(1, 700, 900, (1, 5));
        for (now, follows) in [
            (state(1, 700, 900, (1, 5)), true),
            (state(1, 700, 901, (1, 6)), true),
            (state(2, 700, 5, (1, 5)), true),
            (state(1, 700, 899, (1, 5)), false),
            (state(0, 700, 950, (1, 5)), false),
            (state(1, 701, 950, (1, 5)), false),
            (state(1, 700, 950, (2, 5)), false),
            (state(1, 700, 950, (1, 4)), false),
        ] {
            assert_eq!(now.follows(&then), follows, "{now:?}");
        }
    }
}
