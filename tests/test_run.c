/* run: experiments on a toy model, from the YAML file to the result file. */
#include "experiments/run.h"
#include "engine/err.h"
#include "engine/log.h"
#include "engine/tokenizer.h"
#include "experiments/trace.h"
#include "tests/toy_dir.h"
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_SETS = 8 };

static struct toy_dir toy;

static void setup(void)
{
    log_set_level(LOG_ERROR);
    ck_assert_int_eq(toy_dir_make(&toy, SPECBED_GOLDEN_DIR), 0);
    ck_assert_ptr_nonnull(freopen("/dev/null", "w", stdout)); /* the closing tables */
}

static void teardown(void)
{
    toy_dir_remove(&toy);
}

/* sets: "key=value" separated by spaces. */
static int run_with(const char *out, const char *sets, struct run_opts opts)
{
    char copy[512];
    const char *list[MAX_SETS];
    int n = 0;
    snprintf(copy, sizeof copy, "%s", sets);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) {
        ck_assert_int_lt(n, MAX_SETS);
        list[n++] = word;
    }
    opts.config = toy.config;
    opts.sets = list;
    opts.n_sets = n;
    opts.out = out;
    opts.of = opts.of ? opts.of : 1;
    opts.no_progress = 1;
    return run_experiment(&opts);
}

/* A run that must succeed, read back. */
static struct trace run_and_read(const char *name, const char *sets)
{
    char out[128];
    struct trace t;
    snprintf(out, sizeof out, "%s/%s", toy.path, name);
    ck_assert_msg(run_with(out, sets, (struct run_opts){0}) == 0, "%s", err_text());
    ck_assert_msg(trace_read(&t, out, TRACE_READ_ALL) == 0, "%s", err_text());
    ck_assert_str_eq(t.meta.status, "complete");
    return t;
}

static const struct trace_request *find_request(const struct trace *t, int arm, uint32_t request)
{
    for (int64_t i = 0; i < t->n_requests; i++)
        if (t->requests[i].arm == arm && t->requests[i].request == request)
            return &t->requests[i];
    ck_abort_msg("%s: no request %u in arm %d", t->path, request, arm);
    return NULL;
}

static void same_answers(const struct trace *a, int arm_a, const struct trace *b, int arm_b)
{
    for (int64_t i = 0; i < a->n_requests; i++) {
        const struct trace_request *x = &a->requests[i];
        if (x->arm != arm_a)
            continue;
        const struct trace_request *y = find_request(b, arm_b, x->request);
        ck_assert_int_eq(x->tokens, y->tokens);
        ck_assert_int_eq(x->finish, y->finish);
        ck_assert_uint_eq(x->hash, y->hash);
        for (int64_t k = 0; k < x->tokens; k++)
            ck_assert_int_eq(a->tokens[x->token_begin + k].id, b->tokens[y->token_begin + k].id);
    }
}

START_TEST(a_sweep_runs_every_cell_and_drafting_changes_no_answer)
{
    struct trace t = run_and_read("a.h5", "sweep.draft.strategy=[none,ngram] sweep.draft.max_depth=[1,4]");
    ck_assert_int_eq(t.n_arms, 4);
    ck_assert_str_eq(t.arms[0].label, "none, 1");
    ck_assert_str_eq(t.arms[3].label, "ngram, 4");
    ck_assert_str_eq(t.arms[3].strategy, "ngram");
    ck_assert_int_eq(t.n_requests, 4 * TOY_DIR_REQUESTS);
    ck_assert_int_eq(t.n_prompts, TOY_DIR_REQUESTS);
    int64_t accepted = 0;
    for (int64_t i = 0; i < t.n_steps; i++)
        accepted += t.steps[i].accepted;
    ck_assert_int_gt(accepted, 0);
    for (int arm = 1; arm < 4; arm++)
        same_answers(&t, 0, &t, arm);
    for (int64_t i = 0; i < t.n_requests; i++) {
        const struct trace_request *q = &t.requests[i];
        int32_t ids[64];
        ck_assert_int_le(q->tokens, 24);
        for (int64_t k = 0; k < q->tokens; k++)
            ids[k] = t.tokens[q->token_begin + k].id;
        ck_assert_uint_eq(trace_hash_tokens(ids, q->tokens), q->hash);
    }
    trace_deinit(&t);
}
END_TEST

