//! What the steps of a check would not find on this host, found without running them.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use assay_common::profile::{Check, Value};

use super::{SEARCH_PATH, sandbox};
use crate::userns::Account;

/// A first line that names an interpreter is looked for within this many bytes, as the kernel does.
const SCRIPT_HEAD: usize = 256;
/// A script's interpreter may be a script in turn, this often.
const MAX_INTERPRETERS: usize = 4;

/// What a step sees of this host, and who it is here.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Shown read-only beside what every sandbox shows; `None` where steps run without a sandbox.
    pub(crate) visible: Option<Vec<PathBuf>>,
    /// Who the step is on this host; `None` where it is the agent's own user.
    pub(crate) account: Option<Account>,
    /// Where the roots appear: what is there comes from the copy.
    pub(crate) live: Vec<PathBuf>,
}

/// Why a step would not find or run a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    /// What is wrong.
    pub(crate) found: String,
    /// What to do.
    pub(crate) remedy: String,
}

impl Lack {
    fn missing(program: &Path) -> Self {
        let found = format!("{} is not there, or cannot be run", program.display());
        Self { found, remedy: "install it on this host".to_owned() }
    }

    fn hidden(path: &Path, by: &Path) -> Self {
        let seen = if path == by { String::new() } else { format!(" (through {})", by.display()) };
        let folder = by.parent().unwrap_or(by).display();
        Self {
            found: format!(
                "{} is on this host, and the sandbox of the check does not show it{seen}",
                path.display()
            ),
            remedy: format!("name its folder in a profile of your own: [sandbox] visible = [\"{folder}\"]"),
        }
    }

    fn refused(path: &Path, at: &Path, account: Account) -> Self {
        let Account { uid, gid } = account;
        Self {
            found: format!(
                "{} cannot be run by the user of checks (uid {uid}, gid {gid}): the mode of {} refuses it",
                path.display(),
                at.display()
            ),
            remedy: format!("chmod o+rx {}", at.display()),
        }
    }
}

/// The command of a step with its variables filled in. What stays in braces comes from the copy or the run.
pub(crate) fn words(argv: &[String], vars: &BTreeMap<String, Value>) -> Vec<String> {
    let mut words = Vec::new();
    for text in argv {
        let name = text.strip_prefix("{var.").and_then(|rest| rest.strip_suffix('}'));
        if let Some(value) = name.and_then(|name| vars.get(name)) {
            words.extend_from_slice(value.texts());
            continue;
        }
        let mut word = text.clone();
        for (name, value) in vars {
            if let Value::Text(value) = value {
                word = word.replace(&format!("{{var.{name}}}"), value);
            }
        }
        words.push(word);
    }
    words
}

impl View {
    /// The programs of a step and the files of this host that its arguments name, each with why the step would not find it.
    pub(crate) fn look_for(
        &self,
        check: &Check,
        vars: &BTreeMap<String, Value>,
    ) -> Vec<(String, Option<Lack>)> {
        let words = words(&check.argv, vars);
        let mut found = Vec::new();
        if let Some(program) = words.first().filter(|word| *word != "{helper}") {
            found.push(self.find(program));
        }
        found.extend(check.programs.iter().map(|program| self.find(program)));
        let files = words.iter().skip(1).filter(|word| word.starts_with('/') && !word.contains('{'));
        for file in files.map(Path::new).filter(|file| file.is_file()) {
            if let Some(lack) = self.lack_of_file(file) {
                found.push((file.display().to_string(), Some(lack)));
            }
        }
        found
    }

    /// A program by its name or path: where it is, and why a step would not find it.
    pub(crate) fn find(&self, program: &str) -> (String, Option<Lack>) {
        if program.contains('{') {
            return (format!("{program} of the copy"), None);
        }
        let path = Path::new(program);
        if program.contains('/') {
            return (program.to_owned(), self.lack(path, 0));
        }
        let mut first = None;
        for folder in SEARCH_PATH.split(':').map(Path::new) {
            let path = folder.join(program);
            if !path.is_file() {
                continue;
            }
            match self.lack(&path, 0) {
                None => return (path.display().to_string(), None),
                Some(lack) => first = first.or(Some((path.display().to_string(), Some(lack)))),
            }
        }
        first.unwrap_or_else(|| {
            let mut lack = Lack::missing(path);
            // The administrator's own shell may well find it.
            if let Some(elsewhere) = assay_common::cli::doctor::find_program(path) {
                let found = format!(
                    "{program} is {}, and checks look for programs in {SEARCH_PATH} only",
                    elsewhere.display()
                );
                lack = Lack {
                    found,
                    remedy: "give its absolute path, and show its folder to the sandbox".to_owned(),
                };
            }
            (program.to_owned(), Some(lack))
        })
    }

