//! Copies that are made to attack whoever checks them: settings, programs, libraries, links and statements, in the places where each engine
//! would obey them. Here the checks have no sandbox, so that whatever they run, read or call shows on this host: programs that leave a mark,
//! a file that everybody may read and whose words must come back nowhere, a port that nobody may call.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use assay_common::{
    ledger::Ledger,
    signing::VerifyingKey,
    verdict::{Outcome, Verdict, verify_verdict},
};
use rusqlite::Connection;

use crate::{live::run, pair::Pair, postgresql::agents};

/// What stands in the file that no check has any business with.
const WORDS: &str = "words-of-another-tenant";

/// What would show that a copy was obeyed.
struct Trap {
    marks: PathBuf,
    program: PathBuf,
    secret: PathBuf,
    library: PathBuf,
    listener: TcpListener,
}

impl Trap {
    /// Beside the live tree, in reach of every user; the target checks without a sandbox.
    fn set(pair: &Pair) -> Self {
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        };
        open(&pair.path("."), 0o755);
        let marks = pair.path("marks");
        fs::create_dir(&marks).expect("mkdir");
        open(&marks, 0o777);
        let program = pair.path("program");
        let script = format!("#!/bin/sh\necho \"$0 $*\" >>{}/$$\ncat {}\n", marks.display(), "/etc/hostname");
        fs::write(&program, script).expect("write");
        open(&program, 0o755);
        let secret = pair.path("secret");
        fs::write(&secret, format!("{WORDS}\n")).expect("write");
        open(&secret, 0o644);
        // A library that leaves a mark as soon as it is loaded, with all that PostgreSQL and SQLite call.
        let source = format!(
            "#include <stdio.h>\n#include <unistd.h>\n\
             static void mark(void) {{ char name[999]; snprintf(name, sizeof name, \"%s/library-%d\", \"{}\", getpid()); fclose(fopen(name, \"a\")); }}\n\
             __attribute__((constructor)) static void loaded(void) {{ mark(); }}\n\
             const void *Pg_magic_func(void) {{ static const int magic[8] = {{ 0 }}; return magic; }}\n\
             int sqlite3_extension_init(void) {{ mark(); return 0; }}\n",
            marks.display()
        );
        let library = pair.path("library.so");
        let mut cc = Command::new("cc")
            .args(["-shared", "-fPIC", "-x", "c", "-o"])
            .arg(&library)
            .arg("-")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cc is installed by ./test");
        cc.stdin.take().expect("piped").write_all(source.as_bytes()).expect("write");
        assert!(cc.wait().expect("cc").success());
        open(&library, 0o755);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.set_nonblocking(true).expect("nonblocking");
        let trap = Self { marks, program, secret, library, listener };
        // The trap itself works.
        assert!(Command::new(&trap.program).stdout(Stdio::null()).status().expect("starts").success());
        assert!(!trap.is_untouched());
        trap.clear();
        pair.restart_with("target", "control_every", "isolation = \"none\"\ncontrol_every");
        trap
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().expect("address").port()
    }

    /// Takes away what the live side itself has left here.
    fn clear(&self) {
        for mark in fs::read_dir(&self.marks).expect("list") {
            fs::remove_file(mark.expect("entry").path()).expect("remove");
        }
    }

    fn is_untouched(&self) -> bool {
        fs::read_dir(&self.marks).expect("list").next().is_none()
    }

    /// Runs once, whatever comes out, and looks that nothing of the copy was obeyed.
    fn check(&self, pair: &Pair, case: &str) -> Verdict {
        assert!(self.is_untouched(), "{case}: the live side has left marks");
        let done = pair.source(&["--json", "run", "--follow"]);
        let verdict = newest(pair);
        let marks: Vec<_> = fs::read_dir(&self.marks)
            .expect("list")
            .map(|mark| mark.expect("entry").path())
            .map(|mark| format!("{}: {}", mark.display(), fs::read_to_string(&mark).unwrap_or_default()))
            .collect();
        assert!(marks.is_empty(), "{case}: a program of the copy ran: {marks:?}\n{verdict:#?}");
        let called = self.listener.accept();
        assert_eq!(called.expect_err(case).kind(), ErrorKind::WouldBlock, "{case}: the copy called out");
        for (place, text) in [
            ("the run", format!("{done:?}")),
            ("the verdict", format!("{verdict:?}")),
            ("a log", pair.logs()),
            ("the explanation", format!("{:?}", pair.target(&["explain"]))),
        ] {
            assert!(!text.contains(WORDS), "{case}: a file of this host is in {place}: {text}");
        }
        assert_eq!(fs::read_to_string(&self.secret).expect("it is there"), format!("{WORDS}\n"), "{case}");
        verdict
    }
}

