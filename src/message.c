/*-------------------------------------------------------------------------
 *
 * message.c
 *	  Outcomes of a message, and text that comes from outside made safe.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "message.h"

const char *
outbox_reason_name(OutboxReason reason)
{
	switch (reason)
	{
		case OUTBOX_UNROUTABLE:
			return "unroutable";
		case OUTBOX_NACKED:
			return "nacked";
		case OUTBOX_NO_EXCHANGE:
			return "no exchange";
		case OUTBOX_ACCESS_REFUSED:
			return "access refused";
		case OUTBOX_TOO_LARGE:
			return "too large";
		case OUTBOX_MALFORMED:
			return "malformed";
		case OUTBOX_EXPIRED:
			return "expired";
	}
	return "malformed";
}

/* AMQP 0-9-1, section 1.2 */
OutboxReason
outbox_reason_of_reply_code(int reply_code)
{
	switch (reply_code)
	{
		case 311:				/* content-too-large */
			return OUTBOX_TOO_LARGE;
		case 312:				/* no-route */
		case 313:				/* no-consumers */
			return OUTBOX_UNROUTABLE;
		case 403:				/* access-refused */
			return OUTBOX_ACCESS_REFUSED;
		case 404:				/* not-found */
			return OUTBOX_NO_EXCHANGE;
		case 406:				/* precondition-failed */
			return OUTBOX_MALFORMED;
		default:				/* 405 resource-locked, 506 resource-error ... */
			return OUTBOX_NACKED;
	}
}

bool
outbox_reason_is_final(OutboxReason reason)
{
	return reason == OUTBOX_TOO_LARGE || reason == OUTBOX_MALFORMED ||
		reason == OUTBOX_EXPIRED;
}

/* Is the legal UTF-8 character at s a control character, C0, DEL or C1? */
static bool
is_control(const unsigned char *s, int len)
{
	if (len == 1)
		return s[0] < 0x20 || s[0] == 0x7f;
	return len == 2 && s[0] == 0xc2 && s[1] < 0xa0;
}

void
outbox_utf8_copy(char *dst, Size size, const char *src, Size len,
				 bool printable)
{
	Size		used = 0;
	Size		taken;

	for (Size i = 0; i < len; i += taken)
	{
		const unsigned char *s = (const unsigned char *) src + i;
		char		substitute = '\0';

		taken = pg_utf_mblen(s);
		if (taken > len - i || !pg_utf8_islegal(s, (int) taken))
		{
			taken = 1;
			substitute = '?';
		}
		else if (*s == '\0' || (printable && is_control(s, (int) taken)))
			substitute = ' ';

		if (used + (substitute ? 1 : taken) >= size)
			break;
		if (substitute)
			dst[used++] = substitute;
		else
		{
			memcpy(dst + used, s, taken);
			used += taken;
		}
	}
	dst[used] = '\0';
}

void
outbox_failure_set(OutboxFailure *failure, int sqlerrcode, const char *detail,
				   const char *fmt,...)
{
	int			save_errno = errno;
	char		buf[4 * OUTBOX_FAILURE_MESSAGE_LEN];
	va_list		args;

	va_start(args, fmt);
	errno = save_errno;
	vsnprintf(buf, sizeof(buf), fmt, args);
	va_end(args);

	failure->sqlerrcode = sqlerrcode;
	outbox_utf8_copy(failure->message, sizeof(failure->message),
					 buf, strlen(buf), true);
	if (detail == NULL)
		detail = "";
	outbox_utf8_copy(failure->detail, sizeof(failure->detail),
					 detail, strlen(detail), true);
}
