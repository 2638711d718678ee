/*-------------------------------------------------------------------------
 *
 * backlog.c
 *	  How much waits for the broker of a server, where that is limited.
 *
 * For each server with a limit there is an entry, and one for each role that
 * publishes to it, if roles have limits.  It says how much waits (committed
 * messages that are neither delivered nor dead letters) and how much open
 * transactions have reserved.  A message reserves its room when it is
 * published, and the limit is compared under the same lock, so sessions cannot
 * exceed it together.  At the end of the transaction the reservations are
 * taken back, and what was written waits; each receipt takes off what it
 * settles for good.  So a look never counts anything.
 *
 * The counters are not durable.  The server's worker counts the tables when it
 * starts, when limits or servers change, and when messages have come in another
 * way (COMMIT PREPARED, requeue()).  To count what is there while sessions
 * commit and receipts are written, it reads the next id (counted_from), waits
 * until the horizon has reached it, and counts in one snapshot what waits with
 * ids below it.  The result is that, plus "fresh": what commits have added and
 * receipts taken off with ids from counted_from on since the count began.
 * Nothing is counted twice, and nothing is left out:
 *
 * - The ids of a transaction are all below counted_from, or none is, since both
 *   come from the same counter.
 * - Below: the transaction had taken its ids before, so once the horizon is
 *   there it has cleared its slot.  Its fate was visible before that, so the
 *   count sees its messages if they still wait; and it had been through
 *   outbox_backlog_end() before, which was not fresh.
 * - Not below: the count leaves it out.  It took its ids after the count had
 *   begun, so its end is fresh.  (The count begins and the next id is read in
 *   one section of our lock, which outbox_backlog_end() takes as well.)
 * - Only the worker settles, and does not while it counts.  What it settled
 *   before its snapshot is not counted if it is below, and was taken off fresh
 *   if not; what it settles later is taken off the result.
 * - A message that comes back with a former id was not counted before it was
 *   visible, and then the worker is told to count anew.
 *
 * While the worker counts the limits hold by what was known before: nothing
 * after a start, but what was published since.  Where the table has no room
 * for a role, its messages count only for the server.
 *
 * A transaction that used an entry may end when the entry was dropped and made
 * anew; it knows by the epoch.
 *
 * Locking: everything in OutboxBacklogShared is protected by its lock; it may
 * be held when the horizon's is taken.  Nothing under the lock can fail,
 * allocate or do I/O.
 *
 * Runs in every backend that publishes, in the workers, in scouts and in the
 * launcher.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "backlog.h"
#include "horizon.h"
#include "settings.h"

/* Roles that can have a backlog at the same time. */
#define OUTBOX_MAX_BACKLOG_ROLES	2048

typedef struct OutboxBacklogKey
{
	Oid			dboid;
	Oid			serverid;
	NameData	role;			/* "" is the server's total */
} OutboxBacklogKey;

typedef struct OutboxBacklogEntry
{
	OutboxBacklogKey key;
	uint64		epoch;			/* no other entry has or had it */
	OutboxQuantity waiting;
	OutboxQuantity reserved;
	OutboxQuantity fresh;		/* while the server is counted */

	/* of the server's total only */
	bool		counting;
	TimestampTz counted_at;		/* 0: never */
	int64		counted_from;	/* while it is counted */
} OutboxBacklogEntry;

typedef struct OutboxBacklogShared
{
	LWLock	   *lock;
	uint64		last_epoch;
	int			nentries;
	bool		told_servers;	/* that there is no room for some */
	bool		told_roles;
} OutboxBacklogShared;

/* What an open transaction has reserved at one level of nesting. */
typedef struct OutboxReservation
{
	Oid			serverid;
	NameData	role;			/* "": none */
	uint64		server_epoch;
	uint64		role_epoch;		/* 0: there was no room */
	int			nest_level;
	OutboxQuantity quantity;
} OutboxReservation;

static OutboxBacklogShared *shared = NULL;
static HTAB *entries = NULL;

