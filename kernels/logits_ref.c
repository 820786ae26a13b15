/* logits in plain loops with double sums, and the rank of an id. */
#include "kernels/logits.h"
#include <math.h>

static void stats(const float *row, int vocab, int with_entropy, struct logit_stats *out)
{
    struct logit_stats s = {.argmax = 0, .max = -INFINITY, .second = -INFINITY};
    double sum = 0, weighted = 0;
    for (int i = 0; i < vocab; i++)
        if (row[i] > s.max) {
            s.second = s.max;
            s.max = row[i];
            s.argmax = i;
        } else if (row[i] > s.second) {
            s.second = row[i];
        }
    for (int i = 0; i < vocab; i++) {
        double e = exp((double)row[i] - s.max);
        sum += e;
        weighted +=
            e > 0 ? e * ((double)row[i] - s.max) : 0; /* a probability of 0 adds nothing to the entropy */
    }
    s.lse = (float)(s.max + log(sum));
    s.entropy = with_entropy ? (float)(log(sum) - weighted / sum) : 0;
    *out = s;
}

void logits_ref(const struct logits *a)
{
    for (int r = 0; r < a->rows; r++)
        stats(a->logits + (size_t)r * (size_t)a->vocab, a->vocab, a->with_entropy, &a->out[r]);
}

int logits_rank(const float *row, int vocab, int v)
{
    int before = 0;
    float x = row[v];
    for (int i = 0; i < v; i++)
        before += row[i] >= x;
    for (int i = v + 1; i < vocab; i++)
        before += row[i] > x;
    return before + 1;
}
