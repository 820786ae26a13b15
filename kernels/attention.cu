/* attention: flash decoding on tensor cores over a token tree.
 *
 * Positions are cut at fixed places into blocks of 64 keys and chunks of 1, 4 or 16 blocks (short ones first:
 * a short context needs many blocks in flight, a long one few partial results). A chunk's result for a row is
 * its maximum m, its sum of exponentials l and its sum of weighted values o, made block by block; chunks are
 * folded in ascending order. All of that depends on the row's positions alone. The query heads of a kv head,
 * and of several rows, are the rows of an m16n8k16 product, whose sums do not depend on the other rows.
 * Where a model attends in chunks of its own, those cuts begin anew with each of them: the variants PERIODIC.
 *
 * Rows of a tile share the job of a chunk that all of them see whole and in the same cells, and in a cluster
 * also that of a chunk of which they see more or less, if they are one chain; in any other chunk each has a
 * job of its own. There are three ways to the same bits:
 *
 * attention_cluster, up to SPLIT_ROWS rows that see up to MIDDLE_END positions. The jobs of a tile and kv
 * head are dealt to the teams of a thread block cluster. A job's results are written into the shared memory
 * of the block that will fold them, its inbox; past the cluster's barrier a warp folds a row, head and 64
 * columns from its own block's. What does not fit there (many rows in small clusters, long contexts) goes to
 * scratch instead.
 *
 * attention_split, more positions: a block a job, over the whole GPU; all results go to scratch,
 * attention_merge folds them.
 *
 * attention_walk, more rows: a block goes through all chunks of a tile of rows and folds in registers.
 *
 * Ahead of launch_wait the cluster requests the cells of its first blocks, as far as no row of this pass
 * writes them. That reads memory which must have been complete when the kernel before this one began: rows'
 * arrays and the cells of earlier passes. rope_table sees to it (kernels/rope.cu): whatever follows it in a
 * pass begins when everything ahead of it has ended. So a pass has it, or a copy, before its attention.
 *
 * launch   cluster: grid [2^i <= 16, kv_heads, tiles] in clusters along x, all of them at once where that
 * leaves clusters of a block, a block of two teams (head_dim over 128: one); split: grid [chunks of reach,
 * kv_heads, rows]; merge: a warp 64 outputs; walk: grid [tiles, kv_heads]. `reach` covers the launch,
 * positions do the rest. Shared memory a team: 25 KB (head_dim 64, one m tile), 45 KB (128), 59 KB (128,
 * two), 81 KB (128, four); 128 * head_dim more for FP8 cells. An inbox: 264 bytes a chunk of reach, row, head
 * and 64 columns, over the cluster's blocks
 *
 * math     q as the sum of two bf16 (relative error 2^-17); scores f32 in units of log2; exponentials rounded
 * to bf16 before they are summed and multiplied, so that weights add up to 1; all sums f32
 *
 * moves    4 * kv_heads * head_dim bytes a position and tile of rows, half of it with FP8 cells; 8 + 4 *
 * head_dim bytes a chunk and head within the cluster, or to scratch and back
 *
 * roof     memory; at few rows and positions latency: behind launch_wait the queries' way from the L2, one
 * block's products, the way of its results to the inbox and the cluster's barrier; and the fetching of code,
 * all of which runs once: loops are kept short. The walk reads a key once per 64 / group rows: tensor cores
 * and shared memory */
#include "kernels/attention_job.cuh"
#include "kernels/attention_plan.cuh"
#include "kernels/cuda.h"

enum {
    SPLIT_ROWS = 64,
    CLUSTER = 16,            /* blocks at most; more than 8 must be asked for */
    ABREAST = 128,           /* blocks of all clusters that run at once on an H100 */
    SHARED_MAX = 227 * 1024, /* bytes a block */
};

/* --- folding ----------------------------------------------------------------------------------------- */

