//! What the two agents state and sign: the source which tree it read at which mark, the target what came out
//! of the check.
//!
//! Both are in-toto v1 statements (<https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>)
//! in a DSSE envelope. The verdict embeds the source's envelope whole, so that two parties vouch for two
//! things and neither can speak for the other. A statement is believed only when
//!
//! - its signature fits a key that the caller gave: a key is never taken from the file;
//! - its predicate type is the one that is expected, so that no statement stands in for one of another kind;
//! - every part agrees with every other: subject, repository, run, root and mark
//!   ([`VerdictError::Mismatch`]), so that no part can be taken from another valid verdict;
//! - its outcome, and where it says that a fault came in, is backed by what it lists ([`VerdictError::Unfounded`]).
//!
//! The same rules are applied before signing: what would not verify is never signed.

mod acknowledgement;
mod attribution;
mod control;
pub mod coverage;
mod key_change;
mod note;
mod receipt;

use std::fmt;

use assay_proto::v1;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, de::Error as _};

use crate::{
    digest::{ContentDigest, RootDigest},
    dsse::{Envelope, EnvelopeError, IN_TOTO_PAYLOAD_TYPE},
    error::Hint,
    fidelity::LeftOut,
    id::{GenerationNumber, RunId},
    keyring::Keyring,
    signing::{SigningKey, VerifyingKey},
};

pub use acknowledgement::{
    ACKNOWLEDGEMENT_TYPE, AcknowledgedVerdict, Acknowledgement, MAX_ACKNOWLEDGED_BYTES, keep_acknowledgement,
    parse_verdicts, sign_acknowledgement, verify_acknowledgement, verify_acknowledgement_among,
};
pub use attribution::{Attribution, FaultOrigin, ReadBack};
pub use control::{
    CONTROL_TYPE, ControlDamage, NegativeControl, Trust, sign_control, verify_control, verify_control_among,
};
pub use coverage::{
    BackupClaim, Carried, CarriedFrom, CheckCoverage, Claims, Coverage, LiveClaim, MAX_LISTED, NotCovered,
    PartResults, PartsChecked, Readings,
};

pub use key_change::{
    KEY_CHANGE_TYPE, KeyChange, KeyOwner, MAX_KEY_CHANGE_BYTES, sign_key_change, unverified_key_change,
    verify_key_change,
};
pub use note::{
    MAX_NOTE_BY_BYTES, MAX_NOTE_BYTES, MAX_NOTE_FILE_BYTES, MAX_NOTES_OF_ONE, NOTE_TYPE, Note, NoteSubject,
    NotedEntry, keep_note, note_fault, sign_note, verify_note_among,
};
pub use receipt::{
    MAX_RECEIPT_BYTES, RECEIPT_TYPE, Receipt, read_receipt, receipt_name, sign_receipt, verify_receipt,
    verify_receipt_among,
};

/// `_type` of every statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Predicate type of [`SourceStatement`].
pub const SOURCE_STATEMENT_TYPE: &str = "https://assay.dev/source-statement/v1";
/// Predicate type of [`Verdict`].
pub const VERDICT_TYPE: &str = "https://assay.dev/verdict/v1";
/// Context of the digest that links a verdict to the one before it.
pub const LEDGER_CONTEXT: &str = "assay v1 ledger link";
/// How much of a step's output a verdict quotes: enough for the last words of a failing check.
pub const OUTPUT_TAIL_BYTES: usize = 2048;

/// The newest form of statements that this version reads and signs, as an agent tells the other one: 0 is that of versions
/// before there was a coverage; 1 has nonce, readings, coverage and receipts; 2 has carried results.
pub const STATEMENTS: u32 = 2;
/// The form of statements from which on a verdict may say that results were carried.
pub const CARRIED_STATEMENTS: u32 = 2;

/// A 32-byte digest, in JSON 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HexDigest(pub [u8; 32]);

impl HexDigest {
    /// What the first verdict of a ledger names as the one before it.
    pub const ZERO: Self = Self([0; 32]);

