/* reduce: one shot, every rank sends its part to every other and sums all of them; or two, rank p sums slice p of
 * the columns and sends the sums on: 2 / world of the bytes and twice the way. Every slice has a vector, so what
 * inbox.cuh argues holds for the places of parts and of sums alike.
 * Few rows are rounded to FP8 in the same kernel: a row is a cluster of blocks, which share its largest number.
 * launch   blocks of 64..512 threads, a thread four columns at a time; rounding: grid 4 rows, clusters of 4
 * math     see reduce.h; the norm as norm.cuh says
 * moves    12 rows n bytes here, rows n sizeof wire over the links for each other rank
 * roof     latency: launch, load, link, poll; the links only for messages past a megabyte */
#include "kernels/act.h"
#include "kernels/bulk.h"
#include "kernels/inbox.cuh"
#include "kernels/norm.cuh"
#include "kernels/quantise.cuh"

enum { CLUSTER = 4 };             /* blocks of a row that is rounded */
enum { MANY = 64 * RANKS };       /* vectors, so many that no slice is empty */
#define SAVES ((size_t)768 << 10) /* bytes not sent that pay for a second crossing */

/* A piece of the rows, seen as vectors of four columns. */
struct piece {
    const float *part, *gain; /* of the piece; of the norm */
    float *y;                 /* of the piece */
    uint16_t *act;            /* of all rows; NULL: no norm here */
    float *square;            /* likewise */
    enum act_form form;
    int n, first, vectors; /* a row's columns; where the piece begins; how many it has */
    int numbers;           /* in these vectors: the last may be short where there is no norm */
    int each;              /* two shots: of a slice, a multiple of 4 */
};

static __device__ void store(float *x, int at, int n, float4 v)
{
    if (at + 3 < n) {
        *(float4 *)(x + at) = v;
        return;
    }
    if (at < n)
        x[at] = v.x;
    if (at + 1 < n)
        x[at + 1] = v.y;
    if (at + 2 < n)
        x[at + 2] = v.z;
}

static __device__ float4 add(float4 a, float4 b)
{
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
}

/* Where a vector stands in its row, and the norm's weights there. */
struct seat {
    int row, column;
    float4 gain;
};

/* Reads weights only, so it may come before launch_wait. */
static __device__ struct seat seat_of(const struct piece &a, int v)
{
    struct seat s = {0, 0, {0, 0, 0, 0}};
    if (!a.act || v >= a.vectors)
        return s;
    s.row = (a.first + v) / (a.n / 4);
    s.column = (a.first + v - s.row * (a.n / 4)) * 4;
    const float *g = a.gain + s.column;
    s.gain = make_float4(g[0], g[1], g[2], g[3]);
    return s;
}

static __device__ float4 shuffle(float4 v, int mask)
{
    return make_float4(__shfl_xor_sync(0xffffffffu, v.x, mask), __shfl_xor_sync(0xffffffffu, v.y, mask),
                       __shfl_xor_sync(0xffffffffu, v.z, mask), __shfl_xor_sync(0xffffffffu, v.w, mask));
}

/* The sum of squares of a step, which four lanes hold: columns 8 apart are two lanes apart. In all four. */
static __device__ float step_square(float4 y)
{
    const float4 other = shuffle(y, 2);
    const int is_high = threadIdx.x & 2;
    const float4 low = is_high ? other : y, high = is_high ? y : other;
    const float a = norm_add(norm_pair(low.x, high.x), 1), b = norm_add(norm_pair(low.y, high.y), 1),
                c = norm_add(norm_pair(low.z, high.z), 1), d = norm_add(norm_pair(low.w, high.w), 1);
    return __fadd_rn(__fadd_rn(a, c), __fadd_rn(b, d));
}

static __device__ uint32_t act_pair(float low, float high, enum act_form form)
{
    return (uint32_t)norm_act(low, form) | (uint32_t)norm_act(high, form) << 16;
}

