/* config: defaults, then entries of the file, then --set, all through the table. A cell of a sweep is a copy
 * with a few values set by the very same route, so that a swept value is checked like any other. */
#include "experiments/config.h"
#include "drafts/drafts.h"
#include "engine/err.h"
#include "engine/utf8.h"
#include "experiments/config_option.h"
#include "experiments/config_yaml.h"
#include "experiments/file.h"
#include <stdlib.h>
#include <string.h>

enum { FILE_MAX = 1 << 20, WHERE_MAX = 512 };
static const char sweep_prefix[] = "sweep.";
enum { SWEEP_PREFIX = sizeof sweep_prefix - 1 };

/* "sweep.draft.strategy" */
static int is_sweep(const char *key)
{
    return !strncmp(key, sweep_prefix, SWEEP_PREFIX);
}

/* Drops the sweep of a key; the ones after it move up. */
static void sweep_remove(struct config *c, const char *key)
{
    int i = 0;
    while (i < c->sweep.n && strcmp(c->sweep.key[i], key) != 0)
        i++;
    if (i == c->sweep.n)
        return;
    free(c->sweep.key[i]);
    config_list_free(&c->sweep.values[i]);
    for (c->sweep.n--; i < c->sweep.n; i++) {
        c->sweep.key[i] = c->sweep.key[i + 1];
        c->sweep.values[i] = c->sweep.values[i + 1];
    }
}

void config_deinit(struct config *c)
{
    struct config_option o;
    for (int i = 0; config_option_at(i, &o); i++)
        config_option_free(c, &o);
    for (int i = 0; i < c->sweep.n; i++) {
        free(c->sweep.key[i]);
        config_list_free(&c->sweep.values[i]);
    }
    *c = (struct config){0};
}

/* On failure too, c is fit for config_deinit. */
static int set_defaults(struct config *c)
{
    struct config_option o;
    *c = (struct config){0};
    for (int i = 0; config_option_at(i, &o); i++) {
        char *text = o.def;
        TRY(config_option_set(c, &o, &text, o.type != CONFIG_LIST, "default"));
    }
    return 0;
}

static int fail_unknown(const char *key, const char *section, const char *where)
{
    char hint[160];
    config_suggest(key, hint, sizeof hint);
    FAIL(ERR_CONFIG, "%s: unknown key '%s'%s%s", where, key, section, hint);
}

/* A key that is not an option: a section is fine as a mapping, anything else is a mistake. */
static int check_section(const struct config_entry *e, const char *where)
{
    int empty = e->kind == CONFIG_ENTRY_TEXT && !e->items[0][0];
    if (strcmp(e->key, "sweep") != 0 && !config_is_section(e->key))
        return fail_unknown(e->key, "", where);
    if (e->kind == CONFIG_ENTRY_MAP || empty)
        return 0;
    FAIL(ERR_CONFIG, "%s: %s: expected a mapping of keys to values, found %s", where, e->key,
         e->kind == CONFIG_ENTRY_LIST ? "a list" : "a single value");
}

static int fail_map(const struct config_option *o, const char *where)
{
    char expected[256];
    config_option_expected(o, expected, sizeof expected);
    FAIL(ERR_CONFIG, "%s: %s: expected %s, found a mapping", where, o->key, expected);
}

/* Every value must be one that the option takes; a scratch configuration takes them. */
static int check_values(const struct config_option *o, const struct config_entry *e, const char *where)
{
    int rc = 0;
    struct config scratch = {0};
    for (int i = 0; i < e->n && !rc; i++) {
        rc = config_option_set(&scratch, o, &e->items[i], 1, where);
        for (int j = 0; j < i && !rc; j++)
            if (!strcmp(e->items[i], e->items[j]))
                rc = ERR_SET(ERR_CONFIG, "%s: sweep of %s: expected each value once, found '%s' twice", where,
                             o->key, e->items[i]);
    }
    config_option_free(&scratch, o);
    return rc;
}

/* sweep.KEY: values. */
static int apply_sweep(struct config *c, const struct config_entry *e, const char *where)
{
    const char *key = e->key + SWEEP_PREFIX;
    struct config_option o;
    struct config_list values;
    if (!config_option_find(key, &o)) {
        if (config_is_section(key) && e->kind == CONFIG_ENTRY_MAP)
            return 0;
        return fail_unknown(key, " in sweep", where);
    }
    if (e->kind == CONFIG_ENTRY_MAP)
        FAIL(ERR_CONFIG, "%s: sweep of %s: expected a list of values, found a mapping", where, key);
    TRY(check_values(&o, e, where));
    TRY(config_list_copy(&values, e->items, e->n));
    sweep_remove(c, key);
    if (values.n == 0)
        return 0;
    char *owned = c->sweep.n < CONFIG_MAX_SWEEP ? strdup(key) : NULL;
    if (!owned) {
        config_list_free(&values);
        if (c->sweep.n == CONFIG_MAX_SWEEP)
            FAIL(ERR_CONFIG, "%s: expected a sweep of at most %d keys, found more", where, CONFIG_MAX_SWEEP);
        FAIL(ERR_MEMORY, "%s: out of memory", where);
    }
    c->sweep.key[c->sweep.n] = owned;
    c->sweep.values[c->sweep.n++] = values;
    return 0;
}

