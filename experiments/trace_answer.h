/* trace_answer: one answer of a result file with everything that is recorded of it. */
#ifndef EXPERIMENTS_TRACE_ANSWER_H
#define EXPERIMENTS_TRACE_ANSWER_H
#include "experiments/trace.h"

struct trace_answer {
    int *tokens;              /* owned [n_tokens] */
    struct trace_step *steps; /* owned [n_steps] */
    struct trace_node *nodes; /* owned [n_nodes] of all steps, one behind the other; none when the trace level kept none */
    int n_tokens, n_steps, n_nodes;
};

/* r: the request's row, from a trace of the file at path. ERR_IO, ERR_MEMORY; ERR_FORMAT: its steps' nodes do not stand one behind the other. */
int  trace_answer_read(struct trace_answer *a, const char *path, const struct trace *t, const struct trace_request *r);
void trace_answer_deinit(struct trace_answer *a); /* a zeroed struct is fine */
#endif
