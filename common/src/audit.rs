//! A ledger looked at as a whole, also as a copy on another machine: what its chain cannot show by itself.
//!
//! | what was done | what shows it |
//! | --- | --- |
//! | an entry edited, replaced, moved, removed from the middle | the chain ([`Ledger::verify`]) |
//! | the newest entries removed | a head that was noted before, or the source's own copies |
//! | the whole ledger rebuilt with the stolen key | the same |
//! | a run that never happened | the slots of the schedule |
//! | a clock that was set back | times of signing that run backwards |
//! | an old key that was stolen, and signs or names a key after its time | the key changes of the chain ([`Ledger::check`]) |
//! | another tree put in a generation's place | the root digest of the generation that is there |
//! | a verdict made before its mark, or long after it | the mark inside, and the source's receipt ([`Interval`]) |
//!
//! Times of which an operator has said, signed with the target's key, why they are not true ([`Acknowledgement`]) are shown beside the
//! findings and are none. Nothing else can be acknowledged. Notes of operators ([`notes()`]) are shown, too, and change nothing.
//!
//! Keys are given by the caller; nothing that a file says of its key counts.

mod intervals;
mod notes;

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use jiff::{SignedDuration, Timestamp};

use self::intervals::{Dated, Receipts};
use crate::{
    durable::TEMPORARY_PREFIX,
    error::IoContext as _,
    id::{GenerationNumber, RunId},
    keyring::Keyring,
    ledger::{Chain, EntryId, KeyPeriod, Ledger, LedgerError, LedgerFault},
    path::display_bytes,
    verdict::{Acknowledgement, HexDigest, link_digest, verify_acknowledgement_among, verify_verdict_with},
};

pub use intervals::{Bound, Interval};
pub use notes::{Noted, notes};

/// Times may run backwards by so much: a clock that is put right by a step of seconds is no jump.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(60);
/// Stretches of missed slots that are listed one by one.
const MAX_STRETCHES: usize = 1000;

/// The newest entry of a ledger: its place and the digest of its bytes, `000000042:9f…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its place, from 1.
    pub sequence: u64,
    /// [`link_digest`] of its file.
    pub digest: HexDigest,
}

impl std::fmt::Display for Head {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:09}:{}", self.sequence, self.digest)
    }
}

