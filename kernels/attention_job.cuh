/* attention_job: what a block of the attention kernels computes: rows of one kv head over a range of
 * positions, block by block of 64 keys. The order of all sums is stated in kernels/attention.cu, which alone
 * includes this. */
#ifndef KERNELS_ATTENTION_JOB_CUH
#define KERNELS_ATTENTION_JOB_CUH
#include "kernels/act.h"
#include "kernels/attention.h"
#include <math_constants.h>

enum { BLOCK = 64, WARPS = 4, THREADS = 32 * WARPS, WARP_KEYS = BLOCK / WARPS, PAD = 8, SPLIT_ROWS = 64 };
enum {
    SHORT_END = 2048,
    MIDDLE = 256,
    MIDDLE_END = 8192,
    LONG = 1024
}; /* chunks of BLOCK, then MIDDLE, then LONG positions */
enum { SHORTS = SHORT_END / BLOCK, MIDDLES = (MIDDLE_END - SHORT_END) / MIDDLE };

/* What kernels need of struct attention and its rows, by value. */
struct view {
    const int *slot, *pos, *base, *path_off, *path;
    const float *qkv;
    const bf16 *k, *v;
    bf16 *y;
    float *o;     /* [rows][heads][chunks][dim] */
    float2 *stat; /* [rows][heads][chunks], (m, l) */
    int n, heads, kv_heads, group, dim, cap, chunks;
    float scale; /* to units of log2 */
};

/* Rows [first, first + count) over the positions up to `last`; several rows share a job where their cells are
 * the positions. */
struct job {
    int first, count, kv_head, slot, base, last;
    const int *path; /* cells of positions base.. */
};

/* Rows of m tiles are the pairs (row, head), heads fastest. PAD keeps the eight rows that ldmatrix reads at
 * once in different banks. */
template <int DIM, int TILES> struct shared {
    bf16 k[BLOCK][DIM + PAD], v[BLOCK][DIM + PAD];
    bf16 q[2][16 * TILES][DIM + PAD]; /* high and low part */
    bf16 p[16 * TILES][BLOCK + PAD];
    float max[WARPS][16 * TILES], sum[WARPS][16 * TILES];
    int last[16 * TILES]; /* last position that the row sees, -1: no row */
};

/* A warp's share of m tiles, in accumulator order: element e of a thread is row lane / 4 + 8 * (e / 2),
 * column lane % 4 * 2 + e % 2. */
template <int DIM, int TILES> struct part {
    float o[TILES][DIM / 32][4]; /* columns warp * DIM / 4 + [0, DIM / 4) */
    float m[TILES][2], l[TILES][2];
};

static __host__ __device__ int chunk_begin(int chunk)
{
    if (chunk <= SHORTS)
        return chunk * BLOCK;
    if (chunk <= SHORTS + MIDDLES)
        return SHORT_END + (chunk - SHORTS) * MIDDLE;
    return MIDDLE_END + (chunk - SHORTS - MIDDLES) * LONG;
}

static __host__ __device__ int chunk_of(int position)
{
    if (position < SHORT_END)
        return position / BLOCK;
    if (position < MIDDLE_END)
        return SHORTS + (position - SHORT_END) / MIDDLE;
    return SHORTS + MIDDLES + (position - MIDDLE_END) / LONG;
}

static __device__ unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

/* 16 bytes, or zeros and no read. */
static __device__ void copy_async(bf16 *to, const bf16 *from, bool real)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(real ? 16 : 0)
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

static __device__ void load_fragment(unsigned f[4], const bf16 *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                 : "r"(shared_address(p))
                 : "memory");
}

static __device__ void load_fragment_transposed(unsigned f[4], const bf16 *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                 : "r"(shared_address(p))
                 : "memory");
}

