//! What a run would do: its beginning without the mark, and its comparison without reading. Whatever would end it before its check
//! is told in the run's own words, and does not keep the rest from being found out.

use std::{
    ffi::OsStr,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use assay_common::{
    cli::show,
    digest::RootDigest,
    fidelity::Filter,
    path::{TreePath, display_bytes},
    profile::MarkKind,
    verdict::timestamp_to_proto,
};
use assay_proto::v1::{
    GetOutlookRequest, Outlook, PlannedMount, PlannedRereading, PlannedStop, PlannedWork, RunPlan,
    replication_service_client::ReplicationServiceClient,
};
use tokio_util::sync::CancellationToken;

use super::{Context, Fault, MAX_ANSWER_BYTES, PROTOCOL, roots};
use crate::config::Repository;
use crate::file_system::mounts_below;
use crate::mark::sqlite;
use crate::replicate::{
    ReplicateError,
    preview::{Look, Preview, preview},
    readings::{self, Rereading, Summary},
};
use crate::snapshot::{self, LiveRoot};

/// How long the target may take to tell its outlook.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Plans a run. `full_read`: every file would be read. When `stop` is cancelled, the walk ends.
///
/// # Errors
/// When the walk was stopped.
pub async fn plan(context: Arc<Context>, full_read: bool, stop: CancellationToken) -> Result<RunPlan, Fault> {
    let mut stops = Vec::new();
    let mut add = |fault: &Fault| {
        stops.push(PlannedStop { reason: fault.reason.to_owned(), message: fault.text() });
    };
    let target = match outlook(&context).await {
        Ok(target) => Some(target),
        Err(fault) => {
            add(&fault);
            None
        }
    };
    if let Some(target) = target.as_ref().filter(|target| !target.busy_run_id.is_empty()) {
        let text = format!("the target is busy with run {}", target.busy_run_id);
        add(&Fault::not_run("target-busy", text).hint("wait for it to end; assay-target status shows it"));
    }
    let basis_known = knows(&context, target.as_ref());
    let takes = target.as_ref().map(|target| (target.store_holds.as_ref(), target.copy_rules.as_ref()));
    let filter = Arc::new(context.filter(takes.unwrap_or_default()));
    let (walked, missing) = {
        let (context, filter) = (Arc::clone(&context), Arc::clone(&filter));
        let work = move || walk(&context, (basis_known, full_read), &filter, &stop);
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    };
    if let Some(fault) = missing {
        add(&fault);
    }
    let (work, rereading) = match walked {
        Ok((work, rereading)) => (Some(work), Some(rereading)),
        Err(fault) if fault.reason == "cancelled" => return Err(fault),
        Err(fault) => {
            add(&fault);
            (None, None)
        }
    };
    let (refused, all) = filter.refused();
    if all > 0 {
        add(&Fault::refused(&refused, all));
    }
    if let Some(fault) = snapshot_fault(&context.repository, &context.state.snapshot_note()) {
        add(&fault);
    }
    let repository = &context.repository;
    let limit = repository.max_drop_percent;
    if let Some(work) = work.as_ref().filter(|work| is_mass_drop(work, limit)) {
        add(&Fault::mass_drop(work.dropped_entries, work.base_entries, limit, work.moved_files));
    }
    if let (Some(work), Some(target)) = (&work, &target)
        && let Some(fault) = lack_of_room(work.send_bytes, target)
    {
        add(&fault);
    }
    let mark = &repository.profile.mark;
    let word = match mark.kind {
        MarkKind::Command => "command",
        MarkKind::Sqlite => "sqlite",
        MarkKind::Postgresql => "postgresql",
        MarkKind::None => "none",
    };
    Ok(RunPlan {
        repository: repository.name.clone(),
        time: Some(timestamp_to_proto(jiff::Timestamp::now())),
        stops,
        mark: match &repository.snapshot {
            None => word.to_owned(),
            Some(snapshot) if mark.kind == MarkKind::None => snapshot.description(),
            Some(snapshot) => format!("{word}, then {}", snapshot.description()),
        },
        settle_milliseconds: u64::try_from(mark.settle.0.as_millis()).unwrap_or(u64::MAX),
        full_read,
        basis_known,
        work,
        target,
        next_run: None,
        drop_stop_percent: limit.into(),
        left_out: filter
            .left_out()
            .iter()
            .map(|left_out| format!("{} (as of {}): {}", left_out.what, left_out.example, left_out.why))
            .collect(),
        mounts: mounts(repository),
        rereading,
    })
}

/// What is in the way of a snapshot of the repository, if it has one.
pub(crate) fn snapshot_fault(repository: &Repository, note: &Path) -> Option<Fault> {
    let settings = repository.snapshot.as_ref()?;
    let roots = repository.header.roots.iter().map(|root| {
        let path = PathBuf::from(&root.live_path);
        let inode = path.symlink_metadata().map_or(0, |stat| stat.ino());
        LiveRoot { name: root.name.clone(), path, inode }
    });
    let roots: Vec<_> = roots.collect();
    let looked = settings.look(&roots, &repository.rules(), &repository.one_file_system);
    looked.map(drop).and_then(|()| snapshot::look_at_note(note)).err().map(Fault::from)
}

/// How unchanged files are read again, as of now.
fn planned_rereading(rereading: &Rereading, preview: &Preview, readings: &Summary) -> PlannedRereading {
    let time = |moment: i64| jiff::Timestamp::from_millisecond(moment).ok().map(timestamp_to_proto);
    let within = i64::try_from(rereading.within.as_millis()).unwrap_or(i64::MAX);
    let warnings = [rereading.is_too_slow_for(preview.work.total_bytes), rereading.clock.warning()];
    PlannedRereading {
        within_seconds: rereading.within.as_secs(),
        bytes_per_second: rereading.bytes_per_second,
        files: preview.files_again,
        bytes: preview.bytes_again,
        oldest_reading: readings.oldest.and_then(time),
        files_of_unknown_age: readings.files_unknown,
        all_read_by: (within > 0).then(|| time(rereading.started.saturating_add(within))).flatten(),
        warnings: warnings.into_iter().flatten().collect(),
    }
}

/// What is mounted in the roots, and what a run makes of it.
fn mounts(repository: &Repository) -> Vec<PlannedMount> {
    let rules = repository.rules();
    let roots = repository.header.roots.iter().zip(&repository.one_file_system);
    let mounts = roots.flat_map(|(root, one_file_system)| {
        let mounts = mounts_below(Path::new(&root.live_path)).into_iter();
        mounts.map(move |mount| (root, *one_file_system, mount))
    });
    let planned = mounts.map(|(root, one_file_system, mount)| {
        let is_excluded = TreePath::parse(&mount.path).is_ok_and(|path| rules.is_excluded(&path));
        let fate = match (is_excluded, one_file_system && mount.is_other) {
            (true, _) => "excluded",
            (_, true) => "left out: one_file_system = true",
            _ if mount.is_pseudo => "STOPS THE RUN: the kernel makes its files up",
            _ => "copied",
        };
        let path = format!("{}/{}", root.live_path.trim_end_matches('/'), display_bytes(&mount.path));
        PlannedMount { path, kind: mount.kind, fate: fate.to_owned() }
    });
    planned.collect()
}

/// Why the target cannot take so much, if so. A target that does not say what a run may write says what is free.
fn lack_of_room(send_bytes: u64, target: &Outlook) -> Option<Fault> {
    let room = target.room_bytes.unwrap_or(target.free_bytes);
    if send_bytes <= room {
        return None;
    }
    let (send, room) = (show::bytes(send_bytes), show::bytes(room));
    Some(if target.room_of_quota {
        let text = format!("a run may send {send}, and the repository's quota on the target leaves {room}");
        Fault::not_run("quota-exceeded", text)
            .hint("raise repository.quota on the target, or let repository.retention remove generations there (assay-target prune)")
    } else {
        let text = format!(
            "a run may send {send}, and the target's disk has room for {room} beside what it keeps free"
        );
        Fault::not_run("target-full", text).hint(
            "make room on the target's store: assay-target discard, assay-target prune, or a larger disk",
        )
    })
}

/// As `Attempt::check_drops` has it.
fn is_mass_drop(work: &PlannedWork, limit: u8) -> bool {
    work.dropped_entries * 100 > work.base_entries * u64::from(limit)
}

async fn outlook(context: &Context) -> Result<Outlook, Fault> {
    let asked = async {
        let channel = context.target.connect().await?;
        let mut client = ReplicationServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        let request = GetOutlookRequest { repository: context.repository.name.clone(), protocol: PROTOCOL };
        Ok(client.get_outlook(request).await.map_err(Fault::opening)?.into_inner())
    };
    let silent = || Err(Fault::opening(super::fault::silent(PATIENCE)));
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| silent())
}

