//! The section of the configuration, and what it comes to.

use std::{
    path::{Component, Path, PathBuf},
    time::Duration,
};

use assay_common::config::{self, Span};
use serde::{Deserialize, Serialize};

/// How long a command may take when the file does not say: btrfs and ZFS first write back what is in memory.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// The share of the file system that must be free when the file does not say, in per cent: a snapshot keeps what the live system
/// overwrites meanwhile.
const DEFAULT_MIN_FREE_PERCENT: u8 = 5;

/// `[repository.snapshot]`: a run makes a snapshot of the roots' file system, ends the engine's mark, and copies the snapshot (docs/SNAPSHOTS.md).
/// A key that begins with kinds is needed by these kinds, and by no others.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotSection {
    /// What makes it.
    kind: Kind,
    /// btrfs, lvm: an existing folder for the snapshots, on the same btrfs, or in which they are mounted. Outside of the roots, or excluded.
    folder: Option<PathBuf>,
    /// lvm, zfs: volume group and logical volume, for example `"vg0/data"`, or the dataset, for example `"tank/data"`.
    volume: Option<String>,
    /// lvm: room for what the live volume overwrites during a copy, as `lvcreate --size` takes it.
    size: Option<String>,
    /// command: program and arguments that make the snapshot; `{mark_id}` is its name, `{root}` the first root.
    #[serde(default)]
    create: Vec<String>,
    /// command: program and arguments that remove it, and that do no harm when there is none.
    #[serde(default)]
    remove: Vec<String>,
    /// command: where a root is in the snapshot: `{mark_id}` is its name, `{root}` the root's live path.
    path: Option<String>,
    /// How long each command may take. Default: 5m.
    timeout: Option<Span>,
    /// A run stops before the snapshot when less of the file system is free, in per cent, 0 to 90. Default: 5.
    min_free_percent: Option<u8>,
}

/// The kinds that the section names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Btrfs,
    Lvm,
    Zfs,
    Command,
}

/// How snapshots of a repository are made. It is kept beside a snapshot for as long as there is one, because the configuration may be another
/// one when what a killed run left is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(super) way: Way,
    pub(super) timeout: Duration,
    pub(super) min_free_percent: u8,
}

/// What makes a snapshot, with what it needs for that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Way {
    Btrfs { folder: PathBuf },
    Lvm { volume: String, size: String, folder: PathBuf },
    Zfs { dataset: String },
    Command { create: Vec<String>, remove: Vec<String>, path: String },
}

impl Way {
    /// Its name in the configuration, in marks and in messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Btrfs { .. } => "btrfs",
            Self::Lvm { .. } => "LVM",
            Self::Zfs { .. } => "ZFS",
            Self::Command { .. } => "command",
        }
    }

    /// The folder in which snapshots are put or mounted.
    pub(super) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Btrfs { folder } | Self::Lvm { folder, .. } => Some(folder),
            Self::Zfs { .. } | Self::Command { .. } => None,
        }
    }
}

