/* rmsnorm: two passes over a row that stays in the first-level cache. A few rows take less time than waking a
 * thread. */
#include "kernels/rmsnorm.h"
#include "kernels/simd.h"
#include <math.h>

static void norm_row(const struct rmsnorm *a, int row)
{
    const float *x = a->x + (size_t)row * (size_t)a->dim;
    float *y = (float *)a->y.act + (size_t)row * (size_t)a->dim;
    int whole = a->dim / 16 * 16;
    struct v16 sum = v16_set1(0.0f);
    for (int i = 0; i < whole; i += 16) {
        struct v16 v = v16_load(x + i);
        sum = v16_fma(v, v, sum);
    }
    if (whole < a->dim) {
        struct v16 v = v16_load_part(x + whole, a->dim - whole, 0.0f);
        sum = v16_fma(v, v, sum);
    }
    float scale = 1.0f / sqrtf(v16_sum(sum) / (float)a->dim + a->eps);
    for (int i = 0; i < whole; i += 16)
        v16_store(y + i, v16_mul(v16_mul(v16_load(x + i), v16_set1(scale)), v16_load(a->w + i)));
    for (int i = whole; i < a->dim; i++)
        y[i] = x[i] * scale * a->w[i];
}

void KERN_NAME(rmsnorm)(const struct rmsnorm *a)
{
#pragma omp parallel for num_threads(a->threads) schedule(static) if (a->threads > 1 && a->rows > 8)
    for (int r = 0; r < a->rows; r++)
        norm_row(a, r);
}
