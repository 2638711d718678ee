--
-- Attempts to have code of one's own run with the rights of those who publish,
-- who look, or who own the extension; see test/t/055_takeover.pl for the worker.
-- Whatever runs leaves its mark: who it ran as, and how it came to run.
--
\set VERBOSITY terse
CREATE ROLE regress_outbox_mallory;
CREATE ROLE regress_outbox_plain;
CREATE DATABASE regress_outbox_takeover OWNER regress_outbox_mallory;
\set old_database :DBNAME
\c regress_outbox_takeover
SET client_min_messages = warning;

CREATE SCHEMA traps AUTHORIZATION regress_outbox_mallory;
GRANT USAGE ON SCHEMA traps TO PUBLIC;
SET ROLE regress_outbox_mallory;
CREATE TABLE traps.taken (who name, how text);
GRANT INSERT ON traps.taken TO PUBLIC;
CREATE FUNCTION traps.take(how text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO traps.taken VALUES (current_user, how);
	RETURN true;
END;
$$;
CREATE FUNCTION traps.fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM traps.take('trigger ' || TG_NAME);
	RETURN NEW;
END;
$$;
GRANT ALL ON ALL FUNCTIONS IN SCHEMA traps TO PUBLIC;
RESET ROLE;
-- what ran as somebody else
CREATE VIEW taken AS SELECT * FROM traps.taken WHERE who <> 'regress_outbox_mallory';

--
-- Before the extension is there
--
-- its schema must be new
SET ROLE regress_outbox_mallory;
CREATE SCHEMA amqp_outbox;
RESET ROLE;
CREATE EXTENSION amqp_outbox;
DROP SCHEMA amqp_outbox;
-- so must its functions
SET ROLE regress_outbox_mallory;
CREATE FUNCTION public.amqp_inbox_accept(consumer text, message_id text)
RETURNS boolean LANGUAGE sql AS $$ SELECT traps.take('amqp_inbox_accept') $$;
RESET ROLE;
CREATE EXTENSION amqp_outbox;
DROP FUNCTION public.amqp_inbox_accept;
-- functions and operators that fit better than PostgreSQL's own, in the schema
-- that the extension is made in (the owner of a database owns public)
SET ROLE regress_outbox_mallory;
CREATE FUNCTION public.pg_has_role(text, text) RETURNS boolean
	LANGUAGE sql AS $$ SELECT traps.take('pg_has_role') $$;
CREATE FUNCTION public.hashtextextended(text, integer) RETURNS bigint
	LANGUAGE sql IMMUTABLE AS $$ SELECT traps.take('hashtextextended')::integer::bigint $$;
CREATE FUNCTION public.current_setting(text, boolean) RETURNS text
	LANGUAGE sql AS $$ SELECT traps.take('current_setting')::text $$;
CREATE FUNCTION public.pg_size_pretty(anyelement) RETURNS text
	LANGUAGE sql AS $$ SELECT traps.take('pg_size_pretty')::text $$;
CREATE FUNCTION public.pg_total_relation_size(oid) RETURNS bigint
	LANGUAGE sql AS $$ SELECT traps.take('pg_total_relation_size')::integer::bigint $$;
CREATE FUNCTION public.octet_length(anyelement) RETURNS integer
	LANGUAGE sql AS $$ SELECT traps.take('octet_length')::integer $$;
CREATE FUNCTION public.object_step(jsonb, anyenum, bigint) RETURNS jsonb
	LANGUAGE sql AS $$ SELECT to_jsonb(traps.take('jsonb_object_agg')) $$;
CREATE AGGREGATE public.jsonb_object_agg(anyenum, bigint) (SFUNC = object_step, STYPE = jsonb);
CREATE FUNCTION public.concat(text, integer) RETURNS text
	LANGUAGE sql AS $$ SELECT traps.take('||')::text $$;
CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = integer, FUNCTION = public.concat);
CREATE FUNCTION public.same(anyenum, text) RETURNS boolean
	LANGUAGE sql AS $$ SELECT traps.take('=') $$;
CREATE OPERATOR public.= (LEFTARG = anyenum, RIGHTARG = text, FUNCTION = public.same);
CREATE FUNCTION public.less(timestamptz, text) RETURNS boolean
	LANGUAGE sql AS $$ SELECT traps.take('<') $$;
