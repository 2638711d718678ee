# shellcheck shell=bash
#
# relay: what a hand-written relay does, for the reader: a table that is filled by
# INSERT, and a process that takes rows FOR UPDATE SKIP LOCKED, publishes them with
# confirms, and deletes them.  In C (relay.c) it publishes 1,000 at once, in Python
# (relay.py) one by one, as pika's BlockingConnection does.

# Instead of this shell, which is a subshell: so a signal reaches it.
run_relay()
{
	local QUEUE figure

	for QUEUE in classic quorum; do
		figure="draining $MESSAGES messages, $QUEUE queue, and a relay"
		ours() { drain_outbox "$figure"; }
		theirs() {
			drain_relay "$figure" C $MESSAGES
			drain_relay "$figure" Python $((MESSAGES / 20))
		}
		in_turn ours theirs
	done
	QUEUE=classic
	ours() { FIGURE_ENDS=', and a relay' latency_outbox 100; }
	theirs() {
		latency_relay 100 C
		latency_relay 100 Python
	}
	in_turn ours theirs
	together
}
