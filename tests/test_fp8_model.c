/* test_fp8_model: the toy model with FP8 weights: against the same network in double over the same rounded
 * weights, against BF16 within what E4M3 allows, and row by row as every other model. */
#include "engine/calibrate.h"
#include "engine/err.h"
#include "engine/forward.h"
#include "engine/log.h"
#include "kernels/philox.h"
#include "tests/toy.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { TEXT = 24, WIDE = 128 }; /* WIDE: the most outputs of a product of the toy: q, k and v */

static struct backend be;
static const struct model_opts plain = {0}, weights = {.weights = MODEL_FP8},
                               both = {.weights = MODEL_FP8, .activations = MODEL_FP8},
                               fixed = {
                                   .weights = MODEL_FP8, .activations = MODEL_FP8_STATIC, .calibrates = 1};
static const struct model_opts *const rounded[] = {&weights, &both, &fixed};
static const char *const names[] = {"weights", "weights and activations",
                                    "weights, activations by static scales"};
enum { N_ROUNDED = sizeof rounded / sizeof *rounded };

static void setup(void)
{
    log_set_level(LOG_WARN);
    ck_assert_int_eq(backend_open(&be, "cpu", &(struct backend_opts){.threads = 1, .isa = "auto"}), 0);
}

static void teardown(void)
{
    backend_close(&be);
}

static int token_at(int i)
{
    return (int)(philox(7, 1, (uint32_t)i, PHILOX_SYNTHETIC, 0).v[0] % TOY_VOCAB);
}

/* Static scales from the text itself, so that no number is beyond them. */
static void calibrate(struct model *m)
{
    int tokens[TEXT];
    for (int i = 0; i < TEXT; i++)
        tokens[i] = token_at(i);
    if (m->opts.calibrates)
        ck_assert_msg(model_calibrate(m, tokens, TEXT) == 0, "%s", err_text());
}

/* Logits of the text, its first `alone` tokens in passes of one row and the rest in one. */
static void run(const struct model_opts *opts, int alone, float logits[TEXT][TOY_VOCAB])
{
    const struct model_config c = toy_config();
    struct forward_row rows[TEXT];
    struct model m = {.be = NULL};
    struct kv kv = {0};
    struct forward f = {0};
    int keep[TEXT];
    ck_assert_msg(model_synthetic(&m, &be, &c, TOY_SEED, opts) == 0, "%s", err_text());
    calibrate(&m);
    ck_assert_int_eq(kv_init(&kv, &be, &m, 1, TEXT), 0);
    ck_assert_int_eq(forward_init(&f, &m, &kv, TEXT, TEXT), 0);
    for (int at = 0, n; at < TEXT; at += n) {
        n = at < alone ? 1 : TEXT - at;
        for (int i = 0; i < n; i++) {
            rows[i] = (struct forward_row){.token = token_at(at + i), .parent = i - 1};
            keep[i] = i;
        }
        ck_assert_msg(forward_run(&f, rows, n, FORWARD_LOGITS) == 0, "%s", err_text());
        memcpy(logits[at], f.logits, (size_t)n * sizeof *logits);
        ck_assert_int_eq(kv_commit(&kv, 0, keep, n), 0);
    }
    forward_deinit(&f);
    kv_deinit(&kv);
    model_deinit(&m);
}

/* The network in double. Weight [j][i] in the model's order. */
static double weight(const struct matrix *w, int interleaved, int j, int i)
{
    struct matrix numbers = *w;
    const int m = w->n / 2, half = j >= m;
    numbers.scale = NULL;
    const int row = interleaved ? (j - half * m) / 16 * 32 + half * 16 + (j - half * m) % 16 : j;
    return (double)matrix_at(&numbers, row, i) * (w->scale ? (double)w->scale[j] : 1);
}

static void product(const struct matrix *w, int interleaved, const double *x, double *y)
{
    for (int j = 0; j < w->n; j++) {
        y[j] = 0;
        for (int i = 0; i < w->k; i++)
            y[j] += weight(w, interleaved, j, i) * x[i];
    }
}

static void normed(const double *x, const float *w, int n, double eps, double *y)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (int i = 0; i < n; i++)
        y[i] = x[i] / sqrt(sum / n + eps) * (double)w[i];
}

static void rotate(double *head, int dim, const float *inv_freq, int position)
{
    for (int j = 0; j < dim / 2; j++) {
        const double angle = position * (double)inv_freq[j], a = head[j], b = head[j + dim / 2];
        head[j] = a * cos(angle) - b * sin(angle);
        head[j + dim / 2] = b * cos(angle) + a * sin(angle);
    }
}

/* Rows of q, k, v so far; attention of the last position to y. */
static void attend(const struct model_config *c, double qkv[TEXT][WIDE], int position, double *y)
{
    const int dim = c->head_dim, group = c->heads / c->kv_heads;
    for (int h = 0; h < c->heads; h++) {
        double p[TEXT], sum = 0;
        const int key = (c->heads + h / group) * dim, value = key + c->kv_heads * dim;
        for (int t = 0; t <= position; t++) {
            p[t] = 0;
            for (int i = 0; i < dim; i++)
                p[t] += qkv[position][h * dim + i] * qkv[t][key + i];
            sum += p[t] = exp(p[t] / sqrt(dim));
        }
        for (int i = 0; i < dim; i++) {
            y[h * dim + i] = 0;
            for (int t = 0; t <= position; t++)
                y[h * dim + i] += p[t] / sum * qkv[t][value + i];
        }
    }
}

