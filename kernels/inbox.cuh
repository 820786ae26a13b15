/* inbox: how ranks send each other numbers: every rank writes straight into an inbox of each other rank and
 * polls its own inboxes on the numbers themselves, so a collective costs one crossing of the links and no flag,
 * fence or barrier.
 *
 * words    An inbox word (32 bits) that nobody has written holds EMPTY, the bits of one NaN; a number of these
 *          bits is sent as another NaN. Words are looked at one by one, so a store of 16 bytes may arrive in
 *          pieces. Who has read a vector makes it EMPTY again.
 * turns    Operation t uses inbox t % 2. That two are enough: let rank P write for operation t + 2 into R's
 *          inbox t % 2. P's kernel t + 1 has ended, so it has taken at least one word that R sent in its own
 *          kernel t + 1 (every rank sends every other at least one in every operation). R sent it behind
 *          launch_wait, when its kernel t had ended with all its stores done, among them EMPTY in every word of
 *          inbox t % 2 that t had used: whatever was sent for t had been waited for and read. So P finds it
 *          EMPTY, and R's kernel t + 2 cannot take a number of t for one of t + 2. P's stores of t + 1 meanwhile
 *          go to the other inbox. With one inbox P could write t + 1 as soon as R had sent t, before R read t.
 * state    The turn is counted in device memory, a word a block, so that a recorded graph can be replayed; every
 *          block of a launch ends with the same count, and block 0 counts for blocks that this launch has not.
 * sharing  Ranks on one GPU: a kernel that spins keeps its place on a multiprocessor until the other ranks'
 *          kernels have run, so all spinning blocks together are fewer than the places, and no kernel may be
 *          let in behind a spinning one to wait there in the place of one that another rank needs: no
 *          launch_trigger. Otherwise the next kernel starts beside this one and fetches its weights meanwhile.
 * lost     The first who waits longer than a rank may be waited for, or sees that the host has given up, says so
 *          in device memory. From then on nobody waits, and nobody sends: what a rank makes of zeros in the place
 *          of numbers that did not come must not reach the others. */
#ifndef KERNELS_INBOX_CUH
#define KERNELS_INBOX_CUH
#include "kernels/clock.cuh"
#include "kernels/launch.cuh"
#include "kernels/reduce_cuda.h"

enum { INBOX_THREADS = 512, INBOX_MIN_THREADS = 64, RANKS = REDUCE_RANKS, LOOK = 1024 };
#define EMPTY 0xffffffffu

/* ---- words ---- */

__device__ static inline uint32_t filled(uint32_t word)
{
    return word == EMPTY ? 0x7fff7fffu : word;
}

__device__ static inline uint32_t bf16_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* Four numbers as they travel: f32, or bf16. */
__device__ static inline void pack(float4 v, uint4 *to)
{
    *to = make_uint4(filled(__float_as_uint(v.x)), filled(__float_as_uint(v.y)), filled(__float_as_uint(v.z)),
                     filled(__float_as_uint(v.w)));
}

__device__ static inline void pack(float4 v, uint2 *to)
{
    *to = make_uint2(filled(bf16_pair(v.x, v.y)), filled(bf16_pair(v.z, v.w)));
}

__device__ static inline float4 unpack(uint4 v)
{
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z),
                       __uint_as_float(v.w));
}

__device__ static inline float4 unpack(uint2 v)
{
    return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
                       __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u));
}

__device__ static inline int whole(uint4 v)
{
    return v.x != EMPTY && v.y != EMPTY && v.z != EMPTY && v.w != EMPTY;
}

__device__ static inline int whole(uint2 v)
{
    return v.x != EMPTY && v.y != EMPTY;
}

/* Past the L1, at the scope of all GPUs. */
__device__ static inline uint4 peek(const uint4 *at)
{
    uint4 v;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at)
                 : "memory");
    return v;
}

