//! Who a check is: numbers inside of its user namespace, and other numbers outside of it.
//!
//! The manifest of a source names the owners of files, and an engine insists on some of them: PostgreSQL only starts as the
//! owner of its data folder. So inside its namespace a step sees the owners that the source sent, and sees itself as one of
//! them. Outside, on this host, the step has the numbers of the target's configuration ([`Account`]), and every other owner
//! is a number that belongs to nobody.
//!
//! ```text
//! inside and on the disk            outside: processes, and the workspace's mounts
//! the user that a step sees itself as   the configured user
//! any other number below 2^31           that number + 2^31
//! numbers from 2^31 on                  none: such a file can be read as "others" can, and not be changed
//! ```
//!
//! [`IdMap`] holds two namespaces with this map. Steps enter `processes`. The workspace's mounts get `mounts`, which has one
//! more line: the agent itself (user 0 outside) makes files in a workspace, and an overlay makes its own, and each needs a
//! number on the disk. No step may have that line, or it could become user 0 outside.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    process::{Child, Command, Stdio},
};

use rustix::fs::{Mode, OFlags};

/// Every other owner has this much added outside of the namespace.
const OTHERS: u32 = 1 << 31;
/// What the agent's own files in a workspace have as their owner on the disk, unless a root's owner has this number.
const AGENT: u32 = 0xffff_fff0;

/// A user and a group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Account {
    /// The pair that checks have unless the configuration or an account of this host says otherwise. systemd's list of numbers
    /// leaves 65520 to 65533 to nobody, and Debian's has no accounts there; 65534 is NFS's and the kernel's, and programs of
    /// others run with it.
    pub const DEFAULT: Self = Self { uid: 65_530, gid: 65_530 };

    /// The numbers below which users outside must be, so that they are told from those of other owners.
    pub const LIMIT: u32 = OTHERS;
}

/// The map between the numbers inside and outside, and namespaces that have it.
#[derive(Debug)]
pub struct IdMap {
    inside: Account,
    outside: Account,
    processes: OwnedFd,
    mounts: OwnedFd,
}

impl IdMap {
    /// Makes namespaces in which `outside` is `inside`. Needs root.
    ///
    /// # Errors
    /// When this host makes no user namespaces, or not with these numbers.
    pub fn create(inside: Account, outside: Account) -> io::Result<Self> {
        let lines = |inside, outside, with_agent| {
            let mut lines = extents(inside, outside);
            if with_agent {
                lines.push((if inside == AGENT { AGENT + 1 } else { AGENT }, 0, 1));
            }
            lines
        };
        // Both start at once.
        let (processes, mounts) = (Builder::start()?, Builder::start()?);
        let finish = |builder: Builder, with_agent| {
            builder.finish(
                &lines(inside.uid, outside.uid, with_agent),
                &lines(inside.gid, outside.gid, with_agent),
            )
        };
        Ok(Self { inside, outside, processes: finish(processes, false)?, mounts: finish(mounts, true)? })
    }

    /// The user and the group that `outside` is inside.
    pub fn inside(&self) -> Account {
        self.inside
    }

    /// The number that a user has outside, if any.
    pub fn uid_outside(&self, inside: u32) -> Option<u32> {
        outside(inside, self.inside.uid, self.outside.uid)
    }

    /// The number that a group has outside, if any.
    pub fn gid_outside(&self, inside: u32) -> Option<u32> {
        outside(inside, self.inside.gid, self.outside.gid)
    }

    /// The namespace for a step's processes.
    pub fn processes(&self) -> BorrowedFd<'_> {
        self.processes.as_fd()
    }

    /// The way by which another process of the agent's user opens the namespace for processes.
    pub fn processes_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.processes.as_raw_fd())
    }

    /// Gives a mount that is not attached yet the map: owners on the disk are inside, owners that are seen are outside.
    ///
    /// # Errors
    /// When the kernel or the file system cannot.
    pub fn apply(&self, mount: BorrowedFd<'_>) -> io::Result<()> {
        composefs_ioctls::mount::mount_setattr_idmap(mount, self.mounts.as_fd())
    }
}

fn outside(number: u32, inside: u32, outside: u32) -> Option<u32> {
    if number == inside { Some(outside) } else { number.checked_add(OTHERS).filter(|it| *it != u32::MAX) }
}

