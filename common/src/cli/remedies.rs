//! What to do about each reason that a run, a check or a verdict can end with.

use crate::verdict::{FaultOrigin, Outcome};

/// Every reason of ours, and what to do about it. Profiles may have words of their own; [`remedy`] has an answer for those too.
const REMEDIES: &[(&str, &str)] = &[
    ("check-passed", "Nothing: the check found no damage. The first sentence says what that proves."),
    (
        "damage-found",
        "Do not overwrite what you have: the last verified generation is untouched. See where the fault came in.",
    ),
    (
        "not-restorable",
        "The copy cannot be brought up: WAL or a control file does not fit. Look on the source for a cleaned-up pg_wal, then \
         run again.",
    ),
    (
        "foreign-key-violation",
        "The database is whole and its rows contradict each other: an application wrote them with foreign keys switched off. \
         Repair the rows on the live side.",
    ),
    (
        "wal-frame-damaged",
        "The live write-ahead log has lost transactions that were committed. Stop the application, keep a copy of the database and its \
         -wal file, and look at the live host's disk and memory. Then decide whether to restore the last verified generation.",
    ),
    (
        "application-functions",
        "The copy cannot tell whether the index is wrong, because what the message names may be the application's own, or may differ in the live \
         host's version of SQLite. Run PRAGMA integrity_check on the live host by the application's own connection; REINDEX there if it complains, too.",
    ),
    (
        "encrypted",
        "The database that the message names is encrypted, and only its application has the key. Have the application check it, and leave it \
         out of vars.databases: then the verdict names it as not covered.",
    ),
    (
        "configuration-unreadable",
        "git cannot read the repository's config file. Correct the line that the message names on the live side, then run again.",
    ),
    (
        "list-too-long",
        "The step names more parts that it did not look at than a verdict lists. Read the step's output on the target: run its \
         command by hand in a copy of the generation.",
    ),
    (
        "checker-contradiction",
        "Find out what changed around the checker on the target since it last passed: packages, locale, memory, disk space, the \
         files that it needs. Then: assay-target verify.",
    ),
    (
        "not-a-repository",
        "What the profile expects is not there: compare the root's path and the profile with what lives there.",
    ),
    (
        "objects-elsewhere",
        "Objects of the repository lie in another one (alternates) that is not copied. Add it as a root, or run git repack -ad \
         in a repository that is to stand alone.",
    ),
    ("check-timeout", "Give the step more time (timeout in the profile), or the target more power."),
    (
        "check-cancelled",
        "Something else was wanted meanwhile. Run assay-target verify when the target is idle.",
    ),
    (
        "memory-limit",
        "The check used more memory than it may. Raise limits.memory in the target's configuration or the profile.",
    ),
    (
        "process-limit",
        "The check made more processes than it may. Raise limits.processes, or find out why it makes so many.",
    ),
    (
        "disk-limit",
        "The check wrote more into its workspace than it may. Raise limits.disk in the target's configuration or the profile.",
    ),
    (
        "disk-full",
        "The check came near the end of the store's file system. Make room on the target, or lower limits.disk_reserve.",
    ),
    (
        "output-limit",
        "The check printed more than it may. Make it print less, or raise limits.output; what it printed is in the verdict.",
    ),
    (
        "network-refused",
        "The check wanted the network, which no check has. Give the copy what it needs by a patch or an overlay file, or tell the \
         profile what the program means (inconclusive_exit).",
    ),
    (
        "target-stalled",
        "The target holds the connection and does not answer. Look at its log, its disk and its load; target.patience in the source's \
         configuration says how long an answer may be owed.",
    ),
    (
        "access-refused",
        "The check wanted to read or write something that it may not, outside its workspace most likely. Point it to {scratch} or \
         {root} in the profile, or show it more (sandbox.visible).",
    ),
    (
        "backup-missing",
        "The backup file that the mark wrote is not in the copy. Check vars.backup: a full path inside a root, not excluded.",
    ),
    (
        "database-not-made",
        "No empty database could be made for the copy. Check vars.initdb and vars.database; the step's output says why.",
    ),
    (
        "database-not-started",
        "The copy's database server did not start or stop. The step's output says why: programs, owner, space.",
    ),
    (
        "restore-failed",
        "maintain restore could not do its work: password, administrator or space. The step's output says which.",
    ),
    (
        "server-properties-failed",
        "maintain server_properties update did not take the target's name. Set fqdn, name and address in [repository.host].",
    ),
    (
        "not-restored",
        "The restored database does not answer. Look at the output of the step before, and at vars.db_admin.",
    ),
    ("check-killed", "Look in the target's kernel log for a killed process: memory is the usual reason."),
    (
        "program-missing",
        "Install the checker's program on the target, or correct its path in the profile or its variables. A program outside of /usr, /bin and \
         the like must be named in the profile: [sandbox] visible. Then: assay-target verify.",
    ),
    (
        "nothing-to-check",
        "The profile's for_each_changed matches no file of the copy. Correct its patterns, or the root's path: a check that looks at nothing proves nothing.",
    ),
    (
        "unexpected-exit",
        "The profile does not know this exit code. Find out what the program means by it and add it to the profile.",
    ),
    (
        "unexpected-output",
        "The program did not say what the profile expects of a check that did its work. Compare its output with must_match.",
    ),
    ("output-too-long", "The program printed a line of more than 1 MiB. Make it print shorter lines."),
    (
        "output-incomplete",
        "A process of the check outlived it. Let the check's command wait for what it starts.",
    ),
    (
        "host-name-error",
        "The checker accepts none of the target's names. Set fqdn, name and address in [repository.host] of the target.",
    ),
    (
        "carriage-return",
        "The copied configuration has the line ends of another system (CRLF), and the program takes the carriage return for a part \
         of the name. Store the file with plain line feeds on the live side.",
    ),
    (
        "key-missing",
        "The setting stands nowhere in the copied configuration. Add it on the live side, or correct the profile.",
    ),
    ("key-twice", "The copied configuration sets it twice. Remove one of the lines on the live side."),
    (
        "configuration-missing",
        "The configuration file is not in the copy. Check the roots and exclude patterns.",
    ),
    (
        "patch-failed",
        "The workspace's configuration could not be changed. The message says which file and why.",
    ),
    (
        "no-candidate",
        "The target lacks the name that the patch needs. Set it in [repository.host] of the target.",
    ),
    (
        "overlay-missing",
        "Put the file that belongs to the target in place: overlay in the target's configuration.",
    ),
    (
        "overlay-failed",
        "The target's own file could not be laid over the copy. Check that it exists and can be read.",
    ),
    ("licence-missing", "Give the target a licence for its host: overlay in the target's configuration."),
    (
        "isolation-unavailable",
        "Install bubblewrap and util-linux on the target, and let its agent make user namespaces. assay-target doctor says what is missing.",
    ),
    (
        "isolation-failed",
        "The sandbox could not be made. The step's output says why; bwrap --version shows what is installed.",
    ),
    (
        "live-path-unusable",
        "The check uses this path itself. Name the root's live path in live_paths of the target's configuration, or move the root.",
    ),
    (
        "workspace-failed",
        "No workspace could be made. Check free space and permissions of the store on the target.",
    ),
    (
        "configuration",
        "Correct the configuration: assay-source config check and assay-target config check tell what is wrong.",
    ),
    (
        "usage",
        "The checker did not understand its command line. Compare the profile with the installed version.",
    ),
    (
        "unreadable",
        "The checker could not open its data. Check the owner of the copy and run_as in the profile.",
    ),
    ("server-running", "The copy says that its server runs. Exclude its pid file in the profile's [copy]."),
    (
        "server-not-started",
        "The copy's server did not start for a reason that is not damage: the step's output has its log.",
    ),
    ("engine-version", "Install the engine's major version of the source on the target, too."),
    (
        "checker-error",
        "The checker failed by itself. Its output says why: space, memory, a missing extension.",
    ),
    (
        "collation-mismatch",
        "The target's C library sorts text in another way than the source's. Use the same release of the system on both.",
    ),
    (
        "locale-missing",
        "Install the locale that the message names on the target (Debian: /etc/locale.gen, then locale-gen).",
    ),
    (
        "index-function",
        "A function of the application that an index calls does not work in the copy. If that is known, let the check pass without that index: vars.unchecked = \"accept\".",
    ),
    ("extension-missing", "Install the extension that the message names on the target."),
    (
        "incomplete",
        "The check could not look at a part of the data: the step's output names it and says why.",
    ),
    // Ends of a run before its check.
    ("cancelled", "An operator or a stop of the agent ended the run. Start another."),
    ("agent-stopped", "The source agent was stopped in the run. The next run goes on with what has arrived."),
    ("protocol", "Install the same version of both agents."),
    (
        "verdict-not-trusted",
        "The verdict bears another key than the one that is pinned. Compare the keys before you believe anything from there.",
    ),
    (
        "mass-drop",
        "Far more is gone than usual. Check that everything is mounted; if it is right, run once with --allow-mass-drop.",
    ),
    ("connection-lost", "Check the network and that the target agent runs. What has arrived is kept."),
    ("target-unreachable", "Check the network, the target's address and that its agent runs."),
    (
        "target-refused",
        "Check certificates and names: repository.source and repository.source_key on the target.",
    ),
    (
        "target-busy",
        "The target was busy with other runs or checks for as long as the run could wait (target.wait, or the next slot). assay-target status shows with which.",
    ),
    (
        "check-not-started",
        "Either the command of a step could not be started (the line above says why): run it by hand on the target, as the user that the verdict names. Or the checks of other repositories came first for as long as agent.check_wait on the target allows: check it when there is time (assay-target verify), let more run at a time (agent.checks_at_a_time), or spread the schedules.",
    ),
    (
        "quota-exceeded",
        "The repository's store on the target may not grow by so much: raise repository.quota there, or let retention remove generations.",
    ),
    (
        "too-many-failed-runs",
        "Find out why the runs before it failed; the next one may be opened when an hour has passed since the oldest of them.",
    ),
    ("target-full", "Make room on the target's store. What has arrived is kept."),
    ("target-changed", "The target's store changed in the run. Start another run."),
    (
        "target-unstable",
        "The target agent keeps being restarted, or its disk loses what was sealed. Its log says which; assay-target scrub finds what is lost.",
    ),
    (
        "not-sealed",
        "The target did not take the tree. Start another run; if it comes back, look at the target's log.",
    ),
    (
        crate::fidelity::CANNOT_HOLD,
        "The target's file system cannot hold the entry that the message names as it is. Keep the store on another file system \
         (assay-target doctor says what this one holds), exclude the entry, or declare what the repository does not need \
         (ignore_attributes, clamp_times at the source).",
    ),
    (
        "check-lost",
        "The verdict did not arrive. assay-target verdict show has it, or assay-target verify makes another.",
    ),
    ("state-unusable", "The source agent's state folder cannot be used. Check its disk and permissions."),
    ("foreign-mark", "Another backup job makes marks of this repository. Stop it: only one may."),
    (
        "mark-failed",
        "Nothing was copied. Do by hand, as the agent's user, what makes the mark: the profile's mark command, or a connection to the \
         database.",
    ),
    ("changed-under-scan", "Run again; if it happens often, exclude the folder in which links come and go."),
    (
        "path-too-long",
        "Shorten a name on the way to the entry, give the folder as a root of its own, or exclude it: Linux opens no path of more than \
         4095 bytes.",
    ),
    (
        "read-failed",
        "Let the agent's user read the file, or exclude it. An I/O error means: look at the live disk now.",
    ),
    (
        "transfer-failed",
        "Start another run. If digests did not fit, test the memory and network of both hosts.",
    ),
    ("root-empty", "A root is an empty folder: check that its file system is mounted."),
    ("root-missing", "A root cannot be opened: check its path, its mount and the agent's permissions."),
    (
        "root-changed",
        "Another folder is at a root's path. Check the mounts; if it is right, run once with --allow-new-root.",
    ),
    (
        "special-file",
        "No check sees devices, FIFOs and sockets. Exclude them on the live side if the engine does not need them; otherwise nothing is to be done.",
    ),
];

