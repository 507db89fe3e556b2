//! The system calls that a check has no use for: a filter that bubblewrap loads before the step starts.
//!
//! A check reads files and may start the copied server. It does not mount, trace other processes, load code into the
//! kernel, set clocks, make namespaces, or open sockets of families that a network namespace does not hold back (vsock
//! reaches the hypervisor). What is refused ends with an error, not with a signal: a program that merely tries goes on.
//!
//! The filter is written here and not by a library, because old servers are 32-bit programs: `seccompiler` kills every
//! program of another architecture than the one that the filter was made for, and does not know that x32 calls reach the
//! same functions by other numbers. A list of what is refused, not of what is allowed: nobody knows what the engines of
//! operators call.

/// The classic BPF instruction of `struct sock_filter`, with the numbers of `linux/bpf_common.h` and `linux/seccomp.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    value: u32,
}

const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const REFUSE: u32 = 0x0005_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;

/// Offsets in `struct seccomp_data`. The first argument's low half, on little-endian machines.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const SECOND_ARGUMENT: u32 = 24;

/// Every flag of clone(2) that makes a namespace.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;
/// The one kind of namespace that setns(2) may enter: the start of a step enters its user namespace after the filter is
/// loaded. The step itself can make no other, and is refused its own.
const CLONE_NEWUSER: u32 = 0x1000_0000;
/// x32 calls have this bit.
const X32: u32 = 0x4000_0000;
/// AF_UNIX, AF_INET, AF_INET6, and AF_NETLINK, by which the C library finds the host's addresses.
const FAMILIES: [u32; 4] = [1, 2, 10, 16];

/// The numbers of one architecture.
struct Table {
    /// `AUDIT_ARCH_…`
    architecture: u32,
    has_x32: bool,
    clone: u32,
    /// The C library falls back to clone, whose flags can be read.
    clone3: u32,
    socket: u32,
    /// Refused but for user namespaces; `None`: it is among those that are refused.
    setns: Option<u32>,
    refused: &'static [u32],
}

macro_rules! numbers {
    ($($name:ident)*) => { &[$(libc::$name as u32),*] };
}

#[cfg(target_arch = "x86_64")]
const ONLY_HERE: &[u32] = numbers![SYS_iopl SYS_ioperm SYS_kexec_file_load SYS_uselib];
#[cfg(target_arch = "aarch64")]
const ONLY_HERE: &[u32] = &[];

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const NATIVE: &[u32] = numbers![
    SYS_acct SYS_add_key SYS_adjtimex SYS_bpf SYS_clock_adjtime SYS_clock_settime SYS_delete_module SYS_fanotify_init
    SYS_finit_module SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick SYS_init_module SYS_io_uring_enter
    SYS_io_uring_register SYS_io_uring_setup SYS_kcmp SYS_kexec_load SYS_keyctl SYS_lookup_dcookie SYS_mount
    SYS_mount_setattr SYS_move_mount SYS_open_by_handle_at SYS_open_tree SYS_perf_event_open SYS_pivot_root
    SYS_process_vm_readv SYS_process_vm_writev SYS_ptrace SYS_quotactl SYS_reboot SYS_request_key SYS_setdomainname
    SYS_sethostname SYS_settimeofday SYS_swapoff SYS_swapon SYS_syslog SYS_umount2 SYS_unshare
    SYS_userfaultfd SYS_vhangup
];

/// Calls that are newer than the tables of the C library here, with one number on all architectures: pidfd_getfd takes a descriptor out of
/// another process, quotactl_fd and open_tree_attr are new ways to what is refused above.
const NEWER: &[u32] = &[438, 443, 467];

/// The same calls of 32-bit programs, by the numbers of the kernel's `asm/unistd_32.h`, with those that exist only there
/// (stime, umount, clock_settime64, clock_adjtime64).
#[cfg(target_arch = "x86_64")]
const I386: &[u32] = &[
    51, 286, 124, 357, 343, 264, 129, 338, 350, 431, 432, 430, 433, 128, 426, 427, 425, 349, 283, 288, 253,
    21, 442, 429, 342, 428, 336, 217, 347, 348, 26, 131, 88, 287, 121, 74, 346, 79, 115, 87, 103, 52, 310,
    374, 111, 110, 101, 86, 25, 22, 404, 405,
];

