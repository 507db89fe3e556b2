use super::*;

fn svn(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).env("LC_ALL", "C.UTF-8").output().expect(program);
    assert!(done.status.success(), "{arguments:?}: {done:?}");
}

fn lines(ended: &Result<(), Unable>, report: Report<Vec<u8>>) -> (u8, String) {
    let code = match (ended, report.is_damaged()) {
        (_, true) => 1,
        (Ok(()), _) => 0,
        (Err(unable), _) => unable.code(),
    };
    let unable = ended.as_ref().err().map(|it| it.message().to_owned()).unwrap_or_default();
    (code, format!("{}{unable}", String::from_utf8(report.into_inner()).expect("text")))
}

fn check(temp: &Path, number: u32) -> (u8, String) {
    check_after(temp, number, "none")
}

fn check_after(temp: &Path, number: u32, mark: &str) -> (u8, String) {
    let scratch = temp.join(format!("scratch{number}"));
    fs::create_dir(&scratch).expect("mkdir");
    let arguments = Arguments {
        repository: temp.join("r"),
        scratch,
        program: "svnadmin".into(),
        mark: mark.into(),
        ranges: Vec::new(),
    };
    let mut report = Report::to(Vec::new());
    let ended = run(&arguments, &mut report);
    lines(&ended, report)
}

#[test]
fn a_repository_is_verified_whatever_its_settings_say() {
    let temp = tempfile::tempdir().expect("temp");
    let repository = temp.path().join("r").display().to_string();
    svn("svnadmin", &["create", &repository]);
    for folder in ["a", "b", "c"] {
        svn("svn", &["mkdir", "-q", "-m", "more", &format!("file://{repository}/{folder}")]);
    }
    let (code, text) = check(temp.path(), 0);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("engine: Subversion 1.") && text.contains("checked 4 revisions"), "{text}");
    // A cache server that does not answer here.
    let settings = "[memcached-servers]\nkey = 127.0.0.1:1\n[caches]\nfail-stop = true\n";
    fs::write(temp.path().join("r/db/fsfs.conf"), settings).expect("write");
    assert_eq!(check(temp.path(), 1).0, 0);
    let (code, text) = check_after(temp.path(), 20, "none; went back db/current 7 3");
    assert!(
        code == 0 && text.contains("not covered: revisions 4 to 7: db/current named revision 7"),
        "{text}"
    );
    // Set back, after the revisions were written.
    let current = temp.path().join("r/db/current");
    let mut permissions = fs::metadata(&current).expect("stat").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    fs::set_permissions(&current, permissions).expect("chmod");
    fs::write(&current, "1\n").expect("write");
    let (code, text) = check(temp.path(), 2);
    assert!(
        code == 0 && text.contains("not covered: revisions 2 to 3: db/current names revision 1"),
        "{text}"
    );
    fs::write(&current, "3\n").expect("write");
    let revision = temp.path().join("r/db/revs/0/2");
    let content = fs::read(&revision).expect("read");
    fs::remove_file(&revision).expect("remove");
    fs::write(&revision, &content[..content.len() / 2]).expect("write");
    let (code, text) = check(temp.path(), 3);
    // Which words Subversion has for it depends on the byte that happens to be the last one now.
    let names_it = text.contains("damage: Error verifying revision 2. E") || text.contains("in r2 footer");
    assert!(code == 1 && names_it, "{text}");
    fs::remove_file(&revision).expect("remove");
    let (code, text) = check(temp.path(), 4);
    assert!(code == 1 && text.contains("No such revision 2"), "{text}");
    fs::write(&revision, content).expect("write");
    fs::write(temp.path().join("r/db/format"), "99\n").expect("write");
    assert_eq!(check(temp.path(), 5).0, 10);
    fs::remove_dir_all(temp.path().join("r/db")).expect("remove");
    assert_eq!(check(temp.path(), 6).0, 13);
}

