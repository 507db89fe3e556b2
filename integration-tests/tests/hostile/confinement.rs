//! What must stay absent from the code: file-system calls with names from a peer outside of the one module that owns them,
//! `unsafe`, limits that a peer sets, and switches that turn a check off.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use prost::Message as _;

use crate::pair::Pair;

/// Calls that take a name. Outside of `confined.rs` they may be made where the name is this program's own or this host's
/// administrator's: the files are listed with the reason.
const CALLS: &[&str] = &[
    "fs::read(",
    "fs::read_to_string(",
    "fs::read_dir(",
    "fs::read_link(",
    "fs::write(",
    "fs::copy(",
    "fs::rename(",
    "fs::remove_file(",
    "fs::remove_dir(",
    "fs::remove_dir_all(",
    "fs::create_dir(",
    "fs::create_dir_all(",
    "fs::hard_link(",
    "fs::metadata(",
    "fs::symlink_metadata(",
    "fs::set_permissions(",
    "fs::canonicalize(",
    "fs::exists(",
    "fs::open(",
    "fs::openat(",
    "fs::openat2(",
    "fs::mkdir(",
    "fs::mkdirat(",
    "fs::mknodat(",
    "fs::linkat(",
    "fs::symlink(",
    "fs::symlinkat(",
    "fs::rename(",
    "fs::renameat(",
    "fs::renameat_with(",
    "fs::unlink(",
    "fs::unlinkat(",
    "fs::readlinkat(",
    "fs::stat(",
    "fs::statat(",
    "fs::lstat(",
    "fs::statx(",
    "fs::chmod(",
    "fs::chmodat(",
    "fs::chown(",
    "fs::chownat(",
    "fs::utimensat(",
    "fs::accessat(",
    "fs::lsetxattr(",
    "fs::lgetxattr(",
    "fs::llistxattr(",
    "fs::lremovexattr(",
    "fs::setxattr(",
    "fs::getxattr(",
    "unix::fs::symlink",
    "unix::fs::chown",
    "unix::fs::lchown",
    "File::open(",
    "File::create(",
    "File::create_new(",
    "File::options(",
    "OpenOptions::",
    "DirBuilder::",
    ".is_dir()",
    ".exists()",
    ".symlink_metadata()",
    ".read_dir()",
];

/// Why a helper of a check step may follow a link: it sees nothing that a link could betray.
const IN_THE_SANDBOX: &str = "it runs as a check step, inside the sandbox and as its user, on a throw-away workspace: a link leads nowhere of the host's";

