//! docs/JSON.md and docs/schema/output-v1.json: what `--json` prints is one contract for every command.

use std::{fs, path::Path};

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::pair::{Done, Pair, free_port, json as parsed};

const SCHEMA: &str = "docs/schema/output-v1.json";

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// `ASSAY_WRITE_DOCS=1 ./test e2e` writes it instead of comparing it.
#[test]
fn the_published_schema_is_that_of_the_program() {
    let path = workspace().join(SCHEMA);
    let own = format!("{:#}\n", assay_common::cli::output_schema());
    if std::env::var_os("ASSAY_WRITE_DOCS").is_some() {
        fs::write(&path, &own).expect("write");
    }
    assert_eq!(fs::read_to_string(&path).expect("read"), own, "ASSAY_WRITE_DOCS=1 ./test e2e writes it");
}

fn form(name: &str) -> Validator {
    let mut schema = assay_common::cli::output_schema();
    schema["$ref"] = json!(format!("#/$defs/{name}"));
    jsonschema::draft202012::new(&schema).expect("a schema")
}

/// Each number fits a double, each outcome has its one spelling, and no digest is in another form than hexadecimal digits.
fn assert_settled(value: &Value, name: &str, command: &str) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| assert_settled(value, name, command)),
        Value::Array(values) => values.iter().for_each(|value| assert_settled(value, name, command)),
        Value::Number(number) => {
            let most = (1_i64 << 53) - 1;
            let fits =
                number.is_f64() || number.as_i64().is_some_and(|number| (-most..=most).contains(&number));
            assert!(fits, "{command}: {name} is {number}");
        }
        Value::String(text) => {
            let outcomes = ["PASS", "FAIL", "INCONCLUSIVE", "NOT_RUN"];
            assert!(name != "outcome" || !outcomes.contains(&text.as_str()), "{command}: {name} is {text}");
            if name.ends_with("igest") && !text.is_empty() {
                assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit()), "{command}: {name} is {text}");
            }
        }
        _ => {}
    }
}

fn assert_form(done: &Done, name: &str, command: &str) {
    let form = form(name);
    assert!(!done.stdout.is_empty(), "{command}: {done:?}");
    for line in done.stdout.lines() {
        let value = parsed(line);
        let faults: Vec<_> =
            form.iter_errors(&value).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
        assert!(faults.is_empty(), "{command} ({name}): {faults:#?}\n{value:#}");
        assert_settled(&value, "", command);
    }
}

#[test]
fn every_command_prints_objects_of_the_published_form() {
    let pair = Pair::plain(1);
    let page = format!("[web]\nlisten = \"127.0.0.1:{}\"\n[tls]", free_port());
    pair.restart_with("target", "[tls]", &page);
    fs::write(pair.root(0).join("file"), "content").expect("write");
    let shown = format!("verdict show {}", pair.run(0)["id"].as_str().expect("an id"));
    let both: &[(&str, &str)] =
        &[("doctor", "Finding"), ("health", "Health"), ("config check", "ConfigCheck")];
    let of_source: &[(&str, &str)] = &[
        ("run --follow", "Run"),
        ("runs", "Run"),
        ("watch", "Run"),
        ("plan", "RunPlan"),
        ("status", "GetStatusResponse"),
        ("explain", "Message"),
        ("verdict list", "SignedVerdict"),
        (shown.as_str(), "SignedVerdict"),
        ("keys show", "Key"),
    ];
    let of_target: &[(&str, &str)] = &[
        ("status", "GetTargetStatusResponse"),
        ("generations", "Generation"),
        ("verify", "Verdict"),
        ("verdict list", "Verdict"),
        ("verdict show", "Verdict"),
        ("control", "NegativeControl"),
        ("scrub", "ScrubProgress"),
        ("pin", "Generation"),
        ("unpin --generation 2", "Generation"),
        ("discard", "DiscardAbandonedResponse"),
        ("ledger verify", "LedgerAudit"),
        ("note add --verdict 1 --by A --text why", "NoteAdded"),
        ("note add --generation 1 --by A --text why", "NoteAdded"),
        ("note add --slot 2026-01-01T00:00:00Z --by A --text why", "NoteAdded"),
        ("note list", "Notes"),
        ("ledger verify", "LedgerAudit"),
        ("keys show", "Key"),
        ("explain", "Message"),
        ("web login", "WebLogin"),
        ("report --from 2026-01-01 --to 2999-01-01 --format json", "Report"),
    ];
    let run = |role: &str, command: &str| {
        let words: Vec<&str> = ["--json"].into_iter().chain(command.split(' ')).collect();
        if role == "source" { pair.source(&words) } else { pair.target(&words) }
    };
    for (role, commands) in [("source", of_source), ("source", both), ("target", of_target), ("target", both)]
    {
        for (command, form) in commands {
            let done = run(role, command);
            assert!([0, 3].contains(&done.code), "{role} {command}: {done:?}");
            assert_form(&done, form, &format!("assay-{role} {command}"));
        }
    }
    // Errors: of the agent, of this program, and of the line itself.
    for (role, command, code) in [
        ("source", "run nobody", 2),
        ("source", "watch 20000101T000000Z-000000", 2),
        ("source", "verdict show nothing", 2),
        ("source", "run --no-such-option", 2),
        ("target", "prune", 4),
        ("target", "generations nobody", 2),
        ("target", "verify --generation x", 2),
    ] {
        let done = run(role, command);
        assert_eq!(done.code, code, "{role} {command}: {done:?}");
        assert_form(&done, "Error", &format!("assay-{role} {command}"));
        assert_eq!(parsed(&done.stdout)["error"]["exitCode"], code, "{done:?}");
        assert!(done.stderr.starts_with("error: "), "for people as well: {done:?}");
    }
}
