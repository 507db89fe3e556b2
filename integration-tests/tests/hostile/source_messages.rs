//! A source that changes one message of a run: what the target says to each, and that it lives on.

use assay_common::{id::RunId, manifest::EntryKind, signing::SigningKey};
use assay_proto::v1::{
    Entry, ExtendedAttribute, FilePart, ManifestDelta, Offer, Pack, PutEntry, Reuse, TransferStart,
    manifest_step::Kind as Step, seal_run_request::Kind as Seal, transfer_request::Kind as Transfer,
};
use integration_tests::evil::source::{Act, End, EvilSource, Script, Tree, file, folder, link, part, step};

use crate::ground::Ground;

/// What a case has at hand.
struct Setting<'a> {
    ground: &'a Ground,
    source: &'a EvilSource,
    run: RunId,
    /// Number that the new generation will have; the one before it is an honest one.
    generation: u64,
}

impl Setting<'_> {
    /// An honest tree upon nothing, changed before it is signed.
    fn tree(&self, change: impl FnOnce(&mut Tree)) -> Script {
        let mut tree = Tree::honest(&self.ground.live());
        change(&mut tree);
        self.source.script(&self.run, self.generation, &tree)
    }

    /// Further entries at the end of an honest tree.
    fn entries(&self, entries: impl IntoIterator<Item = Entry>) -> Script {
        self.tree(|tree| {
            for entry in entries {
                let content = (entry.kind() == EntryKind::File).then_some(&b"evil"[..]);
                tree.put(entry, content);
            }
        })
    }

    /// Steps upon the honest generation, and what they would make.
    fn steps(&self, steps: Vec<Step>, change: impl FnOnce(&mut Vec<Entry>)) -> Script {
        let mut tree = Tree::kept(self.generation - 1, &self.ground.live());
        tree.steps = steps.into_iter().map(step).collect();
        change(&mut tree.listed);
        self.source.script(&self.run, self.generation, &tree)
    }

    /// An honest run, changed message by message.
    fn script(&self, change: impl FnOnce(&mut Script)) -> Script {
        let mut script = self.tree(|_| {});
        change(&mut script);
        script
    }

    /// A run whose content is this and nothing else.
    fn content(&self, acts: impl IntoIterator<Item = Act>) -> Script {
        self.script(|script| {
            script.acts.truncate(1);
            script.acts.extend(acts);
        })
    }

    /// A run with one offer of fresh content, whose pack is changed.
    fn pack(&self, change: fn(Pack) -> Pack) -> Script {
        // What earlier cases brought is not wanted again.
        let fresh = format!("fresh in {}", self.run).into_bytes();
        let mut script = self.tree(|tree| tree.put(file("zz", &fresh), Some(&fresh)));
        script.pack = change;
        script
    }

    fn seal(&self, change: impl FnOnce(&mut Vec<Option<Seal>>)) -> Script {
        self.script(|script| change(&mut script.seal))
    }

    fn delta(&self, delta: ManifestDelta) -> Script {
        self.seal(|seal| seal[1] = Some(Seal::Delta(delta)))
    }
}

