/*-------------------------------------------------------------------------
 *
 * backend.c
 *	  As much of a backend as the code under a fuzzer needs.
 *
 * Memory contexts whose every chunk is a piece of malloc's, so that
 * AddressSanitizer sees where it ends; errors that jump back to fuzz_run(); and
 * stand-ins for the few functions of a backend that parsing uses.  What only
 * other code in the same files calls is left undefined.
 *
 * UTF-8 is the encoding of the database.
 *
 *-------------------------------------------------------------------------
 */
#include "backend.h"

#include <math.h>

#include "access/xact.h"
#include "commands/defrem.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/varlena.h"

/*
 * Memory
 */

typedef struct Chunk
{
	struct Chunk *prev;
	struct Chunk *next;
	struct Context *context;
	Size		size;
} Chunk;

typedef struct Context
{
	MemoryContextData data;		/* what macros of PostgreSQL look into */
	Chunk		chunks;			/* a ring */
	MemoryContextCallback *callbacks;
	struct Context *parent;
	struct Context *first_child;
	struct Context *next_sibling;
} Context;

MemoryContext CurrentMemoryContext = NULL;
MemoryContext TopMemoryContext = NULL;

static Size allocated = 0;

Size
fuzz_allocated(void)
{
	return allocated;
}

void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	Context    *c = (Context *) context;
	Chunk	   *chunk = malloc(sizeof(Chunk) + size);

	if (chunk == NULL)
		fuzz_fail("malloc");
	chunk->context = c;
	chunk->size = size;
	chunk->prev = &c->chunks;
	chunk->next = c->chunks.next;
	chunk->next->prev = chunk;
	c->chunks.next = chunk;
	allocated += size;
	/* not 0 by chance, as in a backend with CLOBBER_FREED_MEMORY */
	memset(chunk + 1, 0x7f, size);
	return chunk + 1;
}

void *
MemoryContextAllocZero(MemoryContext context, Size size)
{
	return memset(MemoryContextAlloc(context, size), 0, size);
}

void *
MemoryContextAllocZeroAligned(MemoryContext context, Size size)
{
	return MemoryContextAllocZero(context, size);
}

void *
palloc(Size size)
{
	return MemoryContextAlloc(CurrentMemoryContext, size);
}

void *
palloc0(Size size)
{
	return MemoryContextAllocZero(CurrentMemoryContext, size);
}

void
pfree(void *pointer)
{
	Chunk	   *chunk = (Chunk *) pointer - 1;

	chunk->prev->next = chunk->next;
	chunk->next->prev = chunk->prev;
	allocated -= chunk->size;
	free(chunk);
}

void *
repalloc(void *pointer, Size size)
{
	Chunk	   *chunk = (Chunk *) pointer - 1;
	void	   *result = MemoryContextAlloc((MemoryContext) chunk->context,
											size);

	memcpy(result, pointer, Min(size, chunk->size));
	pfree(pointer);
	return result;
}

void *
repalloc_huge(void *pointer, Size size)
{
	return repalloc(pointer, size);
}

char *
MemoryContextStrdup(MemoryContext context, const char *string)
{
	Size		size = strlen(string) + 1;

	return memcpy(MemoryContextAlloc(context, size), string, size);
}

char *
pstrdup(const char *in)
{
	return MemoryContextStrdup(CurrentMemoryContext, in);
}

char *
pnstrdup(const char *in, Size len)
{
	char	   *result;

	len = strnlen(in, len);
	result = palloc(len + 1);
	memcpy(result, in, len);
	result[len] = '\0';
	return result;
}

char *
fuzz_string(const uint8 *data, size_t size)
{
	return pnstrdup((const char *) data, size);
}

static void
link_context(Context *c, Context *parent)
{
	c->parent = parent;
	if (parent == NULL)
		return;
	c->next_sibling = parent->first_child;
	parent->first_child = c;
}

static void
unlink_context(Context *c)
{
	Context   **link;

	if (c->parent == NULL)
		return;
	for (link = &c->parent->first_child; *link != c;)
		link = &(*link)->next_sibling;
	*link = c->next_sibling;
}

MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name,
							  Size minContextSize, Size initBlockSize,
							  Size maxBlockSize)
{
	Context    *c = calloc(1, sizeof(Context));

	c->data.type = T_AllocSetContext;
	c->chunks.prev = c->chunks.next = &c->chunks;
	link_context(c, (Context *) parent);
	return (MemoryContext) c;
}

void
MemoryContextSetParent(MemoryContext context, MemoryContext new_parent)
{
	unlink_context((Context *) context);
	link_context((Context *) context, (Context *) new_parent);
}

