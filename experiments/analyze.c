/* One table of results and one of acceptance by position hold every number; the three forms of output are
 * views of them. */
#include "experiments/analyze.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/analyze_html.h"
#include "experiments/analyze_score.h"
#include "experiments/display.h"
#include "experiments/source.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    ACCEPTANCE = ANALYZE_VIEW,
    SPEED = ANALYZE_SPEED,
    SPEED_SHARED = ANALYZE_SPEED_SHARED,
    ALL = ANALYZE_VIEWS
};

static const struct table_column result_columns[] = {
    {"arm", "arm", "", TABLE_TEXT, 0, ALL},
    {"lossy", "", "", TABLE_TEXT, 0, ALL},
    {"group", "group", "", TABLE_TEXT, 0, ALL},
    {"strategy", "", "", TABLE_TEXT, 0, 0},
    {"rule", "", "", TABLE_TEXT, 0, 0},
    {"baseline", "", "", TABLE_TEXT, 0, 0},
    {"prompts", "prompts", "", TABLE_COUNT, 0, ACCEPTANCE},
    {"requests", "requests", "", TABLE_COUNT, 0, ACCEPTANCE},
    {"tokens", "tokens", "", TABLE_COUNT, 0, ACCEPTANCE},
    {"prompt_tokens", "", "", TABLE_COUNT, 0, 0},
    {"steps", "steps", "", TABLE_COUNT, 0, ACCEPTANCE},
    {"drafted_steps", "", "", TABLE_COUNT, 0, 0},
    {"proposed", "", "", TABLE_COUNT, 0, 0},
    {"accepted", "", "", TABLE_COUNT, 0, 0},
    {"al", "AL, tokens/step", "[95 %]", TABLE_INTERVAL, 2, ACCEPTANCE},
    {"al_no_bonus", "AL", "no bonus", TABLE_REAL, 2, ACCEPTANCE},
    {"al_drafted", "AL", "drafted", TABLE_REAL, 2, ACCEPTANCE},
    {"tokens_per_step", "", "", TABLE_REAL, 2, 0},
    {"acceptance_rate", "accepted", "of nodes", TABLE_SHARE, 1, ACCEPTANCE},
    {"tokens_per_s", "speed", "tokens/s", TABLE_REAL, 1, SPEED | SPEED_SHARED},
    {"total_tokens_per_s", "total", "tokens/s", TABLE_REAL, 1, SPEED_SHARED},
    {"speedup", "speed-up, x none", "[95 %]", TABLE_INTERVAL, 2, SPEED | SPEED_SHARED},
    {"speedup_bound", "", "", TABLE_REAL, 2, 0},
    {"paired_prompts", "", "", TABLE_COUNT, 0, 0},
    {"ttft_median_ms", "TTFT, ms", "median", TABLE_REAL, 1, SPEED | SPEED_SHARED},
    {"ttft_p90_ms", "", "p90", TABLE_REAL, 1, SPEED | SPEED_SHARED},
    {"step_median_ms", "step, ms", "median", TABLE_REAL, 1, SPEED | SPEED_SHARED},
    {"step_p90_ms", "", "p90", TABLE_REAL, 1, SPEED | SPEED_SHARED},
    {"identical", "", "", TABLE_COUNT, 0, 0},
    {"compared", "", "", TABLE_COUNT, 0, 0},
    {"identical_share", "identical", "to none", TABLE_SHARE, 1, SPEED | SPEED_SHARED},
    {"concurrency", "", "", TABLE_COUNT, 0, 0},
};
static const int n_result_columns = sizeof result_columns / sizeof *result_columns;

static int fill_results(struct table *x, struct analyze_report *r);

