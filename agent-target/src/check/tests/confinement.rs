//! Checkers that misbehave: what they use is limited, and what they reach is theirs.

use std::{
    io::Read as _,
    net::{TcpListener, UdpSocket},
    os::unix::fs::MetadataExt as _,
    process::Stdio,
};

use assay_common::config::Size;

use super::*;

impl Bed {
    fn limits(mut self, limits: &str) -> Self {
        self.profile.push_str(&format!("[limits]\n{limits}\n"));
        self
    }

    fn control_groups(mut self, wanted: bool) -> Self {
        self.context.control_groups = wanted;
        self
    }
}

fn has_control_groups() -> bool {
    let bounds = limits::Bounds::of(&Default::default());
    let made = cgroup::Group::create(&bounds);
    if let Err(why) = &made {
        eprintln!("{why}: the kernel's own limits are not tested");
    }
    made.is_ok()
}

/// By the kernel, and by the eye that is kept where there is no control group.
fn ways() -> Vec<bool> {
    if has_control_groups() { vec![true, false] } else { vec![false] }
}

/// What a checker says that ran into a limit is worth nothing, whether it was killed or ended by itself.
#[test]
fn a_checker_that_eats_memory_is_inconclusive() {
    if !can_isolate() {
        return;
    }
    for way in ways() {
        for script in ["tail /dev/zero; exit 1", "tail -c 1G /dev/zero >/tmp/x; sleep infinity; exit 1"] {
            let script = script.replace("tail -c", "head -c");
            let report = Bed::new(&script).limits("memory = '64MiB'").control_groups(way).run();
            assert_ends(&report, Outcome::Inconclusive, "memory-limit");
            let said = |it: &String| it.starts_with("memory-limit");
            assert_eq!(report.isolation.iter().any(said), way, "{report:#?}");
            assert_eq!(report.not_isolated.iter().any(said), !way, "{report:#?}");
        }
    }
}

#[test]
fn a_checker_that_forks_without_end_is_inconclusive() {
    if !can_isolate() {
        return;
    }
    for way in ways() {
        let report = Bed::new("while :; do sleep 1000 & done; exit 1")
            .limits("processes = 60")
            .control_groups(way)
            .run();
        assert_ends(&report, Outcome::Inconclusive, "process-limit");
    }
    // One that doubles is too fast to be watched: it is only for the kernel, or this host would suffer.
    if has_control_groups() {
        let report = Bed::new("f() { f & f & sleep 1000; }; f; exit 1").limits("processes = 60").run();
        assert_ends(&report, Outcome::Inconclusive, "process-limit");
    }
    assert_eq!(assay_common::profile::Limits::MIN_PROCESSES, 16, "the sandbox needs some");
    let report = Bed::new("exit 0").limits("processes = 16").run();
    assert_ends(&report, Outcome::Pass, "check-passed");
}

#[test]
fn a_checker_that_fills_the_disk_is_inconclusive() {
    for isolation in BOTH {
        // Into the workspace, and into its own folder, by one that has no end and by one that ends with a FAIL.
        for script in [
            "yes > \"$1/big\"",
            "head -c 40000000 /dev/zero > \"$1/big\"; exit 1",
            "head -c 40000000 /dev/zero > \"$TMPDIR/big\"; exit 1",
        ] {
            let report = Bed::new(script).limits("disk = '16MiB'").isolation(isolation).run();
            assert_ends(&report, Outcome::Inconclusive, "disk-limit");
        }
        let report = Bed::new("head -c 4000000 /dev/zero > \"$1/big\"")
            .limits("disk = '16MiB'")
            .isolation(isolation)
            .run();
        assert_ends(&report, Outcome::Pass, "check-passed");
    }
}

/// A file system of the test's own, of which the checker leaves nothing.
#[test]
fn a_store_without_room_is_inconclusive() {
    if !is_root() {
        return;
    }
    let bed = Bed::new("cat /dev/zero > \"$1/big\"; exit 1").limits("disk_reserve = '4MiB'");
    let folder = bed.temp.path().join("workspaces");
    fs::create_dir(&folder).expect("mkdir");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &folder, "tmpfs", flags, Some(c"size=32m")).expect("mount");
    let report = bed.run();
    let unmounted = rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::DETACH);
    assert_ends(&report, Outcome::Inconclusive, "disk-full");
    unmounted.expect("unmounted");
}

