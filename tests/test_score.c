/* score: a given answer is judged exactly as it was when it was generated, and the distance of two models is
 * what the formula says. */
#include "experiments/score.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/run.h"
#include "tests/toy_dir.h"
#include "tests/toy_loop.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REQUESTS = 6, CAP = TOY_PROMPT + TOY_ANSWER };

static void ok(int rc)
{
    ck_assert_msg(rc == 0, "%s", err_text());
}

/* ---- the distance of two distributions ---- */

START_TEST(a_distribution_is_at_distance_zero_from_itself)
{
    float x[] = {1.5f, -2.25f, 0.125f, 7, -30, 0.3f}, y[6];
    ck_assert(score_kl(x, x, 6) == 0);
    ck_assert(score_kl(x, x, 1) == 0);
    for (int v = 0; v < 6; v++)
        y[v] = x[v] + 1000; /* the same distribution: adding and taking 1000 away rounds at 2^-14 */
    double kl = score_kl(x, y, 6);
    ck_assert_msg(kl >= 0 && kl < 1e-6, "%g", kl);
}
END_TEST

START_TEST(the_distance_of_known_distributions_is_known)
{
    /* p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): KL = 1/2 ln 2 - 1/4 ln 2 */
    float p[] = {(float)log(0.5), (float)log(0.25), (float)log(0.25)};
    float q[] = {(float)log(0.25), (float)log(0.25), (float)log(0.5)};
    ck_assert_double_eq_tol(score_kl(p, q, 3), 0.25 * log(2), 1e-7);
    /* what p excludes does not count, what q excludes and p does not is infinitely far */
    float none[] = {0, -INFINITY}, both[] = {0, 0};
    ck_assert_double_eq_tol(score_kl(none, both, 2), log(2), 1e-15);
    ck_assert(score_kl(none, none, 2) == 0);
    ck_assert(isinf(score_kl(both, none, 2)));
}
END_TEST

/* ---- one answer ---- */

static void open_fp8(struct toy *t)
{
    const struct model_config cfg = toy_config();
    *t = (struct toy){.model = {.be = NULL}};
    ok(backend_open(&t->be, "cpu", &(struct backend_opts){.threads = 1, .isa = "auto"}));
    ok(model_synthetic(&t->model, &t->be, &cfg, TOY_SEED, &(struct model_opts){.weights = MODEL_FP8}));
}

static void generate(struct model *m, struct toy_answer out[REQUESTS])
{
    static const int lengths[REQUESTS] = {TOY_ANSWER, 1, 64, 65, 63, 30};
    struct toy_draft draft = toy_draft("none", NULL);
    struct spec_opts opts = toy_spec_opts(&draft);
    toy_run(m, &opts, REQUESTS, lengths, out);
}

START_TEST(a_generated_answer_is_scored_with_the_bits_of_its_generation)
{
    struct toy t;
    struct toy_answer given[REQUESTS];
    struct score *s;
    ok(toy_open(&t, 1));
    generate(&t.model, given);
    ok(score_open(&s, &t.model, NULL, CAP));
    ck_assert_uint_gt(score_bytes(s), 0);
    for (int i = 0; i < REQUESTS; i++) {
        struct trace_score got[TOY_ANSWER];
        int prompt[TOY_PROMPT], n = toy_prompt(i, prompt);
        int64_t ns = -1;
        ok(score_answer(s, prompt, n, given[i].tokens, given[i].n, got, &ns));
        ck_assert_int_ge(ns, 0);
        for (int k = 0; k < given[i].n; k++) {
            ck_assert_int_eq(got[k].token, given[i].tokens[k]);
            ck_assert_int_eq(got[k].position, n + k);
            ck_assert_msg(!memcmp(&got[k].log_p, &given[i].log_p[k], sizeof(float)),
                          "request %d, token %d: %a, generated with %a", i, k, (double)got[k].log_p,
                          (double)given[i].log_p[k]);
            /* greedy took the most probable token; the model is its own reference */
            ck_assert(got[k].rank == 1 && got[k].top1 == 1 && got[k].agree == 1 && got[k].kl == 0);
            ck_assert(got[k].entropy > 0 && got[k].entropy < logf(TOY_VOCAB) + 1e-4f);
        }
    }
    score_close(s);
    toy_close(&t);
}
END_TEST

