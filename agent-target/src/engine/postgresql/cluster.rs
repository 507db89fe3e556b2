//! The copy, and the target's own programs for it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Arguments, End, Unchecked, tool};
use crate::check::sandbox::SCRATCH;

/// The copied cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) data: PathBuf,
    pub(super) scratch: PathBuf,
    pub(super) programs: PathBuf,
    pub(super) superuser: String,
    pub(super) major: u32,
    pub(super) unchecked: Unchecked,
    control: String,
}

impl Cluster {
    pub(super) fn find(arguments: &Arguments) -> Result<Self, End> {
        let file = arguments.data.join("PG_VERSION");
        // A link would bring a file of this host into the message below.
        if !fs::symlink_metadata(&file).map_err(tool(file.display()))?.is_file() {
            return Err(End::Version(format!("{} is not a regular file", file.display())));
        }
        let text = fs::read_to_string(&file).map_err(tool(file.display()))?;
        let major: u32 = text.trim().parse().map_err(|_| {
            End::Version(format!("{} must hold a major version: {:?}", file.display(), text.trim()))
        })?;
        let programs = PathBuf::from(arguments.programs.replace("%v", &major.to_string()));
        for name in ["postgres", "pg_controldata"] {
            let program = programs.join(name);
            if !program.is_file() {
                return Err(End::Version(format!(
                    "{} is not there: install PostgreSQL {major} on this host, or set the variable 'programs'",
                    program.display()
                )));
            }
        }
        let said = output(Command::new(programs.join("postgres")).arg("--version"))?;
        if major_of(&said) != Some(major) {
            return Err(End::Version(format!(
                "the copy is of version {major}, the programs: {}",
                said.trim()
            )));
        }
        let (_, version) = said.trim().split_once(") ").unwrap_or_default();
        println!("engine: PostgreSQL {version}");
        refuse_links_outside(arguments)?;
        set_recovery_aside(&arguments.data)?;
        let control_file = arguments.data.join("global/pg_control");
        if matches!(fs::metadata(&control_file), Err(error) if error.kind() == io::ErrorKind::NotFound) {
            println!("not restorable: the control file global/pg_control is missing");
            return Err(End::Damage);
        }
        let control = control(&programs.join("pg_controldata"), &arguments.data)?;
        Ok(Self {
            data: arguments.data.clone(),
            scratch: arguments.scratch.clone(),
            programs,
            superuser: arguments.superuser.clone(),
            major,
            unchecked: arguments.unchecked,
            control,
        })
    }

    /// A number that `pg_controldata` shows.
    pub(super) fn control_number(&self, label: &str) -> Option<u64> {
        let line = self.control.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    }

    /// How long a segment of a relation is, in pages.
    pub(super) fn blocks_per_segment(&self) -> u64 {
        self.control_number("Blocks per segment of large relation").unwrap_or(131_072)
    }

    /// The role that the check makes for itself: the same in each step of a check.
    pub(super) fn own_role(&self) -> String {
        let system = self.control_number("Database system identifier").unwrap_or_default();
        let digest = blake3::derive_key("assay v1 postgresql check role", &system.to_le_bytes());
        format!("assay_check_{}", hex::encode(&digest[..6]))
    }

    pub(super) fn socket_folder(&self) -> PathBuf {
        self.scratch.join("socket")
    }
}

/// From `postgres (PostgreSQL) 15.8 (Debian …)`, `17beta1` and the like.
pub(super) fn major_of(version: &str) -> Option<u32> {
    let number = version.split_once(") ")?.1;
    number.split(|it: char| !it.is_ascii_digit()).next()?.parse().ok()
}

/// What `pg_controldata` shows of the copy. It reads a control file whose checksum is wrong, too, and says so.
pub(super) fn control(program: &Path, data: &Path) -> Result<String, End> {
    let mut command = Command::new(program);
    command.arg("-D").arg(data).env("LC_ALL", "C").stdin(Stdio::null());
    let done = command.output().map_err(tool(program.display()))?;
    let (said, complaints) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    eprint!("{complaints}");
    let all = format!("{said}{complaints}");
    if is_broken_control(&all) {
        println!(
            "not restorable: the control file global/pg_control is damaged: its checksum is wrong, or it is cut"
        );
        return Err(End::Damage);
    }
    if done.status.success() {
        return Ok(said.into_owned());
    }
    Err(End::Tool(format!("{} ended with {}", program.display(), done.status)))
}

/// Reads what `pg_controldata` says, in the words of 14 to 18.
fn is_broken_control(said: &str) -> bool {
    let words = said.to_lowercase();
    words.contains("calculated crc checksum does not match")
        || words.lines().any(|line| line.contains("could not read file") && line.contains(": read "))
}

/// The mark is made on a server that follows none. A file that would make the copy's server follow another, or refuse to start, is no part
/// of the data: it is removed from the workspace, and the verdict names it.
fn set_recovery_aside(data: &Path) -> Result<(), End> {
    for (name, effect) in [
        ("standby.signal", "a server that starts on this backup follows another, until the file is removed"),
        (
            "recovery.signal",
            "a server that starts on this backup asks for an archive, until the file is removed",
        ),
        ("recovery.conf", "a server does not start on this backup, until the file is removed"),
    ] {
        match fs::remove_file(data.join(name)) {
            Ok(()) => println!("not covered: {name}: it was set aside for the check; {effect}"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(tool(name)(error)),
        }
    }
    Ok(())
}

/// In the sandbox a link leads to a copied root or to nothing. Without one it leads wherever it does on this host, and a server that
/// recovers there writes there.
fn refuse_links_outside(arguments: &Arguments) -> Result<(), End> {
    if arguments.scratch == Path::new(SCRATCH) {
        return Ok(());
    }
    let spaces = arguments.data.join("pg_tblspc");
    let links = fs::read_dir(&spaces).map_err(tool(spaces.display()))?;
    let mut links = links.collect::<io::Result<Vec<_>>>().map_err(tool(spaces.display()))?;
    links.retain(|link| link.file_type().map_or(true, |kind| kind.is_symlink()));
    let wal = arguments.data.join("pg_wal");
    let found = links.first().map(fs::DirEntry::path).or_else(|| wal.is_symlink().then_some(wal));
    match found {
        Some(path) => Err(End::Isolation(path.display().to_string())),
        // The server makes its links anew from the map.
        None if arguments.data.join("tablespace_map").exists() => {
            Err(End::Isolation("tablespace_map".into()))
        }
        None => Ok(()),
    }
}

/// Standard output of a command that must succeed.
pub(super) fn output(command: &mut Command) -> Result<String, End> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command.env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(tool(&program))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    eprint!("{}", String::from_utf8_lossy(&done.stderr));
    Err(End::Tool(format!("{program} ended with {}", done.status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_is_broken_when_it_is_cut_or_its_checksum_is_wrong() {
        for said in [
            "WARNING: Calculated CRC checksum does not match value stored in file.\nEither the file is corrupt",
            "pg_controldata: warning: calculated CRC checksum does not match value stored in control file",
            "pg_controldata: error: could not read file \"/d/global/pg_control\": read 100 of 296",
        ] {
            assert!(is_broken_control(said), "{said}");
        }
        assert!(!is_broken_control("could not open file \"/d/global/pg_control\": Permission denied"));
        assert!(!is_broken_control("could not read file \"/d/global/pg_control\": Input/output error"));
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_of("something else"), None);
    }
}
