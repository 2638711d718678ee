/*-------------------------------------------------------------------------
 *
 * row_plan.c
 *	  What a trigger of amqp_publish_row() amounts to, kept between calls.
 *
 * Options, templates, names and output functions are looked up once for a
 * trigger, not once for each row.  PostgreSQL tells when that may have become
 * wrong: any change of a trigger, or of the columns or the name of a table,
 * invalidates the table's cache entry; a schema's name and the casts to json
 * have caches of their own.  Such messages only mark plans; a plan is replaced
 * by the next call, and what replaces it leaves the old one alone until the
 * transaction ends: a function that is called to write a value may change the
 * table under the row that is being written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/partition.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "compat.h"
#include "row_plan.h"

const char *const outbox_row_op_names[OUTBOX_ROW_NOPS] =
{"insert", "update", "delete", "truncate"};

typedef struct OutboxRowEntry
{
	Oid			trigger;
	OutboxRowPlan *plan;
} OutboxRowEntry;

static HTAB *plans = NULL;

/* Messages so far; one that comes while a plan is made may concern it. */
static uint64 changes = 0;

/*
 * Invalidation
 */

static void
outbox_row_plan_relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	OutboxRowEntry *entry;

	changes++;
	hash_seq_init(&status, plans);
	while ((entry = hash_seq_search(&status)) != NULL)
		if (!OidIsValid(relid) || entry->plan->relid == relid ||
			entry->plan->rootid == relid)
			entry->plan->valid = false;
}

static void
outbox_row_plan_catalog_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	outbox_row_plan_relation_changed(arg, InvalidOid);
}

static void
outbox_row_plan_init(void)
{
	HASHCTL		ctl;

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(OutboxRowEntry);
	plans = hash_create("amqp_outbox triggers", 32, &ctl,
						HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(outbox_row_plan_relation_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID,
								  outbox_row_plan_catalog_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(CASTSOURCETARGET,
								  outbox_row_plan_catalog_changed, (Datum) 0);
}

/*
 * Columns
 */

pg_noreturn static void
outbox_row_plan_no_column(const OutboxRowPlan *plan, const char *name,
						  const char *what)
{
	StringInfoData names;

	initStringInfo(&names);
	for (int i = 0; i < plan->ncolumns; i++)
		if (plan->columns[i].name != NULL)
			appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "",
							 plan->columns[i].name);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of table %s does not exist", name,
					plan->quoted),
			 errdetail("The %s of amqp_publish_row names it.", what),
			 errhint("The table's columns are: %s.", names.data)));
}

/* The column of that name, from 0. */
static int
outbox_row_plan_column(const OutboxRowPlan *plan, TupleDesc tupdesc,
					   const char *name, const char *what)
{
	for (int i = 0; i < plan->ncolumns; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (att->attisdropped || strcmp(NameStr(att->attname), name) != 0)
			continue;
		if (plan->columns[i].name == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("column \"%s\" of table %s has no value in a trigger",
							name, plan->quoted),
					 errdetail("It is a virtual generated column, which is computed when it is read."),
					 errhint("Make it STORED, or name the columns that it is computed from.")));
		return i;
	}
	outbox_row_plan_no_column(plan, name, what);
}

/* A column whose text goes into a key or a template. */
static int
outbox_row_plan_text_column(OutboxRowPlan *plan, TupleDesc tupdesc,
							const char *name, const char *what)
{
	int			i = outbox_row_plan_column(plan, tupdesc, name, what);
	OutboxRowColumn *column = &plan->columns[i];
	Oid			function;
	bool		varlena;

	if (column->output == NULL)
	{
		getTypeOutputInfo(TupleDescAttr(tupdesc, i)->atttypid, &function,
						  &varlena);
		column->output = palloc(sizeof(FmgrInfo));
		fmgr_info(function, column->output);
	}
	column->watched = true;
	return i;
}

static void
outbox_row_plan_columns(OutboxRowPlan *plan, TupleDesc tupdesc)
{
	plan->ncolumns = tupdesc->natts;
	plan->columns = palloc0(tupdesc->natts * sizeof(OutboxRowColumn));
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);
		OutboxRowColumn *column = &plan->columns[i];
		StringInfoData json_name;

		if (att->attisdropped ||
			att->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
			continue;
		initStringInfo(&json_name);
		appendStringInfoChar(&json_name, ',');
		escape_json(&json_name, NameStr(att->attname));
		appendStringInfoChar(&json_name, ':');
		column->name = pstrdup(NameStr(att->attname));
		column->json_name = json_name.data;
		column->json_name_len = json_name.len;
		column->byval = att->attbyval;
		column->len = att->attlen;
	}
}

/* Which columns are in the body, in the order of the table. */
static void
outbox_row_plan_choose(OutboxRowPlan *plan, TupleDesc tupdesc)
{
	OutboxRowOptions *options = plan->options;
	bool		all = options->columns == NIL;
	ListCell   *lc;

	for (int i = 0; i < plan->ncolumns; i++)
		plan->columns[i].in_body = all && plan->columns[i].name != NULL;
	foreach(lc, options->columns)
		plan->columns[outbox_row_plan_column(plan, tupdesc, lfirst(lc),
											 "option \"columns\"")].in_body = true;
	foreach(lc, options->except)
		plan->columns[outbox_row_plan_column(plan, tupdesc, lfirst(lc),
											 "option \"except\"")].in_body = false;

	for (int i = 0; i < plan->ncolumns; i++)
	{
		OutboxRowColumn *column = &plan->columns[i];

		if (!column->in_body)
			continue;
		column->watched = true;
		column->json = outbox_json_type(TupleDescAttr(tupdesc, i)->atttypid,
										&options->style);
	}
}

