use super::*;

const SQLITE: &str = include_str!("../../../../profiles/sqlite.toml");

/// A mark of what is in a folder: these databases by their names, and what is found.
fn mark(folder: &Path, copies: &Path, named: &[&str]) -> Result<String, SqliteError> {
    mark_until(folder, copies, named, &CancellationToken::new())
}

fn mark_until(
    folder: &Path,
    copies: &Path,
    named: &[&str],
    cancel: &CancellationToken,
) -> Result<String, SqliteError> {
    let profile = assay_common::profile::Profile::parse(Path::new("sqlite.toml"), SQLITE).expect("valid");
    let given = assay_common::profile::Value::List(named.iter().map(|it| (*it).to_owned()).collect());
    let vars = std::collections::BTreeMap::from([("databases".to_owned(), given)]);
    let vars = profile.bind(&vars, &["main"]).expect("fits");
    let wanted = Wanted {
        named: profile.databases(&vars).expect("paths"),
        roots: vec![(folder.to_owned(), copies.to_owned())],
        rules: FileRules::new(&profile, &vars, &["left-out".to_owned()]).expect("rules"),
    };
    snapshot(&wanted, cancel)
}

fn rows(path: &Path) -> i64 {
    let copy = Connection::open(path).expect("open copy");
    copy.query_row("select count(*) from t", [], |row| row.get(0)).expect("query")
}

/// Neither a FIFO nor a link in place of a database's own files is opened, and the error names it.
#[test]
fn odd_files_beside_a_database_are_refused() {
    for ending in SIDE_FILES {
        for is_link in [false, true] {
            let folder = tempfile::tempdir().expect("temp");
            let live = folder.path().join("app.db");
            for path in [&live, &folder.path().join("named.db")] {
                Connection::open(path).expect("open").execute_batch("create table t(a)").expect("fill");
            }
            let odd = beside(&live, ending);
            if is_link {
                std::os::unix::fs::symlink("/etc/passwd", &odd).expect("symlink");
            } else {
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(rustix::fs::CWD, &odd, rustix::fs::FileType::Fifo, mode, 0)
                    .expect("mkfifo");
            }
            let copies = tempfile::tempdir().expect("temp");
            let error = mark(folder.path(), copies.path(), &["named.db"]);
            let error = error.expect_err("it is refused").to_string();
            assert!(error.contains(&format!("app.db{ending}")), "{error}");
            assert!(error.contains("no regular file"), "{error}");
        }
    }
}

/// What is looked for is not looked for behind links, and a FIFO is not opened.
#[test]
fn links_and_fifos_are_no_databases_that_are_found() {
    let (folder, outside) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let make = |path: &Path| {
        Connection::open(path).expect("open").execute_batch("create table t(a)").expect("fill");
    };
    make(&outside.path().join("app.db"));
    fs::create_dir(folder.path().join("inner")).expect("mkdir");
    make(&folder.path().join("inner/own.db"));
    make(&folder.path().join("named.db"));
    let link = |to: &Path, name: &str| {
        std::os::unix::fs::symlink(to, folder.path().join(name)).expect("symlink");
    };
    link(&outside.path().join("app.db"), "linked.db");
    link(outside.path(), "linked");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let fifo = folder.path().join("fifo.db");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("mkfifo");
    let copies = tempfile::tempdir().expect("temp");
    let id = mark(folder.path(), copies.path(), &["named.db"]).expect("snapshot");
    assert!(id.contains("inner/own.db: ") && !id.contains("linked"), "{id}");
}

/// A writer that has the lock for longer than SQLite waits is waited for again, and one that keeps it ends the mark.
#[test]
fn a_locked_database_is_waited_for_more_than_once() {
    let folder = tempfile::tempdir().expect("temp");
    let live = folder.path().join("app.db");
    let writer = Connection::open(&live).expect("open");
    writer.execute_batch("create table t(a); insert into t values (1); begin exclusive").expect("fill");
    let copy = folder.path().join("copy.db");
    let mut waits = 0;
    let pages = back_up(&live, &copy, || {
        waits += 1;
        if waits == 3 {
            writer.execute_batch("rollback").expect("rollback");
        }
        true
    });
    assert_eq!((pages.expect("copied"), waits, rows(&copy)), (Some(2), 3, 1));
    writer.execute_batch("begin exclusive").expect("lock");
    assert_eq!(back_up(&live, &folder.path().join("other.db"), || false).expect("no error"), None);
}

