/* rope: a thread takes components j..j+3 and their partners of one head; queries are rotated in place, keys
 * and values go to their cells, as bf16 or E4M3. A row of nobody (slot < 0) is left as it is.
 *
 * Layers without rotation, with a norm of each head or with a temperature take rope_any: a warp a head.
 *
 * rope_table runs once a pass, ahead of its first product, and is the pass's gate: it lets the next kernel
 * begin behind launch_wait, not ahead of it. Whatever comes later in the pass then begins when everything
 * before rope_table has ended, so it may read rows' arrays and cells of earlier passes ahead of its own
 * launch_wait, as kernels/attention.cu does. Elsewhere a kernel may begin while several before it wait.
 * launch   table: a thread an angle, grid [rows, ceil(head_dim / 2 / 128)]; rope: grid [rows, ceil(heads of
 *          q, k, v * head_dim / 8 / 128)]
 * math     f32, the second product of each sum fused as on the CPU; sine and cosine with full range reduction
 * moves    q 8 bytes a component, k and v 6 (5 as E4M3); 64 rows of 32 + 2 * 8 heads of 128: 2.9 MB, the
 *          launch itself is the cost */
#include "kernels/cuda.h"
#include "kernels/fp8.h"
#include "kernels/launch.cuh"
#include <cuda_bf16.h>

enum { THREADS = 128, WIDTH = 4 };

static __global__ void __launch_bounds__(THREADS)
    rope_table_kernel(const int *pos, const float *__restrict__ inv_freq, int half, float *cos_sin)
{
    const int j = (int)blockIdx.y * THREADS + (int)threadIdx.x;
    const float frequency = j < half ? inv_freq[j] : 0;
    launch_wait();
    launch_trigger();
    if (j >= half)
        return;
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

/* Four components of a cell from element `at` on. */
static __device__ void put_cell(void *cells, enum kv_form form, size_t at, float4 x)
{
    if (form == KV_FP8) {
        uint16_t low, high;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(x.y), "f"(x.x));
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(x.w), "f"(x.z));
        *(uint32_t *)((uint8_t *)cells + at) = (uint32_t)low | (uint32_t)high << 16;
        return;
    }
    uint32_t low, high;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(low) : "f"(x.y), "f"(x.x));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(high) : "f"(x.w), "f"(x.z));
    *(uint2 *)((bf16 *)cells + at) = make_uint2(low, high);
}

/* The first number of the cell that head `head` of a row, a key's or a value's, goes to. */
static __device__ size_t cell_at(const struct kv_layer &kv, int slot, int head, int heads, int cell)
{
    const size_t first = ((size_t)slot * (size_t)kv.kv_heads + (size_t)((head - heads) % kv.kv_heads)) *
                         (size_t)kv.cap;
    return (first + (size_t)cell) * (size_t)kv.head_dim;
}

