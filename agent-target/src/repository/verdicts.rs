//! What is known of a repository's generations, and which one is called verified.
//!
//! Whoever changes any of it holds one lock from the first step to the last: the ledger's entry, what is known of it, the link
//! `verified`. So the link never follows an older verdict than the newest. What is known lies in memory under a lock of its
//! own, which is never held while a file is read or written: `status` and metrics wait for no disk.

mod place;

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use assay_common::{
    audit::{Audit, Expected, Noted, audit, notes},
    digest::ContentDigest,
    error::IoContext as _,
    fault::{self, Point},
    id::{GenerationNumber, RunId},
    keyring::Keyring,
    ledger::{EntryId, Ledger, LedgerError},
    signing::SigningKey,
    verdict::{
        self, HexDigest, NegativeControl, Outcome, Trust, Verdict, VerdictError, sign_control, sign_verdict,
        unverified_key_change, unverified_verdict, verify_control_among, verify_verdict_with,
    },
    watch::Ended,
};

use super::{
    Repository,
    history::{History, Past},
    keys::LastKeys,
};
use crate::{
    carried, observe,
    store::{FILE_BYTES, Held, StoreError},
    trust::programs,
};

/// The ledger of a repository, and what is known of it.
pub(super) struct Verdicts {
    pub(super) ledger: Ledger,
    pub(super) signing_key: Arc<SigningKey>,
    /// The key that this agent signs with, and those before it.
    own_keys: Keyring,
    writing: Mutex<()>,
    known: Mutex<Known>,
}

/// The right to change the ledger and `verified`.
type Writing<'a> = MutexGuard<'a, ()>;

/// What the ledger says.
#[derive(Default)]
struct Known {
    standings: BTreeMap<GenerationNumber, Standing>,
    trust: TrustTable,
    /// Runs that have a verdict.
    ended_runs: HashSet<RunId>,
    /// What the ledger takes.
    held: Held,
    history: History,
}

/// What the ledger says of a generation.
#[derive(Debug, Clone)]
struct Standing {
    /// Its newest verdict.
    last: String,
    /// The newest that is PASS or FAIL.
    conclusive: Option<Conclusive>,
}

/// A verdict that is PASS or FAIL.
#[derive(Debug, Clone)]
struct Conclusive {
    id: String,
    outcome: Outcome,
    /// Whose word it is.
    checker: Option<Checker>,
}

impl Verdicts {
    pub(super) fn new(ledger: Ledger, signing_key: Arc<SigningKey>, own_keys: Keyring) -> Self {
        Self { ledger, signing_key, own_keys, writing: Mutex::default(), known: Mutex::default() }
    }

    fn writing(&self) -> Writing<'_> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn conclusive(&self, generation: GenerationNumber) -> Option<&Conclusive> {
        self.standings.get(&generation)?.conclusive.as_ref()
    }

    /// A verdict on a generation. One that is neither PASS nor FAIL leaves the newest that is.
    fn note(&mut self, generation: GenerationNumber, id: &str, outcome: Outcome, checker: Option<Checker>) {
        let conclusive = match is_conclusive(outcome) {
            true => Some(Conclusive { id: id.to_owned(), outcome, checker }),
            false => self.conclusive(generation).cloned(),
        };
        self.standings.insert(generation, Standing { last: id.to_owned(), conclusive });
    }

    /// The generations before `generation` whose last conclusive verdict is PASS, oldest first.
    fn passed_before(&self, generation: GenerationNumber) -> Vec<GenerationNumber> {
        let before = self.standings.range(..generation);
        let passed = before.filter(|(_, standing)| {
            matches!(standing.conclusive, Some(Conclusive { outcome: Outcome::Pass, .. }))
        });
        passed.map(|(number, _)| *number).collect()
    }
}

