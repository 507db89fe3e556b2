//! When each file was read last on the live system, which of them have their turn to be read again, and what a run says of it.
//!
//! A file that has not changed is carried over without reading, and what happens to its bytes below the file system is seen by nobody.
//! So each run reads a share of the files that were read longest ago: as many bytes as it takes to come round within the time that the
//! configuration names. The share follows the time since the last run, so that however often runs come, each byte has its turn.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read as _, Write as _},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use assay_common::{
    cli::show,
    closed,
    error::{IoContext as _, PathError},
    verdict::coverage::length_in_words,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use self::clock::{ClockSince, Steady};
use super::basis::{BasisFolder, SEEN_BYTES, Seen};

mod clock;

/// A time, in milliseconds since 1970 by this host's clock.
pub type Moment = i64;
/// When a file was read of which that is not known: before everything else.
pub const UNKNOWN: Moment = 0;
/// What has no content to be read.
pub const NO_CONTENT: Moment = -1;
/// Size of a moment in the file of them.
const MOMENT_BYTES: usize = 8;
/// How much later than it should be a reading may be before that is told, in milliseconds.
const LATENESS: Moment = 60_000;
/// Longest pause between two blocks, so that a run that is cancelled ends soon.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// This host's clock.
pub fn now() -> Moment {
    jiff::Timestamp::now().as_millisecond()
}

/// How files are read again.
#[derive(Debug, Clone, Copy)]
pub struct Rereading {
    /// When the run began to read: the time of all its readings.
    pub started: Moment,
    /// Every byte is read again within this time; zero: never.
    pub within: Duration,
    /// Bytes that are read again in a second, at most.
    pub bytes_per_second: u64,
    /// How this host's clock went since the basis was made.
    pub clock: ClockSince,
}

impl Rereading {
    /// For a run that begins now, upon `basis`.
    pub fn begin(basis: Option<&BasisFolder>, within: Duration, bytes_per_second: u64) -> Self {
        let (started, steady) = (now(), Steady::now());
        let clock = ClockSince::new(basis.and_then(standing).as_ref(), started, steady);
        Self { started, within, bytes_per_second, clock }
    }

    /// Where reading again stands after a run that left so much of its share.
    pub fn end(&self, credit: f64) -> Standing {
        Standing { time: self.started, credit, steady: self.clock.steady() }
    }

    /// What an operator should know of a reading that is older than it should be: a file waits for its turn, for what fits into the
    /// share of a run, and for the next run.
    pub fn is_late(&self, readings: &Summary) -> Option<String> {
        let within = Moment::try_from(self.within.as_millis()).unwrap_or(Moment::MAX);
        let oldest = readings.oldest.filter(|_| within > 0)?;
        let age = self.started.saturating_sub(oldest);
        let limit = within.saturating_add(self.clock.since_last().saturating_mul(2)).saturating_add(LATENESS);
        (age > limit).then(|| {
            let age = Duration::from_millis(age.unsigned_abs());
            format!(
                "the oldest reading is {} old, and reread_within is {}: files did not have their turn in time; let runs come more often, \
                 or run once with --full-read",
                show::age(age.as_secs()),
                length_in_words(self.within)
            )
        })
    }

    /// How much of so many bytes has its turn in a time.
    pub fn bytes_in(&self, time: Duration, total: u64) -> u64 {
        let within = self.within.as_secs_f64();
        if within > 0.0 { (total as f64 * (time.as_secs_f64() / within).min(1.0)) as u64 } else { 0 }
    }

    /// What an operator should know when so many bytes cannot all be read within the time, at the rate that is allowed.
    pub fn is_too_slow_for(&self, total: u64) -> Option<String> {
        let seconds = self.within.as_secs_f64();
        let needed = total as f64 / seconds;
        (seconds > 0.0 && needed > self.bytes_per_second as f64).then(|| {
            format!(
                "reading all {} again within {} takes {} a second, and reread_mib_per_second allows {}: raise it, or reread_within",
                show::bytes(total),
                length_in_words(self.within),
                show::bytes(needed as u64),
                show::bytes(self.bytes_per_second),
            )
        })
    }
}

/// Where reading again stands after a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// When that run began to read.
    pub time: Moment,
    /// Bytes of its share that it left: files are read whole, and the next one did not fit.
    pub credit: f64,
    /// The same moment by the clock that nobody sets. Absent where an older version wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steady: Option<Steady>,
}

/// What a run reads again.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Share {
    /// Files that were read before this moment have their turn.
    cutoff: Moment,
    /// Of those that were read at this very moment, so many bytes have.
    left: u64,
    /// What may be read, in bytes.
    bytes: f64,
    /// Bytes of the share that this run has read.
    taken: u64,
    /// More time has passed since the last run than that in which everything is to be read: all of it is read now.
    pub is_overdue: bool,
    /// What the basis holds, in bytes.
    pub total: u64,
}

