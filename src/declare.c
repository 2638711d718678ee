/*-------------------------------------------------------------------------
 *
 * declare.c
 *	  The SQL functions that say what a broker shall have.
 *
 * All that can be known is checked here, at the call, as it is for messages:
 * the broker would answer later, and in the log.  Names come from AMQP 0-9-1
 * (sections 1.7 and 3.1.3), what a type of queue can be from
 * https://www.rabbitmq.com/docs/queues.
 *
 * Runs in sessions.  The functions are the server owner's; the install script
 * pins their search_path.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"

#include "catalog.h"
#include "properties.h"
#include "server.h"
#include "shared.h"
#include "topology.h"
#include "utility.h"

PG_FUNCTION_INFO_V1(outbox_sql_declare_exchange);
PG_FUNCTION_INFO_V1(outbox_sql_declare_queue);
PG_FUNCTION_INFO_V1(outbox_sql_bind_queue);
PG_FUNCTION_INFO_V1(outbox_sql_bind_exchange);
PG_FUNCTION_INFO_V1(outbox_sql_undeclare_exchange);
PG_FUNCTION_INFO_V1(outbox_sql_undeclare_queue);
PG_FUNCTION_INFO_V1(outbox_sql_unbind_queue);
PG_FUNCTION_INFO_V1(outbox_sql_unbind_exchange);

/* The call of one of the functions. */
typedef struct OutboxDeclaration
{
	FunctionCallInfo fcinfo;
	const char *function;		/* its name, for errors */
	OutboxItem	item;
} OutboxDeclaration;

static void
outbox_declaration_begin(OutboxDeclaration *call, FunctionCallInfo fcinfo,
						 const char *function, OutboxItemKind kind)
{
	char	   *command = psprintf("%s()", function);

	outbox_shared_require();
	PreventCommandIfReadOnly(command);
	PreventCommandIfParallelMode(command);
	PreventCommandDuringRecovery(command);

	memset(call, 0, sizeof(*call));
	call->fcinfo = fcinfo;
	call->function = function;
	call->item.kind = kind;
	call->item.source = call->item.routing_key = "";
}

/*
 * Arguments
 */

static void
outbox_declaration_not_null(const OutboxDeclaration *call, int arg,
							const char *name)
{
	if (call->fcinfo->args[arg].isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" of %s must not be null", name,
						call->function),
				 errhint("Leave it out to have its default, if it has one.")));
}

static bool
outbox_declaration_bool(const OutboxDeclaration *call, int arg,
						const char *name)
{
	outbox_declaration_not_null(call, arg, name);
	return DatumGetBool(call->fcinfo->args[arg].value);
}

/*
 * A short string of AMQP.  RabbitMQ takes line ends out of names, and then it
 * is another name.
 */
static char *
outbox_declaration_text(const OutboxDeclaration *call, int arg,
						const char *name)
{
	char	   *str;
	char	   *utf8;

	outbox_declaration_not_null(call, arg, name);
	str = text_to_cstring(DatumGetTextPP(call->fcinfo->args[arg].value));
	utf8 = pg_server_to_any(str, strlen(str), PG_UTF8);
	if (strlen(utf8) > OUTBOX_SHORTSTR_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("argument \"%s\" of %s is too long", name,
						call->function),
				 errdetail("It has %zu bytes in UTF-8; AMQP allows %d.",
						   strlen(utf8), OUTBOX_SHORTSTR_MAX),
				 errhint("Shorten it.")));
	if (strpbrk(str, "\r\n") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" of %s must not contain line ends",
						name, call->function),
				 errdetail("The broker would take them out."),
				 errhint("Leave them out.")));
	return str;
}

/* The name of an exchange or a queue that is referred to. */
static char *
outbox_declaration_reference(const OutboxDeclaration *call, int arg,
							 const char *name)
{
	char	   *str = outbox_declaration_text(call, arg, name);

	if (str[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" of %s must not be empty", name,
						call->function),
				 strcmp(name, "queue") == 0
				 ? errdetail("The broker would make up a name that nobody knows.")
				 : errdetail("The empty name is that of the default exchange, which leads to every queue by its name and cannot be changed."),
				 errhint("Name one.")));
	return str;
}

/* The name of one that is to be there. */
static char *
outbox_declaration_name(const OutboxDeclaration *call, int arg,
						const char *name)
{
	char	   *str = outbox_declaration_reference(call, arg, name);

	if (strncmp(str, "amq.", 4) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("the name \"%s\" is reserved", str),
				 errdetail("Names that begin with \"amq.\" are the broker's own."),
				 errhint("Choose another name.  What the broker has by itself can be bound without being declared.")));
	return str;
}

