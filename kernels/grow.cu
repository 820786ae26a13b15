/* grow: a warp lays a slot's true rows; a block takes a slot's level. Candidates are ranked by counting the better ones: a score and
 * its place are one key, so all keys are different and nothing depends on who is first.
 *
 * launch   true: grid [slots], block 32; level: grid [slots], block 512, shared, dynamic trees: 9 bytes a candidate
 * moves    a few KB a slot
 * roof     none that matters: latency of a handful of dependent loads; the last level of a tree of depth 5 and
 *          top_k 10 ranks 410 keys by 410 reads of shared memory, some 5 us */
#include "kernels/clock.cuh"
#include "kernels/grow.h"
#include "kernels/launch.cuh"
#include "kernels/sample.cuh"

enum { LANES = 32, THREADS = 512 };

/* Everything by value. */
struct state {
    struct step step;
    struct grow grow;
};

static __device__ void put_row(const struct state &a, int r, int slot, int token, int pos, int cell, int from)
{
    const struct grow &g = a.grow;
    g.token[r] = token;
    g.slot[r] = slot;
    g.pos[r] = pos;
    g.cell[r] = cell;
    g.base[r] = pos + 1;
    g.path_off[r] = r * a.step.trees.max_depth;
    g.from[r] = from;
}

static __device__ void put_dead(const struct state &a, int r)
{
    put_row(a, r, -1, 0, 0, 0, -1);
}

static __global__ void __launch_bounds__(LANES) true_kernel(const __grid_constant__ struct state a)
{
    const struct step &s = a.step;
    const int slot = (int)blockIdx.x, lane = (int)threadIdx.x, deep = 1 + s.trees.max_depth, at = slot * deep;
    const int *path = s.accepted_path + (size_t)slot * (size_t)s.trees.max_depth;
    const int *text = s.text + (size_t)slot * (size_t)s.cap;
    launch_trigger();
    launch_wait();
    if (slot == 0 && lane == 0 && s.clock[STEP_BEGIN] == 0)
        s.clock[STEP_BEGIN] = clock_now();
    const struct seq_state q = s.seq[slot];
    const int row = s.first_row[slot], is_old = q.live && row >= 0 && a.grow.serial[slot] == q.serial;
    const int root = is_old ? s.pos[row] : 0, n = is_old ? q.n - 1 - root : 0;
    for (int i = lane; i < deep; i += LANES)
        if (i < n)
            put_row(a, at + i, slot, text[root + i + 1], root + i, root + i, i == 0 ? row : row + 1 + path[i - 1]);
        else
            put_dead(a, at + i);
    __syncwarp(); /* every lane has read the serial */
    if (lane == 0) {
        a.grow.last[slot] = n > 0 ? at + n - 1 : -1;
        a.grow.serial[slot] = q.live ? q.serial : 0;
    }
}

/* A slot as its block sees it. */
struct slot_view {
    struct grow_node *list;
    int *frontier;
    int slot, trues, deep; /* rows of the text in the cache; levels that the tree may have */
    uint64_t *key;         /* shared [max_candidates], GROW_DYNAMIC */
    uint8_t *kept;         /* shared [max_candidates], GROW_DYNAMIC */
    int *place;            /* shared [width] */
};

static __device__ int children_of(const struct grow &g, int weight)
{
    return g.shape == GROW_STATIC ? g.top_k / weight : g.top_k;
}

/* Children of `parents` nodes, behind the n of the list. All threads of the block; returns the new length, and what
 * was written is seen by all. */
static __device__ int add_children(const struct grow &g, const struct slot_view &v, int level, int parents, int n)
{
    const int k = g.top_k, first = level == 1 ? v.slot : v.slot * g.width;
    const int *id = (level == 1 ? g.root_id : g.id) + (size_t)first * (size_t)k;
    const float *log_p = (level == 1 ? g.root_log_p : g.log_p) + (size_t)first * (size_t)k;
    for (int i = (int)threadIdx.x; i < parents; i += THREADS)
        v.place[i] = children_of(g, level == 1 ? 1 : v.list[v.frontier[i]].weight);
    __syncthreads();
    for (int t = (int)threadIdx.x; t < parents * k; t += THREADS) {
        const int i = t / k, rank = t % k, parent = level == 1 ? -1 : v.frontier[i];
        if (rank >= v.place[i])
            continue;
        int before = i * k;
        if (g.shape == GROW_STATIC) {
            before = 0;
            for (int j = 0; j < i; j++)
                before += v.place[j];
        }
        struct grow_node c = {id[t], parent, 1, rank + 1, -1, -1, -1, log_p[t], __fadd_rn(0.0f, log_p[t])};
        if (parent >= 0) {
            const struct grow_node p = v.list[parent];
            c.depth = p.depth + 1;
            c.weight = p.weight * (rank + 1);
            c.score = __fadd_rn(p.score, log_p[t]);
        }
        v.list[n + before + rank] = c;
    }
    int added = parents * k;
    if (g.shape == GROW_STATIC) {
        added = 0;
        for (int j = 0; j < parents; j++)
            added += v.place[j];
    }
    __syncthreads();
    return n + added;
}

/* Keys of list[from, n), larger for what is better. All threads. */
static __device__ void put_keys(const struct slot_view &v, int from, int n)
{
    for (int i = from + (int)threadIdx.x; i < n; i += THREADS)
        v.key[i - from] = (uint64_t)sample_order_key(v.list[i].score) << 32 | (uint32_t)~i;
    __syncthreads();
}

static __device__ int rank_of(const uint64_t *key, int n, int i)
{
    const uint64_t mine = key[i];
    int better = 0;
#pragma unroll 8
    for (int k = 0; k < n; k++)
        better += key[k] > mine;
    return better;
}