/// The configuration comes before the profile, and what is not there can be insisted upon.
#[test]
fn limits_come_from_the_configuration_and_can_be_insisted_upon() {
    let mut bed = Bed::new("head -c 40000000 /dev/zero > \"$1/big\"").limits("disk = '16MiB'");
    bed.context.limits.disk = Some(Size(64 << 20));
    assert_ends(&bed.run(), Outcome::Pass, "check-passed");
    let mut bed = Bed::new("exit 0").control_groups(false);
    bed.context.limits.require = Some(true);
    let report = bed.run();
    assert_ends(&report, Outcome::Inconclusive, "isolation-unavailable");
    assert!(report.message.contains("limits.require"), "{}", report.message);
    let bed = Bed::new("exit 0").limits("require = true").control_groups(false);
    assert_ends(&bed.run(), Outcome::Inconclusive, "isolation-unavailable");
}

/// No control group of ours outlives its step, and the processes in one do not either, sandbox or none.
#[test]
fn a_control_group_ends_with_its_step() {
    if !has_control_groups() {
        return;
    }
    let number = unique_number();
    // It throws away the environment by which it would be found.
    let script = format!("env -i setsid sleep {number} </dev/null >/dev/null 2>&1 & cat /proc/self/cgroup");
    let report = Bed::new(&script).isolation(Isolation::None).run();
    assert_ends(&report, Outcome::Pass, "check-passed");
    assert!(!is_running(&number));
    let said = output(&report);
    let name =
        said.lines().find_map(|line| Some(line.split_once("/assay-check-")?.1.to_owned())).expect("in one");
    let left =
        Command::new("find").args(["/sys/fs/cgroup", "-name", &format!("assay-check-{name}")]).output();
    assert_eq!(left.expect("find").stdout, b"", "{said}");
}

/// What an agent left that was killed is found when it starts again: by the folder that stands in the environment of what
/// ran without a sandbox.
#[test]
fn what_a_killed_agent_left_is_swept() {
    let bed = Bed::new("exit 0");
    let mut workspace = Workspace::create(&bed.options()).expect("workspace");
    let number = unique_number();
    let start = |folder: &Path| {
        let mut straggler = Command::new("sleep");
        straggler.arg(&number).env("ASSAY_CHECK_STEP", folder.join("step-0"));
        straggler.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts")
    };
    let mut straggler = start(&workspace.scratch());
    let mut other = start(Path::new("/somewhere/else"));
    assert_eq!(crate::workspace::sweep(&bed.temp.path().join("workspaces")).expect("swept"), 1);
    assert!(!straggler.wait().expect("waited").success(), "it was killed");
    assert!(other.try_wait().expect("looked").is_none(), "what is not ours is left alone");
    other.kill().expect("kill");
    other.wait().expect("wait");
    assert!(!workspace.path().exists());
    assert!(workspace.lay_file("main", &TreePath::default(), Path::new("/etc/hostname")).is_err());
}

/// A listener of the test on this host, by loopback and by the host's own address, hears nothing.
#[test]
fn a_checker_reaches_no_network() {
    if !can_isolate() {
        return;
    }
    let listener = TcpListener::bind("0.0.0.0:0").expect("bind");
    listener.set_nonblocking(true).expect("nonblocking");
    let port = listener.local_addr().expect("address").port();
    // No packet is sent: only the way is looked up. The address is one for documentation.
    let outside = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let mut addresses = vec!["127.0.0.1".to_owned()];
    addresses.extend(outside.ok().map(|address| address.ip().to_string()));
    for address in &addresses {
        let reached =
            Command::new("bash").args(["-c", &format!("echo hello >/dev/tcp/{address}/{port}")]).status();
        assert!(reached.expect("bash").success(), "the test itself reaches {address}");
        let (mut stream, _) = listener.accept().expect("heard");
        stream.read_to_string(&mut String::new()).expect("read");
    }
    let tries =
        addresses.iter().map(|it| format!("echo x 2>/dev/null >/dev/tcp/{it}/{port} && echo reached {it}\n"));
    let script = format!(
        "cat > $TMPDIR/s <<'END'\n{}END\nbash $TMPDIR/s 2>/dev/null\necho tried",
        tries.collect::<String>()
    );
    let report = Bed::new(&script).keys("must_match = ['^tried$']").run();
    assert_ends(&report, Outcome::Pass, "check-passed");
    assert_eq!(output(&report), "tried\n");
    assert_eq!(listener.accept().expect_err("nobody").kind(), io::ErrorKind::WouldBlock);
}

