//! Small shell scripts stand in for checkers. They lie in the generation, as a copied server's programs do.

use super::*;
use crate::workspace::{Oddities, Preference, RootView, WorkspaceOptions};
use assay_common::profile::{Depth, TargetNames};
use std::{
    ffi::OsStr,
    os::unix::fs::{PermissionsExt as _, symlink},
    process::Command,
};

/// A generation with one root, and what a repository's configuration would say of it.
struct Bed {
    temp: tempfile::TempDir,
    context: CheckContext,
    roots: Vec<RootView>,
    profile: String,
}

const HEAD: &str = "name = 'x'\ndescription = 'x'\nversion = '1'\ndepth = 'L2'\n";
const CHECK: &str = "[[check]]\nname = 'check'\nargv = ['{root}/bin/check', '{root}']\nfail_exit = [1]\n";

impl Bed {
    fn new(script: &str) -> Self {
        let temp = tempfile::tempdir().expect("temp");
        let bed = Self {
            roots: vec![RootView {
                name: "main".into(),
                live_path: "/opt/assay-test/live root".into(),
                subdirectory: String::new(),
            }],
            context: CheckContext {
                target: TargetNames {
                    fqdn: Some("copy.example.org".into()),
                    host: Some("copy".into()),
                    address: Some("192.0.2.7".into()),
                },
                ..Default::default()
            },
            profile: format!("{HEAD}{CHECK}"),
            temp,
        };
        bed.write("bin/check", &format!("#!/bin/sh\n{script}\n"), 0o755);
        bed
    }

    fn tree(&self) -> PathBuf {
        self.temp.path().join("tree")
    }

