use std::{path::Path, sync::atomic::Ordering};

use super::*;
use crate::{config, outbox::Way as _};

#[derive(Debug, Deserialize)]
struct File {
    notify: Vec<NotifySection>,
}

fn faults(text: &str) -> Vec<String> {
    let path = Path::new("/etc/assay/source.toml");
    let file: File = config::parse(path, text).expect("the right shape");
    let mut faults = Vec::new();
    Way::all(path, &file.notify, &["repo"], &mut faults);
    faults
}

#[test]
fn each_kind_needs_its_keys_and_takes_no_others() {
    for (text, told) in [
        ("[[notify]]\nkind = 'command'", "argv: must be a program by its absolute path"),
        ("[[notify]]\nkind = 'command'\nargv = ['mail']", "argv: must be a program by its absolute path"),
        (
            "[[notify]]\nkind = 'command'\nargv = ['/bin/mail']\nurl = 'http://a'",
            "url belongs to kind \"webhook\"",
        ),
        ("[[notify]]\nkind = 'webhook'", "url is missing"),
        ("[[notify]]\nkind = 'webhook'\nurl = 'ftp://a/'", "https://HOST/PATH"),
        ("[[notify]]\nkind = 'webhook'\nurl = 'https://me:secret@a/'", "token_file"),
        ("[[notify]]\nkind = 'webhook'\nurl = 'http://a/'\nca = 'ca.crt'", "https only"),
        ("[[notify]]\nkind = 'webhook'\nurl = 'http://a/'\ntoken_file = 't'", "url: must be https"),
        (
            "[[notify]]\nkind = 'mail'\nsmtp = 'smtp://localhost'\nfrom = 'a@b.example'\nto = []",
            "to is missing",
        ),
        (
            "[[notify]]\nkind = 'mail'\nsmtp = 'smtp://localhost'\nfrom = 'a'\nto = ['c@b.example']",
            "from: \"a\"",
        ),
        (
            "[[notify]]\nkind = 'mail'\nsmtp = 'smtp://a'\nfrom = 'a@b.example'\nto = ['c@b.example']\nusername = 'u'\npassword_file = 'p'",
            "over TLS only",
        ),
        ("[[notify]]\nkind = 'webhook'\nurl = 'http://a/'\ntimeout = '0s'", "timeout: "),
        (
            "[[notify]]\nkind = 'command'\nargv = ['/bin/a']\nmethod = 'get'",
            "method belongs to kind \"webhook\"",
        ),
        (
            "[[notify]]\nkind = 'webhook'\nurl = 'http://a/'\nmethod = 'get'\nbody = 'text'",
            "must not be set with method",
        ),
        (
            "[[notify]]\nkind = 'webhook'\nurl = 'http://a/'\nrepositories = ['other']",
            "no repository \"other\"",
        ),
    ] {
        let found = faults(text);
        assert!(found.len() == 1 && found[0].contains(told), "{text}: {found:?}");
    }
    let twice =
        "[[notify]]\nkind = 'webhook'\nurl = 'http://a/'\n[[notify]]\nkind = 'webhook'\nurl = 'http://b/'";
    assert!(faults(twice)[0].contains("is defined twice"));
}

/// Neither the log nor the operator's terminal shows what may be a secret.
#[test]
fn a_url_is_not_shown() {
    let found = faults("[[notify]]\nkind = 'webhook'\nurl = 'https://me:secret@hooks.example/T0/B0'");
    assert!(!found[0].contains("secret") && !found[0].contains("T0"), "{found:?}");
}

