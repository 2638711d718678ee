/*
 * name_server.c
 *	  Preloaded into a server under test: its name server is at a port that the
 *	  test chose, so that no test needs rights on the system for that.
 *
 * c-ares reads /etc/resolv.conf, and a name server is always at port 53.  Here
 * that file is $OUTBOX_RESOLV_CONF, and port 53 is $OUTBOX_NAME_SERVER_PORT.
 *
 *	cc -shared -fPIC -o name_server.so name_server.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

typedef int (*connect_function) (int, const struct sockaddr *, socklen_t);
typedef FILE *(*fopen_function) (const char *, const char *);

int
connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	connect_function next = (connect_function) dlsym(RTLD_NEXT, "connect");
	const char *port = getenv("OUTBOX_NAME_SERVER_PORT");
	struct sockaddr_in in;

	if (port && addr->sa_family == AF_INET && len == sizeof(in))
	{
		memcpy(&in, addr, sizeof(in));
		if (in.sin_port == htons(53))
		{
			in.sin_port = htons(atoi(port));
			return next(fd, (struct sockaddr *) &in, len);
		}
	}
	return next(fd, addr, len);
}

FILE *
fopen(const char *path, const char *mode)
{
	fopen_function next = (fopen_function) dlsym(RTLD_NEXT, "fopen");
	const char *instead = getenv("OUTBOX_RESOLV_CONF");

	if (instead && strcmp(path, "/etc/resolv.conf") == 0)
		path = instead;
	return next(path, mode);
}

FILE *
fopen64(const char *path, const char *mode)
{
	return fopen(path, mode);
}
