# shellcheck shell=bash
#
# large: the drain of large bodies to a classic queue, against the bare publisher's.
# They cannot be compressed.  The first ones of a size that a broker gets take up to
# twice the time, whoever sends them, so those come before.

# random_body BYTES: a multiple of 64
random_body()
{
	echo "(SELECT string_agg(sha512(i::text::bytea), '')
		FROM generate_series(1, $1 / 64) i)"
}

accustom_broker()
{
	local i

	for i in 1 2; do
		fresh_queue
		amqp_bare --key bench --count $MESSAGES --size $SIZE --window $WINDOW \
			>/dev/null || exit 1
	done
}

large()
{
	local SIZE MESSAGES BODY figure

	for SIZE in 1048576 16777216; do
		MESSAGES=$((LARGE * 419431 / SIZE))
		BODY=$(random_body $SIZE)
		[ $round -gt 1 ] || accustom_broker
		figure="draining $MESSAGES messages of $((SIZE / 1048576)) MB"
		ours() { drain_outbox "$figure"; }
		theirs() { drain_bare "$figure" '≥ 0.9'; }
		in_turn ours theirs
	done
}
