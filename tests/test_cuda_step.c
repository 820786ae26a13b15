/* test_cuda_step: the step on the GPU. Its operations leave the CPU's bytes; the loop around them waits for
 * nothing and allocates nothing; recorded or not, alone or with others, with steps under way or an answer cut
 * among them, answers are the same. */
#include "engine/err.h"
#include "engine/log.h"
#include "kernels/philox.h"
#include "tests/cuda_suite.h"
#include "tests/expect.h"
#include "tests/toy_loop.h"
#include "tests/toy_step.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAP = 40, SEEDS = 200, REQUESTS = 12 };
static struct backend cpu, gpu;
static struct model model; /* the toy's, on gpu */
static const struct trees shapes[] = {
    {.slots = 1, .max_nodes = 0, .max_depth = 0},   {.slots = 1, .max_nodes = 5, .max_depth = 5},
    {.slots = 4, .max_nodes = 12, .max_depth = 4},  {.slots = 7, .max_nodes = 3, .max_depth = 8},
    {.slots = 3, .max_nodes = 80, .max_depth = 80}, {.slots = 300, .max_nodes = 2, .max_depth = 2}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void ok(int rc)
{
    EXPECT_MSG(rc == 0, "%s", err_text());
}

static void setup(void)
{
    const struct model_config cfg = toy_config();
    ok(backend_open(&cpu, "cpu", &(struct backend_opts){.threads = 1}));
    ok(backend_open(&gpu, "cuda", &(struct backend_opts){0}));
    ok(model_synthetic(&model, &gpu, &cfg, TOY_SEED, NULL));
}

static void teardown(void)
{
    model_deinit(&model);
    backend_close(&gpu);
    backend_close(&cpu);
}

static void expect_bytes(const void *got, const void *want, size_t n, const char *what, uint32_t seed)
{
    const int *a = got, *b = want;
    for (size_t i = 0; i < n / sizeof *a; i++)
        EXPECT_MSG(a[i] == b[i], "%s, seed %u: word %zu of %zu is %d, expected %d", what, seed, i,
                   n / sizeof *a, a[i], b[i]);
}

static void clear_clock(struct toy_step *t)
{
    memset(t->host.clock, 0, STEP_CLOCKS * sizeof *t->host.clock);
}

static void run_operations(struct toy_step *t, const struct toy_cache *c, uint32_t seed)
{
    struct backend *be = t->be;
    const struct step_commit a = toy_step_commit(t, c);
    toy_step_fill(t, seed);
    *t->host_counter = seed;
    clear_clock(t);
    toy_step_send(t);
    ok(be->ops->step_plan(be, &t->on, t->on.max_rows));
    ok(be->ops->stamp(be, &t->on.clock[STEP_ACCEPT]));
    ok(be->ops->step_commit(be, &a));
    toy_step_fetch(t);
}

/* The entry but for its clock. Words that no step wrote are 0 in both. */
static void expect_entry(const struct toy_step *got, const struct toy_step *want, uint32_t seed)
{
    const struct toy_cache no_cache = {.n = 0};
    const struct step_commit of_got = toy_step_commit(got, &no_cache),
                             of_want = toy_step_commit(want, &no_cache);
    struct step_entry a = toy_step_entry(got, &of_got, seed), b = toy_step_entry(want, &of_want, seed);
    for (int i = 1; i < STEP_CLOCKS; i++)
        EXPECT_MSG(a.head->clock[i] >= a.head->clock[i - 1] && a.head->clock[0] > 0,
                   "seed %u: clock %d is %lld after %lld", seed, i, (long long)a.head->clock[i],
                   (long long)a.head->clock[i - 1]);
    memset(a.head->clock, 0, sizeof a.head->clock);
    memset(b.head->clock, 0, sizeof b.head->clock);
    expect_bytes(a.head, b.head, step_entry_bytes(&got->host.trees, &of_got.experts), "record", seed);
}

START_TEST(plan_and_commit_leave_the_bytes_of_the_cpu)
{
    struct toy_step on_gpu, on_cpu;
    struct toy_cache gpu_cache, cpu_cache;
    toy_step_open(&on_gpu, &gpu, &shapes[_i], CAP);
    toy_step_open(&on_cpu, &cpu, &shapes[_i], CAP);
    toy_cache_open(&gpu_cache, &on_gpu, 2, KV_WIDE);
    toy_cache_open(&cpu_cache, &on_cpu, 2, KV_WIDE);
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        run_operations(&on_gpu, &gpu_cache, seed);
        run_operations(&on_cpu, &cpu_cache, seed);
        expect_entry(&on_gpu, &on_cpu, seed);
        clear_clock(&on_gpu);
        clear_clock(&on_cpu);
        expect_bytes(on_gpu.copy, on_cpu.copy, on_gpu.bytes, "state", seed);
    }
    toy_cache_close(&gpu_cache, &on_gpu);
    toy_cache_close(&cpu_cache, &on_cpu);
    toy_step_close(&on_gpu);
    toy_step_close(&on_cpu);
}
END_TEST

