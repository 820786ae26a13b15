/* attention_bulk: causal attention of a long prefill pass, one kernel. A block takes 128 pairs (row, head) of
 * one kv head, heads fastest, so that the heads that share keys share their loads and the diagonal is narrow;
 * it walks the keys in tiles of 64 from position 0 to its last row's, the next tile on its way while one is
 * multiplied. Scores, weights and the maximum stay in registers (online softmax: Dao, arXiv 2307.08691).
 * A warp takes 32 pairs: with 16 the fragments of keys and values would cost shared memory more time than the
 * tensor cores need for them.
 *
 * Where a model attends in chunks (struct attention) all pairs of a block lie in one chunk, and its positions
 * count from the chunk's first: no tile holds a key that some row is past seeing.
 *
 * launch   grid [kv_heads, ceil(rows * group / 128)], longest rows first, with chunks a few more; block 128,
 * two blocks an SM up to head_dim 128; shared 103 KB (head_dim 128), 53 KB (64). head_dim 129..256: 64 pairs,
 * 169 KB
 *
 * math     q and weights rounded to bf16, f32 sums; a tile's weights are relative to the largest score so
 * far, exponentials in units of log2; keys ascending, tiles at multiples of 64 positions
 *
 * moves    per block 4 * head_dim bytes a position (2 of FP8 cells, which become bf16 in shared memory)
 *
 * roof     tensor cores: 4 * head_dim flops a pair and visible key; mma.sync reaches about two thirds of what
 * sm_90 can with its own instructions; 256 products cost a warp 64 fragment loads of 512 bytes and 64
 * exponentials a thread */
#include "kernels/bulk.h"
#include "kernels/cuda.h"
#include "kernels/launch.cuh"
#include <cuda_fp16.h>
#include <math_constants.h>

enum { KEYS = 64, WARPS = 4, THREADS = 32 * WARPS, PAD = 8 };

struct view {
    const int *slot, *pos;
    const float *qkv;
    const void *k, *v;
    bf16 *y;
    int n, heads, kv_heads, group, dim, cap;
    float scale; /* to units of log2 */
    int chunk;   /* struct attention's if rows may be past the first of them, or 0 */
};

/* What a block computes. It waits in shared memory: registers are all taken. */
struct job {
    size_t cells;     /* bytes before its head's cell of position 0 */
    int first, pairs; /* its first pair, the end of those that it may take */
    int start, last,
        clear; /* position of row 0; the last that any pair sees; every pair sees those up to clear */
    int kv_head;
};

/* PAD puts the eight rows that ldmatrix reads at once in different banks. Bf16 cells have two buffers; FP8
 * cells wait in `raw`, which is free again once they are converted. */
template <int DIM, bool FP8> struct shared {
    enum { TILES = DIM <= 128 ? 2 : 1, ROWS = WARPS * 16 * TILES, STRIDE = DIM + PAD, BUFFERS = FP8 ? 1 : 2 };
    bf16 q[ROWS][STRIDE];
    bf16 k[BUFFERS][KEYS][STRIDE], v[BUFFERS][KEYS][STRIDE];
    uint8_t raw[FP8 ? 2 : 1][FP8 ? KEYS * DIM : 16]; /* keys, values */
    struct job job;
};

/* A warp's share, in accumulator order: element e of a thread is row lane / 4 + 8 * (e / 2) of its m tile,
 * column lane % 4 * 2 + e % 2 of the n tile. Maxima are of unscaled scores. */
template <int DIM, int TILES> struct part {
    float o[TILES][DIM / 8][4];
    float m[TILES][2], l[TILES][2];
};

static __device__ unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

/* 16 bytes, or zeros and no read. */
static __device__ void copy_async(void *to, const void *from, bool real)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(real ? 16 : 0)
                 : "memory");
}

static __device__ void copy_wait(void)
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

