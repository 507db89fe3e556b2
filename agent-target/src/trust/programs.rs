//! The files that a check runs, as this host has them.
//!
//! A negative control proves the programs that it ran. When a package is upgraded, or somebody puts another script under the same path, the check
//! is another one: its digest changes, the control of before is a control of another checker, and a new one follows by itself.
//!
//! Looked at is what the profile's commands name: programs by their path or by their name, scripts and other files among the arguments, and the
//! programs in a folder that is an argument (`%v` in it stands for any version). Not looked at: what those programs start or load themselves,
//! and what lies in the copy, which is part of the generation.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, Metadata, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use assay_common::{
    digest::ContentDigest,
    profile::{Profile, Scope, Value},
};
use rustix::fs::OFlags;

use crate::{
    check::{find_program, is_shown},
    config::{self, IsolationPolicy},
};

/// The contents of larger files are not read: they are data, or an image whose time must do.
const MAX_BYTES: u64 = 256 << 20;
/// A folder with more programs than this is one of the system.
const MAX_PROGRAMS: usize = 256;
/// In a folder's path, the version of the engine.
const VERSION: &str = "%v";
/// Programs that this program brings itself: what signs the verdicts runs them, so that its version names them.
const HELPER: &str = "{helper}";

/// A file as it was when it was read last: any change of its content changes one of these.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// Digests of files, which are read again only when their stamp differs.
static KNOWN: Mutex<BTreeMap<PathBuf, (Stamp, ContentDigest)>> = Mutex::new(BTreeMap::new());

/// Digest of all the files that the check of a repository runs.
pub(crate) fn digest(repository: &config::Repository) -> ContentDigest {
    let has_sandbox = repository.isolation == IsolationPolicy::Require;
    let is_shown = |path: &Path| !has_sandbox || is_shown(path, &repository.profile.sandbox.visible);
    let mut hasher = blake3::Hasher::new();
    if repository.profile.checks.iter().any(|check| check.argv.iter().any(|text| text.contains(HELPER))) {
        hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
    }
    for path in files(&repository.profile, &repository.vars).into_iter().filter(|path| is_shown(path)) {
        let Some(content) = content(&path) else { continue };
        let name = path.as_os_str().as_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name).update(&content.0);
    }
    ContentDigest(*hasher.finalize().as_bytes())
}

/// The paths that the commands of a profile name.
fn files(profile: &Profile, given: &BTreeMap<String, Value>) -> BTreeSet<PathBuf> {
    let value = |(name, variable): (&String, &assay_common::profile::Variable)| {
        Some((name.clone(), given.get(name).or(variable.default.as_ref())?.clone()))
    };
    let mut scope = Scope { vars: profile.vars.iter().filter_map(value).collect(), ..Default::default() };
    let mut found = BTreeSet::new();
    for check in &profile.checks {
        let members = check.for_each.as_ref().and_then(|name| Some((name, scope.vars.get(name)?.clone())));
        let runs = members.map_or_else(Vec::new, |(name, list)| {
            list.texts().iter().map(|text| Some((name.clone(), Value::Text(text.clone())))).collect()
        });
        let runs = if runs.is_empty() { vec![None] } else { runs };
        for run in runs {
            let of_all = run.as_ref().and_then(|(name, _)| scope.vars.get(name).cloned());
            if let Some((name, member)) = run.clone() {
                scope.vars.insert(name, member);
            }
            for text in &check.argv {
                // What holds the copy's roots and the like has no value here: it is the generation's.
                for word in scope.expand_list(std::slice::from_ref(text)).unwrap_or_default() {
                    add(&word, &mut found);
                }
            }
            if let (Some((name, _)), Some(list)) = (run, of_all) {
                scope.vars.insert(name, list);
            }
        }
    }
    found
}

/// Adds the files that a word of a command names.
fn add(word: &OsStr, found: &mut BTreeSet<PathBuf>) {
    let bytes = word.as_bytes();
    // `--program=/usr/bin/x`
    let after = bytes.iter().position(|byte| *byte == b'=').filter(|_| bytes.starts_with(b"-"));
    let word = after.map_or(word, |at| OsStr::from_bytes(&bytes[at + 1..]));
    let path = Path::new(word);
    if !path.is_absolute() {
        let is_name = !word.is_empty() && word.len() <= 255 && !word.as_bytes().contains(&b'/');
        found.extend(is_name.then(|| find_program(word)).flatten());
        return;
    }
    for path in versions(path) {
        match fs::metadata(&path) {
            Ok(stat) if stat.is_file() => {
                found.insert(path);
            }
            Ok(stat) if stat.is_dir() => found.extend(programs_in(&path)),
            _ => {}
        }
    }
}

