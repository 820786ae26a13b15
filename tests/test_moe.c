/* route and moe on every instruction set of this machine. Scenes hold random experts, the shared one last; a
 * choice says which expert each row takes. */
#include "kernels/cpu.h"
#include "kernels/philox.h"
#include "tests/expect.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_ROWS = 40, MAX_EXPERTS = 16, MAX_K = 4, MAX_THREADS = 3 };

static const struct shape {
    int hidden, ffn, experts, top_k;
} shapes[] = {{32, 16, 4, 1}, {48, 32, 16, 1}, {33, 16, 8, 2},
              {64, 96, 4, 2}, {80, 48, 5, 4},  {16, 16, 1, 1}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static void *alloc(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 64) / 64 * 64);
    ck_assert_ptr_nonnull(p);
    return p;
}

static float value(uint32_t stream, uint32_t i)
{
    return 2 * philox_uniform(philox(29, stream, 0, 0, i).v[0]) - 1;
}

static uint32_t draw(uint32_t stream, uint32_t i, uint32_t below)
{
    return philox(31, stream, 0, 0, i).v[0] % below;
}

struct scene {
    struct shape shape;
    struct matrix gate_up[MAX_EXPERTS + 1], down[MAX_EXPERTS + 1]; /* the shared expert last */
    float *g[MAX_EXPERTS + 1], *d[MAX_EXPERTS + 1];                /* the same as numbers, row-major */
    float *x, *y, *normed, *gain, *score, *gemm;
    int *expert; /* [MAX_ROWS, top_k] */
    void *scratch;
};

static struct matrix pack(const float *w, int n, int k, int interleaved, enum matrix_form form)
{
    struct matrix m = {.n = n, .k = k, .form = form, .data = alloc(matrix_packed_bytes(n, k))};
    const int half = n / 2;
    const struct matrix_part one[] = {{w, DTYPE_F32, n}},
                             two[] = {{w, DTYPE_F32, half}, {w + (size_t)half * (size_t)k, DTYPE_F32, half}};
    if (form == MATRIX_FP8)
        m.scale = alloc((size_t)n * sizeof(float));
    matrix_pack(&m, interleaved ? two : one, interleaved ? 2 : 1,
                interleaved ? MATRIX_INTERLEAVE : MATRIX_PLAIN, 1);
    return m;
}

/* Uniform in +-1, on the bf16 grid. */
static float *weights(int n, int k, uint32_t stream)
{
    float *w = alloc((size_t)n * (size_t)k * sizeof *w);
    for (int i = 0; i < n * k; i++)
        w[i] = bf16_to_f32(bf16_from_f32(value(stream, (uint32_t)i)));
    return w;
}

static void start(const struct scene *s)
{
    for (int i = 0; i < MAX_ROWS * s->shape.hidden; i++)
        s->y[i] = value(3, (uint32_t)i);
}

static void scene_init(struct scene *s, int shape, enum matrix_form form)
{
    const struct shape a = shapes[shape];
    const size_t row = (size_t)a.hidden * sizeof(float);
    *s = (struct scene){.shape = a};
    for (int e = 0; e <= a.experts; e++) {
        s->g[e] = weights(2 * a.ffn, a.hidden, 100 + (uint32_t)e);
        s->d[e] = weights(a.hidden, a.ffn, 200 + (uint32_t)e);
        s->gate_up[e] = pack(s->g[e], 2 * a.ffn, a.hidden, 1, form);
        s->down[e] = pack(s->d[e], a.hidden, a.ffn, 0, form);
    }
    s->x = alloc(MAX_ROWS * row);
    s->y = alloc(MAX_ROWS * row);
    s->normed = alloc(MAX_ROWS * row);
    s->gain = alloc(row);
    s->score = alloc(MAX_ROWS * MAX_K * sizeof(float));
    s->expert = alloc(MAX_ROWS * MAX_K * sizeof(int));
    s->gemm = alloc(MAX_THREADS * gemm_scratch(a.hidden > a.ffn ? a.hidden : a.ffn) * sizeof(float));
    s->scratch = alloc(moe_scratch(MAX_ROWS, a.hidden, a.ffn));
    for (int i = 0; i < MAX_ROWS * a.hidden; i++)
        s->x[i] = value(1, (uint32_t)i);
    for (int i = 0; i < a.hidden; i++)
        s->gain[i] = 1 + value(2, (uint32_t)i) / 2;
    for (int i = 0; i < MAX_ROWS * a.top_k; i++)
        s->score[i] = 0.5f + value(4, (uint32_t)i) / 2.5f;
    start(s);
}

