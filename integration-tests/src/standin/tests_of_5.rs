//! The promises of the stand-in as AccuRev 5: a repository in a database.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use super::damage::{Damage, damage};
use super::database::{self, Database, initdb};
use super::install::{InstallOptions, install};
use super::layout::{Installation, PidFile};
use super::server::{Event, Server, ServerOptions};
use super::{Failure, Outcome, Surroundings, client, maintain};

const HOST: &str = "live.example";
const LIVE_PASSWORD: &str = "the live password";

struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    fn new(major: u8) -> Self {
        let rig = Self { dir: tempfile::tempdir().unwrap() };
        let options =
            InstallOptions { host: HOST.into(), port: 0, transactions: 60, major, ..Default::default() };
        install(&rig.live(), &options).unwrap();
        rig
    }

    fn live(&self) -> PathBuf {
        self.dir.path().join("live")
    }

    fn open(&self, root: &Path) -> Installation {
        let host_names = Some(vec![HOST.to_owned()]);
        Installation::open(root, Surroundings { host_names, relocate: true }).unwrap()
    }

    /// The lock that a database server holds.
    fn up(&self) -> fs::File {
        let database = Database::of(&self.open(&self.live()));
        PidFile::claim_in(&database.dir, "postmaster.pid").unwrap().expect("nobody else holds it")
    }

    fn maintain(&self, command: &str, answers: &str) -> Outcome {
        let words: Vec<_> = command.split(' ').collect();
        let done: Result<Outcome, Failure> =
            database::maintain(&self.open(&self.live()), &words, &mut answers.as_bytes());
        done.unwrap_or_else(Outcome::from)
    }

    fn client(&self, command: &str) -> Outcome {
        let words: Vec<_> = command.split(' ').map(str::to_owned).collect();
        client::run(&self.open(&self.live()), &words)
    }
}

#[test]
fn marks_are_of_4_and_backups_of_5() {
    let rig = Rig::new(5);
    let said = rig.client("backup mark");
    assert_eq!((said.exit, said.stderr.contains("not supported any more")), (2, true), "{said:?}");
    let said = Rig::new(4).client("backup file");
    assert_eq!((said.exit, said.stderr.contains("Usage: accurev backup mark")), (2, true), "{said:?}");
}

#[test]
fn the_check_needs_the_database_and_no_server() {
    let rig = Rig::new(5);
    assert_eq!(rig.maintain("dbcheck", "").exit, 18, "no database server runs");
    let up = rig.up();
    let done = rig.maintain("dbcheck", "");
    assert_eq!(
        (done.exit, done.stdout.as_str()),
        (0, "dbcheck: 3 slices, 60 transactions: no problems found\n")
    );
    let server = Server::start(&rig.open(&rig.live()), ServerOptions::default()).unwrap();
    assert_eq!(maintain::run(&rig.open(&rig.live()), &["dbcheck".to_owned()]).exit, 13, "a server runs");
    drop((server, up));
}

/// The whole way of a copy: a backup of a server that writes, a database of its own, the properties, the check.
#[test]
fn a_backup_is_restored_into_an_empty_database_of_another_server() {
    let rig = Rig::new(5);
    let up = rig.up();
    let options = ServerOptions { write_rate: 500.0, max_transactions: None };
    let server = Server::start(&rig.open(&rig.live()), options).unwrap();
    let stop = server.sender();
    let serving = thread::spawn(move || server.run());
    let file = rig.dir.path().join("file.backup");
    let backup = format!("backup {}", file.display());
    let done = rig.client(&backup);
    assert!(done.exit == 0 && done.stdout.starts_with("Backup written to "), "{done:?}");
    assert_eq!(rig.client(&backup).exit, 1, "nothing is written over");
    stop.send(Event::Stop).unwrap();
    serving.join().unwrap().unwrap();
    drop(up);

    let installation = rig.open(&rig.live());
    let database = Database::of(&installation);
    fs::remove_dir_all(&database.dir).unwrap();
    let password = rig.dir.path().join("password");
    fs::write(&password, "another\n").unwrap();
    let words = ["-D", database.dir.to_str().unwrap(), "-U", "postgres"].map(str::to_owned);
    let words = [&words[..], &[format!("--pwfile={}", password.display())]].concat();
    assert_eq!(initdb(&installation, &words).exit, 0);
    assert_ne!(initdb(&installation, &words).exit, 0, "it is not empty any more");
    let _up = rig.up();
    assert_eq!(rig.maintain("dbcheck", "").exit, 19, "it holds no repository");
    let restore = format!("restore {} postgres", file.display());
    assert_eq!(rig.maintain(&restore, &format!("{LIVE_PASSWORD}\n")).exit, 20, "it is another database");
    let done = rig.maintain(&restore, "another\n");
    assert_eq!(done.exit, 0, "{done:?}");
    assert_eq!(rig.maintain(&restore, "another\n").exit, 21, "there is a repository already");
    assert_eq!(rig.maintain("dbcheck", "").exit, 0, "the same host");

    // Another host: the name is in the database as well.
    let cnf = rig.live().join("bin/acserver.cnf");
    fs::write(&cnf, fs::read_to_string(&cnf).unwrap().replace(HOST, "copy.example")).unwrap();
    let done = rig.maintain("dbcheck", "");
    assert!(done.exit == 11 && done.stderr.contains("host name error"), "{done:?}");
    let update = "server_properties update postgres";
    assert_eq!(rig.maintain(update, "another\nn\n").exit, 21, "the answer was no");
    assert_eq!(rig.maintain(update, "another\n").exit, 21, "there was no answer");
    assert_eq!(rig.maintain("dbcheck", "").exit, 11);
    assert_eq!(rig.maintain(update, "another\ny\n").exit, 0);
    assert_eq!(rig.maintain("concheck site postgres", "another\n").exit, 0);
    assert_eq!(rig.maintain("dbcheck", "").exit, 0);
}

/// It is shallow, as it is documented: numbers are looked at, contents are not.
#[test]
fn numbers_that_do_not_grow_are_found_and_a_flipped_bit_is_not() {
    for (kind, exit) in [(Damage::NonMonotonic, 1), (Damage::FlipRecord, 0), (Damage::FlipContainer, 0)] {
        let rig = Rig::new(5);
        let _up = rig.up();
        damage(&rig.live(), kind).unwrap();
        let done = rig.maintain("dbcheck", "");
        assert_eq!(done.exit, exit, "{kind:?}: {done:?}");
        assert_eq!(done.stdout.contains("depot amber, table element: transaction"), exit == 1, "{done:?}");
    }
}

#[test]
fn a_damaged_backup_file_is_named() {
    let rig = Rig::new(5);
    let _up = rig.up();
    let installation = rig.open(&rig.live());
    let database = Database::of(&installation);
    let file = rig.dir.path().join("file");
    database.backup(&file, &[0, 1, 2], 1).unwrap();
    let sound = fs::read(&file).unwrap();
    fs::remove_dir_all(database.dir.join("base")).unwrap();
    let restore = format!("restore {} postgres", file.display());
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    for damaged in [&sound[..sound.len() / 2], &flipped, b""] {
        fs::write(&file, damaged).unwrap();
        let done = rig.maintain(&restore, &format!("{LIVE_PASSWORD}\n"));
        assert_eq!((done.exit, done.stderr.contains("is damaged")), (1, true), "{done:?}");
        assert!(!database.dir.join("base").exists(), "nothing of it is used");
    }
}
