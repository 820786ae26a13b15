/* route_cuda and moe_cuda against sums in double, and a row alone against the same row in company. */
#include "kernels/act.h"
#include "kernels/fp8.h"
#include "kernels/moe_cuda.h"
#include "kernels/quantise.h"
#include "tests/cuda_data.h"
#include <math.h>

enum { ROWS = 64, EXPERTS_MAX = 128, STREAM_SEED = 7 };

/* E4M3 numbers times 2^-13, one of each output 448: exact in either form of a matrix. */
static float weight(uint32_t which, int k, int j, int i)
{
    const uint32_t h = hash(which, (size_t)j * (size_t)k + (size_t)i);
    return i == 0 ? 448 * 0x1p-13f : fp8_to_f32((uint8_t)(h % 0x7f | (h >> 16 & 0x80u))) * 0x1p-13f;
}

/* A multiple of 1/64 in [-1, 1). */
static float input(int row, int i)
{
    return (float)(int)(hash(1, (size_t)row * 8192 + (size_t)i) % 128) / 64 - 1;
}

static float stream(int row, int i)
{
    return (float)(int)(hash(STREAM_SEED, (size_t)row * 8192 + (size_t)i) % 256) / 128 - 1;
}

static struct matrix device_matrix(uint32_t which, int n, int k, enum matrix_form form,
                                   enum matrix_flags flags)
{
    float *w = alloc((size_t)n * (size_t)k * sizeof *w);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < k; i++)
            w[(size_t)j * (size_t)k + (size_t)i] = weight(which, k, j, i);
    const struct matrix m = matrix_of(w, n, k, form, flags, 0);
    free(w);
    return m;
}

static size_t act_bytes(int rows, int k)
{
    return (size_t)((rows + ACT_ROWS - 1) / ACT_ROWS) * act_tile(k) * sizeof(uint16_t);
}

/* Rows first.. of the test's inputs. */
static void *device_act(int first, int rows, int k, enum act_form form)
{
    uint16_t *x = alloc(act_bytes(rows, k));
    memset(x, 0xff, act_bytes(rows, k));
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < (k + 15) / 16 * 16; i++) {
            const float v = i < k ? input(first + r, i) : 0;
            x[act_at(r, i, k)] = form == ACT_F16 ? f16_of(v) : bf16_from_f32(v);
        }
    void *p = to_device(x, act_bytes(rows, k));
    free(x);
    return p;
}

