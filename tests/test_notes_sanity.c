/* Each rule with a trace that breaks it and one that does not. */
#include "experiments/notes_sanity.h"
#include "engine/err.h"
#include "experiments/analyze.h"
#include "experiments/trace_loop.h"
#include "spec/loop.h"
#include "tests/toy_trace.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MS = 1000000, PROMPTS = 40 };

/* How long step k of prompt i takes. */
typedef int64_t (*step_time)(int i, int k);

/* 10 ms, up and down by a few microseconds without a trend. */
static int64_t steady(int i, int k)
{
    return 10 * MS + (i * 37 + k * 11) % 7 * 1000 + k;
}

/* The first eight prompts take 12 ms. */
static int64_t warming(int i, int k)
{
    return steady(i, k) + (i < 8 ? 2 * MS : 0);
}

static int64_t whole_milliseconds(int i, int k)
{
    return 10 * MS + (i + k) % 2 * MS;
}

/* Answers of an arm to prompts [0, n), four steps each. */
static void answers(struct trace *t, int arm, int n, int repeats, step_time time)
{
    for (int repeat = 0; repeat < repeats; repeat++)
        for (int i = 0; i < n; i++) {
            toy_trace_request(t, arm, i, repeat,
                              (int64_t)(arm * repeats + repeat) * 1000000000000 + (int64_t)i * 1000 * MS,
                              (uint64_t)i);
            for (int k = 0; k < 4; k++)
                toy_trace_step(t, (struct toy_step){1, 1, arm, 1 + arm, 0, time(i, k)});
        }
}

static void begin(struct trace *t)
{
    toy_trace_init(t, "toy.h5");
    toy_trace_arm(t, "none", "none", "greedy", 0, 0);
    toy_trace_arm(t, "ngram", "ngram", "greedy", 0, 0);
    for (int i = 0; i < PROMPTS; i++)
        toy_trace_prompt(t, "qa", i, 0);
}

/* Whether some note holds the text; frees the trace. */
static int noted(struct trace *t, const char *text)
{
    struct analyze_opts opts = analyze_defaults();
    struct summary s;
    struct notes n = {0};
    int found = 0;
    opts.summary.resampling.replicates = 20;
    ck_assert_msg(!summary_init(&s, t, &opts.summary), "%s", err_text());
    ck_assert_int_eq(notes_sanity(&n, t, &s), 0);
    for (int i = 0; i < n.n; i++)
        found |= strstr(n.text[i], text) != NULL;
    if (!found && *text)
        for (int i = 0; i < n.n; i++)
            printf("note: %s\n", n.text[i]);
    if (!*text)
        found = n.n;
    notes_deinit(&n);
    summary_deinit(&s);
    trace_deinit(t);
    return found;
}

START_TEST(a_sound_measurement_has_no_notes)
{
    struct trace t;
    begin(&t);
    answers(&t, 0, PROMPTS, 1, steady);
    answers(&t, 1, PROMPTS, 1, steady);
    t.loops = calloc((size_t)t.n_requests, sizeof *t.loops);
    ck_assert_int_eq(noted(&t, ""), 0);
}
END_TEST

START_TEST(arms_with_other_requests_are_named)
{
    struct trace t;
    begin(&t);
    answers(&t, 0, PROMPTS, 1, steady);
    answers(&t, 1, PROMPTS - 3, 1, steady);
    ck_assert(noted(&t, "arms answered different requests: ngram 37, none 40"));
}
END_TEST

START_TEST(a_warm_up_trend_is_named)
{
    struct trace t;
    begin(&t);
    answers(&t, 0, PROMPTS, 1, steady);
    answers(&t, 1, PROMPTS, 1, warming);
    ck_assert(noted(&t, "ngram: steps of its first fifth took 20.0 % longer than the rest"));
    begin(&t);
    answers(&t, 1, 10, 1, warming); /* too few to tell */
    ck_assert(!noted(&t, "first fifth"));
}
END_TEST

START_TEST(a_coarse_clock_is_named)
{
    struct trace t;
    begin(&t);
    answers(&t, 0, PROMPTS, 1, whole_milliseconds);
    ck_assert(noted(&t, "none: all step times are multiples of 1.000 ms"));
}
END_TEST

START_TEST(repeats_tell_runs_from_prompts)
{
    struct trace t;
    begin(&t);
    answers(&t, 1, PROMPTS, 3, steady);
    ck_assert(noted(&t, "ngram: speed varies by 0.0 % from run to run"));
}
END_TEST

START_TEST(several_builds_and_machines_are_named)
{
    struct trace t;
    begin(&t);
    answers(&t, 0, PROMPTS, 1, steady);
    free(t.meta.git_commit);
    t.meta.git_commit = strdup("abc1234, def5678");
    ck_assert(noted(&t, "several commits made these rows (abc1234, def5678)"));
}
END_TEST

START_TEST(answers_that_loop_are_counted_and_left_out)
{
    struct trace t;
    begin(&t);
    answers(&t, 1, PROMPTS, 1, steady);
    t.loops = calloc((size_t)t.n_requests, sizeof *t.loops);
    for (int i = 0; i < PROMPTS / 4; i++) {
        t.loops[i] = 40;
        t.steps[4 * i].accepted = 0; /* which makes the others' AL different */
    }
    ck_assert(noted(&t, "ngram: 10 of 40 answers end in a loop (3 turns or more, at least 32 tokens), where "
                        "any draft that copies is right: "
                        "AL 1.94, without them 2.00."));
    begin(&t);
    answers(&t, 1, PROMPTS, 1, steady);
    t.loops = calloc((size_t)t.n_requests, sizeof *t.loops);
    t.loops[0] = 40; /* one in forty is below the threshold */
    ck_assert(!noted(&t, "loop"));
}
END_TEST

static int64_t loop_of(int n, int period, int random)
{
    int32_t ids[200];
    for (int i = 0; i < n; i++)
        ids[i] = i < random ? 1000 + i : i % period;
    return trace_loop(ids, n);
}

START_TEST(a_loop_is_three_turns_and_thirty_two_tokens)
{
    ck_assert_int_eq(loop_of(100, 5, 40), 60);
    ck_assert_int_eq(loop_of(100, 20, 40), 60);
    ck_assert_int_eq(loop_of(100, 20, 41), 0); /* 59 tokens are less than three turns */
    ck_assert_int_eq(loop_of(100, 1, 68), 32);
    ck_assert_int_eq(loop_of(100, 1, 69), 0);
    ck_assert_int_eq(loop_of(200, 64, 8), 192);
    ck_assert_int_eq(loop_of(200, 66, 0), 0); /* a longer period is a text */
    ck_assert_int_eq(loop_of(100, 7, 100), 0);
    ck_assert_int_eq(trace_loop(NULL, 0), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("notes_sanity");
    TCase *c = tcase_create("rules");
    tcase_add_test(c, a_sound_measurement_has_no_notes);
    tcase_add_test(c, arms_with_other_requests_are_named);
    tcase_add_test(c, a_warm_up_trend_is_named);
    tcase_add_test(c, a_coarse_clock_is_named);
    tcase_add_test(c, repeats_tell_runs_from_prompts);
    tcase_add_test(c, several_builds_and_machines_are_named);
    tcase_add_test(c, answers_that_loop_are_counted_and_left_out);
    tcase_add_test(c, a_loop_is_three_turns_and_thirty_two_tokens);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
