//! Before FAIL is said: gathers what tells where the fault came in, and asks for no more than that takes.

use assay_common::{
    digest::RootDigest,
    id::{GenerationNumber, RunId},
    manifest::{Entry, EntryKind},
    path::TreePath,
    verdict::{Attribution, Outcome, ReadBack, Verdict},
};
use assay_proto::v1::ReadAgain;

use super::{AskedBy, overlay_files, step};
use crate::{
    check::{self, CheckReport},
    repository::Repository,
    store::Record,
    trust::{
        attribute::{Asked, Concerned, Facts, Recheck, judge},
        difference::differences,
        named::Named,
        readback::{self, read_back},
        second,
    },
};

/// Files that the source is asked for at most.
const MAX_FILES: usize = 1000;
/// Bytes that it is asked to read at most: an hour of an ordinary disk.
const MAX_BYTES: u64 = 256 << 30;

/// Where the fault came in, and a generation that the gathering found to be rotten.
pub(super) struct Gathered {
    /// Where the fault came in.
    pub attribution: Attribution,
    /// A generation that had passed and turned out not to be what arrived, with the report of the check on it.
    pub rotten: Option<Rotten>,
}

/// A generation that had passed and is not what arrived any longer.
pub(super) struct Rotten {
    pub record: Record,
    pub report: CheckReport,
    pub attribution: Attribution,
}

/// A file that may hold the fault.
struct Suspect {
    wanted: ReadAgain,
    digest: Vec<u8>,
    unstable: bool,
    shown: String,
}

impl Suspect {
    fn new(path: &TreePath, entry: &Entry, absent: bool) -> Self {
        Self {
            wanted: ReadAgain {
                path: path.as_bytes().to_vec(),
                size: entry.size,
                mtime_seconds: entry.mtime_seconds,
                mtime_nanos: entry.mtime_nanos,
                absent,
            },
            digest: entry.digest.clone(),
            unstable: entry.unstable,
            shown: path.to_string(),
        }
    }
}

/// The files that may hold the fault, a bounded number of them.
#[derive(Default)]
struct Suspects {
    files: Vec<Suspect>,
    bytes: u64,
    left_out: u64,
}

impl Suspects {
    fn add(&mut self, suspect: Suspect) {
        let bytes = self.bytes.saturating_add(suspect.wanted.size);
        if self.files.len() == MAX_FILES || (bytes > MAX_BYTES && !self.files.is_empty()) {
            self.left_out += 1;
            return;
        }
        self.bytes = bytes;
        self.files.push(suspect);
    }
}

/// Gathers and judges, for a check of `record` that said FAIL in `report`.
pub(super) fn gather(
    repository: &Repository,
    run_id: &RunId,
    record: &Record,
    report: &CheckReport,
    asked_by: AskedBy,
    progress: &super::Teller<'_>,
) -> Gathered {
    let number = GenerationNumber(record.generation);
    let last_pass = repository.last_pass_before(number);
    progress.step("reading the generation back");
    let named = Named::new(texts(report), &record.roots);
    let mut by_name = Suspects::default();
    let mut unstable = Suspects::default();
    let read = read_back(&repository.store, number, root_of(record), |path, entry| {
        if entry.kind() != EntryKind::File {
            return;
        }
        if named.names(path) {
            by_name.add(Suspect::new(path, entry, false));
        }
        if entry.unstable {
            unstable.add(Suspect::new(path, entry, false));
        }
    });
    let intact = read.as_ref().is_ok_and(|report| report.differ == 0);
    let (suspects, chosen) = suspects(repository, number, last_pass, &named, by_name, unstable);
    // The rest costs a reading or a check, and cannot change what is known.
    let (mut asked, mut answers, mut recheck, mut rotten) =
        (Asked::NoSource, None, Recheck::NotDone("it was not needed".to_owned()), None);
    if intact {
        let needs_reading = !suspects.files.is_empty() && !suspects.files.iter().any(|file| file.unstable);
        if let (AskedBy::Source, true) = (asked_by, needs_reading) {
            progress.step("waiting for the source to read again");
            let wanted = suspects.files.iter().map(|suspect| suspect.wanted.clone()).collect();
            answers = repository.desk.ask(run_id, wanted, |wanted| progress.ask(wanted));
            asked = if answers.is_some() { Asked::Answered } else { Asked::Silent };
        } else if asked_by == AskedBy::Source {
            asked = Asked::Answered;
        }
        (recheck, rotten) = recheck_known_good(repository, record, report, progress);
    }
    let concerned = suspects.files.iter().map(|suspect| Concerned {
        path: suspect.shown.clone(),
        unstable: suspect.unstable,
        again: answers.as_ref().map(|answers| {
            second::judge(&suspect.wanted, &suspect.digest, answers.get(&suspect.wanted.path))
        }),
    });
    let facts = Facts {
        read_back: read.map(counted).map_err(|error| error.to_string()),
        concerned: concerned.collect(),
        chosen,
        left_out: suspects.left_out,
        asked,
        recheck,
        earlier: repository.last_verdict(number).and_then(|(id, verdict)| Some((id, verdict.attribution?))),
        control: repository.control(),
        last_pass,
    };
    Gathered { attribution: judge(facts), rotten }
}

fn root_of(record: &Record) -> Option<RootDigest> {
    RootDigest::from_hex(&record.root_digest)
}

fn counted(report: readback::Report) -> (ReadBack, Vec<(String, String)>) {
    let counts = ReadBack { files: report.files, bytes: report.bytes, differ: report.differ };
    (counts, report.found.into_iter().map(|differing| (differing.path, differing.what)).collect())
}

