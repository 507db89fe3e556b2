//! One record of how a repository stands, kept in memory at both ends: metrics, notifications and the line in `systemctl
//! status` all come from it, so that they cannot contradict each other.
//!
//! It is learned from what is on disk when an agent starts, and hears of every end of a run (source) or verdict (target) after
//! that. It says who is to be told of what; the telling itself is [`crate::notify`]'s, and nothing here waits for it.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use assay_proto::v1::{self, Phase, Run};
use jiff::Timestamp;

use crate::{
    clock,
    notify::{Event, LastPass, Notice, Notifier},
    service_manager,
    traceless::{Found, Traceless},
    traces::Tracer,
    trouble::{self, Kind},
    verdict::{LiveClaim, Outcome, Verdict, timestamp_from_proto},
};

/// A phase that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct PhaseTaken {
    /// What it is called.
    pub name: &'static str,
    /// When it began, by the clock of the agent that tells.
    pub from: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// The steps of a check; of other phases there are none.
    pub steps: Vec<StepTaken>,
}

/// A step of a check that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTaken {
    /// Its name in the profile.
    pub name: String,
    /// With which of the candidates for patched values it ran, from 0.
    pub attempt: u32,
    /// How long it took.
    pub took: Duration,
    /// What it means by the profile's rules.
    pub outcome: Outcome,
}

/// How a run, or a check, ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// Its id.
    pub run_id: String,
    /// What came out.
    pub outcome: Outcome,
    /// The short stable word.
    pub reason: String,
    /// What that means, in one sentence.
    pub sentence: String,
    /// What the verdict claims; `None` without a verdict, and in records of older versions.
    pub claims: Option<v1::Claims>,
    /// For a person.
    pub message: String,
    /// The sealed generation.
    pub generation: Option<u64>,
    /// Id of the verdict in the target's ledger; empty when there is none, or it is not known here.
    pub verdict_id: String,
    /// When it started, by the source's clock; the target does not know.
    pub started: Option<Timestamp>,
    /// When it ended, by the clock of the agent that tells.
    pub finished: Timestamp,
    /// The point in time that it stands for.
    pub mark: Option<Timestamp>,
    /// Its phases, in their order.
    pub phases: Vec<PhaseTaken>,
    /// What the source counted; the target does not know.
    pub counts: Option<v1::Counts>,
    /// Content that changed without a trace.
    pub traceless: Traceless,
    /// When the file was read that was read longest ago, where that is known.
    pub oldest_reading: Option<Timestamp>,
}

impl Ended {
    /// True for a PASS by a checker that is known to find damage. A record of an older version does not say, and counts as it
    /// did then.
    pub fn is_proof(&self) -> bool {
        self.outcome == Outcome::Pass && self.claims.as_ref().is_none_or(|claims| claims.proven)
    }

    /// True when it claims something of the live repository.
    pub fn proves_live(&self) -> bool {
        let nothing = LiveClaim::Nothing.as_str();
        self.outcome == Outcome::Pass && self.claims.as_ref().is_some_and(|claims| claims.live != nothing)
    }

    /// What it rests on that is older than its limit, a clause each; empty for what is no PASS.
    pub fn too_old(&self) -> &[String] {
        match (&self.claims, self.outcome) {
            (Some(claims), Outcome::Pass) => &claims.too_old,
            _ => &[],
        }
    }

    /// A run as the source tells of it; `None` while it is under way.
    pub fn of_run(run: &Run) -> Option<Self> {
        let outcome = Outcome::try_from(run.outcome()).ok()?;
        let time = |time: &Option<prost_types::Timestamp>| timestamp_from_proto(time.as_ref()?);
        let (started, mut phases) = (time(&run.started), Vec::new());
        let mut from = started;
        // One begins when the one before it ends.
        for taken in &run.phase_times {
            let (name, took) =
                (crate::cli::show::phase(taken.phase()), Duration::from_millis(taken.milliseconds));
            phases.extend(from.map(|from| PhaseTaken { name, from, took, steps: Vec::new() }));
            from = from.and_then(|from| from.checked_add(took).ok());
        }
        Some(Self {
            run_id: run.id.clone(),
            outcome,
            reason: run.reason.clone(),
            sentence: crate::cli::show::says(run.outcome(), &run.sentence),
            claims: run.claims.clone(),
            message: run.message.clone(),
            generation: (run.generation > 0).then_some(run.generation),
            verdict_id: run.verdict_id.clone(),
            started,
            finished: time(&run.finished)?,
            mark: run.mark.as_ref().and_then(|mark| time(&mark.time)),
            phases,
            counts: run.counts,
            traceless: Traceless::of_run(run),
            oldest_reading: time(&run.oldest_reading).or_else(|| {
                // Without a reading of before, all files were read in this run.
                let counts = run.counts.as_ref().filter(|_| run.generation > 0)?;
                started.filter(|_| counts.files_read > 0 && counts.files_read >= counts.files)
            }),
        })
        .filter(|_| run.phase() == Phase::Done)
    }