impl Repository {
    /// The verdicts in the ledger with their ids, newest first. What is not a verdict is left out here: `ledger verify`
    /// tells of it.
    pub fn verdicts(&self) -> impl Iterator<Item = (String, Verdict)> + '_ {
        let ids = self.verdicts.ledger.entries().unwrap_or_default();
        ids.into_iter().filter_map(|id| {
            let id = id.to_string();
            let envelope = self.verdicts.ledger.get(&id).ok()?;
            Some((id, unverified_verdict(&envelope).ok()?))
        })
    }

    /// The newest verdicts in short, oldest first, without reading the ledger.
    pub fn history(&self) -> Vec<Arc<Past>> {
        self.verdicts.known().history.verdicts()
    }

    /// Entries of the ledger that could not be read when the agent started: neither verdicts nor key changes.
    pub fn unreadable_entries(&self) -> Vec<u64> {
        self.verdicts.known().history.unreadable()
    }

    /// Verifies the whole ledger as `ledger verify` does, except that no generation is compared with its verdict. Takes a fraction of a
    /// millisecond for each verdict.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn audit_ledger(&self) -> Result<Audit, LedgerError> {
        let (receipts, acknowledgements) = (self.store.receipts(), self.store.acknowledgements());
        let notes = self.store.notes();
        let expected = Expected {
            receipts: Some(&receipts),
            acknowledgements: Some(&acknowledgements),
            notes: Some(&notes),
            ..Expected::default()
        };
        audit(&self.verdicts.ledger, &self.verdicts.own_keys, Some(&self.source_keys), &expected)
    }

    /// Operators' notes on the verdict at this place and on its generation, oldest first. What is wrong with others `ledger verify` tells.
    pub fn notes_on(&self, sequence: u64, generation: Option<GenerationNumber>) -> Vec<Noted> {
        let generation = generation.map(|generation| generation.0);
        let (ledger, folder) = (&self.verdicts.ledger, self.store.notes());
        match notes(ledger, &self.verdicts.own_keys, Some(&self.source_keys), &folder) {
            Ok((mut notes, _)) => {
                notes.retain(|note| note.about.is_verdict(sequence, generation));
                notes
            }
            Err(error) => {
                tracing::warn!(repository = self.config.name, %error, "operators' notes cannot be read");
                Vec::new()
            }
        }
    }

    /// A verdict's envelope.
    ///
    /// # Errors
    /// When there is none with this id.
    pub fn envelope(&self, id: &str) -> Result<String, LedgerError> {
        Ok(String::from_utf8_lossy(&self.verdicts.ledger.get(id)?).into_owned())
    }

    /// A verdict whose signatures verify, and that stands at its own place in the ledger.
    ///
    /// # Errors
    /// When there is none with this id, and [`LedgerError::Build`] when it does not verify.
    pub fn verified_verdict(&self, id: EntryId) -> Result<Verdict, LedgerError> {
        let envelope = self.verdicts.ledger.get(&id.to_string())?;
        let verified = verify_verdict_with(&envelope, &self.verdicts.own_keys, Some(&self.source_keys))?;
        let sequence = verified.verdict.sequence;
        if sequence != id.sequence() {
            let (left, right) = (id.to_string(), EntryId(sequence).to_string());
            return Err(VerdictError::Mismatch { what: "place in the ledger", left, right }.into());
        }
        Ok(verified.verdict)
    }

    /// Reads the ledger, when the repository is opened. Nobody else writes to it. Gives what it says of keys.
    pub(super) fn learn_verdicts(&self) -> LastKeys {
        let mut known = Known { held: measure(self.verdicts.ledger.folder()), ..Known::default() };
        let mut keys = LastKeys::default();
        for id in self.verdicts.ledger.entries().unwrap_or_default() {
            let Ok(envelope) = self.verdicts.ledger.get(&id.to_string()) else {
                known.history.note_unreadable(id.0);
                continue;
            };
            let verdict = match unverified_verdict(&envelope) {
                Ok(verdict) => {
                    keys.note_signer(&envelope);
                    verdict
                }
                Err(_) => {
                    if unverified_key_change(&envelope).is_err() {
                        known.history.note_unreadable(id.0);
                    }
                    keys.note(id, &envelope);
                    continue;
                }
            };
            known.history.note(id.0, Past::of(&verdict));
            let id = id.to_string();
            known.trust.learn(&verdict);
            known.ended_runs.insert(verdict.run_id.clone());
            if verdict.outcome != Outcome::Pass {
                self.failed_runs.note(verdict.times.signed);
            }
            if let Some(generation) = verdict.generation {
                // Newest first: what came before does not count any more.
                let standing = known
                    .standings
                    .entry(generation)
                    .or_insert_with(|| Standing { last: id.clone(), conclusive: None });
                if standing.conclusive.is_none() && is_conclusive(verdict.outcome) {
                    let checker = Checker::of(&verdict);
                    standing.conclusive = Some(Conclusive { id, outcome: verdict.outcome, checker });
                }
            }
        }
        *self.verdicts.known() = known;
        self.learn_control();
        keys
    }

    /// The control that is kept counts for the checker that the configuration names now.
    fn learn_control(&self) {
        if let Some(control) = self.control() {
            let mut known = self.verdicts.known();
            known.trust.add(Checker::Digest(self.checker().0), &control);
            if let Some(profile) = control.profile {
                known.trust.add(Checker::Profile(profile.0), &control);
            }
        }
    }

    /// What the newest negative control of the checker that gave this verdict says; `None` when there was none.
    pub fn trust_in(&self, verdict: &Verdict) -> Option<Trust> {
        self.verdicts.known().trust.of(Checker::of(verdict).as_ref())
    }

    /// True for a generation whose last conclusive verdict is a PASS that counts: its checker has found damage in its newest
    /// negative control.
    pub fn is_proven(&self, generation: GenerationNumber) -> bool {
        let known = self.verdicts.known();
        known.conclusive(generation).is_some_and(|conclusive| {
            conclusive.outcome == Outcome::Pass
                && known.trust.of(conclusive.checker.as_ref()) == Some(Trust::Trusted)
        })
    }

    /// As if the ledger said so.
    #[cfg(test)]
    pub(crate) fn set_standing(&self, generation: GenerationNumber, outcome: Outcome) {
        let (last, checker) = ("000000001".to_owned(), Checker::Digest(self.checker().0));
        let conclusive = Some(Conclusive { id: last.clone(), outcome, checker: Some(checker.clone()) });
        {
            let mut known = self.verdicts.known();
            known.trust.set(checker, Trust::Trusted);
            known.standings.insert(generation, Standing { last, conclusive });
        }
        self.settle().expect("the link");
    }

    fn verdict(&self, id: &str) -> Option<Verdict> {
        unverified_verdict(&self.verdicts.ledger.get(id).ok()?).ok()
    }

    /// The newest verdict on a generation.
    pub fn last_verdict(&self, generation: GenerationNumber) -> Option<(String, Verdict)> {
        let id = self.verdicts.known().standings.get(&generation)?.last.clone();
        let verdict = self.verdict(&id)?;
        Some((id, verdict))
    }

    /// The newest verdict on a generation that is PASS or FAIL.
    pub fn last_conclusive(&self, generation: GenerationNumber) -> Option<(String, Verdict)> {
        let id = self.verdicts.known().conclusive(generation)?.id.clone();
        let verdict = self.verdict(&id)?;
        Some((id, verdict))
    }

    /// The outcome of the newest verdict on a generation that is PASS or FAIL.
    pub fn standing(&self, generation: GenerationNumber) -> Option<Outcome> {
        self.verdicts.known().conclusive(generation).map(|conclusive| conclusive.outcome)
    }

    /// The newest generation that is there, stands before `generation`, whose last conclusive verdict is PASS, and in which no
    /// rot is known.
    pub fn last_pass_before(&self, generation: GenerationNumber) -> Option<GenerationNumber> {
        let passed = self.verdicts.known().passed_before(generation);
        let is_sound = |number: &GenerationNumber| {
            self.store.generation_path(*number).is_dir() && !self.rot().has(*number)
        };
        passed.into_iter().rev().find(is_sound)
    }

    /// The newest generation that passed, whether its PASS counts or not: what a negative control damages a copy of.
    pub fn newest_pass(&self) -> Option<GenerationNumber> {
        self.last_pass_before(GenerationNumber(u64::MAX))
    }

    /// The newest generation whose PASS counts and that is there and sound.
    fn newest_proven(&self) -> Option<GenerationNumber> {
        let mut before = self.newest_pass();
        while let Some(generation) = before.filter(|generation| !self.is_proven(*generation)) {
            before = self.last_pass_before(generation);
        }
        before
    }

    /// What the check of this repository is: a digest of its profile, its variables, and the programs that it runs as this host has them.
    /// Another profile, another program in a variable, or another file under the same path, is another checker.
    fn check_digest(&self) -> ContentDigest {
        let mut hasher = blake3::Hasher::new();
        let mut add = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        };
        add(self.config.profile.digest());
        for (name, value) in &self.config.vars {
            add(name);
            add(&value.texts().len().to_string());
            value.texts().iter().for_each(|text| add(text));
        }
        hasher.update(&programs::digest(&self.config).0);
        ContentDigest(*hasher.finalize().as_bytes())
    }

    /// Digest of the checker of this repository, as verdicts name it: a control vouches for verdicts of the same checker only.
    pub fn checker(&self) -> HexDigest {
        self.check_digest().into()
    }

    /// The checker of a check that began when [`Self::checker`] said `began`, and the control that vouches for it. When its programs were
    /// exchanged while it ran, none does: it was neither the one nor the other.
    pub fn checker_since(&self, began: HexDigest) -> (HexDigest, Option<NegativeControl>) {
        let now = self.checker();
        if now == began {
            return (began, self.control());
        }
        (ContentDigest::of(&[began.0, now.0].concat()).into(), None)
    }

    /// The newest negative control, when it is of another check than this one: the checker has changed since.
    pub fn former_control(&self) -> Option<NegativeControl> {
        let bytes = self.store.control().filter(|_| !self.store.has_control_of(self.check_digest()))?;
        verify_control_among(&self.config.name, &bytes, self.verdicts.own_keys.all()).ok()
    }

    /// The newest negative control; none when there was none of this check, or when it does not bear this target's signature.
    pub fn control(&self) -> Option<NegativeControl> {
        let bytes = self.store.control().filter(|_| self.store.has_control_of(self.check_digest()))?;
        let name = &self.config.name;
        match verify_control_among(name, &bytes, self.verdicts.own_keys.all()) {
            Ok(control) => Some(control),
            Err(error) => {
                tracing::error!(repository = name, %error, "the negative control's record is not believed");
                None
            }
        }
    }

    /// Signs a negative control and keeps it in the place of the one before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn record_control(&self, control: &NegativeControl) -> Result<(), StoreError> {
        let writing = self.verdicts.writing();
        if control.trust() == Trust::NotTrusted {
            carried::forget(&self.store);
        }
        let envelope = sign_control(&self.config.name, control, &self.verdicts.signing_key);
        self.store.set_control(envelope.to_json().as_bytes(), self.check_digest())?;
        self.learn_control();
        self.settle_verified(&writing)?;
        drop(writing);
        observe::proved(self);
        Ok(())
    }

    /// Signs a verdict, appends it to the ledger, and moves `verified`, in this order: a `verified` without
    /// its verdict could never be explained. Returns id and envelope.
    ///
    /// 1. It is signed and appended ([`Ledger::append`]). A crash before its end leaves the generation without a verdict: it
    ///    can be verified again, and is the base of the next run all the same.
    /// 2. `verified` is moved, when this verdict changes which generation it is. A crash before leaves the link where it was;
    ///    opening the repository moves it as the ledger says.
    /// 3. Whoever asked is told. A crash before loses nothing: the source asks again and is given the same verdict.
    ///
    /// # Errors
    /// When the verdict does not hold together, or cannot be written.
    pub fn record_verdict(
        &self,
        build: impl FnOnce(u64, HexDigest) -> Verdict,
    ) -> Result<(String, String), RecordError> {
        let step =
            |point| fault::at(point).at("write", self.verdicts.ledger.folder()).map_err(StoreError::from);
        let (mut about, mut run, mut ended, mut past, mut failed) = (None, None, None, None, false);
        let writing = self.verdicts.writing();
        step(Point::Sign)?;
        let id = self.verdicts.ledger.append(|sequence, previous| {
            let verdict = build(sequence, previous);
            about = verdict.generation.map(|generation| (generation, verdict.outcome, Checker::of(&verdict)));
            run = Some(verdict.run_id.clone());
            failed = verdict.outcome != Outcome::Pass;
            past = Some(Past::of(&verdict));
            ended = Some(Ended::of_verdict("", &verdict));
            sign_verdict(&verdict, &self.verdicts.signing_key)
        })?;
        if let Some(past) = past {
            self.verdicts.known().history.note(id.0, past);
        }
        let id = id.to_string();
        if let Some(ended) = ended {
            self.untold.push(Ended { verdict_id: id.clone(), ..ended });
        }
        let is_first = {
            let mut known = self.verdicts.known();
            if let Some((generation, outcome, checker)) = about {
                known.note(generation, &id, outcome, checker);
            }
            run.is_some_and(|run| known.ended_runs.insert(run))
        };
        if is_first && failed {
            self.failed_runs.note(jiff::Timestamp::now());
        }
        let settled = step(Point::LedgerAppended)
            .and_then(|()| self.settle_verified(&writing))
            .and_then(|()| step(Point::VerifiedMoved));
        drop(writing);
        // The verdict is in the ledger, even when the link cannot be moved.
        self.tell_verdicts();
        settled?;
        let envelope = self.envelope(&id)?;
        let mut known = self.verdicts.known();
        known.held = known.held.and(entry_held(envelope.len() as u64));
        Ok((id, envelope))
    }

    /// What the ledger takes.
    pub fn ledger_held(&self) -> Held {
        self.verdicts.known().held
    }

    /// Points `verified` at the newest generation whose PASS counts ([`Self::is_proven`]). It moves forward only: a new
    /// generation that fails moves nothing, and neither does a checker that turns out to miss damage. A generation that passed
    /// once and fails when it is checked again, or in which rot is found, is not called verified any longer: then `verified`
    /// moves to the newest whose PASS counts, else to the newest before it that passed.
    fn settle_verified(&self, _: &Writing<'_>) -> Result<(), StoreError> {
        let (verified, proven) = (self.store.verified(), self.newest_proven());
        let Some(current) = verified else {
            return proven.map_or(Ok(()), |proven| self.store.set_verified(proven));
        };
        let is_bad = self.standing(current) == Some(Outcome::Fail) || self.rot().has(current);
        let is_gone = !self.store.generation_path(current).is_dir();
        if is_bad || is_gone {
            return match proven.or_else(|| self.last_pass_before(current)) {
                Some(other) => self.store.set_verified(other),
                None if is_bad => self.store.clear_verified(),
                None => Ok(()),
            };
        }
        match proven {
            Some(proven) if proven > current => self.store.set_verified(proven),
            _ => Ok(()),
        }
    }

    /// True for a run that has a verdict.
    pub fn has_verdict(&self, run_id: &RunId) -> bool {
        self.verdicts.known().ended_runs.contains(run_id)
    }

    /// Points `verified` where it belongs, after something became known of a generation.
    ///
    /// # Errors
    /// When the link cannot be moved.
    pub fn settle(&self) -> Result<(), StoreError> {
        self.settle_verified(&self.verdicts.writing())
    }
}