static Jsonb *
outbox_declaration_arguments(const OutboxDeclaration *call, int arg)
{
	Jsonb	   *arguments;
	Size		size;

	if (call->fcinfo->args[arg].isnull)
		return NULL;
	arguments = DatumGetJsonbP(call->fcinfo->args[arg].value);
	(void) outbox_properties_build_arguments(arguments, &size);
	if (size > OUTBOX_ARGUMENTS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("arguments are too large"),
				 errdetail("They have %zu bytes as AMQP encodes them; the limit is %d.",
						   size, OUTBOX_ARGUMENTS_MAX),
				 errhint("Shorten them.")));
	return arguments;
}

/*
 * Types
 */

static void
outbox_declaration_check_exchange_type(const char *type)
{
	static const char *const types[] = {"direct", "fanout", "topic", "headers"};

	for (int i = 0; i < (int) lengthof(types); i++)
	{
		if (strcmp(type, types[i]) == 0)
			return;
	}
	if (strncmp(type, "x-", 2) == 0)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" is not a type of exchange", type),
			 errdetail("AMQP knows direct, fanout, topic and headers; types of plugins begin with \"x-\"."),
			 errhint("Choose one of these.")));
}

static bool
outbox_declaration_is_replicated(const char *type)
{
	return type != NULL &&
		(strcmp(type, "quorum") == 0 || strcmp(type, "stream") == 0);
}

static void
outbox_declaration_check_queue(const OutboxItem *item)
{
	JsonbValue	value;

	if (item->type != NULL && strcmp(item->type, "classic") != 0 &&
		!outbox_declaration_is_replicated(item->type))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" is not a type of queue", item->type),
				 errhint("Choose classic, quorum or stream; or null for the broker's default.")));
	if (outbox_declaration_is_replicated(item->type) &&
		(!item->durable || item->auto_delete))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a queue of type %s must be durable and cannot be deleted automatically",
						item->type),
				 errhint("Leave durable and auto_delete out, or declare a queue of type classic.")));
	if (item->arguments != NULL &&
		getKeyJsonValueFromContainer(&item->arguments->root, "x-queue-type",
									 strlen("x-queue-type"), &value) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the type of a queue is not given as an argument of it"),
				 errhint("Leave \"x-queue-type\" out and use declare_queue(..., type => ...).")));
}

/*
 * The server
 */

static int32
outbox_declaration_server(const OutboxDeclaration *call)
{
	outbox_declaration_not_null(call, 0, "server");
	return outbox_server_lock_key_of_owner(NameStr(*DatumGetName(call->fcinfo->args[0].value)));
}

/*
 * What is declared is this database's, and not a copy's: so whoever declares
 * claims it, like whoever publishes.
 */
static void
outbox_declaration_put(OutboxDeclaration *call)
{
	int32		server_key = outbox_declaration_server(call);

	outbox_catalog_claim_identity();
	outbox_topology_declare(server_key, &call->item);
	outbox_utility_note_topology(false);
}

static void
outbox_declaration_not_there(const OutboxDeclaration *call)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("%s is not declared for server \"%s\"",
					outbox_topology_describe(&call->item),
					NameStr(*DatumGetName(call->fcinfo->args[0].value))),
			 errhint("amqp_outbox.topology shows what is declared.")));
}

/* The broker can delete only so much. */
static void
outbox_declaration_check_delete(const OutboxDeclaration *call,
								int32 server_key)
{
	const OutboxItem *item = &call->item;
	char	   *type;
	char	   *binding;

	if (!outbox_topology_find(server_key, item, &type))
		outbox_declaration_not_there(call);
	if (item->kind == OUTBOX_ITEM_EXCHANGE_BINDING ||
		item->kind == OUTBOX_ITEM_QUEUE_BINDING)
		return;
	if (item->kind == OUTBOX_ITEM_QUEUE &&
		outbox_declaration_is_replicated(type) &&
		(item->if_unused || item->if_empty))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a queue of type %s cannot be deleted on condition",
						type),
				 errdetail("The broker deletes it whether it is used and whatever is in it, or not at all."),
				 errhint("Pass if_unused => false, if_empty => false if that may be lost.")));
	binding = outbox_topology_binding_of(server_key, item);
	if (binding != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot delete %s at the broker because it is bound",
						outbox_topology_describe(item)),
				 errdetail("There is the %s.", binding),
				 errhint("Take its bindings back first, in the same transaction if you like.")));
}

static void
outbox_declaration_remove(OutboxDeclaration *call, int delete_arg)
{
	bool		delete = outbox_declaration_bool(call, delete_arg,
												 "delete_at_broker");
	int32		server_key = outbox_declaration_server(call);
	bool		found;

	if (delete)
	{
		outbox_declaration_check_delete(call, server_key);
		found = outbox_topology_delete(server_key, &call->item);
	}
	else
		found = outbox_topology_undeclare(server_key, &call->item);
	if (!found)
		outbox_declaration_not_there(call);
	outbox_utility_note_topology(false);
}

/*
 * The functions; arguments as in the install script
 */