START_TEST(a_model_beside_itself_is_at_distance_zero)
{
    struct toy a, b;
    struct toy_answer given[REQUESTS];
    struct trace_score got[TOY_ANSWER];
    struct score *s;
    int prompt[TOY_PROMPT], n = toy_prompt(0, prompt);
    int64_t ns;
    ok(toy_open(&a, 1));
    ok(toy_open(&b, 1));
    generate(&a.model, given);
    ok(score_open(&s, &a.model, &b.model, CAP));
    ok(score_answer(s, prompt, n, given[0].tokens, given[0].n, got, &ns));
    for (int k = 0; k < given[0].n; k++)
        ck_assert(got[k].kl == 0 && got[k].agree == 1);
    score_close(s);
    toy_close(&b);
    toy_close(&a);
}
END_TEST

/* Logits of every position of a text from one pass, without prefill. */
struct plain {
    struct kv kv;
    struct forward fw;
};

static void plain_open(struct plain *p, struct model *m, const int *text, int n)
{
    struct forward_row rows[CAP];
    *p = (struct plain){.kv = {.be = NULL}};
    ok(kv_init(&p->kv, m->be, m, 1, CAP));
    ok(forward_init(&p->fw, m, &p->kv, CAP, CAP));
    for (int i = 0; i < n; i++)
        rows[i] = (struct forward_row){.token = text[i], .slot = 0, .parent = i - 1};
    ok(forward_run(&p->fw, rows, n, FORWARD_LOGITS));
}

static void plain_close(struct plain *p)
{
    forward_deinit(&p->fw);
    kv_deinit(&p->kv);
}

static double log_p(const float *row, int v)
{
    double sum = 0;
    for (int i = 0; i < TOY_VOCAB; i++)
        sum += exp((double)row[i]);
    return row[v] - log(sum);
}

static int best(const float *row)
{
    int v = 0;
    for (int i = 1; i < TOY_VOCAB; i++)
        v = row[i] > row[v] ? i : v;
    return v;
}

START_TEST(another_model_is_as_far_away_as_a_plain_sum_says)
{
    struct toy stored, fp8;
    struct toy_answer given[REQUESTS];
    struct trace_score got[TOY_ANSWER];
    struct plain ref, arm;
    struct score *s;
    int text[CAP], n = toy_prompt(0, text), disagree = 0;
    int64_t ns;
    ok(toy_open(&stored, 1));
    open_fp8(&fp8);
    generate(&stored.model, given);
    memcpy(text + n, given[0].tokens, sizeof(int) * TOY_ANSWER);
    ok(score_open(&s, &fp8.model, &stored.model, CAP));
    ok(score_answer(s, text, n, given[0].tokens, TOY_ANSWER, got, &ns));
    plain_open(&ref, &stored.model, text, n + TOY_ANSWER - 1);
    plain_open(&arm, &fp8.model, text, n + TOY_ANSWER - 1);
    for (int k = 0; k < TOY_ANSWER; k++) {
        const float *p = ref.fw.host_logits + (n - 1 + k) * TOY_VOCAB;
        const float *q = arm.fw.host_logits + (n - 1 + k) * TOY_VOCAB;
        double kl = 0;
        for (int v = 0; v < TOY_VOCAB; v++)
            kl += exp(log_p(p, v)) * (log_p(p, v) - log_p(q, v));
        ck_assert_msg(got[k].kl > 0, "token %d: KL %g", k, (double)got[k].kl);
        /* both are doubles of magnitude 1, and the score was rounded to float */
        ck_assert_double_eq_tol(got[k].kl, kl, 1e-12 + kl * 0x1p-23);
        ck_assert_int_eq(got[k].agree, best(p) == best(q));
        ck_assert_int_eq(got[k].top1, best(q) == got[k].token);
        ck_assert_int_eq(got[k].rank, logits_rank(q, TOY_VOCAB, got[k].token));
        ck_assert_float_eq_tol(got[k].log_p, (float)log_p(q, got[k].token), 1e-5f);
        disagree += !got[k].agree;
    }
    ck_assert_int_lt(disagree, TOY_ANSWER);
    plain_close(&ref);
    plain_close(&arm);
    score_close(s);
    toy_close(&fp8);
    toy_close(&stored);
}
END_TEST

