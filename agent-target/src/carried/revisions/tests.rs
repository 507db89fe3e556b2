//! Real repositories: what `svnadmin verify` of a range reads must be among what the range depends on.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
};

use super::{super::inputs::entry_digest, *};
use crate::engine::subversion::layout::Revisions;

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).env("LC_ALL", "C.UTF-8").output().expect(program)
}

fn svn(program: &str, arguments: &[&str]) {
    let done = run(program, arguments);
    assert!(done.status.success(), "{arguments:?}: {done:?}");
}

struct Bed {
    temp: tempfile::TempDir,
}

impl Bed {
    /// Shards of four revisions and ten revisions, each of which changes a file whose content is a delta against older ones.
    fn new() -> Self {
        let bed = Self { temp: tempfile::tempdir().expect("temp") };
        let repository = bed.repository();
        svn("svnadmin", &["create", &repository]);
        let format = bed.path("db/format");
        let text = fs::read_to_string(&format).expect("read");
        fs::write(&format, text.replace("sharded 1000", "sharded 4")).expect("write");
        let (url, copy) = (format!("file://{repository}"), bed.temp.path().join("copy"));
        let copy = copy.display().to_string();
        svn("svn", &["checkout", "-q", &url, &copy]);
        for number in 1..=10 {
            let content: String =
                (0..200).map(|line| format!("{} {}\n", line * line, line % number)).collect();
            fs::write(format!("{copy}/file"), content).expect("write");
            fs::write(format!("{copy}/file{}", number % 3), "x\n".repeat(number)).expect("write");
            svn(
                "svn",
                &["add", "-q", "--force", &format!("{copy}/file"), &format!("{copy}/file{}", number % 3)],
            );
            svn("svn", &["commit", "-q", "-m", "more", &copy]);
        }
        bed
    }

    fn repository(&self) -> String {
        self.temp.path().join("r").display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join("r").join(name)
    }

    /// Files below the repository, by their paths in it.
    fn files(&self) -> Vec<String> {
        fn add(folder: &Path, root: &Path, files: &mut Vec<String>) {
            for entry in fs::read_dir(folder).expect("list").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    add(&path, root, files);
                } else {
                    files.push(path.strip_prefix(root).expect("below").display().to_string());
                }
            }
        }
        let (root, mut files) = (self.temp.path().join("r"), Vec::new());
        add(&root, &root, &mut files);
        files.sort();
        files
    }

    /// The parts as the manifest of a copy of now has them; `None` when they cannot be told apart.
    fn parts(&self) -> Option<Vec<Part>> {
        let mut parts = RevisionParts::of(&self.temp.path().join("r"), HexDigest([0; 32]));
        for file in self.files() {
            let content = fs::read(self.path(&file)).expect("read");
            let entry = Entry {
                path: file.clone().into_bytes(),
                kind: EntryKind::File.into(),
                size: content.len() as u64,
                digest: ContentDigest::of(&content).0.to_vec(),
                ..Default::default()
            };
            let path = TreePath::parse(file.as_bytes()).expect("a path");
            parts.take(&path, &entry, entry_digest(&entry, false), false);
        }
        parts.finish()
    }

    fn names(&self) -> Vec<String> {
        self.parts().expect("parts").into_iter().map(|part| part.name).collect()
    }

    /// The parts of now that are not as they were.
    fn changed(&self, before: &[Part]) -> BTreeSet<String> {
        let parts = self
            .parts()
            .unwrap_or_else(|| before.iter().map(|part| Part { inputs: None, ..part.clone() }).collect());
        parts.into_iter().filter(|part| !before.contains(part)).map(|part| part.name).collect()
    }

    /// The ranges in which `svnadmin verify` finds something, each verified alone, without the caches that the check leaves out.
    fn found(&self, before: &[Part]) -> BTreeSet<String> {
        let found = before.iter().filter(|part| {
            let range = part.name.strip_prefix("revisions ").expect("a range");
            range.parse::<Revisions>().expect("a range");
            !run("svnadmin", &["verify", "-q", "-r", range, &self.repository()]).status.success()
        });
        found.map(|part| part.name.clone()).collect()
    }

    fn change(&self, file: &str, content: &[u8]) {
        let path = self.path(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        fs::write(path, content).expect("write");
    }

    /// Damages each file in three ways, and holds against each other which ranges find it and which ranges depend on it.
    fn assert_dependencies(&self) -> usize {
        fs::remove_file(self.path("db/rep-cache.db")).ok();
        let before = self.parts().expect("parts");
        assert_eq!(self.found(&before), BTreeSet::new());
        let mut damaged = 0;
        for file in
            self.files().iter().filter(|file| file.starts_with("db/rev") || *file == "db/min-unpacked-rev")
        {
            let content = fs::read(self.path(file)).expect("read");
            let mut flipped = content.clone();
            let middle = content.len() / 2;
            if let Some(byte) = flipped.get_mut(middle) {
                *byte ^= 0x10;
            }
            for (kind, other) in
                [("a bit", flipped), ("half", content[..middle].to_vec()), ("nothing", Vec::new())]
            {
                self.change(file, &other);
                let (found, changed) = (self.found(&before), self.changed(&before));
                assert!(
                    found.is_subset(&changed),
                    "{kind} of {file}: found in {found:?}, changed {changed:?}"
                );
                damaged += usize::from(!found.is_empty());
            }
            self.change(file, &content);
            assert_eq!(self.changed(&before), BTreeSet::new(), "{file} is as it was");
        }
        damaged
    }
}

