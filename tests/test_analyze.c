/* Tables from traces whose numbers are known: pairing, groups, joined files, and the notes that must speak
 * up. */
#include "experiments/analyze.h"
#include "engine/err.h"
#include "experiments/baseline.h"
#include "experiments/display.h"
#include "experiments/join.h"
#include "experiments/notes.h"
#include "experiments/record.h"
#include "experiments/workload.h"
#include "spec/loop.h"
#include "tests/toy_trace.h"
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROMPTS = 24, TURNS = 2, TOKENS = 30, MS = 1000000 };

/* An arm that answers every prompt there is with TOKENS tokens, `per_step` of them in steps of `ms`, twice
 * and three times that for two prompts in three. */
static void answers(struct trace *t, int arm, int per_step, int ms, uint64_t salt)
{
    int64_t clock = t->n_requests ? 1000000LL * MS * arm : 0;
    for (int p = 0; p < t->n_prompts; p++) {
        int k = t->prompts[p].index, slow = 1 + k % 3, n = per_step - 1;
        toy_trace_request(t, arm, p, 0, clock, (uint64_t)k + salt);
        for (int s = 0; s < TOKENS / per_step; s++)
            toy_trace_step(t,
                           (struct toy_step){n, n, n, n + 1, n ? 0 : STEP_NO_DRAFT, (int64_t)ms * slow * MS});
        const struct trace_request *r = &t->requests[t->n_requests - 1];
        clock += r->ns_first + r->ns_decode;
    }
}

static void prompts(struct trace *t, int slice, int of)
{
    for (int k = 0; k < PROMPTS; k++)
        for (int turn = 0; turn < TURNS && k % of == slice; turn++)
            toy_trace_prompt(t, k < PROMPTS / 2 ? "writing" : "\u00fcber, \"setzung\"", k, turn);
}

/* Plain decoding at 10 ms a token; ngram emits 2 tokens in 12 ms; a lossy arm 3 in 12 ms, with other texts.
 */
static void three_arms(struct trace *t, int slice, int of)
{
    toy_trace_init(t, of > 1 ? slice ? "b.h5" : "a.h5" : "toy.h5");
    toy_trace_arm(t, "none", "none", "greedy", 0, 0);
    toy_trace_arm(t, "ngram", "ngram", "greedy", 0, 0);
    toy_trace_arm(t, "careless", "ngram", "relaxed", 1, 0);
    prompts(t, slice, of);
    answers(t, 0, 1, 10, 0);
    answers(t, 1, 2, 12, 0);
    answers(t, 2, 3, 12, 1000);
}

