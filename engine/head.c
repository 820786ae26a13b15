/* head: the tensors of an EAGLE-3 head, by the names that its trainers give them (model-formats D.4, D.5). */
#include "engine/head.h"
#include "engine/err.h"
#include "engine/weights.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS_MAX = 3, SYNTHETIC_SEED = 11 };

struct loading {
    struct head *h;
    struct weights from;
    struct checkpoint *ckpt; /* NULL: synthetic */
    const char *layer;       /* "midlayer." or its other names */
};

static struct weight_want want_of(const char *prefix, const char *name, int n, int k)
{
    struct weight_want w = {.n = n, .k = k};
    snprintf(w.name, sizeof w.name, "%s%s", prefix, name);
    return w;
}

/* Columns [first, first + k) of each part, stacked, to one matrix. */
static int pack_columns(struct loading *l, struct matrix *out, const struct weight *part, int n_parts,
                        int first, int k)
{
    struct matrix_part cut[PARTS_MAX];
    void *copy[PARTS_MAX] = {NULL};
    int rc = 0;
    for (int i = 0; i < n_parts; i++) {
        const size_t size = dtype_size(part[i].part.dtype), row = (size_t)k * size;
        const size_t stride = (size_t)(part[i].tensor ? part[i].tensor->shape[1] : (size_t)k) * size;
        cut[i] = part[i].part;
        if (!part[i].tensor || stride == row)
            continue;
        copy[i] = malloc((size_t)cut[i].n * row);
        for (int r = 0; copy[i] && r < cut[i].n; r++)
            memcpy((char *)copy[i] + (size_t)r * row,
                   (const char *)cut[i].data + (size_t)r * stride + (size_t)first * size, row);
        cut[i].data = copy[i];
        rc = copy[i] ? rc : ERR_SET(ERR_MEMORY, "head: out of memory for a part of %zu bytes", row);
    }
    const struct matrix_source source = {.parts = cut, .n_parts = n_parts, .k = k};
    if (rc == 0)
        rc = l->h->be->ops->matrix(l->h->be, out, &source);
    for (int i = 0; i < n_parts; i++)
        free(copy[i]);
    return rc;
}

/* Parts [n, count * k] of the file become `count` matrices, one of each stretch of k columns. */
static int load_split(struct loading *l, struct matrix *const *out, int count, struct weight_want *want,
                      int n_parts, int k)
{
    int rc = 0;
    for (int i = 0; i < count && rc == 0; i++) {
        struct weight got[PARTS_MAX] = {{.tensor = NULL}};
        for (int p = 0; p < n_parts && rc == 0; p++) {
            want[p].k = l->ckpt ? count * k : k;
            rc = weights_matrix(&l->from, &want[p], &got[p]);
        }
        if (rc == 0)
            rc = pack_columns(l, out[i], got, n_parts, i * k, k);
        for (int p = 0; p < n_parts; p++)
            weights_drop(&l->from, &got[p]);
    }
    return rc;
}

static int load_plain(struct loading *l, struct matrix *out, struct weight_want want)
{
    return load_split(l, &out, 1, &want, 1, want.k);
}

static int load_gate_up(struct loading *l)
{
    const struct head_config *c = &l->h->cfg;
    struct weight got[2] = {{.tensor = NULL}};
    struct weight_want want[2] = {want_of(l->layer, "mlp.gate_proj", c->ffn, c->hidden),
                                  want_of(l->layer, "mlp.up_proj", c->ffn, c->hidden)};
    int rc = weights_matrix(&l->from, &want[0], &got[0]);
    if (rc == 0)
        rc = weights_matrix(&l->from, &want[1], &got[1]);
    if (rc == 0) {
        const struct matrix_part parts[] = {got[0].part, got[1].part};
        const struct matrix_source source = {
            .parts = parts, .n_parts = 2, .k = c->hidden, .flags = MATRIX_INTERLEAVE};
        rc = l->h->be->ops->matrix(l->h->be, &l->h->gate_up, &source);
    }
    weights_drop(&l->from, &got[0]);
    weights_drop(&l->from, &got[1]);
    return rc;
}

static int upload_floats(struct backend *be, const float *values, int n, float **out)
{
    void *p = NULL;
    TRY(be->ops->alloc(be, (size_t)n * sizeof *values, &p));
    *out = p;
    return be->ops->upload(be, p, values, (size_t)n * sizeof *values);
}