/// The proof of the table of places: no range finds damage in a file on which it does not depend.
#[test]
fn a_range_depends_on_every_file_that_verifying_it_reads() {
    let bed = Bed::new();
    assert_eq!(bed.names(), ["revisions 0:3", "revisions 4:7", "revisions 8:10"]);
    assert!(bed.assert_dependencies() > 20, "damage is found");
    svn("svnadmin", &["pack", "-q", &bed.repository()]);
    assert!(bed.path("db/revs/1.pack").exists());
    assert_eq!(bed.names(), ["revisions 0:3", "revisions 4:7", "revisions 8:10"]);
    assert!(bed.assert_dependencies() > 10, "damage is found");
}

/// What changes with commits, locks and settings changes no range; a commit changes the newest range, and properties their own.
#[test]
fn a_commit_changes_the_newest_range_alone() {
    let bed = Bed::new();
    let before = bed.parts().expect("parts");
    let set = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<BTreeSet<_>>();
    let url = format!("file://{}", bed.repository());
    svn("svn", &["mkdir", "-q", "-m", "more", &format!("{url}/folder")]);
    assert_eq!(bed.changed(&before), set(&["revisions 8:11"]));
    svn("svn", &["lock", "-q", "-m", "mine", &format!("{url}/file")]);
    bed.change("db/fsfs.conf", b"[caches]\n");
    bed.change("conf/authz", b"[/]\n");
    assert_eq!(bed.changed(&before), set(&["revisions 8:11"]));
    svn("svn", &["mkdir", "-q", "-m", "more", &format!("{url}/folder2")]);
    let before = bed.parts().expect("parts");
    assert_eq!(before.last().map(|part| part.name.as_str()), Some("revisions 12:12"));
    let message = bed.temp.path().join("message");
    fs::write(&message, "other words").expect("write");
    let repository = bed.repository();
    svn("svnadmin", &["setlog", "--bypass-hooks", "-r", "5", &repository, &message.display().to_string()]);
    assert_eq!(bed.changed(&before), set(&["revisions 4:7"]));
    // What all revisions share.
    let before = bed.parts().expect("parts");
    let uuid = fs::read(bed.path("db/uuid")).expect("read");
    bed.change("db/uuid", &uuid[..uuid.len() / 2]);
    assert_eq!(bed.changed(&before).len(), before.len());
    bed.change("db/uuid", &uuid);
    // Nobody knows what a further file is for.
    fs::write(bed.path("db/revs/1/news"), "x").expect("write");
    assert_eq!(bed.changed(&before).len(), before.len());
    fs::remove_file(bed.path("db/revs/1/news")).expect("remove");
    assert_eq!(bed.changed(&before), BTreeSet::new());
    // Links, and files that say something else than the manifest.
    for (file, content) in [("db/format", "99\n"), ("db/current", "many\n"), ("db/min-unpacked-rev", "3\n")] {
        let good = fs::read(bed.path(file)).expect("read");
        bed.change(file, content.as_bytes());
        assert_eq!(bed.parts(), None, "{file}");
        bed.change(file, &good);
    }
    let mut parts = RevisionParts::of(&bed.temp.path().join("r"), HexDigest([0; 32]));
    let entry = Entry { path: b"db/format".to_vec(), digest: vec![1; 32], ..Default::default() };
    let path = TreePath::parse(b"db/format").expect("a path");
    parts.take(&path, &entry, HexDigest([0; 32]), false);
    assert_eq!(parts.finish(), None, "the disk has another file than the manifest");
}
