//! Kinds of damage, of unusual but good data and of things that keep the check from looking, each put into a copy of one cluster. The target's
//! helper looks at each copy, without agents around it. The cluster has no checksums: what is found is found by looking.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    pair::{Done, copy_program, done},
    postgresql::{Cluster, major, own, postgres, programs, run},
};

const PAGE_BYTES: u64 = 8192;

/// A cluster at rest, the files of its relations, and what copies of it need.
struct Origin {
    folder: tempfile::TempDir,
    data: PathBuf,
    files: HashMap<String, String>,
    /// The number of the database `postgres`.
    database: String,
}

/// A copy that something is done to.
struct Copy<'a> {
    origin: &'a Origin,
    data: PathBuf,
}

impl Origin {
    /// A cluster with this in it, shut down. The files of the relations `names` can be looked up. `last` is carried out last, in one transaction:
    /// sessions after it may be of no use.
    fn new(prepare: impl FnOnce(&mut Cluster), names: &[&str], last: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("assay-kinds-").tempdir().expect("temp");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).expect("chmod");
        let data = folder.path().join("data");
        let mut cluster = Cluster::create(&data, &["--wal-segsize=1"]);
        // Nothing but the tests' own statements writes.
        cluster.query("ALTER SYSTEM SET autovacuum = off");
        cluster.query("ALTER SYSTEM SET max_prepared_transactions = 5");
        cluster.stop("-INT");
        cluster.start_again(&[]);
        prepare(&mut cluster);
        let mut files = HashMap::new();
        for name in names {
            let file = cluster.query(&format!("SELECT pg_relation_filepath('{name}')"));
            files.insert((*name).to_owned(), file);
            let toast = cluster.query(&format!(
                "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = '{name}'::regclass AND reltoastrelid <> 0"
            ));
            files.insert(format!("{name} toast"), toast);
        }
        let database = cluster.query("SELECT oid FROM pg_database WHERE datname = 'postgres'");
        if !last.is_empty() {
            cluster.query(last);
        }
        cluster.stop("-INT");
        // The helper runs as the server's user, who need not reach the folder of the build.
        copy_program("assay-target", folder.path());
        fs::set_permissions(folder.path().join("assay-target"), fs::Permissions::from_mode(0o755))
            .expect("chmod");
        Self { folder, data, files, database }
    }

    fn copy(&self) -> Copy<'_> {
        let data = self.folder.path().join("copy");
        if data.exists() {
            fs::remove_dir_all(&data).expect("remove");
        }
        run(Command::new("cp").args(["-a", "--reflink=auto"]).args([&self.data, &data]));
        Copy { origin: self, data }
    }
}

impl Copy<'_> {
    fn file(&self, relation: &str) -> PathBuf {
        self.data.join(&self.origin.files[relation])
    }

    fn fork(&self, relation: &str, fork: &str) -> PathBuf {
        PathBuf::from(format!("{}_{fork}", self.file(relation).display()))
    }

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).open(path).expect("open")
    }

    fn cut(&self, relation: &str, blocks: u64) {
        let file = Self::open(&self.file(relation));
        let bytes = file.metadata().expect("stat").len();
        assert!(bytes > blocks * PAGE_BYTES, "{relation} has {bytes} bytes");
        file.set_len(blocks * PAGE_BYTES).expect("cut");
    }

    fn zero(&self, relation: &str, block: u64) {
        let file = Self::open(&self.file(relation));
        let mut page = [0; PAGE_BYTES as usize];
        file.read_exact_at(&mut page, block * PAGE_BYTES).expect("read");
        assert_ne!(page, [0; PAGE_BYTES as usize], "{relation} has nothing in block {block}");
        file.write_all_at(&[0; PAGE_BYTES as usize], block * PAGE_BYTES).expect("write");
    }

    /// Puts the file of one relation in the place of another's.
    fn exchange(&self, other: &str, relation: &str) {
        fs::copy(self.file(other), self.file(relation)).expect("copy");
    }

    fn write(&self, path: &str, at: u64, bytes: &[u8]) {
        Self::open(&self.data.join(path)).write_all_at(bytes, at).expect("write");
    }

    /// Puts zeros over a whole file.
    fn blank(&self, path: &str) {
        let bytes = fs::metadata(self.data.join(path)).expect("stat").len();
        self.write(path, 0, &vec![0; usize::try_from(bytes).expect("small")]);
    }

    /// A file of the cluster, with the number of the database `postgres` in place of `DATABASE`.
    fn path(&self, path: &str) -> String {
        path.replace("DATABASE", &self.origin.database)
    }

    /// Sets something by ALTER SYSTEM's file.
    fn set(&self, lines: &str) {
        let path = self.data.join("postgresql.auto.conf");
        let text = fs::read_to_string(&path).expect("read");
        fs::write(path, format!("{text}{lines}\n")).expect("write");
    }

    /// Runs a step of the helper.
    fn look(&self, step: &str, further: &[&str]) -> Done {
        let scratch = self.data.with_file_name("scratch");
        if scratch.exists() {
            fs::remove_dir_all(&scratch).expect("remove");
        }
        own(&scratch);
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]);
        command.arg(self.data.with_file_name("assay-target")).args(["engine", "postgresql-check", step]);
        command.arg("--data").arg(&self.data).arg("--scratch").arg(&scratch);
        command.arg("--programs").arg(programs()).args(further);
        if !further.contains(&"--superuser") {
            command.args(["--superuser", "postgres"]);
        }
        done(command.current_dir("/"))
    }
}

