/* whatif_variants: the question becomes settings and a sweep over the configuration of an arm, so that keys,
 * values and labels mean what they mean in an experiment file. */
#include "engine/err.h"
#include "experiments/config.h"
#include "experiments/whatif.h"
#include "drafts/drafts.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SETS = CONFIG_MAX_SWEEP, SET_BYTES = 512, MAX_VARIANTS = 256, MAX_RANGE = 64 };

struct question {
    char set[MAX_SETS + 1][SET_BYTES];
    int n, deepest, has_nodes; /* deepest max_depth that is asked for, 0: none */
};

static int append(char *to, size_t size, const char *text)
{
    size_t at = strlen(to);
    return at + strlen(text) + 1 > size ? -1 : snprintf(to + at, size - at, "%s", text);
}

/* "1..8" or "a|b" to "1, 2, ..." in out; returns how many values, -1: too long, or no range. */
static int expand(const char *value, char *out, size_t size)
{
    int from, to, used, n = 0;
    if (sscanf(value, "%d..%d%n", &from, &to, &used) == 2 && !value[used]) {
        if (to < from || to - from >= MAX_RANGE)
            return -1;
        for (int v = from; v <= to; v++, n++) {
            char word[32];
            snprintf(word, sizeof word, "%s%d", n ? ", " : "", v);
            if (append(out, size, word) < 0)
                return -1;
        }
        return n;
    }
    for (const char *at = value; *at; n++) {
        char word[128];
        int length = (int)strcspn(at, "|");
        if (length == 0 || length > 100)
            return -1;
        snprintf(word, sizeof word, "%s%.*s", n ? ", " : "", length, at);
        if (append(out, size, word) < 0)
            return -1;
        at += length + (at[length] == '|');
    }
    return n;
}

static void note_depth(struct question *q, const char *key, const char *values)
{
    if (!strcmp(key, "draft.max_nodes"))
        q->has_nodes = 1;
    for (const char *at = values; !strcmp(key, "draft.max_depth") && at; at = strchr(at, ',')) {
        at += *at == ',';
        int v = (int)strtol(at, NULL, 10);
        q->deepest = v > q->deepest ? v : q->deepest;
    }
}

/* "max_depth" and "ngram.max" mean draft.max_depth and draft.ngram.max. */
static int is_short(const char *key, const char *end)
{
    const char *dot = memchr(key, '.', (size_t)(end - key));
    for (int s = 0; dot && drafts_all[s]; s++)
        if (strlen(drafts_all[s]->name) == (size_t)(dot - key) &&
            !strncmp(key, drafts_all[s]->name, (size_t)(dot - key)))
            return 1;
    return !dot;
}

/* One "key=value" of the question. */
static int add_part(struct question *q, const char *part)
{
    char key[128], values[SET_BYTES - 160] = "";
    const char *equals = strchr(part, '=');
    if (!equals || equals == part || equals - part > 80)
        FAIL(ERR_CONFIG, "--what-if: expected key=value, such as draft.max_depth=1..8, found '%s'", part);
    snprintf(key, sizeof key, "%s%.*s", is_short(part, equals) ? "draft." : "", (int)(equals - part), part);
    if (strncmp(key, "draft.", 6) != 0)
        FAIL(ERR_CONFIG,
             "--what-if: expected a key of draft, found '%s': a trace says nothing of what that would change",
             key);
    int n = expand(equals + 1, values, sizeof values);
    if (n < 1)
        FAIL(ERR_CONFIG,
             "--what-if: %s: expected a value, values with | between them or a range such as 1..8 of at most "
             "%d, found '%s'",
             key, MAX_RANGE, equals + 1);
    if (q->n == MAX_SETS)
        FAIL(ERR_CONFIG, "--what-if: expected at most %d keys", MAX_SETS);
    snprintf(q->set[q->n++], SET_BYTES, n == 1 ? "%s%s=%s" : "%s%s=[%s]", n == 1 ? "" : "sweep.", key,
             values);
    note_depth(q, key, values);
    return 0;
}

