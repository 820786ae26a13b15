/* Ranges were checked when the trace was read. */
#include "experiments/trace_answer.h"
#include "engine/err.h"
#include "experiments/record_file.h"
#include "experiments/trace_check.h"
#include <stdlib.h>

enum { MOST = 1 << 20 }; /* rows of each kind: more is no answer that anybody looks at */

static int read_tokens(struct trace_answer *a, struct record_file *f, const struct trace_request *r)
{
    struct trace_token *rows = malloc(((size_t)r->tokens + 1) * sizeof *rows);
    a->tokens = malloc(((size_t)r->tokens + 1) * sizeof *a->tokens);
    int rc = rows && a->tokens
                 ? record_file_read(f, RECORD_TOKENS, r->token_begin, r->tokens, rows)
                 : ERR_SET(ERR_MEMORY, "no memory for an answer of %lld tokens", (long long)r->tokens);
    for (int64_t i = 0; !rc && i < r->tokens; i++)
        a->tokens[a->n_tokens++] = rows[i].id < 0 ? 0 : rows[i].id;
    free(rows);
    return rc;
}

static int read_nodes(struct trace_answer *a, struct record_file *f, const struct trace *t)
{
    int64_t n = 0, begin = -1;
    for (int i = 0; i < a->n_steps; i++) {
        const struct trace_step *s = &a->steps[i];
        begin = begin < 0 && s->proposed ? s->node_begin : begin;
        if (s->proposed && s->node_begin != begin + n)
            FAIL(ERR_FORMAT, "%s: step %d of an answer: expected its nodes behind those of the step before",
                 t->path, i);
        n += s->proposed;
    }
    if (n > MOST || !n)
        return 0;
    a->nodes = malloc((size_t)n * sizeof *a->nodes);
    if (!a->nodes)
        FAIL(ERR_MEMORY, "no memory for the %lld nodes of an answer", (long long)n);
    a->n_nodes = (int)n;
    return record_file_read(f, RECORD_NODES, begin, n, a->nodes);
}

static int read_all(struct trace_answer *a, struct record_file *f, const struct trace *t,
                    const struct trace_request *r)
{
    if (r->tokens > MOST || r->steps > MOST)
        FAIL(ERR_LIMIT, "%s: an answer of %lld tokens in %lld steps is too long to show", t->path,
             (long long)r->tokens, (long long)r->steps);
    TRY(read_tokens(a, f, r));
    a->steps = malloc(((size_t)r->steps + 1) * sizeof *a->steps);
    if (!a->steps)
        FAIL(ERR_MEMORY, "no memory for the %lld steps of an answer", (long long)r->steps);
    TRY(record_file_read(f, RECORD_STEPS, r->step_begin, r->steps, a->steps));
    a->n_steps = (int)r->steps;
    for (int i = 0; i < a->n_steps; i++)
        TRY(trace_check_step(t, r->step_begin + i, &a->steps[i], f));
    return trace_has_nodes(t) ? read_nodes(a, f, t) : 0;
}

int trace_answer_read(struct trace_answer *a, const char *path, const struct trace *t,
                      const struct trace_request *r)
{
    struct trace_answer made = {0};
    struct record_file *f;
    TRY(record_file_open(&f, path, FILE_READ));
    int rc = read_all(&made, f, t, r);
    record_file_close(f);
    if (rc)
        trace_answer_deinit(&made);
    else
        *a = made;
    return rc;
}

void trace_answer_deinit(struct trace_answer *a)
{
    free(a->tokens);
    free(a->steps);
    free(a->nodes);
    *a = (struct trace_answer){0};
}
