//! Every file of a ledger × every kind of edit: none goes unseen.

use std::path::PathBuf;

use super::*;
use crate::{
    signing::SigningKey,
    verdict::{sign_verdict, tests::Example},
};

const ENTRIES: u64 = 5;
const RUNS: [&str; 5] = [
    "20261122T220000Z-000001",
    "20261122T230000Z-000002",
    "20261123T000030Z-000003",
    "20261123T010000Z-000004",
    "20261123T020000Z-000005",
];

struct Bench {
    folder: tempfile::TempDir,
    target: SigningKey,
    source: SigningKey,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp");
        let bench = Self { folder, target: SigningKey::generate(), source: SigningKey::generate() };
        bench.fill("ledger", &bench.target);
        // One of the same shape and the same key, from which parts are taken.
        bench.fill("other", &bench.target);
        bench.fill("forged", &SigningKey::generate());
        bench
    }

    fn fill(&self, name: &str, key: &SigningKey) {
        let ledger = Ledger::open(&self.folder.path().join(name)).expect("open");
        for run_id in RUNS {
            let root = if name == "ledger" { HexDigest([7; 32]) } else { HexDigest([8; 32]) };
            let example = Example { run_id, root, ..Default::default() };
            let build =
                |sequence, previous| sign_verdict(&example.verdict(&self.source, sequence, previous), key);
            ledger.append(build).expect("append");
        }
    }

    fn ledger(&self) -> Ledger {
        Ledger::at(&self.folder.path().join("ledger"))
    }

    fn file(&self, ledger: &str, id: u64) -> PathBuf {
        self.folder.path().join(ledger).join(format!("{id:09}.json"))
    }

    fn audit(&self, expected: &Expected<'_>) -> Vec<String> {
        let keys = (self.target.verifying_key().into(), self.source.verifying_key().into());
        let audit = audit(&self.ledger(), &keys.0, Some(&keys.1), expected).expect("readable");
        audit.findings.iter().map(ToString::to_string).collect()
    }
}

type Edit = fn(&Bench, u64);

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
}

/// One member of the envelope comes from elsewhere.
fn take(bench: &Bench, id: u64, from: (&str, u64), pointer: &str) {
    let (path, other) = (bench.file("ledger", id), bench.file(from.0, from.1));
    let mut envelope = json(&path);
    *envelope.pointer_mut(pointer).expect("it is there") =
        json(&other).pointer(pointer).expect("it is there").clone();
    fs::write(path, envelope.to_string()).expect("write");
}

/// Another entry of the same ledger.
fn next(id: u64) -> u64 {
    id % ENTRIES + 1
}

fn change(bench: &Bench, id: u64, change: impl FnOnce(&mut Vec<u8>)) {
    let path = bench.file("ledger", id);
    let mut bytes = fs::read(&path).expect("read");
    change(&mut bytes);
    fs::write(path, bytes).expect("write");
}

const EDITS: [(&str, Edit); 16] = [
    ("removed", |bench, id| fs::remove_file(bench.file("ledger", id)).expect("remove")),
    ("emptied", |bench, id| change(bench, id, Vec::clear)),
    ("cut off", |bench, id| change(bench, id, |bytes| bytes.truncate(bytes.len() / 2))),
    ("a line feed more", |bench, id| change(bench, id, |bytes| bytes.push(b'\n'))),
    ("a bit of the payload", |bench, id| {
        change(bench, id, |bytes| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let place = text.find("payload\":\"").expect("payload") + 400;
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
        });
    }),
    ("exchanged with another", |bench, id| {
        let (one, two) = (bench.file("ledger", id), bench.file("ledger", next(id)));
        let (first, second) = (fs::read(&one).expect("read"), fs::read(&two).expect("read"));
        fs::write(one, second).expect("write");
        fs::write(two, first).expect("write");
    }),
    ("a copy of another", |bench, id| {
        fs::copy(bench.file("ledger", next(id)), bench.file("ledger", id)).map(drop).expect("copy");
    }),
    ("moved to the end", |bench, id| {
        fs::rename(bench.file("ledger", id), bench.file("ledger", ENTRIES + 1)).expect("rename");
    }),
    ("copied to the end", |bench, id| {
        fs::copy(bench.file("ledger", id), bench.file("ledger", ENTRIES + 1)).map(drop).expect("copy");
    }),
    ("its like of another ledger", |bench, id| {
        fs::copy(bench.file("other", id), bench.file("ledger", id)).map(drop).expect("copy");
    }),
    ("signed by another key", |bench, id| {
        fs::copy(bench.file("forged", id), bench.file("ledger", id)).map(drop).expect("copy");
    }),
    ("another's payload", |bench, id| take(bench, id, ("other", id), "/payload")),
    ("another's signature", |bench, id| take(bench, id, ("other", id), "/signatures/0/sig")),
    ("a neighbour's signature", |bench, id| take(bench, id, ("ledger", next(id)), "/signatures/0/sig")),
    ("a forger's signatures", |bench, id| take(bench, id, ("forged", id), "/signatures")),
    ("a stranger beside it", |bench, id| {
        fs::write(bench.folder.path().join(format!("ledger/{id}.txt")), "").expect("write");
    }),
];

