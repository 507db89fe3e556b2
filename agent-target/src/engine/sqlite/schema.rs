//! What in a database's schema belongs to the application: functions, collations and modules that only it has, and built-in ones
//! that it may have replaced.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use regex::Regex;
use rusqlite::{Connection, ErrorCode, functions::FunctionFlags, types::Null};

use super::text_of;

/// An identifier before an opening parenthesis.
static CALL: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"(?i)(?:\b([a-z_]\w*)|"([^"]+)")\s*\("#).expect("it is tested"));
/// Operators that call a function which an application may replace.
static OPERATOR: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)\b(?:like|glob|regexp|match)\b|->").expect("it is tested"));
/// The start of an index' definition, up to its columns.
static INDEX: LazyLock<Regex> = LazyLock::new(|| {
    let name = r#"(?:"(?:[^"]|"")*"|\[[^\]]*\]|`[^`]*`|'(?:[^']|'')*'|[^\s("'`\[]+)"#;
    let start = r"(?is)^\s*create\s+(?:unique\s+)?index\s+(?:if\s+not\s+exists\s+)?";
    Regex::new(&format!(r"{start}{name}\s*on\s*{name}\s*")).expect("it is tested")
});
/// Words that stand before a parenthesis and are no functions.
const NO_CALLS: [&str; 24] = [
    "in",
    "and",
    "or",
    "not",
    "on",
    "check",
    "as",
    "where",
    "primary",
    "key",
    "unique",
    "references",
    "default",
    "when",
    "then",
    "else",
    "case",
    "exists",
    "values",
    "using",
    "between",
    "collate",
    "is",
    "always",
];

/// What the check must know of a schema.
#[derive(Debug, Default)]
pub(super) struct Schema {
    pub(super) tables: u64,
    pub(super) indexes: u64,
    /// Full-text and spatial tables that are checked by their own module.
    pub(super) modules: u64,
    /// Indexes whose content depends on something of the application's own, and what that is.
    pub(super) dependent_indexes: BTreeMap<String, Own>,
    /// Tables whose constraints or generated columns do.
    pub(super) dependent_tables: BTreeMap<String, Own>,
    /// Virtual tables that this program cannot read, and why.
    pub(super) unreadable: Vec<(String, String)>,
    /// Full-text indexes over the content of another table, which nothing compares.
    pub(super) external_content: Vec<String>,
}

/// Something of the application's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Own {
    /// It is not known here, so nothing that depends on it can be compared.
    Unknown(String),
    /// It is known here, and the application may have replaced it.
    Replaceable(String),
}

