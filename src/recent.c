/*-------------------------------------------------------------------------
 *
 * recent.c
 *	  Where the messages stand that this session has published lately.
 *
 * A table of sets: the hash of the message id names the set, and within it the
 * oldest entry goes first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "common/hashfn.h"
#include "utils/memutils.h"

#include "recent.h"

#define OUTBOX_RECENT_WAYS	8
#define OUTBOX_RECENT_SETS	(OUTBOX_RECENT_SIZE / OUTBOX_RECENT_WAYS)

typedef struct OutboxRecentSet
{
	int			next;			/* the entry to be overwritten */
	OutboxRecent entries[OUTBOX_RECENT_WAYS];
} OutboxRecentSet;

/* for the life of the session; NULL before the first message */
static OutboxRecentSet *sets = NULL;

static uint64
outbox_recent_hash(Datum message_id)
{
	struct varlena *t = (struct varlena *) DatumGetPointer(message_id);

	return hash_bytes_extended((const unsigned char *) VARDATA_ANY(t),
							   VARSIZE_ANY_EXHDR(t), 0);
}

void
outbox_recent_note(Datum message_id, Oid serverid, int32 server_key, int64 id)
{
	uint64		hash = outbox_recent_hash(message_id);
	OutboxRecentSet *set;

	if (sets == NULL)
		sets = MemoryContextAllocZero(TopMemoryContext,
									  OUTBOX_RECENT_SETS *
									  sizeof(OutboxRecentSet));
	set = &sets[hash % OUTBOX_RECENT_SETS];
	set->entries[set->next] = (OutboxRecent)
	{
		.hash = hash,.id = id,.serverid = serverid,.server_key = server_key
	};
	set->next = (set->next + 1) % OUTBOX_RECENT_WAYS;
}

void
outbox_recent_forget(void)
{
	if (sets)
		memset(sets, 0, OUTBOX_RECENT_SETS * sizeof(OutboxRecentSet));
}

const OutboxRecent *
outbox_recent_find(Datum message_id)
{
	uint64		hash = outbox_recent_hash(message_id);
	OutboxRecentSet *set;

	if (sets == NULL)
		return NULL;
	set = &sets[hash % OUTBOX_RECENT_SETS];
	for (int i = 0; i < OUTBOX_RECENT_WAYS; i++)
	{
		/* the newest first */
		OutboxRecent *entry = &set->entries[(set->next + OUTBOX_RECENT_WAYS - 1 - i) %
											OUTBOX_RECENT_WAYS];

		if (entry->id != 0 && entry->hash == hash)
			return entry;
	}
	return NULL;
}
