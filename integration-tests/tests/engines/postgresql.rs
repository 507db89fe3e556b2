//! PostgreSQL: clusters of the tests' own, on Unix sockets only, as the user postgres.
//!
//! The version is Debian's, or the one that `ASSAY_TEST_POSTGRESQL` names: `./test` installs it below `/usr/local/lib/postgresql`.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    net::TcpListener,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use crate::pair::{Pair, eventually, json};

/// The major version that the tests run with, when it is not Debian's.
const VERSION_VARIABLE: &str = "ASSAY_TEST_POSTGRESQL";
/// Where `./test` installs further versions; `%v` stands for the major version.
const FURTHER_PROGRAMS: &str = "/usr/local/lib/postgresql/%v/bin";

/// Where Debian has the programs of its version.
fn debian_programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed by ./test");
    let newest = versions.map(|entry| entry.expect("entry").path()).max().expect("a version");
    newest.join("bin")
}

fn further_version() -> Option<String> {
    std::env::var(VERSION_VARIABLE).ok().filter(|version| !version.is_empty())
}

/// Where the programs are of the version that the tests run with.
pub(crate) fn programs() -> PathBuf {
    match further_version() {
        Some(version) => FURTHER_PROGRAMS.replace("%v", &version).into(),
        None => debian_programs(),
    }
}

/// The major version that the tests run with.
pub(crate) fn major() -> u32 {
    let folder = programs();
    let version = folder.parent().and_then(Path::file_name).expect("a version").to_string_lossy();
    version.parse().expect("a number")
}

/// A program of PostgreSQL, as the user postgres, who must not be root. An installation of a server alone has no clients: Debian's serve.
pub(crate) fn postgres(program: &str) -> Command {
    let own = programs().join(program);
    let path = if own.exists() { own } else { debian_programs().join(program) };
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(path);
    command.current_dir("/").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// From 18 on a cluster has checksums when nobody says otherwise.
fn without_checksums(further: &[&str]) -> &'static [&'static str] {
    if major() >= 18 && !further.contains(&"--data-checksums") { &["--no-data-checksums"] } else { &[] }
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().expect("starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("utf-8")
}

/// A running cluster. Dropped, it is shut down at once.
pub(crate) struct Cluster {
    pub(crate) data: PathBuf,
    socket: PathBuf,
    server: Option<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop("-QUIT");
    }
}

impl Cluster {
    /// Makes a new one in `data`, with its socket beside it.
    pub(crate) fn create(data: &Path, further: &[&str]) -> Self {
        // The server's user must reach its folder.
        fs::set_permissions(data.parent().expect("a folder"), fs::Permissions::from_mode(0o711))
            .expect("chmod");
        own(data);
        run(postgres("initdb")
            .args(["--auth=trust", "--username=postgres", "--no-sync", "--pgdata"])
            .arg(data)
            .args(further)
            .args(without_checksums(further)));
        Self::start(data, &[])
    }

    pub(crate) fn start(data: &Path, settings: &[&str]) -> Self {
        let socket = data.with_extension("socket");
        if !socket.exists() {
            own(&socket);
        }
        let mut cluster = Self { data: data.to_owned(), socket, server: None };
        cluster.start_again(settings);
        cluster
    }

    pub(crate) fn start_again(&mut self, settings: &[&str]) {
        let log = File::create(self.data.with_extension("log")).expect("log");
        let mut command = postgres("postgres");
        command.arg("-D").arg(&self.data);
        let socket = format!("unix_socket_directories={}", self.socket.display());
        for setting in ["listen_addresses=", &socket, "fsync=off", "max_logical_replication_workers=0"]
            .iter()
            .chain(settings)
        {
            command.args(["-c", setting]);
        }
        self.server = Some(command.stdout(Stdio::null()).stderr(log).spawn().expect("starts"));
        eventually("the cluster accepts connections", || {
            let mut ask = postgres("pg_isready");
            ask.args(["-q", "-h"]).arg(&self.socket).status().expect("starts").success()
        });
    }

