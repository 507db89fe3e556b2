//! A live engine beside two agents: writers that go on, damage that is put in and taken out again, and what both the matrix
//! and the soak do with them.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

use assay_common::{
    ledger::Ledger,
    signing::VerifyingKey,
    verdict::{Outcome, Verdict, verify_verdict},
};

use crate::{
    matrix,
    pair::{Pair, json},
};

/// How many rounds a soak has: one sound run and one damaged run each.
const ROUNDS_VARIABLE: &str = "ASSAY_SOAK_ROUNDS";
/// Rounds when nobody says how many.
const DEFAULT_ROUNDS: usize = 3;

/// A live system under writers.
pub(crate) trait Live: Sized + 'static {
    /// The engine's name in the matrix.
    const ENGINE: &'static str;
    /// What can be done to it.
    const DAMAGES: &'static [Damage<Self>];
    /// Reasons of NOT_RUN for which load of the engine's own makes a run void. Such a run is made again.
    const VOID: &'static [&'static str] = &[];

    /// Its agents.
    fn pair(&self) -> &Pair;

    /// What the writers have done so far.
    fn written(&self) -> u64;

    /// Runs the engine's own check on the live data, which tells a true FAIL from a false one.
    fn check_live_data(&self) -> String {
        "not run".to_owned()
    }
}

/// One kind of damage, done on the live side.
pub(crate) struct Damage<L> {
    /// In the matrix' words.
    pub(crate) name: &'static str,
    /// What must come out.
    pub(crate) outcome: Outcome,
    /// In the matrix' words: what the verdict names. Empty: nothing.
    pub(crate) names: &'static str,
    pub(crate) put_in: fn(&L) -> Broken,
}

/// Damage that has been put in.
pub(crate) struct Broken {
    /// What the verdict must say.
    said: String,
    undo: Box<dyn FnOnce()>,
}

impl Broken {
    /// Damage of which the verdict must say this.
    pub(crate) fn new(said: impl Into<String>, undo: impl FnOnce() + 'static) -> Self {
        Self { said: said.into(), undo: Box::new(undo) }
    }

    /// Takes it out again.
    pub(crate) fn mend(self) {
        (self.undo)();
    }

    /// The same, and something more to be done when it is taken out.
    pub(crate) fn then(self, more: impl FnOnce() + 'static) -> Self {
        Self::new(self.said, move || {
            (self.undo)();
            more();
        })
    }
}

/// Writes over a part of a file.
pub(crate) fn overwrite(path: &Path, offset: u64, bytes: &[u8], said: impl Into<String>) -> Broken {
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).expect("open");
    let mut old = vec![0; bytes.len()];
    let file = open(path);
    file.read_exact_at(&mut old, offset).expect("read");
    assert_ne!(old, bytes, "{} would not change", path.display());
    file.write_all_at(bytes, offset).expect("write");
    let path = path.to_owned();
    Broken::new(said, move || open(&path).write_all_at(&old, offset).expect("write"))
}

/// Flips a bit of a file.
pub(crate) fn flip(path: &Path, offset: u64, said: impl Into<String>) -> Broken {
    let mut byte = [0];
    File::open(path).expect("open").read_exact_at(&mut byte, offset).expect("read");
    overwrite(path, offset, &[byte[0] ^ 0x10], said)
}

/// Puts another content in place of a file that nobody writes, or nothing.
pub(crate) fn replace(path: &Path, content: Option<&[u8]>, said: impl Into<String>) -> Broken {
    let (old, permissions) = (fs::read(path).expect("read"), fs::metadata(path).expect("stat").permissions());
    // Not in place: other names of the file keep what it had.
    let put = |path: &Path, content: &[u8], permissions: fs::Permissions| {
        let new = path.with_extension("new");
        fs::write(&new, content).expect("write");
        fs::set_permissions(&new, permissions).expect("chmod");
        fs::rename(&new, path).expect("rename");
    };
    match content {
        Some(content) => put(path, content, permissions.clone()),
        None => fs::remove_file(path).expect("remove"),
    }
    let path = path.to_owned();
    Broken::new(said, move || put(&path, &old, permissions))
}

/// Adds a file that was not there.
pub(crate) fn add(path: &Path, content: &str, said: impl Into<String>) -> Broken {
    assert!(!path.exists(), "{} is there", path.display());
    fs::write(path, content).expect("write");
    let path = path.to_owned();
    Broken::new(said, move || fs::remove_file(&path).expect("remove"))
}

