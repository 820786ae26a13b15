/* chat: every template is the same sequence with other markers:
 *   [begin] { start ROLE header_end "\n\n" CONTENT end } start "assistant" header_end "\n\n"       Llama 3
 * and 4 { start ROLE "\n" CONTENT end "\n" }         start "assistant" "\n"                     ChatML What
 * stands between two markers is encoded as one text, because the published tokenizers see it as one. */
#include "engine/chat.h"
#include "engine/err.h"
#include "engine/json.h"
#include "engine/utf8.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum trim { TRIM_NONE, TRIM_FIRST_SYSTEM, TRIM_ALL };

static const struct form {
    const char *name;
    const char *begin, *start, *header_end, *end; /* markers; NULL: the template has none */
    const char *after_role, *after_message;
    enum trim trim;
} forms[] = {
    [CHAT_RAW] = {.name = "raw"},
    [CHAT_CHATML] = {"chatml", NULL, "<|im_start|>", NULL, "<|im_end|>", "\n", "\n", TRIM_NONE},
    [CHAT_LLAMA3] = {"llama3", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
                     "\n\n", "", TRIM_ALL},
    [CHAT_LLAMA4] = {"llama4", "<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "\n\n",
                     "", TRIM_FIRST_SYSTEM},
};
enum { N_FORMS = sizeof forms / sizeof forms[0] };

/* SmolLM2's template says this for a conversation without a system message. */
static const char smollm_system[] = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
/* Llama 3.1 and later put the dates, of which the second is a default, before any system message. */
static const char llama3_cutoff[] = "Cutting Knowledge Date";
static const char llama3_dates[] = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";

const char *chat_name(enum chat_template kind)
{
    return forms[kind].name;
}

static int join(char path[PATH_MAX], const char *dir, const char *file)
{
    if (snprintf(path, PATH_MAX, "%s/%s", dir, file) >= PATH_MAX)
        FAIL(ERR_IO, "%s: expected a directory name of less than %d bytes", dir, PATH_MAX);
    return 0;
}

/* *root stays NULL when the file is missing: all of these files are optional. */
static int read_optional(const char *path, json_t **root)
{
    return access(path, F_OK) == 0 ? json_read_file(path, root) : 0;
}

/* tokenizer_config.json's chat_template: a text, or a list of named ones of which "default" counts. */
static int template_in_config(const char *dir, char **text)
{
    int rc;
    size_t i;
    char path[PATH_MAX];
    json_t *root = NULL, *named;
    rc = join(path, dir, "tokenizer_config.json");
    if (rc)
        goto out;
    rc = read_optional(path, &root);
    if (rc)
        goto out;
    const json_t *found = json_object_get(root, "chat_template"), *list = found;
    json_array_foreach(list, i, named)
    {
        const char *name = json_string_value(json_object_get(named, "name"));
        if (name && strcmp(name, "default") == 0)
            found = json_object_get(named, "template");
    }
    if (!json_is_string(found))
        goto out;
    *text = strdup(json_string_value(found));
    if (!*text)
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory", path);
out:
    json_decref(root);
    return rc;
}

/* The checkpoint's Jinja text, the caller's; NULL when it has none. */
static int read_template(const char *dir, char **text)
{
    size_t cap = 0;
    char path[PATH_MAX];
    *text = NULL;
    TRY(join(path, dir, "chat_template.jinja"));
    FILE *f = fopen(path, "rb");
    if (!f)
        return template_in_config(dir, text);
    if (getdelim(text, &cap, 0, f) < 0 && ferror(f)) {
        int rc = ERR_SET(ERR_IO, "%s: cannot read: %s", path, strerror(errno));
        free(*text);
        *text = NULL;
        fclose(f);
        return rc;
    }
    fclose(f);
    return 0;
}

static int recognise(enum chat_template *kind, const char *dir, const char *text)
{
    for (int k = CHAT_CHATML; k < N_FORMS; k++)
        if (text && strstr(text, forms[k].start)) {
            *kind = (enum chat_template)k;
            return 0;
        }
    FAIL(ERR_CONFIG,
         "%s: expected a chat template of the kind chatml, llama3 or llama4, found %s; to send prompts as "
         "they are, "
         "set workload.template: raw",
         dir, text ? "one with other markers" : "none");
}

