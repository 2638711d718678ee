/*-------------------------------------------------------------------------
 *
 * option.c
 *	  Fuzzes the options of servers and user mappings, the URI above all.
 *
 * The input is lines "name=value".  If the first is empty, they are those of a
 * user mapping.
 *
 *-------------------------------------------------------------------------
 */
#include "backend.h"

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "fmgr.h"
#include "nodes/parsenodes.h"
#include "nodes/value.h"

extern Datum outbox_sql_validator(PG_FUNCTION_ARGS);

typedef struct Input
{
	const uint8 *data;
	size_t		size;
} Input;

static DefElem *
make_option(char *name, char *value)
{
	DefElem    *def = palloc0(sizeof(DefElem));
	String	   *string = palloc0(sizeof(String));

	string->type = T_String;
	string->sval = value;
	def->type = T_DefElem;
	def->defname = name;
	def->arg = (Node *) string;
	return def;
}

static void
run(void *arg)
{
	Input	   *input = arg;
	char	   *line = fuzz_string(input->data, input->size);
	bool		mapping = *line == '\n';
	char	   *end;

	LOCAL_FCINFO(fcinfo, 2);

	fuzz_options = NIL;
	for (line += mapping; line; line = end)
	{
		char	   *equals;

		end = strchr(line, '\n');
		if (end)
			*end++ = '\0';
		equals = strchr(line, '=');
		if (equals == NULL)
			continue;
		*equals = '\0';
		fuzz_options = lappend(fuzz_options, make_option(line, equals + 1));
	}
	InitFunctionCallInfoData(*fcinfo, NULL, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = (Datum) 0;
	fcinfo->args[1].value = ObjectIdGetDatum(mapping ? UserMappingRelationId :
											 ForeignServerRelationId);
	fcinfo->args[0].isnull = fcinfo->args[1].isnull = false;
	(void) outbox_sql_validator(fcinfo);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	Input		input = {data, size};

	(void) fuzz_run(run, &input);
	return 0;
}
