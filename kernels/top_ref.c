/* top: a list of the best so far, which few logits of a row enter. */
#include "kernels/top.h"
#include <math.h>

static int is_better(float a, float b)
{
    return a > b || (isnan(b) && !isnan(a));
}

static int best_ids(const float *row, int vocab, int k, int *id)
{
    int n = 0;
    for (int v = 0; v < vocab; v++) {
        int at = n < k ? n++ : k;
        if (at == k && !is_better(row[v], row[id[k - 1]]))
            continue;
        at = at == k ? k - 1 : at;
        for (; at > 0 && is_better(row[v], row[id[at - 1]]); at--)
            id[at] = id[at - 1];
        id[at] = v;
    }
    return n;
}

void top_ref(const struct top *a)
{
    for (int r = 0; r < a->rows; r++) {
        const int from = a->from ? a->from[r] : r;
        if (from < 0)
            continue;
        const float *row = a->logits + (size_t)from * (size_t)a->vocab;
        int *id = a->id + (size_t)r * (size_t)a->k;
        float *log_p = a->log_p + (size_t)r * (size_t)a->k;
        const int n = best_ids(row, a->vocab, a->k, id);
        const double most = (double)row[id[0]];
        double sum = 0;
        for (int v = 0; v < a->vocab; v++)
            sum += exp((double)row[v] - most);
        for (int i = 0; i < n; i++) {
            log_p[i] = (float)((double)row[id[i]] - most - log(sum));
            id[i] = a->map ? a->map[id[i]] : id[i];
        }
    }
}