/* y = old + s at vector v, its square, and the act's four numbers. By whole warps, whose lanes hold vectors
 * in a row. */
static __device__ uint2 add_up(const struct piece &a, int v, float4 old, float4 s, const struct seat &at)
{
    const float4 y = add(old, s);
    store(a.y, v * 4, a.numbers, y);
    if (!a.act)
        return make_uint2(0, 0);
    const float square = step_square(y);
    if (v < a.vectors && at.column % ACT_STEP == 0)
        a.square[(size_t)at.row * (size_t)(a.n / ACT_STEP) + (size_t)(at.column / ACT_STEP)] = square;
    return make_uint2(act_pair(__fmul_rn(y.x, at.gain.x), __fmul_rn(y.y, at.gain.y), a.form),
                      act_pair(__fmul_rn(y.z, at.gain.z), __fmul_rn(y.w, at.gain.w), a.form));
}

static __device__ void store_act(const struct piece &a, int v, const struct seat &at, uint2 act)
{
    if (!a.act || v >= a.vectors)
        return;
    uint32_t *to = (uint32_t *)(a.act + act_at(at.row, at.column, a.n));
    to[0] = act.x;
    to[2] = act.y; /* two columns on is a lane, two words, on */
}

static __device__ void finish(const struct piece &a, int v, float4 old, float4 s, const struct seat &at)
{
    store_act(a, v, at, add_up(a, v, old, s, at));
}

/* Of all ranks' numbers in the order of ranks. */
template <int N, class Word>
static __device__ float4 sum_ranks(const struct reduce_way &w, float4 mine, const Word v[N])
{
    Word own;
    float4 s = make_float4(0, 0, 0, 0);
    pack(mine, &own);
#pragma unroll
    for (int p = 0; p < N; p++)
        if (p < w.world) {
            const float4 term = unpack(p == w.rank ? own : v[p]);
            s = p ? add(s, term) : term;
        }
    return s;
}

/* A vector to every other rank, each rank beginning with the next one. */
template <class Word>
static __device__ void send_all(const struct reduce_way &w, size_t inbox, int v, Word own)
{
    for (int i = 1; i < w.world; i++) {
        const int p = w.rank + i < w.world ? w.rank + i : w.rank + i - w.world;
        poke((Word *)(w.part[p] + inbox) + v, own);
    }
}

/* What a thread's first vector needs is on its way before anything else is asked for. */
template <class Word, int N>
static __global__ void __launch_bounds__(INBOX_THREADS) one_shot_kernel(struct piece a, struct reduce_way w)
{
    const int at = (int)(blockIdx.x * blockDim.x + threadIdx.x), stride = (int)(gridDim.x * blockDim.x),
              lane = (int)threadIdx.x % 32;
    if (w.early)
        launch_trigger();
    struct seat seat = seat_of(a, at);
    launch_wait();
    float4 mine = load(a.part, at * 4, a.numbers), old = load(a.y, at * 4, a.numbers);
    struct visit t = visit_open(w);
    for (int v = at; v < a.vectors && !t.lost; v += stride) {
        Word own;
        pack(v == at ? mine : load(a.part, v * 4, a.numbers), &own);
        send_all(w, t.inbox, v, own);
    }
    visit_count(w, t);
    for (int v = at; v - lane < a.vectors; v += stride) {
        Word all[N];
        if (v != at) {
            mine = load(a.part, v * 4, a.numbers);
            old = load(a.y, v * 4, a.numbers);
            seat = seat_of(a, v);
        }
        unsigned char *box = w.inbox + t.inbox + (size_t)v * sizeof(Word);
        const unsigned taken = take<N>(w, box, w.room, 0, v < a.vectors ? others(w) : 0, all, &t);
        finish(a, v, old, sum_ranks<N>(w, mine, all), seat);
        put_back<N>(box, w.room, taken, all);
    }
}

/* ---- quantised: a row is a cluster's ---- */

