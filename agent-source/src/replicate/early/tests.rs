use std::{fs, io::Read as _, path::Path};

use assay_common::{
    manifest::{Header, Root},
    profile::{FileRules, Profile, template::Scope},
};
use tokio::{runtime::Runtime, sync::mpsc};

use super::{
    super::{
        Counters,
        batch::{Batch, Batcher, Budget},
        transfer::{Compression, TransferOptions},
    },
    *,
};
use crate::mark::Marker;

const PROFILE: &str = "name = 'x'\ndescription = 'x'\nversion = '1'\ndepth = 'L0'\n
    [copy]\nfirst = ['/refs/**', '/packed-refs']\nhold = ['/objects/**']\n
    [[check]]\nname = 'check'\nargv = ['ls']\nfail_exit = [1]\n";

struct Tree {
    folder: tempfile::TempDir,
    runtime: Runtime,
    batches: Option<mpsc::Receiver<Batch>>,
}

impl Tree {
    fn new(files: &[&str]) -> Self {
        let tree = Self {
            folder: tempfile::tempdir().expect("temp"),
            runtime: Runtime::new().expect("runtime"),
            batches: None,
        };
        files.iter().for_each(|file| tree.write(file, "as it was"));
        tree
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("live").join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::create_dir_all(self.path(name).parent().expect("a parent")).expect("mkdir");
        fs::write(self.path(name), content).expect("write");
    }

    fn plan(&self) -> Plan {
        self.plan_by(Profile::parse(Path::new("x.toml"), PROFILE).expect("valid"))
    }

    fn plan_by(&self, profile: Profile) -> Plan {
        let _entered = self.runtime.enter();
        let live = self.path("");
        let header = Header {
            roots: vec![Root {
                name: "main".into(),
                subdirectory: String::new(),
                live_path: live.display().to_string(),
            }],
        };
        let rules = Arc::new(FileRules::new(&profile, &BTreeMap::new(), &[]).expect("valid"));
        let place = (live.clone(), String::new());
        let marker =
            Marker::new(profile, Scope::default(), Vec::new(), place, self.folder.path().join("mark"));
        Plan {
            filter: Arc::default(),
            filtered_otherwise: false,
            header,
            roots: vec![Arc::new(Folder::open(&live).expect("open"))],
            mark: None,
            late_files: marker.late_files(),
            rules,
            ground: Default::default(),
            basis: None,
            rereading: crate::replicate::readings::Rereading {
                started: 0,
                within: Default::default(),
                bytes_per_second: u64::MAX,
                clock: Default::default(),
            },
            full_read: false,
            rotten: Default::default(),
            fingerprints: true,
            work: self.folder.path().to_owned(),
            threads: 1,
            memory: crate::replicate::Memory::new(0, 1),
            transfer: TransferOptions {
                patience: std::time::Duration::from_secs(60),
                compression: Compression::Auto,
                threads: 1,
                limit_bytes_per_second: None,
                retry: std::time::Duration::ZERO,
            },
        }
    }

    fn reader(&mut self) -> Reader {
        let (sender, queue) = mpsc::channel(64);
        self.batches = Some(queue);
        let counters = Arc::<Counters>::default();
        let batcher =
            Batcher::new(sender, Budget::new(0), self.runtime.handle().clone(), Arc::clone(&counters));
        Reader::new(batcher, Default::default(), counters, CancellationToken::new())
    }
}

/// The stream as text: what was taken has a mark in front.
fn listed(plan: &Plan, early: Early) -> Vec<String> {
    let mut merged = Merged::new(plan, early);
    let mut lines = Vec::new();
    while let Some(item) = merged.next_item().expect("readable") {
        let mark = match item.taken {
            None => "  ",
            Some(Taken::Folder(_)) => "d ",
            Some(Taken::Read(_)) => "r ",
            Some(Taken::Held(_)) => "h ",
        };
        lines.push(format!("{mark}{}", item.found.path));
    }
    lines.split_off(1)
}

/// A linked work tree that git creates during the copy is left out as a whole: without its HEAD, `git fsck` would call it damaged.
#[test]
fn a_work_tree_that_git_creates_during_the_copy_is_left_out() {
    let files = ["HEAD", "objects/12/x", "worktrees/a/HEAD", "worktrees/a/gitdir", "worktrees/a/commondir"];
    let mut tree = Tree::new(&files);
    let git = Profile::parse(Path::new("git.toml"), Profile::builtin_text("git").expect("built in"));
    let (plan, mut reader) = (tree.plan_by(git.expect("valid")), tree.reader());
    let early = take(&plan, &mut reader, &CancellationToken::new()).expect("taken");
    let made = ["HEAD", "gitdir", "commondir", "locked", "index", "logs/HEAD", "refs/bisect/bad"];
    made.iter().for_each(|file| tree.write(&format!("worktrees/b/{file}"), "later"));
    let listed = listed(&plan, early);
    let of = |name: &str| {
        listed.iter().filter(|line| line.contains(name) && tree.path(&line[2..]).is_file()).count()
    };
    assert_eq!((of("worktrees/a/"), of("worktrees/b/")), (3, 0), "{listed:#?}");
}