/// True when what is remembered here is what the target would build upon; of a target that cannot be asked the best is believed.
fn knows(context: &Context, target: Option<&Outlook>) -> bool {
    let ours = context.state.basis().root_digest();
    match target {
        None => ours.is_some(),
        Some(target) if target.base_generation == 0 => false,
        Some(target) => ours.is_some() && ours == RootDigest::from_slice(&target.base_root_digest),
    }
}

/// The walk; and beside it what the profile says must be there and is not.
fn walk(
    context: &Context,
    (basis_known, full_read): (bool, bool),
    filter: &Arc<Filter>,
    stop: &CancellationToken,
) -> (Result<(PlannedWork, PlannedRereading), Fault>, Option<Fault>) {
    let repository = &context.repository;
    let first = Path::new(&repository.header.roots[0].live_path);
    let wanted = repository.profile.mark.must_exist.iter().find(|wanted| !first.join(wanted).exists());
    let unfit = wanted.map(|wanted| {
        let text = format!("{} is not there", first.join(wanted).display());
        Fault::not_run("mark-failed", text)
            .hint(format!("this is nothing for the profile {:?}", repository.profile.name))
    });
    let (made, gone) = databases(context);
    let missing = unfit.or(gone);
    let found = || {
        let known = context.state.roots()?;
        let (roots, _) = roots::open(&repository.header, known.as_deref(), false)?;
        let basis = basis_known.then(|| context.state.basis());
        let (within, rate) = (repository.reread_within, repository.reread_bytes_per_second);
        let rereading = Rereading::begin(basis.as_ref(), within, rate);
        let readings = basis.as_ref().map(|basis| readings::survey(basis, &rereading)).transpose()?;
        let look = Look {
            header: repository.header.clone(),
            roots: roots.folders,
            rules: Arc::new(repository.rules()),
            ground: repository.ground(),
            basis,
            full_read,
            rereading,
            filter: Arc::clone(filter),
            filtered_otherwise: basis_known && context.state.filtered().by != filter.fingerprint(),
            made: made.iter().cloned().collect(),
            makes_own: repository.profile.mark.kind == MarkKind::Postgresql,
        };
        let preview = preview(&look, stop).map_err(|error| match error {
            ReplicateError::Cancelled => Fault::cancelled(),
            error => error.into(),
        })?;
        let again = planned_rereading(&look.rereading, &preview, &readings.unwrap_or_default());
        Ok((preview.work, again))
    };
    (found(), missing)
}

