//! Coverage: the signed account of what a verdict rests on, and what a PASS may claim because of it.
//!
//! The source says in its own statement which bytes of the live repository it read in this run and which earlier
//! ([`Readings`]). The target adds what its check looked at, what nobody looked at, and whether the checker is known to find
//! damage. [`claims`] weighs all of it; no other code decides what a PASS says. Whoever verifies a verdict computes the claims
//! again and refuses a verdict that claims something else.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fidelity::LeftOut;

use super::{
    Depth, HexDigest, NegativeControl, Outcome, SourceStatement, Trust, Verdict, VerdictError,
    timestamp_to_proto, unverified_source_statement,
};

/// Entries that each list of a coverage names; the rest is counted.
pub const MAX_LISTED: usize = 200;
/// Longest text of one such entry, in bytes.
pub const MAX_LISTED_BYTES: usize = 4096;
/// Entries that a sentence names.
const NAMED: usize = 3;
/// Characters of a name in a sentence.
const NAME_CHARS: usize = 80;

/// Parts of one kind that a check looked at, for example 312 relations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PartsChecked {
    /// What the parts are, in the plural: `relations`.
    pub kind: String,
    /// How many of them.
    pub count: u64,
}

/// A part that nobody looked at, or not as far as the profile promises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NotCovered {
    /// A path, a relation, a database: whatever the part is called.
    pub part: String,
    /// A short stable word, for example `unstable`.
    pub reason: String,
    /// The same for a person.
    pub message: String,
}

/// What the source read of the live repository, and when. Part of its signed statement.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Readings {
    /// Files of the tree.
    pub files_total: u64,
    /// Their content, in bytes.
    pub bytes_total: u64,
    /// Files of the tree whose whole content was read in this run, because they had changed or because their turn had come.
    pub files_read_now: u64,
    /// Their content, in bytes.
    pub bytes_read_now: u64,
    /// When the file was read whose reading is the oldest, by the source host's clock. Absent when every file was read in this
    /// run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_reading: Option<Timestamp>,
    /// When the file was read whose reading is the newest among those that were not read in this run. Absent as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_carried_reading: Option<Timestamp>,
    /// Files that were not read in this run and of which the source does not know when they were read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub files_of_unknown_age: u64,
    /// Files whose content changed although size, times and inode did not: paths below the tree, made printable, at most
    /// [`MAX_LISTED`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed_without_trace: Vec<String>,
    /// How many such files there are, the listed ones included.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub changed_without_trace_total: u64,
    /// What the source did not copy as it was, or not as of one moment: a file that changed on every try, a database that no
    /// mark covers, an attribute that the configuration ignores. At most [`MAX_LISTED`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_covered: Vec<NotCovered>,
    /// How many of those there are, the listed ones included.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_covered_total: u64,
    /// `max_reading_age` of the source's configuration, in seconds: with a reading that is older nothing may be claimed of the
    /// live repository. Absent when the source sets no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_reading_age_seconds: Option<u64>,
}

impl Readings {
    /// Counts must add up, lists and texts have limits, and no text holds a control character: the source may have been taken
    /// over.
    pub(super) fn check(&self) -> Result<(), VerdictError> {
        let plain = |text: &str| text.len() <= MAX_LISTED_BYTES && !text.chars().any(char::is_control);
        let entry = |part: &NotCovered| plain(&part.part) && plain(&part.reason) && plain(&part.message);
        let rules = [
            (
                self.files_read_now
                    .checked_add(self.files_of_unknown_age)
                    .is_some_and(|sum| sum <= self.files_total)
                    && self.bytes_read_now <= self.bytes_total,
                "more was read than there is",
            ),
            (
                self.not_covered.len() <= MAX_LISTED && self.changed_without_trace.len() <= MAX_LISTED,
                "a list has more than 200 entries",
            ),
            (
                self.changed_without_trace.iter().all(|path| plain(path))
                    && self.not_covered.iter().all(entry),
                "a text is longer than 4096 bytes or holds a control character",
            ),
            (
                self.not_covered_total >= self.not_covered.len() as u64
                    && self.changed_without_trace_total >= self.changed_without_trace.len() as u64,
                "a total is less than what is listed",
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, rule)) => Err(VerdictError::Readings { rule }),
        }
    }
}

