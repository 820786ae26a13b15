/* head: random heads of every published layout against what their trainers' own modules compute
 * (tests/golden/make_eagle3.py), the draft tree node for node, and what a bad head is told. */
#include "engine/head.h"
#include "drafts/drafts.h"
#include "engine/err.h"
#include "engine/log.h"
#include "tests/golden.h"
#include <math.h>

enum { HIDDEN = 32, DIM = 16, HEADS = 4, FFN = 48 };

static const struct layout {
    const char *name, *target;
} layouts[] = {{"safeailab", "tiny/f32"}, {"specforge", "tiny/f32"},     {"wide", "tiny/untied"},
               {"trained", "tiny/f32"},   {"nvidia", "llama4/maverick"}, {"fc_norm", "tiny/f32"},
               {"qwen3", "tiny/f32"},     {"converted", "tiny/f32"}};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts };

struct scene {
    struct backend be;
    struct model target;
    char dir[256];
    struct golden g;
    int n, steps, vocab, width, n_trees;
    int *tokens, *drafted;
    float *taps, *true_logits, *step_logits;
    double
        of_rms; /* how far a logit may be off, of the root mean square of its row; 0: by the bound of f32 */
};

static void open_target(struct scene *s, const char *name)
{
    const struct backend_opts opts = {.threads = 1, .isa = "auto"};
    log_set_level(LOG_WARN);
    ck_assert_int_eq(backend_open(&s->be, "cpu", &opts), 0);
    snprintf(s->dir, sizeof s->dir, SPECBED_GOLDEN_DIR "/%s", name);
    ck_assert_msg(model_load(&s->target, &s->be, s->dir, NULL) == 0, "%s", err_text());
}

static struct scene *open_scene(const struct layout *l)
{
    struct scene *s = calloc(1, sizeof *s);
    char path[300];
    open_target(s, l->target);
    snprintf(s->dir, sizeof s->dir, SPECBED_GOLDEN_DIR "/eagle3/%s", l->name);
    snprintf(path, sizeof path, "%s/golden.bin", s->dir);
    s->g = golden_open(path, "SBEAGLE3");
    s->n = golden_int(&s->g);
    s->steps = golden_int(&s->g);
    s->vocab = golden_int(&s->g);
    s->width = golden_int(&s->g);
    s->n_trees = golden_int(&s->g);
    s->tokens = golden_ints(&s->g, s->n + 1);
    s->taps = golden_floats(&s->g, 3 * s->n * s->width);
    s->true_logits = golden_floats(&s->g, s->n * s->vocab);
    s->drafted = golden_ints(&s->g, s->steps);
    s->step_logits = golden_floats(&s->g, s->steps * s->vocab);
    return s;
}

static void close_scene(struct scene *s)
{
    golden_close(&s->g);
    free(s->tokens);
    free(s->taps);
    free(s->true_logits);
    free(s->drafted);
    free(s->step_logits);
    model_deinit(&s->target);
    backend_close(&s->be);
    free(s);
}

/* A row that follows `depth` others of its kind is `depth` layers deep, and the first of them has fc before
 * it: a sum of 3 widths, which stands for all of its widths here. */
static double bound_of(const struct scene *s, int depth, const float *logits)
{
    const struct model_config c = {
        .layers = 1 + depth, .hidden = 3 * s->width, .heads = HEADS, .head_dim = DIM, .ffn = FFN};
    const double rms = golden_rms(logits, s->vocab);
    return s->of_rms > 0 ? s->of_rms * rms : golden_bound(&c, s->n + depth, rms);
}

/* The largest share of its bound that a logit is off by. */
static double share_of(const struct scene *s, const float *got, const float *expected, int depth)
{
    const double bound = bound_of(s, depth, expected);
    double worst = 0;
    for (int i = 0; i < s->vocab; i++) {
        const double off = fabs((double)got[i] - (double)expected[i]);
        worst = off > worst || !(off <= bound) ? off / bound : worst;
    }
    return worst;
}

static void fill_true_rows(const struct scene *s, struct head_pass *p, struct head_row *row)
{
    for (int i = 0; i < s->n; i++) {
        row[i] = (struct head_row){.token = s->tokens[i + 1], .pos = i, .cell = i, .base = i + 1};
        for (int t = 0; t < HEAD_TAPS; t++)
            memcpy(p->feature + (size_t)(t * p->max_rows + i) * (size_t)s->width,
                   s->taps + (size_t)(t * s->n + i) * (size_t)s->width, (size_t)s->width * sizeof(float));
    }
}