impl std::str::FromStr for Head {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let head = text.split_once(':').and_then(|(id, digest)| {
            Some(Self { sequence: EntryId::parse(id)?.sequence(), digest: HexDigest::parse(digest)? })
        });
        head.ok_or("this is no head as `ledger head` prints it: 000000042:<64 hexadecimal digits>")
    }
}

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    /// In the chain.
    #[error(transparent)]
    Chain(#[from] LedgerFault),
    /// The head that was noted is not in the ledger.
    #[error(
        "the ledger does not go through the head {head}: its newest verdicts are gone, or it was rebuilt"
    )]
    Head {
        /// As it was noted.
        head: Head,
    },
    /// A copy that the source kept is another one than the ledger's.
    #[error("the source's copy {name}: {what}")]
    Copy {
        /// Its file.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A receipt of the source does not fit the ledger.
    #[error("the receipt for verdict {name}: {what}")]
    Receipt {
        /// The verdict's id, or the name of what stands there.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The target's clock was set back, or had been ahead before.
    #[error(
        "verdict {id:09} was signed at {signed}, before the one that it follows ({before_id:09}, {before})"
    )]
    Clock {
        /// Its place.
        id: u64,
        /// When it was signed.
        signed: Timestamp,
        /// When one before it was.
        before: Timestamp,
        /// That one's place.
        before_id: u64,
    },
    /// The source's clock was set back between a mark and its receipt.
    #[error("the receipt for verdict {id:09}: it was signed at {received}, before the mark of its verdict")]
    ReceiptClock {
        /// The verdict's place.
        id: u64,
        /// When it was signed.
        received: Timestamp,
    },
    /// An acknowledgement is none, or is about other verdicts.
    #[error("the acknowledgement {name}: {what}")]
    Acknowledgement {
        /// Its file.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A note is none, or is about something else than the ledger has.
    #[error("the note {name}: {what}")]
    Note {
        /// Its file.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// Slots without a run.
    #[error("no run was begun between {from} and {to}: {slots} slots of the schedule were missed")]
    Missed {
        /// Start of the first.
        from: Timestamp,
        /// End of the last.
        to: Timestamp,
        /// How many.
        slots: i64,
    },
    /// A generation is not the one that the verdict is about.
    #[error("verdict {id:09} is about another tree than generation {generation} has: {what}")]
    Generation {
        /// The verdict's place.
        id: u64,
        /// The generation.
        generation: GenerationNumber,
        /// In which way.
        what: String,
    },
}

impl Finding {
    /// The verdicts of which one has a time that is not true; none for all that is no matter of clocks.
    pub fn wrong_clock(&self) -> Vec<u64> {
        match self {
            Self::Clock { id, before_id, .. } => vec![*before_id, *id],
            Self::ReceiptClock { id, .. } => vec![*id],
            _ => Vec::new(),
        }
    }
}

/// What to compare a ledger with, beside its keys.
#[derive(Default)]
pub struct Expected<'a> {
    /// A head that was noted before: the ledger must go through it.
    pub head: Option<Head>,
    /// A folder of verdicts that the source kept.
    pub copies: Option<&'a Path>,
    /// The folder of the source's receipts.
    pub receipts: Option<&'a Path>,
    /// The folder of acknowledgements.
    pub acknowledgements: Option<&'a Path>,
    /// The folder of operators' notes.
    pub notes: Option<&'a Path>,
    /// A run is begun in each slot of this length (counted from 1970).
    pub every: Option<Duration>,
    /// Until when slots are counted; none: until the newest run.
    pub until: Option<Timestamp>,
    /// The root digest of the manifest of a generation; none for one that is not there.
    #[allow(clippy::type_complexity)]
    pub root_of: Option<&'a dyn Fn(GenerationNumber) -> Option<Result<HexDigest, String>>>,
}

/// What came out.
#[derive(Debug)]
pub struct Audit {
    /// All that is wrong.
    pub findings: Vec<Finding>,
    /// Verdicts whose times an operator has said not to be true, oldest first.
    pub acknowledged: Vec<Acknowledged>,
    /// Operators' notes that verify, oldest first.
    pub notes: Vec<Noted>,
    /// Verdicts.
    pub verdicts: usize,
    /// The newest.
    pub head: Option<Head>,
    /// Verdicts whose generation was there to be compared.
    pub compared: usize,
    /// When each verdict was signed, oldest first; those that cannot be verified are left out.
    pub intervals: Vec<Interval>,
    /// The times of the keys, the target's first.
    pub keys: Vec<KeyPeriod>,
}

/// A verdict whose time is not true, and who has said so.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Acknowledged {
    /// Its place.
    pub verdict: u64,
    /// When it says that it was signed.
    pub signed: Timestamp,
    /// Who has looked.
    pub by: String,
    /// When.
    pub time: Timestamp,
    /// What had happened.
    pub why: String,
}

impl Acknowledged {
    /// A line for a person.
    pub fn line(&self) -> String {
        let time = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%SZ");
        let (by, why) = (display_bytes(self.by.as_bytes()), display_bytes(self.why.as_bytes()));
        let (id, signed, when) = (EntryId(self.verdict), time(self.signed), time(self.time));
        format!("ACKNOWLEDGED: verdict {id}: its time, {signed}, is not true, says {by} on {when}: {why}")
    }
}

/// The newest entry of a ledger.
///
/// # Errors
/// [`LedgerError`].
pub fn head(ledger: &Ledger) -> Result<Option<Head>, LedgerError> {
    let Some(newest) = ledger.entries()?.first().copied() else {
        return Ok(None);
    };
    let digest = link_digest(&ledger.get(&newest.to_string())?);
    Ok(Some(Head { sequence: newest.sequence(), digest }))
}

