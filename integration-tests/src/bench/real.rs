//! Data that nobody made for a benchmark: what a Debian machine with a Rust toolchain has, and repositories made of it.
//!
//! Each set holds up to a number of bytes of its origin, in the order of names, so that two runs on one machine copy the same.
//! On another machine the bytes are others: the sizes are printed, and only ratios are compared.

use std::{
    env, fs,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{postgres::Cluster, process::succeed};

/// Commits that a repository is made in.
const COMMITS: usize = 40;

/// A kind of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Set {
    /// What the seed makes: the tree of the other workloads
    Made,
    /// /usr/share: many small texts, images, translations
    Share,
    /// /usr/lib: shared libraries
    Libraries,
    /// The sources of the crates in cargo's cache
    Sources,
    /// Those sources in a Subversion repository
    Subversion,
    /// Those sources in a git repository, packed
    Git,
    /// Those sources in the tables of a PostgreSQL cluster, beside pgbench's
    Postgresql,
}

impl Set {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Made,
        Self::Share,
        Self::Libraries,
        Self::Sources,
        Self::Subversion,
        Self::Git,
        Self::Postgresql,
    ];

    /// What it is called in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Share => "/usr/share",
            Self::Libraries => "/usr/lib",
            Self::Sources => "sources",
            Self::Subversion => "Subversion",
            Self::Git => "git",
            Self::Postgresql => "PostgreSQL",
        }
    }
}

/// Makes a set of at most about `bytes` below `folder` and returns the tree to copy. [`Set::Made`] is not made here.
///
/// # Errors
///
/// When its origin is not on this machine, or a program that makes it fails.
pub fn make(set: Set, folder: &Path, bytes: u64) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let root = folder.join("root");
    match set {
        Set::Made => anyhow::bail!("the seed makes this set"),
        Set::Share => copy_some(Path::new("/usr/share"), &root, bytes)?,
        Set::Libraries => copy_some(&libraries()?, &root, bytes)?,
        Set::Sources => copy_some(&crates()?, &root, bytes)?,
        Set::Subversion => subversion(folder, &root, bytes)?,
        Set::Git => git(folder, &root, bytes)?,
        Set::Postgresql => return postgresql(folder, bytes),
    }
    Ok(root)
}

/// Debian's folder of shared libraries for this machine's kind of processor.
fn libraries() -> Result<PathBuf> {
    let folder = PathBuf::from(format!("/usr/lib/{}-linux-gnu", env::consts::ARCH));
    ensure!(folder.is_dir(), "{} is not there: this is no Debian", folder.display());
    Ok(folder)
}

/// The folder of cargo's cache that has the sources of the crates of one registry.
fn crates() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let folder = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    let mut registries: Vec<_> = names(&folder)?.into_iter().map(|name| folder.join(name)).collect();
    registries.pop().with_context(|| format!("{} is empty: build Assay once", folder.display()))
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(|| folder.display().to_string())?;
    names.sort();
    Ok(names)
}

/// Copies regular files until there are so many bytes of them.
fn copy_some(from: &Path, to: &Path, bytes: u64) -> Result<()> {
    let mut left = bytes;
    copy_below(from, to, &mut left)?;
    ensure!(left < bytes, "{} has no files", from.display());
    Ok(())
}

fn copy_below(from: &Path, to: &Path, left: &mut u64) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for name in names(from)? {
        if *left == 0 {
            break;
        }
        let (from, to) = (from.join(&name), to.join(&name));
        let metadata = fs::symlink_metadata(&from).with_context(|| from.display().to_string())?;
        if metadata.is_dir() {
            copy_below(&from, &to, left)?;
        } else if metadata.is_file() {
            fs::copy(&from, &to).with_context(|| from.display().to_string())?;
            *left = left.saturating_sub(metadata.len());
        }
    }
    Ok(())
}

/// A working copy that grows by a share of the crates for each commit.
fn grow(tree: &Path, bytes: u64, mut commit: impl FnMut(usize) -> Result<()>) -> Result<()> {
    let from = crates()?;
    let crates = names(&from)?;
    let mut left = bytes;
    for (number, some) in crates.chunks(crates.len().div_ceil(COMMITS)).enumerate() {
        if left == 0 {
            break;
        }
        for name in some {
            copy_below(&from.join(name), &tree.join(name), &mut left)?;
        }
        commit(number)?;
    }
    Ok(())
}