/* One array of the cache: the cell at position n + i was that of the i-th accepted node, the others stay. */
static void expect_cells(const struct toy_step *t, const struct toy_cache *c, int array,
                         const unsigned char *bytes)
{
    const struct step *s = &t->host;
    const size_t cells = (size_t)c->host[0].cap,
                 cell_bytes = c->bytes / ((size_t)s->trees.slots * TOY_CACHE_HEADS * cells);
    for (int slot = 0; slot < s->trees.slots; slot++)
        for (size_t h = 0; h < TOY_CACHE_HEADS; h++)
            for (int cell = 0; cell < (int)cells; cell++) {
                const int in_pass = s->first_row[slot] >= 0,
                          n = in_pass ? s->cell[s->first_row[slot]] + 1 : 0, i = cell - n,
                          moved = in_pass && i >= 0 && i < s->accepted[slot];
                const int from = moved ? n + s->accepted_path[slot * s->trees.max_depth + i] : cell;
                const size_t head = ((size_t)slot * TOY_CACHE_HEADS + h) * cells;
                for (size_t b = 0; b < cell_bytes; b++)
                    EXPECT_MSG(bytes[(head + (size_t)cell) * cell_bytes + b] ==
                                   toy_cache_byte(array, (head + (size_t)from) * cell_bytes + b),
                               "array %d, slot %d, head %zu, cell %d (from %d), byte %zu", array, slot, h,
                               cell, from, b);
            }
}

START_TEST(accepted_cells_move_in_all_layers_and_no_others)
{
    const enum kv_form form = _i % 2 ? KV_FP8 : KV_WIDE;
    struct toy_step t;
    struct toy_cache c;
    toy_step_open(&t, &gpu, &shapes[1 + _i / 2], CAP);
    toy_cache_open(&c, &t, 3, form);
    unsigned char *bytes = malloc(c.bytes);
    EXPECT(bytes);
    for (uint32_t seed = 0; seed < 20; seed++) {
        toy_cache_fill(&c, &t);
        run_operations(&t, &c, seed);
        for (int array = 0; array < 6; array++) {
            ok(gpu.ops->download(&gpu, bytes, array % 2 ? c.host[array / 2].v : c.host[array / 2].k,
                                 c.bytes));
            ok(gpu.ops->sync(&gpu));
            expect_cells(&t, &c, array, bytes);
        }
    }
    free(bytes);
    toy_cache_close(&c, &t);
    toy_step_close(&t);
}
END_TEST

/* Texts of an alphabet that changes from slot to slot, up to the length where a block reads many rounds. */
static void fill_texts(struct toy_step *t, uint32_t seed, int shortest)
{
    static const int alphabet[] = {1, 2, 3, 5, 20, 400};
    struct step *s = &t->host;
    for (int slot = 0; slot < s->trees.slots; slot++) {
        const uint32_t id = seed * 16 + (uint32_t)slot;
        const struct philox4 r = philox(31, id, 0, 1, 0);
        const int n = shortest + (int)(r.v[0] % (uint32_t)(s->cap - shortest)), room = s->cap - n;
        s->seq[slot] = (struct seq_state){.live = r.v[1] % 8 > 0,
                                          .n = n,
                                          .n_prompt = 1 + (int)(r.v[2] % (uint32_t)n),
                                          .end = n + 1 + (int)(r.v[3] % (uint32_t)(room < 12 ? room : 12)),
                                          .context_end = s->cap};
        for (int i = 0; i < n; i++)
            s->text[(size_t)slot * (size_t)s->cap + (size_t)i] =
                (int)(philox(32, id, (uint32_t)i, 1, 0).v[0] %
                      (uint32_t)alphabet[(seed + (uint32_t)slot) % 6]);
    }
}