/// Results of parts of a check that were carried over from earlier verdicts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Carried {
    /// Parts whose result was carried.
    pub parts: u64,
    /// Parts of the same steps that were checked now.
    pub parts_checked_now: u64,
    /// The verdicts of the checks in which the carried parts passed, oldest first, at most [`MAX_LISTED`].
    pub verdicts: Vec<CarriedFrom>,
    /// How many verdicts those are, the listed ones included.
    pub verdicts_total: u64,
    /// When the oldest of these results was found.
    pub oldest: Timestamp,
    /// When the newest of them was found.
    pub newest: Timestamp,
    /// How old a carried result may be, in seconds. Absent when there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_seconds: Option<u64>,
}

/// A verdict from which results were carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CarriedFrom {
    /// Its place in the ledger.
    pub sequence: u64,
    /// Carried parts that were checked for it.
    pub parts: u64,
}

impl Carried {
    /// What is stated must be possible: there are parts, in their order, from earlier verdicts of this ledger and earlier checks.
    fn check(&self, verdict: &Verdict) -> Result<(), &'static str> {
        let listed: u64 = self.verdicts.iter().fold(0, |sum, from| sum.saturating_add(from.parts));
        let in_order = self.verdicts.windows(2).all(|pair| pair[0].sequence < pair[1].sequence);
        let is_earlier = |from: &CarriedFrom| from.sequence > 0 && from.sequence < verdict.sequence;
        let is_whole = self.verdicts_total == self.verdicts.len() as u64;
        let rules = [
            (verdict.outcome == Outcome::Pass, "it did not pass, and carries results"),
            (self.parts > 0, "it carries no result and says so"),
            (self.parts_checked_now > 0, "all its results are carried: nothing was checked"),
            (
                self.verdicts.len() <= MAX_LISTED && self.verdicts_total >= self.verdicts.len() as u64,
                "the verdicts that it carries results from are not counted as they are listed",
            ),
            (
                if is_whole { listed == self.parts } else { listed < self.parts },
                "the carried parts do not add up to those of the verdicts that they come from",
            ),
            (
                in_order && self.verdicts.iter().all(is_earlier),
                "it carries results from verdicts that are not before it in the ledger",
            ),
            (
                self.oldest <= self.newest && verdict.times.check_started.is_some_and(|it| self.newest <= it),
                "a result that it carries is younger than its check",
            ),
        ];
        rules.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, missing)| Err(missing))
    }
}

/// What a target knows of the parts of its check.
#[derive(Debug, Clone, Default)]
pub struct PartResults {
    /// Results that were carried over.
    pub carried: Option<Carried>,
    /// Digest of the record of the parts that have passed.
    pub record: Option<HexDigest>,
}

/// What a check looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CheckCoverage {
    /// Parts that were checked now, by kind, of all steps together.
    pub parts_checked: Vec<PartsChecked>,
    /// Results that were carried over. Absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<Carried>,
    /// Digest of the target's record of the parts that have passed, with what each depends on: later checks carry results of a record
    /// that a verdict names, and of no other. Absent where the check has no such parts, or did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts_record: Option<HexDigest>,
}

/// What is known of a check whose verdict says nothing of its parts.
const NO_PARTS: CheckCoverage =
    CheckCoverage { parts_checked: Vec::new(), carried: None, parts_record: None };

/// The account of what a verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Coverage {
    /// As in the source's statement. Absent when the source does not say what it read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<Readings>,
    /// How old a reading may be for a claim about the live repository, in seconds: the lower one of the two limits that source
    /// and target set. Absent when neither sets one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_reading_age_seconds: Option<u64>,
    /// What the check looked at.
    pub check: CheckCoverage,
    /// What nobody looked at, from the source and from every step, at most [`MAX_LISTED`].
    pub not_covered: Vec<NotCovered>,
    /// How many parts nobody looked at, the listed ones included.
    pub not_covered_total: u64,
    /// Digest of the checker: of the profile and of the variables that the target's configuration sets. A negative control
    /// vouches for PASS verdicts of the same checker only.
    pub checker: HexDigest,
    /// What the verdict claims because of all that.
    pub claims: Claims,
}

