/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Every test of a version: PostgreSQL 15 to 18, librabbitmq 0.11 to 0.18.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_COMPAT_H
#define OUTBOX_COMPAT_H

#include "postgres.h"

#if PG_VERSION_NUM < 150000
#error "amqp_outbox needs PostgreSQL 15 or later"
#endif

#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/wait_event.h"

/* Since 16 what is about varlena is not in postgres.h any more. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* Since 17 the number of a backend is a variable, before it is in MyProc. */
#if PG_VERSION_NUM >= 170000
#define OutboxMyProcNumber	((int) MyProcNumber)
#else
#define OutboxMyProcNumber	(MyProc->pgprocno)
#endif

/* The process id of the backend with that number. */
static inline int
outbox_proc_pid(int procno)
{
	return ProcGlobal->allProcs[procno].pid;
}

/* Since 16 one function checks the privileges of every kind of object. */
#if PG_VERSION_NUM >= 160000
#define outbox_server_aclcheck(serverid, userid) \
	object_aclcheck(ForeignServerRelationId, (serverid), (userid), ACL_USAGE)
#else
#define outbox_server_aclcheck(serverid, userid) \
	pg_foreign_server_aclcheck((serverid), (userid), ACL_USAGE)
#endif

#if PG_VERSION_NUM >= 160000
#define outbox_owns_database(dboid, userid) \
	object_ownercheck(DatabaseRelationId, (dboid), (userid))
#define outbox_owns_server(serverid, userid) \
	object_ownercheck(ForeignServerRelationId, (serverid), (userid))
#define outbox_owns_relation(relid, userid) \
	object_ownercheck(RelationRelationId, (relid), (userid))
#define outbox_owns_extension(extensionid, userid) \
	object_ownercheck(ExtensionRelationId, (extensionid), (userid))
#else
#define outbox_owns_database(dboid, userid) \
	pg_database_ownercheck((dboid), (userid))
#define outbox_owns_server(serverid, userid) \
	pg_foreign_server_ownercheck((serverid), (userid))
#define outbox_owns_relation(relid, userid) \
	pg_class_ownercheck((relid), (userid))
#define outbox_owns_extension(extensionid, userid) \
	pg_extension_ownercheck((extensionid), (userid))
#endif

/* Since 16 a file has a number, and since 17 REINDEX says who asked. */
#if PG_VERSION_NUM >= 160000
#define outbox_new_file(rel) \
	RelationSetNewRelfilenumber((rel), (rel)->rd_rel->relpersistence)
#else
#define outbox_new_file(rel) \
	RelationSetNewRelfilenode((rel), (rel)->rd_rel->relpersistence)
#endif
#if PG_VERSION_NUM >= 170000
#define outbox_reindex_relation(relid, flags, params) \
	reindex_relation(NULL, (relid), (flags), (params))
#else
#define outbox_reindex_relation(relid, flags, params) \
	reindex_relation((relid), (flags), (params))
#endif

/* Since 18 this is how a function that does not return is declared. */
#ifndef pg_noreturn
#define pg_noreturn pg_attribute_noreturn()
#endif

/* Since 18 a deferrable primary key must be asked for. */
#if PG_VERSION_NUM >= 180000
#define outbox_primary_key_index(rel)	RelationGetPrimaryKeyIndex((rel), false)
#else
#define outbox_primary_key_index(rel)	RelationGetPrimaryKeyIndex(rel)
#endif

/* Since 18 there may be room before a minimal tuple. */
#if PG_VERSION_NUM >= 180000
#define outbox_form_minimal_tuple(tupdesc, values, isnull) \
	heap_form_minimal_tuple((tupdesc), (values), (isnull), 0)
#else
#define outbox_form_minimal_tuple(tupdesc, values, isnull) \
	heap_form_minimal_tuple((tupdesc), (values), (isnull))
#endif

/* Since 18 there are generated columns without a stored value. */
#ifndef ATTRIBUTE_GENERATED_VIRTUAL
#define ATTRIBUTE_GENERATED_VIRTUAL	'v'
#endif

/*
 * Named wait events for extensions came with 17; before, each shows as
 * "Extension".
 */
static inline uint32
outbox_wait_event(const char *name)
{
#if PG_VERSION_NUM >= 170000
	return WaitEventExtensionNew(name);
#else
	(void) name;
	return PG_WAIT_EXTENSION;
#endif
}

/* Since 17 a set of wait events can belong to a resource owner. */
static inline WaitEventSet *
outbox_create_wait_event_set(MemoryContext context, int nevents)
{
#if PG_VERSION_NUM >= 170000
	MemoryContext old_context = MemoryContextSwitchTo(context);
	WaitEventSet *set = CreateWaitEventSet(NULL, nevents);

	MemoryContextSwitchTo(old_context);
	return set;
#else
	return CreateWaitEventSet(context, nevents);
#endif
}

/*
 * librabbitmq's headers moved to a directory with 0.12.  Only properties.c and
 * the transport define OUTBOX_WITH_LIBRABBITMQ before they include this file.
 */
#ifdef OUTBOX_WITH_LIBRABBITMQ
#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#endif
#endif

#endif							/* OUTBOX_COMPAT_H */