/// Nothing on the host changes, as root or as another, whatever is tried.
#[test]
fn a_checker_that_writes_outside_its_workspace_changes_nothing() {
    if !can_isolate() || !is_root() {
        return;
    }
    for owner in [0, 1234] {
        let name = format!("assay-{}", unique_number());
        let bed = Bed::new(&format!(
            "for folder in / /etc /usr /usr/bin /bin /tmp /var/tmp /run /dev /dev/shm /proc/sys/kernel /root /home '{}'; do \
             echo x > \"$folder/{name}\"; done\n\
             echo {name} > /proc/sys/kernel/hostname; echo 1 > /proc/sys/vm/drop_caches; hostname {name}\n\
             mount -t tmpfs none /mnt; mount -o remount,rw /usr; chmod 0777 /etc/passwd; mknod $TMPDIR/disk b 8 0\n\
             echo x > ../../{name}; kill -9 {}\necho tried",
            std::env::temp_dir().display(),
            std::process::id(),
        ));
        chown(bed.tree(), Some(owner), Some(owner)).expect("chown");
        let passwd = fs::metadata("/etc/passwd").expect("stat").mode();
        let report = bed.keys("must_match = ['^tried$']").run();
        assert_ends(&report, Outcome::Pass, "check-passed");
        assert_eq!(fs::metadata("/etc/passwd").expect("stat").mode(), passwd);
        assert_ne!(rustix::system::uname().nodename().to_str(), Ok(name.as_str()));
        for folder in
            ["/", "/etc", "/usr", "/usr/bin", "/tmp", "/var/tmp", "/run", "/dev", "/dev/shm", "/root"]
        {
            assert!(!Path::new(folder).join(&name).exists(), "{folder}");
        }
        assert!(!std::env::temp_dir().join(&name).exists());
    }
}

/// Nothing in `/proc` and `/sys` opens for writing, as whoever the tree names: where a file opens, its own value is written
/// back, and the test looks whether that worked.
#[test]
fn a_checker_writes_nothing_of_the_kernels() {
    if !can_isolate() {
        return;
    }
    const WALK: &str = r#"find /proc /sys -xdev -type f 2>/dev/null | perl -e '
        use Fcntl;
        my ($files, @open, @wrote) = (0);
        while (my $path = <STDIN>) {
            chomp $path; $files++;
            sysopen(my $file, $path, O_WRONLY | O_NONBLOCK) or next;
            push @open, $path;
            next if $path =~ /sysrq|clear_refs|drop_caches|reclaim/;
            sysopen(my $own, $path, O_RDONLY | O_NONBLOCK) or next;
            my $bytes = sysread($own, my $value, 4096);
            push @wrote, $path if $bytes && defined syswrite($file, $value);
        }
        print "files ", ($files > 1000 ? "many" : $files), "\nopen @open\nwrote @wrote\n";
    '; for folder in / /proc /proc/sys /sys; do mkdir $folder/new 2>/dev/null && echo made $folder; done; echo walked"#;
    for run_as in ["'owner'", "'root'", "1", "33", "101", "65534"] {
        for owner in if is_root() { &[0, 33, 1000, 65_534][..] } else { &[0][..] } {
            let bed = Bed::new(&WALK.replace("\\n", "\n"))
                .keys(&format!("run_as = {run_as}\nmust_match = ['^walked$']"));
            if is_root() {
                chown(bed.tree(), Some(*owner), Some(*owner)).expect("chown");
            }
            let report = bed.run();
            assert_ends(&report, Outcome::Pass, "check-passed");
            assert_eq!(
                output(&report),
                "files many\nopen \nwrote \nwalked\n",
                "{run_as} {owner}: {report:#?}"
            );
        }
    }
}

/// A program that would change its user does not, and the calls that no check needs are refused.
#[test]
fn a_checker_gets_no_new_privileges_and_few_system_calls() {
    if !can_isolate() || !is_root() {
        return;
    }
    let script = "\"$1/id\" -u; grep -E '^(NoNewPrivs|Seccomp|CapBnd):' /proc/self/status | tr -d '\\t' | tr '\\n' ' '; echo\n\
                  unshare --user true 2>/dev/null || echo no namespace\n\
                  perl -e 'socket(my $s, 40, 1, 0) or print qq($!\\n)'";
    let bed = Bed::new(script);
    chown(bed.tree(), Some(1234), Some(1234)).expect("chown");
    fs::copy("/usr/bin/id", bed.tree().join("id")).expect("copy");
    fs::set_permissions(bed.tree().join("id"), fs::Permissions::from_mode(0o4755)).expect("chmod");
    let report = bed.run();
    assert_ends(&report, Outcome::Pass, "check-passed");
    let said = output(&report);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(
        lines[..3],
        ["1234", "CapBnd:0000000000000000 NoNewPrivs:1 Seccomp:2 ", "no namespace"],
        "{said}"
    );
    assert!(lines[3].contains("Address family not supported"), "vsock reaches the hypervisor: {said}");
    assert!(report.isolation.contains(&"system-call-filter".into()));
}

