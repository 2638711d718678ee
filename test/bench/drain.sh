# shellcheck shell=bash
#
# drain: how fast messages leave that one transaction has published, and the CPU
# that the worker needs for one of them, against the bare publisher; what other
# parts need for that, too.
#
# The worker is connected and idle when they commit, as the bare publisher is when
# it begins; before that the broker was idle, and the same was committed, for both.

QUEUE=classic					# the kind that fresh_queue makes
QUEUE_ARGUMENTS=()
PUBLISHER_ARGUMENTS=()			# of the bare publisher

set_enabled()
{
	query "ALTER SYSTEM SET amqp_outbox.enabled = $1" &&
		query 'SELECT pg_reload_conf()' >/dev/null
}

worker_gone()
{
	[ "$(query "SELECT count(*) FROM pg_stat_activity
		WHERE backend_type = 'amqp_outbox worker'")" = 0 ]
}

stop_worker()
{
	set_enabled off
	await 30 worker_gone || die "the worker does not stop"
}

# A worker that has connected and delivered.
start_worker()
{
	set_enabled on
	query "SELECT amqp_publish('', 'bench', 'the worker is up'::text)" >/dev/null
	await_settled
}

# await_settled [SECONDS]: until everything is, watched from one session
await_settled()
{
	query "CALL await_settled('bench', ${1:-600})" ||
		die "the backlog was not drained"
}

worker_pid()
{
	query "SELECT pid FROM pg_stat_activity
		WHERE backend_type = 'amqp_outbox worker'"
}

# Nanoseconds of CPU that a process has used, or the worker.
cpu_of()
{
	cut -d ' ' -f 1 "/proc/$1/schedstat"
}

worker_cpu()
{
	cpu_of "$(worker_pid)"
}

# Hundredths of a second of CPU that the broker has used.
broker_cpu()
{
	cut -d ' ' -f 14,15 "/proc/$("$SOURCE/scripts/rabbitmq" pid "$WORK/rabbit")/stat" |
		tr ' ' '+'
}

broker_is_idle()
{
	local before

	before=$(($(broker_cpu)))
	sleep 0.2
	[ $(($(broker_cpu) - before)) -le 2 ]
}

# A broker goes on deleting what a queue held long after it has answered.
fresh_queue()
{
	amqp_tool delete-queue bench 2>/dev/null
	amqp_tool declare-queue bench --type $QUEUE "${QUEUE_ARGUMENTS[@]}"
	await 60 broker_is_idle || die "the broker does not come to rest"
}

# A stream does not tell exactly, and a bounded queue is not to hold them.
queue_holds()
{
	[ $QUEUE = stream ] || [ ${#QUEUE_ARGUMENTS[@]} -gt 0 ] ||
		[ "$(amqp_tool count bench)" = "$1" ]
}

# Publish, and the moment when that was committed.
publish_many_at()
{
	psql -qAtX -c "SELECT count(amqp_publish('', 'bench', $BODY))
			FROM generate_series(1, $MESSAGES)" \
		-c 'SELECT extract(epoch FROM clock_timestamp())' | tail -n 1
}

# drain_outbox FIGURE [SIDE [COMMAND [GOAL]]]: the command comes first
drain_outbox()
{
	local begin cpu

	fresh_queue
	reset_tables
	${3:-true} || exit 1
	start_worker
	cpu=$(worker_cpu)
	begin=$(publish_many_at)
	await_settled
	note "$1" "${2:-outbox}" "$(query "SELECT round($MESSAGES /
		(extract(epoch FROM max(settled_at)) - $begin))
		FROM amqp_outbox.receipt")" /s "${4:-}"
	[ -z "${CPU_FIGURE:-}" ] || note "$CPU_FIGURE" outbox \
		"$(query "SELECT ($(worker_cpu) - $cpu) / 1e3 / $MESSAGES")" µs
	await 10 queue_holds $((MESSAGES + 1)) ||
		die "not all messages are in the queue, or too many"
	stop_worker
}

# drain_bare FIGURE [GOAL]: right after as many were committed here, too, which
# leaves the disk busy for a while
drain_bare()
{
	local result

	fresh_queue
	reset_tables
	publish_many_at >/dev/null
	result=$(amqp_bare --key bench --count $MESSAGES --size $SIZE \
		--window $WINDOW "${PUBLISHER_ARGUMENTS[@]}") || exit 1
	note "$1" bare "$(query "SELECT round($MESSAGES /
		('$result'::jsonb ->> 'seconds')::float8)")" /s "${2:-}"
	[ -z "${CPU_FIGURE:-}" ] || note "$CPU_FIGURE" bare "$(query "SELECT
		('$result'::jsonb ->> 'cpu_seconds')::float8 * 1e6 / $MESSAGES")" \
		µs '≤ 5 µs more'
}

drain()
{
	local QUEUE figure CPU_FIGURE goals MESSAGES=$DRAINED

	declare -A goals=([classic]=0.95 [quorum]=0.9 [stream]=0.85)
	for QUEUE in classic quorum stream; do
		# the slow one
		[ $QUEUE != classic ] || [ $round -le 2 ] || [ -n "$ROUNDS" ] || continue
		figure="draining $MESSAGES messages of $SIZE bytes, $QUEUE queue"
		CPU_FIGURE="worker's CPU for each of them, $QUEUE queue"
		ours() { drain_outbox "$figure"; }
		theirs() { drain_bare "$figure" "≥ ${goals[$QUEUE]}"; }
		in_turn ours theirs
	done
}