/* Blocks of a cluster have all begun before one writes into the memory of another. Not the aligned form:
 * lanes may come from polling one by one. */
static __device__ void cluster_arrive(void)
{
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

static __device__ void cluster_wait(void)
{
    asm volatile("barrier.cluster.wait;" ::: "memory");
}

static __device__ void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release;\n"
                 "barrier.cluster.wait.acquire;" ::
                     : "memory");
}

static __device__ void put_in_block(float *at, int block, float v)
{
    uint32_t to;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(to)
        : "r"((uint32_t)__cvta_generic_to_shared(at)), "r"(block));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(v) : "memory");
}

/* Over the cluster, in every thread. */
static __device__ float cluster_largest(float v)
{
    __shared__ float part[INBOX_THREADS / 32], all[CLUSTER];
    for (int mask = 16; mask > 0; mask /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, mask));
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    cluster_wait();
    if (threadIdx.x < CLUSTER) {
        for (unsigned i = 0; i < blockDim.x / 32; i++)
            v = fmaxf(v, part[i]);
        put_in_block(&all[blockIdx.x % CLUSTER], (int)threadIdx.x, v);
    }
    cluster_sync();
    v = 0;
#pragma unroll
    for (int i = 0; i < CLUSTER; i++)
        v = fmaxf(v, all[i]);
    return v;
}

/* One shot, a vector a thread, and the act rounded as quantise.cu does it. */
template <class Word, int N>
static __global__ void __launch_bounds__(INBOX_THREADS, 1)
    quantised_kernel(struct piece a, struct reduce_way w, float *scale)
{
    const int each = a.n / 4, row = (int)blockIdx.x / CLUSTER,
              j = (int)(blockIdx.x % CLUSTER * blockDim.x + threadIdx.x), there = j < each,
              v = there ? row * each + j : a.vectors;
    Word all[N], own;
    if (w.early)
        launch_trigger();
    cluster_arrive();
    const struct seat seat = seat_of(a, v);
    launch_wait();
    const float4 mine = load(a.part, v * 4, a.numbers), old = load(a.y, v * 4, a.numbers);
    struct visit t = visit_open(w);
    unsigned char *box = w.inbox + t.inbox + (size_t)v * sizeof(Word);
    pack(mine, &own);
    if (there && !t.lost)
        send_all(w, t.inbox, v, own);
    visit_count(w, t);
    const unsigned taken = take<N>(w, box, w.room, 0, there ? others(w) : 0, all, &t);
    const uint2 act = add_up(a, v, old, sum_ranks<N>(w, mine, all), seat);
    const float by = quantise_scale(cluster_largest(quantise_largest<ACT_F16>(0, act)));
    store_act(a, v, seat,
              make_uint2(quantise_pair<ACT_F16>(quantise_floats<ACT_F16>(act.x), by),
                         quantise_pair<ACT_F16>(quantise_floats<ACT_F16>(act.y), by)));
    if (j == 0)
        scale[row] = by;
    put_back<N>(box, w.room, taken, all);
}

/* ---- two shots ---- */

/* Vector j of those that other ranks sum, from the slice behind this rank's on. */
static __device__ int foreign(const struct piece &a, int begin, int j)
{
    const int v = begin + j;
    return v < a.vectors ? v : v - a.vectors;
}

