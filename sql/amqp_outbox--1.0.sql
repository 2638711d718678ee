/* amqp_outbox--1.0.sql */

-- complain if the script is sourced in psql instead of CREATE EXTENSION
\echo Use "CREATE EXTENSION amqp_outbox" to load this file. \quit

-- What is made here runs for others, with their rights or with ours.  Whoever
-- may create objects in the schema that CREATE EXTENSION names (the owner of a
-- database in public) must not have a say in what its names and operators mean.
SET LOCAL search_path = pg_catalog, pg_temp;

--
-- What applications call lives in the schema that CREATE EXTENSION names;
-- everything else lives here.
--
CREATE SCHEMA amqp_outbox;
COMMENT ON SCHEMA amqp_outbox IS
'tables, views and operators'' functions of the extension amqp_outbox';

--
-- Servers
--
CREATE FUNCTION amqp_outbox.validator(options text[], catalog oid)
RETURNS void
LANGUAGE C STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'outbox_sql_validator';
COMMENT ON FUNCTION amqp_outbox.validator(text[], oid) IS
'checks the options of servers and user mappings of amqp_outbox';

CREATE FOREIGN DATA WRAPPER amqp_outbox
	NO HANDLER
	VALIDATOR amqp_outbox.validator;
COMMENT ON FOREIGN DATA WRAPPER amqp_outbox IS
'AMQP brokers to which amqp_outbox publishes';

--
-- Storage
--
CREATE TABLE amqp_outbox.identity (
	system_identifier bigint NOT NULL,
	database_oid oid NOT NULL,
	adopted boolean NOT NULL
);
COMMENT ON TABLE amqp_outbox.identity IS
'the cluster and database that these tables belong to; a copy elsewhere does not publish before it is adopted';

CREATE TABLE amqp_outbox.server_key (
	server_key integer PRIMARY KEY,
	server name NOT NULL UNIQUE
);
COMMENT ON TABLE amqp_outbox.server_key IS
'stable numbers of the servers that messages were published to';

-- The order and types of these columns are known to src/catalog.h.  Most messages
-- end with one of the first eight: a row without nulls among eight columns has no
-- bitmap of them, which is eight bytes less in the table and in the WAL.
CREATE TABLE amqp_outbox.outbox (
	server_key integer NOT NULL,
	id bigint NOT NULL,
	message_id text NOT NULL,
	enqueued_at timestamptz NOT NULL,
	exchange text NOT NULL,
	routing_key text NOT NULL,
	body bytea NOT NULL,
	content_type text,
	headers jsonb,
	content_encoding text,
	persistent boolean,
	priority smallint,
	correlation_id text,
	reply_to text,
	expiration_ms bigint,
	message_timestamp timestamptz,
	type text,
	user_id text,
	app_id text,
	mandatory boolean,
	ordering_key text,
	expires_at timestamptz,
	published_by text,
	PRIMARY KEY (server_key, id),
	CONSTRAINT leaves_only CHECK (false) NO INHERIT
);
COMMENT ON COLUMN amqp_outbox.outbox.published_by IS
'the role; null if roles had no limit of their backlog';
COMMENT ON TABLE amqp_outbox.outbox IS
'committed messages in commit order; append-only; rows stand in its leaves';

CREATE TABLE amqp_outbox.receipt (
	server_key integer NOT NULL,
	through_id bigint NOT NULL,
	receipt_no bigint NOT NULL,
	settled_at timestamptz NOT NULL,
	delivered bigint NOT NULL,
	returned bigint NOT NULL,
	rejected bigint NOT NULL,
	accepted bigint NOT NULL,
	clean boolean NOT NULL,
	incarnation bigint NOT NULL,
	PRIMARY KEY (server_key, through_id, receipt_no),
	CONSTRAINT leaves_only CHECK (false) NO INHERIT
);
COMMENT ON TABLE amqp_outbox.receipt IS
'each row: this server has settled everything through this id; counts are totals so far; clean: its worker ended and left nothing in doubt, as far as this cluster, database and timeline of the WAL (incarnation) can know; append-only; rows stand in its leaves';

CREATE TABLE amqp_outbox.deferred (
	LIKE amqp_outbox.outbox,
	due_at timestamptz NOT NULL,
	attempts integer NOT NULL,
	first_attempt_at timestamptz,
	last_attempt_at timestamptz,
	possible_duplicate boolean NOT NULL,
	reply_code integer,
	last_error text,
	PRIMARY KEY (server_key, id)
);
CREATE INDEX deferred_due ON amqp_outbox.deferred (server_key, due_at, id);
CREATE INDEX deferred_key ON amqp_outbox.deferred (server_key, ordering_key, id)
	WHERE ordering_key IS NOT NULL;
COMMENT ON TABLE amqp_outbox.deferred IS
'messages with a clock of their own: waiting for their next attempt, or behind another one of their ordering key';
COMMENT ON COLUMN amqp_outbox.deferred.due_at IS
'infinity: when the earlier messages of its ordering key are delivered';

CREATE TYPE amqp_outbox.dead_reason AS ENUM ('unroutable', 'nacked',
	'no exchange', 'access refused', 'too large', 'malformed', 'expired');
COMMENT ON TYPE amqp_outbox.dead_reason IS
'why a message was given up';

CREATE TABLE amqp_outbox.dead_letter_item (
	LIKE amqp_outbox.outbox,
	reason amqp_outbox.dead_reason NOT NULL,
	attempts integer NOT NULL,
	first_attempt_at timestamptz NOT NULL,
	last_attempt_at timestamptz NOT NULL,
	possible_duplicate boolean NOT NULL,
	reply_code integer,
	last_error text,
	holds_key boolean NOT NULL,
	PRIMARY KEY (server_key, id)
);
CREATE INDEX dead_letter_item_key ON amqp_outbox.dead_letter_item (server_key, ordering_key, id)
	WHERE holds_key;
COMMENT ON COLUMN amqp_outbox.dead_letter_item.holds_key IS
'later messages of its ordering key wait until it is requeued or discarded';
COMMENT ON TABLE amqp_outbox.dead_letter_item IS
'messages given up, see amqp_outbox.dead_letter';

CREATE TABLE amqp_outbox.idempotency_key (
	server_key integer NOT NULL,
	key text COLLATE "C" NOT NULL,
	message_id text NOT NULL,
	claimed_at timestamptz NOT NULL,
	PRIMARY KEY (server_key, key)
);
CREATE INDEX idempotency_key_claimed_at
	ON amqp_outbox.idempotency_key (server_key, claimed_at);
COMMENT ON TABLE amqp_outbox.idempotency_key IS
'idempotency keys that messages were published with, each with the first message''s id';

CREATE TABLE amqp_outbox.inbox (
	consumer text COLLATE "C" NOT NULL,
	message_id text COLLATE "C" NOT NULL,
	accepted_at timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (consumer, message_id)
);
CREATE INDEX inbox_accepted_at ON amqp_outbox.inbox (accepted_at);
COMMENT ON TABLE amqp_outbox.inbox IS
'messages that consumers have accepted: see amqp_inbox_accept()';

CREATE TABLE amqp_outbox.late (
	LIKE amqp_outbox.outbox,
	delivered_at timestamptz,
	attempts integer NOT NULL,
	PRIMARY KEY (server_key, id),
	CONSTRAINT leaves_only CHECK (false) NO INHERIT
);
COMMENT ON TABLE amqp_outbox.late IS
'deferred messages that were delivered in the end, and dead letters that were discarded (delivered_at is null); append-only; rows stand in its leaves';

--
-- Topology: what the broker shall have.  The worker of a server asserts it at
-- every connection, and what has changed at once; see the functions below.
--
CREATE TYPE amqp_outbox.topology_kind AS ENUM ('exchange', 'queue',
	'exchange binding', 'queue binding');
COMMENT ON TYPE amqp_outbox.topology_kind IS
'kinds of amqp_outbox.topology, in the order in which they are asserted';

CREATE TABLE amqp_outbox.topology_item (
	item_id uuid PRIMARY KEY,
	server_key integer NOT NULL,
	kind amqp_outbox.topology_kind NOT NULL,
	name text NOT NULL,
	source text NOT NULL,
	routing_key text NOT NULL,
	type text,
	durable boolean NOT NULL,
	auto_delete boolean NOT NULL,
	internal boolean NOT NULL,
	arguments jsonb NOT NULL,
	wanted boolean NOT NULL,
	if_unused boolean NOT NULL,
	if_empty boolean NOT NULL
);
-- The arguments of a binding (which has a source) are part of what it is; they
-- may be too long for an index.  As text, because 1 and 1.0 are equal for jsonb
-- and differ in AMQP.
CREATE UNIQUE INDEX topology_item_identity ON amqp_outbox.topology_item
	(server_key, kind, name, source, routing_key,
	(CASE WHEN source = '' THEN 0
		ELSE hashtextextended(arguments::text COLLATE "C", 0) END));
COMMENT ON TABLE amqp_outbox.topology_item IS
'what the brokers shall have, see amqp_outbox.topology; a definition that changes gets another item_id';
COMMENT ON COLUMN amqp_outbox.topology_item.wanted IS
'false: it is to be deleted at the broker, and then here';

CREATE TABLE amqp_outbox.topology_state (
	item_id uuid PRIMARY KEY,
	asserted boolean NOT NULL,
	since timestamptz NOT NULL,
	reply_code integer,
	last_error text,
	closes_connection boolean NOT NULL
);
COMMENT ON TABLE amqp_outbox.topology_state IS
'what the broker last said to an item of amqp_outbox.topology_item; not dumped: it is of this database and its broker';
COMMENT ON COLUMN amqp_outbox.topology_state.closes_connection IS
'the broker closed the connection because of it, so it is not asserted again before somebody changes something';

CREATE TABLE amqp_outbox.allowed_item (
	server_key integer NOT NULL,
	role regrole NOT NULL,
	exchange text COLLATE "C" NOT NULL,
	routing_key text COLLATE "C" NOT NULL,
	PRIMARY KEY (server_key, role, exchange, routing_key)
);
COMMENT ON TABLE amqp_outbox.allowed_item IS
'allow lists of servers, see amqp_outbox.allowed';
COMMENT ON COLUMN amqp_outbox.allowed_item.role IS
'0: all roles';

