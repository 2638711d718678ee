/*
 * clock.c
 *	  Preloaded into a server under test: its clock is as far ahead as the test
 *	  says, so that no test waits for an hour to pass.
 *
 * The file $OUTBOX_CLOCK holds a number of seconds, eight bytes, to be added to
 * what the time is.  Only gettimeofday() is changed, which is where PostgreSQL's
 * timestamps come from; timeouts go by another clock.
 *
 *	cc -shared -fPIC -o clock.so clock.c
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

typedef int (*clock_function) (struct timeval *, void *);

static volatile const int64_t *
open_file(void)
{
	static const int64_t none = 0;
	const char *path = getenv("OUTBOX_CLOCK");
	int			fd = path ? open(path, O_RDONLY) : -1;
	void	   *map;

	if (fd < 0)
		return &none;
	map = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	return map == MAP_FAILED ? &none : map;
}

int
gettimeofday(struct timeval *tv, void *tz)
{
	static volatile const int64_t *ahead = NULL;
	clock_function next = (clock_function) dlsym(RTLD_NEXT, "gettimeofday");
	int			result = next(tv, tz);

	if (ahead == NULL)
		ahead = open_file();
	tv->tv_sec += *ahead;
	return result;
}
