/* trace_order: sorted once, then prompts are runs of equal numbers. */
#include "experiments/trace_order.h"
#include <stdlib.h>

static int compare(const void *pa, const void *pb)
{
    const struct trace_place *a = pa, *b = pb;
    if (a->prompt != b->prompt)
        return a->prompt < b->prompt ? -1 : 1;
    return (a->row > b->row) - (a->row < b->row);
}

struct trace_place *trace_by_prompt(const struct trace *t,
                                    int (*belongs)(const void *ctx, const struct trace_request *q),
                                    const void *ctx, int64_t *n)
{
    struct trace_place *x = malloc(((size_t)t->n_requests + 1) * sizeof *x);
    *n = 0;
    if (!x)
        return NULL;
    for (int64_t i = 0; i < t->n_requests; i++)
        if (belongs(ctx, &t->requests[i]))
            x[(*n)++] = (struct trace_place){t->prompts[t->requests[i].prompt].index, i};
    qsort(x, (size_t)*n, sizeof *x, compare);
    return x;
}
