/* gemm_cuda and swiglu_cuda: against the double reference, exactly on integers, and every row alone against
 * every batch; BF16 and FP8 weights, with and without factors of rows. */
#include "kernels/act.h"
#include "kernels/cuda.h"
#include "kernels/fp8.h"
#include "tests/cuda_suite.h"
#include <check.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_ROWS = 130, MAX_SAMPLES = 640, UNTOUCHED = 0xff };
enum values { RANDOM, INTEGERS };
/* FACTORS: 1 / rms of a norm; with FP8 weights also the scales of a rounded act. */
enum variant { PLAIN_BF16, FACTORS_BF16, PLAIN_FP8, FACTORS_FP8, N_VARIANTS };

#define EPS 1e-5f

static const struct {
    int n, k;
} shapes[] = {{1, 1},      {16, 16},     {17, 3},     {97, 64},     {48, 33},     {100, 65},
              {33, 127},   {640, 192},   {8211, 48},  {960, 576},   {576, 576},   {576, 1536},
              {896, 5120}, {49152, 576}, {40, 20000}, {6144, 4096}, {4096, 14336}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static const struct {
    int m, k;
} gated[] = {{16, 16}, {24, 33}, {8, 700}, {48, 64}, {1536, 576}, {4112, 80}, {14336, 4096}};
enum { N_GATED = sizeof gated / sizeof *gated };

static void *alloc(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 64) / 64 * 64);
    ck_assert_ptr_nonnull(p);
    return p;
}

static void *device_alloc(size_t bytes)
{
    void *p = NULL;
    cuda_ok(cudaMalloc(&p, bytes + 16), "allocating");
    return p;
}

static void upload(void *to, const void *from, size_t bytes)
{
    cuda_ok(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "uploading");
}

static void download(void *to, const void *from, size_t bytes)
{
    cuda_ok(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "running the kernel or downloading");
}

/* A value of place (row, i): cheap, since matrices are large; random ones are uniform in (-1, 1) before
 * rounding to bf16. */
static uint32_t hash(uint32_t stream, int row, int i)
{
    uint32_t h = ((uint32_t)row * 0x9E3779B9u + stream) ^ ((uint32_t)i * 0x85EBCA6Bu);
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h = (h ^ h >> 12) * 0x297A2D39u;
    return h ^ h >> 15;
}

static float value(uint32_t stream, int row, int i, enum values values)
{
    uint32_t h = hash(stream, row, i);
    if (values == INTEGERS)
        return (float)((int)(h % 15) - 7);
    return bf16_to_f32(bf16_from_f32((float)(int32_t)h * 0x1p-31f));
}

/* The binary16 of a number that has one with at most 11 significant bits and is no subnormal. */
static uint16_t f16_exactly(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (f == 0)
        return (uint16_t)(u >> 16);
    uint16_t h = (uint16_t)((u >> 16 & 0x8000u) | ((u >> 23 & 0xffu) - 112) << 10 | (u >> 13 & 0x3ffu));
    ck_assert(f16_to_f32(h) == f);
    return h;
}

/* One problem: weights on the device, acts of MAX_ROWS rows together and each alone, outputs, and the host's
 * copy of a sample. */
struct problem {
    int n, k, gated, outputs; /* outputs of a row: n, or n / 2 */
    enum values values;
    enum matrix_form form;
    int with_factors, blocks;                /* blocks: of 16 inputs */
    float *number_scale;                     /* host [n], of FP8: 1 without */
    float *square, *row_scale;               /* host [MAX_ROWS, blocks], [MAX_ROWS] */
    float *device_square, *device_row_scale; /* NULL without factors; row scales with FP8 alone */
    float *scratch;                          /* device [MAX_ROWS] */
    struct matrix w;                         /* data and scale on the device */
    bf16 *x, *alone;                         /* device acts: all rows; [MAX_ROWS] acts of one row each */
    float *y;                                /* device */
    size_t y_bytes;                          /* of all rows */
    size_t alone_bytes;                      /* of one row's own output */
    void *host;                              /* y_bytes or MAX_ROWS * alone_bytes */
    float *expected, *out;                   /* [MAX_ROWS, outputs] */
};

