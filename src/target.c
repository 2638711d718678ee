/*-------------------------------------------------------------------------
 *
 * target.c
 *	  Where a broker is, as users write it: URIs and lists of hosts.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "target.h"

/*
 * URI
 */

/*
 * The value is not repeated, here and for hosts: one that is wrong may hold a
 * password wherever.
 */
static void
outbox_target_uri_invalid(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("invalid value for option \"uri\""),
			 errdetail("%s", detail),
			 errhint("Write amqp://host:port/vhost, or amqps:// for TLS; several hosts are separated by commas.")));
}

static void
outbox_target_has_credentials(const char *option)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("option \"%s\" must not contain a user or a password", option),
			 errdetail("Everybody may read the options of a server."),
			 errhint("Give them to the user mapping: CREATE USER MAPPING FOR PUBLIC SERVER ... OPTIONS (user '...', password '...').")));
}

static int
outbox_target_hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = pg_tolower((unsigned char) c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static char *
outbox_target_decode(const char *part)
{
	StringInfoData result;

	initStringInfo(&result);
	for (; *part; part++)
	{
		int			high,
					low;

		if (*part != '%')
		{
			appendStringInfoChar(&result, *part);
			continue;
		}
		high = outbox_target_hex_digit(part[1]);
		low = high < 0 ? -1 : outbox_target_hex_digit(part[2]);
		if (low < 0 || high + low == 0)
			outbox_target_uri_invalid("A percent sign must be followed by two hexadecimal digits other than 00.");
		appendStringInfoChar(&result, (char) (high * 16 + low));
		part += 2;
	}
	if (!pg_verifymbstr(result.data, result.len, true))
		outbox_target_uri_invalid("The virtual host is not valid in the encoding of the database.");
	return result.data;
}

void
outbox_target_parse_uri(const char *uri, OutboxTarget *target)
{
	const char *rest;
	char	   *slash;

	if (pg_strncasecmp(uri, "amqp://", 7) == 0)
	{
		target->tls = 0;
		rest = uri + 7;
	}
	else if (pg_strncasecmp(uri, "amqps://", 8) == 0)
	{
		target->tls = 1;
		rest = uri + 8;
	}
	else if (strchr(uri, '@'))
	{
		outbox_target_has_credentials("uri");
		return;
	}
	else
	{
		outbox_target_uri_invalid("The scheme is neither amqp nor amqps.");
		return;
	}
	if (strchr(rest, '@'))
		outbox_target_has_credentials("uri");
	if (strpbrk(rest, "?#"))
		outbox_target_uri_invalid("Parameters are options of the server, not parts of the URI.");

	target->hosts = pstrdup(rest);
	slash = strchr(target->hosts, '/');
	if (slash == NULL)
		return;
	*slash++ = '\0';
	if (strchr(slash, '/'))
		outbox_target_uri_invalid("A slash in the name of a virtual host is written %2F.");
	if (*slash == '\0')
		outbox_target_uri_invalid("The virtual host is empty; leave the last slash out for the virtual host \"/\".");
	target->vhost = outbox_target_decode(slash);
}

/*
 * Hosts
 */

static void
outbox_target_hosts_invalid(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("invalid list of hosts"),
			 errdetail("%s", detail),
			 errhint("Give a name or an address, or several separated by commas, each with :port if it has one of its own; an IPv6 address stands in brackets.")));
}

static int
outbox_target_port(const char *port)
{
	char	   *end;
	long		value;

	errno = 0;
	value = strtol(port, &end, 10);
	if (!isdigit((unsigned char) port[0]) || *end != '\0' || errno != 0 ||
		value < 1 || value > 65535)
		outbox_target_hosts_invalid("A port is a number from 1 to 65535.");
	return (int) value;
}

/* One element: name, name:port, [address], [address]:port. */
static OutboxHost
outbox_target_parse_host(char *element, int default_port)
{
	OutboxHost	host = {.name = element,.port = default_port};
	char	   *colon;

	if (element[0] == '[')
	{
		char	   *bracket = strchr(element, ']');

		if (bracket == NULL || (bracket[1] != '\0' && bracket[1] != ':'))
			outbox_target_hosts_invalid("A bracket is not closed.");
		host.name = element + 1;
		*bracket = '\0';
		colon = bracket[1] == ':' ? bracket + 1 : NULL;
	}
	else
	{
		colon = strchr(element, ':');
		if (colon && strchr(colon + 1, ':'))
			outbox_target_hosts_invalid("An IPv6 address must stand in brackets.");
	}
	if (colon)
	{
		*colon = '\0';
		host.port = outbox_target_port(colon + 1);
	}
	if (host.name[0] == '\0')
		outbox_target_hosts_invalid("A host is empty.");
	if (strlen(host.name) > 253)
		outbox_target_hosts_invalid("A host name has at most 253 bytes.");
	/* colons, and a percent sign before a zone, only where brackets were */
	for (const char *c = host.name; *c; c++)
	{
		if (!isalnum((unsigned char) *c) &&
			strchr(host.name > element ? "-._:%" : "-._", *c) == NULL)
			outbox_target_hosts_invalid("A host name consists of letters, digits, hyphens, underscores and dots.");
	}
	return host;
}

OutboxHost *
outbox_target_parse_hosts(const char *hosts, int default_port, int *nhosts)
{
	char	   *element = pstrdup(hosts);
	OutboxHost *result;
	int			n = 1;

	if (strchr(hosts, '@'))
		outbox_target_has_credentials("host");
	for (const char *c = hosts; *c; c++)
		n += *c == ',';
	result = palloc(n * sizeof(OutboxHost));
	*nhosts = 0;
	while (element)
	{
		char	   *comma = strchr(element, ',');

		if (comma)
			*comma++ = '\0';
		while (isspace((unsigned char) *element))
			element++;
		for (int end = strlen(element);
			 end > 0 && isspace((unsigned char) element[end - 1]);)
			element[--end] = '\0';
		result[(*nhosts)++] = outbox_target_parse_host(element, default_port);
		element = comma;
	}
	return result;
}
