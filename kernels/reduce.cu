/* reduce: every rank writes its part straight into an inbox of each other rank and polls its own inboxes on
 * the numbers themselves, so a collective costs one crossing of the links and no flag, fence or barrier.
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
 * two shot Rank p sums slice p of the columns and sends the sums on: 2 / world of the bytes and twice the way.
 *          Every slice has a vector, so the argument above holds for the places of parts and of sums alike.
 * sharing  Ranks on one GPU: a kernel that spins keeps its place on a multiprocessor until the other ranks'
 *          kernels have run, so all spinning blocks together are fewer than the places, and no kernel may be
 *          let in behind a spinning one to wait there in the place of one that another rank needs: no
 *          launch_trigger. Otherwise the next kernel starts beside this one and fetches its weights meanwhile.
 * launch   blocks of 64..512 threads, a thread four columns at a time
 * math     see reduce.h; the norm as norm.cuh says
 * moves    12 rows n bytes here, rows n sizeof wire over the links for each other rank
 * roof     latency: launch, load, NVLink, poll, about 3 us; the links only for messages past a megabyte */
#include "kernels/act.h"
#include "kernels/bulk.h"
#include "kernels/clock.cuh"
#include "kernels/launch.cuh"
#include "kernels/norm.cuh"
#include "kernels/reduce_cuda.h"

enum { THREADS = 512, MIN_THREADS = 64, RANKS = REDUCE_RANKS, LOOK = 1024, MANY = 64 * RANKS };
#define EMPTY 0xffffffffu
#define SAVES ((size_t)768 << 10) /* bytes not sent that pay for a second crossing */

/* ---- words ---- */

static __device__ uint32_t filled(uint32_t word)
{
    return word == EMPTY ? 0x7fff7fffu : word;
}

static __device__ uint32_t bf16_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* Four numbers as they travel: f32, or bf16. */
static __device__ void pack(float4 v, uint4 *to)
{
    *to = make_uint4(filled(__float_as_uint(v.x)), filled(__float_as_uint(v.y)), filled(__float_as_uint(v.z)),
                     filled(__float_as_uint(v.w)));
}

static __device__ void pack(float4 v, uint2 *to)
{
    *to = make_uint2(filled(bf16_pair(v.x, v.y)), filled(bf16_pair(v.z, v.w)));
}

static __device__ float4 unpack(uint4 v)
{
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z),
                       __uint_as_float(v.w));
}

static __device__ float4 unpack(uint2 v)
{
    return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
                       __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u));
}

static __device__ int whole(uint4 v)
{
    return v.x != EMPTY && v.y != EMPTY && v.z != EMPTY && v.w != EMPTY;
}

static __device__ int whole(uint2 v)
{
    return v.x != EMPTY && v.y != EMPTY;
}

/* Past the L1, at the scope of all GPUs. */
static __device__ uint4 peek(const uint4 *at)
{
    uint4 v;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at)
                 : "memory");
    return v;
}

