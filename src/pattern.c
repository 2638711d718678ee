/*-------------------------------------------------------------------------
 *
 * pattern.c
 *	  Patterns of names and routing keys, as AMQP's topic exchanges have them.
 *
 * Pure: no memory, no errors, no backend.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "pattern.h"

/* A place in words with dots between them. */
typedef struct OutboxWords
{
	const char *word;			/* NULL behind the last one */
	Size		len;
	const char *end;			/* of all */
} OutboxWords;

static void
outbox_words_take(OutboxWords *words, const char *from)
{
	const char *dot = memchr(from, '.', words->end - from);

	words->word = from;
	words->len = (dot ? dot : words->end) - from;
}

static OutboxWords
outbox_words_first(const char *text, Size len)
{
	OutboxWords words = {.end = text + len};

	if (len > 0)
		outbox_words_take(&words, text);
	return words;
}

static void
outbox_words_next(OutboxWords *words)
{
	const char *dot = words->word + words->len;

	if (dot == words->end)
		words->word = NULL;
	else
		outbox_words_take(words, dot + 1);
}

static bool
outbox_words_is(const OutboxWords *words, char wildcard)
{
	return words->word != NULL && words->len == 1 &&
		words->word[0] == wildcard;
}

/*
 * At a "#" the rest is tried with no word for it; where that fails, with one
 * more.  Only the last "#" has to be tried again: if what stands before it
 * matches at all, then as early as possible leaves most to it.  So the time is
 * at most the product of both lengths.
 */
bool
outbox_pattern_matches(const char *pattern, Size pattern_len,
					   const char *key, Size key_len)
{
	OutboxWords want = outbox_words_first(pattern, pattern_len);
	OutboxWords have = outbox_words_first(key, key_len);
	OutboxWords behind = {0};	/* of the last "#" in the pattern */
	OutboxWords taken = {0};	/* and where the key goes on behind it */
	bool		open = false;	/* there was one */

	while (have.word != NULL || want.word != NULL)
	{
		if (outbox_words_is(&want, '#'))
		{
			open = true;
			outbox_words_next(&want);
			behind = want;
			taken = have;
		}
		else if (have.word != NULL && want.word != NULL &&
				 (outbox_words_is(&want, '*') ||
				  (want.len == have.len &&
				   memcmp(want.word, have.word, want.len) == 0)))
		{
			outbox_words_next(&want);
			outbox_words_next(&have);
		}
		else if (open && taken.word != NULL)
		{
			outbox_words_next(&taken);
			want = behind;
			have = taken;
		}
		else
			return false;
	}
	return true;
}

bool
outbox_pattern_is_clear(const char *pattern, Size len)
{
	for (OutboxWords words = outbox_words_first(pattern, len);
		 words.word != NULL; outbox_words_next(&words))
	{
		if (words.len > 1 &&
			(memchr(words.word, '*', words.len) != NULL ||
			 memchr(words.word, '#', words.len) != NULL))
			return false;
	}
	return true;
}
