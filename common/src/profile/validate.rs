//! What must hold in a profile beyond its shape, and between a profile and a repository. Everything is
//! reported at once.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Check, MarkKind, PartsKind, Profile, Value,
    fault::{Fault, Step, key_text, place},
    files,
    template::{self, Placeholder, is_name},
};
use crate::{fidelity::is_pattern, path::TreePath};

/// Exit codes from here on are the launcher's (126, 127) or stand for a signal.
const HIGHEST_EXIT: i32 = 125;

/// Where a text with placeholders stands, which decides what may stand in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    MarkBegin,
    MarkEnd,
    PatchValue,
    Check,
    Database,
    Server,
}

impl Place {
    fn allows(self, placeholder: &Placeholder) -> bool {
        use Placeholder as P;
        match placeholder {
            P::Var(_) => true,
            P::Root | P::RootNamed(_) => matches!(self, Self::MarkBegin | Self::MarkEnd | Self::Check),
            P::MarkDir => matches!(self, Self::MarkBegin | Self::MarkEnd),
            P::MarkId => matches!(self, Self::MarkEnd | Self::Check),
            P::Scratch | P::Helper | P::FurtherRoots | P::Parts => self == Self::Check,
            P::TargetFqdn | P::TargetHost | P::TargetAddress => {
                matches!(self, Self::PatchValue | Self::Check)
            }
        }
    }
}

struct Faults<'a> {
    profile: &'a Profile,
    text: &'a str,
    faults: Vec<Fault>,
}

macro_rules! way {
    ($($step:expr),* $(,)?) => { &[$(Step::from($step)),*] };
}

/// All that is wrong with `profile`, which was read from `text`, in the order of the text.
pub(super) fn faults(profile: &Profile, text: &str) -> Vec<Fault> {
    let mut faults = Faults { profile, text, faults: Vec::new() };
    faults.general();
    faults.mark();
    faults.files();
    faults.changes();
    for (index, check) in profile.checks.iter().enumerate() {
        faults.check(index, check);
    }
    faults.controls();
    faults.faults.sort_by_key(|fault| (fault.line, fault.column));
    faults.faults
}