static int load_norm(struct loading *l, const char *prefix, const char *name, int n, float **out)
{
    char full[WEIGHT_NAME_MAX];
    float *values = malloc((size_t)n * sizeof *values);
    if (!values)
        FAIL(ERR_MEMORY, "head: out of memory for a norm of %d", n);
    snprintf(full, sizeof full, "%s%s.weight", prefix, name);
    int rc = weights_vector(&l->from, full, n, values);
    if (rc == 0)
        rc = upload_floats(l->h->be, values, n, out);
    free(values);
    return rc;
}

static int load_matrices(struct loading *l)
{
    struct head *h = l->h;
    const struct head_config *c = &h->cfg;
    const int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    struct matrix *const fc[] = {&h->fc[0], &h->fc[1], &h->fc[2]}, *const qkv[] = {&h->qkv_e, &h->qkv_g};
    struct weight_want fuse = want_of("", "fc", c->hidden, 0);
    struct weight_want parts[] = {want_of(l->layer, "self_attn.q_proj", q, 0),
                                  want_of(l->layer, "self_attn.k_proj", kv, 0),
                                  want_of(l->layer, "self_attn.v_proj", kv, 0)};
    TRY(load_split(l, fc, HEAD_TAPS, &fuse, 1, c->target_hidden));
    TRY(load_split(l, qkv, 2, parts, 3, c->hidden));
    TRY(load_plain(l, &h->o, want_of(l->layer, "self_attn.o_proj", c->hidden, q)));
    TRY(load_gate_up(l));
    TRY(load_plain(l, &h->down, want_of(l->layer, "mlp.down_proj", c->hidden, c->ffn)));
    if (!l->ckpt || checkpoint_has(l->ckpt, "lm_head.weight"))
        TRY(load_plain(l, &h->lm_head, want_of("", "lm_head", c->vocab, c->hidden)));
    else if (c->vocab != c->target_vocab || c->hidden != c->target_hidden)
        FAIL(ERR_FORMAT, "%s: tensor 'lm_head.weight': expected [%d, %d], found no such tensor", l->ckpt->dir,
             c->vocab, c->hidden);
    if (l->ckpt && checkpoint_has(l->ckpt, "embed_tokens.weight"))
        return load_plain(l, &h->embed, want_of("", "embed_tokens", c->target_vocab, c->hidden));
    if (c->hidden != c->target_hidden)
        FAIL(ERR_CONFIG, "head: expected 'embed_tokens.weight', because its width %d is not the target's %d",
             c->hidden, c->target_hidden);
    return 0;
}

static int load_norms(struct loading *l)
{
    struct head *h = l->h;
    const int hidden = h->cfg.hidden;
    char name[32];
    for (int t = 0; h->cfg.fc_norm && t < HEAD_TAPS; t++) {
        snprintf(name, sizeof name, "fc_norm.%d", t);
        TRY(load_norm(l, "", name, h->cfg.target_hidden, &h->fc_norm[t]));
    }
    TRY(load_norm(l, l->layer, "input_layernorm", hidden, &h->embed_norm));
    TRY(load_norm(l, l->layer, "hidden_norm", hidden, &h->hidden_norm));
    TRY(load_norm(l, l->layer, "post_attention_layernorm", hidden, &h->ffn_norm));
    return load_norm(l, "", "norm", hidden, &h->norm);
}

static int read_d2t(struct loading *l)
{
    struct head *h = l->h;
    const size_t n = (size_t)h->cfg.vocab;
    const struct checkpoint_want want = {{n}, 1, CHECKPOINT_I64};
    const struct tensor *t = NULL;
    TRY(checkpoint_take_as(l->ckpt, "d2t", &want, &t));
    for (size_t i = 0; i < n; i++) {
        int64_t offset;
        memcpy(&offset, (const char *)t->data + i * sizeof offset, sizeof offset);
        if (offset < -(int64_t)i || offset >= h->cfg.target_vocab - (int64_t)i)
            FAIL(ERR_FORMAT,
                 "%s: tensor 'd2t': expected entry %zu to lead to an id from 0 to %d, found offset %lld",
                 l->ckpt->dir, i, h->cfg.target_vocab - 1, (long long)offset);
        h->d2t[i] = (int)((int64_t)i + offset);
    }
    return 0;
}

