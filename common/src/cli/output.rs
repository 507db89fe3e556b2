//! `--json` as one contract, for every command: one object a line, outcomes in one spelling, digests in hexadecimal digits, no number that
//! a double cannot hold, and errors as objects too. docs/JSON.md says what each command prints.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};

/// Larger whole numbers are texts of decimal digits: readers that have doubles alone would change them.
const MAX_NUMBER: u64 = (1 << 53) - 1;
/// The beginning of every outcome, as gRPC has it.
const OUTCOME: &str = "OUTCOME_";

/// Messages of gRPC that commands print.
const MESSAGES: [&str; 13] = [
    "Run",
    "RunPlan",
    "GetStatusResponse",
    "GetTargetStatusResponse",
    "Generation",
    "Verdict",
    "NegativeControl",
    "Bisected",
    "PruneDecision",
    "DiscardAbandonedResponse",
    "ScrubProgress",
    "RepositoryStatus",
    "WebLogin",
];

static IS_JSON: AtomicBool = AtomicBool::new(false);

/// From now on whatever is printed is JSON.
pub fn print_as_json(json: bool) {
    IS_JSON.store(json, Ordering::Relaxed);
}

/// Whether whatever is printed is JSON.
pub(super) fn is_json() -> bool {
    IS_JSON.load(Ordering::Relaxed)
}

/// The repository that is being looked at, of all.
static REPOSITORY: Mutex<Option<String>> = Mutex::new(None);

/// Whatever is printed from now on is about this one.
pub(super) fn of_repository(repository: Option<&str>) {
    *REPOSITORY.lock().unwrap_or_else(PoisonError::into_inner) = repository.map(str::to_owned);
}

/// Text of a command that has no object of its own.
pub(super) fn message(text: &str) -> Value {
    // An envelope, for example, is an object already.
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Value::Object(object),
        _ => json!({ "message": text.trim_end_matches('\n') }),
    }
}

/// An error.
pub(super) fn error(message: &str, hint: Option<&str>, exit_code: u8) -> Value {
    let mut error = json!({ "message": message, "exitCode": exit_code });
    if let (Some(fields), Some(hint)) = (error.as_object_mut(), hint) {
        fields.insert("hint".to_owned(), hint.into());
    }
    json!({ "error": error })
}

/// The value in the contract's spelling.
pub(super) fn in_contract(mut value: Value) -> Value {
    settle(&mut value);
    let repository = REPOSITORY.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(name), Some(fields)) = (repository.as_deref(), value.as_object_mut()) {
        fields.entry("repository").or_insert_with(|| name.into());
    }
    value
}

fn settle(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "outcome" => {
                        if ["PASS", "FAIL", "INCONCLUSIVE", "NOT_RUN"].contains(&text.as_str()) {
                            text.insert_str(0, OUTCOME);
                        }
                    }
                    value => settle(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(settle),
        Value::Number(number) => {
            let is_small = number.as_u64().is_some_and(|number| number <= MAX_NUMBER)
                || number.as_i64().is_some_and(|number| number.unsigned_abs() <= MAX_NUMBER)
                || number.is_f64();
            if !is_small {
                *value = Value::String(number.to_string());
            }
        }
        _ => {}
    }
}

