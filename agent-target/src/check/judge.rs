//! How a step is read: its end, what it said, its exit code, in this order.

use std::path::Path;

use assay_common::profile::{Check, TemplateError};

use super::{
    HOST_NAME_ERROR, MAX_LINE_BYTES, Outcome,
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

/// True for a line with the checker's version, or about what it looked at: it says nothing of what it found.
fn says_what_was_looked_at(check: &Check, line: &[u8]) -> bool {
    let not_covered = check.not_covered_patterns.iter().map(|rule| &rule.pattern);
    let mut patterns = check.engine_version.iter().chain(&check.parts_checked).chain(not_covered);
    patterns.any(|pattern| pattern.regex().is_match(line))
}

/// Reads a step by the rules of [`Check`]. `by_setpriv` is true when setpriv(1) started it.
pub(super) fn judge(
    check: &Check,
    patterns: &Patterns,
    ran: &Ran,
    bounds: &Bounds,
    by_setpriv: bool,
) -> Judgement {
    let fail =
        |reason: &str, message: String| Judgement { outcome: Outcome::Fail, reason: reason.into(), message };
    let said = || {
        let stream = if ran.stderr.bytes > 0 { &ran.stderr } else { &ran.stdout };
        let mut lines = stream.head.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let line = lines.find(|line| !says_what_was_looked_at(check, line));
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
    // What these say of themselves comes before the step exists.
    let starters: [&[u8]; 2] = [b"setpriv: ", b"nsenter: "];
    if by_setpriv && starters.iter().any(|it| ran.stderr.head.starts_with(it)) {
        let missing = ran.stderr.head.starts_with(b"setpriv: failed to execute");
        let reason = if missing { "program-missing" } else { "isolation-failed" };
        return Judgement::inconclusive(reason, said().trim_start_matches(": ").to_owned());
    }
    if let Some(line) = ran.found.retry(patterns) {
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

/// Says of a program that the check did not find, and that this host has, how the check gets to see it.
pub(super) fn name_hidden_program(judgement: Judgement, program: &Path) -> Judgement {
    let is_there = || program.is_absolute() && program.metadata().is_ok_and(|found| found.is_file());
    if judgement.reason != "program-missing" || !is_there() {
        return judgement;
    }
    let folder = program.parent().unwrap_or(program).display();
    let message = format!(
        "{}\nHINT: {} is on this host, and no check sees that folder: name it, and what the program needs beside it, in a profile of \
         your own: [sandbox] visible = [\"{folder}\"]",
        judgement.message,
        program.display()
    );
    Judgement { message, ..judgement }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use assay_common::profile::{Limits, Profile};

    use super::{
        super::output::{Capture, Captured, Found},
        *,
    };

    /// A program of this host outside of the folders that a check sees is not called missing alone.
    #[test]
    fn a_program_that_the_check_does_not_see_is_named_with_the_setting() {
        let missing = || Judgement::inconclusive("program-missing", "not found");
        let folder = tempfile::tempdir().expect("temp");
        let program = folder.path().join("checker");
        assert_eq!(name_hidden_program(missing(), &program).message, "not found");
        std::fs::write(&program, "").expect("write");
        let text = name_hidden_program(missing(), &program).message;
        let setting = format!("[sandbox] visible = [\"{}\"]", folder.path().display());
        assert!(text.starts_with("not found\nHINT: ") && text.ends_with(&setting), "{text}");
        let other = Judgement::inconclusive("unexpected-exit", "exit code 3");
        assert_eq!(name_hidden_program(other, &program).message, "exit code 3");
    }

    /// A step that ended with `code` after it had said this.
    fn ran(check: &Check, code: i32, stdout: &str, stderr: &str) -> (Arc<Patterns>, Ran) {
        let patterns = Arc::new(Patterns::new(check).expect("patterns"));
        let capture = |text: &str| -> (Captured, Found) {
            let mut capture = Capture::new(Arc::clone(&patterns), 1 << 16);
            capture.push(text.as_bytes());
            capture.finish()
        };
        let (out, err) = (capture(stdout), capture(stderr));
        let ran = Ran {
            end: End::Exited(code),
            limit: None,
            stdout: out.0,
            stderr: err.0,
            found: out.1.merge(err.1),
            output_open: false,
            duration: Duration::ZERO,
        };
        (patterns, ran)
    }

    fn check(keys: &str) -> Check {
        let head = "name = 'x'\ndescription = 'x'\nversion = '1'\ndepth = 'L0'\n\
                    [[patch]]\nfile = 'f'\nkind = 'key-value'\nkey = 'K'\nvalues = ['v']\n\
                    [[check]]\nname = 'x'\nargv = ['x']\nfail_exit = [1]\n";
        let text = format!("{head}{keys}");
        let profile = Profile::parse(Path::new("x.toml"), &text).unwrap_or_else(|error| panic!("{error}"));
        profile.checks.into_iter().next().expect("one")
    }

    fn judged(check: &Check, by_setpriv: bool, (patterns, ran): (Arc<Patterns>, Ran)) -> Judgement {
        judge(check, &patterns, &ran, &Bounds::of(&Limits::default()), by_setpriv)
    }

    fn told(keys: &str, code: i32, stdout: &str, stderr: &str) -> (Outcome, String, String) {
        let check = check(keys);
        let judged = judged(&check, true, ran(&check, code, stdout, stderr));
        (judged.outcome, judged.reason, judged.message)
    }

    const RULES: &str = "must_match = ['^begun$', '^done$']\n\
        retry_next_candidate_on = ['^unknown host']\n\
        inconclusive_patterns = [{ pattern = '^no licence', reason = 'licence' }, { pattern = '^no room', reason = 'room' }]\n\
        fail_patterns = [{ pattern = '^bad page', reason = 'page' }, { pattern = '^bad index', reason = 'index' }]\n\
        inconclusive_exit = [{ code = 3, reason = 'three' }]";

    /// What keeps a check from looking is stronger than what it says of the data; a host name is stronger than both.
    #[test]
    fn inconclusive_words_come_before_damage_and_the_next_candidate_before_all() {
        use Outcome::{Fail, Inconclusive, Pass};
        for (code, said, outcome, reason, message) in [
            (0, "begun\ndone", Pass, "check-passed", "exit code 0"),
            (0, "bad page 7\nbegun\ndone", Fail, "page", "bad page 7"),
            (0, "bad page 7\nno licence here", Inconclusive, "licence", "no licence here"),
            (1, "bad page 7\nno licence\nunknown host x", Inconclusive, HOST_NAME_ERROR, "unknown host x"),
            (1, "unknown host y", Inconclusive, HOST_NAME_ERROR, "unknown host y"),
            // The second rule alone; of two, the first rule with its own line, whichever line comes first.
            (0, "bad index i", Fail, "index", "bad index i"),
            (0, "bad index i\nbad page 7", Fail, "page", "bad page 7"),
            (0, "no room", Inconclusive, "room", "no room"),
            (0, "no room\nno licence", Inconclusive, "licence", "no licence"),
            // A pattern of damage is stronger than an exit code that says that nothing was looked at.
            (3, "bad page 7", Fail, "page", "bad page 7"),
            (3, "begun\ndone", Inconclusive, "three", "exit code 3: begun"),
            (1, "begun\ndone", Fail, "damage-found", "exit code 1: begun"),
            (7, "begun\ndone", Inconclusive, "unexpected-exit", "exit code 7: begun"),
        ] {
            let told = told(RULES, code, said, "");
            assert_eq!(
                (told.0, told.1.as_str(), told.2.as_str()),
                (outcome, reason, message),
                "{code} {said:?}"
            );
        }
    }

    /// A rule with a group says which part of its line is for people.
    #[test]
    fn the_group_of_a_rule_is_what_is_quoted() {
        let keys = "fail_patterns = [{ pattern = '^damage: (.*)$', reason = 'damage-found' }]";
        assert_eq!(told(keys, 1, "so far\ndamage: page 7 is bad", "").2, "page 7 is bad");
    }

    #[test]
    fn each_of_several_patterns_must_match() {
        for (said, missing) in [("begun", "^done$"), ("done", "^begun$"), ("", "^begun$")] {
            let (outcome, reason, message) = told(RULES, 0, said, "");
            assert_eq!((outcome, reason.as_str()), (Outcome::Inconclusive, "unexpected-output"), "{said}");
            assert_eq!(message, format!("exit code 0, but no line matches '{missing}'"));
        }
        // One on each stream.
        assert_eq!(told(RULES, 0, "begun", "done").0, Outcome::Pass);
    }

    /// Some process still holds the output: what it will say may be of damage.
    #[test]
    fn output_that_is_kept_open_is_never_a_pass() {
        let check = check(RULES);
        let (patterns, mut open) = ran(&check, 0, "begun\ndone", "");
        open.output_open = true;
        let told = judged(&check, false, (patterns, open));
        assert_eq!((told.outcome, told.reason.as_str()), (Outcome::Inconclusive, "output-incomplete"));
        let (patterns, mut open) = ran(&check, 0, "bad page 7", "");
        open.output_open = true;
        assert_eq!(judged(&check, false, (patterns, open)).outcome, Outcome::Fail);
    }

    /// The first line of standard error that is not empty; standard output only where that said nothing.
    #[test]
    fn the_line_that_is_quoted() {
        for (stdout, stderr, quoted) in [
            ("out", "err\nmore", "exit code 9: err"),
            ("out", "\n  \nerr", "exit code 9: err"),
            ("\n\nout\nmore", "", "exit code 9: out"),
            ("", "", "exit code 9"),
        ] {
            assert_eq!(told("", 9, stdout, stderr).2, quoted);
        }
    }

    #[test]
    fn an_error_of_setpriv_is_about_the_user_or_the_program() {
        for (said, reason) in [
            ("setpriv: failed to execute dbcheck: No such file or directory", "program-missing"),
            ("setpriv: setresuid failed: Operation not permitted", "isolation-failed"),
            ("setpriv: activate capabilities: Operation not permitted", "isolation-failed"),
        ] {
            let (outcome, told_reason, message) = told("", 127, "", said);
            assert_eq!(
                (outcome, told_reason.as_str(), message.as_str()),
                (Outcome::Inconclusive, reason, said)
            );
        }
        // A checker that says the same on another stream, later, or without setpriv.
        let said = "setpriv: failed to execute dbcheck";
        assert_eq!(told("", 1, said, "").1, "damage-found");
        assert_eq!(told("", 1, "", &format!("first\n{said}")).1, "damage-found");
        let check = check("");
        assert_eq!(judged(&check, false, ran(&check, 1, "", said)).reason, "damage-found");
    }

    /// The first line that says something of the data, not the checker's name.
    #[test]
    fn the_headline_is_no_line_of_what_was_looked_at() {
        let rules = "engine_version = '^engine: (.*)$'\nparts_checked = '^checked (\\d+) (.*)$'";
        let said = "engine: bookck 1\nchecked 3 books\n\nb.book is damaged\n";
        assert_eq!(told(rules, 1, said, "").2, "exit code 1: b.book is damaged");
        assert_eq!(told(rules, 1, "engine: bookck 1\n", "").2, "exit code 1");
    }

    /// An exit code alone means damage only where nothing was in the way; a word of damage counts whatever was.
    #[test]
    fn a_traceback_is_no_damage() {
        let traceback = "Traceback (most recent call last):\n  File \"check.py\", line 1\nModuleNotFoundError: No module named 'x'";
        let (outcome, reason, message) = told("", 1, "", traceback);
        assert_eq!((outcome, reason.as_str()), (Outcome::Inconclusive, "checker-error"));
        assert_eq!(message, "exit code 1, and it says: Traceback (most recent call last):");
        assert_eq!(told(RULES, 1, "bad page 7", traceback).1, "page");
        assert_eq!(told("", 1, "table t is bad", "").0, Outcome::Fail);
    }
}