static __device__ struct result result_in_scratch(const struct view *a, int row, int head, int piece,
                                                  int chunk)
{
    const unsigned at = (unsigned)((row * a->heads + head) * a->chunks + chunk);
    const struct result r = {a->o + (size_t)at * (unsigned)a->dim + piece * PIECE, a->stat + at};
    return r;
}

struct in_scratch {
    int unused;
};

static __device__ struct result result_of(const struct view *a, const struct in_scratch *,
                                          const struct job *j, int pair, int piece, int chunk)
{
    return result_in_scratch(a, j->first + pair_row(a, pair), j->kv_head * a->group + pair_head(a, pair),
                             piece, chunk);
}

/* Columns d, d + 1 of chunks first.., all requested before one is used; zeros past the last chunk. */
template <int FLIGHT>
static __device__ void request_results(float2 held[FLIGHT], const float *o, int pitch, int first, int count)
{
#pragma unroll
    for (int i = 0; i < FLIGHT; i++)
        held[i] = first + i < count ? *(const float2 *)(o + (first + i) * pitch) : make_float2(0, 0);
}

/* What has been folded of a row and head: columns d, d + 1 by the lane, the rest by every lane. */
struct folded {
    float2 o;
    float max, sum;
};

/* Past the last chunk weights are (1, 0): that changes nothing but the sign of a zero. */
template <int FLIGHT>
static __device__ void fold_results(struct folded *f, const float2 held[FLIGHT], int first, float l,
                                    float2 weights)
{
#pragma unroll
    for (int i = 0; i < FLIGHT; i++) {
        const float2 w = make_float2(__shfl_sync(0xffffffffu, weights.x, first + i),
                                     __shfl_sync(0xffffffffu, weights.y, first + i));
        f->sum = fold(f->sum, __shfl_sync(0xffffffffu, l, first + i), w);
        f->o = make_float2(fold(f->o.x, held[i].x, w), fold(f->o.y, held[i].y, w));
    }
}

/* The weights of 32 chunks at once, lane by lane; f's maximum moves past them. */
static __device__ float2 weights_of(struct folded *f, float2 stat)
{
    const int lane = threadIdx.x % 32;
    float upto = stat.x;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const float other = __shfl_up_sync(0xffffffffu, upto, step);
        upto = lane >= step ? fmaxf(upto, other) : upto;
    }
    upto = fmaxf(upto, f->max);
    const float previous = __shfl_up_sync(0xffffffffu, upto, 1);
    const float2 weights = fold_weights(lane == 0 ? f->max : previous, stat.x, stat.y);
    f->max = __shfl_sync(0xffffffffu, upto, 31);
    return weights;
}

/* A warp: a piece of a row and head, chunks in ascending order. The first chunk's result stands at r; the
 * columns of the next one are `pitch` further. FLIGHT: how many are requested at once. */
template <int FLIGHT>
static __device__ void merge(const struct view *a, const struct result *r, int pitch, int chunks, int row,
                             int head, int piece)
{
    const int lane = threadIdx.x % 32, column = piece * PIECE + lane * 2;
    struct folded f = {make_float2(0, 0), -CUDART_INF_F, 0};
#pragma unroll 1
    for (int done = 0; done < chunks; done += 32) {
        const float *o = r->o + done * pitch + lane * 2;
        const int count = min(32, chunks - done), own = column < a->dim ? count : 0;
        const float2 stat = lane < count ? r->stat[done + lane] : make_float2(-CUDART_INF_F, 0);
        float2 held[FLIGHT];
        request_results<FLIGHT>(held, o, pitch, 0, own);
        const float2 weights = weights_of(&f, stat);
#pragma unroll 1
        for (int i = 0; i < count; i += FLIGHT) {
            fold_results<FLIGHT>(&f, held, i, stat.y, weights);
            request_results<FLIGHT>(held, o, pitch, i + FLIGHT, own);
        }
    }
    if (column < a->dim)
        store_y(a, row, head * a->dim + column, f.o.x, f.o.y, __frcp_rn(f.sum));
}