type Change = Box<dyn Fn(&Setting<'_>) -> Script>;

/// One changed message: its name, how it is made, the call in which the target says no, its stable word, and words of its
/// message.
struct Case(&'static str, Change, &'static str, &'static str, &'static str);

fn case(
    name: &'static str,
    change: impl Fn(&Setting<'_>) -> Script + 'static,
    (call, reason, words): (&'static str, &'static str, &'static str),
) -> Case {
    Case(name, Box::new(change), call, reason, words)
}

fn evil(path: impl Into<Vec<u8>>) -> Entry {
    file(path, b"evil")
}

fn put(entry: Entry, content: u64) -> Step {
    Step::Put(PutEntry { entry: Some(entry), content, reuse: Vec::new() })
}

fn offer(batch: u64, parts: Vec<FilePart>) -> Act {
    Act::Offer(Offer { batch, parts })
}

/// Refused when the manifest is put together.
fn manifest(words: &'static str) -> (&'static str, &'static str, &'static str) {
    ("SealRun", "manifest-refused", words)
}

/// Refused while content comes.
fn content(words: &'static str) -> (&'static str, &'static str, &'static str) {
    ("Transfer", "invalid-argument", words)
}

/// Names and shapes of trees.
fn names() -> Vec<Case> {
    let one =
        |name, path: &'static [u8], words| case(name, move |it| it.entries([evil(path)]), manifest(words));
    vec![
        one("..", b"..", "has a component '.' or '..'"),
        one(".. on the way", b"folder/../up", "has a component '.' or '..'"),
        one(".", b"./z", "has a component '.' or '..'"),
        one("an empty component", b"zz//zz", "has an empty component"),
        one("a slash at the end", b"zz/", "has an empty component"),
        one("a NUL", b"zz\0", "has a NUL byte"),
        case(
            "absolute",
            |it| it.entries([evil(it.ground.canary().join("planted").into_os_string().into_encoded_bytes())]),
            manifest("has an empty component"),
        ),
        case(
            "a long component",
            |it| it.entries([evil(vec![b'z'; 256])]),
            manifest("a component of more than 255 bytes"),
        ),
        case(
            "a long path",
            |it| it.entries([evil(b"zz/".repeat(1365).into_iter().chain(*b"x").collect::<Vec<u8>>())]),
            manifest("is longer than 4095 bytes"),
        ),
        case(
            "a deep path",
            |it| it.entries([evil([&b"z/".repeat(2000)[..], b"x"].concat())]),
            manifest("has more than 2000 components"),
        ),
        one("twice", b"z", "is out of order or stands twice"),
        one("the root twice", b"", "is out of order or stands twice"),
        one("out of order", b"folder/a", "is out of order or stands twice"),
        one("in a file", b"z/inner", "is in no folder"),
        one("in nothing", b"zz/inner", "is in no folder"),
        case(
            "below a link",
            |it| it.entries([link("zlink", EntryKind::Symlink, "../canary"), evil("zlink/file")]),
            manifest("is in no folder"),
        ),
        case(
            "below a link of the base",
            |it| {
                let steps = vec![Step::Keep(6), put(evil("link/file"), 1), Step::Keep(1)];
                it.steps(steps, |listed| listed.insert(6, evil("link/file")))
            },
            manifest("is in no folder"),
        ),
        case(
            "a kept file below what is now a link",
            |it| {
                let planted = link("folder", EntryKind::Symlink, "../canary");
                let steps =
                    vec![Step::Keep(3), Step::Drop(1), put(planted.clone(), 0), Step::Keep(1), Step::Keep(2)];
                it.steps(steps, |listed| listed[3] = planted)
            },
            manifest("is in no folder"),
        ),
        case(
            "no root",
            |it| {
                it.tree(|tree| {
                    (tree.steps, tree.listed) = (tree.steps.split_off(1), tree.listed.split_off(1))
                })
            },
            manifest("does not start with the root folder"),
        ),
        case("nothing at all", |it| it.seal(|seal| drop(seal.remove(1))), manifest("the root folder")),
        case(
            "a header of another kind",
            |it| {
                it.seal(|seal| {
                    if let Some(Some(Seal::Start(start))) = seal.first_mut() {
                        start.manifest_header =
                            "{\"roots\":[{\"name\":\"..\",\"live_path\":\"/\",\"subdirectory\":\"\"}]}"
                                .into();
                    }
                })
            },
            manifest("header"),
        ),
    ]
}

/// Hard links, whose first name must be one of this tree.
fn links() -> Vec<Case> {
    let to = |name, target: &'static str, words| {
        case(name, move |it| it.entries([link("zz", EntryKind::Hardlink, target)]), manifest(words))
    };
    let first = "is a hard link whose first name does not come before it";
    vec![
        to("a hard link out", "../canary/file", first),
        to("a hard link to an absolute path", "/etc/passwd", first),
        to("a hard link to what comes later", "zzz", first),
        to("a hard link to the root", "", first),
        to("a hard link to nothing", "nobody", "is a hard link to \"nobody\""),
        to("a hard link to a folder", "folder", "is a hard link to \"folder\""),
        to("a hard link to a hard link", "b", "is a hard link to \"b\""),
        to("a hard link through a link", "link/inner", "is a hard link to \"link/inner\""),
        case(
            "a kept hard link whose first name is gone",
            |it| {
                let steps = vec![Step::Keep(1), Step::Drop(1), Step::Keep(5)];
                it.steps(steps, |listed| drop(listed.remove(1)))
            },
            manifest("is a hard link to \"a\""),
        ),
        case(
            "a kept hard link whose first name is now a folder",
            |it| {
                let steps = vec![Step::Keep(1), Step::Drop(1), put(folder("a"), 0), Step::Keep(5)];
                it.steps(steps, |listed| listed[1] = folder("a"))
            },
            manifest("is a hard link to \"a\""),
        ),
        case(
            "a link with a NUL",
            |it| it.entries([link("zz", EntryKind::Symlink, "a\0b")]),
            manifest("is a symbolic link with a NUL byte"),
        ),
        case(
            "a link without a text",
            |it| it.entries([link("zz", EntryKind::Symlink, "")]),
            manifest("without a text of 1 to 4095 bytes"),
        ),
        case(
            "a link with a long text",
            |it| it.entries([link("zz", EntryKind::Symlink, &"x".repeat(4096))]),
            manifest("without a text of 1 to 4095 bytes"),
        ),
    ]
}

/// Fields of an entry.
fn fields() -> Vec<Case> {
    let changed = |name, change: fn(&mut Entry), words| {
        let entry = move || {
            let mut entry = evil("zz");
            change(&mut entry);
            entry
        };
        case(name, move |it| it.tree(|tree| tree.put(entry(), Some(b"evil"))), manifest(words))
    };
    let attributes = |count: usize, bytes: usize| {
        (0..count)
            .map(|number| ExtendedAttribute {
                name: format!("user.{number:06}").into_bytes(),
                value: vec![b'x'; bytes],
            })
            .collect::<Vec<_>>()
    };
    let attribute = |name: &'static str| {
        case(
            name,
            move |it| {
                let xattrs = vec![ExtendedAttribute { name: name.into(), value: b"y".to_vec() }];
                it.entries([Entry { xattrs, ..evil("zz") }])
            },
            ("SealRun", "target-cannot-hold", name),
        )
    };
    let device = |name, kind: EntryKind, minor, words| {
        let entry =
            move || Entry { kind: kind.into(), device_minor: minor, mode: 0o600, ..link("zz", kind, "") };
        case(name, move |it| it.entries([entry()]), ("SealRun", "target-cannot-hold", words))
    };
    vec![
        attribute("trusted.overlay.opaque"),
        attribute("user.overlay.whiteout"),
        attribute("trusted.anything"),
        attribute("security.selinux"),
        attribute("system.nfs4_acl"),
        attribute("btrfs.compression"),
        device("what hides a name from an overlay", EntryKind::CharDevice, 0, "device"),
        device("a character device", EntryKind::CharDevice, 3, "device"),
        device("a disk", EntryKind::BlockDevice, 3, "device"),
        changed("no kind", |entry| entry.kind = 0, "has no kind"),
        changed("a kind that nobody knows", |entry| entry.kind = 99, "has no kind"),
        changed("more mode bits", |entry| entry.mode = 0o10644, "has mode bits beyond 07777"),
        changed("too many nanoseconds", |entry| entry.mtime_nanos = 1_000_000_000, "nanoseconds"),
        changed("a short digest", |entry| entry.digest.truncate(31), "has no content digest of 32 bytes"),
        changed("a device number", |entry| entry.device_major = 8, "is not a device"),
        changed("a link text", |entry| entry.link_target = b"a".to_vec(), "is not a link"),
        changed("longer than a file can be", |entry| entry.size = u64::MAX, "16 TiB"),
        changed(
            "an empty piece",
            |entry| (entry.pieces, entry.piece_digests) = (vec![0, 8], vec![0; 64]),
            "has an empty piece or a chunk that is too long",
        ),
        changed(
            "pieces that do not add up",
            |entry| (entry.pieces, entry.piece_digests) = (vec![2, 4], vec![0; 64]),
            "do not add up",
        ),
        changed(
            "an attribute without a name",
            |entry| entry.xattrs = vec![ExtendedAttribute::default()],
            "1 to 255 bytes",
        ),
        changed(
            "an attribute with a NUL",
            |entry| entry.xattrs = vec![ExtendedAttribute { name: b"user.\0".to_vec(), value: vec![] }],
            "1 to 255 bytes",
        ),
        case(
            "too many bytes of attributes",
            move |it| it.entries([Entry { xattrs: attributes(257, 65_536), ..evil("zz") }]),
            manifest("has more than 16 MiB of extended attributes"),
        ),
        case(
            "too many attributes",
            move |it| it.entries([Entry { xattrs: attributes(8193, 0), ..evil("zz") }]),
            manifest("has more than 8192 extended attributes"),
        ),
        case(
            "attributes out of order",
            move |it| {
                it.entries([Entry { xattrs: attributes(2, 1).into_iter().rev().collect(), ..evil("zz") }])
            },
            manifest("not sorted by name"),
        ),
    ]
}

/// What an entry says of its content.
fn contents() -> Vec<Case> {
    vec![
        case(
            "a content that never came",
            |it| {
                it.tree(|tree| {
                    tree.steps.push(step(put(evil("zz"), 99)));
                    tree.listed.push(evil("zz"));
                })
            },
            ("SealRun", "tree-mismatch", "was not received"),
        ),
        case(
            "a content that never came, digest left out",
            |it| {
                let entry = Entry { digest: Vec::new(), ..evil("zz") };
                it.seal(|seal| seal[1] = one_step(put(folder(""), 0), put(entry, 98)))
            },
            ("SealRun", "tree-mismatch", "was not received"),
        ),
        case(
            "one content for two names",
            |it| {
                it.tree(|tree| {
                    tree.put(evil("zz1"), Some(b"evil"));
                    let number = tree.contents.len() as u64;
                    tree.steps.push(step(put(evil("zz2"), number)));
                    tree.listed.push(evil("zz2"));
                })
            },
            ("SealRun", "tree-mismatch", "was not received, or belongs to an entry before it"),
        ),
        case(
            "a file without a content",
            |it| {
                it.tree(|tree| {
                    tree.steps.push(step(put(evil("zz"), 0)));
                    tree.listed.push(evil("zz"));
                })
            },
            manifest("is a file without a content"),
        ),
        case(
            "a folder with a content",
            |it| it.tree(|tree| tree.put(folder("zz"), Some(b"evil"))),
            manifest("has one and is no file"),
        ),
        case(
            "a digest that lies",
            |it| it.tree(|tree| tree.put(file("zz", b"good"), Some(b"evil"))),
            ("SealRun", "tree-mismatch", "does not match"),
        ),
        case(
            "a size that lies",
            |it| it.tree(|tree| tree.put(Entry { size: 5, ..evil("zz") }, Some(b"evil"))),
            ("SealRun", "tree-mismatch", "must have 5"),
        ),
        case(
            "a size that lies, digest left out",
            |it| it.tree(|tree| tree.put(Entry { size: 5, digest: Vec::new(), ..evil("zz") }, Some(b"evil"))),
            ("SealRun", "tree-mismatch", "must have 5"),
        ),
        case(
            "pieces of an entry that was not left out",
            |it| {
                let reuse = vec![Reuse { after: 0, first: 0, count: 1 }];
                let reused = PutEntry { entry: Some(evil("zz")), content: 1, reuse };
                let steps = vec![Step::Keep(7), Step::Put(reused)];
                it.steps(steps, |listed| listed.push(evil("zz")))
            },
            manifest("reuses pieces of an entry that was not left out"),
        ),
        case(
            "pieces beyond the base's entry",
            |it| {
                let reuse = vec![Reuse { after: 0, first: 0, count: 1 << 40 }];
                let reused = PutEntry { entry: Some(evil("z")), content: 1, reuse };
                let steps = vec![Step::Keep(6), Step::Drop(1), Step::Put(reused)];
                it.steps(steps, |_| {})
            },
            manifest("reuses more pieces than a file can have"),
        ),
        case(
            "steps beyond the base",
            |it| it.steps(vec![Step::Keep(8)], |_| {}),
            manifest("go beyond the end of the base"),
        ),
        case("steps before its end", |it| it.steps(vec![Step::Keep(6)], |_| {}), manifest("undecided")),
        case(
            "a step without effect",
            |it| it.steps(vec![Step::Keep(0)], |_| {}),
            manifest("a step is empty"),
        ),
        case(
            "other entries than were signed",
            |it| it.tree(|tree| tree.listed[1].mode = 0o600),
            ("SealRun", "tree-mismatch", "root digest does not match"),
        ),
        case(
            "other entries than were signed, nothing changed",
            |it| it.steps(vec![Step::Keep(7)], |listed| listed[1].mode = 0o600),
            ("SealRun", "tree-mismatch", "root digest does not match"),
        ),
    ]
}

fn one_step(first: Step, second: Step) -> Option<Seal> {
    Some(Seal::Delta(ManifestDelta { steps: vec![step(first), step(second)], ..Default::default() }))
}

/// What is signed.
fn statements() -> Vec<Case> {
    type Statement = assay_common::verdict::SourceStatement;
    let refused = |words| ("SealRun", "statement-refused", words);
    let signed = |name, change: fn(&mut Statement)| {
        let other = "about another run, mark or tree";
        case(
            name,
            move |it| {
                let tree = Tree::honest(&it.ground.live());
                let finish = it.source.finish(&it.run, &tree, change);
                it.seal(|seal| seal[2] = Some(Seal::Finish(finish)))
            },
            refused(other),
        )
    };
    let told = |name, change: fn(&mut assay_proto::v1::SealFinish), end| {
        case(
            name,
            move |it| {
                it.seal(|seal| {
                    if let Some(Some(Seal::Finish(finish))) = seal.get_mut(2) {
                        change(finish);
                    }
                })
            },
            end,
        )
    };
    vec![
        signed("signed for another run", |it| it.run_id = "20200101T000000Z-ffffff".parse().expect("an id")),
        signed("signed for another repository", |it| it.repository = "other".to_owned()),
        signed("signed for another mark", |it| it.mark.id = "other".to_owned()),
        signed("signed for another tree", |it| it.root = Some(assay_common::verdict::HexDigest([7; 32]))),
        signed("signed for no tree", |it| it.root = None),
        signed("signed with another override", |it| it.overrides = vec!["allow_mass_drop".to_owned()]),
        case(
            "signed with another key",
            |it| {
                let tree = Tree::honest(&it.ground.live());
                let mut stranger = it.source.finish(&it.run, &tree, |_| {});
                let statement: serde_json::Value =
                    serde_json::from_str(&stranger.source_statement).expect("JSON");
                drop(statement);
                stranger.source_statement = resigned(&it.run, &tree, &SigningKey::generate());
                it.seal(|seal| seal[2] = Some(Seal::Finish(stranger)))
            },
            refused("the source's statement"),
        ),
        told("not signed", |it| it.source_statement.clear(), refused("the source's statement")),
        told("another root digest than is signed", |it| it.root_digest = vec![7; 32], refused("another run")),
        told(
            "a root digest of another length",
            |it| it.root_digest.truncate(16),
            ("SealRun", "invalid-argument", "32 bytes"),
        ),
        told("no mark", |it| it.mark = None, ("SealRun", "invalid-argument", "finish.mark")),
        case(
            "a mark like a book",
            |it| {
                let tree = Tree::honest(&it.ground.live());
                let mut finish =
                    it.source.finish(&it.run, &tree, |statement| statement.mark.id = "x".repeat(4097));
                finish.mark.as_mut().expect("it has one").id = "x".repeat(4097);
                it.seal(|seal| seal[2] = Some(Seal::Finish(finish)))
            },
            ("SealRun", "invalid-argument", "at most 4096 bytes"),
        ),
        case(
            "overrides that nobody knows",
            |it| {
                let tree = Tree::honest(&it.ground.live());
                let words = vec!["x\u{1b}[2J".to_owned()];
                let mut finish =
                    it.source.finish(&it.run, &tree, |statement| statement.overrides = words.clone());
                finish.overrides = words;
                it.seal(|seal| seal[2] = Some(Seal::Finish(finish)))
            },
            ("SealRun", "invalid-argument", "finish.overrides"),
        ),
    ]
}

fn resigned(run: &RunId, tree: &Tree, key: &SigningKey) -> String {
    use assay_common::verdict::{Counts, HexDigest, Mark, SourceStatement, sign_source_statement};
    let time = jiff::Timestamp::from_second(1_600_000_000).expect("a time");
    let statement = SourceStatement {
        not_copied: Vec::new(),
        repository: "repo".to_owned(),
        run_id: run.clone(),
        mark: Mark { id: "mark".to_owned(), time },
        root: Some(HexDigest(tree.root().0)),
        base_generation: None,
        counts: Counts::default(),
        overrides: Vec::new(),
        source_version: "evil".to_owned(),
        nonce: None,
        readings: None,
    };
    sign_source_statement(&statement, key).to_json()
}

/// Who and what a run is about, and the order of messages.
fn order() -> Vec<Case> {
    let not_yours = |call| (call, "not-your-repository", "has no repository");
    let start = |it: &Setting<'_>, repository: &str, run: &str| {
        let (repository, run_id) = (repository.to_owned(), run.to_owned());
        let start = TransferStart { repository, run_id };
        it.script(|script| script.acts[0] = Act::Say(Some(Transfer::Start(start))))
    };
    let sealing = |it: &Setting<'_>, change: fn(&mut assay_proto::v1::SealStart)| {
        it.seal(|seal| {
            if let Some(Some(Seal::Start(start))) = seal.get_mut(0) {
                change(start);
            }
        })
    };
    vec![
        case(
            "another repository, opened",
            |it| it.script(|script| script.open.repository = "other".into()),
            not_yours("OpenRun"),
        ),
        case(
            "a repository with a way out",
            |it| it.script(|script| script.open.repository = "../repo".into()),
            not_yours("OpenRun"),
        ),
        case(
            "another repository, sent",
            move |it| start(it, "other", it.run.as_str()),
            not_yours("Transfer"),
        ),
        case(
            "another repository, sealed",
            move |it| sealing(it, |start| start.repository = "other".into()),
            not_yours("SealRun"),
        ),
        case(
            "a run id with a way out",
            |it| it.script(|script| script.open.run_id = "../../canary/file/xxxxx".into()),
            ("OpenRun", "invalid-argument", "run_id"),
        ),
        case(
            "another protocol",
            |it| it.script(|script| script.open.protocol = 99),
            ("OpenRun", "protocol-version", "protocol 99"),
        ),
        case(
            "content of a run that is not open",
            move |it| start(it, "repo", "20200101T000000Z-ffffff"),
            ("Transfer", "no-such-run", "is not open"),
        ),
        case(
            "the seal of a run that is not open",
            move |it| sealing(it, |start| start.run_id = "20200101T000000Z-ffffff".into()),
            ("SealRun", "no-such-run", "is not open"),
        ),
        case(
            "another generation",
            move |it| sealing(it, |start| start.generation += 1),
            ("SealRun", "wrong-base", "this run builds upon"),
        ),
        case(
            "another base",
            move |it| sealing(it, |start| start.base_generation = 1 << 40),
            ("SealRun", "wrong-base", "this run builds upon"),
        ),
        case(
            "content before its start",
            |it| it.script(|script| drop(script.acts.remove(0))),
            content("the first message of a transfer is its start"),
        ),
        case(
            "two starts",
            |it| {
                let first = |script: &Script| script.acts[0].clone();
                it.script(|script| script.acts.insert(1, first(script)))
            },
            content("a transfer starts once"),
        ),
        case(
            "a message of a kind that nobody knows",
            |it| it.script(|script| script.acts.insert(1, Act::Say(None))),
            content("a message of no known kind"),
        ),
        case(
            "names before their start",
            |it| it.seal(|seal| drop(seal.remove(0))),
            ("SealRun", "invalid-argument", "the first message of a seal is its start"),
        ),
        case(
            "two starts of a seal",
            |it| it.seal(|seal| seal.insert(1, seal[0].clone())),
            ("SealRun", "invalid-argument", "a seal starts once"),
        ),
        case(
            "a seal without an end",
            |it| it.seal(|seal| seal.truncate(2)),
            ("SealRun", "cut-off", "cut off before its end"),
        ),
        case(
            "a seal with a message of a kind that nobody knows",
            |it| it.seal(|seal| seal.insert(1, None)),
            ("SealRun", "invalid-argument", "a message of no known kind"),
        ),
    ]
}

