/* residual_cuda and qkv_cuda: what the plain operations do one after the other, bit for bit, for every number
 * of rows, and nothing written but that. */
#include "kernels/act.h"
#include "kernels/cuda.h"
#include "kernels/fp8.h"
#include "tests/cuda_data.h"
#include "tests/expect.h"
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 130, SLOTS = 3, CAP = 144 };
#define EPS 1e-5f

static const int batches[] = {1, 2, 3, 8, 9, 16, 17, 31, 33, 64, 65, 100, ROWS};
enum { N_BATCHES = sizeof batches / sizeof *batches };

static void *host_copy(const void *from, size_t bytes)
{
    void *p = alloc(bytes);
    from_device(p, from, bytes);
    return p;
}

static float uniform(uint32_t stream, size_t i)
{
    return (float)(hash(stream, i) >> 8) * 0x1p-23f - 1;
}

static float *floats(uint32_t stream, size_t n, float scale)
{
    float *p = alloc(n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = scale * uniform(stream, i);
    return p;
}

static float *device_floats(uint32_t stream, size_t n, float scale)
{
    float *host = floats(stream, n, scale), *p = to_device(host, n * sizeof *p);
    free(host);
    return p;
}

/* Random weights [n, k] as the kernels read them. */
static struct matrix device_matrix(int n, int k, enum matrix_form form, enum matrix_flags flags, int head_dim)
{
    float *w = floats(1, (size_t)n * (size_t)k, 1);
    const struct matrix m = matrix_of(w, n, k, form, flags, head_dim);
    free(w);
    return m;
}

static size_t act_bytes(int k)
{
    return (ROWS + ACT_ROWS - 1) / ACT_ROWS * act_tile(k) * sizeof(bf16);
}

/* Random acts of all rows, multiples of 1/64, which BF16 and F16 hold; what no row owns is NaN. */
static void *device_act(int k, enum matrix_form form)
{
    uint16_t *x = alloc(act_bytes(k));
    memset(x, 0xff, act_bytes(k));
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < (k + 15) / 16 * 16; i++) {
            const float v = i < k ? roundf(64 * uniform(2, (size_t)(r * k + i))) / 64 : 0;
            x[act_at(r, i, k)] = form == MATRIX_FP8 ? f16_of(v) : bf16_from_f32(v);
        }
    void *p = to_device(x, act_bytes(k));
    free(x);
    return p;
}

/* ---- residual ---- */

static const struct {
    int n, k;
} blocks[] = {{16, 16}, {1, 3}, {24, 40}, {100, 33}, {577, 100}, {576, 576}, {576, 1536}, {4096, 1056}};
enum { N_BLOCKS = sizeof blocks / sizeof *blocks };

struct stream {
    float *x, *square; /* device [ROWS, n], [ROWS, tiles] */
    void *act;
};

struct block {
    int n, k;
    struct matrix w;
    void *input;
    float *gain, *start; /* device [n], host [ROWS, n] */
    enum act_form form;
};

static struct stream stream_new(const struct block *b)
{
    const size_t tiles = (size_t)((b->n + 15) / 16);
    return (struct stream){to_device(b->start, ROWS * (size_t)b->n * sizeof(float)),
                           to_device(NULL, ROWS * tiles * sizeof(float)), to_device(NULL, act_bytes(b->n))};
}

static void stream_free(struct stream *s)
{
    cudaFree(s->x);
    cudaFree(s->square);
    cudaFree(s->act);
}

static struct residual residual_of(const struct block *b, const struct stream *s, int rows)
{
    return (struct residual){.product = {.w = &b->w, .x = b->input, .y = s->x, .rows = rows, .accumulate = 1},
                             .norm = {.x = s->x,
                                      .w = b->gain,
                                      .y = {s->act, s->square, b->form},
                                      .rows = rows,
                                      .dim = b->n,
                                      .eps = EPS}};
}

static void block_init(struct block *b, int which, enum matrix_form form, enum act_form act)
{
    *b = (struct block){.n = blocks[which].n, .k = blocks[which].k, .form = act};
    b->w = device_matrix(b->n, b->k, form, MATRIX_PLAIN, 0);
    b->input = device_act(b->k, form);
    b->gain = device_floats(3, (size_t)b->n, 2);
    b->start = floats(4, ROWS * (size_t)b->n, 8);
}

static void block_deinit(struct block *b)
{
    matrix_free(&b->w);
    cudaFree(b->input);
    cudaFree(b->gain);
    free(b->start);
}

