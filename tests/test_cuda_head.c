/* test_cuda_head: the draft network on the GPU and the two operations that only it needs. gather and top are
 * held to their references, a pass to the CPU's; a row's bits do not depend on its company. */
#include "engine/err.h"
#include "engine/head.h"
#include "engine/log.h"
#include "kernels/act.h"
#include "kernels/gather.h"
#include "kernels/philox.h"
#include "kernels/top.h"
#include "tests/cuda_data.h"
#include "tests/expect.h"
#include "tests/toy.h"
#include <math.h>
#include <stdio.h>

enum { ROWS = 20, SOURCES = 9, PARTS = 3 };
#define EPS 1e-5f

static void ok(int rc)
{
    EXPECT_MSG(rc == 0, "%s", err_text());
}

static float uniform(uint32_t stream, size_t i)
{
    return 2 * philox_uniform(philox(12, stream, 0, 0, (uint32_t)i).v[0]) - 1;
}

/* ---- gather ---- */

static const int dims[] = {2, 16, 18, 64, 100, 576, 1026, 4096, 5120};

struct rig {
    int dim, steps;
    float *x, *w;      /* [SOURCES, dim], [dim] */
    float *y, *want_y; /* [ROWS, PARTS * dim] */
    uint16_t *act;
    float *want_act; /* as want_y */
    float *device_x, *device_w, *device_y;
    uint16_t *device_act;
    int *device_from;
};

static size_t act_numbers(int k)
{
    return (ROWS + ACT_ROWS - 1) / ACT_ROWS * act_tile(k);
}

static void rig_open(struct rig *g, int dim)
{
    const size_t n = (size_t)dim, k = PARTS * n;
    *g = (struct rig){.dim = dim};
    g->x = alloc(SOURCES * n * sizeof(float));
    g->w = alloc(n * sizeof(float));
    g->y = alloc(ROWS * k * sizeof(float));
    g->want_y = alloc(ROWS * k * sizeof(float));
    g->act = alloc(act_numbers((int)k) * sizeof *g->act);
    g->want_act = alloc(ROWS * k * sizeof(float));
    for (size_t i = 0; i < SOURCES * n; i++)
        g->x[i] = ldexpf(uniform(1, i), (int)(i / n) * 3 - 9);
    for (size_t i = 0; i < n; i++)
        g->w[i] = 2 * uniform(2, i);
    g->device_x = to_device(g->x, SOURCES * n * sizeof(float));
    g->device_w = to_device(g->w, n * sizeof(float));
    g->device_y = to_device(NULL, ROWS * k * sizeof(float));
    g->device_act = to_device(NULL, act_numbers((int)k) * sizeof *g->act);
}

static void rig_close(struct rig *g)
{
    void *const lent[] = {g->device_x, g->device_w, g->device_y, g->device_act, g->device_from},
                *const owned[] = {g->x, g->w, g->y, g->want_y, g->act, g->want_act};
    for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
        cudaFree(lent[i]);
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
}

/* Rows `first` and on of a list with every source, some of them twice, and gaps. */
static int source_of(int row)
{
    return row % 4 == 3 ? -1 : row * 5 % SOURCES;
}

/* All parts of the act, the rows of y with the last one; outputs are cleared before. */
static void run(struct rig *g, int rows, int normed)
{
    int from[ROWS];
    const int k = PARTS * g->dim;
    const size_t bytes = ROWS * (size_t)k * sizeof(float);
    for (int r = 0; r < ROWS; r++)
        from[r] = source_of(r);
    cudaFree(g->device_from);
    g->device_from = to_device(from, sizeof from);
    cuda_ok(cudaMemset(g->device_y, UNTOUCHED, bytes), "clearing");
    cuda_ok(cudaMemset(g->device_act, UNTOUCHED, act_numbers(k) * sizeof *g->act), "clearing");
    memset(g->want_y, UNTOUCHED, bytes);
    for (int part = 0; part < PARTS; part++) {
        struct gather a = {.x = g->device_x,
                           .from = g->device_from,
                           .w = normed ? g->device_w : NULL,
                           .y = g->device_y,
                           .act = g->device_act,
                           .k = k,
                           .column = part * g->dim,
                           .rows = rows,
                           .dim = g->dim,
                           .eps = EPS};
        cuda_ok(gather_cuda(&a, NULL), "launching gather");
        a.x = g->x;
        a.from = from;
        a.w = normed ? g->w : NULL;
        a.y = g->want_y;
        a.act = g->want_act;
        gather_ref(&a);
    }
    from_device(g->y, g->device_y, bytes);
    from_device(g->act, g->device_act, act_numbers(k) * sizeof *g->act);
}

