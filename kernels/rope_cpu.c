/* rope: every element is read and written once. A few rows take less time than waking a thread. */
#include "kernels/attention.h"
#include "kernels/fp8.h"
#include "kernels/simd.h"
#include <math.h>

/* x[j] cos - x[j + half] sin and x[j + half] cos + x[j] sin; each product's second term is fused. */
static void rotate(float *x, const float *cos_sin, int half)
{
    int j = 0;
    for (; j + 16 <= half; j += 16) {
        struct v16 a = v16_load(x + j), b = v16_load(x + j + half);
        struct v16 c = v16_load(cos_sin + j), s = v16_load(cos_sin + j + half);
        struct v16 minus_b = v16_sub(v16_set1(0.0f), b);
        v16_store(x + j, v16_fma(minus_b, s, v16_mul(a, c)));
        v16_store(x + j + half, v16_fma(a, s, v16_mul(b, c)));
    }
    for (; j < half; j++) {
        float a = x[j], b = x[j + half], c = cos_sin[j], s = cos_sin[j + half];
        x[j] = a * c - b * s;
        x[j + half] = b * c + a * s;
    }
}

static void scale_by(float *x, float factor, int dim)
{
    for (int d = 0; d < dim; d++)
        x[d] *= factor;
}

static void norm(float *x, int dim, float eps)
{
    struct v16 sum = v16_set1(0.0f);
    for (int d = 0; d < dim; d += 16) {
        struct v16 v = v16_load(x + d);
        sum = v16_fma(v, v, sum);
    }
    scale_by(x, 1.0f / sqrtf(v16_sum(sum) / (float)dim + eps), dim);
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

/* A number as a cache of FP8 cells holds it. */
static float in_fp8(float x)
{
    return fp8_to_f32(fp8_from_f32(x));
}

/* A key and a value to their cell. */
static void put_cell(const struct kv_layer *kv, float *to_k, float *to_v, const float *k, const float *v)
{
    if (kv->form == KV_FP8) {
        for (int d = 0; d < kv->head_dim; d++) {
            to_k[(size_t)d * KV_BLOCK] = in_fp8(k[d]);
            to_v[d] = in_fp8(v[d]);
        }
        return;
    }
    for (int d = 0; d < kv->head_dim; d++)
        to_k[(size_t)d * KV_BLOCK] = k[d];
    memcpy(to_v, v, (size_t)kv->head_dim * sizeof *v);
}

static void rope_row(const struct rope *a, int r)
{
    const struct rows *rows = a->rows;
    const struct kv_layer *kv = &a->kv;
    const int dim = kv->head_dim, slot = rows->slot[r], cell = rows->cell[r];
    float *q = a->qkv + (size_t)r * (size_t)(a->heads + 2 * kv->kv_heads) * (size_t)dim;
    const float *k = q + (size_t)a->heads * (size_t)dim, *v = k + (size_t)kv->kv_heads * (size_t)dim;
    if (slot < 0)
        return;
    for (int h = 0; h < a->heads + kv->kv_heads; h++)
        turn(a, r, h, q + (size_t)h * (size_t)dim);
    for (int h = 0; h < kv->kv_heads; h++, k += dim, v += dim)
        put_cell(kv, kv_key(kv, slot, h, cell), kv_value(kv, slot, h, cell), k, v);
}

void KERN_NAME(rope)(const struct rope *a)
{
#pragma omp parallel for num_threads(a->threads) schedule(static) if (a->threads > 1 && a->rows->n > 8)
    for (int r = 0; r < a->rows->n; r++)
        rope_row(a, r);
}