    fn write(&self, path: &str, text: &str, mode: u32) {
        let path = self.tree().join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("mkdir");
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    fn keys(mut self, keys: &str) -> Self {
        self.profile.push_str(keys);
        self.profile.push('\n');
        self
    }

    fn live(mut self, path: &str) -> Self {
        self.roots[0].live_path = path.into();
        self
    }

    fn isolation(mut self, isolation: Isolation) -> Self {
        self.context.isolation = isolation;
        self
    }

    fn run(&self) -> CheckReport {
        let profile =
            Profile::parse(Path::new("x.toml"), &self.profile).unwrap_or_else(|error| panic!("{error}"));
        self.run_profile(&profile)
    }

    fn options(&self) -> WorkspaceOptions {
        WorkspaceOptions {
            generation_tree: self.tree(),
            roots: self.roots.clone(),
            directory: self.temp.path().join("workspaces"),
            preference: Preference::Auto,
            account: self.context.account,
            oddities: Oddities::default(),
            special_files: false,
        }
    }

    fn run_profile(&self, profile: &Profile) -> CheckReport {
        let mut workspace = Workspace::create(&self.options()).expect("workspace");
        let report = run_check(profile, &mut workspace, &self.context, &mut |_| {});
        workspace.remove().expect("removed");
        report
    }
}

mod confinement;

fn output(report: &CheckReport) -> String {
    let step = report.steps.last().unwrap_or_else(|| panic!("no step ran: {report:#?}"));
    String::from_utf8_lossy(&step.stdout.head).into_owned()
}

#[track_caller]
fn assert_ends(report: &CheckReport, outcome: Outcome, reason: &str) {
    assert_eq!((report.outcome, report.reason.as_str()), (outcome, reason), "{report:#?}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// False, with a note, where this machine cannot make sandboxes.
fn can_isolate() -> bool {
    let setpriv = process::find_program(OsStr::new("setpriv"));
    let able = launch::probe(Path::new("bwrap"), setpriv.as_deref(), is_root(), None);
    if let Err(why) = &able {
        eprintln!("{why}: what needs a sandbox is not tested");
    }
    able.is_ok()
}

/// With and without a sandbox.
const BOTH: [Isolation; 2] = [Isolation::Auto, Isolation::None];

/// A word that no other process on this machine has in its arguments.
fn unique_number() -> String {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    format!("9{:015}", RandomState::new().build_hasher().finish() >> 16)
}

fn is_running(argument: &str) -> bool {
    let running = |entry: fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|it| it == argument.as_bytes())
    };
    fs::read_dir("/proc").expect("list").flatten().any(running)
}

#[test]
fn a_check_that_finds_nothing_passes() {
    for isolation in BOTH {
        let report = Bed::new("echo all good").keys("must_match = ['^all good$']").isolation(isolation).run();
        assert_ends(&report, Outcome::Pass, "check-passed");
        assert_eq!(report.depth, Some(Depth::L2));
        let step = &report.steps[0];
        assert_eq!(step.end, StepEnd::Exited(0));
        assert_eq!(step.stdout.head, b"all good\n");
        assert_eq!(step.stdout.digest, blake3::hash(b"all good\n").to_hex().as_str());
        if isolation == Isolation::None {
            let said = |it: &String| it == "network-namespace: switched off in the configuration";
            assert!(report.not_isolated.iter().any(said), "{report:#?}");
        }
    }
}

#[test]
fn a_check_that_finds_damage_fails_with_its_findings() {
    let script = "echo 'dbcheck: page 7 is bad'; echo 'dbcheck: page 9 is bad' >&2; exit 1";
    let report = Bed::new(script).keys("findings = '^dbcheck: (.* bad)$'").run();
    assert_ends(&report, Outcome::Fail, "damage-found");
    assert_eq!(report.steps[0].findings, ["page 7 is bad", "page 9 is bad"]);
    // A pattern speaks whatever the exit code says.
    let keys = "fail_patterns = [{ pattern = 'is bad$', reason = 'bad-page' }]";
    let report = Bed::new("echo page is bad").keys(keys).run();
    assert_ends(&report, Outcome::Fail, "bad-page");
}

/// Only what the profile names is an answer.
#[test]
fn what_is_not_understood_is_inconclusive() {
    let reason = |script: &str, keys: &str| {
        let report = Bed::new(script).keys(keys).run();
        assert_eq!(report.outcome, Outcome::Inconclusive, "{report:#?}");
        assert_eq!(report.depth, None);
        report.reason
    };
    assert_eq!(reason("exit 7", ""), "unexpected-exit");
    assert_eq!(reason("exit 130", ""), "check-killed");
    assert_eq!(reason("kill -SEGV $$", ""), "check-killed");
    assert_eq!(reason("true", "must_match = ['good']"), "unexpected-output");
    assert_eq!(
        reason("exit 10", "inconclusive_exit = [{ code = 10, reason = 'licence-missing' }]"),
        "licence-missing"
    );
    let keys = "inconclusive_patterns = [{ pattern = '^no licence', reason = 'licence-missing' }]";
    assert_eq!(reason("echo no licence; exit 1", keys), "licence-missing");
    // Even where damage is said as well: what a crippled checker says of the data is worth nothing.
    assert_eq!(reason("exec 2>&1; head -c 3000000 /dev/zero", ""), "output-too-long");
}

#[test]
fn a_program_that_cannot_be_executed_is_missing_and_never_damage() {
    for isolation in BOTH {
        let mut bed = Bed::new("exit 0").isolation(isolation);
        bed.profile = bed.profile.replace("{root}/bin/check", "{root}/bin/none");
        assert_ends(&bed.run(), Outcome::Inconclusive, "program-missing");
        bed.profile = bed.profile.replace("{root}/bin/none", "assay-no-such-program");
        assert_ends(&bed.run(), Outcome::Inconclusive, "program-missing");
        let bed = Bed::new("exit 0").isolation(isolation);
        bed.write("bin/check", "#!/no/such/shell\n", 0o755);
        assert_ends(&bed.run(), Outcome::Inconclusive, "program-missing");
        bed.write("bin/check", "#!/bin/sh\n", 0o644);
        assert_ends(&bed.run(), Outcome::Inconclusive, "program-missing");
    }
}

#[test]
fn a_check_without_end_is_killed_with_all_that_it_started() {
    for isolation in BOTH {
        let number = unique_number();
        let script = format!("echo begun; sleep {number} & mkfifo fifo; cat fifo");
        let report = Bed::new(&script).keys("timeout = '300ms'").isolation(isolation).run();
        assert_ends(&report, Outcome::Inconclusive, "check-timeout");
        assert_eq!(report.steps[0].end, StepEnd::TimedOut);
        assert!(!is_running(&number));
    }
}

#[test]
fn a_cancelled_check_is_killed() {
    let bed = Bed::new("sleep infinity");
    let profile = Profile::parse(Path::new("x.toml"), &bed.profile).expect("valid");
    let mut workspace = Workspace::create(&bed.options()).expect("workspace");
    let cancel = bed.context.cancel.clone();
    let report = run_check(&profile, &mut workspace, &bed.context, &mut |progress| {
        if matches!(progress, Progress::StepStarted { .. }) {
            cancel.cancel();
        }
    });
    assert_ends(&report, Outcome::Inconclusive, "check-cancelled");
}

#[test]
fn a_daemon_does_not_survive_its_check() {
    for isolation in BOTH {
        let number = unique_number();
        let script = format!("setsid sleep {number} </dev/null >/dev/null 2>&1 & sleep {number} & echo good");
        let report = Bed::new(&script).keys("must_match = ['^good$']").isolation(isolation).run();
        assert_ends(&report, Outcome::Pass, "check-passed");
        assert!(!is_running(&number));
    }
}

/// Much output is no fault: all of it is searched and digested, some of it is kept.
#[test]
fn a_flood_of_output_is_read_whole_and_kept_in_part() {
    const BYTES: usize = 64 * 1024 * 1024;
    let script = format!("yes | head -c {BYTES}; echo all good; yes n | head -c {BYTES} >&2");
    let report = Bed::new(&script).keys("must_match = ['^all good$']\noutput_limit = 4096").run();
    assert_ends(&report, Outcome::Pass, "check-passed");
    let captured = &report.steps[0].stdout;
    assert_eq!(captured.bytes, BYTES as u64 + 9);
    assert_eq!((captured.head.len(), captured.tail.len()), (2048, 2048));
    assert!(captured.tail.ends_with(b"y\nall good\n"));
    let mut whole = b"y\n".repeat(BYTES / 2);
    whole.extend_from_slice(b"all good\n");
    assert_eq!(captured.digest, blake3::hash(&whole).to_hex().as_str());
}

/// A check that sees itself as root reads no key of this host: of `/etc` it sees a list, and a profile that would show a key
/// is refused.
#[test]
fn a_check_that_runs_as_root_reads_no_key() {
    if !is_root() || !can_isolate() {
        return;
    }
    let host = tempfile::tempdir().expect("temp");
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    for folder in ["keys", "tools"] {
        fs::create_dir(host.path().join(folder)).expect("mkdir");
    }
    fs::write(host.path().join("keys/agent.key"), "agent's secret").expect("write");
    fs::write(host.path().join("tools/tool"), "shown").expect("write");
    let script = format!(
        "id -u; cat '{0}/tools/tool'; echo; cat '{0}/keys/agent.key' /etc/shadow /etc/assay/ca/ca.key; ls -A /etc/ssh\n\
         cat /etc/ssl/private/*; find /etc -name '*.key'; find /etc -maxdepth 1 -mindepth 1 | sort",
        host.path().display()
    );
    let mut bed = Bed::new(&script).keys("run_as = 'root'").isolation(Isolation::Require);
    bed.context.visible = vec![host.path().join("tools")];
    bed.context.hidden = vec![host.path().join("keys/agent.key"), host.path().join("is not there")];
    let report = bed.run();
    let said = output(&report);
    assert!(said.starts_with("0\nshown\n/etc/"), "{report:#?}");
    let made = ["/etc/hosts", "/etc/passwd", "/etc/group", "/etc/ssl", "/etc/pki", "/etc/default"];
    for name in said.lines().skip(2) {
        assert!(etc::SHOWN.contains(&name) || made.contains(&name), "{name}: {said}");
    }
    for shown in [host.path().to_owned(), host.path().join("keys"), "/etc".into(), "/etc/ssl/private".into()]
    {
        bed.context.visible = vec![shown];
        assert_ends(&bed.run(), Outcome::Inconclusive, "configuration");
    }
}

/// The copied server sees its files where they are live, and nothing else of this host that it could harm.
#[test]
fn the_sandbox_shows_live_paths_and_nothing_of_the_store() {
    if !can_isolate() {
        return;
    }
    for live in [
        "/opt/assay-test/live root",
        "/tmp/assay-test/x",
        "/usr/local/assay-test/x",
        "/etc/assay-test",
        "/home/x",
        "/var/lib/x",
    ] {
        let mut bed = Bed::new("").live(live).isolation(Isolation::Require);
        let script = format!(
            "#!/bin/sh\necho \"$0|$1|$PWD\"\nls -A '{}' 2>/dev/null && echo store\ntouch /usr/x /etc/x 2>/dev/null && echo host\n\
             echo new > \"$1/new\" && cat \"$1/new\"\ncut -d: -f1 /proc/net/dev | tail -n +3\nls / | tr '\\n' ' '\nexit 0",
            bed.temp.path().display()
        );
        bed.write("bin/check", &script, 0o755);
        if live.starts_with("/etc/") {
            assert_ends(&bed.run(), Outcome::Inconclusive, "live-path-unusable");
            bed.context.live_paths = Some(BTreeMap::from([("main".into(), live.into())]));
        }
        let report = bed.run();
        assert_ends(&report, Outcome::Pass, "check-passed");
        let said = output(&report);
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some(format!("{live}/bin/check|{live}|{live}").as_str()));
        assert_eq!(lines.next(), Some("new"), "{said}");
        assert_eq!(lines.next().map(str::trim), Some("lo"), "no network but its own: {said}");
        assert!(!lines.next().expect("the top folder").contains("root"), "{said}");
        assert!(!Path::new(live).exists(), "nothing is made on the host");
        assert!(report.isolation.contains(&"network-namespace".into()));
    }
}

