/* test_cuda_bulk: what a long prefill pass is made of, but for attention: unpacked weights exactly,
 * cuBLASLt's products exactly on small integers and within a bound of double sums, the passes over rows
 * within theirs. */
#include "engine/backend.h"
#include "engine/err.h"
#include "kernels/bulk.h"
#include "kernels/cuda.h"
#include "kernels/fp8.h"
#include "kernels/gemm_lt.h"
#include "kernels/philox.h"
#include "tests/cuda_suite.h"
#include "tests/expect.h"
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct backend be;
static struct gemm_lt *lt;
static void *workspace;
static char why[GEMM_LT_WHY];

static float uniform(uint32_t stream, size_t i)
{
    return 2 * philox_uniform(philox(17, stream, 0, 0, (uint32_t)i).v[0]) - 1;
}

static float *random_floats(size_t n, uint32_t stream, float scale)
{
    float *v = malloc(n * sizeof *v);
    ck_assert_ptr_nonnull(v);
    for (size_t i = 0; i < n; i++)
        v[i] = scale * uniform(stream, i);
    return v;
}

static bf16 *rounded(const float *v, size_t n)
{
    bf16 *to = malloc(n * sizeof *to);
    ck_assert_ptr_nonnull(to);
    for (size_t i = 0; i < n; i++)
        to[i] = bf16_from_f32(v[i]);
    return to;
}

static void ok(int rc)
{
    if (rc)
        ck_abort_msg("%s", err_text());
}

static void launched(int rc, const char *what)
{
    if (rc)
        ck_abort_msg("%s was not launched: error %d", what, rc);
}

static void *to_device(const void *from, size_t bytes)
{
    void *p = NULL;
    ok(be.ops->alloc(&be, bytes, &p));
    if (from)
        ok(be.ops->upload(&be, p, from, bytes));
    ok(be.ops->sync(&be)); /* launches below are on the default stream */
    return p;
}

static void from_device(void *to, const void *from, size_t bytes)
{
    ok(be.ops->download(&be, to, from, bytes));
    ok(be.ops->sync(&be));
}

/* ---- unpacked weights ---- */

static const struct form_case {
    int part[3], n_parts; /* outputs */
    enum matrix_flags flags;
    int head_dim;
} orders[] = {{{1}, 1, MATRIX_PLAIN, 0},
              {{16}, 1, MATRIX_PLAIN, 0},
              {{17, 24}, 2, MATRIX_PLAIN, 0},
              {{97}, 1, MATRIX_PLAIN, 0},
              {{16, 16}, 2, MATRIX_INTERLEAVE, 0},
              {{96, 96}, 2, MATRIX_INTERLEAVE, 0},
              {{32, 16, 16}, 3, MATRIX_ROTARY, 16},
              {{64, 64, 64}, 3, MATRIX_ROTARY, 64},
              {{160, 80, 80}, 3, MATRIX_ROTARY, 80},
              {{256, 128, 128}, 3, MATRIX_ROTARY, 128}};
enum { N_ORDERS = sizeof orders / sizeof *orders };
static const int depths[] = {1, 7, 8, 15, 16, 17, 31, 32, 40, 64, 100, 136, 576, 1024, 1030, 2064};
enum { N_DEPTHS = sizeof depths / sizeof *depths };

static bf16 expected_weight(const float *w, const float *scale, int j, int i, int k, enum matrix_form form)
{
    const float x = bf16_to_f32(bf16_from_f32(w[(size_t)j * (size_t)k + (size_t)i]));
    return bf16_from_f32(form == MATRIX_FP8 ? fp8_to_f32(fp8_from_f32(x / scale[j])) * scale[j] : x);
}

