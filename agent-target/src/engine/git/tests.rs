//! Real repositories, made by the git of this machine.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

struct Bed {
    temp: tempfile::TempDir,
    ran: std::cell::Cell<u32>,
}

/// What a check came to: its lines, and the code that it would exit with.
struct Checked {
    lines: Vec<String>,
    code: u8,
}

impl Checked {
    #[track_caller]
    fn says(&self, part: &str) -> &Self {
        assert!(self.lines.iter().any(|line| line.contains(part)), "{part:?} is not in {:#?}", self.lines);
        self
    }

    #[track_caller]
    fn ends(&self, code: u8) -> &Self {
        assert_eq!(self.code, code, "{:#?}", self.lines);
        self
    }

    fn not_covered(&self) -> Vec<&str> {
        self.lines.iter().filter_map(|line| line.strip_prefix("not covered: ")).collect()
    }
}

impl Bed {
    fn new() -> Self {
        Self { temp: tempfile::tempdir().expect("temp"), ran: Default::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Runs git in a folder, which must succeed.
    fn git(&self, folder: &str, arguments: &[&str]) -> String {
        self.feed(folder, arguments, "")
    }

    fn feed(&self, folder: &str, arguments: &[&str], input: &str) -> String {
        use io::Write as _;
        fs::create_dir_all(self.path(folder)).expect("mkdir");
        let mut command = Command::new("git");
        command.current_dir(self.path(folder)).stdin(Stdio::piped()).stdout(Stdio::piped());
        for setting in [
            "user.name=A",
            "user.email=a@b",
            "init.defaultBranch=main",
            "gc.auto=0",
            "protocol.file.allow=always",
        ] {
            command.args(["-c", setting]);
        }
        command.args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        let mut child = command.spawn().expect("git");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("write");
        let output = child.wait_with_output().expect("git");
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().expect("has one")).expect("mkdir");
        fs::write(self.path(name), text).expect("write");
    }

    /// A working tree with a commit for each text, in `file` of the folder `dir`.
    fn tree(&self, name: &str, options: &[&str], texts: &[&str]) {
        self.git(name, &[&["init", "-q"], options, &["."]].concat());
        for text in texts {
            self.write(&format!("{name}/dir/file"), text);
            self.git(name, &["add", "."]);
            self.git(name, &["commit", "-q", "-m", text]);
        }
    }

    fn check(&self, repository: &str) -> Checked {
        self.check_after(repository, "none")
    }

    /// A check of a copy whose mark is called this.
    fn check_after(&self, repository: &str, mark: &str) -> Checked {
        self.ran.set(self.ran.get() + 1);
        let scratch = self.path(&format!("scratch-{}", self.ran.get()));
        fs::create_dir(&scratch).expect("mkdir");
        let arguments = Arguments {
            repository: self.path(repository),
            scratch,
            program: "git".into(),
            mark: mark.into(),
        };
        let mut report = Report::to(Vec::new());
        let ended = run(&arguments, &mut report);
        let code = match (&ended, report.is_damaged()) {
            (_, true) => 1,
            (Ok(()), _) => 0,
            (Err(unable), _) => unable.code(),
        };
        let text = String::from_utf8(report.into_inner()).expect("text");
        let unable = ended.err().map(|unable| unable.message().to_owned());
        Checked { lines: text.lines().map(str::to_owned).chain(unable).collect(), code }
    }

    /// The file of a loose object, made writable.
    fn loose(&self, repository: &str, name: &str) -> PathBuf {
        let path = self.path(repository).join("objects").join(&name[..2]).join(&name[2..]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        path
    }
}

/// No false alarm on what people have in their repositories.
#[test]
fn a_repository_with_everything_is_sound() {
    let bed = Bed::new();
    bed.tree("sub", &[], &["in the submodule"]);
    bed.tree("work", &[], &["one", "two"]);
    bed.git("work", &["submodule", "add", "-q", &bed.path("sub").display().to_string(), "parts/sub"]);
    bed.write("work/.gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
    let content = "the content of a large file\n".repeat(100);
    let name = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&content));
    bed.write(&format!("work/.git/lfs/objects/{}/{}/{name}", &name[..2], &name[2..4]), &content);
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{name}\nsize {}\n", content.len());
    bed.write("work/big.bin", &pointer);
    bed.git("work", &["add", "."]);
    bed.git("work", &["-c", "filter.lfs.clean=cat", "commit", "-q", "-m", "lfs"]);
    bed.git("work", &["notes", "add", "-m", "a note"]);
    bed.git("work", &["tag", "-a", "-m", "a tag", "v1"]);
    let (head, first) = (bed.git("work", &["rev-parse", "HEAD"]), bed.git("work", &["rev-parse", "HEAD~1"]));
    bed.git("work", &["replace", &head, &first]);
    bed.git("work", &["worktree", "add", "-q", &bed.path("second").display().to_string(), "-b", "second"]);
    bed.write("work/dir/file", "stashed");
    bed.git("work", &["stash", "-q"]);
    bed.git("work", &["repack", "-adq", "--write-midx", "--write-bitmap-index"]);
    bed.git("work", &["commit-graph", "write", "--reachable"]);
    bed.write("work/dir/other", "split");
    bed.git("work", &["update-index", "--split-index"]);
    bed.git("work", &["add", "."]);
    bed.git("work", &["commit", "-q", "-m", "more"]);
    let checked = bed.check("work/.git");
    checked.ends(0).says("engine: git ").says(" objects").says(" references").says("checked 1 LFS objects");
    checked.says("checked 1 repositories of submodules");
    assert_eq!(checked.not_covered(), [""; 0]);
    checked.says("note: caches were not looked at (").says("commit-graph, multi-pack index");
}

/// While git creates or removes a linked work tree, some of its files are missing. The check reports it as not covered, not as damage.
#[test]
fn unfinished_linked_work_trees_are_no_damage() {
    let bed = Bed::new();
    bed.tree("r", &[], &["one"]);
    let add =
        || bed.git("r", &["worktree", "add", "-q", "--detach", &bed.path("second").display().to_string()]);
    add();
    bed.check("r/.git").ends(0);
    assert_eq!(bed.check("r/.git").not_covered(), [""; 0]);
    let path = |name: &str| bed.path("r/.git/worktrees/second").join(name);
    let head = fs::read(path("HEAD")).expect("read");
    let zeros = format!("{}\n", "0".repeat(40));
    let no_head = "worktrees/second: it has no HEAD";
    // What git 2.39 writes first; what an unfinished removal leaves; what `git worktree add` has locked.
    fs::write(path("HEAD"), &zeros).expect("write");
    assert!(bed.check("r/.git").ends(0).not_covered()[0].starts_with(no_head));
    fs::remove_file(path("HEAD")).expect("remove");
    assert!(bed.check("r/.git").ends(0).not_covered()[0].starts_with(no_head));
    for locked in ["initializing\n", "initializing"] {
        fs::write(path("locked"), locked).expect("write");
        fs::write(path("HEAD"), "").expect("write");
        fs::write(path("index"), "").expect("write");
        let checked = bed.check("r/.git");
        assert!(checked.ends(0).not_covered()[0].starts_with("worktrees/second: git worktree add"));
    }
    // In a finished work tree the same files are damage.
    fs::write(path("locked"), "on a disk that is not here\n").expect("write");
    bed.check("r/.git").ends(1).says("damage: error: invalid worktrees/second/HEAD");
    fs::write(path("HEAD"), head).expect("write");
    bed.check("r/.git").ends(1).says("worktrees/second/index");
    fs::remove_file(path("index")).expect("remove");
    bed.check("r/.git").ends(0);
    // An empty folder is no work tree.
    for name in ["HEAD", "gitdir", "commondir"] {
        fs::remove_file(path(name)).expect("remove");
    }
    assert_eq!(bed.check("r/.git").ends(0).not_covered(), [""; 0]);
}

/// References that the last backup had: merged ones are told, and those are named whose commits nobody has any more.
#[test]
fn references_that_are_gone_are_told() {
    let bed = Bed::new();
    bed.tree("r", &[], &["one", "two"]);
    let merged = bed.git("r", &["rev-parse", "HEAD~1"]);
    let lost = bed.git("r", &["commit-tree", "-m", "lost", "HEAD^{tree}"]);
    let never = "12".repeat(20);
    let mark = format!(
        "none; gone refs/heads/merged {merged}; gone refs/heads/lost {lost}; gone refs/tags/x {never}; 3 more gone"
    );
    let checked = bed.check_after("r/.git", &mark);
    checked.ends(0).says("note: refs/heads/merged is gone since the last backup's mark; other references");
    checked
        .says("not covered: refs/heads/lost: it was there at the last backup's mark")
        .says("note: 3 further references");
    checked.says("not covered: refs/tags/x: ");
    assert_eq!(checked.not_covered().len(), 2);
    let odd =
        bed.check_after("r/.git", "none; gone --exec x; gone refs/heads/x HEAD; went back db/current 3 2");
    assert_eq!(odd.ends(0).not_covered(), [""; 0]);
}

/// Formats that must be carried over from the copy's own configuration.
#[test]
fn other_formats_are_read() {
    let bed = Bed::new();
    bed.tree("sha256", &["--object-format=sha256"], &["one"]);
    bed.check("sha256/.git").ends(0);
    bed.tree("tables", &["--ref-format=reftable"], &["one", "two"]);
    bed.check("tables/.git").ends(0).says("checked 1 references");
    bed.tree("plain", &[], &["one", "two", "three"]);
    let url = format!("file://{}", bed.path("plain").display());
    bed.git(".", &["clone", "-q", "--depth=1", &url, "shallow"]);
    bed.check("shallow/.git").ends(0);
    bed.git("plain", &["config", "uploadpack.allowFilter", "true"]);
    bed.git(".", &["clone", "-q", "--no-checkout", "--filter=blob:none", &url, "partial"]);
    bed.check("partial/.git").ends(0).says("not covered: promised objects");
    bed.git("plain", &["config", "core.repositoryFormatVersion", "1"]);
    bed.git("plain", &["config", "extensions.noop", "true"]);
    bed.check("plain/.git").ends(0);
    let config = fs::read_to_string(bed.path("plain/.git/config")).expect("read");
    bed.write("plain/.git/config", &config.replace("noop", "tomorrow"));
    bed.check("plain/.git").ends(10).says("extensions.tomorrow");
    bed.write("plain/.git/config", "[core\nrubbish");
    bed.check("plain/.git").ends(15).says("cannot read the repository's configuration");
    bed.write("plain/.git/config", "[core]\n\trepositoryformatversion = 7\n");
    bed.check("plain/.git").ends(10);
}

/// What git refuses before it looks at an object, nobody can use, however whole the objects are.
#[test]
fn settings_over_which_git_refuses_a_repository_are_told() {
    let bed = Bed::new();
    bed.tree("plain", &[], &["one"]);
    let config = fs::read_to_string(bed.path("plain/.git/config")).expect("read");
    for (from, to, said) in [
        ("bare = false", "bare = maybe", "maybe"),
        ("filemode = true", "filemode = sometimes", "sometimes"),
        ("repositoryformatversion = 0", "repositoryformatversion = none", "none"),
    ] {
        assert!(config.contains(from), "{config}");
        bed.write("plain/.git/config", &config.replace(from, to));
        bed.check("plain/.git").ends(15).says(said);
    }
    // Ways to write a number and a switch that git reads.
    for (from, to) in [
        ("bare = false", "bare"),
        ("bare = false", "bare ="),
        ("repositoryformatversion = 0", "repositoryformatversion = 0x1"),
        ("repositoryformatversion = 0", "repositoryformatversion = 5\n\trepositoryformatversion = 0"),
    ] {
        bed.write("plain/.git/config", &config.replace(from, to));
        bed.check("plain/.git").ends(0);
    }
    bed.tree("sha256", &["--object-format=sha256"], &["one"]);
    let config = fs::read_to_string(bed.path("sha256/.git/config")).expect("read");
    bed.write(
        "sha256/.git/config",
        &config.replace("repositoryformatversion = 1", "repositoryformatversion = 0"),
    );
    bed.check("sha256/.git").ends(15).says("extensions.objectformat needs core.repositoryformatversion = 1");
}

/// The index keeps the names of trees, so that git need not make them again. One that is gone is made again.
#[test]
fn a_tree_that_only_the_cache_of_the_index_names_is_a_note() {
    let bed = Bed::new();
    bed.tree("work", &[], &["one"]);
    bed.write("work/other/file", "staged");
    bed.git("work", &["add", "."]);
    let tree = bed.git("work", &["write-tree"]);
    fs::remove_file(bed.loose("work/.git", &tree)).expect("remove");
    bed.check("work/.git").ends(0).says("invalid sha1 pointer in cache-tree");
    bed.git("work", &["commit", "-q", "-m", "two"]);
    let said = bed.check("work/.git");
    assert!(!said.ends(0).lines.iter().any(|line| line.contains("cache-tree")), "{:#?}", said.lines);
}

/// Complaints of fsck about what is whole.
#[test]
fn style_and_dangling_names_are_no_damage() {
    let bed = Bed::new();
    bed.tree("r", &[], &["one", "two"]);
    let head = bed.git("r", &["rev-parse", "HEAD"]);
    let tree = bed.git("r", &["rev-parse", "HEAD^{tree}"]);
    for (branch, author, committer) in [
        ("zone", "A <a@b> 1259452800 +0000", "A <a@b> 1287367363 -700"),
        ("mail", "A a@b 1259452800 +0000", "A <a@b> 1259452800 +0000"),
        ("date", "A <a@b> 99999999999999999999 +0000", "A <a@b>1259452800 +0000"),
        ("zero", "A <a@b> 01259452800 +0000", "A <a@b> 1259452800 +0000"),
    ] {
        let text = format!("tree {tree}\nparent {head}\nauthor {author}\ncommitter {committer}\n\nimport\n");
        let name = bed.feed("r", &["hash-object", "-t", "commit", "-w", "--stdin", "--literally"], &text);
        bed.git("r", &["update-ref", &format!("refs/heads/{branch}"), &name]);
    }
    bed.check("r/.git").ends(0).says("badTimezone");
    // In a pack, fsck counts them as errors of the pack.
    bed.git("r", &["repack", "-adq"]);
    bed.git("r", &["symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/gone"]);
    bed.write("r/.git/refs/heads/main (conflicted copy)", &format!("{head}\n"));
    bed.write("r/.git/objects/pack/notes.txt", "of somebody");
    bed.git("r", &["update-ref", "refs/meta/config", &head]);
    bed.git("r", &["symbolic-ref", "HEAD", "refs/meta/config"]);
    let checked = bed.check("r/.git");
    checked.ends(0).says("badTimezone").says("missingEmail").says("badDateOverflow");
    checked.says("note: refs/remotes/origin/HEAD leads to refs/remotes/origin/gone, which is not there");
    checked.says("note: refs/heads/main (conflicted copy) is not a name for a reference");
    checked.says("note: HEAD leads to refs/meta/config, outside refs/heads");
    // An object that git cannot read is damage whatever its name.
    let broken =
        bed.feed("r", &["hash-object", "-t", "commit", "-w", "--stdin", "--literally"], "no commit\n");
    fs::write(bed.path("r/.git/refs/heads/broken"), format!("{broken}\n")).expect("write");
    bed.check("r/.git").ends(1);
}

/// A cache that is older than a prune names what is gone.
#[test]
fn a_stale_cache_is_not_asked() {
    let bed = Bed::new();
    bed.tree("r", &[], &["one", "two"]);
    bed.git("r", &["commit-graph", "write", "--reachable"]);
    bed.git("r", &["reset", "-q", "--hard", "HEAD~1"]);
    bed.git("r", &["reflog", "expire", "--expire=now", "--all"]);
    bed.git("r", &["update-ref", "-d", "ORIG_HEAD"]);
    bed.git("r", &["prune", "--expire=now"]);
    bed.check("r/.git").ends(0).says("note: caches were not looked at (commit-graph");
    let graph = bed.path("r/.git/objects/info/commit-graph");
    fs::set_permissions(&graph, fs::Permissions::from_mode(0o644)).expect("chmod");
    fs::write(&graph, "rubbish").expect("write");
    bed.check("r/.git").ends(0);
}

/// A digest says nothing to a person: a path and a commit do.
#[test]
fn a_lost_object_is_named_by_a_path_and_a_commit() {
    let bed = Bed::new();
    bed.tree("r", &[], &["one", "two", "three"]);
    let commit = bed.git("r", &["rev-parse", "HEAD~1"]);
    let blob = bed.git("r", &["rev-parse", "HEAD~1:dir/file"]);
    let path = bed.loose("r/.git", &blob);
    let content = fs::read(&path).expect("read");
    fs::remove_file(&path).expect("remove");
    let place = format!("missing blob {blob}: the path dir/file of commit {commit} (");
    bed.check("r/.git").ends(1).says(&place);
    // There, and broken in different ways.
    for broken in [&b""[..], &content[..content.len() / 2], b"rubbish that is not deflated"] {
        fs::write(&path, broken).expect("write");
        let checked = bed.check("r/.git");
        checked.ends(1).says(&format!("the path dir/file of commit {commit}")).says(&blob);
    }
    // Another object's content under this name.
    fs::copy(bed.loose("r/.git", &bed.git("r", &["rev-parse", "HEAD:dir/file"])), &path).expect("copy");
    bed.check("r/.git").ends(1).says("mismatch").says("dir/file");
}

#[test]
fn broken_references_packs_and_indexes_are_damage() {
    let bed = Bed::new();
    bed.tree("r", &[], &["one", "two"]);
    let name = "12".repeat(20);
    let named = format!("{name}\n");
    for (file, content, said) in [
        ("refs/heads/empty", "", "refs/heads/empty: invalid sha1 pointer"),
        ("refs/heads/zeros", "\0\0\0\0\0\0\0\0", "refs/heads/zeros: invalid sha1 pointer"),
        ("refs/heads/nowhere", named.as_str(), "refs/heads/nowhere: invalid sha1 pointer"),
        ("packed-refs", "not a ref at all\n", "unexpected line in packed-refs: not a ref at all"),
    ] {
        bed.write(&format!("r/.git/{file}"), content);
        bed.check("r/.git").ends(1).says(said);
        fs::remove_file(bed.path("r/.git").join(file)).expect("remove");
    }
    // A broken index does not hide what else is broken.
    let index = fs::read(bed.path("r/.git/index")).expect("read");
    bed.write("r/.git/index", "DIRC, or not");
    bed.write("r/.git/refs/heads/empty", "");
    bed.check("r/.git").ends(1).says("index file").says("refs/heads/empty");
    fs::write(bed.path("r/.git/index"), index).expect("write");
    fs::remove_file(bed.path("r/.git/refs/heads/empty")).expect("remove");
    bed.git("r", &["repack", "-adq"]);
    bed.check("r/.git").ends(0);
    let pack = fs::read_dir(bed.path("r/.git/objects/pack")).expect("read").flatten().map(|it| it.path());
    let pack = pack.into_iter().find(|it| it.extension().is_some_and(|it| it == "pack")).expect("a pack");
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o644)).expect("chmod");
    let mut content = fs::read(&pack).expect("read");
    let middle = content.len() / 2;
    content[middle] ^= 0x10;
    fs::write(&pack, &content).expect("write");
    let shown = pack.file_name().expect("a name").to_string_lossy().into_owned();
    bed.check("r/.git").ends(1).says(&shown);
    fs::remove_file(&pack).expect("remove");
    bed.check("r/.git").ends(1).says("no corresponding .pack: objects/pack/");
}

