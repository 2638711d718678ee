# shellcheck shell=bash
#
# latency: from commit to consumer, against the bare publisher's from sending to
# consumer.
#
# When is a commit?  For the application when its COMMIT has returned; that is what
# pgbench writes down, and what is compared.  The time that PostgreSQL keeps of a
# commit is taken before the commit is written to disk, so what is counted from
# there is longer by that.  Both are shown.

start_consumer()
{
	rm -f "$WORK/ready" "$WORK/arrived.tsv"
	amqp_tool consume bench --ready-file "$WORK/ready" --fields "$1" \
		>"$WORK/arrived.tsv" 2>"$WORK/log/consumer.log" &
	CONSUMER=$!
	await 20 test -e "$WORK/ready" || die "the consumer did not start"
}

end_consumer()
{
	kill -TERM $CONSUMER
	wait $CONSUMER || die "consumer: $(<"$WORK/log/consumer.log")"
}

# arrived N: have so many messages arrived?
arrived()
{
	[ "$(wc -l <"$WORK/arrived.tsv")" -ge "$1" ]
}

# note_latencies FIGURE SIDE QUERY [P50 P99]: the query yields milliseconds as
# "ms"; the goals
note_latencies()
{
	local p goal

	for p in 50 99; do
		goal=${4:-}
		[ $p = 50 ] || goal=${5:-}
		note "$1, p$p" "$2" "$(query "SELECT
			round((percentile_cont($p / 100.0) WITHIN GROUP (ORDER BY ms))::numeric, 3)
			FROM ($3) l")" ms "$goal"
	done
}

# commit_at_rate RATE SCRIPT: transactions at random moments, and when each was
# committed, into "committed"
commit_at_rate()
{
	rm -f "$WORK"/log/commit.*
	pgbench -n -M prepared -c 4 -j 2 -R "$1" -T $((TIME + 1)) -D n=0 \
		-l --log-prefix="$WORK/log/commit" -f "test/bench/$2.sql" \
		>"$WORK/log/pgbench.log" 2>&1 || die "$(tail -n 3 "$WORK/log/pgbench.log")"
	query 'TRUNCATE committed'
	cat "$WORK"/log/commit.* | awk '{
			printf "%s-%s\t%.0f\t%s\n", $1, $2, $5 * 1000000 + $6, $3
		}' | psql -qX -c 'COPY committed FROM STDIN'
}

load_arrived()
{
	query 'TRUNCATE arrived'
	query "COPY arrived FROM '$WORK/arrived.tsv'"
}

FROM_COMMIT='SELECT (arrived_us - committed_us) / 1000.0 AS ms
	FROM arrived JOIN committed USING (message_id)'

latency_outbox()
{
	fresh_queue
	reset_tables
	start_consumer message_id,arrived_us
	start_worker
	commit_at_rate "$1" publish_named
	await 60 arrived "$(query 'SELECT count(*) FROM amqp_outbox.outbox')" ||
		die "not all messages arrived"
	end_consumer
	load_arrived
	note_latencies "COMMIT to consumer, $1 messages/s${FIGURE_ENDS:-}" outbox \
		"$FROM_COMMIT"
	[ -n "${FIGURE_ENDS:-}" ] || note_latencies "the same from the time of the commit in PostgreSQL, $1/s" \
		outbox 'SELECT a.arrived_us / 1000.0
		- extract(epoch FROM pg_xact_commit_timestamp(o.xmin)) * 1000 AS ms
		FROM arrived a JOIN amqp_outbox.outbox o USING (message_id)
		JOIN committed USING (message_id)'
	stop_worker
}

latency_bare()
{
	local count=$(($1 * (TIME + 1)))

	fresh_queue
	start_consumer body,arrived_us
	amqp_bare --key bench --count $count --size $SIZE --window $WINDOW \
		--rate "$1" >/dev/null || exit 1
	await 60 arrived $count || die "not all messages arrived"
	end_consumer
	load_arrived
	note_latencies "COMMIT to consumer, $1 messages/s" bare "SELECT (arrived_us
		- split_part(message_id, ' ', 1)::bigint) / 1000.0 AS ms FROM arrived" \
		'≤ 1.3' '≤ 2'
}

latency()
{
	local rate

	for rate in 100 1000; do
		ours() { latency_outbox $rate; }
		theirs() { latency_bare $rate; }
		in_turn ours theirs
	done
}
