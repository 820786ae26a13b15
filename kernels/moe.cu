/* moe_cuda: a layer of routed experts, 64 rows at a time, with the sums of gemm_core.cuh.
 *
 * launch   moe_gate_up: grid [tiles of 16 outputs, 1, 1 + the most experts that the rows can choose], 8 warps;
 *          part 0 is the shared expert, part u the u-th chosen one in rising order; parts that are not there
 *          exit at once
 *          moe_down: grid [tiles of 16 outputs], 8 warps, all experts of a row in rising order
 *          where activations are rounded, quantise.cu before both products, and moe_round.cu where routed
 *          experts have static scales; in bulk to_fragments ahead of each 64 rows and the norm behind all of them
 *
 * forms    each kernel is made for the weights of the shared expert and for those of the others: both F16 acts
 *          where all are FP8, BF16 acts elsewhere, for which FP8 weights are widened to BF16
 *
 * order    K in loads of 16 bytes a lane, dealt in turn to the 8 slices; a slice adds
 * its loads in order, then slices are added in order. A column of the product sees its row alone, so neither
 * its place nor its neighbours matter. down: the stream, plus the shared expert, plus a row's experts in rising
 * order.
 *
 * moves    gate_up: each chosen expert's weights once from memory; more than 8 rows of one expert come back
 * for them from the second level cache, octet by octet. down: likewise an octet of rows at a time
 *
 * roof     memory: 5 experts of 10.5 and 5.2 MB (5120 x 1024, FP8) are 79 MB, 25 us at 3.1 TB/s */
#include "kernels/bulk.h"
#include "kernels/moe_parts.cuh"
#include "kernels/moe_round.cuh"

enum { CONVERT_THREADS = 256, BATCH = 8, WORD = 32 };

/* Weights in FP8 beside others in BF16: widened to BF16, which holds them as exactly as F16 does, so that one
 * act in BF16 serves both. */
enum { FORM_WIDENED = 2 };

/* Of two E4M3 in F16. */
__device__ static uint32_t bf16_pair(uint32_t pair)
{
    const __nv_bfloat162 v = __float22bfloat162_rn(__half22float2(*(const __half2 *)&pair));
    return *(const uint32_t *)&v;
}

template <> __device__ inline uint4 fragment<FORM_WIDENED>(uint4 w, int half)
{
    const uint4 v = fragment<MATRIX_FP8>(w, half);
    return make_uint4(bf16_pair(v.x), bf16_pair(v.y), bf16_pair(v.z), bf16_pair(v.w));
}

template <> __device__ inline void mma<FORM_WIDENED>(float4 *c, uint4 a, uint2 b)
{
    mma<MATRIX_BF16>(c, a, b);
}

/* The constants of a product with weights of form F, DEPTH loads of them in flight. */
template <int F, int DEPTH>
struct moe_shape
    : gemm_shape<F == MATRIX_BF16 ? MATRIX_BF16 : MATRIX_FP8, 1, 1, OCTET, 1, DEPTH, F == MATRIX_BF16 ? 4 : 2, 3> {
    enum { FORM = F };
};

/* Where the matrices of a kind are; [0] the shared one, then the routed. */
struct moe_weights {
    const uint4 *w[1 + MOE_EXPERTS];
    const float *scale[1 + MOE_EXPERTS];
};

struct moe_args {
    struct moe_weights of;
    struct gemm_args product; /* w, loads, scale, x, square, row_scale not set */
    const uint2 *x[2];        /* of the shared expert, of the routed ones */
    void *y[2];               /* likewise, of gate_up */
    const float *row_scale[2]; /* NULL: none */
    const float *square[2];
    const int *expert;
    const float *score;
    int experts, top_k;
    int partial; /* of down: y's old numbers are not read */
    int apart; /* gate_up: a choice has a row of x[1] of its own, with its score in it */
};

/* The experts that rows [first, first + rows) chose, in rising order; all threads of the block come here, after
 * the dependency wait. */
struct chosen {
    uint32_t seen[MOE_EXPERTS / WORD];
    int n, list[MOE_EXPERTS];
};

