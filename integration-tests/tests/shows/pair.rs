//! Two real agents on loopback, with a counting proxy between them.

use std::{
    collections::HashMap,
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    file_systems::{Kind, Mounted},
    link::Link,
};
use assay_common::{
    ledger::Ledger,
    pki::{Party, PkiOptions, init_pki},
    signing::VerifyingKey,
    verdict::{Outcome, verify_verdict},
};

/// How long something may take that should take a moment: patience for a busy machine, not a measurement.
const PATIENCE: Duration = Duration::from_secs(180);

/// The check of plain pairs, as it stands in their configuration. It lists the copy and finds files that were written to since
/// they were copied: their content and their inode changed at the same instant. That is how a negative control's damage shows in
/// content of any kind.
pub(crate) const PLAIN_CHECK: &str = r#"["sh", "-c", "ls -la . && ! find . -type f -size +0 -printf '%T@ %C@ %p\\n' | awk '$1 == $2' | grep ."]"#;

/// The line that has it.
pub(crate) fn plain_vars() -> String {
    format!("vars = {{ check = {PLAIN_CHECK} }}")
}

/// The same check, which passes only when `condition`, a command of the shell, succeeds too.
pub(crate) fn plain_check_and(condition: &str) -> String {
    PLAIN_CHECK.replace("ls -la .", condition)
}

/// What a `[[notify]]` section of a test receives: all that it does without `on` except `certificate`, which each agent sends at its
/// first start because the tests' certificates are for a day.
pub(crate) const EVENTS: &str = r#"on = ["fail", "inconclusive", "not-run", "recovery", "overdue", "changed-without-trace", "coverage", "trouble"]
"#;

/// The same as a step, for profiles of tests.
pub(crate) const LIST: &str = r#"[[check]]
name = "list"
argv = ["sh", "-c", '''cd "$0" && ls -la . && ! find . -type f -size +0 -printf '%T@ %C@ %p\n' | awk '$1 == $2' | grep .''', "{root}"]
fail_exit = [1, 2]
"#;

/// The keys that every profile has, of a test's own.
const OWN_PROFILE: &str =
    "name = \"own\"\ndescription = \"made by a test\"\nversion = \"1\"\ndepth = \"L0\"\n";

/// What a source says of a plain tree beside its roots.
fn plain() -> String {
    format!("{}\nmax_drop_percent = 100\n", plain_vars())
}

/// What a target says of a plain tree: it takes one of everything.
pub(crate) const EVERYTHING: &str = "attributes = [\"security.capability\", \"trusted.*\"]\nspecial_files = [\"fifo\", \"socket\", \"device\"]\n";

/// What a command did.
#[derive(Debug)]
pub(crate) struct Done {
    /// Its exit code.
    pub(crate) code: i32,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
}

/// A source and a target agent, everything in one folder that goes away with it.
pub(crate) struct Pair {
    // Unmounted before the folder goes.
    mounts: Vec<Mounted>,
    folder: tempfile::TempDir,
    /// The certificate authority's, apart from the agents.
    authority: tempfile::TempDir,
    ports: (u16, u16),
    agents: Mutex<HashMap<String, Child>>,
    environments: Mutex<HashMap<String, Vec<(String, String)>>>,
    /// Commands that start the agents.
    prefixes: Mutex<HashMap<String, Vec<String>>>,
    /// Users and groups of agents that are not root.
    users: Mutex<HashMap<String, (u32, u32)>>,
    link: Arc<Link>,
    /// The next PASS is to be followed by a negative control, so that it counts. The agent does that by itself; here it happens
    /// at a known time.
    proves: AtomicBool,
    /// That holds for the first PASS with each configuration of the target.
    proves_each: AtomicBool,
}

/// Parses JSON that must be some.
pub(crate) fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The referee: rsync, which prints what it would have to change.
pub(crate) fn rsync_finds_no_difference(source: &Path, copy: &Path) {
    rsync_is_silent(source, copy, &[]);
    // Unless told so, it takes times of the same second for the same.
    rsync_is_silent(source, copy, &["--modify-window=-1"]);
}