template <class Word, int N>
static __global__ void __launch_bounds__(INBOX_THREADS) two_shot_kernel(struct piece a, struct reduce_way w)
{
    const int at = (int)(blockIdx.x * blockDim.x + threadIdx.x), stride = (int)(gridDim.x * blockDim.x),
              lane = (int)threadIdx.x % 32;
    const int first = w.rank * a.each, left = a.vectors - first, count = left < a.each ? left : a.each,
              rest = a.vectors - count;
    if (w.early)
        launch_trigger();
    launch_wait();
    struct visit t = visit_open(w);
    for (int j = at; j < rest && !t.lost; j += stride) {
        const int v = foreign(a, first + count, j), p = v / a.each;
        Word own;
        pack(load(a.part, v * 4, a.numbers), &own);
        poke((Word *)(w.part[p] + t.inbox) + (v - p * a.each), own);
    }
    visit_count(w, t);
    for (int k = at; k - lane < count; k += stride) {
        const int there = k < count, v = there ? first + k : a.vectors;
        const float4 mine = load(a.part, v * 4, a.numbers), old = load(a.y, v * 4, a.numbers);
        const struct seat seat = seat_of(a, v);
        Word all[N];
        uint4 sent;
        unsigned char *box = w.inbox + t.inbox + (size_t)k * sizeof(Word);
        const unsigned taken = take<N>(w, box, w.room, 0, there ? others(w) : 0, all, &t);
        const float4 s = sum_ranks<N>(w, mine, all);
        pack(s, &sent);
        for (int i = 1; i < w.world && there && !t.lost; i++) {
            const int p = w.rank + i < w.world ? w.rank + i : w.rank + i - w.world;
            poke((uint4 *)(w.sums[p] + t.inbox) + v + (w.alone ? (p - w.rank) * a.each : 0), sent);
        }
        finish(a, v, old, s, seat);
        put_back<N>(box, w.room, taken, all);
    }
    t.patience += t.patience / 8; /* whose sum is missing may itself wait for the rank to blame */
    for (int j = at; j - lane < rest; j += stride) {
        const int there = j < rest, v = there ? foreign(a, first + count, j) : a.vectors;
        const float4 old = load(a.y, v * 4, a.numbers);
        const struct seat seat = seat_of(a, v);
        uint4 s[1];
        unsigned char *box = w.inbox + t.inbox + (size_t)w.world * w.room + (size_t)v * sizeof(uint4);
        const unsigned taken = take<1>(w, box, 0, v / a.each, there ? 1u : 0u, s, &t);
        finish(a, v, old, unpack(s[0]), seat);
        put_back<1>(box, 0, taken, s);
    }
}

/* Alone a rank stands in for the others, so their slices must be as long as its own. */
static int two_shots(const struct reduce_way *w, enum reduce_path path, int vectors, size_t word)
{
    const size_t to = (size_t)w->world - 1, one = to * (size_t)vectors * word,
                 two = to * (size_t)(vectors / w->world) * (word + sizeof(uint4));
    if (w->world == 1 || vectors < MANY || (w->alone && vectors % (4 * w->world)))
        return 0;
    return path == REDUCE_TWO_SHOT || (path != REDUCE_ONE_SHOT && one > two + SAVES);
}

template <class Word, int N>
static int launch_shots(const struct piece *a, const struct reduce_way *w, enum reduce_path path,
                        const struct launch *l)
{
    return two_shots(w, path, a->vectors, sizeof(Word)) ? launch_kernel(l, two_shot_kernel<Word, N>, *a, *w)
                                                        : launch_kernel(l, one_shot_kernel<Word, N>, *a, *w);
}

template <class Word>
static int launch_world(const struct piece *a, const struct reduce_way *w, enum reduce_path path,
                        const struct launch *l)
{
    return w->world <= 2   ? launch_shots<Word, 2>(a, w, path, l)
           : w->world <= 4 ? launch_shots<Word, 4>(a, w, path, l)
                           : launch_shots<Word, RANKS>(a, w, path, l);
}

/* Where the row's largest number can be had within the kernel: its clusters find room beside whatever else
 * runs, all at once, and it goes in one piece and one shot. */
static int rounds_itself(const struct piece *a, const struct reduce_way *w, const struct reduce *r)
{
    const size_t word = r->wire == WIRE_BF16 ? sizeof(uint2) : sizeof(uint4);
    return r->scale && a->act && w->early && a->form == ACT_F16 && a->numbers == r->rows * r->n &&
           a->n <= 4 * CLUSTER * INBOX_THREADS && r->rows * CLUSTER <= w->blocks &&
           !two_shots(w, r->path, a->vectors, word);
}

