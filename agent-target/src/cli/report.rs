//! `report`: evidence for a period, from the store of this host. No agent is asked.

use std::process::ExitCode;

use assay_common::{
    cli::{CommandError, all, print, print_json},
    config::Span,
    error::Hint as _,
    keyring::Keyring,
    ledger::Ledger,
};
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};

use super::restore::own_keys;
use crate::{
    config::Config,
    report::{self, Beside, OfRepository, Period, Report},
    store::{ACKNOWLEDGEMENTS, NOTES, RECEIPTS},
};

/// Which period, of what, and in which form.
#[derive(Debug, clap::Args)]
pub(super) struct ReportArgs {
    /// First day or moment of the period: 2026-09-01, or 2026-09-01T06:00:00Z; a day is one of UTC
    #[arg(long, value_name = "TIME", value_parser = first)]
    from: Timestamp,
    /// Last day of the period, or the first moment after it
    #[arg(long, value_name = "TIME", value_parser = last)]
    to: Timestamp,
    /// Only this repository
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// A run is due in every slot of this length, for example 1h: those without one are listed
    #[arg(long, value_name = "SPAN", value_parser = span)]
    every: Option<Span>,
    /// Form of the report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Format {
    /// One page that needs nothing else, and prints well
    #[default]
    Html,
    /// All of it, for programs
    Json,
    /// A row for each verdict
    Csv,
}

fn span(text: &str) -> Result<Span, String> {
    match humantime::parse_duration(text) {
        Ok(span) if span.as_secs() > 0 => Ok(Span(span)),
        Ok(_) => Err("must be at least a second".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn first(text: &str) -> Result<Timestamp, String> {
    moment(text).map(|(moment, _)| moment)
}

/// A day is in the period as a whole.
fn last(text: &str) -> Result<Timestamp, String> {
    let (moment, is_day) = moment(text)?;
    if !is_day {
        return Ok(moment);
    }
    moment.checked_add(SignedDuration::from_hours(24)).map_err(|error| error.to_string())
}

fn moment(text: &str) -> Result<(Timestamp, bool), String> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok((moment, false));
    }
    let day = text
        .parse::<Date>()
        .map_err(|_| "must be a day (2026-09-01) or a moment (2026-09-01T06:00:00Z)".to_owned())?;
    let start = day.to_zoned(TimeZone::UTC).map_err(|error| error.to_string())?;
    Ok((start.timestamp(), true))
}

/// A spreadsheet must not take a text from elsewhere for a formula.
fn cell(text: &str) -> String {
    match text.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r') => format!("'{text}"),
        _ => text.to_owned(),
    }
}

/// Makes it. 0 when every ledger is sound, else 1.
pub(super) fn run(arguments: &ReportArgs, config: &Config) -> Result<ExitCode, CommandError> {
    let now = Timestamp::now();
    let period =
        Period { from: arguments.from, to: arguments.to, every: arguments.every.map(|every| every.0) };
    if period.from >= period.to {
        return Err(CommandError::usage(format!("--to: must be after --from ({})", period.from)));
    }
    if period.from > now {
        return Err(CommandError::usage(format!(
            "--from: {} lies in the future: nothing is known of it",
            period.from
        )));
    }
    let wanted = arguments.repository.as_deref().map(all::real_name);
    if let Some(wanted) = &wanted {
        let known = all::names(config.repositories.iter().map(|repository| repository.name.as_str()));
        all::refuse_unknown(wanted, "on this target", &known)?;
    }
    let keys = own_keys(config)
        .map_err(|error| CommandError { hint: error.hint(), ..CommandError::usage(error.to_string()) })?;
    let mut repositories: Vec<OfRepository> = Vec::new();
    for repository in &config.repositories {
        if wanted.as_ref().is_some_and(|wanted| *wanted != repository.name) {
            continue;
        }
        let store = config.agent.store.join(&repository.name);
        let source_keys = Keyring::load(&repository.source_key)
            .map_err(|error| CommandError { hint: error.hint(), ..CommandError::usage(error.to_string()) })?;
        let (receipts, acknowledgements) = (store.join(RECEIPTS), store.join(ACKNOWLEDGEMENTS));
        let notes = store.join(NOTES);
        let beside = Beside { receipts: &receipts, acknowledgements: &acknowledgements, notes: &notes };
        let ledger = Ledger::at(&store.join("ledger"));
        let of =
            report::of_repository(&repository.name, &ledger, (&keys, &source_keys), &beside, period, now);
        repositories.push(of.map_err(|error| CommandError {
            hint: error.hint(),
            ..CommandError::not_run(error.to_string())
        })?);
    }
    let is_sound = repositories.iter().all(|repository| repository.sound);
    let report = Report {
        target: config.agent.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        made: now,
        from: period.from,
        to: period.to,
        unfinished: period.to > now,
        repositories,
        requirements: report::requirements(),
        verify: report::VERIFY,
    };
    match arguments.format {
        Format::Html => print(&report::page(&report)),
        Format::Json => print_json(&serde_json::to_value(&report).unwrap_or_default()),
        Format::Csv => {
            let mut writer = csv::Writer::from_writer(Vec::new());
            let written = report::rows(&report)
                .iter()
                .try_for_each(|row| writer.write_record(row.iter().map(|text| cell(text))))
                .map_err(|error| error.to_string())
                .and_then(|()| writer.into_inner().map_err(|error| error.to_string()));
            let bytes = written.map_err(CommandError::not_run)?;
            print(&String::from_utf8_lossy(&bytes));
        }
    }
    Ok(ExitCode::from(u8::from(!is_sound)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_in_the_period_as_a_whole_and_a_moment_as_it_is() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        assert_eq!(first("2026-09-01"), Ok(at("2026-09-01T00:00:00Z")));
        assert_eq!(last("2026-09-30"), Ok(at("2026-10-01T00:00:00Z")));
        assert_eq!(last("2026-09-30T12:00:00Z"), Ok(at("2026-09-30T12:00:00Z")));
        assert_eq!(first("2026-09-01T06:00:00+02:00"), Ok(at("2026-09-01T04:00:00Z")));
        for wrong in ["", "yesterday", "2026-13-01", "2026-02-30", "1"] {
            assert!(first(wrong).is_err() && last(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_text_is_a_formula() {
        for (text, shown) in [("=1+1", "'=1+1"), ("@x", "'@x"), ("check-passed", "check-passed"), ("", "")] {
            assert_eq!(cell(text), shown);
        }
    }
}