START_TEST(concurrency_changes_no_answer)
{
    struct trace one = run_and_read("one.h5", "draft.strategy=ngram workload.concurrency=1");
    struct trace four = run_and_read("four.h5", "draft.strategy=ngram workload.concurrency=4");
    ck_assert_int_eq(one.n_requests, TOY_DIR_REQUESTS);
    ck_assert_int_eq(four.n_requests, TOY_DIR_REQUESTS);
    same_answers(&one, 0, &four, 0);
    int most = 0;
    for (int64_t i = 0; i < four.n_steps; i++)
        most = four.steps[i].pass_seqs > most ? four.steps[i].pass_seqs : most;
    ck_assert_int_eq(most, 4);
    trace_deinit(&one);
    trace_deinit(&four);
}
END_TEST

START_TEST(a_second_turn_holds_the_first_answer)
{
    struct trace t = run_and_read("a.h5", "workload.concurrency=3");
    struct tokenizer *tok;
    int seen = 0;
    ck_assert_int_eq(tokenizer_open(&tok, toy.model), 0);
    for (int64_t i = 0; i < t.n_requests; i++) {
        const struct trace_request *q = &t.requests[i];
        if (t.prompts[q->prompt].turn != 1)
            continue;
        const struct trace_request *first = find_request(&t, 0, q->request - 256);
        int ids[64];
        for (int64_t k = 0; k < first->tokens; k++)
            ids[k] = t.tokens[first->token_begin + k].id;
        char *answer = tokenizer_decode(tok, ids, (int)first->tokens);
        char *prompt = tokenizer_decode(tok, t.prompt_tokens + q->prompt_begin, (int)q->prompt_tokens);
        size_t n = strlen(answer), start = strspn(answer, " \t\n"); /* the template trims */
        while (n > start && strchr(" \t\n", answer[n - 1]))
            answer[--n] = 0;
        ck_assert_msg(strstr(prompt, answer + start) != NULL, "no '%s' in '%s'", answer + start, prompt);
        ck_assert_ptr_nonnull(strstr(prompt, t.prompts[q->prompt].text));
        ck_assert_int_gt(q->prompt_tokens, first->prompt_tokens + 2);
        free(answer);
        free(prompt);
        seen++;
    }
    ck_assert_int_eq(seen, 2);
    tokenizer_close(tok);
    trace_deinit(&t);
}
END_TEST

START_TEST(a_conversation_that_grows_beyond_the_estimate_gets_the_room)
{
    struct trace one = run_and_read("one.h5", "workload.max_tokens=120 workload.ignore_eos=true");
    struct trace three =
        run_and_read("three.h5", "workload.max_tokens=120 workload.ignore_eos=true workload.concurrency=3");
    int64_t longest = 0;
    for (int64_t i = 0; i < one.n_requests; i++) {
        ck_assert_int_eq(one.requests[i].tokens, 120);
        longest = one.requests[i].prompt_tokens > longest ? one.requests[i].prompt_tokens : longest;
    }
    /* 120 tokens of an answer became more than three times as many: the test has its case */
    ck_assert_int_gt(longest, 400);
    same_answers(&one, 0, &three, 0);
    trace_deinit(&one);
    trace_deinit(&three);
}
END_TEST

