//! How many runs copy at a time, on all repositories of this target: whoever comes when there are enough is told when to come back.
//!
//! A source has half of the places at most, by the identity in its certificate, so that none keeps the others out; where they connect from
//! does not count. A place is taken with the opening of a run and free again when it is sealed or given up. That of a source that went away in the
//! middle is free as soon as nothing is received any more.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use assay_common::{
    cli::show,
    rpc_status::{BUSY, RpcFault},
};
use tonic::Code;

/// When a source that found no place may come back.
const COME_BACK: Duration = Duration::from_secs(1);
/// How long a run may hold its place while nothing of it is being received: it makes its mark.
const IDLE: Duration = Duration::from_secs(60);

/// The places.
#[derive(Debug)]
pub(super) struct CopySlots {
    limit: usize,
    /// Who has one, by the name of the repository.
    taken: Mutex<BTreeMap<String, Taken>>,
}

#[derive(Debug)]
struct Taken {
    source: String,
    since: Instant,
}

impl CopySlots {
    /// So many of them.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, taken: Mutex::default() }
    }

    /// Takes a place for a run of a repository, which keeps one that it has. `is_receiving` says of a repository whether content comes in or is
    /// sealed now.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` with the time to come back.
    pub(super) fn take(
        &self,
        repository: &str,
        source: &str,
        is_receiving: impl Fn(&str) -> bool,
    ) -> Result<(), RpcFault> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|name, taken| taken.since.elapsed() < IDLE || is_receiving(name));
        let others = taken.iter().filter(|(name, _)| *name != repository);
        let all = others.clone().count();
        let of_source = others.filter(|(_, taken)| taken.source == source).count();
        let share = self.limit.div_ceil(2);
        let text = if of_source >= share {
            format!(
                "it receives {} of the source {source:?} already, which may have {share} at a time",
                show::counted(of_source as u64, "run")
            )
        } else if all >= self.limit {
            format!(
                "it receives {} already, and takes {} at a time",
                show::counted(all as u64, "run"),
                self.limit
            )
        } else {
            taken.insert(repository.to_owned(), Taken { source: source.to_owned(), since: Instant::now() });
            return Ok(());
        };
        Err(RpcFault::new(Code::ResourceExhausted, BUSY, text).with_retry_after(COME_BACK).with_hint(
            "the source waits for its turn; limits.runs_at_a_time on the target sets how many runs are received at a time",
        ))
    }

    /// The repository's run needs its place no longer.
    pub(super) fn free(&self, repository: &str) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(repository);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_half_of_the_places_and_the_rest_is_for_others() {
        let slots = CopySlots::new(4);
        let take = |repository: &str, source: &str| slots.take(repository, source, |_| false);
        take("a", "one").expect("a place");
        take("b", "one").expect("a place");
        let refused = take("c", "one").expect_err("half of them");
        assert_eq!((refused.code, &*refused.reason), (Code::ResourceExhausted, BUSY));
        assert!(refused.retry_after.is_some() && refused.message.contains("may have 2"), "{refused}");
        // The run of a repository takes the place of the one before it.
        take("a", "one").expect("its own place");
        take("d", "two").expect("a place");
        take("e", "three").expect("a place");
        assert!(take("f", "four").expect_err("no place").message.contains("takes 4 at a time"));
        slots.free("a");
        take("f", "four").expect("a place");
    }

    #[test]
    fn the_place_of_a_source_that_went_away_becomes_free() {
        let slots = CopySlots::new(2);
        let long_ago = Instant::now().checked_sub(IDLE).expect("the machine runs for longer");
        for repository in ["gone", "receiving"] {
            let taken = Taken { source: "one".to_owned(), since: long_ago };
            slots.taken.lock().expect("no panic").insert(repository.to_owned(), taken);
        }
        slots.take("new", "two", |name| name == "receiving").expect("the place of the one that is gone");
        assert!(slots.take("newer", "two", |name| name == "receiving").is_err());
    }
}