static const struct analyze_section sections[ANALYZE_TABLES] = {
    [ANALYZE_RESULTS] = {"results", result_columns, &n_result_columns, fill_results, ""},
    [ANALYZE_POSITIONS] = {"positions", analyze_position_columns, &analyze_n_position_columns,
                           analyze_fill_positions, ""},
    [ANALYZE_DEFINITIONS] = {"definitions", analyze_definition_columns, &analyze_n_definition_columns,
                             analyze_fill_definitions, analyze_definition_legend},
    [ANALYZE_COMPARISONS] = {"comparisons", analyze_comparison_columns, &analyze_n_comparison_columns,
                             analyze_fill_comparisons, analyze_comparison_legend},
    [ANALYZE_BREAKDOWN] = {"breakdown", analyze_bin_columns, &analyze_n_bin_columns, analyze_fill_bins,
                           analyze_bin_legend},
    [ANALYZE_ECONOMICS] = {"economics", analyze_economics_columns, &analyze_n_economics_columns,
                           analyze_fill_economics, analyze_economics_legend},
    [ANALYZE_WHAT_IF] = {"what_if", analyze_whatif_columns, &analyze_n_whatif_columns, analyze_fill_whatif,
                         analyze_whatif_legend},
    [ANALYZE_BEST] = {"best", analyze_best_columns, &analyze_n_best_columns, NULL, analyze_best_legend},
    [ANALYZE_BACK_TEST] = {"back_test", analyze_backtest_columns, &analyze_n_backtest_columns, NULL,
                           analyze_backtest_legend},
    [ANALYZE_EXPERTS] = {"experts", analyze_expert_columns, &analyze_n_expert_columns, analyze_fill_experts,
                         analyze_expert_legend},
};

struct analyze_opts analyze_defaults(void)
{
    return (struct analyze_opts){
        .summary = {.by = SUMMARY_BY_NONE,
                    .resampling = {.replicates = STATS_REPLICATES, .level = 0.95, .seed = 1}},
        .form = ANALYZE_TEXT};
}

static void begin_row(struct table *x, const struct analyze_report *r, const struct summary_row *row)
{
    const struct trace_arm *arm = &r->t->arms[row->arm];
    table_row(x);
    table_text(x, "arm", arm->label);
    if (arm->lossy)
        table_text(x, "lossy", "LOSSY");
    if (row->group)
        table_text(x, "group", row->group);
}

static void acceptance_cells(struct table *x, const struct summary_row *row)
{
    const struct metrics_sums *m = &row->sums;
    table_number(x, "prompts", (double)row->prompts);
    table_number(x, "requests", (double)m->requests);
    table_number(x, "tokens", (double)m->tokens);
    table_number(x, "prompt_tokens", (double)m->prompt_tokens);
    table_number(x, "steps", (double)m->steps);
    table_number(x, "drafted_steps", (double)m->drafted_steps);
    table_number(x, "proposed", (double)m->proposed);
    table_number(x, "accepted", (double)m->accepted);
    table_interval(x, "al", row->al);
    table_number(x, "al_no_bonus", metrics_al_no_bonus(m));
    table_number(x, "al_drafted", metrics_al_drafted(m));
    table_number(x, "tokens_per_step", metrics_tokens_per_step(m));
    table_number(x, "acceptance_rate", metrics_acceptance_rate(m));
}

static void speed_cells(struct table *x, const struct summary_row *row)
{
    table_number(x, "tokens_per_s", metrics_tokens_per_s(&row->sums));
    table_number(x, "total_tokens_per_s", row->aggregate);
    table_interval(x, "speedup", row->speedup);
    table_number(x, "speedup_bound", row->bound);
    table_number(x, "paired_prompts", (double)row->paired_prompts);
    table_number(x, "ttft_median_ms", row->ttft.median / 1e6);
    table_number(x, "ttft_p90_ms", row->ttft.p90 / 1e6);
    table_number(x, "step_median_ms", row->step.median / 1e6);
    table_number(x, "step_p90_ms", row->step.p90 / 1e6);
    table_number(x, "concurrency", row->concurrency);
    if (row->baseline < 0 || row->baseline == row->arm)
        return;
    table_number(x, "identical", (double)row->sums.identical);
    table_number(x, "compared", (double)row->sums.compared);
    table_number(x, "identical_share", metrics_identical(&row->sums));
}