static char *print(const struct trace *t, enum analyze_form form, enum summary_by by, int positions)
{
    struct analyze_opts opts = analyze_defaults();
    opts.form = form;
    opts.summary.by = by;
    opts.tables = positions ? 1u << ANALYZE_POSITIONS : 0;
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

/* Whether some note of the trace holds the text. */
static int noted(const struct trace *t, const char *text)
{
    struct summary s = summarise(t, SUMMARY_BY_NONE);
    struct notes n;
    int found = 0;
    ck_assert_int_eq(notes_init(&n, t, &s), 0);
    for (int i = 0; i < n.n; i++)
        found |= strstr(n.text[i], text) != NULL;
    notes_deinit(&n);
    summary_deinit(&s);
    return found;
}

static void set_text(char **field, const char *value)
{
    free(*field);
    *field = strdup(value);
}

START_TEST(a_speedup_is_the_ratio_of_rates_on_the_same_prompts)
{
    struct trace t;
    three_arms(&t, 0, 1);
    struct summary s = summarise(&t, SUMMARY_BY_NONE);
    ck_assert_int_eq(s.n, 3);
    const struct summary_row *r = &s.rows[1];
    ck_assert_int_eq(r->prompts, PROMPTS);
    ck_assert_int_eq(r->sums.requests, PROMPTS * TURNS);
    ck_assert_int_eq(r->sums.tokens, PROMPTS * TURNS * TOKENS);
    ck_assert(r->al.value == 2 && r->al.lo == 2 && r->al.hi == 2);
    /* Prompts differ in speed by three, but every one is faster by 20/12: resampled in pairs, nothing varies.
     */
    ck_assert_double_eq_tol(r->speedup.value, 20.0 / 12, 1e-12);
    ck_assert_double_eq_tol(r->speedup.lo, 20.0 / 12, 1e-12);
    ck_assert_double_eq_tol(r->speedup.hi, 20.0 / 12, 1e-12);
    ck_assert(s.rows[0].speedup.value == 1 && s.rows[0].speedup.lo == 1 && s.rows[0].speedup.hi == 1);
    ck_assert(r->bound == 2);
    ck_assert(r->step.median == 24.0 * MS && r->step.p90 == 36.0 * MS);
    ck_assert(r->ttft.median == 25.0 * MS);
    ck_assert_int_eq(r->sums.compared, PROMPTS * TURNS);
    ck_assert_int_eq(r->sums.identical, PROMPTS * TURNS);
    ck_assert_int_eq(s.rows[2].sums.identical, 0);
    summary_deinit(&s);
    trace_deinit(&t);
}
END_TEST

START_TEST(only_requests_with_a_partner_count_for_the_speedup)
{
    struct trace t;
    toy_trace_init(&t, "toy.h5");
    toy_trace_arm(&t, "none", "none", "greedy", 0, 0);
    toy_trace_arm(&t, "ngram", "ngram", "greedy", 0, 0);
    prompts(&t, 0, 3);                           /* the fast third alone has a partner */
    toy_trace_prompt(&t, "writing", PROMPTS, 0); /* and the first turn of one more */
    answers(&t, 0, 1, 10, 0);
    toy_trace_prompt(&t, "writing", PROMPTS, 1);
    prompts(&t, 1, 3);
    prompts(&t, 2, 3);
    answers(&t, 1, 2, 12, 0);
    struct summary s = summarise(&t, SUMMARY_BY_NONE);
    ck_assert_int_eq(s.rows[1].prompts, PROMPTS + 1);
    ck_assert_int_eq(s.rows[1].paired_prompts, PROMPTS / 3 + 1);
    ck_assert_int_eq(s.rows[1].sums.compared, PROMPTS / 3 * TURNS + 1);
    ck_assert_double_eq_tol(s.rows[1].speedup.value, 20.0 / 12, 1e-12);
    ck_assert(noted(&t, "17 of 50 requests have a partner in none"));
    summary_deinit(&s);
    trace_deinit(&t);
}
END_TEST

START_TEST(groups_add_up_to_all_and_keep_its_interval)
{
    struct trace t;
    three_arms(&t, 0, 1);
    struct summary all = summarise(&t, SUMMARY_BY_NONE), by = summarise(&t, SUMMARY_BY_CATEGORY);
    ck_assert_int_eq(by.n, 9);
    for (int a = 0; a < 3; a++) {
        ck_assert_int_eq(memcmp(&by.rows[a].speedup, &all.rows[a].speedup, sizeof all.rows[a].speedup), 0);
        ck_assert_ptr_null(by.rows[a].group);
        ck_assert_str_eq(by.rows[3 + a].group, "writing");
        ck_assert_int_eq(by.rows[3 + a].sums.tokens + by.rows[6 + a].sums.tokens, all.rows[a].sums.tokens);
        ck_assert_int_eq(by.rows[3 + a].prompts + by.rows[6 + a].prompts, PROMPTS);
    }
    summary_deinit(&all);
    summary_deinit(&by);
    trace_deinit(&t);
}
END_TEST

START_TEST(each_arm_meets_the_plain_arm_with_its_own_settings)
{
    struct trace t;
    int baseline[5], mixed[5];
    toy_trace_init(&t, "toy.h5");
    toy_trace_arm(&t, "none, 0", "none", "coupled", 0, 0);
    toy_trace_arm(&t, "none, 1", "none", "coupled", 0, 1);
    toy_trace_arm(&t, "ngram, 1", "ngram", "coupled", 0, 1);
    toy_trace_arm(&t, "ngram, 0", "ngram", "coupled", 0, 0);
    toy_trace_arm(&t, "ngram, 0.5", "ngram", "coupled", 0, 0.5);
    ck_assert_int_eq(baseline_find(&t, baseline, mixed), 0);
    ck_assert_int_eq(baseline[0], 0);
    ck_assert_int_eq(baseline[1], 1);
    ck_assert_int_eq(baseline[2], 1);
    ck_assert_int_eq(baseline[3], 0);
    ck_assert_int_eq(baseline[4], -1);
    trace_deinit(&t);
}
END_TEST

START_TEST(a_single_plain_arm_serves_all_with_a_note)
{
    struct trace t;
    int baseline[3], mixed[3];
    three_arms(&t, 0, 1);
    ck_assert_int_eq(baseline_find(&t, baseline, mixed), 0);
    ck_assert(baseline[1] == 0 && !mixed[1]);
    ck_assert(baseline[2] == 0 && mixed[2]);
    ck_assert(noted(&t, "careless is compared with none, whose settings differ"));
    trace_deinit(&t);
}
END_TEST

START_TEST(text_keeps_to_its_width_and_marks_lossy_arms_in_every_table)
{
    struct trace t;
    three_arms(&t, 0, 1);
    char *out = print(&t, ANALYZE_TEXT, SUMMARY_BY_CATEGORY, 1);
    int careless = 0;
    for (char *save, *line = strtok_r(out, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        ck_assert_int_le(display_width(line), DISPLAY_WIDTH);
        if (!strncmp(line, "careless ", 9)) {
            ck_assert_ptr_nonnull(strstr(line, "LOSSY"));
            careless++;
        } else if (strncmp(line, "note: ", 6) != 0) {
            ck_assert_ptr_null(strstr(line, "LOSSY"));
        }
    }
    ck_assert_int_eq(careless,
                     3 + 3 + 3 * 2); /* both tables, and two positions, each for all and two categories */
    free(out);
    trace_deinit(&t);
}
END_TEST

START_TEST(text_states_source_and_method)
{
    struct trace t;
    three_arms(&t, 0, 1);
    char *out = print(&t, ANALYZE_TEXT, SUMMARY_BY_NONE, 0);
    ck_assert_ptr_nonnull(strstr(out, "toy.h5 | models/toy (llama) | Toy CPU, portable, 1 thread | greedy, "
                                      "relaxed, T 0, seed 1 | trace steps\n"));
    ck_assert_ptr_nonnull(strstr(out, "24 prompts, arms"));
    ck_assert_ptr_nonnull(strstr(out, "B=2000, seed 1"));
    ck_assert_ptr_nonnull(strstr(out, "1.67 [1.67, 1.67]"));
    ck_assert_ptr_null(strstr(out, "total"));
    free(out);
    trace_deinit(&t);
}
END_TEST

START_TEST(csv_has_a_row_for_every_arm_and_group)
{
    struct trace t;
    three_arms(&t, 0, 1);
    char *out = print(&t, ANALYZE_CSV, SUMMARY_BY_CATEGORY, 0);
    int rows = 0, quoted = 0;
    for (char *at = out; (at = strstr(at, "\r\n")); at += 2)
        rows++;
    for (char *at = out; (at = strstr(at, "\"\u00fcber, \"\"setzung\"\"\"")); at++)
        quoted++;
    ck_assert_int_eq(rows, 1 + 9);
    ck_assert_int_eq(quoted, 3);
    ck_assert_ptr_nonnull(strstr(out, "\r\ncareless,LOSSY,,ngram,relaxed,none,24,48,"));
    free(out);
    out = print(&t, ANALYZE_CSV, SUMMARY_BY_NONE, 1);
    ck_assert_ptr_nonnull(strstr(out, "arm,lossy,group,position,"));
    free(out);
    trace_deinit(&t);
}
END_TEST

START_TEST(json_holds_every_number_in_full)
{
    struct trace t;
    three_arms(&t, 0, 1);
    struct summary s = summarise(&t, SUMMARY_BY_NONE);
    char *out = print(&t, ANALYZE_JSON, SUMMARY_BY_NONE, 0);
    json_t *doc = json_loads(out, 0, NULL);
    ck_assert_int_eq(json_integer_value(json_object_get(doc, "schema_version")), 1);
    ck_assert_str_eq(json_string_value(json_object_get(json_object_get(doc, "source"), "fingerprint")),
                     "000000000000feed");
    ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(doc, "method"), "replicates")), 2000);
    json_t *results = json_object_get(doc, "results"), *row = json_array_get(results, 2);
    ck_assert_uint_eq(json_array_size(results), 3);
    ck_assert_str_eq(json_string_value(json_object_get(row, "lossy")), "LOSSY");
    ck_assert(json_is_null(json_object_get(json_array_get(results, 1), "lossy")));
    ck_assert(json_real_value(json_object_get(json_object_get(row, "speedup"), "hi")) ==
              s.rows[2].speedup.hi);
    ck_assert(json_real_value(json_object_get(row, "total_tokens_per_s")) == s.rows[2].aggregate);
    ck_assert_uint_eq(json_array_size(json_object_get(doc, "positions")), 1 + 2);
    ck_assert_uint_ge(json_array_size(json_object_get(doc, "notes")), 2);
    json_decref(doc);
    free(out);
    summary_deinit(&s);
    trace_deinit(&t);
}
END_TEST