/// Looks at all of a ledger.
///
/// # Errors
/// [`LedgerError`] when the folder, or that of the copies, cannot be read.
pub fn audit(
    ledger: &Ledger,
    target_keys: &Keyring,
    source_keys: Option<&Keyring>,
    expected: &Expected<'_>,
) -> Result<Audit, LedgerError> {
    let mut chain = ledger.check(target_keys, source_keys)?;
    let mut findings: Vec<Finding> =
        std::mem::take(&mut chain.faults).into_iter().map(Finding::from).collect();
    let mut ids = ledger.entries()?;
    ids.reverse();
    ids.retain(|id| chain.key_changes.binary_search(id).is_err());
    let (mut newest_time, mut begun, mut compared): (Option<(Timestamp, u64)>, Vec<Timestamp>, _) =
        (None, Vec::new(), 0);
    let (known, wrong) = acknowledgements(ledger, target_keys, &chain, expected.acknowledgements)?;
    findings.extend(wrong);
    let mut noted = Vec::new();
    if let Some(folder) = expected.notes {
        let is_in_time = |place, id| chain.is_in_time_of_target(place, id);
        let (known, wrong) = notes::read(ledger, target_keys, &is_in_time, folder)?;
        noted = known;
        findings.extend(wrong);
    }
    let mut acknowledged = Vec::new();
    let receipts =
        expected.receipts.zip(source_keys).map(|(folder, keys)| Receipts { folder, keys, chain: &chain });
    let mut dated = Vec::with_capacity(ids.len());
    for id in &ids {
        // What cannot be read or verified was told above.
        let Ok(bytes) = ledger.get(&id.to_string()) else { continue };
        let Ok(verified) = verify_verdict_with(&bytes, target_keys, source_keys) else { continue };
        let verdict = verified.verdict;
        let signed = verdict.times.signed;
        let said = known.get(&id.sequence());
        if let Some(said) = said {
            let (verdict, time) = (id.sequence(), said.time);
            let (by, why) = (said.by.clone(), said.why.clone());
            acknowledged.push(Acknowledged { verdict, signed, by, time, why });
        } else {
            if let Some((before, before_id)) =
                newest_time.filter(|(before, _)| signed.duration_until(*before) > CLOCK_SLACK)
            {
                findings.push(Finding::Clock { id: id.sequence(), signed, before, before_id });
            }
            newest_time = newest_time.max(Some((signed, id.sequence())));
        }
        begun.extend(begun_at(&verdict.run_id));
        let (one, wrong) = Dated::new(*id, &verdict, &bytes, receipts.as_ref());
        dated.push(one);
        findings.extend(wrong.filter(|wrong| said.is_none() || wrong.wrong_clock().is_empty()));
        let (Some(generation), Some(root), Some(root_of)) =
            (verdict.generation, verdict.root, expected.root_of)
        else {
            continue;
        };
        let what = match root_of(generation) {
            None => continue,
            Some(Ok(actual)) if actual == root => None,
            Some(Ok(actual)) => Some(format!("{actual} is there, {root} was signed")),
            Some(Err(error)) => Some(error),
        };
        compared += 1;
        findings.extend(what.map(|what| Finding::Generation { id: id.sequence(), generation, what }));
    }
    if let Some(head) = expected.head {
        let id = format!("{:09}", head.sequence);
        if ledger.get(&id).ok().map(|bytes| link_digest(&bytes)) != Some(head.digest) {
            findings.push(Finding::Head { head });
        }
    }
    if let Some(folder) = expected.copies {
        findings.extend(copies(ledger, target_keys, folder)?);
    }
    if let Some(receipts) = &receipts {
        findings.extend(intervals::strays(receipts.folder, &ids)?);
    }
    if let Some(every) = expected.every {
        findings.extend(missed(begun, every, expected.until));
    }
    let intervals = intervals::intervals(&dated);
    let (verdicts, head, keys) = (ids.len(), head(ledger)?, std::mem::take(&mut chain.periods));
    Ok(Audit { findings, acknowledged, notes: noted, verdicts, head, compared, intervals, keys })
}

