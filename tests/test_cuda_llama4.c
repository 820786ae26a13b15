/* test_cuda_llama4: whole passes of tiny Llama 4 models on the GPU: near the CPU, which is held to
 * transformers, with the same experts; equal to themselves bit for bit, a row alone or among others; and what
 * the decode loop's records say of experts, on the device as on the CPU.
 * Attention here is never cut into chunks: the models' own are 12 or 16 positions, which the GPU refuses to
 * pass. Installed programs take the folder of golden files as argument. */
#include "engine/err.h"
#include "engine/forward.h"
#include "kernels/philox.h"
#include "tests/cuda_suite.h"
#include "tests/golden.h"
#include "tests/toy_experts.h"
#include <math.h>

enum { TEXT = 64, CAP = 128, MAX_VOCAB = 512 };

static const char *const models[] = {"maverick", "scout", "text", "fp8_meta", "fp8_modelopt"};
enum { N_MODELS = sizeof models / sizeof *models };
/* Its shared experts are BF16 and the others FP8, which the GPU does not take side by side: all are rounded
 * here. */
enum { MIXED = 3 };

struct rig {
    struct backend be;
    struct model model;
    struct kv kv;
    struct forward fw;
};

static const char *golden_dir = SPECBED_GOLDEN_DIR;

static void ok(int rc)
{
    if (rc)
        ck_abort_msg("%s", err_text());
}

static void load(struct rig *r, const char *kind, int model)
{
    char path[512];
    snprintf(path, sizeof path, "%s/llama4/%s", golden_dir, models[model]);
    *r = (struct rig){.be = {.ops = NULL}};
    ok(backend_open(&r->be, kind, &(struct backend_opts){.threads = 1}));
    const struct model_opts opts = {.weights = model == MIXED ? MODEL_FP8 : MODEL_BF16};
    ok(model_load(&r->model, &r->be, path, &opts));
    r->model.cfg.chunk = 0;
    ck_assert_int_le(r->model.cfg.vocab, MAX_VOCAB);
}

static void rig_open(struct rig *r, const char *kind, int model)
{
    load(r, kind, model);
    ok(kv_init(&r->kv, &r->be, &r->model, 2, CAP));
    ok(forward_init(&r->fw, &r->model, &r->kv, TEXT, TEXT));
}

static void rig_close(struct rig *r)
{
    forward_deinit(&r->fw);
    kv_deinit(&r->kv);
    model_deinit(&r->model);
    backend_close(&r->be);
}

/* Tokens [from, from + n) of a random text as a chain. */
static void run(struct rig *r, int slot, int from, int n)
{
    struct forward_row rows[TEXT];
    int keep[TEXT];
    for (int i = 0; i < n; i++) {
        const uint32_t noise = philox(7, 1, (uint32_t)(from + i), PHILOX_SYNTHETIC, 0).v[0];
        rows[i] = (struct forward_row){(int)(noise % (uint32_t)r->model.cfg.vocab), slot, i - 1};
        keep[i] = i;
    }
    ok(forward_run(&r->fw, rows, n, FORWARD_LOGITS));
    ok(kv_commit(&r->kv, slot, keep, n));
}

static int moe_layers(const struct model_config *c)
{
    int n = 0;
    for (int i = 0; i < c->layers; i++)
        n += (c->kind[i] & LAYER_MOE) != 0;
    return n;
}

/* Rows before the first whose experts differ anywhere; *different counts those that do. */
static int rows_alike(const struct rig *a, const struct rig *b, int *different)
{
    const struct model_config *c = &a->model.cfg;
    int first = TEXT;
    *different = 0;
    for (int row = TEXT - 1; row >= 0; row--)
        for (int i = 0; i < moe_layers(c); i++) {
            const size_t at = ((size_t)i * TEXT + (size_t)row) * (size_t)c->top_k;
            if (memcmp(a->fw.host_experts + at, b->fw.host_experts + at, (size_t)c->top_k * sizeof(int)) == 0)
                continue;
            first = row;
            ++*different;
        }
    return first;
}

/* As in test_cuda_backend: BF16's roundoff 2^-8, in a layer eight roundings and two for each expert of a row.
 */
static double bound(const struct model_config *c, int pos, double rms)
{
    const double roundings = (8.0 + 2 * (1 + c->top_k)) * c->layers + 1;
    return golden_bound(c, pos, rms) + 6 * 3 * 0x1p-8 * sqrt(roundings / 3) * rms;
}

/* A router's choice between two experts that are nearly alike may fall otherwise in BF16; after that the
 * texts are of two models. Few rows may do so, and all before the first are held to the bound. */
