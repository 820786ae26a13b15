/* The plots of a page, each from a table or from the steps. An arm keeps its colour through all of them. */
#include "engine/err.h"
#include "experiments/analyze_html.h"
#include "experiments/svg.h"
#include "experiments/trace_lean.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BINS = 40, MAX_POINTS = 96, SHOWN_ARMS = SVG_COLOURS };

static const struct table_cell *at(const struct table *t, int row, const char *key)
{
    for (int c = 0; c < t->n_columns; c++)
        if (!strcmp(t->columns[c].key, key))
            return &t->cells[row * t->n_columns + c];
    return NULL;
}

static double value(const struct table *t, int row, const char *key)
{
    const struct table_cell *x = at(t, row, key);
    return x ? x->value : NAN;
}

static int is_arm(const struct table *t, int row, const char *label)
{
    const struct table_cell *x = at(t, row, "arm"), *group = at(t, row, "group");
    return x && x->text && !strcmp(x->text, label) && !(group && group->text);
}

static int shown_arms(const struct trace *t)
{
    return t->n_arms < SHOWN_ARMS ? (int)t->n_arms : SHOWN_ARMS;
}

/* Names of the arms that were drawn, in their colours: a name stands for every colour up to the last. */
static void end(const struct svg *s, const struct trace *t, const char *caption)
{
    const char *names[SHOWN_ARMS];
    int n = shown_arms(t);
    for (int i = 0; i < n; i++)
        names[i] = t->arms[i].label;
    svg_end(s, names, n, caption);
}

static void plot_positions(const struct analyze_report *r, FILE *out)
{
    const struct table *t = &r->table[ANALYZE_POSITIONS];
    struct svg s = {.x0 = 0, .x1 = 1, .y0 = 0, .y1 = 1};
    for (int i = 0; i < t->n_rows; i++)
        s.x1 = fmax(s.x1, value(t, i, "position"));
    if (!t->n_rows)
        return;
    svg_begin(&s, out, "Acceptance by position", "position in the draft", "share of drafted steps", 1);
    for (int a = 0; a < shown_arms(r->t); a++) {
        double x[MAX_POINTS], y[MAX_POINTS];
        int n = 0;
        for (int i = 0; i < t->n_rows && n < MAX_POINTS; i++) {
            if (!is_arm(t, i, r->t->arms[a].label))
                continue;
            x[n] = value(t, i, "position");
            y[n] = value(t, i, "unconditional");
            svg_interval_y(&s, x[n], value(t, i, "unconditional_lo"), value(t, i, "unconditional_hi"), a);
            svg_point(&s, x[n], y[n], a, r->t->arms[a].label);
            n++;
        }
        svg_line(&s, x, y, n, a);
    }
    end(&s, r->t,
        "Steps that accepted at least so many draft tokens, of all steps that had a draft; bars: 95 % over "
        "prompts.");
}

static void plot_speed(const struct analyze_report *r, FILE *out)
{
    struct svg s = {.x0 = 1, .x1 = 1.2, .y0 = 0.8, .y1 = 1.2};
    int n = 0;
    for (int i = 0; i < r->summary.n; i++) {
        const struct summary_row *row = &r->summary.rows[i];
        if (row->group || isnan(row->speedup.value))
            continue;
        s.x1 = fmax(s.x1, fmax(row->al.value, isnan(row->al.hi) ? 0 : row->al.hi));
        s.y1 = fmax(s.y1, fmax(row->speedup.value, isnan(row->speedup.hi) ? 0 : row->speedup.hi));
        s.y0 = fmin(s.y0, isnan(row->speedup.lo) ? row->speedup.value : row->speedup.lo);
        n++;
    }
    if (!n)
        return;
    svg_begin(&s, out, "Speed against acceptance", "AL, tokens a step", "speed-up over plain decoding", 1);
    svg_dashed(&s, fmax(s.x0, s.y0), fmax(s.x0, s.y0), fmin(s.x1, s.y1), fmin(s.x1, s.y1));
    for (int i = 0; i < r->summary.n; i++) {
        const struct summary_row *row = &r->summary.rows[i];
        if (row->group || row->arm >= SHOWN_ARMS)
            continue;
        svg_interval_y(&s, row->al.value, row->speedup.lo, row->speedup.hi, row->arm);
        svg_interval_x(&s, row->speedup.value, row->al.lo, row->al.hi, row->arm);
        svg_point(&s, row->al.value, row->speedup.value, row->arm, r->t->arms[row->arm].label);
    }
    end(&s, r->t,
        "Dashed: a verification step at the price of a plain one, which no arm can beat. The distance to it "
        "is what drafting and wider passes cost.");
}

