/* test_golden_llama4: small Llama 4 models, their logits, router logits, experts and hidden states against
 * transformers', and the same bits however a text is cut into passes.
 *
 * The bound is that of tests/golden.h with the parts of this network. A layer chains qkv (hidden), scores
 * (head_dim), values (at most position + 1 keys) and o (heads * head_dim), and 12 elementwise roundings, two
 * more with a norm of queries and keys. A dense MLP adds hidden + ffn and roundings, counted as 12; a layer
 * of experts the router (hidden), whose score is a factor of the expert's input, and that MLP once for the
 * shared expert and once for each chosen one. Experts are compared where the gap between the last chosen
 * logit and the best other is more than twice the bound of a router logit. */
#include "tests/golden.h"
#include "engine/err.h"
#include "engine/forward.h"
#include "engine/log.h"
#include "kernels/cpu.h"
#include "tests/expect.h"

enum { CAP = 64, MAX_LAYERS = 8, MAX_EXPERTS = 8, MAX_HIDDEN = 32, MAX_VOCAB = 97, MAX_K = 2 };

static const char *const models[] = {"maverick", "scout", "text", "fp8_meta", "fp8_modelopt"};
enum { MAVERICK, SCOUT, TEXT, FP8_META, FP8_MODELOPT, N_MODELS };

/* What golden.bin holds. */
struct answers {
    int n, vocab, hidden, layers, moe_layers, experts, top_k, n_pos, fp8;
    int *ids, *pos;                  /* owned, like all below: [n], [n_pos] */
    float *logits, *state, *rounded; /* [n, vocab], [layers, n_pos, hidden], [n_pos, vocab] or NULL */
    int layer[MAX_LAYERS];           /* [moe_layers], the index of each */
    int *expert[MAX_LAYERS];         /* [n, top_k] */
    float *gap[MAX_LAYERS], *router[MAX_LAYERS]; /* [n], [n, experts] */
};

static struct answers answers_read(const char *name)
{
    char path[512];
    struct answers a = {0};
    snprintf(path, sizeof path, SPECBED_GOLDEN_DIR "/llama4/%s/golden.bin", name);
    struct golden g = golden_open(path, "SBLLAMA4");
    int *const head[] = {&a.n,       &a.vocab, &a.hidden, &a.layers, &a.moe_layers,
                         &a.experts, &a.top_k, &a.n_pos,  &a.fp8};
    for (size_t i = 0; i < sizeof head / sizeof *head; i++)
        *head[i] = golden_int(&g);
    ck_assert(a.n <= CAP && a.layers <= MAX_LAYERS && a.moe_layers <= a.layers && a.experts <= MAX_EXPERTS);
    ck_assert(a.hidden <= MAX_HIDDEN && a.vocab <= MAX_VOCAB && a.top_k <= MAX_K);
    a.ids = golden_ints(&g, a.n);
    a.logits = golden_floats(&g, a.n * a.vocab);
    for (int i = 0; i < a.moe_layers; i++) {
        a.layer[i] = golden_int(&g);
        a.expert[i] = golden_ints(&g, a.n * a.top_k);
        a.gap[i] = golden_floats(&g, a.n);
        a.router[i] = golden_floats(&g, a.n * a.experts);
    }
    a.pos = golden_ints(&g, a.n_pos);
    a.state = golden_floats(&g, a.layers * a.n_pos * a.hidden);
    if (a.fp8)
        a.rounded = golden_floats(&g, a.n_pos * a.vocab);
    golden_close(&g);
    return a;
}

static void answers_free(struct answers *a)
{
    for (int i = 0; i < a->moe_layers; i++) {
        free(a->expert[i]);
        free(a->gap[i]);
        free(a->router[i]);
    }
    free(a->ids);
    free(a->pos);
    free(a->logits);
    free(a->state);
    free(a->rounded);
}

/* What the last pass computed on the way. A layer ends with every second operation that adds to the stream.
 */
static struct {
    int adds, routes;
    float state[MAX_LAYERS][CAP][MAX_HIDDEN];
    float router[MAX_LAYERS][CAP][MAX_EXPERTS];
} seen;