static void scene_deinit(struct scene *s)
{
    for (int e = 0; e <= s->shape.experts; e++) {
        free(s->g[e]);
        free(s->d[e]);
        free(s->gate_up[e].data);
        free(s->gate_up[e].scale);
        free(s->down[e].data);
        free(s->down[e].scale);
    }
    free(s->x);
    free(s->y);
    free(s->normed);
    free(s->gain);
    free(s->score);
    free(s->expert);
    free(s->gemm);
    free(s->scratch);
}

enum choice { CHOICE_RANDOM, CHOICE_ONE, CHOICE_ALL, CHOICE_NONE, N_CHOICES };

/* Distinct experts of a row in any order: all rows the same, every row others than its neighbour, none, or
 * anything. */
static void choose(struct scene *s, enum choice choice)
{
    const int k = s->shape.top_k, n = s->shape.experts;
    for (int r = 0; r < MAX_ROWS; r++) {
        const int first = choice == CHOICE_ONE   ? n - 1
                          : choice == CHOICE_ALL ? r
                                                 : (int)draw(5, (uint32_t)r, (uint32_t)n);
        for (int j = 0; j < k; j++)
            s->expert[r * k + j] = choice == CHOICE_NONE ? -1 : (first + n - j) % n;
    }
}

static struct moe moe_of(const struct scene *s, int first, int rows, int threads)
{
    const size_t from = (size_t)first * (size_t)s->shape.hidden,
                 chosen = (size_t)first * (size_t)s->shape.top_k;
    return (struct moe){.shared = {&s->gate_up[s->shape.experts], &s->down[s->shape.experts]},
                        .gate_up = s->gate_up,
                        .down = s->down,
                        .x = s->x + from,
                        .y = s->y + from,
                        .expert = s->expert + chosen,
                        .score = s->score + chosen,
                        .norm = {.x = s->y + from,
                                 .w = s->gain,
                                 .y = {.act = s->normed + from},
                                 .rows = rows,
                                 .dim = s->shape.hidden,
                                 .threads = threads,
                                 .eps = 1e-5f},
                        .rows = rows,
                        .experts = s->shape.experts,
                        .top_k = s->shape.top_k,
                        .threads = threads,
                        .gemm = s->gemm,
                        .scratch = s->scratch};
}

/* --- moe -------------------------------------------------------------------------------------------------
 */

/* Sum over the outputs' terms of one expert, every number taken as its magnitude: an input's is
 * |D[i][j]| * (sum |G[j] s x|) * (sum |U[j] s x|), no less than any partial sum. */
static double magnitude(const struct scene *s, int e, int r, int i, double score)
{
    const int ffn = s->shape.ffn, hidden = s->shape.hidden;
    double sum = 0;
    for (int j = 0; j < ffn; j++) {
        double g = 0, u = 0;
        for (int c = 0; c < hidden; c++) {
            const double x = fabs(score * s->x[r * hidden + c]);
            g += x * fabs(s->g[e][j * hidden + c]);
            u += x * fabs(s->g[e][(ffn + j) * hidden + c]);
        }
        sum += fabs(s->d[e][i * ffn + j]) * g * u;
    }
    return sum;
}

/* |silu(g)| <= |g| and |silu'| <= 1.1: a hidden value is off by 2.1 times what its products are, (hidden + 3)
 * eps, and 6 eps of silu and the product with up; each row of down adds ffn eps, the sums one eps an expert,
 * and the reference, which rounds between its products, 3 more an expert. */
static double bound_of(const struct scene *s, int r, int i)
{
    const int k = s->shape.top_k;
    double sum = magnitude(s, s->shape.experts, r, i, 1) + 1; /* |y| <= 1 before */
    for (int j = r * k; j < (r + 1) * k; j++)
        if (s->expert[j] >= 0)
            sum += magnitude(s, s->expert[j], r, i, s->score[j]);
    return 0x1p-24 * (2.1 * (s->shape.hidden + 3) + 6 + s->shape.ffn + 4 * (k + 1)) * sum;
}

static double worst_share(const struct scene *s, const float *expected)
{
    double worst = 0;
    for (int i = 0; i < MAX_ROWS * s->shape.hidden; i++) {
        const double off = fabs((double)s->y[i] - expected[i]);
        const double share = off / bound_of(s, i / s->shape.hidden, i % s->shape.hidden);
        worst = share <= worst ? worst : share;
    }
    return worst;
}

