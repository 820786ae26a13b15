/* attention: flash decoding on tensor cores over a token tree.
 *
 * Positions are cut at fixed places into blocks of 64 keys and chunks of 1, 4 or 16 blocks (short ones first:
 * a short context needs many blocks in flight, a long one few partial results). A chunk's result for a row is
 * its maximum m, its sum of exponentials l and its sum of weighted values o, made block by block; chunks are
 * folded in ascending order. All of that depends on the row's positions alone. The query heads of a kv head,
 * and of several rows, are the rows of an m16n8k16 product, whose sums do not depend on the other rows.
 *
 * Rows of a tile share the job of a chunk that all of them see whole and in the same cells; in any other
 * chunk each has a job of its own. There are three ways to the same bits:
 *
 * attention_cluster, up to SPLIT_ROWS rows and a reach of MIDDLE_END. The jobs of a tile and kv head are
 * dealt to the teams of a thread block cluster. The result of a team's last job stays in its shared memory,
 * earlier ones (few below 2048 positions) go to scratch; past the cluster's barrier its warps share the
 * folding and read each other's shared memory.
 *
 * attention_split, longer reach: a block a job, over the whole GPU; all results go to scratch,
 * attention_merge folds them.
 *
 * attention_walk, more rows: a block goes through all chunks of a tile of rows and folds in registers.
 *
 * Ahead of launch_wait the cluster requests the cells of its first blocks, as far as no row of this pass
 * writes them. That reads memory which must have been complete when the kernel before this one began: rows'
 * arrays and the cells of earlier passes. rope_table sees to it (kernels/rope.cu): whatever follows it in a
 * pass begins when everything ahead of it has ended. So a pass has it, or a copy, before its attention.
 *
 * launch   cluster: grid [2^i <= 16, kv_heads, tiles] in clusters along x, a block of two teams (head_dim
 * over 128: one); split: grid [chunks of reach, kv_heads, rows]; merge: a warp 64 outputs; walk: grid [tiles,
 * kv_heads]. `reach` covers the launch, positions do the rest. Shared memory a team: 26 KB (head_dim 64, one
 * m tile), 47 KB (128), 82 KB (128, four tiles); 128 * head_dim more for FP8 cells
 *
 * math     q as the sum of two bf16 (relative error 2^-17); scores f32 in units of log2; exponentials rounded
 * to bf16 before they are summed and multiplied, so that weights add up to 1; all sums f32
 *
 * moves    4 * kv_heads * head_dim bytes a position and tile of rows, half of it with FP8 cells; 8 + 4 *
 * head_dim bytes a chunk and head within the cluster, or to scratch and back
 *
 * roof     memory; at few rows and positions latency: behind launch_wait the queries' way from the L2, one
 * block's products, the cluster's barrier and one read of its results. The walk reads a key once per 64 /
 * group rows: tensor cores and shared memory */
#include "kernels/attention_job.cuh"
#include "kernels/attention_plan.cuh"
#include "kernels/cuda.h"

enum { SPLIT_ROWS = 64, CLUSTER = 16 /* blocks at most; more than 8 must be asked for */, BATCH = 16 };

/* Teams of a block of attention_cluster: their shared memory has to fit. */
template <int DIM> struct teams {
    enum { N = DIM <= 128 ? 2 : 1 };
};

/* A chunk's result of one row and head; in the cluster addresses may lead into another block. */
struct result {
    const float *o;
    const float2 *stat;
};

static __device__ struct result result_in_scratch(const struct view *a, int row, int head, int chunk)
{
    const size_t at = scratch_at(a, row, head, chunk);
    const struct result r = {a->o + at * (size_t)a->dim, a->stat + at};
    return r;
}

/* --- folding ----------------------------------------------------------------------------------------- */

