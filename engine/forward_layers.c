/* forward_layers: the network as operations of a backend, layer by layer. Everything that all layers share
 * (rows, paths, cosines and sines, temperatures) is made once a pass. Cost of a decode step: one read of the
 * weights, of experts those that were chosen; nothing here grows with the context but attention itself. */
#include "engine/forward_parts.h"
#include "engine/err.h"
#include <math.h>

static struct normed normed_of(const struct forward *f, const struct matrix *next)
{
    return (struct normed){f->scratch->h, f->scratch->square, next->form == MATRIX_FP8 ? ACT_F16 : ACT_BF16};
}

static struct rmsnorm norm_for(const struct forward *f, const float *w, const struct matrix *next)
{
    return (struct rmsnorm){.x = f->scratch->x,
                            .w = w,
                            .y = normed_of(f, next),
                            .rows = f->rows.n,
                            .dim = f->model->cfg.hidden,
                            .threads = f->model->be->threads,
                            .bulk = f->scratch->bulk,
                            .eps = f->model->cfg.rms_eps};
}

static struct gemm product(const struct forward *f, const struct matrix *w, const void *x, void *y)
{
    return (struct gemm){.w = w,
                         .x = x,
                         .y = y,
                         .rows = f->rows.n,
                         .threads = f->model->be->threads,
                         .scratch = f->scratch->gemm,
                         .bulk = f->scratch->bulk,
                         .eps = f->model->cfg.rms_eps};
}

/* A product of the stream's norm. */
static struct gemm product_of_norm(const struct forward *f, const struct matrix *w, void *y)
{
    struct gemm a = product(f, w, f->scratch->h, y);
    a.square = f->scratch->square;
    return a;
}

/* How the model says that what quantised matrices multiply is kept. */
static enum rounding rounding_of(const struct model *m)
{
    const enum model_numbers kept = m->opts.activations;
    return kept == MODEL_FP8 ? ROUND_DYNAMIC : kept == MODEL_FP8_STATIC ? ROUND_STATIC : ROUND_NONE;
}

/* What a quantised matrix multiplies is rounded first; by a static scale 1 / rms goes into it. */
static int round_input(const struct forward *f, struct gemm *a, void *x)
{
    const enum rounding how = rounding_of(f->model);
    if (a->w->form == MATRIX_FP8 && f->watch.product)
        return f->watch.product(f->watch.self, a);
    if (a->w->form != MATRIX_FP8 || how == ROUND_NONE)
        return 0;
    const struct quantise q = {.x = x,
                               .scale = f->scratch->row_scale,
                               .rows = a->rows,
                               .k = a->w->k,
                               .threads = a->threads,
                               .fixed = how == ROUND_STATIC ? a->w->input_scale : 0,
                               .square = a->square,
                               .eps = a->eps,
                               .form = ACT_F16,
                               .bulk = a->bulk};
    a->row_scale = q.scale;
    if (how == ROUND_STATIC)
        a->square = NULL;
    return f->model->be->ops->quantise(f->model->be, &q);
}

/* x += what all ranks have in `part`, and the norm behind it. */
static int run_reduce(const struct forward *f, const struct rmsnorm *norm)
{
    const struct reduce a = {.part = f->scratch->part,
                             .y = f->scratch->x,
                             .norm = *norm,
                             .rows = f->rows.n,
                             .n = f->model->cfg.hidden,
                             .wire = WIRE_F32};
    return f->model->be->ops->reduce(f->model->be, &a);
}

/* x += W y, and the norm that `next` multiplies. */
static int run_residual(const struct forward *f, const struct matrix *w, void *y, const float *gain,
                        const struct matrix *next)
{
    const struct backend_ops *ops = f->model->be->ops;
    struct residual a = {.product = product(f, w, y, f->scratch->x), .norm = norm_for(f, gain, next)};
    TRY(round_input(f, &a.product, y));
    if (!model_is_part(f->model)) {
        a.product.accumulate = 1;
        return ops->residual(f->model->be, &a);
    }
    a.product.y = f->scratch->part;
    TRY(ops->gemm(f->model->be, &a.product));
    return run_reduce(f, &a.norm);
}

