/* model: tensors are fetched, packed into the backend's order and dropped one matrix at a time, so that
 * loading needs the weights once plus the largest matrix, never the whole file beside them. */
#include "engine/model.h"
#include "engine/checkpoint.h"
#include "engine/err.h"
#include "engine/log.h"
#include "engine/weights.h"
#include "kernels/philox.h"
#include <stdio.h>
#include <stdlib.h>

enum { NAME_MAX_BYTES = 128, PARTS_MAX = 3 };

struct want {
    const char *name; /* after the layer's prefix */
    int n;
};

/* What building a model carries along. */
struct build {
    struct model *m;
    struct weights from;
    float *vector; /* owned [hidden] staging for norms */
};

/* Of the layers' matrices; those without a prefix, embedding and head, stay BF16. */
static enum matrix_form form_of(const struct model_opts *opts)
{
    return opts->weights == MODEL_FP8 ? MATRIX_FP8 : MATRIX_BF16;
}

static int load_matrix(struct build *b, struct matrix *w, const char *prefix, const struct want *wants, int n,
                       int k, enum matrix_flags flags)
{
    int rc = 0;
    struct weight got[PARTS_MAX] = {{.tensor = NULL}};
    struct matrix_part parts[PARTS_MAX] = {{.n = 0}};
    struct backend *be = b->m->be;
    for (int i = 0; i < n; i++) {
        char name[NAME_MAX_BYTES];
        snprintf(name, sizeof name, "%s%s.weight", prefix, wants[i].name);
        rc = weights_matrix(&b->from, name, wants[i].n, k, &got[i]);
        if (rc)
            goto out;
        parts[i] = got[i].part;
    }
    const struct matrix_source source = {.parts = parts,
                                         .n_parts = n,
                                         .k = k,
                                         .flags = flags,
                                         .form = prefix[0] ? form_of(&b->m->opts) : MATRIX_BF16,
                                         .head_dim = b->m->cfg.head_dim};
    rc = be->ops->matrix(be, w, &source);
    if (rc)
        err_context("packing '%s%s.weight'", prefix, wants[0].name);
out:
    for (int i = 0; i < n; i++)
        weights_drop(&b->from, &got[i]);
    return rc;
}

static int load_floats(struct backend *be, const float *values, int n, float **out)
{
    void *p = NULL;
    TRY(be->ops->alloc(be, (size_t)n * sizeof *values, &p));
    *out = p;
    return be->ops->upload(be, p, values, (size_t)n * sizeof *values);
}

static int load_norm(struct build *b, const char *prefix, const char *name, float **out)
{
    char full[NAME_MAX_BYTES];
    snprintf(full, sizeof full, "%s%s.weight", prefix, name);
    TRY(weights_vector(&b->from, full, b->m->cfg.hidden, b->vector));
    return load_floats(b->m->be, b->vector, b->m->cfg.hidden, out);
}

static int load_layer(struct build *b, int i)
{
    const struct model_config *c = &b->m->cfg;
    struct layer *l = &b->m->layers[i];
    const int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    const struct want qkv[] = {{"self_attn.q_proj", q}, {"self_attn.k_proj", kv}, {"self_attn.v_proj", kv}};
    const struct want o[] = {{"self_attn.o_proj", c->hidden}};
    const struct want gate_up[] = {{"mlp.gate_proj", c->ffn}, {"mlp.up_proj", c->ffn}};
    const struct want down[] = {{"mlp.down_proj", c->hidden}};
    char prefix[NAME_MAX_BYTES / 2];
    snprintf(prefix, sizeof prefix, "model.layers.%d.", i);
    TRY(load_norm(b, prefix, "input_layernorm", &l->attn_norm));
    TRY(load_matrix(b, &l->qkv, prefix, qkv, 3, c->hidden, MATRIX_ROTARY));
    TRY(load_matrix(b, &l->o, prefix, o, 1, q, MATRIX_PLAIN));
    TRY(load_norm(b, prefix, "post_attention_layernorm", &l->ffn_norm));
    TRY(load_matrix(b, &l->gate_up, prefix, gate_up, 2, c->hidden, MATRIX_INTERLEAVE));
    return load_matrix(b, &l->down, prefix, down, 1, c->ffn, MATRIX_PLAIN);
}

