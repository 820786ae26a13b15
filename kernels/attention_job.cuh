/* attention_job: what a team of the attention kernels computes: rows of one kv head over a range of
 * positions, block by block of 64 keys. The order of all sums is stated in kernels/attention.cu, which alone
 * includes this. */
#ifndef KERNELS_ATTENTION_JOB_CUH
#define KERNELS_ATTENTION_JOB_CUH
#include "kernels/act.h"
#include "kernels/attention_cells.cuh"
#include "kernels/launch.cuh"
#include "kernels/norm.cuh"
#include <math_constants.h>

/* A warp's share of m tiles, in accumulator order: element e of a thread is row lane / 4 + 8 * (e / 2),
 * column lane % 4 * 2 + e % 2. */
template <int DIM, int TILES> struct part {
    float o[TILES][DIM / 32][4]; /* columns warp * DIM / 4 + [0, DIM / 4) */
    float m[TILES][2], l[TILES][2];
};

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

/* One m tile against the warp's 16 keys: two column tiles. */
template <int DIM, int TILES, bool FP8>
static __device__ void multiply_keys(const struct shared<DIM, TILES, FP8> *sh, int tile, float s[2][4])
{
    const int lane = threadIdx.x % 32, keys = team_warp() * WARP_KEYS;
    float high[2][4] = {{0}}, low[2][4] = {{0}};
#pragma unroll(TILES == 4 ? DIM / 16 : 2) /* few: code that runs once is fetched slower than it runs */
    for (int d = 0; d < DIM; d += 16) {
        unsigned q[4], k[4];
        load_fragment(k, &sh->cells[KEYS][keys + lane / 16 * 8 + lane % 8][d + lane / 8 % 2 * 8]);
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
template <int DIM, int TILES, bool FP8>
static __device__ void score(struct shared<DIM, TILES, FP8> *sh, const struct view *a, int tile, int begin,
                             float s[2][4])
{
    const int lane = threadIdx.x % 32, warp = team_warp();
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
template <int DIM, int TILES, bool FP8>
static __device__ void weigh(struct shared<DIM, TILES, FP8> *sh, struct part<DIM, TILES> *c, int tile,
                             float s[2][4])
{
    const int lane = threadIdx.x % 32, warp = team_warp();
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
template <int DIM, int TILES, bool FP8>
static __device__ void add_values(const struct shared<DIM, TILES, FP8> *sh, struct part<DIM, TILES> *c,
                                  int live)
{
    const int lane = threadIdx.x % 32, columns = team_warp() * (DIM / 4);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = tile * 16 + half * 8 + lane / 4;
            if (TILES == 1 || tile * 16 < live)
                c->l[tile][half] =
                    __fadd_rn(c->l[tile][half], __fadd_rn(__fadd_rn(sh->sum[0][row], sh->sum[1][row]),
                                                          __fadd_rn(sh->sum[2][row], sh->sum[3][row])));
        }
#pragma unroll(TILES == 1 ? 2 : 1)
    for (int key = 0; key < BLOCK; key += 16) {
        unsigned v[DIM / 64][4], p[4];
#pragma unroll
        for (int n = 0; n < DIM / 64; n++)
            load_fragment_transposed(v[n],
                                     &sh->cells[VALUES][key + lane % 16][columns + n * 16 + lane / 16 * 8]);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            if (TILES > 1 && tile * 16 >= live)
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

static __device__ bool is_special(unsigned two) /* of two bf16 one is an infinity or a NaN */
{
    return (two & 0x7f80u) == 0x7f80u || (two & 0x7f800000u) == 0x7f800000u;
}

/* Whether this thread finds one among its values. */
template <int DIM> static __device__ bool has_special(const bf16 (*v)[DIM + PAD])
{
    bool found = false;
#pragma unroll 2
    for (int i = member(); i < BLOCK * DIM / 8; i += THREADS) {
        const uint4 x = *(const uint4 *)&v[i / (DIM / 8)][i % (DIM / 8) * 8];
        found |= is_special(x.x) || is_special(x.y) || is_special(x.z) || is_special(x.w);
    }
    return found;
}

/* A new job: queries, and keys and values of the block at `begin` on their way. Cells below `old` hold what
 * no kernel still running writes; they are requested ahead of launch_wait. */
template <int DIM, int TILES, bool FP8>
static __device__ void start(struct shared<DIM, TILES, FP8> *sh, const struct view *a, const struct job *j,
                             int begin, int old)
{
    const bool late = begin + BLOCK > min(old, j->base);
    list_rows(sh, a, j);
    list_cells(sh, j, begin);
    team_sync();
    request_both(sh, a, j, -1, old);
    if (old < INT_MAX)
        launch_wait();
    load_queries(sh, a, j, late ? old : INT_MAX);
}

/* Positions [begin, end) of one chunk into c; the block at `begin` has been requested, and that at `next` is
 * when this returns, unless it is negative. False: a value that some row of the job must not see is not
 * finite, and would reach it as 0 * NaN; the rows have to go alone. Positions below `common` are seen by all
 * rows. */
template <int DIM, int TILES, bool FP8>
static __device__ bool attend(struct shared<DIM, TILES, FP8> *sh, const struct view *a, const struct job *j,
                              int begin, int end, int next, int common, struct part<DIM, TILES> *c)
{
    const int live = j->count * a->group;
    part_clear(c);
    for (; begin < end; begin += BLOCK) {
        const int after = begin + BLOCK < end ? begin + BLOCK : next;
        float s[TILES][2][4];
        arrive(sh, a, KEYS);
        if (after >= 0)
            list_cells(sh, j, after);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            if (TILES == 1 || tile * 16 < live)
                score(sh, a, tile, begin, s[tile]);
        team_sync();
        if (after >= 0)
            request(sh, a, j, KEYS, -1, INT_MAX);
        copy_commit();
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            if (TILES == 1 || tile * 16 < live)
                weigh(sh, c, tile, s[tile]);
        arrive(sh, a, VALUES);
        if (j->count > 1 && begin + BLOCK > common && team_any(has_special<DIM>(sh->cells[VALUES]))) {
            copy_wait<0>();
            return false;
        }
        add_values(sh, c, live);
        team_sync();
        if (after >= 0)
            request(sh, a, j, VALUES, -1, INT_MAX);
        copy_commit();
    }
    return true;
}

/* Elements i, i + 1 of a row. Adding 0 turns -0 into 0: the sign of a sum of nothing is not the row's. */
static __device__ void store_y(const struct view *a, int row, int i, float o0, float o1, float inverse)
{
    const unsigned low = norm_act(__fadd_rn(__fmul_rn(o0, inverse), 0.0f), a->y_form),
                   high = norm_act(__fadd_rn(__fmul_rn(o1, inverse), 0.0f), a->y_form);
    *(unsigned *)(a->y + act_at(row, i, a->heads * a->dim)) = low | high << 16;
}

/* What has been folded of a job's rows, to y. */
template <int DIM, int TILES>
static __device__ void store_job(const struct view *a, const struct job *j, const struct part<DIM, TILES> *c)
{
    const int lane = threadIdx.x % 32, warp = team_warp();
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        const int pair = i * 8 + lane / 4;
        if (pair >= j->count * a->group)
            continue;
        const int row = j->first + pair_row(a, pair), head = j->kv_head * a->group + pair_head(a, pair);
        const float inverse = __frcp_rn(c->l[i / 2][i % 2]);
#pragma unroll
        for (int n = 0; n < DIM / 32; n++) {
            const int d = warp * (DIM / 4) + n * 8 + lane % 4 * 2;
            const float *o = &c->o[i / 2][n][i % 2 * 2];
            if (d < a->dim)
                store_y(a, row, head * a->dim + d, o[0], o[1], inverse);
        }
    }
}

/* A chunk's result of a row and head: (m, l), and o from some column on. */
struct result {
    float *o;
    float2 *stat;
};

/* A chunk's results to where TO says, by pieces of PIECE columns: a warp's columns lie in one of them. */
enum { PIECE = 64 };

template <int DIM, int TILES, class TO>
static __device__ void store(const struct view *a, const struct job *j, int chunk, const TO *to,
                             const struct part<DIM, TILES> *c)
{
    const int lane = threadIdx.x % 32, column = team_warp() * (DIM / 4), d = column % PIECE + lane % 4 * 2,
              piece = column / PIECE;
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        const int pair = i * 8 + lane / 4;
        if (pair >= j->count * a->group)
            continue;
        const struct result r = result_of(a, to, j, pair, piece, chunk);
        if (d == 0)
            *r.stat = make_float2(c->m[i / 2][i % 2], c->l[i / 2][i % 2]);
#pragma unroll
        for (int n = 0; n < DIM / 32; n++)
            if (piece * PIECE + d + n * 8 < a->dim)
                *(float2 *)(r.o + d + n * 8) =
                    make_float2(c->o[i / 2][n][i % 2 * 2], c->o[i / 2][n][i % 2 * 2 + 1]);
    }
}
#endif