/* Columns d, d + 1 of up to BATCH results of lanes `first`.., all requested before one is used. */
static __device__ void request_results(float2 held[BATCH], const float *o, int first, int count, int d,
                                       int dim)
{
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        const float *from = (const float *)__shfl_sync(0xffffffffu, (unsigned long long)o, first + i);
        held[i] = first + i < count && d < dim ? *(const float2 *)(from + d) : make_float2(0, 0);
    }
}

/* What has been folded of a row and head: columns d, d + 1 by the lane, the rest by every lane. */
struct folded {
    float2 o;
    float max, sum;
};

static __device__ void fold_results(struct folded *f, const float2 held[BATCH], int first, int count, float l,
                                    float2 weights)
{
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        const float2 w = make_float2(__shfl_sync(0xffffffffu, weights.x, first + i),
                                     __shfl_sync(0xffffffffu, weights.y, first + i));
        const float other = __shfl_sync(0xffffffffu, l, first + i);
        if (first + i >= count)
            break;
        f->sum = fold(f->sum, other, w);
        f->o = make_float2(fold(f->o.x, held[i].x, w), fold(f->o.y, held[i].y, w));
    }
}

/* The weights of 32 chunks at once, lane by lane; f's maximum moves past them. */
static __device__ float2 weights_of(struct folded *f, float2 stat)
{
    const int lane = threadIdx.x % 32;
    float upto = stat.x;
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

/* A warp: columns [d, d + 64) of a row and head, chunks in ascending order. FROM says where results are. */
template <class FROM>
static __device__ void merge(const struct view *a, const FROM *from, int chunks, int row, int head, int d)
{
    const int lane = threadIdx.x % 32, column = d + lane * 2;
    struct folded f = {make_float2(0, 0), -CUDART_INF_F, 0};
    for (int first = 0; first < chunks; first += 32) {
        const int count = min(32, chunks - first);
        const struct result r = result_at(a, from, row, head, first + min(lane, count - 1));
        const float2 stat = lane < count ? *r.stat : make_float2(-CUDART_INF_F, 0);
        float2 held[BATCH];
        request_results(held, r.o, 0, count, column, a->dim);
        const float2 weights = weights_of(&f, stat);
        fold_results(&f, held, 0, count, stat.y, weights);
        if (count > BATCH) {
            request_results(held, r.o, BATCH, count, column, a->dim);
            fold_results(&f, held, BATCH, count, stat.y, weights);
        }
    }
    if (column < a->dim)
        store_y(a, row, head * a->dim + column, f.o.x, f.o.y, __frcp_rn(f.sum));
}

static __device__ int chunks_of(int slot, int pos) /* 0: nobody's row */
{
    return slot < 0 ? 0 : chunk_of(pos) + 1;
}

static __device__ int pieces_of(int dim) /* warps that merge a row and head */
{
    return (dim + 63) / 64;
}

/* --- a cluster --------------------------------------------------------------------------------------- */

static __device__ void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* Nobody leaves while another block reads its shared memory. What was read has been used, so that nothing
 * needs to be made visible. */
static __device__ void cluster_leave(void)
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n"
                 "barrier.cluster.wait.aligned;" ::
                     : "memory");
}

/* The same place in the shared memory of another block of the cluster. */
template <class T> static __device__ T *in_block(T *p, int rank)
{
    unsigned long long to;
    asm("mapa.u64 %0, %1, %2;" : "=l"(to) : "l"((unsigned long long)p), "r"(rank));
    return (T *)to;
}

template <int DIM, int TILES, bool FP8> struct in_cluster {
    struct shared<DIM, TILES, FP8> *sh; /* of the block's teams */
    struct writers writers;
    struct tile tile;
    int team_count; /* of the cluster */
};

