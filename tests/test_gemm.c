/* gemm, swiglu, matrix_pack and embed on every instruction set of this machine. */
#include "kernels/cpu.h"
#include "kernels/fp8.h"
#include "kernels/synthetic.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "kernels/philox.h"

enum { MAX_ROWS = 72, MAX_THREADS = 4 };

static const struct {
    int n, k;
} shapes[] = {{1, 1}, {16, 16}, {17, 3}, {97, 64}, {48, 33}, {100, 65}, {33, 127}, {130, 96}, {320, 192}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void *alloc(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 64) / 64 * 64);
    ck_assert_ptr_nonnull(p);
    return p;
}

/* Uniform in (-1, 1), of either sign and many exponents. */
static void fill(float *x, size_t n, uint32_t stream)
{
    for (size_t i = 0; i < n; i++)
        x[i] = 2 * philox_uniform(philox(7, stream, 0, 0, (uint32_t)i).v[0]) - 1;
}

static void fill_integers(float *x, size_t n, uint32_t stream, int limit)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((int)(philox(7, stream, 0, 0, (uint32_t)i).v[0] % (2 * (uint32_t)limit + 1)) - limit);
}

static struct matrix pack(const float *w, int n, int k, enum matrix_flags flags)
{
    struct matrix m = {.n = n, .k = k, .data = alloc(matrix_packed_bytes(n, k))};
    int half = n / 2;
    struct matrix_part parts[2] = {{w, DTYPE_F32, n}, {NULL, DTYPE_F32, 0}};
    if (flags == MATRIX_INTERLEAVE) {
        parts[0].n = parts[1].n = half;
        parts[1].data = w + (size_t)half * (size_t)k;
    }
    matrix_pack(&m, parts, flags == MATRIX_INTERLEAVE ? 2 : 1, flags, 2);
    return m;
}

/* One problem: random weights rounded to bf16, inputs for MAX_ROWS rows, scratch for every thread. */
struct problem {
    int n, k, outputs; /* outputs of a row: n, or n / 2 for swiglu */
    float *w, *x, *y, *expected, *scratch;
    struct matrix m;
};

static void problem_init(struct problem *p, int n, int k, enum matrix_flags flags)
{
    size_t weights = (size_t)n * (size_t)k, rows = MAX_ROWS;
    *p = (struct problem){.n = n, .k = k, .outputs = flags == MATRIX_INTERLEAVE ? n / 2 : n};
    p->w = alloc(weights * sizeof(float));
    p->x = alloc(rows * (size_t)k * sizeof(float));
    p->y = alloc(rows * (size_t)n * sizeof(float));
    p->expected = alloc(rows * (size_t)n * sizeof(float));
    p->scratch = alloc(MAX_THREADS * gemm_scratch(k) * sizeof(float));
    fill(p->w, weights, 1);
    fill(p->x, rows * (size_t)k, 2);
    for (size_t i = 0; i < weights; i++)
        p->w[i] = bf16_to_f32(bf16_from_f32(p->w[i]));
    p->m = pack(p->w, n, k, flags);
}

static void problem_deinit(struct problem *p)
{
    free(p->w);
    free(p->x);
    free(p->y);
    free(p->expected);
    free(p->scratch);
    free(p->m.data);
}

typedef void gemm_fn(const struct gemm *a);

static void run(gemm_fn *f, const struct problem *p, float *y, int first, int rows, int threads,
                int accumulate)
{
    struct gemm a = {
        .w = &p->m, .rows = rows, .threads = threads, .accumulate = accumulate, .scratch = p->scratch};
    a.x = p->x + (size_t)first * (size_t)p->k;
    a.y = y + (size_t)first * (size_t)p->outputs;
    f(&a);
}

