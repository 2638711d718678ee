/*-------------------------------------------------------------------------
 *
 * shared.h
 *	  The piece of shared memory that amqp_outbox owns.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SHARED_H
#define OUTBOX_SHARED_H

#include "postgres.h"

/* The two parts, and the lock of each; both rooms know only their own. */
struct OutboxHorizonShared;
struct OutboxRegistryShared;

extern struct OutboxHorizonShared *outbox_horizon_shared;
extern struct OutboxRegistryShared *outbox_registry_shared;

/* In the postmaster, from _PG_init. */
extern void outbox_shared_install_hooks(void);

/* Whether the library was loaded by shared_preload_libraries. */
extern bool outbox_shared_available(void);

/* Raise the error that says how to preload. */
extern void outbox_shared_require(void);

#endif							/* OUTBOX_SHARED_H */
