/* model_layer: the tensors of a layer by name (model-formats A.8, B.1) to the matrices that its products
 * read. */
#include "engine/err.h"
#include "engine/log.h"
#include "engine/model_build.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* A part by its name within `prefix`. */
static struct weight_want want_of(const char *prefix, const char *name, int n, int k)
{
    struct weight_want want = {.n = n, .k = k};
    snprintf(want.name, sizeof want.name, "%s%s", prefix, name);
    return want;
}

/* The rank's run of n. */
static struct weight_range share_of(const struct build *b, int n)
{
    return (struct weight_range){b->m->opts.shard.rank * n, n, n};
}

/* Of a random matrix whose outputs are added to the rows, before experts: all 2 * layers sums together are
 * then at most as large as the embedding, and rows of one text stay as different as their tokens. 0: as all
 * others. */
static float spread_of_sum(const struct model_config *c, int k)
{
    return c->experts && !c->tied ? 1.0f / sqrtf(2.0f * (float)c->layers * (float)k) : 0;
}

static int load_attention(struct build *b, struct layer *l, const char *layer)
{
    const struct model_config *c = &b->m->cfg;
    const struct weight_range heads = share_of(b, b->m->part.heads * c->head_dim),
                              kv_heads = share_of(b, b->m->part.kv_heads * c->head_dim);
    const int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    struct build_matrix qkv = {.want = {want_of(layer, "self_attn.q_proj", q, c->hidden),
                                        want_of(layer, "self_attn.k_proj", kv, c->hidden),
                                        want_of(layer, "self_attn.v_proj", kv, c->hidden)},
                               .n = 3,
                               .flags = MATRIX_ROTARY};
    struct build_matrix o = {.want = {want_of(layer, "self_attn.o_proj", c->hidden, q)}, .n = 1};
    o.want[0].spread = spread_of_sum(c, q);
    if (c->rope_interleaved)
        qkv.want[0].pairs = qkv.want[1].pairs = c->head_dim;
    qkv.want[0].rows = o.want[0].cols = heads;
    qkv.want[1].rows = qkv.want[2].rows = kv_heads;
    TRY(build_matrix(b, &l->qkv, &qkv));
    return build_matrix(b, &l->o, &o);
}

/* How wide an MLP is: `all` columns, of which the last `pad` are in no file, and the rank's. */
struct width {
    int all, pad;
    struct weight_range share;
};

/* Of the columns that a file holds, and the rank's with its zeros. */
static struct width share_width(const struct build *b, int all, int pad, int part)
{
    const struct shard shard = b->m->opts.shard;
    const int each = (all - pad) / (shard.world > 1 ? shard.world : 1);
    return (struct width){all, pad, {shard.rank * each, part, each}};
}

static struct width width_of(const struct build *b, int moe)
{
    const struct model_config *c = &b->m->cfg;
    if (c->llama4 && !moe)
        return share_width(b, c->ffn_dense, c->ffn_dense_pad, b->m->part.ffn_dense);
    return share_width(b, c->ffn, c->ffn_pad, b->m->part.ffn);
}

/* gate, up and down of one MLP; fused: where an expert's gate, up and down lie, or NULL. */
static int load_mlp(struct build *b, const char *prefix, struct width width, const struct weight_fused *fused,
                    struct matrix *gate_up, struct matrix *down)
{
    const int hidden = b->m->cfg.hidden, stored = width.all - width.pad;
    struct build_matrix first = {
        .want = {want_of(prefix, "gate_proj", stored, hidden), want_of(prefix, "up_proj", stored, hidden)},
        .n = 2,
        .flags = MATRIX_INTERLEAVE,
        .fused = fused};
    struct build_matrix second = {
        .want = {want_of(prefix, "down_proj", hidden, stored)}, .n = 1, .fused = fused ? fused + 2 : NULL};
    second.want[0].spread = spread_of_sum(&b->m->cfg, width.all);
    first.want[0].n_pad = first.want[1].n_pad = second.want[0].k_pad = width.pad;
    first.want[0].rows = first.want[1].rows = second.want[0].cols = width.share;
    TRY(build_matrix(b, gate_up, &first));
    return build_matrix(b, down, &second);
}

