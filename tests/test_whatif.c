/* What-if replay: against runs of a toy model step for step, against hand-made traces, and against simulated
 * machines for its intervals. */
#include "experiments/whatif.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/run.h"
#include "experiments/whatif_backtest.h"
#include "experiments/whatif_model.h"
#include "kernels/philox.h"
#include "spec/loop.h"
#include "tests/toy_dir.h"
#include "tests/toy_trace.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROMPTS = 24, ANSWER = 60, PROMPT = 20, VARIANTS = 8, SIMULATIONS = 120 };

static struct toy_dir toy;

static void setup(void)
{
    log_set_level(LOG_ERROR);
    ck_assert_int_eq(toy_dir_make(&toy, SPECBED_GOLDEN_DIR), 0);
}

static void teardown(void)
{
    toy_dir_remove(&toy);
}

static struct trace run(const char *const *sets, int n)
{
    struct trace t;
    const struct run_opts opts = {.config = toy.config,
                                  .sets = sets,
                                  .n_sets = n,
                                  .out = toy.out,
                                  .mode = RECORD_FORCE,
                                  .of = 1,
                                  .no_progress = 1,
                                  .no_table = 1};
    ck_assert_msg(!run_experiment(&opts), "%s", err_text());
    ck_assert_msg(!trace_read(&t, toy.out, TRACE_READ_ALL), "%s", err_text());
    return t;
}

/* The text of a request in buf, as replay takes it. */
static struct whatif_text text_of(const struct trace *t, const struct trace_request *r, int *buf)
{
    int n = 0;
    for (int64_t i = 0; i < r->prompt_tokens; i++)
        buf[n++] = t->prompt_tokens[r->prompt_begin + i];
    for (int64_t i = 0; i < r->tokens; i++)
        buf[n++] = t->tokens[r->token_begin + i].id;
    int cut = r->finish == FINISH_LENGTH || r->finish == FINISH_CONTEXT;
    return (struct whatif_text){buf, (int)r->prompt_tokens, n, cut ? n : (int)r->prompt_tokens + 24};
}

/* Every step of an n-gram run, from the texts alone. */
static void check_run(const char *const *sets, int n, const struct whatif_draft *draft)
{
    struct trace t = run(sets, n);
    int buf[4096], accepted = 0;
    struct whatif_step steps[64];
    for (int64_t i = 0; i < t.n_requests; i++) {
        const struct trace_request *r = &t.requests[i];
        struct whatif_text text = text_of(&t, r, buf);
        ck_assert_int_eq(whatif_replay(draft, &text, NULL, 0, steps), r->steps);
        for (int k = 0; k < r->steps; k++) {
            const struct trace_step *s = &t.steps[r->step_begin + k];
            ck_assert_int_eq(steps[k].n, s->position);
            ck_assert_int_eq(steps[k].rows, s->proposed + 1);
            ck_assert_int_eq(steps[k].accepted,
                             (s->flags & STEP_STOP) && s->emitted < s->accepted ? s->emitted : s->accepted);
            accepted += s->accepted;
        }
    }
    ck_assert_int_gt(accepted, 0);
    trace_deinit(&t);
}

START_TEST(replayed_chains_are_the_runs_step_for_step)
{
    static const char *const sets[] = {"draft.strategy=ngram", "draft.max_depth=4", "draft.max_nodes=4",
                                       "workload.ignore_eos=true"};
    check_run(sets, 4,
              &(struct whatif_draft){
                  WHATIF_NGRAM, {.min = 1, .max = 3, .branches = 1}, .max_depth = 4, .max_nodes = 4});
}
END_TEST

START_TEST(replayed_trees_are_the_runs_step_for_step)
{
    static const char *const sets[] = {"draft.strategy=ngram", "draft.max_depth=3", "draft.max_nodes=9",
                                       "draft.ngram.branches=3", "draft.ngram.match=recent"};
    check_run(sets, 5,
              &(struct whatif_draft){WHATIF_NGRAM,
                                     {.min = 1, .max = 3, .branches = 3, .match = NGRAM_RECENT},
                                     .max_depth = 3,
                                     .max_nodes = 9});
}
END_TEST

