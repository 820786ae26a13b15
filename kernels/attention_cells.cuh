/* attention_cells: what a team of the attention kernels (kernels/attention.cu) holds, and how keys and values
 * of 64 positions reach its shared memory. A team is four warps that work on one job; a block has one team or
 * two.
 *
 * The cells of a block's positions are listed first, a thread a position; then cp.async copies 16 bytes at a
 * time, so that a row's path is read once a key, not once a piece. Cells of E4M3 bytes wait in `raw` and
 * become bf16 (exact) on their way to the products; a thread widens what it has copied itself. */
#ifndef KERNELS_ATTENTION_CELLS_CUH
#define KERNELS_ATTENTION_CELLS_CUH
#include "kernels/attention.h"
#include <cuda_fp16.h>
#include <limits.h>

enum { BLOCK = 64, WARPS = 4, THREADS = 32 * WARPS /* a team */, WARP_KEYS = BLOCK / WARPS, PAD = 8 };
enum { KEYS, VALUES };

/* What kernels need of struct attention and its rows, by value. */
struct view {
    const int *slot, *pos, *cell, *base, *path_off, *path;
    const float *qkv;
    const void *cells[2]; /* keys, values */
    uint16_t *y;
    float *o;     /* scratch [rows][heads][chunks][dim] */
    float2 *stat; /* scratch [rows][heads][chunks], (m, l) */
    int n, heads, kv_heads, group, dim, cap, chunks;
    enum act_form y_form;
    float scale;  /* to units of log2 */
    int by_group; /* see pair_row */
    int rows;     /* a tile of a cluster's */
    int log_size; /* of the cluster's blocks */
    bool inbox;   /* a cluster's results fit the shared memory of whoever folds them */
    int period;   /* struct attention's chunk if rows may be past the first of them, or 0 */
};

/* Rows [first, first + count) over the positions up to `last`; several rows share a job where their cells are
 * the positions. */
struct job {
    int first, count, kv_head, slot, base, last;
    const int *path; /* cells of positions base.. */
};

/* Rows of m tiles are the pairs (row, head), heads fastest. pair / group without a division: up to 64 either
 * way the product is over by less than 1 / 1024, and a quotient that is not whole lacks 1 / 64 to the next.
 */
static __host__ int by_group_of(int group)
{
    return 65536 / group + 1;
}

static __device__ int pair_row(const struct view *a, int pair)
{
    return pair * a->by_group >> 16;
}

static __device__ int pair_head(const struct view *a, int pair) /* of the kv head's */
{
    return pair - pair_row(a, pair) * a->group;
}

/* Of one team. PAD keeps the eight rows that ldmatrix reads at once, and those that a warp stores to at once,
 * in different banks. */
template <int DIM, int TILES, bool FP8> struct __align__(16) shared
{
    bf16 cells[2][BLOCK][DIM + PAD];
    bf16 q[2][16 * TILES][DIM + PAD]; /* high and low part */
    bf16 p[16 * TILES][BLOCK + PAD];
    uint8_t raw[2][FP8 ? BLOCK * DIM : 16];
    float max[WARPS][16 * TILES], sum[WARPS][16 * TILES];
    int last[16 * TILES]; /* last position that the row sees, -1: no row */
    int cell[BLOCK];      /* of the block that is requested next, -1: zeros */
};

static __device__ int member(void) /* of its team */
{
    return (int)threadIdx.x % THREADS;
}

static __device__ int team_warp(void)
{
    return (int)threadIdx.x / 32 % WARPS;
}

/* Barrier 0 is __syncthreads'. */
static __device__ void team_sync(void)
{
    asm volatile("bar.sync %0, %1;" ::"r"((int)threadIdx.x / THREADS + 1), "n"((int)THREADS) : "memory");
}

static __device__ bool team_any(bool x)
{
    int any;
    asm volatile("{\n.reg .pred p, q;\n"
                 "setp.ne.s32 p, %1, 0;\n"
                 "bar.red.or.pred q, %2, %3, p;\n"
                 "selp.s32 %0, 1, 0, q;\n}"
                 : "=r"(any)
                 : "r"((int)x), "r"((int)threadIdx.x / THREADS + 1), "n"((int)THREADS)
                 : "memory");
    return any != 0;
}