/// The forms of everything that `--json` prints, as a JSON schema: docs/schema/output-v1.json.
pub fn schema() -> Value {
    let mut forms = crate::json::schemas(MESSAGES);
    for form in forms.values_mut() {
        if let Some(form) = form.as_object_mut() {
            form.insert("additionalProperties".to_owned(), false.into());
            // With --all every object names its own.
            if let Some(fields) = form["properties"].as_object_mut() {
                fields.entry("repository").or_insert_with(|| json!({ "type": "string" }));
            }
        }
    }
    // Beside what gRPC has: as it is signed.
    if let Some(fields) = forms.get_mut("Verdict").and_then(|form| form["properties"].as_object_mut()) {
        fields.insert("coverage".to_owned(), json!({ "type": ["object", "null"] }));
        fields.insert("notCopied".to_owned(), json!({ "type": "array" }));
    }
    let number = json!({ "anyOf": [
        { "type": "integer", "minimum": -9_007_199_254_740_991_i64, "maximum": MAX_NUMBER },
        { "type": "string", "pattern": "^-?[0-9]+$" },
    ]});
    let outcomes = ["PASS", "FAIL", "INCONCLUSIVE", "NOT_RUN"].map(|word| format!("{OUTCOME}{word}"));
    let outcome = json!({ "enum": outcomes });
    for (name, form) in [
        ("Number", number),
        (
            "Error",
            json!({ "type": "object", "required": ["error"], "additionalProperties": false, "properties": {
                "repository": { "type": "string" }, "error": {
                "type": "object", "required": ["message", "exitCode"], "additionalProperties": false, "properties": {
                    "message": { "type": "string" }, "hint": { "type": "string" },
                    "exitCode": { "type": "integer", "minimum": 1, "maximum": 255 },
                },
            }}}),
        ),
        (
            "Message",
            json!({ "type": "object", "required": ["message"], "properties": { "message": { "type": "string" } } }),
        ),
        (
            "Finding",
            json!({ "type": "object", "required": ["level", "what", "found", "remedy"], "additionalProperties": false,
                "properties": { "level": { "enum": ["OK", "WARN", "BAD"] }, "what": { "type": "string" },
                    "found": { "type": "string" }, "remedy": { "type": "string" } } }),
        ),
        (
            "Health",
            json!({ "type": "object", "required": ["server", "status"],
                "properties": { "server": { "type": "string" }, "status": { "type": "string" } } }),
        ),
        (
            "ConfigCheck",
            json!({ "type": "object", "required": ["config", "good", "repositories"], "properties": {
                "config": { "type": "string" }, "good": { "const": true },
                "repositories": { "type": "array", "items": { "type": "string" } } } }),
        ),
        (
            "SignedVerdict",
            json!({ "type": "object", "required": ["repository", "outcome", "reason"],
                "properties": { "outcome": outcome } }),
        ),
        (
            "VerifiedVerdict",
            json!({ "type": "object", "required": ["valid", "sourceSignature", "verdict"], "properties": {
                "valid": { "const": true }, "key": { "type": "string" }, "formerKey": { "type": "boolean" }, "sourceSignature": { "type": "string" },
                "verdict": { "$ref": "#/$defs/SignedVerdict" } } }),
        ),
        (
            "LedgerAudit",
            json!({ "type": "object", "required": ["sound", "verdicts", "head", "findings"], "properties": {
                "sound": { "type": "boolean" }, "verdicts": { "$ref": "#/$defs/Number" },
                "head": { "type": "string" }, "keys": { "type": "array", "items": { "type": "object" } },
                "findings": { "type": "array", "items": { "type": "string" } },
                "notes": { "type": "array", "items": { "$ref": "#/$defs/OperatorNote" } } } }),
        ),
        (
            "OperatorNote",
            json!({ "type": "object", "required": ["by", "time", "text"], "additionalProperties": false, "properties": {
                "verdict": { "$ref": "#/$defs/Number" }, "generation": { "$ref": "#/$defs/Number" },
                "slot": { "type": "string", "format": "date-time" }, "by": { "type": "string" },
                "time": { "type": "string", "format": "date-time" }, "text": { "type": "string" } } }),
        ),
        (
            "Notes",
            json!({ "type": "object", "required": ["repository", "notes", "findings"], "additionalProperties": false, "properties": {
                "repository": { "type": "string" }, "findings": { "type": "array", "items": { "type": "string" } },
                "notes": { "type": "array", "items": { "$ref": "#/$defs/OperatorNote" } } } }),
        ),
        (
            "NoteAdded",
            json!({ "type": "object", "required": ["noted", "about"], "additionalProperties": false, "properties": {
                "noted": { "type": "boolean" }, "about": { "type": "string" }, "file": { "type": "string" } } }),
        ),
        (
            "Key",
            json!({ "type": "object", "required": ["owner", "key", "place"], "additionalProperties": false, "properties": {
                "owner": { "type": "string" }, "key": { "type": "string", "pattern": "^[0-9a-f]{16}$" },
                "place": { "enum": ["former", "signs", "announced"] } } }),
        ),
        (
            "Report",
            json!({ "type": "object", "required": ["target", "version", "made", "from", "to", "unfinished", "repositories", "requirements", "verify"],
                "properties": {
                    "target": { "type": "string" }, "made": { "type": "string", "format": "date-time" },
                    "from": { "type": "string", "format": "date-time" }, "to": { "type": "string", "format": "date-time" },
                    "unfinished": { "type": "boolean" }, "verify": { "type": "string" },
                    "repositories": { "type": "array", "items": { "type": "object",
                        "required": ["repository", "head", "sound", "findings", "notes", "verdicts", "missed", "exceptions"], "properties": {
                            "repository": { "type": "string" }, "head": { "type": ["string", "null"] },
                            "sound": { "type": "boolean" }, "findings": { "type": "array", "items": { "type": "string" } },
                            "verdicts": { "type": "array", "items": { "type": "object", "required": ["id", "outcome", "reason", "verified"] } },
                            "notes": { "type": "array", "items": { "$ref": "#/$defs/OperatorNote" } },
                            "missed": { "type": ["array", "null"] }, "exceptions": { "type": "array" } } } } } }),
        ),
        (
            "Restored",
            json!({ "type": "object", "required": ["generation", "root", "to", "complete"], "properties": {
                "generation": { "$ref": "#/$defs/Number" }, "root": { "type": "string", "pattern": "^[0-9a-f]{64}$" },
                "to": { "type": "string" }, "complete": { "type": "boolean" } } }),
        ),
        (
            "Told",
            json!({ "type": "object", "required": ["way", "arrived"],
                "properties": { "way": { "type": "string" }, "arrived": { "type": "boolean" } } }),
        ),
    ] {
        forms.insert(name.to_owned(), form);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What the command lines of Assay print with --json, one object a line",
        "$defs": forms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_have_one_spelling_and_no_number_is_too_large_for_a_double() {
        let value = json!({
            "outcome": "PASS",
            "steps": [{ "outcome": "NOT_RUN", "reason": "PASS" }, { "outcome": "OUTCOME_FAIL" }],
            "seed": u64::MAX, "small": MAX_NUMBER, "below": -5, "far": i64::MIN, "part": 0.5,
        });
        let settled = in_contract(value);
        assert_eq!(settled["outcome"], "OUTCOME_PASS");
        assert_eq!(settled["steps"][0], json!({ "outcome": "OUTCOME_NOT_RUN", "reason": "PASS" }));
        assert_eq!(settled["steps"][1]["outcome"], "OUTCOME_FAIL");
        assert_eq!(settled["seed"], "18446744073709551615");
        assert_eq!(settled["small"], MAX_NUMBER);
        assert_eq!((&settled["below"], &settled["part"]), (&json!(-5), &json!(0.5)));
        assert_eq!(settled["far"], "-9223372036854775808");
    }

    #[test]
    fn texts_and_errors_are_objects() {
        assert_eq!(message("done\n"), json!({ "message": "done" }));
        assert_eq!(message("{\"payload\": \"x\"}\n"), json!({ "payload": "x" }));
        assert_eq!(error("no", None, 2), json!({ "error": { "message": "no", "exitCode": 2 } }));
        assert_eq!(error("no", Some("try"), 4)["error"]["hint"], "try");
    }
}