/// A thing that is done to a copy, and the words that the step must print.
type Kind<'a> = (&'a str, &'a dyn Fn(&Copy<'_>), &'a [&'a str]);

/// Looks at a copy for each kind, which must end with `code` and say its words. All that do not are named.
fn look_at_each(origin: &Origin, code: i32, kinds: &[Kind<'_>]) {
    let mut wrong = Vec::new();
    for (name, change, words) in kinds {
        let copy = origin.copy();
        change(&copy);
        let looked = copy.look("amcheck", &[]);
        let missing: Vec<_> = words.iter().filter(|word| !looked.stdout.contains(**word)).collect();
        println!("{name}: exit code {}\n{}", looked.code, looked.stdout);
        if looked.code != code || !missing.is_empty() {
            wrong.push(format!("{name}: exit code {}, without {missing:?}: {looked:?}", looked.code));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), kinds.len(), wrong.join("\n"));
}

const TABLES: &str = "
CREATE TABLE rows AS SELECT n, repeat('x', 80) AS f FROM generate_series(1, 5000) n; CREATE UNIQUE INDEX rows_n ON rows (n);
CREATE TABLE other AS SELECT n + 100000 AS n, repeat('y', 80) AS f FROM generate_series(1, 5000) n; CREATE UNIQUE INDEX other_n ON other (n);
CREATE TABLE hashed AS SELECT n, repeat('x', 80) AS f FROM generate_series(1, 5000) n; CREATE INDEX hashed_n ON hashed USING hash (n);
CREATE TABLE gin AS SELECT n, ARRAY[n % 3, 10 + n] AS a FROM generate_series(1, 20000) n; CREATE INDEX gin_a ON gin USING gin (a) WITH (fastupdate = off);
CREATE TABLE pending (n int, a int[]); CREATE INDEX pending_a ON pending USING gin (a); INSERT INTO pending SELECT n, ARRAY[n] FROM generate_series(1, 5000) n;
CREATE TABLE gist AS SELECT n, point(n, n) AS p FROM generate_series(1, 5000) n; CREATE INDEX gist_p ON gist USING gist (p);
CREATE TABLE spgist AS SELECT n, point(n, -n) AS p FROM generate_series(1, 5000) n; CREATE INDEX spgist_p ON spgist USING spgist (p);
CREATE TABLE texts AS SELECT n, 'text ' || n AS t FROM generate_series(1, 5000) n; CREATE INDEX texts_t ON texts USING spgist (t);
CREATE TABLE brin AS SELECT n FROM generate_series(1, 5000) n; CREATE INDEX brin_n ON brin USING brin (n);
CREATE TABLE bare AS SELECT n, repeat('x', 80) AS f FROM generate_series(1, 5000) n; ANALYZE bare;
CREATE TABLE mapped AS SELECT n, repeat('x', 80) AS f FROM generate_series(1, 5000) n;
CREATE TABLE deleted AS SELECT n, repeat('x', 80) AS f FROM generate_series(1, 5000) n;
CREATE TABLE wide (n int, t text); ALTER TABLE wide ALTER t SET STORAGE external; INSERT INTO wide SELECT n, repeat(md5(n::text), 300) FROM generate_series(1, 60) n;
CREATE TABLE locked (n int PRIMARY KEY); INSERT INTO locked SELECT generate_series(1, 100);
CREATE SEQUENCE numbers; SELECT nextval('numbers');
SELECT count(lo_from_bytea(0, decode(repeat('00ff', 10000), 'hex'))) FROM generate_series(1, 40) n;
";
/// Row locks of a transaction and of a part of it make a list of transactions.
const LOCKS: &str = "BEGIN; SELECT count(*) FROM (SELECT FROM locked FOR KEY SHARE) l; SAVEPOINT s; UPDATE locked SET n = n WHERE n <= 50; COMMIT";
const NAMES: [&str; 29] = [
    "rows",
    "rows_n",
    "other",
    "other_n",
    "hashed",
    "hashed_n",
    "gin",
    "gin_a",
    "pending",
    "pending_a",
    "gist",
    "gist_p",
    "spgist",
    "spgist_p",
    "texts",
    "texts_t",
    "brin",
    "brin_n",
    "bare",
    "mapped",
    "deleted",
    "wide",
    "locked",
    "numbers",
    "pg_largeobject",
    "pg_class",
    "pg_attribute",
    "pg_index",
    "pg_database",
];

fn tables(cluster: &mut Cluster) {
    cluster.query(TABLES);
    cluster.query(LOCKS);
    cluster.query("VACUUM mapped");
    cluster.query("VACUUM deleted");
    cluster.query("DELETE FROM deleted WHERE n % 2 = 0");
    // The rows say of their transactions what became of them.
    for name in ["rows", "bare", "deleted", "locked"] {
        cluster.query(&format!("SELECT count(*) FROM {name}"));
    }
}

/// Sets all bits of the first bytes of a visibility map.
fn all_visible(copy: &Copy<'_>, bits: u8) {
    let map = copy.fork("deleted", "vm");
    Copy::open(&map).write_all_at(&[bits; 8], 24).expect("write");
}

#[test]
fn damage_of_every_kind_is_found_without_checksums() {
    let origin = Origin::new(tables, &NAMES, "");
    let kinds: &[Kind<'_>] = &[
        ("a cut table", &|it| it.cut("rows", 20), &["where the table ends at block 20"]),
        ("a page of zeros", &|it| it.zero("rows", 20), &["a page without rows"]),
        (
            "a cut table with a hash index",
            &|it| it.cut("hashed", 20),
            &["hash index", "where the table ends at block 20"],
        ),
        (
            "a cut table with a GIN index",
            &|it| it.cut("gin", 20),
            &["gin index", "where the table ends at block 20"],
        ),
        (
            "a cut table, GIN entries pending",
            &|it| it.cut("pending", 5),
            &["gin index", "where the table ends at block 5"],
        ),
        (
            "a cut table with a GiST index",
            &|it| it.cut("gist", 5),
            &["gist index", "where the table ends at block 5"],
        ),
        (
            "a cut table with an SP-GiST index",
            &|it| it.cut("spgist", 5),
            &["spgist index", "where the table ends at block 5"],
        ),
        (
            "a cut table with an SP-GiST index of texts",
            &|it| it.cut("texts", 5),
            &["spgist index", "where the table ends at block 5"],
        ),
        ("a page of zeros with a GIN index", &|it| it.zero("gin", 5), &["gin index", "a page without rows"]),
        ("a cut table with a map", &|it| it.cut("mapped", 20), &["the table ends at block 20"]),
        ("a page of zeros with a map", &|it| it.zero("mapped", 20), &["block 20: a page of zeros"]),
        ("all-visible bits of deleted rows", &|it| all_visible(it, 0x55), &["all-visible"]),
        ("all-frozen bits of deleted rows", &|it| all_visible(it, 0xff), &["all-frozen"]),
        ("a page of zeros in a GIN index", &|it| it.zero("gin_a", 2), &["gin index"]),
        ("a page of zeros in a GiST index", &|it| it.zero("gist_p", 2), &["gist index", "a page of zeros"]),
        (
            "a page of zeros in an SP-GiST index",
            &|it| it.zero("spgist_p", 5),
            &["spgist index", "a page of zeros"],
        ),
        ("a page of zeros in a hash index", &|it| it.zero("hashed_n", 2), &["hash index", "a page of zeros"]),
        ("a cut hash index", &|it| it.cut("hashed_n", 3), &["hash index", "the index ends at block 3"]),
        ("a cut GiST index", &|it| it.cut("gist_p", 3), &["gist index", "the index ends at block 3"]),
        ("zeros for a BRIN index", &|it| it.zero("brin_n", 0), &["brin index", "block 0: a page of zeros"]),
        ("a file of another table", &|it| it.exchange("other", "rows"), &["rows"]),
        ("a file of another index", &|it| it.exchange("other_n", "rows_n"), &["rows_n"]),
        (
            "an index without an entry",
            &|it| {
                Copy::open(&it.file("rows_n"))
                    .write_all_at(&[0x10, 0x9f, 0x21, 0], PAGE_BYTES + 40)
                    .expect("write")
            },
            &["rows_n"],
        ),
        (
            "a row's pointer that leads out of its page",
            &|it| {
                Copy::open(&it.file("rows"))
                    .write_all_at(&[0xff, 0x7f, 1, 0], 3 * PAGE_BYTES + 24)
                    .expect("write")
            },
            &["public.rows"],
        ),
        (
            "a page's head",
            &|it| Copy::open(&it.file("bare")).write_all_at(&[0xff; 24], 3 * PAGE_BYTES).expect("write"),
            &["public.bare"],
        ),
        ("a cut TOAST table", &|it| it.cut("wide toast", 4), &["TOAST table"]),
        ("an empty TOAST table", &|it| it.cut("wide toast", 0), &["TOAST table"]),
        ("a page of zeros in a TOAST table", &|it| it.zero("wide toast", 3), &["TOAST table"]),
        ("cut large objects", &|it| it.cut("pg_largeobject", 4), &["pg_largeobject"]),
        (
            "a missing sequence",
            &|it| fs::remove_file(it.file("numbers")).expect("remove"),
            &["sequence", "the file is missing"],
        ),
        ("a sequence of zeros", &|it| it.zero("numbers", 0), &["sequence", "block 0: a page of zeros"]),
        (
            "a file of a table for a sequence",
            &|it| it.exchange("rows", "numbers"),
            &["it is no page of a sequence"],
        ),
        (
            "no file for a table",
            &|it| fs::remove_file(it.file("bare")).expect("remove"),
            &["public.bare", "the file is missing"],
        ),
        (
            "a commit log of zeros",
            &|it| it.write("pg_xact/0000", 180, &[0; 8000]),
            &["the commit log does not"],
        ),
        (
            "no commit log",
            &|it| fs::remove_file(it.data.join("pg_xact/0000")).expect("remove"),
            &["could not access status of transaction"],
        ),
        (
            "no lists of transactions",
            &|it| fs::remove_file(it.data.join("pg_multixact/members/0000")).expect("remove"),
            &["locked"],
        ),
        ("lists of transactions of zeros", &|it| it.blank("pg_multixact/members/0000"), &["public.locked"]),
        ("a page of zeros in pg_class", &|it| it.zero("pg_class", 0), &["pg_class"]),
        ("no file for pg_class", &|it| fs::remove_file(it.file("pg_class")).expect("remove"), &["base/"]),
        (
            "rubbish in pg_class",
            &|it| Copy::open(&it.file("pg_class")).write_all_at(&[0xa5; 4096], PAGE_BYTES).expect("write"),
            &["damage: "],
        ),
        (
            "no file for pg_attribute",
            &|it| fs::remove_file(it.file("pg_attribute")).expect("remove"),
            &["base/"],
        ),
        ("a page of zeros in pg_database", &|it| it.zero("pg_database", 0), &["pg_database"]),
        ("a page of zeros in pg_attribute", &|it| it.zero("pg_attribute", 3), &["pg_attribute"]),
        (
            "a map of files of zeros",
            &|it| it.blank(&it.path("base/DATABASE/pg_filenode.map")),
            &["pg_filenode.map"],
        ),
        (
            "no map of files",
            &|it| fs::remove_file(it.data.join(it.path("base/DATABASE/pg_filenode.map"))).expect("remove"),
            &["pg_filenode.map"],
        ),
        (
            "no map of the cluster's files",
            &|it| fs::remove_file(it.data.join("global/pg_filenode.map")).expect("remove"),
            &["pg_filenode.map"],
        ),
        (
            "a cut control file",
            &|it| Copy::open(&it.data.join("global/pg_control")).set_len(100).expect("cut"),
            &["not restorable: "],
        ),
        ("a control file of zeros", &|it| it.blank("global/pg_control"), &["not restorable: "]),
        (
            "a control file with another byte",
            &|it| it.write("global/pg_control", 60, &[0x5a]),
            &["not restorable: "],
        ),
        (
            "no folder of a database",
            &|it| fs::remove_dir_all(it.data.join(it.path("base/DATABASE"))).expect("remove"),
            &["database"],
        ),
        (
            "no version of a database",
            &|it| fs::remove_file(it.data.join(it.path("base/DATABASE/PG_VERSION"))).expect("remove"),
            &["PG_VERSION"],
        ),
    ];
    look_at_each(&origin, 1, kinds);
}

/// Settings and files that keep a server from starting, or a session from working. The data is good.
/// Damage that is in the rows themselves: each page is sound, and so is each order.
const IN_THE_ROWS: &str = "
SET allow_system_table_mods = on;
CREATE TABLE twice (n int, f text); CREATE UNIQUE INDEX twice_n ON twice (n); INSERT INTO twice SELECT n, 'x' FROM generate_series(1, 5000) n;
UPDATE pg_index SET indisunique = false WHERE indexrelid = 'twice_n'::regclass; INSERT INTO twice VALUES (7, 'y');
UPDATE pg_index SET indisunique = true WHERE indexrelid = 'twice_n'::regclass;
CREATE TABLE often (t text); CREATE UNIQUE INDEX often_t ON often (lower(t)) WHERE t <> '';
UPDATE pg_index SET indisunique = false WHERE indexrelid = 'often_t'::regclass; INSERT INTO often SELECT 'Many' FROM generate_series(1, 3000) n;
UPDATE pg_index SET indisunique = true WHERE indexrelid = 'often_t'::regclass;
CREATE TABLE rule (n int DEFAULT 7 CHECK (n > 0)); DELETE FROM pg_attrdef WHERE adrelid = 'rule'::regclass; DELETE FROM pg_constraint WHERE conrelid = 'rule'::regclass;
CREATE VIEW seen AS SELECT 1 AS n; DELETE FROM pg_rewrite WHERE ev_class = 'seen'::regclass;
CREATE SEQUENCE count; DELETE FROM pg_sequence WHERE seqrelid = 'count'::regclass;
CREATE FUNCTION called() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TABLE fired (n int);
CREATE TRIGGER fires BEFORE INSERT ON fired FOR EACH ROW EXECUTE FUNCTION called(); DELETE FROM pg_proc WHERE proname = 'called';
";
/// The same forms, and sound: versions that are dead and not yet removed, rows that moved, nulls, keys that are compared at the end.
const SOUND_KEYS: &str = "
CREATE TABLE churned (n int PRIMARY KEY, f text) WITH (fillfactor = 100); INSERT INTO churned SELECT n, 'x' FROM generate_series(1, 2000) n; CREATE INDEX ON churned (f);
UPDATE churned SET f = f || 'a'; UPDATE churned SET f = f || 'b'; UPDATE churned SET f = f || 'c';
CREATE TABLE hot (n int PRIMARY KEY, f text) WITH (fillfactor = 50); INSERT INTO hot SELECT n, 'x' FROM generate_series(1, 2000) n; UPDATE hot SET f = 'y'; UPDATE hot SET f = 'z';
DELETE FROM hot WHERE n <= 500; INSERT INTO hot SELECT n, 'again' FROM generate_series(1, 500) n;
CREATE TABLE nulls (a int, b int); CREATE UNIQUE INDEX ON nulls (a, b); INSERT INTO nulls SELECT 1, NULL FROM generate_series(1, 500);
CREATE TABLE later (n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED); INSERT INTO later SELECT generate_series(1, 1000); UPDATE later SET n = 1001 - n;
CREATE TABLE covering (n int, f text); CREATE UNIQUE INDEX covering_n ON covering (n) INCLUDE (f); INSERT INTO covering SELECT n, 'x' FROM generate_series(1, 1000) n; UPDATE covering SET f = 'y';
CREATE TABLE held (n int PRIMARY KEY); INSERT INTO held SELECT generate_series(1, 100); BEGIN; DELETE FROM held WHERE n = 5; PREPARE TRANSACTION 'open';
BEGIN; INSERT INTO churned SELECT n, 'z' FROM generate_series(5000, 6000) n; ROLLBACK; INSERT INTO churned SELECT n, 'z' FROM generate_series(5000, 6000) n;
BEGIN; SAVEPOINT s; DELETE FROM hot WHERE n = 900; ROLLBACK TO s; DELETE FROM hot WHERE n = 901; INSERT INTO hot VALUES (901, 'new'); COMMIT;
CREATE TYPE pair AS (a int, b int); CREATE TYPE span AS RANGE (subtype = int4); CREATE AGGREGATE total (int) (sfunc = int4pl, stype = int);
CREATE TABLE split (n int) PARTITION BY RANGE (n); CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (0) TO (100); CREATE MATERIALIZED VIEW kept AS SELECT n FROM hot;
CREATE TABLE dropped (a int DEFAULT 1 CHECK (a > 0), b int DEFAULT 2, c int GENERATED ALWAYS AS (b * 2) STORED); ALTER TABLE dropped DROP COLUMN a;
";

/// Each page is sound, and the rows contradict each other.
#[test]
fn rows_that_contradict_each_other_are_damage() {
    let run = |cluster: &mut Cluster, text: &str| {
        for statement in text.lines().filter(|line| !line.is_empty()) {
            cluster.query(&format!("SET allow_system_table_mods = on; {statement}"));
        }
    };
    let bad = Origin::new(|cluster| run(cluster, IN_THE_ROWS), &[], "");
    let words: &[&str] = &[
        "is unique and has a duplicate key: block 0 row 7 and block ",
        "B-tree index \"postgres.public.often_t\"",
        "pg_attrdef lacks the default of column 1 of \"public.rule\"",
        "pg_constraint has 0 of the 1 CHECK constraints of \"public.rule\"",
        "pg_rewrite lacks the row of \"public.seen\"",
        "pg_sequence lacks the row of \"public.count\"",
        "which tgfoid of \"fires\" in pg_trigger names",
    ];
    look_at_each(&bad, 1, &[("rows that contradict each other", &|_| {}, words)]);
    let sound = Origin::new(|cluster| run(cluster, SOUND_KEYS), &[], "");
    // From 17 on amcheck compares keys with further columns.
    let further = if major() < 17 {
        "not covered: duplicate keys of B-tree index \"postgres.public.covering_n\""
    } else {
        ""
    };
    let words: &[&str] = &["unique indexes without duplicate keys", further];
    look_at_each(&sound, 0, &[("keys of dead and of living rows", &|_| {}, words)]);
}

#[test]
fn settings_and_files_of_the_copy_do_not_keep_the_check_from_looking() {
    let prepare = |cluster: &mut Cluster| {
        cluster.query(TABLES);
        cluster.query("CREATE DATABASE \"quote\"\" 'and' = line\n end\"");
        cluster.query("CREATE DATABASE closed ALLOW_CONNECTIONS false CONNECTION LIMIT 0");
        cluster.query("CREATE DATABASE half");
        cluster.query("CREATE ROLE weak LOGIN");
    };
    let last = "
        UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half';
        ALTER DATABASE postgres SET default_transaction_read_only = on;
        ALTER DATABASE postgres SET statement_timeout = 1;
        ALTER DATABASE postgres SET client_min_messages = error;
        ALTER DATABASE postgres SET search_path = nowhere;
        ALTER ROLE ALL SET idle_session_timeout = 1;
        ALTER ROLE postgres SET row_security = off;
        ALTER ROLE postgres SET session_preload_libraries = 'no_such_library';
        ALTER ROLE postgres CONNECTION LIMIT 0";
    let origin = Origin::new(prepare, &NAMES[..24], last);
    let settings = [
        "max_connections = 1",
        "superuser_reserved_connections = 90",
        "port = 1",
        "ssl = on",
        "ssl_cert_file = 'nowhere'",
        "shared_buffers = '900GB'",
        "huge_pages = on",
        "unix_socket_directories = '/nowhere'",
        "log_destination = 'syslog'",
        "log_destination = 'csvlog'",
        "logging_collector = on",
        "jit = on",
        "wal_level = minimal",
        "hba_file = '/nowhere/a'",
        "ident_file = '/nowhere/b'",
        "data_directory = '/nowhere/c'",
        "include 'missing.conf'",
        "temp_tablespaces = 'nowhere'",
        "shared_preload_libraries = 'no_such_library'",
        "lc_messages = 'xx_XX.UTF-8'",
        "restrict_nonsystem_relation_kind = 'view'",
        "row_security = off",
        "default_transaction_isolation = serializable",
        "no_such_setting = 1",
        "recovery_target = 'immediate'",
        "synchronous_commit = remote_apply",
        "synchronous_standby_names = '*'",
        "archive_mode = on",
        "full_page_writes = off",
        "default_table_access_method = 'nowhere'",
        "event_triggers = on",
        "transaction_timeout = 1",
        "max_worker_processes = 0",
    ];
    let everything = |it: &Copy<'_>| it.set(&settings.join("\n"));
    let half = |it: &Copy<'_>| {
        let path = it.data.join("base");
        let newest = fs::read_dir(path).expect("read").map(|entry| entry.expect("entry").path());
        // The database that was made last but one: what is left of its files.
        let mut folders: Vec<_> = newest
            .filter_map(|path| {
                path.file_name()?.to_str()?.parse::<u32>().ok().map(|number| (number, path.clone()))
            })
            .collect();
        folders.sort();
        let (_, folder) = folders.last().expect("a database");
        for entry in fs::read_dir(folder).expect("read").take(100) {
            fs::remove_file(entry.expect("entry").path()).expect("remove");
        }
    };
    look_at_each(
        &origin,
        0,
        &[
            ("as it is", &|_| {}, &["database \"half\"", "DROP DATABASE did not end"]),
            ("half a database", &half, &["database \"half\"", "DROP DATABASE did not end"]),
            ("each setting", &everything, &["checked"]),
            (
                "standby.signal",
                &|it| fs::write(it.data.join("standby.signal"), "").expect("write"),
                &["not covered: standby.signal: "],
            ),
            (
                "recovery.signal",
                &|it| fs::write(it.data.join("recovery.signal"), "").expect("write"),
                &["not covered: recovery.signal: "],
            ),
            (
                "recovery.conf",
                &|it| fs::write(it.data.join("recovery.conf"), "standby_mode = on").expect("write"),
                &["not covered: recovery.conf: "],
            ),
            (
                "a stray file",
                &|it| fs::write(it.data.join(it.path("base/DATABASE/99999")), [7; 16384]).expect("write"),
                &["checked"],
            ),
            (
                "pages of zeros behind the end",
                &|it| {
                    let file = Copy::open(&it.file("rows"));
                    let bytes = file.metadata().expect("stat").len();
                    file.set_len(bytes + 3 * PAGE_BYTES).expect("extend");
                },
                &["checked"],
            ),
            (
                "a table without an index or a map that lost its end",
                &|it| it.cut("bare", 20),
                &["not covered: length of table \"postgres.public.bare\""],
            ),
        ],
    );
    // What CREATE DATABASE and DROP DATABASE left half done is no damage either where the catalogues are read without the server: it lets
    // neither role prepare the check.
    for superuser in ["weak", "nobody_of_this_name"] {
        let copy = origin.copy();
        half(&copy);
        let (whole, left) = (copy.data.join(copy.path("base/DATABASE")), copy.data.join("base/999999"));
        own(&left);
        for name in ["pg_filenode.map", "PG_VERSION"] {
            fs::copy(whole.join(name), left.join(name)).expect("copy");
        }
        let looked = copy.look("amcheck", &["--superuser", superuser]);
        let says = |words: &str| looked.stdout.contains(words);
        assert!(looked.code == 12 && !says("damage: ") && says("checker-error"), "{looked:?}");
        assert!(says("not covered: catalogues in the folder base/999999: "), "{looked:?}");
    }
    // The other steps look at the same.
    let copy = origin.copy();
    everything(&copy);
    for (step, words) in [("checksums", "not enabled"), ("dump", "dump: done")] {
        if step == "dump" && !programs().join("pg_dump").exists() {
            println!("PostgreSQL {} is installed without pg_dump: its step is not run", major());
            continue;
        }
        let looked = copy.look(step, &[]);
        assert!(looked.code == 0 && looked.stdout.contains(words), "{step}: {looked:?}");
    }
}

