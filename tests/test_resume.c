/* resume: the program itself, killed and interrupted at many moments, ends with the content of a run that
 * nobody disturbed. */
#include "engine/err.h"
#include "experiments/trace.h"
#include "spec/loop.h"
#include "tests/toy_dir.h"
#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static struct toy_dir toy;
static char log_path[100];

static void setup(void)
{
    ck_assert_int_eq(toy_dir_make(&toy, SPECBED_GOLDEN_DIR), 0);
    snprintf(log_path, sizeof log_path, "%s/log", toy.path);
}

static void teardown(void)
{
    toy_dir_remove(&toy);
}

/* `specbed run` on the toy experiment, in two cells, with one more setting; option may be NULL. */
static pid_t start_cells(const char *cells, const char *out, const char *set, const char *option)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    int log = open(log_path, O_WRONLY | O_CREAT | O_TRUNC, 0666), null = open("/dev/null", O_WRONLY);
    dup2(null, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execl(SPECBED_PROGRAM, "specbed", "run", toy.config, "--no-progress", "--set", cells, "--set", set, "-o",
          out, option, (char *)NULL);
    _exit(127);
}

static pid_t start(const char *out, const char *max_tokens, const char *option)
{
    return start_cells("sweep.draft.strategy=[none,ngram]", out, max_tokens, option);
}

