/* bench_stages: the operations of a pass, kind by kind. A pass is tapped (experiments/bench_tap.h), the
 * operations of one kind are put one after the other into a recorded pass of their own: those of all layers
 * in turn, each with its own weights and cells. Where all of them together would stay in the cache, copies
 * follow, until what is read before anything comes again is four caches long; not of experts, whose layers
 * are longer than that in every model that needs them. What is timed is therefore the
 * operation in its rhythm, start of the next one overlapped as in a step. */
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/bench_kinds.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { OPERATIONS_MAX = 1024, CACHES = 4, FEW = 32, MANY = 256, HUGE_FROM_BYTES = 1 << 20 };
static const double large =
    32e6; /* bytes: from there on a pass of FEW operations is long enough to be timed */

/* Operations in the order that they are enqueued in, each with memory of its own to read. */
struct rotation {
    const struct bench_kind *kind;
    struct operation *list; /* owned [n] */
    struct matrix *w;       /* owned [n], of the copies */
    void **lent;            /* owned [n_lent], backend memory of the copies */
    int n, n_lent, loops;   /* the whole list so often in a pass */
};

static int count(const struct bench *b, const struct bench_kind *k)
{
    int n = 0;
    for (int i = 0; i < b->tap.n; i++)
        n += bench_is_of(b, k, &b->tap.list[i]);
    return n;
}

/* How often the operations of a pass stand in the list. */
static int copies(const struct bench *b, const struct bench_kind *k, int n, double bytes)
{
    const double cache = CACHES * (double)b->tap.be.cache_bytes;
    if (strcmp(k->moves, "weights") != 0 && strcmp(k->moves, "cache") != 0)
        return 1;
    const int most = OPERATIONS_MAX / n > 0 ? OPERATIONS_MAX / n : 1;
    const double wanted = cache / (bytes * n) + 1;
    return wanted < most ? (int)wanted : most;
}

/* The same bytes once more. */
static int copy_memory(struct bench *b, struct rotation *r, const void *from, size_t bytes, void **out)
{
    struct backend *be = &b->tap.be;
    void *host = malloc(bytes);
    int rc = host ? be->ops->alloc(be, bytes, out) : ERR_SET(ERR_MEMORY, "bench: out of memory for a copy");
    if (rc)
        goto out;
    r->lent[r->n_lent++] = *out;
    if (be->host_reads && bytes >= HUGE_FROM_BYTES) /* as the backend does with weights */
        madvise(*out, bytes, MADV_HUGEPAGE);
    rc = be->ops->download(be, host, from, bytes);
    if (rc == 0)
        rc = be->ops->sync(be);
    if (rc == 0)
        rc = be->ops->upload(be, *out, host, bytes);
out:
    free(host);
    return rc;
}

/* Entry i reads what its model's entry reads, in memory of its own. */
static int copy_operation(struct bench *b, struct rotation *r, int i)
{
    struct operation *o = &r->list[i];
    struct gemm *product = operation_product(o);
    const size_t cells = b->kv.bytes / 2 / (size_t)b->kv.n_layers;
    if (o->kind == OPERATION_ATTENTION) {
        struct kv_layer *kv = &o->a.attention.kv;
        TRY(copy_memory(b, r, kv->k, cells, &kv->k));
        return copy_memory(b, r, kv->v, cells, &kv->v);
    }
    r->w[i] = *product->w;
    product->w = &r->w[i];
    const size_t scales = r->w[i].scale ? (size_t)r->w[i].n * sizeof(float) : 0;
    return copy_memory(b, r, r->w[i].data, r->w[i].bytes - scales, &r->w[i].data);
}

static int fill_rotation(struct bench *b, struct rotation *r, int n)
{
    int at = 0;
    for (int i = 0; i < b->tap.n; i++)
        if (bench_is_of(b, r->kind, &b->tap.list[i]))
            r->list[at++] = b->tap.list[i];
    for (; at < r->n; at++) {
        r->list[at] = r->list[at % n];
        TRY_CTX(copy_operation(b, r, at), "copying what '%s' reads, so that no cache holds it",
                r->kind->name);
    }
    return 0;
}

/* Each commit makes the text longer: so many a pass, that all passes find room before the context ends. */
static int commits(const struct bench *b)
{
    const int room = b->m.cfg.max_positions - b->kv.slot[0].committed - 4 * BENCH_ROWS;
    const int fit = room / (b->warmup + b->repeats);
    return fit < 1 ? 1 : fit < FEW ? fit : FEW;
}

