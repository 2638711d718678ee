/*-------------------------------------------------------------------------
 *
 * token.c
 *	  When a token ends.
 *
 * A JSON Web Token is "header.payload.signature", each part in base64url (RFC
 * 7515, section 2), and the payload a JSON object.  Whether it is genuine is
 * for the broker to say; here only one number of it is looked for, to be there
 * with a new one in time.  So anything that is not as expected just has no end
 * that is known.
 *
 * Pure: no I/O, no clock, no errors.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "token.h"

/* The value of a digit of base64url, -1 if it is none. */
static int
outbox_base64url_digit(char c)
{
	static const char digits[] =
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
	const char *p = c ? strchr(digits, c) : NULL;

	return p ? (int) (p - digits) : -1;
}

/*
 * Decode up to the dot that ends the part.  NULL if it is not base64url;
 * palloc'd, with a NUL after it.
 */
static char *
outbox_base64url_decode(const char *part)
{
	Size		len = strcspn(part, ".");
	char	   *result = palloc(len + 1);
	char	   *p = result;
	uint32		bits = 0;
	int			nbits = 0;

	for (Size i = 0; i < len; i++)
	{
		int			digit = outbox_base64url_digit(part[i]);

		if (digit < 0)
		{
			pfree(result);
			return NULL;
		}
		bits = (bits << 6 | digit) & 0xFFFF;
		nbits += 6;
		if (nbits >= 8)
		{
			nbits -= 8;
			*p++ = (char) (bits >> nbits & 0xFF);
		}
	}
	*p = '\0';
	return result;
}

/* The character after a string that begins at its quote, or the NUL. */
static const char *
outbox_json_skip_string(const char *p)
{
	for (p++; *p && *p != '"'; p++)
	{
		if (*p == '\\' && p[1])
			p++;
	}
	return *p ? p + 1 : p;
}

/*
 * The value of a key of the object itself, not of one inside it; NULL if there
 * is none.  Not a parser: it keeps track of strings and of nesting.
 */
static const char *
outbox_json_value(const char *json, const char *key)
{
	Size		len = strlen(key);
	int			depth = 0;

	for (const char *p = json; *p;)
	{
		const char *string = p;

		if (*p != '"')
		{
			depth += (*p == '{' || *p == '[') - (*p == '}' || *p == ']');
			p++;
			continue;
		}
		p = outbox_json_skip_string(p);
		p += strspn(p, " \t\r\n");
		if (depth == 1 && *p == ':' &&
			strncmp(string + 1, key, len) == 0 && string[len + 1] == '"')
			return p + 1 + strspn(p + 1, " \t\r\n");
	}
	return NULL;
}

bool
outbox_token_expiry(const char *token, int64 *expiry)
{
	const char *payload = strchr(token, '.');
	const char *value;
	char	   *json;
	int			ndigits = 0;

	if (payload == NULL || strchr(payload + 1, '.') == NULL)
		return false;
	json = outbox_base64url_decode(payload + 1);
	if (json == NULL)
		return false;
	value = outbox_json_value(json, "exp");
	if (value)
		ndigits = strspn(value, "0123456789");

	/* more digits are no time, and no number that fits */
	if (ndigits > 0 && ndigits <= 11)
		*expiry = strtoll(value, NULL, 10);
	explicit_bzero(json, strlen(json));
	pfree(json);
	return ndigits > 0 && ndigits <= 11;
}