static int load_expert(struct build *b, struct layer *l, const char *ffn, int i)
{
    const struct model_config *c = &b->m->cfg;
    const int stored = c->ffn - c->ffn_pad;
    const struct weight_fused gate = {.count = c->experts, .index = i, .n = 2 * stored};
    struct weight_fused fused[3] = {gate, gate, gate};
    char prefix[WEIGHT_NAME_MAX / 2];
    fused[1].first = stored;
    fused[2].n = c->hidden;
    for (int part = 0; part < 3; part++)
        snprintf(fused[part].name, sizeof fused[part].name, "%sexperts.%s", ffn,
                 part < 2 ? "gate_up_proj" : "down_proj");
    snprintf(prefix, sizeof prefix, "%.40sexperts.%d.", ffn, i);
    return load_mlp(b, prefix, width_of(b, 1), fused, &l->expert_gate_up[i], &l->expert_down[i]);
}

static int load_moe(struct build *b, struct layer *l, const char *ffn)
{
    const struct model_config *c = &b->m->cfg;
    struct build_matrix router = {
        .want = {want_of(ffn, "router", c->experts, c->hidden)}, .n = 1, .exact = 1};
    router.want[0].norms = b->router;
    char shared[WEIGHT_NAME_MAX / 2];
    snprintf(shared, sizeof shared, "%.40sshared_expert.", ffn);
    l->expert_gate_up = calloc((size_t)c->experts, sizeof *l->expert_gate_up);
    l->expert_down = calloc((size_t)c->experts, sizeof *l->expert_down);
    if (!l->expert_gate_up || !l->expert_down)
        FAIL(ERR_MEMORY, "model: out of memory for the books of %d experts", c->experts);
    TRY(build_matrix(b, &l->router, &router));
    TRY(load_mlp(b, shared, width_of(b, 1), NULL, &l->gate_up, &l->down));
    for (int i = 0; i < c->experts; i++)
        TRY(load_expert(b, l, ffn, i));
    return 0;
}

/* The cache rounds by itself, with no scale but 1: these are counted and reported, not used. */
static int skip_kv_scales(struct build *b, const char *layer)
{
    static const char *const names[] = {"self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"};
    for (size_t i = 0; b->from.ckpt && i < sizeof names / sizeof *names; i++) {
        char name[WEIGHT_NAME_MAX];
        float scale = 0;
        snprintf(name, sizeof name, "%s%s", layer, names[i]);
        if (!weights_has(&b->from, name))
            continue;
        TRY(weights_scalar(&b->from, name, &scale));
        b->kv_scales++;
        b->kv_scale = scale > b->kv_scale ? scale : b->kv_scale;
    }
    return 0;
}

int build_layer(struct build *b, int i)
{
    const struct model_config *c = &b->m->cfg;
    struct layer *l = &b->m->layers[i];
    char layer[32], ffn[48], name[64];
    l->kind = c->kind[i];
    snprintf(layer, sizeof layer, "model.layers.%d.", i);
    snprintf(ffn, sizeof ffn, "%s%s", layer, c->llama4 ? "feed_forward." : "mlp.");
    snprintf(name, sizeof name, "%sinput_layernorm", layer);
    TRY(build_norm(b, name, &l->attn_norm));
    TRY(load_attention(b, l, layer));
    TRY(skip_kv_scales(b, layer));
    snprintf(name, sizeof name, "%spost_attention_layernorm", layer);
    TRY(build_norm(b, name, &l->ffn_norm));
    if (l->kind & LAYER_MOE)
        return load_moe(b, l, ffn);
    return load_mlp(b, ffn, width_of(b, 0), NULL, &l->gate_up, &l->down);
}
