/* step: two kernels around the pass.
 *
 * plan     one block: a scan over slots says where each slot's rows begin, then a warp lays a slot's rows, a lane a node.
 *          launch   grid 1, block 256
 * commit   block (0, 0) makes text and the record, a warp a slot, then a warp four layers of experts, the last warps first, as the first
 *          have slots; the others move cells, a warp a (layer, kv head) of slot y. The movers read
 *          what the plan and the rule wrote, never what block (0, 0) changes, and move all accepted nodes: cells past the end of a text
 *          that just ended are nobody's. A write never reaches a cell that is read later (the cell of a position is at most that of
 *          its node, and both increase), and a thread moves the same 16 bytes of every cell, so no order between threads is needed.
 *          launch   grid [1 + ceil(layers * kv_heads / 8), slots], block 256
 * moves    a few KB, the record as posted writes to the host; plus twice the bytes of each moved cell
 * roof     none that matters: latency of a handful of dependent loads */
#include "kernels/clock.cuh"
#include "kernels/launch.cuh"
#include "kernels/step.h"

enum { THREADS = 256, LANES = 32, WARPS = THREADS / LANES, BATCH = 8, LAYERS = 4 };
static constexpr unsigned ALL = 0xffffffffu;

static __device__ void put_row(const struct step &s, int r, int slot, int token, int pos, int cell)
{
    s.token[r] = token;
    s.slot[r] = slot;
    s.pos[r] = pos;
    s.cell[r] = cell;
    s.base[r] = pos + 1;
    s.path_off[r] = r * (1 + s.trees.max_depth);
}

static __device__ void put_path(const struct step &s, int r, const int *parent, int root, int depth, int k)
{
    int *path = s.path + r * (1 + s.trees.max_depth);
    s.base[r] = root;
    for (int at = depth; at > 0; at--, k = parent[k])
        path[at] = root + 1 + k;
    path[0] = root;
}

/* A warp: the root and the nodes of one slot. */
static __device__ void plan_slot(const struct step &s, int slot, int row, int rows, int lane)
{
    const size_t first = (size_t)slot * (size_t)s.trees.max_nodes;
    const int *parent = s.trees.parent + first;
    const int root = s.seq[slot].n - 1, n = s.trees.n[slot];
    if (lane == 0 && row < rows)
        put_row(s, row, slot, s.text[(size_t)slot * (size_t)s.cap + (size_t)root], root, root);
    for (int k = lane; k < n && row + 1 + k < rows; k += LANES) {
        const int r = row + 1 + k, depth = s.trees.depth[first + (size_t)k];
        put_row(s, r, slot, s.trees.token[first + (size_t)k], root + depth, root + 1 + k);
        if (depth != k + 1)
            put_path(s, r, parent, root, depth, k);
    }
}

/* Sum of x over the threads before this one; *total over all. Every thread of the block calls it. */
static __device__ int scan(int x, int *total)
{
    __shared__ int part[WARPS];
    const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / LANES;
    int sum = x, before = 0, all = 0;
    for (int step = 1; step < LANES; step *= 2) {
        const int other = __shfl_up_sync(ALL, sum, step);
        sum += lane >= step ? other : 0;
    }
    if (lane == LANES - 1)
        part[warp] = sum;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) {
        before += w < warp ? part[w] : 0;
        all += part[w];
    }
    __syncthreads(); /* before `part` is used again */
    *total = all;
    return before + sum - x;
}

static __global__ void __launch_bounds__(THREADS) plan_kernel(const __grid_constant__ struct step s, int rows)
{
    const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / LANES;
    int at = 0, seqs = 0, total;
    launch_trigger();
    launch_wait();
    if (threadIdx.x == 0 && s.clock[STEP_BEGIN] == 0)
        s.clock[STEP_BEGIN] = clock_now();
    for (int first = 0; first < s.trees.slots; first += THREADS) {
        const int slot = first + (int)threadIdx.x, live = slot < s.trees.slots && s.seq[slot].live;
        const int before = scan(live ? 1 + s.trees.n[slot] : 0, &total);
        if (slot < s.trees.slots)
            s.first_row[slot] = live ? at + before : -1;
        at += total;
        seqs += __syncthreads_count(live);
    }
    for (int slot = warp; slot < s.trees.slots; slot += WARPS)
        if (s.first_row[slot] >= 0)
            plan_slot(s, slot, s.first_row[slot], rows, lane);
    for (int r = at + (int)threadIdx.x; r < rows; r += THREADS)
        put_row(s, r, -1, 0, 0, 0);
    __syncthreads();
    if (threadIdx.x == 0) {
        s.count[0] = at;
        s.count[1] = seqs;
        s.clock[STEP_VERIFY] = clock_now();
    }
}