/* Variants of a question over a plain run, run as well: as many steps each. Times are not looked at. */
START_TEST(a_back_test_takes_exactly_the_predicted_steps)
{
    static const char *const sets[] = {"draft.strategy=none"};
    struct trace t = run(sets, 1);
    struct whatif_point points[6] = {{1, 10, 1e-3, 0, 0},  {4, 10, 1e-3, 0, 0},  {8, 10, 1e-3, 0, 0},
                                     {1, 100, 1e-3, 0, 0}, {4, 100, 1e-3, 0, 0}, {8, 100, 1e-3, 0, 0}};
    int rows[] = {1, 4, 8}, context[] = {10, 100}, made;
    const struct whatif_costs costs = {points, rows, context, 3, 2, 6, NULL, NULL};
    const struct whatif_opts opts = {.what = "strategy=ngram,max_depth=1|3|5,ngram.max=2..3",
                                     .resampling = {.replicates = 50, .level = 0.95, .seed = 1}};
    struct whatif w;
    struct whatif_measured m[VARIANTS];
    ck_assert_msg(!whatif_init(&w, &t, &costs, &opts), "%s", err_text());
    ck_assert_int_eq(w.n, 6);
    ck_assert_msg(!whatif_backtest(&w, &opts.resampling, 3, m, &made), "%s", err_text());
    ck_assert_int_eq(made, 3);
    for (int i = 0; i < made; i++) {
        ck_assert_int_eq(m[i].variant, 2 * i);
        ck_assert_msg(m[i].exact, "'%s' took %lld steps, predicted %lld", w.variants[m[i].variant].label,
                      (long long)m[i].steps, (long long)w.variants[m[i].variant].steps);
    }
    ck_assert_int_gt(w.variants[0].tokens, w.variants[0].steps); /* something was accepted */
    whatif_deinit(&w);
    trace_deinit(&t);
}
END_TEST

/* Three steps of a chain of 4: accepted 4, 1, 0; the answer has 5 + 2 + 1 tokens behind a prompt of 2. Cut to
 * depth 2: n 2  begins a step: 2 accepted; n 5 lies in it, 3 tokens on: one more was right, of two that are
 * assumed; n 7 begins the second: 1 accepted; n 9 the third: none, the end leaves no room for a draft. */
START_TEST(a_shorter_chain_says_where_the_trace_does_not_determine_it)
{
    const struct trace_step steps[] = {
        {.position = 2, .proposed = 4, .depth = 4, .accepted = 4, .emitted = 5},
        {.position = 7, .proposed = 4, .depth = 4, .accepted = 1, .emitted = 2},
        {.position = 9, .proposed = 4, .depth = 4, .accepted = 0, .emitted = 1}};
    const int tokens[10] = {0};
    const struct whatif_text text = {tokens, 2, 10, 10};
    const struct whatif_draft two = {.kind = WHATIF_CHAIN, .max_depth = 2, .max_nodes = 8},
                              four = {.kind = WHATIF_CHAIN, .max_depth = 4, .max_nodes = 8};
    struct whatif_step out[8];
    ck_assert_int_eq(whatif_replay(&two, &text, steps, 3, out), 4);
    ck_assert(out[0].exact && out[0].accepted == 2 && out[0].rows == 3);
    ck_assert(!out[1].exact && out[1].n == 5 && out[1].accepted == 1 && out[1].rows == 3);
    ck_assert(out[2].exact && out[2].n == 7 && out[2].accepted == 1);
    ck_assert(out[3].exact && out[3].n == 9 && out[3].accepted == 0 && out[3].rows == 1);
    ck_assert_int_eq(whatif_replay(&four, &text, steps, 3, out), 3); /* the run itself */
    ck_assert(out[0].exact && out[0].accepted == 4 && out[1].exact && out[1].accepted == 1 && out[2].exact);
}
END_TEST

/* 1 row 10 ms behind 100 tokens and 12 behind 300; 5 rows 14 and 20. */
static struct whatif_costs four_points(void)
{
    static struct whatif_point points[] = {
        {1, 100, 0.010, 0, 1}, {5, 100, 0.014, 0, 3}, {1, 300, 0.012, 0, 1}, {5, 300, 0.020, 0, 3}};
    static int rows[] = {1, 5}, context[] = {100, 300};
    return (struct whatif_costs){points, rows, context, 2, 2, 4, NULL, NULL};
}

START_TEST(times_between_points_are_linear_in_rows_and_context)
{
    const struct whatif_costs c = four_points();
    ck_assert_double_eq_tol(whatif_seconds(&c, 1, 100), 0.010, 1e-15);
    ck_assert_double_eq_tol(whatif_seconds(&c, 3, 100), 0.012, 1e-15);
    ck_assert_double_eq_tol(whatif_seconds(&c, 5, 200), 0.017, 1e-15);
    ck_assert_double_eq_tol(whatif_seconds(&c, 3, 200), 0.014, 1e-15);
    ck_assert_double_eq_tol(whatif_seconds(&c, 1, 500), 0.014, 1e-15);
    ck_assert_double_eq_tol(whatif_seconds(&c, 1, 0), 0.009, 1e-15);
    ck_assert_double_eq_tol(whatif_experts(&c, 3, 250), 2, 1e-15);
}
END_TEST

