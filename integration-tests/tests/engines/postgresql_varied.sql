-- Everything that a cluster may have: kinds of relations, indexes, types and values, and what DDL leaves behind.
CREATE EXTENSION bloom; CREATE EXTENSION btree_gin; CREATE EXTENSION btree_gist; CREATE EXTENSION citext; CREATE EXTENSION cube;
CREATE EXTENSION file_fdw; CREATE EXTENSION hstore; CREATE EXTENSION intarray; CREATE EXTENSION ltree; CREATE EXTENSION pg_trgm;
CREATE EXTENSION unaccent;
CREATE SCHEMA app; CREATE SCHEMA "Odd ""schema"" '1'";
SET search_path = public, app;
CREATE COLLATION german (provider = icu, locale = 'de');
CREATE COLLATION numeric_order (provider = icu, locale = 'en-u-kn-true');
CREATE COLLATION no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE TYPE span AS RANGE (subtype = float8);
CREATE FUNCTION app.fold(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower($1)';
-- Without its own search path from the index on: from 17 on no index can be made with a function that needs the session's.
CREATE FUNCTION norm(text) RETURNS text LANGUAGE sql IMMUTABLE SET search_path = public, app AS 'SELECT public.unaccent(fold($1))';
ALTER DATABASE postgres SET search_path = public, app;
-- An operator class of the application's own: numbers by their last digit.
CREATE FUNCTION digit_compare(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT pg_catalog.btint4cmp($1 % 10, $2 % 10)';
CREATE FUNCTION digit_less(int, int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 % 10 < $2 % 10';
CREATE FUNCTION digit_equal(int, int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 % 10 = $2 % 10';
CREATE FUNCTION digit_at_most(int, int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 % 10 <= $2 % 10';
CREATE FUNCTION digit_at_least(int, int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 % 10 >= $2 % 10';
CREATE FUNCTION digit_more(int, int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 % 10 > $2 % 10';
CREATE OPERATOR <# (LEFTARG = int, RIGHTARG = int, FUNCTION = digit_less);
CREATE OPERATOR <=# (LEFTARG = int, RIGHTARG = int, FUNCTION = digit_at_most);
CREATE OPERATOR =# (LEFTARG = int, RIGHTARG = int, FUNCTION = digit_equal);
CREATE OPERATOR >=# (LEFTARG = int, RIGHTARG = int, FUNCTION = digit_at_least);
CREATE OPERATOR ># (LEFTARG = int, RIGHTARG = int, FUNCTION = digit_more);
CREATE OPERATOR CLASS by_digit FOR TYPE int USING btree AS OPERATOR 1 <#, OPERATOR 2 <=#, OPERATOR 3 =#, OPERATOR 4 >=#, OPERATOR 5 >#,
    FUNCTION 1 digit_compare(int, int);
CREATE TABLE everything (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int NOT NULL, t text, c citext, g text COLLATE german, k text COLLATE numeric_order,
    i text COLLATE no_case, d date, at timestamptz, num numeric, u uuid, j jsonb, x xml, a int[], ts tsvector, h hstore, l ltree, p point,
    b box, r int4range, m mood, w pair, s span, bits bit varying, net inet, pos positive, twice int GENERATED ALWAYS AS (n * 2) STORED);
INSERT INTO everything (n, t, c, g, k, i, d, at, num, u, j, a, ts, h, l, p, b, r, m, w, s, bits, net, pos)
SELECT n, CASE WHEN n % 7 > 0 THEN 'Zoë ' || n END, 'Ä' || n, chr(200 + n % 50) || n, 'v' || n, 'I' || n, date '2026-01-01' + n,
    timestamptz '2026-01-01' + n * interval '1 hour', CASE n % 5 WHEN 0 THEN 'NaN' ELSE n / 7.0 END, md5(n::text)::uuid,
    jsonb_build_object('n', n, 'list', ARRAY[n, n + 1]), ARRAY[n % 10, n], to_tsvector('simple', 'word' || n % 50 || ' and ' || n),
    hstore('k' || n % 9, n::text), text2ltree('top.n' || n % 20 || '.m' || n), point(n, n % 100), box(point(n, n), point(n + 1, n + 1)),
    CASE WHEN n % 11 = 0 THEN 'empty' ELSE int4range(n, n + 5) END, (ARRAY['sad', 'ok', 'happy'])[1 + n % 3]::mood, ROW(n, 'x')::pair,
    span(n, n + 0.5), n::bit(32)::bit varying, ('10.0.' || n % 200 || '.' || n % 250)::inet, n FROM generate_series(1, 3000) n;
CREATE INDEX ON everything (n DESC NULLS LAST); CREATE INDEX ON everything (t, n) INCLUDE (d); CREATE UNIQUE INDEX ON everything (id, n);
CREATE INDEX ON everything (c); CREATE INDEX ON everything (g); CREATE INDEX ON everything (k); CREATE INDEX ON everything (i);
CREATE INDEX ON everything (lower(t)) WHERE n % 2 = 0; CREATE INDEX ON everything (norm(t)); CREATE INDEX ON everything (t text_pattern_ops);
CREATE INDEX ON everything (num); CREATE INDEX ON everything (u); CREATE INDEX ON everything (m); CREATE INDEX ON everything (w);
CREATE INDEX ON everything (n by_digit); CREATE INDEX ON everything ((j ->> 'n')); CREATE INDEX ON everything (net); CREATE INDEX ON everything (bits);
CREATE INDEX ON everything (r); CREATE INDEX ON everything (twice); CREATE INDEX ON everything (a);
CREATE INDEX ON everything USING hash (n); CREATE INDEX ON everything USING hash (t); CREATE INDEX ON everything USING hash (u);
CREATE INDEX ON everything USING gin (j); CREATE INDEX ON everything USING gin (j jsonb_path_ops); CREATE INDEX ON everything USING gin (a);
CREATE INDEX ON everything USING gin (ts) WITH (fastupdate = off); CREATE INDEX ON everything USING gin (h); CREATE INDEX ON everything USING gin (t gin_trgm_ops);
CREATE INDEX ON everything USING gin (n, a); CREATE INDEX ON everything USING gist (p); CREATE INDEX ON everything USING gist (b); CREATE INDEX ON everything USING gist (r);
CREATE INDEX ON everything USING gist (ts); CREATE INDEX ON everything USING gist (l); CREATE INDEX ON everything USING gist (t gist_trgm_ops, n);
CREATE INDEX ON everything USING gist (s); CREATE INDEX ON everything USING gist (net inet_ops); CREATE INDEX ON everything USING gist (a gist__int_ops);
CREATE INDEX ON everything USING spgist (p); CREATE INDEX ON everything USING spgist (p kd_point_ops); CREATE INDEX ON everything USING spgist (t);
CREATE INDEX ON everything USING spgist (r); CREATE INDEX ON everything USING spgist (net); CREATE INDEX ON everything USING spgist (b);
CREATE INDEX ON everything USING brin (n); CREATE INDEX ON everything USING brin (at); CREATE INDEX ON everything USING brin (b box_inclusion_ops);
CREATE INDEX ON everything USING bloom (n, twice);
UPDATE everything SET t = t || ' again', a = a || 5 WHERE n % 3 = 0; DELETE FROM everything WHERE n % 4 = 0;
VACUUM everything;
ALTER FUNCTION norm RESET search_path;
UPDATE everything SET p = point(n, 7), ts = to_tsvector('simple', 'late ' || n) WHERE n % 5 = 0;
DELETE FROM everything WHERE n > 2500;
-- Many entries with one key, and entries that were emptied.
CREATE TABLE alike (n int, k int, a int[]); INSERT INTO alike SELECT n, n % 3, ARRAY[n % 2] FROM generate_series(1, 40000) n;
CREATE INDEX ON alike (k); CREATE INDEX ON alike USING hash (k); CREATE INDEX ON alike USING gin (a); CREATE INDEX ON alike USING gist (k);
DELETE FROM alike WHERE n BETWEEN 10000 AND 30000; VACUUM alike; INSERT INTO alike SELECT n, n % 3, ARRAY[n % 2] FROM generate_series(1, 10000) n;
DELETE FROM alike WHERE n > 5000; VACUUM (INDEX_CLEANUP off) alike; VACUUM alike;
-- Values outside their rows, in each way.
CREATE TABLE values_outside (n int PRIMARY KEY, plain text, lz text, main text, ext bytea, many text[]);
ALTER TABLE values_outside ALTER main SET STORAGE main; ALTER TABLE values_outside ALTER ext SET STORAGE external;
SELECT count(*) > 0 AS lz4 FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals) \gset
\if :lz4
ALTER TABLE values_outside ALTER lz SET COMPRESSION lz4;
\endif
INSERT INTO values_outside SELECT n, repeat('plain ' || n, 3000), repeat('lz ' || n, 3000), repeat('main', 900), decode(repeat(md5(n::text), 200), 'hex'),
    ARRAY(SELECT md5((n * m)::text) FROM generate_series(1, 200) m) FROM generate_series(1, 200) n;
UPDATE values_outside SET plain = plain || 'x' WHERE n % 3 = 0; DELETE FROM values_outside WHERE n % 10 = 0; ALTER TABLE values_outside DROP COLUMN main;
ALTER TABLE values_outside ADD COLUMN late int DEFAULT 7;
-- Partitions, inheritance, and what has no rows of its own.
CREATE TABLE parts (n int, t text, PRIMARY KEY (n)) PARTITION BY RANGE (n);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000); CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (1000) TO (2000) PARTITION BY HASH (n);
CREATE TABLE parts_2_a PARTITION OF parts_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE parts_2_b PARTITION OF parts_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE parts_rest PARTITION OF parts DEFAULT; CREATE INDEX ON parts (t); INSERT INTO parts SELECT n, 'part ' || n FROM generate_series(0, 2999) n;
CREATE TABLE parent (n int PRIMARY KEY); CREATE TABLE child (extra text) INHERITS (parent); INSERT INTO child SELECT n, 'x' FROM generate_series(1, 100) n;
CREATE TABLE empty_table (); CREATE TABLE no_rows (n int PRIMARY KEY, a int[]); CREATE INDEX ON no_rows USING gin (a); CREATE INDEX ON no_rows USING spgist (int4range(n, n + 1));
CREATE INDEX ON no_rows USING hash (n); CREATE INDEX ON no_rows USING gist (n); CREATE INDEX ON no_rows USING brin (n);
CREATE UNLOGGED TABLE fleeting (n int PRIMARY KEY, t text); INSERT INTO fleeting SELECT n, repeat('x', 3000) FROM generate_series(1, 100) n; CREATE INDEX ON fleeting USING gin ((ARRAY[n]));
CREATE MATERIALIZED VIEW seen AS SELECT n, t FROM everything; CREATE UNIQUE INDEX ON seen (n); REFRESH MATERIALIZED VIEW CONCURRENTLY seen;
CREATE MATERIALIZED VIEW not_filled AS SELECT 1 AS n WITH NO DATA; CREATE VIEW looked AS SELECT * FROM seen;
-- Rules, triggers, constraints, rights.
CREATE RULE keep AS ON DELETE TO parent DO INSTEAD NOTHING; ALTER TABLE everything ENABLE ROW LEVEL SECURITY; ALTER TABLE everything FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON everything USING (false);
CREATE TABLE bookings (room int, during tsrange, EXCLUDE USING gist (room WITH =, during WITH &&));
INSERT INTO bookings SELECT n % 5, tsrange(timestamp '2026-01-01' + n * interval '1 day', timestamp '2026-01-02' + n * interval '1 day') FROM generate_series(1, 200) n;
CREATE TABLE referring (n int REFERENCES no_rows DEFERRABLE INITIALLY DEFERRED, UNIQUE (n) DEFERRABLE);
CREATE FUNCTION notes() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no change''; END';
CREATE FUNCTION row_notes() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER row_notes BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION row_notes();
-- Elsewhere.
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw; CREATE FOREIGN TABLE elsewhere (line text) SERVER files OPTIONS (filename '/nowhere');
CREATE PUBLICATION some_out FOR TABLE referring; CREATE SUBSCRIPTION nothing_in CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false);
SELECT count(lo_put(l, 100000, 'far behind the end')) FROM lo_from_bytea(0, 'a large object') l, generate_series(1, 3);
SELECT lo_create(0) IS NOT NULL;
CREATE SEQUENCE small AS smallint MINVALUE -5 MAXVALUE 5 CYCLE; CREATE SEQUENCE cached CACHE 50; SELECT nextval('small'), setval('cached', 1000);
CREATE TABLE "Odd ""schema"" '1'"."Table
of two lines, 'quoted'" ("Column %s" int PRIMARY KEY); INSERT INTO "Odd ""schema"" '1'"."Table
of two lines, 'quoted'" SELECT generate_series(1, 10);
-- What DDL leaves behind: rewritten, moved, shrunk, emptied relations, and an index that did not become valid.
CREATE TABLE moved AS SELECT n, repeat('x', 500) AS f FROM generate_series(1, 3000) n; CREATE INDEX moved_n ON moved (n); CLUSTER moved USING moved_n;
DELETE FROM moved WHERE n > 1000; VACUUM moved; VACUUM FULL moved; REINDEX TABLE CONCURRENTLY moved; ALTER TABLE moved ALTER n TYPE bigint;
CREATE TABLE emptied AS SELECT generate_series(1, 10000) AS n; CREATE INDEX ON emptied (n); VACUUM emptied; TRUNCATE emptied; INSERT INTO emptied VALUES (1);
CREATE TABLE shrunk AS SELECT generate_series(1, 10000) AS n; VACUUM shrunk; ANALYZE shrunk; DELETE FROM shrunk WHERE n > 100; VACUUM shrunk;
CREATE TABLE doubled AS SELECT n % 50 AS n FROM generate_series(1, 100) n;
\set ON_ERROR_STOP off
CREATE UNIQUE INDEX CONCURRENTLY doubled_n ON doubled (n);
\set ON_ERROR_STOP on
-- Rows of all kinds of ends: locked, updated by a part that was rolled back, frozen, by lists of transactions.
CREATE TABLE ends (n int PRIMARY KEY, t text); INSERT INTO ends SELECT n, 'x' FROM generate_series(1, 1000) n;
BEGIN; SELECT count(*) FROM (SELECT FROM ends WHERE n < 300 FOR KEY SHARE) l; SAVEPOINT a; UPDATE ends SET t = 'y' WHERE n < 200; SAVEPOINT b; DELETE FROM ends WHERE n < 100; ROLLBACK TO b; COMMIT;
BEGIN; UPDATE ends SET t = 'gone' WHERE n > 500; INSERT INTO ends SELECT n, 'gone' FROM generate_series(2000, 3000) n; ROLLBACK;
BEGIN; SELECT count(*) FROM (SELECT FROM ends FOR UPDATE) l; ROLLBACK; SELECT count(*) FROM ends; VACUUM (FREEZE) parts_1; DELETE FROM parts_1 WHERE n < 500;
BEGIN; DELETE FROM ends WHERE n = 7; PREPARE TRANSACTION 'a ''prepared'' one';
CREATE TABLE in_space_of_its_own (n int);
SELECT :major >= 15 AS has_spaces_inside \gset
\if :has_spaces_inside
SET allow_in_place_tablespaces = on; CREATE TABLESPACE inside LOCATION ''; CREATE TABLE within TABLESPACE inside AS SELECT generate_series(1, 1000) AS n; CREATE INDEX ON within (n) TABLESPACE inside;
ALTER TABLE in_space_of_its_own SET TABLESPACE inside;
\endif
CREATE PUBLICATION everything_out FOR ALL TABLES;
CREATE EVENT TRIGGER at_any_change ON ddl_command_start EXECUTE FUNCTION notes();
