/* test_cuda_attention_bulk: attention of long prefill passes. Needles: keys are +-1 codes of their positions
 * and queries ask for one so loudly that every other weight is exactly 0, so each row and head must give back
 * one value, exactly: that finds every wrong cell, mask, head or tile. Numbers: random rows within a bound of
 * the double reference. Cells that no row sees hold NaN throughout. With chunks the same, and the rows of
 * each are to the bit those of a text that begins with it. */
#include "engine/backend.h"
#include "engine/err.h"
#include "kernels/fp8.h"
#include "kernels/philox.h"
#include "tests/cuda_suite.h"
#include "tests/expect.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { SLOTS = 2, SLOT = 1, BITS = 13, FP8_NAN = 0x7f };

static struct backend be;
static const bf16 bf16_nan = 0x7fc0;

/* One pass: rows at positions start .. start + rows - 1. */
struct pass {
    int start, rows, kv_heads, group, dim, cap, chunk;
    enum kv_form form;
    float *qkv;   /* [rows][(heads + 2 kv_heads) dim], q alone */
    float *k, *v; /* [kv_heads][cap][dim], what the cells of SLOT hold, NaN where no row sees */
    bf16 *y;      /* [rows][heads dim] */
};

static void ok(int rc)
{
    if (rc)
        ck_abort_msg("%s", err_text());
}

static uint32_t noise(uint32_t use, size_t i)
{
    return philox(23, use, 0, 0, (uint32_t)i).v[0];
}

static float uniform(uint32_t use, size_t i)
{
    return 2 * philox_uniform(noise(use, i)) - 1;
}

static void *allocated(size_t bytes)
{
    void *p = calloc(1, bytes);
    ck_assert_ptr_nonnull(p);
    return p;
}

static int heads_of(const struct pass *p)
{
    return p->kv_heads * p->group;
}

static size_t q_stride(const struct pass *p)
{
    return (size_t)(heads_of(p) + 2 * p->kv_heads) * (size_t)p->dim;
}

static float *query(const struct pass *p, int row, int head)
{
    return p->qkv + (size_t)row * q_stride(p) + (size_t)head * (size_t)p->dim;
}

static size_t cell(const struct pass *p, int kv_head, int position)
{
    return ((size_t)kv_head * (size_t)p->cap + (size_t)position) * (size_t)p->dim;
}

static int first_of(const struct pass *p, int row) /* position that it sees */
{
    return attention_first(p->chunk, p->start + row);
}

/* Rows from `shape.start` on; its arrays and cap are made here. */
static struct pass pass_open(struct pass shape)
{
    struct pass p = shape;
    const int dim = p.dim, rows = p.rows;
    p.kv_heads = 2;
    p.cap = (p.start + rows + 20) / 16 * 16 + 16;
    const size_t cells = (size_t)p.kv_heads * (size_t)p.cap * (size_t)dim;
    p.qkv = allocated((size_t)rows * q_stride(&p) * sizeof *p.qkv);
    p.k = allocated(cells * sizeof *p.k);
    p.v = allocated(cells * sizeof *p.v);
    p.y = allocated((size_t)rows * (size_t)heads_of(&p) * (size_t)dim * sizeof *p.y);
    for (size_t i = 0; i < cells; i++)
        p.k[i] = p.v[i] = NAN;
    return p;
}

static void pass_close(struct pass *p)
{
    free(p->qkv), free(p->k), free(p->v), free(p->y);
}

/* A number that a cell holds exactly. */
static float held(const struct pass *p, float x)
{
    return p->form == KV_FP8 ? fp8_to_f32(fp8_from_f32(x)) : bf16_to_f32(bf16_from_f32(x));
}

/* The cells of both slots; those of the other are NaN. */
static void *device_cells(const struct pass *p, const float *from)
{
    const size_t n = (size_t)p->kv_heads * (size_t)p->cap * (size_t)p->dim, size = p->form == KV_FP8 ? 1 : 2;
    char *all = allocated(SLOTS * n * size);
    void *device = NULL;
    for (size_t i = 0; i < SLOTS * n; i++) {
        const float x = i / n == SLOT ? from[i % n] : NAN;
        if (p->form == KV_FP8)
            ((uint8_t *)all)[i] = isnan(x) ? FP8_NAN : fp8_from_f32(x);
        else
            ((bf16 *)(void *)all)[i] = isnan(x) ? bf16_nan : bf16_from_f32(x);
    }
    ok(be.ops->alloc(&be, SLOTS * n * size, &device));
    ok(be.ops->upload(&be, device, all, SLOTS * n * size));
    free(all);
    return device;
}