#[test]
fn the_check_believes_to_be_on_this_host_and_finds_its_names() {
    if !can_isolate() {
        return;
    }
    let report = Bed::new("hostname; getent hosts copy.example.org").run();
    assert_ends(&report, Outcome::Pass, "check-passed");
    let said = output(&report);
    let own = rustix::system::uname().nodename().to_str().expect("UTF-8").to_owned();
    assert_eq!(said.lines().next(), Some(own.as_str()));
    assert!(said.lines().nth(1).is_some_and(|line| line.starts_with("192.0.2.7")), "{said}");
}

/// A step sees itself as the owner of what it checks, and on this host it is the configured user, whatever the tree says.
#[test]
fn the_check_sees_itself_as_the_owner_and_is_nobody_here() {
    if !is_root() || !can_isolate() {
        return;
    }
    let number = unique_number();
    let script = "id -u; id -g; id -G; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; touch \"$1/new\" \"$TMPDIR/x\"\n\
         stat -c %u:%g \"$1\" \"$1/new\"; cat \"$1/foreign\" || echo refused; echo $TMPDIR; sleep ";
    let script = format!("{script}{number}");
    for (owner, foreign, caps) in [
        (0, "secret", "000000000000001b"),
        (1234, "refused", "0000000000000000"),
        (65_530, "refused", "0000000000000000"),
        (33, "refused", "0000000000000000"),
    ] {
        let bed = Bed::new(&script).keys("timeout = '20s'");
        bed.write("foreign", "secret\n", 0o600);
        chown(bed.tree().join("foreign"), Some(77), Some(77)).expect("chown");
        chown(bed.tree(), Some(owner), Some(owner)).expect("chown");
        // Looked at from outside, while it runs.
        let cancel = bed.context.cancel.clone();
        let ids = std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let ids = wait_for_ids(&number);
                cancel.cancel();
                ids
            });
            let report = bed.run();
            assert_ends(&report, Outcome::Inconclusive, "check-cancelled");
            let expected = format!(
                "{owner}\n{owner}\n{owner}\nCapEff:\t{caps}\nCapBnd:\t{caps}\nNoNewPrivs:\t1\n{owner}:{owner}\n{owner}:{owner}\n{foreign}\n{}\n",
                sandbox::SCRATCH
            );
            assert_eq!(output(&report), expected, "{report:#?}");
            assert!(report.isolation.contains(&"user:65530".into()) && report.steps[0].uid == 65_530);
            assert!(report.isolation.contains(&"user-namespace".into()));
            looking.join().expect("looked")
        });
        assert_eq!(ids, ["65530 65530 65530 65530", "65530 65530 65530 65530", ""], "{owner}");
    }
}