/* Of this transaction; ascending in their level. */
static OutboxReservation *reservations = NULL;
static int	nreservations = 0;
static int	reservations_size = 0;

/* What it has written, and whether it was warned. */
static OutboxBacklogSums written;
static bool warned = false;

static int
outbox_backlog_max_entries(void)
{
	return OUTBOX_MAX_BACKLOG_ROLES + 2 * outbox_max_workers;
}

void
outbox_backlog_request(void)
{
	RequestAddinShmemSpace(add_size(sizeof(OutboxBacklogShared),
									hash_estimate_size(outbox_backlog_max_entries(),
													   sizeof(OutboxBacklogEntry))));
	RequestNamedLWLockTranche("amqp_outbox_backlog", 1);
}

void
outbox_backlog_startup(void)
{
	HASHCTL		ctl = {
		.keysize = sizeof(OutboxBacklogKey),
		.entrysize = sizeof(OutboxBacklogEntry)
	};
	bool		found;

	shared = ShmemInitStruct("amqp_outbox backlog",
							 sizeof(OutboxBacklogShared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(*shared));
		shared->lock = &GetNamedLWLockTranche("amqp_outbox_backlog")->lock;
	}
	entries = ShmemInitHash("amqp_outbox backlogs",
							outbox_backlog_max_entries(),
							outbox_backlog_max_entries(), &ctl,
							HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
}

/*
 * Entries.  All of this under the lock.
 */

static void
outbox_backlog_lock(LWLockMode mode)
{
	LWLockAcquire(shared->lock, mode);
}

static void
outbox_backlog_unlock(void)
{
	LWLockRelease(shared->lock);
}

static OutboxBacklogKey
outbox_backlog_key(Oid serverid, const char *role)
{
	OutboxBacklogKey key;

	/* it is hashed as bytes */
	memset(&key, 0, sizeof(key));
	key.dboid = MyDatabaseId;
	key.serverid = serverid;
	strlcpy(NameStr(key.role), role, NAMEDATALEN);
	return key;
}

static OutboxBacklogEntry *
outbox_backlog_find(Oid serverid, const char *role)
{
	OutboxBacklogKey key = outbox_backlog_key(serverid, role);

	Assert(LWLockHeldByMe(shared->lock));
	return hash_search(entries, &key, HASH_FIND, NULL);
}

/* The same, made if there is none; NULL if there is no room. */
static OutboxBacklogEntry *
outbox_backlog_make(Oid serverid, const char *role)
{
	OutboxBacklogKey key = outbox_backlog_key(serverid, role);
	OutboxBacklogEntry *entry = hash_search(entries, &key, HASH_FIND, NULL);

	Assert(LWLockHeldByMe(shared->lock));
	if (entry)
		return entry;
	/* roles must not take the room of servers */
	if (role[0] != '\0' && shared->nentries >= OUTBOX_MAX_BACKLOG_ROLES)
		return NULL;
	entry = hash_search(entries, &key, HASH_ENTER_NULL, NULL);
	if (entry == NULL)
		return NULL;
	memset((char *) entry + sizeof(key), 0, sizeof(*entry) - sizeof(key));
	entry->epoch = ++shared->last_epoch;
	shared->nentries++;
	return entry;
}

static void
outbox_backlog_remove(OutboxBacklogEntry *entry)
{
	OutboxBacklogKey key = entry->key;

	hash_search(entries, &key, HASH_REMOVE, NULL);
	shared->nentries--;
}

static bool
outbox_quantity_is_zero(const OutboxQuantity *quantity)
{
	return quantity->messages == 0 && quantity->bytes == 0;
}

/* A role of which nothing is known needs no entry. */
static void
outbox_backlog_remove_if_idle(OutboxBacklogEntry *entry)
{
	if (NameStr(entry->key.role)[0] != '\0' &&
		outbox_quantity_is_zero(&entry->waiting) &&
		outbox_quantity_is_zero(&entry->reserved) &&
		outbox_quantity_is_zero(&entry->fresh))
		outbox_backlog_remove(entry);
}

static void
outbox_quantity_take(OutboxQuantity *quantity, const OutboxQuantity *less)
{
	outbox_quantity_add(quantity, -less->messages, -less->bytes);
}

/*
 * Reserving
 */

/* Does one more message exceed a limit of this entry? */
static bool
outbox_backlog_exceeds(const OutboxBacklogEntry *entry, int64 bytes,
					   int64 max_messages, int64 max_bytes,
					   OutboxBacklogExcess *excess)
{
	int64		messages = entry->waiting.messages + entry->reserved.messages;
	int64		used = entry->waiting.bytes + entry->reserved.bytes;

	excess->in_bytes = max_messages == 0 || messages < max_messages;
	excess->waiting = excess->in_bytes ? used : messages;
	excess->limit = excess->in_bytes ? max_bytes : max_messages;
	return !excess->in_bytes || (max_bytes > 0 && used + bytes > max_bytes);
}

/* Room for one more reservation: nothing may fail once it is made. */
static void
outbox_backlog_grow_reservations(void)
{
	if (nreservations < reservations_size)
		return;
	if (reservations == NULL)
	{
		reservations = MemoryContextAlloc(TopTransactionContext,
										  8 * sizeof(OutboxReservation));
		reservations_size = 8;
		return;
	}
	reservations = repalloc_huge(reservations, 2 * (Size) reservations_size *
								 sizeof(OutboxReservation));
	reservations_size *= 2;
}

/* Add to the reservation like this one, or make it the last. */
static void
outbox_backlog_merge_reservation(OutboxReservation like)
{
	for (int i = nreservations - 1; i >= 0 &&
		 reservations[i].nest_level == like.nest_level; i--)
	{
		OutboxReservation *reservation = &reservations[i];

		if (reservation->serverid != like.serverid ||
			reservation->server_epoch != like.server_epoch ||
			reservation->role_epoch != like.role_epoch)
			continue;
		outbox_quantity_add(&reservation->quantity, like.quantity.messages,
							like.quantity.bytes);
		return;
	}
	reservations[nreservations++] = like;
}

static void
outbox_backlog_tell_full(bool of_server)
{
	ereport(LOG,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 of_server ?
			 errmsg("too many servers have a backlog for amqp_outbox to limit each of them") :
			 errmsg("too many roles have a backlog for amqp_outbox to limit each of them"),
			 errdetail("There is room for %d roles and servers in one cluster.",
					   of_server ? outbox_backlog_max_entries() :
					   OUTBOX_MAX_BACKLOG_ROLES),
			 of_server ?
			 errhint("Backlogs of the others are not limited at present; a larger amqp_outbox.max_workers makes room.") :
			 errhint("Messages of the others count for the limits of their server only; set those as well.")));
}