template <bool PERIODIC>
static __device__ int chunks_of(const struct view *a, int slot, int pos) /* 0: nobody's row */
{
    return slot < 0 ? 0 : chunk_of(pos - origin_of<PERIODIC>(a, pos)) + 1;
}

/* --- a cluster --------------------------------------------------------------------------------------- */

/* Teams of a block of attention_cluster: their shared memory has to fit. */
template <int DIM> struct teams {
    enum { N = DIM <= 128 ? 2 : 1 };
};

/* A block's shared memory. Behind it the inbox: for each piece that the block folds o [chunks][PIECE], then
 * stat [chunks]. Piece i of a tile (piece of the pair fastest) is number i / size of block i % size. */
template <int DIM, int TILES, bool FP8> struct __align__(16) block
{
    struct shared<DIM, TILES, FP8> teams[teams<DIM>::N];
    int chunks[SPLIT_ROWS]; /* of the tile's rows */
};

enum { INBOX_CHUNK = PIECE + 2 /* floats a chunk */ };

static __device__ void cluster_arrive(void)
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

static __device__ void cluster_wait(void)
{
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

/* What was written to any shared memory or scratch is there for all. */
static __device__ void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* The same place in the shared memory of another block of the cluster. */
static __device__ float *in_block(float *p, int rank)
{
    unsigned long long to;
    asm("mapa.u64 %0, %1, %2;" : "=l"(to) : "l"((unsigned long long)p), "r"(rank));
    return (float *)to;
}

struct in_cluster {
    struct writers writers;
    struct tile tile;
    float *inbox; /* of this block */
    int pieces;   /* of a row and head, a power of two */
};

static __device__ struct result result_in_inbox(const struct view *a, float *number, int chunk)
{
    const struct result r = {number + chunk * PIECE, (float2 *)(number + a->chunks * PIECE) + chunk};
    return r;
}

/* In the inbox of the block that will fold it, or in scratch. */
static __device__ struct result result_of(const struct view *a, const struct in_cluster *c,
                                          const struct job *j, int pair, int piece, int chunk)
{
    const struct in_scratch scratch = {0};
    if (!a->inbox)
        return result_of(a, &scratch, j, pair, piece, chunk);
    const int i = ((j->first - c->tile.first) * a->group + pair) * c->pieces + piece;
    float *number = c->inbox + (i >> a->log_size) * a->chunks * INBOX_CHUNK;
    return result_in_inbox(a, in_block(number, i & ((1 << a->log_size) - 1)), chunk);
}

/* Into the L2: what a team's shared jobs from `first` on read beyond the block that `start` requests. Cells
 * of a slot and head are contiguous. By one thread. */
static __device__ void prefetch_cells(const struct view *a, const struct tile *t, int kv_head, int first,
                                      int stride, int old, size_t row_bytes)
{
    const size_t head = ((size_t)t->slot * (size_t)a->kv_heads + (size_t)kv_head) * (size_t)a->cap;
#pragma unroll 1
    for (int i = first; i < t->shared; i += stride) {
        const int begin = t->origin + chunk_begin(i) + (i == first ? BLOCK : 0),
                  end = min(t->origin + chunk_begin(i + 1), old);
#pragma unroll 1
        for (int which = 0; begin < end && which < 2; which++)
            asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                             (const char *)a->cells[which] + (head + (size_t)begin) * row_bytes),
                         "r"((end - begin) * (int)row_bytes)
                         : "memory");
    }
}

/* A team's jobs: i, i + teams of the cluster, and so on. Shared chunks follow each other without a pause: the
 * queries stay. A shared chunk with a value that is not finite and that not every row may see (attend) goes
 * row by row. */
