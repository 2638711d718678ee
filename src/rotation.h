/*-------------------------------------------------------------------------
 *
 * rotation.h
 *	  When the ring of leaves turns, and when its oldest leaf is emptied.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROTATION_H
#define OUTBOX_ROTATION_H

#include "postgres.h"

#include "datatype/timestamp.h"

/*
 * Look whether the ring can turn or a leaf can be emptied, and do it.  Runs
 * transactions.  Returns when to look again, 0 if there is nothing to reclaim.
 */
extern TimestampTz outbox_rotation_look(TimestampTz now);

#endif							/* OUTBOX_ROTATION_H */