/* Under the lock: whether it is, and has not been told before. */
static bool
outbox_backlog_is_news(bool is, bool *told)
{
	bool		news = is && !*told;

	*told |= news;
	return news;
}

bool
outbox_backlog_reserve(Oid serverid, const char *role, int64 bytes,
					   const OutboxBacklogLimits *limits,
					   OutboxBacklogExcess *excess)
{
	OutboxReservation reservation = {
		.serverid = serverid,
		.nest_level = GetCurrentTransactionNestLevel(),
		.quantity = {1, bytes}
	};
	OutboxBacklogEntry *server;
	OutboxBacklogEntry *of_role = NULL;
	bool		exceeds = false;
	bool		full;

	outbox_backlog_grow_reservations();
	outbox_backlog_lock(LW_EXCLUSIVE);
	server = outbox_backlog_make(serverid, "");
	if (server && role)
		of_role = outbox_backlog_make(serverid, role);
	full = outbox_backlog_is_news(server == NULL, &shared->told_servers) ||
		outbox_backlog_is_news(role != NULL && of_role == NULL,
							   &shared->told_roles);

	if (server)
		exceeds = outbox_backlog_exceeds(server, bytes, limits->messages,
										 limits->bytes, excess);
	excess->of_role = !exceeds;
	if (!exceeds && of_role)
		exceeds = outbox_backlog_exceeds(of_role, bytes,
										 limits->role_messages,
										 limits->role_bytes, excess);
	if (server && (!exceeds || limits->action == OUTBOX_BACKLOG_WARN))
	{
		reservation.server_epoch = server->epoch;
		outbox_quantity_add(&server->reserved, 1, bytes);
		if (of_role)
		{
			reservation.role = of_role->key.role;
			reservation.role_epoch = of_role->epoch;
			outbox_quantity_add(&of_role->reserved, 1, bytes);
		}
		outbox_backlog_merge_reservation(reservation);
	}
	else if (of_role)
		outbox_backlog_remove_if_idle(of_role);
	outbox_backlog_unlock();

	if (full)
		outbox_backlog_tell_full(server == NULL);
	excess->first = exceeds && !warned;
	warned |= exceeds;
	return !exceeds;
}

