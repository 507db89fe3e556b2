//! What a target takes from a source: attributes and special files by a list of what is allowed.

use assay_proto::v1 as proto;
use serde::Deserialize;

use crate::{
    confined::is_acl_mirror,
    limits::MAX_XATTR_NAME_BYTES,
    manifest::{Entry, EntryKind},
    path::display_bytes,
};

/// A kind of special file that a repository may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpecialFile {
    /// Named pipes.
    Fifo,
    /// Sockets of the file system.
    Socket,
    /// Character and block devices.
    Device,
}

impl SpecialFile {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Fifo, "fifo"), (Self::Socket, "socket"), (Self::Device, "device")];

    /// The kind of this entry; `None` for files, folders and links.
    pub fn of(entry: &Entry) -> Option<Self> {
        match entry.kind() {
            EntryKind::Fifo => Some(Self::Fifo),
            EntryKind::Socket => Some(Self::Socket),
            EntryKind::CharDevice | EntryKind::BlockDevice => Some(Self::Device),
            _ => None,
        }
    }

    /// Its word in a configuration.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, word)| word)
    }
}

/// What a target takes from a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRules {
    /// Attributes beside those of `user.` and ACLs: names, or beginnings of names with `*` behind them.
    pub attributes: Vec<String>,
    /// Special files.
    pub special_files: Vec<SpecialFile>,
}

/// True for a name of an attribute, or the beginning of one with `*` behind it.
pub fn is_pattern(text: &str) -> bool {
    let name = text.strip_suffix('*').unwrap_or(text);
    !name.is_empty()
        && text.len() <= MAX_XATTR_NAME_BYTES
        && !name.contains(['*', '\0'])
        && name.contains('.')
        && !name.starts_with('.')
}

/// True when one of `patterns` is `name`, or begins it.
pub fn matches_pattern(patterns: &[String], name: &[u8]) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start.as_bytes()),
        None => pattern.as_bytes() == name,
    })
}

