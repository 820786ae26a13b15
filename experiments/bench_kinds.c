/* bench_kinds: the table of them. Bytes are those that must move however the operation is done. */
#include "experiments/bench_kinds.h"
#include <string.h>

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
    const int rows = o->a.attention.rows->n, chunk = o->a.attention.chunk;
    return bench_cell_bytes(b) * (bench_cells_seen(context, chunk) + rows);
}

/* The shared expert and each of those that some row chose. */
static double bytes_moe(const struct bench *b, const struct operation *o, int context)
{
    const struct moe *a = &o->a.moe;
    (void)context;
    return (double)(a->shared.gate_up->bytes + a->shared.down->bytes) +
           bench_operation_experts(b, o) * (double)(a->gate_up[0].bytes + a->down[0].bytes);
}

static double bytes_temperature(const struct bench *b, const struct operation *o, int context)
{
    (void)b;
    (void)context;
    return (double)o->a.temperature.rows->n * sizeof(float);
}

/* Every rank's part, read here. */
static double bytes_reduce(const struct bench *b, const struct operation *o, int context)
{
    const struct reduce *a = &o->a.reduce;
    const int world = b->numbers.shard.world > 1 ? b->numbers.shard.world : 1;
    (void)context;
    return (double)world * a->rows * a->n * (a->wire == WIRE_BF16 ? sizeof(bf16) : sizeof(float));
}

static double bytes_gather(const struct bench *b, const struct operation *o, int context)
{
    (void)b;
    (void)context;
    return (double)o->a.gather.rows * o->a.gather.n * sizeof(float);
}

static double bytes_logits(const struct bench *b, const struct operation *o, int context)
{
    (void)b;
    (void)context;
    return (double)o->a.logits.rows * o->a.logits.vocab * sizeof(float);
}

double bench_cell_bytes(const struct bench *b)
{
    return (double)b->kv.bytes / b->kv.cap / b->kv.n_layers;
}

int bench_cells_seen(int context, int chunk)
{
    return chunk > 0 ? context % chunk : context;
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

#define LAYER(member) BENCH_OF_LAYER, offsetof(struct layer, member)
#define ANY           BENCH_ANY, 0
const struct bench_kind bench_kinds[] = {
    {"embed", "acts", OPERATION_EMBED, 0, ANY, bytes_embed},
    {"rmsnorm", "acts", OPERATION_RMSNORM, 0, ANY, bytes_rmsnorm},
    {"rope_table", "acts", OPERATION_ROPE_TABLE, 0, ANY, bytes_rope_table},
    {"temperature", "acts", OPERATION_TEMPERATURE, 0, ANY, bytes_temperature},
    {"quantise", "acts", OPERATION_QUANTISE, 1, ANY, bytes_quantise},
    {"qkv", "weights", OPERATION_QKV, 1, ANY, bytes_product},
    {"attention", "cache", OPERATION_ATTENTION, 1, ANY, bytes_attention},
    {"o+residual", "weights", OPERATION_RESIDUAL, 1, LAYER(o), bytes_product},
    {"o", "weights", OPERATION_GEMM, 1, LAYER(o), bytes_product},
    {"swiglu", "weights", OPERATION_SWIGLU, 1, ANY, bytes_product},
    {"down+residual", "weights", OPERATION_RESIDUAL, 1, LAYER(down), bytes_product},
    {"down", "weights", OPERATION_GEMM, 1, LAYER(down), bytes_product},
    {"route", "weights", OPERATION_ROUTE, 1, ANY, bytes_product},
    {"moe", "experts", OPERATION_MOE, 1, ANY, bytes_moe},
    {"reduce", "parts", OPERATION_REDUCE, 1, ANY, bytes_reduce},
    {"head", "weights", OPERATION_GEMM, 0, BENCH_OF_MODEL, 0, bytes_product},
    {"gather", "logits", OPERATION_GATHER, 0, ANY, bytes_gather},
    {"logits", "logits", OPERATION_LOGITS, 0, ANY, bytes_logits},
    {"accept", "logits", OPERATION_ACCEPT, 0, ANY, bytes_accept},
    {"node_stats", "logits", OPERATION_NODE_STATS, 0, ANY, bytes_node_stats},
    {"plan", "state", OPERATION_PLAN, 0, ANY, bytes_plan},
    {"ngram", "text", OPERATION_NGRAM, 0, ANY, bytes_ngram},
    {"commit", "state", OPERATION_COMMIT, 0, ANY, bytes_commit}, /* the last: it goes on in the text */
};
const int bench_n_kinds = sizeof bench_kinds / sizeof *bench_kinds;
_Static_assert(sizeof bench_kinds / sizeof *bench_kinds <= BENCH_STAGES, "every kind may occur");

static int of_layer(const struct bench *b, const struct matrix *w, size_t member)
{
    for (int i = 0; i < b->m.cfg.layers; i++)
        if ((const char *)w == (const char *)&b->m.layers[i] + member)
            return 1;
    return 0;
}

int bench_is_of(const struct bench *b, const struct bench_kind *k, const struct operation *o)
{
    struct operation copy = *o;
    if (o->kind != k->kind)
        return 0;
    const struct matrix *w = k->matrix == BENCH_ANY ? NULL : operation_product(&copy)->w;
    return k->matrix == BENCH_ANY || (k->matrix == BENCH_OF_MODEL && w == &b->m.head) ||
           (k->matrix == BENCH_OF_LAYER && of_layer(b, w, k->member));
}

const struct bench_kind *bench_kind_of(const struct bench *b, const struct operation *o)
{
    for (int i = 0; i < bench_n_kinds; i++)
        if (bench_is_of(b, &bench_kinds[i], o))
            return &bench_kinds[i];
    return NULL;
}

static int seen_before(const int *expert, int i)
{
    for (int k = 0; k < i; k++)
        if (expert[k] == expert[i])
            return 1;
    return 0;
}

int bench_distinct(const int *expert, int n)
{
    int distinct = 0;
    for (int i = 0; i < n; i++)
        distinct += expert[i] >= 0 && !seen_before(expert, i);
    return distinct;
}

int bench_operation_experts(const struct bench *b, const struct operation *o)
{
    if (o->kind != OPERATION_MOE)
        return 0;
    return bench_distinct(b->experts + (o->a.moe.expert - b->f.experts), o->a.moe.rows * o->a.moe.top_k);
}