START_TEST(ids_outside_the_vocabulary_are_named)
{
    struct toy t;
    struct trace_score got[2];
    struct score *s;
    int64_t ns;
    ok(toy_open(&t, 1));
    ok(score_open(&s, &t.model, NULL, 8));
    ck_assert_int_eq(score_answer(s, (int[]){1}, 1, (int[]){2, TOY_VOCAB}, 2, got, &ns), ERR_LIMIT);
    ck_assert_ptr_nonnull(strstr(err_text(), "token 1 of the answer: expected an id from 0 to 96, found 97"));
    ck_assert_int_eq(score_answer(s, (int[]){1}, 1, (int[]){-1}, 1, got, &ns), ERR_LIMIT);
    ck_assert_int_eq(score_answer(s, (int[]){TOY_VOCAB, 1}, 2, (int[]){2}, 1, got, &ns), ERR_LIMIT);
    ok(score_answer(s, (int[]){1}, 1, (int[]){2, 3}, 2, got, &ns));
    score_close(s);
    toy_close(&t);
}
END_TEST

/* ---- whole runs ---- */

static struct toy_dir toy;
static char answers[100];

static void setup(void)
{
    log_set_level(LOG_ERROR);
    ck_assert_int_eq(toy_dir_make(&toy, SPECBED_GOLDEN_DIR), 0);
    snprintf(answers, sizeof answers, "workload.answers=%s/answers.h5", toy.path);
    ck_assert_ptr_nonnull(freopen("/dev/null", "w", stdout)); /* the closing tables */
}

static void teardown(void)
{
    toy_dir_remove(&toy);
}

static int run_with(const char *name, const char *const *sets, int n, enum record_mode mode)
{
    char out[128];
    snprintf(out, sizeof out, "%s/%s", toy.path, name);
    struct run_opts opts = {
        .config = toy.config, .sets = sets, .n_sets = n, .out = out, .mode = mode, .of = 1, .no_progress = 1};
    return run_experiment(&opts);
}

static struct trace read_back(const char *name)
{
    char out[128];
    struct trace t;
    snprintf(out, sizeof out, "%s/%s", toy.path, name);
    ck_assert_msg(trace_read(&t, out, TRACE_READ_ALL) == 0, "%s", err_text());
    ck_assert_str_eq(t.meta.status, "complete");
    return t;
}

static struct trace generated(void)
{
    const char *sets[] = {"workload.concurrency=3", "workload.repeats=2", "sampling.rule=coupled",
                          "sampling.temperature=0.7"};
    ok(run_with("answers.h5", sets, 4, RECORD_NEW));
    return read_back("answers.h5");
}

static const struct trace_request *find_request(const struct trace *t, int arm, uint32_t request)
{
    for (int64_t i = 0; i < t->n_requests; i++)
        if (t->requests[i].arm == arm && t->requests[i].request == request)
            return &t->requests[i];
    ck_abort_msg("%s: no request %u in arm %d", t->path, request, arm);
    return NULL;
}

static double perplexity(const struct trace *t, int arm)
{
    double sum = 0, n = 0;
    for (int64_t i = 0; i < t->n_requests; i++)
        for (int64_t k = 0; t->requests[i].arm == arm && k < t->requests[i].tokens; k++, n++)
            sum -= (double)t->tokens[t->requests[i].token_begin + k].log_p;
    return exp(sum / n);
}

