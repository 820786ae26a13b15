/* head_pass: the draft network as operations of the backend, none of which the host waits for. */
#include "engine/err.h"
#include "engine/head.h"
#include <math.h>
#include <stdlib.h>

static const struct matrix *head_of(const struct head_pass *p)
{
    return p->head->lm_head.data ? &p->head->lm_head : &p->head->target->head;
}

static size_t most_scratch(const struct head_pass *p)
{
    const struct head *h = p->head;
    const struct backend *be = h->be;
    const struct matrix *all[] = {&h->fc, &h->qkv, &h->o, &h->gate_up, &h->down, head_of(p)};
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
    const size_t ints = rows * (6 + (size_t)p->max_path);
    p->staging = calloc(ints, sizeof *p->staging);
    if (!p->staging)
        FAIL(ERR_MEMORY, "head: out of memory for a pass of %d rows", p->max_rows);
    TRY(backend_take(be, ints, sizeof *p->ints, &p->ints));
    TRY(backend_take(be, rows * hidden, f, &p->x));
    TRY(backend_take(be, rows * hidden, f, &p->e));
    TRY(backend_take(be, rows * (size_t)(q + 2 * kv), f, &p->qkv));
    TRY(backend_take(be, rows * (size_t)c->head_dim, f, &p->cos_sin));
    TRY(backend_take(be, rows * (size_t)c->vocab, f, &p->logits));
    TRY(backend_take(be, HEAD_TAPS * rows * (size_t)c->target_hidden, f, &p->feature));
    p->source.rows = p->feature;
    p->source.plane = p->max_rows;
    TRY(backend_take(be, 1, be->ops->act_bytes(be, p->max_rows, HEAD_TAPS * c->target_hidden), &p->features));
    TRY(backend_take(be, 1, be->ops->act_bytes(be, p->max_rows, 2 * c->hidden), &p->beside));
    TRY(backend_take(be, 1, be->ops->act_bytes(be, p->max_rows, c->hidden), &p->normed));
    TRY(backend_take(be, 1, be->ops->act_bytes(be, p->max_rows, q), &p->attended));
    TRY(backend_take(be, 1, be->ops->act_bytes(be, p->max_rows, c->ffn), &p->ffn));
    TRY(backend_take(be, rows * ((hidden + 15) / 16), f, &p->square));
    if (c->norm_before_fc)
        TRY(backend_take(be, HEAD_TAPS * rows * (size_t)c->target_hidden, f, &p->wide));
    TRY(backend_take(be, 1, most_scratch(p), &p->gemm));
    return backend_take(
        be, 1, be->ops->attention_bytes(be, p->max_rows, c->heads, c->kv_heads, c->head_dim, p->kv.cap),
        &p->attention);
}

int head_pass_init(struct head_pass *p, struct head *h, int slots, int cap, int max_rows, int max_depth)
{
    const struct head_config *c = &h->cfg;
    const struct model shape = {
        .be = h->be,
        .cfg = {.layers = 1, .heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim},
        .part = {.kv_heads = c->kv_heads}};
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
        void *const lent[] = {p->ints,    p->feature,  p->x,        p->logits,    p->e,      p->qkv,
                              p->cos_sin, p->square,   p->gemm,     p->attention, p->normed, p->beside,
                              p->wide,    p->features, p->attended, p->ffn};
        for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
            be->ops->release(be, lent[i]);
        kv_deinit(&p->kv);
        free(p->staging);
    }
    *p = (struct head_pass){0};
}

static struct rows rows_at(int *at, int width, int n)
{
    return (struct rows){
        n, at, at + width, at + 2 * width, at + 3 * width, at + 4 * width, at + 5 * width, at + 6 * width};
}

