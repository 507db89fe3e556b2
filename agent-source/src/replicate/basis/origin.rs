//! The origin of a basis: whether the source read its entries from the live roots or from a snapshot. A snapshot has its own device numbers, and
//! its file times need more time at rest (docs/adr/0033-files-of-a-snapshot.md).

use std::{
    fs::{self, File},
    io::{self, BufReader, Read as _},
    path::PathBuf,
};

use assay_common::{
    closed,
    error::{IoContext as _, PathError},
};
use serde::{Deserialize, Serialize};

use super::{BasisFolder, SEEN_BYTES, Seen};

/// How long before the snapshot the last change of a file must be for the next run to trust it. The kernel sets a file's time when a write begins, and
/// one call may write 2 GiB. The part that the kernel writes after the snapshot gets no later time. A call takes less than minutes.
const RESTING_IN_SNAPSHOT: std::time::Duration = std::time::Duration::from_secs(15 * 60);

/// Says from which devices, and from which snapshot, the source read the entries of a basis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The devices of the roots, in the header's order.
    pub devices: Vec<u64>,
    /// When the source began to make the snapshot, as time since 1970; `None` if it read the live files.
    pub snapshot: Option<std::time::Duration>,
}

impl Origin {
    /// Translates an entry of this origin to `other`, which has the same roots. Each snapshot has its own device number, but inodes, sizes and times are
    /// those of the live files.
    ///
    /// The entry loses its trust, so that the next run reads the file, unless its file rested for [`RESTING_IN_SNAPSHOT`] before the snapshot.
    fn translate(&self, seen: Seen, other: &Self) -> Seen {
        let place = self.devices.iter().position(|device| *device == seen.device);
        let device = place.and_then(|place| other.devices.get(place)).copied().unwrap_or(seen.device);
        let ctime = std::time::Duration::new(u64::try_from(seen.ctime.0).unwrap_or(0), seen.ctime.1);
        let rests = |begun: std::time::Duration| {
            begun.checked_sub(ctime).is_some_and(|age| age >= RESTING_IN_SNAPSHOT)
        };
        let trusted = seen.trusted && self.snapshot.is_none_or(rests);
        Seen { device, trusted, ..seen }
    }

    /// True if entries can be translated from one to the other: both have as many roots, and the same roots share a device.
    fn is_comparable(&self, other: &Self) -> bool {
        let pairs = || self.devices.iter().zip(&other.devices);
        let is_one_device_each = pairs()
            .all(|(from, to)| pairs().all(|(other_from, other_to)| (from == other_from) == (to == other_to)));
        self.devices.len() == other.devices.len() && is_one_device_each
    }
}

impl BasisFolder {
    /// The file that holds the origin.
    pub(super) fn origin_path(&self) -> PathBuf {
        self.0.join("origin")
    }

    /// The origin of the entries; `None` if there is no file, or one that cannot be read.
    pub fn origin(&self) -> Option<Origin> {
        serde_json::from_slice(&fs::read(self.origin_path()).ok()?).ok()
    }

