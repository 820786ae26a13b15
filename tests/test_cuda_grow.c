/* test_cuda_grow: what grows trees on the GPU leaves the CPU's bytes: true rows, lists, rows of a level,
 * trees. Best ids and their probabilities are random here, some of them equal and some not numbers. */
#include "engine/err.h"
#include "kernels/grow.h"
#include "kernels/philox.h"
#include "tests/cuda_suite.h"
#include "tests/expect.h"
#include "tests/toy_step.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAP = 60, SEEDS = 60 };

static struct backend cpu, gpu;

static const struct shape {
    const char *name;
    enum grow_shape shape;
    int top_k, slots, max_nodes, max_depth;
} shapes[] = {
    {"chain of 5", GROW_FIRST, 1, 1, 5, 5},         {"chain of 40", GROW_FIRST, 1, 3, 40, 40},
    {"static of 4", GROW_STATIC, 4, 4, 12, 4},      {"static of 32", GROW_STATIC, 32, 2, 60, 3},
    {"dynamic of 60", GROW_DYNAMIC, 10, 1, 60, 5},  {"dynamic, 3 slots", GROW_DYNAMIC, 3, 3, 9, 4},
    {"dynamic of 1", GROW_DYNAMIC, 1, 2, 4, 3},     {"one level", GROW_DYNAMIC, 8, 5, 3, 1},
    {"dynamic, wide", GROW_DYNAMIC, 32, 1, 200, 8}, {"dynamic, many slots", GROW_DYNAMIC, 4, 70, 10, 3},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* The operation's memory as one block, and its copy. */
struct rig {
    struct toy_step step;
    struct grow g, host; /* backend memory; the same in the copy */
    void *block, *copy;  /* owned */
    size_t bytes;
    int rows;
};

static void ok(int rc)
{
    EXPECT_MSG(rc == 0, "%s", err_text());
}

static size_t share(void *base, size_t *at, size_t bytes, void *out)
{
    void *p = base ? (char *)base + *at : NULL;
    memcpy(out, &p, sizeof p);
    *at += (bytes + 63) / 64 * 64;
    return *at;
}

static size_t share_all(const struct rig *r, struct grow *g, void *base)
{
    const size_t slots = (size_t)r->step.on.trees.slots, deep = (size_t)r->step.on.trees.max_depth,
                 word = sizeof(int), width = slots * (size_t)g->width, k = (size_t)g->top_k,
                 rows = (size_t)r->rows;
    size_t at = 0;
    share(base, &at, slots * word, &g->serial);
    share(base, &at, slots * word, &g->last);
    share(base, &at, slots * (size_t)g->max_candidates * sizeof *g->list, &g->list);
    share(base, &at, slots * word, &g->n);
    share(base, &at, slots * word, &g->n_frontier);
    share(base, &at, width * word, &g->frontier);
    share(base, &at, slots * k * word, &g->root_id);
    share(base, &at, slots * k * word, &g->root_log_p);
    share(base, &at, width * k * word, &g->id);
    share(base, &at, width * k * word, &g->log_p);
    int **const of_rows[] = {&g->token, &g->slot, &g->pos, &g->cell, &g->base, &g->path_off, &g->from};
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++)
        share(base, &at, rows * word, of_rows[i]);
    return share(base, &at, rows * deep * word, &g->path);
}

static void rig_open(struct rig *r, struct backend *be, const struct shape *s)
{
    const struct trees sizes = {.slots = s->slots, .max_nodes = s->max_nodes, .max_depth = s->max_depth};
    const int width = s->shape == GROW_FIRST ? 1 : s->shape == GROW_STATIC ? s->max_nodes : s->top_k;
    *r = (struct rig){.block = NULL};
    toy_step_open(&r->step, be, &sizes, CAP);
    r->g = (struct grow){.step = &r->step.on,
                         .shape = s->shape,
                         .top_k = s->top_k,
                         .width = width,
                         .max_candidates = grow_candidates(s->top_k, width, s->max_depth)};
    r->rows = s->slots * (width > 1 + s->max_depth ? width : 1 + s->max_depth);
    r->host = r->g;
    r->bytes = share_all(r, &r->g, NULL);
    ok(be->ops->alloc(be, r->bytes, &r->block));
    r->copy = calloc(1, r->bytes);
    EXPECT(r->copy);
    share_all(r, &r->g, r->block);
    share_all(r, &r->host, r->copy);
}

static void rig_close(struct rig *r)
{
    r->step.be->ops->release(r->step.be, r->block);
    toy_step_close(&r->step);
    free(r->copy);
}

static void fetch(struct rig *r)
{
    ok(r->step.be->ops->download(r->step.be, r->copy, r->block, r->bytes));
    toy_step_fetch(&r->step);
    memset(r->step.host.clock, 0, STEP_CLOCKS * sizeof *r->step.host.clock);
}