    /// A number that nobody can guess.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// From its 32 bytes; nothing for any other number of bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// From 64 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digest = Self(hex::decode(text).ok()?.try_into().ok()?);
        (digest.to_string() == text).then_some(digest)
    }
}

impl From<RootDigest> for HexDigest {
    fn from(digest: RootDigest) -> Self {
        Self(digest.0)
    }
}

impl From<ContentDigest> for HexDigest {
    fn from(digest: ContentDigest) -> Self {
        Self(digest.0)
    }
}

impl fmt::Display for HexDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for HexDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "HexDigest({})", hex::encode(&self.0[..6]))
    }
}

impl Serialize for HexDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HexDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("expected 64 lower-case hexadecimal digits"))
    }
}

/// Digest of an envelope's bytes as the next verdict names it.
pub fn link_digest(envelope: &[u8]) -> HexDigest {
    HexDigest(blake3::derive_key(LEDGER_CONTEXT, envelope))
}

/// The end of a captured output, at most [`OUTPUT_TAIL_BYTES`] of it, what is not UTF-8 replaced.
pub fn output_tail(output: &[u8]) -> String {
    let tail = &output[output.len().saturating_sub(OUTPUT_TAIL_BYTES)..];
    // A character that the cut went through is left out.
    let partial =
        tail.iter().take(3).take_while(|byte| tail.len() < output.len() && **byte & 0xC0 == 0x80).count();
    String::from_utf8_lossy(&tail[partial..]).into_owned()
}

/// What came out of a run, or of one step of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    /// The check ran to its end and found no damage.
    Pass,
    /// The check found damage.
    Fail,
    /// The check could not do its work: nothing is known of the data.
    Inconclusive,
    /// The run ended before the check.
    NotRun,
}

impl Outcome {
    /// The exit code of a command that ends with this outcome. 2 is for usage and configuration.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::Inconclusive => 3,
            Self::NotRun => 4,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::NotRun => "NOT_RUN",
        })
    }
}

impl From<Outcome> for v1::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Pass => Self::Pass,
            Outcome::Fail => Self::Fail,
            Outcome::Inconclusive => Self::Inconclusive,
            Outcome::NotRun => Self::NotRun,
        }
    }
}

/// An outcome is not decided yet, or is a word that this version does not know. Never to be taken for a good
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no outcome yet")]
pub struct NoOutcome;

impl TryFrom<v1::Outcome> for Outcome {
    type Error = NoOutcome;

    fn try_from(outcome: v1::Outcome) -> Result<Self, NoOutcome> {
        match outcome {
            v1::Outcome::Unspecified => Err(NoOutcome),
            v1::Outcome::Pass => Ok(Self::Pass),
            v1::Outcome::Fail => Ok(Self::Fail),
            v1::Outcome::Inconclusive => Ok(Self::Inconclusive),
            v1::Outcome::NotRun => Ok(Self::NotRun),
        }
    }
}

/// How deep a check looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Depth {
    /// Bytes are those that were read.
    L0,
    /// Pages are whole.
    L1,
    /// The structure holds together.
    L2,
    /// The application's own rules hold.
    L3,
}

impl Depth {
    /// What a check of this depth looks at, in words.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::L0 => "the bytes only",
            Self::L1 => "the pages",
            Self::L2 => "the structure",
            Self::L3 => "the application's own rules",
        }
    }
}

/// The point in time that the backup stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mark {
    /// Text that the engine gave for it.
    pub id: String,
    /// When it was complete, by the source host's clock.
    pub time: Timestamp,
}

impl Mark {
    /// From the wire; nothing when the time is absent or no time.
    pub fn from_proto(mark: &v1::Mark) -> Option<Self> {
        Some(Self { id: mark.id.clone(), time: timestamp_from_proto(mark.time.as_ref()?)? })
    }
}

impl From<&Mark> for v1::Mark {
    fn from(mark: &Mark) -> Self {
        Self { id: mark.id.clone(), time: Some(timestamp_to_proto(mark.time)) }
    }
}

impl From<&Attribution> for v1::Attribution {
    fn from(attribution: &Attribution) -> Self {
        Self {
            fault: attribution.fault.as_str().to_owned(),
            evidence: attribution.evidence.clone(),
            files: attribution.files.clone(),
            last_pass: attribution.last_pass.map_or(0, |generation| generation.0),
        }
    }
}

