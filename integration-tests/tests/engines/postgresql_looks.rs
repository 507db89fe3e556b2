//! What the check of PostgreSQL takes for damage and what not: damage that amcheck alone does not see, good data that kept it from
//! looking, and a catalogue that brings a checker of its own.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use serde_json::Value;

use crate::{
    pair::Pair,
    postgresql::{Cluster, agents},
};

const PAGE_BYTES: u64 = 8192;

/// Changes files while the server is down.
fn offline(cluster: &mut Cluster, change: impl FnOnce()) {
    cluster.stop("-INT");
    change();
    cluster.start_again(&[]);
}

fn zero_page(file: &Path, block: u64) {
    let file = File::options().write(true).open(file).expect("open");
    file.write_all_at(&[0; PAGE_BYTES as usize], block * PAGE_BYTES).expect("write");
}

fn cut(file: &Path, blocks: u64) {
    File::options().write(true).open(file).expect("open").set_len(blocks * PAGE_BYTES).expect("cut");
}

/// Runs, and looks that it ends as a FAIL whose headline says `words`.
fn fails(pair: &Pair, words: &[&str]) -> Value {
    let run = pair.run(1);
    assert_eq!((&run["outcome"], &run["reason"]), (&"OUTCOME_FAIL".into(), &"damage-found".into()), "{run}");
    let message = run["message"].as_str().expect("a message");
    assert!(message.starts_with("damage: "), "the headline is a finding: {message}");
    let shown = pair.target(&["verdict", "show"]).stdout;
    for words in words {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    run
}

/// Runs, and gives the verdict.
fn passes(pair: &Pair) -> String {
    let run = pair.run(0);
    assert_eq!(run["outcome"], "OUTCOME_PASS", "{run}");
    pair.target(&["--json", "verdict", "show"]).stdout
}

/// The file of a relation as the verdict names it.
fn named(cluster: &Cluster, relation: &str) -> String {
    format!("(file {}", cluster.query(&format!("SELECT pg_relation_filepath('{relation}')")))
}

/// A table that lost pages has no rows there that amcheck could miss: its index and its visibility map still name them.
#[test]
fn a_table_that_lost_its_end_or_a_page_fails() {
    let (pair, mut cluster) = agents(&["--data-checksums"]);
    cluster.query("ALTER SYSTEM SET autovacuum = off");
    cluster.query(
        "CREATE TABLE indexed AS SELECT n, repeat('x', 80) AS f FROM generate_series(1, 5000) n;
         CREATE UNIQUE INDEX indexed_n ON indexed (n);
         CREATE TABLE mapped AS SELECT n, repeat('x', 80) AS f FROM generate_series(1, 5000) n",
    );
    cluster.query("VACUUM mapped");
    cluster.query("CHECKPOINT");
    let (indexed, mapped) = (cluster.file_of("indexed"), cluster.file_of("mapped"));
    let index_named = named(&cluster, "indexed");
    let kept = [fs::read(&indexed).expect("read"), fs::read(&mapped).expect("read")];
    let damages: [(&dyn Fn(), &[&str]); 4] = [
        (&|| cut(&indexed, 30), &["where the table ends at block 30", &index_named]),
        (&|| zero_page(&indexed, 20), &["a page without rows", "postgres.public.indexed"]),
        (
            &|| cut(&mapped, 30),
            &["from block 30 on, and the table ends at block 30", "postgres.public.mapped"],
        ),
        (&|| zero_page(&mapped, 20), &["block 20: a page of zeros", "postgres.public.mapped"]),
    ];
    for (damage, words) in damages {
        offline(&mut cluster, || {
            fs::write(&indexed, &kept[0]).expect("write");
            fs::write(&mapped, &kept[1]).expect("write");
            damage();
        });
        let run = fails(&pair, words);
        assert_eq!(run["attribution"]["fault"], "live", "{run}");
    }
    // A page of zeros that nothing names is what a crash leaves when it extends a table: no damage.
    offline(&mut cluster, || {
        fs::write(&indexed, &kept[0]).expect("write");
        fs::write(&mapped, &kept[1]).expect("write");
        let end = kept[0].len() as u64 / PAGE_BYTES;
        cut(&indexed, end + 3);
    });
    passes(&pair);
}

/// A segment that lies behind a gap, and pages that an index names in a segment that is gone.
#[test]
fn a_segment_behind_a_gap_fails() {
    let (pair, mut cluster) = agents(&[]);
    cluster.query("CREATE TABLE big AS SELECT generate_series(1, 100) n");
    let file = cluster.file_of("big");
    let behind = file.with_file_name(format!("{}.2", file.file_name().expect("a name").to_string_lossy()));
    // A segment that was truncated stays, empty.
    offline(&mut cluster, || fs::write(&behind, b"").expect("write"));
    passes(&pair);
    offline(&mut cluster, || fs::write(&behind, [1; 8192]).expect("write"));
    fails(&pair, &["there is a segment", ".2", "postgres.public.big"]);
}

/// An old visibility map: index-only scans return rows that were deleted.
#[test]
fn a_visibility_map_that_is_older_than_its_table_fails() {
    let (pair, mut cluster) = agents(&[]);
    cluster.query("CREATE TABLE v (n int PRIMARY KEY); INSERT INTO v SELECT generate_series(1, 5000)");
    cluster.query("VACUUM v");
    cluster.query("CHECKPOINT");
    let file = cluster.file_of("v").to_string_lossy().into_owned() + "_vm";
    let old = fs::read(&file).expect("read");
    cluster.query("DELETE FROM v WHERE n <= 2500");
    offline(&mut cluster, || fs::write(&file, old).expect("write"));
    let run = fails(&pair, &["visibility map of table \"postgres.public.v\"", "all-visible"]);
    assert!(run["attribution"]["files"].to_string().contains("_vm"), "{run}");
}

/// Files that a relation must have: an empty index, a sequence that is gone.
#[test]
fn a_file_that_is_empty_or_missing_fails_whatever_kind_it_is() {
    let (pair, mut cluster) = agents(&[]);
    cluster.query(
        "CREATE TABLE t (a int[], p point, n int); CREATE INDEX t_gin ON t USING gin (a);
         CREATE INDEX t_gist ON t USING gist (p); CREATE SEQUENCE numbers",
    );
    let (gin, numbers) = (cluster.file_of("t_gin"), cluster.file_of("numbers"));
    offline(&mut cluster, || cut(&gin, 0));
    fails(&pair, &["gin index \"postgres.public.t_gin\"", "the file is empty"]);
    cluster.query("REINDEX INDEX t_gin");
    offline(&mut cluster, || fs::remove_file(&numbers).expect("remove"));
    fails(&pair, &["sequence \"postgres.public.numbers\"", "the file is missing"]);
}

/// Everything here kept pg_amcheck or pg_checksums from looking, or made them say damage. The data is good.
#[test]
fn good_data_that_is_unusual_passes_and_what_was_not_looked_at_is_named() {
    let (pair, mut cluster) = agents(&["--data-checksums"]);
    // As pg_upgrade from 13 leaves it; a function that needs its search path; settings that the check's own server would not start with.
    cluster.query(
        "CREATE EXTENSION amcheck VERSION '1.2'; CREATE EXTENSION unaccent; CREATE EXTENSION citext;
         CREATE SCHEMA app; SET search_path = public, app; CREATE FUNCTION app.fold(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower($1)';
         CREATE FUNCTION norm(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT public.unaccent(fold($1))';
         ALTER DATABASE postgres SET search_path = app, public;
         CREATE FUNCTION day(timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS 'SELECT $1::date';
         ALTER DATABASE postgres SET timezone = 'Pacific/Auckland'",
    );
    cluster.query(
        "CREATE TABLE public.people (id int PRIMARY KEY, name text, nick citext, at timestamptz, tags int[], p point);
         INSERT INTO public.people SELECT n, 'Zoë ' || n, 'Z' || n, '2026-01-01'::timestamptz + n * '1 hour'::interval,
            ARRAY[n], point(n, n) FROM generate_series(1, 1000) n;
         CREATE INDEX ON public.people (public.norm(name)); CREATE INDEX ON public.people (nick);
         CREATE INDEX ON public.people (public.day(at)); CREATE INDEX ON public.people (id) WHERE public.norm(name) > 'zoe 5';
         CREATE INDEX people_tags ON public.people USING gin (tags); CREATE INDEX people_p ON public.people USING gist (p);
         CREATE INDEX people_hash ON public.people USING hash (id); CREATE UNLOGGED TABLE public.fleeting (n int PRIMARY KEY);
         INSERT INTO public.fleeting SELECT generate_series(1, 100)",
    );
    cluster.query("ALTER SYSTEM SET superuser_reserved_connections = 25");
    cluster.query("ALTER SYSTEM SET max_connections = 200");
    cluster.query("CREATE DATABASE closed ALLOW_CONNECTIONS false");
    // A prepared transaction keeps its locks over a restart: a check that waits for them never ends.
    cluster.query("ALTER SYSTEM SET max_prepared_transactions = 5");
    offline(&mut cluster, || {});
    cluster.query("BEGIN; LOCK TABLE public.people IN ACCESS EXCLUSIVE MODE; DELETE FROM public.people WHERE id = 7; PREPARE TRANSACTION 'it''s'");
    cluster.query(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'public.people_nick_idx'::regclass",
    );
    let folder = cluster.file_of("public.people").parent().expect("a folder").to_owned();
    offline(&mut cluster, || {
        // A saved copy, one that is called as a relation's file is, and one that is no number of pages.
        fs::write(folder.join("17174_save"), [7; 16384]).expect("write");
        fs::write(folder.join("99999"), [7; 16384]).expect("write");
        fs::write(folder.join("99998"), [7; 1000]).expect("write");
    });
    let shown = passes(&pair);
    for part in ["gin indexes", "gist indexes", "hash indexes"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

/// An index whose function does not work here, and one that is sorted by a library of another version, say nothing of the data.
#[test]
fn an_index_that_cannot_be_compared_is_inconclusive_and_is_named() {
    let (pair, cluster) = agents(&[]);
    cluster.query(
        "CREATE TABLE here (n int PRIMARY KEY); INSERT INTO here SELECT generate_series(1, 100);
         CREATE FUNCTION far(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
            'BEGIN IF current_setting(''application_name'') = ''assay'' THEN RAISE ''not here''; END IF; RETURN $1; END';
         CREATE INDEX here_far ON here (far(n))",
    );
    let run = pair.run(3);
    assert_eq!(run["reason"], "index-function", "{run}");
    assert!(
        run["message"].as_str().is_some_and(|text| text.contains("here_far") && text.contains("not here"))
    );
    // An operator may accept that: the part is listed.
    pair.restart_with("target", "\" }", "\", unchecked = \"accept\" }");
    assert!(passes(&pair).contains("here_far"));
    pair.restart_with("target", ", unchecked = \"accept\"", "");
    cluster.query("DROP INDEX here_far");
    // The index is in the order of another collation than its catalogue says. Of the same version that is damage.
    cluster.query(
        "CREATE COLLATION german (provider = icu, locale = 'de'); CREATE COLLATION swedish (provider = icu, locale = 'sv');
         CREATE TABLE w (v text COLLATE german); INSERT INTO w SELECT p || n FROM generate_series(1, 500) n,
            unnest(ARRAY['ä', 'b', 'z', 'a']) p; CREATE INDEX w_i ON w (v);
         UPDATE pg_index SET indcollation = (SELECT oid::text::oidvector FROM pg_collation WHERE collname = 'swedish')
            WHERE indexrelid = 'w_i'::regclass",
    );
    fails(&pair, &["w_i"]);
    cluster.query("UPDATE pg_collation SET collversion = '1' WHERE collname = 'swedish'");
    let run = pair.run(3);
    assert_eq!(run["reason"], "collation-mismatch", "{run}");
    assert!(
        run["message"].as_str().is_some_and(|text| text.contains("w_i") && text.contains("swedish")),
        "{run}"
    );
}

/// The copy brings a checker that finds nothing, an event trigger that runs a program, and a library of its own.
#[test]
fn the_copys_own_checker_is_not_called() {
    let (pair, mut cluster) = agents(&[]);
    let outside = pair.path("touched");
    cluster.query(&format!(
        "CREATE EXTENSION amcheck; CREATE TABLE rows AS SELECT n, repeat('x', 100) FROM generate_series(1, 5000) n;
         CREATE OR REPLACE FUNCTION verify_heapam(relation regclass, on_error_stop boolean default false,
            check_toast boolean default false, skip text default 'none', startblock bigint default null,
            endblock bigint default null, OUT blkno bigint, OUT offnum integer, OUT attnum integer, OUT msg text)
            RETURNS SETOF record LANGUAGE sql AS 'SELECT 1::bigint, 1, 1, ''x'' WHERE false';
         CREATE FUNCTION fires() RETURNS event_trigger LANGUAGE plpgsql AS
            $f$BEGIN COPY (SELECT 1) TO PROGRAM 'touch {}'; END$f$;
         CREATE EVENT TRIGGER at_ddl ON ddl_command_start EXECUTE FUNCTION fires()",
        outside.display()
    ));
    let file = cluster.file_of("rows");
    fs::remove_file(&outside).ok();
    offline(&mut cluster, || {
        let file = File::options().write(true).open(&file).expect("open");
        // A row's pointer that leads outside of its page: the page's head stays good.
        file.write_all_at(&[0xff, 0x7f, 0x01, 0x00], PAGE_BYTES * 3 + 24).expect("write");
    });
    fs::remove_file(&outside).ok();
    pair.restart_with(
        "target",
        "profile = \"postgresql\"\n",
        "profile = \"postgresql\"\nisolation = \"none\"\n",
    );
    fails(&pair, &["postgres.public.rows"]);
    assert!(!outside.exists(), "an event trigger of the copy ran");
}
