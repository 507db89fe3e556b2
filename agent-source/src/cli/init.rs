//! `init --join`: from an invitation to a source that can run. [`assay_common::cli::join`] says how the two hosts come to know
//! each other.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use assay_common::{
    cli::{
        CommandError,
        join::{self, Acceptance, Invitation},
        print, write_new,
    },
    config::{ConfigError, ConfigText, Span},
    durable::write_durable,
    id::is_plain_name,
    profile::Profile,
    signing::{SigningKey, VerifyingKey},
};

use super::detect::{Detected, detect, usual};
use crate::config::{self, Config};

/// What `init` is told.
#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// The file that assay-target invite wrote
    #[arg(long, value_name = "FILE")]
    join: PathBuf,
    #[command(flatten)]
    repository: RepositoryArgs,
    /// Folder for what the agent must remember
    #[arg(long, default_value = "/var/lib/assay/source", value_name = "DIR")]
    state: PathBuf,
    /// Address and port on which operators are served
    #[arg(long, default_value = "127.0.0.1:7401", value_name = "ADDRESS")]
    listen: SocketAddr,
}

/// What `init` and `add` are told of the repository.
#[derive(Debug, clap::Args)]
pub(super) struct RepositoryArgs {
    /// Folder of the live repository; without --profile it is looked for in the usual places when it is left out
    path: Option<PathBuf>,
    /// Name of the repository; the engine's when it is left out
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// Profile of its engine, instead of what is found in the folder
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// For the profile "generic": the command that checks the copy, with its arguments. A ';' ends it where something follows
    #[arg(long, value_name = "ARG", num_args = 1.., value_terminator = ";", allow_hyphen_values = true)]
    check: Vec<String>,
    /// How often it runs
    #[arg(long, default_value = "1h", value_name = "SPAN")]
    every: String,
    /// A new file for the line that assay-target accept takes, beside printing it; it holds no secret
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
}

/// What `add` is told.
#[derive(Debug, clap::Args)]
pub(super) struct AddArgs {
    #[command(flatten)]
    repository: RepositoryArgs,
}

/// A repository that is to be protected.
struct Planned {
    found: Engine,
    name: String,
    every: Span,
}

impl RepositoryArgs {
    fn plan(&self) -> Result<Planned, CommandError> {
        let found = engine(self)?;
        let name = self.repository.clone().unwrap_or_else(|| plain(&found.profile));
        if !is_plain_name(&name) {
            return Err(CommandError::usage(format!("{name:?} cannot be the name of a repository"))
                .hint("use 1 to 64 letters, digits, '-' and '_', a letter or digit first"));
        }
        let every: Span = toml::Value::from(self.every.clone())
            .try_into()
            .map_err(|error: toml::de::Error| CommandError::usage(format!("--every: {}", error.message())))?;
        Ok(Planned { found, name, every })
    }
}

impl Planned {
    fn section(&self) -> String {
        format!(
            "[[repository]]\nname = {name}\nprofile = {profile}\n{vars}schedule = {{ every = \"{every:?}\" }}\n\n\
             [[repository.root]]\npath = {root}\n",
            name = join::quoted(&*self.name),
            profile = join::quoted(&*self.found.profile),
            vars = join::vars_line(&self.found.vars),
            every = self.every,
            root = join::quoted(self.found.root.to_string_lossy()),
        )
    }

    fn acceptance(&self, source: &str, source_key: String) -> Acceptance {
        Acceptance {
            source: source.to_owned(),
            source_key,
            repository: self.name.clone(),
            profile: self.found.profile.clone(),
            vars: self.found.vars.clone(),
        }
    }
}

