/* One table of results and one of acceptance by position hold every number; the three forms of output are
 * views of them. */
#include "experiments/analyze.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/analyze_experts.h"
#include "experiments/analyze_score.h"
#include "experiments/commands.h"
#include "experiments/display.h"
#include "experiments/join.h"
#include "experiments/notes.h"
#include "experiments/source.h"
#include "experiments/table.h"
#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Views of the results in text; the total speed is worth its room only where sequences shared steps. */
enum { ACCEPTANCE = 1, SPEED = 2, SPEED_SHARED = 4, ALL = 7 };

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

static const struct table_column position_columns[] = {
    {"arm", "arm", "", TABLE_TEXT, 0, ACCEPTANCE},
    {"lossy", "", "", TABLE_TEXT, 0, ACCEPTANCE},
    {"group", "group", "", TABLE_TEXT, 0, ACCEPTANCE},
    {"position", "position", "", TABLE_COUNT, 0, ACCEPTANCE},
    {"proposed_steps", "proposed", "steps", TABLE_COUNT, 0, ACCEPTANCE},
    {"tried_steps", "tried", "steps", TABLE_COUNT, 0, ACCEPTANCE},
    {"accepted_steps", "accepted", "steps", TABLE_COUNT, 0, ACCEPTANCE},
    {"unconditional", "unconditional", "of drafted", TABLE_SHARE, 1, ACCEPTANCE},
    {"conditional", "conditional", "of tried", TABLE_SHARE, 1, ACCEPTANCE},
};

/* Everything that is printed. */
struct report {
    const struct trace *t;
    const struct analyze_opts *opts;
    struct summary summary;
    struct notes notes;
    struct table results, positions, experts;
};

struct analyze_opts analyze_defaults(void)
{
    return (struct analyze_opts){
        .summary = {.by = SUMMARY_BY_NONE,
                    .resampling = {.replicates = STATS_REPLICATES, .level = 0.95, .seed = 1}},
        .form = ANALYZE_TEXT};
}

static void begin_row(struct table *x, const struct report *r, const struct summary_row *row)
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

static void fill_positions(struct table *p, const struct report *r, const struct summary_row *row)
{
    const struct metrics_sums *m = &row->sums;
    for (int d = 1, depth = metrics_depth(m); d <= depth; d++) {
        begin_row(p, r, row);
        if (d == 1 && p->n_rows > 1)
            table_break(p);
        table_number(p, "position", d);
        table_number(p, "proposed_steps", (double)m->at_depth[d]);
        table_number(p, "tried_steps", (double)m->tried_depth[d]);
        table_number(p, "accepted_steps", (double)m->accepted_depth[d]);
        table_number(p, "unconditional", metrics_unconditional(m, d));
        table_number(p, "conditional", metrics_conditional(m, d));
    }
}

static void fill_tables(struct report *r)
{
    struct table *x = &r->results;
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
        fill_positions(&r->positions, r, row);
    }
}

static const char run_legend[] = "AL: tokens per verification step, bonus included; drafted: over steps that "
                                 "had a draft; speed: decoding after "
                                 "the first step; speed-up: against none on the same prompts.";

static void print_legend(const struct report *r, FILE *out)
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

static unsigned speed_view(const struct report *r)
{
    for (int i = 0; i < r->summary.n; i++)
        if (r->summary.rows[i].concurrency > 1)
            return SPEED_SHARED;
    return SPEED;
}

