/* gemm_core: the sums of a matrix product, weights as the 16-row operand of mma.m16n8k16, 8 rows of
 * activations as its columns. A warp takes one slice of K for MT tiles of 16 outputs by NT tiles of 8 rows;
 * weights stream from memory straight to registers in the order the tensor cores want them (cuda.h), 16 bytes
 * a lane, and are requested before the kernel waits for the activations. */
#ifndef KERNELS_GEMM_CORE_CUH
#define KERNELS_GEMM_CORE_CUH
#include "kernels/act.h"
#include "kernels/gemm_args.cuh"
#include "kernels/launch.cuh"
#include "kernels/norm.cuh"

/* The constants of a kernel; none of them touches the order of a sum. */
template <int form, int nt, int mt, int slices, int groups, int depth, int ahead, int blocks, int flat = 0>
struct gemm_shape {
    enum {
        FORM = form,     /* enum matrix_form */
        NT = nt,         /* tiles of 8 rows */
        MT = mt,         /* tiles of 16 outputs a warp */
        SLICES = slices, /* of K in a block: OCTET or two of them */
        GROUPS = groups, /* of warps; a group takes MT tiles of its own, so that GROUPS warps share acts in
                            the first level cache */
        DEPTH = depth,   /* loads of weights in flight a lane and tile */
        AHEAD = ahead,   /* steps of acts in flight; divides DEPTH * STEPS */
        BLOCKS = blocks, /* an SM */
        WARPS = SLICES * GROUPS,
        TILES = MT * GROUPS,
        UNITS = NT * GROUPS, /* sums of 16 outputs by 8 rows that a block finishes at a time, a warp each */
        STEPS = form == MATRIX_FP8 ? 2 : 1, /* of 16 inputs in a lane's 16 bytes */
        FLAT = flat,    /* a slice has at most DEPTH loads, so all of it is in flight at once */
        EARLY = nt <= 2 /* what a tile's end needs is requested before the product */
    };
};

/* Weights pass by: not kept in the first level, first to be replaced in the second. The load is not `.nc`,
 * which the assembler would move behind the dependency wait. */
__device__ static inline uint64_t evict_first(void)
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* Loads of what may not exist, zeros then: it does where place < end; of tile m, `size` bytes apart. Choice
 * and address are made inside: a choice in C++ becomes copies of registers just requested, and a copy waits
 * for them; addresses of all tiles would be kept in registers. */
__device__ static inline uint4 load_weights(const uint4 *w, int m, uint32_t size, int place, int end,
                                            uint64_t policy)
{
    uint4 v;
    asm volatile(
        "{ .reg .pred p; .reg .u64 at; setp.lt.s32 p, %7, %8;\n\t"
        "mad.wide.u32 at, %5, %6, %4; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n\t"
        "@p ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [at], %9; }"
        : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
        : "l"(w), "r"(size), "r"(m), "r"(place), "r"(end), "l"(policy));
    return v;
}

/* Of row tile t, `stride` bytes apart. */
__device__ static inline uint2 load_act(const uint2 *x, int t, uint32_t stride, int end)
{
    uint2 v;
    asm volatile("{ .reg .pred p; .reg .u64 at; setp.lt.s32 p, %5, %6;\n\t"
                 "mad.wide.u32 at, %3, %4, %2; mov.b32 %0, 0; mov.b32 %1, 0;\n\t"
                 "@p ld.global.v2.u32 {%0, %1}, [at]; }"
                 : "=&r"(v.x), "=&r"(v.y)
                 : "l"(x), "r"(stride), "r"(t), "r"(t * ACT_ROWS), "r"(end));
    return v;
}

/* Onwards by bytes. Said plainly, the sums of an unrolled loop become a register pair each. */
template <class T> __device__ static inline void advance(const T **at, uint32_t bytes)
{
    asm volatile("{ .reg .u64 by; cvt.u64.u32 by, %1; add.u64 %0, %0, by; }" : "+l"(*at) : "r"(bytes));
}

/* Two E4M3 as F16, exactly. */
__device__ static inline uint32_t widen(uint32_t pair)
{
    uint32_t v;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(v) : "h"((uint16_t)pair));
    return v;
}

/* The A fragment of step `half` of a lane's load. */
template <int FORM> __device__ static inline uint4 fragment(uint4 w, int half)
{
    if (FORM == MATRIX_BF16)
        return w;
    const uint32_t low = half ? w.z : w.x, high = half ? w.w : w.y;
    return make_uint4(widen(low), widen(low >> 16), widen(high), widen(high >> 16));
}

