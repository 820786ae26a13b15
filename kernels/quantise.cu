/* quantise: a block a row. A thread takes the four inputs of an act's lane, which are one word of 8 bytes; up
 * to 16384 inputs the row stays in registers between the maximum and the rounding, beyond it is read twice.
 * launch   grid rows, block 32..512 by k alone, shared 64 B
 * moves    4 rows k bytes
 * roof     none that matters: 8 rows of 14336 are 0.5 MB, the chain load, maximum, store is the cost */
#include "kernels/act.h"
#include "kernels/cuda.h"
#include "kernels/fp8.h"
#include "kernels/launch.cuh"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

enum { MAX_THREADS = 512, KEEP = 8 };

template <int F> static __device__ float2 floats(uint32_t pair)
{
    return F == ACT_F16 ? __half22float2(*(const __half2 *)&pair)
                        : __bfloat1622float2(*(const __nv_bfloat162 *)&pair);
}

template <int F> static __device__ float largest(float most, uint2 v)
{
    const float2 a = floats<F>(v.x), b = floats<F>(v.y);
    return fmaxf(most, fmaxf(fmaxf(fabsf(a.x), fabsf(a.y)), fmaxf(fabsf(b.x), fabsf(b.y))));
}

/* Quad q stands in lane q % 4 of the row's four, of step q / 4: a step is 32 words. */
static __device__ size_t word(int quad)
{
    return (size_t)(quad / 4) * 32 + (size_t)(quad % 4);
}

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

/* The E4M3 nearest to x / scale, in the act's form, which holds it exactly. */
template <int F> static __device__ uint32_t rounded(uint32_t pair, float scale)
{
    const float2 x = floats<F>(pair);
    uint16_t codes;
    uint32_t wide;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
        : "=h"(codes)
        : "f"(__fdiv_rn(x.y, scale)), "f"(__fdiv_rn(x.x, scale)));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(wide) : "h"(codes));
    if (F == ACT_F16)
        return wide;
    const __nv_bfloat162 v = __float22bfloat162_rn(floats<ACT_F16>(wide));
    return *(const uint32_t *)&v;
}

/* from may be x. */
template <int F>
static __global__ void __launch_bounds__(MAX_THREADS)
    quantise_kernel(const uint16_t *from, uint16_t *x, float *scale, int k)
{
    const int quads = (k + ACT_STEP - 1) / ACT_STEP * 4, row = (int)blockIdx.x, threads = (int)blockDim.x;
    uint2 kept[KEEP];
    float most = 0;
    launch_trigger();
    launch_wait();
    const uint2 *old = (const uint2 *)(from + act_at(row, 0, k));
    uint2 *made = (uint2 *)(x + act_at(row, 0, k));
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
        const int quad = (int)threadIdx.x + i * threads;
        kept[i] = quad < quads ? old[word(quad)] : make_uint2(0, 0);
    }
#pragma unroll
    for (int i = 0; i < KEEP; i++)
        most = largest<F>(most, kept[i]);
    for (int quad = (int)threadIdx.x + KEEP * threads; quad < quads; quad += threads)
        most = largest<F>(most, old[word(quad)]);
    most = block_largest(most);
    const float by = most > 0 ? __fdiv_rn(most, FP8_MAX) : 1.0f;
    if (threadIdx.x == 0)
        scale[row] = by;
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
        const int quad = (int)threadIdx.x + i * threads;
        if (quad < quads)
            made[word(quad)] = make_uint2(rounded<F>(kept[i].x, by), rounded<F>(kept[i].y, by));
    }
    for (int quad = (int)threadIdx.x + KEEP * threads; quad < quads; quad += threads) {
        const uint2 v = old[word(quad)];
        made[word(quad)] = make_uint2(rounded<F>(v.x, by), rounded<F>(v.y, by));
    }
}

KERN_API int quantise_cuda(const struct quantise *a, void *stream)
{
    const int quads = (a->k + ACT_STEP - 1) / ACT_STEP * 4, threads = (quads + 31) / 32 * 32;
    const struct launch l = {.grid = (unsigned)a->rows,
                             .block = (unsigned)(threads < MAX_THREADS ? threads : MAX_THREADS),
                             .stream = stream};
    const uint16_t *from = (const uint16_t *)(a->from ? a->from : a->x);
    return a->form == ACT_F16 ? launch_kernel(&l, quantise_kernel<ACT_F16>, from, (uint16_t *)a->x, a->scale, a->k)
                              : launch_kernel(&l, quantise_kernel<ACT_BF16>, from, (uint16_t *)a->x, a->scale, a->k);
}
