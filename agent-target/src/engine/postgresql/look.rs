//! Looks at every relation of a database through the server: amcheck for tables and B-trees, pg_visibility for the visibility maps.
//!
//! Indexes whose check runs code of the copy come last, when everything else has been looked at and its findings are printed:
//! expressions, predicates and operator classes of an application are run by whoever checks its indexes. They run in a transaction that
//! is read-only and is rolled back, as a role that is no superuser.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, VecDeque},
};

use super::{
    catalog::{Relation, Relations},
    cluster::Cluster,
    ground::Ground,
    groups::{self, Group},
    meaning::{Meaning, Reason, ServerError},
    prepare::{self, Database, Functions, Prepared, collation_versions, regclass},
    references,
    report::Report,
    session::{Session, literal, text},
    trees::Kind,
};

/// Rows of one answer of amcheck or pg_visibility that are read.
const MAX_ROWS: usize = 100;
/// How often a relation is looked at again when the server ended meanwhile: another relation may be why.
const TRIES: u32 = 2;
/// Settings that a function in an index may depend on, and that do nothing else.
const HARMLESS: [&str; 14] = [
    "search_path",
    "timezone",
    "datestyle",
    "intervalstyle",
    "default_text_search_config",
    "extra_float_digits",
    "bytea_output",
    "xmlbinary",
    "xmloption",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "array_nulls",
    "standard_conforming_strings",
];
const DEFAULT_SEARCH_PATH: &str = "\"$user\", public";

/// The database that is looked at.
struct Looking<'a> {
    cluster: &'a Cluster,
    prepared: &'a Prepared,
    database: &'a Database,
    functions: Functions,
    /// Why a collation sorts otherwise here, by its number.
    collations: HashMap<u32, (Reason, String)>,
    relations: Relations,
    report: &'a RefCell<Report>,
}

/// Looks at all of `database` but the tables that are carried, and gives back its relations and its parts.
pub(super) async fn database(
    cluster: &Cluster,
    prepared: &Prepared,
    database: &Database,
    jobs: usize,
    ground: Option<&Ground>,
    report: &RefCell<Report>,
) -> Result<(Vec<Relation>, Vec<Group>), ServerError> {
    let name = &database.name;
    let session = Session::connect(cluster, &prepared.role, name).await?;
    let functions = prepare::database(cluster, &session, report, database).await?;
    let mut relations = Relations::read(&session, name).await?;
    let missing = references::missing(&session, name).await?;
    report.borrow_mut().damages(&missing);
    let mut groups = Vec::new();
    if let Some(ground) = ground {
        let blocks = cluster.blocks_per_segment();
        groups =
            groups::find(&session, (cluster, blocks), ground, (database, &functions), &mut relations).await?;
    }
    let mut looking =
        Looking { cluster, prepared, database, functions, collations: HashMap::new(), relations, report };
    looking.collations = looking.read_collations(&session).await?;
    looking.name_the_rest();
    let (mut plain, mut code) = (VecDeque::new(), VecDeque::new());
    let wanted = looking.relations.all.iter().enumerate().filter(|(_, relation)| !relation.is_carried);
    for (at, relation) in wanted {
        if relation.index.as_ref().is_some_and(|index| index.runs_code()) {
            code.push_back((at, 0));
        } else {
            plain.push_back((at, 0));
        }
    }
    for queue in [plain, code] {
        let queue = RefCell::new(queue);
        let workers = (0..jobs).map(|_| looking.work(&queue));
        futures::future::join_all(workers).await;
        // What no worker took: the server went away and did not come back.
        for (at, _) in queue.into_inner() {
            let relation = &looking.relations.all[at];
            let why = "the server ended before it was looked at";
            report.borrow_mut().missed_of(relation, Reason::ServerEnded, &relation.title(), why);
        }
    }
    report.borrow_mut().count("databases", 1);
    Ok((looking.relations.all, groups))
}