static int least(const struct bench *b, const struct bench_kind *k, double bytes)
{
    if (b->tap.be.host_reads)
        return 1;
    if (k->kind == OPERATION_COMMIT)
        return commits(b);
    return bytes < large ? MANY : FEW;
}

static int open_rotation(struct bench *b, struct rotation *r, const struct bench_kind *k, int n, double bytes)
{
    const size_t total = (size_t)n * (size_t)copies(b, k, n, bytes);
    *r = (struct rotation){
        .kind = k, .n = (int)total, .loops = (least(b, k, bytes) + (int)total - 1) / (int)total};
    r->list = calloc(total, sizeof *r->list);
    r->w = calloc(total, sizeof *r->w);
    r->lent = calloc(2 * total, sizeof *r->lent);
    if (!r->list || !r->w || !r->lent)
        FAIL(ERR_MEMORY, "bench: out of memory for %zu operations", total);
    return fill_rotation(b, r, n);
}

static void close_rotation(struct bench *b, struct rotation *r)
{
    for (int i = 0; i < r->n_lent; i++)
        b->tap.be.ops->release(&b->tap.be, r->lent[i]);
    free(r->list);
    free(r->w);
    free(r->lent);
}

static int enqueue_rotation(struct bench *b, const void *arg)
{
    const struct rotation *r = arg;
    for (int l = 0; l < r->loops; l++)
        for (int i = 0; i < r->n; i++)
            TRY(operation_enqueue(&r->list[i], &b->tap.be));
    return 0;
}

static int time_rotation(struct bench *b, struct rotation *r, struct bench_stage *out)
{
    const struct bench_pass p = {.enqueue = enqueue_rotation, .arg = r, .key = {r, out->rows, 0, 0}};
    const int n = r->n * r->loops;
    size_t launches = 0;
    TRY(bench_time_passes(b, &p, &out->time, &launches));
    out->time.median /= n;
    out->time.p90 /= n;
    out->launches = launches / (size_t)n;
    return 0;
}

/* One way of the library's to multiply what the list multiplies. */
struct contest {
    const struct rotation *r;
    struct rival rival; /* all but w */
};

static int enqueue_rival(struct bench *b, const void *arg)
{
    const struct contest *c = arg;
    for (int l = 0; l < c->r->loops; l++)
        for (int i = 0; i < c->r->n; i++) {
            struct rival a = c->rival;
            a.w = operation_product(&c->r->list[i])->w->data;
            TRY(b->tap.be.ops->rival(&b->tap.be, &a));
        }
    return 0;
}

/* Once outside of a recorded pass, where a library may still load its code. What it proposed and then refuses
 * is out. */
static int time_choices(struct bench *b, struct contest *c, struct bench_stage *out)
{
    struct rival *a = &c->rival;
    for (a->choice = 0; a->choice < a->choices; a->choice++) {
        const struct bench_pass p = {.enqueue = enqueue_rival, .arg = c, .key = {a, a->rows, 0, 0}};
        struct bench_time time;
        if (enqueue_rival(b, c)) {
            err_clear();
            continue;
        }
        TRY(bench_time_passes(b, &p, &time, NULL));
        const double one = time.median / (c->r->n * c->r->loops);
        if (out->rival == 0 || one < out->rival)
            out->rival = one;
    }
    return 0;
}

/* The best of what the vendor's library proposes, in the same rotation. That there is none is no failure. */
static int time_rival(struct bench *b, const struct rotation *r, struct bench_stage *out)
{
    struct backend *be = &b->tap.be;
    const struct gemm *first = operation_product(&r->list[0]);
    struct contest c = {.r = r};
    if (!first || b->no_rival)
        return 0;
    c.rival = (struct rival){.n = first->w->n,
                             .k = first->w->k,
                             .rows = first->rows,
                             .form = first->w->form,
                             .accumulate = first->accumulate,
                             .x = first->x};
    if (be->ops->rival_ask(be, &c.rival)) {
        log_warn("bench: nothing to compare products with: %s", err_text());
        err_clear();
        b->no_rival = 1;
        return 0;
    }
    if (c.rival.choices == 0)
        return 0;
    TRY_CTX(be->ops->alloc(be, c.rival.bytes, &c.rival.scratch), "what the library needs");
    const int rc = time_choices(b, &c, out);
    be->ops->release(be, c.rival.scratch);
    return rc;
}

