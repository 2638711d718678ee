/*-------------------------------------------------------------------------
 *
 * amqp_outbox.c
 *	  A transactional outbox: what commits in PostgreSQL is published to an
 *	  AMQP broker.
 *
 * The way of a message through these files, and why it is so, is told in
 * docs/design.md.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "buffer.h"
#include "launcher.h"
#include "row_create.h"
#include "settings.h"
#include "shared.h"
#include "utility.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

/*
 * Without shared_preload_libraries only the validator works; everything else
 * asks for it (outbox_shared_require).
 */
void
_PG_init(void)
{
	outbox_settings_define();
	if (!process_shared_preload_libraries_in_progress)
		return;

	outbox_shared_install_hooks();
	outbox_buffer_install_callbacks();
	outbox_utility_install_hooks();
	outbox_row_create_install_hook();
	if (!IsBinaryUpgrade)
		outbox_launcher_register();
}