/// What operators have acknowledged, by the verdict's place. One that was not signed with this key, or that is about other verdicts than
/// the ledger has, covers nothing and is told.
#[allow(clippy::type_complexity)]
fn acknowledgements(
    ledger: &Ledger,
    target_keys: &Keyring,
    chain: &Chain,
    folder: Option<&Path>,
) -> Result<(BTreeMap<u64, Acknowledgement>, Vec<Finding>), LedgerError> {
    let (mut known, mut findings) = (BTreeMap::new(), Vec::new());
    let entries = match folder.map(fs::read_dir) {
        None => return Ok((known, findings)),
        Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok((known, findings)),
        Some(entries) => entries.at("list", folder.unwrap_or(Path::new("")))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.at("list", folder.unwrap_or(Path::new("")))?.path());
    }
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.starts_with(TEMPORARY_PREFIX.as_bytes()) {
            continue;
        }
        let name = display_bytes(name);
        let bytes = fs::read(&path).at("read", &path)?;
        let (acknowledgement, key) = match verify_acknowledgement_among(&bytes, target_keys.all()) {
            Ok(acknowledgement) => acknowledgement,
            Err(error) => {
                findings.push(Finding::Acknowledgement { name, what: error.to_string() });
                continue;
            }
        };
        for verdict in &acknowledgement.verdicts {
            let id = EntryId(verdict.sequence);
            if !chain.is_in_time_of_target(key, id) {
                let what = format!("it is signed with a key whose time had ended before verdict {id}");
                findings.push(Finding::Acknowledgement { name: name.clone(), what });
            } else if ledger.get(&id.to_string()).ok().map(|bytes| link_digest(&bytes))
                == Some(verdict.digest)
            {
                known.insert(verdict.sequence, acknowledgement.clone());
            } else {
                let what = format!("the ledger has no such verdict {id}");
                findings.push(Finding::Acknowledgement { name: name.clone(), what });
            }
        }
    }
    Ok((known, findings))
}

/// The source's copies must stand in the ledger, byte for byte.
fn copies(ledger: &Ledger, target_keys: &Keyring, folder: &Path) -> Result<Vec<Finding>, LedgerError> {
    let mut findings = Vec::new();
    for entry in fs::read_dir(folder).at("list", folder)? {
        let path = entry.at("list", folder)?.path();
        let name = display_bytes(path.file_name().unwrap_or_default().as_encoded_bytes());
        let bytes = fs::read(&path).at("read", &path)?;
        let what = match verify_verdict_with(&bytes, target_keys, None) {
            Err(error) => Some(error.to_string()),
            Ok(verified) => {
                let id = format!("{:09}", verified.verdict.sequence);
                match ledger.get(&id) {
                    Ok(kept) if kept == bytes => None,
                    Ok(_) => Some(format!("the ledger has another verdict {id}")),
                    Err(_) => Some(format!("the ledger has no verdict {id}")),
                }
            }
        };
        findings.extend(what.map(|what| Finding::Copy { name, what }));
    }
    Ok(findings)
}

/// When a run was begun: its id says so.
fn begun_at(id: &RunId) -> Option<Timestamp> {
    let text = id.as_str().get(..16)?;
    let civil = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// Stretches of slots in which no run was begun.
fn missed(mut begun: Vec<Timestamp>, every: Duration, until: Option<Timestamp>) -> Vec<Finding> {
    let every = i64::try_from(every.as_secs()).unwrap_or(i64::MAX).max(1);
    begun.sort_unstable();
    let slot = |time: &Timestamp| time.as_second().div_euclid(every);
    let mut slots: Vec<i64> = begun.iter().map(slot).collect();
    // The slot that is under way is not missed yet.
    slots.extend(until.as_ref().map(slot));
    slots.dedup();
    let start = |slot: i64| Timestamp::from_second(slot.saturating_mul(every)).unwrap_or(Timestamp::MAX);
    let stretches = slots.windows(2).filter(|pair| pair[1] - pair[0] > 1).take(MAX_STRETCHES);
    stretches
        .map(|pair| Finding::Missed {
            from: start(pair[0] + 1),
            to: start(pair[1]),
            slots: pair[1] - pair[0] - 1,
        })
        .collect()
}

#[cfg(test)]
mod tests;
