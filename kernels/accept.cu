/* accept: what a row chooses depends on that row, its position and its node's children alone, so all rows are
 * decided at once, and then a block a slot walks the tree along the choices. Greedy needs no more than the
 * walk.
 *   coupled    without top-k and top-p a race (kernels/accept_race.cuh) over parts of the row, so many that
 *              all rows make one wave of the GPU; the walk takes the best of the parts
 *   the rest   a cluster of eight blocks a row (kernels/accept_row.cuh)
 *
 * launch   race: grid [parts, 1 + max_nodes, slots], block 256. Rows: grid [8, 1 + max_nodes, slots],
 *          clusters of 8, block 512, shared 4 bytes an id of the block, 64 KB more for top-k and top-p. Rows
 *          that are not there leave at once. Walk: grid slots, block
 *          a warp a row, or a thread, at most 1024, shared 16 bytes a node
 * moves    rows * vocab * 4 bytes, mostly L2, where the output head has just left them, 8 times more a filter
 * roof     walk: two round trips to memory. Race: three, and the noise of the ids that might win, about 150
 *          instructions each; of a flat row that is all of them. Rows: latency of sums over a row, each a
 *          barrier of the block and one of the cluster; a filter is 9 of them, rarely 14 */
#include "kernels/accept.h"
#include "kernels/accept_race.cuh"
#include "kernels/accept_row.cuh"
#include "kernels/clock.cuh"
#include "kernels/launch.cuh"

enum { WALKERS = 1024, RACE_BLOCKS = 528 }; /* of a race: four on each of 132 multiprocessors */

/* What a row has decided: the child to go on with, -1: the token ends the text. */
struct choice {
    int child, token;
};

/* A slot's tree. */
struct view {
    const int *token, *parent, *q_row;
    const float *q;
    int n;
};

/* --- rejection
 * ----------------------------------------------------------------------------------------------------------
 */

/* Mass of a child's q without the siblings before it, which could not be drawn again; whole: that of all of
 * q. */
static __device__ double q_mass(const struct view *v, const float *q, double whole, int node, int child)
{
    for (int i = node + 1; i < child; i++)
        if (v->parent[i] == node)
            whole -= q[v->token[i]];
    return whole;
}

/* weight = max(0, p - q), both normalised. */
static __device__ void subtract_q(struct job *j, const float *q, double mass, double mass_q)
{
    EACH_ID(j, i)
    {
        const double w = j->weight[i - j->base] / mass - q[i] / mass_q;
        j->weight[i - j->base] = w > 0 ? (float)w : 0.0f;
    }
}

/* The token at which the sums of weights, ids ascending, pass u * mass, from the parts of the last sum: the
 * block, its warp, its id. An id of weight 0 is never drawn. */
static __device__ void draw_left(const struct job *j, double mass, struct choice *out)
{
    double *slot = j->board->slot[(j->turn - 1) & 1];
    const double target =
        philox_uniform(philox(j->key.seed, j->key.request, j->key.position, PHILOX_TOKEN, 0).v[0]) * mass;
    const int lane = (int)threadIdx.x % 32;
    double below = 0, at = 0;
    int block = -1, warp = -1, id = 0;
    for (int b = 0; b < BLOCKS && !(block >= 0 && at > target); b++)
        if (const double s = *of_block(slot, b); s > 0) {
            below = at;
            at += s;
            block = b;
        }
    if ((int)blockIdx.x != block)
        return;
    at = below;
    for (int w = 0; w < WARPS && !(warp >= 0 && at > target); w++)
        if (const double s = j->board->part[w]; s > 0) {
            below = at;
            at += s;
            warp = w;
        }
    if ((int)threadIdx.x / 32 != warp)
        return;
    for (int first = j->from - lane; first < j->to; first += 32) {
        const float w = first + lane < j->to ? j->weight[first + lane - j->base] : 0;
        double sum = w;
        for (int step = 1; step < 32; step *= 2) {
            const double before = __shfl_up_sync(0xffffffffu, sum, step);
            sum += lane >= step ? before : 0;
        }
        const unsigned some = __ballot_sync(0xffffffffu, w > 0);
        const unsigned past = __ballot_sync(0xffffffffu, w > 0 && below + sum > target);
        if (some)
            id = first + (past ? __ffs((int)past) - 1 : 31 - __clz((int)some));
        if (past)
            break;
        below += __shfl_sync(0xffffffffu, sum, 31);
    }
    if (lane == 0)
        *out = {-1, id};
}