/// What is claimed of the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackupClaim {
    /// It is good.
    Good,
    /// It is good, except for the parts that were not covered.
    GoodAsCovered,
    /// It is what was read; its content was not checked by a checker that is known to find damage.
    AsRead,
    /// Nothing.
    Nothing,
}

/// What is claimed of the live repository at the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LiveClaim {
    /// It was good.
    Good,
    /// It was good as far as it was read, checked and covered.
    GoodAsCovered,
    /// Nothing.
    Nothing,
}

/// What a verdict claims, and why it claims no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Claims {
    /// Of the backup.
    pub backup: BackupClaim,
    /// Of the live repository.
    pub live: LiveClaim,
    /// What keeps the verdict from claiming more, a clause each; empty when it claims all that a verdict can.
    pub because: Vec<String>,
}

impl BackupClaim {
    /// The word for it, in verdicts and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::GoodAsCovered => "good-as-covered",
            Self::AsRead => "as-read",
            Self::Nothing => "nothing",
        }
    }
}

impl LiveClaim {
    /// The word for it, in verdicts and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::GoodAsCovered => "good-as-covered",
            Self::Nothing => "nothing",
        }
    }
}

impl Claims {
    /// To the wire; `trust` is what the newest negative control of the checker says.
    pub fn to_proto(&self, outcome: Outcome, trust: Option<Trust>) -> assay_proto::v1::Claims {
        assay_proto::v1::Claims {
            backup: self.backup.as_str().to_owned(),
            live: self.live.as_str().to_owned(),
            because: self.because.clone(),
            proven: outcome == Outcome::Pass && trust == Some(Trust::Trusted),
            ..Default::default()
        }
    }
}

/// All that the claims of a verdict depend on.
#[derive(Debug, Clone)]
pub struct Grounds<'a> {
    /// What came out.
    pub outcome: Outcome,
    /// How deep the check looked.
    pub depth: Option<Depth>,
    /// What the newest negative control says of this checker; absent when there was none.
    pub trust: Option<Trust>,
    /// What the source says of its readings.
    pub reading: Option<&'a Readings>,
    /// True when the run built upon no earlier generation: then every file was read in it, whatever the source says.
    pub is_first: bool,
    /// When the mark was made, by the source host's clock.
    pub mark: Option<Timestamp>,
    /// How old a reading may be.
    pub max_reading_age: Option<Duration>,
    /// What the check looked at.
    pub check: &'a CheckCoverage,
    /// How many parts nobody looked at, and the first of them.
    pub not_covered: (u64, &'a [NotCovered]),
}

/// Why nothing is claimed, where the check is not deep enough.
const ONLY_BYTES: &str = "the check looks at the bytes only and not at what they mean";
/// Why nothing is claimed of content, before the first control.
const NO_CONTROL: &str = "no negative control of this checker has passed yet";
/// Why nothing is claimed of content, after a control that failed.
const NOT_TRUSTED: &str =
    "the checker passed data that was damaged on purpose in its newest negative control";

/// What a verdict may claim. Each row of the sentence table in `docs/VERDICTS.md` is a branch here.
pub fn claims(grounds: &Grounds<'_>) -> Claims {
    let nothing = |because| Claims { backup: BackupClaim::Nothing, live: LiveClaim::Nothing, because };
    match grounds.outcome {
        Outcome::Pass => {}
        Outcome::Fail => return nothing(vec!["the check found damage".to_owned()]),
        Outcome::Inconclusive => return nothing(vec!["the check could not do its work".to_owned()]),
        Outcome::NotRun => return nothing(vec!["nothing was checked".to_owned()]),
    }
    let mut because = Vec::new();
    if grounds.depth.is_none_or(|depth| depth < Depth::L1) {
        because.push(ONLY_BYTES.to_owned());
    }
    match grounds.trust {
        Some(Trust::Trusted) => {}
        Some(Trust::NotTrusted) => because.push(NOT_TRUSTED.to_owned()),
        Some(Trust::Unknown) | None => because.push(NO_CONTROL.to_owned()),
    }
    let not_covered = not_covered_clause(grounds.not_covered);
    if !because.is_empty() {
        because.extend(not_covered);
        return Claims { backup: BackupClaim::AsRead, live: LiveClaim::Nothing, because };
    }
    let Limits { unknown, too_old, mut limits } = Limits::of(grounds);
    if let Some(carried) = grounds.check.carried.as_ref().filter(|carried| carried.parts > 0) {
        limits.push(carried_clause(carried));
    }
    let backup = if not_covered.is_some() { BackupClaim::GoodAsCovered } else { BackupClaim::Good };
    if !unknown.is_empty() || !too_old.is_empty() {
        because.extend(unknown);
        because.extend(too_old);
        because.extend(not_covered);
        return Claims { backup, live: LiveClaim::Nothing, because };
    }
    because.extend(limits);
    because.extend(not_covered);
    let live = if because.is_empty() { LiveClaim::Good } else { LiveClaim::GoodAsCovered };
    Claims { backup, live, because }
}

