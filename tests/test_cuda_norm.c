/* rmsnorm_cuda and quantise_cuda. Their numbers are single roundings of single operations, so the host
 * computes the same bits; the norm that act and squares stand for is held to the double reference. */
#include "kernels/act.h"
#include "kernels/cuda.h"
#include "kernels/fp8.h"
#include "kernels/philox.h"
#include "tests/cuda_data.h"
#include "tests/expect.h"
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 100, UNTOUCHED_PAIR = 0xa5a5 };
#define EPS 1e-5f

static const int widths[] = {1, 2, 7, 16, 17, 48, 64, 100, 576, 577, 4096, 14336, 20000};
static const int batches[] = {1, 2, 7, 8, 9, 16, 33, 64, 65, ROWS};
enum { N_WIDTHS = sizeof widths / sizeof *widths, N_BATCHES = sizeof batches / sizeof *batches };

static float uniform(uint32_t stream, size_t i)
{
    return 2 * philox_uniform(philox(11, stream, 0, 0, (uint32_t)i).v[0]) - 1;
}

/* binary16, to nearest even, saturating. */
static uint16_t f16_from(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000u);
    const uint32_t magnitude = u & 0x7fffffffu;
    if (fabsf(f) >= 65504)
        return sign | 0x7bffu;
    if (fabsf(f) < 0x1p-14f)
        return (uint16_t)(sign | (uint16_t)lrintf(fabsf(f) * 0x1p24f));
    return (uint16_t)(sign | (((magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13) - (112u << 10)));
}

static size_t act_numbers(int k)
{
    return (ROWS + ACT_ROWS - 1) / ACT_ROWS * act_tile(k);
}

