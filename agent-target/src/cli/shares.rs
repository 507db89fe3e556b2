//! How the store's file system is shared by repositories: what `init` and `accept` write, and what `doctor` finds.

use std::path::Path;

use assay_common::config::Size;
use serde::Deserialize as _;

use crate::{config::Config, receive, store};

const MIB: u64 = 1024 * 1024;
/// What `init` leaves free: one in so many bytes of the file system, and so many at most.
const RESERVE_PART: u64 = 20;
const MOST_RESERVE: u64 = 16 * 1024 * MIB;

/// A size as it stands in a configuration.
pub(super) fn size(text: &str) -> Result<Size, String> {
    let value = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
    Size::deserialize(value).map_err(|error| error.to_string())
}

/// In whole MiB, which people can read.
fn whole(bytes: u64) -> Size {
    Size(bytes - bytes % MIB)
}

/// Bytes of the file system that holds, or will hold, this store.
fn bytes_of(store: &Path) -> Option<u64> {
    store::file_system_bytes(store.ancestors().find(|folder| folder.is_dir())?)
}

fn reserve_and_quota(bytes: u64) -> Option<(Size, Size)> {
    let reserve = whole((bytes / RESERVE_PART).min(MOST_RESERVE));
    let quota = whole(bytes.saturating_sub(reserve.0) / 2);
    (quota.0 > 0).then_some((reserve, quota))
}

/// What `init` writes: what runs leave free, and what a repository may hold that sets no quota of its own.
pub(super) fn of_file_system(store: &Path) -> Option<(Size, Size)> {
    reserve_and_quota(bytes_of(store)?)
}

/// The quota of the last repository of this configuration, which was added just now: half of what the others may not hold. `None` where
/// that is nothing, or not known.
pub(super) fn of_next(config: &Config) -> Option<Size> {
    let (_, others) = config.repositories.split_last()?;
    let reserve =
        receive::reserve(config.agent.reserve, config.agent.store.ancestors().find(|it| it.is_dir())?);
    let taken =
        others.iter().filter_map(|other| other.quota).fold(0, |sum: u64, quota| sum.saturating_add(quota.0));
    let quota = half_of_rest(bytes_of(&config.agent.store)?, reserve.0, taken);
    (quota.0 > 0).then_some(quota)
}

fn half_of_rest(bytes: u64, reserve: u64, taken: u64) -> Size {
    whole(bytes.saturating_sub(reserve).saturating_sub(taken) / 2)
}

/// Why one repository can fill the disk for the others, if so, and what to do.
pub(super) fn fault(config: &Config) -> Option<(String, &'static str)> {
    let several = config.repositories.len() > 1;
    let without: Vec<_> =
        config.repositories.iter().filter(|it| it.quota.is_none()).map(|it| it.name.as_str()).collect();
    if several && !without.is_empty() {
        let text = format!("{} may fill the disk for the others", without.join(", "));
        return Some((text, "set quota of each repository, or of [agent] for all"));
    }
    let reserve =
        receive::reserve(config.agent.reserve, config.agent.store.ancestors().find(|it| it.is_dir())?);
    let all =
        config.repositories.iter().filter_map(|it| it.quota).fold(0, |sum: u64, it| sum.saturating_add(it.0));
    let room = bytes_of(&config.agent.store)?.saturating_sub(reserve.0);
    (several && all > room).then(|| {
        let text = format!("{} together, and the store has room for {}", whole(all), whole(room));
        (text, "lower them, or enlarge the file system")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_leave_the_reserve_and_something_for_the_next() {
        let gib = 1024 * MIB;
        let (reserve, quota) = reserve_and_quota(100 * gib).expect("shares");
        assert_eq!((reserve, quota), (Size(5 * gib), whole(95 * gib / 2)));
        assert_eq!(reserve_and_quota(1000 * 1024 * gib).expect("shares").0, Size(16 * gib));
        assert_eq!(reserve_and_quota(MIB), None);
        let mut taken = 0;
        for _ in 0..8 {
            let next = half_of_rest(100 * gib, 5 * gib, taken);
            assert!(next.0 > 0);
            taken += next.0;
        }
        assert!(taken < 95 * gib);
        assert_eq!(half_of_rest(10, 20, 0), Size(0));
    }

    #[test]
    fn a_size_on_the_command_line_is_that_of_the_configuration() {
        assert_eq!(size("500GiB"), Ok(Size(500 * 1024 * MIB)));
        assert!(size("500").expect_err("no unit").contains("with its unit"));
    }
}
