//! How much a run may make us hold: within the repository's quotas, and not into the room that the store's file system is to keep. Everything
//! is claimed before it is written: content and its files as they come, the manifest and what the tree takes beside content as the seal
//! puts them together. What a refused seal claimed is given back when what it wrote has been removed.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use assay_common::config::Size;

use super::ReceiveError;
use crate::{
    ahead::copies::Copies,
    store::{Staging, file_system_bytes, free_bytes, inodes},
};

/// Free space is looked at again when half of it has been written, but for so many bytes at least, and at most: others write, too.
const LOOK_AGAIN_BYTES: [u64; 2] = [1024 * 1024, 64 * 1024 * 1024];

/// When less is free on the disk, copies that were made ahead are given up, in bytes. Whoever writes content makes room when it meets a full
/// disk; who writes the chunk index or a manifest cannot, and would end the run for what is only there to make it faster.
const COPIES_LEAVE_BYTES: u64 = 16 * 1024 * 1024;

/// Files and folders that a repository may hold where nothing is said: half of what the file system can hold, or so many where it sets
/// no number (btrfs).
const ENTRIES_WITHOUT_NUMBER: u64 = 100_000_000;
/// Of the files and folders that the file system can hold, a run leaves one in so many free.
pub(crate) const FREE_ENTRIES_PART: u64 = 20;
/// How many free ones there are is looked at again after so many.
const LOOK_AGAIN_ENTRIES: u64 = 4096;

/// What a run leaves free where nothing is said: one in so many bytes of the file system, and so many at most.
const RESERVE_PART: u64 = 20;
const MOST_RESERVE_BYTES: u64 = 1024 * 1024 * 1024;

/// What a run leaves free on the file system of `store`: what is configured, else a twentieth, and a gibibyte at most. A source alone must
/// not be able to fill a disk.
pub fn reserve(configured: Option<Size>, store: &Path) -> Size {
    configured.unwrap_or_else(|| {
        let part = (file_system_bytes(store).unwrap_or(0) / RESERVE_PART).min(MOST_RESERVE_BYTES);
        // A number that people can read.
        Size(part - part % (1024 * 1024))
    })
}

/// How many files and folders a repository may hold: what is configured, else half of what the file system of `store` can.
pub fn quota_entries(configured: Option<u64>, store: &Path) -> u64 {
    configured.unwrap_or_else(|| inodes(store).map_or(ENTRIES_WITHOUT_NUMBER, |(all, _)| all / 2))
}

/// What is held only to make runs faster: it counts, and is given up when a run has no room beside it.
pub struct Spare {
    bytes: AtomicU64,
    entries: AtomicU64,
    /// What has arrived is found by it, so that a run which met a full disk can go on later.
    finds_arrived: bool,
    give_up: Box<dyn Fn() -> Result<(), ReceiveError> + Send + Sync>,
}

impl Spare {
    /// So much is held, and this is how it is given up.
    pub fn new(
        (bytes, entries): (u64, u64),
        give_up: impl Fn() -> Result<(), ReceiveError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            bytes: AtomicU64::new(bytes),
            entries: AtomicU64::new(entries),
            finds_arrived: false,
            give_up: Box::new(give_up),
        }
    }

    /// It is given up for the quota, and not for a full disk: what has arrived is found by it.
    pub fn that_finds_what_arrived(mut self) -> Self {
        self.finds_arrived = true;
        self
    }

    /// True if there was something to give up.
    fn forget(&self) -> Result<bool, ReceiveError> {
        let held = [&self.bytes, &self.entries].map(|count| count.load(Ordering::Relaxed));
        if held == [0, 0] {
            return Ok(false);
        }
        (self.give_up)()?;
        self.bytes.store(0, Ordering::Relaxed);
        self.entries.store(0, Ordering::Relaxed);
        Ok(true)
    }
}

impl std::fmt::Debug for Spare {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Spare").field("bytes", &self.bytes).field("entries", &self.entries).finish()
    }
}

/// What one session may write. What earlier sessions left is there to be found as long as there is room beside it: when there is
/// none left, it goes, and what comes now counts.
#[derive(Debug)]
pub struct Allowance {
    quota: Option<Size>,
    /// Bytes of content that the repository's generations hold.
    stored: u64,
    reserve: Size,
    staging: Arc<Staging>,
    copies: Arc<Copies>,
    /// [`COPIES_LEAVE_BYTES`].
    copies_leave: u64,
    /// Bytes that earlier sessions left.
    earlier: AtomicU64,
    written: AtomicU64,
    made_room: AtomicU64,
    /// When so much has been written, free space is looked at again.
    look_at: AtomicU64,
    turn: Mutex<()>,
    entries: Entries,
    spare: Vec<Spare>,
    elsewhere: Elsewhere,
}

