/* config_yaml: a walk over libyaml's events. Mappings recurse, through lists too, to a bounded depth; nothing
 * else does. */
#include "experiments/config_yaml.h"
#include "engine/err.h"
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

struct reader {
    yaml_parser_t parser;
    const char *what;
    struct config_entries entries;
};

static int line_of(yaml_mark_t mark)
{
    return (int)mark.line + 1;
}

/* The next event; *event is the caller's to delete when this returns 0. */
static int next_event(struct reader *r, yaml_event_t *event)
{
    if (yaml_parser_parse(&r->parser, event))
        return 0;
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR)
        FAIL(ERR_MEMORY, "%s: out of memory while reading YAML", r->what);
    if (p->error == YAML_READER_ERROR)
        FAIL(ERR_CONFIG, "%s: byte %zu: expected YAML in UTF-8, found: %s", r->what, p->problem_offset,
             p->problem);
    FAIL(ERR_CONFIG, "%s:%d: expected YAML, found: %s%s%s (column %zu)", r->what, line_of(p->problem_mark),
         p->problem ? p->problem : "a mistake", p->context ? " " : "", p->context ? p->context : "",
         p->problem_mark.column + 1);
}

static const char *event_name(const yaml_event_t *e)
{
    switch (e->type) {
    case YAML_SCALAR_EVENT:
        return "a single value";
    case YAML_SEQUENCE_START_EVENT:
        return "a list";
    case YAML_MAPPING_START_EVENT:
        return "a mapping";
    default:
        return "nothing";
    }
}

/* Refuses what plain data does not need, whatever kind of node carries it. */
static int check_plain(const struct reader *r, const yaml_event_t *e)
{
    const yaml_char_t *anchor = NULL, *tag = NULL;
    int line = line_of(e->start_mark);
    if (e->type == YAML_ALIAS_EVENT)
        FAIL(ERR_CONFIG, "%s:%d: aliases are not supported, found '*%s'; write the value again", r->what,
             line, (const char *)e->data.alias.anchor);
    if (e->type == YAML_SCALAR_EVENT) {
        anchor = e->data.scalar.anchor;
        tag = e->data.scalar.tag;
    } else if (e->type == YAML_SEQUENCE_START_EVENT) {
        anchor = e->data.sequence_start.anchor;
        tag = e->data.sequence_start.tag;
    } else if (e->type == YAML_MAPPING_START_EVENT) {
        anchor = e->data.mapping_start.anchor;
        tag = e->data.mapping_start.tag;
    }
    if (anchor)
        FAIL(ERR_CONFIG, "%s:%d: anchors are not supported, found '&%s'; write the value where it is needed",
             r->what, line, (const char *)anchor);
    if (tag)
        FAIL(ERR_CONFIG, "%s:%d: tags are not supported, found '%s'; leave it out", r->what, line,
             (const char *)tag);
    return 0;
}

/* A copy of a scalar's text. */
static int scalar_text(const struct reader *r, const yaml_event_t *e, char **out)
{
    const char *text = (const char *)e->data.scalar.value;
    size_t n = e->data.scalar.length;
    if (memchr(text, 0, n))
        FAIL(ERR_CONFIG, "%s:%d: expected text, found a zero byte (\"\\0\") in it", r->what,
             line_of(e->start_mark));
    char *copy = strndup(text, n);
    if (!copy)
        FAIL(ERR_MEMORY, "%s: out of memory", r->what);
    *out = copy;
    return 0;
}

/* A new entry named prefix.key (or key alone); owned by the list from the start. */
static int add_entry(struct reader *r, const char *prefix, const char *key, int line,
                     struct config_entry **out)
{
    struct config_entries *e = &r->entries;
    if (e->n == CONFIG_YAML_MAX)
        FAIL(ERR_CONFIG, "%s:%d: expected at most %d keys, found more", r->what, line, CONFIG_YAML_MAX);
    if ((e->n & (e->n - 1)) == 0) {
        struct config_entry *grown = realloc(e->at, sizeof *grown * (e->n ? 2 * (size_t)e->n : 1));
        if (!grown)
            FAIL(ERR_MEMORY, "%s: out of memory", r->what);
        e->at = grown;
    }
    size_t n_prefix = strlen(prefix), n_key = strlen(key);
    if (n_prefix + n_key >= CONFIG_YAML_KEY_MAX)
        FAIL(ERR_CONFIG, "%s:%d: expected a key of less than %d bytes, found '%.40s...'", r->what, line,
             CONFIG_YAML_KEY_MAX, n_prefix ? prefix : key);
    char *full = malloc(n_prefix + n_key + 2);
    if (!full)
        FAIL(ERR_MEMORY, "%s: out of memory", r->what);
    memcpy(full, prefix, n_prefix);
    if (n_prefix)
        full[n_prefix++] = '.';
    memcpy(full + n_prefix, key, n_key + 1);
    e->at[e->n] = (struct config_entry){.key = full, .line = line};
    *out = &e->at[e->n++];
    return 0;
}