CREATE FUNCTION amqp_outbox.allowed_changed()
RETURNS trigger LANGUAGE C
AS 'MODULE_PATHNAME', 'outbox_sql_allowed_changed';
COMMENT ON FUNCTION amqp_outbox.allowed_changed() IS
'lets sessions look at amqp_outbox.allowed_item anew';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE
	ON amqp_outbox.allowed_item
	FOR EACH STATEMENT EXECUTE FUNCTION amqp_outbox.allowed_changed();
ALTER TABLE amqp_outbox.allowed_item ENABLE ALWAYS TRIGGER changed;

--
-- The ring: what is only appended to stands in leaves, of which one is
-- written; the oldest is emptied as a whole when nobody needs it any more (see
-- src/rotation.c).  Their number is known to src/catalog.h.  The parents are
-- empty; their keys let the planner go through all leaves in the order of the key.
--
DO $$
BEGIN
	FOR leaf IN 0 .. 3 LOOP
		EXECUTE pg_catalog.format('
			CREATE TABLE amqp_outbox.outbox_%1$s (PRIMARY KEY (server_key, id))
				INHERITS (amqp_outbox.outbox)
				WITH (autovacuum_vacuum_insert_threshold = -1);
			CREATE TABLE amqp_outbox.receipt_%1$s
				(PRIMARY KEY (server_key, through_id, receipt_no))
				INHERITS (amqp_outbox.receipt)
				WITH (autovacuum_vacuum_insert_threshold = -1);
			CREATE TABLE amqp_outbox.late_%1$s (PRIMARY KEY (server_key, id))
				INHERITS (amqp_outbox.late)
				WITH (autovacuum_vacuum_insert_threshold = -1);
			COMMENT ON TABLE amqp_outbox.outbox_%1$s IS ''leaf of amqp_outbox.outbox'';
			COMMENT ON TABLE amqp_outbox.receipt_%1$s IS ''leaf of amqp_outbox.receipt'';
			COMMENT ON TABLE amqp_outbox.late_%1$s IS ''leaf of amqp_outbox.late''', leaf);
	END LOOP;
END $$;

-- What is settled is not dumped with its body: it must not be delivered twice.
-- Note that pg_dump --schema-only dumps these rows too.
SELECT pg_catalog.pg_extension_config_dump('amqp_outbox.identity', '');
SELECT pg_catalog.pg_extension_config_dump('amqp_outbox.server_key', '');
SELECT pg_catalog.pg_extension_config_dump('amqp_outbox.deferred', '');
SELECT pg_catalog.pg_extension_config_dump('amqp_outbox.dead_letter_item', '');
SELECT pg_catalog.pg_extension_config_dump('amqp_outbox.idempotency_key', '');
SELECT pg_catalog.pg_extension_config_dump('amqp_outbox.inbox', '');
SELECT pg_catalog.pg_extension_config_dump('amqp_outbox.topology_item', '');
-- without those of roles that were dropped
SELECT pg_catalog.pg_extension_config_dump('amqp_outbox.allowed_item',
	'WHERE role = 0 OR EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = role)');
DO $$
BEGIN
	FOR leaf IN 0 .. 3 LOOP
		PERFORM pg_catalog.pg_extension_config_dump(
			pg_catalog.format('amqp_outbox.receipt_%s', leaf)::pg_catalog.regclass, '');
		PERFORM pg_catalog.pg_extension_config_dump(
			pg_catalog.format('amqp_outbox.outbox_%s', leaf)::pg_catalog.regclass,
			pg_catalog.format('WHERE NOT EXISTS (SELECT FROM amqp_outbox.receipt r
				WHERE r.server_key OPERATOR(pg_catalog.=) outbox_%1$s.server_key
				AND r.through_id OPERATOR(pg_catalog.>=) outbox_%1$s.id)', leaf));
	END LOOP;
END $$;

-- What logical replication applies to these tables is another database's.
CREATE FUNCTION amqp_outbox.ignore_replicated()
RETURNS trigger LANGUAGE C
AS 'MODULE_PATHNAME', 'outbox_sql_ignore_replicated';
COMMENT ON FUNCTION amqp_outbox.ignore_replicated() IS
'drops rows that logical replication would write into the tables of amqp_outbox, and refuses a TRUNCATE by it';

DO $$
DECLARE
	t pg_catalog.regclass;
BEGIN
	FOR t IN SELECT c.oid FROM pg_catalog.pg_class c
		WHERE c.relkind OPERATOR(pg_catalog.=) 'r'
		AND c.relnamespace OPERATOR(pg_catalog.=) 'amqp_outbox'::pg_catalog.regnamespace
	LOOP
		EXECUTE pg_catalog.format('CREATE TRIGGER ignore_replicated
			BEFORE INSERT OR UPDATE OR DELETE ON %s
			FOR EACH ROW EXECUTE FUNCTION amqp_outbox.ignore_replicated()', t);
		EXECUTE pg_catalog.format('CREATE TRIGGER refuse_replicated
			BEFORE TRUNCATE ON %s
			FOR EACH STATEMENT EXECUTE FUNCTION amqp_outbox.ignore_replicated()', t);
		EXECUTE pg_catalog.format('ALTER TABLE %s
			ENABLE REPLICA TRIGGER ignore_replicated,
			ENABLE REPLICA TRIGGER refuse_replicated', t);
	END LOOP;
END $$;

--
-- Publishing
--
-- Arguments after the body are optional and given by name:
--
--	headers				json object: the AMQP header table, types kept
--	content_type		default by the type of body: application/json,
--						text/plain, application/octet-stream
--	content_encoding	default UTF-8 for a body of type text
--	persistent			delivery mode 2, else 1; default: the server's option
--	priority			0 to 255
--	correlation_id, reply_to, type, user_id, app_id
--						AMQP properties, at most 255 bytes
--	expiration			the message's time to live at the broker
--	message_id			default: a UUID of version 7
--	message_timestamp	AMQP property timestamp, whole seconds
--	mandatory			an unroutable message comes back and is tried again;
--						default: the server's option
--	server				default: amqp_outbox.default_server, else the only one
--	ordering_key		at most 255 bytes; messages of the same key and server
--						do not overtake each other, whatever fails; default: none
--	delay, deliver_at	not to be sent before so long from now, or before that
--						time; later messages of its ordering key wait for it
--	ttl					not to be sent later than so long from now, or from
--						deliver_at: then it is a dead letter, expired; what
--						remains when it is sent is its expiration at the broker
--	idempotency_key		at most 255 bytes; if a message to this server had the
--						same key within the server's idempotency_retention,
--						also in a transaction that is still open and will
--						commit, nothing is published
--	traceparent, tracestate
--						W3C trace context, as headers; default:
--						amqp_outbox.traceparent and amqp_outbox.tracestate
--
-- Returns the message id, or the first message's for an idempotency key that
-- was used before.  Errors: 22004 for a null, 22001 and 22023 for what
-- AMQP does not allow, 22008 and 22015 for times, 54000 for what is too large,
-- 42704 for an unknown server, 42501 without USAGE on it, 53400 when a limit of
-- the server's backlog is reached, 25006 in a read-only transaction.
--
CREATE FUNCTION @extschema@.amqp_publish(exchange text, routing_key text, body jsonb,
	headers jsonb DEFAULT NULL, content_type text DEFAULT NULL,
	content_encoding text DEFAULT NULL, persistent boolean DEFAULT NULL,
	priority integer DEFAULT NULL, correlation_id text DEFAULT NULL,
	reply_to text DEFAULT NULL, expiration interval DEFAULT NULL,
	message_id text DEFAULT NULL, message_timestamp timestamptz DEFAULT NULL,
	type text DEFAULT NULL, user_id text DEFAULT NULL,
	app_id text DEFAULT NULL, mandatory boolean DEFAULT NULL,
	server text DEFAULT NULL, ordering_key text DEFAULT NULL,
	delay interval DEFAULT NULL, deliver_at timestamptz DEFAULT NULL,
	ttl interval DEFAULT NULL, idempotency_key text DEFAULT NULL,
	traceparent text DEFAULT NULL, tracestate text DEFAULT NULL)
RETURNS text LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_sql_publish_jsonb';

CREATE FUNCTION @extschema@.amqp_publish(exchange text, routing_key text, body json,
	headers jsonb DEFAULT NULL, content_type text DEFAULT NULL,
	content_encoding text DEFAULT NULL, persistent boolean DEFAULT NULL,
	priority integer DEFAULT NULL, correlation_id text DEFAULT NULL,
	reply_to text DEFAULT NULL, expiration interval DEFAULT NULL,
	message_id text DEFAULT NULL, message_timestamp timestamptz DEFAULT NULL,
	type text DEFAULT NULL, user_id text DEFAULT NULL,
	app_id text DEFAULT NULL, mandatory boolean DEFAULT NULL,
	server text DEFAULT NULL, ordering_key text DEFAULT NULL,
	delay interval DEFAULT NULL, deliver_at timestamptz DEFAULT NULL,
	ttl interval DEFAULT NULL, idempotency_key text DEFAULT NULL,
	traceparent text DEFAULT NULL, tracestate text DEFAULT NULL)
RETURNS text LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_sql_publish_json';

CREATE FUNCTION @extschema@.amqp_publish(exchange text, routing_key text, body text,
	headers jsonb DEFAULT NULL, content_type text DEFAULT NULL,
	content_encoding text DEFAULT NULL, persistent boolean DEFAULT NULL,
	priority integer DEFAULT NULL, correlation_id text DEFAULT NULL,
	reply_to text DEFAULT NULL, expiration interval DEFAULT NULL,
	message_id text DEFAULT NULL, message_timestamp timestamptz DEFAULT NULL,
	type text DEFAULT NULL, user_id text DEFAULT NULL,
	app_id text DEFAULT NULL, mandatory boolean DEFAULT NULL,
	server text DEFAULT NULL, ordering_key text DEFAULT NULL,
	delay interval DEFAULT NULL, deliver_at timestamptz DEFAULT NULL,
	ttl interval DEFAULT NULL, idempotency_key text DEFAULT NULL,
	traceparent text DEFAULT NULL, tracestate text DEFAULT NULL)
RETURNS text LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_sql_publish_text';

CREATE FUNCTION @extschema@.amqp_publish(exchange text, routing_key text, body bytea,
	headers jsonb DEFAULT NULL, content_type text DEFAULT NULL,
	content_encoding text DEFAULT NULL, persistent boolean DEFAULT NULL,
	priority integer DEFAULT NULL, correlation_id text DEFAULT NULL,
	reply_to text DEFAULT NULL, expiration interval DEFAULT NULL,
	message_id text DEFAULT NULL, message_timestamp timestamptz DEFAULT NULL,
	type text DEFAULT NULL, user_id text DEFAULT NULL,
	app_id text DEFAULT NULL, mandatory boolean DEFAULT NULL,
	server text DEFAULT NULL, ordering_key text DEFAULT NULL,
	delay interval DEFAULT NULL, deliver_at timestamptz DEFAULT NULL,
	ttl interval DEFAULT NULL, idempotency_key text DEFAULT NULL,
	traceparent text DEFAULT NULL, tracestate text DEFAULT NULL)
RETURNS text LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_sql_publish_bytea';

DO $$
DECLARE
	f pg_catalog.regprocedure;
BEGIN
	FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p
		WHERE p.proname OPERATOR(pg_catalog.=) 'amqp_publish'
		AND p.pronamespace OPERATOR(pg_catalog.=) '@extschema@'::pg_catalog.regnamespace
	LOOP
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION %s IS %L', f,
			'publish a message to an AMQP broker when this transaction commits; returns its message id');
	END LOOP;
END $$;

--
-- Publishing from triggers
--
--	CREATE TRIGGER ... AFTER INSERT OR UPDATE OR DELETE ON orders
--		FOR EACH ROW EXECUTE FUNCTION
--		amqp_publish_row('exchange', 'plant.{plant_id}.order.{op}', 'option=value', ...)
--
-- publishes a message for each row that was changed.  FOR EACH STATEMENT it
-- does so in one call; then it needs transition tables: REFERENCING NEW TABLE
-- AS ... for INSERT and UPDATE, OLD TABLE AS ... for DELETE, both for an UPDATE
-- with body=envelope, unchanged=skip or {old.column}.  A TRUNCATE is one
-- message, without a row.
--
-- Exchange, routing key, type, source and subject are templates:
--
--	{column}			of the new row, at DELETE of the old one; names are
--						written as in SQL, in double quotes where SQL needs them
--	{old.column}, {new.column}
--						of that row; null if there is none
--	{op}				insert, update, delete or truncate
--	{schema}, {table}	of the table that the row is in
--	{{ and }}			braces
--
-- A value is the text that its type's output function gives, with DateStyle
-- ISO, IntervalStyle postgres, bytea_output hex, and the session's TimeZone.  A
-- null is the word null; an empty string stays empty; in a routing key a dot in
-- a value becomes "_", so that a value is one word.
--
-- Options:
--
--	body				row (default): the row as a JSON object, at DELETE the old
--						one; envelope: an object of op, schema, table, old, new,
--						changed (columns whose stored values an UPDATE changed),
--						txid (a string, as pg_current_xact_id()) and time
--						(statement_timestamp(), in UTC); none: no content.  A row
--						that there is not is null
--	columns, except		the columns in the body, or those that are not: names,
--						separated by commas; default: all
--	numeric				number (default), or text: numeric as JSON strings
--	bytea				hex (default): \x and hex digits; or base64
--	key					columns, separated by commas, that make the ordering key:
--						the text of one as it is; the texts of several joined by
--						":", with a backslash before each ":" and backslash in
--						them, and \N for a null; no key if all are null; default:
--						none
--	null_word			in templates instead of a null; default: null
--	empty_word			in templates instead of an empty string; default: empty
--	dots				in values in the routing key: replace (default) or keep
--	unchanged			what becomes of an UPDATE that changes nothing in the body,
--						the templates and the key: send (default) or skip
--	publish_via_partition_root
--						true: {schema}, {table} and whatever else names the table
--						name the topmost partitioned table, not the partition that
--						the row is in; default: false
--	cloudevents			none (default); binary: the message is a CloudEvent 1.0
--						with its attributes in headers cloudEvents_*; structured:
--						attributes and data are one JSON object
--	source, subject		attributes of the CloudEvent; in source, values are
--						percent-encoded; defaults: /database/schema/table, and the
--						ordering key.  (Its id is the message id, its time as above.)
--	type				AMQP property and attribute of the CloudEvent; default:
--						none, and schema.table.op
--	server, headers, content_type, app_id, persistent, mandatory, priority,
--	expiration			as the arguments of amqp_publish(); headers: a JSON object
--
-- In JSON, values are what to_json() makes of them (but for numeric and bytea
-- if asked), with the settings above.  Virtual generated columns are left out:
-- triggers do not see their values.
--
-- Errors of CREATE TRIGGER, and when it fires, if they come about later: 22023
-- for arguments; 42703 for a column that the table does not have; 39P01 for a
-- trigger that is not AFTER the event or lacks a transition table.  Errors that
-- fail the statement which fires it: 22001 for a routing key, or other property,
-- of more than 255 bytes; those of amqp_publish().  The right to publish is
-- USAGE on the server, which whoever changes the table needs.
--
CREATE FUNCTION @extschema@.amqp_publish_row()
RETURNS trigger LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_sql_publish_row';
COMMENT ON FUNCTION @extschema@.amqp_publish_row() IS
'trigger function: publish a message for each row that was changed; its arguments are exchange, routing key and options, ''name=value'' each';

--
-- Waiting for the broker
--
-- True when the broker has confirmed the message, false if that has not come by
-- the end of the timeout (null: no end).  Errors: HV000 if it is a dead letter,
-- with the broker's words, or was discarded; 55000 if the own transaction has
-- published it and not committed yet; 42704 if it is not known (any more);
-- 42501 without USAGE on its server; 22004 for a null.
--
-- Finding one of the last 4096 messages of the own session takes constant time;
-- for others the tables are searched, about 0.15 s for each million messages
-- that are stored.
--
CREATE FUNCTION @extschema@.amqp_wait_for_confirm(message_id text,
	timeout interval DEFAULT '30 seconds')
RETURNS boolean LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_sql_wait_for_confirm';
COMMENT ON FUNCTION @extschema@.amqp_wait_for_confirm(text, interval) IS
'wait until the broker has confirmed a message that was published and committed';

--
-- The inbox: the other end, in whatever database consumes
--
-- amqp_inbox_accept() is true once, and only once, for a consumer and a message
-- id among all transactions that commit: do the message's work in the same
-- transaction if it is true, and only acknowledge it to the broker if it is
-- false.  While another transaction that has accepted it is open, this waits
-- for its end.  Errors: 22004 for a null, 22001 for more than 255 bytes, 40001
-- if the isolation level does not let it see who accepted it.
--
-- What is older than amqp_outbox.inbox_retention may be removed by later calls,
-- a few rows at a time; amqp_outbox.prune_inbox() removes all of it.
--
CREATE FUNCTION amqp_outbox.prune_inbox(max_rows bigint DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	n bigint;
BEGIN
	DELETE FROM amqp_outbox.inbox i
		WHERE i.ctid = ANY (ARRAY(SELECT o.ctid FROM amqp_outbox.inbox o
			-- the library need not be loaded in a database that only consumes
			WHERE o.accepted_at < now() - coalesce(current_setting(
				'amqp_outbox.inbox_retention', true), '7 days')::interval
			ORDER BY o.accepted_at LIMIT max_rows FOR UPDATE SKIP LOCKED));
	GET DIAGNOSTICS n = ROW_COUNT;
	RETURN n;
END;
$$;
COMMENT ON FUNCTION amqp_outbox.prune_inbox(bigint) IS
'remove what consumers accepted longer ago than amqp_outbox.inbox_retention, at most so many rows; returns how many';

CREATE FUNCTION @extschema@.amqp_inbox_accept(consumer text, message_id text)
RETURNS boolean LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	argument text;
	value text;
BEGIN
	FOREACH argument IN ARRAY ARRAY['consumer', 'message_id'] LOOP
		value := CASE argument WHEN 'consumer' THEN $1 ELSE $2 END;
		IF value IS NULL THEN
			RAISE null_value_not_allowed USING
				MESSAGE = format('argument "%s" of amqp_inbox_accept must not be null', argument),
				HINT = CASE argument
					WHEN 'consumer' THEN 'Name what consumes: each consumer accepts a message once.'
					ELSE 'Pass the property message_id of the message; publishers by amqp_publish() always set it.' END;
		END IF;
		IF octet_length(value) > 255 THEN
			RAISE string_data_right_truncation USING
				MESSAGE = format('argument "%s" of amqp_inbox_accept is too long', argument),
				DETAIL = format('It has %s bytes; 255 are allowed.', octet_length(value));
		END IF;
	END LOOP;

	INSERT INTO amqp_outbox.inbox (consumer, message_id) VALUES ($1, $2)
		ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		RETURN false;
	END IF;
	-- under a higher level somebody else's removal would be an error
	IF random() < 0.002 AND current_setting('transaction_isolation') = 'read committed' THEN
		PERFORM amqp_outbox.prune_inbox(1000);
	END IF;
	RETURN true;
END;
$$;
COMMENT ON FUNCTION @extschema@.amqp_inbox_accept(text, text) IS
'whether this consumer sees this message for the first time; true once per message, if the transaction commits';

--
-- Seeing it
--
CREATE FUNCTION amqp_outbox.uncommitted(
	OUT server name, OUT message_id text, OUT enqueued_at timestamptz,
	OUT exchange text, OUT routing_key text, OUT body bytea, OUT content_type text,
	OUT headers jsonb, OUT content_encoding text, OUT persistent boolean,
	OUT priority smallint, OUT correlation_id text, OUT reply_to text,
	OUT expiration_ms bigint, OUT message_timestamp timestamptz,
	OUT type text, OUT user_id text, OUT app_id text, OUT mandatory boolean,
	OUT ordering_key text, OUT expires_at timestamptz, OUT published_by text,
	OUT due_at timestamptz)
RETURNS SETOF record LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_sql_uncommitted';
COMMENT ON FUNCTION amqp_outbox.uncommitted() IS
'messages that the own transaction has published so far';

CREATE FUNCTION amqp_outbox.worker(
	OUT server_oid oid, OUT pid integer, OUT state text,
	OUT since timestamptz, OUT host text, OUT in_flight integer,
	OUT last_error text, OUT last_error_at timestamptz)
RETURNS SETOF record LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'outbox_sql_worker';
COMMENT ON FUNCTION amqp_outbox.worker() IS
'workers of this database as they last reported';

CREATE FUNCTION amqp_outbox.horizon(
	OUT next_id bigint, OUT horizon bigint,
	OUT holder_pid integer, OUT held_since timestamptz)
RETURNS record LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'outbox_sql_horizon';
COMMENT ON FUNCTION amqp_outbox.horizon() IS
'workers read ids below the horizon; a transaction that is still committing holds it; nulls before the first message since the server started';

--
-- What workers have counted since counted_since: since the database server was
-- started or had to start anew after a crash, or since the server was created.
-- Rates, p50 and p99 are of the last minute.
--
-- The time from commit to confirm begins when the transaction began to commit,
-- after all its work (so that its own commit is part of the time), and ends
-- when the worker has the broker's confirm.  The beginning is known to 0.1 ms or
-- about a third of the time, whatever is more; after a restart, and for what has
-- waited for hours, it is the call of amqp_publish().  Messages that were to
-- wait, or had to, have no such time: scheduled ones, those that were tried
-- again, those behind them, and those of prepared transactions.
--
CREATE FUNCTION amqp_outbox.measures(
	OUT server_oid oid, OUT counted_since timestamptz,
	OUT delivered_per_second float8, OUT bytes_per_second float8,
	OUT delivered_bytes bigint, OUT confirm_p50 interval,
	OUT confirm_p99 interval, OUT confirm_count bigint,
	OUT confirm_time interval, OUT blocked_time interval,
	OUT connections bigint, OUT disconnected_since timestamptz)
RETURNS SETOF record LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'outbox_sql_measures';
COMMENT ON FUNCTION amqp_outbox.measures() IS
'what the workers of this database have counted; confirm_count and confirm_time: number and sum of the times in amqp_outbox.latency()';

CREATE FUNCTION amqp_outbox.latency(server name,
	OUT up_to interval, OUT messages bigint, OUT running_total bigint)
RETURNS SETOF record LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'outbox_sql_latency';
COMMENT ON FUNCTION amqp_outbox.latency(name) IS
'histogram of the time from commit to confirm: messages that took at most so long, and longer than in the row before; null: longer than all';

CREATE FUNCTION amqp_outbox.backlog(
	OUT server name, OUT role name, OUT messages bigint, OUT bytes bigint,
	OUT reserved_messages bigint, OUT reserved_bytes bigint,
	OUT counted_at timestamptz, OUT counting boolean)
RETURNS SETOF record LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'outbox_sql_backlog';
COMMENT ON FUNCTION amqp_outbox.backlog() IS
'what waits at servers of which the backlog is limited, in all (role is null) and of each role, and what open transactions have reserved; counted_at: when the tables were last counted, after a start or a change (null: not yet); counting: they are being counted anew';

CREATE FUNCTION amqp_outbox.leaf()
RETURNS integer LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'outbox_sql_leaf';
COMMENT ON FUNCTION amqp_outbox.leaf() IS
'number of the leaves that are written at the moment; they stay until the own transaction ends';

CREATE VIEW amqp_outbox.stored_message AS
WITH settled AS MATERIALIZED (
	SELECT k.server_key, k.server,
		coalesce((SELECT r.through_id FROM amqp_outbox.receipt r
			WHERE r.server_key = k.server_key
			ORDER BY r.through_id DESC, r.receipt_no DESC LIMIT 1), 0) AS through_id
	FROM amqp_outbox.server_key k
)
SELECT s.server, o.id, o.message_id,
	CASE WHEN o.id > s.through_id THEN 'pending' ELSE 'delivered' END AS status,
	o.exchange, o.routing_key, o.body, o.headers, o.content_type,
	o.content_encoding, o.persistent, o.priority, o.correlation_id, o.reply_to,
	o.expiration_ms::float8 * interval '1 millisecond' AS expiration,
	o.message_timestamp, o.type, o.user_id, o.app_id, o.mandatory,
	o.ordering_key, o.expires_at, o.enqueued_at, NULL::timestamptz AS due_at,
	CASE WHEN o.id <= s.through_id THEN (SELECT r.settled_at
		FROM amqp_outbox.receipt r
		WHERE r.server_key = o.server_key AND r.through_id >= o.id
		ORDER BY r.through_id, r.receipt_no LIMIT 1) END AS delivered_at,
	CASE WHEN o.id <= s.through_id THEN 1 ELSE 0 END AS attempts,
	NULL::text AS last_error,
	NULL::text AS body_text, NULL::jsonb AS body_json,
	NULL::text AS idempotency_key
FROM amqp_outbox.outbox o
	JOIN settled s ON s.server_key = o.server_key
WHERE NOT EXISTS (SELECT FROM amqp_outbox.deferred d
	WHERE d.server_key = o.server_key AND d.id = o.id)
	AND NOT EXISTS (SELECT FROM amqp_outbox.dead_letter_item d
	WHERE d.server_key = o.server_key AND d.id = o.id)
	AND NOT EXISTS (SELECT FROM amqp_outbox.late l
	WHERE l.server_key = o.server_key AND l.id = o.id)
UNION ALL
SELECT s.server, l.id, l.message_id,
	CASE WHEN l.delivered_at IS NULL THEN 'discarded' ELSE 'delivered' END,
	l.exchange, l.routing_key, l.body, l.headers, l.content_type,
	l.content_encoding, l.persistent, l.priority, l.correlation_id, l.reply_to,
	l.expiration_ms::float8 * interval '1 millisecond',
	l.message_timestamp, l.type, l.user_id, l.app_id, l.mandatory,
	l.ordering_key, l.expires_at, l.enqueued_at, NULL, l.delivered_at,
	l.attempts, NULL, NULL, NULL, NULL
FROM amqp_outbox.late l
	JOIN settled s ON s.server_key = l.server_key
UNION ALL
SELECT s.server, d.id, d.message_id,
	CASE WHEN d.attempts > 0 THEN 'retrying'
		WHEN d.due_at > now() AND d.due_at < 'infinity' THEN 'scheduled'
		ELSE 'pending' END,
	d.exchange, d.routing_key, d.body, d.headers, d.content_type,
	d.content_encoding, d.persistent, d.priority, d.correlation_id, d.reply_to,
	d.expiration_ms::float8 * interval '1 millisecond',
	d.message_timestamp, d.type, d.user_id, d.app_id, d.mandatory,
	d.ordering_key, d.expires_at, d.enqueued_at, nullif(d.due_at, 'infinity'), NULL,
	d.attempts, d.last_error, NULL, NULL, NULL
FROM amqp_outbox.deferred d
	JOIN settled s ON s.server_key = d.server_key
UNION ALL
SELECT s.server, d.id, d.message_id, 'dead',
	d.exchange, d.routing_key, d.body, d.headers, d.content_type,
	d.content_encoding, d.persistent, d.priority, d.correlation_id, d.reply_to,
	d.expiration_ms::float8 * interval '1 millisecond',
	d.message_timestamp, d.type, d.user_id, d.app_id, d.mandatory,
	d.ordering_key, d.expires_at, d.enqueued_at, NULL, NULL, d.attempts,
	d.last_error, NULL, NULL, NULL
FROM amqp_outbox.dead_letter_item d
	JOIN settled s ON s.server_key = d.server_key;
COMMENT ON VIEW amqp_outbox.stored_message IS
'amqp_outbox.message without what the own transaction has not committed; pg_monitor sees all but body and headers';

CREATE VIEW amqp_outbox.dead_letter AS
SELECT k.server, d.id, d.message_id, d.reason, d.exchange, d.routing_key, d.body,
	d.headers, d.content_type, d.content_encoding, d.persistent, d.priority,
	d.correlation_id, d.reply_to,
	d.expiration_ms::float8 * interval '1 millisecond' AS expiration,
	d.message_timestamp, d.type, d.user_id, d.app_id, d.mandatory,
	d.ordering_key, d.expires_at, d.published_by, d.enqueued_at, d.attempts,
	d.first_attempt_at, d.last_attempt_at, d.possible_duplicate, d.reply_code,
	d.last_error, d.holds_key
FROM amqp_outbox.dead_letter_item d
	JOIN amqp_outbox.server_key k ON k.server_key = d.server_key;
COMMENT ON VIEW amqp_outbox.dead_letter IS
'messages given up, with the reason; see amqp_outbox.requeue() and amqp_outbox.discard()';

-- LOCK TABLE locks what is under a view by the rights of the view's owner, and
-- PUBLIC may insert into this one: by the invoker's rights, nobody can keep the
-- tables from the workers.
CREATE VIEW amqp_outbox.message WITH (security_invoker) AS
SELECT * FROM amqp_outbox.stored_message
UNION ALL
SELECT u.server, NULL, u.message_id, 'uncommitted',
	u.exchange, u.routing_key, u.body, u.headers, u.content_type,
	u.content_encoding, u.persistent, u.priority, u.correlation_id, u.reply_to,
	u.expiration_ms::float8 * interval '1 millisecond',
	u.message_timestamp, u.type, u.user_id, u.app_id, u.mandatory,
	u.ordering_key, u.expires_at, u.enqueued_at, u.due_at, NULL, 0, NULL,
	NULL, NULL, NULL
FROM amqp_outbox.uncommitted() u;
COMMENT ON VIEW amqp_outbox.message IS
'every message that is still stored, with what became of it';
COMMENT ON COLUMN amqp_outbox.message.server IS
'where it goes to';
COMMENT ON COLUMN amqp_outbox.message.id IS
'in the order of commits; null: not committed';
COMMENT ON COLUMN amqp_outbox.message.message_id IS
'AMQP property, the same at every attempt';
COMMENT ON COLUMN amqp_outbox.message.status IS
'uncommitted: of the own transaction; pending; scheduled: will be sent at due_at; retrying: came back, will be tried again at due_at; delivered: confirmed by the broker; dead: given up, a dead letter; discarded';
COMMENT ON COLUMN amqp_outbox.message.exchange IS
'empty: AMQP''s default exchange';
COMMENT ON COLUMN amqp_outbox.message.routing_key IS
'with the default exchange: the name of a queue';
COMMENT ON COLUMN amqp_outbox.message.body IS
'content, as it travels';
COMMENT ON COLUMN amqp_outbox.message.headers IS
'AMQP header table, types kept';
COMMENT ON COLUMN amqp_outbox.message.content_type IS
'AMQP property';
COMMENT ON COLUMN amqp_outbox.message.content_encoding IS
'AMQP property';
COMMENT ON COLUMN amqp_outbox.message.persistent IS
'AMQP delivery mode 2, else 1; null: as the server''s option says';
COMMENT ON COLUMN amqp_outbox.message.priority IS
'AMQP property, 0 to 255';
COMMENT ON COLUMN amqp_outbox.message.correlation_id IS
'AMQP property';
COMMENT ON COLUMN amqp_outbox.message.reply_to IS
'AMQP property';
COMMENT ON COLUMN amqp_outbox.message.expiration IS
'time to live at the broker';
COMMENT ON COLUMN amqp_outbox.message.message_timestamp IS
'AMQP property timestamp, whole seconds travel';
COMMENT ON COLUMN amqp_outbox.message.type IS
'AMQP property';
COMMENT ON COLUMN amqp_outbox.message.user_id IS
'AMQP property';
COMMENT ON COLUMN amqp_outbox.message.app_id IS
'AMQP property';
COMMENT ON COLUMN amqp_outbox.message.mandatory IS
'an unroutable message comes back; null: as the server''s option says';
COMMENT ON COLUMN amqp_outbox.message.ordering_key IS
'does not travel; messages of the same key do not overtake each other';
COMMENT ON COLUMN amqp_outbox.message.expires_at IS
'then it is a dead letter, if it was not sent: deliver_at, or the time of publishing, and ttl';
COMMENT ON COLUMN amqp_outbox.message.enqueued_at IS
'when it was published';
COMMENT ON COLUMN amqp_outbox.message.due_at IS
'when it is sent (deliver_at), or tried again';
COMMENT ON COLUMN amqp_outbox.message.delivered_at IS
'when the broker''s confirm was noted';
COMMENT ON COLUMN amqp_outbox.message.attempts IS
'how often the broker has answered to it so far';
COMMENT ON COLUMN amqp_outbox.message.last_error IS
'the broker''s words';
COMMENT ON COLUMN amqp_outbox.message.body_text IS
'only to INSERT a body of text; null when read';
COMMENT ON COLUMN amqp_outbox.message.body_json IS
'only to INSERT a body of JSON; null when read';
COMMENT ON COLUMN amqp_outbox.message.idempotency_key IS
'only to INSERT; null when read';

-- the columns of these views are the same, but nobody inserts into them
DO $$
DECLARE
	a record;
BEGIN
	FOR a IN SELECT v.attrelid::pg_catalog.regclass AS view, v.attname,
			pg_catalog.col_description(m.attrelid, m.attnum) AS comment
		FROM pg_catalog.pg_attribute m
			JOIN pg_catalog.pg_attribute v ON v.attname OPERATOR(pg_catalog.=) m.attname
		WHERE m.attrelid OPERATOR(pg_catalog.=) 'amqp_outbox.message'::pg_catalog.regclass
		AND m.attnum OPERATOR(pg_catalog.>) 0
		AND v.attrelid OPERATOR(pg_catalog.=) ANY ('{amqp_outbox.stored_message,
			amqp_outbox.dead_letter}'::pg_catalog.regclass[])
	LOOP
		EXECUTE pg_catalog.format('COMMENT ON COLUMN %s.%I IS %L',
			a.view, a.attname, a.comment);
	END LOOP;
END $$;
COMMENT ON COLUMN amqp_outbox.dead_letter.possible_duplicate IS
'an attempt had an unknown outcome';
COMMENT ON COLUMN amqp_outbox.dead_letter.reply_code IS
'the broker''s (AMQP 0-9-1, section 1.2); null: none';
COMMENT ON COLUMN amqp_outbox.dead_letter.holds_key IS
'later messages of its ordering key wait until it is requeued or discarded';
COMMENT ON COLUMN amqp_outbox.dead_letter.reason IS
'why it was given up';
COMMENT ON COLUMN amqp_outbox.dead_letter.published_by IS
'the role; null if roles had no limit of their backlog';
COMMENT ON COLUMN amqp_outbox.dead_letter.first_attempt_at IS
'when it was first sent, or found to be expired';
COMMENT ON COLUMN amqp_outbox.dead_letter.last_attempt_at IS
'when it was given up';
COMMENT ON COLUMN amqp_outbox.dead_letter.id IS
'in the order of commits';
COMMENT ON COLUMN amqp_outbox.stored_message.id IS
'in the order of commits';
COMMENT ON COLUMN amqp_outbox.stored_message.status IS
'as in amqp_outbox.message, but for uncommitted';
COMMENT ON COLUMN amqp_outbox.stored_message.body_text IS
'null: for INSERT into amqp_outbox.message';
COMMENT ON COLUMN amqp_outbox.stored_message.body_json IS
'null: for INSERT into amqp_outbox.message';
COMMENT ON COLUMN amqp_outbox.stored_message.idempotency_key IS
'null: for INSERT into amqp_outbox.message';

--
-- INSERT into the view, or COPY, publishes as amqp_publish() does.  Columns have
-- the names of its arguments; due_at is deliver_at, expires_at the end of its
-- ttl.  The body is in one of body, body_text and body_json.  What says what
-- became of a message cannot be set.  RETURNING needs SELECT, which nobody has
-- but the owner: give a message_id of your own to know it.
--
-- Errors beside those of amqp_publish(): 428C9 for a column that cannot be set,
-- 23502 without exchange, routing_key or body.
--
CREATE FUNCTION amqp_outbox.insert_message()
RETURNS trigger LANGUAGE C
AS 'MODULE_PATHNAME', 'outbox_sql_insert_message';
COMMENT ON FUNCTION amqp_outbox.insert_message() IS
'publishes what is inserted into amqp_outbox.message';

CREATE TRIGGER publish INSTEAD OF INSERT ON amqp_outbox.message
	FOR EACH ROW EXECUTE FUNCTION amqp_outbox.insert_message();

CREATE VIEW amqp_outbox.server_status AS
SELECT s.srvname AS server,
	coalesce(w.state, 'not started') AS state, w.since, w.host,
	coalesce(p.backlog, 0) + coalesce(d.backlog, 0) AS backlog,
	now() - least(p.oldest, d.oldest) AS oldest_pending_age,
	coalesce(w.in_flight, 0) AS in_flight,
	coalesce(r.delivered, 0) AS delivered,
	coalesce(r.returned, 0) AS returned,
	coalesce(r.rejected, 0) AS rejected,
	w.last_error, w.last_error_at,
	coalesce(r.accepted, 0) AS accepted,
	(SELECT count(*) FROM amqp_outbox.dead_letter_item d
		WHERE d.server_key = k.server_key) AS dead_letters,
	coalesce(m.delivered_per_second, 0) AS delivered_per_second,
	coalesce(m.bytes_per_second, 0) AS bytes_per_second,
	coalesce(m.delivered_bytes, 0) AS delivered_bytes,
	m.confirm_p50, m.confirm_p99,
	coalesce(p.bytes, 0) + coalesce(d.bytes, 0) AS backlog_bytes,
	coalesce(d.scheduled, 0) AS scheduled,
	greatest(now() - p.oldest, now() - d.overdue_since,
		interval '0') AS overdue_age,
	coalesce(m.blocked_time, interval '0') AS blocked_time,
	greatest(coalesce(m.connections, 0) - 1, 0) AS reconnects,
	m.disconnected_since,
	(SELECT coalesce(jsonb_object_agg(x.reason, x.n), '{}')
		FROM (SELECT d.reason, count(*) AS n FROM amqp_outbox.dead_letter_item d
			WHERE d.server_key = k.server_key GROUP BY d.reason) x)
		AS dead_letters_by_reason,
	m.counted_since,
	(SELECT string_agg(CASE o.option_name
			WHEN 'verify' THEN 'the certificate of the broker is not verified (option verify)'
			ELSE 'a password may go over a network without TLS (option allow_plaintext)'
			END, '; ' ORDER BY o.option_name)
		FROM pg_catalog.pg_options_to_table(s.srvoptions) o
		WHERE CASE o.option_name
			WHEN 'verify' THEN lower(o.option_value) = 'none'
			WHEN 'allow_plaintext' THEN o.option_value::boolean
			END) AS warning
FROM pg_catalog.pg_foreign_server s
	JOIN pg_catalog.pg_foreign_data_wrapper f ON f.oid = s.srvfdw
	LEFT JOIN amqp_outbox.worker() w ON w.server_oid = s.oid
	LEFT JOIN amqp_outbox.measures() m ON m.server_oid = s.oid
	LEFT JOIN amqp_outbox.server_key k ON k.server = s.srvname
	LEFT JOIN LATERAL (SELECT * FROM amqp_outbox.receipt r
		WHERE r.server_key = k.server_key
		ORDER BY r.through_id DESC, r.receipt_no DESC LIMIT 1) r ON true
	LEFT JOIN LATERAL (SELECT count(*) AS backlog, min(o.enqueued_at) AS oldest,
			sum(octet_length(o.body))::bigint AS bytes
		FROM amqp_outbox.outbox o
		WHERE o.server_key = k.server_key
		AND o.id > coalesce(r.through_id, 0)) p ON true
	LEFT JOIN LATERAL (SELECT count(*) AS backlog, min(d.enqueued_at) AS oldest,
			sum(octet_length(d.body))::bigint AS bytes,
			count(*) FILTER (WHERE d.attempts = 0 AND d.due_at > now()
				AND d.due_at < 'infinity') AS scheduled,
			min(CASE WHEN d.attempts > 0 THEN d.enqueued_at
				WHEN d.due_at <= now() THEN greatest(d.due_at, d.enqueued_at)
				END) AS overdue_since
		FROM amqp_outbox.deferred d
		WHERE d.server_key = k.server_key) d ON true
WHERE f.fdwname = 'amqp_outbox';
COMMENT ON VIEW amqp_outbox.server_status IS
'one row per server: how its worker is, what waits, what was settled so far';
COMMENT ON COLUMN amqp_outbox.server_status.server IS
'name of the foreign server';
COMMENT ON COLUMN amqp_outbox.server_status.state IS
'of its worker: not started, starting, connecting, connected, blocked: the broker asked for a pause, waiting: for the next attempt, paused: see amqp_outbox.resume(), copy: see amqp_outbox.adopt(), draining, stopped';
COMMENT ON COLUMN amqp_outbox.server_status.since IS
'when that state began';
COMMENT ON COLUMN amqp_outbox.server_status.host IS
'of the broker that it is, or was last, connected to';
COMMENT ON COLUMN amqp_outbox.server_status.backlog IS
'committed messages that the broker has not confirmed';
COMMENT ON COLUMN amqp_outbox.server_status.oldest_pending_age IS
'since the oldest of them was published';
COMMENT ON COLUMN amqp_outbox.server_status.in_flight IS
'messages sent and not yet confirmed';
COMMENT ON COLUMN amqp_outbox.server_status.delivered IS
'messages confirmed by the broker so far';
COMMENT ON COLUMN amqp_outbox.server_status.returned IS
'attempts that the broker gave back as unroutable so far';
COMMENT ON COLUMN amqp_outbox.server_status.rejected IS
'attempts that the broker refused so far';
COMMENT ON COLUMN amqp_outbox.server_status.last_error IS
'why the last connection ended or failed';
COMMENT ON COLUMN amqp_outbox.server_status.last_error_at IS
'when that was';
COMMENT ON COLUMN amqp_outbox.server_status.accepted IS
'returned messages that count as delivered by the server''s option unroutable so far';
COMMENT ON COLUMN amqp_outbox.server_status.dead_letters IS
'messages given up that are neither requeued nor discarded';
COMMENT ON COLUMN amqp_outbox.server_status.delivered_per_second IS
'messages confirmed by the broker, over the last minute';
COMMENT ON COLUMN amqp_outbox.server_status.bytes_per_second IS
'the same in bytes of bodies';
COMMENT ON COLUMN amqp_outbox.server_status.delivered_bytes IS
'bodies confirmed by the broker since counted_since';
COMMENT ON COLUMN amqp_outbox.server_status.confirm_p50 IS
'median time from commit to confirm of the last minute; null: no message; see amqp_outbox.latency()';
COMMENT ON COLUMN amqp_outbox.server_status.confirm_p99 IS
'within this time 99 % of the last minute''s messages were confirmed';
COMMENT ON COLUMN amqp_outbox.server_status.backlog_bytes IS
'bodies of the backlog';
COMMENT ON COLUMN amqp_outbox.server_status.scheduled IS
'messages of the backlog whose time has not come';
COMMENT ON COLUMN amqp_outbox.server_status.overdue_age IS
'how long ago the oldest message of the backlog was published, or due if that was later; without scheduled ones and without those that wait for another one of their ordering key';
COMMENT ON COLUMN amqp_outbox.server_status.blocked_time IS
'how long the broker has asked for a pause in all since counted_since';
COMMENT ON COLUMN amqp_outbox.server_status.reconnects IS
'connections made since counted_since, but for the first one';
COMMENT ON COLUMN amqp_outbox.server_status.disconnected_since IS
'null: connected; or there never was a worker';
COMMENT ON COLUMN amqp_outbox.server_status.dead_letters_by_reason IS
'an object: amqp_outbox.dead_reason and number';
COMMENT ON COLUMN amqp_outbox.server_status.counted_since IS
'start of the database server, or when the server was created; delivered, returned, rejected and accepted go further back, as far as there are receipts';
COMMENT ON COLUMN amqp_outbox.server_status.warning IS
'what protection the server''s options give up; null: none';

--
-- Topology
--
-- declare_exchange() and the others say what the broker of a server shall
-- have; the worker asserts it once that is committed, and again at every
-- connection, before the first message.  To say the same again changes
-- nothing, but has a conflict tried again.  Arguments:
--
--	server				its owner's to declare
--	exchange, queue		1 to 255 bytes; not "amq...", which is the broker's
--	type				of an exchange: direct, fanout, topic, headers or one
--						of a plugin, "x-..."; of a queue: classic, quorum (the
--						default, because what it confirms is on the disks of a
--						majority), stream; null: what is the broker's default
--	durable, auto_delete, internal
--						as AMQP has them; quorum queues and streams are always
--						durable and never deleted automatically
--	arguments			json object, as headers of a message: an integer goes
--						as an integer, "x-message-ttl" and the like want that;
--						at most 4096 bytes as AMQP encodes them
--	routing_key			at most 255 bytes
--	source, destination	of a binding between exchanges; like the exchange and
--						the queue of others they need not be declared here, if
--						the broker has them
--	delete_at_broker	false: forget it here, and leave it there; true: have
--						the worker delete it there, and then forget it
--	if_unused, if_empty	true: do not delete an exchange with bindings, or a
--						queue with consumers or messages; the broker cannot
--						do that for quorum queues and streams
--
-- Errors: 22004 for a null, 22001 and 22023 for what AMQP or the broker does
-- not allow, 42939 for a reserved name, 54000 for arguments that are too large,
-- 42704 for an unknown server or what is not declared, 2BP01 for what is to be
-- deleted at the broker and still bound here, 0A000 for what the broker cannot
-- do, 42501 for who does not own the server, 25006 in a read-only transaction.
--
CREATE FUNCTION amqp_outbox.declare_exchange(server name, exchange text,
	type text DEFAULT 'topic', durable boolean DEFAULT true,
	auto_delete boolean DEFAULT false, internal boolean DEFAULT false,
	arguments jsonb DEFAULT NULL)
RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'outbox_sql_declare_exchange';
COMMENT ON FUNCTION amqp_outbox.declare_exchange(name, text, text, boolean,
	boolean, boolean, jsonb) IS
'the broker of a server shall have this exchange';

CREATE FUNCTION amqp_outbox.declare_queue(server name, queue text,
	type text DEFAULT 'quorum', durable boolean DEFAULT true,
	auto_delete boolean DEFAULT false, arguments jsonb DEFAULT NULL)
RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'outbox_sql_declare_queue';
COMMENT ON FUNCTION amqp_outbox.declare_queue(name, text, text, boolean,
	boolean, jsonb) IS
'the broker of a server shall have this queue';

CREATE FUNCTION amqp_outbox.bind_queue(server name, queue text, exchange text,
	routing_key text DEFAULT '', arguments jsonb DEFAULT NULL)
RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'outbox_sql_bind_queue';
COMMENT ON FUNCTION amqp_outbox.bind_queue(name, text, text, text, jsonb) IS
'the broker of a server shall route from this exchange to this queue';

CREATE FUNCTION amqp_outbox.bind_exchange(server name, destination text,
	source text, routing_key text DEFAULT '', arguments jsonb DEFAULT NULL)
RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'outbox_sql_bind_exchange';
COMMENT ON FUNCTION amqp_outbox.bind_exchange(name, text, text, text, jsonb) IS
'the broker of a server shall route from one exchange (source) to another';

CREATE FUNCTION amqp_outbox.undeclare_exchange(server name, exchange text,
	delete_at_broker boolean DEFAULT false, if_unused boolean DEFAULT true)
RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'outbox_sql_undeclare_exchange';
COMMENT ON FUNCTION amqp_outbox.undeclare_exchange(name, text, boolean,
	boolean) IS
'take back declare_exchange(); the broker keeps the exchange unless told otherwise';

CREATE FUNCTION amqp_outbox.undeclare_queue(server name, queue text,
	delete_at_broker boolean DEFAULT false, if_unused boolean DEFAULT true,
	if_empty boolean DEFAULT true)
RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'outbox_sql_undeclare_queue';
COMMENT ON FUNCTION amqp_outbox.undeclare_queue(name, text, boolean, boolean,
	boolean) IS
'take back declare_queue(); the broker keeps the queue unless told otherwise';

CREATE FUNCTION amqp_outbox.unbind_queue(server name, queue text,
	exchange text, routing_key text DEFAULT '', arguments jsonb DEFAULT NULL,
	delete_at_broker boolean DEFAULT false)
RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'outbox_sql_unbind_queue';
COMMENT ON FUNCTION amqp_outbox.unbind_queue(name, text, text, text, jsonb,
	boolean) IS
'take back bind_queue(); the broker keeps the binding unless told otherwise';

CREATE FUNCTION amqp_outbox.unbind_exchange(server name, destination text,
	source text, routing_key text DEFAULT '', arguments jsonb DEFAULT NULL,
	delete_at_broker boolean DEFAULT false)
RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'outbox_sql_unbind_exchange';
COMMENT ON FUNCTION amqp_outbox.unbind_exchange(name, text, text, text, jsonb,
	boolean) IS
'take back bind_exchange(); the broker keeps the binding unless told otherwise';

CREATE VIEW amqp_outbox.topology WITH (security_barrier) AS
SELECT k.server, i.kind, i.name, i.source, i.routing_key, i.type, i.durable,
	i.auto_delete, i.internal, i.arguments,
	CASE WHEN s.item_id IS NULL
		THEN CASE WHEN i.wanted THEN 'pending' ELSE 'deleting' END
		WHEN s.asserted THEN 'asserted'
		WHEN i.wanted THEN 'conflict'
		ELSE 'not deleted' END AS state,
	s.since, s.reply_code, s.last_error,
	CASE WHEN s.asserted THEN NULL
		WHEN s.item_id IS NULL
		THEN 'Nothing: the worker does it while it is connected, see amqp_outbox.server_status.'
		ELSE CASE
			WHEN s.reply_code = 403
			THEN 'Give the broker''s user the right to do it'
			WHEN s.reply_code = 404
			THEN 'Declare what it names, or create it at the broker'
			WHEN NOT i.wanted
			THEN 'See to it at the broker, or undeclare it without deleting it there'
			WHEN s.reply_code = 406
			THEN 'Declare it as the broker has or takes it, or delete what the broker has'
			WHEN s.reply_code = 503
			THEN 'Have the broker know this type (a plugin), or declare another one'
			ELSE 'See what the broker says'
		END || '; then call the same function again, or have the extension''s owner call amqp_outbox.wake().' ||
		CASE WHEN s.closes_connection
			THEN '  Until then it is left out, because the broker closes the connection.'
			ELSE '' END
	END AS what_to_do
FROM amqp_outbox.topology_item i
	JOIN amqp_outbox.server_key k ON k.server_key = i.server_key
	LEFT JOIN amqp_outbox.topology_state s ON s.item_id = i.item_id
WHERE pg_has_role('pg_monitor', 'USAGE')
	OR EXISTS (SELECT FROM pg_catalog.pg_foreign_server f
		WHERE f.srvname = k.server AND pg_has_role(f.srvowner, 'USAGE'));
COMMENT ON VIEW amqp_outbox.topology IS
'what the brokers shall have, and what they said to it; of one''s own servers';
COMMENT ON COLUMN amqp_outbox.topology.server IS
'name of the foreign server';
COMMENT ON COLUMN amqp_outbox.topology.kind IS
'exchange, queue, or binding of one of them to an exchange';
COMMENT ON COLUMN amqp_outbox.topology.name IS
'of the exchange or queue; of a binding: where messages go to';
COMMENT ON COLUMN amqp_outbox.topology.source IS
'of a binding: the exchange that messages come from';
COMMENT ON COLUMN amqp_outbox.topology.routing_key IS
'of a binding';
COMMENT ON COLUMN amqp_outbox.topology.type IS
'of an exchange or queue; null: what is the broker''s default';
COMMENT ON COLUMN amqp_outbox.topology.durable IS
'it survives a restart of the broker';
COMMENT ON COLUMN amqp_outbox.topology.auto_delete IS
'the broker deletes it when nobody uses it any more';
COMMENT ON COLUMN amqp_outbox.topology.internal IS
'an exchange to which only other exchanges route';
COMMENT ON COLUMN amqp_outbox.topology.arguments IS
'JSON object, types kept';
COMMENT ON COLUMN amqp_outbox.topology.state IS
'pending; asserted: the broker had it like that, or made it, at the last connection; conflict: the broker refused, with reply_code and last_error; deleting; not deleted: the broker refused that';
COMMENT ON COLUMN amqp_outbox.topology.since IS
'when the broker first said so; it is asked again at every connection';
COMMENT ON COLUMN amqp_outbox.topology.reply_code IS
'the broker''s (AMQP 0-9-1, section 1.2); null: none';
COMMENT ON COLUMN amqp_outbox.topology.last_error IS
'the broker''s words';
COMMENT ON COLUMN amqp_outbox.topology.what_to_do IS
'about a conflict, or what could not be deleted';

--
-- Health: one row for each rule, of each server, or of the database (server is
-- null).  Value is compared with the settings amqp_outbox.health_<rule>_warning
-- and amqp_outbox.health_<rule>_critical; null: there is nothing to compare.
--
CREATE TYPE amqp_outbox.health_level AS ENUM ('ok', 'warning', 'critical');
COMMENT ON TYPE amqp_outbox.health_level IS
'levels of amqp_outbox.health, the worst one last';

CREATE FUNCTION amqp_outbox.health_threshold(
	OUT rule text, OUT unit text, OUT warning float8, OUT critical float8)
RETURNS SETOF record LANGUAGE C STRICT STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'outbox_sql_health_threshold';
COMMENT ON FUNCTION amqp_outbox.health_threshold() IS
'rules of amqp_outbox.health, and their settings in the unit of its values; null: never';

CREATE VIEW amqp_outbox.health AS
WITH status AS MATERIALIZED (
	SELECT s.*, current_setting('amqp_outbox.enabled')::boolean
		AND NOT pg_is_in_recovery() AS enabled
	FROM amqp_outbox.server_status s
), finding (server, rule, value, at_least, detail) AS (
	SELECT s.server, v.*
	FROM status s CROSS JOIN LATERAL (VALUES
		('worker',
			CASE WHEN s.enabled AND s.state IN ('stopped', 'starting')
				THEN extract(epoch FROM now() - s.since)::float8 END,
			CASE WHEN pg_is_in_recovery() THEN 'ok'
				WHEN NOT s.enabled OR s.state IN ('copy', 'paused') THEN 'warning'
				WHEN s.state = 'not started' THEN 'critical'
				ELSE 'ok' END,
			CASE WHEN pg_is_in_recovery() THEN 'this is a standby'
				WHEN NOT s.enabled THEN 'amqp_outbox.enabled is off'
				WHEN s.state = 'copy'
				THEN 'the database is a copy: see amqp_outbox.adopt()'
				WHEN s.state = 'paused' THEN 'paused: see amqp_outbox.resume()'
				WHEN s.state = 'not started'
				THEN 'no worker was started: see amqp_outbox.max_workers'
				WHEN s.state IN ('stopped', 'starting') THEN s.last_error END),
		('connection',
			CASE WHEN s.enabled
				AND s.state NOT IN ('stopped', 'starting', 'not started', 'copy', 'paused')
				THEN extract(epoch FROM now() - s.disconnected_since)::float8 END,
			'ok',
			CASE WHEN s.disconnected_since IS NOT NULL THEN s.last_error END),
		('blocked',
			CASE WHEN s.state = 'blocked'
				THEN extract(epoch FROM now() - s.since)::float8 END,
			'ok',
			CASE WHEN s.state = 'blocked' THEN s.last_error END),
		('overdue', extract(epoch FROM s.overdue_age)::float8, 'ok', NULL),
		('backlog', (s.backlog - s.scheduled)::float8, 'ok',
			pg_size_pretty(s.backlog_bytes)),
		('confirm_time', extract(epoch FROM s.confirm_p99)::float8, 'ok', NULL),
		('dead_letters', s.dead_letters::float8, 'ok',
			nullif(s.dead_letters_by_reason::text, '{}')),
		('last_error', extract(epoch FROM now() - s.last_error_at)::float8,
			'ok', s.last_error),
		('topology', (SELECT count(*)
				FROM amqp_outbox.topology_state t
				JOIN amqp_outbox.topology_item i ON i.item_id = t.item_id
				JOIN amqp_outbox.server_key k ON k.server_key = i.server_key
				WHERE k.server = s.server AND NOT t.asserted)::float8,
			'ok', NULL),
		('protection',
			coalesce(cardinality(string_to_array(s.warning, '; ')), 0)::float8,
			'ok', s.warning)
	) v
	UNION ALL
	SELECT NULL, 'horizon', extract(epoch FROM now() - h.held_since)::float8,
		'ok', 'held by process ' || h.holder_pid
	FROM amqp_outbox.horizon() h
	UNION ALL
	SELECT NULL, 'outbox_size', sum(pg_total_relation_size(c.oid))::float8,
		'ok', pg_size_pretty(sum(pg_total_relation_size(c.oid)))
	FROM pg_catalog.pg_class c
	WHERE c.relnamespace = 'amqp_outbox'::regnamespace AND c.relkind = 'r'
)
SELECT f.server::name AS server, f.rule,
	greatest(f.at_least::amqp_outbox.health_level,
		CASE WHEN f.rule = 'last_error'
			THEN CASE WHEN f.value < t.critical THEN 'critical'
				WHEN f.value < t.warning THEN 'warning' ELSE 'ok' END
			WHEN f.value >= t.critical THEN 'critical'
			WHEN f.value >= t.warning THEN 'warning'
			ELSE 'ok' END::amqp_outbox.health_level) AS level,
	CASE WHEN f.value < 0 THEN 0 ELSE f.value END AS value, t.unit, t.warning, t.critical, f.detail
FROM finding f
	JOIN amqp_outbox.health_threshold() t ON t.rule = f.rule;
COMMENT ON VIEW amqp_outbox.health IS
'ok, warning or critical for each rule; of each server, and of the database where server is null';
COMMENT ON COLUMN amqp_outbox.health.server IS
'null: about the database';
COMMENT ON COLUMN amqp_outbox.health.rule IS
'worker: none; connection: none; blocked: by the broker; overdue: age of the oldest message that should have left; backlog: messages; confirm_time: 99 % of the last minute; dead_letters; last_error: seconds since then; topology: conflicts; protection: options that give it up; horizon: a transaction takes long to commit; outbox_size: bytes on disk';
COMMENT ON COLUMN amqp_outbox.health.level IS
'value compared with warning and critical; of worker also what is said in detail';
COMMENT ON COLUMN amqp_outbox.health.value IS
'what is compared; null: there is nothing to compare';
COMMENT ON COLUMN amqp_outbox.health.unit IS
'of value, warning and critical: seconds, messages, declarations, options or bytes';
COMMENT ON COLUMN amqp_outbox.health.warning IS
'from this value on; of last_error: below it; null: never';
COMMENT ON COLUMN amqp_outbox.health.critical IS
'the same';
COMMENT ON COLUMN amqp_outbox.health.detail IS
'what is known beside the value, such as the last error; may be null';

--
-- Operators' functions
--
CREATE FUNCTION amqp_outbox.wake()
RETURNS void LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'outbox_sql_wake';
COMMENT ON FUNCTION amqp_outbox.wake() IS
'make this database''s workers look at everything anew, and connect without waiting for the next attempt';

--
-- What follows is the server owner's.  Errors: 42501 for anybody else, 42704 if
-- there is no such server.
--

--
-- pause() lets the worker of a server finish what is in flight and leave its
-- broker; publishing goes on, and what is published waits, until resume().  It
-- is the server's option "paused", so it outlives restarts.
--
CREATE FUNCTION amqp_outbox.pause(server name)
RETURNS void LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	EXECUTE format('ALTER SERVER %I OPTIONS (%s paused ''true'')', server,
		CASE WHEN EXISTS (SELECT FROM pg_foreign_server s, unnest(s.srvoptions) o
			WHERE s.srvname = server AND o LIKE 'paused=%') THEN 'SET' ELSE 'ADD' END);
END;
$$;
COMMENT ON FUNCTION amqp_outbox.pause(name) IS
'send nothing to a server until amqp_outbox.resume(); what is published waits';

CREATE FUNCTION amqp_outbox.resume(server name)
RETURNS void LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	EXECUTE format('ALTER SERVER %I OPTIONS (%s)', server,
		CASE WHEN EXISTS (SELECT FROM pg_foreign_server s, unnest(s.srvoptions) o
			WHERE s.srvname = server AND o LIKE 'paused=%')
		THEN 'DROP paused' ELSE 'ADD paused ''false''' END);
