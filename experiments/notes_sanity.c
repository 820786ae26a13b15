/* Every rule is a function over the trace, arm by arm. */
#include "experiments/notes_sanity.h"
#include "engine/err.h"
#include "experiments/stats_test.h"
#include "experiments/trace_lean.h"
#include "experiments/trace_loop.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rows of one arm, in order of submission. */
struct rows {
    int64_t *at; /* owned [n] */
    int64_t n;
};

struct value {
    double v;
    int64_t at;
};

static int compare_values(const void *pa, const void *pb)
{
    const struct value *a = pa, *b = pb;
    return a->v == b->v ? (a->at > b->at) - (a->at < b->at) : a->v < b->v ? -1 : 1;
}

static int rows_init(struct rows *r, const struct trace *t, int arm)
{
    struct value *x = malloc(((size_t)t->n_requests + 1) * sizeof *x);
    r->n = 0;
    r->at = malloc(((size_t)t->n_requests + 1) * sizeof *r->at);
    if (!x || !r->at) {
        free(x);
        FAIL(ERR_MEMORY, "no memory for the rows of an arm");
    }
    for (int64_t i = 0; i < t->n_requests; i++)
        if (t->requests[i].arm == arm)
            x[r->n++] = (struct value){(double)t->requests[i].started, i};
    qsort(x, (size_t)r->n, sizeof *x, compare_values);
    for (int64_t i = 0; i < r->n; i++)
        r->at[i] = x[i].at;
    free(x);
    return 0;
}

static int64_t answered(const struct summary *s, int arm)
{
    for (int i = 0; i < s->n; i++)
        if (!s->rows[i].group && s->rows[i].arm == arm)
            return s->rows[i].sums.requests;
    return 0;
}

static int note_prompts(struct notes *n, const struct trace *t, const struct summary *s)
{
    int least = -1, most = -1;
    for (int a = 0; a < t->n_arms; a++) {
        int64_t k = answered(s, a);
        if (k && (least < 0 || k < answered(s, least)))
            least = a;
        if (most < 0 || k > answered(s, most))
            most = a;
    }
    if (least < 0 || answered(s, least) == answered(s, most))
        return 0;
    return notes_add(
        n,
        "arms answered different requests: %s %lld, %s %lld. AL and speed of arms are not comparable; "
        "--compare and speed-up keep to what both answered.",
        t->arms[least].label, (long long)answered(s, least), t->arms[most].label,
        (long long)answered(s, most));
}

static int note_mixture(struct notes *n, const struct trace *t)
{
    const struct {
        const char *what, *text;
    } lists[] = {{"commits", t->meta.git_commit}, {"versions", t->meta.version}};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if (strstr(lists[i].text, ", "))
            TRY(notes_add(
                n, "several %s made these rows (%s): a difference between arms may be one between them.",
                lists[i].what, lists[i].text));
    if (strstr(t->path, ", ") && strchr(t->meta.host, ','))
        TRY(notes_add(n, "several machines made these rows (%s): compare times within a machine.",
                      t->meta.host));
    return 0;
}

static int note_loops(struct notes *n, const struct trace *t, int arm)
{
    struct metrics_sums all = {0}, sound = {0};
    if (!t->loops)
        return 0;
    for (int64_t i = 0; i < t->n_requests; i++) {
        if (t->requests[i].arm != arm)
            continue;
        metrics_request(&all, t, i);
        if (!t->loops[i])
            metrics_request(&sound, t, i);
    }
    int64_t looped = all.requests - sound.requests;
    if (!looped || 100 * looped < NOTES_LOOPS_PERCENT * all.requests)
        return 0;
    char without[64] = "";
    if (sound.steps && all.drafted_steps)
        snprintf(without, sizeof without, ": AL %.2f, without them %.2f", metrics_al(&all),
                 metrics_al(&sound));
    return notes_add(n,
                     "%s: %lld of %lld answers end in a loop (%d turns or more, at least %d tokens), where "
                     "any draft that copies "
                     "is right%s.",
                     t->arms[arm].label, (long long)looped, (long long)all.requests, TRACE_LOOP_TURNS,
                     TRACE_LOOP_TOKENS, without);
}

/* Rank sum of the first `k` of x [n], as a normal deviate; ties get their mean rank. */
static double rank_sum_z(struct value *x, int64_t n, int64_t k)
{
    double sum = 0, ties = 0;
    qsort(x, (size_t)n, sizeof *x, compare_values);
    for (int64_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && x[end].v == x[i].v;)
            end++;
        double m = (double)(end - i);
        ties += m * m * m - m;
        for (int64_t j = i; j < end; j++)
            sum += x[j].at < k ? (double)(i + end + 1) / 2 : 0;
    }
    double a = (double)k, b = (double)(n - k), all = (double)n;
    double variance = a * b / 12 * (all + 1 - ties / (all * (all - 1)));
    return variance > 0 ? (sum - a * (all + 1) / 2) / sqrt(variance) : 0;
}