/* The worst share of the bound over all rows, run as blocks of at most `block`. */
static double run_chain(const struct scene *s, struct head *h, int block)
{
    struct head_pass p;
    struct head_row row[32], part[32];
    double worst = 0;
    ck_assert_int_eq(head_pass_init(&p, h, 1, 32, 32, 8), 0);
    for (int at = 0; at < s->n; at += block) {
        const int n = s->n - at < block ? s->n - at : block;
        fill_true_rows(s, &p, row);
        for (int i = 0; i < n; i++) {
            part[i] = row[at + i];
            for (int t = 0; t < HEAD_TAPS; t++)
                memmove(p.feature + (size_t)(t * p.max_rows + i) * (size_t)s->width,
                        p.feature + (size_t)(t * p.max_rows + at + i) * (size_t)s->width,
                        (size_t)s->width * sizeof(float));
        }
        ck_assert_int_eq(head_pass_run(&p, part, n, 1), 0);
        for (int i = 0; i < n; i++)
            worst =
                fmax(worst, share_of(s, p.logits + i * s->vocab, s->true_logits + (at + i) * s->vocab, 0));
        memmove(p.x, p.x + (n - 1) * HIDDEN, HIDDEN * sizeof(float));
    }
    for (int k = 1; k < s->steps; k++) {
        const int pos = s->n + k - 1;
        const struct head_row own = {.token = s->drafted[k - 1], .pos = pos, .cell = pos, .base = pos + 1};
        ck_assert_int_eq(head_pass_run(&p, &own, 1, 0), 0);
        worst = fmax(worst, share_of(s, p.logits, s->step_logits + k * s->vocab, k));
    }
    head_pass_deinit(&p);
    return worst;
}

static void skip_trees(struct scene *s)
{
    s->g.at = s->g.n;
}

START_TEST(logits_of_every_step_are_the_trainers_modules)
{
    struct scene *s = open_scene(&layouts[_i]);
    struct head h;
    ck_assert_msg(head_open(&h, &s->target, s->dir, MODEL_BF16) == 0, "%s: %s", s->dir, err_text());
    ck_assert_int_eq(h.cfg.vocab, s->vocab);
    ck_assert_int_eq(h.cfg.target_hidden, s->width);
    ck_assert_int_eq(h.cfg.hidden, HIDDEN);
    for (int block = 1; block <= s->n; block += 4) {
        const double worst = run_chain(s, &h, block);
        printf("%s, blocks of %d: %.1f %% of the bound\n", layouts[_i].name, block, 100 * worst);
        ck_assert_double_le(worst, 1);
    }
    head_close(&h);
    skip_trees(s);
    close_scene(s);
}
END_TEST

/* Every variant that a config can name changes the logits by far more than the bound: a flag that were read
 * and not used would be seen. */
START_TEST(a_flag_left_out_is_far_outside_of_the_bound)
{
    static const struct {
        int layout, flag;
    } cases[] = {{0, 0}, {1, 1}, {1, 5}, {3, 0}, {3, 2}, {3, 3}, {5, 1}, {6, 4}, {6, 2}};
    struct scene *s = open_scene(&layouts[cases[_i].layout]);
    struct head h;
    ck_assert_int_eq(head_open(&h, &s->target, s->dir, MODEL_BF16), 0);
    int *const flags[] = {&h.cfg.norm_before_residual, &h.cfg.fc_norm, NULL, &h.cfg.feed_normed, NULL, NULL};
    if (flags[cases[_i].flag])
        *flags[cases[_i].flag] = !*flags[cases[_i].flag];
    if (cases[_i].flag == 2)
        for (int i = 0; i < 3 * s->width; i++)
            h.input_norm[i] = 1;
    if (cases[_i].flag == 4)
        for (int i = 0; i < DIM; i++)
            h.qk_gain[i] = 1;
    if (cases[_i].flag == 5) {
        h.cfg.rope.rope_llama3 = 0;
        model_config_inv_freq(&h.cfg.rope, h.inv_freq);
    }
    ck_assert_double_gt(run_chain(s, &h, s->n), 10);
    head_close(&h);
    skip_trees(s);
    close_scene(s);
}
END_TEST