static void same_bytes(const struct block *b, int rows, const char *what, const void *got, const void *want,
                       size_t bytes)
{
    const unsigned char *g = got, *w = want;
    for (size_t i = 0; i < bytes; i++)
        EXPECT_MSG(
            g[i] == w[i],
            "residual [%d, %d] form %d, act form %d, %d rows: %s: byte %zu of %zu is %02x, expected %02x",
            b->n, b->k, (int)b->w.form, (int)b->form, rows, what, i, bytes, g[i], w[i]);
}

/* Rows [0, rows) against product, then norm, of as many rows; the rows after them untouched. Acts of rows
 * that are not there are nobody's. */
static void check_residual(const struct block *b, int rows)
{
    struct stream fused = stream_new(b), plain = stream_new(b);
    const struct residual f = residual_of(b, &fused, rows), p = residual_of(b, &plain, rows);
    cuda_ok(residual_cuda(&f, NULL), "launching residual");
    cuda_ok(gemm_cuda(&p.product, NULL), "launching gemm");
    cuda_ok(rmsnorm_cuda(&p.norm, NULL), "launching rmsnorm");
    const size_t bytes = ROWS * (size_t)b->n * sizeof(float),
                 squares = ROWS * (size_t)((b->n + 15) / 16) * sizeof(float);
    void *const got[] = {host_copy(fused.x, bytes), host_copy(fused.square, squares),
                         host_copy(fused.act, act_bytes(b->n))};
    void *const want[] = {host_copy(plain.x, bytes), host_copy(plain.square, squares),
                          host_copy(plain.act, act_bytes(b->n))};
    EXPECT_MSG(memcmp(want[0], b->start, (size_t)b->n * sizeof(float)) != 0, "the product changed nothing");
    same_bytes(b, rows, "x", got[0], want[0], bytes);
    same_bytes(b, rows, "squares", got[1], want[1], squares);
    same_bytes(b, rows, "act", got[2], want[2], act_bytes(b->n));
    for (int i = 0; i < 3; i++)
        free(got[i]), free(want[i]);
    stream_free(&fused);
    stream_free(&plain);
}

START_TEST(a_residual_is_its_product_then_its_norm_for_every_number_of_rows)
{
    struct block b;
    block_init(&b, _i / 4, _i / 2 % 2 ? MATRIX_FP8 : MATRIX_BF16, _i % 2 ? ACT_F16 : ACT_BF16);
    for (int i = 0; i < N_BATCHES; i++)
        check_residual(&b, batches[i]);
    block_deinit(&b);
}
END_TEST

START_TEST(a_row_of_a_residual_is_the_same_in_every_batch)
{
    struct block b;
    block_init(&b, _i / 2, _i % 2 ? MATRIX_FP8 : MATRIX_BF16, ACT_F16);
    struct stream all = stream_new(&b);
    struct residual a = residual_of(&b, &all, ROWS);
    cuda_ok(residual_cuda(&a, NULL), "launching");
    const size_t n = (size_t)b.n, tiles = (n + 15) / 16;
    float *x = host_copy(all.x, ROWS * n * sizeof *x),
          *square = host_copy(all.square, ROWS * tiles * sizeof *square);
    for (int i = 0; i < N_BATCHES; i++) {
        struct stream some = stream_new(&b);
        a = residual_of(&b, &some, batches[i]);
        cuda_ok(residual_cuda(&a, NULL), "launching");
        const size_t rows = (size_t)batches[i];
        float *some_x = host_copy(some.x, rows * n * sizeof *x),
              *some_square = host_copy(some.square, rows * tiles * sizeof *square);
        same_bytes(&b, batches[i], "x against 130 rows", some_x, x, rows * n * sizeof *x);
        same_bytes(&b, batches[i], "squares against 130 rows", some_square, square,
                   rows * tiles * sizeof *square);
        free(some_x), free(some_square);
        stream_free(&some);
    }
    free(x), free(square);
    stream_free(&all);
    block_deinit(&b);
}
END_TEST

/* ---- qkv ---- */

static const struct {
    int heads, kv_heads, dim, k;
} heads_of[] = {{2, 1, 16, 40}, {3, 1, 48, 100}, {9, 3, 64, 576}, {4, 2, 128, 257}, {32, 8, 128, 512}};
enum { N_HEADS = sizeof heads_of / sizeof *heads_of };

struct cache {
    int heads, kv_heads, dim, k, n, slot[ROWS], cell[ROWS];
    enum kv_form form;
    struct matrix rotary, plain;
    void *input;
    float *square, *inverse_rms; /* device [ROWS, steps], [ROWS] */
    float *cos_sin, *qkv;        /* device; qkv of the product alone, host [ROWS, n] */
    float *table;                /* host cos_sin */
    int *device_slot, *device_cell;
    struct rows rows;
    size_t elements, bytes; /* of k or v */
};

