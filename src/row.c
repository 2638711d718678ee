/*-------------------------------------------------------------------------
 *
 * row.c
 *	  amqp_publish_row(): the trigger function, for rows and statements.
 *
 * FOR EACH ROW it is called with the row.  FOR EACH STATEMENT it is called
 * once and goes through the transition tables, which are tuplestores; there is
 * no query.  For an UPDATE both hold the same rows in the same order, because
 * the executor puts a row into both at the same place; only a row that moves
 * to another partition is put first into the one and later into the other, and
 * a BEFORE trigger there may drop it between the two.  Then their numbers
 * differ, and the statement fails rather than pairing rows that do not belong
 * together.
 *
 * Whatever the session has set, the same row makes the same message: the
 * settings that change how values look as text are pinned while values are
 * written (all but TimeZone, with which a timestamptz names the same instant).
 * Nothing is looked up by an unqualified name, so search_path has no say.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/float.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "enqueue.h"
#include "row.h"
#include "row_message.h"

PG_FUNCTION_INFO_V1(outbox_sql_publish_row);

/* For the context of errors. */
typedef struct OutboxRowContext
{
	TriggerData *trigger;
	const char *option;			/* being read; NULL: none */
} OutboxRowContext;

static void
outbox_row_error_context(void *arg)
{
	OutboxRowContext *context = arg;
	Trigger    *trigger = context->trigger->tg_trigger;

	if (context->option != NULL)
	{
		/* errors of the input functions of these types have none */
		if (strncmp(context->option, "expiration=", 11) == 0)
			errhint("Give an interval, such as 90 s or 10 min.");
		else if (geterrcode() == ERRCODE_INVALID_TEXT_REPRESENTATION)
			errhint("Give a JSON object, such as {\"name\": \"value\"}.");
		errcontext("option \"%s\"", context->option);
	}
	errcontext("trigger \"%s\" on table \"%s\", which publishes to exchange \"%s\" with routing key \"%s\"",
			   trigger->tgname,
			   RelationGetRelationName(context->trigger->tg_relation),
			   trigger->tgnargs > 0 ? trigger->tgargs[0] : "",
			   trigger->tgnargs > 1 ? trigger->tgargs[1] : "");
}

/*
 * Which calls are refused
 */

static void
outbox_row_check_call(FunctionCallInfo fcinfo)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("amqp_publish_row can only be called as a trigger"),
				 errhint("CREATE TRIGGER ... AFTER INSERT OR UPDATE OR DELETE ON ... FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('exchange', 'routing.key.{op}'); to publish from elsewhere, call amqp_publish().")));
}

static void
outbox_row_check_time(TriggerData *data)
{
	if (TRIGGER_FIRED_AFTER(data->tg_event))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg("trigger \"%s\" must be fired AFTER the event",
					data->tg_trigger->tgname),
			 TRIGGER_FIRED_BEFORE(data->tg_event)
			 ? errdetail("A later BEFORE trigger may still change the row or skip it.")
			 : errdetail("An INSTEAD OF trigger is there to make the change itself."),
			 TRIGGER_FIRED_BEFORE(data->tg_event)
			 ? errhint("CREATE TRIGGER ... AFTER INSERT OR UPDATE OR DELETE ON ... EXECUTE FUNCTION amqp_publish_row(...).")
			 : errhint("Make the trigger on the tables behind the view, AFTER the event.")));
}

/* The transition tables that the operation needs. */
static void
outbox_row_check_transition(TriggerData *data, OutboxRowPlan *plan,
							OutboxRowOp op)
{
	bool		needs_new = op == OUTBOX_ROW_INSERT || op == OUTBOX_ROW_UPDATE;
	bool		needs_old = op == OUTBOX_ROW_DELETE ||
		(op == OUTBOX_ROW_UPDATE && plan->needs_old);
	const char *clause = needs_new && needs_old
		? "OLD TABLE AS old_rows NEW TABLE AS new_rows"
		: needs_new ? "NEW TABLE AS new_rows" : "OLD TABLE AS old_rows";

	if ((!needs_new || data->tg_trigger->tgnewtable != NULL) &&
		(!needs_old || data->tg_trigger->tgoldtable != NULL))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg("trigger \"%s\" lacks a transition table",
					data->tg_trigger->tgname),
			 op == OUTBOX_ROW_UPDATE && data->tg_trigger->tgnewtable != NULL
			 ? errdetail("Its arguments need the old row of an UPDATE, too.")
			 : errdetail("A trigger FOR EACH STATEMENT sees rows only in transition tables."),
			 errhint("Declare it with REFERENCING %s, one trigger for each event, or FOR EACH ROW.",
					 clause)));
}