/// A 32-bit program runs, and the filter speaks its numbers: it ends with what unshare(0) gave it, and that is EPERM.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_32_bit_checker_runs_and_is_filtered() {
    if !can_isolate() {
        return;
    }
    let code = [
        0xb8, 0x36, 0x01, 0, 0, // mov eax, 310 (unshare)
        0x31, 0xdb, // xor ebx, ebx
        0xcd, 0x80, // int 0x80
        0xf7, 0xd8, // neg eax
        0x89, 0xc3, // mov ebx, eax
        0xb8, 1, 0, 0, 0, // mov eax, 1 (exit)
        0xcd, 0x80, // int 0x80
    ];
    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2, 0, 3, 0, 1, 0, 0, 0]);
    for number in [0x0804_8054_u32, 52, 0, 0, 0x0020_0034, 1, 0, 1, 0, 0x0804_8000, 0x0804_8000] {
        elf.extend(number.to_le_bytes());
    }
    let length = 84 + code.len() as u32;
    for number in [length, length, 5, 0x1000] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(code);
    let bed = Bed::new("");
    fs::write(bed.tree().join("bin/check"), &elf).expect("write");
    if Command::new(bed.tree().join("bin/check")).status().is_err() {
        eprintln!("this kernel runs no 32-bit programs: the filter for them is not tested");
        return;
    }
    assert_eq!(bed.run().steps[0].end, StepEnd::Exited(1));
    let open = bed.isolation(Isolation::None).run();
    assert_eq!(open.steps[0].end, StepEnd::Exited(0));
}

/// More than a check may print ends it, whatever it says: one that goes on without end, and one that has ended meanwhile.
#[test]
fn a_checker_that_prints_too_much_is_inconclusive() {
    let keys = "must_match = ['^all good$']";
    for script in
        ["head -c 2000000 /dev/zero | tr '\\0' '\\n'; echo all good", "yes; exit 1", "yes >&2; exit 1"]
    {
        let report = Bed::new(script).keys(keys).limits("output = '1MiB'").run();
        assert_ends(&report, Outcome::Inconclusive, "output-limit");
    }
    // Both streams count together.
    let both = "head -c 700000 /dev/zero; head -c 700000 /dev/zero >&2; echo; echo all good";
    let report = Bed::new(both).keys(keys).limits("output = '1MiB'").run();
    assert_ends(&report, Outcome::Inconclusive, "output-limit");
    let report = Bed::new(both).keys(keys).limits("output = '2MiB'").run();
    assert_ends(&report, Outcome::Pass, "check-passed");
}

/// An exit code that means FAIL is not believed of a checker that says what was in its way. A pattern of damage is.
#[test]
fn a_checker_that_fails_for_what_it_may_not_do_is_inconclusive() {
    if !can_isolate() {
        return;
    }
    for owner in [0, 1234] {
        for (script, reason) in [
            ("bash -c 'echo x >/dev/tcp/192.0.2.1/25'", "network-refused"),
            ("bash -c 'echo x >/dev/tcp/127.0.0.1/25'", "network-refused"),
            ("bash -c 'echo x >/dev/tcp/host.example/25'", "network-refused"),
            ("echo x > /etc/passwd", "access-refused"),
            ("echo x > /usr/new", "access-refused"),
        ] {
            let bed = Bed::new(&format!("{script}; exit 1"));
            if is_root() {
                chown(bed.tree(), Some(owner), Some(owner)).expect("chown");
            }
            assert_ends(&bed.run(), Outcome::Inconclusive, reason);
            let damage = Bed::new(&format!("{script}; echo page 7 is bad; exit 1"))
                .keys("fail_patterns = [{ pattern = 'is bad$', reason = 'bad-page' }]");
            assert_ends(&damage.run(), Outcome::Fail, "bad-page");
        }
    }
}

/// What a step is asked at its prompts, and nothing else.
#[test]
fn a_step_reads_its_answers() {
    for isolation in BOTH {
        let bed = Bed::new("read -r one; read -r two; echo \"$one|$two\"; cat; echo end");
        let report = bed.keys("stdin = \"{target.host}\\ny\\n\"").isolation(isolation).run();
        assert_ends(&report, Outcome::Pass, "check-passed");
        assert_eq!(output(&report), "copy|y\nend\n");
    }
    let report = Bed::new("cat; echo end").run();
    assert_eq!(output(&report), "end\n");
}
