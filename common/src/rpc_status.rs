//! Faults on the wire: a `tonic::Status` with `ErrorInfo`, made in one place and read back in one place, so
//! that a command line prints what happened and a HINT, whichever agent found the fault.
//!
//! What the other side wrote is shown on one line with control characters escaped, and is bounded in length.

use std::{borrow::Cow, collections::HashMap, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    error::{Hint, without_codes},
    path::display_bytes,
};

/// Domain of every `ErrorInfo` of ours.
pub const DOMAIN: &str = "assay.dev";
/// Reason of a run that is not opened, because too many before it have failed.
pub const TOO_MANY_FAILED_RUNS: &str = "too-many-failed-runs";
/// Key of the hint in the metadata of `ErrorInfo`.
const HINT_KEY: &str = "hint";
/// Key of the run's id in the metadata of `ErrorInfo`.
pub const RUN_ID_KEY: &str = "run_id";

/// A status travels in HTTP/2 headers, which peers bound at 16 KiB; base64 takes a third more.
const MAX_MESSAGE_BYTES: usize = 2048;
/// Bound of a hint and of one metadata value, for the same reason.
const MAX_VALUE_BYTES: usize = 1024;
/// The reason of a fault that ends by itself: with a [`RpcFault::retry_after`], the caller may wait for that.
pub const BUSY: &str = "busy";
/// More than our agents ever attach.
const MAX_METADATA_ENTRIES: usize = 4;

/// A fault that crosses, or has crossed, the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcFault {
    /// The gRPC code, which tells the caller's program what to do.
    pub code: Code,
    /// A short stable word, for example `role-not-allowed`. Empty in a fault that is not ours.
    pub reason: Cow<'static, str>,
    /// What happened, to what, for a person.
    pub message: String,
    /// What the operator may try.
    pub hint: Option<String>,
    /// Further facts, for example `run_id`.
    pub metadata: HashMap<String, String>,
    /// When it may be tried again: a `RetryInfo`.
    pub retry_after: Option<Duration>,
}

impl RpcFault {
    /// A fault without a hint.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            message: without_codes(&message.into()),
            hint: None,
            metadata: HashMap::new(),
            retry_after: None,
        }
    }

    /// A name, number or id that is none that could exist, or a message that could never be right.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, "invalid-argument", message)
    }

    /// Adds what the operator may try.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the run that the fault belongs to.
    #[must_use]
    pub fn with_run_id(self, run_id: impl Into<String>) -> Self {
        self.with(RUN_ID_KEY, run_id)
    }

    /// Adds when it may be tried again.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// The run that the fault belongs to.
    pub fn run_id(&self) -> Option<&str> {
        self.metadata.get(RUN_ID_KEY).map(String::as_str)
    }
}

impl fmt::Display for RpcFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for RpcFault {}

impl Hint for RpcFault {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

impl From<RpcFault> for Status {
    fn from(fault: RpcFault) -> Self {
        let mut metadata: HashMap<String, String> =
            fault.metadata.into_iter().map(|(key, value)| (key, bounded(&value, MAX_VALUE_BYTES))).collect();
        if let Some(hint) = &fault.hint {
            metadata.insert(HINT_KEY.to_owned(), bounded(hint, MAX_VALUE_BYTES));
        }
        let mut details = ErrorDetails::with_error_info(fault.reason, DOMAIN, metadata);
        if fault.retry_after.is_some() {
            details.set_retry_info(fault.retry_after);
        }
        Self::with_error_details(fault.code, bounded(&fault.message, MAX_MESSAGE_BYTES), details)
    }
}

/// Reads a status back. One that is not ours keeps its code and message.
pub fn fault_from_status(status: &Status) -> RpcFault {
    let message = match status.message() {
        "" => format!("the call failed: {}", status.code().description()),
        message => shown(message, MAX_MESSAGE_BYTES),
    };
    let mut fault = RpcFault {
        code: status.code(),
        reason: "".into(),
        message,
        hint: None,
        metadata: HashMap::new(),
        retry_after: None,
    };
    fault.retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    if let Some(info) = status.get_details_error_info().filter(|info| info.domain == DOMAIN) {
        fault.reason = shown(&info.reason, 64).into();
        fault.hint = info.metadata.get(HINT_KEY).map(|hint| shown(hint, MAX_VALUE_BYTES));
        fault.metadata = info
            .metadata
            .iter()
            .filter(|(key, _)| *key != HINT_KEY)
            .take(MAX_METADATA_ENTRIES)
            .map(|(key, value)| (shown(key, 64), shown(value, MAX_VALUE_BYTES)))
            .collect();
    }
    fault
}

fn shown(text: &str, max_bytes: usize) -> String {
    display_bytes(bounded(text, max_bytes).as_bytes())
}

fn bounded(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let end = (0..=max_bytes).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::report;

    #[test]
    fn a_fault_crosses_the_wire_whole() {
        let fault = RpcFault::new(Code::Aborted, "run-under-way", "run 7 is under way")
            .with_hint("wait for it, or cancel it")
            .with_run_id("7");
        let headers = Status::from(fault.clone()).into_http::<()>().into_parts().0.headers;
        let arrived = Status::from_header_map(&headers).expect("a status");
        assert_eq!(fault_from_status(&arrived), fault);
        assert_eq!(report(&fault), "run 7 is under way\nHINT: wait for it, or cancel it");
    }

    #[test]
    fn a_status_of_others_keeps_its_code_and_text() {
        let fault = fault_from_status(&Status::unavailable("no"));
        assert_eq!((fault.code, &*fault.reason, &*fault.message), (Code::Unavailable, "", "no"));
        assert!(!fault_from_status(&Status::new(Code::Internal, "")).message.is_empty());
        let foreign = ErrorDetails::with_error_info("R", "example.com", HashMap::new());
        let status = Status::with_error_details(Code::Internal, "x", foreign);
        assert_eq!(fault_from_status(&status).reason, "");
    }

    #[test]
    fn a_hostile_text_neither_drives_the_terminal_nor_fills_it() {
        let text = format!("\x1b[2J\nHINT: rm -rf /{}", "é".repeat(100_000));
        let fault = RpcFault::new(Code::Internal, "x", text.clone()).with_hint(text).with("k\n", "v\n");
        let arrived = fault_from_status(&fault.into());
        assert!(!report(&arrived).trim_end().contains('\x1b'));
        assert!(!arrived.message.contains('\n') && arrived.message.len() < 3000);
        assert_eq!(arrived.metadata.get("k\\n").map(String::as_str), Some("v\\n"));
    }
}
