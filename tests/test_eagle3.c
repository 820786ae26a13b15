/* eagle3: output is that of plain decoding whatever the head says; its first row is the maths of
 * model-formats D.1. */
#include "engine/err.h"
#include "engine/forward.h"
#include "engine/head.h"
#include "tests/toy_loop.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { REQUESTS = 4, H = 64, FFN = 96, HEADS = 4, KV = 2, DIM = 16 };

static struct toy toy;
static struct toy_answer plain[TOY_REQUESTS], answer[TOY_REQUESTS];

static void open_toy(void)
{
    toy_open_plain(&toy, REQUESTS, plain);
}

static void close_toy(void)
{
    toy_close(&toy);
}

START_TEST(coupled_output_of_every_shape_equals_none_bit_for_bit)
{
    static const char *const shapes[] = {"shape=0", "shape=1", "shape=2"};
    struct toy_draft none = toy_draft("none", NULL);
    struct spec_opts o = toy_spec_opts(&none);
    o.rule = accept_rule_find("coupled");
    o.sampling.temperature = 1;
    toy_run(&toy.model, &o, REQUESTS, NULL, plain);
    for (int i = 0; i < 3; i++) {
        struct toy_draft d = toy_draft("eagle3", shapes[i], "top_k=4", NULL);
        o.draft = d.ops;
        o.draft_option = d.option;
        o.slots = 3;
        o.max_nodes = 20;
        toy_run(&toy.model, &o, REQUESTS, NULL, answer);
        int proposed = 0;
        for (int r = 0; r < REQUESTS; r++) {
            toy_assert_same(&plain[r], &answer[r], shapes[i]);
            proposed += answer[r].proposed;
        }
        ck_assert_int_gt(proposed, 50);
    }
}
END_TEST

/* Chunks of 12 positions, a layer without rotation, two experts a token: answers of 48 tokens cross four
 * borders. */
START_TEST(output_of_a_llama_4_target_equals_none)
{
    static const char *const shapes[] = {"shape=0", "shape=1", "shape=2"};
    struct model llama4;
    struct toy_draft none = toy_draft("none", NULL);
    struct spec_opts o = toy_spec_opts(&none);
    ck_assert_int_eq(model_load(&llama4, &toy.be, SPECBED_GOLDEN_DIR "/llama4/text", NULL), 0);
    toy_run(&llama4, &o, REQUESTS, NULL, plain);
    for (int i = 0; i < 3; i++) {
        struct toy_draft d = toy_draft("eagle3", shapes[i], "top_k=4", NULL);
        o.draft = d.ops;
        o.draft_option = d.option;
        o.slots = 2;
        o.max_nodes = 12;
        toy_run(&llama4, &o, REQUESTS, NULL, answer);
        for (int r = 0; r < REQUESTS; r++) {
            toy_assert_same(&plain[r], &answer[r], shapes[i]);
            ck_assert_int_gt(answer[r].proposed, 0);
        }
    }
    model_deinit(&llama4);
}
END_TEST

/* Drawn by the target's own noise a token is the target's whenever the two distributions agree well enough.
 */
START_TEST(coupled_output_of_drawn_trees_equals_none_and_agrees_more)
{
    static const char *const shapes[] = {"shape=0", "shape=1", "shape=2"};
    struct toy_draft none = toy_draft("none", NULL);
    struct spec_opts o = toy_spec_opts(&none);
    o.rule = accept_rule_find("coupled");
    o.sampling.temperature = 1.5f;
    o.sampling.top_p = 0.95f;
    toy_run(&toy.model, &o, REQUESTS, NULL, plain);
    for (int i = 0; i < 3; i++) {
        int accepted[2] = {0};
        for (int sampled = 0; sampled < 2; sampled++) {
            struct toy_draft d =
                toy_draft("eagle3", shapes[i], "top_k=4", sampled ? "sample=1" : "sample=0", NULL);
            o.draft = d.ops;
            o.draft_option = d.option;
            o.slots = 3;
            o.max_nodes = 20;
            toy_run(&toy.model, &o, REQUESTS, NULL, answer);
            for (int r = 0; r < REQUESTS; r++) {
                toy_assert_same(&plain[r], &answer[r], shapes[i]);
                accepted[sampled] += answer[r].accepted;
            }
        }
        printf("%s: %d accepted greedy, %d drawn\n", shapes[i], accepted[0], accepted[1]);
        ck_assert_int_gt(accepted[1], accepted[0]);
    }
}
END_TEST

