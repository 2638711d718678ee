--
-- Options of servers and user mappings: what is right, what is wrong, and what
-- the answer to something wrong is
--
CREATE EXTENSION amqp_outbox;

-- accepted
CREATE SERVER by_uri FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqp://rabbit1.plant.example:5673,rabbit2/mes%2Fline1');
CREATE SERVER by_options FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (host 'rabbit1, rabbit2:5673, [::1]:5674, 10.1.2.3', port '5675',
		vhost '/mes', heartbeat '1min', connect_timeout '5', confirm_timeout '30s',
		frame_max '8192', window '1', persistent 'off', mandatory 'no', tls 'on',
		max_attempts '5', max_age '1d', unroutable 'dead_letter',
		backlog_limit '100000', backlog_limit_bytes '10GB', role_backlog_limit '0',
		role_backlog_limit_bytes '1099511627776', backlog_action 'Warn',
		cacertfile '/etc/ssl/plant.pem');
CREATE SERVER by_both FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqps://rabbit1:5671/mes', host 'rabbit1:5671', vhost 'mes',
		port '5671', tls 'true');
CREATE SERVER by_default FOREIGN DATA WRAPPER amqp_outbox;
CREATE SERVER by_certificate FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqps://rabbit1', cacertdir '/etc/ssl/certs', tls_min_version '1.3', verify 'Peer',
		server_name_indication 'rabbit.example');
CREATE USER MAPPING FOR PUBLIC SERVER by_certificate
	OPTIONS (auth_mechanism 'external', certfile '/x.pem', keyfile '/x.key', keyfile_password 'secret');
CREATE SERVER heartbeat_off FOREIGN DATA WRAPPER amqp_outbox OPTIONS (heartbeat '0');
CREATE USER MAPPING FOR PUBLIC SERVER by_uri OPTIONS (user 'mes', password '');
CREATE ROLE regress_outbox_owner;
CREATE USER MAPPING FOR regress_outbox_owner SERVER by_uri
	OPTIONS (user 'mes', password_file '/etc/amqp_outbox/password');
ALTER SERVER by_uri OPTIONS (ADD window '256');
ALTER SERVER by_uri OPTIONS (SET window '512');
ALTER SERVER by_uri OPTIONS (DROP window);
SELECT srvname, unnest(srvoptions) AS option FROM pg_foreign_server ORDER BY 1, 2;