#[tokio::test]
async fn a_full_queue_drops_and_counts_and_never_waits() {
    let text = "[[notify]]\nkind = 'command'\nargv = ['/bin/sleep', '100']\n[[notify]]\nname = 'other'\nkind = 'command'\nargv = ['/bin/true']";
    let path = Path::new("/etc/assay/source.toml");
    let file: File = config::parse(path, text).expect("the right shape");
    let notifier = Notifier::start(Way::all(path, &file.notify, &[], &mut Vec::new()));
    // Nothing is taken out of the queues meanwhile: the test holds the only thread.
    for _ in 0..MAX_WAITING + 10 {
        notifier.tell(Notice::test("source", "a"));
    }
    let dropped: Vec<_> =
        notifier.counts().map(|(_, counts)| counts.dropped.load(Ordering::SeqCst)).collect();
    assert_eq!(dropped, [10, 10]);
    // The way that hangs does not hold up the other.
    let sent = || notifier.counts().nth(1).map(|(_, counts)| counts.sent.load(Ordering::SeqCst));
    for _ in 0..6000 {
        if sent() == Some(MAX_WAITING as u64) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?} of {MAX_WAITING} were told", sent());
}

#[tokio::test]
async fn a_command_that_hangs_is_ended_with_what_it_started() {
    let folder = tempfile::tempdir().expect("temp");
    let pid = folder.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
    let text =
        format!("[[notify]]\nkind = 'command'\ntimeout = '300ms'\nargv = ['/bin/sh', '-c', {script:?}]");
    let path = Path::new("/etc/assay/source.toml");
    let file: File = config::parse(path, &text).expect("the right shape");
    let ways = Way::all(path, &file.notify, &[], &mut Vec::new());
    let mut told = ways[0].send(&Notice::test("source", "a")).await;
    // On a busy machine the shell may not have come as far as that.
    while !pid.exists() {
        told = ways[0].send(&Notice::test("source", "a")).await;
    }
    assert!(told.expect_err("it hangs").message.contains("no answer within 300ms"));
    let text = std::fs::read_to_string(&pid).expect("read");
    let Ok(id) = text.trim().parse::<u32>() else {
        return;
    };
    let is_gone = || match std::fs::read_to_string(format!("/proc/{id}/stat")) {
        // What was killed and not yet reaped is gone, too.
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    };
    for _ in 0..6000 {
        if is_gone() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{id} is still there");
}

/// A command that fails, with these further keys.
pub(crate) fn ways(keys: &str) -> Vec<Way> {
    let text = format!("[[notify]]\nkind = 'command'\nargv = ['/bin/false']\n{keys}");
    let path = Path::new("/etc/assay/source.toml");
    let file: File = config::parse(path, &text).expect("the right shape");
    Way::all(path, &file.notify, &[], &mut Vec::new())
}

fn way_of(argv: &str) -> Way {
    let path = Path::new("/etc/assay/source.toml");
    let text = format!("[[notify]]\nkind = 'command'\nargv = ['/bin/sh', '-c', {argv:?}]");
    let file: File = config::parse(path, &text).expect("the right shape");
    Way::all(path, &file.notify, &[], &mut Vec::new()).pop().expect("a way")
}

fn notice_of(run: &str, event: Event) -> Arc<Notice> {
    let about = About { role: "source", agent: "a".to_owned(), repository: "app".to_owned() };
    let mut notice = Notice::new(event, &about, None, None, Timestamp::now());
    notice.id = format!("app/{run}");
    Arc::new(notice)
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..3000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come to that");
}

/// The receiver is away, the agent ends, the receiver is well again: the next start tells, in order, and each once.
#[tokio::test]
async fn what_waits_outlives_the_agent_and_is_told_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let heard = folder.path().join("heard");
    {
        let mailbox = Mailbox::start(way_of("exit 1"), Some(folder.path()));
        for run in ["r1", "r2", "r1"] {
            mailbox.post(&notice_of(run, Event::NotRun));
        }
        mailbox.post(&notice_of("r3", Event::Overdue));
        assert_eq!(mailbox.waiting(), 3);
        // A PASS has come meanwhile.
        mailbox.withdraw("other", Event::Overdue);
        mailbox.withdraw("app", Event::Overdue);
        assert_eq!(mailbox.waiting(), 2);
    }
    let hear = format!("sed 's/.*\"id\":\"\\([^\"]*\\)\".*/\\1/' >>{}; echo >>{0}", heard.display());
    let again = Mailbox::start(way_of(&hear), Some(folder.path()));
    until(|| again.counts().sent.load(Ordering::SeqCst) == 2).await;
    // The same end once more: the agent before this one was killed before it had noted that it was told.
    again.post(&notice_of("r2", Event::NotRun));
    assert_eq!(again.waiting(), 0);
    let third = Mailbox::start(way_of(&hear), Some(folder.path()));
    third.post(&notice_of("r1", Event::NotRun));
    assert_eq!(third.waiting(), 0);
    let lines = std::fs::read_to_string(&heard).expect("it was told");
    let ids: Vec<_> = lines.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(ids, ["app/r1", "app/r2"]);
}

