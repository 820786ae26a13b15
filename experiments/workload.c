/* workload: files are read whole and walked line by line. Each line is checked for UTF-8 before it is parsed,
 * so that a message can name the byte. */
#include "experiments/workload.h"
#include "engine/err.h"
#include "engine/json.h"
#include "engine/utf8.h"
#include "experiments/file.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_MAX = 1 << 30, WHERE_MAX = 512, TOKENS_MAX = 1 << 24 };

static void prompt_deinit(struct prompt *p)
{
    for (int i = 0; i < p->n_turns; i++)
        free(p->turns[i]);
    free(p->turns);
    free(p->tokens);
    free(p->id);
    free(p->category);
    free(p->dataset);
    free(p->system);
    *p = (struct prompt){0};
}

void workload_deinit(struct workload *w)
{
    for (int i = 0; i < w->n; i++)
        prompt_deinit(&w->prompts[i]);
    free(w->prompts);
    *w = (struct workload){0};
}

static int copy_text(char **to, const char *text, const char *where)
{
    char *copy = strdup(text);
    if (!copy)
        FAIL(ERR_MEMORY, "%s: out of memory for %zu bytes of text", where, strlen(text));
    *to = copy;
    return 0;
}

/* Adds one user message; `name` says which in messages. */
static int add_turn(struct prompt *p, const json_t *text, const char *name, const char *where)
{
    if (!json_is_string(text))
        FAIL(ERR_FORMAT, "%s: %s: expected a string, found %s", where, name, json_type_name(text));
    if (json_string_length(text) == 0)
        FAIL(ERR_FORMAT, "%s: %s: expected a question, found an empty string", where, name);
    if (p->n_turns == WORKLOAD_MAX_TURNS)
        FAIL(ERR_LIMIT, "%s: expected at most %d user turns, found more", where, WORKLOAD_MAX_TURNS);
    TRY(copy_text(&p->turns[p->n_turns], json_string_value(text), where));
    p->n_turns++;
    return 0;
}

static int read_turns(struct prompt *p, const json_t *turns, const char *where)
{
    if (!json_is_array(turns) || json_array_size(turns) == 0)
        FAIL(ERR_FORMAT, "%s: 'turns': expected a list of at least one string, found %s", where,
             json_is_array(turns) ? "an empty one" : json_type_name(turns));
    for (size_t i = 0; i < json_array_size(turns); i++) {
        char name[40];
        snprintf(name, sizeof name, "turn %zu", i + 1);
        TRY(add_turn(p, json_array_get(turns, i), name, where));
    }
    return 0;
}

/* Message i of a conversation. */
static int read_message(struct prompt *p, const json_t *message, size_t i, const char *where)
{
    char name[40];
    const char *role, *content;
    snprintf(name, sizeof name, "message %zu", i + 1);
    TRY_CTX(json_get_string(message, "role", name, NULL, &role), "%s", where);
    if (!strcmp(role, "assistant"))
        return 0;
    if (!strcmp(role, "user"))
        return add_turn(p, json_object_get(message, "content"), name, where);
    if (strcmp(role, "system") != 0)
        FAIL(ERR_FORMAT, "%s: %s: expected role system, user or assistant, found '%.40s'", where, name, role);
    if (i > 0)
        FAIL(ERR_FORMAT, "%s: %s: expected a system message only as the first, found another", where, name);
    TRY_CTX(json_get_string(message, "content", name, NULL, &content), "%s", where);
    return copy_text(&p->system, content, where);
}

static int read_messages(struct prompt *p, const json_t *messages, const char *where)
{
    if (!json_is_array(messages))
        FAIL(ERR_FORMAT, "%s: 'messages': expected a list, found %s", where, json_type_name(messages));
    for (size_t i = 0; i < json_array_size(messages); i++)
        TRY(read_message(p, json_array_get(messages, i), i, where));
    if (p->n_turns == 0)
        FAIL(ERR_FORMAT, "%s: 'messages': expected at least one user message, found none", where);
    return 0;
}