/* ---- rejection: the joint distribution of answers of three tokens of a target of eight ---- */

enum { IDS = 8, LENGTH = 3, CELLS = IDS * IDS * IDS, SAMPLES = 20000, N_PROMPT = 6 };
static const int prompt[N_PROMPT] = {1, 5, 2, 2, 7, 0};

struct joint {
    struct backend be;
    struct model model;
    struct sampling sampling;
    double p[CELLS];
    int count[CELLS], accepted, proposed;
};

/* p of what follows `token`, which is fed and kept. */
static void follow(struct forward *f, const struct sampling *s, int token, double p[IDS])
{
    int id[IDS];
    float prob[IDS], work[IDS];
    struct sample_dist d = {.id = id, .prob = prob, .work = work};
    const struct sample_filter filter = {s->temperature, s->top_k, s->top_p, s->min_p};
    const struct forward_row row = {token, 0, -1};
    const int keep = 0;
    ck_assert_int_eq(forward_run(f, &row, 1, FORWARD_LOGITS), 0);
    sample_dist_from_logits(&d, f->host_logits, IDS, f->host_stats->max, &filter);
    for (int v = 0; v < IDS; v++)
        p[v] = (double)sample_dist_prob(&d, v);
    ck_assert_int_eq(kv_commit(f->kv, 0, &keep, 1), 0);
}

/* Exact probabilities, by decoding every text from scratch. */
static void exact_joint(struct joint *j)
{
    struct kv kv = {0};
    struct forward f = {0};
    ck_assert_int_eq(kv_init(&kv, &j->be, &j->model, 1, 32), 0);
    ck_assert_int_eq(forward_init(&f, &j->model, &kv, 16, 1), 0);
    for (int c = 0; c < CELLS; c++) {
        const int text[] = {prompt[N_PROMPT - 1], c / (IDS * IDS), c / IDS % IDS, c % IDS};
        j->p[c] = 1;
        kv_reset(&kv, 0);
        ck_assert_int_eq(forward_prefill(&f, 0, prompt, N_PROMPT - 1), 0);
        for (int i = 0; i < LENGTH; i++) {
            double p[IDS];
            follow(&f, &j->sampling, text[i], p);
            j->p[c] *= p[text[i + 1]];
        }
    }
    forward_deinit(&f);
    kv_deinit(&kv);
}

static void count_step(const struct spec_step *step, struct joint *j)
{
    for (int i = 0; i < step->n_records; i++) {
        j->accepted += step->records[i].accepted;
        j->proposed += step->records[i].proposed;
    }
    for (int i = 0; i < step->n_finished; i++) {
        const int *t = step->finished[i].tokens;
        ck_assert_int_eq(step->finished[i].n, LENGTH);
        j->count[(t[0] * IDS + t[1]) * IDS + t[2]]++;
    }
}

/* Chi-square over its value at probability 1e-6 (Wilson and Hilferty); cells of fewer than 5 expected are
 * one. */
static double share_of_threshold(const struct joint *j)
{
    double chi = 0, rest_p = 0, rest = 0;
    int k = -1;
    for (int c = 0; c < CELLS; c++) {
        const double expected = j->p[c] * SAMPLES;
        if (expected < 5) {
            rest_p += j->p[c];
            rest += j->count[c];
            continue;
        }
        chi += (j->count[c] - expected) * (j->count[c] - expected) / expected;
        k++;
    }
    if (rest_p * SAMPLES >= 5) {
        chi += (rest - rest_p * SAMPLES) * (rest - rest_p * SAMPLES) / (rest_p * SAMPLES);
        k++;
    }
    const double h = 2.0 / (9 * k);
    return chi / (k * pow(1 - h + 4.753 * sqrt(h), 3));
}