static int apply_entry(struct config *c, const struct config_entry *e, const char *where)
{
    struct config_option o;
    if (is_sweep(e->key))
        return apply_sweep(c, e, where);
    if (!config_option_find(e->key, &o))
        return check_section(e, where);
    if (e->kind == CONFIG_ENTRY_MAP)
        return fail_map(&o, where);
    int none = o.type == CONFIG_LIST && e->kind == CONFIG_ENTRY_TEXT && !e->items[0][0];
    return config_option_set(c, &o, e->items, none ? 0 : e->n, where);
}

static int compare_entries(const void *a, const void *b)
{
    const struct config_entry *const *x = a, *const *y = b;
    int order = strcmp((*x)->key, (*y)->key);
    return order ? order : ((*x)->line > (*y)->line) - ((*x)->line < (*y)->line);
}

static int check_duplicates(const struct config_entries *e, const char *what)
{
    int rc = 0;
    const struct config_entry **sorted = calloc((size_t)e->n + 1, sizeof *sorted);
    if (!sorted)
        FAIL(ERR_MEMORY, "%s: out of memory", what);
    for (int i = 0; i < e->n; i++)
        sorted[i] = &e->at[i];
    qsort(sorted, (size_t)e->n, sizeof *sorted, compare_entries);
    for (int i = 1; i < e->n && !rc; i++)
        if (!strcmp(sorted[i - 1]->key, sorted[i]->key))
            rc = ERR_SET(ERR_CONFIG, "%s:%d: duplicate key '%s'; it stands in line %d already", what,
                         sorted[i]->line, sorted[i]->key, sorted[i - 1]->line);
    free(sorted);
    return rc;
}

static int apply_yaml(struct config *c, const char *yaml, size_t n, const char *what)
{
    struct config_entries entries;
    TRY(config_yaml_read(&entries, yaml, n, what));
    int rc = check_duplicates(&entries, what);
    for (int i = 0; i < entries.n && !rc; i++) {
        const struct config_entry *e = &entries.at[i];
        char where[WHERE_MAX];
        snprintf(where, sizeof where, "%s:%d", what, e->line);
        if (is_sweep(e->key) && e->kind != CONFIG_ENTRY_MAP && e->n == 0)
            rc = ERR_SET(ERR_CONFIG, "%s: %s: expected at least one value, found an empty list", where,
                         e->key);
        else
            rc = apply_entry(c, e, where);
    }
    config_entries_deinit(&entries);
    return rc;
}

/* 1 when the option, or a sweep, takes lists; its --set value is then read as YAML if it looks like a list.
 */
static int takes_list(const char *key)
{
    struct config_option o;
    return is_sweep(key) || (config_option_find(key, &o) && o.type == CONFIG_LIST);
}

/* One "key=value". A value that is set replaces a sweep of the key: the later word wins. */
static int apply_set(struct config *c, const char *set)
{
    int rc;
    const char *eq = strchr(set, '=');
    char where[WHERE_MAX];
    struct config_entries entries = {0};
    snprintf(where, sizeof where, "--set '%.200s'", set);
    if (!eq || eq == set)
        FAIL(ERR_CONFIG, "%s: expected key=value, such as draft.max_depth=3", where);
    if (utf8_valid(set, strlen(set)) != strlen(set))
        FAIL(ERR_CONFIG, "--set '%.*s': expected UTF-8, found byte 0x%02x", (int)(eq - set), set,
             (unsigned char)set[utf8_valid(set, strlen(set))]);
    char *key = strndup(set, (size_t)(eq - set)), *value = strdup(eq + 1);
    if (!key || !value) {
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory", where);
        goto out;
    }
    struct config_entry single = {.key = key, .items = &value, .n = 1, .kind = CONFIG_ENTRY_TEXT};
    const struct config_entry *e = &single;
    if (takes_list(key) && value[strspn(value, " ")] == '[') {
        rc = config_yaml_list(&entries, key, value, where);
        if (rc)
            goto out;
        e = &entries.at[0];
    }
    if (!strcmp(key, "sweep") || config_is_section(key))
        rc = ERR_SET(ERR_CONFIG, "%s: expected the key of an option, found the section '%s'", where, key);
    else
        rc = apply_entry(c, e, where);
    if (!rc && !is_sweep(key))
        sweep_remove(c, key);
out:
    config_entries_deinit(&entries);
    free(key);
    free(value);
    return rc;
}

static int check_cells(const struct config *c, const char *what)
{
    long cells = 1;
    for (int i = 0; i < c->sweep.n; i++) {
        cells *= c->sweep.values[i].n;
        if (cells > CONFIG_MAX_CELLS)
            FAIL(ERR_CONFIG, "%s: sweep: expected at most %d combinations, found at least %ld", what,
                 CONFIG_MAX_CELLS, cells);
    }
    return 0;
}

