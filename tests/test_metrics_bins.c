/* Bins by hand; steps and nodes that go through a file in pieces. */
#include "experiments/metrics_bins.h"
#include "engine/err.h"
#include "experiments/analyze.h"
#include "experiments/join.h"
#include "experiments/metrics.h"
#include "tests/toy_trace.h"
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MS = 1000000, MANY = 40000 };

static char dir[] = "/tmp/specbed-bins-XXXXXX";
static char path[64];

static void make_dir(void)
{
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/toy.h5", dir);
}

static void remove_dir(void)
{
    unlink(path);
    rmdir(dir);
    memcpy(dir + sizeof dir - 7, "XXXXXX", 6);
}

static void node(struct trace *t, int parent, int depth, int accepted, double q, int rank, double entropy)
{
    toy_trace_node(t, (struct trace_node){.parent = parent,
                                          .depth = depth,
                                          .accepted = accepted,
                                          .log_q = (float)log(q),
                                          .rank = rank,
                                          .entropy = (float)entropy});
}

/* A chain of three, the first accepted; a tree of two first tokens, the second accepted with a child that was
 * not. */
static void two_steps(struct trace *t)
{
    toy_trace_init(t, "toy.h5");
    toy_trace_arm(t, "head", "eagle3", "greedy", 0, 0);
    toy_trace_prompt(t, "qa", 0, 1);
    toy_trace_request(t, 0, 0, 0, 0, 1);
    toy_trace_step(t, (struct toy_step){3, 3, 1, 2, 0, MS});
    node(t, -1, 1, 1, 0.75, 1, 0.1);
    node(t, 0, 2, 0, 0.55, 2, 0.3);
    node(t, 1, 3, 0, 0.9, 9, 7);
    toy_trace_step(t, (struct toy_step){3, 2, 1, 2, 0, MS});
    node(t, -1, 1, 0, 0.625, 5, 0.3);
    node(t, -1, 1, 1, 0.25, 1, 0.3);
    node(t, 1, 2, 0, 0.125, 40, 2.1);
}

static void reload(struct trace *t)
{
    toy_trace_write(t, path);
    trace_deinit(t);
    ck_assert_msg(!trace_read(t, path, TRACE_READ_JUDGED), "%s", err_text());
}

START_TEST(only_nodes_behind_accepted_ones_are_judged)
{
    struct trace t;
    two_steps(&t);
    reload(&t);
    int64_t begin, end;
    ck_assert_int_eq(t.n_judged, 5);
    trace_judged_at(&t, 0, &begin, &end);
    ck_assert(begin == 0 && end == 2);
    trace_judged_at(&t, 1, &begin, &end);
    ck_assert(begin == 2 && end == 5);
    ck_assert(t.judged[1].rank == 2 && t.judged[1].depth == 2 && !t.judged[1].accepted);
    trace_deinit(&t);
}
END_TEST

/* Judged: q .75 yes, .55 no, .625 no, .25 yes, .125 no. Each is a bin of its own: |1 - .75| + .55 + .625 + |1
 * - .25| + .125 = 2.3, over 5. */
START_TEST(calibration_is_as_worked_out_by_hand)
{
    struct trace t;
    struct metrics_bin bins[METRICS_BINS] = {{0, 0, 0}};
    two_steps(&t);
    reload(&t);
    metrics_bin_request(bins, METRICS_CONFIDENCE, &t, 0);
    ck_assert_double_eq_tol(metrics_ece(bins), 2.3 / 5, 1e-6); /* log q is stored as f32 */
    ck_assert(bins[7].n == 1 && bins[7].hits == 1 && bins[2].n == 1 && bins[2].hits == 1);
    ck_assert(bins[5].n == 1 && bins[5].hits == 0 && bins[6].n == 1 && bins[1].n == 1 && bins[9].n == 0);
    ck_assert(!metrics_bins_are_void(bins, METRICS_CONFIDENCE));
    trace_deinit(&t);
}
END_TEST