/* Describe the rows in backend memory. */
static int lay(struct head_pass *p, const struct head_row *rows, int n)
{
    const int width = p->max_rows;
    int *at = p->staging, used = 0;
    for (int i = 0; i < n; i++) {
        const struct head_row *r = &rows[i];
        const int steps = r->pos - r->base + 1;
        const int of[] = {r->token, r->slot, r->pos, r->cell, r->base, used};
        for (int k = 0; k < 6; k++)
            at[k * width + i] = of[k];
        for (int k = 0; k < steps; k++)
            at[6 * width + used++] = r->path[k];
    }
    const size_t ints = 6 * (size_t)width + (size_t)used;
    return p->head->be->ops->upload(p->head->be, p->ints, at, ints * sizeof *at);
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

/* A product of the stream's norm. */
static struct gemm product_of_norm(const struct head_pass *p, const struct matrix *w, void *y)
{
    struct gemm a = product(p, w, p->normed, y);
    a.square = p->square;
    return a;
}

/* What a matrix multiplies is kept in the form that goes with its own. */
static enum act_form form_for(const struct matrix *w)
{
    return w->form == MATRIX_FP8 ? ACT_F16 : ACT_BF16;
}

/* Rows as they are, or normed with gain w, to the first columns of what `next` multiplies. */
static struct gather part_of(const struct head_pass *p, const float *x, const float *w, int dim,
                             const struct matrix *next, void *act)
{
    return (struct gather){.x = x,
                           .w = w,
                           .act = act,
                           .k = next->k,
                           .form = form_for(next),
                           .rows = p->n,
                           .dim = dim,
                           .threads = p->head->be->threads,
                           .eps = p->head->cfg.rms_eps};
}

/* x = norm(x) with gain w */
static int norm_stream(struct head_pass *p, const float *w)
{
    const struct head *h = p->head;
    const struct gather a = {.x = p->x,
                             .w = w,
                             .y = p->x,
                             .k = h->cfg.hidden,
                             .rows = p->n,
                             .dim = h->cfg.hidden,
                             .threads = h->be->threads,
                             .eps = h->cfg.rms_eps};
    return h->be->ops->gather(h->be, &a);
}

/* x = fc(features), each or all of them normed before or none */
static int fuse(struct head_pass *p)
{
    const struct head *h = p->head;
    const int dim = h->cfg.target_hidden, wide = HEAD_TAPS * dim;
    const struct gemm fc = product(p, &h->fc, p->features, p->x);
    for (int t = 0; t < HEAD_TAPS; t++) {
        const float *feature = p->source.rows + (size_t)t * (size_t)p->source.plane * (size_t)dim;
        struct gather a =
            part_of(p, feature, h->cfg.fc_norm ? h->fc_norm[t] : NULL, dim, &h->fc, p->features);
        a.from = p->source.from;
        a.column = t * dim;
        a.y = p->wide;
        TRY(h->be->ops->gather(h->be, &a));
    }
    const struct gather norm = part_of(p, p->wide, h->input_norm, wide, &h->fc, p->features);
    if (h->cfg.norm_before_fc)
        TRY(h->be->ops->gather(h->be, &norm));
    return h->be->ops->gemm(h->be, &fc);
}

/* norm(e) beside norm(g); the stream goes on from g or from its norm. */
static int read_input(struct head_pass *p, const struct rows *rows)
{
    const struct head *h = p->head;
    const struct backend_ops *ops = h->be->ops;
    const int hidden = h->cfg.hidden;
    const struct embed embed = {
        .w = h->embed.data ? &h->embed : &h->target->embed, .token = rows->token, .y = p->e, .rows = p->n};
    const struct gather e = part_of(p, p->e, h->embed_norm, hidden, &h->qkv, p->beside);
    struct gather g = part_of(p, p->x, h->hidden_norm, hidden, &h->qkv, p->beside);
    g.column = hidden;
    TRY(ops->embed(h->be, &embed));
    TRY(ops->gather(h->be, &e));
    if (h->cfg.norm_before_residual) {
        TRY(norm_stream(p, h->hidden_norm));
        g.w = NULL;
    }
    return ops->gather(h->be, &g);
}

/* x += W y, then its norm with gain w for the next product. */
static int residual(struct head_pass *p, const struct matrix *w, void *y, const float *gain,
                    const struct matrix *next)
{
    const struct head *h = p->head;
    struct residual a = {.product = product(p, w, y, p->x),
                         .norm = {.x = p->x,
                                  .w = gain,
                                  .y = {p->normed, p->square, form_for(next)},
                                  .rows = p->n,
                                  .dim = h->cfg.hidden,
                                  .threads = h->be->threads,
                                  .eps = h->cfg.rms_eps}};
    a.product.accumulate = 1;
    return h->be->ops->residual(h->be, &a);
}

/* Queries, and keys and values in their cells. */
static int run_cache(struct head_pass *p, const struct rows *rows)
{
    const struct head *h = p->head;
    const struct qkv qkv = {.product = product(p, &h->qkv, p->beside, p->qkv),
                            .rope = {.rows = rows,
                                     .qkv = p->qkv,
                                     .cos_sin = p->cos_sin,
                                     .kv = p->kv.layers[0],
                                     .heads = h->cfg.heads,
                                     .threads = h->be->threads,
                                     .rotate = 1,
                                     .qk_norm = h->cfg.qk_norm ? h->cfg.rms_eps : 0,
                                     .qk_gain = h->qk_gain}};
    TRY(h->be->ops->rope_table(h->be, rows, h->inv_freq, h->cfg.head_dim, p->cos_sin));
    return h->be->ops->qkv(h->be, &qkv);
}

static int run_attention(struct head_pass *p, const struct rows *rows, int reach)
{
    const struct head *h = p->head;
    const struct attention a = {.rows = rows,
                                .qkv = p->qkv,
                                .kv = p->kv.layers[0],
                                .y = p->attended,
                                .scratch = p->attention,
                                .heads = h->cfg.heads,
                                .threads = h->be->threads,
                                .reach = reach,
                                .y_form = form_for(&h->o),
                                .scale = 1.0f / sqrtf((float)h->cfg.head_dim)};
    TRY(h->be->ops->attention(h->be, &a));
    return residual(p, &h->o, p->attended, h->ffn_norm, &h->gate_up);
}

static int run_mlp(struct head_pass *p)
{
    const struct head *h = p->head;
    struct gemm gate_up = product_of_norm(p, &h->gate_up, p->ffn);
    gate_up.y_form = form_for(&h->down);
    TRY(h->be->ops->swiglu(h->be, &gate_up));
    return residual(p, &h->down, p->ffn, h->norm, head_of(p));
}

/* Logits, and what the next g is. */
static int run_out(struct head_pass *p)
{
    const struct head *h = p->head;
    const struct gemm logits = product_of_norm(p, head_of(p), p->logits);
    TRY(h->be->ops->gemm(h->be, &logits));
    return h->cfg.feed_normed ? norm_stream(p, h->norm) : 0;
}

int head_pass_enqueue(struct head_pass *p, const struct rows *rows, int reach, unsigned flags)
{
    p->n = rows->n;
    if (flags & HEAD_FEATURES)
        TRY(fuse(p));
    TRY(read_input(p, rows));
    TRY(run_cache(p, rows));
    if (flags & HEAD_CACHE)
        return 0;
    TRY(run_attention(p, rows, reach));
    TRY(run_mlp(p));
    return run_out(p);
}

int head_pass_start(struct head_pass *p, const struct head_row *row, int n, unsigned flags)
{
    const struct rows rows = rows_at(p->ints, p->max_rows, n);
    int reach = 1;
    for (int i = 0; i < n; i++)
        reach = row[i].pos >= reach ? row[i].pos + 1 : reach;
    TRY(lay(p, row, n));
    return head_pass_enqueue(p, &rows, reach, flags);
}

int head_pass_run(struct head_pass *p, const struct head_row *rows, int n, unsigned flags)
{
    TRY(head_pass_start(p, rows, n, flags));
    return p->head->be->ops->sync(p->head->be);
}