static void search(struct toy_step *t, const struct ngram *options)
{
    struct ngram a = *options;
    a.seq = t->on.seq;
    a.text = t->on.text;
    a.cap = t->on.cap;
    a.trees = &t->on.trees;
    a.begin = &t->on.clock[STEP_BEGIN];
    clear_clock(t);
    toy_step_send(t);
    ok(t->be->ops->ngram(t->be, &a));
    toy_step_fetch(t);
    EXPECT(t->host.clock[STEP_BEGIN] > 0);
    clear_clock(t);
}

static int compare_searches(const struct trees *shape, int cap, int shortest, uint32_t seeds)
{
    struct toy_step on_gpu, on_cpu;
    int nodes = 0;
    toy_step_open(&on_gpu, &gpu, shape, cap);
    toy_step_open(&on_cpu, &cpu, shape, cap);
    for (uint32_t seed = 0; seed < seeds; seed++) {
        const struct ngram options = {.min = 1 + (int)(seed % 3),
                                      .max = 3 + (int)(seed % 30),
                                      .branches = 1 + (int)(seed % 7) * 2,
                                      .match = seed % 2 ? NGRAM_RECENT : NGRAM_FIRST,
                                      .scope = seed % 5 == 4 ? NGRAM_PROMPT : NGRAM_ALL};
        fill_texts(&on_gpu, seed, shortest);
        fill_texts(&on_cpu, seed, shortest);
        search(&on_gpu, &options);
        search(&on_cpu, &options);
        expect_bytes(on_gpu.copy, on_cpu.copy, on_gpu.bytes, "ngram", seed);
        for (int slot = 0; slot < shape->slots; slot++)
            nodes += on_cpu.host.trees.n[slot];
    }
    toy_step_close(&on_gpu);
    toy_step_close(&on_cpu);
    return nodes;
}

START_TEST(ngram_proposes_what_the_cpu_proposes)
{
    const struct trees small = {.slots = 5, .max_nodes = 9, .max_depth = 4},
                       large = {.slots = 2, .max_nodes = 70, .max_depth = 40},
                       none = {.slots = 2, .max_nodes = 0, .max_depth = 0};
    ck_assert_int_gt(compare_searches(&small, 60, 1, 600), 1000);
    ck_assert_int_gt(compare_searches(&small, 5000, 500, 60), 200);
    ck_assert_int_gt(compare_searches(&large, 3000, 400, 60), 500);
    ck_assert_int_eq(compare_searches(&none, 60, 1, 4), 0);
}
END_TEST

static struct spec_opts opts_of(const struct toy_draft *d, struct toy_answer *plain, int coupled)
{
    struct spec_opts o = toy_spec_opts(d);
    o.rule = accept_rule_find(coupled ? "coupled" : "greedy");
    o.sampling.temperature = coupled ? 0.8f : 0;
    o.max_nodes = 11;
    o.slots = 4;
    o.reference = toy_reference;
    o.reference_ctx = plain;
    return o;
}

enum { DRAFTS = 4 };
static struct toy_draft draft_of(int i)
{
    return i == 0   ? toy_draft("none", NULL)
           : i == 1 ? toy_draft("ngram", NULL)
           : i == 2 ? toy_draft("ngram", "min=1", "max=2", "match=1", "branches=3", NULL)
                    : toy_draft("oracle", "accept=0.7", NULL);
}

/* Plain decoding, one sequence at a time. */
static void plain_answers(int coupled, struct toy_answer *plain)
{
    const struct toy_draft none = draft_of(0);
    struct spec_opts o = opts_of(&none, plain, coupled);
    o.slots = 1;
    toy_run(&model, &o, REQUESTS, NULL, plain);
}