#[test]
fn every_edit_of_every_file_is_found() {
    let mut count = 0;
    for (name, edit) in EDITS {
        for id in 1..=ENTRIES {
            let bench = Bench::new();
            let noted = head(&bench.ledger()).expect("readable");
            let expected = Expected { head: noted, ..Default::default() };
            assert_eq!(bench.audit(&expected), [""; 0]);
            edit(&bench, id);
            assert!(!bench.audit(&expected).is_empty(), "{name}: verdict {id}");
            count += 1;
        }
    }
    assert_eq!(count, EDITS.len() as u64 * ENTRIES);
}

/// What the chain cannot show: its end, and all of it rebuilt. A noted head shows both, and so do the source's copies.
#[test]
fn a_ledger_without_its_end_and_one_made_anew_are_found() {
    for gone in 1..=ENTRIES {
        let bench = Bench::new();
        let copies = bench.folder.path().join("copies");
        fs::create_dir(&copies).expect("mkdir");
        for id in 1..=ENTRIES {
            fs::copy(bench.file("ledger", id), copies.join(format!("{}.json", RUNS[id as usize - 1])))
                .expect("copy");
        }
        let noted = head(&bench.ledger()).expect("readable");
        let with_copies = Expected { copies: Some(&copies), ..Default::default() };
        assert_eq!(bench.audit(&with_copies), [""; 0]);
        (gone..=ENTRIES).for_each(|id| fs::remove_file(bench.file("ledger", id)).expect("remove"));
        assert_eq!(bench.audit(&Expected::default()), [""; 0], "the chain alone does not show it");
        let found = bench.audit(&Expected { head: noted, ..Default::default() });
        assert!(found.len() == 1 && found[0].contains("newest verdicts are gone"), "{found:?}");
        assert_eq!(bench.audit(&with_copies).len() as u64, ENTRIES + 1 - gone);
        // Made anew, as long as before and by the same key.
        (1..=ENTRIES).for_each(|id| {
            fs::copy(bench.file("other", id), bench.file("ledger", id)).map(drop).expect("copy");
        });
        assert_eq!(bench.audit(&Expected { head: noted, ..Default::default() }).len(), 1);
        assert_eq!(bench.audit(&with_copies).len() as u64, ENTRIES);
    }
    // An older head is as good: the ledger has grown since.
    let bench = Bench::new();
    let bytes = fs::read(bench.file("ledger", 2)).expect("read");
    let older = Head { sequence: 2, digest: link_digest(&bytes) };
    assert_eq!(older.to_string().parse(), Ok(older));
    assert_eq!(bench.audit(&Expected { head: Some(older), ..Default::default() }), [""; 0]);
    for bad in ["", "1:00", "000000001", "+00000001:00"] {
        assert!(bad.parse::<Head>().is_err(), "{bad}");
    }
}

#[test]
fn missed_slots_show() {
    let bench = Bench::new();
    let every = Some(Duration::from_secs(3600));
    let until = "2026-11-23T05:59:00Z".parse().ok();
    assert_eq!(bench.audit(&Expected { every, ..Default::default() }), [""; 0]);
    let found = bench.audit(&Expected { every, until, ..Default::default() });
    let text = "no run was begun between 2026-11-23T03:00:00Z and 2026-11-23T05:00:00Z: 2 slots of the schedule were missed";
    assert_eq!(found, [text]);
    let half = Some(Duration::from_secs(1800));
    assert_eq!(bench.audit(&Expected { every: half, ..Default::default() }).len(), 4);
}