/* Ranks judged: 1 yes, 2 no, 5 no, 1 yes, 40 no. Entropies: .1 yes, .3 no, .3 no, .3 yes, 2.1 no. */
START_TEST(ranks_and_entropies_fall_into_their_bins)
{
    struct trace t;
    struct metrics_bin rank[METRICS_BINS] = {{0, 0, 0}}, entropy[METRICS_BINS] = {{0, 0, 0}};
    two_steps(&t);
    reload(&t);
    metrics_bin_request(rank, METRICS_RANK, &t, 0);
    ck_assert(rank[0].n == 2 && rank[0].hits == 2 && rank[1].n == 1 && rank[3].n == 1 && rank[5].n == 1);
    ck_assert(metrics_bin_from(METRICS_RANK, 3) == 4 && metrics_bin_to(METRICS_RANK, 3) == 6);
    metrics_bin_request(entropy, METRICS_ENTROPY, &t, 0);
    ck_assert(entropy[0].n == 1 && entropy[0].hits == 1 && entropy[1].n == 3 && entropy[1].hits == 1);
    ck_assert(entropy[6].n == 1 && entropy[6].hits == 0);
    trace_deinit(&t);
}
END_TEST

START_TEST(steps_are_binned_by_turn_and_by_context)
{
    struct trace t;
    struct metrics_bin turn[METRICS_BINS] = {{0, 0, 0}}, context[METRICS_BINS] = {{0, 0, 0}};
    two_steps(&t);
    metrics_bin_request(turn, METRICS_TURN, &t, 0);
    ck_assert(turn[0].n == 0 && turn[1].n == 2 && turn[1].hits == 4);
    t.steps[0].position = 63;
    t.steps[1].position = 64;
    metrics_bin_request(context, METRICS_CONTEXT, &t, 0);
    ck_assert(context[0].n == 1 && context[1].n == 1 && context[0].sum == 63);
    trace_deinit(&t);
}
END_TEST

START_TEST(what_was_never_measured_is_void)
{
    struct metrics_bin bins[METRICS_BINS] = {{0, 0, 0}};
    ck_assert(metrics_bins_are_void(bins, METRICS_RANK) && isnan(metrics_ece(bins)));
    bins[9] = (struct metrics_bin){4, 2, 4};
    ck_assert(metrics_bins_are_void(bins, METRICS_CONFIDENCE) && !metrics_bins_are_void(bins, METRICS_RANK));
    bins[9].sum = 0;
    ck_assert(metrics_bins_are_void(bins, METRICS_ENTROPY));
}
END_TEST

/* More steps than a piece holds, with trees and steps without a draft. */
static void many_steps(struct trace *t, int salt)
{
    toy_trace_init(t, "toy.h5");
    toy_trace_arm(t, "head", "eagle3", "greedy", 0, 0);
    toy_trace_prompt(t, "qa", salt, 0);
    toy_trace_request(t, 0, 0, 0, 0, 1);
    for (int i = 0; i < MANY; i++) {
        int n = (i + salt) % 3, accepted = n > 0 && i % 2;
        toy_trace_step(t, (struct toy_step){n, n, accepted, accepted + 1, 0, MS + i});
        for (int k = 0; k < n; k++)
            node(t, k - 1, k + 1, k < accepted, 0.5, 1 + i % 7, 1 + i % 3);
    }
}

static void compare_sums(const struct trace *a, const struct trace *b)
{
    struct metrics_sums x = {0}, y = {0};
    for (int64_t i = 0; i < a->n_requests; i++)
        metrics_request(&x, a, i);
    for (int64_t i = 0; i < b->n_requests; i++)
        metrics_request(&y, b, i);
    ck_assert_mem_eq(&x, &y, sizeof x);
}

