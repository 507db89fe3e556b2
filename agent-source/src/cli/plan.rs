//! `plan`: what a run would do, on one screen.

use std::process::ExitCode;

use assay_common::{
    cli::{
        CommandError, print, print_json,
        screen::{counted, lines, row, safe},
        show,
    },
    fidelity::FsLimits,
    json::to_output,
};
use assay_proto::v1::{
    Outlook, PlanRunRequest, PlannedRereading, PlannedWork, RunPlan,
    source_service_client::SourceServiceClient,
};
use tonic::transport::Channel;

/// Asks for the plan and shows it. 0 when a run would come to its check, 4 when something would stop it before.
pub(super) async fn plan(
    client: &mut SourceServiceClient<Channel>,
    request: PlanRunRequest,
    url: &str,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let answer = client.plan_run(request).await;
    let plan = answer.map_err(|status| CommandError::from_status(&status, url))?.into_inner();
    if json {
        print_json(&to_output("RunPlan", &plan));
    } else {
        print(&text(&plan));
    }
    Ok(ExitCode::from(if plan.stops.is_empty() { 0 } else { 4 }))
}

fn text(plan: &RunPlan) -> String {
    let mut text =
        format!("plan of {}, {}: nothing was done\n", plan.repository, show::time(plan.time.as_ref()));
    for stop in &plan.stops {
        lines(&mut text, "STOP", &format!("{}: {}", stop.reason, stop.message));
    }
    let settle = match plan.settle_milliseconds {
        0 => String::new(),
        pause => format!(", then a pause of {} s", pause as f64 / 1000.0),
    };
    row(&mut text, "mark", &format!("{}{settle}", plan.mark));
    if let Some(work) = &plan.work {
        self::work(&mut text, plan, work);
    }
    if let Some(again) = &plan.rereading {
        rereading(&mut text, again);
    }
    for left_out in &plan.left_out {
        lines(&mut text, "left out", &safe(left_out));
    }
    for mount in &plan.mounts {
        row(
            &mut text,
            "mounted",
            &format!("{} ({}): {}", safe(&mount.path), safe(&mount.kind), safe(&mount.fate)),
        );
    }
    if let Some(target) = &plan.target {
        self::target(&mut text, target, plan.work.as_ref());
    }
    if let Some(next) = &plan.next_run {
        row(&mut text, "next run", &show::time(Some(next)));
    }
    text
}

fn work(text: &mut String, plan: &RunPlan, work: &PlannedWork) {
    let files =
        |count: u64, bytes: u64| format!("{}, {}", counted(count, "file", "files"), show::bytes(bytes));
    let base = plan.target.as_ref().map_or(0, |target| target.base_generation);
    let why = match (plan.full_read, plan.basis_known, base) {
        (true, _, _) => ": every file is read".to_owned(),
        (_, true, 0) => ", since the last generation known here".to_owned(),
        (_, true, base) => format!(", since generation {base}"),
        (_, false, 0) => ": there is no generation yet".to_owned(),
        (_, false, _) => ": what is known here is not the target's newest generation".to_owned(),
    };
    row(text, "to read", &format!("{}{why}", files(work.read_files, work.read_bytes)));
    row(text, "to send", &format!("at most {}, before compression", show::bytes(work.send_bytes)));
    row(text, "  new", &files(work.new_files, work.new_bytes));
    row(text, "  changed", &files(work.changed_files, work.changed_bytes));
    row(
        text,
        "  moved",
        &format!("{}: the target has their content", files(work.moved_files, work.moved_bytes)),
    );
    for file in &work.largest {
        row(text, "", &format!("{:>9}  {}", show::bytes(file.size), safe(&file.path)));
    }
    let (kept, entries) = (work.kept_entries, work.entries);
    row(
        text,
        "kept",
        &format!(
            "{kept} of {}, {} in all",
            counted(entries, "entry", "entries"),
            show::bytes(work.total_bytes)
        ),
    );
    let share = 100.0 * work.dropped_entries as f64 / work.base_entries.max(1) as f64;
    row(
        text,
        "dropped",
        &format!(
            "{} of {}, {share:.1} %; more than {} % would stop the run",
            work.dropped_entries,
            counted(work.base_entries, "entry", "entries"),
            plan.drop_stop_percent
        ),
    );
}