/// The numbers that the kernel has outside for the `sleep` of a check with this argument: users, groups, further groups.
fn wait_for_ids(argument: &str) -> [String; 3] {
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::time::Instant::now() < patience {
        for entry in fs::read_dir("/proc").expect("list").flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            if line == format!("sleep\0{argument}\0").as_bytes() && status.contains("\nSeccomp:\t2\n") {
                let field = |name: &str| {
                    let found = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
                    found.split_whitespace().collect::<Vec<_>>().join(" ")
                };
                return [field("Uid:"), field("Gid:"), field("Groups:")];
            }
        }
        std::thread::yield_now();
    }
    panic!("no process 'sleep {argument}' was seen");
}

#[test]
fn roots_stand_where_they_are_live_even_within_each_other() {
    if !can_isolate() {
        return;
    }
    let root = |name: &str, live: &str| RootView {
        name: name.into(),
        live_path: live.into(),
        subdirectory: name.into(),
    };
    let mut bed = Bed::new("");
    bed.roots = vec![
        root("main", "/opt/assay-test"),
        root("data", "/opt/assay-test/storage/deep"),
        root("far", "/srv/far"),
    ];
    bed.write(
        "main/bin/check",
        "#!/bin/sh\ncat /opt/assay-test/storage/deep/d /srv/far/f\necho \"$1\"\n",
        0o755,
    );
    bed.write("data/d", "data\n", 0o644);
    bed.write("far/f", "far\n", 0o644);
    bed.profile = bed.profile.replace("'{root}']", "'{root.data}']");
    let report = bed.run();
    assert_ends(&report, Outcome::Pass, "check-passed");
    assert_eq!(output(&report), "data\nfar\n/opt/assay-test/storage/deep\n");
    // A link from the source where the inner root goes: nothing is mounted through it.
    symlink("/etc", bed.tree().join("main/storage")).expect("symlink");
    assert_ends(&bed.run(), Outcome::Inconclusive, "live-path-unusable");
    assert_ends(&Bed::new("").live("/usr").run(), Outcome::Inconclusive, "live-path-unusable");
}

