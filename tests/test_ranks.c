/* test_ranks: a model cut over ranks of this process against the same model whole, and what a group does when
 * a rank fails. All ranks share the CPU. */
#include "engine/ranks.h"
#include "engine/err.h"
#include "engine/log.h"
#include "spec/accept.h"
#include "spec/group.h"
#include "tests/golden.h"
#include "tests/toy_loop.h"

enum { PATIENCE_S = 20, ROWS = 12, PROMPT = 30 };

static void ok(int rc)
{
    if (rc)
        ck_abort_msg("%s", err_text());
}

static void setup(void)
{
    log_set_level(LOG_WARN);
}

/* Eight key/value heads, so that eight ranks fit. */
static struct model_config dense(void)
{
    struct model_config c = toy_config();
    c.heads = 16;
    c.kv_heads = 8;
    c.ffn = 256;
    c.vocab = 1000;
    return c;
}

/* Layers in turn dense with rotation and of experts without; chunks shorter than the prompt. */
static struct model_config experts(void)
{
    struct model_config c = dense();
    c.llama4 = 1;
    c.layers = 4;
    c.ffn = 128;
    c.ffn_dense = 256;
    c.experts = 8;
    c.top_k = 1;
    c.chunk = 16;
    c.qk_norm = 1;
    c.temperature_scale = 0.1f;
    c.temperature_floor = 16;
    c.kind[1] = LAYER_MOE;
    c.kind[3] = LAYER_MOE | LAYER_NOPE;
    return c;
}

struct world {
    struct ranks *ranks;
    struct backend be;
    struct model model;
};

static void world_open(struct world *w, int world, const struct model_config *shape)
{
    const struct ranks_model from = {.kind = "cpu",
                                     .device = {.threads = 1, .isa = "auto"},
                                     .per_device = 1,
                                     .shape = shape,
                                     .seed = TOY_SEED};
    *w = (struct world){.ranks = NULL};
    ok(ranks_open(&w->ranks, world, &w->be, &w->model, PATIENCE_S));
    ok(ranks_load(w->ranks, &from));
}

static void world_close(struct world *w)
{
    ranks_close(w->ranks);
    model_deinit(&w->model);
    backend_close(&w->be);
}

/* A prompt, then a tree of ROWS rows; every rank keeps what it got. */
struct pass {
    float *logits[COMM_WORLD_MAX]; /* [ROWS, vocab] */
    int experts[COMM_WORLD_MAX][2 * ROWS];
};

static int run_pass(void *ctx, struct rank *rank)
{
    struct pass *p = ctx;
    struct model *m = rank->model;
    const int me = rank->comm.rank;
    const size_t vocab = (size_t)m->cfg.vocab;
    struct kv kv = {.be = NULL};
    struct forward f = {.model = NULL};
    struct forward_row rows[ROWS];
    int prompt[PROMPT];
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = (i * 37 + 11) % m->cfg.vocab;
    for (int i = 0; i < ROWS; i++)
        rows[i] = (struct forward_row){(i * 71 + 5) % m->cfg.vocab, 0, i < 2 ? i - 1 : i / 2};
    int rc = kv_init(&kv, rank->be, m, 1, 64);
    if (!rc)
        rc = forward_init(&f, m, &kv, PROMPT, ROWS);
    if (!rc)
        rc = forward_prefill(&f, 0, prompt, PROMPT);
    if (!rc)
        rc = forward_run(&f, rows, ROWS, FORWARD_LOGITS);
    if (!rc)
        memcpy(p->logits[me], f.host_logits, ROWS * vocab * sizeof(float));
    if (!rc && f.experts)
        memcpy(p->experts[me], f.host_experts, sizeof p->experts[me]);
    forward_deinit(&f);
    kv_deinit(&kv);
    return rc;
}

static void pass_run(struct pass *p, int world, const struct model_config *shape)
{
    struct world w;
    *p = (struct pass){.logits = {NULL}};
    world_open(&w, world, shape);
    for (int i = 0; i < world; i++)
        p->logits[i] = calloc((size_t)ROWS * (size_t)shape->vocab, sizeof(float));
    ok(ranks_do(w.ranks, run_pass, p));
    world_close(&w);
}

