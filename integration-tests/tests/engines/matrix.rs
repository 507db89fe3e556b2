//! The matrix in docs/ENGINES.md: what came out of each kind of damage, compared with what is written there.
//!
//! Each engine has its rows, seen by one test, so that tests may run side by side. `ASSAY_WRITE_MATRIX=1 ./test engines`
//! writes what was seen instead of comparing it.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

use assay_common::verdict::Verdict;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ENGINES.md");
const BEGIN: &str = "<!-- matrix: written by ASSAY_WRITE_MATRIX=1 ./test engines -->";
const END: &str = "<!-- end of matrix -->";
const HEAD: &str = "| engine | damage on the live side | outcome | reason | depth | the verdict names |\n| --- | --- | --- | --- | --- | --- |";
/// The engines whose rows there are, in their order.
const ENGINES: [&str; 8] = [
    "PostgreSQL",
    "SQLite",
    "Subversion",
    "git",
    "AccuRev 4 (stand-in)",
    "AccuRev 5 (stand-in)",
    "Redis",
    "generic",
];
/// What stands before the versions, in the line above the matrix.
const VERSIONS: &str = "The rows were seen with: ";

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row([String; 6]);

impl Row {
    /// What `verdict` says of this damage. `names` is what it was seen to name.
    pub(crate) fn new(engine: &str, damage: &str, verdict: &Verdict, names: &str) -> Self {
        let depth = verdict.depth.map_or_else(|| "–".to_owned(), |depth| format!("{depth:?}"));
        let names = if names.is_empty() { "–" } else { names };
        let reason = format!("`{}`", verdict.reason);
        let outcome = match verdict.outcome {
            assay_common::verdict::Outcome::Pass => "PASS",
            assay_common::verdict::Outcome::Fail => "FAIL",
            assay_common::verdict::Outcome::Inconclusive => "INCONCLUSIVE",
            assay_common::verdict::Outcome::NotRun => "NOT_RUN",
        };
        Self([engine.into(), damage.into(), outcome.into(), reason, depth, names.into()])
    }

    fn parse(line: &str) -> Option<Self> {
        let cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
        Some(Self(cells.map(str::to_owned).collect::<Vec<_>>().try_into().ok()?))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "| {} |", self.0.join(" | "))
    }
}

/// The document around its rows, and the rows by engine.
struct Document {
    before: String,
    rows: BTreeMap<usize, Vec<Row>>,
    after: String,
}

impl Document {
    fn read(text: &str) -> Self {
        let (before, rest) = text.split_once(BEGIN).expect("the matrix begins");
        let (table, after) = rest.split_once(END).expect("the matrix ends");
        let mut rows = BTreeMap::<usize, Vec<Row>>::new();
        for line in table.trim().strip_prefix(HEAD).expect("the matrix has its head").trim().lines() {
            let row = Row::parse(line).unwrap_or_else(|| panic!("not a row of the matrix: {line}"));
            let engine = ENGINES.iter().position(|engine| *engine == row.0[0]);
            let engine = engine.unwrap_or_else(|| panic!("no test sees rows of this engine: {line}"));
            rows.entry(engine).or_default().push(row);
        }
        Self { before: before.into(), rows, after: after.into() }
    }

    fn write(&self) -> String {
        let rows: String = self.rows.values().flatten().map(|row| format!("{row}\n")).collect();
        format!("{}{BEGIN}\n{HEAD}\n{rows}{END}{}", self.before, self.after)
    }
}

/// Puts the version of an engine, as the verdict names it, into the line of versions. The first word is the engine's name.
fn with_version(before: &str, version: &str) -> String {
    let name = |version: &str| version.split(' ').next().unwrap_or_default().to_owned();
    let end = before.trim_end();
    let (text, line) = match end.rsplit_once('\n') {
        Some((text, line)) if line.starts_with(VERSIONS) => (text, line),
        _ => (end, VERSIONS),
    };
    let known = line.trim_start_matches(VERSIONS).trim_end_matches('.');
    let mut versions: Vec<_> = known.split(", ").filter(|it| !it.is_empty()).map(str::to_owned).collect();
    versions.retain(|it| name(it) != name(version));
    versions.push(version.to_owned());
    versions.sort();
    format!("{text}\n{VERSIONS}{}.\n\n", versions.join(", "))
}

/// Compares what was seen of one engine with what the document says of it. With another version of an engine the rows must be the
/// same; the document names the version that they were written with.
pub(crate) fn compare(engine: &str, seen: &[Row], version: Option<&str>) {
    // One test at a time: each knows only its own rows.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(DOCUMENT);
    let mut document = Document::read(&fs::read_to_string(path).expect("docs/ENGINES.md"));
    let place = ENGINES.iter().position(|known| *known == engine).expect("an engine of the matrix");
    if std::env::var_os("ASSAY_WRITE_MATRIX").is_some_and(|value| value == "1") {
        document.rows.insert(place, seen.to_vec());
        if let Some(version) = version {
            document.before = with_version(&document.before, version);
        }
        fs::write(path, document.write()).expect("write");
        return;
    }
    let show = |rows: &[Row]| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    let written = document.rows.get(&place).map_or(&[][..], Vec::as_slice);
    assert!(
        written == seen,
        "docs/ENGINES.md says of {engine}:\n{}and this was seen:\n{}HINT: look at both; if what was seen is right, run \
         ASSAY_WRITE_MATRIX=1 ./test engines",
        show(written),
        show(seen)
    );
}

#[test]
fn a_matrix_that_is_written_is_read_again() {
    let text =
        format!("before\n{BEGIN}\n{HEAD}\n| git | a byte | FAIL | `x` | L2 | its name |\n{END}\nafter\n");
    let mut document = Document::read(&text);
    assert_eq!(document.write(), text);
    let row = Row(["SQLite", "a page", "FAIL", "`y`", "L2", "–"].map(str::to_owned));
    document.rows.insert(1, vec![row.clone()]);
    assert_eq!(Document::read(&document.write()).rows[&1], [row]);
}

#[test]
fn each_engine_has_one_version_in_the_line_above() {
    let first = with_version("text\n\n", "git 2.47.3");
    assert_eq!(first, format!("text\n{VERSIONS}git 2.47.3.\n\n"));
    let more = with_version(&first, "SQLite 3.51.1");
    assert_eq!(more, format!("text\n{VERSIONS}SQLite 3.51.1, git 2.47.3.\n\n"));
    assert_eq!(with_version(&more, "git 2.50.0"), format!("text\n{VERSIONS}SQLite 3.51.1, git 2.50.0.\n\n"));
}

/// The document itself, even when the tests of an engine are not run.
#[test]
fn every_engine_has_rows() {
    let document = Document::read(&fs::read_to_string(DOCUMENT).expect("docs/ENGINES.md"));
    for (place, engine) in ENGINES.iter().enumerate() {
        assert!(document.rows.contains_key(&place), "{engine} has no rows");
    }
}
