/*-------------------------------------------------------------------------
 *
 * credential.c
 *	  What a connection is authenticated with, read when it is made.
 *
 * Files are read for each connection, so that whatever writes them (a vault's
 * agent, a renewed token) needs to tell nobody.  Whoever reads them here wipes
 * them soon after.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "credential.h"
#include "secret.h"
#include "token.h"

/* A file may have comments and blank lines after the line that counts. */
#define OUTBOX_SECRET_FILE_MAX	65536

/* The first line of a file; NULL with *failure. */
static char *
outbox_credential_line(const char *path, const char *what,
					   OutboxFailure *failure)
{
	char	   *contents = outbox_secret_read(path, what,
											  OUTBOX_SECRET_FILE_MAX, failure);
	char	   *line;
	Size		len;

	if (contents == NULL)
		return NULL;
	len = strcspn(contents, "\r\n");
	line = pnstrdup(contents, len);
	outbox_secret_forget(contents);
	if (len > 0 && len <= OUTBOX_PASSWORD_MAX)
		return line;
	if (len == 0)
		outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR, NULL,
						   "the first line of %s \"%s\" is empty", what, path);
	else
		outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR, NULL,
						   "the first line of %s \"%s\" has more than %d bytes",
						   what, path, OUTBOX_PASSWORD_MAX);
	outbox_secret_forget(line);
	return NULL;
}

/* When the token ends; false, with *failure, if it has. */
static bool
outbox_credential_check_token(const OutboxServer *server,
							  OutboxCredentials *credentials,
							  OutboxFailure *failure)
{
	int64		expiry;

	if (!outbox_token_expiry(credentials->password, &expiry))
		return true;
	credentials->expires_at = time_t_to_timestamptz((pg_time_t) expiry);
	if (credentials->expires_at > GetCurrentTimestamp())
		return true;
	outbox_failure_set(failure, ERRCODE_INVALID_PASSWORD,
					   "Write a new one into the file; and compare the clocks of this machine and of the one that made it.",
					   "the token in file \"%s\" expired at %s",
					   server->token_file,
					   timestamptz_to_str(credentials->expires_at));
	return false;
}

static bool
outbox_credential_read_password(const OutboxServer *server,
								OutboxCredentials *credentials,
								OutboxFailure *failure)
{
	if (server->token_file)
		credentials->password = outbox_credential_line(server->token_file,
													   "token file", failure);
	else if (server->password_file)
		credentials->password = outbox_credential_line(server->password_file,
													   "password file",
													   failure);
	else
		credentials->password = pstrdup(server->password ? server->password :
										"");
	if (credentials->password == NULL)
		return false;
	return server->token_file == NULL ||
		outbox_credential_check_token(server, credentials, failure);
}

static bool
outbox_credential_read_key_password(const OutboxServer *server,
									OutboxCredentials *credentials,
									OutboxFailure *failure)
{
	const char *path = server->keyfile_password_file;

	if (!server->tls)
		return true;
	if (server->keyfile_password)
		credentials->key_password = pstrdup(server->keyfile_password);
	if (path == NULL)
		return true;
	credentials->key_password =
		outbox_credential_line(path, "key password file", failure);
	return credentials->key_password != NULL;
}

bool
outbox_credentials_read(const OutboxServer *server,
						OutboxCredentials *credentials,
						OutboxFailure *failure)
{
	memset(credentials, 0, sizeof(*credentials));
	if (server->refusal)
	{
		outbox_failure_set(failure, ERRCODE_INSUFFICIENT_PRIVILEGE,
						   server->refusal_detail, "%s", server->refusal);
		return false;
	}
	if (server->user == NULL && server->token_file == NULL &&
		server->mechanism != OUTBOX_MECHANISM_EXTERNAL)
	{
		outbox_failure_set(failure, ERRCODE_UNDEFINED_OBJECT, NULL,
						   "there is no user mapping with a user for the server's owner or PUBLIC");
		return false;
	}
	if (outbox_credential_read_password(server, credentials, failure) &&
		outbox_credential_read_key_password(server, credentials, failure))
		return true;
	outbox_credentials_forget(credentials);
	return false;
}

void
outbox_credentials_forget(OutboxCredentials *credentials)
{
	outbox_secret_forget(credentials->password);
	outbox_secret_forget(credentials->key_password);
	memset(credentials, 0, sizeof(*credentials));
}
