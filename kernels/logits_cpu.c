/* logits: two passes over a row, which the second finds in the cache: the largest two with the place of the
 * first, then the exponentials, whose weighted sum for the entropy rides along. */
#include "kernels/logits.h"
#include "kernels/simd.h"
#include <math.h>

/* Per lane: the largest so far, the largest of the rest, and the id of the first. */
struct top2 {
    struct v16 max, second;
    struct v16i id;
};

SIMD_FN void top2_add(struct top2 *t, struct v16 x, int first)
{
    V16_EACH
    {
        vint more = x.r[i_] > t->max.r[i_];
        t->second.r[i_] = vreg_max(vreg_min(t->max.r[i_], x.r[i_]), t->second.r[i_]);
        t->max.r[i_] = vreg_select(more, x.r[i_], t->max.r[i_]);
        t->id.r[i_] = (more & first) | (~more & t->id.r[i_]);
    }
}

/* Lowest id among equal lanes; the other lanes' largest are candidates for the second place. */
static void top2_finish(const struct top2 *t, struct logit_stats *out)
{
    float max[16], second[16];
    int32_t first[16];
    int best = 0;
    v16_store(max, t->max);
    v16_store(second, t->second);
    memcpy(first, &t->id, sizeof first);
    for (int i = 1; i < 16; i++)
        if (max[i] > max[best] || (max[i] == max[best] && first[i] + i < first[best] + best))
            best = i;
    out->argmax = first[best] + best;
    out->max = max[best];
    out->second = second[best];
    for (int i = 0; i < 16; i++) {
        float other = i == best ? second[i] : max[i];
        out->second = other > out->second ? other : out->second;
    }
}

/* exp(x - max) summed; far below the maximum is -104, where the exponential is 0 and so is its product. */
SIMD_FN void add_exponentials(struct v16 x, struct v16 max, int with_entropy, struct v16 *sum,
                              struct v16 *weighted)
{
    struct v16 d = v16_max(v16_sub(x, max), v16_set1(-104.0f)), e = v16_exp(d);
    *sum = v16_add(*sum, e);
    if (with_entropy)
        *weighted = v16_fma(e, d, *weighted);
}

SIMD_FN void stats(const float *row, int vocab, int with_entropy, struct logit_stats *out)
{
    int whole = vocab / 16 * 16;
    struct v16 sum = v16_set1(0.0f), weighted = sum;
    struct v16 rest = v16_load_part(row + whole, vocab - whole, -INFINITY);
    struct top2 top = {.max = v16_set1(-INFINITY), .second = v16_set1(-INFINITY)};
    for (int i = 0; i < whole; i += 16)
        top2_add(&top, v16_load(row + i), i);
    top2_add(&top, rest, whole);
    top2_finish(&top, out);
    struct v16 max = v16_set1(out->max);
    for (int i = 0; i < whole; i += 16)
        add_exponentials(v16_load(row + i), max, with_entropy, &sum, &weighted);
    add_exponentials(rest, max, with_entropy, &sum, &weighted);
    float total = v16_sum(sum), log_total = logf(total);
    out->lse = out->max + log_total;
    out->entropy = with_entropy ? log_total - v16_sum(weighted) / total : 0.0f;
}

void KERN_NAME(logits)(const struct logits *a)
{
#pragma omp parallel for num_threads(a->threads) schedule(static) if (a->threads > 1 && a->rows > 1)
    for (int r = 0; r < a->rows; r++) {
        const float *row = a->logits + (size_t)r * (size_t)a->vocab;
        if (a->with_entropy)
            stats(row, a->vocab, 1, &a->out[r]);
        else
            stats(row, a->vocab, 0, &a->out[r]);
    }
}
