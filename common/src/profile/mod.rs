//! Engine profiles: what Assay must know of one kind of system, as TOML that an operator can write.
//!
//! A profile says how to make a mark, what to copy in which order, what to change in the copy, which files
//! belong to the target, how to run the engine's own check, and how to read what the check says. It says
//! nothing about one installation: where its folders are, its names and its schedule stand in the agents'
//! configuration, which fills the profile's placeholders and variables.
//!
//! **The rule of reading a check.** Only what the profile names as good is PASS, only what it names as damage
//! is FAIL, and everything else is INCONCLUSIVE. A profile can therefore be incomplete without ever being
//! wrong.
//!
//! Unknown keys are errors. A fault of form ends the reading where it stands; all faults of meaning are
//! reported together, each with its line, its column and its key.

mod control;
mod fault;
mod files;
mod limits;
mod parts;
pub mod template;
mod validate;

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de};

pub use control::{Control, DamageKind};
pub use fault::{Fault, ProfileError};
pub use files::{FileRules, Turn};
pub use limits::Limits;
pub use parts::{PartFiles, Parts, PartsKind};
pub use template::{Scope, TargetNames, TemplateError};

use crate::{config::Span, fidelity::SpecialFile};

/// The profiles that Assay brings, by name.
const BUILTINS: [(&str, &str); 8] = [
    ("accurev-4", include_str!("../../../profiles/accurev-4.toml")),
    ("accurev-5", include_str!("../../../profiles/accurev-5.toml")),
    ("generic", include_str!("../../../profiles/generic.toml")),
    ("git", include_str!("../../../profiles/git.toml")),
    ("postgresql", include_str!("../../../profiles/postgresql.toml")),
    ("redis", include_str!("../../../profiles/redis.toml")),
    ("sqlite", include_str!("../../../profiles/sqlite.toml")),
    ("subversion", include_str!("../../../profiles/subversion.toml")),
];

/// One engine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The engine's name, in lower case: letters, digits, `-` and `.`.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The profile's own version. Whoever changes how a check is read changes this.
    pub version: String,
    /// How deep the checks of this profile look, when a check does not say it for itself.
    pub depth: Depth,
    /// What a repository's configuration fills in, used as `{var.NAME}`.
    #[serde(default)]
    pub vars: BTreeMap<String, Variable>,
    /// How the point in time is made that the backup stands for.
    #[serde(default)]
    pub mark: Mark,
    /// What is copied, and in which order.
    #[serde(default)]
    pub copy: Copy,
    /// The databases of `mark.kind = "sqlite"`.
    pub sqlite: Option<Sqlite>,
    /// The server of `mark.kind = "postgresql"`.
    pub postgresql: Option<Postgresql>,
    /// Changes to configuration files, made in the workspace only.
    #[serde(default, rename = "patch")]
    pub patches: Vec<Patch>,
    /// Files that belong to the target and are laid over the workspace.
    #[serde(default, rename = "overlay")]
    pub overlays: Vec<Overlay>,
    /// What the sandbox of the check shows.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// What each step of the check may use.
    #[serde(default)]
    pub limits: Limits,
    /// The steps of the check, in order. The first that does not pass ends the check. At least one.
    #[serde(default, rename = "check")]
    pub checks: Vec<Check>,
    /// The damage that the check must find when it is made on purpose.
    #[serde(default, rename = "control")]
    pub controls: Vec<Control>,
    /// BLAKE3 of the text that this was read from.
    #[serde(skip)]
    digest: String,
}

/// How deep a check looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub enum Depth {
    /// The bytes are those that were read.
    L0,
    /// Pages or blocks, each for itself.
    L1,
    /// The structure: indexes, links, sequences.
    L2,
    /// The application's own rules.
    L3,
}

impl fmt::Display for Depth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// A variable that a repository's configuration sets: `[vars.NAME]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// What the operator is asked for, in one line.
    pub meaning: String,
    /// A text or a list of texts. Without it the configuration must set the variable.
    pub default: Option<Value>,
    /// True for a variable that holds a list. As a whole argument of an `argv`, `{var.NAME}` becomes all its
    /// members.
    #[serde(default)]
    pub list: bool,
}