#[cfg(target_arch = "x86_64")]
const TABLES: &[Table] = &[
    Table {
        architecture: 0xc000_003e,
        has_x32: true,
        clone: libc::SYS_clone as u32,
        clone3: libc::SYS_clone3 as u32,
        socket: libc::SYS_socket as u32,
        setns: Some(libc::SYS_setns as u32),
        refused: NATIVE,
    },
    // A socket that is made by socketcall(2) cannot be told by its family: its arguments are in memory.
    Table {
        architecture: 0x4000_0003,
        has_x32: false,
        clone: 120,
        clone3: 435,
        socket: 359,
        setns: None,
        refused: I386,
    },
];
#[cfg(target_arch = "aarch64")]
const TABLES: &[Table] = &[Table {
    architecture: 0xc000_00b7,
    has_x32: false,
    clone: libc::SYS_clone as u32,
    clone3: libc::SYS_clone3 as u32,
    socket: libc::SYS_socket as u32,
    setns: Some(libc::SYS_setns as u32),
    refused: NATIVE,
}];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const TABLES: &[Table] = &[];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ONLY_HERE: &[u32] = &[];

/// The filter as bubblewrap reads it, or why there is none.
pub(super) fn filter() -> Result<Vec<u8>, &'static str> {
    if TABLES.is_empty() {
        return Err("no filter is written for this processor");
    }
    if !std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        return Err("this kernel has no seccomp filters");
    }
    let bytes = program().into_iter().flat_map(|it| {
        let [c0, c1] = it.code.to_ne_bytes();
        let [v0, v1, v2, v3] = it.value.to_ne_bytes();
        [c0, c1, it.jump_true, it.jump_false, v0, v1, v2, v3]
    });
    Ok(bytes.collect())
}

fn program() -> Vec<Instruction> {
    let mut program = vec![load(ARCHITECTURE)];
    for (index, table) in TABLES.iter().enumerate() {
        let block = block(table, if index == 0 { ONLY_HERE } else { &[] });
        // Over the next instruction when it is this architecture; a conditional jump does not reach over a block.
        program.push(jump(JUMP_EQUAL, table.architecture, 1, 0));
        program.push(Instruction { code: 0x05, jump_true: 0, jump_false: 0, value: block.len() as u32 });
        program.extend(block);
    }
    program.push(answer(REFUSE | ENOSYS));
    program
}

/// The decision about one architecture. It never falls out of its end.
fn block(table: &Table, further: &[u32]) -> Vec<Instruction> {
    let mut block = vec![load(NUMBER)];
    if table.has_x32 {
        block.extend([jump(JUMP_AT_LEAST, X32, 0, 1), answer(REFUSE | ENOSYS)]);
    }
    for number in table.refused.iter().chain(NEWER).chain(further) {
        block.extend([jump(JUMP_EQUAL, *number, 0, 1), answer(REFUSE | EPERM)]);
    }
    block.extend([jump(JUMP_EQUAL, table.clone3, 0, 1), answer(REFUSE | ENOSYS)]);
    block.extend([
        jump(JUMP_EQUAL, table.clone, 0, 4),
        load(FIRST_ARGUMENT),
        jump(JUMP_ANY_BIT, CLONE_NAMESPACES, 0, 1),
        answer(REFUSE | EPERM),
        answer(ALLOW),
    ]);
    if let Some(setns) = table.setns {
        block.extend([
            jump(JUMP_EQUAL, setns, 0, 4),
            load(SECOND_ARGUMENT),
            jump(JUMP_EQUAL, CLONE_NEWUSER, 0, 1),
            answer(ALLOW),
            answer(REFUSE | EPERM),
        ]);
    }
    block.extend([jump(JUMP_EQUAL, table.socket, 0, 2 * FAMILIES.len() as u8 + 2), load(FIRST_ARGUMENT)]);
    for family in FAMILIES {
        block.extend([jump(JUMP_EQUAL, family, 0, 1), answer(ALLOW)]);
    }
    block.extend([answer(REFUSE | EAFNOSUPPORT), answer(ALLOW)]);
    block
}

fn load(value: u32) -> Instruction {
    Instruction { code: LOAD, jump_true: 0, jump_false: 0, value }
}

fn jump(code: u16, value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, value }
}