static double sample_joint(const struct toy_draft *draft, const struct sampling *sampling, struct joint *j)
{
    const struct backend_opts opts = {.threads = 1, .isa = "auto"};
    struct model_config cfg = toy_config();
    struct spec *s = NULL;
    struct spec_opts o = toy_spec_opts(draft);
    *j = (struct joint){.sampling = *sampling};
    cfg.vocab = IDS;
    ck_assert_int_eq(backend_open(&j->be, "cpu", &opts), 0);
    ck_assert_int_eq(model_synthetic(&j->model, &j->be, &cfg, TOY_SEED, NULL), 0);
    exact_joint(j);
    o.rule = accept_rule_find("rejection");
    o.sampling = *sampling;
    o.slots = 8;
    o.max_nodes = 7; /* cuts static trees of 4 + 4 + ... */
    o.max_depth = 2;
    ck_assert_msg(spec_open(&s, &j->model, &o) == 0, "%s", err_text());
    for (uint32_t next = 0; next < SAMPLES || spec_active(s) > 0;) {
        for (; next < SAMPLES && spec_free_slots(s) > 0; next++) {
            const struct spec_request r = {prompt, N_PROMPT, LENGTH, next, NULL};
            ck_assert_int_eq(spec_submit(s, &r), 0);
        }
        struct spec_step step;
        ck_assert_msg(spec_step(s, &step) == 0, "%s", err_text());
        count_step(&step, j);
    }
    spec_close(s);
    model_deinit(&j->model);
    backend_close(&j->be);
    return share_of_threshold(j);
}

static struct sampling plain_sampling(void)
{
    return (struct sampling){.temperature = 1, .top_p = 1, .seed = 77, .relaxed_top_k = 1};
}

START_TEST(answers_of_drawn_drafts_are_distributed_as_the_targets)
{
    static struct joint j;
    const struct toy_draft draft[] = {toy_draft("eagle3", "sample=1", NULL),
                                      toy_draft("eagle3", "sample=1", "shape=1", "top_k=4", NULL),
                                      toy_draft("eagle3", "shape=2", "top_k=4", NULL)};
    struct sampling sampling = plain_sampling();
    if (_i >= 3) {
        sampling.temperature = 0.7f;
        sampling.top_k = 5;
    }
    const double share = sample_joint(&draft[_i % 3], &sampling, &j);
    printf("drawn draft %d: chi-square is %.2f of its threshold, %d of %d nodes accepted\n", _i, share,
           j.accepted, j.proposed);
    ck_assert_double_lt(share, 1);
    ck_assert_int_gt(j.accepted, SAMPLES / 4);
}
END_TEST

/* A one-hot q would be none: any token that is chosen without looking at the target may be tested as if it
 * were certain. */
static int lying_propose(void *self, const struct draft_text *text, int n, struct tree *out)
{
    static const float uniform[IDS] = {0.125f, 0.125f, 0.125f, 0.125f, 0.125f, 0.125f, 0.125f, 0.125f};
    const int rc = draft_eagle3.propose(self, text, n, out);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < out[i].n; k++)
            out[i].nodes[k].q = uniform;
    return rc;
}

START_TEST(a_draft_that_records_another_q_is_caught)
{
    static struct joint j;
    struct draft_ops ops = draft_eagle3;
    struct toy_draft draft = toy_draft("eagle3", "sample=1", NULL);
    const struct sampling sampling = plain_sampling();
    draft.ops = &ops;
    ops.propose = lying_propose;
    ck_assert_double_gt(sample_joint(&draft, &sampling, &j), 1);
}
END_TEST

START_TEST(a_dynamic_tree_of_draws_is_refused_under_rejection)
{
    struct toy_draft d = toy_draft("eagle3", "sample=1", "shape=2", NULL);
    struct spec_opts o = toy_spec_opts(&d);
    struct spec *s = NULL;
    o.rule = accept_rule_find("rejection");
    o.sampling.temperature = 1;
    ck_assert_int_eq(spec_open(&s, &toy.model, &o), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "expected shape chain or static"));
}
END_TEST

