use super::*;

const DAY: i64 = 24 * 3600 * 1000;

fn rereading(started: Moment, days: u64) -> Rereading {
    let clock = ClockSince::new(None, started, None);
    Rereading { started, within: Duration::from_secs(days * 24 * 3600), bytes_per_second: u64::MAX, clock }
}

fn standing(time: Moment, credit: f64) -> Standing {
    Standing { time, credit, steady: None }
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
        let rereading = rereading(now, days);
        let mut share = Share::new(&by_moment, self.1, &rereading);
        let (mut read, mut longest) = (0, 0);
        for (moment, size) in &mut self.0 {
            if share.takes(*moment, *size) {
                longest = longest.max(now - *moment);
                *moment = now;
                read += *size;
            }
        }
        self.1 = rereading.end(share.credit());
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
        let mut files = Files(sizes.iter().map(|size| (DAY, *size)).collect(), standing(DAY, 0.0));
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
    let mut files = Files(vec![(DAY, 7_000), (2 * DAY, 70), (3 * DAY, 70)], standing(3 * DAY, 0.0));
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
    let share = |now, credit| Share::new(&by_moment, standing(2 * DAY, credit), &rereading(now, 7));
    assert!(!share(9 * DAY, 0.0).is_overdue);
    let mut late = share(30 * DAY, 1_000_000.0);
    assert!(late.is_overdue);
    assert!(late.takes(DAY, 100) && late.takes(2 * DAY, 50));
    assert_eq!(late.credit(), 0.0);
    let mut none = share(2 * DAY, 0.0);
    assert!(!none.takes(DAY, 100), "no time has passed");
    let mut back = share(DAY, 0.0);
    assert!(!back.takes(DAY, 100), "the clock was set back");
}

#[test]
fn nothing_is_read_again_when_it_is_off() {
    let folder = tempfile::tempdir().expect("temp");
    let folder = BasisFolder::new(folder.path().to_owned());
    let off = Rereading { bytes_per_second: 1, ..rereading(DAY, 0) };
    let mut share = Share::of(&folder, &off).expect("off");
    assert!(!share.takes(UNKNOWN, 1));
    let mut unknown = Share::new(&BTreeMap::from([(UNKNOWN, 700)]), standing(0, 0.0), &rereading(DAY, 7));
    assert!(unknown.takes(UNKNOWN, 100), "a basis of an older version: the oldest of all");
    assert!(!unknown.takes(UNKNOWN, 100), "and no more than its share");
    assert!(!unknown.takes(NO_CONTENT, 100));
}

#[test]
fn a_summary_tells_readings_of_now_from_those_of_before() {
    let mut summary = Summary::default();
    for (moment, size) in [(5, 10), (7, 20), (9, 40), (UNKNOWN, 80), (NO_CONTENT, 160)] {
        summary.add(moment, size, 9);
    }
    let expected = Summary {
        files: 4,
        bytes: 150,
        files_now: 1,
        bytes_now: 40,
        oldest: Some(5),
        newest: Some(7),
        files_unknown: 1,
    };
    assert_eq!(summary, expected);
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

/// A rate that cannot keep up with what there is to be read is said to be one, before years go by.
#[test]
fn a_rate_that_is_too_low_is_told() {
    let slow = Rereading { bytes_per_second: 128 << 20, ..rereading(DAY, 7) };
    assert_eq!(slow.is_too_slow_for(50 << 40), None);
    let text = slow.is_too_slow_for(100 << 40).expect("80 TB in a week");
    for part in ["110.0 TB", "7 days", "181.8 MB a second", "134.2 MB", "raise it, or reread_within"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(Rereading { within: Duration::ZERO, ..slow }.is_too_slow_for(u64::MAX), None);
}

/// What a basis remembers is told by today's clock: a share takes first what has no known age.
#[test]
fn a_basis_whose_times_lie_ahead_is_of_unknown_age() {
    let folder = tempfile::tempdir().expect("temp");
    let basis = BasisFolder::new(folder.path().to_owned());
    let mut writer = MomentWriter::create(&basis.moments()).expect("made");
    let mut seen = Vec::new();
    for moment in [9 * DAY, 2 * DAY, NO_CONTENT] {
        writer.push(moment).expect("written");
        seen.extend(Seen::default().encode());
    }
    writer.finish().expect("written");
    fs::write(basis.seen(), seen).expect("written");
    keep_standing(&basis, &standing(3 * DAY, 0.0)).expect("written");
    let clock = ClockSince::new(super::standing(&basis).as_ref(), 8 * DAY, None);
    let mut found = Vec::new();
    each(&basis, &clock, |moment, _| found.push(moment)).expect("read");
    assert_eq!(found, [UNKNOWN, 2 * DAY, NO_CONTENT]);
    let to = BasisFolder::new(folder.path().join("next"));
    to.clear().expect("made");
    let upon = Rereading { clock, ..rereading(8 * DAY, 7) };
    let summary = carry_over(&basis, &to, Path::new("/none"), &upon).expect("read").expect("some");
    assert_eq!((summary.files_unknown, summary.oldest), (1, Some(2 * DAY)));
    // It stays unknown when the clock has come to that time.
    let later = ClockSince::new(None, 20 * DAY, None);
    fs::copy(basis.seen(), to.seen()).expect("copied");
    found.clear();
    each(&to, &later, |moment, _| found.push(moment)).expect("read");
    assert_eq!(found, [UNKNOWN, 2 * DAY, NO_CONTENT]);
}

/// What did not have its turn in time is said, and a file that waits for a run that has room for it is not late.
#[test]
fn a_reading_that_is_too_old_is_told() {
    let clock = |now| ClockSince::new(Some(&standing(now - DAY, 0.0)), now, None);
    let upon = |now| Rereading { clock: clock(now), ..rereading(now, 7) };
    let late = |now, oldest| upon(now).is_late(&Summary { oldest, ..Default::default() });
    assert_eq!((late(20 * DAY, Some(12 * DAY)), late(20 * DAY, None)), (None, None));
    let text = late(20 * DAY, Some(10 * DAY)).expect("ten days");
    assert!(text.starts_with("the oldest reading is 10 days old, and reread_within is 7 days"), "{text}");
    let off = Rereading { within: Duration::ZERO, ..upon(20 * DAY) };
    assert_eq!(off.is_late(&Summary { oldest: Some(1), ..Default::default() }), None);
}
