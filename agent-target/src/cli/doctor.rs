//! `doctor` at the target.

use std::{collections::BTreeMap, path::Path};

use assay_common::{
    cli::doctor::{Report, find_program},
    error::Hint as _,
    fidelity::FsLimits,
    keyring::Keyring,
    pki::Role,
    profile::Value,
};
use jiff::Timestamp;

use super::{restore::own_keys, shares};
use crate::check::beforehand::View;
use crate::config::{Config, IsolationPolicy, Repository, WorkspacePreference};

/// Looks at everything that the checks of this configuration need.
pub(super) fn examine(config: &Config, path: &Path) -> Report {
    let (mut report, now) = (Report::default(), Timestamp::now());
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        report.ok("privileges", "root: owners and modes are kept, overlays can be mounted");
    } else {
        report.warn(
            "privileges",
            "not root",
            "owners cannot be kept and nothing can be mounted: run doctor and the service as root",
        );
    }
    report.certificate("certificate", &config.tls, &[Role::Target], now);
    if config.operator_tls != config.tls {
        report.certificate("operator's certificate", &config.operator_tls, &[Role::Operator], now);
    }
    report.ca_key(&config.tls, path);
    match own_keys(config) {
        Ok(keys) => report.ok("signing key", format!("can be read: {}", keys.current().key_id())),
        Err(error) => report.bad("signing key", error.to_string(), error.hint().unwrap_or_default()),
    }
    let store = config.agent.store.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    report.room("store", store);
    if let Some((found, remedy)) = shares::fault(config) {
        report.warn("quotas", found, remedy);
    }
    file_system(&mut report, config, store);
    sandbox(&mut report, config, is_root);
    for repository in &config.repositories {
        look_at(&mut report, repository);
    }
    if config.notify.is_empty() {
        report.warn("notices", "nobody is told of a failed check", "add [[notify]]: docs/MONITORING.md");
    } else {
        report.ok(
            "notices",
            format!(
                "{}; assay-target notify test tries them",
                assay_common::cli::screen::counted(config.notify.len() as u64, "way", "ways")
            ),
        );
    }
    match config.metrics {
        None => report.warn("metrics", "off", "add [metrics]: docs/MONITORING.md"),
        Some(section) => report.ok("metrics", section.listen.to_string()),
    }
    report
}

/// What the store's file system holds, tried out in a folder that goes again: what it cannot hold ends a run.
fn file_system(report: &mut Report, config: &Config, store: &Path) {
    let limits = match FsLimits::probe(store, &format!(".assay-doctor-{}", std::process::id())) {
        Ok(Some(limits)) => limits,
        Ok(None) => {
            return report.warn(
                "store holds",
                "nothing was tried: it is full",
                "make room on the store's disk",
            );
        }
        Err(error) => {
            return report.warn(
                "store holds",
                format!("it cannot be tried: {error}"),
                "run doctor as the agent's user",
            );
        }
    };
    let short = limits.shortcomings();
    if short.is_empty() {
        report.ok("store holds", limits.summary());
    } else {
        report.bad(
            "store holds",
            format!("{}: {}", limits.summary(), short.join("; ")),
            "a run with an entry that needs more ends with target-cannot-hold: keep the store on XFS, btrfs or an ext4 with inodes of 256 \
             bytes, or set clamp_times or ignore_attributes of the repository at the source",
        );
    }
    for repository in &config.repositories {
        let rules = &repository.copy_rules;
        let files = rules.special_files.iter().map(|kind| kind.word());
        let taken =
            ["user.*", "ACLs"].into_iter().chain(rules.attributes.iter().map(String::as_str)).chain(files);
        report.ok(&format!("{}: takes", repository.name), taken.collect::<Vec<_>>().join(", "));
    }
}

/// What checks are isolated with, tried out: that a program is there does not mean that the kernel lets it work.
fn sandbox(report: &mut Report, config: &Config, is_root: bool) {
    let is_wanted = |policy| config.repositories.iter().any(|repository| repository.isolation == policy);
    if is_wanted(IsolationPolicy::Auto) || is_wanted(IsolationPolicy::Require) {
        let fault = crate::check::probe_host(config.repositories.first().map(|it| it.account)).err();
        let remedy = "install bubblewrap and util-linux, and let this host make namespaces, of users too; isolation = \"none\" does without";
        match fault {
            None => report.ok("isolation", "bubblewrap makes its namespaces"),
            Some(fault) if is_wanted(IsolationPolicy::Require) => report.bad("isolation", fault, remedy),
            Some(fault) => report.warn("isolation", fault, remedy),
        }
    }
    if !is_root && (is_wanted(IsolationPolicy::None) || is_wanted(IsolationPolicy::Auto)) {
        report.bad(
            "isolation",
            "not root, and a check may run without a sandbox: as the agent's own user it reads the store and the agent's keys",
            "set isolation = \"require\" for every repository, or run the agent as root",
        );
    }
    let overlay = std::fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.contains("\toverlay"));
    if overlay && is_root {
        report.ok("workspace", "overlay mounts");
    } else if config
        .repositories
        .iter()
        .any(|repository| repository.workspace == WorkspacePreference::Overlay)
    {
        report.bad(
            "workspace",
            "this host has no overlay mounts",
            "modprobe overlay, or workspace = \"auto\"",
        );
    } else {
        report.warn(
            "workspace",
            "no overlay mounts: each check copies the tree",
            "modprobe overlay, and run as root",
        );
    }
}

