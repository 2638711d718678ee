--
-- A database whose encoding cannot be converted to UTF-8
--
CREATE DATABASE regress_outbox_ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0;
SELECT current_database() AS database \gset
\c regress_outbox_ascii
SET client_encoding = 'SQL_ASCII';
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');

-- what is UTF-8 goes as it is
SELECT amqp_publish('', 'q', E'gr\xc3\xbcn'::text, message_id => 'm1');
SELECT amqp_publish('', 'q', '\x67fc'::bytea, message_id => 'm2');
-- what is not is refused
SELECT amqp_publish('', 'q', E'gr\xfcn'::text);
SELECT amqp_publish('', E'gr\xfcn', 'x'::text);
SELECT message_id, body, content_encoding FROM amqp_outbox.message ORDER BY id;

\c :database
DROP DATABASE regress_outbox_ascii WITH (FORCE);
