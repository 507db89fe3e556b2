//! `init`, `invite` and `accept`: from nothing to a target that a source may write to. [`assay_common::cli::join`] says how the two
//! hosts come to know each other.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use assay_common::{
    cli::{
        CommandError, join,
        join::{Acceptance, Invitation},
        print, refuse_below, write_new,
    },
    config::{ConfigText, FileText, Size},
    dial,
    durable::write_durable,
    error::Hint as _,
    id::is_plain_name,
    keyring::{self, Keyring, Place},
    pki::{self, Party, PkiError, Role, authority},
    profile::Profile,
    signing::VerifyingKey,
};
use jiff::Timestamp;

use super::shares;
use crate::config;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Folder beside the configuration in which earlier versions put the CA.
const EARLIER_CA: &str = "ca";

/// What `init` is told.
#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// Host name or address under which sources reach this host; may be given several times
    #[arg(long, required = true, value_name = "HOST")]
    host: Vec<String>,
    /// Folder for the backups; as root on a file system of its own. XFS and btrfs share blocks best
    #[arg(long, default_value = "/var/lib/assay/store", value_name = "DIR")]
    store: PathBuf,
    /// Address and port on which sources and operators are served
    #[arg(long, default_value = "0.0.0.0:7402", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Name of this agent
    #[arg(long, default_value = "target", value_name = "NAME")]
    name: String,
    /// Folder for the CA; /var/lib/assay-ca/KEY when it is left out, and ~/.local/share/assay-ca/KEY for other users than root
    #[arg(long, value_name = "DIR")]
    ca_folder: Option<PathBuf>,
    /// Organisation (O=) in every certificate
    #[arg(long, default_value = "Assay", value_name = "TEXT")]
    organisation: String,
    /// How long the certificates are valid
    #[arg(long, default_value_t = pki::DEFAULT_VALIDITY_DAYS, value_name = "DAYS")]
    days: u32,
}

/// What `invite` is told.
#[derive(Debug, clap::Args)]
pub(super) struct InviteArgs {
    /// Name of the source agent
    name: String,
    /// Host name or address under which operators reach the source from elsewhere; may be given several times
    #[arg(long, value_name = "HOST")]
    host: Vec<String>,
    /// Where the source finds this target, https://HOST:PORT; the first host of its certificate when it is left out
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The new file; assay-invite-NAME.json here when it is left out
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Folder of the CA; the place where `init` put it when it is left out
    #[arg(long, value_name = "DIR")]
    ca_folder: Option<PathBuf>,
    /// How long the certificates are valid
    #[arg(long, default_value_t = pki::DEFAULT_VALIDITY_DAYS, value_name = "DAYS")]
    days: u32,
}

fn fault(error: PkiError) -> CommandError {
    let hint = error.hint();
    CommandError { hint, ..CommandError::usage(error.to_string()) }
}