/* As stored: before FP8. Integers times 64 are E4M3 numbers, and the first makes 1 / 64 their scale. */
static float weight(const struct problem *p, int j, int i)
{
    if (p->values == INTEGERS && p->form == MATRIX_FP8 && i == 0)
        return 7;
    return value(1, j, i, p->values);
}

/* What the tensor cores multiply: the number that stands for a weight; weight = number * number_scale[j]. */
static float number(const struct problem *p, int j, int i)
{
    return p->form == MATRIX_FP8 ? fp8_to_f32(fp8_from_f32(weight(p, j, i) / p->number_scale[j]))
                                 : weight(p, j, i);
}

/* With FP8 multiples of 1 / 128, which F16 holds. */
static float input(const struct problem *p, int r, int i)
{
    float v = value(2, r, i, p->values);
    return p->form == MATRIX_FP8 ? roundf(v * 128) / 128 : v; /* integers stay */
}

static bf16 act_number(const struct problem *p, float v)
{
    return p->form == MATRIX_FP8 ? f16_exactly(v) : bf16_from_f32(v);
}

/* What row r's sums are multiplied by after their weights' scales. */
static double factor(const struct problem *p, int r)
{
    double sum = 0;
    if (!p->with_factors)
        return 1;
    for (int t = 0; t < p->blocks; t++)
        sum += (double)p->square[(size_t)r * (size_t)p->blocks + (size_t)t];
    return 1 / sqrt(sum / p->k + (double)EPS) * (p->device_row_scale ? (double)p->row_scale[r] : 1.0);
}

static float start(int i)
{
    return (float)(i % 251 - 125);
}

static void pack_weights(struct problem *p)
{
    size_t bytes = matrix_cuda_bytes(p->n, p->k, p->form), n = (size_t)p->n;
    bf16 *w = alloc(n * (size_t)p->k * sizeof *w);
    void *packed = alloc(bytes);
#pragma omp parallel for
    for (int j = 0; j < p->n; j++)
        for (int i = 0; i < p->k; i++)
            w[(size_t)j * (size_t)p->k + (size_t)i] = bf16_from_f32(weight(p, j, i));
    int first = p->gated ? p->n / 2 : p->n;
    struct matrix_part parts[2] = {{w, DTYPE_BF16, first},
                                   {w + (size_t)first * (size_t)p->k, DTYPE_BF16, first}};
    p->number_scale = alloc(n * sizeof(float));
    for (size_t j = 0; j < n; j++)
        p->number_scale[j] = 1;
    matrix_pack_cuda(packed, p->number_scale,
                     &(struct matrix_source){.parts = parts,
                                             .n_parts = p->gated ? 2 : 1,
                                             .k = p->k,
                                             .form = p->form,
                                             .flags = p->gated ? MATRIX_INTERLEAVE : MATRIX_PLAIN});
    p->w =
        (struct matrix){.n = p->n, .k = p->k, .form = p->form, .data = device_alloc(bytes), .bytes = bytes};
    upload(p->w.data, packed, bytes);
    if (p->form == MATRIX_FP8) {
        p->w.scale = device_alloc(n * sizeof(float));
        upload(p->w.scale, p->number_scale, n * sizeof(float));
    }
    free(w);
    free(packed);
}

