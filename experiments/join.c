/* Rows are moved, not copied: strings change owner. */
#include "experiments/join.h"
#include "engine/err.h"
#include "experiments/trace_lean.h"
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Length of a line without its end. */
static int line_length(const char *s)
{
    return (int)strcspn(s, "\n");
}

static int check_config(const struct trace *a, const struct trace *b)
{
    const char *x = a->meta.config, *y = b->meta.config;
    if (!strcmp(x, y))
        return 0;
    while (line_length(x) == line_length(y) && !strncmp(x, y, (size_t)line_length(x)) && x[line_length(x)] &&
           y[line_length(y)]) {
        x += line_length(x) + 1;
        y += line_length(y) + 1;
    }
    FAIL(ERR_CONFIG,
         "expected files of one run, but configurations differ: %s has '%.*s', %s has '%.*s'; analyze them "
         "one by one",
         a->path, line_length(x), x, b->path, line_length(y), y);
}

static int check_same_run(const struct trace *a, const struct trace *b)
{
    if (a->meta.schema != b->meta.schema)
        FAIL(ERR_CONFIG, "expected files of one run, but schemas differ: %s has %d, %s has %d", a->path,
             a->meta.schema, b->path, b->meta.schema);
    if (a->meta.fingerprint != b->meta.fingerprint)
        FAIL(ERR_CONFIG,
             "expected files of one run, but models differ: %s has fingerprint %016" PRIx64
             ", %s has %016" PRIx64 "; analyze them one by one",
             a->path, a->meta.fingerprint, b->path, b->meta.fingerprint);
    return check_config(a, b);
}

static int append(char **a, const char *b)
{
    char *both;
    if (asprintf(&both, "%s, %s", *a, b) < 0)
        FAIL(ERR_MEMORY, "no memory to join '%s'", b);
    free(*a);
    *a = both;
    return 0;
}

/* Appends b to the list *a unless it is in there. */
static int list(char **a, const char *b)
{
    size_t n = strlen(b);
    for (const char *at = strstr(*a, b); at && n; at = strstr(at + 1, b)) {
        int begins = at == *a || (at - *a >= 2 && at[-2] == ',' && at[-1] == ' ');
        if (begins && (at[n] == 0 || (at[n] == ',' && at[n + 1] == ' ')))
            return 0;
    }
    return n ? append(a, b) : 0;
}

static void swap(char **a, char **b)
{
    char *t = *a;
    *a = *b;
    *b = t;
}

/* ISO 8601 in UTC sorts as text; a run that goes on has no end, and neither has the whole. */
static int join_meta(struct trace *into, struct trace *part)
{
    struct trace_meta *a = &into->meta, *b = &part->meta;
    if (strcmp(b->started, a->started) < 0)
        swap(&a->started, &b->started);
    if (!b->ended[0] || (a->ended[0] && strcmp(b->ended, a->ended) > 0))
        swap(&a->ended, &b->ended);
    if (!strcmp(a->status, "complete") || !strcmp(b->status, "running"))
        swap(&a->status, &b->status);
    char **const ours[] = {&a->version, &a->git_commit, &a->build,     &a->device,
                           &a->isa,     &a->host,       &a->libraries, &a->slice};
    char *const theirs[] = {b->version, b->git_commit, b->build,     b->device,
                            b->isa,     b->host,       b->libraries, b->slice};
    for (size_t i = 0; i < sizeof theirs / sizeof *theirs; i++)
        TRY(list(ours[i], theirs[i]));
    return append(&into->path, part->path);
}

/* Room for n more rows of `size` bytes after the first `have`. */
static int reserve(void *rows, int64_t have, int64_t n, size_t size)
{
    void *old, *grown;
    memcpy(&old, rows, sizeof old);
    grown = realloc(old, (size_t)(have + n + 1) * size);
    if (!grown)
        FAIL(ERR_MEMORY, "no memory for %lld rows", (long long)(have + n));
    memcpy(rows, &grown, sizeof grown);
    return 0;
}

/* Both hold their steps in full, or both lean. */
static int reserve_steps(struct trace *into, const struct trace *part)
{
    if (!into->lean)
        return reserve(&into->steps, into->n_steps, part->n_steps, sizeof *into->steps);
    TRY(reserve(&into->lean, into->n_steps, part->n_steps, sizeof *into->lean));
    return reserve(&into->judged, into->n_judged, part->n_judged, sizeof *into->judged);
}

