//! Where the files of a Subversion repository (FSFS) keep which revisions, and the ranges in which revisions are verified.
//!
//! A revision is written once, and refers to older ones only: `svnadmin verify -r A:B` reads deltas, directories and nodes of any
//! revision up to B and of none behind it, the properties of A to B, and whole packs. So a range depends on every file of the revisions
//! up to its last, on the properties of its own revisions, and on the files that all revisions share.

/// Revisions of a range where they are not packed. A pack is verified as a whole, and so is a range of its own.
const RANGE: u64 = 100;
/// With more ranges than this they become ten times longer.
const MAX_RANGES: u64 = 10_000;
/// Numbers above this are of no repository.
const MAX_REVISION: u64 = 1 << 32;
/// The newest format of FSFS whose files are known here, and the oldest that has shards.
const FORMATS: std::ops::RangeInclusive<u32> = 3..=8;

/// How a repository keeps its revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Revisions of a shard; `None`: all are in one folder.
    shard: Option<u64>,
    /// Older revisions are packed.
    min_unpacked: u64,
    /// The newest revision.
    youngest: u64,
    /// Revisions of a range that is not packed.
    range: u64,
}

/// Revisions `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Revisions {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl std::fmt::Display for Revisions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.first, self.last)
    }
}

impl std::str::FromStr for Revisions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once(':').map(|(first, last)| (first.parse(), last.parse()));
        match numbers {
            Some((Ok(first), Ok(last))) if first <= last => Ok(Self { first, last }),
            _ => Err("must be FIRST:LAST, two revisions in their order".to_owned()),
        }
    }
}

/// Joins ranges that follow each other.
pub(super) fn join(mut ranges: Vec<Revisions>) -> Vec<Revisions> {
    ranges.sort_unstable();
    let mut joined: Vec<Revisions> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(before) if range.first <= before.last.saturating_add(1) => {
                before.last = before.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// What a file or folder of the repository means for its ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Every range depends on it. So it is with whatever is not known.
    Common,
    /// Content of revisions from this one on: ranges that end before it do not depend on it.
    Content(u64),
    /// Properties of one revision.
    Properties(u64),
    /// Properties of the revisions of a shard, by its first.
    PackedProperties(u64),
    /// No range depends on it: the check puts its own in its place, or verifying never reads it, or each check looks at it.
    Unread,
}

impl Layout {
    /// From what `db/format`, `db/min-unpacked-rev` (0 where there is no such file) and `db/current` hold. `None` for what is not known.
    pub(crate) fn read(format: &[u8], min_unpacked: &[u8], current: &[u8]) -> Option<Self> {
        let format = std::str::from_utf8(format).ok()?;
        let mut lines = format.lines();
        lines.next()?.parse().ok().filter(|number| FORMATS.contains(number))?;
        let layout = lines.find_map(|line| line.strip_prefix("layout "))?;
        let shard = match layout.split_once(' ') {
            None if layout == "linear" => None,
            Some(("sharded", size)) => Some(number(size).filter(|size| *size > 0)?),
            _ => return None,
        };
        // One line with its end: of a file that was cut off, Subversion reads no number.
        let first = |text: &[u8]| {
            let line = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
            number(line.split(' ').next().filter(|_| !line.contains('\n'))?)
        };
        let min_unpacked = first(min_unpacked)?;
        let youngest = first(current)?;
        let packs_whole = shard.map_or(min_unpacked == 0, |shard| min_unpacked.is_multiple_of(shard));
        if !packs_whole || min_unpacked > youngest.saturating_add(1) {
            return None;
        }
        let mut range = RANGE;
        while youngest / range >= MAX_RANGES {
            range *= 10;
        }
        Some(Self { shard, min_unpacked, youngest, range })
    }

    /// First and last revision of the shard of `revision`.
    fn shard_of(&self, revision: u64) -> Revisions {
        match self.shard {
            None => Revisions { first: 0, last: MAX_REVISION },
            Some(shard) => {
                let first = revision / shard * shard;
                Revisions { first, last: first + shard - 1 }
            }
        }
    }

    /// The range of a revision, whether the repository has all of it or not.
    fn around(&self, revision: u64) -> Revisions {
        let shard = self.shard_of(revision);
        if revision < self.min_unpacked {
            return shard;
        }
        let first = shard.first + (revision - shard.first) / self.range * self.range;
        Revisions { first, last: shard.last.min(first + self.range - 1) }
    }

    /// The first revision of the range that `revision` is in.
    pub(crate) fn range_of(&self, revision: u64) -> u64 {
        self.around(revision).first
    }

    /// All ranges up to the newest revision, in their order. `None` when there are too many.
    pub(crate) fn ranges(&self) -> Option<Vec<Revisions>> {
        let mut ranges = Vec::new();
        let mut first = 0;
        while first <= self.youngest {
            if ranges.len() as u64 > 2 * MAX_RANGES {
                return None;
            }
            let last = self.around(first).last;
            ranges.push(Revisions { first, last: last.min(self.youngest) });
            first = last + 1;
        }
        Some(ranges)
    }

    /// The first revision of the shard of `revision`.
    pub(crate) fn shard_start(&self, revision: u64) -> u64 {
        self.shard_of(revision).first
    }

    /// What `db/min-unpacked-rev` says of the revisions up to `last`.
    pub(crate) fn packed_up_to(&self, last: u64) -> u64 {
        self.min_unpacked.min(self.shard_of(last).last.saturating_add(1))
    }

    /// What the file or folder at `path`, relative to the repository, means.
    pub(crate) fn place(&self, path: &[u8]) -> Place {
        let Ok(path) = std::str::from_utf8(path) else { return place_of_other(path) };
        let (kind, rest) = match path.split_once('/') {
            Some(("db", rest)) => rest.split_once('/').unwrap_or((rest, "")),
            _ => return place_of_other(path.as_bytes()),
        };
        match kind {
            "revs" => self.numbered(rest).map_or(Place::Common, |(revision, _)| Place::Content(revision)),
            "revprops" => match self.numbered(rest) {
                Some((revision, false)) => Place::Properties(revision),
                Some((shard, true)) => Place::PackedProperties(shard),
                None => Place::Common,
            },
            _ => place_of_other(path.as_bytes()),
        }
    }

    /// The revision of `SHARD/REVISION` or `REVISION`, or the first one of a shard (true) whose folder it is, or in whose pack it lies.
    fn numbered(&self, rest: &str) -> Option<(u64, bool)> {
        let Some(shard) = self.shard else { return Some((number(rest)?, false)) };
        let (folder, file) = rest.split_once('/').unwrap_or((rest, ""));
        let first = |folder: &str| number(folder)?.checked_mul(shard).filter(|first| *first <= MAX_REVISION);
        if let Some(folder) = folder.strip_suffix(".pack") {
            return Some((first(folder)?, true));
        }
        let first = first(folder)?;
        match file {
            "" => Some((first, true)),
            file => {
                let revision = number(file)?;
                (first..first + shard).contains(&revision).then_some((revision, false))
            }
        }
    }
}

/// A number as Subversion writes it in names.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number <= MAX_REVISION && number.to_string() == text).then_some(number)
}