/* q, k, v of norm(x), rotated; keys and values go to their cells. */
static int run_cache(const struct forward *f, int layer)
{
    const struct forward_scratch *s = f->scratch;
    const struct model_config *c = &f->model->cfg;
    const struct layer *l = &f->model->layers[layer];
    const int nope = (l->kind & LAYER_NOPE) != 0;
    struct qkv a = {.product = product_of_norm(f, &l->qkv, s->qkv),
                    .rope = {.rows = &f->rows,
                             .qkv = s->qkv,
                             .cos_sin = s->cos_sin,
                             .kv = f->kv->layers[layer],
                             .heads = f->model->part.heads,
                             .threads = f->model->be->threads,
                             .rotate = !nope,
                             .qk_norm = c->qk_norm && !nope ? c->rms_eps : 0,
                             .temperature = nope ? s->temperature : NULL}};
    TRY(round_input(f, &a.product, s->h));
    return f->model->be->ops->qkv(f->model->be, &a);
}

/* Of the matrices that multiply the norm before the layer's MLP one whose form decides how it is kept: where
 * shared and routed experts differ, that of the BF16 ones. */
static const struct matrix *ffn_first(const struct layer *l)
{
    const int mixed = l->kind & LAYER_MOE && l->gate_up.form != l->expert_gate_up->form;
    return mixed && l->gate_up.form == MATRIX_FP8 ? l->expert_gate_up : &l->gate_up;
}

/* x += o(attention(q)) */
static int run_attention(const struct forward *f, int layer, int reach)
{
    const struct forward_scratch *s = f->scratch;
    const struct layer *l = &f->model->layers[layer];
    const struct model_config *c = &f->model->cfg;
    const struct attention attention = {.rows = &f->rows,
                                        .qkv = s->qkv,
                                        .kv = f->kv->layers[layer],
                                        .y = s->attended,
                                        .scratch = s->attention,
                                        .heads = f->model->part.heads,
                                        .threads = f->model->be->threads,
                                        .reach = reach,
                                        .bulk = s->bulk,
                                        .chunk = l->kind & LAYER_NOPE ? 0 : c->chunk,
                                        .y_form = l->o.form == MATRIX_FP8 ? ACT_F16 : ACT_BF16,
                                        .scale = 1.0f / sqrtf((float)c->head_dim)};
    TRY(f->model->be->ops->attention(f->model->be, &attention));
    return run_residual(f, &l->o, s->attended, l->ffn_norm, ffn_first(l));
}

/* The norm that ends a layer: its gain and the matrix that multiplies it. */
struct after {
    const float *gain;
    const struct matrix *next;
};

static struct after after_layer(const struct model *m, int layer)
{
    const struct layer *next = &m->layers[layer] + 1;
    return layer + 1 < m->cfg.layers ? (struct after){next->attn_norm, &next->qkv}
                                     : (struct after){m->norm, &m->head};
}

/* Each row's experts, then x += shared(norm(x)) + experts(norm(x)); `expert` is this layer's part of
 * f->experts. */
static int run_moe(const struct forward *f, int layer, int *expert)
{
    const struct forward_scratch *s = f->scratch;
    const struct model *m = f->model;
    const struct layer *l = &m->layers[layer];
    const struct after after = after_layer(m, layer);
    const int partial = model_is_part(m);
    const struct route route = {.product = product_of_norm(f, &l->router, s->router),
                                .slot = f->rows.slot,
                                .expert = expert,
                                .score = s->score,
                                .top_k = m->cfg.top_k,
                                .x_form = moe_act_form(&l->gate_up, l->expert_gate_up)};
    const struct moe moe = {.shared = {&l->gate_up, &l->down},
                            .gate_up = l->expert_gate_up,
                            .down = l->expert_down,
                            .x = s->h,
                            .square = s->square,
                            .y = partial ? s->part : s->x,
                            .expert = expert,
                            .score = s->score,
                            .norm = norm_for(f, after.gain, after.next),
                            .rows = f->rows.n,
                            .experts = m->cfg.experts,
                            .top_k = m->cfg.top_k,
                            .threads = m->be->threads,
                            .round = rounding_of(m),
                            .bulk = s->bulk,
                            .partial = partial,
                            .eps = m->cfg.rms_eps,
                            .gemm = s->gemm,
                            .scratch = s->moe};
    TRY(m->be->ops->route(m->be, &route));
    TRY(m->be->ops->moe(m->be, &moe));
    return partial ? run_reduce(f, &moe.norm) : 0;
}

