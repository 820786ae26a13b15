/* test_cuda_prompts: the promise on real prompts. Over the question sets of
 * experiments/configs/acceptance.yaml and SmolLM2-135M on the GPU, every strategy, alone or with others in
 * the pass, gives plain decoding's tokens and their log probabilities, bit for bit. Where tokens are drawn by
 * `rejection`, plain decoding gives the same in any company. Installed programs take the folders of golden
 * files (not read here), of models and of data as arguments. */
#include "drafts/drafts.h"
#include "engine/chat.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/file.h"
#include "experiments/workload.h"
#include "spec/loop.h"
#include "tests/cuda_suite.h"
#include "tests/expect.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ANSWER = 48, PROMPT_MAX = 1024, AT_LEAST = 200, OPTIONS = 8 };
static const char *models_dir = SPECBED_MODELS_DIR, *data_dir = SPECBED_SOURCE_DIR "/data", *kind = "cuda";

struct answer {
    int token[ANSWER], n;
    float log_p[ANSWER];
    enum finish reason;
    int proposed, accepted;
};

/* One prompt, and what plain decoding alone and the arm under test answered. */
struct asked {
    int *ids, n_ids; /* owned */
    struct answer plain, now;
};

static struct backend be;
static struct model model;
static struct tokenizer *tokenizer;
static struct chat chat;
static struct asked *asked; /* owned [n_asked] */
static int n_asked;

static void ok(int rc)
{
    EXPECT_MSG(rc == 0, "%s", err_text());
}

static const char *const sets[] = {"mt_bench", "humaneval", "gsm8k"};

static void read_prompts(void)
{
    struct workload w = {.n = 0};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        char path[512], *bytes = NULL;
        size_t n = 0;
        snprintf(path, sizeof path, "%s/%s/question.jsonl", data_dir, sets[i]);
        ok(file_read(path, (size_t)1 << 28, &bytes, &n));
        ok(workload_parse(&w, bytes, n, path, sets[i]));
        free(bytes);
    }
    asked = calloc((size_t)w.n, sizeof *asked);
    EXPECT(asked);
    for (int i = 0; i < w.n; i++) {
        struct asked *a = &asked[n_asked];
        const struct chat_message m = {"user", w.prompts[i].turns[0]};
        int cap = 0;
        ok(chat_encode(&chat, tokenizer, &m, 1, &a->ids, &a->n_ids, &cap));
        if (a->n_ids > 0 && a->n_ids <= PROMPT_MAX) {
            n_asked++;
        } else {
            free(a->ids);
            *a = (struct asked){.n_ids = 0};
        }
    }
    workload_deinit(&w);
    EXPECT_MSG(n_asked >= AT_LEAST, "expected at least %d prompts, found %d", AT_LEAST, n_asked);
}

static void setup(void)
{
    char path[512];
    snprintf(path, sizeof path, "%s/smollm2-135m-instruct", models_dir);
    ok(tokenizer_open(&tokenizer, path));
    ok(chat_open(&chat, path, "auto", tokenizer));
    ok(backend_open(&be, kind, &(struct backend_opts){0}));
    ok(model_load(&model, &be, path, NULL));
    read_prompts();
}

static void teardown(void)
{
    for (int i = 0; i < n_asked; i++)
        free(asked[i].ids);
    free(asked);
    model_deinit(&model);
    backend_close(&be);
    chat_close(&chat);
    tokenizer_close(tokenizer);
}

struct arm {
    const char *name, *strategy, *rule;
    float temperature;
    int slots, max_depth, max_nodes;
    double option[OPTIONS]; /* of the strategy; all 0: defaults */
};

/* The oracle's earlier run is plain decoding. */
static int reference(void *ctx, uint32_t request, const int **tokens)
{
    (void)ctx;
    *tokens = asked[request].plain.token;
    return asked[request].plain.n;
}