#[test]
fn an_overdue_is_one_whatever_runs_end_meanwhile() {
    let about = About { role: "source", agent: "a".to_owned(), repository: "app".to_owned() };
    let pass =
        Some(LastPass { run_id: "p".to_owned(), generation: Some(1), mark: None, age_seconds: Some(9) });
    let notice = Notice::new(Event::Overdue, &about, None, pass, Timestamp::now());
    assert_eq!(notice.id, "app/p/overdue");
    assert_eq!(
        serde_json::from_str::<Notice>(&serde_json::to_string(&notice).expect("JSON")).ok(),
        Some(notice)
    );
}

fn webhook_to(address: std::net::SocketAddr, timeout: &str) -> Way {
    let path = Path::new("/etc/assay/source.toml");
    let text =
        format!("[[notify]]\nkind = 'webhook'\nurl = 'http://{address}/hook'\ntimeout = '{timeout}'\n");
    let file: File = config::parse(path, &text).expect("the right shape");
    Way::all(path, &file.notify, &[], &mut Vec::new()).pop().expect("a way")
}

/// Takes a connection and says `answer`, to what it has read when it `reads`; holds the connection open when it `hangs`.
async fn answering(answer: &'static str, reads: bool, hangs: bool) -> std::net::SocketAddr {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut block = [0; 4096];
            if reads {
                drop(stream.read(&mut block).await);
            }
            drop(stream.write_all(answer.as_bytes()).await);
            if hangs {
                held.push(stream);
            }
        }
    });
    address
}

/// Each example of `deploy/notify` sends the request that its service accepts, and only for the events that it names.
#[tokio::test]
async fn the_examples_send_what_their_services_accept() {
    const FAIL: Event = Event::Fail;
    const PASS: Event = Event::Pass;
    // The file, the service's address in it, the event, and the expected request: first line, content type, body.
    let healthchecks = include_str!("../../../deploy/notify/healthchecks.toml");
    let kuma = include_str!("../../../deploy/notify/uptime-kuma.toml");
    let slack = include_str!("../../../deploy/notify/slack.toml");
    let ntfy = include_str!("../../../deploy/notify/ntfy.toml");
    let ping = "00000000-0000-0000-0000-000000000000";
    let fail = notice_of("one", FAIL);
    let (text, line) = (fail.text(), serde_json::json!({ "text": fail.summary }).to_string());
    let plain = "text/plain; charset=utf-8";
    for (file, service, event, expected) in [
        (healthchecks, "https://hc-ping.com", PASS, Some((format!("GET /{ping}"), "", String::new()))),
        (
            healthchecks,
            "https://hc-ping.com",
            FAIL,
            Some((format!("POST /{ping}/fail"), plain, text.clone())),
        ),
        (
            kuma,
            "https://kuma.example.com",
            PASS,
            Some(("GET /api/push/TOKEN?status=up&msg=PASS".to_owned(), "", String::new())),
        ),
        (
            kuma,
            "https://kuma.example.com",
            FAIL,
            Some((
                "GET /api/push/TOKEN?status=down&msg=see%20assay-target%20explain".to_owned(),
                "",
                String::new(),
            )),
        ),
        (
            slack,
            "https://hooks.slack.com",
            FAIL,
            Some(("POST /services/T00000000/B00000000/SECRET".to_owned(), "application/json", line)),
        ),
        (slack, "https://hooks.slack.com", PASS, None),
        (ntfy, "https://ntfy.sh", FAIL, Some(("POST /a-name-that-nobody-guesses".to_owned(), plain, text))),
        (ntfy, "https://ntfy.sh", PASS, None),
    ] {
        assert!(file.contains(service), "{file}");
        let (address, mut asked) = recording().await;
        let file: File =
            config::parse(Path::new("x.toml"), &file.replace(service, &format!("http://{address}")))
                .expect("the right shape");
        let mut faults = Vec::new();
        let ways = Way::all(Path::new("x.toml"), &file.notify, &["app"], &mut faults);
        assert_eq!(faults, [""; 0]);
        let notice = notice_of("one", event);
        let mut told: Vec<_> = ways.iter().filter(|way| way.wants(&notice)).collect();
        assert_eq!(told.len(), usize::from(expected.is_some()), "{service} {event}");
        let (Some(way), Some((line, kind, body))) = (told.pop(), expected) else { continue };
        way.send(&notice).await.expect("it is told");
        let asked = asked.recv().await.expect("it was asked");
        let (head, content) = asked.split_once("\r\n\r\n").expect("a head");
        assert_eq!(head.lines().next(), Some(format!("{line} HTTP/1.1").as_str()));
        let found = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
        assert_eq!((found, content), (kind, body.as_str()), "{service} {event}");
    }
}