/// The value of a variable. It may hold any placeholder but `{var.…}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "must be a text or a list of texts")]
pub enum Value {
    /// One text.
    Text(String),
    /// Several.
    List(Vec<String>),
}

impl Value {
    /// The texts: one, or those of the list.
    pub fn texts(&self) -> &[String] {
        match self {
            Self::Text(text) => std::slice::from_ref(text),
            Self::List(texts) => texts,
        }
    }
}

/// `[mark]`: how the point in time is made that the backup stands for.
///
/// Commands run on the live server, directly and never through a shell. Placeholders: `{root}`,
/// `{root.NAME}`, `{mark_dir}`, `{var.NAME}`, and in `end` also `{mark_id}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// `"command"`, `"sqlite"`, `"postgresql"` or `"none"`.
    pub kind: MarkKind,
    /// The command that makes the mark; its first member is the program. Needed for `kind = "command"`.
    #[serde(default)]
    pub begin: Vec<String>,
    /// The command that ends the mark, run after the copy and on every way out.
    #[serde(default)]
    pub end: Vec<String>,
    /// Added to the commands' environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The folder in which the commands run; the first root when it is not set.
    pub working_directory: Option<String>,
    /// How long each command may take.
    #[serde(default = "minute")]
    pub timeout: Span,
    /// How long to wait between the mark and the copy.
    #[serde(default = "nothing")]
    pub settle: Span,
    /// A regular expression whose first group (or whole match) in the output of `begin` is the mark's id.
    pub id_pattern: Option<Pattern>,
    /// Regular expressions that must each match a line of the output of `begin`; otherwise the mark failed.
    #[serde(default)]
    pub must_match: Vec<Pattern>,
    /// The exit codes of a command that did its work.
    #[serde(default = "zero")]
    pub pass_exit: Vec<i32>,
    /// Files, relative to the first root, that only a mark changes, or work of the engine that a copy does not survive. When one
    /// has changed by the end of the copy, the run is void.
    #[serde(default)]
    pub traces: Vec<String>,
    /// Paths, relative to the first root, without which it is not what the profile is for. They are looked for before the mark.
    #[serde(default)]
    pub must_exist: Vec<String>,
    /// Files, relative to the first root, that begin with a number which the engine only raises. When one is lower than at the last
    /// backup's mark, the mark's id says so.
    #[serde(default)]
    pub never_back: Vec<String>,
    /// The first root is a git repository: the mark's id names the references that were there at the last backup's mark and are not
    /// there any more.
    #[serde(default)]
    pub references: bool,
    /// Why a repository with this profile cannot be copied from a snapshot of its file system; it can when this is not set.
    pub no_snapshot: Option<String>,
}

impl Default for Mark {
    fn default() -> Self {
        Self {
            kind: MarkKind::None,
            begin: Vec::new(),
            end: Vec::new(),
            env: BTreeMap::new(),
            working_directory: None,
            timeout: minute(),
            settle: nothing(),
            id_pattern: None,
            must_match: Vec::new(),
            pass_exit: zero(),
            traces: Vec::new(),
            must_exist: Vec::new(),
            never_back: Vec::new(),
            references: false,
            no_snapshot: None,
        }
    }
}

/// The kinds of marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkKind {
    /// `begin`, and where the engine needs it `end`, are commands.
    Command,
    /// Each database of `[sqlite]` is copied by SQLite's online backup into the mark folder.
    Sqlite,
    /// A backup of the server of `[postgresql]` is started before the copy and stopped after it, in one session.
    Postgresql,
    /// No mark: the backup is of whatever was there while it was read.
    None,
}