static int load_ends(struct build *b)
{
    struct model *m = b->m;
    const struct want embed[] = {{"model.embed_tokens", m->cfg.vocab}}, head[] = {{"lm_head", m->cfg.vocab}};
    TRY(load_norm(b, "", "model.norm", &m->norm));
    TRY(load_matrix(b, &m->embed, "", embed, 1, m->cfg.hidden, MATRIX_PLAIN));
    if (m->cfg.tied) {
        m->head = m->embed;
        return 0;
    }
    if (b->from.ckpt && !checkpoint_has(b->from.ckpt, "lm_head.weight"))
        FAIL(ERR_FORMAT,
             "%s: expected tensor 'lm_head.weight', found none: if the output head is the embedding, "
             "config.json must say \"tie_word_embeddings\": true",
             b->from.ckpt->dir);
    return load_matrix(b, &m->head, "", head, 1, m->cfg.hidden, MATRIX_PLAIN);
}

static size_t count_weight_bytes(const struct model *m)
{
    const size_t norm = (size_t)m->cfg.hidden * sizeof(float);
    size_t sum = m->head.bytes + norm;
    for (int i = 0; i < m->cfg.layers; i++) {
        const struct layer *l = &m->layers[i];
        sum += l->qkv.bytes + l->o.bytes + l->gate_up.bytes + l->down.bytes + 2 * norm;
    }
    return sum;
}

static int load_all(struct build *b)
{
    struct model *m = b->m;
    const struct model_config *c = &m->cfg;
    const int staging = c->hidden > c->head_dim / 2 ? c->hidden : c->head_dim / 2;
    m->layers = calloc((size_t)c->layers, sizeof *m->layers);
    b->vector = malloc((size_t)staging * sizeof *b->vector);
    if (!m->layers || !b->vector)
        FAIL(ERR_MEMORY, "model: out of memory for the books of %d layers", c->layers);
    TRY(load_ends(b));
    for (int i = 0; i < c->layers; i++)
        TRY(load_layer(b, i));
    model_config_inv_freq(c, b->vector);
    TRY(load_floats(m->be, b->vector, c->head_dim / 2, &m->inv_freq));
    m->weight_bytes = count_weight_bytes(m);
    return 0;
}

/* Bytes on a device: embeddings in BF16, of a layer every matrix in its form, with FP8 a scale an output. */
static double bytes_needed(const struct model_config *c, enum matrix_form form)
{
    const double heads = c->heads, kv_heads = c->kv_heads, hidden = c->hidden, ffn = c->ffn;
    const double outputs = (heads + 2 * kv_heads) * c->head_dim + 2 * hidden + 2 * ffn;
    const double numbers = (2 * heads + 2 * kv_heads) * c->head_dim * hidden + 3 * hidden * ffn;
    const double matrices = form == MATRIX_FP8 ? numbers + 4 * outputs : 2 * numbers;
    return c->layers * matrices + 2.0 * c->vocab * hidden * (c->tied ? 1 : 2) +
           4 * hidden * (2.0 * c->layers + 1);
}

/* Before the first weight is read. */
static int check_room(struct backend *be, const struct model_config *cfg, enum matrix_form form)
{
    const double needed = bytes_needed(cfg, form), room = (double)be->ops->available(be);
    const double fp8 = bytes_needed(cfg, MATRIX_FP8);
    if (needed <= room)
        return 0;
    if (fp8 <= room)
        FAIL(
            ERR_MEMORY,
            "the weights need %.0f MiB in BF16 and %.0f MiB are free on %s: model.weights fp8 needs %.0f MiB",
            needed / 0x1p20, room / 0x1p20, be->device, fp8 / 0x1p20);
    FAIL(
        ERR_MEMORY,
        "the weights need %.0f MiB in %s and %.0f MiB are free on %s: a smaller model, or a device with more "
        "free memory, would do",
        needed / 0x1p20, form == MATRIX_FP8 ? "FP8" : "BF16", room / 0x1p20, be->device);
}

static int check_opts(const struct model_opts *opts)
{
    if (opts->activations == MODEL_FP8 && opts->weights != MODEL_FP8)
        FAIL(ERR_CONFIG,
             "model.activations fp8: expected model.weights fp8 beside it, found bf16: activations "
             "are rounded only where they meet FP8 weights");
    return 0;
}

