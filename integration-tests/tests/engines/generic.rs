//! A folder whose files are named by the digest of their content, under programs that add and remove files, with a check of the
//! operator's own; and checks that fail for another reason than the data.

use std::{collections::VecDeque, fs, path::PathBuf, process::Command};

use assay_common::verdict::Outcome;

use crate::{
    live::{self, Damage, Live, Writers, add, flip, middle, replace, run},
    pair::Pair,
};

/// The operator's check: each file must have the content that its name says.
const CHECK: &str = "echo engine: sha256sum 1; if [ -e locked ]; then echo it is locked >&2; exit 3; fi; cd objects || exit 4; bad=0; n=0; \
    for f in *; do n=$((n+1)); if [ \"$(sha256sum <$f | cut -c1-64)\" != \"$f\" ]; then echo \"$f is damaged\"; bad=1; fi; done; \
    echo checked $n objects; exit $bad";

/// Files that a writer leaves there for a while.
const KEPT: usize = 50;

struct Generic {
    writers: Writers,
    pair: Pair,
}

impl Generic {
    fn start() -> Self {
        let pair = Pair::engine("generic", &format!("vars = {{ check = [\"sh\", \"-c\", {CHECK:?}] }}\n"));
        let root = pair.root(0);
        for folder in ["objects", "incoming"] {
            fs::create_dir(root.join(folder)).expect("mkdir");
        }
        let mut live = Self { writers: Writers::new(), pair };
        for number in 0..20 {
            live.put("cold", number);
        }
        for writer in 0..2 {
            let (root, mut last, mut kept) = (live.pair.root(0), None, VecDeque::new());
            live.writers.start(move |number| {
                let mut gone = last.replace(put(&root, &format!("writer{writer}"), number));
                // Files come and go, most of them soon. The check reads all of them, so they do not become more and more.
                if number.is_multiple_of(10) {
                    kept.extend(gone.take());
                    gone = if kept.len() > KEPT { kept.pop_front() } else { None };
                }
                if let Some(name) = gone {
                    fs::remove_file(root.join("objects").join(name)).expect("remove");
                }
                true
            });
        }
        live
    }

    fn put(&self, name: &str, number: u64) -> String {
        put(&self.pair.root(0), name, number)
    }

    fn cold(&self) -> PathBuf {
        self.pair.root(0).join("objects").join(self.put("cold", 7))
    }
}

/// Adds a file, whole, under the digest of its content.
fn put(root: &std::path::Path, name: &str, number: u64) -> String {
    let new = root.join("incoming").join(name);
    fs::write(&new, format!("{name} {number}\n").repeat(200)).expect("write");
    let digest = run(Command::new("sha256sum").arg(&new))[..64].to_owned();
    fs::rename(&new, root.join("objects").join(&digest)).expect("rename");
    digest
}

impl Live for Generic {
    const ENGINE: &'static str = "generic";
    const DAMAGES: &'static [Damage<Self>] = &[
        Damage {
            name: "a bit of a file whose name is the digest of its content",
            outcome: Outcome::Fail,
            names: "what the check said",
            put_in: |live| {
                let file = live.cold();
                flip(&file, middle(&file), "is damaged")
            },
        },
        Damage {
            name: "such a file cut in half",
            outcome: Outcome::Fail,
            names: "what the check said",
            put_in: |live| {
                let file = live.cold();
                let content = fs::read(&file).expect("read");
                replace(&file, Some(&content[..content.len() / 2]), "is damaged")
            },
        },
        Damage {
            name: "such a file that is gone",
            outcome: Outcome::Pass,
            names: "",
            put_in: |live| replace(&live.cold(), None, ""),
        },
        Damage {
            name: "data that the check says it cannot look at",
            outcome: Outcome::Inconclusive,
            names: "what the check said",
            put_in: |live| add(&live.pair.root(0).join("locked"), "", "exit code 3: it is locked"),
        },
    ];

    fn pair(&self) -> &Pair {
        &self.pair
    }

    fn written(&self) -> u64 {
        self.writers.written()
    }
}

#[test]
fn generic_comes_out_as_the_matrix_says() {
    live::compare_with_matrix(&Generic::start());
}

#[test]
fn soak_generic() {
    live::soak(&Generic::start());
}