END;
$$;
COMMENT ON FUNCTION amqp_outbox.resume(name) IS
'send to a server again after amqp_outbox.pause()';

--
-- requeue() and discard() take dead letters by any of: server, id, message_id,
-- reason, exchange; null means any, of the servers that the caller owns.  They
-- return the messages they took.  A requeued message keeps its message_id and
-- ordering key; its attempts count anew, and it does not expire if that was the
-- reason.
--
CREATE FUNCTION amqp_outbox.requeue(server name DEFAULT NULL,
	id bigint DEFAULT NULL, message_id text DEFAULT NULL,
	reason amqp_outbox.dead_reason DEFAULT NULL, exchange text DEFAULT NULL)
RETURNS TABLE (requeued_server name, requeued_id bigint,
	requeued_message_id text)
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_sql_requeue';
COMMENT ON FUNCTION amqp_outbox.requeue(name, bigint, text,
	amqp_outbox.dead_reason, text) IS
'send dead letters again, with their message ids and with attempts counted anew';

CREATE FUNCTION amqp_outbox.discard(server name DEFAULT NULL,
	id bigint DEFAULT NULL, message_id text DEFAULT NULL,
	reason amqp_outbox.dead_reason DEFAULT NULL, exchange text DEFAULT NULL)
RETURNS TABLE (discarded_server name, discarded_id bigint,
	discarded_message_id text)
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_sql_discard';
COMMENT ON FUNCTION amqp_outbox.discard(name, bigint, text,
	amqp_outbox.dead_reason, text) IS