    pub(crate) fn stop(&mut self, signal: &str) {
        if let Some(mut server) = self.server.take() {
            drop(Command::new("kill").args([signal, &server.id().to_string()]).status());
            drop(server.wait());
        }
    }

    pub(crate) fn query(&self, query: &str) -> String {
        self.query_in("postgres", query)
    }

    /// A query in another database.
    pub(crate) fn query_in(&self, database: &str, query: &str) -> String {
        let mut command = postgres("psql");
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database]);
        run(command.arg("-h").arg(&self.socket).args(["-c", query])).trim().to_owned()
    }

    /// Begins a transaction with these statements, and leaves it open.
    pub(crate) fn begin(&self, statements: &str) -> Open {
        let mut command = self.client().psql();
        let mut psql =
            command.args(["-A", "-t"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        let mut input = psql.stdin.take().expect("an input");
        writeln!(input, "BEGIN; {statements};\n\\echo begun").expect("write");
        let lines = BufReader::new(psql.stdout.take().expect("an output")).lines();
        let begun = lines.map_while(Result::ok).any(|line| line == "begun");
        assert!(begun, "{statements}");
        Open { psql, input }
    }

    /// Runs statements from another thread.
    pub(crate) fn client(&self) -> Client {
        Client { socket: self.socket.clone() }
    }

    /// The file of a relation, below the data directory.
    pub(crate) fn file_of(&self, relation: &str) -> PathBuf {
        self.data.join(self.query(&format!("SELECT pg_relation_filepath('{relation}')")))
    }

    pub(crate) fn pgbench(&self, arguments: &[&str]) -> Command {
        let mut command = postgres("pgbench");
        command.args(["-U", "postgres", "-h"]).arg(&self.socket).args(arguments).arg("postgres");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// A transaction that is open.
pub(crate) struct Open {
    psql: Child,
    input: ChildStdin,
}

impl Open {
    /// Commits it.
    pub(crate) fn commit(mut self) {
        writeln!(self.input, "COMMIT;").expect("write");
        drop(self.input);
        assert!(self.psql.wait().expect("ends").success());
    }
}

/// Runs statements in the database `postgres` of a cluster.
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    fn psql(&self) -> Command {
        let mut command = postgres("psql");
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]);
        command.arg(&self.socket).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// True if each statement of the file was carried out.
    pub(crate) fn run_file(&self, file: &Path) -> bool {
        self.psql().arg("-f").arg(file).status().expect("starts").success()
    }
}

/// A folder of the user postgres' own.
pub(crate) fn own(folder: &Path) {
    fs::create_dir_all(folder).expect("mkdir");
    let user = run(Command::new("id").args(["-u", "postgres"])).trim().parse().expect("a number");
    let group = run(Command::new("id").args(["-g", "postgres"])).trim().parse().expect("a number");
    chown(folder, Some(user), Some(group)).expect("chown");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).expect("chmod");
}

/// A load that goes on until it is dropped.
pub(crate) struct Load(pub(crate) Child);

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The function that begins a backup, in this version.
fn backup_start() -> &'static str {
    if major() < 15 { "pg_start_backup(text, boolean, boolean)" } else { "pg_backup_start(text, boolean)" }
}

/// Agents beside a cluster, which they reach as a user with no more rights than the documentation asks for.
pub(crate) fn agents(further: &[&str]) -> (Pair, Cluster) {
    agents_with(further, |keys| Pair::engine("postgresql", keys))
}