/* Check writes a record for every assertion, so those on every element assert only what already failed. */
static void expect_same_bits(const struct problem *p, int rows, const char *what, const char *isa,
                             int threads)
{
    for (int i = 0; i < rows * p->outputs; i++)
        if (memcmp(&p->y[i], &p->expected[i], sizeof(float)) != 0)
            ck_abort_msg("%s, %s [%d, %d], %d rows, %d threads: row %d output %d is %a, alone %a", isa, what,
                         p->n, p->k, rows, threads, i / p->outputs, i % p->outputs, p->y[i], p->expected[i]);
}

static void start_y(const struct problem *p, float *y)
{
    fill(y, (size_t)MAX_ROWS * (size_t)p->outputs, 3);
}

/* Every row alone on one thread, then in batches of every size (with more threads of a few sizes), and cut
 * into groups of changing size. */
static void check_rows(gemm_fn *f, const struct problem *p, const char *what, const char *isa, int accumulate)
{
    start_y(p, p->expected);
    for (int r = 0; r < MAX_ROWS; r++)
        run(f, p, p->expected, r, 1, 1, accumulate);
    for (int threads = 1; threads <= MAX_THREADS; threads++) {
        for (int rows = 1; rows <= MAX_ROWS; rows += threads < 3 ? 1 : rows < 9 ? 4 : 21) {
            start_y(p, p->y);
            run(f, p, p->y, 0, rows, threads, accumulate);
            expect_same_bits(p, rows, what, isa, threads);
        }
        start_y(p, p->y);
        for (int r = 0, size = 1; r < MAX_ROWS; r += size, size = size % 11 + 1)
            run(f, p, p->y, r, MAX_ROWS - r < size ? MAX_ROWS - r : size, threads, accumulate);
        expect_same_bits(p, MAX_ROWS, what, isa, threads);
    }
}

START_TEST(a_row_of_gemm_is_the_same_in_every_batch)
{
    struct problem p;
    problem_init(&p, shapes[_i].n, shapes[_i].k, MATRIX_PLAIN);
    for (int i = 0; cpu_kernels_at(i); i++) {
        check_rows(cpu_kernels_at(i)->gemm, &p, "gemm", cpu_kernels_at(i)->name, 0);
        check_rows(cpu_kernels_at(i)->gemm, &p, "gemm +=", cpu_kernels_at(i)->name, 1);
    }
    problem_deinit(&p);
}
END_TEST

START_TEST(a_row_of_swiglu_is_the_same_in_every_batch)
{
    static const int m[] = {16, 48, 112}, k[] = {1, 33, 64};
    struct problem p;
    problem_init(&p, 2 * m[_i], k[_i], MATRIX_INTERLEAVE);
    for (int i = 0; cpu_kernels_at(i); i++)
        check_rows(cpu_kernels_at(i)->swiglu, &p, "swiglu", cpu_kernels_at(i)->name, 0);
    problem_deinit(&p);
}
END_TEST

START_TEST(rows_past_one_block_of_activations_are_the_same_too)
{
    struct problem p; /* k so large that a block holds 8 rows */
    problem_init(&p, 19, 16385, MATRIX_PLAIN);
    ck_assert_uint_lt(gemm_scratch(p.k), 9 * (size_t)p.k);
    for (int i = 0; cpu_kernels_at(i); i++) {
        gemm_fn *f = cpu_kernels_at(i)->gemm;
        for (int r = 0; r < 21; r++)
            run(f, &p, p.expected, r, 1, 1, 0);
        run(f, &p, p.y, 0, 21, 2, 0);
        expect_same_bits(&p, 21, "gemm", cpu_kernels_at(i)->name, 2);
    }
    problem_deinit(&p);
}
END_TEST

START_TEST(avx2_and_avx512_agree_bit_for_bit)
{
    const struct cpu_kernels *narrow = cpu_kernels_find("avx2"), *wide = cpu_kernels_find("avx512");
    struct problem p;
    if (!narrow || !wide)
        return;
    problem_init(&p, shapes[_i].n, shapes[_i].k, MATRIX_PLAIN);
    run(narrow->gemm, &p, p.expected, 0, MAX_ROWS, 2, 0);
    run(wide->gemm, &p, p.y, 0, MAX_ROWS, 2, 0);
    expect_same_bits(&p, MAX_ROWS, "gemm", "avx512 against avx2", 2);
    problem_deinit(&p);
}
END_TEST

