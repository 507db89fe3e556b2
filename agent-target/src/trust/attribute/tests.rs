use super::*;

fn facts() -> Facts {
    Facts {
        read_back: Ok((ReadBack { files: 3, bytes: 9, differ: 0 }, Vec::new())),
        concerned: vec![Concerned { path: "a".into(), unstable: false, again: Some(Again::Same) }],
        chosen: "the file that the findings name".into(),
        left_out: 0,
        asked: Asked::Answered,
        recheck: Recheck::Passes(GenerationNumber(1)),
        earlier: None,
        control: None,
        last_pass: Some(GenerationNumber(1)),
    }
}

#[test]
fn the_first_rule_that_applies_decides() {
    type Change = fn(&mut Facts);
    let rotten: Change = |it| {
        it.read_back =
            Ok((ReadBack { files: 3, bytes: 9, differ: 1 }, vec![("b".into(), "bytes 0 to 9".into())]));
    };
    let cases: [(&str, &[Change], FaultOrigin, &[&str]); 15] = [
        ("as it is", &[], FaultOrigin::Live, &["a"]),
        ("grown", &[|it| it.concerned[0].again = Some(Again::Grown)], FaultOrigin::Live, &["a"]),
        ("mark", &[|it| it.concerned[0].again = Some(Again::OfMark)], FaultOrigin::Live, &["a"]),
        ("disk", &[rotten], FaultOrigin::TargetDisk, &["b"]),
        ("disk wins", &[rotten, |it| it.concerned[0].unstable = true], FaultOrigin::TargetDisk, &["b"]),
        ("torn", &[|it| it.concerned[0].unstable = true], FaultOrigin::TornRead, &["a"]),
        ("twice", &[|it| it.concerned[0].again = Some(Again::Unstable)], FaultOrigin::TornRead, &["a"]),
        ("changed", &[|it| it.concerned[0].again = Some(Again::Changed)], FaultOrigin::Unknown, &["a"]),
        ("left out", &[|it| it.left_out = 1], FaultOrigin::Unknown, &["a"]),
        (
            "silent",
            &[|it| {
                it.asked = Asked::Silent;
                it.concerned[0].again = None;
            }],
            FaultOrigin::Unknown,
            &["a"],
        ),
        ("own", &[|it| it.recheck = Recheck::OwnPass { verdict: "1".into() }], FaultOrigin::Checker, &[]),
        (
            "fails",
            &[|it| it.recheck = Recheck::Fails { generation: GenerationNumber(1), same_check: true }],
            FaultOrigin::Checker,
            &[],
        ),
        (
            "another check",
            &[|it| it.recheck = Recheck::Fails { generation: GenerationNumber(1), same_check: false }],
            FaultOrigin::Unknown,
            &["a"],
        ),
        ("unreadable", &[|it| it.read_back = Err("no".into())], FaultOrigin::Unknown, &["a"]),
        ("none concerned", &[|it| it.concerned.clear()], FaultOrigin::Unknown, &[]),
    ];
    for (name, changes, fault, files) in cases {
        let mut facts = facts();
        changes.iter().for_each(|change| change(&mut facts));
        let judged = judge(facts);
        assert_eq!(judged.fault, fault, "{name}: {judged:?}");
        assert_eq!(judged.files, files, "{name}: {judged:?}");
        assert!(judged.evidence.len() > 1, "{name}");
    }
}

/// Without a source, what an earlier verdict found out holds for as long as the bytes do.
#[test]
fn an_earlier_verdict_on_the_same_bytes_is_carried_over() {
    let with_earlier = || {
        let earlier = judge(facts());
        let mut facts = facts();
        facts.asked = Asked::NoSource;
        facts.concerned[0].again = None;
        facts.earlier = Some(("000000007".into(), earlier));
        facts
    };
    assert_eq!(judge(with_earlier()).fault, FaultOrigin::Live);
    let mut unreadable = with_earlier();
    unreadable.read_back = Err("no".into());
    assert_eq!(judge(unreadable).fault, FaultOrigin::Unknown);
}

fn concerned(path: &str, again: Option<Again>) -> Concerned {
    Concerned { path: path.into(), unstable: false, again }
}

/// Live is said of all files concerned or not at all.
#[test]
fn one_file_that_is_not_as_it_was_sent_keeps_the_fault_from_being_live() {
    for (again, fault) in [
        (Some(Again::Same), FaultOrigin::Live),
        (Some(Again::Grown), FaultOrigin::Live),
        (Some(Again::StillAbsent), FaultOrigin::Live),
        (Some(Again::OfMark), FaultOrigin::Live),
        (Some(Again::Changed), FaultOrigin::Unknown),
        (Some(Again::NotRead), FaultOrigin::Unknown),
        (Some(Again::Unstable), FaultOrigin::TornRead),
        (None, FaultOrigin::Unknown),
    ] {
        let mut facts = facts();
        facts.concerned.push(concerned("b", again));
        assert_eq!(judge(facts).fault, fault, "{again:?}");
    }
}