Datum
outbox_sql_declare_exchange(PG_FUNCTION_ARGS)
{
	OutboxDeclaration call;

	outbox_declaration_begin(&call, fcinfo, "declare_exchange",
							 OUTBOX_ITEM_EXCHANGE);
	call.item.name = outbox_declaration_name(&call, 1, "exchange");
	call.item.type = outbox_declaration_text(&call, 2, "type");
	outbox_declaration_check_exchange_type(call.item.type);
	call.item.durable = outbox_declaration_bool(&call, 3, "durable");
	call.item.auto_delete = outbox_declaration_bool(&call, 4, "auto_delete");
	call.item.internal = outbox_declaration_bool(&call, 5, "internal");
	call.item.arguments = outbox_declaration_arguments(&call, 6);
	outbox_declaration_put(&call);
	PG_RETURN_VOID();
}

Datum
outbox_sql_declare_queue(PG_FUNCTION_ARGS)
{
	OutboxDeclaration call;

	outbox_declaration_begin(&call, fcinfo, "declare_queue",
							 OUTBOX_ITEM_QUEUE);
	call.item.name = outbox_declaration_name(&call, 1, "queue");
	if (!PG_ARGISNULL(2))
		call.item.type = outbox_declaration_text(&call, 2, "type");
	call.item.durable = outbox_declaration_bool(&call, 3, "durable");
	call.item.auto_delete = outbox_declaration_bool(&call, 4, "auto_delete");
	call.item.arguments = outbox_declaration_arguments(&call, 5);
	outbox_declaration_check_queue(&call.item);
	outbox_declaration_put(&call);
	PG_RETURN_VOID();
}

/* Both ends, routing key and arguments of a binding. */
static void
outbox_declaration_binding(OutboxDeclaration *call, const char *name,
						   const char *source)
{
	OutboxItem *item = &call->item;

	item->name = outbox_declaration_reference(call, 1, name);
	item->source = outbox_declaration_reference(call, 2, source);
	item->routing_key = outbox_declaration_text(call, 3, "routing_key");
	item->arguments = outbox_declaration_arguments(call, 4);
}

Datum
outbox_sql_bind_queue(PG_FUNCTION_ARGS)
{
	OutboxDeclaration call;

	outbox_declaration_begin(&call, fcinfo, "bind_queue",
							 OUTBOX_ITEM_QUEUE_BINDING);
	outbox_declaration_binding(&call, "queue", "exchange");
	outbox_declaration_put(&call);
	PG_RETURN_VOID();
}

Datum
outbox_sql_bind_exchange(PG_FUNCTION_ARGS)
{
	OutboxDeclaration call;

	outbox_declaration_begin(&call, fcinfo, "bind_exchange",
							 OUTBOX_ITEM_EXCHANGE_BINDING);
	outbox_declaration_binding(&call, "destination", "source");
	outbox_declaration_put(&call);
	PG_RETURN_VOID();
}

Datum
outbox_sql_undeclare_exchange(PG_FUNCTION_ARGS)
{
	OutboxDeclaration call;

	outbox_declaration_begin(&call, fcinfo, "undeclare_exchange",
							 OUTBOX_ITEM_EXCHANGE);
	call.item.name = outbox_declaration_reference(&call, 1, "exchange");
	call.item.if_unused = outbox_declaration_bool(&call, 3, "if_unused");
	outbox_declaration_remove(&call, 2);
	PG_RETURN_VOID();
}

Datum
outbox_sql_undeclare_queue(PG_FUNCTION_ARGS)
{
	OutboxDeclaration call;

	outbox_declaration_begin(&call, fcinfo, "undeclare_queue",
							 OUTBOX_ITEM_QUEUE);
	call.item.name = outbox_declaration_reference(&call, 1, "queue");
	call.item.if_unused = outbox_declaration_bool(&call, 3, "if_unused");
	call.item.if_empty = outbox_declaration_bool(&call, 4, "if_empty");
	outbox_declaration_remove(&call, 2);
	PG_RETURN_VOID();
}

Datum
outbox_sql_unbind_queue(PG_FUNCTION_ARGS)
{
	OutboxDeclaration call;

	outbox_declaration_begin(&call, fcinfo, "unbind_queue",
							 OUTBOX_ITEM_QUEUE_BINDING);
	outbox_declaration_binding(&call, "queue", "exchange");
	outbox_declaration_remove(&call, 5);
	PG_RETURN_VOID();
}

Datum
outbox_sql_unbind_exchange(PG_FUNCTION_ARGS)
{
	OutboxDeclaration call;

	outbox_declaration_begin(&call, fcinfo, "unbind_exchange",
							 OUTBOX_ITEM_EXCHANGE_BINDING);
	outbox_declaration_binding(&call, "destination", "source");
	outbox_declaration_remove(&call, 5);
	PG_RETURN_VOID();
}
