/* Every formula against numbers worked out by hand. */
#include "experiments/metrics.h"
#include "spec/loop.h"
#include "tests/toy_trace.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>

/* Four steps: two of three accepted; no draft; none of three; both of two, but the text ended at the first.
 */
static struct metrics_sums four_steps(void)
{
    struct trace t;
    toy_trace_init(&t, "toy.h5");
    toy_trace_arm(&t, "ngram", "ngram", "greedy", 0, 0);
    toy_trace_prompt(&t, "qa", 0, 0);
    toy_trace_request(&t, 0, 0, 0, 0, 1);
    toy_trace_step(&t, (struct toy_step){3, 3, 2, 3, 0, 4000000});
    toy_trace_step(&t, (struct toy_step){0, 0, 0, 1, STEP_NO_DRAFT, 2000000});
    toy_trace_step(&t, (struct toy_step){3, 3, 0, 1, 0, 3000000});
    toy_trace_step(&t, (struct toy_step){2, 2, 2, 1, STEP_STOP, 5000000});
    struct metrics_sums m = {0};
    metrics_request(&m, &t, 0);
    trace_deinit(&t);
    return m;
}

START_TEST(sums_count_steps_as_verified_and_text_as_emitted)
{
    struct metrics_sums m = four_steps();
    ck_assert_int_eq(m.requests, 1);
    ck_assert_int_eq(m.steps, 4);
    ck_assert_int_eq(m.drafted_steps, 3);
    ck_assert_int_eq(m.proposed, 8);
    ck_assert_int_eq(m.accepted, 4);
    ck_assert_int_eq(m.emitted, 6);
    ck_assert_int_eq(m.tokens, 6);
    ck_assert_int_eq(m.later_steps, 3);
    ck_assert_int_eq(m.later_tokens, 3);
}
END_TEST

START_TEST(acceptance_lengths_differ_by_bonus_and_by_undrafted_steps)
{
    struct metrics_sums m = four_steps();
    ck_assert(metrics_al(&m) == 2.0);
    ck_assert(metrics_al_no_bonus(&m) == 1.0);
    ck_assert(metrics_al_drafted(&m) == 1.0 + 4.0 / 3.0);
    ck_assert(metrics_tokens_per_step(&m) == 1.5);
    ck_assert(metrics_acceptance_rate(&m) == 0.5);
}
END_TEST

START_TEST(position_rates_divide_by_drafted_or_by_tried_steps)
{
    struct metrics_sums m = four_steps();
    ck_assert_int_eq(metrics_depth(&m), 3);
    ck_assert(metrics_unconditional(&m, 1) == 2.0 / 3.0);
    ck_assert(metrics_unconditional(&m, 2) == 2.0 / 3.0);
    ck_assert(metrics_unconditional(&m, 3) == 0);
    ck_assert(metrics_conditional(&m, 1) == 2.0 / 3.0);
    ck_assert(metrics_conditional(&m, 2) == 1);
    /* The last step accepted two but proposed no third: only the first step tried position 3. */
    ck_assert_int_eq(m.tried_depth[3], 1);
    ck_assert(metrics_conditional(&m, 3) == 0);
    ck_assert(isnan(metrics_conditional(&m, 4)));
    ck_assert(isnan(metrics_unconditional(&m, 0)) && isnan(metrics_unconditional(&m, METRICS_MAX_DEPTH + 1)));
}
END_TEST

START_TEST(speed_leaves_the_first_step_out_of_tokens_and_time)
{
    struct metrics_sums m = four_steps();
    ck_assert(m.ns_decode == 10e6 && m.ns_first == 5e6);
    ck_assert(metrics_tokens_per_s(&m) == 300.0);
    ck_assert(metrics_speedup_bound(&m) == 1.0);
}
END_TEST

START_TEST(a_tree_counts_the_depth_of_its_accepted_path)
{
    struct trace t;
    struct metrics_sums m = {0};
    toy_trace_init(&t, "toy.h5");
    toy_trace_arm(&t, "tree", "ngram", "greedy", 0, 0);
    toy_trace_prompt(&t, "qa", 0, 0);
    toy_trace_request(&t, 0, 0, 0, 0, 1);
    toy_trace_step(&t, (struct toy_step){9, 3, 2, 3, 0, 1000});
    metrics_request(&m, &t, 0);
    ck_assert(metrics_al(&m) == 3.0);
    ck_assert(metrics_acceptance_rate(&m) == 2.0 / 9.0);
    ck_assert_int_eq(m.at_depth[3], 1);
    ck_assert_int_eq(m.accepted_depth[2], 1);
    ck_assert_int_eq(m.accepted_depth[3], 0);
    ck_assert_int_eq(m.at_depth[4], 0);
    trace_deinit(&t);
}
END_TEST

START_TEST(depths_beyond_the_array_are_not_counted)
{
    struct trace t;
    struct metrics_sums m = {0};
    toy_trace_init(&t, "toy.h5");
    toy_trace_arm(&t, "deep", "ngram", "greedy", 0, 0);
    toy_trace_prompt(&t, "qa", 0, 0);
    toy_trace_request(&t, 0, 0, 0, 0, 1);
    toy_trace_step(&t, (struct toy_step){500, 500, 400, 401, 0, 1000});
    metrics_request(&m, &t, 0);
    ck_assert_int_eq(m.accepted, 400);
    ck_assert_int_eq(m.accepted_depth[METRICS_MAX_DEPTH], 1);
    ck_assert_int_eq(metrics_depth(&m), METRICS_MAX_DEPTH);
    trace_deinit(&t);
}
END_TEST