/* Rows past the last and everything undefined is NaN, so that a kernel that lets it touch a row is found. */
static void pack_inputs(struct problem *p)
{
    size_t tile = act_tile(p->k), all = tile * ((MAX_ROWS + ACT_ROWS - 1) / ACT_ROWS);
    int padded = (p->k + ACT_STEP - 1) / ACT_STEP * ACT_STEP;
    bf16 *x = alloc(all * sizeof *x), *alone = alloc(tile * MAX_ROWS * sizeof *alone);
    memset(x, 0xff, all * sizeof *x);
    memset(alone, 0xff, tile * MAX_ROWS * sizeof *alone);
    for (int r = 0; r < MAX_ROWS; r++)
        for (int i = 0; i < padded; i++) {
            bf16 v = i < p->k ? act_number(p, input(p, r, i)) : 0;
            x[act_at(r, i, p->k)] = v;
            alone[tile * (size_t)r + act_at(0, i, p->k)] = v;
        }
    p->x = device_alloc(all * sizeof *x);
    p->alone = device_alloc(tile * MAX_ROWS * sizeof *alone);
    upload(p->x, x, all * sizeof *x);
    upload(p->alone, alone, tile * MAX_ROWS * sizeof *alone);
    free(x);
    free(alone);
}

static float uniform(uint32_t stream, int row, int i)
{
    return (float)(hash(stream, row, i) >> 8) * 0x1p-24f;
}

/* Squares of rows between a quarter and four times as large as each other, scales about 1. */
static void make_factors(struct problem *p)
{
    const size_t squares = (size_t)MAX_ROWS * (size_t)p->blocks;
    if (!p->with_factors)
        return;
    p->square = alloc(squares * sizeof(float));
    p->row_scale = alloc(MAX_ROWS * sizeof(float));
    for (int r = 0; r < MAX_ROWS; r++) {
        p->row_scale[r] = 0.5f + uniform(4, r, 0);
        for (int t = 0; t < p->blocks; t++)
            p->square[(size_t)r * (size_t)p->blocks + (size_t)t] = (float)(4 + r % 13 * 5) * uniform(3, r, t);
    }
    p->device_square = device_alloc(squares * sizeof(float));
    p->scratch = device_alloc(MAX_ROWS * sizeof(float));
    upload(p->device_square, p->square, squares * sizeof(float));
    if (p->form != MATRIX_FP8)
        return;
    p->device_row_scale = device_alloc(MAX_ROWS * sizeof(float));
    upload(p->device_row_scale, p->row_scale, MAX_ROWS * sizeof(float));
}

static void problem_init(struct problem *p, int n, int k, int is_gated, enum values values,
                         enum variant variant)
{
    *p = (struct problem){.n = n,
                          .k = k,
                          .gated = is_gated,
                          .outputs = is_gated ? n / 2 : n,
                          .values = values,
                          .form = variant >= PLAIN_FP8 ? MATRIX_FP8 : MATRIX_BF16,
                          .with_factors = variant % 2,
                          .blocks = (k + 15) / 16};
    size_t outputs = (size_t)p->outputs;
    p->alone_bytes = is_gated ? act_tile(p->outputs) * sizeof(bf16) : outputs * sizeof(float);
    p->y_bytes = is_gated ? act_tile(p->outputs) * ((MAX_ROWS + ACT_ROWS - 1) / ACT_ROWS) * sizeof(bf16)
                          : MAX_ROWS * outputs * sizeof(float);
    p->y = device_alloc(MAX_ROWS * p->alone_bytes);
    p->host = alloc(MAX_ROWS * p->alone_bytes);
    p->expected = alloc(MAX_ROWS * outputs * sizeof(float));
    p->out = alloc(MAX_ROWS * outputs * sizeof(float));
    pack_weights(p);
    pack_inputs(p);
    make_factors(p);
}

static void problem_deinit(struct problem *p)
{
    cudaFree(p->w.scale);
    cudaFree(p->device_square);
    cudaFree(p->scratch);
    cudaFree(p->device_row_scale);
    free(p->number_scale);
    free(p->square);
    free(p->row_scale);
    cudaFree(p->w.data);
    cudaFree(p->x);
    cudaFree(p->alone);
    cudaFree(p->y);
    free(p->host);
    free(p->expected);
    free(p->out);
}

