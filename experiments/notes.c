/* Every check looks at one row; a note names the arm and the numbers that made it speak. */
#include "experiments/notes.h"
#include "experiments/notes_sanity.h"
#include "engine/err.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int notes_add(struct notes *n, const char *fmt, ...)
{
    char **grown = realloc(n->text, ((size_t)n->n + 1) * sizeof *grown), *text;
    if (!grown)
        FAIL(ERR_MEMORY, "no memory for notes");
    n->text = grown;
    va_list ap;
    va_start(ap, fmt);
    int len = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (len < 0)
        FAIL(ERR_MEMORY, "no memory for notes");
    n->text[n->n++] = text;
    return 0;
}

static int note_status(struct notes *n, const struct trace *t)
{
    if (!t->n_requests)
        TRY(notes_add(n, "no finished request in %s.", t->path));
    if (!strcmp(t->meta.status, "running"))
        return notes_add(n, "the run has not ended (or was killed): these are its %lld finished requests.",
                         (long long)t->n_requests);
    if (strcmp(t->meta.status, "complete") != 0)
        return notes_add(
            n, "the run was %s: these are its %lld finished requests; `specbed run --resume` does the rest.",
            t->meta.status, (long long)t->n_requests);
    return 0;
}

static int note_baseline(struct notes *n, const struct trace *t, const struct summary *s)
{
    int lost = 0;
    for (int i = 0; i < s->n; i++)
        lost += !s->rows[i].group && s->rows[i].baseline < 0;
    if (lost && trace_is_scored(t))
        TRY(notes_add(
            n,
            "no perplexity to compare with for %d arm%s: that takes an arm with the same settings and "
            "model.weights, activations and kv bf16.",
            lost, lost == 1 ? "" : "s"));
    else if (lost)
        TRY(notes_add(
            n,
            "no speed-up for %d arm%s: it is measured against an arm of strategy none with the same "
            "settings on the same "
            "prompts. Add none to sweep.draft.strategy.",
            lost, lost == 1 ? "" : "s"));
    for (int i = 0; i < s->n; i++) {
        const struct summary_row *r = &s->rows[i];
        const char *label = t->arms[r->arm].label;
        if (r->group || r->baseline < 0 || r->baseline == r->arm)
            continue;
        if (r->mixed)
            TRY(notes_add(n, "%s is compared with %s, whose settings differ in more than %s.", label,
                          t->arms[r->baseline].label,
                          trace_is_scored(t) ? "the model's numbers" : "the draft"));
        if (r->sums.compared < r->sums.requests)
            TRY(notes_add(n, "%s: %lld of %lld requests have a partner in %s; %s over these.", label,
                          (long long)r->sums.compared, (long long)r->sums.requests,
                          t->arms[r->baseline].label,
                          trace_is_scored(t) ? "the ratio of perplexities is" : "speed-up and identity are"));
    }
    return 0;
}

/* Rules that promise the baseline's very tokens; `rejection` promises its distribution. */
static int is_exact(const struct trace_arm *a)
{
    return !a->lossy && (!strcmp(a->rule, "greedy") || !strcmp(a->rule, "coupled"));
}

static int note_outputs(struct notes *n, const struct trace *t, const struct summary *s)
{
    for (int i = 0; i < s->n; i++) {
        const struct summary_row *r = &s->rows[i];
        const struct trace_arm *a = &t->arms[r->arm];
        long long differ = (long long)(r->sums.compared - r->sums.identical),
                  of = (long long)r->sums.compared;
        if (r->group)
            continue;
        if (a->lossy && r->baseline != r->arm)
            TRY(notes_add(
                n,
                "LOSSY: rule %s of %s changes outputs (%lld of %lld differ from none's): its speed is "
                "not that of the target's text.",
                a->rule, a->label, differ, of));
        else if (differ && is_exact(a) && !r->mixed)
            TRY(notes_add(
                n,
                "%s: %lld of %lld outputs differ from none's, but rule %s promises the same tokens. "
                "Something is wrong, or a near tie fell the other way.",
                a->label, differ, of, a->rule));
    }
    return 0;
}

static int note_bound(struct notes *n, const struct trace *t, const struct summary *s)
{
    for (int i = 0; i < s->n; i++) {
        const struct summary_row *r = &s->rows[i];
        const char *why = r->speedup.lo <= r->bound
                              ? "The interval includes possible values, so noise may explain it."
                              : "Were both arms measured under the same conditions?";
        if (r->baseline == r->arm || !(r->speedup.value > r->bound))
            continue;
        TRY(notes_add(n,
                      "%s%s%s: speed-up %.2f is above its %.2f tokens per step, which is impossible when a "
                      "verification step costs at least a plain one. %s",
                      t->arms[r->arm].label, r->group ? ", " : "", r->group ? r->group : "", r->speedup.value,
                      r->bound, why));
    }
    return 0;
}

static int note_size(struct notes *n, const struct summary *s)
{
    int64_t fewest = INT64_MAX;
    int grouped = 0, concurrency = 1;
    for (int i = 0; i < s->n; i++) {
        fewest = s->rows[i].prompts < fewest ? s->rows[i].prompts : fewest;
        grouped |= s->rows[i].group != NULL;
        concurrency = s->rows[i].concurrency > concurrency ? s->rows[i].concurrency : concurrency;
    }
    if (s->n && fewest < NOTES_FEW_PROMPTS)
        TRY(notes_add(n, "%s %lld prompts: with fewer than %d, intervals tend to be too narrow%s.",
                      grouped ? "as few as" : "only", (long long)fewest, NOTES_FEW_PROMPTS,
                      fewest < 2 ? ", and with one prompt there is none" : ""));
    if (concurrency > 1)
        TRY(notes_add(
            n,
            "up to %d sequences ran at once: tokens/s is what one sequence sees while the others run, "
            "total is all of them together; steps are shared.",
            concurrency));
    return 0;
}

static int fill(struct notes *n, const struct trace *t, const struct summary *s)
{
    TRY(note_status(n, t));
    TRY(note_outputs(n, t, s));
    TRY(note_bound(n, t, s));
    TRY(note_baseline(n, t, s));
    TRY(note_size(n, s));
    return trace_is_scored(t) ? 0 : notes_sanity(n, t, s);
}

int notes_init(struct notes *n, const struct trace *t, const struct summary *s)
{
    struct notes made = {0};
    int rc = fill(&made, t, s);
    if (rc)
        notes_deinit(&made);
    else
        *n = made;
    return rc;
}

void notes_deinit(struct notes *n)
{
    for (int i = 0; i < n->n; i++)
        free(n->text[i]);
    free(n->text);
    *n = (struct notes){0};
}