/// True for what no list of a configuration lets in: an overlay mount obeys it, or it is the kernel's own business.
fn is_forbidden(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.")
        || name.starts_with(b"user.overlay.")
        || (name.starts_with(b"system.")
            && !matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default"))
        || crate::confined::is_host_label(name)
}

impl CopyRules {
    /// Whether an attribute of this name may be in a copy.
    pub fn allow_attribute(&self, name: &[u8], entry: &Entry) -> bool {
        let has = |name: &[u8]| entry.xattrs.iter().any(|attribute| attribute.name == name);
        match name {
            b"system.posix_acl_access" | b"system.posix_acl_default" => true,
            // What XFS says of an ACL under a second name.
            b"trusted.SGI_ACL_FILE" => has(b"system.posix_acl_access"),
            b"trusted.SGI_ACL_DEFAULT" => has(b"system.posix_acl_default"),
            _ => {
                !is_forbidden(name)
                    && !is_acl_mirror(name)
                    && (name.starts_with(b"user.") || matches_pattern(&self.attributes, name))
            }
        }
    }

    /// What tells these rules from others.
    pub fn fingerprint(&self) -> String {
        let mut words = self.attributes.clone();
        words.extend(self.special_files.iter().map(|kind| kind.word().to_owned()));
        words.sort();
        words.join(" ")
    }

    /// What of `entry` is not taken; `None` when all of it is.
    pub fn fault(&self, entry: &Entry) -> Option<String> {
        if let Some(special) = SpecialFile::of(entry) {
            if !self.special_files.contains(&special) {
                let word = special.word();
                return Some(format!(
                    "is a {word}, and the target takes none for this repository (special_files)"
                ));
            }
            if entry.kind() == EntryKind::CharDevice && (entry.device_major, entry.device_minor) == (0, 0) {
                return Some(
                    "is the character device 0/0, by which an overlay mount hides a name".to_owned(),
                );
            }
        }
        let refused = entry.xattrs.iter().find(|attribute| !self.allow_attribute(&attribute.name, entry))?;
        let name = display_bytes(&refused.name);
        Some(format!(
            "has the attribute {name}, and the target takes none of that name for this repository (attributes)"
        ))
    }
}

impl CopyRules {
    /// What lets a copy of `entry` go on, where [`CopyRules::fault`] finds something: in the words of the configurations.
    pub fn remedy(&self, entry: &Entry) -> String {
        if let Some(special) = SpecialFile::of(entry).filter(|special| !self.special_files.contains(special))
        {
            let word = special.word();
            let mut words: Vec<_> = self.special_files.iter().map(|kind| kind.word()).collect();
            words.push(word);
            let list = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
            return format!(
                "exclude the {word}, or let the target take it: special_files = [{list}] of its [[repository]]"
            );
        }
        let refused = entry.xattrs.iter().find(|attribute| !self.allow_attribute(&attribute.name, entry));
        let Some(refused) = refused else { return "exclude the entry".to_owned() };
        let name = display_bytes(&refused.name);
        let leave = format!("leave it out at the source (ignore_attributes = [\"{name}\"])");
        if is_forbidden(&refused.name) || is_acl_mirror(&refused.name) {
            return format!("{leave}: no target takes it");
        }
        format!("{leave}, or let the target take it: attributes = [\"{name}\"] of its [[repository]]")
    }
}

impl From<&CopyRules> for proto::CopyRules {
    fn from(rules: &CopyRules) -> Self {
        Self {
            attributes: rules.attributes.clone(),
            special_files: rules.special_files.iter().map(|kind| kind.word().to_owned()).collect(),
        }
    }
}

impl From<&proto::CopyRules> for CopyRules {
    fn from(rules: &proto::CopyRules) -> Self {
        let kind =
            |word: &String| SpecialFile::ALL.iter().find(|(_, known)| known == word).map(|(kind, _)| *kind);
        Self {
            attributes: rules.attributes.iter().filter(|pattern| is_pattern(pattern)).cloned().collect(),
            special_files: rules.special_files.iter().filter_map(kind).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ExtendedAttribute;

    fn file(names: &[&str]) -> Entry {
        let attribute = |name: &&str| ExtendedAttribute { name: name.as_bytes().to_vec(), value: vec![1] };
        Entry {
            kind: EntryKind::File.into(),
            xattrs: names.iter().map(attribute).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn attributes_are_taken_by_a_list_of_what_is_allowed() {
        let rules = CopyRules { attributes: vec!["security.capability".into()], special_files: vec![] };
        for names in [
            &["user.a", "user.dosattrib"][..],
            &["system.posix_acl_access", "system.posix_acl_default"],
            &["system.posix_acl_access", "trusted.SGI_ACL_FILE"],
            &["security.capability"],
        ] {
            assert_eq!(rules.fault(&file(names)), None, "{names:?}");
        }
        for name in [
            "trusted.x",
            "trusted.overlay.opaque",
            "trusted.SGI_ACL_FILE",
            "user.overlay.whiteout",
            "security.selinux",
            "security.ima",
            "system.nfs4_acl",
            "btrfs.compression",
            "other",
        ] {
            assert!(rules.fault(&file(&[name])).is_some_and(|fault| fault.contains(name)), "{name}");
        }
        // An operator's word lets some in, and never what an overlay mount or the kernel obeys.
        let all = ["trusted.*", "security.*", "system.*", "btrfs.*"].map(str::to_owned).to_vec();
        let rules = CopyRules { attributes: all, special_files: vec![] };
        for name in ["trusted.x", "btrfs.compression", "security.capability"] {
            assert_eq!(rules.fault(&file(&[name])), None, "{name}");
        }
        for name in ["trusted.overlay.redirect", "user.overlay.opaque", "security.selinux", "system.nfs4_acl"]
        {
            assert!(rules.fault(&file(&[name])).is_some(), "{name}");
        }
    }

    #[test]
    fn special_files_need_a_word() {
        let entry =
            |kind: EntryKind, device_minor| Entry { kind: kind.into(), device_minor, ..Default::default() };
        let none = CopyRules { attributes: vec![], special_files: vec![] };
        let all = CopyRules {
            attributes: vec![],
            special_files: vec![SpecialFile::Fifo, SpecialFile::Socket, SpecialFile::Device],
        };
        for kind in [EntryKind::Fifo, EntryKind::Socket, EntryKind::CharDevice, EntryKind::BlockDevice] {
            assert!(none.fault(&entry(kind, 3)).is_some(), "{kind:?}");
            assert_eq!(all.fault(&entry(kind, 3)), None, "{kind:?}");
        }
        assert_eq!(none.fault(&entry(EntryKind::Symlink, 0)), None);
        let fifos = CopyRules { attributes: vec![], special_files: vec![SpecialFile::Fifo] };
        let remedy = fifos.remedy(&entry(EntryKind::CharDevice, 3));
        assert!(remedy.ends_with("special_files = [\"fifo\", \"device\"] of its [[repository]]"), "{remedy}");
        assert!(all.fault(&entry(EntryKind::CharDevice, 0)).is_some_and(|fault| fault.contains("0/0")));
        let told = CopyRules::from(&proto::CopyRules::from(&all));
        assert_eq!(told, all);
    }

    #[test]
    fn a_pattern_is_a_name_or_its_beginning() {
        for good in ["user.big", "btrfs.*", "trusted.md.*", "user.*"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in ["", "*", "user", "user*", "us*r.x", ".x", "a.**"] {
            assert!(!is_pattern(bad), "{bad}");
        }
        let patterns = ["user.a".to_owned(), "btrfs.*".to_owned()];
        assert!(matches_pattern(&patterns, b"user.a") && matches_pattern(&patterns, b"btrfs.compression"));
        assert!(!matches_pattern(&patterns, b"user.ab") && !matches_pattern(&patterns, b"trusted.btrfs."));
    }
}