START_TEST(every_arm_scores_the_same_text_and_the_stored_one_as_it_was_generated)
{
    enum { ARMS = 5 };
    char arms[400];
    snprintf(
        arms, sizeof arms,
        "arms=[{model.weights: bf16}, {model.weights: fp8}, {model.weights: fp8, model.activations: fp8}, "
        "{label: KV8, model.kv: fp8}, {label: S8, model.weights: fp8, model.activations: fp8-static, "
        "model.calibration: %s}]",
        toy.config); /* a text like any other */
    const char *sets[] = {answers, "workload.mode=score", "workload.repeats=2", "sampling.rule=coupled",
                          arms};
    struct trace gen = generated();
    ok(run_with("score.h5", sets, 5, RECORD_NEW));
    struct trace t = read_back("score.h5");
    ck_assert_int_eq(t.n_arms, ARMS);
    ck_assert_str_eq(t.arms[2].label, "weights fp8, activations fp8");
    ck_assert_str_eq(t.arms[3].label, "KV8");
    ck_assert_ptr_nonnull(strstr(t.arms[2].config, "activations: fp8"));
    ck_assert_int_eq(t.n_requests, ARMS * 2 * TOY_DIR_REQUESTS);
    ck_assert_int_eq(t.n_scores, t.n_tokens);
    ck_assert_int_eq(t.n_steps, 0);
    double distance[ARMS] = {0};
    for (int64_t i = 0; i < t.n_requests; i++) {
        const struct trace_request *q = &t.requests[i], *g = find_request(&gen, 0, q->request);
        ck_assert_int_eq(q->finish, TRACE_SCORED);
        ck_assert_uint_eq(q->hash, g->hash);
        ck_assert_int_eq(q->tokens, g->tokens);
        ck_assert_int_eq(q->prompt_tokens, g->prompt_tokens);
        ck_assert_mem_eq(t.prompt_tokens + q->prompt_begin, gen.prompt_tokens + g->prompt_begin,
                         (size_t)q->prompt_tokens * sizeof(int32_t));
        for (int64_t k = 0; k < q->tokens; k++) {
            const struct trace_score *s = &t.scores[q->score_begin + k];
            const struct trace_token *was = &gen.tokens[g->token_begin + k];
            ck_assert_int_eq(s->token, was->id);
            ck_assert_int_eq(s->position, q->prompt_tokens + k);
            ck_assert(s->log_p == t.tokens[q->token_begin + k].log_p);
            ck_assert((s->rank == 1) == (s->top1 == 1));
            if (q->arm == 0)
                ck_assert(s->log_p == was->log_p && s->kl == 0 && s->agree == 1);
            distance[q->arm] += (double)s->kl;
        }
    }
    ck_assert(distance[0] == 0 && distance[1] > 0 && distance[2] > 0 && distance[3] > 0);
    ck_assert(distance[1] != distance[2] && distance[4] > 0 && distance[4] != distance[2]);
    ck_assert(perplexity(&t, 0) == perplexity(&gen, 0));
    ck_assert(perplexity(&t, 1) != perplexity(&gen, 0));
    trace_deinit(&t);
    trace_deinit(&gen);
}
END_TEST

START_TEST(an_answer_is_cut_where_max_tokens_says_and_the_next_turn_holds_it_whole)
{
    const char *sets[] = {answers, "workload.mode=score", "workload.max_tokens=5", "sampling.rule=coupled"};
    struct trace gen = generated();
    ok(run_with("score.h5", sets, 4, RECORD_NEW));
    struct trace t = read_back("score.h5");
    ck_assert_int_eq(t.n_requests, TOY_DIR_REQUESTS);
    for (int64_t i = 0; i < t.n_requests; i++) {
        const struct trace_request *q = &t.requests[i], *g = find_request(&gen, 0, q->request);
        ck_assert_int_eq(q->tokens, g->tokens < 5 ? g->tokens : 5);
        ck_assert_int_eq(q->prompt_tokens, g->prompt_tokens);
    }
    trace_deinit(&t);
    trace_deinit(&gen);
}
END_TEST

