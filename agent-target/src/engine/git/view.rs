//! A git directory of our own over the copy's objects and references.
//!
//! git obeys what stands in the directory that it is given: `fsck.*` settings with a list of objects to skip, programs,
//! included files, caches. This directory has a configuration of ours, into which only the format of the copy is carried over.
//! Objects, references and indexes are links to the copy's; reflogs are copied, because git does not look for any in a folder
//! that is a link. Caches (commit-graph, multi-pack index, bitmaps, reverse
//! indexes) are left out: git rebuilds them, and one that is stale or broken says nothing about the objects. Linked work trees that
//! git was creating or removing are left out too: the copy has only some of their files, and `git fsck` reports a missing `HEAD` there as an error.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::{Git, Unable};

/// `HEAD`, alternates and the like are longer than this in no repository.
const MAX_SMALL_BYTES: u64 = 1 << 20;
/// Endings of files of a pack that hold what nothing else holds.
const PACK_FILES: [&str; 5] = ["pack", "idx", "keep", "promisor", "mtimes"];

/// Settings that must be true or false for git to read a repository at all.
const SWITCHES: &str = r"^core\.(bare|filemode|symlinks|ignorecase|precomposeunicode)$";
/// Extensions that git refuses in a repository of format 0.
const ONLY_VERSION_1: [&str; 5] = [
    "extensions.objectformat",
    "extensions.compatobjectformat",
    "extensions.refstorage",
    "extensions.relativeworktrees",
    "extensions.submodulepathconfig",
];

/// Such a directory, and what was seen while it was made.
#[derive(Debug)]
pub(super) struct View {
    pub(super) path: PathBuf,
    /// Indexes of packs that have no pack.
    pub(super) lonely_indexes: Vec<String>,
    /// Caches that were left out.
    pub(super) caches: Vec<String>,
    /// Linked work trees that were left out, and why.
    pub(super) unfinished: Vec<(String, &'static str)>,
    /// A remote has promised the objects that were never fetched.
    pub(super) is_partial: bool,
    /// References are files, not tables.
    pub(super) has_loose_refs: bool,
}

/// The format of a repository, out of its configuration.
#[derive(Debug, Default)]
struct Format {
    object_format: Option<String>,
    ref_storage: Option<String>,
    is_partial: bool,
}

impl View {
    /// Makes a view of the repository at `root` in the empty folder `path`.
    pub(super) fn make(git: &Git, root: &Path, path: PathBuf) -> Result<Self, Unable> {
        for needed in ["objects", "refs"] {
            match fs::symlink_metadata(root.join(needed)) {
                Ok(found) if found.is_dir() => {}
                Ok(found) if found.is_symlink() => {
                    return Err(Unable::Elsewhere(format!(
                        "{needed} is a link, so its content is not in the copy"
                    )));
                }
                Ok(_) => return Err(Unable::NotARepository(format!("{needed} is not a folder"))),
                Err(error) => return Err(Unable::NotARepository(format!("{needed}: {error}"))),
            }
        }
        for name in ["objects", "refs", "logs", "reftable", "worktrees", "packed-refs", "shallow", "index"] {
            is_whole(root, &root.join(name))?;
        }
        let head = head(root)?.ok_or_else(|| Unable::NotARepository("HEAD is missing".to_owned()))?;
        if !is_head(&head) {
            let message = "HEAD names neither a reference nor an object, so git says: not a git repository";
            return Err(Unable::NotARepository(message.to_owned()));
        }
        let borrowed = small_file(&root.join("objects/info/alternates"))?.unwrap_or_default();
        let borrowed = String::from_utf8_lossy(&borrowed);
        if let Some(line) = borrowed.lines().find(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            return Err(Unable::Elsewhere(format!(
                "objects are borrowed from {line}, which is not in the copy"
            )));
        }
        let format = Format::read(git, root)?;
        let made = |error| Unable::Checker(format!("{}: {error}", path.display()));
        fs::create_dir_all(&path).map_err(made)?;
        fs::write(path.join("HEAD"), &head).map_err(made)?;
        fs::write(path.join("config"), format.text()).map_err(made)?;
        let mut view = Self {
            path: path.clone(),
            lonely_indexes: Vec::new(),
            caches: Vec::new(),
            unfinished: Vec::new(),
            is_partial: format.is_partial,
            has_loose_refs: format.ref_storage.is_none(),
        };
        view.link_all(root).map_err(made)?;
        view.link_worktrees(root)?;
        Ok(view)
    }

