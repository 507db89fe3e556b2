//! Databases that are made here, some of them with functions that only their application has.

use std::os::unix::fs::FileExt as _;

use rusqlite::functions::FunctionFlags;

use super::*;

struct Bed(tempfile::TempDir);

/// The lines of a check, and the code that it would exit with.
struct Checked {
    lines: Vec<String>,
    code: u8,
}

impl Checked {
    #[track_caller]
    fn says(&self, part: &str) -> &Self {
        assert!(self.lines.iter().any(|line| line.contains(part)), "{part:?} is not in {:#?}", self.lines);
        self
    }

    #[track_caller]
    fn ends(&self, code: u8) -> &Self {
        assert_eq!(self.code, code, "{:#?}", self.lines);
        self
    }

    fn not_covered(&self) -> Vec<&str> {
        self.lines.iter().filter_map(|line| line.strip_prefix("not covered: ")).collect()
    }
}

impl Bed {
    fn new() -> Self {
        let temp = tempfile::tempdir().expect("temp");
        for root in ["first", "second"] {
            fs::create_dir(temp.path().join(root)).expect("mkdir");
        }
        Self(temp)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("first").join(name)
    }

    /// A database with this in it.
    fn make(&self, name: &str, sql: &str) -> Connection {
        fs::create_dir_all(self.path(name).parent().expect("has one")).expect("mkdir");
        let connection = Connection::open(self.path(name)).expect("open");
        connection.execute_batch(sql).expect("sql");
        connection
    }

    fn run(&self, step: Step, keys: Keys, databases: &[&str]) -> Checked {
        let arguments = Arguments {
            step,
            root: self.path(""),
            further_roots: vec![self.0.path().join("second")],
            foreign_keys: keys,
            scratch: None,
            known_parts: false,
            databases: databases.iter().map(PathBuf::from).collect(),
        };
        let mut report = Report::to(Vec::new());
        let ended = run(&arguments, &mut report);
        let code = match (&ended, report.is_damaged()) {
            (_, true) => 1,
            (Ok(()), _) => 0,
            (Err(unable), _) => unable.code(),
        };
        let text = String::from_utf8(report.into_inner()).expect("text");
        let unable = ended.err().map(|unable| unable.message().to_owned());
        Checked { lines: text.lines().map(str::to_owned).chain(unable).collect(), code }
    }

    fn check(&self, name: &str) -> Checked {
        self.run(Step::Integrity, Keys::Report, &[name])
    }
}

const ROWS: &str = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)";

#[test]
fn a_sound_database_passes_and_nothing_is_written() {
    let bed = Bed::new();
    let name = "with ?strange #name%.db";
    drop(bed.make(
        name,
        &format!(
            "pragma journal_mode = wal; create table t (a text, b text collate nocase, c, d as (upper(c)));
             insert into t {ROWS} select 'row ' || i, 'B' || i, 'c' || i from n;
             create index by_a on t (a); create index by_b on t (b); create index by_d on t (d);
             create index folded on t (lower(a)) where a like 'row%';
             create virtual table ft using fts5(body); insert into ft select a from t;
             create virtual table old using fts4(body); insert into old select a from t;
             create virtual table place using rtree(id, low, high); insert into place select rowid, rowid, rowid + 1 from t;
             create table w (k text primary key, v) without rowid; insert into w select a, b from t;"
        ),
    ));
    let before = fs::read(bed.path(name)).expect("read");
    let checked = bed.check(name);
    checked.ends(0).says("engine: SQLite 3.").says("checked 1 databases").says(" indexes");
    checked.says("checked 3 full-text and spatial indexes");
    assert_eq!(checked.not_covered(), [""; 0]);
    assert!(fs::read(bed.path(name)).expect("read") == before);
    assert_eq!(fs::read_dir(bed.path("")).expect("read").count(), 1, "nothing was written beside it");
}