/// What the copy says about its own check is not obeyed.
#[test]
fn the_copys_settings_hide_nothing_and_run_nothing() {
    let bed = Bed::new();
    bed.tree("r", &[], &["one", "two"]);
    let blob = bed.git("r", &["rev-parse", "HEAD~1:dir/file"]);
    fs::remove_file(bed.loose("r/.git", &blob)).expect("remove");
    bed.write("secret", "a line that only root may read\n");
    bed.write("tell", &format!("#!/bin/sh\ntouch {}\n", bed.path("told").display()));
    fs::set_permissions(bed.path("tell"), fs::Permissions::from_mode(0o755)).expect("chmod");
    let (secret, tell) = (bed.path("secret").display().to_string(), bed.path("tell").display().to_string());
    bed.write("list", &format!("{blob}\n"));
    let list = bed.path("list").display().to_string();
    for (key, value) in [
        ("fsck.skipList", secret.as_str()),
        ("fsck.skipList", &list),
        ("fsck.missingObject", "ignore"),
        ("fsck.badTree", "ignore"),
        ("core.fsmonitor", &tell),
        ("core.alternateRefsCommand", &tell),
        ("core.pager", &tell),
        ("extensions.partialClone", "origin"),
        ("include.path", &secret),
    ] {
        bed.git("r", &["config", "--add", key, value]);
    }
    let checked = bed.check("r/.git");
    // A promise of a remote covers what came from its packs only.
    checked.ends(1).says(&format!("missing blob {blob}"));
    assert!(!checked.lines.iter().any(|line| line.contains("only root may read")), "{:#?}", checked.lines);
    assert!(!bed.path("told").exists());
}