impl From<&NegativeControl> for v1::NegativeControl {
    fn from(control: &NegativeControl) -> Self {
        Self {
            outcome: v1::Outcome::from(control.outcome).into(),
            trust: control.trust().as_str().to_owned(),
            message: control.message.clone(),
            time: Some(timestamp_to_proto(control.time)),
            generation: control.generation.map_or(0, |generation| generation.0),
            damages: control.damages.iter().map(Into::into).collect(),
            seed: control.seed.unwrap_or(0),
        }
    }
}

impl From<&ControlDamage> for v1::ControlDamage {
    fn from(damage: &ControlDamage) -> Self {
        Self {
            kind: damage.kind.clone(),
            file: damage.file.clone(),
            what: damage.what.clone(),
            outcome: v1::Outcome::from(damage.outcome).into(),
            reason: damage.reason.clone(),
        }
    }
}

/// From the wire; nothing when it is no time.
pub fn timestamp_from_proto(time: &prost_types::Timestamp) -> Option<Timestamp> {
    let nanos = (0..1_000_000_000).contains(&time.nanos).then_some(time.nanos)?;
    Timestamp::new(time.seconds, nanos).ok()
}

/// To the wire, where nanoseconds always count forward.
pub fn timestamp_to_proto(time: Timestamp) -> prost_types::Timestamp {
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        (seconds, nanos) = (seconds - 1, nanos + 1_000_000_000);
    }
    prost_types::Timestamp { seconds, nanos }
}

/// An in-toto statement: `predicate` is said of `subject`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Statement<P> {
    #[serde(rename = "_type")]
    statement_type: String,
    /// One, or none where no tree was read or sealed.
    subject: Vec<Subject>,
    predicate_type: String,
    predicate: P,
}

/// A tree, by name and root digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: String,
    digest: SubjectDigest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDigest {
    #[serde(rename = "blake3-assay-manifest")]
    root: HexDigest,
}

/// What the source vouches for: the mark, and the root of the tree that it read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SourceStatement {
    /// The repository.
    pub repository: String,
    /// The run.
    pub run_id: RunId,
    /// The mark that was held while the tree was read.
    pub mark: Mark,
    /// Root digest of the manifest; null when the reading did not come to its end.
    pub root: Option<HexDigest>,
    /// The generation that the run built upon.
    pub base_generation: Option<GenerationNumber>,
    /// What was counted.
    pub counts: Counts,
    /// Safety stops that the operator overrode, in the words of the request.
    pub overrides: Vec<String>,
    /// Version of the source agent.
    pub source_version: String,
    /// The number that the source chose at random when it opened the run. Absent from older sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<HexDigest>,
    /// What was read of the live repository, and when. Absent from older sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readings: Option<Readings>,
    /// What of the live tree's metadata the copy does not have, by the host's nature or by the repository's declaration. Absent from
    /// older sources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_copied: Vec<LeftOut>,
}

/// What one run counted: see `assay.v1.Counts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(missing_docs)] // The contract says what each one counts.
pub struct Counts {
    pub files: u64,
    pub directories: u64,
    pub other_entries: u64,
    pub total_bytes: u64,
    pub files_read: u64,
    pub bytes_read: u64,
    pub chunks_sent: u64,
    pub bytes_sent: u64,
    pub entries_dropped: u64,
    pub entries_kept: u64,
    pub files_unstable: u64,
    pub files_vanished: u64,
}

impl From<&v1::Counts> for Counts {
    fn from(counts: &v1::Counts) -> Self {
        Self {
            files: counts.files,
            directories: counts.directories,
            other_entries: counts.other_entries,
            total_bytes: counts.total_bytes,
            files_read: counts.files_read,
            bytes_read: counts.bytes_read,
            chunks_sent: counts.chunks_sent,
            bytes_sent: counts.bytes_sent,
            entries_dropped: counts.entries_dropped,
            entries_kept: counts.entries_kept,
            files_unstable: counts.files_unstable,
            files_vanished: counts.files_vanished,
        }
    }
}