fn rsync_is_silent(source: &Path, copy: &Path, further: &[&str]) {
    let output = Command::new("rsync")
        .args(["-aHAXn", "--checksum", "--delete", "--itemize-changes"])
        .args(further)
        .args([format!("{}/", source.display()), format!("{}/", copy.display())])
        .output()
        .expect("rsync is installed by ./test");
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Of devices and sockets rsync says what it does not compare, on standard output, only when it would make them.
    assert!(output.status.success() && out.is_empty() && errors.is_empty(), "rsync says:\n{out}{errors}");
}

pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    let folder = test.ancestors().nth(2).expect("target/debug/deps/test");
    let program = folder.join(name);
    assert!(program.exists(), "{} is not built: run cargo build --workspace first", program.display());
    program
}

/// Copies a program into a folder, by another process: a child that another test forks meanwhile would inherit a file that is open for
/// writing, and the kernel runs no such program.
pub(crate) fn copy_program(name: &str, folder: &Path) {
    let copied = Command::new("cp").arg(program(name)).arg(folder).status();
    assert!(copied.expect("cp").success());
}

/// What gives an agent another wall clock, by Debian's faketime: `by` says how far off it is (`+3600`), or which file says so (`@FILE`).
/// Files and the clock that waiting is measured by stay as they are.
pub(crate) fn wrong_clock(by: &str) -> Vec<(&'static str, String)> {
    let folders = fs::read_dir("/usr/lib").expect("it is there").flatten();
    let library =
        folders.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    let library = library.expect("faketime is installed by ./test").to_string_lossy().into_owned();
    let how = match by.strip_prefix('@') {
        Some(file) => ("FAKETIME_TIMESTAMP_FILE", file.to_owned()),
        None => ("FAKETIME", by.to_owned()),
    };
    let on = |name| (name, "1".to_owned());
    vec![
        ("LD_PRELOAD", library),
        how,
        on("FAKETIME_NO_CACHE"),
        on("FAKETIME_DONT_FAKE_MONOTONIC"),
        on("DONT_FAKE_MONOTONIC"),
        on("NO_FAKE_STAT"),
    ]
}