/* Under the lock: take a reservation back, unless its entries are gone. */
static void
outbox_backlog_take_back(const OutboxReservation *reservation)
{
	OutboxBacklogEntry *entry = outbox_backlog_find(reservation->serverid, "");

	if (entry && entry->epoch == reservation->server_epoch)
		outbox_quantity_take(&entry->reserved, &reservation->quantity);
	if (reservation->role_epoch == 0)
		return;
	entry = outbox_backlog_find(reservation->serverid,
								NameStr(reservation->role));
	if (entry == NULL || entry->epoch != reservation->role_epoch)
		return;
	outbox_quantity_take(&entry->reserved, &reservation->quantity);
	outbox_backlog_remove_if_idle(entry);
}

void
outbox_backlog_subxact_aborted(int nest_level)
{
	if (nreservations == 0 ||
		reservations[nreservations - 1].nest_level < nest_level)
		return;
	outbox_backlog_lock(LW_EXCLUSIVE);
	while (nreservations > 0 &&
		   reservations[nreservations - 1].nest_level >= nest_level)
		outbox_backlog_take_back(&reservations[--nreservations]);
	outbox_backlog_unlock();
}

/* What the subtransaction reserved is now its parent's. */
void
outbox_backlog_subxact_committed(int nest_level)
{
	int			n = nreservations;
	int			first = n;

	while (first > 0 && reservations[first - 1].nest_level == nest_level)
		first--;
	nreservations = first;
	for (int i = first; i < n; i++)
	{
		OutboxReservation reservation = reservations[i];

		reservation.nest_level--;
		outbox_backlog_merge_reservation(reservation);
	}
}

/*
 * Sums
 */

OutboxBacklogSum *
outbox_backlog_sum(OutboxBacklogSums *sums, Oid serverid, const char *role,
				   Size len)
{
	OutboxBacklogSum *sum;

	/* a row may have come from anywhere */
	len = Min(len, NAMEDATALEN - 1);
	/* the newest one first: most often it is that */
	for (int i = sums->n - 1; i >= 0; i--)
	{
		sum = &sums->sums[i];
		if (sum->serverid == serverid &&
			memcmp(NameStr(sum->role), role, len) == 0 &&
			NameStr(sum->role)[len] == '\0')
			return sum;
	}
	if (sums->n == sums->size)
	{
		int			size = sums->size == 0 ? 4 : sums->size * 2;

		sums->sums = sums->size == 0 ?
			MemoryContextAlloc(sums->context, size * sizeof(OutboxBacklogSum)) :
			repalloc(sums->sums, size * sizeof(OutboxBacklogSum));
		sums->size = size;
	}
	sum = &sums->sums[sums->n++];
	memset(sum, 0, sizeof(*sum));
	sum->serverid = serverid;
	memcpy(NameStr(sum->role), role, len);
	return sum;
}

/*
 * Without any entry there is nothing to note: nentries was not 0 before whoever
 * made the first one read the next id, in one section of the horizon's lock; so
 * if we do not see it here, where our ids were taken in another one, they were
 * taken before that.
 */
bool
outbox_backlog_is_used(void)
{
	return shared->nentries > 0;
}