/* Outputs before a launch: start() for gemm, NaN for acts. */
static void reset(const struct problem *p)
{
    if (p->gated) {
        cuda_ok(cudaMemset(p->y, UNTOUCHED, MAX_ROWS * p->alone_bytes), "clearing");
        return;
    }
    for (int r = 0; r < MAX_ROWS; r++)
        for (int j = 0; j < p->outputs; j++)
            ((float *)p->host)[(size_t)r * (size_t)p->outputs + (size_t)j] = start(r + j);
    upload(p->y, p->host, p->y_bytes);
}

/* x, y: of rows [first, first + rows). */
static void launch(const struct problem *p, const void *x, void *y, int first, int rows, int accumulate)
{
    struct gemm a = {.w = &p->w,
                     .x = x,
                     .y = y,
                     .rows = rows,
                     .accumulate = accumulate,
                     .square = p->device_square ? p->device_square + (size_t)first * (size_t)p->blocks : NULL,
                     .eps = EPS,
                     .scratch = p->scratch,
                     .row_scale = p->device_row_scale ? p->device_row_scale + first : NULL,
                     .y_form = p->form == MATRIX_FP8 ? ACT_F16 : ACT_BF16};
    cuda_ok(p->gated ? swiglu_cuda(&a, NULL) : gemm_cuda(&a, NULL), "launching");
}

static float act_get(const struct problem *p, const void *act, int r, int i)
{
    bf16 v;
    memcpy(&v, (const char *)act + act_at(r, i, p->outputs) * sizeof v, sizeof v);
    return p->form == MATRIX_FP8 ? f16_to_f32(v) : bf16_to_f32(v);
}

/* Every row alone, to p->expected. */
static void run_alone(const struct problem *p, int accumulate)
{
    reset(p);
    for (int r = 0; r < MAX_ROWS; r++)
        launch(p, p->alone + act_tile(p->k) * (size_t)r, (char *)p->y + p->alone_bytes * (size_t)r, r, 1,
               accumulate);
    download(p->host, p->y, MAX_ROWS * p->alone_bytes);
    for (int r = 0; r < MAX_ROWS; r++) {
        const char *row = (const char *)p->host + p->alone_bytes * (size_t)r;
        float *to = p->expected + (size_t)r * (size_t)p->outputs;
        if (!p->gated)
            memcpy(to, row, p->alone_bytes);
        for (int j = 0; p->gated && j < p->outputs; j++)
            to[j] = act_get(p, row, 0, j);
    }
}

/* Rows [0, rows) in one launch, to p->out; the rows after them must keep what they held. */
static void run_batch(const struct problem *p, int rows, int accumulate)
{
    reset(p);
    launch(p, p->x, p->y, 0, rows, accumulate);
    download(p->host, p->y, p->y_bytes);
    int padded = (p->outputs + ACT_STEP - 1) / ACT_STEP * ACT_STEP;
    for (int r = 0; r < MAX_ROWS; r++) {
        float *to = p->out + (size_t)r * (size_t)p->outputs;
        for (int j = 0; j < p->outputs; j++) {
            to[j] = p->gated ? act_get(p, p->host, r, j)
                             : ((float *)p->host)[(size_t)r * (size_t)p->outputs + (size_t)j];
            if (r >= rows && (p->gated ? !isnan(to[j]) : to[j] != start(r + j)))
                ck_abort_msg("[%d, %d], %d rows: row %d output %d was written: %a", p->n, p->k, rows, r, j,
                             (double)to[j]);
        }
        for (int j = p->outputs; p->gated && r < rows && j < padded; j++)
            if (act_get(p, p->host, r, j) != 0)
                ck_abort_msg("[%d, %d], %d rows: row %d input %d past the last is %a, not 0", p->n, p->k,
                             rows, r, j, (double)act_get(p, p->host, r, j));
    }
}