/* The turn's text, which files of results show, says how many there are. */
static int read_tokens(struct prompt *p, const json_t *tokens, const char *where)
{
    char text[32];
    const size_t n = json_array_size(tokens);
    if (!json_is_array(tokens))
        FAIL(ERR_FORMAT, "%s: 'tokens': expected a list of token ids, found %s", where,
             json_type_name(tokens));
    if (n == 0 || n > TOKENS_MAX)
        FAIL(ERR_FORMAT, "%s: 'tokens': expected 1 to %d token ids, found %zu", where, TOKENS_MAX, n);
    p->tokens = calloc(n, sizeof *p->tokens);
    if (!p->tokens)
        FAIL(ERR_MEMORY, "%s: out of memory for %zu token ids", where, n);
    for (; p->n_tokens < (int)n; p->n_tokens++) {
        const json_t *id = json_array_get(tokens, (size_t)p->n_tokens);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT_MAX)
            FAIL(ERR_FORMAT, "%s: 'tokens': expected whole numbers from 0, found %s as number %d", where,
                 json_is_integer(id) ? "one out of range" : json_type_name(id), p->n_tokens + 1);
        p->tokens[p->n_tokens] = (int)json_integer_value(id);
    }
    snprintf(text, sizeof text, "%zu token ids", n);
    TRY(copy_text(&p->turns[0], text, where));
    p->n_turns = 1;
    return 0;
}

static int read_questions(struct prompt *p, const json_t *line, const char *where)
{
    const json_t *turns = json_object_get(line, "turns"), *messages = json_object_get(line, "messages");
    const json_t *prompt = json_object_get(line, "prompt"), *tokens = json_object_get(line, "tokens");
    p->turns = calloc(WORKLOAD_MAX_TURNS, sizeof *p->turns);
    if (!p->turns)
        FAIL(ERR_MEMORY, "%s: out of memory", where);
    if (turns)
        return read_turns(p, turns, where);
    if (messages)
        return read_messages(p, messages, where);
    if (prompt)
        return add_turn(p, prompt, "'prompt'", where);
    if (tokens)
        return read_tokens(p, tokens, where);
    FAIL(ERR_FORMAT,
         "%s: expected an object with 'turns', 'messages', 'prompt' or 'tokens', found none of them", where);
}

/* "question_id" or "id", as text; the line's number where there is neither. */
static int read_id(struct prompt *p, const json_t *line, int number, const char *where)
{
    const json_t *id = json_object_get(line, "question_id");
    char text[40];
    if (!id)
        id = json_object_get(line, "id");
    if (json_is_string(id))
        return copy_text(&p->id, json_string_value(id), where);
    if (json_is_integer(id))
        snprintf(text, sizeof text, "%lld", (long long)json_integer_value(id));
    else if (!id)
        snprintf(text, sizeof text, "%d", number);
    else
        FAIL(ERR_FORMAT, "%s: 'question_id' or 'id': expected a whole number or a string, found %s", where,
             json_type_name(id));
    return copy_text(&p->id, text, where);
}

static int read_object(struct prompt *p, const json_t *line, int number, const char *where,
                       const char *dataset)
{
    const char *category;
    if (!json_is_object(line))
        FAIL(ERR_FORMAT, "%s: expected an object, found %s", where, json_type_name(line));
    TRY(json_get_string(line, "category", where, dataset, &category));
    TRY(read_questions(p, line, where));
    TRY(read_id(p, line, number, where));
    TRY(copy_text(&p->category, category, where));
    return copy_text(&p->dataset, dataset, where);
}