/// What the target vouches for: what was checked, how, and what came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Verdict {
    /// The repository.
    pub repository: String,
    /// The run.
    pub run_id: RunId,
    /// Place in the ledger, from 1.
    pub sequence: u64,
    /// [`link_digest`] of the verdict before this one, [`HexDigest::ZERO`] for the first.
    pub previous: HexDigest,
    /// What came out.
    pub outcome: Outcome,
    /// Why: a short stable word.
    pub reason: String,
    /// The same for a person.
    pub message: String,
    /// The sealed generation; null when none was sealed.
    pub generation: Option<GenerationNumber>,
    /// Root digest of the tree that the run is about: as sealed, or, when nothing was sealed, as the source
    /// states it.
    pub root: Option<HexDigest>,
    /// The mark; null when none was made.
    pub mark: Option<Mark>,
    /// How deep the check looked; null when it did not run.
    pub depth: Option<Depth>,
    /// The engine's profile that was used; null when the run ended before it was chosen.
    pub profile: Option<ProfileUsed>,
    /// Every check step that was started, in order.
    pub steps: Vec<Step>,
    /// Every patch that was made in the workspace.
    pub patches: Vec<Patch>,
    /// The target's own files that were laid over the workspace.
    pub overlay_files: Vec<OverlayFile>,
    /// Where the check ran; null when no workspace was made.
    pub workspace: Option<WorkspaceUsed>,
    /// Where the fault came in. Absent unless the outcome is FAIL, or INCONCLUSIVE because the checker contradicts itself;
    /// verdicts from before there was such a thing have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attribution: Option<Attribution>,
    /// The newest negative control of this repository; null when there never was one.
    pub negative_control: Option<NegativeControl>,
    /// Safety stops that the operator overrode, in the words of the request.
    pub overrides: Vec<String>,
    /// When what happened, by the target host's clock.
    pub times: Times,
    /// Versions of the agents.
    pub versions: Versions,
    /// The source's own signed statement; null when the run ended before there was one.
    pub source_statement: Option<Envelope>,
    /// What the verdict rests on, and what it claims because of that. Absent when nothing was sealed, and in older verdicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Coverage>,
    /// The number that the source chose at random when it opened the run: the verdict was signed after that. Absent when the
    /// source is older.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<HexDigest>,
}

/// The engine's profile that was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ProfileUsed {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// BLAKE3 of its file.
    pub digest: HexDigest,
}

/// One step of the check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Step {
    /// Its name in the profile.
    pub name: String,
    /// From 0: which of the candidates for patched values it ran with. The check begins anew with each.
    #[serde(default)]
    pub attempt: u32,
    /// The program and its arguments as they were run; empty for a step of the agent's own.
    pub argv: Vec<String>,
    /// Null when the program was ended by a signal or could not be started.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// How long it ran.
    pub duration_ms: u64,
    /// BLAKE3 of all captured output.
    pub output_digest: HexDigest,
    /// [`output_tail`] of it.
    pub output_tail: String,
    /// What it means by the profile's rules.
    pub outcome: Outcome,
    /// What those rules found, a line each.
    pub findings: Vec<String>,
    /// How deep it looks. Absent in older verdicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<Depth>,
    /// The engine's name and version, as the step says; absent when it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// The parts that it looked at, as it says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checked: Vec<PartsChecked>,
    /// The parts that it did not look at, as it says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_covered: Vec<NotCovered>,
}

/// One change of configuration in the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Patch {
    /// Path below the tree's root.
    pub file: String,
    /// BLAKE3 of the file as it was.
    pub digest_before: HexDigest,
    /// BLAKE3 of the file as it was read back.
    pub digest_after: HexDigest,
    /// The key that was set.
    pub key: String,
    /// The value that it was given.
    pub value: String,
}

/// A file of the target's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OverlayFile {
    /// Path below the tree's root.
    pub path: String,
    /// BLAKE3 of it.
    pub digest: HexDigest,
}