fn look_at(report: &mut Report, repository: &Repository) {
    let name = |what: &str| format!("{}: {what}", repository.name);
    match Keyring::load(&repository.source_key) {
        Ok(_) => report.ok(&name("source's key"), "can be read"),
        Err(error) => report.bad(&name("source's key"), error.to_string(), error.hint().unwrap_or_default()),
    }
    for overlay in &repository.profile.overlays {
        let what = name(&overlay.path);
        match repository.overlays.get(&overlay.path) {
            Some(file) if file.is_file() => report.ok(&what, file.display().to_string()),
            Some(file) => {
                report.bad(&what, format!("{} is not there", file.display()), overlay.meaning.clone())
            }
            None if overlay.required && !overlay.copied_allowed => {
                report.bad(&what, "not configured", format!("overlay: {}", overlay.meaning));
            }
            None if overlay.required => {
                report.warn(
                    &what,
                    "not configured; the one that is copied may do",
                    format!("overlay: {}", overlay.meaning),
                );
            }
            None => {}
        }
    }
    let values = repository.profile.patches.iter().flat_map(|patch| &patch.values);
    let needs = |placeholder: &str| values.clone().any(|value| value.contains(placeholder));
    for (placeholder, is_known, key) in [
        ("{target.fqdn}", repository.names.fqdn.is_some(), "fqdn"),
        ("{target.address}", repository.names.address.is_some(), "address"),
    ] {
        if needs(placeholder) && !is_known {
            let found = format!("{placeholder} is not known and is not tried");
            report.warn(&name("host's names"), found, format!("set host = {{ {key} = … }}"));
        }
    }
    match repository.profile.bind_for_checks(&repository.vars, None) {
        Ok(vars) => programs(report, repository, &vars),
        Err(faults) => {
            let remedy = format!("set it in vars of the repository; profile {}", repository.profile.name);
            faults.into_iter().for_each(|fault| report.bad(&name("vars"), fault, remedy.clone()));
        }
    }
    if repository.control_every.is_none() {
        let found = "on request only: until one has passed no PASS counts";
        report.warn(
            &name("negative control"),
            found,
            "leave control_every out, or set control_every = \"7d\"",
        );
    }
    if repository.max_age.is_none() {
        report.warn(
            &name("max_age"),
            "none: a source that falls silent is not noticed here",
            "set max_age = \"2h\"",
        );
    }
}

/// The programs of the check's steps, as a step would find them.
fn programs(report: &mut Report, repository: &Repository, vars: &BTreeMap<String, Value>) {
    let view = View {
        visible: (repository.isolation != IsolationPolicy::None)
            .then(|| repository.profile.sandbox.visible.clone()),
        account: rustix::process::geteuid().is_root().then_some(repository.account),
        live: repository.live_paths.iter().flat_map(|paths| paths.values().cloned()).collect(),
    };
    for check in &repository.profile.checks {
        let what = format!("{}: check {}", repository.name, check.name);
        let found = view.look_for(check, vars);
        let is_helper = check.argv.first().is_some_and(|first| first == "{helper}");
        if is_helper && vars.contains_key("programs") {
            postgresql(report, &what, &view, vars);
        } else if is_helper && found.is_empty() {
            report.ok(&what, "brought by assay-target");
        }
        for (program, lack) in found {
            match lack {
                None => report.ok(&what, program),
                Some(lack) => report.bad(&what, lack.found, lack.remedy),
            }
        }
    }
}

/// The server's programs, of any version: which one is needed, the first copy tells.
fn postgresql(report: &mut Report, what: &str, view: &View, vars: &BTreeMap<String, Value>) {
    let Some(pattern) = vars.get("programs").and_then(|value| value.texts().first()) else {
        return report.ok(what, "brought by assay-target");
    };
    let all: Vec<_> = (9..=40).map(|version| pattern.replace("%v", &version.to_string())).collect();
    let is_there = |folder: &&String| find_program(&Path::new(folder).join("pg_amcheck")).is_some();
    let mut found: Vec<_> = all.iter().filter(is_there).collect();
    found.dedup();
    let hidden = found.iter().find_map(|folder| view.find(&format!("{folder}/pg_amcheck")).1);
    match (found.as_slice(), hidden) {
        ([], _) => report.bad(
            what,
            format!("no pg_amcheck in {pattern}"),
            "install postgresql of the source's major version, or set vars.programs",
        ),
        (_, Some(lack)) => report.bad(what, lack.found, lack.remedy),
        (all, None) => {
            report.ok(what, all.iter().map(|folder| folder.as_str()).collect::<Vec<_>>().join(", "));
        }
    }
}
