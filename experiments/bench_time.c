/* bench_time: passes are timed by stamps of the device that lie between them, so that the host only has to
 * enqueue faster than the device computes. The read ceiling is measured the same way. */
#include "engine/err.h"
#include "experiments/bench.h"
#include "experiments/stats.h"
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* As many reads a time as make the waiting for it small. */
static int time_reads(struct bench *b, const void *data, size_t bytes, void *sum)
{
    struct backend *be = &b->tap.be;
    const int reads = be->host_reads ? 1 : 4;
    int64_t ns[2];
    for (int i = -1; i < 8; i++) {
        TRY(be->ops->mark(be, 0));
        for (int k = 0; k < reads; k++)
            TRY(be->ops->read(be, data, bytes, sum));
        TRY(be->ops->mark(be, 1));
        TRY(be->ops->sync(be));
        TRY(be->ops->marks(be, 2, ns));
        const double rate = 1e9 * (double)bytes * reads / (double)(ns[1] - ns[0]);
        if (i >= 0 && rate > b->ceiling)
            b->ceiling = rate;
    }
    return 0;
}

static double peak_mib(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_maxrss / 1024;
}

int bench_measure_ceiling(struct bench *b)
{
    struct backend *be = &b->tap.be;
    const size_t wanted = be->host_reads ? (size_t)512 << 20 : (size_t)2 << 30;
    const size_t room = be->ops->available(be) / 2 / 64 * 64, bytes = room < wanted ? room : wanted;
    void *data = NULL, *sum = NULL;
    b->peak_mib = peak_mib();
    b->device_mib = (double)be->allocated / 0x1p20;
    TRY_CTX(be->ops->alloc(be, bytes, &data), "read ceiling");
    TRY(be->ops->alloc(be, sizeof(uint64_t), &sum));
    if (be->host_reads)
        memset(data, 1, bytes); /* pages that were never written are one and the same */
    TRY(time_reads(b, data, bytes, sum));
    be->ops->release(be, sum);
    be->ops->release(be, data);
    return 0;
}

struct bench_time bench_summarise(double *seconds, int n)
{
    stats_sort(seconds, n);
    return (struct bench_time){stats_percentile(seconds, n, 0.5), stats_percentile(seconds, n, 0.9)};
}

int bench_fill(struct bench *b, int context)
{
    if (b->kv.slot[0].committed > context)
        kv_reset(&b->kv, 0);
    const int at = b->kv.slot[0].committed;
    return forward_prefill(&b->f, 0, b->tokens + at, context - at);
}

unsigned bench_flags(int rows)
{
    return rows > BENCH_ROWS ? FORWARD_BULK : FORWARD_LOGITS;
}

/* A pass over the rows leaves their description behind. */
int bench_plan(struct bench *b, int rows)
{
    const int at = b->kv.slot[0].committed;
    struct forward_row *row = calloc((size_t)rows, sizeof *row);
    if (!row)
        FAIL(ERR_MEMORY, "bench: out of memory for %d rows", rows);
    for (int i = 0; i < rows; i++)
        row[i] = (struct forward_row){.token = b->tokens[at + i], .slot = 0, .parent = i - 1};
    int rc = forward_run(&b->f, row, rows, bench_flags(rows) & ~(unsigned)FORWARD_BULK);
    if (rc == 0)
        rc = kv_commit(&b->kv, 0, NULL, 0);
    free(row);
    return rc;
}

int bench_enqueue_pass(struct bench *b, const struct bench_pass *p)
{
    struct backend *be = &b->tap.be;
    int recorded = 0;
    TRY(be->ops->pass_begin(be, p->key, &recorded));
    return recorded ? 0 : be->ops->pass_end(be, p->enqueue(b, p->arg));
}

static int time_passes(struct bench *b, const struct bench_pass *p, size_t *launches)
{
    struct backend *be = &b->tap.be;
    const size_t before = be->launches;
    TRY(bench_enqueue_pass(b, p));
    if (launches)
        *launches = be->launches - before;
    for (int i = 1; i < b->warmup; i++)
        TRY(bench_enqueue_pass(b, p));
    TRY(be->ops->mark(be, 0));
    for (int i = 0; i < b->repeats; i++) {
        TRY(bench_enqueue_pass(b, p));
        TRY(be->ops->mark(be, i + 1));
    }
    be->ops->clocks(be, &b->clocks); /* while it computes, or not long after */
    TRY(be->ops->sync(be));
    return be->ops->marks(be, b->repeats + 1, b->ns);
}

int bench_time_passes(struct bench *b, const struct bench_pass *p, struct bench_time *out, size_t *launches)
{
    const int rc = time_passes(b, p, launches);
    b->tap.be.ops->pass_forget(&b->tap.be, p->key.owner);
    if (rc)
        return rc;
    for (int i = 0; i < b->repeats; i++)
        b->seconds[i] = 1e-9 * (double)(b->ns[i + 1] - b->ns[i]);
    *out = bench_summarise(b->seconds, b->repeats);
    return 0;
}

static int enqueue_whole(struct bench *b, const void *arg)
{
    const struct pass_key *key = arg;
    return forward_enqueue(&b->f, &b->f.rows, key->reach, key->flags);
}

int bench_time_whole(struct bench *b, int context, struct bench_time *out, size_t *launches)
{
    const int rows = b->f.rows.n;
    struct bench_pass p = {.enqueue = enqueue_whole,
                           .key = {&p, rows, forward_reach(&b->f, context + rows), bench_flags(rows)}};
    p.arg = &p.key;
    return bench_time_passes(b, &p, out, launches);
}

double bench_idle(const struct bench *b, size_t launches)
{
    return (double)launches * b->empty;
}

double bench_floor(const struct bench *b, double bytes)
{
    return bytes / b->ceiling;
}