static int new_group(const struct summary *s, int i)
{
    const char *a = i ? s->rows[i - 1].group : NULL, *b = s->rows[i].group;
    return i && b && (!a || strcmp(a, b));
}

static int fill_results(struct table *x, struct analyze_report *r)
{
    for (int i = 0; i < r->summary.n; i++) {
        const struct summary_row *row = &r->summary.rows[i];
        begin_row(x, r, row);
        if (new_group(&r->summary, i))
            table_break(x);
        if (trace_is_scored(r->t)) {
            analyze_score_cells(x, r->t, row);
            continue;
        }
        table_text(x, "strategy", r->t->arms[row->arm].strategy);
        table_text(x, "rule", r->t->arms[row->arm].rule);
        if (row->baseline >= 0)
            table_text(x, "baseline", r->t->arms[row->baseline].label);
        acceptance_cells(x, row);
        speed_cells(x, row);
    }
    return 0;
}

static unsigned selected(const struct analyze_report *r)
{
    return r->opts->form == ANALYZE_JSON ? ~0u
                                         : r->opts->tables | 1u << ANALYZE_RESULTS | 1u << ANALYZE_EXPERTS;
}

static int fill_tables(struct analyze_report *r)
{
    for (int i = 0; i < ANALYZE_TABLES; i++)
        if ((selected(r) >> i & 1) && sections[i].fill && (i == ANALYZE_RESULTS || !trace_is_scored(r->t)))
            TRY(sections[i].fill(&r->table[i], r));
    return 0;
}

static const char run_legend[] = "AL: tokens per verification step, bonus included; drafted: over steps that "
                                 "had a draft; speed: decoding after "
                                 "the first step; speed-up: against none on the same prompts.";

static void print_legend(const struct analyze_report *r, FILE *out)
{
    char text[1024];
    int64_t prompts = r->summary.n ? r->summary.rows[0].prompts : 0;
    for (int i = 1; i < r->summary.n && !r->summary.rows[i].group; i++)
        prompts = r->summary.rows[i].prompts > prompts ? r->summary.rows[i].prompts : prompts;
    snprintf(text, sizeof text,
             "%s [95 %%]: percentile bootstrap over %" PRId64 " prompts, arms paired, B=%d, seed %" PRIu64
             ".",
             trace_is_scored(r->t) ? analyze_score_legend : run_legend, prompts,
             r->opts->summary.resampling.replicates, r->opts->summary.resampling.seed);
    display_paragraph(text, 0, DISPLAY_WIDTH, out);
}

static void print_notes(const struct notes *n, FILE *out)
{
    for (int i = 0; i < n->n; i++) {
        fputs("note: ", out);
        display_paragraph(n->text[i], 6, DISPLAY_WIDTH - 6, out);
    }
}

static unsigned speed_view(const struct analyze_report *r)
{
    for (int i = 0; i < r->summary.n; i++)
        if (r->summary.rows[i].concurrency > 1)
            return SPEED_SHARED;
    return SPEED;
}

static int print_text(const struct analyze_report *r, FILE *out)
{
    int scored = trace_is_scored(r->t);
    const struct table *results = &r->table[ANALYZE_RESULTS];
    TRY(source_print(r->t, out));
    fputc('\n', out);
    TRY(table_print_text(results, scored ? ANALYZE_SCORE_FIT : ACCEPTANCE, DISPLAY_WIDTH, out));
    fputc('\n', out);
    TRY(table_print_text(results, scored ? ANALYZE_SCORE_NEAR : speed_view(r), DISPLAY_WIDTH, out));
    for (int i = ANALYZE_RESULTS + 1; i < ANALYZE_TABLES; i++) {
        if (!r->table[i].n_rows)
            continue;
        fputc('\n', out);
        TRY(table_print_text(&r->table[i], ANALYZE_VIEW, DISPLAY_WIDTH, out));
        if (*sections[i].legend)
            display_paragraph(sections[i].legend, 0, DISPLAY_WIDTH, out);
    }
    fputc('\n', out);
    print_legend(r, out);
    print_notes(&r->notes, out);
    return 0;
}

