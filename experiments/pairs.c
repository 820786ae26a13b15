/* Requests sorted by arm and identity, then a binary search for each. */
#include "experiments/pairs.h"
#include "engine/err.h"
#include <stdlib.h>

struct key {
    int64_t row;
    int32_t arm;
    uint32_t request;
};

static int compare(const void *pa, const void *pb)
{
    const struct key *a = pa, *b = pb;
    if (a->arm != b->arm)
        return a->arm < b->arm ? -1 : 1;
    return (a->request > b->request) - (a->request < b->request);
}

static int check_once(const struct trace *t, const struct key *k)
{
    for (int64_t i = 1; i < t->n_requests; i++)
        if (!compare(&k[i - 1], &k[i]))
            FAIL(ERR_FORMAT,
                 "%s: arm '%s' answers request %u (prompt %d) twice, in rows %lld and %lld: expected every "
                 "request once; was a file, or a slice, given twice?",
                 t->path, t->arms[k[i].arm].label, k[i].request,
                 t->prompts[t->requests[k[i].row].prompt].index, (long long)k[i - 1].row,
                 (long long)k[i].row);
    return 0;
}

int pairs_find(const struct trace *t, const int *against, int64_t *partner)
{
    struct key *keys = calloc((size_t)t->n_requests + 1, sizeof *keys);
    if (!keys)
        FAIL(ERR_MEMORY, "%s: no memory to pair %lld requests", t->path, (long long)t->n_requests);
    for (int64_t i = 0; i < t->n_requests; i++)
        keys[i] = (struct key){i, t->requests[i].arm, t->requests[i].request};
    qsort(keys, (size_t)t->n_requests, sizeof *keys, compare);
    int rc = check_once(t, keys);
    for (int64_t i = 0; !rc && i < t->n_requests; i++) {
        struct key wanted = {-1, against[t->requests[i].arm], t->requests[i].request};
        const struct key *found = bsearch(&wanted, keys, (size_t)t->n_requests, sizeof *keys, compare);
        partner[i] = found ? found->row : -1;
    }
    free(keys);
    return rc;
}
