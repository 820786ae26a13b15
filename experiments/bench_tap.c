/* bench_tap: the backend's table is exchanged for one whose operations append their arguments to a list. */
#include "experiments/bench_tap.h"
#include "engine/err.h"
#include <stddef.h>
#include <stdlib.h>

_Static_assert(offsetof(struct tap, be) == 0, "an operation finds its tap by its backend");

static int keep(struct backend *be, const struct operation *o)
{
    struct tap *t = (struct tap *)(void *)be;
    if (t->n == t->cap) {
        const int cap = t->cap ? 2 * t->cap : 256;
        struct operation *grown = realloc(t->list, (size_t)cap * sizeof *grown);
        if (!grown)
            FAIL(ERR_MEMORY, "bench: out of memory for a list of %d operations", cap);
        t->list = grown;
        t->cap = cap;
    }
    t->list[t->n++] = *o;
    return 0;
}

static int keep_embed(struct backend *be, const struct embed *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_EMBED, .a.embed = *a});
}

static int keep_rmsnorm(struct backend *be, const struct rmsnorm *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_RMSNORM, .a.rmsnorm = *a});
}

static int keep_gemm(struct backend *be, const struct gemm *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_GEMM, .a.gemm = *a});
}

static int keep_swiglu(struct backend *be, const struct gemm *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_SWIGLU, .a.gemm = *a});
}

static int keep_residual(struct backend *be, const struct residual *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_RESIDUAL, .a.residual = *a});
}

static int keep_qkv(struct backend *be, const struct qkv *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_QKV, .a.qkv = *a});
}

static int keep_quantise(struct backend *be, const struct quantise *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_QUANTISE, .a.quantise = *a});
}

static int keep_rope_table(struct backend *be, const struct rows *rows, const float *inv_freq, int head_dim,
                           float *cos_sin)
{
    return keep(be, &(struct operation){.kind = OPERATION_ROPE_TABLE,
                                        .a.rope_table = {rows, inv_freq, head_dim, cos_sin}});
}

static int keep_attention(struct backend *be, const struct attention *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_ATTENTION, .a.attention = *a});
}

static int keep_logits(struct backend *be, const struct logits *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_LOGITS, .a.logits = *a});
}

static int keep_temperature(struct backend *be, const struct temperature *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_TEMPERATURE, .a.temperature = *a});
}

static int keep_route(struct backend *be, const struct route *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_ROUTE, .a.route = *a});
}

static int keep_moe(struct backend *be, const struct moe *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_MOE, .a.moe = *a});
}

static int keep_reduce(struct backend *be, const struct reduce *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_REDUCE, .a.reduce = *a});
}

static int keep_gather(struct backend *be, const struct gather *a)
{
    return keep(be, &(struct operation){.kind = OPERATION_GATHER, .a.gather = *a});
}

void tap_open(struct tap *t)
{
    t->n = 0;
    t->real = t->be.ops;
    t->ops = *t->real;
    t->ops.embed = keep_embed;
    t->ops.rmsnorm = keep_rmsnorm;
    t->ops.gemm = keep_gemm;
    t->ops.swiglu = keep_swiglu;
    t->ops.residual = keep_residual;
    t->ops.qkv = keep_qkv;
    t->ops.quantise = keep_quantise;
    t->ops.rope_table = keep_rope_table;
    t->ops.attention = keep_attention;
    t->ops.logits = keep_logits;
    t->ops.rope_temperature = keep_temperature;
    t->ops.route = keep_route;
    t->ops.moe = keep_moe;
    t->ops.reduce = keep_reduce;
    t->ops.gather = keep_gather;
    t->be.ops = &t->ops;
}

static int follow(struct backend *be, const struct operation *o)
{
    struct tap *t = (struct tap *)(void *)be;
    if (t->done)
        return 0;
    TRY(keep(be, o));
    t->done = o->kind == OPERATION_COMMIT;
    be->ops = t->real;
    const int rc = operation_enqueue(o, be);
    be->ops = &t->ops;
    return rc;
}

static int follow_accept(struct backend *be, const struct accept *a)
{
    return follow(be, &(struct operation){.kind = OPERATION_ACCEPT, .a.accept = *a});
}

static int follow_node_stats(struct backend *be, const struct node_stats *a)
{
    return follow(be, &(struct operation){.kind = OPERATION_NODE_STATS, .a.node_stats = *a});
}