/* An element of the rows' arrays. Not by way of the L1 cache, which may be older than the pass: they are read
 * ahead of launch_wait. */
static __device__ int row_int(const int *p)
{
    return __ldcg(p);
}

static __device__ unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

/* 16 bytes, or zeros and no read; to an address in shared memory. */
static __device__ void copy_async(unsigned to, const void *from, bool real)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0)
                 : "memory");
}

static __device__ void copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int PENDING> static __device__ void copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

static __device__ unsigned pack(float low, float high)
{
    unsigned u;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low));
    return u;
}

static __device__ float low_of(unsigned u)
{
    return __uint_as_float(u << 16);
}

static __device__ float high_of(unsigned u)
{
    return __uint_as_float(u & 0xffff0000u);
}

/* Two E4M3 as two bf16. */
static __device__ unsigned widen(unsigned two)
{
    unsigned half;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(half) : "h"((unsigned short)two));
    return pack(__half2float(__ushort_as_half((unsigned short)half)),
                __half2float(__ushort_as_half((unsigned short)(half >> 16))));
}

static __device__ uint4 widen_eight(unsigned low, unsigned high)
{
    return make_uint4(widen(low), widen(low >> 16), widen(high), widen(high >> 16));
}

template <int DIM, int TILES, bool FP8>
static __device__ void list_cells(struct shared<DIM, TILES, FP8> *sh, const struct job *j, int begin)
{
    const int p = begin + member();
    if (member() < BLOCK)
        sh->cell[member()] = p > j->last ? -1 : p < j->base ? p : row_int(j->path + (p - j->base));
}

/* A team's block is copied in pieces of 16 bytes, thread by thread: a thread has the same piece of every
 * THREADS / KEY th key. */
template <int DIM, bool FP8> struct pieces {
    enum {
        SIZE = FP8 ? 1 : 2,
        KEY = DIM * SIZE / 16,
        EACH = BLOCK * KEY / THREADS,
        PITCH = FP8 ? DIM : (DIM + PAD) * 2 /* bytes from key to key where they arrive */
    };
};

/* Where byte `at` of a key arrives. */
template <int DIM, int TILES, bool FP8>
static __device__ void *cells_place(struct shared<DIM, TILES, FP8> *sh, int which, int key, int at)
{
    return FP8 ? (void *)(sh->raw[which] + key * DIM + at) : (void *)&sh->cells[which][key][at / 2];
}

/* Those of the listed cells that lie in [from, to). */
template <int DIM, int TILES, bool FP8>
static __device__ void request(struct shared<DIM, TILES, FP8> *sh, const struct view *a, const struct job *j,
                               int which, int from, int to)
{
    enum { KEY = pieces<DIM, FP8>::KEY, EACH = pieces<DIM, FP8>::EACH, STEP = THREADS / KEY };
    const int row = a->dim * pieces<DIM, FP8>::SIZE, first = member() / KEY, at = member() % KEY * 16;
    const size_t head = (size_t)(j->slot * a->kv_heads + j->kv_head) * (unsigned)a->cap;
    const char *cells = (const char *)a->cells[which] + head * (unsigned)row + at;
    const unsigned place = shared_address(cells_place(sh, which, first, at));
    if (at >= row)
        return;
#pragma unroll(EACH < 4 ? EACH : 4) /* more would be fetched slower than it runs */
    for (int i = 0; i < EACH; i++) {
        const int cell = sh->cell[first + i * STEP];
        if (cell >= from && cell < to)
            copy_async(place + (unsigned)(i * STEP * pieces<DIM, FP8>::PITCH),
                       cells + (unsigned long long)(unsigned)max(cell, 0) * (unsigned)row, cell >= 0);
    }
}

template <int DIM, int TILES, bool FP8>
static __device__ void request_both(struct shared<DIM, TILES, FP8> *sh, const struct view *a,
                                    const struct job *j, int from, int to)
{
#pragma unroll 1
    for (int which = KEYS; which <= VALUES; which++) {
        request(sh, a, j, which, from, to);
        copy_commit();
    }
}

