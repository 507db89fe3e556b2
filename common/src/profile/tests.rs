use super::*;

const GOOD: &str = r#"
name = "x"
description = "an engine"
version = "1"
depth = "L1"
[[check]]
name = "check"
argv = ["{root}/bin/check"]
fail_exit = [1]
"#;

fn parse(text: &str) -> Result<Profile, ProfileError> {
    Profile::parse(Path::new("x.toml"), text)
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).expect("valid")
}

use crate::path::TreePath;

#[test]
fn every_builtin_is_accepted_and_named_as_its_file() {
    for name in Profile::builtin_names() {
        let profile = Profile::builtin(name).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(profile.name, name);
        assert_eq!(profile.digest().len(), 64);
    }
    let error = Profile::builtin("oracle").expect_err("no such").to_string();
    assert!(
        error.contains("accurev-4, accurev-5, generic, git, postgresql, redis, sqlite, subversion"),
        "{error}"
    );
}

#[test]
fn faults_of_form_tell_place_and_expectation() {
    let error = parse(&GOOD.replace("argv", "argvv")).expect_err("unknown key").to_string();
    assert!(
        error.starts_with("x.toml:8:1: unknown field `argvv`, expected one of `name`, `argv`"),
        "{error}"
    );
    let error = parse(&GOOD.replace("\"L1\"", "\"L9\"")).expect_err("unknown depth").to_string();
    assert!(error.starts_with("x.toml:5:9: unknown variant `L9`"), "{error}");
    let error = parse(&format!("{GOOD}timeout = 5")).expect_err("no unit").to_string();
    assert!(error.starts_with("x.toml:10:11: "), "{error}");
    let error = parse(&format!("{GOOD}must_match = ['(']")).expect_err("no regex").to_string();
    assert!(error.contains("this is no regular expression"), "{error}");
    let error = parse(&format!("{GOOD}run_as = 'nobody'")).expect_err("no user").to_string();
    assert!(error.contains("\"owner\", \"root\" or a numeric user id"), "{error}");
}

/// An operator corrects everything in one go.
#[test]
fn all_faults_of_meaning_come_together_with_line_column_and_key() {
    let text = r#"
name = "X"
description = "an engine"
version = "1"
depth = "L1"
[mark]
kind = "none"
begin = ["mark"]
[copy]
exclude = ["a{"]
[[patch]]
file = "../etc/passwd"
kind = "key-value"
key = "A B"
values = ["{root}", "{target.fqdn}"]
[[check]]
name = "check"
argv = ["{roott}", "{mark_dir}", "{var.what}", "}"]
pass_exit = [0, 137]
fail_exit = [0]
inconclusive_exit = [{ code = 3, reason = "No Licence" }]
"#;
    let error = parse(text).expect_err("bad");
    let ProfileError::Meaning { faults, .. } = &error else { panic!("{error}") };
    let told: Vec<_> = faults.iter().map(|fault| (fault.line, fault.key.as_str())).collect();
    assert_eq!(
        told,
        [
            (2, "name"),
            (8, "mark.begin"),
            (10, "copy.exclude[0]"),
            (12, "patch[0].file"),
            (14, "patch[0].key"),
            (15, "patch[0].values[0]"),
            (18, "check[0].argv[0]"),
            (18, "check[0].argv[1]"),
            (18, "check[0].argv[2]"),
            (18, "check[0].argv[3]"),
            (19, "check[0].pass_exit[1]"),
            (20, "check[0].fail_exit[0]"),
            (21, "check[0].inconclusive_exit[0]"),
        ]
    );
    let text = error.to_string();
    assert!(text.contains("x.toml:18:9: check[0].argv[0]: '{roott}' is not a placeholder"), "{text}");
}