/// The same, with agents as a test makes them from the repository's keys.
pub(crate) fn agents_with(further: &[&str], make: impl FnOnce(&str) -> Pair) -> (Pair, Cluster) {
    let mut vars = "connection = \"host=/nowhere user=assay dbname=postgres\"".to_owned();
    if further_version().is_some() {
        vars = format!("programs = {FURTHER_PROGRAMS:?}, {vars}");
    }
    let pair = make(&format!("vars = {{ {vars} }}\n"));
    let cluster = Cluster::create(&pair.root(0), further);
    cluster.query(&format!(
        "CREATE ROLE assay LOGIN REPLICATION; GRANT pg_read_all_settings TO assay;
         GRANT EXECUTE ON FUNCTION {}, {} TO assay",
        backup_start(),
        if major() < 15 { "pg_stop_backup(boolean, boolean)" } else { "pg_backup_stop(boolean)" },
    ));
    pair.restart_with("source", "/nowhere", cluster.socket.to_str().expect("utf-8"));
    (pair, cluster)
}

/// The newest verified generation, restored and started as it is: with nothing but its own recovery.
fn restore(pair: &Pair, name: &str, settings: &[&str]) -> Cluster {
    let data = pair.restored(name);
    Cluster::start(&data, settings)
}

/// Several backups under load pass, and each restored one has every transaction that was committed before its mark, whole.
#[test]
fn a_live_cluster_passes_and_what_was_committed_before_the_mark_is_in_its_backup() {
    let (pair, cluster) = agents(&["--data-checksums", "--wal-segsize=1"]);
    pair.configure("target", "\" }", "\", dump = \"yes\" }");
    pair.restart_with("target", "[tls]", "[tls]");
    run(&mut cluster.pgbench(&["-i", "-s", "3"]));
    cluster
        .query("CREATE TABLE committed (number int PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())");
    let _load = Load(cluster.pgbench(&["-n", "-c", "4", "-R", "200", "-T", "3600"]).spawn().expect("starts"));
    for generation in 1..=3 {
        cluster.query(&format!(
            "INSERT INTO committed SELECT {generation} * 1000 + n FROM generate_series(1, 100) n"
        ));
        let run = pair.run(0);
        assert_eq!(
            (&run["outcome"], &run["generation"]),
            (&"OUTCOME_PASS".into(), &generation.into()),
            "{run}"
        );
        let mark = &run["mark"];
        assert!(mark["id"].as_str().is_some_and(|id| id.starts_with("timeline 1, ")), "{run}");
        let restored = restore(&pair, &format!("restored{generation}"), &[]);
        assert_eq!(restored.query("SELECT count(*) FROM committed"), (generation * 100).to_string());
        // A transaction is there with all that it did, or not at all.
        let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = sum(delta)
            AND (SELECT sum(bbalance) FROM pgbench_branches) = sum(delta)
            AND (SELECT sum(tbalance) FROM pgbench_tellers) = sum(delta) FROM pgbench_history";
        assert_eq!(restored.query(sums), "t");
    }
    // Nothing of the backups is left on the server, and nothing of the server's own run is in the backup.
    assert_eq!(cluster.query("SELECT count(*) FROM pg_replication_slots"), "0");
    assert!(mark_files(&pair).is_empty());
    let tree = pair.latest();
    assert!(tree.join("backup_label").exists() && !tree.join("tablespace_map").exists());
    assert!(!tree.join("postmaster.pid").exists());
    let label = fs::metadata(tree.join("backup_label")).expect("stat");
    assert_eq!(label.uid(), fs::metadata(pair.root(0)).expect("stat").uid());
    let segments = fs::read_dir(tree.join("pg_wal")).expect("pg_wal").map(|entry| entry.expect("entry"));
    let sizes: Vec<_> = segments
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.metadata().expect("stat").len())
        .collect();
    assert!(!sizes.is_empty() && sizes.iter().all(|bytes| *bytes == 1 << 20), "{sizes:?}");
    println!("{} WAL segments are in the last backup", sizes.len());
    let shown = pair.target(&["verdict", "show"]).stdout;
    assert!(shown.contains("amcheck") && shown.contains("checksums") && shown.contains("dump"), "{shown}");
}

