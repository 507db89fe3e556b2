use super::{progress::fingerprint, *};
use crate::replicate::{batch::Budget, chunk::Chunk};
use assay_common::{
    digest::ContentDigest,
    manifest::{EntryKind, Piece},
};
use assay_proto::v1::{FilePart, Reuse};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use tokio::sync::mpsc;

struct Bench {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    memory: BlockMemory,
    /// With some, pieces are hashed side by side.
    threads: usize,
    /// Pieces that have moved may be known by their fingerprints.
    fingerprints: bool,
    /// Files are written in pages.
    page_bytes: Option<u32>,
    /// The target's disk has not kept them.
    rotten: bool,
    /// Bytes that the last reading gave away in memory.
    held: Arc<AtomicUsize>,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
        let (folder, runtime) = (tempfile::tempdir().expect("temp"), runtime.expect("runtime"));
        Self {
            folder,
            runtime,
            memory: BlockMemory::default(),
            threads: 0,
            fingerprints: true,
            page_bytes: None,
            rotten: false,
            held: Arc::default(),
        }
    }

    fn job(&self, name: &str, append_only: bool, base: Option<BaseFile>) -> Job {
        Job {
            path: TreePath::parse(name.as_bytes()).expect("valid"),
            folder: Arc::new(Folder::open(self.folder.path()).expect("open")),
            name: name.as_bytes().to_vec(),
            append_only,
            may_change: false,
            page_bytes: self.page_bytes,
            base,
            held: None,
            rotten: self.rotten,
            expected: None,
            size: 0,
        }
    }

    /// Reads `name` and returns what came out, the parts, and the bytes of the chunks.
    fn read(&self, name: &str, append_only: bool) -> (Outcome, Vec<FilePart>, Vec<u8>) {
        self.read_beside(name, append_only, None, || {})
    }

    /// The same; `on_batch` is called for each batch while its content is still held.
    fn read_beside(
        &self,
        name: &str,
        append_only: bool,
        base: Option<BaseFile>,
        mut on_batch: impl FnMut() + Send + 'static,
    ) -> (Outcome, Vec<FilePart>, Vec<u8>) {
        let (sender, mut queue) = mpsc::channel(64);
        let runtime = self.runtime.handle().clone();
        let counters = Arc::<Counters>::default();
        let batcher = Batcher::new(sender, Budget::new(0), runtime, Arc::clone(&counters));
        let shared = Shared {
            memory: self.memory.clone(),
            threads: self.threads,
            fingerprints: self.fingerprints,
            ..Shared::default()
        };
        let mut reader = Reader::new(batcher, shared, counters, CancellationToken::new());
        let job = self.job(name, append_only, base);
        let path = self.folder.path().join(name);
        // A FIFO would block.
        let file = path.is_file().then(|| File::open(&path).expect("open"));
        let held = Arc::clone(&self.held);
        held.store(0, Ordering::Relaxed);
        // The batches are taken beside the reading, as a transfer takes them: the budget is small.
        let collector = std::thread::spawn(move || {
            let (mut parts, mut bytes) = (Vec::new(), Vec::<u8>::new());
            while let Some(batch) = queue.blocking_recv() {
                on_batch();
                parts.extend(batch.parts);
                for chunk in &batch.chunks {
                    match chunk {
                        Chunk::Held(content) => {
                            held.fetch_add(content.len(), Ordering::Relaxed);
                            bytes.extend_from_slice(content);
                        }
                        Chunk::LetGo(place) => {
                            let start = bytes.len();
                            bytes.resize(start + place.bytes, 0);
                            file.as_ref()
                                .expect("it was there")
                                .read_exact_at(&mut bytes[start..], place.offset)
                                .expect("read");
                        }
                    }
                }
            }
            (parts, bytes)
        });
        let outcome = reader.read(&job).expect("readable");
        reader.flush().expect("flush");
        drop(reader);
        let (parts, bytes) = collector.join().expect("collector");
        (outcome, parts, bytes)
    }
}

fn entry(outcome: Outcome) -> Entry {
    match outcome {
        Outcome::Read(read) => read.0.entry.expect("an entry"),
        Outcome::Same(_) | Outcome::Vanished => panic!("it is there, and is read"),
    }
}

