/* rmsnorm with double sums. */
#include "kernels/rmsnorm.h"
#include <math.h>

void rmsnorm_ref(const struct rmsnorm *a)
{
    for (int r = 0; r < a->rows; r++) {
        const float *x = a->x + (size_t)r * (size_t)a->dim;
        float *y = (float *)a->y.act + (size_t)r * (size_t)a->dim;
        double sum = 0;
        for (int i = 0; i < a->dim; i++)
            sum += (double)x[i] * x[i];
        double scale = 1 / sqrt(sum / a->dim + a->eps);
        for (int i = 0; i < a->dim; i++)
            y[i] = (float)(x[i] * scale * a->w[i]);
    }
}