/// Starts a server that answers each request with 200, and passes on what it received.
async fn recording() -> (std::net::SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let (sender, asked) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut request, mut block) = (Vec::new(), [0; 4096]);
            let is_whole = |request: &[u8]| {
                let text = String::from_utf8_lossy(request).into_owned();
                text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    body.len() >= length.map_or(0, |length| length.parse().expect("a number"))
                })
            };
            while !is_whole(&request) {
                match stream.read(&mut block).await {
                    Ok(count) if count > 0 => request.extend_from_slice(&block[..count]),
                    _ => break,
                }
            }
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await);
            drop(sender.send(String::from_utf8_lossy(&request).into_owned()).await);
        }
    });
    (address, asked)
}

/// What a receiver says, and whether the notice has arrived, is to be tried again soon, or waits for the next round.
#[tokio::test]
async fn each_answer_of_a_webhook_has_its_meaning() {
    let length = "Content-Length: 9\r\n\r\n";
    for (answer, hangs, expected) in [
        ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), false, None),
        // The head counts: a body that never ends is not waited for.
        (format!("HTTP/1.1 200 OK\r\n{length}x"), true, None),
        (format!("HTTP/1.1 500 Internal Server Error\r\n{length}x"), true, Some((true, "500"))),
        ("HTTP/1.1 429 Too Many Requests\r\n\r\n".to_owned(), false, Some((true, "429"))),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n".to_owned(),
            false,
            Some((false, "302 Found: redirects are not followed")),
        ),
        ("HTTP/1.1 404 Not Found\r\n\r\n".to_owned(), false, Some((false, "404"))),
        ("220 mail.example ESMTP\r\n".to_owned(), false, Some((true, ""))),
        (String::new(), false, Some((true, ""))),
    ] {
        let way = webhook_to(answering(answer.clone().leak(), true, hangs).await, "30s");
        let told = way.send(&Notice::test("source", "a")).await;
        match (told, expected) {
            (Ok(()), None) => {}
            (Err(error), Some((transient, text))) => {
                assert!(
                    error.transient == transient && error.message.contains(text),
                    "{answer:?}: {error:?}"
                );
            }
            (told, expected) => panic!("{answer:?}: {told:?}, and not {expected:?}"),
        }
    }
    let silent = webhook_to(answering("", true, true).await, "200ms");
    let error = silent.send(&Notice::test("source", "a")).await.expect_err("it says nothing");
    assert!(error.transient && error.message.contains("no answer within 200ms"), "{error:?}");
}

