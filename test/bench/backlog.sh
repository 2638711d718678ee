# shellcheck shell=bash
#
# backlog: draining a large backlog, with and without an old snapshot, against a
# small one; what that needs of memory; and what is left of it.
#
# The queue holds the newest few only, so that all of them find the same.

# memory_of PID: anonymous memory in MB
memory_of()
{
	awk '/^RssAnon:/ { print $2 / 1024 }' "/proc/$1/status"
}

# The peak of the same until stop_watching, in pages, into a file.  What is timed
# meanwhile must not notice: statm is one line.
watch_memory()
{
	local size resident shared rest peak=0

	while [ -e "$WORK/watching" ] &&
		{ read -r size resident shared rest <"/proc/$1/statm"; } 2>/dev/null; do
		[ $((resident - shared)) -le $peak ] || peak=$((resident - shared))
		sleep 0.1
	done
	echo $peak >"$WORK/peak"
}

start_watching()
{
	rm -f "$WORK/peak"
	touch "$WORK/watching"
	watch_memory "$1" &
}

# stop_watching: prints the peak in MB
stop_watching()
{
	rm -f "$WORK/watching"
	await 10 test -s "$WORK/peak" || die "the peak of memory was not seen"
	awk -v page="$(getconf PAGE_SIZE)" '{ print $1 * page / 1048576 }' "$WORK/peak"
}

# Bytes on disk of everything that messages are in.
outbox_size()
{
	query "SELECT sum(pg_total_relation_size(oid)) FROM pg_class
		WHERE relnamespace = 'amqp_outbox'::regnamespace AND relkind = 'r'"
}

outbox_is_empty()
{
	[ "$(outbox_size)" -le $((EMPTY_SIZE + 262144)) ]
}

# What is left, and how long until it is gone once it may go.
note_remains()
{
	local begin

	query 'SELECT pg_stat_force_next_flush()' >/dev/null
	note "dead rows in all tables, $BACKLOG drained" outbox "$(query "SELECT
		coalesce(sum(n_dead_tup), 0) FROM pg_stat_all_tables
		WHERE schemaname = 'amqp_outbox'")" '' '0'
	query "ALTER SYSTEM SET amqp_outbox.retention = '1s'"
	begin=$(now)
	query 'SELECT pg_reload_conf()' >/dev/null
	await 120 outbox_is_empty || die "the outbox is not emptied"
	note "from the end of the retention until all its space is free" outbox \
		"$(query "SELECT extract(epoch FROM clock_timestamp()) - $begin")" s seconds
	note "its size then, $BACKLOG drained" outbox \
		"$(query "SELECT $(outbox_size) / 1048576.0")" MB
	note "its size then, $BACKLOG drained" 'empty outbox' \
		"$(query "SELECT $EMPTY_SIZE / 1048576.0")" MB '≤ 1'
	query 'ALTER SYSTEM RESET amqp_outbox.retention'
	query 'SELECT pg_reload_conf()' >/dev/null
}

# drain_backlog FIGURE: BACKLOG messages of one transaction
drain_backlog()
{
	local MESSAGES=$BACKLOG begin idle

	fresh_queue
	reset_tables
	EMPTY_SIZE=$(outbox_size)
	start_worker
	idle=$(memory_of "$(worker_pid)")
	start_watching "$(worker_pid)"
	begin=$(publish_many_at)
	await_settled 3000
	note "$1" outbox "$(query "SELECT round($MESSAGES /
		(extract(epoch FROM max(settled_at)) - $begin))
		FROM amqp_outbox.receipt")"
	[ -z "${REMAINS:-}" ] || {
		note "memory of the worker, draining $BACKLOG" outbox "$(stop_watching)" MB
		note "memory of the worker, draining $BACKLOG" idle "$idle" MB '≤ 64 MB more'
		note_remains
	}
	rm -f "$WORK/watching"
	stop_worker
}

# with_snapshot COMMAND...: meanwhile another session has an old one
with_snapshot()
{
	local fd

	exec {fd}> >(psql -qAtX >/dev/null)
	echo 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT txid_current();' >&$fd
	await 10 snapshot_is_held || die "no snapshot"
	"$@"
	exec {fd}>&-
}

snapshot_is_held()
{
	[ "$(query "SELECT count(*) FROM pg_stat_activity
		WHERE state = 'idle in transaction'")" = 1 ]
}

backlog()
{
	local QUEUE=quorum QUEUE_ARGUMENTS=(--arg x-max-length=10000)
	local all="draining a backlog of $BACKLOG"
	local old="draining a backlog of $BACKLOG with an older snapshot held"

	# of seconds only, so more than once
	alone() {
		[ -n "$AGAINST" ] ||
			drain_outbox "$all" "$MESSAGES alone" true '≥ 0.95'
	}
	alone
	ours() { REMAINS=yes drain_backlog "$all"; }
	in_turn ours
	alone
	ours() { with_snapshot drain_backlog "$old"; }
	in_turn ours
	alone
	# the broker, too, may be slower for minutes on end than at the start
	[ -n "$AGAINST" ] || [ $BACKLOG -lt 10000000 ] ||
		MESSAGES=$BACKLOG drain_bare "$all"
	copy_figure "$all" "$old"
}

# copy_figure FROM TO: what one is compared with is so for the other, too
copy_figure()
{
	query "INSERT INTO measured (part, round, figure, side, value, unit, goal)
		SELECT part, round, \$\$$2\$\$, side, value, unit, goal FROM measured
		WHERE figure = \$\$$1\$\$ AND side <> 'outbox' AND round = $round"
}
