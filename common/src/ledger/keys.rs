//! Which key may sign which entry of a ledger.
//!
//! The keys are those that the caller has pinned. Their times follow from the chain: an entry by which the old key names the new one
//! ([`KeyChange`]) ends the old key's time there. So nobody who holds an old key can add anything after that entry, name another key, or
//! move the end of its time: the entries behind it link to it, and the new key has signed them.

use super::{EntryId, LedgerFault};
use crate::{
    id::GenerationNumber,
    keyring::Keyring,
    signing::VerifyingKey,
    verdict::{
        HexDigest, KeyChange, KeyOwner, VerdictError, VerifiedVerdict, verify_key_change,
        verify_verdict_among,
    },
};

/// An entry whose signature was checked.
#[derive(Debug)]
pub(super) enum Entry {
    Verdict(Box<VerifiedVerdict>),
    /// With the place of the key that signed it.
    KeyChange(KeyChange, usize),
}

impl Entry {
    pub(super) fn sequence(&self) -> u64 {
        match self {
            Self::Verdict(verified) => verified.verdict.sequence,
            Self::KeyChange(change, _) => change.sequence,
        }
    }

    pub(super) fn previous(&self) -> HexDigest {
        match self {
            Self::Verdict(verified) => verified.verdict.previous,
            Self::KeyChange(change, _) => change.previous,
        }
    }

    pub(super) fn repository(&self) -> &str {
        match self {
            Self::Verdict(verified) => &verified.verdict.repository,
            Self::KeyChange(change, _) => &change.repository,
        }
    }

    /// The place of the key that signed it.
    fn signer(&self) -> usize {
        match self {
            Self::Verdict(verified) => verified.target_place,
            Self::KeyChange(_, place) => *place,
        }
    }
}

/// The time of a key in a ledger.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyPeriod {
    /// Whose key.
    pub owner: KeyOwner,
    /// Its id.
    pub key: String,
    /// The first entry of its time, from 1.
    pub from: u64,
    /// The last one; none for a key whose time has not ended.
    pub to: Option<u64>,
    /// Of a source's key whose time has ended: the newest generation that it vouches for.
    pub last_generation: Option<u64>,
    /// The key after it was named without it: it was lost, or is not trusted.
    pub without_former_key: bool,
}

impl KeyPeriod {
    /// A line for a person.
    pub fn line(&self) -> String {
        let Self { owner, key, .. } = self;
        let from = EntryId(self.from);
        let until = self.to.map_or_else(|| " on".to_owned(), |to| format!(" to {}", EntryId(to)));
        let generation =
            self.last_generation.map_or_else(String::new, |last| format!(", generations up to {last}"));
        let lost = if self.without_former_key {
            "; the next key was named without it (lost, or not trusted)"
        } else {
            ""
        };
        format!("{owner}'s key {key}: entries {from}{until}{generation}{lost}")
    }
}

