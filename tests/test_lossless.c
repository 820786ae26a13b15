/* The promise of the whole: whatever drafts, however deep or wide its trees, whoever shares the pass and
 * however many threads compute it, the tokens and their log probabilities are those of plain decoding, bit
 * for bit. And where a rule only promises the distribution (`rejection`), the model's exact distribution. */
#include "engine/err.h"
#include "kernels/philox.h"
#include "tests/expect.h"
#include "tests/toy_loop.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REQUESTS = 6 };

struct setting {
    const char *rule;
    struct sampling sampling;
};
static const struct setting settings[] = {
    {"greedy", {.top_p = 1, .seed = 1, .relaxed_top_k = 1}},
    {"coupled", {.top_p = 1, .seed = 2, .relaxed_top_k = 1}},
    {"coupled", {.temperature = 0.7f, .top_p = 1, .seed = 3, .relaxed_top_k = 1}},
    {"coupled", {.temperature = 0.7f, .top_k = 5, .top_p = 1, .seed = 4, .relaxed_top_k = 1}},
    {"coupled", {.temperature = 0.7f, .top_p = 0.8f, .seed = 5, .relaxed_top_k = 1}},
    {"coupled", {.temperature = 0.7f, .top_p = 1, .min_p = 0.2f, .seed = 6, .relaxed_top_k = 1}},
    {"coupled", {.temperature = 1, .top_p = 1, .seed = 7, .relaxed_top_k = 1}},
    {"coupled", {.temperature = 1, .top_k = 10, .top_p = 0.9f, .min_p = 0.1f, .seed = 8, .relaxed_top_k = 1}},
    {"rejection", {.top_p = 1, .seed = 10, .relaxed_top_k = 1}},
};
enum { SETTINGS = sizeof settings / sizeof *settings };

/* Plain decoding, one sequence at a time on one thread: what all else must equal. */
static void plain_answers(const struct setting *set, int n, struct toy_answer *out)
{
    struct toy toy;
    struct toy_draft none = toy_draft("none", NULL);
    struct spec_opts o = toy_spec_opts(&none);
    o.rule = accept_rule_find(set->rule);
    o.sampling = set->sampling;
    o.trace = TRACE_STEPS;
    EXPECT_MSG(toy_open(&toy, 1) == 0, "%s", err_text());
    toy_run(&toy.model, &o, n, NULL, out);
    toy_close(&toy);
}

/* Every draft at this depth; returns the nodes accepted by all of them together. */
static int assert_all_drafts_equal(struct model *m, const struct setting *set, int depth, int slots,
                                   struct toy_answer *plain)
{
    const struct toy_draft draft[] = {toy_draft("none", NULL), toy_draft("ngram", NULL),
                                      toy_draft("ngram", "min=1", "max=2", "match=1", "branches=3", NULL),
                                      toy_draft("oracle", NULL), toy_draft("oracle", "accept=0.7", NULL)};
    static struct toy_answer answer[TOY_REQUESTS];
    int accepted = 0;
    for (size_t d = 0; d < sizeof draft / sizeof *draft; d++) {
        struct spec_opts o = toy_spec_opts(&draft[d]);
        o.rule = accept_rule_find(set->rule);
        o.sampling = set->sampling;
        o.slots = slots;
        o.max_depth = depth;
        o.max_nodes = d == 2 ? 2 * depth + 1 : depth;
        o.reference = toy_reference;
        o.reference_ctx = plain;
        o.trace = d % 2 ? TRACE_FULL : TRACE_NODES;
        toy_run(m, &o, REQUESTS, NULL, answer);
        for (int i = 0; i < REQUESTS; i++) {
            char what[160];
            snprintf(what, sizeof what,
                     "%s, T %g, draft %zu (%s), depth %d, %d slots, %d threads, request %d", set->rule,
                     (double)set->sampling.temperature, d, draft[d].ops->name, depth, slots, m->be->threads,
                     i);
            toy_assert_same(&plain[i], &answer[i], what);
            accepted += answer[i].accepted;
            if (d == 3) /* a perfect draft: every step but the last is full */
                ck_assert_int_eq(answer[i].steps, (plain[i].n + depth) / (depth + 1));
        }
    }
    return accepted;
}

