/* forward: a pass is planned on the host (cells, positions, paths) and uploaded once; then the layers run
 * back to back (forward_layers.c). */
#include "engine/forward.h"
#include "engine/err.h"
#include "engine/forward_parts.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_MAX = 8192, REACH_MIN = 256, PATH_ROWS = 128 };

/* The arrays of struct rows in one block of ints, [6][max_rows], then the paths. */
enum { AT_TOKEN, AT_SLOT, AT_POS, AT_CELL, AT_BASE, AT_PATH_OFF, AT_PATH };

static int alloc_bytes(struct backend *be, size_t bytes, float **out)
{
    void *p = NULL;
    TRY(be->ops->alloc(be, bytes, &p));
    *out = p;
    return 0;
}

static int alloc_floats(struct backend *be, size_t a, size_t b, float **out)
{
    size_t n;
    if (__builtin_mul_overflow(a, b, &n) || __builtin_mul_overflow(n, sizeof(float), &n))
        FAIL(ERR_MEMORY, "forward: %zu x %zu floats are more bytes than an address can say", a, b);
    return alloc_bytes(be, n, out);
}

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* What the most demanding product of a pass is lent. All experts have the same shapes. */
static size_t gemm_bytes(const struct forward *f)
{
    const struct backend *be = f->model->be;
    const struct matrix *head = &f->model->head;
    size_t most = be->ops->gemm_bytes(be, f->max_logit_rows < BULK_ROWS ? f->max_logit_rows : BULK_ROWS,
                                      head->n, head->k);
    for (int i = 0; i < f->model->cfg.layers; i++) {
        const struct layer *l = &f->model->layers[i];
        const struct matrix *const all[] = {
            &l->qkv, &l->o, &l->gate_up, &l->down, &l->router, l->expert_gate_up, l->expert_down};
        const size_t n = sizeof all / sizeof *all - (l->kind & LAYER_MOE ? 0 : 3);
        for (size_t j = 0; j < n; j++)
            most = max_size(most, be->ops->gemm_bytes(be, f->max_rows, all[j]->n, all[j]->k));
    }
    return most;
}

static int moe_layers(const struct model *m)
{
    int n = 0;
    for (int i = 0; i < m->cfg.layers; i++)
        n += (m->layers[i].kind & LAYER_MOE) != 0;
    return n;
}

static int alloc_experts(struct forward *f)
{
    struct forward_scratch *s = f->scratch;
    struct backend *be = f->model->be;
    const struct model_config *c = &f->model->cfg;
    const size_t rows = (size_t)f->max_rows, chosen = rows * (size_t)c->top_k,
                 layers = (size_t)moe_layers(f->model);
    void *experts = NULL;
    f->moe_layers = (int)layers;
    if (layers == 0)
        return 0;
    TRY(alloc_floats(be, rows, (size_t)c->experts, &s->router));
    TRY(alloc_floats(be, chosen, 1, &s->score));
    TRY(alloc_bytes(be, be->ops->moe_bytes(be, f->max_rows, c->hidden, c->ffn, c->experts, c->top_k),
                    &s->moe));
    TRY(be->ops->alloc(be, layers * chosen * sizeof *f->experts, &experts));
    f->experts = experts;
    if (!be->host_reads)
        TRY(be->ops->alloc_host(be, layers * chosen * sizeof *f->experts, &s->copy_experts));
    f->host_experts = be->host_reads ? f->experts : s->copy_experts;
    return 0;
}

static int alloc_activations(struct forward *f)
{
    struct forward_scratch *s = f->scratch;
    struct backend *be = f->model->be;
    const struct backend_ops *ops = be->ops;
    const struct model_config *c = &f->model->cfg;
    const size_t rows = (size_t)f->max_rows;
    const int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    TRY(alloc_floats(be, rows, (size_t)c->hidden, &s->x));
    TRY(alloc_floats(be, rows, (size_t)q + 2 * (size_t)kv, &s->qkv));
    TRY(alloc_floats(be, rows, (size_t)c->head_dim, &s->cos_sin));
    TRY(ops->alloc(be, ops->act_bytes(be, f->max_rows, c->hidden), &s->h));
    TRY(ops->alloc(be, ops->act_bytes(be, f->max_rows, q), &s->attended));
    TRY(ops->alloc(be, ops->act_bytes(be, f->max_rows, max_int(c->ffn, c->ffn_dense)), &s->ffn));
    TRY(alloc_floats(be, rows, ((size_t)c->hidden + 15) / 16, &s->square));
    TRY(alloc_floats(be, rows, 1, &s->row_scale));
    TRY(alloc_bytes(be, gemm_bytes(f), &s->gemm));
    if (c->temperature_scale != 0)
        TRY(alloc_floats(be, rows, 1, &s->temperature));
    TRY(alloc_experts(f));
    return alloc_bytes(be,
                       ops->attention_bytes(be, f->max_rows, c->heads, c->kv_heads, c->head_dim, f->kv->cap),
                       &s->attention);
}