/// Lays out keys and configuration, overwriting nothing, and prints the line for the target.
pub(super) fn init(arguments: &InitArgs, config: &Path) -> Result<ExitCode, CommandError> {
    let invitation = Invitation::load(&arguments.join)?;
    let planned = arguments.repository.plan()?;
    let answer = &arguments.repository.answer;
    join::refuse_what_is_there([config.to_owned()].into_iter().chain(answer.clone()))?;
    let absolute = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    let folder = absolute.parent().unwrap_or(Path::new("/")).join("pki");
    let (source_key, names) = invitation.unpack(&folder)?;
    write_new(config, &configuration(arguments, &invitation, &planned, &names))?;
    let fingerprint = VerifyingKey::from_pem(&source_key).map(|key| key.key_id()).unwrap_or_default();
    let line = planned.acceptance(&invitation.source, source_key).to_line();
    if let Some(answer) = answer {
        write_new(answer, &format!("{line}\n"))?;
    }
    let found = &planned.found;
    print(&format!(
        "found {profile} in {root}\nmade {config}, and keys and certificates in {folder}\n\
         this source's signing key is {fingerprint}\n\n\
         on the target, as one line:\n\nassay-target accept {line}\n\n\
         then here: assay-source doctor; start assay-source; assay-source run --follow\n",
        profile = found.profile,
        root = found.root.display(),
        config = config.display(),
        folder = folder.display(),
    ));
    Ok(ExitCode::SUCCESS)
}

/// Adds a further repository to a source that is set up, and prints the line for the target.
pub(super) fn add(arguments: &AddArgs, config: &Path) -> Result<ExitCode, CommandError> {
    let planned = arguments.repository.plan()?;
    let answer = &arguments.repository.answer;
    join::refuse_what_is_there(answer.clone())?;
    let failed = |error: std::io::Error| CommandError::not_run(format!("{}: {error}", config.display()));
    super::load(config)?;
    let config = &std::path::absolute(config).map_err(failed)?;
    // One at a time: what the other has added is read. Held until the end.
    let folder = fs::File::open(config.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| failed(error.into()))?;
    let mut text = ConfigText::read(config).map_err(|error| CommandError::usage(error.to_string()))?;
    let mode = fs::metadata(config).map_err(failed)?.permissions().mode() & 0o777;
    let changed = text.add_repository(&planned.name, &planned.section());
    // Looked at before it is written.
    let parsed = config::parse(&text)
        .map_err(|error| CommandError::usage(error.to_string()).hint("nothing was changed"))?;
    let key = SigningKey::load(&parsed.signing_key)?.verifying_key();
    let line = planned.acceptance(&parsed.agent.name, key.to_pem()).to_line();
    if let Some(answer) = answer {
        write_new(answer, &format!("{line}\n"))?;
    }
    // A link stays one: what it points to is replaced.
    let place = fs::canonicalize(&changed.path).unwrap_or(changed.path);
    write_durable(&place, changed.text.as_bytes(), mode)
        .map_err(|error| CommandError::not_run(error.to_string()))?;
    print(&format!(
        "added repository {name} ({profile} in {root}) to {config}\n\n\
         on the target, as one line:\n\nassay-target add {line}\n\n\
         then restart both agents, and here: assay-source doctor; assay-source run {name} --follow\n",
        name = planned.name,
        profile = planned.found.profile,
        root = planned.found.root.display(),
        config = place.display(),
    ));
    Ok(ExitCode::SUCCESS)
}

/// What `acceptance` is told.
#[derive(Debug, clap::Args)]
pub(super) struct AcceptanceArgs {
    /// Repository; may be left out when there is one only
    #[arg(default_value = "", hide_default_value = true)]
    repository: String,
    /// A new file for the line, beside printing it; it holds no secret
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
}

/// Prints the line for the target again, for a repository that is in the configuration.
pub(super) fn print_acceptance(arguments: &AcceptanceArgs, config: &Path) -> Result<ExitCode, CommandError> {
    join::refuse_what_is_there(arguments.answer.clone())?;
    let line = acceptance(&super::load(config)?, &arguments.repository)?.to_line();
    if let Some(answer) = &arguments.answer {
        write_new(answer, &format!("{line}\n"))?;
    }
    print(&format!("on the target, as one line:\n\nassay-target accept {line}\n"));
    Ok(ExitCode::SUCCESS)
}

