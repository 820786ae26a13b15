/* rope: a thread takes components j..j+3 and their partners of one head; queries are rotated in place, keys
 * and values go to their cells as bf16. launch   table: a thread an angle, grid [rows, ceil(head_dim / 2 /
 * 128)]; rope: grid [rows, ceil(heads of q, k, v * head_dim / 8 / 128)] math     f32, the second product of
 * each sum fused as on the CPU; sine and cosine with full range reduction moves    q 8 bytes a component, k
 * and v 6; 64 rows of 32 + 2 * 8 heads of 128: 2.9 MB, the launch itself is the cost */
#include "kernels/cuda.h"
#include "kernels/launch.cuh"

enum { THREADS = 128, WIDTH = 4 };

static __global__ void __launch_bounds__(THREADS)
    rope_table_kernel(const int *pos, const float *__restrict__ inv_freq, int half, float *cos_sin)
{
    const int j = (int)blockIdx.y * THREADS + (int)threadIdx.x;
    launch_trigger();
    if (j >= half)
        return;
    const float frequency = inv_freq[j];
    launch_wait();
    float *to = cos_sin + (size_t)blockIdx.x * (size_t)half * 2 + j;
    sincosf(__fmul_rn((float)pos[blockIdx.x], frequency), to + half, to);
}

static __device__ float4 turn(float4 x, float4 cos, float4 partner, float4 sin)
{
    return make_float4(__fmaf_rn(partner.x, sin.x, __fmul_rn(x.x, cos.x)),
                       __fmaf_rn(partner.y, sin.y, __fmul_rn(x.y, cos.y)),
                       __fmaf_rn(partner.z, sin.z, __fmul_rn(x.z, cos.z)),
                       __fmaf_rn(partner.w, sin.w, __fmul_rn(x.w, cos.w)));
}

static __device__ float4 negative(float4 x)
{
    return make_float4(-x.x, -x.y, -x.z, -x.w);
}

static __device__ void store_bf16(bf16 *to, float4 x)
{
    uint32_t low, high;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(low) : "f"(x.y), "f"(x.x));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(high) : "f"(x.w), "f"(x.z));
    *(uint2 *)to = make_uint2(low, high);
}

static __global__ void __launch_bounds__(THREADS)
    rope_kernel(const int *slot, const int *cell, float *qkv, const float *cos_sin, bf16 *k, bf16 *v,
                int heads, int kv_heads, int dim, int cap)
{
    const int half = dim / 2, unit = ((int)blockIdx.y * THREADS + (int)threadIdx.x) * WIDTH,
              head = unit / half, j = unit % half;
    const int row = (int)blockIdx.x, all = heads + 2 * kv_heads;
    launch_trigger();
    if (head >= all)
        return;
    launch_wait();
    float *x = qkv + ((size_t)row * (size_t)all + (size_t)head) * (size_t)dim + j;
    float4 low = *(const float4 *)x, high = *(const float4 *)(x + half);
    if (head < heads + kv_heads) {
        const float *table = cos_sin + (size_t)row * (size_t)dim + j;
        const float4 cos = *(const float4 *)table, sin = *(const float4 *)(table + half), before = low;
        low = turn(low, cos, negative(high), sin);
        high = turn(high, cos, before, sin);
    }
    if (head < heads) {
        *(float4 *)x = low;
        *(float4 *)(x + half) = high;
        return;
    }
    const int kv_head = (head - heads) % kv_heads;
    const size_t at =
        ((size_t)slot[row] * (size_t)kv_heads + (size_t)kv_head) * (size_t)cap + (size_t)cell[row];
    bf16 *to = (head < heads + kv_heads ? k : v) + at * (size_t)dim + j;
    store_bf16(to, low);
    store_bf16(to + half, high);
}

KERN_API int rope_table_cuda(const struct rows *rows, const float *inv_freq, int head_dim, float *cos_sin,
                             void *stream)
{
    const int half = head_dim / 2;
    if (rows->n == 0)
        return 0;
    const dim3 grid((unsigned)rows->n, (unsigned)((half + THREADS - 1) / THREADS));
    const struct launch l = {grid, dim3(THREADS), 0, 0, stream};
    return launch_kernel(&l, rope_table_kernel, rows->pos, inv_freq, half, cos_sin);
}

KERN_API int rope_cuda(const struct rope *a, void *stream)
{
    const struct kv_layer *kv = &a->kv;
    const int units = (a->heads + 2 * kv->kv_heads) * kv->head_dim / (2 * WIDTH);
    if (a->rows->n == 0)
        return 0;
    const dim3 grid((unsigned)a->rows->n, (unsigned)((units + THREADS - 1) / THREADS));
    const struct launch l = {grid, dim3(THREADS), 0, 0, stream};
    return launch_kernel(&l, rope_kernel, a->rows->slot, a->rows->cell, a->qkv, a->cos_sin, (bf16 *)kv->k,
                         (bf16 *)kv->v, a->heads, kv->kv_heads, kv->head_dim, kv->cap);
}