static double median_of(const struct value *x, int64_t n, int64_t k, int first, double *room)
{
    int64_t m = 0;
    for (int64_t i = 0; i < n; i++)
        if ((x[i].at < k) == first)
            room[m++] = x[i].v;
    stats_sort(room, m);
    return stats_percentile(room, m, 0.5);
}

/* Decode time a step of each request, in order of submission. */
static int note_trend(struct notes *n, const struct trace *t, int arm, const struct rows *r)
{
    struct value *x = malloc(((size_t)r->n + 1) * sizeof *x);
    double *room = malloc(((size_t)r->n + 1) * sizeof *room);
    int64_t m = 0;
    int rc = x && room ? 0 : ERR_SET(ERR_MEMORY, "no memory for the times of an arm");
    for (int64_t i = 0; !rc && i < r->n; i++) {
        const struct trace_request *q = &t->requests[r->at[i]];
        if (q->steps > 1 && q->ns_decode > 0) {
            x[m] = (struct value){(double)q->ns_decode / (double)(q->steps - 1), m};
            m++;
        }
    }
    if (!rc && m >= NOTES_TREND_REQUESTS) {
        double z = rank_sum_z(x, m, m / 5), a = median_of(x, m, m / 5, 1, room),
               b = median_of(x, m, m / 5, 0, room);
        if (fabs(z) > 3 && 100 * fabs(a / b - 1) > NOTES_TREND_PERCENT)
            rc = notes_add(n,
                           "%s: steps of its first fifth took %.1f %% %s than the rest (rank sum z %.1f): a "
                           "trend, such as warm-up or "
                           "a clock that throttles. Raise workload.warmup, or let the machine settle.",
                           t->arms[arm].label, 100 * fabs(a / b - 1), a > b ? "longer" : "less", z);
    }
    free(x);
    free(room);
    return rc;
}

static int64_t gcd(int64_t a, int64_t b)
{
    while (b) {
        int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static int note_clock(struct notes *n, const struct trace *t, int arm, const struct rows *r, double median)
{
    int64_t tick = 0;
    for (int64_t i = 0; i < r->n && tick != 1; i++) {
        const struct trace_request *q = &t->requests[r->at[i]];
        for (int64_t k = q->step_begin; k < q->step_begin + q->steps && tick != 1; k++)
            tick = gcd(trace_step_at(t, k).ns_total, tick);
    }
    if (!tick || !(100 * (double)tick > NOTES_TICK_PERCENT * median))
        return 0;
    return notes_add(n,
                     "%s: all step times are multiples of %.3f ms, %.1f %% of a median step: the clock is "
                     "too coarse for them.",
                     t->arms[arm].label, (double)tick / 1e6, 100 * (double)tick / median);
}

/* Log of decode speed, by prompt. */
static int note_noise(struct notes *n, const struct trace *t, int arm, const struct rows *r)
{
    struct stats_noise noise;
    double *y = malloc(((size_t)r->n + 1) * sizeof *y);
    int *group = malloc(((size_t)r->n + 1) * sizeof *group), groups = 0, repeats = 0;
    int64_t m = 0;
    int rc = y && group ? 0 : ERR_SET(ERR_MEMORY, "no memory for the noise of an arm");
    for (int64_t i = 0; !rc && i < r->n; i++) {
        const struct trace_request *q = &t->requests[r->at[i]];
        struct metrics_sums s = {0};
        metrics_request(&s, t, r->at[i]);
        if (!(metrics_tokens_per_s(&s) > 0))
            continue;
        y[m] = log(metrics_tokens_per_s(&s));
        group[m] = q->prompt;
        groups = q->prompt >= groups ? q->prompt + 1 : groups;
        repeats |= q->repeat > 0;
        m++;
    }
    if (!rc && repeats && m > 1) {
        rc = stats_noise(y, group, m, groups, &noise);
        if (!rc && !isnan(noise.run))
            rc = notes_add(n,
                           "%s: speed varies by %.1f %% from run to run of a prompt and by %.1f %% from "
                           "prompt to prompt (standard deviations).",
                           t->arms[arm].label, 100 * noise.run,
                           100 * (isnan(noise.prompt) ? 0 : noise.prompt));
    }
    free(y);
    free(group);
    return rc;
}

int notes_sanity(struct notes *n, const struct trace *t, const struct summary *s)
{
    TRY(note_prompts(n, t, s));
    TRY(note_mixture(n, t));
    for (int i = 0; i < s->n && !s->rows[i].group; i++) {
        struct rows r = {0};
        int arm = s->rows[i].arm, rc = rows_init(&r, t, arm);
        if (!rc)
            rc = note_loops(n, t, arm);
        if (!rc)
            rc = note_trend(n, t, arm, &r);
        if (!rc)
            rc = note_clock(n, t, arm, &r, s->rows[i].step.median);
        if (!rc)
            rc = note_noise(n, t, arm, &r);
        free(r.at);
        TRY(rc);
    }
    return 0;
}