template <bool PERIODIC, int DIM, int TILES, bool FP8>
static __device__ void work(struct shared<DIM, TILES, FP8> *sh, const struct view *a,
                            const struct in_cluster *c, int kv_head, int team, int team_count)
{
    bool waited = false, requested = false;
    int alone = -1; /* the row, of those that go one by one */
#pragma unroll 1
    for (int i = team; i < c->tile.jobs;) {
        struct place at = place_of(&c->tile, i);
        at.row = alone >= 0 ? alone : at.row;
        const int begin = chunk_begin(at.chunk), end = chunk_begin(at.chunk + 1),
                  next = at.row < 0 && i + team_count < c->tile.shared
                             ? c->tile.origin + chunk_begin(i + team_count)
                             : -1;
        bool done = true;
        struct job j;
        if (job_at<PERIODIC>(a, &c->tile, kv_head, at, &j)) {
            const int origin = origin_of<PERIODIC>(a, j.last);
            struct part<DIM, TILES> result;
            if (!requested) {
                const int old = waited ? INT_MAX : old_cells(&c->writers, j.slot);
                if (!waited && member() == 0)
                    prefetch_cells(a, &c->tile, kv_head, i, team_count, old, (size_t)a->dim * (FP8 ? 1 : 2));
                start(sh, a, &j, origin + begin, old);
            }
            waited = true;
            done = attend(sh, a, &j, origin + begin, min(origin + end, j.last + 1), next, c->tile.common,
                          &result);
            requested = done && next >= 0;
            if (done)
                store(a, &j, at.chunk, c, &result);
        }
        if (!done)
            alone = c->tile.first;
        else if (alone >= 0)
            alone = alone + 1 < c->tile.first + c->tile.count ? alone + 1 : -1;
        i += alone < 0 ? team_count : 0;
    }
}

/* The pieces that are this block's to fold, a warp a piece. */
static __device__ void fold_pieces(const struct view *a, const struct in_cluster *c, const int *chunks_of_row,
                                   int kv_head)
{
    const int of_all = c->tile.count * a->group * c->pieces, warps = (int)blockDim.x / 32;
#pragma unroll 1
    for (int number = (int)threadIdx.x / 32;; number += warps) {
        const int i = (number << a->log_size) + (int)blockIdx.x, pair = i / c->pieces, piece = i % c->pieces;
        if (i >= of_all)
            return;
        const int row = pair_row(a, pair), head = kv_head * a->group + pair_head(a, pair),
                  chunks = chunks_of_row[row];
        if (chunks == 0 || piece * PIECE >= a->dim)
            continue;
        if (a->inbox) {
            const struct result r = result_in_inbox(a, c->inbox + number * a->chunks * INBOX_CHUNK, 0);
            merge<4>(a, &r, PIECE, chunks, c->tile.first + row, head, piece);
        } else {
            const struct result r = result_in_scratch(a, c->tile.first + row, head, piece, 0);
            merge<16>(a, &r, a->dim, chunks, c->tile.first + row, head, piece);
        }
    }
}

template <int DIM, int TILES, bool FP8, bool PERIODIC>
static __global__ void __launch_bounds__(THREADS *teams<DIM>::N, TILES == 1 ? 2 : 1)
    attention_cluster(const __grid_constant__ struct view a)
{
    extern __shared__ __align__(16) unsigned char memory[];
    struct block<DIM, TILES, FP8> *mine = (struct block<DIM, TILES, FP8> *)memory;
    const int kv_head = blockIdx.y, first = (int)blockIdx.z * a.rows, count = min(a.rows, a.n - first);
    const int team = (int)threadIdx.x / THREADS;
    launch_trigger();
    cluster_arrive();
    if ((int)threadIdx.x < count) {
        const int row = first + (int)threadIdx.x;
        mine->chunks[threadIdx.x] = chunks_of<PERIODIC>(&a, row_int(a.slot + row), row_int(a.pos + row));
    }
    struct in_cluster c;
    c.writers = writers_of(&a);
    c.tile = tile_of<PERIODIC>(&a, first, count);
    c.inbox = (float *)(mine + 1);
    c.pieces = DIM / PIECE;
    cluster_wait(); /* all blocks have begun: their shared memory may be written to */
    work<PERIODIC>(mine->teams + team, &a, &c, kv_head, (team << a.log_size) + (int)blockIdx.x,
                   (int)teams<DIM>::N << a.log_size);
    launch_wait();
    cluster_sync(); /* behind it a block reads its own shared memory, and may leave */
    fold_pieces(&a, &c, mine->chunks, kv_head);
}

