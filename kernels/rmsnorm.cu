/* rmsnorm: a block a row. A thread takes the four inputs of a lane of the act, so that it stores them as one word; up to
 * 8192 inputs the row stays in registers between the sum and the scaling, beyond it is read twice.
 * launch   grid rows, block 32..512 by dim alone, shared 64 B
 * math     squares summed by a thread in order, threads by halving within a warp, warps in order: fixed by dim
 * moves    rows * dim * 6 + dim * 4 bytes; the weights are requested before the wait for x
 * roof     none that matters: 8 rows of 4096 are 0.2 MB, the chain load, sum, store is the cost */
#include "kernels/act.h"
#include "kernels/cuda.h"
#include "kernels/launch.cuh"

enum { MAX_THREADS = 512, KEEP = 4 };

/* Inputs {0, 1, 8, 9} + 2 * (lane % 4) of a step; 0 past the last. */
static __device__ float4 load_quad(const float *x, int quad, int dim)
{
    const int i = quad / 4 * ACT_STEP + quad % 4 * 2;
    return make_float4(i < dim ? x[i] : 0.0f, i + 1 < dim ? x[i + 1] : 0.0f, i + 8 < dim ? x[i + 8] : 0.0f,
                       i + 9 < dim ? x[i + 9] : 0.0f);
}

static __device__ float add_squares(float sum, float4 v)
{
    sum = fmaf(v.x, v.x, sum);
    sum = fmaf(v.y, v.y, sum);
    sum = fmaf(v.z, v.z, sum);
    return fmaf(v.w, v.w, sum);
}

/* The sum over the block, in every thread. */
static __device__ float block_sum(float v)
{
    __shared__ float part[MAX_THREADS / 32];
    for (int step = 16; step > 0; step /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, step);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = part[0];
    for (unsigned i = 1; i < blockDim.x / 32; i++)
        sum += part[i];
    return sum;
}

static __device__ void store_quad(bf16 *to, int quad, float4 v, float scale, float4 w)
{
    uint32_t low, high;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(low) : "f"(v.y * scale * w.y), "f"(v.x * scale * w.x));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(high) : "f"(v.w * scale * w.w), "f"(v.z * scale * w.z));
    *(uint2 *)(to + (size_t)(quad / 4) * (ACT_STEP * ACT_ROWS) + (size_t)(quad % 4) * 4) = make_uint2(low, high);
}

static __global__ void __launch_bounds__(MAX_THREADS, 1)
    rmsnorm_kernel(const float *x, const float *__restrict__ w, bf16 *y, int dim, float eps)
{
    const int quads = (dim + ACT_STEP - 1) / ACT_STEP * 4, row = (int)blockIdx.x, threads = (int)blockDim.x;
    float4 kept[KEEP], weight[KEEP];
    float sum = 0;
    launch_trigger();
    for (int i = 0; i < KEEP; i++)
        weight[i] = load_quad(w, (int)threadIdx.x + i * threads, dim);
    launch_wait();
    x += (size_t)row * (size_t)dim;
    y += act_at(row, 0, dim);
#pragma unroll
    for (int i = 0; i < KEEP; i++)
        kept[i] = load_quad(x, (int)threadIdx.x + i * threads, dim);
#pragma unroll
    for (int i = 0; i < KEEP; i++)
        sum = add_squares(sum, kept[i]);
    for (int quad = (int)threadIdx.x + KEEP * threads; quad < quads; quad += threads)
        sum = add_squares(sum, load_quad(x, quad, dim));
    const float scale = 1.0f / sqrtf(block_sum(sum) / (float)dim + eps);
#pragma unroll
    for (int i = 0; i < KEEP; i++)
        if ((int)threadIdx.x + i * threads < quads)
            store_quad(y, (int)threadIdx.x + i * threads, kept[i], scale, weight[i]);
    for (int quad = (int)threadIdx.x + KEEP * threads; quad < quads; quad += threads)
        store_quad(y, quad, load_quad(x, quad, dim), scale, load_quad(w, quad, dim));
}

KERN_API int rmsnorm_cuda(const struct rmsnorm *a, void *stream)
{
    const int quads = (a->dim + ACT_STEP - 1) / ACT_STEP * 4, threads = (quads + 31) / 32 * 32;
    const struct launch l = {.grid = (unsigned)a->rows,
                             .block = (unsigned)(threads < MAX_THREADS ? threads : MAX_THREADS),
                             .stream = stream};
    return launch_kernel(&l, rmsnorm_kernel, a->x, a->w, (bf16 *)a->y.act, a->dim, a->eps);
}
