/* test_top: the best ids of a row, whatever stands in it. */
#include "kernels/philox.h"
#include "kernels/top.h"
#include "tests/expect.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>

enum { VOCAB = 700 };

static float row[VOCAB];
static int id[TOP_MAX];
static float log_p[TOP_MAX];

static void run(int vocab, int k, const int *map)
{
    const struct top a = {
        .logits = row, .map = map, .id = id, .log_p = log_p, .rows = 1, .vocab = vocab, .k = k};
    top_ref(&a);
}

/* Rank by counting: before an id stand the larger logits, and equals of a lower id. */
static int rank_of(int vocab, int v)
{
    int before = 0;
    for (int i = 0; i < vocab; i++) {
        const int larger = row[i] > row[v] || (isnan(row[v]) && !isnan(row[i])),
                  same = row[i] == row[v] || (isnan(row[v]) && isnan(row[i]));
        before += larger || (same && i < v);
    }
    return before;
}

START_TEST(ids_stand_in_the_order_of_their_ranks)
{
    static const int vocabs[] = {1, 2, 32, 33, VOCAB};
    for (uint32_t seed = 0; seed < 200; seed++) {
        const int vocab = vocabs[seed % 5],
                  k = 1 + (int)(seed % (uint32_t)(vocab < TOP_MAX ? vocab : TOP_MAX));
        for (int i = 0; i < vocab; i++) {
            const uint32_t r = philox(3, seed, 0, 0, (uint32_t)i).v[0];
            row[i] = seed % 3 ? (float)(r % 7) - 3 : philox_uniform(r); /* most of them equal, or few */
            if (seed % 4 == 3 && r % 11 == 0)
                row[i] = r % 2 ? NAN : INFINITY;
        }
        run(vocab, k, NULL);
        for (int i = 0; i < k; i++)
            EXPECT_MSG(rank_of(vocab, id[i]) == i, "seed %u: id %d is number %d, its rank is %d", seed, id[i],
                       i, rank_of(vocab, id[i]));
    }
}
END_TEST

START_TEST(probabilities_are_those_of_the_softmax)
{
    double sum = 0;
    for (int i = 0; i < 32; i++)
        row[i] = -0.25f * (float)(i * 5 % 32);
    run(32, 32, NULL);
    for (int i = 0; i < 32; i++) {
        ck_assert_int_eq(id[i] * 5 % 32, i);
        sum += exp((double)log_p[i]);
        if (i > 0)
            ck_assert_double_eq_tol((double)log_p[i] - (double)log_p[i - 1], -0.25, 4 * 0x1p-22);
    }
    ck_assert_double_eq_tol(sum, 1, 32 * 0x1p-22);
}
END_TEST

START_TEST(rows_are_taken_by_number_and_gaps_stay)
{
    static const int from[] = {1, -1, 0};
    int got[3] = {-5, -5, -5};
    float p[3] = {7, 7, 7};
    row[0] = 0, row[1] = 1, row[2] = 3, row[3] = 2;
    const struct top a = {.logits = row, .from = from, .id = got, .log_p = p, .rows = 3, .vocab = 2, .k = 1};
    top_ref(&a);
    ck_assert_int_eq(got[0], 0);
    ck_assert_int_eq(got[1], -5);
    ck_assert_int_eq(got[2], 1);
    ck_assert(p[0] < 0 && p[1] == 7 && p[2] < 0);
}
END_TEST

START_TEST(a_map_says_whose_ids_they_are)
{
    const int map[] = {40, 50, 60, 70};
    row[0] = 1, row[1] = -0.0f, row[2] = 0, row[3] = 3;
    run(4, 4, map);
    ck_assert_int_eq(id[0], 70);
    ck_assert_int_eq(id[1], 40);
    ck_assert_int_eq(id[2], 50);
    ck_assert_int_eq(id[3], 60);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("top");
    TCase *c = tcase_create("top");
    tcase_add_test(c, ids_stand_in_the_order_of_their_ranks);
    tcase_add_test(c, probabilities_are_those_of_the_softmax);
    tcase_add_test(c, rows_are_taken_by_number_and_gaps_stay);
    tcase_add_test(c, a_map_says_whose_ids_they_are);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
