//! Who may see the pages: links that are used once, and the sessions that they become. All of it is in memory alone, by the digests of its
//! secrets: a restart of the agent ends every session.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a link can be used.
pub(crate) const LINK_LIFE: Duration = Duration::from_secs(5 * 60);
/// How long a session lasts, whatever is done in it.
pub(crate) const SESSION_LIFE: Duration = Duration::from_secs(12 * 3600);
/// Links and sessions that there are at a time; the oldest goes for a new one.
const LINKS: usize = 64;
const SESSIONS: usize = 1024;

/// Whose it is, and until when.
#[derive(Debug, Clone)]
struct Entry {
    who: String,
    until: Instant,
}

/// Secrets that are known, by their digests.
#[derive(Debug, Default)]
struct Table(HashMap<[u8; 32], Entry>);

impl Table {
    /// A new secret of 256 bits.
    fn add(&mut self, who: &str, until: Instant, now: Instant, most: usize) -> String {
        self.0.retain(|_, entry| entry.until > now);
        if self.0.len() >= most {
            let oldest = self.0.iter().min_by_key(|(_, entry)| entry.until).map(|(digest, _)| *digest);
            oldest.map(|oldest| self.0.remove(&oldest));
        }
        let secret = hex::encode(rand::random::<[u8; 32]>());
        self.0.insert(digest(&secret), Entry { who: who.to_owned(), until });
        secret
    }

    fn get(&self, secret: &str, now: Instant) -> Option<&Entry> {
        self.0.get(&digest(secret)).filter(|entry| entry.until > now)
    }

    fn take(&mut self, secret: &str, now: Instant) -> Option<Entry> {
        self.0.remove(&digest(secret)).filter(|entry| entry.until > now)
    }
}

/// A table that is read by the digest of what a client sends tells nothing by the time that it takes.
fn digest(secret: &str) -> [u8; 32] {
    *blake3::hash(secret.as_bytes()).as_bytes()
}

/// All links and sessions of a page.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    links: Mutex<Table>,
    sessions: Mutex<Table>,
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// The secret of a link for `who`, which opens one session within [`LINK_LIFE`].
    pub(crate) fn link(&self, who: &str, now: Instant) -> String {
        lock(&self.links).add(who, now + LINK_LIFE, now, LINKS)
    }

    /// Opens the session of a link, which is used up whatever comes of it: the session's secret, and whose it is.
    pub(crate) fn redeem(&self, secret: &str, now: Instant) -> Option<(String, String)> {
        let who = lock(&self.links).take(secret, now)?.who;
        Some((self.open(&who, now), who))
    }

    /// Opens a session for somebody who has shown who it is.
    pub(crate) fn open(&self, who: &str, now: Instant) -> String {
        lock(&self.sessions).add(who, now + SESSION_LIFE, now, SESSIONS)
    }

    /// Whose session it is.
    pub(crate) fn who(&self, secret: &str, now: Instant) -> Option<String> {
        lock(&self.sessions).get(secret, now).map(|entry| entry.who.clone())
    }

    /// Ends a session.
    pub(crate) fn end(&self, secret: &str, now: Instant) -> Option<String> {
        lock(&self.sessions).take(secret, now).map(|entry| entry.who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_opens_one_session_within_minutes() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let link = sessions.link("operator", start);
        assert_eq!(link.len(), 64);
        for wrong in ["", "x", &link[1..], &link.to_uppercase(), &hex::encode([0; 32])] {
            assert!(wrong == link || sessions.redeem(wrong, start).is_none(), "{wrong}");
        }
        // A link is no session.
        assert_eq!(sessions.who(&link, start), None);
        let late = sessions.link("operator", start);
        assert!(sessions.redeem(&late, start + LINK_LIFE).is_none(), "too late");
        assert!(sessions.redeem(&late, start).is_none(), "and used up by that");
        let (session, who) =
            sessions.redeem(&link, start + LINK_LIFE - Duration::from_secs(1)).expect("in time");
        assert_eq!(who, "operator");
        assert!(sessions.redeem(&link, start).is_none(), "used once");
        assert_ne!(session, link);
    }

    #[test]
    fn a_session_ends_by_itself_and_by_logout() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let [first, second] = ["ann", "bob"].map(|who| sessions.open(who, start));
        assert_eq!(sessions.who(&first, start).as_deref(), Some("ann"));
        assert_eq!(sessions.end(&first, start).as_deref(), Some("ann"));
        assert_eq!(sessions.who(&first, start), None, "a cookie that was stolen is worth nothing after that");
        let end = start + SESSION_LIFE;
        assert!(sessions.who(&second, end - Duration::from_secs(1)).is_some());
        assert!(sessions.who(&second, end).is_none());
    }

    #[test]
    fn there_are_never_too_many() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let links: Vec<_> = (0..LINKS + 3)
            .map(|index| sessions.link("x", start + Duration::from_millis(index as u64)))
            .collect();
        let left =
            links.iter().filter(|link| sessions.redeem(link, start + Duration::from_secs(1)).is_some());
        assert_eq!(left.count(), LINKS);
        assert!(sessions.redeem(&links[0], start).is_none());
    }
}
