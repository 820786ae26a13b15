/* test_golden_smollm2: SmolLM2-135M-Instruct against transformers: logits within the bound of tests/golden.h,
 * greedy text equal wherever the top-two gap exceeds twice that bound. Skipped (77) when the model directory
 * is not there.
 *
 * Greedy continuations are scored as one pass over the golden tokens, whose rows have the bits of
 * step-by-step decoding; a few prompts are decoded step by step to hold that against it. */
#include "tests/golden.h"
#include "engine/err.h"
#include "engine/forward.h"
#include "engine/log.h"
#include <sys/resource.h>
#include <unistd.h>

#define MODEL_DIR SPECBED_MODELS_DIR "/smollm2-135m-instruct"
enum { CAP = 512, ROWS = 320 };
/* A sanitizer is an order of magnitude slower: there the first prompts have to do, in the other builds all of
 * them count. */
#ifdef __SANITIZE_ADDRESS__
enum { PROMPTS = 2, STEPPED = 1 };
#else
enum { PROMPTS = 1 << 20, STEPPED = 2 };
#endif

static struct backend be;
static struct model model;
static struct kv kv;
static struct forward fw;

static int at_most(int a, int b)
{
    return a < b ? a : b;
}

/* Closing insists on the end of the file; prompts that were left out lie before it. */
static void close_after(struct golden *g, int left_out)
{
    if (left_out > 0)
        g->at = g->n;
    golden_close(g);
}

static void open_all(void)
{
    log_set_level(LOG_WARN);
    ck_assert_int_eq(backend_open(&be, "cpu", &(struct backend_opts){.threads = 1, .isa = "auto"}), 0);
    ck_assert_msg(model_load(&model, &be, MODEL_DIR, NULL) == 0, "%s", err_text());
    ck_assert_int_eq(kv_init(&kv, &be, &model, 1, CAP), 0);
    ck_assert_int_eq(forward_init(&fw, &model, &kv, ROWS, ROWS), 0);
}

static void close_all(void)
{
    forward_deinit(&fw);
    kv_deinit(&kv);
    model_deinit(&model);
    backend_close(&be);
}

static void run_chain(const int *ids, int n)
{
    struct forward_row rows[ROWS] = {{.token = 0}};
    ck_assert_int_le(n, ROWS);
    for (int i = 0; i < n; i++)
        rows[i] = (struct forward_row){.token = ids[i], .slot = 0, .parent = i - 1};
    ck_assert_msg(forward_run(&fw, rows, n, FORWARD_LOGITS) == 0, "%s", err_text());
}

static const float *row_of(int i)
{
    return fw.logits + (size_t)i * (size_t)model.cfg.vocab;
}

static double row_bound(int row, int pos)
{
    return golden_bound(&model.cfg, pos, golden_rms(row_of(row), model.cfg.vocab));
}

/* Greedy tokens must agree where the gap is clear; how many were too close to call is counted. */
static void check_argmax(int row, int pos, int want, float gap, int *close)
{
    const double bound = row_bound(row, pos);
    if (fw.stats[row].argmax != want && gap > 2 * bound)
        ck_abort_msg("position %d: expected token %d by a gap of %g (bound %g), found %d", pos, want,
                     (double)gap, bound, fw.stats[row].argmax);
    *close += gap <= 2 * bound;
}

/* What logits.bin says of all its prompts. */
struct header {
    int vocab, n_prompts, n_top, n_sample, step;
};

/* One position: top logits, their log sum exp, and a sample of all ids. Returns the worst share of the bound.
 */
static double check_position(struct golden *g, const struct header *h)
{
    const int pos = golden_int(g);
    float lse;
    golden_read(g, &lse, sizeof lse);
    int *id = golden_ints(g, h->n_top);
    float *top = golden_floats(g, h->n_top), *sample = golden_floats(g, h->n_sample);
    const float *row = row_of(pos);
    const double bound = golden_bound(&model.cfg, pos, golden_rms(sample, h->n_sample));
    double worst = fabs((double)lse - fw.stats[pos].lse);
    for (int i = 0; i < h->n_top; i++)
        worst = fmax(worst, fabs((double)top[i] - row[id[i]]));
    for (int i = 0; i < h->n_sample; i++)
        worst = fmax(worst, fabs((double)sample[i] - row[i * h->step]));
    free(id);
    free(top);
    free(sample);
    return worst / bound;
}