template <class Word>
static int launch_quantised(const struct piece *a, const struct reduce_way *w, const struct reduce *r,
                            void *stream)
{
    const int share = (a->n / 4 + CLUSTER - 1) / CLUSTER;
    struct launch l = {};
    l.grid = (unsigned)(r->rows * CLUSTER);
    l.block = (unsigned)((share + 31) / 32 * 32);
    l.cluster = CLUSTER;
    l.stream = stream;
    return w->world <= 2   ? launch_kernel(&l, quantised_kernel<Word, 2>, *a, *w, r->scale)
           : w->world <= 4 ? launch_kernel(&l, quantised_kernel<Word, 4>, *a, *w, r->scale)
                           : launch_kernel(&l, quantised_kernel<Word, RANKS>, *a, *w, r->scale);
}

static int quantise_behind(const struct reduce *a, void *stream)
{
    const struct quantise q = reduce_quantise(a);
    return q.bulk ? quantise_bulk_cuda(&q, stream) : quantise_cuda(&q, stream);
}

/* A step of 16 columns lies in four neighbouring lanes only where rows are whole steps. */
KERN_API int reduce_cuda(const struct reduce *a, const struct reduce_way *w, void *stream)
{
    const int fused = !a->norm.bulk && a->n % ACT_STEP == 0;
    const size_t numbers = (size_t)a->rows * (size_t)a->n, vectors = (numbers + 3) / 4;
    struct piece p = {};
    int rc = 0;
    p.gain = a->norm.w;
    p.act = fused ? (uint16_t *)a->norm.y.act : NULL;
    p.square = a->norm.y.square;
    p.form = a->norm.y.form;
    p.n = a->n;
    for (size_t at = 0; at < vectors && rc == 0; at += (size_t)p.vectors) {
        p.part = a->part + at * 4;
        p.y = a->y + at * 4;
        p.first = (int)at;
        p.vectors = inbox_piece(w, vectors - at);
        p.numbers =
            (int)(numbers - at * 4 < (size_t)p.vectors * 4 ? numbers - at * 4 : (size_t)p.vectors * 4);
        p.each = ((p.vectors + w->world - 1) / w->world + 3) / 4 * 4;
        const struct launch l = inbox_launch(w, p.vectors, stream);
        if (rounds_itself(&p, w, a))
            return a->wire == WIRE_BF16 ? launch_quantised<uint2>(&p, w, a, stream)
                                        : launch_quantised<uint4>(&p, w, a, stream);
        rc = a->wire == WIRE_BF16 ? launch_world<uint2>(&p, w, a->path, &l)
                                  : launch_world<uint4>(&p, w, a->path, &l);
    }
    if (rc == 0 && !fused && a->rows > 0)
        rc = a->norm.bulk ? rmsnorm_bulk_cuda(&a->norm, stream) : rmsnorm_cuda(&a->norm, stream);
    return rc == 0 && a->scale && a->rows > 0 ? quantise_behind(a, stream) : rc;
}

template <class Word, int N> static int load_shots(void)
{
    const void *const kernels[] = {(const void *)one_shot_kernel<Word, N>,
                                   (const void *)two_shot_kernel<Word, N>,
                                   (const void *)quantised_kernel<Word, N>};
    cudaError_t rc = cudaSuccess;
    for (int i = 0; i < 3 && rc == cudaSuccess; i++) {
        cudaFuncAttributes attributes;
        rc = cudaFuncGetAttributes(&attributes, kernels[i]);
    }
    return (int)rc;
}

template <int N> static int load_world(void)
{
    const int rc = load_shots<uint2, N>();
    return rc ? rc : load_shots<uint4, N>();
}

KERN_API int reduce_cuda_load(int world)
{
    return world <= 2 ? load_world<2>() : world <= 4 ? load_world<4>() : load_world<RANKS>();
}