/// A branch that is gone is still there, with its folder; one that is new is not; objects are those of then.
#[test]
fn what_was_taken_stands_as_it_was() {
    let mut tree =
        Tree::new(&["a", "objects/12/x", "objects/pack/p", "refs/heads/a", "refs/heads/deep/b", "z"]);
    let (plan, mut reader) = (tree.plan(), tree.reader());
    let early = take(&plan, &mut reader, &CancellationToken::new()).expect("taken");
    fs::remove_dir_all(tree.path("objects/12")).expect("remove");
    fs::remove_dir_all(tree.path("refs/heads/deep")).expect("remove");
    fs::remove_file(tree.path("refs/heads/a")).expect("remove");
    for new in ["objects/34/y", "refs/heads/a/c", "refs/heads/new", "packed-refs", "b"] {
        tree.write(new, "later");
    }
    assert_eq!(
        listed(&plan, early),
        [
            "  a",
            "  b",
            "d objects",
            "d objects/12",
            "h objects/12/x",
            "  objects/34",
            "d objects/pack",
            "h objects/pack/p",
            "d refs",
            "d refs/heads",
            "r refs/heads/a",
            "d refs/heads/deep",
            "r refs/heads/deep/b",
            "  z",
        ]
    );
}

/// A file that is held is read as it was found, even when its name has gone or stands for another file.
#[test]
fn what_is_held_can_be_read_when_it_is_gone() {
    let mut tree = Tree::new(&["objects/x", "objects/y", "refs/a"]);
    let (plan, mut reader) = (tree.plan(), tree.reader());
    let early = take(&plan, &mut reader, &CancellationToken::new()).expect("taken");
    fs::remove_file(tree.path("objects/x")).expect("remove");
    fs::remove_file(tree.path("objects/y")).expect("remove");
    tree.write("objects/y", "another, and longer");
    let mut held = 0;
    for (path, taken) in early.0 {
        let Taken::Held(Held { place, stat: _, file }) = taken else { continue };
        let mut job = Job::new(&plan, &path, path.clone(), place, None);
        job.hold(file);
        let Outcome::Read(read) = reader.read(&job).expect("readable") else { panic!("{path} is gone") };
        let entry = read.0.entry.expect("an entry");
        assert_eq!((entry.size, entry.unstable), (9, false), "{path}");
        held += 1;
    }
    assert_eq!(held, 2);
}

/// What the first look found and the second does not makes both worthless; a file that is new in the second is taken too.
#[test]
fn looks_must_agree_on_what_was_there() {
    let tree = Tree::new(&["objects/x", "refs/a"]);
    let plan = tree.plan();
    let look = || {
        Look::take(&plan, HashMap::new(), &CancellationToken::new()).expect("readable").map(|look| look.held)
    };
    let first = look().expect("nothing goes away");
    tree.write("objects/y", "new");
    let second = Look::take(&plan, first, &CancellationToken::new())
        .expect("readable")
        .expect("nothing has gone")
        .held;
    assert_eq!(second.len(), 2);
    let mut content = String::new();
    let x = TreePath::parse(b"objects/x").expect("valid");
    fs::remove_file(tree.path("objects/x")).expect("remove");
    second[&x]
        .file
        .as_ref()
        .expect("open")
        .try_clone()
        .expect("clone")
        .read_to_string(&mut content)
        .expect("read");
    assert_eq!(content, "as it was");
    let gone = Look::take(&plan, second, &CancellationToken::new()).expect("readable").err();
    assert_eq!(gone, Some(x));
}

/// A file that was not held, because there were too many, and is gone voids the run: it may be in another by now.
#[test]
fn a_file_that_could_not_be_held_is_never_left_out() {
    let mut tree = Tree::new(&["objects/x"]);
    let (plan, mut reader) = (tree.plan(), tree.reader());
    let path = TreePath::parse(b"objects/x").expect("valid");
    let folder = Arc::new(Folder::open(&tree.path("objects")).expect("open"));
    let mut job = Job::new(&plan, &path, path.clone(), (folder, b"x".to_vec()), None);
    job.hold(None);
    assert!(matches!(reader.read(&job), Ok(Outcome::Read(_))));
    fs::remove_file(tree.path("objects/x")).expect("remove");
    assert!(matches!(reader.read(&job), Err(crate::replicate::reader::ReadError::Moved { .. })));
}