static int run_to_the_end(struct spec *s)
{
    struct spec_step step = {.n_records = 0};
    int steps = 0;
    while (spec_active(s) > 0) {
        ok(spec_step(s, &step));
        steps++;
    }
    return steps;
}

START_TEST(a_step_waits_for_nothing_and_allocates_nothing)
{
    static struct toy_answer plain[TOY_REQUESTS];
    static int prompt[4][TOY_PROMPT];
    plain_answers(0, plain);
    for (int d = 0; d < DRAFTS; d++) {
        const struct toy_draft draft = draft_of(d);
        const struct spec_opts o = opts_of(&draft, plain, 0);
        struct spec *s = NULL;
        ok(spec_open(&s, &model, &o));
        for (int i = 0; i < 4; i++) {
            const struct spec_request r = {prompt[i], toy_prompt(i, prompt[i]), 12 + 11 * i, (uint32_t)i,
                                           NULL};
            ok(spec_submit(s, &r));
        }
        ok(gpu.ops->sync(&gpu)); /* what the prompts uploaded is through */
        const size_t syncs = gpu.syncs, allocs = gpu.allocs, allocated = gpu.allocated;
        const int steps = run_to_the_end(s);
        EXPECT_MSG(gpu.syncs == syncs, "draft %d: %zu waits in %d steps", d, gpu.syncs - syncs, steps);
        EXPECT_MSG(gpu.allocs == allocs && gpu.allocated == allocated,
                   "draft %d: %zu allocations in %d steps", d, gpu.allocs - allocs, steps);
        ck_assert_int_gt(steps, 5);
        spec_close(s);
    }
}
END_TEST

START_TEST(graph_and_eager_give_the_same_answers)
{
    static struct toy_answer plain[TOY_REQUESTS], answer[TOY_REQUESTS];
    const struct model_config cfg = toy_config();
    struct backend eager;
    struct model on_eager;
    plain_answers(_i, plain);
    ok(backend_open(&eager, "cuda", &(struct backend_opts){.eager = 1}));
    ok(model_synthetic(&on_eager, &eager, &cfg, TOY_SEED, NULL));
    for (int d = 0; d < DRAFTS; d++) {
        const struct toy_draft draft = draft_of(d);
        const struct spec_opts o = opts_of(&draft, plain, _i);
        toy_run(&on_eager, &o, REQUESTS, NULL, answer);
        for (int i = 0; i < REQUESTS; i++)
            toy_assert_same(&plain[i], &answer[i], "eager");
    }
    model_deinit(&on_eager);
    backend_close(&eager);
}
END_TEST

/* Lengths of all kinds, so that slots end and are filled again while others run. */
START_TEST(one_to_eight_at_once_are_each_as_alone)
{
    static struct toy_answer plain[TOY_REQUESTS], answer[TOY_REQUESTS];
    int max_tokens[REQUESTS];
    plain_answers(_i, plain);
    for (int i = 0; i < REQUESTS; i++)
        plain[i].n = max_tokens[i] = 1 + i * 7 % (TOY_ANSWER / 2);
    for (int slots = 1; slots <= 8; slots++)
        for (int d = 0; d < DRAFTS; d++) {
            char what[64];
            const struct toy_draft draft = draft_of(d);
            struct spec_opts o = opts_of(&draft, plain, _i);
            o.slots = slots;
            o.trace = d % 2 ? TRACE_FULL : TRACE_STEPS;
            toy_run(&model, &o, REQUESTS, max_tokens, answer);
            snprintf(what, sizeof what, "draft %d, %d at once", d, slots);
            for (int i = 0; i < REQUESTS; i++)
                toy_assert_same(&plain[i], &answer[i], what);
        }
}
END_TEST

