//! What one check looks at, and what it carries.

use std::collections::BTreeMap;

use assay_common::{
    path::TreePath,
    verdict::{Carried, CarriedFrom, HexDigest, MAX_LISTED},
};
use jiff::Timestamp;

use super::{
    choice::{Passed, Times, choose},
    listing::{Part, StepParts, list},
    memory::{Memory, StepMemory, recall},
    record::{CheckOfParts, FORM, PartsRecord, StepRecord},
};
use crate::{
    check::{CheckReport, NotCovered, PartArgument, SPECIAL_FILE, StepReport},
    config,
    repository::Repository,
    store::Record,
};

/// What one check looks at, and what it carries. A check of a profile without parts has an empty plan.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    steps: Vec<PlannedStep>,
    /// When the check begins.
    started: Timestamp,
    /// When the newest check began that carried nothing.
    full_check: Option<Timestamp>,
}

/// A step of the plan.
#[derive(Debug, Clone)]
struct PlannedStep {
    step: String,
    /// How long a part keeps its PASS, in seconds.
    within: u64,
    /// The engine that the carried parts were checked by.
    engine: Option<String>,
    /// What is checked now; `None`: the whole, which has no parts.
    check: Option<Vec<Part>>,
    carried: Vec<(Part, Passed)>,
}

/// The parts of a generation that has just passed a full check.
#[derive(Debug)]
pub(crate) struct Undamaged(Vec<StepParts>);

impl Plan {
    /// A check of all parts, as of `now`.
    ///
    /// # Errors
    /// When the manifest cannot be read.
    pub(crate) fn full(
        repository: &Repository,
        checker: HexDigest,
        record: &Record,
        now: Timestamp,
    ) -> Result<Self, String> {
        let steps = list(repository, checker, record, None)?;
        Ok(Self::of_all(steps, &repository.config, now))
    }

    fn of_all(steps: Vec<StepParts>, config: &config::Repository, now: Timestamp) -> Self {
        let within = config.recheck_within;
        let steps = steps.into_iter().map(|step| PlannedStep {
            within: within.unwrap_or(step.recheck_within).as_secs(),
            step: step.step,
            engine: None,
            check: step.parts,
            carried: Vec::new(),
        });
        Self { steps: steps.collect(), started: now, full_check: None }
    }

    /// A check that carries what earlier verdicts allow, as of `now`.
    ///
    /// # Errors
    /// When the manifest cannot be read.
    pub(crate) fn carrying(
        repository: &Repository,
        checker: HexDigest,
        record: &Record,
        now: Timestamp,
    ) -> Result<Self, String> {
        let mut full = Self::full(repository, checker, record, now)?;
        if full.steps.is_empty() {
            return Ok(full);
        }
        let memory = recall(repository, checker).and_then(|memory| usable(repository, record, memory, now));
        match memory {
            Ok(memory) => {
                full.full_check = Some(memory.full_check);
                for step in &mut full.steps {
                    let known = memory.steps.get(&step.step).cloned().unwrap_or_default();
                    let times = Times {
                        now,
                        mark: record.mark.time,
                        last: memory.time,
                        within: std::time::Duration::from_secs(step.within),
                    };
                    step.carry(known, &times);
                }
                full.tell();
            }
            Err(why) => tracing::info!(why, "the check looks at all parts"),
        }
        Ok(full)
    }

    /// The parts of a generation that has just passed a full check, for [`Self::with_damage`].
    ///
    /// # Errors
    /// When the manifest cannot be read.
    pub(crate) fn undamaged(repository: &Repository, record: &Record) -> Result<Undamaged, String> {
        list(repository, repository.checker(), record, None).map(Undamaged)
    }

    /// A check of the generation in which the content of `file` is another one, by the same rules as any other check: what does not depend
    /// on the file is carried.
    ///
    /// # Errors
    /// When the manifest cannot be read.
    pub(crate) fn with_damage(
        repository: &Repository,
        record: &Record,
        file: &TreePath,
        before: &Undamaged,
    ) -> Result<Self, String> {
        let steps = list(repository, repository.checker(), record, Some(file))?;
        let now = Timestamp::now();
        let mut plan = Self::of_all(steps, &repository.config, now);
        for step in &mut plan.steps {
            let undamaged = before.0.iter().filter(|before| before.step == step.step);
            let parts = undamaged.flat_map(|before| before.parts.iter().flatten());
            let passed = parts.filter_map(|part| {
                Some((part.name.clone(), Passed { inputs: part.inputs?, checked: now, sequence: 0 }))
            });
            let known = StepMemory { engine: None, parts: passed.collect() };
            let within = std::time::Duration::from_secs(step.within.max(1));
            step.carry(known, &Times { now, mark: now, last: now, within });
        }
        Ok(plan)
    }

    /// What each step is given.
    pub(crate) fn arguments(&self) -> BTreeMap<String, Vec<PartArgument>> {
        let of_step = |step: &PlannedStep| {
            let arguments = step.check.as_ref()?.iter().map(|part| part.argument.clone());
            Some((step.step.clone(), arguments.collect()))
        };
        self.steps.iter().filter_map(of_step).collect()
    }

    /// True if a step says that it was done by another version of its engine than the one that the carried parts passed with.
    pub(crate) fn is_of_other_engine(&self, report: &CheckReport) -> bool {
        self.steps.iter().filter(|step| !step.carried.is_empty()).any(|step| {
            let mut engines = steps_of(report, &step.step).map(|it| &it.engine);
            engines.any(|engine| *engine != step.engine)
        })
    }

