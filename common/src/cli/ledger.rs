//! `ledger verify` and `ledger head`: a ledger looked at as a whole, also as a copy on another machine.

use std::{path::PathBuf, process::ExitCode};

use super::{CommandError, print, print_json};
use crate::{
    audit::{Expected, Head, audit, head},
    config::Span,
    error::Hint as _,
    id::GenerationNumber,
    ledger::{Ledger, LedgerError},
    signing::VerifyingKey,
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
    /// A run is begun in every slot of this length, for example 1h: those without one are told, up to now
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub every: Option<Span>,
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

impl AuditArgs {
    /// Looks at a ledger. 0 when nothing is wrong, else 1.
    ///
    /// # Errors
    /// When it cannot be read.
    #[allow(clippy::type_complexity)]
    pub fn run(
        &self,
        ledger: &Ledger,
        key: &VerifyingKey,
        source_key: Option<&VerifyingKey>,
        root_of: Option<&dyn Fn(GenerationNumber) -> Option<Result<HexDigest, String>>>,
        json: bool,
    ) -> Result<ExitCode, CommandError> {
        let expected = Expected {
            head: self.expect_head,
            copies: self.copies.as_deref(),
            every: self.every.map(|span| span.0),
            until: Some(jiff::Timestamp::now()),
            root_of,
        };
        let done = audit(ledger, key, source_key, &expected).map_err(read_error)?;
        let head = done.head.map(|head| head.to_string()).unwrap_or_default();
        if json {
            let findings: Vec<_> = done.findings.iter().map(ToString::to_string).collect();
            print_json(&serde_json::json!({
                "sound": findings.is_empty(), "verdicts": done.verdicts, "head": head,
                "generationsCompared": done.compared, "findings": findings,
            }));
        } else {
            let mut text = String::new();
            done.findings.iter().for_each(|finding| text.push_str(&format!("WRONG: {finding}\n")));
            let word = if done.findings.is_empty() { "sound" } else { "NOT SOUND" };
            text.push_str(&format!(
                "{word}: {} verdicts, {} compared with generations that are there; head {head}\n",
                done.verdicts, done.compared
            ));
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
