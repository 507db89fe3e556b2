//! Texts and exit codes of everything that nobody published: defaults here, corrections in `bin/standin.toml`.
//!
//! Each section is one table of name, meaning and default, from which come the struct, its defaults and the
//! commented file that an installation gets. A misspelt key is an error, never a silent default.

use std::io;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

macro_rules! section {
    ($(#[$meta:meta])* $name:ident: $kind:ty { $($(#[doc = $doc:literal])+ $field:ident = $default:expr;)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: $kind,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: <$kind>::from($default),)* }
            }
        }

        impl $name {
            fn render(&self, out: &mut String) {
                $($(out.push_str(&format!("#{}\n", $doc));)+
                out.push_str(&format!("{} = {}\n", stringify!($field), toml::Value::from(self.$field.clone())));)*
            }
        }
    };
}

section! {
    /// Texts. `{name}` is filled in.
    Text: String {
        /// accurev backup mark: done.
        mark_done = "Backup mark {mark} set at {time} ({slices} slices, transaction {transactions}).";
        /// accurev: wrong usage. In 4.x `backup FILE` ends here too.
        accurev_usage = "Usage: accurev backup mark | accurev show slices | accurev info";
        /// 5: accurev backup mark.
        mark_gone = "accurev: 'backup mark' is not supported any more: Usage: accurev backup <backup-file-spec>";
        /// 5: accurev backup FILE: done.
        backup_done = "Backup written to {file} at {time}.";
        /// 5: the database's server does not run.
        database_down = "{program}: cannot connect to the database server";
        /// 5: acserverctl dbstart, accurev_db: the database cannot be served.
        database_failed = "accurev_db: {reason}";
        /// 5: accurev_db: the one line on standard output once it serves.
        database_ready = "accurev_db: ready";
        /// 5: acserverctl dbstart and dbstatus.
        database_up = "the database server is running";
        /// 5: acserverctl dbstop and dbstatus.
        database_stopped = "the database server is not running";
        /// 5: initdb: wrong usage.
        initdb_usage = "Usage: initdb -D <directory> -U <administrator> --pwfile=<file>";
        /// 5: initdb: it did not work.
        initdb_failed = "initdb: {reason}";
        /// 5: maintain asks for the administrator's password.
        password_prompt = "Password for the database administrator: ";
        /// 5: the password does not fit.
        password_wrong = "maintain: password authentication failed for user {user}";
        /// 5: maintain restore: done.
        restore_done = "maintain: restored {file}";
        /// 5: maintain restore: there is a repository already.
        restore_exists = "maintain: the database accurev exists already";
        /// 5: maintain restore: the file is not what a backup wrote.
        restore_damaged = "maintain: backup file {file} is damaged";
        /// 5: the database holds no repository.
        repository_missing = "maintain: the database accurev does not exist";
        /// 5: maintain server_properties update asks.
        properties_prompt = "Set the server to {host}:{port}? (y/n) ";
        /// 5: maintain server_properties update: the answer was not y.
        properties_refused = "maintain: server properties not changed";
        /// 5: maintain server_properties update: done.
        properties_done = "maintain: server properties updated to {host}:{port}";
        /// 5: maintain concheck: done.
        connection_good = "maintain: connection to the site database is good";
        /// 5: the repository belongs to a server of another name than acserver.cnf has.
        identity_error = "maintain: host name error: the database belongs to {recorded}, acserver.cnf says {configured}";
        /// 5: one finding of dbcheck.
        not_monotonic = "dbcheck: depot {depot}, table {table}: transaction {transaction} is not monotonic after {last}";
        /// 5: dbcheck: nothing wrong.
        check_5_passed = "dbcheck: {slices} slices, {transactions} transactions: no problems found";
        /// accurev: no server answers.
        no_server = "accurev: cannot reach the AccuRev server {server}: {reason}";
        /// accurev: the server could not do it.
        refused = "accurev: {reason}";
        /// The server's answer while site_slice/acserver.command.pause is there.
        paused = "the AccuRev server is paused";
        /// maintain: wrong usage.
        maintain_usage = "Usage: maintain dbcheck [<depot-name>]";
        /// maintain dbcheck NAME: there is no such depot.
        unknown_depot = "maintain: no depot named {depot}";
        /// The licence file is not there.
        licence_missing = "{program}: license file not found: {path}";
        /// The host in acserver.cnf is none of this host's names and addresses.
        host_error = "{program}: host name error: acserver.cnf says \"{configured}\", this host is \"{actual}\"";
        /// A setting is absent, commented out, or has no blanks around the equals sign.
        key_missing = "{program}: {file}: setting not found: {key}";
        /// The server runs on these files.
        server_running = "{program}: the AccuRev server is running on {path}: stop it first";
        /// Something needed cannot be read.
        unreadable = "{program}: cannot read {path}: {reason}";
        /// One finding of dbcheck.
        finding = "{file}: offset {offset}: transaction {transaction}: {problem}";
        /// dbcheck: nothing wrong.
        check_passed = "dbcheck: {slices} slices, {transactions} transactions, {containers} containers: no problems found";
        /// dbcheck: something is wrong.
        check_failed = "dbcheck: {problems} problems found";
        /// accurev_server: the licence is for another host or port.
        licence_mismatch = "accurev_server: license is for {licensed}, this server is {actual}";
        /// accurev_server: the port is taken or unusable.
        cannot_listen = "accurev_server: cannot listen on {address}: {reason}";
        /// accurev_server: the store cannot be opened.
        cannot_serve = "accurev_server: {reason}";
        /// accurev_server: the one line on standard output once it serves.
        server_ready = "accurev_server: ready on port {port}";
        /// acserverctl status and start: it runs.
        running = "accurev_server is running (pid {pid})";
        /// acserverctl status and stop: it does not run.
        not_running = "accurev_server is not running";
        /// acserverctl stop: it went away.
        stopped = "accurev_server stopped";
        /// acserverctl pause.
        pause_asked = "accurev_server asked to pause";
        /// acserverctl resume.
        resume_asked = "accurev_server asked to resume";
        /// acserverctl: wrong usage, and the answer to help.
        control_usage = "Usage: acserverctl start | stop | status | pause | resume | help";
        /// acserverctl: it did not work.
        control_failed = "acserverctl: {reason}";
    }
}

