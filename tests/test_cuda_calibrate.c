/* test_cuda_calibrate: static scales that the GPU measures are those of the CPU within what its acts are
 * rounded to, and passes with them are the CPU's: verification, long prefill, one row or many. */
#include "engine/calibrate.h"
#include "engine/err.h"
#include "engine/forward.h"
#include "kernels/philox.h"
#include "tests/cuda_suite.h"
#include "tests/toy.h"
#include <math.h>

enum { TEXT = 150, CAP = 256, ROWS = 128, TAIL = 16, MATRICES = 4 };

struct rig {
    struct backend be;
    struct model model;
    struct kv kv;
    struct forward fw;
};

static int tokens[TEXT];

static void ok(int rc)
{
    if (rc)
        ck_abort_msg("%s", err_text());
}

static void rig_open(struct rig *r, const char *kind)
{
    const struct model_config c = toy_config();
    const struct model_opts opts = {.weights = MODEL_FP8, .activations = MODEL_FP8_STATIC, .calibrates = 1};
    *r = (struct rig){.be = {.ops = NULL}};
    ok(backend_open(&r->be, kind, &(struct backend_opts){.threads = 1}));
    ok(model_synthetic(&r->model, &r->be, &c, TOY_SEED, &opts));
    for (int i = 0; i < TEXT; i++)
        tokens[i] = (int)(philox(7, 1, (uint32_t)i, PHILOX_SYNTHETIC, 0).v[0] % TOY_VOCAB);
    ok(model_calibrate(&r->model, tokens, TEXT));
    ok(kv_init(&r->kv, &r->be, &r->model, 2, CAP));
    ok(forward_init(&r->fw, &r->model, &r->kv, ROWS, TAIL));
}

static void rig_close(struct rig *r)
{
    forward_deinit(&r->fw);
    kv_deinit(&r->kv);
    model_deinit(&r->model);
    backend_close(&r->be);
}

static float scale_of(const struct rig *r, int i)
{
    const struct layer *l = &r->model.layers[i / MATRICES];
    const struct matrix *const all[MATRICES] = {&l->qkv, &l->o, &l->gate_up, &l->down};
    return all[i % MATRICES]->input_scale;
}

/* Roundings of BF16's unit roundoff 2^-8 on the way to a logit, as in test_cuda_backend. */
static double roundings(const struct rig *r)
{
    return 8.0 * r->model.cfg.layers + 1;
}

/* A largest number moves by no more than any of its row, which are bounded as logits are, by their quadratic
 * mean, and so by itself. */
START_TEST(measured_scales_are_those_of_the_cpu)
{
    struct rig cpu, gpu;
    double worst = 0;
    rig_open(&cpu, "cpu");
    rig_open(&gpu, "cuda");
    const double bound = 6 * 3 * 0x1p-8 * sqrt(roundings(&cpu) / 3);
    for (int i = 0; i < cpu.model.cfg.layers * MATRICES; i++) {
        const double want = (double)scale_of(&cpu, i), got = (double)scale_of(&gpu, i),
                     share = fabs(got - want) / (bound * want);
        printf("layer %d, matrix %d: scale %.6g on the CPU, %.6g here, %.3f of the bound\n", i / MATRICES,
               i % MATRICES, want, got, share);
        worst = share <= worst ? worst : share;
    }
    ck_assert(worst <= 1);
    rig_close(&cpu);
    rig_close(&gpu);
}
END_TEST

/* The text's first `before` tokens by prefill, then TAIL rows in passes of `each`; their logits to `out`. */
static void run(struct rig *r, int slot, int before, int each, float out[TAIL][TOY_VOCAB])
{
    ok(forward_prefill(&r->fw, slot, tokens, before));
    for (int at = 0; at < TAIL; at += each) {
        struct forward_row rows[TAIL];
        int keep[TAIL];
        for (int i = 0; i < each; i++) {
            rows[i] = (struct forward_row){.token = tokens[before + at + i], .slot = slot, .parent = i - 1};
            keep[i] = i;
        }
        ok(forward_run(&r->fw, rows, each, FORWARD_LOGITS));
        memcpy(out[at], r->fw.host_logits, (size_t)each * sizeof *out);
        ok(kv_commit(&r->kv, slot, keep, each));
    }
}

/* Numbers that BF16 puts on another side of an E4M3 border, a share of 2^-8 / 2^-3 of them, move by a step of
 * 2^-3: together as much as a roundoff of sqrt(2^-8 2^-3) in each rounding. Few move far, so a row is held to
 * three times that as a whole. */
static double row_share(const struct rig *r, const float *want, const float *got)
{
    double off = 0, size = 0;
    for (int v = 0; v < TOY_VOCAB; v++) {
        off += ((double)got[v] - (double)want[v]) * ((double)got[v] - (double)want[v]);
        size += (double)want[v] * (double)want[v];
    }
    return sqrt(off / size) / (3 * sqrt(0x1p-11 * roundings(r) / 3));
}

/* By the CPU's scales on both sides. Prefill of more than BULK_ROWS rows goes its own way (kernels/bulk.h).
 */
START_TEST(passes_agree_with_the_cpu)
{
    static float want[TAIL][TOY_VOCAB], got[TAIL][TOY_VOCAB];
    const int before = _i ? ROWS : 32;
    struct rig cpu, gpu;
    double worst = 0;
    rig_open(&cpu, "cpu");
    rig_open(&gpu, "cuda");
    for (int i = 0; i < cpu.model.cfg.layers; i++) {
        struct layer *from = &cpu.model.layers[i], *to = &gpu.model.layers[i];
        to->qkv.input_scale = from->qkv.input_scale, to->o.input_scale = from->o.input_scale;
        to->gate_up.input_scale = from->gate_up.input_scale, to->down.input_scale = from->down.input_scale;
    }
    run(&cpu, 0, before, TAIL, want);
    run(&gpu, 0, before, TAIL, got);
    for (int row = 0; row < TAIL; row++) {
        const double share = row_share(&cpu, want[row], got[row]);
        worst = share <= worst ? worst : share;
    }
    printf("%d tokens by prefill: worst share of the bound %.3f\n", before, worst);
    ck_assert(worst <= 1);
    rig_close(&cpu);
    rig_close(&gpu);
}
END_TEST

START_TEST(a_row_has_the_same_bits_alone_and_among_others)
{
    static float all[TAIL][TOY_VOCAB], some[TAIL][TOY_VOCAB];
    struct rig r;
    rig_open(&r, "cuda");
    run(&r, 0, 32, TAIL, all);
    for (int each = 1; each < TAIL; each *= 2) {
        kv_reset(&r.kv, 1);
        run(&r, 1, 32, each, some);
        for (int row = 0; row < TAIL; row++)
            ck_assert_msg(memcmp(all[row], some[row], sizeof *all) == 0,
                          "row %d in passes of %d differs from the one in a pass of %d", row, each, TAIL);
    }
    rig_close(&r);
}
END_TEST

int main(void)
{
    if (cuda_suite_skips("test_cuda_calibrate"))
        return CUDA_SUITE_SKIPPED;
    Suite *s = suite_create("cuda_calibrate");
    TCase *c = tcase_create("cuda_calibrate");
    tcase_add_test(c, measured_scales_are_those_of_the_cpu);
    tcase_add_loop_test(c, passes_agree_with_the_cpu, 0, 2);
    tcase_add_test(c, a_row_has_the_same_bits_alone_and_among_others);
    suite_add_tcase(s, c);
    return cuda_suite_run(s);
}
