/* Percentiles at their edges; intervals against known truths, with the wrong methods shown to fail. */
#include "experiments/stats.h"
#include "kernels/philox.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>

enum { CLUSTERS = 50, SIMULATIONS = 400 };

static struct stats_resampling resampling(int replicates, uint64_t seed)
{
    return (struct stats_resampling){.replicates = replicates, .level = 0.95, .seed = seed};
}

/* Near normal, mean 0, variance 1: twelve uniforms. */
static double normal(uint32_t a, uint32_t b)
{
    double sum = -6;
    for (uint32_t i = 0; i < 3; i++) {
        struct philox4 p = philox(99, a, b, i, 1);
        for (int k = 0; k < 4; k++)
            sum += philox_uniform(p.v[k]);
    }
    return sum;
}

static double uniform(uint32_t a, uint32_t b)
{
    return philox_uniform(philox(98, a, b, 0, 1).v[0]);
}

START_TEST(percentiles_interpolate_and_hold_at_the_edges)
{
    const double x[] = {1, 2, 4, 8};
    ck_assert(stats_percentile(x, 4, 0) == 1 && stats_percentile(x, 4, 1) == 8);
    ck_assert(stats_percentile(x, 4, 0.5) == 3);
    ck_assert(stats_percentile(x, 4, 1.0 / 3) == 2);
    ck_assert(stats_percentile(x, 3, 0.5) == 2);
    ck_assert(stats_percentile(x, 1, 0.9) == 1);
    ck_assert(stats_percentile(x, 4, -1) == 1 && stats_percentile(x, 4, 2) == 8);
    ck_assert(isnan(stats_percentile(x, 0, 0.5)));
}
END_TEST

START_TEST(selection_finds_what_sorting_would)
{
    double x[300], sorted[300];
    for (uint32_t n = 1; n <= 300; n += 13)
        for (int k = 0; k <= 20; k++) {
            for (uint32_t i = 0; i < n; i++)
                x[i] = sorted[i] = floor(20 * uniform(n, i)); /* many are equal */
            stats_sort(sorted, n);
            ck_assert(stats_select(x, n, k / 20.0) == stats_percentile(sorted, n, k / 20.0));
        }
    ck_assert(isnan(stats_select(x, 0, 0.5)));
}
END_TEST

START_TEST(sorting_orders_any_number_of_values)
{
    double x[] = {3, -1, 2, 2, 0};
    stats_sort(x, 5);
    for (int i = 1; i < 5; i++)
        ck_assert(x[i - 1] <= x[i]);
    ck_assert(x[0] == -1 && x[4] == 3);
    stats_sort(x, 0);
    stats_sort(NULL, 0);
}
END_TEST

START_TEST(the_value_is_the_ratio_of_sums)
{
    const double x[] = {1, 1, 9, 3};
    struct stats_interval out;
    struct stats_resampling r = resampling(100, 1);
    ck_assert_int_eq(stats_bootstrap(x, 2, 2, stats_ratio, &r, &out), 0);
    ck_assert(out.value == 2.5);
    /* Two clusters: a replicate is one of the two twice, or both. */
    ck_assert(out.lo == 1 && out.hi == 3);
}
END_TEST

START_TEST(equal_seeds_give_equal_bits_and_other_seeds_do_not)
{
    double x[CLUSTERS][2];
    struct stats_interval a, b, c;
    struct stats_resampling r1 = resampling(500, 1), r2 = resampling(500, 2);
    for (uint32_t i = 0; i < CLUSTERS; i++) {
        x[i][0] = 2 + normal(i, 0);
        x[i][1] = 1;
    }
    stats_bootstrap(&x[0][0], CLUSTERS, 2, stats_ratio, &r1, &a);
    stats_bootstrap(&x[0][0], CLUSTERS, 2, stats_ratio, &r1, &b);
    stats_bootstrap(&x[0][0], CLUSTERS, 2, stats_ratio, &r2, &c);
    ck_assert(a.lo == b.lo && a.hi == b.hi);
    ck_assert(a.lo != c.lo && a.hi != c.hi && a.value == c.value);
    ck_assert(a.lo < a.value && a.value < a.hi);
}
END_TEST

START_TEST(identical_arms_give_exactly_one)
{
    double x[CLUSTERS][4];
    struct stats_interval out;
    struct stats_resampling r = resampling(STATS_REPLICATES, 1);
    for (uint32_t i = 0; i < CLUSTERS; i++) {
        x[i][0] = x[i][2] = floor(100 * uniform(i, 1));
        x[i][1] = x[i][3] = floor(1e9 * uniform(i, 2));
    }
    stats_bootstrap(&x[0][0], CLUSTERS, 4, stats_ratio_of_rates, &r, &out);
    ck_assert(out.value == 1 && out.lo == 1 && out.hi == 1);
}
END_TEST

START_TEST(fewer_than_two_clusters_have_no_interval)
{
    const double x[] = {6, 3};
    struct stats_interval out;
    struct stats_resampling r = resampling(100, 1);
    ck_assert_int_eq(stats_bootstrap(x, 1, 2, stats_ratio, &r, &out), 0);
    ck_assert(out.value == 2 && isnan(out.lo) && isnan(out.hi));
    ck_assert_int_eq(stats_bootstrap(x, 0, 2, stats_ratio, &r, &out), 0);
    ck_assert(isnan(out.value) && isnan(out.lo) && isnan(out.hi));
}
END_TEST