static void expect_same_bits(const struct problem *p, int rows, int accumulate)
{
    int wrong = 0, first = -1, total = rows * p->outputs;
    for (int i = 0; i < total; i++)
        if (memcmp(&p->out[i], &p->expected[i], sizeof(float)) != 0 && wrong++ == 0)
            first = i;
    if (wrong)
        ck_abort_msg(
            "%s [%d, %d] form %d%s%s, %d rows: %d of %d outputs differ from the row alone, first row "
            "%d output %d: %a, alone %a",
            p->gated ? "swiglu" : "gemm", p->n, p->k, (int)p->form, p->with_factors ? " with factors" : "",
            accumulate ? " +=" : "", rows, wrong, total, first / p->outputs, first % p->outputs,
            (double)p->out[first], (double)p->expected[first]);
}

static void check_rows(const struct problem *p, int accumulate)
{
    static const int few[] = {1, 2, 3, 8, 9, 16, 17, 24, 31, 33, 63, 64, 65, 72, 128, 129, MAX_ROWS};
    int small = (size_t)p->n * (size_t)p->k < 1000000 && (p->form == MATRIX_FP8) == p->with_factors;
    run_alone(p, accumulate);
    for (int i = 1; small && i <= MAX_ROWS; i++) {
        run_batch(p, i, accumulate);
        expect_same_bits(p, i, accumulate);
    }
    for (size_t i = 0; !small && i < sizeof few / sizeof *few; i++) {
        run_batch(p, few[i], accumulate);
        expect_same_bits(p, few[i], accumulate);
    }
}

/* Outputs that the reference computes: all of them, or some from everywhere and the last 16. */
static int samples_of(const struct problem *p)
{
    return p->outputs <= MAX_SAMPLES ? p->outputs : 64;
}

static int sample(const struct problem *p, int i)
{
    int n = samples_of(p);
    return n == p->outputs ? i : i < n - 16 ? (int)((int64_t)i * p->outputs / (n - 16)) : p->outputs - n + i;
}

/* The sampled outputs of some rows by the double reference, of the values or (magnitude) of their absolute
 * values: sums of |w x|. first: 0, or n / 2 for the second part of a gated matrix; combine: both parts
 * through swiglu_ref. y [count, padded] */
struct reference {
    int count, padded; /* rows; outputs padded to a multiple of 16 with zero weights */
    const int *rows;
};

static float *reference(const struct problem *p, const struct reference *ref, int first, int magnitude,
                        int combine)
{
    int n = ref->padded, k = p->k, parts = combine ? 2 : 1;
    float *w = alloc((size_t)(parts * n) * (size_t)k * sizeof *w),
          *x = alloc((size_t)ref->count * (size_t)k * sizeof *x),
          *y = alloc((size_t)ref->count * (size_t)n * sizeof *y),
          *scale = alloc((size_t)(parts * n) * sizeof *scale),
          *factors = alloc((size_t)ref->count * sizeof *factors);
    memset(w, 0, (size_t)(parts * n) * (size_t)k * sizeof *w);
    for (int j = 0; j < parts * n; j++)
        scale[j] = 1;
    for (int part = 0; part < parts; part++)
        for (int j = 0; j < samples_of(p); j++) {
            const int output = sample(p, j) + (part ? p->n / 2 : first), to = part * n + j;
            scale[to] = p->number_scale[output];
            for (int i = 0; i < k; i++) {
                float v = number(p, output, i);
                w[(size_t)to * (size_t)k + (size_t)i] = magnitude ? fabsf(v) : v;
            }
        }
    for (int r = 0; r < ref->count; r++)
        factors[r] = (float)factor(p, ref->rows[r]);
    for (int r = 0; r < ref->count; r++)
        for (int i = 0; i < k; i++) {
            float v = input(p, ref->rows[r], i);
            x[(size_t)r * (size_t)k + (size_t)i] = magnitude ? fabsf(v) : v;
        }
    struct matrix m = {
        .n = parts * n, .k = k, .data = alloc(matrix_packed_bytes(parts * n, k)), .scale = scale};
    struct matrix_part from[2] = {{w, DTYPE_F32, n}, {w + (size_t)n * (size_t)k, DTYPE_F32, n}};
    matrix_pack(&m, from, parts, combine ? MATRIX_INTERLEAVE : MATRIX_PLAIN, 1);
    struct gemm a = {.w = &m, .x = x, .y = y, .rows = ref->count, .row_scale = factors, .threads = 1};
    if (combine)
        swiglu_ref(&a);
    else
        gemm_ref(&a);
    free(w);
    free(x);
    free(scale);
    free(factors);
    free(m.data);
    return y;
}

