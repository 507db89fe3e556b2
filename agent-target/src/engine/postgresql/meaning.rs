//! What an error of PostgreSQL means: the one place that decides between damage and a check that could not look.
//!
//! Damage needs a word of PostgreSQL that means damage: the SQLSTATEs XX001 and XX002, a file of the cluster that is missing, or
//! one of the texts below. Everything else kept the check from looking, and says nothing about the data.

use std::fmt;

/// Why a part could not be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// The part is sorted by a library of another version.
    Collation,
    /// A locale of the copy is not installed here.
    Locale,
    /// The expression of an index calls a function that does not work here.
    IndexFunction,
    /// A library of an extension is not installed here.
    Extension,
    /// Memory, disk or locks ran out, or this host's disk fails.
    Resources,
    /// The server ended while it looked.
    ServerEnded,
    /// Any other error.
    Other,
}

impl Reason {
    /// The word that the profile knows it by.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Collation => "collation-mismatch",
            Self::Locale => "locale-missing",
            Self::IndexFunction => "index-function",
            Self::Extension => "extension-missing",
            Self::Resources => "resources",
            Self::ServerEnded => "server-ended",
            Self::Other => "checker-error",
        }
    }
}

/// What an error says about the part that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The part is damaged.
    Damage,
    /// Entries of an index are out of order: damage, unless they are sorted by another library here.
    Order,
    /// A row of the table has no entry in the index: damage, unless the index asks a function of the copy what the entry is.
    LacksEntry,
    /// PostgreSQL cannot do this with a part of this kind.
    Unsupported,
    /// The check could not look.
    NotLooked(Reason),
}

/// An error of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerError {
    pub(super) state: String,
    pub(super) message: String,
    pub(super) detail: String,
}

impl fmt::Display for ServerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        if !self.detail.is_empty() {
            write!(formatter, " ({})", self.detail)?;
        }
        if !self.state.is_empty() {
            write!(formatter, " [{}]", self.state)?;
        }
        Ok(())
    }
}

impl ServerError {
    /// Of a failed call. An error without a SQLSTATE is a connection that broke.
    pub(super) fn of(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(said) => Self {
                state: said.code().code().to_owned(),
                message: said.message().to_owned(),
                detail: said.detail().unwrap_or_default().to_owned(),
            },
            None => Self { state: String::new(), message: error.to_string(), detail: String::new() },
        }
    }

    /// True if the connection broke, or the server ended it.
    pub(super) fn is_lost(&self) -> bool {
        self.state.is_empty() || ["57P01", "57P02", "57P03"].contains(&self.state.as_str())
    }

    pub(super) fn meaning(&self) -> Meaning {
        let fits = |rule: &&Rule| {
            self.state.starts_with(rule.state)
                && (self.message.contains(rule.text) || self.detail.contains(rule.text))
        };
        RULES.iter().find(fits).map_or(Meaning::NotLooked(Reason::Other), |rule| rule.meaning)
    }
}

struct Rule {
    /// A SQLSTATE, or how it begins.
    state: &'static str,
    /// Words of the message or of its detail; empty for any.
    text: &'static str,
    meaning: Meaning,
}

const fn rule(state: &'static str, text: &'static str, meaning: Meaning) -> Rule {
    Rule { state, text, meaning }
}

