/* The decode loop: answers end exactly where plain decoding ends them, records say what happened, bad
 * requests get a sentence. */
#include "engine/err.h"
#include "tests/expect.h"
#include "tests/toy_loop.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REQUESTS = 8 };
static struct toy toy;
static struct toy_answer plain[TOY_REQUESTS], answer[TOY_REQUESTS];

static void setup(void)
{
    toy_open_plain(&toy, REQUESTS, plain);
}

/* The same loop as on a device: two steps are under way behind the one that is waited for. */
static void setup_ahead(void)
{
    setup();
    toy.be.ahead = 2;
}

static void teardown(void)
{
    toy_close(&toy);
}

/* A perfect draft of depth 8, so that every end falls inside a step of many tokens. */
static struct spec_opts deep_opts(const struct toy_draft *oracle)
{
    struct spec_opts o = toy_spec_opts(oracle);
    o.max_depth = o.max_nodes = 8;
    o.slots = 3;
    o.reference = toy_reference;
    o.reference_ctx = plain;
    return o;
}

/* The plain answer cut after n tokens. */
static struct toy_answer cut(const struct toy_answer *a, int n, enum finish reason)
{
    struct toy_answer c = *a;
    c.n = n;
    c.reason = reason;
    return c;
}

START_TEST(a_budget_is_met_exactly_by_steps_of_many_tokens)
{
    struct toy_draft oracle = toy_draft("oracle", NULL);
    struct spec_opts o = deep_opts(&oracle);
    for (int budget = 1; budget <= 20; budget++) {
        int max_tokens[REQUESTS];
        for (int i = 0; i < REQUESTS; i++)
            max_tokens[i] = budget;
        toy_run(&toy.model, &o, REQUESTS, max_tokens, answer);
        for (int i = 0; i < REQUESTS; i++) {
            struct toy_answer expected = cut(&plain[i], budget, FINISH_LENGTH);
            toy_assert_same(&expected, &answer[i], "budget");
            ck_assert_int_eq(answer[i].steps, (budget + 8) / 9);
        }
    }
}
END_TEST

START_TEST(a_stop_token_inside_an_accepted_path_ends_the_answer_there)
{
    struct toy_draft none = toy_draft("none", NULL), oracle = toy_draft("oracle", NULL);
    int stopped = 0;
    for (int token = 0; token < TOY_VOCAB; token += 4) {
        struct spec_opts o = deep_opts(&oracle), n = toy_spec_opts(&none);
        o.stop = n.stop = (struct stop_rules){.tokens = &token, .n_tokens = 1};
        toy_run(&toy.model, &o, REQUESTS, NULL, answer);
        for (int i = 0; i < REQUESTS; i++) {
            int at = 0;
            while (at < plain[i].n && plain[i].tokens[at] != token)
                at++;
            struct toy_answer expected =
                at < plain[i].n ? cut(&plain[i], at + 1, FINISH_STOP_TOKEN) : plain[i];
            toy_assert_same(&expected, &answer[i], "stop token");
            stopped += at < plain[i].n;
        }
        static struct toy_answer again[TOY_REQUESTS];
        toy_run(&toy.model, &n, REQUESTS, NULL, again);
        for (int i = 0; i < REQUESTS; i++)
            toy_assert_same(&again[i], &answer[i], "stop token, plain");
    }
    ck_assert_int_gt(stopped, 10);
}
END_TEST