static int read_table(const char *text, struct whatif_costs *c)
{
    char path[] = "/tmp/specbed-costs-XXXXXX";
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    FILE *f = fdopen(fd, "w");
    fputs(text, f);
    fclose(f);
    int rc = whatif_costs_read(c, path);
    unlink(path);
    return rc;
}

#define POINT(stage, rows, context)                                                                          \
    "{\"stage\": \"" stage "\", \"rows\": " rows ", \"context\": " context                                   \
    ", \"median_s\": 0.01, \"p90_s\": 0.012}"
#define TABLE(points) "{\"model\": \"m\", \"device\": \"d\", \"points\": [" points "]}"

START_TEST(tables_with_holes_and_other_files_are_refused)
{
    struct whatif_costs c = {0};
    ck_assert_msg(!read_table(TABLE(POINT("decode", "1", "64") "," POINT("prefill", "512",
                                                                         "0") "," POINT("verify", "4", "64")),
                              &c),
                  "%s", err_text());
    ck_assert(c.n == 2 && whatif_costs_max_rows(&c) == 4);
    ck_assert_double_eq_tol(whatif_spread(&c), 0.2 / 1.2815515655446004, 1e-12);
    whatif_costs_deinit(&c);
    const char *bad[] = {
        "not JSON",
        "{}",
        TABLE(""),
        TABLE(POINT("verify", "2", "64")),
        TABLE(POINT("decode", "1", "64") "," POINT("verify", "2", "64") "," POINT("decode", "1", "128")),
        TABLE(POINT("decode", "1", "64") "," POINT("decode", "1", "64")),
        TABLE(POINT("decode", "-1", "64"))};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_msg(read_table(bad[i], &c) == ERR_FORMAT, "table %zu", i);
    ck_assert_int_eq(whatif_costs_read(&c, "/nonexistent.json"), ERR_IO);
}
END_TEST

/* ---- simulated machines: texts of a few words, and steps that take what the table says, times a pace, times
 * noise */

static uint32_t word(uint32_t run, uint32_t prompt, uint32_t i)
{
    uint32_t bits = philox(5, run, prompt, i, 0).v[0];
    return bits % 16 < 12 ? i % (3 + prompt % 5) : bits % 29;
}

static double noise(uint32_t run, uint32_t arm, uint32_t i, uint32_t use)
{
    double sum = -6;
    for (uint32_t k = 0; k < 3; k++) {
        struct philox4 p = philox(run, arm, i, use, k);
        for (int j = 0; j < 4; j++)
            sum += philox_uniform(p.v[j]);
    }
    return sum;
}

struct machine {
    const struct whatif_costs *costs;
    double pace, arm_noise, step_noise; /* of the whole run; relative, of an arm and of a step */
    uint32_t run;
};

static void texts(struct trace *t, uint32_t run)
{
    t->n_prompt_tokens = PROMPTS * PROMPT;
    t->n_tokens = PROMPTS * ANSWER;
    t->prompt_tokens = calloc((size_t)t->n_prompt_tokens, sizeof *t->prompt_tokens);
    t->tokens = calloc((size_t)t->n_tokens, sizeof *t->tokens);
    for (uint32_t p = 0; p < PROMPTS; p++)
        for (uint32_t i = 0; i < PROMPT + ANSWER; i++)
            *(i < PROMPT ? &t->prompt_tokens[p * PROMPT + i] : &t->tokens[p * ANSWER + i - PROMPT].id) =
                (int)word(run, p, i);
}