CREATE OPERATOR public.< (LEFTARG = timestamptz, RIGHTARG = text, FUNCTION = public.less);
CREATE DOMAIN public.text AS pg_catalog.text CHECK (traps.take('domain text'));
CREATE DOMAIN public.name AS pg_catalog.name CHECK (traps.take('domain name'));
RESET ROLE;
CREATE EXTENSION amqp_outbox SCHEMA public;
-- nothing of the extension depends on them (what is pinned has no dependency)
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) AS object,
	pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid) AS of_a_stranger
FROM pg_depend d
WHERE d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass)
AND (pg_identify_object(d.refclassid, d.refobjid, 0)).schema = 'public'
AND pg_describe_object(d.classid, d.objid, d.objsubid) LIKE '%amqp_outbox.%'
AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = d.refclassid
	AND e.objid = d.refobjid AND e.deptype = 'e')
ORDER BY 1, 2;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
GRANT USAGE ON FOREIGN SERVER mes TO regress_outbox_plain;
ALTER SERVER mes OPTIONS (ADD paused 'true');
SELECT amqp_publish('', 'q', 'x') IS NOT NULL AS published;
SELECT amqp_outbox.declare_queue('mes', 'q'), amqp_outbox.bind_queue('mes', 'q', 'e');
SELECT count(*) > 0 AS health FROM amqp_outbox.health;
SELECT server FROM amqp_outbox.server_status;
SELECT kind, name FROM amqp_outbox.topology ORDER BY 1;
SELECT status FROM amqp_outbox.message;
SELECT amqp_inbox_accept('c', 'm'), amqp_outbox.prune_inbox();
TABLE taken;

--
-- In the path of those who publish
--
SET ROLE regress_outbox_mallory;
DO $$
DECLARE
	type regtype;
	operator text;