START_TEST(small_integers_are_exact)
{
    struct problem p;
    problem_init(&p, shapes[_i].n, shapes[_i].k, MATRIX_PLAIN);
    fill_integers(p.w, (size_t)p.n * (size_t)p.k, 1, 9); /* sums stay under 192 * 81 < 2^24 */
    fill_integers(p.x, (size_t)MAX_ROWS * (size_t)p.k, 2, 9);
    free(p.m.data);
    p.m = pack(p.w, p.n, p.k, MATRIX_PLAIN);
    for (int r = 0; r < MAX_ROWS; r++)
        for (int j = 0; j < p.n; j++) {
            int sum = 0;
            for (int i = 0; i < p.k; i++)
                sum += (int)p.w[j * p.k + i] * (int)p.x[r * p.k + i];
            p.expected[r * p.n + j] = (float)sum;
        }
    run(gemm_ref, &p, p.y, 0, MAX_ROWS, 1, 0);
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        if (i >= 0)
            run(cpu_kernels_at(i)->gemm, &p, p.y, 0, MAX_ROWS, 2, 0);
        for (int j = 0; j < MAX_ROWS * p.n; j++)
            if (p.y[j] != p.expected[j])
                ck_abort_msg("%s: output %d is %g, expected %g", i < 0 ? "ref" : cpu_kernels_at(i)->name, j,
                             p.y[j], p.expected[j]);
    }
    problem_deinit(&p);
}
END_TEST

/* The largest |y - expected| / bound, reported and asserted to be at most 1. */
static void expect_within(const char *what, const float *y, const float *expected, const double *bound,
                          size_t n)
{
    double worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        double share = fabs((double)y[i] - expected[i]) / bound[i];
        if (!(share <= worst)) {
            worst = share;
            at = i;
        }
    }
    printf("%s: worst at %zu of %zu, %.1f %% of the bound\n", what, at, n, 100 * worst);
    ck_assert_msg(worst <= 1, "%s: output %zu is %.9g, expected %.9g, %.2f times the bound", what, at, y[at],
                  expected[at], worst);
}

/* Sums of k products in binary32, each step rounded once or twice: (k + 1) eps sum |w x|, and one rounding of
 * the reference itself. size [rows][n] gets sum |w x|. */
static void magnitude(const struct problem *p, enum matrix_flags flags, float *size)
{
    size_t weights = (size_t)p->n * (size_t)p->k, inputs = (size_t)MAX_ROWS * (size_t)p->k;
    struct problem q = *p;
    q.outputs = p->n;
    q.w = alloc(weights * sizeof(float));
    q.x = alloc(inputs * sizeof(float));
    for (size_t i = 0; i < weights; i++)
        q.w[i] = fabsf(p->w[i]);
    for (size_t i = 0; i < inputs; i++)
        q.x[i] = fabsf(p->x[i]);
    q.m = pack(q.w, p->n, p->k, flags);
    run(gemm_ref, &q, size, 0, MAX_ROWS, 1, 0);
    free(q.m.data);
    free(q.w);
    free(q.x);
}

START_TEST(gemm_is_within_its_bound_of_the_reference)
{
    struct problem p;
    problem_init(&p, shapes[_i].n, shapes[_i].k, MATRIX_PLAIN);
    size_t n = (size_t)MAX_ROWS * (size_t)p.n;
    float *size = alloc(n * sizeof(float));
    double *bound = alloc(n * sizeof(double));
    magnitude(&p, MATRIX_PLAIN, size);
    for (size_t i = 0; i < n; i++)
        bound[i] = (p.k + 2) * 0x1p-24 * size[i] + 1e-37;
    run(gemm_ref, &p, p.expected, 0, MAX_ROWS, 1, 0);
    for (int i = 0; cpu_kernels_at(i); i++) {
        run(cpu_kernels_at(i)->gemm, &p, p.y, 0, MAX_ROWS, 2, 0);
        expect_within(cpu_kernels_at(i)->name, p.y, p.expected, bound, n);
    }
    free(size);
    free(bound);
    problem_deinit(&p);
}
END_TEST

