/* What every tool would report for twelve steps, worked out by hand.
 *
 * Two answers under ngram, with at most four draft tokens; proposed, accepted, emitted, ms:
 *   A  4 2 3 10 | none 1 8 | 4 4 5 10 | 2 2 3 9 | 4 0 1 10 | none 1 8 | 3 3 2 9, a stop token inside the
 * draft B  1 1 2 8 | 4 1 2 10 | none 1 8 | 3 2 3 9 | 4 4 2 10, the budget cut it A first step starts 1 ms
 * after submission. Sums: steps  drafted  proposed  accepted  tokens  later tokens  later steps  first ms
 * decode ms A        7        5        17        11      16            13            6        11         54
 *   B        5        4        12         8      10             8            4         9         37
 *   both    12        9        29        19      26            21           10        20         91
 * Drafted steps by position:
 *   d                                      1  2  3  4
 *   proposed d                             9  8  7  5
 *   accepted d - 1 and proposed d          9  7  5  2
 *   accepted d                             8  6  3  2
 * The stop cuts the draft of A's last step to two tokens: at d = 3 it was neither tried (4) nor accepted (2).
 * Plain decoding of the same answers takes 10 ms a token: A 11 + 150 ms, B 11 + 90 ms. */
#include "experiments/analyze.h"
#include "engine/err.h"
#include "experiments/metrics_peers.h"
#include "spec/loop.h"
#include "tests/toy_trace.h"
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MS = 1000000 };

static void plain(struct trace *t, int prompt, int tokens)
{
    toy_trace_request(t, 1, prompt, 0, 0, (uint64_t)prompt);
    for (int i = 0; i < tokens; i++)
        toy_trace_step(t, (struct toy_step){0, 0, 0, 1, STEP_NO_DRAFT, 10 * MS});
}

static void twelve_steps(struct trace *t)
{
    static const struct toy_step a[] = {{4, 4, 2, 3, 0, 10 * MS},       {0, 0, 0, 1, STEP_NO_DRAFT, 8 * MS},
                                        {4, 4, 4, 5, 0, 10 * MS},       {2, 2, 2, 3, 0, 9 * MS},
                                        {4, 4, 0, 1, 0, 10 * MS},       {0, 0, 0, 1, STEP_NO_DRAFT, 8 * MS},
                                        {3, 3, 3, 2, STEP_STOP, 9 * MS}},
                                 b[] = {{1, 1, 1, 2, 0, 8 * MS},
                                        {4, 4, 1, 2, 0, 10 * MS},
                                        {0, 0, 0, 1, STEP_NO_DRAFT, 8 * MS},
                                        {3, 3, 2, 3, 0, 9 * MS},
                                        {4, 4, 4, 2, STEP_BUDGET, 10 * MS}};
    toy_trace_init(t, "twelve.h5");
    toy_trace_arm(t, "ngram", "ngram", "greedy", 0, 0);
    toy_trace_arm(t, "none", "none", "greedy", 0, 0);
    toy_trace_prompt(t, "qa", 0, 0);
    toy_trace_prompt(t, "qa", 1, 0);
    toy_trace_request(t, 0, 0, 0, 0, 0);
    for (int i = 0; i < 7; i++)
        toy_trace_step(t, a[i]);
    toy_trace_request(t, 0, 1, 0, 0, 1);
    for (int i = 0; i < 5; i++)
        toy_trace_step(t, b[i]);
    plain(t, 0, 16);
    plain(t, 1, 10);
}

static void sums(struct metrics_peers *m, struct metrics_peers *baseline)
{
    struct trace t;
    *m = *baseline = (struct metrics_peers){0};
    twelve_steps(&t);
    for (int64_t i = 0; i < 2; i++) {
        metrics_peers_request(m, &t, i);
        metrics_peers_request(baseline, &t, 2 + i);
    }
    trace_deinit(&t);
}

/* In the order of the table. */
static const struct {
    const char *formula;
    double value;
} expected[] = {
    {"(accepted + steps) / steps", 31.0 / 12},
    {"1 + accepted / drafted steps", 1 + 19.0 / 9},
    {"accepted / steps", 19.0 / 12},
    {"tokens / steps, pooled", 26.0 / 12},
    {"tokens / steps, by request", (16.0 / 7 + 10.0 / 5) / 2},
    {"1 + accepted / drafted, by request", (1 + 11.0 / 5 + 1 + 8.0 / 4) / 2},
    {"tokens / (steps - requests)", 26.0 / 10},
    {"accepted / proposed", 19.0 / 29},
    {"accepted / proposed, by request", (11.0 / 17 + 8.0 / 12) / 2},
    {"(tokens - steps) / (k steps)", 14.0 / 48},
    {"(tokens / steps - 1) / k", (26.0 / 12 - 1) / 4},
    {"(accepted+steps) / (proposed+steps)", 31.0 / 41},
    {"later tokens / decode time", 21 / 0.091},
    {"tokens / (TTFT + decode time)", 26 / 0.111},
    {"decode time / (tokens - 1)", 91.0 / 24},
    {"decode time / later steps", 9.1},
    {"tokens / wall, by request, x base", (16 / 0.065 + 10 / 0.046) / (16 / 0.161 + 10 / 0.101)},
    {"later tokens / decode, x base", (21 / 91.0) / (24 / 240.0)},
};

