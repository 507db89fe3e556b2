//! Where a fault came in: [`judge`] weighs the facts that were gathered before FAIL is said.
//!
//! The first line that applies decides:
//!
//! 1. the generation is not what arrived: target-disk;
//! 2. the same check said PASS to these same bytes before, or says FAIL to a generation whose bytes have not changed since
//!    it passed them: checker, and the outcome is INCONCLUSIVE, because nothing is known of the data;
//! 3. a file concerned never held still while it was read: torn-read;
//! 4. the source reads a file differently that nobody has written to since: torn-read;
//! 5. every file concerned is read again as it was read: live;
//! 6. an earlier verdict on this same generation knew more, and its bytes are still those: as that one says;
//! 7. anything else: unknown, with all that is known.
//!
//! A negative control that was passed does not make a FAIL the checker's fault: a checker that misses damage is not known to
//! find damage that is not there.

use assay_common::{
    cli::show,
    id::GenerationNumber,
    verdict::{Attribution, FaultOrigin, NegativeControl, ReadBack, Trust},
};

use super::second::Again;

/// Paths that a verdict lists.
const FILES: usize = 100;

/// A file that may hold the fault.
#[derive(Debug, Clone)]
pub struct Concerned {
    /// Its path, made printable.
    pub path: String,
    /// It never held still while it was read.
    pub unstable: bool,
    /// What the second reading says; `None` when there was none.
    pub again: Option<Again>,
}

/// What running the check on a generation that had passed says of the checker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recheck {
    /// It was not done, for this reason.
    NotDone(String),
    /// The same check had passed the very generation that it fails now.
    OwnPass {
        /// The verdict that says so.
        verdict: String,
    },
    /// It passes that generation again.
    Passes(GenerationNumber),
    /// It fails that generation, whose bytes are what arrived.
    Fails {
        /// Which.
        generation: GenerationNumber,
        /// The same profile and commands had passed it.
        same_check: bool,
    },
    /// It fails that generation, and the disk has not kept it.
    Rotten {
        /// Which.
        generation: GenerationNumber,
        /// Files of it that differ.
        files: Vec<String>,
    },
    /// It could not do its work there.
    Inconclusive {
        /// Which.
        generation: GenerationNumber,
        /// Why.
        reason: String,
    },
}

/// How the source was asked to read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// No source waits for this check.
    NoSource,
    /// It fell silent.
    Silent,
    /// It answered.
    Answered,
}

/// All that is known.
#[derive(Debug)]
pub struct Facts {
    /// Reading back: counts and what differs, or why it could not be done.
    pub read_back: Result<(ReadBack, Vec<(String, String)>), String>,
    /// The files that may hold the fault.
    pub concerned: Vec<Concerned>,
    /// How they were chosen, for the evidence.
    pub chosen: String,
    /// Files that may hold the fault as well and were not asked for, because they are too many.
    pub left_out: u64,
    /// The second reading.
    pub asked: Asked,
    /// The check on a generation that had passed.
    pub recheck: Recheck,
    /// What an earlier verdict on this generation says, with its id.
    pub earlier: Option<(String, Attribution)>,
    /// The newest negative control.
    pub control: Option<NegativeControl>,
    /// The newest generation before this one that passed.
    pub last_pass: Option<GenerationNumber>,
}

/// Weighs the facts.
pub fn judge(facts: Facts) -> Attribution {
    let mut evidence = Vec::new();
    let read_back = match &facts.read_back {
        Ok((counts, differing)) => {
            if counts.differ == 0 {
                evidence.push(format!(
                    "the disk kept it: reading this generation back, {} with {}, gave what had arrived",
                    show::counted(counts.files, "file"),
                    show::bytes(counts.bytes)
                ));
            }
            evidence.extend(differing.iter().take(10).map(|(path, what)| format!("{path}: {what}")));
            if counts.differ > 10 {
                evidence.push(format!("and {} more files differ", counts.differ - 10));
            }
            Some(*counts)
        }
        Err(why) => {
            evidence.push(format!("the generation could not be read back: {why}"));
            None
        }
    };
    evidence.push(
        "the transfer is sound: each chunk, each file and the whole were compared with the digests that the source \
         signed before anything was sealed"
            .to_owned(),
    );
    evidence.extend(recheck_evidence(&facts.recheck));
    if let Some(control) = facts.control.as_ref().filter(|control| control.trust() == Trust::NotTrusted) {
        evidence.push(format!(
            "the checker is not trusted: it passed damaged data in its negative control ({})",
            control.message
        ));
    }
    let (fault, files) = decide(&facts, &mut evidence);
    // What matters comes first: whoever reads one sentence reads the one that decided.
    if let Some(last) = evidence.pop() {
        evidence.insert(0, last);
    }
    Attribution {
        fault,
        evidence,
        files: files.into_iter().take(FILES).collect(),
        read_back,
        last_pass: facts.last_pass,
    }
}

