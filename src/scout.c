/*-------------------------------------------------------------------------
 *
 * scout.c
 *	  Which servers a database has.
 *
 * The launcher has no database; so for each that may have servers it starts a
 * process for a moment, which looks and reports.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"

#include "backlog.h"
#include "catalog.h"
#include "registry.h"
#include "scout.h"
#include "server.h"
#include "settings.h"

void
outbox_scout_look(Oid dboid)
{
	List	   *servers;
	Oid		   *oids;
	int			n = 0;
	int			without_room;
	uint64		epoch = outbox_backlog_last_epoch();
	ListCell   *lc;

	StartTransactionCommand();
	servers = OidIsValid(get_extension_oid(OUTBOX_EXTENSION, true)) ?
		outbox_server_list() : NIL;
	oids = palloc((list_length(servers) + 1) * sizeof(Oid));
	foreach(lc, servers)
		oids[n++] = lfirst_oid(lc);
	without_room = outbox_registry_report(dboid, oids, n);
	outbox_backlog_keep_servers(dboid, oids, n, epoch);
	if (without_room > 0)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("%d servers of database \"%s\" have no worker",
						without_room, get_database_name(dboid)),
				 errhint("Increase amqp_outbox.max_workers, which is %d, and max_worker_processes with it.",
						 outbox_max_workers)));
	CommitTransactionCommand();
}