/// Offers and packs.
fn transfers() -> Vec<Case> {
    let parts = |name, change: fn(&mut FilePart), words| {
        let mut changed = part(1, b"x");
        change(&mut changed);
        case(name, move |it| it.content([offer(1, vec![changed.clone()])]), content(words))
    };
    vec![
        case(
            "a batch left out",
            |it| it.content([offer(2, vec![part(1, b"x")])]),
            content("batches are numbered 1, 2, 3"),
        ),
        parts("content number 0", |part| part.content = 0, "contents are numbered from 1"),
        parts("the largest number", |part| part.content = u64::MAX, "contents are numbered from 1"),
        parts("a gap", |part| part.offset = 1, "a content's parts come without gaps"),
        parts("no digest", |part| part.digests.clear(), "one digest of 32 bytes for each data piece"),
        parts("half a digest", |part| part.digests.truncate(16), "one digest of 32 bytes"),
        parts("an empty piece", |part| part.pieces = vec![0], "a chunk at most 1 MiB"),
        parts(
            "a chunk that is too large",
            |part| part.pieces = vec![(2 << 20) << 1],
            "a chunk at most 1 MiB",
        ),
        parts(
            "a hole that no file can have",
            |part| (part.pieces, part.digests) = (vec![(1 << 62) | 1], Vec::new()),
            "16 TiB",
        ),
        parts(
            "holes that no file can have",
            |part| (part.pieces, part.digests) = (vec![(1 << 44) | 1; 4], Vec::new()),
            "16 TiB",
        ),
        parts(
            "a piece of the base that is not there",
            |part| part.reuse = vec![Reuse { after: 0, first: 5, count: 1 }],
            "what is reused",
        ),
        parts(
            "an entry of the base that is not there",
            |part| {
                part.base_entry = 1 << 60;
                part.reuse = vec![Reuse { after: 0, first: 0, count: 1 }];
            },
            "what is reused stands in the base",
        ),
        parts(
            "a folder of the base",
            |part| part.reuse = vec![Reuse { after: 0, first: 0, count: 1 }],
            "what is reused is a file of the base",
        ),
        parts(
            "half a digest of the whole",
            |part| part.digest = vec![7; 16],
            "the digest of a content has 32 bytes",
        ),
        parts(
            "a digest of the whole before its end",
            |part| (part.digest, part.last) = (vec![7; 32], false),
            "comes with its last part",
        ),
        parts(
            "pieces of the base, and no word of what they become",
            |part| (part.base_entry, part.reuse) = (1, vec![Reuse { after: 1, first: 0, count: 1 }]),
            "says its digest with its last part",
        ),
        case(
            "pieces of the base that become something else",
            |it| {
                let fresh = format!("fresh in {}", it.run).into_bytes();
                let mut script = it.tree(|tree| tree.put(file("zz", &fresh), Some(&fresh)));
                for act in &mut script.acts {
                    let Act::Offer(offer) = act else { continue };
                    for part in &mut offer.parts {
                        (part.base_entry, part.digest) = (1, vec![7; 32]);
                        part.reuse = vec![Reuse { after: 1, first: 0, count: 1 }];
                    }
                }
                script
            },
            ("Transfer", "base-rotten", "a was not kept by the disk"),
        ),
        parts(
            "more pieces than an offer has",
            |part| {
                part.base_entry = 1;
                part.reuse = vec![Reuse { after: 0, first: 0, count: u64::MAX }];
            },
            "at most 262144 pieces",
        ),
        case(
            "more content than an offer has",
            |it| {
                let piece = part(1, &vec![7; 1 << 20]);
                it.content([offer(1, (1..=9).map(|content| FilePart { content, ..piece.clone() }).collect())])
            },
            content("at most 8 MiB"),
        ),
        case(
            "more contents than may be open",
            |it| {
                let open = FilePart { last: false, ..part(1, b"x") };
                it.content([offer(
                    1,
                    (1..=1025).map(|content| FilePart { content, ..open.clone() }).collect(),
                )])
            },
            content("at most 1024 contents are open"),
        ),
        case(
            "a message of 65 MiB",
            |it| {
                let parts = vec![FilePart { digests: vec![0; 65 << 20], ..part(1, b"x") }];
                it.content([offer(1, parts)])
            },
            ("Transfer", "message-refused", "67108864 bytes"),
        ),
        case(
            "parts of two bytes, by the hundred thousand",
            |it| it.content([offer(1, vec![FilePart::default(); 1_000_000])]),
            ("Transfer", "message-refused", "128 MiB"),
        ),
        case(
            "a pack that nobody wanted",
            |it| {
                let pack = Pack { batch: 7, raw_bytes: 1, data: b"x".to_vec().into(), zstd: false };
                it.content([Act::Say(Some(Transfer::Pack(pack)))])
            },
            content("a pack answers an offer"),
        ),
        case(
            "an end before everything has come",
            |it| {
                let fresh = it.run.as_str().as_bytes().to_vec();
                let offer = Offer { batch: 1, parts: vec![part(1, &fresh)] };
                it.content([Act::Say(Some(Transfer::Offer(offer))), Act::Hear])
            },
            content("when all that was wanted has been sent"),
        ),
        case(
            "an end inside a content",
            |it| it.content([offer(1, vec![FilePart { last: false, ..part(1, b"first") }])]),
            content("when every content has ended"),
        ),
        case(
            "wrong bytes",
            |it| {
                it.pack(|pack| {
                    let mut data = pack.data.to_vec();
                    data[0] ^= 1;
                    Pack { data: data.into(), ..pack }
                })
            },
            ("Transfer", "chunk-mismatch", "does not match its digest"),
        ),
        case(
            "a short pack",
            |it| it.pack(|pack| Pack { data: pack.data.slice(1..), ..pack }),
            content("the length of its raw_bytes"),
        ),
        case(
            "a length that lies",
            |it| it.pack(|pack| Pack { raw_bytes: pack.raw_bytes + 1, ..pack }),
            content("holds what was wanted of its batch"),
        ),
        case("no zstd frame", |it| it.pack(|pack| Pack { zstd: true, ..pack }), content("one zstd frame")),
        case(
            "a bomb",
            |it| {
                it.pack(|pack| {
                    let bomb = zstd::bulk::compress(&vec![0; 512 << 20], 1).expect("compress");
                    Pack { zstd: true, data: bomb.into(), ..pack }
                })
            },
            content("one zstd frame of its raw_bytes"),
        ),
    ]
}