/* Everything a kernel of the commit needs, by value. */
struct commit {
    struct step step;
    const int *stop;
    const struct kv_layer *layers;
    int n_stop, n_units, kv_heads, with_nodes, depth; /* units: layers * kv heads */
    struct step_experts experts;
    void *ring;
    uint64_t *counter;
};

/* Leading accepted nodes that stand in their cells already. A warp. */
static __device__ int in_place(const int *path, int n, int lane)
{
    for (int first = 0; first < n; first += LANES) {
        const int i = first + lane;
        const unsigned moved = __ballot_sync(ALL, i < n && path[i] != i);
        if (moved)
            return first + __ffs((int)moved) - 1;
    }
    return n;
}

/* A warp: the accepted cells of one layer and kv head; its lanes are 16-byte words of the key, then of the value. */
static __device__ void move_cells(const struct commit &c, int unit, int slot, int lane)
{
    const struct step &s = c.step;
    const int row = s.first_row[slot];
    if (unit >= c.n_units || row < 0)
        return;
    const int *path = s.accepted_path + (size_t)slot * (size_t)s.trees.max_depth, *cell = s.cell + row + 1;
    const int n = s.accepted[slot], stay = in_place(path, n, lane);
    if (stay == n)
        return;
    const struct kv_layer kv = c.layers[unit / c.kv_heads];
    const int words = kv.head_dim * (kv.form == KV_FP8 ? 1 : (int)sizeof(bf16)) / (int)sizeof(uint4), root = s.cell[row];
    const size_t head = ((size_t)slot * (size_t)c.kv_heads + (size_t)(unit % c.kv_heads)) * (size_t)kv.cap * (size_t)words;
    for (int word = lane; word < 2 * words; word += LANES) {
        uint4 *base = (uint4 *)(word < words ? kv.k : kv.v) + head + (size_t)(word % words);
        for (int first = stay; first < n; first += BATCH) {
            uint4 held[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (first + i < n)
                    held[i] = base[(size_t)cell[path[first + i]] * (size_t)words];
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (first + i < n)
                    base[(size_t)(root + 1 + first + i) * (size_t)words] = held[i];
        }
    }
}

static __device__ int is_stop(const struct commit &c, int token)
{
    int found = 0;
    for (int i = 0; i < c.n_stop; i++) /* no way out: the loads need not wait for each other */
        found |= c.stop[i] == token;
    return found;
}

/* A slot as one lane sees it: of its tokens [0, 32) the lane's own, requested before it is known how many
 * there are. */
struct ended {
    struct seq_state q;
    int first_row, accepted, bonus, proposed;
    int node, token;
    float log_p;
};

static __device__ struct ended read_slot(const struct step &s, int slot, int lane)
{
    const size_t deep = (size_t)s.trees.max_depth, first = (size_t)slot * deep;
    struct ended d;
    d.q = s.seq[slot];
    d.first_row = s.first_row[slot];
    d.accepted = s.accepted[slot];
    d.bonus = s.bonus[slot];
    d.proposed = s.trees.n[slot];
    d.node = lane < s.trees.max_depth ? s.accepted_path[first + (size_t)lane] : 0;
    d.log_p = lane <= s.trees.max_depth ? s.emitted_log_p[first + (size_t)(slot + lane)] : 0;
    d.token = d.bonus;
    if (lane < d.accepted)
        d.token = s.trees.token[(size_t)slot * (size_t)s.trees.max_nodes + (size_t)d.node];
    return d;
}

static __device__ int token_of(const struct step &s, int slot, const struct ended &d, int i)
{
    if (i < LANES)
        return d.token;
    const int *path = s.accepted_path + (size_t)slot * (size_t)s.trees.max_depth;
    return i < d.accepted ? s.trees.token[(size_t)slot * (size_t)s.trees.max_nodes + (size_t)path[i]] : d.bonus;
}

/* Index of the first of the accepted tokens and the bonus that ends the text; accepted + 1: none. A warp. */
static __device__ int first_stop(const struct commit &c, int slot, const struct ended &d, int lane)
{
    for (int first = 0; first <= d.accepted; first += LANES) {
        const int i = first + lane;
        const unsigned stops = __ballot_sync(ALL, i <= d.accepted && is_stop(c, token_of(c.step, slot, d, i)));
        if (stops)
            return first + __ffs((int)stops) - 1;
    }
    return d.accepted + 1;
}

static __device__ int deepest(const struct trees &t, int slot, int n, int lane)
{
    int most = 0;
    for (int k = lane; k < n; k += LANES)
        most = max(most, t.depth[(size_t)slot * (size_t)t.max_nodes + (size_t)k]);
    return __reduce_max_sync(ALL, most);
}

/* The array of word `field` of struct step_node. */
static __device__ const void *words_of(const struct step &s, int field)
{
    switch (field) {
    case 0:
        return s.trees.token;
    case 1:
        return s.trees.parent;
    case 2:
        return s.trees.depth;
    case 3:
        return s.rank;
    case 4:
        return s.trees.log_q;
    case 5:
        return s.log_p;
    case 6:
        return s.entropy;
    default:
        return s.gap;
    }
}

/* A lane writes the same field of every fourth node, so that lanes write neighbouring words. */
static __device__ void record_nodes(const struct step &s, int slot, int n, struct step_node *to, int lane)
{
    constexpr int words = sizeof(struct step_node) / sizeof(int);
    static_assert(words == 8 && LANES % words == 0, "words_of knows eight fields");
    const size_t first = (size_t)slot * (size_t)s.trees.max_nodes;
    const int *from = (const int *)words_of(s, lane % words) + first;
    int *out = (int *)(to + first) + lane % words;
#pragma unroll 4
    for (int k = lane / words; k < n; k += LANES / words)
        out[k * words] = from[k];
}

/* How the text ends after so many tokens of this step. */
static __device__ int end_after(const struct seq_state &q, int emitted, int stop)
{
    return emitted == stop + 1              ? STEP_STOP_TOKEN
           : q.n + emitted == q.end         ? STEP_LENGTH
           : q.n + emitted == q.context_end ? STEP_CONTEXT
                                            : STEP_GOES_ON;
}

static __device__ void put_tokens(const struct step &s, int slot, const struct ended &d, int emitted,
                                  const struct step_entry &e, int lane)
{
    const size_t deep = (size_t)s.trees.max_depth, at = (size_t)slot * (1 + deep);
    for (int i = lane; i < emitted; i += LANES) {
        const int token = token_of(s, slot, d, i);
        s.text[(size_t)slot * (size_t)s.cap + (size_t)(d.q.n + i)] = token;
        e.token[at + (size_t)i] = token;
        e.log_p[at + (size_t)i] = i < LANES ? d.log_p : s.emitted_log_p[at + (size_t)i];
    }
    for (int i = lane; i < d.accepted; i += LANES)
        e.path[(size_t)slot * deep + (size_t)i] =
            i < LANES ? d.node : s.accepted_path[(size_t)slot * deep + (size_t)i];
}

/* A warp: text and record of one slot. */
static __device__ void commit_slot(const struct commit &c, int slot, const struct step_entry &e, int lane)
{
    const struct step &s = c.step;
    const struct ended d = read_slot(s, slot, lane);
    if (d.first_row < 0) {
        if (lane == 0)
            e.slot[slot].serial = 0;
        return;
    }
    const int stop = first_stop(c, slot, d, lane), depth = deepest(s.trees, slot, d.proposed, lane);
    const int room = min(d.q.end, d.q.context_end) - d.q.n, finite = d.bonus >= 0;
    const int emitted = finite ? min(min(d.accepted, stop) + 1, room) : 0;
    const int end = finite ? end_after(d.q, emitted, stop) : STEP_NOT_FINITE;
    put_tokens(s, slot, d, emitted, e, lane);
    if (c.with_nodes)
        record_nodes(s, slot, d.proposed, e.node, lane);
    __syncwarp(); /* every lane has read seq[slot] */
    if (lane == 0) {
        const struct step_slot out = {d.q.serial, d.q.n, d.proposed, depth, d.accepted, emitted, end};
        e.slot[slot] = out;
        s.seq[slot].n = d.q.n + emitted;
        s.seq[slot].live = end == STEP_GOES_ON;
    }
}

/* A warp: layers first, first + WARPS, ..., LAYERS of them at a time, so that their loads need not wait for each other. rows: live ones. A
 * bit of `seen` is an expert. */
static __device__ void record_experts(const struct step_experts &x, const struct step_entry &e, int rows, int first,
                                      uint32_t seen[LAYERS][LANES], int lane)
{
    static_assert(STEP_EXPERTS_CUDA == LANES * 32, "a lane owns a word of seen");
    const int n = min(rows, x.rows) * x.top_k, pass = x.rows * x.top_k;
    for (; first < x.layers; first += LAYERS * WARPS) {
        const int layers = min(LAYERS, (x.layers - first + WARPS - 1) / WARPS);
#pragma unroll
        for (int i = 0; i < LAYERS; i++)
            seen[i][lane] = 0;
        __syncwarp();
        for (int at = lane; at < n; at += LANES) {
            const int *from = x.chosen + (size_t)first * (size_t)pass + (size_t)at;
            int id[LAYERS];
#pragma unroll
            for (int i = 0; i < LAYERS; i++)
                id[i] = i < layers ? from[(size_t)i * (size_t)(WARPS * pass)] : -1;
#pragma unroll
            for (int i = 0; i < LAYERS; i++) {
                if ((unsigned)id[i] < STEP_EXPERTS_CUDA)
                    atomicOr(&seen[i][id[i] / 32], 1u << id[i] % 32);
                if (x.with_ids && i < layers)
                    e.expert[(size_t)(first + i * WARPS) * (size_t)n + (size_t)at] = id[i];
            }
        }
        __syncwarp();
        for (int i = 0; i < layers; i++) {
            const int distinct = __reduce_add_sync(ALL, __popc(seen[i][lane]));
            if (lane == 0)
                e.distinct[first + i * WARPS] = distinct;
        }
        __syncwarp(); /* before `seen` is cleared again */
    }
}

/* What the entry's head says, but for its end and its number. */
static __device__ struct step_head read_head(const struct step &s)
{
    struct step_head head = {};
    for (int i = 0; i < STEP_END; i++)
        head.clock[i] = s.clock[i];
    head.rows = s.count[0];
    head.seqs = s.count[1];
    return head;
}

/* The entry's head, after all of the entry. One thread. */
static __device__ void publish(const struct commit &c, const struct step_entry &e, struct step_head head, uint64_t done)
{
    head.clock[STEP_END] = clock_now();
    for (int i = 0; i < STEP_CLOCKS; i++)
        e.head->clock[i] = head.clock[i];
    e.head->rows = head.rows;
    e.head->seqs = head.seqs;
    *c.counter = done + 1;
    c.step.clock[STEP_END] = head.clock[STEP_END];
    c.step.clock[STEP_BEGIN] = 0;
    __threadfence_system(); /* for the whole block, which has met at a barrier */
    *(volatile uint64_t *)&e.head->sequence = done + 1;
}

/* done % depth from remainders of 32 bits, as one of 64 is a call; depth below 2^16. */
static __device__ uint32_t ring_place(uint64_t done, uint32_t depth)
{
    const uint32_t low = (uint32_t)done % depth, high = (uint32_t)(done >> 32);
    return high ? (high % depth * (0xffffffffu % depth + 1) % depth + low) % depth : low;
}

static __global__ void __launch_bounds__(THREADS, 2) commit_kernel(const __grid_constant__ struct commit c)
{
    const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / LANES, slots = c.step.trees.slots;
    launch_trigger();
    launch_wait();
    if (blockIdx.x > 0) {
        move_cells(c, ((int)blockIdx.x - 1) * WARPS + warp, (int)blockIdx.y, lane);
        return;
    }
    if (blockIdx.y > 0)
        return;
    __shared__ struct step_head head;
    __shared__ uint32_t seen[WARPS][LAYERS][LANES];
    const uint64_t done = *c.counter;
    if (threadIdx.x == THREADS - 1)
        head = read_head(c.step);
    const struct step_entry e = step_entry_at(c.ring, &c.step.trees, &c.experts, ring_place(done, (uint32_t)c.depth));
    for (int slot = warp; slot < slots; slot += WARPS)
        commit_slot(c, slot, e, lane);
    if (c.experts.layers > 0)
        record_experts(c.experts, e, c.step.count[0], WARPS - 1 - warp, seen[warp], lane);
    __syncthreads();
    if (threadIdx.x == 0)
        publish(c, e, head, done);
}

static __global__ void stamp_kernel(int64_t *at)
{
    launch_trigger();
    launch_wait();
    *at = clock_now();
    __threadfence_system(); /* it may be the host's memory, read when a later record has come */
}

KERN_API int step_plan_cuda(const struct step *s, int rows, void *stream)
{
    const struct launch l = {.grid = 1, .block = THREADS, .stream = stream};
    return launch_kernel(&l, plan_kernel, *s, rows);
}

KERN_API int step_commit_cuda(const struct step_commit *a, void *stream)
{
    const int units = a->n_layers * a->kv_heads;
    const struct commit c = {.step = *a->step,
                             .stop = a->stop,
                             .layers = a->layers,
                             .n_stop = a->n_stop,
                             .n_units = units,
                             .kv_heads = a->kv_heads,
                             .with_nodes = a->with_nodes,
                             .depth = a->depth,
                             .experts = a->experts,
                             .ring = a->ring,
                             .counter = a->counter};
    const struct launch l = {.grid = dim3((unsigned)(1 + (units + WARPS - 1) / WARPS), (unsigned)a->step->trees.slots),
                             .block = THREADS,
                             .stream = stream};
    return launch_kernel(&l, commit_kernel, c);
}

KERN_API int step_stamp_cuda(int64_t *at, void *stream)
{
    const struct launch l = {.grid = 1, .block = 1, .stream = stream};
    return launch_kernel(&l, stamp_kernel, at);
}