static int kind_of(enum chat_template *kind, const char *dir, const char *name, const char *text)
{
    if (strcmp(name, "auto") == 0)
        return recognise(kind, dir, text);
    for (int k = 0; k < N_FORMS; k++)
        if (strcmp(name, forms[k].name) == 0) {
            *kind = (enum chat_template)k;
            return 0;
        }
    FAIL(ERR_CONFIG, "workload.template: expected auto, raw, chatml, llama3 or llama4, found '%.64s'", name);
}

static int check_markers(enum chat_template kind, const struct tokenizer *t)
{
    const struct form *f = &forms[kind];
    const char *const markers[] = {f->begin, f->start, f->header_end, f->end};
    for (size_t i = 0; i < sizeof markers / sizeof markers[0]; i++)
        if (markers[i] && !tokenizer_is_special(t, tokenizer_id(t, markers[i])))
            FAIL(ERR_CONFIG,
                 "chat template %s: expected the tokenizer to have the special token '%s', found none; to "
                 "send prompts "
                 "as they are, set workload.template: raw",
                 f->name, markers[i]);
    return 0;
}

/* c->stop has room. */
static void add_stop(struct chat *c, int id)
{
    for (int i = 0; i < c->n_stop; i++)
        if (c->stop[i] == id)
            return;
    c->stop[c->n_stop++] = id;
}

/* eos_token_id of obj, an integer or a list of them, into c->stop; *found: there was one. */
static int read_eos(struct chat *c, const json_t *obj, const char *what, int *found)
{
    enum { EXTRA = 4 };
    const json_t *eos = json_object_get(obj, "eos_token_id");
    size_t n = json_is_array(eos) ? json_array_size(eos) : 1;
    *found = eos && !json_is_null(eos);
    int *stop = realloc(c->stop, ((*found ? n : 0) + EXTRA) * sizeof *stop);
    if (!stop)
        FAIL(ERR_MEMORY, "%s: out of memory", what);
    c->stop = stop;
    for (size_t i = 0; *found && i < n; i++) {
        const json_t *id = json_is_array(eos) ? json_array_get(eos, i) : eos;
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT_MAX)
            FAIL(ERR_FORMAT, "%s: 'eos_token_id': expected token ids, found %s", what,
                 json_is_integer(id) ? "an integer out of range" : json_type_name(id));
        add_stop(c, (int)json_integer_value(id));
    }
    return 0;
}

static int read_stop(struct chat *c, const char *dir, const char *file, int *found)
{
    char path[PATH_MAX];
    json_t *root = NULL;
    TRY(join(path, dir, file));
    TRY(read_optional(path, &root));
    int rc = read_eos(c, root, path, found);
    if (!rc && !*found)
        rc = read_eos(c, json_object_get(root, "text_config"), path, found);
    json_decref(root);
    return rc;
}

static int load_stop(struct chat *c, const char *dir, const struct tokenizer *t)
{
    int found;
    TRY(read_stop(c, dir, "generation_config.json", &found));
    if (!found)
        TRY(read_stop(c, dir, "config.json", &found));
    const char *const ends[] = {forms[c->kind].end, "<|endoftext|>"};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        int id = ends[i] ? tokenizer_id(t, ends[i]) : -1;
        if (tokenizer_is_special(t, id))
            add_stop(c, id);
    }
    return 0;
}

static int load(struct chat *c, const char *dir, const char *name, const struct tokenizer *t,
                const char *text)
{
    TRY(kind_of(&c->kind, dir, name, text));
    TRY(check_markers(c->kind, t));
    TRY(load_stop(c, dir, t));
    if (c->kind == CHAT_LLAMA3 && text && strstr(text, llama3_cutoff))
        c->preamble = llama3_dates;
    const char *system = c->preamble ? "" : NULL;
    if (c->kind == CHAT_CHATML && text && strstr(text, smollm_system))
        system = smollm_system;
    if (system && !(c->default_system = strdup(system)))
        FAIL(ERR_MEMORY, "%s: out of memory", dir);
    return 0;
}

int chat_open(struct chat *c, const char *dir, const char *name, const struct tokenizer *t)
{
    char *text;
    struct chat opened = {0};
    TRY(read_template(dir, &text));
    int rc = load(&opened, dir, name, t, text);
    free(text);
    if (rc)
        chat_close(&opened);
    else
        *c = opened;
    return rc;
}