/// What to do about a reason. A reason of an operator's own profile gets what its outcome calls for.
pub fn remedy(outcome: Outcome, reason: &str) -> &'static str {
    known_remedy(reason).unwrap_or(match outcome {
        Outcome::Pass => "Nothing.",
        Outcome::Fail => {
            "Do not overwrite what you have: the last verified generation is untouched. See where the fault came in."
        }
        Outcome::Inconclusive => {
            "The reason is a word of the profile: look there for what it stands for. Put that right, then: assay-target verify."
        }
        Outcome::NotRun => "Put right what the message names, then start another run.",
    })
}

/// What to do about a reason that the program knows.
pub fn known_remedy(reason: &str) -> Option<&'static str> {
    REMEDIES.iter().find(|(known, _)| *known == reason).map(|(_, remedy)| *remedy)
}

/// A sentence about where the fault came in, without its full stop, and what to do.
pub(super) fn about_fault(fault: FaultOrigin) -> (&'static str, &'static str) {
    match fault {
        FaultOrigin::Live => (
            "The damage is in the live repository: what was read there is what arrived and what was checked",
            "Treat the live repository as damaged: run the engine's own check there in the next quiet hour, look at the host's disk \
             and memory, and plan to restore from the last verified generation (assay-source restore; assay-target generations lists them).",
        ),
        FaultOrigin::TornRead => (
            "The copy was torn while it was read: the file changed meanwhile, or two readings of it differ",
            "Run again, at a quieter time if need be. If it stays, the profile needs a mark, an order or append_only for these \
             files; if nobody writes to them, look at the source's disk and memory.",
        ),
        FaultOrigin::Transfer => {
            ("The damage arose on the way", "Run again; test the network and memory of both hosts.")
        }
        FaultOrigin::TargetDisk => (
            "The damage is on the target: its disk or memory did not keep what arrived. The live repository is not suspected",
            "Look at the target's disk (smartctl, kernel log) and memory. The generation is lost: do not restore from it. Files \
             that are shared with other generations are bad there as well: verify those, then let a run with --full-read make a \
             new one on a sound disk.",
        ),
        FaultOrigin::Checker => (
            "The fault is in the checker: it contradicts itself about the same bytes. Nothing is known of the data",
            "Find out what changed around the checker on the target, then: assay-target verify and assay-target control.",
        ),
        FaultOrigin::Unknown => (
            "Not known: the facts do not decide it",
            "Run again: a fault of the live data comes back, a torn read seldom does. assay-target bisect finds the generation \
             in which it came in.",
        ),
    }
}