-- unknown options are answered with the valid ones of that kind of object
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (hostname 'rabbit1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (user 'mes');
CREATE USER MAPPING FOR PUBLIC SERVER by_default OPTIONS (username 'mes');
CREATE USER MAPPING FOR PUBLIC SERVER by_default OPTIONS (host 'rabbit1');
CREATE FOREIGN TABLE wrong (a int) SERVER by_default OPTIONS (queue 'q');
ALTER FOREIGN DATA WRAPPER amqp_outbox OPTIONS (host 'rabbit1');

-- wrong values are answered with what is allowed
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (port '0');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (port '65536');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (port 'amqp');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (window '0');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (window '65536');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (frame_max '8191');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (heartbeat '-1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (connect_timeout '0');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (confirm_timeout '5 moons');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (persistent 'maybe');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (mandatory '2');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (max_attempts '0');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (max_age 'for ever');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (unroutable 'drop');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (backlog_limit '-1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (backlog_limit_bytes '-1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (backlog_limit_bytes '2000TB');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (backlog_limit_bytes 'NaN');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (role_backlog_limit 'many');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (role_backlog_limit_bytes '5 GiB');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (backlog_action 'block');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (vhost '');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (host '');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (host 'a,,b');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (host 'a:0');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (host 'a:99999');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (host 'a:b');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (host '::1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (host '[::1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (host 'rabbit 1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (cacertfile 'plant.pem', tls 'on');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (cacertfile '/etc/plant.pem');
DO $$ BEGIN
	EXECUTE format('CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (vhost %L)',
		repeat('v', 256));
END $$;
CREATE USER MAPPING FOR PUBLIC SERVER by_default OPTIONS (user '');
CREATE USER MAPPING FOR PUBLIC SERVER by_default
	OPTIONS (user 'mes', password 'x', password_file '/x');
CREATE USER MAPPING FOR PUBLIC SERVER by_default OPTIONS (user 'mes', password_file 'x');
CREATE USER MAPPING FOR PUBLIC SERVER by_default OPTIONS (token_file '/x', password 'x');
CREATE USER MAPPING FOR PUBLIC SERVER by_default OPTIONS (certfile '/x');
CREATE USER MAPPING FOR PUBLIC SERVER by_default OPTIONS (keyfile '/x');
CREATE USER MAPPING FOR PUBLIC SERVER by_default OPTIONS (keyfile_password 'secret');
CREATE USER MAPPING FOR PUBLIC SERVER by_default OPTIONS (keyfile_password_file '/x');
CREATE USER MAPPING FOR PUBLIC SERVER by_default
	OPTIONS (certfile '/x', keyfile '/x', keyfile_password 'x', keyfile_password_file '/x');
CREATE USER MAPPING FOR PUBLIC SERVER by_default OPTIONS (auth_mechanism 'kerberos');
CREATE USER MAPPING FOR PUBLIC SERVER by_default OPTIONS (auth_mechanism 'external');
CREATE USER MAPPING FOR PUBLIC SERVER by_default
	OPTIONS (auth_mechanism 'external', certfile '/x', keyfile '/x', password 'secret');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (tls 'on', verify 'perhaps');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (tls 'on', tls_min_version '1.1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (verify 'peer');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (cacertdir '/etc/ssl/certs');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (allow_plaintext 'perhaps');

-- URIs
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'rabbit1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'http://rabbit1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://rabbit1/');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://rabbit1/a/b');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://rabbit1/%2');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://rabbit1/%00');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://rabbit1/%ff');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://rabbit1/mes?heartbeat=5');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://rabbit1:99999');
-- no secret is repeated
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://mes:secret@rabbit1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp//mes:secret@rabbit1');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqps://rabbit1?password=secret');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (host 'mes:secret@rabbit1');

-- a URI and a single option must not contradict each other
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://rabbit1', host 'rabbit2');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://rabbit1:5672', port '5673');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://rabbit1/mes', vhost 'erp');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://rabbit1', tls 'on');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqps://rabbit1', tls 'off');
ALTER SERVER by_uri OPTIONS (ADD vhost 'erp');

-- naming a file of the server needs the right to read such files
GRANT USAGE ON FOREIGN DATA WRAPPER amqp_outbox TO regress_outbox_owner;
SET ROLE regress_outbox_owner;
CREATE SERVER own FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqps://rabbit1', cacertfile '/etc/ssl/plant.pem');
CREATE SERVER own FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqps://rabbit1');
CREATE USER MAPPING FOR PUBLIC SERVER own OPTIONS (user 'mes', password_file '/etc/passwd');
RESET ROLE;
GRANT pg_read_server_files TO regress_outbox_owner;
SET ROLE regress_outbox_owner;
CREATE USER MAPPING FOR PUBLIC SERVER own OPTIONS (user 'mes', password_file '/etc/passwd');
RESET ROLE;

-- who alters another option needs no right to what stands there; but neither
-- can it be had from there
ALTER SERVER own OWNER TO CURRENT_USER;
ALTER SERVER own OPTIONS (ADD verify 'none', ADD cacertfile '/etc/ssl/plant.pem');
ALTER SERVER own OWNER TO regress_outbox_owner;
REVOKE pg_read_server_files FROM regress_outbox_owner;
SET ROLE regress_outbox_owner;
ALTER SERVER own OPTIONS (ADD window '256');
ALTER SERVER own OPTIONS (SET cacertfile '/etc/ssl/other.pem');
ALTER SERVER own OPTIONS (SET verify 'None');
CREATE SERVER another FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqps://rabbit1', verify 'none');
CREATE SERVER another FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqps://rabbit1', verify 'peer', allow_plaintext 'true');
ALTER SERVER another OPTIONS (SET verify 'none');
ALTER SERVER own OPTIONS (SET verify 'peer');
ALTER SERVER own OPTIONS (SET verify 'none');
ALTER SERVER own OPTIONS (DROP verify);
ALTER SERVER own OPTIONS (ADD verify 'none');
ALTER USER MAPPING FOR PUBLIC SERVER own OPTIONS (SET user 'erp');
ALTER USER MAPPING FOR PUBLIC SERVER own OPTIONS (SET password_file '/etc/shadow');
ALTER USER MAPPING FOR PUBLIC SERVER own OPTIONS (ADD certfile '/x', ADD keyfile '/x');
CREATE USER MAPPING FOR PUBLIC SERVER another OPTIONS (user 'mes', password_file '/etc/passwd');
RESET ROLE;
SELECT server, warning FROM amqp_outbox.server_status WHERE warning IS NOT NULL ORDER BY 1;
ALTER SERVER own OPTIONS (ADD verify 'none', ADD allow_plaintext 'yes');
SELECT server, warning FROM amqp_outbox.server_status WHERE warning IS NOT NULL ORDER BY 1;
SELECT server, level, value, unit, detail FROM amqp_outbox.health
	WHERE rule = 'protection' AND level <> 'ok' ORDER BY 1;

-- error codes
DO $$
DECLARE
	option text;
BEGIN
	FOREACH option IN ARRAY ARRAY['nonsense ''x''', 'port ''0''', 'uri ''x''', 'host ''''',
		'cacertfile ''/x''']
	LOOP
		BEGIN
			EXECUTE 'CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (' || option || ')';
		EXCEPTION WHEN OTHERS THEN
			RAISE NOTICE '%: %', option, SQLSTATE;
		END;
	END LOOP;
END $$;

-- what is too long is not all repeated here
DO $$
DECLARE
	statement text;
	detail text;
	hint text;
BEGIN
	FOREACH statement IN ARRAY ARRAY[
		format('CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (vhost %L)', repeat('x', 256)),
		format('CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS (host %L)', repeat('x', 254)),
		format('CREATE USER MAPPING FOR PUBLIC SERVER by_both OPTIONS (password %L)', repeat('x', 8001))]
	LOOP
		BEGIN
			EXECUTE statement;
		EXCEPTION WHEN OTHERS THEN
			GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
			RAISE NOTICE '%: %', SQLSTATE, regexp_replace(SQLERRM, 'x{9,}', 'x…')
				USING DETAIL = detail, HINT = hint;
		END;
	END LOOP;
END $$;

DROP EXTENSION amqp_outbox CASCADE;
DROP ROLE regress_outbox_owner;