/// A mark that waits for a writer ends when its run is cancelled: the writer keeps its lock in this test, and the wait for it would be a minute.
#[test]
fn a_mark_that_was_cancelled_waits_for_no_lock() {
    let folder = tempfile::tempdir().expect("temp");
    let writer = Connection::open(folder.path().join("app.db")).expect("open");
    writer.execute_batch("create table t(a); begin exclusive").expect("lock");
    let copies = tempfile::tempdir().expect("temp");
    let cancel = CancellationToken::new();
    cancel.cancel();
    let began = Instant::now();
    let error = mark_until(folder.path(), copies.path(), &["app.db"], &cancel).expect_err("it is locked");
    assert!(matches!(error, SqliteError::Locked { .. }), "{error}");
    assert!(began.elapsed() < LOCK_WAIT, "it has waited to the end");
}

/// The copy is one committed state, whatever another connection is in the middle of.
#[test]
fn the_copy_is_a_committed_state() {
    let folder = tempfile::tempdir().expect("temp");
    let live = folder.path().join("app.db");
    let mut writer = Connection::open(&live).expect("open");
    writer.pragma_update(None, "journal_mode", "wal").expect("wal");
    writer.execute_batch("create table t(a); insert into t values (1), (2)").expect("fill");
    let open = writer.transaction().expect("begin");
    open.execute_batch("insert into t values (3)").expect("insert");
    let copies = tempfile::tempdir().expect("temp");
    let copies = copies.path().join("copies");
    let id = mark(folder.path(), &copies, &["app.db"]).expect("snapshot");
    assert!(id.starts_with("app.db: "), "{id}");
    open.commit().expect("commit");
    let copy = Connection::open(copies.join("app.db")).expect("open copy");
    let rows: i64 = copy.query_row("select count(*) from t", [], |row| row.get(0)).expect("query");
    assert_eq!(rows, 2);
}

/// What is in the WAL only is in the copy, and stays in the WAL: the live files are as they were.
/// `setfacl -m u:1234:rw` on a file of mode 0640: the group's own right stays `r`, and the mode shows the mask.
#[test]
fn the_copy_has_the_acl_and_the_attributes_of_the_live_file() {
    let temp = tempfile::tempdir().expect("temp");
    let (live, copies) = (temp.path().join("live"), temp.path().join("copies"));
    fs::create_dir(&live).expect("mkdir");
    fs::create_dir(&copies).expect("mkdir");
    let database = live.join("a.db");
    Connection::open(&database).expect("open").execute_batch("create table t (a)").expect("fill");
    fs::set_permissions(&database, Permissions::from_mode(0o640)).expect("chmod");
    let entry = |tag: u16, rights: u16, id: u32| {
        [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    let acl = [
        2_u32.to_le_bytes().to_vec(),
        entry(0x01, 6, none),
        entry(0x02, 6, 1234),
        entry(0x04, 4, none),
        entry(0x10, 6, none),
        entry(0x20, 0, none),
    ]
    .concat();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&database, "system.posix_acl_access", &acl, flags).expect("an ACL");
    rustix::fs::setxattr(&database, "user.note", b"hello", flags).expect("an attribute");
    mark(&live, &copies, &["a.db"]).expect("marked");
    let value = |name: &str| {
        let mut value = Vec::with_capacity(1024);
        rustix::fs::getxattr(copies.join("a.db"), name, rustix::buffer::spare_capacity(&mut value))
            .expect(name);
        value
    };
    assert_eq!(value("system.posix_acl_access"), acl);
    assert_eq!(value("user.note"), b"hello");
    assert_eq!(fs::metadata(copies.join("a.db")).expect("stat").mode() & 0o7777, 0o660);
}

#[test]
fn the_live_files_are_left_alone() {
    let folder = tempfile::tempdir().expect("temp");
    let (live, wal) = (folder.path().join("app.db"), folder.path().join("app.db-wal"));
    let writer = Connection::open(&live).expect("open");
    writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).expect("set");
    writer.pragma_update(None, "journal_mode", "wal").expect("wal");
    writer.execute_batch("create table t(a); insert into t values (1), (2)").expect("fill");
    drop(writer);
    let read = || (fs::read(&live).expect("read"), fs::read(&wal).expect("read"));
    let before = read();
    assert!(!before.1.is_empty());
    let copies = tempfile::tempdir().expect("temp");
    let copies = copies.path().join("copies");
    mark(folder.path(), &copies, &["app.db"]).expect("snapshot");
    assert!(before == read());
    let copy = Connection::open(copies.join("app.db")).expect("open copy");
    let rows: i64 = copy.query_row("select count(*) from t", [], |row| row.get(0)).expect("query");
    assert_eq!(rows, 2);
}

#[test]
fn a_file_that_is_no_database_is_named() {
    let folder = tempfile::tempdir().expect("temp");
    for (name, content, said) in [
        ("empty.db", "", "empty.db: it is empty"),
        ("text.db", "just a text, and long enough to be looked at", "text.db: file is not a database"),
    ] {
        fs::write(folder.path().join(name), content).expect("write");
        let copies = tempfile::tempdir().expect("temp");
        let error = mark(folder.path(), copies.path(), &[name]).expect_err(name);
        assert!(error.to_string().starts_with(said), "{error}");
    }
}

