/*-------------------------------------------------------------------------
 *
 * row_option.c
 *	  The options of amqp_publish_row(), as its trigger names them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/varlena.h"

#include "compat.h"
#include "properties.h"
#include "row_option.h"

typedef enum OutboxRowOptionKind
{
	OUTBOX_ROW_TEXT,			/* char *, not empty */
	OUTBOX_ROW_WORD,			/* char *, may be empty */
	OUTBOX_ROW_BOOL,			/* int */
	OUTBOX_ROW_CHOICE,			/* int: which of the words */
	OUTBOX_ROW_COLUMNS,			/* List * of names */
	OUTBOX_ROW_PRIORITY,		/* int */
	OUTBOX_ROW_EXPIRATION,		/* Interval * */
	OUTBOX_ROW_HEADERS			/* Jsonb * */
} OutboxRowOptionKind;

typedef struct OutboxRowOption
{
	const char *name;
	OutboxRowOptionKind kind;
	Size		offset;			/* in OutboxRowOptions */
	const char *words[3];		/* of a choice: for 0, 1, 2 */
} OutboxRowOption;

#define IN_OPTIONS(field)	offsetof(OutboxRowOptions, field)

/* In the order of the documentation. */
static const OutboxRowOption row_options[] = {
	{"body", OUTBOX_ROW_CHOICE, IN_OPTIONS(body), {"row", "envelope", "none"}},
	{"columns", OUTBOX_ROW_COLUMNS, IN_OPTIONS(columns), {NULL}},
	{"except", OUTBOX_ROW_COLUMNS, IN_OPTIONS(except), {NULL}},
	{"numeric", OUTBOX_ROW_CHOICE, IN_OPTIONS(style.numeric_text), {"number", "text"}},
	{"bytea", OUTBOX_ROW_CHOICE, IN_OPTIONS(style.bytea_base64), {"hex", "base64"}},
	{"key", OUTBOX_ROW_COLUMNS, IN_OPTIONS(key), {NULL}},
	{"null_word", OUTBOX_ROW_WORD, IN_OPTIONS(null_word), {NULL}},
	{"empty_word", OUTBOX_ROW_WORD, IN_OPTIONS(empty_word), {NULL}},
	{"dots", OUTBOX_ROW_CHOICE, IN_OPTIONS(keep_dots), {"replace", "keep"}},
	{"unchanged", OUTBOX_ROW_CHOICE, IN_OPTIONS(skip_unchanged), {"send", "skip"}},
	{"publish_via_partition_root", OUTBOX_ROW_BOOL, IN_OPTIONS(publish_via_partition_root), {NULL}},
	{"cloudevents", OUTBOX_ROW_CHOICE, IN_OPTIONS(cloudevents), {"none", "binary", "structured"}},
	{"source", OUTBOX_ROW_TEXT, IN_OPTIONS(source), {NULL}},
	{"subject", OUTBOX_ROW_TEXT, IN_OPTIONS(subject), {NULL}},
	{"type", OUTBOX_ROW_TEXT, IN_OPTIONS(type), {NULL}},
	{"server", OUTBOX_ROW_TEXT, IN_OPTIONS(server), {NULL}},
	{"headers", OUTBOX_ROW_HEADERS, IN_OPTIONS(headers), {NULL}},
	{"content_type", OUTBOX_ROW_TEXT, IN_OPTIONS(content_type), {NULL}},
	{"app_id", OUTBOX_ROW_TEXT, IN_OPTIONS(app_id), {NULL}},
	{"persistent", OUTBOX_ROW_BOOL, IN_OPTIONS(persistent), {NULL}},
	{"mandatory", OUTBOX_ROW_BOOL, IN_OPTIONS(mandatory), {NULL}},
	{"priority", OUTBOX_ROW_PRIORITY, IN_OPTIONS(priority), {NULL}},
	{"expiration", OUTBOX_ROW_EXPIRATION, IN_OPTIONS(expiration), {NULL}},
};

static const OutboxRowOption *
outbox_row_option_find(const char *name)
{
	StringInfoData valid;

	for (int i = 0; i < (int) lengthof(row_options); i++)
		if (strcmp(row_options[i].name, name) == 0)
			return &row_options[i];

	initStringInfo(&valid);
	for (int i = 0; i < (int) lengthof(row_options); i++)
		appendStringInfo(&valid, "%s%s", i > 0 ? ", " : "",
						 row_options[i].name);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid option \"%s\"", name),
			 errhint("Valid options of amqp_publish_row are: %s.", valid.data)));
}

pg_noreturn static void
outbox_row_option_refuse(const OutboxRowOption *option, const char *value,
						 const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for option \"%s\": \"%s\"",
					option->name, value),
			 errhint("%s", hint)));
}