    /// A verdict, as the target signed it.
    pub fn of_verdict(id: &str, verdict: &Verdict) -> Self {
        let times = &verdict.times;
        let phase = |name, from: Option<Timestamp>, to: Option<Timestamp>, steps| {
            let (from, to) = (from?, to?);
            let took = from.duration_until(to);
            (!took.is_negative()).then(|| PhaseTaken { name, from, took: took.unsigned_abs(), steps })
        };
        let reading = verdict.coverage.as_ref().and_then(|coverage| coverage.reading.as_ref());
        let steps = verdict.steps.iter().map(|step| StepTaken {
            name: step.name.clone(),
            attempt: step.attempt,
            took: Duration::from_millis(step.duration_ms),
            outcome: step.outcome,
        });
        let phases = [
            phase("receiving", times.opened, times.sealed, Vec::new()),
            phase("checking", times.check_started, times.check_finished, steps.collect()),
        ];
        Self {
            run_id: verdict.run_id.to_string(),
            outcome: verdict.outcome,
            reason: verdict.reason.clone(),
            sentence: verdict.sentence(),
            claims: Some(verdict.claims_proto()),
            message: verdict.message.clone(),
            generation: verdict.generation.map(|generation| generation.0),
            verdict_id: id.to_owned(),
            started: None,
            finished: times.signed,
            // The live host's clock may have been ahead: the mark was made before this host sealed what it stands for.
            mark: verdict
                .mark
                .as_ref()
                .map(|mark| clock::bounded(mark.time, times.sealed.unwrap_or(times.signed))),
            phases: phases.into_iter().flatten().collect(),
            counts: None,
            traceless: Traceless::of_readings(reading),
            oldest_reading: reading.and_then(|reading| {
                let is_all = reading.files_total > 0 && reading.files_read_now == reading.files_total;
                let now = verdict.mark.as_ref().map(|mark| mark.time).filter(|_| is_all);
                reading.oldest_reading.or(now)
            }),
        }
    }

    /// What it found of content that changed without a trace; `None` when it found none.
    pub fn found_traceless(&self) -> Option<Found> {
        let (run_id, generation, time) = (self.run_id.clone(), self.generation, self.finished);
        let traceless = self.traceless.clone();
        (traceless.files > 0).then_some(Found { run_id, generation, time, traceless })
    }
}

/// Who speaks of what.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// "source" or "target".
    pub role: &'static str,
    /// Name of the agent.
    pub agent: String,
    /// The repository.
    pub repository: String,
}

/// How a repository stands now.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// The newest end.
    pub last: Option<Ended>,
    /// The newest PASS that still holds: until its mark the repository is proven good.
    pub last_pass: Option<Ended>,
    /// Ends since the agent started: PASS, FAIL, INCONCLUSIVE, NOT_RUN.
    pub ends: [u64; 4],
    /// From when on a repository without a PASS counts as waiting for one.
    pub since: Option<Timestamp>,
    /// The newest content that changed without a trace.
    pub traceless: Option<Found>,
    overdue_told: bool,
    /// The newest PASS, whether it counts as a proof or not: its run, and when it ended. After it silence grows old.
    passed: Option<(String, Timestamp)>,
    silence_told: bool,
    /// The newest PASS, if OVERDUE was told after it: its silence is the same event.
    overdue_after: Option<String>,
    /// Somebody was alerted, and the PASS that came since does not count as a proof.
    owes_recovery: bool,
    /// The newest PASS rests on what is older than its limit.
    is_too_old: bool,
    /// The newest proof was there by then, whatever its date says.
    seen: Option<Timestamp>,
}