/* Exactly the ids that d2t leads to, each once. */
static int check_t2d(struct loading *l)
{
    struct head *h = l->h;
    const size_t n = (size_t)h->cfg.target_vocab;
    const struct checkpoint_want want = {{n}, 1, CHECKPOINT_BOOL};
    const struct tensor *t = NULL;
    size_t marked = 0;
    TRY(checkpoint_take_as(l->ckpt, "t2d", &want, &t));
    const unsigned char *mask = t->data;
    for (size_t i = 0; i < n; i++)
        marked += mask[i] != 0;
    for (int i = 0; i < h->cfg.vocab; i++)
        if (!mask[h->d2t[i]])
            FAIL(ERR_FORMAT,
                 "%s: 't2d' and 'd2t' disagree: draft id %d is target id %d, which t2d does not mark",
                 l->ckpt->dir, i, h->d2t[i]);
    if (marked != (size_t)h->cfg.vocab)
        FAIL(ERR_FORMAT, "%s: 't2d' and 'd2t' disagree: expected %d marked ids, found %zu", l->ckpt->dir,
             h->cfg.vocab, marked);
    return 0;
}

/* Two draft ids of one target id would be siblings with the same token. */
static int check_unique(const struct head *h)
{
    unsigned char *seen = calloc((size_t)h->cfg.target_vocab, 1);
    int twice = -1;
    if (!seen)
        FAIL(ERR_MEMORY, "head: out of memory for its vocabulary");
    for (int i = 0; i < h->cfg.vocab && twice < 0; i++)
        twice = seen[h->d2t[i]]++ ? i : -1;
    free(seen);
    if (twice >= 0)
        FAIL(ERR_FORMAT, "head: tensor 'd2t': expected different target ids, found id %d twice",
             h->d2t[twice]);
    return 0;
}

static int load_vocabulary(struct loading *l)
{
    struct head *h = l->h;
    h->d2t = malloc((size_t)h->cfg.vocab * sizeof *h->d2t);
    if (!h->d2t)
        FAIL(ERR_MEMORY, "head: out of memory for %d ids", h->cfg.vocab);
    for (int i = 0; i < h->cfg.vocab; i++)
        h->d2t[i] = i;
    if (!l->ckpt)
        return 0;
    if (h->cfg.vocab < h->cfg.target_vocab || checkpoint_has(l->ckpt, "d2t"))
        TRY(read_d2t(l));
    TRY(check_unique(h));
    return checkpoint_has(l->ckpt, "t2d") ? check_t2d(l) : 0;
}

static int load(struct loading *l)
{
    struct head *h = l->h;
    const struct model_config rope = {.head_dim = h->cfg.head_dim, .rope_theta = h->cfg.rope_theta};
    float inv_freq[512];
    if (l->ckpt)
        l->layer = checkpoint_has(l->ckpt, "midlayer.hidden_norm.weight")     ? "midlayer."
                   : checkpoint_has(l->ckpt, "midlayer.0.hidden_norm.weight") ? "midlayer.0."
                                                                              : "layers.0.";
    TRY(load_matrices(l));
    TRY(load_norms(l));
    TRY(load_vocabulary(l));
    model_config_inv_freq(&rope, inv_freq);
    TRY(upload_floats(h->be, inv_freq, h->cfg.head_dim / 2, &h->inv_freq));
    return l->ckpt ? checkpoint_unused(l->ckpt, 0) : 0;
}

int head_open(struct head *h, const struct model *target, const char *dir)
{
    struct checkpoint ckpt = {0};
    const int synthetic = strcmp(dir, "synthetic") == 0;
    *h = (struct head){.be = target->be, .target = target};
    struct loading l = {.h = h, .ckpt = synthetic ? NULL : &ckpt, .layer = "midlayer."};
    int rc = 0;
    if (synthetic)
        head_config_like(&h->cfg, &target->cfg);
    else
        rc = head_config_read(&h->cfg, &target->cfg, dir);
    if (rc == 0 && !synthetic)
        rc = checkpoint_open(&ckpt, dir);
    if (rc == 0) {
        weights_init(&l.from, l.ckpt, SYNTHETIC_SEED, h->be->threads);
        l.from.prefix = "";
        rc = load(&l);
        weights_deinit(&l.from);
    }
    checkpoint_close(&ckpt);
    if (rc)
        head_close(h);
    return rc;
}

void head_close(struct head *h)
{
    struct backend *be = h->be;
    if (be) {
        void *const lent[] = {h->fc[0].data, h->fc[1].data,   h->fc[2].data, h->qkv_e.data, h->qkv_g.data,
                              h->o.data,     h->gate_up.data, h->down.data,  h->embed.data, h->lm_head.data,
                              h->fc_norm[0], h->fc_norm[1],   h->fc_norm[2], h->embed_norm, h->hidden_norm,
                              h->ffn_norm,   h->norm,         h->inv_freq};
        for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
            be->ops->release(be, lent[i]);
    }
    free(h->d2t);
    *h = (struct head){0};
}