static const struct shape {
    int hidden, ffn, experts, top_k;
} shapes[] = {{64, 32, 1, 1},     {96, 48, 5, 3},    {256, 64, 16, 1},
              {512, 160, 128, 2}, {1040, 256, 7, 2}, {5120, 1024, 4, 1}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* Of the shared expert, of the routed ones. */
static const enum matrix_form forms[][2] = {{MATRIX_BF16, MATRIX_BF16},
                                            {MATRIX_FP8, MATRIX_FP8},
                                            {MATRIX_BF16, MATRIX_FP8},
                                            {MATRIX_FP8, MATRIX_BF16}};
enum { N_FORMS = sizeof forms / sizeof *forms };

struct layer {
    struct shape s;
    const enum matrix_form *form;
    struct matrix shared[2], gate_up[EXPERTS_MAX], down[EXPERTS_MAX];
    float *gain; /* device, ones */
};

static uint32_t gate_up_seed(int e)
{
    return (uint32_t)(100 + 2 * e);
}

static enum act_form act_form_of(const struct layer *l)
{
    return moe_act_form(&l->shared[0], l->gate_up);
}

static void layer_make(struct layer *l, struct shape s, const enum matrix_form form[2])
{
    float *ones = alloc((size_t)s.hidden * sizeof *ones);
    for (int i = 0; i < s.hidden; i++)
        ones[i] = 1;
    *l = (struct layer){.s = s, .form = form, .gain = to_device(ones, (size_t)s.hidden * sizeof *ones)};
    for (int e = -1; e < s.experts; e++) {
        struct matrix *gate_up = e < 0 ? &l->shared[0] : &l->gate_up[e],
                      *down = e < 0 ? &l->shared[1] : &l->down[e];
        *gate_up = device_matrix(gate_up_seed(e), 2 * s.ffn, s.hidden, form[e >= 0], MATRIX_INTERLEAVE);
        *down = device_matrix(gate_up_seed(e) + 1, s.hidden, s.ffn, form[e >= 0], MATRIX_PLAIN);
        /* so far apart that another expert's shows: inputs reach 1, hidden ones hidden / 2^15 or so */
        gate_up->input_scale = ldexpf(0.8f / 448, 3 * ((e + 1) % 4 - 3));
        down->input_scale = ldexpf((float)s.hidden / 448, 3 * ((e + 1) % 4 - 3) - 14);
    }
    free(ones);
}

static void layer_free(struct layer *l)
{
    for (int e = 0; e < l->s.experts; e++)
        matrix_free(&l->gate_up[e]), matrix_free(&l->down[e]);
    matrix_free(&l->shared[0]), matrix_free(&l->shared[1]);
    cudaFree(l->gain);
}

struct result {
    float *y, *square; /* [rows, hidden], [rows, tiles] */
    uint16_t *act;
};

enum kept { STREAM, ZEROS, PARTIAL }; /* what y holds before; PARTIAL: numbers that must not be read */

/* Rows [first, first + rows) of the test through the layer. */
static struct result run_from(const struct layer *l, const int *expert, const float *score, int first,
                              int rows, enum rounding round, enum kept kept)
{
    const struct shape *s = &l->s;
    const size_t n = (size_t)rows * (size_t)s->hidden, tiles = (size_t)((s->hidden + 15) / 16),
                 choices = (size_t)(rows * s->top_k), at = (size_t)(first * s->top_k);
    const enum act_form form = act_form_of(l);
    struct result r = {alloc(n * sizeof(float)), alloc((size_t)rows * tiles * sizeof(float)),
                       alloc(act_bytes(rows, s->hidden))};
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < s->hidden; j++)
            r.y[(size_t)i * (size_t)s->hidden + (size_t)j] = kept == STREAM  ? stream(first + i, j)
                                                             : kept == ZEROS ? 0.0f
                                                                             : NAN;
    void *x = device_act(first, rows, s->hidden, form), *scratch = NULL;
    float *y = to_device(r.y, n * sizeof *y),
          *square = to_device(r.square, (size_t)rows * tiles * sizeof *square);
    int *e = to_device(expert + at, choices * sizeof *e);
    float *sc = to_device(score + at, choices * sizeof *sc);
    cuda_ok(cudaMalloc(&scratch, moe_cuda_scratch(rows, s->hidden, s->ffn, s->top_k)), "allocating");
    cuda_ok(cudaMemset(scratch, 0xff, moe_cuda_scratch(rows, s->hidden, s->ffn, s->top_k)), "clearing");
    const struct moe a = {
        .shared = {&l->shared[0], &l->shared[1]},
        .gate_up = l->gate_up,
        .down = l->down,
        .x = x,
        .y = y,
        .expert = e,
        .score = sc,
        .norm = {.x = y, .w = l->gain, .y = {x, square, form}, .rows = rows, .dim = s->hidden},
        .rows = rows,
        .experts = s->experts,
        .top_k = s->top_k,
        .round = round,
        .partial = kept == PARTIAL,
        .scratch = scratch};
    cuda_ok(moe_cuda(&a, NULL), "launching");
    from_device(r.y, y, n * sizeof *y);
    from_device(r.square, square, (size_t)rows * tiles * sizeof *square);
    from_device(r.act, x, act_bytes(rows, s->hidden));
    cudaFree(x), cudaFree(y), cudaFree(square), cudaFree(e), cudaFree(sc), cudaFree(scratch);
    return r;
}

static struct result run(const struct layer *l, const int *expert, const float *score, int first, int rows,
                         enum rounding round)
{
    return run_from(l, expert, score, first, rows, round, STREAM);
}

static void result_free(struct result *r)
{
    free(r->y), free(r->square), free(r->act);
}

/* How rows choose. */
enum company { ALL_DIFFERENT, ALL_SAME, MIXED, COMPANIES };