/* Counts of an arm's step times in BINS bins up to `most` ns, as shares. */
static void histogram(const struct trace *t, int arm, double most, double *share)
{
    double n = 0;
    memset(share, 0, BINS * sizeof *share);
    for (int64_t i = 0; i < t->n_requests; i++)
        for (int64_t k = 0; t->requests[i].arm == arm && k < t->requests[i].steps; k++) {
            int b = (int)(BINS * (double)trace_step_at(t, t->requests[i].step_begin + k).ns_total / most);
            share[b < BINS ? b : BINS - 1]++;
            n++;
        }
    for (int b = 0; b < BINS; b++)
        share[b] /= n > 0 ? n : 1;
}

static void plot_times(const struct analyze_report *r, FILE *out)
{
    double most = 0, share[SHOWN_ARMS][BINS], x[2 * BINS], y[2 * BINS];
    for (int i = 0; i < r->summary.n; i++)
        if (!r->summary.rows[i].group && isfinite(r->summary.rows[i].step.p90))
            most = fmax(most, 1.5 * r->summary.rows[i].step.p90);
    if (!(most > 0))
        return;
    struct svg s = {.x0 = 0, .x1 = most / 1e6, .y0 = 0, .y1 = 0.01};
    for (int a = 0; a < shown_arms(r->t); a++) {
        histogram(r->t, a, most, share[a]);
        for (int b = 0; b < BINS; b++)
            s.y1 = fmax(s.y1, share[a][b]);
    }
    svg_begin(&s, out, "How long steps take", "ms a step", "share of steps", 1);
    for (int a = 0; a < shown_arms(r->t); a++) {
        for (int b = 0; b < BINS; b++) {
            x[2 * b] = most / 1e6 * b / BINS;
            x[2 * b + 1] = most / 1e6 * (b + 1) / BINS;
            y[2 * b] = y[2 * b + 1] = share[a][b];
        }
        svg_line(&s, x, y, 2 * BINS, a);
    }
    end(&s, r->t, "All steps; the last bin holds all that took longer.");
}

enum { STAGES = 4 };

static void stage_means(const struct trace *t, int arm, double *ms)
{
    double n = 0;
    memset(ms, 0, STAGES * sizeof *ms);
    for (int64_t i = 0; i < t->n_requests; i++)
        for (int64_t k = 0; t->requests[i].arm == arm && k < t->requests[i].steps; k++) {
            const struct trace_step s = trace_step_at(t, t->requests[i].step_begin + k);
            ms[0] += (double)s.ns_verify / 1e6;
            ms[1] += (double)s.ns_draft / 1e6;
            ms[2] += (double)s.ns_accept / 1e6;
            ms[3] += (double)s.ns_host / 1e6;
            n++;
        }
    for (int k = 0; k < STAGES; k++)
        ms[k] /= n > 0 ? n : 1;
}

static void plot_stages(const struct analyze_report *r, FILE *out)
{
    static const char *const names[STAGES] = {"verify", "draft", "accept", "host"};
    double ms[SHOWN_ARMS][STAGES], most = 0;
    int arms = shown_arms(r->t);
    for (int a = 0; a < arms; a++) {
        double sum = 0;
        stage_means(r->t, a, ms[a]);
        for (int k = 0; k < STAGES; k++)
            sum += ms[a][k];
        most = fmax(most, sum);
    }
    if (!(most > 0))
        return;
    struct svg s = {.x0 = 0, .x1 = arms, .y0 = 0, .y1 = most};
    svg_begin(&s, out, "Where a step's time goes", "arm", "ms a step, mean", 0);
    for (int a = 0; a < arms; a++) {
        double from = 0;
        char label[24];
        for (int k = 0; k < STAGES; k++) {
            svg_box(&s, a + 0.2, from, a + 0.8, from + ms[a][k], k, names[k]);
            from += ms[a][k];
        }
        snprintf(label, sizeof label, "%.*s", arms > 5 ? 7 : 14, r->t->arms[a].label);
        svg_x_label(&s, a + 0.5, label);
    }
    svg_end(&s, names, STAGES, "verify: the target's pass; host: the rest of the step.");
}

