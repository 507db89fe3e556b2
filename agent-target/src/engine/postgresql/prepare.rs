//! Makes the copy's catalogue harmless in the workspace, before anything of the check runs there.
//!
//! The data is hostile until it is proven otherwise, and a catalogue can hold programs: event triggers, settings that load
//! libraries, functions in C. The check needs none of them. So it
//!
//! - makes a role of its own and leaves no other superuser, and no other role that may run programs or read files;
//! - deletes the settings of roles and databases (they are kept in memory, for functions of indexes that need them);
//! - opens databases that allow no connections, and rolls back prepared transactions, which would hold locks for ever;
//! - disables event triggers, by an update of the catalogue: that fires none;
//! - takes the handler away from languages that are not trusted, and the library from functions in C that are not of the target's
//!   own installation;
//! - makes its own functions from the target's libraries, in a schema of its own, and looks at what the catalogue says of them.

use std::{cell::RefCell, collections::HashMap};

use super::{
    End,
    cluster::Cluster,
    meaning::{Meaning, Reason, ServerError},
    report::Report,
    session::{Row, Session, literal, number, text, truth},
};

/// Databases that the first connection tries.
const MAINTENANCE: [&str; 3] = ["postgres", "template1", "template0"];
/// Roles that may run programs, read or write files of the server, or end sessions: `pg_signal_backend`,
/// `pg_read_server_files`, `pg_write_server_files`, `pg_execute_server_program`.
const STRONG_ROLES: [u32; 4] = [4200, 4569, 4570, 4571];
/// `ClanguageId` and `INTERNALlanguageId` of pg_proc.
const C: u32 = 13;
const INTERNAL: u32 = 12;
/// How the server's own functions are called that read or write its files, end sessions, or make it read its settings again: by their
/// C names, so that another name for one of them counts as well.
const SERVER_FILES: &str = "be_lo_import|be_lo_export|pg_read_|pg_ls_|pg_stat_file|pg_file_|pg_logdir|pg_cancel|pg_terminate|pg_reload|pg_rotate|\
    pg_promote|pg_switch|pg_create_|pg_drop_|pg_replication|pg_logical|pg_start|pg_stop|pg_backup|binary_upgrade|pg_import|pg_log_|pg_current_logfile";
/// Extensions of the target's own installation with functions in C that reach out of the database.
const REACHING_OUT: [&str; 10] = [
    "dblink",
    "postgres_fdw",
    "file_fdw",
    "adminpack",
    "plpython",
    "plpython2",
    "plpython3",
    "plsh",
    "basebackup_to_shell",
    "pg_surgery",
];
/// Handlers of languages that keep their functions from files and programs: the catalogue's word for a language is not enough, it can
/// call `pltclu` trusted.
const TRUSTED_HANDLERS: [&str; 4] =
    ["plpgsql_call_handler", "plperl_call_handler", "pltcl_call_handler", "plv8_call_handler"];

/// A database of the copy.
#[derive(Debug, Clone)]
pub(super) struct Database {
    pub(super) oid: u32,
    pub(super) name: String,
    /// Why its default collation sorts otherwise here than on the live host.
    pub(super) sorts_otherwise: Option<(Reason, String)>,
}

/// The folders of the databases that can be used, below the data directory.
///
/// A folder that belongs to none of them is what a `CREATE DATABASE` or a `DROP DATABASE` that did not end has left there.
#[derive(Debug)]
pub(super) struct UsableFolders {
    pub(super) folders: Vec<String>,
    /// False when the server could not say which databases there are.
    pub(super) are_all: bool,
}

/// `pg_default`, whose databases are in `base`.
const DEFAULT_SPACE: u32 = 1663;
/// What `datconnlimit` is for a database whose removal did not end.
const INVALID: &str = "-2";

