# shellcheck shell=bash
#
# memory: of a backend that publishes many messages, or many large ones, in one
# transaction, and of the worker that delivers the large ones.

# publish_watched: note the peak of a backend that publishes MESSAGES
publish_watched()
{
	local fd pid idle

	rm -f "$WORK/pid" "$WORK/done"
	exec {fd}> >(psql -qAtX >"$WORK/log/publish_watched.log" 2>&1)
	echo '\o '"$WORK/pid"$'\nSELECT pg_backend_pid();\n\\o' >&$fd
	await 10 test -s "$WORK/pid" || die "no backend"
	pid=$(<"$WORK/pid")
	# it has published before
	echo "SELECT amqp_publish('', 'bench', 'first'::text);" >&$fd
	idle=$(memory_of "$pid")
	start_watching "$pid"
	echo "SELECT count(amqp_publish('', 'bench', $BODY))
		FROM generate_series(1, $MESSAGES);" >&$fd
	echo '\o '"$WORK/done"$'\nSELECT 1;\n\\o' >&$fd
	await 3000 test -s "$WORK/done" || die "publishing failed"
	note "$1" outbox "$(stop_watching)" MB
	note "$1" idle "$idle" MB "$2"
	exec {fd}>&-
}

memory()
{
	local QUEUE=classic

	ours() {
		reset_tables
		MESSAGES=$BACKLOG publish_watched \
			"memory of a backend, $BACKLOG messages in one transaction" \
			'≤ 64 MB more'
	}
	in_turn ours
	ours() {
		local MESSAGES=$LARGE idle figure="memory of the worker, $LARGE messages of 1 MB"
		local BODY=$(random_body 1048576)

		fresh_queue
		reset_tables
		start_worker
		idle=$(memory_of "$(worker_pid)")
		stop_worker
		publish_watched "memory of a backend, $LARGE messages of 1 MB in one transaction" \
			'≤ 64 MB more'
		start_worker_watched
		note "$figure" outbox "$(stop_watching)" MB
		# those that wait to be sent, and what one is sent with
		note "$figure" idle "$idle" MB '≤ 32 MB more'
		stop_worker
	}
	in_turn ours
}

worker_runs()
{
	[ -n "$(worker_pid)" ]
}

start_worker_watched()
{
	set_enabled on
	await 30 worker_runs || die "no worker"
	start_watching "$(worker_pid)"
	await_settled
}