static void choose(const struct shape *s, enum company how, int *expert, float *score)
{
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < s->top_k; j++) {
            const int start = how == ALL_SAME        ? 0
                              : how == ALL_DIFFERENT ? r * s->top_k
                                                     : (int)(hash(5, (size_t)r) % (uint32_t)s->experts);
            const int dead = how == MIXED && r % 7 == 3;
            expert[r * s->top_k + j] = dead ? -1 : (start + s->top_k - 1 - j) % s->experts;
            score[r * s->top_k + j] = dead ? 0 : (float)(1 + hash(6, (size_t)(r * 8 + j)) % 255) / 256;
        }
}

/* A row of inputs times `score` as a product sees it: as it is, or rounded before the score or, by a static
 * scale, after it. */
static void input_row(int row, int k, float score, int rounded, float fixed, double *to)
{
    float *x = alloc((size_t)k * sizeof *x), scale = 1;
    for (int i = 0; i < k; i++)
        x[i] = fixed > 0 ? input(row, i) * score : input(row, i);
    if (rounded)
        quantise_ref(&(struct quantise){.x = x, .scale = &scale, .rows = 1, .k = k, .fixed = fixed});
    for (int i = 0; i < k; i++)
        to[i] = (double)x[i] * (double)scale * (fixed > 0 ? 1 : (double)score);
    free(x);
}

/* How h is kept: off by `unit` of itself and, where it is below the form's normal numbers, by `least`;
 * rounded to E4M3 by 2^-4 more and by half of its smallest step. Beyond 448 static scales h ends. */
static void keep_hidden(double *h, double *bad, int n, double unit, double least, int rounded, double fixed)
{
    double most = 0;
    for (int j = 0; j < n; j++) {
        bad[j] += unit * (fabs(h[j]) + bad[j]) + least;
        most = fmax(most, fabs(h[j]) + bad[j]);
    }
    for (int j = 0; rounded && j < n; j++) {
        const double scale = fixed > 0 ? fixed : most / 448, end = 448 * scale;
        h[j] = fixed > 0 ? fmax(-end, fmin(h[j], end)) : h[j];
        bad[j] += 0x1p-4 * (fabs(h[j]) + bad[j]) + 0x1p-10 * scale;
    }
}

/* What expert e (-1: the shared one) gives to all outputs of a row, and how far off f32 sums and a rounded h
 * may be: each sum of k terms by k 2^-23 of its terms' magnitudes, silu by 1.1 times what its argument is
 * off.
 */
static void expert_exact(const struct layer *l, int e, int row, float score, enum rounding round, double *sum,
                         double *off)
{
    const struct matrix *gate_up = e < 0 ? &l->shared[0] : &l->gate_up[e],
                        *down = e < 0 ? &l->shared[1] : &l->down[e];
    const struct shape *s = &l->s;
    const int rounded = round && l->form[e >= 0] == MATRIX_FP8, f16 = act_form_of(l) == ACT_F16;
    double *h = alloc((size_t)s->ffn * sizeof *h), *bad = alloc((size_t)s->ffn * sizeof *bad),
           *x = alloc((size_t)s->hidden * sizeof *x);
    input_row(row, s->hidden, score, rounded, rounded && round == ROUND_STATIC ? gate_up->input_scale : 0, x);
    for (int j = 0; j < s->ffn; j++) {
        double v[2] = {0, 0}, all[2] = {0, 0};
        for (int part = 0; part < 2; part++)
            for (int i = 0; i < s->hidden; i++) {
                const double t = (double)weight(gate_up_seed(e), s->hidden, j + part * s->ffn, i) * x[i];
                v[part] += t;
                all[part] += fabs(t);
            }
        const double by = (s->hidden + 8) * 0x1p-23, silu = v[0] / (1 + exp(-v[0]));
        h[j] = silu * v[1];
        bad[j] =
            1.1 * by * all[0] * (fabs(v[1]) + by * all[1]) + fabs(silu) * by * all[1] + fabs(h[j]) * 0x1p-20;
    }
    keep_hidden(h, bad, s->ffn, f16 ? 0x1p-11 : 0x1p-8, 0x1p-25, rounded,
                round == ROUND_STATIC ? (double)down->input_scale : 0);
    for (int j = 0; j < s->hidden; j++)
        for (int i = 0; i < s->ffn; i++) {
            const double w = (double)weight(gate_up_seed(e) + 1, s->ffn, j, i);
            sum[j] += w * h[i];
            off[j] += fabs(w) * (bad[i] + (fabs(h[i]) + bad[i]) * (s->ffn + 8) * 0x1p-23);
        }
    free(h), free(bad), free(x);
}