void
MemoryContextRegisterResetCallback(MemoryContext context,
								   MemoryContextCallback *cb)
{
	Context    *c = (Context *) context;

	cb->next = c->callbacks;
	c->callbacks = cb;
}

void
MemoryContextDelete(MemoryContext context)
{
	Context    *c = (Context *) context;

	while (c->first_child)
		MemoryContextDelete((MemoryContext) c->first_child);
	for (; c->callbacks; c->callbacks = c->callbacks->next)
		c->callbacks->func(c->callbacks->arg);
	while (c->chunks.next != &c->chunks)
		pfree(c->chunks.next + 1);
	unlink_context(c);
	free(c);
}

/*
 * Errors
 */

sigjmp_buf *PG_exception_stack = NULL;
ErrorContextCallback *error_context_stack = NULL;

static int	error_level;
static int	error_code;
static char error_message[1024];

void
fuzz_fail(const char *what)
{
	fprintf(stderr, "fuzz: %s\n", what);
	abort();
}

void
ExceptionalCondition(const char *conditionName,
#if PG_VERSION_NUM < 160000
					 const char *errorType,
#endif
					 const char *fileName, int lineNumber)
{
	fprintf(stderr, "TRAP: %s, %s:%d\n", conditionName, fileName, lineNumber);
	abort();
}

bool
errstart(int elevel, const char *domain)
{
	error_level = elevel;
	error_code = ERRCODE_INTERNAL_ERROR;
	error_message[0] = '\0';
	return elevel >= ERROR;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	if (error_level < ERROR)
		return;
	if (error_code == ERRCODE_INTERNAL_ERROR)
		fuzz_fail(error_message);
	siglongjmp(*PG_exception_stack, 1);
}

int
errcode(int sqlerrcode)
{
	error_code = sqlerrcode;
	return 0;
}

/* All of a message is formatted, because that may fail as well. */
static int
format_message(const char *fmt, va_list args, bool keep)
{
	char		buf[sizeof(error_message)];

	vsnprintf(buf, sizeof(buf), fmt, args);
	if (keep)
		strlcpy(error_message, buf, sizeof(error_message));
	return 0;
}

#define MESSAGE_FUNCTION(name, keep) \
int \
name(const char *fmt,...) \
{ \
	va_list		args; \
\
	va_start(args, fmt); \
	format_message(fmt, args, keep); \
	va_end(args); \
	return 0; \
}

MESSAGE_FUNCTION(errmsg, true)
MESSAGE_FUNCTION(errmsg_internal, true)
MESSAGE_FUNCTION(errdetail, false)
MESSAGE_FUNCTION(errdetail_internal, false)
MESSAGE_FUNCTION(errhint, false)

bool
fuzz_run(void (*function) (void *), void *arg)
{
	MemoryContext context;
	sigjmp_buf	jump;
	volatile bool done = false;

	if (TopMemoryContext == NULL)
		TopMemoryContext = AllocSetContextCreate(NULL, "top",
												 ALLOCSET_DEFAULT_SIZES);
	context = AllocSetContextCreate(TopMemoryContext, "run",
									ALLOCSET_DEFAULT_SIZES);
	CurrentMemoryContext = context;
	PG_exception_stack = &jump;
	if (sigsetjmp(jump, 0) == 0)
	{
		function(arg);
		done = true;
	}
	CurrentMemoryContext = TopMemoryContext;
	MemoryContextDelete(context);
	fuzz_check(allocated == 0);
	return done;
}

/*
 * Hash tables: lists, here
 */

typedef struct HashEntry
{
	struct HashEntry *next;
	uint64		element[FLEXIBLE_ARRAY_MEMBER];
} HashEntry;

struct HTAB
{
	MemoryContext context;
	HASHCTL		ctl;
	bool		strings;
	HashEntry  *first;
	long		entries;
};

HTAB *
hash_create(const char *tabname, long nelem, const HASHCTL *info, int flags)
{
	HTAB	   *table;

	fuzz_check((flags & HASH_CONTEXT) != 0);
	table = MemoryContextAllocZero(info->hcxt, sizeof(HTAB));
	table->context = info->hcxt;
	table->ctl = *info;
	table->strings = (flags & HASH_STRINGS) != 0;
	return table;
}

void
hash_destroy(HTAB *table)
{
	HashEntry  *entry;

	while ((entry = table->first) != NULL)
	{
		table->first = entry->next;
		pfree(entry);
	}
	pfree(table);
}

long
hash_get_num_entries(HTAB *table)
{
	return table->entries;
}

