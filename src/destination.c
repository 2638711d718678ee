/*-------------------------------------------------------------------------
 *
 * destination.c
 *	  Exchanges that the broker closed the channel for.
 *
 * A message to an exchange that is missing (404), or where we may not write
 * (403), costs a channel and the confirms of all that is in flight.  So one
 * such message in a while is enough: the others wait without being sent.
 *
 * A 403 may be about the exchange or, with topic permissions, about the
 * routing key, and the reply code does not tell; it is held against the pair.
 *
 * Pure: no I/O, no clock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "destination.h"

#define OUTBOX_MAX_DESTINATIONS		64

/* Pauses: doubling from the first to the last. */
#define OUTBOX_DESTINATION_FIRST_MS INT64CONST(1000)
#define OUTBOX_DESTINATION_LAST_MS	(5 * 60 * 1000)

/* How long the others wait for what becomes of the one that tries. */
#define OUTBOX_DESTINATION_TRY_MS	2000

struct OutboxDestinations
{
	int			used;			/* entries in use */
	OutboxDestination entries[OUTBOX_MAX_DESTINATIONS];
};

OutboxDestinations *
outbox_destinations_create(MemoryContext context)
{
	return MemoryContextAllocZero(context, sizeof(OutboxDestinations));
}

static OutboxDestination *
outbox_destinations_match(OutboxDestinations *destinations,
						  const OutboxMessage *msg)
{
	for (int i = 0; i < OUTBOX_MAX_DESTINATIONS; i++)
	{
		OutboxDestination *entry = &destinations->entries[i];

		if (entry->in_use && strcmp(entry->exchange, msg->exchange) == 0 &&
			(entry->any_key ||
			 strcmp(entry->routing_key, msg->routing_key) == 0))
			return entry;
	}
	return NULL;
}

/* An unused entry, else the one whose pause ends first. */
static OutboxDestination *
outbox_destinations_take(OutboxDestinations *destinations)
{
	OutboxDestination *oldest = &destinations->entries[0];

	for (int i = 0; i < OUTBOX_MAX_DESTINATIONS; i++)
	{
		OutboxDestination *entry = &destinations->entries[i];

		if (!entry->in_use)
			return entry;
		if (entry->not_before < oldest->not_before)
			oldest = entry;
	}
	return oldest;
}

void
outbox_destinations_failed(OutboxDestinations *destinations,
						   const OutboxMessage *msg, int reply_code,
						   const char *words, TimestampTz now)
{
	OutboxReason reason = outbox_reason_of_reply_code(reply_code);
	OutboxDestination *entry;
	int64		pause;

	if (reason != OUTBOX_NO_EXCHANGE && reason != OUTBOX_ACCESS_REFUSED)
		return;

	entry = outbox_destinations_match(destinations, msg);
	if (entry == NULL)
	{
		entry = outbox_destinations_take(destinations);
		destinations->used += entry->in_use ? 0 : 1;
		memset(entry, 0, sizeof(*entry));
		entry->in_use = true;
		strlcpy(entry->exchange, msg->exchange, sizeof(entry->exchange));
		strlcpy(entry->routing_key, msg->routing_key,
				sizeof(entry->routing_key));
		entry->any_key = reason == OUTBOX_NO_EXCHANGE;
	}
	entry->reply_code = reply_code;
	strlcpy(entry->words, words, sizeof(entry->words));
	pause = Min(OUTBOX_DESTINATION_FIRST_MS << Min(entry->failures, 20),
				OUTBOX_DESTINATION_LAST_MS);
	entry->failures++;
	entry->not_before = TimestampTzPlusMilliseconds(now, pause);
}

const OutboxDestination *
outbox_destinations_find(OutboxDestinations *destinations,
						 const OutboxMessage *msg, TimestampTz now)
{
	OutboxDestination *entry = outbox_destinations_match(destinations, msg);

	if (entry == NULL || now < entry->not_before)
		return entry;

	/* nobody asked for long: what was learnt is too old */
	if (TimestampDifferenceExceeds(entry->not_before, now,
								   OUTBOX_DESTINATION_LAST_MS))
	{
		entry->in_use = false;
		destinations->used--;
		return NULL;
	}
	entry->not_before = TimestampTzPlusMilliseconds(now,
													OUTBOX_DESTINATION_TRY_MS);
	return NULL;
}

void
outbox_destinations_succeeded(OutboxDestinations *destinations,
							  const OutboxMessage *msg)
{
	OutboxDestination *entry;

	/* delivered messages are many, entries are few and mostly none */
	while (destinations->used > 0 &&
		   (entry = outbox_destinations_match(destinations, msg)) != NULL)
	{
		entry->in_use = false;
		destinations->used--;
	}
}

void
outbox_destinations_forget(OutboxDestinations *destinations)
{
	memset(destinations, 0, sizeof(*destinations));
}