#[test]
fn another_tree_in_a_generations_place_is_found() {
    let bench = Bench::new();
    let same = |_| Some(Ok(HexDigest([7; 32])));
    assert_eq!(bench.audit(&Expected { root_of: Some(&same), ..Default::default() }), [""; 0]);
    let gone = |_| None;
    assert_eq!(bench.audit(&Expected { root_of: Some(&gone), ..Default::default() }), [""; 0]);
    let other = |_| Some(Ok(HexDigest([9; 32])));
    let found = bench.audit(&Expected { root_of: Some(&other), ..Default::default() });
    assert!(
        found.len() as u64 == ENTRIES && found[0].contains("another tree than generation 42"),
        "{found:?}"
    );
}

#[test]
fn a_clock_that_was_set_back_shows() {
    let bench = Bench::new();
    let ledger = Ledger::open(&bench.folder.path().join("ledger")).expect("open");
    let example = Example { run_id: RUNS[0], ..Default::default() };
    let build = |sequence, previous| {
        let mut verdict = example.verdict(&bench.source, sequence, previous);
        verdict.times.signed = "2026-11-20T00:00:00Z".parse().expect("time");
        sign_verdict(&verdict, &bench.target)
    };
    match ledger.append(build) {
        Ok(_) => {
            let found = bench.audit(&Expected::default());
            assert!(
                found.len() == 1 && found[0].starts_with("verdict 000000006 was signed at 2026-11-20"),
                "{found:?}"
            );
        }
        Err(error) => panic!("{error}"),
    }
}

/// An hour of a wrong clock, ahead or back: acknowledged by an operator it is shown, and the ledger is sound. Nothing else is covered.
#[test]
fn a_wrong_clock_can_be_acknowledged_and_nothing_else() {
    use crate::verdict::{AcknowledgedVerdict, Acknowledgement, keep_acknowledgement, sign_acknowledgement};
    for ahead in [true, false] {
        let bench = Bench::new();
        let ledger = Ledger::open(&bench.folder.path().join("ledger")).expect("open");
        let times = if ahead {
            ["2026-12-24T00:00:00Z", "2026-11-24T01:00:00Z", "2026-11-24T02:00:00Z"]
        } else {
            ["2026-11-24T00:00:00Z", "2026-11-20T00:00:00Z", "2026-11-24T02:00:00Z"]
        };
        for signed in times {
            let example = Example { run_id: RUNS[0], ..Default::default() };
            let build = |sequence, previous| {
                let mut verdict = example.verdict(&bench.source, sequence, previous);
                verdict.times.signed = signed.parse().expect("time");
                sign_verdict(&verdict, &bench.target)
            };
            ledger.append(build).expect("append");
        }
        let folder = bench.folder.path().join("acknowledgements");
        let expected = Expected { acknowledgements: Some(&folder), ..Default::default() };
        let found = bench.audit(&expected);
        assert_eq!(found.len(), if ahead { 2 } else { 1 }, "{found:?}");
        let wrong = if ahead { ENTRIES + 1 } else { ENTRIES + 2 };
        let digest = link_digest(&fs::read(bench.file("ledger", wrong)).expect("read"));
        let acknowledge = |sequence, digest, key: &SigningKey| {
            let acknowledgement = Acknowledgement {
                repository: "acc".to_owned(),
                by: "alice".to_owned(),
                time: "2026-11-25T00:00:00Z".parse().expect("time"),
                why: "the time service was down".to_owned(),
                verdicts: vec![AcknowledgedVerdict { sequence, digest }],
            };
            keep_acknowledgement(&folder, &sign_acknowledgement(&acknowledgement, key)).expect("kept")
        };
        // Neither another key's word nor one about another verdict covers anything.
        let forged = acknowledge(wrong, digest, &bench.source);
        assert!(bench.audit(&expected).len() > found.len());
        fs::remove_file(forged).expect("remove");
        let other = acknowledge(wrong, HexDigest([9; 32]), &bench.target);
        assert!(bench.audit(&expected).iter().any(|text| text.contains("has no such verdict")));
        fs::remove_file(other).expect("remove");
        acknowledge(wrong, digest, &bench.target);
        assert_eq!(bench.audit(&expected), [""; 0]);
        let keys = (bench.target.verifying_key().into(), bench.source.verifying_key().into());
        let audit = audit(&bench.ledger(), &keys.0, Some(&keys.1), &expected).expect("readable");
        assert_eq!(audit.acknowledged.len(), 1);
        assert!(audit.acknowledged[0].line().contains("says alice on 2026-11-25"), "{audit:?}");
        // A verdict that is acknowledged is not let off the chain.
        change(&bench, wrong, |bytes| bytes.push(b'\n'));
        assert!(!bench.audit(&expected).is_empty());
    }
}

