/* analyze_score: the table of scored answers, from traces whose numbers are known. */
#include "experiments/analyze_score.h"
#include "engine/err.h"
#include "experiments/analyze.h"
#include "experiments/baseline.h"
#include "experiments/display.h"
#include "experiments/join.h"
#include "experiments/notes.h"
#include "tests/toy_trace.h"
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPTS = 24, TOKENS = 10, ARMS = 3 };

static const float ln2 = 0.69314718f;

/* Every answer of prompt k has TOKENS + k tokens. As stored, half of them have log p = -ln 2 and the rest -3
 * ln 2: perplexity 4. FP8 weights lose ln 2 / 2 a token: perplexity 4 sqrt 2; one token in five disagrees,
 * and KL is 0.5 for that one and 0 for the others. FP8 cache: as stored, but top-1 is right only every other
 * time. */
static void answers(struct trace *t, int arm, int slice, int of)
{
    for (int p = 0; p < t->n_prompts; p++) {
        int k = t->prompts[p].index, n = TOKENS * (1 + k % 3);
        if (k % of != slice)
            continue;
        toy_trace_request(t, arm, p, 0, 0, (uint64_t)k);
        for (int i = 0; i < n; i++) {
            float stored = i % 2 ? -ln2 : -3 * ln2;
            int fifth = i % 5 == 0;
            toy_trace_score(t, (struct trace_score){.token = i,
                                                    .log_p = arm == 1 ? stored - ln2 / 2 : stored,
                                                    .rank = 1 + i % 2,
                                                    .entropy = 2,
                                                    .top1 = i % 2 == 0,
                                                    .agree = arm != 1 || !fifth,
                                                    .kl = arm == 1 && fifth ? 0.5f : 0});
        }
    }
}

static void three_arms(struct trace *t, int slice, int of)
{
    toy_trace_init(t, of > 1 ? slice ? "b.h5" : "a.h5" : "toy.h5");
    toy_trace_score_arm(t, "weights bf16", "");
    toy_trace_score_arm(t, "weights fp8, activations fp8, kv fp8", "weights: fp8, activations: fp8, kv: fp8");
    toy_trace_score_arm(t, "kv fp8", "kv: fp8");
    for (int k = 0; k < PROMPTS; k++)
        if (k % of == slice)
            toy_trace_prompt(t, k < PROMPTS / 2 ? "code" : "prose", k, 0);
    for (int arm = 0; arm < ARMS; arm++)
        answers(t, arm, slice, of);
}

static char *print(const struct trace *t, enum analyze_form form, enum summary_by by)
{
    struct analyze_opts opts = analyze_defaults();
    opts.form = form;
    opts.summary.by = by;
    return toy_trace_print(t, &opts);
}

static struct summary summarise(const struct trace *t, enum summary_by by)
{
    struct analyze_opts opts = analyze_defaults();
    struct summary s;
    opts.summary.by = by;
    ck_assert_msg(!summary_init(&s, t, &opts.summary), "%s", err_text());
    return s;
}

static void expect_interval(struct stats_interval x, double value, double lo, double hi)
{
    ck_assert_double_eq_tol(x.value, value, 1e-6);
    ck_assert_double_eq_tol(x.lo, lo, 1e-6);
    ck_assert_double_eq_tol(x.hi, hi, 1e-6);
}

START_TEST(known_scores_give_known_numbers)
{
    struct trace t;
    three_arms(&t, 0, 1);
    struct summary s = summarise(&t, SUMMARY_BY_NONE);
    ck_assert_int_eq(s.n, ARMS);
    for (int i = 0; i < ARMS; i++) {
        const struct summary_row *r = &s.rows[i];
        const struct summary_scores *x = &r->scores;
        ck_assert_int_eq(r->baseline, 0);
        ck_assert_int_eq(r->mixed, 0);
        ck_assert_int_eq(r->prompts, PROMPTS);
        ck_assert_int_eq(r->paired_prompts, PROMPTS);
        ck_assert_int_eq(x->sums.tokens, PROMPTS * 2 * TOKENS);
        ck_assert_int_eq(x->sums.top1 * 2, x->sums.tokens);
        /* Every prompt has the same perplexity, so drawing others of them changes nothing. */
        double worse = i == 1 ? sqrt(2) : 1, wrong = i == 1 ? 0.2 : 0;
        expect_interval(x->perplexity, 4 * worse, 4 * worse, 4 * worse);
        expect_interval(x->ratio, worse, worse, worse);
        expect_interval(x->agreement, 1 - wrong, 1 - wrong, 1 - wrong);
        expect_interval(x->kl, wrong / 2, wrong / 2, wrong / 2);
        ck_assert(x->kl_p99 == (i == 1 ? 0.5 : 0));
    }
    ck_assert(s.rows[0].scores.ratio.value == 1 && s.rows[2].scores.ratio.value == 1);
    summary_deinit(&s);
    trace_deinit(&t);
}
END_TEST

