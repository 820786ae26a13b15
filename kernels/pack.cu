/* pack: a warp makes the 16-byte words of its lanes: of a tile's rows r and r + 8 and a step of 16 inputs, four lanes
 * need the pairs {2 p, 2 p + 1} and {2 p + 8, 2 p + 9}. Each lane reads (or makes: one Philox call) four neighbours of
 * either row, and one exchange with the lane beside it gives both their pairs, so that nothing is read or made twice.
 * launch   FP8 that is rounded here first the scales: grid ceil(16 tiles / 8), block 256, a warp an output. Then grid [tiles, ceil(words / 64)],
 *          block 256, a warp eight words
 * moves    the rows once (FP8: twice) and the matrix once
 * roof     rows: the link they come through. Counters: 30 instructions for a number in BF16, by the machine code, so that
 *          8e9 of them take an H100's schedulers about as long as 8e9 * 2 bytes take its memory; FP8 makes every number
 *          twice and divides it as the host does */
#include "kernels/fp8.h"
#include "kernels/launch.cuh"
#include "kernels/pack.h"
#include "kernels/synthetic.h"

enum { TILE = 16, STEP = 16, THREADS = 256, WARPS = THREADS / 32, EACH = 8, WORDS = WARPS * EACH };

/* What the kernels need of struct pack, by value. */
struct view {
    const void *rows;
    void *to;
    float *scale;
    uint64_t seed;
    struct {
        uint32_t tensor;
        float scale;
        int n;
        size_t first, row_step; /* of its numbers among the tensor's */
    } part[PACK_PARTS];
    size_t row_step, col_step; /* of rows */
    int n, k, before, after, tile, tiles, head_dim;
    int quads; /* four neighbours that begin at a multiple of four lie so in memory */
    enum matrix_flags flags;
};

/* Where an output's weights begin: elements into the rows or into the part. */
struct place {
    size_t first;
    int output;               /* -1: padding */
    struct synthetic numbers; /* where there are no rows */
};

/* As matrix_cuda_output, -1 where there is none. */
static __device__ int output_of(const struct view *a, int tile, int row)
{
    const int half = row / (TILE / 2), within = row % (TILE / 2);
    if (a->flags == MATRIX_INTERLEAVE) {
        const int j = tile * (TILE / 2) + within;
        return j < a->n / 2 ? j + half * (a->n / 2) : -1;
    }
    if (a->flags == MATRIX_ROTARY) {
        const int tiles = a->head_dim / TILE;
        return tile / tiles * a->head_dim + tile % tiles * (TILE / 2) + within + half * (a->head_dim / 2);
    }
    return tile * TILE + row < a->n ? tile * TILE + row : -1;
}

static __device__ struct place place_of(const struct view *a, int tile, int row)
{
    struct place p = {0, output_of(a, tile, row), {a->seed, 0, 0}};
    int begin = 0;
#pragma unroll
    for (int i = 0; i < PACK_PARTS; i++) {
        if (!a->rows && p.output >= begin && p.output < begin + a->part[i].n) {
            p.first = a->part[i].first + (size_t)(p.output - begin) * a->part[i].row_step;
            p.numbers.tensor = a->part[i].tensor;
            p.numbers.scale = a->part[i].scale;
        }
        begin += a->part[i].n;
    }
    if (a->rows && p.output >= 0) {
        const int at = a->col_step > 1 ? pack_transposed_row(a->flags, a->tiles, tile - a->tile, row)
                                       : (tile - a->tile) * TILE + row;
        p.first = (size_t)at * a->row_step + (size_t)a->before * a->col_step;
    }
    return p;
}

/* Two neighbours, the first in the lower half. */
static __device__ uint32_t two(bf16 low, bf16 high)
{
    return (uint32_t)low | (uint32_t)high << 16;
}

static __device__ float low_of(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

static __device__ float high_of(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}

/* Words of two random numbers; they are finite, for which the instruction rounds as bf16_from_f32 does. */
static __device__ uint32_t two_synthetic(uint32_t low, uint32_t high, float scale)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;"
        : "=r"(pair)
        : "f"(synthetic_normal(high, scale)), "f"(synthetic_normal(low, scale)));
    return pair;
}

/* One element. */
template <enum dtype TYPE>
static __device__ bf16 number(const struct view *a, const struct place *p, size_t i)
{
    if (TYPE == DTYPE_SYNTHETIC)
        return synthetic_at(&p->numbers, i);
    if (TYPE == DTYPE_F32)
        return bf16_from_f32(((const float *)a->rows)[i]);
    if (TYPE == DTYPE_FP8)
        return bf16_from_f32(fp8_to_f32(((const uint8_t *)a->rows)[i]));
    const uint16_t h = ((const uint16_t *)a->rows)[i];
    return TYPE == DTYPE_BF16 ? h : bf16_from_f32(f16_to_f32(h));
}