static json_t *json_notes(const struct notes *n)
{
    json_t *list = json_array();
    int bad = !list;
    for (int i = 0; i < n->n && !bad; i++)
        bad = json_array_append_new(list, table_json_string(n->text[i])) != 0;
    if (!bad)
        return list;
    json_decref(list);
    return NULL;
}

static int add_tables(json_t *doc, const struct analyze_report *r)
{
    for (int i = 0; i < ANALYZE_TABLES; i++) {
        json_t *rows;
        TRY(table_json(&r->table[i], &rows));
        if (json_object_set_new(doc, sections[i].key, rows))
            FAIL(ERR_MEMORY, "%s: no memory for the table of %s", r->t->path, sections[i].key);
    }
    return 0;
}

static int print_json(const struct analyze_report *r, FILE *out)
{
    const struct stats_resampling *b = &r->opts->summary.resampling;
    json_t *doc =
        json_pack("{s:i, s:o, s:{s:s, s:f, s:i, s:I}, s:o}", "schema_version", 1, "source", source_json(r->t),
                  "method", "interval", "percentile bootstrap over prompts", "level", b->level, "replicates",
                  b->replicates, "seed", (json_int_t)b->seed, "notes", json_notes(&r->notes));
    int rc = doc ? add_tables(doc, r) : ERR_SET(ERR_MEMORY, "%s: no memory for its JSON", r->t->path);
    if (!rc && json_dumpf(doc, out, JSON_INDENT(2)))
        rc = ERR_SET(ERR_IO, "%s: cannot write its numbers as JSON", r->t->path);
    json_decref(doc);
    fputc('\n', out);
    return rc;
}

static int print_csv(const struct analyze_report *r, FILE *out)
{
    for (int i = 0; i < r->notes.n; i++)
        log_warn("analyze: %s", r->notes.text[i]);
    int last = ANALYZE_TABLES - 1;
    while (last > ANALYZE_RESULTS && !(r->opts->tables >> last & 1))
        last--;
    return table_print_csv(&r->table[last], out);
}

static void init_tables(struct analyze_report *r)
{
    for (int i = 0; i < ANALYZE_TABLES; i++)
        table_init(&r->table[i], sections[i].columns, *sections[i].n_columns);
    if (trace_is_scored(r->t))
        table_init(&r->table[ANALYZE_RESULTS], analyze_score_columns, analyze_score_n_columns);
}

static int write_page(const struct analyze_report *r)
{
    FILE *out = fopen(r->opts->html, "w");
    if (!out)
        FAIL(ERR_IO, "%s: cannot write: %s", r->opts->html, strerror(errno));
    int rc = analyze_html(r, out);
    if (fclose(out) && !rc)
        rc = ERR_SET(ERR_IO, "%s: cannot write: %s", r->opts->html, strerror(errno));
    if (!rc)
        log_info("analyze: the report is in %s", r->opts->html);
    return rc;
}

int analyze_trace(const struct trace *t, const struct analyze_opts *opts, FILE *out)
{
    static int (*const print[])(const struct analyze_report *r, FILE *out) = {
        [ANALYZE_TEXT] = print_text, [ANALYZE_JSON] = print_json, [ANALYZE_CSV] = print_csv};
    struct analyze_report r = {.t = t, .opts = opts};
    init_tables(&r);
    int rc = summary_init(&r.summary, t, &opts->summary);
    if (rc)
        goto out;
    rc = notes_init(&r.notes, t, &r.summary);
    if (rc)
        goto out;
    rc = fill_tables(&r);
    if (rc)
        goto out;
    if (opts->html)
        rc = write_page(&r);
    if (rc)
        goto out;
    rc = print[opts->form](&r, out);
    if (!rc && (fflush(out) || ferror(out)))
        rc = ERR_SET(ERR_IO, "%s: cannot write its tables: %s", t->path, strerror(errno));
out:
    for (int i = 0; i < ANALYZE_TABLES; i++)
        table_deinit(&r.table[i]);
    notes_deinit(&r.notes);
    summary_deinit(&r.summary);
    return rc;
}
