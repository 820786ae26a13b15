/* gather: a row is copied, or normed with the bits of rmsnorm, to wherever it is wanted first, and from there
 * to where it is wanted too. */
#include "kernels/gather.h"
#include "kernels/rmsnorm.h"
#include "kernels/simd.h"

void KERN_NAME(rmsnorm)(const struct rmsnorm *a);

static void gather_row(const struct gather *a, int row, int from)
{
    const size_t dim = (size_t)a->dim, at = (size_t)row * (size_t)a->k + (size_t)a->column;
    const float *x = a->x + (size_t)from * dim;
    float *y = a->y ? a->y + at : NULL;
    float *act = a->act ? (float *)a->act + at : NULL;
    float *first = y ? y : act;
    const struct rmsnorm norm = {
        .x = x, .w = a->w, .y.act = first, .rows = 1, .dim = a->dim, .threads = 1, .eps = a->eps};
    if (a->w)
        KERN_NAME(rmsnorm)(&norm);
    else if (first != x)
        memcpy(first, x, dim * sizeof *x);
    if (y && act)
        memcpy(act, y, dim * sizeof *y);
}

void KERN_NAME(gather)(const struct gather *a)
{
    for (int r = 0; r < a->rows; r++) {
        const int from = a->from ? a->from[r] : r;
        if (from >= 0)
            gather_row(a, r, from);
    }
}
