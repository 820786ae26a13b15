/* test_model_shard: what the ranks of a group keep, put together, is what one alone keeps, number for number
 * and scale for scale: of random weights and of files of every kind, as stored and rounded at load. */
#include "engine/err.h"
#include "engine/log.h"
#include "engine/model_plan.h"
#include "tests/toy.h"
#include <check.h>
#include <stdio.h>

static struct backend be;

static void setup(void)
{
    log_set_level(LOG_WARN);
    ck_assert_int_eq(backend_open(&be, "cpu", &(struct backend_opts){.threads = 2, .isa = "auto"}), 0);
}

static void teardown(void)
{
    backend_close(&be);
}

static void ok(int rc)
{
    if (rc)
        ck_abort_msg("%s", err_text());
}

static const char *const sources[] = {"random", "maverick", "scout", "fp8_meta", "fp8_modelopt"};
enum { N_SOURCES = sizeof sources / sizeof *sources };

static void load(struct model *m, const char *source, enum model_numbers weights, struct shard shard)
{
    const struct model_opts opts = {.weights = weights, .shard = shard};
    const struct model_config toy = toy_config();
    char dir[512];
    snprintf(dir, sizeof dir, "%s/llama4/%s", SPECBED_GOLDEN_DIR, source);
    if (strcmp(source, "random") == 0)
        ok(model_synthetic(m, &be, &toy, TOY_SEED, &opts));
    else
        ok(model_load(m, &be, dir, &opts));
}

/* Where row `row` of an interleaved matrix lies in its panels. */
static int interleaved(const struct matrix *w, int row)
{
    const int half = row / (w->n / 2), i = row % (w->n / 2);
    return i / MATRIX_PANEL * 2 * MATRIX_PANEL + half * MATRIX_PANEL + i % MATRIX_PANEL;
}

/* The number as it is kept, and its scale. */
static float kept(const struct matrix *w, int row, int col, int pairs, float *scale)
{
    const struct matrix numbers = {.n = w->n, .k = w->k, .data = w->data};
    *scale = w->scale ? w->scale[row] : 1.0f;
    return matrix_at(&numbers, pairs ? interleaved(w, row) : row, col);
}

/* Rows [at, at + n) of the part are the whole's from `row` on; its first columns the whole's from `col` on.
 */
static void same_columns(const struct matrix *part, int at, int n, int columns, const struct matrix *whole,
                         int row, int col, int pairs, const char *what)
{
    ck_assert_int_le(at + n, part->n);
    ck_assert_int_le(row + n, whole->n);
    ck_assert_int_le(columns, part->k);
    ck_assert_int_le(col + columns, whole->k);
    ck_assert_int_eq((int)part->form, (int)whole->form);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < columns; i++) {
            float a, b;
            const float got = kept(part, at + j, i, pairs, &a),
                        want = kept(whole, row + j, col + i, pairs, &b);
            ck_assert_msg(got == want && a == b, "%s: number (%d, %d) is %a times %a, expected %a times %a",
                          what, at + j, i, (double)got, (double)a, (double)want, (double)b);
        }
}

static void same(const struct matrix *part, int at, int n, const struct matrix *whole, int row, int col,
                 int pairs, const char *what)
{
    same_columns(part, at, n, part->k, whole, row, col, pairs, what);
}

/* Numbers (row, col) and on are zeros. */
static void zeros(const struct matrix *w, int row, int rows, int col, int cols, int pairs, const char *what)
{
    float scale;
    for (int j = row; j < row + rows; j++)
        for (int i = col; i < col + cols; i++)
            ck_assert_msg(kept(w, j, i, pairs, &scale) == 0, "%s: number (%d, %d): expected 0", what, j, i);
}

/* width: columns a rank, zeros after them not counted. */
static void same_mlp(const struct matrix *gate_up, const struct matrix *down,
                     const struct matrix *whole_gate_up, const struct matrix *whole_down, int rank, int width)
{
    const int half = gate_up->n / 2, pad = half - width;
    ck_assert_int_eq(down->k, half);
    ck_assert_int_ge(pad, 0);
    ck_assert_int_eq(down->n, whole_down->n);
    same(gate_up, 0, width, whole_gate_up, rank * width, 0, 1, "gate");
    same(gate_up, half, width, whole_gate_up, whole_gate_up->n / 2 + rank * width, 0, 1, "up");
    same_columns(down, 0, down->n, width, whole_down, 0, rank * width, 0, "down");
    zeros(gate_up, width, pad, 0, gate_up->k, 1, "gate");
    zeros(gate_up, half + width, pad, 0, gate_up->k, 1, "up");
    zeros(down, 0, down->n, width, pad, 0, "down");
}

static void same_attention(const struct layer *part, const struct layer *whole, const struct model *m,
                           int rank)
{
    const int dim = m->cfg.head_dim, q = m->part.heads * dim, kv = m->part.kv_heads * dim;
    const int all = m->cfg.heads * dim, all_kv = m->cfg.kv_heads * dim;
    ck_assert_int_eq(part->qkv.n, q + 2 * kv);
    same(&part->qkv, 0, q, &whole->qkv, rank * q, 0, 0, "q");
    same(&part->qkv, q, kv, &whole->qkv, all + rank * kv, 0, 0, "k");
    same(&part->qkv, q + kv, kv, &whole->qkv, all + all_kv + rank * kv, 0, 0, "v");
    same(&part->o, 0, part->o.n, &whole->o, 0, rank * q, 0, "o");
}

