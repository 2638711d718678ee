/*-------------------------------------------------------------------------
 *
 * shared.h
 *	  Shared memory, as the server hands it out.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SHARED_H
#define OUTBOX_SHARED_H

/* In the postmaster, from _PG_init. */
extern void outbox_shared_install_hooks(void);

/* Whether the library was loaded by shared_preload_libraries. */
extern bool outbox_shared_is_available(void);

/*
 * Raise error 55000, which says how to preload the library, unless it was
 * loaded by shared_preload_libraries.
 */
extern void outbox_shared_require(void);

#endif							/* OUTBOX_SHARED_H */
