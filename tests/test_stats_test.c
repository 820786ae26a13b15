/* Tests of differences: against scipy 1.17 where it has them (its numbers stand in the comments), and by
 * simulation where only the long run tells. Simulated prompts have a difficulty of their own, which both arms
 * share, and a noise of each run. */
#include "experiments/stats_test.h"
#include "kernels/philox.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>

enum { PROMPTS = 60, SIMULATIONS = 600 };

static struct stats_resampling resampling(int replicates, uint64_t seed)
{
    return (struct stats_resampling){.replicates = replicates, .level = 0.95, .seed = seed};
}

/* Near normal, mean 0, variance 1: twelve uniforms. */
static double normal(uint32_t a, uint32_t b, uint32_t c)
{
    double sum = -6;
    for (uint32_t i = 0; i < 3; i++) {
        struct philox4 p = philox(97, a, b, c, i);
        for (int k = 0; k < 4; k++)
            sum += philox_uniform(p.v[k]);
    }
    return sum;
}

/* A run of two arms over n prompts: later tokens and seconds of each. The second arm is `faster` times as
 * fast. */
static void simulate(double *x, int n, uint32_t run, double faster)
{
    for (int i = 0; i < n; i++) {
        double tokens = 40 + 20 * fabs(normal(run, (uint32_t)i, 0)),
               pace = 0.01 * exp(0.5 * normal(run, (uint32_t)i, 1));
        x[4 * i] = x[4 * i + 2] = tokens;
        x[4 * i + 1] = tokens * pace * exp(0.2 * normal(run, (uint32_t)i, 2)) / faster;
        x[4 * i + 3] = tokens * pace * exp(0.2 * normal(run, (uint32_t)i, 3));
    }
}

/* scipy.stats.binomtest(3, 12), (7, 40), (5, 10). */
START_TEST(the_sign_test_is_the_exact_binomial_one)
{
    ck_assert_double_eq_tol(stats_sign_test(3, 9), 0.14599609375, 1e-12);
    ck_assert_double_eq_tol(stats_sign_test(9, 3), 0.14599609375, 1e-12);
    ck_assert_double_eq_tol(stats_sign_test(33, 7), 4.2277022657799534e-05, 1e-14);
    ck_assert(stats_sign_test(5, 5) == 1);
    ck_assert_double_eq_tol(stats_sign_test(1, 0), 1, 1e-12);
    ck_assert(isnan(stats_sign_test(0, 0)));
}
END_TEST

/* scipy.stats.permutation_test, samples, all 32 swaps: 0.125 for the difference of sums and for the log of
 * their ratio. */
START_TEST(few_pairs_are_permuted_in_every_way)
{
    const double x[] = {5, 1, 4, 1, 7, 1, 7.5, 1, 9, 1, 6, 1, 6, 1, 5, 1, 8, 1, 5, 1};
    struct stats_resampling r = resampling(2000, 1);
    ck_assert_double_eq_tol(stats_permutation_test(x, 5, 4, stats_difference, &r), 0.125, 1e-12);
    ck_assert_double_eq_tol(stats_permutation_test(x, 5, 4, stats_log_ratio, &r), 0.125, 1e-12);
    /* At random: 0.125 has a standard deviation of 0.0033 over 10^4 swaps; five of them. */
    double random[4 * 25];
    for (int i = 0; i < 100; i++)
        random[i] = i < 20 ? x[i] : 1;
    r = resampling(10000, 3);
    ck_assert_double_eq_tol(stats_permutation_test(random, 25, 4, stats_difference, &r), 0.125, 0.0167);
}
END_TEST

START_TEST(equal_arms_have_a_p_of_one_and_no_arms_have_none)
{
    const double same[] = {5, 1, 5, 1, 7, 2, 7, 2}, none[4] = {0};
    struct stats_resampling r = resampling(100, 1);
    ck_assert(stats_permutation_test(same, 2, 4, stats_log_ratio, &r) == 1);
    ck_assert(isnan(stats_permutation_test(none, 1, 4, stats_log_ratio, &r)));
    ck_assert(isnan(stats_permutation_test(none, 0, 4, stats_log_ratio, &r)));
}
END_TEST

/* An arm run twice. Of 600 tests at the 5 % level 570 keep the truth, with a standard deviation of 5.3: 549
 * to 591 is four of them. The percentile bootstrap of 60 prompts is too narrow by sqrt(59/60) and by normal
 * quantiles where t's are due, together 2.5 % or one interval in a hundred: it covers 0 in about 564, and 543
 * to 591 is four standard deviations about both. */
