//! The tables of docs/CRASH.md: what came of each fault, place by place. `ASSAY_WRITE_MATRIX=1 ./test crash --long` writes what was
//! seen; otherwise the tests make sure that every place has its row.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

use assay_common::fault::{Agent, Point};

use crate::{disk::Kind, rig::Outcome};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CRASH.md");
const BEGIN: &str = "<!-- table: written by ASSAY_WRITE_MATRIX=1 ./test crash --long -->";
const END: &str = "<!-- end of table -->";
const COLUMNS: [&str; 6] = ["place", "agent", "ext4", "XFS", "btrfs", "on an I/O error, on a full disk"];

/// What was done at a place on one file system.
#[derive(Debug, Default, Clone)]
pub(crate) struct Cell {
    pub(crate) kills: u64,
    pub(crate) cuts: u64,
    pub(crate) outcomes: BTreeSet<Outcome>,
}

impl Cell {
    fn text(&self) -> String {
        let outcomes: Vec<_> = self.outcomes.iter().map(|outcome| outcome.words()).collect();
        let mut counts = vec![format!("{} kills", self.kills)];
        if self.cuts > 0 {
            counts.push(format!("{} cuts", self.cuts));
        }
        format!("{}: {}", counts.join(", "), outcomes.join(" or "))
    }
}

/// The counts by place of one file system.
pub(crate) type Seen = BTreeMap<Point, Cell>;

/// What the tests of this process have seen.
#[derive(Default)]
struct All {
    by_kind: BTreeMap<Kind, Seen>,
    errors: BTreeMap<Point, String>,
}

static ALL: Mutex<Option<All>> = Mutex::new(None);

fn with<T>(work: impl FnOnce(&mut All) -> T) -> T {
    work(ALL.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// Prints the table.
pub(crate) fn print() {
    with(|all| println!("{}", table(all)));
}

/// Notes what was seen on a file system.
pub(crate) fn note(kind: Kind, seen: &Seen) {
    with(|all| {
        let rows = all.by_kind.entry(kind).or_default();
        for (point, cell) in seen {
            let row = rows.entry(*point).or_default();
            row.kills += cell.kills;
            row.cuts += cell.cuts;
            row.outcomes.extend(&cell.outcomes);
        }
        settle(all);
    });
}

/// Notes what runs said to errors.
pub(crate) fn note_errors(errors: BTreeMap<Point, String>) {
    with(|all| {
        all.errors = errors;
        settle(all);
    });
}

fn settle(all: &All) {
    let table = table(all);
    if std::env::var_os("ASSAY_WRITE_MATRIX").is_some_and(|value| value == "1") {
        let text = fs::read_to_string(DOCUMENT).expect("docs/CRASH.md");
        let (before, rest) = text.split_once(BEGIN).expect("the table begins");
        let (_, after) = rest.split_once(END).expect("the table ends");
        fs::write(DOCUMENT, format!("{before}{BEGIN}\n{table}{END}{after}")).expect("write");
    }
}

fn table(all: &All) -> String {
    let mut table = format!("| {} |\n|{}\n", COLUMNS.join(" | "), " --- |".repeat(COLUMNS.len()));
    for point in Point::ALL {
        let agent = match point.agent() {
            Agent::Source => "source",
            Agent::Target => "target",
            Agent::Both => "both",
        };
        let mut row = vec![format!("`{}`", point.name()), agent.to_owned()];
        for kind in Kind::ALL {
            let cell = all.by_kind.get(&kind).and_then(|seen| seen.get(point));
            row.push(cell.map_or_else(|| "–".to_owned(), Cell::text));
        }
        row.push(all.errors.get(point).cloned().unwrap_or_else(|| "–".to_owned()));
        table.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    table
}

/// A place that was added to the list has no row until the long suite has been run with it, and one that is gone has none.
#[test]
fn every_place_has_its_row() {
    let text = fs::read_to_string(Path::new(DOCUMENT)).expect("docs/CRASH.md");
    let (_, rest) = text.split_once(BEGIN).expect("the table begins");
    let (table, _) = rest.split_once(END).expect("the table ends");
    let rows: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let points: Vec<_> = Point::ALL.iter().map(|point| point.name()).collect();
    assert_eq!(rows, points, "HINT: ASSAY_WRITE_MATRIX=1 ./test crash --long");
}