static void note_state(const float *y, int rows, int hidden)
{
    const int layer = seen.adds++ / 2;
    for (int r = 0; seen.adds % 2 == 0 && r < rows; r++)
        memcpy(seen.state[layer][r], y + (size_t)r * (size_t)hidden, (size_t)hidden * sizeof *y);
}

/* A pass begins. */
static int spy_embed(struct backend *be, const struct embed *a)
{
    seen.adds = seen.routes = 0;
    return backend_cpu.embed(be, a);
}

static int spy_residual(struct backend *be, const struct residual *a)
{
    TRY(backend_cpu.residual(be, a));
    note_state(a->product.y, a->product.rows, a->product.w->n);
    return 0;
}

static int spy_moe(struct backend *be, const struct moe *a)
{
    TRY(backend_cpu.moe(be, a));
    note_state(a->y, a->rows, a->shared.down->n);
    return 0;
}

static int spy_route(struct backend *be, const struct route *a)
{
    const size_t n = (size_t)a->product.w->n;
    TRY(backend_cpu.route(be, a));
    for (int r = 0; r < a->product.rows; r++)
        memcpy(seen.router[seen.routes][r], (const float *)a->product.y + (size_t)r * n, n * sizeof(float));
    seen.routes++;
    return 0;
}

struct rig {
    struct backend_ops spy; /* the CPU, its stream and its routers noted */
    struct backend be;
    struct model model;
    struct kv kv;
    struct forward fw;
    struct answers want;
};

/* Mistakes that the comparison has to refuse. */
enum mistake {
    MISTAKE_NONE,
    MISTAKE_CHUNK,
    MISTAKE_NO_CHUNK,
    MISTAKE_FLOOR,
    MISTAKE_NO_TEMPERATURE,
    MISTAKE_QK_NORM,
    MISTAKE_NOPE,
    MISTAKE_TOP_K,
    MISTAKE_EXPERTS,
    N_MISTAKES
};

static void swap(struct matrix *a, struct matrix *b)
{
    const struct matrix old = *a;
    *a = *b;
    *b = old;
}

static void plant(struct model *m, enum mistake which)
{
    struct model_config *c = &m->cfg;
    switch (which) {
    case MISTAKE_NONE:
    case N_MISTAKES:
        break;
    case MISTAKE_CHUNK:
        c->chunk++;
        break;
    case MISTAKE_NO_CHUNK:
        c->chunk = 0;
        break;
    case MISTAKE_FLOOR:
        c->temperature_floor++;
        break;
    case MISTAKE_NO_TEMPERATURE:
        c->temperature_scale = 0;
        break;
    case MISTAKE_QK_NORM:
        c->qk_norm = !c->qk_norm;
        break;
    case MISTAKE_NOPE:
        m->layers[1].kind ^= LAYER_NOPE;
        break;
    case MISTAKE_TOP_K:
        c->top_k = 3 - c->top_k;
        break;
    case MISTAKE_EXPERTS:
        swap(&m->layers[1].expert_down[0], &m->layers[1].expert_down[1]);
        break;
    }
}

static void rig_open_threads(struct rig *r, int model, const char *isa, enum mistake mistake, int threads)
{
    char path[512];
    *r = (struct rig){.spy = backend_cpu};
    log_set_level(LOG_ERROR);
    snprintf(path, sizeof path, SPECBED_GOLDEN_DIR "/llama4/%s", models[model]);
    ck_assert_int_eq(backend_open(&r->be, "cpu", &(struct backend_opts){.threads = threads, .isa = isa}), 0);
    ck_assert_msg(model_load(&r->model, &r->be, path, NULL) == 0, "%s", err_text());
    r->want = answers_read(models[model]);
    ck_assert_int_eq(r->want.vocab, r->model.cfg.vocab);
    ck_assert_int_eq(r->want.layers, r->model.cfg.layers);
    plant(&r->model, mistake);
    ck_assert_int_eq(kv_init(&r->kv, &r->be, &r->model, 2, CAP), 0);
    ck_assert_int_eq(forward_init(&r->fw, &r->model, &r->kv, CAP, CAP), 0);
    r->spy.embed = spy_embed;
    r->spy.residual = spy_residual;
    r->spy.moe = spy_moe;
    r->spy.route = spy_route;
    r->be.ops = &r->spy;
}

