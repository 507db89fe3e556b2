use std::{path::Path, sync::atomic::Ordering};

use super::*;
use crate::{
    config,
    outbox::{QUEUE, Way as _},
};

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
    let notifier = Notifier::start(Way::all(path, &file.notify, &[], &mut Vec::new()));
    // Nothing is taken out of the queues meanwhile: the test holds the only thread.
    for _ in 0..QUEUE + 10 {
        notifier.tell(Notice::test("source", "a"));
    }
    let dropped: Vec<_> =
        notifier.counts().map(|(_, counts)| counts.dropped.load(Ordering::SeqCst)).collect();
    assert_eq!(dropped, [10, 10]);
    // The way that hangs does not hold up the other.
    let sent = || notifier.counts().nth(1).map(|(_, counts)| counts.sent.load(Ordering::SeqCst));
    for _ in 0..6000 {
        if sent() == Some(QUEUE as u64) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?} of {QUEUE} were told", sent());
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
