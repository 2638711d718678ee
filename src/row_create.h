/*-------------------------------------------------------------------------
 *
 * row_create.h
 *	  CREATE TRIGGER ... amqp_publish_row(...) is checked at once.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROW_CREATE_H
#define OUTBOX_ROW_CREATE_H

/* Once per process, from _PG_init. */
extern void outbox_row_create_install_hook(void);

#endif							/* OUTBOX_ROW_CREATE_H */