START_TEST(a_stop_string_cuts_an_answer_with_steps_under_way)
{
    static struct toy_answer plain[TOY_REQUESTS], expected[TOY_REQUESTS], answer[TOY_REQUESTS];
    struct tokenizer *tokenizer = toy_letters();
    int stopped = 0;
    plain_answers(0, plain);
    for (int from = 0; from < 12; from++) {
        char text[8];
        const char *const strings[] = {"never said", text};
        const struct stop_rules stop = {.strings = strings, .n_strings = 2, .tokenizer = tokenizer};
        if (!toy_spell(&plain[from], from, 1 + from % 5, text))
            continue;
        for (int d = 0; d < DRAFTS; d++) {
            const struct toy_draft draft = draft_of(d);
            struct spec_opts o = opts_of(&draft, plain, 0);
            o.stop = stop;
            o.slots = d ? 3 : 1;
            toy_run(&model, &o, REQUESTS, NULL, d ? answer : expected);
            for (int i = 0; i < REQUESTS && d; i++)
                toy_assert_same(&expected[i], &answer[i], "stop string");
        }
        ck_assert_int_eq(expected[from].reason, FINISH_STOP_STRING);
        ck_assert_int_le(expected[from].n, from + 1 + from % 5);
        ck_assert_mem_eq(expected[from].tokens, plain[from].tokens, (size_t)expected[from].n * sizeof(int));
        stopped++;
    }
    ck_assert_int_gt(stopped, 5);
    tokenizer_close(tokenizer);
}
END_TEST

START_TEST(an_aborted_loop_starts_afresh)
{
    static struct toy_answer plain[TOY_REQUESTS];
    const struct toy_draft ngram = draft_of(2);
    struct spec *s = NULL;
    struct spec_step step;
    int prompt[TOY_PROMPT], n = 0;
    plain_answers(0, plain);
    const struct spec_opts o = opts_of(&ngram, plain, 0);
    ok(spec_open(&s, &model, &o));
    for (int round = 0; round < 3; round++) {
        const struct spec_request r = {prompt, toy_prompt(1, prompt), TOY_ANSWER / 2, 1, NULL};
        ok(spec_submit(s, &r));
        for (int i = 0; i < 1 + round; i++)
            ok(spec_step(s, &step));
        spec_abort(s);
        ck_assert_int_eq(spec_active(s), 0);
    }
    const struct spec_request r = {prompt, toy_prompt(1, prompt), TOY_ANSWER / 2, 1, NULL};
    ok(spec_submit(s, &r));
    do {
        ok(spec_step(s, &step));
        ck_assert_mem_eq(step.records[0].tokens, plain[1].tokens + n,
                         (size_t)step.records[0].emitted * sizeof(int));
        n += step.records[0].emitted;
    } while (step.n_finished == 0);
    ck_assert_int_eq(n, plain[1].n);
    spec_close(s);
}
END_TEST

int main(void)
{
    struct backend be;
    log_set_level(LOG_WARN);
    if (backend_open(&be, "cuda", &(struct backend_opts){0})) {
        printf("test_cuda_step: skipped: %s\n", err_text());
        return CUDA_SUITE_SKIPPED;
    }
    printf("test_cuda_step: %s\n", be.device);
    backend_close(&be);
    Suite *s = suite_create("cuda_step");
    TCase *ops = tcase_create("operations"), *loop = tcase_create("loop");
    tcase_add_unchecked_fixture(ops, setup, teardown);
    tcase_add_loop_test(ops, plan_and_commit_leave_the_bytes_of_the_cpu, 0, SHAPES);
    tcase_add_loop_test(ops, accepted_cells_move_in_all_layers_and_no_others, 0, 8);
    tcase_add_test(ops, ngram_proposes_what_the_cpu_proposes);
    tcase_add_unchecked_fixture(loop, setup, teardown);
    tcase_add_test(loop, a_step_waits_for_nothing_and_allocates_nothing);
    tcase_add_loop_test(loop, graph_and_eager_give_the_same_answers, 0, 2);
    tcase_add_loop_test(loop, one_to_eight_at_once_are_each_as_alone, 0, 2);
    tcase_add_test(loop, a_stop_string_cuts_an_answer_with_steps_under_way);
    tcase_add_test(loop, an_aborted_loop_starts_afresh);
    suite_add_tcase(s, ops);
    suite_add_tcase(s, loop);
    return cuda_suite_run(s);
}