/* Of a sum: every addition on the way of a value (the steps of its slice, 8 slices, up to 4 blocks, the old
 * y) loses at most one unit in the last place, 2^-23, of a partial sum, and no partial sum exceeds the sum of
 * magnitudes. Factors: three products; half of what the sum of squares loses, and a mean, eps, root and
 * quotient; the reference's own factor is a float. */
static double sum_bound(const struct problem *p, double magnitude)
{
    const double sums = (p->k + 15) / 16 / 8 + 1 + 8 + 4 + 1, factors = p->k / 16 / 32 + 16;
    return (sums * 0x1p-23 + factors * 0x1p-24) * magnitude;
}

/* silu is 1.1-Lipschitz and |silu(g)| <= |g|; then a few roundings of f32 and one to bf16's 8 bits. */
static double swiglu_bound(const struct problem *p, double g, double u, double g_magnitude,
                           double u_magnitude)
{
    double dg = sum_bound(p, g_magnitude), du = sum_bound(p, u_magnitude), silu = fabs(g / (1 + exp(-g)));
    double value = silu * fabs(u), inner = 1.1 * dg * (fabs(u) + du) + silu * du + value * 0x1p-20;
    return inner + (value + inner) * 0x1p-8 + (p->form == MATRIX_FP8 ? 0x1p-25 : 0x1p-126);
}

static void report(const struct problem *p, double worst, int row, int output, double got, double want,
                   double bound)
{
    printf(
        "%s [%d, %d] form %d%s: worst error is %.4f of its bound, row %d output %d: %.9g, reference %.9g\n",
        p->gated ? "swiglu" : "gemm", p->n, p->k, (int)p->form, p->with_factors ? " with factors" : "", worst,
        row, output, got, want);
    fflush(stdout);
    if (!(worst <= 1))
        ck_abort_msg("%s [%d, %d]: row %d output %d is %.9g, reference %.9g, bound %.3g",
                     p->gated ? "swiglu" : "gemm", p->n, p->k, row, output, got, want, bound);
}

/* p->out of MAX_ROWS rows against the reference. */
static void check_bound(const struct problem *p)
{
    static const int rows[] = {0, 1, 7, 8, 30, 63, 64, 129};
    struct reference ref = {sizeof rows / sizeof *rows, (samples_of(p) + 15) / 16 * 16, rows};
    float *want = reference(p, &ref, 0, 0, p->gated), *size = reference(p, &ref, 0, 1, 0);
    float *g = p->gated ? reference(p, &ref, 0, 0, 0) : NULL,
          *u = p->gated ? reference(p, &ref, p->n / 2, 0, 0) : NULL,
          *u_size = p->gated ? reference(p, &ref, p->n / 2, 1, 0) : NULL;
    double worst = -1, worst_bound = 0;
    size_t worst_at = 0;
    int row = 0, output = 0;
    for (int r = 0; r < ref.count; r++)
        for (int j = 0; j < samples_of(p); j++) {
            size_t at = (size_t)r * (size_t)ref.padded + (size_t)j;
            double got = p->out[(size_t)ref.rows[r] * (size_t)p->outputs + (size_t)sample(p, j)];
            double bound = p->gated ? swiglu_bound(p, g[at], u[at], size[at], u_size[at])
                                    : sum_bound(p, size[at]) + 0x1p-126;
            double share = fabs(got - want[at]) / bound;
            if (!(share <= worst)) {
                worst = share, worst_at = at, worst_bound = bound, row = ref.rows[r], output = sample(p, j);
                if (isnan(share))
                    goto out;
            }
        }
out:
    report(p, worst, row, output, (double)p->out[(size_t)row * (size_t)p->outputs + (size_t)output],
           (double)want[worst_at], worst_bound);
    free(want);
    free(size);
    free(g);
    free(u);
    free(u_size);
}

