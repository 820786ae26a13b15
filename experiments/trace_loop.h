/* trace_loop: answers that end in a loop. A model that repeats itself is easy to draft for, so the fastest arm may be the one whose text is
 * worth least. */
#ifndef EXPERIMENTS_TRACE_LOOP_H
#define EXPERIMENTS_TRACE_LOOP_H
#include "experiments/trace.h"

struct record_file;

enum { TRACE_LOOP_PERIOD = 64, TRACE_LOOP_TURNS = 3, TRACE_LOOP_TOKENS = 32 };

/* Tokens at the end of ids [n] that repeat with one period of at most TRACE_LOOP_PERIOD, at least TRACE_LOOP_TURNS turns and
 * TRACE_LOOP_TOKENS tokens; 0: it does not end so. */
int64_t trace_loop(const int32_t *ids, int64_t n);
/* Fill t->loops from /tokens, answer by answer; t has its requests. ERR_IO, ERR_FORMAT, ERR_MEMORY. */
int trace_loops_read(struct trace *t, struct record_file *f);
#endif