/// How the ages of readings and carried results limit the claim about the live repository, a clause each.
#[derive(Debug, Default)]
struct Limits {
    /// An age is not known: nothing is claimed.
    unknown: Vec<String>,
    /// An age is above its limit: nothing is claimed.
    too_old: Vec<String>,
    /// What is claimed is limited by these.
    limits: Vec<String>,
}

impl Limits {
    fn of(grounds: &Grounds<'_>) -> Self {
        let (mut unknown, mut too_old, mut limits) = (Vec::new(), Vec::new(), Vec::new());
        let Some(mark) = grounds.mark else {
            return Self { unknown: vec!["the verdict names no mark".to_owned()], ..Self::default() };
        };
        match grounds.reading {
            None if grounds.is_first => {}
            None => {
                unknown.push("the source does not say when it read the files that had not changed".to_owned())
            }
            Some(reading) if reading.files_read_now >= reading.files_total => {}
            Some(reading) => match (reading.oldest_reading, reading.newest_carried_reading) {
                (Some(oldest), Some(newest))
                    if reading.files_of_unknown_age == 0 && oldest <= newest && newest <= mark =>
                {
                    let limit = grounds.max_reading_age;
                    too_old.extend(too_old_clause("its oldest reading", oldest, mark, limit));
                    limits.push(format!(
                        "{} of {} files now, the rest between {} and {}",
                        reading.files_read_now,
                        reading.files_total,
                        minute(oldest),
                        minute(newest)
                    ));
                }
                _ => {
                    let files = match reading.files_of_unknown_age {
                        0 => reading.files_total - reading.files_read_now,
                        files => files,
                    };
                    unknown.push(format!("it is not known when {files} of its files were read last"));
                }
            },
        }
        if let Some(carried) = &grounds.check.carried {
            let limit = carried.limit_seconds.map(Duration::from_secs);
            let what = "the oldest result that was carried over";
            too_old.extend(too_old_clause(what, carried.oldest, mark, limit));
        }
        Self { unknown, too_old, limits }
    }
}

/// Says that `what`, which is of `time`, was older than `limit` at the mark; nothing when it was not.
fn too_old_clause(what: &str, time: Timestamp, mark: Timestamp, limit: Option<Duration>) -> Option<String> {
    let age = Duration::try_from(time.duration_until(mark)).ok()?;
    let limit = limit.filter(|limit| age > *limit)?;
    let (age, limit) = (length_in_words(age), length_in_words(limit));
    Some(format!("{what} is {age} old, and {limit} is the limit"))
}

fn carried_clause(carried: &Carried) -> String {
    let now = carried.parts_checked_now;
    format!(
        "{now} of {} parts checked now, the rest between {} and {}",
        now.saturating_add(carried.parts),
        minute(carried.oldest),
        minute(carried.newest)
    )
}

fn not_covered_clause((total, listed): (u64, &[NotCovered])) -> Option<String> {
    let total = total.max(listed.len() as u64);
    if total == 0 {
        return None;
    }
    let mut text = String::from("not covered: ");
    let named: Vec<_> = listed.iter().take(NAMED).map(|part| shortened(&part.part)).collect();
    text.push_str(&named.join(", "));
    match (named.len(), total - named.len() as u64) {
        (_, 0) => {}
        (0, more) => text.push_str(&format!("{more} parts")),
        (_, more) => text.push_str(&format!(" and {more} more")),
    }
    Some(text)
}