static __device__ uint2 peek(const uint2 *at)
{
    uint2 v;
    asm volatile("ld.relaxed.sys.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at) : "memory");
    return v;
}

static __device__ void poke(uint4 *at, uint4 v)
{
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
}

static __device__ void poke(uint2 *at, uint2 v)
{
    asm volatile("st.relaxed.sys.global.v2.u32 [%0], {%1, %2};" ::"l"(at), "r"(v.x), "r"(v.y) : "memory");
}

static __device__ void fill(uint32_t word, uint4 *v)
{
    *v = make_uint4(word, word, word, word);
}

static __device__ void fill(uint32_t word, uint2 *v)
{
    *v = make_uint2(word, word);
}

/* ---- turns ---- */

/* A kernel's turn, and how long it has waited. */
struct visit {
    unsigned turn;
    int lost;
    size_t inbox; /* bytes from turn 0 to this one */
    int64_t since;
};

static __device__ struct visit visit_open(const struct reduce_way &w)
{
    struct visit t = {0, 0, 0, 0};
    if (w.world > 1) {
        t.turn = ((const volatile struct reduce_state *)w.state)->turn[blockIdx.x];
        t.lost = ((const volatile struct reduce_state *)w.state)->lost != 0;
        t.inbox = (size_t)(t.turn % 2) * ((size_t)w.world + 1) * w.room;
    }
    return t;
}

/* By all threads once all of them have opened their visit. */
static __device__ void visit_count(const struct reduce_way &w, const struct visit &t)
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
static __device__ int visit_is_lost(const struct reduce_way &w, int awaited, struct visit *t)
{
    volatile struct reduce_state *state = w.state;
    const int64_t now = clock_now();
    int why = state->lost ? REDUCE_LOST_HOST : *w.lost;
    if (!t->since)
        t->since = now;
    if (!why && now - t->since > w.patience_ns)
        *w.lost = why = awaited + 1;
    if (why)
        state->lost = 1;
    return t->lost = why != 0;
}

static __device__ unsigned others(const struct reduce_way &w)
{
    return ((1u << w.world) - 1) & ~(1u << w.rank);
}

/* v[i] = what stands at box + i * stride for the bits i of wanted, once it has come; zeros when a rank is
 * lost. The sender at bit i is rank first + i. */
template <class Word>
static __device__ void take(const struct reduce_way &w, const unsigned char *box, size_t stride, int first,
                            unsigned wanted, Word v[RANKS], struct visit *t)
{
    Word empty;
    unsigned missing = wanted;
    fill(EMPTY, &empty);
    for (int spins = 1; missing && !t->lost; spins++) {
#pragma unroll
        for (int i = 0; i < RANKS; i++)
            if (missing >> i & 1)
                v[i] = peek((const Word *)(box + (size_t)i * stride));
#pragma unroll
        for (int i = 0; i < RANKS; i++)
            if ((missing >> i & 1) && whole(v[i]))
                missing &= ~(1u << i);
        if (missing && spins % LOOK == 0)
            visit_is_lost(w, first + __ffs((int)missing) - 1, t);
    }
#pragma unroll
    for (int i = 0; i < RANKS; i++) {
        if (wanted & ~missing & 1u << i)
            poke((Word *)(box + (size_t)i * stride), empty);
        if (!(wanted & ~missing & 1u << i))
            fill(0, &v[i]);
    }
}

/* ---- reduce ---- */

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

/* Numbers at..at + 3 of n, zeros past the end. */
static __device__ float4 load(const float *x, int at, int n)
{
    if (at + 3 < n)
        return *(const float4 *)(x + at);
    return make_float4(at < n ? x[at] : 0.0f, at + 1 < n ? x[at + 1] : 0.0f, at + 2 < n ? x[at + 2] : 0.0f,
                       0);
}

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

/* y = old + s at vector v, and the norm's share of it. By whole warps, whose lanes hold vectors in a row. */
static __device__ void finish(const struct piece &a, int v, float4 old, float4 s, const struct seat &at)
{
    const float4 y = add(old, s);
    store(a.y, v * 4, a.numbers, y);
    if (!a.act)
        return;
    const float square = step_square(y);
    if (v >= a.vectors)
        return;
    uint32_t *to =
        (uint32_t *)(a.act + act_at(at.row, at.column, a.n)); /* two columns on is a lane, two words, on */
    to[0] = act_pair(__fmul_rn(y.x, at.gain.x), __fmul_rn(y.y, at.gain.y), a.form);
    to[2] = act_pair(__fmul_rn(y.z, at.gain.z), __fmul_rn(y.w, at.gain.w), a.form);
    if (at.column % ACT_STEP == 0)
        a.square[(size_t)at.row * (size_t)(a.n / ACT_STEP) + (size_t)(at.column / ACT_STEP)] = square;
}

/* Of all ranks' numbers in the order of ranks. */
template <class Word>
static __device__ float4 sum_ranks(const struct reduce_way &w, float4 mine, Word v[RANKS])
{
    Word own;
    float4 s = make_float4(0, 0, 0, 0);
    pack(mine, &own);
#pragma unroll
    for (int p = 0; p < RANKS; p++)
        if (p < w.world) {
            const float4 term = unpack(p == w.rank ? own : v[p]);
            s = p ? add(s, term) : term;
        }
    return s;
}

template <class Word>
static __global__ void __launch_bounds__(THREADS) one_shot_kernel(struct piece a, struct reduce_way w)
{
    const int at = (int)(blockIdx.x * blockDim.x + threadIdx.x), stride = (int)(gridDim.x * blockDim.x),
              lane = (int)threadIdx.x % 32;
    if (w.early)
        launch_trigger();
    struct seat seat = seat_of(a, at);
    launch_wait();
    struct visit t = visit_open(w);
    for (int v = at; v < a.vectors && !t.lost; v += stride) {
        Word own;
        pack(load(a.part, v * 4, a.numbers), &own);
        for (int i = 1; i < w.world; i++) {
            const int p = w.rank + i < w.world ? w.rank + i : w.rank + i - w.world;
            poke((Word *)(w.part[p] + t.inbox) + v, own);
        }
    }
    visit_count(w, t);
    for (int v = at; v - lane < a.vectors; v += stride) {
        const float4 mine = load(a.part, v * 4, a.numbers), old = load(a.y, v * 4, a.numbers);
        Word all[RANKS];
        if (v != at)
            seat = seat_of(a, v);
        take(w, w.inbox + t.inbox + (size_t)v * sizeof(Word), w.room, 0, v < a.vectors ? others(w) : 0, all,
             &t);
        finish(a, v, old, sum_ranks(w, mine, all), seat);
    }
}

/* Vector j of those that other ranks sum, from the slice behind this rank's on. */
static __device__ int foreign(const struct piece &a, int begin, int j)
{
    const int v = begin + j;
    return v < a.vectors ? v : v - a.vectors;
}

template <class Word>
static __global__ void __launch_bounds__(THREADS) two_shot_kernel(struct piece a, struct reduce_way w)
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
        Word all[RANKS];
        uint4 sent;
        take(w, w.inbox + t.inbox + (size_t)k * sizeof(Word), w.room, 0, there ? others(w) : 0, all, &t);
        const float4 s = sum_ranks(w, mine, all);
        pack(s, &sent);
        for (int i = 1; i < w.world && there && !t.lost; i++) {
            const int p = w.rank + i < w.world ? w.rank + i : w.rank + i - w.world;
            poke((uint4 *)(w.sums[p] + t.inbox) + v + (w.alone ? (p - w.rank) * a.each : 0), sent);
        }
        finish(a, v, old, s, seat);
    }
    for (int j = at; j - lane < rest; j += stride) {
        const int there = j < rest, v = there ? foreign(a, first + count, j) : a.vectors;
        const float4 old = load(a.y, v * 4, a.numbers);
        const struct seat seat = seat_of(a, v);
        uint4 s[RANKS];
        take(w, w.inbox + t.inbox + (size_t)w.world * w.room + (size_t)v * sizeof(uint4), 0, v / a.each,
             there ? 1u : 0u, s, &t);
        finish(a, v, old, unpack(s[0]), seat);
    }
}