/// For each unit of time that a write took, its writer rests this many. At full speed writers take the machine from the agents, and their
/// files become so many that every check takes longer than the one before.
const REST: u32 = 4;

/// Threads that write until they are dropped.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    pub(crate) fn new() -> Self {
        Self { stop: Arc::default(), written: Arc::default(), threads: Vec::new() }
    }

    /// A further writer, called again and again with the number of the call. It says whether it has written.
    pub(crate) fn start(&mut self, mut write: impl FnMut(u64) -> bool + Send + 'static) {
        let (stop, written) = (Arc::clone(&self.stop), Arc::clone(&self.written));
        self.threads.push(std::thread::spawn(move || {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let begun = Instant::now();
                if write(number) {
                    written.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::park_timeout(begun.elapsed() * REST);
            }
        }));
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok(), "a writer has panicked");
        }
    }
}

/// Runs a command, which must succeed, and returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The newest verdict in the target's ledger, believed only with both keys.
pub(crate) fn newest_verdict(pair: &Pair) -> Verdict {
    let ledger = Ledger::open(&pair.path("store/repo/ledger")).expect("ledger");
    let key = |name: &str| VerifyingKey::load(&pair.path(name)).expect("key");
    let newest = ledger.entries().expect("entries").into_iter().next().expect("an entry");
    let envelope = ledger.get(&newest.to_string()).expect("the entry");
    let (target, source) = (key("pki/target-signing.pub"), key("pki/source-signing.pub"));
    verify_verdict(&envelope, &target, Some(&source)).expect("verifies").verdict
}

/// A target whose profile calls a program that is not there.
pub(crate) fn without_program(pair: &Pair, profile: &str, program: &str) {
    let text = assay_common::profile::Profile::builtin_text(profile).expect("built in");
    let without = text.replace(&format!("\"{program}\""), &format!("\"{program}-is-not-here\""));
    assert_ne!(text, without);
    fs::write(pair.path("without.toml"), without).expect("write");
    let line = |name: &str| format!("profile = {name:?}");
    pair.restart_with("target", &line(profile), &line("without.toml"));
    let missing = pair.run(3);
    assert_eq!(missing["reason"], "program-missing", "{missing}");
    assert_eq!(pair.verified(), "none");
}

fn exit_code(outcome: Outcome) -> i32 {
    match outcome {
        Outcome::Pass => 0,
        Outcome::Fail => 1,
        Outcome::Inconclusive => 3,
        Outcome::NotRun => 4,
    }
}

/// Runs that load may make void one after the other.
const MAX_VOID: usize = 20;

/// Runs to the end, again as long as load of the engine's own makes the run void.
fn run_until_it_counts<L: Live>(live: &L, code: i32, void: &mut usize) -> serde_json::Value {
    let pair = live.pair();
    for _ in 0..MAX_VOID {
        let (ended, run) = pair.run_to_any_end();
        let is_void = run["reason"].as_str().is_some_and(|reason| L::VOID.contains(&reason));
        if ended == 4 && is_void {
            *void += 1;
            continue;
        }
        // A log may keep only the start of this text.
        assert!(
            ended == code,
            "exit code {ended} instead of {code}: {}; the engine's own check of the live data: {}\n{run}\n{}",
            run["message"],
            live.check_live_data(),
            pair.logs()
        );
        return run;
    }
    panic!("{MAX_VOID} runs one after the other were void");
}

/// A run of a sound system, while its writers write: it passes, and it is what `verified` points at.
fn sound_run<L: Live>(live: &L, void: &mut usize) -> Verdict {
    let pair = live.pair();
    let before = live.written();
    pair.eventually("the writers write", || live.written() > before);
    let run = run_until_it_counts(live, 0, void);
    let verdict = newest_verdict(pair);
    assert_eq!(verdict.outcome, Outcome::Pass, "{run}");
    let generation = run["generation"].as_u64().expect("a number");
    assert_eq!(pair.verified(), format!("generations/{generation:06}"));
    verdict
}

