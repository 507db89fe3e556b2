//! The second reading: before FAIL is said, the source reads the files concerned again.
//!
//! The source asks for the check's verdict and waits; what it is to read goes to it on that stream, and its answers come by
//! a call of their own. They arrive here, at the run's desk. A source that says nothing for a minute is not waited for.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use assay_common::{digest::ContentDigest, id::RunId, limits::MAX_READ_AGAIN, rpc_status::RpcFault};
use assay_proto::v1::{ReadAgain, ReportReadingsRequest, SecondReading, second_reading::State};
use tonic::Code;

/// How long a source may be silent. While it reads it says so every few seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a second reading may take in all, whoever says that it goes on: more than its bytes take on a slow disk.
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// Reports that wait to be taken.
const QUEUE: usize = 16;

/// Where the readings of the run that is being checked arrive.
#[derive(Debug, Default)]
pub struct Desk {
    open: Mutex<Option<(RunId, SyncSender<ReportReadingsRequest>)>>,
}

impl Desk {
    fn open(&self) -> MutexGuard<'_, Option<(RunId, SyncSender<ReportReadingsRequest>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a source's report.
    ///
    /// # Errors
    /// When nothing is waited for, or when it comes too fast or too large.
    pub fn report(&self, run_id: &RunId, report: ReportReadingsRequest) -> Result<(), RpcFault> {
        let not_asked = || {
            RpcFault::new(Code::FailedPrecondition, "not-asked", format!("run {run_id} waits for no reading"))
        };
        if report.readings.len() > MAX_READ_AGAIN {
            return Err(RpcFault::invalid("readings: must be at most 1000"));
        }
        let open = self.open();
        let (_, sender) = open.as_ref().filter(|(id, _)| id == run_id).ok_or_else(not_asked)?;
        sender.try_send(report).map_err(|error| match error {
            TrySendError::Full(_) => {
                RpcFault::new(Code::ResourceExhausted, "too-fast", "reports come faster than they are taken")
            }
            TrySendError::Disconnected(_) => not_asked(),
        })
    }

    /// Lets `tell` ask the source of this run for these files, and waits for what it says of them. `None` when it fell
    /// silent.
    pub fn ask(
        &self,
        run_id: &RunId,
        wanted: Vec<ReadAgain>,
        tell: impl FnOnce(Vec<ReadAgain>),
    ) -> Option<HashMap<Vec<u8>, SecondReading>> {
        let (sender, receiver) = sync_channel(QUEUE);
        *self.open() = Some((run_id.clone(), sender));
        let paths = wanted.iter().map(|file| file.path.clone()).collect();
        tell(wanted);
        let answers = collect(&receiver, paths, PATIENCE);
        *self.open() = None;
        answers
    }
}

fn collect(
    receiver: &Receiver<ReportReadingsRequest>,
    mut waited_for: HashSet<Vec<u8>>,
    patience: Duration,
) -> Option<HashMap<Vec<u8>, SecondReading>> {
    let mut answers = HashMap::new();
    let started = Instant::now();
    loop {
        let left = LONGEST.saturating_sub(started.elapsed());
        let report = match receiver.recv_timeout(patience.min(left)) {
            Ok(report) => report,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        };
        for reading in report.readings {
            // What was not asked for, or was answered before, fills no memory.
            if waited_for.remove(&reading.path) {
                answers.insert(reading.path.clone(), reading);
            }
        }
        if report.last {
            return Some(answers);
        }
    }
}

/// What a second reading says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It is read as it was read.
    Same,
    /// It has grown, and its beginning is as it was read.
    Grown,
    /// It is not there, as in this generation.
    StillAbsent,
    /// The engine made it for the mark, of one state.
    OfMark,
    /// Nobody has written to it since, and it is not read as it was read.
    Unstable,
    /// It was written to since it was read: what it was then is not known any more.
    Changed,
    /// It was not there, or could not be read; or the source says nothing of it.
    NotRead,
}