/* silu has slope at most 1.1; the exponential, the sum, the quotient and the product add at most 4 ulp = 8
 * eps. */
START_TEST(swiglu_is_within_its_bound_of_the_reference)
{
    struct problem p, plain;
    int m = 48, k = 65;
    problem_init(&p, 2 * m, k, MATRIX_INTERLEAVE);
    problem_init(&plain, 2 * m, k, MATRIX_PLAIN);
    size_t n = (size_t)MAX_ROWS * (size_t)m;
    float *size = alloc(2 * n * sizeof(float)), *parts = alloc(2 * n * sizeof(float));
    double *bound = alloc(n * sizeof(double)), rel = (k + 2) * 0x1p-24;
    magnitude(&plain, MATRIX_PLAIN, size);
    run(gemm_ref, &plain, parts, 0, MAX_ROWS, 1, 0);
    run(swiglu_ref, &p, p.expected, 0, MAX_ROWS, 1, 0);
    for (int r = 0; r < MAX_ROWS; r++)
        for (int j = 0; j < m; j++) {
            size_t g = (size_t)r * 2 * (size_t)m + (size_t)j, u = g + (size_t)m;
            double silu = parts[g] / (1 + exp(-(double)parts[g]));
            bound[r * m + j] = 1.1 * rel * size[g] * (fabs(parts[u]) + rel * size[u]) +
                               fabs(silu) * rel * size[u] + 9 * 0x1p-24 * fabs(silu * parts[u]) + 1e-37;
        }
    for (int i = 0; cpu_kernels_at(i); i++) {
        run(cpu_kernels_at(i)->swiglu, &p, p.y, 0, MAX_ROWS, 2, 0);
        expect_within(cpu_kernels_at(i)->name, p.y, p.expected, bound, n);
    }
    free(size);
    free(parts);
    free(bound);
    problem_deinit(&p);
    problem_deinit(&plain);
}
END_TEST

/* k = 1 and weights of 1 leave silu(x) x bare, so that the exponential shows: 4 ulp, no NaN where exp(-x)
 * overflows, and there an absolute error of 89 / 2^128. */
/* The problem with its weights in FP8; expectations come from gemm_ref over the same rounded numbers. */
static void problem_init_fp8(struct problem *p, int n, int k, enum matrix_flags flags)
{
    problem_init(p, n, k, flags);
    free(p->m.data);
    p->m = (struct matrix){.n = n, .k = k, .form = MATRIX_FP8, .data = alloc(matrix_packed_bytes(n, k))};
    p->m.scale = alloc((size_t)n * sizeof(float));
    const int half = flags == MATRIX_INTERLEAVE ? n / 2 : n;
    const struct matrix_part parts[2] = {{p->w, DTYPE_F32, half},
                                         {p->w + (size_t)half * (size_t)k, DTYPE_F32, n - half}};
    matrix_pack(&p->m, parts, flags == MATRIX_INTERLEAVE ? 2 : 1, flags, 2);
}

static void problem_deinit_fp8(struct problem *p)
{
    free(p->m.scale);
    problem_deinit(p);
}

/* Row and output, output j at number [j][i] of the model's order, as kernels/gemm.h defines them, in double.
 */
