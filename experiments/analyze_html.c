/* Verdicts first, then what they rest on. Tables are those of the text form. */
#include "experiments/analyze_html.h"
#include "engine/err.h"
#include "experiments/svg.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char style[] =
    ":root{--ink:#1c2024;--soft:#5c6670;--paper:#fff;--card:#f7f8fa;--rule:#d9dde2;--good:#0b6e4f;--bad:#"
    "a8320a;"
    "--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#cc79a7;--c4:#b8860b;--c5:#56b4e9;--c6:#6a4fb3;--c7:#777}\n"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa5b0;--paper:#14171a;--card:#1d2226;--"
    "rule:#353c43;"
    "--good:#5fd3a8;--bad:#ff9a73;--c0:#5db8ff;--c1:#ff9152;--c2:#3fd6a4;--c3:#f2a3cd;--c4:#e0b84a;--c5:#"
    "9bd8ff;--c6:#b39cff;--c7:#aaa}}\n"
    "*{box-sizing:border-box}body{margin:0 auto;padding:1.5rem;max-width:1560px;font:15px/1.5 "
    "system-ui,sans-serif;color:var(--ink);"
    "background:var(--paper)}h1{font-size:1.5rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2rem 0 "
    ".6rem;border-bottom:1px solid var(--rule)}"
    "h3{font-size:.95rem;margin:0 0 .3rem}.soft,figcaption{color:var(--soft)}figcaption{font-size:.82rem}\n"
    ".grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(400px,1fr))}figure{margin:0;"
    "padding:.9rem;background:var(--card);"
    "border:1px solid "
    "var(--rule);border-radius:6px;break-inside:avoid}svg{width:100%;height:auto;display:block}svg "
    "text{font:11.5px system-ui,"
    "sans-serif;fill:var(--ink)}.legend{margin:.3rem "
    "0;font-size:.85rem;display:flex;flex-wrap:wrap;gap:.2rem .9rem}.swatch{display:inline-block;"
    "width:.75em;height:.75em;margin-right:.35em;border-radius:2px;background:currentColor}\n"
    "svg "
    ".grid{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--soft)}.dashed{stroke:var(--soft);stroke-"
    "dasharray:5 4}.line{fill:none;"
    "stroke:currentColor;stroke-width:2}.fill{fill:currentColor}\n"
    ".c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{"
    "color:var(--c5)}.c6{color:var(--c6)}"
    ".c7{color:var(--c7)}\n"
    "table{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums}th,td{padding:.2rem "
    ".65rem;text-align:right;"
    "border-bottom:1px solid "
    "var(--rule);white-space:nowrap}th{font-weight:600;vertical-align:bottom}td.t,th.t{text-align:left}."
    "scroll{overflow-x:auto}"
    "li{margin:.2rem 0}.heat td,.heat "
    "th{text-align:center;white-space:normal}pre{white-space:pre-wrap;font-size:.82rem}\n"
    ".answer{background:var(--card);border:1px solid "
    "var(--rule);border-radius:6px;padding:.9rem;white-space:pre-wrap;line-height:1.9}"
    ".acc{background:color-mix(in srgb,var(--c2) "
    "28%,transparent);border-radius:3px}.bonus{background:color-mix(in srgb,var(--c0) 24%,transparent);"
    "border-radius:3px}.rej{color:var(--bad);text-decoration:line-through;font-size:.85em}\n"
    "@media(max-width:460px){.grid{grid-template-columns:1fr}}@media "
    "print{body{font-size:11px;padding:0}.grid{grid-template-columns:1fr 1fr}details{display:none}}\n";

/* Cells of one table, as the text form rounds them. */
static void cell(const struct table_column *c, const struct table_cell *x, FILE *out)
{
    int share = c->kind == TABLE_SHARE;
    double scale = share ? 100 : 1;
    if (c->kind == TABLE_TEXT) {
        svg_escape(out, x->text ? x->text : "");
    } else if (isnan(x->value)) {
        fputs("-", out);
    } else {
        fprintf(out, "%.*f%s", c->decimals, scale * x->value, share ? " %" : "");
        if (c->kind == TABLE_INTERVAL && !isnan(x->lo) && x->hi > x->lo)
            fprintf(out, " [%.*f, %.*f]", c->decimals, x->lo, c->decimals, x->hi);
    }
}