section! {
    /// Exit codes.
    Exit: u8 {
        /// accurev: no server answers.
        no_server = 1u8;
        /// accurev: the server refused or could not do it.
        refused = 1u8;
        /// maintain dbcheck: problems found in the data.
        problems = 1u8;
        /// Every program: wrong usage.
        usage = 2u8;
        /// acserverctl status: not running.
        not_running = 3u8;
        /// The licence file is not there.
        licence_missing = 10u8;
        /// Host name error.
        host_error = 11u8;
        /// Setting not found.
        key_missing = 12u8;
        /// The server is running.
        server_running = 13u8;
        /// Something needed cannot be read.
        unreadable = 14u8;
        /// 5: the database's server does not run.
        database_down = 18u8;
        /// 5: the database holds no repository.
        repository_missing = 19u8;
        /// 5: the password does not fit.
        password_wrong = 20u8;
        /// 5: maintain restore or server_properties: not done.
        restore_refused = 21u8;
        /// accurev_server: the licence is for another host or port.
        licence_mismatch = 15u8;
        /// accurev_server: cannot listen, or cannot open the store.
        cannot_serve = 16u8;
        /// acserverctl: it did not work.
        control_failed = 17u8;
    }
}

section! {
    /// Which AccuRev this is.
    Version: u8 {
        /// 4: tables in files, `backup mark`. 5: tables in a database, `backup FILE`.
        major = 4u8;
        /// acserver.cnf: 1 takes a carriage return before a line feed as part of the line's end, 0 as part of the value.
        carriage_return_ends_lines = 0u8;
    }
}

section! {
    /// Where the parts of the stand-in meet.
    Net: String {
        /// The address that the server listens on; the port is PORT of acserver.cnf.
        listen = "127.0.0.1";
        /// The address that the client calls in place of the host in SERVERS; the port is from SERVERS. Empty: the host itself.
        connect = "127.0.0.1";
    }
}

/// The whole of `bin/standin.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Texts {
    /// `[text]`
    pub text: Text,
    /// `[exit]`
    pub exit: Exit,
    /// `[version]`
    pub version: Version,
    /// `[net]`
    pub net: Net,
}

impl Texts {
    /// Reads the file; an absent one means the defaults.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or has a key that is not known.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).with_context(|| path.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// The file as an installation gets it.
    pub fn render(&self) -> String {
        let mut out = String::from(
            "# Texts and exit codes of the AccuRev STAND-IN (this is not AccuRev).\n\
             # Nobody published the real ones: whoever sees the real program may correct them here.\n\
             # The file is read at every start of every program; what is left out keeps its default.\n# Words in braces are filled in.\n\n[text]\n",
        );
        self.text.render(&mut out);
        out.push_str("\n[exit]\n");
        self.exit.render(&mut out);
        out.push_str("\n[version]\n");
        self.version.render(&mut out);
        out.push_str("\n[net]\n");
        self.net.render(&mut out);
        out
    }
}

/// Fills `{name}` in, in one pass: what was filled in is never read again.
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let name = rest[1..].find('}').map(|end| &rest[1..=end]);
        let value = name.and_then(|name| values.iter().find(|(key, _)| *key == name));
        match (name, value) {
            (Some(name), Some((_, value))) => {
                out.push_str(value);
                rest = &rest[name.len() + 2..];
            }
            _ => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rendered_file_says_the_defaults() {
        let rendered = Texts::default().render();
        let read: Texts = toml::from_str(&rendered).unwrap();
        assert_eq!(read.render(), rendered);
        assert!(rendered.contains("# Host name error.\nhost_error = 11\n"), "{rendered}");
    }

    #[test]
    fn a_misspelt_key_is_an_error() {
        assert!(toml::from_str::<Texts>("[exit]\nhost_eror = 3\n").is_err());
    }

    #[test]
    fn filling_in_leaves_unknown_names_and_filled_text_alone() {
        assert_eq!(fill("{a} {b} {", &[("a", "{b}"), ("b", "2")]), "{b} 2 {");
        assert_eq!(fill("{x}", &[]), "{x}");
    }
}
