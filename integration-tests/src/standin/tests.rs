//! The promises of the stand-in, each on a whole installation.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::damage::{Damage, damage};
use super::install::{InstallOptions, install};
use super::layout::{Installation, PidFile};
use super::server::{Event, PAUSE_FILE, Server, ServerOptions};
use super::store::{Repository, ValidSizes};
use super::{Outcome, Surroundings, client, maintain};

struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let rig = Self { dir: tempfile::tempdir().unwrap() };
        let options = InstallOptions {
            host: "live.example".into(),
            port: 0,
            transactions: 120,
            ..InstallOptions::default()
        };
        install(&rig.live(), &options).unwrap();
        rig
    }

    fn live(&self) -> PathBuf {
        self.dir.path().join("live")
    }

    fn site_slice(&self) -> PathBuf {
        self.live().join("storage/site_slice")
    }

    fn open(&self, root: &Path) -> Installation {
        let host_names = Some(vec!["live.example".to_owned(), "10.0.0.7".to_owned()]);
        Installation::open(root, Surroundings { host_names, relocate: true }).unwrap()
    }

    fn dbcheck(&self, root: &Path) -> Outcome {
        maintain::run(&self.open(root), &["dbcheck".to_owned()])
    }

    fn repository(&self) -> Repository {
        Repository::open(&self.site_slice(), Path::to_path_buf, 1).unwrap()
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.live().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    }
}