static __device__ void load_fragment(unsigned f[4], unsigned at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                 : "r"(at)
                 : "memory");
}

static __device__ void load_fragment_transposed(unsigned f[4], unsigned at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                 : "r"(at)
                 : "memory");
}

static __device__ void multiply(float c[4], const unsigned a[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ float exp2_fast(float x) /* relative error 2^-22, 0 below 2^-126 */
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

/* Two E4M3 as two bf16, which hold them exactly. */
static __device__ unsigned widen(unsigned short two)
{
    unsigned half;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(half) : "h"(two));
    return pack(__half2float(__ushort_as_half((unsigned short)(half & 0xffffu))),
                __half2float(__ushort_as_half((unsigned short)(half >> 16))));
}

static __device__ uint4 widen_eight(unsigned low, unsigned high)
{
    return make_uint4(widen((unsigned short)(low & 0xffffu)), widen((unsigned short)(low >> 16)),
                      widen((unsigned short)(high & 0xffffu)), widen((unsigned short)(high >> 16)));
}

/* Cells [begin, begin + KEYS) of one head, rows of `dim` cells SIZE bytes each to rows of STRIDE bytes; zeros
 * past `last` and in the columns that head_dim leaves free. */
template <int DIM, int SIZE, int STRIDE>
static __device__ void request(void *to, const void *from, int dim, int begin, int last)
{
    enum { PIECES = DIM * SIZE / 16 }; /* a row */
    const char *cells = (const char *)from + (size_t)begin * (size_t)(dim * SIZE);
#pragma unroll(DIM <= 128 ? 8 : 4)
    for (int i = 0; i < KEYS * PIECES / THREADS; i++) {
        const int unit = (int)threadIdx.x + i * THREADS, key = unit / PIECES, at = unit % PIECES * 16;
        const bool real = begin + key <= last && at < dim * SIZE;
        copy_async((char *)to + key * STRIDE + at, real ? cells + key * dim * SIZE + at : cells, real);
    }
}

/* Keys and values of tile t, to buffer t % 2 or to `raw`. */
template <int DIM, bool FP8>
static __device__ void request_tile(struct shared<DIM, FP8> *sh, const struct view *a, int begin)
{
    const char *k = (const char *)a->k + sh->job.cells, *v = (const char *)a->v + sh->job.cells;
    const int last = sh->job.last;
    if (FP8) {
        request<DIM, 1, DIM>(sh->raw[0], k, a->dim, begin, last);
        request<DIM, 1, DIM>(sh->raw[FP8], v, a->dim, begin, last);
    } else {
        enum { STRIDE = shared<DIM, FP8>::STRIDE * (int)sizeof(bf16) };
        request<DIM, 2, STRIDE>(sh->k[FP8 ? 0 : begin / KEYS % 2], k, a->dim, begin, last);
        request<DIM, 2, STRIDE>(sh->v[FP8 ? 0 : begin / KEYS % 2], v, a->dim, begin, last);
    }
}

template <int DIM> static __device__ void convert(bf16 (*to)[DIM + PAD], const uint8_t *raw)
{
#pragma unroll
    for (int i = 0; i < KEYS * DIM / 16 / THREADS; i++) {
        const int unit = ((int)threadIdx.x + i * THREADS) * 16;
        const uint4 cells = *(const uint4 *)(raw + unit);
        uint4 *at = (uint4 *)&to[unit / DIM][unit % DIM];
        at[0] = widen_eight(cells.x, cells.y);
        at[1] = widen_eight(cells.z, cells.w);
    }
}

/* The block's queries as bf16; zeros for pairs that do not exist. */
template <int DIM, int ROWS>
static __device__ void load_queries(bf16 (*to)[DIM + PAD], const struct view *a, const struct job *j)
{
#pragma unroll 4
    for (int i = (int)threadIdx.x; i < ROWS * DIM / 4; i += THREADS) {
        const int at = i / (DIM / 4), d = i % (DIM / 4) * 4, pair = j->first + at;
        float4 q = make_float4(0, 0, 0, 0);
        if (pair < j->pairs && d < a->dim) {
            const size_t head = (size_t)(pair / a->group) * (size_t)(a->heads + 2 * a->kv_heads) +
                                (size_t)(j->kv_head * a->group + pair % a->group);
            q = *(const float4 *)(a->qkv + head * (size_t)a->dim + d);
        }
        *(uint2 *)&to[at][d] = make_uint2(pack(q.x, q.y), pack(q.z, q.w));
    }
}

/* Unscaled scores of the warp's rows against a tile. q, k: shared addresses of the lane's row of the first
 * fragments: row lane % 16, column lane / 16 * 8. */
template <int DIM, int TILES>
static __device__ void score(float s[TILES][KEYS / 8][4], unsigned q, unsigned k)
{
    enum { STRIDE = (DIM + PAD) * (int)sizeof(bf16) };
#pragma unroll
    for (int i = 0; i < TILES * KEYS / 8 * 4; i++)
        s[i / (KEYS / 2)][i / 4 % (KEYS / 8)][i % 4] = 0;
#pragma unroll
    for (int d = 0; d < DIM * 2; d += 32) {
        unsigned a[TILES][4], b[4];
#pragma unroll
        for (int i = 0; i < TILES; i++)
            load_fragment(a[i], q + (unsigned)(i * 16 * STRIDE + d));
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            load_fragment(b, k + (unsigned)(n * 8 * STRIDE + d));
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                multiply(s[i][n], a[i], b[0], b[2]);
                multiply(s[i][n + 1], a[i], b[1], b[3]);
            }
        }
    }
}

