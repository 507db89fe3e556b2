//! What one check looks at, and what it carries.

use std::collections::BTreeMap;

use assay_common::{
    path::TreePath,
    verdict::{Carried, CarriedFrom, HexDigest, MAX_LISTED},
};
use jiff::Timestamp;

use super::{
    choice::{Passed, Times, choose, choose_known},
    listing::{MAX_PARTS, Part, StepParts, list},
    memory::{Memory, StepMemory, recall},
    record::{CheckOfParts, FORM, PartsRecord, StepRecord},
};
use crate::{
    check::{
        CheckReport, NotCovered, Outcome, PartArgument, SPECIAL_FILE, StepReport,
        known::{ARGUMENT, Found, Known},
    },
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
    /// Of a step whose engine finds the parts.
    found: Option<FoundByEngine>,
}

/// A step whose engine finds the parts.
#[derive(Debug, Clone)]
struct FoundByEngine {
    /// What it is told.
    known: Known,
    /// For each part that it is told of: the verdict and the time of the check that the part passed.
    passed: BTreeMap<String, Passed>,
    /// What it tells of the whole, and how many parts it checked, once it has passed.
    state: Option<String>,
    checked: u64,
}

/// A full check that a generation has just passed.
#[derive(Debug)]
pub(crate) struct Undamaged(Plan);

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
            found: step.known.map(FoundByEngine::of),
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

    /// This full check, which the generation has just passed and whose parts are known, for [`Self::with_damage`].
    pub(crate) fn into_undamaged(self) -> Undamaged {
        Undamaged(self)
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
            let undamaged = before.0.steps.iter().filter(|before| before.step == step.step);
            let parts = undamaged.clone().flat_map(|before| before.check.iter().flatten());
            let passed = parts.filter_map(|part| {
                Some((part.name.clone(), Passed { inputs: part.inputs?, checked: now, sequence: 0 }))
            });
            let state = undamaged.clone().find_map(|before| before.found.as_ref()?.state.clone());
            let known = StepMemory { engine: None, state, parts: passed.collect() };
            let within = std::time::Duration::from_secs(step.within.max(1));
            step.carry(known, &Times { now, mark: now, last: now, within });
        }
        Ok(plan)
    }

    /// What each step is given.
    pub(crate) fn arguments(&self) -> BTreeMap<String, Vec<PartArgument>> {
        let of_step = |step: &PlannedStep| {
            if step.found.is_some() {
                return Some((step.step.clone(), vec![PartArgument::Text(ARGUMENT.to_owned())]));
            }
            let arguments = step.check.as_ref()?.iter().map(|part| part.argument.clone());
            Some((step.step.clone(), arguments.collect()))
        };
        self.steps.iter().filter_map(of_step).collect()
    }

    /// What each step is told whose engine finds the parts.
    pub(crate) fn known(&self) -> BTreeMap<String, Known> {
        let of_step =
            |step: &PlannedStep| Some((step.step.clone(), step.found.as_ref().map(|it| it.known.clone())?));
        self.steps.iter().filter_map(of_step).collect()
    }

    /// Takes in which parts the engines found in a check that passed.
    ///
    /// # Errors
    /// When a step does not say it although it was told of parts, or carries what it must not: nobody knows what it checked.
    pub(crate) fn settle(&mut self, report: &CheckReport) -> Result<(), String> {
        if report.outcome != Outcome::Pass {
            return Ok(());
        }
        for step in &mut self.steps {
            let found = steps_of(report, &step.step).next().and_then(|it| it.found.clone());
            step.settle(found).map_err(|why| format!("the step '{}' {why}", step.step))?;
        }
        Ok(())
    }

    /// True if a step says that it was done by another version of its engine than the one that the carried parts passed with.
    pub(crate) fn is_of_other_engine(&self, report: &CheckReport) -> bool {
        let carries = |step: &&PlannedStep| {
            !step.carried.is_empty() || step.found.as_ref().is_some_and(|found| !found.passed.is_empty())
        };
        self.steps.iter().filter(carries).any(|step| {
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
            parts_checked_now: self.steps.iter().map(PlannedStep::checked_now).sum(),
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
            let state = step.found.as_ref().and_then(|found| found.state.clone());
            if !parts.is_empty() && parts.len() <= MAX_PARTS {
                steps.insert(step.step.clone(), StepRecord { engine, state, parts });
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
            if let Some(found) = &step.found {
                let known = found.passed.len();
                tracing::info!(
                    step = step.step,
                    parts_known = known,
                    "parts of the check that its engine finds"
                );
                continue;
            }
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
        if let Some(found) = &mut self.found {
            found.passed = choose_known(&known.parts, times);
            let told = found.passed.iter().map(|(name, passed)| (name.clone(), passed.inputs));
            found.known.parts = told.collect();
            found.known.state = known.state.clone();
            self.engine = known.engine;
            return;
        }
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

    /// Takes in which parts the engine found. What it says is held against what it was told.
    fn settle(&mut self, found: Option<Found>) -> Result<(), &'static str> {
        let Some(told) = &mut self.found else { return Ok(()) };
        let Some(found) = found else {
            return match told.passed.is_empty() {
                true => Ok(()),
                false => Err("does not say which of its parts it has checked"),
            };
        };
        let part = |name: String, inputs| Part {
            argument: PartArgument::Text(name.clone()),
            name,
            inputs: Some(inputs),
        };
        for (name, inputs) in found.carried {
            let passed =
                told.passed.get(&name).filter(|it| it.inputs == inputs && !found.passed.contains_key(&name));
            let passed = *passed.ok_or("carries the result of a part that has none")?;
            self.carried.push((part(name, inputs), passed));
        }
        told.state = found.state;
        told.checked = found.checked.max(found.passed.len() as u64);
        self.check = Some(found.passed.into_iter().map(|(name, inputs)| part(name, inputs)).collect());
        Ok(())
    }

    /// How many parts this check looked at.
    fn checked_now(&self) -> u64 {
        let listed = self.check.as_ref().map_or(0, |parts| parts.len() as u64);
        self.found.as_ref().map_or(listed, |found| found.checked)
    }

    /// The parts of this check that were looked at: all but those that the step names as not covered. None of them when it names something
    /// that is no part.
    fn covered(&self, missed: &[&NotCovered]) -> Vec<&Part> {
        let checked = || self.check.iter().flatten();
        if self.found.is_some() {
            // The engine names none that it did not look at.
            return checked().collect();
        }
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

impl FoundByEngine {
    fn of(known: Known) -> Self {
        Self { known, passed: BTreeMap::new(), state: None, checked: 0 }
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
