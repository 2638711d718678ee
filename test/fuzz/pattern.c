/*-------------------------------------------------------------------------
 *
 * pattern.c
 *	  Fuzzes the patterns of allow lists: a line with the pattern, then the key.
 *
 * The answer must be that of the definition, written down as it is.
 *
 *-------------------------------------------------------------------------
 */
#include "backend.h"

#include "pattern.h"

/* The definition takes exponential time. */
#define MAX_SIZE	16

/* What a word and its dot leave of a text; NULL if there was no dot. */
static const char *
rest_of(const char *text)
{
	const char *dot = strchr(text, '.');

	return dot ? dot + 1 : NULL;
}

/* Whether words are covered; NULL for no word at all. */
static bool
covers(const char *pattern, const char *key)
{
	size_t		len = pattern ? strcspn(pattern, ".") : 0;

	if (pattern == NULL)
		return key == NULL;
	if (len == 1 && pattern[0] == '#')
		return covers(rest_of(pattern), key) ||
			(key != NULL && covers(pattern, rest_of(key)));
	if (key == NULL)
		return false;
	if (!(len == 1 && pattern[0] == '*') &&
		(strcspn(key, ".") != len || memcmp(pattern, key, len) != 0))
		return false;
	return covers(rest_of(pattern), rest_of(key));
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	const char *text = (const char *) data;
	const char *end = size > 0 ? memchr(text, '\n', size) : NULL;
	char		pattern[MAX_SIZE + 1];
	char		key[MAX_SIZE + 1];
	Size		pattern_len;
	Size		key_len;
	bool		matches;

	if (end == NULL)
		return 0;
	pattern_len = end - text;
	key_len = size - pattern_len - 1;
	matches = outbox_pattern_matches(text, pattern_len, end + 1, key_len);
	(void) outbox_pattern_is_clear(text, pattern_len);
	if (pattern_len > MAX_SIZE || key_len > MAX_SIZE ||
		memchr(text, '\0', size) != NULL)
		return 0;
	memcpy(pattern, text, pattern_len);
	pattern[pattern_len] = '\0';
	memcpy(key, end + 1, key_len);
	key[key_len] = '\0';
	fuzz_check(matches == covers(pattern_len > 0 ? pattern : NULL,
								 key_len > 0 ? key : NULL));
	return 0;
}
