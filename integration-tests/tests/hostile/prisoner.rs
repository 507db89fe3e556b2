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

/// What a program of the copy tries to reach of the agent that checks it, of its keys, of the kernel and of this host. Each line of its output
/// is one thing that worked.
#[cfg(target_arch = "x86_64")]
fn attack(script: &str, prison: &Prison, abstract_name: &str) -> String {
    let pair = &prison.pair;
    let path = |name: &str| pair.path(name).display().to_string();
    let reads = [
        path("pki/target.key"),
        path("pki/target-signing.key"),
        path("pki/operator.key"),
        path("target.toml"),
        path("store/repo/ledger/000000001.json"),
        path("store/repo/index.redb"),
        "/etc/shadow".to_owned(),
        "/proc/kcore".to_owned(),
        "/proc/kmsg".to_owned(),
        "/proc/timer_list".to_owned(),
        format!("/proc/{}/environ", pair.process("target")),
        format!("/proc/{}/mem", pair.process("target")),
    ];
    let port = target_url(pair).rsplit(':').next().expect("a port").to_owned();
    script
        .replace("READS", &reads.map(|path| format!("'{path}'")).join(", "))
        .replace("AGENT", &pair.process("target").to_string())
        .replace("PORT", &port)
        .replace("ABSTRACT", abstract_name)
}

