//! References between rows of the catalogue. amcheck looks at the catalogue's tables and indexes and not at what their rows say of each
//! other: without its row in `pg_attribute` a column is gone, and the server cannot read the table, while each page is sound.

use std::collections::{HashMap, HashSet};

use super::{
    meaning::ServerError,
    session::{Row, Session, number, text, truth},
};

/// Rows that are told; more of the same would not tell more.
const MAX_TOLD: usize = 20;

/// What the catalogue of a database says of its relations, as rows of text.
#[derive(Debug, Default)]
struct Catalogue {
    /// `pg_namespace`: its number, its name.
    schemas: Vec<Row>,
    /// `pg_class`: its number, schema, name, kind, count of columns.
    classes: Vec<Row>,
    /// `pg_attribute`: relation, number, type, whether it was dropped.
    attributes: Vec<Row>,
    /// `pg_type`: its number.
    types: Vec<Row>,
    /// `pg_index`: the index, its table.
    indexes: Vec<Row>,
}

/// Reads the catalogue of the session's database, and says which rows are missing.
pub(super) async fn missing(session: &Session, database: &str) -> Result<Vec<String>, ServerError> {
    let catalogue = Catalogue {
        schemas: session.rows("SELECT oid, nspname FROM pg_catalog.pg_namespace").await?,
        classes: session
            .rows("SELECT oid, relnamespace, relname, relkind, relnatts FROM pg_catalog.pg_class")
            .await?,
        attributes: session
            .rows("SELECT attrelid, attnum, atttypid, attisdropped FROM pg_catalog.pg_attribute")
            .await?,
        types: session.rows("SELECT oid FROM pg_catalog.pg_type").await?,
        indexes: session.rows("SELECT indexrelid, indrelid FROM pg_catalog.pg_index").await?,
    };
    let found = catalogue.missing();
    let more = found.len().saturating_sub(MAX_TOLD);
    let named = |text: String| format!("catalogue of database \"{database}\": {text}");
    let mut told: Vec<_> = found.into_iter().take(MAX_TOLD).map(named).collect();
    if more > 0 {
        told.push(named(format!("and {more} further rows are missing")));
    }
    Ok(told)
}

impl Catalogue {
    fn missing(&self) -> Vec<String> {
        let schemas: HashMap<u32, &str> =
            self.schemas.iter().map(|row| (number(row, 0), text(row, 1))).collect();
        let types: HashSet<u32> = self.types.iter().map(|row| number(row, 0)).collect();
        let of_indexes: HashMap<u32, u32> =
            self.indexes.iter().map(|row| (number(row, 0), number(row, 1))).collect();
        let classes: HashSet<u32> = self.classes.iter().map(|row| number(row, 0)).collect();
        let mut columns: HashMap<u32, Vec<&Row>> = HashMap::new();
        for row in &self.attributes {
            // Columns of the system's own have numbers below zero.
            if text(row, 1).parse().is_ok_and(|number: i32| number > 0) {
                columns.entry(number(row, 0)).or_default().push(row);
            }
        }
        let mut found = Vec::new();
        for class in &self.classes {
            let (oid, kind) = (number(class, 0), text(class, 3));
            let schema = schemas.get(&number(class, 1));
            let name = format!("\"{}.{}\"", schema.copied().unwrap_or("?"), text(class, 2));
            if schema.is_none() {
                found.push(format!("pg_namespace lacks the schema {} of {name}", number(class, 1)));
            }
            let own = columns.remove(&oid).unwrap_or_default();
            let wanted = number(class, 4) as usize;
            if own.len() != wanted {
                found.push(format!("pg_attribute has {} of the {wanted} columns of {name}", own.len()));
            }
            for column in own {
                let of_type = number(column, 2);
                if !truth(column, 3) && !types.contains(&of_type) {
                    let column = text(column, 1);
                    found.push(format!("pg_type lacks the type {of_type} of column {column} of {name}"));
                }
            }
            match of_indexes.get(&oid) {
                None if matches!(kind, "i" | "I") => found.push(format!("pg_index lacks the index {name}")),
                Some(table) if !classes.contains(table) => {
                    found.push(format!("pg_class lacks the table {table} of the index {name}"));
                }
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(lines: &[&[&str]]) -> Vec<Row> {
        lines.iter().map(|line| line.iter().map(|it| Some((*it).to_owned())).collect()).collect()
    }

    fn sound() -> Catalogue {
        Catalogue {
            schemas: rows(&[&["2200", "public"]]),
            classes: rows(&[
                &["100", "2200", "t", "r", "2"],
                &["101", "2200", "t_pkey", "i", "1"],
                &["102", "2200", "s", "S", "0"],
            ]),
            attributes: rows(&[
                &["100", "-1", "27", "f"],
                &["100", "1", "23", "f"],
                &["100", "2", "0", "t"],
                &["101", "1", "23", "f"],
                // Of a relation that is gone: nobody asks for it.
                &["99", "1", "23", "f"],
            ]),
            types: rows(&[&["23"], &["27"]]),
            indexes: rows(&[&["101", "100"]]),
        }
    }

    #[test]
    fn each_row_that_another_needs_is_missed() {
        type Damage = fn(&mut Catalogue);
        assert_eq!(sound().missing(), [""; 0]);
        let cases: [(Damage, &str); 5] = [
            (|it| drop(it.attributes.remove(1)), "pg_attribute has 1 of the 2 columns of \"public.t\""),
            (|it| drop(it.types.remove(0)), "pg_type lacks the type 23 of column 1 of \"public.t\""),
            (|it| it.indexes.clear(), "pg_index lacks the index \"public.t_pkey\""),
            (|it| drop(it.classes.remove(0)), "pg_class lacks the table 100 of the index \"public.t_pkey\""),
            (|it| it.schemas.clear(), "pg_namespace lacks the schema 2200 of \"?.t\""),
        ];
        for (damage, expected) in cases {
            let mut catalogue = sound();
            damage(&mut catalogue);
            let missing = catalogue.missing();
            assert!(missing.iter().any(|it| it == expected), "{expected}: {missing:?}");
        }
    }
}