/* A team's last job is in its shared memory. */
template <int DIM, int TILES, bool FP8>
static __device__ struct result result_at(const struct view *a, const struct in_cluster<DIM, TILES, FP8> *c,
                                          int row, int head, int chunk)
{
    const int job = job_of(&c->tile, row, chunk), team = job % c->team_count;
    if (job + c->team_count < c->tile.jobs)
        return result_in_scratch(a, row, head, chunk);
    const int pair = (chunk < c->tile.shared ? (row - c->tile.first) * a->group : 0) + head % a->group;
    struct shared<DIM, TILES, FP8> *sh = in_block(c->sh + team % teams<DIM>::N, team / teams<DIM>::N);
    const struct result r = {sh->o[pair], &sh->stat[pair]};
    return r;
}

/* Into the L2: what a team's shared jobs from `first` on read beyond the block that `start` requests. Cells
 * of a slot and head are contiguous. By one thread. */
static __device__ void prefetch_cells(const struct view *a, const struct tile *t, int kv_head, int first,
                                      int stride, int old, size_t row_bytes)
{
    const size_t head = ((size_t)t->slot * (size_t)a->kv_heads + (size_t)kv_head) * (size_t)a->cap;
    for (int i = first; i < t->shared; i += stride) {
        const int begin = chunk_begin(i) + (i == first ? BLOCK : 0), end = min(chunk_begin(i + 1), old);
        for (int which = 0; begin < end && which < 2; which++)
            asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                             (const char *)a->cells[which] + (head + (size_t)begin) * row_bytes),
                         "r"((end - begin) * (int)row_bytes)
                         : "memory");
    }
}

/* A team's jobs: i, i + teams of the cluster, and so on. Shared chunks follow each other without a pause: the
 * queries stay. */
template <int DIM, int TILES, bool FP8>
static __device__ void work(const struct view *a, const struct in_cluster<DIM, TILES, FP8> *c, int kv_head)
{
    const int team = (int)threadIdx.x / THREADS, first = (int)blockIdx.x * teams<DIM>::N + team;
    struct shared<DIM, TILES, FP8> *sh = c->sh + team;
    bool waited = false, requested = false;
    for (int i = first; i < c->tile.jobs; i += c->team_count) {
        const struct place at = place_of(&c->tile, i);
        const int begin = chunk_begin(at.chunk), end = chunk_begin(at.chunk + 1);
        const bool more = i + c->team_count < c->tile.shared;
        struct part<DIM, TILES> result;
        struct job j;
        if (!job_at(a, &c->tile, kv_head, at, &j))
            continue;
        if (!requested) {
            const int old = waited ? INT_MAX : old_cells(&c->writers, j.slot);
            if (!waited && member() == 0)
                prefetch_cells(a, &c->tile, kv_head, i, c->team_count, old, (size_t)a->dim * (FP8 ? 1 : 2));
            start(sh, a, &j, begin, old);
        }
        waited = true;
        requested = more;
        attend(sh, a, &j, begin, min(end, j.last + 1), more ? chunk_begin(i + c->team_count) : -1, end,
               &result);
        store(sh, a, &j, at.chunk, i + c->team_count < c->tile.jobs ? TO_SCRATCH : TO_SHARED, &result);
    }
}

template <int DIM, int TILES, bool FP8>
static __global__ void __launch_bounds__(THREADS *teams<DIM>::N, TILES == 1 ? 2 : 1)
    attention_cluster(const __grid_constant__ struct view a)
{
    extern __shared__ __align__(16) unsigned char memory[];
    const int kv_head = blockIdx.y, rows = 16 * TILES / a.group, first = (int)blockIdx.z * rows;
    launch_trigger();
    const int count = min(rows, a.n - first), columns = pieces_of(a.dim), units = count * a.group * columns,
              stride = (int)(blockDim.x / 32 * gridDim.x);
    int unit = (int)threadIdx.x / 32 * (int)gridDim.x + (int)blockIdx.x,
        row = first + min(unit, units - 1) / columns / a.group;
    int slot = row_int(a.slot + row), pos = row_int(a.pos + row);
    struct in_cluster<DIM, TILES, FP8> c;
    c.sh = (struct shared<DIM, TILES, FP8> *)memory;
    c.writers = writers_of(&a);
    c.tile = tile_of(&a, first, count);
    c.team_count = (int)gridDim.x * (int)teams<DIM>::N;
    work(&a, &c, kv_head);
    launch_wait();
    cluster_sync();
    while (unit < units) {
        const int chunks = chunks_of(slot, pos), head = kv_head * a.group + unit / columns % a.group;
        if (chunks > 0)
            merge(&a, &c, chunks, row, head, unit % columns * 64);
        unit += stride;
        row = first + min(unit, units - 1) / columns / a.group;
        slot = row_int(a.slot + row);
        pos = row_int(a.pos + row);
    }
    cluster_leave();
}