/// Copies as a backup does: in any order, and what vanishes meanwhile is not there.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let copied = match entry.file_type() {
            Ok(kind) if kind.is_dir() => copy_tree(&entry.path(), &target),
            Ok(_) => fs::copy(entry.path(), target).map(drop),
            Err(error) => Err(error),
        };
        match copied {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn an_intact_installation_passes() {
    let rig = Rig::new();
    let outcome = rig.dbcheck(&rig.live());
    assert_eq!(outcome.stdout, "dbcheck: 3 slices, 120 transactions, 40 containers: no problems found\n");
    assert_eq!((outcome.exit, outcome.stderr.as_str()), (0, ""));
    let one = maintain::run(&rig.open(&rig.live()), &words("dbcheck amber"));
    assert_eq!(one.stdout, "dbcheck: 1 slices, 60 transactions, 20 containers: no problems found\n");
}

#[test]
fn the_same_seed_makes_the_same_depots() {
    let (one, two) = (Rig::new(), Rig::new());
    for file in ["element.ndb", "transaction.ndb", "element.ndx", "data/00/00/07.sto"] {
        let read = |rig: &Rig| fs::read(rig.live().join("storage/depots/basalt").join(file)).unwrap();
        assert!(read(&one) == read(&two), "{file}");
    }
}

#[test]
fn every_kind_of_damage_is_found_where_it_was_done() {
    let cases = [
        (Damage::FlipRecord, "element.ndb", "checksum mismatch"),
        (Damage::TruncateTable, "element.ndb", "no whole record begins here"),
        (Damage::MissingContainer, ".sto: offset 0", "container file is missing"),
        (Damage::FlipContainer, ".sto: offset 0", "container checksum mismatch"),
        (Damage::NonMonotonic, "element.ndb", "transaction number does not grow"),
    ];
    for marked in [false, true] {
        for (kind, file, problem) in cases {
            let rig = Rig::new();
            if marked {
                rig.repository().mark(1).unwrap();
            }
            let said = damage(&rig.live(), kind).unwrap();
            let outcome = rig.dbcheck(&rig.live());
            assert_eq!(outcome.exit, 1, "{kind:?}: {outcome:?}");
            let finding = outcome.stdout.lines().find(|line| line.contains(problem));
            let finding = finding.unwrap_or_else(|| panic!("{kind:?}: {outcome:?}"));
            assert!(finding.starts_with("storage/depots/amber/") && finding.contains(file), "{finding}");
            assert!(outcome.stdout.lines().last().unwrap().starts_with("dbcheck: "), "{outcome:?}");
            assert!(said.contains(rig.live().canonicalize().unwrap().to_str().unwrap()), "{said}");
        }
    }
}

/// The tables may have any amount of anything after the mark, and containers of later transactions may lack.
#[test]
fn what_lies_beyond_the_mark_does_not_count() {
    let rig = Rig::new();
    let mut repository = rig.repository();
    repository.mark(1).unwrap();
    let before = rig.dbcheck(&rig.live());
    (0..20).for_each(|_| drop(repository.transact(2).unwrap()));
    fs::remove_dir_all(rig.live().join("storage/depots/amber/data/00/00")).ok();
    drop(repository);
    let all = rig.dbcheck(&rig.live());
    assert_eq!(all.exit, 1, "containers inside the mark do count: {all:?}");

    let rig = Rig::new();
    let mut repository = rig.repository();
    repository.mark(1).unwrap();
    (0..20).for_each(|_| drop(repository.transact(2).unwrap()));
    drop(repository);
    for number in 21..24 {
        fs::remove_file(rig.live().join(format!("storage/depots/amber/data/00/00/{number}.sto"))).unwrap();
    }
    damage(&rig.live(), Damage::BeyondMark).unwrap();
    assert_eq!(rig.dbcheck(&rig.live()), before);
}

#[test]
fn rubbish_without_a_mark_or_a_server_is_refused() {
    let rig = Rig::new();
    assert!(damage(&rig.live(), Damage::BeyondMark).is_err());
}

#[test]
fn slices_with_different_marks_are_found() {
    let rig = Rig::new();
    let mut repository = rig.repository();
    repository.mark(1).unwrap();
    let file = rig.live().join("storage/depots/basalt").join(ValidSizes::BACKUP);
    let old = fs::read(&file).unwrap();
    repository.mark(2).unwrap();
    fs::write(&file, old).unwrap();
    let outcome = rig.dbcheck(&rig.live());
    assert!(outcome.stdout.contains("mark 1 here, mark 2 in another slice"), "{outcome:?}");
    assert_eq!(outcome.exit, 1);
}

#[test]
fn an_index_that_points_elsewhere_is_found() {
    let rig = Rig::new();
    let index = rig.live().join("storage/depots/amber/transaction.ndx");
    let mut bytes = fs::read(&index).unwrap();
    bytes[24 * 7 + 8] ^= 1;
    fs::write(index, bytes).unwrap();
    let outcome = rig.dbcheck(&rig.live());
    let expected = "storage/depots/amber/transaction.ndx: offset 168: transaction 8: index does not agree with the table\n";
    assert!(outcome.stdout.starts_with(expected), "{outcome:?}");
}

#[test]
fn each_reason_not_to_check_has_its_own_exit_code() {
    let host = "MASTER_SERVER = live.example\n";
    let cases = [
        (
            host,
            "MASTER_SERVER = other\n",
            11,
            "host name error: acserver.cnf says \"other\", this host is \"live.example\"",
        ),
        (host, "MASTER_SERVER = live.example \n", 11, "says \"live.example \""),
        (host, "MASTER_SERVER = live.example\r\n", 11, "says \"live.example\\r\""),
        (host, "MASTER_SERVER=live.example\n", 12, "acserver.cnf: setting not found: MASTER_SERVER"),
        (host, "#MASTER_SERVER = live.example\n", 12, "setting not found: MASTER_SERVER"),
        (host, "LOCAL_SERVER = replica\nMASTER_SERVER = live.example\n", 11, "says \"replica\""),
        ("SITE_SLICE_LOC = ", "SITE_SLICE_LOC =", 12, "setting not found: SITE_SLICE_LOC"),
        ("SITE_SLICE_LOC = ", "SITE_SLICE_LOC = /nowhere", 10, "license file not found: /nowhere"),
    ];
    for (from, to, exit, text) in cases {
        let rig = Rig::new();
        rig.edit("bin/acserver.cnf", from, to);
        let outcome = rig.dbcheck(&rig.live());
        assert_eq!(outcome.exit, exit, "{to:?}: {outcome:?}");
        assert!(outcome.stderr.contains(text) && outcome.stdout.is_empty(), "{to:?}: {outcome:?}");
    }
    let rig = Rig::new();
    rig.edit("bin/acserver.cnf", "live.example", "10.0.0.7");
    assert_eq!(rig.dbcheck(&rig.live()).exit, 0, "the address fits too");
}

#[test]
fn a_missing_licence_comes_before_a_wrong_host() {
    let rig = Rig::new();
    fs::remove_file(rig.site_slice().join("keys.txt")).unwrap();
    rig.edit("bin/acserver.cnf", "live.example", "other");
    let outcome = rig.dbcheck(&rig.live());
    assert_eq!(outcome.exit, 10);
    assert!(outcome.stderr.starts_with("maintain: license file not found: /"), "{outcome:?}");
}

#[test]
fn a_slice_that_is_not_there_is_not_called_damaged() {
    let rig = Rig::new();
    fs::remove_dir_all(rig.live().join("storage/depots/basalt")).unwrap();
    let outcome = rig.dbcheck(&rig.live());
    assert_eq!((outcome.exit, outcome.stdout.as_str()), (14, ""), "{outcome:?}");
}

#[test]
fn wrong_usage_and_unknown_depots_are_refused() {
    let rig = Rig::new();
    let installation = rig.open(&rig.live());
    for arguments in ["", "dbcheck a b", "dbcheck --all", "reindex", "dbcheck nosuch"] {
        assert_eq!(maintain::run(&installation, &words(arguments)).exit, 2, "{arguments:?}");
    }
    for arguments in ["backup", "backup /tmp/file", "mark", "backup mark now"] {
        assert_eq!(client::run(&installation, &words(arguments)).exit, 2, "{arguments:?}");
    }
}

#[test]
fn texts_and_exit_codes_come_from_the_profile_file() {
    let rig = Rig::new();
    rig.edit("bin/standin.toml", "host_error = 11", "host_error = 77");
    rig.edit("bin/standin.toml", "{program}: host name error:", "Wrong host:");
    rig.edit("bin/acserver.cnf", "live.example", "other");
    let outcome = rig.dbcheck(&rig.live());
    assert_eq!(outcome.exit, 77);
    assert!(outcome.stderr.starts_with("Wrong host: "), "{outcome:?}");
}

/// The real one follows the absolute paths; a copy beside the live one on the same machine needs the switch.
#[test]
fn a_copy_reads_its_own_files_only_when_told_to_relocate() {
    let rig = Rig::new();
    let copy = rig.dir.path().join("copy");
    copy_tree(&rig.live(), &copy).unwrap();
    damage(&copy, Damage::FlipRecord).unwrap();
    assert_eq!(rig.dbcheck(&rig.live()).exit, 0, "damage to the copy does not reach the live files");
    assert_eq!(rig.dbcheck(&copy).exit, 1);
    let host_names = Some(vec!["live.example".to_owned()]);
    let strict = Installation::open(&copy, Surroundings { host_names, relocate: false }).unwrap();
    assert_eq!(maintain::run(&strict, &words("dbcheck")).exit, 0, "it looked at the live files");
}

/// Copies made while a writer never rests pass, whatever the moment; and each is of its own mark.
#[test]
fn a_copy_taken_while_transactions_are_written_passes() {
    let rig = Rig::new();
    let repository = Mutex::new(rig.repository());
    let done = AtomicBool::new(false);
    let (mut written, mut marked) = (0_u64, Vec::new());
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) && count < 20_000 {
                repository.lock().unwrap_or_else(PoisonError::into_inner).transact(count).unwrap();
                count += 1;
            }
            count
        });
        for turn in 0..6 {
            let transactions = {
                let mut repository = repository.lock().unwrap();
                // At least one new transaction between two marks, however the threads are scheduled.
                repository.transact(turn).unwrap();
                repository.mark(turn).unwrap();
                repository.transactions()
            };
            marked.push(transactions);
            let copy = rig.dir.path().join(format!("copy{turn}"));
            copy_tree(&rig.live(), &copy).unwrap();
            let outcome = rig.dbcheck(&copy);
            assert_eq!(outcome.exit, 0, "{outcome:?}");
            assert!(outcome.stdout.contains(&format!(" {transactions} transactions")), "{outcome:?}");
        }
        done.store(true, Ordering::Relaxed);
        written += writer.join().unwrap();
    });
    assert!(marked.is_sorted_by(|one, two| one < two), "{marked:?}");
    assert_eq!(repository.into_inner().unwrap().transactions(), 120 + 6 + written);
}