/* Four at once, where quads says that rows begin at whole groups. */
template <enum dtype TYPE>
static __device__ uint2 whole(const struct view *a, const struct place *p, size_t group)
{
    if (TYPE == DTYPE_SYNTHETIC) {
        const struct philox4 r = synthetic_four(&p->numbers, group);
        return make_uint2(two_synthetic(r.v[0], r.v[1], p->numbers.scale),
                          two_synthetic(r.v[2], r.v[3], p->numbers.scale));
    }
    if (TYPE == DTYPE_F32) {
        const float4 f = ((const float4 *)a->rows)[group];
        return make_uint2(two(bf16_from_f32(f.x), bf16_from_f32(f.y)),
                          two(bf16_from_f32(f.z), bf16_from_f32(f.w)));
    }
    if (TYPE == DTYPE_FP8) {
        const uchar4 h = ((const uchar4 *)a->rows)[group];
        return make_uint2(two(bf16_from_f32(fp8_to_f32(h.x)), bf16_from_f32(fp8_to_f32(h.y))),
                          two(bf16_from_f32(fp8_to_f32(h.z)), bf16_from_f32(fp8_to_f32(h.w))));
    }
    if (TYPE == DTYPE_F16) {
        const ushort4 h = ((const ushort4 *)a->rows)[group];
        return make_uint2(two(bf16_from_f32(f16_to_f32(h.x)), bf16_from_f32(f16_to_f32(h.y))),
                          two(bf16_from_f32(f16_to_f32(h.z)), bf16_from_f32(f16_to_f32(h.w))));
    }
    return ((const uint2 *)a->rows)[group];
}

/* Inputs 4 q .. 4 q + 3 of an output, zero from n on. */
template <enum dtype TYPE>
static __device__ uint2 four(const struct view *a, const struct place *p, int q, int n)
{
    bf16 v[4];
    if (p->output < 0 || q * 4 >= n)
        return make_uint2(0, 0);
    if (a->quads)
        return whole<TYPE>(a, p, p->first / 4 + (size_t)q);
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = q * 4 + i < n ? number<TYPE>(a, p, p->first + (size_t)(q * 4 + i) * a->col_step) : 0;
    return make_uint2(two(v[0], v[1]), two(v[2], v[3]));
}

template <enum dtype TYPE> static __global__ void __launch_bounds__(THREADS) scale_kernel(const struct view a)
{
    const int at = (int)(blockIdx.x * WARPS + threadIdx.x / 32), lane = threadIdx.x % 32;
    float most = 0;
    launch_trigger();
    launch_wait();
    if (at >= a.tiles * TILE)
        return;
    const int n = a.before + a.k + a.after;
    struct place p = place_of(&a, a.tile + at / TILE, at % TILE);
    if (p.output >= 0)
        p.first -= (size_t)a.before * a.col_step;
    for (int q = lane; q * 4 < n; q += 32) {
        const uint2 f = four<TYPE>(&a, &p, q, n);
        most = fmaxf(most, fmaxf(fabsf(low_of(f.x)), fabsf(high_of(f.x))));
        most = fmaxf(most, fmaxf(fabsf(low_of(f.y)), fabsf(high_of(f.y))));
    }
    for (int other = 16; other > 0; other /= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, other));
    if (lane == 0 && p.output >= 0)
        a.scale[p.output] = most > 0 ? most / FP8_MAX : 1.0f;
}

/* Two neighbours as the matrix keeps them. */
template <enum matrix_form FORM> static __device__ uint32_t encode(uint32_t pair, float scale)
{
    if (FORM == MATRIX_BF16)
        return pair;
    return (uint32_t)fp8_from_f32(low_of(pair) / scale) | (uint32_t)fp8_from_f32(high_of(pair) / scale) << 8;
}

/* One row's two pairs of a step: pair[0] of inputs 2 p .., pair[1] of 2 p + 8 ... A lane of even p holds the
 * group of its first pair, one of odd p that of its second; each wants half of its neighbour's. */
template <enum dtype TYPE, enum matrix_form FORM>
static __device__ void pairs(const struct view *a, const struct place *row, float scale, int step,
                             uint32_t pair[2])
{
    const int p = threadIdx.x % 4, odd = p % 2;
    const uint2 f = four<TYPE>(a, row, step * 4 + p / 2 + odd * 2, a->k);
    const uint32_t low = encode<FORM>(f.x, scale), high = encode<FORM>(f.y, scale);
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
    pair[0] = odd ? got : low;
    pair[1] = odd ? high : got;
}

