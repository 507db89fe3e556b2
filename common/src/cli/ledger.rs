//! `ledger verify` and `ledger head`: a ledger looked at as a whole, also as a copy on another machine.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{CommandError, print, print_json};
use crate::{
    audit::{Expected, Finding, Head, audit, head},
    config::Span,
    error::Hint as _,
    id::GenerationNumber,
    keyring::Keyring,
    ledger::{EntryId, Ledger, LedgerError, LedgerFault},
    verdict::HexDigest,
};

/// What a ledger is compared with.
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    /// A head that `ledger head` printed before: the ledger must go through it
    #[arg(long, value_name = "HEAD")]
    pub expect_head: Option<Head>,
    /// Folder of the verdicts that the source kept (STATE/REPOSITORY/verdicts)
    #[arg(long, value_name = "DIR")]
    pub copies: Option<PathBuf>,
    /// Folder of the source's receipts (STORE/REPOSITORY/receipts); default: that of the store
    #[arg(long, value_name = "DIR")]
    pub receipts: Option<PathBuf>,
    /// Folder of acknowledgements (STORE/REPOSITORY/acknowledgements); default: that of the store
    #[arg(long, value_name = "DIR")]
    pub acknowledgements: Option<PathBuf>,
    /// Folder of operators' notes (STORE/REPOSITORY/notes); default: that of the store
    #[arg(long, value_name = "DIR")]
    pub notes: Option<PathBuf>,
    /// A run is begun in every slot of this length, for example 1h: those without one are told, up to now
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub every: Option<Span>,
}

/// What stands beside a ledger in its store.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// The folder of the source's receipts.
    pub receipts: Option<&'a Path>,
    /// The folder of acknowledgements.
    pub acknowledgements: Option<&'a Path>,
    /// The folder of operators' notes.
    pub notes: Option<&'a Path>,
}

/// How many verdicts rest on the target's word alone, and which.
fn receipts_line(looked_at: bool, without: &[EntryId]) -> String {
    const NAMED: usize = 20;
    if !looked_at {
        return "the source's receipts were not looked at: give --receipts and the source's key\n".to_owned();
    }
    if without.is_empty() {
        return "each verdict has the source's receipt\n".to_owned();
    }
    let named: Vec<_> = without.iter().take(NAMED).map(ToString::to_string).collect();
    let more = match without.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{} without a receipt: {}{more}\n", without.len(), named.join(", "))
}

fn span(text: &str) -> Result<Span, humantime::DurationError> {
    humantime::parse_duration(text).map(Span)
}

fn read_error(error: LedgerError) -> CommandError {
    CommandError { hint: error.hint(), ..CommandError::not_run(error.to_string()) }
}

/// Prints the head of a ledger.
///
/// # Errors
/// When it cannot be read, or is empty.
pub fn print_head(ledger: &Ledger) -> Result<ExitCode, CommandError> {
    match head(ledger).map_err(read_error)? {
        Some(head) => print(&format!("{head}\n")),
        None => return Err(CommandError::not_run("the ledger is empty")),
    }
    Ok(ExitCode::SUCCESS)
}

/// What to do about keys that do not fit.
fn key_hints(findings: &[Finding]) -> Vec<&'static str> {
    let has = |is: fn(&LedgerFault) -> bool| {
        findings.iter().any(|finding| matches!(finding, Finding::Chain(fault) if is(fault)))
    };
    let mut hints = Vec::new();
    if has(|fault| matches!(fault, LedgerFault::Unpinned { .. })) {
        hints.push(
            "ask the operator of that host whether the new key is theirs (`assay-target keys show` there); if it is, pin it behind the old one",
        );
    }
    if has(|fault| matches!(fault, LedgerFault::Unannounced { .. })) {
        hints.push(
            "when the old key is gone, `assay-target keys rotate --lost OLD.pub --why TEXT` at the target says so in the ledger; when it is not, \
             somebody else has signed: look who",
        );
    }
    if has(|fault| matches!(fault, LedgerFault::Entry { source, .. } if source.is_of_other_key())) {
        hints.push("when a host has had several keys, give them all, oldest first");
    }
    hints
}

impl AuditArgs {
    /// Looks at a ledger. 0 when nothing is wrong, else 1.
    ///
    /// # Errors
    /// When it cannot be read.
    #[allow(clippy::type_complexity)]
    pub fn run(
        &self,
        ledger: &Ledger,
        keys: &Keyring,
        source_keys: Option<&Keyring>,
        root_of: Option<&dyn Fn(GenerationNumber) -> Option<Result<HexDigest, String>>>,
        beside: Beside<'_>,
        json: bool,
    ) -> Result<ExitCode, CommandError> {
        let receipts = self.receipts.as_deref().or(beside.receipts);
        let expected = Expected {
            head: self.expect_head,
            copies: self.copies.as_deref(),
            receipts,
            acknowledgements: self.acknowledgements.as_deref().or(beside.acknowledgements),
            notes: self.notes.as_deref().or(beside.notes),
            every: self.every.map(|span| span.0),
            until: Some(jiff::Timestamp::now()),
            root_of,
        };
        let done = audit(ledger, keys, source_keys, &expected).map_err(read_error)?;
        let without: Vec<_> = done.intervals.iter().filter(|it| it.received.is_none()).collect();
        let without: Vec<_> = without.into_iter().map(|it| EntryId(it.verdict)).collect();
        let head = done.head.map(|head| head.to_string()).unwrap_or_default();
        if json {
            let findings: Vec<_> = done.findings.iter().map(ToString::to_string).collect();
            print_json(&serde_json::json!({
                "sound": findings.is_empty(), "verdicts": done.verdicts, "head": head,
                "generationsCompared": done.compared, "keys": done.keys, "findings": findings, "intervals": done.intervals,
                "acknowledged": done.acknowledged, "notes": done.notes,
                "withoutReceipt": without.iter().map(ToString::to_string).collect::<Vec<_>>(),
            }));
        } else {
            let mut text = String::new();
            done.intervals.iter().for_each(|interval| text.push_str(&format!("{}\n", interval.line())));
            if done.keys.iter().any(|period| period.to.is_some()) {
                done.keys.iter().for_each(|period| text.push_str(&format!("{}\n", period.line())));
            }
            done.acknowledged.iter().for_each(|one| text.push_str(&format!("{}\n", one.line())));
            done.notes.iter().for_each(|note| text.push_str(&format!("{}\n", note.line())));
            done.findings.iter().for_each(|finding| text.push_str(&format!("WRONG: {finding}\n")));
            let word = if done.findings.is_empty() { "sound" } else { "NOT SOUND" };
            text.push_str(&format!(
                "{word}: {}, {} compared with generations that are there; head {head}\n",
                super::screen::counted(done.verdicts as u64, "verdict", "verdicts"),
                done.compared
            ));
            if done.findings.iter().any(|finding| !finding.wrong_clock().is_empty()) {
                text.push_str(
                    "HINT: where a clock was wrong, `assay-target ledger acknowledge --verdict N --by NAME --why TEXT` names the verdicts \
                     whose times are not true; it covers nothing else\n",
                );
            }
            key_hints(&done.findings).iter().for_each(|hint| text.push_str(&format!("HINT: {hint}\n")));
            text.push_str(&receipts_line(receipts.is_some() && source_keys.is_some(), &without));
            if self.expect_head.is_none() && self.copies.is_none() {
                text.push_str(
                    "whether the newest are gone was not looked at: give --expect-head or --copies\n",
                );
            }
            print(&text);
        }
        Ok(ExitCode::from(u8::from(!done.findings.is_empty())))
    }
}
