/*-------------------------------------------------------------------------
 *
 * admit.c
 *	  Whether a message may be published: the server's allow list, and the
 *	  limits of its backlog.
 *
 * Runs at every amqp_publish(): where a server has neither, two looks into a
 * hash table of the session are all that it costs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/syscache.h"

#include "admit.h"
#include "backlog.h"
#include "option.h"
#include "permission.h"

/*
 * What is looked at with each message: remembered, also that there is nothing,
 * until servers change.
 */

typedef struct OutboxAdmissionEntry
{
	Oid			serverid;		/* hash key */
	OutboxAdmission admission;
	bool		open;			/* there is nothing to look at */
} OutboxAdmissionEntry;

static HTAB *admissions = NULL;
static uint64 server_changes = 0;	/* invalidations so far */

static void
outbox_admit_servers_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	server_changes++;
}

/* An empty cache, if servers may have changed since it was filled. */
static void
outbox_admit_open_cache(void)
{
	static uint64 filled = 0;	/* after so many changes */
	HASHCTL		ctl = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(OutboxAdmissionEntry)
	};
	HTAB	   *old = admissions;

	if (old && filled == server_changes)
		return;
	if (old == NULL)
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID,
									  outbox_admit_servers_changed,
									  (Datum) 0);
	admissions = hash_create("amqp_outbox admissions", 16, &ctl,
							 HASH_ELEM | HASH_BLOBS);
	filled = server_changes;
	if (old)
		hash_destroy(old);
}

const OutboxAdmission *
outbox_admit_rules(Oid serverid)
{
	static OutboxAdmissionEntry entry;
	OutboxAdmissionEntry *cached;
	uint64		changes;

	outbox_admit_open_cache();
	cached = hash_search(admissions, &serverid, HASH_FIND, NULL);
	if (cached == NULL)
	{
		changes = server_changes;
		memset(&entry, 0, sizeof(entry));
		entry.serverid = serverid;
		outbox_option_load_admission(serverid, &entry.admission);
		entry.open = !entry.admission.allow_list &&
			!outbox_backlog_is_limited(&entry.admission.backlog);
		/* unless they changed in the meantime, perhaps after our look */
		if (changes == server_changes)
			*(OutboxAdmissionEntry *) hash_search(admissions, &serverid,
												  HASH_ENTER, NULL) = entry;
		cached = &entry;
	}
	return cached->open ? NULL : &cached->admission;
}

/*
 * Looking at a message
 */

/* Say which limit is exceeded, and what can be done. */
static void
outbox_admit_report(int elevel, Oid serverid, const char *role, int64 bytes,
					const OutboxBacklogExcess *excess)
{
	const char *server = GetForeignServer(serverid)->servername;
	const char *option = excess->of_role ?
		(excess->in_bytes ? "role_backlog_limit_bytes" : "role_backlog_limit") :
		(excess->in_bytes ? "backlog_limit_bytes" : "backlog_limit");

	ereport(elevel,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 excess->of_role
			 ? errmsg("backlog of role \"%s\" for server \"%s\" is full",
					  role, server)
			 : errmsg("backlog of server \"%s\" is full", server),
			 excess->in_bytes
			 ? errdetail("Messages with " INT64_FORMAT " bytes wait to be delivered, and this one has " INT64_FORMAT "; the server's %s is " INT64_FORMAT ".",
						 excess->waiting, bytes, option, excess->limit)
			 : errdetail(INT64_FORMAT " messages wait to be delivered; the server's %s is " INT64_FORMAT ".",
						 excess->waiting, option, excess->limit),
			 excess->in_bytes && bytes > excess->limit
			 ? errhint("Make the message smaller, or have the server's owner raise the limit.")
			 : errhint("Publish again when the broker has taken some of them (amqp_outbox.server_status tells how it is), or have the server's owner raise the limit.")));
}

void
outbox_admit_check(Oid serverid, Oid roleid, const text *exchange,
				   const text *routing_key, Jsonb *headers)
{
	const OutboxAdmission *admission = outbox_admit_rules(serverid);

	if (admission && admission->allow_list)
		outbox_permission_require(serverid, roleid, exchange, routing_key,
								  headers);
}

const char *
outbox_admit(Oid serverid, Oid roleid, int64 bytes)
{
	const OutboxAdmission *admission = outbox_admit_rules(serverid);
	const OutboxBacklogLimits *limits;
	OutboxBacklogExcess excess;
	const char *role = NULL;

	if (admission == NULL ||
		!outbox_backlog_is_limited(&admission->backlog))
		return NULL;
	limits = &admission->backlog;
	if (outbox_backlog_limits_roles(limits))
		role = GetUserNameFromId(roleid, false);
	if (outbox_backlog_reserve(serverid, role, bytes, limits, &excess))
		return role;
	if (limits->action == OUTBOX_BACKLOG_REFUSE)
		outbox_admit_report(ERROR, serverid, role, bytes, &excess);
	else if (excess.first)
		outbox_admit_report(WARNING, serverid, role, bytes, &excess);
	return role;
}