/// The mark's id says what they found, and there an `end` needs the engine's own id: they would be ignored.
#[test]
fn settings_that_the_end_of_a_mark_makes_useless_are_refused() {
    let told = |mark: &str| {
        let text = GOOD.replace("[[check]]", &format!("[mark]\n{mark}\n[[check]]"));
        match parse(&text) {
            Ok(_) => Vec::new(),
            Err(ProfileError::Meaning { faults, .. }) => faults.iter().map(ToString::to_string).collect(),
            Err(error) => panic!("{error}"),
        }
    };
    let command = "kind = 'command'\nbegin = ['x']\n";
    let both = "never_back = ['db/current']\nreferences = true";
    assert_eq!(told(&format!("{command}{both}")), [""; 0]);
    assert_eq!(told(&format!("kind = 'none'\n{both}")), [""; 0]);
    for mark in [format!("{command}end = ['y']\n{both}"), format!("kind = 'postgresql'\n{both}")] {
        let faults = told(&mark);
        let ignored: Vec<_> = faults.iter().filter(|it| it.contains("'end'")).collect();
        assert_eq!(ignored.len(), 2, "{faults:?}");
        assert!(ignored[0].contains("mark.never_back: cannot be together with 'end'"), "{faults:?}");
        assert!(ignored[1].contains("mark.references: cannot be together with 'end'"), "{faults:?}");
    }
}

/// The verdict takes these from groups: a pattern without them would say nothing.
#[test]
fn patterns_of_coverage_need_their_groups() {
    let keys = "engine_version = '^engine: (.*)$'\nparts_checked = '^checked (\\d+) (.*)$'\n\
                not_covered_patterns = [{ pattern = '^skipped .*$', reason = 'skipped' }]";
    let profile = parse(&format!("{GOOD}{keys}")).expect("valid");
    assert_eq!(profile.checks[0].not_covered_patterns[0].reason, "skipped");
    let keys = keys.replace("(.*)", ".*").replace("'skipped'", "'Skipped parts'");
    let ProfileError::Meaning { faults, .. } = parse(&format!("{GOOD}{keys}")).expect_err("bad") else {
        panic!("a fault of meaning");
    };
    let told: Vec<_> = faults.iter().map(|it| it.key.as_str()).collect();
    assert_eq!(
        told,
        ["check[0].engine_version", "check[0].parts_checked", "check[0].not_covered_patterns[0].reason"]
    );
}

/// Parts that the command is not given, or that mean nothing, would be carried without ever having been checked.
#[test]
fn parts_and_the_command_fit_each_other() {
    let told = |argv: &str, keys: &str| {
        let text = GOOD.replace("argv = [", &format!("{keys}\nargv = [{argv}"));
        match parse(&text) {
            Ok(profile) => {
                assert!(profile.checks.iter().any(|check| check.parts.is_some()), "{text}");
                String::new()
            }
            Err(error) => error.to_string(),
        }
    };
    let given = "'{parts}', ";
    assert_eq!(told(given, "parts = { kind = 'subversion-revisions' }"), "");
    assert_eq!(told(given, "parts = { kind = 'postgresql-relations' }"), "");
    assert_eq!(
        told(given, "parts = { for_each_changed = ['*.book'], not_read = ['/x'], recheck_within = '1d' }"),
        ""
    );
    for (argv, keys, fault) in [
        (given, "", "{parts} has no value here"),
        ("", "parts = { kind = 'subversion-revisions' }", "{parts} is needed as an argument"),
        (
            "'x{parts}', ",
            "parts = { kind = 'subversion-revisions' }",
            "{parts} is a list, which can only stand alone",
        ),
        (
            given,
            "stdin = 'yes'\nparts = { kind = 'postgresql-relations' }",
            "need the standard input: 'stdin' cannot be set",
        ),
        (given, "parts = {}", "either 'kind' or 'for_each_changed' is needed"),
        (given, "parts = { kind = 'subversion-revisions', for_each_changed = ['*'] }", "and not both"),
        (
            given,
            "parts = { kind = 'subversion-revisions', not_read = ['*'] }",
            "is only for 'for_each_changed'",
        ),
        (
            given,
            "parts = { for_each_changed = ['a/'] }",
            "check[0].parts.for_each_changed[0]: must be a file pattern",
        ),
        (given, "parts = { for_each_changed = ['*'], not_read = ['[a'] }", "this is no file pattern"),
        (given, "parts = { kind = 'pages' }", "unknown variant"),
        (given, "parts = { for_each_change = ['*'] }", "unknown field"),
    ] {
        let text = told(argv, keys);
        assert!(text.contains(fault), "{keys}: {text}");
    }
}