static void rig_open(struct rig *r, int model, const char *isa, enum mistake mistake)
{
    rig_open_threads(r, model, isa, mistake, 1);
}

static void rig_close(struct rig *r)
{
    forward_deinit(&r->fw);
    kv_deinit(&r->kv);
    model_deinit(&r->model);
    backend_close(&r->be);
    answers_free(&r->want);
}

/* Tokens [from, from + n) of the text as a chain in one pass. */
static void run(struct rig *r, int slot, int from, int n, unsigned flags)
{
    struct forward_row rows[CAP] = {{.token = 0}};
    int keep[CAP];
    for (int i = 0; i < n; i++) {
        rows[i] = (struct forward_row){.token = r->want.ids[from + i], .slot = slot, .parent = i - 1};
        keep[i] = i;
    }
    ck_assert_msg(forward_run(&r->fw, rows, n, flags) == 0, "%s", err_text());
    ck_assert_int_eq(kv_commit(&r->kv, slot, keep, n), 0);
}

/* --- against transformers --------------------------------------------------------------------------------
 */

/* The products and roundings of layers 0 .. layers - 1 and of one product of the stream after them. */
static double bound(const struct rig *r, int layers, int pos, double rms)
{
    const struct model_config *c = &r->model.cfg;
    double sum = c->hidden;
    for (int i = 0; i < layers; i++) {
        const int moe = (c->kind[i] & LAYER_MOE) != 0, mlps = moe ? 1 + c->top_k : 1;
        sum +=
            c->hidden + c->head_dim + (pos + 1) + (double)c->heads * c->head_dim + (12 + 2 * c->qk_norm) * 3;
        sum += mlps * (c->hidden + (moe ? c->ffn : c->ffn_dense) + 12 * 3) + (moe ? c->hidden : 0);
    }
    return 6 * 3 * 0x1p-24 * sqrt(sum / 3) * rms;
}

/* Rows of `width`: the largest error as a share of the bound after so many layers. */
static double share_of_row(const struct rig *r, int layers, int pos, const float *got, const float *want,
                           int width)
{
    const double limit = bound(r, layers, pos, golden_rms(want, width));
    double worst = 0;
    for (int i = 0; i < width; i++) {
        const double share = fabs((double)got[i] - want[i]) / limit;
        worst = share <= worst ? worst : share;
    }
    return worst;
}

static double share_of_logits(const struct rig *r)
{
    const struct answers *a = &r->want;
    double worst = 0;
    for (int i = 0; i < a->n; i++) {
        const size_t at = (size_t)i * (size_t)a->vocab;
        const double share = share_of_row(r, a->layers, i, r->fw.host_logits + at, a->logits + at, a->vocab);
        worst = share <= worst ? worst : share;
    }
    return worst;
}

static double share_of_states(const struct rig *r)
{
    const struct answers *a = &r->want;
    double worst = 0;
    for (int l = 0; l < a->layers; l++)
        for (int i = 0; i < a->n_pos; i++) {
            const float *want = a->state + ((size_t)l * (size_t)a->n_pos + (size_t)i) * (size_t)a->hidden;
            const double share = share_of_row(r, l + 1, a->pos[i], seen.state[l][a->pos[i]], want, a->hidden);
            worst = share <= worst ? worst : share;
        }
    return worst;
}

static double share_of_routers(const struct rig *r)
{
    const struct answers *a = &r->want;
    double worst = 0;
    for (int l = 0; l < a->moe_layers; l++)
        for (int i = 0; i < a->n; i++) {
            const float *want = a->router[l] + (size_t)i * (size_t)a->experts;
            const double share = share_of_row(r, a->layer[l] + 1, i, seen.router[l][i], want, a->experts);
            worst = share <= worst ? worst : share;
        }
    return worst;
}

