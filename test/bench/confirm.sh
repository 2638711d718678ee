# shellcheck shell=bash
#
# confirm: what amqp_wait_for_confirm() costs for a message that was confirmed,
# with others stored that wait for a server that is paused.

confirm_prepare()
{
	psql -qX -v ON_ERROR_STOP=1 -f test/bench/confirm.sql
}

# wait_in_own_session: publish a message and await it; its id, and how long
# waiting for it takes then
wait_in_own_session()
{
	psql -qAtX -v ON_ERROR_STOP=1 <<-'END'
		SELECT amqp_publish('', 'bench', 'awaited'::text, server => 'bench') AS id \gset
		SELECT 1 / amqp_wait_for_confirm(:'id', '1 min')::int AS confirmed \gset
		SELECT :'id', wait_time(:'id', 1000);
	END
}

# note_wait SIDE GOAL
note_wait()
{
	local id own

	set_enabled on
	IFS='|' read -r id own < <(wait_in_own_session)
	[ -n "$own" ] || die "the message was not confirmed"
	note "amqp_wait_for_confirm() of an own message, $BACKLOG stored" "$1" \
		"$own" ms "${2:-}"
	note "amqp_wait_for_confirm() of another's message, $BACKLOG stored" "$1" \
		"$(query "SELECT wait_time('$id', 5)")" ms
	stop_worker
}

store_for_parked()
{
	query "CREATE SERVER parked FOREIGN DATA WRAPPER amqp_outbox
		OPTIONS (uri 'amqp://127.0.0.1', paused 'true')" || exit 1
	query "SELECT count(amqp_publish('', 'bench', $BODY, server => 'parked'))
		FROM generate_series(1, $BACKLOG)" >/dev/null && query CHECKPOINT
}

confirm()
{
	ours() {
		reset_tables
		store_for_parked || exit 1
		note_wait outbox
		reset_tables
		query 'DROP SERVER parked' || exit 1
	}
	theirs() {
		reset_tables
		note_wait 'none stored' '≥ 0.9'
	}
	in_turn ours theirs
}