START_TEST(every_draft_at_every_depth_equals_plain_decoding)
{
    static struct toy_answer plain[TOY_REQUESTS];
    const struct setting *set = &settings[_i];
    plain_answers(set, REQUESTS, plain);
    for (int threads = 1; threads <= 2; threads++) {
        struct toy toy;
        EXPECT_MSG(toy_open(&toy, threads) == 0, "%s", err_text());
        toy.be.ahead = threads == 2 ? 2 : 0; /* as a device with steps under way */
        for (int depth = 1; depth <= 8; depth++)
            ck_assert_int_gt(assert_all_drafts_equal(&toy.model, set, depth, 3, plain), REQUESTS);
        toy_close(&toy);
    }
}
END_TEST

START_TEST(ngram_alone_is_accepted_where_the_text_repeats)
{
    static struct toy_answer answer[TOY_REQUESTS];
    struct toy toy;
    struct toy_draft ngram = toy_draft("ngram", NULL);
    struct spec_opts o = toy_spec_opts(&ngram);
    EXPECT_MSG(toy_open(&toy, 1) == 0, "%s", err_text());
    toy_run(&toy.model, &o, REQUESTS, NULL, answer);
    int accepted = 0;
    for (int i = 0; i < REQUESTS; i++)
        accepted += answer[i].accepted;
    ck_assert_int_gt(accepted, 0);
    toy_close(&toy);
}
END_TEST

START_TEST(an_answer_does_not_depend_on_its_neighbours)
{
    static struct toy_answer plain[TOY_REQUESTS], answer[TOY_REQUESTS];
    static const int slots[] = {1, 2, 3, 7};
    int max_tokens[TOY_REQUESTS];
    const struct toy_draft draft[] = {toy_draft("none", NULL), toy_draft("ngram", "branches=2", NULL),
                                      toy_draft("oracle", "accept=0.6", NULL)};
    const struct setting *set = &settings[_i ? 6 : 0];
    struct toy toy;
    plain_answers(set, TOY_REQUESTS, plain);
    for (int i = 0; i < TOY_REQUESTS; i++) {
        max_tokens[i] = 1 + i * 7 % (TOY_ANSWER / 2); /* so that slots empty and fill at different steps */
        plain[i].n = max_tokens[i];
    }
    EXPECT_MSG(toy_open(&toy, 1) == 0, "%s", err_text());
    toy.be.ahead = _i ? 3 : 0;
    for (size_t d = 0; d < sizeof draft / sizeof *draft; d++)
        for (size_t k = 0; k < sizeof slots / sizeof *slots; k++) {
            struct spec_opts o = toy_spec_opts(&draft[d]);
            o.rule = accept_rule_find(set->rule);
            o.sampling = set->sampling;
            o.slots = slots[k];
            o.max_nodes = 8;
            o.reference = toy_reference;
            o.reference_ctx = plain;
            toy_run(&toy.model, &o, TOY_REQUESTS, max_tokens, answer);
            for (int i = 0; i < TOY_REQUESTS; i++)
                toy_assert_same(&plain[i], &answer[i], draft[d].ops->name);
        }
    toy_close(&toy);
}
END_TEST

START_TEST(prefill_blocks_do_not_change_a_bit)
{
    static struct toy_answer plain[TOY_REQUESTS], answer[TOY_REQUESTS];
    struct toy toy;
    struct toy_draft none = toy_draft("none", NULL);
    struct spec_opts o = toy_spec_opts(&none);
    plain_answers(&settings[0], REQUESTS, plain);
    EXPECT_MSG(toy_open(&toy, 1) == 0, "%s", err_text());
    for (int block = 0; block <= 40; block += 1 + block / 3) {
        o.prefill_block = block;
        toy_run(&toy.model, &o, REQUESTS, NULL, answer);
        for (int i = 0; i < REQUESTS; i++)
            toy_assert_same(&plain[i], &answer[i], "prefill");
    }
    toy_close(&toy);
}
END_TEST