/// The place of a file outside of `db/revs` and `db/revprops`.
fn place_of_other(path: &[u8]) -> Place {
    // Their content changes with every commit or lock. The check has its own fsfs.conf and no cache, `db/current` says which ranges there
    // are and is looked at by each check, and the others are for commits and locks, which verifying does not meet.
    const UNREAD: [&str; 9] = [
        "current",
        "fsfs.conf",
        "locks",
        "node-origins",
        "pack-lock",
        "transactions",
        "txn-current",
        "txn-current-lock",
        "txn-protorevs",
    ];
    let Some(in_db) = path.strip_prefix(b"db/") else {
        // The check has no other folders of the copy before it, only `format` and `db`.
        return if path.is_empty() || path == b"format" || path == b"db" {
            Place::Common
        } else {
            Place::Unread
        };
    };
    let name = in_db.split(|byte| *byte == b'/').next().unwrap_or_default();
    let is_unread = UNREAD.iter().any(|it| it.as_bytes() == name)
        || name == b"write-lock"
        || name.starts_with(b"rep-cache.db")
        // What it says of each range is in the range's own inputs.
        || name == b"min-unpacked-rev";
    if is_unread { Place::Unread } else { Place::Common }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(format: &str, min_unpacked: &str, current: &str) -> Option<Layout> {
        Layout::read(format.as_bytes(), min_unpacked.as_bytes(), current.as_bytes())
    }

    fn sharded(min_unpacked: u64, youngest: u64) -> Layout {
        let format = "8\nlayout sharded 1000\naddressing logical\n";
        layout(format, &format!("{min_unpacked}\n"), &format!("{youngest}\n")).expect("a layout")
    }

    #[test]
    fn an_unknown_format_has_no_layout() {
        assert!(layout("6\nlayout linear\n", "0\n", "12 4 5\n").is_some());
        for (format, min_unpacked, current) in [
            ("9\nlayout sharded 1000\n", "0\n", "3\n"),
            ("2\n", "", "3 a b\n"),
            ("8\n", "0\n", "3\n"),
            ("8\nlayout sharded 0\n", "0\n", "3\n"),
            ("8\nlayout sharded 1000 2\n", "0\n", "3\n"),
            ("8\nlayout striped 1000\n", "0\n", "3\n"),
            ("8\nlayout sharded 1000\n", "1\n", "3000\n"),
            ("8\nlayout sharded 1000\n", "5000\n", "3000\n"),
            ("8\nlayout linear\n", "1000\n", "3000\n"),
            ("8\nlayout sharded 1000\n", "many\n", "3\n"),
            ("8\nlayout sharded 1000\n", "0\n", "many\n"),
            ("8\nlayout sharded 1000\n", "0\n", ""),
            ("8\nlayout sharded 1000\n", "0", "3\n"),
            ("8\nlayout sharded 1000\n", "0\n", "3"),
            ("8\nlayout sharded 1000\n", "0\n0\n", "3\n"),
            ("8\nlayout sharded 1000\n", "0\n", "+3\n"),
            ("8\nlayout sharded 1000\n", "0\n", "99999999999999999999\n"),
            ("8\nlayout sharded 1000\n", "0\n", "1000000000000\n"),
        ] {
            assert_eq!(
                layout(format, min_unpacked, current),
                None,
                "{format:?} {min_unpacked:?} {current:?}"
            );
        }
    }

    /// Ranges follow each other without a gap, end at the newest revision, and begin anew with each shard and pack.
    #[test]
    fn ranges_cover_every_revision_once() {
        let shown = |layout: Layout| {
            let ranges: Vec<_> = layout.ranges().expect("few").iter().map(ToString::to_string).collect();
            ranges.join(" ")
        };
        assert_eq!(shown(sharded(0, 0)), "0:0");
        assert_eq!(shown(sharded(0, 250)), "0:99 100:199 200:250");
        assert_eq!(shown(sharded(1000, 1100)), "0:999 1000:1099 1100:1100");
        assert_eq!(shown(sharded(1000, 999)), "0:999");
        let small = layout("8\nlayout sharded 4\n", "4\n", "9\n").expect("a layout");
        assert_eq!(shown(small), "0:3 4:7 8:9");
        let linear = layout("4\nlayout linear\n", "0\n", "150\n").expect("a layout");
        assert_eq!(shown(linear), "0:99 100:150");
        for youngest in [999_999, 1_000_000, 50_000_000] {
            let ranges = sharded(0, youngest).ranges().map(|it| it.len());
            assert!(ranges.is_none_or(|count| count <= 20_001), "{youngest}: {ranges:?}");
        }
    }

    #[test]
    fn each_file_belongs_to_the_ranges_that_read_it() {
        use Place::{Common, Content, PackedProperties, Properties, Unread};
        let layout = sharded(1000, 2500);
        for (path, place) in [
            ("", Common),
            ("format", Common),
            ("db", Common),
            ("db/format", Common),
            ("db/fs-type", Common),
            ("db/uuid", Common),
            ("db/something-new", Common),
            ("db/revs", Common),
            ("db/revprops", Common),
            ("db/revs/2", Content(2000)),
            ("db/revs/2/2345", Content(2345)),
            ("db/revs/0.pack", Content(0)),
            ("db/revs/0.pack/pack", Content(0)),
            ("db/revs/0.pack/manifest", Content(0)),
            ("db/revprops/2/2345", Properties(2345)),
            ("db/revprops/0/0", Properties(0)),
            ("db/revprops/0", PackedProperties(0)),
            ("db/revprops/0.pack/1.0", PackedProperties(0)),
            // A revision in another shard's folder, and names that Subversion does not write.
            ("db/revs/1/2345", Common),
            ("db/revs/2/02345", Common),
            ("db/revs/2/2345.tmp", Common),
            ("db/revs/-1/5", Common),
            ("db/current", Unread),
            ("db/min-unpacked-rev", Unread),
            ("db/fsfs.conf", Unread),
            ("db/rep-cache.db-journal", Unread),
            ("db/transactions/3-4.txn/node.0.0", Unread),
            ("db/locks/abc/d", Unread),
            ("db/write-lock", Unread),
            ("hooks/pre-commit", Unread),
            ("conf/authz", Unread),
            ("db.old/revs/0/1", Unread),
        ] {
            assert_eq!(layout.place(path.as_bytes()), place, "{path}");
        }
        assert_eq!(layout.place(b"db/revs/\xff"), Common);
        assert_eq!((layout.range_of(999), layout.range_of(1000), layout.range_of(2345)), (0, 1000, 2300));
        assert_eq!((layout.packed_up_to(999), layout.packed_up_to(2500)), (1000, 1000));
        assert_eq!(sharded(2000, 2500).packed_up_to(999), 1000);
        let linear = super::tests::layout("4\nlayout linear\n", "0\n", "150\n").expect("a layout");
        assert_eq!(linear.place(b"db/revs/12"), Content(12));
        assert_eq!(linear.place(b"db/revprops/12"), Properties(12));
    }

    #[test]
    fn ranges_that_follow_each_other_are_verified_together() {
        let parse = |text: &str| text.split(' ').map(|it| it.parse().expect("a range")).collect();
        let shown = |text: &str| {
            let joined: Vec<_> = join(parse(text)).iter().map(ToString::to_string).collect();
            joined.join(" ")
        };
        assert_eq!(shown("0:99 100:199 300:399"), "0:199 300:399");
        assert_eq!(shown("300:399 0:99 100:100"), "0:100 300:399");
        assert_eq!(shown("0:99 50:120"), "0:120");
        for bad in ["", "5", "5:", ":5", "6:5", "-1:5", "a:b"] {
            assert!(bad.parse::<Revisions>().is_err(), "{bad}");
        }
    }
}