/* How many rows of all layers have gaps beyond the bound; there the experts must be the same, best first. */
static int same_experts(const struct rig *r)
{
    const struct answers *a = &r->want;
    int compared = 0;
    for (int l = 0; l < a->moe_layers; l++)
        for (int i = 0; i < a->n; i++) {
            const float *router = a->router[l] + (size_t)i * (size_t)a->experts;
            const int *got = r->fw.host_experts + ((size_t)l * (size_t)a->n + (size_t)i) * (size_t)a->top_k;
            if (a->gap[l][i] <= 2 * bound(r, a->layer[l] + 1, i, golden_rms(router, a->experts)))
                continue;
            EXPECT_MSG(memcmp(got, a->expert[l] + i * a->top_k, (size_t)a->top_k * sizeof *got) == 0,
                       "layer %d, position %d: expert %d was chosen, transformers chose %d", a->layer[l], i,
                       got[0], a->expert[l][i * a->top_k]);
            compared++;
        }
    return compared;
}

START_TEST(logits_experts_and_states_agree_with_transformers)
{
    struct rig r;
    rig_open(&r, _i % N_MODELS, cpu_kernels_at(_i / N_MODELS)->name, MISTAKE_NONE);
    const struct answers *a = &r.want;
    run(&r, 0, 0, a->n, FORWARD_LOGITS);
    ck_assert_int_eq(seen.adds, 2 * a->layers);
    ck_assert_int_eq(seen.routes, a->moe_layers);
    const double logits = share_of_logits(&r), states = share_of_states(&r), routers = share_of_routers(&r);
    const int compared = same_experts(&r), all = a->moe_layers * a->n;
    printf("golden %s (%s): worst shares of the bound: logits %.3f, states %.3f, routers %.3f; experts of %d "
           "rows of "
           "%d compared\n",
           models[_i % N_MODELS], r.be.isa, logits, states, routers, compared, all);
    ck_assert_double_le(logits, 1);
    ck_assert_double_le(states, 1);
    ck_assert_double_le(routers, 1);
    ck_assert_int_eq(compared, all); /* the smallest gap of the files is 0.018 */
    rig_close(&r);
}
END_TEST

/* What a draft head reads: the stream that enters a layer is what the one before it left, with logits and
 * without. */
START_TEST(features_are_the_stream_that_enters_their_layers)
{
    struct rig r;
    rig_open(&r, _i, "auto", MISTAKE_NONE);
    const struct answers *a = &r.want;
    const size_t row = (size_t)a->hidden, plane = (size_t)CAP * row;
    float *out = calloc(FORWARD_TAPS * plane, sizeof *out);
    r.fw.tap = (struct forward_tap){{1, a->layers / 2, a->layers - 1}, out, CAP};
    for (int prefill = 0; prefill < 2; prefill++) {
        memset(out, 0, FORWARD_TAPS * plane * sizeof *out);
        run(&r, prefill, 0, a->n, prefill ? FORWARD_PREFILL : FORWARD_LOGITS);
        ck_assert_int_eq(r.be.ops->sync(&r.be), 0);
        for (int t = 0; t < FORWARD_TAPS; t++)
            for (int i = 0; i < a->n_pos; i++) {
                const int before = r.fw.tap.layer[t] - 1;
                const float *want = a->state + ((size_t)before * (size_t)a->n_pos + (size_t)i) * row;
                const float *got = out + (size_t)t * plane + (size_t)a->pos[i] * row;
                ck_assert_double_le(share_of_row(&r, before + 1, a->pos[i], got, want, a->hidden), 1);
            }
    }
    free(out);
    rig_close(&r);
}
END_TEST