static double fp8_product(const struct problem *p, int row, int j, const float *row_scale, double *size)
{
    float most = 0, scale;
    double sum = 0;
    *size = 0;
    for (int i = 0; i < p->k; i++)
        most = fmaxf(most, fabsf(p->w[(size_t)j * (size_t)p->k + (size_t)i]));
    scale = most > 0 ? most / FP8_MAX : 1;
    for (int i = 0; i < p->k; i++) {
        const float w = fp8_to_f32(fp8_from_f32(p->w[(size_t)j * (size_t)p->k + (size_t)i] / scale));
        const double term = (double)w * p->x[(size_t)row * (size_t)p->k + (size_t)i];
        sum += term;
        *size += fabs(term);
    }
    *size *= (double)scale * row_scale[row];
    return sum * scale * row_scale[row];
}

/* k products and sums rounded as in gemm, then two factors: (k + 4) eps. */
START_TEST(fp8_products_are_within_their_bound_of_the_definition)
{
    struct problem p;
    const int n = shapes[_i].n, k = shapes[_i].k;
    float row_scale[MAX_ROWS];
    problem_init_fp8(&p, n, k, MATRIX_PLAIN);
    const size_t outputs = (size_t)MAX_ROWS * (size_t)n;
    double *bound = alloc(outputs * sizeof *bound);
    for (int r = 0; r < MAX_ROWS; r++)
        row_scale[r] = 0.25f + (float)r / 7;
    for (int r = 0; r < MAX_ROWS; r++)
        for (int j = 0; j < n; j++) {
            const size_t at = (size_t)r * (size_t)n + (size_t)j;
            double size;
            p.expected[at] = (float)fp8_product(&p, r, j, row_scale, &size);
            bound[at] = (k + 4) * 0x1p-24 * size + 1e-37;
        }
    struct gemm a = {.w = &p.m, .x = p.x, .y = p.y, .rows = MAX_ROWS, .threads = 2, .scratch = p.scratch};
    a.row_scale = row_scale;
    gemm_ref(&a);
    expect_within("ref", p.y, p.expected, bound, outputs);
    for (int i = 0; cpu_kernels_at(i); i++) {
        cpu_kernels_at(i)->gemm(&a);
        expect_within(cpu_kernels_at(i)->name, p.y, p.expected, bound, outputs);
    }
    free(bound);
    problem_deinit_fp8(&p);
}
END_TEST

START_TEST(a_row_of_an_fp8_product_is_the_same_in_every_batch)
{
    struct problem p;
    problem_init_fp8(&p, 97, 65, MATRIX_PLAIN);
    for (int i = 0; cpu_kernels_at(i); i++) {
        check_rows(cpu_kernels_at(i)->gemm, &p, "FP8 gemm", cpu_kernels_at(i)->name, 0);
        check_rows(cpu_kernels_at(i)->gemm, &p, "FP8 gemm +=", cpu_kernels_at(i)->name, 1);
    }
    problem_deinit_fp8(&p);
    problem_init_fp8(&p, 96, 33, MATRIX_INTERLEAVE);
    for (int i = 0; cpu_kernels_at(i); i++)
        check_rows(cpu_kernels_at(i)->swiglu, &p, "FP8 swiglu", cpu_kernels_at(i)->name, 0);
    problem_deinit_fp8(&p);
}
END_TEST

/* y = 2 + (1 * 1/2) * 4: the old y is not scaled. */
START_TEST(scales_come_before_what_is_added)
{
    float w[3] = {0, 448, -224}, x[3] = {5, 1, 0.5f}, scale = 4, scratch[64];
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        float y = 2;
        struct matrix m = pack(w, 1, 3, MATRIX_PLAIN);
        m.scale = (float[]){1.0f / 672};
        const struct gemm a = {.w = &m,
                               .x = x,
                               .y = &y,
                               .rows = 1,
                               .threads = 1,
                               .accumulate = 1,
                               .row_scale = &scale,
                               .scratch = scratch};
        if (i < 0)
            gemm_ref(&a);
        else
            cpu_kernels_at(i)->gemm(&a);
        ck_assert_float_eq(y, 2 + 336 * (1.0f / 672) * 4);
        free(m.data);
    }
}
END_TEST