/* Numbers of a row of the act: those of y, rounded; then zeros up to a whole step; nothing else is written.
 */
static void check_act_row(const struct rig *g, int r, int rows)
{
    const int k = PARTS * g->dim, padded = (k + ACT_STEP - 1) / ACT_STEP * ACT_STEP,
              written = r < rows && source_of(r) >= 0;
    for (int i = 0; i < padded; i++) {
        const uint16_t got = g->act[act_at(r, i, k)],
                       made = i < k ? bf16_from_f32(g->y[(size_t)r * (size_t)k + (size_t)i]) : 0,
                       want = written ? made : UNTOUCHED << 8 | UNTOUCHED;
        EXPECT_MSG(got == want, "dim %d, %d rows: row %d input %d of the act is %04x, expected %04x", g->dim,
                   rows, r, i, got, want);
    }
}

START_TEST(copies_are_exact_and_nothing_else_is_touched)
{
    struct rig g;
    rig_open(&g, dims[_i]);
    for (int rows = 1; rows <= ROWS; rows++) {
        run(&g, rows, 0);
        for (int r = 0; r < ROWS; r++) {
            const size_t k = PARTS * (size_t)g.dim, bytes = k * sizeof(float), at = (size_t)r * k;
            EXPECT_MSG(memcmp(g.y + at, g.want_y + at, bytes) == 0,
                       "dim %d, %d rows: row %d begins with %a, expected %a", g.dim, rows, r, (double)g.y[at],
                       (double)g.want_y[at]);
            check_act_row(&g, r, rows);
        }
    }
    rig_close(&g);
}
END_TEST

/* A thread adds dim / 512 pairs, then 5 and 7 sums follow: as many roundings of the sum of squares, half of
 * that in its root; the root, its reciprocal, the mean and two products round once each. */
START_TEST(norms_are_near_the_reference_and_the_same_in_any_company)
{
    struct rig g;
    double worst = 0;
    rig_open(&g, dims[_i]);
    const double relative = (g.dim / 512.0 * 2 + 4 + 12) / 2 * 0x1p-24 + 6 * 0x1p-24;
    const size_t k = PARTS * (size_t)g.dim;
    float *first = alloc(ROWS * k * sizeof *first);
    for (int rows = ROWS; rows > 0; rows -= 6) {
        run(&g, rows, 1);
        for (int r = 0; r < rows; r++) {
            check_act_row(&g, r, rows);
            for (size_t i = 0; i < k && source_of(r) >= 0; i++) {
                const size_t at = (size_t)r * k + i;
                const double share = fabs((double)g.y[at] - (double)g.want_y[at]) /
                                     (relative * fabs((double)g.want_y[at]) + 1e-37);
                EXPECT_MSG(share <= 1, "dim %d: row %d number %zu is %a, expected %a: %.2f of the bound",
                           g.dim, r, i, (double)g.y[at], (double)g.want_y[at], share);
                worst = fmax(worst, share);
            }
        }
        if (rows == ROWS)
            memcpy(first, g.y, ROWS * k * sizeof *first);
        EXPECT_MSG(memcmp(first, g.y, (size_t)rows * k * sizeof *first) == 0,
                   "dim %d: %d rows differ from %d", g.dim, rows, ROWS);
    }
    printf("gather, norm of %d: %.1f %% of the bound\n", g.dim, 100 * worst);
    free(first);
    rig_close(&g);
}
END_TEST