START_TEST(every_token_counts_once_and_the_bootstrap_draws_prompts)
{
    struct trace t;
    toy_trace_init(&t, "toy.h5");
    toy_trace_score_arm(&t, "bf16", "");
    toy_trace_prompt(&t, "a", 0, 0);
    toy_trace_prompt(&t, "a", 1, 0);
    toy_trace_request(&t, 0, 0, 0, 0, 1);
    toy_trace_score(&t, (struct trace_score){.log_p = -4 * ln2, .rank = 1, .kl = 1});
    toy_trace_request(&t, 0, 1, 0, 0, 2);
    for (int i = 0; i < 3; i++)
        toy_trace_score(&t, (struct trace_score){.log_p = -0.0f, .rank = 1});
    struct summary s = summarise(&t, SUMMARY_BY_NONE);
    /* 4 ln 2 over 4 tokens; of two prompts, the draws are the first twice, the second twice, or both */
    expect_interval(s.rows[0].scores.perplexity, 2, 1, 16);
    expect_interval(s.rows[0].scores.kl, 0.25, 0, 1);
    summary_deinit(&s);
    trace_deinit(&t);
}
END_TEST

START_TEST(an_arm_meets_the_stored_one_with_its_own_settings)
{
    struct trace t;
    int baseline[4], mixed[4];
    toy_trace_init(&t, "toy.h5");
    toy_trace_score_arm(&t, "short, fp8", "weights: fp8, max_context: 8");
    toy_trace_score_arm(&t, "long", "max_context: 9");
    toy_trace_score_arm(&t, "short", "max_context: 8");
    toy_trace_score_arm(&t, "other, fp8", "kv: fp8, max_context: 7");
    toy_trace_prompt(&t, "a", 0, 0);
    toy_trace_request(&t, 0, 0, 0, 0, 1);
    toy_trace_score(&t, (struct trace_score){.rank = 1});
    ck_assert_int_eq(baseline_find(&t, baseline, mixed), 0);
    ck_assert_int_eq(baseline[0], 2);
    ck_assert_int_eq(baseline[1], 1);
    ck_assert_int_eq(baseline[2], 2);
    ck_assert_int_eq(baseline[3], -1);
    trace_deinit(&t);
}
END_TEST

START_TEST(without_a_stored_arm_there_is_no_ratio_and_a_note)
{
    struct trace t;
    toy_trace_init(&t, "toy.h5");
    toy_trace_score_arm(&t, "weights fp8", "weights: fp8");
    toy_trace_prompt(&t, "a", 0, 0);
    toy_trace_request(&t, 0, 0, 0, 0, 1);
    toy_trace_score(&t, (struct trace_score){.log_p = -1, .rank = 1, .kl = 0.25f});
    struct summary s = summarise(&t, SUMMARY_BY_NONE);
    ck_assert(isnan(s.rows[0].scores.ratio.value));
    ck_assert_double_eq_tol(s.rows[0].scores.perplexity.value, exp(1), 1e-12);
    ck_assert(s.rows[0].scores.kl.value == 0.25);
    char *out = print(&t, ANALYZE_TEXT, SUMMARY_BY_NONE);
    ck_assert_ptr_nonnull(strstr(out, "no perplexity to compare with for 1 arm:"));
    ck_assert_ptr_null(strstr(out, "speed-up"));
    free(out);
    summary_deinit(&s);
    trace_deinit(&t);
}
END_TEST