__device__ static void chosen_find(struct chosen *to, const struct moe_args &a, int first, int rows)
{
    const int lane = threadIdx.x, words = MOE_EXPERTS / WORD;
    __syncthreads();
    if (threadIdx.x < words)
        to->seen[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < rows * a.top_k; i += blockDim.x) {
        const int e = a.expert[first * a.top_k + i];
        if (e >= 0 && e < a.experts)
            atomicOr(&to->seen[e / WORD], 1u << e % WORD);
    }
    __syncthreads();
    if (threadIdx.x < words) {
        int at = 0;
        for (int i = 0; i < lane; i++)
            at += __popc(to->seen[i]);
        for (uint32_t left = to->seen[lane]; left; left &= left - 1)
            to->list[at++] = lane * WORD + __ffs((int)left) - 1;
        if (lane == words - 1)
            to->n = at;
    }
    __syncthreads();
}

/* Which of row r's choices expert e is, -1: none. */
__device__ static int choice_of(const struct moe_args &a, int r, int e)
{
    for (int j = 0; j < a.top_k; j++)
        if (a.expert[r * a.top_k + j] == e)
            return r * a.top_k + j;
    return -1;
}

/* A row of the act that a lane's column reads. */
__device__ static const uint2 *column(const uint2 *x, int row, int steps)
{
    return x + (size_t)(row / ACT_ROWS) * (size_t)steps * LANES + row % ACT_ROWS * 4 -
           threadIdx.x % LANES / 4 * 4;
}

template <class S> __device__ static struct gemm_args product_of(const struct moe_args &a, int which)
{
    struct gemm_args p = a.product;
    p.loads = (p.steps + S::STEPS - 1) / S::STEPS;
    p.w = a.of.w[which];
    p.scale = a.of.scale[which];
    p.square = p.row_scale = NULL;
    return p;
}

/* The rows that chose an expert, and where each stands in x. */
struct members {
    int n, row[ROW_BLOCK], choice[ROW_BLOCK], at[ROW_BLOCK];
};

__device__ static void members_find(struct members *to, const struct moe_args &a, int e, int rows)
{
    if (threadIdx.x < LANES) {
        int n = 0;
        for (int at = 0; at < rows; at += LANES) {
            const int r = at + threadIdx.x, choice = r < rows ? choice_of(a, r, e) : -1;
            const uint32_t with = __ballot_sync(FULL_WARP, choice >= 0);
            const int place = n + __popc(with & ((1u << threadIdx.x) - 1));
            if (choice >= 0) {
                to->row[place] = r;
                to->choice[place] = choice;
                to->at[place] = a.apart ? choice : r;
            }
            n += __popc(with);
        }
        if (threadIdx.x == 0)
            to->n = n;
    }
    __syncthreads();
}

/* What a column's sums are multiplied by; score and scale are 1 for the shared expert. */
struct column_factor {
    float inverse_rms, scale, score;
};

__device__ static void gate_up_end(const struct moe_args &a, const struct gemm_args &p, int part, float4 sum,
                                   const int *act_row, const struct column_factor *factor, int columns)
{
    const int lane = threadIdx.x % LANES, m = p.n / 2, j = blockIdx.x * OCTET + lane / 4;
    const float v[2][2] = {{sum.x, sum.z}, {sum.y, sum.w}};
    uint16_t *y = (uint16_t *)a.y[part];
    for (int c = 0; c < 2; c++) {
        const int col = lane % 4 * 2 + c;
        float both[2];
        if (col >= columns || j >= m)
            continue;
        for (int h = 0; h < 2; h++) {
            const struct column_factor f = factor[col];
            const float scaled = p.scale ? __fmul_rn(v[c][h], p.scale[j + h * m]) : v[c][h];
            both[h] = __fmul_rn(__fmul_rn(__fmul_rn(scaled, f.inverse_rms), f.scale), f.score);
        }
        y[act_at(act_row[col], j, m)] = norm_act(__fmul_rn(silu(both[0]), both[1]), p.y_form);
    }
}