/// A step that repairs never says FAIL, and something else must look.
#[test]
fn a_step_that_repairs_is_no_check() {
    let step = "\n[[check]]\nname = 'drop-caches'\nargv = ['rm', '-rf', '{root}/cache']\nrepair = true\n";
    let profile = parse(&format!("{GOOD}{step}")).expect("valid");
    assert!(profile.checks.last().is_some_and(|check| check.repair));
    for further in ["fail_exit = [1]", "depth = 'L2'"] {
        let error = parse(&format!("{GOOD}{step}{further}\n")).expect_err(further).to_string();
        assert!(error.contains("a step that repairs never means damage"), "{error}");
    }
    let head = "name = 'x'\ndescription = 'x'\nversion = '1'\ndepth = 'L1'\n";
    let error = parse(&format!("{head}{step}")).expect_err("nothing looks").to_string();
    assert!(error.contains("that does not only repair"), "{error}");
}

/// Damage that cannot be told makes a check that says PASS to everything.
#[test]
fn a_check_that_cannot_fail_is_refused() {
    assert!(parse(GOOD).is_ok());
    let error = parse(&GOOD.replace("fail_exit = [1]", "")).expect_err("cannot fail").to_string();
    assert!(error.contains("no result of this check means FAIL"), "{error}");
    let error = parse(&GOOD[..GOOD.find("[[check").expect("there")]).expect_err("no check").to_string();
    assert!(error.contains("at least one [[check]]"), "{error}");
}

#[test]
fn placeholders_are_filled_and_lists_become_arguments() {
    let scope = Scope {
        roots: vec![("main".into(), "/opt/a".into()), ("data".into(), "/srv/d".into())],
        vars: BTreeMap::from([
            ("list".into(), Value::List(vec!["{root}/x".into(), "y".into()])),
            ("text".into(), Value::Text("{root.data}".into())),
        ]),
        target: TargetNames { host: Some("t".into()), ..Default::default() },
        ..Default::default()
    };
    let argv = ["{root}/bin", "{var.list}", "{{{target.host}}}", "-d{var.text}"].map(String::from);
    assert_eq!(scope.expand_list(&argv).expect("valid"), ["/opt/a/bin", "/opt/a/x", "y", "{t}", "-d/srv/d"]);
    assert!(matches!(scope.expand("{target.fqdn}"), Err(TemplateError::Unavailable(_))));
    assert!(matches!(scope.expand("a{var.list}"), Err(TemplateError::ListInText(_))));
    let further = ["{root}", "{further_roots}"].map(String::from);
    assert_eq!(scope.expand_list(&further).expect("valid"), ["/opt/a", "/srv/d"]);
    assert!(parse(&GOOD.replace("{root}/bin/check", "x{further_roots}")).is_err());
    assert_eq!(scope.expand("{"), Err(TemplateError::Unbalanced));
}

#[test]
fn a_repository_that_does_not_fit_hears_of_everything() {
    let profile = Profile::builtin("sqlite").expect("built in");
    let bound = profile.bind(&BTreeMap::new(), &["main"]).expect("all that are found");
    assert_eq!(profile.databases(&bound).expect("none is named"), []);
    let given = BTreeMap::from([
        ("databases".into(), Value::Text("app.db".into())),
        ("database".into(), Value::Text("app.db".into())),
    ]);
    let faults = profile.bind(&given, &["main"]).expect_err("text for a list, and an unknown name");
    assert_eq!(faults.len(), 2, "{faults:?}");
    let given = BTreeMap::from([("databases".into(), Value::List(vec!["../app.db".into()]))]);
    assert!(profile.bind(&given, &["main"]).is_err());

    let profile = parse(&GOOD.replace("{root}", "{root.data}")).expect("valid");
    assert!(profile.bind(&BTreeMap::new(), &["main"]).expect_err("no root")[0].contains("'data'"));
    assert!(profile.bind(&BTreeMap::new(), &["main", "data"]).is_ok());

    let profile = Profile::builtin("generic").expect("built in");
    assert!(profile.bind(&BTreeMap::new(), &["main"]).expect_err("no command")[0].starts_with("vars.check"));
}