__device__ static inline uint2 peek(const uint2 *at)
{
    uint2 v;
    asm volatile("ld.relaxed.sys.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at) : "memory");
    return v;
}

__device__ static inline void poke(uint4 *at, uint4 v)
{
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
}

__device__ static inline void poke(uint2 *at, uint2 v)
{
    asm volatile("st.relaxed.sys.global.v2.u32 [%0], {%1, %2};" ::"l"(at), "r"(v.x), "r"(v.y) : "memory");
}

__device__ static inline void fill(uint32_t word, uint4 *v)
{
    *v = make_uint4(word, word, word, word);
}

__device__ static inline void fill(uint32_t word, uint2 *v)
{
    *v = make_uint2(word, word);
}

/* ---- turns ---- */

/* A kernel's turn, and how long it has waited. */
struct visit {
    unsigned turn;
    int lost;
    size_t inbox; /* bytes from turn 0 to this one */
    int64_t since, patience;
};

__device__ static inline struct visit visit_open(const struct reduce_way &w)
{
    struct visit t = {0, 0, 0, 0, w.patience_ns};
    if (w.world > 1) {
        t.turn = ((const volatile struct reduce_state *)w.state)->turn[blockIdx.x];
        t.lost = ((const volatile struct reduce_state *)w.state)->lost != 0;
        t.inbox = (size_t)(t.turn % 2) * ((size_t)w.world + 1) * w.room;
    }
    return t;
}

/* By all threads once all of them have opened their visit. */
__device__ static inline void visit_count(const struct reduce_way &w, const struct visit &t)
{
    if (w.world == 1)
        return;
    __syncthreads();
    if (threadIdx.x == 0)
        w.state->turn[blockIdx.x] = t.turn + 1;
    for (unsigned i = gridDim.x + threadIdx.x; blockIdx.x == 0 && i < REDUCE_BLOCKS; i += blockDim.x)
        w.state->turn[i] = t.turn + 1;
}

/* Asked now and then while rank `awaited` has not sent. */
__device__ static inline int visit_is_lost(const struct reduce_way &w, int awaited, struct visit *t)
{
    volatile struct reduce_state *state = w.state;
    const int64_t now = clock_now();
    int why = state->lost ? REDUCE_LOST_HOST : *w.lost;
    if (!t->since)
        t->since = now;
    if (!why && now - t->since > t->patience)
        *w.lost = why = awaited + 1;
    if (why)
        state->lost = 1;
    return t->lost = why != 0;
}

__device__ static inline unsigned others(const struct reduce_way &w)
{
    return ((1u << w.world) - 1) & ~(1u << w.rank);
}

/* v[i] = what stands at box + i * stride for the bits i of wanted, once it has come; zeros when a rank is
 * lost. The sender at bit i is rank first + i. Returns the bits that came. */
template <int N, class Word>
__device__ static inline unsigned take(const struct reduce_way &w, const unsigned char *box, size_t stride,
                                       int first, unsigned wanted, Word v[N], struct visit *t)
{
    unsigned missing = wanted;
#pragma unroll
    for (int i = 0; i < N; i++)
        fill(0, &v[i]);
    for (int spins = 1; missing && !t->lost; spins++) {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (missing >> i & 1) {
                v[i] = peek((const Word *)(box + (size_t)i * stride));
            }
#pragma unroll
        for (int i = 0; i < N; i++)
            if ((missing >> i & 1) && whole(v[i]))
                missing &= ~(1u << i);
        if (missing && spins % LOOK == 0 && visit_is_lost(w, first + __ffs((int)missing) - 1, t))
#pragma unroll
            for (int i = 0; i < N; i++)
                if (missing >> i & 1)
                    fill(0, &v[i]);
    }
    return wanted & ~missing;
}

/* What was taken is EMPTY again; behind whatever others wait for. */
template <int N, class Word>
__device__ static inline void put_back(unsigned char *box, size_t stride, unsigned taken, const Word *)
{
    Word empty;
    fill(EMPTY, &empty);
#pragma unroll
    for (int i = 0; i < N; i++)
        if (taken >> i & 1)
            poke((Word *)(box + (size_t)i * stride), empty);
}

/* ---- pieces ---- */

/* Numbers at..at + 3 of n, zeros past the end. */
__device__ static inline float4 load(const float *x, int at, int n)
{
    if (at + 3 < n)
        return *(const float4 *)(x + at);
    return make_float4(at < n ? x[at] : 0.0f, at + 1 < n ? x[at + 1] : 0.0f, at + 2 < n ? x[at + 2] : 0.0f,
                       0);
}

static inline struct launch inbox_launch(const struct reduce_way *w, int vectors, void *stream)
{
    const int share = (vectors + w->blocks - 1) / w->blocks, warps = (share + 31) / 32 * 32,
              threads = warps < INBOX_MIN_THREADS ? INBOX_MIN_THREADS
                        : warps < INBOX_THREADS   ? warps
                                                  : INBOX_THREADS,
              blocks = (vectors + threads - 1) / threads;
    struct launch l = {};
    l.grid = (unsigned)(blocks < w->blocks ? blocks : w->blocks);
    l.block = (unsigned)threads;
    l.stream = stream;
    return l;
}

/* Vectors of the next piece of `left`. */
static inline int inbox_piece(const struct reduce_way *w, size_t left)
{
    const size_t room = w->world > 1 ? w->room / sizeof(float4) : left;
    return (int)(left < room ? left : room);
}
#endif
