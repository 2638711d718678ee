# shellcheck shell=bash
#
# clients: enqueueing by many clients, and while messages are delivered.

# delivering COMMAND...: with a worker that delivers
delivering()
{
	fresh_queue
	start_worker
	"$@"
	await_settled
	stop_worker
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
	figure='1 message per transaction, 8 clients, being delivered meanwhile'
	ours() { delivering single "$figure" outbox publish -c 8 -j 2; }
	theirs() { single "$figure" plain insert -c 8 -j 2; }
	in_turn ours theirs
	figure='transactions of 1,000 messages, 4 clients'
	ours() { single "$figure" outbox publish_1000 -c 4 -j 2; }
	theirs() { single "$figure" plain insert_1000 -c 4 -j 2; }
	in_turn ours theirs
}