/// A zero budget still makes progress, and what is sent is the file, its pieces gap-free and its digest right.
#[test]
fn pieces_add_up_to_the_file() {
    let mut bench = Bench::new();
    for (length, threads) in [0usize, 1, 8191, 32 * 1024, 1024 * 1024, 1024 * 1024 + 1, 3_333_333]
        .into_iter()
        .flat_map(|length| [(length, 0), (length, 2)])
    {
        bench.threads = threads;
        let mut content = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        std::fs::write(bench.folder.path().join("file"), &content).expect("write");
        let (outcome, parts, bytes) = bench.read("file", false);
        let entry = entry(outcome);
        assert_eq!(bytes, content);
        assert_eq!(entry.size, length as u64);
        assert_eq!(entry.digest, blake3::hash(&content).as_bytes());
        assert!(assay_common::manifest::validate_entry(&entry).is_ok());
        assert!(
            parts.iter().rev().skip(1).all(|part| !part.last) && parts.last().is_some_and(|part| part.last)
        );
        let mut offset = 0;
        for part in &parts {
            assert_eq!(part.offset, offset);
            offset += part.pieces.iter().map(|word| word >> 1).sum::<u64>();
        }
    }
}

/// Holes are pieces: their zeros are neither read nor sent, and the digest is that of the whole file.
#[test]
fn holes_are_neither_read_nor_sent() {
    let bench = Bench::new();
    let path = bench.folder.path().join("sparse");
    let file = File::create(&path).expect("create");
    file.set_len(64 << 20).expect("length");
    file.write_all_at(b"data in the middle", 32 << 20).expect("write");
    let (outcome, _, bytes) = bench.read("sparse", false);
    assert!(bytes.len() < 1 << 20, "{} bytes were read", bytes.len());
    let entry = entry(outcome);
    assert_eq!(entry.digest, blake3::hash(&std::fs::read(&path).expect("read")).as_bytes());
    assert!(entry.pieces.iter().any(|word| word & 1 == 1));
    assert!(assay_common::manifest::validate_entry(&entry).is_ok());
}

#[test]
fn a_file_that_is_gone_or_a_folder_is_vanished_and_another_thing_is_that() {
    let bench = Bench::new();
    let path = |name: &str| bench.folder.path().join(name);
    std::os::unix::fs::symlink("/etc/passwd", path("link")).expect("symlink");
    std::fs::create_dir(path("folder")).expect("mkdir");
    for name in ["none", "folder"] {
        assert!(matches!(bench.read(name, false).0, Outcome::Vanished), "{name}");
    }
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), fifo, rustix::fs::Mode::RUSR, 0).expect("mkfifo");
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("bind");
    let kinds = [("link", EntryKind::Symlink), ("fifo", EntryKind::Fifo), ("socket", EntryKind::Socket)];
    for (name, kind) in kinds {
        let (outcome, parts, bytes) = bench.read(name, false);
        let entry = entry(outcome);
        assert_eq!((entry.kind(), parts.len(), bytes.len()), (kind, 0, 0), "{name}");
        assert!(assay_common::manifest::validate_entry(&entry).is_ok());
    }
}

/// What a program writes through a mapping to a page that is dirty leaves no time, unless the page was written back before: a reading
/// sees to that, and the next look finds another time. Where no write-back sees to it (tmpfs) the file is never taken for unchanged.
#[test]
fn a_write_through_a_mapping_leaves_a_trace_after_a_reading() {
    use std::io::{BufRead as _, Write as _};
    let script = "import mmap,os,sys\nf=os.open(sys.argv[1],os.O_RDWR)\nm=mmap.mmap(f,8192)\n\
        for line in sys.stdin:\n m[0:1]=line[0].encode()\n print('written',flush=True)";
    for place in [std::env::temp_dir(), "/dev/shm".into()] {
        let mut bench = Bench::new();
        let Ok(folder) = tempfile::tempdir_in(&place) else { continue };
        bench.folder = folder;
        let path = bench.folder.path().join("mapped");
        std::fs::write(&path, vec![b'-'; 8192]).expect("write");
        let mut writer = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3 is needed for this test");
        let mut answers = std::io::BufReader::new(writer.stdout.take().expect("piped"));
        let input = writer.stdin.as_mut().expect("piped");
        let mut write = |letter: char| {
            writeln!(input, "{letter}").expect("write");
            answers.read_line(&mut String::new()).expect("read");
        };
        write('a');
        let Outcome::Read(read) = bench.read("mapped", false).0 else { panic!("it is there") };
        let after = rustix::fs::stat(&path).expect("stat");
        assert!(read.1.looks_like(&after));
        write('b');
        write('c');
        let later = rustix::fs::stat(&path).expect("stat");
        assert!(!read.1.still_holds(&later), "{}", place.display());
        drop(writer.stdin.take());
        writer.wait().expect("waited for");
        assert_eq!(std::fs::read(&path).expect("read")[0], b'c');
    }
}