/* Plain decoding or an n-gram draft on a machine. */
static void simulate(struct trace *t, const struct machine *m, const char *strategy, int depth)
{
    static struct whatif_step steps[ANSWER];
    int buf[PROMPT + ANSWER], arm = toy_trace_arm(t, strategy, strategy, "greedy", 0, 0);
    const struct whatif_draft d = {.kind = strcmp(strategy, "none") ? WHATIF_NGRAM : WHATIF_NONE,
                                   .search = {.min = 1, .max = 3, .branches = 1},
                                   .max_depth = depth,
                                   .max_nodes = depth};
    double pace = m->pace * exp(m->arm_noise * noise(m->run, (uint32_t)arm, 0, 9));
    for (int p = 0; p < PROMPTS; p++) {
        toy_trace_request(t, arm, p, 0, 0, (uint64_t)p);
        struct trace_request *r = &t->requests[t->n_requests - 1];
        r->prompt_begin = p * PROMPT;
        r->prompt_tokens = PROMPT;
        r->token_begin = p * ANSWER;
        r->finish = FINISH_LENGTH;
        r->tokens = ANSWER;
        struct whatif_text text = text_of(t, r, buf);
        r->tokens = 0;
        int n = whatif_replay(&d, &text, NULL, 0, steps);
        for (int k = 0; k < n; k++) {
            const struct whatif_step *s = &steps[k];
            double time = 1e9 * pace * (whatif_seconds(m->costs, s->rows, s->n - 1) + 0.0005) *
                          exp(m->step_noise * noise(m->run, (uint32_t)(arm * PROMPTS + p), (uint32_t)k, 8));
            toy_trace_step(t, (struct toy_step){s->rows - 1, s->rows - 1, s->accepted, s->accepted + 1, 0,
                                                (int64_t)time});
            struct trace_step *made = &t->steps[t->n_steps - 1];
            made->position = s->n;
            made->pass_seqs = 1;
            made->ns_host = (int64_t)(1e9 * pace * 0.0005);
            made->ns_verify = made->ns_total - made->ns_host;
        }
    }
}

static void simulated_run(struct trace *t, const struct machine *m, int depth, uint32_t words)
{
    toy_trace_init(t, "toy.h5");
    for (int p = 0; p < PROMPTS; p++)
        toy_trace_prompt(t, p % 2 ? "code" : "chat", p, 0);
    texts(t, words);
    simulate(t, m, "none", 1);
    simulate(t, m, "ngram", depth);
}

static double measured_speedup(const struct trace *t)
{
    double ns[2] = {0, 0}, tokens[2] = {0, 0};
    for (int64_t i = 0; i < t->n_requests; i++) {
        const struct trace_request *r = &t->requests[i];
        ns[r->arm] += (double)r->ns_decode;
        tokens[r->arm] += (double)(r->tokens - t->steps[r->step_begin].emitted);
    }
    return tokens[1] / ns[1] / (tokens[0] / ns[0]);
}

static struct whatif ask(const struct trace *t, const struct whatif_costs *c, const char *what)
{
    struct whatif w;
    const struct whatif_opts opts = {.what = what,
                                     .resampling = {.replicates = 200, .level = 0.95, .seed = 1}};
    ck_assert_msg(!whatif_init(&w, t, c, &opts), "%s", err_text());
    return w;
}

/* No noise and a machine of half the table's pace: the factor is 2, the error none, every prediction what the
 * same machine then measures. */
START_TEST(without_noise_predictions_are_measurements)
{
    const struct whatif_costs c = four_points();
    const struct machine m = {&c, 2, 0, 0, 1};
    struct trace t, later;
    simulated_run(&t, &m, 3, 1);
    struct whatif w = ask(&t, &c, "strategy=ngram,max_depth=1..4");
    ck_assert_int_eq(w.n, 4);
    ck_assert_double_eq_tol(w.factor, 2 * 1.0,
                            0.1); /* what is beside the pass is in the run's own time already */
    ck_assert_double_lt(w.error, 0.01);
    for (int i = 0; i < 4; i++) {
        simulated_run(&later, &m, i + 1, 1);
        ck_assert_double_eq_tol(w.variants[i].speedup.value, measured_speedup(&later), 1e-6);
        ck_assert(w.variants[i].exact == w.variants[i].steps);
        trace_deinit(&later);
    }
    trace_deinit(&t);
    whatif_deinit(&w);
}
END_TEST

START_TEST(the_oracle_is_never_worse_than_the_best_and_categories_have_their_own)
{
    const struct whatif_costs c = four_points();
    const struct machine m = {&c, 1, 0, 0, 1};
    struct trace t;
    simulated_run(&t, &m, 3, 2);
    struct whatif w = ask(&t, &c, "strategy=none|ngram,max_depth=1..4");
    ck_assert_int_eq(w.n_best, 3);
    ck_assert_ptr_null(w.best[0].category);
    for (int i = 0; i < 3; i++)
        ck_assert(w.best[i].oracle >= w.best[i].speedup && w.best[i].speedup >= 1);
    ck_assert_str_eq(w.best[1].category, "chat");
    ck_assert_str_eq(w.best[2].category, "code");
    whatif_deinit(&w);
    /* One draft alone: the oracle still may skip it. */
    w = ask(&t, &c, "strategy=none");
    ck_assert(w.best[0].oracle == 1 && w.best[0].speedup == 1);
    trace_deinit(&t);
    whatif_deinit(&w);
}
END_TEST