static float *reference_of(struct scene *s)
{
    const struct moe ref = moe_of(s, 0, MAX_ROWS, 1);
    const size_t bytes = (size_t)MAX_ROWS * (size_t)s->shape.hidden * sizeof(float);
    float *expected = alloc(bytes);
    start(s);
    moe_ref(&ref);
    memcpy(expected, s->y, bytes);
    return expected;
}

START_TEST(it_is_within_its_bound_of_the_reference)
{
    struct scene s;
    scene_init(&s, _i / N_CHOICES, MATRIX_BF16);
    choose(&s, (enum choice)(_i % N_CHOICES));
    float *expected = reference_of(&s);
    for (int i = 0; cpu_kernels_at(i); i++) {
        const struct moe a = moe_of(&s, 0, MAX_ROWS, 2);
        start(&s);
        cpu_kernels_at(i)->moe(&a);
        const double share = worst_share(&s, expected);
        printf("moe %d, choice %d, %s: %.1f %% of the bound\n", _i / N_CHOICES, _i % N_CHOICES,
               cpu_kernels_at(i)->name, 100 * share);
        ck_assert_double_le(share, 1);
    }
    free(expected);
    scene_deinit(&s);
}
END_TEST

/* The bound would notice: scores on outputs instead of inputs, and an expert mistaken for another. */
START_TEST(a_wrong_rule_exceeds_the_bound)
{
    struct scene s;
    scene_init(&s, 1, MATRIX_BF16);
    choose(&s, CHOICE_RANDOM);
    float *expected = reference_of(&s);
    for (int mistake = 0; mistake < 2; mistake++) {
        const struct moe a = moe_of(&s, 0, MAX_ROWS, 1);
        start(&s);
        if (mistake == 0)
            s.score[7] = 1;
        else
            s.expert[7] = (s.expert[7] + 1) % s.shape.experts;
        cpu_kernels_at(0)->moe(&a);
        ck_assert_double_gt(worst_share(&s, expected), 10);
    }
    free(expected);
    scene_deinit(&s);
}
END_TEST

/* A term alone is what a stream of zeros gets, and the norm is left alone. */
START_TEST(a_partial_sum_reads_no_stream_and_makes_no_norm)
{
    struct scene s;
    scene_init(&s, 1, MATRIX_BF16);
    choose(&s, CHOICE_RANDOM);
    const size_t floats = (size_t)MAX_ROWS * (size_t)s.shape.hidden, bytes = floats * sizeof(float);
    float *sum = alloc(bytes), *normed = alloc(bytes);
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        void (*const moe)(const struct moe *) = i < 0 ? moe_ref : cpu_kernels_at(i)->moe;
        struct moe a = moe_of(&s, 0, MAX_ROWS, 2);
        start(&s);
        memset(s.y, 0, bytes);
        moe(&a);
        memcpy(sum, s.y, bytes);
        memset(s.y, 0xff, bytes);
        memset(s.normed, 0x55, bytes);
        memset(normed, 0x55, bytes);
        a.partial = 1;
        moe(&a);
        ck_assert_mem_eq(s.y, sum, bytes);
        ck_assert_mem_eq(s.normed, normed, bytes);
    }
    free(sum);
    free(normed);
    scene_deinit(&s);
}
END_TEST

static void expect_rows(const struct scene *s, const float *y, const float *normed, int rows, const char *isa)
{
    const size_t bytes = (size_t)s->shape.hidden * sizeof(float);
    for (int r = 0; r < rows; r++) {
        const size_t at = (size_t)r * (size_t)s->shape.hidden;
        EXPECT_MSG(memcmp(s->y + at, y + at, bytes) == 0, "%s: row %d of %d differs from the row alone", isa,
                   r, rows);
        EXPECT_MSG(memcmp(s->normed + at, normed + at, bytes) == 0, "%s: the norm of row %d of %d differs",
                   isa, r, rows);
    }
}

