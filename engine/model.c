/* model: tensors are fetched, packed into the backend's order and dropped one matrix at a time, so that
 * loading needs the weights once plus the largest matrix, never the whole file beside them. Threads read the
 * files ahead of it, in the order that a load of nothing has shown. */
#include "engine/checkpoint.h"
#include "engine/clock.h"
#include "engine/err.h"
#include "engine/log.h"
#include "engine/model_build.h"
#include "engine/model_plan.h"
#include "kernels/philox.h"
#include <stdio.h>
#include <stdlib.h>

enum { READERS = 8, READER_BYTES = 32 << 20 }; /* most of them; one more for so many bytes */

static int fetch(struct build *b, const struct build_matrix *from, struct weight got[BUILD_PARTS_MAX])
{
    for (int i = 0; i < from->n; i++) {
        struct weight_want want = from->want[i];
        want.rounded = !from->exact;
        want.scaled_here = !from->exact && b->m->opts.weights == MODEL_FP8;
        TRY(from->fused ? weights_expert(&b->from, &want, &from->fused[i], &got[i])
                        : weights_matrix(&b->from, &want, &got[i]));
    }
    return 0;
}

/* Numbers that a file holds in FP8 stay what they are; others follow the options. */
static int form_of(const struct build *b, const struct build_matrix *from,
                   const struct weight got[BUILD_PARTS_MAX], enum matrix_form *out)
{
    int rounded = 0;
    *out = !from->exact && b->m->opts.weights == MODEL_FP8 ? MATRIX_FP8 : MATRIX_BF16;
    for (int i = 0; i < from->n; i++)
        rounded += got[i].part.dtype == DTYPE_FP8;
    if (*out == MATRIX_BF16 && rounded > 0 && rounded < from->n)
        FAIL(ERR_LIMIT,
             "%s: tensors '%s' to '%s': expected FP8 numbers in all %d or in none, found them in %d: "
             "model.weights fp8 rounds the others",
             b->from.ckpt->dir, from->want[0].name, from->want[from->n - 1].name, from->n, rounded);
    if (rounded)
        *out = MATRIX_FP8;
    return 0;
}

/* Where activations are rounded by static scales. */
static int check_input_scales(const struct build *b, const struct build_matrix *from,
                              const struct weight got[BUILD_PARTS_MAX])
{
    for (int i = 0; i < from->n; i++)
        if (got[i].part.dtype != DTYPE_FP8)
            FAIL(ERR_CONFIG,
                 "model.activations fp8-static: '%s' of %s is not stored in FP8 and has no input_scale: "
                 "expected model.weights bf16, which leaves it as stored, or model.activations fp8",
                 from->want[i].name, b->from.ckpt->dir);
        else if (!(got[i].input_scale > 0))
            FAIL(ERR_CONFIG,
                 "model.activations fp8-static: expected an input_scale above 0 with '%s' of %s, found none: "
                 "model.weights fp8 with model.activations fp8 rounds by scales made per token",
                 from->want[i].name, b->from.ckpt->dir);
    return 0;
}

static int pack(struct build *b, struct matrix *w, const struct build_matrix *from,
                const struct weight got[BUILD_PARTS_MAX])
{
    struct backend *be = b->m->be;
    struct matrix_part parts[BUILD_PARTS_MAX] = {{.n = 0}};
    struct matrix_view views[BUILD_PARTS_MAX] = {{.first = 0}};
    struct matrix_source source = {.parts = parts,
                                   .views = views,
                                   .n_parts = from->n,
                                   .k = weights_cols(&from->want[0]),
                                   .flags = from->flags,
                                   .head_dim = b->m->cfg.head_dim};
    float input_scale = 0;
    for (int i = 0; i < from->n; i++) {
        parts[i] = got[i].part;
        views[i] = got[i].view;
        input_scale = got[i].input_scale > input_scale ? got[i].input_scale : input_scale;
    }
    TRY(form_of(b, from, got, &source.form));
    if (b->m->opts.activations == MODEL_FP8_STATIC && !b->m->opts.calibrates && source.form == MATRIX_FP8)
        TRY(check_input_scales(b, from, got));
    TRY_CTX(be->ops->matrix(be, w, &source), "packing '%s.weight'", from->want[0].name);
    w->input_scale = input_scale;
    return 0;
}

int build_matrix(struct build *b, struct matrix *w, const struct build_matrix *from)
{
    struct weight got[BUILD_PARTS_MAX] = {{.tensor = NULL}};
    int rc = fetch(b, from, got);
    if (rc == 0)
        rc = pack(b, w, from, got);
    for (int i = 0; i < from->n; i++)
        weights_drop(&b->from, &got[i]);
    return rc;
}