/* --- split and merge --------------------------------------------------------------------------------- */

template <int DIM, int TILES, bool FP8, bool PERIODIC>
static __global__ void __launch_bounds__(THREADS, 1) attention_split(const __grid_constant__ struct view a)
{
    extern __shared__ __align__(16) unsigned char memory[];
    struct shared<DIM, TILES, FP8> *sh = (struct shared<DIM, TILES, FP8> *)memory;
    const int chunk = blockIdx.x, kv_head = blockIdx.y, row = blockIdx.z, rows = 16 * TILES / a.group,
              first = row / rows * rows, begin = chunk_begin(chunk), end = chunk_begin(chunk + 1);
    launch_trigger();
    launch_wait();
    const struct tile t = tile_of<PERIODIC>(&a, first, min(rows, a.n - first));
    const bool whole = chunk < chunk_of(t.common - t.origin); /* all rows see all of it */
    const struct place at = {chunk, whole ? -1 : row};
    const struct in_scratch to = {0};
    struct part<DIM, TILES> c;
    struct job j;
    if ((whole && row != first) || !job_at<PERIODIC>(&a, &t, kv_head, at, &j))
        return;
    const int origin = origin_of<PERIODIC>(&a, j.last);
    start(sh, &a, &j, origin + begin, INT_MAX);
    attend(sh, &a, &j, origin + begin, min(origin + end, j.last + 1), -1, origin + end, &c);
    store(&a, &j, chunk, &to, &c);
}

static __host__ __device__ int pieces_of(int dim) /* warps that merge a row and head */
{
    return (dim + PIECE - 1) / PIECE;
}

template <bool PERIODIC>
static __global__ void __launch_bounds__(THREADS, 1) attention_merge(const __grid_constant__ struct view a)
{
    const int unit = (int)blockIdx.x * WARPS + (int)threadIdx.x / 32, pieces = pieces_of(a.dim),
              row = unit / pieces / a.heads, head = unit / pieces % a.heads, piece = unit % pieces;
    launch_trigger();
    launch_wait();
    const int chunks =
        chunks_of<PERIODIC>(&a, row_int(a.slot + min(row, a.n - 1)), row_int(a.pos + min(row, a.n - 1)));
    if (row >= a.n || chunks == 0)
        return;
    const struct result r = result_in_scratch(&a, row, head, piece, 0);
    merge<16>(&a, &r, a.dim, chunks, row, head, piece);
}

/* --- a walk ------------------------------------------------------------------------------------------ */

/* All chunks of a job; false as of attend. */
template <bool PERIODIC, int DIM, int TILES, bool FP8>
static __device__ bool walk(struct shared<DIM, TILES, FP8> *sh, const struct view *a, const struct job *j,
                            int common, struct part<DIM, TILES> *all)
{
    const int origin = origin_of<PERIODIC>(a, j->last);
    start(sh, a, j, origin, INT_MAX);
    part_clear(all);
    for (int chunk = 0; origin + chunk_begin(chunk) <= j->last; chunk++) {
        const int end = origin + chunk_begin(chunk + 1);
        struct part<DIM, TILES> c;
        if (!attend(sh, a, j, origin + chunk_begin(chunk), min(end, j->last + 1), end <= j->last ? end : -1,
                    common, &c))
            return false;
        part_fold(all, &c);
    }
    return true;
}

