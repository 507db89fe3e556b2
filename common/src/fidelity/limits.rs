//! What a file system holds.

use assay_proto::v1 as proto;

use crate::{
    manifest::{Entry, EntryKind, ExtendedAttribute},
    path::display_bytes,
};

/// What a file system holds of a tree. Where nothing is known, a limit is as large as can be: the file system itself says no then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsLimits {
    /// Its name, as in mount(8).
    pub file_system: String,
    /// Longest value of one attribute, in bytes; 0 when it has no attributes.
    pub attribute_bytes: u64,
    /// All attributes of an inode, in bytes as `footprint` counts them.
    pub attributes_bytes: u64,
    /// It has POSIX ACLs.
    pub acls: bool,
    /// The target may set attributes of `trusted.`.
    pub trusted: bool,
    /// The target may give a file capabilities.
    pub capabilities: bool,
    /// The first and the last second that it holds, since 1970.
    pub seconds: (i64, i64),
    /// The smallest difference of two times, in nanoseconds.
    pub granularity: u32,
    /// Longest name, in bytes.
    pub name_bytes: u64,
    /// Longest text of a symbolic link, in bytes.
    pub link_bytes: u64,
    /// Names that a file may have.
    pub names: u64,
    /// Longest file, in bytes.
    pub file_bytes: u64,
    /// The target may make devices.
    pub devices: bool,
    /// Names that differ in case only are one name.
    pub folds_names: bool,
    /// It keeps no owners and modes of its own, as vfat does.
    pub no_owners: bool,
}

/// Where a file system is: in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The store of a target.
    Store,
    /// Where a generation is restored.
    Destination,
}

impl Place {
    fn owner(self) -> &'static str {
        match self {
            Self::Store => "the target's",
            Self::Destination => "the destination's",
        }
    }

    fn process(self) -> &'static str {
        match self {
            Self::Store => "the target's agent",
            Self::Destination => "this restore",
        }
    }
}

/// What attributes take in an inode, as ext4 stores them: 16 bytes for each, and name and value in steps of four. No namespace is
/// stored.
fn footprint(attributes: &[ExtendedAttribute]) -> u64 {
    attributes.iter().map(|attribute| one_footprint(&attribute.name, attribute.value.len())).sum()
}

/// The same of one attribute.
pub(super) fn one_footprint(name: &[u8], value_bytes: usize) -> u64 {
    let stored = match name {
        b"system.posix_acl_access" | b"system.posix_acl_default" => 0,
        name => name.iter().position(|byte| *byte == b'.').map_or(name.len(), |dot| name.len() - dot - 1),
    };
    16 + (stored.next_multiple_of(4) + value_bytes.next_multiple_of(4)) as u64
}

/// An ACL is stored shorter than it is told: by so much at most.
const ACL_SLACK_BYTES: u64 = 64;

impl FsLimits {
    /// What of `entry` it cannot hold, and what it can; `None` when all of it has its place.
    pub fn fault(&self, entry: &Entry) -> Option<String> {
        self.fault_at(Place::Store, entry)
    }

    /// Why the file system cannot hold an entry, when it is that of `place`; `None` when it can.
    pub fn fault_at(&self, place: Place, entry: &Entry) -> Option<String> {
        if entry.kind() == EntryKind::Hardlink {
            return self.name_fault(place, entry);
        }
        self.name_fault(place, entry)
            .or_else(|| self.time_fault(place, entry))
            .or_else(|| self.attribute_fault(place, entry))
            .or_else(|| self.kind_fault(place, entry))
    }

    /// What lets a copy of `entry` go on, where [`FsLimits::fault`] finds something: in the words of the configuration of the source.
    pub fn remedy(&self, entry: &Entry) -> String {
        let elsewhere =
            "keep the store on a file system that holds it (assay-target doctor says what this one holds)";
        let place = Place::Store;
        if self.name_fault(place, entry).is_some() {
            return format!("shorten the name, exclude the entry, or {elsewhere}");
        }
        if entry.kind() == EntryKind::Hardlink {
            return format!("exclude the entry, or {elsewhere}");
        }
        if self.time_fault(place, entry).is_some() {
            return format!(
                "say clamp_times = true at the source, which takes the nearest time that it holds, exclude the entry, or {elsewhere}"
            );
        }
        if let Some((name, _)) = self.bad_attribute(place, entry) {
            let name = display_bytes(&name);
            return format!(
                "say ignore_attributes = [\"{name}\"] at the source, if the repository does not need it, exclude the entry, or {elsewhere}"
            );
        }
        match entry.kind() {
            EntryKind::CharDevice | EntryKind::BlockDevice if !self.devices => {
                "exclude the device, or run the target's agent as root".to_owned()
            }
            _ => format!("exclude the entry, or {elsewhere}"),
        }
    }