'delete dead letters for good';

--
-- replay() sends delivered messages again that are still stored: for
-- amqp_outbox.retention, or longer.  At least one of the arguments behind the
-- server must be given, and all that are given must hold.  Each message is
-- published anew when the transaction commits, in the former order, with its
-- message_id and a further header x-replay: true; ttl and delay do not count
-- again.  Returns how many.
--
CREATE FUNCTION amqp_outbox.replay(server name,
	delivered_since timestamptz DEFAULT NULL,
	delivered_before timestamptz DEFAULT NULL, id bigint DEFAULT NULL,
	message_id text DEFAULT NULL, routing_key text DEFAULT NULL)
RETURNS bigint LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_sql_replay';
COMMENT ON FUNCTION amqp_outbox.replay(name, timestamptz, timestamptz, bigint,
	text, text) IS
'publish delivered messages again, with their message ids, marked by the header x-replay; returns how many';

CREATE FUNCTION amqp_outbox.adopt()
RETURNS void LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'outbox_sql_adopt';
COMMENT ON FUNCTION amqp_outbox.adopt() IS
'declare that this database, a copy, now owns its messages: its workers begin to publish';

--
-- doctor() examines the way to a server's broker, from the configuration to the
-- right to write, in a process of its own that ends with the call.  Options are
-- those that the calling transaction sees, committed or not.  Arguments:
--
--	server				its owner's to examine
--	probe_exchange		an exchange that a message is sent to, with routing key
--						"amqp_outbox.doctor", mandatory, not persistent, for a
--						minute; null: no message gets into any queue
--
-- A row for each check; of what cannot be reached because of an error before it
-- there is none.  The checks stand in docs/operations.md.
--
-- Errors: 42704 for an unknown server, 42809 for one of another wrapper, 42501
-- for who does not own the server, 22004 without a server, 22001 and 22023 for
-- what cannot be the name of an exchange.
--
CREATE TYPE amqp_outbox.check_result AS ENUM ('ok', 'warning', 'error');
COMMENT ON TYPE amqp_outbox.check_result IS
'how a check of amqp_outbox.doctor() went, in the order of gravity';

