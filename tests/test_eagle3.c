/* eagle3: output is that of plain decoding whatever the head says; its first row is the maths of
 * model-formats D.1. */
#include "engine/head.h"
#include "tests/toy_loop.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { REQUESTS = 4, H = 64, FFN = 96, HEADS = 4, KV = 2, DIM = 16 };

static struct toy toy;
static struct toy_answer plain[TOY_REQUESTS], answer[TOY_REQUESTS];

static void open_toy(void)
{
    toy_open_plain(&toy, REQUESTS, plain);
}

static void close_toy(void)
{
    toy_close(&toy);
}

START_TEST(coupled_output_of_every_shape_equals_none_bit_for_bit)
{
    static const char *const shapes[] = {"shape=0", "shape=1", "shape=2"};
    struct toy_draft none = toy_draft("none", NULL);
    struct spec_opts o = toy_spec_opts(&none);
    o.rule = accept_rule_find("coupled");
    o.sampling.temperature = 1;
    toy_run(&toy.model, &o, REQUESTS, NULL, plain);
    for (int i = 0; i < 3; i++) {
        struct toy_draft d = toy_draft("eagle3", shapes[i], "top_k=4", NULL);
        o.draft = d.ops;
        o.draft_option = d.option;
        o.slots = 3;
        o.max_nodes = 20;
        toy_run(&toy.model, &o, REQUESTS, NULL, answer);
        int proposed = 0;
        for (int r = 0; r < REQUESTS; r++) {
            toy_assert_same(&plain[r], &answer[r], shapes[i]);
            proposed += answer[r].proposed;
        }
        ck_assert_int_gt(proposed, 50);
    }
}
END_TEST

static void norm(const double *x, const float *w, double *y)
{
    double sum = 0;
    for (int i = 0; i < H; i++)
        sum += x[i] * x[i];
    for (int i = 0; i < H; i++)
        y[i] = x[i] / sqrt(sum / H + 1e-5) * (double)w[i];
}

/* y += W x */
static void add_product(const struct matrix *w, const double *x, double *y)
{
    for (int j = 0; j < w->n; j++)
        for (int i = 0; i < w->k; i++)
            y[j] += (double)matrix_at(w, j, i) * x[i];
}

/* At position 0 attention is the value itself. The mlp is left out: its matrix is interleaved, so `down` is
 * zeroed. */
static void reference(const struct head *h, const struct head_pass *p, int token, double *logits)
{
    double g[H] = {0}, e[H], ne[H], ng[H], qkv[(HEADS + 2 * KV) * DIM] = {0}, attended[HEADS * DIM], last[H];
    for (int t = 0; t < HEAD_TAPS; t++) {
        double a[H];
        for (int i = 0; i < H; i++)
            a[i] = (double)p->feature[t * p->max_rows * H + i];
        add_product(&h->fc[t], a, g);
    }
    for (int i = 0; i < H; i++)
        e[i] = (double)matrix_at(&toy.model.embed, token, i);
    norm(e, h->embed_norm, ne);
    norm(g, h->hidden_norm, ng);
    add_product(&h->qkv_e, ne, qkv);
    add_product(&h->qkv_g, ng, qkv);
    for (int i = 0; i < HEADS * DIM; i++)
        attended[i] = qkv[(HEADS + KV) * DIM + i / DIM / (HEADS / KV) * DIM + i % DIM];
    add_product(&h->o, attended, g);
    norm(g, h->norm, last);
    memset(logits, 0, TOY_VOCAB * sizeof *logits);
    add_product(&h->lm_head, last, logits);
}

static double furthest(const float *a, const double *b)
{
    double most = 0;
    for (int i = 0; i < TOY_VOCAB; i++)
        most = fmax(most, fabs((double)a[i] - b[i]));
    return most;
}

START_TEST(the_first_row_is_the_published_maths)
{
    struct head h;
    struct head_pass p;
    double expected[TOY_VOCAB];
    const struct head_row row = {.token = 5, .base = 1};
    ck_assert_int_eq(head_open(&h, &toy.model, "synthetic", MODEL_BF16), 0);
    memset(h.down.data, 0, h.down.bytes);
    ck_assert_int_eq(head_pass_init(&p, &h, 1, 16, 4, 1), 0);
    for (int t = 0; t < HEAD_TAPS; t++)
        for (int i = 0; i < H; i++)
            p.feature[t * p.max_rows * H + i] = sinf((float)(t * H + i));
    ck_assert_int_eq(head_pass_run(&p, &row, 1, 1), 0);
    reference(&h, &p, 5, expected);
    /* five products of at most 64 terms in f32: 5 * 64 * 2^-24 relative, of logits below 16 */
    ck_assert_double_lt(furthest(p.logits, expected), 5 * 64 * 0x1p-24 * 16);
    reference(&h, &p, 6, expected); /* the token of another position: the shift left out */
    ck_assert_double_gt(furthest(p.logits, expected), 0.01);
    head_pass_deinit(&p);
    head_close(&h);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("eagle3");
    TCase *c = tcase_create("eagle3");
    tcase_add_unchecked_fixture(c, open_toy, close_toy);
    tcase_add_test(c, coupled_output_of_every_shape_equals_none_bit_for_bit);
    tcase_add_test(c, the_first_row_is_the_published_maths);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