/// The first rule that fits counts.
const RULES: [Rule; 38] = [
    // An aborted connection has no SQLSTATE, and every text begins with none: this must not fit all.
    rule("57", "", Meaning::NotLooked(Reason::ServerEnded)),
    rule("08", "", Meaning::NotLooked(Reason::ServerEnded)),
    // amcheck's findings about B-trees (contrib/amcheck/verify_nbtree.c).
    // It has the SQLSTATE of a damaged table.
    rule("XX00", "lacks matching index tuple", Meaning::LacksEntry),
    rule("XX002", "item order invariant violated", Meaning::Order),
    rule("XX002", "high key invariant violated", Meaning::Order),
    rule("XX002", "cross page item order invariant violated", Meaning::Order),
    rule("XX002", "down-link lower bound invariant violated", Meaning::Order),
    rule("XX002", "mismatch between parent key and child high key", Meaning::Order),
    rule("XX002", "could not find tuple using search from root page", Meaning::Order),
    rule("XX002", "index uniqueness is violated", Meaning::Order),
    rule("XX002", "", Meaning::Damage),
    rule("XX001", "", Meaning::Damage),
    // A file of the cluster that is not there. The same SQLSTATE stands for a library of an extension.
    rule("58P01", "could not access status of transaction", Meaning::Damage),
    rule("58P01", "\"base/", Meaning::Damage),
    rule("58P01", "\"global/", Meaning::Damage),
    rule("58P01", "\"pg_tblspc/", Meaning::Damage),
    rule("58P01", "\"pg_xact/", Meaning::Damage),
    rule("58P01", "\"pg_multixact/", Meaning::Damage),
    rule("3D000", "is missing", Meaning::Damage),
    rule("XX000", "relation mapping file", Meaning::Damage),
    rule("XX000", "could not access status of transaction", Meaning::Damage),
    // A list of transactions that the cluster does not have (access/transam/multixact.c).
    rule("XX000", "MultiXactId ", Meaning::Damage),
    rule("22023", "is not a valid data directory", Meaning::Damage),
    rule("XX000", "pg_attribute catalog is missing", Meaning::Damage),
    rule("58P01", "", Meaning::NotLooked(Reason::Extension)),
    rule("42883", "could not find function", Meaning::NotLooked(Reason::Extension)),
    // "database locale is incompatible with operating system", "could not create locale".
    rule("22023", "locale", Meaning::NotLooked(Reason::Locale)),
    rule("22023", "collator", Meaning::NotLooked(Reason::Locale)),
    rule("F0000", "locale", Meaning::NotLooked(Reason::Locale)),
    // Version 15 gives the first of these without a SQLSTATE of its own.
    rule("XX000", "locale is incompatible", Meaning::NotLooked(Reason::Locale)),
    rule("XX000", "could not open collator", Meaning::NotLooked(Reason::Locale)),
    rule("0A000", "ICU is not supported", Meaning::NotLooked(Reason::Locale)),
    rule("0A000", "", Meaning::Unsupported),
    rule("42809", "", Meaning::Unsupported),
    rule("53", "", Meaning::NotLooked(Reason::Resources)),
    rule("58030", "", Meaning::NotLooked(Reason::Resources)),
    rule("55P03", "", Meaning::NotLooked(Reason::Resources)),
    rule("54", "", Meaning::NotLooked(Reason::Resources)),
];

/// What a line of the server's log means before the server accepts connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogMeaning {
    /// The copy does not recover to a consistent state.
    NotRestorable,
    /// A page or file is damaged.
    Damage,
}

/// Texts of a FATAL or PANIC (or of an ERROR) that ends the start of a server (backend/access/transam/xlog*.c).
const START_TEXTS: [(&str, LogMeaning); 21] = [
    ("could not locate a valid checkpoint record", LogMeaning::NotRestorable),
    ("could not locate required checkpoint record", LogMeaning::NotRestorable),
    ("could not find redo location", LogMeaning::NotRestorable),
    ("WAL ends before", LogMeaning::NotRestorable),
    ("WAL contains references to invalid pages", LogMeaning::NotRestorable),
    ("incorrect checksum in control file", LogMeaning::NotRestorable),
    ("control file contains invalid", LogMeaning::NotRestorable),
    ("invalid data in file \"backup_label\"", LogMeaning::NotRestorable),
    ("invalid data in file \"tablespace_map\"", LogMeaning::NotRestorable),
    ("requested timeline", LogMeaning::NotRestorable),
    ("could not access status of transaction", LogMeaning::NotRestorable),
    ("could not open critical system index ", LogMeaning::Damage),
    ("invalid page in block", LogMeaning::Damage),
    ("page verification failed", LogMeaning::Damage),
    ("could not read block ", LogMeaning::Damage),
    ("relation mapping file ", LogMeaning::Damage),
    ("could not open file \"base/", LogMeaning::Damage),
    ("could not open file \"global/", LogMeaning::Damage),
    ("could not open file \"pg_xact/", LogMeaning::Damage),
    ("could not open file \"pg_multixact/", LogMeaning::Damage),
    ("could not open file \"pg_tblspc/", LogMeaning::Damage),
];
/// Words of the operating system that tell of this host rather than of the data.
const HOST_ERRORS: [&str; 6] = [
    "Input/output error",
    "No space left on device",
    "Permission denied",
    "Too many open files",
    "Cannot allocate memory",
    "Read-only file system",
];

/// Reads a line of the log, without its prefix. `None` when it does not mean damage.
pub(super) fn start_line(line: &str) -> Option<LogMeaning> {
    let levels = ["ERROR:  ", "FATAL:  ", "PANIC:  "];
    let text = levels.iter().find_map(|level| line.strip_prefix(level))?;
    if HOST_ERRORS.iter().any(|words| text.contains(words)) {
        return None;
    }
    START_TEXTS.iter().find(|(words, _)| text.starts_with(words)).map(|(_, meaning)| *meaning)
}

