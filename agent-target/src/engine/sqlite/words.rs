//! What the rows of `PRAGMA integrity_check` mean. This is the only place that says it.
//!
//! The rows are those of the SQLite that this program brings. A row about an index is damage only if the index depends on
//! nothing of the application's own: a function, a collation, or a built-in one that the application has replaced.

use std::sync::LazyLock;

use regex::RegexSet;

/// What a row means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The database is damaged.
    Damage,
    /// A table and this index do not agree. The row ends with the index' name.
    Index,
    /// A row breaks a constraint. The text ends with the table's name, or with table and column.
    Constraint,
    /// A value is stored in another form than its column asks for. It is read as it was written.
    Note,
    /// The rows of a table are in another order than its primary key's. The row ends with the table's name.
    Order,
    /// A full-text table could not be looked at: its tokenizer is the application's.
    Unread,
    /// Of no interest.
    Silent,
}

/// An expression for a row, and what it means. The first that matches counts.
const ROWS: &[(&str, Meaning)] = &[
    (r"^ok$", Meaning::Silent),
    (r"^\*\*\* in database \S+ \*\*\*$", Meaning::Silent),
    (
        r"^(?:row \d+ missing from|row \d+ values differ from|rowid not at end-of-record for row \d+ of|non-unique entry in|wrong # of entries in) index ",
        Meaning::Index,
    ),
    (r"^row not in PRIMARY KEY order for ", Meaning::Order),
    // A value of another type, in a STRICT table.
    (r"^(?:NULL value in|CHECK constraint failed in|non-[A-Z]+ value in) ", Meaning::Constraint),
    (r"^[A-Z]+ value in ", Meaning::Note),
    (
        r"^(?:Tree|Freelist|Page|List of tree roots|Main freelist|Pointer map page|Outstanding page)\b",
        Meaning::Damage,
    ),
    (r"^On (?:tree )?page \d+", Meaning::Damage),
    (r"\b(?:max rootpage|incremental_vacuum enabled with)\b", Meaning::Damage),
    (r"^malformed inverted index for FTS\d table ", Meaning::Damage),
    (r"^In RTree ", Meaning::Damage),
    (
        r"\bnode \d+|\bMapping \(|\bChild .*rowid|%_(?:rowid|parent)|%_node|\bCell \d+ on node|Found \(|Rtree depth|Dimension \d+ of cell",
        Meaning::Damage,
    ),
    (r"^(?:database disk image is malformed|file is not a database)$", Meaning::Damage),
    (
        r"^(?:fts5: corrupt|unable to validate the inverted index for FTS\d table .*: (?:database disk image is malformed|fts5: corrupt))",
        Meaning::Damage,
    ),
    (
        r"^unable to validate the inverted index for FTS\d table \S+: (?:SQL logic error|no such tokenizer|unknown tokenizer)",
        Meaning::Unread,
    ),
    (r"\berror code=(?:11|267|523|779|26)$", Meaning::Damage),
    (r"^failed to get page \d+$", Meaning::Damage),
];

static SET: LazyLock<RegexSet> = LazyLock::new(|| {
    RegexSet::new(ROWS.iter().map(|row| row.0)).expect("the table's expressions are tested")
});

/// What a row means. `None`: it is unknown.
pub(super) fn meaning(row: &str) -> Option<Meaning> {
    SET.matches(row).iter().next().map(|index| ROWS[index].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_means_what_the_table_says() {
        for (row, expected) in [
            ("ok", Some(Meaning::Silent)),
            ("*** in database main ***", Some(Meaning::Silent)),
            ("row 7 missing from index i", Some(Meaning::Index)),
            ("row 7 values differ from index i", Some(Meaning::Index)),
            ("rowid not at end-of-record for row 7 of index i", Some(Meaning::Index)),
            ("non-unique entry in index i", Some(Meaning::Index)),
            ("wrong # of entries in index i", Some(Meaning::Index)),
            ("row not in PRIMARY KEY order for t", Some(Meaning::Order)),
            ("NULL value in t.a", Some(Meaning::Constraint)),
            ("CHECK constraint failed in t", Some(Meaning::Constraint)),
            ("NUMERIC value in t.a", Some(Meaning::Note)),
            ("TEXT value in t.a", Some(Meaning::Note)),
            ("non-INTEGER value in t.a", Some(Meaning::Constraint)),
            ("Tree 3 page 7: btreeInitPage() returns error code 11", Some(Meaning::Damage)),
            ("Tree 3 page 7 cell 2: Rowid 9 out of order", Some(Meaning::Damage)),
            ("Page 9: never used", Some(Meaning::Damage)),
            ("Freelist: size is 3 but should be 4", Some(Meaning::Damage)),
            ("malformed inverted index for FTS5 table main.ft", Some(Meaning::Damage)),
            (
                "unable to validate the inverted index for FTS5 table main.ft: database disk image is malformed",
                Some(Meaning::Damage),
            ),
            ("unable to validate the inverted index for FTS5 table main.ft: out of memory", None),
            (
                "unable to validate the inverted index for FTS5 table main.ft: SQL logic error",
                Some(Meaning::Unread),
            ),
            ("In RTree main.r:", Some(Meaning::Damage)),
            ("Mapping (9 -> 1) missing from %_rowid table", Some(Meaning::Damage)),
            ("database disk image is malformed", Some(Meaning::Damage)),
            ("unable to get the page. error code=11", Some(Meaning::Damage)),
            ("unable to get the page. error code=10", None),
            ("something that SQLite 9 says", None),
        ] {
            assert_eq!(meaning(row), expected, "{row}");
        }
    }
}
