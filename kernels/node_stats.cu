/* node_stats: a block a node counts the ids before its token, one more block a slot follows the accepted
 * path.
 *
 * launch   grid [1 + max_nodes, slots], block 512, shared 64 B; nodes that are not there leave at once
 * math     whole numbers and single f32 operations: exact
 * moves    vocab * 4 bytes a node, siblings' from L2; 0.5 MB at 128256 ids
 * roof     what one block can read: 250 loads a thread for 128256 ids, 8 in flight; nodes side by side */
#include "kernels/launch.cuh"
#include "kernels/node_stats.h"

enum { THREADS = 512, WARPS = THREADS / 32, UNROLL = 8 };

static __device__ float log_p_of(const struct node_stats *a, int row, int token)
{
    return a->logits[(size_t)row * (size_t)a->vocab + (size_t)token] - a->stats[row].lse;
}

/* Ids that stand before the token, in thread 0. */
static __device__ int count_before(const float *row, int vocab, int token)
{
    __shared__ int part[WARPS];
    const float x = row[token];
    int n = 0;
#pragma unroll UNROLL
    for (int i = (int)threadIdx.x; i < vocab; i += THREADS)
        n += i < token ? row[i] >= x : i > token && row[i] > x;
    n = __reduce_add_sync(0xffffffffu, n);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = n;
    __syncthreads();
    for (int w = 1; threadIdx.x == 0 && w < WARPS; w++)
        n += part[w];
    return n;
}

static __device__ void follow_path(const struct node_stats *a, const struct trees *t, int slot, int first_row)
{
    const int *token = t->token + (size_t)slot * (size_t)t->max_nodes;
    const int *path = a->path + (size_t)slot * (size_t)t->max_depth;
    float *out = a->path_log_p + (size_t)slot * (1 + (size_t)t->max_depth);
    const int n = a->accepted[slot];
    for (int i = (int)threadIdx.x; i <= n; i += THREADS) {
        const int row = first_row + (i ? 1 + path[i - 1] : 0), id = i < n ? token[path[i]] : a->bonus[slot];
        out[i] = id < 0 ? 0 : log_p_of(a, row, id);
    }
}

static __global__ void __launch_bounds__(THREADS) node_stats_kernel(struct node_stats a, struct trees t)
{
    const int slot = (int)blockIdx.y, node = (int)blockIdx.x - 1;
    launch_trigger();
    launch_wait();
    const int first_row = a.first_row[slot];
    if (first_row < 0 || node >= t.n[slot])
        return;
    if (node < 0) {
        follow_path(&a, &t, slot, first_row);
        return;
    }
    const size_t at = (size_t)slot * (size_t)t.max_nodes + (size_t)node;
    const int row = first_row + 1 + t.parent[at], token = t.token[at];
    const int before = count_before(a.logits + (size_t)row * (size_t)a.vocab, a.vocab, token);
    if (threadIdx.x > 0)
        return;
    a.rank[at] = before + 1;
    a.log_p[at] = log_p_of(&a, row, token);
    a.entropy[at] = a.stats[row].entropy;
    a.gap[at] = a.stats[row].max - a.stats[row].second;
}

KERN_API int node_stats_cuda(const struct node_stats *a, void *stream)
{
    const unsigned nodes = a->with_nodes ? (unsigned)a->trees->max_nodes : 0;
    const struct launch l = {
        .grid = dim3(1 + nodes, (unsigned)a->trees->slots), .block = THREADS, .stream = stream};
    return launch_kernel(&l, node_stats_kernel, *a, *a->trees);
}