static void expect_words(const void *got, const void *want, size_t bytes, const char *what,
                         const struct shape *s, uint32_t seed, int level)
{
    const int *a = got, *b = want;
    for (size_t i = 0; i < bytes / sizeof *a; i++)
        EXPECT_MSG(a[i] == b[i], "%s, seed %u, level %d: %s: word %zu of %zu is %d, expected %d", s->name,
                   seed, level, what, i, bytes / sizeof *a, a[i], b[i]);
}

/* By name, so that the log says what is wrong; then the rest. */
static void compare(struct rig *on_gpu, struct rig *on_cpu, const struct shape *s, uint32_t seed, int level)
{
    const struct grow *a = &on_gpu->host, *b = &on_cpu->host;
    const size_t slots = (size_t)s->slots, rows = (size_t)on_gpu->rows, word = sizeof(int);
    fetch(on_gpu);
    fetch(on_cpu);
    expect_words(a->serial, b->serial, slots * word, "serial", s, seed, level);
    expect_words(a->last, b->last, slots * word, "last", s, seed, level);
    expect_words(a->n, b->n, slots * word, "n", s, seed, level);
    expect_words(a->n_frontier, b->n_frontier, slots * word, "n_frontier", s, seed, level);
    expect_words(a->list, b->list, slots * (size_t)b->max_candidates * sizeof *b->list, "list", s, seed,
                 level);
    expect_words(a->frontier, b->frontier, slots * (size_t)b->width * word, "frontier", s, seed, level);
    expect_words(a->token, b->token, rows * word, "token", s, seed, level);
    expect_words(a->slot, b->slot, rows * word, "slot", s, seed, level);
    expect_words(a->pos, b->pos, rows * word, "pos", s, seed, level);
    expect_words(a->cell, b->cell, rows * word, "cell", s, seed, level);
    expect_words(a->from, b->from, rows * word, "from", s, seed, level);
    expect_words(on_gpu->copy, on_cpu->copy, on_gpu->bytes, "memory of the operation", s, seed, level);
    expect_words(on_gpu->step.copy, on_cpu->step.copy, on_gpu->step.bytes, "state", s, seed, level);
}

/* Different ids for a row, and falling log-probabilities; with_ties: of few values. */
static void send_best(struct rig *r, const int *to_id, const float *to_log_p, int rows, uint32_t seed,
                      uint32_t what)
{
    const int k = r->g.top_k, n = rows * k;
    int *id = malloc((size_t)n * sizeof *id);
    float *log_p = malloc((size_t)n * sizeof *log_p);
    EXPECT(id && log_p);
    for (int i = 0; i < n; i++) {
        const uint32_t x = philox(41, seed, (uint32_t)i, what, 0).v[0];
        id[i] = (int)(x % 7) + i % k * 8;
        log_p[i] = seed % 3 == 0 ? -(float)(i % k) / 2 : -(float)(i % k) - philox_uniform(x);
    }
    ok(r->step.be->ops->upload(r->step.be, (void *)(uintptr_t)to_id, id, (size_t)n * sizeof *id));
    ok(r->step.be->ops->upload(r->step.be, (void *)(uintptr_t)to_log_p, log_p, (size_t)n * sizeof *log_p));
    free(id);
    free(log_p);
}

/* One step as the loop has it, but for the passes: true rows, the levels. */
static void run_steps(struct rig *r, uint32_t seed, int level)
{
    struct backend *be = r->step.be;
    if (level == 0) {
        ok(be->ops->grow_true(be, &r->g));
        return;
    }
    if (level == 1)
        send_best(r, r->g.root_id, r->g.root_log_p, r->step.on.trees.slots, seed, 1);
    else
        send_best(r, r->g.id, r->g.log_p, r->step.on.trees.slots * r->g.width, seed, (uint32_t)level);
    ok(be->ops->grow_level(be, &r->g, level));
}

/* A step went by: rows were laid, and some of the nodes are text. Then some slots have new requests. */
static void begin(struct rig *r, const struct toy_cache *c, uint32_t seed)
{
    struct backend *be = r->step.be;
    const struct step_commit commit = toy_step_commit(&r->step, c);
    struct seq_state *seq = r->step.host.seq;
    const int slots = r->step.host.trees.slots;
    toy_step_fill(&r->step, seed);
    memset(r->step.host.clock, 0, STEP_CLOCKS * sizeof *r->step.host.clock);
    for (int slot = 0; slot < slots && seed % 4; slot++) /* else they are about to end */
        seq[slot].end = seq[slot].context_end = CAP;
    toy_step_send(&r->step);
    memset(r->host.serial, 0, (size_t)slots * sizeof *r->host.serial);
    ok(be->ops->upload(be, r->g.serial, r->host.serial, (size_t)slots * sizeof *r->host.serial));
    ok(be->ops->grow_true(be, &r->g)); /* knows the requests now */
    ok(be->ops->step_plan(be, &r->step.on, r->step.on.max_rows));
    ok(be->ops->step_commit(be, &commit));
    toy_step_fetch(&r->step);
    for (int slot = 4; slot < slots; slot += 5)
        seq[slot].serial += 1000;
    toy_step_send(&r->step);
}