/// A run of a damaged system: it comes out as it must, names the place, and moves nothing unless it passes.
fn damaged_run<L: Live>(live: &L, damage: &Damage<L>, void: &mut usize) -> matrix::Row {
    let pair = live.pair();
    let verified = pair.verified();
    let broken = (damage.put_in)(live);
    let run = run_until_it_counts(live, exit_code(damage.outcome), void);
    let verdict = newest_verdict(pair);
    assert_eq!(verdict.outcome, damage.outcome, "{}: {run}", damage.name);
    let findings = verdict.steps.iter().flat_map(|step| &step.findings);
    let not_covered = verdict.coverage.iter().flat_map(|coverage| &coverage.not_covered);
    let not_covered: Vec<_> = not_covered.map(|it| format!("{}: {}", it.part, it.message)).collect();
    let said: Vec<_> = findings.chain([&verdict.message]).chain(&not_covered).collect();
    assert!(
        said.iter().any(|text| text.contains(&broken.said)),
        "{}: {:?} is not in {said:#?}",
        damage.name,
        broken.said
    );
    assert_eq!(damage.outcome == Outcome::Pass, pair.verified() != verified, "{}", damage.name);
    broken.mend();
    matrix::Row::new(L::ENGINE, damage.name, &verdict, damage.names)
}

/// Every kind of damage once, between two sound runs; what came out is what the documentation says.
pub(crate) fn compare_with_matrix<L: Live>(live: &L) {
    let (rows, version) = rows(live, L::DAMAGES);
    matrix::compare(L::ENGINE, &rows, version.as_deref());
}

/// The rows of the matrix: of a sound run, and of each kind of damage. The engine's version, as the verdict names it.
pub(crate) fn rows<L: Live>(live: &L, damages: &[Damage<L>]) -> (Vec<matrix::Row>, Option<String>) {
    let mut void = 0;
    let sound = sound_run(live, &mut void);
    let mut rows = vec![matrix::Row::new(L::ENGINE, "none, under writers", &sound, "")];
    rows.extend(damages.iter().map(|damage| damaged_run(live, damage, &mut void)));
    sound_run(live, &mut void);
    (rows, sound.steps.iter().find_map(|step| step.engine.clone()))
}

/// Sound and damaged runs in turn: every sound one passes, every damaged one fails and names the place.
pub(crate) fn soak<L: Live>(live: &L) {
    let rounds = match std::env::var(ROUNDS_VARIABLE) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{ROUNDS_VARIABLE}={text} is no number")),
        Err(_) => DEFAULT_ROUNDS,
    };
    // Half of the rounds fail on purpose, and load makes more runs void: so many are not held up.
    let limits = format!("[limits]\nfailed_runs_per_hour = {}\n[[repository]]", rounds * MAX_VOID);
    live.pair().restart_with("target", "[[repository]]", &limits);
    let failing: Vec<_> = L::DAMAGES.iter().filter(|damage| damage.outcome == Outcome::Fail).collect();
    let mut void = 0;
    for round in 0..rounds {
        sound_run(live, &mut void);
        damaged_run(live, failing[round % failing.len()], &mut void);
    }
    let version = sound_run(live, &mut void).steps.iter().find_map(|step| step.engine.clone());
    println!(
        "soak {}: {} sound runs passed, {rounds} damaged runs failed ({} kinds of damage), {void} runs were void and made again, \
         {} writes meanwhile; {}",
        L::ENGINE,
        rounds + 1,
        failing.len().min(rounds),
        live.written(),
        version.as_deref().unwrap_or("no version")
    );
}

/// Runs of a live system that is copied from snapshots of its btrfs: nothing in them changes while it is read, so no run is void and no file is
/// torn, whatever the writers do. Damage is found as it is without a snapshot.
pub(crate) fn copied_from_snapshots<L: Live>(live: &L) {
    let (pair, mut void) = (live.pair(), 0);
    pair.copy_from_snapshots();
    for _ in 0..3 {
        sound_run(live, &mut void);
        let run = json(pair.source(&["--json", "runs"]).stdout.lines().next().expect("a run"));
        assert!(run["mark"]["id"].as_str().expect("an id").contains("btrfs snapshot assay-repo-"), "{run}");
        assert!(run["counts"]["unstable"].is_null() && run["warnings"].is_null(), "{run}");
    }
    let damage = L::DAMAGES.iter().find(|damage| damage.outcome == Outcome::Fail);
    damaged_run(live, damage.expect("one that is found"), &mut void);
    assert_eq!(void, 0, "{}", pair.logs());
    assert!(fs::read_dir(pair.snapshots()).expect("list").next().is_none());
}

/// The middle of a file.
pub(crate) fn middle(path: &Path) -> u64 {
    fs::metadata(path).expect("stat").len() / 2
}

/// The only file in a folder whose name ends so.
pub(crate) fn only_file(folder: &Path, ending: &str) -> PathBuf {
    let entries = fs::read_dir(folder).expect("read").map(|entry| entry.expect("entry").path());
    let mut found: Vec<_> = entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}
