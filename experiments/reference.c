/* reference: the answers of one arm, sorted by request. */
#include "experiments/reference.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/trace.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

struct answer {
    uint32_t request;
    int n;
    int64_t begin;
};

struct reference {
    struct answer *answers; /* owned [n], by request */
    int64_t n;
    int *ids; /* owned: the file's tokens */
};

static int by_request(const void *a, const void *b)
{
    const struct answer *x = a, *y = b;
    return (x->request > y->request) - (x->request < y->request);
}

static int choose_arm(const struct trace *t, const char *rule)
{
    int best = 0, best_score = 0;
    for (int i = 0; i < t->n_arms; i++) {
        int score = 2 * !strcmp(t->arms[i].strategy, "none") + !strcmp(t->arms[i].rule, rule);
        if (score > best_score) {
            best = i;
            best_score = score;
        }
    }
    return best;
}

static int take_answers(struct reference *r, const struct trace *t, int arm)
{
    r->answers = calloc((size_t)t->n_requests + 1, sizeof *r->answers);
    r->ids = calloc((size_t)t->n_tokens + 1, sizeof *r->ids);
    if (!r->answers || !r->ids)
        FAIL(ERR_MEMORY, "%s: out of memory for %lld tokens", t->path, (long long)t->n_tokens);
    for (int64_t i = 0; i < t->n_tokens; i++)
        r->ids[i] = t->tokens[i].id;
    for (int64_t i = 0; i < t->n_requests; i++) {
        const struct trace_request *q = &t->requests[i];
        if (q->arm == arm && q->tokens <= INT_MAX)
            r->answers[r->n++] = (struct answer){q->request, (int)q->tokens, q->token_begin};
    }
    qsort(r->answers, (size_t)r->n, sizeof *r->answers, by_request);
    return 0;
}

static int check_reference(const struct trace *t, uint64_t fingerprint)
{
    if (t->meta.fingerprint != fingerprint)
        FAIL(ERR_CONFIG,
             "%s: expected outputs of this model (weights %016llx), found those of %s (%016llx); make the "
             "reference "
             "with the same model",
             t->path, (unsigned long long)fingerprint, t->meta.model,
             (unsigned long long)t->meta.fingerprint);
    if (t->n_requests == 0)
        FAIL(ERR_CONFIG, "%s: expected a run with answers, found none", t->path);
    return 0;
}

int reference_open(struct reference **out, const char *key, const char *path, const char *rule,
                   uint64_t fingerprint)
{
    struct trace t = {0};
    struct reference *r = calloc(1, sizeof *r);
    if (!r)
        FAIL(ERR_MEMORY, "%s: out of memory", path);
    int rc = trace_read(&t, path, TRACE_READ_TOKENS);
    if (!rc)
        rc = check_reference(&t, fingerprint);
    if (!rc) {
        int arm = choose_arm(&t, rule);
        rc = take_answers(r, &t, arm);
        if (!rc)
            log_info("reference: %lld answers of arm '%s' in %s", (long long)r->n, t.arms[arm].label, path);
    }
    trace_deinit(&t);
    if (rc) {
        reference_close(r);
        err_context("reading %s", key);
        return rc;
    }
    *out = r;
    return 0;
}

void reference_close(struct reference *r)
{
    if (!r)
        return;
    free(r->answers);
    free(r->ids);
    free(r);
}

int reference_find(void *ctx, uint32_t request, const int **tokens)
{
    const struct reference *r = ctx;
    struct answer key = {.request = request};
    const struct answer *a = bsearch(&key, r->answers, (size_t)r->n, sizeof *r->answers, by_request);
    if (!a)
        return 0;
    *tokens = r->ids + a->begin;
    return a->n;
}