START_TEST(an_arm_against_itself_covers_zero_as_often_as_it_says)
{
    double *x = malloc(4 * PROMPTS * sizeof *x);
    int covered = 0, kept = 0;
    for (int s = 0; s < SIMULATIONS; s++) {
        struct stats_interval out;
        struct stats_resampling r = resampling(400, (uint64_t)s);
        simulate(x, PROMPTS, (uint32_t)s, 1);
        ck_assert_int_eq(stats_bootstrap(x, PROMPTS, 4, stats_log_ratio, &r, &out), 0);
        covered += out.lo <= 0 && out.hi >= 0;
        r.replicates = 399;
        kept += stats_permutation_test(x, PROMPTS, 4, stats_log_ratio, &r) > 0.05;
    }
    free(x);
    ck_assert_msg(covered >= 543 && covered <= 591, "%d of %d intervals cover 0", covered, SIMULATIONS);
    ck_assert_msg(kept >= 549 && kept <= 591, "%d of %d tests keep the truth", kept, SIMULATIONS);
}
END_TEST

/* The very same numbers twice: nothing varies. */
START_TEST(a_file_against_itself_has_an_interval_of_zero)
{
    double x[4 * PROMPTS];
    struct stats_interval out;
    struct stats_resampling r = resampling(200, 1);
    simulate(x, PROMPTS, 0, 1);
    for (int i = 0; i < PROMPTS; i++)
        x[4 * i + 3] = x[4 * i + 1];
    ck_assert_int_eq(stats_bootstrap(x, PROMPTS, 4, stats_log_ratio, &r, &out), 0);
    ck_assert(out.value == 0 && out.lo == 0 && out.hi == 0);
    ck_assert(stats_permutation_test(x, PROMPTS, 4, stats_log_ratio, &r) == 1);
}
END_TEST

/* Unpaired, the difficulty of prompts would drown the difference: the interval is several times as wide. */
START_TEST(pairing_takes_the_difficulty_of_prompts_out)
{
    double x[4 * PROMPTS], shuffled[4 * PROMPTS];
    simulate(x, PROMPTS, 7, 1);
    for (int i = 0; i < PROMPTS; i++)
        for (int c = 0; c < 4; c++)
            shuffled[4 * i + c] = x[4 * ((c < 2 ? i : i + 17) % PROMPTS) + c];
    ck_assert(stats_log_ratio_sd(shuffled, PROMPTS) > 1.5 * stats_log_ratio_sd(x, PROMPTS));
}
END_TEST

/* Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 raised to 0.06. */
START_TEST(holm_multiplies_by_what_is_left_and_never_falls)
{
    double p[] = {0.01, 0.04, NAN, 0.03, 0.005}, big[] = {0.9, 0.8};
    ck_assert_int_eq(stats_holm(p, 5), 0);
    ck_assert_double_eq_tol(p[0], 0.03, 1e-15);
    ck_assert_double_eq_tol(p[1], 0.06, 1e-15);
    ck_assert(isnan(p[2]));
    ck_assert_double_eq_tol(p[3], 0.06, 1e-15);
    ck_assert_double_eq_tol(p[4], 0.02, 1e-15);
    ck_assert_int_eq(stats_holm(big, 2), 0);
    ck_assert(big[0] == 1 && big[1] == 1);
}
END_TEST

/* scipy.stats.norm.ppf. */
START_TEST(normal_quantiles_agree_with_the_tables)
{
    ck_assert_double_eq_tol(stats_normal_quantile(0.975), 1.959963984540054, 1e-12);
    ck_assert_double_eq_tol(stats_normal_quantile(0.8), 0.8416212335729143, 1e-12);
    ck_assert_double_eq_tol(stats_normal_quantile(1e-6), -4.753424308822899, 1e-10);
    ck_assert_double_eq_tol(stats_normal_quantile(0.5), 0, 1e-12);
}
END_TEST

/* (1.96 + 0.8416)^2 (0.3 / log 1.05)^2 = 7.849 * 37.81 = 296.8. */
START_TEST(the_number_of_prompts_follows_from_their_spread)
{
    ck_assert(stats_prompts_needed(0.3, 0.05, 0.95, 0.8) == 297);
    ck_assert_double_eq_tol(stats_effect_seen(0.3, 297, 0.95, 0.8), 0.05, 1e-4);
    ck_assert(stats_prompts_needed(0, 0.05, 0.95, 0.8) == 2);
    ck_assert(isnan(stats_prompts_needed(NAN, 0.05, 0.95, 0.8)) &&
              isnan(stats_effect_seen(0.3, 0, 0.95, 0.8)));
}
END_TEST