START_TEST(distinct_experts_are_told_by_rows_of_a_pass)
{
    struct trace t;
    toy_trace_init(&t, "toy.h5");
    toy_trace_arm(&t, "none", "none", "greedy", 0, 0);
    toy_trace_arm(&t, "ngram", "ngram", "greedy", 0, 0);
    toy_trace_prompt(&t, "c", 0, 0);
    toy_trace_request(&t, 0, 0, 0, 0, 1);
    toy_trace_step(&t, (struct toy_step){0, 0, 0, 1, STEP_NO_DRAFT, MS});
    toy_trace_pass(&t, 1, 1, 24, 24);
    toy_trace_request(&t, 1, 0, 0, 0, 1);
    toy_trace_step(&t, (struct toy_step){3, 3, 0, 1, 0, MS});
    toy_trace_pass(&t, 4, 1, 24, 72);
    for (int i = 0; i < 2; i++) { /* a pass of two sequences */
        toy_trace_step(&t, (struct toy_step){1, 1, 0, 1, 0, MS});
        toy_trace_pass(&t, 4, 2, 24, 84);
    }
    char *out = print(&t, ANALYZE_JSON, SUMMARY_BY_NONE, 0);
    json_t *doc = json_loads(out, 0, NULL), *experts = json_object_get(doc, "experts"),
           *row = json_array_get(experts, 1);
    ck_assert_uint_eq(json_array_size(experts), 2);
    ck_assert(json_number_value(json_object_get(json_array_get(experts, 0), "distinct")) == 1);
    ck_assert_str_eq(json_string_value(json_object_get(row, "arm")), "ngram");
    ck_assert_int_eq(json_integer_value(json_object_get(row, "rows")), 4);
    ck_assert_int_eq(json_integer_value(json_object_get(row, "passes")), 2);
    ck_assert(json_number_value(json_object_get(row, "distinct")) == 3.25);
    ck_assert(json_number_value(json_object_get(row, "least")) == 3);
    ck_assert(json_number_value(json_object_get(row, "most")) == 3.5);
    ck_assert_int_eq(json_integer_value(json_object_get(row, "layers")), 24);
    json_decref(doc);
    free(out);
    out = print(&t, ANALYZE_TEXT, SUMMARY_BY_NONE, 0);
    ck_assert_ptr_nonnull(strstr(out, "distinct experts"));
    ck_assert_ptr_nonnull(strstr(out, "3.25"));
    free(out);
    trace_deinit(&t);
    three_arms(&t, 0, 1); /* of dense models nothing is said */
    out = print(&t, ANALYZE_TEXT, SUMMARY_BY_NONE, 0);
    ck_assert_ptr_null(strstr(out, "distinct experts"));
    free(out);
    trace_deinit(&t);
}
END_TEST