#[cfg(target_arch = "x86_64")]
const REACH: &str = r##"#!/usr/bin/perl
use strict; use Fcntl; use Socket; $| = 1;
sub told { print "OPEN $_[0]\n" }
for my $path (READS) { my $file; sysopen($file, $path, O_RDONLY | O_NONBLOCK) and sysread($file, my $byte, 1) and told("read $path") }
for my $path (glob('/proc/[0-9]*/environ')) { open(my $file, '<', $path) or next; local $/; my $all = <$file> // ''; $all =~ /words-of-the-agent/ and told("environment $path") }
kill(0, AGENT) and told('signal');
for my $fd (3 .. 64) { my $to = readlink("/proc/self/fd/$fd") // next; $to =~ m{^/proc/|attack$|^pipe:|^/dev/null$} or told("descriptor $fd $to") }
my ($tcp, $unix);
socket($tcp, AF_INET, SOCK_STREAM, 0) and connect($tcp, sockaddr_in(PORT, inet_aton('127.0.0.1'))) and told('tcp');
socket($unix, AF_UNIX, SOCK_STREAM, 0) and connect($unix, pack('S a*', AF_UNIX, "\0ABSTRACT")) and told('abstract socket');
"##;

/// What would harm a host that is not ready for it: for the prison alone.
#[cfg(target_arch = "x86_64")]
const FORCE: &str = r##"for my $path (glob('/proc/[0-9]*/mem'), glob('/proc/[0-9]*/oom_score_adj'), glob('/proc/[0-9]*/*_map'), '/proc/self/attr/current', '/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/sys/kernel/uevent_helper', '/sys/fs/cgroup/cgroup.procs') { sysopen(my $file, $path, O_WRONLY) and told("write $path") }
for my $family (17, 38, 40, 44) { my $socket; socket($socket, $family, SOCK_RAW, 0) and told("socket of family $family"); socket($socket, $family, SOCK_STREAM, 0) and told("socket of family $family") }
ioctl(STDIN, 0x5412, my $char = 'x') and told('terminal');
sysopen(my $tty, '/dev/tty', O_RDWR) and told('tty');
for my $path ('/new', '/etc/new', '/usr/new', '/dev/new', '/proc/new', '/run/assay-helper', '/etc/passwd', '/var/new') { sysopen(my $file, $path, O_WRONLY | O_CREAT) and told("write $path") }
for my $path (glob('/dev/*'), glob('/dev/*/*')) { (stat $path)[2] // next; -b _ and told("block device $path"); -c _ and $path !~ m{^/dev/(null|zero|full|random|urandom|tty|ptmx|pts/ptmx|fd/\d+|std(in|out|err))$} and told("device $path") }
my %calls = (ptrace => [101, 16, 1, 0, 0], process_vm_readv => [310, 1, 0, 0, 0, 0, 0], keyctl => [250, 0, -3, 1], add_key => [248, 'user', 'x', 'y', 1, -4],
    io_uring_setup => [425, 1, 0], bpf => [321, 0, 0, 0], userfaultfd => [323, 0], perf_event_open => [298, 0, 0, -1, -1, 0], unshare => [272, 0x10000000], 'unshare mount' => [272, 0x20000],
    'unshare net' => [272, 0x40000000], clone => [56, 0x10000011, 0, 0, 0, 0], clone3 => [435, 0, 0], mount => [165, 'none', '/tmp', 'tmpfs', 0, 0], 'mount proc' => [165, 'none', '/tmp', 'proc', 0, 0],
    'mount sysfs' => [165, 'none', '/tmp', 'sysfs', 0, 0], 'mount overlay' => [165, 'none', '/tmp', 'overlay', 0, 'lowerdir=/usr,upperdir=/tmp,workdir=/run'], fsopen => [430, 'proc', 0], open_tree => [428, -100, '/', 1],
    open_tree_attr => [467, -100, '/', 1, 0, 0], mount_setattr => [442, -100, '/', 0, 0, 0], pidfd_getfd => [438, 0, 0, 0], setns => [308, 0, 0x20000], chroot => [161, '/tmp'], pivot_root => [155, '/tmp', '/tmp'],
    mknod => [133, '/tmp/disk', 0x6180, 0x800], umount => [166, '/proc', 2], swapon => [167, '/tmp/x', 0], setuid => [105, 0], setgid => [106, 0], kcmp => [312, 1, 1, 0, 0, 0], open_by_handle_at => [304, -100, 0, 0],
    syslog => [103, 10, 0, 0], reboot => [169, 0, 0, 0, 0], init_module => [175, 0, 0, 0], kexec_load => [246, 0, 0, 0, 0], acct => [163, 0], sethostname => [170, 'x', 1], fanotify_init => [300, 0, 0], quotactl_fd => [443, 0, 0, 0, 0]);
for my $name (sort keys %calls) {
    my @call = @{$calls{$name}}; my $number = shift @call; $! = 0;
    my $done = eval { syscall($number, @call) };
    if ($name eq 'clone' && defined $done && $done == 0) { require POSIX; POSIX::_exit(0) }
    defined $done && $done >= 0 and told("call $name");
}
print 'uid ', join(' ', $<, $>, (split ' ', $()[0]), "\n";
print "tried\n";
"##;

/// As an agent of root's, and as one of an ordinary user, whose steps run as that user: a check reaches neither the agent nor its keys, no
/// other process, nothing of the kernel, and no socket of this host.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_check_reaches_nothing_of_the_agent_that_started_it() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};

    assert!(rustix::process::geteuid().is_root(), "this test becomes another user: run it as root");
    const USER: u32 = 23_456;
    for user in [None, Some(USER)] {
        let pair = Pair::plain(1);
        pair.set_environment("target", &[("ASSAY_TEST_SECRET", "words-of-the-agent".to_owned())]);
        pair.configure("target", PLAIN_CHECK, r#"["{root}/attack"]"#);
        match user {
            None => pair.restart_with("target", "[tls]", "[tls]"),
            Some(user) => pair.restart_as("target", (user, user)),
        }
        let prison = Prison::new(pair);
        let name = format!("assay-test-{}-{}", std::process::id(), user.unwrap_or_default());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let _listener = UnixListener::bind_addr(&address).expect("bind");
        let program = attack(&[REACH, FORCE].concat(), &prison, &name);
        // What can be tried outside without harm works there, or the test would show nothing.
        let reach = attack(REACH, &prison, &name);
        let outside = std::process::Command::new("perl").args(["-e", &reach]).output().expect("perl");
        let outside = String::from_utf8_lossy(&outside.stdout).into_owned();
        for worked in ["OPEN read", "OPEN signal", "OPEN tcp", "OPEN abstract socket", "OPEN environment"] {
            assert!(outside.contains(worked), "{worked}: {outside}");
        }
        let owner = user.unwrap_or(1000);
        let mut tree = Tree::upon(0, &prison.pair.root(0));
        tree.put(Entry { uid: owner, gid: owner, ..folder("") }, None);
        let mut evil = file("attack", program.as_bytes());
        (evil.uid, evil.gid, evil.mode) = (owner, owner, 0o755);
        tree.put(evil, Some(program.as_bytes()));
        let verdict = prison.send(&tree).expect("it is sealed");
        assert_eq!(verdict.outcome, Outcome::Pass, "{}", verdict.message);
        let said = &verdict.steps[0].output_tail;
        assert_eq!(said.trim(), format!("uid {owner} {owner} {owner}\ntried"), "{user:?}");
        let isolation = verdict.workspace.expect("there was one").isolation;
        assert!(isolation.contains(&format!("user:{}", user.unwrap_or(65_530))), "{isolation:?}");
    }
}
