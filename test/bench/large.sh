# shellcheck shell=bash
#
# large: the drain of large bodies to a classic queue, against the bare publisher's.

large()
{
	local SIZE MESSAGES BODY figure

	for SIZE in 1048576 16777216; do
		MESSAGES=$((LARGE * 262144 / SIZE))
		BODY="convert_to(repeat('x', $SIZE), 'UTF8')"
		figure="draining $MESSAGES messages of $((SIZE / 1048576)) MB"
		ours() { drain_outbox "$figure"; }
		theirs() { drain_bare "$figure" '≥ 0.9'; }
		in_turn ours theirs
	done
}
