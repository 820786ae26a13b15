/* rmsnorm on every instruction set of this machine. */
#include "kernels/cpu.h"
#include "kernels/philox.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 40, MAX_DIM = 577 };

static const int dims[] = {1, 15, 16, 17, 64, 100, 576, 577};
static float x[ROWS * MAX_DIM], w[MAX_DIM], y[ROWS * MAX_DIM], expected[ROWS * MAX_DIM];

static void fill(float *to, int n, uint32_t stream)
{
    for (int i = 0; i < n; i++)
        to[i] = 4 * philox_uniform(philox(11, stream, 0, 0, (uint32_t)i).v[0]) - 2;
}

static struct rmsnorm args(int dim, int first, int rows, int threads, float *to)
{
    return (struct rmsnorm){.x = x + first * dim,
                            .w = w,
                            .y.act = to + first * dim,
                            .rows = rows,
                            .dim = dim,
                            .threads = threads,
                            .eps = 1e-5f};
}

static void setup(void)
{
    fill(x, ROWS * MAX_DIM, 1);
    fill(w, MAX_DIM, 2);
}

START_TEST(a_row_is_the_same_in_every_batch)
{
    int dim = dims[_i];
    for (int i = 0; cpu_kernels_at(i); i++) {
        for (int r = 0; r < ROWS; r++) {
            struct rmsnorm a = args(dim, r, 1, 1, expected);
            cpu_kernels_at(i)->rmsnorm(&a);
        }
        for (int threads = 1; threads <= 4; threads++)
            for (int rows = 2; rows <= ROWS; rows += threads == 1 ? 1 : 7) {
                struct rmsnorm a = args(dim, ROWS - rows, rows, threads, y);
                cpu_kernels_at(i)->rmsnorm(&a);
                ck_assert_msg(memcmp(a.y.act, expected + (ROWS - rows) * dim,
                                     sizeof(float) * (size_t)(rows * dim)) == 0,
                              "%s: dim %d, %d rows, %d threads differ from rows alone",
                              cpu_kernels_at(i)->name, dim, rows, threads);
            }
    }
}
END_TEST

START_TEST(y_may_be_x)
{
    int dim = dims[_i];
    for (int i = 0; cpu_kernels_at(i); i++) {
        struct rmsnorm a = args(dim, 0, ROWS, 1, expected);
        cpu_kernels_at(i)->rmsnorm(&a);
        memcpy(y, x, sizeof y);
        a.y.act = y;
        a.x = y;
        cpu_kernels_at(i)->rmsnorm(&a);
        ck_assert_mem_eq(y, expected, sizeof(float) * (size_t)(ROWS * dim));
    }
}
END_TEST

/* The sum of squares is off by at most (dim / 16 + 6) eps of itself, its root by half that; the mean, the sum
 * with eps, the root, the quotient and two products add one eps each. */
START_TEST(it_is_within_its_bound_of_the_reference)
{
    int dim = dims[_i];
    double rel = ((dim / 16 + 6) / 2.0 + 6) * 0x1p-24;
    struct rmsnorm a = args(dim, 0, ROWS, 1, expected);
    rmsnorm_ref(&a);
    for (int i = 0; cpu_kernels_at(i); i++) {
        double worst = 0;
        int at = 0;
        a.y.act = y;
        cpu_kernels_at(i)->rmsnorm(&a);
        for (int j = 0; j < ROWS * dim; j++) {
            double share = fabs((double)y[j] - expected[j]) / (rel * fabs(expected[j]) + 1e-37);
            if (!(share <= worst)) {
                worst = share;
                at = j;
            }
        }
        printf("%s dim %d: worst at %d, %.1f %% of the bound\n", cpu_kernels_at(i)->name, dim, at,
               100 * worst);
        ck_assert_msg(worst <= 1, "%s: output %d is %.9g, expected %.9g", cpu_kernels_at(i)->name, at, y[at],
                      expected[at]);
    }
}
END_TEST

START_TEST(small_integers_are_exact)
{
    float in[32], one[32], out[32]; /* mean square 16, so y = x / 4 */
    for (int i = 0; i < 32; i++) {
        in[i] = i % 2 ? 4.0f : -4.0f;
        one[i] = (float)i;
    }
    struct rmsnorm a = {.x = in, .w = one, .y.act = out, .rows = 1, .dim = 32, .threads = 1, .eps = 0};
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        (i < 0 ? rmsnorm_ref : cpu_kernels_at(i)->rmsnorm)(&a);
        for (int j = 0; j < 32; j++)
            ck_assert(out[j] == (j % 2 ? 1.0f : -1.0f) * (float)j);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("rmsnorm");
    TCase *c = tcase_create("rmsnorm");
    int n = sizeof dims / sizeof *dims;
    tcase_add_checked_fixture(c, setup, NULL);
    tcase_add_loop_test(c, a_row_is_the_same_in_every_batch, 0, n);
    tcase_add_loop_test(c, y_may_be_x, 0, n);
    tcase_add_loop_test(c, it_is_within_its_bound_of_the_reference, 0, n);
    tcase_add_test(c, small_integers_are_exact);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
