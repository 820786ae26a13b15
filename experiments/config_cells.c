/* config_cells: a cell is a copy of the file's options with a few values set by the very same route, so that
 * a swept value is checked like any other. */
#include "experiments/config_cells.h"
#include "engine/err.h"
#include "experiments/config_option.h"
#include "experiments/config_whole.h"
#include <stdlib.h>
#include <string.h>

static const char sweep_prefix[] = "sweep.", arms_key[] = "arms", label_key[] = "label";
enum { SWEEP_PREFIX = sizeof sweep_prefix - 1, ARMS_KEY = sizeof arms_key - 1 };

int config_is_sweep(const char *key)
{
    return !strncmp(key, sweep_prefix, SWEEP_PREFIX);
}

int config_is_arms(const char *key)
{
    return !strncmp(key, arms_key, ARMS_KEY) && (!key[ARMS_KEY] || key[ARMS_KEY] == '.');
}

/* The sweeps of later keys move up. */
void config_sweep_remove(struct config *c, const char *key)
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

static void arms_clear(struct config *c)
{
    for (int i = 0; i < c->arms.n; i++) {
        free(c->arms.at[i].label);
        for (int k = 0; k < c->arms.at[i].n; k++) {
            free(c->arms.at[i].key[k]);
            free(c->arms.at[i].value[k]);
        }
    }
    free(c->arms.at);
    c->arms.at = NULL;
    c->arms.n = 0;
}