    fn name_fault(&self, place: Place, entry: &Entry) -> Option<String> {
        let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let (length, most) = (name.len() as u64, self.name_bytes);
        (length > most)
            .then(|| format!("has a name of {length} bytes, and {} holds {most}", self.named(place)))
    }

    fn kind_fault(&self, place: Place, entry: &Entry) -> Option<String> {
        let store = self.named(place);
        match entry.kind() {
            _ if self.no_owners && (entry.uid, entry.gid) != (0, 0) => Some(format!(
                "has the owner {}:{} and the mode {:04o}, and {store} keeps no owners and modes",
                entry.uid, entry.gid, entry.mode
            )),
            EntryKind::Symlink if entry.link_target.len() as u64 > self.link_bytes => {
                let (length, most) = (entry.link_target.len(), self.link_bytes);
                Some(format!("is a symbolic link to a text of {length} bytes, and {store} holds {most}"))
            }
            EntryKind::CharDevice | EntryKind::BlockDevice if !self.devices => {
                Some(format!("is a device, and {} may make none: it needs root", place.process()))
            }
            EntryKind::File if entry.size > self.file_bytes => {
                Some(format!("is {} bytes long, and a file of {store} holds {}", entry.size, self.file_bytes))
            }
            _ => None,
        }
    }

    fn time_fault(&self, place: Place, entry: &Entry) -> Option<String> {
        let clamped = self.clamp((entry.mtime_seconds, entry.mtime_nanos));
        (clamped != (entry.mtime_seconds, entry.mtime_nanos)).then(|| {
            format!(
                "was modified at {}, which {} would hold as {}",
                show((entry.mtime_seconds, entry.mtime_nanos)),
                self.named(place),
                show(clamped)
            )
        })
    }

    /// The nearest time that it holds, not after `time` where that can be: what the kernel would make of it.
    pub fn clamp(&self, (seconds, nanos): (i64, u32)) -> (i64, u32) {
        let (first, last) = self.seconds;
        if seconds < first {
            return (first, 0);
        }
        // Of the last second the kernel keeps no fraction.
        if seconds > last || (seconds == last && nanos > 0 && last < i64::MAX) {
            return (last, 0);
        }
        match self.granularity {
            0 | 1 => (seconds, nanos),
            step @ 2..1_000_000_000 => (seconds, nanos - nanos % step),
            step => (seconds - seconds.rem_euclid(i64::from(step / 1_000_000_000)), 0),
        }
    }

    fn attribute_fault(&self, place: Place, entry: &Entry) -> Option<String> {
        self.bad_attribute(place, entry).map(|(_, what)| what)
    }

    /// The attribute that it cannot hold, and why: of all together, the largest.
    fn bad_attribute(&self, place: Place, entry: &Entry) -> Option<(Vec<u8>, String)> {
        let store = self.named(place);
        for attribute in &entry.xattrs {
            let (name, length) = (display_bytes(&attribute.name), attribute.value.len() as u64);
            let is_system = attribute.name.starts_with(b"system.");
            let what = match attribute.name.as_slice() {
                b"system.posix_acl_access" => "an ACL".to_owned(),
                b"system.posix_acl_default" => "a default ACL".to_owned(),
                _ => format!("the attribute {name} of {length} bytes"),
            };
            let too_long = length > self.attribute_bytes.saturating_add(ACL_SLACK_BYTES)
                || (length > self.attribute_bytes && !is_system);
            let why = if attribute.name.starts_with(b"system.posix_acl_") && !self.acls {
                format!("{store} has none")
            } else if self.attribute_bytes == 0 && !is_system {
                format!("{store} has no attributes")
            } else if too_long {
                format!("{store} holds {} bytes in one", self.attribute_bytes)
            } else if attribute.name.starts_with(b"trusted.") && !self.trusted {
                return Some((
                    attribute.name.clone(),
                    format!("has {what}, which {} may not set: it needs root", place.process()),
                ));
            } else if attribute.name == b"security.capability" && !self.capabilities {
                return Some((
                    attribute.name.clone(),
                    format!("has {what}, which {} may not set there: it needs root", place.process()),
                ));
            } else {
                continue;
            };
            return Some((attribute.name.clone(), format!("has {what}, and {why}")));
        }
        let (all, most) = (footprint(&entry.xattrs), self.attributes_bytes);
        let largest = entry.xattrs.iter().max_by_key(|attribute| attribute.value.len())?;
        (all > most.saturating_add(ACL_SLACK_BYTES)).then(|| {
            let count = entry.xattrs.len();
            let what = format!("has {count} attributes of {all} bytes, and an inode of {store} holds {most}");
            (largest.name.clone(), what)
        })
    }

