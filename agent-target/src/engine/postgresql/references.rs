//! References between rows of the catalogue. amcheck looks at the catalogue's tables and indexes and not at what their rows say of each
//! other: without its row in `pg_attribute` a column is gone, and the server cannot read the table, while each page is sound.
//!
//! The references are those that the server lists (`pg_get_catalog_foreign_keys`), with three exceptions: owners, because a role that was dropped
//! may leave one behind; commutators and negators of operators, because older versions left them behind; and `pg_depend` and its like, on
//! which nothing else depends.

use std::collections::{HashMap, HashSet};

use super::{
    meaning::ServerError,
    session::{Row, Session, number, text, truth},
};

/// Rows that are told; more of the same would not tell more.
const MAX_TOLD: usize = 20;

/// A catalogue: its name, its key column, the column with a row's name, and the columns that refer to rows of other catalogues, with these.
type Source = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Catalogues whose rows are looked up by their keys, and whose references are followed.
const SOURCES: &[Source] = &[
    ("pg_namespace", "oid", "nspname", &[]),
    ("pg_am", "oid", "amname", &[("amhandler", "pg_proc")]),
    (
        "pg_language",
        "oid",
        "lanname",
        &[("lanplcallfoid", "pg_proc"), ("laninline", "pg_proc"), ("lanvalidator", "pg_proc")],
    ),
    ("pg_collation", "oid", "collname", &[("collnamespace", "pg_namespace")]),
    (
        "pg_class",
        "oid",
        "relname",
        &[
            ("reltype", "pg_type"),
            ("reloftype", "pg_type"),
            ("reltoastrelid", "pg_class"),
            ("relam", "pg_am"),
        ],
    ),
    (
        "pg_proc",
        "oid",
        "proname",
        &[
            ("pronamespace", "pg_namespace"),
            ("prolang", "pg_language"),
            ("prorettype", "pg_type"),
            ("proargtypes", "pg_type"),
            ("proallargtypes", "pg_type"),
            ("provariadic", "pg_type"),
        ],
    ),
    (
        "pg_type",
        "oid",
        "typname",
        &[
            ("typnamespace", "pg_namespace"),
            ("typrelid", "pg_class"),
            ("typelem", "pg_type"),
            ("typarray", "pg_type"),
            ("typbasetype", "pg_type"),
            ("typinput", "pg_proc"),
            ("typoutput", "pg_proc"),
            ("typreceive", "pg_proc"),
            ("typsend", "pg_proc"),
            ("typcollation", "pg_collation"),
        ],
    ),
    (
        "pg_operator",
        "oid",
        "oprname",
        &[
            ("oprnamespace", "pg_namespace"),
            ("oprcode", "pg_proc"),
            ("oprleft", "pg_type"),
            ("oprright", "pg_type"),
            ("oprresult", "pg_type"),
        ],
    ),
    ("pg_opfamily", "oid", "opfname", &[("opfmethod", "pg_am"), ("opfnamespace", "pg_namespace")]),
    (
        "pg_opclass",
        "oid",
        "opcname",
        &[
            ("opcmethod", "pg_am"),
            ("opcnamespace", "pg_namespace"),
            ("opcfamily", "pg_opfamily"),
            ("opcintype", "pg_type"),
            ("opckeytype", "pg_type"),
        ],
    ),
    (
        "pg_amop",
        "oid",
        "oid",
        &[
            ("amopfamily", "pg_opfamily"),
            ("amoplefttype", "pg_type"),
            ("amoprighttype", "pg_type"),
            ("amopopr", "pg_operator"),
        ],
    ),
    (
        "pg_amproc",
        "oid",
        "oid",
        &[
            ("amprocfamily", "pg_opfamily"),
            ("amproclefttype", "pg_type"),
            ("amprocrighttype", "pg_type"),
            ("amproc", "pg_proc"),
        ],
    ),
    ("pg_index", "indexrelid", "indexrelid", &[("indclass", "pg_opclass"), ("indcollation", "pg_collation")]),
    ("pg_attrdef", "adrelid", "adrelid", &[("adrelid", "pg_class")]),
    (
        "pg_constraint",
        "oid",
        "conname",
        &[
            ("connamespace", "pg_namespace"),
            ("conrelid", "pg_class"),
            ("contypid", "pg_type"),
            ("conindid", "pg_class"),
            ("confrelid", "pg_class"),
            ("conparentid", "pg_constraint"),
            ("conpfeqop", "pg_operator"),
            ("conexclop", "pg_operator"),
        ],
    ),
    (
        "pg_trigger",
        "oid",
        "tgname",
        &[
            ("tgrelid", "pg_class"),
            ("tgfoid", "pg_proc"),
            ("tgconstrrelid", "pg_class"),
            ("tgconstrindid", "pg_class"),
            ("tgconstraint", "pg_constraint"),
        ],
    ),
    ("pg_rewrite", "ev_class", "rulename", &[("ev_class", "pg_class")]),
    ("pg_policy", "oid", "polname", &[("polrelid", "pg_class")]),
    (
        "pg_cast",
        "oid",
        "oid",
        &[("castsource", "pg_type"), ("casttarget", "pg_type"), ("castfunc", "pg_proc")],
    ),
    ("pg_enum", "oid", "enumlabel", &[("enumtypid", "pg_type")]),
    ("pg_inherits", "inhrelid", "inhrelid", &[("inhrelid", "pg_class"), ("inhparent", "pg_class")]),
    (
        "pg_partitioned_table",
        "partrelid",
        "partrelid",
        &[
            ("partrelid", "pg_class"),
            ("partdefid", "pg_class"),
            ("partclass", "pg_opclass"),
            ("partcollation", "pg_collation"),
        ],
    ),
    ("pg_sequence", "seqrelid", "seqrelid", &[("seqrelid", "pg_class"), ("seqtypid", "pg_type")]),
    (
        "pg_range",
        "rngtypid",
        "rngtypid",
        &[("rngtypid", "pg_type"), ("rngsubtype", "pg_type"), ("rngsubopc", "pg_opclass")],
    ),
    (
        "pg_aggregate",
        "aggfnoid",
        "aggfnoid",
        &[
            ("aggfnoid", "pg_proc"),
            ("aggtransfn", "pg_proc"),
            ("aggfinalfn", "pg_proc"),
            ("aggtranstype", "pg_type"),
        ],
    ),
];

