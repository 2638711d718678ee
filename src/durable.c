/*-------------------------------------------------------------------------
 *
 * durable.c
 *	  Whether what was read may leave.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lwlock.h"

#include "durable.h"
#include "horizon.h"

/*
 * What a crash left visible is on our disk, but perhaps not on a synchronous
 * standby.  Later commits are noted in shared memory.
 */
void
outbox_durable_init(OutboxDurable *durable)
{
	*durable = (OutboxDurable) {.lsn = GetFlushRecPtr(NULL)};
}

void
outbox_durable_require(OutboxDurable *durable, XLogRecPtr lsn)
{
	if (lsn <= durable->lsn)
		return;
	durable->lsn = lsn;
	durable->known = false;
}

XLogRecPtr
outbox_durable_end_of_wal(void)
{
	XLogRecPtr	lsn = GetXLogInsertRecPtr();

	/* where a page begins, its header is yet to be written */
	if (lsn % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		lsn -= SizeOfXLogShortPHD;
	else if (lsn % wal_segment_size == SizeOfXLogLongPHD)
		lsn -= SizeOfXLogLongPHD;
	return lsn;
}

bool
outbox_durable_check(OutboxDurable *durable, Oid outbox_relid)
{
	if (durable->known)
		return true;

	outbox_durable_require(durable, outbox_horizon_commit_lsn(outbox_relid));
	XLogFlush(durable->lsn);
	if (max_wal_senders > 0 &&
		SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0')
	{
		XLogRecPtr	confirmed;

		LWLockAcquire(SyncRepLock, LW_SHARED);
		confirmed = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
		LWLockRelease(SyncRepLock);
		if (confirmed < durable->lsn)
			return false;
	}
	durable->known = true;
	return true;
}
