/* quantise: two passes over a row, in plain C; nobody waits for it. */
#include "kernels/quantise.h"
#include "kernels/fp8.h"
#include <math.h>

static float scale_of(const float *x, int k)
{
    float most = 0;
    for (int i = 0; i < k; i++)
        most = fmaxf(most, fabsf(x[i]));
    return most > 0 ? most / FP8_MAX : 1.0f;
}

void quantise_ref(const struct quantise *a)
{
    for (int r = 0; r < a->rows; r++) {
        float *x = (float *)a->x + (size_t)r * (size_t)a->k;
        const float *from = a->from ? (const float *)a->from + (size_t)r * (size_t)a->k : x;
        a->scale[r] = a->fixed > 0 ? a->fixed : scale_of(from, a->k);
        for (int i = 0; i < a->k; i++)
            x[i] = fp8_to_f32(fp8_from_f32(from[i] / a->scale[r]));
    }
}