START_TEST(a_norm_may_go_where_it_came_from)
{
    struct rig g;
    rig_open(&g, dims[_i]);
    const size_t bytes = SOURCES * (size_t)g.dim * sizeof(float);
    struct gather a = {.x = g.device_x,
                       .w = g.device_w,
                       .y = g.device_y,
                       .k = g.dim,
                       .rows = SOURCES,
                       .dim = g.dim,
                       .eps = EPS};
    cuda_ok(gather_cuda(&a, NULL), "launching gather");
    from_device(g.want_y, g.device_y, bytes);
    a.y = g.device_x;
    cuda_ok(gather_cuda(&a, NULL), "launching gather in place");
    from_device(g.y, g.device_x, bytes);
    EXPECT_MSG(memcmp(g.y, g.want_y, bytes) == 0, "dim %d: in place begins with %a, expected %a", g.dim,
               (double)g.y[0], (double)g.want_y[0]);
    rig_close(&g);
}
END_TEST

/* ---- top ---- */

enum { TOP_ROWS = 5, CONTENTS = 6 };
static const int vocabs[] = {1, 2, 33, 1000, 1024, 1025, 2048, 32000, 49152, 202048};

/* What is hard for whom: ties, everything the same, rising, all the large ones with one thread, not numbers.
 */
static float logit(int content, int row, int v, int vocab)
{
    const float u = 8 * uniform(20 + (uint32_t)row, (size_t)v);
    switch (content) {
    case 0:
        return u;
    case 1:
        return floorf(u);
    case 2:
        return row % 2 ? 0.0f : -0.0f;
    case 3:
        return row % 2 ? (float)v * 0x1p-10f : (float)(vocab - v) * 0x1p-10f;
    case 4:
        return v % 1024 == 5 * row ? u + 40 : u;
    default:
        return v % 3 == row % 3 ? NAN : v % 7 == 0 ? -INFINITY : u;
    }
}

static void compare_top(int content, int vocab, int k)
{
    static const int from[TOP_ROWS] = {4, 0, -1, 2, 2};
    const size_t n = TOP_ROWS * (size_t)vocab, best = TOP_ROWS * (size_t)k;
    float *x = alloc(n * sizeof *x), log_p[TOP_ROWS * TOP_MAX], want_log_p[TOP_ROWS * TOP_MAX];
    int id[TOP_ROWS * TOP_MAX], want_id[TOP_ROWS * TOP_MAX], *map = alloc((size_t)vocab * sizeof *map);
    for (size_t i = 0; i < n; i++)
        x[i] = logit(content, (int)(i / (size_t)vocab), (int)(i % (size_t)vocab), vocab);
    for (int v = 0; v < vocab; v++)
        map[v] = 3 * v + 1;
    float *device_x = to_device(x, n * sizeof *x), *device_log_p = to_device(NULL, best * sizeof *log_p);
    int *device_id = to_device(NULL, best * sizeof *id), *device_from = to_device(from, sizeof from),
        *device_map = to_device(map, (size_t)vocab * sizeof *map);
    struct top a = {.logits = device_x,
                    .from = device_from,
                    .map = content % 2 ? device_map : NULL,
                    .id = device_id,
                    .log_p = device_log_p,
                    .rows = TOP_ROWS,
                    .vocab = vocab,
                    .k = k};
    cuda_ok(top_cuda(&a, NULL), "launching top");
    from_device(id, device_id, best * sizeof *id);
    from_device(log_p, device_log_p, best * sizeof *log_p);
    memset(want_id, UNTOUCHED, sizeof want_id);
    memset(want_log_p, UNTOUCHED, sizeof want_log_p);
    a.logits = x;
    a.from = from;
    a.map = content % 2 ? map : NULL;
    a.id = want_id;
    a.log_p = want_log_p;
    top_ref(&a);
    for (size_t i = 0; i < best; i++) {
        /* a thread's sum, ten more, exponentials of 2 ulp and the logarithm; then the difference of the
         * logits */
        const double bound = (vocab / 1024 + 16) * 0x1p-23 + 4 * 0x1p-24 * fabs((double)want_log_p[i]);
        EXPECT_MSG(id[i] == want_id[i], "content %d, vocab %d, k %d: row %zu place %zu is id %d, expected %d",
                   content, vocab, k, i / (size_t)k, i % (size_t)k, id[i], want_id[i]);
        EXPECT_MSG((isnan(log_p[i]) && isnan(want_log_p[i])) || log_p[i] == want_log_p[i] ||
                       fabs((double)log_p[i] - (double)want_log_p[i]) <= bound,
                   "content %d, vocab %d, k %d: row %zu place %zu has log p %a, expected %a within %g",
                   content, vocab, k, i / (size_t)k, i % (size_t)k, (double)log_p[i], (double)want_log_p[i],
                   bound);
    }
    cudaFree(device_x), cudaFree(device_log_p), cudaFree(device_id), cudaFree(device_map),
        cudaFree(device_from);
    free(x), free(map);
}