void
outbox_backlog_note(Oid serverid, const text *role, int64 bytes)
{
	OutboxBacklogSum *sum;

	written.context = TopTransactionContext;
	sum = role ?
		outbox_backlog_sum(&written, serverid, VARDATA_ANY(role),
						   VARSIZE_ANY_EXHDR(role)) :
		outbox_backlog_sum(&written, serverid, "", 0);
	outbox_quantity_add(&sum->all, 1, bytes);
}

/*
 * Under the lock: so much more waits, or with sign -1 less.  An entry of a role
 * is only made for more.
 */
static void
outbox_backlog_apply(OutboxBacklogEntry *server, const OutboxBacklogSum *sum,
					 int sign)
{
	OutboxBacklogEntry *entry = server;

	for (int i = 0; i < 2 && entry != NULL; i++)
	{
		outbox_quantity_add(&entry->waiting, sign * sum->all.messages,
							sign * sum->all.bytes);
		if (server->counting)
			outbox_quantity_add(&entry->fresh, sign * sum->fresh.messages,
								sign * sum->fresh.bytes);
		if (entry != server)
			outbox_backlog_remove_if_idle(entry);
		else if (NameStr(sum->role)[0] == '\0')
			break;
		else if (sign > 0)
			entry = outbox_backlog_make(server->key.serverid,
										NameStr(sum->role));
		else
			entry = outbox_backlog_find(server->key.serverid,
										NameStr(sum->role));
	}
}

/* Under the lock: what this transaction has written waits. */
static void
outbox_backlog_apply_written(void)
{
	int64		first_id = outbox_horizon_first_id();

	for (int i = 0; i < written.n; i++)
	{
		OutboxBacklogSum *sum = &written.sums[i];
		OutboxBacklogEntry *server = outbox_backlog_find(sum->serverid, "");

		if (server == NULL)
			continue;
		if (first_id >= server->counted_from)
			sum->fresh = sum->all;
		outbox_backlog_apply(server, sum, 1);
	}
}

void
outbox_backlog_end(bool committed)
{
	if (nreservations > 0 || (committed && written.n > 0))
	{
		outbox_backlog_lock(LW_EXCLUSIVE);
		if (committed)
			outbox_backlog_apply_written();
		while (nreservations > 0)
			outbox_backlog_take_back(&reservations[--nreservations]);
		outbox_backlog_unlock();
	}
	/* memory goes with the transaction */
	reservations = NULL;
	reservations_size = 0;
	memset(&written, 0, sizeof(written));
	warned = false;
}

/*
 * Counting
 */

/* For each entry of a server; the visitor may remove it.  Under the lock. */
typedef void (*OutboxBacklogVisitor) (OutboxBacklogEntry *entry);

static void
outbox_backlog_each(Oid serverid, OutboxBacklogVisitor visit)
{
	HASH_SEQ_STATUS scan;
	OutboxBacklogEntry *entry;

	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->key.dboid == MyDatabaseId &&
			entry->key.serverid == serverid)
			visit(entry);
	}
}

static void
outbox_backlog_begin_fresh(OutboxBacklogEntry *entry)
{
	entry->fresh = (OutboxQuantity) {0};
}

/* What is fresh is all there is, but for what was counted. */
static void
outbox_backlog_install_fresh(OutboxBacklogEntry *entry)
{
	entry->waiting = entry->fresh;
	entry->fresh = (OutboxQuantity) {0};
	outbox_backlog_remove_if_idle(entry);
}

int64
outbox_backlog_begin_count(Oid serverid, Oid outbox_relid)
{
	OutboxHorizonStatus horizon = {0};
	OutboxBacklogEntry *server;

	outbox_backlog_lock(LW_EXCLUSIVE);
	server = outbox_backlog_make(serverid, "");
	if (server)
	{
		outbox_backlog_each(serverid, outbox_backlog_begin_fresh);
		/* within our lock, see above */
		outbox_horizon_get_status(outbox_relid, &horizon);
		server->counting = true;
		server->counted_from = horizon.next_id;
	}
	outbox_backlog_unlock();
	return horizon.next_id;
}

