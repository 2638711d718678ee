/*-------------------------------------------------------------------------
 *
 * scout.h
 *	  Which servers a database has.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SCOUT_H
#define OUTBOX_SCOUT_H

#include "postgres.h"

/*
 * Report the servers of the database that this process is connected to, for
 * the launcher; a WARNING if there are more than can have workers.
 */
extern void outbox_scout_look(Oid dboid);

#endif							/* OUTBOX_SCOUT_H */
