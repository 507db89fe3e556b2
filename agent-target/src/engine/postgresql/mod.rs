//! `engine postgresql-check`: starts the copied cluster on a server of its own, and looks at all of it.
//!
//! | exit code | what it means |
//! | --- | --- |
//! | 0 | nothing is wrong |
//! | 1 | damage: lines `damage: …` and `not restorable: …` say what |
//! | 10 | the server's programs are not there, or of another major version |
//! | 11 | the copy's server did not start: lines `server: …` say why |
//! | 12 | a tool could not do its work |
//! | 13 | without a sandbox, links of the copy would lead to live files |
//! | 15 | a part could not be looked at: the line `incomplete: …` says which and why |
//!
//! The checker is the target's own: its functions are made anew from the target's libraries, and the copy's settings, event triggers,
//! languages and libraries are put out of action first (`prepare`). One table says what an error means (`meaning`). `look` asks the server,
//! `entries` and `checksums` read the files after it has stopped.

mod catalog;
mod checksums;
mod cluster;
mod commits;
mod entries;
mod files;
mod ground;
mod groups;
mod liveness;
mod look;
mod meaning;
pub(crate) mod page;
mod prepare;
mod references;
mod report;
mod server;
mod session;
mod trees;
mod unique;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
    io,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    thread,
};

use crate::check::known::Found;
use cluster::Cluster;
use ground::{Ground, Part};
use groups::Group;
use meaning::{Meaning, Reason};
use page::PAGE_BYTES;
use prepare::{Prepared, UsableFolders};
use report::Report;
use server::Server;
use session::Session;

/// Connections that look at relations side by side.
const MAX_JOBS: usize = 4;
/// What the server says of a database whose removal did not end.
const INVALID_DATABASE: &str = "cannot connect to invalid database";

/// What to check, and where.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The step
    #[arg(value_enum)]
    step: Step,
    /// The copied data directory
    #[arg(long)]
    data: PathBuf,
    /// An empty folder of this step
    #[arg(long)]
    scratch: PathBuf,
    /// Folder of the server's programs; %v stands for the major version
    #[arg(long)]
    programs: String,
    /// A superuser of the cluster
    #[arg(long)]
    superuser: String,
    /// Whether the step is wanted at all
    #[arg(long, value_enum, default_value_t = Wanted::Yes)]
    wanted: Wanted,
    /// What comes out when a table or an index could not be looked at
    #[arg(long, value_enum, default_value_t = Unchecked::Inconclusive)]
    unchecked: Unchecked,
    /// The standard input says which parts need not be checked; the parts that were are left in the folder of the step
    #[arg(long)]
    known_parts: bool,
}

/// A step of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// Starts the server and looks at every table and B-tree
    Amcheck,
    /// Reads the pages' checksums where the cluster has them
    Checksums,
    /// Starts the server and dumps every database to nowhere
    Dump,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wanted {
    Yes,
    No,
}

/// What comes out when a part could not be looked at, and nothing is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Unchecked {
    /// The check could not do its work
    Inconclusive,
    /// The part is listed as not covered
    Accept,
}

/// Why a check did not find the copy good.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the copy is damaged")]
    Damage,
    #[error("{0}")]
    Version(String),
    #[error("the copy's server did not start: it ended with {0}")]
    NotStarted(String),
    #[error("{0}")]
    Tool(String),
    #[error("{0}: without a sandbox this link of the copy leads to live files")]
    Isolation(String),
    #[error("{0} parts could not be looked at")]
    Incomplete(usize),
    #[error("no database of the cluster can be opened: {0}")]
    Locale(String),
}

impl End {
    fn code(&self) -> u8 {
        match self {
            Self::Damage => 1,
            Self::Version(_) => 10,
            Self::NotStarted(_) => 11,
            Self::Tool(_) => 12,
            Self::Isolation(_) => 13,
            Self::Incomplete(_) | Self::Locale(_) => 15,
        }
    }

    /// The profile's word for a step that ended before it looked. The others print lines of their own.
    fn word(&self) -> Option<&'static str> {
        match self {
            Self::Version(_) => Some("engine-version"),
            Self::NotStarted(_) => Some("server-not-started"),
            Self::Tool(_) => Some("checker-error"),
            Self::Isolation(_) => Some("isolation-unavailable"),
            Self::Damage | Self::Incomplete(_) | Self::Locale(_) => None,
        }
    }
}

