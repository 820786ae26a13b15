/* test_gather: rows by number on every instruction set, copied and normed, into rows and into parts of acts.
 */
#include "kernels/cpu.h"
#include "kernels/philox.h"
#include "tests/expect.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>

enum { ROWS = 9, WIDTH = 100, K = 3 * WIDTH };

static const int dims[] = {1, 16, 17, 64, WIDTH};
static const int from[ROWS] = {8, -1, 0, 3, 3, -1, 7, 1, 0};
static float x[ROWS * WIDTH], w[WIDTH], y[ROWS * K], act[ROWS * K], want_y[ROWS * K], want_act[ROWS * K];

static void fill(float *to, int n, uint32_t stream)
{
    for (int i = 0; i < n; i++)
        to[i] = 4 * philox_uniform(philox(11, stream, 0, 0, (uint32_t)i).v[0]) - 2;
}

static struct gather args(int dim, int normed)
{
    return (struct gather){.x = x,
                           .from = from,
                           .w = normed ? w : NULL,
                           .y = y,
                           .act = act,
                           .k = K,
                           .column = dim,
                           .rows = ROWS,
                           .dim = dim,
                           .threads = 1,
                           .eps = 1e-5f};
}

static void reset(void)
{
    fill(x, ROWS * WIDTH, 1);
    fill(w, WIDTH, 2);
    fill(y, ROWS * K, 3);
    fill(act, ROWS * K, 4);
    memcpy(want_y, y, sizeof y);
    memcpy(want_act, act, sizeof act);
}

/* An f32 sum of n squares is off by n * 2^-24 at most, its root by half of that, and three operations follow.
 */
static void expect_near(const float *got, const float *want, int n, int dim, const char *what)
{
    for (int i = 0; i < n; i++)
        EXPECT_MSG(fabsf(got[i] - want[i]) <= (float)(dim + 8) * 0x1p-24f * fabsf(want[i]),
                   "%s, dim %d: number %d is %a, expected %a", what, dim, i, (double)got[i], (double)want[i]);
}

START_TEST(rows_are_copied_or_normed_and_all_else_stays)
{
    const int dim = dims[_i];
    for (int i = 0; cpu_kernels_at(i); i++)
        for (int normed = 0; normed < 2; normed++) {
            struct gather a = args(dim, normed), b;
            reset();
            b = a;
            b.y = want_y;
            b.act = want_act;
            gather_ref(&b);
            cpu_kernels_at(i)->gather(&a);
            expect_near(y, want_y, ROWS * K, normed ? dim : -8, cpu_kernels_at(i)->name);
            expect_near(act, want_act, ROWS * K, normed ? dim : -8, cpu_kernels_at(i)->name);
        }
}
END_TEST

START_TEST(a_norm_has_the_bits_of_rmsnorm_even_in_place)
{
    const int dim = dims[_i];
    for (int i = 0; cpu_kernels_at(i); i++) {
        struct gather a = args(dim, 1);
        reset();
        const struct rmsnorm norm = {
            .x = x, .w = w, .y.act = want_y, .rows = ROWS, .dim = dim, .threads = 1, .eps = 1e-5f};
        cpu_kernels_at(i)->rmsnorm(&norm);
        a.from = NULL;
        a.y = x;
        a.k = dim;
        a.column = 0;
        cpu_kernels_at(i)->gather(&a);
        ck_assert_mem_eq(x, want_y, sizeof(float) * (size_t)(ROWS * dim));
        ck_assert_mem_eq(act, want_y, sizeof(float) * (size_t)(ROWS * dim));
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gather");
    TCase *c = tcase_create("gather");
    tcase_add_loop_test(c, rows_are_copied_or_normed_and_all_else_stays, 0, sizeof dims / sizeof *dims);
    tcase_add_loop_test(c, a_norm_has_the_bits_of_rmsnorm_even_in_place, 0, sizeof dims / sizeof *dims);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
