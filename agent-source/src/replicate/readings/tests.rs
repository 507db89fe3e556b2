use super::*;

const DAY: i64 = 24 * 3600 * 1000;

fn rereading(started: Moment, days: u64) -> Rereading {
    Rereading { started, within: Duration::from_secs(days * 24 * 3600), bytes_per_second: u64::MAX }
}

/// Files as the basis has them: when each was read last, and its size.
struct Files(Vec<(Moment, u64)>, Standing);

impl Files {
    /// One run: what it reads, in bytes, and the longest time that a file had been waiting.
    fn run(&mut self, now: Moment, days: u64) -> (u64, i64) {
        let mut by_moment = BTreeMap::new();
        for (moment, size) in &self.0 {
            *by_moment.entry(*moment).or_default() += size;
        }
        let mut share = Share::new(&by_moment, self.1, &rereading(now, days));
        let (mut read, mut longest) = (0, 0);
        for (moment, size) in &mut self.0 {
            if share.takes(*moment, *size, now) {
                longest = longest.max(now - *moment);
                *moment = now;
                read += *size;
            }
        }
        self.1 = share.end(now);
        (read, longest)
    }
}

/// However often runs come, every byte is read within the time, and no run reads much more than its share.
#[test]
fn everything_has_its_turn_and_no_run_reads_more_than_its_share() {
    for (every, sizes) in [
        (DAY / 24, vec![1_000_000; 500]),
        (DAY / 24, (1..300).map(|size| size * 7919 % 50_000).collect::<Vec<u64>>()),
        (DAY, vec![5_000; 8]),
        (DAY / 2, vec![1_000; 1000]),
    ] {
        let total: u64 = sizes.iter().sum();
        let largest = *sizes.iter().max().expect("some");
        let mut files =
            Files(sizes.iter().map(|size| (DAY, *size)).collect(), Standing { time: DAY, credit: 0.0 });
        let share = (i128::from(total) * i128::from(every) / i128::from(7 * DAY)) as u64;
        let (mut now, mut all) = (DAY, 0u64);
        for run in 1..=(21 * DAY / every) {
            now += every;
            let (read, waited) = files.run(now, 7);
            all += read;
            let due = (i128::from(total) * i128::from(run * every) / i128::from(7 * DAY)) as u64;
            assert!(all <= due + 1, "after run {run} {all} bytes were read, {due} were due");
            assert!(read <= share + largest + 1, "run {run} reads {read}, its share is {share}");
            assert!(waited <= 7 * DAY + 2 * every, "a file waited {waited} ms");
        }
        let oldest = files.0.iter().map(|(moment, _)| *moment).min().expect("some");
        assert!(now - oldest <= 7 * DAY + every, "{} days", (now - oldest) / DAY);
        assert!(all.abs_diff(3 * total) <= 3 * largest, "{all} of three times {total}");
    }
}

/// A file that is larger than many shares is read whole, when so much is due as it holds; nothing overtakes it for ever.
#[test]
fn a_large_file_has_its_turn_when_it_is_due() {
    let mut files =
        Files(vec![(DAY, 7_000), (2 * DAY, 70), (3 * DAY, 70)], Standing { time: 3 * DAY, credit: 0.0 });
    let read: Vec<u64> = (4..=18).map(|day| files.run(day * DAY, 7).0).collect();
    assert_eq!(read[..7], [0, 0, 0, 0, 0, 0, 7_140], "after a week all is due");
    assert_eq!(
        read[7..14],
        [140, 0, 0, 0, 0, 0, 7_000],
        "the small ones fit at once, the large one after another week"
    );
}

#[test]
fn a_pause_that_is_longer_than_the_time_is_told() {
    let by_moment = BTreeMap::from([(DAY, 100), (2 * DAY, 50)]);
    let share = |now, credit| Share::new(&by_moment, Standing { time: 2 * DAY, credit }, &rereading(now, 7));
    assert!(!share(9 * DAY, 0.0).is_overdue);
    let mut late = share(30 * DAY, 1_000_000.0);
    assert!(late.is_overdue);
    assert!(late.takes(DAY, 100, 30 * DAY) && late.takes(2 * DAY, 50, 30 * DAY));
    assert_eq!(late.end(30 * DAY), Standing { time: 30 * DAY, credit: 0.0 });
    let mut none = share(2 * DAY, 0.0);
    assert!(!none.takes(DAY, 100, 2 * DAY), "no time has passed");
    let mut back = share(DAY, 0.0);
    assert!(!back.takes(DAY, 100, DAY), "the clock was set back");
    assert!(share(8 * DAY, 0.0).takes(9 * DAY, 1, 8 * DAY), "a reading in the future is not known to be one");
}

#[test]
fn nothing_is_read_again_when_it_is_off() {
    let folder = tempfile::tempdir().expect("temp");
    let folder = BasisFolder::new(folder.path().to_owned());
    let off = Rereading { started: DAY, within: Duration::ZERO, bytes_per_second: 1 };
    let mut share = Share::of(&folder, &off).expect("off");
    assert!(!share.takes(UNKNOWN, 1, DAY));
    let mut unknown =
        Share::new(&BTreeMap::from([(UNKNOWN, 700)]), Standing { time: 0, credit: 0.0 }, &rereading(DAY, 7));
    assert!(unknown.takes(UNKNOWN, 100, DAY), "a basis of an older version: the oldest of all");
    assert!(!unknown.takes(UNKNOWN, 100, DAY), "and no more than its share");
    assert!(!unknown.takes(NO_CONTENT, 100, DAY));
}

#[test]
fn a_summary_tells_readings_of_now_from_those_of_before() {
    let mut summary = Summary::default();
    for (moment, size) in [(5, 10), (7, 20), (9, 40), (UNKNOWN, 80), (NO_CONTENT, 160), (11, 320)] {
        summary.add(moment, size, 9);
    }
    let expected = Summary {
        files: 5,
        bytes: 470,
        files_now: 1,
        bytes_now: 40,
        oldest: Some(5),
        newest: Some(7),
        files_unknown: 2,
    };
    assert_eq!(summary, expected, "what is ahead of the clock is not known");
}

#[test]
fn a_rate_is_kept() {
    let pace = Pace::new(1000);
    assert_eq!(pace.owed(2000, Duration::from_secs(1)), Duration::from_secs(1));
    assert_eq!(pace.owed(2000, Duration::from_secs(3)), Duration::ZERO);
    let stopped = CancellationToken::new();
    stopped.cancel();
    pace.wait(1_000_000_000, &stopped);
    Pace::default().wait(1 << 40, &CancellationToken::new());
}