/// Packed steps.
fn packed() -> Vec<Case> {
    let packed = |plain: &[u8], announced: u64| ManifestDelta {
        packed: zstd::bulk::compress(plain, 1).expect("compress"),
        packed_raw_bytes: announced,
        ..Default::default()
    };
    let refused = "the manifest's steps break the protocol";
    vec![
        case(
            "a bomb of steps",
            move |it| it.delta(packed(&vec![0; 512 << 20], 1000)),
            manifest("one zstd frame of the announced length"),
        ),
        case(
            "steps that announce too much",
            move |it| it.delta(packed(&[0; 100], u64::MAX)),
            manifest("at most as large as a message"),
        ),
        case(
            "steps of two bytes, by the million",
            move |it| it.delta(packed(&[0x0a, 0x00].repeat(8 << 20), 16 << 20)),
            manifest("128 MiB"),
        ),
        case(
            "attributes of two bytes, by the million",
            move |it| {
                let attributes = [0x7a, 0x00].repeat(8 << 20);
                let nested = |tag: u8, inner: &[u8]| {
                    let mut outer = vec![tag];
                    let mut length = inner.len();
                    while length > 127 {
                        outer.push((length & 127) as u8 | 128);
                        length >>= 7;
                    }
                    outer.push(length as u8);
                    outer.extend_from_slice(inner);
                    outer
                };
                let plain = nested(0x0a, &nested(0x1a, &nested(0x0a, &attributes)));
                it.delta(packed(&plain, plain.len() as u64))
            },
            manifest("128 MiB"),
        ),
        case("no steps", move |it| it.delta(packed(b"\xff\xff\xff", 3)), manifest(refused)),
        case(
            "plain and packed steps",
            move |it| {
                let delta = packed(&[], 0);
                it.delta(ManifestDelta { steps: vec![step(Step::Keep(1))], ..delta })
            },
            manifest("packed or plain"),
        ),
    ]
}