#[test]
fn what_is_not_in_the_copy_or_no_repository_is_told_apart() {
    let bed = Bed::new();
    bed.tree("r", &[], &["one"]);
    bed.git(".", &["clone", "-q", "--shared", "r", "borrower"]);
    bed.check("borrower/.git").ends(11).says("objects are borrowed from");
    fs::rename(bed.path("r/.git/objects"), bed.path("objects")).expect("rename");
    std::os::unix::fs::symlink(bed.path("objects"), bed.path("r/.git/objects")).expect("link");
    bed.check("r/.git").ends(11).says("objects is a link");
    fs::remove_file(bed.path("r/.git/objects")).expect("remove");
    bed.check("r/.git").ends(13);
    fs::rename(bed.path("objects"), bed.path("r/.git/objects")).expect("rename");
    bed.write("r/.git/HEAD", "rubbish\n");
    bed.check("r/.git").ends(13).says("not a git repository");
    bed.write("r/.git/HEAD", "ref: refs/heads/main\n");
    bed.check("r/.git").ends(0);
    Command::new("mkfifo").arg(bed.path("r/.git/refs/heads/fifo")).status().expect("mkfifo");
    bed.check("r/.git").ends(12).says("FIFO");
}

#[test]
fn a_reference_whose_reflog_is_left_is_named() {
    let bed = Bed::new();
    bed.tree("r", &[], &["one"]);
    bed.git("r", &["branch", "lost"]);
    fs::remove_file(bed.path("r/.git/refs/heads/lost")).expect("remove");
    bed.check("r/.git").ends(0).says("not covered: refs/heads/lost: its reflog is there");
}

