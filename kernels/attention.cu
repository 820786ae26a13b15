/* attention: flash decoding on tensor cores over a token tree.
 *
 * Positions are cut at fixed places into blocks of 64 keys and chunks of 1, 4 or 16 blocks (short ones first:
 * a short context needs many blocks in flight, a long one few partial results). A chunk's result for a row is
 * its maximum m, its sum of exponentials l and its sum of weighted values o, made block by block; chunks are
 * folded in ascending order. All of that depends on the row's positions alone. The query heads of a kv head,
 * and of several rows, are the rows of an m16n8k16 product, whose sums do not depend on the other rows.
 *
 * Up to SPLIT_ROWS rows: attention_split, a chunk a block, leaves (m, l, o) in scratch, and attention_merge
 * folds them. Rows of a tile share the block of a chunk that all of them see whole and in the same cells; in
 * any other chunk each has a block of its own. More rows: attention_walk, a block goes through all chunks of
 * a tile of rows and folds in registers: the same bits, no scratch.
 *
 * launch   split: grid [chunks of cap, kv_heads, rows]; merge: grid rows * heads / 4; walk: grid [tiles,
 *          kv_heads]; block 128. Blocks beyond their row's position leave at once. Shared 26 KB (head_dim 64,
 *          one m tile) to 108 KB (256, two)
 * math     q as the sum of two bf16 (relative error 2^-17); scores f32 in units of log2; exponentials rounded
 *          to bf16 before they are summed and multiplied, so that weights add up to 1; all sums f32
 * moves    4 * kv_heads * head_dim bytes a position and tile of rows; 8 + 4 * head_dim bytes a chunk and head
 *          to scratch and back
 * roof     memory at few rows; the walk reads a key once per 64 / group rows: tensor cores and shared memory
 */
#include "kernels/attention_job.cuh"
#include "kernels/cuda.h"
#include "kernels/launch.cuh"
#include <limits.h>

/* How far rows [first, first + count) see the same cells: 0 where slots differ. */
static __device__ int common_end(const struct view *a, int first, int count)
{
    int end = INT_MAX;
    for (int i = threadIdx.x % 32; i < count; i += 32)
        end = a->slot[first + i] == a->slot[first] ? min(end, min(a->base[first + i], a->pos[first + i] + 1))
                                                   : 0;
    return __reduce_min_sync(0xffffffffu, end);
}

static __device__ struct job job_alone(const struct view *a, int row, int kv_head)
{
    const int base = a->base[row], last = a->pos[row];
    const struct job j = {
        row, 1, kv_head, a->slot[row], base, last, a->path + (base <= last ? a->path_off[row] : 0)};
    return j;
}

static __device__ struct job job_shared(const struct view *a, int first, int count, int kv_head)
{
    int last = 0;
    for (int i = threadIdx.x % 32; i < count; i += 32)
        last = max(last, a->pos[first + i]);
    const struct job j = {
        first, count, kv_head, a->slot[first], INT_MAX, __reduce_max_sync(0xffffffffu, last), a->path};
    return j;
}

/* Row and head of m tile row i, and whether there is one. */
static __device__ bool locate(const struct view *a, const struct job *j, int i, int *row, int *head)
{
    *row = j->first + i / a->group;
    *head = j->kv_head * a->group + i % a->group;
    return i < j->count * a->group;
}

template <int DIM, int TILES>
static __device__ void store_partial(const struct view *a, const struct job *j, int chunk,
                                     const struct part<DIM, TILES> *c)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        int row, head;
        if (!locate(a, j, i * 8 + lane / 4, &row, &head))
            continue;
        const size_t at = ((size_t)row * (size_t)a->heads + (size_t)head) * (size_t)a->chunks + (size_t)chunk;
        if (warp == 0 && lane % 4 == 0)
            a->stat[at] = make_float2(c->m[i / 2][i % 2], c->l[i / 2][i % 2]);
#pragma unroll
        for (int n = 0; n < DIM / 32; n++) {
            const int d = warp * (DIM / 4) + n * 8 + lane % 4 * 2;
            const float *o = &c->o[i / 2][n][i % 2 * 2];
            if (d < a->dim)
                *(float2 *)(a->o + at * (size_t)a->dim + d) = make_float2(o[0], o[1]);
        }
    }
}

