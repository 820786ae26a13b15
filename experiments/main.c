/* specbed: a testbed for speculative decoding. This file knows the commands and what their errors become: one
 * message on stderr and an exit code. */
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/commands.h"
#include "experiments/suggest.h"
#include <argp.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

const struct command commands[] = {
    {"run", "run an experiment or a sweep", command_run},
    {"analyze", "acceptance, latency and comparisons from result files", command_analyze},
    {"bench", "measure this machine against its memory bandwidth", command_bench},
    {"tokenize", "token ids of each line of standard input, or the text of ids", command_tokenize},
    {"list", "what there is: models, drafts, rules, devices, options", command_list},
    {0},
};

const char *argp_program_version = "specbed " SPECBED_VERSION;

/* The words after "specbed [-v|-q]". */
struct call {
    int argc;
    char **argv; /* borrowed */
};

static const struct argp_option options[] = {
    {"verbose", 'v', NULL, 0, "Log details as well", 0},
    {"quiet", 'q', NULL, 0, "Log warnings and errors only", 0},
    {0},
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct call *call = state->input;
    (void)arg;
    switch (key) {
    case 'v':
        log_set_level(LOG_DEBUG);
        return 0;
    case 'q':
        log_set_level(LOG_WARN);
        return 0;
    case ARGP_KEY_ARG:
        call->argv = state->argv + state->next - 1;
        call->argc = state->argc - state->next + 1;
        state->next = state->argc;
        return 0;
    case ARGP_KEY_NO_ARGS:
        argp_error(state, "expected a command, found none");
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* -v and -q mean the same behind the command, where they come to mind: taken out before its own parser sees
 * them. */
static void take_log_options(struct call *call)
{
    int kept = 1;
    for (int i = 1; i < call->argc; i++) {
        char *word = call->argv[i];
        if (!strcmp(word, "--")) {
            while (i < call->argc)
                call->argv[kept++] = call->argv[i++];
        } else if (!strcmp(word, "-v") || !strcmp(word, "--verbose")) {
            log_set_level(LOG_DEBUG);
        } else if (!strcmp(word, "-q") || !strcmp(word, "--quiet")) {
            log_set_level(LOG_WARN);
        } else {
            call->argv[kept++] = word;
        }
    }
    call->argc = kept;
    call->argv[kept] = NULL;
}

/* The list of commands, below the options in --help. */
static char *help_filter(int key, const char *text, void *input)
{
    (void)input;
    if (key != ARGP_KEY_HELP_POST_DOC)
        return (char *)text;
    char *list = NULL;
    size_t n;
    FILE *f = open_memstream(&list, &n);
    if (!f)
        return (char *)text;
    fputs("Commands:\n", f);
    for (const struct command *c = commands; c->name; c++)
        fprintf(f, "  %-10s %s\n", c->name, c->help);
    fputs("\n`specbed COMMAND --help` describes one; -v and -q may follow it too. Exit codes: 0 done, 1 "
          "failed, 2 usage or configuration.",
          f);
    if (fclose(f)) {
        free(list);
        return (char *)text;
    }
    return list;
}

static const struct command *find_command(const char *name)
{
    for (const struct command *c = commands; c->name; c++)
        if (!strcmp(c->name, name))
            return c;
    return NULL;
}

static int unknown_command(const char *name)
{
    struct suggest s;
    suggest_begin(&s, name);
    for (const struct command *c = commands; c->name; c++)
        suggest_try(&s, c->name);
    if (s.best)
        fprintf(stderr, "specbed: unknown command '%s'; did you mean '%s'?\n", name, s.best);
    else
        fprintf(stderr, "specbed: unknown command '%s'; `specbed --help` lists them\n", name);
    return EXIT_USAGE;
}

/* Prints the message of a failed command, once, and says which exit code it is. */
static int report(const struct command *c, int rc)
{
    if (rc == 0)
        return EXIT_DONE;
    if (rc != ERR_STOP)
        err_context("cannot %s", c->name);
    if (err_text()[0])
        fprintf(stderr, "%s\n", err_text());
    return rc == ERR_CONFIG ? EXIT_USAGE : EXIT_FAILED;
}

/* 1 when stdout is a pipe whose reader has gone. */
static int reader_is_gone(void)
{
    struct pollfd p = {.fd = STDOUT_FILENO, .events = POLLOUT};
    return poll(&p, 1, 0) == 1 && (p.revents & POLLERR);
}

/* Results that did not reach stdout are a failure, unless the reader had seen enough (specbed ... | head). */
static int flush_results(int code)
{
    int failed = fflush(stdout), reason = errno;
    if (!failed && !ferror(stdout))
        return code;
    if (reader_is_gone())
        return EXIT_DONE;
    fprintf(stderr, "cannot write to standard output: %s\n",
            failed ? strerror(reason) : "an earlier write failed");
    return EXIT_FAILED;
}

int main(int argc, char **argv)
{
    static const struct argp argp = {.options = options,
                                     .parser = parse_option,
                                     .args_doc = "COMMAND [ARGUMENT...]",
                                     .doc = "A testbed for speculative decoding: swappable draft strategies, "
                                            "one engine, every step recorded.\v ",
                                     .help_filter = help_filter};
    struct call call = {0};
    char name[64];
    /* A reader that leaves must not kill a run that still has results to record. */
    signal(SIGPIPE, SIG_IGN);
    /* Ranks that share a GPU wait for each other inside kernels: none may stand behind another in a queue. */
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    argp_err_exit_status = EXIT_USAGE;
    if (argp_parse(&argp, argc, argv, ARGP_IN_ORDER, NULL, &call) || !call.argv)
        return EXIT_USAGE;
    const struct command *command = find_command(call.argv[0]);
    if (!command)
        return unknown_command(call.argv[0]);
    snprintf(name, sizeof name, "specbed %s", command->name);
    call.argv[0] = name;
    take_log_options(&call);
    return flush_results(report(command, command->run(call.argc, call.argv)));
}
