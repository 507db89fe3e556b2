//! A target that changes one answer: what the source believes, and what it tells.

use std::fs;

use assay_common::{
    dsse::{Envelope, IN_TOTO_PAYLOAD_TYPE},
    signing::SigningKey,
};
use assay_proto::v1::{
    AbandonRunResponse, ManifestPart, OpenRunResponse, ReadAgain, RunCheckProgress, SealRunResponse,
    TransferResponse, second_reading::State,
};
use integration_tests::evil::target::{EvilTarget, Lie};
use tonic::Status;

use crate::{
    ground::target_url,
    pair::{PLAIN_CHECK, Pair, json},
};

/// Real agents with a liar between them.
struct Between {
    pair: Pair,
    evil: EvilTarget,
    /// What the liar runs in.
    _runtime: tokio::runtime::Runtime,
}

impl Between {
    fn new(source_keys: &str) -> Self {
        let pair = Pair::plain(1);
        for (name, content) in [("file", "good"), ("other", "good as well")] {
            fs::write(pair.root(0).join(name), content).expect("write");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let url = target_url(&pair);
        let evil = runtime.block_on(EvilTarget::start(&pair.path("pki"), &url));
        let check = &format!("check = {PLAIN_CHECK} }}");
        pair.restart_with("target", check, &format!("{check}\nisolation = \"none\""));
        let honest = format!("url = \"https://127.0.0.1:{}\"", pair.link().port());
        pair.restart_with("source", &honest, &format!("{source_keys}\nurl = {:?}", evil.url()));
        let between = Self { pair, evil, _runtime: runtime };
        between.passes();
        between
    }

    /// A run without a lie, which must pass.
    fn passes(&self) {
        self.evil.tell(Lie::None);
        fs::write(self.pair.root(0).join("honest"), rand::random::<u64>().to_string()).expect("write");
        self.pair.eventually("an honest run passes", || {
            let done = self.pair.source(&["--json", "run", "--follow"]);
            if done.code == 0 {
                return true;
            }
            // What the run before has sealed is still being checked.
            let run = json(done.stdout.lines().last().expect("a line"));
            assert!(
                run["message"].as_str().is_some_and(|text| text.contains("is being sealed or checked")),
                "{done:?}"
            );
            false
        });
    }

    /// A run with the lie and something to send, which must end so; and then an honest one, which must pass.
    fn ends(&self, name: &str, lie: Lie, code: i32, reason: &str, words: &str) {
        self.tells(name, lie, code, reason, words);
        // The agent lives on.
        self.passes();
    }

    fn tells(&self, name: &str, lie: Lie, code: i32, reason: &str, words: &str) {
        fs::write(self.pair.root(0).join("fresh"), rand::random::<u64>().to_string()).expect("write");
        self.evil.tell(lie);
        let done = self.pair.source(&["--json", "run", "--follow"]);
        assert_eq!(done.code, code, "{name}: {done:?}");
        let run = json(done.stdout.lines().last().expect("a line"));
        assert_eq!(run["reason"], reason, "{name}: {run}");
        let message = run["message"].as_str().expect("text");
        assert!(message.contains(words), "{name}: {words:?} is missing in {message}");
        assert!(!done.stdout.contains('\u{1b}'), "{name}: {done:?}");
    }
}

fn open(change: fn(&mut OpenRunResponse)) -> Lie {
    Lie::Open(Box::new(move |mut opened| {
        change(&mut opened);
        Ok(opened)
    }))
}

fn transfer(change: fn(TransferResponse) -> Vec<TransferResponse>) -> Lie {
    Lie::Transfer(Box::new(move |answer| Ok(change(answer))))
}

fn seal(change: impl Fn(SealRunResponse) -> Vec<SealRunResponse> + Send + Sync + 'static) -> Lie {
    Lie::Seal(Box::new(move |answer| Ok(change(answer))))
}

fn progress(check: RunCheckProgress) -> SealRunResponse {
    SealRunResponse { check: Some(check), ..Default::default() }
}

/// The verdict's envelope, changed.
fn verdict(change: impl Fn(String) -> String + Send + Sync + 'static) -> Lie {
    seal(move |mut answer| {
        if let Some(check) = &mut answer.check
            && !check.envelope.is_empty()
        {
            check.envelope = change(std::mem::take(&mut check.envelope));
        }
        vec![answer]
    })
}

#[test]
fn answers_that_break_the_protocol_end_the_run() {
    let it = Between::new("");
    let protocol = |name, lie, words| it.ends(name, lie, 4, "protocol", words);
    protocol("a short root digest", open(|opened| opened.base_root_digest.truncate(31)), "32 bytes");
    protocol("a digest of no manifest", open(|opened| opened.base_root_digest = vec![7; 32]), "root digest");
    let offered = "only offered chunks are wanted";
    protocol("chunks that were not offered", transfer(|answer| vec![wanting(answer, vec![0xff])]), offered);
    protocol("very many chunks", transfer(|answer| vec![wanting(answer, vec![0xff; 8 << 20])]), offered);
    protocol("nothing, at length", transfer(|answer| vec![wanting(answer, vec![0; 8 << 20])]), offered);
    protocol(
        "the same chunk a thousand times",
        transfer(|answer| vec![answer; 1000]),
        // Which of its two rules depends on whether the target had all of the first batch, and that on how the readers divide the files.
        "a batch",
    );
    protocol(
        "a batch that nobody offered",
        transfer(|answer| vec![TransferResponse { batch: 1 << 40, ..answer }]),
        "an answer names a batch that waits for one",
    );
    let ends = Lie::Transfer(Box::new(|_| Err(Status::ok(""))));
    protocol("an end before the end", ends, "the stream ends with 'stored'");
    let sealed = "the sealed generation is the one that was sent";
    let change = |mut answer: SealRunResponse, change: fn(&mut SealRunResponse)| {
        change(&mut answer);
        vec![answer]
    };
    protocol(
        "another root",
        seal(move |answer| change(answer, |answer| answer.root_digest = vec![7; 32])),
        sealed,
    );
    protocol(
        "another generation",
        seal(move |answer| change(answer, |answer| answer.generation += 1)),
        sealed,
    );
}

fn wanting(answer: TransferResponse, wanted: Vec<u8>) -> TransferResponse {
    if answer.wanted.is_empty() { answer } else { TransferResponse { wanted, ..answer } }
}

#[test]
fn a_manifest_that_is_not_the_base_is_not_used() {
    let it = Between::new("");
    // What the source remembers is gone: it asks.
    let forget = || {
        it.pair.kill("source");
        fs::remove_dir_all(it.pair.path("state/repo/basis")).expect("the basis is there");
        it.pair.start("source");
    };
    let parts = |change: fn(Vec<u8>) -> Vec<u8>| {
        Lie::Manifest(Box::new(move |part: ManifestPart| {
            Ok(vec![ManifestPart { data: change(part.data.to_vec()).into() }])
        }))
    };
    let flipped = |mut data: Vec<u8>| {
        let middle = data.len() / 2;
        data[middle] ^= 1;
        data
    };
    forget();
    it.ends("one bit", parts(flipped), 4, "protocol", "the base's manifest has its root digest");
    forget();
    it.ends("nothing", parts(|_| Vec::new()), 4, "protocol", "the base's manifest has its root digest");
}

#[test]
fn a_check_that_says_too_much_ends() {
    let it = Between::new("");
    let step = |step: String| progress(RunCheckProgress { step, ..Default::default() });
    it.ends(
        "an endless check",
        seal(move |answer| {
            let mut answers = vec![answer.clone()];
            if answer.check.is_none() {
                answers.extend(std::iter::repeat_n(step("again".to_owned()), 100_001));
            }
            answers
        }),
        4,
        "check-lost",
        "more than 100000 messages about one check",
    );
    it.ends(
        "a huge message",
        seal(move |answer| vec![answer, step("x".repeat(17 << 20))]),
        4,
        "check-lost",
        "16777216 bytes",
    );
    let files = vec![ReadAgain::default(); 2 << 20];
    it.ends(
        "a message that is huge in memory",
        seal(move |answer| {
            vec![answer, progress(RunCheckProgress { read_again: files.clone(), ..Default::default() })]
        }),
        4,
        "check-lost",
        "128 MiB",
    );
    it.ends(
        "words for the terminal",
        Lie::Open(Box::new(|_| Err(Status::failed_precondition("evil \u{1b}[2J\nPASS")))),
        4,
        "target-refused",
        "evil \\u{1b}[2J\\nPASS",
    );
}

/// A verdict counts with the target's pinned signature, about this run, and in all of its parts.
#[test]
fn a_verdict_is_believed_whole_and_about_this_run_only() {
    let it = Between::new("");
    let refused = |name: &str, lie, words: &str| {
        it.ends(name, lie, 3, "verdict-not-trusted", words);
    };
    let earlier = fs::read_to_string(it.pair.path("store/repo/ledger/000000001.json")).expect("a verdict");
    let key = || SigningKey::load(&it.pair.path("pki/target-signing.key")).expect("key");
    let payload = |envelope: &str| -> serde_json::Value {
        let envelope = Envelope::parse(envelope.as_bytes()).expect("an envelope");
        let payload = envelope.unverified_payload(IN_TOTO_PAYLOAD_TYPE).expect("a payload");
        serde_json::from_slice(&payload).expect("JSON")
    };
    let sign = |payload: &serde_json::Value, key: &SigningKey| {
        let bytes = serde_json::to_vec(payload).expect("JSON");
        Envelope::sign(IN_TOTO_PAYLOAD_TYPE, &bytes, key).to_json()
    };
    let stranger = SigningKey::generate();
    refused("another key", verdict(move |it| sign(&payload(&it), &stranger)), "another key");
    let old = earlier.clone();
    refused("another run's", verdict(move |_| old.clone()), "another run");
    refused(
        "an outcome changed",
        verdict(move |envelope| {
            let mut json: serde_json::Value = serde_json::from_str(&envelope).expect("JSON");
            let mut statement = payload(&envelope);
            statement["predicate"]["outcome"] = "FAIL".into();
            let forged: serde_json::Value =
                serde_json::from_str(&sign(&statement, &SigningKey::generate())).expect("JSON");
            json["payload"] = forged["payload"].clone();
            json.to_string()
        }),
        "verdict:",
    );
    refused("not a verdict", verdict(|_| "{}".to_owned()), "verdict");
    refused(
        "a source's statement",
        {
            let statement = payload(&earlier)["predicate"]["sourceStatement"].to_string();
            verdict(move |_| statement.clone())
        },
        "",
    );
    // Each part that binds a verdict to its run, taken from another valid verdict and signed with the target's own key.
    let old = payload(&earlier);
    for part in ["repository", "runId", "generation", "root", "mark", "sourceStatement", "subject"] {
        let (old, key) = (old.clone(), key());
        let changes = verdict(move |envelope| {
            let mut statement = payload(&envelope);
            match part {
                "subject" => statement["subject"] = old["subject"].clone(),
                "repository" => statement["predicate"]["repository"] = "other".into(),
                part => statement["predicate"][part] = old["predicate"][part].clone(),
            }
            sign(&statement, &key)
        });
        refused(part, changes, "");
    }
    for (name, key_path, value) in [
        ("no source statement", "sourceStatement", serde_json::Value::Null),
        ("an override that was not given", "overrides", serde_json::json!(["allow_mass_drop"])),
        ("a PASS of a step that failed", "steps", serde_json::Value::Null),
        ("an outcome of no kind", "outcome", "FINE".into()),
        ("a word that nobody knows", "surprise", 1.into()),
    ] {
        let key = key();
        let changes = verdict(move |envelope| {
            let mut statement = payload(&envelope);
            if key_path == "steps" {
                statement["predicate"]["steps"][0]["outcome"] = "FAIL".into();
            } else {
                statement["predicate"][key_path] = value.clone();
            }
            sign(&statement, &key)
        });
        refused(name, changes, "");
    }
    // The id under which it is said to be in the ledger.
    let other_id = seal(|mut answer| {
        if let Some(check) = answer.check.as_mut().filter(|check| !check.verdict_id.is_empty()) {
            check.verdict_id = "../\u{1b}[2J".to_owned();
        }
        vec![answer]
    });
    refused("an id of another kind", other_id, "");
}

/// The word on a run that was given up is taken for that run only.
#[test]
fn an_earlier_verdict_is_not_taken_for_the_end_of_a_run() {
    let it = Between::new("");
    let earlier = fs::read_to_string(it.pair.path("store/repo/ledger/000000001.json")).expect("a verdict");
    let (root, away) = (it.pair.root(0), it.pair.path("away"));
    let given_up = |lie| {
        it.evil.tell(lie);
        fs::rename(&root, &away).expect("rename");
        let done = it.pair.source(&["--json", "run", "--follow"]);
        fs::rename(&away, &root).expect("rename");
        assert_eq!(done.code, 4, "{done:?}");
        let run = json(done.stdout.lines().last().expect("a line"));
        assert_eq!(run["reason"], "root-missing", "{run}");
        run
    };
    let told = given_up(Lie::None);
    assert_eq!(told["verdictId"], "000000002", "{told}");
    let lie = Lie::Abandon(Box::new(move |_| {
        Ok(AbandonRunResponse { verdict_id: "000000001".to_owned(), envelope: earlier.clone() })
    }));
    let told = given_up(lie);
    assert_eq!(told["verdictId"], serde_json::Value::Null, "{told}");
    let id = told["id"].as_str().expect("an id");
    assert!(!it.pair.path(&format!("state/repo/verdicts/{id}.json")).exists());
    it.passes();
}

/// What is read again is read below the roots only, and no link is followed.
#[test]
fn nothing_outside_of_the_roots_is_read_again() {
    let it = Between::new("");
    let secret = it.pair.path("secret");
    fs::write(&secret, "not ours").expect("write");
    std::os::unix::fs::symlink("../secret", it.pair.root(0).join("link")).expect("symlink");
    std::os::unix::fs::symlink("..", it.pair.root(0).join("up")).expect("symlink");
    let absolute = secret.to_str().expect("plain").to_owned();
    let names = [
        "../secret".to_owned(),
        absolute,
        "link".to_owned(),
        "up/secret".to_owned(),
        String::new(),
        "file".to_owned(),
    ];
    let asked: Vec<ReadAgain> = names
        .iter()
        .map(|name| ReadAgain { path: name.clone().into(), size: 4, ..Default::default() })
        .collect();
    it.evil.tell(seal(move |answer| {
        if answer.check.is_some() {
            return vec![answer];
        }
        // Twice: it reads once.
        let ask = progress(RunCheckProgress { read_again: asked.clone(), ..Default::default() });
        vec![answer, ask.clone(), ask]
    }));
    fs::write(it.pair.root(0).join("fresh"), "x").expect("write");
    let done = it.pair.source(&["--json", "run", "--follow"]);
    assert_eq!(done.code, 0, "{done:?}");
    let readings = it.evil.readings();
    for reading in &readings {
        let name = String::from_utf8_lossy(&reading.path).into_owned();
        if name == "file" {
            assert_eq!(reading.state(), State::Read, "{reading:?}");
        } else {
            assert!(matches!(reading.state(), State::Gone | State::Unreadable), "{reading:?}");
            assert!(reading.digest.is_empty() && reading.prefix_digest.is_empty(), "{reading:?}");
        }
    }
    assert!(readings.len() <= names.len(), "{readings:?}");
    it.passes();
}

/// A target that owes an answer, on a connection that stands, is not waited for beyond `target.patience`.
#[test]
fn a_silent_target_is_given_up() {
    let it = Between::new("retry = \"10m\"");
    for call in ["OpenRun", "Transfer", "SealRun"] {
        // Whoever is slow on a busy machine: what comes too late is told in the same words.
        it.pair.restart_with("source", "retry = \"10m\"", "patience = \"1s\"");
        it.tells(call, Lie::Silence(call), 4, "target-stalled", "target.patience");
        it.pair.restart_with("source", "patience = \"1s\"", "retry = \"10m\"");
        it.passes();
    }
}
