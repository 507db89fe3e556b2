//! A source that was taken over and attacks through the check: by owners, by programs in the copy, by live paths, by special files.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use assay_common::{
    manifest::{Entry, EntryKind, Root},
    signing::VerifyingKey,
    verdict::{Outcome, Verdict, verify_verdict},
};
use integration_tests::evil::source::{End, EvilSource, Tree, file, folder};

use crate::{
    ground::target_url,
    pair::{PLAIN_CHECK, Pair},
};

/// A target with one repository, and the source that lies to it.
struct Prison {
    pair: Pair,
    source: EvilSource,
    runtime: tokio::runtime::Runtime,
    target_key: VerifyingKey,
}

impl Prison {
    fn new(pair: Pair) -> Self {
        pair.kill("source");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let url = target_url(&pair);
        let source = runtime.block_on(EvilSource::connect(&pair.path("pki"), &url)).expect("it is let in");
        let target_key = VerifyingKey::load(&pair.path("pki/target-signing.pub")).expect("key");
        Self { pair, source, runtime, target_key }
    }

    /// The check is a program of the copy.
    fn with_a_program_of_the_copy() -> Self {
        let pair = Pair::plain(1);
        pair.restart_with("target", PLAIN_CHECK, r#"["{root}/evil", "{root}"]"#);
        Self::new(pair)
    }

    /// The verdict on a tree, or the target's refusal to seal it.
    fn send(&self, tree: &Tree) -> Result<Verdict, String> {
        let run = self.source.run_id();
        self.runtime.block_on(async {
            let opened = self.source.open(self.source.opening(&run)).await.expect("a run is opened");
            match self.source.play(self.source.script(&run, opened.generation, tree)).await {
                End::Refused(call, fault) => Err(format!("{call}: {fault:?}")),
                End::Verdict(envelope) => {
                    let key = self.source.key.verifying_key();
                    let verified = verify_verdict(envelope.as_bytes(), &self.target_key, Some(&key));
                    Ok(verified.expect("it is the target's").verdict)
                }
            }
        })
    }
}

/// Owners of the tree are numbers inside the check's own world: it writes nothing of the kernel's and reads no key, whoever the
/// tree says that it is.
#[test]
fn owners_of_a_tree_are_nobody_on_the_target() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let prison = Prison::with_a_program_of_the_copy();
    let secret = prison.pair.path("pki/target.key");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("chmod");
    let script = format!(
        "#!/bin/sh\nid -u; id -g\n\
         for name in kernel/core_pattern vm/overcommit_memory fs/protected_symlinks; do\n\
         value=$(cat /proc/sys/$name); (echo \"$value\" >/proc/sys/$name) 2>/dev/null && echo wrote $name; done\n\
         (echo h >/proc/sysrq-trigger) 2>/dev/null && echo wrote sysrq\n\
         cat {} /etc/shadow /etc/ssl/private/* 2>/dev/null && echo read\n\
         find / -xdev -name '*.key' 2>/dev/null | grep -v /usr/\n\
         cp /bin/sh $1/shell && chmod 6755 $1/shell\nexit 0\n",
        secret.display()
    );
    for (uid, gid) in [(0, 0), (0, 103), (1000, 42), (65_530, 0), (33, 6)] {
        let mut tree = Tree::upon(0, &prison.pair.root(0));
        tree.put(Entry { uid, gid, ..folder("") }, None);
        let mut evil = file("evil", script.as_bytes());
        (evil.uid, evil.gid, evil.mode) = (uid, gid, 0o755);
        tree.put(evil, Some(script.as_bytes()));
        let verdict = prison.send(&tree).expect("it is sealed");
        assert_eq!(verdict.outcome, Outcome::Pass, "{}", verdict.message);
        assert_eq!(verdict.steps[0].output_tail.trim(), format!("{uid}\n{gid}"), "{uid} {gid}");
        let used = verdict.workspace.expect("there was one");
        assert!(used.isolation.contains(&"user-namespace".to_owned()), "{used:?}");
        let users: Vec<_> = used.isolation.iter().filter(|it| it.starts_with("user:")).collect();
        assert!(matches!(users[..], [user] if user == "user:65530"), "{used:?}");
        assert!(
            used.not_isolated.is_empty() || !used.not_isolated.iter().any(|it| it.starts_with("user")),
            "{used:?}"
        );
    }
    let workspaces = fs::metadata(prison.pair.path("store/repo/workspaces")).expect("stat");
    assert_eq!(workspaces.permissions().mode() & 0o7777, 0o700);
}