static json_t *results_of(const struct trace *t)
{
    char *out = print(t, ANALYZE_JSON, SUMMARY_BY_CATEGORY, 0);
    json_t *doc = json_loads(out, 0, NULL), *results = json_incref(json_object_get(doc, "results"));
    json_decref(doc);
    free(out);
    return results;
}

START_TEST(slices_give_the_numbers_of_the_whole)
{
    struct trace whole, joined = {0}, part;
    three_arms(&whole, 0, 1);
    for (int slice = 0; slice < 3; slice++) {
        three_arms(&part, slice, 3);
        ck_assert_msg(!join_append(&joined, &part), "%s", err_text());
        trace_deinit(&part);
    }
    ck_assert_int_eq(joined.n_arms, 3);
    ck_assert_int_eq(joined.n_requests, whole.n_requests);
    json_t *a = results_of(&whole), *b = results_of(&joined);
    ck_assert(json_equal(a, b));
    json_decref(a);
    json_decref(b);
    trace_deinit(&whole);
    trace_deinit(&joined);
}
END_TEST

START_TEST(files_of_different_runs_are_not_joined)
{
    struct trace a, b;
    three_arms(&a, 0, 2);
    three_arms(&b, 1, 2);
    set_text(&b.meta.config, "name: toy\nworkload:\n  limit: 3\n");
    ck_assert_int_eq(join_append(&a, &b), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "a.h5 has '  limit: 0', b.h5 has '  limit: 3'"));
    b.meta.fingerprint++;
    ck_assert_int_eq(join_append(&a, &b), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "fingerprint 000000000000feed, b.h5 has 000000000000feee"));
    b.meta.schema++;
    ck_assert_int_eq(join_append(&a, &b), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "schemas differ"));
    trace_deinit(&a);
    trace_deinit(&b);
}
END_TEST

