//! docs/schema: what is signed has the form that is published, of this version and of older ones.

use std::{fs, path::Path};

use assay_common::dsse::{Envelope, IN_TOTO_PAYLOAD_TYPE};
use jsonschema::Validator;
use serde_json::Value;

use crate::pair::{Pair, json};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

pub(crate) fn schema(name: &str) -> Validator {
    let text = fs::read_to_string(workspace().join("docs/schema").join(name)).expect("read");
    jsonschema::draft202012::new(&json(&text)).expect("a schema")
}

pub(crate) fn payload(envelope: &[u8]) -> Value {
    let payload = Envelope::parse(envelope).and_then(|it| it.unverified_payload(IN_TOTO_PAYLOAD_TYPE));
    serde_json::from_slice(&payload.expect("an envelope")).expect("JSON")
}

pub(crate) fn assert_valid(schema: &Validator, value: &Value, name: &str) {
    let faults: Vec<_> =
        schema.iter_errors(value).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    assert!(faults.is_empty(), "{name}: {faults:#?}\n{value:#}");
}

/// Each verdict of a folder, and each source statement in it. Returns the payloads.
fn assert_ledger(folder: &Path) -> Vec<Value> {
    let (verdict, statement) = (schema("verdict-v1.json"), schema("source-statement-v1.json"));
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("list").map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    let check = |path: &std::path::PathBuf| {
        let value = payload(&fs::read(path).expect("read"));
        let name = path.display().to_string();
        assert_valid(&verdict, &value, &name);
        let inner = &value["predicate"]["sourceStatement"];
        if !inner.is_null() {
            assert_valid(&statement, &payload(inner.to_string().as_bytes()), &name);
        }
        value
    };
    paths.iter().map(check).collect()
}

#[test]
fn verdicts_statements_and_receipts_have_the_published_form() {
    let old = assert_ledger(&workspace().join("integration-tests/testdata/0727a00/ledger"));
    assert_eq!(old.len(), 5);

    let sums = "vars = { check = [\"sh\", \"-c\", \"grep -qx good file || exit 1\"] }";
    let pair = Pair::engine("generic", &format!("{sums}\nmax_drop_percent = 100\n"));
    fs::write(pair.root(0).join("file"), "good").expect("write");
    pair.run(0);
    pair.run(0);
    fs::write(pair.root(0).join("file"), "bad and longer").expect("write");
    pair.run(1);
    assert_eq!(pair.target(&["verify", "--generation", "1"]).code, 0);
    fs::remove_file(pair.root(0).join("file")).expect("remove");
    pair.run(4);
    let verdicts = assert_ledger(&pair.path("store/repo/ledger"));
    assert_eq!(verdicts.len(), 5);
    let with_coverage =
        verdicts.iter().filter(|verdict| verdict["predicate"]["coverage"].is_object()).count();
    assert_eq!(with_coverage, 4, "all that were checked");
    assert!(verdicts.iter().all(|verdict| verdict["predicate"]["nonce"].is_string()), "the source's nonce");
    let receipt = schema("receipt-v1.json");
    for entry in fs::read_dir(pair.path("store/repo/receipts")).expect("list").flatten() {
        assert_valid(&receipt, &payload(&fs::read(entry.path()).expect("read")), "a receipt");
    }

    // The schema is as strict as the code.
    let verdict = schema("verdict-v1.json");
    type Edit = fn(&mut Value);
    let edits: [(&str, Edit); 4] = [
        ("a further key", |it| it["predicate"]["coverage"]["more"] = 1.into()),
        ("a digest in capitals", |it| it["predicate"]["root"] = "AB".repeat(32).into()),
        ("an unknown claim", |it| it["predicate"]["coverage"]["claims"]["live"] = "perfect".into()),
        ("no outcome", |it| it["predicate"]["outcome"] = Value::Null),
    ];
    for (name, edit) in edits {
        let mut edited = verdicts[0].clone();
        edit(&mut edited);
        assert!(!verdict.is_valid(&edited), "{name}");
    }
}
