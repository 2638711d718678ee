/*
 * late.c
 *	  Preloaded into a server under test, as an extension: what a transaction
 *	  says by late.sql is executed when it commits or is prepared, later than
 *	  anything that SQL can do there, deferred triggers for instance.
 *
 * Such callbacks are called in the reverse order of their registration.  So one
 * that stands before amqp_outbox in shared_preload_libraries is called when
 * the messages of the transaction have been written.
 *
 *	cc -shared -fPIC -I`pg_config --includedir-server` -o late.so late.c
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

static char *late_sql = NULL;

static void
late_xact_callback(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_PRE_COMMIT && event != XACT_EVENT_PRE_PREPARE)
		return;
	if (late_sql == NULL || late_sql[0] == '\0')
		return;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_execute(late_sql, false, 0) < 0)
		elog(ERROR, "cannot execute late.sql");
	PopActiveSnapshot();
	SPI_finish();
}

void
_PG_init(void)
{
	DefineCustomStringVariable("late.sql",
							   "What is executed in the commit.",
							   NULL, &late_sql, "", PGC_USERSET, 0,
							   NULL, NULL, NULL);
	RegisterXactCallback(late_xact_callback, NULL);
}