static __device__ void multiply(float c[4], const unsigned a[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ float exp2_fast(float x) /* relative error 2^-22, exact at 0, 0 below 2^-126 */
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
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

/* How what was summed under maximum `before` and a chunk (m, l) are weighed under the larger of the two. A
 * chunk without weight changes nothing; the walk meets them, the merge does not. */
static __device__ float2 fold_weights(float before, float m, float l)
{
    const float now = fmaxf(before, m);
    return l == 0.0f ? make_float2(1, 0)
                     : make_float2(exp2_fast(__fsub_rn(before, now)), exp2_fast(__fsub_rn(m, now)));
}

static __device__ float fold(float sum, float value, float2 weights)
{
    return __fmaf_rn(sum, weights.x, __fmul_rn(value, weights.y));
}

/* Elements i, i + 1 of a row. Adding 0 turns -0 into 0: the sign of a sum of nothing is not the row's. */
static __device__ void store_y(const struct view *a, int row, int i, float o0, float o1, float inverse)
{
    const unsigned u = pack(__fadd_rn(__fmul_rn(o0, inverse), 0.0f), __fadd_rn(__fmul_rn(o1, inverse), 0.0f));
    *(unsigned *)(a->y + act_at(row, i, a->heads * a->dim)) = u;
}

/* Keys or values of positions [begin, begin + BLOCK), zeros past the job's last. */
template <int DIM>
static __device__ void load_block(bf16 (*to)[DIM + PAD], const bf16 *from, const struct view *a,
                                  const struct job *j, int begin)
{
    const bf16 *head =
        from + ((size_t)j->slot * (size_t)a->kv_heads + (size_t)j->kv_head) * (size_t)a->cap * (size_t)a->dim;
#pragma unroll 4 /* all at once keeps more addresses than there are registers */
    for (int i = 0; i < BLOCK * DIM / 8 / THREADS; i++) {
        const int piece = i * THREADS + (int)threadIdx.x, key = piece / (DIM / 8), d = piece % (DIM / 8) * 8,
                  p = begin + key;
        if (d < a->dim) {
            const int cell = p > j->last ? 0 : p < j->base ? p : j->path[p - j->base];
            copy_async(&to[key][d], head + (size_t)cell * (size_t)a->dim + d, p <= j->last);
        }
    }
    copy_commit();
}

/* Both parts of q, who sees what, and zeros in the columns that head_dim leaves free. */
template <int DIM, int TILES>
static __device__ void load_queries(struct shared<DIM, TILES> *sh, const struct view *a, const struct job *j)
{
    const int live = j->count * a->group;
    for (int i = (int)threadIdx.x; i < 16 * TILES; i += THREADS)
        sh->last[i] = i < live ? a->pos[j->first + i / a->group] : -1;
    for (int i = (int)threadIdx.x; i < 16 * TILES * DIM / 2; i += THREADS) {
        const int row = i / (DIM / 2), d = i % (DIM / 2) * 2;
        float2 q = make_float2(0, 0);
        if (row < live && d < a->dim) {
            const size_t head = (size_t)(j->first + row / a->group) * (size_t)(a->heads + 2 * a->kv_heads) +
                                (size_t)(j->kv_head * a->group + row % a->group);
            q = *(const float2 *)(a->qkv + head * (size_t)a->dim + d);
        }
        const unsigned high = pack(q.x, q.y);
        *(unsigned *)&sh->q[0][row][d] = high;
        *(unsigned *)&sh->q[1][row][d] = pack(__fsub_rn(q.x, low_of(high)), __fsub_rn(q.y, high_of(high)));
    }
    const int spare = (DIM - a->dim) / 2;
    for (int i = (int)threadIdx.x; i < BLOCK * spare; i += THREADS) {
        *(unsigned *)&sh->k[i / spare][a->dim + i % spare * 2] = 0;
        *(unsigned *)&sh->v[i / spare][a->dim + i % spare * 2] = 0;
    }
}

/* One m tile against the warp's 16 keys: two column tiles. */
template <int DIM, int TILES>
static __device__ void multiply_keys(const struct shared<DIM, TILES> *sh, int tile, float s[2][4])
{
    const int lane = threadIdx.x % 32, keys = threadIdx.x / 32 * WARP_KEYS;
    float high[2][4] = {{0}}, low[2][4] = {{0}};
#pragma unroll
    for (int d = 0; d < DIM; d += 16) {
        unsigned q[4], k[4];
        load_fragment(k, &sh->k[keys + lane / 16 * 8 + lane % 8][d + lane / 8 % 2 * 8]);
        load_fragment(q, &sh->q[0][tile * 16 + lane % 16][d + lane / 16 * 8]);
        multiply(high[0], q, k[0], k[1]);
        multiply(high[1], q, k[2], k[3]);
        load_fragment(q, &sh->q[1][tile * 16 + lane % 16][d + lane / 16 * 8]);
        multiply(low[0], q, k[0], k[1]);
        multiply(low[1], q, k[2], k[3]);
    }
#pragma unroll
    for (int e = 0; e < 8; e++)
        s[e / 4][e % 4] = __fadd_rn(high[e / 4][e % 4], low[e / 4][e % 4]);
}

/* Scaled scores, -infinity where a row does not see, and their maximum over the warp's keys. */
template <int DIM, int TILES>
static __device__ void score(struct shared<DIM, TILES> *sh, const struct view *a, int tile, int begin,
                             float s[2][4])
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    multiply_keys(sh, tile, s);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = tile * 16 + half * 8 + lane / 4, last = sh->last[row];
        float max = -CUDART_INF_F;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int p = begin + warp * WARP_KEYS + i / 2 * 8 + lane % 4 * 2 + i % 2;
            float *x = &s[i / 2][half * 2 + i % 2];
            *x = p <= last ? __fmul_rn(*x, a->scale) : -CUDART_INF_F;
            max = fmaxf(max, *x);
        }
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
        max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
        if (lane % 4 == 0)
            sh->max[warp][row] = max;
    }
}

