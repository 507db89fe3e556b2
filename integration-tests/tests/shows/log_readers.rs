//! A reader of the log that hangs, leaves and comes back: a pipe, and a socket as systemd's journal has it. Runs go on, what is lost is
//! counted, and what can be written again is.

use std::{
    fs::{self, File},
    io,
    os::unix::{fs::OpenOptionsExt as _, net::UnixListener},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::fs::{FileType, Mode, OFlags};

use crate::{
    metrics::{get, with_metrics},
    pair::{Pair, eventually},
};

/// Reads a log for as long as it is there.
struct Reader {
    stop: Arc<AtomicBool>,
    read: Arc<Mutex<String>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Reader {
    /// Of something whose reads do not wait.
    fn of(mut log: impl io::Read + Send + 'static) -> Self {
        let (stop, read): (Arc<AtomicBool>, Arc<Mutex<String>>) = Default::default();
        let (until, kept) = (Arc::clone(&stop), Arc::clone(&read));
        let thread = std::thread::spawn(move || {
            let mut block = [0; 65_536];
            while !until.load(Ordering::SeqCst) {
                match log.read(&mut block) {
                    Ok(length @ 1..) => {
                        let text = String::from_utf8_lossy(&block[..length]);
                        kept.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
                    }
                    _ => std::thread::park_timeout(std::time::Duration::from_millis(5)),
                }
            }
        });
        Self { stop, read, thread: Some(thread) }
    }

    fn has(&self, text: &str) -> bool {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).contains(text)
    }
}

/// Closes what it reads.
impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it reads");
        }
    }
}

fn open(fifo: &Path) -> File {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(fifo).expect("open")
}

fn lost(port: u16) -> u64 {
    let page = get(port, "/metrics");
    let line = page.lines().find(|line| line.starts_with("assay_log_lines_lost_total"));
    let (_, count) =
        line.and_then(|line| line.rsplit_once(' ')).unwrap_or_else(|| panic!("no count: {page}"));
    count.trim().parse().expect("a number")
}

fn has_trouble(port: u16) -> bool {
    get(port, "/metrics").lines().any(|line| line.starts_with("assay_trouble{kind=\"log-unwritable\"} 1"))
}

fn run(pair: &Pair, number: u64) -> String {
    fs::write(pair.root(0).join("file"), number.to_string()).expect("write");
    pair.run(0)["id"].as_str().expect("an id").to_owned()
}

/// Runs until lines are lost, while nobody reads.
fn until_lost(pair: &Pair, role: &str, port: u16) {
    let before = lost(port);
    let mut number = 0;
    while lost(port) == before {
        number += 1;
        assert!(number < 200, "{role}: so many lines cannot wait");
        run(pair, number);
    }
    pair.eventually("the trouble is on the page", || has_trouble(port));
    let command =
        |arguments: &[&str]| if role == "source" { pair.source(arguments) } else { pair.target(arguments) };
    let status = command(&["status"]);
    assert!(status.stdout.contains("log-unwritable"), "{status:?}");
    // A log is best effort: it keeps nobody from work.
    assert_eq!(command(&["health"]).code, 0);
    println!("{role}: {} lines lost, and runs pass", lost(port) - before);
}

fn a_pipe_is_read_again(role: &str, port: impl Fn(&Pair) -> u16) {
    let pair = Pair::plain(1).unproved();
    let port = port(&pair);
    let fifo = pair.path("log");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .expect("mkfifo");
    let reader = Reader::of(open(&fifo));
    pair.kill(role);
    // So many lines that nobody can keep them all.
    pair.set_environment(role, &[("ASSAY_LOG", "trace".to_owned())]);
    pair.set_prefix(role, &["sh", "-c", "exec \"$@\" 2> \"$0\"", fifo.to_str().expect("text")]);
    pair.start(role);
    let id = run(&pair, 1);
    eventually("the reader has a run's lines", || reader.has(&id));

    // It leaves: each line is lost now.
    drop(reader);
    until_lost(&pair, role, port);
    // It comes back, and hangs: the pipe is full, and then the queue.
    let hangs = open(&fifo);
    until_lost(&pair, role, port);
    // It goes on.
    let reader = Reader::of(hangs);
    let id = run(&pair, 1000);
    eventually("the reader has a run's lines again", || reader.has(&id));
    pair.eventually("the trouble is over", || !has_trouble(port));
    // Another one comes, as after a restart.
    drop(reader);
    let reader = Reader::of(open(&fifo));
    let id = run(&pair, 1001);
    eventually("the next reader has a run's lines", || reader.has(&id));
}

#[test]
fn a_source_goes_on_whatever_the_reader_of_its_log_does() {
    a_pipe_is_read_again("source", |pair| with_metrics(pair)[0]);
}

#[test]
fn a_target_goes_on_whatever_the_reader_of_its_log_does() {
    a_pipe_is_read_again("target", |pair| with_metrics(pair)[1]);
}

/// As journald has it, which hangs and then is gone for good.
#[test]
fn a_socket_that_is_closed_costs_lines_and_nothing_else() {
    let pair = Pair::plain(1).unproved();
    let ports = with_metrics(&pair);
    let place = pair.path("journal");
    let listener = UnixListener::bind(&place).expect("bind");
    let connect = "import os, socket, sys\n\
        log = socket.socket(socket.AF_UNIX)\n\
        log.connect(sys.argv[1])\n\
        os.dup2(log.fileno(), 1)\n\
        os.dup2(log.fileno(), 2)\n\
        os.execvp(sys.argv[2], sys.argv[2:])";
    for (role, port) in ["source", "target"].into_iter().zip(ports) {
        pair.kill(role);
        pair.set_environment(role, &[("ASSAY_LOG", "trace".to_owned())]);
        pair.set_prefix(role, &["python3", "-c", connect, place.to_str().expect("text")]);
        pair.start(role);
        let (stream, _) = listener.accept().expect("the agent connects");
        until_lost(&pair, role, port);
        stream.set_nonblocking(true).expect("set");
        let reader = Reader::of(stream);
        let id = run(&pair, 1);
        eventually("the reader has a run's lines", || reader.has(&id));
        drop(reader);
        until_lost(&pair, role, port);
        // The end of the agent waits for nobody either.
        pair.kill(role);
        pair.set_prefix(role, &[]);
        pair.set_environment(role, &[]);
        pair.start(role);
    }
}