static int build_from(struct model *m, struct backend *be, const struct model_config *cfg,
                      struct checkpoint *ckpt, uint64_t seed, const struct model_opts *opts)
{
    struct model new = {.be = be, .cfg = *cfg, .opts = opts ? *opts : (struct model_opts){0}};
    struct build b = {.m = &new, .from = {.ckpt = ckpt, .seed = seed}};
    int rc = check_opts(&new.opts);
    if (rc == 0)
        rc = check_room(be, cfg, form_of(&new.opts));
    if (rc == 0)
        rc = load_all(&b);
    if (rc == 0 && ckpt)
        rc = checkpoint_unused(ckpt, cfg->tied);
    free(b.vector);
    if (rc)
        model_deinit(&new);
    else
        *m = new;
    return rc;
}

static void log_model(const struct model *m, const char *origin)
{
    log_info("model: %s %s, %.1f M parameters, %d layers in %s, %.0f MiB read a token, on %s", origin,
             m->cfg.architecture, (double)model_config_params(&m->cfg) / 1e6, m->cfg.layers,
             form_of(&m->opts) == MATRIX_FP8 ? "FP8" : "BF16", (double)m->weight_bytes / 0x1p20,
             m->be->device);
}

int model_build(struct model *m, struct backend *be, const struct model_config *cfg, struct checkpoint *ckpt,
                const struct model_opts *opts)
{
    TRY(build_from(m, be, cfg, ckpt, 0, opts));
    m->fingerprint = checkpoint_fingerprint(ckpt);
    log_model(m, ckpt->dir);
    return 0;
}

int model_load(struct model *m, struct backend *be, const char *dir, const struct model_opts *opts)
{
    struct model_config cfg = {0};
    struct checkpoint ckpt = {0};
    TRY(model_config_read(&cfg, dir));
    TRY(checkpoint_open(&ckpt, dir));
    int rc = model_build(m, be, &cfg, &ckpt, opts);
    checkpoint_close(&ckpt);
    return rc;
}

/* Everything that decides the random weights and what is computed with them. */
static uint64_t synthetic_fingerprint(const struct model_config *c, uint64_t seed)
{
    const float real[] = {c->rms_eps,  c->rope_theta, c->rope_factor,
                          c->rope_low, c->rope_high,  c->rope_original};
    uint32_t word[9 + sizeof real / sizeof *real] = {
        (uint32_t)c->vocab,    (uint32_t)c->hidden, (uint32_t)c->ffn,
        (uint32_t)c->layers,   (uint32_t)c->heads,  (uint32_t)c->kv_heads,
        (uint32_t)c->head_dim, (uint32_t)c->tied,   (uint32_t)c->rope_llama3};
    memcpy(word + 9, real, sizeof real);
    uint64_t h = seed;
    for (size_t i = 0; i < sizeof word / sizeof *word; i++) {
        struct philox4 r = philox(h, word[i], (uint32_t)i, PHILOX_SYNTHETIC, UINT32_MAX);
        h = (uint64_t)r.v[0] << 32 | r.v[1];
    }
    return h;
}

int model_synthetic(struct model *m, struct backend *be, const struct model_config *cfg, uint64_t seed,
                    const struct model_opts *opts)
{
    TRY(build_from(m, be, cfg, NULL, seed, opts));
    m->fingerprint = synthetic_fingerprint(cfg, seed);
    log_model(m, "random");
    return 0;
}

void model_deinit(struct model *m)
{
    if (!m->be)
        return;
    for (int i = 0; m->layers && i < m->cfg.layers; i++) {
        const struct layer *l = &m->layers[i];
        void *const parts[] = {l->attn_norm, l->ffn_norm,  l->qkv.data, l->o.data,        l->gate_up.data,
                               l->down.data, l->qkv.scale, l->o.scale,  l->gate_up.scale, l->down.scale};
        for (size_t j = 0; j < sizeof parts / sizeof *parts; j++)
            m->be->ops->release(m->be, parts[j]);
    }
    if (m->head.data != m->embed.data)
        m->be->ops->release(m->be, m->head.data);
    m->be->ops->release(m->be, m->embed.data);
    m->be->ops->release(m->be, m->norm);
    m->be->ops->release(m->be, m->inv_freq);
    free(m->layers);
    *m = (struct model){0};
}