/// A section of a configuration, as an acceptance has it.
#[derive(Debug, serde::Deserialize)]
struct Accepted {
    name: String,
    profile: String,
    #[serde(default)]
    vars: BTreeMap<String, toml::Value>,
}

/// The acceptance of a repository of a configuration; of the first when it is not named.
///
/// # Errors
/// When there is none of that name, or this source's public key cannot be read.
pub(super) fn acceptance(config: &Config, repository: &str) -> Result<Acceptance, CommandError> {
    #[derive(serde::Deserialize)]
    struct All {
        #[serde(rename = "repository", default)]
        repositories: Vec<Accepted>,
    }
    let wrong = |error: ConfigError| CommandError::usage(error.to_string());
    let text = ConfigText::read(&config.path).map_err(wrong)?;
    let All { mut repositories } = text.main.parse().map_err(wrong)?;
    let further = text.further_repositories().map_err(wrong)?;
    repositories.extend(further.into_iter().map(|(_, repository)| repository));
    let wanted = assay_common::cli::all::real_name(repository);
    let named = repositories.into_iter().find(|it| repository.is_empty() || it.name == wanted);
    let Accepted { name, profile, vars } = named.ok_or_else(|| {
        CommandError::usage(assay_common::config::no_such_repository(repository, "in the configuration"))
    })?;
    let source_key = super::restore::own_keys(&config.signing_key)?.current().to_pem();
    Ok(Acceptance { source: config.agent.name.clone(), source_key, repository: name, profile, vars })
}

/// A repository that was found, or named.
struct Engine {
    profile: String,
    root: PathBuf,
    vars: BTreeMap<String, toml::Value>,
}

impl From<Detected> for Engine {
    fn from(found: Detected) -> Self {
        Self { profile: found.profile.to_owned(), root: found.root, vars: found.vars }
    }
}

/// Options of this program that a list of `--check` without an end has taken for its own.
const OWN_OPTIONS: [&str; 9] = [
    "--join",
    "--repository",
    "--profile",
    "--every",
    "--state",
    "--listen",
    "--answer",
    "--config",
    "--json",
];

fn engine(arguments: &RepositoryArgs) -> Result<Engine, CommandError> {
    let is_ended = std::env::args_os().any(|word| word == ";");
    let own = |word: &&String| OWN_OPTIONS.contains(&word.split('=').next().unwrap_or_default());
    if let Some(option) = arguments.check.iter().find(own).filter(|_| !is_ended) {
        return Err(CommandError::usage(format!("{option} stands among the arguments of --check"))
            .hint("end the list with ';' (quoted), or put --check last and end it with ';'"));
    }
    if arguments.path.is_none() && !arguments.check.is_empty() {
        let last = arguments.check.last().map_or("PATH", String::as_str);
        return Err(CommandError::usage(format!(
            "the folder of the live repository is missing: --check takes everything up to a ';', {last:?} as well"
        ))
        .hint("put the folder before --check, or end the list: --check PROGRAM ARGUMENT… ';' FOLDER"));
    }
    let mut found = match &arguments.path {
        Some(path) => {
            let path = std::path::absolute(path)
                .map_err(|error| CommandError::usage(format!("{}: {error}", path.display())))?;
            if !path.is_dir() {
                return Err(CommandError::usage(format!("{}: no such folder", path.display()))
                    .hint("name the folder of the live repository"));
            }
            named(arguments, path)?
        }
        None => match &arguments.profile {
            None => only_one(usual())?,
            // What belongs to another engine is nothing that was asked for.
            Some(profile) => {
                let of_it: Vec<_> = usual().into_iter().filter(|found| found.profile == profile).collect();
                if of_it.is_empty() {
                    let text = format!("--profile {profile}: the folder of the live repository is missing");
                    return Err(CommandError::usage(text).hint("name the folder"));
                }
                only_one(of_it)?
            }
        },
    };
    if let Some(profile) = &arguments.profile {
        found.profile.clone_from(profile);
    }
    if !arguments.check.is_empty() {
        found.vars.insert("check".to_owned(), arguments.check.clone().into());
    }
    if found.profile == "generic" && !found.vars.contains_key("check") {
        return Err(CommandError::usage("the profile \"generic\" does not know how to check the copy")
            .hint("name the command: --check PROGRAM ARGUMENT… ';'"));
    }
    let builtin = Profile::builtin(&found.profile).ok();
    if !arguments.check.is_empty() && builtin.is_some_and(|profile| !profile.vars.contains_key("check")) {
        let text = format!("the profile {:?} brings its own check", found.profile);
        return Err(CommandError::usage(text).hint("leave out --check, or say --profile generic"));
    }
    Ok(found)
}