static void pass_free(struct pass *p)
{
    for (int i = 0; i < COMM_WORLD_MAX; i++)
        free(p->logits[i]);
}

static double worst_share(const struct model_config *c, const float *a, const float *b)
{
    double worst = 0;
    for (int r = 0; r < ROWS; r++) {
        const float *x = a + (size_t)r * (size_t)c->vocab, *y = b + (size_t)r * (size_t)c->vocab;
        const double bound = golden_bound(c, PROMPT + r, golden_rms(y, c->vocab));
        for (int i = 0; i < c->vocab; i++)
            worst = fmax(worst, fabs((double)x[i] - (double)y[i]) / bound);
    }
    return worst;
}

static void check_world(const struct model_config *shape, int world, const char *what)
{
    const size_t bytes = (size_t)ROWS * (size_t)shape->vocab * sizeof(float);
    struct pass whole, a, b;
    pass_run(&whole, 1, shape);
    pass_run(&a, world, shape);
    pass_run(&b, world, shape);
    for (int p = 0; p < world; p++) {
        ck_assert_msg(memcmp(a.logits[p], a.logits[0], bytes) == 0, "ranks 0 and %d differ", p);
        ck_assert_msg(memcmp(a.logits[p], b.logits[p], bytes) == 0, "two runs of rank %d differ", p);
        ck_assert_msg(memcmp(a.experts[p], whole.experts[0], sizeof a.experts[p]) == 0,
                      "rank %d chose other experts than a world of 1", p);
    }
    const double share = worst_share(shape, a.logits[0], whole.logits[0]);
    printf("%s, %d ranks: worst share of the bound %.3f\n", what, world, share);
    ck_assert_msg(share <= 1, "%s, %d ranks: off by %g of the bound", what, world, share);
    ck_assert_msg(memcmp(a.logits[0], whole.logits[0], bytes) != 0,
                  "sums cut in %d came out as one sum: nothing was cut", world);
    pass_free(&whole);
    pass_free(&a);
    pass_free(&b);
}

START_TEST(ranks_agree_to_the_bit_and_with_the_whole_model_within_rounding)
{
    static const int worlds[] = {2, 4, 8};
    const struct model_config d = dense(), e = experts();
    check_world(&d, worlds[_i], "dense");
    check_world(&e, worlds[_i], "experts");
}
END_TEST

/* One rank of eight, nobody to wait for: finite logits, of a model that is not the whole one. */
START_TEST(a_rank_alone_runs_without_the_others)
{
    const struct model_config shape = experts();
    struct ranks_model from = {.kind = "cpu",
                               .device = {.threads = 1, .isa = "auto"},
                               .per_device = 1,
                               .shape = &shape,
                               .seed = TOY_SEED,
                               .opts = {.shard = {7, 8}}};
    struct world w = {.ranks = NULL};
    struct pass p = {.logits = {calloc((size_t)ROWS * (size_t)shape.vocab, sizeof(float))}};
    ok(ranks_open(&w.ranks, 1, &w.be, &w.model, PATIENCE_S));
    ok(ranks_load(w.ranks, &from));
    ck_assert_int_eq(w.model.part.kv_heads, 1);
    ok(ranks_do(w.ranks, run_pass, &p));
    for (int i = 0; i < ROWS * shape.vocab; i++)
        ck_assert(isfinite(p.logits[0][i]));
    world_close(&w);
    pass_free(&p);
}
END_TEST

struct answers {
    int tokens[4][48], n[4];
};

/* Four requests, two at once. */
static void decode(const struct model_config *shape, int world, const struct spec_opts *o,
                   struct answers *out)
{
    struct world w;
    struct spec_group *g;
    struct spec_step step;
    *out = (struct answers){.n = {0}};
    world_open(&w, world, shape);
    ok(spec_group_open(&g, w.ranks, o));
    for (int next = 0, done = 0; done < 4;) {
        while (next < 4 && spec_free_slots(spec_group_first(g)) > 0) {
            int prompt[TOY_PROMPT];
            const int n = toy_prompt(next, prompt);
            ok(spec_group_submit(g, &(struct spec_request){.prompt = prompt,
                                                           .n_prompt = n,
                                                           .max_tokens = 48,
                                                           .request = (uint32_t)next,
                                                           .user = (void *)(intptr_t)next}));
            next++;
        }
        ok(spec_group_step(g, &step));
        for (int i = 0; i < step.n_finished; i++, done++) {
            const int q = (int)(intptr_t)step.finished[i].user;
            out->n[q] = step.finished[i].n;
            memcpy(out->tokens[q], step.finished[i].tokens, (size_t)out->n[q] * sizeof(int));
        }
    }
    spec_group_close(g);
    world_close(&w);
}