/* Room for one more; a failed prompt that was begun is released by the caller. */
static int reserve(struct workload *w, const char *where)
{
    if (w->n == WORKLOAD_MAX_PROMPTS)
        FAIL(ERR_LIMIT, "%s: expected at most %d prompts in all, found more", where, WORKLOAD_MAX_PROMPTS);
    if ((w->n & (w->n - 1)) == 0) {
        struct prompt *grown = realloc(w->prompts, sizeof *grown * (w->n ? 2 * (size_t)w->n : 1));
        if (!grown)
            FAIL(ERR_MEMORY, "%s: out of memory for %d prompts", where, w->n + 1);
        w->prompts = grown;
    }
    return 0;
}

static int is_blank(const char *line, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
            return 0;
    return 1;
}

/* One line [n bytes, no line feed], which starts at byte `offset` of the file. */
static int parse_line(struct workload *w, const char *line, size_t n, size_t offset, int number,
                      const char *what, const char *dataset)
{
    char where[WHERE_MAX];
    json_t *object;
    snprintf(where, sizeof where, "%.400s:%d", what, number);
    size_t valid = utf8_valid(line, n);
    if (valid < n)
        FAIL(ERR_FORMAT, "%s: expected UTF-8, found byte 0x%02x at byte offset %zu of the file", where,
             (unsigned char)line[valid], offset + valid);
    TRY(reserve(w, where));
    TRY(json_parse(line, n, where, &object));
    struct prompt p = {.index = w->n};
    int rc = read_object(&p, object, number, where, dataset);
    json_decref(object);
    if (rc)
        prompt_deinit(&p);
    else
        w->prompts[w->n++] = p;
    return rc;
}

int workload_parse(struct workload *w, const char *bytes, size_t n, const char *what, const char *dataset)
{
    int number = 0;
    size_t at = n >= 3 && !memcmp(bytes, "\xEF\xBB\xBF", 3) ? 3 : 0;
    while (at < n) {
        const char *line = bytes + at, *feed = memchr(line, '\n', n - at);
        size_t length = feed ? (size_t)(feed - line) : n - at;
        number++;
        if (!is_blank(line, length))
            TRY(parse_line(w, line, length, at, number, what, dataset));
        at += length + 1;
    }
    return 0;
}

/* "data/mt_bench/question.jsonl" is mt_bench, "data/quickstart.jsonl" is quickstart. */
static int dataset_label(const char *path, char **label)
{
    const char *slash = strrchr(path, '/'), *begin = slash ? slash + 1 : path, *end = strrchr(begin, '.');
    if (!end || end == begin)
        end = begin + strlen(begin);
    if (slash && slash > path && !strncmp(begin, "question", (size_t)(end - begin)) && end - begin == 8) {
        const char *folder = slash;
        while (folder > path && folder[-1] != '/')
            folder--;
        if (folder < slash) {
            begin = folder;
            end = slash;
        }
    }
    *label = strndup(begin, (size_t)(end - begin));
    if (!*label)
        FAIL(ERR_MEMORY, "%s: out of memory", path);
    return 0;
}

static int load_file(struct workload *w, const char *path)
{
    char *bytes = NULL, *label = NULL;
    size_t n;
    int rc = file_read(path, FILE_MAX, &bytes, &n);
    if (!rc)
        rc = dataset_label(path, &label);
    if (!rc)
        rc = workload_parse(w, bytes, n, path, label);
    free(bytes);
    free(label);
    return rc;
}

static int wanted(const struct prompt *p, const struct config_list *category)
{
    for (int i = 0; i < category->n; i++)
        if (!strcmp(category->items[i], p->category))
            return 1;
    return category->n == 0;
}

/* Keeps the prompts for which keep[i], in order. */
static void keep_only(struct workload *w, const unsigned char *keep)
{
    int kept = 0;
    for (int i = 0; i < w->n; i++) {
        if (keep[i])
            w->prompts[kept++] = w->prompts[i];
        else
            prompt_deinit(&w->prompts[i]);
    }
    w->n = kept;
}