template <int DIM, int TILES, bool FP8, bool PERIODIC>
static __global__ void __launch_bounds__(THREADS, 1) attention_walk(const __grid_constant__ struct view a)
{
    extern __shared__ __align__(16) unsigned char memory[];
    struct shared<DIM, TILES, FP8> *sh = (struct shared<DIM, TILES, FP8> *)memory;
    const int kv_head = blockIdx.y, rows = 16 * TILES / a.group;
    const int first = (int)(gridDim.x - 1 - blockIdx.x) * rows; /* long rows first */
    launch_trigger();
    launch_wait();
    const struct tile t = tile_of<PERIODIC>(&a, first, min(rows, a.n - first));
    struct part<DIM, TILES> all;
    if (t.chain) {
        const struct job j = job_shared(&a, &t, kv_head);
        if (j.slot < 0)
            return;
        if (walk<PERIODIC>(sh, &a, &j, t.common, &all)) {
            store_job(&a, &j, &all);
            return;
        }
    }
    for (int row = first; row < first + t.count; row++) {
        const struct job j = job_alone(&a, row, kv_head);
        if (j.slot >= 0 && walk<PERIODIC>(sh, &a, &j, 0, &all))
            store_job(&a, &j, &all);
    }
}

/* --- launches ---------------------------------------------------------------------------------------- */

/* Tiles of as many rows as fit, evened; clusters of enough blocks for a job a team, but all of them at once;
 * an inbox if it fits. `own`: bytes of a block without it. Returns the bytes with it. */
template <int DIM, int TILES> static size_t shape_cluster(struct view *a, int rows, size_t own)
{
    /* where a block takes an SM of its own, not every GPC has 16 to spare: two rounds of clusters (H100, 8B,
     * 8 rows: 18 us against 13) */
    const int most = DIM > 64 && TILES > 1 ? CLUSTER / 2 : CLUSTER;
    const int tiles = (a->n + rows - 1) / rows;
    a->rows = (a->n + tiles - 1) / tiles;
    for (a->log_size = 0; 1 << a->log_size < most; a->log_size++)
        if ((int)teams<DIM>::N << a->log_size >= a->chunks + a->n ||
            (2 << a->log_size) * a->kv_heads * tiles > ABREAST)
            break;
    const int pieces = a->rows * a->group * (DIM / PIECE), numbers = ((pieces - 1) >> a->log_size) + 1;
    const size_t inbox = (size_t)numbers * (size_t)a->chunks * INBOX_CHUNK * sizeof(float);
    a->inbox = own + inbox <= SHARED_MAX;
    return a->inbox ? own + inbox : own;
}

template <int DIM, int TILES, bool FP8> static int run_cluster(const struct view *a, void *stream)
{
    struct view shaped = *a;
    const size_t shared =
        shape_cluster<DIM, TILES>(&shaped, 16 * TILES / a->group, sizeof(struct block<DIM, TILES, FP8>));
    const unsigned size = 1u << shaped.log_size;
    void (*const kernel)(struct view) =
        a->period > 0 ? attention_cluster<DIM, TILES, FP8, true> : attention_cluster<DIM, TILES, FP8, false>;
    const struct launch l = {
        dim3(size, (unsigned)a->kv_heads, (unsigned)((a->n + shaped.rows - 1) / shaped.rows)),
        dim3(THREADS * teams<DIM>::N), shared, size, stream};
    int rc = (int)cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    rc = rc ? rc : launch_kernel(&l, kernel, shaped);
    /* Captured launches may ask for more than the latest did. */
    return rc ? rc
              : (int)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_MAX);
}

template <int DIM, int TILES, bool FP8> static int run_split(const struct view *a, void *stream)
{
    const int units = a->n * a->heads * pieces_of(a->dim);
    const struct launch l = {dim3((unsigned)a->chunks, (unsigned)a->kv_heads, (unsigned)a->n), dim3(THREADS),
                             sizeof(struct shared<DIM, TILES, FP8>), 0, stream};
    const struct launch fold = {dim3((unsigned)((units + WARPS - 1) / WARPS)), dim3(THREADS), 0, 0, stream};
    void (*const part)(struct view) =
        a->period > 0 ? attention_split<DIM, TILES, FP8, true> : attention_split<DIM, TILES, FP8, false>;
    const int rc = launch_kernel(&l, part, *a);
    return rc ? rc : launch_kernel(&fold, a->period > 0 ? attention_merge<true> : attention_merge<false>, *a);
}