#[test]
fn required_isolation_that_is_not_there_is_inconclusive() {
    let mut bed = Bed::new("exit 0").isolation(Isolation::Require);
    bed.context.sandbox_program = "/no/such/bwrap".into();
    assert_ends(&bed.run(), Outcome::Inconclusive, "isolation-unavailable");
    bed.context.isolation = Isolation::Auto;
    let report = bed.run();
    assert_ends(&report, Outcome::Pass, "check-passed");
    let said = |it: &String| it.starts_with("live-paths: bubblewrap (bwrap) is not installed");
    assert!(report.not_isolated.iter().any(said), "{report:#?}");
    // A bubblewrap that fails with a code that means damage to the profile.
    bed.write(
        "../bwrap",
        "#!/bin/sh\ncase \"$*\" in *json*) echo 'bwrap: no' >&2; exit 1;; esac\nexit 0\n",
        0o755,
    );
    bed.context.sandbox_program = bed.temp.path().join("bwrap");
    assert_ends(&bed.run(), Outcome::Inconclusive, "isolation-failed");
}

const MAINTAIN: &str = r#"
cd "$(dirname "$0")/.." || exit 14
[ -e storage/site_slice/keys.txt ] || { echo "maintain: license file not found"; exit 10; }
host=$(sed -n 's/^MASTER_SERVER = //p' bin/acserver.cnf)
[ -n "$host" ] || { echo "maintain: 'MASTER_SERVER' not found"; exit 12; }
[ "$host" = "$(cat accepted)" ] || { echo "maintain: host name error"; exit 11; }
grep -q bad table && { echo "dbcheck: table is damaged"; exit 1; }
echo "dbcheck: 1 table, no problems found"
"#;

fn accurev() -> (Bed, Profile) {
    let bed = Bed::new("");
    bed.write("bin/maintain", &format!("#!/bin/sh\n{MAINTAIN}"), 0o755);
    bed.write(
        "bin/acserver.cnf",
        "# MASTER_SERVER = x\nMASTER_SERVER=live.example.org \nPORT = 5050\n",
        0o644,
    );
    bed.write("storage/site_slice/keys.txt", "licence", 0o600);
    bed.write("table", "good", 0o644);
    bed.write("accepted", "copy.example.org", 0o644);
    (bed, Profile::builtin("accurev-4").expect("built in"))
}

/// Full name, short name, address: the next only on a host name error.
#[test]
fn host_names_are_tried_in_turn() {
    for (accepted, attempts) in [("copy.example.org", 1), ("copy", 2), ("192.0.2.7", 3)] {
        let (bed, profile) = accurev();
        bed.write("accepted", accepted, 0o644);
        let report = bed.run_profile(&profile);
        assert_ends(&report, Outcome::Pass, "check-passed");
        assert_eq!((report.steps.len(), report.patches.len()), (attempts, attempts));
        let last = report.patches.last().expect("patched");
        assert_eq!(
            (last.record.value.as_str(), last.attempt, last.root.as_str()),
            (accepted, attempts - 1, "main")
        );
        assert_eq!(report.overlay_files.len(), 1);
        assert!(!report.overlay_files[0].from_operator);
    }
    let (bed, profile) = accurev();
    bed.write("accepted", "other", 0o644);
    let report = bed.run_profile(&profile);
    assert_ends(&report, Outcome::Inconclusive, "host-name-error");
    assert!(
        report.message.contains("MASTER_SERVER = copy.example.org, MASTER_SERVER = copy, "),
        "{}",
        report.message
    );
    let (mut bed, profile) = accurev();
    bed.write("accepted", "other", 0o644);
    bed.context.patch_values = BTreeMap::from([("MASTER_SERVER".into(), vec!["other".into()])]);
    assert_ends(&bed.run_profile(&profile), Outcome::Pass, "check-passed");
    let (mut bed, profile) = accurev();
    bed.context.target = TargetNames::default();
    assert_ends(&bed.run_profile(&profile), Outcome::Inconclusive, "no-candidate");
}

