/* rmsnorm: the act of the first norm of a pass, x * w, and the squares of its steps, with the bits that a
 * product's end writes for all other norms (norm.cuh). Four threads take a step of 16 inputs, as the act's
 * lanes do. launch   grid [rows, ceil(dim / 16 / 32)], block 128 moves    rows * dim * 6 + dim * 4 bytes; the
 * weights are requested before the wait for x roof     none that matters: 8 rows of 4096 are 0.2 MB, the
 * launch is the cost */
#include "kernels/act.h"
#include "kernels/cuda.h"
#include "kernels/launch.cuh"
#include "kernels/norm.cuh"

enum { THREADS = 128, STEPS = THREADS / 4 };

/* Inputs i, i + 1, i + 8, i + 9; 0 past the last. */
static __device__ float4 load_quad(const float *x, int i, int dim)
{
    return make_float4(i < dim ? x[i] : 0.0f, i + 1 < dim ? x[i + 1] : 0.0f, i + 8 < dim ? x[i + 8] : 0.0f,
                       i + 9 < dim ? x[i + 9] : 0.0f);
}

static __device__ uint32_t word(float low, float high, enum act_form form)
{
    return (uint32_t)norm_act(low, form) | (uint32_t)norm_act(high, form) << 16;
}

static __global__ void __launch_bounds__(THREADS)
    rmsnorm_kernel(const float *x, const float *w, struct normed y, int dim)
{
    const int steps = (dim + ACT_STEP - 1) / ACT_STEP, step = (int)blockIdx.y * STEPS + (int)threadIdx.x / 4;
    const int i = step * ACT_STEP + (int)threadIdx.x % 4 * 2, row = (int)blockIdx.x;
    launch_trigger();
    const float4 gain = load_quad(w, i, dim);
    launch_wait();
    const float4 v = load_quad(x + (size_t)row * (size_t)dim, i, dim);
    float even = norm_pair(v.x, v.z),
          odd = norm_pair(v.y, v.w); /* inputs i and i + 8; i ^ 4, i ^ 2 are other threads' */
    even = norm_add(norm_add(even, 2), 1);
    odd = norm_add(norm_add(odd, 2), 1);
    if (step >= steps)
        return;
    *(uint2 *)((uint16_t *)y.act + act_at(row, i, dim)) =
        make_uint2(word(__fmul_rn(v.x, gain.x), __fmul_rn(v.y, gain.y), y.form),
                   word(__fmul_rn(v.z, gain.z), __fmul_rn(v.w, gain.w), y.form));
    if (threadIdx.x % 4 == 0)
        y.square[(size_t)row * (size_t)steps + (size_t)step] = __fadd_rn(even, odd);
}

KERN_API int rmsnorm_cuda(const struct rmsnorm *a, void *stream)
{
    const int steps = (a->dim + ACT_STEP - 1) / ACT_STEP;
    const struct launch l = {.grid = dim3((unsigned)a->rows, (unsigned)((steps + STEPS - 1) / STEPS)),
                             .block = THREADS,
                             .stream = stream};
    return launch_kernel(&l, rmsnorm_kernel, a->x, a->w, a->y, a->dim);
}
