/* gemm_epilogue: what becomes of a tile's sums. A warp ends 16 outputs by 8 rows: a lane holds outputs lane /
 * 4 and lane / 4 + 8 of the tile for rows lane % 4 * 2 and the next, so what belongs together (gate and up,
 * components that a rotation pairs, the two halves of an act's step) stands in one lane. Products and sums
 * are rounded one by one: the same bits in every kernel that includes this.
 *
 * order    ((sum * scale of the output) * 1 / rms of the row) * scale of the quantised row, then the old y
 * added */
#ifndef KERNELS_GEMM_EPILOGUE_CUH
#define KERNELS_GEMM_EPILOGUE_CUH
#include "kernels/act.h"
#include "kernels/gemm_args.cuh"
#include "kernels/norm.cuh"

/* A lane's part of a tile: outputs of two rows. */
struct tile_lane {
    int tile, row; /* the first of the two */
    float v[2][2]; /* [row][output] */
};

/* What a lane needs beside the sums, requested before the block's sums meet. */
struct tile_needs {
    float scale[2], gain[2]; /* [output] */
    float old[2][2];         /* [row][output]: what v is added to, or {cosine, sine} */
    int slot[2], cell[2];    /* [row] */
};
enum { NEEDS = 12 };

/* tile / tiles of a head. Division is a hundred instructions, the product exact below 2^16 tiles. */
__device__ static inline int head_of(const struct gemm_args &p, int tile)
{
    return p.per_head ? (int)__umulhi((uint32_t)tile, p.per_head) : tile;
}

/* The matrix's output that half h of a lane holds, n or more: none; see matrix_cuda_output. */
__device__ static inline int output_of(const struct gemm_args &p, int tile, int h)
{
    const int i = threadIdx.x % LANES / 4;
    if (p.epilogue == EPILOGUE_SWIGLU) {
        const int m = p.n / 2, j = tile * (TILE / 2) + i;
        return j < m ? j + h * m : p.n;
    }
    if (p.epilogue == EPILOGUE_ROTARY) {
        const int dim = p.kv.head_dim, head = head_of(p, tile);
        return head * dim + (tile - head * (dim / TILE)) * (TILE / 2) + i + h * (dim / 2);
    }
    return tile * TILE + i + h * (TILE / 2);
}

__device__ static inline void prefetch(const void *at)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

/* Before the dependency wait: weights that needs_of will load. */
__device__ static inline void needs_prefetch(const struct gemm_args &p, int tile)
{
    if (!p.scale && p.epilogue != EPILOGUE_RESIDUAL)
        return;
    for (int h = 0; h < 2; h++) {
        const int j = output_of(p, tile, h);
        if (p.scale && j < p.n)
            prefetch(p.scale + j);
        if (p.epilogue == EPILOGUE_RESIDUAL && j < p.n)
            prefetch(p.gain + j);
    }
}

__device__ static inline void needs_of(const struct gemm_args &p, int tile, int row, struct tile_needs *to)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int j = output_of(p, tile, h), exists = tile < p.tiles && j < p.n;
        to->scale[h] = p.scale && exists ? p.scale[j] : 1.0f;
        to->gain[h] = p.epilogue == EPILOGUE_RESIDUAL && exists ? p.gain[j] : 0.0f;
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const float *at = NULL;
            if (p.epilogue == EPILOGUE_ADD || p.epilogue == EPILOGUE_RESIDUAL)
                at = (const float *)p.y + (size_t)(row + c) * (size_t)p.n + j;
            else if (p.epilogue == EPILOGUE_ROTARY && p.cos_sin)
                at = p.cos_sin + (size_t)(row + c) * (size_t)p.kv.head_dim +
                     (j - head_of(p, tile) * p.kv.head_dim);
            const float none = p.epilogue == EPILOGUE_ROTARY && !p.cos_sin && h == 0 ? 1.0f : 0.0f;
            to->old[c][h] = at && exists && row + c < p.rows ? *at : none;
        }
    }
#pragma unroll
    for (int c = 0; c < 2; c++) {
        const int there = p.epilogue == EPILOGUE_ROTARY && row + c < p.rows;
        to->slot[c] = there ? p.slot[row + c] : -1;
        to->cell[c] = there ? p.cell[row + c] : 0;
    }
}

/* The same through shared memory, so that a block with no register to spare has it on the way while it
 * multiplies: needs_request right after the dependency wait, needs_take at the end, by the same warp. box
 * [NEEDS][LANES]. */
