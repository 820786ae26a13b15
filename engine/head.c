/* head: the tensors of an EAGLE-3 head, by the names that its trainers give them (model-formats D.4, D.5). */
#include "engine/head.h"
#include "engine/err.h"
#include "engine/model_build.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SYNTHETIC_SEED = 11 };

struct loading {
    struct head *h;
    struct model like; /* what the builder of models asks of one */
    struct build b;
    struct checkpoint *ckpt; /* NULL: synthetic */
    const char *layer;       /* "midlayer." or its other names */
};

static struct weight_want want_of(const char *prefix, const char *name, int n, int k)
{
    struct weight_want w = {.n = n, .k = k};
    snprintf(w.name, sizeof w.name, "%s%s", prefix, name);
    return w;
}

static int load_one(struct loading *l, struct matrix *out, struct weight_want want)
{
    return build_matrix(&l->b, out, &(struct build_matrix){.want = {want}, .n = 1});
}

static int load_attention(struct loading *l)
{
    struct head *h = l->h;
    const struct head_config *c = &h->cfg;
    const int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim, both = 2 * c->hidden;
    const struct build_matrix qkv = {.want = {want_of(l->layer, "self_attn.q_proj", q, both),
                                              want_of(l->layer, "self_attn.k_proj", kv, both),
                                              want_of(l->layer, "self_attn.v_proj", kv, both)},
                                     .n = 3,
                                     .flags = MATRIX_ROTARY};
    TRY(build_matrix(&l->b, &h->qkv, &qkv));
    return load_one(l, &h->o, want_of(l->layer, "self_attn.o_proj", c->hidden, q));
}

static int load_mlp(struct loading *l)
{
    struct head *h = l->h;
    const struct head_config *c = &h->cfg;
    const struct build_matrix gate_up = {.want = {want_of(l->layer, "mlp.gate_proj", c->ffn, c->hidden),
                                                  want_of(l->layer, "mlp.up_proj", c->ffn, c->hidden)},
                                         .n = 2,
                                         .flags = MATRIX_INTERLEAVE};
    TRY(build_matrix(&l->b, &h->gate_up, &gate_up));
    return load_one(l, &h->down, want_of(l->layer, "mlp.down_proj", c->hidden, c->ffn));
}

/* Output and embedding: the head's, or else the target's, which must then fit. */
static int load_ends(struct loading *l)
{
    struct head *h = l->h;
    const struct head_config *c = &h->cfg;
    const struct build_matrix embed = {
        .want = {want_of("", "embed_tokens", c->target_vocab, c->hidden)}, .n = 1, .exact = 1};
    if (!l->ckpt || checkpoint_has(l->ckpt, "lm_head.weight"))
        TRY(load_one(l, &h->lm_head, want_of("", "lm_head", c->vocab, c->hidden)));
    else if (c->vocab != c->target_vocab || c->hidden != c->target_hidden)
        FAIL(ERR_FORMAT, "%s: tensor 'lm_head.weight': expected [%d, %d], found no such tensor", l->ckpt->dir,
             c->vocab, c->hidden);
    if (l->ckpt && checkpoint_has(l->ckpt, "embed_tokens.weight"))
        return build_matrix(&l->b, &h->embed, &embed);
    if (c->hidden != c->target_hidden)
        FAIL(ERR_CONFIG, "head: expected 'embed_tokens.weight', because its width %d is not the target's %d",
             c->hidden, c->target_hidden);
    return 0;
}

static int load_layer_norm(struct loading *l, const char *name, float **out)
{
    char full[WEIGHT_NAME_MAX];
    snprintf(full, sizeof full, "%s%s", l->layer, name);
    return build_norm(&l->b, full, out);
}

static int load_qk_gain(struct loading *l)
{
    struct head *h = l->h;
    const int dim = h->cfg.head_dim;
    char q[WEIGHT_NAME_MAX], k[WEIGHT_NAME_MAX];
    float gain[2 * HEAD_DIM_LIMIT];
    snprintf(q, sizeof q, "%sself_attn.q_norm.weight", l->layer);
    snprintf(k, sizeof k, "%sself_attn.k_norm.weight", l->layer);
    TRY(weights_vector(&l->b.from, q, dim, gain));
    TRY(weights_vector(&l->b.from, k, dim, gain + dim));
    return build_floats(h->be, gain, 2 * dim, &h->qk_gain);
}