/// Real interpreters and shells whose program cannot run, each with exit code 1 or with the code that its shell gives: nothing is
/// known of the data.
#[test]
fn a_check_that_cannot_do_its_work_is_inconclusive() {
    let cases: [(&str, &str, &str); 11] = [
        ("python3 -c 'import no_such_module' || exit 1", "checker-error", "Traceback"),
        ("python3 /nowhere/check.py || exit 1", "checker-error", "can't open file"),
        ("perl -e 'use No::Such;' || exit 1", "checker-error", "Can't locate"),
        ("node -e 'require(\"no-such\")' || exit 1", "checker-error", "node:internal"),
        ("java -cp /nowhere NoSuchClass || exit 1", "checker-error", ""),
        ("no-such-program || exit 1", "checker-error", "not found"),
        ("no-such-program", "unexpected-exit", "127"),
        ("cp /bin/true /tmp/x && chmod 600 /tmp/x && /tmp/x || exit 1", "access-refused", "ermission denied"),
        ("sh -c 'kill -SEGV $$' || exit 1", "checker-error", "Segmentation fault"),
        ("sh -c 'kill -KILL $$' || exit 1", "checker-error", "Killed"),
        (
            "echo 'error while loading shared libraries: libx.so.1: cannot open' >&2; exit 1",
            "checker-error",
            "libx",
        ),
    ];
    let pair = Pair::engine("generic", "vars = { check = [\"sh\", \"-c\", \"CASE\"] }\n");
    fs::write(pair.root(0).join("file"), "some data").expect("write");
    let mut before = "CASE".to_owned();
    for (script, reason, said) in cases {
        let program = script.split(' ').next().unwrap_or_default();
        let is_there =
            !["java", "node"].contains(&program) || Command::new(program).arg("--version").output().is_ok();
        if !is_there {
            println!("{program} is not installed here: this case is not tried");
            continue;
        }
        let quoted = format!("{script:?}").trim_matches('"').to_owned();
        pair.restart_with("target", &before, &quoted);
        before = quoted;
        let ended = pair.run(3);
        assert_eq!(ended["reason"], reason, "{script}: {ended}");
        assert!(ended["message"].as_str().is_some_and(|text| text.contains(said)), "{script}: {ended}");
    }
}

/// The profile that docs/PROFILES.md shows, with each outcome that it describes.
#[test]
fn the_profile_in_the_documentation_does_what_it_says() {
    let document = include_str!("../../../docs/PROFILES.md");
    let (_, rest) = document.split_once("<!-- example: an engine of your own -->").expect("the example");
    let text = rest.split("```toml\n").nth(1).and_then(|it| it.split("```").next()).expect("its text");
    let pair = Pair::with_profile_text(text);
    let put = |name: &str, text: &str| fs::write(pair.root(0).join(name), text).expect("write");
    let book = |pages: &str| {
        let file = pair.path("pages");
        fs::write(&file, pages).expect("write");
        format!("{pages}{}", run(Command::new("cksum").stdin(fs::File::open(&file).expect("open"))))
    };
    put("shelf.version", "3\n");
    put("books.index", "older than the books");
    put("a.book", &book("one\ntwo\n"));
    put("b.book", &book("three\n"));
    put("new.book", "");
    let sound = pair.run(0);
    let verdict = live::newest_verdict(&pair);
    let step = verdict.steps.last().expect("the check");
    assert_eq!(step.engine.as_deref(), Some("shelfck 3"), "{sound}");
    assert_eq!(step.checked.iter().map(|it| (it.count, &*it.kind)).collect::<Vec<_>>(), [(2, "books")]);
    assert_eq!(step.not_covered.iter().map(|it| &*it.part).collect::<Vec<_>>(), ["new.book"]);
    // The control ran after the first PASS, and found its damage.
    assert_ne!(pair.verified(), "none");
    put("a.book", &book("one\ntwo\n").replace("two", "tow"));
    let bad = pair.run(1);
    assert_eq!(bad["reason"], "damage-found", "{bad}");
    let verdict = live::newest_verdict(&pair);
    let step = verdict.steps.last().expect("the check");
    assert_eq!(step.findings, ["a.book: checksum of the pages does not match"]);
    put("a.book", &book("one\ntwo\n"));
    put("shelf.version", "4\n");
    let newer = pair.run(3);
    assert_eq!(newer["reason"], "engine-version", "{newer}");
    fs::remove_file(pair.root(0).join("shelf.version")).expect("remove");
    assert_eq!(pair.run(4)["reason"], "not-a-repository");
}