/// A file that never holds still is read a bounded number of times, taken as last read, and flagged; one that only
/// grows is not flagged when the profile says that it may.
#[test]
fn a_file_that_never_holds_still_is_flagged() {
    let bench = Bench::new();
    let path = bench.folder.path().join("busy");
    // Four times the budget: the reader cannot come to the end before batches have been taken, and with each one that
    // is taken the file grows.
    std::fs::write(&path, vec![7; 32 << 20]).expect("write");
    let append = move || {
        let mut file = File::options().append(true).open(&path).expect("open");
        file.write_all(b"x").expect("append");
    };
    let (busy, parts, _) = bench.read_beside("busy", false, None, append.clone());
    let busy = entry(busy);
    assert!(busy.unstable);
    let ends: Vec<_> = parts.iter().filter(|part| part.last).map(|part| part.abandoned).collect();
    assert_eq!(ends, [true, true, false], "every reading is a content of its own");
    assert!(assay_common::manifest::validate_entry(&busy).is_ok());
    let growing = entry(bench.read_beside("busy", true, None, append).0);
    assert!(!growing.unstable);
}

/// Of a file that the base has too, only what is new is described at length, and nothing is held back from the target.
#[test]
fn a_changed_file_is_told_by_what_changed() {
    let bench = Bench::new();
    let mut content = vec![0; 5_000_000];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    let path = bench.folder.path().join("file");
    std::fs::write(&path, &content).expect("write");
    let before = entry(bench.read("file", false).0);
    content.splice(2_000_000..2_000_000, *b"three lines inserted");
    content.extend_from_slice(b"and one appended");
    std::fs::write(&path, &content).expect("write");
    let base = BaseFile { position: 7, entry: before.clone() };
    let (outcome, parts, bytes) = bench.read_beside("file", false, Some(base), || {});
    let Outcome::Read(read) = outcome else { panic!("it is there") };
    let put = read.0;
    let told = put.entry.expect("an entry");
    assert!(told.pieces.len() <= 5, "{} of {} pieces are new", told.pieces.len(), before.pieces.len());
    assert!(parts.iter().all(|part| part.reuse.is_empty() || part.base_entry == 7));
    assert_eq!(parts.iter().map(|part| part.pieces.len()).sum::<usize>(), told.pieces.len());
    assert_eq!(bytes, content, "what is reused is held too: the target may not have it any more");
    let mut whole = told.clone();
    assay_common::manifest::reuse::expand(&mut whole, &put.reuse, &before).expect("it fits");
    let digest = blake3::hash(&content);
    assert_eq!((whole.size, whole.digest.as_slice()), (content.len() as u64, &digest.as_bytes()[..]));
    assert!(assay_common::manifest::validate_entry(&whole).is_ok());
}

/// What happens to a file, and to its base, before it is read again.
type Change = Box<dyn FnOnce(&mut Vec<u8>, &mut Entry)>;

/// What came of reading a file again.
struct Again {
    base: Entry,
    whole: Entry,
    content: Vec<u8>,
    parts: Vec<FilePart>,
    reuse: Vec<Reuse>,
    /// What is remembered for the next reading.
    next: Vec<u8>,
    /// Bytes that had to be held for the target.
    held: usize,
}

/// Reads a file of which more than the base is remembered.
fn read_again(change: Change) -> Again {
    read_again_with(true, change, |_| {})
}

/// The same, with fingerprints or without, and with something done to what is remembered.
fn read_again_with(fingerprints: bool, change: Change, spoil: impl FnOnce(&mut Vec<u8>)) -> Again {
    read_on(Bench { fingerprints, ..Bench::new() }, noise(), change, spoil)
}