template <int DIM, int TILES>
static __device__ void store_part(const struct view *a, const struct job *j, const struct part<DIM, TILES> *c)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        int row, head;
        if (!locate(a, j, i * 8 + lane / 4, &row, &head))
            continue;
        const float inverse = __frcp_rn(c->l[i / 2][i % 2]);
#pragma unroll
        for (int n = 0; n < DIM / 32; n++) {
            const int d = warp * (DIM / 4) + n * 8 + lane % 4 * 2;
            const float *o = &c->o[i / 2][n][i % 2 * 2];
            if (d < a->dim)
                store_y(a, row, head * a->dim + d, o[0], o[1], inverse);
        }
    }
}

template <int DIM, int TILES>
static __global__ void __launch_bounds__(THREADS) attention_split(const __grid_constant__ struct view a)
{
    extern __shared__ __align__(16) unsigned char memory[];
    struct shared<DIM, TILES> *sh = (struct shared<DIM, TILES> *)memory;
    const int chunk = blockIdx.x, kv_head = blockIdx.y, row = blockIdx.z, tile = 16 * TILES / a.group,
              first = row / tile * tile;
    const int begin = chunk_begin(chunk), end = chunk_begin(chunk + 1), count = min(tile, a.n - first);
    launch_trigger();
    launch_wait();
    if (begin > a.pos[row])
        return;
    const bool together = end <= common_end(&a, first, count);
    if (together && row != first)
        return;
    const struct job j = together ? job_shared(&a, first, count, kv_head) : job_alone(&a, row, kv_head);
    struct part<DIM, TILES> c;
    attend<DIM, TILES>(sh, &a, &j, begin, min(end, j.last + 1), end, &c, NULL);
    store_partial(&a, &j, chunk, &c);
}

/* A warp a row and head; a lane four components. Weights of 32 chunks are made at once, then chunks are added
 * one by one. */
static __global__ void __launch_bounds__(THREADS) attention_merge(const __grid_constant__ struct view a)
{
    const int lane = threadIdx.x % 32, unit = (int)blockIdx.x * WARPS + (int)threadIdx.x / 32;
    launch_trigger();
    launch_wait();
    if (unit >= a.n * a.heads)
        return;
    const int row = unit / a.heads, head = unit % a.heads, chunks = chunk_of(a.pos[row]) + 1;
    const size_t at = (size_t)unit * (size_t)a.chunks;
    for (int d = lane * 4; d - lane * 4 < a.dim; d += 128) {
        const bool mine = d < a.dim;
        float sum = 0, max = -CUDART_INF_F;
        float4 o = make_float4(0, 0, 0, 0);
        for (int first = 0; first < chunks; first += 32) {
            const float2 stat =
                first + lane < chunks ? a.stat[at + (size_t)(first + lane)] : make_float2(-CUDART_INF_F, 0);
            float upto = stat.x;
            for (int step = 1; step < 32; step *= 2) {
                const float other = __shfl_up_sync(0xffffffffu, upto, step);
                upto = lane >= step ? fmaxf(upto, other) : upto;
            }
            upto = fmaxf(upto, max);
            const float previous = __shfl_up_sync(0xffffffffu, upto, 1);
            const float2 weights = fold_weights(lane == 0 ? max : previous, stat.x, stat.y);
            max = __shfl_sync(0xffffffffu, upto, 31);
#pragma unroll 8
            for (int i = 0; i < min(32, chunks - first); i++) {
                const float2 w = make_float2(__shfl_sync(0xffffffffu, weights.x, i),
                                             __shfl_sync(0xffffffffu, weights.y, i));
                const float4 *from = (const float4 *)(a.o + (at + (size_t)(first + i)) * (size_t)a.dim + d);
                const float4 value = mine ? *from : make_float4(0, 0, 0, 0);
                sum = fold(sum, __shfl_sync(0xffffffffu, stat.y, i), w);
                o = make_float4(fold(o.x, value.x, w), fold(o.y, value.y, w), fold(o.z, value.z, w),
                                fold(o.w, value.w, w));
            }
        }
        const float inverse = __frcp_rn(sum);
        if (mine) {
            store_y(&a, row, head * a.dim + d, o.x, o.y, inverse);
            store_y(&a, row, head * a.dim + d + 2, o.z, o.w, inverse);
        }
    }
}

