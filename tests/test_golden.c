/* test_golden: small Llamas of every kind that is read, their logits against transformers' within the bound
 * of tests/golden.h. */
#include "tests/golden.h"
#include "engine/err.h"
#include "engine/forward.h"
#include "engine/log.h"
#include "kernels/cpu.h"

enum { CAP = 64 };

static const char *const models[] = {"untied", "rope_llama3", "tied", "f16", "f32", "sharded"};
enum { N_MODELS = sizeof models / sizeof *models };

/* A tiny model, its tokens and their logits as transformers computes them. */
struct rig {
    struct backend be;
    struct model model;
    struct kv kv;
    struct forward fw;
    int n, vocab;
    int *ids;
    float *want; /* [n, vocab] */
};

static void rig_open(struct rig *r, const char *name, const char *isa)
{
    char path[512];
    *r = (struct rig){.n = 0};
    log_set_level(LOG_WARN);
    snprintf(path, sizeof path, SPECBED_GOLDEN_DIR "/tiny/%s", name);
    ck_assert_int_eq(backend_open(&r->be, "cpu", &(struct backend_opts){.threads = 1, .isa = isa}), 0);
    ck_assert_msg(model_load(&r->model, &r->be, path, NULL) == 0, "%s", err_text());
    snprintf(path, sizeof path, SPECBED_GOLDEN_DIR "/tiny/%s/logits.bin", name);
    struct golden g = golden_open(path, "SBTINY01");
    r->n = golden_int(&g);
    r->vocab = golden_int(&g);
    ck_assert_int_le(r->n, CAP);
    ck_assert_int_eq(r->vocab, r->model.cfg.vocab);
    r->ids = golden_ints(&g, r->n);
    r->want = golden_floats(&g, r->n * r->vocab);
    golden_close(&g);
    ck_assert_int_eq(kv_init(&r->kv, &r->be, &r->model, 1, CAP), 0);
    ck_assert_int_eq(forward_init(&r->fw, &r->model, &r->kv, CAP, CAP), 0);
}

static void rig_close(struct rig *r)
{
    forward_deinit(&r->fw);
    kv_deinit(&r->kv);
    model_deinit(&r->model);
    backend_close(&r->be);
    free(r->ids);
    free(r->want);
}

static void run(struct rig *r)
{
    struct forward_row rows[CAP] = {{.token = 0}};
    for (int i = 0; i < r->n; i++)
        rows[i] = (struct forward_row){.token = r->ids[i], .slot = 0, .parent = i - 1};
    kv_reset(&r->kv, 0);
    ck_assert_msg(forward_run(&r->fw, rows, r->n, FORWARD_LOGITS) == 0, "%s", err_text());
}

/* The largest error as a share of its row's bound. */
static double worst_share(const struct rig *r, const char *name)
{
    double worst = 0;
    int at = 0;
    for (int i = 0; i < r->n * r->vocab; i++) {
        const int pos = i / r->vocab;
        const double rms = golden_rms(r->want + (size_t)pos * (size_t)r->vocab, r->vocab);
        const double share =
            fabs((double)r->fw.logits[i] - r->want[i]) / golden_bound(&r->model.cfg, pos, rms);
        if (!(share <= worst)) {
            worst = share;
            at = i;
        }
    }
    printf("golden %s (%s): worst share of the bound %.3f, position %d, id %d\n", name, r->be.isa, worst,
           at / r->vocab, at % r->vocab);
    return worst;
}

START_TEST(logits_agree_with_transformers)
{
    struct rig r;
    const struct cpu_kernels *k = cpu_kernels_at(_i / N_MODELS);
    rig_open(&r, models[_i % N_MODELS], k->name);
    run(&r);
    ck_assert_double_le(worst_share(&r, models[_i % N_MODELS]), 1);
    rig_close(&r);
}
END_TEST

/* The same comparison must refuse networks that are wrong in one number. */
static void plant(struct rig *r, int which)
{
    switch (which) {
    case 0:
        r->model.cfg.rms_eps *= 10;
        break;
    case 1:
        r->model.inv_freq[1] *= 1.001f;
        break;
    case 2:
        r->model.layers[1].ffn_norm[7] *= 1.01f;
        break;
    case 3:
        r->ids[0] = (r->ids[0] + 1) % r->vocab;
        break;
    }
}

START_TEST(a_planted_mistake_exceeds_the_bound)
{
    struct rig r;
    rig_open(&r, "untied", "auto");
    plant(&r, _i);
    run(&r);
    ck_assert_double_gt(worst_share(&r, "untied with a mistake"), 1);
    rig_close(&r);
}
END_TEST

int main(void)
{
    int isas = 0;
    while (cpu_kernels_at(isas))
        isas++;
    Suite *s = suite_create("golden");
    TCase *agree = tcase_create("agree"), *differ = tcase_create("differ");
    tcase_add_loop_test(agree, logits_agree_with_transformers, 0, isas * N_MODELS);
    tcase_add_loop_test(differ, a_planted_mistake_exceeds_the_bound, 0, 4);
    suite_add_tcase(s, agree);
    suite_add_tcase(s, differ);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