    fn link_worktrees(&mut self, root: &Path) -> Result<(), Unable> {
        let failed = |error: io::Error| Unable::Checker(format!("worktrees: {error}"));
        if !root.join("worktrees").is_dir() {
            return Ok(());
        }
        fs::create_dir(self.path.join("worktrees")).map_err(failed)?;
        for entry in fs::read_dir(root.join("worktrees")).map_err(failed)? {
            let file_name = entry.map_err(failed)?.file_name();
            let worktree = root.join("worktrees").join(&file_name);
            match unfinished(&worktree)? {
                Some(why) => {
                    self.unfinished.push((format!("worktrees/{}", file_name.to_string_lossy()), why));
                }
                None => symlink(&worktree, self.path.join("worktrees").join(&file_name)).map_err(failed)?,
            }
        }
        self.unfinished.sort();
        Ok(())
    }

    fn link_all(&mut self, root: &Path) -> io::Result<()> {
        for folder in ["refs", "reftable"] {
            self.link(root, folder, |found| found.is_dir())?;
        }
        if root.join("logs").is_dir() {
            copy_tree(&root.join("logs"), &self.path.join("logs"))?;
        }
        for file in ["packed-refs", "shallow", "index"] {
            self.link(root, file, fs::Metadata::is_file)?;
        }
        for entry in fs::read_dir(root)? {
            let name = entry?.file_name();
            if let Some(name) = name.to_str().filter(|name| name.starts_with("sharedindex.")) {
                self.link(root, name, fs::Metadata::is_file)?;
            }
        }
        fs::create_dir(self.path.join("info"))?;
        self.link(root, "info/grafts", fs::Metadata::is_file)?;
        fs::create_dir_all(self.path.join("objects/info"))?;
        fs::create_dir_all(self.path.join("objects/pack"))?;
        for cache in ["info/commit-graph", "info/commit-graphs"] {
            if root.join("objects").join(cache).exists() {
                self.caches.push("commit-graph".to_owned());
            }
        }
        for entry in fs::read_dir(root.join("objects"))? {
            let name = entry?.file_name();
            if let Some(name) = name.to_str()
                && name.len() == 2
                && name.bytes().all(|it| it.is_ascii_hexdigit())
            {
                self.link(root, &format!("objects/{name}"), |found| found.is_dir())?;
            }
        }
        self.link_packs(root)?;
        self.caches.sort();
        self.caches.dedup();
        Ok(())
    }

    fn link_packs(&mut self, root: &Path) -> io::Result<()> {
        let folder = root.join("objects/pack");
        if !folder.is_dir() {
            return Ok(());
        }
        for entry in fs::read_dir(&folder)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let ending = Path::new(name).extension().and_then(|it| it.to_str()).unwrap_or_default();
            if PACK_FILES.contains(&ending) {
                if ending == "idx" && !folder.join(name).with_extension("pack").is_file() {
                    self.lonely_indexes.push(name.to_owned());
                }
                self.link(root, &format!("objects/pack/{name}"), fs::Metadata::is_file)?;
            } else if name.starts_with("multi-pack-index") {
                self.caches.push("multi-pack index".to_owned());
            } else if ending == "bitmap" {
                self.caches.push("bitmaps".to_owned());
            } else if ending == "rev" {
                self.caches.push("reverse indexes".to_owned());
            }
        }
        self.lonely_indexes.sort();
        Ok(())
    }

