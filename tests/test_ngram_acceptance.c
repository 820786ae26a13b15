/* Acceptance of n-gram drafts on SmolLM2, step for step and position for position as an independent script
 * works it out from the finished texts alone (tests/golden/ngram_acceptance.py). Skipped (77) when the model
 * directory or python3 is not there. */
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/metrics.h"
#include "experiments/run.h"
#include "spec/loop.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL  SPECBED_MODELS_DIR "/smollm2-135m-instruct"
#define SCRIPT SPECBED_GOLDEN_DIR "/ngram_acceptance.py"
#ifdef __SANITIZE_ADDRESS__
enum { PROMPTS = 1, MAX_TOKENS = 32 };
#else
enum { PROMPTS = 3, MAX_TOKENS = 64 };
#endif

static char dir[] = "/tmp/specbed-ngram-XXXXXX";

static void remove_folder(void)
{
    static const char *const names[] = {"run.h5", "texts.jsonl", "steps.txt"};
    char path[96];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

static void run(struct trace *t, const char *out, int min, int max, int k)
{
    char low[64], high[64], depth[64], nodes[64], limit[64], tokens[64];
    const char *sets[] = {low,
                          high,
                          depth,
                          nodes,
                          limit,
                          tokens,
                          "sweep.draft.strategy=[ngram]",
                          "draft.strategy=ngram",
                          "model.path=" MODEL,
                          "trace.level=steps",
                          "workload.dataset=[" SPECBED_SOURCE_DIR "/experiments/data/quickstart.jsonl]",
                          "workload.warmup=0"};
    snprintf(low, sizeof low, "draft.ngram.min=%d", min);
    snprintf(high, sizeof high, "draft.ngram.max=%d", max);
    snprintf(depth, sizeof depth, "draft.max_depth=%d", k);
    snprintf(nodes, sizeof nodes, "draft.max_nodes=%d", k);
    snprintf(limit, sizeof limit, "workload.limit=%d", PROMPTS);
    snprintf(tokens, sizeof tokens, "workload.max_tokens=%d", MAX_TOKENS);
    struct run_opts opts = {.config = SPECBED_SOURCE_DIR "/experiments/configs/quickstart.yaml",
                            .sets = sets,
                            .n_sets = sizeof sets / sizeof *sets,
                            .out = out,
                            .mode = RECORD_FORCE,
                            .of = 1,
                            .no_progress = 1};
    ck_assert_msg(!run_experiment(&opts), "%s", err_text());
    ck_assert_msg(!trace_read(t, out, TRACE_READ_TOKENS | TRACE_READ_STEPS), "%s", err_text());
}

static void ids(FILE *f, const char *name, const struct trace *t, const struct trace_request *r)
{
    int answer = strcmp(name, "prompt") != 0;
    fprintf(f, "\"%s\": [", name);
    for (int64_t i = 0; i < (answer ? r->tokens : r->prompt_tokens); i++)
        fprintf(f, "%s%d", i ? ", " : "",
                answer ? t->tokens[r->token_begin + i].id : t->prompt_tokens[r->prompt_begin + i]);
    fputs("]", f);
}

static void write_texts(const struct trace *t, const char *path)
{
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    for (int64_t i = 0; i < t->n_requests; i++) {
        fputs("{", f);
        ids(f, "prompt", t, &t->requests[i]);
        fputs(", ", f);
        ids(f, "answer", t, &t->requests[i]);
        fprintf(f, ", \"room\": %d}\n", MAX_TOKENS);
    }
    ck_assert_int_eq(fclose(f), 0);
}

/* Every step of every answer. A stop inside a draft: what became text is all that a text can tell. */
static void check_steps(const struct trace *t, FILE *f)
{
    for (int64_t i = 0; i < t->n_requests; i++)
        for (int64_t k = 0; k < t->requests[i].steps; k++) {
            const struct trace_step *s = &t->steps[t->requests[i].step_begin + k];
            long long answer, step;
            int drafted, accepted, ended, ours = s->accepted;
            ck_assert_int_eq(fscanf(f, "%lld %lld %d %d %d", &answer, &step, &drafted, &accepted, &ended), 5);
            ck_assert(answer == i && step == k);
            if ((s->flags & STEP_STOP) && s->emitted < ours)
                ours = s->emitted;
            ck_assert_msg(s->proposed == drafted && ours == accepted,
                          "answer %lld, step %lld: %d of %d accepted, expected %d of %d", answer, step, ours,
                          s->proposed, accepted, drafted);
        }
}

/* As the tables print it, over the answers that no stop cut inside a draft. */
static void check_positions(const struct trace *t, FILE *f, int k)
{
    struct metrics_sums m = {0};
    for (int64_t i = 0; i < t->n_requests; i++)
        metrics_request(&m, t, i);
    ck_assert_int_gt(m.accepted_depth[1], 0);
    for (int d = 1; d <= k; d++) {
        int position;
        long long drafted, accepted;
        ck_assert_int_eq(fscanf(f, " position %d %lld %lld", &position, &drafted, &accepted), 3);
        int64_t cut = 0;
        for (int64_t i = 0; i < t->n_steps; i++) {
            const struct trace_step *s = &t->steps[i];
            cut += (s->flags & STEP_STOP) && s->emitted < d && s->accepted >= d;
        }
        ck_assert_int_eq(position, d);
        ck_assert_int_eq(m.at_depth[d], drafted);
        ck_assert_int_eq(m.accepted_depth[d] - cut, accepted);
    }
}

static void check(int min, int max, int k)
{
    char out[64], texts[64], steps[64], command[512];
    struct trace t;
    snprintf(out, sizeof out, "%s/run.h5", dir);
    snprintf(texts, sizeof texts, "%s/texts.jsonl", dir);
    snprintf(steps, sizeof steps, "%s/steps.txt", dir);
    run(&t, out, min, max, k);
    write_texts(&t, texts);
    snprintf(command, sizeof command, "python3 '%s' %d %d %d <%s >%s", SCRIPT, min, max, k, texts, steps);
    ck_assert_int_eq(system(command), 0);
    FILE *f = fopen(steps, "r");
    ck_assert_ptr_nonnull(f);
    check_steps(&t, f);
    check_positions(&t, f, k);
    fclose(f);
    trace_deinit(&t);
}

START_TEST(the_default_rule_accepts_what_the_script_says)
{
    check(1, 3, 5);
}
END_TEST

START_TEST(longer_grams_and_deeper_drafts_do_too)
{
    check(2, 4, 8);
}
END_TEST

static void setup(void)
{
    log_set_level(LOG_ERROR);
    ck_assert_ptr_nonnull(mkdtemp(dir));
    ck_assert_ptr_nonnull(freopen("/dev/null", "w", stdout)); /* the closing tables */
}

static void teardown(void)
{
    remove_folder();
    memcpy(dir + sizeof dir - 7, "XXXXXX", 6);
}

int main(void)
{
    if (access(MODEL "/SPECBED.json", R_OK) != 0 || system("python3 -c 0 2>/dev/null") != 0) {
        printf("skipped: needs %s and python3\n", MODEL);
        return 77;
    }
    Suite *s = suite_create("ngram_acceptance");
    TCase *c = tcase_create("smollm2");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, the_default_rule_accepts_what_the_script_says);
    tcase_add_test(c, longer_grams_and_deeper_drafts_do_too);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
