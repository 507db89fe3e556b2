//! `run --follow`: how far a run has come, in bytes, and what becomes of it when nobody watches any more.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    process::{Command, Stdio},
};

use crate::{
    noise,
    pair::{Pair, json, program},
};

/// Who stops watching stops no run, and is told how to come back.
#[test]
fn ctrl_c_ends_the_watching_and_not_the_run() {
    let pair = Pair::with_blocking_mark();
    fs::write(pair.root(0).join("file"), noise(1, 100_000)).expect("write");
    let mut watching = Command::new(program("assay-source"))
        .args(["--config", "source.toml", "--json", "run", "--follow"])
        .current_dir(pair.path("."))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut lines = BufReader::new(watching.stdout.take().expect("piped")).lines();
    let first = json(&lines.next().expect("a line").expect("text"));
    let id = first["id"].as_str().expect("an id").to_owned();
    pair.eventually("the mark waits", || pair.path("mark-waits").exists());
    let process = rustix::process::Pid::from_child(&watching);
    rustix::process::kill_process(process, rustix::process::Signal::INT).expect("kill");
    assert_eq!(watching.wait().expect("it ends").code(), Some(130));
    let mut said = String::new();
    watching.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    for words in
        [format!("run {id} goes on"), format!("assay-source watch {id}"), format!("assay-source cancel {id}")]
    {
        assert!(said.contains(&words), "{words:?} is missing in {said}");
    }
    pair.release_mark();
    let ended = pair.source(&["--json", "watch", &id]);
    let run = json(ended.stdout.lines().last().expect("a line"));
    assert_eq!((ended.code, &run["outcome"]), (0, &"OUTCOME_PASS".into()), "{ended:?}");
    // A first copy knows how much it reads.
    assert_eq!((&run["bytesToRead"], &run["bytesDone"]), (&100_000.into(), &100_000.into()), "{run}");
    drop(lines);
}

/// Of 300 files two have changed, and they are all that is to be read, whatever share of the entries they are.
#[test]
fn progress_is_of_the_content_that_is_to_be_read() {
    let pair = Pair::plain(1);
    for number in 0..300 {
        fs::write(pair.root(0).join(format!("small{number}")), "x").expect("write");
    }
    let all = pair.run(0);
    assert_eq!((&all["bytesToRead"], &all["bytesDone"]), (&300.into(), &300.into()), "{all}");
    fs::write(pair.root(0).join("large"), noise(2, 3_000_000)).expect("write");
    fs::write(pair.root(0).join("small7"), "yy").expect("write");
    let some = pair.run(0);
    assert_eq!(some["bytesToRead"], some["bytesDone"], "{some}");
    let bytes = some["bytesToRead"].as_u64().expect("a number");
    // Files of the first run may have their turn to be read again.
    assert!((3_000_002..3_000_302).contains(&bytes), "{some}");
}
