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
/// Operators that call a function which an application may replace, and those that make a number a text: which digits it has
/// changed with SQLite 3.43.
static OPERATOR: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)\b(?:like|glob|regexp|match)\b|->|\|\|").expect("it is tested"));
/// A collation that a table's or an index' definition names.
static COLLATION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"(?i)\bcollate\s+["'`\[]?(\w+)"#).expect("it is tested"));
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
    /// `CHECK` constraints that this program can ask, by their tables.
    pub(super) checks: Vec<(String, Vec<String>)>,
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
    /// It is known here, and the application may have replaced it, or it gives something else in another version of SQLite.
    Replaceable(String),
}

impl Schema {
    /// Reads the schema, and puts harmless stand-ins in place of functions and collations that are not known.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        connection.collation_needed(|connection, name| {
            connection.create_collation(name, |one, other| one.cmp(other))
        })?;
        // A stand-in is made as soon as a schema is read that needs it: what is known stands in a database without one.
        let known = Connection::open_in_memory()?;
        let list = |query: &str| -> rusqlite::Result<BTreeSet<String>> {
            let mut statement = known.prepare(query)?;
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
            // cast is syntax: what it gives depends on the version, as || does.
            let is_known = |it: &&String| functions.contains(*it) || *it == "cast";
            let unknown: Vec<_> = calls.iter().filter(|it| !is_known(it)).cloned().collect();
            stand_ins.extend(unknown.iter().cloned());
            match (unknown.first(), calls.first()) {
                (Some(name), _) => Some(Own::Unknown(format!("the function {name}()"))),
                (None, Some(name)) => Some(Own::Replaceable(format!("the function {name}()"))),
                (None, None) => OPERATOR
                    .find(expression)
                    .map(|it| Own::Replaceable(format!("the operator {}", it.as_str().to_ascii_uppercase()))),
            }
        };
        // What compares with a column's collation, wherever it stands.
        let compared = |sql: &str| {
            let names = COLLATION.captures_iter(sql).map(|it| it[1].to_owned());
            let named = names.filter_map(|name| collation(&collations, &name)).collect::<Vec<_>>();
            let unknown = named.iter().find(|it| matches!(it, Own::Unknown(_)));
            unknown.or(named.first()).cloned()
        };
        let tables: BTreeMap<_, _> =
            rows.iter().filter(|row| row.0 == "table").map(|row| (row.1.as_str(), row.3.as_str())).collect();
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
                    let is_external = module.starts_with("fts") && has_external_content(sql);
                    schema.external_content.extend(is_external.then(|| name.clone()));
                }
                continue;
            }
            let checks = clauses(sql, "check");
            let found = checks.iter().find_map(|it| own(it));
            let found = found.or_else(|| compared(sql).filter(|_| !checks.is_empty()));
            let is_asked = !matches!(found, Some(Own::Unknown(_))) && !checks.is_empty();
            schema.dependent_tables.extend(found.map(|found| (name.clone(), found)));
            schema.checks.extend(is_asked.then(|| (name.clone(), checks)));
            let computed = clauses(sql, "as");
            let found = computed.iter().find_map(|it| own(it));
            if let Some(found) = found.or_else(|| compared(sql).filter(|_| !computed.is_empty())) {
                generated.insert(name.clone(), found.clone());
                schema.dependent_tables.entry(name.clone()).or_insert(found);
            }
            // The rows of a table WITHOUT ROWID lie in the order of its primary key, whose index is not in the schema.
            for (index, columns) in primary_key(connection, name)? {
                let found = columns.iter().find_map(|it| collation(&collations, &it.collation));
                schema.dependent_indexes.extend(found.map(|found| (index, found)));
            }
        }
        for (_, name, table, sql) in rows.iter().filter(|row| row.0 == "index") {
            schema.indexes += 1;
            let columns = columns(connection, table, name)?;
            let definition = INDEX.replace(sql, "");
            let mut found = own(&definition);
            if found.is_none() && columns.iter().any(|it| it.is_generated) {
                found = generated.get(table).cloned();
            }
            let is_computed = columns.iter().any(|it| it.is_expression)
                || definition.to_ascii_lowercase().contains("where");
            let of_table = tables.get(table.as_str()).filter(|_| is_computed).and_then(|sql| compared(sql));
            // Those of the primary key as well, which end each entry of a table WITHOUT ROWID.
            for other in columns.iter().filter_map(|it| collation(&collations, &it.collation)).chain(of_table)
            {
                if found.is_none() || matches!(other, Own::Unknown(_)) {
                    found = Some(other);
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
    is_expression: bool,
    is_generated: bool,
}

/// The columns of an index but for the row's number, which has no collation.
fn columns(connection: &Connection, table: &str, index: &str) -> rusqlite::Result<Vec<Column>> {
    let mut statement = connection.prepare(
        "select coalesce(x.coll, 'BINARY'), x.cid = -2,
                exists (select 1 from pragma_table_xinfo(?2) t where t.cid = x.cid and t.hidden in (2, 3))
         from pragma_index_xinfo(?1) x where x.cid <> -1",
    )?;
    let rows = statement.query_map([index, table], |row| {
        Ok(Column { collation: row.get(0)?, is_expression: row.get(1)?, is_generated: row.get(2)? })
    })?;
    rows.collect()
}

/// The index of a table's primary key, if it has one, and its columns.
fn primary_key(connection: &Connection, table: &str) -> rusqlite::Result<Vec<(String, Vec<Column>)>> {
    let mut statement = connection.prepare("select name from pragma_index_list(?1) where origin = 'pk'")?;
    let names = statement.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    names.into_iter().map(|name| Ok((name.clone(), columns(connection, table, &name)?))).collect()
}

/// What of the application's own a collation may be: nothing for `BINARY`. `known` are those of this program, in lower case.
fn collation(known: &BTreeSet<String>, name: &str) -> Option<Own> {
    let text = format!("the collation {name}");
    match name.to_ascii_lowercase().as_str() {
        "binary" => None,
        name if known.contains(name) => Some(Own::Replaceable(text)),
        _ => Some(Own::Unknown(text)),
    }
}

/// The functions that an expression calls, in lower case.
fn calls(expression: &str) -> Vec<String> {
    let names = CALL.captures_iter(expression).filter_map(|it| it.get(1).or(it.get(2)));
    let names = names.map(|it| it.as_str().to_ascii_lowercase());
    names.filter(|name| !NO_CALLS.contains(&name.as_str())).collect()
}

/// What stands in parentheses after a word, each time that the word stands before one, but in a text or a comment.
fn clauses(sql: &str, word: &str) -> Vec<String> {
    let Ok(start) = Regex::new(&format!(r"(?i)\b{word}\s*\(")) else { return Vec::new() };
    let plain = without_texts(sql);
    let body = |from: usize| {
        let mut depth = 1;
        for (at, it) in plain[from..].char_indices() {
            match it {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return sql[from..from + at].to_owned();
            }
        }
        sql[from..].to_owned()
    };
    start.find_iter(&plain).map(|found| body(found.end())).collect()
}

/// A statement with a dot in place of each byte of its texts, quoted names and comments.
fn without_texts(sql: &str) -> String {
    let mut plain = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        // A text with a doubled quote in it is two texts side by side here, which comes to the same.
        let end = match first {
            '\'' | '"' | '`' => rest[1..].find(first).map(|at| at + 2),
            '[' => rest.find(']').map(|at| at + 1),
            '-' if rest.starts_with("--") => rest.find('\n'),
            '/' if rest.starts_with("/*") => rest.find("*/").map(|at| at + 2),
            _ => {
                plain.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
        };
        let end = end.unwrap_or(rest.len());
        plain.extend(std::iter::repeat_n('.', end));
        rest = &rest[end..];
    }
    plain
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
                 create table w (k text collate by_nature primary key, v, n collate nocase) without rowid;
                 create index behind on w (v); create index compares on w (v = 'x'); create index some on w (v) where v > 1;
                 create table f (c text collate nocase, v, check (c <> 'x')); create index plainly on f (v);
                 create index compared on f (c = 'x'); create index texts on u (y || ''); create index casts on u (cast(y as text));
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
        let unknown = |text: &str| Own::Unknown(text.to_owned());
        assert_eq!(
            dependent,
            [
                ("behind", unknown("the collation by_nature")),
                ("called", replaceable("the function lower()")),
                ("casts", replaceable("the function cast()")),
                ("compared", replaceable("the collation nocase")),
                ("compares", unknown("the collation by_nature")),
                ("folded", replaceable("the collation nocase")),
                ("gen", replaceable("the function lower()")),
                ("own", unknown("the function mine()")),
                ("part", replaceable("the operator LIKE")),
                ("some", unknown("the collation by_nature")),
                ("sorted", unknown("the collation by_nature")),
                ("sqlite_autoindex_w_1", unknown("the collation by_nature")),
                ("texts", replaceable("the operator ||")),
            ]
        );
        assert_eq!(schema.dependent_tables.keys().collect::<Vec<_>>(), ["f", "t"]);
        assert_eq!(schema.external_content, ["outer_ft"]);
        assert_eq!(schema.checks.iter().map(|(table, _)| table.as_str()).collect::<Vec<_>>(), ["f"]);
        assert_eq!(schema.modules, 4);
    }

    #[test]
    fn calls_and_clauses_are_found_in_text() {
        assert_eq!(calls("(a), lower ( b ), x IN (1), \"my f\"(c)"), ["lower", "my f"]);
        assert_eq!(INDEX.replace("CREATE UNIQUE INDEX i ON \"a (b)\" (lower(x))", ""), "(lower(x))");
        assert_eq!(INDEX.replace("create index if not exists [a on b] on t(x)", ""), "(x)");
        assert_eq!(clauses("a, CHECK (f(')') > 1), check(b)", "check"), ["f(')') > 1", "b"]);
        let sql = "a text default 'check (1)', -- ä check (a > 0\n \"check (b)\", [check (c)] /* check (d) */ check (x /* ) */ > '''')";
        assert_eq!(clauses(sql, "check"), ["x /* ) */ > ''''"]);
        assert_eq!(
            module("CREATE VIRTUAL TABLE IF NOT EXISTS x USING spellfix1"),
            Some("spellfix1".to_owned())
        );
        assert_eq!(module("CREATE TABLE x (using fts5)"), None);
    }
}