impl SnapshotSection {
    /// What the section comes to, or all that is wrong with it, by key.
    pub(crate) fn settings(&self) -> Result<Settings, Vec<String>> {
        let mut faults = Vec::new();
        let kind = format!("{:?}", self.kind).to_lowercase();
        let keys = [
            ("folder", self.folder.is_some(), matches!(self.kind, Kind::Btrfs | Kind::Lvm)),
            ("volume", self.volume.is_some(), matches!(self.kind, Kind::Lvm | Kind::Zfs)),
            ("size", self.size.is_some(), self.kind == Kind::Lvm),
            ("create", !self.create.is_empty(), self.kind == Kind::Command),
            ("remove", !self.remove.is_empty(), self.kind == Kind::Command),
            ("path", self.path.is_some(), self.kind == Kind::Command),
        ];
        for (key, is_there, is_needed) in keys {
            match (is_there, is_needed) {
                (false, true) => faults.push(format!("{key}: kind = \"{kind}\" needs it")),
                (true, false) => faults.push(format!("{key}: kind = \"{kind}\" does not use it")),
                _ => {}
            }
        }
        if self.folder.as_deref().is_some_and(|folder| !is_plain_absolute(folder)) {
            faults.push("folder: must be an absolute path without '..'".to_owned());
        }
        let timeout = self.timeout.map_or(DEFAULT_TIMEOUT, |span| span.0);
        if !config::is_limit(timeout) {
            faults.push(format!("timeout: {}", config::LIMIT_RULE));
        }
        let min_free_percent = self.min_free_percent.unwrap_or(DEFAULT_MIN_FREE_PERCENT);
        if min_free_percent > 90 {
            faults.push("min_free_percent: must be 0 to 90".to_owned());
        }
        match (self.kind, &self.volume) {
            (Kind::Lvm, Some(volume)) if !is_logical_volume(volume) => {
                faults.push(format!("volume: {volume:?}: must be VOLUME-GROUP/LOGICAL-VOLUME"));
            }
            (Kind::Zfs, Some(volume)) if !is_dataset(volume) => {
                faults.push(format!("volume: {volume:?}: must be the name of a dataset, POOL or POOL/NAME"));
            }
            _ => {}
        }
        if self.size.as_deref().is_some_and(|size| !is_size(size)) {
            faults.push("size: must be a number with its unit, for example \"20g\"".to_owned());
        }
        if self.path.as_deref().is_some_and(|path| !path.contains("{root") && !path.starts_with('/')) {
            faults.push("path: must be an absolute path".to_owned());
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let folder = || self.folder.clone().unwrap_or_default();
        let volume = || self.volume.clone().unwrap_or_default();
        let way = match self.kind {
            Kind::Btrfs => Way::Btrfs { folder: folder() },
            Kind::Lvm => {
                Way::Lvm { volume: volume(), size: self.size.clone().unwrap_or_default(), folder: folder() }
            }
            Kind::Zfs => Way::Zfs { dataset: volume() },
            Kind::Command => Way::Command {
                create: self.create.clone(),
                remove: self.remove.clone(),
                path: self.path.clone().unwrap_or_default(),
            },
        };
        Ok(Settings { way, timeout, min_free_percent })
    }
}

fn is_plain_absolute(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// The characters that lvm(8) allows in names. None begins with a hyphen, which would be an option.
fn is_logical_volume(text: &str) -> bool {
    let is_name = |name: &str| {
        let all = name.chars().all(|letter| letter.is_ascii_alphanumeric() || "+_.-".contains(letter));
        all && !name.is_empty() && !name.starts_with('-') && name != "." && name != ".."
    };
    text.split_once('/').is_some_and(|(group, volume)| is_name(group) && is_name(volume))
}

/// The characters that zfs(8) allows in names of datasets.
fn is_dataset(text: &str) -> bool {
    let is_name = |name: &str| {
        let all = name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_.: -".contains(letter));
        all && name.starts_with(|letter: char| letter.is_ascii_alphanumeric() || letter == '_')
    };
    text.split('/').all(is_name)
}

/// Digits, at most one point, and a unit or a share, as `lvcreate --size` takes them.
fn is_size(text: &str) -> bool {
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = &text[number.len()..];
    unit.len() == 1
        && number.starts_with(|digit: char| digit.is_ascii_digit())
        && number.parse::<f64>().is_ok_and(|number| number > 0.0 && number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, Vec<String>> {
        toml::from_str::<SnapshotSection>(text).map_err(|error| vec![error.message().to_owned()])?.settings()
    }

    #[test]
    fn each_kind_has_keys_of_its_own() {
        for (text, way) in [
            ("kind = 'btrfs'\nfolder = '/srv/.snapshots'", "btrfs"),
            ("kind = 'lvm'\nfolder = '/run/x'\nvolume = 'vg0/data'\nsize = '1.5g'", "LVM"),
            ("kind = 'zfs'\nvolume = 'tank/srv/data'\ntimeout = '1h'", "ZFS"),
            ("kind = 'command'\ncreate = ['a']\nremove = ['b']\npath = '/x/{mark_id}{root}'", "command"),
        ] {
            let settings = settings(text).expect(text);
            assert_eq!(settings.way.name(), way);
            let kept = serde_json::to_string(&settings).expect("text");
            assert_eq!(serde_json::from_str::<Settings>(&kept).expect("valid"), settings);
        }
    }

    #[test]
    fn each_fault_names_its_key() {
        for (text, told) in [
            ("kind = 'xfs'", "unknown variant `xfs`"),
            ("kind = 'btrfs'", "folder: kind = \"btrfs\" needs it"),
            ("kind = 'btrfs'\nfolder = 'snapshots'", "folder: must be an absolute path"),
            ("kind = 'btrfs'\nfolder = '/srv/../x'", "folder: must be an absolute path"),
            ("kind = 'btrfs'\nfolder = '/x'\nvolume = 'a/b'", "volume: kind = \"btrfs\" does not use it"),
            ("kind = 'btrfs'\nfolder = '/x'\nmin_free_percent = 91", "min_free_percent: "),
            ("kind = 'btrfs'\nfolder = '/x'\ntimeout = '0s'", "timeout: "),
            ("kind = 'btrfs'\nfolders = '/x'", "unknown field `folders`"),
            ("kind = 'zfs'\nvolume = 'tank@x'", "volume: "),
            ("kind = 'zfs'\nvolume = '-r'", "volume: "),
            ("kind = 'zfs'\nvolume = 'tank//x'", "volume: "),
            ("kind = 'lvm'\nfolder = '/x'\nvolume = 'vg0'\nsize = '1g'", "volume: "),
            ("kind = 'lvm'\nfolder = '/x'\nvolume = 'vg0/-f'\nsize = '1g'", "volume: "),
            ("kind = 'lvm'\nfolder = '/x'\nvolume = 'vg0/../a'\nsize = '1g'", "volume: "),
            ("kind = 'lvm'\nfolder = '/x'\nvolume = 'vg0/a'\nsize = '--yes'", "size: "),
            ("kind = 'lvm'\nfolder = '/x'\nvolume = 'vg0/a'\nsize = '0g'", "size: "),
            ("kind = 'command'\ncreate = ['a']\npath = '/x'", "remove: kind = \"command\" needs it"),
            ("kind = 'command'\ncreate = ['a']\nremove = ['b']\npath = 'x'", "path: must be"),
        ] {
            let faults = settings(text).expect_err(text);
            assert!(faults.iter().any(|fault| fault.contains(told)), "{text}: {faults:?}");
        }
    }
}