#[test]
fn damaged_pages_and_indexes_are_named() {
    let bed = Bed::new();
    let sql = format!(
        "create table t (a text); insert into t {ROWS} select 'row ' || printf('%05d', i) from n; create index by_a on t (a);"
    );
    drop(bed.make("a.db", &sql));
    let content = fs::read(bed.path("a.db")).expect("read");
    let file = || OpenOptions::new().write(true).open(bed.path("a.db")).expect("open");
    file().write_all_at(&[0; 4096], 5 * 4096).expect("write");
    bed.check("a.db").ends(1).says("damage: a.db: Tree ");
    fs::write(bed.path("a.db"), &content).expect("write");
    let text = b"row 01000";
    let places: Vec<_> =
        content.windows(text.len()).enumerate().filter(|(_, it)| it == text).map(|(at, _)| at).collect();
    file().write_all_at(b"row 00999", *places.last().expect("in the index") as u64).expect("write");
    bed.check("a.db").ends(1).says("missing from index by_a");
    fs::write(bed.path("a.db"), &content[..content.len() / 2]).expect("write");
    bed.check("a.db").ends(1).says("damage: a.db: ");
    let mut header = content;
    header[..16].fill(7);
    fs::write(bed.path("a.db"), &header).expect("write");
    bed.check("a.db").ends(1).says("file is not a database");
    bed.check("none.db").ends(13).says("none.db: ");
}

/// Indexes that only their own module can compare with what they index.
#[test]
fn broken_full_text_and_spatial_indexes_are_damage() {
    for (module, broken) in [
        ("fts5(body)", "update x_data set block = zeroblob(length(block)) where id > 10"),
        ("fts5(body)", "delete from x_data where id > 10"),
        ("fts5(body)", "update x_content set c0 = 'other words' where id = 7"),
        ("fts4(body)", "update x_content set c0body = 'other words' where docid = 7"),
        ("rtree(id, low, high)", "delete from x_rowid where rowid = 7"),
    ] {
        let bed = Bed::new();
        let columns = if module.starts_with("rtree") { "i, i, i + 1" } else { "'hello world ' || i" };
        let connection = bed.make(
            "a.db",
            &format!("create virtual table x using {module}; insert into x {ROWS} select {columns} from n;"),
        );
        bed.check("a.db").ends(0);
        connection.execute_batch(broken).expect(broken);
        drop(connection);
        bed.check("a.db").ends(1);
    }
}

/// Functions and collations of the application: not damage, whatever the check says without them.
#[test]
fn what_depends_on_the_application_is_named_and_no_damage() {
    let bed = Bed::new();
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    let make = |name: &str, sql: &str| {
        let connection = bed.make(name, "");
        for function in ["mine", "lower"] {
            connection
                .create_scalar_function(function, 1, flags, |it| Ok(it.get::<String>(0)?.to_lowercase()))
                .expect("function");
        }
        let reverse = |one: &str, other: &str| other.cmp(one);
        connection.create_collation("mine", reverse).expect("collation");
        connection
            .create_collation("nocase", |one, other| one.to_lowercase().cmp(&other.to_lowercase()))
            .expect("collation");
        connection.execute_batch(sql).expect("sql");
    };
    let rows = format!("insert into t {ROWS} select 'ÄÖÜ' || i from n;");
    // A built-in function or collation that was replaced: nobody here can tell it from damage.
    for (name, index) in [("lower", "lower(x)"), ("nocase", "x collate nocase")] {
        let name = format!("{name}.db");
        make(&name, &format!("create table t (x text); {rows} create index i on t ({index});"));
        let insert = format!("{name}: ");
        let checked = bed.check(&name);
        if index.contains("lower") {
            checked.ends(14).says("the function lower() may be the application's own").says(&insert);
        }
    }
    make("check.db", "create table t (x text check (lower(x) = x)); insert into t values ('äöü');");
    bed.check("check.db").ends(0);
    // One that is not known here: what depends on it is named, and the rest is checked.
    for (name, what) in [
        ("create index i on t (mine(x))", "index i: it depends on the function mine()"),
        ("create index i on t (x) where mine(x) > 'a'", "index i: it depends on the function mine()"),
        ("create index i on t (x collate mine)", "index i: it depends on the collation mine"),
        (
            "alter table t add column y as (mine(x)); create index i on t (y)",
            "index i: it depends on the function mine()",
        ),
    ] {
        fs::remove_file(bed.path("own.db")).ok();
        make(
            "own.db",
            &format!(
                "create table t (x text); {rows} {name}; create table other (a); create index j on other (a);"
            ),
        );
        bed.check("own.db").ends(0).says(what);
    }
    // Damage beside it is found all the same.
    let connection = bed.make("own.db", "");
    connection.execute_batch("insert into other values (1)").expect("insert");
    let content = fs::read(bed.path("own.db")).expect("read");
    drop(connection);
    fs::write(bed.path("own.db"), &content[..content.len() - 4096]).expect("write");
    bed.check("own.db").ends(1);
}