static void check_row(const struct layer *l, const int *expert, const float *score, int row,
                      enum rounding round, const float *y)
{
    const struct shape *s = &l->s;
    double *sum = alloc((size_t)s->hidden * sizeof *sum), *off = alloc((size_t)s->hidden * sizeof *off),
           worst = 0;
    static const char *const names[] = {"", ", rounded", ", rounded by static scales"};
    char what[160];
    snprintf(what, sizeof what, "[%d, %d] %d experts, top %d, forms %d and %d%s, row %d", s->hidden, s->ffn,
             s->experts, s->top_k, (int)l->form[0], (int)l->form[1], names[round], row);
    expert_exact(l, -1, row, 1, round, sum, off);
    for (int j = row * s->top_k; j < (row + 1) * s->top_k; j++)
        if (expert[j] >= 0)
            expert_exact(l, expert[j], row, score[j], round, sum, off);
    for (int j = 0; j < s->hidden; j++) {
        const double want = sum[j] + (double)stream(row, j),
                     bound = off[j] + 8 * 0x1p-24 * (fabs(want) + fabs(sum[j]) + 1),
                     share = fabs((double)y[j] - want) / bound;
        if (!(share <= 1))
            ck_abort_msg("%s, output %d: expected %.9g within %.3g, found %.9g", what, j, want, bound,
                         (double)y[j]);
        worst = share > worst ? share : worst;
    }
    printf("%s: worst share of the bound %.3f\n", what, worst);
    free(sum), free(off);
}

static void same_row(const struct layer *l, const struct result *all, const struct result *one, int row,
                     int first, const char *what)
{
    const size_t hidden = (size_t)l->s.hidden, tiles = (hidden + 15) / 16, at = (size_t)(row - first);
    for (size_t j = 0; j < hidden; j++) {
        if (memcmp(&all->y[at * hidden + j], &one->y[j], sizeof(float)) != 0)
            ck_abort_msg("%s: hidden %zu, row %d, output %zu: alone %.9g, in company %.9g", what, hidden, row,
                         j, (double)one->y[j], (double)all->y[at * hidden + j]);
        ck_assert_msg(all->act[act_at(row - first, (int)j, l->s.hidden)] ==
                          one->act[act_at(0, (int)j, l->s.hidden)],
                      "%s: hidden %zu, row %d: number %zu of the act differs", what, hidden, row, j);
    }
    ck_assert_msg(memcmp(all->square + at * tiles, one->square, tiles * sizeof(float)) == 0,
                  "%s: hidden %zu, row %d: the sums of squares differ", what, hidden, row);
}

static void company_changes_nothing(const struct layer *l, enum rounding round)
{
    static const int batches[][2] = {{0, 64}, {3, 2}, {8, 9}, {5, 17}, {1, 8}, {20, 33}};
    static const char *const names[] = {"all different", "all the same", "mixed"};
    int expert[ROWS * 3];
    float score[ROWS * 3];
    for (int how = 0; how < COMPANIES; how++) {
        choose(&l->s, (enum company)how, expert, score);
        for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
            const int first = batches[b][0], rows = batches[b][1];
            struct result all = run(l, expert, score, first, rows, round);
            for (int r = first; r<first + rows; r += rows> 8 ? 7 : 1) {
                struct result one = run(l, expert, score, r, 1, round);
                same_row(l, &all, &one, r, first, names[how]);
                result_free(&one);
            }
            if (b == 0 && (!round || how == MIXED)) /* of MIXED, row 3 has the shared expert alone */
                for (int r = 3; r<ROWS; r += l->s.hidden> 2000 ? 59 : 29)
                    check_row(l, expert, score, r, round, all.y + (size_t)r * (size_t)l->s.hidden);
            result_free(&all);
        }
    }
}