/// Facts that satisfy two rules: the first of the list at the top of the module wins.
#[test]
fn the_order_of_the_rules_decides_between_two_that_apply() {
    type Change = fn(&mut Facts);
    let disk: Change = |it| {
        it.read_back =
            Ok((ReadBack { files: 3, bytes: 9, differ: 1 }, vec![("b".into(), "bytes 0 to 9".into())]));
    };
    let checker: Change = |it| it.recheck = Recheck::OwnPass { verdict: "000000004".into() };
    let torn: Change = |it| it.concerned[0].unstable = true;
    let twice: Change = |it| it.concerned.push(concerned("c", Some(Again::Unstable)));
    let live: Change = |it| it.concerned[0].again = Some(Again::Same);
    let rows: [(&str, [Change; 2], FaultOrigin, &[&str]); 5] = [
        ("disk before checker", [disk, checker], FaultOrigin::TargetDisk, &["b"]),
        ("disk before torn read", [disk, torn], FaultOrigin::TargetDisk, &["b"]),
        ("checker before torn read", [checker, torn], FaultOrigin::Checker, &[]),
        ("never held still before two readings", [torn, twice], FaultOrigin::TornRead, &["a"]),
        ("two readings before live", [twice, live], FaultOrigin::TornRead, &["c"]),
    ];
    for (name, changes, fault, files) in rows {
        let mut facts = facts();
        changes.iter().for_each(|change| change(&mut facts));
        let judged = judge(facts);
        assert_eq!(
            (judged.fault, judged.files),
            (fault, files.iter().map(|it| (*it).to_owned()).collect()),
            "{name}"
        );
    }
}

/// An earlier verdict speaks only where no source could be asked, only for what it found out, and with its own files.
#[test]
fn an_earlier_verdict_is_carried_over_for_what_it_knew_alone() {
    let earlier = |fault| {
        let found = Attribution { fault, files: vec!["old".into()], ..judge(facts()) };
        Some(("000000007".to_owned(), found))
    };
    let rows = [
        (Asked::NoSource, FaultOrigin::Live, FaultOrigin::Live, "old"),
        (Asked::NoSource, FaultOrigin::TornRead, FaultOrigin::TornRead, "old"),
        (Asked::NoSource, FaultOrigin::TargetDisk, FaultOrigin::Unknown, "a"),
        (Asked::NoSource, FaultOrigin::Checker, FaultOrigin::Unknown, "a"),
        (Asked::NoSource, FaultOrigin::Unknown, FaultOrigin::Unknown, "a"),
        (Asked::Answered, FaultOrigin::TornRead, FaultOrigin::Unknown, "a"),
        (Asked::Silent, FaultOrigin::Live, FaultOrigin::Unknown, "a"),
    ];
    for (asked, knew, fault, file) in rows {
        let mut facts = facts();
        facts.asked = asked;
        facts.concerned[0].again = (asked == Asked::Answered).then_some(Again::Changed);
        facts.earlier = earlier(knew);
        let judged = judge(facts);
        assert_eq!((judged.fault, judged.files), (fault, vec![file.to_owned()]), "{asked:?} {knew:?}");
    }
}