void chat_close(struct chat *c)
{
    free(c->default_system);
    free(c->stop);
    *c = (struct chat){0};
}

/* One call of chat_encode. */
struct output {
    const struct tokenizer *t;
    int **ids, *n_ids, *cap;
};

static int put_text(const struct output *o, const char *text, size_t n)
{
    return tokenizer_encode(o->t, text, n, 0, o->ids, o->n_ids, o->cap);
}

static int put_marker(const struct output *o, const char *marker)
{
    return marker ? tokenizer_encode(o->t, marker, strlen(marker), 1, o->ids, o->n_ids, o->cap) : 0;
}

/* Python's str.strip, which the templates' `trim` is: also the separators U+001C..1F are white space to it.
 */
static const char *trim(const char *text, size_t *n)
{
    size_t first = *n, last = 0;
    for (size_t i = 0; i < *n;) {
        int len;
        uint32_t code;
        utf8_next(text + i, *n - i, &len, &code);
        if (!utf8_is_space(code) && !(code >= 0x1C && code <= 0x1F)) {
            first = i < first ? i : first;
            last = i + (size_t)len;
        }
        i += (size_t)len;
    }
    *n = first < last ? last - first : 0;
    return text + (*n ? first : 0);
}

/* From the start marker to the end of the content. */
static int put_turn(const struct output *o, const struct form *f, const char *role, const char *preamble,
                    const char *content, size_t n)
{
    size_t used = 0, cap = strlen(role) + strlen(f->after_role) + strlen(preamble) + n + 1;
    char *text = malloc(cap);
    if (!text)
        FAIL(ERR_MEMORY, "chat: out of memory for a message of %zu bytes", n);
    int rc = put_marker(o, f->start);
    if (f->header_end) {
        rc = rc ? rc : put_text(o, role, strlen(role));
        rc = rc ? rc : put_marker(o, f->header_end);
        used = (size_t)snprintf(text, cap, "%s%s", f->after_role, preamble);
    } else {
        used = (size_t)snprintf(text, cap, "%s%s%s", role, f->after_role, preamble);
    }
    memcpy(text + used, content, n);
    rc = rc ? rc : put_text(o, text, used + n);
    free(text);
    return rc;
}

static int put_message(const struct output *o, const struct chat *c, const struct chat_message *m, int first)
{
    const struct form *f = &forms[c->kind];
    int first_system = first && strcmp(m->role, "system") == 0;
    size_t n = strlen(m->content);
    const char *content = m->content;
    if (f->trim == TRIM_ALL || (f->trim == TRIM_FIRST_SYSTEM && first_system))
        content = trim(content, &n);
    TRY(put_turn(o, f, m->role, first_system && c->preamble ? c->preamble : "", content, n));
    TRY(put_marker(o, f->end));
    return put_text(o, f->after_message, strlen(f->after_message));
}

static int put_raw(const struct output *o, const struct chat_message *m, int n)
{
    int bos = tokenizer_bos(o->t);
    size_t n_bos;
    const char *text = tokenizer_bytes(o->t, bos, &n_bos);
    TRY(tokenizer_encode(o->t, text, n_bos, 1, o->ids, o->n_ids, o->cap));
    for (int i = 0; i < n; i++)
        TRY(put_text(o, m[i].content, strlen(m[i].content)));
    return 0;
}

static int put_all(const struct output *o, const struct chat *c, const struct chat_message *m, int n)
{
    const struct form *f = &forms[c->kind];
    if (c->kind == CHAT_RAW)
        return put_raw(o, m, n);
    TRY(put_marker(o, f->begin));
    int has_system = n > 0 && strcmp(m[0].role, "system") == 0;
    if (c->default_system && n > 0 && !has_system) {
        struct chat_message system = {"system", c->default_system};
        TRY(put_message(o, c, &system, 1));
    }
    for (int i = 0; i < n; i++)
        TRY(put_message(o, c, &m[i], i == 0));
    return put_turn(o, f, "assistant", "", "", 0);
}

int chat_encode(const struct chat *c, const struct tokenizer *t, const struct chat_message *m, int n,
                int **ids, int *n_ids, int *cap)
{
    int before = *n_ids;
    struct output o = {t, ids, n_ids, cap};
    int rc = put_all(&o, c, m, n);
    if (rc)
        *n_ids = before;
    return rc;
}