START_TEST(a_layer_is_its_exact_sums_and_company_changes_nothing)
{
    static struct layer l;
    layer_make(&l, shapes[_i / N_FORMS], forms[_i % N_FORMS]);
    const int fp8 = l.form[0] == MATRIX_FP8 || l.form[1] == MATRIX_FP8;
    for (int round = ROUND_NONE; round <= (fp8 ? ROUND_STATIC : ROUND_NONE); round++)
        company_changes_nothing(&l, (enum rounding)round);
    layer_free(&l);
}
END_TEST

/* A term alone is what a stream of zeros gets, and squares and act are left alone. */
START_TEST(a_partial_sum_reads_no_stream_and_makes_no_norm)
{
    static struct layer l;
    int expert[ROWS * 3];
    float score[ROWS * 3];
    layer_make(&l, shapes[1], forms[_i]);
    choose(&l.s, (enum company)0, expert, score);
    struct result zeros = run_from(&l, expert, score, 0, ROWS, (enum rounding)0, ZEROS),
                  part = run_from(&l, expert, score, 0, ROWS, (enum rounding)0, PARTIAL);
    const size_t n = (size_t)ROWS * (size_t)l.s.hidden;
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(memcmp(&part.y[i], &zeros.y[i], sizeof(float)) == 0, "number %zu: %.9g, expected %.9g",
                      i, (double)part.y[i], (double)zeros.y[i]);
    for (size_t i = 0; i < (size_t)ROWS * (size_t)((l.s.hidden + 15) / 16); i++)
        ck_assert_msg(part.square[i] == 0, "square %zu was written: %g", i, (double)part.square[i]);
    result_free(&zeros);
    result_free(&part);
    layer_free(&l);
}
END_TEST

/* Logits of the matrix, or `put` over them. */
static void route_rows(int hidden, int experts, int top_k, enum act_form form, int rows, float *logits,
                       int *expert, float *score)
{
    int slot[ROWS];
    for (int r = 0; r < ROWS; r++)
        slot[r] = r % 5 == 4 ? -1 : r;
    struct matrix w = device_matrix(9, experts, hidden, MATRIX_BF16, MATRIX_PLAIN);
    void *x = device_act(0, rows, hidden, form);
    const size_t n = (size_t)(rows * experts), choices = (size_t)(rows * top_k);
    int *s = to_device(slot, sizeof slot), *e = to_device(expert, choices * sizeof *e);
    float *y = to_device(logits, n * sizeof *y), *sc = to_device(score, choices * sizeof *sc);
    const struct route a = {.product = {.w = &w, .x = x, .y = y, .rows = rows},
                            .slot = s,
                            .expert = e,
                            .score = sc,
                            .top_k = top_k,
                            .x_form = form};
    cuda_ok(logits[0] == 0 ? route_cuda(&a, NULL) : route_choose_cuda(&a, NULL), "launching");
    from_device(logits, y, n * sizeof *y);
    from_device(expert, e, choices * sizeof *e);
    from_device(score, sc, choices * sizeof *sc);
    cudaFree(x), cudaFree(s), cudaFree(e), cudaFree(y), cudaFree(sc);
    matrix_free(&w);
}

/* NaN counts as the least. */
static int before(float a, int i, float b, int j)
{
    a = isnan(a) ? -INFINITY : a, b = isnan(b) ? -INFINITY : b;
    return a > b || (a == b && i < j);
}

