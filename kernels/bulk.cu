/* bulk: the passes over rows between the products of a long prefill pass. All are limited by memory.
 * rmsnorm   a block of 256 a row; squares summed by a thread in order, by halving within a warp, warps in
 * order; x is read twice, the second time from the L1. Moves 6 rows dim bytes swiglu    a thread eight
 * outputs; grid [ceil(m / 2048), rows]. Moves 6 rows m bytes; expf and a division in f32 still hide behind
 * them quantise  a block of 256 a row, read twice and written once. Moves 4 rows k bytes; element by element,
 *           because it serves a test of accuracy that nobody times */
#include "kernels/bulk.h"
#include "kernels/cuda.h"
#include "kernels/fp8.h"
#include "kernels/launch.cuh"

enum { THREADS = 256, WARPS = THREADS / 32 };

static __device__ unsigned pack(float low, float high)
{
    unsigned u;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low));
    return u;
}

/* The warps' values, in every thread. */
static __device__ void share(float part[WARPS], float v)
{
    __shared__ float all[WARPS];
    if (threadIdx.x % 32 == 0)
        all[threadIdx.x / 32] = v;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        part[i] = all[i];
}

static __device__ float block_sum(float v)
{
    float part[WARPS], sum = 0;
    for (int step = 16; step > 0; step /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, step);
    share(part, v);
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        sum += part[i];
    return sum;
}

static __device__ float block_max(float v)
{
    float part[WARPS], most = 0;
    for (int step = 16; step > 0; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    share(part, v);
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        most = fmaxf(most, part[i]);
    return most;
}

/* Elements i..i + 3 of a row, zeros past its end. */
static __device__ float4 load_four(const float *x, int i, int dim)
{
    if (dim % 4 == 0)
        return *(const float4 *)(x + i);
    return make_float4(x[i], i + 1 < dim ? x[i + 1] : 0.0f, i + 2 < dim ? x[i + 2] : 0.0f,
                       i + 3 < dim ? x[i + 3] : 0.0f);
}

static __device__ void store_four(bf16 *y, int i, int dim, uint2 v)
{
    const unsigned w[2] = {v.x, v.y};
    if (dim % 4 == 0) {
        *(uint2 *)(y + i) = v;
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (i + e < dim)
            y[i + e] = (bf16)(w[e / 2] >> (e % 2 * 16));
}

static __global__ void __launch_bounds__(THREADS)
    rmsnorm_bulk_kernel(const float *x, const float *w, bf16 *y, int dim, float eps)
{
    float sum = 0;
    launch_trigger();
    launch_wait();
    x += (size_t)blockIdx.x * (size_t)dim;
    y += (size_t)blockIdx.x * (size_t)dim;
    for (int i = (int)threadIdx.x * 4; i < dim; i += THREADS * 4) {
        const float4 v = load_four(x, i, dim);
        sum = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
    }
    const float scale = 1.0f / sqrtf(block_sum(sum) / (float)dim + eps);
    for (int i = (int)threadIdx.x * 4; i < dim; i += THREADS * 4) {
        const float4 v = load_four(x, i, dim), g = load_four(w, i, dim);
        store_four(y, i, dim,
                   make_uint2(pack(v.x * scale * g.x, v.y * scale * g.y),
                              pack(v.z * scale * g.z, v.w * scale * g.w)));
    }
}

static __device__ float swiglu(float g, float u)
{
    return g / (1.0f + expf(-g)) * u;
}

/* Two outputs. */
static __device__ unsigned swiglu_pair(unsigned g, unsigned u)
{
    return pack(swiglu(__uint_as_float(g << 16), __uint_as_float(u << 16)),
                swiglu(__uint_as_float(g & 0xffff0000u), __uint_as_float(u & 0xffff0000u)));
}

static __global__ void __launch_bounds__(THREADS) swiglu_bulk_kernel(const bf16 *gate_up, bf16 *y, int m)
{
    const int i = ((int)blockIdx.x * THREADS + (int)threadIdx.x) * 8;
    launch_trigger();
    launch_wait();
    const bf16 *g = gate_up + (size_t)blockIdx.y * 2 * (size_t)m + i, *u = g + m;
    bf16 *to = y + (size_t)blockIdx.y * (size_t)m + i;
    if (i >= m)
        return;
    if (m % 8 == 0) {
        const uint4 a = *(const uint4 *)g, b = *(const uint4 *)u;
        *(uint4 *)to = make_uint4(swiglu_pair(a.x, b.x), swiglu_pair(a.y, b.y), swiglu_pair(a.z, b.z),
                                  swiglu_pair(a.w, b.w));
        return;
    }
    for (int e = 0; e < 8 && i + e < m; e++)
        to[e] = (bf16)swiglu_pair(g[e], u[e]);
}

/* fixed 0: a scale of the row. */
static __global__ void __launch_bounds__(THREADS) quantise_bulk_kernel(bf16 *x, float *scale, int k, float fixed)
{
    float most = 0;
    launch_trigger();
    launch_wait();
    x += (size_t)blockIdx.x * (size_t)k;
    for (int i = (int)threadIdx.x; i < k && !(fixed > 0); i += THREADS)
        most = fmaxf(most, fabsf(__uint_as_float((unsigned)x[i] << 16)));
    most = block_max(most);
    const float by = fixed > 0 ? fixed : most > 0 ? __fdiv_rn(most, FP8_MAX) : 1.0f;
    for (int i = (int)threadIdx.x; i < k; i += THREADS) {
        const uint8_t number = fp8_from_f32(__fdiv_rn(__uint_as_float((unsigned)x[i] << 16), by));
        x[i] = (bf16)pack(__fmul_rn(fp8_to_f32(number), by), 0);
    }
    if (threadIdx.x == 0)
        scale[blockIdx.x] = 1;
}

KERN_API int rmsnorm_bulk_cuda(const struct rmsnorm *a, void *stream)
{
    const struct launch l = {.grid = (unsigned)a->rows, .block = THREADS, .stream = stream};
    if (a->rows == 0)
        return 0;
    return launch_kernel(&l, rmsnorm_bulk_kernel, a->x, a->w, (bf16 *)a->y.act, a->dim, a->eps);
}

KERN_API int swiglu_bulk_cuda(const struct swiglu_bulk *a, void *stream)
{
    const unsigned across = (unsigned)((a->m + THREADS * 8 - 1) / (THREADS * 8));
    const struct launch l = {.grid = dim3(across, (unsigned)a->rows), .block = THREADS, .stream = stream};
    if (a->rows == 0)
        return 0;
    return launch_kernel(&l, swiglu_bulk_kernel, a->gate_up, a->y, a->m);
}

KERN_API int quantise_bulk_cuda(const struct quantise *a, void *stream)
{
    const struct launch l = {.grid = (unsigned)a->rows, .block = THREADS, .stream = stream};
    if (a->rows == 0)
        return 0;
    return launch_kernel(&l, quantise_bulk_kernel, (bf16 *)a->x, a->scale, a->k, a->fixed);
}
