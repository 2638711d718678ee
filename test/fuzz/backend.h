/*-------------------------------------------------------------------------
 *
 * backend.h
 *	  As much of a backend as the code under a fuzzer needs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef FUZZ_BACKEND_H
#define FUZZ_BACKEND_H

#include "postgres.h"

#include "nodes/pg_list.h"

/* What libFuzzer calls; every harness has one. */
extern int	LLVMFuzzerTestOneInput(const uint8 *data, size_t size);

/*
 * Call function(arg) in a memory context of its own, which goes afterwards with
 * all that is in it.  Returns whether it came to its end; if not, it has raised
 * an error.  An error that is no answer to what somebody wrote (an internal
 * one) ends the process.
 */
extern bool fuzz_run(void (*function) (void *), void *arg);

/* Bytes allocated and not freed. */
extern Size fuzz_allocated(void);

/* Ends the process, as a finding. */
extern void fuzz_fail(const char *what) pg_attribute_noreturn();

#define fuzz_check(condition) \
	((condition) ? (void) 0 : fuzz_fail(#condition))

/* A copy with a NUL behind it, in the current memory context. */
extern char *fuzz_string(const uint8 *data, size_t size);

/* What untransformRelOptions() gives, whatever it is asked. */
extern List *fuzz_options;

#endif							/* FUZZ_BACKEND_H */