static int *device_ints(int n, int first, int step)
{
    int *all = allocated((size_t)n * sizeof *all);
    void *device = NULL;
    for (int i = 0; i < n; i++)
        all[i] = first + i * step;
    ok(be.ops->alloc(&be, (size_t)n * sizeof *all, &device));
    ok(be.ops->upload(&be, device, all, (size_t)n * sizeof *all));
    free(all);
    return device;
}

/* A row beyond the last is written by nobody: it keeps its pattern. */
static void pass_run(struct pass *p, float scale)
{
    const size_t floats = (size_t)p->rows * q_stride(p), row = (size_t)heads_of(p) * (size_t)p->dim,
                 out = (size_t)p->rows * row;
    int *pos = device_ints(p->rows, p->start, 1), *slot = device_ints(p->rows, SLOT, 0);
    bf16 *guard = allocated(row * sizeof *guard);
    void *qkv = NULL, *y = NULL, *k = device_cells(p, p->k), *v = device_cells(p, p->v);
    memset(guard, 0xa5, row * sizeof *guard);
    ok(be.ops->alloc(&be, floats * sizeof(float), &qkv));
    ok(be.ops->alloc(&be, (out + row) * sizeof(bf16), &y));
    ok(be.ops->upload(&be, qkv, p->qkv, floats * sizeof(float)));
    ok(be.ops->upload(&be, (bf16 *)y + out, guard, row * sizeof *guard));
    const struct rows rows = {.n = p->rows, .pos = pos, .slot = slot, .cell = pos};
    const struct attention a = {.rows = &rows,
                                .qkv = qkv,
                                .kv = {.k = k,
                                       .v = v,
                                       .slots = SLOTS,
                                       .kv_heads = p->kv_heads,
                                       .head_dim = p->dim,
                                       .cap = p->cap,
                                       .form = p->form},
                                .y = y,
                                .heads = heads_of(p),
                                .reach = p->cap,
                                .bulk = 1,
                                .chunk = p->chunk,
                                .scale = scale};
    ok(be.ops->attention(&be, &a));
    ok(be.ops->download(&be, p->y, y, out * sizeof(bf16)));
    ok(be.ops->download(&be, guard, (bf16 *)y + out, row * sizeof *guard));
    ok(be.ops->sync(&be));
    for (size_t i = 0; i < row; i++)
        EXPECT_MSG(guard[i] == 0xa5a5, "wrote past the last row");
    void *const lent[] = {pos, slot, qkv, y, k, v};
    for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
        be.ops->release(&be, lent[i]);
    free(guard);
}

static const int starts[] = {0, 1, 63, 64, 500, 5000}, counts[] = {65, 100, 128, 129, 191, 600},
                 groups[] = {1, 3, 4, 8, 5, 2}, dims[] = {16, 32, 48, 64, 80, 96, 128, 144, 256};
static const int chunks[] = {12, 16, 64, 100, 130, 512, 5100};
enum { N_STARTS = 6, N_DIMS = sizeof dims / sizeof *dims, N_CHUNKS = sizeof chunks / sizeof *chunks };

/* ---- needles ---- */

/* Which position a row's head asks for: its own, the first, borders of tiles, any earlier one, or one that it
 * must not see, be it later or before its chunk. */
static int wanted(const struct pass *p, int row, int head)
{
    const int pos = p->start + row;
    const uint32_t r = noise(40, (size_t)row * 64 + (size_t)head);
    switch (r % 6) {
    case 0:
        return pos;
    case 1:
        return first_of(p, row);
    case 2:
        return pos / 64 * 64;
    case 3:
        return pos + 1 + (int)(r / 8 % 70);
    default:
        return (int)(r / 8 % (uint32_t)(pos + 1));
    }
}

static void fill_needles(struct pass *p)
{
    for (int g = 0; g < p->kv_heads; g++)
        for (int at = first_of(p, 0); at < p->start + p->rows; at++)
            for (int d = 0; d < p->dim; d++) {
                p->k[cell(p, g, at) + (size_t)d] = d < BITS ? (at ^ g * 5) >> d & 1 ? 1 : -1 : 0;
                p->v[cell(p, g, at) + (size_t)d] = held(p, 4 * uniform(41, cell(p, g, at) + (size_t)d));
            }
    for (int r = 0; r < p->rows; r++)
        for (int h = 0; h < heads_of(p); h++)
            for (int d = 0; d < BITS; d++)
                query(p, r, h)[d] = (wanted(p, r, h) ^ h / p->group * 5) >> d & 1 ? 64 : -64;
}