/// Texts with which a server answers a dump that reads a damaged value.
const DUMP_TEXTS: [&str; 10] = [
    // Rows of the catalogue that are gone. Nobody changes the copy while it is dumped.
    "pg_attribute catalog is missing",
    "cache lookup failed for",
    "invalid page in block",
    "could not read block ",
    "page verification failed",
    "missing chunk number",
    "unexpected chunk number",
    "unexpected chunk size",
    "compressed ",
    "could not open file \"base/",
];

/// Reads the text of an error that `pg_dump` shows.
pub(super) fn is_damage_of_a_dump(text: &str) -> bool {
    let host = HOST_ERRORS.iter().any(|words| text.contains(words));
    !host
        && DUMP_TEXTS.iter().any(|words| text.starts_with(words))
        && (!text.starts_with("compressed ") || text.contains("data is corrupt"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(state: &str, message: &str, detail: &str) -> Meaning {
        ServerError { state: state.into(), message: message.into(), detail: detail.into() }.meaning()
    }

    /// A row for each rule, with texts as PostgreSQL 15 gives them.
    #[test]
    fn damage_is_told_from_a_check_that_could_not_look() {
        use Meaning::{Damage, LacksEntry, NotLooked, Order, Unsupported};
        let not_looked = |reason| NotLooked(reason);
        for (state, message, detail, expected) in [
            ("XX001", "invalid page in block 3 of relation base/5/16384", "", Damage),
            ("XX001", "could not read block 9 in file \"base/5/1\": read only 0 of 8192 bytes", "", Damage),
            ("XX001", "missing chunk number 0 for toast value 16400 in pg_toast_16384", "", Damage),
            ("XX002", "index \"i\" contains unexpected zero page at block 2", "", Damage),
            ("XX002", "index \"i\" lacks a main relation fork", "", Damage),
            ("XX002", "item order invariant violated for index \"i\"", "Lower index tid=(1,2)", Order),
            ("XX002", "high key invariant violated for index \"i\"", "", Order),
            ("XX002", "cross page item order invariant violated for index \"i\"", "", Order),
            ("XX002", "down-link lower bound invariant violated for index \"i\"", "", Order),
            ("XX002", "mismatch between parent key and child high key in index \"i\"", "", Order),
            ("XX002", "could not find tuple using search from root page in index \"i\"", "", Order),
            ("XX002", "index uniqueness is violated for index \"i\"", "", Order),
            (
                "XX001",
                "heap tuple (0,1) from table \"t\" lacks matching index tuple within index \"i\"",
                "",
                LacksEntry,
            ),
            ("58P01", "could not open file \"base/5/16384\": No such file or directory", "", Damage),
            ("58P01", "could not open file \"global/1262\": No such file or directory", "", Damage),
            ("XX000", "MultiXactId 1 has not been created yet -- apparent wraparound", "", Damage),
            (
                "22023",
                "\"base/5\" is not a valid data directory",
                "File \"base/5/PG_VERSION\" is missing.",
                Damage,
            ),
            ("58P01", "could not open file \"pg_tblspc/1/PG_15_202209061/5/2\": No such file", "", Damage),
            (
                "58P01",
                "could not access status of transaction 740",
                "Could not open file \"pg_xact/0000\".",
                Damage,
            ),
            ("58P01", "x", "Could not open file \"pg_multixact/offsets/0000\": No such file", Damage),
            ("58P01", "x", "Could not open file \"pg_xact/0000\": No such file", Damage),
            (
                "3D000",
                "database \"a\" does not exist",
                "The database subdirectory \"base/5\" is missing.",
                Damage,
            ),
            ("XX000", "relation mapping file \"base/5/pg_filenode.map\" contains invalid data", "", Damage),
            ("XX000", "could not access status of transaction 9", "Could not read from file.", Damage),
            (
                "58P01",
                "could not access file \"$libdir/postgis-3\": No such file",
                "",
                not_looked(Reason::Extension),
            ),
            (
                "42883",
                "could not find function \"f\" in file \"/lib/x.so\"",
                "",
                not_looked(Reason::Extension),
            ),
            ("42883", "function unaccent(text) does not exist", "", not_looked(Reason::Other)),
            ("42P01", "relation \"settings\" does not exist", "", not_looked(Reason::Other)),
            ("42501", "permission denied for function f", "", not_looked(Reason::Other)),
            ("22023", "could not create locale \"de_DE.utf8\": No such file", "", not_looked(Reason::Locale)),
            (
                "22023",
                "database locale is incompatible with operating system",
                "",
                not_looked(Reason::Locale),
            ),
            ("22023", "could not open collator for locale \"xx\"", "", not_looked(Reason::Locale)),
            (
                "F0000",
                "database locale is incompatible with operating system",
                "",
                not_looked(Reason::Locale),
            ),
            (
                "XX000",
                "database locale is incompatible with operating system",
                "The database was initialized with LC_COLLATE \"de_DE.utf8\",  which is not recognized by setlocale().",
                not_looked(Reason::Locale),
            ),
            ("XX000", "could not open collator for locale \"xx\"", "", not_looked(Reason::Locale)),
            ("0A000", "ICU is not supported in this build", "", not_looked(Reason::Locale)),
            ("0A000", "cannot check index \"i\"", "Index is not valid.", Unsupported),
            ("42809", "\"v\" is not a table", "", Unsupported),
            (
                "53100",
                "could not extend file \"base/5/1\": No space left on device",
                "",
                not_looked(Reason::Resources),
            ),
            ("53200", "out of shared memory", "", not_looked(Reason::Resources)),
            ("55P03", "canceling statement due to lock timeout", "", not_looked(Reason::Resources)),
            ("54001", "stack depth limit exceeded", "", not_looked(Reason::Resources)),
            (
                "58030",
                "could not read block 1 in file \"base/5/1\": Input/output error",
                "",
                not_looked(Reason::Resources),
            ),
            (
                "57P01",
                "terminating connection due to administrator command",
                "",
                not_looked(Reason::ServerEnded),
            ),
            ("57014", "canceling statement due to statement timeout", "", not_looked(Reason::ServerEnded)),
            ("08006", "connection failure", "", not_looked(Reason::ServerEnded)),
            ("", "connection closed", "", not_looked(Reason::Other)),
            ("P0001", "invalid page in block 3", "", not_looked(Reason::Other)),
        ] {
            assert_eq!(meaning(state, message, detail), expected, "{state} {message}");
        }
    }

    #[test]
    fn a_line_of_the_start_means_damage_only_by_its_own_words() {
        use LogMeaning::{Damage, NotRestorable};
        for (line, expected) in [
            ("PANIC:  could not locate a valid checkpoint record", Some(NotRestorable)),
            ("FATAL:  could not locate required checkpoint record", Some(NotRestorable)),
            ("FATAL:  could not find redo location referenced by checkpoint record", Some(NotRestorable)),
            ("FATAL:  WAL ends before end of online backup", Some(NotRestorable)),
            ("PANIC:  WAL contains references to invalid pages", Some(NotRestorable)),
            ("FATAL:  incorrect checksum in control file", Some(NotRestorable)),
            ("FATAL:  invalid data in file \"backup_label\"", Some(NotRestorable)),
            ("PANIC:  could not open critical system index 3593", Some(Damage)),
            ("FATAL:  invalid page in block 2 of relation base/5/16384", Some(Damage)),
            (
                "FATAL:  could not open file \"global/pg_filenode.map\": No such file or directory",
                Some(Damage),
            ),
            ("FATAL:  could not open file \"base/5/1\": Permission denied", None),
            ("FATAL:  could not read block 1 in file \"base/5/1\": Input/output error", None),
            ("FATAL:  terminating connection due to administrator command", None),
            ("FATAL:  could not load library \"/x.so\": no such file", None),
            ("FATAL:  resource manager with ID 130 not registered", None),
            ("LOG:  invalid page in block 2 of relation base/5/16384", None),
            ("LOG:  invalid record length at 0/3000060: wanted 24, got 0", None),
            ("FATAL:  unrecognized configuration parameter \"x\"", None),
        ] {
            assert_eq!(start_line(line), expected, "{line}");
        }
    }

    #[test]
    fn a_dump_tells_damage_by_the_servers_words() {
        assert!(is_damage_of_a_dump("compressed pglz data is corrupt"));
        assert!(is_damage_of_a_dump("missing chunk number 0 for toast value 16400 in pg_toast_16384"));
        assert!(is_damage_of_a_dump("cache lookup failed for type 16385"));
        assert!(is_damage_of_a_dump("pg_attribute catalog is missing 1 attribute(s) for relation OID 16394"));
        assert!(!is_damage_of_a_dump("compressed files are not supported"));
        assert!(!is_damage_of_a_dump("could not read block 1 in file \"base/5/1\": Input/output error"));
        assert!(!is_damage_of_a_dump("permission denied for table t"));
    }
}