/// Where the check ran, and what kept it apart from the rest of the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkspaceUsed {
    /// How the view of the generation was made.
    pub kind: WorkspaceKind,
    /// What the check was isolated in, for example `network`.
    pub isolation: Vec<String>,
    /// What it was not isolated in although it should have been, with the reason.
    pub not_isolated: Vec<String>,
}

/// How a workspace was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkspaceKind {
    /// An overlay mount.
    Overlay,
    /// A reflink copy.
    Reflink,
    /// A full copy.
    Copy,
}

impl WorkspaceKind {
    /// As people read it.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Overlay => "an overlay mount",
            Self::Reflink => "a reflink copy",
            Self::Copy => "a full copy",
        }
    }
}

/// When what happened, by the target host's clock; null for what did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Times {
    /// The source opened the run.
    pub opened: Option<Timestamp>,
    /// The generation was sealed.
    pub sealed: Option<Timestamp>,
    /// The first check step was started.
    pub check_started: Option<Timestamp>,
    /// The last check step ended.
    pub check_finished: Option<Timestamp>,
    /// The verdict was signed.
    pub signed: Timestamp,
}

/// Versions of the agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Versions {
    /// Of the source agent, as it says; null when it never said.
    pub source: Option<String>,
    /// Of the target agent.
    pub target: String,
}

/// Why a statement is not believed, or not signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerdictError {
    /// The target's envelope.
    #[error("verdict: {source}")]
    Envelope {
        /// What is wrong with it.
        source: EnvelopeError,
    },
    /// The source's envelope, alone or inside a verdict.
    #[error("source statement: {source}")]
    SourceEnvelope {
        /// What is wrong with it.
        source: EnvelopeError,
    },
    /// The source's receipt for a verdict.
    #[error("receipt: {source}")]
    Receipt {
        /// What is wrong with it.
        source: EnvelopeError,
    },
    /// An operator's acknowledgement.
    #[error("acknowledgement: {source}")]
    Acknowledgement {
        /// What is wrong with it.
        source: EnvelopeError,
    },
    /// An operator's note.
    #[error("note: {source}")]
    Note {
        /// What is wrong with it.
        source: EnvelopeError,
    },
    /// A text of an operator's note could not be given.
    #[error("note: {fault}")]
    NoteText {
        /// What is wrong with it.
        fault: String,
    },
    /// The payload is not a statement of the right shape.
    #[error("{part}: not a statement of type {expected}: {source}")]
    Shape {
        /// Verdict or source statement.
        part: &'static str,
        /// The predicate type.
        expected: &'static str,
        /// Where and what.
        source: serde_json::Error,
    },
    /// The payload is a statement of another kind.
    #[error("{part}: is a statement of another type than {expected}")]
    OtherType {
        /// Verdict or source statement.
        part: &'static str,
        /// The type that was wanted.
        expected: &'static str,
    },
    /// Two parts do not belong together.
    #[error("the {what} differs: {left} in one part, {right} in another")]
    Mismatch {
        /// What should be equal.
        what: &'static str,
        /// One side.
        left: String,
        /// The other.
        right: String,
    },
    /// A key change that cannot be.
    #[error("key change: {rule}")]
    KeyChange {
        /// What is wrong with it.
        rule: &'static str,
    },
    /// What a source states of its readings cannot be.
    #[error("source statement: its readings cannot be believed: {rule}")]
    Readings {
        /// What is wrong with them.
        rule: &'static str,
    },
    /// The outcome says more than the rest backs.
    #[error("the outcome {outcome} is not backed: {missing}")]
    Unfounded {
        /// The outcome.
        outcome: Outcome,
        /// What it lacks.
        missing: &'static str,
    },
}

impl VerdictError {
    /// True for what was signed with another key than those that were given.
    pub fn is_of_other_key(&self) -> bool {
        matches!(
            self,
            Self::Envelope { source: EnvelopeError::OtherKey { .. } }
                | Self::SourceEnvelope { source: EnvelopeError::OtherKey { .. } }
        )
    }
}

