/* head_pass: the draft network as operations of the backend. */
#include "engine/err.h"
#include "engine/head.h"
#include <math.h>
#include <string.h>

static int take(struct backend *be, size_t bytes, void *out)
{
    void *p = NULL;
    TRY(be->ops->alloc(be, bytes, &p));
    memcpy(out, &p, sizeof p);
    return 0;
}

static size_t most_scratch(const struct head_pass *p)
{
    const struct head *h = p->head;
    const struct backend *be = h->be;
    const struct matrix *all[] = {&h->fc[0], &h->qkv_e, &h->o, &h->gate_up, &h->down, &h->lm_head};
    size_t most = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const size_t bytes = be->ops->gemm_bytes(be, p->max_rows, all[i]->n, all[i]->k);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static int take_memory(struct head_pass *p)
{
    const struct head_config *c = &p->head->cfg;
    struct backend *be = p->head->be;
    const size_t rows = (size_t)p->max_rows, hidden = (size_t)c->hidden, f = sizeof(float);
    const int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    TRY(take(be, rows * (6 + (size_t)p->max_path) * sizeof(int), &p->ints));
    TRY(take(be, rows * hidden * f, &p->x));
    TRY(take(be, rows * hidden * f, &p->e));
    TRY(take(be, rows * (size_t)(q + 2 * kv) * f, &p->qkv));
    TRY(take(be, rows * (size_t)c->head_dim * f, &p->cos_sin));
    TRY(take(be, rows * (size_t)c->vocab * f, &p->logits));
    TRY(take(be, be->ops->act_bytes(be, p->max_rows, c->hidden), &p->norm_e));
    TRY(take(be, be->ops->act_bytes(be, p->max_rows, c->hidden), &p->norm_g));
    TRY(take(be, be->ops->act_bytes(be, p->max_rows, (c->norm_before_fc ? HEAD_TAPS : 1) * c->target_hidden),
             &p->feature_norm));
    if (c->norm_before_fc)
        TRY(take(be, HEAD_TAPS * rows * (size_t)c->target_hidden * f, &p->wide));
    TRY(take(be, be->ops->act_bytes(be, p->max_rows, q), &p->attended));
    TRY(take(be, be->ops->act_bytes(be, p->max_rows, c->ffn), &p->ffn));
    TRY(take(be, rows * (hidden + 15) / 16 * f + 64 * rows, &p->square_e));
    TRY(take(be, rows * (HEAD_TAPS * (size_t)c->target_hidden + hidden + 15) / 16 * f + 64 * rows,
             &p->square_g));
    TRY(take(be, HEAD_TAPS * rows * (size_t)c->target_hidden * f, &p->feature));
    TRY(take(be, most_scratch(p), &p->gemm));
    return take(be, be->ops->attention_bytes(be, p->max_rows, c->heads, c->kv_heads, c->head_dim, p->kv.cap),
                &p->attention);
}

int head_pass_init(struct head_pass *p, struct head *h, int slots, int cap, int max_rows, int max_depth)
{
    const struct head_config *c = &h->cfg;
    const struct model shape = {
        .be = h->be,
        .cfg = {.layers = 1, .heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim}};
    *p = (struct head_pass){.head = h, .max_rows = max_rows, .max_path = max_depth};
    int rc = kv_init(&p->kv, h->be, &shape, slots, cap);
    if (rc == 0)
        rc = take_memory(p);
    if (rc)
        head_pass_deinit(p);
    return rc;
}

void head_pass_deinit(struct head_pass *p)
{
    if (p->head) {
        struct backend *be = p->head->be;
        void *const lent[] = {p->ints,    p->x,      p->e,         p->qkv,          p->cos_sin,  p->logits,
                              p->norm_e,  p->norm_g, p->attended,  p->ffn,          p->square_e, p->square_g,
                              p->feature, p->gemm,   p->attention, p->feature_norm, p->wide};
        for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
            be->ops->release(be, lent[i]);
        kv_deinit(&p->kv);
    }
    *p = (struct head_pass){0};
}

static struct rows lay(struct head_pass *p, const struct head_row *rows, int n)
{
    const int width = p->max_rows;
    int *at = p->ints, used = 0;
    for (int i = 0; i < n; i++) {
        const struct head_row *r = &rows[i];
        const int steps = r->pos - r->base + 1;
        const int of[] = {r->token, r->slot, r->pos, r->cell, r->base, used};
        for (int k = 0; k < 6; k++)
            at[k * width + i] = of[k];
        for (int k = 0; k < steps; k++)
            at[6 * width + used++] = r->path[k];
    }
    return (struct rows){
        n, at, at + width, at + 2 * width, at + 3 * width, at + 4 * width, at + 5 * width, at + 6 * width};
}

static struct gemm product(const struct head_pass *p, const struct matrix *w, const void *x, void *y)
{
    return (struct gemm){.w = w,
                         .x = x,
                         .y = y,
                         .rows = p->n,
                         .threads = p->head->be->threads,
                         .scratch = p->gemm,
                         .eps = p->head->cfg.rms_eps};
}

static struct rmsnorm norm_of(const struct head_pass *p, const float *x, const float *w, void *act,
                              float *square)
{
    const struct head *h = p->head;
    return (struct rmsnorm){.x = x,
                            .w = w,
                            .y = {act, square, ACT_BF16},
                            .rows = p->n,
                            .dim = h->cfg.hidden,
                            .threads = h->be->threads,
                            .eps = h->cfg.rms_eps};
}

/* x = fc(norm of the features as one) */
static int fuse_normed(struct head_pass *p)
{
    const struct head *h = p->head;
    const size_t width = (size_t)h->cfg.target_hidden, plane = (size_t)p->max_rows * width;
    struct rmsnorm n = norm_of(p, p->wide, h->input_norm, p->feature_norm, p->square_g);
    struct gemm a = product(p, &h->fc[0], p->feature_norm, p->x);
    n.dim = HEAD_TAPS * h->cfg.target_hidden;
    a.square = p->square_g;
    for (int i = 0; i < p->n; i++)
        for (int t = 0; t < HEAD_TAPS; t++)
            memcpy(p->wide + ((size_t)i * HEAD_TAPS + (size_t)t) * width,
                   p->feature + (size_t)t * plane + (size_t)i * width, width * sizeof(float));
    TRY(h->be->ops->rmsnorm(h->be, &n));
    return h->be->ops->gemm(h->be, &a);
}

/* x = fc(features) */
static int fuse(struct head_pass *p)
{
    const struct head *h = p->head;
    const size_t plane = (size_t)p->max_rows * (size_t)h->cfg.target_hidden;
    for (int t = 0; t < HEAD_TAPS; t++) {
        const float *feature = p->feature + (size_t)t * plane;
        struct gemm a = product(p, &h->fc[t], feature, p->x);
        a.accumulate = t > 0;
        if (h->cfg.fc_norm) {
            struct rmsnorm n = norm_of(p, feature, h->fc_norm[t], p->feature_norm, p->square_g);
            n.dim = h->cfg.target_hidden;
            TRY(h->be->ops->rmsnorm(h->be, &n));
            a.x = p->feature_norm;
            a.square = p->square_g;
        }
        TRY(h->be->ops->gemm(h->be, &a));
    }
    return 0;
}

/* x += W y, then its norm with gain w. */
static int residual(struct head_pass *p, const struct matrix *w, void *y, const float *gain)
{
    struct residual a = {.product = product(p, w, y, p->x),
                         .norm = norm_of(p, p->x, gain, p->norm_g, p->square_g)};
    a.product.accumulate = 1;
    return p->head->be->ops->residual(p->head->be, &a);
}

static int attend(struct head_pass *p, const struct rows *rows)
{
    const struct head *h = p->head;
    const struct head_config *c = &h->cfg;
    struct backend *be = h->be;
    struct gemm of_embedding = product(p, &h->qkv_e, p->norm_e, p->qkv);
    struct qkv a = {.product = product(p, &h->qkv_g, p->norm_g, p->qkv),
                    .rope = {.rows = rows,
                             .qkv = p->qkv,
                             .cos_sin = p->cos_sin,
                             .kv = p->kv.layers[0],
                             .heads = c->heads,
                             .threads = be->threads,
                             .rotate = 1,
                             .qk_norm = c->qk_norm ? c->rms_eps : 0,
                             .qk_gain = h->qk_gain}};
    const struct attention attention = {.rows = rows,
                                        .qkv = p->qkv,
                                        .kv = p->kv.layers[0],
                                        .y = p->attended,
                                        .scratch = p->attention,
                                        .heads = c->heads,
                                        .threads = be->threads,
                                        .reach = p->kv.cap,
                                        .y_form = ACT_BF16,
                                        .scale = 1.0f / sqrtf((float)c->head_dim)};
    of_embedding.square = p->square_e;
    a.product.square = p->square_g;
    a.product.accumulate = 1;
    TRY(be->ops->gemm(be, &of_embedding));
    TRY(be->ops->qkv(be, &a));
    return be->ops->attention(be, &attention);
}

static int run_mlp(struct head_pass *p)
{
    const struct head *h = p->head;
    struct gemm gate_up = product(p, &h->gate_up, p->norm_g, p->ffn);
    gate_up.square = p->square_g;
    TRY(h->be->ops->swiglu(h->be, &gate_up));
    return residual(p, &h->down, p->ffn, h->norm);
}

int head_pass_run(struct head_pass *p, const struct head_row *row, int n, int with_features)
{
    const struct head *h = p->head;
    struct backend *be = h->be;
    const size_t bytes = (size_t)n * (size_t)h->cfg.hidden * sizeof(float);
    const struct rows rows = lay(p, row, n);
    const struct embed embed = {
        .w = h->embed.data ? &h->embed : &h->target->embed, .token = rows.token, .y = p->e, .rows = n};
    p->n = n;
    if (with_features)
        TRY(h->cfg.norm_before_fc ? fuse_normed(p) : fuse(p));
    const struct rmsnorm norm_e = norm_of(p, p->e, h->embed_norm, p->norm_e, p->square_e);
    const struct rmsnorm norm_g = norm_of(p, p->x, h->hidden_norm, p->norm_g, p->square_g);
    TRY(be->ops->embed(be, &embed));
    TRY(be->ops->rmsnorm(be, &norm_e));
    TRY(be->ops->rmsnorm(be, &norm_g));
    TRY(be->ops->rope_table(be, &rows, h->inv_freq, h->cfg.head_dim, p->cos_sin));
    TRY(attend(p, &rows));
    if (h->cfg.norm_before_residual)
        memcpy(p->x, p->norm_g, bytes);
    TRY(residual(p, &h->o, p->attended, h->ffn_norm));
    TRY(run_mlp(p));
    struct gemm logits = product(p, h->lm_head.data ? &h->lm_head : &h->target->head, p->norm_g, p->logits);
    logits.square = p->square_g;
    TRY(be->ops->gemm(be, &logits));
    if (h->cfg.feed_normed)
        memcpy(p->x, p->norm_g, bytes);
    return be->ops->sync(be);
}
