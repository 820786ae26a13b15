/* logits: a row is read once, in chunks of 512 ids, a warp each. A chunk leaves its two largest and its sums
 * below its own maximum in the shared memory of the first of the row's eight blocks, which merges them.
 *
 * launch   grid [8, rows], clusters of 8, block 512, of many rows 256, so that 64 rows are one wave; shared
 *          20 bytes a chunk
 * math     a lane adds its 16 ids of a chunk in ascending order, lanes by halving; then 256 threads add every
 *          256th chunk, scaled to the row's maximum, lanes and warps by halving: fixed by vocab, whichever
 *          warp took which chunk
 * moves    rows * vocab * 4 bytes from memory or L2, where the output head has just left them
 * roof     memory for many rows; a row of 128256 is 0.5 MB, 0.2 us at 3 TB/s, so one load's latency, one
 *          barrier of the cluster and two of a block are the cost */
#include "kernels/cuda.h"
#include "kernels/launch.cuh"
#include "kernels/row.cuh"
#include "kernels/sample.cuh"
#include <limits.h>
#include <math.h>

enum {
    BLOCKS = 8,
    THREADS = 512,
    MANY_ROWS = 16, /* more take blocks of half the size */
    WARPS = THREADS / 32,
    EACH = 16,
    CHUNK = 32 * EACH,
    MERGERS = 256
};

struct top2 {
    float max, second;
    int id; /* of max; INT_MAX: none yet */
};

struct part {
    struct top2 top;
    float sum, weighted; /* of exp(x - top.max), and times x - top.max */
};

static __device__ struct top2 no_top(void)
{
    return {-INFINITY, -INFINITY, INT_MAX};
}

/* The largest two of both; the lowest id among equals, so the order of merging does not matter. */
static __device__ struct top2 merge(struct top2 a, struct top2 b)
{
    const bool first = a.max > b.max || (a.max == b.max && a.id <= b.id);
    const struct top2 win = first ? a : b, lose = first ? b : a;
    return {win.max, fmaxf(win.second, lose.max), win.id};
}

static __device__ struct top2 warp_top(struct top2 t)
{
    const uint32_t key = sample_order_key(t.max), most = __reduce_max_sync(ROW_LANES, key);
    const int id = __reduce_min_sync(ROW_LANES, key == most ? t.id : INT_MAX);
    const uint32_t next = __reduce_max_sync(ROW_LANES, sample_order_key(t.id == id ? t.second : t.max));
    return {sample_key_value(most), sample_key_value(next), id};
}

static __device__ float warp_sum(float x)
{
    for (int step = 16; step > 0; step /= 2)
        x += __shfl_xor_sync(ROW_LANES, x, step);
    return x;
}

/* Below `max`; at 104 below it exp is 0 and so is its product. */
static __device__ float below(float x, float max)
{
    return fmaxf(x - max, -104.0f);
}

/* A warp: ids [first, first + CHUNK). Comparisons, not fmaxf: a NaN never wins. */
static __device__ struct part sum_chunk(const float *row, int first, int vocab, int wide)
{
    const int begin = first + (int)threadIdx.x % 32 * ROW_QUAD;
    float x[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k += ROW_QUAD) {
        const float4 q = row_quad(row, begin + k * 32, vocab, wide);
        x[k] = q.x, x[k + 1] = q.y, x[k + 2] = q.z, x[k + 3] = q.w;
    }
    struct top2 t = no_top();
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        const bool more = x[k] > t.max;
        t.second = more ? t.max : x[k] > t.second ? x[k] : t.second;
        t.id = more ? begin + k / ROW_QUAD * ROW_QUAD * 32 + k % ROW_QUAD : t.id;
        t.max = more ? x[k] : t.max;
    }
    struct part p = {warp_top(t), 0, 0};
    const float max = p.top.max > -INFINITY ? p.top.max : 0;
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        const float d = below(x[k], max), e = expf(d);
        p.sum += e;
        p.weighted = fmaf(e, d, p.weighted);
    }
    p.sum = warp_sum(p.sum);
    p.weighted = warp_sum(p.weighted);
    return p;
}

/* The row's from its chunks', in every thread of the block. */
static __device__ struct part merge_chunks(const struct part *chunk, int chunks)
{
    __shared__ struct part of_warp[WARPS];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    const int last = threadIdx.x < MERGERS ? chunks : 0;
    struct part all = {no_top(), 0, 0};
    for (int c = (int)threadIdx.x; c < last; c += MERGERS)
        all.top = merge(all.top, chunk[c].top);
    all.top = warp_top(all.top);
    if (lane == 0)
        of_warp[warp].top = all.top;
    __syncthreads();
    all.top = warp_top(lane < warps ? of_warp[lane].top : no_top());
    for (int c = (int)threadIdx.x; c < last; c += MERGERS) {
        const float d = below(chunk[c].top.max, all.top.max), e = expf(d);
        all.sum = fmaf(e, chunk[c].sum, all.sum);
        all.weighted = fmaf(e, fmaf(d, chunk[c].sum, chunk[c].weighted), all.weighted);
    }
    all.sum = warp_sum(all.sum);
    all.weighted = warp_sum(all.weighted);
    if (lane == 0) {
        of_warp[warp].sum = all.sum;
        of_warp[warp].weighted = all.weighted;
    }
    __syncthreads();
    all.sum = warp_sum(lane < warps ? of_warp[lane].sum : 0);
    all.weighted = warp_sum(lane < warps ? of_warp[lane].weighted : 0);
    return all;
}

static __global__ void __launch_bounds__(THREADS)
    logits_kernel(const float *logits, struct logit_stats *out, int vocab, int with_entropy, int wide)
{
    extern __shared__ struct part chunk[];
    const float *row = logits + (size_t)blockIdx.y * (size_t)vocab;
    const int chunks = (vocab + CHUNK - 1) / CHUNK, warps = (int)blockDim.x / 32;
    launch_trigger();
    row_arrive();
    launch_wait();
    row_wait();
    for (int c = (int)blockIdx.x * warps + (int)threadIdx.x / 32; c < chunks; c += BLOCKS * warps) {
        const struct part p = sum_chunk(row, c * CHUNK, vocab, wide);
        if (threadIdx.x % 32 == 0)
            *row_first(&chunk[c]) = p;
    }
    row_arrive();
    row_wait();
    if (blockIdx.x > 0)
        return;
    const struct part all = merge_chunks(chunk, chunks);
    if (threadIdx.x > 0)
        return;
    const float log_sum = logf(all.sum);
    out[blockIdx.y] = {all.top.id < vocab ? all.top.id : 0, all.top.max, all.top.second,
                       all.top.max + log_sum, with_entropy ? log_sum - all.weighted / all.sum : 0.0f};
}

KERN_API int logits_cuda(const struct logits *a, void *stream)
{
    const size_t chunks = ((size_t)a->vocab + CHUNK - 1) / CHUNK;
    const struct launch l = {.grid = dim3(BLOCKS, (unsigned)a->rows),
                             .block = a->rows > MANY_ROWS ? THREADS / 2 : THREADS,
                             .shared = chunks * sizeof(struct part),
                             .cluster = BLOCKS,
                             .stream = stream};
    return launch_kernel(&l, logits_kernel, a->logits, a->out, a->vocab, a->with_entropy,
                         row_wide(a->logits, a->vocab));
}