    /// A link to what has this name in the copy, if it is there and of this kind. A link of the copy's is followed: none
    /// leads out of the repository.
    fn link(&self, root: &Path, name: &str, is: impl FnOnce(&fs::Metadata) -> bool) -> io::Result<()> {
        let target = root.join(name);
        match fs::metadata(&target) {
            Ok(found) if is(&found) => symlink(&target, self.path.join(name)),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A line of git's with paths as the copy has them.
    pub(super) fn shorten(&self, line: &str) -> String {
        line.replace(&format!("{}/", self.path.display()), "")
    }
}

impl Format {
    fn read(git: &Git, root: &Path) -> Result<Self, Unable> {
        let config = root.join("config");
        let mut format = Self::default();
        if small_file(&config)?.is_none() {
            return Ok(format);
        }
        let listed = config_of(git, &config, &["--list"])?;
        // Values that git reads before anything else, and over which it refuses the whole repository.
        let switches = config_of(git, &config, &["--type=bool", "--get-regexp", SWITCHES]);
        let numbers = config_of(git, &config, &["--type=int", "--get-all", "core.repositoryformatversion"]);
        switches?;
        let numbers = numbers?;
        let version = numbers.split(|byte| *byte == 0).rfind(|it| !it.is_empty());
        let version = version.map_or(0, |it| String::from_utf8_lossy(it).trim().parse().unwrap_or(i64::MAX));
        let (mut unknown, mut of_version_1) = (None, None);
        for entry in listed.split(|byte| *byte == 0) {
            let entry = String::from_utf8_lossy(entry);
            let (key, value) = entry.split_once('\n').unwrap_or((&entry, "true"));
            let key = key.to_ascii_lowercase();
            if ONLY_VERSION_1.contains(&key.as_str()) {
                of_version_1 = Some(key.clone());
            }
            match key.as_str() {
                "extensions.objectformat" => format.object_format = Some(word(&key, value)?),
                "extensions.refstorage" => format.ref_storage = Some(word(&key, value)?),
                "extensions.partialclone" => format.is_partial = true,
                key if key.starts_with("remote.") && key.ends_with(".promisor") => {
                    format.is_partial |= value != "false";
                }
                // They say nothing about objects and references.
                "extensions.noop"
                | "extensions.noop-v1"
                | "extensions.preciousobjects"
                | "extensions.worktreeconfig"
                | "extensions.relativeworktrees"
                | "extensions.submodulepathconfig" => {}
                key if key.starts_with("extensions.") => unknown = Some(key.to_owned()),
                _ => {}
            }
        }
        if !(0..=1).contains(&version) {
            return Err(Unable::Version(format!(
                "the repository's format is {version}, and this check knows 0 and 1"
            )));
        }
        if let (1, Some(key)) = (version, unknown) {
            return Err(Unable::Version(format!("this check does not know the repository's setting {key}")));
        }
        if let (0, Some(key)) = (version, of_version_1) {
            return Err(Unable::Configuration(format!(
                "the repository's setting {key} needs core.repositoryformatversion = 1, and it is 0: git refuses the repository"
            )));
        }
        format.object_format = format.object_format.filter(|it| it != "sha1");
        format.ref_storage = format.ref_storage.filter(|it| it != "files");
        Ok(format)
    }

    fn text(&self) -> String {
        let mut text = "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n".to_owned();
        if let Some(format) = &self.object_format {
            text.push_str(&format!("\tobjectFormat = {format}\n"));
        }
        if let Some(storage) = &self.ref_storage {
            text.push_str(&format!("\trefStorage = {storage}\n"));
        }
        if self.is_partial {
            // The remote has no address, so nothing can be fetched from it.
            text.push_str("\tpartialClone = origin\n[remote \"origin\"]\n\tpromisor = true\n");
        }
        text
    }
}

/// What `git config` prints of a repository's configuration. Nothing is printed where a key is not set.
fn config_of(git: &Git, config: &Path, question: &[&str]) -> Result<Vec<u8>, Unable> {
    let mut command = git.plain();
    command.args(["config", "--no-includes", "-z", "--file"]).arg(config).args(question);
    let output = command.output().map_err(|error| git.not_started(&error))?;
    // 1: there is no such key.
    if output.status.success() || output.status.code() == Some(1) && output.stderr.is_empty() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("git config ended without a word");
    Err(Unable::Configuration(format!("git cannot read the repository's configuration: {said}")))
}

/// A value that is one word, which needs no quotes in a configuration.
fn word(key: &str, value: &str) -> Result<String, Unable> {
    let value = value.to_ascii_lowercase();
    if !value.is_empty() && value.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit()) {
        Ok(value)
    } else {
        Err(Unable::Version(format!("this check does not know the value of the repository's setting {key}")))
    }
}

/// The content of a small regular file; `None` when there is none.
pub(super) fn small_file(path: &Path) -> Result<Option<Vec<u8>>, Unable> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
    let failed = |error: &dyn std::fmt::Display| Unable::Checker(format!("{}: {error}", path.display()));
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    if !file.metadata().map_err(|error| failed(&error))?.is_file() {
        return Err(failed(&"it is not a regular file"));
    }
    let mut content = Vec::new();
    file.take(MAX_SMALL_BYTES).read_to_end(&mut content).map_err(|error| failed(&error))?;
    Ok(Some(content))
}