/// Settings, caches, leftovers and locks that say nothing about the revisions.
#[test]
fn sound_repositories_of_every_kind_pass() {
    let temp = tempfile::tempdir().expect("temp");
    let root = temp.path().join("r");
    let repository = root.display().to_string();
    svn("svnadmin", &["create", &repository]);
    let (code, text) = check(temp.path(), 0);
    assert!(code == 0 && text.contains("checked 1 revisions"), "without a revision: {text}");
    let url = format!("file://{repository}");
    svn("svn", &["mkdir", "-q", "-m", "one", &format!("{url}/trunk")]);
    let file = temp.path().join("file");
    fs::write(&file, "content\n".repeat(500)).expect("write");
    svn("svn", &["import", "-q", "-m", "two", &file.display().to_string(), &format!("{url}/trunk/file")]);
    svn("svn", &["lock", "-q", "-m", "mine", &format!("{url}/trunk/file")]);
    svn("svnadmin", &["setrevprop", &repository, "-r", "1", "svn:log", &file.display().to_string()]);
    let put = |name: &str, content: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("has one")).expect("mkdir");
        // Some of Subversion's files cannot be written to.
        drop(fs::remove_file(&path));
        fs::write(path, content).expect("write");
    };
    for (number, (name, content)) in [
        ("db/fsfs.conf", &b"[caches]\nfail-stop = true\n[memcached-servers]\nx = 127.0.0.1:1\n"[..]),
        ("db/fsfs.conf", b"\xff\xfe not a configuration [[[ ="),
        ("db/fsfs.conf", b"[rep-sharing]\nenable-rep-sharing = perhaps\n[io]\nblock-size = -1\n"),
        ("db/rep-cache.db", &[0xa5; 9000]),
        ("db/rep-cache.db-journal", b"hot"),
        ("db/node-origins/0", b"rubbish"),
        ("db/transactions/2-4.txn/node.0.0", b"id: half"),
        ("db/txn-protorevs/2-4.rev", b"half of a revision"),
        ("db/txn-protorevs/2-4.rev-lock", b""),
        ("db/txn-current", b"zz\n"),
        ("db/txn-current-lock", b"somebody"),
        ("db/write-lock", b"somebody"),
        ("db/locks/abc/0123456789abcdef0123456789abcdef", b"rubbish"),
        ("hooks/pre-commit", b"#!/bin/sh\nexit 1\n"),
        ("conf/svnserve.conf", b"[general\nauthz-db = /nowhere\n"),
        ("conf/authz", b"rubbish [ = "),
        ("locks/db.lock", b"rubbish"),
        ("README.txt", b"of somebody"),
        ("dav/activities.d/x", b"of mod_dav_svn"),
    ]
    .into_iter()
    .enumerate()
    {
        put(name, content);
        let (code, text) = check(temp.path(), 10 + u32::try_from(number).expect("few"));
        assert_eq!(code, 0, "{name}: {text}");
    }
    // What this Subversion cannot open says nothing about the data.
    for (number, (name, content)) in [
        ("db/fs-type", &b"bdb\n"[..]),
        ("db/fs-type", b"fsx\n"),
        ("db/fs-type", b"of the future\n"),
        ("format", b"77\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let before = fs::read(root.join(name)).expect("read");
        put(name, content);
        let (code, text) = check(temp.path(), 50 + u32::try_from(number).expect("few"));
        assert!(matches!(code, 10 | 12 | 13), "{name}: {code}: {text}");
        put(name, &before);
    }
    assert_eq!(check(temp.path(), 60).0, 0);
    // Files without which nobody opens the repository, cut to nothing and written over.
    let mut number = 60;
    for name in ["format", "db/format", "db/fs-type", "db/current", "db/uuid"] {
        for content in [&b""[..], b"\0\0\0\0"] {
            let before = fs::read(root.join(name)).expect("read");
            put(name, content);
            number += 1;
            let (code, text) = check(temp.path(), number);
            // A kind of file system with a name of rubbish may be one of the future.
            let right = if name == "db/fs-type" && !content.is_empty() { 10 } else { 1 };
            assert_eq!(code, right, "{name} of {} bytes: {text}", content.len());
            put(name, &before);
        }
    }
    assert_eq!(check(temp.path(), number + 1).0, 0);
}

/// Ranges that are asked for are verified, and no others: damage in another one is that one's.
#[test]
fn ranges_are_verified_alone_and_counted() {
    let temp = tempfile::tempdir().expect("temp");
    let repository = temp.path().join("r").display().to_string();
    svn("svnadmin", &["create", &repository]);
    for folder in ["a", "b", "c", "d", "e"] {
        svn("svn", &["mkdir", "-q", "-m", "more", &format!("file://{repository}/{folder}")]);
    }
    let check = |number: u32, ranges: &str| {
        let scratch = temp.path().join(format!("scratch{number}"));
        fs::create_dir(&scratch).expect("mkdir");
        let arguments = Arguments {
            repository: temp.path().join("r"),
            scratch,
            program: "svnadmin".into(),
            mark: String::new(),
            ranges: ranges.split(' ').map(|range| range.parse().expect("a range")).collect(),
        };
        let mut report = Report::to(Vec::new());
        let ended = run(&arguments, &mut report);
        lines(&ended, report)
    };
    let (code, text) = check(0, "0:1 2:2 4:5");
    assert!(code == 0 && text.contains("checked 5 revisions"), "{text}");
    // Behind the newest revision there is nothing to verify.
    let (code, text) = check(1, "4:6");
    assert!(code == 12 && text.contains("must not be greater than the youngest revision"), "{text}");
    fs::remove_file(temp.path().join("r/db/revs/0/5")).expect("remove");
    let (code, text) = check(2, "5:5");
    assert_eq!(code, 1, "{text}");
    let (code, text) = check(3, "0:1 5:5");
    assert!(code == 1 && text.contains("checked 2 revisions"), "{text}");
}
