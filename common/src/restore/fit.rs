//! What of an entry comes back where a generation is restored: what the operator leaves out, what this user may give, and what the
//! file system of the destination holds. It is found out before the first byte is written.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
};

use super::{Checked, Destination, Options, RestoreError, Selection};
use crate::{
    error::IoContext as _,
    fidelity::{FsLimits, LeftOut, Place, folded_name, matches_pattern},
    manifest::{Entry, EntryKind},
    path::{TreePath, display_bytes, display_short},
};

/// The folder in which the destination's file system is tried out.
const PROBE: &str = "probe";
/// Entries that do not fit and are named.
const NAMED: usize = 5;

/// Why something is left out because of the operator's word.
const IGNORED: &str = "--ignore-attribute";
/// Why a time is another one because of the operator's word.
const CLAMPED: &str = "--clamp-times: the destination's file system holds the nearest to it";
/// Why something is left out because of the user who restores.
const NEEDS_ROOT: &str = "only root can restore it";

/// An entry that the destination cannot hold as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The entry, made printable.
    pub path: String,
    /// What of it does not fit.
    pub what: String,
}

/// A user who is not root: what he restores is his own.
#[derive(Debug, Clone)]
pub(super) struct User {
    uid: u32,
    gid: u32,
    groups: HashSet<u32>,
}

impl User {
    /// The user of this process; `None` for root.
    fn own() -> Option<Self> {
        let uid = rustix::process::geteuid();
        if uid.is_root() {
            return None;
        }
        let gid = rustix::process::getegid().as_raw();
        let groups = rustix::process::getgroups().unwrap_or_default();
        let groups = groups.into_iter().map(|group| group.as_raw()).chain([gid]).collect();
        Some(Self { uid: uid.as_raw(), gid, groups })
    }
}

/// What is left out of the entries of a restore.
#[derive(Debug, Default)]
pub(super) struct Fit {
    ignore: Vec<String>,
    clamp_times: bool,
    limits: Option<FsLimits>,
    user: Option<User>,
    left_out: BTreeMap<String, LeftOut>,
    /// Entries that lack more than their owner and group because this user is not root, devices not counted.
    beyond_user: u64,
}

impl Fit {
    /// By the options, and by what the destination's file system holds, which is tried out in its scratch folder.
    pub(super) fn new(destination: &Destination, options: &Options) -> Result<Self, RestoreError> {
        let scratch = destination.scratch_path();
        let limits = FsLimits::probe(&scratch, PROBE).at("try out the file system of", &scratch)?;
        Ok(Self::with(options, limits, User::own()))
    }

    pub(super) fn with(options: &Options, limits: Option<FsLimits>, user: Option<User>) -> Self {
        let (ignore, clamp_times) = (options.ignore_attributes.clone(), options.clamp_times);
        Self { ignore, clamp_times, limits, user, ..Self::default() }
    }

    /// True for a user who is not root.
    pub(super) fn is_limited(&self) -> bool {
        self.user.is_some()
    }

    /// What was left out, by its name.
    pub(super) fn left_out(&self) -> Vec<LeftOut> {
        self.left_out.values().cloned().collect()
    }

    /// Entries that are not what they were because of this user.
    pub(super) fn beyond_user(&self) -> u64 {
        self.beyond_user
    }

    fn note(&mut self, what: &str, why: &str, path: &[u8]) {
        const MAX_KINDS: usize = 64;
        if !self.left_out.contains_key(what) && self.left_out.len() < MAX_KINDS {
            let example = if path.is_empty() { ".".to_owned() } else { display_short(path) };
            let noted = LeftOut { what: what.to_owned(), why: why.to_owned(), example };
            self.left_out.insert(what.to_owned(), noted);
        }
    }

    /// What comes back of `entry`.
    pub(super) fn fit(&mut self, mut entry: Entry) -> Entry {
        let path = std::mem::take(&mut entry.path);
        let mut kept = std::mem::take(&mut entry.xattrs);
        kept.retain(|attribute| {
            let is_kept = !matches_pattern(&self.ignore, &attribute.name);
            if !is_kept {
                self.note(&display_bytes(&attribute.name), IGNORED, &path);
            }
            is_kept
        });
        entry.xattrs = kept;
        if let (true, Some(limits)) = (self.clamp_times, &self.limits) {
            let clamped = limits.clamp((entry.mtime_seconds, entry.mtime_nanos));
            if clamped != (entry.mtime_seconds, entry.mtime_nanos) {
                (entry.mtime_seconds, entry.mtime_nanos) = clamped;
                self.note("times", CLAMPED, &path);
            }
        }
        if entry.kind() != EntryKind::Hardlink && self.limit_to_user(&mut entry, &path) {
            self.beyond_user += 1;
        }
        entry.path = path;
        entry
    }

    /// Without root a file belongs to whoever restores it, and to a group only that he is a member of. A program that would run as its
    /// owner must not run as this user instead, and attributes of the system are not set. True when the entry lacks more than its owner and
    /// group, which `rsync -a` does not count as a fault either.
    fn limit_to_user(&mut self, entry: &mut Entry, path: &[u8]) -> bool {
        let Some(user) = self.user.clone() else { return false };
        let mut is_changed = false;
        if entry.uid != user.uid {
            entry.uid = user.uid;
            self.note("owner", "only root can give files away", path);
            if entry.mode & 0o4000 != 0 {
                entry.mode &= !0o4000;
                is_changed = true;
                self.note("set-user-id", NEEDS_ROOT, path);
            }
        }
        if !user.groups.contains(&entry.gid) {
            entry.gid = user.gid;
            self.note("group", "only root, or a member of the group, can restore it", path);
            if entry.mode & 0o2000 != 0 {
                entry.mode &= !0o2000;
                is_changed = true;
                self.note("set-group-id", NEEDS_ROOT, path);
            }
        }
        let mut kept = std::mem::take(&mut entry.xattrs);
        let count = kept.len();
        kept.retain(|attribute| {
            let is_system =
                attribute.name.starts_with(b"trusted.") || attribute.name.starts_with(b"security.");
            if is_system {
                self.note(&display_bytes(&attribute.name), NEEDS_ROOT, path);
            }
            !is_system
        });
        entry.xattrs = kept;
        is_changed || entry.xattrs.len() != count
    }