#[test]
fn a_damaged_heap_page_fails_and_is_named() {
    let (pair, mut cluster) = agents(&[]);
    cluster.query("CREATE TABLE rows AS SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n");
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    let file = cluster.file_of("rows");
    cluster.stop("-INT");
    File::options()
        .write(true)
        .open(&file)
        .expect("open")
        .write_all_at(&[0xa5; 4096], 8192 * 3)
        .expect("write");
    cluster.start_again(&[]);
    let failed = pair.run(1);
    assert_eq!(
        (&failed["outcome"], &failed["reason"]),
        (&"OUTCOME_FAIL".into(), &"damage-found".into()),
        "{failed}"
    );
    let shown = pair.target(&["verdict", "show"]).stdout;
    assert!(shown.contains("public.rows") || shown.contains("invalid page in block 3"), "{shown}");
    // Findings name relations, not files: all that changed since the backup that passed is read again, and is as it was sent.
    assert_eq!(failed["attribution"]["fault"], "live", "{failed}");
    let file = file.strip_prefix(pair.root(0)).expect("in the root").to_str().expect("utf-8").to_owned();
    assert!(failed["attribution"]["files"].to_string().contains(&file), "{failed}");
    assert_eq!(pair.verified(), "generations/000001");
}

/// An index from before the last rows were written: each page is sound in itself, only the two together are wrong.
#[test]
fn an_index_that_disagrees_with_its_table_fails_and_is_named() {
    let (pair, mut cluster) = agents(&["--data-checksums"]);
    cluster.query("CREATE TABLE orders (number int); CREATE INDEX orders_by_number ON orders (number)");
    cluster.query("INSERT INTO orders SELECT generate_series(1, 50)");
    let file = cluster.file_of("orders_by_number");
    cluster.stop("-INT");
    let old = fs::read(&file).expect("read");
    cluster.start_again(&[]);
    cluster.query("INSERT INTO orders SELECT generate_series(51, 60)");
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    cluster.stop("-INT");
    File::options().write(true).open(&file).expect("open").write_all_at(&old, 0).expect("write");
    cluster.start_again(&[]);
    let failed = pair.run(1);
    assert_eq!(
        (&failed["outcome"], &failed["reason"]),
        (&"OUTCOME_FAIL".into(), &"damage-found".into()),
        "{failed}"
    );
    let shown = pair.target(&["verdict", "show"]).stdout;
    assert!(shown.contains("orders_by_number"), "{shown}");
    // Numbers have one order, whatever the C library is.
    cluster.query("UPDATE pg_database SET datcollversion = 'of another library'");
    assert_eq!(pair.run(1)["reason"], "damage-found");
}

/// A page whose checksum is wrong in a place that no row uses: only pg_checksums sees it.
#[test]
fn a_page_with_a_wrong_checksum_fails() {
    let (pair, mut cluster) = agents(&["--data-checksums"]);
    cluster.query("CREATE SEQUENCE numbers");
    let file = cluster.file_of("numbers");
    cluster.stop("-INT");
    // Neither tables nor B-trees: pg_amcheck does not read sequences.
    File::options().write(true).open(&file).expect("open").write_all_at(&[1], 2000).expect("write");
    cluster.start_again(&[]);
    let failed = pair.run(1);
    assert_eq!(
        (&failed["outcome"], &failed["reason"]),
        (&"OUTCOME_FAIL".into(), &"damage-found".into()),
        "{failed}"
    );
    let shown = pair.target(&["verdict", "show"]).stdout;
    assert!(shown.contains("checksum verification failed"), "{shown}");
}

/// A row's pointer that is wrong in a page whose checksum was made good again: the control that the profile lists.
#[test]
fn the_negative_control_is_found_with_checksums_and_without() {
    for (further, made_good) in [(&["--data-checksums"][..], true), (&[], false)] {
        let (pair, cluster) = agents(further);
        cluster.query("CREATE TABLE rows AS SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n");
        pair.run(0);
        let control = pair.target(&["control"]);
        assert_eq!(control.code, 0, "{control:?}");
        assert!(control.stdout.contains("postgresql-item in base/"), "{control:?}");
        assert_eq!(
            control.stdout.contains("its checksum made good again -> FAIL damage-found"),
            made_good,
            "{control:?}"
        );
        assert!(pair.target(&["status"]).stdout.contains("the checker is trusted"));
    }
}

