/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  The process that sees to it that every server has its worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_LAUNCHER_H
#define OUTBOX_LAUNCHER_H

#include "postgres.h"

/* In the postmaster, from _PG_init. */
extern void outbox_launcher_register(void);

extern PGDLLEXPORT void outbox_launcher_main(Datum arg);

#endif							/* OUTBOX_LAUNCHER_H */