/* The mean over the list's operations of a kind: layers may differ in what they read. */
static double mean_bytes(const struct bench *b, const struct bench_kind *k, int context, double *experts)
{
    double bytes = 0;
    int n = 0;
    *experts = 0;
    for (int i = 0; i < b->tap.n; i++)
        if (bench_is_of(b, k, &b->tap.list[i])) {
            bytes += k->bytes(b, &b->tap.list[i], context);
            *experts += bench_operation_experts(b, &b->tap.list[i]);
            n++;
        }
    *experts /= n;
    return bytes / n;
}

/* The matrix whose shape a report shows. */
static const struct matrix *shape_of(struct operation *o)
{
    const struct gemm *product = operation_product(o);
    return o->kind == OPERATION_MOE ? &o->a.moe.gate_up[0] : product ? product->w : NULL;
}

/* A kind that the list has. What the operations of a pass need was left by a whole one, so that no kind
 * computes on what another one made of its inputs. */
static int time_kind(struct bench *b, const struct bench_kind *k, int context, struct bench_stage *out)
{
    struct operation *first = b->tap.list;
    struct rotation r = {0};
    while (!bench_is_of(b, k, first))
        first++;
    const struct matrix *shape = shape_of(first);
    double experts;
    const double bytes = mean_bytes(b, k, context, &experts);
    *out = (struct bench_stage){.name = k->name,
                                .moves = k->moves,
                                .around = k->kind >= OPERATION_ACCEPT,
                                .rows = b->f.rows.n,
                                .context = context,
                                .n = shape ? shape->n : 0,
                                .k = shape ? shape->k : 0,
                                .count = count(b, k),
                                .bytes = bytes,
                                .experts = experts};
    int rc = open_rotation(b, &r, k, out->count, out->bytes);
    out->rotated = out->bytes * r.n;
    if (rc == 0 && !out->around)
        rc = bench_plan(b, out->rows);
    if (rc == 0)
        rc = time_rotation(b, &r, out);
    if (rc == 0)
        rc = time_rival(b, &r, out);
    close_rotation(b, &r);
    return rc;
}

static int time_list(struct bench *b, int context, struct bench_stage *out, int *n)
{
    for (int i = 0; i < bench_n_kinds; i++)
        if (count(b, &bench_kinds[i]) > 0) {
            TRY_CTX(time_kind(b, &bench_kinds[i], context, &out[*n]), "timing '%s' of %d rows",
                    bench_kinds[i].name, b->f.rows.n);
            ++*n;
        }
    return 0;
}

int bench_tap_pass(struct bench *b, int context)
{
    struct backend *be = &b->tap.be;
    const int rows = b->f.rows.n;
    tap_open(&b->tap);
    int rc = forward_enqueue(&b->f, &b->f.rows, forward_reach(&b->f, context + rows), bench_flags(rows));
    tap_close(&b->tap);
    const size_t chosen = (size_t)b->f.moe_layers * (size_t)rows * (size_t)b->m.cfg.top_k;
    if (rc == 0 && chosen > 0)
        rc = be->ops->download(be, b->experts, b->f.experts, chosen * sizeof *b->experts);
    return rc ? rc : be->ops->sync(be);
}

static int time_around(struct bench *b, int context, struct bench_stage *out, int *n)
{
    struct spec *s = NULL;
    TRY(bench_loop_open(b, b->f.rows.n, context, commits(b) * (b->warmup + b->repeats), &s));
    const int rc = time_list(b, context, out, n);
    bench_loop_close(b, s);
    return rc;
}

int bench_time_stages(struct bench *b, int context, struct bench_stage *out, int *n)
{
    *n = 0;
    TRY(bench_tap_pass(b, context));
    TRY(time_list(b, context, out, n));
    TRY(bench_plan(b, b->f.rows.n)); /* what the kinds alone left is no pass */
    TRY_CTX(bench_time_in_pass(b, out, *n), "a stamped pass of %d rows", b->f.rows.n);
    if (b->f.rows.n <= BENCH_ROWS)
        TRY_CTX(time_around(b, context, out, n), "a step of %d rows", b->f.rows.n);
    return 0;
}

double bench_stages_in_pass(const struct bench_stage *s, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += s[i].around ? 0 : s[i].count * s[i].in_pass;
    return sum;
}

double bench_stages_sum(const struct bench_stage *s, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += s[i].around ? 0 : s[i].count * s[i].time.median;
    return sum;
}