/// WAL is as much a part of the backup as its pages. Shown on sealed generations, behind the agents' back.
#[test]
fn a_copy_that_cannot_recover_fails() {
    let (pair, cluster) = agents(&[]);
    cluster.query("CREATE TABLE rows AS SELECT generate_series(1, 1000)");
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    let label = fs::read_to_string(pair.latest().join("backup_label")).expect("read");
    let line =
        |key: &str| label.lines().find_map(|line| line.strip_prefix(key)).expect("in every label").to_owned();
    let name = line("START WAL LOCATION: ").split_once("file ").expect("a file").1.replace(')', "");
    let segment = pair.latest().join("pg_wal").join(name);
    let checkpoint = line("CHECKPOINT LOCATION: ").split_once('/').expect("a position").1.to_owned();
    let offset = u64::from_str_radix(&checkpoint, 16).expect("digits") % (16 << 20);
    let verify = |reason: &str, said: &str| {
        let done = pair.target(&["--json", "verify"]);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stdout.contains(reason) && done.stdout.contains(said), "{done:?}");
    };
    // The checkpoint is there, and what follows it is not: nothing tells where the backup ended.
    let whole = fs::read(&segment).expect("read");
    let (after, rest) = (offset + 200, whole.len() - usize::try_from(offset).expect("small") - 200);
    File::options()
        .write(true)
        .open(&segment)
        .expect("open")
        .write_all_at(&vec![0; rest], after)
        .expect("write");
    verify("not-restorable", "WAL ends before");
    let shown = pair.target(&["verdict", "show"]).stdout;
    assert!(shown.contains("fault: target-disk") && shown.contains("file pg_wal/"), "{shown}");
    fs::remove_file(&segment).expect("remove");
    verify("not-restorable", "checkpoint record");
    assert_eq!(pair.verified(), "none");
}

#[test]
fn the_password_comes_from_its_file() {
    let (pair, mut cluster) = agents(&[]);
    cluster.query("ALTER ROLE assay PASSWORD 'open sesame'");
    let rules = pair.root(0).join("pg_hba.conf");
    fs::write(rules, "local all assay scram-sha-256\nlocal all all trust\n").expect("write");
    cluster.stop("-INT");
    cluster.start_again(&[]);
    assert_eq!(pair.run(4)["reason"], "mark-failed");
    let file = pair.path("password");
    fs::write(&file, "open sesame\n").expect("write");
    pair.restart_with("source", "\" }", &format!("\", password_file = {file:?} }}"));
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
}