impl Faults<'_> {
    fn say(&mut self, way: &[Step], message: impl Into<String>) {
        let (line, column) = place(self.text, way);
        self.faults.push(Fault { line, column, key: key_text(way), message: message.into() });
    }

    fn expect(&mut self, holds: bool, way: &[Step], message: &str) {
        if !holds {
            self.say(way, message);
        }
    }

    fn general(&mut self) {
        let profile = self.profile;
        let good = !profile.name.is_empty()
            && profile
                .name
                .chars()
                .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || "-.".contains(it));
        self.expect(good, way!["name"], "must be lower-case letters, digits, '-' and '.'");
        for (key, text) in [("description", &profile.description), ("version", &profile.version)] {
            self.expect(is_line(text), way![key], "must be one line of text");
        }
        for (name, variable) in &profile.vars {
            let at = way!["vars", name.as_str()];
            self.expect(is_name(name), at, "a variable's name has letters, digits, '-' and '_'");
            self.expect(
                is_line(&variable.meaning),
                way!["vars", name.as_str(), "meaning"],
                "must be one line of text",
            );
            if let Some(value) = &variable.default
                && let Some(message) = value_fault(value, variable.list)
            {
                self.say(way!["vars", name.as_str(), "default"], message);
            }
        }
        self.expect(!profile.checks.is_empty(), way!["check"], "at least one [[check]] is needed");
        let looks = profile.checks.is_empty() || profile.checks.iter().any(|check| !check.repair);
        let text = "at least one [[check]] is needed that does not only repair";
        self.expect(looks, way!["check"], text);
        for (index, path) in profile.sandbox.visible.iter().enumerate() {
            let good = path.is_absolute() && path.parent().is_some();
            self.expect(good, way!["sandbox", "visible", index], "must be an absolute path other than /");
        }
        for (key, message) in profile.limits.faults() {
            self.say(way!["limits", key], message);
        }
    }

    fn mark(&mut self) {
        let mark = &self.profile.mark;
        let is_command = mark.kind == MarkKind::Command;
        self.expect(
            !is_command || !mark.begin.is_empty(),
            way!["mark", "begin"],
            "a command is needed, because kind is \"command\"",
        );
        let keys = [
            ("begin", mark.begin.is_empty()),
            ("end", mark.end.is_empty()),
            ("must_match", mark.must_match.is_empty()),
            ("id_pattern", mark.id_pattern.is_none()),
            ("working_directory", mark.working_directory.is_none()),
            ("env", mark.env.is_empty()),
        ];
        for (key, unset) in keys {
            self.expect(is_command || unset, way!["mark", key], "is only for kind = \"command\"");
        }
        self.expect(!mark.timeout.0.is_zero(), way!["mark", "timeout"], "must be greater than zero");
        self.argv(&mark.begin, Place::MarkBegin, &["mark", "begin"].map(Step::from));
        self.argv(&mark.end, Place::MarkEnd, &["mark", "end"].map(Step::from));
        self.environment(&mark.env, Place::MarkBegin, &["mark", "env"].map(Step::from));
        if let Some(folder) = &mark.working_directory {
            self.template(folder, Place::MarkBegin, false, way!["mark", "working_directory"]);
        }
        self.exits(&mark.pass_exit, &["mark", "pass_exit"].map(Step::from));
        for (key, paths) in
            [("traces", &mark.traces), ("must_exist", &mark.must_exist), ("never_back", &mark.never_back)]
        {
            for path in paths {
                let valid = TreePath::parse(path.as_bytes()).is_ok_and(|path| !path.is_root());
                self.expect(valid, way!["mark", key], "must be paths of files, relative to the first root");
            }
        }
        // The mark's id gets what they find. An `end` needs the engine's own id, and PostgreSQL's is its place in the log.
        let is_id_taken = !mark.end.is_empty() || mark.kind == MarkKind::Postgresql;
        for (key, is_set) in [("never_back", !mark.never_back.is_empty()), ("references", mark.references)] {
            let message = "cannot be together with 'end' or kind = \"postgresql\": they need the mark's id as the engine gave it";
            self.expect(!(is_set && is_id_taken), way!["mark", key], message);
        }
        match (&self.profile.sqlite, mark.kind) {
            (None, MarkKind::Sqlite) => {
                self.say(way!["mark", "kind"], "a [sqlite] section is needed, because kind is \"sqlite\"");
            }
            (Some(_), MarkKind::Command | MarkKind::Postgresql | MarkKind::None) => {
                self.say(way!["sqlite"], "is only for mark.kind = \"sqlite\"");
            }
            (Some(sqlite), MarkKind::Sqlite) => {
                let at = way!["sqlite", "databases"];
                self.expect(!sqlite.databases.is_empty(), at, "at least one database is needed");
                for (index, path) in sqlite.databases.iter().enumerate() {
                    let at = way!["sqlite", "databases", index];
                    self.template(path, Place::Database, true, at);
                    if template::placeholders(path).is_ok_and(|places| places.is_empty()) {
                        self.path(path, at);
                    }
                }
            }
            (None, _) => {}
        }
        match (&self.profile.postgresql, mark.kind) {
            (None, MarkKind::Postgresql) => self.say(
                way!["mark", "kind"],
                "a [postgresql] section is needed, because kind is \"postgresql\"",
            ),
            (Some(_), MarkKind::Command | MarkKind::Sqlite | MarkKind::None) => {
                self.say(way!["postgresql"], "is only for mark.kind = \"postgresql\"");
            }
            (Some(server), MarkKind::Postgresql) => {
                self.template(&server.connection, Place::Server, false, way!["postgresql", "connection"]);
                self.template(
                    &server.password_file,
                    Place::Server,
                    false,
                    way!["postgresql", "password_file"],
                );
                // Each is an empty file while the copy is made.
                let at = way!["postgresql", "wal_segments"];
                self.expect((1..=65536).contains(&server.wal_segments), at, "must be 1 to 65536");
            }
            (None, _) => {}
        }
    }

    fn files(&mut self) {
        let copy = &self.profile.copy;
        let lists = [
            ("first", &copy.first),
            ("hold", &copy.hold),
            ("last", &copy.last),
            ("exclude", &copy.exclude),
            ("append_only", &copy.append_only),
            ("may_change", &copy.may_change),
            ("pages", &copy.pages),
        ];
        for (key, patterns) in lists {
            for (index, pattern) in patterns.iter().enumerate() {
                if let Err(message) = files::glob(pattern) {
                    self.say(way!["copy", key, index], message);
                }
            }
        }
        for (index, pattern) in copy.attributes.iter().enumerate() {
            let message = "must be the name of an attribute, or the beginning of one with '*' behind it";
            self.expect(is_pattern(pattern), way!["copy", "attributes", index], message);
        }
        if let Some(bytes) = copy.page_bytes {
            let sound = bytes.is_power_of_two() && (512..=65536).contains(&bytes);
            self.expect(sound, way!["copy", "page_bytes"], "must be a power of two from 512 to 65536");
        }
        if copy.pages.is_empty() != copy.page_bytes.is_none() {
            self.say(way!["copy"], "set both 'pages' and 'page_bytes', or neither");
        }
    }

    fn changes(&mut self) {
        let mut seen = BTreeSet::new();
        for (index, patch) in self.profile.patches.iter().enumerate() {
            self.path(&patch.file, way!["patch", index, "file"]);
            self.root(patch.root.as_deref(), way!["patch", index, "root"]);
            let good = !patch.key.is_empty()
                && !patch.key.starts_with('#')
                && patch.key.chars().all(|it| !it.is_control() && !it.is_whitespace() && it != '=');
            self.expect(
                good,
                way!["patch", index, "key"],
                "must be a key without blanks, '=' or a leading '#'",
            );
            self.expect(
                !patch.values.is_empty(),
                way!["patch", index, "values"],
                "at least one value is needed",
            );
            for (value, text) in patch.values.iter().enumerate() {
                self.template(text, Place::PatchValue, true, way!["patch", index, "values", value]);
            }
            let new = seen.insert((&patch.root, &patch.file, &patch.key));
            self.expect(new, way!["patch", index, "key"], "is patched twice in the same file");
        }
        let mut seen = BTreeSet::new();
        for (index, overlay) in self.profile.overlays.iter().enumerate() {
            self.path(&overlay.path, way!["overlay", index, "path"]);
            self.root(overlay.root.as_deref(), way!["overlay", index, "root"]);
            self.reason(&overlay.missing_reason, way!["overlay", index, "missing_reason"]);
            self.expect(
                is_line(&overlay.meaning),
                way!["overlay", index, "meaning"],
                "must be one line of text",
            );
            let new = seen.insert((&overlay.root, &overlay.path));
            self.expect(new, way!["overlay", index, "path"], "is laid twice");
        }
    }

    fn check(&mut self, index: usize, check: &Check) {
        let key = |key: &str| [Step::from("check"), Step::from(index), Step::from(key)];
        let earlier = &self.profile.checks[..index];
        self.expect(is_line(&check.name), &key("name"), "must be one line of text");
        let new = earlier.iter().all(|other| other.name != check.name);
        self.expect(new, &key("name"), "another check has this name");
        self.expect(!check.argv.is_empty(), &key("argv"), "a command is needed");
        self.argv(&check.argv, Place::Check, &key("argv"));
        for (at, program) in check.programs.iter().enumerate() {
            let good = is_line(program) && !program.contains(['{', '}']);
            let way = [&key("programs")[..], way![at]].concat();
            self.expect(good, &way, "must be the name or the absolute path of a program");
        }
        self.environment(&check.env, Place::Check, &key("env"));
        if let Some(folder) = &check.working_directory {
            self.template(folder, Place::Check, false, &key("working_directory"));
        }
        if let Some(text) = &check.stdin {
            self.template(text, Place::Check, false, &key("stdin"));
        }
        if let Some(name) = &check.for_each {
            let is_list = self.profile.vars.get(name).is_some_and(|variable| variable.list);
            self.expect(is_list, &key("for_each"), "must be the name of a variable with list = true");
        }
        self.expect(!check.timeout.0.is_zero(), &key("timeout"), "must be greater than zero");
        self.expect(check.output_limit >= 1024, &key("output_limit"), "must be at least 1024 bytes");
        self.exits(&check.pass_exit, &key("pass_exit"));
        self.expect(!check.pass_exit.is_empty(), &key("pass_exit"), "at least one exit code is needed");
        self.exits(&check.fail_exit, &key("fail_exit"));
        let mask = check.fail_exit_mask;
        let at = key("fail_exit_mask");
        self.expect((0..=127).contains(&mask), &at, "must be bits of an exit code, 1 to 127");
        let by_mask = |code: i32| code > 0 && mask > 0 && code & !mask == 0;
        for (at, code) in check.pass_exit.iter().enumerate() {
            let way = [&key("pass_exit")[..], way![at]].concat();
            self.expect(!by_mask(*code), &way, "this exit code stands for two things");
        }
        let mut seen: BTreeSet<i32> = check.pass_exit.iter().copied().collect();
        for (at, code) in check.fail_exit.iter().enumerate() {
            let way = [&key("fail_exit")[..], way![at]].concat();
            self.expect(seen.insert(*code) && !by_mask(*code), &way, "this exit code stands for two things");
        }
        for (at, rule) in check.inconclusive_exit.iter().enumerate() {
            let way = [&key("inconclusive_exit")[..], way![at]].concat();
            self.expect((0..=HIGHEST_EXIT).contains(&rule.code), &way, EXIT_EXPECTED);
            self.expect(
                seen.insert(rule.code) && !by_mask(rule.code),
                &way,
                "this exit code stands for two things",
            );
            self.reason(&rule.reason, &way);
        }
        for (list, rules) in [
            ("fail_patterns", &check.fail_patterns),
            ("inconclusive_patterns", &check.inconclusive_patterns),
            ("not_covered_patterns", &check.not_covered_patterns),
        ] {
            for (at, rule) in rules.iter().enumerate() {
                self.reason(&rule.reason, &[&key(list)[..], way![at, "reason"]].concat());
            }
        }
        for (name, pattern, wanted, message) in [
            ("engine_version", &check.engine_version, 1, "must have a group around the name and version"),
            ("parts_checked", &check.parts_checked, 2, "must have two groups: the count and the kind"),
        ] {
            // The whole match counts as a group.
            let enough = pattern.as_ref().is_none_or(|it| it.regex().captures_len() > wanted);
            self.expect(enough, &key(name), message);
        }
        let can_fail = !check.fail_exit.is_empty() || mask > 0 || !check.fail_patterns.is_empty();
        if check.repair {
            let text = "a step that repairs never means damage: leave out depth, fail_exit, fail_exit_mask and fail_patterns";
            self.expect(!can_fail && check.depth.is_none(), &key("repair"), text);
        }
        self.expect(
            can_fail || check.repair,
            &key("argv"),
            "no result of this check means FAIL: set fail_exit, fail_exit_mask or fail_patterns",
        );
        self.parts(check, &key("parts"), &key("argv"));
        let retries = check.retry_next_candidate_on.is_empty() || !self.profile.patches.is_empty();
        self.expect(
            retries,
            &key("retry_next_candidate_on"),
            "a [[patch]] is needed whose next value can be tried",
        );
    }

    fn parts(&mut self, check: &Check, way: &[Step], argv: &[Step]) {
        let stands = check.argv.iter().any(|text| text == "{parts}");
        let Some(parts) = &check.parts else {
            return self.expect(!stands, argv, "{parts} has no value here: the check has no 'parts'");
        };
        self.expect(stands, argv, "{parts} is needed as an argument, because the check has 'parts'");
        let one = parts.kind.is_some() == parts.for_each_changed.is_empty();
        self.expect(one, way, "either 'kind' or 'for_each_changed' is needed, and not both");
        let own = check.for_each.is_none() && !check.repair;
        self.expect(own, way, "cannot be together with 'for_each' or 'repair'");
        let reads = parts.kind.is_some_and(PartsKind::is_found_by_the_step);
        self.expect(
            !reads || check.stdin.is_none(),
            way,
            "of this kind need the standard input: 'stdin' cannot be set",
        );
        let of_files = parts.not_read.is_empty() || !parts.for_each_changed.is_empty();
        self.expect(of_files, &[way, way!["not_read"]].concat(), "is only for 'for_each_changed'");
        for (key, patterns) in [("for_each_changed", &parts.for_each_changed), ("not_read", &parts.not_read)]
        {
            for (at, pattern) in patterns.iter().enumerate() {
                if let Err(message) = files::glob(pattern) {
                    self.say(&[way, way![key, at]].concat(), message);
                }
            }
        }
    }

    fn controls(&mut self) {
        for (index, control) in self.profile.controls.iter().enumerate() {
            if let Err(message) = files::glob(&control.files) {
                self.say(way!["control", index, "files"], message);
            }
            let sound = control.page_bytes.is_power_of_two() && (512..=65536).contains(&control.page_bytes);
            let at = way!["control", index, "page_bytes"];
            self.expect(sound, at, "must be a power of two from 512 to 65536");
            let at = way!["control", index, "places"];
            self.expect((1..=10).contains(&control.places), at, "must be 1 to 10");
        }
    }

    fn argv(&mut self, argv: &[String], place: Place, way: &[Step]) {
        for (index, text) in argv.iter().enumerate() {
            let at = [way, way![index]].concat();
            self.expect(!text.contains('\0'), &at, "must be a text without NUL");
            self.expect(index > 0 || !text.is_empty(), &at, "a program is needed");
            self.template(text, place, true, &at);
        }
    }

    fn environment(&mut self, env: &BTreeMap<String, String>, place: Place, way: &[Step]) {
        for (name, value) in env {
            let at = [way, way![name.as_str()]].concat();
            let good = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
            self.expect(good, &at, "must be a name without '=' and a text without NUL");
            self.template(value, place, false, &at);
        }
    }

    fn template(&mut self, text: &str, place: Place, list_allowed: bool, way: &[Step]) {
        let pieces = match template::parse(text) {
            Ok(pieces) => pieces,
            Err(error) => return self.say(way, error.to_string()),
        };
        let alone = pieces.len() == 1;
        for piece in pieces {
            let template::Piece::Place(placeholder) = piece else {
                continue;
            };
            if !place.allows(&placeholder) {
                self.say(way, format!("{placeholder} has no value here"));
            }
            let is_list = matches!(placeholder, Placeholder::FurtherRoots | Placeholder::Parts);
            if is_list && !(alone && list_allowed) {
                self.say(
                    way,
                    format!("{placeholder} is a list, which can only stand alone as a whole argument"),
                );
            }
            let Placeholder::Var(name) = &placeholder else {
                continue;
            };
            let each = self.is_member(name, way);
            match self.profile.vars.get(name) {
                None => self.say(way, format!("{placeholder} is not declared: add [vars.{name}]")),
                Some(variable) if variable.list && !each && !(alone && list_allowed) => {
                    self.say(
                        way,
                        format!("{placeholder} is a list, which can only stand alone as a whole argument"),
                    );
                }
                Some(_) => {}
            }
        }
    }

    /// True where `for_each` makes of a list variable one of its members.
    fn is_member(&self, name: &str, way: &[Step]) -> bool {
        let [Step::Key(section), Step::Index(index), ..] = way else {
            return false;
        };
        let check = self.profile.checks.get(*index);
        section == "check" && check.is_some_and(|check| check.for_each.as_deref() == Some(name))
    }

    fn path(&mut self, path: &str, way: &[Step]) {
        let result = TreePath::parse(path.as_bytes());
        match result {
            Ok(path) if !path.is_root() => {}
            Ok(_) => self.say(way, "must be a path relative to the root"),
            Err(fault) => self.say(way, format!("must be a path relative to the root; this one {fault}")),
        }
    }

    fn root(&mut self, name: Option<&str>, way: &[Step]) {
        self.expect(name.is_none_or(is_name), way, "must be the name of a root");
    }

    fn reason(&mut self, reason: &str, way: &[Step]) {
        let good = reason.starts_with(|it: char| it.is_ascii_lowercase())
            && reason.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-');
        self.expect(good, way, "must be a short word such as \"licence-missing\"");
    }

    fn exits(&mut self, codes: &[i32], way: &[Step]) {
        for (index, code) in codes.iter().enumerate() {
            self.expect((0..=HIGHEST_EXIT).contains(code), &[way, way![index]].concat(), EXIT_EXPECTED);
        }
    }
}

