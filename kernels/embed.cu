/* embed: a token's row gathered from fragment order: of each step of 16 inputs the row's values stand in four lanes, two
 * 4-byte words each.
 * launch   grid [rows, ceil(k / 16 / 64)], block 256: a thread is a lane of a step
 * moves    rows * k * 6 bytes; the 4-byte words use half of each 32-byte sector
 * roof     none that matters: 64 rows of 4096 are 1.6 MB, the launch itself is the cost */
#include "kernels/cuda.h"
#include "kernels/launch.cuh"

enum { THREADS = 256, STEPS = THREADS / 4 };

/* Inputs i, i + 1 of the row, which hold one 4-byte word of the fragment. */
static __device__ void put(float *y, int i, int k, uint32_t word)
{
    if (i < k)
        y[i] = __uint_as_float(word << 16);
    if (i + 1 < k)
        y[i + 1] = __uint_as_float(word & 0xffff0000u);
}

static __global__ void __launch_bounds__(THREADS)
    embed_kernel(const uint32_t *__restrict__ w, const int *token, float *y, int k)
{
    const int steps = (k + 15) / 16, step = (int)blockIdx.y * STEPS + (int)threadIdx.x / 4, pair = threadIdx.x % 4;
    launch_trigger();
    launch_wait();
    if (step >= steps)
        return;
    const int id = token[blockIdx.x], row = id % 16, lane = row % 8 * 4 + pair;
    const uint32_t *fragment = w + (((size_t)(id / 16) * (size_t)steps + (size_t)step) * 32 + (size_t)lane) * 4;
    float *to = y + (size_t)blockIdx.x * (size_t)k;
    put(to, step * 16 + pair * 2, k, fragment[row / 8]);
    put(to, step * 16 + pair * 2 + 8, k, fragment[2 + row / 8]);
}

KERN_API int embed_cuda(const struct embed *a, void *stream)
{
    const int k = a->w->k;
    const struct launch l = {.grid = dim3((unsigned)a->rows, (unsigned)(((k + 15) / 16 + STEPS - 1) / STEPS)),
                             .block = THREADS,
                             .stream = stream};
    return launch_kernel(&l, embed_kernel, (const uint32_t *)a->w->data, a->token, a->y, k);
}