    /// Holds every entry that is asked for against what the destination holds.
    ///
    /// # Errors
    /// [`RestoreError::Misfit`] names the first entries that do not fit.
    pub(super) fn check(
        &mut self,
        destination: &Path,
        checked: &Checked,
        paths: &[TreePath],
    ) -> Result<(), RestoreError> {
        // Where the probe gives no limits, the entries are still held against what this user may restore.
        let limits = self.limits.clone();
        let (mut named, mut all) = (Vec::new(), 0u64);
        let mut misfit = |path: &[u8], what: String| {
            all += 1;
            if named.len() < NAMED {
                let path = if path.is_empty() { ".".to_owned() } else { display_short(path) };
                named.push(Misfit { path, what });
            }
        };
        let mut names: HashMap<Vec<u8>, u64> = HashMap::new();
        let mut folded = HashSet::new();
        let mut entries = checked.entries()?;
        while let Some((_, path, entry)) = entries.next_entry()? {
            if Selection::of(&path, paths) != Selection::Wanted {
                continue;
            }
            let entry = self.fit(entry);
            let is_device = matches!(entry.kind(), EntryKind::CharDevice | EntryKind::BlockDevice);
            // It is not restored, and listed in the end.
            let is_skipped = is_device && self.user.is_some();
            let Some(limits) = &limits else { continue };
            if let Some(what) = limits.fault_at(Place::Destination, &entry).filter(|_| !is_skipped) {
                misfit(&entry.path, what);
            }
            if entry.kind() == EntryKind::Hardlink && limits.names < u64::MAX {
                let count = names.entry(entry.link_target.clone()).or_insert(1);
                *count += 1;
                if *count == limits.names.saturating_add(1) {
                    let (most, store) = (limits.names, &limits.file_system);
                    misfit(
                        &entry.path,
                        format!(
                            "is one more name of a file than the {most} that the destination's {store} allows"
                        ),
                    );
                }
            }
            if limits.folds_names && !folded.insert(folded_name(&entry.path)) {
                let what =
                    "differs from another name in case only, and such names are one name at the destination";
                misfit(&entry.path, what.to_owned());
            }
        }
        if named.is_empty() {
            return Ok(());
        }
        Err(RestoreError::Misfit { path: destination.to_owned(), named, all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ExtendedAttribute;

    fn user() -> User {
        User { uid: 1000, gid: 1000, groups: HashSet::from([1000, 50]) }
    }

    fn entry(uid: u32, gid: u32, mode: u32, names: &[&str]) -> Entry {
        Entry {
            path: b"d/f".to_vec(),
            kind: EntryKind::File.into(),
            mode,
            uid,
            gid,
            xattrs: names
                .iter()
                .map(|name| ExtendedAttribute { name: name.as_bytes().to_vec(), value: vec![1] })
                .collect(),
            ..Default::default()
        }
    }

    /// As rsync without root: the group is kept where this user is a member of it.
    #[test]
    fn a_user_gets_what_he_may_have_and_the_rest_is_named() {
        let mut fit = Fit::with(&Options::default(), None, Some(user()));
        let own = entry(1000, 50, 0o6755, &["user.a", "system.posix_acl_access"]);
        assert_eq!(fit.fit(own.clone()), own);
        assert_eq!((fit.beyond_user(), fit.left_out().len()), (0, 0));
        let others = fit.fit(entry(0, 0, 0o6755, &["security.capability", "trusted.t", "user.a"]));
        assert_eq!((others.uid, others.gid, others.mode, others.xattrs.len()), (1000, 1000, 0o755, 1));
        let left_out = fit.left_out();
        let told: Vec<_> = left_out.iter().map(|it| it.what.as_str()).collect();
        assert_eq!(
            told,
            ["group", "owner", "security.capability", "set-group-id", "set-user-id", "trusted.t"]
        );
        assert!(left_out.iter().all(|it| it.example == "d/f"), "{left_out:?}");
        assert_eq!(fit.beyond_user(), 1);
        let plain = fit.fit(entry(0, 0, 0o644, &["user.a"]));
        assert_eq!((plain.uid, plain.gid, fit.beyond_user()), (1000, 1000, 1), "its owner alone is no fault");
    }

    #[test]
    fn an_operator_leaves_out_attributes_by_their_names() {
        let options = Options { ignore_attributes: vec!["user.big*".into()], ..Options::default() };
        let mut fit = Fit::with(&options, None, None);
        let kept = fit.fit(entry(5, 6, 0o6755, &["user.a", "user.big1", "trusted.t"]));
        assert_eq!((kept.uid, kept.gid, kept.mode, kept.xattrs.len()), (5, 6, 0o6755, 2));
        assert_eq!((fit.left_out()[0].what.as_str(), fit.beyond_user()), ("user.big1", 0));
    }
}
