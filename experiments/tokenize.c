/* tokenize: a filter over standard input, line by line, so that ids can be compared with other programs'. */
#include "engine/chat.h"
#include "engine/err.h"
#include "experiments/commands.h"
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    const char *model, *template; /* template NULL: lines as they are */
    int decode, special;
};

struct filter {
    const struct options *opts;
    struct tokenizer *tokenizer; /* owned */
    struct chat chat;
    int *ids; /* owned [cap_ids] */
    int n_ids, cap_ids;
    char *bytes; /* owned [cap_bytes]: of one token, with --decode */
    int cap_bytes;
};

static const struct argp_option argp_options[] = {
    {"decode", 'd', NULL, 0, "Read ids, print their text", 0},
    {"special", 's', NULL, 0,
     "Text that spells a special token becomes that token; with --decode, print special tokens", 0},
    {"template", 't', "NAME", 0, "Wrap each line as a user's message: auto, raw, chatml, llama3 or llama4",
     0},
    {0},
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case 'd':
        o->decode = 1;
        return 0;
    case 's':
        o->special = 1;
        return 0;
    case 't':
        o->template = arg;
        return 0;
    case ARGP_KEY_ARG:
        if (o->model)
            argp_error(state, "expected one model directory, found another: '%s'", arg);
        o->model = arg;
        return 0;
    case ARGP_KEY_END:
        if (!o->model)
            argp_error(state, "expected the directory of a model, found none");
        if (o->template && (o->decode || o->special))
            argp_error(state, "--template goes with neither --decode nor --special");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int encode_line(struct filter *f, const char *line, size_t n)
{
    f->n_ids = 0;
    if (f->opts->template) {
        struct chat_message message = {.role = "user", .content = line};
        if (memchr(line, 0, n))
            FAIL(ERR_FORMAT, "expected text, found a zero byte");
        TRY(chat_encode(&f->chat, f->tokenizer, &message, 1, &f->ids, &f->n_ids, &f->cap_ids));
    } else {
        TRY(tokenizer_encode(f->tokenizer, line, n, f->opts->special, &f->ids, &f->n_ids, &f->cap_ids));
    }
    for (int i = 0; i < f->n_ids; i++)
        printf("%s%d", i ? " " : "", f->ids[i]);
    putchar('\n');
    return 0;
}

/* id -1 prints what the stream still holds back. */
static void print_token(struct filter *f, struct tokenizer_stream *stream, int id)
{
    int n = tokenizer_stream_push(f->tokenizer, stream, id, f->bytes, f->cap_bytes);
    fwrite(f->bytes, 1, (size_t)n, stdout);
}

static int decode_line(struct filter *f, const char *line)
{
    struct tokenizer_stream stream = {.n_pending = 0};
    int vocab = tokenizer_vocab_size(f->tokenizer);
    const char *at = line;
    while (at += strspn(at, " \t\r"), *at) {
        char *end;
        size_t n;
        errno = 0;
        long id = strtol(at, &end, 10);
        if (end == at || errno || id < 0 || id >= vocab || !strchr(" \t\r", *end))
            FAIL(ERR_FORMAT, "expected ids in [0, %d] separated by spaces, found '%.*s'", vocab - 1,
                 (int)strcspn(at, " \t\r") < 40 ? (int)strcspn(at, " \t\r") : 40, at);
        if (f->opts->special && tokenizer_is_special(f->tokenizer, (int)id)) {
            print_token(f, &stream, -1);
            const char *spelled = tokenizer_bytes(f->tokenizer, (int)id, &n);
            fwrite(spelled, 1, n, stdout);
        } else {
            print_token(f, &stream, (int)id);
        }
        at = end;
    }
    print_token(f, &stream, -1);
    putchar('\n');
    return 0;
}

static int filter_open(struct filter *f, const struct options *opts)
{
    *f = (struct filter){.opts = opts};
    TRY(tokenizer_open(&f->tokenizer, opts->model));
    if (opts->template)
        TRY(chat_open(&f->chat, opts->model, opts->template, f->tokenizer));
    f->cap_bytes = tokenizer_max_bytes(f->tokenizer) + 4;
    f->bytes = malloc((size_t)f->cap_bytes);
    if (!f->bytes)
        FAIL(ERR_MEMORY, "out of memory for %d bytes", f->cap_bytes);
    return 0;
}

static void filter_close(struct filter *f)
{
    free(f->ids);
    free(f->bytes);
    chat_close(&f->chat);
    tokenizer_close(f->tokenizer);
}

/* Until the input ends or nobody reads the output any more. */
static int filter_lines(struct filter *f)
{
    int rc = 0;
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    for (long number = 1; !rc && !ferror(stdout) && (n = getline(&line, &cap, stdin)) > 0; number++) {
        if (line[n - 1] == '\n')
            line[--n] = 0;
        rc = f->opts->decode ? decode_line(f, line) : encode_line(f, line, (size_t)n);
        if (rc)
            err_context("standard input, line %ld", number);
    }
    if (!rc && ferror(stdin))
        rc = ERR_SET(ERR_IO, "standard input: cannot read: %s", strerror(errno));
    free(line);
    return rc;
}

int command_tokenize(int argc, char **argv)
{
    static const struct argp argp = {.options = argp_options,
                                     .parser = parse_option,
                                     .args_doc = "MODEL",
                                     .doc =
                                         "Prints the token ids of each line of standard input, separated by "
                                         "spaces. MODEL is a directory with tokenizer.json."};
    struct options opts = {0};
    struct filter f;
    if (argp_parse(&argp, argc, argv, 0, NULL, &opts))
        FAIL(ERR_CONFIG, "tokenize: the arguments make no sense; see --help");
    int rc = filter_open(&f, &opts);
    if (!rc)
        rc = filter_lines(&f);
    filter_close(&f);
    return rc;
}