/* A key scores 128 less for each bit that differs, so only the nearest codes among visible positions have
 * weight, all the same. */
static void check_needle(const struct pass *p, int row, int head, double *sum)
{
    const int pos = p->start + row, want = wanted(p, row, head), g = head / p->group;
    int nearest = BITS + 1, n = 0;
    for (int at = first_of(p, row); at <= pos; at++) {
        const int apart = __builtin_popcount((unsigned)(at ^ want));
        if (apart < nearest) {
            nearest = apart;
            n = 0;
            memset(sum, 0, (size_t)p->dim * sizeof *sum);
        }
        if (apart == nearest) {
            n++;
            for (int d = 0; d < p->dim; d++)
                sum[d] += p->v[cell(p, g, at) + (size_t)d];
        }
    }
    for (int d = 0; d < p->dim; d++) {
        const double
            got = bf16_to_f32(
                p->y[((size_t)row * (size_t)heads_of(p) + (size_t)head) * (size_t)p->dim + (size_t)d]),
            mean = sum[d] / n, bound = n == 1 ? 0 : 0x1.1p-8 * fabs(mean) + 0x1p-19;
        EXPECT_MSG(
            fabs(got - mean) <= bound,
            "start %d rows %d group %d dim %d form %d chunks of %d: row %d head %d asks for %d and sees "
            "%d: component %d is %g, expected %g "
            "(%d keys)",
            p->start, p->rows, p->group, p->dim, (int)p->form, p->chunk, row, head, want, pos, d, got, mean,
            n);
    }
}

static void check_needles(struct pass shape)
{
    struct pass p = pass_open(shape);
    double *sum = allocated((size_t)p.dim * sizeof *sum);
    fill_needles(&p);
    pass_run(&p, 1);
    for (int r = 0; r < p.rows; r++)
        for (int h = 0; h < heads_of(&p); h++)
            check_needle(&p, r, h, sum);
    free(sum);
    pass_close(&p);
}

START_TEST(every_row_and_head_finds_its_needle)
{
    for (int s = 0; s < N_STARTS; s++) {
        const int i = (s + _i) % N_STARTS, j = (i + 1) % N_STARTS, k = (i + 2) % N_STARTS;
        struct pass wide = {.start = starts[s], .rows = counts[i], .group = groups[i], .dim = dims[_i]};
        struct pass fp8 = {.start = starts[s], .rows = counts[j], .group = groups[k], .dim = dims[_i]};
        fp8.form = KV_FP8;
        check_needles(wide);
        check_needles(fp8);
        wide.chunk = chunks[(s + _i) % N_CHUNKS];
        fp8.chunk = chunks[(s + _i + 3) % N_CHUNKS];
        check_needles(wide);
        check_needles(fp8);
    }
}
END_TEST

/* ---- numbers ---- */

static void fill_random(struct pass *p, float loud)
{
    const size_t q = (size_t)p->rows * q_stride(p);
    for (size_t i = 0; i < q; i++)
        p->qkv[i] = bf16_to_f32(bf16_from_f32(loud * uniform(50, i)));
    for (int g = 0; g < p->kv_heads; g++)
        for (int at = first_of(p, 0); at < p->start + p->rows; at++)
            for (int d = 0; d < p->dim; d++) {
                p->k[cell(p, g, at) + (size_t)d] = held(p, 2 * uniform(51, cell(p, g, at) + (size_t)d));
                p->v[cell(p, g, at) + (size_t)d] = held(p, uniform(52, cell(p, g, at) + (size_t)d));
            }
}

