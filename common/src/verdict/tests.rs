use super::*;

/// A passing verdict with all its parts, and what may differ between two such verdicts.
pub(crate) struct Example {
    pub(crate) repository: &'static str,
    pub(crate) run_id: &'static str,
    pub(crate) root: HexDigest,
    pub(crate) mark: &'static str,
}

impl Default for Example {
    fn default() -> Self {
        Self {
            repository: "acc",
            run_id: "20261122T224501Z-7f3a9c",
            root: HexDigest([7; 32]),
            mark: "backup mark 1",
        }
    }
}

impl Example {
    pub(crate) fn statement(&self) -> SourceStatement {
        SourceStatement {
            not_copied: Vec::new(),
            repository: self.repository.into(),
            run_id: self.run_id.parse().expect("id"),
            mark: self.mark(),
            root: Some(self.root),
            base_generation: Some(GenerationNumber(41)),
            counts: Counts { files: 3, ..Default::default() },
            overrides: vec![],
            source_version: "0.1.0".into(),
            nonce: None,
            readings: None,
        }
    }

    fn mark(&self) -> Mark {
        Mark { id: self.mark.into(), time: "2026-11-22T22:45:04.5Z".parse().expect("time") }
    }

    pub(crate) fn verdict(&self, source_key: &SigningKey, sequence: u64, previous: HexDigest) -> Verdict {
        let time: Timestamp = "2026-11-22T22:50:00Z".parse().expect("time");
        Verdict {
            repository: self.repository.into(),
            run_id: self.run_id.parse().expect("id"),
            sequence,
            previous,
            outcome: Outcome::Pass,
            reason: "check-passed".into(),
            message: "all steps passed".into(),
            generation: Some(GenerationNumber(42)),
            root: Some(self.root),
            mark: Some(self.mark()),
            depth: Some(Depth::L2),
            profile: Some(ProfileUsed {
                name: "accurev".into(),
                version: "1".into(),
                digest: HexDigest([1; 32]),
            }),
            steps: vec![Step {
                name: "dbcheck".into(),
                attempt: 0,
                argv: vec!["bin/maintain".into(), "dbcheck".into()],
                exit_code: Some(0),
                signal: None,
                duration_ms: 1200,
                output_digest: HexDigest([2; 32]),
                output_tail: "ok\n".into(),
                outcome: Outcome::Pass,
                findings: vec![],
                depth: None,
                engine: None,
                checked: vec![],
                not_covered: vec![],
            }],
            patches: vec![Patch {
                file: "bin/acserver.cnf".into(),
                digest_before: HexDigest([3; 32]),
                digest_after: HexDigest([4; 32]),
                key: "MASTER_SERVER".into(),
                value: "check.example".into(),
            }],
            overlay_files: vec![OverlayFile { path: "bin/keys.txt".into(), digest: HexDigest([5; 32]) }],
            workspace: Some(WorkspaceUsed {
                kind: WorkspaceKind::Overlay,
                isolation: vec!["mount".into(), "network".into()],
                not_isolated: vec![],
            }),
            attribution: None,
            negative_control: Some(NegativeControl {
                outcome: Outcome::Fail,
                time,
                generation: Some(GenerationNumber(40)),
                message: "2 of 2 damages were found".into(),
                seed: Some(7),
                profile: Some(HexDigest([1; 32])),
                damages: vec![ControlDamage {
                    kind: "flip-byte".into(),
                    file: "data/file".into(),
                    what: "byte 12: 41 to 51".into(),
                    outcome: Outcome::Fail,
                    reason: "damage-found".into(),
                }],
            }),
            overrides: vec![],
            times: Times {
                opened: Some(time),
                sealed: Some(time),
                check_started: Some(time),
                check_finished: Some(time),
                signed: time,
            },
            versions: Versions { source: Some("0.1.0".into()), target: "0.1.0".into() },
            source_statement: Some(sign_source_statement(&self.statement(), source_key)),
            coverage: None,
            nonce: None,
        }
    }
}