START_TEST(passes_agree_with_the_cpu)
{
    struct rig cpu, gpu;
    int different;
    double worst = 0;
    rig_open(&cpu, "cpu", _i);
    rig_open(&gpu, "cuda", _i);
    run(&cpu, 0, 0, TEXT);
    run(&gpu, 0, 0, TEXT);
    const int vocab = cpu.model.cfg.vocab, alike = rows_alike(&cpu, &gpu, &different);
    for (int row = 0; row < alike; row++) {
        const float *want = cpu.fw.host_logits + (size_t)row * (size_t)vocab,
                    *got = gpu.fw.host_logits + (size_t)row * (size_t)vocab;
        const double limit = bound(&cpu.model.cfg, row, golden_rms(want, vocab));
        for (int v = 0; v < vocab; v++)
            worst = fmax(worst, isfinite(got[v]) ? fabs((double)got[v] - want[v]) / limit : INFINITY);
    }
    printf(
        "%s: %d rows before the first other expert, %d of %d choices differ, worst share of the bound %.3f\n",
        models[_i], alike, different, TEXT * moe_layers(&cpu.model.cfg), worst);
    ck_assert(worst <= 1);
    ck_assert_int_ge(alike, 1);
    ck_assert_int_le(20 * different, TEXT * moe_layers(&cpu.model.cfg));
    rig_close(&cpu);
    rig_close(&gpu);
}
END_TEST

START_TEST(a_row_has_the_same_bits_alone_and_among_others)
{
    static float all[TEXT][MAX_VOCAB];
    static const int cuts[] = {1, 7, 24, 33};
    struct rig r;
    rig_open(&r, "cuda", _i);
    const size_t vocab = (size_t)r.model.cfg.vocab;
    run(&r, 0, 0, TEXT);
    for (int row = 0; row < TEXT; row++)
        memcpy(all[row], r.fw.host_logits + (size_t)row * vocab, vocab * sizeof(float));
    for (int cut = 0; cut < 4; cut++) {
        kv_reset(&r.kv, 1);
        for (int at = 0; at < TEXT; at += cuts[cut]) {
            const int n = TEXT - at < cuts[cut] ? TEXT - at : cuts[cut];
            run(&r, 1, at, n);
            for (int i = 0; i < n; i++)
                ck_assert_msg(
                    memcmp(r.fw.host_logits + (size_t)i * vocab, all[at + i], vocab * sizeof(float)) == 0,
                    "%s: row %d in passes of %d differs from the one in a pass of %d", models[_i], at + i,
                    cuts[cut], TEXT);
        }
    }
    rig_close(&r);
}
END_TEST

/* 1 when both had the same texts before this step. */
static int same_text(const struct toy_experts *a, const struct toy_experts *b, int step)
{
    for (int slot = 0; slot < TOY_EXPERTS_SLOTS; slot++) {
        const int n = a->before[step][slot];
        if (n != b->before[step][slot] ||
            memcmp(a->text[slot].tokens, b->text[slot].tokens, (size_t)n * sizeof(int)) != 0)
            return 0;
    }
    return 1;
}

/* Steps before the first that had other texts; *same_layers: of their layers, those with as many distinct
 * experts on both. */
static int steps_alike(const struct toy_experts *a, const struct toy_experts *b, int *same_layers)
{
    int step = 0;
    *same_layers = 0;
    for (; step < a->steps && step < b->steps && same_text(a, b, step); step++) {
        ck_assert_int_eq(a->rows[step], b->rows[step]);
        for (int l = 0; l < a->layers; l++)
            *same_layers += a->distinct[step][l] == b->distinct[step][l];
    }
    return step;
}

/* Each loop is held to a pass over its own text (toy_experts.h). Between the two a router's near ties may
 * fall otherwise, as in the passes above: a step's layer sees several rows, so one of four may. */
START_TEST(steps_say_of_experts_what_the_cpus_loop_says)
{
    static struct toy_experts of_cpu, of_gpu, brief;
    struct rig cpu, gpu;
    int same;
    load(&cpu, "cpu", _i);
    load(&gpu, "cuda", _i);
    toy_experts_run(&cpu.model, TRACE_FULL, &of_cpu);
    toy_experts_run(&gpu.model, TRACE_FULL, &of_gpu);
    toy_experts_run(&gpu.model, TRACE_STEPS, &brief);
    ck_assert_int_eq(brief.steps, of_gpu.steps);
    ck_assert_mem_eq(brief.distinct, of_gpu.distinct, sizeof brief.distinct);
    const int steps = steps_alike(&of_cpu, &of_gpu, &same);
    printf("%s: %d steps of %d had the same texts, %d of %d layers with as many experts\n", models[_i], steps,
           of_cpu.steps, same, steps * of_cpu.layers);
    ck_assert_int_ge(steps, 1);
    ck_assert_int_ge(4 * same, 3 * steps * of_cpu.layers - 4);
    model_deinit(&cpu.model);
    model_deinit(&gpu.model);
    backend_close(&cpu.be);
    backend_close(&gpu.be);
}
END_TEST

int main(int argc, char **argv)
{
    if (argc > 1)
        golden_dir = argv[1];
    if (cuda_suite_skips("test_cuda_llama4"))
        return CUDA_SUITE_SKIPPED;
    Suite *s = suite_create("cuda_llama4");
    TCase *c = tcase_create("cuda_llama4");
    tcase_add_loop_test(c, passes_agree_with_the_cpu, 0, N_MODELS);
    tcase_add_loop_test(c, a_row_has_the_same_bits_alone_and_among_others, 0, N_MODELS);
    tcase_add_loop_test(c, steps_say_of_experts_what_the_cpus_loop_says, 0, N_MODELS);
    suite_add_tcase(s, c);
    return cuda_suite_run(s);
}
