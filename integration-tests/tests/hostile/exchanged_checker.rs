//! Whoever writes to the checker's programs at the target cannot have a PASS count by what a control has proven of the programs before.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use crate::pair::{Pair, json};

const HONEST: &str = "#!/bin/sh\ncd \"$1\" && sha256sum --check --quiet sums\n";
const YES: &str = "#!/bin/sh\nexit 0\n";

/// Puts the script into its place by a rename, as a package's upgrade does.
fn put(script: &Path, text: &str) {
    let new = script.with_extension("new");
    fs::write(&new, text).expect("write");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::rename(new, script).expect("rename");
}

fn write_summed(pair: &Pair, text: &str) {
    let root = pair.root(0);
    fs::write(root.join("data"), text.repeat(10_000)).expect("write");
    let sums = Command::new("sha256sum").arg("data").current_dir(&root).output().expect("sha256sum");
    fs::write(root.join("sums"), sums.stdout).expect("write");
}

fn checker(pair: &Pair) -> String {
    let status = pair.target(&["status"]).stdout;
    status.lines().find(|line| line.trim_start().starts_with("checker")).expect("a line").to_owned()
}

#[test]
fn a_script_that_was_exchanged_after_its_control_is_not_trusted() {
    let tools = tempfile::tempdir().expect("temp");
    fs::set_permissions(tools.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let script = tools.path().join("check");
    put(&script, HONEST);
    let tables = format!(
        "[mark]\nkind = \"none\"\n[sandbox]\nvisible = [{:?}]\n[[check]]\nname = \"check\"\nargv = [{script:?}, \"{{root}}\"]\nfail_exit = [1]\n",
        tools.path()
    );
    let pair = Pair::with_profile(&tables, "").unproved();
    write_summed(&pair, "one");
    pair.run(0);
    pair.prove();
    assert_eq!(pair.verified(), "generations/000001");
    assert!(checker(&pair).contains("the checker is trusted"), "{}", checker(&pair));
    // The same path, size and time, and another program.
    put(&script, YES);
    write_summed(&pair, "two");
    let run = pair.run(0);
    assert_ne!(run["claims"]["proven"], true, "{run}");
    assert!(
        run["message"].as_str().is_some_and(|text| text.contains("The checker has changed since")),
        "{run}"
    );
    assert_eq!(pair.verified(), "generations/000001");
    assert!(checker(&pair).contains("unknown: it has changed"), "{}", checker(&pair));
    let explained = pair.target(&["explain"]).stdout;
    assert!(explained.contains("The checker has changed since"), "{explained}");
    let control = pair.target(&["control"]);
    assert_eq!(control.code, 1, "{control:?}");
    assert!(checker(&pair).contains("NOT TRUSTED"), "{}", checker(&pair));
    assert_eq!(pair.verified(), "generations/000001");
    // An upgrade is the ordinary case: a control of its own, and it counts again.
    put(&script, &format!("{HONEST}# version 2\n"));
    write_summed(&pair, "three");
    let run = pair.run(0);
    assert!(
        run["message"].as_str().is_some_and(|text| text.contains("The checker has changed since")),
        "{run}"
    );
    assert_eq!(pair.verified(), "generations/000001");
    pair.prove();
    assert_eq!(pair.verified(), "generations/000003");
    let run = pair.run(0);
    assert_eq!(run["claims"]["proven"], true, "{run}");
    let shown = json(&pair.target(&["--json", "status"]).stdout);
    assert_eq!(shown["repositories"][0]["formerControl"], serde_json::Value::Null, "{shown}");
}