CREATE FUNCTION amqp_outbox.doctor(server name,
	probe_exchange text DEFAULT NULL)
RETURNS TABLE (check_name text, host text, result amqp_outbox.check_result,
	finding text, what_to_do text)
LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'outbox_sql_doctor';
COMMENT ON FUNCTION amqp_outbox.doctor(name, text) IS
'examine the way to a server''s broker: what is well, what is not, and what to do';

--
-- The allow list of a server
--
-- Where a server's option allow_list is true, USAGE on it lets a role publish
-- only what an entry covers: one of its own, of a role whose rights it has, or of
-- PUBLIC (the role public).  The server's owner and superusers may publish
-- anything.  Both patterns are AMQP's: words between dots, "*" for one word, "#"
-- for any number of them; the empty text covers only the default exchange.
-- RabbitMQ takes more routing keys from the headers CC and BCC, and these have to
-- be covered as well.
--
-- Errors: 42501 for anybody but the server's owner, 42704 if there is no such
-- server or role, and in disallow() no such entry, 22004 for a null, 22001 for a
-- pattern of more than 255 bytes, 22023 for one in which "*" or "#" is only part
-- of a word.
--
CREATE FUNCTION amqp_outbox.allow(server name, role name, exchange text,
	routing_key text)
RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'outbox_sql_allow';
COMMENT ON FUNCTION amqp_outbox.allow(name, name, text, text) IS
'an entry of the allow list of a server: this role may publish to these exchanges with these routing keys';