impl Standing {
    /// How old the newest proof is; `None` when there never was one.
    ///
    /// A proof that is dated in the future was made by a clock that was ahead. Its age counts from when it was first seen.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        // Not older than nothing: a clock beside this one may be a moment ahead.
        Some(self.proven_until()?.duration_until(now).try_into().unwrap_or_default())
    }

    fn proven_until(&self) -> Option<Timestamp> {
        let mark = self.last_pass.as_ref()?.mark?;
        Some(self.seen.map_or(mark, |seen| clock::bounded(mark, seen)))
    }

    /// The proof is there at `now`. True when its date is in the future even so.
    fn see(&mut self, now: Timestamp) -> bool {
        let ahead = self.proven_until().is_some_and(|mark| clock::is_ahead(mark, now));
        if ahead {
            self.seen = Some(now);
        }
        self.last_pass.as_ref().and_then(|pass| pass.mark).is_some_and(|mark| clock::is_ahead(mark, now))
    }

    fn is_overdue(&self, max_age: Duration, now: Timestamp) -> bool {
        // A repository that waits for its first proof may have been set up by a clock that was ahead, too.
        let from = self.proven_until().or(self.since).unwrap_or(now);
        Duration::try_from(from.duration_until(now)).is_ok_and(|age| age > max_age)
    }

    /// Takes in what a run found of content that changed without a trace. True when that is news: a generation that is checked again
    /// tells of its run once more.
    fn found_traceless(&mut self, ended: &Ended) -> bool {
        let Some(found) = ended.found_traceless() else {
            return false;
        };
        let is_older = |known: &Found| matches!((known.generation, found.generation), (Some(known), Some(found)) if found < known);
        let is_news =
            self.traceless.as_ref().is_none_or(|known| !is_older(known) && known.run_id != found.run_id);
        if is_news {
            self.traceless = Some(found);
        }
        is_news
    }

    /// True if this run ended last, and is the newest proof.
    fn newest_is_proof(&self, run_id: &str) -> bool {
        let is_this = |ended: &Option<Ended>| ended.as_ref().is_some_and(|ended| ended.run_id == run_id);
        is_this(&self.last) && is_this(&self.last_pass)
    }

    /// The run of the newest PASS, when that is no proof and is older than `max_age`: where no control vouches for the checker, proofs are
    /// overdue all the time, and an agent that falls silent would not be missed.
    fn silent_after(&mut self, max_age: Duration, now: Timestamp) -> Option<String> {
        let proof = self.last_pass.as_ref().map(|pass| pass.run_id.as_str());
        let (run, time) = self.passed.as_mut().filter(|(run, _)| Some(run.as_str()) != proof)?;
        *time = clock::bounded(*time, now);
        let is_old = Duration::try_from(time.duration_until(now)).is_ok_and(|age| age > max_age);
        is_old.then(|| run.clone())
    }

    /// True for a generation before the newest one that is known.
    fn is_of_older(&self, ended: &Ended) -> bool {
        let newest = self.last.iter().chain(&self.last_pass).filter_map(|known| known.generation).max();
        ended.generation.is_some_and(|generation| newest.is_some_and(|newest| generation < newest))
    }

    /// Takes in the age of what a PASS rests on. True when that is news: it begins to be too old, or is so no longer.
    fn covered(&mut self, ended: &Ended) -> bool {
        if ended.outcome != Outcome::Pass || self.is_of_older(ended) {
            return false;
        }
        let is_too_old = !ended.too_old().is_empty();
        std::mem::replace(&mut self.is_too_old, is_too_old) != is_too_old
    }

    /// Takes an end in, and says what is to be told of it.
    fn ended(&mut self, ended: Ended, proven: Option<Ended>, max_age: Option<Duration>) -> Option<Event> {
        self.ends[index(ended.outcome)] += 1;
        let is_old = self.is_of_older(&ended);
        let is_same = |left: &Option<Ended>, right: &Option<Ended>| {
            left.as_ref().map(|pass| &pass.run_id) == right.as_ref().map(|pass| &pass.run_id)
        };
        if !is_same(&self.last_pass, &proven) {
            self.seen = None;
        }
        if ended.outcome == Outcome::Pass && is_old {
            // Checked again by the clock, and good as ever: nothing that waits for a proof has got one.
            self.last_pass = proven;
            return None;
        }
        let was_overdue = self.overdue_told
            || max_age
                .is_some_and(|max_age| self.last_pass.is_some() && self.is_overdue(max_age, ended.finished));
        let before = self.last.as_ref().map(|last| last.outcome);
        let owes_recovery =
            self.owes_recovery || was_overdue || before.is_some_and(|before| before != Outcome::Pass);
        let is_proof = proven.as_ref().is_some_and(|proven| proven.run_id == ended.run_id);
        let event = match ended.outcome {
            Outcome::Fail => Some(Event::Fail),
            Outcome::Inconclusive => Some(Event::Inconclusive),
            Outcome::NotRun => Some(Event::NotRun),
            Outcome::Pass if owes_recovery && is_proof => Some(Event::Recovery),
            Outcome::Pass => None,
        };
        if ended.outcome == Outcome::Pass {
            (self.passed, self.silence_told) = (Some((ended.run_id.clone(), ended.finished)), false);
            self.overdue_told &= !is_proof;
            self.owes_recovery = owes_recovery && !is_proof;
        }
        self.last_pass = proven;
        self.last = Some(ended);
        event
    }
}

