/*-------------------------------------------------------------------------
 *
 * health.h
 *	  From when on the view amqp_outbox.health warns.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_HEALTH_H
#define OUTBOX_HEALTH_H

#include "postgres.h"

typedef struct OutboxHealthRule
{
	const char *name;			/* as in the view */
	const char *what;			/* is compared, for the settings' descriptions */
	const char *unit;			/* in the view */
	int			flags;			/* GUC_UNIT_... of the settings */
	double		factor;			/* from theirs to the view's unit */
	int			warning;		/* 0: never; a default at first */
	int			critical;		/* the same */
} OutboxHealthRule;

/* All of them, ended by one without a name; the settings are kept there. */
extern OutboxHealthRule outbox_health_rules[];

/* Define amqp_outbox.health_..._warning and amqp_outbox.health_..._critical. */
extern void outbox_health_define(void);

#endif							/* OUTBOX_HEALTH_H */