/* One test of a child, with uniform u. Rejected: its share leaves the weights and *mass. *whole, *whole_of:
 * the last q added up. */
static __device__ int child_accepted(struct job *j, const struct view *v, int node, int child, float u,
                                     double *mass, double *whole, int *whole_of)
{
    const int token = v->token[child], q_row = v->q_row[child];
    const float *q = q_row < 0 ? NULL : v->q + (size_t)q_row * (size_t)j->vocab;
    if (q && q_row != *whole_of) {
        double sum = 0;
        EACH_ID(j, i)
        sum += q[i];
        *whole = cluster_sum(j, sum);
        *whole_of = q_row;
    }
    const double p = weight_of(j, token) / *mass;
    const double mass_q = q ? q_mass(v, q, *whole, node, child) : 1, share = q ? q[token] / mass_q : 1;
    if (u * share < p)
        return 1;
    if (q)
        subtract_q(j, q, *mass, mass_q);
    else if (owns(j, token))
        j->weight[token - j->base] = 0;
    *mass = sum_weights(j);
    return *mass <= 0; /* p is q up to rounding: nothing else could be drawn */
}

static __device__ void choose_rejection(struct job *j, const struct view *v, int node, struct choice *out)
{
    double mass = normalise(j), whole = 0;
    int whole_of = -1;
    uint32_t sibling = 0;
    for (int c = node + 1; c < v->n; c++) {
        if (v->parent[c] != node)
            continue;
        const uint32_t bits =
            philox(j->key.seed, j->key.request, j->key.position, PHILOX_ACCEPT, sibling++).v[0];
        if (child_accepted(j, v, node, c, philox_uniform(bits), &mass, &whole, &whole_of)) {
            if (blockIdx.x == 0 && threadIdx.x == 0)
                *out = {c, v->token[c]};
            return;
        }
    }
    draw_left(j, mass, out);
}

/* --- relaxed
 * ------------------------------------------------------------------------------------------------------------
 */

/* Ranks are those of (logit, lower id), so the best child is found without them and only its own is counted.
 */
static __device__ void choose_relaxed(struct job *j, const struct view *v, int node, struct logit_stats st,
                                      struct choice *out)
{
    const double least = exp((double)st.max - st.lse) - j->sampling.relaxed_delta;
    int best = -1;
    for (int c = node + 1; c < v->n; c++)
        if (v->parent[c] == node && exp((double)j->row[v->token[c]] - st.lse) >= least &&
            (best < 0 || sample_order(j->row[v->token[c]], v->token[c]) >
                             sample_order(j->row[v->token[best]], v->token[best])))
            best = c;
    if (best >= 0) {
        const int token = v->token[best];
        const float x = j->row[token];
        double before = 0;
        EACH_ID(j, i)
        before += i < token ? j->row[i] >= x : j->row[i] > x;
        if (cluster_sum(j, before) + 1 > j->sampling.relaxed_top_k)
            best = -1;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0)
        *out = {best, st.argmax};
}

/* --- rows
 * ------------------------------------------------------------------------------------------------------------
 */

static __device__ struct sample_key key_of(const struct accept *a, const struct trees *t, int slot, int node)
{
    const int depth = node < 0 ? 0 : t->depth[(size_t)slot * (size_t)t->max_nodes + (size_t)node];
    return {a->sampling.seed, a->seq[slot].request, (uint32_t)(a->seq[slot].n + depth)};
}

/* Where a row's decision begins in the scratch, `parts` numbers each. */
static __device__ size_t decision_of(const struct trees *t, int slot, int node, int parts)
{
    return ((size_t)slot * (1 + (size_t)t->max_nodes) + 1 + (size_t)node) * (size_t)parts;
}

/* The step's first block says when it began. */
static __device__ void begin(const struct accept *a)
{
    if (a->began && (blockIdx.x | blockIdx.y | blockIdx.z | threadIdx.x) == 0)
        *a->began = clock_now();
}

