//! A source that stalls, leaves streams open, asks for too much at a time, or for what is not its own.

use assay_common::{
    id::RunId,
    limits::MAX_RESTORES,
    pki::{Party, Role, issue},
    rpc_status::fault_from_status,
    tls::{ConnectOptions, TlsFiles, connect},
};
use assay_proto::v1::{
    AbandonRunRequest, CheckRunRequest, ContentRequest, ContentStart, FetchManifestRequest, Mark,
    OpenRestoreRequest, ReportReadingsRequest, SealRunRequest, SecondReading, TransferRequest,
    restore_service_client::RestoreServiceClient,
};
use integration_tests::evil::source::{Act, Tree, link};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::ground::{Ground, target_url};

fn reason(status: &Status) -> (String, String) {
    let fault = fault_from_status(status);
    (fault.reason.into_owned(), fault.message)
}

/// Opens a run, whose number of generation this is.
async fn opened(ground: &Ground, run: &RunId) -> u64 {
    ground.source.open(ground.source.opening(run)).await.expect("it is opened").generation
}

/// Deadlines from the call to the first message, and from each message to the next, which the configuration sets.
#[test]
fn a_source_that_stalls_is_cut_off() {
    let mut ground = Ground::new("[limits]\nfirst_message = \"300ms\"");
    let source = &ground.source;
    ground.runtime.block_on(async {
        // No first message. The senders are held: the streams stay open.
        let (_held, queue) = mpsc::channel::<TransferRequest>(1);
        let refused =
            source.client.clone().transfer(ReceiverStream::new(queue)).await.expect_err("it stalls");
        let (word, message) = reason(&refused);
        assert!(word == "stalled" && message.contains("limits.first_message"), "{word}: {message}");
        let (_held, queue) = mpsc::channel::<SealRunRequest>(1);
        let refused =
            source.client.clone().seal_run(ReceiverStream::new(queue)).await.expect_err("it stalls");
        let (word, message) = reason(&refused);
        assert!(word == "stalled" && message.contains("limits.first_message"), "{word}: {message}");
    });
    // A first message, and no second one.
    ground.restart("first_message = \"300ms\"", "idle = \"300ms\"");
    let source = &ground.source;
    ground.runtime.block_on(async {
        let run = source.run_id();
        let generation = opened(&ground, &run).await;
        let mut script = source.script(&run, generation, &Tree::honest(&ground.live()));
        let Act::Say(start) = script.acts.swap_remove(0) else { panic!("it starts with a start") };
        let (held, queue) = mpsc::channel(1);
        held.send(TransferRequest { kind: start }).await.expect("room");
        let answers = source.client.clone().transfer(ReceiverStream::new(queue)).await.expect("it is taken");
        let refused = answers.into_inner().message().await.expect_err("it stalls");
        let (word, message) = reason(&refused);
        assert!(word == "stalled" && message.contains("limits.idle"), "{word}: {message}");
        let (held, queue) = mpsc::channel(1);
        held.send(SealRunRequest { kind: script.seal.swap_remove(0) }).await.expect("room");
        let answers = source.client.clone().seal_run(ReceiverStream::new(queue)).await.expect("it is taken");
        let refused = answers.into_inner().message().await.expect_err("it stalls");
        let (word, message) = reason(&refused);
        assert!(word == "stalled" && message.contains("limits.idle"), "{word}: {message}");
    });
    // With time to speak, all is well.
    ground.restart("idle = \"300ms\"", "");
    assert_eq!(ground.honest_run(), 1);
    ground.assert_all_whole();
}

/// A source that has said everything and leaves its stream open does not keep the generation from its check.
#[test]
fn a_stream_left_open_after_its_end_holds_nothing_up() {
    let ground = Ground::new("");
    let source = &ground.source;
    ground.runtime.block_on(async {
        let run = source.run_id();
        let generation = opened(&ground, &run).await;
        let tree = Tree::honest(&ground.live());
        let script = source.script(&run, generation, &tree);
        let chunks = tree.contents.iter();
        let chunks = chunks.map(|(_, bytes)| (assay_common::digest::ContentDigest::of(bytes), bytes.clone()));
        source.transfer(script.acts, |pack| pack, &chunks.collect()).await.expect("content is taken");
        let (held, queue) = mpsc::channel(8);
        for kind in script.seal {
            held.send(SealRunRequest { kind }).await.expect("room");
        }
        let answers = source.client.clone().seal_run(ReceiverStream::new(queue)).await.expect("it is taken");
        let mut answers = answers.into_inner();
        let mut envelope = String::new();
        while let Some(answer) = answers.message().await.expect("it goes on") {
            envelope = answer.check.map(|check| check.envelope).unwrap_or_default();
        }
        assert!(!envelope.is_empty(), "the verdict came");
        drop(held);
    });
    ground.pair.prove();
    assert_eq!(ground.pair.verified(), "generations/000001");
    ground.honest_run();
    ground.assert_all_whole();
}