/// Older entries of the stash are in its reflog alone.
#[test]
fn an_object_that_only_a_reflog_leads_to_is_looked_at() {
    let bed = Bed::new();
    bed.tree("r", &[], &["one"]);
    for text in ["the work of a week", "something else"] {
        bed.write("r/dir/file", text);
        bed.git("r", &["stash", "-q"]);
    }
    bed.check("r/.git").ends(0);
    let object = bed.git("r", &["rev-parse", "stash@{1}:dir/file"]);
    fs::remove_file(bed.loose("r/.git", &object)).expect("remove");
    bed.check("r/.git").ends(1).says(&format!("damage: missing blob {object}"));
}

/// What is kept elsewhere behind a link is not in the copy; what is kept elsewhere in the repository is.
#[test]
fn links_that_lead_out_of_the_repository_are_told_from_those_within() {
    use std::os::unix::fs::symlink;
    let bed = Bed::new();
    bed.tree("r", &[], &["one", "two"]);
    bed.git("r", &["pack-refs", "--all"]);
    let commit = bed.git("r", &["rev-parse", "HEAD"]);
    let fan_out = format!("objects/{}", &commit[..2]);
    bed.git("r", &["branch", "other"]);
    for part in [fan_out.as_str(), "objects/pack", "packed-refs", "refs/heads", "logs"] {
        let (place, elsewhere) = (bed.path("r/.git").join(part), bed.path("elsewhere"));
        fs::rename(&place, &elsewhere).expect("rename");
        symlink(&elsewhere, &place).expect("link");
        bed.check("r/.git").ends(11).says(&format!("{part} is a link"));
        fs::remove_file(&place).expect("remove");
        let inside = bed.path("r/.git/inside");
        fs::rename(&elsewhere, &inside).expect("rename");
        symlink(&inside, &place).expect("link");
        bed.check("r/.git").ends(0);
        fs::remove_file(&place).expect("remove");
        fs::rename(&inside, &place).expect("rename");
    }
    symlink("..", bed.path("r/.git/logs/around")).expect("link");
    bed.check("r/.git").ends(0);
    fs::remove_file(bed.path("r/.git/HEAD")).expect("remove");
    symlink("refs/heads/main", bed.path("r/.git/HEAD")).expect("link");
    bed.check("r/.git").ends(0).says("checked 2 references");
}