static int parse_question(struct question *q, const char *what)
{
    char copy[2048], *save, *part;
    if (strlen(what) >= sizeof copy)
        FAIL(ERR_CONFIG, "--what-if: expected at most %zu characters", sizeof copy - 1);
    snprintf(copy, sizeof copy, "%s", what);
    part = strtok_r(copy, ",", &save);
    if (!part)
        FAIL(ERR_CONFIG, "--what-if: expected key=value, such as draft.max_depth=1..8, found nothing");
    for (; part; part = strtok_r(NULL, ",", &save))
        TRY(add_part(q, part));
    return 0;
}

static int is_deterministic(const struct trace_arm *a)
{
    return !a->lossy && (!strcmp(a->rule, "greedy") || !strcmp(a->rule, "coupled"));
}

static int has_requests(const struct trace *t, int arm)
{
    for (int64_t i = 0; i < t->n_requests; i++)
        if (t->requests[i].arm == arm)
            return 1;
    return 0;
}

/* The arm whose texts stand for all: by label, or the first whose texts do not depend on the draft. strategy:
 * NULL, or it must have this one and the deepest. */
static int find_source(const struct trace *t, const char *label, const char *strategy, int *arm)
{
    int found = -1;
    for (int64_t i = 0; i < t->n_arms; i++) {
        const struct trace_arm *a = &t->arms[i];
        if ((label && strcmp(a->label, label) != 0) || (strategy && strcmp(a->strategy, strategy) != 0) ||
            !has_requests(t, (int)i))
            continue;
        if (!is_deterministic(a)) {
            if (label)
                FAIL(ERR_CONFIG,
                     "%s: arm '%s' has rule %s, under which texts depend on the draft: replay takes greedy "
                     "or coupled",
                     t->path, a->label, a->rule);
            continue;
        }
        if (found < 0)
            found = (int)i;
    }
    if (found < 0)
        FAIL(ERR_CONFIG, "%s: no arm%s%s%s%s has texts that replay can use: it takes rule greedy or coupled",
             t->path, label ? " labelled " : "", label ? label : "", strategy ? " of strategy " : "",
             strategy ? strategy : "");
    *arm = found;
    return 0;
}

/* Deepest chain that an arm of this strategy drafted. */
static int deepest_of(const struct trace *t, int arm)
{
    int depth = 0;
    for (int64_t i = 0; i < t->n_requests; i++)
        for (int64_t k = 0; t->requests[i].arm == arm && k < t->requests[i].steps; k++) {
            const struct trace_step *s = &t->steps[t->requests[i].step_begin + k];
            depth = s->depth > depth ? s->depth : depth;
        }
    return depth;
}

/* The deepest of the arms of a strategy whose texts can be used. */
static int find_chain(const struct trace *t, const struct whatif_variant *v, const char *source, int *arm)
{
    int best = -1;
    TRY(find_source(t, source && !strcmp(t->arms[v->arm].strategy, v->strategy) ? source : NULL, v->strategy,
                    arm));
    for (int64_t i = *arm; i < t->n_arms; i++)
        if (!strcmp(t->arms[i].strategy, v->strategy) && is_deterministic(&t->arms[i]) &&
            deepest_of(t, (int)i) > best) {
            best = deepest_of(t, (int)i);
            *arm = (int)i;
        }
    if (v->draft.max_depth > best)
        FAIL(ERR_CONFIG,
             "%s: '%s' asks for drafts of depth %d, but %s drafted at most %d deep: run a deeper one",
             t->path, v->label, v->draft.max_depth, v->strategy, best);
    for (int64_t i = 0; i < t->n_requests; i++)
        for (int64_t k = 0; t->requests[i].arm == *arm && k < t->requests[i].steps; k++)
            if (t->steps[t->requests[i].step_begin + k].proposed !=
                t->steps[t->requests[i].step_begin + k].depth)
                FAIL(ERR_CONFIG,
                     "%s: '%s' drafts trees, and only chains can be cut shorter from what a trace has",
                     t->path, t->arms[*arm].label);
    return 0;
}

