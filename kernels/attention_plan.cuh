/* attention_plan: how the positions of a tile of rows are cut into jobs for teams, and where a job's result
 * is found again. All of it follows from the rows' arrays, which every team reads for itself.
 *
 * Of a model that attends in chunks (struct attention) a row sees the positions from its `origin` on, a
 * multiple of `period`. The plan's own chunks are counted from there, so that none holds a position which a
 * row is past seeing; rows of different origins share no job. */
#ifndef KERNELS_ATTENTION_PLAN_CUH
#define KERNELS_ATTENTION_PLAN_CUH
#include "kernels/attention_cells.cuh"

enum {
    SHORT_END = 2048,
    MIDDLE = 256,
    MIDDLE_END = 8192,
    LONG = 1024
}; /* chunks of BLOCK, then MIDDLE, then LONG positions */
enum { SHORTS = SHORT_END / BLOCK, MIDDLES = (MIDDLE_END - SHORT_END) / MIDDLE };

static __host__ __device__ int chunk_begin(int chunk) /* positions count from the origin, here and below */
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

/* Of a row at `position`. PERIODIC, here and below: a->period is not 0. */
template <bool PERIODIC> static __device__ int origin_of(const struct view *a, int position)
{
    return PERIODIC ? attention_first(a->period, position) : 0;
}

/* Rows [first, first + count) and what they have in common; rows of nobody are left out. */
struct tile {
    int first, count, slot, last; /* last: the furthest position of a row, -1: all rows are nobody's */
    int common;                   /* from the origin up to here all rows see the same cells */
    bool chain;                   /* one slot and origin, and every row's cells are its positions */
    int shared;                   /* chunks whose cells are the same for all rows that see them */
    int jobs;                     /* see place_of */
    int origin;                   /* of `last`, and of all rows where they share anything */
};

/* By a whole warp. Here and below loads do not depend on each other: each is a round trip to the L2. */
template <bool PERIODIC> static __device__ struct tile tile_of(const struct view *a, int first, int count)
{
    int low = INT_MAX, high = -1, common = INT_MAX, last = -1, oldest = INT_MAX, far = -1;
    bool chain = true;
#pragma unroll 1
    for (int i = first + (int)threadIdx.x % 32; i < first + count; i += 32) {
        const int slot = row_int(a->slot + i), pos = row_int(a->pos + i), base = row_int(a->base + i);
        const int origin = origin_of<PERIODIC>(a, pos);
        const bool live = slot >= 0;
        low = min(low, live ? slot : INT_MAX);
        high = max(high, slot);
        common = min(common, live ? min(base, pos + 1) : INT_MAX);
        last = max(last, live ? pos : -1);
        oldest = min(oldest, live ? origin : INT_MAX);
        far = max(far, live ? pos - origin : -1);
        chain = chain && (!live || base > pos);
    }
    const unsigned all = 0xffffffffu;
    const int slot = __reduce_max_sync(all, high);
    bool one = __reduce_min_sync(all, low) >= slot;
    struct tile t = {first, count, slot, __reduce_max_sync(all, last), __reduce_min_sync(all, common)};
    if (PERIODIC) {
        t.origin = origin_of<PERIODIC>(a, max(t.last, 0));
        one = __reduce_min_sync(all, oldest) >= t.origin && one;
        t.common = max(t.common, t.origin);
    }
    t.chain = __all_sync(all, chain) && one;
    if (!one)
        t.common = t.origin;
    if (t.last >= 0) {
        const int chunks = chunk_of(PERIODIC ? __reduce_max_sync(all, far) : t.last) + 1;
        t.shared = t.chain ? chunks : chunk_of(t.common - t.origin);
        t.jobs = t.shared + (chunks - t.shared) * count;
    }
    return t;
}

static __device__ struct job job_alone(const struct view *a, int row, int kv_head)
{
    const int slot = row_int(a->slot + row), base = row_int(a->base + row), last = row_int(a->pos + row),
              path_off = row_int(a->path_off + row);
    const struct job j = {row, 1, kv_head, slot, base, last, a->path + (base <= last ? path_off : 0)};
    return j;
}

static __device__ struct job job_shared(const struct view *a, const struct tile *t, int kv_head)
{
    const struct job j = {t->first, t->count, kv_head, t->slot, INT_MAX, t->last, a->path};
    return j;
}

/* Job i of a tile: the shared chunks, then the others chunk by chunk, row by row. */
struct place {
    int chunk, row; /* row -1: all of the tile */
};

static __device__ struct place place_of(const struct tile *t, int i)
{
    const int alone = i - t->shared;
    struct place at = {i, -1};
    if (alone >= 0) {
        at.chunk = t->shared + alone / t->count;
        at.row = t->first + alone % t->count;
    }
    return at;
}

/* False: there is nothing to do, the row is nobody's or ends before the chunk. */
template <bool PERIODIC>
static __device__ bool job_at(const struct view *a, const struct tile *t, int kv_head, struct place at,
                              struct job *j)
{
    *j = at.row < 0 ? job_shared(a, t, kv_head) : job_alone(a, at.row, kv_head);
    return j->slot >= 0 && origin_of<PERIODIC>(a, j->last) + chunk_begin(at.chunk) <= j->last;
}

/* Which cells the rows of this pass write, up to 64 of them: a lane has those of rows lane and lane + 32. */
struct writers {
    int slot[2], cell[2];
};

static __device__ struct writers writers_of(const struct view *a)
{
    struct writers w;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int row = (int)threadIdx.x % 32 + i * 32, from = min(row, a->n - 1);
        w.slot[i] = row_int(a->slot + from);
        w.cell[i] = row_int(a->cell + from);
    }
    return w;
}

/* The first cell of a slot that a row of this pass writes: the kernel before may still be at it. By a whole
 * warp. */
static __device__ int old_cells(const struct writers *w, int slot)
{
    int cell = INT_MAX - 1;
#pragma unroll
    for (int i = 0; i < 2; i++)
        cell = min(cell, w->slot[i] == slot ? w->cell[i] : INT_MAX);
    return __reduce_min_sync(0xffffffffu, cell);
}
#endif