static void layer(const struct model *m, const struct layer *l, double qkv[TEXT][WIDE], int position,
                  double *x)
{
    const struct model_config *c = &m->cfg;
    double act[WIDE], wide[256], out[WIDE];
    normed(x, l->attn_norm, c->hidden, (double)c->rms_eps, act);
    product(&l->qkv, 0, act, qkv[position]);
    for (int h = 0; h < c->heads + c->kv_heads; h++)
        rotate(qkv[position] + h * c->head_dim, c->head_dim, m->inv_freq, position);
    attend(c, qkv, position, act);
    product(&l->o, 0, act, out);
    for (int i = 0; i < c->hidden; i++)
        x[i] += out[i];
    normed(x, l->ffn_norm, c->hidden, (double)c->rms_eps, act);
    product(&l->gate_up, 1, act, wide);
    for (int j = 0; j < c->ffn; j++)
        act[j] = wide[j] / (1 + exp(-wide[j])) * wide[c->ffn + j];
    product(&l->down, 0, act, out);
    for (int i = 0; i < c->hidden; i++)
        x[i] += out[i];
}

static void run_double(const struct model_opts *opts, double logits[TEXT][TOY_VOCAB])
{
    const struct model_config c = toy_config();
    struct model m = {.be = NULL};
    double(*qkv)[TEXT][WIDE] = calloc((size_t)c.layers, sizeof *qkv), x[WIDE], act[WIDE];
    ck_assert_ptr_nonnull(qkv);
    ck_assert_int_eq(model_synthetic(&m, &be, &c, TOY_SEED, opts), 0);
    for (int t = 0; t < TEXT; t++) {
        for (int i = 0; i < c.hidden; i++)
            x[i] = weight(&m.embed, 0, token_at(t), i);
        for (int l = 0; l < c.layers; l++)
            layer(&m, &m.layers[l], qkv[l], t, x);
        normed(x, m.norm, c.hidden, (double)c.rms_eps, act);
        product(&m.head, 0, act, logits[t]);
    }
    model_deinit(&m);
    free(qkv);
}

/* Quadratic mean of a - b over that of b. */
static double distance(float a[TEXT][TOY_VOCAB], float b[TEXT][TOY_VOCAB])
{
    double off = 0, size = 0;
    for (int t = 0; t < TEXT; t++)
        for (int j = 0; j < TOY_VOCAB; j++) {
            off += ((double)a[t][j] - b[t][j]) * ((double)a[t][j] - b[t][j]);
            size += (double)b[t][j] * b[t][j];
        }
    return sqrt(off / size);
}

/* On the way to a logit stand nine products of at most 96 terms, and norms, softmax and silu that do no more
 * than double an error: 20 stages, each with an error of sqrt(96) roundings of 2^-24. */
START_TEST(logits_are_those_of_the_rounded_weights)
{
    static float got[TEXT][TOY_VOCAB], want[TEXT][TOY_VOCAB];
    static double exact[TEXT][TOY_VOCAB];
    run(_i ? &weights : &plain, 0, got);
    run_double(_i ? &weights : &plain, exact);
    for (int t = 0; t < TEXT; t++)
        for (int j = 0; j < TOY_VOCAB; j++)
            want[t][j] = (float)exact[t][j];
    const double off = distance(got, want), bound = 20 * sqrt(96) * 0x1p-24;
    printf("%s against double: %.3g, %.1f %% of the bound\n", _i ? "FP8" : "BF16", off, 100 * off / bound);
    ck_assert_double_le(off, bound);
}
END_TEST

/* A rounding moves a weight by at most 2^-4 of it, either way, so a product by at most 2^-4 of its size in
 * the quadratic mean, whichever side is rounded; eight products of a text's way to its logits (four a layer)
 * add as independent errors do. That they differ at all shows that the option reaches the weights. */
START_TEST(logits_are_near_those_of_bf16)
{
    static float got[TEXT][TOY_VOCAB], want[TEXT][TOY_VOCAB];
    const int roundings = _i ? 16 : 8;
    run(&plain, 0, want);
    run(rounded[_i], 0, got);
    const double off = distance(got, want), bound = sqrt(roundings) * 0x1p-4;
    printf("FP8 %s against BF16: %.3g, %.1f %% of the bound\n", names[_i], off, 100 * off / bound);
    ck_assert_double_le(off, bound);
    ck_assert_double_ge(off, 0x1p-8);
}
END_TEST

START_TEST(a_row_has_its_bits_alone_and_among_others)
{
    static float alone[TEXT][TOY_VOCAB], among[TEXT][TOY_VOCAB];
    run(rounded[_i], TEXT, alone);
    for (int n = 0; n < TEXT; n += 5) {
        run(rounded[_i], n, among);
        for (int t = 0; t < TEXT; t++)
            ck_assert_msg(memcmp(alone[t], among[t], sizeof alone[t]) == 0, "row %d, %d rows alone first", t,
                          n);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("fp8_model");
    TCase *c = tcase_create("fp8_model");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_loop_test(c, logits_are_those_of_the_rounded_weights, 0, 2);
    tcase_add_loop_test(c, logits_are_near_those_of_bf16, 0, N_ROUNDED);
    tcase_add_loop_test(c, a_row_has_its_bits_alone_and_among_others, 0, N_ROUNDED);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