fn subversion(folder: &Path, root: &Path, bytes: u64) -> Result<()> {
    let tree = folder.join("working-copy");
    succeed(Command::new("svnadmin").arg("create").arg(root))?;
    succeed(
        Command::new("svn").args(["checkout", "-q"]).arg(format!("file://{}", root.display())).arg(&tree),
    )?;
    let svn = |arguments: &[&str]| succeed(Command::new("svn").args(arguments).current_dir(&tree));
    grow(&tree, bytes, |number| {
        svn(&["add", "-q", "--force", "--no-ignore", "."])?;
        svn(&["commit", "-q", "-m", &format!("crates, part {number}")]).map(drop)
    })?;
    fs::remove_dir_all(&tree).with_context(|| tree.display().to_string())
}

fn git(folder: &Path, root: &Path, bytes: u64) -> Result<()> {
    let tree = folder.join("working-copy");
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=bench", "-c", "user.email=bench@example.invalid"]);
        succeed(command.arg("--git-dir").arg(root).arg("--work-tree").arg(&tree).args(arguments))
    };
    fs::create_dir_all(&tree).with_context(|| tree.display().to_string())?;
    git(&["init", "-q"])?;
    grow(&tree, bytes, |number| {
        git(&["add", "-A", "-f", "."])?;
        git(&["commit", "-q", "-m", &format!("crates, part {number}")]).map(drop)
    })?;
    git(&["gc", "-q"])?;
    fs::remove_dir_all(&tree).with_context(|| tree.display().to_string())
}

fn postgresql(folder: &Path, bytes: u64) -> Result<PathBuf> {
    let tree = folder.join("sources");
    copy_some(&crates()?, &tree, bytes / 2)?;
    let rows = folder.join("rows");
    write_rows(&tree, &rows)?;
    let mut cluster = Cluster::create(&folder.join("cluster"), pgbench_scale(bytes))?;
    cluster.load_files(&rows)?;
    cluster.stop()?;
    for path in [&rows, &tree] {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.with_context(|| path.display().to_string())?;
    }
    Ok(cluster.data())
}

/// pgbench's tables have about 15 MB for each unit of its scale: a quarter of the set.
fn pgbench_scale(bytes: u64) -> u32 {
    u32::try_from(bytes / 60_000_000).unwrap_or(u32::MAX).max(1)
}

/// One line for each file, as COPY reads it: its path, a tab, and its bytes in hexadecimal digits.
fn write_rows(tree: &Path, rows: &Path) -> Result<()> {
    let mut file = BufWriter::new(fs::File::create(rows).with_context(|| rows.display().to_string())?);
    super::data::visit(tree, &mut |path, _| {
        let content = fs::read(path).with_context(|| path.display().to_string())?;
        let name = path.strip_prefix(tree).context("it is below")?.display().to_string();
        // A backslash is COPY's own, and no crate has one in a name.
        writeln!(file, "{}\t\\\\x{}", name.replace(['\\', '\t', '\n'], "_"), hex::encode(content))
            .with_context(|| rows.display().to_string())
    })?;
    file.into_inner().map(drop).context("flush the rows")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_ends_with_the_file_that_fills_it() {
        let folder = tempfile::tempdir().expect("temp");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("b")).expect("mkdir");
        for name in ["a", "b/c", "d", "e"] {
            fs::write(from.join(name), [7; 100]).expect("write");
        }
        std::os::unix::fs::symlink("a", from.join("aa")).expect("link");
        copy_some(&from, &to, 201).expect("copied");
        let copied = ["a", "aa", "b/c", "d", "e"].map(|name| to.join(name).exists());
        assert_eq!(copied, [true, false, true, true, false]);
        assert!(copy_some(&to.join("b"), &folder.path().join("more"), 0).is_err(), "nothing was copied");
    }

    #[test]
    fn rows_are_what_copy_reads() {
        let folder = tempfile::tempdir().expect("temp");
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).expect("mkdir");
        fs::write(tree.join("a\tb"), [0, 255]).expect("write");
        let rows = folder.path().join("rows");
        write_rows(&tree, &rows).expect("written");
        assert_eq!(fs::read_to_string(rows).expect("read"), "a_b\t\\\\x00ff\n");
    }
}