START_TEST(top_finds_what_the_reference_finds)
{
    static const int ks[] = {1, 2, 10, TOP_MAX};
    for (int content = 0; content < CONTENTS; content++)
        for (size_t i = 0; i < sizeof ks / sizeof *ks; i++)
            if (ks[i] <= vocabs[_i])
                compare_top(content, vocabs[_i], ks[i]);
}
END_TEST

/* ---- the pass ---- */

enum { N = 12, TREE = 7, DEPTH = 4, CAP = 64, H = 64 };

struct draft {
    struct backend be;
    struct model model;
    struct head head;
    struct head_pass pass;
};

/* The three features normed as one; head_close gives the gain back. */
static void norm_before_fc(struct draft *d)
{
    float gain[HEAD_TAPS * H];
    void *p = NULL;
    for (size_t i = 0; i < HEAD_TAPS * H; i++)
        gain[i] = 1 + uniform(60, i) / 4;
    ok(d->be.ops->alloc(&d->be, sizeof gain, &p));
    ok(d->be.ops->upload(&d->be, p, gain, sizeof gain));
    d->head.cfg.norm_before_fc = 1;
    d->head.input_norm = p;
}

enum { FLAGS = 8, FP8 = FLAGS, WIDE_NORM, VARIANTS }; /* below FLAGS: bits */

static void draft_open(struct draft *d, const char *kind, int variant)
{
    const struct model_config cfg = toy_config();
    ok(backend_open(&d->be, kind, &(struct backend_opts){.threads = 1}));
    ok(model_synthetic(&d->model, &d->be, &cfg, TOY_SEED, NULL));
    ok(head_open(&d->head, &d->model, "synthetic", variant == FP8 ? MODEL_FP8 : MODEL_BF16));
    if (variant == WIDE_NORM)
        norm_before_fc(d);
    variant = variant < FLAGS ? variant : 0;
    d->head.cfg.norm_before_residual = variant & 1;
    d->head.cfg.feed_normed = variant >> 1 & 1;
    d->head.cfg.fc_norm = variant >> 2 & 1;
    for (int t = 0; t < HEAD_TAPS && d->head.cfg.fc_norm; t++)
        d->head.fc_norm[t] = d->head.embed_norm; /* any gain of that width */
    ok(head_pass_init(&d->pass, &d->head, 2, CAP, ROWS, DEPTH));
}

static void draft_close(struct draft *d)
{
    for (int t = 0; t < HEAD_TAPS; t++)
        d->head.fc_norm[t] = NULL;
    head_pass_deinit(&d->pass);
    head_close(&d->head);
    model_deinit(&d->model);
    backend_close(&d->be);
}