static int alloc_logits(struct forward *f)
{
    struct forward_scratch *s = f->scratch;
    struct backend *be = f->model->be;
    const size_t rows = (size_t)f->max_logit_rows, vocab = (size_t)f->model->cfg.vocab;
    void *stats = NULL;
    TRY(alloc_floats(be, rows, vocab, &f->logits));
    TRY(be->ops->alloc(be, rows * sizeof *f->stats, &stats));
    f->stats = stats;
    if (!be->host_reads) {
        TRY(be->ops->alloc_host(be, rows * vocab * sizeof *f->logits, &s->copy_logits));
        TRY(be->ops->alloc_host(be, rows * sizeof *f->stats, &s->copy_stats));
    }
    f->host_logits = be->host_reads ? f->logits : s->copy_logits;
    f->host_stats = be->host_reads ? f->stats : s->copy_stats;
    return 0;
}

/* A path names at most all earlier rows of its pass and the row itself. Rows of long passes continue a text
 * and have none. */
static int alloc_plan(struct forward *f)
{
    struct forward_scratch *s = f->scratch;
    const int paths = max_int(f->max_logit_rows, f->max_rows < PATH_ROWS ? f->max_rows : PATH_ROWS);
    s->path_ints = (size_t)paths * ((size_t)paths + 1) / 2;
    const size_t n = (size_t)f->max_rows, ints = AT_PATH * n + s->path_ints;
    void *device = NULL;
    s->staging = calloc(ints, sizeof *s->staging);
    s->next = calloc((size_t)f->kv->slots, sizeof *s->next);
    s->keep = calloc(n, sizeof *s->keep);
    s->in_place = calloc(n, sizeof *s->in_place);
    s->rows = calloc(n, sizeof *s->rows);
    if (!s->staging || !s->next || !s->keep || !s->in_place || !s->rows)
        FAIL(ERR_MEMORY, "forward: out of memory for the plan of %d rows", f->max_rows);
    for (int i = 0; i < f->max_rows; i++)
        s->keep[i] = i;
    TRY(f->model->be->ops->alloc(f->model->be, ints * sizeof *s->device, &device));
    s->device = device;
    f->rows = (struct rows){.token = s->device + AT_TOKEN * n,
                            .slot = s->device + AT_SLOT * n,
                            .pos = s->device + AT_POS * n,
                            .cell = s->device + AT_CELL * n,
                            .base = s->device + AT_BASE * n,
                            .path_off = s->device + AT_PATH_OFF * n,
                            .path = s->device + AT_PATH * n};
    return 0;
}

int forward_init(struct forward *f, struct model *m, struct kv *kv, int max_rows, int max_logit_rows)
{
    struct forward new = {.model = m, .kv = kv, .max_rows = max_rows, .max_logit_rows = max_logit_rows};
    assert(max_logit_rows >= 0);
    if (max_rows < 1 || max_rows > ROWS_MAX)
        FAIL(ERR_LIMIT, "forward: expected 1 to %d rows a pass, found %d", ROWS_MAX, max_rows);
    new.scratch = calloc(1, sizeof(struct forward_scratch));
    if (!new.scratch)
        FAIL(ERR_MEMORY, "forward: out of memory");
    int rc = alloc_plan(&new);
    if (rc == 0)
        rc = alloc_activations(&new);
    if (rc == 0)
        rc = alloc_logits(&new);
    if (rc == 0)
        *f = new;
    else
        forward_deinit(&new);
    return rc;
}

