# shellcheck shell=bash
#
# triggers: what amqp_publish_row() adds to the INSERT of a row of ten columns, in
# CPU, by itself and with the commit; the same INSERT without a trigger is
# subtracted.

triggers_prepare()
{
	psql -qX -v ON_ERROR_STOP=1 -f test/bench/triggers.sql
}

# note_trigger FIGURE UNTIL SIDE KIND GOAL
note_trigger()
{
	note "$1" "$3" "$(query "SELECT round($2::numeric, 3) FROM trigger_cost
		WHERE kind = '$4'")" µs "${5:-}"
}

triggers()
{
	local until figure

	reset_tables
	query 'TRUNCATE trigger_time, job_none, job_row, job_statement,
		job_plpgsql_row, job_plpgsql_statement; CHECKPOINT'
	query "CALL measure_triggers($ROWS, $REPETITIONS)" || exit 1
	for until in at_end at_commit; do
		figure="CPU added to a row of 10 columns, $ROWS rows"
		[ $until = at_end ] || figure="$figure, commit included"
		note_trigger "row trigger, $figure" $until outbox row
		note_trigger "row trigger, $figure" $until "PL/pgSQL trigger" \
			plpgsql_row '≥ 1'
		note_trigger "statement trigger, $figure" $until outbox statement
		note_trigger "statement trigger, $figure" $until "PL/pgSQL trigger" \
			plpgsql_statement '≥ 1'
		note_trigger "statement trigger, $figure" $until "row trigger" row '≥ 2'
	done
}
