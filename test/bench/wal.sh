# shellcheck shell=bash
#
# wal: what a message writes to the WAL until it is delivered, receipts included,
# against the plain INSERT of the same row.

# end_of_wal: in bytes
end_of_wal()
{
	query "SELECT pg_current_wal_insert_lsn() - '0/0'"
}

# note_wal FIGURE SIDE SCRIPT TRANSACTIONS MESSAGES [GOAL]
note_wal()
{
	local begin

	begin=$(end_of_wal)
	pgbench -n -M prepared -c 4 -j 2 -t $(($4 / 4)) -f "test/bench/$3.sql" \
		>"$WORK/log/pgbench.log" 2>&1 ||
		die "pgbench failed: $(tail -n 3 "$WORK/log/pgbench.log")"
	[ "$2" != outbox ] || await_settled
	note "$1" "$2" "$(query "SELECT ($(end_of_wal) - $begin) / $5::float8")" bytes "${6:-}"
}

wal()
{
	local single="WAL for a message, delivery included, 1 per transaction"
	local many="WAL for a message, delivery included, 1,000 per transaction"

	ours() {
		fresh_queue
		reset_tables
		start_worker
		note_wal "$single" outbox publish 20000 20000
		note_wal "$many" outbox publish_1000 100 100000
		stop_worker
	}
	theirs() {
		reset_tables
		note_wal "$single" plain insert 20000 20000 '≤ 1.05'
		note_wal "$many" plain insert_1000 100 100000 '≤ 0.9'
	}
	in_turn ours theirs
}