static void join_steps(struct trace *into, const struct trace *part)
{
    for (int64_t i = 0; i < part->n_steps && !into->lean; i++) {
        into->steps[into->n_steps + i] = part->steps[i];
        into->steps[into->n_steps + i].request += into->n_requests;
    }
    for (int64_t i = 0; i < part->n_steps && into->lean; i++) {
        into->lean[into->n_steps + i] = part->lean[i];
        into->lean[into->n_steps + i].judged_begin += into->n_judged;
    }
    if (part->n_judged)
        memcpy(into->judged + into->n_judged, part->judged, (size_t)part->n_judged * sizeof *part->judged);
    into->n_judged += part->n_judged;
}

/* The row of into that is part's arm i, moved there when it is new. */
static int join_arm(struct trace *into, struct trace *part, int64_t i)
{
    struct trace_arm *b = &part->arms[i];
    for (int64_t k = 0; k < into->n_arms; k++)
        if (!strcmp(into->arms[k].label, b->label) && !strcmp(into->arms[k].config, b->config))
            return (int)k;
    into->arms[into->n_arms] = *b;
    *b = (struct trace_arm){0};
    return (int)into->n_arms++;
}

static int64_t clock_end(const struct trace *t)
{
    int64_t end = 0;
    for (int64_t i = 0; i < t->n_requests; i++) {
        const struct trace_request *r = &t->requests[i];
        int64_t e;
        if (__builtin_add_overflow(r->started, r->ns_first, &e) ||
            __builtin_add_overflow(e, r->ns_decode, &e))
            e = INT64_MAX;
        end = e > end ? e : end;
    }
    return end;
}

static int join_rows(struct trace *into, struct trace *part)
{
    TRY(reserve(&into->arms, into->n_arms, part->n_arms, sizeof *into->arms));
    TRY(reserve(&into->prompts, into->n_prompts, part->n_prompts, sizeof *into->prompts));
    TRY(reserve(&into->requests, into->n_requests, part->n_requests, sizeof *into->requests));
    TRY(reserve_steps(into, part));
    TRY(reserve(&into->scores, into->n_scores, part->n_scores, sizeof *into->scores));
    if (into->loops && part->loops) {
        TRY(reserve(&into->loops, into->n_requests, part->n_requests, sizeof *into->loops));
        memcpy(into->loops + into->n_requests, part->loops, (size_t)part->n_requests * sizeof *part->loops);
    }
    int *arm = malloc(((size_t)part->n_arms + 1) * sizeof *arm);
    if (!arm)
        FAIL(ERR_MEMORY, "no memory for %lld arms", (long long)part->n_arms);
    int64_t clock = clock_end(into);
    for (int64_t i = 0; i < part->n_arms; i++)
        arm[i] = join_arm(into, part, i);
    for (int64_t i = 0; i < part->n_requests; i++) {
        struct trace_request r = part->requests[i];
        r.arm = arm[r.arm];
        r.prompt += (int32_t)into->n_prompts;
        r.step_begin += into->n_steps;
        r.score_begin += into->n_scores;
        if (__builtin_add_overflow(r.started, clock, &r.started))
            r.started = INT64_MAX;
        into->requests[into->n_requests + i] = r;
    }
    join_steps(into, part);
    for (int64_t i = 0; i < part->n_scores; i++) {
        into->scores[into->n_scores + i] = part->scores[i];
        into->scores[into->n_scores + i].request += into->n_requests;
    }
    memcpy(into->prompts + into->n_prompts, part->prompts, (size_t)part->n_prompts * sizeof *part->prompts);
    into->n_prompts += part->n_prompts;
    into->n_requests += part->n_requests;
    into->n_steps += part->n_steps;
    into->n_scores += part->n_scores;
    part->n_prompts = 0;
    free(arm);
    return 0;
}

int join_append(struct trace *into, struct trace *part)
{
    if (!into->path) {
        *into = *part;
        *part = (struct trace){0};
        return 0;
    }
    assert(!into->lean == !part->lean && !into->loops == !part->loops);
    TRY(check_same_run(into, part));
    TRY(join_meta(into, part));
    TRY(join_rows(into, part));
    trace_deinit(part);
    return 0;
}
