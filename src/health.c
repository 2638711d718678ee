/*-------------------------------------------------------------------------
 *
 * health.c
 *	  From when on the view amqp_outbox.health warns.
 *
 * Two settings for each rule of the view.  They change nothing but what a
 * session is shown, so every session may set them; monitoring gets its own by
 * ALTER ROLE, a database by ALTER DATABASE.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "utils/guc.h"
#include "utils/memutils.h"

#include "health.h"

#define SECOND	1000			/* in the settings, that is */
#define MINUTE	(60 * SECOND)
#define GB		1024

/* name, what, unit, flags, factor, warning, critical */
OutboxHealthRule outbox_health_rules[] = {
	{"backlog", "messages that should have been delivered by now",
	"messages", 0, 1, 100000, 1000000},
	{"blocked", "time since the broker asked for a pause",
	"seconds", GUC_UNIT_MS, 0.001, MINUTE, 10 * MINUTE},
	{"confirm_time", "99th percentile of the time from commit to confirm in the last minute",
	"seconds", GUC_UNIT_MS, 0.001, 5 * SECOND, MINUTE},
	{"connection", "time without a connection to the broker",
	"seconds", GUC_UNIT_MS, 0.001, 30 * SECOND, 5 * MINUTE},
	{"dead_letters", "dead letters",
	"messages", 0, 1, 1, 1000},
	{"horizon", "time that a transaction has been committing",
	"seconds", GUC_UNIT_MS, 0.001, 10 * SECOND, MINUTE},
	{"last_error", "time since the newest error, which is too short below it",
	"seconds", GUC_UNIT_MS, 0.001, 5 * MINUTE, 0},
	{"outbox_size", "size of the outbox on disk",
	"bytes", GUC_UNIT_MB, 1024 * 1024, 16 * GB, 64 * GB},
	{"overdue", "age of the oldest message that should have been delivered by now",
	"seconds", GUC_UNIT_MS, 0.001, MINUTE, 10 * MINUTE},
	{"protection", "options of a server that give up protection of its connection",
	"options", 0, 1, 1, 0},
	{"topology", "declarations that the broker refuses",
	"declarations", 0, 1, 1, 0},
	{"worker", "time without a worker",
	"seconds", GUC_UNIT_MS, 0.001, 10 * SECOND, MINUTE},
	{NULL}
};

static void
outbox_health_define_level(const OutboxHealthRule *rule, const char *level,
						   int *value)
{
	MemoryContext old_context = MemoryContextSwitchTo(TopMemoryContext);

	/* the names and descriptions are not copied */
	DefineCustomIntVariable(psprintf("amqp_outbox.health_%s_%s", rule->name,
									 level),
							psprintf("Threshold at which amqp_outbox.health says %s: %s.",
									 level, rule->what),
							"0: never.",
							value,
							*value,
							0, INT_MAX / 2,
							PGC_USERSET,
							rule->flags,
							NULL, NULL, NULL);
	MemoryContextSwitchTo(old_context);
}

void
outbox_health_define(void)
{
	for (OutboxHealthRule *rule = outbox_health_rules; rule->name; rule++)
	{
		outbox_health_define_level(rule, "critical", &rule->critical);
		outbox_health_define_level(rule, "warning", &rule->warning);
	}
}