fn read_on(
    mut bench: Bench,
    mut content: Vec<u8>,
    change: Change,
    spoil: impl FnOnce(&mut Vec<u8>),
) -> Again {
    let path = bench.folder.path().join("file");
    std::fs::write(&path, &content).expect("write");
    let kept = bench.folder.path().join("blocks");
    bench.memory = BlockMemory::new(None, &kept);
    let mut base = entry(bench.read("file", false).0);
    bench.memory.finish();
    let mut remembered = std::fs::read(&kept).expect("read");
    spoil(&mut remembered);
    std::fs::write(&kept, remembered).expect("write");
    bench.memory = BlockMemory::new(Some(&kept), &bench.folder.path().join("next"));
    change(&mut content, &mut base);
    std::fs::write(&path, &content).expect("write");
    let base_file = BaseFile { position: 7, entry: base.clone() };
    let (outcome, parts, bytes) = bench.read_beside("file", false, Some(base_file), || {});
    assert_eq!(bytes, content);
    let Outcome::Read(read) = outcome else { panic!("it is there") };
    let put = read.0;
    let mut whole = put.entry.expect("an entry");
    assay_common::manifest::reuse::expand(&mut whole, &put.reuse, &base).expect("it fits");
    assert_eq!(
        (whole.size, whole.digest.as_slice()),
        (content.len() as u64, &blake3::hash(&content).as_bytes()[..])
    );
    assert!(assay_common::manifest::validate_entry(&whole).is_ok());
    bench.memory.finish();
    let next = std::fs::read(bench.folder.path().join("next")).expect("read");
    let held = bench.held.load(Ordering::Relaxed);
    Again { base, whole, content, parts, reuse: put.reuse, next, held }
}

fn new_pieces(parts: &[FilePart]) -> usize {
    parts.iter().map(|part| part.pieces.len()).sum()
}

/// What is said of the pieces is right, wherever the change is: each has the digest of its bytes.
#[test]
fn blocks_that_are_as_they_were_are_told_by_the_base() {
    let at = |place: usize| move |content: &mut Vec<u8>, _: &mut Entry| content[place] ^= 1;
    for page_bytes in [None, Some(8192)] {
        let changes: [(&str, Change); 10] = [
            ("nothing", Box::new(|_, _| {})),
            ("appended", Box::new(|content, _| content.extend_from_slice(&[7; 3_000_000]))),
            ("cut off", Box::new(|content, _| content.truncate(4_500_000))),
            ("cut off at a block", Box::new(|content, _| content.truncate(4 * 1024 * 1024))),
            ("first byte", Box::new(at(0))),
            ("last byte of a block", Box::new(at(2 * 1024 * 1024 - 1))),
            ("first byte of a block", Box::new(at(2 * 1024 * 1024))),
            ("last byte", Box::new(at(5_999_999))),
            ("inserted", Box::new(|content, _| drop(content.splice(3_000_000..3_000_000, *b"a line")))),
            ("pages inserted", Box::new(|content, _| drop(content.splice(81920..81920, [9; 16384])))),
        ];
        for (name, change) in changes {
            let bench = Bench { page_bytes, ..Bench::new() };
            let Again { base, whole, content, parts, held, .. } = read_on(bench, noise(), change, |_| {});
            each_piece_has_its_digest(&whole, &content, name);
            // What is inserted into pages moves the content of all that are behind it.
            let moved = page_bytes.map_or(0, |_| if name == "inserted" { 3_000_000 } else { 0 });
            let more = if name == "appended" { 3_000_000 } else { moved };
            let new = new_pieces(&parts);
            assert!(new <= 5 + more / 8192, "{name}: {new} of {} are new", base.pieces.len());
            // What the base has is let go, but for what shares a block with more that is new.
            let most = if more > 0 { more + (1 << 20) } else { 1 << 19 };
            assert!(held <= most, "{name}: {held} of {} bytes are held", content.len());
        }
    }
}

fn noise() -> Vec<u8> {
    let mut content = vec![0; 6_000_000];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    content
}

fn each_piece_has_its_digest(whole: &Entry, content: &[u8], name: &str) {
    for (offset, piece, digest) in assay_common::manifest::content_pieces(whole) {
        let bytes = &content[offset as usize..(offset + piece.bytes()) as usize];
        match piece {
            Piece::Data { .. } => assert_eq!(digest, Some(ContentDigest::of(bytes)), "{name}: {offset}"),
            Piece::Hole { .. } => assert!(bytes.iter().all(|byte| *byte == 0), "{name}: {offset}"),
        }
    }
}