/// The first sentence is the one that decided; whoever is woken reads it alone.
#[test]
fn the_first_sentence_of_the_evidence_is_the_one_that_decided() {
    type Change = fn(&mut Facts);
    let rows: [(Change, &str); 16] = [
        (|_| {}, "the live data is bad: of the file that the findings name, 1 read again as sent"),
        (
            |it| {
                it.concerned[0].again = Some(Again::Grown);
                it.concerned.push(concerned("b", Some(Again::StillAbsent)));
                it.concerned.push(concerned("c", Some(Again::OfMark)));
            },
            "the live data is bad: of the file that the findings name, 1 read again as sent, with more appended \
             meanwhile, 1 missing on the live side as well, 1 snapshot that the engine wrote for this mark",
        ),
        (
            |it| {
                it.read_back = Ok((
                    ReadBack { files: 3, bytes: 9, differ: 1 },
                    vec![("b".into(), "bytes 0 to 9".into())],
                ));
            },
            "this host's disk or memory changed 1 file of the 3 of this generation",
        ),
        (
            |it| it.recheck = Recheck::OwnPass { verdict: "000000004".into() },
            "the same check passed these same bytes before (verdict 000000004): the checker contradicts itself",
        ),
        (
            |it| it.recheck = Recheck::Fails { generation: GenerationNumber(1), same_check: true },
            "the same check now fails generation 1 as well, which it had passed and whose bytes have not changed since: \
             the checker contradicts itself",
        ),
        (
            |it| it.concerned[0].unstable = true,
            "torn read: a changed on every try while it was read, and was taken as last read",
        ),
        (
            |it| it.concerned[0].again = Some(Again::Unstable),
            "two readings differ: nobody has written to a since, and the source now reads other bytes than it sent (a torn \
             read, or the source's disk or memory)",
        ),
        (
            |it| it.recheck = Recheck::Fails { generation: GenerationNumber(1), same_check: false },
            "live or checker: the check was changed since it passed the generation that it now fails too",
        ),
        (
            |it| it.asked = Asked::NoSource,
            "the live data is bad: of the file that the findings name, 1 read again as sent",
        ),
        (
            |it| {
                it.asked = Asked::NoSource;
                it.concerned[0].again = None;
            },
            "live, torn read or checker: the source was not asked to read again, because no run of it waits",
        ),
        (
            |it| {
                it.asked = Asked::Silent;
                it.concerned[0].again = None;
            },
            "live, torn read or checker: the source did not answer when it was asked to read again",
        ),
        (|it| it.concerned.clear(), "live or checker: no file is known that may hold the fault"),
        (
            |it| it.concerned[0].again = Some(Again::Changed),
            "live or torn read: a changed since it was read, so what it was then is not known",
        ),
        (
            |it| it.left_out = 2,
            "live or torn read: of the file that the findings name, 2 more were not read again, because they are too many",
        ),
        (
            |it| {
                it.concerned = ["a", "b", "c", "d"].map(|path| concerned(path, Some(Again::NotRead))).into();
            },
            "live or torn read: a, b and 2 more could not be read again",
        ),
        (
            |it| {
                it.asked = Asked::NoSource;
                it.concerned[0].again = None;
                it.earlier = Some(("000000007".into(), judge(facts())));
            },
            "as verdict 000000007 on this generation found, whose bytes are still those",
        ),
    ];
    for (change, first) in rows {
        let mut facts = facts();
        change(&mut facts);
        assert_eq!(judge(facts).evidence.first().map(String::as_str), Some(first));
    }
}

/// What is behind the first sentence: the disk, the transfer, the check on what had passed, the control.
#[test]
fn the_rest_of_the_evidence_says_how_each_fact_was_found() {
    type Change = fn(&mut Facts);
    let rows: [(Change, &str); 7] = [
        (|_| {}, "the disk kept it: reading this generation back, 3 files with 9 B, gave what had arrived"),
        (|_| {}, "the checker tells good from bad: it passes generation 1 again"),
        (|it| it.read_back = Err("no room".into()), "the generation could not be read back: no room"),
        (
            |it| it.recheck = Recheck::NotDone("there is none".into()),
            "the check was not tried on a generation that had passed: there is none",
        ),
        (
            |it| it.recheck = Recheck::Fails { generation: GenerationNumber(1), same_check: false },
            "the check fails generation 1 too, which another version of it had passed",
        ),
        (
            |it| {
                it.recheck =
                    Recheck::Rotten { generation: GenerationNumber(1), files: vec!["x".into(), "y".into()] }
            },
            "generation 1, which had passed, is not what arrived here any longer: x and y",
        ),
        (
            |it| {
                it.recheck =
                    Recheck::Inconclusive { generation: GenerationNumber(1), reason: "check-timeout".into() }
            },
            "the check could not do its work on generation 1: check-timeout",
        ),
    ];
    for (change, sentence) in rows {
        let mut facts = facts();
        change(&mut facts);
        let evidence = judge(facts).evidence;
        assert!(evidence[1..].iter().any(|line| line == sentence), "{sentence}: {evidence:?}");
    }
    let mut many = facts();
    let differing = (0..12).map(|number| (format!("f{number}"), "bytes 0 to 1".to_owned())).collect();
    many.read_back = Ok((ReadBack { files: 20, bytes: 9, differ: 12 }, differing));
    let evidence = judge(many).evidence;
    assert!(!evidence.iter().any(|line| line.starts_with("the disk kept it")), "{evidence:?}");
    assert!(evidence.contains(&"f9: bytes 0 to 1".to_owned()), "{evidence:?}");
    assert!(!evidence.contains(&"f10: bytes 0 to 1".to_owned()), "{evidence:?}");
    assert!(evidence.contains(&"and 2 more files differ".to_owned()), "{evidence:?}");
}
