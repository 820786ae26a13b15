/* rope: the table of cosines and sines, one for all instruction sets, and the rotation in plain loops. */
#include "kernels/attention.h"
#include "kernels/fp8.h"
#include <math.h>

void rope_table(const struct rows *rows, const float *inv_freq, int head_dim, float *cos_sin)
{
    int half = head_dim / 2;
    for (int r = 0; r < rows->n; r++) {
        float *c = cos_sin + (size_t)r * (size_t)head_dim, *s = c + half;
        for (int j = 0; j < half; j++) {
            float angle = (float)rows->pos[r] * inv_freq[j];
            c[j] = cosf(angle);
            s[j] = sinf(angle);
        }
    }
}

void rope_temperature(const struct temperature *a)
{
    for (int r = 0; r < a->rows->n; r++)
        a->out[r] = 1.0f + a->scale * log1pf(floorf((float)(a->rows->pos[r] + 1) / a->floor));
}

static void rotate(float *x, const float *cos_sin, int half)
{
    for (int j = 0; j < half; j++) {
        double a = x[j], b = x[j + half], c = cos_sin[j], s = cos_sin[j + half];
        x[j] = (float)(a * c - b * s);
        x[j + half] = (float)(b * c + a * s);
    }
}

static void scale_by(float *x, double factor, int dim)
{
    for (int d = 0; d < dim; d++)
        x[d] = (float)(x[d] * factor);
}

static void norm(float *x, int dim, float eps)
{
    double sum = 0;
    for (int d = 0; d < dim; d++)
        sum += (double)x[d] * x[d];
    scale_by(x, 1 / sqrt(sum / dim + eps), dim);
}

static void gain_by(float *x, const float *gain, int dim)
{
    for (int d = 0; d < dim; d++)
        x[d] *= gain[d];
}

/* Head h of row r: queries, then keys. */
static void turn(const struct rope *a, int r, int h, float *x)
{
    const int dim = a->kv.head_dim;
    if (a->qk_gain) {
        norm(x, dim, a->qk_norm);
        gain_by(x, a->qk_gain + (h < a->heads ? 0 : dim), dim);
    }
    if (a->rotate)
        rotate(x, a->cos_sin + (size_t)r * (size_t)dim, dim / 2);
    if (a->qk_norm > 0 && !a->qk_gain)
        norm(x, dim, a->qk_norm);
    if (a->temperature && h < a->heads)
        scale_by(x, a->temperature[r], dim);
}

static float cell_value(float x, enum kv_form form)
{
    return form == KV_FP8 ? fp8_to_f32(fp8_from_f32(x)) : x;
}

void rope_ref(const struct rope *a)
{
    const struct rows *rows = a->rows;
    int dim = a->kv.head_dim;
    size_t stride = (size_t)(a->heads + 2 * a->kv.kv_heads) * (size_t)dim;
    for (int r = 0; r < rows->n; r++) {
        float *q = a->qkv + (size_t)r * stride, *k = q + (size_t)a->heads * (size_t)dim;
        const float *v = k + (size_t)a->kv.kv_heads * (size_t)dim;
        if (rows->slot[r] < 0)
            continue;
        for (int h = 0; h < a->heads + a->kv.kv_heads; h++)
            turn(a, r, h, q + (size_t)h * (size_t)dim);
        for (int h = 0; h < a->kv.kv_heads; h++, k += dim, v += dim) {
            float *to_k = kv_key(&a->kv, rows->slot[r], h, rows->cell[r]);
            float *to_v = kv_value(&a->kv, rows->slot[r], h, rows->cell[r]);
            for (int d = 0; d < dim; d++) {
                to_k[(size_t)d * KV_BLOCK] = cell_value(k[d], a->kv.form);
                to_v[d] = cell_value(v[d], a->kv.form);
            }
        }
    }
}