/// Why a verdict is not recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The link to the verified generation.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The verdict.
    #[error(transparent)]
    Verdict(#[from] VerdictError),
}

/// Who gave a verdict: a negative control vouches for verdicts of the same checker only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Checker {
    /// The profile and its variables.
    Digest([u8; 32]),
    /// The profile: verdicts of before there was a coverage name no more.
    Profile([u8; 32]),
}

impl Checker {
    fn of(verdict: &Verdict) -> Option<Self> {
        match (&verdict.coverage, &verdict.profile) {
            (Some(coverage), _) => Some(Self::Digest(coverage.checker.0)),
            (None, Some(profile)) => Some(Self::Profile(profile.digest.0)),
            (None, None) => None,
        }
    }
}

/// What the newest negative control of each checker says.
#[derive(Debug, Default)]
struct TrustTable(BTreeMap<Checker, (jiff::Timestamp, Trust)>);

impl TrustTable {
    /// A control of a checker; one that is older than what is known changes nothing.
    fn add(&mut self, checker: Checker, control: &NegativeControl) {
        let newest = self.0.entry(checker).or_insert((control.time, control.trust()));
        if newest.0 < control.time {
            *newest = (control.time, control.trust());
        }
    }

    /// The control that a verdict embeds is of the checker that gave it.
    fn learn(&mut self, verdict: &Verdict) {
        if let (Some(checker), Some(control)) = (Checker::of(verdict), &verdict.negative_control) {
            self.add(checker, control);
        }
    }

    fn of(&self, checker: Option<&Checker>) -> Option<Trust> {
        self.0.get(checker?).map(|(_, trust)| *trust)
    }

    #[cfg(test)]
    fn set(&mut self, checker: Checker, trust: Trust) {
        self.0.insert(checker, (jiff::Timestamp::now(), trust));
    }
}

/// What a ledger's entry takes.
fn entry_held(bytes: u64) -> Held {
    Held { content: 0, overhead: bytes.saturating_add(FILE_BYTES), inodes: 1 }
}

/// What all entries of a ledger take.
fn measure(ledger: &Path) -> Held {
    let entries = std::fs::read_dir(ledger).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file);
    sizes.fold(Held::default(), |sum, stat| sum.and(entry_held(stat.len())))
}

fn is_conclusive(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Pass | Outcome::Fail)
}

/// The times of a verdict that has none yet.
pub fn times_now() -> verdict::Times {
    verdict::Times {
        opened: None,
        sealed: None,
        check_started: None,
        check_finished: None,
        signed: jiff::Timestamp::now(),
    }
}