/// `[copy]`: what is copied, and in which order.
///
/// The lists hold file patterns: `*` and `?` stay within a name, `**` crosses folders, `[ab]` and `{a,b}` are
/// choices. A pattern with a slash is relative to a root; one without matches a name at any depth.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// Read before everything else, pattern by pattern. They stand in the copy as they were then: one that goes away
    /// afterwards stays in it, and one that appears afterwards is not copied, because what it points at may not be.
    #[serde(default)]
    pub first: Vec<String>,
    /// Files that are written once under their name, and whose content may be moved to another file while the copy is made
    /// (loose objects into packs). They are opened before anything else is read, in two looks with the `first` files in
    /// between, and read from what was opened. When one goes away between the looks, all of this is done again.
    #[serde(default)]
    pub hold: Vec<String>,
    /// Read after everything else, pattern by pattern.
    #[serde(default)]
    pub last: Vec<String>,
    /// Not copied. An excluded folder is not entered.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Files that only grow: what counts is the length that they had at the mark.
    #[serde(default)]
    pub append_only: Vec<String>,
    /// Files that may change while they are read, because the engine puts that right when the copy is started (a
    /// write-ahead log that is copied after them): they are read once, whatever happens to them meanwhile.
    #[serde(default)]
    pub may_change: Vec<String>,
    /// Files that the engine writes in pages of `page_bytes`: they are compared and sent page by page.
    #[serde(default)]
    pub pages: Vec<String>,
    /// Length of a page in bytes, a power of two from 512 to 65536.
    #[serde(default)]
    pub page_bytes: Option<u32>,
    /// Attributes that a copy may have beside those of `user.` and ACLs: names, or beginnings of names with `*` behind them.
    #[serde(default = "capabilities")]
    pub attributes: Vec<String>,
    /// Special files that a copy may have: `"fifo"`, `"socket"`, `"device"`.
    #[serde(default)]
    pub special_files: Vec<SpecialFile>,
}

fn capabilities() -> Vec<String> {
    vec!["security.capability".to_owned()]
}

impl Default for Copy {
    fn default() -> Self {
        Self {
            first: Vec::new(),
            hold: Vec::new(),
            last: Vec::new(),
            exclude: Vec::new(),
            append_only: Vec::new(),
            may_change: Vec::new(),
            pages: Vec::new(),
            page_bytes: None,
            attributes: capabilities(),
            special_files: Vec::new(),
        }
    }
}

/// `[sqlite]`: the databases of `mark.kind = "sqlite"`.
///
/// The source copies each by SQLite's online backup into the mark folder, and these files stand in the backup
/// under the databases' names. The live files, with their `-wal`, `-shm` and `-journal`, are excluded without
/// being named.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sqlite {
    /// Paths relative to the first root, at least one. `{var.NAME}` alone stands for all members of a list.
    pub databases: Vec<String>,
}

/// `[postgresql]`: the server of `mark.kind = "postgresql"`. The first root is its data directory.
///
/// The mark's files stand in the backup: `backup_label`, `tablespace_map` when there are tablespaces, and the WAL from the
/// start of the backup to its end. They are read last, and live WAL segments are excluded, without being named.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgresql {
    /// How to reach the server, as libpq has it: `host=/var/run/postgresql user=assay dbname=postgres`. The host is the folder of
    /// a Unix socket. A password has no place here.
    pub connection: String,
    /// A file that holds the password and nothing else. Empty: there is none.
    #[serde(default)]
    pub password_file: String,
    /// How many WAL segments may be written while the copy is made. A run that needs more ends without a generation.
    #[serde(default = "wal_segments")]
    pub wal_segments: u32,
}

/// `[[patch]]`: one setting that the workspace's copy of a configuration file gets.
///
/// The key must stand in the file exactly once. The line becomes `KEY = VALUE`, with nothing after the value.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    /// The root that `file` is in; the first root when it is not set.
    pub root: Option<String>,
    /// The configuration file, relative to the root.
    pub file: String,
    /// `"key-value"`: lines of `KEY = VALUE`, comment lines start with `#`.
    pub kind: PatchKind,
    /// The key.
    pub key: String,
    /// The values to try, in order: the next is tried only when a check says `retry_next_candidate_on`.
    /// Placeholders: `{target.fqdn}`, `{target.host}`, `{target.address}`, `{var.NAME}`. A value whose
    /// placeholder this target cannot fill is left out.
    pub values: Vec<String>,
}