template <int DIM, int TILES, bool FP8> static int run_walk(const struct view *a, void *stream)
{
    const int rows = 16 * TILES / a->group;
    const struct launch l = {dim3((unsigned)((a->n + rows - 1) / rows), (unsigned)a->kv_heads), dim3(THREADS),
                             sizeof(struct shared<DIM, TILES, FP8>), 0, stream};
    void (*const kernel)(struct view) =
        a->period > 0 ? attention_walk<DIM, TILES, FP8, true> : attention_walk<DIM, TILES, FP8, false>;
    return launch_kernel(&l, kernel, *a);
}

/* MANY: m tiles where one does not hold all rows. */
template <int DIM, int MANY, bool FP8> static int run(const struct view *a, void *stream)
{
    const bool few = a->n * a->group <= 16;
    if (a->group > 16 * MANY)
        return cudaErrorInvalidValue;
    if (a->n > SPLIT_ROWS)
        return run_walk<DIM, MANY, FP8>(a, stream);
    if (a->chunks > SHORTS + MIDDLES)
        return few ? run_split<DIM, 1, FP8>(a, stream) : run_split<DIM, MANY, FP8>(a, stream);
    /* more than MANY's pairs go by two m tiles again: their results fit the inboxes (8B, 64 rows: 35 us
     * against 65) */
    if (MANY > 2 && (a->n * a->group <= 32 || a->n * a->group > 16 * MANY))
        return few ? run_cluster<DIM, 1, FP8>(a, stream) : run_cluster<DIM, 2, FP8>(a, stream);
    return few ? run_cluster<DIM, 1, FP8>(a, stream) : run_cluster<DIM, MANY, FP8>(a, stream);
}

template <bool FP8> static int run_any(const struct view *a, void *stream)
{
    if (a->dim <= 64)
        return run<64, 4, FP8>(a, stream);
    if (a->dim <= 128)
        return run<128, 4, FP8>(a, stream);
    if (a->dim <= 256)
        return run<256, 2, FP8>(a, stream);
    return cudaErrorInvalidValue;
}

KERN_API size_t attention_cuda_scratch(int max_rows, int heads, int head_dim, int cap)
{
    const size_t rows = (size_t)(max_rows < SPLIT_ROWS ? max_rows : SPLIT_ROWS);
    return rows * (size_t)heads * (size_t)(chunk_of(cap - 1) + 1) * (size_t)(head_dim + 2);
}

KERN_API int attention_cuda(const struct attention *a, void *stream)
{
    const struct rows *rows = a->rows;
    const struct kv_layer *kv = &a->kv;
    const int period = a->chunk > 0 && a->chunk < a->reach ? a->chunk : 0,
              chunks = chunk_of((period > 0 ? period : a->reach) - 1) + 1, group = a->heads / kv->kv_heads;
    float *stat = a->scratch + (size_t)rows->n * (size_t)a->heads * (size_t)chunks * (size_t)kv->head_dim;
    const struct view view = {rows->slot,
                              rows->pos,
                              rows->cell,
                              rows->base,
                              rows->path_off,
                              rows->path,
                              a->qkv,
                              {kv->k, kv->v},
                              (uint16_t *)a->y,
                              a->scratch,
                              (float2 *)stat,
                              rows->n,
                              a->heads,
                              kv->kv_heads,
                              group,
                              kv->head_dim,
                              kv->cap,
                              chunks,
                              a->y_form,
                              a->scale * 1.44269504f,
                              by_group_of(group),
                              0,
                              0,
                              false,
                              period};
    if (rows->n == 0)
        return 0;
    return kv->form == KV_FP8 ? run_any<true>(&view, stream) : run_any<false>(&view, stream);
}
