//! A source that makes the target hold what it did not send: manifests that unfold, files and folders by the hundred thousand, attributes,
//! runs that are given up in a loop. Everything counts against the repository's quotas before it is written, and what a refused run left
//! is gone.

use std::{fs, path::Path};

use assay_common::{
    manifest::{Entry, EntryKind, ExtendedAttribute},
    rpc_status::fault_from_status,
};
use assay_proto::v1::{
    AbandonRunRequest, ManifestDelta, PutEntry, manifest_step::Kind as StepKind,
    seal_run_request::Kind as SealKind,
};
use integration_tests::evil::source::{Act, Tree, folder, step};
use prost::Message as _;
use tonic::Code;

use crate::ground::Ground;

const QUOTA: &str = "source = \"source\"\nquota = \"4MiB\"";

/// Bytes and files of the repository's store, the chunk index left out.
fn held(ground: &Ground) -> (u64, u64) {
    fn below(path: &Path, sum: &mut (u64, u64)) {
        for entry in fs::read_dir(path).expect("list") {
            let entry = entry.expect("entry");
            let stat = entry.metadata().expect("stat");
            sum.1 += 1;
            if stat.is_dir() {
                below(&entry.path(), sum);
            } else if !entry.file_name().to_string_lossy().starts_with("index.") {
                sum.0 += stat.len();
            }
        }
    }
    let mut sum = (0, 0);
    below(&ground.pair.path("store/repo"), &mut sum);
    sum
}

/// Entries below the root folder, packed as a source may pack them. Returns how many bytes were sent, and the refusal's words.
fn refused(ground: &Ground, entries: &[Entry]) -> (usize, String) {
    let source = &ground.source;
    let run = source.run_id();
    let mut tree = Tree::upon(0, &ground.live());
    tree.put(folder(""), None);
    tree.listed.extend(entries.iter().cloned());
    let put = |entry: &Entry| {
        step(StepKind::Put(PutEntry { entry: Some(entry.clone()), content: 0, reuse: Vec::new() }))
    };
    let mut sent = 0;
    let packed: Vec<_> = entries
        .chunks(10_000)
        .map(|entries| {
            let plain = ManifestDelta { steps: entries.iter().map(put).collect(), ..Default::default() };
            let plain = plain.encode_to_vec();
            let packed = zstd::bulk::compress(&plain, 19).expect("compress");
            sent += packed.len();
            let delta = ManifestDelta { packed, packed_raw_bytes: plain.len() as u64, ..Default::default() };
            Some(SealKind::Delta(delta))
        })
        .collect();
    let (call, fault) = ground.runtime.block_on(async {
        let opened = source.open(source.opening(&run)).await.expect("an honest opening");
        let mut script = source.script(&run, opened.generation, &tree);
        let last = script.seal.pop().expect("a finish");
        script.seal.extend(packed);
        script.seal.push(last);
        source.play(script).await.fault()
    });
    assert_eq!(
        (call, fault.code, &*fault.reason),
        ("SealRun", Code::ResourceExhausted, "quota-exceeded"),
        "{fault:?}"
    );
    (sent, fault.message)
}

fn entry(path: String, kind: EntryKind) -> Entry {
    let mode = if kind == EntryKind::Symlink { 0o777 } else { 0o755 };
    let link_target = if kind == EntryKind::Symlink { b"x".to_vec() } else { Vec::new() };
    Entry { path: path.into(), kind: kind.into(), mode, link_target, ..Default::default() }
}

/// Some kilobytes that unfold to far more than the quota are refused before they are written, and nothing of them stays.
#[test]
fn what_unfolds_counts_before_it_is_written_and_is_gone_after_the_refusal() {
    let ground = Ground::new("");
    ground.pair.restart_with("target", "source = \"source\"", QUOTA);
    let mut ground = ground;
    ground.restart("isolation", "isolation");
    let generation = ground.honest_run();
    ground.pair.prove();
    let generations = ground.generations();
    let before = held(&ground);
    let long = "n".repeat(240);
    let attribute =
        |number: usize| ExtendedAttribute { name: format!("user.{number}").into(), value: vec![7; 3000] };
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        // 3 KiB of names an entry, in the manifest alone.
        ("a manifest", {
            let inner = |number: usize| {
                let mut entry = entry(format!("{long}{number:06}"), EntryKind::Hardlink);
                (entry.mode, entry.link_target) = (0, long.clone().into_bytes());
                entry
            };
            (0..20_000).map(inner).collect()
        }),
        ("folders", (0..20_000).map(|number| entry(format!("{number:06}"), EntryKind::Directory)).collect()),
        ("links", (0..20_000).map(|number| entry(format!("{number:06}"), EntryKind::Symlink)).collect()),
        ("attributes", {
            let inner = |number: usize| {
                let mut entry = entry(format!("{number:06}"), EntryKind::Directory);
                entry.xattrs = (0..5).map(attribute).collect();
                entry
            };
            (0..2_000).map(inner).collect()
        }),
    ];
    for (name, entries) in cases {
        let (sent, message) = refused(&ground, &entries);
        assert!(sent < 400_000, "{name}: {sent} bytes were sent");
        assert!(message.contains("4MiB"), "{name}: {message}");
        let after = held(&ground);
        // A session's own folder stays, and what it says of itself.
        assert!(
            after.0 < before.0 + 64 * 1024 && after.1 < before.1 + 16,
            "{name}: {before:?} became {after:?}"
        );
        ground.assert_untouched(name, &generations, &format!("generations/{generation:06}"));
    }
    assert_eq!(ground.honest_run(), generation + 1);
    ground.assert_all_whole();
}