static uint16_t *untouched(size_t n)
{
    uint16_t *p = alloc(n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = UNTOUCHED_PAIR;
    return p;
}

/* ---- rmsnorm ---- */

struct norm {
    int dim, steps;
    float *x, *w, *device_x, *device_w, *device_square; /* [ROWS, dim], [dim], [ROWS, steps] */
    uint16_t *device_act;
};

static void norm_init(struct norm *n, int dim)
{
    const size_t numbers = ROWS * (size_t)dim;
    *n = (struct norm){.dim = dim, .steps = (dim + 15) / 16};
    n->x = alloc(numbers * sizeof(float));
    n->w = alloc((size_t)dim * sizeof(float));
    for (size_t i = 0; i < numbers; i++)
        n->x[i] = 4 * uniform(1, i);
    for (int i = 0; i < dim; i++)
        n->w[i] = 2 * uniform(2, (size_t)i);
    n->x[0] = 1e6f, n->x[dim - 1] = -4e5f, n->w[0] = 1.5f; /* past the largest binary16 */
    n->device_x = to_device(n->x, numbers * sizeof(float));
    n->device_w = to_device(n->w, (size_t)dim * sizeof(float));
    uint16_t *fill = untouched(act_numbers(dim) + 2 * ROWS * (size_t)n->steps);
    n->device_act = to_device(fill, act_numbers(dim) * sizeof *fill);
    n->device_square = to_device(fill, ROWS * (size_t)n->steps * sizeof(float));
    free(fill);
}

static void norm_deinit(struct norm *n)
{
    cudaFree(n->device_x);
    cudaFree(n->device_w);
    cudaFree(n->device_square);
    cudaFree(n->device_act);
    free(n->x);
    free(n->w);
}

static float input(const struct norm *n, int r, int i)
{
    return i < n->dim ? n->x[(size_t)r * (size_t)n->dim + (size_t)i] : 0;
}

/* The sum of squares of step s of a row in the order of kernels/norm.cuh. */
static float square(const struct norm *n, int r, int s)
{
    float v[8];
    for (int i = 0; i < 8; i++) {
        const float low = input(n, r, s * 16 + i), high = input(n, r, s * 16 + i + 8);
        v[i] = fmaf(high, high, low * low);
    }
    for (int half = 4; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            v[i] += v[i + half];
    return v[0];
}

static void run_norm(const struct norm *n, int rows, enum act_form form, uint16_t *act, float *squares)
{
    const struct rmsnorm a = {.x = n->device_x,
                              .w = n->device_w,
                              .y = {n->device_act, n->device_square, form},
                              .rows = rows,
                              .dim = n->dim,
                              .eps = EPS};
    const size_t bytes = act_numbers(n->dim) * sizeof *act,
                 square_bytes = ROWS * (size_t)n->steps * sizeof *squares;
    cuda_ok(cudaMemset(n->device_act, UNTOUCHED_PAIR & 0xff, bytes), "clearing");
    cuda_ok(cudaMemset(n->device_square, UNTOUCHED_PAIR & 0xff, square_bytes), "clearing");
    cuda_ok(rmsnorm_cuda(&a, NULL), "launching");
    from_device(act, n->device_act, bytes);
    from_device(squares, n->device_square, square_bytes);
}

static void check_norm_row(const struct norm *n, int r, int rows, enum act_form form, const uint16_t *act,
                           const float *squares)
{
    for (int i = 0; i < n->steps * 16; i++) {
        const float v = i < n->dim ? input(n, r, i) * n->w[i] : 0;
        const uint16_t made = form == ACT_F16 ? f16_from(v) : bf16_from_f32(v),
                       want = r < rows ? made : UNTOUCHED_PAIR;
        const uint16_t got = act[act_at(r, i, n->dim)];
        EXPECT_MSG(got == want, "dim %d form %d, %d rows: row %d input %d is %04x, expected %04x", n->dim,
                   (int)form, rows, r, i, got, want);
    }
    for (int s = 0; s < n->steps; s++) {
        const uint32_t fill = UNTOUCHED_PAIR | (uint32_t)UNTOUCHED_PAIR << 16;
        const float made = square(n, r, s), *got = &squares[(size_t)r * (size_t)n->steps + (size_t)s];
        EXPECT_MSG(memcmp(got, r < rows ? (const void *)&made : &fill, sizeof made) == 0,
                   "dim %d, %d rows: row %d step %d: %a, expected %a", n->dim, rows, r, s, (double)*got,
                   (double)made);
    }
}

START_TEST(a_norm_is_x_times_w_and_the_squares_of_its_steps_exactly)
{
    struct norm n;
    norm_init(&n, widths[_i / 2]);
    uint16_t *act = alloc(act_numbers(n.dim) * sizeof *act);
    float *squares = alloc(ROWS * (size_t)n.steps * sizeof *squares);
    for (int i = 0; i < N_BATCHES; i++) {
        run_norm(&n, batches[i], _i % 2, act, squares);
        for (int r = 0; r < ROWS; r++)
            check_norm_row(&n, r, batches[i], _i % 2, act, squares);
    }
    free(act), free(squares);
    norm_deinit(&n);
}
END_TEST

/* A step's sum of squares rounds 5 times at most, and the sum of steps is taken in double here; x * w rounds
 * once, then to the 8 bits of BF16, and the reference once. */
START_TEST(act_and_squares_stand_for_the_norm_of_the_reference)
{
    struct norm n;
    norm_init(&n, widths[_i]);
    const double relative = 0x1p-8 * (1 + 0x1p-20) + 8 * 0x1p-24;
    uint16_t *act = alloc(act_numbers(n.dim) * sizeof *act);
    float *squares = alloc(ROWS * (size_t)n.steps * sizeof *squares),
          *want = alloc(ROWS * (size_t)n.dim * sizeof *want);
    double worst = 0;
    run_norm(&n, ROWS, ACT_BF16, act, squares);
    rmsnorm_ref(&(struct rmsnorm){.x = n.x, .w = n.w, .y.act = want, .rows = ROWS, .dim = n.dim, .eps = EPS});
    for (int r = 0; r < ROWS; r++) {
        double sum = 0;
        for (int s = 0; s < n.steps; s++)
            sum += (double)squares[(size_t)r * (size_t)n.steps + (size_t)s];
        for (int i = 0; i < n.dim; i++) {
            const double y = (double)bf16_to_f32(act[act_at(r, i, n.dim)]) / sqrt(sum / n.dim + (double)EPS);
            const double to = (double)want[(size_t)r * (size_t)n.dim + (size_t)i],
                         share = fabs(y - to) / (relative * fabs(to) + 1e-37);
            EXPECT_MSG(share <= 1, "dim %d: row %d input %d is %.9g, expected %.9g, %.2f of the bound", n.dim,
                       r, i, y, to, share);
            worst = fmax(worst, share);
        }
    }
    printf("rmsnorm dim %d: %.1f %% of the bound\n", n.dim, 100 * worst);
    free(act), free(squares), free(want);
    norm_deinit(&n);
}
END_TEST

/* ---- quantise ---- */

/* Rows of very different size; the third is zero, the fourth tiny, the fifth holds the largest binary16. */
static float activation(int r, int i, int k)
{
    const float v = ldexpf(uniform(3, (size_t)r * (size_t)k + (size_t)i), r % 9 - 4);
    return r == 2 ? 0 : r == 3 ? ldexpf(v, -20) : r == 4 && i == k / 2 ? -65504 : v;
}

static const struct kind {
    enum act_form form;
    float fixed; /* 0: a scale of its own for each row */
    int squares; /* 1 / rms is still to be multiplied in */
    int apart;   /* the result is another act than the source */
} kinds[] = {{ACT_F16, 0, 0, 0},      {ACT_BF16, 0, 0, 1},    {ACT_F16, 0.01f, 0, 1},
             {ACT_BF16, 0.01f, 0, 0}, {ACT_F16, 0.01f, 1, 0}, {ACT_BF16, 0.3f, 1, 1}};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

static float act_number(enum act_form form, uint16_t v)
{
    return form == ACT_F16 ? f16_to_f32(v) : bf16_to_f32(v);
}

/* Small integers, whose sums are exact. */
static float square_of(int r, int tile)
{
    return (float)((r + tile) % 7 + 1);
}

/* Row r as the kernel must leave it; returns its scale. */
static float rounded_row(const struct kind *kind, int k, int r, const uint16_t *before, float *x)
{
    float by = 0, sum = 0;
    for (int tile = 0; tile < (k + 15) / 16; tile++)
        sum += square_of(r, tile);
    const float inverse = kind->squares ? 1.0f / sqrtf(sum / (float)k + EPS) : 1.0f;
    for (int i = 0; i < k; i++)
        x[i] = act_number(kind->form, before[act_at(r, i, k)]) * inverse;
    quantise_ref(&(struct quantise){.x = x, .scale = &by, .rows = 1, .k = k, .fixed = kind->fixed});
    return by;
}

static void check_quantised(const struct kind *kind, int k, int rows, const uint16_t *before,
                            const uint16_t *after, const float *scale)
{
    float *x = alloc((size_t)k * sizeof *x);
    for (int r = 0; r < ROWS; r++) {
        const float by = rounded_row(kind, k, r, before, x);
        EXPECT_MSG(r >= rows ? scale[r] == -1 : scale[r] == by,
                   "kind %d, k %d, %d rows: scale of row %d is %.9g, expected %.9g", (int)(kind - kinds), k,
                   rows, r, (double)scale[r], r < rows ? (double)by : -1.0);
        for (int i = 0; i < (k + 15) / 16 * 16; i++) {
            const uint16_t got = after[act_at(r, i, k)],
                           was = kind->apart ? UNTOUCHED_PAIR : before[act_at(r, i, k)];
            const float want = i < k ? x[i] : 0, found = act_number(kind->form, got);
            if (r < rows)
                EXPECT_MSG(found == want,
                           "kind %d, k %d, %d rows: row %d input %d, which was %.9g, is %.9g, expected %.9g",
                           (int)(kind - kinds), k, rows, r, i,
                           (double)act_number(kind->form, before[act_at(r, i, k)]), (double)found,
                           (double)want);
            else
                EXPECT_MSG(got == was, "kind %d, k %d, %d rows: row %d input %d was %04x and is %04x",
                           (int)(kind - kinds), k, rows, r, i, was, got);
        }
    }
    free(x);
}

START_TEST(a_row_is_rounded_to_fp8_as_the_reference_does_in_every_batch)
{
    const int k = widths[_i / N_KINDS], steps = (k + 15) / 16;
    const struct kind *kind = &kinds[_i % N_KINDS];
    const size_t numbers = act_numbers(k), bytes = numbers * sizeof(uint16_t);
    uint16_t *before = untouched(numbers), *after = untouched(numbers), *device = to_device(before, bytes),
             *apart = to_device(before, bytes);
    float scale[ROWS], *device_scale = to_device(NULL, sizeof scale),
                       *square = alloc((size_t)(ROWS * steps) * sizeof *square);
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; i < steps * 16; i++) {
            const float v = i < k ? activation(r, i, k) : 0;
            before[act_at(r, i, k)] = kind->form == ACT_F16 ? f16_from(v) : bf16_from_f32(v);
        }
        for (int tile = 0; tile < steps; tile++)
            square[r * steps + tile] = square_of(r, tile);
    }
    float *device_square = to_device(square, (size_t)(ROWS * steps) * sizeof *square);
    for (int b = 0; b < N_BATCHES; b += _i % N_KINDS ? 3 : 1) {
        for (int r = 0; r < ROWS; r++)
            scale[r] = -1;
        for (size_t i = 0; i < numbers; i++)
            after[i] = UNTOUCHED_PAIR;
        cuda_ok(cudaMemcpy(device, before, bytes, cudaMemcpyHostToDevice), "uploading");
        cuda_ok(cudaMemcpy(apart, after, bytes, cudaMemcpyHostToDevice), "uploading");
        cuda_ok(cudaMemcpy(device_scale, scale, sizeof scale, cudaMemcpyHostToDevice), "uploading");
        const struct quantise a = {.x = kind->apart ? apart : device,
                                   .from = kind->apart ? device : NULL,
                                   .scale = device_scale,
                                   .rows = batches[b],
                                   .k = k,
                                   .fixed = kind->fixed,
                                   .square = kind->squares ? device_square : NULL,
                                   .eps = EPS,
                                   .form = kind->form};
        cuda_ok(quantise_cuda(&a, NULL), "launching");
        from_device(after, a.x, bytes);
        from_device(scale, device_scale, sizeof scale);
        check_quantised(kind, k, batches[b], before, after, scale);
    }
    cudaFree(device), cudaFree(apart), cudaFree(device_scale), cudaFree(device_square);
    free(before), free(after), free(square);
}
END_TEST

int main(void)
{
    if (cuda_suite_skips("test_cuda_norm"))
        return CUDA_SUITE_SKIPPED;
    Suite *s = suite_create("cuda_norm");
    TCase *t = tcase_create("rmsnorm");
    tcase_add_loop_test(t, a_norm_is_x_times_w_and_the_squares_of_its_steps_exactly, 0, 2 * N_WIDTHS);
    tcase_add_loop_test(t, act_and_squares_stand_for_the_norm_of_the_reference, 0, N_WIDTHS);
    suite_add_tcase(s, t);
    t = tcase_create("quantise");
    tcase_add_loop_test(t, a_row_is_rounded_to_fp8_as_the_reference_does_in_every_batch, 0,
                        N_KINDS * N_WIDTHS);
    suite_add_tcase(s, t);
    return cuda_suite_run(s);
}
