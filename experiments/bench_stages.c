/* bench_stages: the operations of a pass, kind by kind. A pass is tapped (experiments/bench_tap.h), the
 * operations of one kind are put one after the other into a recorded pass of their own: those of all layers
 * in turn, each with its own weights and cells. Where all of them together would stay in the cache, copies
 * follow, until what is read before anything comes again is four caches long. What is timed is therefore the
 * operation in its rhythm, start of the next one overlapped as in a step. */
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/bench.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { OPERATIONS_MAX = 1024, CACHES = 4, FEW = 32, MANY = 256, HUGE_FROM_BYTES = 1 << 20 };
static const double large =
    32e6; /* bytes: from there on a pass of FEW operations is long enough to be timed */

struct kind {
    const char *name, *moves;
    enum operation_kind kind;
    size_t w; /* of these with a product: its matrix is this member of struct layer; else ANY */
    double (*bytes)(const struct bench *b, const struct operation *o, int context);
};
#define ANY SIZE_MAX

static double bytes_embed(const struct bench *b, const struct operation *o, int context)
{
    (void)b;
    (void)context;
    return (double)o->a.embed.rows * o->a.embed.w->k * (sizeof(bf16) + sizeof(float));
}

static double bytes_rmsnorm(const struct bench *b, const struct operation *o, int context)
{
    const struct rmsnorm *a = &o->a.rmsnorm;
    (void)context;
    return (double)a->rows * a->dim * sizeof(float) +
           (double)b->tap.be.ops->act_bytes(&b->tap.be, a->rows, a->dim);
}

static double bytes_rope_table(const struct bench *b, const struct operation *o, int context)
{
    (void)b;
    (void)context;
    return (double)o->a.rope_table.rows->n * o->a.rope_table.head_dim * sizeof(float);
}

static double bytes_quantise(const struct bench *b, const struct operation *o, int context)
{
    (void)context;
    return 2.0 * (double)b->tap.be.ops->act_bytes(&b->tap.be, o->a.quantise.rows, o->a.quantise.k);
}

static double bytes_product(const struct bench *b, const struct operation *o, int context)
{
    struct operation copy = *o;
    (void)b;
    (void)context;
    return (double)operation_product(&copy)->w->bytes;
}

static double bytes_attention(const struct bench *b, const struct operation *o, int context)
{
    return (double)b->kv.bytes / b->kv.cap / b->kv.n_layers * (context + o->a.attention.rows->n);
}

static double bytes_logits(const struct bench *b, const struct operation *o, int context)
{
    (void)b;
    (void)context;
    return (double)o->a.logits.rows * o->a.logits.vocab * sizeof(float);
}

/* At least one row is read to the end. */
static double bytes_accept(const struct bench *b, const struct operation *o, int context)
{
    (void)b;
    (void)context;
    return (double)o->a.accept.vocab * sizeof(float);
}

/* A node's rank takes the row of its parent. */
static double bytes_node_stats(const struct bench *b, const struct operation *o, int context)
{
    const int nodes = b->f.rows.n > 1 ? b->f.rows.n - 1 : 1;
    (void)context;
    return (double)nodes * o->a.node_stats.vocab * sizeof(float);
}

static double bytes_plan(const struct bench *b, const struct operation *o, int context)
{
    (void)b;
    (void)context;
    return 6.0 * o->a.plan.rows * sizeof(int);
}

static double bytes_ngram(const struct bench *b, const struct operation *o, int context)
{
    (void)b;
    (void)o;
    return (double)context * sizeof(int);
}

static double bytes_commit(const struct bench *b, const struct operation *o, int context)
{
    (void)b;
    (void)context;
    return (double)step_entry_bytes(&o->a.commit.step->trees, &o->a.commit.experts);
}