template <int SHARED, int ROUTED>
static __global__ void __launch_bounds__(OCTET *LANES, 3) moe_gate_up(const __grid_constant__ struct moe_args a)
{
    typedef moe_shape<SHARED, 8> S;
    typedef moe_shape<ROUTED, 8> R;
    launch_trigger();
    __shared__ float4 sums[OCTET * LANES];
    __shared__ struct chosen chosen;
    __shared__ struct members members;
    __shared__ struct column_factor factor[ACT_ROWS];
    __shared__ int act_row[ACT_ROWS];
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, part = blockIdx.z > 0;
    const int rows = a.product.rows;
    int which = 0, n = rows;
    if (part) {
        launch_wait();
        chosen_find(&chosen, a, 0, rows);
        if ((int)blockIdx.z > chosen.n)
            return;
        which = 1 + chosen.list[blockIdx.z - 1];
        members_find(&members, a, which - 1, rows);
        n = members.n;
    }
    const int as_routed = SHARED == ROUTED || part;
    struct gemm_args p = as_routed ? product_of<R>(a, which) : product_of<S>(a, which);
    for (int first = 0; first < n; first += ACT_ROWS) {
        const int col = first + lane / 4, mine = first + warp;
        float4 sum[1][1] = {};
        p.x = column(a.x[part], col >= n ? 0 : part ? members.at[col] : col, p.steps);
        p.rows = n - first;
        if (as_routed)
            slice_sums<R>(p, blockIdx.x, warp, 0, NULL, sum, [] {});
        else
            slice_sums<S>(p, blockIdx.x, warp, 0, NULL, sum, [] {});
        sums[warp * LANES + lane] = sum[0][0];
        if (mine < n) {
            const int row = part ? members.row[mine] : mine, choice = part ? members.choice[mine] : mine;
            const float by = inverse_rms(a.square[part], row, p.steps, p.k, p.eps);
            if (lane == 0) {
                const float *scale = a.row_scale[part];
                act_row[warp] = choice;
                factor[warp] = {by, scale ? scale[part ? members.at[mine] : mine] : 1.0f,
                                part && !a.apart ? a.score[choice] : 1.0f};
            }
        }
        __syncthreads();
        if (warp == 0)
            gate_up_end(a, p, part, slices_sum(sums, OCTET), act_row, factor, n - first);
        __syncthreads();
    }
}

/* An octet of rows, BATCH experts at a time: their sums meet once a batch, so that no warp waits for another
 * between two experts. */
struct down_batch {
    float4 sums[BATCH][OCTET * LANES], done[BATCH][LANES];
    uint32_t with[BATCH]; /* bit c: column c's row chose it */
    int which[BATCH];
};

/* Sums of one expert for the octet from row `first` on. which 0: the shared one. */
template <class S>
__device__ static void down_sums(const struct moe_args &a, int which, int first, struct down_batch *b, int at)
{
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, r = first + lane / 4;
    const int there = r < a.product.rows;
    struct gemm_args p = product_of<S>(a, which);
    float4 sum[1][1] = {};
    const int row = !there ? -1 : which ? choice_of(a, r, which - 1) : r;
    p.x = column(a.x[which > 0], row < 0 ? 0 : row, p.steps);
    p.rows = row < 0 ? 0 : ACT_ROWS;
    slice_sums<S>(p, blockIdx.x, warp, 0, NULL, sum, [] {});
    b->sums[at][warp * LANES + lane] = sum[0][0];
    if (threadIdx.x == 0)
        b->which[at] = which;
}

/* By warp `at`: the slices' sums of one expert, with their factors. */
__device__ static void down_meet(const struct moe_args &a, int first, struct down_batch *b, int at)
{
    const int lane = threadIdx.x % LANES, which = b->which[at];
    const float4 s = slices_sum(b->sums[at], OCTET);
    float v[2][2] = {{s.x, s.z}, {s.y, s.w}};
    const float *scale = a.of.scale[which], *row_scale = a.row_scale[which > 0];
    uint32_t with = 0;
    for (int c = 0; c < 2; c++) {
        const int col = lane % 4 * 2 + c, r = first + col;
        const int row = r >= a.product.rows ? -1 : which ? choice_of(a, r, which - 1) : r;
        with |= row >= 0 ? 1u << col : 0;
        for (int h = 0; h < 2 && row >= 0; h++) {
            const int j = blockIdx.x * TILE + lane / 4 + h * OCTET;
            const float scaled = scale && j < a.product.n ? __fmul_rn(v[c][h], scale[j]) : v[c][h];
            v[c][h] = row_scale ? __fmul_rn(scaled, row_scale[row]) : scaled;
        }
    }
    with = __reduce_or_sync(FULL_WARP, with);
    b->done[at][lane] = make_float4(v[0][0], v[1][0], v[0][1], v[1][1]);
    if (lane == 0)
        b->with[at] = with;
}