/// A mail server that takes the connection and drops it, or says nothing, or is full.
#[tokio::test]
async fn a_mail_server_that_fails_is_tried_again() {
    let path = Path::new("/etc/assay/source.toml");
    for (answer, hangs, transient) in [
        ("", false, true),
        ("", true, true),
        ("220 mail.example\r\n", false, true),
        ("421 too busy\r\n", false, true),
        ("554 we take no mail from you\r\n", false, false),
    ] {
        let address = answering(answer, false, hangs).await;
        let text = format!(
            "[[notify]]\nkind = 'mail'\nsmtp = 'smtp://{address}'\nfrom = 'a@example.org'\nto = ['b@example.org']\ntimeout = '500ms'\n"
        );
        let file: File = config::parse(path, &text).expect("the right shape");
        let way = Way::all(path, &file.notify, &[], &mut Vec::new()).pop().expect("a way");
        let error = way.send(&Notice::test("source", "a")).await.expect_err(answer);
        assert_eq!(error.transient, transient, "{answer:?}: {error:?}");
    }
}

/// A mail server that answers each recipient as it is told: it hands out what it has taken, recipient by recipient.
async fn mail_server(
    answers: impl Fn(&str) -> &'static str + Send + 'static,
) -> (std::net::SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let (heard, taken) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufStream::new(stream);
            let (mut line, mut to, mut is_data) = (String::new(), String::new(), false);
            drop(stream.write_all(b"220 mail.example\r\n").await);
            drop(stream.flush().await);
            while stream.read_line(&mut line).await.is_ok_and(|bytes| bytes > 0) {
                let text = std::mem::take(&mut line);
                let text = text.trim_end();
                let answer = match text.split(' ').next().unwrap_or_default() {
                    "." if is_data => {
                        is_data = false;
                        drop(heard.try_send(std::mem::take(&mut to)));
                        "250 taken"
                    }
                    _ if is_data => continue,
                    "RCPT" => {
                        let name = text.split(['<', '>']).nth(1).unwrap_or_default();
                        let answer = answers(name);
                        if answer.starts_with('2') {
                            to.push_str(name);
                        }
                        answer
                    }
                    "DATA" => {
                        is_data = true;
                        "354 go on"
                    }
                    "QUIT" => break,
                    _ => "250 good",
                };
                drop(stream.write_all(format!("{answer}\r\n").as_bytes()).await);
                drop(stream.flush().await);
            }
        }
    });
    (address, taken)
}

fn mail_to(address: std::net::SocketAddr, to: &[&str]) -> Way {
    let path = Path::new("/etc/assay/source.toml");
    let text = format!(
        "[[notify]]\nkind = 'mail'\nsmtp = 'smtp://{address}'\nfrom = 'a@example.org'\nto = {to:?}\n"
    );
    let file: File = config::parse(path, &text).expect("the right shape");
    Way::all(path, &file.notify, &[], &mut Vec::new()).pop().expect("a way")
}

/// Somebody has left the company: the others are told all the same, each once, and the refusal is told too.
#[tokio::test]
async fn a_recipient_whom_the_server_refuses_takes_the_mail_from_nobody_else() {
    let (address, mut taken) = mail_server(|to| match to {
        "gone@example.org" => "550 no such user",
        _ => "250 good",
    })
    .await;
    let way = mail_to(address, &["one@example.org", "gone@example.org", "two@example.org"]);
    let error = way.send(&notice_of("r1", Event::Fail)).await.expect_err("one is refused");
    assert!(error.partly && !error.transient, "{error:?}");
    assert!(error.message.contains("gone@example.org") && error.message.contains("no such user"), "{error}");
    assert_eq!(
        [taken.try_recv().ok(), taken.try_recv().ok()],
        ["one@example.org", "two@example.org"].map(|to| Some(to.to_owned()))
    );
    // It is not tried for a week: those who could be told have been.
    let folder = tempfile::tempdir().expect("a folder");
    let mailbox = Mailbox::start(way, Some(folder.path()));
    mailbox.post(&notice_of("r2", Event::Fail));
    until(|| mailbox.waiting() == 0).await;
    assert_eq!(mailbox.counts().failed.load(Ordering::SeqCst), 1);
    let nobody = mail_to(address, &["gone@example.org"]);
    let error = nobody.send(&notice_of("r3", Event::Fail)).await.expect_err("all are refused");
    assert!(!error.partly && !error.transient, "{error:?}");
}