static int add_item(struct reader *r, struct config_entry *e, const yaml_event_t *scalar)
{
    if (e->n == CONFIG_YAML_MAX)
        FAIL(ERR_CONFIG, "%s:%d: '%s': expected a list of at most %d items, found more", r->what,
             line_of(scalar->start_mark), e->key, CONFIG_YAML_MAX);
    if ((e->n & (e->n - 1)) == 0) {
        char **grown = realloc(e->items, sizeof *grown * (e->n ? 2 * (size_t)e->n : 1));
        if (!grown)
            FAIL(ERR_MEMORY, "%s: out of memory", r->what);
        e->items = grown;
    }
    TRY(scalar_text(r, scalar, &e->items[e->n]));
    e->n++;
    return 0;
}

static int fail_item(const struct reader *r, const yaml_event_t *event, const char *key, int maps)
{
    FAIL(ERR_CONFIG, "%s:%d: '%s': expected a list of %s, found %s in it", r->what,
         line_of(event->start_mark), key, maps ? "mappings" : "single values", event_name(event));
}

static int read_map(struct reader *r, const char *prefix, int depth);

/* A mapping in a list: an entry, and those of its members. */
static int read_item_map(struct reader *r, const char *list, int number, int line, int depth)
{
    char index[16], *path = NULL;
    struct config_entry *e;
    snprintf(index, sizeof index, "%d", number);
    TRY(add_entry(r, list, index, line, &e));
    e->kind = CONFIG_ENTRY_MAP;
    path = strdup(e->key);
    if (!path)
        FAIL(ERR_MEMORY, "%s: out of memory", r->what);
    int rc = read_map(r, path, depth + 1);
    free(path);
    return rc;
}

/* The items after a sequence's start, up to and with its end: all texts, or all mappings. `at` numbers the
 * list's entry, because entries move. */
static int read_list(struct reader *r, int at, int depth)
{
    char *key = strdup(r->entries.at[at].key);
    int rc = key ? 0 : ERR_SET(ERR_MEMORY, "%s: out of memory", r->what);
    r->entries.at[at].kind = CONFIG_ENTRY_LIST;
    for (int done = 0, maps = 0; !rc && !done;) {
        yaml_event_t event;
        rc = next_event(r, &event);
        if (rc)
            break;
        struct config_entry *e = &r->entries.at[at];
        rc = check_plain(r, &event);
        if (!rc && event.type == YAML_SEQUENCE_END_EVENT)
            done = 1;
        else if (!rc && event.type == YAML_SCALAR_EVENT && maps == 0)
            rc = add_item(r, e, &event);
        else if (!rc && event.type == YAML_MAPPING_START_EVENT && e->n == 0) {
            e->kind = CONFIG_ENTRY_MAPS;
            rc = read_item_map(r, key, maps++, line_of(event.start_mark), depth);
        } else if (!rc)
            rc = fail_item(r, &event, key, maps);
        yaml_event_delete(&event);
    }
    free(key);
    return rc;
}

/* The value of a key. The key text is copied first: entries move when the list grows. */
static int read_value(struct reader *r, const char *prefix, const char *key, int line, int depth)
{
    int rc;
    yaml_event_t event;
    struct config_entry *e;
    char *path = NULL;
    TRY(next_event(r, &event));
    rc = check_plain(r, &event);
    if (rc)
        goto out;
    rc = add_entry(r, prefix, key, line, &e);
    if (rc)
        goto out;
    if (event.type == YAML_SCALAR_EVENT) {
        e->kind = CONFIG_ENTRY_TEXT;
        rc = add_item(r, e, &event);
    } else if (event.type == YAML_SEQUENCE_START_EVENT) {
        rc = read_list(r, r->entries.n - 1, depth);
    } else {
        e->kind = CONFIG_ENTRY_MAP;
        path = strdup(e->key);
        rc = path ? read_map(r, path, depth + 1) : ERR_SET(ERR_MEMORY, "%s: out of memory", r->what);
    }
out:
    free(path);
    yaml_event_delete(&event);
    return rc;
}