/// A module or a tokenizer of the application.
#[test]
fn tables_of_unknown_modules_are_named() {
    let bed = Bed::new();
    drop(bed.make(
        "a.db",
        "create table t (x); create virtual table ft using fts5(body); insert into ft values ('some words');
         create virtual table known using fts5(body);
         create virtual table outer_ft using fts5(x, content='t');
         pragma writable_schema = on;
         update sqlite_schema set sql = 'create virtual table ft using fts5(body, tokenize=''mine'')' where name = 'ft';
         insert into sqlite_schema values ('table', 'near', 'near', 0, 'CREATE VIRTUAL TABLE near USING vec0(a)');",
    ));
    let checked = bed.check("a.db");
    checked.ends(0).says("table near: the module vec0").says("full-text index outer_ft").says("ft: ");
}

/// SQLite enforces foreign keys only where the application asks for it.
#[test]
fn a_row_that_refers_to_none_is_told_and_is_damage_only_where_that_is_wanted() {
    let bed = Bed::new();
    drop(bed.make(
        "a.db",
        "pragma foreign_keys = off; create table p (id integer primary key); create table c (id integer primary key, p int references p(id));
         create table odd (x references nowhere(y)); insert into odd values (1);
         insert into p values (1); insert into c values (1, 1), (2, 77), (3, 78);",
    ));
    let run = |keys| bed.run(Step::ForeignKeys, keys, &["*"]);
    let told = run(Keys::Report);
    told.ends(0).says("note: a.db: c row 2 refers to p, which has no such row");
    told.says("not covered: a.db foreign keys of c: 2 rows refer to rows that are not there");
    run(Keys::Fail).ends(1).says("damage: a.db: c row 3 refers to p");
    assert_eq!(run(Keys::Off).ends(0).not_covered(), [""; 0]);
    bed.check("a.db").ends(0);
}

/// Every database is looked at; those that nobody named do not decide.
#[test]
fn databases_that_nobody_named_are_looked_at() {
    let bed = Bed::new();
    for name in ["a.db", "deep/other"] {
        drop(bed.make(
            name,
            &format!("create table t (a); insert into t {ROWS} select i from n; create index i on t (a);"),
        ));
    }
    bed.check("a.db").ends(0).says("checked 2 databases");
    OpenOptions::new()
        .write(true)
        .open(bed.path("deep/other"))
        .expect("open")
        .write_all_at(&[0; 4096], 2 * 4096)
        .expect("write");
    let checked = bed.check("a.db");
    checked.ends(0).says("checked 1 databases").says("not covered: deep/other: deep/other: ");
    checked.says("name it in vars.databases to have it decide the outcome");
    bed.check("*").ends(1).says("damage: deep/other: ");
    bed.run(Step::Integrity, Keys::Report, &["a.db", "*"]).ends(1);
    // In a further root, whatever has the same path in the first.
    fs::copy(bed.path("deep/other"), bed.0.path().join("second/a.db")).expect("copy");
    let second = bed.0.path().join("second/a.db").display().to_string();
    bed.check("a.db").ends(0).says(&format!("not covered: {second}: "));
    bed.check("*").ends(1).says(&format!("damage: {second}: "));
    let empty = Bed::new();
    fs::write(empty.path("text"), "no database").expect("write");
    empty.check("*").ends(13).says("no database is in ");
}