/* x += down(swiglu(norm(x))), and the norm that comes after this layer. */
static int run_ffn(const struct forward *f, int layer)
{
    const struct forward_scratch *s = f->scratch;
    const struct model *m = f->model;
    const struct layer *l = &m->layers[layer];
    const struct after after = after_layer(m, layer);
    struct gemm gate_up = product_of_norm(f, &l->gate_up, s->ffn);
    gate_up.y_form = l->down.form == MATRIX_FP8 ? ACT_F16 : ACT_BF16;
    TRY(round_input(f, &gate_up, s->h));
    TRY(m->be->ops->swiglu(m->be, &gate_up));
    return run_residual(f, &l->down, s->ffn, after.gain, after.next);
}

static int run_head(const struct forward *f, unsigned flags)
{
    struct model *m = f->model;
    const int partial = model_is_part(m);
    const struct gemm head = product_of_norm(f, &m->head, partial ? f->scratch->part_logits : f->logits);
    const struct allgather allgather = {.part = f->scratch->part_logits,
                                        .whole = f->logits,
                                        .rows = f->rows.n,
                                        .n = m->cfg.vocab,
                                        .each = m->part.vocab_each};
    const struct logits stats = {.logits = f->logits,
                                 .out = f->stats,
                                 .rows = f->rows.n,
                                 .vocab = m->cfg.vocab,
                                 .threads = m->be->threads,
                                 .with_entropy = (flags & FORWARD_ENTROPY) != 0};
    TRY(m->be->ops->gemm(m->be, &head));
    if (partial)
        TRY(m->be->ops->allgather(m->be, &allgather));
    return m->be->ops->logits(m->be, &stats);
}

/* What enters this layer, for who asked for it. */
static int run_tap(const struct forward *f, int layer)
{
    struct backend *be = f->model->be;
    const int hidden = f->model->cfg.hidden, plane = f->tap.rows ? f->tap.rows : f->max_rows;
    for (int t = 0; f->tap.out && t < FORWARD_TAPS; t++) {
        const struct gather copy = {.x = f->scratch->x,
                                    .y = f->tap.out + (size_t)t * (size_t)plane * (size_t)hidden,
                                    .rows = f->rows.n,
                                    .k = hidden,
                                    .dim = hidden,
                                    .threads = be->threads};
        if (f->tap.layer[t] == layer)
            TRY(be->ops->gather(be, &copy));
    }
    return 0;
}

/* Without logits the last layer is only wanted for its keys and values. */
int forward_layers(const struct forward *f, int reach, unsigned flags)
{
    const struct forward_scratch *s = f->scratch;
    struct model *m = f->model;
    const struct embed embed = {.w = &m->embed, .token = f->rows.token, .y = s->x, .rows = f->rows.n};
    const struct temperature temperature = {.rows = &f->rows,
                                            .scale = m->cfg.temperature_scale,
                                            .floor = m->cfg.temperature_floor,
                                            .out = s->temperature};
    int *expert = f->experts;
    const struct rmsnorm first = norm_for(f, m->layers[0].attn_norm, &m->layers[0].qkv);
    TRY(m->be->ops->embed(m->be, &embed));
    TRY(m->be->ops->rmsnorm(m->be, &first));
    TRY(m->be->ops->rope_table(m->be, &f->rows, m->inv_freq, m->cfg.head_dim, s->cos_sin));
    if (s->temperature)
        TRY(m->be->ops->rope_temperature(m->be, &temperature));
    for (int i = 0; i < m->cfg.layers; i++) {
        TRY(run_tap(f, i));
        TRY(run_cache(f, i));
        if (i == m->cfg.layers - 1 && !(flags & FORWARD_LOGITS))
            break;
        TRY(run_attention(f, i, reach));
        if (m->layers[i].kind & LAYER_MOE) {
            TRY(run_moe(f, i, expert));
            expert += (size_t)f->rows.n * (size_t)m->cfg.top_k;
        } else {
            TRY(run_ffn(f, i));
        }
    }
    return flags & FORWARD_LOGITS ? run_head(f, flags) : 0;
}