/* With as many prompts as were asked for, the test sees the difference in 80 % of runs: 320 of 400 with a
 * standard deviation of 8. The spread is estimated from 60 prompts, to about 10 % and more in the tails, so
 * the power lies within 65 and 92 %. */
START_TEST(the_promised_power_is_reached)
{
    enum { RUNS = 400, EFFECT_PERCENT = 12 };
    double *x = malloc(4 * 400 * sizeof *x), effect = EFFECT_PERCENT / 100.0;
    simulate(x, PROMPTS, 1000, 1);
    int n = (int)stats_prompts_needed(stats_log_ratio_sd(x, PROMPTS), effect, 0.95, 0.8), seen = 0;
    ck_assert_int_ge(n, 20);
    ck_assert_int_le(n, 400);
    for (int s = 0; s < RUNS; s++) {
        struct stats_resampling r = resampling(199, (uint64_t)s);
        simulate(x, n, 2000 + (uint32_t)s, 1 + effect);
        seen += stats_permutation_test(x, n, 4, stats_log_ratio, &r) <= 0.05;
    }
    free(x);
    ck_assert_msg(seen >= 0.65 * RUNS && seen <= 0.92 * RUNS, "%d of %d with %d prompts", seen, RUNS, n);
}
END_TEST

/* The linearised spread and the bootstrap measure the same thing: within 15 % on 60 prompts (2000
 * replicates: 1.6 %, the rest is linearisation). */
START_TEST(the_linearised_spread_agrees_with_the_bootstrap)
{
    double x[4 * PROMPTS];
    struct stats_interval out;
    struct stats_resampling r = resampling(2000, 5);
    simulate(x, PROMPTS, 3, 1);
    ck_assert_int_eq(stats_bootstrap(x, PROMPTS, 4, stats_log_ratio, &r, &out), 0);
    double half = 1.96 * stats_log_ratio_sd(x, PROMPTS) / sqrt(PROMPTS);
    ck_assert_double_eq_tol((out.hi - out.lo) / 2 / half, 1, 0.15);
}
END_TEST

/* {1, 3} and {5, 7}: within (2 + 2) / 2 = 2; between 2 (2^2 + 2^2) / 1 = 16, and (16 - 2) / 2 = 7. */
START_TEST(repeats_separate_runs_from_prompts)
{
    struct stats_noise out;
    ck_assert_int_eq(stats_noise((double[]){1, 5, 3, 7}, (int[]){0, 1, 0, 1}, 4, 2, &out), 0);
    ck_assert_double_eq_tol(out.run, sqrt(2.0), 1e-15);
    ck_assert_double_eq_tol(out.prompt, sqrt(7.0), 1e-15);
    ck_assert_int_eq(stats_noise((double[]){1, 5}, (int[]){0, 1}, 2, 2, &out), 0);
    ck_assert(isnan(out.run));
    ck_assert_double_eq_tol(out.prompt, sqrt(8.0), 1e-15);
    ck_assert_int_eq(stats_noise((double[]){1, 5}, (int[]){0, 0}, 2, 1, &out), 0);
    ck_assert(isnan(out.prompt));
    ck_assert_double_eq_tol(out.run, sqrt(8.0), 1e-15);
    ck_assert_int_eq(stats_noise((double[]){1, 3, 3, 1}, (int[]){0, 0, 1, 1}, 4, 2, &out), 0);
    ck_assert(out.prompt == 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("stats_test");
    TCase *c = tcase_create("differences");
    tcase_add_test(c, the_sign_test_is_the_exact_binomial_one);
    tcase_add_test(c, few_pairs_are_permuted_in_every_way);
    tcase_add_test(c, equal_arms_have_a_p_of_one_and_no_arms_have_none);
    tcase_add_test(c, an_arm_against_itself_covers_zero_as_often_as_it_says);
    tcase_add_test(c, a_file_against_itself_has_an_interval_of_zero);
    tcase_add_test(c, pairing_takes_the_difficulty_of_prompts_out);
    tcase_add_test(c, holm_multiplies_by_what_is_left_and_never_falls);
    tcase_add_test(c, normal_quantiles_agree_with_the_tables);
    tcase_add_test(c, the_number_of_prompts_follows_from_their_spread);
    tcase_add_test(c, the_promised_power_is_reached);
    tcase_add_test(c, the_linearised_spread_agrees_with_the_bootstrap);
    tcase_add_test(c, repeats_separate_runs_from_prompts);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
