//! The relations of a database, as its catalogue names them. Rows are read whole and put together here, so that no operator of the
//! copy decides which there are.

use std::collections::{BTreeSet, HashMap};

use super::{
    meaning::ServerError,
    session::{Session, number, text, truth},
};

/// Objects that the cluster made when it was new have smaller numbers (access/transam.h).
pub(super) const FIRST_NORMAL_OID: u32 = 16384;
/// `DEFAULT_COLLATION_OID`, `C_COLLATION_OID` and `POSIX_COLLATION_OID`.
const DEFAULT_COLLATION: u32 = 100;
const PLAIN_COLLATIONS: [u32; 2] = [950, 951];

/// Functions that an index may call (`provolatile` i) and whose results come out of files of the host (catalog/pg_proc.dat): the
/// time zones of functions that are given a zone's name, and the dictionaries of text search.
const OF_THE_HOST: [u32; 20] = [
    1159, 2069, 1284, 6222, 6273, // timezone, date_trunc, date_add, date_subtract
    3723, 3745, 4211, 4212, 4214, 4216, // ts_lexize, to_tsvector, json_to_tsvector
    3746, 3747, 5006, 5007, // to_tsquery and its kin
    3743, 3744, 4201, 4205, 4206, // ts_headline
];

/// A relation with a file.
#[derive(Debug, Clone)]
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) database: String,
    pub(super) schema: String,
    pub(super) name: String,
    /// `relkind`: r, m, t, i, S.
    pub(super) kind: char,
    pub(super) owner: u32,
    pub(super) access_method: String,
    /// Below the data directory, without a fork's or a segment's ending.
    pub(super) file: String,
    /// How many pages it had when VACUUM or ANALYZE last looked (`relpages`): a hint, which may be of any age.
    pub(super) pages_once: u64,
    pub(super) index: Option<Index>,
    /// Its TOAST table, or 0.
    pub(super) toast: u32,
    /// Its result is carried: nothing of it is looked at.
    pub(super) is_carried: bool,
}

/// Whether a key of an index stands for one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unique {
    No,
    /// The key is all that its entries hold.
    Whole,
    /// Its entries hold more columns (`INCLUDE`).
    WithMore,
}

/// What an index is made of.
#[derive(Debug, Clone)]
pub(super) struct Index {
    pub(super) table: u32,
    /// Why it is not used, and so not checked.
    pub(super) unusable: Option<&'static str>,
    pub(super) unique: Unique,
    /// The collations of its columns, but for C.
    pub(super) collations: BTreeSet<u32>,
    /// It has an expression or a predicate.
    pub(super) computed: bool,
    /// Functions that its expressions call and that came with the application or an extension.
    pub(super) functions: BTreeSet<u32>,
    /// Its expressions call a function whose results come out of files of the host.
    pub(super) asks_host: bool,
    /// It is ordered by an operator class that came with the application or an extension.
    pub(super) own_order: bool,
    /// Its expressions name something that the cluster did not have when it was new.
    pub(super) names_own: bool,
}

impl Index {
    /// A plain one, of a catalogue.
    pub(super) fn plain(table: u32) -> Self {
        Self {
            table,
            unusable: None,
            unique: Unique::No,
            collations: BTreeSet::new(),
            computed: false,
            functions: BTreeSet::new(),
            asks_host: false,
            own_order: false,
            names_own: false,
        }
    }

    /// True when a check of it calls code that came with the copy.
    pub(super) fn runs_code(&self) -> bool {
        self.computed || self.own_order
    }

    pub(super) fn uses_default_collation(&self) -> bool {
        self.collations.contains(&DEFAULT_COLLATION)
    }
}

impl Relation {
    /// Its kind and its name.
    pub(super) fn title(&self) -> String {
        let kind = match (self.kind, self.access_method.as_str()) {
            ('i', "btree") => "B-tree index",
            ('i', other) => return format!("{other} index \"{}\"", self.path()),
            ('t', _) => "TOAST table",
            ('m', _) => "materialized view",
            ('S', _) => "sequence",
            _ => "table",
        };
        format!("{kind} \"{}\"", self.path())
    }

    /// Its file as a finding names it: from the end of the copy's path on. A tablespace is a root of its own there.
    pub(super) fn shown_file(&self) -> &str {
        let in_space = self.file.strip_prefix("pg_tblspc/").and_then(|rest| rest.split_once('/'));
        in_space.map_or(&self.file, |(_, rest)| rest)
    }

    fn path(&self) -> String {
        format!("{}.{}.{}", self.database, self.schema, self.name)
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.kind, 'r' | 'm' | 't')
    }
}

/// What a database holds.
#[derive(Debug, Default)]
pub(super) struct Relations {
    /// With a file, in the order of the catalogue.
    pub(super) all: Vec<Relation>,
    pub(super) foreign_tables: u64,
    pub(super) temporary: u64,
}