fn answer(value: u32) -> Instruction {
    Instruction { code: RETURN, jump_true: 0, jump_false: 0, value }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// What the kernel does with a classic filter.
    fn decide(architecture: u32, number: u32, first: u32) -> u32 {
        let program = program();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let it = program[at];
            at += 1;
            let holds = match it.code {
                LOAD => {
                    accumulator = match it.value {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        FIRST_ARGUMENT | SECOND_ARGUMENT => first,
                        other => panic!("offset {other}"),
                    };
                    continue;
                }
                RETURN => return it.value,
                0x05 => {
                    at += it.value as usize;
                    continue;
                }
                JUMP_EQUAL => accumulator == it.value,
                JUMP_AT_LEAST => accumulator >= it.value,
                JUMP_ANY_BIT => accumulator & it.value != 0,
                other => panic!("code {other}"),
            };
            at += usize::from(if holds { it.jump_true } else { it.jump_false });
        }
    }

    #[test]
    fn both_architectures_are_filtered_and_others_refused() {
        const X86_64: u32 = 0xc000_003e;
        const I386: u32 = 0x4000_0003;
        let refused = REFUSE | EPERM;
        assert_eq!(decide(X86_64, libc::SYS_mount as u32, 0), refused);
        assert_eq!(decide(X86_64, libc::SYS_iopl as u32, 0), refused);
        for number in NEWER {
            assert_eq!([decide(X86_64, *number, 0), decide(I386, *number, 0)], [refused; 2], "{number}");
        }
        assert_eq!(decide(X86_64, libc::SYS_read as u32, 0), ALLOW);
        assert_eq!(decide(X86_64, libc::SYS_read as u32 | X32, 0), REFUSE | ENOSYS);
        assert_eq!(decide(X86_64, libc::SYS_clone as u32, libc::CLONE_NEWUSER as u32), refused);
        assert_eq!(decide(X86_64, libc::SYS_clone as u32, libc::CLONE_VM as u32), ALLOW);
        assert_eq!(decide(X86_64, libc::SYS_clone3 as u32, 0), REFUSE | ENOSYS);
        for kind in [0, libc::CLONE_NEWNS as u32, libc::CLONE_NEWNET as u32, u32::MAX] {
            assert_eq!(decide(X86_64, libc::SYS_setns as u32, kind), refused, "{kind:x}");
        }
        assert_eq!(decide(X86_64, libc::SYS_setns as u32, CLONE_NEWUSER), ALLOW);
        assert_eq!(decide(I386, 346, CLONE_NEWUSER), refused);
        for family in 0..50 {
            let expected = if FAMILIES.contains(&family) { ALLOW } else { REFUSE | EAFNOSUPPORT };
            assert_eq!(decide(X86_64, libc::SYS_socket as u32, family), expected, "{family}");
            assert_eq!(decide(I386, 359, family), expected, "{family}");
        }
        assert_eq!(decide(X86_64, libc::SYS_socketpair as u32, 1), ALLOW);
        assert_eq!((decide(I386, 21, 0), decide(I386, 3, 0)), (refused, ALLOW));
        assert_eq!(decide(0xc000_00b7, 0, 0), REFUSE | ENOSYS);
        assert!(program().len() < 4096, "the kernel takes no more");
    }

    /// The numbers of 32-bit calls are those of the kernel's own header, where this machine has it.
    #[test]
    fn the_numbers_of_32_bit_calls_are_the_kernels() {
        let Ok(header) = std::fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_32.h") else {
            eprintln!("linux-libc-dev is not installed: the numbers are not compared");
            return;
        };
        let names: Vec<_> = header
            .lines()
            .filter_map(|line| {
                let (name, number) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
                Some((name, number.trim().parse::<u32>().ok()?))
            })
            .filter(|(_, number)| I386.contains(number))
            .map(|(name, _)| name)
            .collect();
        let expected = "umount mount stime ptrace acct umount2 sethostname settimeofday swapon uselib reboot syslog \
             iopl ioperm vhangup swapoff setdomainname adjtimex init_module delete_module quotactl pivot_root \
             lookup_dcookie clock_settime kexec_load add_key request_key keyctl unshare perf_event_open \
             fanotify_init open_by_handle_at clock_adjtime setns process_vm_readv process_vm_writev kcmp \
             finit_module bpf userfaultfd clock_settime64 clock_adjtime64 io_uring_setup io_uring_enter \
             io_uring_register open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr";
        let mut expected: Vec<_> = expected.split_whitespace().collect();
        let mut names = names;
        expected.sort_unstable();
        names.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!(names.len(), I386.len(), "each once");
    }
}