/// The mark has copied the log beside the database: it does so only for a log that has lost something.
#[test]
fn a_log_in_the_copy_is_damage() {
    let (made, bed) = (Bed::new(), Bed::new());
    let writer =
        made.make("w.db", "pragma journal_mode = wal; pragma wal_autocheckpoint = 0; create table t (a)");
    for number in 0..20 {
        writer.execute("insert into t values (?1)", [number]).expect("insert");
    }
    for ending in ["", "-wal"] {
        fs::copy(made.path(&format!("w.db{ending}")), bed.path(&format!("w.db{ending}"))).expect("copy");
    }
    // Cut between two frames: its users had agreed on more.
    let whole = fs::read(bed.path("w.db-wal")).expect("read");
    fs::write(bed.path("w.db-wal"), &whole[..32 + 5 * (24 + 4096)]).expect("write");
    fs::copy(made.path("w.db-shm"), bed.path("w.db-shm")).expect("copy");
    bed.check("w.db").ends(1).says("damage: w.db-wal: the file ends after frame 5, and the log has ");
    fs::remove_file(bed.path("w.db-shm")).expect("remove");
    fs::write(bed.path("w.db-wal"), &whole).expect("write");
    bed.check("w.db").ends(12).says("no frame in it is damaged; the mark copies no such log");
    let mut log = fs::read(bed.path("w.db-wal")).expect("read");
    let middle = log.len() / 2;
    log[middle..middle + 64].fill(0xff);
    fs::write(bed.path("w.db-wal"), &log).expect("write");
    bed.check("w.db")
        .ends(1)
        .says("damage: w.db-wal: frame ")
        .says("committed transactions behind it are not seen any more");
}

#[test]
fn what_a_newer_sqlite_has_written_is_not_called_damage() {
    let bed = Bed::new();
    drop(bed.make(
        "a.db",
        "create table t (a); pragma writable_schema = on; update sqlite_schema set sql = 'CREATE TABLE t (a) OF THE FUTURE';",
    ));
    bed.check("a.db").ends(1).says("malformed database schema");
    let file = OpenOptions::new().write(true).open(bed.path("a.db")).expect("open");
    file.write_all_at(&3_099_000_u32.to_be_bytes(), 96).expect("write");
    bed.check("a.db").ends(10).says("a newer SQLite");
}

/// Neither damage nor a PASS: nobody here has the key.
#[test]
fn an_encrypted_database_is_named() {
    let bed = Bed::new();
    drop(bed.make("a.db", "create table t (a)"));
    let mut content = vec![0; 8 * 4096];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    for name in ["secret.db", "no ending", "picture"] {
        fs::write(bed.path(name), &content).expect("write");
    }
    fs::write(bed.path("no ending-wal"), "").expect("write");
    let checked = bed.check("*");
    checked.ends(0).says("not covered: secret.db: it looks like an encrypted database");
    checked.says("not covered: no ending: it looks");
    assert_eq!(checked.not_covered().len(), 2, "{:?}", checked.not_covered());
    bed.check("secret.db").ends(15).says("secret.db: file is not a database; it looks encrypted");
    // SQLCipher can leave the header plain.
    content[..32].copy_from_slice(&fs::read(bed.path("a.db")).expect("read")[..32]);
    fs::write(bed.path("plain.db"), &content).expect("write");
    bed.check("plain.db").ends(15).says("it looks encrypted");
}