/// Why the check leaves out a linked work tree; `None` if it does not. `git worktree add` writes "initializing" to `locked`, and creates `HEAD`
/// after other files; before git 2.44 it writes zeros there first. `git worktree remove` deletes the files one by one.
fn unfinished(worktree: &Path) -> Result<Option<&'static str>, Unable> {
    let is_there = |name: &str| worktree.join(name).symlink_metadata().is_ok();
    if !["HEAD", "gitdir", "commondir"].into_iter().any(is_there) {
        // git ignores such a folder.
        return Ok(None);
    }
    let locked = small_file(&worktree.join("locked"))?.unwrap_or_default();
    if locked.trim_ascii() == b"initializing" {
        return Ok(Some("git worktree add was creating it, or was interrupted; the check left it out"));
    }
    let head = head(worktree)?.unwrap_or_else(|| vec![b'0'; 40]);
    let head = head.trim_ascii();
    let is_none = matches!(head.len(), 40 | 64) && head.iter().all(|byte| *byte == b'0');
    Ok(is_none.then_some(
        "it has no HEAD: git was creating or removing it, or its HEAD was lost; the check left it out",
    ))
}

/// Content of `HEAD`. Versions of git before 1.5.6, and `core.preferSymlinkRefs`, make a link of it.
fn head(root: &Path) -> Result<Option<Vec<u8>>, Unable> {
    let path = root.join("HEAD");
    match fs::read_link(&path) {
        Ok(target) => Ok(Some(format!("ref: {}\n", target.display()).into_bytes())),
        Err(_) => small_file(&path),
    }
}

/// Refuses a part of the repository that has a special file, at which git would wait for ever, or a link that leads out of the
/// repository: what it leads to is not in the copy, and git would find less than there is, and not say so.
fn is_whole(root: &Path, part: &Path) -> Result<(), Unable> {
    let failed =
        |path: &Path, error: &dyn std::fmt::Display| Unable::Checker(format!("{}: {error}", path.display()));
    let inside = fs::canonicalize(root).map_err(|error| failed(root, &error))?;
    let mut left = vec![part.to_owned()];
    while let Some(path) = left.pop() {
        let kind = match fs::symlink_metadata(&path) {
            Ok(found) => found.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&path, &error)),
        };
        let is_modules = path.strip_prefix(root).is_ok_and(|it| {
            it.starts_with("worktrees") && it.ends_with("modules") && it.components().count() == 3
        });
        if is_modules {
            // They are repositories, each with a view of its own.
            continue;
        }
        if kind.is_dir() {
            for entry in fs::read_dir(&path).map_err(|error| failed(&path, &error))? {
                left.push(entry.map_err(|error| failed(&path, &error))?.path());
            }
        } else if kind.is_symlink() {
            // A symbolic reference may be a link that has the name of another reference.
            let may_be_reference = part.ends_with("refs") || part.ends_with("worktrees");
            let is_reference =
                may_be_reference && fs::read_link(&path).is_ok_and(|it| it.starts_with("refs"));
            if !is_reference && !fs::canonicalize(&path).is_ok_and(|target| target.starts_with(&inside)) {
                let name = path.strip_prefix(root).unwrap_or(&path).display();
                return Err(Unable::Elsewhere(format!(
                    "{name} is a link, and what it leads to is not in the copy"
                )));
            }
        } else if !kind.is_file() {
            return Err(failed(&path, &"it is a device, a socket or a FIFO, which git cannot read"));
        }
    }
    Ok(())
}

/// Copies folders and the regular files in them. Links in them are left out, as git does: one that leads to a folder around it would
/// have no end.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut left = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = left.pop() {
        fs::create_dir(&to)?;
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            let (kind, place) = (entry.file_type()?, to.join(entry.file_name()));
            if kind.is_dir() {
                left.push((entry.path(), place));
            } else if kind.is_file() {
                fs::copy(entry.path(), place)?;
            }
        }
    }
    Ok(())
}

/// True for what git takes for a `HEAD`.
fn is_head(content: &[u8]) -> bool {
    let text = String::from_utf8_lossy(content);
    let text = text.trim_end();
    match text.strip_prefix("ref:") {
        Some(name) => name.trim_start().starts_with("refs/"),
        None => matches!(text.len(), 40 | 64) && text.bytes().all(|it| it.is_ascii_hexdigit()),
    }
}