START_TEST(every_definition_is_as_worked_out_by_hand)
{
    struct metrics_peers m, baseline;
    sums(&m, &baseline);
    ck_assert_int_eq(metrics_n_definitions, sizeof expected / sizeof *expected);
    for (int i = 0; i < metrics_n_definitions; i++) {
        const struct metrics_definition *d = &metrics_definitions[i];
        ck_assert_str_eq(d->formula, expected[i].formula);
        double v = d->value(&m, &baseline), w = expected[i].value;
        ck_assert_msg(fabs(v - w) <= 1e-12 * w, "%s: %.17g, expected %.17g", d->formula, v, w);
    }
}
END_TEST

START_TEST(every_rate_by_position_is_as_worked_out_by_hand)
{
    static const double by_hand[4][4] = {{8.0 / 9, 6.0 / 9, 3.0 / 9, 2.0 / 9},
                                         {8.0 / 9, 6.0 / 7, 3.0 / 5, 2.0 / 2},
                                         {8.0 / 9, 6.0 / 8, 3.0 / 7, 2.0 / 5},
                                         {8.0 / 9, 6.0 / 7, 2.0 / 4, 2.0 / 2}};
    struct metrics_peers m, baseline;
    sums(&m, &baseline);
    ck_assert_int_eq(metrics_n_positions, 4);
    for (int i = 0; i < 4; i++) {
        for (int d = 1; d <= 4; d++)
            ck_assert_msg(metrics_positions[i].value(&m, d) == by_hand[i][d - 1], "%s at %d: %.17g",
                          metrics_positions[i].name, d, metrics_positions[i].value(&m, d));
        ck_assert(isnan(metrics_positions[i].value(&m, 0)) &&
                  isnan(metrics_positions[i].value(&m, 5 + METRICS_MAX_DEPTH)));
    }
}
END_TEST

START_TEST(without_drafts_or_a_baseline_what_needs_them_is_undefined)
{
    struct metrics_peers m, baseline, nothing = {0};
    sums(&m, &baseline);
    for (int i = 0; i < metrics_n_definitions; i++) {
        const struct metrics_definition *d = &metrics_definitions[i];
        if (d->kind == METRICS_TIMES)
            ck_assert(isnan(d->value(&m, NULL)));
        else
            ck_assert_msg(isnan(d->value(&nothing, NULL)), "%s", d->formula);
        if (strstr(d->formula, "drafted") || strstr(d->formula, " k"))
            ck_assert_msg(isnan(d->value(&baseline, NULL)), "%s", d->formula);
    }
}
END_TEST

/* The whole way: the table that `analyze --definitions --json` prints. */
START_TEST(analyze_prints_every_definition_of_an_arm_that_drafted)
{
    struct trace t;
    struct analyze_opts opts = analyze_defaults();
    twelve_steps(&t);
    opts.form = ANALYZE_JSON;
    char *text = toy_trace_print(&t, &opts);
    json_t *doc = json_loads(text, 0, NULL), *rows = json_object_get(doc, "definitions");
    ck_assert_uint_eq(json_array_size(rows), (size_t)metrics_n_definitions + 4 * 4);
    for (int i = 0; i < metrics_n_definitions; i++) {
        json_t *row = json_array_get(rows, (size_t)i);
        ck_assert_str_eq(json_string_value(json_object_get(row, "arm")), "ngram");
        ck_assert_double_eq_tol(json_real_value(json_object_get(row, "value")), expected[i].value,
                                1e-12 * expected[i].value);
    }
    json_decref(doc);
    free(text);
    trace_deinit(&t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("metrics_peers");
    TCase *c = tcase_create("twelve steps");
    tcase_add_test(c, every_definition_is_as_worked_out_by_hand);
    tcase_add_test(c, every_rate_by_position_is_as_worked_out_by_hand);
    tcase_add_test(c, without_drafts_or_a_baseline_what_needs_them_is_undefined);
    tcase_add_test(c, analyze_prints_every_definition_of_an_arm_that_drafted);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