/// Follows the keys from entry to entry.
pub(super) struct Keys<'a> {
    /// Those that are pinned, and behind them those that an entry named and nobody has pinned.
    target: Vec<VerifyingKey>,
    pinned: usize,
    newest: usize,
    source: Option<&'a Keyring>,
    /// Who signs now.
    current: Option<usize>,
    /// By the key's place: the last entry of its time.
    ends: Vec<Option<u64>>,
    /// By the key's place: the entry that ended its time, and the newest generation that it vouches for.
    source_ends: Vec<Option<(u64, GenerationNumber)>>,
    source_current: Option<usize>,
    /// A key that signs without having been named: since when, which one before it, which one.
    unnamed: Vec<(EntryId, usize, usize)>,
    periods: Vec<(usize, KeyPeriod)>,
    source_periods: Vec<(usize, KeyPeriod)>,
    pub(super) changes: Vec<EntryId>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(target: &Keyring, source: Option<&'a Keyring>) -> Self {
        let pinned = target.all().len();
        Self {
            target: target.all().to_vec(),
            pinned,
            newest: target.current_place(),
            source,
            current: None,
            ends: vec![None; pinned],
            source_ends: vec![None; source.map_or(0, |ring| ring.all().len())],
            source_current: None,
            unnamed: Vec::new(),
            periods: Vec::new(),
            source_periods: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// Reads an entry and checks its signature with any of the keys.
    pub(super) fn read(&self, bytes: &[u8]) -> Result<Entry, VerdictError> {
        match verify_verdict_among(bytes, &self.target, self.source.map(Keyring::all)) {
            Err(VerdictError::OtherType { .. }) => {
                verify_key_change(bytes, &self.target).map(|(change, place)| Entry::KeyChange(change, place))
            }
            verified => verified.map(|verified| Entry::Verdict(Box::new(verified))),
        }
    }

    fn id(&self, place: usize) -> String {
        self.target.get(place).map(VerifyingKey::key_id).unwrap_or_default()
    }

    /// True for a key that must not follow the one at `current`.
    fn is_former(&self, place: usize, current: usize) -> bool {
        self.ends[place].is_some() || (place < current && current < self.pinned)
    }

    fn begins(&mut self, place: usize, from: u64) {
        let (key, owner) = (self.id(place), KeyOwner::Target);
        let period =
            KeyPeriod { owner, key, from, to: None, last_generation: None, without_former_key: false };
        self.current = Some(place);
        self.periods.push((place, period));
    }

    fn ends_with(&mut self, place: usize, last: u64, without_former_key: bool) {
        self.ends[place] = Some(last);
        if let Some((_, period)) = self.periods.iter_mut().rev().find(|(other, _)| *other == place) {
            period.to = Some(last);
            period.without_former_key = without_former_key;
        }
    }

    /// Takes the next entry. Gives what is wrong with whose it is.
    pub(super) fn follow(&mut self, id: EntryId, entry: &Entry) -> Option<LedgerFault> {
        if let Entry::KeyChange(..) = entry {
            self.changes.push(id);
        }
        if let Entry::KeyChange(change, signer) = entry
            && change.without_former_key
        {
            return self.change_without_former(id, change, *signer);
        }
        let signer = entry.signer();
        match self.current {
            None => self.begins(signer, id.0),
            Some(current) if current == signer => {}
            // Whatever it says, also of another key, is not followed.
            Some(current) if self.is_former(signer, current) => {
                let ended = self.ends[signer].unwrap_or_else(|| id.0.saturating_sub(1));
                return Some(LedgerFault::FormerKey { id, key: self.id(signer), ended: EntryId(ended) });
            }
            Some(current) => {
                self.unnamed.push((id, current, signer));
                self.ends_with(current, id.0 - 1, false);
                self.begins(signer, id.0);
            }
        }
        match entry {
            Entry::Verdict(verified) => self.statement(id, verified),
            Entry::KeyChange(change, _) if change.owner == KeyOwner::Source => {
                self.change_of_source(id, change)
            }
            Entry::KeyChange(change, signer) => self.change(id, change, *signer),
        }
    }

    /// The old key names the new one.
    fn change(&mut self, id: EntryId, change: &KeyChange, signer: usize) -> Option<LedgerFault> {
        let wrong = |what| Some(LedgerFault::WrongChange { id, what });
        let (former, new) = change.former().zip(change.successor())?;
        if self.target.get(signer) != Some(&former) {
            return wrong("it names another key as the old one than the key that signed it");
        }
        if change.since != id.0 + 1 {
            return wrong("the new key does not sign from the next entry on");
        }
        let known = self.target.iter().position(|key| *key == new);
        if known.is_some_and(|place| self.is_former(place, signer)) {
            return wrong("it names a key whose time has ended");
        }
        let place = known.unwrap_or_else(|| {
            self.target.push(new.clone());
            self.ends.push(None);
            self.target.len() - 1
        });
        self.ends_with(signer, id.0, false);
        self.begins(place, id.0 + 1);
        let owner = KeyOwner::Target;
        known.is_none().then(|| LedgerFault::Unpinned { id, owner, key: new.key_id() })
    }

    /// The new key takes over from one that is lost. It must be pinned after that one.
    fn change_without_former(
        &mut self,
        id: EntryId,
        change: &KeyChange,
        signer: usize,
    ) -> Option<LedgerFault> {
        let wrong = |what| Some(LedgerFault::WrongChange { id, what });
        let (former, new) = change.former().zip(change.successor())?;
        if self.target.get(signer) != Some(&new) {
            return wrong("it names another key as the new one than the key that signed it");
        }
        let Some(before) = self.target.iter().position(|key| *key == former) else {
            return wrong("it is about an old key that is not among those that were given");
        };
        if signer >= self.pinned || before >= signer || self.ends[signer].is_some() {
            return wrong("a key of which the old key says nothing must be pinned after it");
        }
        let since = EntryId(change.since);
        if self.current == Some(signer) {
            // It has signed for a while: this says why.
            let told = self.unnamed.iter().position(|one| *one == (since, before, signer));
            let Some(told) = told else { return wrong("the new key does not sign since then") };
            self.unnamed.remove(told);
            self.ends_with(before, since.0 - 1, true);
            return None;
        }
        let takes_over = self.current.is_none_or(|current| current == before);
        if !takes_over || since != id {
            let key = self.current.map(|current| self.id(current)).unwrap_or_default();
            return Some(LedgerFault::Unannounced { id, former: key, new: self.id(signer) });
        }
        if self.current.is_some() {
            self.ends_with(before, id.0 - 1, true);
        }
        self.begins(signer, id.0);
        None
    }

    fn change_of_source(&mut self, id: EntryId, change: &KeyChange) -> Option<LedgerFault> {
        let source = self.source?;
        let (former, new) = change.former().zip(change.successor())?;
        let Some(place) = source.position(&new) else {
            let owner = KeyOwner::Source;
            return Some(LedgerFault::Unpinned { id, owner, key: new.key_id() });
        };
        if let Some(before) = source.position(&former) {
            if before > place || self.source_ends[place].is_some() {
                let what = "it names a source's key whose time has ended";
                return Some(LedgerFault::WrongChange { id, what });
            }
            self.end_of_source(before, id, change.last_generation());
        }
        self.begin_of_source(place, id.0);
        None
    }

    fn end_of_source(&mut self, place: usize, id: EntryId, last: GenerationNumber) {
        if self.source_ends[place].is_some() {
            return;
        }
        self.source_ends[place] = Some((id.0, last));
        if let Some((_, period)) = self.source_periods.iter_mut().find(|(other, _)| *other == place) {
            (period.to, period.last_generation) = (Some(id.0 - 1), Some(last.0));
        }
    }

    fn begin_of_source(&mut self, place: usize, from: u64) {
        self.source_current = Some(place);
        let key = self.source.and_then(|ring| ring.all().get(place)).map(VerifyingKey::key_id);
        if self.source_periods.iter().any(|(other, _)| *other == place) {
            return;
        }
        let (key, owner) = (key.unwrap_or_default(), KeyOwner::Source);
        let period =
            KeyPeriod { owner, key, from, to: None, last_generation: None, without_former_key: false };
        self.source_periods.push((place, period));
    }

    /// Whose the source's statement in a verdict is. A generation that an old key has signed can be checked again later, and a generation
    /// that came after that key's time is not the source's.
    fn statement(&mut self, id: EntryId, verified: &VerifiedVerdict) -> Option<LedgerFault> {
        let place = verified.source_place?;
        let generation = verified.verdict.generation;
        if let Some((_, last)) = self.source_ends[place] {
            let key = self.source.and_then(|ring| ring.all().get(place)).map(VerifyingKey::key_id);
            let is_its_own = generation.is_some_and(|generation| generation <= last);
            return (!is_its_own).then(|| LedgerFault::FormerSourceKey { id, key: key.unwrap_or_default() });
        }
        match self.source_current {
            Some(current) if current == place => {}
            Some(current) if current > place => {}
            current => {
                // A newer key that nobody has announced in the ledger: the ones before it end here.
                let last =
                    GenerationNumber(generation.map_or(0, |generation| generation.0.saturating_sub(1)));
                (0..place).for_each(|before| self.end_of_source(before, id, last));
                if current.is_none_or(|current| current < place) {
                    self.begin_of_source(place, id.0);
                }
            }
        }
        None
    }

    /// What is wrong once all entries are known.
    pub(super) fn end(&mut self) -> Vec<LedgerFault> {
        let unnamed = std::mem::take(&mut self.unnamed);
        let mut faults: Vec<_> = unnamed
            .into_iter()
            .map(|(id, former, new)| LedgerFault::Unannounced {
                id,
                former: self.id(former),
                new: self.id(new),
            })
            .collect();
        if self.current.is_some_and(|current| current < self.newest) {
            faults.push(LedgerFault::NotReached { key: self.id(self.newest) });
        }
        faults
    }

    /// The times of all keys, the target's first.
    pub(super) fn into_periods(self) -> Vec<KeyPeriod> {
        self.periods.into_iter().chain(self.source_periods).map(|(_, period)| period).collect()
    }

    /// The last entries that each key of the target may have signed, and each key of the source may have given a receipt for, by their places.
    pub(super) fn last_entries(&self) -> (Vec<Option<u64>>, Vec<Option<u64>>) {
        let source = self.source_ends.iter().map(|end| end.map(|(id, _)| id.saturating_sub(1)));
        (self.ends.clone(), source.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ledger::{Chain, Ledger},
        signing::SigningKey,
        verdict::{sign_key_change, sign_verdict, tests::Example},
    };

    /// A ledger, and keys of its target and its source, oldest first.
    struct Bench {
        _folder: tempfile::TempDir,
        ledger: Ledger,
        target: [SigningKey; 3],
        source: [SigningKey; 2],
    }

    /// The first `count` of `keys`, of which the last one signs.
    fn ring(keys: &[SigningKey], count: usize) -> Keyring {
        let folder = tempfile::tempdir().expect("folder");
        let files: Vec<_> = keys[..count]
            .iter()
            .enumerate()
            .map(|(place, key)| {
                let file = folder.path().join(format!("{place}.pub"));
                key.verifying_key().save(&file).expect("save");
                file
            })
            .collect();
        Keyring::load_all(&files).expect("keys")
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let ledger = Ledger::open(&folder.path().join("ledger")).expect("open");
            let target = std::array::from_fn(|_| SigningKey::generate());
            let source = std::array::from_fn(|_| SigningKey::generate());
            Self { _folder: folder, ledger, target, source }
        }

        /// A verdict on `generation` that the keys at these places sign.
        fn verdict(&self, (target, source): (usize, usize), generation: u64) -> &Self {
            let build = |sequence, previous| {
                let mut verdict = Example::default().verdict(&self.source[source], sequence, previous);
                verdict.generation = Some(GenerationNumber(generation));
                sign_verdict(&verdict, &self.target[target])
            };
            self.ledger.append(build).expect("append");
            self
        }

        /// The key at the place `signer` says that `new` follows `former`.
        fn change(&self, signer: usize, change: impl FnOnce(&mut KeyChange)) -> &Self {
            let raw = |key: &SigningKey| HexDigest(key.verifying_key().to_bytes());
            let build = |sequence, previous| {
                let mut made = KeyChange {
                    repository: Example::default().repository.to_owned(),
                    sequence,
                    previous,
                    owner: KeyOwner::Target,
                    former_key: raw(&self.target[0]),
                    new_key: raw(&self.target[1]),
                    since: sequence + 1,
                    generation: 0,
                    without_former_key: false,
                    time: jiff::Timestamp::UNIX_EPOCH,
                    why: String::new(),
                };
                change(&mut made);
                sign_key_change(&made, &self.target[signer])
            };
            self.ledger.append(build).expect("append");
            self
        }

        fn source_change(&self, generation: u64) -> &Self {
            let [former, new] = [0, 1].map(|place| HexDigest(self.source[place].verifying_key().to_bytes()));
            self.change(0, |change| {
                change.owner = KeyOwner::Source;
                (change.former_key, change.new_key) = (former, new);
                (change.since, change.generation) = (change.sequence, generation);
            })
        }

        fn check(&self, target: usize, source: usize) -> Chain {
            let source = (source > 0).then(|| ring(&self.source, source));
            self.ledger.check(&ring(&self.target, target), source.as_ref()).expect("readable")
        }

        fn faults(&self, target: usize, source: usize) -> Vec<String> {
            self.check(target, source).faults.iter().map(ToString::to_string).collect()
        }
    }

    #[test]
    fn the_old_key_names_the_new_one_and_its_time_ends() {
        let bench = Bench::new();
        bench.verdict((0, 0), 1).change(0, |_| {}).verdict((1, 0), 2);
        assert_eq!(bench.faults(2, 1), [""; 0]);
        let chain = bench.check(2, 1);
        let ends: Vec<_> = chain.periods.iter().map(|period| (period.from, period.to)).collect();
        assert_eq!(ends, [(1, Some(2)), (3, None), (1, None)]);
        assert!(chain.is_in_time_of_target(0, EntryId(2)) && !chain.is_in_time_of_target(0, EntryId(3)));
        assert_eq!(chain.key_changes, [EntryId(2)]);
        // Whoever has pinned one of them, or another behind them.
        assert!(
            bench.faults(1, 1)[0].contains("takes over, and it is not among"),
            "{:?}",
            bench.faults(1, 1)
        );
        assert_eq!(bench.faults(1, 1).len(), 1, "what the named key signs is no further fault");
        assert!(bench.faults(3, 1)[0].contains("does not come to key"), "{:?}", bench.faults(3, 1));
        // The old key goes on, and so does a stranger.
        bench.verdict((0, 0), 3);
        assert!(
            bench.faults(2, 1)[0].contains("whose time ended with entry 000000002"),
            "{:?}",
            bench.faults(2, 1)
        );
        bench.verdict((2, 0), 4);
        assert_eq!(bench.faults(2, 1).len(), 2);
    }

    #[test]
    fn a_key_that_nobody_has_named_is_told_until_it_says_that_the_old_one_is_lost() {
        let bench = Bench::new();
        bench.verdict((0, 0), 1).verdict((1, 0), 2).verdict((1, 0), 3);
        let faults = bench.faults(2, 0);
        assert!(faults.len() == 1 && faults[0].contains("signs from entry 000000002 on"), "{faults:?}");
        bench.change(1, |change| (change.without_former_key, change.since) = (true, 2)).verdict((1, 0), 4);
        assert_eq!(bench.faults(2, 0), [""; 0]);
        assert!(bench.check(2, 0).periods[0].without_former_key);
        // Only for those who have pinned it behind the old one.
        assert!(!bench.faults(1, 0).is_empty());
        let other = Bench::new();
        other.verdict((0, 0), 1).change(1, |change| (change.without_former_key, change.since) = (true, 2));
        assert_eq!(other.verdict((1, 0), 2).faults(2, 0), [""; 0]);
    }

    #[test]
    fn a_key_does_not_name_one_whose_time_has_ended_and_names_only_what_follows_itself() {
        let bench = Bench::new();
        bench.verdict((0, 0), 1).change(0, |_| {}).verdict((1, 0), 2).change(1, |change| {
            std::mem::swap(&mut change.former_key, &mut change.new_key);
        });
        assert!(bench.faults(2, 0)[0].contains("whose time has ended"), "{:?}", bench.faults(2, 0));
        let bench = Bench::new();
        let third = HexDigest(bench.target[2].verifying_key().to_bytes());
        bench.verdict((0, 0), 1).change(0, |change| change.former_key = third);
        assert!(bench.faults(2, 0)[0].contains("another key as the old one"), "{:?}", bench.faults(2, 0));
    }

    #[test]
    fn a_source_key_vouches_for_its_own_generations_whenever_they_are_checked() {
        let bench = Bench::new();
        bench.verdict((0, 0), 1).verdict((0, 0), 2).source_change(2).verdict((0, 1), 3).verdict((0, 0), 2);
        assert_eq!(bench.faults(1, 2), [""; 0]);
        bench.verdict((0, 0), 3);
        let faults = bench.faults(1, 2);
        assert!(
            faults.len() == 1 && faults[0].contains("the source's statement is signed with key"),
            "{faults:?}"
        );
        // Without an entry the first generation of the new key ends the old one's.
        let bench = Bench::new();
        bench.verdict((0, 0), 1).verdict((0, 1), 2).verdict((0, 0), 1);
        assert_eq!(bench.faults(1, 2), [""; 0]);
        assert_eq!(bench.verdict((0, 0), 2).faults(1, 2).len(), 1);
    }
}