/// The copy has everything in it that would reach out: an archive command, a subscription, addresses to listen on, a library
/// that cannot be loaded. Without a sandbox around the check nothing of it happens; started as it is, the copy does it all.
#[test]
fn the_copy_reaches_nothing_outside() {
    let (pair, cluster) = agents(&[]);
    let outside = pair.path("outside");
    own(&outside);
    let publisher = TcpListener::bind("127.0.0.1:0").expect("a port");
    publisher.set_nonblocking(true).expect("set");
    let port = publisher.local_addr().expect("bound").port();
    cluster.query("CREATE TABLE received (a int)");
    cluster.query(&format!(
        "CREATE SUBSCRIPTION mirror CONNECTION 'host=127.0.0.1 port={port} dbname=x' PUBLICATION p
         WITH (connect = false, slot_name = 'mirror')"
    ));
    cluster.query("ALTER SUBSCRIPTION mirror ENABLE");
    // Only written down: the live server was started without.
    cluster.query("ALTER SYSTEM SET archive_mode = on");
    cluster.query(&format!("ALTER SYSTEM SET archive_command = 'touch {}/archived'", outside.display()));
    cluster.query("ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'");
    cluster.query("ALTER SYSTEM SET max_logical_replication_workers = 4");
    cluster.query("CREATE DATABASE app");
    cluster.query("ALTER DATABASE app SET session_preload_libraries = 'no_such_library'");
    cluster.query("ALTER DATABASE app SET default_transaction_read_only = on");
    for isolation in ["require", "none"] {
        let before = "profile = \"postgresql\"\n";
        let isolation_line = format!("{before}isolation = \"{isolation}\"\n");
        if isolation == "require" {
            pair.restart_with("target", before, &isolation_line);
        } else {
            pair.restart_with("target", "isolation = \"require\"", "isolation = \"none\"");
        }
        let run = pair.run(0);
        assert_eq!(run["outcome"], "OUTCOME_PASS", "{isolation}: {run}");
        assert!(fs::read_dir(&outside).expect("read").next().is_none(), "{isolation}");
        let none = publisher.accept().expect_err("no connection");
        assert_eq!(none.kind(), ErrorKind::WouldBlock, "{isolation}");
    }
    // The negative control: this is what the copy does when nobody holds it back.
    let settings = ["shared_preload_libraries=", "max_logical_replication_workers=4"];
    let restored = restore(&pair, "restored", &settings);
    restored.query("SELECT pg_switch_wal()");
    pair.eventually("the copy archives", || outside.join("archived").exists());
    pair.eventually("the copy connects to the publisher", || publisher.accept().is_ok());
}

/// A tablespace outside the roots is named and nothing is copied; as a root of its own it is in the backup.
#[test]
fn tablespaces_must_be_covered() {
    let (pair, cluster) = agents(&[]);
    let space = pair.path("space");
    own(&space);
    cluster.query(&format!("CREATE TABLESPACE side LOCATION '{}'", space.display()));
    cluster.query("CREATE TABLE aside TABLESPACE side AS SELECT generate_series(1, 1000) AS n");
    let refused = pair.run(4);
    assert_eq!(
        (&refused["outcome"], &refused["reason"]),
        (&"OUTCOME_NOT_RUN".into(), &"mark-failed".into()),
        "{refused}"
    );
    let message = refused["message"].as_str().expect("text");
    assert!(
        message.contains(space.to_str().expect("utf-8")) && message.contains("tablespace side"),
        "{message}"
    );
    let further = format!(
        "[[repository.root]]\nname = \"space\"\npath = {space:?}\n[[repository.root]]\nname = \"root0\""
    );
    // The data directory stays the first root.
    let first = format!("[[repository.root]]\nname = \"root0\"\npath = {:?}\n", pair.root(0));
    let both = format!("{first}{}", further.trim_end_matches("[[repository.root]]\nname = \"root0\""));
    pair.restart_with("source", &first, &both);
    let run = pair.run(0);
    assert_eq!(run["outcome"], "OUTCOME_PASS", "{run}");
    assert!(pair.latest().join("root0/tablespace_map").exists());
    let file = cluster.file_of("aside");
    assert!(file.exists());
    let copied = pair.latest().join("space");
    assert!(fs::read_dir(copied).expect("read").next().is_some());
    // Damage in there is found, so the check has looked there.
    let file = fs::canonicalize(file).expect("real");
    drop(cluster);
    File::options()
        .write(true)
        .open(&file)
        .expect("open")
        .write_all_at(&[0xa5; 4096], 8192 * 2)
        .expect("write");
    let _cluster = Cluster::start(&pair.root(0), &[]);
    let failed = pair.run(1);
    assert_eq!(failed["reason"], "damage-found", "{failed}");
    assert!(failed["attribution"]["files"].to_string().contains("space/PG_"), "{failed}");
}

