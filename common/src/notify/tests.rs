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
        ("[[notify]]\nkind = 'command'", "argv: a program by its absolute path"),
        ("[[notify]]\nkind = 'command'\nargv = ['mail']", "argv: a program by its absolute path"),
        (
            "[[notify]]\nkind = 'command'\nargv = ['/bin/mail']\nurl = 'http://a'",
            "url belongs to kind \"webhook\"",
        ),
        ("[[notify]]\nkind = 'webhook'", "url was expected"),
        ("[[notify]]\nkind = 'webhook'\nurl = 'ftp://a/'", "https://HOST/PATH"),
        ("[[notify]]\nkind = 'webhook'\nurl = 'https://me:secret@a/'", "token_file"),
        ("[[notify]]\nkind = 'webhook'\nurl = 'http://a/'\nca = 'ca.crt'", "https only"),
        ("[[notify]]\nkind = 'webhook'\nurl = 'http://a/'\ntoken_file = 't'", "url: https was expected"),
        (
            "[[notify]]\nkind = 'mail'\nsmtp = 'smtp://localhost'\nfrom = 'a@b.example'\nto = []",
            "to was expected",
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
            "[[notify]]\nkind = 'webhook'\nurl = 'http://a/'\nrepositories = ['other']",
            "no repository \"other\"",
        ),
    ] {
        let found = faults(text);
        assert!(found.len() == 1 && found[0].contains(told), "{text}: {found:?}");
    }
    let twice =
        "[[notify]]\nkind = 'webhook'\nurl = 'http://a/'\n[[notify]]\nkind = 'webhook'\nurl = 'http://b/'";
    assert!(faults(twice)[0].contains("stands twice"));
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
    let notifier = Notifier::start(Way::all(path, &file.notify, &[], &mut Vec::new()), None);
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