__device__ static void down_add(const struct down_batch *b, int n, float v[2][2])
{
    const int lane = threadIdx.x % LANES;
    for (int i = 0; i < n; i++) {
        const float4 d = b->done[i][lane];
        const float more[2][2] = {{d.x, d.z}, {d.y, d.w}};
        for (int c = 0; c < 2; c++)
            for (int h = 0; h < 2; h++)
                if (b->with[i] >> (lane % 4 * 2 + c) & 1)
                    v[c][h] = __fadd_rn(v[c][h], more[c][h]);
    }
}

__device__ static void down_end(const struct moe_args &a, int first, const float v[2][2])
{
    struct gemm_args p = a.product;
    const int row = first + threadIdx.x % LANES % 4 * 2;
    struct tile_needs needs = {};
    struct tile_lane s = {(int)blockIdx.x, row, {{v[0][0], v[0][1]}, {v[1][0], v[1][1]}}};
    p.epilogue = EPILOGUE_RESIDUAL;
    for (int h = 0; h < 2; h++) {
        const int j = output_of(p, s.tile, h);
        needs.gain[h] = p.normed && j < p.n ? p.gain[j] : 0.0f;
    }
    if (p.normed)
        end_residual(p, needs, &s);
    else
        end_sums(p, needs, &s);
}

template <int SHARED, int ROUTED>
static __global__ void __launch_bounds__(OCTET *LANES, 3) moe_down(const __grid_constant__ struct moe_args a)
{
    typedef moe_shape<SHARED, SHARED == MATRIX_BF16 ? 8 : 4> S;
    typedef moe_shape<ROUTED, ROUTED == MATRIX_BF16 ? 8 : 4> R;
    launch_trigger();
    extern __shared__ float4 room[];
    __shared__ struct chosen chosen;
    struct down_batch *b = (struct down_batch *)room;
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    for (int first = 0; first < a.product.rows; first += ACT_ROWS) {
        const int rows = min(a.product.rows - first, (int)ACT_ROWS);
        float v[2][2] = {};
        down_sums<S>(a, 0, first, b, 0);
        chosen_find(&chosen, a, first, rows);
        for (int c = 0; c < 2 && warp == 0; c++)
            for (int h = 0; h < 2; h++) {
                const int r = lane % 4 * 2 + c, j = blockIdx.x * TILE + lane / 4 + h * OCTET;
                if (!a.partial && r < rows && j < a.product.n)
                    v[c][h] = ((const float *)a.product.y)[(size_t)(first + r) * (size_t)a.product.n + j];
            }
        for (int done = 0; done <= chosen.n; done += BATCH) {
            const int n = min(chosen.n + 1 - done, (int)BATCH);
            for (int i = 0; i < n; i++)
                if (done + i > 0)
                    down_sums<R>(a, 1 + chosen.list[done + i - 1], first, b, i);
            __syncthreads();
            if (warp < n)
                down_meet(a, first, b, warp);
            __syncthreads();
            if (warp == 0)
                down_add(b, n, v);
        }
        if (warp == 0)
            down_end(a, first, v);
        __syncthreads();
    }
}