impl Share {
    /// The share of a run that begins at `rereading.started`, of what the basis in `folder` remembers.
    ///
    /// # Errors
    /// When the basis cannot be read.
    pub fn of(folder: &BasisFolder, rereading: &Rereading) -> Result<Self, PathError> {
        if rereading.within.is_zero() {
            return Ok(Self::default());
        }
        let mut by_moment: BTreeMap<Moment, u64> = BTreeMap::new();
        each(folder, &rereading.clock, |moment, size| {
            if moment != NO_CONTENT {
                *by_moment.entry(moment).or_default() += size;
            }
        })?;
        let at_start = Standing { time: rereading.started, credit: 0.0, steady: None };
        Ok(Self::new(&by_moment, standing(folder).unwrap_or(at_start), rereading))
    }

    fn new(by_moment: &BTreeMap<Moment, u64>, standing: Standing, rereading: &Rereading) -> Self {
        let total = by_moment.values().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
        let within = rereading.within.as_millis().max(1) as f64;
        let elapsed = rereading.clock.elapsed(&standing, rereading.started) as f64;
        let is_overdue = elapsed > within && total > 0;
        let due = total as f64 * (elapsed / within).min(1.0);
        // More than one round is never due.
        let bytes = (due + standing.credit.max(0.0)).min(total as f64);
        let mut share = Self { cutoff: Moment::MAX, left: 0, bytes, taken: 0, is_overdue, total };
        let (mut sum, whole) = (0u64, bytes as u64);
        for (moment, size) in by_moment {
            let next = sum.saturating_add(*size);
            if next > whole {
                (share.cutoff, share.left) = (*moment, whole - sum);
                break;
            }
            sum = next;
        }
        share
    }

    /// True when a file that was read at `moment` has its turn: of those that were read longest ago, as many as fit. One that does not
    /// fit waits for what later runs add, and those that were read after it wait with it.
    pub fn takes(&mut self, moment: Moment, size: u64) -> bool {
        let is_at_cutoff = moment == self.cutoff && size <= self.left && self.total > 0;
        let is_taken = moment != NO_CONTENT && (moment < self.cutoff || is_at_cutoff);
        if is_taken {
            self.taken = self.taken.saturating_add(size);
            if is_at_cutoff {
                self.left -= size;
            }
        }
        is_taken
    }

    /// Bytes of the share that were not read.
    pub fn credit(&self) -> f64 {
        (self.bytes - self.taken as f64).max(0.0)
    }

    /// Bytes that are read again, at most.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }
}

/// Where reading again stands. A basis of a version that did not remember it was left when it was written. `None` when it remembers
/// nothing of its entries.
fn standing(folder: &BasisFolder) -> Option<Standing> {
    let known = fs::read(folder.standing()).ok().and_then(|text| serde_json::from_slice(&text).ok());
    known.or_else(|| {
        let written = fs::metadata(folder.seen()).and_then(|seen| seen.modified()).ok()?;
        let time = jiff::Timestamp::try_from(written).ok()?.as_millisecond();
        Some(Standing { time, credit: 0.0, steady: None })
    })
}

/// Keeps where reading again stands.
///
/// # Errors
/// When it cannot be written.
pub(super) fn keep_standing(folder: &BasisFolder, standing: &Standing) -> Result<(), PathError> {
    let path = folder.standing();
    let text = serde_json::to_vec(standing).expect("two numbers");
    let mut file = closed::create_file(&path).at("create", &path)?;
    file.write_all(&text).at("write", &path)
}

/// Calls `take` with the moment and the size of each entry of the basis, by today's clock.
fn each(
    folder: &BasisFolder,
    clock: &ClockSince,
    mut take: impl FnMut(Moment, u64),
) -> Result<(), PathError> {
    let path = folder.seen();
    let seen = match File::open(&path) {
        // Nothing is remembered: all of it is read anyway.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.at("open", &path)?,
    };
    let mut seen = BufReader::with_capacity(256 * 1024, seen);
    let mut moments = MomentReader::open(&folder.moments());
    let mut record = [0; SEEN_BYTES];
    while seen.read_exact(&mut record).is_ok() {
        take(clock.put_right(moments.next()), Seen::decode(&record).size());
    }
    Ok(())
}

/// The moments of a basis, one for each entry.
pub(super) struct MomentReader(Option<BufReader<File>>);

impl MomentReader {
    /// Reads those in the file at `path`. Where there are none, none is known.
    pub(super) fn open(path: &Path) -> Self {
        Self(File::open(path).ok().map(|file| BufReader::with_capacity(64 * 1024, file)))
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Moment {
        let mut bytes = [0; MOMENT_BYTES];
        let read = self.0.as_mut().is_some_and(|file| file.read_exact(&mut bytes).is_ok());
        if read { Moment::from_le_bytes(bytes) } else { UNKNOWN }
    }
}

/// Writes the moments of a basis.
pub(super) struct MomentWriter(BufWriter<File>, std::path::PathBuf);

impl MomentWriter {
    pub(super) fn create(path: &Path) -> Result<Self, PathError> {
        let file = closed::create_file(path).at("create", path)?;
        Ok(Self(BufWriter::with_capacity(64 * 1024, file), path.to_owned()))
    }