void
outbox_backlog_counted(Oid serverid, const OutboxBacklogSums *counted)
{
	TimestampTz now = GetCurrentTimestamp();
	OutboxBacklogEntry *server;

	outbox_backlog_lock(LW_EXCLUSIVE);
	server = outbox_backlog_find(serverid, "");
	if (server && server->counting)
	{
		outbox_backlog_each(serverid, outbox_backlog_install_fresh);
		server->counting = false;
		server->counted_at = now;
		for (int i = 0; i < counted->n; i++)
			outbox_backlog_apply(server, &counted->sums[i], 1);
	}
	outbox_backlog_unlock();
}

void
outbox_backlog_settled(Oid serverid, const OutboxBacklogSums *gone)
{
	OutboxBacklogEntry *server;

	if (gone->n == 0)
		return;
	outbox_backlog_lock(LW_EXCLUSIVE);
	server = outbox_backlog_find(serverid, "");
	for (int i = 0; server != NULL && i < gone->n; i++)
		outbox_backlog_apply(server, &gone->sums[i], -1);
	outbox_backlog_unlock();
}

/*
 * Forgetting
 */

void
outbox_backlog_forget(Oid serverid)
{
	outbox_backlog_lock(LW_EXCLUSIVE);
	outbox_backlog_each(serverid, outbox_backlog_remove);
	outbox_backlog_unlock();
}

static bool
outbox_backlog_is_of(const OutboxBacklogEntry *entry, const Oid *servers, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (servers[i] == entry->key.serverid)
			return true;
	}
	return false;
}

uint64
outbox_backlog_last_epoch(void)
{
	uint64		result;

	outbox_backlog_lock(LW_SHARED);
	result = shared->last_epoch;
	outbox_backlog_unlock();
	return result;
}

/* Under the lock: it may be of what was created after the list was made. */
static bool
outbox_backlog_is_newer(const OutboxBacklogEntry *entry, uint64 epoch)
{
	return entry->epoch > epoch || !outbox_quantity_is_zero(&entry->reserved);
}

void
outbox_backlog_keep_servers(Oid dboid, const Oid *servers, int n, uint64 epoch)
{
	HASH_SEQ_STATUS scan;
	OutboxBacklogEntry *entry;

	outbox_backlog_lock(LW_EXCLUSIVE);
	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->key.dboid == dboid &&
			!outbox_backlog_is_newer(entry, epoch) &&
			!outbox_backlog_is_of(entry, servers, n))
			outbox_backlog_remove(entry);
	}
	outbox_backlog_unlock();
}

void
outbox_backlog_forget_databases(const List *databases, uint64 epoch)
{
	HASH_SEQ_STATUS scan;
	OutboxBacklogEntry *entry;

	outbox_backlog_lock(LW_EXCLUSIVE);
	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (!outbox_backlog_is_newer(entry, epoch) &&
			!list_member_oid(databases, entry->key.dboid))
			outbox_backlog_remove(entry);
	}
	outbox_backlog_unlock();
}

OutboxBacklogStatus *
outbox_backlog_status(int *n)
{
	OutboxBacklogStatus *result = palloc(outbox_backlog_max_entries() *
										 sizeof(OutboxBacklogStatus));
	HASH_SEQ_STATUS scan;
	OutboxBacklogEntry *entry;

	*n = 0;
	outbox_backlog_lock(LW_SHARED);
	hash_seq_init(&scan, entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		OutboxBacklogStatus *status = &result[*n];
		OutboxBacklogEntry *server;

		if (entry->key.dboid != MyDatabaseId)
			continue;
		server = outbox_backlog_find(entry->key.serverid, "");
		status->serverid = entry->key.serverid;
		status->role = entry->key.role;
		status->waiting = entry->waiting;
		status->reserved = entry->reserved;
		status->counted_at = server ? server->counted_at : 0;
		status->counting = server != NULL && server->counting;
		(*n)++;
	}
	outbox_backlog_unlock();
	return result;
}