START_TEST(a_file_given_twice_is_an_error)
{
    struct trace a, b;
    struct summary s;
    struct analyze_opts opts = analyze_defaults();
    three_arms(&a, 0, 1);
    three_arms(&b, 0, 1);
    ck_assert_int_eq(join_append(&a, &b), 0);
    ck_assert_int_eq(summary_init(&s, &a, &opts.summary), ERR_FORMAT);
    ck_assert_ptr_nonnull(strstr(err_text(), "twice"));
    trace_deinit(&a);
    trace_deinit(&b);
}
END_TEST

START_TEST(a_join_lists_what_differs_and_keeps_the_least_finished_status)
{
    struct trace a, b;
    three_arms(&a, 0, 2);
    three_arms(&b, 1, 2);
    set_text(&b.meta.device, "Toy");
    set_text(&b.meta.status, "interrupted");
    set_text(&b.meta.started, "2025-12-31T00:00:00Z");
    ck_assert_int_eq(join_append(&a, &b), 0);
    ck_assert_str_eq(a.path, "a.h5, b.h5");
    ck_assert_str_eq(a.meta.device, "Toy CPU, Toy");
    ck_assert_str_eq(a.meta.host, "6.1");
    ck_assert_str_eq(a.meta.status, "interrupted");
    ck_assert_str_eq(a.meta.started, "2025-12-31T00:00:00Z");
    ck_assert_str_eq(a.meta.ended, "2026-01-01T00:01:00Z");
    trace_deinit(&a);
    trace_deinit(&b);
}
END_TEST

START_TEST(without_a_plain_arm_there_is_no_speedup_but_a_note)
{
    struct trace t;
    toy_trace_init(&t, "toy.h5");
    toy_trace_arm(&t, "ngram", "ngram", "greedy", 0, 0);
    prompts(&t, 0, 1);
    answers(&t, 0, 2, 12, 0);
    struct summary s = summarise(&t, SUMMARY_BY_NONE);
    ck_assert_int_eq(s.rows[0].baseline, -1);
    ck_assert(isnan(s.rows[0].speedup.value));
    ck_assert(noted(&t, "no speed-up for 1 arm:"));
    summary_deinit(&s);
    trace_deinit(&t);
}
END_TEST

START_TEST(an_impossible_speedup_is_noted)
{
    struct trace t;
    toy_trace_init(&t, "toy.h5");
    toy_trace_arm(&t, "none", "none", "greedy", 0, 0);
    toy_trace_arm(&t, "magic", "ngram", "greedy", 0, 0);
    toy_trace_arm(&t, "sound", "ngram", "greedy", 0, 0);
    prompts(&t, 0, 1);
    answers(&t, 0, 1, 10, 0);
    answers(&t, 1, 2, 5, 0);
    answers(&t, 2, 2, 10, 0);
    ck_assert(noted(&t, "magic: speed-up 4.00 is above its 2.00 tokens per step"));
    ck_assert(!noted(&t, "sound: speed-up"));
    trace_deinit(&t);
}
END_TEST

START_TEST(differing_outputs_of_an_exact_rule_are_noted)
{
    struct trace t;
    three_arms(&t, 0, 1);
    ck_assert(!noted(&t, "outputs differ"));
    ck_assert(noted(&t, "LOSSY: rule relaxed of careless changes outputs (48 of 48 differ"));
    for (int64_t i = 0; i < t.n_requests; i++)
        if (t.requests[i].arm == 1 && t.prompts[t.requests[i].prompt].index == 5)
            t.requests[i].hash++;
    ck_assert(
        noted(&t, "ngram: 2 of 48 outputs differ from none's, but rule greedy promises the same tokens"));
    /* Sampling by rejection promises the same distribution, not the same text. */
    set_text(&t.arms[1].rule, "rejection");
    ck_assert(!noted(&t, "outputs differ"));
    trace_deinit(&t);
}
END_TEST