/* attention_ref of some rows of the pass. */
static void reference(const struct pass *p, const int *some, int n, float scale, float *y)
{
    const size_t cells = (size_t)SLOTS * (size_t)p->kv_heads * (size_t)p->cap * (size_t)p->dim;
    struct kv_layer kv = {.k = allocated(cells * sizeof(float)),
                          .v = allocated(cells * sizeof(float)),
                          .slots = SLOTS,
                          .kv_heads = p->kv_heads,
                          .head_dim = p->dim,
                          .cap = p->cap};
    float *qkv = allocated((size_t)n * q_stride(p) * sizeof *qkv);
    int pos[8], base[8], slot[8];
    for (int g = 0; g < p->kv_heads; g++)
        for (int at = 0; at < p->cap; at++)
            for (int d = 0; d < p->dim; d++) {
                kv_key(&kv, SLOT, g, at)[d * KV_BLOCK] = p->k[cell(p, g, at) + (size_t)d];
                kv_value(&kv, SLOT, g, at)[d] = p->v[cell(p, g, at) + (size_t)d];
            }
    for (int i = 0; i < n; i++) {
        memcpy(qkv + (size_t)i * q_stride(p), query(p, some[i], 0), q_stride(p) * sizeof *qkv);
        pos[i] = p->start + some[i];
        base[i] = pos[i] + 1;
        slot[i] = SLOT;
    }
    attention_ref(&(struct attention){.rows = &(struct rows){.n = n, .pos = pos, .base = base, .slot = slot},
                                      .qkv = qkv,
                                      .kv = kv,
                                      .y = y,
                                      .heads = heads_of(p),
                                      .chunk = p->chunk,
                                      .scale = scale});
    free(kv.k), free(kv.v), free(qkv);
}

/* Relative to the values, all within 1: a weight is rounded to bf16 (2^-8); its score is a sum of dim
 * products, each addition off by a unit in the last place of at most `size`, and its scaling and the
 * maximum's cost four more, which the exponential turns into a relative error, as it does its own 2^-22; each
 * tile may shrink what was summed by a factor off by 2^-21; values and weights are sums of `seen` terms.
 * Numerator and denominator both, so twice; bf16 rounds the result once more. */
static double bound_of(const struct pass *p, int seen, double size, double want)
{
    const double score = (p->dim + 8) * 0x1p-23 * size, tiles = seen / 64 + 2, sums = seen * 0x1p-23;
    return 0x1p-8 + 2 * (score + 0x1p-21 * tiles + sums) + 0x1p-8 * fabs(want) + 1e-6;
}

static double check_random(struct pass shape, float loud)
{
    struct pass p = pass_open(shape);
    const int some[] = {0, p.rows / 2, p.rows - 1}, n = 3, width = heads_of(&p) * p.dim;
    const float scale = 1 / sqrtf((float)p.dim);
    float *want = allocated((size_t)n * (size_t)width * sizeof *want);
    double worst = 0;
    fill_random(&p, loud);
    pass_run(&p, scale);
    reference(&p, some, n, scale, want);
    for (int i = 0; i < n * width; i++) {
        const int row = some[i / width];
        const double got = bf16_to_f32(p.y[(size_t)row * (size_t)width + (size_t)(i % width)]);
        const double bound =
            bound_of(&p, p.start + row + 1 - first_of(&p, row), (double)scale * loud * 2 * p.dim, want[i]);
        const double share = fabs(got - want[i]) / bound;
        EXPECT_MSG(
            share <= 1,
            "start %d rows %d group %d dim %d form %d chunks of %d: row %d column %d is %.9g, expected "
            "%.9g, %.2f of the bound",
            p.start, p.rows, p.group, p.dim, (int)p.form, p.chunk, row, i % width, got, (double)want[i],
            share);
        worst = fmax(worst, share);
    }
    free(want);
    pass_close(&p);
    return worst;
}

START_TEST(random_rows_are_within_their_bound_of_the_reference)
{
    static const struct {
        int start, rows, group, dim, chunk;
    } cases[] = {{0, 65, 3, 16, 0},     {1, 100, 1, 48, 0},    {63, 129, 4, 64, 0},    {64, 600, 3, 64, 0},
                 {500, 191, 8, 64, 0},  {500, 128, 4, 128, 0}, {64, 300, 2, 80, 0},    {0, 200, 4, 128, 0},
                 {500, 65, 1, 256, 0},  {5000, 65, 1, 64, 0},  {0, 65, 3, 16, 12},     {63, 129, 4, 64, 64},
                 {64, 600, 3, 64, 100}, {500, 191, 8, 64, 16}, {500, 300, 5, 128, 256}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int form = KV_WIDE; form <= KV_FP8; form++) {
            double worst = 0;
            for (int loud = 1; loud <= 9; loud += 8)
                worst = fmax(worst, check_random((struct pass){.start = cases[i].start,
                                                               .rows = cases[i].rows,
                                                               .group = cases[i].group,
                                                               .dim = cases[i].dim,
                                                               .chunk = cases[i].chunk,
                                                               .form = (enum kv_form)form},
                                                 (float)loud));
            printf(
                "attention in bulk, %d rows from %d, group %d, head_dim %d, chunks of %d, %s cells: %.1f %% "
                "of the bound\n",
                cases[i].rows, cases[i].start, cases[i].group, cases[i].dim, cases[i].chunk,
                form == KV_FP8 ? "FP8" : "bf16", 100 * worst);
        }
}
END_TEST