/* "writing, math": the first few different categories there are, into buf. */
static void list_categories(const struct workload *w, char *buf, size_t n)
{
    size_t used = 0;
    buf[0] = 0;
    for (int i = 0, listed = 0; i < w->n && listed < 20 && used < n; i++) {
        int known = 0;
        for (int j = 0; j < i && !known; j++)
            known = !strcmp(w->prompts[i].category, w->prompts[j].category);
        if (known)
            continue;
        used += (size_t)snprintf(buf + used, n - used, "%s%s", listed ? ", " : "", w->prompts[i].category);
        listed++;
    }
}

/* A category that no prompt has is a slip of the pen, and would silently shrink the experiment. */
static int check_categories(const struct workload *w, const struct config_list *category)
{
    for (int i = 0; i < category->n; i++) {
        int found = 0;
        for (int j = 0; j < w->n && !found; j++)
            found = !strcmp(category->items[i], w->prompts[j].category);
        if (found)
            continue;
        char known[512];
        list_categories(w, known, sizeof known);
        FAIL(ERR_CONFIG, "workload.category: expected categories of the data sets (%s), found '%s'", known,
             category->items[i]);
    }
    return 0;
}

/* The prompts of one file are [file_end[f - 1], file_end[f]). Category, then limit for each file, then the
 * slice over all. */
static void mark_wanted(const struct workload *w, const struct config *cfg, const int *file_end, int slice,
                        int of, unsigned char *keep)
{
    int taken = 0;
    for (int f = 0, i = 0; f < cfg->workload.dataset.n; f++) {
        for (int of_file = 0; i < file_end[f]; i++) {
            if (!wanted(&w->prompts[i], &cfg->workload.category))
                continue;
            if (cfg->workload.limit > 0 && of_file == cfg->workload.limit)
                continue;
            of_file++;
            keep[i] = taken++ % of == slice;
        }
    }
}

static int load_files(struct workload *w, const struct config *cfg, int slice, int of)
{
    int rc = 0, n_files = cfg->workload.dataset.n;
    unsigned char *keep = NULL;
    int *file_end = calloc((size_t)n_files, sizeof *file_end);
    if (!file_end) {
        rc = ERR_SET(ERR_MEMORY, "out of memory for %d data sets", n_files);
        goto out;
    }
    for (int f = 0; f < n_files; f++) {
        rc = load_file(w, cfg->workload.dataset.items[f]);
        if (rc)
            goto out;
        file_end[f] = w->n;
    }
    rc = check_categories(w, &cfg->workload.category);
    if (rc)
        goto out;
    keep = calloc((size_t)w->n + 1, 1);
    if (!keep) {
        rc = ERR_SET(ERR_MEMORY, "out of memory for %d prompts", w->n);
        goto out;
    }
    int before = w->n;
    mark_wanted(w, cfg, file_end, slice, of, keep);
    keep_only(w, keep);
    if (before == 0)
        rc = ERR_SET(ERR_CONFIG, "workload.dataset: expected at least one prompt, found none in '%s'%s",
                     cfg->workload.dataset.items[0], n_files > 1 ? " and the files after it" : "");
    else if (w->n == 0)
        rc = ERR_SET(ERR_CONFIG,
                     "slice %d/%d: expected at least one prompt, found none of %d; use fewer slices", slice,
                     of, before);
out:
    free(file_end);
    free(keep);
    return rc;
}

int workload_load(struct workload *w, const struct config *cfg, int slice, int of)
{
    struct workload loaded = {0};
    if (cfg->workload.dataset.n == 0)
        FAIL(ERR_CONFIG, "workload.dataset: expected at least one JSON Lines file, found none");
    if (of < 1 || slice < 0 || slice >= of)
        FAIL(ERR_CONFIG, "slice %d/%d: expected i/n with 0 <= i < n", slice, of);
    int rc = load_files(&loaded, cfg, slice, of);
    if (rc) {
        err_context("reading the prompts");
        workload_deinit(&loaded);
        return rc;
    }
    *w = loaded;
    return 0;
}