BEGIN
	FOREACH type IN ARRAY ARRAY['int4', 'int8', 'text', 'name', 'timestamptz', 'oid', 'uuid',
		'boolean', 'jsonb']::regtype[] LOOP
		EXECUTE format('CREATE FUNCTION traps.compare(%s, %1$s) RETURNS boolean
			LANGUAGE sql AS $f$ SELECT traps.take(%L) $f$', type, 'operator of ' || type);
		FOREACH operator IN ARRAY ARRAY['=', '<>', '<', '<=', '>', '>='] LOOP
			EXECUTE format('CREATE OPERATOR traps.%s (LEFTARG = %s, RIGHTARG = %2$s,
				FUNCTION = traps.compare)', operator, type);
		END LOOP;
	END LOOP;
END $$;
CREATE FUNCTION traps.now() RETURNS timestamptz
	LANGUAGE sql AS $$ SELECT CASE WHEN traps.take('now') THEN pg_catalog.now() END $$;
CREATE FUNCTION traps.gen_random_uuid() RETURNS uuid
	LANGUAGE sql AS $$ SELECT CASE WHEN traps.take('gen_random_uuid') THEN pg_catalog.gen_random_uuid() END $$;
CREATE FUNCTION traps.hashtextextended(text, bigint) RETURNS bigint
	LANGUAGE sql AS $$ SELECT traps.take('hashtextextended')::integer::bigint $$;
CREATE DOMAIN traps.text AS pg_catalog.text CHECK (traps.take('domain'));
CREATE TABLE traps.idempotency_key (k int);
GRANT ALL ON ALL FUNCTIONS IN SCHEMA traps TO PUBLIC;
RESET ROLE;
CREATE FUNCTION use_everything() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	id pg_catalog.text := public.amqp_publish('', 'q', 'x');
	again pg_catalog.text;
BEGIN
	PERFORM public.amqp_publish('', 'q', 'x', idempotency_key => 'k');
	PERFORM public.amqp_publish('', 'q', 'x', idempotency_key => 'k');
	INSERT INTO amqp_outbox.message (exchange, routing_key, body_text) VALUES ('', 'q', 'x');
	PERFORM amqp_outbox.declare_exchange('mes', 'e');
	PERFORM amqp_outbox.declare_queue('mes', 'q2');
	PERFORM amqp_outbox.bind_queue('mes', 'q2', 'e');
	PERFORM amqp_outbox.unbind_queue('mes', 'q2', 'e');
	PERFORM amqp_outbox.undeclare_queue('mes', 'q2');
	PERFORM amqp_outbox.requeue('mes'::pg_catalog.name);
	PERFORM amqp_outbox.discard('mes'::pg_catalog.name);
	PERFORM amqp_outbox.replay('mes', id => 1);
	PERFORM amqp_outbox.resume('mes');
	PERFORM amqp_outbox.pause('mes');
	PERFORM public.amqp_inbox_accept('c', id);
	PERFORM amqp_outbox.prune_inbox();
	PERFORM amqp_outbox.doctor('mes');
	RETURN 'done';
END;
$$;
SET search_path = traps, pg_catalog, public;
SELECT public.use_everything();
SELECT public.amqp_wait_for_confirm(
	(SELECT message_id FROM amqp_outbox.outbox ORDER BY id LIMIT 1), '0');
SELECT server FROM amqp_outbox.server_status;
SELECT * FROM amqp_outbox.health LIMIT 0;
-- the plans that are kept are made again for another path
SET search_path = public;
SELECT use_everything();
SET search_path = traps, pg_catalog, public;
SELECT public.use_everything();
-- temporary objects come first if nobody says otherwise
RESET search_path;
CREATE TEMP TABLE idempotency_key (k int);
CREATE TEMP TABLE server_key (k int);
CREATE TEMP TABLE pg_class (k int);
CREATE TEMP TABLE pg_foreign_server (k int);
SELECT use_everything();
DROP TABLE pg_temp.pg_class, pg_temp.pg_foreign_server;
TABLE taken;
-- the traps do work
SET search_path = traps, pg_catalog, public;
SELECT 1 = 1 AS caught;
RESET search_path;
SELECT how FROM taken;
DELETE FROM traps.taken;

--
-- What a row's types do runs as who changes the row, and as nobody else
--
SET ROLE regress_outbox_mallory;
CREATE TYPE traps.colour AS ENUM ('red');
CREATE FUNCTION traps.as_json(traps.colour) RETURNS json
	LANGUAGE sql AS $$ SELECT pg_catalog.to_json(traps.take('cast')) $$;
CREATE CAST (traps.colour AS json) WITH FUNCTION traps.as_json;
CREATE TABLE public.paint (colour traps.colour);
GRANT ALL ON paint TO PUBLIC;
CREATE TRIGGER publish AFTER INSERT ON public.paint
	FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', 'q');
SET ROLE regress_outbox_plain;
INSERT INTO paint VALUES ('red');
RESET ROLE;
TABLE taken;
DELETE FROM traps.taken;

--
-- With rights that were given on the tables
--
GRANT ALL ON ALL TABLES IN SCHEMA amqp_outbox TO regress_outbox_mallory;
SET ROLE regress_outbox_mallory;
\set VERBOSITY default
CREATE TRIGGER mallory BEFORE INSERT ON amqp_outbox.idempotency_key
	FOR EACH ROW EXECUTE FUNCTION traps.fire();
\set VERBOSITY terse
CREATE TRIGGER mallory INSTEAD OF INSERT ON amqp_outbox.message
	FOR EACH ROW EXECUTE FUNCTION traps.fire();
CREATE OR REPLACE TRIGGER ignore_replicated BEFORE INSERT ON amqp_outbox.idempotency_key
	FOR EACH ROW EXECUTE FUNCTION traps.fire();
CREATE TABLE reference (k int REFERENCES amqp_outbox.server_key ON DELETE CASCADE);
CREATE CONSTRAINT TRIGGER mallory AFTER INSERT ON amqp_outbox.inbox
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION traps.fire();
-- these need the table's owner
CREATE RULE mallory AS ON INSERT TO amqp_outbox.idempotency_key
	DO ALSO SELECT traps.take('rule');
CREATE POLICY mallory ON amqp_outbox.idempotency_key USING (traps.take('policy'));
CREATE INDEX ON amqp_outbox.idempotency_key ((traps.take(key)));
CREATE STATISTICS traps.mallory ON (traps.take(key)), message_id FROM amqp_outbox.idempotency_key;
CREATE TABLE child () INHERITS (amqp_outbox.outbox);
ALTER TABLE amqp_outbox.idempotency_key ALTER message_id SET DEFAULT traps.take('default')::text;
ALTER TABLE amqp_outbox.idempotency_key ADD CHECK (traps.take('check'));
ALTER TABLE amqp_outbox.idempotency_key ADD g boolean GENERATED ALWAYS AS (traps.take('generated')) STORED;
CREATE OR REPLACE VIEW amqp_outbox.stored_message AS SELECT traps.take('view');
CREATE OR REPLACE FUNCTION amqp_outbox.prune_inbox(bigint) RETURNS bigint
	LANGUAGE sql AS $$ SELECT 1::bigint $$;
CREATE CAST (amqp_outbox.dead_reason AS text) WITH INOUT AS IMPLICIT;
CREATE FUNCTION amqp_outbox.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT pg_catalog.now() $$;
RESET ROLE;
REVOKE ALL ON ALL TABLES IN SCHEMA amqp_outbox FROM regress_outbox_mallory;
-- the owner himself is not hindered
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER own BEFORE INSERT ON amqp_outbox.idempotency_key
	FOR EACH ROW EXECUTE FUNCTION nothing();
DROP TRIGGER own ON amqp_outbox.idempotency_key;

-- whoever owns one of the tables has those of all others who use it
ALTER TABLE amqp_outbox.idempotency_key OWNER TO regress_outbox_mallory;
SET ROLE regress_outbox_mallory;
CREATE TRIGGER mallory BEFORE INSERT ON amqp_outbox.idempotency_key
	FOR EACH ROW EXECUTE FUNCTION traps.fire();
SET ROLE regress_outbox_plain;
\set VERBOSITY default
SELECT amqp_publish('', 'q', 'x', idempotency_key => 'l');
\set VERBOSITY terse
RESET ROLE;
SELECT amqp_outbox.declare_queue('mes', 'q3');
SELECT amqp_outbox.requeue('mes');
DROP TRIGGER mallory ON amqp_outbox.idempotency_key;
ALTER TABLE amqp_outbox.idempotency_key OWNER TO CURRENT_USER;
ALTER VIEW amqp_outbox.stored_message OWNER TO regress_outbox_mallory;
SELECT amqp_outbox.replay('mes', id => 1);
ALTER VIEW amqp_outbox.stored_message OWNER TO CURRENT_USER;
SELECT amqp_outbox.replay('mes', id => 1);
SET ROLE regress_outbox_plain;
SELECT amqp_publish('', 'q', 'x', idempotency_key => 'l') IS NOT NULL AS published;
RESET ROLE;
TABLE taken;

--
-- The name of a server that was dropped, to have its messages sent to a broker
-- of one's own
--
CREATE SERVER erp FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1', paused 'true');
SELECT amqp_publish('', 'q', 'a secret', server => 'erp', message_id => 'former') IS NOT NULL AS published;
WITH given_up AS (DELETE FROM amqp_outbox.outbox WHERE message_id = 'former' RETURNING *)
INSERT INTO amqp_outbox.dead_letter_item SELECT *, 'nacked', 1, now(), now(), false, NULL, NULL, false
	FROM given_up;
DROP SERVER erp;
GRANT USAGE ON FOREIGN DATA WRAPPER amqp_outbox TO regress_outbox_mallory;
SET ROLE regress_outbox_mallory;
CREATE SERVER IF NOT EXISTS mes FOREIGN DATA WRAPPER amqp_outbox;
CREATE SERVER own FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:2', paused 'true');
\set VERBOSITY default
CREATE SERVER erp FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:2');
\set VERBOSITY terse
ALTER SERVER own RENAME TO erp;
SELECT amqp_publish('', 'q', 'x', server => 'own') IS NOT NULL AS published;
ALTER SERVER own RENAME TO erp;
SELECT requeued_message_id FROM amqp_outbox.requeue();
-- a superuser may, and whoever he gives it to
RESET ROLE;
CREATE SERVER erp FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1', paused 'true');
ALTER SERVER erp OWNER TO regress_outbox_mallory;
SET ROLE regress_outbox_mallory;
SELECT discarded_message_id FROM amqp_outbox.discard();
RESET ROLE;

--
-- Keeping the tables to oneself
--
SET ROLE regress_outbox_plain;
BEGIN;
LOCK TABLE amqp_outbox.message IN ROW EXCLUSIVE MODE;
ROLLBACK;
BEGIN;
LOCK TABLE amqp_outbox.topology IN ROW EXCLUSIVE MODE;
ROLLBACK;
RESET ROLE;

--
-- Getting rid of them
--
SET ROLE regress_outbox_mallory;
DROP EXTENSION amqp_outbox CASCADE;
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = error;
DROP SCHEMA public CASCADE;
RESET ROLE;
SELECT count(*) FROM amqp_outbox.message WHERE status = 'pending';

\c :old_database
DROP DATABASE regress_outbox_takeover WITH (FORCE);
DROP ROLE regress_outbox_mallory, regress_outbox_plain;