/* Features of position `pos` to row `row` of the pass. */
static void put_features(struct draft *d, int row, int pos)
{
    float v[H];
    for (int t = 0; t < HEAD_TAPS; t++) {
        for (int i = 0; i < H; i++)
            v[i] = uniform(40 + (uint32_t)t, (size_t)(pos * H + i));
        ok(d->be.ops->upload(&d->be, d->pass.feature + ((size_t)t * ROWS + (size_t)row) * H, v, sizeof v));
    }
}

static int token_at(int pos)
{
    return (pos * 37 + 5) % TOY_VOCAB;
}

static struct head_row true_row(int slot, int pos)
{
    return (struct head_row){.token = token_at(pos), .slot = slot, .pos = pos, .cell = pos, .base = pos + 1};
}

static void fetch(struct draft *d, const float *from, int rows, int width, float *to)
{
    ok(d->be.ops->download(&d->be, to, from, (size_t)rows * (size_t)width * sizeof *to));
    ok(d->be.ops->sync(&d->be));
}

/* Positions [first, first + n) of a slot in one pass. */
static void run_text(struct draft *d, int slot, int first, int n, unsigned flags, float *logits)
{
    struct head_row row[ROWS];
    for (int i = 0; i < n; i++) {
        row[i] = true_row(slot, first + i);
        put_features(d, i, first + i);
    }
    ok(head_pass_run(&d->pass, row, n, HEAD_FEATURES | flags));
    if (logits)
        fetch(d, d->pass.logits, n, TOY_VOCAB, logits);
}

/* Behind N true rows: nodes 0, 1, 2 at depth 1, 3 and 4 below node 1, 5 and 6 below node 4. */
static const int parent[TREE] = {-1, -1, -1, 1, 1, 4, 4};

static struct head_row node_row(int k, int *path)
{
    int depth = 0;
    for (int i = k; i >= 0; i = parent[i])
        depth++;
    for (int i = k, at = depth; i >= 0; i = parent[i])
        path[--at] = N + i;
    return (struct head_row){
        .token = token_at(100 + k), .pos = N + depth - 1, .cell = N + k, .base = N, .path = path};
}

/* Some nodes in one pass; g of each is a formula. */
static void run_nodes(struct draft *d, const int *node, int n, float *logits)
{
    struct head_row row[TREE];
    int path[TREE][DEPTH];
    float g[TREE * H];
    for (int i = 0; i < n; i++) {
        row[i] = node_row(node[i], path[i]);
        for (int k = 0; k < H; k++)
            g[i * H + k] = uniform(50, (size_t)(node[i] * H + k));
    }
    ok(d->be.ops->upload(&d->be, d->pass.x, g, (size_t)n * H * sizeof *g));
    ok(head_pass_run(&d->pass, row, n, 0));
    fetch(d, d->pass.logits, n, TOY_VOCAB, logits);
}

/* On a row's way a dozen numbers are rounded to bf16 (features, both norms, g of the next norm, q, k, v,
 * weights, what was attended, two norms and the ffn's middle), each off by v = 2^-8 at most, variance v^2 /
 * 3; six deviations of their sum, thrice for what the network makes of them: as in test_cuda_backend. */
static double share_of_bound(const float *got, const float *want, int n, const char *what, int variant)
{
    double square = 0, most = 0;
    for (int i = 0; i < n; i++) {
        square += (double)want[i] * (double)want[i];
        most = fmax(most, fabs((double)got[i] - (double)want[i]));
    }
    const double share = most / (6 * 3 * 0x1p-8 * sqrt(12.0 / 3) * sqrt(square / n));
    printf("%s, variant %d: worst share of the bound %.3f\n", what, variant, share);
    return share;
}

