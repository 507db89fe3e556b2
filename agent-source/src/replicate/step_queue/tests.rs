use std::{fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use assay_common::confined::Folder;
use assay_proto::v1::{ManifestStep, manifest_step::Kind};
use prost::Message as _;
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::replicate::{
    Counters,
    batch::{Batch, Batcher, Budget},
    reader::Shared,
};

/// A queue over a temporary folder.
struct Bench {
    folder: tempfile::TempDir,
    runtime: Runtime,
    shared: Shared,
    batches: Option<mpsc::Receiver<Batch>>,
    counters: Arc<Counters>,
}

impl Bench {
    fn new() -> Self {
        let (folder, runtime) = (tempfile::tempdir().expect("temp"), Runtime::new().expect("runtime"));
        fs::create_dir(folder.path().join("live")).expect("mkdir");
        Self { folder, runtime, shared: Shared::default(), batches: None, counters: Arc::default() }
    }

    fn live(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("live").join(name)
    }

    fn reader(&mut self) -> Reader {
        let (sender, receiver) = mpsc::channel(64);
        self.batches = Some(receiver);
        let batcher =
            Batcher::new(sender, Budget::new(1 << 20), self.runtime.handle().clone(), Arc::default());
        Reader::new(batcher, self.shared.clone(), Arc::clone(&self.counters), CancellationToken::new())
    }

    fn queue(&mut self) -> StepQueue {
        let spool = SpoolWriter::create(self.folder.path()).expect("a spool");
        let links = Links::new(Arc::clone(&self.shared.held_files));
        StepQueue::new(spool, Names { reader: self.reader(), links })
    }

    fn job(&self, name: &str) -> Job {
        Job {
            path: TreePath::parse(name.as_bytes()).expect("valid"),
            folder: Arc::new(Folder::open(&self.live("")).expect("open")),
            name: name.as_bytes().to_vec(),
            append_only: false,
            may_change: false,
            page_bytes: None,
            base: None,
            held: None,
            rotten: false,
            expected: None,
            size: 0,
        }
    }

    /// A further name as the walk sees it now.
    fn further(&self, name: &str) -> Planned {
        let job = self.job(name);
        let stat = job.folder.stat(&job.name).expect("stat");
        let place = Some((Arc::clone(&job.folder), job.name.clone()));
        let found = Found { path: job.path.clone(), place, stat: Some(stat), own_folder: None };
        Planned::Further(Box::new(Further { found, job: Some(job), old: None, holds: false }))
    }

    fn steps(&self) -> Vec<String> {
        let steps = fs::read(self.folder.path().join("steps")).expect("the steps");
        let (mut rest, mut found) = (&steps[..], Vec::new());
        while !rest.is_empty() {
            found.push(match ManifestStep::decode_length_delimited(&mut rest).expect("a step").kind {
                Some(Kind::Put(put)) => text(&put.entry.expect("an entry")),
                kind => format!("{kind:?}"),
            });
        }
        found
    }
}

fn text(entry: &Entry) -> String {
    let path = String::from_utf8_lossy(&entry.path);
    match entry.kind() {
        EntryKind::Hardlink | EntryKind::Symlink => {
            format!("{path} -> {}", String::from_utf8_lossy(&entry.link_target))
        }
        EntryKind::File => format!("{path}: {} bytes", entry.size),
        kind => format!("{path}: {kind:?}"),
    }
}

fn read(name: &str) -> Outcome {
    let mut entry = Entry { path: name.as_bytes().to_vec(), ..Default::default() };
    entry.set_kind(EntryKind::File);
    Outcome::Read(Box::new((PutEntry { entry: Some(entry), ..Default::default() }, Seen::default())))
}

fn file(replaces: bool) -> (oneshot::Sender<Outcome>, Planned) {
    let (sender, outcome) = oneshot::channel();
    (sender, Planned::File { outcome, replaces, kept: None })
}

/// Whenever the files are read, the steps are in the walk's order.
#[test]
fn steps_keep_their_order() {
    let mut bench = Bench::new();
    let mut queue = bench.queue();
    let (first, step) = file(false);
    queue.push(step).expect("taken");
    queue.push(Planned::Ready(Step::Keep)).expect("taken");
    let (second, step) = file(true);
    queue.push(step).expect("taken");
    let (gone, step) = file(true);
    queue.push(step).expect("taken");
    second.send(read("second")).expect("it is waited for");
    queue.push(Planned::Ready(Step::Keep)).expect("taken");
    assert_eq!(queue.waiting.len(), 5, "the first is not read");
    first.send(read("first")).expect("it is waited for");
    queue.push(Planned::Ready(Step::Keep)).expect("taken");
    assert_eq!(queue.waiting.len(), 3, "the third is not read");
    gone.send(Outcome::Vanished).expect("it is waited for");
    assert_eq!(queue.finish().expect("written").0, (3, 2));
    let steps = bench.steps();
    let expected = [
        "first: 0 bytes",
        "Some(Keep(1))",
        "Some(Drop(1))",
        "second: 0 bytes",
        "Some(Drop(1))",
        "Some(Keep(2))",
    ];
    assert_eq!(steps, expected);
}

/// A reader that stops is found wherever it is waited for.
#[test]
fn a_reader_that_stopped_is_an_error() {
    let mut bench = Bench::new();
    let mut queue = bench.queue();
    let (sender, step) = file(false);
    drop(sender);
    let stopped = queue.push(step).expect_err("it is told");
    assert!(matches!(stopped, ReplicateError::Spool(SpoolError::Stopped)));
}

/// However long a file takes, no more than so many steps wait for it.
#[test]
fn the_walk_waits_for_a_file_that_takes_long() {
    let mut bench = Bench::new();
    let mut queue = bench.queue();
    let (slow, step) = file(false);
    queue.push(step).expect("taken");
    for _ in 1..MAX_WAITING {
        queue.push(Planned::Ready(Step::Keep)).expect("taken");
    }
    assert_eq!(queue.waiting.len(), MAX_WAITING);
    slow.send(read("slow")).expect("it is waited for");
    queue.push(Planned::Ready(Step::Drop)).expect("taken");
    assert!(queue.waiting.is_empty());
    assert_eq!(queue.finish().expect("written").0, (MAX_WAITING as u64 - 1, 1));
}

/// The first name is read, whatever it leads to by then; `meddle` acts between the walk and the reading, `then` between that and
/// the further names. What the manifest says of `a`, `b` and `c`, which the walk saw as one file.
fn three_names(meddle: impl FnOnce(&Path), then: impl FnOnce(&Path)) -> Vec<String> {
    let mut bench = Bench::new();
    fs::write(bench.live("a"), "old").expect("write");
    for name in ["b", "c"] {
        fs::hard_link(bench.live("a"), bench.live(name)).expect("link");
    }
    let mut queue = bench.queue();
    let (sender, step) = file(false);
    queue.push(step).expect("taken");
    let (job, further) = (bench.job("a"), [bench.further("b"), bench.further("c")]);
    meddle(&bench.live(""));
    let outcome = bench.reader().read(&job).expect("readable");
    then(&bench.live(""));
    sender.send(outcome).ok();
    for further in further {
        queue.push(further).expect("taken");
    }
    let _names = queue.finish().expect("written");
    bench.steps()
}

/// A name that is replaced between the walk and its reading takes no further names of the old file with it.
#[test]
fn links_are_made_of_what_was_read() {
    let replace = |name: &'static str| {
        move |live: &Path| {
            fs::write(live.join(".new"), "much newer").expect("write");
            fs::rename(live.join(".new"), live.join(name)).expect("rename");
        }
    };
    let nothing = |_: &Path| {};
    assert_eq!(three_names(nothing, nothing), ["a: 3 bytes", "b -> a", "c -> a"]);
    assert_eq!(three_names(replace("a"), nothing), ["a: 10 bytes", "b: 3 bytes", "c -> b"]);
    assert_eq!(
        three_names(nothing, replace("a")),
        ["a: 3 bytes", "b -> a", "c -> a"],
        "it was a name of theirs"
    );
    assert_eq!(three_names(nothing, replace("b")), ["a: 3 bytes", "b: 10 bytes", "c -> a"]);
    assert_eq!(three_names(replace("b"), nothing), ["a: 3 bytes", "b: 10 bytes", "c -> a"]);
    let remove = |name: &'static str| move |live: &Path| fs::remove_file(live.join(name)).expect("remove");
    assert_eq!(three_names(remove("a"), nothing), ["b: 3 bytes", "c -> b"]);
    assert_eq!(three_names(nothing, remove("b")), ["a: 3 bytes", "c -> a"]);
    let link = |live: &Path| {
        fs::remove_file(live.join("a")).expect("remove");
        std::os::unix::fs::symlink("nowhere", live.join("a")).expect("symlink");
    };
    assert_eq!(three_names(link, nothing), ["a -> nowhere", "b: 3 bytes", "c -> b"]);
    let folder = |live: &Path| {
        fs::remove_file(live.join("b")).expect("remove");
        fs::create_dir(live.join("b")).expect("mkdir");
    };
    assert_eq!(three_names(nothing, folder), ["a: 3 bytes", "c -> a"], "the next run walks it");
}