/* The inputs of FP8 matrices rounded: by row in Meta's layout, by the stored scales in ModelOpt's. */
START_TEST(rounded_inputs_agree_with_transformers)
{
    struct rig r;
    const int model = _i % 2 ? FP8_MODELOPT : FP8_META;
    rig_open(&r, model, cpu_kernels_at(_i / 2)->name, MISTAKE_NONE);
    const struct answers *a = &r.want;
    double worst = 0, moved = 0;
    r.model.opts.activations = _i % 2 ? MODEL_FP8_STATIC : MODEL_FP8;
    run(&r, 0, 0, a->n, FORWARD_LOGITS);
    for (int i = 0; i < a->n_pos; i++) {
        const size_t at = (size_t)a->pos[i] * (size_t)a->vocab;
        const float *want = a->rounded + (size_t)i * (size_t)a->vocab;
        const double share = share_of_row(&r, a->layers, a->pos[i], r.fw.host_logits + at, want, a->vocab);
        worst = share <= worst ? worst : share;
        moved = fmax(moved, share_of_row(&r, a->layers, a->pos[i], a->logits + at, want, a->vocab));
    }
    printf("golden %s, inputs rounded (%s): worst share of the bound %.3f, rounding itself moves %.0f\n",
           models[model], r.be.isa, worst, moved);
    ck_assert_double_le(worst, 1);
    ck_assert_double_gt(moved, 10);
    rig_close(&r);
}
END_TEST

START_TEST(a_planted_mistake_exceeds_the_bound)
{
    struct rig r;
    rig_open(&r, TEXT, "auto", (enum mistake)_i);
    run(&r, 0, 0, r.want.n, FORWARD_LOGITS);
    const double share = share_of_logits(&r);
    printf("golden text with mistake %d: %.0f times the bound\n", _i, share);
    ck_assert_double_gt(share, 10);
    rig_close(&r);
}
END_TEST

/* --- the same bits ---------------------------------------------------------------------------------------
 */

static float one_pass[CAP][MAX_VOCAB];
static int chosen[MAX_LAYERS][CAP][MAX_K];

static void fill_one_pass(struct rig *r)
{
    const struct answers *a = &r->want;
    run(r, 0, 0, a->n, FORWARD_LOGITS);
    for (int i = 0; i < a->n; i++)
        memcpy(one_pass[i], r->fw.host_logits + (size_t)i * (size_t)a->vocab,
               (size_t)a->vocab * sizeof(float));
    for (int l = 0; l < a->moe_layers; l++)
        for (int i = 0; i < a->n; i++)
            memcpy(chosen[l][i], r->fw.host_experts + (l * a->n + i) * a->top_k,
                   (size_t)a->top_k * sizeof(int));
    kv_reset(&r->kv, 0);
}

/* Positions [from, from + n) are those of the last pass. */
static void expect_one_pass(const struct rig *r, int from, int n)
{
    const struct answers *a = &r->want;
    for (int i = 0; i < n; i++) {
        EXPECT_MSG(memcmp(r->fw.host_logits + (size_t)i * (size_t)a->vocab, one_pass[from + i],
                          (size_t)a->vocab * sizeof(float)) == 0,
                   "position %d has other bits in a pass of %d rows from %d (%s)", from + i, n, from,
                   r->be.isa);
        for (int l = 0; l < a->moe_layers; l++)
            EXPECT_MSG(memcmp(r->fw.host_experts + (l * n + i) * a->top_k, chosen[l][from + i],
                              (size_t)a->top_k * sizeof(int)) == 0,
                       "position %d has other experts in a pass of %d rows from %d", from + i, n, from);
    }
}

START_TEST(any_cut_of_a_text_gives_the_same_bits)
{
    struct rig r;
    rig_open(&r, _i % N_MODELS, cpu_kernels_at(_i / N_MODELS)->name, MISTAKE_NONE);
    fill_one_pass(&r);
    const size_t allocs = r.be.allocs;
    for (int size = 1; size < r.want.n; size += size < 20 ? 1 : 7) {
        kv_reset(&r.kv, 0);
        for (int at = 0; at < r.want.n; at += size) {
            const int n = r.want.n - at < size ? r.want.n - at : size;
            run(&r, 0, at, n, FORWARD_LOGITS);
            expect_one_pass(&r, at, n);
        }
    }
    ck_assert_uint_eq(r.be.allocs, allocs);
    rig_close(&r);
}
END_TEST