/// The kinds of configuration files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatchKind {
    /// `KEY = VALUE`, one on each line.
    KeyValue,
}

/// `[[overlay]]`: a file that belongs to the target, such as a licence for its host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlay {
    /// The root that `path` is in; the first root when it is not set.
    pub root: Option<String>,
    /// Where the operator's file goes, relative to the root.
    pub path: String,
    /// True when the check is pointless without the file.
    #[serde(default)]
    pub required: bool,
    /// True when the file that was copied from the live server serves as well.
    #[serde(default)]
    pub copied_allowed: bool,
    /// What the operator is asked for, in one line.
    pub meaning: String,
    /// The reason of the INCONCLUSIVE verdict when a required file is missing.
    #[serde(default = "overlay_missing")]
    pub missing_reason: String,
}

/// `[sandbox]`: what a check sees of the target besides its own roots, `/usr`, `/bin`, `/sbin`, `/lib*` and
/// `/etc`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// Further absolute paths, shown read-only where they exist, for example `/opt/pgsql`.
    #[serde(default)]
    pub visible: Vec<PathBuf>,
    /// FIFOs and sockets of the copy are there while it is checked. A checker that opens one waits for ever, so they are left out
    /// unless the engine needs them. Devices never are there.
    #[serde(default)]
    pub special_files: bool,
}

/// `[[check]]`: one step of the engine's own check, run in the workspace.
///
/// How a step is read, the first that applies:
///
/// 1. not started, killed, out of time: INCONCLUSIVE;
/// 2. a line matches `retry_next_candidate_on`: INCONCLUSIVE with `host-name-error`;
/// 3. a line matches one of `inconclusive_patterns`: INCONCLUSIVE;
/// 4. a line matches one of `fail_patterns`: FAIL;
/// 5. the exit code is in `inconclusive_exit`: INCONCLUSIVE;
/// 6. the exit code is in `fail_exit`, or made of bits of `fail_exit_mask`: FAIL;
/// 7. the exit code is in `pass_exit` and every one of `must_match` matched a line: PASS;
/// 8. anything else: INCONCLUSIVE, with `unexpected-output` or `unexpected-exit`.
///
/// After the reason `host-name-error`, by whatever rule, the patches are made again with their next values and
/// all steps are run again. It stands in the verdict only when no value is left.
///
/// Patterns are regular expressions that are held against each line of standard output and of standard error,
/// over the whole output, whatever its length; `^` and `$` are a line's ends, what is not UTF-8 counts as
/// U+FFFD, and a line is searched up to its first MiB (a longer one is never PASS).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The step's name, unique in the profile.
    pub name: String,
    /// The command; its first member is the program. Executed directly, never through a shell. Placeholders:
    /// `{root}`, `{root.NAME}`, `{scratch}` (an empty writable folder), `{target.fqdn}`, `{target.host}`,
    /// `{target.address}`, `{helper}` (this program, for the checks that it brings), `{parts}`, `{var.NAME}`.
    pub argv: Vec<String>,
    /// Programs that the step runs beside the first member of `argv`, by name or absolute path. `doctor` looks for them.
    #[serde(default)]
    pub programs: Vec<String>,
    /// What the step reads from its standard input: the answers to its prompts, with their line ends. Placeholders as in
    /// `argv`. Empty when it is not set. Not for secrets: it stands in the profile.
    pub stdin: Option<String>,
    /// The step puts something right in the workspace before the check looks: it drops a cache, or raises a limit. It never means
    /// damage, and its depth is L0.
    #[serde(default)]
    pub repair: bool,
    /// The name of a list variable: the step runs once for each member, for which `{var.NAME}` then stands.
    pub for_each: Option<String>,
    /// The parts of the step whose results can be carried over from earlier verdicts. Without it all is checked each time.
    pub parts: Option<Parts>,
    /// How long the step may take.
    #[serde(default = "hour")]
    pub timeout: Span,
    /// Exit codes that mean "no damage", 0 to 125.
    #[serde(default = "zero")]
    pub pass_exit: Vec<i32>,
    /// Exit codes that mean damage, 0 to 125.
    #[serde(default)]
    pub fail_exit: Vec<i32>,
    /// For an exit code that is made of bits: every code above 0 that has no other bits than these means damage. 1 to 127.
    #[serde(default)]
    pub fail_exit_mask: i32,
    /// Exit codes that mean that the check could not do its work, 0 to 125, each with the reason for the
    /// verdict.
    #[serde(default)]
    pub inconclusive_exit: Vec<ExitRule>,
    /// What a check that did its work prints. Each must match a line.
    #[serde(default)]
    pub must_match: Vec<Pattern>,
    /// Lines that mean damage.
    #[serde(default)]
    pub fail_patterns: Vec<PatternRule>,
    /// Lines that mean that the check could not do its work.
    #[serde(default)]
    pub inconclusive_patterns: Vec<PatternRule>,
    /// Lines that mean that the host name in the configuration is not accepted.
    #[serde(default)]
    pub retry_next_candidate_on: Vec<Pattern>,
    /// The step's environment, beside `PATH`, `HOME`, `TMPDIR` and `LC_ALL=C.UTF-8`. Nothing is inherited.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The folder in which the step runs; the first root when it is not set.
    pub working_directory: Option<String>,
    /// `"owner"` (of the first root folder), `"root"`, or a numeric user id.
    #[serde(default)]
    pub run_as: RunAs,
    /// How deep this step looks; the profile's `depth` when it is not set.
    pub depth: Option<Depth>,
    /// A regular expression: each match in a line (the first of its groups that matched, or the whole) is
    /// reported as a finding.
    pub findings: Option<Pattern>,
    /// A regular expression: the first group of the first line that matches is the checker's name and version, as the verdict
    /// names it.
    pub engine_version: Option<Pattern>,
    /// A regular expression with two groups, a count and a kind (`^checked (\d+) (.*)$`): how many parts of which kind the step
    /// looked at. The counts of several lines of one kind are added up.
    pub parts_checked: Option<Pattern>,
    /// Lines that name a part of the copy that the step did not look at. The first group (or the whole match) is the part, the
    /// second (or the whole line) says why. A step can pass with such lines: the verdict lists the parts.
    #[serde(default)]
    pub not_covered_patterns: Vec<PatternRule>,
    /// How much of each output stream is kept, in bytes: half from its start, half from its end. All of it is
    /// read, searched and digested, so more output than this is no fault.
    #[serde(default = "output_limit")]
    pub output_limit: u32,
}