/// A schema with everything that a cluster may have gives no finding.
#[test]
fn a_varied_schema_gives_no_finding() {
    let schema = include_str!("postgresql_varied.sql");
    let prepare = |cluster: &mut Cluster| {
        let file = cluster.data.with_file_name("varied.sql");
        fs::write(&file, schema).expect("write");
        let said = run(postgres("psql")
            .args([
                "-X",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-v",
                &format!("major={}", major()),
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-h",
            ])
            .arg(data_socket(cluster))
            .arg("-f")
            .arg(&file));
        println!("{said}");
    };
    let origin = Origin::new(prepare, &[], "");
    let copy = origin.copy();
    let looked = copy.look("amcheck", &[]);
    println!("{}", looked.stdout);
    assert_eq!(looked.code, 0, "{looked:?}");
    assert!(!looked.stdout.contains("damage: ") && !looked.stdout.contains("incomplete: "), "{looked:?}");
    for part in ["checked", "bloom indexes", "brin indexes", "foreign tables", "not valid"] {
        assert!(looked.stdout.contains(part), "{part}: {looked:?}");
    }
}

fn data_socket(cluster: &Cluster) -> PathBuf {
    cluster.data.with_extension("socket")
}

/// What keeps the check from looking is INCONCLUSIVE or listed, and its line comes first in the verdict.
#[test]
fn extensions_that_the_target_lacks_are_named() {
    let prepare = |cluster: &mut Cluster| {
        cluster.query(
            "CREATE EXTENSION citext; CREATE TABLE folded (t citext); INSERT INTO folded SELECT 'T' || n FROM generate_series(1, 100) n;
             CREATE INDEX folded_t ON folded (t); CREATE TABLE failing (n int); INSERT INTO failing VALUES (1), (2);
             CREATE FUNCTION inverse(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1 / $1'; CREATE INDEX failing_n ON failing (inverse(n));
             UPDATE pg_proc SET probin = '$libdir/not_installed_here' WHERE probin = '$libdir/citext'",
        );
        cluster.query("CREATE OR REPLACE FUNCTION inverse(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1 / ($1 - 1)'");
    };
    let origin = Origin::new(prepare, &["folded"], "");
    let copy = origin.copy();
    let looked = copy.look("amcheck", &[]);
    assert_eq!(looked.code, 15, "{looked:?}");
    for words in [
        "not covered: B-tree index \"postgres.public.folded_t\"",
        "not_installed_here",
        "failing_n",
        "division by zero",
    ] {
        assert!(looked.stdout.contains(words), "{words}: {looked:?}");
    }
    assert!(looked.stdout.contains("\nincomplete: "), "{looked:?}");
    let looked = origin.copy().look("amcheck", &["--unchecked", "accept"]);
    assert_eq!(looked.code, 0, "{looked:?}");
    // A server that does not start: the line says why, and is the verdict's headline.
    let copy = origin.copy();
    fs::set_permissions(&copy.data, fs::Permissions::from_mode(0o777)).expect("chmod");
    let looked = copy.look("amcheck", &[]);
    assert_eq!(looked.code, 11, "{looked:?}");
    assert!(
        looked.stdout.contains("failed: server-not-started: the copy's server did not start")
            && looked.stdout.contains("has invalid permissions"),
        "{looked:?}"
    );
    // No programs.
    let copy = origin.copy();
    fs::write(copy.data.join("PG_VERSION"), "99\n").expect("write");
    let looked = copy.look("amcheck", &[]);
    assert!(looked.code == 10 && looked.stdout.contains("failed: engine-version: "), "{looked:?}");
}
