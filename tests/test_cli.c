/* The built program from outside: exit codes, where words go, and the sentences a person reads. */
#include <check.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_ARGS = 16, MAX_TEXT = 1 << 16 };

static char base[64];   /* removed at the end, even when a test fails */
static char folder[96]; /* the working directory of every call, below base, fresh for each test */
static char out[MAX_TEXT], err[MAX_TEXT], ids[MAX_TEXT];

static void make_base(void)
{
    snprintf(base, sizeof base, "/tmp/specbed-cli-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(base));
}

static void make_folder(void)
{
    snprintf(folder, sizeof folder, "%s/XXXXXX", base);
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

static void remove_base(void)
{
    nftw(base, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void write_text(const char *name, const char *text)
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs(text, f), 0);
    fclose(f);
}

static void read_text(const char *name, char text[MAX_TEXT])
{
    char path[200];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    ck_assert_ptr_nonnull(f);
    text[fread(text, 1, MAX_TEXT - 1, f)] = 0;
    fclose(f);
}

/* In the child: standard streams from and to files of the folder, then the program. */
static void become_program(char **argv)
{
    if (chdir(folder) || !freopen("in", "r", stdin) || !freopen("out", "w", stdout) ||
        !freopen("err", "w", stderr))
        _exit(126);
    execv(SPECBED_PROGRAM, argv);
    _exit(127);
}

/* Runs `specbed ARGS...` (up to NULL) on this standard input and returns its exit code; fills out and err. */
static int specbed(const char *input, ...)
{
    char *argv[MAX_ARGS + 2] = {"specbed"};
    va_list ap;
    va_start(ap, input);
    for (int i = 1; i <= MAX_ARGS && (argv[i] = va_arg(ap, char *)) != NULL; i++)
        ;
    va_end(ap);
    write_text("in", input);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        become_program(argv);
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    read_text("out", out);
    read_text("err", err);
    ck_assert_msg(WIFEXITED(status), "ended by signal %d: %s", WTERMSIG(status), err);
    return WEXITSTATUS(status);
}

static void holds(const char *text, const char *part)
{
    ck_assert_msg(strstr(text, part) != NULL, "expected '%s' in: %s", part, text);
}

/* The call failed with this code, said `part` on stderr and nothing on stdout. */
static void failed(int code, int expected, const char *part)
{
    ck_assert_msg(code == expected, "exit code %d, expected %d: %s%s", code, expected, out, err);
    holds(err, part);
    ck_assert_str_eq(out, "");
}

START_TEST(help_and_version_go_to_stdout)
{
    static const char *const names[] = {"run", "analyze", "bench", "tokenize", "list"};
    ck_assert_int_eq(specbed("", "--help", NULL), 0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        holds(out, names[i]);
    ck_assert_str_eq(err, "");
    ck_assert_int_eq(specbed("", "--version", NULL), 0);
    holds(out, "specbed " SPECBED_VERSION);
}
END_TEST

START_TEST(every_command_explains_itself)
{
    static const char *const names[] = {"run", "analyze", "bench", "tokenize", "list"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char usage[64];
        snprintf(usage, sizeof usage, "Usage: specbed %s", names[i]);
        ck_assert_int_eq(specbed("", names[i], "--help", NULL), 0);
        holds(out, usage);
    }
}
END_TEST

START_TEST(mistakes_of_usage_exit_with_2)
{
    failed(specbed("", NULL), 2, "expected a command, found none");
    failed(specbed("", "lsit", NULL), 2, "unknown command 'lsit'; did you mean 'list'?");
    failed(specbed("", "frobnicate", NULL), 2, "unknown command 'frobnicate'; `specbed --help` lists them");
    failed(specbed("", "--frobnicate", NULL), 2, "--frobnicate");
    failed(specbed("", "list", NULL), 2, "expected models, drafts, rules, devices or options, found nothing");
    failed(specbed("", "list", "modles", NULL), 2, "found 'modles'");
    failed(specbed("", "list", "models", "drafts", NULL), 2, "expected one word, found another: 'drafts'");
    failed(specbed("", "list", "--frobnicate", NULL), 2, "--frobnicate");
    failed(specbed("", "tokenize", NULL), 2, "expected the directory of a model, found none");
    failed(specbed("", "tokenize", "a", "b", NULL), 2, "expected one model directory, found another: 'b'");
    failed(specbed("", "tokenize", "a", "-d", "-t", "auto", NULL), 2, "--template goes with neither");
    failed(specbed("", "run", "--frobnicate", NULL), 2, "--frobnicate");
}
END_TEST

START_TEST(lists_name_what_there_is)
{
    ck_assert_int_eq(specbed("", "list", "drafts", NULL), 0);
    holds(out, "none: plain decoding");
    holds(out, "draft.ngram.max");
    holds(out, "needs draft.reference");
    ck_assert_int_eq(specbed("", "list", "rules", NULL), 0);
    holds(out, "relaxed (lossy): ");
    holds(out, "greedy: ");
    ck_assert_int_eq(specbed("", "list", "devices", NULL), 0);
    holds(out, "portable");
    ck_assert_int_eq(specbed("", "list", "options", NULL), 0);
    holds(out, "draft.max_depth\n");
    holds(out, "a whole number in [1, 64]; default 5");
    ck_assert_int_eq(specbed("", "list", "models", NULL), 0);
    ck_assert_str_eq(out, "none: there is no directory ./models here\n");
}
END_TEST

START_TEST(a_model_that_cannot_be_used_is_listed_with_the_reason)
{
    char path[200];
    snprintf(path, sizeof path, "%s/models", folder);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    snprintf(path, sizeof path, "%s/models/toy", folder);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    write_text("models/toy/config.json", "{\"architectures\": 5}");
    write_text("models/README", "not a model");
    ck_assert_int_eq(specbed("", "list", "models", NULL), 0);
    holds(out, "models/toy\n    cannot be used: ");
    ck_assert_ptr_null(strstr(out, "README"));
}
END_TEST

START_TEST(a_failed_command_prints_its_error_once)
{
    failed(specbed("", "tokenize", "nowhere", NULL), 1, "cannot tokenize:\n  nowhere");
    char *first = strstr(err, "cannot tokenize");
    ck_assert_ptr_null(strstr(first + 1, "cannot tokenize"));
}
END_TEST

/* A small tokenizer in Llama 3's form. */
static char toy[] = SPECBED_GOLDEN_DIR "/tokenizer/llama3";

START_TEST(ids_decode_to_the_lines_they_came_from)
{
    static const char text[] = "Hello world\n\n the h\xC3\xA9llo<|eot_id|>\n";
    ck_assert_int_eq(specbed(text, "tokenize", toy, NULL), 0);
    memcpy(ids, out, sizeof ids);
    ck_assert_int_eq(specbed(ids, "tokenize", toy, "--decode", NULL), 0);
    ck_assert_str_eq(out, text);
    ck_assert_int_eq(specbed(text, "tokenize", toy, "--special", NULL), 0);
    ck_assert_int_lt(strlen(out), strlen(ids));
    memcpy(ids, out, sizeof ids);
    ck_assert_int_eq(specbed(ids, "tokenize", toy, "--decode", NULL), 0);
    ck_assert_str_eq(out, "Hello world\n\n the h\xC3\xA9llo\n");
    ck_assert_int_eq(specbed(ids, "tokenize", toy, "--decode", "--special", NULL), 0);
    ck_assert_str_eq(out, text);
}
END_TEST

START_TEST(a_template_wraps_each_line_as_a_user_message)
{
    ck_assert_int_eq(specbed("hi\n", "tokenize", toy, "--template", "llama3", NULL), 0);
    memcpy(ids, out, sizeof ids);
    ck_assert_int_eq(specbed(ids, "tokenize", toy, "--decode", "--special", NULL), 0);
    holds(out, "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant");
    ck_assert_int_eq(specbed("", "tokenize", toy, "--template", "llama5", NULL), 2);
    holds(err, "found 'llama5'");
}
END_TEST

START_TEST(ids_that_are_none_name_their_line)
{
    ck_assert_int_eq(specbed("1 2\n3 x\n", "tokenize", toy, "--decode", NULL), 1);
    holds(err, "standard input, line 2:\n    expected ids in [0, ");
    holds(err, "separated by spaces, found 'x'");
    ck_assert_int_eq(specbed("99999999\n", "tokenize", toy, "--decode", NULL), 1);
    holds(err, "found '99999999'");
    ck_assert_int_eq(specbed("-1\n", "tokenize", toy, "--decode", NULL), 1);
    ck_assert_int_eq(specbed("1,2\n", "tokenize", toy, "--decode", NULL), 1);
    holds(err, "found '1,2'");
}
END_TEST

START_TEST(results_that_cannot_be_written_are_a_failure)
{
    char command[512];
    snprintf(command, sizeof command, "%s list options >/dev/full 2>%s/err", SPECBED_PROGRAM, folder);
    int status = system(command);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), 1);
    read_text("err", err);
    holds(err, "cannot write to standard output: No space left on device");
}
END_TEST

START_TEST(a_reader_that_leaves_early_is_no_failure)
{
    char command[512];
    snprintf(command, sizeof command,
             "bash -c 'set -o pipefail; (sleep 0.2; exec %s list options) 2>%s/err | true'", SPECBED_PROGRAM,
             folder);
    int status = system(command);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), 0);
    read_text("err", err);
    ck_assert_str_eq(err, "");
}
END_TEST