static void check_unpacked(const struct form_case *c, int k, enum matrix_form form)
{
    enum { GUARD = 64 };
    struct matrix_part parts[3];
    int n = 0;
    for (int i = 0; i < c->n_parts; n += c->part[i++])
        ;
    float *w = random_floats((size_t)n * (size_t)k, (uint32_t)(k + n), 2),
          *scale = calloc((size_t)n, sizeof *scale);
    for (int i = 0, at = 0; i < c->n_parts; at += c->part[i++])
        parts[i] = (struct matrix_part){w + (size_t)at * (size_t)k, DTYPE_F32, c->part[i]};
    const struct matrix_source from = {.parts = parts,
                                       .n_parts = c->n_parts,
                                       .k = k,
                                       .flags = c->flags,
                                       .form = form,
                                       .head_dim = c->head_dim};
    const size_t bytes = matrix_cuda_bytes(n, k, form), out = ((size_t)n * (size_t)k + GUARD) * sizeof(bf16);
    void *packed = malloc(bytes);
    bf16 *got = malloc(out);
    memset(got, 0xa5, out);
    matrix_pack_cuda(packed, scale, &from);
    const struct matrix m = {.n = n,
                             .k = k,
                             .form = form,
                             .data = to_device(packed, bytes),
                             .scale = form == MATRIX_FP8 ? to_device(scale, (size_t)n * sizeof *scale) : NULL,
                             .flags = c->flags,
                             .head_dim = c->head_dim};
    bf16 *to = to_device(got, out);
    launched(unpack_cuda(&(struct unpack){.w = &m, .to = to}, NULL), "unpack");
    launched((int)cudaDeviceSynchronize(), "unpack, to its end");
    from_device(got, to, out);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < k; i++) {
            const bf16 want = expected_weight(w, scale, j, i, k, form),
                       is = got[(size_t)j * (size_t)k + (size_t)i];
            EXPECT_MSG(is == want,
                       "n %d k %d flags %d form %d: output %d input %d is %#x (%g), expected %#x (%g)", n, k,
                       (int)c->flags, (int)form, j, i, is, (double)bf16_to_f32(is), want,
                       (double)bf16_to_f32(want));
        }
    for (size_t i = (size_t)n * (size_t)k; i < out / sizeof *got; i++)
        EXPECT_MSG(got[i] == 0xa5a5, "n %d k %d flags %d form %d: wrote past the end", n, k, (int)c->flags,
                   (int)form);
    be.ops->release(&be, to);
    be.ops->release(&be, m.scale);
    be.ops->release(&be, m.data);
    free(w), free(scale), free(packed), free(got);
}

START_TEST(unpacked_weights_are_those_that_were_packed)
{
    for (int d = 0; d < N_DEPTHS; d++) {
        check_unpacked(&orders[_i], depths[d], MATRIX_BF16);
        check_unpacked(&orders[_i], depths[d], MATRIX_FP8);
    }
}
END_TEST

/* ---- products ---- */