static int load_norms(struct loading *l)
{
    struct head *h = l->h;
    const struct head_config *c = &h->cfg;
    char name[32];
    for (int t = 0; c->fc_norm && t < HEAD_TAPS; t++) {
        snprintf(name, sizeof name, "fc_norm.%d", t);
        TRY(build_vector(&l->b, name, c->target_hidden, &h->fc_norm[t]));
    }
    if (c->norm_before_fc)
        TRY(build_vector(&l->b, "input_norm", HEAD_TAPS * c->target_hidden, &h->input_norm));
    if (c->qk_norm)
        TRY(load_qk_gain(l));
    TRY(load_layer_norm(l, "input_layernorm", &h->embed_norm));
    TRY(load_layer_norm(l, "hidden_norm", &h->hidden_norm));
    TRY(load_layer_norm(l, "post_attention_layernorm", &h->ffn_norm));
    return build_norm(&l->b, "norm", &h->norm);
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

static int load_inv_freq(struct head *h)
{
    float inv_freq[HEAD_DIM_LIMIT / 2];
    model_config_inv_freq(&h->cfg.rope, inv_freq);
    return build_floats(h->be, inv_freq, h->cfg.head_dim / 2, &h->inv_freq);
}

static int load(struct loading *l)
{
    const struct head_config *c = &l->h->cfg;
    if (l->ckpt)
        l->layer = checkpoint_has(l->ckpt, "midlayer.hidden_norm.weight")     ? "midlayer."
                   : checkpoint_has(l->ckpt, "midlayer.0.hidden_norm.weight") ? "midlayer.0."
                                                                              : "layers.0.";
    TRY(load_one(l, &l->h->fc, want_of("", "fc", c->hidden, HEAD_TAPS * c->target_hidden)));
    TRY(load_attention(l));
    TRY(load_mlp(l));
    TRY(load_ends(l));
    TRY(load_norms(l));
    TRY(load_vocabulary(l));
    TRY(upload_vocabulary(l->h));
    TRY(load_inv_freq(l->h));
    return l->ckpt ? checkpoint_unused(l->ckpt, 0) : 0;
}

static int load_from(struct head *h, struct checkpoint *ckpt, enum model_numbers weights)
{
    const struct head_config *c = &h->cfg;
    const int wide = HEAD_TAPS * c->target_hidden, staging = wide > c->hidden ? wide : c->hidden;
    struct loading l = {.h = h,
                        .like = {.be = h->be,
                                 .cfg = {.hidden = c->hidden, .head_dim = c->head_dim},
                                 .opts = {.weights = weights}},
                        .ckpt = ckpt,
                        .layer = "midlayer."};
    l.b = (struct build){.m = &l.like, .vector = malloc((size_t)staging * sizeof(float))};
    if (!l.b.vector)
        FAIL(ERR_MEMORY, "head: out of memory for a norm of %d", staging);
    weights_init(&l.b.from, ckpt, SYNTHETIC_SEED, h->be->threads);
    l.b.from.transposes = h->be->transposes;
    l.b.from.counts = h->be->counts;
    const int rc = load(&l);
    weights_deinit(&l.b.from);
    free(l.b.vector);
    return rc;
}

int head_open(struct head *h, const struct model *target, const char *dir, enum model_numbers weights)
{
    struct checkpoint ckpt = {0};
    const int synthetic = strcmp(dir, "synthetic") == 0;
    int rc = 0;
    *h = (struct head){.be = target->be, .target = target};
    if (synthetic)
        head_config_like(&h->cfg, &target->cfg);
    else
        rc = head_config_read(&h->cfg, &target->cfg, dir);
    if (rc == 0 && h->cfg.qk_norm && !h->be->host_reads)
        rc = ERR_SET(ERR_LIMIT, "%s: heads with norms of queries and keys (Qwen3) run on the CPU alone", dir);
    if (rc == 0 && !synthetic)
        rc = checkpoint_open(&ckpt, dir);
    if (rc == 0)
        rc = load_from(h, synthetic ? NULL : &ckpt, weights);
    checkpoint_close(&ckpt);
    if (rc)
        head_close(h);
    return rc;
}

void head_close(struct head *h)
{
    struct backend *be = h->be;
    if (be) {
        const struct matrix *matrices[] = {&h->fc,   &h->qkv,   &h->o,      &h->gate_up,
                                           &h->down, &h->embed, &h->lm_head};
        void *const vectors[] = {h->fc_norm[0], h->fc_norm[1],  h->fc_norm[2], h->input_norm, h->qk_gain,
                                 h->embed_norm, h->hidden_norm, h->ffn_norm,   h->norm,       h->inv_freq};
        for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
            be->ops->release(be, matrices[i]->data);
            be->ops->release(be, matrices[i]->scale);
        }
        for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
            be->ops->release(be, vectors[i]);
        be->ops->release(be, h->ids);
    }
    free(h->d2t);
    *h = (struct head){0};
}