static int is_empty(const struct table *t, int c)
{
    for (int r = 0; r < t->n_rows; r++)
        if (t->cells[r * t->n_columns + c].text || !isnan(t->cells[r * t->n_columns + c].value))
            return 0;
    return 1;
}

static void put_table(const struct table *t, const char *title, unsigned views, const char *legend, FILE *out)
{
    if (!t->n_rows)
        return;
    fprintf(out, "<h2>%s</h2><div class=\"scroll\"><table><tr>", title);
    for (int c = 0; c < t->n_columns; c++)
        if ((t->columns[c].views & views) && !is_empty(t, c)) {
            fputs(t->columns[c].kind == TABLE_TEXT ? "<th class=\"t\">" : "<th>", out);
            svg_escape(out, t->columns[c].head);
            fputs("<br><span class=\"soft\">", out);
            svg_escape(out, t->columns[c].unit);
            fputs("</span></th>", out);
        }
    fputs("</tr>\n", out);
    for (int r = 0; r < t->n_rows; r++) {
        fputs("<tr>", out);
        for (int c = 0; c < t->n_columns; c++)
            if ((t->columns[c].views & views) && !is_empty(t, c)) {
                fputs(t->columns[c].kind == TABLE_TEXT ? "<td class=\"t\">" : "<td>", out);
                cell(&t->columns[c], &t->cells[r * t->n_columns + c], out);
                fputs("</td>", out);
            }
        fputs("</tr>\n", out);
    }
    fputs("</table></div>", out);
    if (*legend) {
        fputs("<p class=\"soft\">", out);
        svg_escape(out, legend);
        fputs("</p>\n", out);
    }
}

/* What an arm's numbers amount to, in a sentence. */
static void verdict(const struct analyze_report *r, const struct summary_row *row, FILE *out)
{
    const struct trace_arm *arm = &r->t->arms[row->arm];
    const struct stats_interval *s = &row->speedup;
    fputs("<li><b>", out);
    svg_escape(out, arm->label);
    fprintf(out, "</b>: %.2f tokens a verification step", row->al.value);
    if (!isnan(row->al.lo))
        fprintf(out, " [%.2f, %.2f]", row->al.lo, row->al.hi);
    if (row->baseline < 0 || isnan(s->value))
        fputs("; there is no plain arm to compare its speed with", out);
    else if (isnan(s->lo))
        fprintf(out, "; %.2f times plain decoding, from too few prompts for an interval", s->value);
    else if (s->lo > 1)
        fprintf(out, "; <b>faster</b> than plain decoding: %.2f times [%.2f, %.2f]", s->value, s->lo, s->hi);
    else if (s->hi < 1)
        fprintf(out, "; <b>slower</b> than plain decoding: %.2f times [%.2f, %.2f]", s->value, s->lo, s->hi);
    else
        fprintf(out, "; not told apart from plain decoding: %.2f times [%.2f, %.2f]", s->value, s->lo, s->hi);
    if (arm->lossy)
        fputs("; <b>lossy</b>: its text is not the target's", out);
    else if (row->sums.compared)
        fprintf(out, "; %" PRId64 " of %" PRId64 " answers are plain decoding's", row->sums.identical,
                row->sums.compared);
    fputs(".</li>\n", out);
}

static void put_summary(const struct analyze_report *r, FILE *out)
{
    fputs("<h2>Summary</h2><ul>", out);
    for (int i = 0; i < r->summary.n; i++) {
        const struct summary_row *row = &r->summary.rows[i];
        if (!row->group && row->baseline != row->arm)
            verdict(r, row, out);
    }
    if (!r->summary.n)
        fputs("<li>No finished request.</li>", out);
    fputs("</ul>\n", out);
    if (!r->notes.n)
        return;
    fputs("<h3>What to know before believing it</h3><ul>", out);
    for (int i = 0; i < r->notes.n; i++) {
        fputs("<li>", out);
        svg_escape(out, r->notes.text[i]);
        fputs("</li>\n", out);
    }
    fputs("</ul>\n", out);
}