/* Scores become weights under the new maximum; what was summed so far is brought under it. */
template <int DIM, int TILES>
static __device__ void weigh(struct shared<DIM, TILES> *sh, struct part<DIM, TILES> *c, int tile,
                             float s[2][4])
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = tile * 16 + half * 8 + lane / 4;
        const float block =
            fmaxf(fmaxf(sh->max[0][row], sh->max[1][row]), fmaxf(sh->max[2][row], sh->max[3][row]));
        const float m = fmaxf(c->m[tile][half], block), under = m == -CUDART_INF_F ? 0.0f : m;
        const float old = exp2_fast(__fsub_rn(c->m[tile][half], under));
        float sum[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const unsigned p = pack(exp2_fast(__fsub_rn(s[j][half * 2], under)),
                                    exp2_fast(__fsub_rn(s[j][half * 2 + 1], under)));
            *(unsigned *)&sh->p[row][warp * WARP_KEYS + j * 8 + lane % 4 * 2] = p;
            sum[j] = __fadd_rn(low_of(p), high_of(p));
        }
        float l = __fadd_rn(sum[0], sum[1]);
        l = __fadd_rn(l, __shfl_xor_sync(0xffffffffu, l, 1));
        l = __fadd_rn(l, __shfl_xor_sync(0xffffffffu, l, 2));
        if (lane % 4 == 0)
            sh->sum[warp][row] = l;
        c->m[tile][half] = m;
        c->l[tile][half] = __fmul_rn(c->l[tile][half], old);
#pragma unroll
        for (int n = 0; n < DIM / 32; n++) {
            c->o[tile][n][half * 2] = __fmul_rn(c->o[tile][n][half * 2], old);
            c->o[tile][n][half * 2 + 1] = __fmul_rn(c->o[tile][n][half * 2 + 1], old);
        }
    }
}

/* All keys of the block against the warp's columns of v. */
template <int DIM, int TILES>
static __device__ void add_values(const struct shared<DIM, TILES> *sh, struct part<DIM, TILES> *c, int live)
{
    const int lane = threadIdx.x % 32, columns = threadIdx.x / 32 * (DIM / 4);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = tile * 16 + half * 8 + lane / 4;
            if (tile * 16 < live)
                c->l[tile][half] =
                    __fadd_rn(c->l[tile][half], __fadd_rn(__fadd_rn(sh->sum[0][row], sh->sum[1][row]),
                                                          __fadd_rn(sh->sum[2][row], sh->sum[3][row])));
        }