/*
 * Settings
 */

static void
outbox_row_pin_setting(int *nest_level, const char *name, const char *value)
{
	if (*nest_level == 0)
		*nest_level = NewGUCNestLevel();
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Returns what AtEOXact_GUC() takes to undo it, 0 if all is as it should be.
 * An error undoes it, too.
 */
static int
outbox_row_pin_settings(void)
{
	int			nest_level = 0;

	if (DateStyle != USE_ISO_DATES)
		outbox_row_pin_setting(&nest_level, "datestyle", "ISO");
	if (IntervalStyle != INTSTYLE_POSTGRES)
		outbox_row_pin_setting(&nest_level, "intervalstyle", "postgres");
	if (extra_float_digits < 1)
		outbox_row_pin_setting(&nest_level, "extra_float_digits", "1");
	if (bytea_output != BYTEA_OUTPUT_HEX)
		outbox_row_pin_setting(&nest_level, "bytea_output", "hex");
	return nest_level;
}

/*
 * The trigger
 */

static OutboxRowOp
outbox_row_op(TriggerEvent event)
{
	if (TRIGGER_FIRED_BY_INSERT(event))
		return OUTBOX_ROW_INSERT;
	if (TRIGGER_FIRED_BY_UPDATE(event))
		return OUTBOX_ROW_UPDATE;
	if (TRIGGER_FIRED_BY_DELETE(event))
		return OUTBOX_ROW_DELETE;
	return OUTBOX_ROW_TRUNCATE;
}

static void
outbox_row_for_row(TriggerData *data, OutboxRowChange *change)
{
	if (change->op == OUTBOX_ROW_INSERT)
		change->new_row = data->tg_trigslot;
	else
		change->old_row = data->tg_trigslot;
	if (change->op == OUTBOX_ROW_UPDATE)
		change->new_row = data->tg_newslot;

	if (change->old_row != NULL)
		slot_getallattrs(change->old_row);
	if (change->new_row != NULL)
		slot_getallattrs(change->new_row);
	outbox_row_publish(change);
}

/*
 * A slot to read a transition table from its start.  Others read it with
 * pointers of their own.
 */
static TupleTableSlot *
outbox_row_open(Relation rel, Tuplestorestate *store, int *pointer)
{
	*pointer = tuplestore_alloc_read_pointer(store, EXEC_FLAG_REWIND);
	tuplestore_select_read_pointer(store, *pointer);
	tuplestore_rescan(store);
	return MakeSingleTupleTableSlot(RelationGetDescr(rel),
									&TTSOpsMinimalTuple);
}

/* The next row; false at the end. */
static bool
outbox_row_next(Tuplestorestate *store, int pointer, TupleTableSlot *slot)
{
	tuplestore_select_read_pointer(store, pointer);
	if (!tuplestore_gettupleslot(store, true, false, slot))
		return false;
	slot_getallattrs(slot);
	return true;
}

static void
outbox_row_check_pairs(TriggerData *data)
{
	int64		old_rows = tuplestore_tuple_count(data->tg_oldtable);
	int64		new_rows = tuplestore_tuple_count(data->tg_newtable);

	if (old_rows != new_rows)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("old and new rows of trigger \"%s\" cannot be paired",
						data->tg_trigger->tgname),
				 errdetail("There are " INT64_FORMAT " old and " INT64_FORMAT " new rows: a BEFORE trigger dropped a row that moved to another partition.",
						   old_rows, new_rows),
				 errhint("Declare the trigger FOR EACH ROW.")));
}