impl Check {
    /// True for an exit code that means damage.
    pub fn is_fail_exit(&self, code: i32) -> bool {
        self.fail_exit.contains(&code) || (code > 0 && code & !self.fail_exit_mask == 0)
    }
}

/// An exit code and what it stands for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitRule {
    /// The exit code, 0 to 125.
    pub code: i32,
    /// A short stable word such as `licence-missing`.
    pub reason: String,
}

/// A pattern and what it stands for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatternRule {
    /// A regular expression. Where it has a group, that part of the line is quoted for people.
    pub pattern: Pattern,
    /// A short stable word such as `licence-missing`.
    pub reason: String,
}

/// Who a check step runs as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunAs {
    /// The numeric owner of the first root folder.
    #[default]
    Owner,
    /// The agent's own user, which is root where the agent is.
    Root,
    /// A numeric user, with the group of the same number.
    Uid(u32),
}

impl<'de> Deserialize<'de> for RunAs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = RunAs;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("\"owner\", \"root\" or a numeric user id")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RunAs, E> {
                match text {
                    "owner" => Ok(RunAs::Owner),
                    "root" => Ok(RunAs::Root),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<RunAs, E> {
                let uid = u32::try_from(number).ok().filter(|uid| *uid != u32::MAX);
                uid.map(RunAs::Uid).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A regular expression, checked when it is read. `^` and `$` are the ends of a line, with or without a
/// carriage return.
#[derive(Clone)]
pub struct Pattern(regex::bytes::Regex);

impl Pattern {
    /// The expression, for bytes: output need not be UTF-8.
    pub fn regex(&self) -> &regex::bytes::Regex {
        &self.0
    }

    /// The expression's text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), formatter)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let regex = regex::bytes::RegexBuilder::new(&text).multi_line(true).crlf(true).build();
        regex.map(Self).map_err(|error| de::Error::custom(format!("this is no regular expression: {error}")))
    }
}

fn minute() -> Span {
    Span(std::time::Duration::from_secs(60))
}

fn hour() -> Span {
    Span(std::time::Duration::from_secs(3600))
}

fn nothing() -> Span {
    Span(std::time::Duration::ZERO)
}

fn zero() -> Vec<i32> {
    vec![0]
}

fn overlay_missing() -> String {
    "overlay-missing".into()
}

/// 16 GiB of the usual segments.
fn wal_segments() -> u32 {
    1024
}

fn output_limit() -> u32 {
    64 * 1024
}

impl Profile {
    /// Reads and checks profile text. `path` is only named in errors.
    ///
    /// # Errors
    /// [`ProfileError::Config`] for what is not TOML of this shape, [`ProfileError::Meaning`] with all that
    /// is wrong.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ProfileError> {
        let mut profile: Self = crate::config::parse(path, text)?;
        profile.digest = blake3::hash(text.as_bytes()).to_hex().to_string();
        let faults = validate::faults(&profile, text);
        if faults.is_empty() {
            Ok(profile)
        } else {
            Err(ProfileError::Meaning { path: path.to_owned(), faults })
        }
    }

    /// Reads and checks a profile file.
    ///
    /// # Errors
    /// As [`Profile::parse`], and [`ProfileError::Config`] for a file that cannot be read.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let text = fs::read_to_string(path)
            .map_err(|source| crate::config::ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// A profile that Assay brings.
    ///
    /// # Errors
    /// [`ProfileError::NoSuchBuiltin`], which lists those that there are.
    pub fn builtin(name: &str) -> Result<Self, ProfileError> {
        let text =
            Self::builtin_text(name).ok_or_else(|| ProfileError::NoSuchBuiltin { name: name.into() })?;
        Self::parse(Path::new(&format!("{name}.toml")), text)
    }

    /// The text of a profile that Assay brings: where an operator's own profile starts.
    pub fn builtin_text(name: &str) -> Option<&'static str> {
        BUILTINS.iter().find(|(builtin, _)| *builtin == name).map(|(_, text)| *text)
    }

    /// The names of the profiles that Assay brings, sorted.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        BUILTINS.iter().map(|(name, _)| *name)
    }

