//! The tables of a database as parts of the check, and what the result of each depends on.
//!
//! A part is a table with its TOAST table and the indexes of both. Its result depends on all their files, on the rows of the catalogue
//! that describe them, on the rows that say what the cluster's own types, operators and functions do, and on the fate of every
//! transaction that a row of them names.
//!
//! In doubt a part is checked each time: when a file is not as the generation has it (recovery has touched it, or it lies in a tablespace of its
//! own), when an index asks something that came with the application, an extension or the host, when a row was locked or changed by several
//! transactions, and when a transaction that a row names had not ended. The catalogues are no part: they are checked each time.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use assay_common::verdict::HexDigest;

use super::{
    catalog::{FIRST_NORMAL_OID, Relation, Relations},
    cluster::Cluster,
    files::Folders,
    ground::{Ground, Inputs, Part},
    meaning::ServerError,
    page::ends,
    prepare::{Database, Functions},
    session::{NOT_TEXT, Row, Session, number, text},
};

/// The access methods of PostgreSQL itself.
const INDEXES: [&str; 6] = ["btree", "hash", "gin", "gist", "spgist", "brin"];
/// Catalogues whose rows say what types, operators and functions do: those that the cluster had when it was new.
const OWN_ROWS: [&str; 9] = [
    "pg_am",
    "pg_amop",
    "pg_amproc",
    "pg_cast",
    "pg_language",
    "pg_opclass",
    "pg_operator",
    "pg_opfamily",
    "pg_proc",
];
/// Catalogues all of whose rows count.
const ALL_ROWS: [&str; 3] = ["pg_collation", "pg_enum", "pg_range"];

/// A table with all that belongs to it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) part: Part,
    /// The files of its relations, by which the report knows them.
    pub(super) files: Vec<String>,
    pub(super) is_carried: bool,
}

/// What the catalogue says.
struct Rows {
    /// Digest of what all tables of the database depend on.
    common: Inputs,
    /// By the relation's number: its rows of pg_class, pg_index and pg_attribute.
    own: HashMap<u32, Vec<HexDigest>>,
    /// By the index's number: the types of its columns.
    types: HashMap<u32, BTreeSet<u32>>,
    /// `typtype` of each type.
    kinds: HashMap<u32, String>,
}

/// Finds the parts of a database, and marks the relations of those that are carried. Called before any statement has read a table.
pub(super) async fn find(
    session: &Session,
    (cluster, blocks_per_segment): (&Cluster, u64),
    ground: &Ground,
    (database, functions): (&Database, &Functions),
    relations: &mut Relations,
) -> Result<Vec<Group>, ServerError> {
    let tables: Vec<usize> = (0..relations.all.len())
        .filter(|at| {
            let relation = &relations.all[*at];
            relation.oid >= FIRST_NORMAL_OID && matches!(relation.kind, 'r' | 'm')
        })
        .collect();
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let rows = Rows::read(session, cluster, ground, (database, functions)).await?;
    let by_number: HashMap<u32, usize> =
        relations.all.iter().enumerate().map(|(at, relation)| (relation.oid, at)).collect();
    let mut indexes: HashMap<u32, Vec<usize>> = HashMap::new();
    for (at, relation) in relations.all.iter().enumerate() {
        if let Some(index) = &relation.index {
            indexes.entry(index.table).or_default().push(at);
        }
    }
    let mut groups = Vec::new();
    for at in tables {
        let mut members = vec![at];
        members.extend(by_number.get(&relations.all[at].toast));
        for table in members.clone() {
            members.extend(indexes.get(&relations.all[table].oid).into_iter().flatten());
        }
        let group: Vec<&Relation> = members.iter().map(|at| &relations.all[*at]).collect();
        let table = &relations.all[at];
        let name = format!("{} ({})", table.title(), table.oid);
        let mut part = Part { name, inputs: rows.as_ref().and_then(|rows| rows.inputs(ground, &group)) };
        let is_carried = ground.carries(&part);
        if !is_carried
            && part.inputs.is_some()
            && !has_settled(&cluster.data, blocks_per_segment, ground, &group)
        {
            part.inputs = None;
        }
        let files = group.iter().map(|it| it.file.clone()).collect();
        groups.push(Group { part, files, is_carried });
        for at in members.into_iter().filter(|_| is_carried) {
            relations.all[at].is_carried = true;
        }
    }
    Ok(groups)
}