START_TEST(the_same_run_gives_the_same_and_another_seed_another_answer)
{
    static struct toy_answer a[TOY_REQUESTS], b[TOY_REQUESTS];
    struct setting set = settings[6];
    plain_answers(&set, REQUESTS, a);
    plain_answers(&set, REQUESTS, b);
    for (int i = 0; i < REQUESTS; i++)
        toy_assert_same(&a[i], &b[i], "again");
    set.sampling.seed++;
    plain_answers(&set, REQUESTS, b);
    ck_assert(memcmp(a[1].tokens, b[1].tokens, sizeof a[1].tokens) != 0);
}
END_TEST

/* Rejection on the whole model. Target: top-4 at temperature 1, three tokens after a fixed prompt, 64 texts.
 * N = 6000 requests; chi-square with cells of less than 5 expected merged, threshold as in test_accept.c: the
 * quantile passed by a correct rule with probability 1e-6 (Wilson and Hilferty, z = 4.753). */
enum { KEEP = 4, LENGTH = 3, CELLS = KEEP * KEEP * KEEP, SAMPLES = 6000, SLOTS = 8, N_PROMPT = 10 };
static const int fixed_prompt[N_PROMPT] = {5, 17, 40, 5, 17, 61, 5, 17, 40, 5};

struct joint {
    int text[CELLS][LENGTH]; /* the possible texts and their probabilities */
    double p[CELLS];
    int count[CELLS], n_accepted;
};

/* The kept tokens after the last row, most probable first, with their probabilities. */
static void top_tokens(struct forward *f, int *id, double *p)
{
    double sum = 0;
    for (int v = 0; v < TOY_VOCAB; v++) {
        int rank = logits_rank(f->logits, TOY_VOCAB, v);
        if (rank <= KEEP) {
            id[rank - 1] = v;
            p[rank - 1] = exp((double)f->logits[v] - f->stats->max);
            sum += p[rank - 1];
        }
    }
    for (int k = 0; k < KEEP; k++)
        p[k] /= sum;
}

/* Feed one token more, keep it in the cache, and list what may follow. */
static void feed(struct forward *f, int token, int *id, double *p)
{
    const struct forward_row row = {token, 0, -1};
    const int keep = 0;
    ck_assert_int_eq(forward_run(f, &row, 1, FORWARD_LOGITS), 0);
    ck_assert_int_eq(f->model->be->ops->sync(f->model->be), 0);
    top_tokens(f, id, p);
    ck_assert_int_eq(kv_commit(f->kv, 0, &keep, 1), 0);
}

/* Exact probabilities by decoding every text from scratch. */
static void exact_joint(struct model *m, struct joint *j)
{
    struct kv kv = {0};
    struct forward f = {0};
    ck_assert_int_eq(kv_init(&kv, m->be, m, 1, 32), 0);
    ck_assert_int_eq(forward_init(&f, m, &kv, 16, 1), 0);
    for (int c = 0; c < CELLS; c++) {
        int choice[LENGTH] = {c / (KEEP * KEEP), c / KEEP % KEEP, c % KEEP},
            token = fixed_prompt[N_PROMPT - 1];
        j->p[c] = 1;
        kv_reset(&kv, 0);
        ck_assert_int_eq(forward_prefill(&f, 0, fixed_prompt, N_PROMPT - 1), 0);
        for (int i = 0; i < LENGTH; i++) {
            int id[KEEP];
            double p[KEEP];
            feed(&f, token, id, p);
            token = j->text[c][i] = id[choice[i]];
            j->p[c] *= p[choice[i]];
        }
    }
    forward_deinit(&f);
    kv_deinit(&kv);
}

static int joint_reference(void *ctx, uint32_t request, const int **tokens)
{
    const struct joint *j = ctx;
    *tokens =
        j->text[request % 2 ? 0 : 22]; /* the most probable text, or the second choice everywhere and so on */
    return LENGTH;
}

static void count_finished(const struct spec_step *step, struct joint *j)
{
    for (int i = 0; i < step->n_records; i++)
        j->n_accepted += step->records[i].accepted;
    for (int i = 0; i < step->n_finished; i++) {
        int c = 0;
        while (c < CELLS && memcmp(step->finished[i].tokens, j->text[c], sizeof j->text[c]) != 0)
            c++;
        EXPECT(c < CELLS);
        j->count[c]++;
    }
}