START_TEST(few_prompts_and_unfinished_runs_are_noted)
{
    struct trace t;
    three_arms(&t, 0, 1);
    ck_assert(!noted(&t, "intervals tend") && !noted(&t, "finished requests"));
    set_text(&t.meta.status, "running");
    ck_assert(noted(&t, "these are its 144 finished requests"));
    set_text(&t.meta.status, "interrupted");
    ck_assert(noted(&t, "the run was interrupted: these are its 144"));
    trace_deinit(&t);
    three_arms(&t, 0, 2);
    ck_assert(noted(&t, "only 12 prompts"));
    trace_deinit(&t);
}
END_TEST

/* Two requests of 1 + 100 ms each, at 0 and 51 ms: 152 ms in all, and a third one after a pause. */
START_TEST(total_speed_counts_the_time_in_which_anything_ran)
{
    struct trace t;
    toy_trace_init(&t, "toy.h5");
    toy_trace_arm(&t, "none", "none", "greedy", 0, 0);
    for (int k = 0; k < 3; k++) {
        static const int64_t start[] = {0, 51, 1000};
        toy_trace_prompt(&t, "qa", k, 0);
        toy_trace_request(&t, 0, k, 0, start[k] * MS, 1);
        for (int s = 0; s < 10; s++)
            toy_trace_step(&t, (struct toy_step){0, 0, 0, 1, STEP_NO_DRAFT, 10 * MS});
    }
    struct summary s = summarise(&t, SUMMARY_BY_NONE);
    ck_assert_double_eq_tol(s.rows[0].aggregate, 30 / 0.253, 1e-9);
    ck_assert_double_eq_tol(metrics_tokens_per_s(&s.rows[0].sums), 100, 1e-9);
    ck_assert(!noted(&t, "ran at once"));
    for (int k = 0; k < 3; k++)
        t.requests[k].concurrency = 2;
    ck_assert(noted(&t, "up to 2 sequences ran at once"));
    char *out = print(&t, ANALYZE_TEXT, SUMMARY_BY_NONE, 0);
    ck_assert_ptr_nonnull(strstr(out, "total"));
    free(out);
    summary_deinit(&s);
    trace_deinit(&t);
}
END_TEST

START_TEST(a_result_without_requests_prints_a_note)
{
    struct trace t;
    toy_trace_init(&t, "toy.h5");
    toy_trace_arm(&t, "none", "none", "greedy", 0, 0);
    char *out = print(&t, ANALYZE_TEXT, SUMMARY_BY_DATASET, 1);
    ck_assert_ptr_nonnull(strstr(out, "note: no finished request in toy.h5."));
    free(out);
    trace_deinit(&t);
}
END_TEST

/* Writes one request of three tokens: three steps, or one step that accepts both nodes of a chain. */
static void record_answer(struct record *r, int arm, int prompt, int drafted)
{
    static const int tokens[] = {5, 6, 7}, question[] = {1, 2};
    static const float log_p[3] = {-1, -1, -1};
    struct trace_request head = {.arm = arm,
                                 .prompt = prompt,
                                 .request = workload_request_id(prompt, 0, 0),
                                 .seed = 1,
                                 .concurrency = 1,
                                 .started = 100LL * MS * (arm * PROMPTS + prompt)};
    struct record_request *q;
    ck_assert_msg(!record_begin(r, &head, question, 2, &q), "%s", err_text());
    for (int i = 0, emitted = drafted ? 3 : 1; i < 3; i += emitted) {
        struct step_record s = {.position = 2 + i,
                                .proposed = emitted - 1,
                                .depth = emitted - 1,
                                .accepted = emitted - 1,
                                .emitted = emitted,
                                .flags = (i ? 0 : STEP_FIRST) | (drafted ? 0 : STEP_NO_DRAFT),
                                .pass_rows = emitted,
                                .pass_seqs = 1,
                                .ns_verify = 10 * MS,
                                .ns_total = 10 * MS + prompt,
                                .tokens = tokens + i,
                                .log_p = log_p};
        ck_assert_msg(!record_step(q, &s), "%s", err_text());
    }
    struct spec_finished done = {.reason = FINISH_LENGTH,
                                 .tokens = tokens,
                                 .n = 3,
                                 .steps = drafted ? 1 : 3,
                                 .ns_prefill = MS,
                                 .ns_first = 11 * MS,
                                 .ns_decode = drafted ? 0 : 20 * MS};
    ck_assert_msg(!record_finish(r, q, &done), "%s", err_text());
}