/* Of a loop over shapes times variants; the largest matrices are enough once. */
static int is_repeated(int n, int k, enum variant variant)
{
    return variant != PLAIN_BF16 && (size_t)n * (size_t)k > (size_t)30 << 20;
}

START_TEST(a_row_of_gemm_is_the_same_in_every_batch_and_within_its_bound)
{
    struct problem p;
    const int n = shapes[_i / N_VARIANTS].n, k = shapes[_i / N_VARIANTS].k;
    if (is_repeated(n, k, _i % N_VARIANTS))
        return;
    problem_init(&p, n, k, 0, RANDOM, _i % N_VARIANTS);
    check_rows(&p, 1);
    check_rows(&p, 0);
    check_bound(&p);
    problem_deinit(&p);
}
END_TEST

START_TEST(a_row_of_swiglu_is_the_same_in_every_batch_and_within_its_bound)
{
    struct problem p;
    const int n = 2 * gated[_i / N_VARIANTS].m, k = gated[_i / N_VARIANTS].k;
    if (is_repeated(n, k, _i % N_VARIANTS))
        return;
    problem_init(&p, n, k, 1, RANDOM, _i % N_VARIANTS);
    check_rows(&p, 0);
    check_bound(&p);
    problem_deinit(&p);
}
END_TEST

/* 20000 products of at most 49 (FP8: in units of 64) stay under 2^24, so every order of sums is exact; all
 * outputs of some rows. */
START_TEST(small_integers_are_exact)
{
    struct problem p;
    problem_init(&p, shapes[_i / 2].n, shapes[_i / 2].k, 0, INTEGERS, _i % 2 ? PLAIN_FP8 : PLAIN_BF16);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        run_batch(&p, MAX_ROWS, accumulate);
        int rows = (size_t)p.n * (size_t)p.k < 4000000 ? MAX_ROWS : 2;
        for (int r = 0; r < rows; r++) {
            int row = r * (MAX_ROWS - 1) / (rows - 1);
#pragma omp parallel for
            for (int j = 0; j < p.n; j++) {
                int sum = accumulate ? (int)start(row + j) : 0;
                for (int i = 0; i < p.k; i++)
                    sum += (int)weight(&p, j, i) * (int)input(&p, row, i);
                p.expected[(size_t)row * (size_t)p.n + (size_t)j] = (float)sum;
            }
            for (int j = 0; j < p.n; j++) {
                size_t at = (size_t)row * (size_t)p.n + (size_t)j;
                if (p.out[at] != p.expected[at])
                    ck_abort_msg("gemm [%d, %d]%s: row %d output %d is %g, exactly %g", p.n, p.k,
                                 accumulate ? " +=" : "", row, j, (double)p.out[at], (double)p.expected[at]);
            }
        }
    }
    problem_deinit(&p);
}
END_TEST

int main(void)
{
    if (cuda_suite_skips("test_cuda_gemm"))
        return CUDA_SUITE_SKIPPED;
    Suite *s = suite_create("cuda_gemm");
    TCase *t = tcase_create("gemm");
    tcase_add_loop_test(t, a_row_of_gemm_is_the_same_in_every_batch_and_within_its_bound, 0,
                        N_SHAPES * N_VARIANTS);
    tcase_add_loop_test(t, small_integers_are_exact, 0, 2 * N_SHAPES);
    suite_add_tcase(s, t);
    t = tcase_create("swiglu");
    tcase_add_loop_test(t, a_row_of_swiglu_is_the_same_in_every_batch_and_within_its_bound, 0,
                        N_GATED * N_VARIANTS);
    suite_add_tcase(s, t);
    return cuda_suite_run(s);
}