/* All requests but the latest are there for the whole team. */
template <int DIM, int TILES, bool FP8>
static __device__ void arrive(struct shared<DIM, TILES, FP8> *sh, const struct view *a, int which)
{
    copy_wait<1>();
    if (FP8) {
        enum { KEY = pieces<DIM, true>::KEY, EACH = pieces<DIM, true>::EACH };
#pragma unroll 1 /* more would spill beside four m tiles */
        for (int i = 0; i < EACH; i++) {
            const int piece = i * THREADS + member(), key = piece / KEY, at = piece % KEY * 16;
            if (at < a->dim) {
                const uint4 raw = *(const uint4 *)(sh->raw[which] + key * DIM + at);
                uint4 *to = (uint4 *)&sh->cells[which][key][at];
                to[0] = widen_eight(raw.x, raw.y);
                to[1] = widen_eight(raw.z, raw.w);
            }
        }
    }
    team_sync();
}

/* Who sees what, and zeros in the columns that head_dim leaves free. */
template <int DIM, int TILES, bool FP8>
static __device__ void list_rows(struct shared<DIM, TILES, FP8> *sh, const struct view *a,
                                 const struct job *j)
{
    static_assert(16 * TILES <= THREADS && THREADS == 2 * BLOCK, "a thread a pair, a thread a cell");
    if (member() < 16 * TILES) {
        const int row = j->first + min(pair_row(a, member()), j->count - 1);
        const int slot = row_int(a->slot + row), pos = row_int(a->pos + row);
        sh->last[member()] = member() < j->count * a->group && slot >= 0 ? pos : -1;
    }
#pragma unroll 1
    for (int d = a->dim; d < DIM; d += 2)
        *(unsigned *)&sh->cells[member() / BLOCK][member() % BLOCK][d] = 0;
}

/* Four components of q as two times four bf16. */
template <int DIM, int TILES, bool FP8>
static __device__ void put_query(struct shared<DIM, TILES, FP8> *sh, int row, int d, float4 q)
{
    const uint2 high = make_uint2(pack(q.x, q.y), pack(q.z, q.w));
    const uint2 low = make_uint2(pack(__fsub_rn(q.x, low_of(high.x)), __fsub_rn(q.y, high_of(high.x))),
                                 pack(__fsub_rn(q.z, low_of(high.y)), __fsub_rn(q.w, high_of(high.y))));
    *(uint2 *)&sh->q[0][row][d] = high;
    *(uint2 *)&sh->q[1][row][d] = low;
}

/* Both parts of q, and the block's cells from `late` on, between the loads and what needs them: this is what
 * waits for the kernel before. Pairs past the last stay what they are: nothing of a row of an m tile reaches
 * another row, and theirs see no position. */
template <int DIM, int TILES, bool FP8>
static __device__ void load_queries(struct shared<DIM, TILES, FP8> *sh, const struct view *a,
                                    const struct job *j, int late)
{
    enum { STEP = THREADS / (DIM / 4), FLIGHT = TILES == 1 ? 4 : 8 };
    const int live = j->count * a->group, d = member() % (DIM / 4) * 4;
    const int pitch = (a->heads + 2 * a->kv_heads) * a->dim;
    const float *from = a->qkv + (size_t)j->first * (unsigned)pitch + (j->kv_head * a->group * a->dim + d);
#pragma unroll 1
    for (int done = 0; done < live; done += STEP * FLIGHT) {
        const int first = done + member() / (DIM / 4);
        float4 q[FLIGHT];
#pragma unroll
        for (int i = 0; i < FLIGHT; i++) {
            const int pair = first + i * STEP, at = pair_row(a, pair) * pitch + pair_head(a, pair) * a->dim;
            q[i] = pair < live && d < a->dim ? *(const float4 *)(from + at) : make_float4(0, 0, 0, 0);
        }
        if (done == 0 && late < INT_MAX)
            request_both(sh, a, j, late, INT_MAX);
#pragma unroll
        for (int i = 0; i < FLIGHT; i++)
            if (first + i * STEP < live)
                put_query(sh, first + i * STEP, d, q[i]);
    }
}
#endif
