//! Reads the rows of an integrity check, and says what each means for a schema in which something may be the application's own.

use std::io;

use rusqlite::{Connection, ErrorCode};

use super::{
    Database, Unable,
    schema::{Own, Schema},
    text_of,
    words::{self, Meaning},
};
use crate::engine::report::Report;

/// Rows of damage of one database that are told; more of the same would not tell more.
const MAX_DAMAGE: u64 = 200;

/// The rows of an integrity check as they come.
pub(super) struct Reading<'a, W: io::Write> {
    database: &'a Database,
    schema: &'a Schema,
    report: &'a mut Report<W>,
    damage: u64,
    /// What kept the check from looking.
    pub(super) unable: Option<Unable>,
}

impl<'a, W: io::Write> Reading<'a, W> {
    pub(super) fn new(database: &'a Database, schema: &'a Schema, report: &'a mut Report<W>) -> Self {
        Self { database, schema, report, damage: 0, unable: None }
    }

    /// Takes the rows of a query.
    pub(super) fn rows(&mut self, connection: &Connection, query: &str) -> rusqlite::Result<()> {
        let mut statement = connection.prepare(query)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let text: String = row.get(0)?;
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                self.take(line);
            }
            if self.damage >= MAX_DAMAGE {
                break;
            }
        }
        Ok(())
    }

    /// Asks every `CHECK` of the schema. SQLite's own check does not do that in a database that is opened for reading only.
    pub(super) fn constraints(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        for (table, checks) in &self.schema.checks {
            let quoted = table.replace('"', "\"\"");
            for check in checks {
                // A constraint holds for NULL. The line end closes a comment of the definition's.
                let query = format!("select 1 from \"{quoted}\" where not ({check}\n) limit 1");
                let is_broken = connection.prepare(&query).and_then(|mut query| query.exists([]));
                match is_broken {
                    Ok(false) => {}
                    Ok(true) => self.take(&format!("CHECK constraint failed in {table}")),
                    // What the check of the pages has told, or a definition that is read otherwise than it was meant.
                    Err(error) => {
                        let part = format!("{} constraints of table {table}", self.database.shown);
                        self.report.not_covered(&part, &text_of(&error));
                    }
                }
            }
        }
        Ok(())
    }

    /// Asks table by table, where one cannot be read.
    pub(super) fn by_table(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection.prepare("select name from sqlite_schema where type = 'table'")?;
        let tables = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
        for table in tables {
            let quoted = table.replace('\'', "''");
            match self.rows(connection, &format!("pragma integrity_check('{quoted}')")) {
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::Unknown) => {
                    let part = format!("{} table {table}", self.database.shown);
                    self.report.not_covered(&part, &text_of(&error));
                }
                ended => ended?,
            }
        }
        let part = format!("{} free pages", self.database.shown);
        self.report
            .not_covered(&part, "SQLite looks for pages without an owner only where it can read every table");
        Ok(())
    }

    fn take(&mut self, row: &str) {
        let shown = &self.database.shown;
        let after =
            |words: &str| row.split_once(words).map(|(_, name)| name.trim().to_owned()).unwrap_or_default();
        let table_of = |name: &str| {
            let mut tables = self.schema.dependent_tables.iter();
            tables.find(|(table, _)| {
                name == *table || name.strip_prefix(*table).is_some_and(|it| it.starts_with('.'))
            })
        };
        // Where the index has a part of the rows on purpose, SQLite says the same as of a broken one.
        let is_external = row
            .rsplit_once("inverted index for FTS4 table main.")
            .is_some_and(|(_, name)| self.schema.external_content.iter().any(|it| it == name));
        if is_external {
            return;
        }
        let own = match words::meaning(row) {
            Some(Meaning::Silent) => return,
            Some(Meaning::Note) => return self.report.note(&format!("{shown}: {row}")),
            Some(Meaning::Damage) => None,
            Some(Meaning::Unread) => {
                let name = after(" table ");
                let (name, why) = name.split_once(": ").unwrap_or((&name, "it cannot be read"));
                let why =
                    format!("SQLite says \"{why}\", as it does where the tokenizer is the application's");
                return self.report.not_covered(&format!("{shown} full-text index {name}"), &why);
            }
            Some(Meaning::Index) => self.schema.dependent_indexes.get(&after(" index ")).cloned(),
            Some(Meaning::Constraint) => table_of(&after(" in ")).map(|(_, own)| own.clone()),
            Some(Meaning::Order) => {
                let start = format!("sqlite_autoindex_{}_", after(" order for "));
                let mut indexes = self.schema.dependent_indexes.iter();
                indexes.find(|(name, _)| name.starts_with(&start)).map(|(_, own)| own.clone())
            }
            None => {
                let message = format!("{shown}: SQLite says \"{row}\", which is not known as damage");
                self.unable.get_or_insert(Unable::Checker(message));
                return;
            }
        };
        match own {
            None => {
                self.damage += 1;
                self.report.damage(&format!("{shown}: {row}"));
            }
            // It is named as not covered, once.
            Some(Own::Unknown(_)) => {}
            Some(Own::Replaceable(what)) => {
                let message = format!(
                    "{shown}: {row}; {what} may be the application's own, or differ in the live host's version of SQLite, so PRAGMA \
                     integrity_check there decides"
                );
                self.unable.get_or_insert(Unable::Application(message));
            }
        }
    }
}