template <int FORM> __device__ static inline void mma(float4 *c, uint4 a, uint2 b)
{
    if (FORM == MATRIX_BF16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
            "%9}, {%0, %1, %2, %3};"
            : "+f"(c->x), "+f"(c->y), "+f"(c->z), "+f"(c->w)
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c->x), "+f"(c->y), "+f"(c->z), "+f"(c->w)
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

/* What the sums of this block's rows are multiplied by: {1 / rms, scale of the quantised act}, to `factor`.
 * The last warps, whose slices have the fewest steps, take the first rows. */
template <class S> __device__ static void row_factors(const struct gemm_args &p, float2 *factor)
{
    enum {
        ROWS = (S::NT * ACT_ROWS + S::WARPS - 1) / S::WARPS,
        ALONE = S::WARPS * S::BLOCKS == OCTET, /* a warp has registers to spare */
        BATCH = ROWS == 1           ? 8
                : ROWS < 4 || ALONE ? 4
                                    : 2 /* loads of a row in flight, no part of the order */
    };
    const int warp = S::WARPS - 1 - threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int left = min(p.rows - (int)blockIdx.y * ROW_BLOCK, ROW_BLOCK) - warp,
              rows = (left + S::WARPS - 1) / S::WARPS;
    const size_t first = (size_t)blockIdx.y * ROW_BLOCK + (size_t)warp;
    if (left <= 0)
        return;
    float sum[ROWS];
    if (p.square && !p.inverse_rms)
        norm_sums<ROWS, BATCH>(p.square + first * (size_t)p.steps, (size_t)S::WARPS * (size_t)p.steps, rows,
                               p.steps, sum);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (lane == r && r < rows)
            factor[warp + r * S::WARPS] =
                make_float2(!p.square       ? 1.0f
                            : p.inverse_rms ? p.inverse_rms[first + (size_t)(r * S::WARPS)]
                                            : norm_factor(sum[r], p.k, p.eps),
                            p.row_scale ? p.row_scale[first + (size_t)(r * S::WARPS)] : 1.0f);
}

/* The same for slices that are FLAT, in two parts: the squares are on their way while the warp multiplies. */
template <class S> struct row_squares {
    enum {
        ROWS = (S::NT * ACT_ROWS + S::WARPS - 1) / S::WARPS,
        EACH = (S::SLICES * S::DEPTH * S::STEPS + LANES - 1) / LANES /* tiles a lane */
    };
    float v[ROWS][EACH];
};

template <class S>
__device__ static void squares_request(const struct gemm_args &p, struct row_squares<S> *to)
{
    const int warp = S::WARPS - 1 - threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int left = min(p.rows - (int)blockIdx.y * ROW_BLOCK, ROW_BLOCK) - warp;
    const float *at = p.square + ((size_t)blockIdx.y * ROW_BLOCK + (size_t)warp) * (size_t)p.steps + lane;
#pragma unroll
    for (int r = 0; r < row_squares<S>::ROWS; r++)
#pragma unroll
        for (int i = 0; i < row_squares<S>::EACH; i++)
            to->v[r][i] = r * S::WARPS < left && i * LANES + lane < p.steps
                              ? at[(size_t)r * S::WARPS * (size_t)p.steps + i * LANES]
                              : 0.0f;
}

template <class S>
__device__ static void squares_take(const struct gemm_args &p, const struct row_squares<S> &from,
                                    float2 *factor)
{
    const int warp = S::WARPS - 1 - threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int left = min(p.rows - (int)blockIdx.y * ROW_BLOCK, ROW_BLOCK) - warp;
#pragma unroll
    for (int r = 0; r < row_squares<S>::ROWS; r++) {
        const int row = warp + r * S::WARPS;
        if (r * S::WARPS >= left)
            break;
        const float sum = p.square ? norm_sum_lanes<row_squares<S>::EACH>(from.v[r]) : 0.0f;
        if (lane == 0)
            factor[row] =
                make_float2(p.square ? norm_factor(sum, p.k, p.eps) : 1.0f,
                            p.row_scale ? p.row_scale[(size_t)blockIdx.y * ROW_BLOCK + (size_t)row] : 1.0f);
    }
}

/* This warp's sums. Steps past the last, tiles past n and rows past the last multiply zeros. `first`: of its
 * block in the cluster, which alone needs the factors. after_wait: what else is to be requested as soon as
 * the kernel before is done. */
template <class S, class Request>
__device__ static void slice_sums(const struct gemm_args &p, int tile, int slice, int first, float2 *factor,
                                  float4 (*sum)[S::NT], Request after_wait)
{
    enum { NT = S::NT, MT = S::MT, DEPTH = S::DEPTH, AHEAD = S::AHEAD, STEPS = S::STEPS, FAR = 1 << 30 };
    static_assert(DEPTH * STEPS % AHEAD == 0, "an act's place in the ring must be known when compiling");
    const int lane = threadIdx.x % LANES, slices = 1 << p.log2_slices;
    const int loads = tile < p.tiles ? (p.loads - slice + slices - 1) >> p.log2_slices : 0;
    /* steps of 16 inputs; FP8 may lack the second of the very last load */
    int left = loads * STEPS -
               (loads * STEPS > 0 && STEPS * p.loads != p.steps && ((p.loads - 1) & (slices - 1)) == slice);
    const int rows = p.rows - (int)blockIdx.y * ROW_BLOCK -
                     lane / 4; /* this lane's row of tile t exists if t * 8 < rows */
    int absent[MT];
    enum { LOAD = LANES * sizeof(uint4), STEP = LANES * sizeof(uint2) };
    const uint32_t size = (uint32_t)p.loads * LOAD,
                   act = (uint32_t)p.steps * STEP; /* bytes of a tile of weights, of acts */
    const uint32_t stride = LOAD << p.log2_slices; /* to the slice's next load */
    const uint32_t jump =
        (STEP << p.log2_slices) * STEPS - (STEPS - 1) * STEP; /* of acts, behind a load's last step */
#pragma unroll
    for (int m = 0; m < MT; m++)
        absent[m] = m == 0 || tile + m < p.tiles ? 0 : FAR; /* past n: no place is before the end */
    const uint64_t policy = evict_first();
    const uint4 *w = p.w + ((size_t)tile * (size_t)p.loads + (size_t)slice) * LANES + lane;
    const uint2 *x =
        p.x +
        ((size_t)blockIdx.y * (ROW_BLOCK / ACT_ROWS) * (size_t)p.steps + (size_t)(slice * STEPS)) * LANES +
        lane;
    static_assert(!S::FLAT || AHEAD == DEPTH * STEPS, "its acts too");
    uint4 a[DEPTH][MT];
    uint2 b[AHEAD][NT];
#pragma unroll
    for (int i = 0; i < DEPTH; i++, advance(&w, stride))
#pragma unroll
        for (int m = 0; m < MT; m++)
            a[i][m] = load_weights(w, m, size, i * STEPS + absent[m], left, policy);
    launch_wait();
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
#pragma unroll
        for (int t = 0; t < NT; t++)
            b[j][t] = load_act(x, t, act, j < left ? rows : 0);
        advance(&x, (j + 1) % STEPS == 0 ? jump : STEP);
    }
    after_wait();
    if constexpr (S::FLAT) {
        struct row_squares<S> squares;
        if (first && p.square)
            squares_request<S>(p, &squares);
#pragma unroll
        for (int j = 0; j < DEPTH * STEPS; j++)
#pragma unroll
            for (int m = 0; m < MT; m++) {
                const uint4 f = fragment<S::FORM>(a[j / STEPS][m], j % STEPS);
#pragma unroll
                for (int t = 0; t < NT; t++)
                    mma<S::FORM>(&sum[m][t], f, b[j % AHEAD][t]);
            }
        if (first && (p.square || p.row_scale))
            squares_take<S>(p, squares, factor);
        return;
    }
    if (first && (p.square || p.row_scale))
        row_factors<S>(p, factor);
#pragma unroll 1
    for (; left > 0; left -= DEPTH * STEPS)
#pragma unroll
        for (int j = 0; j < DEPTH * STEPS; j++) {
            const int i = j / STEPS, last = j % STEPS == STEPS - 1;
#pragma unroll
            for (int m = 0; m < MT; m++) {
                const uint4 f = fragment<S::FORM>(a[i][m], j % STEPS);
#pragma unroll
                for (int t = 0; t < NT; t++)
                    mma<S::FORM>(&sum[m][t], f, b[j % AHEAD][t]);
                if (last)
                    a[i][m] = load_weights(w, m, size, (i + DEPTH) * STEPS + absent[m], left, policy);
            }
            if (last)
                advance(&w, stride);
            const int end = j + AHEAD < left ? rows : 0;
#pragma unroll
            for (int t = 0; t < NT; t++)
                b[j % AHEAD][t] = load_act(x, t, act, end);
            advance(&x, (j + AHEAD + 1) % STEPS == 0 ? jump : STEP);
            __syncwarp(); /* ptxas would gather the loads of weights at the end of the loop: the ring would
                             run dry */
        }
}
#endif