START_TEST(resuming_a_complete_score_repeats_nothing)
{
    const char *sets[] = {answers, "workload.mode=score", "sampling.rule=coupled", "model.kv=fp8"};
    struct trace gen = generated();
    ok(run_with("score.h5", sets, 4, RECORD_NEW));
    struct trace t = read_back("score.h5");
    ok(run_with("score.h5", sets, 4, RECORD_RESUME));
    struct trace again = read_back("score.h5");
    ck_assert_int_eq(again.n_requests, t.n_requests);
    ck_assert_int_eq(again.n_scores, t.n_scores);
    for (int64_t i = 0; i < t.n_requests; i++)
        ck_assert_int_eq(again.requests[i].ns_first, t.requests[i].ns_first);
    trace_deinit(&again);
    trace_deinit(&t);
    trace_deinit(&gen);
}
END_TEST

START_TEST(answers_that_do_not_fit_are_refused_in_words)
{
    const char *missing[] = {answers, "workload.mode=score", "workload.repeats=3", "sampling.rule=coupled"};
    const char *both[] = {answers, "sweep.workload.mode=[generate, score]"};
    const char *nowhere[] = {"workload.answers=/nonexistent.h5", "workload.mode=score"};
    const char *tight[] = {answers, "workload.mode=score", "model.max_context=12"};
    char weights[128];
    struct trace gen = generated();
    ck_assert_int_eq(run_with("a.h5", missing, 4, RECORD_NEW), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "has no answer to prompt '1' of 'prompts', turn 0, repeat 2"));
    ck_assert_int_eq(run_with("b.h5", both, 2, RECORD_NEW), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "workload.mode: expected one mode a file"));
    ck_assert_int_eq(run_with("c.h5", nowhere, 2, RECORD_NEW), ERR_IO);
    ck_assert_ptr_nonnull(strstr(err_text(), "reading workload.answers"));
    ck_assert_int_eq(run_with("d.h5", tight, 3, RECORD_NEW), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "a context of 12 tokens"));
    snprintf(weights, sizeof weights, "%s/model.safetensors", toy.model);
    FILE *f = fopen(weights, "r+b");
    ck_assert_int_eq(fseek(f, -4, SEEK_END), 0);
    ck_assert_uint_eq(fwrite("\0\0\0\0", 1, 4, f), 4);
    fclose(f);
    ck_assert_int_eq(run_with("e.h5", missing, 4, RECORD_NEW), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "same model"));
    trace_deinit(&gen);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("score");
    TCase *maths = tcase_create("maths"), *one = tcase_create("one answer"), *runs = tcase_create("runs");
    tcase_add_test(maths, a_distribution_is_at_distance_zero_from_itself);
    tcase_add_test(maths, the_distance_of_known_distributions_is_known);
    tcase_add_test(one, a_generated_answer_is_scored_with_the_bits_of_its_generation);
    tcase_add_test(one, a_model_beside_itself_is_at_distance_zero);
    tcase_add_test(one, another_model_is_as_far_away_as_a_plain_sum_says);
    tcase_add_test(one, ids_outside_the_vocabulary_are_named);
    tcase_add_checked_fixture(runs, setup, teardown);
    tcase_set_timeout(one, 60);
    tcase_set_timeout(runs, 300);
    tcase_add_test(runs, every_arm_scores_the_same_text_and_the_stored_one_as_it_was_generated);
    tcase_add_test(runs, an_answer_is_cut_where_max_tokens_says_and_the_next_turn_holds_it_whole);
    tcase_add_test(runs, resuming_a_complete_score_repeats_nothing);
    tcase_add_test(runs, answers_that_do_not_fit_are_refused_in_words);
    suite_add_tcase(s, maths);
    suite_add_tcase(s, one);
    suite_add_tcase(s, runs);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