static struct gemm product_of(const struct cache *c, const struct matrix *w, float *y, int rows)
{
    return (struct gemm){.w = w,
                         .x = c->input,
                         .y = y,
                         .rows = rows,
                         .square = c->square,
                         .eps = EPS,
                         .scratch = c->inverse_rms};
}

static void cache_init(struct cache *c, int which, enum matrix_form form, enum kv_form kv)
{
    *c = (struct cache){.heads = heads_of[which].heads,
                        .kv_heads = heads_of[which].kv_heads,
                        .dim = heads_of[which].dim,
                        .k = heads_of[which].k,
                        .form = kv};
    c->n = (c->heads + 2 * c->kv_heads) * c->dim;
    c->rotary = device_matrix(c->n, c->k, form, MATRIX_ROTARY, c->dim);
    c->plain = device_matrix(c->n, c->k, form, MATRIX_PLAIN, 0);
    c->input = device_act(c->k, form);
    const size_t steps = (size_t)((c->k + 15) / 16), angles = ROWS * (size_t)c->dim,
                 sums = ROWS * (size_t)c->n;
    float *square = floats(5, ROWS * steps, 1);
    for (size_t i = 0; i < ROWS * steps; i++)
        square[i] = 4 + 3 * square[i];
    c->square = to_device(square, ROWS * steps * sizeof *square);
    c->inverse_rms = to_device(NULL, ROWS * sizeof(float));
    free(square);
    c->table = floats(6, angles, 1);
    c->cos_sin = to_device(c->table, angles * sizeof(float));
    for (int r = 0; r < ROWS; r++)
        c->slot[r] = r % 7 == 5 ? -1 : r % SLOTS, c->cell[r] = CAP - 1 - r;
    c->device_slot = to_device(c->slot, sizeof c->slot);
    c->device_cell = to_device(c->cell, sizeof c->cell);
    c->rows = (struct rows){.n = ROWS, .slot = c->device_slot, .cell = c->device_cell};
    c->elements = (size_t)(SLOTS * c->kv_heads * CAP) * (size_t)c->dim;
    c->bytes = c->elements * (kv == KV_FP8 ? 1 : sizeof(bf16));
    float *y = to_device(NULL, sums * sizeof *y);
    const struct gemm a = product_of(c, &c->plain, y, ROWS);
    cuda_ok(gemm_cuda(&a, NULL), "launching");
    c->qkv = host_copy(y, sums * sizeof *y);
    cudaFree(y);
}

static void cache_deinit(struct cache *c)
{
    void *const device[] = {c->input, c->square, c->inverse_rms, c->cos_sin, c->device_slot, c->device_cell};
    matrix_free(&c->rotary);
    matrix_free(&c->plain);
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        cudaFree(device[i]);
    free(c->qkv);
    free(c->table);
}

static void put(const struct cache *c, void *cells, size_t at, float v)
{
    if (c->form == KV_FP8)
        ((uint8_t *)cells)[at] = fp8_from_f32(v);
    else
        ((bf16 *)cells)[at] = bf16_from_f32(v);
}

/* What a layer does with queries and keys; the last two are Llama 4's without rotation. */
enum turning { ROTATED, AS_THEY_ARE, WITH_TEMPERATURE, N_TURNINGS };

static float temperature_of(int r)
{
    return 1 + (float)(r % 5) * 0.3f;
}

/* Row r of the product, as it should end: rope's arithmetic, one rounding each. */
static void expect_row(const struct cache *c, enum turning how, int r, float *q, void *k, void *v)
{
    const int half = c->dim / 2;
    const float *cos = c->table + (size_t)r * (size_t)c->dim, *sin = cos + half;
    for (int h = 0; h < c->heads + 2 * c->kv_heads; h++)
        for (int j = 0; j < half; j++) {
            const size_t from = (size_t)r * (size_t)c->n + (size_t)(h * c->dim + j);
            const float a = c->qkv[from], b = c->qkv[from + (size_t)half];
            const int is_key = h < c->heads + c->kv_heads, turns = is_key && how == ROTATED;
            const float low = turns ? fmaf(-b, sin[j], a * cos[j]) : a,
                        high = turns ? fmaf(a, sin[j], b * cos[j]) : b;
            const float by = how == WITH_TEMPERATURE ? temperature_of(r) : 1;
            if (h < c->heads) {
                q[from] = low * by, q[from + (size_t)half] = high * by;
                continue;
            }
            const int kv_head = (h - c->heads) % c->kv_heads;
            const size_t at =
                (size_t)((c->slot[r] * c->kv_heads + kv_head) * CAP + c->cell[r]) * (size_t)c->dim +
                (size_t)j;
            put(c, is_key ? k : v, at, low), put(c, is_key ? k : v, at + (size_t)half, high);
        }
}