START_TEST(the_same_pass_gives_the_same_bits)
{
    struct pass p = pass_open((struct pass){.start = 500, .rows = 300, .group = 4, .dim = 128});
    const size_t bytes = (size_t)p.rows * (size_t)heads_of(&p) * (size_t)p.dim * sizeof *p.y;
    bf16 *first = allocated(bytes);
    fill_random(&p, 3);
    pass_run(&p, 0.1f);
    memcpy(first, p.y, bytes);
    for (int round = 0; round < 5; round++) {
        pass_run(&p, 0.1f);
        ck_assert(memcmp(first, p.y, bytes) == 0);
    }
    free(first);
    pass_close(&p);
}
END_TEST

/* Those rows of p that lie in one chunk, as a pass of a text that begins with it. */
static struct pass chunk_open(const struct pass *p, int first, int rows)
{
    struct pass text = pass_open((struct pass){
        .start = p->start + first - first_of(p, first), .rows = rows, .group = p->group, .dim = p->dim});
    memcpy(text.qkv, query(p, first, 0), (size_t)rows * q_stride(p) * sizeof *text.qkv);
    for (int g = 0; g < p->kv_heads; g++) {
        const size_t n = (size_t)(text.start + rows) * (size_t)p->dim * sizeof *text.k;
        memcpy(text.k + cell(&text, g, 0), p->k + cell(p, g, first_of(p, first)), n);
        memcpy(text.v + cell(&text, g, 0), p->v + cell(p, g, first_of(p, first)), n);
    }
    return text;
}

START_TEST(a_chunk_is_a_text_of_its_own_bit_for_bit)
{
    struct pass p = pass_open((struct pass){
        .start = 3 * chunks[_i] - 17, .rows = 300, .group = 5, .dim = 128, .chunk = chunks[_i]});
    const size_t width = (size_t)heads_of(&p) * (size_t)p.dim;
    fill_random(&p, 3);
    pass_run(&p, 0.1f);
    for (int first = 0, n; first < p.rows; first += n) {
        const int left = first_of(&p, first) + p.chunk - p.start - first;
        n = left < p.rows - first ? left : p.rows - first;
        struct pass text = chunk_open(&p, first, n);
        pass_run(&text, 0.1f);
        for (size_t i = 0; i < (size_t)n * width; i++) {
            const bf16 got = p.y[(size_t)first * width + i];
            EXPECT_MSG(got == text.y[i], "chunks of %d: row %d at %d, column %d is %.9g, expected %.9g",
                       p.chunk, first + (int)(i / width), p.start + first + (int)(i / width),
                       (int)(i % width), bf16_to_f32(got), bf16_to_f32(text.y[i]));
        }
        pass_close(&text);
    }
    pass_close(&p);
}
END_TEST

int main(void)
{
    if (backend_open(&be, "cuda", &(struct backend_opts){0})) {
        printf("test_cuda_attention_bulk: skipped: %s\n", err_text());
        return CUDA_SUITE_SKIPPED;
    }
    printf("test_cuda_attention_bulk: %s\n", be.device);
    Suite *s = suite_create("cuda_attention_bulk");
    TCase *c = tcase_create("cuda_attention_bulk");
    tcase_add_loop_test(c, every_row_and_head_finds_its_needle, 0, N_DIMS);
    tcase_add_test(c, random_rows_are_within_their_bound_of_the_reference);
    tcase_add_test(c, the_same_pass_gives_the_same_bits);
    tcase_add_loop_test(c, a_chunk_is_a_text_of_its_own_bit_for_bit, 0, N_CHUNKS);
    suite_add_tcase(s, c);
    const int failed = cuda_suite_run(s);
    backend_close(&be);
    return failed;
}