START_TEST(text_keeps_to_its_width_and_explains_its_columns)
{
    struct trace t;
    three_arms(&t, 0, 1);
    char *out = print(&t, ANALYZE_TEXT, SUMMARY_BY_CATEGORY);
    ck_assert_ptr_nonnull(strstr(out, " 5.657"));
    ck_assert_ptr_nonnull(strstr(out, " 1.4142"));
    ck_assert_ptr_nonnull(strstr(out, " 0.8000"));
    ck_assert_ptr_nonnull(strstr(out, " 0.10000"));
    ck_assert_ptr_nonnull(strstr(out, "perplexity: exp of the mean -log p"));
    ck_assert_ptr_nonnull(strstr(out, "KL(reference || arm)"));
    ck_assert_ptr_nonnull(strstr(out, "B=2000, seed 1."));
    int rows = 0;
    for (char *save, *line = strtok_r(out, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        ck_assert_msg(display_width(line) <= DISPLAY_WIDTH, "%s", line);
        rows += !strncmp(line, "kv fp8 ", 7);
    }
    ck_assert_int_eq(rows, 2 * 3); /* two tables, each for all and two categories */
    free(out);
    trace_deinit(&t);
}
END_TEST

START_TEST(without_groups_the_longest_label_is_whole)
{
    struct trace t;
    three_arms(&t, 0, 1);
    char *out = print(&t, ANALYZE_TEXT, SUMMARY_BY_NONE);
    int whole = 0;
    for (char *at = out; (at = strstr(at, "\nweights fp8, activations fp8, kv fp8 ")); at++)
        whole++;
    ck_assert_int_eq(whole, 2);
    free(out);
    trace_deinit(&t);
}
END_TEST

static json_t *document(const struct trace *t)
{
    char *out = print(t, ANALYZE_JSON, SUMMARY_BY_CATEGORY);
    json_t *doc = json_loads(out, 0, NULL);
    ck_assert_ptr_nonnull(doc);
    free(out);
    return doc;
}

START_TEST(csv_and_json_hold_the_same_columns)
{
    struct trace t;
    three_arms(&t, 0, 1);
    char *csv = print(&t, ANALYZE_CSV, SUMMARY_BY_NONE);
    ck_assert_int_eq(strncmp(csv, "arm,lossy,group,baseline,prompts,requests,tokens,", 49), 0);
    ck_assert_ptr_nonnull(strstr(csv, ",kl,kl_lo,kl_hi,kl_p99\r\n"));
    ck_assert_ptr_nonnull(strstr(csv, "\r\nkv fp8,,,weights bf16,24,24,480,"));
    free(csv);
    json_t *doc = document(&t), *results = json_object_get(doc, "results"), *row = json_array_get(results, 1);
    ck_assert_uint_eq(json_array_size(results), 3 * ARMS);
    ck_assert_uint_eq(json_object_size(row), (size_t)analyze_score_n_columns);
    ck_assert_double_eq_tol(json_real_value(json_object_get(json_object_get(row, "agreement"), "value")), 0.8,
                            1e-12);
    ck_assert_uint_eq(json_array_size(json_object_get(doc, "positions")), 0);
    json_decref(doc);
    trace_deinit(&t);
}
END_TEST

START_TEST(slices_give_the_numbers_of_the_whole)
{
    struct trace whole, joined = {0}, part;
    three_arms(&whole, 0, 1);
    for (int slice = 0; slice < 3; slice++) {
        three_arms(&part, slice, 3);
        ck_assert_msg(!join_append(&joined, &part), "%s", err_text());
        trace_deinit(&part);
    }
    ck_assert_int_eq(joined.n_scores, whole.n_scores);
    json_t *a = document(&whole), *b = document(&joined);
    ck_assert(json_equal(json_object_get(a, "results"), json_object_get(b, "results")));
    json_decref(a);
    json_decref(b);
    trace_deinit(&whole);
    trace_deinit(&joined);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("analyze_score");
    TCase *tc = tcase_create("scores");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, known_scores_give_known_numbers);
    tcase_add_test(tc, every_token_counts_once_and_the_bootstrap_draws_prompts);
    tcase_add_test(tc, an_arm_meets_the_stored_one_with_its_own_settings);
    tcase_add_test(tc, without_a_stored_arm_there_is_no_ratio_and_a_note);
    tcase_add_test(tc, text_keeps_to_its_width_and_explains_its_columns);
    tcase_add_test(tc, without_groups_the_longest_label_is_whole);
    tcase_add_test(tc, csv_and_json_hold_the_same_columns);
    tcase_add_test(tc, slices_give_the_numbers_of_the_whole);
    suite_add_tcase(s, tc);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
