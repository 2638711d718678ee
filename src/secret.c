/*-------------------------------------------------------------------------
 *
 * secret.c
 *	  Files that a connection is made with: passwords, keys, certificates.
 *
 * They are read whenever a connection is made, again and again and by several
 * processes, which must not block: hence nothing but regular files.  A pipe
 * would give what it holds to the first one only.  A file that the database
 * server was started with may be named by its descriptor, which is then read
 * itself: it may belong to root, or have no name at all.
 *
 * What is wrong with a file is a failure like any other trouble on the way to a
 * broker, not an error.
 *
 * No message repeats what stands in a file.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"

#include "secret.h"

/* The same as in check_ssl_key_file_permissions() of be-secure-common.c. */
#define SECRET_MODES \
	"File must have permissions u=rw (0600) or less if owned by the database user, or permissions u=rw,g=r (0640) or less if owned by root."

static void
outbox_file_failed(const char *path, const char *what, OutboxFailure *failure)
{
	outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR, strerror(errno),
					   "could not open %s \"%s\"", what, path);
}

/* The number in a path such as /dev/fd/3; -1 if it is another one. */
static int
outbox_file_number(const char *path)
{
	static const char *const folders[] = {"/dev/fd/", "/proc/self/fd/"};

	for (int i = 0; i < (int) lengthof(folders); i++)
	{
		Size		len = strlen(folders[i]);

		/* not as many digits as would overflow */
		if (strncmp(path, folders[i], len) == 0 && path[len] != '\0' &&
			strspn(path + len, "0123456789") == strlen(path + len) &&
			strlen(path + len) < 8)
			return atoi(path + len);
	}
	return -1;
}

static void
outbox_file_close(const char *path, int fd)
{
	if (outbox_file_number(path) < 0)
		CloseTransientFile(fd);
}

/* A descriptor of a regular file, to be closed; -1 with *failure. */
static int
outbox_file_open(const char *path, const char *what, struct stat *st,
				 OutboxFailure *failure)
{
	int			fd = outbox_file_number(path);

	if (fd < 0)
		fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | PG_BINARY);
	if (fd < 0 || fstat(fd, st) != 0)
	{
		outbox_file_failed(path, what, failure);
		if (fd >= 0)
			outbox_file_close(path, fd);
		return -1;
	}
	if (S_ISREG(st->st_mode))
		return fd;
	outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR,
					   "It is read again for each connection, which a pipe or a device cannot be.",
					   "%s \"%s\" is not a regular file", what, path);
	outbox_file_close(path, fd);
	return -1;
}

/* Is it out of reach for everybody else? */
static bool
outbox_secret_is_private(const char *path, const char *what,
						 const struct stat *st, OutboxFailure *failure)
{
	bool		ours = st->st_uid == geteuid();
	mode_t		forbidden = ours ? S_IRWXG | S_IRWXO :
		S_IWGRP | S_IXGRP | S_IRWXO;

	if (!ours && st->st_uid != 0)
	{
		outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR, NULL,
						   "%s \"%s\" must be owned by the database user or root",
						   what, path);
		return false;
	}
	/* what has no name any more, or never had one, nobody else can open */
	if ((st->st_mode & forbidden) && st->st_nlink > 0)
	{
		outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR, SECRET_MODES,
						   "%s \"%s\" has group or world access", what, path);
		return false;
	}
	return true;
}

/* Bytes read, at most size; -1 with errno.  The offset stays: it may be shared. */
static ssize_t
outbox_file_read(int fd, char *buf, Size size)
{
	Size		len = 0;
	ssize_t		n;

	while (len < size && (n = pread(fd, buf + len, size - len, len)) != 0)
	{
		if (n < 0 && errno != EINTR)
			return -1;
		len += Max(n, 0);
	}
	return len;
}

char *
outbox_secret_read(const char *path, const char *what, Size max,
				   OutboxFailure *failure)
{
	char	   *contents = NULL;
	struct stat st;
	ssize_t		len;
	int			fd = outbox_file_open(path, what, &st, failure);

	if (fd < 0)
		return NULL;
	if (outbox_secret_is_private(path, what, &st, failure))
	{
		contents = palloc0(max + 2);
		len = outbox_file_read(fd, contents, max + 1);
		if (len < 0)
			outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR,
							   strerror(errno), "could not read %s \"%s\"",
							   what, path);
		else if ((Size) len > max)
			outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR, NULL,
							   "%s \"%s\" is larger than %zu bytes",
							   what, path, max);
		if (len < 0 || (Size) len > max)
		{
			explicit_bzero(contents, max + 2);
			pfree(contents);
			contents = NULL;
		}
	}
	outbox_file_close(path, fd);
	return contents;
}

void
outbox_secret_forget(char *secret)
{
	if (secret == NULL)
		return;
	explicit_bzero(secret, strlen(secret));
	pfree(secret);
}

bool
outbox_file_check(const char *path, const char *what, OutboxFailure *failure)
{
	struct stat st;
	int			fd = outbox_file_open(path, what, &st, failure);

	if (fd >= 0)
		outbox_file_close(path, fd);
	return fd >= 0;
}

bool
outbox_file_check_hashed(const char *path, const char *what,
						 OutboxFailure *failure)
{
	DIR		   *dir = AllocateDir(path);
	struct dirent *entry;
	bool		found = false;

	if (dir == NULL)
	{
		outbox_file_failed(path, what, failure);
		return false;
	}
	while (!found && (entry = ReadDirExtended(dir, path, DEBUG1)) != NULL)
		found = strspn(entry->d_name, "0123456789abcdef") == 8 &&
			entry->d_name[8] == '.' &&
			strspn(entry->d_name + 9, "0123456789") > 0;
	FreeDir(dir);
	if (!found)
		outbox_failure_set(failure, ERRCODE_CONFIG_FILE_ERROR,
						   "OpenSSL finds certificates by the hash of their names; run \"openssl rehash\" on it.",
						   "%s \"%s\" holds no hashed certificates",
						   what, path);
	return found;
}