fn folder_of(config: &Path) -> PathBuf {
    let absolute = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    absolute.parent().unwrap_or(Path::new("/")).to_owned()
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> CommandError {
    move |error| CommandError::not_run(format!("{}: {error}", path.display()))
}

/// Makes a CA, this agent's certificate and verdict key, an operator's certificate, and the configuration. Overwrites nothing.
pub(super) fn init(arguments: &InitArgs, config: &Path) -> Result<ExitCode, CommandError> {
    let (folder, now, validity) = (folder_of(config), Timestamp::now(), DAY * arguments.days);
    let (keys, earlier) = (folder.join("pki"), folder.join(EARLIER_CA));
    if let Some(ca) = &arguments.ca_folder {
        refuse_below(ca, &folder)?;
    }
    let names = ["ca.crt", "target.crt", "target.key", "operator.crt", "operator.key"];
    let signing = ["target-signing.key", "target-signing.pub"].map(|name| keys.join(name));
    let in_the_way = names.map(|name| keys.join(name)).into_iter().chain(signing);
    join::refuse_what_is_there(in_the_way.chain([
        config.to_owned(),
        earlier.join("ca.key"),
        earlier.join("ca.crt"),
    ]))?;
    let target = Party { name: arguments.name.clone(), hosts: with_local(&arguments.host) };
    let operator = Party { name: "operator".to_owned(), hosts: Vec::new() };
    join::make_folder(&keys)?;
    let validity_of_ca = DAY * arguments.days.max(3650);
    let apart = arguments.ca_folder.as_deref();
    let ca = pki::create_authority(apart, &arguments.organisation, validity_of_ca, now).map_err(fault)?;
    fs::copy(ca.join("ca.crt"), keys.join("ca.crt")).map_err(failed(&keys))?;
    for (role, party) in [(Role::Target, &target), (Role::Operator, &operator)] {
        let issued = pki::issue(&ca, &ca, role, party, validity, now).map_err(fault)?;
        for (from, end) in [(issued.cert, "crt"), (issued.key, "key")] {
            fs::rename(&from, keys.join(format!("{role}.{end}"))).map_err(failed(&from))?;
        }
    }
    pki::create_signing_key(&keys, "target-signing")?;
    write_new(config, &configuration(arguments))?;
    let (config, ca) = (config.display(), ca.display());
    print(&format!(
        "made {config}, keys and certificates in {keys}, and a CA in {ca}\n\
         next: assay-target invite NAME, for a host with something to protect\n\
         {ca}/ca.key is needed for invitations and new certificates only. No agent reads it there; another host is better still.\n",
        keys = keys.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Operators on the host itself call it by these.
fn with_local(hosts: &[String]) -> Vec<String> {
    let mut all: Vec<_> = hosts.iter().map(|host| pki::without_brackets(host).to_owned()).collect();
    for local in ["localhost", "127.0.0.1", "::1"] {
        if !all.iter().any(|host| host == local) {
            all.push(local.to_owned());
        }
    }
    all
}

fn configuration(arguments: &InitArgs) -> String {
    let store = std::path::absolute(&arguments.store).unwrap_or_else(|_| arguments.store.clone());
    let room = shares::of_file_system(&store).map_or_else(String::new, |(reserve, quota)| {
        format!(
            "# What a run leaves free on the store's file system, and what one repository may hold: so that none starves the others.\n\
             reserve = \"{reserve}\"\nquota = \"{quota}\"\n"
        )
    });
    format!(
        "# assay-target: the agent beside the backups. Relative paths start at this file's folder.\n\n\
         [agent]\nname = {name}\nlisten = \"{listen}\"\nstore = {store}\nsigning_key = \"pki/target-signing.key\"\n\
         # Operators of sources have certificates of this CA, too: they do not operate this target.\n\
         operators = [\"operator\"]\n{room}\n\
         [tls]\nca = \"pki/ca.crt\"\ncert = \"pki/target.crt\"\nkey = \"pki/target.key\"\n\n\
         [operator]\ncert = \"pki/operator.crt\"\nkey = \"pki/operator.key\"\n\n\
         # [metrics]\n# listen = \"127.0.0.1:9465\"\n\n\
         # Repositories: assay-target accept adds them.\n",
        name = join::quoted(&*arguments.name),
        listen = arguments.listen,
        store = join::quoted(store.to_string_lossy()),
    )
}

/// The parts of the configuration that are there before the first repository is.
#[derive(Debug, serde::Deserialize)]
struct Started {
    agent: StartedAgent,
    tls: StartedTls,
}

#[derive(Debug, serde::Deserialize)]
struct StartedAgent {
    listen: SocketAddr,
    signing_key: PathBuf,
}

#[derive(Debug, serde::Deserialize)]
struct StartedTls {
    ca: PathBuf,
    cert: PathBuf,
}

fn started(config: &Path) -> Result<Started, CommandError> {
    assay_common::config::load(config).map_err(|error| {
        CommandError::usage(error.to_string()).hint("assay-target init makes a configuration to start from")
    })
}

/// Writes the invitation for a source.
pub(super) fn invite(arguments: &InviteArgs, config: &Path) -> Result<ExitCode, CommandError> {
    let started = started(config)?;
    let at = |file: &Path| assay_common::config::resolve(config, file);
    let name = &arguments.name;
    if !is_plain_name(name) || name.len() > 50 {
        return Err(CommandError::usage(format!("{name:?} cannot be the name of a source"))
            .hint("use 1 to 50 letters, digits, '-' and '_', a letter or digit first"));
    }
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from(format!("assay-invite-{name}.json")));
    join::refuse_what_is_there([out.clone()])?;
    let read = |path: &Path| fs::read_to_string(path).map_err(failed(path));
    let target_cert = read(&at(&started.tls.cert))?;
    let url = match &arguments.url {
        Some(url) => url.clone(),
        None => {
            let hosts = pki::hosts_of(target_cert.as_bytes());
            let host = hosts.first().ok_or_else(|| {
                CommandError::usage("the target's certificate has no host").hint("name it with --url")
            })?;
            format!("https://{}", dial::authority(host, started.agent.listen.port()))
        }
    };
    let ca = match &arguments.ca_folder {
        Some(folder) => folder.clone(),
        None => authority::find_key_of(&at(&started.tls.ca), &[&folder_of(config).join(EARLIER_CA)])
            .map_err(fault)?,
    };
    let source = Party { name: name.clone(), hosts: with_local(&arguments.host) };
    let operator = Party { name: format!("operator-{name}"), hosts: Vec::new() };
    let (validity, now) = (DAY * arguments.days, Timestamp::now());
    let mut pems = Vec::new();
    for (role, party) in [(Role::Source, &source), (Role::Operator, &operator)] {
        let issued = pki::issue(&ca, &ca, role, party, validity, now).map_err(fault)?;
        for file in [issued.cert, issued.key] {
            pems.push(read(&file)?);
            // It is in the invitation now, and nowhere else.
            fs::remove_file(&file).map_err(failed(&file))?;
        }
    }
    let [cert, key, operator_cert, operator_key] = <[String; 4]>::try_from(pems).expect("two of two files");
    let signing_key = assay_common::signing::SigningKey::load(&at(&started.agent.signing_key))?;
    let invitation = Invitation {
        version: 1,
        source: name.clone(),
        target_url: url.clone(),
        ca: read(&at(&started.tls.ca))?,
        cert,
        key,
        operator_cert,
        operator_key,
        target_signing_key: signing_key.verifying_key().to_pem(),
    };
    invitation.save(&out)?;
    let file = out.display();
    print(&format!(
        "wrote {file}, which holds private keys: take it to the source's host (scp), use it there, delete it at both\n\
         on the source: assay-source init --join {file} PATH\n\
         The source will call {url}.\n"
    ));
    Ok(ExitCode::SUCCESS)
}

/// What `accept` is told.
#[derive(Debug, clap::Args)]
pub(super) struct AcceptArgs {
    /// The line that assay-source init printed
    #[arg(required_unless_present = "file")]
    line: Option<String>,
    /// A file with that line, as assay-source init --answer wrote it
    #[arg(long, value_name = "FILE", conflicts_with = "line")]
    file: Option<PathBuf>,
    /// Profile of the engine here, instead of the source's word: needed when it is a profile of your own
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// What the repository may hold; half of what no other repository may hold when it is left out
    #[arg(long, value_name = "SIZE", value_parser = shares::size)]
    quota: Option<Size>,
    /// Run on this host what the source's line names as a command of the check
    #[arg(long)]
    allow_commands: bool,
    /// Pin the line's key in the place of the source's earlier one, which vouches for its own generations alone from then on
    #[arg(long)]
    replace_key: bool,
}

/// Takes a source's answer: pins its key, and adds its repository to the configuration.
///
/// The line comes from the source's host. It cannot name a file of this host as its profile, nor a command that this host would run,
/// unless the operator here says so.
pub(super) fn accept(arguments: &AcceptArgs, config: &Path) -> Result<ExitCode, CommandError> {
    let line = match (&arguments.line, &arguments.file) {
        (Some(line), _) => line.clone(),
        (None, file) => {
            let file = file.as_deref().unwrap_or(Path::new(""));
            fs::read_to_string(file).map_err(failed(file))?
        }
    };
    let mut acceptance = Acceptance::from_line(&line)?;
    if let Some(profile) = &arguments.profile {
        acceptance.profile.clone_from(profile);
    }
    started(config)?;
    let config = &std::path::absolute(config).map_err(failed(config))?;
    // One at a time: what the other has added is read. Held until the end.
    let folder = fs::File::open(folder_of(config)).map_err(failed(config))?;
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| failed(config)(error.into()))?;
    let text = ConfigText::read(config).map_err(|error| CommandError::usage(error.to_string()))?;
    let mode = fs::metadata(config).map_err(failed(config))?.permissions().mode() & 0o777;
    let Acceptance { source, source_key, .. } = &acceptance;
    let (key, key_path) = pinned_at(&text, source);
    let pin = match fs::read_to_string(&key_path) {
        Ok(pinned) if pinned == *source_key => Pin::Same,
        Ok(_) if arguments.replace_key => Pin::Replaced,
        Ok(_) => {
            return Err(CommandError::usage(format!("{} pins another key of {source}", key_path.display())).hint(
                "a source that was set up anew has a new key: when that is so, compare the key with what assay-source printed, and say --replace-key",
            ));
        }
        Err(_) => Pin::New,
    };
    if arguments.replace_key && pin != Pin::New && is_configured(&text, &acceptance) {
        if pin == Pin::Replaced {
            replace_key(&key_path, source, source_key)?;
        }
        let id = VerifyingKey::from_pem(source_key).map(|key| key.key_id()).unwrap_or_default();
        print(&format!(
            "the signing key of {source} is {id} now: compare it with what assay-source printed\n\
             its earlier key is kept beside it, and vouches for the generations that are there\n\
             next: restart assay-target, which notes the change in the ledger\n"
        ));
        return Ok(ExitCode::SUCCESS);
    }
    refuse_commands(&acceptance, arguments, config)?;
    // Looked at before it is written.
    let with = |quota: Option<Size>| -> Result<(FileText, config::Config), CommandError> {
        let mut text = text.clone();
        let changed = text.add_repository(&acceptance.repository, &section(&acceptance, &key, quota));
        let parsed = config::parse(&text)
            .map_err(|error| CommandError::usage(error.to_string()).hint("nothing was changed"))?;
        Ok((changed, parsed))
    };
    let quota = match arguments.quota {
        Some(quota) => Some(quota),
        None => shares::of_next(&with(None)?.1),
    };
    let (changed, _) = with(quota)?;
    match pin {
        Pin::Same => {}
        Pin::Replaced => replace_key(&key_path, source, source_key)?,
        Pin::New => write_new(&key_path, source_key)?,
    }
    // A link stays one: what it points to is replaced.
    let place = fs::canonicalize(&changed.path).unwrap_or(changed.path);
    write_durable(&place, changed.text.as_bytes(), mode)
        .map_err(|error| CommandError::not_run(error.to_string()))?;
    let fingerprint = VerifyingKey::from_pem(source_key).map(|key| key.key_id());
    print(&format!(
        "added repository {} of {source} (profile {}) to {}\n\
         its signing key is {}: compare it with what assay-source init printed\n\
         {}next: assay-target doctor; start assay-target, or restart it\n",
        acceptance.repository,
        acceptance.profile,
        place.display(),
        fingerprint.unwrap_or_default(),
        quota.map_or_else(String::new, |quota| format!(
            "it may hold {quota} here (quota): change that when the repositories need other shares of the disk\n"
        )),
    ));
    Ok(ExitCode::SUCCESS)
}

/// How the key of a line and the one that is pinned stand to each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pin {
    /// It is pinned.
    Same,
    /// Another one is, and the operator has said that this one takes its place.
    Replaced,
    /// None is.
    New,
}

/// Where the key of a source is pinned, as the configuration says it and as a path: where its other repositories have it.
fn pinned_at(text: &ConfigText, source: &str) -> (String, PathBuf) {
    let key = format!("pki/{source}-signing.pub");
    let usual = folder_of(&text.main.path).join(&key);
    let parsed = config::parse(text).ok();
    let known = parsed.and_then(|parsed| parsed.repositories.into_iter().find(|it| it.source == source));
    match known.map(|repository| repository.source_key) {
        Some(path) if path != usual => (path.to_string_lossy().into_owned(), path),
        _ => (key, usual),
    }
}

/// True if the repository of an acceptance is in the configuration already, for the same source.
fn is_configured(text: &ConfigText, acceptance: &Acceptance) -> bool {
    config::parse(text).is_ok_and(|parsed| {
        let mut all = parsed.repositories.iter();
        all.any(|it| it.name == acceptance.repository && it.source == acceptance.source)
    })
}

/// Pins another key of a source; the one that was pinned is kept among its former ones. A key that was replaced is not pinned again: whoever
/// has stolen it could ask for that.
fn replace_key(path: &Path, source: &str, pem: &str) -> Result<(), CommandError> {
    let (keys, new) = (Keyring::load(path)?, VerifyingKey::from_pem(pem));
    let new = new.ok_or_else(|| CommandError::usage("the line's key is damaged"))?;
    if keys.former().contains(&new) {
        return Err(CommandError::usage(format!(
            "key {} of {source} was replaced before, and is not taken again",
            new.key_id()
        ))
        .hint("let the source make a new key: assay-source keys rotate"));
    }
    keyring::keep(path, Place::Former, keys.current())?;
    write_durable(path, pem.as_bytes(), 0o644).map_err(|error| CommandError::not_run(error.to_string()))
}

fn section(acceptance: &Acceptance, key: &str, quota: Option<Size>) -> String {
    let quota = quota.map_or_else(String::new, |quota| {
        format!(
            "# What it may hold of the store, so that it starves no other repository.\nquota = \"{quota}\"\n"
        )
    });
    format!(
        "[[repository]]\nname = {}\nsource = {}\nsource_key = {}\nprofile = {}\n{}\
         # A check that cannot be shut off from the network and the rest of this host is INCONCLUSIVE.\nisolation = \"require\"\n\
         # After this long without a word from the source a notice is sent ([[notify]]); suits an hourly schedule.\nmax_age = \"3h\"\n{quota}",
        join::quoted(&*acceptance.repository),
        join::quoted(&*acceptance.source),
        join::quoted(key),
        join::quoted(&*acceptance.profile),
        join::vars_line(&acceptance.vars),
    )
}

/// A variable that is a whole word of the check's command line may be a program, or a folder of programs. Assay's own checks tell
/// which of their words are neither.
fn refuse_commands(
    acceptance: &Acceptance,
    arguments: &AcceptArgs,
    config: &Path,
) -> Result<(), CommandError> {
    let profile = &acceptance.profile;
    let is_builtin = Profile::builtin_names().any(|name| name == profile);
    if !is_builtin && arguments.profile.is_none() {
        return Err(CommandError::usage(format!(
            "the source's profile {profile:?} is not one of Assay's own"
        ))
        .hint("bring the profile to this host, and name it there: --profile FILE"));
    }
    if arguments.allow_commands {
        return Ok(());
    }
    let profile = assay_common::profile::named(config, profile)
        .map_err(|error| CommandError::usage(error.to_string()).hint("nothing was changed"))?;
    let may_be_command = |name: &str| {
        let word = format!("{{var.{name}}}");
        let is_list = profile.vars.get(name).is_none_or(|variable| variable.list);
        profile.checks.iter().any(|check| {
            let mut places = check.argv.iter().enumerate().filter(|(_, it)| **it == word);
            places.any(|(place, _)| !is_data_of_own_check(&check.argv[..place], is_list))
        })
    };
    match acceptance.vars.iter().find(|(name, _)| may_be_command(name)) {
        None => Ok(()),
        Some((name, value)) => Err(CommandError::usage(format!(
            "the source wants this host to check with {name} = {value}, which may be a command"
        ))
        .hint("when that is what you want, say --allow-commands")),
    }
}

/// True where a variable behind these words of a command line is data of one of Assay's own checks: what it looks at, or the value of
/// an option that names no program. A list may bring further options, unless it stands behind `--`.
fn is_data_of_own_check(before: &[String], is_list: bool) -> bool {
    let [program, group, ..] = before else { return false };
    let is_own = program == "{helper}" && group == "engine";
    let is_operand = before.iter().any(|word| word == "--");
    let is_plain_option = before
        .last()
        .is_some_and(|word| word.starts_with("--") && !["--program", "--programs"].contains(&word.as_str()));
    is_own && (is_operand || (is_plain_option && !is_list))
}

#[cfg(test)]
mod tests {
    use super::is_data_of_own_check;

    fn is_data(before: &str, is_list: bool) -> bool {
        is_data_of_own_check(&before.split(' ').map(str::to_owned).collect::<Vec<_>>(), is_list)
    }

    #[test]
    fn only_data_of_an_own_check_is_no_command() {
        assert!(is_data("{helper} engine sqlite-check integrity --root {root} --", true));
        assert!(is_data("{helper} engine postgresql-check dump --superuser", false));
        // A folder of programs, a list that may bring one, and a word of no option.
        assert!(!is_data("{helper} engine postgresql-check dump --programs", false));
        assert!(!is_data("{helper} engine git-check --program", false));
        assert!(!is_data("{helper} engine postgresql-check dump --superuser", true));
        assert!(!is_data("{helper} engine", false));
        // Another program, or another command of this one.
        assert!(!is_data("/bin/sh -c true --", false));
        assert!(!is_data("{helper} serve --config", false));
        assert!(!is_data("{var.check} engine --", true));
        assert!(!is_data("{helper}", false));
    }
}
