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

#endif							/* OUTBOX_UTILITY_H */
