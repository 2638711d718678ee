# shellcheck shell=bash
#
# tls: the drain to a quorum queue over TLS, against the bare publisher's over TLS.

# with_tls COMMAND...: the server meanwhile has another address
with_tls()
{
	local uri="amqps://127.0.0.1:$(<"$WORK/tls/port")"

	query "ALTER SERVER bench OPTIONS (SET uri '$uri',
		ADD cacertfile '$WORK/tls/certificate.pem')" || exit 1
	"$@"
	query "ALTER SERVER bench OPTIONS (SET uri '${AMQP_URL/guest:guest@/}',
		DROP cacertfile)"
}

tls()
{
	local QUEUE=quorum MESSAGES=$DRAINED CPU_FIGURE="worker's CPU for each of them, TLS"
	local figure="draining $MESSAGES messages of $SIZE bytes, quorum queue, TLS"
	local PUBLISHER_ARGUMENTS=(--cacertfile "$WORK/tls/certificate.pem"
		--url "amqps://guest:guest@127.0.0.1:$(<"$WORK/tls/port")")

	ours() { with_tls drain_outbox "$figure"; }
	theirs() { drain_bare "$figure" '≥ 0.9'; }
	in_turn ours theirs
}