/* silu of the scaled G, not the scale of silu. The bound is that of plain swiglu with two more roundings a
 * product. */
START_TEST(fp8_swiglu_is_within_its_bound_of_the_definition)
{
    enum { M = 48, K = 65 };
    struct problem p;
    float row_scale[MAX_ROWS];
    problem_init_fp8(&p, 2 * M, K, MATRIX_INTERLEAVE);
    const double rel = (K + 4) * 0x1p-24;
    double *bound = alloc(MAX_ROWS * M * sizeof *bound);
    for (int r = 0; r < MAX_ROWS; r++)
        row_scale[r] = 0.25f + (float)r / 7;
    for (int r = 0; r < MAX_ROWS; r++)
        for (int j = 0; j < M; j++) {
            double g_size, u_size;
            const double g = fp8_product(&p, r, j, row_scale, &g_size),
                         u = fp8_product(&p, r, M + j, row_scale, &u_size), silu = g / (1 + exp(-g));
            p.expected[r * M + j] = (float)(silu * u);
            bound[r * M + j] = 1.1 * rel * g_size * (fabs(u) + rel * u_size) + fabs(silu) * rel * u_size +
                               9 * 0x1p-24 * fabs(silu * u) + 1e-37;
        }
    struct gemm a = {.w = &p.m, .x = p.x, .y = p.y, .rows = MAX_ROWS, .threads = 2, .scratch = p.scratch};
    a.row_scale = row_scale;
    swiglu_ref(&a);
    expect_within("ref", p.y, p.expected, bound, MAX_ROWS * M);
    for (int i = 0; cpu_kernels_at(i); i++) {
        cpu_kernels_at(i)->swiglu(&a);
        expect_within(cpu_kernels_at(i)->name, p.y, p.expected, bound, MAX_ROWS * M);
    }
    free(bound);
    problem_deinit_fp8(&p);
}
END_TEST

START_TEST(fp8_weights_are_numbers_times_scales)
{
    enum { N = 20, K = 5 };
    float w[N * K], scale[N];
    fill(w, N * K, 9);
    memset(w + 3 * K, 0, K * sizeof *w);
    struct matrix m = {
        .n = N, .k = K, .form = MATRIX_FP8, .data = alloc(matrix_packed_bytes(N, K)), .scale = scale};
    const struct matrix_part part = {w, DTYPE_F32, N};
    matrix_pack(&m, &part, 1, MATRIX_PLAIN, 1);
    ck_assert_uint_eq(m.bytes, matrix_packed_bytes(N, K) + sizeof scale);
    ck_assert_float_eq(scale[3], 1);
    for (int j = 0; j < N; j++)
        for (int i = 0; i < K; i++) {
            const float rounded = bf16_to_f32(bf16_from_f32(w[j * K + i])), got = matrix_at(&m, j, i);
            const float number = fp8_to_f32(fp8_from_f32(rounded / scale[j]));
            ck_assert_msg(got == number * scale[j], "W[%d][%d] is %a, expected %a", j, i, got,
                          number * scale[j]);
            ck_assert_double_le(fabs(got - (double)rounded),
                                fabs(rounded) * (0x1p-4 + 0x1p-22) + scale[j] * 0x1p-10);
        }
    free(m.data);
}
END_TEST

/* Any part of any row from any start, four neighbours a call. */
START_TEST(synthetic_parts_are_packed_as_their_formula_says)
{
    enum { N = 18, K = 1031 };
    struct synthetic s = {.seed = 5, .tensor = 9, .scale = 0.25f};
    const struct matrix_part parts[] = {{&s, DTYPE_SYNTHETIC, 7}, {&s, DTYPE_SYNTHETIC, N - 7}};
    struct matrix m = {.n = N, .k = K, .data = alloc(matrix_packed_bytes(N, K))};
    matrix_pack(&m, parts, 2, MATRIX_PLAIN, 2);
    for (int j = 0; j < N; j++)
        for (int i = 0; i < K; i++) {
            const uint32_t at = (uint32_t)((j < 7 ? j : j - 7) * K + i);
            const uint32_t bits = philox(5, 9, 0, PHILOX_SYNTHETIC, at / 4).v[at % 4];
            const int sum = (int)((bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24));
            const float expected = bf16_to_f32(bf16_from_f32((float)(sum - 510) * (0.25f / 147.8005f)));
            if (matrix_at(&m, j, i) != expected)
                ck_abort_msg("W[%d][%d] is %a, expected %a", j, i, matrix_at(&m, j, i), expected);
        }
    free(m.data);
}
END_TEST

