//! Commands for all repositories, one after the other.

use std::{
    process::ExitCode,
    sync::{Mutex, PoisonError},
};

use super::{CommandError, EXIT_NOT_RUN, output, print, show_error};
use crate::config::no_such_repository;

/// The aliases of the repositories of this host's configuration, with their names.
static ALIASES: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// From now on these aliases stand for these names.
pub fn know_aliases<'a>(repositories: impl Iterator<Item = (&'a Option<String>, &'a String)>) {
    let known = repositories.filter_map(|(alias, name)| Some((alias.clone()?, name.clone())));
    *ALIASES.lock().unwrap_or_else(PoisonError::into_inner) = known.collect();
}

/// The name for which an operator's word stands: itself, unless it is an alias.
pub fn real_name(word: &str) -> String {
    let aliases = ALIASES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = aliases.iter().find(|(alias, _)| alias == word);
    known.map_or(word, |(_, name)| name).to_owned()
}

/// How bad an exit code is: a FAIL is the worst.
fn badness(code: u8) -> u8 {
    match code {
        0 => 0,
        3 => 1,
        EXIT_NOT_RUN => 2,
        1 => 4,
        _ => 3,
    }
}

/// What came of each.
#[derive(Debug)]
pub struct Each {
    json: bool,
    worst: u8,
}

impl Each {
    /// Of none so far.
    pub fn new(json: bool) -> Self {
        Self { json, worst: 0 }
    }

    /// Begins with a repository: a line for people, a field for programs.
    pub fn begin(&mut self, repository: &str) {
        output::of_repository(Some(repository));
        if !self.json {
            print(&format!("{repository}:\n"));
        }
    }

    /// What came of it. An error does not keep the others from their turn.
    pub fn end(&mut self, done: Result<ExitCode, CommandError>) {
        let code = match done {
            Ok(code) => (0..=u8::MAX).find(|number| ExitCode::from(*number) == code).unwrap_or(EXIT_NOT_RUN),
            Err(error) => {
                let exit = error.exit;
                show_error(&error);
                exit
            }
        };
        output::of_repository(None);
        if badness(code) > badness(self.worst) {
            self.worst = code;
        }
    }

    /// The worst of all.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.worst)
    }
}

/// The names that there are.
pub fn names<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    names.map(str::to_owned).collect()
}

/// Refuses a name that is none of those that are known.
///
/// # Errors
/// With those that are.
pub fn refuse_unknown(name: &str, place: &str, known: &[String]) -> Result<(), CommandError> {
    if known.iter().any(|it| it == name) {
        return Ok(());
    }
    Err(CommandError::usage(no_such_repository(name, place))
        .hint(format!("the repositories are: {}", known.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_all_is_the_exit_code_and_one_error_stops_no_other() {
        let mut each = Each::new(true);
        assert_eq!(each.code(), ExitCode::SUCCESS);
        for (done, worst) in [
            (Ok(ExitCode::from(3)), 3),
            (Err(CommandError::not_run("away")), 4),
            (Ok(ExitCode::SUCCESS), 4),
            (Ok(ExitCode::from(1)), 1),
            (Ok(ExitCode::from(3)), 1),
        ] {
            each.begin("r");
            each.end(done);
            assert_eq!(each.code(), ExitCode::from(worst));
        }
    }

    #[test]
    fn a_name_that_is_none_is_refused_with_those_that_are() {
        let known = names(["a", "b"].into_iter());
        assert!(refuse_unknown("a", "here", &known).is_ok());
        let error = refuse_unknown("c", "here", &known).expect_err("unknown");
        assert_eq!((error.exit, error.hint.as_deref()), (2, Some("the repositories are: a, b")));
    }
}