/// Damage in the repository of a submodule of a linked work tree.
#[test]
fn submodules_of_linked_work_trees_are_checked() {
    let bed = Bed::new();
    bed.tree("sub", &[], &["one", "two"]);
    bed.tree("r", &[], &["one"]);
    bed.git("r", &["submodule", "add", "-q", &bed.path("sub").display().to_string(), "sub"]);
    bed.git("r", &["commit", "-q", "-m", "sub"]);
    bed.git("r", &["worktree", "add", "-q", &bed.path("second").display().to_string(), "-b", "second"]);
    bed.git("second", &["submodule", "update", "-q", "--init"]);
    let checked = bed.check("r/.git");
    let is_module = |line: &&String| line.contains("checked 1 repositories of submodules");
    assert_eq!(checked.ends(0).lines.iter().filter(is_module).count(), 2, "{:#?}", checked.lines);
    let module = "r/.git/worktrees/second/modules/sub";
    let name = "ab".repeat(32);
    bed.write(&format!("{module}/lfs/objects/ab/ab/{name}"), "not what its name says");
    bed.check("r/.git").ends(1).says("damage: worktrees/second/modules/sub/lfs/objects/ab/ab/");
    fs::rename(bed.path(module), bed.path("elsewhere")).expect("rename");
    std::os::unix::fs::symlink(bed.path("elsewhere"), bed.path(module)).expect("link");
    bed.check("r/.git").ends(0).says("not covered: worktrees/second/modules/sub: it is a link");
}

