//! Where missing and broken objects stand in the history: a path, and a commit that needs it.
//!
//! An object's digest says nothing to a person. The search costs about as much as another walk over the history, so it is
//! made only where damage was found, and ends after a while: damage without a place is damage all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::{LazyLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use regex::Regex;

use super::{Git, view::View};

/// A search ends after this.
const PATIENCE: Duration = Duration::from_secs(120);
/// Objects whose places are looked for.
const MAX_OBJECTS: usize = 100;

static MISSING: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^missing \S+ ([0-9a-f]{40,64}) \((.+)\)$").expect("it is tested"));
static OBJECT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\b(?:[0-9a-f]{64}|[0-9a-f]{40})\b").expect("it is tested"));
/// A loose object's file.
static LOOSE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"objects/([0-9a-f]{2})/([0-9a-f]{38}(?:[0-9a-f]{24})?)\b").expect("it is tested")
});

/// The objects that lines name.
pub(super) fn objects<'a>(lines: impl IntoIterator<Item = &'a String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in lines {
        found.extend(OBJECT.find_iter(line).map(|it| it.as_str().to_owned()));
        found.extend(LOOSE.captures_iter(line).map(|it| format!("{}{}", &it[1], &it[2])));
        if found.len() >= MAX_OBJECTS {
            break;
        }
    }
    found
}

/// A sentence about where each of these objects is needed, for as many as are found.
pub(super) fn find(git: &Git, view: &View, wanted: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut places = BTreeMap::new();
    if wanted.is_empty() {
        return places;
    }
    let until = Instant::now() + PATIENCE;
    // Missing objects, by names that lead to them from a reference, or from a reflog where nothing else does.
    for reflogs in [&["--no-reflogs"][..], &[]] {
        let mut fsck = git.command(view);
        fsck.args(["fsck", "--connectivity-only", "--name-objects", "--no-dangling", "--no-progress"])
            .args(reflogs);
        each_line(fsck, until, |line| {
            if let Some(found) = MISSING.captures(line).filter(|found| wanted.contains(&found[1])) {
                places.entry(found[1].to_owned()).or_insert_with(|| named(git, view, &found[2]));
            }
            places.len() < wanted.len()
        });
        if places.len() == wanted.len() {
            break;
        }
    }
    // Objects that are there and broken, by a walk that says a path with each.
    if places.len() < wanted.len() {
        let mut walk = git.command(view);
        walk.args(["rev-list", "--objects", "--in-commit-order", "--missing=allow-any", "--all", "--reflog"]);
        let mut commit = String::new();
        each_line(walk, until, |line| {
            match line.split_once(' ') {
                None => line.clone_into(&mut commit),
                Some((object, path)) if wanted.contains(object) && !places.contains_key(object) => {
                    let path = if path.is_empty() {
                        "the top folder".to_owned()
                    } else {
                        format!("the path {path}")
                    };
                    places.insert(object.to_owned(), format!("{path} of commit {commit} needs it"));
                }
                Some(_) => {}
            }
            places.len() < wanted.len()
        });
    }
    places
}

/// What a name such as `refs/heads/main~3:dir/file` says.
fn named(git: &Git, view: &View, name: &str) -> String {
    let Some((start, path)) = name.split_once(':') else {
        return format!("{name} leads to it");
    };
    if start.is_empty() {
        return format!("the path {path} of the index needs it");
    }
    let mut parse = git.command(view);
    parse.args(["rev-parse", "--verify", "--quiet", "--end-of-options", start]).stderr(Stdio::null());
    let commit =
        parse.output().map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned()).unwrap_or_default();
    let path = if path.is_empty() { "the top folder".to_owned() } else { format!("the path {path}") };
    if commit.is_empty() {
        format!("{path} of {start} needs it")
    } else {
        format!("{path} of commit {commit} ({start}) needs it")
    }
}

/// Gives each line of a command's output to `take`, until it has enough or the time is over.
fn each_line(mut command: Command, until: Instant, mut take: impl FnMut(&str) -> bool) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return };
    let (sender, lines) = mpsc::sync_channel(1024);
    if let Some(out) = child.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
    }
    while let Ok(line) = lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if !take(&line) {
            break;
        }
    }
    // It may have ended by itself.
    drop(child.kill());
    drop(child.wait());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_by_their_names_and_by_their_files() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let lines = [
            format!("missing blob {a}"),
            format!("error: hash mismatch for objects/bb/{} (expected {b})", &b[2..]),
            "error: inflate: data stream error".to_owned(),
            format!("error: unable to unpack header of objects/cc/{}", "c".repeat(38)),
        ];
        assert_eq!(objects(&lines), BTreeSet::from([a, b, "c".repeat(40)]));
    }
}