/* With every draft: under way are then steps of a text that is already cut. */
START_TEST(a_stop_string_across_steps_ends_where_plain_decoding_ends)
{
    struct tokenizer *tokenizer = toy_letters();
    const struct toy_draft draft[] = {toy_draft("oracle", "accept=0.8", NULL), toy_draft("none", NULL),
                                      toy_draft("ngram", "branches=2", NULL)};
    static struct toy_answer expected[TOY_REQUESTS];
    const int ahead = toy.be.ahead;
    int stopped = 0;
    for (int from = 0; from < 14; from++) { /* steps have up to 9 tokens: some strings lie across a border */
        char text[8];
        const char *const strings[] = {"never said", text};
        const struct stop_rules stop = {.strings = strings, .n_strings = 2, .tokenizer = tokenizer};
        if (!toy_spell(&plain[from % REQUESTS], from, 1 + from % 5, text))
            continue;
        struct spec_opts n = toy_spec_opts(&draft[1]);
        n.stop = stop;
        toy.be.ahead = 0;
        toy_run(&toy.model, &n, REQUESTS, NULL, expected);
        toy.be.ahead = ahead;
        for (size_t d = 0; d < sizeof draft / sizeof *draft; d++) {
            struct spec_opts o = deep_opts(&draft[d]);
            o.stop = stop;
            toy_run(&toy.model, &o, REQUESTS, NULL, answer);
            for (int i = 0; i < REQUESTS; i++) {
                toy_assert_same(&expected[i], &answer[i], "stop string");
                struct toy_answer prefix = cut(&plain[i], expected[i].n, expected[i].reason);
                toy_assert_same(&prefix, &answer[i], "stop string, prefix");
            }
            ck_assert_int_eq(answer[from % REQUESTS].reason, FINISH_STOP_STRING);
            ck_assert_int_le(answer[from % REQUESTS].n, from + 1 + from % 5);
        }
        stopped++;
    }
    ck_assert_int_gt(stopped, 7);
    tokenizer_close(tokenizer);
}
END_TEST

START_TEST(a_text_that_reaches_the_models_context_ends_there)
{
    struct toy_draft oracle = toy_draft("oracle", NULL);
    struct spec_opts o = deep_opts(&oracle);
    int prompt[TOY_PROMPT], longest = 0;
    for (int i = 0; i < REQUESTS; i++) {
        int n = toy_prompt(i, prompt);
        longest = n > longest ? n : longest;
    }
    toy.model.cfg.max_positions =
        longest + 3; /* the loop reads it at open; the text alone is shorter than cap */
    toy_run(&toy.model, &o, REQUESTS, NULL, answer);
    for (int i = 0; i < REQUESTS; i++) {
        int room = longest + 3 - toy_prompt(i, prompt);
        struct toy_answer expected = room < plain[i].n ? cut(&plain[i], room, FINISH_CONTEXT) : plain[i];
        toy_assert_same(&expected, &answer[i], "context");
    }
}
END_TEST

static struct spec *open_loop(const struct spec_opts *o)
{
    struct spec *s = NULL;
    ck_assert_msg(spec_open(&s, &toy.model, o) == 0, "%s", err_text());
    return s;
}

