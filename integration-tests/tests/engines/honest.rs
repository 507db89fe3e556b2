//! Sound repositories of every engine pass, and the negative control finds its damage: under agents of root's and of ordinary users, on
//! every kind of file system that a store may be on.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use rusqlite::Connection;

use crate::{
    file_systems::Kind,
    hostile_copies::newest,
    live::run,
    pair::{Pair, program},
    postgresql::agents_with,
};

/// Every engine, file system and user, which takes a quarter of an hour.
const ALL: &str = "ASSAY_ALL_FILE_SYSTEMS";
/// Nobody's on a usual host.
const USER: (u32, u32) = (23_456, 23_456);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    PostgreSql,
    Subversion,
    Sqlite,
    Git,
    Accurev,
}

const ENGINES: [Engine; 5] =
    [Engine::PostgreSql, Engine::Subversion, Engine::Sqlite, Engine::Git, Engine::Accurev];

/// A server of the stand-in, which ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A command as another user.
fn as_user((user, group): (u32, u32), program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
    command.arg("--").arg(program).stdin(Stdio::null()).current_dir("/");
    command
}

fn give(folder: &Path, (user, group): (u32, u32)) {
    run(Command::new("chown").arg("-hR").arg(format!("{user}:{group}")).arg(folder));
}

/// A sound repository of this engine, checked twice, its checker proven in between.
fn passes(engine: Engine, store: Option<Kind>, is_root: bool) {
    let case = format!("{engine:?} on {store:?}, {}", if is_root { "root" } else { "an ordinary user" });
    let make = |profile: &str, keys: &str| {
        let pair = match store {
            None => Pair::engine(profile, keys),
            Some(kind) => Pair::engine_stored_on(kind, profile, keys),
        };
        pair.unproved()
    };
    let mut owner = USER;
    let mut servers = Vec::new();
    let mut cluster = None;
    let pair = match engine {
        Engine::PostgreSql => {
            let (pair, live) = agents_with(&["--data-checksums"], |keys| make("postgresql", keys));
            live.query("CREATE TABLE t AS SELECT n, repeat('x', 90) v FROM generate_series(1, 3000) n; CREATE INDEX ON t (n)");
            let stat = fs::metadata(pair.root(0)).expect("stat");
            owner = (stat.uid(), stat.gid());
            cluster = Some(live);
            pair
        }
        Engine::Subversion => {
            let pair = make("subversion", "");
            run(Command::new("svnadmin").arg("create").arg(pair.root(0)));
            fs::write(pair.path("file"), "content\n".repeat(500)).expect("write");
            run(Command::new("svn")
                .args(["--non-interactive", "--quiet", "import", "-m", "first"])
                .arg(pair.path("file"))
                .arg(format!("file://{}/file", pair.root(0).display())));
            pair
        }
        Engine::Sqlite => {
            let pair = make("sqlite", "vars = { databases = [\"app.db\"] }\n");
            let database = Connection::open(pair.root(0).join("app.db")).expect("open");
            database
                .execute_batch(
                    "create table t (n integer primary key, v text); create index t_v on t (v);
                     insert into t with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
                     select i, 'row ' || i from n;",
                )
                .expect("fill");
            pair
        }
        Engine::Git => {
            let pair = make("git", "");
            let git = |arguments: &[&str]| {
                let mut command = Command::new("git");
                command.args(["-c", "user.name=A", "-c", "user.email=a@example.org", "-C"]).arg(pair.root(0));
                command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
                run(command.args(arguments))
            };
            git(&["init", "-q", "-b", "main", "--bare", "."]);
            let tree = git(&["mktree"]);
            for number in 0..20 {
                let commit = git(&["commit-tree", "-m", &format!("{number}"), tree.trim()]);
                git(&["update-ref", &format!("refs/heads/b{number}"), commit.trim()]);
            }
            pair
        }
        Engine::Accurev => {
            let pair = make("accurev-4", "settle = \"0s\"\n");
            let root = pair.root(0);
            run(Command::new(program("accurev-standin"))
                .arg("install")
                .arg(&root)
                .args(["--port", "0", "--major", "4"]));
            let user = if is_root { (0, 0) } else { USER };
            give(&root, user);
            if !is_root {
                // The mark is made by the source: its files are to be the server's.
                pair.restart_as("source", user);
            }
            let ready = root.join("ready");
            let mut server = as_user(user, &root.join("bin/accurev_server"));
            server.args(["--write-rate", "50", "--ready-file"]).arg(&ready);
            let child = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
            servers.push(Server(child));
            pair.eventually("the stand-in serves", || ready.exists());
            pair
        }
    };
    if !is_root {
        if !matches!(engine, Engine::PostgreSql | Engine::Accurev) {
            give(&pair.root(0), owner);
        }
        pair.restart_as("target", owner);
    }
    let passed = |number: usize| {
        let done = pair.run(0);
        assert_eq!(done["outcome"], "OUTCOME_PASS", "{case}, run {number}: {done}\n{}", pair.logs());
        let used = newest(&pair).workspace.expect("there was one");
        assert!(used.isolation.contains(&"user-namespace".to_owned()), "{case}: {used:?}");
    };
    passed(1);
    let control = pair.target(&["control"]);
    assert_eq!(control.code, 0, "{case}: {control:?}\n{}", pair.logs());
    passed(2);
    drop(cluster);
    drop(servers);
}

/// An agent that is not root checks as its own user, in namespaces: every engine's tools work there.
#[test]
fn sound_repositories_pass_under_an_agent_that_is_not_root() {
    for engine in ENGINES {
        passes(engine, None, false);
    }
}

/// The whole matrix when it is asked for; else two of its cells that no other test has.
#[test]
fn sound_repositories_pass_on_every_file_system() {
    if std::env::var_os(ALL).is_none_or(|value| value != "1") {
        println!("{ALL}=1 tries every engine on every file system");
        passes(Engine::Sqlite, Some(Kind::Xfs), false);
        passes(Engine::PostgreSql, Some(Kind::Btrfs), true);
        return;
    }
    for store in [Kind::Ext4, Kind::Xfs, Kind::Btrfs] {
        for engine in ENGINES {
            for is_root in [true, false] {
                passes(engine, Some(store), is_root);
                println!(
                    "PASS twice, control FAIL as it must: {engine:?}, {store:?}, {}",
                    if is_root { "root" } else { "ordinary user" }
                );
            }
        }
    }
}