CREATE FUNCTION amqp_outbox.disallow(server name, role name, exchange text,
	routing_key text)
RETURNS void LANGUAGE C VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'outbox_sql_disallow';
COMMENT ON FUNCTION amqp_outbox.disallow(name, name, text, text) IS
'take back amqp_outbox.allow()';

CREATE VIEW amqp_outbox.allowed WITH (security_barrier) AS
SELECT k.server,
	CASE WHEN a.role = 0 THEN 'public'
		ELSE pg_get_userbyid(a.role) END AS role,
	a.exchange, a.routing_key
FROM amqp_outbox.allowed_item a
	JOIN amqp_outbox.server_key k ON k.server_key = a.server_key
	JOIN pg_catalog.pg_foreign_server f ON f.srvname = k.server
WHERE pg_has_role('pg_monitor', 'USAGE')
	OR pg_has_role(f.srvowner, 'USAGE')
	OR CASE WHEN a.role = 0 THEN has_server_privilege(f.oid, 'USAGE')
		ELSE pg_has_role(a.role, 'USAGE') END;
COMMENT ON VIEW amqp_outbox.allowed IS
'allow lists of one''s own servers, and what oneself may publish';
COMMENT ON COLUMN amqp_outbox.allowed.server IS
'name of the foreign server';
COMMENT ON COLUMN amqp_outbox.allowed.role IS
'who may; public is everybody';
COMMENT ON COLUMN amqp_outbox.allowed.exchange IS
'pattern; the empty one is the default exchange';
COMMENT ON COLUMN amqp_outbox.allowed.routing_key IS
'pattern';