static int wait_for(pid_t pid)
{
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static int log_says(const char *text)
{
    char log[8192];
    FILE *f = fopen(log_path, "r");
    size_t n = f ? fread(log, 1, sizeof log - 1, f) : 0;
    log[n] = 0;
    if (f)
        fclose(f);
    return strstr(log, text) != NULL;
}

static int64_t requests_in(const char *out)
{
    struct trace t;
    if (access(out, F_OK))
        return -1;
    ck_assert_msg(trace_read(&t, out, TRACE_READ_ALL) == 0, "%s", err_text());
    int64_t n = t.n_requests;
    trace_deinit(&t);
    return n;
}

/* Reads the file again and again while it is written; returns how many requests it has once they are n. */
static void wait_until_recorded(pid_t pid, const char *out, int64_t n)
{
    int status;
    for (int i = 0; i < 60000 && requests_in(out) < n; i++) {
        if (waitpid(pid, &status, WNOHANG) != 0)
            ck_abort_msg("the program ended (%#x) before it recorded %ld requests", status, (long)n);
        usleep(200);
    }
}

static void same_steps(const struct trace *a, const struct trace *b)
{
    ck_assert_int_eq(a->n_steps, b->n_steps);
    ck_assert_int_eq(a->n_nodes, b->n_nodes);
    for (int64_t i = 0; i < a->n_steps; i++) {
        struct trace_step x = a->steps[i], y = b->steps[i];
        x.ns_draft = x.ns_verify = x.ns_accept = x.ns_host = x.ns_total = 0;
        y.ns_draft = y.ns_verify = y.ns_accept = y.ns_host = y.ns_total = 0;
        ck_assert_msg(x.request == y.request && x.position == y.position && x.proposed == y.proposed &&
                          x.depth == y.depth && x.accepted == y.accepted && x.emitted == y.emitted &&
                          x.flags == y.flags && x.pass_rows == y.pass_rows && x.pass_seqs == y.pass_seqs &&
                          x.node_begin == y.node_begin,
                      "step %ld differs", (long)i);
    }
    for (int64_t i = 0; i < a->n_nodes; i++) {
        const struct trace_node *x = &a->nodes[i], *y = &b->nodes[i];
        ck_assert_msg(x->step == y->step && x->token == y->token && x->parent == y->parent &&
                          x->depth == y->depth && x->accepted == y->accepted && x->rank == y->rank &&
                          x->log_q == y->log_q && x->log_p == y->log_p && x->entropy == y->entropy &&
                          x->gap == y->gap,
                      "node %ld differs", (long)i);
    }
}

static void same_requests(const struct trace *a, const struct trace *b)
{
    ck_assert_int_eq(a->n_requests, b->n_requests);
    for (int64_t i = 0; i < a->n_requests; i++) {
        const struct trace_request *x = &a->requests[i], *y = &b->requests[i];
        ck_assert_msg(x->arm == y->arm && x->prompt == y->prompt && x->repeat == y->repeat &&
                          x->request == y->request && x->seed == y->seed &&
                          x->prompt_begin == y->prompt_begin && x->prompt_tokens == y->prompt_tokens &&
                          x->token_begin == y->token_begin && x->tokens == y->tokens &&
                          x->step_begin == y->step_begin && x->steps == y->steps && x->finish == y->finish &&
                          x->concurrency == y->concurrency && x->hash == y->hash,
                      "request %ld differs", (long)i);
    }
}

/* Everything but times. */
static void same_content(const char *out, const char *expected)
{
    struct trace a, b;
    ck_assert_msg(trace_read(&a, out, TRACE_READ_ALL) == 0, "%s", err_text());
    ck_assert_msg(trace_read(&b, expected, TRACE_READ_ALL) == 0, "%s", err_text());
    ck_assert_str_eq(a.meta.status, b.meta.status);
    ck_assert_str_eq(a.meta.config, b.meta.config);
    ck_assert_int_eq(a.n_arms, b.n_arms);
    for (int64_t i = 0; i < a.n_arms; i++)
        ck_assert_str_eq(a.arms[i].config, b.arms[i].config);
    ck_assert_int_eq(a.n_prompts, b.n_prompts);
    for (int64_t i = 0; i < a.n_prompts; i++)
        ck_assert(!strcmp(a.prompts[i].text, b.prompts[i].text) && a.prompts[i].turn == b.prompts[i].turn);
    same_requests(&a, &b);
    ck_assert_int_eq(a.n_prompt_tokens, b.n_prompt_tokens);
    ck_assert_mem_eq(a.prompt_tokens, b.prompt_tokens, (size_t)a.n_prompt_tokens * sizeof *a.prompt_tokens);
    ck_assert_int_eq(a.n_tokens, b.n_tokens);
    for (int64_t i = 0; i < a.n_tokens; i++)
        ck_assert_msg(a.tokens[i].id == b.tokens[i].id && a.tokens[i].request == b.tokens[i].request &&
                          a.tokens[i].log_p == b.tokens[i].log_p,
                      "token %ld differs", (long)i);
    same_steps(&a, &b);
    ck_assert_int_eq(a.n_step_experts, b.n_step_experts);
    ck_assert_int_eq(a.n_node_experts, b.n_node_experts);
    ck_assert_mem_eq(a.step_experts, b.step_experts, (size_t)a.n_step_experts * sizeof(int32_t));
    ck_assert_mem_eq(a.node_experts, b.node_experts, (size_t)a.n_node_experts * sizeof(int32_t));
    ck_assert_int_eq(a.n_scores, b.n_scores);
    for (int64_t i = 0; i < a.n_scores; i++) {
        const struct trace_score *x = &a.scores[i], *y = &b.scores[i];
        ck_assert_msg(x->request == y->request && x->position == y->position && x->token == y->token &&
                          x->log_p == y->log_p && x->rank == y->rank && x->entropy == y->entropy &&
                          x->top1 == y->top1 && x->agree == y->agree && x->kl == y->kl,
                      "score %ld differs", (long)i);
    }
    trace_deinit(&a);
    trace_deinit(&b);
}

static void run_undisturbed(const char *expected, const char *max_tokens)
{
    int code = wait_for(start(expected, max_tokens, NULL));
    if (code) {
        char log[4096] = "";
        int fd = open(log_path, O_RDONLY);
        ck_assert_int_ge(read(fd, log, sizeof log - 1), 0);
        ck_abort_msg("exit code %d: %s", code, log);
    }
    ck_assert_int_eq(requests_in(expected), 2 * TOY_DIR_REQUESTS);
}

START_TEST(a_run_killed_anywhere_resumes_to_the_content_of_an_undisturbed_one)
{
    static const int moments[] = {0, 1, 2, 3, 7, 9, 10, 11, 15, 18};
    char expected[100];
    int in_the_middle = 0;
    snprintf(expected, sizeof expected, "%s/expected.h5", toy.path);
    run_undisturbed(expected, "workload.max_tokens=120");
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
        pid_t pid = start(toy.out, "workload.max_tokens=120", "--force");
        if (i == 0)
            usleep(3000);
        else
            wait_until_recorded(pid, toy.out, moments[i]);
        usleep((useconds_t)(i * 37 % 10) * 300);
        kill(pid, SIGKILL);
        wait_for(pid);
        ck_assert_int_ge(requests_in(toy.out), i ? moments[i] : -1);
        in_the_middle += requests_in(toy.out) < 2 * TOY_DIR_REQUESTS;
        ck_assert_int_eq(wait_for(start(toy.out, "workload.max_tokens=120", "--resume")), 0);
        same_content(toy.out, expected);
        unlink(toy.out);
    }
    ck_assert_int_ge(in_the_middle, 6);
}
END_TEST

