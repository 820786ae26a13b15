/* quantise: two passes over a row, in plain C; nobody waits for it. */
#include "kernels/quantise.h"
#include "kernels/fp8.h"
#include <math.h>

void quantise_ref(const struct quantise *a)
{
    for (int r = 0; r < a->rows; r++) {
        float *x = (float *)a->x + (size_t)r * (size_t)a->k, most = 0;
        const float *from = a->from ? (const float *)a->from + (size_t)r * (size_t)a->k : x;
        for (int i = 0; i < a->k; i++)
            most = fmaxf(most, fabsf(from[i]));
        a->scale[r] = most > 0 ? most / FP8_MAX : 1.0f;
        for (int i = 0; i < a->k; i++)
            x[i] = fp8_to_f32(fp8_from_f32(from[i] / a->scale[r]));
    }
}