START_TEST(repeats_draw_their_own_random_numbers)
{
    struct trace t = run_and_read(
        "a.h5", "sampling.rule=coupled sampling.temperature=1 workload.repeats=3 workload.limit=2");
    ck_assert_int_eq(t.n_requests, 9);
    for (int64_t i = 0; i < 3; i++) {
        ck_assert_int_eq(t.requests[i].repeat, 0);
        ck_assert_int_eq(t.requests[i + 3].repeat, 1);
        ck_assert_int_eq(t.requests[i + 3].prompt, t.requests[i].prompt);
        ck_assert(t.requests[i].hash != t.requests[i + 3].hash);
    }
    trace_deinit(&t);
}
END_TEST

START_TEST(the_oracle_replays_a_file)
{
    char sets[200];
    struct trace plain = run_and_read("plain.h5", "");
    snprintf(sets, sizeof sets, "draft.strategy=oracle draft.reference=%s", plain.path);
    struct trace oracle = run_and_read("oracle.h5", sets);
    same_answers(&plain, 0, &oracle, 0);
    int64_t proposed = 0, accepted = 0;
    for (int64_t i = 0; i < oracle.n_steps; i++) {
        proposed += oracle.steps[i].proposed;
        accepted += oracle.steps[i].accepted;
    }
    ck_assert_int_gt(proposed, 0);
    ck_assert_int_eq(proposed, accepted);
    trace_deinit(&plain);
    trace_deinit(&oracle);
}
END_TEST

START_TEST(a_reference_of_another_model_is_refused)
{
    char sets[200], weights[128];
    struct trace plain = run_and_read("plain.h5", "");
    snprintf(weights, sizeof weights, "%s/model.safetensors", toy.model);
    FILE *f = fopen(weights, "r+b");
    ck_assert_int_eq(fseek(f, -4, SEEK_END), 0);
    ck_assert_uint_eq(fwrite("\0\0\0\0", 1, 4, f), 4);
    fclose(f);
    snprintf(sets, sizeof sets, "draft.strategy=oracle draft.reference=%s", plain.path);
    ck_assert_int_eq(run_with(toy.out, sets, (struct run_opts){0}), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "same model"));
    trace_deinit(&plain);
}
END_TEST

/* The first emitted token that is a word: its row and its text without spaces, the caller's. */
static char *find_word(const struct trace *t, int64_t *row)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    struct tokenizer *tok;
    char *word = NULL;
    ck_assert_int_eq(tokenizer_open(&tok, toy.model), 0);
    for (*row = 0; *row < t->n_tokens; ++*row) {
        word = tokenizer_decode(tok, &(int){t->tokens[*row].id}, 1);
        memmove(word, word + strspn(word, " "), strlen(word + strspn(word, " ")) + 1);
        if (*word && strspn(word, letters) == strlen(word))
            break;
        free(word);
        word = NULL;
    }
    tokenizer_close(tok);
    ck_assert_ptr_nonnull(word);
    return word;
}

START_TEST(stop_strings_and_ignore_eos_reach_the_loop)
{
    struct trace all = run_and_read("all.h5", "workload.ignore_eos=true");
    char sets[200];
    int64_t row;
    for (int64_t i = 0; i < all.n_requests; i++) {
        ck_assert_int_eq(all.requests[i].tokens, 24);
        ck_assert_int_eq(all.requests[i].finish, FINISH_LENGTH);
    }
    char *word = find_word(&all, &row);
    const struct trace_request *q = &all.requests[all.tokens[row].request];
    snprintf(sets, sizeof sets, "workload.ignore_eos=true workload.stop=[\"%s\"]", word);
    struct trace cut = run_and_read("cut.h5", sets);
    const struct trace_request *stopped = find_request(&cut, 0, q->request);
    ck_assert_int_eq(stopped->finish, FINISH_STOP_STRING);
    ck_assert_int_le(stopped->tokens, row - q->token_begin + 1);
    free(word);
    trace_deinit(&all);
    trace_deinit(&cut);
}
END_TEST

