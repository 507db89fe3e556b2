//! The data that is copied, made from a seed: the same seed gives the same bytes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::index};

/// Bytes of a page of a table.
pub const PAGE_BYTES: u64 = 8192;
const ROW_BYTES: usize = 128;
const FILES_PER_FOLDER: u32 = 200;
const MIN_FILE_BYTES: f64 = 100.0;
const MAX_FILE_BYTES: f64 = 30_000.0;
/// Files were there for long: rsync does not see an edit in the second of the last change.
const BASE_AGE: Duration = Duration::from_secs(24 * 3600);

/// Forty words are enough to look like text to a compressor.
const WORDS: [&str; 40] = [
    "account",
    "address",
    "amount",
    "archive",
    "balance",
    "branch",
    "change",
    "client",
    "commit",
    "config",
    "contract",
    "customer",
    "default",
    "delivery",
    "depot",
    "element",
    "entry",
    "error",
    "export",
    "field",
    "history",
    "import",
    "index",
    "invoice",
    "issue",
    "ledger",
    "merge",
    "order",
    "package",
    "payment",
    "promote",
    "record",
    "release",
    "report",
    "result",
    "stream",
    "table",
    "update",
    "version",
    "workspace",
];

/// How much data there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// What the contents depend on.
    pub seed: u64,
    /// Small files.
    pub files: u32,
    /// Tables that are only appended to.
    pub tables: u32,
    /// Pages of each table.
    pub pages: u64,
    /// Bytes of the text dump.
    pub dump_bytes: u64,
}

impl Plan {
    /// The tree of 2.9 GB, times a factor.
    pub fn full(seed: u64, scale: f64) -> Self {
        Self::scaled(seed, scale, 60_000.0, 200e6, 1e9)
    }

    /// The tree of 200 MB, times a factor.
    pub fn quick(seed: u64, scale: f64) -> Self {
        Self::scaled(seed, scale, 5_000.0, 14e6, 60e6)
    }

    fn scaled(seed: u64, scale: f64, files: f64, table: f64, dump: f64) -> Self {
        Self {
            seed,
            files: ((files * scale) as u32).max(200),
            tables: 6,
            pages: ((table * scale) as u64 / PAGE_BYTES).max(100),
            dump_bytes: ((dump * scale) as u64).max(100_000),
        }
    }
}

/// Numbers that depend on the seed and on what they are for, and on nothing else.
pub(super) fn numbers(seed: u64, purpose: &str, index: u64) -> StdRng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&index.to_le_bytes()).update(purpose.as_bytes());
    StdRng::from_seed(*hasher.finalize().as_bytes())
}

/// Makes the whole tree: small files, tables, the dump.
///
/// # Errors
///
/// When a file cannot be written.
pub fn make_tree(root: &Path, plan: &Plan) -> Result<()> {
    make_small_files(root, plan)?;
    let folder = root.join("tables");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for table in 0..plan.tables {
        append_pages(root, plan, table, plan.pages)?;
    }
    make_dump(&root.join("dump.sql"), plan)
}

