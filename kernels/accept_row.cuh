/* accept_row: the weights of one row of logits in the shared memory of a cluster, added up and filtered
 * there. For accept.cu.
 *
 * A warp owns `segment` ids in a row, a lane every 32nd of them, so no weight is touched by two threads. A
 * dropped id has weight 0. Weights are the CPU's bit for bit (sample_exp), sums are double as the CPU's, in
 * another order: a thread ascending, lanes and warps by halving, blocks in order, all fixed by the
 * vocabulary.
 *
 * Top-k and top-p both ask for the shortest prefix of the ids, best first, whose weights reach a target. The
 * ids' order is a number of 52 bits (order key of the logit, then the lower id first), found four bits a time
 * from sums over 16 bins, a column a thread: no atomics, so as deterministic as all other sums. One id has
 * most keys, then the 8 digits of the key are enough. */
#ifndef KERNELS_ACCEPT_ROW_CUH
#define KERNELS_ACCEPT_ROW_CUH
#include "kernels/accept.h"
#include "kernels/sample.cuh"
#include <cooperative_groups.h>

enum { BLOCKS = 8, THREADS = 512, WARPS = THREADS / 32, DIGIT = 4, BINS = 1 << DIGIT };

static_assert(BINS == WARPS, "a warp adds up a bin");
static_assert(ACCEPT_CUDA_VOCAB < 1 << SAMPLE_ID_BITS, "an id is a part of its order");

/* A block's part in sums over its cluster. */
struct board {
    double part[WARPS];   /* of the last sum, a warp each */
    double slot[2][BINS]; /* what the other blocks read, of this sum and the one before: one barrier a sum is
                             enough */
    double bin[BINS];
};

/* A row's work, as one of its threads sees it. */
struct job {
    const float *row;
    float *weight; /* shared, of id i at [i - base] */
    double *bins;  /* shared [BINS, THREADS] */
    struct board *board;
    int vocab, base, from, to; /* the block's first id, this thread's first, its warp's end */
    int turn;                  /* sums so far */
    struct sampling sampling;
    struct sample_key key;
    float max;
};

/* Top-k or top-p leave ids out: those take sums over the row. */
static __host__ __device__ inline int is_filtered(const struct sampling *s, int vocab)
{
    return (s->top_k > 0 && s->top_k < vocab) || s->top_p < 1.0f;
}

#define EACH_ID(j, i) for (int i = (j)->from; i < (j)->to; i += 32)

static __device__ int owns(const struct job *j, int id)
{
    return id >= j->from && id < j->to && (id - j->from) % 32 == 0;
}

/* Another block's copy of a number in shared memory. */
static __device__ double *of_block(double *p, int block)
{
    return cooperative_groups::this_cluster().map_shared_rank(p, block);
}