START_TEST(a_score_killed_anywhere_resumes_to_the_content_of_an_undisturbed_one)
{
    static const char arms[] = "arms=[{model.weights: bf16}, {model.weights: fp8}]";
    static const int moments[] = {1, 5, 10, 14, 19};
    char expected[100], answers[100];
    int in_the_middle = 0;
    snprintf(expected, sizeof expected, "%s/expected.h5", toy.path);
    snprintf(answers, sizeof answers, "%s/answers.h5", toy.path);
    ck_assert_int_eq(wait_for(start_cells("arms=[]", answers, "workload.max_tokens=120", NULL)), 0);
    FILE *f = fopen(toy.config, "a"); /* two more settings than --set has room for */
    fprintf(f, "workload.mode: score\nworkload.answers: %s\n", answers);
    fclose(f);
    ck_assert_int_eq(wait_for(start_cells(arms, expected, "workload.max_tokens=120", NULL)), 0);
    ck_assert_int_eq(requests_in(expected), 2 * TOY_DIR_REQUESTS);
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
        pid_t pid = start_cells(arms, toy.out, "workload.max_tokens=120", "--force");
        wait_until_recorded(pid, toy.out, moments[i]);
        kill(pid, SIGKILL);
        wait_for(pid);
        in_the_middle += requests_in(toy.out) < 2 * TOY_DIR_REQUESTS;
        ck_assert_int_eq(wait_for(start_cells(arms, toy.out, "workload.max_tokens=120", "--resume")), 0);
        same_content(toy.out, expected);
        unlink(toy.out);
    }
    ck_assert_int_ge(in_the_middle, 2);
}
END_TEST

START_TEST(an_interrupt_finishes_active_requests_and_says_how_to_go_on)
{
    char expected[100];
    snprintf(expected, sizeof expected, "%s/expected.h5", toy.path);
    run_undisturbed(expected, "workload.max_tokens=120");
    static const int signals[] = {SIGINT, SIGTERM};
    for (int i = 0; i < 2; i++) {
        pid_t pid = start(toy.out, "workload.max_tokens=120", "--force");
        struct trace t;
        wait_until_recorded(pid, toy.out, 3 + 8 * i);
        kill(pid, signals[i]);
        ck_assert_int_eq(wait_for(pid), 1);
        ck_assert(log_says("interrupted") && log_says("--resume") && log_says(toy.out));
        ck_assert_int_eq(trace_read(&t, toy.out, TRACE_READ_ALL), 0);
        ck_assert_str_eq(t.meta.status, "interrupted");
        ck_assert(t.n_requests >= 3 + 8 * i && t.n_requests < 2 * TOY_DIR_REQUESTS);
        for (int64_t k = 0; k < t.n_requests; k++)
            ck_assert_int_ne(t.requests[k].finish, FINISH_INTERRUPTED);
        trace_deinit(&t);
        ck_assert_int_eq(wait_for(start(toy.out, "workload.max_tokens=120", "--resume")), 0);
        same_content(toy.out, expected);
        unlink(toy.out);
    }
}
END_TEST