/// Greylisting: who is put off gets it with the next try, and nobody gets it twice.
#[tokio::test]
async fn a_recipient_who_is_put_off_is_tried_again_alone() {
    let count = std::sync::atomic::AtomicU64::new(0);
    let (address, mut taken) = mail_server(move |to| match to {
        "later@example.org" if count.fetch_add(1, Ordering::SeqCst) == 0 => "450 try again later",
        _ => "250 good",
    })
    .await;
    let way = mail_to(address, &["later@example.org", "one@example.org"]);
    let notice = notice_of("r1", Event::Fail);
    let error = way.send(&notice).await.expect_err("one is put off");
    assert!(error.partly && error.transient && error.message.contains("later@example.org"), "{error:?}");
    way.send(&notice).await.expect("now");
    let mut all = Vec::new();
    while let Ok(to) = taken.try_recv() {
        all.push(to);
    }
    assert_eq!(all, ["one@example.org", "later@example.org"]);
}

/// A receiver that fails once is tried again, and the notice arrives once.
#[tokio::test]
async fn a_webhook_that_fails_and_then_takes_it_is_told_once() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        for status in ["500 Internal Server Error", "200 OK"] {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                assert!(stream.read_buf(&mut request).await.expect("read") > 0, "the request ends early");
            }
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(text.as_bytes()).await.expect("answered");
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let mailbox = Mailbox::start(webhook_to(address, "30s"), Some(folder.path()));
    mailbox.post(&notice_of("r1", Event::Fail));
    until(|| mailbox.waiting() == 0).await;
    let counts = mailbox.counts();
    assert_eq!((counts.sent.load(Ordering::SeqCst), counts.failed.load(Ordering::SeqCst)), (1, 0));
    server.await.expect("it has answered twice");
}

/// A disk that is full when a notice comes takes it later; one file that cannot be read takes no other away, nor the place of one.
#[tokio::test]
async fn notices_that_a_full_disk_did_not_take_are_stored_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("command");
    let mailbox = Mailbox::start(way_of("exit 1"), Some(folder.path()));
    // Nothing can be written where a file stands in the folder's place.
    std::fs::remove_dir_all(&place).expect("remove");
    std::fs::write(&place, "").expect("write");
    mailbox.post(&notice_of("r1", Event::NotRun));
    assert_eq!(mailbox.waiting(), 1);
    std::fs::remove_file(&place).expect("remove");
    std::fs::create_dir(&place).expect("mkdir");
    mailbox.post(&notice_of("r2", Event::NotRun));
    let names = || {
        let entries = std::fs::read_dir(&place).expect("there").flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.starts_with('0'));
        names.sort();
        names
    };
    assert_eq!(names(), ["000000000000.json", "000000000001.json"]);
    drop(mailbox);
    // A folder cannot be read as a file, also by root.
    std::fs::remove_file(place.join("000000000000.json")).expect("remove");
    std::fs::create_dir(place.join("000000000000.json")).expect("mkdir");
    let next = Mailbox::start(way_of("exit 1"), Some(folder.path()));
    assert_eq!(next.waiting(), 1);
    next.post(&notice_of("r3", Event::NotRun));
    assert_eq!(names(), ["000000000000.json", "000000000001.json", "000000000002.json"]);
}

/// What a checker says cannot pass for a line of the notice, nor drive the terminal or the program that shows it.
#[test]
fn a_message_cannot_forge_a_line_of_a_notice() {
    let about = About { role: "source", agent: "source".to_owned(), repository: "app".to_owned() };
    let mut notice = Notice::new(Event::Test, &about, None, None, Timestamp::now());
    notice.message = "\u{1b}[2J\nrepository   other\nproven good  now\u{202e}\r".to_owned();
    let text = notice.text();
    assert!(text.chars().all(|it| it == '\n' || !crate::path::is_harmful(it)), "{text:?}");
    assert_eq!(text.lines().filter(|line| line.starts_with("repository ")).count(), 1, "{text}");
    assert!(!text.lines().any(|line| line.starts_with("proven good")), "{text}");
}