impl Schema {
    /// Reads the schema, and puts harmless stand-ins in place of functions and collations that are not known.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        connection.collation_needed(|connection, name| {
            connection.create_collation(name, |one, other| one.cmp(other))
        })?;
        let list = |query: &str| -> rusqlite::Result<BTreeSet<String>> {
            let mut statement = connection.prepare(query)?;
            let rows = statement.query_map([], |row| Ok(row.get::<_, String>(0)?.to_ascii_lowercase()))?;
            rows.collect()
        };
        let functions = list("select distinct name from pragma_function_list")?;
        let modules = list("select name from pragma_module_list")?;
        let collations = list("select name from pragma_collation_list")?;
        let mut schema = Self::default();
        let mut statement = connection
            .prepare("select type, name, tbl_name, coalesce(sql, '') from sqlite_schema order by rowid")?;
        let rows = statement.query_map([], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, String>(2)?,
                row.get::<_, String>(3)?,
            ))
        })?;
        let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        let mut stand_ins = BTreeSet::new();
        let mut own = |expression: &str| {
            let calls = calls(expression);
            let unknown: Vec<_> = calls.iter().filter(|it| !functions.contains(*it)).cloned().collect();
            stand_ins.extend(unknown.iter().cloned());
            match (unknown.first(), calls.first()) {
                (Some(name), _) => Some(Own::Unknown(format!("the function {name}()"))),
                (None, Some(name)) => Some(Own::Replaceable(format!("the function {name}()"))),
                (None, None) => OPERATOR
                    .find(expression)
                    .map(|it| Own::Replaceable(format!("the operator {}", it.as_str().to_ascii_uppercase()))),
            }
        };
        let mut generated = BTreeMap::new();
        for (kind, name, _, sql) in rows.iter().filter(|row| row.0 == "table") {
            schema.tables += u64::from(kind == "table");
            if let Some(module) = module(sql) {
                let quoted = name.replace('"', "\"\"");
                if !modules.contains(&module) {
                    schema
                        .unreadable
                        .push((name.clone(), format!("the module {module} is the application's")));
                } else if let Err(error) = connection.prepare(&format!("select 1 from \"{quoted}\" limit 0"))
                {
                    // A tokenizer of the application, for example.
                    if error.sqlite_error_code() != Some(ErrorCode::Unknown) {
                        return Err(error);
                    }
                    schema.unreadable.push((name.clone(), text_of(&error)));
                } else if module.starts_with("fts") || module.starts_with("rtree") || module == "geopoly" {
                    schema.modules += 1;
                    let is_external = module == "fts5" && has_external_content(sql);
                    schema.external_content.extend(is_external.then(|| name.clone()));
                }
                continue;
            }
            let found = clauses(sql, "check").iter().find_map(|it| own(it));
            schema.dependent_tables.extend(found.map(|found| (name.clone(), found)));
            if let Some(found) = clauses(sql, "as").iter().find_map(|it| own(it)) {
                generated.insert(name.clone(), found.clone());
                schema.dependent_tables.entry(name.clone()).or_insert(found);
            }
        }
        for (_, name, table, sql) in rows.iter().filter(|row| row.0 == "index") {
            schema.indexes += 1;
            let columns = columns(connection, name)?;
            let definition = INDEX.replace(sql, "");
            let mut found = own(&definition);
            if found.is_none() && columns.iter().any(|it| it.is_generated) {
                found = generated.get(table).cloned();
            }
            for column in columns.iter().filter(|it| it.is_key) {
                let collation = column.collation.to_ascii_lowercase();
                if !collations.contains(&collation) {
                    found = Some(Own::Unknown(format!("the collation {}", column.collation)));
                } else if collation != "binary" && found.is_none() {
                    found = Some(Own::Replaceable(format!("the collation {}", column.collation)));
                }
            }
            schema.dependent_indexes.extend(found.map(|found| (name.clone(), found)));
        }
        let flags = FunctionFlags::SQLITE_UTF8
            | FunctionFlags::SQLITE_DETERMINISTIC
            | FunctionFlags::SQLITE_INNOCUOUS;
        for name in stand_ins {
            connection.create_scalar_function(name.as_str(), -1, flags, |_| Ok(Null))?;
        }
        Ok(schema)
    }
}

struct Column {
    collation: String,
    is_key: bool,
    is_generated: bool,
}

fn columns(connection: &Connection, index: &str) -> rusqlite::Result<Vec<Column>> {
    let mut statement = connection.prepare(
        "select coalesce(x.coll, 'BINARY'), x.key,
                exists (select 1 from pragma_index_list(s.tbl_name) l, pragma_table_xinfo(s.tbl_name) t
                        where t.cid = x.cid and t.hidden in (2, 3))
         from sqlite_schema s, pragma_index_xinfo(s.name) x where s.type = 'index' and s.name = ?1",
    )?;
    let rows = statement.query_map([index], |row| {
        Ok(Column { collation: row.get(0)?, is_key: row.get(1)?, is_generated: row.get(2)? })
    })?;
    rows.collect()
}

/// The functions that an expression calls, in lower case.
fn calls(expression: &str) -> Vec<String> {
    let names = CALL.captures_iter(expression).filter_map(|it| it.get(1).or(it.get(2)));
    let names = names.map(|it| it.as_str().to_ascii_lowercase());
    names.filter(|name| !NO_CALLS.contains(&name.as_str())).collect()
}