START_TEST(steps_read_in_pieces_are_the_steps_of_the_file)
{
    struct trace full, lean;
    many_steps(&full, 0);
    toy_trace_write(&full, path);
    ck_assert_msg(!trace_read(&lean, path, TRACE_READ_JUDGED), "%s", err_text());
    ck_assert(lean.n_steps == MANY && !lean.steps && full.steps);
    compare_sums(&full, &lean);
    for (int64_t i = 0; i < MANY; i++) {
        struct trace_step s = trace_step_at(&lean, i);
        ck_assert(s.ns_total == full.steps[i].ns_total && s.position == full.steps[i].position);
        int64_t begin, end;
        trace_judged_at(&lean, i, &begin, &end);
        ck_assert_int_eq(end - begin,
                         full.steps[i].proposed < 2 ? full.steps[i].proposed : 1 + full.steps[i].accepted);
        ck_assert(begin == end || lean.judged[begin].rank == 1 + i % 7);
    }
    trace_deinit(&full);
    trace_deinit(&lean);
}
END_TEST

START_TEST(joined_files_keep_their_judged_nodes)
{
    struct trace a, b, one, two;
    many_steps(&one, 0);
    many_steps(&two, 1);
    toy_trace_write(&one, path);
    ck_assert_int_eq(trace_read(&a, path, TRACE_READ_JUDGED), 0);
    toy_trace_write(&two, path);
    ck_assert_int_eq(trace_read(&b, path, TRACE_READ_JUDGED), 0);
    int64_t judged = a.n_judged + b.n_judged;
    ck_assert_msg(!join_append(&a, &b), "%s", err_text());
    ck_assert_int_eq(a.n_judged, judged);
    struct metrics_bin bins[METRICS_BINS] = {{0, 0, 0}};
    double n = 0;
    for (int64_t i = 0; i < 2; i++)
        metrics_bin_request(bins, METRICS_RANK, &a, i);
    for (int i = 0; i < METRICS_BINS; i++)
        n += bins[i].n;
    ck_assert(n == (double)judged);
    trace_deinit(&a);
    trace_deinit(&b);
    trace_deinit(&one);
    trace_deinit(&two);
}
END_TEST

START_TEST(analyze_breaks_down_and_says_what_is_missing)
{
    struct trace t;
    struct analyze_opts opts = analyze_defaults();
    two_steps(&t);
    reload(&t);
    opts.form = ANALYZE_JSON;
    opts.axes = 1u << METRICS_CONFIDENCE;
    char *text = toy_trace_print(&t, &opts);
    json_t *doc = json_loads(text, 0, NULL), *rows = json_object_get(doc, "breakdown");
    ck_assert_uint_eq(json_array_size(rows), 5);
    ck_assert_double_eq_tol(json_real_value(json_object_get(json_array_get(rows, 0), "ece")), 0.46, 1e-6);
    json_decref(doc);
    free(text);
    for (int64_t i = 0; i < t.n_judged; i++)
        t.judged[i].log_q = 0;
    ck_assert_int_eq(analyze_trace(&t, &opts, stderr), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "without probabilities"));
    t.n_judged = 0;
    ck_assert_int_eq(analyze_trace(&t, &opts, stderr), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "run with --set trace.level=nodes"));
    trace_deinit(&t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("metrics_bins");
    TCase *c = tcase_create("bins");
    tcase_add_checked_fixture(c, make_dir, remove_dir);
    tcase_add_test(c, only_nodes_behind_accepted_ones_are_judged);
    tcase_add_test(c, calibration_is_as_worked_out_by_hand);
    tcase_add_test(c, ranks_and_entropies_fall_into_their_bins);
    tcase_add_test(c, steps_are_binned_by_turn_and_by_context);
    tcase_add_test(c, what_was_never_measured_is_void);
    tcase_add_test(c, steps_read_in_pieces_are_the_steps_of_the_file);
    tcase_add_test(c, joined_files_keep_their_judged_nodes);
    tcase_add_test(c, analyze_breaks_down_and_says_what_is_missing);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