#[test]
fn accurevs_traps_are_inconclusive_and_its_damage_is_a_fail() {
    let (bed, profile) = accurev();
    bed.write("table", "bad", 0o644);
    let report = bed.run_profile(&profile);
    assert_ends(&report, Outcome::Fail, "damage-found");
    assert_eq!(
        (report.steps.len(), &report.steps[0].findings[..]),
        (1, &["table is damaged".to_owned()][..])
    );

    let (mut bed, profile) = accurev();
    fs::remove_file(bed.tree().join("storage/site_slice/keys.txt")).expect("unlink");
    assert_ends(&bed.run_profile(&profile), Outcome::Inconclusive, "licence-missing");
    let licence = bed.temp.path().join("licence");
    fs::write(&licence, "mine").expect("write");
    bed.context.overlay_files = BTreeMap::from([("storage/site_slice/keys.txt".into(), licence.clone())]);
    let report = bed.run_profile(&profile);
    assert_ends(&report, Outcome::Pass, "check-passed");
    assert!(report.overlay_files[0].from_operator);
    bed.context.overlay_files = BTreeMap::from([("keys.txt".into(), licence)]);
    assert_ends(&bed.run_profile(&profile), Outcome::Inconclusive, "configuration");

    for (text, reason) in
        [("PORT = 1\n", "key-missing"), ("MASTER_SERVER = a\nMASTER_SERVER = b\n", "key-twice")]
    {
        let (bed, profile) = accurev();
        bed.write("bin/acserver.cnf", text, 0o644);
        assert_ends(&bed.run_profile(&profile), Outcome::Inconclusive, reason);
    }
    let (bed, profile) = accurev();
    fs::remove_file(bed.tree().join("bin/acserver.cnf")).expect("unlink");
    assert_ends(&bed.run_profile(&profile), Outcome::Inconclusive, "configuration-missing");
    let (bed, profile) = accurev();
    bed.write("bin/maintain", "#!/bin/sh\nexit 0\n", 0o755);
    assert_ends(&bed.run_profile(&profile), Outcome::Inconclusive, "unexpected-output");
}

#[test]
fn a_step_runs_once_for_each_member_of_a_list() {
    let text = "[vars.files]\nmeaning = 'files'\nlist = true\n[[check]]\nname = 'one'\nfor_each = 'files'\n\
                argv = ['{root}/bin/check', '{root}/{var.files}']\nfail_exit = [1]\n";
    let mut bed = Bed::new("test -e \"$1\" || exit 1");
    bed.profile = format!("{HEAD}{text}");
    let profile = Profile::parse(Path::new("x.toml"), &bed.profile).unwrap_or_else(|error| panic!("{error}"));
    let given = BTreeMap::from([("files".into(), Value::List(vec!["a b".into(), "d/c".into()]))]);
    bed.context.vars = profile.bind(&given, &["main"]).expect("fits");
    bed.write("a b", "", 0o644);
    bed.write("d/c", "", 0o644);
    let report = bed.run_profile(&profile);
    assert_ends(&report, Outcome::Pass, "check-passed");
    let names: Vec<_> = report.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["one a b", "one d/c"]);
    fs::remove_file(bed.tree().join("d/c")).expect("unlink");
    let report = bed.run_profile(&profile);
    assert_ends(&report, Outcome::Fail, "damage-found");
    assert_eq!(report.steps.last().expect("a step").name, "one d/c");
}

#[test]
fn the_generic_profile_runs_the_operators_command() {
    let profile = Profile::builtin("generic").expect("built in");
    for (script, outcome) in
        [("exit 0", Outcome::Pass), ("exit 1", Outcome::Fail), ("exit 2", Outcome::Inconclusive)]
    {
        let mut bed = Bed::new(script);
        let given =
            BTreeMap::from([("check".into(), Value::List(vec!["{root}/bin/check".into(), "-x".into()]))]);
        bed.context.vars = profile.bind(&given, &["main"]).expect("fits");
        assert_eq!(bed.run_profile(&profile).outcome, outcome);
    }
}