/* Those of list[from, n) that go on, to the frontier and to v.place. All threads. */
static __device__ void choose(const struct grow &g, const struct slot_view &v, int from, int n)
{
    const int dynamic = g.shape == GROW_DYNAMIC;
    if (dynamic)
        put_keys(v, from, n);
    for (int i = (int)threadIdx.x; i < n - from; i += THREADS) {
        const int place = dynamic ? rank_of(v.key, n - from, i) : i;
        if (place < g.width)
            v.frontier[place] = v.place[place] = from + i;
    }
    __syncthreads();
}

/* Node i of the list in row r of the next pass. */
static __device__ void lay(const struct state &a, const struct slot_view &v, int i, int r, int cell)
{
    const struct grow_node c = v.list[i];
    int *path = a.grow.path + (size_t)r * (size_t)a.step.trees.max_depth;
    put_row(a, r, v.slot, c.token, v.trues + c.depth - 1, cell, c.parent < 0 ? v.slot : v.list[c.parent].row);
    a.grow.base[r] = v.trues;
    v.list[i].cell = cell;
    v.list[i].row = r;
    path[c.depth - 1] = cell;
    for (int k = c.parent, at = c.depth - 2; k >= 0; at--) {
        path[at] = v.list[k].cell;
        k = v.list[k].parent;
    }
}

/* Which of the list's n become nodes, numbered in the order of the list. All threads. */
static __device__ int number_nodes(const struct grow &g, const struct slot_view &v, int most, int n)
{
    if (g.shape != GROW_DYNAMIC) {
        for (int i = (int)threadIdx.x; i < min(n, most); i += THREADS)
            v.list[i].node = i;
        __syncthreads();
        return min(n, most);
    }
    put_keys(v, 0, n);
    for (int i = (int)threadIdx.x; i < n; i += THREADS)
        v.kept[i] = rank_of(v.key, n, i) < most;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < n; i += THREADS) {
        int before = 0;
#pragma unroll 8
        for (int k = 0; k < i; k++)
            before += v.kept[k];
        if (v.kept[i])
            v.list[i].node = before;
    }
    __syncthreads();
    return min(n, most);
}

static __device__ void fill_tree(const struct state &a, const struct slot_view &v, int n)
{
    const struct trees &t = a.step.trees;
    const int nodes = number_nodes(a.grow, v, t.max_nodes, n);
    for (int i = (int)threadIdx.x; i < n; i += THREADS) {
        const struct grow_node c = v.list[i];
        const size_t at = (size_t)v.slot * (size_t)t.max_nodes + (size_t)c.node;
        if (c.node < 0)
            continue;
        t.token[at] = c.token;
        t.parent[at] = c.parent < 0 ? -1 : v.list[c.parent].node;
        t.depth[at] = c.depth;
        t.log_q[at] = c.log_p;
        t.q_row[at] = -1;
    }
    if (threadIdx.x == 0)
        t.n[v.slot] = nodes;
}

static __global__ void __launch_bounds__(THREADS) level_kernel(const __grid_constant__ struct state a, int level)
{
    extern __shared__ uint64_t memory[];
    const struct grow &g = a.grow;
    const int slot = (int)blockIdx.x, ranked = g.shape == GROW_DYNAMIC ? g.max_candidates : 0,
              most = a.step.trees.max_depth;
    launch_trigger();
    launch_wait();
    const struct seq_state q = a.step.seq[slot];
    struct slot_view v;
    v.list = g.list + (size_t)slot * (size_t)g.max_candidates;
    v.frontier = g.frontier + (size_t)slot * (size_t)g.width;
    v.slot = slot;
    v.trues = q.n - 1;
    v.deep = q.live && q.n > 1 ? step_depth(&q, most) : 0;
    v.key = memory;
    v.place = (int *)(memory + ranked);
    v.kept = (uint8_t *)(v.place + g.width);
    const int from = level == 1 ? 0 : g.n[slot], parents = level == 1 ? v.deep > 0 : g.n_frontier[slot];
    const int n = add_children(g, v, level, parents, from);
    if (threadIdx.x == 0)
        g.n[slot] = n; /* all have read it */
    if (level == most) {
        fill_tree(a, v, n);
        return;
    }
    const int go_on = level < v.deep ? min(n - from, g.width) : 0;
    if (go_on > 0)
        choose(g, v, from, n);
    for (int i = (int)threadIdx.x; i < g.width; i += THREADS)
        if (i < go_on)
            lay(a, v, v.place[i], slot * g.width + i, v.trues + (level - 1) * g.width + i);
        else
            put_dead(a, slot * g.width + i);
    if (threadIdx.x == 0)
        g.n_frontier[slot] = go_on;
}

KERN_API int grow_true_cuda(const struct grow *a, void *stream)
{
    const struct state s = {*a->step, *a};
    const struct launch l = {.grid = (unsigned)a->step->trees.slots, .block = LANES, .stream = stream};
    return launch_kernel(&l, true_kernel, s);
}

KERN_API int grow_level_cuda(const struct grow *a, int level, void *stream)
{
    const struct state s = {*a->step, *a};
    const size_t ranked = a->shape == GROW_DYNAMIC ? (size_t)a->max_candidates : 0;
    const struct launch l = {.grid = (unsigned)a->step->trees.slots,
                             .block = THREADS,
                             .shared = ranked * (sizeof(uint64_t) + 1) + (size_t)a->width * sizeof(int),
                             .stream = stream};
    return launch_kernel(&l, level_kernel, s, level);
}