    /// Why a step would not find a file that it is told to read.
    fn lack_of_file(&self, file: &Path) -> Option<Lack> {
        if self.live.iter().any(|live| file.starts_with(live)) {
            return None;
        }
        let visible = self.visible.as_ref()?;
        sandbox::locate(file, visible).err().map(|hidden| Lack::hidden(file, &hidden))
    }

    fn lack(&self, path: &Path, depth: usize) -> Option<Lack> {
        if self.live.iter().any(|live| path.starts_with(live)) {
            return None;
        }
        if assay_common::cli::doctor::find_program(path).is_none() {
            return Some(Lack::missing(path));
        }
        let (real, shown) = match &self.visible {
            Some(visible) => match sandbox::locate(path, visible) {
                Ok(place) => place,
                Err(hidden) => return Some(Lack::hidden(path, &hidden)),
            },
            None => (fs::canonicalize(path).ok()?, PathBuf::from("/")),
        };
        if let Some(account) = self.account
            && let Some(at) = refuses(&real, &shown, account)
        {
            return Some(Lack::refused(path, &at, account));
        }
        let interpreter = interpreter(&real)?;
        if depth >= MAX_INTERPRETERS {
            return None;
        }
        let lack = match interpreter {
            Interpreter::Path(interpreter) => self.lack(&interpreter, depth + 1),
            Interpreter::Name(name) => self.find(&name).1,
        };
        lack.map(|lack| Lack {
            found: format!("{} needs an interpreter: {}", path.display(), lack.found),
            ..lack
        })
    }
}

/// The part of `real`, from `shown` on, whose mode keeps this user from running it.
fn refuses(real: &Path, shown: &Path, account: Account) -> Option<PathBuf> {
    let ways: Vec<_> = real.ancestors().take_while(|part| part.starts_with(shown)).collect();
    ways.into_iter()
        .rev()
        .find(|part| {
            let Ok(stat) = part.metadata() else { return true };
            let shift = match (stat.uid() == account.uid, stat.gid() == account.gid) {
                (true, _) => 6,
                (false, true) => 3,
                (false, false) => 0,
            };
            let has_acl = || {
                rustix::fs::getxattr(*part, "system.posix_acl_access", &mut [0_u8; 0])
                    .is_ok_and(|size| size > 0)
            };
            (stat.mode() >> shift) & 1 == 0 && !has_acl()
        })
        .map(Path::to_owned)
}

enum Interpreter {
    Path(PathBuf),
    /// What env(1) looks for.
    Name(String),
}