static size_t lines(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static size_t act_rows_bytes(int rows, int k)
{
    return lines((size_t)((rows + ACT_ROWS - 1) / ACT_ROWS) * act_tile(k) * sizeof(uint16_t));
}

static struct moe_room room_of(void *scratch, int rows, int hidden, int ffn, int top_k)
{
    const size_t factors = lines((size_t)rows * sizeof(float));
    struct moe_room m = {};
    char *at = (char *)scratch;
    m.x = at, at += act_rows_bytes(rows, hidden);
    m.rounded = at, at += act_rows_bytes(rows * top_k, hidden);
    m.h[0] = at, at += act_rows_bytes(rows, ffn);
    m.h[1] = at, at += act_rows_bytes(rows * top_k, ffn);
    m.scale[0] = (float *)at, at += factors;
    m.scale[1] = (float *)at, at += factors * (size_t)top_k;
    m.bytes = (size_t)(at - (char *)scratch);
    return m;
}

KERN_API size_t moe_cuda_scratch(int rows, int hidden, int ffn, int top_k)
{
    return room_of(NULL, rows < ROW_BLOCK ? rows : ROW_BLOCK, hidden, ffn, top_k).bytes;
}

static void weights_of(struct moe_weights *to, const struct matrix *shared, const struct matrix *routed, int experts)
{
    for (int i = 0; i <= experts; i++) {
        const struct matrix *w = i ? &routed[i - 1] : shared;
        to->w[i] = (const uint4 *)w->data;
        to->scale[i] = w->scale;
    }
}

static struct moe_forms forms_of(const struct moe *a, const struct matrix *shared, const struct matrix *routed)
{
    struct moe_forms f = {{shared->form, routed->form}, moe_act_form(shared, routed), {}, a->round == ROUND_STATIC};
    for (int i = 0; i < 2; i++)
        f.rounds[i] = a->round && f.w[i] == MATRIX_FP8;
    return f;
}

static int launch_gate_up(const struct moe *a, const struct moe_room *m, const struct moe_forms *forms, void *stream)
{
    const int pairs = a->rows * a->top_k, most = pairs < a->experts ? pairs : a->experts;
    const int mixed = forms->rounds[0] != forms->rounds[1];
    struct moe_args p = {};
    p.apart = forms->fixed && forms->rounds[1];
    weights_of(&p.of, a->shared.gate_up, a->gate_up, a->experts);
    p.product = gemm_args_of(a->shared.gate_up, a->rows);
    p.product.eps = a->eps;
    p.product.epilogue = EPILOGUE_SWIGLU;
    p.product.y_form = moe_act_form(a->shared.down, a->down);
    for (int i = 0; i < 2; i++) {
        const int apart = i && p.apart;
        p.x[i] = (const uint2 *)(apart || (mixed && forms->rounds[i]) ? m->rounded : a->x);
        p.y[i] = m->h[i];
        p.row_scale[i] = forms->rounds[i] ? m->scale[apart] : NULL;
        p.square[i] = forms->fixed && forms->rounds[i] ? NULL : a->square;
    }
    p.expert = a->expert, p.score = a->score;
    p.experts = a->experts, p.top_k = a->top_k;
    const struct launch l = {.grid = dim3((unsigned)p.product.tiles, 1, (unsigned)(1 + most)),
                             .block = dim3(OCTET * LANES),
                             .stream = stream};
    if (forms->w[0] != forms->w[1])
        return forms->w[0] == MATRIX_FP8 ? launch_kernel(&l, moe_gate_up<FORM_WIDENED, MATRIX_BF16>, p)
                                         : launch_kernel(&l, moe_gate_up<MATRIX_BF16, FORM_WIDENED>, p);
    return forms->w[0] == MATRIX_FP8 ? launch_kernel(&l, moe_gate_up<MATRIX_FP8, MATRIX_FP8>, p)
                                     : launch_kernel(&l, moe_gate_up<MATRIX_BF16, MATRIX_BF16>, p);
}

static int launch_down(const struct moe *a, const struct moe_room *m, const struct moe_forms *forms, void *stream)
{
    struct moe_args p = {};
    weights_of(&p.of, a->shared.down, a->down, a->experts);
    p.product = gemm_args_of(a->shared.down, a->rows);
    p.product.epilogue = EPILOGUE_RESIDUAL;
    p.product.y = a->y;
    p.product.y_form = a->norm.y.form;
    p.product.gain = a->norm.w;
    p.product.normed = a->partial ? NULL : a->norm.y.act;
    p.product.normed_square = a->norm.y.square;
    for (int i = 0; i < 2; i++) {
        p.x[i] = (const uint2 *)m->h[i];
        p.row_scale[i] = forms->rounds[i] ? m->scale[i] : NULL;
    }
    p.expert = a->expert, p.score = a->score;
    p.experts = a->experts, p.top_k = a->top_k, p.partial = a->partial;
    const struct launch l = {.grid = dim3((unsigned)p.product.tiles),
                             .block = dim3(OCTET * LANES),
                             .shared = sizeof(struct down_batch),
                             .stream = stream};
    if (forms->w[0] != forms->w[1])
        return forms->w[0] == MATRIX_FP8 ? launch_kernel(&l, moe_down<FORM_WIDENED, MATRIX_BF16>, p)
                                         : launch_kernel(&l, moe_down<MATRIX_BF16, FORM_WIDENED>, p);
    return forms->w[0] == MATRIX_FP8 ? launch_kernel(&l, moe_down<MATRIX_FP8, MATRIX_FP8>, p)
                                     : launch_kernel(&l, moe_down<MATRIX_BF16, MATRIX_BF16>, p);
}

/* At most ROW_BLOCK rows. */
static int launch_block(const struct moe *a, void *stream)
{
    const struct moe_room m =
        room_of(a->scratch, a->rows, a->shared.gate_up->k, a->shared.down->k, a->top_k);
    const struct moe_forms gate_up = forms_of(a, a->shared.gate_up, a->gate_up),
                           down = forms_of(a, a->shared.down, a->down);
    int rc = moe_round_input(a, &m, &gate_up, stream);
    if (!rc)
        rc = launch_gate_up(a, &m, &gate_up, stream);
    if (!rc)
        rc = moe_round_hidden(a, &m, &down, stream);
    return rc ? rc : launch_down(a, &m, &down, stream);
}

/* Row-major BF16 to an act's order and form, a word of four numbers a thread. */
static __global__ void __launch_bounds__(CONVERT_THREADS)
    to_fragments(const bf16 *from, uint2 *to, int rows, int k, enum act_form form)
{
    const int steps = (k + ACT_STEP - 1) / ACT_STEP, lane = threadIdx.x % LANES;
    const int step = blockIdx.x * (CONVERT_THREADS / LANES) + threadIdx.x / LANES;
    const int row = blockIdx.y * ACT_ROWS + lane / 4;
    uint16_t v[4];
    launch_trigger();
    launch_wait();
    if (step >= steps)
        return;
    for (int i = 0; i < 4; i++) {
        const int at = step * ACT_STEP + lane % 4 * 2 + i % 2 + i / 2 * 8;
        v[i] = row < rows && at < k ? norm_act(bf16_to_f32(from[(size_t)row * (size_t)k + (size_t)at]), form) : 0;
    }
    to[((size_t)blockIdx.y * (size_t)steps + (size_t)step) * LANES + lane] =
        make_uint2(v[0] | (uint32_t)v[1] << 16, v[2] | (uint32_t)v[3] << 16);
}

static int launch_convert(const void *from, void *to, int rows, int k, enum act_form form, void *stream)
{
    const int steps = (k + ACT_STEP - 1) / ACT_STEP, each = CONVERT_THREADS / LANES;
    const struct launch l = {
        .grid = dim3((unsigned)((steps + each - 1) / each), (unsigned)((rows + ACT_ROWS - 1) / ACT_ROWS)),
        .block = dim3(CONVERT_THREADS),
        .stream = stream};
    return launch_kernel(&l, to_fragments, (const bf16 *)from, (uint2 *)to, rows, k, form);
}

/* Rows [first, first + rows) of a; in bulk the norm comes after all of them. */
static struct moe block_of(const struct moe *a, int first, int rows)
{
    const size_t at = (size_t)first, hidden = (size_t)a->shared.gate_up->k;
    const size_t tiles = (hidden + TILE - 1) / TILE, act = at * tiles * TILE * sizeof(uint16_t);
    struct moe b = *a;
    b.rows = rows;
    b.y += at * hidden;
    b.expert += at * (size_t)a->top_k;
    b.score += at * (size_t)a->top_k;
    if (a->bulk) {
        b.x = (const bf16 *)a->x + at * hidden;
        b.square = NULL;
        b.norm.y.act = NULL;
        return b;
    }
    b.x = (const char *)a->x + act;
    b.square = a->square ? a->square + at * tiles : NULL;
    if (!a->partial) {
        b.norm.y.act = (char *)a->norm.y.act + act;
        b.norm.y.square = a->norm.y.square + at * tiles;
    }
    return b;
}

KERN_API int moe_cuda(const struct moe *a, void *stream)
{
    const int hidden = a->shared.gate_up->k;
    const enum act_form form = moe_act_form(a->shared.gate_up, a->gate_up);
    for (int first = 0; first < a->rows; first += ROW_BLOCK) {
        const int left = a->rows - first, rows = left < ROW_BLOCK ? left : ROW_BLOCK;
        struct moe b = block_of(a, first, rows);
        int rc = 0;
        if (a->bulk) {
            void *x = room_of(a->scratch, rows, hidden, a->shared.down->k, a->top_k).x;
            rc = launch_convert(b.x, x, rows, hidden, form, stream);
            b.x = x;
        }
        if (!rc)
            rc = launch_block(&b, stream);
        if (rc)
            return rc;
    }
    return a->bulk && !a->partial ? rmsnorm_bulk_cuda(&a->norm, stream) : 0;
}