impl Hint for VerdictError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Envelope { source }
            | Self::SourceEnvelope { source }
            | Self::Receipt { source }
            | Self::Acknowledgement { source }
            | Self::Note { source } => source.hint(),
            Self::Shape { .. } | Self::OtherType { .. } => Some(
                "name a verdict from the ledger, and use an agent at least as new as its writer".to_owned(),
            ),
            Self::NoteText { .. } => {
                Some("`assay-target note` never signs this: find out who used the target's key".to_owned())
            }
            Self::Mismatch { .. }
            | Self::Unfounded { .. }
            | Self::Readings { .. }
            | Self::KeyChange { .. } => Some(
                "a correct agent never signs this: do not trust the verdict, and find out who signed it"
                    .to_owned(),
            ),
        }
    }
}

const VERDICT_PART: &str = "verdict";
const SOURCE_PART: &str = "source statement";

/// Signs what the source vouches for.
///
/// # Panics
/// Never: these types are always JSON.
pub fn sign_source_statement(statement: &SourceStatement, key: &SigningKey) -> Envelope {
    let name = format!("{}/runs/{}", statement.repository, statement.run_id);
    sign(SOURCE_STATEMENT_TYPE, statement.root.map(|root| (name, root)), statement, key)
}

/// Checks a source statement's signature and parts.
///
/// # Errors
/// [`VerdictError`].
pub fn verify_source_statement(
    envelope: &Envelope,
    key: &VerifyingKey,
) -> Result<SourceStatement, VerdictError> {
    verify_source_statement_among(envelope, std::slice::from_ref(key)).map(|(statement, _)| statement)
}

/// The same with one of `keys`: gives the statement and the place of the key that signed it.
///
/// # Errors
/// [`VerdictError`].
pub fn verify_source_statement_among(
    envelope: &Envelope,
    keys: &[VerifyingKey],
) -> Result<(SourceStatement, usize), VerdictError> {
    let (payload, place) = envelope
        .verify_among(IN_TOTO_PAYLOAD_TYPE, keys)
        .map_err(|source| VerdictError::SourceEnvelope { source })?;
    Ok((parse_source_statement(&payload)?, place))
}

/// Signs a verdict, unless [`verify_verdict`] would refuse it. Only the embedded statement's signature is not
/// checked.
///
/// # Errors
/// [`VerdictError::Mismatch`] or [`VerdictError::Unfounded`].
///
/// # Panics
/// Never: these types are always JSON.
pub fn sign_verdict(verdict: &Verdict, key: &SigningKey) -> Result<Envelope, VerdictError> {
    let source = verdict.source_statement.as_ref().map(unverified_source_statement).transpose()?;
    cross_check(verdict, source.as_ref())?;
    Ok(sign(VERDICT_TYPE, verdict_subject(verdict), verdict, key))
}

/// A verdict whose signature and parts were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedVerdict {
    /// What the target vouches for.
    pub verdict: Verdict,
    /// What the source vouches for.
    pub source: Option<SourceStatement>,
    /// Whether the source's signature was checked.
    pub source_signature: SourceSignature,
    /// Place, in the target's keyring, of the key that signed it.
    pub target_place: usize,
    /// Place, in the source's keyring, of the key that signed the embedded statement; nothing where that was not checked.
    pub source_place: Option<usize>,
}

/// What is known of the embedded source statement's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceSignature {
    /// It fits the source key that was given.
    Checked,
    /// No source key was given.
    NotChecked,
    /// The run ended before the source stated anything.
    Absent,
}

impl fmt::Display for SourceSignature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Checked => "checked",
            Self::NotChecked => "not checked",
            Self::Absent => "absent",
        })
    }
}

/// Checks a verdict: its signature with `target_key`, the embedded source statement's with `source_key` where
/// that is given, and that every part agrees with every other.
///
/// # Errors
/// [`VerdictError`].
pub fn verify_verdict(
    envelope_json: &[u8],
    target_key: &VerifyingKey,
    source_key: Option<&VerifyingKey>,
) -> Result<VerifiedVerdict, VerdictError> {
    let source_keys = source_key.map(std::slice::from_ref);
    verify_verdict_among(envelope_json, std::slice::from_ref(target_key), source_keys)
}

