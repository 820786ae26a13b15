/* test_calibrate: static scales of the toy model: the largest number that each matrix multiplied, whoever
 * looks. */
#include "engine/calibrate.h"
#include "engine/err.h"
#include "engine/forward.h"
#include "engine/log.h"
#include "kernels/philox.h"
#include "tests/toy.h"
#include <check.h>
#include <math.h>

enum { TEXT = 150, LAYERS = 2, MATRICES = 4 }; /* three passes of a calibration */

static struct backend be;
static int tokens[TEXT];
static const struct model_opts opts = {
    .weights = MODEL_FP8, .activations = MODEL_FP8_STATIC, .calibrates = 1};

static void setup(void)
{
    log_set_level(LOG_WARN);
    ck_assert_int_eq(backend_open(&be, "cpu", &(struct backend_opts){.threads = 1, .isa = "auto"}), 0);
    for (int i = 0; i < TEXT; i++)
        tokens[i] = (int)(philox(7, 1, (uint32_t)i, PHILOX_SYNTHETIC, 0).v[0] % TOY_VOCAB);
}

static void teardown(void)
{
    backend_close(&be);
}

static void open_toy(struct model *m)
{
    const struct model_config c = toy_config();
    *m = (struct model){.be = NULL};
    ck_assert_msg(model_synthetic(m, &be, &c, TOY_SEED, &opts) == 0, "%s", err_text());
    ck_assert_int_eq(c.layers, LAYERS);
}

static const struct matrix *matrix_of(const struct model *m, int i)
{
    const struct layer *l = &m->layers[i / MATRICES];
    const struct matrix *const all[MATRICES] = {&l->qkv, &l->o, &l->gate_up, &l->down};
    return all[i % MATRICES];
}

struct seen {
    const struct model *m;
    float largest[LAYERS * MATRICES];
};

/* The CPU's acts are plain rows. */
static int look(void *self, const struct gemm *a)
{
    struct seen *s = self;
    for (int i = 0; i < LAYERS * MATRICES; i++)
        for (size_t j = 0; matrix_of(s->m, i) == a->w && j < (size_t)a->rows * (size_t)a->w->k; j++)
            s->largest[i] = fmaxf(s->largest[i], fabsf(((const float *)a->x)[j]));
    return 0;
}

/* In one pass with nothing rounded. */
static struct seen look_at_text(struct model *m, int n)
{
    struct seen s = {.m = m};
    struct kv kv = {0};
    struct forward f = {0};
    struct forward_row rows[TEXT];
    for (int i = 0; i < n; i++)
        rows[i] = (struct forward_row){.token = tokens[i], .parent = i - 1};
    ck_assert_int_eq(kv_init(&kv, &be, m, 1, TEXT), 0);
    ck_assert_int_eq(forward_init(&f, m, &kv, TEXT, TEXT), 0);
    f.watch = (struct forward_watch){look, &s};
    ck_assert_msg(forward_run(&f, rows, n, FORWARD_LOGITS) == 0, "%s", err_text());
    forward_deinit(&f);
    kv_deinit(&kv);
    return s;
}

static void expect_scales(const struct model *m, const struct seen *s)
{
    for (int i = 0; i < LAYERS * MATRICES; i++) {
        ck_assert_float_gt(s->largest[i], 0);
        ck_assert_msg(matrix_of(m, i)->input_scale == s->largest[i] / 448,
                      "matrix %d of layer %d: scale %.9g, expected %.9g", i % MATRICES, i / MATRICES,
                      (double)matrix_of(m, i)->input_scale, (double)(s->largest[i] / 448));
    }
}

START_TEST(a_scale_is_the_largest_input_of_the_whole_text)
{
    struct model m;
    open_toy(&m);
    const struct seen all = look_at_text(&m, TEXT), few = look_at_text(&m, 3);
    ck_assert_msg(model_calibrate(&m, tokens, TEXT) == 0, "%s", err_text());
    expect_scales(&m, &all);
    ck_assert_msg(model_calibrate(&m, tokens, 3) == 0, "%s", err_text()); /* forgets the text before */
    expect_scales(&m, &few);
    ck_assert_float_ne(few.largest[0], all.largest[0]);
    model_deinit(&m);
}
END_TEST

START_TEST(nothing_stays_allocated)
{
    struct model m;
    open_toy(&m);
    const size_t bytes = be.allocated;
    ck_assert_int_eq(model_calibrate(&m, tokens, TEXT), 0);
    ck_assert_uint_eq(be.allocated, bytes);
    model_deinit(&m);
}
END_TEST

START_TEST(a_text_that_cannot_be_run_is_refused)
{
    struct model m;
    const int foreign[] = {1, TOY_VOCAB};
    open_toy(&m);
    const size_t bytes = be.allocated;
    ck_assert_int_eq(model_calibrate(&m, tokens, 0), ERR_LIMIT);
    ck_assert_ptr_nonnull(
        strstr(err_text(), "calibration: expected a text of one token at least, found none"));
    err_clear();
    ck_assert_int_eq(model_calibrate(&m, foreign, 2), ERR_LIMIT);
    ck_assert_ptr_nonnull(strstr(err_text(), "expected a token from 0 to 96, found 97"));
    err_clear();
    ck_assert_uint_eq(be.allocated, bytes);
    model_deinit(&m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("calibrate");
    TCase *c = tcase_create("calibrate");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, a_scale_is_the_largest_input_of_the_whole_text);
    tcase_add_test(c, nothing_stays_allocated);
    tcase_add_test(c, a_text_that_cannot_be_run_is_refused);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
