/* For each period the text is walked from its end for as long as it repeats: nearly always a token or two.
 * Answers are read many at a time, as far as they lie side by side. */
#include "experiments/trace_loop.h"
#include "engine/err.h"
#include "experiments/record_file.h"
#include <stdlib.h>

enum { PIECE = 65536 };

int64_t trace_loop(const int32_t *ids, int64_t n)
{
    int64_t longest = 0;
    for (int64_t p = 1; p <= TRACE_LOOP_PERIOD && p < n; p++) {
        int64_t i = n - 1;
        while (i >= p && ids[i] == ids[i - p])
            i--;
        int64_t length = n - 1 - i + p;
        if (n - 1 - i > 0 && length >= TRACE_LOOP_TURNS * p && length >= TRACE_LOOP_TOKENS &&
            length > longest)
            longest = length;
    }
    return longest;
}

/* Tokens [begin, end) of the file, as far as they are in memory. */
struct window {
    struct trace_token *rows; /* owned [cap] */
    int32_t *ids;             /* owned [cap] */
    int64_t begin, end, cap;
};

/* The window from `begin` on, with at least n tokens. */
static int move(struct window *w, const struct trace *t, struct record_file *f, int64_t begin, int64_t n)
{
    int64_t rows = record_file_rows(f, RECORD_TOKENS), want = n > PIECE ? n : PIECE;
    if (want > rows - begin)
        want = rows - begin;
    if (want > w->cap) {
        free(w->rows);
        free(w->ids);
        w->rows = malloc((size_t)want * sizeof *w->rows);
        w->ids = malloc((size_t)want * sizeof *w->ids);
        w->cap = w->rows && w->ids ? want : 0;
        if (!w->cap)
            FAIL(ERR_MEMORY, "%s: no memory for %lld tokens", t->path, (long long)want);
    }
    TRY(record_file_read(f, RECORD_TOKENS, begin, want, w->rows));
    for (int64_t i = 0; i < want; i++)
        w->ids[i] = w->rows[i].id;
    w->begin = begin;
    w->end = begin + want;
    return 0;
}

int trace_loops_read(struct trace *t, struct record_file *f)
{
    struct window w = {0};
    int rc = 0;
    t->loops = calloc((size_t)t->n_requests + 1, sizeof *t->loops);
    if (!t->loops)
        FAIL(ERR_MEMORY, "%s: no memory for %lld answers", t->path, (long long)t->n_requests);
    for (int64_t i = 0; i < t->n_requests && !rc; i++) {
        const struct trace_request *q = &t->requests[i];
        if (q->token_begin < w.begin || q->token_begin + q->tokens > w.end)
            rc = move(&w, t, f, q->token_begin, q->tokens);
        if (!rc && q->tokens)
            t->loops[i] = trace_loop(w.ids + (q->token_begin - w.begin), q->tokens);
    }
    free(w.rows);
    free(w.ids);
    return rc;
}
