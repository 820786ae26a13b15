/* test_cuda_llama4: whole passes of tiny Llama 4 models on the GPU: near the CPU, which is held to
 * transformers, with the same experts; and equal to themselves bit for bit, a row alone or among others.
 * Attention is cut into chunks of 12 or 16 positions, as the models ask for, so that every pass straddles
 * several. Installed programs take the folder of golden files as argument. */
#include "engine/err.h"
#include "engine/forward.h"
#include "kernels/philox.h"
#include "tests/cuda_suite.h"
#include "tests/golden.h"
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

static void rig_open(struct rig *r, const char *kind, int model)
{
    char path[512];
    snprintf(path, sizeof path, "%s/llama4/%s", golden_dir, models[model]);
    *r = (struct rig){.be = {.ops = NULL}};
    ok(backend_open(&r->be, kind, &(struct backend_opts){.threads = 1}));
    const struct model_opts opts = {.weights = model == MIXED ? MODEL_FP8 : MODEL_BF16};
    ok(model_load(&r->model, &r->be, path, &opts));
    ck_assert_int_gt(r->model.cfg.chunk, 0);
    ck_assert_int_lt(2 * r->model.cfg.chunk, TEXT);
    ck_assert_int_le(r->model.cfg.vocab, MAX_VOCAB);
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

static int token_at(const struct rig *r, int i) /* of a random text */
{
    return (int)(philox(7, 1, (uint32_t)i, PHILOX_SYNTHETIC, 0).v[0] % (uint32_t)r->model.cfg.vocab);
}

/* Tokens [from, from + n) of the text as a chain. */
static void run(struct rig *r, int slot, int from, int n)
{
    struct forward_row rows[TEXT];
    int keep[TEXT];
    for (int i = 0; i < n; i++) {
        rows[i] = (struct forward_row){token_at(r, from + i), slot, i - 1};
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

/* Two branches with the text's next tokens in one of them, from before a border of chunks to past it; rows of
 * the other branch lie between. */
START_TEST(a_tree_across_a_border_has_the_bits_of_its_text)
{
    enum { DEPTH = 6 };
    static float all[TEXT][MAX_VOCAB];
    struct rig r;
    rig_open(&r, "cuda", _i);
    const size_t vocab = (size_t)r.model.cfg.vocab, size = vocab * sizeof(float);
    run(&r, 0, 0, TEXT);
    for (int row = 0; row < TEXT; row++)
        memcpy(all[row], r.fw.host_logits + (size_t)row * vocab, size);
    for (int from = 9; from + DEPTH <= TEXT; from++) {
        struct forward_row rows[2 * DEPTH];
        for (int i = 0; i < 2 * DEPTH; i++) {
            const int token = token_at(&r, from + i / 2);
            rows[i] = (struct forward_row){i % 2 ? token : (token + 1) % (int)vocab, 1, i < 2 ? -1 : i - 2};
        }
        kv_reset(&r.kv, 1);
        run(&r, 1, 0, from);
        ok(forward_run(&r.fw, rows, 2 * DEPTH, FORWARD_LOGITS));
        for (int i = 0; i < DEPTH; i++)
            ck_assert_msg(
                memcmp(r.fw.host_logits + (size_t)(2 * i + 1) * vocab, all[from + i], size) == 0,
                "%s: node %d of a tree after %d tokens, chunks of %d, differs from the row of its text",
                models[_i], i, from, r.model.cfg.chunk);
    }
    rig_close(&r);
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
    tcase_add_loop_test(c, a_tree_across_a_border_has_the_bits_of_its_text, 0, N_MODELS);
    suite_add_tcase(s, c);
    return cuda_suite_run(s);
}