static void same_layer(const struct layer *part, const struct layer *whole, const struct model *m, int rank)
{
    const struct model_config *c = &m->cfg;
    const int world = m->opts.shard.world;
    const size_t norm = (size_t)m->cfg.hidden * sizeof(float);
    ck_assert_int_eq(part->kind, whole->kind);
    ck_assert_int_eq(memcmp(part->attn_norm, whole->attn_norm, norm), 0);
    ck_assert_int_eq(memcmp(part->ffn_norm, whole->ffn_norm, norm), 0);
    same_attention(part, whole, m, rank);
    same_mlp(&part->gate_up, &part->down, &whole->gate_up, &whole->down, rank,
             (part->kind & LAYER_MOE || !c->llama4 ? c->ffn - c->ffn_pad : c->ffn_dense - c->ffn_dense_pad) /
                 world);
    if (!(part->kind & LAYER_MOE))
        return;
    same(&part->router, 0, m->cfg.experts, &whole->router, 0, 0, 0, "router");
    for (int e = 0; e < m->cfg.experts; e++)
        same_mlp(&part->expert_gate_up[e], &part->expert_down[e], &whole->expert_gate_up[e],
                 &whole->expert_down[e], rank, (c->ffn - c->ffn_pad) / world);
}

static void check_group(const char *source, enum model_numbers weights, int world)
{
    struct model whole = {.be = NULL};
    int vocab = 0;
    load(&whole, source, weights, (struct shard){0, 1});
    for (int rank = 0; rank < world; rank++) {
        struct model m = {.be = NULL};
        load(&m, source, weights, (struct shard){rank, world});
        ck_assert_uint_eq(m.fingerprint, whole.fingerprint);
        ck_assert_int_eq(m.part.vocab_first, vocab);
        ck_assert_int_eq(m.head.n, m.part.vocab);
        same(&m.embed, 0, m.cfg.vocab, &whole.embed, 0, 0, 0, "embedding");
        same(&m.head, 0, m.part.vocab, &whole.head, vocab, 0, 0, "head");
        for (int i = 0; i < m.cfg.layers; i++)
            same_layer(&m.layers[i], &whole.layers[i], &m, rank);
        vocab += m.part.vocab;
        model_deinit(&m);
    }
    ck_assert_int_eq(vocab, whole.cfg.vocab);
    model_deinit(&whole);
    ck_assert_uint_eq(be.allocated, 0);
}

START_TEST(two_ranks_have_what_one_alone_has)
{
    check_group(sources[_i], MODEL_BF16, 2);
    check_group(sources[_i], MODEL_FP8, 2);
}
END_TEST

/* The cpu's packed bytes, allocated one by one while loading, are what the plan adds up. */
START_TEST(a_plan_counts_what_a_load_allocates)
{
    const struct shard last = {1, 2};
    const struct model_config toy = toy_config();
    char dir[512];
    snprintf(dir, sizeof dir, "%s/llama4/%s", SPECBED_GOLDEN_DIR, sources[_i]);
    for (int fp8 = 0; fp8 < 2; fp8++) {
        const struct model_opts opts = {.weights = fp8 ? MODEL_FP8 : MODEL_BF16, .shard = last};
        struct model m = {.be = NULL};
        struct model_plan plan;
        ok(model_plan(&plan, "cpu", _i ? dir : NULL, &toy, &opts));
        load(&m, sources[_i], opts.weights, last);
        ck_assert_uint_eq(plan.weights, be.allocated);
        ck_assert_int_eq(plan.part.vocab_first, m.part.vocab_first);
        model_deinit(&m);
    }
}
END_TEST

START_TEST(a_world_that_does_not_divide_is_refused_with_those_that_do)
{
    struct model_config c = {
        .vocab = 49152, .hidden = 576, .ffn = 1536, .heads = 9, .kv_heads = 3, .head_dim = 64};
    struct model_part part;
    ck_assert_int_eq(model_part_of(&part, &c, (struct shard){0, 2}), ERR_CONFIG);
    ck_assert_msg(strstr(err_text(), "a world of 2 ranks") && strstr(err_text(), "its 3 key/value heads") &&
                      strstr(err_text(), "these do: 1, 3"),
                  "%s", err_text());
    ck_assert_int_eq(model_part_of(&part, &c, (struct shard){3, 3}), ERR_CONFIG);
    ck_assert_int_eq(model_part_of(&part, &c, (struct shard){2, 3}), 0);
    ck_assert_int_eq(part.heads, 3);
    ck_assert_int_eq(part.kv_heads, 1);
    ck_assert_int_eq(part.ffn, 512);
    ck_assert_int_eq(part.vocab, 16384);
    ck_assert_int_eq(part.vocab_first, 32768);
}
END_TEST

START_TEST(the_last_rank_has_the_tokens_that_are_left)
{
    const struct model_config c = toy_config();
    struct model_part part;
    ok(model_part_of(&part, &c, (struct shard){0, 2}));
    ck_assert_int_eq(part.vocab, 64);
    ok(model_part_of(&part, &c, (struct shard){1, 2}));
    ck_assert_int_eq(part.vocab_first, 64);
    ck_assert_int_eq(part.vocab, TOY_VOCAB - 64);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("model_shard");
    TCase *c = tcase_create("model_shard");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, two_ranks_have_what_one_alone_has, 0, N_SOURCES);
    tcase_add_loop_test(c, a_plan_counts_what_a_load_allocates, 0, N_SOURCES);
    tcase_add_test(c, a_world_that_does_not_divide_is_refused_with_those_that_do);
    tcase_add_test(c, the_last_rank_has_the_tokens_that_are_left);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