/// Makes only the small files.
///
/// # Errors
///
/// When a file cannot be written.
pub fn make_small_files(root: &Path, plan: &Plan) -> Result<()> {
    let then = SystemTime::now() - BASE_AGE;
    for number in 0..plan.files {
        let folder = root.join(format!("small/d{:04}", number / FILES_PER_FOLDER));
        if number.is_multiple_of(FILES_PER_FOLDER) {
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let mut numbers = numbers(plan.seed, "small file", u64::from(number));
        let (text, content) = small_content(&mut numbers, number);
        let path = folder.join(format!("f{number:06}.{}", if text { "txt" } else { "bin" }));
        let write = || -> io::Result<()> {
            let mut file = File::create_new(&path)?;
            file.write_all(&content)?;
            file.set_modified(then)
        };
        write().with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Makes many files of at most 200 bytes.
///
/// # Errors
///
/// When a file cannot be written.
pub fn make_tiny_files(root: &Path, seed: u64, files: u32) -> Result<()> {
    for number in 0..files {
        let folder = root.join(format!("t{:02}/{:02}", number / 100_000, number / 1000 % 100));
        if number.is_multiple_of(1000) {
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let mut numbers = numbers(seed, "tiny file", u64::from(number));
        let bytes = numbers.random_range(0..=200);
        let path = folder.join(format!("{number:07}"));
        fs::write(&path, text_of(&mut numbers, bytes)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Makes the dump: lines of SQL.
///
/// # Errors
///
/// When the file cannot be written.
pub fn make_dump(path: &Path, plan: &Plan) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut numbers = numbers(plan.seed, "dump", 0);
        let mut file = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
        let mut written = 0;
        let mut line = Vec::new();
        for id in 0.. {
            if written >= plan.dump_bytes {
                break;
            }
            line.clear();
            sql_line(&mut line, &mut numbers, id)?;
            file.write_all(&line)?;
            written += line.len() as u64;
        }
        file.flush()
    };
    fs::create_dir_all(path.parent().unwrap_or(path)).with_context(|| path.display().to_string())?;
    write().with_context(|| path.display().to_string())
}

fn sql_line(line: &mut Vec<u8>, numbers: &mut StdRng, id: u64) -> io::Result<()> {
    let at = id / 3;
    writeln!(
        line,
        "INSERT INTO orders VALUES ({id}, '{} {}', '2026-{:02}-{:02} {:02}:{:02}:00', {}.00, 'customer-{:04}', NULL, 'open');",
        word(numbers),
        word(numbers),
        at / 40_320 % 12 + 1,
        at / 1440 % 28 + 1,
        at / 60 % 24,
        at % 60,
        numbers.random_range(0..500_u32),
        numbers.random_range(0..300_u32),
    )
}

fn word(numbers: &mut StdRng) -> &'static str {
    // The product of two makes some words frequent, as they are in text.
    let choice = numbers.random::<f64>() * numbers.random::<f64>();
    WORDS[(choice * WORDS.len() as f64) as usize % WORDS.len()]
}

fn text_of(numbers: &mut StdRng, bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 16);
    while text.len() < bytes {
        // Half of the lines are what text is full of: the same again.
        if numbers.random_bool(0.5) {
            text.extend_from_slice(b"    // the record is kept as it was\n");
        } else {
            for _ in 0..8 {
                text.extend_from_slice(word(numbers).as_bytes());
                text.push(b' ');
            }
            text.push(b'\n');
        }
    }
    text.truncate(bytes);
    text
}

/// Returns whether it is text, and the content. Sizes are log-normal within their limits.
fn small_content(numbers: &mut StdRng, number: u32) -> (bool, Vec<u8>) {
    // Box and Muller: two even numbers make a normal one.
    let (even, angle): (f64, f64) = (1.0 - numbers.random::<f64>(), numbers.random());
    let normal = (-2.0 * even.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
    let bytes = (9_500.0 * (0.9 * normal).exp()).clamp(MIN_FILE_BYTES, MAX_FILE_BYTES) as usize;
    if number.is_multiple_of(2) {
        return (true, text_of(numbers, bytes));
    }
    let mut content = Vec::with_capacity(bytes + 32);
    let mut offset = numbers.random_range(0..1_000_000_u32);
    while content.len() < bytes {
        offset += numbers.random_range(8..64_u32);
        content.extend_from_slice(&offset.to_le_bytes());
        content.extend_from_slice(&(numbers.random::<u16>() & 0xff_3f).to_le_bytes());
        content.extend_from_slice(b"\0\0\x01\0\0\0\x7fREC\0\0\0\0\0\0\0\0");
    }
    content.truncate(bytes);
    (false, content)
}

/// Appends pages to a table. What a page holds depends on its number, so it does not matter in how many steps it grew.
///
/// # Errors
///
/// When the file cannot be written.
pub fn append_pages(root: &Path, plan: &Plan, table: u32, pages: u64) -> Result<()> {
    let path = root.join(format!("tables/table{table}.dat"));
    let write = || -> io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let first = file.metadata()?.len() / PAGE_BYTES;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let mut page = Vec::with_capacity(PAGE_BYTES as usize);
        for number in first..first + pages {
            fill_page(&mut page, plan.seed, table, number);
            file.write_all(&page)?;
        }
        file.flush()
    };
    write().with_context(|| path.display().to_string())
}

fn fill_page(page: &mut Vec<u8>, seed: u64, table: u32, number: u64) {
    let mut numbers = numbers(seed ^ (u64::from(table) << 32), "page", number);
    page.clear();
    page.extend_from_slice(&(number * PAGE_BYTES).to_le_bytes());
    page.extend_from_slice(&numbers.random::<u32>().to_le_bytes());
    page.resize(ROW_BYTES, 0);
    for row in 1..PAGE_BYTES / ROW_BYTES as u64 {
        let start = page.len();
        let id = number * 63 + row;
        page.extend_from_slice(&id.to_le_bytes());
        page.extend_from_slice(
            &(1_700_000_000_000 + id * 977 + numbers.random_range(0..900_u64)).to_le_bytes(),
        );
        page.extend_from_slice(&numbers.random::<u64>().to_le_bytes());
        page.extend_from_slice(&numbers.random::<u32>().to_le_bytes());
        for _ in 0..2 {
            page.extend_from_slice(word(&mut numbers).as_bytes());
            page.push(b' ');
        }
        page.resize(start + 72, b' ');
        page.extend_from_slice(&numbers.random::<u16>().to_le_bytes());
        page.extend_from_slice(word(&mut numbers).as_bytes());
        page.resize(start + ROW_BYTES, 0);
    }
}

/// What an hour of work did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Pages that were appended to each table.
    pub pages: u64,
    /// New files.
    pub new: u32,
    /// Files that were edited.
    pub edited: u32,
    /// Files that were deleted.
    pub deleted: u32,
    /// Files that were renamed.
    pub renamed: u32,
}

/// Does an hour of work on the tree. The same tree and the same repetition give the same change.
///
/// # Errors
///
/// When a file cannot be read or written.
pub fn work_an_hour(root: &Path, plan: &Plan, repetition: u64) -> Result<Change> {
    let share = |per_mille: u32| (plan.files * per_mille / 1000).max(1);
    let mut change = Change { new: share(10), edited: share(5), deleted: share(5), renamed: 5, pages: 0 };
    if root.join("tables").exists() {
        change.pages = (plan.pages / 100).max(1);
        for table in 0..plan.tables {
            append_pages(root, plan, table, change.pages)?;
        }
        insert_lines(&root.join("dump.sql"), plan.seed, repetition)?;
    }
    let mut numbers = numbers(plan.seed, "hour of work", repetition);
    let files = small_files(root)?;
    let (edited, deleted) = (change.edited as usize, change.deleted as usize);
    let chosen = index::sample(&mut numbers, files.len(), edited + deleted + change.renamed as usize);
    for (count, file) in chosen.iter().map(|index| &files[index]).enumerate() {
        let result = if count < edited {
            edit(file, &mut numbers)
        } else if count < edited + deleted {
            fs::remove_file(file)
        } else {
            fs::rename(file, file.with_extension(format!("renamed{repetition}")))
        };
        result.with_context(|| file.display().to_string())?;
    }
    for number in 0..change.new {
        let folder =
            root.join(format!("small/d{:04}", number * FILES_PER_FOLDER % plan.files / FILES_PER_FOLDER));
        let (_, content) = small_content(&mut numbers, number);
        let path = folder.join(format!("new{repetition:03}-{number:05}"));
        fs::write(&path, content).with_context(|| path.display().to_string())?;
    }
    Ok(change)
}

/// The small files, in order.
fn small_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    visit(&root.join("small"), &mut |path, _| {
        files.push(path.to_owned());
        Ok(())
    })?;
    files.sort();
    Ok(files)
}

/// Overwrites a few bytes in the middle, and every second time adds a line.
fn edit(path: &Path, numbers: &mut StdRng) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let place = numbers.random_range(0..length.saturating_sub(40).max(1));
    file.seek(SeekFrom::Start(place))?;
    writeln!(file, "edited {:08x}", numbers.random::<u32>())?;
    if numbers.random_bool(0.5) {
        file.seek(SeekFrom::End(0))?;
        file.write_all(&text_of(numbers, 120))?;
    }
    Ok(())
}