START_TEST(a_row_is_the_same_whatever_others_choose)
{
    struct scene s;
    scene_init(&s, _i / N_CHOICES, MATRIX_BF16);
    const size_t floats = (size_t)MAX_ROWS * (size_t)s.shape.hidden;
    float *y = alloc(floats * sizeof *y), *normed = alloc(floats * sizeof *normed);
    choose(&s, (enum choice)(_i % N_CHOICES));
    for (int i = 0; cpu_kernels_at(i); i++) {
        start(&s);
        for (int r = 0; r < MAX_ROWS; r++) {
            const struct moe a = moe_of(&s, r, 1, 1);
            cpu_kernels_at(i)->moe(&a);
        }
        memcpy(y, s.y, floats * sizeof *y);
        memcpy(normed, s.normed, floats * sizeof *normed);
        for (int threads = 1; threads <= MAX_THREADS; threads++)
            for (int rows = 1; rows <= MAX_ROWS; rows += threads == 1 ? 1 : 13) {
                const struct moe a = moe_of(&s, 0, rows, threads);
                start(&s);
                cpu_kernels_at(i)->moe(&a);
                expect_rows(&s, y, normed, rows, cpu_kernels_at(i)->name);
            }
    }
    free(y);
    free(normed);
    scene_deinit(&s);
}
END_TEST

/* What an expert and its row go through, written out with the kernels that others test. */
static void by_hand(const struct scene *s, const struct cpu_kernels *cpu, int e, int r, float score,
                    enum rounding round)
{
    const int hidden = s->shape.hidden;
    float *x = alloc((size_t)hidden * sizeof *x), *h = alloc((size_t)s->shape.ffn * sizeof *h), factor = 1;
    struct gemm up = {.w = &s->gate_up[e], .x = x, .y = h, .rows = 1, .threads = 1, .scratch = s->gemm};
    struct gemm down = {
        .w = &s->down[e], .x = h, .rows = 1, .threads = 1, .scratch = s->gemm, .accumulate = 1};
    memcpy(x, s->x + (size_t)r * (size_t)hidden, (size_t)hidden * sizeof *x);
    struct quantise q = {.x = x, .scale = &factor, .rows = 1, .k = hidden};
    if (round ==
        ROUND_STATIC) { /* what a static scale was measured on is the expert's input, score and all */
        q.fixed = s->gate_up[e].input_scale;
        for (int i = 0; i < hidden; i++)
            x[i] *= score;
        score = 1;
    }
    if (round)
        quantise_ref(&q);
    factor *= score;
    up.row_scale = &factor;
    cpu->swiglu(&up);
    if (round)
        quantise_ref(&(struct quantise){.x = h,
                                        .scale = &factor,
                                        .rows = 1,
                                        .k = s->shape.ffn,
                                        .fixed = round == ROUND_STATIC ? s->down[e].input_scale : 0});
    down.row_scale = round ? &factor : NULL;
    down.y = s->y + (size_t)r * (size_t)hidden;
    cpu->gemm(&down);
    free(x);
    free(h);
}

START_TEST(shared_first_then_experts_in_rising_order)
{
    enum { ROWS = 9 };
    const enum rounding round = (enum rounding)(_i % 3);
    struct scene s;
    scene_init(&s, _i / 3, round ? MATRIX_FP8 : MATRIX_BF16);
    for (int e = 0; e <= s.shape.experts; e++) { /* some numbers saturate */
        s.gate_up[e].input_scale = (0.3f + 0.1f * (float)e) / 448;
        s.down[e].input_scale = (0.05f + 0.02f * (float)e) / 448;
    }
    const int k = s.shape.top_k;
    const size_t bytes = ROWS * (size_t)s.shape.hidden * sizeof(float);
    float *expected = alloc(bytes);
    choose(&s, CHOICE_RANDOM);
    for (int i = 0; cpu_kernels_at(i); i++) {
        start(&s);
        for (int r = 0; r < ROWS; r++) {
            by_hand(&s, cpu_kernels_at(i), s.shape.experts, r, 1, round);
            for (int e = 0; e < s.shape.experts; e++)
                for (int j = r * k; j < (r + 1) * k; j++)
                    if (s.expert[j] == e)
                        by_hand(&s, cpu_kernels_at(i), e, r, s.score[j], round);
        }
        memcpy(expected, s.y, bytes);
        struct moe a = moe_of(&s, 0, ROWS, 2);
        a.round = round;
        start(&s);
        cpu_kernels_at(i)->moe(&a);
        ck_assert_mem_eq(s.y, expected, bytes);
    }
    free(expected);
    scene_deinit(&s);
}
END_TEST