template <int DIM, int TILES>
static __global__ void __launch_bounds__(THREADS) attention_walk(const __grid_constant__ struct view a)
{
    extern __shared__ __align__(16) unsigned char memory[];
    struct shared<DIM, TILES> *sh = (struct shared<DIM, TILES> *)memory;
    const int kv_head = blockIdx.y, tile = 16 * TILES / a.group;
    const int first = (int)(gridDim.x - 1 - blockIdx.x) * tile; /* long rows first */
    const int end = min(first + tile, a.n);
    bool chain = true;
    launch_trigger();
    launch_wait();
    for (int i = first + (int)threadIdx.x % 32; i < end; i += 32)
        chain = chain && a.slot[i] == a.slot[first] && a.base[i] > a.pos[i];
    bool together = __all_sync(0xffffffffu, chain);
    for (int row = first; row < end;) {
        const struct job j =
            together ? job_shared(&a, first, end - first, kv_head) : job_alone(&a, row, kv_head);
        struct part<DIM, TILES> c, all;
        part_clear(&all);
        if (attend<DIM, TILES>(sh, &a, &j, 0, j.last + 1, common_end(&a, row, j.count), &c, &all)) {
            store_part(&a, &j, &all);
            row += j.count;
        } else {
            together = false;
        }
    }
}

/* MANY: m tiles where one does not hold all rows. */
template <int DIM, int MANY> static int run(const struct view *a, void *stream)
{
    const bool few = a->n * a->group <= 16, split = a->n <= SPLIT_ROWS;
    if (a->group > 16 * MANY)
        return cudaErrorInvalidValue;
    const int tile = 16 * (few ? 1 : MANY) / a->group;
    void (*const kernel)(struct view) = few     ? attention_split<DIM, 1>
                                        : split ? attention_split<DIM, MANY>
                                                : attention_walk<DIM, MANY>;
    const struct launch main = {
        split ? dim3((unsigned)a->chunks, (unsigned)a->kv_heads, (unsigned)a->n)
              : dim3((unsigned)((a->n + tile - 1) / tile), (unsigned)a->kv_heads),
        dim3(THREADS), few ? sizeof(struct shared<DIM, 1>) : sizeof(struct shared<DIM, MANY>), 0, stream};
    const struct launch merge = {dim3((unsigned)((a->n * a->heads + WARPS - 1) / WARPS)), dim3(THREADS), 0, 0,
                                 stream};
    const int rc = launch_kernel(&main, kernel, *a);
    return rc || !split ? rc : launch_kernel(&merge, attention_merge, *a);
}

KERN_API size_t attention_cuda_scratch(int max_rows, int heads, int head_dim, int cap)
{
    const size_t rows = (size_t)(max_rows < SPLIT_ROWS ? max_rows : SPLIT_ROWS);
    return rows * (size_t)heads * (size_t)(chunk_of(cap - 1) + 1) * (size_t)(head_dim + 2);
}

KERN_API int attention_cuda(const struct attention *a, void *stream)
{
    const struct rows *rows = a->rows;
    const struct kv_layer *kv = &a->kv;
    const int chunks = chunk_of(kv->cap - 1) + 1, group = a->heads / kv->kv_heads;
    float *stat = a->scratch + (size_t)rows->n * (size_t)a->heads * (size_t)chunks * (size_t)kv->head_dim;
    const struct view view = {rows->slot,
                              rows->pos,
                              rows->base,
                              rows->path_off,
                              rows->path,
                              a->qkv,
                              (const bf16 *)kv->k,
                              (const bf16 *)kv->v,
                              (bf16 *)a->y,
                              a->scratch,
                              (float2 *)stat,
                              rows->n,
                              a->heads,
                              kv->kv_heads,
                              group,
                              kv->head_dim,
                              kv->cap,
                              chunks,
                              a->scale * 1.44269504f};
    if (rows->n == 0)
        return 0;
    if (kv->head_dim <= 64)
        return run<64, 4>(&view, stream);
    if (kv->head_dim <= 128)
        return run<128, 4>(&view, stream);
    if (kv->head_dim <= 256)
        return run<256, 2>(&view, stream);
    return cudaErrorInvalidValue;
}