/// Inserts a line at three places of a text. The text is written anew, as a dump is.
///
/// # Errors
///
/// When the file cannot be read or written.
pub fn insert_lines(path: &Path, seed: u64, repetition: u64) -> Result<()> {
    let fresh = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut numbers = numbers(seed, "insertions", repetition);
        let mut old = BufReader::with_capacity(1 << 20, File::open(path)?);
        let length = old.get_ref().metadata()?.len();
        let mut new = BufWriter::with_capacity(1 << 20, File::create_new(&fresh)?);
        let mut line = Vec::new();
        for place in [0.15, 0.45, 0.85] {
            let place = ((place + numbers.random_range(0.0..0.1)) * length as f64) as u64;
            let position = old.stream_position()?;
            io::copy(&mut (&mut old).take(place.saturating_sub(position)), &mut new)?;
            line.clear();
            old.read_until(b'\n', &mut line)?;
            writeln!(line, "INSERT INTO notes VALUES ({repetition}, '{:016x}');", numbers.random::<u64>())?;
            new.write_all(&line)?;
        }
        io::copy(&mut old, &mut new)?;
        new.into_inner()?.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().with_context(|| path.display().to_string())
}

/// Files and bytes below a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Counts a tree.
///
/// # Errors
///
/// When it cannot be read.
pub fn size_of(root: &Path) -> Result<Size> {
    let mut size = Size::default();
    visit(root, &mut |_, bytes| {
        size.files += 1;
        size.bytes += bytes;
        Ok(())
    })?;
    Ok(size)
}