void config_cells_free(struct config *c)
{
    for (int i = 0; i < c->sweep.n; i++) {
        free(c->sweep.key[i]);
        config_list_free(&c->sweep.values[i]);
    }
    c->sweep.n = 0;
    arms_clear(c);
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

int config_sweep_apply(struct config *c, const struct config_entry *e, const char *where)
{
    const char *key = e->key + SWEEP_PREFIX;
    struct config_option o;
    struct config_list values;
    if (!config_option_find(key, &o)) {
        if (config_is_section(key) && e->kind == CONFIG_ENTRY_MAP)
            return 0;
        return config_fail_unknown(key, " in sweep", where);
    }
    if (e->kind == CONFIG_ENTRY_MAP || e->kind == CONFIG_ENTRY_MAPS)
        FAIL(ERR_CONFIG, "%s: sweep of %s: expected a list of values, found a %s", where, key,
             e->kind == CONFIG_ENTRY_MAP ? "mapping" : "list of mappings");
    TRY(check_values(&o, e, where));
    TRY(config_list_copy(&values, e->items, e->n));
    config_sweep_remove(c, key);
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

static int begin_arms(struct config *c, const struct config_entry *e, const char *where)
{
    int none = e->kind != CONFIG_ENTRY_MAP && (e->n == 0 || !e->items[0][0]);
    if (e->kind != CONFIG_ENTRY_MAPS && !none)
        FAIL(ERR_CONFIG,
             "%s: arms: expected a list of mappings, such as [{draft.max_depth: 3}, {draft.max_depth: 5}], "
             "found %s",
             where,
             e->kind == CONFIG_ENTRY_MAP    ? "a mapping"
             : e->kind == CONFIG_ENTRY_LIST ? "a list of values"
                                            : "a single value");
    arms_clear(c);
    return 0;
}

static int begin_arm(struct config *c, const char *where)
{
    if (c->arms.n == CONFIG_MAX_ARMS)
        FAIL(ERR_CONFIG, "%s: expected at most %d arms, found more", where, CONFIG_MAX_ARMS);
    struct config_arm *grown = realloc(c->arms.at, (size_t)(c->arms.n + 1) * sizeof *grown);
    if (!grown)
        FAIL(ERR_MEMORY, "%s: out of memory for %d arms", where, c->arms.n + 1);
    c->arms.at = grown;
    c->arms.at[c->arms.n++] = (struct config_arm){0};
    return 0;
}

static int check_arm_value(const struct config_option *o, const struct config_entry *e, const char *where)
{
    struct config scratch = {0};
    if (e->kind != CONFIG_ENTRY_TEXT)
        FAIL(ERR_CONFIG, "%s: %s in an arm: expected a single value, found a %s", where, o->key,
             e->kind == CONFIG_ENTRY_MAP ? "mapping" : "list");
    int rc = config_option_set(&scratch, o, e->items, 1, where);
    config_option_free(&scratch, o);
    return rc;
}

static int set_label(struct config_arm *arm, const struct config_entry *e, const char *where)
{
    if (e->kind != CONFIG_ENTRY_TEXT || !e->items[0][0])
        FAIL(ERR_CONFIG, "%s: label of an arm: expected text, found %s", where,
             e->kind == CONFIG_ENTRY_TEXT  ? "nothing"
             : e->kind == CONFIG_ENTRY_MAP ? "a mapping"
                                           : "a list");
    char *label = strdup(e->items[0]);
    if (!label)
        FAIL(ERR_MEMORY, "%s: out of memory", where);
    free(arm->label);
    arm->label = label;
    return 0;
}

static int add_to_arm(struct config *c, const char *key, const struct config_entry *e, const char *where)
{
    struct config_arm *arm = &c->arms.at[c->arms.n - 1];
    struct config_option o;
    if (!strcmp(key, label_key))
        return set_label(arm, e, where);
    if (!config_option_find(key, &o)) {
        if (config_is_section(key) && e->kind == CONFIG_ENTRY_MAP)
            return 0;
        return config_fail_unknown(key, " in an arm", where);
    }
    TRY(check_arm_value(&o, e, where));
    if (arm->n == CONFIG_MAX_SWEEP)
        FAIL(ERR_CONFIG, "%s: expected an arm of at most %d keys, found more", where, CONFIG_MAX_SWEEP);
    for (int k = 0; k < arm->n; k++)
        if (!strcmp(arm->key[k], key))
            FAIL(ERR_CONFIG, "%s: duplicate key '%s' in an arm", where, key);
    char *owned = strdup(key), *value = strdup(e->items[0]);
    if (!owned || !value) {
        free(owned);
        free(value);
        FAIL(ERR_MEMORY, "%s: out of memory", where);
    }
    arm->key[arm->n] = owned;
    arm->value[arm->n++] = value;
    return 0;
}

/* Entries come in the order of the list: "arms.2" begins the third arm, and those below it belong to it. */
int config_arms_apply(struct config *c, const struct config_entry *e, const char *where)
{
    if (!e->key[ARMS_KEY])
        return begin_arms(c, e, where);
    char *end;
    const char *number = e->key + ARMS_KEY + 1;
    long i = strtol(number, &end, 10);
    if (*number < '0' || *number > '9' || (*end && *end != '.'))
        return config_fail_unknown(e->key, "", where);
    if (!*end && i == c->arms.n && e->kind == CONFIG_ENTRY_MAP)
        return begin_arm(c, where);
    if (!*end || i != c->arms.n - 1)
        return config_fail_unknown(e->key, "", where);
    return add_to_arm(c, end + 1, e, where);
}

int config_arms_set(const struct config *c, const char *key)
{
    for (int i = 0; i < c->arms.n; i++)
        for (int k = 0; k < c->arms.at[i].n; k++)
            if (!strcmp(c->arms.at[i].key[k], key))
                return 1;
    return 0;
}

static const char *value_in_arm(const struct config_arm *a, const char *key)
{
    for (int k = 0; k < a->n; k++)
        if (!strcmp(a->key[k], key))
            return a->value[k];
    return NULL;
}

static int same_arm(const struct config_arm *a, const struct config_arm *b)
{
    int same = a->n == b->n;
    for (int k = 0; k < a->n && same; k++) {
        const char *other = value_in_arm(b, a->key[k]);
        same = other && !strcmp(a->value[k], other);
    }
    return same;
}

static int same_label(const struct config_arm *a, const struct config_arm *b)
{
    return a->label && b->label && !strcmp(a->label, b->label);
}

static int check_arms(const struct config *c, const char *what)
{
    for (int i = 0; i < c->arms.n; i++) {
        if (c->arms.at[i].n == 0)
            FAIL(ERR_CONFIG, "%s: arms: expected at least one key in each, found none in arm %d", what,
                 i + 1);
        for (int k = 0; k < i; k++) {
            if (same_arm(&c->arms.at[i], &c->arms.at[k]))
                FAIL(ERR_CONFIG, "%s: arms: expected each arm once, found arms %d and %d to be the same",
                     what, k + 1, i + 1);
            if (same_label(&c->arms.at[i], &c->arms.at[k]))
                FAIL(ERR_CONFIG, "%s: arms: expected each label once, found '%s' twice", what,
                     c->arms.at[i].label);
        }
    }
    return 0;
}

int config_cells_check(const struct config *c, const char *what)
{
    long cells = 1;
    if (c->arms.n && c->sweep.n)
        FAIL(ERR_CONFIG,
             "%s: expected a sweep or arms, found both (a sweep of %s); write out the combinations as arms, "
             "or "
             "drop the arms with --set arms=[]",
             what, c->sweep.key[0]);
    for (int i = 0; i < c->sweep.n; i++) {
        cells *= c->sweep.values[i].n;
        if (cells > CONFIG_MAX_CELLS)
            FAIL(ERR_CONFIG, "%s: sweep: expected at most %d combinations, found at least %ld", what,
                 CONFIG_MAX_CELLS, cells);
    }
    return check_arms(c, what);
}

void config_cells_print(const struct config *c, FILE *out)
{
    fputs(c->sweep.n ? "sweep:\n" : "", out);
    for (int i = 0; i < c->sweep.n; i++) {
        fprintf(out, "  %s: ", c->sweep.key[i]);
        config_print_list(&c->sweep.values[i], out);
        fputc('\n', out);
    }
    fputs(c->arms.n ? "arms:\n" : "", out);
    for (int i = 0; i < c->arms.n; i++) {
        const struct config_arm *a = &c->arms.at[i];
        fputs("  - {", out);
        if (a->label) {
            fprintf(out, "%s: ", label_key);
            config_print_text(a->label, out);
        }
        for (int k = 0; k < a->n; k++) {
            fprintf(out, "%s%s: ", k || a->label ? ", " : "", a->key[k]);
            config_print_text(a->value[k], out);
        }
        fputs("}\n", out);
    }
}

int config_cells(const struct config *c)
{
    int cells = 1;
    if (c->arms.n)
        return c->arms.n;
    for (int i = 0; i < c->sweep.n; i++)
        cells *= c->sweep.values[i].n;
    return cells;
}

/* Everything but sweep and arms. */
static int copy_options(struct config *to, const struct config *from)
{
    struct config_option o;
    *to = (struct config){0};
    for (int i = 0; config_option_at(i, &o); i++)
        TRY(config_option_copy(to, from, &o));
    return 0;
}

static int set_value(struct config *out, const char *key, char *value, const char *where)
{
    struct config_option o;
    if (!config_option_find(key, &o))
        FAIL(ERR_CONFIG, "%s: unknown key '%s'", where, key);
    return config_option_set(out, &o, &value, 1, where);
}

/* Without a label "kv fp8": in an arm any key may stand, so that a value alone would say little. */
static int apply_arm(const struct config_arm *arm, struct config *out, FILE *label)
{
    for (int k = 0; k < arm->n; k++) {
        const char *dot = strrchr(arm->key[k], '.');
        TRY(set_value(out, arm->key[k], arm->value[k], "arms"));
        if (!arm->label)
            fprintf(label, "%s%s %s", k ? ", " : "", dot ? dot + 1 : arm->key[k], arm->value[k]);
    }
    if (arm->label)
        fputs(arm->label, label);
    return 0;
}

/* The values of cell i into out, and what tells it from others into label. */
static int apply_cell(const struct config *c, int i, struct config *out, FILE *label)
{
    int rest = config_cells(c);
    if (c->arms.n)
        return apply_arm(&c->arms.at[i], out, label);
    for (int k = 0; k < c->sweep.n; k++) {
        const struct config_list *values = &c->sweep.values[k];
        rest /= values->n;
        char *value = values->items[i / rest % values->n];
        TRY(set_value(out, c->sweep.key[k], value, "sweep"));
        fprintf(label, "%s%s", k ? ", " : "", value);
    }
    if (c->sweep.n == 0)
        config_describe(c, label);
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
        rc = config_check_whole(&cell);
        if (rc && (c->sweep.n || c->arms.n))
            err_context(c->arms.n ? "arm '%s'" : "cell '%s' of the sweep", text);
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