int build_floats(struct backend *be, const float *values, int n, float **out)
{
    void *p = NULL;
    TRY(be->ops->alloc(be, (size_t)n * sizeof *values, &p));
    *out = p;
    return be->ops->upload(be, p, values, (size_t)n * sizeof *values);
}

int build_vector(struct build *b, const char *name, int n, float **out)
{
    char full[WEIGHT_NAME_MAX];
    snprintf(full, sizeof full, "%s.weight", name);
    TRY(weights_vector(&b->from, full, n, b->vector));
    return build_floats(b->m->be, b->vector, n, out);
}

int build_norm(struct build *b, const char *name, float **out)
{
    return build_vector(b, name, b->m->cfg.hidden, out);
}

/* A random embedding before experts is as large as what layers add to it: a row's own token, not the text
 * that it shares with its neighbours, decides where it goes. */
static int load_ends(struct build *b)
{
    struct model *m = b->m;
    const struct weight_range share = {m->part.vocab_first, m->part.vocab, m->part.vocab};
    const struct weight_want embed = {.name = "model.embed_tokens",
                                      .n = m->cfg.vocab,
                                      .k = m->cfg.hidden,
                                      .spread = m->cfg.experts && !m->cfg.tied ? 1.0f : 0};
    struct weight_want head = {.name = "lm_head", .n = m->cfg.vocab, .k = m->cfg.hidden, .rows = share};
    TRY(build_norm(b, "model.norm", &m->norm));
    const uint32_t embed_number = b->from.next;
    TRY(build_matrix(b, &m->embed, &(struct build_matrix){.want = {embed}, .n = 1, .exact = 1}));
    if (m->cfg.tied && m->part.vocab == m->cfg.vocab) {
        m->head = m->embed;
        return 0;
    }
    if (m->cfg.tied) { /* the embedding's numbers once more, for these tokens */
        head = embed;
        head.rows = share;
        b->from.next = embed_number;
    } else if (b->from.ckpt && !weights_has(&b->from, "lm_head.weight"))
        FAIL(ERR_FORMAT,
             "%s: expected tensor '%slm_head.weight', found none: if the output head is the embedding, "
             "config.json must say \"tie_word_embeddings\": true",
             b->from.ckpt->dir, b->from.prefix);
    return build_matrix(b, &m->head, &(struct build_matrix){.want = {head}, .n = 1, .exact = 1});
}

