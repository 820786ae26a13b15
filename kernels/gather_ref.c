/* gather in plain loops with a double sum. */
#include "kernels/gather.h"
#include <math.h>

static void put(const struct gather *a, int row, int i, float v)
{
    const size_t at = (size_t)row * (size_t)a->k + (size_t)(a->column + i);
    if (a->y)
        a->y[at] = v;
    if (a->act)
        ((float *)a->act)[at] = v;
}

void gather_ref(const struct gather *a)
{
    for (int r = 0; r < a->rows; r++) {
        const int from = a->from ? a->from[r] : r;
        if (from < 0)
            continue;
        const float *x = a->x + (size_t)from * (size_t)a->dim;
        double sum = 0;
        for (int i = 0; i < a->dim; i++)
            sum += (double)x[i] * (double)x[i];
        const double factor = 1 / sqrt(sum / a->dim + (double)a->eps);
        for (int i = 0; i < a->dim; i++)
            put(a, r, i, a->w ? (float)((double)x[i] * factor * (double)a->w[i]) : x[i]);
    }
}
