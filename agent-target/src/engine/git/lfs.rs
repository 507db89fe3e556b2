//! Objects of git LFS: their names are the SHA-256 of their content. `git fsck` knows nothing of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::Stdio,
};

use sha2::{Digest as _, Sha256};

use super::{Git, Unable, view::View};

/// A pointer file has more bytes than the shorter, and fewer than the longer number.
const POINTER_BYTES: std::ops::Range<u64> = 100..1024;
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\n";

/// What the store of LFS objects holds.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// Names of objects, whatever their content.
    pub(super) names: BTreeSet<String>,
    /// Sentences about objects whose content is not what the name says.
    pub(super) damage: Vec<String>,
    /// Files in the store that are no objects.
    pub(super) strays: Vec<String>,
}

/// Reads every object below `lfs/objects`.
pub(super) fn stored(root: &Path) -> Result<Stored, Unable> {
    let mut stored = Stored::default();
    let store = root.join("lfs/objects");
    for first in entries(&store)? {
        for second in entries(&store.join(&first))? {
            for name in entries(&store.join(&first).join(&second))? {
                let shown = format!("lfs/objects/{first}/{second}/{name}");
                let is_name = name.len() == 64 && name.bytes().all(|it| it.is_ascii_hexdigit());
                let path = root.join(&shown);
                let found = fs::symlink_metadata(&path).map_err(|error| failed(&path, &error))?;
                if !is_name || name[..2] != first || name[2..4] != second || !found.is_file() {
                    stored.strays.push(shown);
                    continue;
                }
                let digest = digest(&path).map_err(|error| failed(&path, &error))?;
                if digest != name.to_ascii_lowercase() {
                    stored.damage.push(format!(
                        "{shown}: the {} bytes have the SHA-256 {digest}, so they are not the object's",
                        found.len()
                    ));
                }
                stored.names.insert(name);
            }
        }
    }
    Ok(stored)
}

fn failed(path: &Path, error: &io::Error) -> Unable {
    Unable::Checker(format!("{}: {error}", path.display()))
}

/// Names in a folder, sorted. What is no folder has none.
fn entries(folder: &Path) -> Result<Vec<String>, Unable> {
    match fs::symlink_metadata(folder) {
        Ok(found) if found.is_dir() => {}
        _ => return Ok(Vec::new()),
    }
    let read = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut names: Vec<_> = read
        .map_err(|error| failed(folder, &error))?
        .into_iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// What a repository holds, by a list of all its objects.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// Objects.
    pub(super) objects: u64,
    /// The LFS objects that its pointer files name, with the size that each names.
    pub(super) pointers: BTreeMap<String, u64>,
}

/// Counts the objects of a sound repository, and reads its pointer files.
pub(super) fn list(git: &Git, view: &View) -> Result<Listed, Unable> {
    let mut listed = Listed::default();
    let mut small = Vec::new();
    let mut command = git.command(view);
    command.args([
        "cat-file",
        "--batch-all-objects",
        "--unordered",
        "--batch-check=%(objectname) %(objecttype) %(objectsize)",
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| git.not_started(&error))?;
    let out = child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines());
    for line in out {
        let line = line.map_err(|error| Unable::Checker(format!("git cat-file: {error}")))?;
        listed.objects += 1;
        let mut words = line.split(' ');
        if let (Some(name), Some("blob"), Some(size)) = (words.next(), words.next(), words.next())
            && size.parse().is_ok_and(|size| POINTER_BYTES.contains(&size))
        {
            small.push(name.to_owned());
        }
    }
    let ended = child.wait().map_err(|error| Unable::Checker(format!("git cat-file: {error}")))?;
    if !ended.success() {
        return Err(Unable::Checker(format!(
            "git cat-file ended with {ended}, so the objects could not be listed"
        )));
    }
    pointers(git, view, small, &mut listed.pointers)?;
    Ok(listed)
}

/// Reads these blobs, and keeps what those of them that are pointer files name.
fn pointers(
    git: &Git,
    view: &View,
    blobs: Vec<String>,
    found: &mut BTreeMap<String, u64>,
) -> Result<(), Unable> {
    let failed = |error: io::Error| Unable::Checker(format!("git cat-file: {error}"));
    let mut command = git.command(view);
    command.args(["cat-file", "--batch", "--buffer"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| git.not_started(&error))?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Unable::Checker("git cat-file has no pipes".to_owned()));
    };
    let asking = std::thread::spawn(move || -> io::Result<()> {
        for name in blobs {
            writeln!(input, "{name}")?;
        }
        Ok(())
    });
    let mut output = BufReader::new(output);
    let mut head = String::new();
    loop {
        head.clear();
        if output.read_line(&mut head).map_err(failed)? == 0 {
            break;
        }
        let Some(size) = head.trim_end().rsplit(' ').next().and_then(|it| it.parse::<usize>().ok()) else {
            continue;
        };
        let mut content = vec![0; size + 1];
        output.read_exact(&mut content).map_err(failed)?;
        if let Some((name, size)) = pointer(&content[..size]) {
            found.insert(name, size);
        }
    }
    drop(asking.join());
    let ended = child.wait().map_err(failed)?;
    if ended.success() { Ok(()) } else { Err(Unable::Checker(format!("git cat-file ended with {ended}"))) }
}

/// The object that a pointer file names, and its size.
fn pointer(content: &[u8]) -> Option<(String, u64)> {
    let rest = std::str::from_utf8(content.strip_prefix(POINTER)?).ok()?;
    let value = |key: &str| rest.lines().find_map(|line| line.strip_prefix(key));
    let name = value("oid sha256:")?;
    let is_name = name.len() == 64 && name.bytes().all(|it| it.is_ascii_hexdigit());
    is_name.then_some((name.to_owned(), value("size ")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pointer_file_names_an_object() {
        let name = "ab".repeat(32);
        let text = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{name}\nsize 30000\n");
        assert_eq!(pointer(text.as_bytes()), Some((name.clone(), 30000)));
        for other in [
            text.replace("spec/v1", "spec/v9"),
            text.replace("ab", "xy"),
            text.replace("size", "sizes"),
            format!("x{text}"),
        ] {
            assert_eq!(pointer(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn an_object_whose_content_is_not_what_its_name_says_is_damage() {
        let root = tempfile::tempdir().expect("temp");
        let put = |content: &[u8], cut: usize| {
            let name = hex::encode(Sha256::digest(content));
            let folder = root.path().join("lfs/objects").join(&name[..2]).join(&name[2..4]);
            fs::create_dir_all(&folder).expect("mkdir");
            fs::write(folder.join(&name), &content[..cut]).expect("write");
            name
        };
        let good = put(b"a whole object", 14);
        let cut = put(b"an object that is cut", 3);
        fs::write(root.path().join(format!("lfs/objects/{}/{}/notes", &good[..2], &good[2..4])), "")
            .expect("write");
        let stored = stored(root.path()).unwrap_or_else(|_| panic!("it can be read"));
        assert_eq!(stored.names, BTreeSet::from([good, cut.clone()]));
        assert_eq!(stored.damage.len(), 1);
        assert!(
            stored.damage[0].contains(&cut) && stored.damage[0].contains("the 3 bytes"),
            "{:?}",
            stored.damage
        );
        assert_eq!(stored.strays.len(), 1);
    }
}