/// A name that fits into a sentence. Examples in parentheses at its end go first; of a path the end tells more than the start, of
/// words the start does.
fn shortened(name: &str) -> String {
    let fits = |text: &str| text.chars().count() <= NAME_CHARS;
    if fits(name) {
        return name.to_owned();
    }
    let name = name.strip_suffix(')').and_then(|inner| inner.split_once(" (")).map_or(name, |(head, _)| head);
    let count = name.chars().count();
    if fits(name) {
        name.to_owned()
    } else if name.contains(' ') {
        format!("{}...", name.chars().take(NAME_CHARS).collect::<String>())
    } else {
        format!("...{}", name.chars().skip(count - NAME_CHARS).collect::<String>())
    }
}

/// A time to the minute.
fn minute(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%MZ").to_string()
}

/// A span in its two largest units, rounded down.
pub fn length_in_words(span: Duration) -> String {
    let (minutes, hours) = (span.as_secs() / 60, span.as_secs() / 3600);
    let word = |count, unit: &str| if count == 1 { format!("1 {unit}") } else { format!("{count} {unit}s") };
    match (hours / 24, hours % 24, minutes % 60) {
        (0, 0, 0) => word(span.as_secs(), "second"),
        (0, 0, minutes) => word(minutes, "minute"),
        (0, hours, 0) => word(hours, "hour"),
        (0, hours, minutes) => format!("{} and {}", word(hours, "hour"), word(minutes, "minute")),
        (days, 0, _) => word(days, "day"),
        (days, hours, _) => format!("{} and {}", word(days, "day"), word(hours, "hour")),
    }
}

/// The sentence of a PASS with these claims.
fn pass_sentence(claims: &Claims) -> String {
    let (not_covered, other): (Vec<_>, Vec<_>) =
        claims.because.iter().map(String::as_str).partition(|clause| clause.starts_with("not covered: "));
    let mut text = match (claims.backup, claims.live) {
        (BackupClaim::Nothing, _) => return "nothing is claimed of this backup".to_owned(),
        (BackupClaim::AsRead, _) => {
            "the copy is what was read; its content was not checked by a checker that is known to find damage"
                .to_owned()
        }
        (_, LiveClaim::Nothing) => {
            format!(
                "this backup is good; nothing is said of the live repository, because {}",
                other.join("; ")
            )
        }
        (_, LiveClaim::Good | LiveClaim::GoodAsCovered) => {
            let mut text = "this backup is good, and the live repository was good at the mark".to_owned();
            if !other.is_empty() {
                text.push_str(", as far as it was read: ");
                text.push_str(&other.join("; "));
            }
            text
        }
    };
    for clause in not_covered {
        text.push_str("; ");
        text.push_str(clause);
    }
    text
}

/// What an outcome means, in a sentence for three in the morning. Of a PASS it says what `claims` back and no more.
pub fn sentence(outcome: Outcome, claims: &Claims) -> String {
    match outcome {
        Outcome::Pass => pass_sentence(claims),
        other => meaning(other).to_owned(),
    }
}

/// The same where no verdict is at hand: of a PASS that alone says no more than that the check found nothing.
pub fn meaning(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "the check found no damage",
        Outcome::Fail => "the check found damage; the last verified generation is untouched",
        Outcome::Inconclusive => "the check could not do its work; nothing is known of the data",
        Outcome::NotRun => "the run ended before its check; nothing was checked",
    }
}

impl Coverage {
    /// The account of `verdict`, whose own `coverage` is not looked at, with the statement that it embeds.
    pub fn new(
        verdict: &Verdict,
        statement: &SourceStatement,
        checker: HexDigest,
        max_reading_age: Option<Duration>,
        parts: PartResults,
    ) -> Self {
        let reading = statement.readings.clone();
        let limits = [max_reading_age.map(|limit| limit.as_secs()), source_limit(reading.as_ref())];
        let max_reading_age_seconds = limits.into_iter().flatten().min();
        let (not_covered, not_covered_total) = all_not_covered(verdict, statement);
        let PartResults { carried, record: parts_record } = parts;
        let check = CheckCoverage { parts_checked: all_parts(verdict), carried, parts_record };
        let mut coverage = Self {
            reading,
            max_reading_age_seconds,
            check,
            not_covered,
            not_covered_total,
            checker,
            claims: Claims { backup: BackupClaim::Nothing, live: LiveClaim::Nothing, because: Vec::new() },
        };
        coverage.claims = claims(&coverage.grounds(verdict, Some(statement)));
        coverage
    }