fn index(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Pass => 0,
        Outcome::Fail => 1,
        Outcome::Inconclusive => 2,
        Outcome::NotRun => 3,
    }
}

/// Watches one repository.
#[derive(Debug, Default)]
pub struct Watch {
    role: &'static str,
    repository: String,
    /// How old the newest proof may become before somebody is told.
    max_age: Option<Duration>,
    standing: Mutex<Standing>,
    connected: OnceLock<Connected>,
}

/// The agent's name, and the ways out.
#[derive(Debug)]
struct Connected {
    agent: String,
    notifier: Notifier,
    tracer: Tracer,
}

impl Watch {
    /// From what is on disk: the newest end, and the newest PASS that holds. `role` is "source" or "target"; a repository
    /// without a PASS waits for one since `since`.
    pub fn new(
        role: &'static str,
        repository: &str,
        max_age: Option<Duration>,
        last: Option<Ended>,
        last_pass: Option<Ended>,
        since: Timestamp,
    ) -> Self {
        let passed = last.as_ref().filter(|last| last.outcome == Outcome::Pass);
        let passed = passed.map(|last| (last.run_id.clone(), last.finished));
        // The agent before this one has told of its coverage. A generation that was checked again by the clock is not the newest.
        let passes = last.iter().chain(&last_pass).filter(|ended| ended.outcome == Outcome::Pass);
        let is_too_old =
            passes.max_by_key(|pass| pass.generation).is_some_and(|pass| !pass.too_old().is_empty());
        let since = Some(since);
        let standing = Standing { last, last_pass, since, passed, is_too_old, ..Default::default() };
        let (repository, standing) = (repository.to_owned(), Mutex::new(standing));
        Self { role, repository, max_age, standing, connected: OnceLock::new() }
    }