/// Reads every file once, so that no tool finds it warmer than another.
///
/// # Errors
///
/// When it cannot be read.
pub fn read_once(root: &Path) -> Result<()> {
    visit(root, &mut |path, _| {
        let mut file = File::open(path).with_context(|| path.display().to_string())?;
        io::copy(&mut file, &mut io::sink()).with_context(|| path.display().to_string())?;
        Ok(())
    })
}

/// Calls for every regular file below a folder, in no order.
///
/// # Errors
///
/// When a folder cannot be read, and what the call returns.
pub fn visit(folder: &Path, call: &mut dyn FnMut(&Path, u64) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        let metadata = fs::symlink_metadata(&path).with_context(|| path.display().to_string())?;
        if metadata.is_dir() {
            visit(&path, call)?;
        } else if metadata.is_file() {
            call(&path, metadata.len())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const SMALL: Plan = Plan { seed: 7, files: 400, tables: 2, pages: 10, dump_bytes: 20_000 };

    fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        visit(root, &mut |path, _| {
            let name = path.strip_prefix(root).expect("below").to_owned();
            drop(all.insert(name, fs::read(path).expect("read")));
            Ok(())
        })
        .expect("readable");
        all
    }

    fn made(plan: &Plan) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("temp");
        make_tree(folder.path(), plan).expect("made");
        folder
    }

    #[test]
    fn the_same_seed_makes_the_same_tree_and_the_same_change() {
        let (one, two, other) = (made(&SMALL), made(&SMALL), made(&Plan { seed: 8, ..SMALL }));
        assert!(contents(one.path()) == contents(two.path()));
        assert!(contents(one.path()) != contents(other.path()));
        for repetition in 0..2 {
            let change = work_an_hour(one.path(), &SMALL, repetition).expect("changed");
            assert_eq!(change, work_an_hour(two.path(), &SMALL, repetition).expect("changed"));
            assert!(contents(one.path()) == contents(two.path()));
        }
    }

    #[test]
    fn an_hour_of_work_changes_what_it_says() {
        let folder = made(&SMALL);
        let before = contents(folder.path());
        let change = work_an_hour(folder.path(), &SMALL, 1).expect("changed");
        let after = contents(folder.path());
        let is_small = |path: &&PathBuf| path.starts_with("small");
        let gone = before.keys().filter(is_small).filter(|path| !after.contains_key(*path)).count();
        assert_eq!(gone, (change.deleted + change.renamed) as usize);
        let came = after.keys().filter(is_small).filter(|path| !before.contains_key(*path)).count();
        assert_eq!(came, (change.new + change.renamed) as usize);
        let edited = before
            .iter()
            .filter(|(path, content)| is_small(path) && after.get(*path).is_some_and(|now| now != *content))
            .count();
        assert_eq!(edited, change.edited as usize);
        for table in 0..SMALL.tables {
            let name = PathBuf::from(format!("tables/table{table}.dat"));
            assert!(after[&name].starts_with(&before[&name]), "{name:?} is only appended to");
            assert_eq!(after[&name].len() as u64, (SMALL.pages + change.pages) * PAGE_BYTES);
        }
        let lines = |all: &BTreeMap<PathBuf, Vec<u8>>| {
            String::from_utf8(all[Path::new("dump.sql")].clone())
                .expect("text")
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let old = lines(&before);
        let (inserted, kept): (Vec<_>, Vec<_>) =
            lines(&after).into_iter().partition(|line| line.contains("INTO notes"));
        assert_eq!(inserted.len(), 3);
        assert_eq!(kept, old);
    }

    #[test]
    fn sizes_stay_within_their_limits() {
        for number in 0..2000 {
            let (_, content) = small_content(&mut numbers(1, "test", u64::from(number)), number);
            assert!((100..=30_000).contains(&content.len()), "{}", content.len());
        }
    }

    #[test]
    fn scaling_keeps_the_seed_and_never_makes_nothing() {
        let plan = Plan::full(3, 1.0);
        assert_eq!((plan.seed, plan.files, plan.dump_bytes), (3, 60_000, 1_000_000_000));
        let least = Plan::quick(3, 0.0);
        assert!(least.files > 0 && least.pages > 0 && least.dump_bytes > 0);
    }
}
