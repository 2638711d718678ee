# shellcheck shell=bash
#
# scheduled: what messages that are not due yet cost those that are, and an idle
# worker; and how late one leaves that has become due among them.

# Scheduled messages in the way of nobody, and nothing left to be written.
publish_scheduled()
{
	query "SELECT count(amqp_publish('', 'bench', $BODY,
			deliver_at => now() + interval '1 day' + i * interval '1 ms'))
		FROM generate_series(1, $BACKLOG) i" >/dev/null && query CHECKPOINT
}

note_idle()
{
	local begin

	start_worker
	sleep 2
	begin=$(worker_cpu)
	sleep $IDLE
	note "$1" "$2" \
		"$(query "SELECT round(($(worker_cpu) - $begin) * 60 / $IDLE / 1e6, 2)")" ms
}

# Messages that become due 100 ms after each other; each tells by its id when.
note_lateness()
{
	local p

	fresh_queue
	start_consumer message_id,arrived_us
	query "SELECT count(amqp_publish('', 'bench', 'due'::text, deliver_at => at,
			message_id => (extract(epoch FROM at) * 1000000)::bigint::text))
		FROM (SELECT clock_timestamp() + interval '1 s' + i * interval '100.7 ms' AS at
			FROM generate_series(1, $DUE) i) t" >/dev/null
	await 60 arrived $DUE || die "not all scheduled messages arrived"
	end_consumer
	query 'TRUNCATE arrived'
	query "COPY arrived FROM '$WORK/arrived.tsv'"
	for p in 0.5 1; do
		note "due to consumer, $BACKLOG scheduled, $([ $p = 1 ] && echo max || echo p50)" \
			outbox "$(query "SELECT round((percentile_cont($p) WITHIN GROUP (ORDER BY
				arrived_us - message_id::bigint) / 1000)::numeric, 3)
				FROM arrived")" ms '≤ 100 ms'
	done
}

scheduled()
{
	local drained="draining $MESSAGES messages, $BACKLOG scheduled"
	local idle="worker's CPU in an idle minute, $BACKLOG scheduled"

	ours() {
		drain_outbox "$drained" outbox publish_scheduled
		note_idle "$idle" outbox
		note_lateness
		stop_worker
	}
	theirs() {
		drain_outbox "$drained" 'none scheduled' true '≥ 0.95'
		note_idle "$idle" 'none scheduled'
		stop_worker
	}
	in_turn ours theirs
}