/// Damage in a submodule's repository, and in an LFS object of it.
#[test]
fn repositories_of_submodules_are_checked() {
    let bed = Bed::new();
    bed.tree("sub", &[], &["one", "two"]);
    bed.tree("r", &[], &["one"]);
    bed.git("r", &["submodule", "add", "-q", &bed.path("sub").display().to_string(), "parts/sub"]);
    bed.git("r", &["commit", "-q", "-m", "sub"]);
    bed.check("r/.git").ends(0).says("checked 1 repositories of submodules");
    let name = "ab".repeat(32);
    bed.write(&format!("r/.git/modules/parts/sub/lfs/objects/ab/ab/{name}"), "not what its name says");
    bed.check("r/.git").ends(1).says(&format!("damage: modules/parts/sub/lfs/objects/ab/ab/{name}"));
}

#[test]
fn without_git_nothing_is_said_of_the_data() {
    let bed = Bed::new();
    bed.tree("r", &[], &["one"]);
    let scratch = bed.path("scratch");
    fs::create_dir(&scratch).expect("mkdir");
    let (repository, program) = (bed.path("r/.git"), "git-is-not-here".into());
    let arguments = Arguments { repository, scratch, program, mark: String::new() };
    let ended = run(&arguments, &mut Report::to(Vec::new())).expect_err("not there");
    assert_eq!(ended.code(), 14);
}