    /// The carried results, as the verdict lists them; `None` if every part was checked.
    pub(crate) fn carried(&self) -> Option<Carried> {
        let carried = || self.steps.iter().flat_map(|step| &step.carried).map(|(_, passed)| passed);
        let times = || carried().map(|passed| passed.checked);
        let mut verdicts = BTreeMap::<u64, u64>::new();
        carried().for_each(|passed| *verdicts.entry(passed.sequence).or_default() += 1);
        let listed =
            verdicts.iter().map(|(sequence, parts)| CarriedFrom { sequence: *sequence, parts: *parts });
        Some(Carried {
            parts: carried().count() as u64,
            parts_checked_now: self.steps.iter().flat_map(|step| step.check.iter().flatten()).count() as u64,
            verdicts: listed.take(MAX_LISTED).collect(),
            verdicts_total: verdicts.len() as u64,
            oldest: times().min()?,
            newest: times().max()?,
            limit_seconds: self
                .steps
                .iter()
                .filter(|step| !step.carried.is_empty())
                .map(|it| it.within)
                .max(),
        })
    }

    /// Writes the record of all parts that have passed after this check has, and gives its digest for the verdict. `None` when there is
    /// nothing to carry for later checks.
    pub(crate) fn write_record(&self, repository: &Repository, report: &CheckReport) -> Option<HexDigest> {
        let record = self.record(&repository.config.name, report)?;
        match record.write(repository.store.path()) {
            Ok(digest) => Some(digest),
            Err(error) => {
                tracing::warn!(%error, "the parts that have passed are not recorded: the next check looks at all of them");
                None
            }
        }
    }

    fn record(&self, repository: &str, report: &CheckReport) -> Option<PartsRecord> {
        let own = CheckOfParts { sequence: None, time: self.started };
        let mut checks = vec![own];
        let mut known = BTreeMap::<u64, usize>::new();
        let mut steps = BTreeMap::new();
        for step in &self.steps {
            let mut parts = BTreeMap::new();
            for (part, passed) in &step.carried {
                let at = *known.entry(passed.sequence).or_insert_with(|| {
                    checks.push(CheckOfParts { sequence: Some(passed.sequence), time: passed.checked });
                    checks.len() - 1
                });
                parts.insert(part.name.clone(), (passed.inputs, at));
            }
            let missed: Vec<_> = steps_of(report, &step.step).flat_map(|it| &it.not_covered).collect();
            for part in step.covered(&missed) {
                parts.extend(part.inputs.map(|inputs| (part.name.clone(), (inputs, 0))));
            }
            let engine = steps_of(report, &step.step).find_map(|it| it.engine.clone());
            if !parts.is_empty() {
                steps.insert(step.step.clone(), StepRecord { engine, parts });
            }
        }
        let is_full = self.steps.iter().all(|step| step.carried.is_empty());
        (!steps.is_empty()).then(|| PartsRecord {
            form: FORM,
            repository: repository.to_owned(),
            time: self.started,
            full_check: self.full_check.filter(|_| !is_full).unwrap_or(self.started),
            checks,
            steps,
        })
    }

    fn tell(&self) {
        for step in &self.steps {
            let now = step.check.as_ref().map_or(0, Vec::len);
            tracing::info!(
                step = step.step,
                parts_now = now,
                parts_carried = step.carried.len(),
                "parts of the check"
            );
        }
    }
}

impl PlannedStep {
    /// Carries what `known` and `times` allow.
    fn carry(&mut self, known: StepMemory, times: &Times) {
        let Some(parts) = self.check.take() else { return };
        let choices = choose(&parts, &known.parts, times);
        let mut check = Vec::new();
        for (part, choice) in parts.into_iter().zip(choices) {
            match choice {
                super::choice::Choice::Carry(passed) => self.carried.push((part, passed)),
                _ => check.push(part),
            }
        }
        (self.check, self.engine) = (Some(check), known.engine);
    }

    /// The parts of this check that were looked at: all but those that the step names as not covered. None of them when it names something
    /// that is no part.
    fn covered(&self, missed: &[&NotCovered]) -> Vec<&Part> {
        let checked = || self.check.iter().flatten();
        let is = |missed: &NotCovered, part: &Part| {
            let name = &missed.part;
            *name == part.name
                || name.ends_with(&format!("/{}", part.name))
                || part.name.ends_with(&format!("/{name}"))
        };
        // What no check can see is said in each verdict.
        let missed: Vec<_> = missed.iter().filter(|it| it.reason != SPECIAL_FILE).collect();
        if missed.iter().any(|missed| !checked().any(|part| is(missed, part))) {
            return Vec::new();
        }
        checked().filter(|part| !missed.iter().any(|missed| is(missed, part))).collect()
    }
}

/// What is remembered, if it may be used for a check of this generation now.
fn usable(
    repository: &Repository,
    record: &Record,
    memory: Memory,
    now: Timestamp,
) -> Result<Memory, String> {
    if memory.time > now {
        return Err("the last check is dated in the future: a clock was set".to_owned());
    }
    let since_full = std::time::Duration::try_from(memory.full_check.duration_until(now)).unwrap_or_default();
    let is_due = repository.config.full_check_every.is_some_and(|every| since_full >= every);
    if is_due {
        return Err("a full check is due (full_check_every)".to_owned());
    }
    if repository.rot().has(assay_common::id::GenerationNumber(record.generation)) {
        return Err("files of this generation are rotten on the target's disk".to_owned());
    }
    Ok(memory)
}

/// The reports of a step of the last attempt, however many runs its parts took.
fn steps_of<'a>(report: &'a CheckReport, name: &'a str) -> impl Iterator<Item = &'a StepReport> {
    let last = report.steps.last().map(|step| step.attempt);
    report.steps.iter().filter(move |step| Some(step.attempt) == last && step.check == name)
}