/// How other repositories make room on the disk; true if there was anything to give up.
struct Elsewhere(Box<dyn Fn() -> bool + Send + Sync>);

impl std::fmt::Debug for Elsewhere {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Elsewhere")
    }
}

/// Files and folders.
#[derive(Debug)]
struct Entries {
    quota: u64,
    /// Those of the repository's generations.
    held: u64,
    /// Those that earlier sessions left.
    earlier: AtomicU64,
    made: AtomicU64,
    look_at: AtomicU64,
}

impl Allowance {
    /// At most what is missing to `quota` beside the `stored` bytes, and with at least `reserve` free on the file system of
    /// `staging`.
    pub fn new(
        quota: Option<Size>,
        stored: u64,
        reserve: Size,
        (staging, copies): (Arc<Staging>, Arc<Copies>),
    ) -> Self {
        let (earlier, earlier_entries) = staging.staged();
        let earlier = AtomicU64::new(earlier);
        let (made, entries_look_at) = Default::default();
        let entries = Entries {
            quota: quota_entries(None, staging.path()),
            held: 0,
            earlier: AtomicU64::new(earlier_entries),
            made,
            look_at: entries_look_at,
        };
        let (written, made_room, look_at, turn) = Default::default();
        let copies_leave = COPIES_LEAVE_BYTES;
        Self {
            quota,
            stored,
            reserve,
            staging,
            copies,
            copies_leave,
            earlier,
            written,
            made_room,
            look_at,
            turn,
            entries,
            spare: Vec::new(),
            elsewhere: Elsewhere(Box::new(|| false)),
        }
    }

    /// With a way in which other repositories make room on the disk, when nothing of this one is left to go.
    #[must_use]
    pub fn with_elsewhere(mut self, make_room: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.elsewhere = Elsewhere(Box::new(make_room));
        self
    }

    /// With what is held only to make runs faster.
    #[must_use]
    pub fn with_spare(mut self, spare: Vec<Spare>) -> Self {
        self.spare = spare;
        self
    }

    fn spare(&self, count: impl Fn(&Spare) -> &AtomicU64) -> u64 {
        self.spare.iter().map(|spare| count(spare).load(Ordering::Relaxed)).fold(0, u64::saturating_add)
    }

    /// With a quota of files and folders, where one is set, and with so many that the repository holds.
    #[must_use]
    pub fn with_entries(mut self, quota: Option<u64>, held: u64) -> Self {
        self.entries.quota = quota.unwrap_or(self.entries.quota);
        self.entries.held = held;
        self
    }

