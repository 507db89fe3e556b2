//! Generations that are being used: a check, a restore or a scrub holds what it reads, and what is held is neither pruned nor
//! healed. Whoever wants to hold a generation does that first and looks whether it is there afterwards.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use assay_common::id::GenerationNumber;

type Counts = BTreeMap<GenerationNumber, usize>;

/// What is held of one repository.
#[derive(Debug, Clone, Default)]
pub struct Holds(Arc<Mutex<Counts>>);

/// A generation that is held until this is dropped.
#[derive(Debug)]
pub struct Hold {
    holds: Holds,
    number: GenerationNumber,
}

impl Holds {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a generation.
    pub fn hold(&self, number: GenerationNumber) -> Hold {
        *self.counts().entry(number).or_default() += 1;
        Hold { holds: self.clone(), number }
    }

    /// True when somebody holds it.
    pub fn is_held(&self, number: GenerationNumber) -> bool {
        self.counts().contains_key(&number)
    }

    /// Does `work` unless somebody holds the generation; nobody can begin to meanwhile.
    pub fn unless_held<T>(&self, number: GenerationNumber, work: impl FnOnce() -> T) -> Option<T> {
        let counts = self.counts();
        (!counts.contains_key(&number)).then(work)
    }

    /// The same for one who holds the generation himself, once.
    pub fn unless_held_beside<T>(&self, number: GenerationNumber, work: impl FnOnce() -> T) -> Option<T> {
        let counts = self.counts();
        (counts.get(&number).is_none_or(|count| *count <= 1)).then(work)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut counts = self.holds.counts();
        if let Some(count) = counts.get_mut(&self.number) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_by_two_it_is_free_after_both() {
        let (holds, number) = (Holds::default(), GenerationNumber(3));
        let (first, second) = (holds.hold(number), holds.hold(number));
        drop(first);
        assert_eq!(holds.unless_held(number, || ()), None);
        drop(second);
        assert_eq!(holds.unless_held(number, || 1), Some(1));
        assert!(!holds.is_held(number));
    }
}