--
-- Privileges, as one matrix.  The right to publish is USAGE on the server.
--
--                          PUBLIC      pg_monitor  owner
-- amqp_publish(), amqp_wait_for_confirm()
--                          EXECUTE     EXECUTE     EXECUTE
-- amqp_publish_row()       EXECUTE     EXECUTE     EXECUTE
-- server_status, health    -           SELECT      all
-- worker(), horizon(), backlog(), measures(), latency(),
-- health_threshold()       -           EXECUTE     EXECUTE
-- stored_message           -           SELECT but  all
--                                      body, headers
-- dead_letter              -           -           all
-- message                  INSERT      INSERT      all
-- all tables               -           -           all
-- uncommitted(), leaf()    -           -           EXECUTE
-- pause(), resume(), requeue(), discard(), replay()
--                          EXECUTE, for owners of servers
-- wake(), adopt()          -           -           EXECUTE
-- amqp_inbox_accept()      -           -           EXECUTE; grant it to consumers
-- prune_inbox()            -           -           EXECUTE
-- topology                 SELECT      SELECT      all
-- declare_...(), bind_...(), undeclare_...(), unbind_...()
--                          EXECUTE     EXECUTE     EXECUTE
-- doctor()                 EXECUTE     EXECUTE     EXECUTE
-- allow(), disallow()      EXECUTE, for owners of servers
-- allowed                  SELECT      SELECT      all
--
-- Of allowed everybody sees what he may, and what is of servers that he owns.
-- Of topology everybody sees what is of servers that he owns, pg_monitor sees
-- all; the functions let a server's owner change it, and doctor() lets him
-- examine it.
--
-- Nothing is left to what ALTER DEFAULT PRIVILEGES may have given to others.
--
DO $$
DECLARE
	everybodys CONSTANT name[] = '{amqp_publish, amqp_publish_row,
		amqp_wait_for_confirm, pause, resume, requeue, discard, replay, allow,
		disallow, declare_exchange, declare_queue, bind_queue, bind_exchange,
		unbind_queue, unbind_exchange, undeclare_queue, undeclare_exchange,
		doctor}';
	monitors CONSTANT name[] = '{worker, horizon, backlog, measures, latency,
		health_threshold}';
	o record;