/* The strategy's options by name, from the configuration. */
static double option(const struct config *c, const char *strategy, const char *name)
{
    for (int s = 0; drafts_all[s]; s++)
        for (int o = 0; !strcmp(drafts_all[s]->name, strategy) && drafts_all[s]->options &&
                        drafts_all[s]->options[o].name;
             o++)
            if (!strcmp(drafts_all[s]->options[o].name, name))
                return c->draft.option[s][o];
    return 0;
}

static int fill_variant(struct whatif_variant *v, const struct trace *t, const struct config *c,
                        const char *source)
{
    v->strategy = strdup(c->draft.strategy);
    v->config = config_dump(c);
    if (!v->strategy || !v->config)
        FAIL(ERR_MEMORY, "no memory for variant '%s'", v->label);
    v->draft = (struct whatif_draft){
        .kind = WHATIF_CHAIN, .max_depth = c->draft.max_depth, .max_nodes = c->draft.max_nodes};
    if (v->draft.max_depth > WHATIF_DEPTH || v->draft.max_nodes > WHATIF_NODES)
        FAIL(ERR_CONFIG, "'%s': expected at most %d nodes %d deep", v->label, WHATIF_NODES, WHATIF_DEPTH);
    if (!strcmp(v->strategy, "none")) {
        v->draft.kind = WHATIF_NONE;
    } else if (!strcmp(v->strategy, "ngram")) {
        struct ngram *g = &v->draft.search;
        v->draft.kind = WHATIF_NGRAM;
        *g = (struct ngram){.min = (int)option(c, "ngram", "min"),
                            .max = (int)option(c, "ngram", "max"),
                            .branches = (int)option(c, "ngram", "branches"),
                            .match = (enum ngram_match)option(c, "ngram", "match"),
                            .scope = (enum ngram_scope)option(c, "ngram", "scope")};
        if (g->min > g->max)
            FAIL(ERR_CONFIG, "'%s': expected draft.ngram.min <= draft.ngram.max, found %d and %d", v->label,
                 g->min, g->max);
        if (v->draft.max_depth < v->draft.max_nodes / g->branches)
            v->draft.max_nodes = v->draft.max_depth * g->branches;
    } else {
        TRY(find_chain(t, v, source, &v->arm));
    }
    return 0;
}

static int add_variants(struct whatif *w, const struct trace *t, const struct config *c, int arm,
                        const char *source)
{
    int n = config_cells(c);
    if (n > MAX_VARIANTS)
        FAIL(ERR_CONFIG, "--what-if: expected at most %d variants, found %d", MAX_VARIANTS, n);
    w->variants = calloc((size_t)n + 1, sizeof *w->variants);
    if (!w->variants)
        FAIL(ERR_MEMORY, "no memory for %d variants", n);
    for (int i = 0; i < n; i++) {
        struct config cell = {0};
        struct whatif_variant *v = &w->variants[w->n++];
        v->arm = arm;
        TRY(config_cell(c, i, &cell, &v->label));
        int rc = fill_variant(v, t, &cell, source);
        config_deinit(&cell);
        TRY(rc);
    }
    return 0;
}

int whatif_variants(struct whatif *w, const struct trace *t, const struct whatif_opts *opts)
{
    struct question q = {0};
    struct config base = {0}, c = {0};
    const char *sets[MAX_SETS + 1];
    int arm = 0;
    TRY(parse_question(&q, opts->what));
    TRY(find_source(t, opts->source, NULL, &arm));
    const struct trace_arm *a = &t->arms[arm];
    TRY_CTX(config_parse(&base, a->config, strlen(a->config), a->label, NULL, 0),
            "reading the configuration of arm '%s'", a->label);
    if (!q.has_nodes && q.deepest > base.draft.max_nodes)
        snprintf(q.set[q.n++], SET_BYTES, "draft.max_nodes=%d", q.deepest);
    config_deinit(&base);
    for (int i = 0; i < q.n; i++)
        sets[i] = q.set[i];
    TRY(config_parse(&c, a->config, strlen(a->config), "--what-if", sets, q.n));
    int rc = add_variants(w, t, &c, arm, opts->source);
    config_deinit(&c);
    return rc;
}