static void same(const struct cache *c, int rows, const char *what, const void *got, const void *want,
                 size_t bytes)
{
    const unsigned char *g = got, *w = want;
    for (size_t i = 0; i < bytes; i++)
        EXPECT_MSG(g[i] == w[i],
                   "qkv %d + 2 * %d heads of %d, k %d, form %d, cache %d, %d rows: %s: byte %zu of %zu is "
                   "%02x, expected %02x",
                   c->heads, c->kv_heads, c->dim, c->k, (int)c->rotary.form, (int)c->form, rows, what, i,
                   bytes, g[i], w[i]);
}

static void check_qkv(const struct cache *c, enum turning how, int rows)
{
    float by[ROWS];
    for (int r = 0; r < ROWS; r++)
        by[r] = temperature_of(r);
    float *temperature = to_device(by, sizeof by);
    const size_t sums = ROWS * (size_t)c->n * sizeof(float);
    float *q = to_device(NULL, sums), *want_q = alloc(sums);
    void *k = to_device(NULL, c->bytes), *v = to_device(NULL, c->bytes), *want_k = alloc(c->bytes),
         *want_v = alloc(c->bytes);
    memset(want_q, UNTOUCHED, sums);
    memset(want_k, UNTOUCHED, c->bytes);
    memset(want_v, UNTOUCHED, c->bytes);
    for (int r = 0; r < rows; r++)
        if (c->slot[r] >= 0)
            expect_row(c, how, r, want_q, want_k, want_v);
    struct qkv a = {.product = product_of(c, &c->rotary, q, rows),
                    .rope = {.rows = &c->rows,
                             .qkv = q,
                             .cos_sin = c->cos_sin,
                             .heads = c->heads,
                             .rotate = how == ROTATED,
                             .temperature = how == WITH_TEMPERATURE ? temperature : NULL,
                             .kv = {k, v, SLOTS, c->kv_heads, c->dim, CAP, c->form}}};
    cuda_ok(qkv_cuda(&a, NULL), "launching qkv");
    void *const got[] = {host_copy(q, sums), host_copy(k, c->bytes), host_copy(v, c->bytes)};
    same(c, rows, "q", got[0], want_q, sums);
    same(c, rows, "k", got[1], want_k, c->bytes);
    same(c, rows, "v", got[2], want_v, c->bytes);
    for (int i = 0; i < 3; i++)
        free(got[i]);
    free(want_q), free(want_k), free(want_v);
    cudaFree(q), cudaFree(k), cudaFree(v), cudaFree(temperature);
}

START_TEST(qkv_is_its_product_then_rope_for_every_number_of_rows)
{
    struct cache c;
    cache_init(&c, _i / 4, _i / 2 % 2 ? MATRIX_FP8 : MATRIX_BF16, _i % 2 ? KV_FP8 : KV_WIDE);
    for (int how = ROTATED; how < N_TURNINGS; how++)
        for (int i = 0; i < N_BATCHES; i++)
            check_qkv(&c, (enum turning)how, batches[i]);
    cache_deinit(&c);
}
END_TEST

/* ---- overlapping launches ---- */

/* What a layer hands on: the stream and its norm, the gated activations, queries and the cache. */
struct layer {
    const struct block *down;
    const struct cache *c;
    struct matrix gate_up;
    struct stream s;
    void *ffn; /* act; down's input */
    float *q;
    void *k, *v;
};

static void waited(int wait)
{
    if (wait)
        cuda_ok(cudaDeviceSynchronize(), "waiting");
}

