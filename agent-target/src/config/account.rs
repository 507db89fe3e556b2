//! Who checks are on this host: `agent.check_user` and `agent.check_group`.

use std::fs;

use super::UserName;
use crate::userns::Account;

/// The account that the package makes for checks.
const OWN: &str = "assay-check";
/// Numbers below it belong to the system: its accounts own files, and its groups open keys and devices.
const SYSTEM: u32 = 1000;

/// A line of `/etc/passwd` or `/etc/group`: the name, its number, and of a user the group.
struct Line {
    name: String,
    number: u32,
    group: Option<u32>,
}

fn lines(path: &str) -> Vec<Line> {
    let line = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        let number = fields.get(2)?.parse().ok()?;
        Some(Line { name: fields[0].to_owned(), number, group: fields.get(3).and_then(|it| it.parse().ok()) })
    };
    fs::read_to_string(path).unwrap_or_default().lines().filter_map(line).collect()
}

/// Finds the pair, and says what is wrong with it.
pub(super) fn find(user: Option<&UserName>, group: Option<&UserName>, faults: &mut Vec<String>) -> Account {
    choose(user, group, &lines("/etc/passwd"), &lines("/etc/group"), faults)
}

fn choose(
    user: Option<&UserName>,
    group: Option<&UserName>,
    users: &[Line],
    groups: &[Line],
    faults: &mut Vec<String>,
) -> Account {
    let own = users.iter().find(|line| line.name == OWN);
    let (uid, own_group) = match user {
        Some(name) => match resolve("agent.check_user", name, users) {
            Ok(uid) => (uid, users.iter().find(|line| line.number == uid).and_then(|line| line.group)),
            Err(fault) => {
                faults.push(fault);
                return Account::DEFAULT;
            }
        },
        None => own.map_or((free(users, groups), None), |line| (line.number, line.group)),
    };
    let gid = match group {
        Some(name) => resolve("agent.check_group", name, groups),
        None => Ok(own_group.unwrap_or(uid)),
    };
    let gid = gid.unwrap_or_else(|fault| {
        faults.push(fault);
        Account::DEFAULT.gid
    });
    for (key, number, lines) in [("agent.check_user", uid, users), ("agent.check_group", gid, groups)] {
        let name = lines.iter().find(|line| line.number == number).map(|line| line.name.as_str());
        let what = name.map_or_else(|| number.to_string(), |name| format!("{number} ({name})"));
        if number == 0 {
            faults.push(format!("{key}: {what}: a check is never root"));
        } else if number < SYSTEM && name != Some(OWN) {
            faults.push(format!(
                "{key}: {what} is of this host's system, whose files a check could reach: name a user of its own, such as {OWN}"
            ));
        } else if number >= Account::LIMIT {
            faults.push(format!("{key}: {what} must be below {}", Account::LIMIT));
        }
    }
    Account { uid, gid }
}

/// The number of nobody that is used where the configuration names no user: 65530, or one below it where this host has given
/// that away.
fn free(users: &[Line], groups: &[Line]) -> u32 {
    let is_free = |number: &u32| !users.iter().chain(groups).any(|line| line.number == *number);
    (65_520..=Account::DEFAULT.uid).rev().find(is_free).unwrap_or(Account::DEFAULT.uid)
}

fn resolve(key: &str, name: &UserName, lines: &[Line]) -> Result<u32, String> {
    match name {
        UserName::Number(number) => Ok(*number),
        UserName::Name(name) => match name.parse() {
            Ok(number) => Ok(number),
            Err(_) => lines
                .iter()
                .find(|line| line.name == *name)
                .map(|line| line.number)
                .ok_or_else(|| format!("{key}: this host has no {name:?} in /etc/passwd and /etc/group")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(user: Option<UserName>, group: Option<UserName>, with_own: bool) -> Result<Account, String> {
        let line = |name: &str, number, group| Line { name: name.into(), number, group };
        let mut users =
            vec![line("root", 0, Some(0)), line("postgres", 101, Some(104)), line("ann", 1000, Some(4))];
        let mut groups = vec![line("root", 0, None), line("ssl-cert", 103, None), line("ann", 1000, None)];
        if with_own {
            users.push(line(OWN, 990, Some(989)));
            groups.push(line(OWN, 989, None));
        }
        let mut faults = Vec::new();
        let account = choose(user.as_ref(), group.as_ref(), &users, &groups, &mut faults);
        if faults.is_empty() { Ok(account) } else { Err(faults.join("; ")) }
    }

    /// The pair is never root, of the system, or of nobody's choosing.
    #[test]
    fn a_check_is_an_unprivileged_user_of_the_configuration() {
        let name = |text: &str| Some(UserName::Name(text.into()));
        assert_eq!(chosen(None, None, false), Ok(Account::DEFAULT));
        assert_eq!(chosen(None, None, true), Ok(Account { uid: 990, gid: 989 }));
        let taken = [65_530, 65_529].map(|number| Line { name: number.to_string(), number, group: None });
        assert_eq!(free(&taken[..1], &taken[1..]), 65_528);
        assert_eq!(chosen(Some(UserName::Number(4242)), None, true), Ok(Account { uid: 4242, gid: 4242 }));
        assert_eq!(chosen(name("4242"), name("ann"), true), Ok(Account { uid: 4242, gid: 1000 }));
        assert_eq!(chosen(name("ann"), name("1001"), false), Ok(Account { uid: 1000, gid: 1001 }));
        for (user, group) in [
            (name("root"), None),
            (Some(UserName::Number(0)), None),
            (name("postgres"), None),
            (name("nobody-here"), None),
            (Some(UserName::Number(4242)), name("ssl-cert")),
            (Some(UserName::Number(4242)), Some(UserName::Number(0))),
            (Some(UserName::Number(4242)), name("nobody-here")),
            // Its own group is the system's.
            (name("ann"), None),
            (Some(UserName::Number(u32::MAX)), None),
            (Some(UserName::Number(33)), None),
        ] {
            assert!(chosen(user.clone(), group.clone(), true).is_err(), "{user:?} {group:?}");
        }
    }
}
