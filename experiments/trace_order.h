/* trace_order: some requests of a trace, those of a prompt side by side. */
#ifndef EXPERIMENTS_TRACE_ORDER_H
#define EXPERIMENTS_TRACE_ORDER_H
#include "experiments/trace.h"

/* A request by its row; prompt: trace_prompt.index, so that the turns of a talk are one. */
struct trace_place {
    int prompt;
    int64_t row;
};

/* The requests that belong, in order of prompts and then of rows, [*n], malloc'ed; NULL: out of memory. */
struct trace_place *trace_by_prompt(const struct trace *t, int (*belongs)(const void *ctx, const struct trace_request *q), const void *ctx,
                                    int64_t *n);
#endif