/// How what has not changed is read again.
fn rereading(text: &mut String, again: &PlannedRereading) {
    if again.within_seconds == 0 {
        return row(text, "read again", "unchanged files are not: reread_within is off");
    }
    let (files, bytes, within) = (again.files, show::bytes(again.bytes), show::age(again.within_seconds));
    row(text, "read again", &format!("{files} unchanged files, {bytes}: every byte within {within}"));
    if let Some(oldest) = &again.oldest_reading {
        row(text, "", &format!("the oldest reading is of {}", show::time(Some(oldest))));
    }
    if again.files_of_unknown_age > 0 {
        row(
            text,
            "",
            &format!("{}: it is not known when", counted(again.files_of_unknown_age, "file", "files")),
        );
    }
    if let Some(by) = &again.all_read_by {
        row(text, "", &format!("all of it by {}", show::time(Some(by))));
    }
    for warning in &again.warnings {
        lines(text, "", &format!("WARNING: {}", safe(warning)));
    }
}

fn target(text: &mut String, target: &Outlook, work: Option<&PlannedWork>) {
    let steps = target.steps.iter().map(|step| {
        let limit = std::time::Duration::from_secs(step.may_take_seconds);
        format!("{} ({}, {} at most)", safe(&step.name), safe(&step.depth), show::age(limit.as_secs()))
    });
    let steps = steps.collect::<Vec<_>>().join(", ");
    let (profile, version) = (safe(&target.profile), safe(&target.profile_version));
    row(text, "check", &format!("profile {profile} {version}: {steps}"));
    row(text, "", &format!("isolation {}", safe(&target.isolation)));
    if target.rotten_files > 0 {
        row(
            text,
            "to heal",
            &format!(
                "{}, corrupt on the target's disk, to be sent again",
                show::counted(target.rotten_files, "file")
            ),
        );
    }
    let made = match &target.negative_control {
        None => "never made".to_owned(),
        Some(control) => format!("{} at {}", safe(&control.trust), show::time(control.time.as_ref())),
    };
    let due = match &target.control_due {
        None => "on request only".to_owned(),
        Some(due) => format!("next due {}", show::time(Some(due))),
    };
    row(text, "control", &format!("{made}; {due}"));
    let free = show::bytes(target.free_bytes);
    let room = target.room_bytes.unwrap_or(target.free_bytes);
    let note = if work.is_some_and(|work| work.send_bytes > room) { ": NOT ENOUGH" } else { "" };
    let of_it = match target.room_bytes {
        None => String::new(),
        Some(_) if target.room_of_quota => format!("; the quota leaves {}", show::bytes(room)),
        Some(_) => format!("; a run may write {}", show::bytes(room)),
    };
    row(text, "room", &format!("{free} free on the target{of_it}{note}"));
    if let Some(limits) = &target.store_holds {
        lines(text, "store", &FsLimits::from(limits).summary());
    }
}

#[cfg(test)]
mod tests {
    use assay_common::{cli::screen::COLUMNS, verdict::timestamp_to_proto};
    use assay_proto::v1::{PlannedFile, PlannedStep, PlannedStop};

    use super::*;

    #[test]
    fn a_plan_fits_a_terminal_and_obeys_nobody() {
        let plan = RunPlan {
            repository: "app".to_owned(),
            mark: "postgresql".to_owned(),
            basis_known: true,
            stops: vec![PlannedStop {
                reason: "mass-drop".to_owned(),
                message: "a \u{1b}[2J text\nHINT: a remedy that is so long that it does not fit a line of eighty columns".to_owned(),
            }],
            work: Some(PlannedWork {
                entries: 120_000,
                read_files: 12,
                largest: vec![PlannedFile { path: "base/1".to_owned(), size: 4096 }],
                ..Default::default()
            }),
            target: Some(Outlook {
                base_generation: 41,
                steps: (0..4)
                    .map(|step| PlannedStep { name: format!("step-{step}"), depth: "L2".to_owned(), may_take_seconds: 3600 })
                    .collect(),
                ..Default::default()
            }),
            drop_stop_percent: 50,
            rereading: Some(PlannedRereading {
                within_seconds: 7 * 86_400,
                files: 3,
                bytes: 5_000_000,
                files_of_unknown_age: 2,
                all_read_by: "2026-12-06T00:00:00Z".parse().ok().map(timestamp_to_proto),
                warnings: vec!["reading all of it takes more than the rate allows, and that is a long sentence".to_owned()],
                ..Default::default()
            }),
            ..Default::default()
        };
        let text = text(&plan);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(text.contains("STOP         mass-drop: a "), "{text}");
        assert!(text.contains("12 files, 0 B, since generation 41"), "{text}");
        assert!(text.contains("   4.1 kB  base/1"), "{text}");
        assert!(
            text.contains("read again   3 unchanged files, 5.0 MB: every byte within 7 days\n"),
            "{text}"
        );
        assert!(text.contains("             all of it by 2026-12-06 00:00:00Z\n"), "{text}");
        assert!(text.contains("WARNING: reading all of it"), "{text}");
    }
}