/* -infinity where a row does not see a key of the tile that begins at `begin`. */
template <int TILES>
static __device__ void hide(float s[TILES][KEYS / 8][4], const struct job *j, int group, int begin)
{
    const int lane = threadIdx.x % 32, row = (int)threadIdx.x / 32 * 16 * TILES + lane / 4;
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        const int pair = min(j->first + row + i * 8, j->pairs - 1),
                  sees = j->start + pair / group - begin - lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
            s[i / 2][n][i % 2 * 2] = n * 8 <= sees ? s[i / 2][n][i % 2 * 2] : -CUDART_INF_F;
            s[i / 2][n][i % 2 * 2 + 1] = n * 8 + 1 <= sees ? s[i / 2][n][i % 2 * 2 + 1] : -CUDART_INF_F;
        }
    }
}

/* Scores become weights under the new maximum, and what was summed so far is brought under it. Every row sees
 * position 0, so after the first tile a maximum is finite. */
template <int DIM, int TILES>
static __device__ void weigh(struct part<DIM, TILES> *c, float s[TILES][KEYS / 8][4], float scale)
{
    float shrink[TILES][2];
    bool moved = false;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = c->m[i][half], sum = 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
                most = fmaxf(most, fmaxf(s[i][n][half * 2], s[i][n][half * 2 + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            moved |= most > c->m[i][half];
            shrink[i][half] = exp2_fast((c->m[i][half] - most) * scale);
            c->m[i][half] = most;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = half * 2; e < half * 2 + 2; e++) {
                    s[i][n][e] = exp2_fast(fmaf(s[i][n][e], scale, -most * scale));
                    sum += s[i][n][e];
                }
            c->l[i][half] = fmaf(c->l[i][half], shrink[i][half], sum);
        }
    if (!__any_sync(0xffffffffu, moved))
        return;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                c->o[i][n][e] *= shrink[i][e / 2];
}

/* o += weights * values. v: the shared address of the lane's row of the first fragment. */
template <int DIM, int TILES>
static __device__ void add_values(struct part<DIM, TILES> *c, const float s[TILES][KEYS / 8][4], unsigned v)
{
    enum { STRIDE = (DIM + PAD) * (int)sizeof(bf16) };
#pragma unroll
    for (int n = 0; n < KEYS / 8; n += 2) {
        unsigned a[TILES][4], b[4];
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                a[i][e] = pack(s[i][n + e / 2][e % 2 * 2], s[i][n + e / 2][e % 2 * 2 + 1]);
#pragma unroll
        for (int d = 0; d < DIM / 8; d += 2) {
            load_fragment_transposed(b, v + (unsigned)(n * 8 * STRIDE + d * 16));
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                multiply(c->o[i][d], a[i], b[0], b[1]);
                multiply(c->o[i][d + 1], a[i], b[2], b[3]);
            }
        }
    }
}