/// What `reading` says of `wanted`, whose content has `digest` in the manifest.
pub fn judge(wanted: &ReadAgain, digest: &[u8], reading: Option<&SecondReading>) -> Again {
    let Some(reading) = reading else {
        return Again::NotRead;
    };
    match (reading.state(), wanted.absent) {
        (State::OfMark, _) => Again::OfMark,
        (State::Gone, true) => Again::StillAbsent,
        (State::Read, true) | (State::Gone, false) => Again::Changed,
        (State::Read, false) => {
            let untouched = reading.held_still
                && (reading.size, reading.mtime_seconds, reading.mtime_nanos)
                    == (wanted.size, wanted.mtime_seconds, wanted.mtime_nanos);
            let known = ContentDigest::from_slice(digest);
            match known {
                Some(known) if reading.size == wanted.size && reading.digest == known.0 => Again::Same,
                Some(known) if reading.size > wanted.size && reading.prefix_digest == known.0 => Again::Grown,
                _ if untouched => Again::Unstable,
                _ => Again::Changed,
            }
        }
        (State::Unreadable | State::Unspecified, _) => Again::NotRead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_reading_is_judged_by_time_length_and_digest() {
        let (old, other) = (ContentDigest::of(b"old"), ContentDigest::of(b"other"));
        let wanted = ReadAgain { path: b"a".to_vec(), size: 3, mtime_seconds: 7, ..Default::default() };
        let read = |size, mtime, digest: ContentDigest, prefix: ContentDigest| SecondReading {
            state: State::Read.into(),
            size,
            mtime_seconds: mtime,
            held_still: true,
            digest: digest.0.to_vec(),
            prefix_digest: prefix.0.to_vec(),
            ..Default::default()
        };
        let judged = |reading: SecondReading| judge(&wanted, &old.0, Some(&reading));
        assert_eq!(judged(read(3, 7, old, old)), Again::Same);
        // Only touched.
        assert_eq!(judged(read(3, 8, old, old)), Again::Same);
        assert_eq!(judged(read(3, 7, other, other)), Again::Unstable);
        assert_eq!(judged(read(3, 8, other, other)), Again::Changed);
        assert_eq!(judged(read(5, 8, other, old)), Again::Grown);
        assert_eq!(judged(read(5, 8, other, other)), Again::Changed);
        assert_eq!(judged(SecondReading { held_still: false, ..read(3, 7, other, other) }), Again::Changed);
        let state = |state: State| SecondReading { state: state.into(), ..Default::default() };
        assert_eq!(judged(state(State::Gone)), Again::Changed);
        assert_eq!(judged(state(State::OfMark)), Again::OfMark);
        assert_eq!(judged(state(State::Unspecified)), Again::NotRead);
        assert_eq!(judge(&wanted, &old.0, None), Again::NotRead);
        let absent = ReadAgain { absent: true, ..wanted.clone() };
        assert_eq!(judge(&absent, &[], Some(&state(State::Gone))), Again::StillAbsent);
        assert_eq!(judge(&absent, &[], Some(&read(3, 7, old, old))), Again::Changed);
    }

    /// What a source sends that nobody asked for is not kept, and a source that falls silent is not waited for.
    #[test]
    fn only_what_was_asked_for_is_kept() {
        let (sender, receiver) = sync_channel(4);
        let reading = |path: &[u8], size| SecondReading { path: path.to_vec(), size, ..Default::default() };
        let report = |readings, last| ReportReadingsRequest { readings, last, ..Default::default() };
        let wanted = || HashSet::from([b"a".to_vec()]);
        let twice = vec![reading(b"b", 1), reading(b"a", 2), reading(b"a", 3)];
        sender.send(report(twice, false)).expect("room");
        sender.send(report(vec![], true)).expect("room");
        let answers = collect(&receiver, wanted(), Duration::from_secs(5)).expect("the last report came");
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[b"a".as_slice()].size, 2);
        assert_eq!(collect(&receiver, wanted(), Duration::ZERO), None);
        let desk = Desk::default();
        let id: RunId = "20261122T224501Z-7f3a9c".parse().expect("id");
        assert_eq!(desk.report(&id, report(vec![], true)).expect_err("nobody asks").reason, "not-asked");
    }
}
