# shellcheck shell=bash
#
# missing: what messages to an exchange that does not exist cost the others.

# drain_good FIGURE SIDE QUERY: the query publishes, among others, half as many
# good messages as there are messages; how fast do they leave?  (The queue does
# not tell: what was in flight when the channel closed is there twice.)
drain_good()
{
	local begin

	fresh_queue
	reset_tables
	query "$3" >/dev/null || exit 1
	begin=$(now)
	set_enabled on
	await_settled
	note "$1" "$2" "$(query "SELECT round($MESSAGES / 2 /
		(extract(epoch FROM min(settled_at)) - $begin)) FROM amqp_outbox.receipt
		WHERE through_id >= (SELECT max(id) FROM amqp_outbox.outbox)")"
	stop_worker
}

missing()
{
	local figure="$((MESSAGES / 2)) good messages among as many to a missing exchange"

	ours() {
		drain_good "$figure" outbox "SELECT count(amqp_publish(
				CASE WHEN i % 2 = 0 THEN '' ELSE 'missing' END, 'bench', $BODY))
			FROM generate_series(1, $MESSAGES) i"
	}
	theirs() {
		drain_good "$figure" alone "SELECT count(amqp_publish('', 'bench', $BODY))
			FROM generate_series(1, $MESSAGES / 2)"
	}
	in_turn ours theirs
}