impl Looking<'_> {
    /// Collations of indexes whose library is of another version here than in the copy.
    async fn read_collations(
        &self,
        session: &Session,
    ) -> Result<HashMap<u32, (Reason, String)>, ServerError> {
        let indexes = self.relations.all.iter().filter_map(|relation| relation.index.as_ref());
        let mut found: HashMap<u32, (Reason, String)> = HashMap::new();
        let mut wanted: Vec<u32> = indexes.flat_map(|index| index.collations.iter().copied()).collect();
        wanted.sort_unstable();
        wanted.dedup();
        for oid in wanted {
            let query = format!(
                "SELECT collname, collversion, pg_catalog.pg_collation_actual_version(oid), collprovider \
                 FROM pg_catalog.pg_collation WHERE oid = {oid}"
            );
            match session.rows(&query).await {
                Ok(rows) => {
                    let Some(row) = rows.first() else { continue };
                    if text(row, 3) == "d" {
                        if let Some(why) = &self.database.sorts_otherwise {
                            found.insert(oid, why.clone());
                        }
                    } else if let Some(why) = collation_versions(row[1].as_deref(), row[2].as_deref()) {
                        found.insert(
                            oid,
                            (Reason::Collation, format!("the collation {} is {why}", text(row, 0))),
                        );
                    }
                }
                Err(error) if error.is_lost() => return Err(error),
                Err(error) => {
                    found.insert(oid, (Reason::Locale, error.to_string()));
                }
            }
        }
        Ok(found)
    }

    /// Names what the step does not look at: by kind, with some of the names.
    fn name_the_rest(&self) {
        let report = self.report.borrow();
        let mut kinds: BTreeMap<(String, bool), Vec<&str>> = BTreeMap::new();
        for relation in &self.relations.all {
            let method = relation.access_method.as_str();
            let kind = match relation.kind {
                'i' if method == "btree" || (method == "gin" && self.functions.gin) => continue,
                'i' => format!("{method} indexes"),
                'r' | 'm' | 't' if method != "heap" => format!("tables of the access method {method}"),
                _ => continue,
            };
            kinds.entry((kind, Kind::of(method).is_some())).or_default().push(&relation.name);
        }
        let database = &self.database.name;
        for ((kind, is_walked), names) in kinds {
            let shown = names[..names.len().min(5)].join(", ");
            let more = if names.len() > 5 { ", ..." } else { "" };
            report.not_covered(
                &format!("{} {kind} of database \"{database}\" ({shown}{more})", names.len()),
                if is_walked {
                    "the rows that they name are looked up; nothing tells whether each row of the table has its entry"
                } else {
                    "nothing reads indexes or tables of this kind"
                },
            );
        }
        for relation in &self.relations.all {
            if let Some(why) = relation.index.as_ref().and_then(|index| index.unusable) {
                report.not_covered(&relation.title(), why);
            }
        }
        let tables = self.relations.all.iter().filter(|it| it.is_table() && it.access_method == "heap");
        if !self.functions.visibility {
            report.not_covered(
                &format!("visibility maps of {} tables of database \"{database}\"", tables.count()),
                "the library of pg_visibility is not installed on this host, so their bits were not compared with the rows",
            );
        }
        if self.relations.foreign_tables > 0 {
            let count = self.relations.foreign_tables;
            report.not_covered(
                &format!("{count} foreign tables of database \"{database}\""),
                "their data is not in the copy",
            );
        }
    }

    /// Takes one relation after the other.
    async fn work(&self, queue: &RefCell<VecDeque<(usize, u32)>>) {
        let mut session = None;
        loop {
            if session.is_none() {
                session = self.connect().await;
            }
            let Some(current) = &session else { return };
            let Some((at, tries)) = queue.borrow_mut().pop_front() else { return };
            let relation = &self.relations.all[at];
            let Err(error) = self.relation(current, relation).await else { continue };
            session = None;
            if tries + 1 < TRIES {
                queue.borrow_mut().push_back((at, tries + 1));
            } else {
                let why = format!("the server ended while it was looked at: {error}");
                self.report.borrow_mut().missed_of(relation, Reason::ServerEnded, &relation.title(), &why);
            }
        }
    }

    /// A connection; while the server recovers from a crash, after a while.
    async fn connect(&self) -> Option<Session> {
        let patience = std::time::Duration::from_millis(200);
        for _ in 0..300 {
            match Session::connect(self.cluster, &self.prepared.role, &self.database.name).await {
                Ok(session) => return Some(session),
                Err(error) if error.is_lost() => tokio::time::sleep(patience).await,
                Err(_) => return None,
            }
        }
        None
    }

    /// Looks at one relation. An error is a connection that was lost.
    async fn relation(&self, session: &Session, relation: &Relation) -> Result<(), ServerError> {
        match (relation.kind, relation.access_method.as_str()) {
            ('i', method) => {
                let Some(index) = &relation.index else { return Ok(()) };
                if index.unusable.is_some() {
                    return Ok(());
                }
                match method {
                    "btree" => self.btree(session, relation).await,
                    "gin" if self.functions.gin => self.gin(session, relation).await,
                    _ => Ok(()),
                }
            }
            (_, "heap") => {
                self.heap(session, relation).await?;
                self.visibility(session, relation).await
            }
            _ => Ok(()),
        }
    }

    async fn heap(&self, session: &Session, relation: &Relation) -> Result<(), ServerError> {
        let query = format!(
            "SELECT blkno, offnum, attnum, msg FROM {}.verify_heap({}, false, true, 'none', NULL, NULL) LIMIT {}",
            self.functions.schema,
            regclass(relation.oid),
            MAX_ROWS + 1
        );
        match session.rows(&query).await {
            Ok(rows) => {
                let texts: Vec<String> = rows
                    .iter()
                    .map(|row| {
                        let mut text_ = format!("{} (file {})", relation.title(), relation.shown_file());
                        for (at, word) in ["block", "row", "attribute"].iter().enumerate() {
                            if let Some(value) = row[at].as_deref() {
                                text_ += &format!(", {word} {value}");
                            }
                        }
                        format!("{text_}: {}", text(row, 3))
                    })
                    .collect();
                let mut report = self.report.borrow_mut();
                report.damages(&texts);
                report.count(if relation.kind == 't' { "TOAST tables" } else { "tables" }, 1);
                Ok(())
            }
            Err(error) => self.failed(relation, error),
        }
    }

    async fn visibility(&self, session: &Session, relation: &Relation) -> Result<(), ServerError> {
        if !self.functions.visibility {
            return Ok(());
        }
        for (function, bit, state) in
            [("check_visible", "all-visible", "visible to all"), ("check_frozen", "all-frozen", "frozen")]
        {
            let query = format!(
                "SELECT t_ctid FROM {}.{function}({}) LIMIT {}",
                self.functions.schema,
                regclass(relation.oid),
                MAX_ROWS + 1
            );
            match session.rows(&query).await {
                Ok(rows) if rows.is_empty() => {}
                Ok(rows) => {
                    let more = if rows.len() > MAX_ROWS { "more than " } else { "" };
                    let count = rows.len().min(MAX_ROWS);
                    let finding = format!(
                        "visibility map of {} (file {file}_vm): it says of pages that they are {bit}, and {more}{count} \
                         rows there are not {state}, the first {}",
                        relation.title(),
                        text(&rows[0], 0),
                        file = relation.shown_file(),
                    );
                    self.report.borrow_mut().damage(&finding);
                }
                Err(error) if error.is_lost() => return Err(error),
                // What keeps it from reading the table has been said of the table.
                Err(error) if error.meaning() == Meaning::Damage => {
                    let finding = format!("{} (file {}): {error}", relation.title(), relation.shown_file());
                    self.report.borrow_mut().damage(&finding);
                    return Ok(());
                }
                Err(error) => {
                    let part = format!("visibility map of {}", relation.title());
                    self.report.borrow_mut().missed_of(relation, Reason::Other, &part, &error.to_string());
                    return Ok(());
                }
            }
        }
        self.report.borrow_mut().count("visibility maps", 1);
        Ok(())
    }

    async fn gin(&self, session: &Session, relation: &Relation) -> Result<(), ServerError> {
        let query = format!("SELECT {}.verify_gin({})", self.functions.schema, regclass(relation.oid));
        match read_only(session, "", &query).await {
            Ok(()) => self.report.borrow_mut().count("GIN indexes", 1),
            Err(error) if error.is_lost() => return Err(error),
            Err(error) => return self.failed(relation, error),
        }
        Ok(())
    }

    async fn btree(&self, session: &Session, relation: &Relation) -> Result<(), ServerError> {
        let Some(index) = &relation.index else { return Ok(()) };
        let mut said = self.call(session, relation, true, "").await;
        let asks_code = !index.functions.is_empty();
        if asks_code && matches!(&said, Err(error) if depends_on_settings(error)) {
            // The functions of the index may need what sessions of the application have.
            let own = self.settings_of(relation);
            if let Err(error) = &said {
                let title = relation.title();
                self.report.borrow_mut().note(&format!(
                    "{title}: looked at again with the settings of its database, because: {error}"
                ));
            }
            said = self.call(session, relation, true, &own).await;
        }
        let error = match said {
            Ok(()) => {
                self.report.borrow_mut().count("B-tree indexes", 1);
                return Ok(());
            }
            Err(error) if error.is_lost() => return Err(error),
            Err(error) => error,
        };
        let computes = index.computed && (asks_code || index.asks_host || !self.collations.is_empty());
        match error.meaning() {
            Meaning::Order if self.sorts_otherwise(relation).is_some() => {
                let (reason, why) =
                    self.sorts_otherwise(relation).unwrap_or((Reason::Collation, String::new()));
                let why = format!("{why}, and its entries are in another order: {error}");
                self.report.borrow_mut().missed_of(relation, reason, &relation.title(), &why);
                Ok(())
            }
            Meaning::LacksEntry if computes => {
                let why = format!(
                    "its entries are not what its functions give here; they may depend on settings: {error}"
                );
                self.structure(session, relation, Reason::IndexFunction, &why).await
            }
            Meaning::NotLooked(Reason::Locale) => {
                self.structure(session, relation, Reason::Locale, &error.to_string()).await
            }
            Meaning::NotLooked(reason) if asks_code => {
                let reason = if reason == Reason::Other { Reason::IndexFunction } else { reason };
                self.structure(session, relation, reason, &error.to_string()).await
            }
            _ => self.failed(relation, error),
        }
    }

    /// Looks at an index without asking what its entries must be; `reason` and `why` say what keeps the check from that.
    async fn structure(
        &self,
        session: &Session,
        relation: &Relation,
        reason: Reason,
        why: &str,
    ) -> Result<(), ServerError> {
        match self.call(session, relation, false, "").await {
            Ok(()) => {
                let why = format!("its pages are sound, and were not compared with the table: {why}");
                self.report.borrow_mut().missed_of(relation, reason, &relation.title(), &why);
                Ok(())
            }
            Err(error) if error.is_lost() => Err(error),
            Err(error) if error.meaning() == Meaning::Order && self.sorts_otherwise(relation).is_some() => {
                self.report.borrow_mut().missed_of(relation, reason, &relation.title(), why);
                Ok(())
            }
            Err(error) if matches!(error.meaning(), Meaning::NotLooked(_) | Meaning::Unsupported) => {
                self.report.borrow_mut().missed_of(relation, reason, &relation.title(), why);
                Ok(())
            }
            Err(error) => self.failed(relation, error),
        }
    }

    /// Why entries of an index may be in another order here. A predicate or an expression may ask any collation.
    fn sorts_otherwise(&self, relation: &Relation) -> Option<(Reason, String)> {
        let index = relation.index.as_ref()?;
        let own = index.collations.iter().find_map(|oid| self.collations.get(oid));
        let default =
            index.uses_default_collation().then_some(self.database.sorts_otherwise.as_ref()).flatten();
        own.or(default).cloned()
    }

    /// Runs amcheck's check of a B-tree, `with_table` with a look at each row of the table.
    async fn call(
        &self,
        session: &Session,
        relation: &Relation,
        with_table: bool,
        settings: &str,
    ) -> Result<(), ServerError> {
        // Each leaf is also looked for from the root, which finds pages that nothing leads to. Indexes of before version 12 cannot.
        for from_root in [true, false] {
            let unique = if self.cluster.major >= 17 { format!(", {with_table}") } else { String::new() };
            let query = format!(
                "SELECT {}.verify_btree({}, {with_table}, {from_root}{unique})",
                self.functions.schema,
                regclass(relation.oid)
            );
            match read_only(session, settings, &query).await {
                Err(error) if from_root && error.meaning() == Meaning::Unsupported => {}
                done => return done,
            }
        }
        Ok(())
    }

    /// Statements that give a session what sessions of the table's owner have in this database.
    fn settings_of(&self, relation: &Relation) -> String {
        let mut values = BTreeMap::from([("search_path".to_owned(), DEFAULT_SEARCH_PATH.to_owned())]);
        for (name, value) in self.prepared.settings.of(self.database.oid, relation.owner) {
            // `app.tenant` and the like are the application's own.
            if HARMLESS.contains(&name.as_str()) || name.contains('.') {
                values.insert(name, value);
            }
        }
        let mut statements = String::new();
        for (name, value) in &values {
            statements +=
                &format!("SELECT pg_catalog.set_config({}, {}, true); ", literal(name), literal(value));
        }
        if self.cluster.major >= 17
            && let Some(index) = &relation.index
            && let Some(path) = values.get("search_path")
        {
            // amcheck sets a search path of its own there; a function's own is stronger.
            let list: Vec<String> = index.functions.iter().map(u32::to_string).collect();
            statements += &format!(
                "UPDATE pg_catalog.pg_proc SET proconfig = ARRAY[{}]::pg_catalog.text[] \
                 WHERE oid IN ({}) AND proconfig IS NULL; ",
                literal(&format!("search_path={path}")),
                list.join(", ")
            );
        }
        statements
    }

    /// Says what an error about a relation means. An error is a connection that was lost.
    fn failed(&self, relation: &Relation, error: ServerError) -> Result<(), ServerError> {
        let mut report = self.report.borrow_mut();
        let title = relation.title();
        match error.meaning() {
            Meaning::Damage | Meaning::Order | Meaning::LacksEntry => {
                report.damage(&format!("{title} (file {}): {error}", relation.shown_file()));
            }
            _ if error.is_lost() => return Err(error),
            Meaning::Unsupported => report.missed_of(relation, Reason::Other, &title, &error.to_string()),
            Meaning::NotLooked(reason) => report.missed_of(relation, reason, &title, &error.to_string()),
        }
        Ok(())
    }
}

/// Errors that may come from a setting that a function of the index needs.
fn depends_on_settings(error: &ServerError) -> bool {
    match error.meaning() {
        Meaning::LacksEntry => true,
        Meaning::NotLooked(reason) => matches!(reason, Reason::Other | Reason::Locale) && !error.is_lost(),
        _ => false,
    }
}

/// Runs a query in a transaction that can change nothing and leaves nothing.
async fn read_only(session: &Session, settings: &str, query: &str) -> Result<(), ServerError> {
    let done = match session.run(&format!("BEGIN; {settings}SET TRANSACTION READ ONLY")).await {
        Ok(()) => session.run(query).await,
        Err(error) => Err(error),
    };
    if matches!(&done, Err(error) if error.is_lost()) {
        return done;
    }
    let back = session.run("ROLLBACK").await;
    done.and(back)
}