static size_t count_weight_bytes(const struct model *m)
{
    const size_t norm = (size_t)m->cfg.hidden * sizeof(float);
    size_t sum = m->head.bytes + norm;
    for (int i = 0; i < m->cfg.layers; i++) {
        const struct layer *l = &m->layers[i];
        sum += l->qkv.bytes + l->o.bytes + l->gate_up.bytes + l->down.bytes + 2 * norm;
        if (l->kind & LAYER_MOE)
            sum += l->router.bytes +
                   (size_t)m->cfg.top_k * (l->expert_gate_up[0].bytes + l->expert_down[0].bytes);
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
    if (!b->from.ckpt && c->experts) {
        b->router = malloc((size_t)c->experts * sizeof *b->router);
        if (!b->router)
            FAIL(ERR_MEMORY, "model: out of memory for the router's norms");
        TRY(build_router_norms(c->experts, m->opts.expert_skew, b->router));
    }
    TRY(load_ends(b));
    for (int i = 0; i < c->layers; i++)
        TRY(build_layer(b, i));
    model_config_inv_freq(c, b->vector);
    TRY(build_floats(m->be, b->vector, c->head_dim / 2, &m->inv_freq));
    m->weight_bytes = count_weight_bytes(m);
    return 0;
}

static int has_fp8(const struct build_forms *forms)
{
    return forms->attention == MATRIX_FP8 || forms->dense == MATRIX_FP8 || forms->shared == MATRIX_FP8 ||
           forms->experts == MATRIX_FP8;
}

static int check_calibration(const struct build *b, const struct build_forms *forms)
{
    if (b->m->cfg.experts)
        FAIL(
            ERR_LIMIT,
            "model.calibration: expected a model without experts, found %d of them a layer: their inputs are "
            "not measured; fp8-static takes a checkpoint that has input_scale, fp8 any",
            b->m->cfg.experts);
    if (!has_fp8(forms))
        FAIL(ERR_CONFIG,
             "model.activations fp8-static: expected model.weights fp8 beside it, found BF16 weights: "
             "activations are rounded only where they meet FP8 weights");
    return 0;
}

static int check_opts(const struct build *b, const struct build_forms *forms)
{
    const struct model_opts *opts = &b->m->opts;
    if (opts->activations == MODEL_FP8_STATIC && opts->calibrates)
        return check_calibration(b, forms);
    if (opts->activations == MODEL_FP8_STATIC && (!b->from.ckpt || !has_fp8(forms)))
        FAIL(
            ERR_CONFIG,
            "model.activations fp8-static: expected a checkpoint whose FP8 weights come with an input_scale, "
            "as NVIDIA's ModelOpt writes them, found %s: model.calibration measures scales over a text, "
            "model.activations fp8 makes them per token, both with model.weights fp8",
            b->from.ckpt ? "BF16 weights" : "random weights");
    if (opts->activations == MODEL_FP8 && opts->weights != MODEL_FP8)
        FAIL(ERR_CONFIG,
             "model.activations fp8: expected model.weights fp8 beside it, found bf16: activations "
             "are rounded only where they meet FP8 weights");
    return 0;
}

/* Random matrices have no zeros to fill up a rank's last tile with. */
static int check_random(const struct model *m)
{
    const int world = m->opts.shard.world > 1 ? m->opts.shard.world : 1;
    if (m->part.ffn * world != m->cfg.ffn || m->part.ffn_dense * world != m->cfg.ffn_dense)
        FAIL(
            ERR_CONFIG,
            "random weights for a world of %d ranks: expected MLP widths in multiples of %d, found %d and %d",
            world, 16 * world, m->cfg.ffn, m->cfg.ffn_dense);
    return 0;
}

static void log_model(const struct build *b, const struct build_forms *forms)
{
    const struct model *m = b->m;
    const char *origin = b->from.ckpt ? b->from.ckpt->dir : "random";
    log_info("model: %s %s, %.1f M parameters, %d layers in %s, rank %d of %d, %.0f MiB read a token, on %s",
             origin, m->cfg.architecture, (double)model_config_params(&m->cfg) / 1e6, m->cfg.layers,
             build_forms_name(&m->cfg, forms), m->opts.shard.rank,
             m->opts.shard.world > 1 ? m->opts.shard.world : 1, (double)m->weight_bytes / 0x1p20,
             m->be->device);
    if (b->kv_scales)
        log_info("model: %s: %d scales of the key/value cache, the largest %g, are not used", origin,
                 b->kv_scales, (double)b->kv_scale);
}

static unsigned spare_of(const struct model_config *c)
{
    return (c->tied ? CHECKPOINT_TIED : 0u) | (c->llama4 ? CHECKPOINT_VISION : 0u);
}

/* ahead: NULL, or what a counting backend notes its reads in and any other follows. */
static int build_from(struct model *m, struct backend *be, const struct model_config *cfg,
                      struct checkpoint *ckpt, uint64_t seed, const struct model_opts *opts,
                      struct readahead *ahead)
{
    struct model new = {.be = be, .cfg = *cfg, .opts = opts ? *opts : (struct model_opts){0}};
    struct build b = {.m = &new};
    weights_init(&b.from, ckpt, seed, be->threads);
    b.from.transposes = be->transposes;
    b.from.counts = be->counts;
    b.from.ahead = ahead;
    const struct build_forms forms = build_forms(&b);
    int rc = check_opts(&b, &forms);
    if (rc == 0)
        rc = model_part_of(&new.part, cfg, new.opts.shard);
    if (rc == 0 && !ckpt)
        rc = check_random(&new);
    if (rc == 0)
        rc = build_check_room(&b, &forms);
    if (rc == 0)
        rc = load_all(&b);
    if (rc == 0 && ckpt)
        rc = checkpoint_unused(ckpt, spare_of(cfg));
    if (rc == 0 && !(be->counts && ahead))
        log_model(&b, &forms);
    weights_deinit(&b.from);
    free(b.router);
    free(b.vector);
    if (rc)
        model_deinit(&new);
    else
        *m = new;
    return rc;
}

/* What a load will read, in order, by loading for nobody. What is wrong with the checkpoint is found here. */
static int list_reads(struct readahead *ahead, const struct model_config *cfg, struct checkpoint *ckpt,
                      const struct model_opts *opts)
{
    struct backend counting;
    struct model m;
    model_plan_backend(&counting, "cpu");
    TRY(build_from(&m, &counting, cfg, ckpt, 0, opts, ahead));
    model_deinit(&m);
    return 0;
}

static int readers_of(const struct readahead *ahead, const struct model_opts *opts)
{
    const int wanted = opts ? opts->readers : 0, suit = 1 + (int)(ahead->bytes / READER_BYTES);
    return wanted < 0 ? 0 : wanted > 0 ? wanted : suit < READERS ? suit : READERS;
}

static int build_ahead(struct model *m, struct backend *be, const struct model_config *cfg,
                       struct checkpoint *ckpt, const struct model_opts *opts, struct readahead *ahead)
{
    const int64_t start = clock_ns();
    TRY(list_reads(ahead, cfg, ckpt, opts));
    struct model_load load = {.bytes = ahead->bytes, .readers = readers_of(ahead, opts)};
    TRY(readahead_start(ahead, load.readers));
    TRY(build_from(m, be, cfg, ckpt, 0, opts, ahead));
    const int rc = be->ops->sync(be); /* what is packed is not always packed when enqueued */
    readahead_stop(ahead, &load.read_seconds);
    load.seconds = 1e-9 * (double)(clock_ns() - start);
    if (rc)
        model_deinit(m);
    else
        m->load = load;
    return rc;
}

int model_build(struct model *m, struct backend *be, const struct model_config *cfg, struct checkpoint *ckpt,
                const struct model_opts *opts)
{
    struct readahead ahead = {.n = 0};
    if (be->counts)
        return build_from(m, be, cfg, ckpt, 0, opts, NULL);
    const int rc = build_ahead(m, be, cfg, ckpt, opts, &ahead);
    readahead_deinit(&ahead);
    if (rc == 0)
        m->fingerprint = checkpoint_fingerprint(ckpt);
    return rc;
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

/* What Llama 4 adds to it. */
static uint64_t llama4_fingerprint(const struct model_config *c, uint64_t h)
{
    const float real[] = {c->temperature_scale, c->temperature_floor};
    uint32_t word[5 + sizeof real / sizeof *real] = {(uint32_t)c->experts, (uint32_t)c->top_k,
                                                     (uint32_t)c->ffn_dense, (uint32_t)c->chunk,
                                                     (uint32_t)c->qk_norm};
    memcpy(word + 5, real, sizeof real);
    const int words = (int)(sizeof word / sizeof *word);
    for (int i = 0; i < words + c->layers; i++) {
        const uint32_t value = i < words ? word[i] : c->kind[i - words];
        struct philox4 r = philox(h, value, (uint32_t)i, PHILOX_SYNTHETIC, UINT32_MAX);
        h = (uint64_t)r.v[0] << 32 | r.v[1];
    }
    return h;
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
    return c->llama4 ? llama4_fingerprint(c, h) : h;
}

int model_synthetic(struct model *m, struct backend *be, const struct model_config *cfg, uint64_t seed,
                    const struct model_opts *opts)
{
    TRY(build_from(m, be, cfg, NULL, seed, opts, NULL));
    m->fingerprint = synthetic_fingerprint(cfg, seed);
    if (m->opts.expert_skew != 0) {
        uint32_t word;
        memcpy(&word, &m->opts.expert_skew, sizeof word);
        const struct philox4 r = philox(m->fingerprint, word, 0, PHILOX_SYNTHETIC, UINT32_MAX);
        m->fingerprint = (uint64_t)r.v[0] << 32 | r.v[1];
    }
    return 0;
}

static void release_matrix(struct backend *be, const struct matrix *w)
{
    be->ops->release(be, w->data);
    be->ops->release(be, w->scale);
}

static void release_layer(struct model *m, struct layer *l)
{
    const struct matrix *const all[] = {&l->qkv, &l->o, &l->gate_up, &l->down, &l->router};
    m->be->ops->release(m->be, l->attn_norm);
    m->be->ops->release(m->be, l->ffn_norm);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        release_matrix(m->be, all[i]);
    for (int i = 0; i < m->cfg.experts; i++) {
        if (l->expert_gate_up)
            release_matrix(m->be, &l->expert_gate_up[i]);
        if (l->expert_down)
            release_matrix(m->be, &l->expert_down[i]);
    }
    free(l->expert_gate_up);
    free(l->expert_down);
}

void model_deinit(struct model *m)
{
    if (!m->be)
        return;
    for (int i = 0; m->layers && i < m->cfg.layers; i++)
        release_layer(m, &m->layers[i]);
    if (m->head.data != m->embed.data)
        m->be->ops->release(m->be, m->head.data);
    m->be->ops->release(m->be, m->embed.data);
    m->be->ops->release(m->be, m->norm);
    m->be->ops->release(m->be, m->inv_freq);
    free(m->layers);
    *m = (struct model){0};
}