START_TEST(one_and_two_threads_give_the_same_bits)
{
    for (int threads = 1; threads <= 2; threads++) {
        struct rig r;
        rig_open_threads(&r, _i % N_MODELS, cpu_kernels_at(_i / N_MODELS)->name, MISTAKE_NONE, threads);
        if (threads == 1)
            fill_one_pass(&r);
        run(&r, 0, 0, r.want.n, FORWARD_LOGITS);
        expect_one_pass(&r, 0, r.want.n);
        rig_close(&r);
    }
}
END_TEST

START_TEST(prefill_gives_the_same_bits_as_decoding)
{
    struct rig r;
    rig_open(&r, _i % N_MODELS, cpu_kernels_at(_i / N_MODELS)->name, MISTAKE_NONE);
    fill_one_pass(&r);
    for (int n = 1; n < r.want.n; n += 3) {
        kv_reset(&r.kv, 0);
        ck_assert_msg(forward_prefill(&r.fw, 0, r.want.ids, n) == 0, "%s", err_text());
        run(&r, 0, n, r.want.n - n < 4 ? r.want.n - n : 4, FORWARD_LOGITS);
        expect_one_pass(&r, n, r.want.n - n < 4 ? r.want.n - n : 4);
    }
    rig_close(&r);
}
END_TEST

/* Two branches with the text's next tokens in one of them, from just before a border of chunks to past it;
 * rows of the other branch lie between. */
START_TEST(a_tree_across_a_border_has_the_bits_of_its_chain)
{
    enum { DEPTH = 6 };
    struct rig r;
    rig_open(&r, _i % N_MODELS, cpu_kernels_at(_i / N_MODELS)->name, MISTAKE_NONE);
    const size_t vocab = (size_t)r.want.vocab;
    fill_one_pass(&r);
    for (int from = 9; from + DEPTH <= r.want.n; from++) {
        struct forward_row rows[2 * DEPTH];
        for (int i = 0; i < 2 * DEPTH; i++)
            rows[i] = (struct forward_row){.token = i % 2 ? r.want.ids[from + i / 2]
                                                          : (r.want.ids[from + i / 2] + 1) % r.want.vocab,
                                           .slot = 0,
                                           .parent = i < 2 ? -1 : i - 2};
        kv_reset(&r.kv, 0);
        ck_assert_int_eq(forward_prefill(&r.fw, 0, r.want.ids, from), 0);
        ck_assert_msg(forward_run(&r.fw, rows, 2 * DEPTH, FORWARD_LOGITS) == 0, "%s", err_text());
        for (int i = 0; i < DEPTH; i++) {
            EXPECT_MSG(memcmp(r.fw.host_logits + (size_t)(2 * i + 1) * vocab, one_pass[from + i],
                              vocab * sizeof(float)) == 0,
                       "node %d after %d tokens differs from its text", i, from);
            EXPECT(memcmp(r.fw.host_logits + (size_t)(2 * i) * vocab, one_pass[from + i],
                          vocab * sizeof(float)) != 0);
        }
    }
    rig_close(&r);
}
END_TEST

int main(void)
{
    int isas = 0;
    while (cpu_kernels_at(isas))
        isas++;
    Suite *s = suite_create("golden_llama4");
    TCase *agree = tcase_create("agree"), *bits = tcase_create("bits");
    tcase_add_loop_test(agree, logits_experts_and_states_agree_with_transformers, 0, isas * N_MODELS);
    tcase_add_loop_test(agree, features_are_the_stream_that_enters_their_layers, 0, N_MODELS);
    tcase_add_loop_test(agree, rounded_inputs_agree_with_transformers, 0, 2 * isas);
    tcase_add_loop_test(agree, a_planted_mistake_exceeds_the_bound, 1, N_MISTAKES);
    tcase_add_loop_test(bits, any_cut_of_a_text_gives_the_same_bits, 0, isas * N_MODELS);
    tcase_add_loop_test(bits, one_and_two_threads_give_the_same_bits, 0, isas * N_MODELS);
    tcase_add_loop_test(bits, prefill_gives_the_same_bits_as_decoding, 0, isas * N_MODELS);
    tcase_add_loop_test(bits, a_tree_across_a_border_has_the_bits_of_its_chain, 0, isas * N_MODELS);
    suite_add_tcase(s, agree);
    suite_add_tcase(s, bits);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