/// The same file, but not what it was when its first name was read: what the further name leads to now is read.
#[test]
fn a_further_name_of_a_changed_file_is_read() {
    let write = |live: &Path| fs::write(live.join("c"), "longer than before").expect("write");
    assert_eq!(three_names(|_| {}, write), ["a: 3 bytes", "b: 18 bytes", "c -> b"]);
    assert_eq!(three_names(write, |_| {}), ["a: 18 bytes", "b -> a", "c -> a"]);
    let touched = |live: &Path| {
        let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        fs::File::options().write(true).open(live.join("c")).expect("open").set_times(time).expect("times");
    };
    assert_eq!(three_names(|_| {}, touched), ["a: 3 bytes", "b -> a", "c -> a"], "its content is the same");
}

/// While a file is open its inode's number is not given to another: after its removal the number means nothing.
#[test]
fn a_number_that_is_used_again_makes_no_link() {
    let reuse = |live: &Path| {
        let inode = fs::metadata(live.join("a")).expect("stat").ino();
        for name in ["a", "b", "c"] {
            fs::remove_file(live.join(name)).expect("remove");
        }
        for number in 0..50 {
            let new = live.join(format!("new-{number}"));
            fs::write(&new, "new").expect("write");
            if fs::metadata(&new).expect("stat").ino() == inode {
                fs::rename(&new, live.join("b")).expect("rename");
                fs::hard_link(live.join("b"), live.join("c")).expect("link");
                return;
            }
        }
        // The number was not used again: it is held.
        fs::write(live.join("b"), "a new file").expect("write");
        fs::hard_link(live.join("b"), live.join("c")).expect("link");
    };
    assert_eq!(three_names(|_| {}, reuse), ["a: 3 bytes", "b: 10 bytes", "c -> b"]);
}