impl UsableFolders {
    /// Asks the server which databases there are.
    pub(super) async fn ask(cluster: &Cluster) -> Self {
        let own = first(cluster, &cluster.own_role()).await;
        let session = match own {
            Ok(session) => Ok(session),
            Err(_) => first(cluster, &cluster.superuser).await,
        };
        let Ok(session) = session else { return Self::of_every_cluster() };
        let query = "SELECT oid, dattablespace, datconnlimit FROM pg_catalog.pg_database";
        let Ok(rows) = session.rows(query).await else { return Self::of_every_cluster() };
        let usable = rows.iter().filter(|row| text(row, 2) != INVALID);
        let folders = usable.filter_map(|row| folder(cluster, number(row, 0), number(row, 1))).collect();
        Self { folders, are_all: true }
    }

    /// `template1`, and since PostgreSQL 15 `template0` and `postgres`: the server does not say which others there are.
    pub(super) fn of_every_cluster() -> Self {
        Self { folders: ["base/1", "base/4", "base/5"].map(str::to_owned).to_vec(), are_all: false }
    }
}

fn folder(cluster: &Cluster, database: u32, space: u32) -> Option<String> {
    if space == DEFAULT_SPACE {
        return Some(format!("base/{database}"));
    }
    let version = format!("PG_{}_", cluster.major);
    let versions = std::fs::read_dir(cluster.data.join(format!("pg_tblspc/{space}"))).ok()?;
    let names = versions.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let name = names.filter(|name| name.starts_with(&version)).max()?;
    Some(format!("pg_tblspc/{space}/{name}/{database}"))
}

/// What roles and databases set for themselves, by database and role; 0 stands for all.
#[derive(Debug, Default)]
pub(super) struct Settings(HashMap<(u32, u32), Vec<String>>);

impl Settings {
    /// What a session of `role` in `database` would have, the strongest last.
    pub(super) fn of(&self, database: u32, role: u32) -> Vec<(String, String)> {
        let keys = [(0, 0), (database, 0), (0, role), (database, role)];
        let found = keys.iter().filter_map(|key| self.0.get(key)).flatten();
        found
            .filter_map(|setting| {
                setting.split_once('=').map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            })
            .collect()
    }
}

/// The copy's databases, harmless.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) role: String,
    pub(super) databases: Vec<Database>,
    pub(super) settings: Settings,
}

/// An error of the server on the way to the check.
pub(super) fn failed(doing: &str, error: &ServerError) -> End {
    if error.meaning() == Meaning::Damage {
        println!("damage: {doing}: {}", super::report::one_line(&error.to_string()));
        return End::Damage;
    }
    End::Tool(format!("{doing}: {error}"))
}

