# shellcheck shell=bash
#
# relay: what a hand-written relay does, for the reader: a table that is filled by
# INSERT, and a process that takes rows FOR UPDATE SKIP LOCKED, publishes them with
# confirms, and deletes them.  In C (relay.c) it publishes 1,000 at once, in Python
# (relay.py) one by one, as pika's BlockingConnection does.

# Instead of this shell, which is a subshell: so a signal reaches it.
run_relay()
{
	if [ "$1" = C ]; then
		exec "$SOURCE/test/bench/relay" "${@:2}"
	else
		exec /usr/bin/python3 -B test/bench/relay.py "${@:2}"
	fi
}

# drain_relay FIGURE LANGUAGE MESSAGES
drain_relay()
{
	local MESSAGES=$3 result

	fresh_queue
	reset_tables
	insert_many || exit 1
	query 'ANALYZE plain'
	result=$(run_relay "$2" --until-empty) || exit 1
	[ "$(query "SELECT '$result'::jsonb ->> 'count'")" = "$MESSAGES" ] ||
		die "the relay did not deliver all"
	note "$1" "relay in $2" "$(query "SELECT round($MESSAGES /
		('$result'::jsonb ->> 'seconds')::float8)")"
}

# latency_relay RATE LANGUAGE
latency_relay()
{
	local pid

	fresh_queue
	reset_tables
	start_consumer message_id,arrived_us
	run_relay "$2" >/dev/null &
	pid=$!
	commit_at_rate "$1" insert_named
	await 60 arrived "$(query 'SELECT count(*) FROM committed')" ||
		die "not all messages arrived"
	kill -TERM $pid
	wait $pid || die "the relay failed"
	end_consumer
	load_arrived
	note_latencies "COMMIT to consumer, $1 messages/s, and a relay" "relay in $2" \
		"$FROM_COMMIT"
}

# note_together FIGURE SIDE SCRIPT COUNT: while 8 clients publish, how much they
# and whoever delivers do together; COUNT prints what was delivered in all
note_together()
{
	local before begin tps

	before=$($4)
	begin=$(now)
	tps=$(pgbench -n -M prepared -c 8 -j 2 -T $((TIME + 1)) \
		-f "test/bench/$3.sql" 2>"$WORK/log/pgbench.log" |
		sed -n 's/^tps = \([0-9.]*\) .*/\1/p')
	[ -n "$tps" ] || die "pgbench failed: $(tail -n 3 "$WORK/log/pgbench.log")"
	note "$1" "$2" "$(query "SELECT round($tps + ($($4) - $before) /
		(extract(epoch FROM clock_timestamp()) - $begin))")" /s "${5:-}"
}

delivered_by_worker()
{
	query "SELECT delivered FROM amqp_outbox.receipt WHERE server_key = (
			SELECT server_key FROM amqp_outbox.server_key WHERE server = 'bench')
		ORDER BY receipt_no DESC LIMIT 1"
}

delivered_to_queue()
{
	amqp_tool count bench
}

together()
{
	local pid figure="published by 8 clients and delivered of a backlog, together"

	ours() {
		fresh_queue
		reset_tables
		start_worker
		publish_many
		note_together "$figure" outbox publish delivered_by_worker
		stop_worker
	}
	theirs() {
		fresh_queue
		reset_tables
		insert_many
		run_relay C >/dev/null &
		pid=$!
		note_together "$figure" 'relay in C' insert delivered_to_queue '≥ 1'
		kill -TERM $pid
		wait $pid || die "the relay failed"
	}
	in_turn ours theirs
}

relay()
{
	local QUEUE figure

	for QUEUE in classic quorum; do
		figure="draining $MESSAGES messages, $QUEUE queue, and a relay"
		ours() { drain_outbox "$figure"; }
		theirs() {
			drain_relay "$figure" C $MESSAGES
			drain_relay "$figure" Python $((MESSAGES / 20))
		}
		in_turn ours theirs
	done
	QUEUE=classic
	ours() { FIGURE_ENDS=', and a relay' latency_outbox 100; }
	theirs() {
		latency_relay 100 C
		latency_relay 100 Python
	}
	in_turn ours theirs
	together
}
