/* test_cuda_kernels: embedding, statistics and read on the GPU, through the backend: exactly, or within
 * a bound of the double reference, and a row alone against the row among 2 to 64. */
#include "engine/backend.h"
#include "engine/err.h"
#include "kernels/philox.h"
#include "kernels/read.h"
#include "tests/cuda_suite.h"
#include "tests/expect.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 64 };

static struct backend be;

static float *random_floats(size_t n, uint32_t stream, float scale)
{
    float *v = malloc(n * sizeof *v);
    ck_assert_ptr_nonnull(v);
    for (size_t i = 0; i < n; i++)
        v[i] = scale * (2 * philox_uniform(philox(11, stream, 0, 0, (uint32_t)i).v[0]) - 1);
    return v;
}

static void ok(int rc)
{
    if (rc)
        ck_abort_msg("%s", err_text());
}

static void *to_device(const void *from, size_t bytes)
{
    void *p = NULL;
    ok(be.ops->alloc(&be, bytes, &p));
    if (from)
        ok(be.ops->upload(&be, p, from, bytes));
    return p;
}

static void from_device(void *to, const void *from, size_t bytes)
{
    ok(be.ops->download(&be, to, from, bytes));
    ok(be.ops->sync(&be));
}

static const int widths[] = {2, 7, 16, 17, 48, 64, 100, 576, 577, 4096, 8192, 16384};
enum { N_WIDTHS = sizeof widths / sizeof *widths };

START_TEST(an_embedding_is_the_row_of_its_token_exactly)
{
    enum { VOCAB = 37 };
    const int k = widths[_i];
    float *w = random_floats((size_t)VOCAB * (size_t)k, 1, 3), *y = malloc(ROWS * (size_t)k * sizeof *y);
    const struct matrix_part parts[] = {{w, DTYPE_F32, 20},
                                        {w + (size_t)20 * (size_t)k, DTYPE_F32, VOCAB - 20}};
    struct matrix m = {.n = 0};
    int token[ROWS];
    for (int r = 0; r < ROWS; r++)
        token[r] = r * 5 % VOCAB;
    ok(be.ops->matrix(&be, &m, &(struct matrix_source){.parts = parts, .n_parts = 2, .k = k}));
    int *device_token = to_device(token, sizeof token);
    float *device_y = to_device(NULL, ROWS * (size_t)k * sizeof *y);
    ok(be.ops->embed(&be, &(struct embed){.w = &m, .token = device_token, .y = device_y, .rows = ROWS}));
    from_device(y, device_y, ROWS * (size_t)k * sizeof *y);
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < k; i++) {
            const float want = bf16_to_f32(bf16_from_f32(w[(size_t)token[r] * (size_t)k + (size_t)i]));
            const float got = y[(size_t)r * (size_t)k + (size_t)i];
            EXPECT_MSG(got == want, "k %d: token %d input %d is %.9g, expected %.9g", k, token[r], i,
                       (double)got, (double)want);
        }
    be.ops->release(&be, device_y);
    be.ops->release(&be, device_token);
    be.ops->release(&be, m.data);
    free(w);
    free(y);
}
END_TEST

static const int vocabs[] = {1, 2, 7, 8, 9, 97, 1000, 4097, 49152, 128256};
enum { N_VOCABS = sizeof vocabs / sizeof *vocabs };

static void statistics(const float *device, int rows, int vocab, struct logit_stats *device_out,
                       struct logit_stats *out)
{
    ok(be.ops->logits(
        &be, &(struct logits){
                 .logits = device, .out = device_out, .rows = rows, .vocab = vocab, .with_entropy = 1}));
    from_device(out, device_out, (size_t)rows * sizeof *out);
}

/* Roundings of a sum: 16 ids of a lane, 5 halvings; of a chunk 2 ulp of its exp and a product, every 256th of
 * the chunks of 512, 5 halvings each of lanes and of warps. Then 2 ulp of exp, half an ulp of its argument d,
 * 1 ulp of log; the reference rounds its own result once. */
