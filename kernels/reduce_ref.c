/* reduce and gather of all ranks' parts, which one process can see at once. */
#include "kernels/reduce.h"
#include <string.h>

static float on_wire(float x, enum wire wire)
{
    return wire == WIRE_BF16 ? bf16_to_f32(bf16_from_f32(x)) : x;
}

void reduce_sum(const struct reduce *a, const float *const *part, int world)
{
    const size_t n = (size_t)a->rows * (size_t)a->n;
    for (size_t i = 0; i < n; i++) {
        float sum = on_wire(part[0][i], a->wire);
        for (int p = 1; p < world; p++)
            sum += on_wire(part[p][i], a->wire);
        a->y[i] += sum;
    }
}

void reduce_ref(const struct reduce *a, const float *const *part, int world)
{
    reduce_sum(a, part, world);
    rmsnorm_ref(&a->norm);
}

void gather_ref(const struct gather *a, const float *const *part, int world)
{
    for (int r = 0; r < a->rows; r++)
        for (int p = 0; p < world; p++) {
            const int first = p * a->each, left = a->n - first, n = left < a->each ? left : a->each;
            memcpy(a->whole + (size_t)r * (size_t)a->n + first, part[p] + (size_t)r * (size_t)n,
                   (size_t)n * sizeof(float));
        }
}