static double share_of_threshold(const struct joint *j)
{
    double chi = 0, rest_p = 0, rest = 0;
    int k = -1;
    for (int c = 0; c < CELLS; c++) {
        double expected = j->p[c] * SAMPLES;
        if (expected >= 5) {
            chi += (j->count[c] - expected) * (j->count[c] - expected) / expected;
            k++;
        } else {
            rest_p += j->p[c];
            rest += j->count[c];
        }
    }
    if (rest_p * SAMPLES >= 5) {
        chi += (rest - rest_p * SAMPLES) * (rest - rest_p * SAMPLES) / (rest_p * SAMPLES);
        k++;
    }
    double h = 2.0 / (9 * k);
    return chi / (k * pow(1 - h + 4.753 * sqrt(h), 3));
}

static double sample_joint(const struct toy_draft *draft, const struct backend_ops *ops, struct joint *j)
{
    struct toy toy;
    struct spec *s = NULL;
    struct spec_opts o = toy_spec_opts(draft);
    memset(j, 0, sizeof *j);
    EXPECT_MSG(toy_open(&toy, 1) == 0, "%s", err_text());
    exact_joint(&toy.model, j);
    toy.be.ops = ops;
    o.rule = accept_rule_find("rejection");
    o.sampling =
        (struct sampling){.temperature = 1, .top_k = KEEP, .top_p = 1, .seed = 77, .relaxed_top_k = 1};
    o.slots = SLOTS;
    o.max_nodes = 8;
    o.max_depth = 2;
    o.reference = joint_reference;
    o.reference_ctx = j;
    EXPECT_MSG(spec_open(&s, &toy.model, &o) == 0, "%s", err_text());
    for (uint32_t next = 0; next < SAMPLES || spec_active(s) > 0;) {
        for (; next < SAMPLES && spec_free_slots(s) > 0; next++) {
            const struct spec_request r = {fixed_prompt, N_PROMPT, LENGTH, next, NULL};
            EXPECT_MSG(spec_submit(s, &r) == 0, "%s", err_text());
        }
        struct spec_step step;
        EXPECT_MSG(spec_step(s, &step) == 0, "%s", err_text());
        count_finished(&step, j);
    }
    spec_close(s);
    toy_close(&toy);
    return share_of_threshold(j);
}

START_TEST(rejection_gives_the_models_exact_joint_distribution)
{
    static struct joint j;
    const struct toy_draft draft[] = {toy_draft("none", NULL), toy_draft("oracle", NULL),
                                      toy_draft("ngram", "min=1", "max=1", "branches=3", NULL)};
    double share = sample_joint(&draft[_i], &backend_cpu, &j);
    EXPECT_MSG(share < 1, "draft %s: chi-square is %.2f of its threshold", draft[_i].ops->name, share);
    if (_i == 1)
        ck_assert_int_gt(j.n_accepted, SAMPLES / 10);
}
END_TEST

/* A draft that draws: at each position mostly the reference's token, else any. Two nodes deep, each with its
 * q. */
static struct {
    struct draft_env env;
    float q[SLOTS][2][TOY_VOCAB];
} drawing;

static int drawing_open(void **self, const struct draft_env *env)
{
    drawing.env = *env;
    *self = &drawing;
    return 0;
}

static int drawing_max_nodes(const void *self)
{
    (void)self;
    return 2;
}

static int drawing_draws(const void *self)
{
    (void)self;
    return 1;
}

static void drawing_close(void *self)
{
    (void)self;
}

static int drawing_begin(void *self, const struct draft_text *text)
{
    (void)self, (void)text;
    return 0;
}

