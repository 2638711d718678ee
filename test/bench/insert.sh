# shellcheck shell=bash
#
# insert: publishing by INSERT and by COPY into amqp_outbox.message, against
# calls of amqp_publish().

insert_prepare()
{
	query "COPY (SELECT '', 'bench', $BODY FROM generate_series(1, $MESSAGES / 2))
		TO '$WORK/tmp/messages'"
}

insert()
{
	local MESSAGES=$((MESSAGES / 2)) into="INTO amqp_outbox.message"
	local inserted="$MESSAGES messages by INSERT $into"
	local copied="$MESSAGES messages by COPY $into"

	insert_view() {
		query "INSERT $into (exchange, routing_key, body)
			SELECT '', 'bench', $BODY FROM generate_series(1, $MESSAGES)"
	}
	copy_view() {
		query "COPY amqp_outbox.message (exchange, routing_key, body)
			FROM '$WORK/tmp/messages'"
	}
	ours() {
		timed "$inserted" outbox insert_view
		timed "$copied" outbox copy_view
	}
	theirs() {
		timed "$inserted" 'amqp_publish()' publish_many '≥ 0.5'
		timed "$copied" 'amqp_publish()' publish_many '≥ 0.5'
	}
	in_turn ours theirs
}