template <int DIM, int TILES>
static __device__ void store(const struct part<DIM, TILES> *c, const struct view *a, const struct job *j)
{
    const int lane = threadIdx.x % 32, row = (int)threadIdx.x / 32 * 16 * TILES + lane / 4;
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        float l = c->l[i / 2][i % 2];
        l += __shfl_xor_sync(0xffffffffu, l, 1);
        l += __shfl_xor_sync(0xffffffffu, l, 2);
        const int pair = j->first + row + i * 8;
        if (pair >= j->pairs)
            continue;
        const size_t head =
            (size_t)(pair / a->group) * (size_t)a->heads + (size_t)(j->kv_head * a->group + pair % a->group);
        bf16 *y = a->y + head * (size_t)a->dim + lane % 4 * 2;
        const float inverse = 1.0f / l;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
            if (n * 8 < a->dim)
                *(unsigned *)(y + n * 8) =
                    pack(c->o[i / 2][n][i % 2 * 2] * inverse, c->o[i / 2][n][i % 2 * 2 + 1] * inverse);
    }
}

static __host__ __device__ int blocks_of(int pairs, int rows)
{
    return (pairs + rows - 1) / rows;
}

/* Rows [first, first + count) of the pass, which lie in one chunk, and that chunk's first position; `block`
 * is the block's number among theirs. */
struct span {
    int first, count, origin, block;
};

/* Row 0 may lie anywhere in its chunk; those after it are taken whole but the last. Past the last count is
 * not positive. */
template <int ROWS> static __device__ struct span find_span(const struct view *a, int start, int block)
{
    if (a->chunk == 0)
        return (struct span){0, a->n, 0, block};
    const int origin = attention_first(a->chunk, start), count = min(a->n, origin + a->chunk - start),
              blocks = blocks_of(count * a->group, ROWS), whole = blocks_of(a->chunk * a->group, ROWS);
    if (block < blocks)
        return (struct span){0, count, origin, block};
    const int chunk = (block - blocks) / whole, first = count + chunk * a->chunk;
    return (struct span){first, min(a->chunk, a->n - first), origin + (chunk + 1) * a->chunk,
                         (block - blocks) % whole};
}

template <int ROWS> static __device__ struct job find_job(const struct view *a, int size)
{
    const struct span s = find_span<ROWS>(a, a->pos[0], (int)(gridDim.y - 1 - blockIdx.y));
    struct job j;
    j.kv_head = (int)blockIdx.x;
    j.first = s.first * a->group + s.block * ROWS;
    j.pairs = (s.first + s.count) * a->group;
    j.start = a->pos[0] - s.origin;
    j.last = j.start + (min(j.first + ROWS, j.pairs) - 1) / a->group;
    j.clear = j.start + j.first / a->group;
    const size_t cells = ((size_t)a->slot[0] * (size_t)a->kv_heads + (size_t)j.kv_head) * (size_t)a->cap;
    j.cells = (cells + (size_t)s.origin) * (size_t)(a->dim * size);
    return j;
}