/// Manifests that nobody reads do not take the target's threads.
#[test]
fn manifests_are_sent_a_few_at_a_time() {
    let ground = Ground::new("");
    let text = "x".repeat(4095);
    let mut tree = Tree::honest(&ground.live());
    // More than all windows and queues on the way hold.
    for number in 0..6_000 {
        tree.put(link(&format!("zz{number:05}"), assay_common::manifest::EntryKind::Symlink, &text), None);
    }
    let source = &ground.source;
    ground.runtime.block_on(async {
        let run = source.run_id();
        let generation = opened(&ground, &run).await;
        let end = source.play(source.script(&run, generation, &tree)).await;
        assert!(matches!(end, integration_tests::evil::source::End::Verdict(_)), "{end:?}");
        let request = || FetchManifestRequest { repository: "repo".to_owned(), generation };
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(source.client.clone().fetch_manifest(request()).await.expect("there is a slot"));
        }
        let refused = source.client.clone().fetch_manifest(request()).await.expect_err("there is none");
        let (word, message) = reason(&refused);
        assert!(word == "too-many-streams" && message.contains("4 manifests"), "{word}: {message}");
        drop(held);
    });
    // The slots come back when the streams are gone.
    ground.pair.eventually("a slot is free", || {
        let request = FetchManifestRequest { repository: "repo".to_owned(), generation: 1 };
        ground.runtime.block_on(source.client.clone().fetch_manifest(request)).is_ok()
    });
    ground.honest_run();
}

/// Restores that are opened and not read do not take the target's threads, nor another one's turn for ever.
#[test]
fn restores_are_served_a_few_at_a_time() {
    let ground = Ground::new("");
    ground.honest_run();
    let day = std::time::Duration::from_secs(24 * 3600);
    let bob = Party { name: "bob".to_owned(), hosts: Vec::new() };
    issue(
        &ground.pair.path("pki"),
        ground.pair.authority(),
        Role::Restore,
        &bob,
        day,
        jiff::Timestamp::now(),
    )
    .expect("issue");
    ground.pair.restart_with("target", "source = \"source\"", "source = \"source\"\nrestore = [\"bob\"]");
    let file = |name: &str| ground.pair.path(&format!("pki/{name}"));
    let files = TlsFiles { ca: file("ca.crt"), cert: file("restore-bob.crt"), key: file("restore-bob.key") };
    let client = ground.runtime.block_on(async {
        let (channel, _) = connect(
            &target_url(&ground.pair),
            Role::Target,
            &files,
            &[Role::Restore],
            &ConnectOptions::default(),
        )
        .await
        .expect("it is let in");
        RestoreServiceClient::new(channel)
    });
    let opening = || OpenRestoreRequest { repository: "repo".to_owned(), generation: 1 };
    let manifest = || FetchManifestRequest { repository: "repo".to_owned(), generation: 1 };
    let reading = || async {
        let (held, queue) = mpsc::channel(1);
        let start = Some(ContentStart { repository: "repo".to_owned(), generation: 1 });
        held.send(ContentRequest { start, ..Default::default() }).await.expect("room");
        let answers = client.clone().fetch_content(ReceiverStream::new(queue)).await?;
        Ok::<_, Status>((held, answers))
    };
    ground.runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..MAX_RESTORES {
            held.push(reading().await.expect("there is a slot"));
        }
        for refused in [
            reading().await.map(drop).expect_err("there is none"),
            client.clone().open_restore(opening()).await.map(drop).expect_err("there is none"),
            client.clone().fetch_sealed_manifest(manifest()).await.map(drop).expect_err("there is none"),
        ] {
            let (word, message) = reason(&refused);
            let told = format!("{MAX_RESTORES} restores are being served");
            assert!(word == "too-many-restores" && message.contains(&told), "{word}: {message}");
        }
    });
    // The slots come back when the streams are gone.
    ground.pair.eventually("a slot is free", || {
        ground.runtime.block_on(client.clone().open_restore(opening())).is_ok()
    });
    ground.pair.eventually("all slots are free", || {
        ground.runtime.block_on(async {
            let mut held = Vec::new();
            for _ in 0..MAX_RESTORES {
                let Ok(one) = reading().await else { return false };
                held.push(one);
            }
            true
        })
    });
}