/// Whatever form a sound database has, and whatever stands in its schema.
#[test]
fn sound_databases_of_every_form_pass() {
    for (name, sql) in [
        ("page size 512", "pragma page_size = 512; create table t (a); insert into t values (hex(randomblob(3000)))"),
        ("page size 65536", "pragma page_size = 65536; create table t (a); insert into t values (1)"),
        ("UTF-16", "pragma encoding = 'UTF-16be'; create table t (a text); insert into t values ('äöü'); create index i on t (a)"),
        ("auto_vacuum full", "pragma auto_vacuum = full; create table t (a); insert into t values (1); drop table t"),
        ("auto_vacuum incremental", "pragma auto_vacuum = incremental; create table t (a); insert into t values (hex(randomblob(9000))); delete from t"),
        ("free pages", "create table t (a); insert into t values (hex(randomblob(90000))); drop table t"),
        ("application_id", "pragma application_id = 1234567; pragma user_version = 77; create table t (a)"),
        ("generated", "create table t (a int, b as (a * 2), c as (a + 1) stored); insert into t (a) values (1); create index i on t (b, c)"),
        ("strict", "create table t (a int, b any, c text) strict; insert into t values (1, 'x', 'y')"),
        ("without rowid", "create table t (a text primary key, b) without rowid; insert into t values ('x', 1); create index i on t (b)"),
        ("autoincrement", "create table t (a integer primary key autoincrement); insert into t values (null)"),
        ("types", "create table t (a int, b text, c blob); insert into t values ('text', 7, 'x'), (1.5, x'00', null)"),
        ("broken views and triggers", "create table t (a); create view v as select * from nowhere; create table u (a);
            create trigger r after insert on t begin insert into gone values (new.a); end; insert into u values (1)"),
        ("names", "create table \"a table: with 'quotes' \"\" and [more]\" (\"a column\" text); create index \"an index: odd\" on \"a table: with 'quotes' \"\" and [more]\" (\"a column\")"),
        ("partial and descending", "create table t (a, b); insert into t values (1, 2), (3, 4); create index i on t (a desc) where b > 2; create unique index j on t (a, b desc)"),
        ("fts5 of all kinds", "create virtual table f using fts5(a, b unindexed, prefix='2 3', tokenize='porter unicode61'); insert into f values ('some words', 'x');
            create virtual table trigram using fts5(a, tokenize='trigram'); insert into trigram values ('some words');
            create virtual table vocabulary using fts5vocab(f, 'row');
            create virtual table bare using fts5(a, content=''); insert into bare (rowid, a) values (1, 'words')"),
        ("rtree of integers", "create virtual table r using rtree_i32(id, low, high, +name); insert into r values (1, 2, 3, 'x')"),
        ("analyze", "create table t (a); create index i on t (a); insert into t values (1), (2); analyze"),
        ("big", "create table t (a blob); insert into t values (zeroblob(3000000)); create table u (a); insert into u values (1)"),
    ] {
        let bed = Bed::new();
        drop(bed.make("a.db", &format!("{sql};")));
        let checked = bed.check("a.db");
        checked.ends(0);
        assert_eq!(checked.not_covered(), [""; 0], "{name}");
        bed.run(Step::ForeignKeys, Keys::Fail, &["*"]).ends(0);
    }
}

/// Names that are not UTF-8, of files and of nothing that SQLite minds.
#[test]
fn a_name_that_is_not_text_is_checked_and_shown() {
    use std::os::unix::ffi::OsStrExt as _;
    let bed = Bed::new();
    let path = bed.path("").join(std::ffi::OsStr::from_bytes(b"caf\xe9 \xff.db"));
    drop(bed.make("a.db", "create table t (a)"));
    fs::rename(bed.path("a.db"), &path).expect("rename");
    bed.check("*").ends(0).says("checked 1 databases");
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("open")
        .write_all_at(&[9; 3000], 4096)
        .expect("write");
    bed.check("*").ends(1).says("damage: caf\\xe9 \\xff.db: ");
}