template <int DIM, bool FP8>
static __global__ void __launch_bounds__(THREADS, DIM <= 128 ? 2 : 1)
    attention_bulk_kernel(const __grid_constant__ struct view a)
{
    typedef struct shared<DIM, FP8> block;
    enum { TILES = block::TILES, STRIDE = block::STRIDE * (int)sizeof(bf16) };
    enum { KEYS_AT = offsetof(block, k), VALUES_AT = offsetof(block, v) };
    extern __shared__ __align__(16) char memory[];
    block *sh = (block *)memory;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    struct part<DIM, TILES> c = {
    };
    launch_trigger();
    launch_wait();
    if (a.slot[0] < 0)
        return;
    if (threadIdx.x == 0)
        sh->job = find_job<block::ROWS>(&a, FP8 ? 1 : 2);
    __syncthreads();
    if (sh->job.first >= sh->job.pairs)
        return;
    request_tile(sh, &a, 0);
    load_queries<DIM, block::ROWS>(sh->q, &a, &sh->job);
#pragma unroll
    for (int i = 0; i < TILES * 2; i++)
        c.m[i / 2][i % 2] = -CUDART_INF_F;
    const unsigned at = shared_address(memory) + (unsigned)(lane % 16 * STRIDE + lane / 16 * 16);
    for (int begin = 0; begin <= sh->job.last; begin += KEYS) {
        float s[TILES][KEYS / 8][4];
        copy_wait();
        __syncthreads(); /* the tile is there, and everybody is done with the one before */
        if (FP8) {
            convert<DIM>(sh->k[0], sh->raw[0]);
            convert<DIM>(sh->v[0], sh->raw[FP8]);
            __syncthreads();
        }
        if (begin + KEYS <= sh->job.last)
            request_tile(sh, &a, begin + KEYS);
        const unsigned keys = at + KEYS_AT + (FP8 ? 0 : (unsigned)(begin & KEYS) * STRIDE);
        score<DIM, TILES>(s, at + (unsigned)(warp * 16 * TILES * STRIDE), keys);
        if (begin + KEYS - 1 > sh->job.clear)
            hide<TILES>(s, &sh->job, a.group, begin);
        weigh(&c, s, a.scale);
        add_values(&c, s, keys + VALUES_AT - KEYS_AT);
    }
    store(&c, &a, &sh->job);
}

template <int DIM, bool FP8> static int run(const struct view *a, void *stream)
{
    /* each of the chunks adds less than a block to what their pairs fill */
    const int more = a->chunk > 0 ? (a->n - 1) / a->chunk + 1 : 0,
              blocks = blocks_of(a->n * a->group, shared<DIM, FP8>::ROWS) + more;
    const struct launch l = {.grid = dim3((unsigned)a->kv_heads, (unsigned)blocks),
                             .block = THREADS,
                             .shared = sizeof(struct shared<DIM, FP8>),
                             .stream = stream};
    return launch_kernel(&l, attention_bulk_kernel<DIM, FP8>, *a);
}

template <bool FP8> static int run_dim(const struct view *a, void *stream)
{
    if (a->dim <= 32)
        return run<32, FP8>(a, stream);
    if (a->dim <= 64)
        return run<64, FP8>(a, stream);
    if (a->dim <= 128)
        return run<128, FP8>(a, stream);
    return run<256, FP8>(a, stream);
}

KERN_API int attention_bulk_cuda(const struct attention *a, void *stream)
{
    const struct kv_layer *kv = &a->kv;
    const struct view view = {a->rows->slot,
                              a->rows->pos,
                              a->qkv,
                              kv->k,
                              kv->v,
                              (bf16 *)a->y,
                              a->rows->n,
                              a->heads,
                              kv->kv_heads,
                              a->heads / kv->kv_heads,
                              kv->head_dim,
                              kv->cap,
                              a->scale * 1.44269504f,
                              a->chunk < a->reach ? a->chunk : 0};
    if (view.n == 0)
        return 0;
    return kv->form == KV_FP8 ? run_dim<true>(&view, stream) : run_dim<false>(&view, stream);
}
