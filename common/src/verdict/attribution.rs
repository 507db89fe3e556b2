//! Where the fault of a FAIL came in.
//!
//! Three digests of each file tell: as the source read it, as the target received it, and as it is read back from the
//! generation. The first two are the same by construction: no chunk and no file is sealed without its digest, and the
//! source signs the root over all of them. So what is left to find out is whether the disk kept what arrived, whether the
//! source reads the same again, and whether the checker says today what it said before.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Outcome, VerdictError};
use crate::id::GenerationNumber;

/// Where a fault came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultOrigin {
    /// The live data is bad: what was read is what arrived is what is on disk, and it is read the same again.
    Live,
    /// The file changed, or could not be read twice the same, while it was read.
    TornRead,
    /// Between the agents. Digests rule it out for what is sealed; the word is there for those who look for it.
    Transfer,
    /// The target's disk or memory did not keep what arrived.
    TargetDisk,
    /// The checker: it contradicts itself about bytes that have not changed.
    Checker,
    /// What is known does not decide it; the evidence says what is known.
    Unknown,
}

impl FaultOrigin {
    /// The word for it, in verdicts and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::TornRead => "torn-read",
            Self::Transfer => "transfer",
            Self::TargetDisk => "target-disk",
            Self::Checker => "checker",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for FaultOrigin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Where the fault came in, and what shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Attribution {
    /// Where.
    pub fault: FaultOrigin,
    /// What shows it, a sentence each; at least one.
    pub evidence: Vec<String>,
    /// The paths below the tree that it is about, made printable; not all when they are many.
    pub files: Vec<String>,
    /// The generation read back against its manifest; null when that could not be done.
    pub read_back: Option<ReadBack>,
    /// The newest generation before this one whose last conclusive verdict is PASS.
    pub last_pass: Option<GenerationNumber>,
}

/// A generation that was read back against its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ReadBack {
    /// Files that were read.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many are not what arrived.
    pub differ: u64,
}

impl Attribution {
    /// What must agree in it, and with the verdict's outcome.
    pub(super) fn cross_check(&self, outcome: Outcome) -> Result<(), VerdictError> {
        let needs = |holds: bool, missing: &'static str| match holds {
            true => Ok(()),
            false => Err(VerdictError::Unfounded { outcome, missing }),
        };
        let allowed = match outcome {
            Outcome::Fail => true,
            Outcome::Inconclusive => self.fault == FaultOrigin::Checker,
            Outcome::Pass | Outcome::NotRun => false,
        };
        needs(allowed, "it says where a fault came in and names no fault")?;
        needs(!self.evidence.is_empty(), "nothing shows where the fault came in")?;
        let differ = self.read_back.is_some_and(|read| read.differ > 0);
        let of_disk = self.fault == FaultOrigin::TargetDisk;
        needs(differ == of_disk, "what was read back does not agree with where the fault came in")?;
        needs(!of_disk || !self.files.is_empty(), "no file is named that the target's disk did not keep")
    }
}