static struct spec *open_arm(const struct arm *arm)
{
    const struct draft_ops *draft = drafts_find(arm->strategy);
    double option[OPTIONS];
    struct spec *s = NULL;
    EXPECT(draft);
    for (int i = 0; draft->options[i].name; i++)
        option[i] = arm->option[0] > 0 ? arm->option[i] : draft->options[i].def;
    const struct spec_opts o = {
        .draft = draft,
        .draft_option = option,
        .head = "synthetic",
        .reference = reference,
        .rule = accept_rule_find(arm->rule),
        .sampling = {.temperature = arm->temperature, .top_p = 1, .seed = 5, .relaxed_top_k = 1},
        .stop = {.tokens = chat.stop, .n_tokens = chat.n_stop},
        .slots = arm->slots,
        .max_depth = arm->max_depth,
        .max_nodes = arm->max_nodes,
        .cap = PROMPT_MAX + ANSWER,
        .trace = TRACE_STEPS};
    ok(spec_open(&s, &model, &o));
    return s;
}

static void take(const struct spec_step *step)
{
    for (int i = 0; i < step->n_records; i++) {
        const struct step_record *r = &step->records[i];
        struct answer *a = &((struct asked *)r->user)->now;
        EXPECT(a->n + r->emitted <= ANSWER);
        memcpy(a->token + a->n, r->tokens, (size_t)r->emitted * sizeof *r->tokens);
        memcpy(a->log_p + a->n, r->log_p, (size_t)r->emitted * sizeof *r->log_p);
        a->n += r->emitted;
        a->proposed += r->proposed;
        a->accepted += r->accepted;
    }
    for (int i = 0; i < step->n_finished; i++) {
        const struct spec_finished *f = &step->finished[i];
        struct answer *a = &((struct asked *)f->user)->now;
        EXPECT(f->n == a->n && memcmp(f->tokens, a->token, (size_t)f->n * sizeof *f->tokens) == 0);
        a->reason = f->reason;
    }
}

/* Ask the first n prompts, every slot kept busy. */
static void ask(const struct arm *arm, int n)
{
    struct spec *s = open_arm(arm);
    for (int next = 0; next < n || spec_active(s) > 0;) {
        struct spec_step step;
        for (; next < n && spec_free_slots(s) > 0; next++) {
            struct asked *a = &asked[next];
            const struct spec_request r = {a->ids, a->n_ids, ANSWER, (uint32_t)next, a};
            a->now = (struct answer){.n = 0};
            ok(spec_submit(s, &r));
        }
        ok(spec_step(s, &step));
        take(&step);
    }
    spec_close(s);
}

/* Every answer of the arm is the plain one. */
static void compare(const struct arm *arm, int n)
{
    int tokens = 0, proposed = 0, accepted = 0;
    for (int i = 0; i < n; i++) {
        const struct answer *want = &asked[i].plain, *got = &asked[i].now;
        for (int k = 0; k < want->n && k < got->n; k++)
            EXPECT_MSG(got->token[k] == want->token[k] &&
                           memcmp(&got->log_p[k], &want->log_p[k], sizeof(float)) == 0,
                       "%s, %s: prompt %d token %d is %d with log p %a, expected %d with %a", arm->name,
                       arm->rule, i, k, got->token[k], (double)got->log_p[k], want->token[k],
                       (double)want->log_p[k]);
        EXPECT_MSG(got->n == want->n && got->reason == want->reason,
                   "%s, %s: prompt %d has %d tokens, then %s; expected %d, then %s", arm->name, arm->rule, i,
                   got->n, finish_name(got->reason), want->n, finish_name(want->reason));
        tokens += got->n;
        proposed += got->proposed;
        accepted += got->accepted;
    }
    printf("%s, %s: %d prompts, %d tokens the same; %d nodes proposed, %d accepted\n", arm->name, arm->rule,
           n, tokens, proposed, accepted);
}

static const struct rule {
    const char *name;
    float temperature;
} rules[] = {{"greedy", 0}, {"coupled", 0.8f}};