static void check_row(const float *row, int vocab, int r, const struct logit_stats *out, double *worst)
{
    struct logit_stats ref;
    double s = 0, d1 = 0, d2 = 0;
    logits_ref(&(struct logits){.logits = row, .out = &ref, .rows = 1, .vocab = vocab, .with_entropy = 1});
    for (int v = 0; v < vocab; v++) {
        const double d = (double)ref.max - row[v], e = exp(-d);
        if (e > 0)
            s += e, d1 += e * d, d2 += e * d * d;
    }
    d1 /= s, d2 /= s;
    const double eps = 0x1p-24, terms = vocab / (256 * 512) + 37, log_sum = log(s);
    const double sum = terms + 4 + d1 + 2 * log_sum, lse_bound = eps * (sum + 2 * fabs((double)ref.lse));
    const double entropy_bound =
        eps * (sum + (2 * terms + 12) * d1 + d2 + d1 * d1 + 2 * (double)ref.entropy + 1e-6);
    const double lse = fabs((double)out->lse - ref.lse) / lse_bound,
                 entropy = fabs((double)out->entropy - ref.entropy) / entropy_bound;
    EXPECT_MSG(out->argmax == ref.argmax && out->max == ref.max && out->second == ref.second,
               "vocab %d row %d: %d, %.9g, %.9g, expected %d, %.9g, %.9g", vocab, r, out->argmax,
               (double)out->max, (double)out->second, ref.argmax, (double)ref.max, (double)ref.second);
    EXPECT_MSG(lse <= 1, "vocab %d row %d: lse %.9g, expected %.9g", vocab, r, (double)out->lse,
               (double)ref.lse);
    EXPECT_MSG(entropy <= 1, "vocab %d row %d: entropy %.9g, expected %.9g", vocab, r, (double)out->entropy,
               (double)ref.entropy);
    *worst = fmax(*worst, fmax(lse, entropy));
}

/* Rows of growing spread; every third has its maximum twice, every fourth one possible id alone in its second
 * half. */
START_TEST(statistics_are_within_their_bound_and_the_same_in_every_batch)
{
    const int vocab = vocabs[_i];
    const size_t floats = ROWS * (size_t)vocab;
    float *x = random_floats(floats, 6, 1);
    struct logit_stats out[ROWS], some[ROWS];
    double worst = 0;
    for (int r = 0; r < ROWS; r++) {
        float *row = x + (size_t)r * (size_t)vocab;
        for (int v = 0; v < vocab; v++)
            row[v] = r % 4 == 3 && v > vocab / 2 ? -INFINITY : row[v] * (0.01f + 0.5f * (float)r);
        if (r % 3 == 2)
            row[vocab - 1] = row[vocab / 3] = 60;
    }
    float *device = to_device(x, floats * sizeof *x);
    struct logit_stats *device_out = to_device(NULL, sizeof out);
    statistics(device, ROWS, vocab, device_out, out);
    for (int r = 0; r < ROWS; r++)
        check_row(x + (size_t)r * (size_t)vocab, vocab, r, &out[r], &worst);
    for (int rows = 1; rows < ROWS; rows += 1 + rows / 2)
        for (int first = 0; first + rows <= ROWS; first += rows) {
            statistics(device + (size_t)first * (size_t)vocab, rows, vocab, device_out, some);
            for (int r = 0; r < rows; r++)
                EXPECT_MSG(memcmp(&some[r], &out[first + r], sizeof *some) == 0,
                           "vocab %d: row %d differs among %d", vocab, first + r, rows);
        }
    printf("logits vocab %d: %.1f %% of the bound\n", vocab, 100 * worst);
    be.ops->release(&be, device_out);
    be.ops->release(&be, device);
    free(x);
}
END_TEST

START_TEST(a_read_sums_every_word_once)
{
    const size_t sizes[] = {64, 65536, 65536 + 64, (5 << 20) + 192};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        float *data = random_floats(sizes[i] / 4, 7, 1);
        uint64_t *words = aligned_alloc(64, sizes[i]), got = 0;
        memcpy(words, data, sizes[i]);
        void *device = to_device(words, sizes[i]);
        uint64_t *sum = to_device(NULL, sizeof got);
        ok(be.ops->read(&be, device, sizes[i], sum));
        ok(be.ops->read(&be, device, sizes[i], sum));
        from_device(&got, sum, sizeof got);
        ck_assert_uint_eq(got, read_memory(&(struct read){.data = words, .bytes = sizes[i], .threads = 1}));
        be.ops->release(&be, device);
        be.ops->release(&be, sum);
        free(data), free(words);
    }
}
END_TEST

int main(void)
{
    if (backend_open(&be, "cuda", &(struct backend_opts){0})) {
        printf("test_cuda_kernels: skipped: %s\n", err_text());
        return CUDA_SUITE_SKIPPED;
    }
    Suite *s = suite_create("cuda_kernels");
    TCase *c = tcase_create("cuda_kernels");
    tcase_add_loop_test(c, an_embedding_is_the_row_of_its_token_exactly, 0, N_WIDTHS);
    tcase_add_loop_test(c, statistics_are_within_their_bound_and_the_same_in_every_batch, 0, N_VOCABS);
    tcase_add_test(c, a_read_sums_every_word_once);
    suite_add_tcase(s, c);
    const int failed = cuda_suite_run(s);
    backend_close(&be);
    return failed;
}