static __device__ double warp_sum(double x)
{
    for (int step = 16; step > 0; step /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* Sum over the cluster, the same bits in every thread. Every thread of it comes here. */
static __device__ double cluster_sum(struct job *j, double x)
{
    double *slot = j->board->slot[j->turn++ & 1];
    const int lane = (int)threadIdx.x % 32;
    x = warp_sum(x);
    if (lane == 0)
        j->board->part[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x < 32) {
        x = warp_sum(lane < WARPS ? j->board->part[lane] : 0);
        if (lane == 0)
            *slot = x;
    }
    cooperative_groups::this_cluster().sync();
    double sum = 0;
    for (int b = 0; b < BLOCKS; b++)
        sum += *of_block(slot, b);
    return sum;
}

/* Weight of one id, in every thread. */
static __device__ double weight_of(struct job *j, int id)
{
    return cluster_sum(j, owns(j, id) ? j->weight[id - j->base] : 0.0);
}

static __device__ double sum_weights(struct job *j)
{
    double sum = 0;
    EACH_ID(j, i)
    sum += j->weight[i - j->base];
    return cluster_sum(j, sum);
}

/* Sums of `weight` (1: of ids) over the 16 digits at `shift` of the orders whose upper digits are `prefix`,
 * in board->bin. */
static __device__ void sum_bins(struct job *j, int count, uint64_t prefix, int shift)
{
    double *slot = j->board->slot[j->turn++ & 1], sum = 0;
    for (int b = 0; b < BINS; b++)
        j->bins[b * THREADS + (int)threadIdx.x] = 0;
    EACH_ID(j, i)
    {
        const uint64_t order = sample_order(j->row[i], i);
        if (order >> (shift + DIGIT) == prefix)
            j->bins[(int)(order >> shift & (BINS - 1)) * THREADS + (int)threadIdx.x] +=
                count ? 1.0 : (double)j->weight[i - j->base];
    }
    __syncthreads();
    for (int t = (int)threadIdx.x % 32; t < THREADS; t += 32)
        sum += j->bins[(int)threadIdx.x / 32 * THREADS + t];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        slot[threadIdx.x / 32] = sum;
    cooperative_groups::this_cluster().sync();
    if (threadIdx.x < BINS) {
        sum = 0;
        for (int b = 0; b < BLOCKS; b++)
            sum += *of_block(slot + threadIdx.x, b);
        j->board->bin[threadIdx.x] = sum;
    }
    __syncthreads();
}

/* The order of the last id of the shortest prefix that reaches the target. Whatever rounding does to the
 * sums, some bin is taken: at worst the lowest that holds any weight. */
static __device__ uint64_t find_cut(struct job *j, int count, double target)
{
    uint64_t prefix = 0;
    double above = 0;
    for (int shift = SAMPLE_ORDER_BITS - DIGIT; shift >= 0; shift -= DIGIT) {
        int pick = -1;
        sum_bins(j, count, prefix, shift);
        for (int b = BINS - 1; b >= 0; b--) {
            if (!(j->board->bin[b] > 0))
                continue;
            if (pick >= 0)
                above += j->board->bin[pick];
            pick = b;
            if (above + j->board->bin[b] >= target)
                break;
        }
        pick = pick < 0 ? 0 : pick;
        prefix = prefix << DIGIT | (uint64_t)pick;
        if (shift != SAMPLE_ID_BITS)
            continue;
        const float x = sample_key_value((uint32_t)prefix);
        const double one = count ? 1 : sample_weight(x, j->max, j->sampling.temperature);
        if (j->board->bin[pick] < 1.5 * one) /* no other id has this key */
            return prefix << SAMPLE_ID_BITS;
    }
    return prefix;
}

static __device__ void keep_prefix(struct job *j, int count, double target)
{
    const uint64_t cut = find_cut(j, count, target);
    EACH_ID(j, i)
    if (sample_order(j->row[i], i) < cut)
        j->weight[i - j->base] = 0;
}

/* Weights of the row, after all sampling transforms; returns this thread's sum. The largest is exp(0) = 1. */
static __device__ double weigh(struct job *j)
{
    const struct sampling *s = &j->sampling;
    double sum = 0;
    EACH_ID(j, i)
    sum += j->weight[i - j->base] = sample_weight(j->row[i], j->max, s->temperature);
    if (s->top_k > 0 && s->top_k < j->vocab)
        keep_prefix(j, 1, s->top_k);
    if (s->top_p < 1.0f)
        keep_prefix(j, 0, (double)s->top_p * sum_weights(j));
    if (!is_filtered(s, j->vocab) && !(s->min_p > 0.0f))
        return sum;
    sum = 0;
    EACH_ID(j, i)
    {
        if (!(j->weight[i - j->base] >= s->min_p))
            j->weight[i - j->base] = 0;
        sum += j->weight[i - j->base];
    }
    return sum;
}

/* p of the row; returns its sum, 1 up to rounding. */
static __device__ double normalise(struct job *j)
{
    const double scale = 1 / cluster_sum(j, weigh(j));
    double sum = 0;
    EACH_ID(j, i)
    sum += j->weight[i - j->base] = (float)(j->weight[i - j->base] * scale);
    return cluster_sum(j, sum);
}
#endif