/// SQLite cannot tell an encrypted database from rubbish. It is copied as a file, and the check names it.
#[test]
fn an_encrypted_database_is_copied_as_a_file() {
    let folder = tempfile::tempdir().expect("temp");
    let mut content = vec![0; 5 * 4096];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    fs::write(folder.path().join("secret.db"), &content).expect("write");
    let copies = tempfile::tempdir().expect("temp");
    let id = mark(folder.path(), copies.path(), &["secret.db"]).expect("mark");
    assert_eq!(id, "secret.db: as a file");
    assert!(fs::read(copies.path().join("secret.db")).expect("read") == content);
}

#[test]
fn a_database_that_is_not_there_is_named_and_not_created() {
    let folder = tempfile::tempdir().expect("temp");
    let copies = tempfile::tempdir().expect("temp");
    let error = mark(folder.path(), copies.path(), &["none.db"]).expect_err("absent");
    assert!(error.to_string().contains("none.db"), "{error}");
    assert!(!folder.path().join("none.db").exists());
}

/// Whatever it is called, and wherever it is: a database is copied by the online backup, so its copy is never torn.
#[test]
fn databases_that_nobody_named_are_found_and_copied() {
    let folder = tempfile::tempdir().expect("temp");
    fs::create_dir_all(folder.path().join("deep/er")).expect("mkdir");
    for name in ["app.db", "other.db", "deep/er/no ending", "left-out"] {
        let writer = Connection::open(folder.path().join(name)).expect("open");
        writer
            .execute_batch("pragma journal_mode=wal; create table t(a); insert into t values (1)")
            .expect("fill");
        // Its log stays beside it, with a commit that the file does not have.
        writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).expect("set");
    }
    fs::write(folder.path().join("file"), vec![7; 4096]).expect("write");
    let mut almost = b"SQLite format 3\0".to_vec();
    almost.resize(4096, 0xa5);
    fs::write(folder.path().join("almost"), &almost).expect("write");
    std::os::unix::fs::symlink("app.db", folder.path().join("link")).expect("link");
    let copies = tempfile::tempdir().expect("temp");
    for named in [&["app.db"][..], &["*"]] {
        let id = mark(folder.path(), copies.path(), named).expect("mark");
        for name in ["app.db", "other.db", "deep/er/no ending"] {
            assert!(id.contains(&format!("{name}: 2 pages")), "{id}");
            assert_eq!(rows(&copies.path().join(name)), 1);
        }
        assert!(id.contains("almost: as a file") && !id.contains("left-out") && !id.contains("link"), "{id}");
        assert_eq!(fs::read(copies.path().join("almost")).expect("read"), almost);
        assert!(!copies.path().join("file").exists());
    }
}

/// A writer died: its journal is rolled back in the copy, and both live files are as they were.
#[test]
fn a_hot_journal_is_rolled_back_in_the_copy() {
    let (made, folder) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let writer = Connection::open(made.path().join("h.db")).expect("open");
    writer
        .execute_batch(
            "pragma cache_size = 5; create table t(a);
             insert into t with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
             select 'old' || hex(zeroblob(50)) from n;
             begin; update t set a = 'new' || a; delete from t where rowid > 10;",
        )
        .expect("fill");
    for ending in ["", "-journal"] {
        fs::copy(made.path().join(format!("h.db{ending}")), folder.path().join(format!("h.db{ending}")))
            .expect("copy");
    }
    let read = || ["h.db", "h.db-journal"].map(|it| fs::read(folder.path().join(it)).expect("read"));
    let before = read();
    let copies = tempfile::tempdir().expect("temp");
    mark(folder.path(), copies.path(), &["h.db"]).expect("mark");
    assert!(before == read());
    assert_eq!(rows(&copies.path().join("h.db")), 3000);
    assert!(!copies.path().join("h.db-journal").exists());
}

