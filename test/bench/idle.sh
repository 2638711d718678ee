# shellcheck shell=bash
#
# idle: how often launcher and ten workers wake, and what they use, while nothing
# is published.

idle_servers()
{
	local i

	for i in 1 2 3 4 5 6 7 8 9 10; do
		query "CREATE SERVER idle$i FOREIGN DATA WRAPPER amqp_outbox
				OPTIONS (uri '${AMQP_URL/guest:guest@/}');
			CREATE USER MAPPING FOR PUBLIC SERVER idle$i
				OPTIONS (user 'guest', password 'guest')" || exit 1
	done
	set_enabled on
	for i in 1 2 3 4 5 6 7 8 9 10; do
		query "SELECT amqp_publish('', 'bench', 'up'::text, server => 'idle$i')" \
			>/dev/null || exit 1
		query "CALL await_settled('idle$i', 60)" || exit 1
	done
}

drop_idle_servers()
{
	local i

	for i in 1 2 3 4 5 6 7 8 9 10; do
		query "DROP SERVER idle$i CASCADE" 2>/dev/null || exit 1
	done
}

idle_processes()
{
	query "SELECT pid FROM pg_stat_activity WHERE backend_type = 'amqp_outbox launcher'
		OR application_name ~ '^amqp_outbox' OR backend_type ~ '^amqp_outbox worker'"
}

# Of all of them together: context switches that they asked for, and CPU in ns.
switches_of()
{
	local pid

	for pid in $1; do
		sed -n 's/^voluntary_ctxt_switches:[[:space:]]*//p' "/proc/$pid/status"
	done | awk '{ n += $1 } END { print n }'
}

cpu_of_all()
{
	local pid

	for pid in $1; do
		cpu_of "$pid"
	done | awk '{ n += $1 } END { printf "%.0f\n", n }'
}

last_xid()
{
	query 'SELECT pg_snapshot_xmax(pg_current_snapshot())'
}

idle()
{
	ours() {
		local pids switches cpu wal xid figure="launcher and workers of 11 servers, $MINUTE s idle"

		fresh_queue
		reset_tables
		idle_servers
		# the ring is looked at soon after messages, later once a minute
		sleep 5
		query CHECKPOINT
		pids=$(idle_processes)
		wal=$(end_of_wal)
		xid=$(last_xid)
		cpu=$(cpu_of_all "$pids")
		switches=$(switches_of "$pids")
		sleep $MINUTE
		switches=$(($(switches_of "$pids") - switches))
		cpu=$(($(cpu_of_all "$pids") - cpu))
		xid=$(($(last_xid) - xid))
		wal=$(($(end_of_wal) - wal))
		note "$figure: wake-ups of a process" outbox \
			"$(query "SELECT $switches / $(wc -w <<<"$pids")::float8")" '' \
			'heartbeats and timers'
		note "$figure: CPU of all" outbox "$(query "SELECT $cpu / 1e6")" ms
		note "$figure: transaction ids" outbox $xid '' 0
		note "$figure: WAL" outbox $wal bytes 0
		set_enabled off
		await 30 worker_gone || die "the workers do not stop"
		drop_idle_servers
	}
	in_turn ours
}