void forward_deinit(struct forward *f)
{
    struct forward_scratch *s = f->scratch;
    if (s) {
        struct backend *be = f->model->be;
        void *const lent[] = {
            s->device,    s->x,         s->h,      s->qkv,    s->attended, s->ffn,          s->cos_sin,
            s->gemm,      s->attention, f->logits, s->square, f->stats,    s->copy_logits,  s->copy_stats,
            s->row_scale, s->moe,       s->router, s->score,  f->experts,  s->copy_experts, s->temperature};
        be->ops->pass_forget(be, s);
        for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
            be->ops->release(be, lent[i]);
        free(s->staging);
        free(s->next);
        free(s->keep);
        free(s->in_place);
        free(s->rows);
    }
    free(s);
    *f = (struct forward){0};
}

/* Cells of positions committed..pos of row i, by walking up its parents; returns how many. */
static int write_path(const int *cell, const struct forward_row *rows, int i, int length, int *path)
{
    for (int at = length - 1; at >= 0; at--, i = rows[i].parent)
        path[at] = cell[i];
    return length;
}

/* Give row i its position, cell and path. Nothing of the cache changes before the pass has run. */
static int plan_row(const struct forward *f, const struct forward_row *rows, int i, int *n_path)
{
    struct forward_scratch *s = f->scratch;
    const struct forward_row *r = &rows[i];
    const int n = f->max_rows, vocab = f->model->cfg.vocab, limit = f->model->cfg.max_positions;
    int *plan = s->staging, *pos = plan + AT_POS * n, *cell = plan + AT_CELL * n;
    assert(r->slot >= 0 && r->slot < f->kv->slots && r->parent >= -1 && r->parent < i);
    assert(r->parent < 0 || rows[r->parent].slot == r->slot);
    const int committed = f->kv->slot[r->slot].committed;
    if (r->token < 0 || r->token >= vocab)
        FAIL(ERR_LIMIT,
             "forward: row %d: expected a token from 0 to %d, found %d: tokenizer and model differ", i,
             vocab - 1, r->token);
    pos[i] = r->parent < 0 ? committed : pos[r->parent] + 1;
    cell[i] = s->next[r->slot]++;
    if (pos[i] >= limit)
        FAIL(ERR_LIMIT, "forward: row %d: expected a position below the model's context of %d, found %d", i,
             limit, pos[i]);
    if (cell[i] >= f->kv->cap)
        FAIL(ERR_LIMIT, "forward: row %d: the cache of slot %d is full: it has %d cells; ask for more", i,
             r->slot, f->kv->cap);
    s->in_place[i] = cell[i] == pos[i] && (r->parent < 0 || s->in_place[r->parent]);
    plan[AT_TOKEN * n + i] = r->token;
    plan[AT_SLOT * n + i] = r->slot;
    plan[AT_BASE * n + i] = s->in_place[i] ? pos[i] + 1 : committed;
    plan[AT_PATH_OFF * n + i] = *n_path;
    if (s->in_place[i])
        return 0;
    if ((size_t)*n_path + (size_t)(pos[i] - committed + 1) > s->path_ints)
        FAIL(ERR_LIMIT, "forward: row %d: the paths of a pass of %d rows have room for %zu cells", i, n,
             s->path_ints);
    *n_path += write_path(cell, rows, i, pos[i] - committed + 1, plan + AT_PATH * n + *n_path);
    return 0;
}

/* One slot's text, each row in the cell of its position. */
static int plan_is_chain(const struct forward *f, const struct forward_row *rows, int n)
{
    for (int i = 0; i < n; i++)
        if (!f->scratch->in_place[i] || rows[i].slot != rows[0].slot)
            return 0;
    return 1;
}

/* Every planned row's position is below it. */
static int plan_end(const struct forward *f, int n)
{
    const int *pos = f->scratch->staging + AT_POS * f->max_rows;
    int end = 0;
    for (int i = 0; i < n; i++)
        end = max_int(end, pos[i] + 1);
    return end;
}

static int plan(struct forward *f, const struct forward_row *rows, int n)
{
    struct forward_scratch *s = f->scratch;
    struct backend *be = f->model->be;
    int n_path = 0;
    for (int i = 0; i < f->kv->slots; i++)
        s->next[i] = f->kv->slot[i].used;
    for (int i = 0; i < n; i++)
        TRY(plan_row(f, rows, i, &n_path));
    f->rows.n = n;
    size_t ints = AT_PATH * (size_t)f->max_rows + (size_t)n_path;
    return be->ops->upload(be, s->device, s->staging, ints * sizeof *s->device);
}