/// What the catalogue of a database says of its relations, as rows of text.
#[derive(Debug, Default)]
struct Catalogue {
    /// `pg_namespace`: its number, its name.
    schemas: Vec<Row>,
    /// `pg_class`: its number, schema, name, kind, count of columns, count of CHECK constraints.
    classes: Vec<Row>,
    /// `pg_attribute`: relation, number, type, whether it was dropped, whether it has a default.
    attributes: Vec<Row>,
    /// `pg_type`: its number, kind and name.
    types: Vec<Row>,
    /// `pg_index`: the index, its table.
    indexes: Vec<Row>,
    /// `pg_attrdef`: relation and column.
    defaults: Vec<Row>,
    /// `pg_constraint`: the relations of CHECK constraints.
    checks: Vec<Row>,
    /// The rows of each of [`SOURCES`]: key, name, and its columns.
    sources: HashMap<&'static str, Vec<Row>>,
}

/// Reads the catalogue of the session's database, and says which rows are missing.
pub(super) async fn missing(session: &Session, database: &str) -> Result<Vec<String>, ServerError> {
    let mut sources = HashMap::new();
    for (source, key, name, links) in SOURCES {
        let columns: String = links.iter().map(|(column, _)| format!(", {column}")).collect();
        let rows = session.rows(&format!("SELECT {key}, {name}{columns} FROM pg_catalog.{source}")).await?;
        sources.insert(*source, rows);
    }
    let catalogue = Catalogue {
        schemas: session.rows("SELECT oid, nspname FROM pg_catalog.pg_namespace").await?,
        classes: session
            .rows("SELECT oid, relnamespace, relname, relkind, relnatts, relchecks FROM pg_catalog.pg_class")
            .await?,
        attributes: session
            .rows("SELECT attrelid, attnum, atttypid, attisdropped, atthasdef FROM pg_catalog.pg_attribute")
            .await?,
        types: session.rows("SELECT oid, typtype, typname FROM pg_catalog.pg_type").await?,
        indexes: session.rows("SELECT indexrelid, indrelid FROM pg_catalog.pg_index").await?,
        defaults: session.rows("SELECT adrelid, adnum FROM pg_catalog.pg_attrdef").await?,
        checks: session.rows("SELECT conrelid FROM pg_catalog.pg_constraint WHERE contype = 'c'").await?,
        sources,
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
        let defaults: HashSet<(u32, &str)> =
            self.defaults.iter().map(|row| (number(row, 0), text(row, 1))).collect();
        let mut checks: HashMap<u32, u32> = HashMap::new();
        for row in &self.checks {
            *checks.entry(number(row, 0)).or_default() += 1;
        }
        let keys_of = |rows: &Vec<Row>| rows.iter().map(|row| number(row, 0)).collect();
        let keys: HashMap<&str, HashSet<u32>> =
            self.sources.iter().map(|(source, rows)| (*source, keys_of(rows))).collect();
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
                if !truth(column, 3) && truth(column, 4) && !defaults.contains(&(oid, text(column, 1))) {
                    found.push(format!(
                        "pg_attrdef lacks the default of column {} of {name}",
                        text(column, 1)
                    ));
                }
            }
            match of_indexes.get(&oid) {
                None if matches!(kind, "i" | "I") => found.push(format!("pg_index lacks the index {name}")),
                Some(table) if !classes.contains(table) => {
                    found.push(format!("pg_class lacks the table {table} of the index {name}"));
                }
                _ => {}
            }
            let further = match kind {
                "v" | "m" => Some("pg_rewrite"),
                "S" => Some("pg_sequence"),
                "p" => Some("pg_partitioned_table"),
                _ => None,
            };
            if let Some(source) = further.filter(|it| !keys.get(it).is_some_and(|keys| keys.contains(&oid))) {
                found.push(format!("{source} lacks the row of {name}"));
            }
            let (has, wanted) = (checks.get(&oid).copied().unwrap_or(0), number(class, 5));
            if has < wanted {
                found.push(format!("pg_constraint has {has} of the {wanted} CHECK constraints of {name}"));
            }
        }
        for row in self.types.iter().filter(|row| text(row, 1) == "r") {
            if !keys.get("pg_range").is_some_and(|keys| keys.contains(&number(row, 0))) {
                found.push(format!("pg_range lacks the row of the type \"{}\"", text(row, 2)));
            }
        }
        self.dangling(&keys, &mut found);
        found
    }

    /// Names the references to rows that are missing.
    fn dangling(&self, keys: &HashMap<&str, HashSet<u32>>, found: &mut Vec<String>) {
        for (source, _, _, links) in SOURCES {
            for row in self.sources.get(source).into_iter().flatten() {
                for (at, (column, target)) in links.iter().enumerate() {
                    let Some(there) = keys.get(target) else { continue };
                    for lost in numbers(text(row, at + 2)).filter(|it| *it != 0 && !there.contains(it)) {
                        found.push(format!(
                            "{target} lacks the row {lost}, which {column} of \"{}\" in {source} names",
                            text(row, 1)
                        ));
                    }
                }
            }
        }
    }
}