static __global__ void __launch_bounds__(RACE_THREADS, 4)
    race_kernel(const __grid_constant__ struct accept a, const __grid_constant__ struct trees t, int share)
{
    const int slot = (int)blockIdx.z, node = (int)blockIdx.y - 1, part = (int)blockIdx.x;
    float x[RACE_BATCH];
    launch_trigger();
    launch_wait();
    begin(&a);
    const int first_row = a.first_row[slot], n = t.n[slot], row = first_row + 1 + node;
    struct race r = {};
    r.key = key_of(&a, &t, slot, node);
    if (first_row < 0 || node >= n)
        return;
    r.row = a.logits + (size_t)row * (size_t)a.vocab;
    r.from = part * share + (int)threadIdx.x;
    r.to = min((part + 1) * share, a.vocab);
    r.step = RACE_THREADS;
    load_batch<false>(&r, r.from, x);
    const struct logit_stats st = a.stats[row];
    if (!isfinite(st.lse)) /* the walk ends here */
        return;
    r.max = st.max;
    r.temperature = a.sampling.temperature;
    r.min_p = a.sampling.min_p;
    struct finalist *out = (struct finalist *)a.scratch + decision_of(&t, slot, node, (int)gridDim.x) + part;
    finish<false>(&r, run<false>(&r, st.argmax, x), out);
}

/* A block's part of the race among the ids that the filters left. */
static __device__ void race_kept(struct job *j, int mode, struct finalist *out)
{
    struct race r = {};
    float x[RACE_BATCH];
    weigh(j);
    r.kept = j->weight;
    r.base = j->base;
    r.from = j->from;
    r.to = j->to;
    r.step = 32;
    r.key = j->key;
    load_batch<true>(&r, r.from, x);
    finish<true>(&r, run<true>(&r, mode, x), out);
}

template <int KIND>
static __global__ void __launch_bounds__(THREADS, KIND == ACCEPT_REJECTION ? 1 : 2)
    rows_kernel(const __grid_constant__ struct accept a, const __grid_constant__ struct trees t, int segment)
{
    extern __shared__ double shared[];
    __shared__ struct board board;
    const int slot = (int)blockIdx.z, node = (int)blockIdx.y - 1;
    launch_trigger();
    launch_wait();
    begin(&a);
    const int first_row = a.first_row[slot];
    if (first_row < 0 || node >= t.n[slot])
        return;
    const int row = first_row + 1 + node, warp = (int)(blockIdx.x * WARPS + threadIdx.x / 32);
    const struct logit_stats st = a.stats[row];
    if (!isfinite(st.lse)) /* the walk ends here */
        return;
    const size_t nodes = (size_t)slot * (size_t)t.max_nodes;
    const struct view view = {t.token + nodes, t.parent + nodes, t.q_row + nodes, t.q, t.n[slot]};
    struct job job = {};
    job.row = a.logits + (size_t)row * (size_t)a.vocab;
    job.bins = shared;
    job.weight = (float *)(shared + (is_filtered(&a.sampling, a.vocab) ? BINS * THREADS : 0));
    job.board = &board;
    job.vocab = a.vocab;
    job.base = (int)blockIdx.x * WARPS * segment;
    job.from = warp * segment + (int)threadIdx.x % 32;
    job.to = min((warp + 1) * segment, a.vocab);
    job.sampling = a.sampling;
    job.key = key_of(&a, &t, slot, node);
    job.max = st.max;
    if (KIND == ACCEPT_COUPLED)
        race_kept(&job, st.argmax,
                  (struct finalist *)a.scratch + decision_of(&t, slot, node, BLOCKS) + blockIdx.x);
    else if (KIND == ACCEPT_REJECTION)
        choose_rejection(&job, &view, node, (struct choice *)a.scratch + decision_of(&t, slot, node, 1));
    else
        choose_relaxed(&job, &view, node, st, (struct choice *)a.scratch + decision_of(&t, slot, node, 1));
    cooperative_groups::this_cluster().sync(); /* no block leaves while another reads its shared memory */
}

/* --- walk
 * ------------------------------------------------------------------------------------------------------------
 */

/* What the walk goes by: the rows' modes, the finalists of their parts, or choices. */
enum decided { BY_MODE, BY_RACE, BY_CHOICE };

/* A slot's rows and nodes in shared memory; row k is that of node k - 1. */
struct board_of_slot {
    int *token;               /* [1 + max_nodes] that row k chooses, -1: none, its logits are not finite */
    int *child;               /* [1 + max_nodes] that is it, NO_CHILD: none */
    int *node_token, *parent; /* [max_nodes] */
};
enum { NO_CHILD = INT_MAX };

/* What the parts of a row's race left. A warp; of a row that had no race it is nothing, and harmless. */
static __device__ struct lead lead_of_parts(const struct finalist *f, int parts)
{
    struct lead l = no_lead();
    for (int p = (int)threadIdx.x % 32; p < parts; p += 32)
        l = merge_leads(l, {f[p].pace, -1, f[p].id});
    return warp_lead(l);
}