/* Greedy, and drawn with common random numbers: what a strategy drafts leaves the answer alone, in any world.
 */
START_TEST(speculation_over_ranks_changes_no_token)
{
    const struct model_config shapes[] = {dense(), experts()};
    const struct toy_draft none = toy_draft("none", NULL), ngram = toy_draft("ngram", NULL);
    for (int i = 0; i < 4; i++) {
        struct spec_opts plain = toy_spec_opts(&none), drafted = toy_spec_opts(&ngram);
        struct answers a, b;
        plain.slots = drafted.slots = 2;
        if (i % 2) {
            plain.rule = drafted.rule = accept_rule_find("coupled");
            plain.sampling.temperature = drafted.sampling.temperature = 0.7f;
        }
        decode(&shapes[i / 2], 1 << _i, &plain, &a);
        decode(&shapes[i / 2], 1 << _i, &drafted, &b);
        ck_assert_int_eq(a.n[0], 48);
        ck_assert_mem_eq(&a, &b, sizeof a);
    }
}
END_TEST

static int fail_as_rank_2(void *ctx, struct rank *rank)
{
    (void)ctx;
    if (rank->comm.rank == 2)
        FAIL(ERR_IO, "the disk of rank 2 is gone");
    return comm_barrier(&rank->comm);
}

START_TEST(the_first_failure_is_what_the_caller_hears)
{
    const struct model_config shape = dense();
    struct world w;
    world_open(&w, 4, &shape);
    ck_assert_int_eq(ranks_do(w.ranks, fail_as_rank_2, NULL), ERR_IO);
    ck_assert_ptr_nonnull(strstr(err_text(), "the disk of rank 2 is gone"));
    world_close(&w);
}
END_TEST

/* Rank 1 stays away from the sums of a pass. */
static int stay_away(void *ctx, struct rank *rank)
{
    return rank->comm.rank == 1 ? 0 : run_pass(ctx, rank);
}

START_TEST(a_rank_that_stays_away_is_named_within_the_patience)
{
    const struct model_config shape = dense();
    const struct ranks_model from = {
        .kind = "cpu", .device = {.threads = 1, .isa = "auto"}, .per_device = 1, .shape = &shape, .seed = 1};
    struct world w = {.ranks = NULL};
    struct pass p = {.logits = {NULL}};
    ok(ranks_open(&w.ranks, 2, &w.be, &w.model, 0.2));
    ok(ranks_load(w.ranks, &from));
    ck_assert_int_eq(ranks_do(w.ranks, stay_away, &p), ERR_DEVICE);
    ck_assert_ptr_nonnull(strstr(err_text(), "rank 1 of 2 did not come"));
    world_close(&w);
}
END_TEST

START_TEST(a_world_that_does_not_fit_is_refused_with_the_numbers)
{
    const struct model_config shape = toy_config();
    struct ranks_model from = {
        .kind = "cpu", .device = {.threads = 1, .isa = "auto"}, .per_device = 1, .shape = &shape, .seed = 1};
    struct world w = {.ranks = NULL};
    ok(ranks_open(&w.ranks, 4, &w.be, &w.model, PATIENCE_S));
    ck_assert_int_eq(ranks_load(w.ranks, &from), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "2 key/value heads"));
    world_close(&w);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ranks");
    TCase *t = tcase_create("cpu");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_loop_test(t, ranks_agree_to_the_bit_and_with_the_whole_model_within_rounding, 0, 3);
    tcase_add_test(t, a_rank_alone_runs_without_the_others);
    tcase_add_loop_test(t, speculation_over_ranks_changes_no_token, 0, 4);
    tcase_add_test(t, the_first_failure_is_what_the_caller_hears);
    tcase_add_test(t, a_rank_that_stays_away_is_named_within_the_patience);
    tcase_add_test(t, a_world_that_does_not_fit_is_refused_with_the_numbers);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