    /// From now on somebody is told, in the name of `agent`.
    pub fn connect(&self, agent: &str, notifier: Notifier, tracer: Tracer) {
        // It is connected once, when the agent starts.
        drop(self.connected.set(Connected { agent: agent.to_owned(), notifier, tracer }));
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest proof was there by `time`: a later run of the same agent says so.
    pub fn bound_proof(&self, time: Timestamp) {
        self.lock().seen = Some(time);
    }

    /// As it stands now.
    pub fn standing(&self) -> Standing {
        self.lock().clone()
    }

    /// How old the newest proof may become.
    pub fn max_age(&self) -> Option<Duration> {
        self.max_age
    }

    /// A run or a check has ended; `proven` is the newest PASS that holds now.
    pub fn ended(&self, ended: Ended, proven: Option<Ended>) {
        if let Some(connected) = self.connected.get() {
            connected.tracer.trace(&self.repository, &ended);
        }
        let (traceless, notice, coverage, proof) = {
            let mut standing = self.lock();
            let is_traceless = standing.found_traceless(&ended);
            let is_news = standing.covered(&ended);
            let event = standing.ended(ended.clone(), proven, self.max_age);
            self.withdraw_overdue(&standing);
            self.withdraw_pass();
            let proof = standing.newest_is_proof(&ended.run_id);
            let proof = proof.then(|| self.notice(Event::Pass, Some(&ended), &standing, ended.finished));
            let last_pass = || Self::last_pass(&standing, ended.finished);
            let traceless = is_traceless.then(|| Notice::of_traceless(&self.about(), &ended, last_pass()));
            let coverage = is_news.then(|| {
                // What has not arrived of the state before holds no longer.
                self.withdraw(Event::Coverage);
                Notice::of_coverage(&self.about(), &ended, last_pass())
            });
            let notice = event.map(|event| self.notice(event, Some(&ended), &standing, ended.finished));
            (traceless, notice, coverage, proof)
        };
        self.tell(traceless);
        self.tell(notice);
        self.tell(coverage);
        self.tell(proof);
    }

    /// What a run before this start of the agent found of content that changed without a trace.
    pub fn learn_traceless(&self, found: Option<Found>) {
        self.lock().traceless = found;
    }

    /// Drops a `pass` that has not been delivered and holds no longer: the receiver would take a late heartbeat for a fresh one.
    fn withdraw_pass(&self) {
        self.withdraw(Event::Pass);
    }

    fn withdraw(&self, event: Event) {
        if let Some(connected) = self.connected.get() {
            connected.notifier.withdraw(&self.repository, event);
        }
    }

    /// An OVERDUE that has not arrived and holds no longer is not sent any more.
    fn withdraw_overdue(&self, standing: &Standing) {
        if !standing.overdue_told {
            self.withdraw(Event::Overdue);
        }
    }

    /// It became known which PASS counts, without the end of a run: a negative control has passed, or has failed.
    pub fn proved(&self, proven: Option<Ended>) {
        let (notice, proof) = {
            let mut standing = self.lock();
            standing.last_pass = proven;
            let last = standing.last.clone();
            let is_proof = last.as_ref().is_some_and(|last| standing.newest_is_proof(&last.run_id));
            standing.seen = None;
            let recovered = is_proof && std::mem::take(&mut standing.owes_recovery);
            standing.overdue_told &= !is_proof;
            self.withdraw_overdue(&standing);
            if !is_proof {
                self.withdraw_pass();
            }
            let told = |event| self.notice(event, last.as_ref(), &standing, Timestamp::now());
            (recovered.then(|| told(Event::Recovery)), is_proof.then(|| told(Event::Pass)))
        };
        self.tell(notice);
        self.tell(proof);
    }

    /// Tells, once until the next PASS, when the newest proof has become too old.
    pub fn look_at_age(&self, now: Timestamp) {
        let dated = {
            let mut standing = self.lock();
            let is_ahead = standing.see(now);
            standing.last_pass.as_ref().and_then(|pass| pass.mark).filter(|_| is_ahead)
        };
        match dated {
            Some(mark) => {
                let mark = mark.strftime("%Y-%m-%d %H:%M:%SZ");
                let text = format!(
                    "the newest proof is dated in the future, {mark}: a clock was ahead; its age counts from when it was first seen"
                );
                trouble::raise(Kind::ClockAhead, &self.repository, text);
            }
            None => trouble::clear(Kind::ClockAhead, &self.repository),
        }
        let Some(max_age) = self.max_age else {
            return;
        };
        let notice = {
            let mut standing = self.lock();
            // What was overdue and is not any more, without a PASS, was an error of the clock.
            let is_overdue = standing.is_overdue(max_age, now);
            let told = std::mem::replace(&mut standing.overdue_told, is_overdue);
            let silent = standing.silent_after(max_age, now);
            let silence_told = std::mem::replace(&mut standing.silence_told, silent.is_some());
            let last = standing.last.clone();
            let is_news = |run: &String| !silence_told && standing.overdue_after.as_ref() != Some(run);
            match silent.filter(is_news) {
                _ if standing.overdue_told && !told => {
                    standing.overdue_after = standing.passed.as_ref().map(|(run, _)| run.clone());
                    Some(self.notice(Event::Overdue, last.as_ref(), &standing, now))
                }
                Some(run) => {
                    let notice = self.notice(Event::Overdue, last.as_ref(), &standing, now);
                    Some(Notice { id: format!("{}/{run}/overdue", self.repository), ..notice })
                }
                None => None,
            }
        };
        if notice.is_some() {
            self.withdraw_pass();
        }
        self.tell(notice);
    }

    fn tell(&self, notice: Option<Notice>) {
        let Some(notice) = notice else {
            return;
        };
        if notice.event == Event::Overdue {
            tracing::warn!(repository = notice.repository, summary = notice.summary, "overdue");
        }
        if let Some(connected) = self.connected.get() {
            connected.notifier.tell(notice);
        }
    }

    fn notice(&self, event: Event, ended: Option<&Ended>, standing: &Standing, now: Timestamp) -> Notice {
        Notice::new(event, &self.about(), ended, Self::last_pass(standing, now), now)
    }

    fn last_pass(standing: &Standing, now: Timestamp) -> Option<LastPass> {
        standing.last_pass.as_ref().map(|pass| LastPass {
            run_id: pass.run_id.clone(),
            generation: pass.generation,
            mark: pass.mark,
            age_seconds: standing.age(now).map(|age| age.as_secs()),
        })
    }

    fn about(&self) -> About {
        let agent = self.connected.get().map(|connected| connected.agent.clone()).unwrap_or_default();
        About { role: self.role, agent, repository: self.repository.clone() }
    }
}

/// How often ages are looked at, at most.
const TICK: Duration = Duration::from_secs(10);

/// Looks at the age of a repository's newest proof, for ever.
pub async fn look_after(watch: Arc<Watch>) {
    let often = watch.max_age.map_or(TICK, |max_age| max_age / 4);
    let mut tick = tokio::time::interval(often.clamp(Duration::from_millis(250), TICK));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let pulse = format!("age of {}", watch.repository);
    loop {
        tick.tick().await;
        service_manager::beat(&pulse);
        watch.look_at_age(Timestamp::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hour * 3600).expect("a time")
    }

    fn end(outcome: Outcome, hour: i64, generation: u64) -> Ended {
        Ended {
            run_id: format!("run-{hour}"),
            outcome,
            reason: "why".to_owned(),
            sentence: String::new(),
            claims: None,
            message: String::new(),
            generation: (generation > 0).then_some(generation),
            verdict_id: String::new(),
            started: None,
            finished: at(hour),
            mark: Some(at(hour)),
            phases: Vec::new(),
            counts: None,
            traceless: Traceless::default(),
            oldest_reading: None,
        }
    }

    /// It is told beside the outcome, once for each run, and stays known.
    #[test]
    fn content_that_changed_without_a_trace_is_told_once() {
        let mut standing = Standing::default();
        let found = |hour, generation, files| Ended {
            traceless: Traceless { files, paths: vec!["cold".to_owned()] },
            ..end(Outcome::Pass, hour, generation)
        };
        for (ended, is_news) in [
            (found(1, 1, 0), false),
            (found(2, 2, 3), true),
            // The same generation, checked again by the clock.
            (Ended { finished: at(3), ..found(2, 2, 3) }, false),
            (found(4, 3, 0), false),
            (found(5, 4, 1), true),
            (found(2, 2, 3), false),
            // A run that sealed nothing.
            (found(6, 0, 1), true),
        ] {
            assert_eq!(standing.found_traceless(&ended), is_news, "{ended:?}");
        }
        assert_eq!(standing.traceless.map(|found| found.run_id), Some("run-6".to_owned()));
        let about = About { role: "source", agent: "live".to_owned(), repository: "app".to_owned() };
        let notice = Notice::of_traceless(&about, &found(5, 4, 1), None);
        assert_eq!(notice.id, "app/run-5/changed-without-trace");
        for part in ["CHANGED WITHOUT A TRACE: app on ", "1 file (cold)", "never proven good"] {
            assert!(notice.summary.contains(part), "{}", notice.summary);
        }
        assert!(notice.message.contains("HINT: "), "{}", notice.message);
    }

    /// A coverage that is too old is news once, also for an agent that was started again, and so is its end. A FAIL changes nothing, nor
    /// does an older generation that is checked again.
    #[test]
    fn a_coverage_that_is_too_old_is_news_once_and_so_is_its_end() {
        let end = |outcome, hour: i64, is_too_old: bool| {
            let clauses = if is_too_old { vec!["its oldest reading is old".to_owned()] } else { Vec::new() };
            let claims = v1::Claims { too_old: clauses, proven: true, ..Default::default() };
            Ended { claims: Some(claims), ..end(outcome, hour, hour.unsigned_abs()) }
        };
        let (pass, fail) = (Outcome::Pass, Outcome::Fail);
        let watch = Watch::new("source", "repo", None, None, None, at(0));
        let mut last = None;
        for (ended, is_news) in [
            (end(pass, 1, false), false),
            (end(pass, 2, true), true),
            (end(pass, 3, true), false),
            (end(fail, 4, false), false),
            (end(pass, 1, false), false),
            (end(pass, 5, true), false),
            (end(pass, 6, false), true),
            (end(pass, 7, false), false),
            (end(pass, 8, true), true),
        ] {
            assert_eq!(watch.lock().covered(&ended), is_news, "{}", ended.run_id);
            watch.lock().ended(ended.clone(), None, None);
            last = Some(ended);
        }
        // The newest end is an older generation that was checked again; the newest PASS is not.
        let old = Some(end(pass, 1, false));
        for (last, proven) in [(last.clone(), None), (Some(end(fail, 9, false)), last.clone()), (old, last)] {
            let restarted = Watch::new("source", "repo", None, last, proven, at(0));
            assert!(!restarted.lock().covered(&end(pass, 10, true)));
            assert!(restarted.lock().covered(&end(pass, 11, false)));
        }
    }

    /// What a notice of a coverage says, and that its end takes back a beginning that has not arrived.
    #[tokio::test]
    async fn a_coverage_is_told_with_what_is_too_old() {
        let about = About { role: "source", agent: "live".to_owned(), repository: "app".to_owned() };
        let clauses = ["its oldest reading is 8 days old, and 7 days is the limit", "another"];
        let claims = v1::Claims { too_old: clauses.map(str::to_owned).to_vec(), ..Default::default() };
        let began = Ended { claims: Some(claims), ..end(Outcome::Pass, 1, 1) };
        let notice = Notice::of_coverage(&about, &began, None);
        assert_eq!(notice.id, "app/run-1/coverage");
        for part in
            ["COVERAGE: app on ", "too old: its oldest reading is 8 days old", "; another; never proven"]
        {
            assert!(notice.summary.contains(part), "{}", notice.summary);
        }
        assert!(notice.message.contains("\nHINT: ") && notice.message.contains("--full-read --full-check"));
        let over = Notice::of_coverage(&about, &end(Outcome::Pass, 2, 2), None);
        assert_eq!(over.id, "app/run-2/coverage/over");
        assert!(over.summary.contains("over: all that the newest PASS rests on"), "{}", over.summary);
        // Nothing is delivered: the test never gives the runtime a turn.
        let notifier = Notifier::start(crate::notify::tests::ways("on = ['coverage']"));
        let waiting = || notifier.waiting().map(|(_, count)| count).sum::<usize>();
        let watch = Watch::new("source", "app", None, None, None, at(0));
        watch.connect("live", notifier.clone(), Tracer::default());
        watch.ended(began, None);
        assert_eq!(waiting(), 1);
        watch.ended(end(Outcome::Pass, 2, 2), None);
        assert_eq!(waiting(), 1);
        // The end stays until it has arrived, whatever begins meanwhile.
        notifier.withdraw("app", Event::Coverage);
        assert_eq!(waiting(), 1);
    }

    /// Every end but PASS is told, each time; a PASS only after one of those.
    #[test]
    fn bad_ends_and_the_first_good_one_after_them_are_told() {
        let mut standing = Standing::default();
        let pass = |hour, generation| end(Outcome::Pass, hour, generation);
        let mut told = Vec::new();
        for (ended, proven) in [
            (pass(1, 1), pass(1, 1)),
            (end(Outcome::Fail, 2, 2), pass(1, 1)),
            (end(Outcome::Fail, 3, 3), pass(1, 1)),
            (end(Outcome::NotRun, 4, 0), pass(1, 1)),
            (pass(5, 4), pass(5, 4)),
            (pass(6, 5), pass(6, 5)),
            (end(Outcome::Inconclusive, 7, 6), pass(6, 5)),
        ] {
            told.push(standing.ended(ended, Some(proven), None));
        }
        use Event::{Fail, Inconclusive, NotRun, Recovery};
        let expected = [None, Some(Fail), Some(Fail), Some(NotRun), Some(Recovery), None, Some(Inconclusive)];
        assert_eq!(told, expected);
        assert_eq!(standing.ends, [3, 2, 1, 1]);
    }

    /// The agent sends `pass` for the run that ended last, if that run is the newest proof.
    #[test]
    fn only_the_newest_run_sends_pass_and_only_as_a_proof() {
        let mut standing = Standing::default();
        let pass = |generation: i64| end(Outcome::Pass, generation, generation.unsigned_abs());
        // The run that ends, the newest proof after it, and whether the agent sends `pass`.
        for (ended, proven, is_sent) in [
            (pass(1), None, false),
            (pass(2), Some(pass(2)), true),
            (end(Outcome::Fail, 3, 3), Some(pass(2)), false),
            // The generation before the FAIL, checked again.
            (pass(2), Some(pass(2)), false),
            (pass(4), Some(pass(4)), true),
        ] {
            let run = ended.run_id.clone();
            standing.ended(ended, proven, None);
            assert_eq!(standing.newest_is_proof(&run), is_sent, "{run}");
        }
    }

    /// An undelivered `pass` is dropped when a run ends, when a control fails, and when the proof becomes overdue.
    #[tokio::test]
    async fn a_pass_that_holds_no_longer_is_dropped() {
        // Nothing is delivered: the test never gives the runtime a turn.
        let notifier = Notifier::start(crate::notify::tests::ways("on = ['pass']"));
        let waiting = || notifier.waiting().map(|(_, count)| count).sum::<usize>();
        let watch = Watch::new("source", "repo", Some(HOUR), None, None, at(0));
        watch.connect("a", notifier.clone(), Tracer::default());
        let pass = |hour: i64| {
            let pass = end(Outcome::Pass, hour, hour.unsigned_abs());
            watch.ended(pass.clone(), Some(pass.clone()));
            assert_eq!(waiting(), 1);
            pass
        };
        let proof = pass(1);
        watch.ended(end(Outcome::NotRun, 2, 0), Some(proof));
        assert_eq!(waiting(), 0);
        pass(3);
        watch.proved(None);
        assert_eq!(waiting(), 0);
        pass(4);
        watch.look_at_age(at(6));
        assert_eq!(waiting(), 0);
    }

    /// An older generation that is checked again by the clock is no proof of anything newer.
    #[test]
    fn an_old_generation_that_passes_again_is_no_recovery() {
        let mut standing = Standing::default();
        standing.ended(end(Outcome::Pass, 1, 1), Some(end(Outcome::Pass, 1, 1)), None);
        standing.ended(end(Outcome::Fail, 2, 2), Some(end(Outcome::Pass, 1, 1)), None);
        let again = end(Outcome::Pass, 3, 1);
        assert_eq!(standing.ended(again.clone(), Some(again), None), None);
        assert_eq!(standing.last.as_ref().map(|last| last.outcome), Some(Outcome::Fail));
        let good = end(Outcome::Pass, 4, 3);
        assert_eq!(standing.ended(good.clone(), Some(good), None), Some(Event::Recovery));
    }

    /// Overdue is told once, and the PASS that ends it is a recovery, also when the agent was restarted in between.
    #[test]
    fn a_proof_that_grows_too_old_is_told_once() {
        let pass = end(Outcome::Pass, 1, 1);
        let watch =
            Watch::new("source", "repo", Some(2 * HOUR), Some(pass.clone()), Some(pass.clone()), at(0));
        let is_told = |hour| {
            watch.look_at_age(at(hour));
            watch.standing().overdue_told
        };
        assert!(!is_told(3));
        assert!(is_told(4) && is_told(5));
        let mut restarted =
            Standing { last: Some(pass.clone()), last_pass: Some(pass), ..Default::default() };
        let late = end(Outcome::Pass, 9, 2);
        assert_eq!(restarted.ended(late.clone(), Some(late), Some(2 * HOUR)), Some(Event::Recovery));
    }

    /// The clock was 400 days ahead for one run, and is right again: the proof does not stay fresh for 400 days.
    #[test]
    fn a_proof_that_is_dated_in_the_future_grows_old_too() {
        let pass = end(Outcome::Pass, 9600, 1);
        let watch = Watch::new("source", "future", Some(2 * HOUR), Some(pass.clone()), Some(pass), at(0));
        watch.look_at_age(at(1));
        assert!(!watch.standing().overdue_told);
        assert!(trouble::lines().iter().any(|line| line.starts_with("future: the newest proof is dated")));
        assert_eq!(watch.standing().age(at(3)), Some(2 * HOUR));
        watch.look_at_age(at(4));
        assert!(watch.standing().overdue_told);
        let good = end(Outcome::Pass, 5, 2);
        watch.ended(good.clone(), Some(good));
        watch.look_at_age(at(5));
        assert_eq!(watch.standing().age(at(6)), Some(HOUR));
        assert!(trouble::lines().iter().all(|line| !line.starts_with("future:")));
    }

    #[test]
    fn a_repository_that_never_passed_becomes_overdue_too() {
        let watch = Watch::new("source", "repo", Some(HOUR), None, None, at(0));
        watch.look_at_age(at(1));
        assert!(!watch.standing().overdue_told);
        watch.look_at_age(at(2));
        assert!(watch.standing().overdue_told);
    }

    /// Where no control vouches for the checker, a proof is overdue all the time: silence after a PASS is told all the same, once for each.
    #[test]
    fn silence_after_a_pass_that_is_no_proof_is_told() {
        let watch = Watch::new("target", "app", Some(HOUR), None, None, at(0));
        let told = |hour| {
            watch.look_at_age(at(hour));
            (watch.standing().overdue_told, watch.standing().silence_told)
        };
        assert_eq!(told(2), (true, false));
        for first in [3, 13] {
            watch.ended(end(Outcome::Pass, first, first.unsigned_abs()), None);
            assert_eq!(told(first), (true, false));
            assert_eq!(told(first + 2), (true, true));
        }
    }

    /// Nobody is told twice of one silence: by the proof that is overdue and by the PASS that is none.
    #[test]
    fn a_silence_that_was_told_as_overdue_is_not_told_again() {
        let watch = Watch::new("source", "app", Some(HOUR), None, None, at(0));
        watch.ended(end(Outcome::Pass, 0, 1), None);
        watch.look_at_age(at(2));
        let standing = watch.standing();
        assert!(standing.overdue_told);
        assert_eq!(standing.overdue_after, standing.passed.as_ref().map(|(run, _)| run.clone()));
    }
}