    /// Writes the origin of the entries.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_origin(&self, origin: &Origin) -> Result<(), PathError> {
        let text = serde_json::to_vec(origin).expect("numbers");
        closed::write(&self.origin_path(), text).at("write", &self.origin_path())
    }

    /// Translates all entries to the origin `now`, for a run that compares them with files there. Does nothing if neither is a snapshot. Entries of
    /// an unknown origin lose their trust, because the kernel may have given their device number to another device. The manifest stays as it is.
    ///
    /// # Errors
    /// When a file of the basis cannot be read or written.
    pub fn translate_to(&self, now: &Origin) -> Result<(), PathError> {
        let before = match self.origin() {
            // An older version made it, of live files.
            None if now.snapshot.is_none() && !self.origin_path().exists() => return Ok(()),
            Some(before) if before.snapshot.is_none() && now.snapshot.is_none() => {
                // Live files, before and now: the kernel's number of a device decides, as it does without an origin.
                if !before.devices.is_empty() {
                    return Ok(());
                }
                None
            }
            before => before.filter(|before| before.is_comparable(now)),
        };
        let (from, to) = (self.seen(), self.0.join("seen.new"));
        let file = match File::open(&from) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).at("open", &from),
        };
        let mut records = BufReader::with_capacity(64 * 1024, file);
        let mut translated = io::BufWriter::new(closed::create_file(&to).at("create", &to)?);
        let mut record = [0; SEEN_BYTES];
        loop {
            match records.read_exact(&mut record) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error).at("read", &from),
            }
            let seen = Seen::decode(&record);
            let seen =
                before.as_ref().map_or_else(|| seen.distrusted(), |before| before.translate(seen, now));
            io::Write::write_all(&mut translated, &seen.encode()).at("write", &to)?;
        }
        translated.into_inner().map_err(io::IntoInnerError::into_error).at("write", &to)?;
        // A crash from here on leaves entries of no known origin: all of them are read.
        self.set_origin(&Origin { devices: Vec::new(), snapshot: None })?;
        fs::rename(&to, &from).at("rename", &to)?;
        let snapshot = before.and_then(|before| before.snapshot);
        self.set_origin(&Origin { devices: now.devices.clone(), snapshot })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    /// Each snapshot has its own device number. Files that changed shortly before the snapshot lose their trust.
    #[test]
    fn a_basis_of_a_snapshot_is_translated_to_the_next_one() {
        let folder = tempfile::tempdir().expect("temp");
        let basis = BasisFolder::new(folder.path().join("basis"));
        let file = tempfile::NamedTempFile::new().expect("temp");
        let mut stat = rustix::fs::stat(file.path()).expect("stat");
        stat.st_ctime_nsec |= 1;
        let changed = changed(&stat);
        let of = |device: u64, snapshot| Origin { devices: vec![device, 7], snapshot };
        let looked_at = |device: u64| {
            stat.st_dev = device;
            Seen::new(&stat, changed + RESTING * 2)
        };
        let [old, new, beside] = [40, 50, 41].map(looked_at);
        // Where they were looked at, where the run looks at them, and what becomes of each.
        let rested = changed + RESTING_IN_SNAPSHOT;
        let (soon, early) = (Some(rested - TICK), Some(changed - RESTING));
        for (before, now, expected) in [
            (of(40, Some(rested)), of(50, Some(rested + RESTING)), new),
            (of(40, Some(rested)), of(50, None), new),
            (of(40, None), of(50, Some(changed)), new),
            (of(40, soon), of(50, None), new.distrusted()),
            (of(40, early), of(50, Some(changed)), new.distrusted()),
            // The number alone says nothing where no snapshot explains it.
            (of(40, None), of(50, None), old),
            // Two devices have become one.
            (of(40, Some(rested)), of(7, None), old.distrusted()),
            (Origin { devices: vec![40], snapshot: None }, of(50, Some(changed)), old.distrusted()),
            // What a crash left.
            (Origin { devices: Vec::new(), snapshot: None }, of(40, None), old.distrusted()),
        ] {
            basis.clear().expect("mkdir");
            fs::write(basis.seen(), [old.encode(), beside.encode()].concat()).expect("write");
            basis.set_origin(&before).expect("write");
            basis.translate_to(&now).expect("translated");
            let records = fs::read(basis.seen()).expect("read");
            let records: Vec<_> = records
                .chunks(SEEN_BYTES)
                .map(|record| Seen::decode(record.try_into().expect("49 bytes")))
                .collect();
            let told = format!("{before:?} {now:?}");
            assert_eq!(records.len(), 2, "{told}");
            let found = (records[0].file(), records[0].is_trusted());
            assert_eq!(found, (expected.file(), expected.is_trusted()), "{told}");
            assert_eq!(records[1].file(), beside.file(), "of no root: {told}");
        }
        // Without an origin: what an older version made is of live files.
        for (now, is_trusted) in [(of(60, None), true), (of(60, Some(changed)), false)] {
            fs::remove_file(basis.origin_path()).expect("remove");
            fs::write(basis.seen(), old.encode()).expect("write");
            basis.translate_to(&now).expect("translated");
            let record = fs::read(basis.seen()).expect("read");
            let seen = Seen::decode(record.as_slice().try_into().expect("49 bytes"));
            assert_eq!(seen.is_trusted(), is_trusted);
            fs::write(basis.origin_path(), "").expect("write");
        }
    }
}