impl Rows {
    /// `None` when a row holds what cannot be read as text.
    async fn read(
        session: &Session,
        cluster: &Cluster,
        ground: &Ground,
        (database, functions): (&Database, &Functions),
    ) -> Result<Option<Self>, ServerError> {
        let mut is_text = true;
        let mut rows = async |query: String| -> Result<Vec<Row>, ServerError> {
            let rows = session.rows(&query).await?;
            is_text &= !rows.iter().flatten().any(|field| field.as_deref() == Some(NOT_TEXT));
            Ok(rows)
        };
        let mut common = ground.inputs("table");
        common.add(&database.oid.to_le_bytes()).add(database.name.as_bytes());
        let here = (cluster.major, functions.visibility, functions.gin, &database.sorts_otherwise);
        common.add(format!("{here:?}").as_bytes());
        let locale = match cluster.major {
            ..15 => "",
            15 | 16 => ", datlocprovider, daticulocale, datcollversion",
            _ => ", datlocprovider, datlocale, daticurules, datcollversion",
        };
        let query = format!(
            "SELECT encoding, datcollate, datctype, dattablespace{locale} FROM pg_catalog.pg_database WHERE oid = {}",
            database.oid
        );
        add_rows(&mut common, rows(query).await?.iter());
        for catalog in OWN_ROWS {
            let found = rows(format!("SELECT * FROM pg_catalog.{catalog}")).await?;
            add_rows(&mut common, found.iter().filter(|row| number(row, 0) < FIRST_NORMAL_OID));
        }
        for catalog in ALL_ROWS {
            add_rows(&mut common, rows(format!("SELECT * FROM pg_catalog.{catalog}")).await?.iter());
        }
        let types = rows("SELECT oid, typtype, * FROM pg_catalog.pg_type".to_owned()).await?;
        add_rows(&mut common, types.iter().filter(|row| number(row, 0) < FIRST_NORMAL_OID));
        let kinds = types.iter().map(|row| (number(row, 0), text(row, 1).to_owned())).collect();
        let mut own: HashMap<u32, Vec<HexDigest>> = HashMap::new();
        let mut column_types: HashMap<u32, BTreeSet<u32>> = HashMap::new();
        for (catalog, columns) in
            [("pg_class", "oid, 0"), ("pg_index", "indexrelid, 0"), ("pg_attribute", "attrelid, atttypid")]
        {
            for row in rows(format!("SELECT {columns}, * FROM pg_catalog.{catalog}")).await? {
                let relation = number(&row, 0);
                if relation >= FIRST_NORMAL_OID {
                    own.entry(relation).or_default().push(row_digest(&row));
                    column_types.entry(relation).or_default().insert(number(&row, 1));
                }
            }
        }
        own.values_mut().for_each(|digests| digests.sort_unstable_by_key(|it| it.0));
        Ok(is_text.then_some(Self { common, own, types: column_types, kinds }))
    }

    /// Digest of what the result of a group depends on; `None`: of something that is not known here.
    fn inputs(&self, ground: &Ground, group: &[&Relation]) -> Option<HexDigest> {
        let mut inputs = self.common.clone();
        for relation in group {
            self.is_of_the_cluster(relation).then_some(())?;
            let rows = self.own.get(&relation.oid)?;
            inputs.add(&relation.oid.to_le_bytes()).add(&(rows.len() as u64).to_le_bytes());
            for row in rows {
                inputs.add(&row.0);
            }
            inputs.files(ground.files(&relation.file)?);
        }
        Some(inputs.finish())
    }

    /// True if nothing that came with the application or an extension decides what the check says of the relation.
    fn is_of_the_cluster(&self, relation: &Relation) -> bool {
        let Some(index) = &relation.index else { return relation.access_method == "heap" };
        let types = self.types.get(&relation.oid);
        // An enumeration of the application sorts by pg_enum, which counts. 0 stands in the rows of other catalogues.
        let is_known = |number: u32| {
            let kind = self.kinds.get(&number).map_or("", String::as_str);
            number == 0 || kind == "e" || (number < FIRST_NORMAL_OID && matches!(kind, "b" | "r" | "m"))
        };
        INDEXES.contains(&relation.access_method.as_str())
            && !index.own_order
            && !index.names_own
            && !index.asks_host
            && index.functions.is_empty()
            && types.is_some_and(|types| types.iter().all(|it| is_known(*it)))
    }
}

/// Adds rows, in whatever order they come.
fn add_rows<'a>(inputs: &mut Inputs, rows: impl Iterator<Item = &'a Row>) {
    let mut digests: Vec<HexDigest> = rows.map(row_digest).collect();
    digests.sort_unstable_by_key(|it| it.0);
    inputs.add(&(digests.len() as u64).to_le_bytes());
    for digest in digests {
        inputs.add(&digest.0);
    }
}

fn row_digest(row: &Row) -> HexDigest {
    let mut inputs = Inputs::new("row");
    for field in row {
        match field {
            Some(text) => inputs.add(b"text").add(text.as_bytes()),
            None => inputs.add(b"null"),
        };
    }
    inputs.finish()
}

/// True if all transactions that the rows of a group name had ended when the copy was made. Of another one, the log may say something else next
/// time, with the same files.
fn has_settled(data: &Path, blocks_per_segment: u64, ground: &Ground, group: &[&Relation]) -> bool {
    let mut folders = Folders::default();
    group.iter().filter(|it| it.is_table()).all(|table| {
        let segments = folders.segments(&data.join(&table.file), blocks_per_segment);
        let Ok(Some(segments)) = segments else { return false };
        let mut has_settled = true;
        let read = segments.each_page(|_, page| {
            has_settled = has_settled
                && ends(page)
                    .all(|ends| ends.is_some_and(|ends| ends.iter().all(|it| ground.has_ended(*it))));
        });
        read.is_ok() && has_settled
    })
}