/* Layers of a model without attention, the number of rows changing. */
static void chain(const struct layer *l, void *stream, int wait)
{
    const struct cache *c = l->c;
    struct residual down = residual_of(l->down, &l->s, ROWS);
    down.product.x = l->ffn;
    cuda_ok(rmsnorm_cuda(&down.norm, stream), "launching");
    waited(wait);
    for (int i = 0; i < 20; i++) {
        const int rows = i % 2 ? 64 : 40;
        const struct gemm normed = {
            .x = l->s.act, .rows = rows, .square = l->s.square, .eps = EPS, .scratch = c->inverse_rms};
        struct gemm up = normed;
        struct qkv qkv = {.product = normed,
                          .rope = {.rows = &c->rows,
                                   .qkv = l->q,
                                   .cos_sin = c->cos_sin,
                                   .heads = c->heads,
                                   .rotate = 1,
                                   .kv = {l->k, l->v, SLOTS, c->kv_heads, c->dim, CAP, c->form}}};
        up.w = &l->gate_up, up.y = l->ffn;
        qkv.product.w = &c->rotary, qkv.product.y = l->q;
        down.product.rows = down.norm.rows = rows;
        cuda_ok(swiglu_cuda(&up, stream), "launching");
        waited(wait);
        cuda_ok(residual_cuda(&down, stream), "launching");
        waited(wait);
        cuda_ok(qkv_cuda(&qkv, stream), "launching");
        waited(wait);
    }
}

static void run_graph(const struct layer *l)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cuda_ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    cuda_ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
    chain(l, stream, 0);
    cuda_ok(cudaStreamEndCapture(stream, &graph), "capturing");
    cuda_ok(cudaGraphInstantiate(&exec, graph, 0), "instantiating the graph");
    cuda_ok(cudaDeviceSynchronize(), "waiting");
    cuda_ok(cudaGraphLaunch(exec, stream), "launching the graph");
    cuda_ok(cudaStreamSynchronize(stream), "running the graph");
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
}

/* By a graph, or with waits; x, q, k and v one after the other. */
static unsigned char *run_chain(struct layer *l, int wait, size_t *bytes)
{
    const size_t size[] = {ROWS * (size_t)l->down->n * sizeof(float), ROWS * (size_t)l->c->n * sizeof(float),
                           l->c->bytes, l->c->bytes};
    *bytes = size[0] + size[1] + size[2] + size[3];
    l->s = stream_new(l->down);
    l->ffn = to_device(NULL, act_bytes(l->down->k));
    l->q = to_device(NULL, size[1]);
    l->k = to_device(NULL, size[2]);
    l->v = to_device(NULL, size[3]);
    if (wait)
        chain(l, NULL, 1);
    else
        run_graph(l);
    void *const from[] = {l->s.x, l->q, l->k, l->v};
    unsigned char *out = alloc(*bytes), *at = out;
    for (int i = 0; i < 4; at += size[i++])
        cuda_ok(cudaMemcpy(at, from[i], size[i], cudaMemcpyDeviceToHost), "downloading");
    stream_free(&l->s);
    cudaFree(l->ffn), cudaFree(l->q), cudaFree(l->k), cudaFree(l->v);
    return out;
}

START_TEST(launches_that_overlap_in_a_graph_give_what_launches_with_waits_give)
{
    struct block b;
    struct cache c;
    size_t bytes;
    block_init(&b, 6, MATRIX_BF16, ACT_BF16);
    cache_init(&c, 2, MATRIX_BF16, KV_WIDE);
    struct layer l = {
        .down = &b, .c = &c, .gate_up = device_matrix(2 * b.k, b.n, MATRIX_BF16, MATRIX_INTERLEAVE, 0)};
    unsigned char *want = run_chain(&l, 1, &bytes);
    for (size_t i = 0; i < 4 * (size_t)b.n; i += 4) {
        float x;
        memcpy(&x, want + i, sizeof x);
        EXPECT_MSG(isfinite(x) && x != b.start[i / 4], "x[%zu] is %g, which it began with or no number",
                   i / 4, (double)x);
    }
    for (int i = 0; i < 10; i++) {
        unsigned char *got = run_chain(&l, 0, &bytes);
        same(&c, 64, "x, q, k and v of a graph", got, want, bytes);
        free(got);
    }
    free(want);
    matrix_free(&l.gate_up);
    cache_deinit(&c);
    block_deinit(&b);
}
END_TEST

int main(void)
{
    if (cuda_suite_skips("test_cuda_fused"))
        return CUDA_SUITE_SKIPPED;
    Suite *s = suite_create("cuda_fused");
    TCase *t = tcase_create("fused");
    tcase_add_loop_test(t, a_residual_is_its_product_then_its_norm_for_every_number_of_rows, 0, 4 * N_BLOCKS);
    tcase_add_loop_test(t, a_row_of_a_residual_is_the_same_in_every_batch, 0, 2 * N_BLOCKS);
    tcase_add_loop_test(t, qkv_is_its_product_then_rope_for_every_number_of_rows, 0, 4 * N_HEADS);
    tcase_add_test(t, launches_that_overlap_in_a_graph_give_what_launches_with_waits_give);
    suite_add_tcase(s, t);
    return cuda_suite_run(s);
}