/// Lines of a map: the first number inside, the first one outside, how many.
fn extents(inside: u32, outside: u32) -> Vec<(u32, u32, u32)> {
    // The last number of all stands for none.
    let (below, above) = (inside.min(OTHERS - 1), inside.saturating_add(1));
    let mut lines = vec![(inside, outside, 1)];
    if below > 0 {
        lines.push((0, OTHERS, below));
    }
    if above < OTHERS - 1 {
        lines.push((above, OTHERS + above, OTHERS - 1 - above));
    }
    lines
}

/// A process in a namespace that has no map yet.
struct Builder(Child);

impl Builder {
    fn start() -> io::Result<Self> {
        let child = Command::new("unshare")
            .args(["--user", "--", "cat"])
            .env_clear()
            .env("PATH", crate::check::SEARCH_PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let child =
            child.map_err(|error| io::Error::new(error.kind(), format!("unshare (util-linux): {error}")))?;
        Ok(Self(child))
    }

    fn finish(mut self, uids: &[(u32, u32, u32)], gids: &[(u32, u32, u32)]) -> io::Result<OwnedFd> {
        let failed = || io::Error::other("no pipe");
        let stdin = self.0.stdin.as_mut().ok_or_else(failed)?;
        let stdout = self.0.stdout.as_mut().ok_or_else(failed)?;
        // Once it echoes, it is in its namespace.
        let echoed = stdin.write_all(b"\n").and_then(|()| stdout.read_exact(&mut [0]));
        if echoed.is_err() {
            let mut said = String::new();
            self.0.stderr.take().map(|it| it.take(4096).read_to_string(&mut said));
            let said = said.lines().next().unwrap_or("it ended");
            return Err(io::Error::other(format!("no user namespace can be made: {said}")));
        }
        let folder = format!("/proc/{}", self.0.id());
        for (name, lines) in [("uid_map", uids), ("gid_map", gids)] {
            let text: String = lines
                .iter()
                .map(|(inside, outside, count)| format!("{inside} {outside} {count}\n"))
                .collect();
            let path = format!("{folder}/{name}");
            // In one call, which is how the kernel wants it.
            let written =
                File::options().write(true).open(&path).and_then(|mut it| it.write_all(text.as_bytes()));
            written.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("no user namespace with numbers of its own can be made: {name}: {error}"),
                )
            })?;
        }
        Ok(rustix::fs::open(format!("{folder}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever number the source sends, nobody inside is root or an account outside, and each number stands for one other.
    #[test]
    fn no_number_inside_is_an_account_outside() {
        for inside in [0, 1, 33, 65_530, 65_534, OTHERS - 2, OTHERS - 1, OTHERS, AGENT, u32::MAX - 1] {
            let lines = extents(inside, 65_530);
            let mut spans: Vec<_> = Vec::new();
            for (first, outside, count) in lines {
                assert!(
                    count > 0 && first.checked_add(count).is_some() && outside.checked_add(count).is_some()
                );
                assert!(outside == 65_530 && count == 1 || outside >= OTHERS, "{inside}: {outside} {count}");
                spans.push((first, count));
            }
            spans.sort_unstable();
            assert!(spans.windows(2).all(|it| it[0].0 + it[0].1 <= it[1].0), "{inside}: {spans:?}");
        }
        assert_eq!(outside(26, 26, 65_530), Some(65_530));
        assert_eq!(outside(0, 26, 65_530), Some(OTHERS));
        assert_eq!(outside(65_530, 26, 65_530), Some(OTHERS + 65_530));
        assert_eq!(outside(OTHERS, 26, 65_530), None);
    }

    /// The kernel takes every such map.
    #[test]
    fn the_kernel_takes_the_map() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        for number in [0, 1, 26, OTHERS - 2, OTHERS - 1, OTHERS, AGENT, u32::MAX - 1] {
            let inside = Account { uid: number, gid: number };
            let map =
                IdMap::create(inside, Account::DEFAULT).unwrap_or_else(|error| panic!("{number}: {error}"));
            let done = Command::new("nsenter")
                .arg(format!("--user={}", map.processes_path()))
                .args(["--setuid", &number.to_string(), "--setgid", &number.to_string(), "--"])
                .args(["sh", "-c", "id -u; id -g; id -G; cut -c1-40 /proc/self/uid_map"])
                .output()
                .expect("nsenter");
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            assert!(said.starts_with(&format!("{number}\n{number}\n{number}\n")), "{done:?}");
        }
    }
}