START_TEST(rows_lists_and_trees_have_the_bytes_of_the_cpu)
{
    const struct shape *s = &shapes[_i];
    struct rig on_gpu, on_cpu;
    struct toy_cache gpu_cache, cpu_cache;
    int trues = 0, nodes = 0;
    rig_open(&on_gpu, &gpu, s);
    rig_open(&on_cpu, &cpu, s);
    toy_cache_open(&gpu_cache, &on_gpu.step, 1, KV_WIDE);
    toy_cache_open(&cpu_cache, &on_cpu.step, 1, KV_WIDE);
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        begin(&on_gpu, &gpu_cache, seed);
        begin(&on_cpu, &cpu_cache, seed);
        for (int level = 0; level <= s->max_depth; level++) {
            run_steps(&on_gpu, seed, level);
            run_steps(&on_cpu, seed, level);
            compare(&on_gpu, &on_cpu, s, seed, level);
            for (int slot = 0; level == 0 && slot < s->slots; slot++)
                trues += on_cpu.host.last[slot] >= 0;
        }
        for (int slot = 0; slot < s->slots; slot++)
            nodes += on_cpu.step.host.trees.n[slot];
    }
    printf("grow, %s: %d slots with true rows, %d nodes\n", s->name, trues, nodes);
    ck_assert_int_gt(trues, SEEDS / 4);
    ck_assert_int_gt(nodes, SEEDS);
    toy_cache_close(&gpu_cache, &on_gpu.step);
    toy_cache_close(&cpu_cache, &on_cpu.step);
    rig_close(&on_gpu);
    rig_close(&on_cpu);
}
END_TEST

/* The bits of a NaN are the machine's own, so trees are compared, not lists. */
START_TEST(what_is_no_number_comes_last)
{
    const struct shape *s = &shapes[5];
    struct rig r[2];
    struct backend *const on[] = {&gpu, &cpu};
    const float log_p[] = {NAN, -1, NAN, -3, NAN, -INFINITY, NAN, NAN, NAN};
    const int id[] = {9, 8, 7, 6, 5, 4, 3, 2, 1};
    for (int i = 0; i < 2; i++) {
        struct toy_step *t = &r[i].step;
        rig_open(&r[i], on[i], s);
        for (int slot = 0; slot < s->slots; slot++)
            toy_step_text(t, slot, id, 9, 1, 40);
        toy_step_send(t);
        ok(on[i]->ops->grow_true(on[i], &r[i].g));
        for (int level = 1; level <= s->max_depth; level++) {
            void *const to[] = {(void *)(uintptr_t)r[i].g.root_id, (void *)(uintptr_t)r[i].g.root_log_p,
                                (void *)(uintptr_t)r[i].g.id, (void *)(uintptr_t)r[i].g.log_p};
            for (int slot = 0; slot < s->slots * (level > 1 ? 3 : 1); slot += 3) {
                const size_t at = (size_t)slot * 3 * sizeof(float),
                             all = level > 1 ? sizeof id : 9 * sizeof(int);
                ok(on[i]->ops->upload(on[i], (char *)to[level > 1 ? 2 : 0] + at, id, all));
                ok(on[i]->ops->upload(on[i], (char *)to[level > 1 ? 3 : 1] + at, log_p, all));
            }
            ok(on[i]->ops->grow_level(on[i], &r[i].g, level));
        }
        fetch(&r[i]);
    }
    for (int slot = 0; slot < s->slots; slot++) {
        const struct trees *a = &r[0].step.host.trees, *b = &r[1].step.host.trees;
        ck_assert_int_eq(a->n[slot], b->n[slot]);
        ck_assert_int_gt(a->n[slot], 0);
        for (int k = 0; k < a->n[slot]; k++) {
            const int at = slot * a->max_nodes + k;
            EXPECT_MSG(a->token[at] == b->token[at] && a->parent[at] == b->parent[at] && a->parent[at] < k,
                       "slot %d node %d is %d below %d, expected %d below %d", slot, k, a->token[at],
                       a->parent[at], b->token[at], b->parent[at]);
        }
    }
    for (int i = 0; i < 2; i++)
        rig_close(&r[i]);
}
END_TEST

int main(void)
{
    if (cuda_suite_skips("test_cuda_grow"))
        return CUDA_SUITE_SKIPPED;
    ok(backend_open(&cpu, "cpu", &(struct backend_opts){.threads = 1}));
    ok(backend_open(&gpu, "cuda", &(struct backend_opts){0}));
    Suite *s = suite_create("cuda_grow");
    TCase *c = tcase_create("grow");
    tcase_add_loop_test(c, rows_lists_and_trees_have_the_bytes_of_the_cpu, 0, SHAPES);
    tcase_add_test(c, what_is_no_number_comes_last);
    suite_add_tcase(s, c);
    const int rc = cuda_suite_run(s);
    backend_close(&gpu);
    backend_close(&cpu);
    return rc;
}