/// The fault and its files; the deciding sentence goes to the end of the evidence.
fn decide(facts: &Facts, evidence: &mut Vec<String>) -> (FaultOrigin, Vec<String>) {
    let paths = |wanted: &dyn Fn(&Concerned) -> bool| -> Vec<String> {
        facts.concerned.iter().filter(|file| wanted(file)).map(|file| file.path.clone()).collect()
    };
    if let Ok((counts, differing)) = &facts.read_back
        && counts.differ > 0
    {
        evidence.push(format!(
            "this host's disk or memory changed {} of the {} of this generation",
            show::counted(counts.differ, "file"),
            counts.files
        ));
        return (FaultOrigin::TargetDisk, differing.iter().map(|(path, _)| path.clone()).collect());
    }
    match &facts.recheck {
        Recheck::OwnPass { verdict } => {
            evidence.push(format!(
                "the same check passed these same bytes before (verdict {verdict}): the checker contradicts itself"
            ));
            return (FaultOrigin::Checker, Vec::new());
        }
        Recheck::Fails { generation, same_check: true } => {
            evidence.push(format!(
                "the same check now fails generation {generation} as well, which it had passed and whose bytes have not \
                 changed since: the checker contradicts itself"
            ));
            return (FaultOrigin::Checker, Vec::new());
        }
        _ => {}
    }
    let unstable = paths(&|file| file.unstable);
    if !unstable.is_empty() {
        evidence.push(format!(
            "torn read: {} changed on every try while it was read, and was taken as last read",
            list(&unstable)
        ));
        return (FaultOrigin::TornRead, unstable);
    }
    let twice = paths(&|file| file.again == Some(Again::Unstable));
    if !twice.is_empty() {
        evidence.push(format!(
            "two readings differ: nobody has written to {} since, and the source now reads other bytes than it sent (a torn \
             read, or the source's disk or memory)",
            list(&twice)
        ));
        return (FaultOrigin::TornRead, twice);
    }
    let all = paths(&|_| true);
    let same = |file: &Concerned| {
        matches!(file.again, Some(Again::Same | Again::Grown | Again::StillAbsent | Again::OfMark))
    };
    let changed_check = matches!(facts.recheck, Recheck::Fails { .. });
    if facts.read_back.is_ok()
        && !facts.concerned.is_empty()
        && facts.left_out == 0
        && facts.concerned.iter().all(same)
        && !changed_check
    {
        evidence.push(format!("the live data is bad: {}", live_evidence(facts)));
        return (FaultOrigin::Live, all);
    }
    if facts.asked == Asked::NoSource
        && facts.read_back.is_ok()
        && let Some((id, earlier)) = &facts.earlier
        && matches!(earlier.fault, FaultOrigin::Live | FaultOrigin::TornRead)
    {
        evidence.push(format!("as verdict {id} on this generation found, whose bytes are still those"));
        return (earlier.fault, earlier.files.clone());
    }
    evidence.push(unknown_evidence(facts, changed_check));
    (FaultOrigin::Unknown, all)
}

fn live_evidence(facts: &Facts) -> String {
    let count = |wanted: Again| facts.concerned.iter().filter(|file| file.again == Some(wanted)).count();
    let mut parts = Vec::new();
    for (again, text) in [
        (Again::Same, "read again as sent"),
        (Again::Grown, "read again as sent, with more appended meanwhile"),
        (Again::StillAbsent, "missing on the live side as well"),
        (Again::OfMark, "snapshot that the engine wrote for this mark"),
    ] {
        if count(again) > 0 {
            parts.push(format!("{} {text}", count(again)));
        }
    }
    format!("of {}, {}", facts.chosen, parts.join(", "))
}

fn unknown_evidence(facts: &Facts, changed_check: bool) -> String {
    let of = |wanted: Again| -> Vec<String> {
        let files = facts.concerned.iter().filter(|file| file.again == Some(wanted));
        files.map(|file| file.path.clone()).collect()
    };
    if changed_check {
        return "live or checker: the check was changed since it passed the generation that it now fails too"
            .to_owned();
    }
    match facts.asked {
        Asked::NoSource => {
            "live, torn read or checker: the source was not asked to read again, because no run of it waits"
                .to_owned()
        }
        Asked::Silent => {
            "live, torn read or checker: the source did not answer when it was asked to read again".to_owned()
        }
        Asked::Answered if facts.concerned.is_empty() => {
            "live or checker: no file is known that may hold the fault".to_owned()
        }
        Asked::Answered if !of(Again::Changed).is_empty() => format!(
            "live or torn read: {} changed since it was read, so what it was then is not known",
            list(&of(Again::Changed))
        ),
        Asked::Answered if facts.left_out > 0 => format!(
            "live or torn read: of {}, {} more were not read again, because they are too many",
            facts.chosen, facts.left_out
        ),
        Asked::Answered => {
            format!("live or torn read: {} could not be read again", list(&of(Again::NotRead)))
        }
    }
}

fn recheck_evidence(recheck: &Recheck) -> Option<String> {
    match recheck {
        Recheck::NotDone(why) => {
            Some(format!("the check was not tried on a generation that had passed: {why}"))
        }
        Recheck::Passes(generation) => {
            Some(format!("the checker tells good from bad: it passes generation {generation} again"))
        }
        Recheck::Fails { same_check: false, generation } => Some(format!(
            "the check fails generation {generation} too, which another version of it had passed"
        )),
        Recheck::Rotten { generation, files } => Some(format!(
            "generation {generation}, which had passed, is not what arrived here any longer: {}",
            list(files)
        )),
        Recheck::Inconclusive { generation, reason } => {
            Some(format!("the check could not do its work on generation {generation}: {reason}"))
        }
        Recheck::OwnPass { .. } | Recheck::Fails { .. } => None,
    }
}

fn list(paths: &[String]) -> String {
    match paths {
        [] => "a file".to_owned(),
        [one] => one.clone(),
        [one, two] => format!("{one} and {two}"),
        [one, two, rest @ ..] => format!("{one}, {two} and {} more", rest.len()),
    }
}

#[cfg(test)]
mod tests;