/// No false alarm on other things that people have in their repositories, and nothing but what it is is named as not covered.
#[test]
fn repositories_of_every_kind_are_sound() {
    let bed = Bed::new();
    // Nothing in it yet, with and without a working tree.
    bed.git("empty", &["init", "-q", "."]);
    bed.git("empty-bare", &["init", "-q", "--bare", "."]);
    bed.tree("plain", &[], &["one", "two", "three"]);
    // HEAD at a branch that has no commit yet, beside branches that have some.
    bed.tree("unborn", &[], &["one"]);
    bed.git("unborn", &["checkout", "-q", "--orphan", "new"]);
    // HEAD at no branch, in the middle of a merge that stopped, of a bisection, of a rebase.
    bed.tree("detached", &[], &["one", "two", "three"]);
    bed.git("detached", &["checkout", "-q", "--detach", "HEAD~1"]);
    bed.git("detached", &["bisect", "start", "HEAD", "HEAD~1"]);
    bed.write("detached/.git/MERGE_HEAD", &format!("{}\n", bed.git("detached", &["rev-parse", "main"])));
    bed.write("detached/.git/FETCH_HEAD", "");
    // Tags that lead to tags, to trees and to blobs, packed with what they lead to.
    bed.tree("tags", &[], &["one", "two"]);
    bed.git("tags", &["tag", "-a", "-m", "a tag", "v1"]);
    bed.git("tags", &["tag", "-a", "-m", "a tag of a tag", "v1-signed", "v1"]);
    bed.git("tags", &["tag", "tree", "HEAD^{tree}"]);
    bed.git("tags", &["tag", "-a", "-m", "of a blob", "blob", "HEAD:dir/file"]);
    bed.git("tags", &["pack-refs", "--all"]);
    // A reflog that names what was pruned long ago.
    bed.tree("reflog", &[], &["one", "two"]);
    bed.git("reflog", &["commit", "-q", "--amend", "-m", "changed"]);
    bed.git("reflog", &["reflog", "expire", "--expire-unreachable=now", "--all"]);
    bed.git("reflog", &["prune", "--expire=now"]);
    bed.git("reflog", &["stash", "list"]);
    // Grafts, replacements, notes of several kinds.
    bed.tree("grafts", &[], &["one", "two", "three"]);
    let head = bed.git("grafts", &["rev-parse", "HEAD"]);
    bed.write("grafts/.git/info/grafts", &format!("{head}\n"));
    bed.git("grafts", &["notes", "--ref=review", "add", "-m", "good"]);
    // A sparse index, with part of the tree checked out; an index with untracked files and a split one.
    bed.tree("sparse", &[], &["one"]);
    bed.write("sparse/other/deep/file", "more");
    bed.git("sparse", &["add", "."]);
    bed.git("sparse", &["commit", "-q", "-m", "more"]);
    bed.git("sparse", &["sparse-checkout", "set", "--cone", "--sparse-index", "dir"]);
    bed.git("sparse", &["update-index", "--untracked-cache"]);
    // Loose objects of every kind, packs that are kept, and one of what nobody needs any more.
    bed.tree("packs", &[], &["one", "two"]);
    bed.git("packs", &["repack", "-dq"]);
    bed.write("packs/dir/file", "three");
    bed.git("packs", &["commit", "-qam", "three"]);
    bed.git("packs", &["branch", "gone"]);
    bed.git("packs", &["commit", "-q", "--amend", "-m", "amended"]);
    bed.git("packs", &["branch", "-D", "-q", "gone"]);
    bed.git("packs", &["reflog", "expire", "--expire=now", "--all"]);
    bed.git("packs", &["repack", "-adq", "--cruft", "--cruft-expiration=never"]);
    // A mirror whose bundle list and alternates of references are only settings.
    let url = format!("file://{}", bed.path("plain").display());
    bed.git(".", &["clone", "-q", "--mirror", &url, "mirror"]);
    bed.git("mirror", &["config", "bundle.version", "1"]);
    bed.git("mirror", &["config", "bundle.mode", "all"]);
    bed.git("mirror", &["config", "bundle.one.uri", "https://example.org/one.bundle"]);
    // Settings of each working tree, a worktree whose folder is gone, and one that is locked.
    bed.tree("worktrees", &[], &["one"]);
    bed.git("worktrees", &["config", "extensions.worktreeConfig", "true"]);
    for name in ["gone", "locked"] {
        bed.git(
            "worktrees",
            &["worktree", "add", "-q", "-b", name, &bed.path(&format!("tree-{name}")).display().to_string()],
        );
    }
    bed.git("worktrees", &["worktree", "lock", &bed.path("tree-locked").display().to_string()]);
    fs::remove_dir_all(bed.path("tree-gone")).expect("remove");
    // Names that look odd and are allowed, and a file name that is not text.
    bed.tree("names", &[], &["one"]);
    bed.git("names", &["branch", "a/b/ünïcode-💾"]);
    bed.git("names", &["update-ref", "refs/some/where/else", "HEAD"]);
    for repository in [
        "empty/.git",
        "empty-bare",
        "plain/.git",
        "unborn/.git",
        "detached/.git",
        "tags/.git",
        "reflog/.git",
        "grafts/.git",
        "sparse/.git",
        "packs/.git",
        "mirror",
        "worktrees/.git",
        "names/.git",
    ] {
        let checked = bed.check(repository);
        checked.ends(0);
        assert_eq!(checked.not_covered(), [""; 0], "{repository}");
    }
    // Borrowed objects are elsewhere, whoever borrows.
    bed.git(".", &["clone", "-q", "--shared", &bed.path("plain").display().to_string(), "borrows"]);
    bed.check("borrows/.git").ends(11).says("objects are borrowed from");
}
