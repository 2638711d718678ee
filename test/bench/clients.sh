# shellcheck shell=bash
#
# clients: enqueueing by many clients, and while messages are delivered.

# delivering COMMAND...: with a worker that delivers; what it used of the CPU
delivering()
{
	local cpu

	fresh_queue
	start_worker
	cpu=$(worker_cpu)
	"$@"
	await_settled
	note "worker's CPU for each of them" outbox "$(query "SELECT
		($(worker_cpu) - $cpu) / 1e3 / count(*) FROM amqp_outbox.outbox")" µs
	stop_worker
}

while_delivering()
{
	local figure='1 message per transaction, 8 clients, being delivered meanwhile'

	ours() { reset_tables && delivering single "$figure" outbox publish -c 8 -j 2; }
	theirs() { single "$figure" plain insert -c 8 -j 2; }
	in_turn ours theirs
}

clients()
{
	local figure n

	for n in 8 32; do
		figure="1 message per transaction, $n clients"
		ours() { single "$figure" outbox publish -c $n -j 2; }
		theirs() { single "$figure" plain insert -c $n -j 2; }
		in_turn ours theirs
	done
	[ $round -gt 3 ] || while_delivering
	figure='transactions of 1,000 messages, 4 clients'
	ours() { single "$figure" outbox publish_1000 -c 4 -j 2; }
	theirs() { single "$figure" plain insert_1000 -c 4 -j 2; }
	in_turn ours theirs
}