    fn grounds<'a>(&'a self, verdict: &Verdict, source: Option<&SourceStatement>) -> Grounds<'a> {
        Grounds {
            outcome: verdict.outcome,
            depth: verdict.depth,
            trust: verdict.negative_control.as_ref().map(NegativeControl::trust),
            reading: self.reading.as_ref(),
            is_first: source.is_some_and(|source| source.base_generation.is_none()),
            mark: verdict.mark.as_ref().map(|mark| mark.time),
            max_reading_age: self.max_reading_age_seconds.map(Duration::from_secs),
            check: &self.check,
            not_covered: (self.not_covered_total, &self.not_covered),
        }
    }

    /// The coverage must be that of this verdict and of the statement inside, and claim what they back.
    pub(super) fn cross_check(
        &self,
        verdict: &Verdict,
        source: Option<&SourceStatement>,
    ) -> Result<(), VerdictError> {
        let unfounded = |missing| VerdictError::Unfounded { outcome: verdict.outcome, missing };
        let needs = |holds: bool, missing| if holds { Ok(()) } else { Err(unfounded(missing)) };
        let source = source.ok_or_else(|| unfounded("it has a coverage and no statement of the source"))?;
        needs(
            self.reading == source.readings,
            "the coverage's readings are not those that the source signed",
        )?;
        let limit = source_limit(self.reading.as_ref());
        needs(
            limit.is_none_or(|limit| self.max_reading_age_seconds.is_some_and(|own| own <= limit)),
            "the coverage allows older readings than the source does",
        )?;
        let (not_covered, total) = all_not_covered(verdict, source);
        needs(
            self.not_covered == not_covered && self.not_covered_total == total,
            "the coverage leaves out parts that were not covered",
        )?;
        needs(
            self.check.parts_checked == all_parts(verdict),
            "the coverage counts other parts than its steps",
        )?;
        self.check.carried.as_ref().map_or(Ok(()), |carried| carried.check(verdict).map_err(unfounded))?;
        needs(
            self.check.parts_record.is_none() || verdict.outcome == Outcome::Pass,
            "it names a record of parts that have passed, and did not pass",
        )?;
        // The clauses beside the claims are words, which another version may put otherwise: whoever shows them makes them anew.
        let backed = claims(&self.grounds(verdict, Some(source)));
        needs(
            (self.claims.backup, self.claims.live) == (backed.backup, backed.live),
            "it claims something else than what it lists backs",
        )
    }
}

fn source_limit(reading: Option<&Readings>) -> Option<u64> {
    reading?.max_reading_age_seconds
}

/// What nobody looked at: what the source says first, then each step of the last attempt.
fn all_not_covered(verdict: &Verdict, source: &SourceStatement) -> (Vec<NotCovered>, u64) {
    let reading = source.readings.as_ref();
    let mut listed: Vec<_> = reading.map(|reading| reading.not_covered.clone()).unwrap_or_default();
    let mut total = reading.map_or(0, |reading| reading.not_covered_total.max(listed.len() as u64));
    // A source that says nothing of its readings counts at least the files that never held still.
    if reading.is_none() && source.counts.files_unstable > 0 {
        total += 1;
        let count = source.counts.files_unstable;
        let part = if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
        listed.push(NotCovered {
            part: format!("{part} that changed while being read"),
            reason: "unstable".to_owned(),
            message: "changed on every try while the source read it".to_owned(),
        });
    }
    let last = verdict.steps.last().map(|step| step.attempt);
    for step in verdict.steps.iter().filter(|step| Some(step.attempt) == last) {
        total = total.saturating_add(step.not_covered.len() as u64);
        listed.extend(step.not_covered.iter().cloned());
    }
    listed.truncate(MAX_LISTED);
    (listed, total)
}