/// Files that make such calls, and whose names they are.
const ALLOWED: &[(&str, &str)] = &[
    (
        "common/src/confined.rs",
        "the module that owns them: one checked component below a held folder, or RESOLVE_BENEATH",
    ),
    (
        "common/src/confined/metadata.rs",
        "its part that sets metadata: the same checked component, by the held folder or a descriptor of what is in it",
    ),
    (
        "common/src/confined/node.rs",
        "its part that holds what was opened: the same checked component, below a held folder",
    ),
    (
        "common/src/fidelity/probe.rs",
        "files of its own, in a folder of its own that is opened and made by confined.rs",
    ),
    (
        "common/src/verdict/receipt.rs",
        "a folder of receipts that the operator or the store names, and in it the id of a verdict, nine digits",
    ),
    ("common/src/audit/intervals.rs", "lists the folder of receipts that the operator or the store names"),
    // This host's administrator named them.
    ("agent-source/src/cli/keys.rs", "the source's signing key, and the one beside it that is to follow"),
    ("agent-target/src/cli/keys.rs", "the target's signing key, and the one beside it that is to follow"),
    ("common/src/keyring.rs", "lists the folder of further keys beside a key's file"),
    ("agent-target/src/carried/inputs.rs", "reads the overlay files that the configuration names"),
    ("agent-target/src/carried/listing.rs", "the store's own name: a generation's manifest, by its number"),
    (
        "agent-target/src/carried/record.rs",
        "the store's own folder of records, and in it a digest in hexadecimal",
    ),
    (
        "common/src/restore/destination.rs",
        "the folder to restore into, from the command line; what is in it goes through confined.rs",
    ),
    (
        "agent-target/src/restore/mod.rs",
        "the store's own names: `verified`, a generation's folder by its number, its record",
    ),
    ("agent-target/src/restore/record.rs", "the store's own file of restores"),
    ("common/src/cli/mod.rs", "the configuration file, from the command line"),
    ("common/src/cli/verify.rs", "a verdict and a key, from the command line"),
    ("common/src/config.rs", "the configuration file"),
    (
        "common/src/config/files.rs",
        "lists the folder beside the configuration file, in which repositories have files of their own",
    ),
    ("common/src/profile/mod.rs", "a profile that the configuration names"),
    ("common/src/signing.rs", "keys and certificates that the configuration names"),
    ("common/src/tls/renewal.rs", "the same certificates, looked at again"),
    ("common/src/pki.rs", "the folder of a new authority"),
    (
        "common/src/pki/authority.rs",
        "the CAs that the configuration names, and the folders beside it in which keys are looked for",
    ),
    ("common/src/cli/pki.rs", "a folder of certificates, from the command line"),
    ("common/src/tls/revocation.rs", "the configuration, and a file that it names"),
    ("agent-source/src/config.rs", "live roots that the configuration names"),
    ("common/src/durable.rs", "files of the caller's own, replaced as a whole"),
    ("common/src/uncached.rs", "open files; its tests name their own"),
    ("common/src/error.rs", "none: it tells of paths"),
    ("common/src/ledger.rs", "numbers, in the ledger's folder"),
    // The source's own state, by the repository's configured name and by run ids.
    ("agent-source/src/state.rs", "the state folder: configured names, run ids"),
    ("agent-source/src/file_system.rs", "the kernel's lists of mounts and of file systems by their UUID"),
    ("agent-source/src/replicate/open.rs", "the kernel's setting of how long a lease is waited for"),
    ("agent-source/src/replicate/readings.rs", "the basis' own files, in the state folder"),
    ("agent-source/src/cli/mod.rs", "files that the operator names"),
    ("agent-source/src/cli/init.rs", "folders and files of a new configuration, from the command line"),
    ("agent-target/src/cli/init.rs", "folders and files of a new configuration, from the command line"),
    ("agent-target/src/cli/shares.rs", "the store, from the configuration"),
    ("agent-target/src/check/beforehand.rs", "programs that the profile and the configuration name"),
    (
        "agent-target/src/trust/programs.rs",
        "programs that the profile and the configuration name, read for their digests",
    ),
    ("common/src/notify/queues.rs", "the agent's own folder of notices, by its configured name"),
    ("agent-source/src/run/fetch.rs", "the basis' manifest, under a name of its own"),
    ("agent-source/src/run/roots.rs", "live roots that the configuration names"),
    (
        "agent-source/src/snapshot/mod.rs",
        "live roots, folders and snapshots that the configuration names, and the note in the state folder",
    ),
    ("agent-source/src/replicate/basis.rs", "the basis' files, under names of its own"),
    ("agent-source/src/replicate/basis/origin.rs", "the basis' files, under names of its own"),
    (
        "agent-source/src/replicate/block_memory.rs",
        "what is remembered of blocks, in the basis' folder and beside the steps",
    ),
    ("agent-source/src/replicate/spool.rs", "spooled steps, under names of its own"),
    ("agent-source/src/replicate/scan.rs", "none that it makes up: a held folder's entries, through Folder"),
    ("agent-source/src/replicate/compare.rs", "the walk's work files, under names of its own"),
    ("agent-source/src/replicate/early.rs", "the walk's work files, under names of its own"),
    (
        "agent-source/src/mark/mod.rs",
        "the mark's folder, and what the profile says must exist in the first root",
    ),
    (
        "agent-source/src/mark/postgresql.rs",
        "the mark's folder, and the data folder that the configuration names",
    ),
    ("agent-source/src/mark/sqlite.rs", "databases that the profile names, below the configured root"),
    // The target's own store: numbers and fixed names.
    ("agent-target/src/store/mod.rs", "numbers and fixed names in the store"),
    ("agent-target/src/store/staging.rs", "numbers and fixed names in staging"),
    ("agent-target/src/store/usage.rs", "the store's own count"),
    ("agent-target/src/store/index.rs", "the chunk index and its journal"),
    ("agent-target/src/receive/base.rs", "manifest and positions of a numbered generation"),
    ("agent-target/src/seal/mod.rs", "fixed names in staging and in a numbered generation"),
    ("agent-target/src/seal/draft.rs", "fixed names in staging and in a numbered generation"),
    ("agent-target/src/ahead/tree.rs", "fixed names beside the generations"),
    (
        "agent-target/src/ahead/copies.rs",
        "numbers and a fixed name beside the generations; entries through Folder",
    ),
    ("agent-target/src/seal/build.rs", "none: through Folder"),
    ("agent-target/src/service/replication/mod.rs", "the manifest of a numbered generation"),
    ("agent-target/src/repository/mod.rs", "the store's own folder"),
    ("agent-target/src/repository/verdicts.rs", "folders of numbered generations"),
    ("agent-target/src/trust/control.rs", "the control's record, under a name of its own"),
    ("agent-target/src/trust/readback.rs", "manifest of a numbered generation; entries through Folder"),
    ("agent-target/src/trust/difference.rs", "manifests of numbered generations"),
    ("agent-target/src/trust/damage.rs", "files of a workspace, through open_beneath"),
    ("agent-target/src/cli/mod.rs", "files that the operator names"),
    // Throw-away views. Names of the tree are resolved by open_beneath; what is made beside has names of its own.
    (
        "agent-target/src/workspace.rs",
        "the workspace's folder; below it, a parent through open_beneath and one checked component",
    ),
    ("agent-target/src/patch.rs", "a parent through open_beneath, and one component of a TreePath"),
    ("common/src/closed.rs", "modes of the store's and the state's own folders and files"),
    ("agent-target/src/check/passage.rs", "the folders of the store above a workspace"),
    ("agent-target/src/check/mod.rs", "the scratch folder of a check"),
    (
        "agent-target/src/check/launch.rs",
        "a step's files beside its scratch folder; mount points by one component each",
    ),
    ("agent-target/src/check/process.rs", "programs that the profile names"),
    ("agent-target/src/leftover.rs", "the kernel's files"),
    ("agent-target/src/check/sandbox.rs", "folders of this host that the sandbox shows or hides"),
    // Helpers of check steps.
    ("agent-target/src/engine/git/lfs.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/git/mod.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/git/view.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/known_parts.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/postgresql/checksums.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/postgresql/commits.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/postgresql/entries.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/postgresql/cluster.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/postgresql/files.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/postgresql/ground.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/postgresql/prepare.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/postgresql/server.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/sqlite/carried.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/sqlite/mod.rs", IN_THE_SANDBOX),
    ("agent-target/src/engine/subversion/mod.rs", IN_THE_SANDBOX),
    // Retention, scrub, the ledger's audit: numbers and fixed names; entries through Folder.
    ("common/src/audit.rs", "numbers, in a ledger's folder that the operator names"),
    ("agent-target/src/cli/ledger.rs", "a ledger's folder that the operator names"),
    ("agent-target/src/keep/pins.rs", "the record of pins, under a name of its own"),
    ("agent-target/src/keep/rot.rs", "the record of rot, under a name of its own"),
    ("agent-target/src/keep/scrub.rs", "manifests of numbered generations; entries through Folder"),
    ("agent-target/src/keep/heal.rs", "a folder of its own in the store; entries through Folder"),
    ("agent-target/src/keep/bench.rs", "a test's own"),
    // Commands and the host's own files.
    ("common/src/outbox/peer.rs", "a file that the configuration names"),
    (
        "common/src/notify/mailbox.rs",
        "a folder of the agent's own by a way's plain name from the configuration; in it numbers and a fixed name",
    ),
    ("common/src/cli/join.rs", "a file that the operator names"),
    ("common/src/cli/doctor.rs", "files that the configuration names"),
    ("common/src/cli/pages.rs", "a folder that the operator names"),
    ("common/src/fault/plan.rs", "a trace that a test names"),
    ("common/src/writable.rs", "a file of its own in a folder that the configuration names"),
    ("common/src/verdict/acknowledgement.rs", "numbered files of its own beside the ledger"),
    ("common/src/audit/notes.rs", "numbered files of its own beside the ledger"),
    ("agent-source/src/mark/progress.rs", "the agent's state"),
    (
        "agent-source/src/mark/sqlite/usage.rs",
        "only the size and times beside a database on the live host, which are not followed through a link; and a file of the kernel's",
    ),
    ("agent-source/src/replicate/readings/clock.rs", "the kernel's files"),
    ("agent-source/src/cli/restore.rs", "the agent's state, below a repository that the configuration names"),
    ("agent-source/src/cli/doctor.rs", "folders that the configuration names"),
    ("agent-source/src/cli/init.rs", "a folder that the operator names"),
    ("agent-target/src/cli/init.rs", "the configuration and its keys; a source's name in one is a plain one"),
    ("agent-source/src/run/plan.rs", "what the profile says must exist in the first root"),
    ("common/src/format.rs", "a file of its own in a folder that the configuration names"),
    ("agent-source/src/cli/detect.rs", "a folder that the operator names"),
    ("agent-target/src/cli/doctor.rs", "folders that the configuration names"),
    ("agent-target/src/check/cgroup.rs", "the kernel's files"),
    ("agent-target/src/check/etc.rs", "this host's accounts, and files of the workspace's scratch folder"),
    ("agent-target/src/config/account.rs", "this host's accounts"),
    ("agent-target/src/userns.rs", "the kernel's files"),
    ("agent-target/src/workspace/oddities.rs", "the store's own names"),
    ("agent-target/src/check/limits.rs", "the kernel's files"),
    ("agent-target/src/check/seccomp.rs", "the kernel's files"),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

/// The agents' sources with their paths below the workspace, tests left out.
fn sources() -> Vec<(String, String)> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("read") {
            let path = entry.expect("read").path();
            if path.is_dir() && !path.ends_with("tests") {
                below(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for part in ["common/src", "agent-source/src", "agent-target/src", "proto/src"] {
        below(&workspace().join(part), &mut found);
    }
    let name = |path: &Path| path.strip_prefix(workspace()).expect("below").display().to_string();
    let text = |path: &Path| {
        let text = fs::read_to_string(path).expect("read");
        // Tests stand at the end.
        text.split("#[cfg(test)]\nmod tests {").next().expect("the beginning").to_owned()
    };
    found.iter().map(|path| (name(path), text(path))).collect()
}

#[test]
fn names_from_peers_reach_the_file_system_through_one_module() {
    let mut strangers = BTreeSet::new();
    for (name, text) in sources() {
        let calls = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let calls: Vec<_> = calls.filter(|line| CALLS.iter().any(|call| line.contains(call))).collect();
        if !calls.is_empty() && !ALLOWED.iter().any(|(allowed, _)| *allowed == name) {
            strangers.insert(format!("{name}: {}", calls[0].trim()));
        }
    }
    assert!(
        strangers.is_empty(),
        "these make file-system calls that take names. Names from a peer, a manifest or a tree go through \
         common/src/confined.rs; what has a name of its own is listed in ALLOWED, with the reason:\n{}",
        strangers.into_iter().collect::<Vec<_>>().join("\n")
    );
    assert!(ALLOWED.iter().all(|(_, reason)| !reason.is_empty()));
    let gone: Vec<_> = ALLOWED.iter().filter(|(name, _)| !workspace().join(name).is_file()).collect();
    assert!(gone.is_empty(), "listed, and not there: {gone:?}");
}

/// The calls that take a held folder and a name belong to the module, and to the few that hold a folder which it opened.
#[test]
fn calls_with_a_folder_and_a_name_are_few() {
    const AT: &[&str] = &[
        "openat(",
        "openat2(",
        "mkdirat(",
        "linkat(",
        "renameat(",
        "renameat_with(",
        "unlinkat(",
        "mknodat(",
        "chownat(",
    ];
    const HOLDERS: &[&str] = &[
        "common/src/confined.rs",
        "common/src/confined/metadata.rs",
        "common/src/confined/node.rs",
        "common/src/durable.rs",
        "agent-target/src/workspace.rs",
        "agent-target/src/patch.rs",
        "agent-target/src/check/launch.rs",
        // A new log beside a database, in a workspace, below a folder that the module opened.
        "agent-target/src/trust/damage.rs",
    ];
    for (name, text) in sources() {
        let found = AT.iter().find(|call| text.contains(&format!("fs::{call}")));
        assert!(
            found.is_none() || HOLDERS.contains(&name.as_str()),
            "{name} calls {found:?}: let common/src/confined.rs do it"
        );
    }
}

#[test]
fn there_is_no_unsafe_code() {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml")).expect("read");
    assert!(manifest.contains("unsafe_code = \"forbid\""));
    for crate_name in ["common", "proto", "agent-source", "agent-target", "integration-tests"] {
        let manifest = fs::read_to_string(workspace().join(crate_name).join("Cargo.toml")).expect("read");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{crate_name}");
    }
}

/// The versions of libraries with advisories of their own (RUSTSEC-2024-0003, RUSTSEC-2026-0258).
#[test]
fn h2_is_new_enough() {
    let lock = fs::read_to_string(workspace().join("Cargo.lock")).expect("read");
    let version = lock.split("name = \"h2\"\nversion = \"").nth(1).and_then(|rest| rest.split('"').next());
    let parts: Vec<u32> =
        version.expect("it is there").split('.').map(|part| part.parse().expect("a number")).collect();
    assert!(parts >= vec![0, 4, 16], "{parts:?}");
}

/// No field of the contract lets a peer set a time, a number of threads, or a limit of ours. An operator's list may be short.
#[test]
fn peers_set_no_limits_of_ours() {
    let set = prost_types::FileDescriptorSet::decode(assay_proto::DESCRIPTORS).expect("the build wrote it");
    let messages =
        set.file.iter().filter(|file| file.package() == "assay.v1").flat_map(|file| &file.message_type);
    for message in messages {
        for field in &message.field {
            for word in
                ["timeout", "deadline", "thread", "memory", "patience", "parallel", "limit", "max_", "window"]
            {
                // What an operator asks for, and what an operator is told.
                let list = message.name().starts_with("List") && field.name() == "limit"
                    || (message.name(), field.name()) == ("RepositoryStatus", "max_age_seconds");
                assert!(!field.name().contains(word) || list, "{}.{}", message.name(), field.name());
            }
        }
    }
}

/// There is no key that turns a check off, and zero is no limit.
#[test]
fn no_switch_turns_a_check_off() {
    let pair = Pair::plain(1);
    for (agent, from, to, word) in [
        ("source", "[tls]\n", "[tls]\ninsecure = true\n", "unknown field `insecure`"),
        ("target", "[tls]\n", "[tls]\nverify = false\n", "unknown field `verify`"),
        ("source", "[target]\n", "[target]\ninsecure = true\n", "unknown field `insecure`"),
        ("source", "[target]\n", "[target]\npatience = \"0s\"\n", "0 does not mean 'unlimited'"),
        ("target", "[tls]\n", "[limits]\nidle = \"0s\"\n[tls]\n", "0 does not mean 'unlimited'"),
        ("target", "[tls]\n", "[limits]\nfirst_message = \"0s\"\n[tls]\n", "0 does not mean 'unlimited'"),
    ] {
        pair.configure(agent, from, to);
        let check = ["config", "check"];
        let done = if agent == "source" { pair.source(&check) } else { pair.target(&check) };
        assert_eq!(done.code, 2, "{to}: {done:?}");
        assert!(done.stderr.contains(word), "{word:?} is missing in {done:?}");
        pair.configure(agent, to, from);
    }
}
