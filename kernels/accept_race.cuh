/* accept_race: Gumbel-max as a race, for accept.cu. The id with the largest log w + g, g = -log(-log u), is
 * the one with the largest w / -log u, its pace, so no weight need be normalised, and most ids are left
 * behind by a comparison or two: as -log u >= 1 - u >= 2^-24, one whose weight is below 2^-24 of the best
 * pace so far needs no noise, and one whose weight is below 1 - u of it no logarithm.
 *
 * Paces are f32, within 2^-21 of the truth by the errors of logf and of the division. Where two come within
 * NEAR the ids in question are judged again by scores in double, as the CPU's: whatever the parts that the
 * row is cut into, the winner is the same. */
#ifndef KERNELS_ACCEPT_RACE_CUH
#define KERNELS_ACCEPT_RACE_CUH
#include "kernels/sample.cuh"
#include <limits.h>
#include <math.h>

enum { RACE_THREADS = 256, RACE_WARPS_MAX = 16, RACE_BATCH = 4, RACE_ROUND = 32 };
static constexpr unsigned RACE_LANES = 0xffffffffu;
static constexpr float RACE_NEAR = 1 - 0x1p-18f, RACE_BAR = 1 - 0x1p-17f;

/* The best of a part of the row, in backend memory. */
struct finalist {
    float pace; /* -1: of nobody */
    int id;
};

struct lead {
    float pace, second;
    int id;
};

struct winner {
    double score;
    int id;
};

/* A part of a row, as one of the block's threads sees it. */
struct race {
    const float *row, *kept;   /* kept: weights in shared memory, of id i at [i - base]; else the row's own */
    int base, from, to, step;  /* this thread's ids: from, from + step, .. below to */
    float max, temperature, min_p;
    struct sample_key key;
};

static __device__ struct lead no_lead(void)
{
    return {-1, -1, INT_MAX};
}

static __device__ struct lead merge_leads(struct lead a, struct lead b)
{
    const bool first = a.pace > b.pace || (a.pace == b.pace && a.id <= b.id);
    const struct lead win = first ? a : b, lose = first ? b : a;
    return {win.pace, fmaxf(win.second, lose.pace), win.id};
}

/* No pace is below 0 but -1, so that their bits are in the order of whole numbers. */
static __device__ struct lead warp_lead(struct lead l)
{
    const int pace = __float_as_int(l.pace), most = __reduce_max_sync(RACE_LANES, pace);
    const int id = __reduce_min_sync(RACE_LANES, pace == most ? l.id : INT_MAX);
    const int next = __reduce_max_sync(RACE_LANES, l.id == id ? __float_as_int(l.second) : pace);
    return {__int_as_float(most), __int_as_float(next), id};
}

static __device__ int is_close(struct lead l)
{
    return l.second >= l.pace * RACE_NEAR;
}

static __device__ struct winner better(struct winner a, struct winner b)
{
    return a.score > b.score || (a.score == b.score && a.id <= b.id) ? a : b;
}

static __device__ struct winner warp_better(struct winner w)
{
    for (int step = 16; step > 0; step /= 2)
        w = better(w, {__shfl_xor_sync(RACE_LANES, w.score, step), __shfl_xor_sync(RACE_LANES, w.id, step)});
    return w;
}

static __device__ float pace_of(float weight, float u)
{
    return __fdividef(weight, -logf(u));
}

static __device__ double score_of(float weight, float u)
{
    return log((double)weight) - log(-log((double)u));
}

/* Of a logit; 0: below min_p. */
static __device__ float weight_in_race(const struct race *r, float logit)
{
    const float w = sample_weight(logit, r->max, r->temperature);
    return w >= r->min_p ? w : 0.0f;
}

/* Logits, or weights, of the batch of this thread's ids that begins with `first`; NaN where there is none. */
template <bool KEPT> static __device__ void load_batch(const struct race *r, int first, float x[RACE_BATCH])
{
#pragma unroll
    for (int k = 0; k < RACE_BATCH; k++) {
        const int i = first + k * r->step;
        x[k] = i >= r->to ? __int_as_float(0x7fffffff) : KEPT ? r->kept[i - r->base] : r->row[i];
    }
}

static __device__ void enter(const struct race *r, float weight, int id, float *bar, struct lead *l)
{
    const float u = sample_noise(&r->key, id);
    if (weight < (1 - u) * *bar)
        return;
    const float pace = pace_of(weight, u);
    if (pace > l->pace) {
        *l = {pace, l->pace, id};
        *bar = fmaxf(*bar, pace * RACE_BAR);
    } else {
        l->second = fmaxf(l->second, pace);
    }
}

/* This thread's ids, of which x is the first batch. The row's mode, of weight 1, is in the race anyway and
 * sets the bar from the start. */
template <bool KEPT> static __device__ struct lead run(const struct race *r, int mode, float x[RACE_BATCH])
{
    float bar = pace_of(1, sample_noise(&r->key, mode)) * RACE_BAR;
    /* 24 log 2 is 16.636: room for the rounding of a weight and its argument */
    const float least = KEPT ? bar * (0x1p-24f - 0x1p-34f) : r->temperature * (logf(bar) - 16.7f);
    struct lead l = no_lead();
    for (int first = r->from;; load_batch<KEPT>(r, first, x)) {
        unsigned hot = 0;
#pragma unroll
        for (int k = 0; k < RACE_BATCH; k++)
            hot |= (unsigned)((KEPT ? x[k] : __fadd_rn(x[k], -r->max)) >= least) << k;
#pragma unroll 1
        for (; hot; hot &= hot - 1) {
            const int k = __ffs((int)hot) - 1;
            const float v = k < 2 ? (k ? x[1] : x[0]) : (k == 2 ? x[2] : x[3]);
            const float w = KEPT ? v : weight_in_race(r, v);
            if (w > 0)
                enter(r, w, first + k * r->step, &bar, &l);
        }
        first += RACE_BATCH * r->step;
        if (first >= r->to)
            return l;
    }
}

/* The best by score of this thread's ids with at least that pace. */
template <bool KEPT> static __device__ struct winner judge(const struct race *r, float pace)
{
    struct winner best = {-INFINITY, INT_MAX};
#pragma unroll 1
    for (int i = r->from; i < r->to; i += r->step) {
        const float w = KEPT ? r->kept[i - r->base] : weight_in_race(r, r->row[i]);
        const float u = sample_noise(&r->key, i);
        if (w > 0 && pace_of(w, u) >= pace)
            best = better(best, {score_of(w, u), i});
    }
    return best;
}

/* The block's best, to *out. Every thread of the block comes here. */
template <bool KEPT>
static __device__ void finish(const struct race *r, struct lead own, struct finalist *out)
{
    __shared__ struct lead lead_of[RACE_WARPS_MAX];
    __shared__ struct winner best_of[RACE_WARPS_MAX];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    const struct lead of_warp = warp_lead(own);
    if (lane == 0)
        lead_of[warp] = of_warp;
    __syncthreads();
    struct lead all = warp_lead(lane < warps ? lead_of[lane] : no_lead());
    if (is_close(all)) { /* for all threads or none */
        struct winner best = {-INFINITY, INT_MAX};
        if (own.pace >= all.pace * RACE_NEAR)
            best = judge<KEPT>(r, all.pace * RACE_NEAR);
        __syncwarp();
        best = warp_better(best);
        if (lane == 0)
            best_of[warp] = best;
        __syncthreads();
        for (int w = 0; w < warps; w++)
            best = better(best, best_of[w]);
        all.id = best.id;
    }
    if (threadIdx.x == 0)
        *out = {all.pace, all.id};
}
#endif
