/* accept: what a row chooses depends on that row, its position and its node's children alone, so a cluster of
 * eight blocks a row (kernels/accept_row.cuh) decides all rows at once, and then a warp a slot walks the tree
 * along the choices. Greedy needs no more than the walk.
 *
 * launch   rows: grid [8, 1 + max_nodes, slots], clusters of 8, block 512, shared 4 bytes an id of the block,
 *          64 KB more for top-k and top-p; rows that are not there leave at once. Walk: grid slots, block 32
 * moves    rows * vocab * 4 bytes, mostly L2, where the output head has just left them, 8 times more a filter
 * roof     latency: 128256 ids are 32 a thread, and each of the few sums over a row is a barrier of the block
 *          and one of the cluster; a filter is 9 of them, rarely 14. Rows run side by side, as many as there
 *          is shared memory for */
#include "kernels/accept.h"
#include "kernels/accept_row.cuh"
#include "kernels/launch.cuh"
#include <math.h>

/* What a row has decided: the child to go on with, -1: the token ends the text. Coupled leaves the child to
 * the walk. */
struct choice {
    int child, token;
};

/* A slot's tree. */
struct view {
    const int *token, *parent, *q_row;
    const float *q;
    int n;
};

/* --- coupled
 * ------------------------------------------------------------------------------------------------------------
 */

struct winner {
    double score;
    int id;
};

static __device__ struct winner better(struct winner a, struct winner b)
{
    return a.score > b.score || (a.score == b.score && a.id <= b.id) ? a : b;
}

static __device__ double gumbel_score(float prob, double u)
{
    return log((double)prob) - log(-log(u));
}

/* This thread's: ids that cannot beat the best so far are left out as in sample_gumbel, first of all by the
 * row's mode. */
static __device__ struct winner scan_gumbel(const struct job *j, int mode, float prob_mode)
{
    struct winner best = {gumbel_score(prob_mode, sample_noise(&j->key, mode)), mode};
    double odds = exp(-best.score) * (1 + 1e-6);
    EACH_ID(j, i)
    {
        const float prob = j->weight[i - j->base];
        if (!(prob > 0) || prob * odds < 1.0 - PHILOX_UNIFORM_MAX)
            continue;
        const double u = sample_noise(&j->key, i);
        if (1.0 - u > prob * odds)
            continue;
        const struct winner w = better(best, {gumbel_score(prob, u), i});
        if (w.score > best.score)
            odds = exp(-w.score) * (1 + 1e-6);
        best = w;
    }
    return best;
}

static __device__ void choose_coupled(struct job *j, int mode, struct choice *out)
{
    __shared__ struct winner part[WARPS];
    struct winner best = scan_gumbel(j, mode, (float)weight_of(j, mode));
    double *slot = j->board->slot[j->turn++ & 1];
    for (int step = 16; step > 0; step /= 2)
        best = better(best, {__shfl_xor_sync(0xffffffffu, best.score, step),
                             __shfl_xor_sync(0xffffffffu, best.id, step)});
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < WARPS; i++)
            best = better(best, part[i]);
        slot[0] = best.score;
        slot[1] = best.id;
    }
    cooperative_groups::this_cluster().sync();
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        for (int b = 1; b < BLOCKS; b++)
            best = better(best, {*of_block(slot, b), (int)*of_block(slot + 1, b)});
        *out = {-1, best.id};
    }
}

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
    double mass = sum_weights(j), whole = 0;
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

/* --- kernels
 * ------------------------------------------------------------------------------------------------------------
 */

static __global__ void __launch_bounds__(THREADS)
    rows_kernel(struct accept a, struct trees t, struct choice *choices, int segment)
{
    extern __shared__ double shared[];
    __shared__ struct board board;
    const int slot = (int)blockIdx.z, node = (int)blockIdx.y - 1;
    launch_trigger();
    launch_wait();
    const int first_row = a.first_row[slot];
    if (first_row < 0 || node >= t.n[slot])
        return;
    const int row = first_row + 1 + node, warp = (int)(blockIdx.x * WARPS + threadIdx.x / 32);
    const struct logit_stats st = a.stats[row];
    if (!isfinite(st.lse)) /* the walk ends here */
        return;
    const size_t nodes = (size_t)slot * (size_t)t.max_nodes;
    const int binned = (a.sampling.top_k > 0 && a.sampling.top_k < a.vocab) || a.sampling.top_p < 1.0f;
    const struct view view = {t.token + nodes, t.parent + nodes, t.q_row + nodes, t.q, t.n[slot]};
    struct job job = {};
    job.row = a.logits + (size_t)row * (size_t)a.vocab;
    job.bins = shared;
    job.weight = (float *)(shared + (binned ? BINS * THREADS : 0));
    job.board = &board;
    job.vocab = a.vocab;
    job.base = (int)blockIdx.x * WARPS * segment;
    job.from = warp * segment + (int)threadIdx.x % 32;
    job.to = min((warp + 1) * segment, a.vocab);
    job.sampling = a.sampling;
    job.key = {a.sampling.seed, a.seq[slot].request,
               (uint32_t)(a.seq[slot].n + (node < 0 ? 0 : t.depth[nodes + (size_t)node]))};
    job.max = st.max;
    struct choice *out = choices + (size_t)slot * (1 + (size_t)t.max_nodes) + 1 + node;
    if (a.kind == ACCEPT_RELAXED) {
        choose_relaxed(&job, &view, node, st, out);
    } else {
        weigh(&job);
        if (a.kind == ACCEPT_COUPLED)
            choose_coupled(&job, st.argmax, out);
        else
            choose_rejection(&job, &view, node, out);
    }
    cooperative_groups::this_cluster().sync(); /* no block leaves while another reads its shared memory */
}