/// The same with keyrings: any key of each may have signed. Which one may have signed what is the ledger's to say
/// ([`crate::ledger::Ledger::check`]), and of a verdict that has just come the receiver's.
///
/// # Errors
/// [`VerdictError`].
pub fn verify_verdict_with(
    envelope_json: &[u8],
    target: &Keyring,
    source: Option<&Keyring>,
) -> Result<VerifiedVerdict, VerdictError> {
    verify_verdict_among(envelope_json, target.all(), source.map(Keyring::all))
}

pub(crate) fn verify_verdict_among(
    envelope_json: &[u8],
    target_keys: &[VerifyingKey],
    source_keys: Option<&[VerifyingKey]>,
) -> Result<VerifiedVerdict, VerdictError> {
    let (payload, target_place) = Envelope::parse(envelope_json)
        .and_then(|envelope| envelope.verify_among(IN_TOTO_PAYLOAD_TYPE, target_keys))
        .map_err(|source| VerdictError::Envelope { source })?;
    let verdict = parse_verdict(&payload)?;
    let (source, source_signature, source_place) = match (&verdict.source_statement, source_keys) {
        (None, _) => (None, SourceSignature::Absent, None),
        (Some(envelope), Some(keys)) => {
            let (statement, place) = verify_source_statement_among(envelope, keys)?;
            (Some(statement), SourceSignature::Checked, Some(place))
        }
        (Some(envelope), None) => {
            (Some(unverified_source_statement(envelope)?), SourceSignature::NotChecked, None)
        }
    };
    cross_check(&verdict, source.as_ref())?;
    Ok(VerifiedVerdict { verdict, source, source_signature, target_place, source_place })
}

/// Reads a verdict without checking any signature: for listing what an agent wrote itself.
///
/// # Errors
/// [`VerdictError`] when it is not one.
pub fn unverified_verdict(envelope_json: &[u8]) -> Result<Verdict, VerdictError> {
    let payload = Envelope::parse(envelope_json)
        .and_then(|envelope| envelope.unverified_payload(IN_TOTO_PAYLOAD_TYPE))
        .map_err(|source| VerdictError::Envelope { source })?;
    parse_verdict(&payload)
}

fn unverified_source_statement(envelope: &Envelope) -> Result<SourceStatement, VerdictError> {
    let payload = envelope
        .unverified_payload(IN_TOTO_PAYLOAD_TYPE)
        .map_err(|source| VerdictError::SourceEnvelope { source })?;
    parse_source_statement(&payload)
}

fn sign<P: Serialize>(
    predicate_type: &str,
    subject: Option<(String, HexDigest)>,
    predicate: &P,
    key: &SigningKey,
) -> Envelope {
    let statement = Statement {
        statement_type: STATEMENT_TYPE.to_owned(),
        subject: subject
            .map(|(name, root)| Subject { name, digest: SubjectDigest { root } })
            .into_iter()
            .collect(),
        predicate_type: predicate_type.to_owned(),
        predicate,
    };
    let payload = serde_json::to_vec(&statement).expect("these types are always JSON");
    Envelope::sign(IN_TOTO_PAYLOAD_TYPE, &payload, key)
}

fn parse<P: DeserializeOwned>(
    payload: &[u8],
    part: &'static str,
    expected: &'static str,
) -> Result<(Vec<Subject>, P), VerdictError> {
    /// The types first: of a statement of another kind, that is what is to be told.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Types {
        #[serde(rename = "_type")]
        statement_type: String,
        predicate_type: String,
    }
    let shape = |source| VerdictError::Shape { part, expected, source };
    let types: Types = serde_json::from_slice(payload).map_err(shape)?;
    if types.statement_type != STATEMENT_TYPE || types.predicate_type != expected {
        return Err(VerdictError::OtherType { part, expected });
    }
    let statement: Statement<P> = serde_json::from_slice(payload).map_err(shape)?;
    Ok((statement.subject, statement.predicate))
}

