//! The numbers of the contents that were offered: each is offered once.

use std::collections::BTreeMap;

/// Numbers, as ranges without gaps. A source numbers its contents one after the other and offers them in about that order: what is
/// missing in between is what its readers hold back.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeMap<u64, u64>);

/// More ranges than a source that follows the protocol ever leaves: a few thousand for each of its readers.
const MAX_RANGES: usize = 1 << 20;

/// Why a number is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It was there before.
    Twice,
    /// There are too many gaps.
    Scattered,
}

impl Seen {
    /// Takes a number.
    pub(super) fn insert(&mut self, number: u64) -> Result<(), Refused> {
        let before = self.0.range(..=number).next_back().map(|(first, end)| (*first, *end));
        if before.is_some_and(|(_, end)| number < end) {
            return Err(Refused::Twice);
        }
        let first = before.filter(|(_, end)| *end == number).map_or(number, |(first, _)| first);
        let end = self.0.remove(&(number + 1)).unwrap_or(number + 1);
        self.0.insert(first, end);
        if self.0.len() > MAX_RANGES { Err(Refused::Scattered) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_number_is_taken_once_in_any_order() {
        let (mut seen, mut known) = (Seen::default(), HashSet::new());
        // Every number below 101 twice, out of order: 37 generates the integers modulo 101.
        for step in 0..202u64 {
            let number = step * 37 % 101;
            let expected = if known.insert(number) { Ok(()) } else { Err(Refused::Twice) };
            assert_eq!(seen.insert(number), expected, "{number}");
        }
        assert_eq!(seen.0.into_iter().collect::<Vec<_>>(), [(0, 101)], "no gap is left");
    }

    #[test]
    fn gaps_are_bounded() {
        let mut seen = Seen::default();
        for number in 0..MAX_RANGES as u64 {
            assert_eq!(seen.insert(number * 2), Ok(()));
        }
        assert_eq!(seen.insert(u64::MAX / 2), Err(Refused::Scattered));
    }
}