/* An experiment over these prompts; extra lines of YAML at the end. The model is never loaded by --dry-run.
 */
static void write_experiment(const char *extra)
{
    char yaml[1000];
    snprintf(yaml, sizeof yaml,
             "name: test\nmodel: {path: nowhere}\nworkload: {dataset: p.jsonl, max_tokens: 4}\n%s\n", extra);
    write_text("e.yaml", yaml);
    write_text("p.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"category\": \"x\"}\n");
}

START_TEST(a_dry_run_prints_the_cells)
{
    write_experiment("sweep: {draft.strategy: [none, ngram], draft.max_depth: [2, 3]}");
    int code = specbed("", "run", "e.yaml", "--dry-run", NULL);
    ck_assert_msg(code == 0, "%s", err);
    holds(out, "none, 2");
    holds(out, "none, 3");
    holds(out, "ngram, 2");
    holds(out, "ngram, 3");
}
END_TEST

START_TEST(mistakes_in_an_experiment_exit_with_2)
{
    static const struct {
        const char *extra, *part;
    } cases[] = {
        {"draft.stratgy: ngram", "e.yaml:4: unknown key 'draft.stratgy'; did you mean 'draft.strategy'?"},
        {"draft.strategy: ngrm", "e.yaml:4: draft.strategy: expected "},
        {"draft.strategy: ngrm", "found 'ngrm'; did you mean 'ngram'?"},
        {"draft.max_depth: five", "expected a whole number in [1, 64], found 'five'"},
        {"draft: [", "e.yaml:"},
        {"sampling.temperature: 1", "rule greedy takes the most probable token"},
        {"draft.strategy: oracle", "draft.reference: strategy oracle replays earlier outputs"},
        {"workload.category: [y]", "expected categories of the data sets (p, x), found 'y'"},
    };
    failed(specbed("", "run", NULL), 2, "");
    failed(specbed("", "run", "nowhere.yaml", "--dry-run", NULL), 2,
           "nowhere.yaml: cannot open: No such file or directory");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_experiment(cases[i].extra);
        int code = specbed("", "run", "e.yaml", "--dry-run", NULL);
        ck_assert_msg(code == 2, "'%s' gave exit code %d: %s", cases[i].extra, code, err);
        holds(err, "cannot run");
        holds(err, cases[i].part);
    }
    write_experiment("");
    ck_assert_int_eq(specbed("", "run", "e.yaml", "--dry-run", "--set", "draft.max_depth=65", NULL), 2);
    holds(err, "--set 'draft.max_depth=65': draft.max_depth: expected a whole number in [1, 64], found '65'");
}
END_TEST