/* One axis of the breakdown: y_key against its mean. */
static void plot_axis(const struct analyze_report *r, const char *axis, const char *y_key,
                      const char *const texts[4], int diagonal, FILE *out)
{
    const struct table *t = &r->table[ANALYZE_BREAKDOWN];
    struct svg s = {.x0 = diagonal ? 0 : INFINITY,
                    .x1 = diagonal ? 1 : -INFINITY,
                    .y0 = 0,
                    .y1 = strcmp(y_key, "al") ? 1 : 0};
    int n = 0;
    for (int i = 0; i < t->n_rows; i++)
        if (!strcmp(at(t, i, "axis")->text, axis)) {
            s.x0 = fmin(s.x0, value(t, i, "mean"));
            s.x1 = fmax(s.x1, value(t, i, "mean"));
            s.y1 = fmax(s.y1, fmax(value(t, i, y_key), isnan(at(t, i, y_key)->hi) ? 0 : at(t, i, y_key)->hi));
            n++;
        }
    if (!n)
        return;
    svg_begin(&s, out, texts[0], texts[1], texts[2], 1);
    if (diagonal)
        svg_dashed(&s, 0, 0, 1, 1);
    for (int a = 0; a < shown_arms(r->t); a++) {
        double x[MAX_POINTS], y[MAX_POINTS];
        n = 0;
        for (int i = 0; i < t->n_rows && n < MAX_POINTS; i++) {
            if (strcmp(at(t, i, "axis")->text, axis) != 0 || !is_arm(t, i, r->t->arms[a].label))
                continue;
            const struct table_cell *c = at(t, i, y_key);
            x[n] = value(t, i, "mean");
            y[n] = c->value;
            svg_interval_y(&s, x[n], c->lo, c->hi, a);
            svg_point(&s, x[n], y[n], a, at(t, i, "bin")->text);
            n++;
        }
        svg_line(&s, x, y, n, a);
    }
    end(&s, r->t, texts[3]);
}

/* Categories down, arms across, AL in the cells, the darker the longer. */
static void heat_map(const struct analyze_report *r, FILE *out)
{
    double most = 1;
    int rows = 0;
    for (int i = 0; i < r->summary.n; i++)
        if (r->summary.rows[i].group) {
            most = fmax(most, r->summary.rows[i].al.value);
            rows++;
        }
    if (!rows)
        return;
    fputs("<figure><h3>AL by category</h3><div class=\"scroll\"><table class=\"heat\"><tr><th "
          "class=\"t\">category</th>",
          out);
    for (int a = 0; a < shown_arms(r->t); a++) {
        fputs("<th>", out);
        svg_escape(out, r->t->arms[a].label);
        fputs("</th>", out);
    }
    const char *last = NULL;
    int filled = 0;
    for (int i = 0; i < r->summary.n; i++) {
        const struct summary_row *row = &r->summary.rows[i];
        if (!row->group || row->arm >= SHOWN_ARMS)
            continue;
        if (!last || strcmp(last, row->group)) {
            fputs("</tr>\n<tr><td class=\"t\">", out);
            svg_escape(out, row->group);
            fputs("</td>", out);
            last = row->group;
            filled = 0;
        }
        for (; filled < row->arm; filled++)
            fputs("<td></td>", out);
        fprintf(out, "<td style=\"background:color-mix(in srgb,var(--c0) %.0f%%,transparent)\">%.2f</td>",
                most > 1 ? 60 * (row->al.value - 1) / (most - 1) : 0, row->al.value);
        filled++;
    }
    fputs(
        "</tr></table></div><figcaption>Tokens a verification step, bonus included.</figcaption></figure>\n",
        out);
}

int analyze_html_plots(const struct analyze_report *r, FILE *out)
{
    static const char *const
        context[] = {"Acceptance against context", "tokens before the step", "AL, tokens a step",
                     "Steps by the length of the text before them; bars: 95 % over prompts."},
        *const calibration[] = {"Calibration of the draft", "the draft's confidence", "accepted of judged",
                                "Ten bins; on the dashed line a draft is as sure as it is right."},
        *const entropy[] = {
            "Acceptance against the target's entropy", "entropy, nats", "accepted of judged",
            "Nodes whose parent was accepted, by the entropy of the distribution that judged them."};
    if (trace_is_scored(r->t) || !r->summary.n)
        return 0;
    fputs("<h2>Plots</h2><div class=\"grid\">", out);
    plot_positions(r, out);
    plot_speed(r, out);
    plot_times(r, out);
    plot_stages(r, out);
    heat_map(r, out);
    plot_axis(r, "context", "al", context, 0, out);
    plot_axis(r, "confidence", "rate", calibration, 1, out);
    plot_axis(r, "entropy", "rate", entropy, 0, out);
    fputs("</div>\n", out);
    if (r->t->n_arms > SHOWN_ARMS)
        fprintf(out, "<p class=\"soft\">Plots show the first %d arms of %lld; the tables have all.</p>\n",
                SHOWN_ARMS, (long long)r->t->n_arms);
    return 0;
}
