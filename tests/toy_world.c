/* toy_world: the same checks for ranks of the CPU and of GPUs. */
#include "tests/toy_world.h"
#include "engine/err.h"
#include "spec/accept.h"
#include "tests/golden.h"

static void ok(int rc)
{
    if (rc)
        ck_abort_msg("%s", err_text());
}

struct model_config world_dense(void)
{
    struct model_config c = toy_config();
    c.heads = 16;
    c.kv_heads = 8;
    c.ffn = 256;
    c.vocab = 1000;
    return c;
}

struct model_config world_experts(void)
{
    struct model_config c = world_dense();
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

void world_open(struct world *w, const struct world_opts *o, int world, const struct model_config *shape)
{
    const struct ranks_model from = {.kind = o->kind,
                                     .device = {.threads = 1, .isa = "auto", .eager = o->eager},
                                     .per_device = o->ranks_per_gpu,
                                     .shape = shape,
                                     .seed = TOY_SEED};
    *w = (struct world){.ranks = NULL};
    ok(ranks_open(&w->ranks, world, &w->be, &w->model, o->patience_s));
    ok(ranks_load(w->ranks, &from));
}

void world_close(struct world *w)
{
    ranks_close(w->ranks);
    model_deinit(&w->model);
    backend_close(&w->be);
}

int world_pass(void *ctx, struct rank *rank)
{
    struct world_pass *p = ctx;
    struct model *m = rank->model;
    const int me = rank->comm.rank;
    const size_t vocab = (size_t)m->cfg.vocab;
    struct kv kv = {.be = NULL};
    struct forward f = {.model = NULL};
    struct forward_row rows[WORLD_ROWS];
    int prompt[WORLD_PROMPT];
    for (int i = 0; i < WORLD_PROMPT; i++)
        prompt[i] = (i * 37 + 11) % m->cfg.vocab;
    for (int i = 0; i < WORLD_ROWS; i++)
        rows[i] = (struct forward_row){(i * 71 + 5) % m->cfg.vocab, 0, i < 2 ? i - 1 : i / 2};
    int rc = kv_init(&kv, rank->be, m, 1, 64);
    if (!rc)
        rc = forward_init(&f, m, &kv, WORLD_PROMPT, WORLD_ROWS);
    if (!rc)
        rc = forward_prefill(&f, 0, prompt, WORLD_PROMPT);
    if (!rc)
        rc = forward_run(&f, rows, WORLD_ROWS, FORWARD_LOGITS);
    if (!rc)
        memcpy(p->logits[me], f.host_logits, WORLD_ROWS * vocab * sizeof(float));
    if (!rc && f.experts)
        memcpy(p->experts[me], f.host_experts, sizeof p->experts[me]);
    forward_deinit(&f);
    kv_deinit(&kv);
    return rc;
}

static void pass_run(struct world_pass *p, const struct world_opts *o, int world,
                     const struct model_config *shape)
{
    struct world w;
    *p = (struct world_pass){.logits = {NULL}};
    world_open(&w, o, world, shape);
    for (int i = 0; i < world; i++)
        p->logits[i] = calloc((size_t)WORLD_ROWS * (size_t)shape->vocab, sizeof(float));
    ok(ranks_do(w.ranks, world_pass, p));
    world_close(&w);
}

static void pass_free(struct world_pass *p)
{
    for (int i = 0; i < COMM_WORLD_MAX; i++)
        free(p->logits[i]);
}

static double worst_share(const struct model_config *c, const float *a, const float *b)
{
    double worst = 0;
    for (int r = 0; r < WORLD_ROWS; r++) {
        const float *x = a + (size_t)r * (size_t)c->vocab, *y = b + (size_t)r * (size_t)c->vocab;
        const double bound = golden_bound(c, WORLD_PROMPT + r, golden_rms(y, c->vocab));
        for (int i = 0; i < c->vocab; i++)
            worst = fmax(worst, fabs((double)x[i] - (double)y[i]) / bound);
    }
    return worst;
}

void world_check(const struct world_opts *o, const struct model_config *shape, int world, double slack,
                 const char *what)
{
    const size_t bytes = (size_t)WORLD_ROWS * (size_t)shape->vocab * sizeof(float);
    struct world_pass whole, a, b;
    pass_run(&whole, o, 1, shape);
    pass_run(&a, o, world, shape);
    pass_run(&b, o, world, shape);
    for (int p = 0; p < world; p++) {
        ck_assert_msg(memcmp(a.logits[p], a.logits[0], bytes) == 0, "ranks 0 and %d differ", p);
        ck_assert_msg(memcmp(a.logits[p], b.logits[p], bytes) == 0, "two runs of rank %d differ", p);
        ck_assert_msg(memcmp(a.experts[p], whole.experts[0], sizeof a.experts[p]) == 0,
                      "rank %d chose other experts than a world of 1", p);
    }
    const double share = worst_share(shape, a.logits[0], whole.logits[0]) / slack;
    printf("%s, %d ranks: worst share of the bound %.3f\n", what, world, share);
    ck_assert_msg(share <= 1, "%s, %d ranks: off by %g of the bound", what, world, share);
    ck_assert_msg(memcmp(a.logits[0], whole.logits[0], bytes) != 0,
                  "sums cut in %d came out as one sum: nothing was cut", world);
    pass_free(&whole);
    pass_free(&a);
    pass_free(&b);
}

struct answers {
    int tokens[WORLD_REQUESTS][WORLD_ANSWER], n[WORLD_REQUESTS];
};

static void decode(const struct world_opts *how, const struct model_config *shape, int world,
                   const struct spec_opts *o, struct answers *out)
{
    struct world w;
    struct spec_group *g;
    struct spec_step step;
    *out = (struct answers){.n = {0}};
    world_open(&w, how, world, shape);
    ok(spec_group_open(&g, w.ranks, o));
    for (int next = 0, done = 0; done < WORLD_REQUESTS;) {
        while (next < WORLD_REQUESTS && spec_free_slots(spec_group_first(g)) > 0) {
            int prompt[TOY_PROMPT];
            const int n = toy_prompt(next, prompt);
            ok(spec_group_submit(g, &(struct spec_request){.prompt = prompt,
                                                           .n_prompt = n,
                                                           .max_tokens = WORLD_ANSWER,
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

void world_check_speculation(const struct world_opts *o, const struct model_config *shape, int world)
{
    const struct toy_draft none = toy_draft("none", NULL), ngram = toy_draft("ngram", NULL);
    for (int coupled = 0; coupled < 2; coupled++) {
        struct spec_opts plain = toy_spec_opts(&none), drafted = toy_spec_opts(&ngram);
        struct answers a, b;
        plain.slots = drafted.slots = 2;
        if (coupled) {
            plain.rule = drafted.rule = accept_rule_find("coupled");
            plain.sampling.temperature = drafted.sampling.temperature = 0.7f;
        }
        decode(o, shape, world, &plain, &a);
        decode(o, shape, world, &drafted, &b);
        ck_assert_int_eq(a.n[0], WORLD_ANSWER);
        ck_assert_mem_eq(&a, &b, sizeof a);
    }
}