    /// BLAKE3 of the profile's text, in hexadecimal digits: names in a verdict how the check was read.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Joins a repository's variables with the profile's defaults, and checks that the profile fits the
    /// repository.
    ///
    /// # Errors
    /// All that is wrong: a variable that is unknown, missing, or not of its kind, and a root that the
    /// profile names and the repository does not have.
    pub fn bind(
        &self,
        given: &BTreeMap<String, Value>,
        root_names: &[&str],
    ) -> Result<BTreeMap<String, Value>, Vec<String>> {
        validate::bind(self, given, Some(root_names), validate::Uses::All)
    }

    /// As [`Profile::bind`], at the target: a variable that only the mark uses may be missing. `root_names` is `None` while the
    /// target does not know the roots, which the source names.
    ///
    /// # Errors
    /// As [`Profile::bind`].
    pub fn bind_for_checks(
        &self,
        given: &BTreeMap<String, Value>,
        root_names: Option<&[&str]>,
    ) -> Result<BTreeMap<String, Value>, Vec<String>> {
        validate::bind(self, given, root_names, validate::Uses::Checks)
    }
}

/// The profile that a configuration names: a built-in one by its name, or a file by its path (anything with a
/// `/` or ending in `.toml`), which is relative to the configuration's folder.
///
/// # Errors
/// As [`Profile::builtin`] and [`Profile::load`].
pub fn named(config: &Path, name: &str) -> Result<Profile, ProfileError> {
    if name.contains('/') || name.ends_with(".toml") {
        Profile::load(&crate::config::resolve(config, Path::new(name)))
    } else {
        Profile::builtin(name)
    }
}

#[cfg(test)]
mod tests;