START_TEST(prompts_that_cannot_be_read_are_a_failure)
{
    write_experiment("");
    write_text("p.jsonl", "\n");
    ck_assert_int_eq(specbed("", "run", "e.yaml", "--dry-run", NULL), 2);
    holds(err, "expected at least one prompt, found none in 'p.jsonl'");
    write_text("p.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"\xff\"}\n");
    ck_assert_int_eq(specbed("", "run", "e.yaml", "--dry-run", NULL), 1);
    holds(err, "p.jsonl:2: expected UTF-8, found byte 0xff at byte offset 28 of the file");
    write_text("p.jsonl", "{\"question\": \"a\"}\n");
    ck_assert_int_eq(specbed("", "run", "e.yaml", "--dry-run", NULL), 1);
    holds(err, "p.jsonl:1: expected an object with 'turns', 'messages', 'prompt' or 'tokens'");
    ck_assert_int_eq(
        specbed("", "run", "e.yaml", "--dry-run", "--set", "workload.dataset=nowhere.jsonl", NULL), 1);
    holds(err, "nowhere.jsonl: cannot open: No such file or directory");
}
END_TEST

START_TEST(a_model_that_is_not_there_is_a_failure)
{
    write_experiment("");
    ck_assert_int_eq(specbed("", "run", "e.yaml", "-o", "r.h5", NULL), 1);
    holds(err, "cannot run");
    holds(err, "nowhere");
}
END_TEST