/* Words [first, first + EACH) of the lanes of a tile: BF16 a step each, FP8 two. */
template <enum dtype TYPE, enum matrix_form FORM>
static __global__ void __launch_bounds__(THREADS) pack_kernel(const struct view a)
{
    const int per = FORM == MATRIX_FP8 ? 2 : 1, words = ((a.k + STEP - 1) / STEP + per - 1) / per;
    const int lane = threadIdx.x % 32, first = (int)blockIdx.y * WORDS + (int)threadIdx.x / 32 * EACH;
    const int tile = a.tile + (int)blockIdx.x;
    struct place row[2];
    float scale[2];
    launch_trigger();
    launch_wait();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        row[i] = place_of(&a, tile, lane / 4 + i * 8);
        scale[i] = FORM == MATRIX_FP8 && TYPE != DTYPE_FP8 && row[i].output >= 0 ? a.scale[row[i].output] : 1.0f;
    }
    uint4 *to = (uint4 *)a.to + ((size_t)tile * (size_t)words + (size_t)first) * 32 + (size_t)lane;
    for (int word = first; word < first + EACH && word < words; word++, to += 32) {
        uint32_t v[2][2][2]; /* [step][row][pair] */
#pragma unroll
        for (int s = 0; s < per; s++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                pairs<TYPE, FORM>(&a, &row[i], scale[i], word * per + s, v[s][i]);
        if (FORM == MATRIX_FP8)
            *to = make_uint4(v[0][0][0] | v[0][1][0] << 16, v[0][0][1] | v[0][1][1] << 16,
                             v[1][0][0] | v[1][1][0] << 16, v[1][0][1] | v[1][1][1] << 16);
        else
            *to = make_uint4(v[0][0][0], v[0][1][0], v[0][0][1], v[0][1][1]);
    }
}

template <enum dtype TYPE> static int launch_form(const struct view *a, enum matrix_form form, void *stream)
{
    const int per = form == MATRIX_FP8 ? 2 : 1, words = ((a->k + STEP - 1) / STEP + per - 1) / per;
    const struct launch scales = {.grid = dim3((unsigned)a->tiles * (TILE / WARPS)),
                                  .block = dim3(THREADS),
                                  .shared = 0,
                                  .cluster = 0,
                                  .stream = stream};
    const struct launch packs = {.grid = dim3((unsigned)a->tiles, (unsigned)((words + WORDS - 1) / WORDS)),
                                 .block = dim3(THREADS),
                                 .shared = 0,
                                 .cluster = 0,
                                 .stream = stream};
    if (form != MATRIX_FP8)
        return launch_kernel(&packs, pack_kernel<TYPE, MATRIX_BF16>, *a);
    if (TYPE == DTYPE_FP8)
        return launch_kernel(&packs, pack_kernel<TYPE, MATRIX_FP8>, *a);
    const int rc = launch_kernel(&scales, scale_kernel<TYPE>, *a);
    return rc ? rc : launch_kernel(&packs, pack_kernel<TYPE, MATRIX_FP8>, *a);
}

static int quads(const struct view *v, int parts)
{
    size_t all = (size_t)v->k | (size_t)v->before | (size_t)v->after | v->row_step;
    for (int i = 0; !v->rows && i < parts; i++)
        all |= v->part[i].first | v->part[i].row_step;
    return v->col_step == 1 && all % 4 == 0;
}

KERN_API int pack_cuda(const struct pack *a, void *stream)
{
    const struct matrix_source *from = a->from;
    struct view v = {};
    v.rows = a->rows;
    v.to = a->to;
    v.scale = a->scale;
    v.k = from->k;
    v.row_step = a->row_step ? a->row_step : (size_t)from->k;
    v.col_step = a->col_step ? a->col_step : 1;
    v.before = a->before;
    v.after = a->after;
    v.tile = a->tile;
    v.tiles = a->tiles;
    v.head_dim = from->head_dim;
    v.flags = from->flags;
    for (int i = 0; i < from->n_parts; i++) {
        v.n += from->parts[i].n;
        if (!a->rows) {
            const struct synthetic *s = (const struct synthetic *)from->parts[i].data;
            v.seed = s->seed;
            v.part[i].tensor = s->tensor;
            v.part[i].scale = s->scale;
            v.part[i].n = from->parts[i].n;
            v.part[i].first = from->views ? from->views[i].first : 0;
            v.part[i].row_step = from->views ? from->views[i].row_step : (size_t)from->k;
        }
    }
    if (!a->rows && from->views) {
        v.before = from->views[0].before;
        v.after = from->views[0].after;
    }
    v.quads = quads(&v, from->n_parts);
    if (!a->rows)
        return launch_form<DTYPE_SYNTHETIC>(&v, from->form, stream);
    switch (a->dtype) {
    case DTYPE_F32:
        return launch_form<DTYPE_F32>(&v, from->form, stream);
    case DTYPE_F16:
        return launch_form<DTYPE_F16>(&v, from->form, stream);
    case DTYPE_FP8:
        return launch_form<DTYPE_FP8>(&v, MATRIX_FP8, stream);
    default:
        return launch_form<DTYPE_BF16>(&v, from->form, stream);
    }
}
