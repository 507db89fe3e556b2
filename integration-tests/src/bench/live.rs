//! What a copy costs a database that works meanwhile: told by what stands right before and behind it.

use std::{ops::Range, time::Duration};

use super::postgres::Transactions;

/// A copy that was made while pgbench worked.
#[derive(Clone, Debug)]
pub(super) struct LiveCopy {
    /// Which tool made it.
    pub(super) tool: usize,
    /// From its command to its end, since 1970.
    pub(super) time: Range<Duration>,
    /// Processor seconds of the source's side.
    pub(super) cpu: f64,
}

/// What the copies of one tool cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    pub(super) copies: f64,
    pub(super) cpu: f64,
    /// Transactions that would have ended meanwhile, at the rate of the pauses around each copy.
    pub(super) expected: f64,
    /// Those that did.
    pub(super) ended: f64,
}

impl Cost {
    /// Of the copies that `tool` made, each between two pauses.
    pub(super) fn of(tool: usize, copies: &[LiveCopy], transactions: &Transactions) -> Self {
        let mut cost = Self::default();
        for around in copies.windows(3) {
            let [before, copy, after] = around else { continue };
            if copy.tool != tool || after.time.start > transactions.end() {
                continue;
            }
            let pauses = [before.time.end..copy.time.start, copy.time.end..after.time.start];
            let seconds = |time: &Range<Duration>| time.end.saturating_sub(time.start).as_secs_f64();
            let in_pauses: usize = pauses.iter().map(|pause| transactions.within(pause)).sum();
            let rate = in_pauses as f64 / pauses.iter().map(seconds).sum::<f64>();
            cost.copies += 1.0;
            cost.cpu += copy.cpu;
            cost.expected += rate * seconds(&copy.time);
            cost.ended += transactions.within(&copy.time) as f64;
        }
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A transaction each tenth of a second, but in a copy of Assay's each fifth; in the last pause it has ended.
    #[test]
    fn what_a_copy_costs_is_told_by_the_pauses_around_it() {
        let at = |tenths: u64| Duration::from_millis(tenths * 100);
        let copy = |tool, from, to| LiveCopy { tool, time: at(from)..at(to), cpu: 0.5 };
        let copies = [copy(1, 10, 20), copy(0, 30, 50), copy(1, 60, 70), copy(0, 80, 90), copy(1, 100, 110)];
        let ends = (0..95).filter(|tenth| !(30..50).contains(tenth) || tenth % 2 == 0).map(at).collect();
        let transactions = Transactions::new(ends);
        let assay = Cost::of(0, &copies, &transactions);
        assert_eq!((assay.copies, assay.cpu, assay.ended), (1.0, 0.5, 10.0), "the other ends with the load");
        assert!((assay.expected - 20.0).abs() < 1e-9, "{assay:?}");
        let other = Cost::of(1, &copies, &transactions);
        assert!((other.expected - other.ended).abs() < 1e-9 && other.copies == 1.0, "{other:?}");
    }
}