START_TEST(the_log_is_quiet_before_or_behind_the_command)
{
    write_experiment("");
    ck_assert_int_eq(specbed("", "run", "e.yaml", "-o", "r.h5", NULL), 1);
    holds(err, "max_tokens:");
    ck_assert_int_eq(specbed("", "-q", "run", "e.yaml", "-o", "r.h5", NULL), 1);
    ck_assert_ptr_null(strstr(err, "max_tokens:"));
    ck_assert_int_eq(specbed("", "run", "e.yaml", "-o", "r.h5", "-q", NULL), 1);
    ck_assert_ptr_null(strstr(err, "max_tokens:"));
    ck_assert_int_eq(specbed("", "run", "--quiet", "e.yaml", "-v", "-o", "r.h5", NULL), 1);
    holds(err, "max_tokens:");
    /* behind --, words are words */
    failed(specbed("", "run", "--", "-q", NULL), 2, "-q: cannot open");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("cli");
    TCase *usage = tcase_create("usage"), *run = tcase_create("run");
    tcase_add_unchecked_fixture(usage, make_base, remove_base);
    tcase_add_unchecked_fixture(run, make_base, remove_base);
    tcase_add_checked_fixture(usage, make_folder, NULL);
    tcase_add_checked_fixture(run, make_folder, NULL);
    tcase_add_test(usage, help_and_version_go_to_stdout);
    tcase_add_test(usage, every_command_explains_itself);
    tcase_add_test(usage, mistakes_of_usage_exit_with_2);
    tcase_add_test(usage, lists_name_what_there_is);
    tcase_add_test(usage, a_model_that_cannot_be_used_is_listed_with_the_reason);
    tcase_add_test(usage, a_failed_command_prints_its_error_once);
    tcase_add_test(usage, ids_decode_to_the_lines_they_came_from);
    tcase_add_test(usage, a_template_wraps_each_line_as_a_user_message);
    tcase_add_test(usage, ids_that_are_none_name_their_line);
    tcase_add_test(usage, results_that_cannot_be_written_are_a_failure);
    tcase_add_test(usage, a_reader_that_leaves_early_is_no_failure);
    tcase_add_test(run, a_dry_run_prints_the_cells);
    tcase_add_test(run, mistakes_in_an_experiment_exit_with_2);
    tcase_add_test(run, prompts_that_cannot_be_read_are_a_failure);
    tcase_add_test(run, a_model_that_is_not_there_is_a_failure);
    tcase_add_test(run, the_log_is_quiet_before_or_behind_the_command);
    suite_add_tcase(s, usage);
    suite_add_tcase(s, run);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