int forward_enqueue(struct forward *f, const struct rows *rows, int reach, unsigned flags)
{
    const struct rows own = f->rows;
    assert(rows->n >= 1 && rows->n <= (flags & FORWARD_LOGITS ? f->max_logit_rows : f->max_rows));
    f->rows = *rows;
    f->scratch->bulk = (flags & FORWARD_BULK) != 0;
    const int rc = forward_layers(f, reach, flags);
    f->rows = own; /* those that forward_run plans */
    return rc;
}

int forward_reach(const struct forward *f, int end)
{
    int reach = REACH_MIN;
    while (reach < end)
        reach *= 2;
    return reach < f->kv->cap ? reach : f->kv->cap;
}

/* Where the host cannot read the backend's memory: the rows of this pass, in order behind it. */
static int copy_to_host(const struct forward *f, int n)
{
    const struct forward_scratch *s = f->scratch;
    struct backend *be = f->model->be;
    const size_t rows = (size_t)n, vocab = (size_t)f->model->cfg.vocab;
    if (!s->copy_logits)
        return 0;
    if (s->copy_experts)
        TRY(be->ops->download(be, s->copy_experts, f->experts,
                              (size_t)f->moe_layers * rows * (size_t)f->model->cfg.top_k *
                                  sizeof *f->experts));
    TRY(be->ops->download(be, s->copy_stats, f->stats, rows * sizeof *f->stats));
    return be->ops->download(be, s->copy_logits, f->logits, rows * vocab * sizeof *f->logits);
}

/* The same operations for the same number of rows and reach, step after step: what a backend may record once.
 */
static int run_verify(struct forward *f, int reach, unsigned flags)
{
    const struct backend_ops *ops = f->model->be->ops;
    int recorded = 0;
    TRY(ops->pass_begin(f->model->be, (struct pass_key){f->scratch, f->rows.n, reach, flags}, &recorded));
    if (!recorded)
        TRY(ops->pass_end(f->model->be, forward_enqueue(f, &f->rows, reach, flags)));
    return copy_to_host(f, f->rows.n);
}

int forward_run(struct forward *f, const struct forward_row *rows, int n, unsigned flags)
{
    struct forward_scratch *s = f->scratch;
    const int limit =
        flags & FORWARD_LOGITS && f->max_logit_rows < f->max_rows ? f->max_logit_rows : f->max_rows;
    if (n < 1 || n > limit)
        FAIL(ERR_LIMIT, "forward: expected 1 to %d rows in a pass%s, found %d", limit,
             flags & FORWARD_LOGITS ? " with logits" : "", n);
    TRY(plan(f, rows, n));
    if (!(flags & FORWARD_LOGITS) && n > BULK_ROWS && plan_is_chain(f, rows, n))
        flags |= FORWARD_BULK;
    const int reach = forward_reach(f, plan_end(f, n));
    TRY(flags & FORWARD_LOGITS ? run_verify(f, reach, flags) : forward_enqueue(f, &f->rows, reach, flags));
    if (flags & FORWARD_LOGITS) /* prefill goes into the order of operations and is not waited for */
        TRY(f->model->be->ops->sync(f->model->be));
    for (int i = 0; i < n; i++)
        f->kv->slot[rows[i].slot].used = s->next[rows[i].slot];
    return 0;
}

int forward_prefill(struct forward *f, int slot, const int *tokens, int n)
{
    struct forward_scratch *s = f->scratch;
    assert(slot >= 0 && slot < f->kv->slots);
    const struct kv_slot *at = &f->kv->slot[slot];
    assert(at->used == at->committed);
    for (int done = 0; done < n;) {
        const int to_border = f->max_rows - at->committed % f->max_rows;
        const int block = n - done < to_border ? n - done : to_border;
        for (int i = 0; i < block; i++)
            s->rows[i] = (struct forward_row){.token = tokens[done + i], .slot = slot, .parent = i - 1};
        TRY(forward_run(f, s->rows, block, FORWARD_PREFILL));
        TRY(kv_commit(f->kv, slot, s->keep, block));
        done += block;
    }
    return 0;
}