/// Nothing is made or changed beside a database that nobody uses, whatever lies there, and the copy has what its log holds.
#[test]
fn a_database_that_nobody_uses_is_not_touched() {
    let made = tempfile::tempdir().expect("temp");
    let writer = Connection::open(made.path().join("w.db")).expect("open");
    writer
        .execute_batch(
            "pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(a); insert into t values (1), (2)",
        )
        .expect("fill");
    for endings in [&["", "-wal"][..], &["", "-wal", "-shm"]] {
        let folder = tempfile::tempdir().expect("temp");
        for ending in endings {
            let name = format!("w.db{ending}");
            fs::copy(made.path().join(&name), folder.path().join(&name)).expect("copy");
        }
        // Closed as it should be: in WAL mode, without a log.
        let closed = Connection::open(folder.path().join("closed.db")).expect("open");
        closed
            .execute_batch("pragma journal_mode=wal; create table t(a); insert into t values (1), (2)")
            .expect("fill");
        drop(closed);
        let look = || {
            let mut files: Vec<_> = fs::read_dir(folder.path())
                .expect("read")
                .map(|entry| entry.expect("entry").path())
                .map(|path| {
                    (fs::read(&path).expect("read"), fs::metadata(&path).expect("stat").mtime_nsec(), path)
                })
                .collect();
            files.sort_by(|one, other| one.2.cmp(&other.2));
            (files, fs::metadata(folder.path()).expect("stat").mtime_nsec())
        };
        let before = look();
        let copies = tempfile::tempdir().expect("temp");
        mark(folder.path(), copies.path(), &["*"]).expect("mark");
        assert!(before == look(), "{endings:?}");
        for name in ["w.db", "closed.db"] {
            assert_eq!(rows(&copies.path().join(name)), 2, "{name}");
        }
        assert_eq!(fs::read_dir(copies.path()).expect("read").count(), 2);
    }
}

/// Cut between two frames the log looks whole; what its users have agreed on tells.
#[test]
fn a_log_that_was_cut_is_told_by_its_users() {
    let (made, folder) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let writer = Connection::open(made.path().join("w.db")).expect("open");
    writer
        .execute_batch("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(a)")
        .expect("fill");
    for number in 0..20 {
        writer.execute("insert into t values (?1)", [number]).expect("insert");
    }
    for ending in ["", "-wal", "-shm"] {
        fs::copy(made.path().join(format!("w.db{ending}")), folder.path().join(format!("w.db{ending}")))
            .expect("copy");
    }
    let log = File::options().write(true).open(folder.path().join("w.db-wal")).expect("open");
    for frames in [10_u64, 0] {
        log.set_len(32 + frames * (24 + 4096)).expect("cut");
        let copies = tempfile::tempdir().expect("temp");
        let id = mark(folder.path(), copies.path(), &["w.db"]).expect("mark");
        assert!(id.contains(&format!("the file ends after frame {frames}, and the log has ")), "{id}");
        assert!(copies.path().join("w.db-shm").exists());
    }
    fs::remove_file(folder.path().join("w.db-wal")).expect("remove");
    let copies = tempfile::tempdir().expect("temp");
    mark(folder.path(), copies.path(), &["w.db"]).expect("mark");
    assert_eq!(fs::metadata(copies.path().join("w.db-wal")).expect("there").len(), 0);
    // Nobody has opened it since the host started: a log that is shorter than it was is that of a power cut.
    let old = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
    let shared = File::options().write(true).open(folder.path().join("w.db-shm")).expect("open");
    let times = rustix::fs::Timestamps { last_access: old, last_modification: old };
    rustix::fs::futimens(&shared, &times).expect("times");
    let copies = tempfile::tempdir().expect("temp");
    mark(folder.path(), copies.path(), &["w.db"]).expect("mark");
    assert!(!copies.path().join("w.db-wal").exists());
}

/// A damaged frame in the log: database and log are in the mark as they are, for the check to see.
#[test]
fn a_log_that_lost_commits_is_copied_as_it_is() {
    let (made, folder) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    let writer = Connection::open(made.path().join("w.db")).expect("open");
    writer
        .execute_batch("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(a)")
        .expect("fill");
    for number in 0..50 {
        writer.execute("insert into t values (?1)", [format!("{number}").repeat(400)]).expect("insert");
    }
    let copy = |ending: &str| {
        fs::copy(made.path().join(format!("w.db{ending}")), folder.path().join(format!("w.db{ending}")))
            .expect("copy");
    };
    let copies = tempfile::tempdir().expect("temp");
    // Sound, first without and then with what living processes have agreed on.
    copy("");
    copy("-wal");
    mark(folder.path(), copies.path(), &["w.db"]).expect("mark");
    assert_eq!(rows(&copies.path().join("w.db")), 50);
    let damaged = || {
        let log = folder.path().join("w.db-wal");
        let mut content = fs::read(&log).expect("read");
        let middle = content.len() / 2;
        content[middle..middle + 64].fill(0xff);
        fs::write(&log, &content).expect("write");
        content
    };
    for endings in [&["", "-wal"][..], &["", "-wal", "-shm"]] {
        drop(fs::remove_file(folder.path().join("w.db-shm")));
        endings.iter().for_each(|ending| copy(ending));
        let content = damaged();
        let copies = tempfile::tempdir().expect("temp");
        let id = mark(folder.path(), copies.path(), &["w.db"]).expect("mark");
        assert!(id.contains("in which frame ") && id.contains(" is damaged"), "{id}");
        assert!(fs::read(copies.path().join("w.db-wal")).expect("read") == content);
        assert!(fs::read(folder.path().join("w.db-wal")).expect("read") == content);
    }
}