const EXIT_EXPECTED: &str = "must be an exit code from 0 to 125 (a higher one means a signal or no program)";

fn is_line(text: &str) -> bool {
    !text.trim().is_empty() && !text.chars().any(char::is_control)
}

fn value_fault(value: &Value, list: bool) -> Option<String> {
    match (value, list) {
        (Value::Text(_), true) => return Some("must be a list of texts".into()),
        (Value::List(_), false) => return Some("must be a text".into()),
        (Value::List(texts), true) if texts.is_empty() => {
            return Some("at least one text is needed".into());
        }
        _ => {}
    }
    for text in value.texts() {
        if text.contains('\0') {
            return Some("must be a text without NUL".into());
        }
        match template::placeholders(text) {
            Err(error) => return Some(error.to_string()),
            Ok(places) => {
                if let Some(place) = places.iter().find(|place| matches!(place, Placeholder::Var(_))) {
                    return Some(format!("{place} cannot stand in another variable's value"));
                }
            }
        }
    }
    None
}

/// Which of a profile's sections are used where the variables are bound.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Uses {
    /// All of them: the source marks and copies.
    All,
    /// Checks and patches alone: the target makes no mark.
    Checks,
}

/// The variables and the named roots that the texts of a profile refer to.
#[derive(Default)]
struct Wanted {
    vars: BTreeSet<String>,
    roots: BTreeSet<String>,
}