/// The newest entry of the ledger.
pub(crate) fn newest(pair: &Pair) -> Verdict {
    let ledger = Ledger::open(&pair.path("store/repo/ledger")).expect("ledger");
    let key = |name: &str| VerifyingKey::load(&pair.path(name)).expect("key");
    let (target, source) = (key("pki/target-signing.pub"), key("pki/source-signing.pub"));
    let newest = ledger.entries().expect("entries").into_iter().max().expect("an entry");
    let envelope = ledger.get(&newest.to_string()).expect("an entry");
    verify_verdict(&envelope, &target, Some(&source)).expect("it verifies").verdict
}

fn append(path: &Path, text: &str) {
    let mut file = File::options().append(true).create(true).open(path).expect("open");
    file.write_all(text.as_bytes()).expect("write");
}

/// Every setting that runs a program, loads a library, reads or writes a file elsewhere, or calls another host, in every file that
/// PostgreSQL reads them from; and a standby that would follow another server.
#[test]
fn settings_of_a_copied_cluster_are_not_obeyed() {
    let (pair, cluster) = agents(&[]);
    let trap = Trap::set(&pair);
    cluster.query("CREATE TABLE t AS SELECT generate_series(1, 100) n; CREATE INDEX ON t (n)");
    let (program, library) = (trap.program.display(), trap.library.display());
    let (marks, secret, port) = (trap.marks.display(), trap.secret.display(), trap.port());
    let settings = format!(
        "archive_mode = on\narchive_command = '{program}'\narchive_timeout = 1\narchive_library = '{library}'\n\
         restore_command = '{program} %f %p'\narchive_cleanup_command = '{program}'\nrecovery_end_command = '{program}'\n\
         shared_preload_libraries = '{library}'\nsession_preload_libraries = '{library}'\nlocal_preload_libraries = '{library}'\n\
         dynamic_library_path = '{}'\njit = on\njit_provider = '{library}'\n\
         ssl = on\nssl_passphrase_command = '{program}'\nssl_cert_file = '{secret}'\nssl_key_file = '{secret}'\nssl_passphrase_command_supports_reload = on\n\
         primary_conninfo = 'host=127.0.0.1 port={port} user=postgres'\nprimary_slot_name = 'x'\nhot_standby = on\n\
         external_pid_file = '{marks}/pid'\nlogging_collector = on\nlog_directory = '{marks}'\nlog_destination = 'csvlog'\n\
         unix_socket_directories = '{marks}'\nlisten_addresses = '127.0.0.1'\nport = 5499\n\
         hba_file = '{secret}'\nident_file = '{secret}'\nkrb_server_keyfile = '{secret}'\nstats_temp_directory = '{marks}'\n\
         include '{secret}'\ninclude_if_exists '{secret}'\ninclude_dir '{}'\n",
        pair.path(".").display(),
        pair.path(".").display(),
    );
    let root = pair.root(0);
    for name in ["postgresql.conf", "postgresql.auto.conf"] {
        append(&root.join(name), &settings);
    }
    append(
        &root.join("pg_hba.conf"),
        &format!("include {secret}\nlocal all all ldap ldapserver=127.0.0.1 ldapport={port}\n"),
    );
    append(&root.join("pg_ident.conf"), &format!("include {secret}\n@{secret}\n"));
    let verdict = trap.check(&pair, "settings");
    assert_eq!(verdict.outcome, Outcome::Pass, "{verdict:#?}");
    for signal in ["standby.signal", "recovery.signal"] {
        append(&root.join(signal), "");
        trap.check(&pair, signal);
        fs::remove_file(root.join(signal)).expect("remove");
    }
    // The files that say what a server is are links to files of this host.
    for name in ["postgresql.auto.conf", "pg_hba.conf", "PG_VERSION", "global/pg_filenode.map"] {
        let path = root.join(name);
        let kept = pair.path("kept");
        fs::rename(&path, &kept).expect("rename");
        symlink(&trap.secret, &path).expect("symlink");
        let verdict = trap.check(&pair, name);
        assert!(
            !["pg_filenode.map", "PG_VERSION"].iter().any(|it| name.ends_with(it))
                || verdict.outcome != Outcome::Pass
        );
        fs::remove_file(&path).expect("remove");
        fs::rename(&kept, &path).expect("rename");
    }
}