fn all_parts(verdict: &Verdict) -> Vec<PartsChecked> {
    let last = verdict.steps.last().map(|step| step.attempt);
    let mut sums: Vec<PartsChecked> = Vec::new();
    for parts in verdict.steps.iter().filter(|step| Some(step.attempt) == last).flat_map(|step| &step.checked)
    {
        match sums.iter_mut().find(|sum| sum.kind == parts.kind) {
            Some(sum) => sum.count = sum.count.saturating_add(parts.count),
            None => sums.push(parts.clone()),
        }
    }
    sums
}

impl Verdict {
    /// What the verdict claims. An older verdict that has no coverage claims nothing of the live repository: nobody recorded
    /// when its bytes were read.
    pub fn claims(&self) -> Claims {
        self.weigh(claims)
    }

    /// What the verdict would claim had it been signed when the newest negative control of its checker said `trust`: a control
    /// that passes later vouches for it, and one that fails later takes that back.
    pub fn claims_under(&self, trust: Option<Trust>) -> Claims {
        self.weigh(|grounds| claims(&Grounds { trust, ..grounds.clone() }))
    }

    /// What a PASS rests on that is older than its limit, a clause each; whether the checker is trusted does not matter here.
    pub fn too_old(&self) -> Vec<String> {
        match self.outcome {
            Outcome::Pass => self.weigh(|grounds| Limits::of(grounds).too_old),
            _ => Vec::new(),
        }
    }

    /// Lets `scales` look at all that the claims depend on.
    fn weigh<T>(&self, scales: impl FnOnce(&Grounds<'_>) -> T) -> T {
        match &self.coverage {
            Some(coverage) => {
                let envelope = self.source_statement.as_ref();
                let source = envelope.and_then(|envelope| unverified_source_statement(envelope).ok());
                scales(&coverage.grounds(self, source.as_ref()))
            }
            None => scales(&self.grounds_without_coverage()),
        }
    }

    fn grounds_without_coverage(&self) -> Grounds<'static> {
        Grounds {
            outcome: self.outcome,
            depth: self.depth,
            trust: self.negative_control.as_ref().map(NegativeControl::trust),
            reading: None,
            is_first: false,
            mark: self.mark.as_ref().map(|mark| mark.time),
            max_reading_age: None,
            check: const { &NO_PARTS },
            not_covered: (0, &[]),
        }
    }

    /// What the source has left out of the copy, by its own signed word; empty where it does not say.
    pub fn not_copied(&self) -> Vec<LeftOut> {
        let statement = self.source_statement.as_ref();
        let statement = statement.and_then(|envelope| unverified_source_statement(envelope).ok());
        statement.map(|statement| statement.not_copied).unwrap_or_default()
    }

    /// What it claims, for the wire.
    pub fn claims_proto(&self) -> assay_proto::v1::Claims {
        let trust = self.negative_control.as_ref().map(NegativeControl::trust);
        self.with_counts(self.claims().to_proto(self.outcome, trust))
    }

    /// What it would say and claim had it been signed when the newest negative control of its checker said `trust`, for the wire.
    pub fn says_under(&self, trust: Option<Trust>) -> (String, assay_proto::v1::Claims) {
        let claims = self.claims_under(trust);
        let proto = self.with_counts(claims.to_proto(self.outcome, trust));
        (sentence(self.outcome, &claims), proto)
    }

    fn with_counts(&self, claims: assay_proto::v1::Claims) -> assay_proto::v1::Claims {
        let not_covered = self.coverage.as_ref().map_or(0, |coverage| coverage.not_covered_total);
        let carried = self.coverage.as_ref().and_then(|coverage| coverage.check.carried.as_ref());
        assay_proto::v1::Claims {
            not_covered,
            parts_checked: carried.map_or(0, |carried| carried.parts_checked_now),
            parts_carried: carried.map_or(0, |carried| carried.parts),
            oldest_carried: carried.map(|carried| timestamp_to_proto(carried.oldest)),
            too_old: self.too_old(),
            ..claims
        }
    }

    /// What the verdict says, in one sentence.
    pub fn sentence(&self) -> String {
        sentence(self.outcome, &self.claims())
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde hands over a reference.
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests;
