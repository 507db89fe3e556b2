//! Where evil peers meet real agents, and what must be true afterwards.

use std::{
    collections::BTreeMap,
    fs,
    io::BufReader,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use assay_common::{
    digest::ContentDigest,
    manifest::{EntryKind, ManifestReader, OrderValidator},
    signing::VerifyingKey,
};
use integration_tests::evil::source::{EvilSource, Tree};

use crate::pair::{PLAIN_CHECK, Pair, json};

/// A target agent, the source that lies to it, and a canary beside its store.
pub(crate) struct Ground {
    pub(crate) pair: Pair,
    pub(crate) source: EvilSource,
    pub(crate) runtime: tokio::runtime::Runtime,
    target_key: VerifyingKey,
    canary: BTreeMap<PathBuf, String>,
}

impl Ground {
    /// The agents as the tests of this suite want them: the check takes no time. `limits` are further keys of the target's
    /// configuration, before its repository.
    pub(crate) fn new(limits: &str) -> Self {
        let pair = Pair::unworded(1);
        pair.kill("source");
        let check = &format!("check = {PLAIN_CHECK} }}");
        pair.configure("target", check, &format!("{check}\nisolation = \"none\""));
        pair.restart_with("target", "[[repository]]", &format!("{limits}\n[[repository]]"));
        let canary = pair.path("canary");
        fs::create_dir_all(canary.join("folder")).expect("mkdir");
        fs::write(canary.join("file"), "sings").expect("write");
        fs::write(canary.join("folder/inner"), "sings").expect("write");
        symlink("file", canary.join("link")).expect("symlink");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let url = target_url(&pair);
        let source = runtime.block_on(EvilSource::connect(&pair.path("pki"), &url)).expect("it is let in");
        let target_key = VerifyingKey::load(&pair.path("pki/target-signing.pub")).expect("key");
        let canary = outside(&pair.path("."));
        Self { pair, source, runtime, target_key, canary }
    }

    /// Starts the target anew with another configuration, and connects to it.
    pub(crate) fn restart(&mut self, from: &str, to: &str) {
        self.pair.restart_with("target", from, to);
        let url = target_url(&self.pair);
        let runs = self.source.run_id();
        let source = self.runtime.block_on(EvilSource::connect(&self.pair.path("pki"), &url));
        self.source = source.expect("it is let in").after(&runs);
        self.canary = outside(&self.pair.path("."));
    }

    /// The live root's path, which the manifest names.
    pub(crate) fn live(&self) -> PathBuf {
        self.pair.root(0)
    }

    /// A path that no name may reach.
    pub(crate) fn canary(&self) -> PathBuf {
        self.pair.path("canary")
    }

    /// An honest run, which must pass; its generation.
    pub(crate) fn honest_run(&self) -> u64 {
        let tree = Tree::honest(&self.live());
        self.runtime.block_on(self.source.honest_run(&tree, &self.target_key))
    }

    /// Numbers of the sealed generations.
    pub(crate) fn generations(&self) -> Vec<String> {
        let folder = self.pair.path("store/repo/generations");
        let names = fs::read_dir(folder).expect("read").map(|entry| entry.expect("read").file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().expect("plain")).collect();
        names.sort();
        names
    }

    /// Nothing was sealed beside `generations`, `verified` stands where it stood, and nothing outside the store was touched.
    pub(crate) fn assert_untouched(&self, case: &str, generations: &[String], verified: &str) {
        assert_eq!(self.generations(), generations, "{case}: generations");
        assert_eq!(self.pair.verified(), verified, "{case}: verified");
        let now = outside(&self.pair.path("."));
        let differs: Vec<_> = now
            .keys()
            .chain(self.canary.keys())
            .filter(|path| now.get(*path) != self.canary.get(*path))
            .collect();
        assert!(differs.is_empty(), "{case}: touched outside the store: {differs:?}");
    }

    /// Every sealed generation is what its manifest says, which is what its record says.
    pub(crate) fn assert_all_whole(&self) {
        for name in self.generations() {
            assert_whole(&self.pair.path("store/repo/generations").join(name));
        }
    }
}

/// Where the target serves.
pub(crate) fn target_url(pair: &Pair) -> String {
    agent_url(pair, "target")
}

/// Where an agent serves.
pub(crate) fn agent_url(pair: &Pair, role: &str) -> String {
    let text = fs::read_to_string(pair.path(&format!("{role}.toml"))).expect("read");
    let address = text.split("listen = \"").nth(1).and_then(|rest| rest.split('"').next());
    format!("https://{}", address.expect("an address"))
}

/// The manifest is valid and has the record's root digest, and the tree has its entries with their content and nothing else.
fn assert_whole(generation: &Path) {
    let shown = generation.display();
    let record = json(&fs::read_to_string(generation.join("record.json")).expect("record"));
    let manifest = fs::File::open(generation.join("manifest")).expect("manifest");
    let mut reader = ManifestReader::open(BufReader::new(manifest)).expect("manifest");
    let (mut order, mut listed) = (OrderValidator::default(), BTreeMap::new());
    while let Some(entry) = reader.next_entry().expect("manifest") {
        let path = order.check(&entry).unwrap_or_else(|error| panic!("{shown}: {error}"));
        let place = generation.join("tree").join(std::str::from_utf8(path.as_bytes()).expect("plain"));
        let found = fs::symlink_metadata(&place).unwrap_or_else(|error| panic!("{shown}: {path}: {error}"));
        match entry.kind() {
            EntryKind::File => {
                let digest = ContentDigest::of(&fs::read(&place).expect("read"));
                assert_eq!(digest.0.as_slice(), entry.digest, "{shown}: {path}");
            }
            EntryKind::Hardlink => {
                let first = std::str::from_utf8(&entry.link_target).expect("plain");
                let first: &u64 = listed.get(first).unwrap_or_else(|| panic!("{shown}: {path}: no {first}"));
                assert_eq!(*first, found.ino(), "{shown}: {path}");
            }
            EntryKind::Directory => assert!(found.is_dir(), "{shown}: {path}"),
            EntryKind::Symlink => assert!(found.is_symlink(), "{shown}: {path}"),
            kind => panic!("{shown}: {path}: {kind:?}"),
        }
        listed.insert(String::from_utf8(entry.path).expect("plain"), found.ino());
    }
    assert_eq!(reader.root_digest().to_string(), record["root_digest"], "{shown}");
    assert_eq!(names_below(&generation.join("tree")).len() + 1, listed.len(), "{shown}");
}

fn names_below(folder: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).expect("read") {
        let path = entry.expect("read").path();
        if path.symlink_metadata().expect("stat").is_dir() {
            names.extend(names_below(&path));
        }
        names.push(path);
    }
    names
}

/// How everything beside the store, its log, and what the source's own end writes looks: nothing of it is the target's.
fn outside(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for name in ["canary", "pki", "root0", "target.toml", "source.toml"] {
        let path = folder.join(name);
        let below = if path.is_dir() { names_below(&path) } else { Vec::new() };
        for path in below.into_iter().chain([path]) {
            let Ok(stat) = path.symlink_metadata() else { continue };
            let content = if stat.is_file() { fs::read(&path).expect("read") } else { Vec::new() };
            let looks = format!(
                "{:o} {}:{} {} {}.{} {} {}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.nlink(),
                stat.ctime(),
                stat.ctime_nsec(),
                stat.ino(),
                ContentDigest::of(&content),
            );
            found.insert(path, looks);
        }
    }
    // Whatever a name with `..` would have made.
    for entry in fs::read_dir(folder).expect("read") {
        found.insert(entry.expect("read").path(), String::new());
    }
    found
}