/// Holes stand between pages, and come and go.
#[test]
fn pages_between_holes_are_told_by_the_base() {
    const PAGE: usize = 8192;
    for page_bytes in [None, Some(PAGE as u32)] {
        let bench = Bench { page_bytes, ..Bench::new() };
        let path = bench.folder.path().join("file");
        let kept = bench.folder.path().join("blocks");
        let write = |content: &[u8]| {
            let file = File::create(&path).expect("create");
            file.set_len(content.len() as u64).expect("length");
            for (number, page) in content.chunks(PAGE).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    file.write_all_at(page, (number * PAGE) as u64).expect("write");
                }
            }
            file.sync_all().expect("holes are known when it is on the disk");
        };
        let mut content = noise();
        content[40 * PAGE..300 * PAGE].fill(0);
        write(&content);
        let mut bench = Bench { memory: BlockMemory::new(None, &kept), ..bench };
        let base = entry(bench.read("file", false).0);
        bench.memory.finish();
        assert!(base.pieces.iter().any(|word| word & 1 == 1), "it has a hole");
        let (front, behind) = (7 * PAGE, 310 * PAGE);
        // One page in front of the hole and one behind it, and the hole has grown and is no longer one.
        content[front] ^= 1;
        content[behind] ^= 1;
        content[300 * PAGE..304 * PAGE].fill(0);
        content[100 * PAGE..101 * PAGE].fill(5);
        write(&content);
        bench.memory = BlockMemory::new(Some(&kept), &bench.folder.path().join("next"));
        let base_file = BaseFile { position: 1, entry: base.clone() };
        let Outcome::Read(read) = bench.read_beside("file", false, Some(base_file), || {}).0 else {
            panic!("it is there")
        };
        let mut whole = read.0.entry.expect("an entry");
        assay_common::manifest::reuse::expand(&mut whole, &read.0.reuse, &base).expect("it fits");
        each_piece_has_its_digest(&whole, &content, "holes");
        assert_eq!(whole.digest, blake3::hash(&content).as_bytes());
        assert!(assay_common::manifest::validate_entry(&whole).is_ok());
    }
}

/// Counted work: what lies in a block that is as it was gets no digest of its own. A base that is wrong about its pieces shows it: the
/// reader takes its word for them, and finds all that lie elsewhere to be new.
#[test]
fn a_block_that_is_as_it_was_is_hashed_once() {
    let Again { base, parts, .. } = read_again(Box::new(|content, base| {
        content[5_500_000] ^= 1;
        base.piece_digests.chunks_mut(32).for_each(|digest| digest[0] ^= 1);
    }));
    let new = new_pieces(&parts);
    let in_last_block = base.pieces.len() * (6_000_000 - 5 * 1024 * 1024) / 6_000_000;
    assert!(new > 5 && new < 2 * in_last_block + 10, "{new} of {} are new", base.pieces.len());
}

/// Counted work: a piece that has moved gets no digest of its own either. A base that is wrong about its pieces shows it, as above.
#[test]
fn what_has_moved_is_known_by_its_fingerprint() {
    let insert = || -> Change {
        Box::new(|content, base| {
            drop(content.splice(100_000..100_000, *b"a line"));
            // The first ones behind the line are found by their digests.
            base.piece_digests.chunks_mut(32).skip(40).for_each(|digest| digest[0] ^= 1);
        })
    };
    let new = |fingerprints| new_pieces(&read_again_with(fingerprints, insert(), |_| {}).parts);
    let (with, without) = (new(true), new(false));
    assert!(with <= 3 && without > 50, "{with} with fingerprints, {without} without");
}

/// Counted work: a page beside one that has changed gets no digest of its own either, wherever in a block it is.
#[test]
fn pages_beside_a_new_one_are_known_by_their_fingerprints() {
    let new = |fingerprints| {
        let bench = Bench { fingerprints, page_bytes: Some(8192), ..Bench::new() };
        // Every hundredth page changes, so that no block is as it was; of the others the base says what is wrong.
        let change: Change = Box::new(|content, base| {
            content.chunks_mut(8192).step_by(100).for_each(|page| page[7] ^= 1);
            base.piece_digests.chunks_mut(32).for_each(|digest| digest[0] ^= 1);
        });
        new_pieces(&read_on(bench, noise(), change, |_| {}).parts)
    };
    let (with, without) = (new(true), new(false));
    assert!(with == 8 && without > 700, "{with} with fingerprints, {without} without");
}

/// Of many pages that are alike each is told to be what it was, and not another: then it need not be written anew.
#[test]
fn a_page_is_told_to_be_that_which_stood_in_its_place() {
    let bench = Bench { page_bytes: Some(8192), ..Bench::new() };
    let change: Change = Box::new(|content, _| content[3 * 8192] = 1);
    let again = read_on(bench, vec![5; 600 * 8192], change, |_| {});
    let run = |after, first, count| Reuse { after, first, count };
    assert_eq!(again.reuse, [run(0, 0, 3), run(1, 4, 596)]);
}