impl Wanted {
    fn of(profile: &Profile, uses: Uses) -> Self {
        let mut wanted = Self::default();
        for check in &profile.checks {
            let texts = check.argv.iter().chain(check.env.values()).chain(&check.working_directory);
            texts.chain(&check.stdin).for_each(|text| wanted.add(text));
            wanted.vars.extend(check.for_each.clone());
        }
        profile.patches.iter().flat_map(|patch| &patch.values).for_each(|text| wanted.add(text));
        wanted.roots.extend(profile.patches.iter().filter_map(|patch| patch.root.clone()));
        wanted.roots.extend(profile.overlays.iter().filter_map(|overlay| overlay.root.clone()));
        if uses == Uses::All {
            let mark = &profile.mark;
            let texts =
                mark.begin.iter().chain(&mark.end).chain(mark.env.values()).chain(&mark.working_directory);
            texts.for_each(|text| wanted.add(text));
            wanted.vars.extend(profile.vars.keys().cloned());
        }
        wanted
    }

    fn add(&mut self, text: &str) {
        for place in template::placeholders(text).unwrap_or_default() {
            match place {
                Placeholder::Var(name) => self.vars.insert(name),
                Placeholder::RootNamed(name) => self.roots.insert(name),
                _ => false,
            };
        }
    }
}