START_TEST(logits_agree_with_transformers)
{
    struct golden g = golden_open(SPECBED_GOLDEN_DIR "/smollm2/logits.bin", "SBLOGIT1");
    struct header h = {.vocab = golden_int(&g)};
    double worst = 0;
    int close = 0, positions = 0;
    const int all = golden_int(&g);
    h.n_prompts = at_most(all, PROMPTS);
    h.n_top = golden_int(&g);
    h.n_sample = golden_int(&g);
    h.step = golden_int(&g);
    ck_assert_int_eq(h.vocab, model.cfg.vocab);
    for (int p = 0; p < h.n_prompts; p++) {
        const int n = golden_int(&g), n_pos = golden_int(&g);
        int *ids = golden_ints(&g, n), *argmax = golden_ints(&g, n);
        float *gap = golden_floats(&g, n);
        kv_reset(&kv, 0);
        run_chain(ids, n);
        for (int i = 0; i < n; i++)
            check_argmax(i, i, argmax[i], gap[i], &close);
        for (int i = 0; i < n_pos; i++)
            worst = fmax(worst, check_position(&g, &h));
        positions += n;
        free(ids);
        free(argmax);
        free(gap);
    }
    close_after(&g, all - h.n_prompts);
    printf("golden smollm2: worst share of the bound %.3f; %d of %d positions too close to call\n", worst,
           close, positions);
    ck_assert_double_le(worst, 1);
    ck_assert_int_le(close, positions / 100);
}
END_TEST

/* Tokens one by one, each step's logits against the rows of the scoring pass, bit for bit. */
static void check_steps(const int *ids, int n_ids, const int *token, int n_new)
{
    const size_t vocab = (size_t)model.cfg.vocab;
    float *scored = malloc((size_t)n_new * vocab * sizeof *scored);
    memcpy(scored, fw.logits, (size_t)n_new * vocab * sizeof *scored);
    kv_reset(&kv, 0);
    ck_assert_int_eq(forward_prefill(&fw, 0, ids, n_ids - 1), 0);
    for (int i = 0; i < n_new; i++) {
        const int last = i ? token[i - 1] : ids[n_ids - 1];
        run_chain(&last, 1);
        ck_assert_int_eq(kv_commit(&kv, 0, (const int[]){0}, 1), 0);
        if (memcmp(fw.logits, scored + (size_t)i * vocab, vocab * sizeof *scored) != 0)
            ck_abort_msg("step %d: decoding and scoring differ in their bits", i);
    }
    free(scored);
}

START_TEST(greedy_text_agrees_with_transformers)
{
    struct golden g = golden_open(SPECBED_GOLDEN_DIR "/smollm2/greedy.bin", "SBGREED1");
    const int all = golden_int(&g), n_prompts = at_most(all, PROMPTS), n_new = golden_int(&g);
    int close = 0, differ = 0;
    ck_assert_int_le(n_new, ROWS);
    for (int p = 0; p < n_prompts; p++) {
        const int n = golden_int(&g);
        golden_int(&g); /* where the text would have stopped; all tokens are compared */
        int *ids = golden_ints(&g, n), *token = golden_ints(&g, n_new), text[ROWS] = {ids[n - 1]};
        float *gap = golden_floats(&g, n_new);
        memcpy(text + 1, token, (size_t)(n_new - 1) * sizeof *text);
        kv_reset(&kv, 0);
        ck_assert_msg(forward_prefill(&fw, 0, ids, n - 1) == 0, "%s", err_text());
        run_chain(text, n_new);
        for (int i = 0; i < n_new; i++) {
            check_argmax(i, n - 1 + i, token[i], gap[i], &close);
            differ += fw.stats[i].argmax != token[i];
        }
        if (p < STEPPED)
            check_steps(ids, n, token, n_new);
        free(ids);
        free(token);
        free(gap);
    }
    close_after(&g, all - n_prompts);
    printf("golden smollm2: %d of %d greedy tokens differ, %d too close to call\n", differ, n_prompts * n_new,
           close);
    ck_assert_int_le(close, n_prompts * n_new / 100);
}
END_TEST

/* Pages of the file are given back as they are packed: the largest tensor, not the file, stands beside the
 * weights. */
START_TEST(loading_needs_little_more_than_the_weights)
{
    struct rusage used;
    ck_assert_int_eq(getrusage(RUSAGE_SELF, &used), 0);
    const double peak = (double)used.ru_maxrss / 1024, weights = (double)model.weight_bytes / 0x1p20;
    printf("golden smollm2: %.0f MiB of weights, peak memory %.0f MiB\n", weights, peak);
    ck_assert_double_ge(peak, weights);
    ck_assert_double_le(peak, weights + 100);
}
END_TEST

int main(void)
{
    if (access(MODEL_DIR "/model.safetensors", R_OK) != 0) {
        printf("golden smollm2: skipped, %s is not there; experiments/models/README.md says how to get it\n",
               MODEL_DIR);
        return 77;
    }
    Suite *s = suite_create("golden_smollm2");
    TCase *memory = tcase_create("memory"), *agree = tcase_create("agree");
    tcase_add_checked_fixture(memory, open_all, close_all);
    tcase_add_checked_fixture(agree, open_all, close_all);
    tcase_set_timeout(memory, 100);
    tcase_set_timeout(agree, 600);
    tcase_add_test(memory, loading_needs_little_more_than_the_weights);
    tcase_add_test(agree, logits_agree_with_transformers);
    tcase_add_test(agree, greedy_text_agrees_with_transformers);
    suite_add_tcase(s, memory);
    suite_add_tcase(s, agree);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