/// Files and folders have a quota of their own: contents without a byte as well.
#[test]
fn files_and_folders_have_a_quota() {
    let mut ground = Ground::new("");
    ground.restart("source = \"source\"", "source = \"source\"\nquota_entries = 500");
    let generation = ground.honest_run();
    let before = held(&ground);
    let folders: Vec<_> =
        (0..1000).map(|number| entry(format!("{number:06}"), EntryKind::Directory)).collect();
    let (_, message) = refused(&ground, &folders);
    assert!(message.contains("500 files and folders"), "{message}");
    assert!(held(&ground).1 < before.1 + 16);
    // Empty files, each with a content of its own, and numbers that want a folder each.
    for step in [1, 4096] {
        let source = &ground.source;
        let run = source.run_id();
        let parts: Vec<_> = (1..1000)
            .map(|number| {
                integration_tests::evil::source::part(number * step, format!("{number}").as_bytes())
            })
            .collect();
        let mut tree = Tree::upon(0, &ground.live());
        tree.put(folder(""), None);
        tree.contents =
            (1..1000).map(|number: u64| (number * step, format!("{number}").into_bytes())).collect();
        let fault = ground.runtime.block_on(async {
            let opened = source.open(source.opening(&run)).await.expect("an honest opening");
            let mut script = source.script(&run, opened.generation, &tree);
            script.acts.pop();
            script.acts.push(Act::Offer(assay_proto::v1::Offer { batch: 1, parts }));
            source.play(script).await.fault()
        });
        assert_eq!(
            (fault.0, fault.1.code, &*fault.1.reason),
            ("Transfer", Code::ResourceExhausted, "quota-exceeded"),
            "{fault:?}"
        );
        assert!(held(&ground).1 < before.1 + 600, "{before:?} became {:?}", held(&ground));
    }
    assert_eq!(ground.honest_run(), generation + 1);
}

/// Runs that are opened and given up add a verdict each, until so many have failed within an hour.
#[test]
fn a_ledger_does_not_grow_without_bound() {
    let ground = Ground::new("[limits]\nfailed_runs_per_hour = 5");
    let entries = || fs::read_dir(ground.pair.path("store/repo/ledger")).expect("list").count();
    ground.honest_run();
    let before = entries();
    let source = &ground.source;
    let refused = ground.runtime.block_on(async {
        for number in 0..20 {
            let run = source.run_id();
            match source.client.clone().open_run(source.opening(&run)).await {
                Err(status) => return (number, status),
                Ok(_) => {
                    let request = AbandonRunRequest {
                        repository: "repo".to_owned(),
                        run_id: run.to_string(),
                        reason: "cancelled".to_owned(),
                        message: "x".repeat(4000),
                        ..Default::default()
                    };
                    source.client.clone().abandon_run(request).await.expect("it is told");
                }
            }
        }
        panic!("twenty runs were given up");
    });
    assert_eq!(refused.0, 5);
    let fault = fault_from_status(&refused.1);
    assert_eq!((fault.code, &*fault.reason), (Code::ResourceExhausted, "too-many-failed-runs"), "{fault:?}");
    let after = fault.retry_after.expect("when to try again");
    // One in the fifth part of an hour.
    assert!(after.as_secs() > 600 && after.as_secs() <= 720, "{after:?}");
    // Those that were opened are told, and an agent that is restarted remembers them.
    assert_eq!(entries(), before + 5);
    let mut ground = ground;
    ground.restart("name = \"target\"", "name = \"target\"");
    let source = &ground.source;
    let fault = ground.runtime.block_on(source.open(source.opening(&source.run_id()))).expect_err("refused");
    assert_eq!(&*fault.reason, "too-many-failed-runs", "{fault:?}");
}