/*
 * Templates, keys and names
 */

static void
outbox_row_plan_text(OutboxRowPlan *plan, TupleDesc tupdesc,
					 OutboxRowText *result, const char *what,
					 const char *source)
{
	OutboxTemplate *template;

	if (source == NULL)
		return;
	template = outbox_template_parse(what, source);
	result->template = template;
	result->fixed = true;
	for (int i = 0; i < template->nparts; i++)
	{
		OutboxTemplatePart *part = &template->parts[i];

		if (part->kind < OUTBOX_TEMPLATE_COLUMN)
			continue;
		part->column =
			outbox_row_plan_text_column(plan, tupdesc, part->text,
										psprintf("%s \"%s\"", what, source));
		result->fixed = false;
		if (part->kind == OUTBOX_TEMPLATE_OLD_COLUMN)
			plan->needs_old = true;
	}
}

static void
outbox_row_plan_key(OutboxRowPlan *plan, TupleDesc tupdesc)
{
	ListCell   *lc;

	plan->keys = palloc(list_length(plan->options->key) * sizeof(int));
	foreach(lc, plan->options->key)
		plan->keys[plan->nkeys++] =
		outbox_row_plan_text_column(plan, tupdesc, lfirst(lc),
									"option \"key\"");
}

static void
outbox_row_plan_names(OutboxRowPlan *plan)
{
	Oid			relid = plan->relid;

	if (plan->options->publish_via_partition_root)
		relid = plan->rootid;
	plan->schema = get_namespace_name(get_rel_namespace(relid));
	plan->table = get_rel_name(relid);
	if (plan->schema == NULL || plan->table == NULL)
		elog(ERROR, "cache lookup failed for relation %u", relid);
}

/* Everything, in the current memory context. */
static void
outbox_row_plan_fill(OutboxRowPlan *plan, TriggerData *data,
					 const char **option)
{
	Trigger    *trigger = data->tg_trigger;
	TupleDesc	tupdesc = RelationGetDescr(data->tg_relation);
	OutboxRowOptions *options;

	if (trigger->tgnargs < 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("amqp_publish_row needs an exchange and a routing key"),
				 errdetail("Trigger \"%s\" passes %d of them.",
						   trigger->tgname, trigger->tgnargs),
				 errhint("Write EXECUTE FUNCTION amqp_publish_row('exchange', 'routing.key.{op}', 'option=value', ...).")));
	options = outbox_row_options(trigger->tgnargs - 2, trigger->tgargs + 2,
								 option);
	plan->options = options;
	outbox_row_plan_columns(plan, tupdesc);
	outbox_row_plan_choose(plan, tupdesc);
	outbox_row_plan_text(plan, tupdesc, &plan->exchange, "exchange",
						 pstrdup(trigger->tgargs[0]));
	outbox_row_plan_text(plan, tupdesc, &plan->routing_key, "routing key",
						 pstrdup(trigger->tgargs[1]));
	outbox_row_plan_text(plan, tupdesc, &plan->type, "type",
						 options->type);
	outbox_row_plan_text(plan, tupdesc, &plan->source, "source",
						 options->source);
	outbox_row_plan_text(plan, tupdesc, &plan->subject, "subject",
						 options->subject);
	outbox_row_plan_key(plan, tupdesc);
	outbox_row_plan_names(plan);
	if (options->body == OUTBOX_BODY_ENVELOPE || options->skip_unchanged)
		plan->needs_old = true;
}

/* A partition that is being detached has no ancestors any more. */
static Oid
outbox_row_plan_root(Relation rel)
{
	List	   *ancestors = NIL;

	if (rel->rd_rel->relispartition)
		ancestors = get_partition_ancestors(RelationGetRelid(rel));
	return ancestors == NIL ? RelationGetRelid(rel) : llast_oid(ancestors);
}

static OutboxRowPlan *
outbox_row_plan_make(TriggerData *data, const char **option)
{
	Relation	rel = data->tg_relation;
	uint64		changes_before = changes;
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "amqp_outbox trigger",
							  ALLOCSET_SMALL_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	OutboxRowPlan *plan = palloc0(sizeof(OutboxRowPlan));

	plan->context = context;
	plan->relid = RelationGetRelid(rel);
	plan->rootid = outbox_row_plan_root(rel);
	plan->quoted = psprintf("\"%s.%s\"",
							get_namespace_name(RelationGetNamespace(rel)),
							RelationGetRelationName(rel));
	outbox_row_plan_fill(plan, data, option);
	plan->valid = changes == changes_before;
	MemoryContextSwitchTo(old_context);
	return plan;
}

/* Forget what is not valid any more; triggers may have been dropped. */
static void
outbox_row_plan_sweep(void)
{
	HASH_SEQ_STATUS status;
	OutboxRowEntry *entry;

	hash_seq_init(&status, plans);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->plan->valid)
			continue;
		MemoryContextSetParent(entry->plan->context, TopTransactionContext);
		hash_search(plans, &entry->trigger, HASH_REMOVE, NULL);
	}
}

OutboxRowPlan *
outbox_row_plan(TriggerData *data, const char **option)
{
	OutboxRowEntry *entry;
	OutboxRowPlan *plan;

	if (plans == NULL)
		outbox_row_plan_init();
	entry = hash_search(plans, &data->tg_trigger->tgoid, HASH_FIND, NULL);
	if (entry != NULL && entry->plan->valid)
		return entry->plan;

	plan = outbox_row_plan_make(data, option);
	outbox_row_plan_sweep();
	entry = hash_search(plans, &data->tg_trigger->tgoid, HASH_ENTER, NULL);
	entry->plan = plan;
	MemoryContextSetParent(plan->context, CacheMemoryContext);
	return plan;
}