START_TEST(a_pass_is_near_the_cpu)
{
    static const int all[TREE] = {0, 1, 2, 3, 4, 5, 6};
    static float got[ROWS * TOY_VOCAB], want[ROWS * TOY_VOCAB];
    float x[TREE * H], want_x[TREE * H];
    struct draft gpu, cpu;
    draft_open(&gpu, "cuda", _i);
    draft_open(&cpu, "cpu", _i);
    run_text(&gpu, 0, 0, N, 0, got);
    run_text(&cpu, 0, 0, N, 0, want);
    ck_assert_double_le(share_of_bound(got, want, N * TOY_VOCAB, "text", _i), 1);
    run_nodes(&gpu, all, TREE, got);
    run_nodes(&cpu, all, TREE, want);
    ck_assert_double_le(share_of_bound(got, want, TREE * TOY_VOCAB, "nodes", _i), 1);
    ck_assert_double_gt(share_of_bound(got + TOY_VOCAB, want, TOY_VOCAB, "another node", _i), 1);
    fetch(&gpu, gpu.pass.x, TREE, H, x);
    fetch(&cpu, cpu.pass.x, TREE, H, want_x);
    ck_assert_double_le(share_of_bound(x, want_x, TREE * H, "next g", _i), 1);
    draft_close(&cpu);
    draft_close(&gpu);
}
END_TEST

static void expect_same(const float *got, const float *want, int row, const char *what)
{
    for (int i = 0; i < TOY_VOCAB; i++)
        EXPECT_MSG(memcmp(&got[i], &want[i], sizeof *got) == 0, "%s: row %d id %d is %a, expected %a", what,
                   row, i, (double)got[i], (double)want[i]);
}

/* Together, in pieces or one by one, cached by a pass that computes nothing else, in another slot. */
START_TEST(a_row_is_the_same_in_any_company)
{
    static const int all[TREE] = {0, 1, 2, 3, 4, 5, 6};
    static float together[ROWS * TOY_VOCAB], alone[ROWS * TOY_VOCAB];
    struct draft d;
    draft_open(&d, "cuda", _i);
    run_text(&d, 0, 0, N, 0, together);
    for (int i = 0; i < N; i++) {
        run_text(&d, 0, i, 1, 0, alone);
        expect_same(alone, together + i * TOY_VOCAB, i, "one by one");
    }
    run_text(&d, 1, 0, 5, HEAD_CACHE, NULL);
    run_text(&d, 1, 5, N - 5, 0, alone);
    for (int i = 5; i < N; i++)
        expect_same(alone + (i - 5) * TOY_VOCAB, together + i * TOY_VOCAB, i, "behind cached rows, slot 1");
    run_nodes(&d, all, TREE, together);
    for (int i = 0; i < TREE; i++) {
        run_nodes(&d, &all[i], 1, alone);
        expect_same(alone, together + i * TOY_VOCAB, i, "nodes one by one");
    }
    draft_close(&d);
}
END_TEST

int main(void)
{
    if (cuda_suite_skips("test_cuda_head"))
        return CUDA_SUITE_SKIPPED;
    log_set_level(LOG_WARN);
    Suite *s = suite_create("cuda_head");
    TCase *c = tcase_create("operations"), *pass = tcase_create("pass");
    tcase_add_loop_test(c, copies_are_exact_and_nothing_else_is_touched, 0, sizeof dims / sizeof *dims);
    tcase_add_loop_test(c, norms_are_near_the_reference_and_the_same_in_any_company, 0,
                        sizeof dims / sizeof *dims);
    tcase_add_loop_test(c, a_norm_may_go_where_it_came_from, 0, sizeof dims / sizeof *dims);
    tcase_add_loop_test(c, top_finds_what_the_reference_finds, 0, sizeof vocabs / sizeof *vocabs);
    tcase_add_loop_test(pass, a_pass_is_near_the_cpu, 0, VARIANTS);
    tcase_add_loop_test(pass, a_row_is_the_same_in_any_company, 0, VARIANTS);
    suite_add_tcase(s, c);
    suite_add_tcase(s, pass);
    return cuda_suite_run(s);
}