/// What the check said, as far as it may name files: its findings, or the one line that decided when there are none.
fn texts(report: &CheckReport) -> impl Iterator<Item = &str> {
    let findings = || report.steps.iter().flat_map(|step| &step.findings).map(String::as_str);
    let message = findings().next().is_none().then_some(report.message.as_str());
    findings().chain(message)
}

/// The files that may hold the fault, and how they were chosen: those whose content has changed since the newest generation that
/// passed, because what did not change was passed then; of these, those that the findings name, where they name any.
fn suspects(
    repository: &Repository,
    number: GenerationNumber,
    last_pass: Option<GenerationNumber>,
    named: &Named,
    by_name: Suspects,
    unstable: Suspects,
) -> (Suspects, String) {
    let (mut changed, mut changed_by_name) = (Suspects::default(), Suspects::default());
    let compared = last_pass.map(|last_pass| {
        differences(&repository.store, (last_pass, number), |change| {
            let (entry, absent) = match (&change.before, &change.after) {
                (_, Some(after)) if after.kind() == EntryKind::File => (after, false),
                (Some(before), None) if before.kind() == EntryKind::File => (before, true),
                _ => return,
            };
            if !change.is_content() {
                return;
            }
            if named.names(&change.path) {
                changed_by_name.add(Suspect::new(&change.path, entry, absent));
            }
            changed.add(Suspect::new(&change.path, entry, absent));
        })
    });
    match (compared, last_pass) {
        (Some(Ok(())), Some(last_pass)) if !changed_by_name.files.is_empty() => (
            changed_by_name,
            format!(
                "the files that the findings name and that changed since generation {last_pass}, which passed"
            ),
        ),
        (Some(Ok(())), Some(last_pass)) => {
            (changed, format!("the files that changed since generation {last_pass}, which passed"))
        }
        (compared, _) => {
            if let Some(Err(error)) = compared {
                tracing::warn!(%error, "what changed since the last generation that passed is not known");
            }
            if by_name.files.is_empty() {
                (unstable, "the files that never held still".to_owned())
            } else {
                (by_name, "the files that the findings name".to_owned())
            }
        }
    }
}

/// Runs the check on a generation that it had passed: a checker that fails it too tells nothing about this one.
fn recheck_known_good(
    repository: &Repository,
    record: &Record,
    report: &CheckReport,
    progress: &super::Teller<'_>,
) -> (Recheck, Option<Rotten>) {
    let not_done = |why: &str| (Recheck::NotDone(why.to_owned()), None);
    let own = GenerationNumber(record.generation);
    if let Some((id, verdict)) = repository.last_conclusive(own)
        && verdict.outcome == Outcome::Pass
        && is_same_check(repository, &verdict, report)
    {
        return (Recheck::OwnPass { verdict: id }, None);
    }
    if !repository.config.recheck_on_fail {
        return not_done("it is switched off in the configuration");
    }
    // Before the first negative control has passed nothing is called verified, and there may be a PASS all the same.
    let verified = match repository.store.verified() {
        Some(verified) => Some(verified).filter(|generation| *generation != own),
        None => repository.last_pass_before(own),
    };
    let Some(generation) = verified else {
        return not_done("there is none");
    };
    let Ok(known_good) = repository.store.record(generation) else {
        return not_done("its record cannot be read");
    };
    let again = super::check_in_full(repository, &known_good, &progress.cancel, &|step| {
        progress.step(&format!("{step} of generation {generation}, which had passed"));
    });
    let again = match again {
        Ok(again) => again,
        Err(reason) => return (Recheck::Inconclusive { generation, reason }, None),
    };
    match again.outcome {
        check::Outcome::Pass => (Recheck::Passes(generation), None),
        check::Outcome::Inconclusive => {
            let reason = format!("{}: {}", again.reason, again.message);
            (Recheck::Inconclusive { generation, reason }, None)
        }
        check::Outcome::Fail => {
            progress.step(&format!("reading generation {generation} back"));
            let read = read_back(&repository.store, generation, root_of(&known_good), |_, _| {});
            match read.map(counted) {
                Ok((counts, _)) if counts.differ == 0 => {
                    let passed = repository.last_conclusive(generation);
                    let same_check =
                        passed.is_some_and(|(_, verdict)| is_same_check(repository, &verdict, &again));
                    (Recheck::Fails { generation, same_check }, None)
                }
                Ok((counts, differing)) => {
                    let files = differing.iter().map(|(path, _)| path.clone()).collect();
                    let attribution = judge(Facts {
                        read_back: Ok((counts, differing)),
                        concerned: Vec::new(),
                        chosen: String::new(),
                        left_out: 0,
                        asked: Asked::NoSource,
                        recheck: Recheck::NotDone("it was not needed".to_owned()),
                        earlier: None,
                        control: repository.control(),
                        last_pass: repository.last_pass_before(generation),
                    });
                    let rotten = Rotten { record: known_good, report: again, attribution };
                    (Recheck::Rotten { generation, files }, Some(rotten))
                }
                Err(error) => (Recheck::Inconclusive { generation, reason: error.to_string() }, None),
            }
        }
    }
}

/// Whether a verdict came of the same profile, commands and overlay files as a check of now, as far as that one went.
fn is_same_check(repository: &Repository, before: &Verdict, now: &CheckReport) -> bool {
    let profile = before
        .profile
        .as_ref()
        .is_some_and(|profile| profile.digest.to_string() == repository.config.profile.digest());
    let overlays: Vec<_> = overlay_files(now).collect();
    let mut then = before.steps.iter();
    profile
        && before.overlay_files == overlays
        && !now.steps.is_empty()
        && now
            .steps
            .iter()
            .map(|now| step(now, false))
            .all(|now| then.next().is_some_and(|then| then.name == now.name && then.argv == now.argv))
}
