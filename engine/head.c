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

/* The tensors, one below the other. */
static int load_stacked(struct loading *l, struct matrix *out, const struct weight_want *want, int n_parts,
                        enum matrix_flags flags)
{
    struct weight got[PARTS_MAX] = {{.tensor = NULL}};
    struct matrix_part part[PARTS_MAX];
    int rc = 0;
    for (int i = 0; i < n_parts && rc == 0; i++) {
        rc = weights_matrix(&l->from, &want[i], &got[i]);
        part[i] = got[i].part;
    }
    const struct matrix_source source = {.parts = part,
                                         .n_parts = n_parts,
                                         .k = want[0].k,
                                         .flags = flags,
                                         .head_dim = flags == MATRIX_ROTARY ? l->h->cfg.head_dim : 0};
    if (rc == 0)
        rc = l->h->be->ops->matrix(l->h->be, out, &source);
    for (int i = 0; i < n_parts; i++)
        weights_drop(&l->from, &got[i]);
    return rc;
}

static int load_plain(struct loading *l, struct matrix *out, struct weight_want want)
{
    return load_stacked(l, out, &want, 1, MATRIX_PLAIN);
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
    const struct weight_want qkv[] = {want_of(l->layer, "self_attn.q_proj", q, 2 * c->hidden),
                                      want_of(l->layer, "self_attn.k_proj", kv, 2 * c->hidden),
                                      want_of(l->layer, "self_attn.v_proj", kv, 2 * c->hidden)},
                             gate_up[] = {want_of(l->layer, "mlp.gate_proj", c->ffn, c->hidden),
                                          want_of(l->layer, "mlp.up_proj", c->ffn, c->hidden)};
    TRY(load_plain(l, &h->fc, want_of("", "fc", c->hidden, HEAD_TAPS * c->target_hidden)));
    TRY(load_stacked(l, &h->qkv, qkv, 3, MATRIX_ROTARY));
    TRY(load_plain(l, &h->o, want_of(l->layer, "self_attn.o_proj", c->hidden, q)));
    TRY(load_stacked(l, &h->gate_up, gate_up, 2, MATRIX_INTERLEAVE));
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

static int upload_vocabulary(struct head *h)
{
    const size_t bytes = (size_t)h->cfg.vocab * sizeof *h->d2t;
    void *p = NULL;
    TRY(h->be->ops->alloc(h->be, bytes, &p));
    h->ids = p;
    return h->be->ops->upload(h->be, p, h->d2t, bytes);
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
    TRY(upload_vocabulary(h));
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
        void *const lent[] = {h->fc.data,    h->qkv.data,   h->o.data,       h->gate_up.data,
                              h->down.data,  h->embed.data, h->lm_head.data, h->fc_norm[0],
                              h->fc_norm[1], h->fc_norm[2], h->embed_norm,   h->hidden_norm,
                              h->ffn_norm,   h->norm,       h->inv_freq,     h->ids};
        for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
            be->ops->release(be, lent[i]);
    }
    free(h->d2t);
    *h = (struct head){0};
}