impl Relations {
    pub(super) async fn read(session: &Session, database: &str) -> Result<Self, ServerError> {
        let names = |rows: Vec<super::session::Row>| -> HashMap<u32, String> {
            rows.iter().map(|row| (number(row, 0), text(row, 1).to_owned())).collect()
        };
        let schemas = names(session.rows("SELECT oid, nspname FROM pg_catalog.pg_namespace").await?);
        let methods = names(session.rows("SELECT oid, amname FROM pg_catalog.pg_am").await?);
        let mut indexes = indexes(session).await?;
        let query = "SELECT oid, relnamespace, relname, relkind, relpersistence, relam, relowner, \
             pg_catalog.pg_relation_filepath(oid), relpages, reltoastrelid FROM pg_catalog.pg_class";
        let mut relations = Self::default();
        for row in session.rows(query).await? {
            let kind = text(&row, 3).chars().next().unwrap_or_default();
            if text(&row, 4) == "t" {
                relations.temporary += 1;
                continue;
            }
            if kind == 'f' {
                relations.foreign_tables += 1;
            }
            if !matches!(kind, 'r' | 'm' | 't' | 'i' | 'S') {
                continue;
            }
            let oid = number(&row, 0);
            relations.all.push(Relation {
                oid,
                database: database.to_owned(),
                schema: schemas.get(&number(&row, 1)).cloned().unwrap_or_default(),
                name: text(&row, 2).to_owned(),
                kind,
                owner: number(&row, 6),
                access_method: methods.get(&number(&row, 5)).cloned().unwrap_or_default(),
                file: text(&row, 7).to_owned(),
                pages_once: number(&row, 8).into(),
                index: indexes.remove(&oid),
                toast: number(&row, 9),
                is_carried: false,
            });
        }
        Ok(relations)
    }
}

async fn indexes(session: &Session) -> Result<HashMap<u32, Index>, ServerError> {
    let query = "SELECT indexrelid, indrelid, indisvalid, indisready, indislive, indcollation, indclass, \
         indexprs, indpred, indisunique, indnatts = indnkeyatts FROM pg_catalog.pg_index";
    let rows = session.rows(query).await?;
    let index = |row: &super::session::Row| {
        let unusable = match (truth(row, 2), truth(row, 3), truth(row, 4)) {
            (true, true, true) => None,
            _ => Some("it is not valid: CREATE INDEX CONCURRENTLY or REINDEX CONCURRENTLY did not end"),
        };
        let numbers = |at: usize| text(row, at).split_whitespace().filter_map(|it| it.parse::<u32>().ok());
        let trees = [text(row, 7), text(row, 8)];
        Index {
            table: number(row, 1),
            unusable,
            unique: match (truth(row, 9), truth(row, 10)) {
                (false, _) => Unique::No,
                (true, true) => Unique::Whole,
                (true, false) => Unique::WithMore,
            },
            collations: numbers(5).filter(|it| *it != 0 && !PLAIN_COLLATIONS.contains(it)).collect(),
            computed: trees.iter().any(|tree| !tree.is_empty()),
            functions: trees
                .iter()
                .flat_map(|tree| called(tree))
                .filter(|it| *it >= FIRST_NORMAL_OID)
                .collect(),
            asks_host: trees.iter().flat_map(|tree| called(tree)).any(|it| OF_THE_HOST.contains(&it)),
            own_order: numbers(6).any(|it| it >= FIRST_NORMAL_OID),
            names_own: trees.iter().any(|tree| names_own(tree)),
        }
    };
    Ok(rows.iter().map(|row| (number(row, 0), index(row))).collect())
}

/// The functions and operators of an expression (`pg_node_tree`).
fn called(tree: &str) -> BTreeSet<u32> {
    const FIELDS: [&str; 5] = [":funcid", ":opfuncid", ":opno", ":elemfuncid", ":resulttype"];
    let mut words = tree.split([' ', '\n', '(', ')', '{', '}']).filter(|it| !it.is_empty());
    let mut found = BTreeSet::new();
    while let Some(word) = words.next() {
        if FIELDS.contains(&word)
            && let Some(number) = words.next().and_then(|it| it.parse().ok())
        {
            found.insert(number);
        }
    }
    found
}

/// True for an expression in which any number stands that something of the application or an extension can have.
fn names_own(tree: &str) -> bool {
    let numbers = tree.split(|it: char| !it.is_ascii_digit()).filter(|it| !it.is_empty());
    numbers.into_iter().any(|it| it.parse::<u64>().map_or(true, |number| number >= FIRST_NORMAL_OID.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_in_an_expression() {
        let tree = "({FUNCEXPR :funcid 16402 :funcresulttype 25 :args ({OPEXPR :opno 98 :opfuncid 67} {VAR :varno 1})})";
        assert_eq!(called(tree), BTreeSet::from([67, 98, 16402]));
        assert_eq!(called(""), BTreeSet::new());
        assert!(names_own(tree) && names_own("{RELABELTYPE :resulttype 99999999999999999999}"));
        assert!(!names_own("") && !names_own("({FUNCEXPR :funcid 870 :location 16})"));
    }

    #[test]
    fn a_file_of_a_tablespace_is_named_as_it_lies_in_its_root() {
        let relation = |file: &str| Relation {
            oid: 1,
            database: "app".into(),
            schema: "public".into(),
            name: "t".into(),
            kind: 'r',
            owner: 10,
            access_method: "heap".into(),
            file: file.into(),
            pages_once: 0,
            index: None,
            toast: 0,
            is_carried: false,
        };
        assert_eq!(relation("base/5/16384").shown_file(), "base/5/16384");
        let in_space = relation("pg_tblspc/16385/PG_15_202209061/5/16390");
        assert_eq!(in_space.shown_file(), "PG_15_202209061/5/16390");
        assert_eq!(in_space.title(), "table \"app.public.t\"");
    }

    #[test]
    fn an_index_that_computes_or_sorts_by_itself_runs_code() {
        let index = Index {
            table: 1,
            unusable: None,
            unique: Unique::No,
            collations: BTreeSet::from([100]),
            computed: false,
            functions: BTreeSet::new(),
            asks_host: false,
            own_order: false,
            names_own: false,
        };
        assert!(!index.runs_code() && index.uses_default_collation());
        assert!(Index { computed: true, ..index.clone() }.runs_code());
        assert!(Index { own_order: true, ..index }.runs_code());
    }
}
