/* node_stats: a cluster of eight blocks a node counts the ids before its token in the row of its parent; one
 * more cluster a slot follows the accepted path. What does not hang on another load is loaded first, so that
 * a node takes two round trips to memory and then its row.
 *
 * launch   grid [8 * (1 + max_nodes), slots], clusters of 8, block 512, shared 100 B; nodes that are not
 *          there leave at once
 * math     whole numbers and single f32 operations: exact
 * moves    vocab * 4 bytes a node, siblings' from L2; 0.5 MB at 128256 ids
 * roof     latency: 128256 ids are eight loads of 16 bytes a thread, four in flight; 49 nodes are one wave */
#include "kernels/launch.cuh"
#include "kernels/node_stats.h"
#include "kernels/row.cuh"

enum { BLOCKS = 8, THREADS = 512, WARPS = THREADS / 32, UNROLL = 4 };

static __device__ float log_p_of(const struct node_stats *a, int row, int token)
{
    return a->logits[(size_t)row * (size_t)a->vocab + (size_t)token] - a->stats[row].lse;
}

/* Does id, of logit y, stand before `token`, of logit x? */
static __device__ int stands_before(float y, int id, float x, int token)
{
    return y > x || (y == x && id < token);
}

/* This thread's ids that stand before the token. */
static __device__ int count_before(const float *row, int vocab, int token, int block, int wide)
{
    const float x = row[token];
    int n = 0;
#pragma unroll UNROLL
    for (int i = (block * THREADS + (int)threadIdx.x) * ROW_QUAD; i < vocab;
         i += BLOCKS * THREADS * ROW_QUAD) {
        const float4 y = row_quad(row, i, vocab, wide);
        n += stands_before(y.x, i, x, token) + stands_before(y.y, i + 1, x, token) +
             stands_before(y.z, i + 2, x, token) + stands_before(y.w, i + 3, x, token);
    }
    return n;
}

/* Sum over the cluster, in the first block's first thread. */
static __device__ int cluster_sum(int n, int block)
{
    __shared__ int of_warp[WARPS], of_block[BLOCKS];
    n = __reduce_add_sync(ROW_LANES, n);
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = n;
    __syncthreads();
    row_wait(); /* for the first round: all blocks have begun */
    if (threadIdx.x < 32) {
        n = __reduce_add_sync(ROW_LANES, threadIdx.x < WARPS ? of_warp[threadIdx.x] : 0);
        if (threadIdx.x == 0)
            *row_first(&of_block[block]) = n;
    }
    row_arrive();
    row_wait();
    n = 0;
    for (int b = 0; b < BLOCKS; b++)
        n += of_block[b];
    return n;
}

/* Entries of the path past its end are of earlier steps, and not used. */
static __device__ void follow_path(const struct node_stats *a, const struct trees *t, int slot, int first_row)
{
    const int *token = t->token + (size_t)slot * (size_t)t->max_nodes;
    const int *path = a->path + (size_t)slot * (size_t)t->max_depth;
    float *out = a->path_log_p + (size_t)slot * (1 + (size_t)t->max_depth);
    const int n = a->accepted[slot], bonus = a->bonus[slot];
    for (int i = (int)threadIdx.x; i <= t->max_depth; i += THREADS) {
        const int before = i > 0 ? path[i - 1] : -1, node = i < t->max_depth ? path[i] : -1;
        if (i > n)
            break;
        const int id = i < n ? token[node] : bonus;
        out[i] = id < 0 ? 0 : log_p_of(a, first_row + 1 + before, id);
    }
}

static __global__ void __launch_bounds__(THREADS)
    node_stats_kernel(const __grid_constant__ struct node_stats a, const __grid_constant__ struct trees t,
                      int wide)
{
    const int slot = (int)blockIdx.y, node = (int)blockIdx.x / BLOCKS - 1, block = (int)blockIdx.x % BLOCKS;
    const size_t at = (size_t)slot * (size_t)t.max_nodes + (size_t)max(node, 0);
    launch_trigger();
    launch_wait();
    const int first_row = a.first_row[slot];
    if (node < 0) {
        if (first_row >= 0 && block == 0)
            follow_path(&a, &t, slot, first_row);
        return;
    }
    const int n = t.n[slot], token = t.token[at], row = first_row + 1 + t.parent[at];
    if (first_row < 0 || node >= n)
        return;
    row_arrive();
    const int before = cluster_sum(
        count_before(a.logits + (size_t)row * (size_t)a.vocab, a.vocab, token, block, wide), block);
    if (block > 0 || threadIdx.x > 0)
        return;
    a.rank[at] = before + 1;
    a.log_p[at] = log_p_of(&a, row, token);
    a.entropy[at] = a.stats[row].entropy;
    a.gap[at] = a.stats[row].max - a.stats[row].second;
}

KERN_API int node_stats_cuda(const struct node_stats *a, void *stream)
{
    const unsigned nodes = a->with_nodes ? (unsigned)a->trees->max_nodes : 0;
    const struct launch l = {.grid = dim3(BLOCKS * (1 + nodes), (unsigned)a->trees->slots),
                             .block = THREADS,
                             .cluster = BLOCKS,
                             .stream = stream};
    return launch_kernel(&l, node_stats_kernel, *a, *a->trees, row_wide(a->logits, a->vocab));
}