    /// How a message calls it.
    fn named(&self, place: Place) -> String {
        format!("{} {}", place.owner(), self.file_system)
    }

    /// What it holds, in one line for people.
    pub fn summary(&self) -> String {
        let time = |seconds: i64| {
            jiff::Timestamp::from_second(seconds).ok().map(|time| time.strftime("%Y").to_string())
        };
        let times = match (time(self.seconds.0), time(self.seconds.1)) {
            (Some(first), Some(last)) => format!("years {first} to {last}"),
            (None, Some(last)) => format!("years to {last}"),
            (Some(first), None) => format!("years from {first}"),
            (None, None) => "any year".to_owned(),
        };
        let step = match self.granularity {
            0 | 1 => "nanoseconds".to_owned(),
            1_000_000_000 => "whole seconds only".to_owned(),
            step => format!("times in steps of {step} ns"),
        };
        let attributes = match (self.attribute_bytes, self.attributes_bytes) {
            (0, _) => "no attributes".to_owned(),
            (one, u64::MAX) => format!("attributes of {one} bytes"),
            (_, all) => format!("attributes of {all} bytes in all"),
        };
        let acls = if self.acls { "ACLs" } else { "no ACLs" };
        let names =
            if self.names == u64::MAX { String::new() } else { format!(", {} names of a file", self.names) };
        let folds = if self.folds_names { ", names that differ in case only are one" } else { "" };
        format!("{}: {times}, {step}, {attributes}, {acls}{names}{folds}", self.file_system)
    }

    /// What of it is less than a usual tree has, with what that means; empty for a file system that servers are kept on.
    pub fn shortcomings(&self) -> Vec<String> {
        let mut short = Vec::new();
        if self.granularity > 1 {
            short.push("it cuts off the nanoseconds of times".to_owned());
        }
        if self.seconds.1 < 4_102_444_800 {
            let last = show((self.seconds.1, 0));
            short.push(format!("it holds no time after {last}"));
        }
        if !self.acls {
            short.push("it has no ACLs".to_owned());
        }
        if self.attribute_bytes == 0 {
            short.push("it has no attributes".to_owned());
        }
        if self.no_owners {
            short.push("it keeps no owners and modes".to_owned());
        }
        if self.folds_names {
            short.push("names that differ in case only are one name there".to_owned());
        }
        short
    }
}

fn show((seconds, nanos): (i64, u32)) -> String {
    let time = jiff::Timestamp::new(seconds, i32::try_from(nanos).unwrap_or(0)).ok();
    time.map_or_else(|| format!("{seconds}.{nanos:09} s since 1970"), |time| time.to_string())
}

impl From<&FsLimits> for proto::StoreLimits {
    fn from(limits: &FsLimits) -> Self {
        Self {
            file_system: limits.file_system.clone(),
            attribute_bytes: limits.attribute_bytes,
            attributes_bytes: limits.attributes_bytes,
            acls: limits.acls,
            trusted: limits.trusted,
            capabilities: limits.capabilities,
            earliest_seconds: limits.seconds.0,
            latest_seconds: limits.seconds.1,
            granularity_nanos: limits.granularity,
            name_bytes: limits.name_bytes,
            link_bytes: limits.link_bytes,
            names: limits.names,
            file_bytes: limits.file_bytes,
            devices: limits.devices,
            folds_names: limits.folds_names,
            no_owners: limits.no_owners,
        }
    }
}