/// The keys in a column. The server prints a function by its name (`regproc`), and by its number when it is missing.
fn numbers(text: &str) -> impl Iterator<Item = u32> {
    let is_name = !text.bytes().all(|it| it.is_ascii_digit() || b" {},".contains(&it));
    let numbers = if is_name { "" } else { text };
    numbers.split(|it: char| !it.is_ascii_digit()).filter_map(|it| it.parse().ok())
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
                &["100", "2200", "t", "r", "2", "1"],
                &["101", "2200", "t_pkey", "i", "1", "0"],
                &["102", "2200", "s", "S", "0", "0"],
                &["103", "2200", "v", "v", "0", "0"],
                &["104", "2200", "p", "p", "0", "0"],
            ]),
            attributes: rows(&[
                &["100", "-1", "27", "f", "f"],
                &["100", "1", "23", "f", "t"],
                &["100", "2", "0", "t", "t"],
                &["101", "1", "23", "f", "f"],
                // Of a relation that is gone: nobody asks for it.
                &["99", "1", "23", "f", "f"],
            ]),
            types: rows(&[&["23", "b", "int4"], &["27", "b", "tid"], &["3904", "r", "int4range"]]),
            indexes: rows(&[&["101", "100"]]),
            defaults: rows(&[&["100", "1"]]),
            checks: rows(&[&["100"]]),
            sources: HashMap::from([
                ("pg_namespace", rows(&[&["2200", "public"]])),
                ("pg_class", rows(&[&["100", "t", "70", "0", "0", "2"]])),
                ("pg_am", rows(&[&["2", "heap", "heap_tableam_handler"]])),
                (
                    "pg_type",
                    rows(&[
                        &["70", "t", "2200", "100", "0", "71", "0", "record_in", "-", "-", "\"12\"", "0"],
                        &["71", "_t"],
                    ]),
                ),
                (
                    "pg_proc",
                    rows(&[
                        &["900", "f", "2200", "13", "70", "70 71", "{70,71,70}", "0"],
                        &["901", "g", "2200"],
                    ]),
                ),
                ("pg_language", rows(&[&["13", "c"]])),
                ("pg_sequence", rows(&[&["102", "102"]])),
                ("pg_rewrite", rows(&[&["103", "_RETURN"]])),
                ("pg_partitioned_table", rows(&[&["104", "104"]])),
                ("pg_range", rows(&[&["3904", "3904"]])),
            ]),
        }
    }

    #[test]
    fn each_row_that_another_needs_is_missed() {
        type Damage = fn(&mut Catalogue);
        fn clear(it: &mut Catalogue, name: &str) {
            it.sources.get_mut(name).expect("it is there").clear();
        }
        assert_eq!(sound().missing(), [""; 0]);
        let cases: [(Damage, &str); 16] = [
            (|it| drop(it.attributes.remove(1)), "pg_attribute has 1 of the 2 columns of \"public.t\""),
            (|it| drop(it.types.remove(0)), "pg_type lacks the type 23 of column 1 of \"public.t\""),
            (|it| it.indexes.clear(), "pg_index lacks the index \"public.t_pkey\""),
            (|it| drop(it.classes.remove(0)), "pg_class lacks the table 100 of the index \"public.t_pkey\""),
            (|it| it.schemas.clear(), "pg_namespace lacks the schema 2200 of \"?.t\""),
            (|it| it.defaults.clear(), "pg_attrdef lacks the default of column 1 of \"public.t\""),
            (|it| it.checks.clear(), "pg_constraint has 0 of the 1 CHECK constraints of \"public.t\""),
            (|it| clear(it, "pg_rewrite"), "pg_rewrite lacks the row of \"public.v\""),
            (|it| clear(it, "pg_sequence"), "pg_sequence lacks the row of \"public.s\""),
            (|it| clear(it, "pg_partitioned_table"), "pg_partitioned_table lacks the row of \"public.p\""),
            (|it| clear(it, "pg_range"), "pg_range lacks the row of the type \"int4range\""),
            (
                |it| clear(it, "pg_class"),
                "pg_class lacks the row 100, which typrelid of \"t\" in pg_type names",
            ),
            (|it| clear(it, "pg_am"), "pg_am lacks the row 2, which relam of \"t\" in pg_class names"),
            (
                |it| clear(it, "pg_language"),
                "pg_language lacks the row 13, which prolang of \"f\" in pg_proc names",
            ),
            // The second of three.
            (
                |it| drop(it.sources.get_mut("pg_type").expect("there").pop()),
                "pg_type lacks the row 71, which proargtypes of \"f\" in pg_proc names",
            ),
            // A function that is gone is told by its number.
            (
                |it| it.sources.get_mut("pg_am").expect("there")[0][2] = Some("330".to_owned()),
                "pg_proc lacks the row 330, which amhandler of \"heap\" in pg_am names",
            ),
        ];
        for (damage, expected) in cases {
            let mut catalogue = sound();
            damage(&mut catalogue);
            let missing = catalogue.missing();
            assert!(missing.iter().any(|it| it == expected), "{expected}: {missing:?}");
        }
    }

    #[test]
    fn a_name_is_no_number() {
        let all = |text: &str| numbers(text).collect::<Vec<_>>();
        assert_eq!((all("7"), all("{7,8}"), all("7 8 0")), (vec![7], vec![7, 8], vec![7, 8, 0]));
        for name in ["", "-", "{}", "int4in", "\"123\"", "own.f4"] {
            assert_eq!(all(name), [0; 0], "{name}");
        }
    }
}