/* The child of `node` that is `token`, -1: none; by a warp. */
static __device__ int find_child(const int *tokens, const int *parent, int n, int node, int token)
{
    for (int first = node + 1; first < n; first += 32) {
        const int c = first + (int)threadIdx.x;
        const unsigned hit = __ballot_sync(0xffffffffu, c < n && parent[c] == node && tokens[c] == token);
        if (hit)
            return first + __ffs((int)hit) - 1;
    }
    return -1;
}

static __global__ void __launch_bounds__(32)
    walk_kernel(struct accept a, struct trees t, const struct choice *choices, int greedy)
{
    const int slot = (int)blockIdx.x, lane = (int)threadIdx.x;
    const size_t nodes = (size_t)slot * (size_t)t.max_nodes;
    launch_trigger();
    launch_wait();
    const int first_row = a.first_row[slot];
    int node = -1, n = 0, bonus = -1;
    while (first_row >= 0) {
        const struct logit_stats *st = &a.stats[first_row + 1 + node];
        if (!isfinite(st->lse))
            break;
        struct choice c = {-1, st->argmax};
        if (!greedy)
            c = choices[(size_t)slot * (1 + (size_t)t.max_nodes) + 1 + (size_t)node];
        if (greedy || a.kind == ACCEPT_COUPLED)
            c.child = find_child(t.token + nodes, t.parent + nodes, t.n[slot], node, c.token);
        if (c.child < 0) {
            bonus = c.token;
            break;
        }
        node = c.child;
        if (lane == 0)
            a.path[(size_t)slot * (size_t)t.max_depth + (size_t)n] = node;
        n++;
    }
    if (lane == 0) {
        a.accepted[slot] = n;
        if (first_row >= 0)
            a.bonus[slot] = bonus;
    }
}

KERN_API size_t accept_cuda_bytes(int slots, int max_nodes)
{
    return (size_t)slots * (1 + (size_t)max_nodes) * sizeof(struct choice);
}

/* Ids of a warp: whole rows of 32, so that a warp's loads are whole lines where the row begins with one. */
static int segment_of(int vocab)
{
    return (vocab + BLOCKS * WARPS * 32 - 1) / (BLOCKS * WARPS * 32) * 32;
}

static int launch_rows(const struct accept *a, void *stream)
{
    const struct sampling *s = &a->sampling;
    const int segment = segment_of(a->vocab), weighs = a->kind != ACCEPT_RELAXED,
              binned = (s->top_k > 0 && s->top_k < a->vocab) || s->top_p < 1.0f;
    struct launch l = {.grid = dim3(BLOCKS, 1 + (unsigned)a->trees->max_nodes, (unsigned)a->trees->slots),
                       .block = THREADS,
                       .shared = (binned ? BINS * THREADS * sizeof(double) : 0) +
                                 (weighs ? (size_t)WARPS * (size_t)segment * sizeof(float) : 0),
                       .cluster = BLOCKS,
                       .stream = stream};
    if (a->vocab > ACCEPT_CUDA_VOCAB)
        return cudaErrorInvalidValue;
    return launch_kernel(&l, rows_kernel, *a, *a->trees, (struct choice *)a->scratch, segment);
}

KERN_API int accept_cuda(const struct accept *a, void *stream)
{
    const int greedy =
        a->kind == ACCEPT_GREEDY || (a->kind != ACCEPT_RELAXED && !(a->sampling.temperature > 0));
    const struct launch l = {.grid = (unsigned)a->trees->slots, .block = 32, .stream = stream};
    const int rc = greedy ? 0 : launch_rows(a, stream);
    return rc ? rc : launch_kernel(&l, walk_kernel, *a, *a->trees, (const struct choice *)a->scratch, greedy);
}
