/* attention in plain loops with double sums, and moving cells. */
#include "kernels/attention.h"
#include <math.h>

static double score(const struct attention *a, int r, int h, int p)
{
    int dim = a->kv.head_dim, head = h / (a->heads / a->kv.kv_heads);
    const float *q = a->qkv + ((size_t)r * (size_t)(a->heads + 2 * a->kv.kv_heads) + (size_t)h) * (size_t)dim;
    const float *k = kv_key(&a->kv, a->rows->slot[r], head, rows_cell(a->rows, r, p));
    double sum = 0;
    for (int d = 0; d < dim; d++)
        sum += (double)q[d] * k[(size_t)d * KV_BLOCK];
    return sum * a->scale;
}

/* Scores are computed twice and nothing is stored: the reference needs no scratch. */
static void attend(const struct attention *a, int r, int h)
{
    int dim = a->kv.head_dim, head = h / (a->heads / a->kv.kv_heads), last = a->rows->pos[r];
    const int first = attention_first(a->chunk, last);
    float *y = (float *)a->y + ((size_t)r * (size_t)a->heads + (size_t)h) * (size_t)dim;
    double max = -INFINITY, sum = 0;
    for (int p = first; p <= last; p++)
        max = fmax(max, score(a, r, h, p));
    for (int p = first; p <= last; p++)
        sum += exp(score(a, r, h, p) - max);
    for (int d = 0; d < dim; d++) {
        double value = 0;
        for (int p = first; p <= last; p++) {
            size_t at = kv_value_at(&a->kv, a->rows->slot[r], head, rows_cell(a->rows, r, p));
            value += exp(score(a, r, h, p) - max) / sum * ((const float *)a->kv.v)[at + (size_t)d];
        }
        y[d] = (float)value;
    }
}

size_t attention_scratch(int heads, int kv_heads, int head_dim, int cap)
{
    int group = heads / kv_heads;
    (void)head_dim;
    return (size_t)(group < 4 ? group : 4) * (size_t)cap; /* scores of the heads that go together */
}

void attention_ref(const struct attention *a)
{
    for (int r = 0; r < a->rows->n; r++)
        for (int h = 0; h < a->heads; h++)
            attend(a, r, h);
}

void kv_move_ref(const struct kv_move *a)
{
    const struct kv_layer *kv = &a->kv;
    for (int i = 0; i < a->n; i++) {
        if (a->src[i] == a->dst + i)
            continue;
        for (int h = 0; h < kv->kv_heads; h++) {
            const float *from = kv_key(kv, a->slot, h, a->src[i]);
            float *to = kv_key(kv, a->slot, h, a->dst + i);
            for (int d = 0; d < kv->head_dim; d++)
                to[(size_t)d * KV_BLOCK] = from[(size_t)d * KV_BLOCK];
            memcpy(kv_value(kv, a->slot, h, a->dst + i), kv_value(kv, a->slot, h, a->src[i]),
                   (size_t)kv->head_dim * sizeof(float));
        }
    }
}