/// The databases that the mark copies, those that it finds among them, in the tree, with their lengths; and what is wrong first.
fn databases(context: &Context) -> (Vec<(TreePath, u64)>, Option<Fault>) {
    let repository = &context.repository;
    let mut paths = match repository.profile.databases(&repository.vars) {
        Ok(paths) if repository.profile.mark.kind == MarkKind::Sqlite => {
            paths.into_iter().map(|path| (&repository.header.roots[0], path, true)).collect::<Vec<_>>()
        }
        Ok(_) => return (Vec::new(), None),
        Err(error) => return (Vec::new(), Some(Fault::configuration(error))),
    };
    let (mut found, mut missing) = (Vec::new(), None);
    for root in &repository.header.roots {
        match sqlite::found(Path::new(&root.live_path), &repository.rules()) {
            Ok(more) => paths.extend(more.into_iter().map(|path| (root, path, false))),
            Err(error) => {
                missing.get_or_insert_with(|| {
                    let text = format!("databases below {} cannot be looked for: {error}", root.live_path);
                    Fault::not_run("mark-failed", text).hint("let the agent's user read the whole root")
                });
            }
        }
    }
    for (root, path, is_named) in paths {
        let live = Path::new(&root.live_path).join(OsStr::from_bytes(path.as_bytes()));
        let length = match live.metadata() {
            Ok(metadata) => metadata.len(),
            // It was found a moment ago.
            Err(_) if !is_named => continue,
            Err(error) => {
                missing.get_or_insert_with(|| {
                    Fault::not_run("mark-failed", format!("{}: {error}", live.display()))
                        .hint("correct vars.databases of the repository, or bring the database back")
                });
                continue;
            }
        };
        // What is not in the database yet may come into it.
        let mut log = live.clone().into_os_string();
        log.push("-wal");
        let log = Path::new(&log).metadata().map_or(0, |metadata| metadata.len());
        let in_tree = [root.subdirectory.as_bytes(), path.as_bytes()];
        let in_tree = in_tree.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(&b'/');
        if let Ok(path) = TreePath::parse(&in_tree) {
            found.push((path, length + log));
        }
    }
    (found, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plan that says NOT ENOUGH names what stops the run, so that its exit code says so too.
    #[test]
    fn a_target_without_room_stops_the_run() {
        let target = |room_bytes, room_of_quota| Outlook {
            free_bytes: 1000,
            room_bytes,
            room_of_quota,
            ..Default::default()
        };
        assert!(lack_of_room(1000, &target(None, false)).is_none());
        assert_eq!(lack_of_room(1001, &target(None, false)).expect("full").reason, "target-full");
        assert_eq!(lack_of_room(901, &target(Some(900), false)).expect("reserve").reason, "target-full");
        assert!(lack_of_room(1500, &target(Some(1500), false)).is_none(), "abandoned runs give way");
        assert_eq!(lack_of_room(1, &target(Some(0), true)).expect("quota").reason, "quota-exceeded");
    }
}