static void norm(const double *x, const float *w, double *y)
{
    double sum = 0;
    for (int i = 0; i < H; i++)
        sum += x[i] * x[i];
    for (int i = 0; i < H; i++)
        y[i] = x[i] / sqrt(sum / H + 1e-5) * (double)w[i];
}

/* y += W x */
static void add_product(const struct matrix *w, const double *x, double *y)
{
    for (int j = 0; j < w->n; j++)
        for (int i = 0; i < w->k; i++)
            y[j] += (double)matrix_at(w, j, i) * x[i];
}

/* At position 0 attention is the value itself. The mlp is left out: its matrix is interleaved, so `down` is
 * zeroed. */
static void reference(const struct head *h, const struct head_pass *p, int token, double *logits)
{
    double g[H] = {0}, e[H], u[2 * H], qkv[(HEADS + 2 * KV) * DIM] = {0}, attended[HEADS * DIM], last[H],
           a[HEAD_TAPS * H];
    for (int t = 0; t < HEAD_TAPS; t++)
        for (int i = 0; i < H; i++)
            a[t * H + i] = (double)p->feature[t * p->max_rows * H + i];
    add_product(&h->fc, a, g);
    for (int i = 0; i < H; i++)
        e[i] = (double)matrix_at(&toy.model.embed, token, i);
    norm(e, h->embed_norm, u);
    norm(g, h->hidden_norm, u + H);
    add_product(&h->qkv, u, qkv);
    for (int i = 0; i < HEADS * DIM; i++)
        attended[i] = qkv[(HEADS + KV) * DIM + i / DIM / (HEADS / KV) * DIM + i % DIM];
    add_product(&h->o, attended, g);
    norm(g, h->norm, last);
    memset(logits, 0, TOY_VOCAB * sizeof *logits);
    add_product(&h->lm_head, last, logits);
}

static double furthest(const float *a, const double *b)
{
    double most = 0;
    for (int i = 0; i < TOY_VOCAB; i++)
        most = fmax(most, fabs((double)a[i] - b[i]));
    return most;
}

START_TEST(the_first_row_is_the_published_maths)
{
    struct head h;
    struct head_pass p;
    double expected[TOY_VOCAB];
    const struct head_row row = {.token = 5, .base = 1};
    ck_assert_int_eq(head_open(&h, &toy.model, "synthetic", MODEL_BF16), 0);
    memset(h.down.data, 0, h.down.bytes);
    ck_assert_int_eq(head_pass_init(&p, &h, 1, 16, 4, 1), 0);
    for (int t = 0; t < HEAD_TAPS; t++)
        for (int i = 0; i < H; i++)
            p.feature[t * p.max_rows * H + i] = sinf((float)(t * H + i));
    ck_assert_int_eq(head_pass_run(&p, &row, 1, HEAD_FEATURES), 0);
    reference(&h, &p, 5, expected);
    /* five products of at most 192 terms in f32: 5 * 192 * 2^-24 relative, of logits below 16 */
    ck_assert_double_lt(furthest(p.logits, expected), 5 * 192 * 0x1p-24 * 16);
    reference(&h, &p, 6, expected); /* the token of another position: the shift left out */
    ck_assert_double_gt(furthest(p.logits, expected), 0.01);
    head_pass_deinit(&p);
    head_close(&h);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("eagle3");
    TCase *c = tcase_create("eagle3");
    tcase_set_timeout(c, 60); /* 20000 answers, under sanitizers */
    tcase_add_unchecked_fixture(c, open_toy, close_toy);
    tcase_add_test(c, coupled_output_of_every_shape_equals_none_bit_for_bit);
    tcase_add_test(c, output_of_a_llama_4_target_equals_none);
    tcase_add_test(c, coupled_output_of_drawn_trees_equals_none_and_agrees_more);
    tcase_add_loop_test(c, answers_of_drawn_drafts_are_distributed_as_the_targets, 0, 6);
    tcase_add_test(c, a_draft_that_records_another_q_is_caught);
    tcase_add_test(c, a_dynamic_tree_of_draws_is_refused_under_rejection);
    tcase_add_test(c, the_first_row_is_the_published_maths);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
