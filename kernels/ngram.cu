/* ngram: one block a slot. A first scan finds the longest n-gram that has a place at all, so that sizes without one cost nothing;
 * then, size by size, the places of 512 positions at a time are listed in order, and warp 0 adds what follows them to a tree in
 * shared memory, until enough branches have grown.
 * launch   grid slots, block 512, shared 12 bytes a node
 * moves    4 bytes a position and scan; 32K tokens: 64 rounds of coalesced loads from the second level cache a scan
 * roof     latency */
#include "kernels/clock.cuh"
#include "kernels/launch.cuh"
#include "kernels/ngram.h"

enum { THREADS = 512, LANES = 32, WARPS = THREADS / LANES };
static constexpr unsigned ALL = 0xffffffffu;

struct search {
    const struct seq_state *seq;
    const int *text;
    struct trees trees;
    int64_t *begin;
    int cap, min, max, branches, recent, prompt_only;
};

/* The slot's text as the block sees it. */
struct text {
    const int *token;
    const int *suffix; /* shared: the last tokens, newest first */
    int n, limit;      /* tokens, and those that are searched */
};

/* The tree under construction, in shared memory but for its size and what is left, which warp 0 keeps and shares after each round. */
struct grown {
    int *token, *parent, *depth;
    int n, max_nodes, max_depth;
};

static __device__ int matching(const struct text &t, int end, int size)
{
    const int most = min(size, end + 1);
    int i = 0;
    while (i < most && t.token[end - i] == t.suffix[i])
        i++;
    return i;
}

/* Longest n-gram of at most `max` tokens with a place before the end. Every thread calls it and gets it. */
static __device__ int longest_match(const struct text &t, int max_size)
{
    __shared__ int best;
    int mine = 0;
    if (threadIdx.x == 0)
        best = 0;
    __syncthreads();
#pragma unroll 4
    for (int end = (int)threadIdx.x; end < t.limit - 1; end += THREADS)
        mine = max(mine, matching(t, end, max_size));
    mine = __reduce_max_sync(ALL, mine);
    if (threadIdx.x % LANES == 0 && mine > 0)
        atomicMax(&best, mine); /* whole numbers: no order */
    __syncthreads();
    return best;
}

/* List the places of this round in order, thread by thread; returns how many. Every thread calls it. */
static __device__ int list_places(int hit, int end, int *place)
{
    __shared__ int part[WARPS];
    const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / LANES;
    const unsigned hits = __ballot_sync(ALL, hit);
    int before = 0, all = 0;
    if (lane == 0)
        part[warp] = __popc(hits);
    __syncthreads();
    for (int w = 0; w < WARPS; w++) {
        before += w < warp ? part[w] : 0;
        all += part[w];
    }
    if (hit)
        place[before + __popc(hits & ((1u << lane) - 1))] = end;
    __syncthreads(); /* the list is whole, and `part` may be used again */
    return all;
}

/* The child of `parent` with this token, -1: none. A warp. */
static __device__ int find_child(const struct grown &g, int parent, int token, int lane)
{
    for (int first = parent + 1; first < g.n; first += LANES) {
        const int i = first + lane;
        const unsigned found = __ballot_sync(ALL, i < g.n && g.parent[i] == parent && g.token[i] == token);
        if (found)
            return first + __ffs((int)found) - 1;
    }
    return -1;
}

/* Warp 0: add what follows the place. Returns 1 when the tree grew. */
static __device__ int add_continuation(struct grown &g, const struct text &t, int end, int lane)
{
    const int before = g.n, length = min(g.max_depth, t.limit - 1 - end);
    int node = -1, ahead = 0;
    for (int i = 0; i < length; i++) {
        if (i % LANES == 0)
            ahead = i + lane < length ? t.token[end + 1 + i + lane] : 0;
        const int token = __shfl_sync(ALL, ahead, i % LANES), old = find_child(g, node, token, lane);
        if (old < 0 && g.n == g.max_nodes)
            break;
        if (old < 0 && lane == 0) {
            g.token[g.n] = token;
            g.parent[g.n] = node;
            g.depth[g.n] = i + 1;
        }
        __syncwarp();
        node = old < 0 ? g.n++ : old;
    }
    return g.n > before;
}

/* All places of all sizes, until enough branches have grown. */
static __device__ void grow(const struct search &s, const struct text &t, struct grown &g)
{
    __shared__ int place[THREADS], nodes, branches;
    const int lane = (int)threadIdx.x % LANES;
    int left = s.branches;
    for (int size = longest_match(t, min(s.max, t.n)); size >= s.min; size--) {
        int visits = NGRAM_VISITS * s.branches;
        for (int first = 0; first < t.limit - size && visits > 0; first += THREADS) {
            const int i = first + (int)threadIdx.x, end = s.recent ? t.limit - 2 - i : size - 1 + i;
            const int hit = i < t.limit - size && matching(t, end, size) == size;
            const int n = min(list_places(hit, end, place), visits);
            if (threadIdx.x < LANES) {
                for (int k = 0; k < n && left > 0 && g.n < g.max_nodes; k++)
                    left -= add_continuation(g, t, place[k], lane);
                if (lane == 0) {
                    nodes = g.n;
                    branches = left;
                }
            }
            __syncthreads();
            g.n = nodes;
            left = branches;
            visits -= n;
            if (left == 0 || g.n == g.max_nodes)
                return;
            __syncthreads(); /* before `place`, `nodes` and `branches` change again */
        }
    }
}

static __global__ void __launch_bounds__(THREADS, 1) ngram_kernel(const __grid_constant__ struct search s)
{
    extern __shared__ int nodes[];
    __shared__ int suffix[NGRAM_SIZE_MAX];
    const int slot = (int)blockIdx.x, most = s.trees.max_nodes;
    const size_t at = (size_t)slot * (size_t)most;
    launch_trigger();
    launch_wait();
    if (slot == 0 && threadIdx.x == 0 && *s.begin == 0)
        *s.begin = clock_now();
    const struct seq_state q = s.seq[slot];
    struct grown g = {nodes, nodes + most, nodes + 2 * most, 0, most, q.live ? step_depth(&q, s.trees.max_depth) : 0};
    if (g.max_depth > 0 && most > 0) {
        const struct text t = {s.text + (size_t)slot * (size_t)s.cap, suffix, q.n, s.prompt_only ? q.n_prompt : q.n};
        if ((int)threadIdx.x < min(s.max, t.n))
            suffix[threadIdx.x] = t.token[t.n - 1 - (int)threadIdx.x];
        __syncthreads();
        grow(s, t, g);
    }
    for (int k = (int)threadIdx.x; k < g.n; k += THREADS) {
        s.trees.token[at + (size_t)k] = g.token[k];
        s.trees.parent[at + (size_t)k] = g.parent[k];
        s.trees.depth[at + (size_t)k] = g.depth[k];
        s.trees.q_row[at + (size_t)k] = -1;
        s.trees.log_q[at + (size_t)k] = 0;
    }
    if (threadIdx.x == 0)
        s.trees.n[slot] = g.n;
}

KERN_API int ngram_cuda(const struct ngram *a, void *stream)
{
    const struct search s = {a->seq, a->text, *a->trees, a->begin, a->cap, a->min, a->max, a->branches, a->match == NGRAM_RECENT,
                             a->scope == NGRAM_PROMPT};
    const struct launch l = {.grid = (unsigned)a->trees->slots,
                             .block = THREADS,
                             .shared = 3 * (size_t)a->trees->max_nodes * sizeof(int),
                             .stream = stream};
    return launch_kernel(&l, ngram_kernel, s);
}