int config_parse(struct config *c, const char *yaml, size_t n, const char *what, const char *const *sets,
                 int n_sets)
{
    struct config built;
    int rc = set_defaults(&built);
    if (!rc)
        rc = apply_yaml(&built, yaml, n, what);
    for (int i = 0; i < n_sets && !rc; i++)
        rc = apply_set(&built, sets[i]);
    if (!rc)
        rc = check_cells(&built, what);
    if (rc)
        config_deinit(&built);
    else
        *c = built;
    return rc;
}

int config_load(struct config *c, const char *path, const char *const *sets, int n_sets)
{
    char *yaml;
    size_t n;
    /* A configuration that cannot be read is a mistake of usage: the code says so, whatever the system's
     * reason was. */
    int rc = file_read(path, FILE_MAX, &yaml, &n);
    if (rc)
        return rc == ERR_MEMORY ? rc : ERR_CONFIG;
    rc = config_parse(c, yaml, n, path, sets, n_sets);
    free(yaml);
    return rc;
}

int config_cells(const struct config *c)
{
    int cells = 1;
    for (int i = 0; i < c->sweep.n; i++)
        cells *= c->sweep.values[i].n;
    return cells;
}

/* What one option alone cannot know. */
static int check_whole(const struct config *c)
{
    const struct draft_ops *draft = drafts_find(c->draft.strategy);
    int greedy = !strcmp(c->sampling.rule, "greedy"), relaxed = !strcmp(c->sampling.rule, "relaxed");
    if (!c->model.path[0])
        FAIL(ERR_CONFIG,
             "model.path: expected the directory of a model, found nothing; `specbed list models` "
             "shows those below ./models");
    if ((greedy || relaxed) && c->sampling.temperature > 0)
        FAIL(ERR_CONFIG,
             "sampling.temperature: rule %s takes the most probable token and reads no temperature; expected "
             "0, "
             "found %g; set it to 0, or sampling.rule to coupled or rejection",
             c->sampling.rule, c->sampling.temperature);
    if (draft && (draft->needs & DRAFT_REFERENCE) && !c->draft.reference[0])
        FAIL(ERR_CONFIG,
             "draft.reference: strategy %s replays earlier outputs: expected the result file of a run over "
             "the same "
             "prompts, found nothing",
             c->draft.strategy);
    return 0;
}

/* Everything but the sweep. */
static int copy_options(struct config *to, const struct config *from)
{
    struct config_option o;
    *to = (struct config){0};
    for (int i = 0; config_option_at(i, &o); i++)
        TRY(config_option_copy(to, from, &o));
    return 0;
}

/* The swept values of cell i into out, and their names into label. */
static int apply_cell(const struct config *c, int i, struct config *out, FILE *label)
{
    int rest = config_cells(c);
    for (int k = 0; k < c->sweep.n; k++) {
        struct config_option o;
        const struct config_list *values = &c->sweep.values[k];
        rest /= values->n;
        char *value = values->items[i / rest % values->n];
        if (!config_option_find(c->sweep.key[k], &o))
            FAIL(ERR_CONFIG, "sweep: unknown key '%s'", c->sweep.key[k]);
        TRY(config_option_set(out, &o, &value, 1, "sweep"));
        fprintf(label, "%s%s", k ? ", " : "", value);
    }
    if (c->sweep.n == 0)
        fputs(c->draft.strategy, label);
    return 0;
}

int config_cell(const struct config *c, int i, struct config *out, char **label)
{
    struct config cell = {0};
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    int rc = f ? copy_options(&cell, c) : ERR_SET(ERR_MEMORY, "out of memory for cell %d of the sweep", i);
    if (!rc)
        rc = apply_cell(c, i, &cell, f);
    if (f && fclose(f) && !rc)
        rc = ERR_SET(ERR_MEMORY, "out of memory for cell %d of the sweep", i);
    if (!rc) {
        rc = check_whole(&cell);
        if (rc && c->sweep.n)
            err_context("cell '%s' of the sweep", text);
    }
    if (rc) {
        config_deinit(&cell);
        free(text);
        return rc;
    }
    *out = cell;
    *label = text;
    return 0;
}

/* "model" of "model.path"; how many bytes. */
static size_t section_length(const char *key)
{
    const char *dot = strchr(key, '.');
    return dot ? (size_t)(dot - key) : 0;
}

char *config_dump(const struct config *c)
{
    char *text = NULL;
    size_t n;
    char last[CONFIG_KEY_MAX] = "";
    struct config_option o;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return NULL;
    for (int i = 0; config_option_at(i, &o); i++) {
        size_t section = section_length(o.key);
        if (section && (strncmp(last, o.key, section) != 0 || last[section] != '.'))
            fprintf(f, "%.*s:\n", (int)section, o.key);
        fprintf(f, "%s%s: ", section ? "  " : "", o.key + (section ? section + 1 : 0));
        config_option_print(c, &o, f);
        fputc('\n', f);
        memcpy(last, o.key, sizeof last);
    }
    fputs(c->sweep.n ? "sweep:\n" : "", f);
    for (int i = 0; i < c->sweep.n; i++) {
        fprintf(f, "  %s: ", c->sweep.key[i]);
        config_print_list(&c->sweep.values[i], f);
        fputc('\n', f);
    }
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}