/* The members after a mapping's start, up to and with its end. */
static int read_map(struct reader *r, const char *prefix, int depth)
{
    int rc = 0, done = 0;
    while (!rc && !done) {
        yaml_event_t event;
        char *key = NULL;
        TRY(next_event(r, &event));
        int line = line_of(event.start_mark);
        rc = check_plain(r, &event);
        if (rc) {
            yaml_event_delete(&event);
            break;
        }
        if (event.type == YAML_MAPPING_END_EVENT)
            done = 1;
        else if (event.type != YAML_SCALAR_EVENT)
            rc = ERR_SET(ERR_CONFIG, "%s:%d: expected a key, found %s", r->what, line, event_name(&event));
        else if (depth > CONFIG_YAML_DEPTH)
            rc = ERR_SET(ERR_CONFIG, "%s:%d: expected mappings nested at most %d deep, found more", r->what,
                         line, CONFIG_YAML_DEPTH);
        else
            rc = scalar_text(r, &event, &key);
        yaml_event_delete(&event);
        if (key)
            rc = read_value(r, prefix, key, line, depth);
        free(key);
    }
    return rc;
}

/* What the document's first node starts with; a YAML_STREAM_END_EVENT when there is none. */
static int read_root(struct reader *r, yaml_event_t *event)
{
    for (;;) {
        TRY(next_event(r, event));
        if (event->type != YAML_STREAM_START_EVENT && event->type != YAML_DOCUMENT_START_EVENT)
            break;
        yaml_event_delete(event);
    }
    int rc = check_plain(r, event);
    if (rc)
        yaml_event_delete(event);
    return rc;
}

/* Nothing may follow the first document. */
static int read_end(struct reader *r)
{
    for (;;) {
        yaml_event_t event;
        TRY(next_event(r, &event));
        yaml_event_type_t type = event.type;
        int line = line_of(event.start_mark);
        yaml_event_delete(&event);
        if (type == YAML_STREAM_END_EVENT)
            return 0;
        if (type != YAML_DOCUMENT_END_EVENT)
            FAIL(ERR_CONFIG, "%s:%d: expected one YAML document, found a second one; use one file for each",
                 r->what, line);
    }
}

/* list_key NULL: a mapping, else a list of that name. */
static int read_document(struct reader *r, const char *list_key)
{
    yaml_event_t event;
    struct config_entry *e;
    TRY(read_root(r, &event));
    yaml_event_type_t type = event.type;
    int line = line_of(event.start_mark);
    const char *found = event_name(&event);
    int empty = type == YAML_SCALAR_EVENT && event.data.scalar.length == 0;
    yaml_event_delete(&event);
    if (type == YAML_STREAM_END_EVENT && !list_key)
        return 0;
    if (list_key && type == YAML_SEQUENCE_START_EVENT) {
        TRY(add_entry(r, "", list_key, line, &e));
        TRY(read_list(r, r->entries.n - 1, 1));
    } else if (!list_key && type == YAML_MAPPING_START_EVENT) {
        TRY(read_map(r, "", 1));
    } else if (list_key || !empty) {
        FAIL(ERR_CONFIG, "%s:%d: expected %s, found %s", r->what, line,
             list_key ? "a list such as [a, b]" : "a mapping of keys to values, such as 'name: quickstart'",
             found);
    }
    return read_end(r);
}

static int read_text(struct config_entries *out, const char *list_key, const char *yaml, size_t n,
                     const char *what)
{
    struct reader r = {.what = what};
    if (!yaml_parser_initialize(&r.parser))
        FAIL(ERR_MEMORY, "%s: out of memory while reading YAML", what);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)yaml, n);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    int rc = read_document(&r, list_key);
    yaml_parser_delete(&r.parser);
    if (rc)
        config_entries_deinit(&r.entries);
    else
        *out = r.entries;
    return rc;
}

int config_yaml_read(struct config_entries *out, const char *yaml, size_t n, const char *what)
{
    return read_text(out, NULL, yaml, n, what);
}

int config_yaml_list(struct config_entries *out, const char *key, const char *yaml, const char *what)
{
    return read_text(out, key, yaml, strlen(yaml), what);
}

void config_entries_deinit(struct config_entries *e)
{
    for (int i = 0; i < e->n; i++) {
        for (int j = 0; j < e->at[i].n; j++)
            free(e->at[i].items[j]);
        free(e->at[i].items);
        free(e->at[i].key);
    }
    free(e->at);
    *e = (struct config_entries){0};
}