BEGIN
	FOR o IN
		WITH member AS (SELECT d.classid, d.objid
			FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
			WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
			AND e.extname = 'amqp_outbox'),
		object AS (SELECT 'FUNCTION' AS kind, p.oid::regprocedure::text AS name,
				p.proowner AS owner, coalesce(p.proacl, acldefault('f', p.proowner)) AS acl
			FROM pg_proc p JOIN member m ON m.objid = p.oid
			WHERE m.classid = 'pg_proc'::regclass
			UNION ALL SELECT 'TABLE', c.oid::regclass::text,
				c.relowner, coalesce(c.relacl, acldefault('r', c.relowner))
			FROM pg_class c JOIN member m ON m.objid = c.oid
			WHERE m.classid = 'pg_class'::regclass
			UNION ALL SELECT 'SCHEMA', quote_ident(n.nspname),
				n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner))
			FROM pg_namespace n JOIN member m ON m.objid = n.oid
			WHERE m.classid = 'pg_namespace'::regclass)
		SELECT DISTINCT t.kind, t.name, CASE WHEN a.grantee = 0 THEN 'PUBLIC'
			ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee
		FROM object t, aclexplode(t.acl) a
		WHERE a.grantee <> t.owner
	LOOP
		EXECUTE format('REVOKE ALL ON %s %s FROM %s', o.kind, o.name, o.grantee);
	END LOOP;

	FOR o IN SELECT p.oid::regprocedure::text AS name, p.proname = ANY (monitors) AS monitors
		FROM pg_proc p
			JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
			JOIN pg_extension e ON e.oid = d.refobjid
				AND d.refclassid = 'pg_extension'::regclass
		WHERE e.extname = 'amqp_outbox' AND d.deptype = 'e'
		AND p.proname = ANY (everybodys || monitors)
	LOOP
		EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', o.name,
			CASE WHEN o.monitors THEN 'pg_monitor' ELSE 'PUBLIC' END);
	END LOOP;
END $$;
GRANT USAGE ON SCHEMA amqp_outbox TO PUBLIC;
GRANT INSERT ON amqp_outbox.message TO PUBLIC;
GRANT SELECT ON amqp_outbox.topology TO PUBLIC;
GRANT SELECT ON amqp_outbox.allowed TO PUBLIC;
GRANT SELECT ON amqp_outbox.server_status TO pg_monitor;
GRANT SELECT ON amqp_outbox.health TO pg_monitor;
GRANT SELECT (server, id, message_id, status, exchange, routing_key,
	content_type, content_encoding, persistent, priority, correlation_id,
	reply_to, expiration, message_timestamp, type, user_id, app_id, mandatory,
	ordering_key, expires_at, enqueued_at, due_at, delivered_at, attempts,
	last_error) ON amqp_outbox.stored_message TO pg_monitor;
