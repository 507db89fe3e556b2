//! Every line that an agent logs for a run has the run's id.

use std::fs;

use crate::pair::{Pair, json};

/// The lines from the one that says `first` to the one that says `last`.
fn between(log: &str, first: &str, last: &str) -> Vec<String> {
    let lines: Vec<_> = log.lines().collect();
    let from = lines.iter().position(|line| line.contains(first)).unwrap_or_else(|| panic!("{first}: {log}"));
    let to = lines.iter().rposition(|line| line.contains(last)).unwrap_or_else(|| panic!("{last}: {log}"));
    assert!(from < to, "{log}");
    lines[from..=to].iter().map(|line| (*line).to_owned()).collect()
}

/// A run that fails, so that files are read again and the verified generation is checked, too; in both forms of the log.
#[test]
fn every_line_of_a_run_has_its_id() {
    for form in ["plain", "json"] {
        let keys = "vars = { check = [\"test\", \"!\", \"-e\", \"bad\"] }\nmax_drop_percent = 100\n";
        let pair = Pair::engine("generic", keys).unproved();
        for role in ["source", "target"] {
            pair.restart_with(
                role,
                "signing_key = \"pki/{}-signing.key\"".replace("{}", role).as_str(),
                &format!("signing_key = \"pki/{role}-signing.key\"\nlog = \"{form}\""),
            );
        }
        fs::write(pair.root(0).join("file"), "x").expect("write");
        let first = pair.run(0);
        fs::write(pair.root(0).join("bad"), "x").expect("write");
        let second = pair.run(1);
        for (role, start, end) in
            [("source", "the run starts", "the run has ended"), ("target", "the run is open", "fault")]
        {
            let log = fs::read_to_string(pair.path(&format!("{role}.log"))).expect("read");
            let ids = [first["id"].as_str().expect("an id"), second["id"].as_str().expect("an id")];
            let lines = between(&log, start, end);
            assert!(lines.len() >= 8, "{role}: {log}");
            for line in &lines {
                // Whoever is told to start a run names it without being in it.
                let triggered = line.contains("triggered") && ids.iter().any(|id| line.contains(id));
                let is_of_run = match form {
                    "json" => json(line)["span"]["run_id"].as_str().is_some_and(|id| ids.contains(&id)),
                    _ => ids.iter().any(|id| line.contains(&format!("run{{run_id={id}}}"))),
                };
                assert!(is_of_run || triggered, "{role}: {line}");
            }
        }
    }
}
