//! The end of the agent's certificate: told once when it is near, and once when it no longer is.

use jiff::Timestamp;

use super::{Event, Notice, Notifier, OVER};
use crate::{cli::screen::safe, tls::renewal, watch::About};

/// Remembers the notice that the agent sent about the certificate in use.
#[derive(Debug, Default)]
pub(super) struct Teller {
    /// The end that was told.
    told: Option<Timestamp>,
    /// The agent before this one may have left a notice that holds no longer.
    has_looked: bool,
}

impl Teller {
    /// Looks at `expires`, when the certificate in use ends, and tells what is news.
    pub(super) fn tell(
        &mut self,
        notifier: &Notifier,
        about: &About,
        expires: Option<Timestamp>,
        now: Timestamp,
    ) {
        let Some(expires) = expires else { return };
        let warning = renewal::warning(expires, now);
        let near = warning.is_some().then_some(expires);
        let before = std::mem::replace(&mut self.told, near);
        let is_first = !std::mem::replace(&mut self.has_looked, true);
        if before == near && !is_first {
            return;
        }
        // A notice about another certificate than the one in use holds no longer. The same one is not posted twice.
        if near.is_none() || before.is_some() {
            notifier.withdraw(&about.repository, Event::Certificate);
        }
        match (warning, before) {
            (Some(text), _) => notifier.tell(Notice::of_certificate(about, expires, text, false, now)),
            (None, Some(before)) => {
                let end = expires.strftime("%Y-%m-%d %H:%M:%SZ");
                let text = format!("over: the certificate in use ends on {end}");
                notifier.tell(Notice::of_certificate(about, before, text, true, now));
            }
            (None, None) => {}
        }
    }
}

impl Notice {
    /// About the certificate that ends at `end`.
    fn of_certificate(about: &About, end: Timestamp, text: String, is_over: bool, now: Timestamp) -> Self {
        let mut notice = Self::new(Event::Certificate, about, None, None, now);
        let over = if is_over { OVER } else { "" };
        notice.id = format!("{}/{}/{end}/certificate{over}", about.role, about.agent);
        "certificate-expires".clone_into(&mut notice.reason);
        notice.message = text;
        notice.summary = safe(&notice.in_a_line());
        notice
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jiff::ToSpan as _;

    use super::*;
    use crate::notify::tests::ways;

    /// The ids and messages that wait in the queue on disk, oldest first.
    fn waiting(folder: &Path) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(folder.join("command")).expect("there").flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        let texts = paths.iter().map(|path| std::fs::read(path).expect("read"));
        let notices = texts.map(|text| serde_json::from_slice::<Notice>(&text).expect("a notice"));
        notices.map(|notice| (notice.id, notice.message)).collect()
    }

    /// Told once when the end is near; a renewal takes back what has not arrived, and is told.
    #[tokio::test]
    async fn the_end_of_a_certificate_is_told_once_until_it_is_renewed() {
        let folder = tempfile::tempdir().expect("a folder");
        let about = About { role: "source", agent: "live".to_owned(), repository: String::new() };
        let end = Timestamp::from_second(1_800_000_000).expect("a time");
        let from = renewal::warned_from(end);
        // Nothing is delivered: the test never gives the runtime a turn.
        let queue = folder.path().join(".notices");
        let notifier = Notifier::start_in(ways("on = ['certificate']"), &queue, "live");
        let mut teller = Teller::default();
        let ids = || waiting(&queue).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        let near = format!("source/live/{end}/certificate");
        for (expires, now, expected) in [
            (None, from + 1.hours(), 0),
            (Some(end), from - 1.hours(), 0),
            (Some(end), from + 1.hours(), 1),
            (Some(end), from + 2.hours(), 1),
            (Some(end), end + 1.hours(), 1),
        ] {
            teller.tell(&notifier, &about, expires, now);
            assert_eq!(ids(), vec![near.clone(); expected], "{now}");
        }
        // For three days only: another certificate whose end is near.
        let brief = end + 72.hours();
        teller.tell(&notifier, &about, Some(brief), end);
        assert_eq!(ids(), [format!("source/live/{brief}/certificate")]);
        let long = end + (24 * 400).hours();
        teller.tell(&notifier, &about, Some(long), end);
        let told = waiting(&queue);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0, format!("source/live/{brief}/certificate/over"));
        assert!(told[0].1.starts_with("over: the certificate in use ends on 2028-02-"), "{told:?}");
    }

    /// The certificate was renewed while the agent was down: what the one before has left in the queue holds no longer.
    #[tokio::test]
    async fn a_notice_of_a_certificate_that_was_renewed_meanwhile_is_taken_back() {
        let about = About { role: "target", agent: "vault".to_owned(), repository: String::new() };
        let end = Timestamp::from_second(1_800_000_000).expect("a time");
        let notifier = Notifier::start(ways("on = ['certificate']"));
        let waiting = || notifier.waiting().map(|(_, count)| count).sum::<usize>();
        Teller::default().tell(&notifier, &about, Some(end), end);
        assert_eq!(waiting(), 1);
        // The next start of the agent, with the same certificate, and with another one.
        Teller::default().tell(&notifier, &about, Some(end), end);
        assert_eq!(waiting(), 1);
        Teller::default().tell(&notifier, &about, Some(end + (24 * 400).hours()), end);
        assert_eq!(waiting(), 0);
    }
}
