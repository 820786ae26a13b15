/* test_synthetic: random weights of Llama 4: which experts they choose, and the published shapes. */
#include "engine/err.h"
#include "engine/forward.h"
#include "engine/log.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ROWS = 4096, PASS = 64, EXPERTS = 128, LAYERS = 4 };

static struct model_config small(void)
{
    struct model_config c = {.architecture = "Llama4ForCausalLM",
                             .vocab = ROWS,
                             .hidden = 512,
                             .ffn = 16,
                             .ffn_dense = 16,
                             .layers = LAYERS,
                             .heads = 4,
                             .kv_heads = 2,
                             .head_dim = 32,
                             .max_positions = 1024,
                             .rms_eps = 1e-5f,
                             .rope_theta = 10000,
                             .llama4 = 1,
                             .experts = EXPERTS,
                             .top_k = 1};
    memset(c.kind, LAYER_MOE, LAYERS);
    return c;
}

/* Each token of the vocabulary once, 64 to a text: how often each expert of each layer was the best. */
static void count(float skew, double n[LAYERS][EXPERTS])
{
    const struct model_config c = small();
    const struct model_opts opts = {.expert_skew = skew};
    struct backend be = {0};
    struct model m = {0};
    struct kv kv = {0};
    struct forward f = {0};
    struct forward_row row[PASS];
    log_set_level(LOG_WARN);
    memset(n, 0, LAYERS * sizeof *n);
    ck_assert_int_eq(backend_open(&be, "cpu", &(struct backend_opts){.threads = 1, .isa = "auto"}), 0);
    ck_assert_msg(model_synthetic(&m, &be, &c, 3, &opts) == 0, "%s", err_text());
    ck_assert_int_eq(kv_init(&kv, &be, &m, 1, PASS), 0);
    ck_assert_int_eq(forward_init(&f, &m, &kv, PASS, PASS), 0);
    for (int at = 0; at < ROWS; at += PASS) {
        for (int i = 0; i < PASS; i++)
            row[i] = (struct forward_row){.token = at + i, .parent = i - 1};
        ck_assert_msg(forward_run(&f, row, PASS, FORWARD_LOGITS) == 0, "%s", err_text());
        for (int l = 0; l < LAYERS; l++)
            for (int i = 0; i < PASS; i++)
                n[l][f.host_experts[l * PASS + i]]++;
        kv_reset(&kv, 0);
    }
    forward_deinit(&f);
    kv_deinit(&kv);
    model_deinit(&m);
    backend_close(&be);
}

/* Against shares of 1 / (1 + e)^skew. */
static double chi_square(const double *n, double skew)
{
    double sum = 0, chi = 0;
    for (int e = 0; e < EXPERTS; e++)
        sum += pow(1 + e, -skew);
    for (int e = 0; e < EXPERTS; e++) {
        const double want = ROWS * pow(1 + e, -skew) / sum;
        chi += (n[e] - want) * (n[e] - want) / want;
    }
    return chi;
}

/* 127 degrees of freedom, 4,096 rows: chi-square is above 195 once in 10,000 times. */
START_TEST(random_routing_is_near_uniform)
{
    double n[LAYERS][EXPERTS];
    count(0, n);
    for (int l = 0; l < LAYERS; l++) {
        printf("layer %d: chi-square %.1f of 127\n", l, chi_square(n[l], 0));
        ck_assert_double_lt(chi_square(n[l], 0), 195);
    }
}
END_TEST

/* What tells the two apart, and that the first experts have their share: 4,096 rows, five standard deviations
 * of a binomial and a tenth of the share for the directions' chance. */
START_TEST(a_skew_gives_the_first_experts_their_share)
{
    double n[LAYERS][EXPERTS], sum = 0;
    const double skew = 1;
    count((float)skew, n);
    for (int e = 0; e < EXPERTS; e++)
        sum += pow(1 + e, -skew);
    for (int l = 0; l < LAYERS; l++) {
        printf("layer %d: chi-square %.1f of 127 against its shares, %.1f against uniform\n", l,
               chi_square(n[l], skew), chi_square(n[l], 0));
        ck_assert_double_gt(chi_square(n[l], 0), 1950);
        for (int e = 0; e < 4; e++) {
            const double p = pow(1 + e, -skew) / sum, off = fabs(n[l][e] - ROWS * p);
            printf("  expert %d: %.0f, expected %.0f\n", e, n[l][e], ROWS * p);
            ck_assert_double_lt(off, 5 * sqrt(ROWS * p * (1 - p)) + 0.1 * ROWS * p);
        }
    }
}
END_TEST

START_TEST(a_skew_that_no_norms_give_is_an_error)
{
    struct model_config c = small();
    struct backend be = {0};
    struct model m = {0};
    c.experts = 2;
    ck_assert_int_eq(backend_open(&be, "cpu", &(struct backend_opts){.threads = 1, .isa = "auto"}), 0);
    ck_assert_int_eq(model_synthetic(&m, &be, &c, 3, &(struct model_opts){.expert_skew = 1}), ERR_CONFIG);
    ck_assert_msg(strstr(err_text(), "expert_skew 1") != NULL, "%s", err_text());
    backend_close(&be);
}
END_TEST

START_TEST(maverick_and_scout_have_their_published_sizes)
{
    struct model_config c;
    int moe = 0, nope = 0;
    ck_assert_int_eq(model_config_named(&c, "maverick"), 0);
    ck_assert(model_config_params(&c) / 100000000 == 4007);
    for (int i = 0; i < c.layers; i++) {
        moe += (c.kind[i] & LAYER_MOE) != 0;
        nope += (c.kind[i] & LAYER_NOPE) != 0;
        ck_assert(!(c.kind[i] & LAYER_NOPE) || c.kind[i] & LAYER_MOE);
    }
    ck_assert_int_eq(moe, 24);
    ck_assert_int_eq(nope, 12);
    ck_assert_int_eq(c.qk_norm, 0);
    ck_assert_int_eq(model_config_named(&c, "scout"), 0);
    ck_assert_int_eq(c.experts, 16);
    ck_assert_int_eq(c.qk_norm, 1);
    for (int i = 0; i < c.layers; i++)
        ck_assert(c.kind[i] & LAYER_MOE);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("synthetic");
    TCase *c = tcase_create("synthetic");
    tcase_set_timeout(c, 60);
    tcase_add_test(c, random_routing_is_near_uniform);
    tcase_add_test(c, a_skew_gives_the_first_experts_their_share);
    tcase_add_test(c, a_skew_that_no_norms_give_is_an_error);
    tcase_add_test(c, maverick_and_scout_have_their_published_sizes);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