static int drawing_propose(void *self, const struct draft_text *text, int n, struct tree *out)
{
    const int *reference;
    (void)self;
    for (int i = 0; i < n; i++) {
        const int told = drawing.env.reference(drawing.env.reference_ctx, text[i].request, &reference);
        for (int k = 0, node = TREE_ROOT;
             k < 2 && text[i].n - text[i].n_prompt + k < told && node >= TREE_ROOT; k++) {
            float *q = drawing.q[text[i].slot][k];
            const struct sample_key key = {5, text[i].request, (uint32_t)(text[i].n + k)};
            for (int v = 0; v < TOY_VOCAB; v++)
                q[v] = 0.4f / (TOY_VOCAB - 1);
            q[reference[text[i].n - text[i].n_prompt + k]] = 0.6f;
            const int token = sample_categorical(q, TOY_VOCAB, &key, PHILOX_DRAFT, 0);
            node = tree_add(&out[i], node, token, logf(q[token]), q);
            if (node < 0)
                break;
        }
    }
    return 0;
}

static int drawing_observe(void *self, const struct draft_seen *seen, int n)
{
    (void)self, (void)seen, (void)n;
    return 0;
}

static const struct draft_option no_options[] = {{0}};

START_TEST(rejection_is_exact_for_a_draft_that_draws)
{
    static struct joint j;
    const struct draft_ops ops = {.name = "drawing",
                                  .help = "mostly the reference",
                                  .needs = DRAFT_HOST | DRAFT_REFERENCE | DRAFT_Q,
                                  .options = no_options,
                                  .open = drawing_open,
                                  .max_nodes = drawing_max_nodes,
                                  .close = drawing_close,
                                  .draws = drawing_draws,
                                  .begin = drawing_begin,
                                  .propose = drawing_propose,
                                  .observe = drawing_observe};
    const struct toy_draft draft = {.ops = &ops};
    const double share = sample_joint(&draft, &backend_cpu, &j);
    EXPECT_MSG(share < 1, "chi-square is %.2f of its threshold", share);
    ck_assert_int_gt(j.n_accepted, SAMPLES / 10);
}
END_TEST

/* The planted wrong rule of test_accept.c, at the size of a model: the bonus after a rejection is drawn from
 * p. */
static int accept_without_residual(struct backend *be, const struct accept *a)
{
    static int id[TOY_VOCAB];
    static float prob[TOY_VOCAB], work[TOY_VOCAB];
    const struct sample_filter f = {a->sampling.temperature, a->sampling.top_k, a->sampling.top_p,
                                    a->sampling.min_p};
    const int rc = backend_cpu.accept(be, a);
    for (int slot = 0; slot < a->trees->slots; slot++) {
        const int n = a->accepted[slot];
        if (a->first_row[slot] < 0)
            continue;
        const int row = a->first_row[slot] + (n ? 1 + a->path[slot * a->trees->max_depth + n - 1] : 0);
        const struct sample_key key = {a->sampling.seed, a->seq[slot].request,
                                       (uint32_t)(a->seq[slot].n + n)};
        struct sample_dist d = {.id = id, .prob = prob, .work = work};
        sample_dist_from_logits(&d, a->logits + (size_t)row * TOY_VOCAB, TOY_VOCAB, a->stats[row].max, &f);
        a->bonus[slot] = id[sample_categorical(prob, d.n, &key, PHILOX_SYNTHETIC, 0)];
    }
    return rc;
}

START_TEST(a_rule_without_residual_is_caught_on_the_model_too)
{
    static struct joint j;
    struct backend_ops wrong = backend_cpu;
    const struct toy_draft oracle = toy_draft("oracle", NULL);
    wrong.accept = accept_without_residual;
    ck_assert_double_gt(sample_joint(&oracle, &wrong, &j), 1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("lossless");
    TCase *c = tcase_create("lossless");
    tcase_add_loop_test(c, every_draft_at_every_depth_equals_plain_decoding, 0, SETTINGS);
    tcase_add_test(c, ngram_alone_is_accepted_where_the_text_repeats);
    tcase_add_loop_test(c, an_answer_does_not_depend_on_its_neighbours, 0, 2);
    tcase_add_test(c, prefill_blocks_do_not_change_a_bit);
    tcase_add_test(c, the_same_run_gives_the_same_and_another_seed_another_answer);
    tcase_add_loop_test(c, rejection_gives_the_models_exact_joint_distribution, 0, 3);
    tcase_add_test(c, rejection_is_exact_for_a_draft_that_draws);
    tcase_add_test(c, a_rule_without_residual_is_caught_on_the_model_too);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