/// A connection to any of the databases that every cluster has.
async fn first(cluster: &Cluster, role: &str) -> Result<Session, ServerError> {
    let mut failed = None;
    for name in MAINTENANCE {
        match Session::connect(cluster, role, name).await {
            Ok(session) => return Ok(session),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.unwrap_or_else(|| ServerError {
        state: String::new(),
        message: "no database".to_owned(),
        detail: String::new(),
    }))
}

/// Makes the cluster harmless. A later step of the same check finds it so.
pub(super) async fn cluster(cluster: &Cluster) -> Result<Prepared, End> {
    let role = cluster.own_role();
    let session = match first(cluster, &role).await {
        Ok(session) => session,
        Err(_) => {
            let user = &cluster.superuser;
            let session = first(cluster, user).await.map_err(|error| match error.meaning() {
                Meaning::NotLooked(Reason::Locale) => End::Locale(error.to_string()),
                _ if error.state == "28000" => End::Tool(format!(
                    "the role {user:?} cannot connect: {error}. HINT: name a superuser of the cluster in the variable 'superuser'"
                )),
                _ => failed(&format!("the connection as {user:?}"), &error),
            })?;
            let create = format!("CREATE ROLE {role} SUPERUSER LOGIN");
            match session.run(&create).await {
                Err(error) if error.state == "42710" => {
                    session.run(&format!("ALTER ROLE {role} SUPERUSER LOGIN CONNECTION LIMIT -1")).await
                }
                done => done,
            }
            .map_err(|error| match error.state.as_str() {
                "42501" => End::Tool(format!(
                    "the role {user:?} is no superuser. HINT: name one in the variable 'superuser'"
                )),
                _ => failed("the role of the check", &error),
            })?;
            drop(session);
            first(cluster, &role).await.map_err(|error| failed("the connection", &error))?
        }
    };
    let fail = |error: ServerError| failed("preparing the copy's catalogue", &error);
    let mut settings = Settings::default();
    for row in session
        .rows("SELECT setdatabase, setrole, x FROM pg_catalog.pg_db_role_setting, pg_catalog.unnest(setconfig) AS x")
        .await
        .map_err(fail)?
    {
        let key = (number(&row, 0), number(&row, 1));
        settings.0.entry(key).or_default().push(text(&row, 2).to_owned());
    }
    let strong = STRONG_ROLES.map(|oid| oid.to_string()).join(", ");
    for change in [
        "DELETE FROM pg_catalog.pg_db_role_setting".to_owned(),
        format!("UPDATE pg_catalog.pg_authid SET rolsuper = false WHERE rolname <> '{role}'"),
        format!("DELETE FROM pg_catalog.pg_auth_members WHERE roleid IN ({strong})"),
        // The copy can have a role of this name: nobody else is a member of it, and it is a member of none.
        format!(
            "DELETE FROM pg_catalog.pg_auth_members USING pg_catalog.pg_authid r WHERE r.rolname = '{role}' AND (roleid = r.oid OR member = r.oid)"
        ),
        "UPDATE pg_catalog.pg_database SET datallowconn = true WHERE NOT datallowconn".to_owned(),
    ] {
        session.run(&change).await.map_err(fail)?;
    }
    let databases = databases(cluster, &session).await.map_err(fail)?;
    Ok(Prepared { role, databases, settings })
}

/// Gives a database whose locale is not installed here the locale C, so that it can be opened. Its text then sorts otherwise.
pub(super) async fn without_locale(
    cluster: &Cluster,
    prepared: &Prepared,
    database: &Database,
) -> Result<Database, ServerError> {
    let provider = if cluster.major >= 15 { ", datlocprovider = 'c'" } else { "" };
    let change = format!(
        "UPDATE pg_catalog.pg_database SET datcollate = 'C', datctype = 'C'{provider} WHERE oid = {}",
        database.oid
    );
    first(cluster, &prepared.role).await?.run(&change).await?;
    let why = "the locale of the database is not installed here".to_owned();
    Ok(Database { sorts_otherwise: Some((Reason::Locale, why)), ..database.clone() })
}

async fn databases(cluster: &Cluster, session: &Session) -> Result<Vec<Database>, ServerError> {
    let actual = if cluster.major >= 15 {
        "datcollversion, pg_catalog.pg_database_collation_actual_version(oid), datlocprovider"
    } else {
        "NULL, NULL, 'c'"
    };
    let query = format!("SELECT oid, datname, datcollate, {actual} FROM pg_catalog.pg_database");
    let mut databases = Vec::new();
    for row in session.rows(&query).await? {
        let sorts_otherwise = default_collation(cluster.major, &row);
        databases.push(Database { oid: number(&row, 0), name: text(&row, 1).to_owned(), sorts_otherwise });
    }
    databases.sort_by_key(|it| it.oid);
    Ok(databases)
}

/// Whether the default collation of a database (its `datcollate`, then the version when it was made, the version here and the
/// provider) is another here.
fn default_collation(major: u32, row: &Row) -> Option<(Reason, String)> {
    let collate = text(row, 2);
    // Of another provider than the C library, `datcollate` says nothing about the order.
    let is_of_c_library = text(row, 5) == "c";
    if is_of_c_library && ["C", "POSIX", "C.UTF-8", "C.utf8"].contains(&collate) {
        return None;
    }
    let collate =
        if is_of_c_library { format!("collation {collate}") } else { "default collation".to_owned() };
    let mismatch = |why: String| Some((Reason::Collation, why));
    if major < 15 {
        // It does not keep the version.
        return mismatch(format!("PostgreSQL {major} does not say which version of {collate} sorted it"));
    }
    collation_versions(row[3].as_deref(), row[4].as_deref())
        .and_then(|why| mismatch(format!("the database's {collate} is {why}")))
}

/// Compares the version of a collation that the catalogue has with the one here. `None` when they are the same.
pub(super) fn collation_versions(recorded: Option<&str>, here: Option<&str>) -> Option<String> {
    if recorded == here {
        return None;
    }
    let version = |it: Option<&str>| it.map_or_else(|| "no version".to_owned(), |it| format!("version {it}"));
    Some(format!("of {} in the copy and of {} here", version(recorded), version(here)))
}

/// Names of the check's own functions in a database.
#[derive(Debug, Clone)]
pub(super) struct Functions {
    pub(super) schema: String,
    /// False when the target lacks the library of `pg_visibility`.
    pub(super) visibility: bool,
    /// `gin_index_check` came with 18.
    pub(super) gin: bool,
}

struct Function {
    name: &'static str,
    library: &'static str,
    symbol: &'static str,
    arguments: &'static str,
    returns: &'static str,
    from: u32,
    to: u32,
}

const fn function(
    (name, library, symbol): (&'static str, &'static str, &'static str),
    (arguments, returns): (&'static str, &'static str),
    (from, to): (u32, u32),
) -> Function {
    Function { name, library, symbol, arguments, returns, from, to }
}

/// The functions, with their arguments by major version (contrib/amcheck, contrib/pg_visibility).
const FUNCTIONS: [Function; 6] = [
    function(
        ("verify_heap", "amcheck", "verify_heapam"),
        (
            "pg_catalog.regclass, boolean, boolean, pg_catalog.text, bigint, bigint, \
             OUT blkno bigint, OUT offnum integer, OUT attnum integer, OUT msg pg_catalog.text",
            "SETOF record",
        ),
        (14, u32::MAX),
    ),
    function(
        ("verify_btree", "amcheck", "bt_index_parent_check"),
        ("pg_catalog.regclass, boolean, boolean", "void"),
        (14, 16),
    ),
    function(
        ("verify_btree", "amcheck", "bt_index_parent_check"),
        ("pg_catalog.regclass, boolean, boolean, boolean", "void"),
        (17, u32::MAX),
    ),
    function(("verify_gin", "amcheck", "gin_index_check"), ("pg_catalog.regclass", "void"), (18, u32::MAX)),
    function(
        ("check_visible", "pg_visibility", "pg_check_visible"),
        ("pg_catalog.regclass, OUT t_ctid pg_catalog.tid", "SETOF pg_catalog.tid"),
        (14, u32::MAX),
    ),
    function(
        ("check_frozen", "pg_visibility", "pg_check_frozen"),
        ("pg_catalog.regclass, OUT t_ctid pg_catalog.tid", "SETOF pg_catalog.tid"),
        (14, u32::MAX),
    ),
];

/// Makes the check's functions in the database of `session`, and takes from the copy's own what could reach out.
pub(super) async fn database(
    cluster: &Cluster,
    session: &Session,
    report: &RefCell<Report>,
    database: &Database,
) -> Result<Functions, ServerError> {
    let name = &database.name;
    // No event trigger fires for this, and none after it.
    session.run("UPDATE pg_catalog.pg_event_trigger SET evtenabled = 'D'").await?;
    // Transactions that were prepared hold their locks for ever. They are not committed: in the workspace they are rolled back.
    for row in session.rows("SELECT gid, dbid FROM pg_catalog.pg_prepared_xact()").await? {
        if number(&row, 1) == database.oid {
            session.run(&format!("ROLLBACK PREPARED {}", literal(text(&row, 0)))).await?;
            report.borrow().note(&format!(
                "database {name:?}: the prepared transaction {:?} was rolled back for the check",
                text(&row, 0)
            ));
        }
    }
    let handlers: Vec<u32> = session
        .rows("SELECT oid, prolang, probin, prosrc FROM pg_catalog.pg_proc")
        .await?
        .iter()
        .filter(|row| {
            number(row, 1) == C && is_targets_own(text(row, 2)) && TRUSTED_HANDLERS.contains(&text(row, 3))
        })
        .map(|row| number(row, 0))
        .collect();
    for row in
        session.rows("SELECT oid, lanname, lanpltrusted, lanplcallfoid FROM pg_catalog.pg_language").await?
    {
        let handler = number(&row, 3);
        if handler != 0 && !(truth(&row, 2) && handlers.contains(&handler)) {
            let oid = number(&row, 0);
            session
                .run(&format!(
                    "UPDATE pg_catalog.pg_language SET lanplcallfoid = 0, laninline = 0, lanvalidator = 0 WHERE oid = {oid}"
                ))
                .await?;
            report
                .borrow()
                .note(&format!("database {name:?}: functions in {} are not called", text(&row, 1)));
        }
    }
    let own = format!("(SELECT oid FROM pg_catalog.pg_authid WHERE rolname = '{}')", cluster.own_role());
    let mut refused = Vec::new();
    for row in session.rows("SELECT oid, prolang, probin FROM pg_catalog.pg_proc").await? {
        if number(&row, 1) == C && !is_targets_own(text(&row, 2)) {
            refused.push(number(&row, 0).to_string());
        }
    }
    if !refused.is_empty() {
        let list = refused.join(", ");
        session
            .run(&format!(
                "UPDATE pg_catalog.pg_proc SET probin = 'not called by this check' WHERE oid IN ({list})"
            ))
            .await?;
    }
    for change in [
        // Functions of indexes run as the owner of the table, or as their own: in a copy that knows the role's name it can be the check's.
        format!("UPDATE pg_catalog.pg_class SET relowner = 10 WHERE relowner = {own}"),
        format!("UPDATE pg_catalog.pg_proc SET proowner = 10 WHERE proowner = {own}"),
        // Nobody but the check calls what reads and writes files of the server: the copy's catalogue can let everybody.
        format!(
            "UPDATE pg_catalog.pg_proc SET proacl = ARRAY[pg_catalog.makeaclitem({own}::pg_catalog.oid, {own}::pg_catalog.oid, 'EXECUTE', false)] \
             WHERE prolang = {INTERNAL} AND prosrc ~ '^({SERVER_FILES})'"
        ),
    ] {
        session.run(&change).await?;
    }
    let schema = format!("{}_{:08x}", cluster.own_role(), unguessed());
    session.run(&format!("CREATE SCHEMA {schema}")).await?;
    let mut functions = Functions { schema: schema.clone(), visibility: true, gin: cluster.major >= 18 };
    let fits = |function: &&Function| (function.from..=function.to).contains(&cluster.major);
    for function in FUNCTIONS.iter().filter(fits) {
        let Function { name, library, symbol, arguments, returns, .. } = function;
        let create = format!(
            "CREATE FUNCTION {schema}.{name}({arguments}) RETURNS {returns} \
             AS '$libdir/{library}', '{symbol}' LANGUAGE c"
        );
        match session.run(&create).await {
            Err(error) if *library == "pg_visibility" && error.state == "58P01" => {
                functions.visibility = false
            }
            done => done?,
        }
    }
    is_as_made(session, &schema, cluster.major, functions.visibility).await?;
    Ok(functions)
}

/// Compares what the catalogue says of the functions with what was made.
async fn is_as_made(
    session: &Session,
    schema: &str,
    major: u32,
    visibility: bool,
) -> Result<(), ServerError> {
    let namespaces = session.rows("SELECT oid, nspname FROM pg_catalog.pg_namespace").await?;
    let own: Vec<u32> =
        namespaces.iter().filter(|row| text(row, 1) == schema).map(|row| number(row, 0)).collect();
    let rows =
        session.rows("SELECT pronamespace, proname, prolang, probin, prosrc FROM pg_catalog.pg_proc").await?;
    let mut found: Vec<_> = rows
        .iter()
        .filter(|row| own.contains(&number(row, 0)))
        .map(|row| (text(row, 1), number(row, 2), text(row, 3).to_owned(), text(row, 4)))
        .collect();
    found.sort_unstable();
    let mut made: Vec<_> = FUNCTIONS
        .iter()
        .filter(|it| (it.from..=it.to).contains(&major) && (visibility || it.library != "pg_visibility"))
        .map(|it| (it.name, C, format!("$libdir/{}", it.library), it.symbol))
        .collect();
    made.sort_unstable();
    if own.len() == 1 && found == made {
        return Ok(());
    }
    Err(ServerError {
        state: String::from("-"),
        message: "the catalogue of the copy does not keep the check's own functions as they were made"
            .to_owned(),
        detail: String::new(),
    })
}

/// True for a library that comes with the target's installation and does not reach out of the database.
fn is_targets_own(library: &str) -> bool {
    // A bare name is looked for in the target's folder only.
    let name = library.strip_prefix("$libdir/").unwrap_or(library);
    !name.contains('/')
        && !REACHING_OUT.iter().any(|known| name == *known || name.starts_with(&format!("{known}.")))
}

/// A number that the copy cannot know.
fn unguessed() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    (RandomState::new().build_hasher().finish() & 0xffff_ffff) as u32
}

/// For a message: a constant of SQL is never needed there.
pub(super) fn regclass(oid: u32) -> String {
    format!("{}::pg_catalog.regclass", literal(&oid.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_libraries_of_the_targets_installation_stay() {
        for library in ["$libdir/unaccent", "$libdir/postgis-3", "hstore"] {
            assert!(is_targets_own(library), "{library}");
        }
        for library in [
            "/var/lib/postgresql/15/main/evil.so",
            "$libdir/../x",
            "$libdir/dblink",
            "dblink",
            "dblink.so",
            "$libdir/plpython3.so",
            "plsh",
            "./evil",
            "$libdir/a/b",
        ] {
            assert!(!is_targets_own(library), "{library}");
        }
    }

    #[test]
    fn a_default_collation_is_another_when_its_version_is() {
        let of = |provider: &str, collate: &str, recorded: Option<&str>, here: Option<&str>| -> Row {
            vec![
                Some("5".into()),
                Some("app".into()),
                Some(collate.into()),
                recorded.map(str::to_owned),
                here.map(str::to_owned),
                Some(provider.into()),
            ]
        };
        let row =
            |collate: &str, recorded: Option<&str>, here: Option<&str>| of("c", collate, recorded, here);
        // The order of an ICU database is ICU's, whatever its LC_COLLATE is.
        for collate in ["C", "C.UTF-8", "de_DE.utf8"] {
            let (reason, why) =
                default_collation(15, &of("i", collate, Some("100.1"), Some("153.120"))).expect("another");
            assert_eq!(reason, Reason::Collation);
            assert!(why.starts_with("the database's default collation is of version 100.1"), "{why}");
            assert_eq!(default_collation(15, &of("i", collate, Some("153.120"), Some("153.120"))), None);
        }
        assert_eq!(default_collation(15, &row("de_DE.utf8", Some("2.36"), Some("2.36"))), None);
        let (reason, why) =
            default_collation(15, &row("de_DE.utf8", Some("2.28"), Some("2.36"))).expect("another");
        assert_eq!(reason, Reason::Collation);
        assert!(why.ends_with("of version 2.28 in the copy and of version 2.36 here"), "{why}");
        assert!(default_collation(15, &row("de_DE.utf8", None, Some("2.36"))).is_some());
        assert!(default_collation(14, &row("de_DE.utf8", None, None)).is_some());
        assert_eq!(default_collation(14, &row("C", None, None)), None);
    }

    #[test]
    fn settings_of_a_session_are_those_of_its_database_and_role() {
        let mut settings = Settings::default();
        settings.0.insert((0, 0), vec!["TimeZone=UTC".into()]);
        settings.0.insert((5, 0), vec!["search_path=app, public".into()]);
        settings.0.insert((6, 0), vec!["search_path=other".into()]);
        settings.0.insert((5, 10), vec!["timezone=Asia/Tokyo".into()]);
        let own = |pairs: &[(&str, &str)]| -> Vec<_> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(
            settings.of(5, 10),
            own(&[("timezone", "UTC"), ("search_path", "app, public"), ("timezone", "Asia/Tokyo")])
        );
    }
}