static int follow_step_plan(struct backend *be, const struct step *s, int rows)
{
    return follow(be, &(struct operation){.kind = OPERATION_PLAN, .a.plan = {s, rows}});
}

static int follow_ngram(struct backend *be, const struct ngram *a)
{
    return follow(be, &(struct operation){.kind = OPERATION_NGRAM, .a.ngram = *a});
}

static int follow_step_commit(struct backend *be, const struct step_commit *a)
{
    return follow(be, &(struct operation){.kind = OPERATION_COMMIT, .a.commit = *a});
}

/* A recorded pass would be recorded with what is written down here left out. */
static int follow_pass_begin(struct backend *be, struct pass_key key, int *recorded)
{
    (void)be;
    (void)key;
    *recorded = 0;
    return 0;
}

static int follow_pass_end(struct backend *be, int error)
{
    (void)be;
    return error;
}

void tap_follow(struct tap *t)
{
    t->n = t->done = 0;
    t->real = t->be.ops;
    t->ops = *t->real;
    t->ops.accept = follow_accept;
    t->ops.node_stats = follow_node_stats;
    t->ops.step_plan = follow_step_plan;
    t->ops.ngram = follow_ngram;
    t->ops.step_commit = follow_step_commit;
    t->ops.pass_begin = follow_pass_begin;
    t->ops.pass_end = follow_pass_end;
    t->be.ops = &t->ops;
}

void tap_close(struct tap *t)
{
    if (t->real)
        t->be.ops = t->real;
    t->real = NULL;
}

void tap_deinit(struct tap *t)
{
    tap_close(t);
    free(t->list);
    t->list = NULL;
    t->n = t->cap = 0;
}

int operation_enqueue(const struct operation *o, struct backend *be)
{
    const struct rope_tables *r = &o->a.rope_table;
    switch (o->kind) {
    case OPERATION_EMBED:
        return be->ops->embed(be, &o->a.embed);
    case OPERATION_RMSNORM:
        return be->ops->rmsnorm(be, &o->a.rmsnorm);
    case OPERATION_ROPE_TABLE:
        return be->ops->rope_table(be, r->rows, r->inv_freq, r->head_dim, r->cos_sin);
    case OPERATION_QUANTISE:
        return be->ops->quantise(be, &o->a.quantise);
    case OPERATION_QKV:
        return be->ops->qkv(be, &o->a.qkv);
    case OPERATION_ATTENTION:
        return be->ops->attention(be, &o->a.attention);
    case OPERATION_RESIDUAL:
        return be->ops->residual(be, &o->a.residual);
    case OPERATION_SWIGLU:
        return be->ops->swiglu(be, &o->a.gemm);
    case OPERATION_GEMM:
        return be->ops->gemm(be, &o->a.gemm);
    case OPERATION_LOGITS:
        return be->ops->logits(be, &o->a.logits);
    case OPERATION_TEMPERATURE:
        return be->ops->rope_temperature(be, &o->a.temperature);
    case OPERATION_ROUTE:
        return be->ops->route(be, &o->a.route);
    case OPERATION_MOE:
        return be->ops->moe(be, &o->a.moe);
    case OPERATION_REDUCE:
        return be->ops->reduce(be, &o->a.reduce);
    case OPERATION_GATHER:
        return be->ops->gather(be, &o->a.gather);
    case OPERATION_ACCEPT:
        return be->ops->accept(be, &o->a.accept);
    case OPERATION_NODE_STATS:
        return be->ops->node_stats(be, &o->a.node_stats);
    case OPERATION_PLAN:
        return be->ops->step_plan(be, o->a.plan.step, o->a.plan.rows);
    case OPERATION_NGRAM:
        return be->ops->ngram(be, &o->a.ngram);
    case OPERATION_COMMIT:
        return be->ops->step_commit(be, &o->a.commit);
    }
    return 0;
}

struct gemm *operation_product(struct operation *o)
{
    switch (o->kind) {
    case OPERATION_QKV:
        return &o->a.qkv.product;
    case OPERATION_RESIDUAL:
        return &o->a.residual.product;
    case OPERATION_ROUTE:
        return &o->a.route.product;
    case OPERATION_SWIGLU:
    case OPERATION_GEMM:
        return &o->a.gemm;
    default:
        return NULL;
    }
}
