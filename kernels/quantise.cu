/* quantise: a block a row. A thread takes the four inputs of an act's lane. With a scale of its own up to 16384
 * inputs the row stays in registers between the maximum and the rounding, beyond it is read twice; with a fixed
 * scale each warp adds the row's squares for itself.
 * launch   grid rows, block 32..512 by k alone, shared 64 B
 * moves    4 rows k bytes
 * roof     none that matters: 8 rows of 14336 are 0.5 MB, the chain load, maximum, store is the cost */
#include "kernels/quantise.cuh"
#include "kernels/cuda.h"
#include "kernels/launch.cuh"

enum { MAX_THREADS = 512, KEEP = 8 };

struct quantise_args {
    const uint16_t *from; /* may be x */
    uint16_t *x;
    float *scale;
    const float *square;
    int k;
    float fixed, eps;
};

/* Over the block, in every thread. */
static __device__ float block_largest(float v)
{
    __shared__ float part[MAX_THREADS / 32];
    for (int mask = 16; mask > 0; mask /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, mask));
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    for (unsigned i = 0; i < blockDim.x / 32; i++)
        v = fmaxf(v, part[i]);
    return v;
}

template <int F> static __device__ uint2 rounded(uint2 v, float scale)
{
    return make_uint2(quantise_pair<F>(quantise_floats<F>(v.x), scale),
                      quantise_pair<F>(quantise_floats<F>(v.y), scale));
}

template <int F>
static __global__ void __launch_bounds__(MAX_THREADS) quantise_kernel(const struct quantise_args a)
{
    const int quads = (a.k + ACT_STEP - 1) / ACT_STEP * 4, row = (int)blockIdx.x, threads = (int)blockDim.x;
    uint2 kept[KEEP];
    float most = 0;
    launch_trigger();
    launch_wait();
    const uint2 *from = (const uint2 *)(a.from + act_at(row, 0, a.k));
    uint2 *to = (uint2 *)(a.x + act_at(row, 0, a.k));
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
        const int quad = (int)threadIdx.x + i * threads;
        kept[i] = quad < quads ? from[quantise_word(quad)] : make_uint2(0, 0);
    }
#pragma unroll
    for (int i = 0; i < KEEP; i++)
        most = quantise_largest<F>(most, kept[i]);
    for (int quad = (int)threadIdx.x + KEEP * threads; quad < quads; quad += threads)
        most = quantise_largest<F>(most, from[quantise_word(quad)]);
    most = block_largest(most);
    const float by = quantise_scale(most);
    if (threadIdx.x == 0)
        a.scale[row] = by;
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
        const int quad = (int)threadIdx.x + i * threads;
        if (quad < quads)
            to[quantise_word(quad)] = rounded<F>(kept[i], by);
    }
    for (int quad = (int)threadIdx.x + KEEP * threads; quad < quads; quad += threads)
        to[quantise_word(quad)] = rounded<F>(from[quantise_word(quad)], by);
}

template <int F>
static __global__ void __launch_bounds__(MAX_THREADS) quantise_fixed_kernel(const struct quantise_args a)
{
    const int row = (int)blockIdx.x, steps = (a.k + ACT_STEP - 1) / ACT_STEP;
    const size_t at = act_at(row, 0, a.k);
    launch_trigger();
    launch_wait();
    const float *square = a.square ? a.square + (size_t)row * (size_t)steps : NULL;
    quantise_row<F>(a.from + at, a.x + at, a.k, quantise_short(square, steps, a.k, a.eps), a.fixed);
    if (threadIdx.x == 0)
        a.scale[row] = a.fixed;
}

KERN_API int quantise_cuda(const struct quantise *a, void *stream)
{
    const int quads = (a->k + ACT_STEP - 1) / ACT_STEP * 4, threads = (quads + 31) / 32 * 32;
    const struct launch l = {.grid = (unsigned)a->rows,
                             .block = (unsigned)(threads < MAX_THREADS ? threads : MAX_THREADS),
                             .stream = stream};
    struct quantise_args p = {};
    p.from = (const uint16_t *)(a->from ? a->from : a->x);
    p.x = (uint16_t *)a->x;
    p.scale = a->scale;
    p.square = a->square;
    p.k = a->k;
    p.fixed = a->fixed;
    p.eps = a->eps;
    if (a->fixed > 0)
        return a->form == ACT_F16 ? launch_kernel(&l, quantise_fixed_kernel<ACT_F16>, p)
                                  : launch_kernel(&l, quantise_fixed_kernel<ACT_BF16>, p);
    return a->form == ACT_F16 ? launch_kernel(&l, quantise_kernel<ACT_F16>, p)
                              : launch_kernel(&l, quantise_kernel<ACT_BF16>, p);
}
