/* route_cuda: the router of a layer of experts, 64 rows at a time.
 *
 * launch   route_logits: grid [tiles of 16 experts, 1, octets of rows], 32 warps, a slice of K each
 *          route_choose: a warp a row, 32 a block
 * order    K in loads of 16 bytes a lane, dealt in turn to 32 slices; a slice adds its loads in order, then
 *          slices are added in order
 * moves    the router once from memory, 128 x 5120 in BF16 1.3 MB; the launches are the cost */
#include "kernels/moe_parts.cuh"

/* The router's: BF16 weights, F16 acts. */
enum { FORM_MIXED = 2, ROUTE_SLICES = 32, CHOOSE_WARPS = 32 };

template <> __device__ inline uint4 fragment<FORM_MIXED>(uint4 w, int half)
{
    (void)half;
    return w;
}

__device__ static void mma_tf32(float4 *c, uint32_t upper, uint32_t lower, uint32_t b)
{
    const float2 x = __half22float2(*(const __half2 *)&b);
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c->x), "+f"(c->y), "+f"(c->z), "+f"(c->w)
        : "r"(upper << 16), "r"(lower << 16), "r"(upper & 0xffff0000u), "r"(lower & 0xffff0000u),
          "r"(__float_as_uint(x.x)), "r"(__float_as_uint(x.y)));
}

/* TF32 holds both types exactly. A lane's two neighbouring inputs stand where the instruction has inputs four
 * apart, in both operands. */
template <> __device__ inline void mma<FORM_MIXED>(float4 *c, uint4 a, uint2 b)
{
    mma_tf32(c, a.x, a.y, b.x);
    mma_tf32(c, a.z, a.w, b.y);
}

template <int F> static __global__ void __launch_bounds__(ROUTE_SLICES *LANES, 1) route_logits(struct gemm_args p)
{
    typedef gemm_shape<F, 1, 1, ROUTE_SLICES, 1, 8, 4, 1> S;
    launch_trigger();
    __shared__ float4 part[ROUTE_SLICES * LANES];
    __shared__ float factor[ACT_ROWS];
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, first = blockIdx.z * ACT_ROWS;
    const float *square = p.square;
    float4 sum[1][1] = {};
    p.x += (size_t)blockIdx.z * (size_t)p.steps * LANES;
    p.rows -= first;
    p.square = NULL;
    slice_sums<S>(p, blockIdx.x, warp, 0, NULL, sum, [] {});
    part[warp * LANES + lane] = sum[0][0];
    if (warp < ACT_ROWS && warp < p.rows) {
        const float by = inverse_rms(square, first + warp, p.steps, p.k, p.eps);
        if (lane == 0)
            factor[warp] = by;
    }
    __syncthreads();
    if (warp > 0)
        return;
    const float4 s = slices_sum(part, ROUTE_SLICES);
    const float v[2][2] = {{s.x, s.z}, {s.y, s.w}};
    for (int c = 0; c < 2; c++)
        for (int h = 0; h < 2; h++) {
            const int row = lane % 4 * 2 + c, j = blockIdx.x * TILE + lane / 4 + h * OCTET;
            if (row < p.rows && j < p.n)
                ((float *)p.y)[(size_t)(first + row) * (size_t)p.n + j] = __fmul_rn(v[c][h], factor[row]);
        }
}

struct candidate {
    float logit;
    int expert;
};

__device__ static int ahead_of(struct candidate a, struct candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.expert < b.expert);
}

/* The best of a row that is not in `taken` (bit i: this lane's expert i * 32 + lane), in every lane. */
__device__ static struct candidate best_left(const float *logits, int experts, uint32_t taken)
{
    struct candidate best = {-INFINITY, MOE_EXPERTS};
    for (int i = 0; i * LANES < experts; i++) {
        const int e = i * LANES + threadIdx.x % LANES;
        struct candidate c = {-INFINITY, e};
        if (e >= experts || taken >> i & 1)
            continue;
        if (logits[e] > c.logit) /* a NaN is the least */
            c.logit = logits[e];
        if (ahead_of(c, best))
            best = c;
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        const struct candidate c = {__shfl_xor_sync(FULL_WARP, best.logit, mask),
                                    __shfl_xor_sync(FULL_WARP, best.expert, mask)};
        if (ahead_of(c, best))
            best = c;
    }
    return best;
}

static __global__ void __launch_bounds__(CHOOSE_WARPS *LANES)
    route_choose(const float *logits, const int *slot, int *expert, float *score, int rows, int experts, int top_k)
{
    const int lane = threadIdx.x % LANES;
    launch_trigger();
    launch_wait();
    const int warps = blockDim.x / LANES, stride = gridDim.x * warps;
    for (int r = blockIdx.x * warps + threadIdx.x / LANES; r < rows; r += stride) {
        const float *row = logits + (size_t)r * (size_t)experts;
        const int lives = slot[r] >= 0;
        uint32_t taken = 0;
        for (int j = 0; j < top_k; j++) {
            const int e = lives ? best_left(row, experts, taken).expert : -1;
            if (lives && e % LANES == lane)
                taken |= 1u << e / LANES;
            if (lane == 0) {
                expert[r * top_k + j] = e;
                score[r * top_k + j] = lives ? __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-row[e]))) : 0.0f;
            }
        }
    }
}

static int launch_logits(const struct route *a, void *stream)
{
    const struct gemm *g = &a->product;
    struct gemm_args p = gemm_args_of(g->w, g->rows);
    p.w = (const uint4 *)g->w->data;
    p.x = (const uint2 *)g->x;
    p.y = g->y;
    p.square = g->square;
    p.eps = g->eps;
    p.log2_slices = 5;
    const struct launch l = {.grid = dim3((unsigned)p.tiles, 1, (unsigned)((p.rows + ACT_ROWS - 1) / ACT_ROWS)),
                             .block = dim3(ROUTE_SLICES * LANES),
                             .stream = stream};
    return a->x_form == ACT_F16 ? launch_kernel(&l, route_logits<FORM_MIXED>, p)
                                : launch_kernel(&l, route_logits<MATRIX_BF16>, p);
}

KERN_API int route_choose_cuda(const struct route *a, void *stream)
{
    const int rows = a->product.rows, warps = rows < CHOOSE_WARPS ? rows : CHOOSE_WARPS;
    const struct launch l = {.grid = dim3((unsigned)((rows + warps - 1) / warps)),
                             .block = dim3((unsigned)(warps * LANES)),
                             .stream = stream};
    return launch_kernel(&l, route_choose, (const float *)a->product.y, a->slot, a->expert, a->score, rows,
                         a->product.w->n, a->top_k);
}

KERN_API int route_cuda(const struct route *a, void *stream)
{
    const int rc = launch_logits(a, stream);
    return rc ? rc : route_choose_cuda(a, stream);
}
