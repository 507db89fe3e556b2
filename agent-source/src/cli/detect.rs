//! Which engine a folder belongs to, by what only that engine keeps there.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use toml::Value;

/// Where installations usually are, looked through when no folder is named.
const USUAL: [&str; 7] = [
    "/opt/accurev",
    "/usr/local/accurev",
    "/srv/svn",
    "/var/lib/svn",
    "/srv/git",
    "/var/lib/postgresql",
    "/var/lib/redis",
];
/// Folders below those that are looked at.
const MAX_FOLDERS: usize = 200;
/// SQLite databases that are listed for one repository.
const MAX_DATABASES: usize = 100;
/// The first bytes of every SQLite database (sqlite.org/fileformat2.html, 1.3).
const SQLITE_HEADER: &[u8; 16] = b"SQLite format 3\0";

/// What was found in a folder.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Detected {
    /// Name of the profile.
    pub(super) profile: &'static str,
    /// The repository's root, which may be below the folder that was named.
    pub(super) root: PathBuf,
    /// Variables that the profile needs.
    pub(super) vars: BTreeMap<String, Value>,
}

/// The engine of this folder; `None` when it is none that Assay knows.
pub(super) fn detect(folder: &Path) -> Option<Detected> {
    let is = |name: &str| folder.join(name).exists();
    let found =
        |profile, root: &Path| Some(Detected { profile, root: root.to_owned(), vars: BTreeMap::new() });
    if is("bin/acserver.cnf") && is("bin/maintain") {
        return found("accurev-4", folder);
    }
    if is("PG_VERSION") && is("global/pg_control") {
        return found("postgresql", folder);
    }
    if is("format") && is("db/fs-type") && is("db/current") {
        return found("subversion", folder);
    }
    for git in [folder.to_owned(), folder.join(".git")] {
        if git.join("HEAD").exists() && git.join("objects").is_dir() && git.join("refs").is_dir() {
            return found("git", &git);
        }
    }
    if let Some(vars) = redis(folder) {
        return Some(Detected { profile: "redis", root: folder.to_owned(), vars });
    }
    let databases = databases(folder);
    (!databases.is_empty()).then(|| Detected {
        profile: "sqlite",
        root: folder.to_owned(),
        vars: BTreeMap::from([("databases".to_owned(), Value::from(databases))]),
    })
}

/// The variables of a Redis data directory, by its snapshot or its append-only files. Their names are the server's to choose, so
/// only the usual ones are found.
fn redis(folder: &Path) -> Option<BTreeMap<String, Value>> {
    const MANIFEST: &str = "appendonlydir/appendonly.aof.manifest";
    let manifest = folder.join(MANIFEST).is_file();
    let mut magic = [0; 5];
    let snapshot = File::open(folder.join("dump.rdb"))
        .is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
        && &magic == b"REDIS";
    let manifests = manifest.then(|| ("append_only".to_owned(), Value::from(MANIFEST)));
    (manifest || snapshot).then(|| manifests.into_iter().collect())
}

/// SQLite databases directly in the folder, sorted.
fn databases(folder: &Path) -> Vec<String> {
    let is_database = |path: &Path| {
        let mut header = [0; SQLITE_HEADER.len()];
        // A FIFO in the folder must not be waited for.
        path.symlink_metadata().is_ok_and(|stat| stat.is_file())
            && File::open(path).is_ok_and(|mut file| file.read_exact(&mut header).is_ok())
            && header == *SQLITE_HEADER
    };
    let mut names: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| is_database(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .take(MAX_DATABASES)
        .collect();
    names.sort();
    names
}

/// Installations in the places where they usually are.
pub(super) fn usual() -> Vec<Detected> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).take(MAX_FOLDERS).collect()
    };
    let mut found = Vec::new();
    for folder in USUAL.map(Path::new) {
        // PostgreSQL on Debian: VERSION/CLUSTER.
        let mut places = vec![folder.to_owned()];
        places.extend(below(folder));
        places.extend(below(folder).iter().flat_map(|folder| below(folder)));
        found.extend(places.iter().take(MAX_FOLDERS).filter_map(|place| detect(place)));
    }
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_is_known_by_what_only_it_keeps() {
        let temp = tempfile::tempdir().expect("temp");
        let make = |name: &str, files: &[(&str, &[u8])]| {
            let folder = temp.path().join(name);
            for (file, content) in files {
                let path = folder.join(file);
                fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
                fs::write(path, content).expect("write");
            }
            folder
        };
        let profile = |folder: &Path| detect(folder).map(|found| (found.profile, found.root));
        let accurev = make("accurev", &[("bin/acserver.cnf", b""), ("bin/maintain", b"")]);
        assert_eq!(profile(&accurev), Some(("accurev-4", accurev.clone())));
        let postgresql = make("pg", &[("PG_VERSION", b"15"), ("global/pg_control", b"")]);
        assert_eq!(profile(&postgresql), Some(("postgresql", postgresql.clone())));
        let subversion = make("svn", &[("format", b"5"), ("db/fs-type", b"fsfs"), ("db/current", b"0")]);
        assert_eq!(profile(&subversion), Some(("subversion", subversion.clone())));
        let tree = make("work", &[(".git/HEAD", b""), (".git/objects/x", b""), (".git/refs/x", b"")]);
        assert_eq!(profile(&tree), Some(("git", tree.join(".git"))));
        let redis =
            make("redis", &[("dump.rdb", b"REDIS0010"), ("appendonlydir/appendonly.aof.manifest", b"")]);
        let found = detect(&redis).expect("a snapshot");
        assert_eq!(found.profile, "redis");
        assert_eq!(found.vars["append_only"], Value::from("appendonlydir/appendonly.aof.manifest"));
        let snapshot = detect(&make("snapshot", &[("dump.rdb", b"REDIS0010")])).expect("a snapshot");
        assert!(snapshot.profile == "redis" && snapshot.vars.is_empty());
        assert_eq!(detect(&make("other", &[("dump.rdb", b"no snapshot")])), None);
        let sqlite = make(
            "lite",
            &[("b.db", b"SQLite format 3\0more"), ("a.db", SQLITE_HEADER), ("notes", b"SQLite")],
        );
        let found = detect(&sqlite).expect("databases");
        assert_eq!(found.vars["databases"], Value::from(vec!["a.db", "b.db"]));
        assert_eq!(detect(&make("none", &[("file", b"x")])), None);
    }
}
