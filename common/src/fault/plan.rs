//! What a test wants to go wrong, from the environment:
//!
//! ```text
//! ASSAY_FAULTS = PLACE=ACTION[@N][+] , ...
//! PLACE    a point's name, or * for any
//! ACTION   kill     the process is gone at once, as by kill -9: nothing is unwound, flushed or told
//!          eio      the place fails with that error
//!          enospc   the same
//!          panic    the thread panics, as at a bug
//!          pause    the thread waits while the file ASSAY_FAULTS_DIR/paused is there, which it makes
//! @N       at the Nth time only (from 1); with + at every time from then on
//! ASSAY_FAULTS_TRACE = FILE   every place that is passed is appended, a name a line; once more with a ! when it
//!                             strikes
//! ```
//!
//! A plan that is not understood ends the process: a test that injects nothing would show nothing.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Signal, getpid, kill_process},
};

use super::Point;

/// How often a thread that waits looks whether it may go on.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Fail(Errno),
    Panic,
    Pause,
}

#[derive(Debug)]
struct Fault {
    /// `None`: any.
    point: Option<Point>,
    action: Action,
    from: u64,
    always: bool,
    passed: AtomicU64,
}

#[derive(Debug, Default)]
struct Plan {
    faults: Vec<Fault>,
    pause: PathBuf,
    trace: Option<File>,
}

static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

pub(super) fn at(point: Point) -> io::Result<()> {
    match PLAN.get_or_init(from_environment) {
        None => Ok(()),
        Some(plan) => plan.at(point),
    }
}

fn from_environment() -> Option<Plan> {
    let variable = |name: &str| std::env::var(name).ok();
    let (faults, trace) = (variable("ASSAY_FAULTS"), variable("ASSAY_FAULTS_TRACE"));
    if faults.is_none() && trace.is_none() {
        return None;
    }
    let pause = PathBuf::from(variable("ASSAY_FAULTS_DIR").unwrap_or_default()).join("paused");
    let trace = trace.map(|path| OpenOptions::new().create(true).append(true).open(path));
    match (parse(&faults.unwrap_or_default()), trace.transpose()) {
        (Some(faults), Ok(trace)) => Some(Plan { faults, pause, trace }),
        _ => {
            eprintln!("ASSAY_FAULTS or ASSAY_FAULTS_TRACE is not understood");
            std::process::exit(2)
        }
    }
}

fn parse(text: &str) -> Option<Vec<Fault>> {
    text.split(',').map(str::trim).filter(|fault| !fault.is_empty()).map(parse_one).collect()
}

fn parse_one(text: &str) -> Option<Fault> {
    let (name, rest) = text.split_once('=')?;
    let (rest, always) = rest.strip_suffix('+').map_or((rest, false), |rest| (rest, true));
    let (action, from) = match rest.split_once('@') {
        Some((action, from)) => (action, from.parse().ok().filter(|from| *from > 0)?),
        None => (rest, 1),
    };
    let point = match name {
        "*" => None,
        name => Some(*Point::ALL.iter().find(|point| point.name() == name)?),
    };
    let action = match action {
        "kill" => Action::Kill,
        "eio" => Action::Fail(Errno::IO),
        "enospc" => Action::Fail(Errno::NOSPC),
        "panic" => Action::Panic,
        "pause" => Action::Pause,
        _ => return None,
    };
    Some(Fault { point, action, from, always, passed: AtomicU64::new(0) })
}

impl Plan {
    fn at(&self, point: Point) -> io::Result<()> {
        self.note(&format!("{}\n", point.name()));
        // All count, whichever strikes.
        let mut struck = None;
        for fault in self.faults.iter().filter(|fault| fault.point.is_none_or(|wanted| wanted == point)) {
            let count = fault.passed.fetch_add(1, Ordering::SeqCst) + 1;
            if count == fault.from || fault.always && count > fault.from {
                struck = struck.or(Some(fault.action));
            }
        }
        match struck {
            None => Ok(()),
            Some(action) => {
                self.note(&format!("{}!\n", point.name()));
                self.strike(point, action)
            }
        }
    }

    /// One write for a line: lines of several threads do not mix.
    fn note(&self, line: &str) {
        if let Some(mut trace) = self.trace.as_ref() {
            trace.write_all(line.as_bytes()).ok();
        }
    }

    fn strike(&self, point: Point, action: Action) -> io::Result<()> {
        match action {
            Action::Kill => {
                // Nobody may be forbidden to end itself.
                kill_process(getpid(), Signal::KILL).ok();
                loop {
                    std::thread::park();
                }
            }
            Action::Fail(error) => Err(error.into()),
            Action::Panic => panic!("a test wants a panic at {}", point.name()),
            Action::Pause => {
                File::create(&self.pause)?;
                while self.pause.exists() {
                    std::thread::park_timeout(LOOK_AGAIN);
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Plan {
        Plan { faults: parse(text).expect("a plan"), ..Default::default() }
    }

    #[test]
    fn a_fault_strikes_at_its_place_and_count() {
        let plan = plan("store.write=enospc@2, sign=eio@1+,*=eio@7");
        let code = |point| plan.at(point).err().and_then(|error| error.raw_os_error());
        let (full, broken) = (Some(Errno::NOSPC.raw_os_error()), Some(Errno::IO.raw_os_error()));
        assert_eq!([(); 3].map(|()| code(Point::StoreWrite)), [None, full, None]);
        assert_eq!([(); 2].map(|()| code(Point::Sign)), [broken, broken]);
        assert_eq!(code(Point::MarkBegin), None);
        assert_eq!(code(Point::MarkBegin), broken, "the seventh of all");
    }

    #[test]
    fn a_panic_strikes_at_its_count_only() {
        let plan = plan("sign=panic@2");
        let panics =
            || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| plan.at(Point::Sign).ok())).is_err();
        assert_eq!([(); 3].map(|()| panics()), [false, true, false]);
    }

    #[test]
    fn what_is_not_understood_is_no_plan() {
        for text in ["x", "sign", "sign=", "sign=stop", "sing=kill", "sign=kill@0", "sign=kill@x"] {
            assert!(parse(text).is_none(), "{text}");
        }
        assert!(parse("").is_some_and(|faults| faults.is_empty()));
    }

    /// A thread that waits goes on when the file is gone.
    #[test]
    fn a_paused_thread_waits_for_its_file_to_go() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("paused");
        let plan = Plan { pause: path.clone(), ..plan("sign=pause") };
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| plan.at(Point::Sign));
            while !path.exists() {
                std::thread::yield_now();
            }
            assert!(!waiting.is_finished());
            std::fs::remove_file(&path).expect("remove");
            waiting.join().expect("no panic").expect("it goes on");
        });
    }
}