fn play_all(cases: Vec<Case>) {
    let ground = Ground::new("");
    ground.honest_run();
    let mut played = 0;
    for Case(name, change, call, reason, words) in cases {
        let generation = ground.honest_run() + 1;
        let (generations, verified) = (ground.generations(), ground.pair.verified());
        let setting =
            Setting { ground: &ground, source: &ground.source, run: ground.source.run_id(), generation };
        let script = change(&setting);
        let end = ground.runtime.block_on(ground.source.play(script));
        let End::Refused(said_in, fault) = end else { panic!("{name}: it was sealed") };
        assert_eq!((said_in, &*fault.reason), (call, reason), "{name}: {fault:?}");
        assert!(fault.message.contains(words), "{name}: {words:?} is missing in {fault:?}");
        ground.assert_untouched(name, &generations, &verified);
        played += 1;
    }
    // The agent lives on, and what it sealed meanwhile is whole.
    ground.honest_run();
    assert_eq!(ground.generations().len(), played + 2);
    ground.assert_all_whole();
}

#[test]
fn names_that_lead_out_are_refused_before_anything_is_made() {
    play_all(names());
}

#[test]
fn links_are_data_and_have_their_first_name_in_the_tree() {
    play_all(links());
}

#[test]
fn fields_have_bounds() {
    play_all(fields());
}

#[test]
fn a_manifest_is_what_was_sent_and_signed() {
    play_all(contents());
}

#[test]
fn a_statement_is_believed_with_its_signature_and_about_this_run_only() {
    play_all(statements());
}

#[test]
fn messages_come_in_order_and_about_the_sources_own() {
    play_all(order());
}

#[test]
fn content_is_bounded_and_verified() {
    play_all(transfers());
}

#[test]
fn packed_steps_unfold_to_what_they_announce() {
    play_all(packed());
}