static const struct {
    int n, k, rows;
} shapes[] = {{64, 64, 65},     {192, 64, 600},    {96, 50, 70},     {97, 100, 128}, {576, 576, 129},
              {3072, 576, 200}, {576, 1536, 1000}, {1024, 4096, 80}, {256, 512, 160}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void multiply(const struct gemm_lt_product *p)
{
    if (gemm_lt_run(lt, p, NULL, why))
        ck_abort_msg("%s", why);
    launched((int)cudaDeviceSynchronize(), "a product, to its end");
}

/* Small whole numbers: every order of additions gives the same f32, so all that may differ is wrong. */
static void check_integers(int shape, enum gemm_lt_type in, enum gemm_lt_type out, int accumulate)
{
    const int n = shapes[shape].n, k = shapes[shape].k, rows = shapes[shape].rows;
    const size_t nw = (size_t)n * (size_t)k, nx = (size_t)rows * (size_t)k, ny = (size_t)rows * (size_t)n;
    float *w = random_floats(nw, 1, 2), *x = random_floats(nx, 2, 2), *y = malloc(ny * sizeof *y);
    uint8_t *w8 = malloc(nw), *x8 = malloc(nx);
    const float scales[] = {0.5f, 4};
    int choices = 0;
    for (size_t i = 0; i < nw; i++)
        w8[i] = fp8_from_f32(w[i] = rintf(w[i]));
    for (size_t i = 0; i < nx; i++)
        x8[i] = fp8_from_f32(x[i] = rintf(x[i]));
    bf16 *w16 = rounded(w, nw), *x16 = rounded(x, nx);
    const int wide = in == GEMM_LT_BF16;
    float *device_scales[] = {to_device(&scales[0], sizeof *scales),
                              to_device(&scales[1], sizeof *scales)}; /* 16-byte aligned */
    struct gemm_lt_product p = {.w = wide ? to_device(w16, nw * 2) : to_device(w8, nw),
                                .x = wide ? to_device(x16, nx * 2) : to_device(x8, nx),
                                .y = to_device(NULL, ny * 4),
                                .w_scale = device_scales[0],
                                .x_scale = device_scales[1],
                                .n = n,
                                .k = k,
                                .rows = rows,
                                .in = in,
                                .out = out,
                                .accumulate = accumulate,
                                .workspace = workspace};
    if (gemm_lt_choices(lt, &p, &choices, why))
        ck_abort_msg("%s", why);
    ck_assert_int_ge(choices, 1);
    for (p.choice = 0; p.choice < choices; p.choice++) {
        for (size_t i = 0; i < ny; i++)
            y[i] = (float)(i % 7);
        ok(be.ops->upload(&be, p.y, y, ny * sizeof *y));
        ok(be.ops->sync(&be));
        multiply(&p);
        from_device(y, p.y, ny * (out == GEMM_LT_F32 ? sizeof *y : sizeof(bf16)));
        for (size_t at = 0; at < ny; at += at < 4096 ? 1 : 61) {
            const float *a = w + at % (size_t)n * (size_t)k, *b = x + at / (size_t)n * (size_t)k;
            float want = 0;
            for (int i = 0; i < k; i++)
                want += a[i] * b[i];
            want = want * (wide ? 1 : scales[0] * scales[1]) + (accumulate ? (float)(at % 7) : 0);
            const float got = out == GEMM_LT_F32 ? y[at] : bf16_to_f32(((bf16 *)(void *)y)[at]);
            want = out == GEMM_LT_F32 ? want : bf16_to_f32(bf16_from_f32(want));
            EXPECT_MSG(got == want,
                       "[%d, %d] of %d rows, in %d out %d accumulate %d choice %d of %d: row %zu output %zu "
                       "is %g, expected %g",
                       n, k, rows, (int)in, (int)out, accumulate, p.choice, choices, at / (size_t)n,
                       at % (size_t)n, (double)got, (double)want);
        }
    }
    be.ops->release(&be, p.y);
    be.ops->release(&be, (void *)(uintptr_t)p.x);
    be.ops->release(&be, (void *)(uintptr_t)p.w);
    be.ops->release(&be, device_scales[0]);
    be.ops->release(&be, device_scales[1]);
    free(w), free(x), free(y), free(w8), free(x8), free(w16), free(x16);
}

START_TEST(products_of_small_integers_are_exact_whatever_the_library_chooses)
{
    check_integers(_i, GEMM_LT_BF16, GEMM_LT_F32, 0);
    check_integers(_i, GEMM_LT_BF16, GEMM_LT_F32, 1);
    check_integers(_i, GEMM_LT_BF16, GEMM_LT_BF16, 0);
    if (shapes[_i].n % 16 == 0 && shapes[_i].k % 16 == 0 && shapes[_i].rows % 16 == 0) {
        check_integers(_i, GEMM_LT_FP8, GEMM_LT_F32, 0);
        check_integers(_i, GEMM_LT_FP8, GEMM_LT_BF16, 0);
    }
}
END_TEST

/* k additions, each off by at most one unit in the last place (tensor cores may cut instead of round) of a
 * partial sum that the magnitudes bound; the sum onto y and bf16 round once more. */
START_TEST(products_are_within_their_bound_and_the_same_every_time)
{
    const int n = shapes[_i].n, k = shapes[_i].k, rows = shapes[_i].rows;
    const size_t nw = (size_t)n * (size_t)k, nx = (size_t)rows * (size_t)k, ny = (size_t)rows * (size_t)n;
    float *w = random_floats(nw, 3, 1), *x = random_floats(nx, 4, 2), *old = random_floats(ny, 5, 9),
          *y = malloc(ny * sizeof *y), *again = malloc(ny * sizeof *y);
    bf16 *w16 = rounded(w, nw), *x16 = rounded(x, nx);
    double worst = 0;
    struct gemm_lt_product p = {.w = to_device(w16, nw * 2),
                                .x = to_device(x16, nx * 2),
                                .y = to_device(old, ny * 4),
                                .n = n,
                                .k = k,
                                .rows = rows,
                                .in = GEMM_LT_BF16,
                                .out = GEMM_LT_F32,
                                .accumulate = 1,
                                .workspace = workspace};
    multiply(&p);
    from_device(y, p.y, ny * sizeof *y);
    for (size_t at = 0; at < ny; at += at < 1024 ? 1 : 97) {
        const bf16 *a = w16 + at % (size_t)n * (size_t)k, *b = x16 + at / (size_t)n * (size_t)k;
        double want = old[at], size = fabs((double)old[at]);
        for (int i = 0; i < k; i++) {
            want += (double)bf16_to_f32(a[i]) * bf16_to_f32(b[i]);
            size += fabs((double)bf16_to_f32(a[i]) * bf16_to_f32(b[i]));
        }
        const double share = fabs(y[at] - want) / ((k + 1) * 0x1p-23 * size);
        EXPECT_MSG(share <= 1,
                   "[%d, %d] of %d rows: row %zu output %zu is %.9g, expected %.9g, %.2f of the bound", n, k,
                   rows, at / (size_t)n, at % (size_t)n, (double)y[at], want, share);
        worst = fmax(worst, share);
    }
    printf("cuBLASLt [%d, %d] of %d rows: %.2f %% of the bound\n", n, k, rows, 100 * worst);
    ok(be.ops->upload(&be, p.y, old, ny * sizeof *old));
    ok(be.ops->sync(&be));
    multiply(&p);
    from_device(again, p.y, ny * sizeof *y);
    ck_assert(memcmp(y, again, ny * sizeof *y) == 0);
    be.ops->release(&be, p.y);
    be.ops->release(&be, (void *)(uintptr_t)p.x);
    be.ops->release(&be, (void *)(uintptr_t)p.w);
    free(w), free(x), free(old), free(y), free(again), free(w16), free(x16);
}
END_TEST

START_TEST(more_shapes_than_there_are_plans_still_multiply)
{
    enum { N = 32, K = 32 };
    bf16 w[N * K], x[(65 + GEMM_LT_PLANS) * K];
    float y[N];
    for (int i = 0; i < N * K; i++)
        w[i] = bf16_from_f32((float)(i / K));
    for (int i = 0; i < (65 + GEMM_LT_PLANS) * K; i++)
        x[i] = bf16_from_f32(1);
    struct gemm_lt_product p = {.w = to_device(w, sizeof w),
                                .x = to_device(x, sizeof x),
                                .y = to_device(NULL, (65 + GEMM_LT_PLANS) * N * 4),
                                .n = N,
                                .k = K,
                                .in = GEMM_LT_BF16,
                                .out = GEMM_LT_F32,
                                .workspace = workspace};
    for (int round = 0; round < 2; round++)
        for (p.rows = 65; p.rows < 65 + GEMM_LT_PLANS; p.rows++) {
            multiply(&p);
            from_device(y, (float *)p.y + (p.rows - 1) * N, sizeof y);
            for (int j = 0; j < N; j++)
                EXPECT_MSG(y[j] == (float)(j * K), "%d rows: output %d is %g, expected %d", p.rows, j,
                           (double)y[j], j * K);
        }
    p.rows = 65;
    p.choice = GEMM_LT_CHOICES;
    ck_assert_int_eq(gemm_lt_run(lt, &p, NULL, why), 1);
    ck_assert_msg(strstr(why, "expected a choice from 0 to") != NULL, "%s", why);
    be.ops->release(&be, p.y);
    be.ops->release(&be, (void *)(uintptr_t)p.x);
    be.ops->release(&be, (void *)(uintptr_t)p.w);
}
END_TEST

/* ---- passes over rows ---- */

static const int widths[] = {2, 7, 16, 48, 64, 97, 576, 577, 1536, 4096, 14336};
enum { N_WIDTHS = sizeof widths / sizeof *widths, ROWS = 67 };

static void compare(const char *what, int width, const bf16 *got, const double *want, double rel,
                    double slack)
{
    double worst = 0;
    for (size_t i = 0; i < ROWS * (size_t)width; i++) {
        const double share = fabs(bf16_to_f32(got[i]) - want[i]) / (rel * fabs(want[i]) + slack);
        EXPECT_MSG(share <= 1, "%s of width %d: row %zu at %zu is %.9g, expected %.9g, %.2f of the bound",
                   what, width, i / (size_t)width, i % (size_t)width, (double)bf16_to_f32(got[i]), want[i],
                   share);
        worst = fmax(worst, share);
    }
    printf("%s of width %d: %.1f %% of the bound\n", what, width, 100 * worst);
}

/* Sum of squares: a thread's chain of four a 1024, 5 halvings, 8 warps; the root halves that; then as in
 * test_cuda_kernels. */
START_TEST(a_norm_in_bulk_is_within_its_bound)
{
    const int dim = widths[_i];
    const double f32 = ((4.0 * (dim / 1024 + 1) + 13) / 2 + 6) * 0x1p-24, rel = 0x1p-8 * (1 + f32) + f32;
    const size_t n = ROWS * (size_t)dim;
    float *x = random_floats(n, 6, 4), *w = random_floats((size_t)dim, 7, 2), *ref = malloc(n * sizeof *ref);
    double *want = malloc(n * sizeof *want);
    bf16 *got = malloc(n * sizeof *got);
    struct rmsnorm a = {.x = x, .w = w, .y.act = ref, .rows = ROWS, .dim = dim, .eps = 1e-5f};
    rmsnorm_ref(&a);
    for (size_t i = 0; i < n; i++)
        want[i] = ref[i];
    float *device_x = to_device(x, n * sizeof *x), *device_w = to_device(w, (size_t)dim * sizeof *w);
    a.x = device_x, a.w = device_w, a.y.act = to_device(NULL, n * sizeof *got), a.bulk = 1;
    ok(be.ops->rmsnorm(&be, &a));
    from_device(got, a.y.act, n * sizeof *got);
    compare("norm", dim, got, want, rel, 1e-37);
    be.ops->release(&be, a.y.act);
    be.ops->release(&be, device_w);
    be.ops->release(&be, device_x);
    free(x), free(w), free(ref), free(want), free(got);
}
END_TEST

/* 2 ulp of expf, one rounding each of sum, quotient and product, then bf16's 2^-8. */
START_TEST(a_swiglu_in_bulk_is_within_its_bound)
{
    const int m = widths[_i];
    const size_t n = ROWS * (size_t)m;
    float *x = random_floats(2 * n, 8, 1);
    for (size_t i = 0; i < 2 * n; i++)
        x[i] *= i % 5 == 0 ? 120 : 6;
    bf16 *gate_up = rounded(x, 2 * n), *got = malloc(n * sizeof *got);
    double *want = malloc(n * sizeof *want);
    for (size_t i = 0; i < n; i++) {
        const bf16 *row = gate_up + i / (size_t)m * 2 * (size_t)m + i % (size_t)m;
        const double g = bf16_to_f32(row[0]);
        want[i] = g / (1 + exp(-g)) * bf16_to_f32(row[m]);
    }
    const struct swiglu_bulk a = {.gate_up = to_device(gate_up, 2 * n * sizeof *gate_up),
                                  .y = to_device(NULL, n * sizeof *got),
                                  .rows = ROWS,
                                  .m = m};
    launched(swiglu_bulk_cuda(&a, NULL), "swiglu");
    launched((int)cudaDeviceSynchronize(), "swiglu, to its end");
    from_device(got, a.y, n * sizeof *got);
    compare("swiglu", m, got, want, 0x1p-8 + 8 * 0x1p-24, 1e-34);
    be.ops->release(&be, a.y);
    be.ops->release(&be, (void *)(uintptr_t)a.gate_up);
    free(x), free(gate_up), free(got), free(want);
}
END_TEST

START_TEST(rounding_to_fp8_in_bulk_is_the_reference_exactly)
{
    const int k = widths[_i / 2];
    const size_t n = ROWS * (size_t)k;
    float *x = random_floats(n, 9, 3), scale[ROWS], ones[ROWS];
    for (size_t i = 0; i < n; i++)
        x[i] = i / (size_t)k == 5 ? 0 : bf16_to_f32(bf16_from_f32(x[i] * (float)(1 + i / (size_t)k)));
    bf16 *x16 = rounded(x, n);
    struct quantise a = {.x = x, .scale = scale, .rows = ROWS, .k = k, .fixed = _i % 2 ? 0.03f : 0};
    quantise_ref(&a);
    float *device_scale = to_device(NULL, sizeof ones);
    bf16 *device_x = to_device(x16, n * sizeof *x16);
    a.x = device_x, a.scale = device_scale, a.bulk = 1;
    ok(be.ops->quantise(&be, &a));
    from_device(x16, device_x, n * sizeof *x16);
    from_device(ones, device_scale, sizeof ones);
    for (size_t i = 0; i < n; i++) {
        const bf16 want = bf16_from_f32(x[i] * scale[i / (size_t)k]);
        EXPECT_MSG(x16[i] == want, "k %d row %zu input %zu is %#x, expected %#x", k, i / (size_t)k,
                   i % (size_t)k, x16[i], want);
    }
    for (int r = 0; r < ROWS; r++)
        EXPECT_MSG(ones[r] == 1, "k %d: scale of row %d is %g, expected 1", k, r, (double)ones[r]);
    be.ops->release(&be, device_x);
    be.ops->release(&be, device_scale);
    free(x), free(x16);
}
END_TEST

int main(void)
{
    if (backend_open(&be, "cuda", &(struct backend_opts){0})) {
        printf("test_cuda_bulk: skipped: %s\n", err_text());
        return CUDA_SUITE_SKIPPED;
    }
    if (gemm_lt_open(&lt, why)) {
        printf("test_cuda_bulk: failed: %s\n", why);
        return 1;
    }
    workspace = to_device(NULL, GEMM_LT_WORKSPACE);
    printf("test_cuda_bulk: %s, cuBLASLt %zu\n", be.device, gemm_lt_version(lt));
    Suite *s = suite_create("cuda_bulk");
    TCase *c = tcase_create("cuda_bulk");
    tcase_add_loop_test(c, unpacked_weights_are_those_that_were_packed, 0, N_ORDERS);
    tcase_add_loop_test(c, products_of_small_integers_are_exact_whatever_the_library_chooses, 0, N_SHAPES);
    tcase_add_loop_test(c, products_are_within_their_bound_and_the_same_every_time, 0, N_SHAPES);
    tcase_add_test(c, more_shapes_than_there_are_plans_still_multiply);
    tcase_add_loop_test(c, a_norm_in_bulk_is_within_its_bound, 0, N_WIDTHS);
    tcase_add_loop_test(c, a_swiglu_in_bulk_is_within_its_bound, 0, N_WIDTHS);
    tcase_add_loop_test(c, rounding_to_fp8_in_bulk_is_the_reference_exactly, 0, 2 * N_WIDTHS);
    suite_add_tcase(s, c);
    const int failed = cuda_suite_run(s);
    gemm_lt_close(lt);
    backend_close(&be);
    return failed;
}