static int print_text(const struct report *r, FILE *out)
{
    int scored = trace_is_scored(r->t);
    TRY(source_print(r->t, out));
    fputc('\n', out);
    TRY(table_print_text(&r->results, scored ? ANALYZE_SCORE_FIT : ACCEPTANCE, DISPLAY_WIDTH, out));
    fputc('\n', out);
    TRY(table_print_text(&r->results, scored ? ANALYZE_SCORE_NEAR : speed_view(r), DISPLAY_WIDTH, out));
    if (r->opts->positions && r->positions.n_rows) {
        fputc('\n', out);
        TRY(table_print_text(&r->positions, ACCEPTANCE, DISPLAY_WIDTH, out));
    }
    if (r->experts.n_rows) {
        fputc('\n', out);
        TRY(table_print_text(&r->experts, ANALYZE_EXPERTS_VIEW, DISPLAY_WIDTH, out));
    }
    fputc('\n', out);
    print_legend(r, out);
    if (r->experts.n_rows)
        display_paragraph(analyze_experts_legend, 0, DISPLAY_WIDTH, out);
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

static int print_json(const struct report *r, FILE *out)
{
    const struct stats_resampling *b = &r->opts->summary.resampling;
    json_t *results = NULL, *positions = NULL, *experts = NULL;
    int rc = table_json(&r->results, &results);
    if (!rc)
        rc = table_json(&r->positions, &positions);
    if (!rc)
        rc = table_json(&r->experts, &experts);
    if (rc) {
        json_decref(results);
        json_decref(positions);
        return rc;
    }
    /* json_pack takes the references over, on failure too. */
    json_t *doc =
        json_pack("{s:i, s:o, s:{s:s, s:f, s:i, s:I}, s:o, s:o, s:o, s:o}", "schema_version", 1, "source",
                  source_json(r->t), "method", "interval", "percentile bootstrap over prompts", "level",
                  b->level, "replicates", b->replicates, "seed", (json_int_t)b->seed, "results", results,
                  "positions", positions, "experts", experts, "notes", json_notes(&r->notes));
    if (!doc || json_dumpf(doc, out, JSON_INDENT(2)))
        rc = ERR_SET(ERR_MEMORY, "%s: cannot write its numbers as JSON", r->t->path);
    json_decref(doc);
    fputc('\n', out);
    return rc;
}

static int print_csv(const struct report *r, FILE *out)
{
    for (int i = 0; i < r->notes.n; i++)
        log_warn("analyze: %s", r->notes.text[i]);
    return table_print_csv(r->opts->positions ? &r->positions : &r->results, out);
}

int analyze_trace(const struct trace *t, const struct analyze_opts *opts, FILE *out)
{
    static int (*const print[])(const struct report *r, FILE *out) = {
        [ANALYZE_TEXT] = print_text, [ANALYZE_JSON] = print_json, [ANALYZE_CSV] = print_csv};
    struct report r = {.t = t, .opts = opts};
    if (trace_is_scored(t))
        table_init(&r.results, analyze_score_columns, analyze_score_n_columns);
    else
        table_init(&r.results, result_columns, sizeof result_columns / sizeof *result_columns);
    table_init(&r.positions, position_columns, sizeof position_columns / sizeof *position_columns);
    table_init(&r.experts, analyze_experts_columns, analyze_experts_n_columns);
    int rc = summary_init(&r.summary, t, &opts->summary);
    if (rc)
        goto out;
    rc = notes_init(&r.notes, t, &r.summary);
    if (rc)
        goto out;
    fill_tables(&r);
    rc = analyze_experts_fill(&r.experts, t);
    if (rc)
        goto out;
    rc = print[opts->form](&r, out);
    if (!rc && (fflush(out) || ferror(out)))
        rc = ERR_SET(ERR_IO, "%s: cannot write its tables: %s", t->path, strerror(errno));
out:
    table_deinit(&r.results);
    table_deinit(&r.positions);
    table_deinit(&r.experts);
    notes_deinit(&r.notes);
    summary_deinit(&r.summary);
    return rc;
}

static int analyze_files(const char *const *path, int n, const struct analyze_opts *opts, FILE *out)
{
    struct trace all = {0}, part = {0};
    int rc = 0;
    for (int i = 0; i < n && !rc; i++) {
        rc = trace_read(&part, path[i], TRACE_READ_STEPS | TRACE_READ_SCORES);
        if (!rc)
            rc = join_append(&all, &part);
    }
    if (!rc)
        rc = analyze_trace(&all, opts, out);
    trace_deinit(&part);
    trace_deinit(&all);
    return rc;
}

int analyze_print(const char *path, FILE *out)
{
    struct analyze_opts opts = analyze_defaults();
    return analyze_files(&path, 1, &opts, out);
}

/* What the command line said. */
struct invocation {
    struct analyze_opts opts;
    const char **path; /* owned [n], borrowed strings */
    int n;
};

static uint64_t parse_number(struct argp_state *state, const char *arg, const char *what, uint64_t lo,
                             uint64_t hi)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(arg, &end, 10);
    if (end == arg || *end || *arg == '-' || errno || v < lo || v > hi)
        argp_error(state, "%s: expected a whole number of [%" PRIu64 ", %" PRIu64 "], found '%s'", what, lo,
                   hi, arg);
    return v;
}

static enum summary_by parse_by(struct argp_state *state, const char *arg)
{
    static const char *const names[] = {
        [SUMMARY_BY_NONE] = "none", [SUMMARY_BY_CATEGORY] = "category", [SUMMARY_BY_DATASET] = "dataset"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(arg, names[i]))
            return (enum summary_by)i;
    argp_error(state, "--by: expected category, dataset or none, found '%s'", arg);
    return SUMMARY_BY_NONE;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct invocation *q = state->input;
    switch (key) {
    case 'j':
        q->opts.form = ANALYZE_JSON;
        break;
    case 'c':
        q->opts.form = ANALYZE_CSV;
        break;
    case 'b':
        q->opts.summary.by = parse_by(state, arg);
        break;
    case 'p':
        q->opts.positions = 1;
        break;
    case 'B':
        q->opts.summary.resampling.replicates =
            (int)parse_number(state, arg, "--bootstrap", 1, STATS_MAX_REPLICATES);
        break;
    case 's':
        q->opts.summary.resampling.seed = parse_number(state, arg, "--seed", 0, INT64_MAX);
        break;
    case ARGP_KEY_ARG:
        q->path[q->n++] = arg;
        break;
    case ARGP_KEY_NO_ARGS:
        argp_error(state, "expected at least one result file");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

int command_analyze(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"json", 'j', 0, 0, "print JSON: every number in full precision", 0},
        {"csv", 'c', 0, 0, "print CSV: a row for every arm and group (with --positions: and position)", 0},
        {"by", 'b', "WHAT", 0, "rows for every category or dataset too (default none)", 0},
        {"positions", 'p', 0, 0, "acceptance by position, conditional and unconditional", 0},
        {"bootstrap", 'B', "N", 0, "replicates behind an interval (default 2000)", 0},
        {"seed", 's', "N", 0, "of the bootstrap (default 1)", 0},
        {0}};
    static const struct argp argp = {options,
                                     parse_option,
                                     "FILE...",
                                     "Print acceptance and speed of a run; of one that scored answers, "
                                     "perplexity and how near each arm is to the "
                                     "reference. Several files, such as its slices, are read as one.",
                                     0,
                                     0,
                                     0};
    struct invocation q = {.opts = analyze_defaults(), .path = calloc((size_t)argc + 1, sizeof *q.path)};
    if (!q.path)
        FAIL(ERR_MEMORY, "no memory for %d arguments", argc);
    argp_parse(&argp, argc, argv, 0, NULL, &q);
    int rc = analyze_files(q.path, q.n, &q.opts, stdout);
    free(q.path);
    return rc;
}