/* The winner by score of the parts that are close. A warp. */
static __device__ int judge_parts(const struct accept *a, const struct sample_key *key, int row,
                                  const struct finalist *f, int parts, float pace)
{
    struct winner best = {-INFINITY, INT_MAX};
    for (int p = (int)threadIdx.x % 32; p < parts; p += 32)
        if (f[p].pace >= pace) {
            const float logit = a->logits[(size_t)row * (size_t)a->vocab + (size_t)f[p].id];
            const float w = sample_weight(logit, a->stats[row].max, a->sampling.temperature);
            best = better(best, {score_of(w, sample_noise(key, f[p].id)), f[p].id});
        }
    __syncwarp();
    return warp_better(best).id;
}

/* A warp a row. */
static __device__ void read_races(const struct accept *a, const struct trees *t, int slot, int first_row,
                                  int n, int parts, const struct board_of_slot *b)
{
    for (int k = (int)threadIdx.x / 32; k <= n; k += (int)blockDim.x / 32) {
        const int row = first_row + k;
        const struct finalist *f = (const struct finalist *)a->scratch + decision_of(t, slot, k - 1, parts);
        const float lse = a->stats[row].lse;
        struct lead l = lead_of_parts(f, parts);
        if (isfinite(lse) && is_close(l)) {
            const struct sample_key key = key_of(a, t, slot, k - 1);
            l.id = judge_parts(a, &key, row, f, parts, l.pace * RACE_NEAR);
        }
        if (threadIdx.x % 32 == 0) {
            b->token[k] = isfinite(lse) ? l.id : -1;
            b->child[k] = NO_CHILD;
        }
    }
}

/* A thread a row. */
template <enum decided BY>
static __device__ void read_decisions(const struct accept *a, const struct trees *t, int slot, int first_row,
                                      int n, const struct board_of_slot *b)
{
    for (int k = (int)threadIdx.x; k <= n; k += (int)blockDim.x) {
        const struct logit_stats *st = &a->stats[first_row + k];
        struct choice c = {-1, st->argmax};
        if (BY == BY_CHOICE)
            c = ((const struct choice *)a->scratch)[decision_of(t, slot, k - 1, 1)];
        b->token[k] = isfinite(st->lse) ? c.token : -1;
        b->child[k] = c.child < 0 ? NO_CHILD : c.child;
    }
}

/* One thread. */
static __device__ void follow(const struct accept *a, int *path, int slot, const struct board_of_slot *b)
{
    int k = 0, n = 0;
    while (b->token[k] >= 0 && b->child[k] != NO_CHILD) {
        path[n++] = b->child[k];
        k = 1 + b->child[k];
    }
    a->accepted[slot] = n;
    a->bonus[slot] = b->token[k];
}

template <enum decided BY>
static __global__ void __launch_bounds__(WALKERS)
    walk_kernel(const __grid_constant__ struct accept a, const __grid_constant__ struct trees t, int parts)
{
    extern __shared__ int ints[];
    const int slot = (int)blockIdx.x, rows = 1 + t.max_nodes;
    const struct board_of_slot b = {ints, ints + rows, ints + 2 * rows, ints + 3 * rows};
    const size_t nodes = (size_t)slot * (size_t)t.max_nodes;
    launch_trigger();
    launch_wait();
    if (BY == BY_MODE)
        begin(&a);
    const int first_row = a.first_row[slot], n = t.n[slot];
    for (int c = (int)threadIdx.x; c < t.max_nodes; c += (int)blockDim.x) {
        b.node_token[c] = t.token[nodes + (size_t)c];
        b.parent[c] = t.parent[nodes + (size_t)c];
    }
    if (first_row < 0) {
        if (threadIdx.x == 0)
            a.accepted[slot] = 0;
        return;
    }
    if (BY == BY_RACE)
        read_races(&a, &t, slot, first_row, n, parts, &b);
    else
        read_decisions<BY>(&a, &t, slot, first_row, n, &b);
    __syncthreads();
    if (BY != BY_CHOICE) {
        for (int c = (int)threadIdx.x; c < n; c += (int)blockDim.x)
            if (b.node_token[c] == b.token[1 + b.parent[c]])
                atomicMin(&b.child[1 + b.parent[c]], c);
        __syncthreads();
    }
    if (threadIdx.x == 0)
        follow(&a, a.path + (size_t)slot * (size_t)t.max_depth, slot, &b);
}