/// A piece that only looks like one of the base is told to be that; the digest of the whole is of what was read, and so nobody takes
/// the one for the other.
#[test]
fn a_fingerprint_that_lies_does_not_change_the_digest_of_the_whole() {
    let change = || -> Change { Box::new(|content, _| content[10] ^= 1) };
    let changed = read_again(change());
    let (_, piece, _) = assay_common::manifest::content_pieces(&changed.base).next().expect("a piece");
    let looks = fingerprint(&changed.content[..piece.bytes() as usize]);
    let pieces = changed.base.pieces.len();
    let lied = read_again_with(true, change(), |remembered| {
        let first = remembered.len() - pieces * 8;
        remembered[first..first + 8].copy_from_slice(&looks.to_le_bytes());
    });
    assert_eq!(new_pieces(&lied.parts), 0, "it is taken for the base's");
    assert_eq!(lied.whole.digest, blake3::hash(&lied.content).as_bytes());
    assert_eq!(
        lied.parts.last().map(|part| &part.digest),
        Some(&lied.whole.digest),
        "and the target is told"
    );
}

/// Of a file that the target's disk has not kept any piece may be asked for: what it is told to be is what it is.
#[test]
fn a_fingerprint_says_nothing_of_a_file_that_has_rotted() {
    let bench = Bench { page_bytes: Some(8192), rotten: true, ..Bench::new() };
    let page_looks = |content: &[u8]| fingerprint(&content[..8192]).to_le_bytes();
    let mut changed = noise();
    changed[10] ^= 1;
    let looks = page_looks(&changed);
    let again = read_on(bench, noise(), Box::new(|content, _| content[10] ^= 1), |remembered| {
        let first = remembered.len() - 6_000_000usize.div_ceil(8192) * 8;
        assert_eq!(remembered[first..first + 8], page_looks(&noise()), "the first page's");
        remembered[first..first + 8].copy_from_slice(&looks);
    });
    assert_eq!(new_pieces(&again.parts), 1);
}

/// What was remembered wrongly is not remembered again.
#[test]
fn a_wrong_fingerprint_does_not_outlive_the_next_reading() {
    for page_bytes in [None, Some(8192)] {
        let bench = Bench { page_bytes, ..Bench::new() };
        // The first piece has another fingerprint by mistake, and its block is not as it was.
        let change: Change = Box::new(|content, _| content[500_000] ^= 1);
        let again = read_on(bench, noise(), change, |remembered| {
            let digests = remembered.len() - pieces_of(remembered) * 8;
            remembered[digests] ^= 1;
        });
        let first = assay_common::manifest::content_pieces(&again.whole).next().expect("a piece").1;
        let pieces = pieces_of(&again.next);
        let fingerprints = &again.next[again.next.len() - pieces * 8..];
        let right = fingerprint(&again.content[..first.bytes() as usize]).to_le_bytes();
        assert_eq!(fingerprints[..8], right, "{page_bytes:?}");
        assert_eq!(new_pieces(&again.parts), 1, "what it was is found by its digest");
    }
}

/// The third field of a record's head: how many fingerprints it ends with.
fn pieces_of(remembered: &[u8]) -> usize {
    u32::from_le_bytes(remembered[36..40].try_into().expect("four bytes")) as usize
}

/// A reader that is stopped takes the jobs out that nobody will read: who waits for one learns that it does not come.
#[test]
fn what_no_reader_will_read_is_not_waited_for() {
    use crate::replicate::{compare::ReadJob, read_or_stop};
    let bench = Bench::new();
    std::fs::write(bench.folder.path().join("file"), b"some").expect("write");
    let (sender, _queue) = mpsc::channel(4);
    let (counters, stop) = (Arc::<Counters>::default(), CancellationToken::new());
    let batcher = Batcher::new(sender, Budget::new(0), bench.runtime.handle().clone(), Arc::clone(&counters));
    let mut reader = Reader::new(batcher, Shared::default(), Arc::clone(&counters), stop.clone());
    let (jobs, job_queue) = crossbeam_channel::bounded(4);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (outcome, waits) = tokio::sync::oneshot::channel();
            jobs.send(ReadJob { job: bench.job("file", false, None), outcome }).expect("there is room");
            waits
        })
        .collect();
    stop.cancel();
    let ended = read_or_stop(&job_queue, &mut reader, &counters, &stop);
    assert!(matches!(ended, Err(ReadError::Stopped)));
    // The channel is there as before, with both its ends.
    assert!(waiting.into_iter().all(|waits| waits.blocking_recv().is_err()));
    assert!(job_queue.is_empty() && jobs.is_empty());
}