/// See [`Profile::bind`] and [`Profile::bind_for_checks`]. `root_names` is `None` while the roots are not known.
pub(super) fn bind(
    profile: &Profile,
    given: &BTreeMap<String, Value>,
    root_names: Option<&[&str]>,
    uses: Uses,
) -> Result<BTreeMap<String, Value>, Vec<String>> {
    let mut faults = Vec::new();
    for (name, value) in given {
        match profile.vars.get(name) {
            None => faults.push(format!(
                "vars.{name}: the profile '{}' has no such variable; it has: {}",
                profile.name,
                profile.vars.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
            )),
            Some(variable) => {
                faults.extend(
                    value_fault(value, variable.list).map(|message| format!("vars.{name}: {message}")),
                );
            }
        }
    }
    let mut wanted = Wanted::of(profile, uses);
    let mut bound = BTreeMap::new();
    for (name, variable) in &profile.vars {
        match given.get(name).or(variable.default.as_ref()) {
            Some(value) => {
                bound.insert(name.clone(), value.clone());
            }
            None if wanted.vars.contains(name) => {
                faults.push(format!("vars.{name} is missing: {}", variable.meaning));
            }
            None => {}
        }
    }
    let used: Vec<_> = bound.iter().filter(|(name, _)| wanted.vars.contains(*name)).collect();
    for text in used.into_iter().flat_map(|(_, value)| value.texts()) {
        wanted.add(text);
    }
    for name in &wanted.roots {
        if root_names.is_some_and(|known| !known.contains(&name.as_str())) {
            faults.push(format!("roots: the profile '{}' needs a root named '{name}'", profile.name));
        }
    }
    if faults.is_empty()
        && uses == Uses::All
        && let Err(message) = profile.databases(&bound)
    {
        faults.push(message);
    }
    if faults.is_empty() { Ok(bound) } else { Err(faults) }
}