static void row_of(const char *name, const char *value, FILE *out)
{
    fputs("<tr><td class=\"t\">", out);
    svg_escape(out, name);
    fputs("</td><td class=\"t\" style=\"white-space:normal\">", out);
    svg_escape(out, value);
    fputs("</td></tr>\n", out);
}

static void put_provenance(const struct analyze_report *r, FILE *out)
{
    const struct trace_meta *m = &r->t->meta;
    char fingerprint[32], bootstrap[128];
    snprintf(fingerprint, sizeof fingerprint, "%016" PRIx64, m->fingerprint);
    snprintf(bootstrap, sizeof bootstrap, "percentile, over prompts, %d replicates, seed %" PRIu64,
             r->opts->summary.resampling.replicates, r->opts->summary.resampling.seed);
    const char *rows[][2] = {{"file", r->t->path},
                             {"status", m->status},
                             {"model", m->model},
                             {"fingerprint", fingerprint},
                             {"device", m->device},
                             {"instruction set", m->isa},
                             {"host", m->host},
                             {"specbed", m->version},
                             {"commit", m->git_commit},
                             {"build", m->build},
                             {"libraries", m->libraries},
                             {"started", m->started},
                             {"ended", m->ended},
                             {"slice", m->slice},
                             {"trace level", m->trace_level},
                             {"intervals", bootstrap}};
    fputs("<h2>Provenance</h2><table>", out);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        row_of(rows[i][0], rows[i][1], out);
    fputs("</table><details><summary>Configuration</summary><pre>", out);
    svg_escape(out, m->config);
    fputs("</pre></details>\n", out);
}

/* The value of "name:" in the configuration. */
static void put_name(const char *config, FILE *out)
{
    const char *at = strstr(config, "name:");
    char name[128] = "a run";
    if (at && (at == config || at[-1] == '\n'))
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 5 + strspn(at + 5, " \""), "\"\n"),
                 at + 5 + strspn(at + 5, " \""));
    svg_escape(out, name);
}

int analyze_html(const struct analyze_report *r, FILE *out)
{
    fputs("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" "
          "content=\"width=device-width\"><title>",
          out);
    put_name(r->t->meta.config, out);
    fprintf(out, " - specbed</title><style>%s</style><body><h1>", style);
    put_name(r->t->meta.config, out);
    fputs("</h1><p class=\"soft\">", out);
    svg_escape(out, r->t->meta.model);
    fputs(" on ", out);
    svg_escape(out, r->t->meta.device);
    fputs("</p>\n", out);
    put_summary(r, out);
    TRY(analyze_html_plots(r, out));
    analyze_html_answer(r, out);
    put_table(&r->table[ANALYZE_RESULTS], "Acceptance", ANALYZE_VIEW, "", out);
    put_table(&r->table[ANALYZE_RESULTS], "Speed", ANALYZE_SPEED, "", out);
    put_table(&r->table[ANALYZE_POSITIONS], "By position", ANALYZE_VIEW, "", out);
    put_table(&r->table[ANALYZE_COMPARISONS], "Comparisons", ANALYZE_VIEW, analyze_comparison_legend, out);
    put_table(&r->table[ANALYZE_EXPERTS], "Experts", ANALYZE_VIEW, "", out);
    put_table(&r->table[ANALYZE_ECONOMICS], "When a further row pays", ANALYZE_VIEW, analyze_economics_legend,
              out);
    put_table(&r->table[ANALYZE_WHAT_IF], "What if", ANALYZE_VIEW, analyze_whatif_legend, out);
    put_table(&r->table[ANALYZE_BEST], "Best by category", ANALYZE_VIEW, analyze_best_legend, out);
    put_table(&r->table[ANALYZE_DEFINITIONS], "In the words of other tools", ANALYZE_VIEW,
              analyze_definition_legend, out);
    put_provenance(r, out);
    fputs("</body></html>\n", out);
    if (fflush(out) || ferror(out))
        FAIL(ERR_IO, "%s: cannot write its page: %s", r->t->path, strerror(errno));
    return 0;
}
