//! `doctor` at the source.

use std::{path::Path, time::Duration};

use assay_common::{
    cli::{doctor::Report, show},
    error::Hint as _,
    keyring::Keyring,
    manifest::Root,
    path::{TreePath, display_bytes},
    pki::Role,
    profile::{Mark, MarkKind},
    signing::SigningKey,
    tls::TlsFiles,
    verdict::coverage::length_in_words,
};
use jiff::Timestamp;
use tonic::transport::Channel;

use super::refusals;
use crate::{
    config::{Config, Repository},
    file_system::mounts_below,
    replicate::{
        basis::BasisFolder,
        readings::{self, Rereading},
    },
    run::plan::snapshot_fault,
    state::SNAPSHOT_NOTE,
    target::Target,
};

/// Clocks that differ by more are told of, in seconds: certificates and ages are judged by them.
const CLOCK_SECONDS: i64 = 30;
/// How long the target may take to answer.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);

/// Looks at everything that a run of this configuration needs.
pub(super) async fn examine(config: &Config, path: &Path) -> Report {
    let (mut report, now) = (Report::default(), Timestamp::now());
    if rustix::process::geteuid().is_root() {
        report.ok("privileges", "root: every file can be read");
    } else {
        report.warn(
            "privileges",
            "not root",
            "files of other users cannot be read: run doctor and the service as one who may",
        );
    }
    report.certificate("certificate", &config.tls, &[Role::Source], now);
    if config.operator_tls != config.tls {
        report.certificate("operator's certificate", &config.operator_tls, &[Role::Operator], now);
    }
    report.ca_key(&config.tls, path);
    for (what, error) in [
        ("signing key", SigningKey::load(&config.signing_key).err()),
        ("target's signing key", Keyring::load(&config.target.signing_key).err()),
    ] {
        match error {
            Some(error) => report.bad(what, error.to_string(), error.hint().unwrap_or_default()),
            None => report.ok(what, "can be read"),
        }
    }
    let state = config.agent.state.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    report.room("state folder", state);
    for repository in &config.repositories {
        look_at(&mut report, repository);
        snapshot(&mut report, repository, &config.agent.state);
        rereading(&mut report, repository, &config.agent.state);
    }
    if config.notify.is_empty() {
        report.warn("notices", "nobody is told of a failed run", "add [[notify]]: docs/MONITORING.md");
    } else {
        report.ok(
            "notices",
            format!(
                "{}; assay-source notify test tries them",
                assay_common::cli::screen::counted(config.notify.len() as u64, "way", "ways")
            ),
        );
    }
    match config.metrics {
        None => report.warn("metrics", "off", "add [metrics]: docs/MONITORING.md"),
        Some(section) => report.ok("metrics", section.listen.to_string()),
    }
    if let Some(channel) = reach_target(&mut report, &config.target.url, &config.tls).await {
        for repository in &config.repositories {
            refusals::look(&mut report, repository, channel.clone()).await;
        }
    }
    report
}

fn look_at(report: &mut Report, repository: &Repository) {
    let name = |what: &str| format!("{}: {what}", repository.name);
    for root in &repository.header.roots {
        let path = Path::new(&root.live_path);
        let what = name(&format!("root {}", root.name));
        let is_link = path.symlink_metadata().is_ok_and(|stat| stat.is_symlink());
        let is_empty = std::fs::read_dir(path).map(|mut entries| entries.next().is_none());
        match is_empty {
            _ if is_link => report.bad(
                &what,
                format!("{} is a symbolic link", path.display()),
                "name the folder that it points to",
            ),
            Err(error) => report.bad(
                &what,
                format!("{}: {error}", path.display()),
                "check the path, and that its file system is mounted",
            ),
            Ok(true) => {
                report.bad(
                    &what,
                    format!("{} is empty", path.display()),
                    "check that its file system is mounted",
                );
            }
            Ok(false) => {
                report.ok(&what, root.live_path.clone());
                mounts(report, repository, root);
            }
        }
    }
    let first = Path::new(&repository.header.roots[0].live_path);
    for wanted in repository.profile.mark.must_exist.iter().filter(|wanted| !first.join(wanted).exists()) {
        let found = format!("{} is not there", first.join(wanted).display());
        report.bad(
            &name("engine"),
            found,
            format!("this is nothing for the profile {:?}: choose another", repository.profile.name),
        );
    }
    mark(report, repository, &repository.profile.mark);
    match &repository.schedule {
        None => report.warn(
            &name("schedule"),
            "none: not scheduled (manual only)",
            "add schedule = { every = \"1h\" }",
        ),
        Some(schedule) => match schedule.next_slot(Timestamp::now()) {
            Some(next) => {
                report.ok(
                    &name("schedule"),
                    format!("the next slot is at {}", next.strftime("%Y-%m-%d %H:%M:%SZ")),
                );
            }
            None => report.bad(
                &name("schedule"),
                "never comes: there is no such day and time from now on",
                "correct schedule in the configuration",
            ),
        },
    }
}