/* The weights of experts that nobody chose are not even there. */
START_TEST(experts_that_nobody_chose_are_not_read)
{
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        struct scene s;
        scene_init(&s, 1, MATRIX_BF16);
        choose(&s, CHOICE_ONE);
        struct matrix up[MAX_EXPERTS] = {{.n = 0}}, down[MAX_EXPERTS] = {{.n = 0}};
        struct moe a = moe_of(&s, 0, MAX_ROWS, 1);
        up[s.expert[0]] = s.gate_up[s.expert[0]];
        down[s.expert[0]] = s.down[s.expert[0]];
        a.gate_up = up;
        a.down = down;
        (i < 0 ? moe_ref : cpu_kernels_at(i)->moe)(&a);
        ck_assert(isfinite(s.y[0]));
        scene_deinit(&s);
    }
}
END_TEST

/* --- route -----------------------------------------------------------------------------------------------
 */

enum { ROUTE_HIDDEN = 24 };

struct routing {
    float *w, *x, *logits, *score, *gemm;
    int *expert, slot[MAX_ROWS];
    struct matrix m;
    int k;
};

/* Integers so small that sums are exact and logits often equal. */
static void routing_init(struct routing *t, int experts, int k)
{
    *t = (struct routing){.k = k};
    t->w = alloc((size_t)experts * ROUTE_HIDDEN * sizeof(float));
    t->x = alloc(MAX_ROWS * ROUTE_HIDDEN * sizeof(float));
    t->logits = alloc((size_t)MAX_ROWS * (size_t)experts * sizeof(float));
    t->score = alloc(MAX_ROWS * MAX_K * sizeof(float));
    t->expert = alloc(MAX_ROWS * MAX_K * sizeof(int));
    t->gemm = alloc(MAX_THREADS * gemm_scratch(ROUTE_HIDDEN) * sizeof(float));
    for (int i = 0; i < experts * ROUTE_HIDDEN; i++)
        t->w[i] = (float)draw(7, (uint32_t)i, 3) - 1;
    for (int i = 0; i < MAX_ROWS * ROUTE_HIDDEN; i++)
        t->x[i] = (float)draw(8, (uint32_t)i, 2);
    t->m = pack(t->w, experts, ROUTE_HIDDEN, 0, MATRIX_BF16);
}

static void routing_deinit(struct routing *t)
{
    free(t->w);
    free(t->x);
    free(t->logits);
    free(t->score);
    free(t->expert);
    free(t->gemm);
    free(t->m.data);
}

typedef void route_fn(const struct route *a);

static void run_route(const struct routing *t, route_fn *f, int first, int rows)
{
    const struct route a = {.product = {.w = &t->m,
                                        .x = t->x + (size_t)first * ROUTE_HIDDEN,
                                        .y = t->logits + (size_t)first * (size_t)t->m.n,
                                        .rows = rows,
                                        .threads = 1,
                                        .scratch = t->gemm},
                            .slot = t->slot + first,
                            .expert = t->expert + first * t->k,
                            .score = t->score + first * t->k,
                            .top_k = t->k};
    f(&a);
}

/* The definition, checked from the logits: best first, ties to the lower index, nobody left out is better. */
static void expect_best(const struct routing *t, int r, const char *who)
{
    const float *l = t->logits + (size_t)r * (size_t)t->m.n;
    const int *e = t->expert + r * t->k;
    for (int j = 0; j < t->k; j++)
        for (int other = 0; other < t->m.n; other++) {
            int before = 0;
            for (int i = 0; i < j; i++)
                before |= e[i] == other;
            EXPECT_MSG(before || other == e[j] || l[other] < l[e[j]] || (l[other] == l[e[j]] && other > e[j]),
                       "%s: row %d chose %d as number %d, %d is better", who, r, e[j], j, other);
        }
}

START_TEST(the_best_logits_are_chosen_ties_to_the_lowest_index)
{
    static const struct {
        int experts, k;
    } cases[] = {{1, 1}, {4, 1}, {16, 1}, {128, 1}, {4, 2}, {16, 2}, {16, 4}, {4, 4}};
    struct routing t;
    int ties = 0;
    routing_init(&t, cases[_i].experts, cases[_i].k);
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        const char *who = i < 0 ? "reference" : cpu_kernels_at(i)->name;
        run_route(&t, i < 0 ? route_ref : cpu_kernels_at(i)->route, 0, MAX_ROWS);
        for (int r = 0; r < MAX_ROWS; r++) {
            const float *l = t.logits + (size_t)r * (size_t)t.m.n;
            expect_best(&t, r, who);
            for (int j = 0; j < t.k; j++) {
                const double s = 1 / (1 + exp(-(double)l[t.expert[r * t.k + j]]));
                EXPECT(fabs(t.score[r * t.k + j] - s) <= 4 * 0x1p-24);
            }
            for (int e = 0; e < t.m.n; e++)
                ties += e != t.expert[r * t.k] && l[e] == l[t.expert[r * t.k]];
        }
    }
    if (t.m.n > 1)
        ck_assert_int_gt(ties, 0);
    routing_deinit(&t);
}
END_TEST