#pragma unroll
    for (int key = 0; key < BLOCK; key += 16) {
        unsigned v[DIM / 64][4], p[4];
#pragma unroll
        for (int n = 0; n < DIM / 64; n++)
            load_fragment_transposed(v[n], &sh->v[key + lane % 16][columns + n * 16 + lane / 16 * 8]);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            if (tile * 16 >= live)
                break;
            load_fragment(p, &sh->p[tile * 16 + lane % 16][key + lane / 16 * 8]);
#pragma unroll
            for (int n = 0; n < DIM / 64; n++) {
                multiply(c->o[tile][n * 2], p, v[n][0], v[n][1]);
                multiply(c->o[tile][n * 2 + 1], p, v[n][2], v[n][3]);
            }
        }
    }
}

template <int DIM, int TILES> static __device__ void part_clear(struct part<DIM, TILES> *c)
{
#pragma unroll
    for (int i = 0; i < TILES * DIM / 8; i++)
        c->o[i / (DIM / 8)][i / 4 % (DIM / 32)][i % 4] = 0;
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        c->m[i / 2][i % 2] = -CUDART_INF_F;
        c->l[i / 2][i % 2] = 0;
    }
}

template <int DIM, int TILES>
static __device__ void part_fold(struct part<DIM, TILES> *all, const struct part<DIM, TILES> *c)
{
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        const int tile = i / 2, half = i % 2;
        const float2 w = fold_weights(all->m[tile][half], c->m[tile][half], c->l[tile][half]);
        all->m[tile][half] = fmaxf(all->m[tile][half], c->m[tile][half]);
        all->l[tile][half] = fold(all->l[tile][half], c->l[tile][half], w);
#pragma unroll
        for (int n = 0; n < DIM / 16; n++) {
            float *o = &all->o[tile][n / 2][half * 2 + n % 2];
            *o = fold(*o, c->o[tile][n / 2][half * 2 + n % 2], w);
        }
    }
}

/* Whether this thread finds an infinity or a NaN among its values. */
template <int DIM> static __device__ bool has_special(const bf16 (*v)[DIM + PAD])
{
    bool found = false;
    for (int i = (int)threadIdx.x; i < BLOCK * DIM; i += THREADS)
        found |= (v[i / DIM][i % DIM] & 0x7f80) == 0x7f80;
    return found;
}

/* Positions [begin, end) of a job into c, begin at a block. With `all` chunks are folded into it as they end.
 * False: a value that some row of the job must not see is not finite, and would reach it as 0 * NaN; the rows
 * have to go alone. Positions below `common` are seen by all rows. */
template <int DIM, int TILES>
static __device__ bool attend(struct shared<DIM, TILES> *sh, const struct view *a, const struct job *j,
                              int begin, int end, int common, struct part<DIM, TILES> *c,
                              struct part<DIM, TILES> *all)
{
    const int live = j->count * a->group;
    __syncthreads();
    load_block<DIM>(sh->k, a->k, a, j, begin);
    load_block<DIM>(sh->v, a->v, a, j, begin);
    load_queries(sh, a, j);
    for (; begin < end; begin += BLOCK) {
        float s[TILES][2][4];
        const bool more = begin + BLOCK < end;
        if (begin == chunk_begin(chunk_of(begin)))
            part_clear(c);
        copy_wait<1>();
        __syncthreads();
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            if (tile * 16 < live)
                score(sh, a, tile, begin, s[tile]);
        __syncthreads();
        if (more)
            load_block<DIM>(sh->k, a->k, a, j, begin + BLOCK);
        else
            copy_commit();
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            if (tile * 16 < live)
                weigh(sh, c, tile, s[tile]);
        copy_wait<1>();
        __syncthreads();
        if (j->count > 1 && begin + BLOCK > common && __syncthreads_or(has_special<DIM>(sh->v))) {
            copy_wait<0>();
            return false;
        }
        add_values(sh, c, live);
        __syncthreads();
        if (more)
            load_block<DIM>(sh->v, a->v, a, j, begin + BLOCK);
        else
            copy_commit();
        if (all && (!more || begin + BLOCK == chunk_begin(chunk_of(begin) + 1)))
            part_fold(all, c);
    }
    copy_wait<0>();
    return true;
}
#endif