START_TEST(undefined_replicates_are_left_out)
{
    /* One cluster of three has a denominator: (2/3)^3 = 30 % of replicates miss it. */
    const double x[] = {0, 0, 6, 3, 0, 0};
    struct stats_interval out;
    struct stats_resampling r = resampling(1000, 1);
    stats_bootstrap(x, 3, 2, stats_ratio, &r, &out);
    ck_assert(out.value == 2 && out.lo == 2 && out.hi == 2);
    const double none[] = {1, 0, 2, 0};
    stats_bootstrap(none, 2, 2, stats_ratio, &r, &out);
    ck_assert(isnan(out.value) && isnan(out.lo));
}
END_TEST

/* Share of simulated experiments whose interval holds the truth, 2. A prompt has 50..150 steps and its own
 * acceptance length, given to the bootstrap as `turns` equal rows: 1 is one row a cluster, 4 takes the turns
 * of a prompt for independent. */
static double coverage(int turns)
{
    static double x[4 * CLUSTERS][2];
    int held = 0;
    for (uint32_t s = 0; s < SIMULATIONS; s++) {
        struct stats_resampling r = resampling(400, s);
        struct stats_interval out;
        for (int row = 0; row < turns * CLUSTERS; row++) {
            uint32_t prompt = (uint32_t)(row / turns);
            double steps = 50 + floor(101 * uniform(s, prompt)), al = 2 + 0.5 * normal(s, prompt);
            x[row][0] = steps * al / turns;
            x[row][1] = steps / turns;
        }
        stats_bootstrap(&x[0][0], turns * CLUSTERS, 2, stats_ratio, &r, &out);
        held += out.lo <= 2 && 2 <= out.hi;
    }
    return held / (double)SIMULATIONS;
}

/* A percentile interval of 50 clusters is a normal interval with the 1/n variance: it holds P(|t_49| < 1.96
 * sqrt(49/50)) = 94.2 %. Of 400 simulations that is 94.2 +- 4 * 1.17 %. */
START_TEST(an_interval_over_prompts_holds_the_truth_as_often_as_it_says)
{
    double c = coverage(1);
    ck_assert_msg(c >= 0.895 && c <= 0.989, "coverage %.3f", c);
}
END_TEST

/* Four equal rows for each prompt halve the interval: it holds P(|z| < 0.98) = 67 % +- 4 * 2.4 %. */
START_TEST(an_interval_over_turns_does_not)
{
    double c = coverage(4);
    ck_assert_msg(c >= 0.57 && c <= 0.77, "coverage %.3f", c);
}
END_TEST

/* Prompts differ in speed by half, arms by a factor 1.5 with 2 % noise: the difference between prompts
 * cancels in pairs. An unpaired ratio is at least as uncertain as the speed of one arm. */
START_TEST(pairs_cancel_what_both_arms_share)
{
    double x[CLUSTERS][4], one[CLUSTERS][2];
    struct stats_interval pair, arm;
    struct stats_resampling r = resampling(STATS_REPLICATES, 1);
    for (uint32_t i = 0; i < CLUSTERS; i++) {
        double ns = 1e9 * (0.5 + uniform(7, i));
        x[i][0] = x[i][2] = 100;
        x[i][1] = ns / 1.5 * (1 + 0.02 * normal(8, i));
        x[i][3] = ns;
        one[i][0] = 100;
        one[i][1] = x[i][1];
    }
    stats_bootstrap(&x[0][0], CLUSTERS, 4, stats_ratio_of_rates, &r, &pair);
    stats_bootstrap(&one[0][0], CLUSTERS, 2, stats_ratio, &r, &arm);
    ck_assert(pair.lo < 1.5 && 1.5 < pair.hi);
    ck_assert_msg((pair.hi - pair.lo) / pair.value < (arm.hi - arm.lo) / arm.value / 4,
                  "paired %g, one arm %g", (pair.hi - pair.lo) / pair.value, (arm.hi - arm.lo) / arm.value);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("stats");
    TCase *order = tcase_create("order statistics"), *boot = tcase_create("bootstrap");
    tcase_add_test(order, percentiles_interpolate_and_hold_at_the_edges);
    tcase_add_test(order, sorting_orders_any_number_of_values);
    tcase_add_test(order, selection_finds_what_sorting_would);
    tcase_add_test(boot, the_value_is_the_ratio_of_sums);
    tcase_add_test(boot, equal_seeds_give_equal_bits_and_other_seeds_do_not);
    tcase_add_test(boot, identical_arms_give_exactly_one);
    tcase_add_test(boot, fewer_than_two_clusters_have_no_interval);
    tcase_add_test(boot, undefined_replicates_are_left_out);
    tcase_add_test(boot, an_interval_over_prompts_holds_the_truth_as_often_as_it_says);
    tcase_add_test(boot, an_interval_over_turns_does_not);
    tcase_add_test(boot, pairs_cancel_what_both_arms_share);
    suite_add_tcase(s, order);
    suite_add_tcase(s, boot);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