void *
hash_search(HTAB *table, const void *key, HASHACTION action, bool *found)
{
	HashEntry **link = &table->first;
	HashEntry  *entry;

	while ((entry = *link) != NULL &&
		   (table->strings ? strcmp((char *) entry->element, key) :
			memcmp(entry->element, key, table->ctl.keysize)) != 0)
		link = &entry->next;
	if (found)
		*found = entry != NULL;
	if (entry != NULL && action == HASH_REMOVE)
	{
		*link = entry->next;
		pfree(entry);
		table->entries--;
		return NULL;
	}
	if (entry != NULL || action != HASH_ENTER)
		return entry ? entry->element : NULL;

	entry = MemoryContextAllocZero(table->context, sizeof(HashEntry) +
								   table->ctl.entrysize);
	if (table->strings)
		strlcpy((char *) entry->element, key, table->ctl.keysize);
	else
		memcpy(entry->element, key, table->ctl.keysize);
	entry->next = table->first;
	table->first = entry;
	table->entries++;
	return entry->element;
}

void
hash_seq_init(HASH_SEQ_STATUS *status, HTAB *table)
{
	status->hashp = table;
	status->curEntry = (HASHELEMENT *) table->first;
}

void *
hash_seq_search(HASH_SEQ_STATUS *status)
{
	HashEntry  *entry = (HashEntry *) status->curEntry;

	if (entry == NULL)
		return NULL;
	status->curEntry = (HASHELEMENT *) entry->next;
	return entry->element;
}

/*
 * Stand-ins
 */

List	   *fuzz_options = NIL;

List *
untransformRelOptions(Datum options)
{
	return fuzz_options;
}

List *
lappend(List *list, void *datum)
{
	int			n = list ? list->length : 0;
	List	   *result = palloc0(sizeof(List));

	result->type = T_List;
	result->elements = palloc((n + 1) * sizeof(ListCell));
	if (n > 0)
		memcpy(result->elements, list->elements, n * sizeof(ListCell));
	result->elements[n].ptr_value = datum;
	result->length = result->max_length = n + 1;
	return result;
}

char *
defGetString(DefElem *def)
{
	return strVal(def->arg);
}

bool
IsTransactionState(void)
{
	return false;
}

Oid
GetUserId(void)
{
	return 10;
}

bool
has_privs_of_role(Oid member, Oid role)
{
	return true;
}

bool
pg_verifymbstr(const char *mbstr, int len, bool noError)
{
	return pg_encoding_verifymbstr(PG_UTF8, mbstr, len) == len;
}

int
pg_mbstrlen_with_len(const char *mbstr, int len)
{
	int			n = 0;

	for (; len > 0 && *mbstr; n++)
	{
		int			step = pg_encoding_mblen(PG_UTF8, mbstr);

		mbstr += step;
		len -= step;
	}
	return n;
}

bool
parse_bool(const char *value, bool *result)
{
	*result = strcmp(value, "true") == 0;
	return *result || strcmp(value, "false") == 0;
}

bool
parse_int(const char *value, int *result, int flags, const char **hintmsg)
{
	char	   *end;
	long		number = strtol(value, &end, 0);

	*result = (int) number;
	return end != value && *end == '\0' && number == (int) number;
}

/* As parse_real() reads bytes: a number, and perhaps a unit. */
bool
parse_real(const char *value, double *result, int flags, const char **hintmsg)
{
	static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
	char	   *end;

	*result = strtod(value, &end);
	if (end == value)
		return false;
	end += strspn(end, " ");
	for (int i = 0; i < (int) lengthof(units) && *end != '\0'; i++)
	{
		if (strcmp(end, units[i]) != 0)
			continue;
		*result *= pow(1024, i);
		return true;
	}
	return *end == '\0';
}

/* The rules of PostgreSQL's, but for truncation. */
bool
SplitIdentifierString(char *rawstring, char separator, List **namelist)
{
	char	   *p = rawstring;

	*namelist = NIL;
	while (true)
	{
		char	   *name;
		char	   *out;

		p += strspn(p, " \t\n\r\f\v");
		name = out = p;
		if (*p == '"')
		{
			for (name = out = ++p; *p != '"' || p[1] == '"'; *out++ = *p++)
			{
				if (*p == '\0')
					return false;
				p += *p == '"';
			}
			p++;
		}
		else
		{
			for (; *p && *p != separator && strchr(" \t\n\r\f\v", *p) == NULL; p++)
				*out++ = (char) pg_tolower((unsigned char) *p);
			if (out == name)
				return false;
		}
		p += strspn(p, " \t\n\r\f\v");
		if (*p != separator && *p != '\0')
			return false;
		*namelist = lappend(*namelist, name);
		if (*p == '\0')
		{
			*out = '\0';
			return true;
		}
		p++;
		*out = '\0';
	}
}