/// The target makes no mark and does not know the roots before the first copy.
#[test]
fn the_target_needs_what_its_checks_use_and_no_more() {
    let mark = "[vars.socket]\nmeaning = \"where the server listens\"\n[vars.depth]\nmeaning = \"how deep\"\n\
                [mark]\nkind = \"command\"\nbegin = [\"mark\", \"{var.socket}\", \"{root.log}\"]\n";
    let text = GOOD.replace("[[check]]", &format!("{mark}[[check]]"));
    let text = text.replacen("{root}/bin/check", "{root}/bin/check-{var.depth}", 1);
    assert_ne!(text, GOOD);
    let profile = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let faults = profile.bind(&BTreeMap::new(), &["main"]).expect_err("nothing is given");
    assert_eq!(faults.len(), 3, "{faults:?}");
    let faults = profile.bind_for_checks(&BTreeMap::new(), None).expect_err("depth");
    assert_eq!(faults, ["vars.depth is missing: how deep"]);
    let given = BTreeMap::from([("depth".to_owned(), Value::Text("{root.log}".into()))]);
    assert!(profile.bind_for_checks(&given, None).is_ok());
    assert!(profile.bind_for_checks(&given, Some(&["main", "log"])).is_ok());
    assert!(profile.bind_for_checks(&given, Some(&["main"])).expect_err("no root")[0].contains("'log'"));
    let unknown = BTreeMap::from([("deep".to_owned(), Value::Text(String::new()))]);
    assert_eq!(profile.bind_for_checks(&unknown, None).expect_err("two").len(), 2);
}

#[test]
fn live_databases_and_their_side_files_are_not_copied() {
    let profile = Profile::builtin("sqlite").expect("built in");
    let given = BTreeMap::from([("databases".into(), Value::List(vec!["a[1].db".into(), "d/b.db".into()]))]);
    let vars = profile.bind(&given, &["main"]).expect("valid");
    let rules = FileRules::new(&profile, &vars, &["*.tmp".into()]).expect("valid");
    for excluded in
        ["a[1].db", "a[1].db-wal", "a[1].db-shm", "a[1].db-journal", "d/b.db", "d/b.db-wal", "d/x.tmp"]
    {
        assert!(rules.is_excluded(&path(excluded)), "{excluded}");
    }
    for copied in ["a1.db", "d/a[1].db", "b.db", "d/b.db-x"] {
        assert!(!rules.is_excluded(&path(copied)), "{copied}");
    }
}

#[test]
fn patterns_give_files_their_turn() {
    let text =
        format!("{GOOD}[copy]\nfirst = ['CURRENT', 'db/*']\nlast = ['/log/**']\nappend_only = ['**/*.ndb']");
    let rules = FileRules::new(&parse(&text).expect("valid"), &BTreeMap::new(), &[]).expect("valid");
    assert_eq!(rules.turn(&path("a/b/CURRENT")), Turn::First(0));
    assert_eq!(rules.turn(&path("db/x")), Turn::First(1));
    assert_eq!(rules.turn(&path("db/x/y")), Turn::Middle);
    assert_eq!(rules.turn(&path("log/x/y")), Turn::Last(0));
    assert_eq!(rules.turn(&path("a/log/x")), Turn::Middle);
    assert!(rules.is_append_only(&path("a/b.ndb")) && rules.is_append_only(&path("b.ndb")));
    assert!(rules.turn(&path("db/x")) < rules.turn(&path("z")));
}

#[test]
fn accurev_leaves_out_what_only_the_live_server_may_have() {
    let profile = Profile::builtin("accurev-4").expect("built in");
    let rules = FileRules::new(&profile, &BTreeMap::new(), &[]).expect("valid");
    for excluded in ["storage/site_slice/acserver.command.pause", "bin/server.port", "bin/x.pid", "a.sock"] {
        assert!(rules.is_excluded(&path(excluded)), "{excluded}");
    }
    assert!(!rules.is_excluded(&path("storage/depots/amber/data/12/34/56.sto")));
}

/// The mark's files have their content last, and only they are WAL; files of the same shape elsewhere are what they are.
#[test]
fn the_files_of_a_postgresql_mark_are_read_last() {
    let profile = Profile::builtin("postgresql").expect("built in");
    let rules = FileRules::new(&profile, &BTreeMap::new(), &[]).expect("valid");
    let segment = path("pg_wal/0000000100000000000000A7");
    let order = ["base/5/16384", "global/pg_control", "backup_label", "tablespace_map"].map(path);
    assert!(order.iter().chain([&segment]).map(|path| rules.turn(path)).is_sorted());
    assert_eq!(rules.turn(&order[0]), Turn::Middle);
    let first = FileRules::new(
        &Profile { copy: Copy { first: vec!["*".into()], ..Default::default() }, ..profile },
        &BTreeMap::new(),
        &[],
    );
    assert_eq!(first.expect("valid").turn(&order[2]), Turn::Last(0));
    assert!(rules.turn(&order[1]) < rules.turn(&order[2]) && rules.is_excluded(&segment));
    let excluded =
        ["postmaster.pid", "base/5/pg_internal.init", "base/pgsql_tmp/x", "pg_replslot/a", "base/5/t3_16385"];
    for path in excluded.map(path) {
        assert!(path.as_bytes() == b"base/pgsql_tmp/x" || rules.is_excluded(&path), "{path}");
    }
    assert!(rules.is_excluded(&path("base/pgsql_tmp")));
    for copied in
        ["pg_wal/00000002.history", "pg_wal", "pg_replslot", "base/5/16384_vm", "PG_VERSION"].map(path)
    {
        assert!(!rules.is_excluded(&copied), "{copied}");
    }
}