static int
outbox_row_option_choice(const OutboxRowOption *option, const char *value)
{
	StringInfoData hint;

	for (int i = 0; i < (int) lengthof(option->words); i++)
		if (option->words[i] != NULL && strcmp(option->words[i], value) == 0)
			return i;

	initStringInfo(&hint);
	appendStringInfo(&hint, "Give %s", option->words[0]);
	if (option->words[2] != NULL)
		appendStringInfo(&hint, ", %s", option->words[1]);
	appendStringInfo(&hint, " or %s.",
					 option->words[option->words[2] != NULL ? 2 : 1]);
	outbox_row_option_refuse(option, value, hint.data);
}

static int
outbox_row_option_bool(const OutboxRowOption *option, const char *value)
{
	bool		result;

	if (!parse_bool(value, &result))
		outbox_row_option_refuse(option, value, "Give true or false.");
	return result;
}

static int
outbox_row_option_priority(const OutboxRowOption *option, const char *value)
{
	char	   *end;
	long		result;

	errno = 0;
	result = strtol(value, &end, 10);
	if (errno != 0 || end == value || *end != '\0' || result < 0 ||
		result > 255)
		outbox_row_option_refuse(option, value,
								 "AMQP priorities go from 0 to 255.");
	return (int) result;
}

static List *
outbox_row_option_columns(const OutboxRowOption *option, const char *value)
{
	List	   *names;

	if (!SplitIdentifierString(pstrdup(value), ',', &names) || names == NIL)
		outbox_row_option_refuse(option, value,
								 "Give names of columns, separated by commas, and in double quotes where SQL needs them.");
	return names;
}

static void
outbox_row_option_set(OutboxRowOptions *options, const OutboxRowOption *option,
					  const char *value)
{
	void	   *field = (char *) options + option->offset;

	switch (option->kind)
	{
		case OUTBOX_ROW_TEXT:
			if (*value == '\0')
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("option \"%s\" must not be empty",
								option->name),
						 errhint("Leave the option out for its default.")));
			*(char **) field = pstrdup(value);
			break;
		case OUTBOX_ROW_WORD:
			*(char **) field = pstrdup(value);
			break;
		case OUTBOX_ROW_BOOL:
			*(int *) field = outbox_row_option_bool(option, value);
			break;
		case OUTBOX_ROW_CHOICE:
			*(int *) field = outbox_row_option_choice(option, value);
			break;
		case OUTBOX_ROW_COLUMNS:
			*(List **) field = outbox_row_option_columns(option, value);
			break;
		case OUTBOX_ROW_PRIORITY:
			*(int *) field = outbox_row_option_priority(option, value);
			break;
		case OUTBOX_ROW_EXPIRATION:
			*(Interval **) field = DatumGetIntervalP(
				DirectFunctionCall3(interval_in, CStringGetDatum(value),
									ObjectIdGetDatum(InvalidOid),
									Int32GetDatum(-1)));
			break;
		case OUTBOX_ROW_HEADERS:
			*(Jsonb **) field = DatumGetJsonbP(
				DirectFunctionCall1(jsonb_in, CStringGetDatum(value)));
			(void) outbox_properties_check_headers(*(Jsonb **) field);
			break;
	}
}

pg_noreturn static void
outbox_row_option_conflict(const char *option, const char *detail,
						   const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("option \"%s\" contradicts another one", option),
			 errdetail("%s", detail),
			 errhint("%s", hint)));
}

static void
outbox_row_option_check(const OutboxRowOptions *options)
{
	if (options->columns != NIL && options->except != NIL)
		outbox_row_option_conflict("except",
								   "The option \"columns\" says already which columns there are.",
								   "Give one of the two.");
	if (options->cloudevents == OUTBOX_CLOUDEVENTS_STRUCTURED &&
		options->content_type != NULL)
		outbox_row_option_conflict("content_type",
								   "A structured CloudEvent has a content type of its own.",
								   "Leave content_type out, or give cloudevents=binary.");
	if (options->cloudevents == OUTBOX_CLOUDEVENTS_NONE &&
		(options->source != NULL || options->subject != NULL))
		outbox_row_option_conflict(options->source ? "source" : "subject",
								   "Only a CloudEvent has this attribute.",
								   "Give cloudevents=binary or cloudevents=structured, too.");
}

OutboxRowOptions *
outbox_row_options(int n, char **args, const char **current)
{
	OutboxRowOptions *options = palloc0(sizeof(OutboxRowOptions));
	bool		given[lengthof(row_options)] = {false};

	options->persistent = -1;
	options->mandatory = -1;
	options->priority = -1;
	options->null_word = "null";
	options->empty_word = "";
	for (int i = 0; i < n; i++)
	{
		char	   *equals = strchr(args[i], '=');
		const OutboxRowOption *option;

		*current = args[i];
		if (equals == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"%s\" has no value", args[i]),
					 errhint("Arguments after exchange and routing key are options 'name=value'.")));
		option = outbox_row_option_find(pnstrdup(args[i], equals - args[i]));
		if (given[option - row_options])
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"%s\" is given more than once",
							option->name),
					 errhint("Leave all but one of them out.")));
		given[option - row_options] = true;
		outbox_row_option_set(options, option, equals + 1);
	}
	*current = NULL;
	outbox_row_option_check(options);
	return options;
}