    pub(super) fn push(&mut self, moment: Moment) -> Result<(), PathError> {
        self.0.write_all(&moment.to_le_bytes()).at("write", &self.1)
    }

    pub(super) fn finish(self) -> Result<(), PathError> {
        self.0.into_inner().map(drop).map_err(io::IntoInnerError::into_error).at("write", &self.1)
    }
}

/// Entries of a basis, by their positions, that were read again and are as they were; in order.
pub(super) struct PositionReader(Option<BufReader<File>>, Option<u64>);

impl PositionReader {
    pub(super) fn open(path: &Path) -> Self {
        let file = File::open(path).ok().map(|file| BufReader::with_capacity(64 * 1024, file));
        let mut reader = Self(file, None);
        reader.advance();
        reader
    }

    /// True when the entry at `position` was read again. Asked in order.
    pub(super) fn has(&mut self, position: u64) -> bool {
        let found = self.1 == Some(position);
        if found {
            self.advance();
        }
        found
    }

    fn advance(&mut self) {
        let mut bytes = [0; 8];
        let read = self.0.as_mut().is_some_and(|file| file.read_exact(&mut bytes).is_ok());
        self.1 = read.then(|| u64::from_le_bytes(bytes));
    }
}

/// What a run says of its readings and of earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Files, and their content in bytes.
    pub files: u64,
    /// Their content, in bytes.
    pub bytes: u64,
    /// Files that were read in this run.
    pub files_now: u64,
    /// Their content, in bytes.
    pub bytes_now: u64,
    /// When the file was read that was read longest ago.
    pub oldest: Option<Moment>,
    /// When the file was read that was read last of those that were not read now.
    pub newest: Option<Moment>,
    /// Files of which it is not known when they were read.
    pub files_unknown: u64,
}

impl Summary {
    /// Takes an entry of the new basis.
    pub(super) fn add(&mut self, moment: Moment, size: u64, started: Moment) {
        if moment == NO_CONTENT {
            return;
        }
        self.files += 1;
        self.bytes += size;
        match moment {
            UNKNOWN => self.files_unknown += 1,
            moment if moment == started => {
                self.files_now += 1;
                self.bytes_now += size;
            }
            moment => {
                self.oldest = Some(self.oldest.map_or(moment, |oldest| oldest.min(moment)));
                self.newest = Some(self.newest.map_or(moment, |newest| newest.max(moment)));
            }
        }
    }
}

/// Sums up the readings that a basis remembers, for a run that would begin now.
///
/// # Errors
/// When the basis cannot be read.
pub fn survey(folder: &BasisFolder, rereading: &Rereading) -> Result<Summary, PathError> {
    let mut summary = Summary::default();
    each(folder, &rereading.clock, |moment, size| summary.add(moment, size, rereading.started))?;
    Ok(summary)
}

/// Writes the moments of a basis of which nothing has changed, but for what was read again, and sums them up. `None` when there are
/// none to begin with.
pub(super) fn carry_over(
    from: &BasisFolder,
    to: &BasisFolder,
    read_again: &Path,
    rereading: &Rereading,
) -> Result<Option<Summary>, PathError> {
    let started = rereading.started;
    if !from.moments().exists() {
        return Ok(None);
    }
    let (mut positions, mut position) = (PositionReader::open(read_again), 0);
    let mut writer = MomentWriter::create(&to.moments())?;
    let (mut summary, mut failed) = (Summary::default(), None);
    each(from, &rereading.clock, |moment, size| {
        let moment = if positions.has(position) { started } else { moment };
        position += 1;
        summary.add(moment, size, started);
        failed = failed.take().or_else(|| writer.push(moment).err());
    })?;
    match failed {
        Some(error) => Err(error),
        None => writer.finish().map(|()| Some(summary)),
    }
}

/// Holds reading again to a rate: the live server goes first.
#[derive(Debug)]
pub struct Pace {
    started: Instant,
    bytes: AtomicU64,
    bytes_per_second: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

impl Pace {
    /// At most so many bytes in a second.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { started: Instant::now(), bytes: AtomicU64::new(0), bytes_per_second: bytes_per_second.max(1) }
    }

    /// How long the next bytes must wait after so many were read in `elapsed`.
    fn owed(&self, bytes: u64, elapsed: Duration) -> Duration {
        let due = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        due.saturating_sub(elapsed)
    }

    /// Waits after `bytes` were read.
    pub fn wait(&self, bytes: u64, stop: &CancellationToken) {
        let all = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        loop {
            let owed = self.owed(all, self.started.elapsed());
            if owed.is_zero() || stop.is_cancelled() {
                return;
            }
            super::pause(owed.min(LONGEST_PAUSE));
        }
    }
}

#[cfg(test)]
mod tests;