fn tool(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> End {
    move |error| End::Tool(format!("{what}: {error}"))
}

/// Runs the step. Its exit code is that of the table above.
pub fn check(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(end) => {
            if matches!(end, End::Locale(_)) {
                println!("incomplete: {}: {}", Reason::Locale.word(), report::one_line(&end.to_string()));
            }
            // The verdict's headline, whatever the server's log says beside it.
            if let Some(word) = end.word() {
                println!("failed: {word}: {}", report::one_line(&end.to_string()));
            }
            eprintln!("{end}");
            ExitCode::from(end.code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), End> {
    if arguments.wanted == Wanted::No {
        println!("{}: not asked for", step_name(arguments.step));
        return Ok(());
    }
    let cluster = Cluster::find(arguments)?;
    if let Some(bytes) = cluster.control_number("Database block size").filter(|it| *it != PAGE_BYTES as u64) {
        return Err(End::Version(format!(
            "the cluster has pages of {bytes} bytes, and this check reads pages of {PAGE_BYTES}"
        )));
    }
    match arguments.step {
        Step::Amcheck => amcheck(&cluster, arguments.known_parts),
        Step::Checksums => checksums(&cluster, arguments.known_parts),
        Step::Dump => dump(&cluster),
    }
}

fn step_name(step: Step) -> &'static str {
    match step {
        Step::Amcheck => "amcheck",
        Step::Checksums => "checksums",
        Step::Dump => "dump",
    }
}

/// Waits for work that talks to the server.
fn wait<T>(work: impl Future<Output = Result<T, End>>) -> Result<T, End> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(tool("the connections"))?.block_on(work)
}

/// Names unique indexes whose entries hold more than the key: before PostgreSQL 17 nobody compares their keys.
fn tell_of_further_columns(relations: &[catalog::Relation], report: &Report) {
    let has_more = |it: &&catalog::Relation| {
        it.access_method == "btree"
            && it.index.as_ref().is_some_and(|index| index.unique == catalog::Unique::WithMore)
    };
    let mut found = relations.iter().filter(has_more);
    if let Some(first) = found.next() {
        let others = found.count();
        let more = if others > 0 { format!(" and {others} more") } else { String::new() };
        let why = "it has columns that are not of its key (INCLUDE), and amcheck compares such keys from PostgreSQL 17 on";
        report.not_covered(&format!("duplicate keys of {}{more}", first.title()), why);
    }
}

fn amcheck(cluster: &Cluster, is_told: bool) -> Result<(), End> {
    let server = Server::start(cluster)?;
    // All that was recovered is in the files: the server ends its recovery with a checkpoint.
    let ground = Ground::read(cluster, is_told)?.map(|ground| ground.with_log(cluster)).transpose()?;
    let report = RefCell::new(Report::default());
    let mut usable = UsableFolders::of_every_cluster();
    let looked = wait(async {
        usable = UsableFolders::ask(cluster).await;
        let prepared = prepare::cluster(cluster).await?;
        let (mut relations, mut groups) = (Vec::new(), Vec::new());
        let jobs = thread::available_parallelism().map_or(2, usize::from).clamp(1, MAX_JOBS);
        for database in &prepared.databases {
            let (of_database, parts) =
                look_at(cluster, &prepared, database, jobs, ground.as_ref(), &report).await?;
            relations.extend(of_database);
            groups.extend(parts);
        }
        Ok((relations, groups, prepared.databases.len()))
    });
    let mut report = report.into_inner();
    let blocks = cluster.blocks_per_segment();
    if let Some(line) = server.gave_up() {
        report.damage(&format!("the server gave up: {line}"));
        drop(server);
        return report.end(cluster.unchecked);
    }
    // Stopped before the files are read: what is looked at there must be on the disk.
    let stopped = server.stop();
    // What the server cannot read of its own catalogues is looked at without it, once all that it had recovered is in the files.
    if stopped.is_ok() && (looked.is_err() || report.has_missed()) {
        entries::check_mapped(&cluster.data, blocks, &usable, &mut report)
            .map_err(tool("the catalogues' files"))?;
    }
    let (relations, groups, databases) = match (looked, stopped) {
        (Ok(looked), Ok(())) => looked,
        // Damage counts, even where something else could not be looked at.
        (Err(end), _) | (Ok(_), Err(end)) => return report.end(Unchecked::Accept).and(Err(end)),
    };
    if cluster.major < 17 {
        tell_of_further_columns(&relations, &report);
    }
    entries::check(&cluster.data, blocks, &relations, &mut report)
        .map_err(tool("the files of the relations"))?;
    report.end(cluster.unchecked)?;
    if let Some(ground) = &ground {
        ground.tell(cluster, found(&groups, databases, &report), true)?;
    }
    println!("amcheck: no damage found");
    Ok(())
}

/// What a check that found no damage says of its parts. The catalogue of a database is one that is never carried.
fn found(groups: &[Group], databases: usize, report: &Report) -> Found {
    let mut found = Found { checked: databases as u64, ..Default::default() };
    for group in groups {
        if !group.is_carried {
            found.checked += 1;
        }
        // A sentence never gets better by being carried.
        let is_whole = !group.files.iter().any(|file| report.lacks(file));
        match (group.part.inputs, group.is_carried) {
            (Some(inputs), true) => drop(found.carried.insert(group.part.name.clone(), inputs)),
            (Some(inputs), false) if is_whole => drop(found.passed.insert(group.part.name.clone(), inputs)),
            _ => {}
        }
    }
    found
}

/// Looks at one database. Where its locale is not installed here, at what does not depend on it.
async fn look_at(
    cluster: &Cluster,
    prepared: &Prepared,
    database: &prepare::Database,
    jobs: usize,
    ground: Option<&Ground>,
    report: &RefCell<Report>,
) -> Result<(Vec<catalog::Relation>, Vec<Group>), End> {
    let part = format!("database \"{}\"", database.name);
    let mut done = look::database(cluster, prepared, database, jobs, ground, report).await;
    if let Err(error) = &done
        && error.meaning() == Meaning::NotLooked(Reason::Locale)
    {
        let why = format!("{error}. HINT: install the locale on this host");
        report.borrow_mut().missed(Reason::Locale, &format!("order of text in {part}"), &why);
        let without = prepare::without_locale(cluster, prepared, database).await;
        done = match without {
            Ok(database) => look::database(cluster, prepared, &database, jobs, ground, report).await,
            Err(error) => Err(error),
        };
    }
    match done {
        Ok(looked) => Ok(looked),
        Err(error) => {
            let mut report = report.borrow_mut();
            match error.meaning() {
                Meaning::Damage | Meaning::Order | Meaning::LacksEntry => {
                    report.damage(&format!("{part}: {error}"));
                }
                // An interrupted DROP DATABASE leaves one that nothing can open or use.
                _ if error.message.contains(INVALID_DATABASE) => {
                    report.not_covered(&part, "DROP DATABASE did not end; nobody can open it");
                }
                Meaning::NotLooked(Reason::Extension) if error.message.contains("/amcheck\"") => {
                    return Err(End::Version(format!(
                        "{error}. HINT: install PostgreSQL's contrib modules (Debian: part of postgresql-{})",
                        cluster.major
                    )));
                }
                Meaning::NotLooked(reason) => report.missed(reason, &part, &error.to_string()),
                Meaning::Unsupported => report.missed(Reason::Other, &part, &error.to_string()),
            }
            Ok((Vec::new(), Vec::new()))
        }
    }
}

fn checksums(cluster: &Cluster, is_told: bool) -> Result<(), End> {
    let ground = Ground::read(cluster, is_told)?;
    match cluster.control_number("Data page checksum version") {
        Some(0) => {
            if let Some(ground) = &ground {
                ground.tell(cluster, Found::default(), false)?;
            }
            println!("checksums: not enabled in this cluster");
            return Ok(());
        }
        Some(_) => {}
        None => {
            return Err(End::Tool("pg_controldata does not say whether there are checksums".to_owned()));
        }
    }
    let (mut sound, mut carried) = (BTreeMap::new(), BTreeMap::new());
    for (ground, relation) in ground.iter().flat_map(|it| it.relations().map(move |relation| (it, relation)))
    {
        let files = ground.files(relation).unwrap_or_default();
        let inputs = ground.inputs("pages").files(files).finish();
        let part = Part { name: checksums::pages_of(relation), inputs: Some(inputs) };
        let parts = if ground.carries(&part) { &mut carried } else { &mut sound };
        parts.insert(part.name, inputs);
    }
    let read = checksums::read(&cluster.data, cluster.blocks_per_segment(), &carried);
    let (pages, relations, bad) = read.map_err(tool("the files of the relations"))?;
    let mut report = Report::default();
    report.count("pages", pages);
    if !bad.is_empty() {
        let owned = owned_files(cluster)?;
        checksums::judge(&bad, &owned, &mut report);
    }
    report.end(cluster.unchecked)?;
    if let Some(ground) = &ground {
        for file in &bad {
            sound.remove(&checksums::pages_of(&file.relation));
        }
        ground.tell(cluster, Found { state: None, passed: sound, checked: relations, carried }, false)?;
    }
    println!("checksums: all good");
    Ok(())
}

/// The files of all relations, as the catalogues of all databases name them.
fn owned_files(cluster: &Cluster) -> Result<HashSet<String>, End> {
    let server = Server::start(cluster)?;
    let owned = wait(async {
        let prepared = prepare::cluster(cluster).await?;
        let mut owned = HashSet::new();
        for database in &prepared.databases {
            let read = async {
                let session = Session::connect(cluster, &prepared.role, &database.name).await?;
                catalog::Relations::read(&session, &database.name).await
            };
            match read.await {
                Ok(relations) => owned.extend(relations.all.into_iter().map(|it| it.file)),
                // Nobody can open it, so no relation of it owns a file.
                Err(error) if error.message.contains(INVALID_DATABASE) => {}
                Err(error) => {
                    return Err(prepare::failed(
                        &format!("the catalogue of database {:?}", database.name),
                        &error,
                    ));
                }
            }
        }
        Ok(owned)
    });
    let stopped = server.stop();
    let owned = owned?;
    stopped?;
    Ok(owned)
}

fn dump(cluster: &Cluster) -> Result<(), End> {
    let program = cluster.programs.join("pg_dump");
    if !program.is_file() {
        return Err(End::Version(format!("{} is not there: install it", program.display())));
    }
    let server = Server::start(cluster)?;
    let dumped = wait(prepare::cluster(cluster)).and_then(|prepared| {
        let mut report = Report::default();
        for database in &prepared.databases {
            dump_one(cluster, &prepared, &database.name, &mut report)?;
        }
        Ok(report)
    });
    let stopped = server.stop();
    let report = dumped?;
    stopped?;
    report.end(cluster.unchecked)?;
    println!("dump: done");
    Ok(())
}

fn dump_one(cluster: &Cluster, prepared: &Prepared, name: &str, report: &mut Report) -> Result<(), End> {
    println!("dump: database {}", report::one_line(name));
    // As a connection string, a name with '=' in it would be something else.
    let quoted = name.replace('\\', r"\\").replace('\'', r"\'");
    let mut command = Command::new(cluster.programs.join("pg_dump"));
    command.args(["--file", "/dev/null", "--dbname", &format!("dbname='{quoted}'")]);
    command.env("PGHOST", cluster.socket_folder()).env("PGPORT", "5432").env("PGUSER", &prepared.role);
    command.env("PGCONNECT_TIMEOUT", "60").env("PGAPPNAME", "assay").env_remove("PGDATABASE");
    command.env("LC_ALL", "C").env("PGOPTIONS", session::options(cluster.major));
    let done = command.stdin(Stdio::null()).output().map_err(tool("pg_dump"))?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    eprint!("{said}");
    if done.status.success() {
        report.count("databases", 1);
        return Ok(());
    }
    if said.contains(INVALID_DATABASE) {
        report.not_covered(
            &format!("dump of database \"{name}\""),
            "DROP DATABASE did not end; nobody can open it",
        );
        return Ok(());
    }
    // pg_dump prints no SQLSTATE: the words are PostgreSQL's own for what it read of a table.
    let words = said.lines().find_map(|line| line.split_once("ERROR:  ").map(|(_, text)| text));
    match words {
        Some(words) if meaning::is_damage_of_a_dump(words) => {
            report.damage(&format!("dump of database \"{name}\": {words}"));
        }
        _ => {
            let last = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("pg_dump said nothing");
            report.missed(Reason::Other, &format!("dump of database \"{name}\""), last);
        }
    }
    Ok(())
}