__device__ static inline void request(uint32_t *to, const void *from, int exists)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(exists ? 4 : 0)
                 : "memory");
}

__device__ static inline void needs_request(const struct gemm_args &p, int tile, int row, uint32_t *box)
{
    box += threadIdx.x % LANES;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int j = output_of(p, tile, h), exists = tile < p.tiles && j < p.n, at = exists ? j : 0;
        if (p.scale)
            request(box + h * LANES, p.scale + at, exists);
        if (p.epilogue == EPILOGUE_RESIDUAL)
            request(box + (2 + h) * LANES, p.gain + at, exists);
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int there = exists && row + c < p.rows, r = there ? row + c : 0;
            if (p.epilogue == EPILOGUE_ADD || p.epilogue == EPILOGUE_RESIDUAL)
                request(box + (4 + c * 2 + h) * LANES, (const float *)p.y + (size_t)r * (size_t)p.n + at,
                        there);
            else if (p.epilogue == EPILOGUE_ROTARY && p.cos_sin)
                request(box + (4 + c * 2 + h) * LANES,
                        p.cos_sin + (size_t)r * (size_t)p.kv.head_dim +
                            (there ? at - head_of(p, tile) * p.kv.head_dim : 0),
                        there);
        }
    }
#pragma unroll
    for (int c = 0; c < 2 && p.epilogue == EPILOGUE_ROTARY; c++) {
        const int r = row + c < p.rows ? row + c : 0;
        request(box + (8 + c) * LANES, p.slot + r, 1);
        request(box + (10 + c) * LANES, p.cell + r, 1);
    }
}

__device__ static inline void needs_take(const struct gemm_args &p, const uint32_t *box,
                                         struct tile_needs *to)
{
    const int turns = p.epilogue == EPILOGUE_ROTARY,
              reads = turns ? p.cos_sin != NULL
                            : p.epilogue != EPILOGUE_STORE && p.epilogue != EPILOGUE_SWIGLU;
    asm volatile("cp.async.wait_all;" ::: "memory");
    box += threadIdx.x % LANES;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        to->scale[i] = p.scale ? __uint_as_float(box[i * LANES]) : 1.0f;
        to->gain[i] = p.epilogue == EPILOGUE_RESIDUAL ? __uint_as_float(box[(2 + i) * LANES]) : 0.0f;
        to->old[i][0] = reads ? __uint_as_float(box[(4 + i * 2) * LANES]) : turns ? 1.0f : 0.0f;
        to->old[i][1] = reads ? __uint_as_float(box[(5 + i * 2) * LANES]) : 0.0f;
        to->slot[i] = turns ? (int)box[(8 + i) * LANES] : -1;
        to->cell[i] = turns ? (int)box[(10 + i) * LANES] : 0;
    }
}

/* y = v or y = old + v; returns what was written. */
__device__ static inline void end_sums(const struct gemm_args &p, const struct tile_needs &with,
                                       struct tile_lane *s)
{
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int j = output_of(p, s->tile, h);
            if (p.epilogue != EPILOGUE_STORE)
                s->v[c][h] = __fadd_rn(with.old[c][h], s->v[c][h]);
            if (j < p.n && s->row + c < p.rows)
                ((float *)p.y)[(size_t)(s->row + c) * (size_t)p.n + j] = s->v[c][h];
        }
}

/* The stream, then its act and the sum of squares of these 16 inputs. Past n the stream, and so the act, is
 * zero. */
__device__ static inline void end_residual(const struct gemm_args &p, const struct tile_needs &with,
                                           struct tile_lane *s)
{
    const int i = threadIdx.x % LANES / 4;
    uint16_t *y = (uint16_t *)p.normed;
    end_sums(p, with, s);
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float square = norm_pair(s->v[c][0], s->v[c][1]);
        for (int mask = 16; mask >= 4; mask /= 2)
            square = norm_add(square, mask);
        if (s->row + c >= p.rows)
            continue;
        for (int h = 0; h < 2; h++)
            y[act_at(s->row + c, s->tile * TILE + i + h * (TILE / 2), p.n)] =
                norm_act(__fmul_rn(s->v[c][h], with.gain[h]), p.y_form);
        if (i == 0)
            p.normed_square[(size_t)(s->row + c) * (size_t)p.tiles + (size_t)s->tile] = square;
    }
}

