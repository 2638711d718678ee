/*-------------------------------------------------------------------------
 *
 * pattern.h
 *	  Patterns of names and routing keys, as AMQP's topic exchanges have them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PATTERN_H
#define OUTBOX_PATTERN_H

#include "postgres.h"

/*
 * Whether a pattern covers a key: both are words with dots between them, "*"
 * stands for one word and "#" for any number of them, also none (AMQP 0-9-1,
 * section 3.1.3.3).  The empty text has no word.  Lengths are bytes, in any
 * encoding that servers have.
 */
extern bool outbox_pattern_matches(const char *pattern, Size pattern_len,
								   const char *key, Size key_len);

/* Whether "*" and "#" stand alone in their words, as they must to mean more. */
extern bool outbox_pattern_is_clear(const char *pattern, Size len);

#endif							/* OUTBOX_PATTERN_H */