/// Calls about what is not there, is over, or was not asked for; and words that cannot stand in a record.
#[test]
fn calls_about_nothing_are_refused() {
    let ground = Ground::new("");
    ground.honest_run();
    let (generations, verified) = (ground.generations(), ground.pair.verified());
    let source = &ground.source;
    let repository = || source.repository.clone();
    let run = source.run_id();
    ground.runtime.block_on(async {
        let client = || source.client.clone();
        let check = |refused: Status, word: &str, words: &str| {
            let (said, message) = reason(&refused);
            assert!(said == word && message.contains(words), "{said}: {message}");
        };
        let request = FetchManifestRequest { repository: repository(), generation: 999 };
        check(client().fetch_manifest(request).await.expect_err("none"), "no-such-generation", "999");
        let request = FetchManifestRequest { repository: "other".to_owned(), generation: 1 };
        check(client().fetch_manifest(request).await.expect_err("not ours"), "not-your-repository", "other");
        let request = CheckRunRequest { repository: repository(), run_id: run.to_string() };
        check(client().check_run(request).await.expect_err("none"), "no-such-run", "is not open");
        let report = |count| ReportReadingsRequest {
            repository: repository(),
            run_id: run.to_string(),
            readings: vec![SecondReading::default(); count],
            last: true,
        };
        check(client().report_readings(report(0)).await.expect_err("nobody asks"), "not-asked", "no reading");
        check(
            client().report_readings(report(1001)).await.expect_err("too many"),
            "invalid-argument",
            "at most 1000",
        );
        let abandon = |reason: &str, message: String, mark: Option<Mark>| AbandonRunRequest {
            repository: repository(),
            run_id: run.to_string(),
            reason: reason.to_owned(),
            message,
            mark,
        };
        let request = abandon("cancelled", String::new(), None);
        check(client().abandon_run(request).await.expect_err("not open"), "no-such-run", "is not open");
        let long = Mark { id: "x".repeat(4097), time: None };
        for (request, words) in [
            (abandon("../x", String::new(), None), "up to 64 small letters"),
            (abandon("", String::new(), None), "up to 64 small letters"),
            (abandon(&"x".repeat(65), String::new(), None), "up to 64 small letters"),
            (abandon("cancelled", "x".repeat(4097), None), "up to 4096 bytes"),
            (abandon("cancelled", String::new(), Some(long)), "at most 4096 bytes"),
        ] {
            opened(&ground, &run).await;
            check(client().abandon_run(request).await.expect_err("refused"), "invalid-argument", words);
        }
        // A run that has its verdict is over, and its id is used.
        opened(&ground, &run).await;
        client().abandon_run(abandon("cancelled", "enough".to_owned(), None)).await.expect("it is noted");
        let used = source.open(source.opening(&run)).await.expect_err("it is over");
        assert_eq!(&*used.reason, "run-id-used", "{used:?}");
    });
    ground.assert_untouched("calls", &generations, &verified);
    ground.honest_run();
    // The same of a run that was sealed and checked: its PASS would stand for another tree.
    let used = ground.runtime.block_on(async {
        let first: RunId = "20200101T000000Z-000000".parse().expect("an id");
        source.open(source.opening(&first)).await.expect_err("it is over")
    });
    assert_eq!(&*used.reason, "run-id-used", "{used:?}");
}

/// A second OpenRun: of another run while a stream is attached it is refused; of the same run it takes the stream's place.
#[test]
fn a_second_open_run_takes_nothing_from_a_run_that_receives() {
    let ground = Ground::new("");
    let source = &ground.source;
    ground.runtime.block_on(async {
        let (run, other) = (source.run_id(), source.run_id());
        let generation = opened(&ground, &run).await;
        let mut script = source.script(&run, generation, &Tree::honest(&ground.live()));
        let Act::Say(start) = script.acts.swap_remove(0) else { panic!("it starts with a start") };
        let (held, queue) = mpsc::channel(1);
        held.send(TransferRequest { kind: start }).await.expect("room");
        let mut answers =
            source.client.clone().transfer(ReceiverStream::new(queue)).await.expect("taken").into_inner();
        let busy = source.open(source.opening(&other)).await.expect_err("one is under way");
        assert_eq!(&*busy.reason, "busy", "{busy:?}");
        assert_eq!(busy.run_id(), Some(run.as_str()), "{busy:?}");
        assert_eq!(opened(&ground, &run).await, generation);
        let (word, _) = reason(&answers.message().await.expect_err("its place is taken"));
        assert_eq!(word, "cut-off");
    });
    ground.honest_run();
    ground.assert_all_whole();
}

/// What a source sends keeps its modes: a set-user-id program is one in the generation as well, and nobody may get there.
#[test]
fn generations_are_closed_to_other_users() {
    use std::os::unix::fs::MetadataExt as _;
    let ground = Ground::new("");
    let mut tree = Tree::honest(&ground.live());
    let mut program = integration_tests::evil::source::file("zz", b"#!/bin/sh\n");
    program.mode = 0o4755;
    tree.put(program, Some(b"#!/bin/sh\n"));
    let source = &ground.source;
    ground.runtime.block_on(async {
        let run = source.run_id();
        let generation = opened(&ground, &run).await;
        let end = source.play(source.script(&run, generation, &tree)).await;
        assert!(matches!(end, integration_tests::evil::source::End::Verdict(_)), "{end:?}");
    });
    let mode = |name: &str| std::fs::metadata(ground.pair.path(name)).expect("it is there").mode() & 0o7777;
    assert_eq!(mode("store/repo/generations/000001/tree/zz"), 0o4755);
    for folder in ["generations", "staging", "ledger", "ahead", "copies"] {
        assert_eq!(mode(&format!("store/repo/{folder}")), 0o700, "{folder}");
    }
}