START_TEST(silu_holds_from_underflow_to_overflow)
{
    enum { M = 16 };
    float ones[2 * M], y[M], scratch[64];
    for (int i = 0; i < 2 * M; i++)
        ones[i] = 1;
    struct matrix w = pack(ones, 2 * M, 1, MATRIX_INTERLEAVE);
    for (int i = 0; cpu_kernels_at(i); i++) {
        double worst = 0;
        for (float x = -200; x <= 200; x += 0.00917f) {
            struct gemm a = {.w = &w, .x = &x, .y = y, .rows = 1, .threads = 1, .scratch = scratch};
            cpu_kernels_at(i)->swiglu(&a);
            double expected = x / (1 + exp(-(double)x)) * x;
            double share = fabs(y[i % M] - expected) / (8 * 0x1p-24 * expected + 0x1p-120 * fabs(x));
            if (!(share <= 1))
                ck_abort_msg("%s: silu(%a) x is %a, expected %a", cpu_kernels_at(i)->name, x, y[0], expected);
            worst = share > worst ? share : worst;
        }
        printf("%s: silu at most %.1f %% of the bound\n", cpu_kernels_at(i)->name, 100 * worst);
    }
    free(w.data);
}
END_TEST

START_TEST(parts_of_every_dtype_and_alignment_are_packed)
{
    enum { K = 5, N = 20 };
    float f32[7 * K];
    uint16_t f16[6 * K], half[7 * K];
    char unaligned[sizeof f32 + 1];
    fill(f32, 7 * K, 4);
    for (int i = 0; i < 6 * K; i++)
        f16[i] = (uint16_t)(philox(7, 5, 0, 0, (uint32_t)i).v[0] &
                            0xbbff); /* any finite sign, exponent, fraction */
    for (int i = 0; i < 7 * K; i++)
        half[i] = bf16_from_f32((float)i * 1.7f);
    memcpy(unaligned + 1, f32, sizeof f32);
    struct matrix_part parts[] = {{unaligned + 1, DTYPE_F32, 7}, {f16, DTYPE_F16, 6}, {half, DTYPE_BF16, 7}};
    struct matrix m = {.n = N, .k = K, .data = alloc(matrix_packed_bytes(N, K))};
    ck_assert_uint_eq(matrix_packed_bytes(N, K), 2 * 3 * 16 * 2 * 2);
    memset(m.data, 0xff, matrix_packed_bytes(N, K));
    matrix_pack(&m, parts, 3, MATRIX_PLAIN, 3);
    ck_assert_uint_eq(m.bytes, matrix_packed_bytes(N, K));
    for (int j = 0; j < N; j++)
        for (int i = 0; i < K; i++) {
            float expected = j < 7    ? bf16_to_f32(bf16_from_f32(f32[j * K + i]))
                             : j < 13 ? bf16_to_f32(bf16_from_f32(f16_to_f32(f16[(j - 7) * K + i])))
                                      : bf16_to_f32(half[(j - 13) * K + i]);
            ck_assert_msg(matrix_at(&m, j, i) == expected, "W[%d][%d] is %a, expected %a", j, i,
                          matrix_at(&m, j, i), expected);
        }
    for (size_t i = 0; i < m.bytes / 2; i++) { /* [panel][pair][lane][2]: what is no weight is 0 */
        int row = (int)(i / (3 * 32)) * 16 + (int)(i / 2 % 16), col = (int)(i / 32 % 3) * 2 + (int)(i % 2);
        if (row >= N || col >= K)
            ck_assert_uint_eq(((const bf16 *)m.data)[i], 0);
    }
    free(m.data);
}
END_TEST

