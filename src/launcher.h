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

/*
 * Once per process, from _PG_init: notice statements that change servers, and
 * tell launcher and workers when they commit.
 */
extern void outbox_launcher_install_hooks(void);

/* When this transaction commits, everybody looks at this database anew. */
extern void outbox_launcher_note_change(void);

extern PGDLLEXPORT void outbox_launcher_main(Datum arg);

#endif							/* OUTBOX_LAUNCHER_H */