/* ---- gather ---- */

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

static __global__ void __launch_bounds__(THREADS) gather_kernel(struct gathering g, struct reduce_way w)
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
        take(w, w.inbox + t.inbox + (size_t)v * sizeof(uint4), w.room, 0, wanted, all, &t);
#pragma unroll
        for (int p = 0; p < RANKS; p++)
            if (wanted >> p & 1)
                place(g, w, p, w.alone ? own : columns(g, w, p), v, unpack(all[p]));
    }
}

/* ---- launches ---- */

static struct launch launch_of(const struct reduce_way *w, int vectors, void *stream)
{
    const int share = (vectors + w->blocks - 1) / w->blocks, warps = (share + 31) / 32 * 32,
              threads = warps < MIN_THREADS ? MIN_THREADS
                        : warps < THREADS   ? warps
                                            : THREADS,
              blocks = (vectors + threads - 1) / threads;
    struct launch l = {};
    l.grid = (unsigned)(blocks < w->blocks ? blocks : w->blocks);
    l.block = (unsigned)threads;
    l.stream = stream;
    return l;
}

/* Alone a rank stands in for the others, so their slices must be as long as its own. */
static int two_shots(const struct reduce_way *w, int vectors, size_t word)
{
    const size_t to = (size_t)w->world - 1, one = to * (size_t)vectors * word,
                 two = to * (size_t)(vectors / w->world) * (word + sizeof(uint4));
    if (w->world == 1 || vectors < MANY || (w->alone && vectors % (4 * w->world)))
        return 0;
    return w->shots == REDUCE_BY_SIZE ? one > two + SAVES : w->shots == REDUCE_TWO_SHOT;
}

static int reduce_piece(const struct piece *a, const struct reduce_way *w, enum wire wire, void *stream)
{
    const struct launch l = launch_of(w, a->vectors, stream);
    if (two_shots(w, a->vectors, wire == WIRE_BF16 ? sizeof(uint2) : sizeof(uint4)))
        return wire == WIRE_BF16 ? launch_kernel(&l, two_shot_kernel<uint2>, *a, *w)
                                 : launch_kernel(&l, two_shot_kernel<uint4>, *a, *w);
    return wire == WIRE_BF16 ? launch_kernel(&l, one_shot_kernel<uint2>, *a, *w)
                             : launch_kernel(&l, one_shot_kernel<uint4>, *a, *w);
}

/* Vectors of the next piece of `left`. */
static int piece_of(const struct reduce_way *w, size_t left)
{
    const size_t room = w->world > 1 ? w->room / sizeof(float4) : left;
    return (int)(left < room ? left : room);
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
        p.vectors = piece_of(w, vectors - at);
        p.numbers =
            (int)(numbers - at * 4 < (size_t)p.vectors * 4 ? numbers - at * 4 : (size_t)p.vectors * 4);
        p.each = ((p.vectors + w->world - 1) / w->world + 3) / 4 * 4;
        rc = reduce_piece(&p, w, a->wire, stream);
    }
    if (rc || fused || a->rows == 0)
        return rc;
    return a->norm.bulk ? rmsnorm_bulk_cuda(&a->norm, stream) : rmsnorm_cuda(&a->norm, stream);
}

KERN_API int gather_cuda(const struct gather *a, const struct reduce_way *w, void *stream)
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
        g.vectors = piece_of(w, vectors - at);
        const struct launch l = launch_of(w, g.vectors, stream);
        rc = launch_kernel(&l, gather_kernel, g, *w);
    }
    return rc;
}

KERN_API int reduce_cuda_load(void)
{
    const void *const kernels[] = {(const void *)one_shot_kernel<uint2>, (const void *)one_shot_kernel<uint4>,
                                   (const void *)two_shot_kernel<uint2>, (const void *)two_shot_kernel<uint4>,
                                   (const void *)gather_kernel};
    for (const void *kernel : kernels) {
        cudaFuncAttributes attributes;
        const cudaError_t rc = cudaFuncGetAttributes(&attributes, kernel);
        if (rc != cudaSuccess)
            return (int)rc;
    }
    return 0;
}