START_TEST(plain_decoding_has_an_acceptance_length_of_one)
{
    struct trace t;
    struct metrics_sums m = {0};
    toy_trace_init(&t, "toy.h5");
    toy_trace_arm(&t, "none", "none", "greedy", 0, 0);
    toy_trace_prompt(&t, "qa", 0, 0);
    toy_trace_request(&t, 0, 0, 0, 0, 1);
    for (int i = 0; i < 5; i++)
        toy_trace_step(&t, (struct toy_step){0, 0, 0, 1, STEP_NO_DRAFT, 1000});
    metrics_request(&m, &t, 0);
    ck_assert(metrics_al(&m) == 1 && metrics_al_no_bonus(&m) == 0 && metrics_speedup_bound(&m) == 1);
    ck_assert(isnan(metrics_al_drafted(&m)) && isnan(metrics_acceptance_rate(&m)) &&
              isnan(metrics_unconditional(&m, 1)));
    trace_deinit(&t);
}
END_TEST

START_TEST(nothing_measured_is_not_a_number)
{
    struct metrics_sums m = {0};
    ck_assert(isnan(metrics_al(&m)) && isnan(metrics_al_no_bonus(&m)) && isnan(metrics_tokens_per_step(&m)));
    ck_assert(isnan(metrics_tokens_per_s(&m)) && isnan(metrics_identical(&m)) &&
              isnan(metrics_speedup_bound(&m)));
    ck_assert_int_eq(metrics_depth(&m), 0);
}
END_TEST

START_TEST(adding_sums_pools_them)
{
    struct metrics_sums m = four_steps(), twice = m;
    metrics_add(&twice, &m);
    ck_assert_int_eq(twice.steps, 8);
    ck_assert_int_eq(twice.tokens, 12);
    ck_assert_int_eq(twice.tried_depth[2], 2 * m.tried_depth[2]);
    ck_assert_int_eq(twice.at_depth[3], 2 * m.at_depth[3]);
    ck_assert(metrics_al(&twice) == metrics_al(&m));
    ck_assert(metrics_conditional(&twice, 1) == metrics_conditional(&m, 1));
    ck_assert(metrics_tokens_per_s(&twice) == metrics_tokens_per_s(&m));
}
END_TEST

START_TEST(perplexity_is_the_exponential_of_a_mean_over_tokens)
{
    struct trace t;
    struct metrics_scores m = {0}, twice = {0};
    toy_trace_init(&t, "toy.h5");
    toy_trace_score_arm(&t, "bf16", "");
    toy_trace_prompt(&t, "qa", 0, 0);
    toy_trace_request(&t, 0, 0, 0, 0, 1);
    toy_trace_score(&t, (struct trace_score){.log_p = -1, .rank = 1, .top1 = 1, .agree = 1, .entropy = 0.5f});
    toy_trace_score(&t, (struct trace_score){.log_p = -2, .rank = 3, .agree = 1, .kl = 0.25f});
    metrics_scores_request(&m, &t, 0);
    ck_assert(m.tokens == 2 && m.top1 == 1 && m.agree == 2 && m.nll == 3 && m.entropy == 0.5 && m.kl == 0.25);
    metrics_scores_add(&twice, &m);
    metrics_scores_add(&twice, &m);
    ck_assert(twice.tokens == 4 && twice.top1 == 2 && twice.agree == 4 && twice.nll == 6 && twice.kl == 0.5 &&
              twice.entropy == 1);
    ck_assert(metrics_perplexity((double[]){m.nll, 2}) == exp(1.5));
    ck_assert(metrics_perplexity_ratio((double[]){m.nll, 2, 2, 2}) == exp(0.5));
    ck_assert(isnan(metrics_perplexity((double[]){0, 0})));
    ck_assert(isnan(metrics_perplexity_ratio((double[]){3, 2, 0, 0})));
    trace_deinit(&t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("metrics");
    TCase *c = tcase_create("formulas");
    tcase_add_test(c, sums_count_steps_as_verified_and_text_as_emitted);
    tcase_add_test(c, acceptance_lengths_differ_by_bonus_and_by_undrafted_steps);
    tcase_add_test(c, position_rates_divide_by_drafted_or_by_tried_steps);
    tcase_add_test(c, speed_leaves_the_first_step_out_of_tokens_and_time);
    tcase_add_test(c, a_tree_counts_the_depth_of_its_accepted_path);
    tcase_add_test(c, depths_beyond_the_array_are_not_counted);
    tcase_add_test(c, plain_decoding_has_an_acceptance_length_of_one);
    tcase_add_test(c, nothing_measured_is_not_a_number);
    tcase_add_test(c, adding_sums_pools_them);
    tcase_add_test(c, perplexity_is_the_exponential_of_a_mean_over_tokens);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
