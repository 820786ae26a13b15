/* model_room: what a model will need, before anything of it is read. The form of a kind of matrix is that of
 * the first one of its kind: a checkpoint that rounds some layers and not others is estimated a little wrong.
 */
#include "engine/err.h"
#include "engine/model_build.h"
#include <stdio.h>
#include <string.h>

static int first_layer(const struct model_config *c, int moe)
{
    for (int i = 0; i < c->layers; i++)
        if (!!(c->kind[i] & LAYER_MOE) == moe)
            return i;
    return -1;
}

static int stored_rounded(const struct build *b, int layer, const char *name)
{
    char full[2 * WEIGHT_NAME_MAX];
    if (!b->from.ckpt || layer < 0)
        return 0;
    snprintf(full, sizeof full, "%smodel.layers.%d.%s", b->from.prefix, layer, name);
    const struct tensor *t = checkpoint_peek(b->from.ckpt, full);
    return t && strcmp(t->dtype, "F8_E4M3") == 0;
}

struct build_forms build_forms(const struct build *b)
{
    const struct model_config *c = &b->m->cfg;
    const int rounds = b->m->opts.weights == MODEL_FP8, moe = first_layer(c, 1), dense = first_layer(c, 0);
    const int attention = rounds || stored_rounded(b, 0, "self_attn.q_proj.weight");
    const int mlp =
        rounds ||
        stored_rounded(b, dense, c->llama4 ? "feed_forward.gate_proj.weight" : "mlp.gate_proj.weight");
    const int shared = rounds || stored_rounded(b, moe, "feed_forward.shared_expert.gate_proj.weight");
    const int experts = rounds || stored_rounded(b, moe, "feed_forward.experts.gate_up_proj") ||
                        stored_rounded(b, moe, "feed_forward.experts.0.gate_proj.weight");
    return (struct build_forms){attention ? MATRIX_FP8 : MATRIX_BF16, mlp ? MATRIX_FP8 : MATRIX_BF16,
                                shared ? MATRIX_FP8 : MATRIX_BF16, experts ? MATRIX_FP8 : MATRIX_BF16};
}

const char *build_forms_name(const struct model_config *c, const struct build_forms *forms)
{
    int fp8 = forms->attention == MATRIX_FP8, all = 1;
    if (first_layer(c, 0) >= 0) {
        fp8 += forms->dense == MATRIX_FP8;
        all++;
    }
    if (first_layer(c, 1) >= 0) {
        fp8 += (forms->shared == MATRIX_FP8) + (forms->experts == MATRIX_FP8);
        all += 2;
    }
    return fp8 == 0 ? "BF16" : fp8 == all ? "FP8" : "BF16 and FP8";
}

/* FP8 has a scale an output. */
static double matrix_bytes(double numbers, double outputs, enum matrix_form form)
{
    return form == MATRIX_FP8 ? numbers + 4 * outputs : 2 * numbers;
}

static double mlp_bytes(const struct model_config *c, int width, enum matrix_form form)
{
    return matrix_bytes(3.0 * c->hidden * width, 2.0 * width + c->hidden, form);
}

static double layer_bytes(const struct model_config *c, const struct model_part *part, int kind,
                          const struct build_forms *forms)
{
    const double heads = part->heads, kv_heads = part->kv_heads, hidden = c->hidden;
    const double attention = matrix_bytes((2 * heads + 2 * kv_heads) * c->head_dim * hidden,
                                          (heads + 2 * kv_heads) * c->head_dim + hidden, forms->attention);
    const double norms = 2 * 4 * hidden;
    if (kind & LAYER_MOE)
        return attention + norms + 2.0 * c->experts * hidden + mlp_bytes(c, part->ffn, forms->shared) +
               c->experts * mlp_bytes(c, part->ffn, forms->experts);
    return attention + norms + mlp_bytes(c, c->llama4 ? part->ffn_dense : part->ffn, forms->dense);
}

/* Bytes on a device; embeddings in BF16. */
static double bytes_needed(const struct model *m, const struct build_forms *forms)
{
    const struct model_config *c = &m->cfg;
    const double head = c->tied && m->part.vocab == c->vocab ? 0 : m->part.vocab;
    double sum = 2.0 * (c->vocab + head) * c->hidden + 4.0 * c->hidden;
    for (int i = 0; i < c->layers; i++)
        sum += layer_bytes(c, &m->part, c->kind[i], forms);
    return sum;
}

int build_check_room(const struct build *b, const struct build_forms *forms)
{
    static const struct build_forms least = {MATRIX_FP8, MATRIX_FP8, MATRIX_FP8, MATRIX_FP8};
    const struct model_config *cfg = &b->m->cfg;
    struct backend *be = b->m->be;
    const double needed = bytes_needed(b->m, forms), room = (double)be->ops->available(be);
    const double fp8 = bytes_needed(b->m, &least);
    if (needed <= room)
        return 0;
    if (fp8 <= room)
        FAIL(ERR_MEMORY,
             "the weights need %.0f MiB in %s and %.0f MiB are free on %s: model.weights fp8 needs %.0f MiB",
             needed / 0x1p20, build_forms_name(cfg, forms), room / 0x1p20, be->device, fp8 / 0x1p20);
    FAIL(
        ERR_MEMORY,
        "the weights need %.0f MiB in %s and %.0f MiB are free on %s: a smaller model, or a device with more "
        "free memory, would do",
        needed / 0x1p20, build_forms_name(cfg, forms), room / 0x1p20, be->device);
}