/// What stands in parentheses after a word, each time that the word stands before one.
fn clauses(sql: &str, word: &str) -> Vec<String> {
    let Ok(start) = Regex::new(&format!(r"(?i)\b{word}\s*\(")) else { return Vec::new() };
    let body = |from: usize| {
        let mut depth = 1;
        let mut quote = None;
        for (at, it) in sql[from..].char_indices() {
            match (quote, it) {
                (Some(open), it) if it == open => quote = None,
                (Some(_), _) => {}
                (None, '\'' | '"' | '`') => quote = Some(it),
                (None, '(') => depth += 1,
                (None, ')') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return sql[from..from + at].to_owned();
            }
        }
        sql[from..].to_owned()
    };
    start.find_iter(sql).map(|found| body(found.end())).collect()
}

/// The module of a virtual table, in lower case.
fn module(sql: &str) -> Option<String> {
    static VIRTUAL: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"(?is)^\s*create\s+virtual\s+table\b.*?\busing\s+"?(\w+)"#).expect("it is tested")
    });
    VIRTUAL.captures(sql).map(|it| it[1].to_ascii_lowercase())
}

/// True for a full-text index over another table's content. One without content has nothing to be compared with.
fn has_external_content(sql: &str) -> bool {
    static CONTENT: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r#"(?i)\bcontent\s*=\s*['"]?\s*[^'"\s,)]"#).expect("it is tested"));
    CONTENT.is_match(sql)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_applications_own_is_found() {
        let connection = Connection::open_in_memory().expect("open");
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
        connection.create_scalar_function("mine", 1, flags, |_| Ok(1)).expect("function");
        connection.create_collation("by_nature", |one, other| one.cmp(other)).expect("collation");
        connection
            .execute_batch(
                "create table t (a text, b text collate nocase, c as (lower(a)), d, check (d in (1, 2) or mine(d)));
                 create index plain on t (a); create index folded on t (b); create index called on t (lower(a));
                 create index part on t (a) where b like 'x%'; create index gen on t (c);
                 create index own on t (mine(a)); create index sorted on t (a collate by_nature);
                 create table u (x varchar(20) primary key, y decimal(10, 2) default (1));
                 create virtual table ft using fts5(body);
                 create virtual table outer_ft using fts5(body, content='u');
                 create virtual table no_content using fts5(body, content='');
                 create virtual table r using rtree(id, low, high);",
            )
            .expect("schema");
        let schema = Schema::read(&connection).expect("schema");
        let dependent: Vec<_> =
            schema.dependent_indexes.iter().map(|(name, own)| (name.as_str(), own.clone())).collect();
        let replaceable = |text: &str| Own::Replaceable(text.to_owned());
        assert_eq!(
            dependent,
            [
                ("called", replaceable("the function lower()")),
                ("folded", replaceable("the collation nocase")),
                ("gen", replaceable("the function lower()")),
                ("own", replaceable("the function mine()")),
                ("part", replaceable("the operator LIKE")),
                ("sorted", replaceable("the collation by_nature")),
            ]
        );
        assert_eq!(schema.dependent_tables.keys().collect::<Vec<_>>(), ["t"]);
        assert_eq!(schema.external_content, ["outer_ft"]);
        assert_eq!(schema.modules, 4);
    }

    #[test]
    fn calls_and_clauses_are_found_in_text() {
        assert_eq!(calls("(a), lower ( b ), x IN (1), \"my f\"(c)"), ["lower", "my f"]);
        assert_eq!(INDEX.replace("CREATE UNIQUE INDEX i ON \"a (b)\" (lower(x))", ""), "(lower(x))");
        assert_eq!(INDEX.replace("create index if not exists [a on b] on t(x)", ""), "(x)");
        assert_eq!(clauses("a, CHECK (f(')') > 1), check(b)", "check"), ["f(')') > 1", "b"]);
        assert_eq!(
            module("CREATE VIRTUAL TABLE IF NOT EXISTS x USING spellfix1"),
            Some("spellfix1".to_owned())
        );
        assert_eq!(module("CREATE TABLE x (using fts5)"), None);
    }
}