START_TEST(interleaving_alternates_panels_of_the_two_parts)
{
    enum { K = 4, M = 32 };
    float w[2 * M * K];
    fill_integers(w, 2 * M * K, 6, 100);
    struct matrix m = pack(w, 2 * M, K, MATRIX_INTERLEAVE);
    for (int j = 0; j < M; j++)
        for (int i = 0; i < K; i++) {
            int row = j / 16 * 32 + j % 16;
            ck_assert(matrix_at(&m, row, i) == w[j * K + i]);
            ck_assert(matrix_at(&m, row + 16, i) == w[(M + j) * K + i]);
        }
    free(m.data);
}
END_TEST

START_TEST(an_embedding_is_a_row_of_the_packed_matrix)
{
    enum { VOCAB = 97, K = 33 };
    float w[VOCAB * K], y[3 * K];
    int token[3] = {96, 0, 17};
    fill(w, VOCAB * K, 8);
    struct matrix m = pack(w, VOCAB, K, MATRIX_PLAIN);
    embed_ref(&(struct embed){.w = &m, .token = token, .y = y, .rows = 3});
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < K; i++)
            ck_assert(y[r * K + i] == bf16_to_f32(bf16_from_f32(w[token[r] * K + i])));
    free(m.data);
}
END_TEST

START_TEST(tables_are_found_by_name_and_listed_widest_first)
{
    int n = 0;
    ck_assert_ptr_null(cpu_kernels_find("sse9"));
    ck_assert_ptr_eq(cpu_kernels_find("auto"), cpu_kernels_at(0));
    for (; cpu_kernels_at(n); n++)
        ck_assert_ptr_eq(cpu_kernels_find(cpu_kernels_at(n)->name), cpu_kernels_at(n));
    ck_assert_str_eq(cpu_kernels_at(n - 1)->name, "portable");
    ck_assert_ptr_null(cpu_kernels_at(-1));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gemm");
    TCase *c = tcase_create("gemm");
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, a_row_of_gemm_is_the_same_in_every_batch, 0, N_SHAPES);
    tcase_add_loop_test(c, a_row_of_swiglu_is_the_same_in_every_batch, 0, 3);
    tcase_add_test(c, rows_past_one_block_of_activations_are_the_same_too);
    tcase_add_loop_test(c, avx2_and_avx512_agree_bit_for_bit, 0, N_SHAPES);
    tcase_add_loop_test(c, small_integers_are_exact, 0, N_SHAPES);
    tcase_add_loop_test(c, gemm_is_within_its_bound_of_the_reference, 0, N_SHAPES);
    tcase_add_test(c, swiglu_is_within_its_bound_of_the_reference);
    tcase_add_loop_test(c, fp8_products_are_within_their_bound_of_the_definition, 0, N_SHAPES);
    tcase_add_test(c, a_row_of_an_fp8_product_is_the_same_in_every_batch);
    tcase_add_test(c, scales_come_before_what_is_added);
    tcase_add_test(c, fp8_swiglu_is_within_its_bound_of_the_definition);
    tcase_add_test(c, fp8_weights_are_numbers_times_scales);
    tcase_add_test(c, synthetic_parts_are_packed_as_their_formula_says);
    tcase_add_test(c, silu_holds_from_underflow_to_overflow);
    tcase_add_test(c, parts_of_every_dtype_and_alignment_are_packed);
    tcase_add_test(c, interleaving_alternates_panels_of_the_two_parts);
    tcase_add_test(c, an_embedding_is_a_row_of_the_packed_matrix);
    tcase_add_test(c, tables_are_found_by_name_and_listed_widest_first);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
