/* config: defaults, then entries of the file, then --set, all through the table. */
#include "experiments/config.h"
#include "engine/err.h"
#include "engine/utf8.h"
#include "experiments/config_cells.h"
#include "experiments/config_option.h"
#include "experiments/config_yaml.h"
#include "experiments/file.h"
#include <stdlib.h>
#include <string.h>

enum { FILE_MAX = 1 << 20, WHERE_MAX = 512 };

void config_deinit(struct config *c)
{
    struct config_option o;
    for (int i = 0; config_option_at(i, &o); i++)
        config_option_free(c, &o);
    config_cells_free(c);
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

/* A key that is not an option: a section is fine as a mapping, anything else is a mistake. */
static int check_section(const struct config_entry *e, const char *where)
{
    int empty = e->kind == CONFIG_ENTRY_TEXT && !e->items[0][0];
    if (strcmp(e->key, "sweep") != 0 && !config_is_section(e->key))
        return config_fail_unknown(e->key, "", where);
    if (e->kind == CONFIG_ENTRY_MAP || empty)
        return 0;
    FAIL(ERR_CONFIG, "%s: %s: expected a mapping of keys to values, found %s", where, e->key,
         e->kind == CONFIG_ENTRY_TEXT ? "a single value" : "a list");
}

static int fail_map(const struct config_option *o, const char *where)
{
    char expected[256];
    config_option_expected(o, expected, sizeof expected);
    FAIL(ERR_CONFIG, "%s: %s: expected %s, found a mapping", where, o->key, expected);
}

static int apply_entry(struct config *c, const struct config_entry *e, const char *where)
{
    struct config_option o;
    if (config_is_sweep(e->key))
        return config_sweep_apply(c, e, where);
    if (config_is_arms(e->key))
        return config_arms_apply(c, e, where);
    if (!config_option_find(e->key, &o))
        return check_section(e, where);
    if (e->kind == CONFIG_ENTRY_MAP)
        return fail_map(&o, where);
    if (e->kind == CONFIG_ENTRY_MAPS)
        FAIL(ERR_CONFIG, "%s: '%s': expected a list of single values, found a mapping in it", where, e->key);
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
        if (config_is_sweep(e->key) && e->kind == CONFIG_ENTRY_LIST && e->n == 0)
            rc = ERR_SET(ERR_CONFIG, "%s: %s: expected at least one value, found an empty list", where,
                         e->key);
        else
            rc = apply_entry(c, e, where);
    }
    config_entries_deinit(&entries);
    return rc;
}

/* 1 when the option takes lists, as sweep and arms do; its --set value is then read as YAML if it looks like
 * one.
 */
static int takes_list(const char *key)
{
    struct config_option o;
    return config_is_sweep(key) || config_is_arms(key) ||
           (config_option_find(key, &o) && o.type == CONFIG_LIST);
}

/* A value that is set replaces a sweep of the key: the later word wins. What an arm sets is that arm's
 * meaning, and stays. */
static int settle_cells(struct config *c, const char *key, const char *where)
{
    if (config_arms_set(c, key))
        FAIL(ERR_CONFIG, "%s: the arms set %s themselves; replace or drop them first: --set arms=[]", where,
             key);
    config_sweep_remove(c, key);
    return 0;
}

/* One "key=value". */
static int apply_set(struct config *c, const char *set)
{
    int rc = 0;
    const char *eq = strchr(set, '=');
    char where[WHERE_MAX];
    struct config_entries list = {0};
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
    struct config_entries entries = {&single, 1};
    if (takes_list(key) && value[strspn(value, " ")] == '[') {
        rc = config_yaml_list(&list, key, value, where);
        if (rc)
            goto out;
        entries = list;
    }
    if (!strcmp(key, "sweep") || config_is_section(key))
        rc = ERR_SET(ERR_CONFIG, "%s: expected the key of an option, found the section '%s'", where, key);
    for (int i = 0; i < entries.n && !rc; i++)
        rc = apply_entry(c, &entries.at[i], where);
    if (!rc && !config_is_sweep(key))
        rc = settle_cells(c, key, where);
out:
    config_entries_deinit(&list);
    free(key);
    free(value);
    return rc;
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
        rc = config_cells_check(&built, what);
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
    config_cells_print(c, f);
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}