impl From<&proto::StoreLimits> for FsLimits {
    fn from(limits: &proto::StoreLimits) -> Self {
        Self {
            file_system: display_bytes(limits.file_system.as_bytes()).chars().take(32).collect(),
            attribute_bytes: limits.attribute_bytes,
            attributes_bytes: limits.attributes_bytes,
            acls: limits.acls,
            trusted: limits.trusted,
            capabilities: limits.capabilities,
            seconds: (limits.earliest_seconds, limits.latest_seconds.max(limits.earliest_seconds)),
            granularity: limits.granularity_nanos,
            name_bytes: limits.name_bytes,
            link_bytes: limits.link_bytes,
            names: limits.names,
            file_bytes: limits.file_bytes,
            devices: limits.devices,
            folds_names: limits.folds_names,
            no_owners: limits.no_owners,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::fidelity) fn ext4_small() -> FsLimits {
        FsLimits {
            file_system: "ext4".to_owned(),
            attribute_bytes: 4040,
            attributes_bytes: 4060,
            acls: true,
            trusted: false,
            capabilities: false,
            seconds: (-2_147_483_648, 2_147_483_647),
            granularity: 1_000_000_000,
            name_bytes: 255,
            link_bytes: 4095,
            names: 65_000,
            file_bytes: 16 << 40,
            devices: false,
            folds_names: false,
            no_owners: false,
        }
    }

    fn file(change: impl FnOnce(&mut Entry)) -> Entry {
        let mut entry = Entry { path: b"d/f".to_vec(), kind: EntryKind::File.into(), ..Default::default() };
        change(&mut entry);
        entry
    }

    #[test]
    fn each_thing_that_a_file_system_cannot_hold_is_named() {
        let limits = ext4_small();
        assert_eq!(limits.fault(&file(|_| {})), None);
        let attribute = |name: &str, bytes| ExtendedAttribute { name: name.into(), value: vec![0; bytes] };
        type Change = Box<dyn FnOnce(&mut Entry)>;
        let cases: Vec<(&str, Change)> = vec![
            (
                "2040-01-01T00:00:00Z, which the target's ext4 would hold as 2038-01-19T03:14:07Z",
                Box::new(|e| e.mtime_seconds = 2_208_988_800),
            ),
            ("1800-01-01T00:00:00Z", Box::new(|e| e.mtime_seconds = -5_364_662_400)),
            ("would hold as 1970-01-01T00:00:05Z", Box::new(|e| (e.mtime_seconds, e.mtime_nanos) = (5, 1))),
            (
                "user.big of 5000 bytes, and the target's ext4 holds 4040",
                Box::new(move |e| e.xattrs = vec![attribute("user.big", 5000)]),
            ),
            (
                "2 attributes of",
                Box::new(move |e| e.xattrs = vec![attribute("user.a", 3000), attribute("user.b", 3000)]),
            ),
            ("trusted.x of 1 bytes", Box::new(move |e| e.xattrs = vec![attribute("trusted.x", 1)])),
            ("security.capability", Box::new(move |e| e.xattrs = vec![attribute("security.capability", 20)])),
            ("a name of 256 bytes", Box::new(|e| e.path = [b"d/".to_vec(), vec![b'x'; 256]].concat())),
            ("bytes long", Box::new(|e| e.size = (16 << 40) + 1)),
            ("a device", Box::new(|e| e.set_kind(EntryKind::BlockDevice))),
        ];
        for (text, change) in cases {
            let entry = file(change);
            let fault = limits.fault(&entry).unwrap_or_else(|| panic!("nothing is said of {text}"));
            assert!(fault.contains(text), "{fault}");
            let remedy = limits.remedy(&entry);
            let setting = match &entry {
                entry if entry.mtime_seconds != 0 || entry.mtime_nanos != 0 => "clamp_times = true",
                entry if !entry.xattrs.is_empty() => "ignore_attributes = [\"",
                entry if entry.kind() == EntryKind::BlockDevice => "as root",
                _ => "keep the store on a file system that holds it",
            };
            assert!(remedy.contains(setting), "{text}: {remedy}");
        }
    }

    /// As the kernel does it (timestamp_truncate).
    #[test]
    fn a_time_is_clamped_as_the_kernel_clamps_it() {
        let limits = ext4_small();
        assert_eq!(limits.clamp((-5_000_000_000, 5)), (-2_147_483_648, 0));
        assert_eq!(limits.clamp((5_000_000_000, 5)), (2_147_483_647, 0));
        assert_eq!(limits.clamp((-1, 500_000_000)), (-1, 0));
        let fine = FsLimits { granularity: 100, seconds: (i64::MIN, i64::MAX), ..limits.clone() };
        assert_eq!(fine.clamp((7, 123_456_789)), (7, 123_456_700));
        assert_eq!(fine.clamp((i64::MAX, 5)), (i64::MAX, 0));
        let two = FsLimits { granularity: 2_000_000_000, ..limits };
        assert_eq!(two.clamp((7, 1)), (6, 0));
        assert_eq!(FsLimits::from(&proto::StoreLimits::from(&two)), two);
    }
}
