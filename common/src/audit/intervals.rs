//! Between which two moments each verdict was signed, by what the source signed.
//!
//! A verdict is younger than the mark that the source signed and that stands in it, and older than the receipt that the source
//! signed when it had it. The chain carries both further: a verdict is younger than every mark before it, and older than every
//! receipt after it. Both moments are by the source's clock. What the target's clock says, [`Interval::signed`], is its word alone.

use std::{path::Path, time::Duration};

use jiff::Timestamp;

use super::Finding;
use crate::{
    error::{IoContext as _, PathError},
    keyring::Keyring,
    ledger::{Chain, EntryId},
    path::display_bytes,
    verdict::{Receipt, Verdict, read_receipt, verify_receipt_among},
};

/// A clock that is put right by a small step between mark and receipt is no contradiction.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// When a verdict was signed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interval {
    /// Its place in the ledger.
    pub verdict: u64,
    /// By the target's clock.
    pub signed: Timestamp,
    /// The mark in it, which the source signed.
    pub mark: Option<Timestamp>,
    /// When the source had it; none without a receipt: then its time rests on the target's word alone.
    pub received: Option<Timestamp>,
    /// The newest mark of a verdict before it, where that is younger than its own.
    pub after: Option<Bound>,
    /// The oldest receipt for a verdict after it, where that is older than its own.
    pub before: Option<Bound>,
}

/// A moment that another verdict of the chain gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bound {
    /// The other verdict's place.
    pub verdict: u64,
    /// The moment, by the source's clock.
    pub time: Timestamp,
}

impl Interval {
    /// A line for a person.
    pub fn line(&self) -> String {
        let time = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        let mut text = format!("verdict {}", EntryId(self.verdict));
        match (self.mark, self.received) {
            (Some(mark), Some(received)) => {
                text.push_str(&format!(": signed between {} (mark) and {} (receipt)", time(mark), time(received)));
            }
            (None, Some(received)) => text.push_str(&format!(": signed before {} (receipt)", time(received))),
            (Some(mark), None) => text.push_str(&format!(
                ": signed after {} (mark); WITHOUT A RECEIPT: that it is not younger rests on the target's word alone",
                time(mark)
            )),
            (None, None) => text.push_str(&format!(
                ": WITHOUT A RECEIPT: its time, {}, rests on the target's word alone",
                time(self.signed)
            )),
        }
        let is_outside = self.mark.is_some_and(|mark| later(mark, self.signed))
            || self.received.is_some_and(|received| later(self.signed, received));
        if is_outside {
            text.push_str(&format!(
                "; the target's own clock said {}, which is outside of that",
                time(self.signed)
            ));
        }
        if let Some(bound) = &self.after {
            text.push_str(&format!(
                "; it follows verdict {}: after {}",
                EntryId(bound.verdict),
                time(bound.time)
            ));
        }
        if let Some(bound) = &self.before {
            text.push_str(&format!(
                "; verdict {} follows it and has a receipt: before {}",
                EntryId(bound.verdict),
                time(bound.time)
            ));
        }
        let after = self.after.map(|bound| bound.time).into_iter().chain(self.mark).max();
        let before = self.before.map(|bound| bound.time).into_iter().chain(self.received).min();
        if after.zip(before).is_some_and(|(after, before)| later(after, before)) {
            text.push_str("; THESE CONTRADICT EACH OTHER: the source's clock was wrong in one of the runs");
        }
        text
    }
}

/// True when `one` is after `other` by more than the step of a clock that is put right.
fn later(one: Timestamp, other: Timestamp) -> bool {
    Duration::try_from(other.duration_until(one)).is_ok_and(|by| by > CLOCK_SLACK)
}

/// What is known of a verdict on its way to an interval.
pub(super) struct Dated {
    pub(super) id: EntryId,
    pub(super) signed: Timestamp,
    pub(super) mark: Option<Timestamp>,
    pub(super) received: Option<Timestamp>,
}

impl Dated {
    /// A verdict that was verified, with the receipt for it that `receipts` has, and what is wrong with that.
    pub(super) fn new(
        id: EntryId,
        verdict: &Verdict,
        envelope: &[u8],
        receipts: Option<&Receipts<'_>>,
    ) -> (Self, Option<Finding>) {
        // A mark without the source's statement is the target's word.
        let mark = verdict.source_statement.as_ref().and(verdict.mark.as_ref()).map(|mark| mark.time);
        let receipt = receipts.and_then(|receipts| receipts.of(id, verdict, envelope).transpose());
        let (received, finding) = match receipt {
            None => (None, None),
            Some(Err(what)) => (None, Some(Finding::Receipt { name: id.to_string(), what })),
            Some(Ok(receipt)) => match mark.map(|mark| receipt.received.duration_until(mark)) {
                Some(early) if Duration::try_from(early).is_ok_and(|early| early > CLOCK_SLACK) => {
                    let (id, received) = (id.sequence(), receipt.received);
                    (Some(received), Some(Finding::ReceiptClock { id, received }))
                }
                _ => (Some(receipt.received), None),
            },
        };
        (Self { id, signed: verdict.times.signed, mark, received }, finding)
    }
}