START_TEST(every_strategy_answers_as_plain_decoding_does)
{
    const struct arm arms[] = {
        {.name = "none, 8 at once", .strategy = "none", .slots = 8, .max_depth = 1, .max_nodes = 1},
        {.name = "ngram", .strategy = "ngram", .slots = 8, .max_depth = 5, .max_nodes = 5},
        {.name = "ngram, 3 at once", .strategy = "ngram", .slots = 3, .max_depth = 5, .max_nodes = 5},
        {.name = "ngram tree",
         .strategy = "ngram",
         .slots = 5,
         .max_depth = 5,
         .max_nodes = 11,
         .option = {1, 3, 1, 0, 3}},
        {.name = "oracle", .strategy = "oracle", .slots = 8, .max_depth = 7, .max_nodes = 7},
        {.name = "oracle at 0.7",
         .strategy = "oracle",
         .slots = 4,
         .max_depth = 7,
         .max_nodes = 7,
         .option = {0.7}},
        {.name = "random head, chain", .strategy = "eagle3", .slots = 8, .max_depth = 3, .max_nodes = 3},
        {.name = "random head, tree",
         .strategy = "eagle3",
         .slots = 3,
         .max_depth = 4,
         .max_nodes = 20,
         .option = {2, 6}},
    };
    struct arm plain = {.name = "none", .strategy = "none", .slots = 1, .max_depth = 1, .max_nodes = 1};
    plain.rule = rules[_i].name;
    plain.temperature = rules[_i].temperature;
    ask(&plain, n_asked);
    for (int i = 0; i < n_asked; i++)
        asked[i].plain = asked[i].now;
    for (size_t k = 0; k < sizeof arms / sizeof *arms; k++) {
        struct arm arm = arms[k];
        arm.rule = plain.rule;
        arm.temperature = plain.temperature;
        ask(&arm, n_asked);
        compare(&arm, n_asked);
    }
}
END_TEST

START_TEST(rejection_draws_the_same_in_any_company)
{
    struct arm arm = {.name = "none",
                      .strategy = "none",
                      .rule = "rejection",
                      .temperature = 0.8f,
                      .slots = 8,
                      .max_depth = 1,
                      .max_nodes = 1};
    const int slots[] = {1, 3};
    ask(&arm, n_asked);
    for (int i = 0; i < n_asked; i++)
        asked[i].plain = asked[i].now;
    for (size_t k = 0; k < sizeof slots / sizeof *slots; k++) {
        const int n = slots[k] == 1 ? n_asked / 4 : n_asked;
        arm.slots = slots[k];
        ask(&arm, n);
        compare(&arm, n);
    }
}
END_TEST

static int absent(const char *dir, const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (access(path, R_OK) == 0)
        return 0;
    printf("test_cuda_prompts: skipped: there is no %s\n", path);
    return 1;
}

int main(int argc, char **argv)
{
    models_dir = argc > 2 ? argv[2] : models_dir;
    data_dir = argc > 3 ? argv[3] : data_dir;
    log_set_level(LOG_WARN);
    if (backend_open(&be, kind, &(struct backend_opts){0})) {
        printf("test_cuda_prompts: skipped: %s\n", err_text());
        return CUDA_SUITE_SKIPPED;
    }
    printf("test_cuda_prompts: %s\n", be.device);
    backend_close(&be);
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (absent(data_dir, sets[i]))
            return CUDA_SUITE_SKIPPED;
    if (absent(models_dir, "smollm2-135m-instruct"))
        return CUDA_SUITE_SKIPPED;
    Suite *s = suite_create("cuda_prompts");
    TCase *c = tcase_create("prompts");
    tcase_add_unchecked_fixture(c, setup, teardown);
    tcase_add_loop_test(c, every_strategy_answers_as_plain_decoding_does, 0, 2);
    tcase_add_test(c, rejection_draws_the_same_in_any_company);
    suite_add_tcase(s, c);
    return cuda_suite_run(s);
}