/* 120 machines with 3 % of noise an arm and 10 % a step: the later run of a depth that the first did not have
 * is measured with noise of its own. At a true coverage of 0.95 at least 102 of 120 (0.85) are inside but for
 * one case in 10^5; the intervals also hold what other prompts would change, so more are inside. 0.9 is what
 * is asked for: 108. */
START_TEST(intervals_cover_later_runs)
{
    const struct whatif_costs c = four_points();
    int inside = 0;
    for (uint32_t s = 0; s < SIMULATIONS; s++) {
        const struct machine first = {&c, 1.1, 0.03, 0.1, 100 + s}, second = {&c, 0.9, 0.03, 0.1, 5000 + s};
        struct trace t, later;
        simulated_run(&t, &first, 3, s);
        simulated_run(&later, &second, 4, s);
        struct whatif w = ask(&t, &c, "strategy=ngram,max_depth=4");
        double v = measured_speedup(&later);
        inside += v >= w.variants[0].speedup.lo && v <= w.variants[0].speedup.hi;
        whatif_deinit(&w);
        trace_deinit(&t);
        trace_deinit(&later);
    }
    ck_assert_msg(inside >= SIMULATIONS * 9 / 10, "%d of %d", inside, SIMULATIONS);
}
END_TEST

static void refused(const struct trace *t, const struct whatif_costs *c, const char *what, const char *source,
                    const char *sentence)
{
    struct whatif w;
    const struct whatif_opts opts = {
        .what = what, .source = source, .resampling = {.replicates = 10, .level = 0.95, .seed = 1}};
    int rc = whatif_init(&w, t, c, &opts);
    ck_assert_msg(rc == ERR_CONFIG, "'%s' gave %d", what, rc);
    ck_assert_msg(strstr(err_text(), sentence) != NULL, "'%s': %s", what, err_text());
    err_clear();
}

START_TEST(questions_that_a_trace_cannot_answer_are_refused_in_words)
{
    const struct whatif_costs c = four_points();
    const struct machine m = {&c, 1, 0, 0, 1};
    struct trace t;
    simulated_run(&t, &m, 3, 2);
    refused(&t, &c, "sampling.temperature=1", NULL, "a trace says nothing of what that would change");
    refused(&t, &c, "strategy=ngram,max_depth=8", NULL,
            "takes passes of 9 rows, the cost table has at most 5");
    refused(&t, &c, "max_depth", NULL, "expected key=value");
    refused(&t, &c, "max_depth=5..1", NULL, "a range such as 1..8");
    refused(&t, &c, "max_depth=", NULL, "expected a value");
    refused(&t, &c, "depth=3", NULL, "draft.depth");
    refused(&t, &c, "", NULL, "found nothing");
    refused(&t, NULL, "strategy=eagle3,head=x", NULL, "of strategy eagle3 has texts that replay can use");
    refused(&t, NULL, "strategy=ngram", "nobody", "labelled nobody");
    t.steps[5].pass_seqs = 2;
    refused(&t, &c, "strategy=ngram", NULL, "workload.concurrency 1");
    t.steps[5].pass_seqs = 1;
    for (int i = 0; i < 2; i++) {
        free(t.arms[i].rule);
        t.arms[i].rule = strdup("rejection");
    }
    refused(&t, NULL, "strategy=ngram", NULL, "it takes rule greedy or coupled");
    refused(&t, NULL, "strategy=ngram", "none", "under which texts depend on the draft");
    trace_deinit(&t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("whatif");
    TCase *c = tcase_create("runs"), *h = tcase_create("by hand");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, replayed_chains_are_the_runs_step_for_step);
    tcase_add_test(c, replayed_trees_are_the_runs_step_for_step);
    tcase_add_test(c, a_back_test_takes_exactly_the_predicted_steps);
    tcase_add_test(h, a_shorter_chain_says_where_the_trace_does_not_determine_it);
    tcase_add_test(h, times_between_points_are_linear_in_rows_and_context);
    tcase_add_test(h, tables_with_holes_and_other_files_are_refused);
    tcase_add_test(h, without_noise_predictions_are_measurements);
    tcase_add_test(h, the_oracle_is_never_worse_than_the_best_and_categories_have_their_own);
    tcase_add_test(h, intervals_cover_later_runs);
    tcase_add_test(h, questions_that_a_trace_cannot_answer_are_refused_in_words);
    suite_add_tcase(s, c);
    suite_add_tcase(s, h);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