/// The source's receipts, and whose they may be.
pub(super) struct Receipts<'a> {
    pub(super) folder: &'a Path,
    pub(super) keys: &'a Keyring,
    pub(super) chain: &'a Chain,
}

impl Receipts<'_> {
    /// The receipt for a verdict; nothing where there is none.
    fn of(&self, id: EntryId, verdict: &Verdict, envelope: &[u8]) -> Result<Option<Receipt>, String> {
        let Some(bytes) = read_receipt(self.folder, id).map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let verified = verify_receipt_among(&bytes, self.keys.all(), verdict, envelope);
        let (receipt, key) = verified.map_err(|error| error.to_string())?;
        if !self.chain.is_in_time_of_source(key, id) {
            return Err("it is signed with a source's key whose time had ended".to_owned());
        }
        Ok(Some(receipt))
    }
}

/// The intervals of verdicts in the order of the chain.
pub(super) fn intervals(dated: &[Dated]) -> Vec<Interval> {
    let mut intervals = Vec::with_capacity(dated.len());
    let mut newest: Option<Bound> = None;
    for one in dated {
        let after = newest.filter(|bound| one.mark.is_none_or(|mark| mark < bound.time));
        intervals.push(Interval {
            verdict: one.id.sequence(),
            signed: one.signed,
            mark: one.mark,
            received: one.received,
            after,
            before: None,
        });
        if let Some(time) = one.mark.filter(|mark| newest.is_none_or(|bound| bound.time < *mark)) {
            newest = Some(Bound { verdict: one.id.sequence(), time });
        }
    }
    let mut oldest: Option<Bound> = None;
    for interval in intervals.iter_mut().rev() {
        interval.before = oldest.filter(|bound| interval.received.is_none_or(|own| bound.time < own));
        if let Some(time) = interval.received.filter(|own| oldest.is_none_or(|bound| *own < bound.time)) {
            oldest = Some(Bound { verdict: interval.verdict, time });
        }
    }
    intervals
}

/// Receipts for verdicts that the ledger does not have, and what is no receipt: the newest entries were removed, or it is another
/// ledger's folder.
///
/// # Errors
/// When the folder is there and cannot be listed.
pub(super) fn strays(folder: &Path, known: &[EntryId]) -> Result<Vec<Finding>, PathError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(PathError::new("list", folder, error)),
    };
    let mut findings = Vec::new();
    for entry in entries {
        let name = entry.at("list", folder)?.file_name();
        let id = name.to_str().and_then(|name| EntryId::parse(name.strip_suffix(".json")?));
        let what = match id {
            Some(id) if known.binary_search(&id).is_ok() => continue,
            Some(_) => "the ledger has no such verdict: its newest entries are gone, or it was rebuilt",
            None if name.as_encoded_bytes().starts_with(crate::durable::TEMPORARY_PREFIX.as_bytes()) => {
                continue;
            }
            None => "is no receipt's name",
        };
        let name = id.map_or_else(|| display_bytes(name.as_encoded_bytes()), |id| id.to_string());
        findings.push(Finding::Receipt { name, what: what.to_owned() });
    }
    findings.sort_by_key(ToString::to_string);
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn dated(id: u64, signed: &str, mark: &str, received: Option<&str>) -> Dated {
        Dated { id: EntryId(id), signed: time(signed), mark: Some(time(mark)), received: received.map(time) }
    }

    #[test]
    fn a_target_clock_that_is_wrong_shows_and_a_source_clock_that_was_wrong_too() {
        let lines = |all: &[Dated]| intervals(all).iter().map(Interval::line).collect::<Vec<_>>();
        let sound = dated(1, "2026-11-29T10:00:30Z", "2026-11-29T10:00:00Z", Some("2026-11-29T10:01:00Z"));
        let line = lines(&[sound]).pop().expect("one");
        assert_eq!(
            line,
            "verdict 000000001: signed between 2026-11-29 10:00:00Z (mark) and 2026-11-29 10:01:00Z (receipt)"
        );
        for signed in ["2026-11-20T10:00:00Z", "2026-12-29T10:00:00Z"] {
            let one = dated(1, signed, "2026-11-29T10:00:00Z", Some("2026-11-29T10:01:00Z"));
            let line = lines(&[one]).pop().expect("one");
            assert!(line.contains("; the target's own clock said 2026-1"), "{line}");
        }
        let ahead = dated(1, "2026-11-29T10:00:30Z", "2027-11-29T10:00:00Z", Some("2027-11-29T10:01:00Z"));
        let after = dated(2, "2026-11-29T11:00:30Z", "2026-11-29T11:00:00Z", Some("2026-11-29T11:01:00Z"));
        let lines = lines(&[ahead, after]);
        assert!(lines.iter().all(|line| line.contains("THESE CONTRADICT EACH OTHER")), "{lines:?}");
    }
}