/// What a crash leaves behind the commit is cut off; the next transactions fit on.
#[test]
fn a_transaction_that_never_ended_is_cut_off_at_the_next_start() {
    let rig = Rig::new();
    for file in ["element.ndb", "element.ndx", "transaction.ndb"] {
        let path = rig.live().join("storage/depots/amber").join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(b"NDB4 half a record");
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(rig.dbcheck(&rig.live()).exit, 1);
    rig.repository().transact(1).unwrap();
    assert_eq!(rig.dbcheck(&rig.live()).exit, 0);
}

/// Damage done under the feet of a writer is still there after more transactions, a mark and a restart.
#[test]
fn damage_survives_a_server_that_goes_on_writing() {
    for kind in [Damage::FlipRecord, Damage::TruncateTable, Damage::NonMonotonic, Damage::FlipContainer] {
        let rig = Rig::new();
        let mut repository = rig.repository();
        damage(&rig.live(), kind).unwrap();
        (0..10).for_each(|_| drop(repository.transact(2).unwrap()));
        repository.mark(1).unwrap();
        assert_eq!(rig.dbcheck(&rig.live()).exit, 1, "{kind:?}");
        drop(repository);
        let mut again = rig.repository();
        again.transact(3).unwrap();
        again.mark(2).unwrap();
        assert_eq!(rig.dbcheck(&rig.live()).exit, 1, "{kind:?}");
    }
}

#[test]
fn rubbish_under_a_running_writer_is_never_found() {
    let rig = Rig::new();
    let mut repository = rig.repository();
    repository.mark(1).unwrap();
    damage(&rig.live(), Damage::BeyondMark).unwrap();
    (0..3).for_each(|_| drop(repository.transact(2).unwrap()));
    repository.mark(2).unwrap();
    assert_eq!(rig.dbcheck(&rig.live()).exit, 0);
}

#[test]
fn the_client_marks_through_the_server_and_a_copy_calls_the_live_one() {
    let rig = Rig::new();
    let live = rig.open(&rig.live());
    assert_eq!(client::run(&live, &words("backup mark")).exit, 1, "no server answers");

    let server = Server::start(&live, ServerOptions { write_rate: 500.0, max_transactions: None }).unwrap();
    let stop = server.sender();
    let serving = thread::spawn(move || server.run());
    let outcome = client::run(&live, &words("backup mark"));
    assert!(outcome.exit == 0 && outcome.stdout.starts_with("Backup mark 1 set at "), "{outcome:?}");
    assert_eq!(rig.dbcheck(&rig.live()).exit, 13, "a server runs on these files");
    assert_eq!(Server::start(&live, ServerOptions::default()).unwrap_err().exit, 13);

    let copy = rig.dir.path().join("copy");
    copy_tree(&rig.live(), &copy).unwrap();
    assert!(!fs::read_to_string(copy.join("storage/site_slice").join(PidFile::FILE)).unwrap().is_empty());
    let checked = rig.dbcheck(&copy);
    assert_eq!(checked.exit, 0, "a stale pid file is no running server: {checked:?}");
    let from_copy = client::run(&rig.open(&copy), &words("backup mark"));
    assert!(
        from_copy.stdout.starts_with("Backup mark 2 set at "),
        "the copy's client called home: {from_copy:?}"
    );

    let slices = client::run(&live, &words("show slices")).stdout;
    let amber = rig.live().canonicalize().unwrap().join("storage/depots/amber");
    assert!(slices.starts_with("Slice#  Location\n0       /"), "{slices}");
    assert!(slices.contains(&format!("\n1       {}\n", amber.display())), "{slices}");
    assert!(client::run(&live, &["info".to_owned()]).stdout.contains("stand-in"));

    fs::write(rig.site_slice().join(PAUSE_FILE), "").unwrap();
    let refused = client::run(&live, &words("backup mark"));
    assert_eq!((refused.exit, refused.stderr.as_str()), (1, "accurev: the AccuRev server is paused\n"));
    fs::remove_file(rig.site_slice().join(PAUSE_FILE)).unwrap();

    stop.send(Event::Stop).unwrap();
    serving.join().unwrap().unwrap();
    assert_eq!(rig.dbcheck(&rig.live()).exit, 0);
}

#[test]
fn the_server_insists_on_a_licence_for_its_host_and_port() {
    let rig = Rig::new();
    rig.edit("bin/acserver.cnf", "live.example", "other");
    let failure = Server::start(&rig.open(&rig.live()), ServerOptions::default()).unwrap_err();
    assert_eq!(failure.exit, 15);
    assert!(failure.text.starts_with("accurev_server: license is for live.example:"), "{}", failure.text);
}