/// A port for an agent, which keeps it when it is killed and started again. It is below those that the kernel hands out, so
/// that no connection takes it meanwhile, and no other test of this process gets it.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Where another process has started the same tests.
    let start = u16::try_from(std::process::id() * 97 % u32::from(COUNT)).expect("below the count");
    for _ in 0..COUNT {
        let offset = (u32::from(start) + u32::from(NEXT.fetch_add(1, Ordering::SeqCst))) % u32::from(COUNT);
        let port = FIRST + u16::try_from(offset).expect("below the count");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

impl Pair {
    /// Agents for a plain tree of `roots` folders, whose check lists the copy.
    pub(crate) fn plain(roots: usize) -> Self {
        Self::new(roots, "generic", &plain(), "").proved()
    }

    /// The same, for a target that takes what it takes without a word of its operator.
    pub(crate) fn unworded(roots: usize) -> Self {
        Self::new(roots, "generic", &format!("{}\n", plain()), "").proved()
    }

    /// The same, with a file system of its own for the live tree and for the store.
    pub(crate) fn on(root: Kind, store: Kind) -> Self {
        let mounts = [("root0", root), ("store", store)];
        Self::mounted(1, "generic", (&plain(), EVERYTHING), "", &mounts).proved()
    }

    /// The same, for many runs: the check does nothing, no control follows, and old generations go. `keys` are the repository's.
    pub(crate) fn lean(root: Kind, store: Kind, keys: &str) -> Self {
        let keys = format!("vars = {{ check = [\"true\"] }}\nmax_drop_percent = 100\n{keys}");
        let target =
            format!("{EVERYTHING}retention = {{ last = 2, failed_last = 1, failed_within = \"1s\" }}\n");
        Self::mounted(1, "generic", (&keys, &target), "", &[("root0", root), ("store", store)])
    }

    /// Agents for an engine with a built-in profile, rooted in `root0`.
    pub(crate) fn engine(profile: &str, repository_keys: &str) -> Self {
        Self::new(1, profile, repository_keys, "").proved()
    }

    /// The same, with the store on a file system of its own.
    pub(crate) fn engine_stored_on(store: Kind, profile: &str, repository_keys: &str) -> Self {
        Self::mounted(1, profile, (repository_keys, ""), "", &[("store", store)]).proved()
    }

    /// Agents whose mark command says that it waits, and waits for a line from a FIFO.
    pub(crate) fn with_blocking_mark() -> Self {
        let begin = "touch ../mark-waits; read line < ../mark-fifo; echo $line";
        Self::with_profile(
            &format!("[mark]\nkind = \"command\"\nbegin = [\"sh\", \"-c\", {begin:?}]\n{LIST}"),
            "",
        )
    }

    /// Agents with an operator's own profile: its tables, without the keys that every profile has.
    pub(crate) fn with_profile(tables: &str, repository_keys: &str) -> Self {
        Self::new(1, "profile.toml", repository_keys, &format!("{OWN_PROFILE}{tables}")).proved()
    }

    /// The same, with a file system of its own for the live tree.
    pub(crate) fn with_profile_on(root: Kind, tables: &str, repository_keys: &str) -> Self {
        let (keys, text) = ((repository_keys, ""), format!("{OWN_PROFILE}{tables}"));
        Self::mounted(1, "profile.toml", keys, &text, &[("root0", root)]).proved()
    }

    /// Agents for an engine with a built-in profile, whose live tree has a file system of its own.
    pub(crate) fn engine_on(root: Kind, profile: &str, repository_keys: &str) -> Self {
        Self::mounted(1, profile, (repository_keys, ""), "", &[("root0", root)]).proved()
    }

    /// Has the root copied from snapshots of the btrfs that it is.
    pub(crate) fn copy_from_snapshots(&self) {
        fs::create_dir(self.snapshots()).expect("mkdir");
        let section = format!(
            "exclude = [\"/.snapshots\"]\n[repository.snapshot]\nkind = \"btrfs\"\nfolder = {:?}\n[[repository.root]]",
            self.snapshots()
        );
        self.restart_with("source", "[[repository.root]]", &section);
    }

    /// Where they are put.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root(0).join(".snapshots")
    }

    /// Unmounts the file system of a live root, lets `work` have its image, and mounts it again.
    pub(crate) fn remount(&self, root: usize, work: impl FnOnce(&Path)) {
        let place = self.root(root);
        let mounted = self.mounts.iter().find(|mounted| mounted.place() == place);
        mounted.expect("it has a file system of its own").remount(work);
    }

    /// Agents with a whole profile of an operator's own.
    pub(crate) fn with_profile_text(text: &str) -> Self {
        Self::new(1, "profile.toml", "", text).proved()
    }

    fn new(roots: usize, profile: &str, source_keys: &str, profile_text: &str) -> Self {
        let target_keys = if source_keys == plain() { EVERYTHING } else { "" };
        Self::mounted(roots, profile, (source_keys, target_keys), profile_text, &[])
    }

    fn mounted(
        roots: usize,
        profile: &str,
        (source_keys, target_keys): (&str, &str),
        profile_text: &str,
        mounts: &[(&str, Kind)],
    ) -> Self {
        let folder = tempfile::Builder::new().prefix("assay-test-").tempdir().expect("temp");
        let path = |name: &str| folder.path().join(name);
        let mounts = mounts.iter().map(|(name, kind)| Mounted::new(*kind, &path(name))).collect();
        let party = |name: &str| Party { name: name.to_owned(), hosts: vec!["127.0.0.1".to_owned()] };
        let day = Duration::from_secs(24 * 3600);
        let options = PkiOptions {
            organisation: "Test".to_owned(),
            source: party("source"),
            target: party("target"),
            operator: Party { name: "operator".to_owned(), hosts: Vec::new() },
            validity: day,
            ca_validity: day,
            signing_keys: true,
        };
        let authority = tempfile::Builder::new().prefix("assay-ca-").tempdir().expect("temp");
        init_pki(&path("pki"), Some(authority.path()), &options, jiff::Timestamp::now()).expect("pki");
        if !profile_text.is_empty() {
            fs::write(path("profile.toml"), profile_text).expect("write");
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path("mark-fifo"),
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from_raw_mode(0o600),
                0,
            )
            .expect("mkfifo");
        }
        let (source_port, target_port) = (free_port(), free_port());
        let link = Link::start(target_port);
        let proxy_port = link.port();
        let tls = |role: &str| {
            format!(
                "[tls]\nca = \"pki/ca.crt\"\ncert = \"pki/{role}.crt\"\nkey = \"pki/{role}.key\"\n\
                 [operator]\ncert = \"pki/operator.crt\"\nkey = \"pki/operator.key\"\n"
            )
        };
        let mut source = format!(
            "[agent]\nname = \"source\"\nlisten = \"127.0.0.1:{source_port}\"\nstate = \"state\"\n\
             signing_key = \"pki/source-signing.key\"\n{}[target]\nurl = \"https://127.0.0.1:{proxy_port}\"\n\
             signing_key = \"pki/target-signing.pub\"\n[[repository]]\nname = \"repo\"\nprofile = {profile:?}\n{source_keys}",
            tls("source")
        );
        for root in 0..roots {
            fs::create_dir_all(path(&format!("root{root}"))).expect("mkdir");
            let live = path(&format!("root{root}"));
            source.push_str(&format!("[[repository.root]]\nname = \"root{root}\"\npath = {live:?}\n"));
        }
        fs::write(path("source.toml"), source).expect("write");
        let vars = source_keys.lines().find(|line| line.starts_with("vars")).unwrap_or_default();
        let target = format!(
            "[agent]\nname = \"target\"\nlisten = \"127.0.0.1:{target_port}\"\nstore = \"store\"\n\
             signing_key = \"pki/target-signing.key\"\n{}[[repository]]\nname = \"repo\"\nsource = \"source\"\n\
             source_key = \"pki/source-signing.pub\"\ncontrol_every = \"never\"\nprofile = {profile:?}\n{vars}\n{target_keys}",
            tls("target")
        );
        fs::write(path("target.toml"), target).expect("write");
        let pair = Self {
            mounts,
            folder,
            authority,
            ports: (source_port, target_port),
            agents: Mutex::default(),
            environments: Mutex::default(),
            prefixes: Mutex::default(),
            users: Mutex::default(),
            link,
            proves: AtomicBool::new(false),
            proves_each: AtomicBool::new(false),
        };
        pair.start("target");
        pair.start("source");
        pair
    }

    /// Its first run that passes is followed by a negative control.
    fn proved(self) -> Self {
        self.proves.store(true, Ordering::SeqCst);
        self.proves_each.store(true, Ordering::SeqCst);
        self
    }

    /// No run is followed by a negative control.
    pub(crate) fn unproved(self) -> Self {
        self.proves.store(false, Ordering::SeqCst);
        self.proves_each.store(false, Ordering::SeqCst);
        self
    }

    /// Runs a negative control, which must find its damage.
    pub(crate) fn prove(&self) {
        let control = self.target(&["control"]);
        assert_eq!(control.code, 0, "{control:?}\n{}", self.logs());
    }

    /// Starts an agent and waits until it serves.
    pub(crate) fn start(&self, role: &str) {
        self.spawn(&format!("assay-{role}"), role);
        let name = format!("assay-{role}");
        self.eventually("the agent serves", || {
            let ended = self.agents.lock().expect("no panic").get_mut(role).map(Child::try_wait);
            assert!(matches!(ended, Some(Ok(None))), "{name} has ended: {ended:?}");
            self.command(&name, role, &["status"]).code == 0
        });
    }

    /// Restarts an agent as an ordinary user, who owns its keys, configuration and store or state from now on.
    pub(crate) fn restart_as(&self, role: &str, (user, group): (u32, u32)) {
        self.kill(role);
        for folder in [".", "pki"] {
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(self.path(folder), open).expect("chmod");
        }
        let kept = self.path(if role == "target" { "store" } else { "state" });
        fs::create_dir_all(&kept).expect("mkdir");
        let mut owned = vec![kept, self.path(&format!("{role}.toml"))];
        owned.extend(
            [format!("pki/{role}.key"), format!("pki/{role}-signing.key")].map(|key| self.path(&key)),
        );
        let chown = Command::new("chown").arg("-hR").arg(format!("{user}:{group}")).args(owned).status();
        assert!(chown.expect("chown").success());
        self.users.lock().expect("no panic").insert(role.to_owned(), (user, group));
        self.start(role);
    }

    /// The way from the source to the target.
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// What an agent's environment has beside the test's own, from its next start.
    pub(crate) fn set_environment(&self, role: &str, variables: &[(&str, String)]) {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.environments.lock().expect("no panic").insert(role.to_owned(), variables);
    }

    /// The command that starts an agent from its next start on. It must become the agent, not stay its parent.
    pub(crate) fn set_prefix(&self, role: &str, prefix: &[&str]) {
        let prefix = prefix.iter().map(|word| (*word).to_owned()).collect();
        self.prefixes.lock().expect("no panic").insert(role.to_owned(), prefix);
    }

    /// Starts an agent that may end at any time, and waits until it takes connections. False when it has ended.
    pub(crate) fn start_doomed(&self, role: &str) -> bool {
        self.spawn(&format!("assay-{role}"), role);
        let port = if role == "source" { self.ports.0 } else { self.ports.1 };
        let start = Instant::now();
        loop {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return self.is_alive(role);
            }
            if !self.is_alive(role) {
                return false;
            }
            assert!(start.elapsed() < PATIENCE, "not in time: {role} takes connections");
            std::thread::park_timeout(Duration::from_millis(3));
        }
    }

    /// Starts an agent and waits until it takes connections, or until there is a file. True for the first.
    pub(crate) fn start_until(&self, role: &str, file: &Path) -> bool {
        self.spawn(&format!("assay-{role}"), role);
        let port = if role == "source" { self.ports.0 } else { self.ports.1 };
        let start = Instant::now();
        loop {
            if file.exists() {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return true;
            }
            assert!(self.is_alive(role), "{role} has ended\n{}", self.logs());
            assert!(start.elapsed() < PATIENCE, "not in time: {role} takes connections");
            std::thread::park_timeout(Duration::from_millis(3));
        }
    }

    /// True while an agent runs.
    pub(crate) fn is_alive(&self, role: &str) -> bool {
        let mut agents = self.agents.lock().expect("no panic");
        agents.get_mut(role).is_some_and(|agent| agent.try_wait().expect("it is ours").is_none())
    }

    /// Starts a command of the source's, whose output is to be read while it runs.
    pub(crate) fn spawn_source(&self, arguments: &[&str]) -> Child {
        Command::new(program("assay-source"))
            .args(["--config", "source.toml"])
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command starts")
    }

    /// How an agent that has ended has ended.
    pub(crate) fn reap(&self, role: &str) -> std::process::ExitStatus {
        let mut agent = self.agents.lock().expect("no panic").remove(role).expect("it was started");
        agent.wait().expect("wait")
    }

    /// The process of an agent that runs.
    pub(crate) fn process(&self, role: &str) -> u32 {
        self.agents.lock().expect("no panic").get(role).expect("it runs").id()
    }

    /// Kills an agent, as a power cut would.
    pub(crate) fn kill(&self, role: &str) {
        if let Some(mut agent) = self.agents.lock().expect("no panic").remove(role) {
            agent.kill().expect("kill");
            agent.wait().expect("wait");
        }
    }

    /// Changes an agent's configuration and restarts it with it.
    pub(crate) fn restart_with(&self, role: &str, from: &str, to: &str) {
        self.kill(role);
        self.configure(role, from, to);
        self.start(role);
    }

    /// Changes an agent's configuration.
    pub(crate) fn configure(&self, role: &str, from: &str, to: &str) {
        let path = self.path(&format!("{role}.toml"));
        let text = fs::read_to_string(&path).expect("read");
        assert!(text.contains(from), "{from:?} is not in {text}");
        if role == "target" && self.proves_each.load(Ordering::SeqCst) {
            // It may be another checker now.
            self.proves.store(true, Ordering::SeqCst);
        }
        fs::write(path, text.replace(from, to)).expect("write");
    }

    fn spawn(&self, name: &str, role: &str) {
        let log = fs::File::create(self.path(&format!("{role}.log"))).expect("log");
        let user = self.users.lock().expect("no panic").get(role).copied();
        let prefix = self.prefixes.lock().expect("no panic").get(role).cloned();
        let mut command = match (user, prefix.as_deref()) {
            (None, None | Some([])) => Command::new(program(name)),
            (_, Some([first, rest @ ..])) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program(name));
                command
            }
            (Some((user, group)), _) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={user}"), format!("--regid={group}")]);
                command.args(["--clear-groups", "--"]).arg(program(name));
                command
            }
        };
        let child = command
            .args(["--config", &format!("{role}.toml"), "serve"])
            .envs(self.environments.lock().expect("no panic").get(role).cloned().unwrap_or_default())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the agent starts");
        self.agents.lock().expect("no panic").insert(role.to_owned(), child);
    }

    /// The agent's own end when it does not start with its configuration.
    pub(crate) fn refused_start(&self, role: &str) -> Done {
        self.kill(role);
        self.command(&format!("assay-{role}"), role, &["serve"])
    }

    /// The ledger's chain is whole, its entries verify against both keys, and these are its outcomes, oldest first.
    pub(crate) fn assert_ledger(&self, outcomes: &[Outcome]) {
        let ledger = Ledger::open(&self.path("store/repo/ledger")).expect("ledger");
        let key = |name: &str| VerifyingKey::load(&self.path(name)).expect("key");
        let (target, source) = (key("pki/target-signing.pub"), key("pki/source-signing.pub"));
        let faults = ledger.verify(&target, Some(&source)).expect("readable");
        assert!(faults.is_empty(), "{faults:?}");
        let mut found: Vec<_> = ledger
            .entries()
            .expect("entries")
            .into_iter()
            .map(|id| {
                let envelope = ledger.get(&id.to_string()).expect("an entry");
                verify_verdict(&envelope, &target, Some(&source)).expect("verifies").verdict.outcome
            })
            .collect();
        found.reverse();
        assert_eq!(found, outcomes);
    }

    /// Where `verified` points; "none" when it is not there.
    pub(crate) fn verified(&self) -> String {
        fs::read_link(self.path("store/repo/verified"))
            .map_or_else(|_| "none".into(), |path| path.display().to_string())
    }

    /// Where the certificate authority is.
    pub(crate) fn authority(&self) -> &Path {
        self.authority.path()
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A live root.
    pub(crate) fn root(&self, number: usize) -> PathBuf {
        self.path(&format!("root{number}"))
    }

    /// The tree of the newest generation.
    pub(crate) fn latest(&self) -> PathBuf {
        self.path("store/repo/latest/tree")
    }

    /// The tree of a generation.
    pub(crate) fn generation(&self, number: &str) -> PathBuf {
        self.path("store/repo/generations").join(number).join("tree")
    }

    /// Bytes that the source has sent to the target, counted by the proxy.
    pub(crate) fn wire_bytes(&self) -> u64 {
        self.link.bytes()
    }

    /// Polls until `ready`, with a bounded patience.
    pub(crate) fn eventually(&self, what: &str, ready: impl FnMut() -> bool) {
        eventually(what, ready);
    }

    fn command(&self, name: &str, role: &str, arguments: &[&str]) -> Done {
        let mut command = Command::new(program(name));
        done(
            command
                .args(["--config", &format!("{role}.toml")])
                .args(arguments)
                .current_dir(self.folder.path()),
        )
    }

    /// The source's command line.
    pub(crate) fn source(&self, arguments: &[&str]) -> Done {
        self.command("assay-source", "source", arguments)
    }

    /// The source's program with nothing but its arguments.
    pub(crate) fn source_without_configuration(&self, arguments: &[&str]) -> Done {
        done(Command::new(program("assay-source")).args(arguments).current_dir(self.folder.path()))
    }

    /// The target's command line.
    pub(crate) fn target(&self, arguments: &[&str]) -> Done {
        self.command("assay-target", "target", arguments)
    }

    /// Restores the newest verified generation to a new folder, at the target.
    pub(crate) fn restored(&self, name: &str) -> PathBuf {
        let folder = self.path(name);
        let done = self.target(&["restore", "--to", folder.to_str().expect("text")]);
        assert_eq!(done.code, 0, "{done:?}");
        folder
    }

    /// Runs to the end, which must have this exit code, and returns the run.
    pub(crate) fn run(&self, code: i32) -> serde_json::Value {
        let (ended, run) = self.run_to_any_end();
        assert_eq!(ended, code, "{run}\n{}", self.logs());
        run
    }

    /// Runs to whatever end, and returns the exit code and the run.
    pub(crate) fn run_to_any_end(&self) -> (i32, serde_json::Value) {
        let done = self.source(&["--json", "run", "--follow"]);
        let line = done.stdout.lines().last();
        let line = line.unwrap_or_else(|| panic!("no run: {done:?}\n{}", self.logs()));
        if done.code == 0 && self.proves.swap(false, Ordering::SeqCst) {
            // A check of a test's own may find nothing: then its generations are not called verified.
            self.target(&["control"]);
        }
        (done.code, json(line))
    }

    /// Lets the blocking mark go on.
    pub(crate) fn release_mark(&self) {
        fs::write(self.path("mark-fifo"), "released\n").expect("write");
    }

    /// grpcurl with the operator's certificate.
    pub(crate) fn grpcurl(&self, target: bool, arguments: &[&str]) -> String {
        self.call(target, &[], arguments)
    }

    /// A call by grpcurl.
    pub(crate) fn grpcurl_call(&self, target: bool, message: &str, method: &str) -> String {
        self.call(target, &["-d", message], &[method])
    }

    fn call(&self, target: bool, options: &[&str], arguments: &[&str]) -> String {
        let done = self.grpcurl_as("pki/operator", target, options, arguments);
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout
    }

    /// grpcurl with the certificate and key of this name; with none when the name is empty.
    pub(crate) fn grpcurl_as(
        &self,
        identity: &str,
        target: bool,
        options: &[&str],
        arguments: &[&str],
    ) -> Done {
        let port = if target { self.ports.1 } else { self.ports.0 };
        let mut command = Command::new("grpcurl");
        command.args(["-cacert", "pki/ca.crt"]);
        if !identity.is_empty() {
            command.arg("-cert").arg(format!("{identity}.crt")).arg("-key").arg(format!("{identity}.key"));
        }
        command
            .args(options)
            .arg(format!("127.0.0.1:{port}"))
            .args(arguments)
            .current_dir(self.folder.path());
        done(&mut command)
    }

    pub(crate) fn logs(&self) -> String {
        let log = |role: &str| fs::read_to_string(self.path(&format!("{role}.log"))).unwrap_or_default();
        format!("source:\n{}\ntarget:\n{}", log("source"), log("target"))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agents' logs:\n{}", self.logs());
        }
        for agent in self.agents.get_mut().unwrap_or_else(PoisonError::into_inner).values_mut() {
            // Whatever became of it, it is gone afterwards.
            drop(agent.kill());
            drop(agent.wait());
        }
        // An agent that is killed leaves the mounts of its checks to its next start, and here there is none.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = format!("{}/", self.folder.path().display());
        let of_checks = |mount: &&str| mount.starts_with(&below) && mount.contains("/workspaces/");
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).filter(of_checks) {
            drop(Command::new("umount").arg("--lazy").arg(mount).output());
        }
    }
}

/// Polls until `ready`, with a bounded patience.
pub(crate) fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

pub(crate) fn done(command: &mut Command) -> Done {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Done {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