START_TEST(slices_share_the_prompts_between_jobs)
{
    struct trace whole = run_and_read("whole.h5", "");
    int64_t n = 0;
    for (int i = 0; i < 3; i++) {
        char out[128];
        struct trace part;
        snprintf(out, sizeof out, "%s/part%d.h5", toy.path, i);
        ck_assert_int_eq(run_with(out, "", (struct run_opts){.slice = i, .of = 3}), 0);
        ck_assert_int_eq(trace_read(&part, out, TRACE_READ_ALL), 0);
        same_answers(&part, 0, &whole, 0);
        n += part.n_requests;
        trace_deinit(&part);
    }
    ck_assert_int_eq(n, whole.n_requests);
    trace_deinit(&whole);
}
END_TEST

START_TEST(an_answer_that_fills_the_context_says_so)
{
    struct trace t = run_and_read("a.h5", "workload.limit=1 workload.ignore_eos=true model.max_context=40");
    const struct trace_request *q = &t.requests[0];
    ck_assert_int_eq(q->prompt_tokens + q->tokens, 40);
    ck_assert_int_eq(q->finish, FINISH_CONTEXT);
    trace_deinit(&t);
}
END_TEST

START_TEST(a_prompt_that_does_not_fit_is_named)
{
    ck_assert_int_eq(run_with(toy.out, "model.max_context=12", (struct run_opts){0}), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "prompt '1'"));
    ck_assert_ptr_nonnull(strstr(err_text(), "context of 12 tokens"));
    ck_assert_ptr_nonnull(strstr(err_text(), "model.max_context"));
}
END_TEST

/* Three prompts of ids, the last of which no small model knows. */
static void write_tokens(char path[128], const char *last)
{
    snprintf(path, 128, "%s/tokens.jsonl", toy.path);
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fprintf(f, "{\"tokens\": [5, 6, 7, 5, 6]}\n{\"tokens\": [1]}\n%s\n", last);
    fclose(f);
}

START_TEST(prompts_of_token_ids_reach_the_model_as_they_are)
{
    char path[128], sets[256];
    write_tokens(path, "");
    snprintf(sets, sizeof sets, "workload.dataset=[%s] workload.max_tokens=6", path);
    struct trace t = run_and_read("ids.h5", sets);
    const struct trace_request *q = find_request(&t, 0, 0);
    const int32_t ids[] = {5, 6, 7, 5, 6};
    ck_assert_int_eq(q->prompt_tokens, 5);
    ck_assert_mem_eq(t.prompt_tokens + q->prompt_begin, ids, sizeof ids);
    ck_assert_str_eq(t.prompts[q->prompt].text, "5 token ids");
    trace_deinit(&t);
    write_tokens(path, "{\"tokens\": [2, 999999]}");
    ck_assert_int_eq(run_with(toy.out, sets, (struct run_opts){0}), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "prompt token 1: expected an id from 0 to 2047, found 999999"));
}
END_TEST

START_TEST(a_shape_of_random_weights_runs_without_a_tokenizer)
{
    char path[128], sets[256];
    write_tokens(path, "");
    snprintf(sets, sizeof sets,
             "workload.dataset=[%s] workload.max_tokens=3 model.path= model.synthetic=smollm2-135m "
             "workload.warmup=0",
             path);
    struct trace t = run_and_read("shape.h5", sets);
    ck_assert_int_eq(t.requests[0].tokens, 3);
    ck_assert_int_eq(t.requests[0].finish, FINISH_LENGTH);
    trace_deinit(&t);
    write_tokens(path, "{\"prompt\": \"words\"}");
    ck_assert_int_eq(run_with(toy.out, sets, (struct run_opts){0}), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "prompt '3' of 'tokens': expected token ids"));
}
END_TEST