/* --- split and merge --------------------------------------------------------------------------------- */

template <int DIM, int TILES, bool FP8>
static __global__ void __launch_bounds__(THREADS, 1) attention_split(const __grid_constant__ struct view a)
{
    extern __shared__ __align__(16) unsigned char memory[];
    struct shared<DIM, TILES, FP8> *sh = (struct shared<DIM, TILES, FP8> *)memory;
    const int chunk = blockIdx.x, kv_head = blockIdx.y, row = blockIdx.z, rows = 16 * TILES / a.group,
              first = row / rows * rows, begin = chunk_begin(chunk), end = chunk_begin(chunk + 1);
    launch_trigger();
    launch_wait();
    const struct tile t = tile_of(&a, first, min(rows, a.n - first));
    const struct place at = {chunk, chunk < t.shared ? -1 : row};
    struct part<DIM, TILES> c;
    struct job j;
    if ((chunk < t.shared && row != first) || !job_at(&a, &t, kv_head, at, &j))
        return;
    start(sh, &a, &j, begin, INT_MAX);
    attend(sh, &a, &j, begin, min(end, j.last + 1), -1, end, &c);
    store(sh, &a, &j, chunk, TO_SCRATCH, &c);
}

struct in_scratch {
    int unused;
};

static __device__ struct result result_at(const struct view *a, const struct in_scratch *, int row, int head,
                                          int chunk)
{
    return result_in_scratch(a, row, head, chunk);
}

static __global__ void __launch_bounds__(THREADS, 1) attention_merge(const __grid_constant__ struct view a)
{
    const int unit = (int)blockIdx.x * WARPS + (int)threadIdx.x / 32, columns = pieces_of(a.dim),
              row = unit / columns / a.heads;
    const struct in_scratch from = {0};
    launch_trigger();
    launch_wait();
    const int chunks = chunks_of(row_int(a.slot + min(row, a.n - 1)), row_int(a.pos + min(row, a.n - 1)));
    if (row < a.n && chunks > 0)
        merge(&a, &from, chunks, row, unit / columns % a.heads, unit % columns * 64);
}

/* --- a walk ------------------------------------------------------------------------------------------ */

/* All chunks of a job; false as of attend. */
template <int DIM, int TILES, bool FP8>
static __device__ bool walk(struct shared<DIM, TILES, FP8> *sh, const struct view *a, const struct job *j,
                            int common, struct part<DIM, TILES> *all)
{
    part_clear(all);
    start(sh, a, j, 0, INT_MAX);
    for (int chunk = 0; chunk_begin(chunk) <= j->last; chunk++) {
        const int end = chunk_begin(chunk + 1);
        struct part<DIM, TILES> c;
        if (!attend(sh, a, j, chunk_begin(chunk), min(end, j->last + 1), end <= j->last ? end : -1, common,
                    &c))
            return false;
        part_fold(all, &c);
    }
    return true;
}