/// A catalogue that brings programs: libraries of its own behind functions, languages and index expressions, settings of roles and
/// databases, event triggers, a subscription, and nobody left who may do anything.
#[test]
fn a_copied_catalogue_runs_nothing() {
    let (pair, cluster) = agents(&[]);
    let trap = Trap::set(&pair);
    let (program, library, port) = (trap.program.display(), trap.library.display(), trap.port());
    let secret = trap.secret.display();
    // Its own statistics would call what the copy is to be caught calling.
    cluster.query("ALTER SYSTEM SET autovacuum = off");
    cluster.query("SELECT pg_reload_conf()");
    cluster.query("CREATE DATABASE other");
    cluster.query(&format!(
        "CREATE ROLE app LOGIN;
         ALTER ROLE app SET session_preload_libraries = '{library}'; ALTER ROLE app SET local_preload_libraries = '{library}';
         ALTER DATABASE other SET session_preload_libraries = '{library}'; ALTER DATABASE other SET search_path = evil, pg_catalog;
         ALTER DATABASE template1 SET session_preload_libraries = '{library}';
         ALTER ROLE postgres IN DATABASE other SET session_preload_libraries = '{library}';
         ALTER ROLE ALL IN DATABASE other SET local_preload_libraries = '{library}'"
    ));
    cluster.query(&format!(
        "CREATE TABLE t (n int, v text); INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, 300) n;
         CREATE INDEX t_n ON t (n);
         CREATE FUNCTION runs() RETURNS event_trigger LANGUAGE plpgsql AS $f$BEGIN COPY (SELECT 1) TO PROGRAM '{program}'; END$f$;
         CREATE FUNCTION tells(v text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $f$BEGIN RETURN v; END$f$;
         CREATE INDEX t_tells ON t (tells(v));
         CREATE FUNCTION calls(v int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $f$BEGIN RETURN v; END$f$;
         CREATE INDEX t_calls ON t (calls(n));
         CREATE EVENT TRIGGER start ON ddl_command_start EXECUTE FUNCTION runs();
         CREATE EVENT TRIGGER ended ON ddl_command_end EXECUTE FUNCTION runs();
         CREATE EVENT TRIGGER dropped ON sql_drop EXECUTE FUNCTION runs()"
    ));
    // The copy knows how the check's own role will be called: it has one, a superuser, whose are a table and a function of its index.
    let system: u64 =
        cluster.query("SELECT system_identifier FROM pg_control_system()").parse().expect("a number");
    let digest = blake3::derive_key("assay v1 postgresql check role", &system.to_le_bytes());
    let name: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    cluster.query(&format!(
        "CREATE ROLE assay_check_{name} SUPERUSER LOGIN; ALTER ROLE assay_check_{name} SET session_preload_libraries = '{library}';
         ALTER TABLE t OWNER TO assay_check_{name}; ALTER FUNCTION calls(int) OWNER TO assay_check_{name};
         ALTER FUNCTION calls(int) SECURITY DEFINER; GRANT assay_check_{name} TO app; GRANT pg_execute_server_program TO app"
    ));
    // What PostgreSQL would refuse to make is written into the catalogue: a library of the copy, a language that is called trusted and is
    // not, functions that read files of the server with everybody's leave, one that replaces what indexes are compared with.
    cluster.query(&format!(
        "SET allow_system_table_mods = on;
         UPDATE pg_event_trigger SET evtenabled = 'D';
         CREATE FUNCTION handler() RETURNS language_handler LANGUAGE internal AS 'fmgr_internal_validator';
         UPDATE pg_proc SET prolang = 13, probin = '{library}', prosrc = 'handler' WHERE proname = 'handler';
         INSERT INTO pg_language (oid, lanname, lanowner, lanispl, lanpltrusted, lanplcallfoid, laninline, lanvalidator)
            SELECT 99001, 'plown', 10, true, true, oid, 0, 0 FROM pg_proc WHERE proname = 'handler';
         CREATE FUNCTION native(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n';
         CREATE FUNCTION own(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n';
         CREATE INDEX t_native ON t (native(n)); CREATE INDEX t_own ON t (own(n));
         UPDATE pg_proc SET prolang = 13, probin = '{library}', prosrc = 'native' WHERE proname = 'native';
         UPDATE pg_proc SET prolang = 99001, prosrc = 'anything' WHERE proname = 'own';
         UPDATE pg_proc SET proacl = '{{=X/postgres}}' WHERE proname IN ('lo_import', 'lo_export', 'pg_read_file', 'pg_read_binary_file', 'pg_ls_dir', 'pg_terminate_backend');
         UPDATE pg_proc SET prosrc = $f$BEGIN RAISE EXCEPTION 'told: %', convert_from(lo_get(lo_import('{secret}')), 'UTF8'); END$f$ WHERE proname = 'tells';
         UPDATE pg_proc SET prosrc = $f$BEGIN COPY (SELECT 1) TO PROGRAM '{program}'; RETURN v; END$f$ WHERE proname = 'calls';
         UPDATE pg_event_trigger SET evtenabled = 'A'"
    ));
    // A subscription that is on: its worker would call its publisher.
    cluster.query(&format!(
        "SET allow_system_table_mods = on; UPDATE pg_event_trigger SET evtenabled = 'D';
         CREATE SUBSCRIPTION out CONNECTION 'host=127.0.0.1 port={port} dbname=x' PUBLICATION p WITH (connect = false);
         UPDATE pg_subscription SET subenabled = true, subslotname = 'x'; UPDATE pg_event_trigger SET evtenabled = 'A'"
    ));
    trap.clear();
    let verdict = trap.check(&pair, "a catalogue");
    assert_ne!(verdict.outcome, Outcome::Fail, "none of it is damage: {verdict:#?}");
    // The superuser is none any longer, may not log in, and its settings load a library.
    cluster.query(&format!(
        "SET allow_system_table_mods = on;
         ALTER ROLE postgres SET session_preload_libraries = '{library}';
         UPDATE pg_authid SET rolsuper = false, rolcanlogin = false WHERE rolname = 'postgres'"
    ));
    trap.clear();
    let verdict = trap.check(&pair, "nobody is a superuser");
    assert_ne!(verdict.outcome, Outcome::Fail, "none of it is damage: {verdict:#?}");
}

fn git(folder: &Path) -> Command {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=A", "-c", "user.email=a@example.org", "-C"]).arg(folder);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").stdin(Stdio::null());
    command
}

/// A repository with programs, included files, filters, hooks and objects elsewhere.
#[test]
fn a_copied_git_repository_runs_nothing_and_reads_nothing_elsewhere() {
    let pair = Pair::engine("git", "");
    let trap = Trap::set(&pair);
    let root = pair.root(0);
    run(git(&root).args(["init", "-q", "-b", "main", "--bare", "."]));
    let work = pair.path("work");
    fs::create_dir(&work).expect("mkdir");
    run(git(&work).args(["init", "-q", "-b", "main", "."]));
    fs::write(work.join(".gitattributes"), "* filter=own diff=own merge=own\n").expect("write");
    fs::write(
        work.join(".gitmodules"),
        format!(
            "[submodule \"x\"]\n\tpath = x\n\turl = ext::{}\n\tupdate = !{}\n",
            trap.program.display(),
            trap.program.display()
        ),
    )
    .expect("write");
    fs::write(work.join("file"), "content").expect("write");
    run(git(&work).args(["add", "."]));
    run(git(&work).args(["commit", "-q", "-m", "first"]));
    run(git(&work).args(["push", "-q"]).arg(&root).arg("main"));
    let (program, secret, port) = (trap.program.display(), trap.secret.display(), trap.port());
    let config = format!(
        "[core]\n\tfsmonitor = {program}\n\tsshCommand = {program}\n\thooksPath = {}\n\tpager = {program}\n\teditor = {program}\n\
         \taskPass = {program}\n\tgitProxy = {program}\n\tattributesFile = {secret}\n\texcludesFile = {secret}\n\tworktree = {}\n\
         \talternateRefsCommand = {program}\n\
         [include]\n\tpath = {secret}\n[includeIf \"gitdir:/**\"]\n\tpath = {secret}\n\
         [filter \"own\"]\n\tclean = {program}\n\tsmudge = {program}\n\tprocess = {program}\n\trequired = true\n\
         [diff]\n\texternal = {program}\n[diff \"own\"]\n\ttextconv = {program}\n\tcommand = {program}\n[merge \"own\"]\n\tdriver = {program} %O\n\
         [gpg]\n\tprogram = {program}\n[credential]\n\thelper = !{program}\n[trace2]\n\teventTarget = {}/trace\n\
         [fsck]\n\tskipList = {secret}\n\tbadTimezone = ignore\n[receive]\n\tfsck.skipList = {secret}\n[uploadpack]\n\tpackObjectsHook = {program}\n\
         [remote \"origin\"]\n\turl = http://127.0.0.1:{port}/x\n\tpromisor = true\n\tpartialclonefilter = blob:none\n\tvcs = own\n\tuploadpack = {program}\n\
         [lfs]\n\turl = http://127.0.0.1:{port}/lfs\n[alias]\n\tfsck = !{program}\n[extensions]\n\tworktreeConfig = true\n",
        pair.path("hooks").display(),
        work.display(),
        trap.marks.display(),
    );
    fs::create_dir(pair.path("hooks")).expect("mkdir");
    let hooks =
        ["post-index-change", "reference-transaction", "pre-auto-gc", "post-checkout", "fsmonitor-watchman"];
    for hook in hooks {
        for folder in [pair.path("hooks"), root.join("hooks")] {
            fs::create_dir_all(&folder).expect("mkdir");
            fs::copy(&trap.program, folder.join(hook)).expect("copy");
        }
    }
    append(&root.join("config"), &config);
    append(&root.join("config.worktree"), &config);
    trap.clear();
    trap.check(&pair, "a configuration");

    // Names that lead to files and folders of this host, one at a time.
    let secret = trap.secret.as_path();
    let elsewhere = work.join(".git");
    type Plant<'a> = Box<dyn Fn(&Path) + 'a>;
    let link =
        |target: PathBuf| -> Plant<'_> { Box::new(move |path| symlink(&target, path).expect("symlink")) };
    let text = |text: String| -> Plant<'_> { Box::new(move |path| fs::write(path, &text).expect("write")) };
    let worktree = root.join("worktrees/w");
    let cases: Vec<(&str, Plant<'_>)> = vec![
        ("objects/info/alternates", text(format!("{}\n", elsewhere.join("objects").display()))),
        ("objects/info/http-alternates", text(format!("http://127.0.0.1:{port}/x\n"))),
        ("commondir", text(format!("{}\n", elsewhere.display()))),
        ("gitdir", text(format!("{}\n", elsewhere.display()))),
        ("refs/heads/planted", link(secret.to_owned())),
        ("refs/heads/named", text(format!("ref: {}\n", secret.display()))),
        ("refs/heads/folder", link(elsewhere.join("refs"))),
        ("packed-refs", link(secret.to_owned())),
        ("shallow", link(secret.to_owned())),
        ("index", link(secret.to_owned())),
        ("info/grafts", link(secret.to_owned())),
        ("info/attributes", link(secret.to_owned())),
        ("logs/HEAD", link(secret.to_owned())),
        ("objects/aa", link(elsewhere.join("objects"))),
        ("objects/pack/pack-0000000000000000000000000000000000000000.idx", link(secret.to_owned())),
        ("objects/pack/pack-0000000000000000000000000000000000000000.pack", link(secret.to_owned())),
        (
            "worktrees/w",
            Box::new(move |path| {
                fs::create_dir_all(path).expect("mkdir");
                fs::write(path.join("gitdir"), format!("{}\n", secret.display())).expect("write");
                fs::write(path.join("commondir"), format!("{}\n", work.join(".git").display()))
                    .expect("write");
                symlink(secret, path.join("HEAD")).expect("symlink");
                symlink(secret, path.join("index")).expect("symlink");
                symlink(secret, path.join("config.worktree")).expect("symlink");
            }),
        ),
    ];
    for (name, plant) in cases {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
        let kept = pair.path("kept");
        let was_there = fs::symlink_metadata(&path).is_ok();
        if was_there {
            fs::rename(&path, &kept).expect("rename");
        }
        plant(&path);
        trap.check(&pair, name);
        if path == worktree {
            fs::remove_dir_all(&path).expect("remove");
        } else {
            fs::remove_file(&path).expect("remove");
        }
        if was_there {
            fs::rename(&kept, &path).expect("rename");
        }
    }
}

/// Statements in a schema, settings of a shell and files beside a database.
#[test]
fn a_copied_sqlite_database_runs_nothing_and_reads_nothing_elsewhere() {
    let pair = Pair::engine("sqlite", "vars = { databases = [\"app.db\"] }\n");
    let trap = Trap::set(&pair);
    let root = pair.root(0);
    let (library, secret, program) = (trap.library.display(), trap.secret.display(), trap.program.display());
    let path = root.join("app.db");
    let database = Connection::open(&path).expect("open");
    database
        .execute_batch(
            "create table t (n integer primary key, v text); insert into t values (1, 'a'), (2, 'b');
             create table hidden (n); create index t_v on t (v);
             create view v as select n from t; create trigger r after insert on t begin select 1; end;",
        )
        .expect("fill");
    let rewrite = |name: &str, sql: &str| {
        database
            .execute_batch(&format!(
                "pragma writable_schema = on; update sqlite_schema set sql = '{}' where name = '{name}'; pragma writable_schema = off;",
                sql.replace('\'', "''")
            ))
            .expect("rewrite");
    };
    rewrite(
        "v",
        &format!(
            "CREATE VIEW v AS SELECT load_extension('{library}'), readfile('{secret}'), edit('{program}', 'x')"
        ),
    );
    rewrite(
        "r",
        &format!(
            "CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT load_extension('{library}'), writefile('{}/sqlite', 'x'); END",
            trap.marks.display()
        ),
    );
    append(
        &root.join(".sqliterc"),
        &format!(".shell {program}\n.load {library}\n.system {program}\n.read {secret}\n"),
    );
    trap.check(&pair, "a view and a trigger");
    // A generated column, a check and an index over functions that read and load, and a virtual table over a module that reads files.
    for sql in [
        format!("CREATE TABLE t (n integer primary key, v text, g AS (load_extension('{library}')))"),
        format!("CREATE TABLE t (n integer primary key, v text CHECK (readfile('{secret}') IS NULL))"),
        format!("CREATE TABLE t (n integer primary key, v text DEFAULT (load_extension('{library}')))"),
        format!("CREATE TABLE t (n integer primary key, v text COLLATE \"{secret}\")"),
    ] {
        rewrite("t", &sql);
        trap.check(&pair, &sql);
    }
    rewrite("t", "CREATE TABLE t (n integer primary key, v text)");
    rewrite("t_v", &format!("CREATE INDEX t_v ON t (load_extension('{library}'))"));
    trap.check(&pair, "an index");
    rewrite("t_v", "CREATE INDEX t_v ON t (v)");
    for sql in [
        format!("CREATE VIRTUAL TABLE hidden USING csv(filename='{secret}')"),
        format!("CREATE VIRTUAL TABLE hidden USING fsdir('{}')", pair.path(".").display()),
        "CREATE VIRTUAL TABLE hidden USING dbstat('main')".to_owned(),
        format!("CREATE VIRTUAL TABLE hidden USING fts5(x, content='{secret}', tokenize='{library}')"),
        format!("CREATE VIRTUAL TABLE hidden USING \"{library}\"()"),
        format!("CREATE TABLE hidden AS SELECT 1; ATTACH '{secret}' AS other"),
    ] {
        let root_page = if sql.starts_with("CREATE VIRTUAL") { "rootpage = 0, " } else { "" };
        database
            .execute_batch(&format!(
                "pragma writable_schema = on; update sqlite_schema set {root_page}sql = '{}' where name = 'hidden'; pragma writable_schema = off;",
                sql.replace('\'', "''")
            ))
            .expect("rewrite");
        trap.check(&pair, &sql);
    }
    drop(database);
    // Beside the database, links to a file of this host where its logs would be; and the database itself is one.
    for name in ["app.db-journal", "app.db-wal", "app.db-shm", "app.db"] {
        let (path, kept) = (root.join(name), pair.path("kept"));
        let was_there = fs::rename(&path, &kept).is_ok();
        symlink(&trap.secret, &path).expect("symlink");
        trap.check(&pair, name);
        fs::remove_file(&path).expect("remove");
        if was_there {
            fs::rename(&kept, &path).expect("rename");
        }
    }
}

/// Hooks, settings and revision files that lead elsewhere.
#[test]
fn a_copied_subversion_repository_runs_nothing_and_reads_nothing_elsewhere() {
    let pair = Pair::engine("subversion", "");
    let trap = Trap::set(&pair);
    let root = pair.root(0);
    run(Command::new("svnadmin").arg("create").arg(&root));
    let url = format!("file://{}", root.display());
    fs::write(pair.path("file"), "content\n").expect("write");
    for name in ["a", "b"] {
        run(Command::new("svn")
            .args(["--non-interactive", "--quiet", "import", "-m", "x"])
            .arg(pair.path("file"))
            .arg(format!("{url}/{name}")));
    }
    for hook in [
        "start-commit",
        "pre-commit",
        "post-commit",
        "pre-lock",
        "post-lock",
        "pre-unlock",
        "pre-revprop-change",
        "post-revprop-change",
    ] {
        fs::copy(&trap.program, root.join("hooks").join(hook)).expect("copy");
    }
    append(&root.join("conf/hooks-env"), &format!("[default]\nLD_PRELOAD = {}\n", trap.library.display()));
    append(
        &root.join("conf/svnserve.conf"),
        &format!("[general]\npassword-db = {}\n", trap.secret.display()),
    );
    append(
        &root.join("db/fsfs.conf"),
        &format!("[memcached-servers]\nkey = 127.0.0.1:{}\n[caches]\nfail-stop = true\n", trap.port()),
    );
    trap.clear();
    trap.check(&pair, "hooks and settings");
    let elsewhere = pair.path("elsewhere");
    run(Command::new("cp").arg("-a").arg(&root).arg(&elsewhere));
    fs::copy(&trap.secret, elsewhere.join("db/secret")).expect("copy");
    for (name, target) in [
        ("format", &trap.secret),
        ("db/format", &trap.secret),
        ("db/fs-type", &trap.secret),
        ("db/uuid", &trap.secret),
        ("db/current", &trap.secret),
        ("db/fsfs.conf", &trap.secret),
        ("db/min-unpacked-rev", &trap.secret),
        ("db/txn-current", &trap.secret),
        ("db/rep-cache.db", &trap.secret),
        ("db/revs/0/1", &trap.secret),
        ("db/revprops/0/1", &trap.secret),
        ("db/revs/0", &elsewhere.join("db/revs/0")),
        ("db/revs", &elsewhere.join("db/revs")),
        ("db", &elsewhere.join("db")),
    ] {
        let (path, kept) = (root.join(name), pair.path("kept"));
        let was_there = fs::rename(&path, &kept).is_ok();
        symlink(target, &path).expect("symlink");
        let verdict = trap.check(&pair, name);
        assert!(
            verdict.outcome != Outcome::Pass || !name.starts_with("db/rev") && name != "db",
            "{name}: what is not in the copy passed: {verdict:#?}"
        );
        fs::remove_file(&path).expect("remove");
        if was_there {
            fs::rename(&kept, &path).expect("rename");
        }
    }
}
