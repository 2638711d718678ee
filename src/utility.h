/*-------------------------------------------------------------------------
 *
 * utility.h
 *	  Statements that launcher and workers must hear of.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_UTILITY_H
#define OUTBOX_UTILITY_H

/* Once per process, from _PG_init. */
extern void outbox_utility_install_hooks(void);

/* When this transaction commits, everybody looks at this database anew. */
extern void outbox_utility_note_change(void);

/*
 * When this transaction commits, workers look at what is declared and not
 * asserted yet, or (everything) at all that is declared.
 */
extern void outbox_utility_note_topology(bool everything);

#endif							/* OUTBOX_UTILITY_H */