static void write_file(const char *path)
{
    struct trace t;
    struct record *r;
    toy_trace_init(&t, path);
    toy_trace_arm(&t, "none", "none", "greedy", 0, 0);
    toy_trace_arm(&t, "ngram", "ngram", "greedy", 0, 0);
    prompts(&t, 0, 1);
    ck_assert_msg(!record_open(&r, path, &t.meta, RECORD_NEW), "%s", err_text());
    for (int a = 0; a < 2; a++) {
        int arm, row;
        ck_assert_int_eq(record_arm(r, &t.arms[a], &arm), 0);
        for (int k = 0; k < PROMPTS; k++) {
            ck_assert_int_eq(record_prompt(r, &t.prompts[k * TURNS], &row), 0);
            record_answer(r, arm, row, a);
        }
    }
    ck_assert_msg(!record_close(r, "complete"), "%s", err_text());
    trace_deinit(&t);
}

START_TEST(a_recorded_file_prints_its_tables)
{
    char folder[] = "/tmp/specbed-analyze-XXXXXX", path[64], *out = NULL;
    size_t n = 0;
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/run.h5", folder);
    write_file(path);
    FILE *f = open_memstream(&out, &n);
    ck_assert_msg(!analyze_print(path, f), "%s", err_text());
    fclose(f);
    unlink(path);
    rmdir(folder);
    ck_assert_ptr_nonnull(strstr(
        out, "\nnone        24        24      72     72             1.00      0.00        -         -\n"));
    ck_assert_ptr_nonnull(strstr(
        out, "\nngram       24        24      72     24             3.00      2.00     3.00   100.0 %\n"));
    ck_assert_ptr_nonnull(strstr(out, "100.0 %"));
    ck_assert_ptr_null(strstr(out, "note:"));
    free(out);
}
END_TEST

START_TEST(a_missing_file_is_an_error_that_names_it)
{
    ck_assert_int_ne(analyze_print("/nonexistent/toy.h5", stdout), 0);
    ck_assert_ptr_nonnull(strstr(err_text(), "/nonexistent/toy.h5"));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("analyze");
    TCase *numbers = tcase_create("numbers"), *forms = tcase_create("forms"), *files = tcase_create("files"),
          *notes = tcase_create("notes");
    tcase_add_test(numbers, a_speedup_is_the_ratio_of_rates_on_the_same_prompts);
    tcase_add_test(numbers, only_requests_with_a_partner_count_for_the_speedup);
    tcase_add_test(numbers, groups_add_up_to_all_and_keep_its_interval);
    tcase_add_test(numbers, each_arm_meets_the_plain_arm_with_its_own_settings);
    tcase_add_test(numbers, a_single_plain_arm_serves_all_with_a_note);
    tcase_add_test(numbers, total_speed_counts_the_time_in_which_anything_ran);
    tcase_add_test(forms, text_keeps_to_its_width_and_marks_lossy_arms_in_every_table);
    tcase_add_test(forms, text_states_source_and_method);
    tcase_add_test(forms, csv_has_a_row_for_every_arm_and_group);
    tcase_add_test(forms, json_holds_every_number_in_full);
    tcase_add_test(forms, distinct_experts_are_told_by_rows_of_a_pass);
    tcase_add_test(forms, a_result_without_requests_prints_a_note);
    tcase_add_test(files, slices_give_the_numbers_of_the_whole);
    tcase_add_test(files, files_of_different_runs_are_not_joined);
    tcase_add_test(files, a_file_given_twice_is_an_error);
    tcase_add_test(files, a_join_lists_what_differs_and_keeps_the_least_finished_status);
    tcase_add_test(files, a_recorded_file_prints_its_tables);
    tcase_add_test(files, a_missing_file_is_an_error_that_names_it);
    tcase_add_test(notes, without_a_plain_arm_there_is_no_speedup_but_a_note);
    tcase_add_test(notes, an_impossible_speedup_is_noted);
    tcase_add_test(notes, differing_outputs_of_an_exact_rule_are_noted);
    tcase_add_test(notes, few_prompts_and_unfinished_runs_are_noted);
    suite_add_tcase(s, numbers);
    suite_add_tcase(s, forms);
    suite_add_tcase(s, files);
    suite_add_tcase(s, notes);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
