/*-------------------------------------------------------------------------
 *
 * allow.c
 *	  The SQL functions that change a server's allow list.
 *
 * They are the server owner's; the statements run as the tables' owner.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "admit.h"
#include "catalog.h"
#include "enqueue.h"
#include "pattern.h"
#include "permission.h"
#include "query.h"
#include "server.h"

PG_FUNCTION_INFO_V1(outbox_sql_allow);
PG_FUNCTION_INFO_V1(outbox_sql_disallow);
PG_FUNCTION_INFO_V1(outbox_sql_allowed_changed);

/* The arguments of both functions, and their places in the statements. */
enum OutboxAllowArgument
{
	ALLOW_SERVER,
	ALLOW_ROLE,
	ALLOW_EXCHANGE,
	ALLOW_ROUTING_KEY,
	ALLOW_NARGUMENTS
};

static const char *const allow_arguments[ALLOW_NARGUMENTS] = {
	"server", "role", "exchange", "routing_key"
};

static OutboxQuery add_entry = {
	"INSERT INTO amqp_outbox.allowed_item"
	" (server_key, role, exchange, routing_key) VALUES ($1, $2, $3, $4)"
	" ON CONFLICT DO NOTHING RETURNING true",
	ALLOW_NARGUMENTS, {INT4OID, OIDOID, TEXTOID, TEXTOID}, NULL
};

static OutboxQuery remove_entry = {
	"DELETE FROM amqp_outbox.allowed_item a"
	" WHERE a.server_key OPERATOR(pg_catalog.=) $1"
	" AND a.role OPERATOR(pg_catalog.=) $2"
	" AND a.exchange OPERATOR(pg_catalog.=) $3"
	" AND a.routing_key OPERATOR(pg_catalog.=) $4 RETURNING true",
	ALLOW_NARGUMENTS, {INT4OID, OIDOID, TEXTOID, TEXTOID}, NULL
};

static void
outbox_allow_check_pattern(FunctionCallInfo fcinfo, int argument)
{
	const text *t = PG_GETARG_TEXT_PP(argument);

	if (VARSIZE_ANY_EXHDR(t) > OUTBOX_SHORTSTR_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("pattern \"%s\" is too long", allow_arguments[argument]),
				 errdetail("It has %zu bytes; what it could cover has at most %d.",
						   VARSIZE_ANY_EXHDR(t), OUTBOX_SHORTSTR_MAX),
				 errhint("Shorten it.")));
	if (!outbox_pattern_is_clear(VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("pattern \"%s\" is not clear: \"%s\"",
						allow_arguments[argument], text_to_cstring(t)),
				 errdetail("In AMQP's patterns \"*\" stands for one word between dots, and \"#\" for any number of them; beside other characters they mean themselves."),
				 errhint("Write a dot between them, such as 'plant1.*.closed' or 'plant1.#'.")));
}

static void
outbox_allow_run(FunctionCallInfo fcinfo, OutboxQuery *query, bool *found)
{
	Datum		values[ALLOW_NARGUMENTS];
	const char *role;
	OutboxRow	row;

	for (int i = 0; i < ALLOW_NARGUMENTS; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument \"%s\" must not be null",
							allow_arguments[i]),
					 errhint("For all roles give the role public; for all exchanges or routing keys give '#'.")));
		values[i] = PG_GETARG_DATUM(i);
	}
	outbox_allow_check_pattern(fcinfo, ALLOW_EXCHANGE);
	outbox_allow_check_pattern(fcinfo, ALLOW_ROUTING_KEY);
	role = NameStr(*PG_GETARG_NAME(ALLOW_ROLE));
	values[ALLOW_SERVER] =
		Int32GetDatum(outbox_server_lock_key_of_owner(NameStr(*PG_GETARG_NAME(ALLOW_SERVER))));
	/* as in GRANT ... TO PUBLIC */
	values[ALLOW_ROLE] = ObjectIdGetDatum(strcmp(role, "public") == 0 ?
										  InvalidOid :
										  get_role_oid(role, false));
	*found = outbox_query(query, values, &row);
}

Datum
outbox_sql_allow(PG_FUNCTION_ARGS)
{
	bool		found;
	Oid			serverid;
	const OutboxAdmission *admission;

	outbox_enqueue_precheck("allow()");
	outbox_allow_run(fcinfo, &add_entry, &found);
	serverid = outbox_server_of_owner(NameStr(*PG_GETARG_NAME(ALLOW_SERVER)));
	admission = outbox_admit_rules(serverid);
	if (admission == NULL || !admission->allow_list)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("server \"%s\" has no allow list, and every role with USAGE may publish anything",
						NameStr(*PG_GETARG_NAME(ALLOW_SERVER))),
				 errhint("When the entries are complete: ALTER SERVER ... OPTIONS (ADD allow_list 'true').")));
	PG_RETURN_VOID();
}

Datum
outbox_sql_disallow(PG_FUNCTION_ARGS)
{
	bool		found;

	outbox_enqueue_precheck("disallow()");
	outbox_allow_run(fcinfo, &remove_entry, &found);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the allow list of server \"%s\" has no such entry",
						NameStr(*PG_GETARG_NAME(ALLOW_SERVER))),
				 errhint("amqp_outbox.allowed shows those that there are.")));
	PG_RETURN_VOID();
}

/* A trigger: whatever changes the table, also a restore. */
Datum
outbox_sql_allowed_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("amqp_outbox.allowed_changed() is a trigger of the extension's own tables")));
	outbox_permission_note_change();
	PG_RETURN_POINTER(NULL);
}