START_TEST(a_row_routes_the_same_in_every_batch)
{
    struct routing many, one;
    routing_init(&many, 16, 2);
    routing_init(&one, 16, 2);
    for (int i = 0; i < 16 * ROUTE_HIDDEN; i++)
        many.w[i] = one.w[i] = value(9, (uint32_t)i);
    matrix_pack(&many.m, &(struct matrix_part){many.w, DTYPE_F32, 16}, 1, MATRIX_PLAIN, 1);
    matrix_pack(&one.m, &(struct matrix_part){one.w, DTYPE_F32, 16}, 1, MATRIX_PLAIN, 1);
    for (int i = 0; cpu_kernels_at(i); i++) {
        run_route(&many, cpu_kernels_at(i)->route, 0, MAX_ROWS);
        for (int r = 0; r < MAX_ROWS; r++)
            run_route(&one, cpu_kernels_at(i)->route, r, 1);
        ck_assert_mem_eq(many.logits, one.logits, MAX_ROWS * 16 * sizeof(float));
        ck_assert_mem_eq(many.expert, one.expert, MAX_ROWS * 2 * sizeof(int));
        ck_assert_mem_eq(many.score, one.score, MAX_ROWS * 2 * sizeof(float));
    }
    routing_deinit(&many);
    routing_deinit(&one);
}
END_TEST

START_TEST(rows_of_nobody_choose_nothing)
{
    struct routing t;
    routing_init(&t, 4, 2);
    for (int r = 0; r < MAX_ROWS; r += 3)
        t.slot[r] = -1;
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        run_route(&t, i < 0 ? route_ref : cpu_kernels_at(i)->route, 0, MAX_ROWS);
        for (int r = 0; r < MAX_ROWS; r++)
            for (int j = 2 * r; j < 2 * r + 2; j++)
                EXPECT(r % 3 == 0 ? t.expert[j] == -1 && t.score[j] == 0 : t.expert[j] >= 0);
    }
    routing_deinit(&t);
}
END_TEST

START_TEST(logits_that_are_no_numbers_choose_experts_there_are)
{
    struct routing t;
    routing_init(&t, 16, 4);
    for (int r = 0; r < MAX_ROWS; r += 2)
        t.x[r * ROUTE_HIDDEN + 3] = NAN;
    for (int i = 0; cpu_kernels_at(i); i++) {
        run_route(&t, cpu_kernels_at(i)->route, 0, MAX_ROWS);
        for (int j = 0; j < MAX_ROWS * 4; j++) {
            EXPECT(t.expert[j] >= 0 && t.expert[j] < 16);
            for (int other = j / 4 * 4; other < j; other++)
                EXPECT(t.expert[other] != t.expert[j]);
        }
    }
    routing_deinit(&t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("moe");
    TCase *moe = tcase_create("moe"), *route = tcase_create("route");
    tcase_add_loop_test(moe, it_is_within_its_bound_of_the_reference, 0, N_SHAPES * N_CHOICES);
    tcase_add_test(moe, a_wrong_rule_exceeds_the_bound);
    tcase_add_loop_test(moe, a_row_is_the_same_whatever_others_choose, 0, N_SHAPES * N_CHOICES);
    tcase_add_loop_test(moe, shared_first_then_experts_in_rising_order, 0, 3 * N_SHAPES);
    tcase_add_test(moe, a_partial_sum_reads_no_stream_and_makes_no_norm);
    tcase_add_test(moe, experts_that_nobody_chose_are_not_read);
    tcase_add_loop_test(route, the_best_logits_are_chosen_ties_to_the_lowest_index, 0, 8);
    tcase_add_test(route, a_row_routes_the_same_in_every_batch);
    tcase_add_test(route, rows_of_nobody_choose_nothing);
    tcase_add_test(route, logits_that_are_no_numbers_choose_experts_there_are);
    suite_add_tcase(s, moe);
    suite_add_tcase(s, route);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
