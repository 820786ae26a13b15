/* allgather: every rank sends its columns to every other. A rank whose part is the shorter has less to send in the
 * last piece, but never nothing: see inbox.cuh.
 * launch   blocks of 64..512 threads, a thread four numbers at a time
 * moves    8 rows n bytes here, rows each 4 over the links for each other rank */
#include "kernels/inbox.cuh"

/* Vectors [first, first + vectors) of every rank's part, seen as one row of numbers. */
struct gathering {
    const float *part;
    float *whole;
    int rows, n, each, first, vectors;
};

/* Of rank p's part in `whole`. */
static __device__ int columns(const struct gathering &g, const struct reduce_way &w, int p)
{
    return p < w.world - 1 ? g.each : g.n - (w.world - 1) * g.each;
}

/* Vectors that rank p, with so many columns, sends: always one, since every operation must. */
static __device__ int sends(const struct gathering &g, int columns)
{
    const int left = (g.rows * columns + 3) / 4 - g.first, some = left < g.vectors ? left : g.vectors;
    return some < 1 ? 1 : some;
}

/* Vector v of rank p's part, which has `width` columns, to its place; alone that may be more than there is
 * room for. */
static __device__ void place(const struct gathering &g, const struct reduce_way &w, int p, int width, int v,
                             float4 x)
{
    const int flat = (g.first + v) * 4, room = columns(g, w, p);
    int row = flat / width, column = flat - row * width;
    float *to = g.whole + (size_t)p * (size_t)g.each;
    if ((width | g.n | g.each) % 4 == 0) {
        if (row < g.rows && column < room)
            *(float4 *)(to + (size_t)row * (size_t)g.n + column) = x;
        return;
    }
    const float e[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (row < g.rows && column < room)
            to[(size_t)row * (size_t)g.n + (size_t)column] = e[i];
        if (++column == width) {
            column = 0;
            row++;
        }
    }
}

static __global__ void __launch_bounds__(INBOX_THREADS) allgather_kernel(struct gathering g, struct reduce_way w)
{
    const int at = (int)(blockIdx.x * blockDim.x + threadIdx.x), stride = (int)(gridDim.x * blockDim.x);
    const int own = columns(g, w, w.rank), mine = sends(g, own);
    if (w.early)
        launch_trigger();
    launch_wait();
    struct visit t = visit_open(w);
    for (int v = at; v < mine; v += stride) {
        const float4 x = load(g.part, (g.first + v) * 4, g.rows * own);
        uint4 sent;
        pack(x, &sent);
        for (int i = 1; i < w.world && !t.lost; i++) {
            const int p = w.rank + i < w.world ? w.rank + i : w.rank + i - w.world;
            poke((uint4 *)(w.part[p] + t.inbox) + v, sent);
        }
        place(g, w, w.rank, own, v, x);
    }
    visit_count(w, t);
    for (int v = at; v < g.vectors; v += stride) {
        unsigned wanted = others(w);
        uint4 all[RANKS];
#pragma unroll
        for (int p = 0; p < RANKS; p++)
            if (p < w.world && v >= sends(g, w.alone ? own : columns(g, w, p)))
                wanted &= ~(1u << p);
        unsigned char *box = w.inbox + t.inbox + (size_t)v * sizeof(uint4);
        const unsigned taken = take<RANKS>(w, box, w.room, 0, wanted, all, &t);
#pragma unroll
        for (int p = 0; p < RANKS; p++)
            if (wanted >> p & 1)
                place(g, w, p, w.alone ? own : columns(g, w, p), v, unpack(all[p]));
        put_back<RANKS>(box, w.room, taken, all);
    }
}

KERN_API int allgather_cuda(const struct allgather *a, const struct reduce_way *w, void *stream)
{
    const size_t vectors = ((size_t)a->rows * (size_t)a->each + 3) / 4;
    struct gathering g = {};
    int rc = 0;
    g.part = a->part;
    g.whole = a->whole;
    g.rows = a->rows;
    g.n = a->n;
    g.each = a->each;
    for (size_t at = 0; at < vectors && rc == 0; at += (size_t)g.vectors) {
        g.first = (int)at;
        g.vectors = inbox_piece(w, vectors - at);
        const struct launch l = inbox_launch(w, g.vectors, stream);
        rc = launch_kernel(&l, allgather_kernel, g, *w);
    }
    return rc;
}

KERN_API int allgather_cuda_load(void)
{
    cudaFuncAttributes attributes;
    return (int)cudaFuncGetAttributes(&attributes, (const void *)allgather_kernel);
}