/// The paths that a path with a version in it may stand for.
fn versions(path: &Path) -> Vec<PathBuf> {
    let Some((before, after)) = path.to_str().and_then(|text| text.split_once(VERSION)) else {
        return vec![path.to_owned()];
    };
    let (folder, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let names = fs::read_dir(format!("{folder}/")).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let fits =
        |name: &String| name.strip_prefix(prefix).is_some_and(|version| version.parse::<u32>().is_ok());
    // What stands behind the version begins with a slash, or is nothing.
    let mut found: Vec<_> =
        names.filter(fits).map(|name| PathBuf::from(format!("{folder}/{name}{after}"))).collect();
    found.sort();
    found
}

fn programs_in(folder: &Path) -> Vec<PathBuf> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|stat| stat.is_file() && stat.permissions().mode() & 0o111 != 0)
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let found: Vec<_> = entries.map(|entry| entry.path()).filter(is_program).take(MAX_PROGRAMS + 1).collect();
    if found.len() > MAX_PROGRAMS { Vec::new() } else { found }
}

/// Digest of a file's content; of what is known of it where it cannot or need not be read. `None` when it is not there.
fn content(path: &Path) -> Option<ContentDigest> {
    let stamp = stamp(&fs::metadata(path).ok()?);
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied();
    if let Some((_, digest)) = known.filter(|(known, _)| *known == stamp) {
        return Some(digest);
    }
    let read = read(path, stamp);
    let digest = read.unwrap_or_else(|_| ContentDigest::of(format!("{stamp:?}").as_bytes()));
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), (stamp, digest));
    Some(digest)
}

fn read(path: &Path, stamp: Stamp) -> io::Result<ContentDigest> {
    // Something else may have taken the path since: nobody waits at a FIFO.
    let file =
        OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    if self::stamp(&file.metadata()?) != stamp {
        return Err(io::Error::other("it was exchanged while it was looked at"));
    }
    if stamp.2 > MAX_BYTES {
        return Err(io::Error::other("it is too large"));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&file)?;
    Ok(ContentDigest(*hasher.finalize().as_bytes()))
}

fn stamp(stat: &Metadata) -> Stamp {
    (stat.dev(), stat.ino(), stat.len(), (stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(argv: &str) -> Profile {
        let text = format!(
            "name = 'x'\ndescription = 'x'\nversion = '1'\ndepth = 'L1'\n[vars.check]\nlist = true\nmeaning = 'x'\ndefault = ['true']\n\
             [[check]]\nname = 'x'\nargv = {argv}\nfail_exit = [1]\n"
        );
        Profile::parse(Path::new("x.toml"), &text).expect("valid")
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).expect("write");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    #[test]
    fn programs_scripts_and_folders_of_programs_are_found_in_a_command() {
        let host = tempfile::tempdir().expect("temp");
        let path = |name: &str| host.path().join(name);
        for folder in ["15/bin", "17/bin", "x/bin"] {
            fs::create_dir_all(path(folder)).expect("mkdir");
            write(&path(folder).join("server"), folder);
            fs::write(path(folder).join("notes"), "no program").expect("write");
        }
        write(&path("script"), "exit 0");
        let at = host.path().display();
        let argv = format!(
            "['sh', '-c', '{at}/script with more', '{at}/script', '{{root}}/bin/own', '--programs={at}/%v/bin', '{at}/absent', '{{var.check}}']"
        );
        let found = files(&profile(&argv), &BTreeMap::new());
        let own: Vec<_> = found.iter().filter(|it| it.starts_with(host.path())).collect();
        assert_eq!(own, [&path("15/bin/server"), &path("17/bin/server"), &path("script")]);
        let names: Vec<_> = found.iter().filter_map(|it| it.file_name()?.to_str()).collect();
        assert!(names.contains(&"sh") && names.contains(&"true") && !names.contains(&"own"), "{names:?}");
        let given = BTreeMap::from([("check".to_owned(), Value::List(vec!["false".to_owned()]))]);
        let found = files(&profile(&argv), &given);
        assert!(found.iter().any(|it| it.ends_with("false")) && !found.iter().any(|it| it.ends_with("true")));
    }

    /// Other content, under the same path and of the same length, is another program; the same content again is the first one.
    #[test]
    fn a_program_that_was_exchanged_is_another() {
        let host = tempfile::tempdir().expect("temp");
        let script = host.path().join("script");
        write(&script, "exit 0\n");
        let first = content(&script);
        assert_eq!(content(&script), first);
        write(&host.path().join("other"), "exit 1\n");
        fs::rename(host.path().join("other"), &script).expect("rename");
        let second = content(&script);
        assert_ne!(second, first);
        write(&script, "exit 0\n");
        assert_eq!(content(&script), first);
        fs::remove_file(&script).expect("remove");
        assert_eq!(content(&script), None);
    }
}
