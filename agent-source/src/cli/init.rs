//! `init --join`: from an invitation to a source that can run. [`assay_common::cli::join`] says how the two hosts come to know
//! each other.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use assay_common::{
    cli::{
        CommandError,
        join::{self, Acceptance, Invitation},
        print, write_new,
    },
    config::Span,
    id::is_plain_name,
    profile::Profile,
    signing::VerifyingKey,
};

use super::detect::{Detected, detect, usual};

/// What `init` is told.
#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// The file that assay-target invite wrote
    #[arg(long, value_name = "FILE")]
    join: PathBuf,
    /// Folder of the live repository; looked for in the usual places when it is left out
    path: Option<PathBuf>,
    /// Name of the repository; the engine's when it is left out
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// Profile of its engine, instead of what is found in the folder
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// For the profile "generic": the command that checks the copy, with its arguments
    #[arg(long, value_name = "ARG", num_args = 1.., value_terminator = ";", allow_hyphen_values = true)]
    check: Vec<String>,
    /// How often it runs
    #[arg(long, default_value = "1h", value_name = "SPAN")]
    every: String,
    /// Folder for what the agent must remember
    #[arg(long, default_value = "/var/lib/assay/source", value_name = "DIR")]
    state: PathBuf,
    /// Address and port on which operators are served
    #[arg(long, default_value = "127.0.0.1:7401", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// A new file for the line that assay-target accept takes, beside printing it; it holds no secret
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
}

/// Lays out keys and configuration, overwriting nothing, and prints the line for the target.
pub(super) fn init(arguments: &InitArgs, config: &Path) -> Result<ExitCode, CommandError> {
    let invitation = Invitation::load(&arguments.join)?;
    let found = engine(arguments)?;
    let repository = arguments.repository.clone().unwrap_or_else(|| plain(&found.profile));
    if !is_plain_name(&repository) {
        return Err(CommandError::usage(format!("{repository:?} cannot be the name of a repository"))
            .hint("use 1 to 64 letters, digits, '-' and '_', a letter or digit first"));
    }
    let every: Span = toml::Value::from(arguments.every.clone())
        .try_into()
        .map_err(|error: toml::de::Error| CommandError::usage(format!("--every: {}", error.message())))?;
    join::refuse_what_is_there([config.to_owned()].into_iter().chain(arguments.answer.clone()))?;
    let absolute = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    let folder = absolute.parent().unwrap_or(Path::new("/")).join("pki");
    let source_key = invitation.unpack(&folder)?;
    write_new(config, &configuration(arguments, &invitation, &found, &repository, every))?;
    let fingerprint = VerifyingKey::from_pem(&source_key).map(|key| key.key_id()).unwrap_or_default();
    let acceptance = Acceptance {
        source: invitation.source.clone(),
        source_key,
        repository: repository.clone(),
        profile: found.profile.clone(),
        vars: found.vars.clone(),
    };
    let line = acceptance.to_line();
    if let Some(answer) = &arguments.answer {
        write_new(answer, &format!("{line}\n"))?;
    }
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

fn engine(arguments: &InitArgs) -> Result<Engine, CommandError> {
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
        None => only_one(usual())?,
    };
    if let Some(profile) = &arguments.profile {
        found.profile.clone_from(profile);
    }
    if !arguments.check.is_empty() {
        found.vars.insert("check".to_owned(), arguments.check.clone().into());
    }
    if found.profile == "generic" && !found.vars.contains_key("check") {
        return Err(CommandError::usage("the profile \"generic\" does not know how to check the copy")
            .hint("name the command: --check PROGRAM ARGUMENT… ;"));
    }
    Ok(found)
}

fn named(arguments: &InitArgs, path: PathBuf) -> Result<Engine, CommandError> {
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
                .hint("name the folder of one of them; more can be added to the configuration"))
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
    found: &Engine,
    repository: &str,
    every: Span,
) -> String {
    let state = std::path::absolute(&arguments.state).unwrap_or_else(|_| arguments.state.clone());
    format!(
        "# assay-source: the agent beside the live repository. Relative paths start at this file's folder.\n\n\
         [agent]\nname = {name}\nlisten = \"{listen}\"\nstate = {state}\nsigning_key = \"pki/source-signing.key\"\n\
         # Those of this source and of the target; operators of other sources have certificates of the same CA.\n\
         operators = [{operator}, \"operator\"]\n\n\
         [tls]\nca = \"pki/ca.crt\"\ncert = \"pki/source.crt\"\nkey = \"pki/source.key\"\n\n\
         [operator]\ncert = \"pki/operator.crt\"\nkey = \"pki/operator.key\"\n\n\
         [target]\nurl = {url}\nsigning_key = \"pki/target-signing.pub\"\n\n\
         # [metrics]\n# listen = \"127.0.0.1:9464\"\n\n\
         [[repository]]\nname = {repository}\nprofile = {profile}\n{vars}schedule = {{ every = \"{every:?}\" }}\n\n\
         [[repository.root]]\npath = {root}\n",
        name = join::quoted(&*invitation.source),
        operator = join::quoted(format!("operator-{}", invitation.source)),
        listen = arguments.listen,
        state = join::quoted(state.to_string_lossy()),
        url = join::quoted(&*invitation.target_url),
        repository = join::quoted(repository),
        profile = join::quoted(&*found.profile),
        vars = join::vars_line(&found.vars),
        root = join::quoted(found.root.to_string_lossy()),
    )
}