START_TEST(a_second_interrupt_drops_active_requests)
{
    struct trace t;
    pid_t pid = start(toy.out, "workload.max_tokens=1000", NULL);
    wait_until_recorded(pid, toy.out, 1);
    kill(pid, SIGINT);
    usleep(1000);
    kill(pid, SIGINT);
    ck_assert_int_eq(wait_for(pid), 1);
    ck_assert_int_eq(trace_read(&t, toy.out, TRACE_READ_ALL), 0);
    ck_assert_str_eq(t.meta.status, "interrupted");
    ck_assert_int_ge(t.n_requests, 1);
    trace_deinit(&t);
}
END_TEST

START_TEST(two_programs_do_not_write_one_file)
{
    pid_t pid = start(toy.out, "workload.max_tokens=1000", NULL);
    char holder[32];
    wait_until_recorded(pid, toy.out, 1);
    ck_assert_int_eq(wait_for(start(toy.out, "workload.max_tokens=1000", "--resume")), 1);
    snprintf(holder, sizeof holder, "process %ld", (long)pid);
    ck_assert(log_says(holder));
    kill(pid, SIGKILL);
    wait_for(pid);
}
END_TEST

START_TEST(a_file_that_may_not_grow_is_an_error_and_resumes_later)
{
    char expected[100];
    struct rlimit limit = {300000, 300000}, old;
    snprintf(expected, sizeof expected, "%s/expected.h5", toy.path);
    run_undisturbed(expected, "workload.max_tokens=400");
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit.rlim_max = old.rlim_max;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    pid_t pid = start(toy.out, "workload.max_tokens=400", NULL);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
    ck_assert_int_eq(wait_for(pid), 1);
    ck_assert(log_says("File too large") && log_says("stays readable") && log_says("--resume"));
    ck_assert_int_ge(requests_in(toy.out), 1);
    ck_assert_int_lt(requests_in(toy.out), 2 * TOY_DIR_REQUESTS);
    ck_assert_int_eq(wait_for(start(toy.out, "workload.max_tokens=400", "--resume")), 0);
    same_content(toy.out, expected);
}
END_TEST

START_TEST(exit_codes_tell_usage_from_failure)
{
    ck_assert_int_eq(wait_for(start(toy.out, "workload.max_tokens=4", NULL)), 0);
    ck_assert_int_eq(wait_for(start(toy.out, "workload.max_tokens=4", NULL)), 2);
    ck_assert(log_says("--resume") && log_says("--force"));
    ck_assert_int_eq(wait_for(start(toy.out, "workload.max_tokens=5", "--resume")), 2);
    ck_assert(log_says("max_tokens: 4") && log_says("max_tokens: 5"));
    ck_assert_int_eq(wait_for(start(toy.out, "workload.max_tokens=0", "--force")), 2);
    ck_assert_int_eq(wait_for(start("/nowhere/deeper/x.h5", "workload.max_tokens=4", NULL)), 1);
    ck_assert_int_eq(wait_for(start(toy.out, "workload.max_tokens=4", "--slice=3/2")), 2);
    unlink(toy.out);
    ck_assert_int_eq(wait_for(start(toy.out, "workload.max_tokens=4", "--dry-run")), 0);
    ck_assert_int_eq(requests_in(toy.out), -1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("resume");
    TCase *tc = tcase_create("resume");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_run_killed_anywhere_resumes_to_the_content_of_an_undisturbed_one);
    tcase_add_test(tc, a_score_killed_anywhere_resumes_to_the_content_of_an_undisturbed_one);
    tcase_add_test(tc, an_interrupt_finishes_active_requests_and_says_how_to_go_on);
    tcase_add_test(tc, a_second_interrupt_drops_active_requests);
    tcase_add_test(tc, two_programs_do_not_write_one_file);
    tcase_add_test(tc, a_file_that_may_not_grow_is_an_error_and_resumes_later);
    tcase_add_test(tc, exit_codes_tell_usage_from_failure);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures ? 1 : 0;
}