/// How unchanged files are read again, and whether that can be done in time.
fn rereading(report: &mut Report, repository: &Repository, state: &Path) {
    let what = format!("{}: read again", repository.name);
    let (within, rate) = (repository.reread_within, repository.reread_bytes_per_second);
    if within.is_zero() {
        return report.warn(
            &what,
            "unchanged files are not: reread_within is off",
            "set reread_within: a PASS says nothing of bytes that changed without a trace since they were read",
        );
    }
    let basis = BasisFolder::new(state.join(&repository.name).join("basis"));
    let rereading = Rereading::begin(Some(&basis), within, rate);
    let readings = match readings::survey(&basis, &rereading) {
        Ok(readings) => readings,
        Err(error) => {
            return report.warn(&what, error.to_string(), "run doctor as the agent's user");
        }
    };
    let within = length_in_words(within);
    if readings.files == 0 {
        return report.ok(&what, format!("every byte within {within}, from the first run on"));
    }
    let day = rereading.bytes_in(Duration::from_secs(86_400), readings.bytes);
    let oldest = readings.oldest.and_then(|oldest| Timestamp::from_millisecond(oldest).ok());
    let oldest = oldest.map_or_else(String::new, |oldest| {
        format!("; the oldest reading is of {}", oldest.strftime("%Y-%m-%d %H:%M:%SZ"))
    });
    let unknown = match readings.files_unknown {
        0 => String::new(),
        files => format!("; when {} was read is not known", show::counted(files, "file")),
    };
    let bytes = show::bytes;
    let share = format!("every byte within {within}: {} of {} a day", bytes(day), bytes(readings.bytes));
    let found = format!("{share}{oldest}{unknown}");
    match rereading.is_too_slow_for(readings.bytes) {
        Some(text) => report.warn(&what, found, text),
        None => report.ok(&what, found),
    }
}

/// What is mounted below a root is named: it is copied as well, unless the configuration says otherwise.
fn mounts(report: &mut Report, repository: &Repository, root: &Root) {
    let position = repository.header.roots.iter().position(|other| other == root);
    let one = position.and_then(|position| repository.one_file_system.get(position)).copied();
    let rules = repository.rules();
    for mount in mounts_below(Path::new(&root.live_path)) {
        let is_excluded = TreePath::parse(&mount.path).is_ok_and(|path| rules.is_excluded(&path));
        let path = display_bytes(&mount.path);
        let what = format!("{}: mounted in root {}", repository.name, root.name);
        match (is_excluded, one == Some(true) && mount.is_other) {
            (true, _) => report.ok(&what, format!("{path} ({}) is excluded", mount.kind)),
            (_, true) => {
                report.ok(&what, format!("{path} ({}) is left out: one_file_system = true", mount.kind));
            }
            _ if mount.is_pseudo => report.bad(
                &what,
                format!(
                    "{path} ({}) holds no files: the kernel makes them up, and each run stops there",
                    mount.kind
                ),
                "name it in exclude, or say one_file_system = true for this root",
            ),
            _ => report.ok(&what, format!("{path} ({}) is copied as well", mount.kind)),
        }
    }
}

/// Whether a snapshot could be made now.
fn snapshot(report: &mut Report, repository: &Repository, state: &Path) {
    let Some(settings) = &repository.snapshot else { return };
    let what = format!("{}: {}", repository.name, settings.description());
    if !report.program(
        &what,
        Path::new(settings.program()),
        "install what makes the snapshot, or correct repository.snapshot",
    ) {
        return;
    }
    let note = state.join(&repository.name).join(SNAPSHOT_NOTE);
    match snapshot_fault(repository, &note) {
        None => report.ok(&what, "can be made of the roots; the first run tells whether the agent may"),
        Some(fault) => report.bad(&what, fault.message.clone(), fault.hint.as_deref().unwrap_or_default()),
    }
}

fn mark(report: &mut Report, repository: &Repository, mark: &Mark) {
    let what = format!("{}: mark", repository.name);
    match mark.kind {
        MarkKind::None => report.ok(&what, "this profile makes no mark"),
        MarkKind::Postgresql | MarkKind::Sqlite => {
            report.ok(&what, "made by the agent itself; the first run tells whether it may")
        }
        MarkKind::Command => {
            for command in [&mark.begin, &mark.end].into_iter().filter(|command| !command.is_empty()) {
                match repository.scope().expand(&command[0]) {
                    Ok(program) => {
                        report.program(
                            &what,
                            Path::new(&program),
                            "check the path in the profile, and the root",
                        );
                    }
                    // The end may name the mark, which there is none of.
                    Err(error) => report.warn(&what, error.to_string(), "check the profile"),
                }
            }
        }
    }
}

/// As the agent itself: a service that answers, and a clock that agrees.
async fn reach_target(report: &mut Report, url: &str, files: &TlsFiles) -> Option<Channel> {
    let target = Target::new(url, files);
    let channel = match tokio::time::timeout(PATIENCE, target.connect_alone()).await {
        Err(_) => {
            report.bad("target", format!("{url} does not answer"), "check the firewalls between");
            return None;
        }
        Ok(Err(error)) => {
            report.bad("target", error.to_string(), error.hint().unwrap_or_default());
            return None;
        }
        Ok(Ok(channel)) => channel,
    };
    match tokio::time::timeout(PATIENCE, assay_common::cli::ask_health(channel.clone())).await {
        Ok(Ok(answer)) => {
            report.ok("target", format!("{url} serves"));
            let Some(theirs) = answer.time else {
                return Some(channel);
            };
            let difference = theirs.duration_until(Timestamp::now()).as_secs();
            let found = format!("{} s of difference to the target's", difference.abs());
            if difference.abs() > CLOCK_SECONDS {
                report.warn("clock", found, "let both hosts keep time (chrony, systemd-timesyncd)");
            } else {
                report.ok("clock", found);
            }
            return Some(channel);
        }
        Ok(Err(status)) => {
            report.bad("target", format!("{url}: {}", status.message()), "look at the target's log");
        }
        Err(_) => report.bad("target", format!("{url} does not answer"), "look at the target's log"),
    }
    None
}