fn keys() -> (SigningKey, SigningKey) {
    (SigningKey::generate(), SigningKey::generate())
}

/// Signs without looking: what a target that was taken over does.
fn sign_anything(verdict: &Verdict, key: &SigningKey) -> String {
    sign(VERDICT_TYPE, verdict_subject(verdict), verdict, key).to_json()
}

#[test]
fn a_verdict_verifies_with_both_keys_and_with_the_targets_alone() {
    let (target, source) = keys();
    let verdict = Example::default().verdict(&source, 1, HexDigest::ZERO);
    let json = sign_verdict(&verdict, &target).expect("sound").to_json();
    let both = verify_verdict(json.as_bytes(), &target.verifying_key(), Some(&source.verifying_key()));
    let both = both.expect("valid");
    assert_eq!(both.verdict, verdict);
    assert_eq!(both.source, Some(Example::default().statement()));
    assert_eq!(both.source_signature, SourceSignature::Checked);
    let one = verify_verdict(json.as_bytes(), &target.verifying_key(), None).expect("valid");
    assert_eq!(one.source_signature.to_string(), "not checked");
    assert_eq!(unverified_verdict(json.as_bytes()).expect("shape"), verdict);
}

/// The form is for others to read: it stays.
#[test]
fn the_payload_is_an_in_toto_statement() {
    let (target, source) = keys();
    let envelope =
        sign_verdict(&Example::default().verdict(&source, 1, HexDigest::ZERO), &target).expect("sound");
    let payload = envelope.verify(IN_TOTO_PAYLOAD_TYPE, &target.verifying_key()).expect("valid");
    let json: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
    assert_eq!(json["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(json["predicateType"], "https://assay.dev/verdict/v1");
    assert_eq!(json["subject"][0]["name"], "acc/generations/000042");
    assert_eq!(json["subject"][0]["digest"]["blake3-assay-manifest"], "07".repeat(32));
    let predicate = &json["predicate"];
    assert_eq!(predicate["outcome"], "PASS");
    assert_eq!(predicate["depth"], "L2");
    assert_eq!(predicate["mark"]["time"], "2026-11-22T22:45:04.5Z");
    assert_eq!(predicate["workspace"]["kind"], "overlay");
    assert_eq!(predicate["sourceStatement"]["payloadType"], "application/vnd.in-toto+json");
}

/// Rule of cosign GHSA-8gw7-4j42-w388: each part taken from another valid verdict is refused, even when
/// the target's own key signs the mixture.
#[test]
fn a_part_of_another_valid_verdict_is_refused() {
    let (target, source) = keys();
    let sound = Example::default().verdict(&source, 1, HexDigest::ZERO);
    let others = [
        ("repository", Example { repository: "other", ..Default::default() }),
        ("run", Example { run_id: "20261122T234501Z-7f3a9d", ..Default::default() }),
        ("root", Example { root: HexDigest([8; 32]), ..Default::default() }),
        ("mark", Example { mark: "backup mark 2", ..Default::default() }),
    ];
    for (part, other) in others {
        let other = other.verdict(&source, 1, HexDigest::ZERO);
        sign_verdict(&other, &target).expect("sound by itself");
        let mut mixed = sound.clone();
        mixed.source_statement = other.source_statement;
        assert!(sign_verdict(&mixed, &target).is_err(), "{part}");
        let json = sign_anything(&mixed, &target);
        for source_key in [None, Some(&source.verifying_key())] {
            let result = verify_verdict(json.as_bytes(), &target.verifying_key(), source_key);
            assert!(
                matches!(result, Err(VerdictError::Mismatch { what, .. }) if what == part),
                "{part}: {result:?}"
            );
        }
    }
}

#[test]
fn a_subject_that_is_not_the_predicates_is_refused() {
    let (target, source) = keys();
    let verdict = Example::default().verdict(&source, 1, HexDigest::ZERO);
    for subject in [
        None,
        Some(("acc/generations/000043".to_owned(), HexDigest([7; 32]))),
        Some(("acc/generations/000042".to_owned(), HexDigest([8; 32]))),
    ] {
        let json = sign(VERDICT_TYPE, subject, &verdict, &target).to_json();
        let result = verify_verdict(json.as_bytes(), &target.verifying_key(), None);
        assert!(matches!(result, Err(VerdictError::Mismatch { what: "subject", .. })), "{result:?}");
    }
}

/// Rule of Borg CVE-2016-10099: authentic data in the wrong role is refused.
#[test]
fn statements_do_not_stand_in_for_each_other() {
    let (target, source) = keys();
    let verdict = Example::default().verdict(&source, 1, HexDigest::ZERO);
    let statement = verdict.source_statement.clone().expect("there");
    let result = verify_verdict(statement.to_json().as_bytes(), &source.verifying_key(), None);
    assert!(matches!(result, Err(VerdictError::OtherType { part: "verdict", .. })), "{result:?}");
    let signed = sign_verdict(&verdict, &target).expect("sound");
    let result = verify_source_statement(&signed, &target.verifying_key());
    assert!(matches!(result, Err(VerdictError::OtherType { part: "source statement", .. })), "{result:?}");
}

#[test]
fn neither_agent_can_speak_for_the_other() {
    let (target, source) = keys();
    let mut verdict = Example::default().verdict(&source, 1, HexDigest::ZERO);
    verdict.source_statement = Some(sign_source_statement(&Example::default().statement(), &target));
    let json = sign_verdict(&verdict, &target).expect("consistent").to_json();
    let result = verify_verdict(json.as_bytes(), &target.verifying_key(), Some(&source.verifying_key()));
    assert!(matches!(result, Err(VerdictError::SourceEnvelope { .. })), "{result:?}");
    let result = verify_verdict(json.as_bytes(), &source.verifying_key(), None);
    assert!(matches!(result, Err(VerdictError::Envelope { .. })), "{result:?}");
}

#[test]
fn a_pass_that_nothing_backs_is_neither_signed_nor_believed() {
    let (target, source) = keys();
    let sound = Example::default().verdict(&source, 1, HexDigest::ZERO);
    let changes: [fn(&mut Verdict); 8] = [
        |verdict| verdict.steps.clear(),
        |verdict| verdict.steps[0].outcome = Outcome::Inconclusive,
        // A later attempt makes up for one that could not be made, not for damage.
        |verdict| {
            verdict.steps.insert(0, Step { outcome: Outcome::Fail, ..verdict.steps[0].clone() });
            verdict.steps[1].attempt = 1;
        },
        |verdict| verdict.depth = None,
        |verdict| verdict.generation = None,
        |verdict| verdict.generation = Some(GenerationNumber(0)),
        |verdict| verdict.source_statement = None,
        |verdict| verdict.sequence = 0,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut changed = sound.clone();
        change(&mut changed);
        assert!(matches!(sign_verdict(&changed, &target), Err(VerdictError::Unfounded { .. })), "{number}");
        let json = sign_anything(&changed, &target);
        assert!(verify_verdict(json.as_bytes(), &target.verifying_key(), None).is_err(), "{number}");
    }
}

/// FAIL and INCONCLUSIVE are about a generation, whatever the check said; a step that did not run backs no PASS.
#[test]
fn an_outcome_without_its_generation_is_neither_signed_nor_believed() {
    let (target, source) = keys();
    let sound = Example::default().verdict(&source, 1, HexDigest::ZERO);
    for outcome in [Outcome::Pass, Outcome::Fail, Outcome::Inconclusive] {
        let changed = Verdict { outcome, generation: None, ..sound.clone() };
        let refused = sign_verdict(&changed, &target);
        let expected = "no generation was sealed";
        assert!(
            matches!(refused, Err(VerdictError::Unfounded { missing, .. }) if missing == expected),
            "{outcome}: {refused:?}"
        );
        let json = sign_anything(&changed, &target);
        assert!(verify_verdict(json.as_bytes(), &target.verifying_key(), None).is_err(), "{outcome}");
        sign_verdict(&Verdict { outcome, ..sound.clone() }, &target).expect("with one it is sound");
    }
    for last in [Outcome::NotRun, Outcome::Fail] {
        let mut changed = sound.clone();
        changed.steps.push(Step { outcome: last, ..changed.steps[0].clone() });
        assert!(matches!(sign_verdict(&changed, &target), Err(VerdictError::Unfounded { .. })), "{last}");
    }
    // A root without the source's word for it, and the other way round.
    for changed in [
        Verdict { outcome: Outcome::Fail, source_statement: None, ..sound.clone() },
        Verdict { outcome: Outcome::Fail, root: None, ..sound.clone() },
    ] {
        assert!(sign_verdict(&changed, &target).is_err());
    }
}

/// Safety stops that were overridden are what the source signed: a target can neither add nor hide one.
#[test]
fn overrides_are_those_that_the_source_signed() {
    let (target, source) = keys();
    let mut statement = Example::default().statement();
    statement.overrides = vec!["accept-drop".into()];
    let signed = sign_source_statement(&statement, &source);
    let sound = Verdict {
        overrides: statement.overrides.clone(),
        source_statement: Some(signed),
        ..Example::default().verdict(&source, 1, HexDigest::ZERO)
    };
    sign_verdict(&sound, &target).expect("both say the same");
    for overrides in [vec![], vec!["accept-drop".to_owned(), "accept-history".to_owned()]] {
        let refused = sign_verdict(&Verdict { overrides, ..sound.clone() }, &target);
        assert!(matches!(refused, Err(VerdictError::Mismatch { what: "overrides", .. })), "{refused:?}");
    }
}

/// The source's statement names its run and root twice; both say the same, and it says what it counted.
#[test]
fn a_source_statement_is_of_its_own_subject() {
    let (_, source) = keys();
    let statement = Example::default().statement();
    let (name, root) = (format!("acc/runs/{}", statement.run_id), HexDigest([7; 32]));
    let read = |subject: Option<(String, HexDigest)>| {
        let signed = sign(SOURCE_STATEMENT_TYPE, subject, &statement, &source);
        verify_source_statement(&signed, &source.verifying_key())
    };
    let sound = read(Some((name.clone(), root))).expect("its own");
    assert_eq!(sound.counts, statement.counts);
    assert_eq!(sound.counts.files, 3);
    for subject in [None, Some(("acc/runs/other".to_owned(), root)), Some((name, HexDigest([8; 32])))] {
        let refused = read(subject);
        assert!(matches!(refused, Err(VerdictError::Mismatch { what: "subject", .. })), "{refused:?}");
    }
}

/// A statement of another form than in-toto's is none, however it is signed.
#[test]
fn a_statement_of_another_form_is_refused() {
    let (target, source) = keys();
    let verdict = Example::default().verdict(&source, 1, HexDigest::ZERO);
    let payload = sign_verdict(&verdict, &target).expect("sound");
    let payload = payload.verify(IN_TOTO_PAYLOAD_TYPE, &target.verifying_key()).expect("valid");
    let text = String::from_utf8(payload).expect("UTF-8");
    for (from, to) in
        [(STATEMENT_TYPE, "https://in-toto.io/Statement/v2"), (VERDICT_TYPE, "https://assay.dev/verdict/v2")]
    {
        let other = Envelope::sign(IN_TOTO_PAYLOAD_TYPE, text.replacen(from, to, 1).as_bytes(), &target);
        let refused = verify_verdict(other.to_json().as_bytes(), &target.verifying_key(), None);
        assert!(matches!(refused, Err(VerdictError::OtherType { part: "verdict", .. })), "{refused:?}");
    }
}

#[test]
fn a_pass_may_follow_a_candidate_that_was_refused() {
    let (target, source) = keys();
    let mut verdict = Example::default().verdict(&source, 1, HexDigest::ZERO);
    verdict.steps.insert(0, Step { outcome: Outcome::Inconclusive, ..verdict.steps[0].clone() });
    assert!(matches!(sign_verdict(&verdict, &target), Err(VerdictError::Unfounded { .. })));
    verdict.steps[1].attempt = 1;
    let json = sign_verdict(&verdict, &target).expect("sound").to_json();
    let read = verify_verdict(json.as_bytes(), &target.verifying_key(), None).expect("valid");
    assert_eq!(read.verdict, verdict);
}

#[test]
fn a_run_that_never_read_is_a_record_too() {
    let (target, source) = keys();
    let verdict = Verdict {
        outcome: Outcome::NotRun,
        reason: "mark-failed".into(),
        generation: None,
        root: None,
        mark: None,
        depth: None,
        steps: vec![],
        source_statement: None,
        ..Example::default().verdict(&source, 1, HexDigest::ZERO)
    };
    let json = sign_verdict(&verdict, &target).expect("sound").to_json();
    let verified = verify_verdict(json.as_bytes(), &target.verifying_key(), Some(&source.verifying_key()));
    assert_eq!(verified.expect("valid").source_signature, SourceSignature::Absent);
}

#[test]
fn unknown_fields_and_loose_digests_are_refused() {
    let (target, source) = keys();
    let verdict = Example::default().verdict(&source, 1, HexDigest::ZERO);
    let envelope = sign_verdict(&verdict, &target).expect("sound");
    let payload = envelope.verify(IN_TOTO_PAYLOAD_TYPE, &target.verifying_key()).expect("valid");
    let payload = String::from_utf8(payload).expect("UTF-8");
    for (from, to) in [
        (r#""predicate":{"#, r#""predicate":{"x":1,"#),
        (r#""exitCode":0"#, r#""exitCode":0,"x":1"#),
        (r#""_type""#, r#""x":1,"_type""#),
        (&*"05".repeat(32), &*"5A".repeat(32)),
        (&*"05".repeat(32), &*"05".repeat(31)),
    ] {
        let changed = payload.replacen(from, to, 1);
        assert_ne!(changed, payload);
        let json = Envelope::sign(IN_TOTO_PAYLOAD_TYPE, changed.as_bytes(), &target).to_json();
        let result = verify_verdict(json.as_bytes(), &target.verifying_key(), None);
        assert!(matches!(result, Err(VerdictError::Shape { .. })), "{to}: {result:?}");
    }
}

#[test]
fn only_pass_exits_zero() {
    let codes =
        [Outcome::Pass, Outcome::Fail, Outcome::Inconclusive, Outcome::NotRun].map(Outcome::exit_code);
    assert_eq!(codes, [0, 1, 3, 4]);
    assert_eq!(Outcome::try_from(v1::Outcome::Unspecified), Err(NoOutcome));
    assert_eq!(Outcome::try_from(v1::Outcome::from(Outcome::NotRun)), Ok(Outcome::NotRun));
}

#[test]
fn times_of_the_wire_are_checked() {
    let before_1970: Timestamp = "1969-12-31T23:59:59.25Z".parse().expect("time");
    assert_eq!(timestamp_from_proto(&timestamp_to_proto(before_1970)), Some(before_1970));
    for time in ["2026-11-22T22:50:00Z", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z"] {
        let whole: Timestamp = time.parse().expect("time");
        let sent = timestamp_to_proto(whole);
        assert_eq!((timestamp_from_proto(&sent), sent.nanos), (Some(whole), 0), "{time}");
    }
    for (seconds, nanos) in [(i64::MAX, 0), (0, -1), (0, 1_000_000_000)] {
        assert_eq!(timestamp_from_proto(&prost_types::Timestamp { seconds, nanos }), None);
    }
}

#[test]
fn the_tail_is_the_last_bytes_and_starts_with_a_whole_character() {
    assert_eq!(output_tail(b"short\xff"), "short\u{fffd}");
    let long = "é".repeat(OUTPUT_TAIL_BYTES) + "x";
    assert_eq!(output_tail(long.as_bytes()), "é".repeat(OUTPUT_TAIL_BYTES / 2 - 1) + "x");
}

fn attributed(source: &SigningKey) -> Verdict {
    let mut verdict = Example::default().verdict(source, 1, HexDigest::ZERO);
    verdict.outcome = Outcome::Fail;
    verdict.attribution = Some(Attribution {
        fault: FaultOrigin::TargetDisk,
        evidence: vec!["it differs".into()],
        files: vec!["a".into()],
        read_back: Some(ReadBack { files: 3, bytes: 100, differ: 1 }),
        last_pass: Some(GenerationNumber(41)),
    });
    verdict
}

#[test]
fn where_a_fault_came_in_is_signed_and_shown_by_its_word() {
    let (target, source) = keys();
    let verdict = attributed(&source);
    let envelope = sign_verdict(&verdict, &target).expect("sound");
    let payload = envelope.verify(IN_TOTO_PAYLOAD_TYPE, &target.verifying_key()).expect("valid");
    let json: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
    assert_eq!(json["predicate"]["attribution"]["fault"], "target-disk");
    let read = verify_verdict(envelope.to_json().as_bytes(), &target.verifying_key(), None).expect("valid");
    assert_eq!(read.verdict, verdict);
}

#[test]
fn an_attribution_that_nothing_backs_is_neither_signed_nor_believed() {
    let (target, source) = keys();
    let changes: [fn(&mut Verdict); 7] = [
        |verdict| verdict.outcome = Outcome::Pass,
        // Only a checker that contradicts itself makes INCONCLUSIVE of damage.
        |verdict| verdict.outcome = Outcome::Inconclusive,
        |verdict| verdict.attribution.as_mut().expect("there").evidence.clear(),
        |verdict| verdict.attribution.as_mut().expect("there").files.clear(),
        |verdict| verdict.attribution.as_mut().expect("there").read_back = None,
        // The disk kept what arrived, or it did not.
        |verdict| verdict.attribution.as_mut().expect("there").fault = FaultOrigin::Live,
        |verdict| {
            let read_back = Some(ReadBack { files: 3, bytes: 100, differ: 0 });
            verdict.attribution.as_mut().expect("there").read_back = read_back;
        },
    ];
    sign_verdict(&attributed(&source), &target).expect("sound as it is");
    for (number, change) in changes.into_iter().enumerate() {
        let mut changed = attributed(&source);
        change(&mut changed);
        assert!(matches!(sign_verdict(&changed, &target), Err(VerdictError::Unfounded { .. })), "{number}");
        let json = sign_anything(&changed, &target);
        assert!(verify_verdict(json.as_bytes(), &target.verifying_key(), None).is_err(), "{number}");
    }
}

/// What the first version wrote: no attribution, and of the control its outcome and time.
#[test]
fn a_verdict_from_before_attribution_verifies() {
    let (target, source) = keys();
    let verdict = Example::default().verdict(&source, 1, HexDigest::ZERO);
    let mut json = serde_json::to_value(&verdict).expect("JSON");
    assert!(json.get("attribution").is_none());
    json["negativeControl"] = serde_json::json!({ "outcome": "PASS", "time": "2026-11-22T22:50:00Z" });
    let old = sign(VERDICT_TYPE, verdict_subject(&verdict), &json, &target).to_json();
    let read = verify_verdict(old.as_bytes(), &target.verifying_key(), None).expect("valid").verdict;
    let control = read.negative_control.expect("there");
    assert_eq!(
        (control.outcome, control.trust(), control.generation),
        (Outcome::Pass, Trust::NotTrusted, None)
    );
}

#[test]
fn a_control_is_believed_with_its_signature_only() {
    let (target, other) = keys();
    let control = Example::default().verdict(&other, 1, HexDigest::ZERO).negative_control.expect("there");
    let envelope = sign_control("acc", &control, &target).to_json();
    assert_eq!(verify_control("acc", envelope.as_bytes(), &target.verifying_key()).expect("valid"), control);
    assert!(verify_control("acc", envelope.as_bytes(), &other.verifying_key()).is_err());
    assert!(matches!(
        verify_control("other", envelope.as_bytes(), &target.verifying_key()),
        Err(VerdictError::Mismatch { what: "repository", .. })
    ));
}