static __global__ void __launch_bounds__(THREADS)
    rope_kernel(const int *row_slot, const int *cell, float *qkv, const float *cos_sin,
                const __grid_constant__ struct kv_layer kv, int heads)
{
    const int dim = kv.head_dim, half = dim / 2,
              unit = ((int)blockIdx.y * THREADS + (int)threadIdx.x) * WIDTH, head = unit / half,
              j = unit % half;
    const int row = (int)blockIdx.x, all = heads + 2 * kv.kv_heads;
    launch_trigger();
    if (head >= all)
        return;
    launch_wait();
    const int slot = row_slot[row];
    if (slot < 0)
        return;
    float *x = qkv + ((size_t)row * (size_t)all + (size_t)head) * (size_t)dim + j;
    float4 low = *(const float4 *)x, high = *(const float4 *)(x + half);
    if (head < heads + kv.kv_heads) {
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
    const size_t at = cell_at(kv, slot, head, heads, cell[row]) + (size_t)j;
    void *cells = head < heads + kv.kv_heads ? kv.k : kv.v;
    put_cell(cells, kv.form, at, low);
    put_cell(cells, kv.form, at + (size_t)half, high);
}

/* Any of rotation, norm and temperature. A warp a head of a row; a lane takes components j and j + half for j =
 * lane, lane + 32, ...; squares of a lane in that order, then lanes pairwise. */
static __global__ void __launch_bounds__(THREADS)
    rope_any_kernel(const int *row_slot, const int *cell, float *qkv, const float *cos_sin,
                    const float *temperature, const __grid_constant__ struct kv_layer kv, int heads, float eps)
{
    const int dim = kv.head_dim, half = dim / 2, all = heads + 2 * kv.kv_heads, lane = (int)threadIdx.x % 32;
    const int row = (int)blockIdx.x, head = ((int)blockIdx.y * THREADS + (int)threadIdx.x) / 32;
    const int is_value = head >= heads + kv.kv_heads, is_query = head < heads;
    launch_trigger();
    if (head >= all)
        return;
    launch_wait();
    const int slot = row_slot[row];
    if (slot < 0)
        return;
    float *x = qkv + ((size_t)row * (size_t)all + (size_t)head) * (size_t)dim;
    const float *table = cos_sin ? cos_sin + (size_t)row * (size_t)dim : NULL;
    float sum = 0, by = is_query && temperature ? temperature[row] : 1.0f;
    for (int j = lane; j < half; j += 32) {
        const float low = x[j], high = x[j + half];
        if (table && !is_value) {
            const float cos = table[j], sin = table[j + half];
            x[j] = __fmaf_rn(-high, sin, __fmul_rn(low, cos));
            x[j + half] = __fmaf_rn(low, sin, __fmul_rn(high, cos));
        }
        sum = __fmaf_rn(x[j + half], x[j + half], __fmaf_rn(x[j], x[j], sum));
    }
    __syncwarp(); /* a head of 16 or 48: below, a lane reads what another wrote */
    if (eps > 0 && !is_value) {
        for (int mask = 16; mask > 0; mask /= 2)
            sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, mask));
        by = __fmul_rn(by, __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)dim), eps))));
    }
    const size_t at = is_query ? 0 : cell_at(kv, slot, head, heads, cell[row]);
    for (int j = lane; j < dim; j += 32) {
        const float v = is_value ? x[j] : __fmul_rn(x[j], by);
        if (is_query)
            x[j] = v;
        else if (kv.form == KV_FP8)
            ((uint8_t *)(is_value ? kv.v : kv.k))[at + (size_t)j] = fp8_from_f32(v);
        else
            ((__nv_bfloat16 *)(is_value ? kv.v : kv.k))[at + (size_t)j] = __float2bfloat16_rn(v);
    }
}

static __global__ void __launch_bounds__(THREADS)
    temperature_kernel(const int *pos, int rows, float scale, float floor, float *out)
{
    const int r = (int)blockIdx.x * THREADS + (int)threadIdx.x;
    launch_wait();
    launch_trigger();
    if (r < rows)
        out[r] = __fmaf_rn(scale, log1pf(floorf(__fdiv_rn((float)(pos[r] + 1), floor))), 1.0f);
}

KERN_API int rope_temperature_cuda(const struct temperature *a, void *stream)
{
    const struct launch l = {.grid = dim3((unsigned)((a->rows->n + THREADS - 1) / THREADS)),
                             .block = dim3(THREADS),
                             .stream = stream};
    if (a->rows->n == 0)
        return 0;
    return launch_kernel(&l, temperature_kernel, a->rows->pos, a->rows->n, a->scale, a->floor, a->out);
}

static int launch_any(const struct rope *a, void *stream)
{
    const unsigned warps = THREADS / 32, heads = (unsigned)(a->heads + 2 * a->kv.kv_heads);
    const struct launch l = {.grid = dim3((unsigned)a->rows->n, (heads + warps - 1) / warps),
                             .block = dim3(THREADS),
                             .stream = stream};
    return launch_kernel(&l, rope_any_kernel, a->rows->slot, a->rows->cell, a->qkv,
                         a->rotate ? a->cos_sin : NULL, a->temperature, a->kv, a->heads, a->qk_norm);
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
    if (!a->rotate || a->qk_norm > 0 || a->temperature)
        return launch_any(a, stream);
    const dim3 grid((unsigned)a->rows->n, (unsigned)((units + THREADS - 1) / THREADS));
    const struct launch l = {grid, dim3(THREADS), 0, 0, stream};
    return launch_kernel(&l, rope_kernel, a->rows->slot, a->rows->cell, a->qkv, a->cos_sin, *kv, a->heads);
}
