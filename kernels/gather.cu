/* gather: a block takes a row, four threads a step of 16 numbers as the act's lanes do: numbers i, i + 1, i +
 * 8 and i + 9, so that a warp's loads and stores fill sectors of 32 bytes.
 *
 * launch   grid [rows], block 256
 * math     a norm's squares: a thread adds its numbers in the order of steps, within one fma(odd, odd,
 * fma(even, even, .)) of i and i + 1, then of i + 8 and i + 9; lanes pairwise: l with l ^ 16, 8, 4, 2, 1;
 * warps in order. Fixed by dim alone moves    see kernels/gather.h; with w a row is read twice, the second
 * time from the first level cache roof     none that matters: 64 rows of 4096 are 2 MB, the launch is the
 * cost */
#include "kernels/act.h"
#include "kernels/gather.h"
#include "kernels/launch.cuh"
#include "kernels/norm.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, EACH = THREADS / 4 * ACT_STEP };

static __device__ float number(const float *x, int i, int dim)
{
    return i < dim ? x[i] : 0.0f;
}

/* Over the row, in every thread of the block. */
static __device__ float sum_of_squares(const float *x, int dim)
{
    __shared__ float part[WARPS];
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    float sum = 0;
    for (int at = (int)threadIdx.x / 4 * ACT_STEP + (int)threadIdx.x % 4 * 2; at < dim; at += EACH)
        for (int half = 0; half < ACT_STEP; half += ACT_STEP / 2) {
            const float even = number(x, at + half, dim), odd = number(x, at + half + 1, dim);
            sum = __fmaf_rn(odd, odd, __fmaf_rn(even, even, sum));
        }
    for (int mask = 16; mask > 0; mask /= 2)
        sum = norm_add(sum, mask);
    if (lane == 0)
        part[warp] = sum;
    __syncthreads();
    sum = part[0];
    for (int i = 1; i < WARPS; i++)
        sum = __fadd_rn(sum, part[i]);
    return sum;
}

/* Numbers i and i + 1 of the row; past its end they are what pads the act. */
static __device__ void put(const struct gather &a, int row, int i, float low, float high)
{
    if (a.y && i < a.dim) {
        float *y = a.y + (size_t)row * (size_t)a.k + (size_t)(a.column + i);
        y[0] = low;
        y[1] = high;
    }
    if (a.act)
        *(uint32_t *)((uint16_t *)a.act + act_at(row, a.column + i, a.k)) =
            (uint32_t)norm_act(low, a.form) | (uint32_t)norm_act(high, a.form) << 16;
}

static __global__ void __launch_bounds__(THREADS) gather_kernel(const __grid_constant__ struct gather a)
{
    const int row = (int)blockIdx.x;
    launch_trigger();
    launch_wait();
    const int from = a.from ? a.from[row] : row;
    if (from < 0)
        return;
    const float *x = a.x + (size_t)from * (size_t)a.dim;
    const float factor = a.w ? norm_factor(sum_of_squares(x, a.dim), a.dim, a.eps) : 1.0f;
    /* the act's last part ends with its padding */
    const int is_last = a.act && a.column + a.dim == a.k,
              end = is_last ? (a.k + ACT_STEP - 1) / ACT_STEP * ACT_STEP - a.column : a.dim;
    for (int at = (int)threadIdx.x / 4 * ACT_STEP + (int)threadIdx.x % 4 * 2; at < end; at += EACH)
        for (int half = at; half < end && half < at + ACT_STEP; half += ACT_STEP / 2) {
            float low = number(x, half, a.dim), high = number(x, half + 1, a.dim);
            if (a.w) {
                low = __fmul_rn(__fmul_rn(low, factor), number(a.w, half, a.dim));
                high = __fmul_rn(__fmul_rn(high, factor), number(a.w, half + 1, a.dim));
            }
            put(a, row, half, low, high);
        }
}

KERN_API int gather_cuda(const struct gather *a, void *stream)
{
    const struct launch l = {.grid = dim3((unsigned)a->rows), .block = THREADS, .stream = stream};
    return a->rows > 0 ? launch_kernel(&l, gather_kernel, *a) : 0;
}