fn parse_source_statement(payload: &[u8]) -> Result<SourceStatement, VerdictError> {
    let (subject, statement): (_, SourceStatement) = parse(payload, SOURCE_PART, SOURCE_STATEMENT_TYPE)?;
    let name = format!("{}/runs/{}", statement.repository, statement.run_id);
    check_subject(&subject, statement.root.map(|root| (name, root)))?;
    statement.readings.as_ref().map_or(Ok(()), Readings::check)?;
    Ok(statement)
}

fn parse_verdict(payload: &[u8]) -> Result<Verdict, VerdictError> {
    let (subject, verdict): (_, Verdict) = parse(payload, VERDICT_PART, VERDICT_TYPE)?;
    check_subject(&subject, verdict_subject(&verdict))?;
    Ok(verdict)
}

/// The generation by its name and root; none when nothing was sealed.
fn verdict_subject(verdict: &Verdict) -> Option<(String, HexDigest)> {
    let generation = verdict.generation?;
    Some((format!("{}/generations/{}", verdict.repository, generation.folder()), verdict.root?))
}

fn check_subject(found: &[Subject], expected: Option<(String, HexDigest)>) -> Result<(), VerdictError> {
    let list = |subject: &Subject| format!("{} {}", subject.name, subject.digest.root);
    let found: Vec<_> = found.iter().map(list).collect();
    let expected: Vec<_> = expected.iter().map(|(name, root)| format!("{name} {root}")).collect();
    same("subject", &found.join(", "), &expected.join(", "))
}

fn same(what: &'static str, left: &str, right: &str) -> Result<(), VerdictError> {
    if left == right {
        return Ok(());
    }
    Err(VerdictError::Mismatch { what, left: left.to_owned(), right: right.to_owned() })
}

/// Every part against every other.
fn cross_check(verdict: &Verdict, source: Option<&SourceStatement>) -> Result<(), VerdictError> {
    if let Some(source) = source {
        let digest =
            |digest: Option<HexDigest>| digest.map_or("none".to_owned(), |digest| digest.to_string());
        let mark = |mark: Option<&Mark>| {
            mark.map_or("none".to_owned(), |mark| format!("{} at {}", mark.id, mark.time))
        };
        same("repository", &verdict.repository, &source.repository)?;
        same("run", verdict.run_id.as_str(), source.run_id.as_str())?;
        same("root", &digest(verdict.root), &digest(source.root))?;
        same("mark", &mark(verdict.mark.as_ref()), &mark(Some(&source.mark)))?;
        same("nonce", &digest(verdict.nonce), &digest(source.nonce))?;
        if verdict.generation.is_some() {
            same("overrides", &verdict.overrides.join(", "), &source.overrides.join(", "))?;
        }
    }
    let needs = |holds: bool, missing: &'static str| match holds {
        true => Ok(()),
        false => Err(VerdictError::Unfounded { outcome: verdict.outcome, missing }),
    };
    needs(verdict.sequence > 0, "its place in the ledger is 0")?;
    needs(verdict.generation.is_none_or(|number| number.0 > 0), "generation 0 does not exist")?;
    needs(
        verdict.generation.is_none() || (verdict.root.is_some() && source.is_some()),
        "it names a generation and lacks the root or the source's statement",
    )?;
    if let Some(attribution) = &verdict.attribution {
        attribution.cross_check(verdict.outcome)?;
    }
    if let Some(coverage) = &verdict.coverage {
        coverage.cross_check(verdict, source)?;
    }
    match verdict.outcome {
        Outcome::NotRun => Ok(()),
        Outcome::Inconclusive | Outcome::Fail => {
            needs(verdict.generation.is_some(), "no generation was sealed")
        }
        Outcome::Pass => {
            needs(verdict.generation.is_some(), "no generation was sealed")?;
            needs(verdict.depth.is_some(), "no depth of the check is stated")?;
            // A candidate that was refused leaves a step that says so; the last one is what counts.
            let last = verdict.steps.last().map(|step| step.attempt);
            needs(last.is_some(), "no check step ran")?;
            let backs = |step: &Step| match step.outcome {
                Outcome::Pass => true,
                Outcome::Inconclusive => Some(step.attempt) < last,
                Outcome::Fail | Outcome::NotRun => false,
            };
            needs(verdict.steps.iter().all(backs), "a check step did not pass")
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