START_TEST(a_dry_run_misses_what_a_run_would_and_writes_nothing)
{
    char weights[128];
    snprintf(weights, sizeof weights, "%s/model.safetensors", toy.model);
    ck_assert_int_eq(run_with(toy.out, "", (struct run_opts){.dry_run = 1}), 0);
    ck_assert_int_ne(access(toy.out, F_OK), 0);
    unlink(weights);
    ck_assert_int_eq(run_with(toy.out, "", (struct run_opts){.dry_run = 1}), ERR_IO);
    ck_assert_ptr_nonnull(strstr(err_text(), "expected model.safetensors"));
    ck_assert_int_ne(access(toy.out, F_OK), 0);
    ck_assert_int_ne(run_with(toy.out, "", (struct run_opts){0}), 0);
    ck_assert_int_ne(access(toy.out, F_OK), 0);
}
END_TEST

START_TEST(an_existing_file_is_kept_without_force)
{
    struct trace t = run_and_read("out.h5", "workload.limit=1"), again;
    ck_assert_int_eq(run_with(toy.out, "workload.limit=2", (struct run_opts){0}), ERR_CONFIG);
    ck_assert_int_eq(trace_read(&again, toy.out, 0), 0);
    ck_assert_int_eq(again.n_requests, t.n_requests);
    trace_deinit(&again);
    ck_assert_int_eq(run_with(toy.out, "workload.limit=2", (struct run_opts){.mode = RECORD_RESUME}),
                     ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "limit: 1"));
    ck_assert_int_eq(run_with(toy.out, "workload.limit=2", (struct run_opts){.mode = RECORD_FORCE}), 0);
    ck_assert_int_eq(trace_read(&again, toy.out, 0), 0);
    ck_assert_int_gt(again.n_requests, t.n_requests);
    trace_deinit(&again);
    trace_deinit(&t);
}
END_TEST

START_TEST(resuming_a_complete_file_repeats_nothing)
{
    struct trace t = run_and_read("out.h5", ""), again;
    ck_assert_int_eq(run_with(toy.out, "", (struct run_opts){.mode = RECORD_RESUME}), 0);
    ck_assert_int_eq(trace_read(&again, toy.out, 0), 0);
    ck_assert_str_eq(again.meta.status, "complete");
    ck_assert_int_eq(again.n_requests, t.n_requests);
    for (int64_t i = 0; i < t.n_requests; i++)
        ck_assert_int_eq(again.requests[i].ns_decode, t.requests[i].ns_decode);
    trace_deinit(&again);
    trace_deinit(&t);
}
END_TEST

START_TEST(one_file_has_one_trace_level)
{
    ck_assert_int_eq(run_with(toy.out, "sweep.trace.level=[steps,full]", (struct run_opts){0}), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_text(), "trace.level"));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("run");
    TCase *tc = tcase_create("run");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_sweep_runs_every_cell_and_drafting_changes_no_answer);
    tcase_add_test(tc, concurrency_changes_no_answer);
    tcase_add_test(tc, a_second_turn_holds_the_first_answer);
    tcase_add_test(tc, a_conversation_that_grows_beyond_the_estimate_gets_the_room);
    tcase_add_test(tc, repeats_draw_their_own_random_numbers);
    tcase_add_test(tc, the_oracle_replays_a_file);
    tcase_add_test(tc, a_reference_of_another_model_is_refused);
    tcase_add_test(tc, stop_strings_and_ignore_eos_reach_the_loop);
    tcase_add_test(tc, slices_share_the_prompts_between_jobs);
    tcase_add_test(tc, an_answer_that_fills_the_context_says_so);
    tcase_add_test(tc, a_prompt_that_does_not_fit_is_named);
    tcase_add_test(tc, prompts_of_token_ids_reach_the_model_as_they_are);
    tcase_add_test(tc, a_shape_of_random_weights_runs_without_a_tokenizer);
    tcase_add_test(tc, a_dry_run_misses_what_a_run_would_and_writes_nothing);
    tcase_add_test(tc, an_existing_file_is_kept_without_force);
    tcase_add_test(tc, resuming_a_complete_file_repeats_nothing);
    tcase_add_test(tc, one_file_has_one_trace_level);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures ? 1 : 0;
}
