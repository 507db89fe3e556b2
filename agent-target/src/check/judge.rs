//! How a step is read: its end, what it said, its exit code, in this order.

use assay_common::profile::{Check, TemplateError};

use super::{
    HOST_NAME_ERROR, MAX_LINE_BYTES, Outcome,
    launch::Launcher,
    limits::Bounds,
    output::{self, Patterns},
    process::{End, Ran},
};

/// An outcome with its reason.
#[derive(Clone, Debug)]
pub(super) struct Judgement {
    pub(super) outcome: Outcome,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Judgement {
    pub(super) fn inconclusive(reason: &str, message: impl Into<String>) -> Self {
        Self { outcome: Outcome::Inconclusive, reason: reason.into(), message: message.into() }
    }

    pub(super) fn configuration(error: &TemplateError) -> Self {
        Self::inconclusive("configuration", error.to_string())
    }

    pub(super) fn workspace(error: impl std::fmt::Display) -> Self {
        Self::inconclusive("workspace-failed", error.to_string())
    }
}

/// Reads a step by the rules of [`Check`].
pub(super) fn judge(
    check: &Check,
    patterns: &Patterns,
    ran: &Ran,
    bounds: &Bounds,
    launcher: &Launcher,
) -> Judgement {
    let fail =
        |reason: &str, message: String| Judgement { outcome: Outcome::Fail, reason: reason.into(), message };
    let said = || {
        let stream = if ran.stderr.bytes > 0 { &ran.stderr } else { &ran.stdout };
        let line = stream.head.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty());
        line.map(|line| format!(": {}", output::quote(line))).unwrap_or_default()
    };
    // Whatever it said: a checker without room says anything.
    if let Some(limit) = ran.limit {
        return Judgement::inconclusive(limit.reason(), limit.message(bounds));
    }
    let code = match &ran.end {
        End::NotStarted(error) => return Judgement::inconclusive("check-not-started", error.clone()),
        End::SandboxFailed => {
            return Judgement::inconclusive(
                "isolation-failed",
                format!("the sandbox was not made{}", said()),
            );
        }
        End::TimedOut => {
            let message = format!("killed after its {:?}", check.timeout);
            return Judgement::inconclusive("check-timeout", message);
        }
        End::Limited => return Judgement::inconclusive("check-killed", "killed for a limit"),
        End::Cancelled => return Judgement::inconclusive("check-cancelled", "cancelled"),
        End::Signalled(signal) => {
            return Judgement::inconclusive("check-killed", format!("ended by signal {signal}{}", said()));
        }
        End::Exited(code) => *code,
    };
    // What setpriv says of itself comes before the step exists.
    if launcher.setpriv.is_some() && ran.stderr.head.starts_with(b"setpriv: ") {
        let missing = ran.stderr.head.starts_with(b"setpriv: failed to execute");
        let reason = if missing { "program-missing" } else { "isolation-failed" };
        return Judgement::inconclusive(reason, said().trim_start_matches(": ").to_owned());
    }
    if let Some(line) = ran.found.retry() {
        return Judgement::inconclusive(HOST_NAME_ERROR, line);
    }
    if let Some((index, line)) = ran.found.inconclusive(patterns) {
        return Judgement::inconclusive(&check.inconclusive_patterns[index].reason, line);
    }
    if let Some((index, line)) = ran.found.fail(patterns) {
        return fail(&check.fail_patterns[index].reason, line.into());
    }
    if let Some(rule) = check.inconclusive_exit.iter().find(|rule| rule.code == code) {
        return Judgement::inconclusive(&rule.reason, format!("exit code {code}{}", said()));
    }
    if check.is_fail_exit(code) {
        // A bare exit code, and words of something that was in the way: it may have failed for that.
        if let Some((reason, line)) = ran.found.refused(patterns) {
            return Judgement::inconclusive(reason, format!("exit code {code}, and it says: {line}"));
        }
        return fail("damage-found", format!("exit code {code}{}", said()));
    }
    if !check.pass_exit.contains(&code) {
        return Judgement::inconclusive("unexpected-exit", format!("exit code {code}{}", said()));
    }
    let unmatched = ran.found.unmatched(patterns);
    if let Some(index) = unmatched.first() {
        let message =
            format!("exit code {code}, but no line matches '{}'", check.must_match[*index].as_str());
        return Judgement::inconclusive("unexpected-output", message);
    }
    if ran.output_open {
        return Judgement::inconclusive("output-incomplete", "a process of the check did not end with it");
    }
    if ran.found.overlong {
        return Judgement::inconclusive(
            "output-too-long",
            format!("a line has more than {MAX_LINE_BYTES} bytes"),
        );
    }
    Judgement { outcome: Outcome::Pass, reason: "check-passed".into(), message: format!("exit code {code}") }
}