static void check_choice(const float *logits, int experts, int top_k, const int *expert, const float *score,
                         int row)
{
    for (int j = 0; j < top_k; j++) {
        const int e = expert[row * top_k + j];
        int place = 0;
        if (row % 5 == 4) {
            ck_assert_int_eq(e, -1);
            ck_assert(score[row * top_k + j] == 0);
            continue;
        }
        ck_assert_msg(e >= 0 && e < experts, "row %d, choice %d: expert %d of %d", row, j, e, experts);
        const float logit = logits[row * experts + e], got = score[row * top_k + j];
        for (int i = 0; i < experts; i++)
            place += i != e && before(logits[row * experts + i], i, logit, e);
        ck_assert_msg(place == j, "row %d, choice %d: expert %d is in place %d", row, j, e, place);
        const double want = 1 / (1 + exp(-(double)logit));
        ck_assert_msg(isnan(logit) ? isnan(got) : fabs((double)got - want) <= 8 * 0x1p-24 * want + 0x1p-126,
                      "row %d, expert %d: score %.9g of logit %.9g", row, e, (double)got, (double)logit);
    }
}

START_TEST(the_router_gives_its_product_and_the_largest_of_it)
{
    static const int sizes[][3] = {{64, 1, 1}, {96, 16, 1}, {1040, 33, 3}, {5120, 128, 2}};
    for (int i = 0; i < 8; i++) {
        const int hidden = sizes[i / 2][0], experts = sizes[i / 2][1], top_k = sizes[i / 2][2];
        float *logits = alloc(ROWS * EXPERTS_MAX * sizeof *logits), one[EXPERTS_MAX] = {0},
              score[ROWS * 3] = {0};
        int expert[ROWS * 3] = {0};
        route_rows(hidden, experts, top_k, i % 2 ? ACT_F16 : ACT_BF16, 1, one, expert, score);
        route_rows(hidden, experts, top_k, i % 2 ? ACT_F16 : ACT_BF16, ROWS, logits, expert, score);
        ck_assert_msg(memcmp(one, logits, (size_t)experts * sizeof *one) == 0,
                      "hidden %d: row 0 alone differs", hidden);
        for (int r = 0; r < ROWS; r++) {
            check_choice(logits, experts, top_k, expert, score, r);
            for (int e = 0; e < experts; e++) {
                double sum = 0, all = 0;
                for (int k = 0; k < hidden; k++) {
                    const double t = (double)weight(9, hidden, e, k) * (double)input(r, k);
                    sum += t, all += fabs(t);
                }
                const double found = (double)logits[r * experts + e];
                ck_assert_msg(fabs(found - sum) <= (hidden + 2) * 0x1p-23 * all,
                              "hidden %d, form %d, row %d, expert %d: expected %.9g, found %.9g", hidden,
                              i % 2, r, e, sum, found);
            }
        }
        free(logits);
    }
}
END_TEST

START_TEST(ties_go_to_the_lowest_index_and_nan_is_never_larger)
{
    enum { EXPERTS = 70, TOP = 3 };
    float logits[ROWS * EXPERTS], score[ROWS * TOP] = {0};
    int expert[ROWS * TOP] = {0};
    for (int r = 0; r < ROWS; r++)
        for (int e = 0; e < EXPERTS; e++)
            logits[r * EXPERTS + e] = r == 1   ? NAN
                                      : r == 2 ? -INFINITY
                                      : hash(3, (size_t)(r * 99 + e)) % 4 == 0
                                          ? NAN
                                          : (float)(hash(4, (size_t)(r * 99 + e)) % 5) + 1;
    logits[0] = 1; /* not 0, which asks route_rows for the product */
    route_rows(64, EXPERTS, TOP, ACT_BF16, ROWS, logits, expert, score);
    for (int r = 0; r < ROWS; r++)
        check_choice(logits, EXPERTS, TOP, expert, score, r);
}
END_TEST

int main(void)
{
    if (cuda_suite_skips("test_cuda_moe"))
        return CUDA_SUITE_SKIPPED;
    Suite *s = suite_create("cuda_moe");
    TCase *t = tcase_create("moe");
    tcase_add_test(t, the_router_gives_its_product_and_the_largest_of_it);
    tcase_add_test(t, ties_go_to_the_lowest_index_and_nan_is_never_larger);
    tcase_add_loop_test(t, a_partial_sum_reads_no_stream_and_makes_no_norm, 0, N_FORMS);
    tcase_add_loop_test(t, a_layer_is_its_exact_sums_and_company_changes_nothing, 0, N_FORMS * N_SHAPES);
    suite_add_tcase(s, t);
    return cuda_suite_run(s);
}