template <int DIM, int TILES, bool FP8>
static __global__ void __launch_bounds__(THREADS, 1) attention_walk(const __grid_constant__ struct view a)
{
    extern __shared__ __align__(16) unsigned char memory[];
    struct shared<DIM, TILES, FP8> *sh = (struct shared<DIM, TILES, FP8> *)memory;
    const int kv_head = blockIdx.y, rows = 16 * TILES / a.group;
    const int first = (int)(gridDim.x - 1 - blockIdx.x) * rows; /* long rows first */
    launch_trigger();
    launch_wait();
    const struct tile t = tile_of(&a, first, min(rows, a.n - first));
    struct part<DIM, TILES> all;
    if (t.chain) {
        const struct job j = job_shared(&a, &t, kv_head);
        if (j.slot < 0)
            return;
        if (walk(sh, &a, &j, t.common, &all)) {
            store(sh, &a, &j, 0, TO_Y, &all);
            return;
        }
    }
    for (int row = first; row < first + t.count; row++) {
        const struct job j = job_alone(&a, row, kv_head);
        if (j.slot >= 0 && walk(sh, &a, &j, 0, &all))
            store(sh, &a, &j, 0, TO_Y, &all);
    }
}

/* --- launches ---------------------------------------------------------------------------------------- */

/* Enough blocks for a job a team. */
template <int DIM> static unsigned cluster_of(const struct view *a)
{
    unsigned blocks = 1;
    while (blocks < CLUSTER && (int)blocks * teams<DIM>::N < a->chunks + a->n)
        blocks *= 2;
    return blocks;
}

template <int DIM, int TILES, bool FP8> static int run_cluster(const struct view *a, void *stream)
{
    const int rows = 16 * TILES / a->group;
    const unsigned size = cluster_of<DIM>(a);
    const struct launch l = {dim3(size, (unsigned)a->kv_heads, (unsigned)((a->n + rows - 1) / rows)),
                             dim3(THREADS * teams<DIM>::N),
                             sizeof(struct shared<DIM, TILES, FP8>) * teams<DIM>::N, size, stream};
    const int rc = (int)cudaFuncSetAttribute(attention_cluster<DIM, TILES, FP8>,
                                             cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    return rc ? rc : launch_kernel(&l, attention_cluster<DIM, TILES, FP8>, *a);
}

template <int DIM, int TILES, bool FP8> static int run_split(const struct view *a, void *stream)
{
    const int units = a->n * a->heads * ((a->dim + 63) / 64);
    const struct launch l = {dim3((unsigned)a->chunks, (unsigned)a->kv_heads, (unsigned)a->n), dim3(THREADS),
                             sizeof(struct shared<DIM, TILES, FP8>), 0, stream};
    const struct launch fold = {dim3((unsigned)((units + WARPS - 1) / WARPS)), dim3(THREADS), 0, 0, stream};
    const int rc = launch_kernel(&l, attention_split<DIM, TILES, FP8>, *a);
    return rc ? rc : launch_kernel(&fold, attention_merge, *a);
}

template <int DIM, int TILES, bool FP8> static int run_walk(const struct view *a, void *stream)
{
    const int rows = 16 * TILES / a->group;
    const struct launch l = {dim3((unsigned)((a->n + rows - 1) / rows), (unsigned)a->kv_heads), dim3(THREADS),
                             sizeof(struct shared<DIM, TILES, FP8>), 0, stream};
    return launch_kernel(&l, attention_walk<DIM, TILES, FP8>, *a);
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
    const int chunks = chunk_of(a->reach - 1) + 1, group = a->heads / kv->kv_heads;
    float *stat = a->scratch + (size_t)rows->n * (size_t)a->heads * (size_t)chunks * (size_t)kv->head_dim;
    const struct view view = {rows->slot,       rows->pos,    rows->cell,     rows->base,
                              rows->path_off,   rows->path,   a->qkv,         {kv->k, kv->v},
                              (uint16_t *)a->y, a->scratch,   (float2 *)stat, rows->n,
                              a->heads,         kv->kv_heads, group,          kv->head_dim,
                              kv->cap,          chunks,       a->y_form,      a->scale * 1.44269504f};
    if (rows->n == 0)
        return 0;
    return kv->form == KV_FP8 ? run_any<true>(&view, stream) : run_any<false>(&view, stream);
}