    /// Takes files and folders that are about to be made.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn claim_entries(&self, count: u64) -> Result<(), ReceiveError> {
        let before = self.entries.made.fetch_add(count, Ordering::Relaxed);
        self.is_room_for_entries(before, count).or_else(|_| {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let mut is_room = self.is_room_for_entries(before, count);
            if is_room.is_err() && self.forget_earlier(false)? {
                is_room = self.is_room_for_entries(before, count);
            }
            match is_room {
                Err(ReceiveError::ReserveEntries { .. }) if self.forget_elsewhere() => {
                    self.is_room_for_entries(before, count)
                }
                is_room => is_room,
            }
        })
    }

    fn is_room_for_entries(&self, before: u64, count: u64) -> Result<(), ReceiveError> {
        let Entries { quota, held, earlier, look_at, .. } = &self.entries;
        let spare = self.spare(|spare| &spare.entries);
        let all = [earlier.load(Ordering::Relaxed), spare, before, count];
        if all.into_iter().fold(*held, u64::saturating_add) > *quota {
            return Err(ReceiveError::QuotaEntries { quota: *quota });
        }
        if before < look_at.load(Ordering::Relaxed) {
            return Ok(());
        }
        if let Some((all, free)) = inodes(self.staging.path())
            && free < (all / FREE_ENTRIES_PART).saturating_add(count)
        {
            return Err(ReceiveError::ReserveEntries { reserve: all / FREE_ENTRIES_PART, free });
        }
        look_at.store(before.saturating_add(LOOK_AGAIN_ENTRIES), Ordering::Relaxed);
        Ok(())
    }

    /// Gives back what was claimed for what has been removed, or was not made after all.
    pub fn give_back(&self, bytes: u64, entries: u64) {
        let less = |count: &AtomicU64, by: u64| {
            count
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count.saturating_sub(by)))
                .ok();
        };
        less(&self.written, bytes);
        less(&self.entries.made, entries);
    }

    /// Takes bytes that are about to be written.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn claim(&self, bytes: u64) -> Result<(), ReceiveError> {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        self.is_room(before, bytes).or_else(|_| {
            // Others may find the same; one of them makes room.
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let mut is_room = self.is_room(before, bytes);
            let Err(error) = &is_room else { return is_room };
            let of_quota = matches!(error, ReceiveError::Quota { .. });
            if self.forget_earlier(of_quota)? {
                is_room = self.is_room(before, bytes);
            }
            match is_room {
                Err(ReceiveError::Reserve { .. }) if self.forget_elsewhere() => self.is_room(before, bytes),
                is_room => is_room,
            }
        })
    }

    /// Takes the bytes of a file that is on the disk already, if the quota has room for them.
    pub fn claim_copied(&self, bytes: u64) -> bool {
        self.entries.made.fetch_add(1, Ordering::Relaxed);
        let more = |before| self.is_within_quota(before, bytes).is_ok().then(|| before.saturating_add(bytes));
        self.written.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// How often room has been made.
    pub fn made_room(&self) -> u64 {
        self.made_room.load(Ordering::Relaxed)
    }

    /// Makes room on a disk that was found to be full, by somebody who began when room had been made `before` times. False when
    /// there is nothing to be removed, and nobody has removed anything since.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn make_room(&self, before: u64) -> Result<bool, ReceiveError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.made_room() > before || self.forget_earlier(false)? || self.forget_elsewhere())
    }

    /// Other repositories give up what their abandoned runs left. True if there was any of it.
    fn forget_elsewhere(&self) -> bool {
        let freed = (self.elsewhere.0)();
        self.made_room.fetch_add(u64::from(freed), Ordering::Relaxed);
        freed
    }

    fn is_within_quota(&self, before: u64, bytes: u64) -> Result<(), ReceiveError> {
        let spare = self.spare(|spare| &spare.bytes);
        let held = [self.earlier.load(Ordering::Relaxed), spare, before, bytes];
        let held = held.into_iter().fold(self.stored, u64::saturating_add);
        if let Some(quota) = self.quota.filter(|quota| held > quota.0) {
            return Err(ReceiveError::Quota { quota });
        }
        Ok(())
    }

    fn is_room(&self, before: u64, bytes: u64) -> Result<(), ReceiveError> {
        self.is_within_quota(before, bytes)?;
        let holds_copies = self.copies.are_there();
        let leave = if holds_copies { self.copies_leave.max(self.reserve.0) } else { self.reserve.0 };
        if leave == 0 || before < self.look_at.load(Ordering::Relaxed) {
            return Ok(());
        }
        let look = || free_bytes(self.staging.path()).unwrap_or(u64::MAX);
        let mut free = look();
        if holds_copies && free.saturating_sub(bytes) < leave {
            self.made_room.fetch_add(u64::from(self.copies.forget()?), Ordering::Relaxed);
            free = look();
        }
        if self.reserve.0 > 0 && free < self.reserve.0.saturating_add(bytes) {
            return Err(ReceiveError::Reserve { reserve: self.reserve, free: Size(free) });
        }
        let [least, most] = LOOK_AGAIN_BYTES;
        let step = (free.saturating_sub(leave) / 2).clamp(least, most);
        self.look_at.store(before.saturating_add(step), Ordering::Relaxed);
        Ok(())
    }

    /// Gives up what makes runs faster, and removes what earlier sessions left. True if there was any of it.
    fn forget_earlier(&self, for_quota: bool) -> Result<bool, ReceiveError> {
        let mut forgotten = self.copies.forget()?;
        for spare in self.spare.iter().filter(|spare| for_quota || !spare.finds_arrived) {
            forgotten |= spare.forget()?;
        }
        if self.earlier.load(Ordering::Relaxed) == 0 {
            self.made_room.fetch_add(u64::from(forgotten), Ordering::Relaxed);
            return Ok(forgotten);
        }
        tracing::info!("there is no room beside what earlier attempts left: it is removed");
        self.staging.forget_earlier()?;
        self.earlier.store(0, Ordering::Relaxed);
        self.entries.earlier.store(0, Ordering::Relaxed);
        // Files that this session had taken over are still there, and are not among what it wrote.
        let (bytes, entries) = self.staging.staged();
        let kept = bytes.saturating_sub(self.written.load(Ordering::Relaxed));
        self.written.fetch_add(kept, Ordering::Relaxed);
        let kept = entries.saturating_sub(self.entries.made.load(Ordering::Relaxed));
        self.entries.made.fetch_add(kept, Ordering::Relaxed);
        self.made_room.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use assay_common::id::GenerationNumber;

    use super::*;
    use crate::{
        ahead::copies,
        keep::bench::{Bench, Tree},
        store::Store,
    };

    /// A staging area in which an earlier session left so many bytes.
    fn staging(left: usize) -> (tempfile::TempDir, (Arc<Staging>, Arc<Copies>)) {
        let folder = tempfile::tempdir().expect("temp");
        let store = Store::open_or_create(folder.path()).expect("store");
        let earlier = store.open_staging().expect("staging");
        let mut file = earlier.open_content(1).expect("create");
        std::io::Write::write_all(&mut file, &vec![1; left]).expect("write");
        file.sync_all().expect("blocks are counted when they are on disk");
        let copies = Copies::open(&store.path().join("copies")).expect("copies");
        (folder, (Arc::new(store.open_staging().expect("staging")), Arc::new(copies)))
    }

    #[test]
    fn a_quota_counts_what_is_held_and_what_is_written() {
        let (_folder, staging) = staging(0);
        let allowance = Allowance::new(Some(Size(100)), 70, Size(0), staging.clone());
        allowance.claim(20).expect("90");
        allowance.claim(10).expect("100");
        let refused = allowance.claim(1).expect_err("101");
        assert!(matches!(refused, ReceiveError::Quota { quota: Size(100) }), "{refused}");
        Allowance::new(None, u64::MAX, Size(0), staging).claim(u64::MAX).expect("no quota");
    }

    #[test]
    fn files_and_folders_have_a_quota_of_their_own_and_come_back_when_they_are_removed() {
        let (_folder, staging) = staging(0);
        // The session's own folder was there before anything was claimed.
        let left = staging.0.staged().1;
        let allowance = Allowance::new(None, 0, Size(0), staging.clone()).with_entries(Some(left + 100), 40);
        allowance.claim_entries(60).expect("100");
        let refused = allowance.claim_entries(1).expect_err("101");
        assert!(matches!(refused, ReceiveError::QuotaEntries { .. }), "{refused}");
        allowance.give_back(0, 31);
        allowance.claim_entries(30).expect("100");
        let unsaid = Allowance::new(None, 0, Size(0), staging).with_entries(None, 0);
        unsaid.claim_entries(u64::MAX / 2).expect_err("no file system has so many");
    }

    /// The chunk index and the tree laid out ahead are within both quotas, and are given up before a run is refused.
    #[test]
    fn data_that_only_makes_runs_faster_counts_and_goes_first() {
        let (_folder, staging) = staging(0);
        let left = staging.0.staged().1;
        let gone = Arc::new(AtomicU64::new(0));
        let spare = |bytes, entries| {
            let gone = Arc::clone(&gone);
            let give_up = move || {
                gone.fetch_add(1, Ordering::Relaxed);
                Ok(())
            };
            vec![Spare::new((bytes, entries), give_up), Spare::new((0, 0), || panic!("there is nothing"))]
        };
        let allowance =
            Allowance::new(Some(Size(100)), 20, Size(0), staging.clone()).with_spare(spare(60, 0));
        allowance.claim(20).expect("100");
        assert_eq!(gone.load(Ordering::Relaxed), 0);
        allowance.claim(60).expect("100 without it");
        assert_eq!(gone.load(Ordering::Relaxed), 1);
        allowance.claim(1).expect_err("there is nothing more to give up");
        assert_eq!(gone.load(Ordering::Relaxed), 1);
        let entries = Allowance::new(None, 0, Size(0), staging)
            .with_entries(Some(left + 100), 40)
            .with_spare(spare(0, 50));
        entries.claim_entries(10).expect("100");
        assert_eq!(gone.load(Ordering::Relaxed), 1);
        entries.claim_entries(50).expect("100 without it");
        assert_eq!(gone.load(Ordering::Relaxed), 2);
    }

    /// The disk is everybody's: what abandoned runs of other repositories left goes when nothing of this one is left. A quota is its own.
    #[test]
    fn other_repositories_make_room_on_the_disk_and_not_in_a_quota() {
        let (_folder, staging) = staging(100_000);
        let asked = Arc::new(AtomicU64::new(0));
        let elsewhere = |answer: bool| {
            let asked = Arc::clone(&asked);
            move || {
                asked.fetch_add(1, Ordering::Relaxed);
                answer
            }
        };
        let of_quota =
            Allowance::new(Some(Size(1)), 1, Size(0), staging.clone()).with_elsewhere(elsewhere(true));
        of_quota.claim(1).expect_err("a quota");
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        let of_disk = Allowance::new(None, 0, Size(u64::MAX), staging).with_elsewhere(elsewhere(false));
        of_disk.claim(1).expect_err("no disk has so much");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let before = of_disk.made_room();
        assert!(!of_disk.make_room(before).expect("nothing is left") && asked.load(Ordering::Relaxed) == 2);
    }

    #[test]
    fn a_reserve_that_nobody_set_is_a_part_of_the_file_system() {
        let folder = tempfile::tempdir().expect("temp");
        let unsaid = reserve(None, folder.path()).0;
        assert!(unsaid > 0 && unsaid <= MOST_RESERVE_BYTES, "{unsaid}");
        assert_eq!(reserve(Some(Size(0)), folder.path()), Size(0));
        assert_eq!(reserve(Some(Size(7)), folder.path()), Size(7));
    }

    #[test]
    fn the_reserve_is_looked_at_with_the_first_byte_and_then_now_and_again() {
        let (_folder, staging) = staging(0);
        let none = Allowance::new(None, 0, Size(u64::MAX), staging.clone());
        for _ in 0..2 {
            let refused = none.claim(1).expect_err("no disk has so much");
            assert!(matches!(refused, ReceiveError::Reserve { .. }), "{refused}");
        }
        let some = Allowance::new(None, 0, Size(1), staging);
        some.claim(1).expect("there is more than two bytes");
        let next = some.look_at.load(Ordering::Relaxed);
        assert!((LOOK_AGAIN_BYTES[0]..=LOOK_AGAIN_BYTES[1]).contains(&next), "{next}");
        some.claim(u64::MAX / 2).expect("not looked at again so soon");
        some.claim(u64::MAX / 4).expect_err("no disk has so much");
    }

    /// The chunk index makes no room for itself: copies go before it needs any.
    #[test]
    fn copies_go_before_the_disk_is_full() {
        let bench = Bench::new(None);
        let large = vec![7; copies::LEAST_BYTES as usize];
        bench.seal_written(&Tree::from([("large", &large[..])]), jiff::Timestamp::now().as_second());
        let (store, copies) = (&bench.repository.store, Arc::clone(&bench.repository.copies));
        let room = copies::Room { most: u64::MAX, reserve: 0 };
        copies.prepare(store, GenerationNumber(1), room, &copies.begin()).expect("prepare");
        let staging = Arc::new(store.open_staging().expect("staging"));
        let mut allowance = Allowance::new(None, 0, Size(0), (staging, Arc::clone(&copies)));
        allowance.claim(1).expect("written");
        assert!(copies.are_there(), "there is room for both");
        let next = allowance.look_at.load(Ordering::Relaxed);
        allowance.copies_leave = u64::MAX;
        allowance.claim(next - 2).expect("not looked at so soon");
        assert!(copies.are_there());
        allowance.claim(2).expect("written");
        allowance.claim(1).expect("nothing is refused for them");
        assert!(!copies.are_there() && allowance.made_room() == 1);
    }

    /// A run that failed for want of room must not be what the next one fails for.
    #[test]
    fn what_earlier_sessions_left_goes_when_there_is_no_room_beside_it() {
        let (_folder, staging) = staging(100_000);
        let left = staging.0.staged_bytes();
        assert!(left >= 100_000);
        let allowance = Allowance::new(Some(Size(left + 50_000)), 0, Size(0), staging.clone());
        allowance.claim(50_000).expect("beside it");
        assert_eq!(staging.0.staged_bytes(), left);
        allowance.claim(60_000).expect("in its place");
        assert_eq!(staging.0.staged_bytes(), 0);
        let refused = allowance.claim(100_000).expect_err("now there is nothing to be removed");
        assert!(matches!(refused, ReceiveError::Quota { .. }), "{refused}");
        assert!(!allowance.make_room(allowance.made_room()).expect("nothing to do"));
        assert!(
            allowance.make_room(0).expect("nothing to do"),
            "who was there before the room was made tries again"
        );
    }
}