/* --- launches
 * ------------------------------------------------------------------------------------------------------------
 */

static int at_least(int a, int b)
{
    return a > b ? a : b;
}

/* Blocks of a race a row: one wave of all rows, and no block without a batch a thread. */
static int parts_of(int rows, int vocab)
{
    const int most = (vocab + RACE_THREADS * RACE_BATCH - 1) / (RACE_THREADS * RACE_BATCH);
    const int fair = at_least(RACE_BLOCKS / rows, BLOCKS);
    return fair < most ? fair : most;
}

KERN_API size_t accept_cuda_bytes(int slots, int max_nodes)
{
    const size_t rows = (size_t)slots * (1 + (size_t)max_nodes), parts = BLOCKS * rows;
    static_assert(sizeof(struct choice) == sizeof(struct finalist), "they share the scratch");
    return (parts > RACE_BLOCKS ? parts : RACE_BLOCKS) * sizeof(struct finalist);
}

/* Ids of a warp: whole rows of 32, so that a warp's loads are whole lines where the row begins with one. */
static int segment_of(int vocab)
{
    return (vocab + BLOCKS * WARPS * 32 - 1) / (BLOCKS * WARPS * 32) * 32;
}

template <int KIND> static int launch_rows(const struct accept *a, void *stream)
{
    const int segment = segment_of(a->vocab), weighs = KIND != ACCEPT_RELAXED;
    const struct launch l = {
        .grid = dim3(BLOCKS, 1 + (unsigned)a->trees->max_nodes, (unsigned)a->trees->slots),
        .block = THREADS,
        .shared = (is_filtered(&a->sampling, a->vocab) ? BINS * THREADS * sizeof(double) : 0) +
                  (weighs ? (size_t)WARPS * (size_t)segment * sizeof(float) : 0),
        .cluster = BLOCKS,
        .stream = stream};
    if (a->vocab > ACCEPT_CUDA_VOCAB)
        return cudaErrorInvalidValue;
    return launch_kernel(&l, rows_kernel<KIND>, *a, *a->trees, segment);
}

static int launch_race(const struct accept *a, int parts, void *stream)
{
    const int share = (a->vocab + parts * RACE_ROUND - 1) / (parts * RACE_ROUND) * RACE_ROUND;
    const struct launch l = {
        .grid = dim3((unsigned)parts, 1 + (unsigned)a->trees->max_nodes, (unsigned)a->trees->slots),
        .block = RACE_THREADS,
        .stream = stream};
    return launch_kernel(&l, race_kernel, *a, *a->trees, share);
}

template <enum decided BY> static int launch_walk(const struct accept *a, int parts, void *stream)
{
    const int rows = 1 + a->trees->max_nodes, threads = BY == BY_RACE ? 32 * rows : (rows + 31) / 32 * 32;
    const struct launch l = {.grid = (unsigned)a->trees->slots,
                             .block = (unsigned)(threads < WALKERS ? threads : WALKERS),
                             .shared = 4 * (1 + (size_t)a->trees->max_nodes) * sizeof(int),
                             .stream = stream};
    return launch_kernel(&l, walk_kernel<BY>, *a, *a->trees, parts);
}

static int accept_coupled(const struct accept *a, void *stream)
{
    const int filtered = is_filtered(&a->sampling, a->vocab);
    const int parts =
        filtered ? BLOCKS : parts_of(a->trees->slots * (1 + a->trees->max_nodes), a->vocab);
    const int rc = filtered ? launch_rows<ACCEPT_COUPLED>(a, stream) : launch_race(a, parts, stream);
    return rc ? rc : launch_walk<BY_RACE>(a, parts, stream);
}

KERN_API int accept_cuda(const struct accept *a, void *stream)
{
    if (a->kind == ACCEPT_GREEDY || (a->kind != ACCEPT_RELAXED && !(a->sampling.temperature > 0)))
        return launch_walk<BY_MODE>(a, 0, stream);
    if (a->kind == ACCEPT_COUPLED)
        return accept_coupled(a, stream);
    const int rc = a->kind == ACCEPT_REJECTION ? launch_rows<ACCEPT_REJECTION>(a, stream)
                                               : launch_rows<ACCEPT_RELAXED>(a, stream);
    return rc ? rc : launch_walk<BY_CHOICE>(a, 0, stream);
}