#[test]
fn a_postgresql_section_and_its_mark_belong_together() {
    let table = "[postgresql]\nconnection = \"host=/run\"\n";
    let said = |text: String| parse(&text).expect_err("a fault").to_string();
    assert!(
        said(format!("{GOOD}[mark]\nkind = \"postgresql\"\n")).contains("a [postgresql] section is needed")
    );
    assert!(said(format!("{GOOD}{table}")).contains("is only for mark.kind = \"postgresql\""));
    let both = format!("{GOOD}[mark]\nkind = \"postgresql\"\n{table}");
    assert!(parse(&both).is_ok());
    assert!(said(format!("{both}wal_segments = 0\n")).contains("must be 1 to 65536"));
    assert!(
        said(format!("{GOOD}[mark]\nkind = \"none\"\nend = [\"{{helper}}\"]\n"))
            .contains("has no value here")
    );
}

/// git's fsck adds up bits: every sum of them is damage, and nothing else is.
#[test]
fn an_exit_code_may_be_made_of_bits() {
    let with = |lines: &str| parse(&GOOD.replace("fail_exit = [1]", lines));
    let check = with("fail_exit_mask = 11").expect("valid").checks.remove(0);
    let failing: Vec<_> = (-1..=256).filter(|code| check.is_fail_exit(*code)).collect();
    assert_eq!(failing, [1, 2, 3, 8, 9, 10, 11]);
    let none = with("fail_exit = [3]").expect("valid").checks.remove(0);
    assert!(none.is_fail_exit(3) && !none.is_fail_exit(1) && !none.is_fail_exit(0));
    for twice in [
        "fail_exit_mask = 5\nfail_exit = [4]",
        "fail_exit_mask = 5\npass_exit = [0, 1]",
        "fail_exit_mask = 5\ninconclusive_exit = [{ code = 5, reason = \"x\" }]",
    ] {
        let error = with(twice).expect_err("one code, two meanings").to_string();
        assert!(error.contains("this exit code stands for two things"), "{error}");
    }
    assert!(with("fail_exit_mask = 5\nfail_exit = [2]").is_ok());
    for no_bits in [-1, 128] {
        let error = with(&format!("fail_exit_mask = {no_bits}")).expect_err("no bits").to_string();
        assert!(error.contains("check[0].fail_exit_mask: must be bits of an exit code"), "{error}");
    }
    assert!(with("fail_exit_mask = 0").is_err(), "it could not fail");
}

#[test]
fn what_must_exist_is_a_path_in_the_root() {
    assert!(
        parse(&format!(
            "{GOOD}[mark]
kind = 'none'
must_exist = ['db/current']"
        ))
        .is_ok()
    );
    let error = parse(&format!(
        "{GOOD}[mark]
kind = 'none'
must_exist = ['../x']"
    ))
    .expect_err("outside");
    assert!(error.to_string().contains("mark.must_exist: must be paths of files"), "{error}");
}

/// What must be read in its turn is not held: of a file that matches both, the turn counts.
#[test]
fn held_files_are_neither_first_nor_last() {
    let text = format!("{GOOD}[copy]\nfirst = ['refs/**']\nhold = ['objects/**', 'refs/**']");
    let rules = FileRules::new(&parse(&text).expect("valid"), &BTreeMap::new(), &[]).expect("valid");
    assert!(rules.has_held() && rules.is_held(&path("objects/pack/a.pack")));
    assert!(!rules.is_held(&path("refs/heads/a")) && !rules.is_held(&path("x/objects/a")));
}