fn named(arguments: &RepositoryArgs, path: PathBuf) -> Result<Engine, CommandError> {
    match (detect(&path), &arguments.profile) {
        (Some(found), None) => Ok(found.into()),
        // What was found counts only for what it was found as.
        (Some(found), Some(profile)) if found.profile == profile => Ok(found.into()),
        (_, Some(profile)) => Ok(Engine { profile: profile.clone(), root: path, vars: BTreeMap::new() }),
        (None, None) => {
            let known = Profile::builtin_names().collect::<Vec<_>>().join(", ");
            Err(CommandError::usage(format!("{}: no engine that Assay knows is in there", path.display()))
                .hint(format!(
                    "name one with --profile ({known}), or a profile of your own (docs/PROFILES.md)"
                )))
        }
    }
}

fn only_one(mut found: Vec<Detected>) -> Result<Engine, CommandError> {
    match found.len() {
        1 => Ok(found.remove(0).into()),
        0 => Err(CommandError::usage("nothing that Assay knows is in the usual places")
            .hint("name the folder of the live repository")),
        _ => {
            let all = found.iter().map(|found| format!("{} ({})", found.root.display(), found.profile));
            Err(CommandError::usage(format!("several were found: {}", all.collect::<Vec<_>>().join(", ")))
                .hint("name the folder of one of them; assay-source add takes the others"))
        }
    }
}

/// `accurev-4` is a plain name; a path to a profile is not.
fn plain(profile: &str) -> String {
    let stem = Path::new(profile).file_stem().unwrap_or_default().to_string_lossy();
    stem.chars().map(|character| if character.is_ascii_alphanumeric() { character } else { '-' }).collect()
}

fn configuration(
    arguments: &InitArgs,
    invitation: &Invitation,
    planned: &Planned,
    names: &join::Unpacked,
) -> String {
    let state = std::path::absolute(&arguments.state).unwrap_or_else(|_| arguments.state.clone());
    format!(
        "# assay-source: the agent beside the live repository. Relative paths start at this file's folder.\n\n\
         [agent]\nname = {name}\nlisten = \"{listen}\"\nstate = {state}\nsigning_key = \"pki/source-signing.key\"\n\
         # Those of this source and of the target; operators of other sources have certificates of the same CA.\n\
         operators = [{operator}, \"operator\"]\n\n\
         [tls]\nca = \"pki/{ca}\"\ncert = \"pki/source.crt\"\nkey = \"pki/source.key\"\n\n\
         [operator]\ncert = \"pki/{operator_cert}\"\nkey = \"pki/{operator_key}\"\n\n\
         [target]\nurl = {url}\nsigning_key = \"pki/{target_signing_key}\"\n\n\
         # [metrics]\n# listen = \"127.0.0.1:9464\"\n\n\
         {section}",
        name = join::quoted(&*invitation.source),
        operator = join::quoted(format!("operator-{}", invitation.source)),
        listen = arguments.listen,
        state = join::quoted(state.to_string_lossy()),
        url = join::quoted(&*invitation.target_url),
        section = planned.section(),
        ca = names.ca,
        operator_cert = names.operator_cert,
        operator_key = names.operator_key,
        target_signing_key = names.target_signing_key,
    )
}