START_TEST(requests_that_cannot_be_served_are_errors_that_say_so)
{
    struct toy_draft none = toy_draft("none", NULL);
    struct spec_opts o = toy_spec_opts(&none);
    o.cap = 20;
    struct spec *s = open_loop(&o);
    int prompt[30] = {1, 2, 3}, wrong[] = {1, TOY_VOCAB}, negative[] = {-1};
    const struct {
        struct spec_request r;
        int code;
        const char *says;
    } bad[] = {
        {{prompt, 21, 1, 0, NULL}, ERR_LIMIT, "at most 20 tokens"},
        {{prompt, 10, 11, 0, NULL}, ERR_LIMIT, "found 10 + 11"},
        {{prompt, 10, 2147483647, 0, NULL}, ERR_LIMIT, "at most 20 tokens"},
        {{prompt, 0, 5, 0, NULL}, ERR_CONFIG, "at least 1 token"},
        {{prompt, 3, 0, 0, NULL}, ERR_CONFIG, "at least 1 token"},
        {{wrong, 2, 5, 0, NULL}, ERR_CONFIG, "found 97"},
        {{negative, 1, 5, 0, NULL}, ERR_CONFIG, "found -1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_int_eq(spec_submit(s, &bad[i].r), bad[i].code);
        ck_assert_msg(strstr(err_text(), bad[i].says) != NULL, "%s", err_text());
        ck_assert_int_eq(spec_active(s), 0);
    }
    const struct spec_request good = {prompt, 10, 10, 0, NULL};
    ck_assert_int_eq(spec_submit(s, &good), 0);
    ck_assert_int_eq(spec_free_slots(s), 0);
    ck_assert_int_eq(spec_submit(s, &good), ERR_LIMIT);
    ck_assert_ptr_nonnull(strstr(err_text(), "free slot"));
    spec_close(s);
}
END_TEST

START_TEST(a_prompt_that_fills_the_models_context_is_refused)
{
    struct toy_draft none = toy_draft("none", NULL);
    struct spec_opts o = toy_spec_opts(&none);
    toy.model.cfg.max_positions = 12;
    struct spec *s = open_loop(&o);
    int prompt[12] = {0};
    const struct spec_request full = {prompt, 12, 1, 0, NULL}, fits = {prompt, 11, 1, 0, NULL};
    ck_assert_int_eq(spec_submit(s, &full), ERR_LIMIT);
    ck_assert_ptr_nonnull(strstr(err_text(), "context"));
    ck_assert_int_eq(spec_submit(s, &fits), 0);
    struct spec_step step;
    ck_assert_msg(spec_step(s, &step) == 0, "%s", err_text());
    ck_assert_int_eq(step.n_finished, 1);
    ck_assert_int_eq(step.finished[0].n, 1);
    ck_assert_int_eq(step.finished[0].reason, FINISH_LENGTH); /* before the context, which ends there too */
    spec_close(s);
}
END_TEST

START_TEST(options_out_of_range_are_errors_that_say_so)
{
    struct toy_draft ngram = toy_draft("ngram", NULL),
                     contradicts = toy_draft("ngram", "min=4", "max=2", NULL),
                     large = toy_draft("ngram", "max=33", NULL), half = toy_draft("ngram", "min=1.5", NULL),
                     oracle = toy_draft("oracle", NULL);
    struct spec_opts o[16];
    for (int i = 0; i < 16; i++)
        o[i] = toy_spec_opts(&ngram);
    o[0].slots = 0;
    o[1].cap = 1;
    o[2].max_nodes = -1;
    o[3].sampling.temperature = -1;
    o[4].sampling.temperature = NAN;
    o[5].sampling.top_p = 0;
    o[6].sampling.min_p = 1.5f;
    o[7].sampling.top_k = -1;
    o[8].draft_option = contradicts.option;
    o[9].draft_option = large.option;
    o[10].draft_option = half.option;
    o[11].rule = accept_rule_find("relaxed");
    o[11].sampling.relaxed_top_k = 0;
    o[12].rule = accept_rule_find("relaxed");
    o[12].sampling.relaxed_delta = 2;
    o[13].prefill_block = -1;
    o[14] = toy_spec_opts(&oracle);
    const char *const empty[] = {""};
    o[15].stop = (struct stop_rules){.strings = empty, .n_strings = 1};
    for (int i = 0; i < 16; i++) {
        struct spec *s = NULL;
        err_clear();
        ck_assert_int_eq(spec_open(&s, &toy.model, &o[i]), ERR_CONFIG);
        ck_assert_ptr_nonnull(strstr(err_text(), "expected"));
        ck_assert_ptr_null(s);
    }
}
END_TEST

START_TEST(a_step_without_requests_does_nothing)
{
    struct toy_draft none = toy_draft("none", NULL);
    struct spec_opts o = toy_spec_opts(&none);
    struct spec *s = open_loop(&o);
    struct spec_step step = {.n_records = 5, .n_finished = 5};
    ck_assert_int_eq(spec_step(s, &step), 0);
    ck_assert_int_eq(step.n_records, 0);
    ck_assert_int_eq(step.n_finished, 0);
    ck_assert(spec_bytes(s) > sizeof(int) * (size_t)o.cap);
    spec_close(s);
    spec_close(NULL);
}
END_TEST

START_TEST(abort_frees_every_slot_and_leaves_no_trace)
{
    struct toy_draft ngram = toy_draft("ngram", NULL);
    struct spec_opts o = toy_spec_opts(&ngram);
    o.slots = 2;
    struct spec *s = open_loop(&o);
    int prompt[2][TOY_PROMPT], tokens[TOY_ANSWER], n = 0;
    for (int i = 0; i < 2; i++) {
        const struct spec_request r = {prompt[i], toy_prompt(3 + i, prompt[i]), 40, (uint32_t)i, NULL};
        ck_assert_int_eq(spec_submit(s, &r), 0);
    }
    struct spec_step step;
    for (int i = 0; i < 5; i++)
        ck_assert_int_eq(spec_step(s, &step), 0);
    spec_abort(s);
    ck_assert_int_eq(spec_free_slots(s), 2);
    const struct spec_request r = {prompt[0], toy_prompt(1, prompt[0]), TOY_ANSWER / 2, 1, NULL};
    ck_assert_int_eq(spec_submit(s, &r), 0);
    do {
        ck_assert_int_eq(spec_step(s, &step), 0);
        memcpy(tokens + n, step.records[0].tokens, (size_t)step.records[0].emitted * sizeof *tokens);
        n += step.records[0].emitted;
    } while (step.n_finished == 0);
    ck_assert_int_eq(n, plain[1].n);
    ck_assert_mem_eq(tokens, plain[1].tokens, (size_t)n * sizeof *tokens);
    spec_close(s);
}
END_TEST

/* One step of request 1 with a perfect draft, for tests that read its record. */
static const struct step_record *first_step(struct spec *s, struct spec_step *step)
{
    static int prompt[TOY_PROMPT];
    const struct spec_request r = {prompt, toy_prompt(1, prompt), TOY_ANSWER / 2, 1, NULL};
    ck_assert_int_eq(spec_submit(s, &r), 0);
    ck_assert_int_eq(spec_step(s, step), 0);
    ck_assert_int_eq(step->n_records, 1);
    return step->records;
}

START_TEST(node_records_hold_what_the_target_said)
{
    struct toy_draft oracle = toy_draft("oracle", NULL);
    struct spec_opts o = deep_opts(&oracle);
    struct spec *s = open_loop(&o);
    struct spec_step step;
    const struct step_record *r = first_step(s, &step);
    int prompt[TOY_PROMPT];
    ck_assert_int_eq(r->position, toy_prompt(1, prompt));
    ck_assert_int_eq(r->proposed, 8);
    ck_assert_int_eq(r->accepted, 8);
    ck_assert_int_eq(r->emitted, 9);
    for (int i = 0; i < 8; i++) { /* greedy: each is the most probable token, and the entropy cannot pass log
                                     of the vocabulary */
        const struct node_record *n = &r->nodes[i];
        ck_assert_int_eq(n->rank, 1);
        ck_assert_int_eq(n->accepted, 1);
        ck_assert(n->log_p == plain[1].log_p[i] && n->log_q == 0);
        ck_assert(n->entropy > 0 && n->entropy <= logf(TOY_VOCAB) * 1.00001f && n->gap >= 0);
        ck_assert(n->entropy >= -n->log_p); /* the average surprise is at least the smallest */
    }
    spec_close(s);
}
END_TEST

START_TEST(the_trace_level_decides_what_is_recorded)
{
    struct toy_draft oracle = toy_draft("oracle", NULL);
    struct spec_opts o = deep_opts(&oracle);
    struct spec_step step;
    o.trace = TRACE_STEPS;
    struct spec *s = open_loop(&o);
    ck_assert_ptr_null(first_step(s, &step)->nodes);
    spec_close(s);
    o.trace = TRACE_NODES;
    s = open_loop(&o);
    const struct step_record *r = first_step(s, &step);
    for (int i = 0; i < r->proposed; i++)
        ck_assert(r->nodes[i].rank == 1 && r->nodes[i].entropy == 0 && r->nodes[i].gap == 0);
    spec_close(s);
}
END_TEST

START_TEST(a_spoiled_draft_is_recorded_as_rejected)
{
    struct toy_draft oracle = toy_draft("oracle", "accept=0", NULL);
    struct spec_opts o = deep_opts(&oracle);
    struct spec *s = open_loop(&o);
    struct spec_step step;
    const struct step_record *r = first_step(s, &step);
    ck_assert_int_eq(r->proposed, 8);
    ck_assert_int_eq(r->accepted, 0);
    ck_assert_int_eq(r->emitted, 1);
    ck_assert_int_gt(r->nodes[0].rank, 1);
    ck_assert_int_eq(r->nodes[0].accepted, 0);
    ck_assert_int_eq(r->tokens[0], plain[1].tokens[0]);
    spec_close(s);
}
END_TEST

/* A draft that checks what the loop tells it, and lets the oracle speak. */
static struct {
    int n, proposed[TOY_ANSWER]; /* of the one slot: length of its text, tokens of its last tree */
    int limit, max_depth, calls;
} spy;

static int spy_begin(void *self, const struct draft_text *text)
{
    spy.n = text->n;
    EXPECT(text->n == text->n_prompt && text->slot == 0);
    return draft_oracle.begin(self, text);
}

static int spy_propose(void *self, const struct draft_text *text, int n, struct tree *out)
{
    int useful = spy.limit - spy.n - 1; /* the bonus needs a place too */
    EXPECT(n == 1 && text->n == spy.n && out->n == 0);
    EXPECT(out->max_depth == (useful < spy.max_depth ? useful : spy.max_depth));
    EXPECT(out->max_nodes == (useful > 0 ? spy.max_depth : 0));
    int rc = draft_oracle.propose(self, text, n, out);
    for (int i = 0; i < out->n; i++)
        spy.proposed[i] = out->nodes[i].token;
    return rc;
}

static int spy_observe(void *self, const struct draft_seen *seen, int n)
{
    EXPECT(n == 1 && seen->text.n == spy.n + seen->n_new);
    EXPECT(seen->n_accepted == seen->n_new || seen->n_accepted == seen->n_new - 1);
    for (int i = 0; i < seen->n_accepted; i++)
        EXPECT(seen->text.tokens[spy.n + i] == spy.proposed[seen->path[i]]);
    spy.n = seen->text.n;
    spy.calls++;
    return draft_oracle.observe(self, seen, n);
}

START_TEST(the_draft_is_told_what_became_text_and_what_is_still_useful)
{
    struct draft_ops ops = draft_oracle;
    ops.begin = spy_begin;
    ops.propose = spy_propose;
    ops.observe = spy_observe;
    struct toy_draft d = {.ops = &ops, .option = {0.9}};
    struct spec_opts o = deep_opts(&d);
    o.slots = 1;
    o.stop = (struct stop_rules){.tokens = &plain[1].tokens[11], .n_tokens = 1};
    for (int i = 0; i < REQUESTS; i++) {
        int prompt[TOY_PROMPT], n = toy_prompt(i, prompt);
        const struct spec_request r = {prompt, n, 30, (uint32_t)i, NULL};
        struct spec_step step;
        struct spec *s = open_loop(&o);
        spy.limit = n + 30;
        spy.max_depth = 8;
        ck_assert_int_eq(spec_submit(s, &r), 0);
        do
            ck_assert_int_eq(spec_step(s, &step), 0);
        while (step.n_finished == 0);
        ck_assert_int_eq(spy.n, n + step.finished[0].n);
        spec_close(s);
    }
    ck_assert_int_gt(spy.calls, 2 * REQUESTS);
}
END_TEST

START_TEST(coupled_noise_is_that_of_the_absolute_position)
{
    struct toy_draft ngram = toy_draft("ngram", NULL);
    struct spec_opts o = toy_spec_opts(&ngram);
    o.rule = accept_rule_find("coupled");
    o.sampling.temperature = 0.8f;
    toy_run(&toy.model, &o, 2, NULL, answer);
    int prompt[TOY_PROMPT], n = toy_prompt(1, prompt), token = prompt[n - 1];
    struct kv kv = {0};
    struct forward f = {0};
    static int id[TOY_VOCAB];
    static float prob[TOY_VOCAB], work[TOY_VOCAB];
    struct sample_dist dist = {.id = id, .prob = prob, .work = work};
    ck_assert_int_eq(kv_init(&kv, &toy.be, &toy.model, 1, TOY_PROMPT + TOY_ANSWER), 0);
    ck_assert_int_eq(forward_init(&f, &toy.model, &kv, 16, 1), 0);
    ck_assert_int_eq(forward_prefill(&f, 0, prompt, n - 1), 0);
    for (int i = 0; i < answer[1].n; i++) {
        const struct forward_row row = {token, 0, -1};
        const struct sample_filter filter = {0.8f, 0, 1, 0};
        const struct sample_key key = {o.sampling.seed, 1, (uint32_t)(n + i)};
        const int keep = 0;
        EXPECT(forward_run(&f, &row, 1, FORWARD_LOGITS) == 0);
        sample_dist_from_logits(&dist, f.logits, TOY_VOCAB, f.stats->max, &filter);
        token = sample_gumbel(&dist, &key);
        EXPECT(token == answer[1].tokens[i]);
        EXPECT(f.logits[token] - f.stats->lse == answer[1].log_p[i]);
        EXPECT(kv_commit(&kv, 0, &keep, 1) == 0);
    }
    forward_deinit(&f);
    kv_deinit(&kv);
}
END_TEST

START_TEST(relaxed_with_delta_0_is_greedy_and_with_more_takes_more)
{
    struct toy_draft oracle = toy_draft("oracle", "accept=0.5", NULL),
                     ngram = toy_draft("ngram", "branches=4", NULL);
    struct spec_opts o = deep_opts(&oracle);
    o.rule = accept_rule_find("relaxed");
    o.sampling.relaxed_top_k = 10;
    toy_run(&toy.model, &o, REQUESTS, NULL, answer);
    for (int i = 0; i < REQUESTS; i++)
        toy_assert_same(&plain[i], &answer[i], "relaxed, delta 0");
    o = toy_spec_opts(&ngram);
    o.max_nodes = 16;
    int accepted[2] = {0, 0};
    for (int k = 0; k < 2; k++) {
        o.rule = accept_rule_find("relaxed");
        o.sampling.relaxed_top_k = TOY_VOCAB;
        o.sampling.relaxed_delta = (float)k;
        toy_run(&toy.model, &o, REQUESTS, NULL, answer);
        for (int i = 0; i < REQUESTS; i++)
            accepted[k] += answer[i].accepted;
    }
    ck_assert_int_gt(accepted[1], accepted[0]);
}
END_TEST

/* Logits without a finite number: the device leaves the text alone and the host says so. */
static int spoil_logits(struct backend *be, const struct accept *a)
{
    for (int i = 0; i < a->vocab; i++)
        ((float *)a->logits)[i] = NAN;
    ((struct logit_stats *)a->stats)[0].lse = NAN;
    return backend_cpu.accept(be, a);
}

START_TEST(logits_that_are_no_numbers_are_an_error_that_says_where)
{
    struct backend_ops broken = backend_cpu;
    const struct toy_draft none = toy_draft("none", NULL);
    const struct spec_opts o = toy_spec_opts(&none);
    struct spec *s = open_loop(&o);
    struct spec_step step;
    int prompt[TOY_PROMPT];
    const struct spec_request r = {prompt, toy_prompt(3, prompt), 20, 0, NULL};
    broken.accept = spoil_logits;
    ck_assert_int_eq(spec_submit(s, &r), 0);
    ck_assert_int_eq(spec_step(s, &step), 0);
    toy.be.ops = &broken;
    int rc = 0;
    for (int i = 0; i < 5 && !rc; i++)
        rc = spec_step(s, &step);
    toy.be.ops = &backend_cpu;
    ck_assert_int_eq(rc, ERR_DEVICE);
    ck_assert_msg(strstr(err_text(), "finite") != NULL, "%s", err_text());
    spec_close(s);
}
END_TEST

static void add_tests(TCase *c)
{
    tcase_add_test(c, a_budget_is_met_exactly_by_steps_of_many_tokens);
    tcase_add_test(c, a_stop_token_inside_an_accepted_path_ends_the_answer_there);
    tcase_add_test(c, a_stop_string_across_steps_ends_where_plain_decoding_ends);
    tcase_add_test(c, a_text_that_reaches_the_models_context_ends_there);
    tcase_add_test(c, requests_that_cannot_be_served_are_errors_that_say_so);
    tcase_add_test(c, a_prompt_that_fills_the_models_context_is_refused);
    tcase_add_test(c, options_out_of_range_are_errors_that_say_so);
    tcase_add_test(c, a_step_without_requests_does_nothing);
    tcase_add_test(c, abort_frees_every_slot_and_leaves_no_trace);
    tcase_add_test(c, node_records_hold_what_the_target_said);
    tcase_add_test(c, the_trace_level_decides_what_is_recorded);
    tcase_add_test(c, a_spoiled_draft_is_recorded_as_rejected);
    tcase_add_test(c, the_draft_is_told_what_became_text_and_what_is_still_useful);
    tcase_add_test(c, coupled_noise_is_that_of_the_absolute_position);
    tcase_add_test(c, relaxed_with_delta_0_is_greedy_and_with_more_takes_more);
    tcase_add_test(c, logits_that_are_no_numbers_are_an_error_that_says_where);
}

int main(void)
{
    Suite *s = suite_create("loop");
    TCase *now = tcase_create("loop"), *ahead = tcase_create("loop, steps under way");
    tcase_add_checked_fixture(now, setup, teardown);
    tcase_add_checked_fixture(ahead, setup_ahead, teardown);
    add_tests(now);
    add_tests(ahead);
    suite_add_tcase(s, now);
    suite_add_tcase(s, ahead);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