/// What a script's first line names.
fn interpreter(script: &Path) -> Option<Interpreter> {
    let mut head = Vec::new();
    fs::File::open(script).ok()?.take(SCRIPT_HEAD as u64).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let first = Path::new(OsStr::from_bytes(words.next()?));
    if first.file_name() == Some(OsStr::new("env")) {
        let name =
            words.map(String::from_utf8_lossy).find(|word| !word.starts_with('-') && !word.contains('='));
        return name.map(|name| Interpreter::Name(name.into_owned()));
    }
    first.is_absolute().then(|| Interpreter::Path(first.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn program(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().expect("folder")).expect("mkdir");
        fs::write(path, text).expect("write");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    fn open_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("temp");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        folder
    }

    fn sandboxed(visible: &[&Path]) -> View {
        View { visible: Some(visible.iter().map(PathBuf::from).collect()), ..View::default() }
    }

    fn lack(view: &View, path: &Path) -> Option<String> {
        view.find(path.to_str().expect("UTF-8")).1.map(|lack| lack.found)
    }

    #[test]
    fn a_program_that_the_sandbox_does_not_show_is_found_by_whatever_way_it_is_hidden() {
        let host = open_folder();
        let (tools, links) = (host.path().join("tools"), host.path().join("links"));
        program(&tools.join("checker"), "#!/bin/sh\nexit 0\n");
        fs::create_dir(&links).expect("mkdir");
        symlink(tools.join("checker"), links.join("checker")).expect("symlink");
        symlink(&tools, host.path().join("current")).expect("symlink");
        symlink("../tools/checker", links.join("relative")).expect("symlink");
        for hidden in [tools.join("checker"), links.join("checker"), links.join("relative")] {
            let found = lack(&sandboxed(&[]), &hidden).expect("hidden");
            assert!(found.contains("does not show it"), "{found}");
        }
        // A link that is shown leads to a folder that is not.
        let found = lack(&sandboxed(&[&links]), &links.join("checker")).expect("hidden");
        assert!(found.ends_with(&format!("(through {})", tools.join("checker").display())), "{found}");
        assert!(
            lack(&sandboxed(&[&host.path().join("current")]), &host.path().join("current/checker")).is_some()
        );
        for visible in [vec![tools.as_path(), &links], vec![host.path()]] {
            for shown in [tools.join("checker"), links.join("checker"), links.join("relative")] {
                assert_eq!(lack(&sandboxed(&visible), &shown), None, "{}", shown.display());
            }
        }
        // Without a sandbox everything is seen, and what the copy brings is the copy's.
        assert_eq!(lack(&View::default(), &links.join("checker")), None);
        let live = View { live: vec![host.path().to_owned()], ..sandboxed(&[]) };
        assert_eq!(lack(&live, &tools.join("checker")), None);
        assert_eq!(sandboxed(&[]).find("sh").1, None);
        assert!(
            sandboxed(&[])
                .find("no-such-program-anywhere")
                .1
                .expect("missing")
                .found
                .contains("is not there")
        );
    }

    #[test]
    fn an_interpreter_that_is_not_there_or_not_shown_is_found() {
        let host = open_folder();
        for (line, is_found) in [
            ("#!/bin/sh", true),
            ("#!/usr/bin/env sh", true),
            ("#! /usr/bin/env -S A=1 sh -e", true),
            ("#!/no/such/interpreter", false),
            ("#!/usr/bin/env no-such-interpreter", false),
        ] {
            program(&host.path().join("checker"), &format!("{line}\nexit 0\n"));
            let found = lack(&sandboxed(&[host.path()]), &host.path().join("checker"));
            assert_eq!(found.is_none(), is_found, "{line}: {found:?}");
        }
        let elsewhere = open_folder();
        program(&elsewhere.path().join("python"), "#!/bin/sh\n");
        program(&host.path().join("checker"), &format!("#!{}/python\n", elsewhere.path().display()));
        let found = lack(&sandboxed(&[host.path()]), &host.path().join("checker")).expect("hidden");
        assert!(found.contains("needs an interpreter") && found.contains("does not show it"), "{found}");
    }

    #[test]
    fn a_program_that_the_user_of_checks_may_not_run_is_found() {
        let host = open_folder();
        let file = host.path().join("tools/checker");
        program(&file, "#!/bin/sh\n");
        let account = Account { uid: 65_530, gid: 65_530 };
        let view = View { account: Some(account), ..sandboxed(&[host.path()]) };
        fs::set_permissions(host.path().join("tools"), fs::Permissions::from_mode(0o755)).expect("chmod");
        assert_eq!(lack(&view, &file), None);
        for (path, mode) in [(&file, 0o750), (&host.path().join("tools"), 0o700)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
            let found = lack(&view, &file).expect("refused");
            assert!(found.contains(&format!("the mode of {} refuses it", path.display())), "{found}");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
    }

    #[test]
    fn files_that_arguments_name_must_be_shown_too() {
        let host = open_folder();
        program(&host.path().join("check.sh"), "exit 0\n");
        let script = host.path().join("check.sh").display().to_string();
        let vars =
            BTreeMap::from([("check".to_owned(), Value::List(vec!["/bin/sh".to_owned(), script.clone()]))]);
        let profile = assay_common::profile::Profile::builtin("generic").expect("built in");
        let lacks = |view: &View| {
            let found = view.look_for(&profile.checks[0], &vars);
            found.into_iter().filter(|(_, lack)| lack.is_some()).map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(lacks(&sandboxed(&[])), [script]);
        assert_eq!(lacks(&sandboxed(&[host.path()])), [] as [String; 0]);
    }
}