/* The strategy, told of the golden's features as if the loop had run a prompt. */
static void propose(const struct scene *s, enum accept_kind rule, const double *option, struct tree *out)
{
    const struct draft_ops *ops = &draft_eagle3;
    const struct draft_env env = {.be = (struct backend *)&s->be,
                                  .target = &s->target,
                                  .slots = 1,
                                  .cap = 64,
                                  .vocab = s->target.cfg.vocab,
                                  .max_depth = out->max_depth,
                                  .max_nodes = out->max_nodes,
                                  .head = s->dir,
                                  .rule = rule,
                                  .option = option};
    struct draft_hidden hidden = {.rows = s->taps, .max_rows = s->n};
    const struct draft_text text = {.tokens = s->tokens, .n = s->n + 1, .n_prompt = s->n + 1};
    void *self = NULL;
    ck_assert_msg(ops->open(&self, &env) == 0, "%s", err_text());
    ops->tap(self, &hidden);
    ck_assert_int_eq(ops->prefilled(self, 0, s->tokens, 0, s->n), 0);
    ck_assert_int_eq(ops->begin(self, &text), 0);
    ck_assert_int_eq(ops->propose(self, &text, 1, out), 0);
    ops->close(self);
}

START_TEST(the_dynamic_tree_is_the_references_node_for_node)
{
    struct scene *s = open_scene(&layouts[_i]);
    for (int i = 0; i < s->n_trees; i++) {
        const double option[] = {2, golden_int(&s->g), 0, 0};
        const int depth = golden_int(&s->g), most = golden_int(&s->g), n = golden_int(&s->g);
        struct tree t;
        ck_assert_int_eq(tree_init(&t, most, depth), 0);
        propose(s, ACCEPT_GREEDY, option, &t);
        ck_assert_int_eq(t.n, n);
        for (int k = 0; k < n; k++) {
            int expected[3];
            float log_q;
            golden_read(&s->g, expected, sizeof expected);
            golden_read(&s->g, &log_q, sizeof log_q);
            ck_assert_msg(t.nodes[k].token == expected[0] && t.nodes[k].parent == expected[1] &&
                              t.nodes[k].depth == expected[2],
                          "%s, tree %d, node %d is %d under %d, expected %d under %d", layouts[_i].name, i, k,
                          t.nodes[k].token, t.nodes[k].parent, expected[0], expected[1]);
            ck_assert_double_eq_tol(t.nodes[k].log_q, log_q, 1e-4);
        }
        tree_deinit(&t);
    }
    close_scene(s);
}
END_TEST

START_TEST(the_chain_is_the_references_token_for_token)
{
    struct scene *s = open_scene(&layouts[_i]);
    const double option[] = {0, 1, 0, 0};
    struct tree t;
    ck_assert_int_eq(tree_init(&t, s->steps, s->steps), 0);
    propose(s, ACCEPT_GREEDY, option, &t);
    ck_assert_int_eq(t.n, s->steps);
    for (int k = 0; k < t.n; k++) {
        ck_assert_int_eq(t.nodes[k].token, s->drafted[k]);
        ck_assert_int_eq(t.nodes[k].parent, k - 1);
    }
    tree_deinit(&t);
    skip_trees(s);
    close_scene(s);
}
END_TEST

/* E4M3 keeps 3 bits: a weight is off by at most 2^-4 of itself, with deviation 2^-4 / sqrt(3), and so is a
 * sum of its products. Six sums stand in line in a row and five rows in a chain: 2^-4 / sqrt(3) * sqrt(30) =
 * 0.2 of a logit's own deviation, of which six are allowed. */
START_TEST(weights_in_fp8_change_logits_within_what_rounding_allows)
{
    struct scene *s = open_scene(&layouts[_i]);
    struct head h;
    ck_assert_int_eq(head_open(&h, &s->target, s->dir, MODEL_FP8), 0);
    ck_assert_int_eq(h.down.form, MATRIX_FP8);
    ck_assert_int_eq(h.fc[0].form, MATRIX_FP8);
    ck_assert_double_gt(run_chain(s, &h, s->n), 10); /* the bound of f32: something was rounded */
    s->of_rms = 6 * 0.2;
    const double worst = run_chain(s, &h, s->n);
    printf("%s in FP8: %.0f %% of what rounding allows\n", layouts[_i].name, 100 * worst);
    ck_assert_double_le(worst, 1);
    head_close(&h);
    skip_trees(s);
    close_scene(s);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("head");
    TCase *c = tcase_create("golden");
    tcase_add_loop_test(c, logits_of_every_step_are_the_trainers_modules, 0, N_LAYOUTS);
    tcase_add_loop_test(c, a_flag_left_out_is_far_outside_of_the_bound, 0, 9);
    tcase_add_loop_test(c, the_dynamic_tree_is_the_references_node_for_node, 0, N_LAYOUTS);
    tcase_add_loop_test(c, the_chain_is_the_references_token_for_token, 0, N_LAYOUTS);
    tcase_add_loop_test(c, weights_in_fp8_change_logits_within_what_rounding_allows, 0, N_LAYOUTS);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