/// A note is shown when it is signed with the target's key and ties to the ledger; any other is shown nowhere, and is a finding.
#[test]
fn a_note_counts_with_the_targets_key_and_an_entry_of_this_ledger_only() {
    use crate::{
        id::GenerationNumber,
        verdict::{
            MAX_NOTE_FILE_BYTES, Note, NoteSubject, NotedEntry, keep_note, sign_note, unverified_verdict,
        },
    };
    let bench = Bench::new();
    let folder = bench.folder.path().join("notes");
    let expected = Expected { notes: Some(&folder), ..Default::default() };
    assert_eq!(bench.audit(&expected), [""; 0], "there is no folder");
    let digest = |id| link_digest(&fs::read(bench.file("ledger", id)).expect("read"));
    let note = |about, id, digest| Note {
        repository: "acc".to_owned(),
        by: "alice".to_owned(),
        time: "2026-11-25T00:00:00Z".parse().expect("time"),
        text: "the disk was replaced".to_owned(),
        about,
        entry: NotedEntry { sequence: id, digest },
    };
    let keep = |note: &Note, key: &SigningKey| keep_note(&folder, &sign_note(note, key)).expect("kept");
    let verdict = unverified_verdict(&fs::read(bench.file("ledger", 2)).expect("read")).expect("a verdict");
    let GenerationNumber(generation) = verdict.generation.expect("a generation");
    let slot = NoteSubject::Slot("2026-11-24T03:00:00Z".parse().expect("time"));
    let good = [
        note(NoteSubject::Verdict(2), 2, digest(2)),
        note(NoteSubject::Generation(generation), 2, digest(2)),
        note(slot, 5, digest(5)),
    ];
    let files = good.each_ref().map(|note| keep(note, &bench.target));
    assert!(files[0].ends_with("000001.json") && files[2].ends_with("000003.json"));
    let keys = (bench.target.verifying_key().into(), bench.source.verifying_key().into());
    let shown = || {
        let found = audit(&bench.ledger(), &keys.0, Some(&keys.1), &expected).expect("readable");
        // Without the rest of the audit they are the same.
        let (alone, wrong) = notes(&bench.ledger(), &keys.0, Some(&keys.1), &folder).expect("readable");
        assert_eq!((&alone, wrong.len()), (&found.notes, found.findings.len()));
        (found.notes.iter().map(Noted::line).collect::<Vec<_>>(), found.findings)
    };
    let (lines, findings) = shown();
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!(
        lines,
        [
            "note on verdict 000000002 by alice, 2026-11-25 00:00:00Z: the disk was replaced".to_owned(),
            format!("note on generation {generation} by alice, 2026-11-25 00:00:00Z: the disk was replaced"),
            "note on the slot at 2026-11-24 03:00:00Z by alice, 2026-11-25 00:00:00Z: the disk was replaced"
                .to_owned(),
        ]
    );
    // Each of these stands beside the good ones, is a finding, and is shown nowhere.
    for (wrong, key, what) in [
        (note(NoteSubject::Verdict(2), 2, digest(2)), &bench.source, "signed with another key"),
        (
            note(NoteSubject::Verdict(2), 2, digest(3)),
            &bench.target,
            "the ledger has no such entry 000000002",
        ),
        (
            note(NoteSubject::Verdict(9), 9, digest(2)),
            &bench.target,
            "the ledger has no such entry 000000009",
        ),
        (
            note(NoteSubject::Verdict(3), 2, digest(2)),
            &bench.target,
            "it is about verdict 000000003, and entry",
        ),
        (
            note(NoteSubject::Generation(99), 2, digest(2)),
            &bench.target,
            "it is about generation 99, and entry",
        ),
    ] {
        let file = keep(&wrong, key);
        let (lines, findings) = shown();
        let text = findings.iter().map(ToString::to_string).collect::<String>();
        assert!(lines.len() == 3 && findings.len() == 1, "{what}: {lines:?} {findings:?}");
        assert!(text.starts_with("the note 000004.json: ") && text.contains(what), "{what}: {text}");
        fs::remove_file(file).expect("remove");
    }
    // One that was edited, one that is no note, and one that is too long.
    let text = fs::read_to_string(&files[0]).expect("read");
    let long = format!("{text}{}", " ".repeat(usize::try_from(MAX_NOTE_FILE_BYTES).expect("small")));
    let other = if text.contains("\"sig\":\"A") { "B" } else { "A" };
    let at = text.find("\"sig\":\"").expect("a signature") + 7;
    let edited = format!("{}{other}{}", &text[..at], &text[at + 1..]);
    for (text, what) in
        [(edited, "the signature is wrong"), (String::new(), "not a DSSE"), (long, "more than 16384")]
    {
        fs::write(&files[0], text).expect("write");
        let (lines, findings) = shown();
        assert!(lines.len() == 2 && findings.len() == 1, "{what}: {lines:?} {findings:?}");
        assert!(findings[0].to_string().contains(what), "{what}: {findings:?}");
    }
}