#[test]
fn without_the_servers_programs_it_is_inconclusive() {
    let (pair, _cluster) = agents(&[]);
    pair.restart_with("target", "\" }", "\", programs = \"/nowhere/%v/bin\" }");
    let run = pair.run(3);
    assert_eq!(
        (&run["outcome"], &run["reason"]),
        (&"OUTCOME_INCONCLUSIVE".into(), &"engine-version".into()),
        "{run}"
    );
    assert!(run["message"].as_str().is_some_and(|text| text.contains("/nowhere/")), "{run}");
    assert_eq!(pair.verified(), "none");
}

/// A run that is cancelled, and an agent that is killed, leave no backup and no slot on the server.
#[test]
fn nothing_is_left_on_the_server_by_a_run_that_ends_early() {
    let (pair, cluster) = agents(&[]);
    // The run waits under its mark until it is ended.
    pair.restart_with("source", "profile = \"postgresql\"\n", "profile = \"postgresql\"\nsettle = \"1h\"\n");
    let slots = || cluster.query("SELECT count(*) FROM pg_replication_slots WHERE temporary AND active");
    let sessions = || cluster.query("SELECT count(*) FROM pg_stat_activity WHERE usename = 'assay'");
    let held = || {
        let started = pair.source(&["--json", "run"]);
        let id = json(&started.stdout)["id"].as_str().expect("an id").to_owned();
        pair.eventually("the mark holds", || slots() == "1" && !mark_files(&pair).is_empty());
        id
    };
    let id = held();
    assert_eq!(pair.source(&["cancel", &id]).code, 0);
    let watched = pair.source(&["--json", "watch", &id]);
    assert_eq!(watched.code, 4, "{watched:?}");
    let run = json(watched.stdout.lines().last().expect("a line"));
    assert_eq!(run["reason"], "cancelled", "{run}");
    pair.eventually("the server has let go", || slots() == "0" && sessions() == "0");
    assert!(mark_files(&pair).is_empty());
    held();
    pair.kill("source");
    pair.eventually("the server has let go", || slots() == "0" && sessions() == "0");
    pair.configure("source", "settle = \"1h\"\n", "");
    pair.start("source");
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
}

/// What lies in the source's folder for the mark's files.
fn mark_files(pair: &Pair) -> Vec<PathBuf> {
    let folder = pair.path("state/repo/mark/pg_wal");
    fs::read_dir(folder)
        .map_or_else(|_| Vec::new(), |files| files.map(|file| file.expect("entry").path()).collect())
}

/// What cannot be marked ends before anything is copied, and says what to do: a standby, another cluster's folder, no rights,
/// no server.
#[test]
fn what_cannot_be_marked_is_refused_with_a_remedy() {
    let (pair, mut cluster) = agents(&[]);
    let refused = |words: &str| {
        let run = pair.run(4);
        assert_eq!(
            (&run["outcome"], &run["reason"]),
            (&"OUTCOME_NOT_RUN".into(), &"mark-failed".into()),
            "{run}"
        );
        let message = run["message"].as_str().expect("text").to_owned();
        assert!(message.contains(words), "{words}: {message}");
    };
    cluster.query(&format!("REVOKE EXECUTE ON FUNCTION {} FROM assay", backup_start()));
    refused("permission denied for function pg_");
    assert_eq!(cluster.query("SELECT count(*) FROM pg_replication_slots"), "0");
    let standby = pair.path("standby");
    cluster.stop("-INT");
    run(Command::new("cp").arg("-a").args([&cluster.data, &standby]));
    fs::write(standby.join("standby.signal"), "").expect("write");
    cluster.start_again(&[]);
    let follower = Cluster::start(&standby, &[]);
    let socket = |cluster: &Cluster| format!("host={} ", cluster.socket.display());
    pair.restart_with("source", &socket(&cluster), &socket(&follower));
    refused("is a standby");
    // Promoted it could be marked, but it is not the repository.
    follower.query("SELECT pg_promote()");
    refused("the server's data directory is");
    drop(follower);
    refused("the connection");
}
