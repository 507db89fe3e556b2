//! Live engines under write load: a pass, damage found, and the last good backup untouched.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::pair::{Pair, program};

/// A stand-in server that writes until it is dropped.
pub(crate) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(crate) fn standin(arguments: &[&str]) -> String {
    let output = Command::new(program("accurev-standin")).args(arguments).output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("utf-8")
}

/// Agents beside a live stand-in under write load.
pub(crate) fn accurev() -> (Pair, Server) {
    let pair = Pair::engine("accurev-4", "settle = \"0s\"\n");
    let live = pair.root(0);
    let path = live.to_str().expect("utf-8");
    standin(&["install", path, "--port", "0"]);
    let ready = pair.path("ready");
    let server = Command::new(live.join("bin/accurev_server"))
        .args(["--write-rate", "200", "--ready-file"])
        .arg(&ready)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the server starts");
    let server = Server(server);
    pair.eventually("the stand-in serves", || ready.exists());
    (pair, server)
}

#[test]
fn a_live_accurev_passes_and_its_damage_is_found() {
    let (pair, _server) = accurev();
    fs::write(pair.root(0).join("storage/stale"), "to be deleted").expect("write");
    assert_eq!(pair.run(0)["generation"], 1);
    assert!(pair.latest().join("storage/stale").exists());
    fs::remove_file(pair.root(0).join("storage/stale")).expect("remove");
    let delta = pair.run(0);
    assert!(!pair.latest().join("storage/stale").exists());
    let count = |name: &str| delta["counts"][name].as_u64().expect("count");
    assert!(count("bytesSent") < count("totalBytes") / 2, "{delta}");
    assert_eq!(pair.verified(), "generations/000002");
    // The configuration was patched in the workspace only.
    let cnf = |tree: &Path| fs::read(tree.join("bin/acserver.cnf")).expect("read");
    assert_eq!(cnf(&pair.latest()), cnf(&pair.root(0)));

    let damage = standin(&["damage", pair.root(0).to_str().expect("utf-8"), "flip-record"]);
    let failed = pair.run(1);
    assert_eq!((&failed["outcome"], &failed["generation"]), (&"OUTCOME_FAIL".into(), &3.into()), "{failed}");
    assert_eq!(pair.verified(), "generations/000002");
    let message = failed["message"].as_str().expect("text");
    assert!(damage.contains("element.ndb") && message.contains("element.ndb"), "{damage}{message}");
    // The verdict is the same at both ends, and says what was done.
    let at_target = fs::read(pair.path("store/repo/ledger/000000003.json")).expect("read");
    let id = failed["id"].as_str().expect("id");
    let at_source = fs::read(pair.path(&format!("state/repo/verdicts/{id}.json"))).expect("read");
    assert_eq!(at_target, at_source);
    let shown = pair.target(&["verdict", "show", "000000003"]);
    assert!(shown.stdout.contains("patched bin/acserver.cnf: MASTER_SERVER = "), "{shown:?}");
    // Checked again, each generation gives its outcome again; a failed one never becomes verified.
    assert_eq!(pair.target(&["verify", "--generation", "2"]).code, 0);
    assert_eq!(pair.target(&["verify", "--generation", "3"]).code, 1);
    assert_eq!(pair.verified(), "generations/000002");
    assert!(fs::read_dir(pair.path("store/repo/workspaces")).expect("read").next().is_none());
}

/// What the check cannot do its work without is INCONCLUSIVE, with a reason of its own, never FAIL.
#[test]
fn a_missing_licence_or_key_is_inconclusive() {
    let (pair, _server) = accurev();
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    let keys = pair.root(0).join("storage/site_slice/keys.txt");
    let licence = fs::read(&keys).expect("read");
    fs::remove_file(&keys).expect("remove");
    let run = pair.run(3);
    assert_eq!(
        (&run["outcome"], &run["reason"]),
        (&"OUTCOME_INCONCLUSIVE".into(), &"licence-missing".into()),
        "{run}"
    );
    fs::write(&keys, licence).expect("write");
    let cnf = pair.root(0).join("bin/acserver.cnf");
    let text = fs::read_to_string(&cnf).expect("read");
    fs::write(&cnf, text.replace("MASTER_SERVER", "#MASTER_SERVER")).expect("write");
    assert_eq!(pair.run(3)["reason"], "key-missing");
    // White space that AccuRev refuses is repaired in the workspace.
    fs::write(&cnf, text.replace("MASTER_SERVER = ", "MASTER_SERVER=")).expect("write");
    assert_eq!(pair.run(0)["outcome"], "OUTCOME_PASS");
    assert_eq!(pair.verified(), "generations/000004");
}

#[test]
fn a_live_sqlite_passes_and_its_damage_is_found() {
    let pair = Pair::engine("sqlite", "vars = { databases = [\"app.db\"] }\n");
    let database = pair.root(0).join("app.db");
    let open = || {
        let connection = rusqlite::Connection::open(&database).expect("open");
        connection.busy_timeout(std::time::Duration::from_secs(30)).expect("timeout");
        connection
    };
    let rows = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
        insert into t (a) select hex(randomblob(40)) from n;";
    open()
        .execute_batch(&format!(
            "pragma journal_mode = wal; create table t (a); create index i on t (a); {rows}"
        ))
        .expect("fill");
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2)
        .map(|_| {
            let (stop, connection) = (Arc::clone(&stop), open());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    connection.execute("insert into t (a) values (hex(randomblob(40)))", []).expect("insert");
                }
            })
        })
        .collect();
    for generation in 1..=3 {
        assert_eq!(pair.run(0)["generation"], generation);
    }
    // The copy is one state that the database has had: table and index agree, and it has all that was there before.
    // Unchangeable: else SQLite would put a log beside it, into the store.
    let copy = rusqlite::Connection::open_with_flags(
        format!("file:{}?immutable=1", pair.latest().join("app.db").display()),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_URI,
    )
    .expect("open");
    let count: i64 = copy.query_row("select count(*) from t", [], |row| row.get(0)).expect("count");
    assert!(count >= 20_000);
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().expect("writer"));
    open().query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())).expect("checkpoint");
    let file = File::options().write(true).open(&database).expect("open");
    file.write_all_at(&[0xa5; 4096], 4096 * 40).expect("damage");
    let failed = pair.run(1);
    assert_eq!(failed["outcome"], "OUTCOME_FAIL", "{failed}");
    // The engine itself made the copy, of one state: what is bad in it is bad in the database.
    assert_eq!(failed["attribution"]["fault"], "live", "{failed}");
    assert_eq!(pair.verified(), "generations/000003");
    // The checker would have found it anywhere.
    let control = pair.target(&["control"]);
    assert_eq!(control.code, 0, "{control:?}");
    assert!(
        control.stdout.contains("zero-page in app.db") && control.stdout.contains("truncate in app.db"),
        "{control:?}"
    );
}