static void
outbox_row_for_statement(TriggerData *data, OutboxRowChange *change)
{
	bool		use_old = change->op == OUTBOX_ROW_DELETE ||
		(change->op == OUTBOX_ROW_UPDATE && change->plan->needs_old);
	bool		use_new = change->op != OUTBOX_ROW_DELETE;
	int			old_pointer = 0;
	int			new_pointer = 0;
	MemoryContext context;
	MemoryContext old_context;

	if (use_old && use_new)
		outbox_row_check_pairs(data);
	if (use_old)
		change->old_row = outbox_row_open(data->tg_relation, data->tg_oldtable,
										  &old_pointer);
	if (use_new)
		change->new_row = outbox_row_open(data->tg_relation, data->tg_newtable,
										  &new_pointer);
	context = AllocSetContextCreate(CurrentMemoryContext, "amqp_outbox row",
									ALLOCSET_DEFAULT_SIZES);

	/* the slots may own their tuples, so these are not made in the context */
	while ((!use_old || outbox_row_next(data->tg_oldtable, old_pointer,
										change->old_row)) &&
		   (!use_new || outbox_row_next(data->tg_newtable, new_pointer,
										change->new_row)))
	{
		CHECK_FOR_INTERRUPTS();
		old_context = MemoryContextSwitchTo(context);
		outbox_row_publish(change);
		MemoryContextSwitchTo(old_context);
		MemoryContextReset(context);
	}

	if (use_old)
		ExecDropSingleTupleTableSlot(change->old_row);
	if (use_new)
		ExecDropSingleTupleTableSlot(change->new_row);
	MemoryContextDelete(context);
}

static void
outbox_row_fire(OutboxRowContext *context)
{
	TriggerData *data = context->trigger;
	OutboxRowChange change = {0};
	int			nest_level;

	outbox_row_check_time(data);
	outbox_enqueue_precheck("amqp_publish_row()");
	change.plan = outbox_row_plan(data, &context->option);
	change.op = outbox_row_op(data->tg_event);
	change.now = GetCurrentTimestamp();
	nest_level = outbox_row_pin_settings();
	if (TRIGGER_FIRED_FOR_ROW(data->tg_event))
		outbox_row_for_row(data, &change);
	else if (change.op == OUTBOX_ROW_TRUNCATE)
		outbox_row_publish(&change);
	else
	{
		outbox_row_check_transition(data, change.plan, change.op);
		outbox_row_for_statement(data, &change);
	}
	if (nest_level > 0)
		AtEOXact_GUC(true, nest_level);
}

/* Do something with a trigger, and have errors tell of which. */
static void
outbox_row_with_context(TriggerData *data,
						void (*callback) (OutboxRowContext *context))
{
	OutboxRowContext context = {.trigger = data};
	ErrorContextCallback error_context;

	error_context.callback = outbox_row_error_context;
	error_context.arg = &context;
	error_context.previous = error_context_stack;
	error_context_stack = &error_context;
	callback(&context);
	error_context_stack = error_context.previous;
}

Datum
outbox_sql_publish_row(PG_FUNCTION_ARGS)
{
	outbox_row_check_call(fcinfo);
	outbox_row_with_context((TriggerData *) fcinfo->context, outbox_row_fire);

	/* what an AFTER trigger returns is ignored */
	PG_RETURN_POINTER(NULL);
}

/*
 * Checking without firing
 */

/* What of an event a trigger's definition tells. */
static TriggerEvent
outbox_row_event_of(const Trigger *trigger)
{
	TriggerEvent event = 0;

	if (TRIGGER_FOR_ROW(trigger->tgtype))
		event |= TRIGGER_EVENT_ROW;
	if (TRIGGER_FOR_BEFORE(trigger->tgtype))
		event |= TRIGGER_EVENT_BEFORE;
	if (TRIGGER_FOR_INSTEAD(trigger->tgtype))
		event |= TRIGGER_EVENT_INSTEAD;
	return event;
}

static void
outbox_row_check_definition(OutboxRowContext *context)
{
	TriggerData *data = context->trigger;
	const Trigger *trigger = data->tg_trigger;
	OutboxRowPlan *plan;

	outbox_row_check_time(data);
	plan = outbox_row_plan(data, &context->option);
	if (TRIGGER_FOR_ROW(trigger->tgtype))
		return;
	if (TRIGGER_FOR_INSERT(trigger->tgtype))
		outbox_row_check_transition(data, plan, OUTBOX_ROW_INSERT);
	if (TRIGGER_FOR_UPDATE(trigger->tgtype))
		outbox_row_check_transition(data, plan, OUTBOX_ROW_UPDATE);
	if (TRIGGER_FOR_DELETE(trigger->tgtype))
		outbox_row_check_transition(data, plan, OUTBOX_ROW_DELETE);
}

void
outbox_row_check(Relation rel, Trigger *trigger)
{
	TriggerData data = {
		.type = T_TriggerData,
		.tg_event = outbox_row_event_of(trigger),
		.tg_relation = rel,
		.tg_trigger = trigger
	};

	outbox_row_with_context(&data, outbox_row_check_definition);
}