/// A key signs no notes on what came after its time: who stole it says nothing of later verdicts.
#[test]
fn a_key_signs_no_note_on_what_came_after_its_time() {
    use crate::verdict::{Note, NoteSubject, NotedEntry, keep_note, sign_note};
    let bench = Bench::new();
    let folder = bench.folder.path().join("notes");
    let digest = |id| link_digest(&fs::read(bench.file("ledger", id)).expect("read"));
    for id in [2, 3] {
        let note = Note {
            repository: "acc".to_owned(),
            by: "alice".to_owned(),
            time: "2026-11-25T00:00:00Z".parse().expect("time"),
            text: "why".to_owned(),
            about: NoteSubject::Verdict(id),
            entry: NotedEntry { sequence: id, digest: digest(id) },
        };
        keep_note(&folder, &sign_note(&note, &bench.target)).expect("kept");
    }
    let keys = bench.target.verifying_key().into();
    let in_time = |_, id: EntryId| id.sequence() < 3;
    let (known, wrong) = super::notes::read(&bench.ledger(), &keys, &in_time, &folder).expect("readable");
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].about, NoteSubject::Verdict(2));
    assert!(
        wrong.len() == 1 && wrong[0].to_string().contains("time had ended before entry 000000003"),
        "{wrong:?}"
    );
}

/// Steps back that are too small to be told one by one add up; a clock that is put right by less is not told.
#[test]
fn many_small_steps_back_of_the_clock_show() {
    let bench = Bench::new();
    let ledger = Ledger::open(&bench.folder.path().join("ledger")).expect("open");
    let newest: Timestamp = "2026-11-22T22:50:00Z".parse().expect("the time of the others");
    let append = |seconds: i64| {
        let example = Example { run_id: RUNS[0], ..Default::default() };
        let build = |sequence, previous| {
            let mut verdict = example.verdict(&bench.source, sequence, previous);
            verdict.times.signed = newest - jiff::SignedDuration::from_secs(seconds);
            sign_verdict(&verdict, &bench.target)
        };
        ledger.append(build).expect("append");
        bench.audit(&Expected::default())
    };
    let slack = CLOCK_SLACK.as_secs();
    assert_eq!(append(slack / 2), [""; 0]);
    assert_eq!(append(slack), [""; 0], "exactly as much as a clock may differ");
    let told = append(slack + 1);
    assert!(told.len() == 1 && told[0].starts_with("verdict 000000008 was signed at"), "{told:?}");
}

/// A generation whose tree cannot be read is no generation that was compared and found sound.
#[test]
fn a_tree_that_cannot_be_read_is_told() {
    let bench = Bench::new();
    let unreadable = |_| Some(Err("its manifest cannot be read".to_owned()));
    let told = bench.audit(&Expected { root_of: Some(&unreadable), ..Default::default() });
    assert_eq!(told.len() as u64, ENTRIES);
    assert!(told.iter().all(|told| told.contains("its manifest cannot be read")), "{told:?}");
}