static const struct kind kinds[] = {
    {"embed", "acts", OPERATION_EMBED, ANY, bytes_embed},
    {"rmsnorm", "acts", OPERATION_RMSNORM, ANY, bytes_rmsnorm},
    {"rope_table", "acts", OPERATION_ROPE_TABLE, ANY, bytes_rope_table},
    {"quantise", "acts", OPERATION_QUANTISE, ANY, bytes_quantise},
    {"qkv", "weights", OPERATION_QKV, ANY, bytes_product},
    {"attention", "cache", OPERATION_ATTENTION, ANY, bytes_attention},
    {"o+residual", "weights", OPERATION_RESIDUAL, offsetof(struct layer, o), bytes_product},
    {"swiglu", "weights", OPERATION_SWIGLU, ANY, bytes_product},
    {"down+residual", "weights", OPERATION_RESIDUAL, offsetof(struct layer, down), bytes_product},
    {"head", "weights", OPERATION_GEMM, ANY, bytes_product},
    {"logits", "logits", OPERATION_LOGITS, ANY, bytes_logits},
    {"accept", "logits", OPERATION_ACCEPT, ANY, bytes_accept},
    {"node_stats", "logits", OPERATION_NODE_STATS, ANY, bytes_node_stats},
    {"plan", "state", OPERATION_PLAN, ANY, bytes_plan},
    {"ngram", "text", OPERATION_NGRAM, ANY, bytes_ngram},
    {"commit", "state", OPERATION_COMMIT, ANY, bytes_commit}, /* the last: it goes on in the text */
};
enum { KINDS = sizeof kinds / sizeof *kinds };
_Static_assert((int)KINDS <= (int)BENCH_STAGES, "every kind may occur");

/* Operations in the order that they are enqueued in, each with memory of its own to read. */
struct rotation {
    const struct kind *kind;
    struct operation *list; /* owned [n] */
    struct matrix *w;       /* owned [n], of the copies */
    void **lent;            /* owned [n_lent], backend memory of the copies */
    int n, n_lent, loops;   /* the whole list so often in a pass */
};

static int of_kind(const struct bench *b, const struct kind *k, struct operation *o)
{
    if (o->kind != k->kind)
        return 0;
    if (k->w == ANY)
        return 1;
    for (int i = 0; i < b->m.cfg.layers; i++)
        if ((const char *)operation_product(o)->w == (const char *)&b->m.layers[i] + k->w)
            return 1;
    return 0;
}

static int count(const struct bench *b, const struct kind *k)
{
    int n = 0;
    for (int i = 0; i < b->tap.n; i++)
        n += of_kind(b, k, &b->tap.list[i]);
    return n;
}

/* How often the operations of a pass stand in the list. */
static int copies(const struct bench *b, const struct kind *k, int n, double bytes)
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
        if (of_kind(b, r->kind, &b->tap.list[i]))
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

static int least(const struct bench *b, const struct kind *k, double bytes)
{
    if (b->tap.be.host_reads)
        return 1;
    if (k->kind == OPERATION_COMMIT)
        return commits(b);
    return bytes < large ? MANY : FEW;
}

static int open_rotation(struct bench *b, struct rotation *r, const struct kind *k, int n, double bytes)
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

/* A kind that the list has. What the operations of a pass need was left by a whole one, so that no kind
 * computes on what another one made of its inputs. */
static int time_kind(struct bench *b, const struct kind *k, int context, struct bench_stage *out)
{
    struct operation *first = b->tap.list;
    struct rotation r = {0};
    while (!of_kind(b, k, first))
        first++;
    const struct gemm *product = operation_product(first);
    *out = (struct bench_stage){.name = k->name,
                                .moves = k->moves,
                                .around = k->kind >= OPERATION_ACCEPT,
                                .rows = b->f.rows.n,
                                .context = context,
                                .n = product ? product->w->n : 0,
                                .k = product ? product->w->k : 0,
                                .count = count(b, k),
                                .bytes = k->bytes(b, first, context)};
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
    for (int i = 0; i < KINDS; i++)
        if (count(b, &kinds[i]) > 0) {
            TRY_CTX(time_kind(b, &kinds[i], context, &out[*n]), "timing '%s' of %d rows", kinds[i].name,
                    b->f.rows.n);
            ++*n;
        }
    return 0;
}

static int tap_pass(struct bench *b, int context)
{
    const int rows = b->f.rows.n;
    tap_open(&b->tap);
    const int rc =
        forward_enqueue(&b->f, &b->f.rows, forward_reach(&b->f, context + rows), bench_flags(rows));
    tap_close(&b->tap);
    return rc;
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
    TRY(tap_pass(b, context));
    TRY(time_list(b, context, out, n));
    if (b->f.rows.n <= BENCH_ROWS)
        TRY_CTX(time_around(b, context, out, n), "a step of %d rows", b->f.rows.n);
    return 0;
}

double bench_stages_sum(const struct bench_stage *s, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += s[i].around ? 0 : s[i].count * s[i].time.median;
    return sum;
}
