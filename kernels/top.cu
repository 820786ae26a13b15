/* top: a block takes a row. Numbers and their ids are ordered together, as one key each, so all keys are
 * different and the result does not depend on who finds what. The k-th largest of the threads' own largest
 * keys is at most the k-th largest key of the row, and only the k threads that have one so large can have
 * others: a second look collects what is as large, k threads' share at most and hardly more than k as a rule,
 * and each counts how many are larger. The sum of exponentials rides along with the second look.
 *
 * launch   grid [rows], block 1024; shared k * ceil(vocab / 1024) keys of 8 bytes
 * math     a thread adds every 1024th exponential in ascending order, lanes pairwise: l with l ^ 16, 8, 4, 2,
 * 1; warps likewise moves    rows * vocab * 8 bytes, the second half from the caches roof     a row of 32000
 * is 128 KB: a block's loads from the L2, twice 1.5 us; ranking 1024 keys, 1024 reads of shared memory that
 * all threads share, another 2 us */
#include "kernels/launch.cuh"
#include "kernels/sample.cuh"
#include "kernels/top.h"

enum { THREADS = 1024, LANES = 32, WARPS = THREADS / LANES, BATCH = 8 };

/* Larger for larger numbers and, among equals, for lower ids; never 0. */
static __device__ uint64_t key_of(float x, int id)
{
    return (uint64_t)sample_order_key(x) << 32 | (uint32_t)~id;
}

static __device__ int id_of(uint64_t key)
{
    return (int)~(uint32_t)key;
}

/* How many of the keys are larger. */
static __device__ int rank_of(const uint64_t *key, int n, uint64_t mine)
{
    int larger = 0;
#pragma unroll 8
    for (int i = 0; i < n; i++)
        larger += key[i] > mine;
    return larger;
}

static __device__ float sum_of_lanes(float v)
{
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2)
        v = __fadd_rn(v, __shfl_xor_sync(0xffffffffu, v, mask));
    return v;
}

/* Numbers first, first + THREADS, ... of the row, all on their way at once. */
static __device__ void load(const float *x, int first, int vocab, float *batch)
{
#pragma unroll
    for (int i = 0; i < BATCH; i++)
        batch[i] = first + i * THREADS < vocab ? x[first + i * THREADS] : 0.0f;
}

static __device__ uint64_t largest_key(const float *x, int vocab)
{
    uint64_t most = 0;
    for (int at = (int)threadIdx.x; at < vocab; at += BATCH * THREADS) {
        float batch[BATCH];
        load(x, at, vocab, batch);
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const uint64_t key = at + i * THREADS < vocab ? key_of(batch[i], at + i * THREADS) : 0;
            most = key > most ? key : most;
        }
    }
    return most;
}

/* The keys not below `bar` go to `found`; returns the thread's sum of exp(x - top). */
static __device__ float collect(const float *x, int vocab, uint64_t bar, float top, uint64_t *found,
                                int *n_found)
{
    float sum = 0;
    for (int at = (int)threadIdx.x; at < vocab; at += BATCH * THREADS) {
        float batch[BATCH];
        load(x, at, vocab, batch);
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (at + i * THREADS < vocab) {
                const uint64_t key = key_of(batch[i], at + i * THREADS);
                if (key >= bar)
                    found[atomicAdd(n_found, 1)] = key;
                sum = __fadd_rn(sum, expf(__fsub_rn(batch[i], top)));
            }
    }
    return sum;
}

static __global__ void __launch_bounds__(THREADS) top_kernel(const __grid_constant__ struct top a)
{
    extern __shared__ uint64_t found[]; /* [k * ceil(vocab / THREADS)] */
    __shared__ uint64_t most[THREADS], first, bar;
    __shared__ float part[WARPS];
    __shared__ int n_found;
    const int me = (int)threadIdx.x, row = (int)blockIdx.x;
    launch_trigger();
    launch_wait();
    const int from = a.from ? a.from[row] : row;
    if (from < 0)
        return;
    const float *x = a.logits + (size_t)from * (size_t)a.vocab;
    most[me] = largest_key(x, a.vocab);
    if (me == 0)
        n_found = 0;
    __syncthreads();
    /* threads without a number rank behind k others, because k <= vocab */
    const int rank = rank_of(most, THREADS, most[me]);
    if (rank == 0)
        first = most[me];
    if (rank == a.k - 1)
        bar = most[me];
    __syncthreads();
    const float top = x[id_of(first)], sum = sum_of_lanes(collect(x, a.vocab, bar, top, found, &n_found));
    if (me % LANES == 0)
        part[me / LANES] = sum;
    __syncthreads();
    const float log_sum = logf(sum_of_lanes(part[me % LANES]));
    for (int i = me; i < n_found; i += THREADS) {
        const int at = rank_of(found, n_found, found[i]), v = id_of(found[i]);
        if (at >= a.k)
            continue;
        a.id[(size_t)row * (size_t)a.k + (size_t)at] = a.map ? a.map[v] : v;
        a.log_p[(size_t)row * (size_t)a.k + (size_t)at] = __fsub_rn(__fsub_rn(x[v], top), log_sum);
    }
}

KERN_API int top_cuda(const struct top *a, void *stream)
{
    const size_t each = (size_t)((a->vocab + THREADS - 1) / THREADS);
    const struct launch l = {.grid = dim3((unsigned)a->rows),
                             .block = THREADS,
                             .shared = (size_t)a->k * each * sizeof(uint64_t),
                             .stream = stream};
    return a->rows > 0 ? launch_kernel(&l, top_kernel, *a) : 0;
}