__device__ static inline float silu(float v)
{
    return __fdiv_rn(v, __fadd_rn(1.0f, expf(-v)));
}

__device__ static inline void end_swiglu(const struct gemm_args &p, const struct tile_lane *s)
{
    const int m = p.n / 2, i = s->tile * (TILE / 2) + threadIdx.x % LANES / 4;
    uint16_t *y = (uint16_t *)p.y;
    for (int c = 0; c < 2 && s->row + c < p.rows; c++) {
        y[act_at(s->row + c, i, m)] = i < m ? norm_act(__fmul_rn(silu(s->v[c][0]), s->v[c][1]), p.y_form) : 0;
        if (s->tile == p.tiles - 1 && p.tiles % 2 == 1) /* the act's last step is half ours, half padding */
            y[act_at(s->row + c, i + TILE / 2, m)] = 0;
    }
}

/* Two components of a key or value to their cell; `at` is that of the first. */
__device__ static inline void put_cell(const struct kv_layer &kv, void *cells, size_t at, float low,
                                       float high)
{
    const size_t half = (size_t)(kv.head_dim / 2);
    if (kv.form == KV_FP8) {
        uint16_t pair;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
        ((uint8_t *)cells)[at] = (uint8_t)pair;
        ((uint8_t *)cells)[at + half] = (uint8_t)(pair >> 8);
        return;
    }
    ((__nv_bfloat16 *)cells)[at] = __float2bfloat16_rn(low);
    ((__nv_bfloat16 *)cells)[at + half] = __float2bfloat16_rn(high);
}

/* Rotated as rope.cu does (by no angle: times 1, minus 0); queries to rope.qkv, keys and values to their cells
 * alone. */
__device__ static inline void end_rotary(const struct gemm_args &p, const struct tile_needs &with,
                                         const struct tile_lane *s)
{
    const int dim = p.kv.head_dim, output = output_of(p, s->tile, 0), head = head_of(p, s->tile),
              j = output - head * dim;
    const int is_value = head >= p.heads + p.kv.kv_heads,
              kv_head = head - p.heads - (is_value ? p.kv.kv_heads : 0);
    for (int c = 0; c < 2 && s->row + c < p.rows; c++) {
        const int slot = with.slot[c];
        float low = s->v[c][0], high = s->v[c][1];
        if (slot < 0 && !p.raw)
            continue;
        if (!is_value) {
            const float cos = with.old[c][0], sin = with.old[c][1], before = low;
            low = __fmaf_rn(-high, sin, __fmul_rn(low, cos));
            high = __fmaf_rn(before, sin, __fmul_rn(high, cos));
        }
        if (p.temperature && head < p.heads) {
            const float by = p.temperature[s->row + c];
            low = __fmul_rn(low, by);
            high = __fmul_rn(high, by);
        }
        if (head < p.heads || p.raw) {
            float *q = (float *)p.y + (size_t)(s->row + c) * (size_t)p.n + output;
            q[0] = low;
            q[dim / 2] = high;
            continue;
        }
        const size_t at = ((size_t)slot * (size_t)p.kv.kv_heads + (size_t)kv_head) * (size_t)p.kv.cap +
                          (size_t)with.cell[c];
        put_cell(p.kv, is_value ? p.kv.v : p.kv.k, at * (size_t)dim + (size_t)j, low, high);
    }
}

/* By a whole warp. factor: of the block's rows, {1, 1} where there are none. */
__device__ static void tile_end(const struct gemm_args &p, int tile, int row, float4 sum,
                                const struct tile_needs &with, const float2 *factor)
{
    struct tile_lane s = {tile, row, {{sum.x, sum.z}, {sum.y, sum.w}}};
#pragma unroll
    for (int c = 0; c < 2; c++) {
        const float2 f = p.square || p.row_scale ? factor[(row + c) % ROW_BLOCK] : make_float2(1, 1);
#pragma unroll
        for (int h = 0; h < 2; h++)
            s.v[c][h] = __fmul_rn(__fmul_rn(__fmul_rn(s.v[c][h], with.scale[h]), f.x), f.y);
    }
    switch (p.epilogue) {
    case EPILOGUE_SWIGLU:
        end_swiglu(p, &s);
        break;
    case EPILOGUE_RESIDUAL:
        end_residual(p, with, &s);
        break;
    case EPILOGUE_ROTARY:
        end_rotary(p, with, &s);
        break;
    default:
        end_sums(p, with, &s);
    }
}
#endif