/// A second root that is said to be live where the profile shows the checker does not become the checker.
#[test]
fn no_root_takes_the_place_of_the_checker() {
    let tables = "[sandbox]\nvisible = [\"TOOLS\"]\n[[check]]\nname = \"verify\"\nargv = [\"TOOLS/bin/verify\", \"{root}/data\"]\nfail_exit = [1]\n";
    let tools = tempfile::Builder::new().prefix("assay-tools-").tempdir().expect("temp");
    fs::set_permissions(tools.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::create_dir(tools.path().join("bin")).expect("mkdir");
    let verify = tools.path().join("bin/verify");
    fs::write(&verify, "#!/bin/sh\ngrep -q bad \"$1\" && exit 1; exit 0\n").expect("write");
    fs::set_permissions(&verify, fs::Permissions::from_mode(0o755)).expect("chmod");
    let tables = tables.replace("TOOLS", tools.path().to_str().expect("UTF-8"));
    let prison = Prison::new(Pair::with_profile(&tables, ""));
    let with_second = |live: &Path| {
        let mut tree = Tree::upon(0, &prison.pair.root(0));
        tree.header.roots[0].subdirectory = "root0".to_owned();
        let live_path = live.to_str().expect("UTF-8").to_owned();
        tree.header.roots.push(Root { name: "x".to_owned(), live_path, subdirectory: "x".to_owned() });
        let evil = b"#!/bin/sh\nexit 0\n";
        let executable = |path: &str| Entry { mode: 0o755, ..file(path, evil) };
        tree.put(folder(""), None);
        tree.put(folder("root0"), None);
        tree.put(file("root0/data", b"bad"), Some(b"bad"));
        tree.put(folder("x"), None);
        tree.put(folder("x/bin"), None);
        tree.put(executable("x/bin/verify"), Some(evil));
        tree.put(executable("x/verify"), Some(evil));
        tree
    };
    let honest = tree_at(&prison, &prison.pair.root(0));
    assert_eq!(prison.send(&honest).expect("sealed").outcome, Outcome::Fail);
    let above = tools.path().parent().expect("a folder");
    for live in [
        tools.path(),
        &tools.path().join("bin"),
        above,
        &tools.path().join("lib"),
        "/usr/local/bin".as_ref(),
        "/etc/ld.so.conf.d".as_ref(),
    ] {
        let verdict = prison.send(&with_second(live)).expect("sealed");
        let ended = (verdict.outcome, verdict.reason.as_str());
        assert_eq!(
            ended,
            (Outcome::Inconclusive, "live-path-unusable"),
            "{}: {}",
            live.display(),
            verdict.message
        );
    }
    // The target's own word comes before the source's.
    let live_paths = "profile = \"profile.toml\"\nlive_paths = { root0 = \"/srv/assay-here\" }\n";
    prison.pair.restart_with("target", "profile = \"profile.toml\"\n", live_paths);
    let last = prison.source.run_id();
    let mut prison = Prison::new(prison.pair);
    prison.source = prison.source.after(&last);
    let verdict = prison.send(&tree_at(&prison, "/etc".as_ref())).expect("sealed");
    assert_eq!(verdict.outcome, Outcome::Fail, "{}", verdict.message);
    assert!(
        verdict.steps[0].argv.contains(&"/srv/assay-here/data".to_owned()),
        "{:?}",
        verdict.steps[0].argv
    );
}

/// A tree with bad data in its one root, which is said to be live at a path.
fn tree_at(prison: &Prison, live: &Path) -> Tree {
    let mut tree = Tree::upon(0, live);
    tree.put(folder(""), None);
    tree.put(file("data", b"bad"), Some(b"bad"));
    assert!(prison.pair.is_alive("target"));
    tree
}

/// A FIFO where the checker opens a file does not hold the check up, and the verdict names it.
#[test]
fn a_fifo_is_not_waited_for() {
    let pair = Pair::plain(1);
    pair.restart_with("target", PLAIN_CHECK, r#"["sh", "-c", "cat $PWD/data"]"#);
    let prison = Prison::new(pair);
    let mut tree = Tree::upon(0, &prison.pair.root(0));
    tree.put(folder(""), None);
    let mut fifo = file("data", b"");
    (fifo.kind, fifo.digest) = (EntryKind::Fifo.into(), Vec::new());
    tree.put(fifo, None);
    match prison.send(&tree) {
        // Where a target takes no FIFOs at all, none is in the way of a check.
        Err(refusal) => assert!(refusal.contains("data"), "{refusal}"),
        Ok(verdict) => {
            assert_ne!(verdict.outcome, Outcome::Pass);
            assert_ne!(verdict.reason, "check-timeout");
            assert!(verdict.message.contains("FIFOs or sockets: data"), "{}", verdict.message);
        }
    }
}
