/* logits: a cluster of eight blocks a row, each an eighth of the ids. The largest two are exchanged through distributed
 * shared memory, then every block sums exponentials below the row's own maximum, and the first adds the eight sums.
 * launch   grid [8, rows], clusters of 8, block 512, shared 1 KB
 * math     a thread adds its ids in ascending order, threads by halving within a warp, warps and blocks in order: fixed by vocab
 * moves    rows * vocab * 4 bytes from memory or L2, where the output head has just left them, and again from L1
 * roof     memory; a row of 128256: 0.5 MB, 0.2 us at 3 TB/s, so two passes and three cluster barriers are the cost */
#include "kernels/cuda.h"
#include "kernels/launch.cuh"
#include <cooperative_groups.h>
#include <math.h>

enum { BLOCKS = 8, THREADS = 512, WARPS = THREADS / 32, UNROLL = 8 };

struct top2 {
    float max, second;
    int id; /* of max; INT_MAX: none yet */
};

struct sums {
    float sum, weighted;
};

/* The largest two of both; the lowest id among equals, so the order of merging does not matter. */
static __device__ struct top2 merge(struct top2 a, struct top2 b)
{
    const bool first = a.max > b.max || (a.max == b.max && a.id <= b.id);
    const struct top2 win = first ? a : b, lose = first ? b : a;
    return {win.max, fmaxf(win.second, lose.max), win.id};
}

/* Of ids [from, to), this thread's. Comparisons, not fmaxf: a NaN never wins. */
static __device__ struct top2 scan_top2(const float *row, int from, int to)
{
    struct top2 t = {-INFINITY, -INFINITY, INT_MAX};
#pragma unroll UNROLL
    for (int i = from + (int)threadIdx.x; i < to; i += THREADS) {
        const float x = row[i];
        const bool more = x > t.max;
        t.second = more ? t.max : x > t.second ? x : t.second;
        t.id = more ? i : t.id;
        t.max = more ? x : t.max;
    }
    return t;
}

/* The block's, in thread 0. */
static __device__ struct top2 block_top2(struct top2 t)
{
    __shared__ struct top2 part[WARPS];
    for (int step = 16; step > 0; step /= 2)
        t = merge(t, {__shfl_xor_sync(0xffffffffu, t.max, step), __shfl_xor_sync(0xffffffffu, t.second, step),
                      __shfl_xor_sync(0xffffffffu, t.id, step)});
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = t;
    __syncthreads();
    for (int i = 1; threadIdx.x == 0 && i < WARPS; i++)
        t = merge(t, part[i]);
    return t;
}

/* exp(x - max) over ids [from, to), this thread's; at 104 below the maximum it is 0 and so is its product. */
static __device__ struct sums scan_sums(const float *row, int from, int to, float max)
{
    struct sums s = {0, 0};
#pragma unroll UNROLL
    for (int i = from + (int)threadIdx.x; i < to; i += THREADS) {
        const float d = fmaxf(row[i] - max, -104.0f), e = expf(d);
        s.sum += e;
        s.weighted = fmaf(e, d, s.weighted);
    }
    return s;
}

static __device__ struct sums block_sums(struct sums s)
{
    __shared__ struct sums part[WARPS];
    for (int step = 16; step > 0; step /= 2) {
        s.sum += __shfl_xor_sync(0xffffffffu, s.sum, step);
        s.weighted += __shfl_xor_sync(0xffffffffu, s.weighted, step);
    }
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = s;
    __syncthreads();
    for (int i = 1; threadIdx.x == 0 && i < WARPS; i++) {
        s.sum += part[i].sum;
        s.weighted += part[i].weighted;
    }
    return s;
}

static __global__ void __launch_bounds__(THREADS)
    logits_kernel(const float *logits, struct logit_stats *out, int vocab, int with_entropy)
{
    __shared__ struct top2 top;
    __shared__ struct sums sums;
    const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
    const int share = (vocab + BLOCKS - 1) / BLOCKS, from = (int)blockIdx.x * share, to = min(from + share, vocab);
    const float *row = logits + (size_t)blockIdx.y * (size_t)vocab;
    launch_trigger();
    launch_wait();
    struct top2 best = block_top2(scan_top2(row, from, to));
    if (threadIdx.x == 0)
        top = best;
    cluster.sync();
    best = *cluster.map_shared_rank(&top, 0);
    for (int i = 1; i < BLOCKS; i++)
        best = merge(best, *cluster.map_shared_rank(&top, i));
    struct sums all = block_sums(scan_sums(row, from, to, best.max));
    if (threadIdx.x == 0)
        sums = all;
    cluster.sync();
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        for (int i = 1; i < BLOCKS; i++) {
            const struct sums s = *cluster.map_shared_rank(&sums, i);
            all.sum += s.sum;
            all.weighted += s.weighted;
        }
        const float log_sum = logf(all.sum);
        out[blockIdx.y] = {best.id < vocab ? best.id : 0, best.max, best.second, best.max + log_sum,
                           with_entropy ? log_sum - all.weighted / all.sum : 0.0f};
    }
    cluster.sync(); /* no block leaves while another reads its shared memory */
}

KERN_API int logits_cuda(const struct logits *a, void *stream)
{
    const struct launch l = {
        .grid = dim3(BLOCKS, (unsigned)a->rows), .block = THREADS, .cluster = BLOCKS, .stream = stream};
    return launch_kernel(&l, logits_kernel, a->logits, a->out, a->vocab, a->with_entropy);
}
