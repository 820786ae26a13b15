/* bench_stamps: time inside a pass. A kernel that writes the device's clock is recorded behind every
 * operation; the time between two of them is an operation's, in its place among the others, plus one kernel
 * without work. That one is known from a chain of nothing but stamps, which also says how much of any pass is
 * its kernels following each other. */
#include "engine/err.h"
#include "experiments/bench_kinds.h"
#include <stdlib.h>

enum { CHAIN = 256 };

/* Stamps in backend memory. */
struct stamps {
    int64_t *at;   /* backend [n] */
    int64_t *host; /* owned [n] */
    int n;
};

static int enqueue_chain(struct bench *b, const void *arg)
{
    const struct stamps *s = arg;
    for (int i = 0; i < s->n; i++)
        TRY(b->tap.be.ops->stamp(&b->tap.be, &s->at[i]));
    return 0;
}

static int enqueue_stamped(struct bench *b, const void *arg)
{
    const struct stamps *s = arg;
    struct backend *be = &b->tap.be;
    TRY(be->ops->stamp(be, &s->at[0]));
    for (int i = 0; i < b->tap.n; i++) {
        TRY(operation_enqueue(&b->tap.list[i], be));
        TRY(be->ops->stamp(be, &s->at[i + 1]));
    }
    return 0;
}

static int stamps_open(struct bench *b, struct stamps *s, int n)
{
    void *at = NULL;
    TRY(b->tap.be.ops->alloc(&b->tap.be, (size_t)n * sizeof *s->at, &at));
    *s = (struct stamps){at, calloc((size_t)n, sizeof *s->host), n};
    if (!s->host)
        FAIL(ERR_MEMORY, "bench: out of memory for %d stamps", n);
    return 0;
}

static void stamps_close(struct bench *b, struct stamps *s)
{
    b->tap.be.ops->release(&b->tap.be, s->at);
    free(s->host);
}

int bench_time_empty(struct bench *b)
{
    struct stamps s = {0};
    struct bench_time time;
    const struct bench_pass p = {.enqueue = enqueue_chain, .arg = &s, .key = {&s, 1, 0, 0}};
    int rc = stamps_open(b, &s, CHAIN);
    if (rc == 0)
        rc = bench_time_passes(b, &p, &time, NULL);
    if (rc == 0)
        b->empty = time.median / CHAIN;
    stamps_close(b, &s);
    return rc;
}

/* The kind of each operation of the list, by its place among the stages; -1: none. */
static void find_stages(const struct bench *b, const struct bench_stage *s, int n, int *stage)
{
    for (int i = 0; i < b->tap.n; i++) {
        const struct bench_kind *k = bench_kind_of(b, &b->tap.list[i]);
        stage[i] = -1;
        for (int j = 0; k && j < n; j++)
            if (s[j].name == k->name)
                stage[i] = j;
    }
}

/* Seconds of one operation of each stage in the pass that left these stamps, into seconds [n]. */
static void add_up(const struct bench *b, const struct stamps *s, const int *stage,
                   const struct bench_stage *of, int n, double *seconds)
{
    for (int j = 0; j < n; j++)
        seconds[j] = 0;
    for (int i = 0; i < b->tap.n; i++)
        if (stage[i] >= 0)
            seconds[stage[i]] += 1e-9 * (double)(s->host[i + 1] - s->host[i]) - b->empty;
    for (int j = 0; j < n; j++)
        seconds[j] = seconds[j] > 0 ? seconds[j] / of[j].count : 0;
}

/* One pass after the other, as their stamps lie in the same places. seconds [repeats, n]. */
static int measure(struct bench *b, struct stamps *s, const int *stage, const struct bench_stage *of, int n,
                   double *seconds)
{
    struct backend *be = &b->tap.be;
    const struct bench_pass p = {.enqueue = enqueue_stamped, .arg = s, .key = {s, b->f.rows.n, 0, 0}};
    int rc = 0;
    for (int i = -b->warmup; i < b->repeats && rc == 0; i++) {
        rc = bench_enqueue_pass(b, &p);
        if (rc == 0)
            rc = be->ops->download(be, s->host, s->at, (size_t)s->n * sizeof *s->at);
        if (rc == 0)
            rc = be->ops->sync(be);
        if (rc == 0 && i >= 0)
            add_up(b, s, stage, of, n, seconds + (size_t)i * (size_t)n);
    }
    be->ops->pass_forget(be, s);
    return rc;
}

static void summarise(struct bench *b, const double *seconds, struct bench_stage *out, int n)
{
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < b->repeats; i++)
            b->seconds[i] = seconds[(size_t)i * (size_t)n + (size_t)j];
        out[j].in_pass = bench_summarise(b->seconds, b->repeats).median;
    }
}

int bench_time_in_pass(struct bench *b, struct bench_stage *out, int n)
{
    struct stamps s = {0};
    int *stage = calloc((size_t)b->tap.n, sizeof *stage);
    double *seconds = calloc((size_t)b->repeats * (size_t)n, sizeof *seconds);
    int rc = stage && seconds ? stamps_open(b, &s, b->tap.n + 1)
                              : ERR_SET(ERR_MEMORY, "bench: out of memory for a stamped pass");
    if (rc == 0) {
        find_stages(b, out, n, stage);
        rc = measure(b, &s, stage, out, n, seconds);
    }
    if (rc == 0)
        summarise(b, seconds, out, n);
    stamps_close(b, &s);
    free(stage);
    free(seconds);
    return rc;
}

int bench_count_launches(struct bench *b, int context, struct bench_launches *out)
{
    struct backend *be = &b->tap.be;
    *out = (struct bench_launches){0};
    TRY(bench_tap_pass(b, context));
    for (int i = 0; i < b->tap.n; i++) {
        const struct bench_kind *k = bench_kind_of(b, &b->tap.list[i]);
        const size_t before = be->launches;
        TRY(operation_enqueue(&b->tap.list[i], be));
        out->all += be->launches - before;
        if (k && k->layered)
            out->layered += be->launches - before;
    }
    return be->ops->sync(be);
}
