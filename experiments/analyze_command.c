/* analyze_command: the command line of analyze, and the files that it names. */
#include "engine/err.h"
#include "experiments/analyze.h"
#include "experiments/analyze_input.h"
#include "experiments/commands.h"
#include "experiments/metrics_bins.h"
#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What must be read: nodes only where somebody asked for them. */
static unsigned parts(const struct analyze_opts *opts)
{
    unsigned p = TRACE_READ_SCORES | TRACE_READ_LOOPS;
    p |= opts->what ? TRACE_READ_STEPS | TRACE_READ_TOKENS : 0;
    p |= opts->what && !opts->axes ? 0 : TRACE_READ_LEAN;
    for (int i = 0; i < METRICS_AXES; i++)
        if ((opts->axes >> i & 1) && metrics_axis_is_of_nodes((enum metrics_axis)i))
            p |= TRACE_READ_JUDGED;
    return p;
}

int analyze_print(const char *path, FILE *out)
{
    struct analyze_opts opts = analyze_defaults();
    struct trace t = {0};
    int rc = trace_read(&t, path, parts(&opts));
    if (!rc)
        rc = analyze_trace(&t, &opts, out);
    trace_deinit(&t);
    return rc;
}

enum { KEY_COST = 1000, KEY_TEXTS, KEY_BACK_TEST, KEY_HTML };

/* What the command line said. */
struct invocation {
    struct analyze_opts opts;
    const char **path; /* owned [n], borrowed strings */
    int n;
    int follow; /* seconds between looks, 0: once */
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

static enum metrics_axis parse_axis(struct argp_state *state, const char *arg)
{
    for (int i = 0; i < METRICS_AXES; i++)
        if (!strcmp(arg, metrics_axis_names[i]))
            return (enum metrics_axis)i;
    argp_error(state, "--breakdown: expected turn, context, entropy, confidence or rank, found '%s'", arg);
    return METRICS_TURN;
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
        q->opts.tables |= 1u << ANALYZE_POSITIONS;
        break;
    case 'd':
        q->opts.tables |= 1u << ANALYZE_DEFINITIONS;
        break;
    case 'x':
        q->opts.axes |= 1u << parse_axis(state, arg);
        q->opts.tables |= 1u << ANALYZE_BREAKDOWN;
        break;
    case 'w':
        q->opts.what = arg;
        q->opts.tables |= 1u << ANALYZE_WHAT_IF;
        break;
    case KEY_COST:
        q->opts.cost = arg;
        q->opts.tables |= 1u << ANALYZE_ECONOMICS;
        break;
    case KEY_BACK_TEST:
        q->opts.back_test = arg ? (int)parse_number(state, arg, "--back-test", 1, 1000) : 1000;
        break;
    case KEY_HTML:
        q->opts.html = arg;
        break;
    case KEY_TEXTS:
        q->opts.source = arg;
        break;
    case 'a':
        q->opts.against = arg;
        q->opts.tables |= 1u << ANALYZE_COMPARISONS;
        break;
    case 'B':
        q->opts.summary.resampling.replicates =
            (int)parse_number(state, arg, "--bootstrap", 1, STATS_MAX_REPLICATES);
        break;
    case 's':
        q->opts.summary.resampling.seed = parse_number(state, arg, "--seed", 0, INT64_MAX);
        break;
    case 'f':
        q->follow = arg ? (int)parse_number(state, arg, "--follow", 1, 3600) : 2;
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

/* A page shows categories, positions and curves whether or not the text does. */
static void ask_for_page(struct analyze_opts *opts)
{
    if (opts->summary.by == SUMMARY_BY_NONE)
        opts->summary.by = SUMMARY_BY_CATEGORY;
    opts->tolerant = 1;
    opts->tables |= 1u << ANALYZE_POSITIONS | 1u << ANALYZE_COMPARISONS | 1u << ANALYZE_BREAKDOWN |
                    1u << ANALYZE_DEFINITIONS;
    opts->axes |=
        1u << METRICS_CONTEXT | 1u << METRICS_ENTROPY | 1u << METRICS_CONFIDENCE | 1u << METRICS_RANK;
}

/* Once, or again and again while the run goes on. */
static int analyze_all(const struct analyze_input *in, const struct invocation *q)
{
    for (uint64_t seen = 0;;) {
        struct trace t = {0};
        uint64_t state = analyze_input_state(in);
        int rc = 0, running = 1;
        if (state != seen) {
            rc = analyze_input_read(in, parts(&q->opts), &t);
            running = !rc && !strcmp(t.meta.status, "running");
            if (!rc)
                rc = analyze_trace(&t, &q->opts, stdout);
            trace_deinit(&t);
            if (!rc && q->follow && running)
                puts("");
        }
        if (rc || !q->follow || !running)
            return rc;
        seen = state;
        sleep((unsigned)q->follow);
    }
}

int command_analyze(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"json", 'j', 0, 0, "print JSON: every number in full precision", 0},
        {"csv", 'c', 0, 0,
         "print CSV: a row for every arm and group; with --positions and the like, that table instead", 0},
        {"by", 'b', "WHAT", 0, "rows for every category or dataset too (default none)", 0},
        {"positions", 'p', 0, 0, "acceptance by position, conditional and unconditional", 0},
        {"definitions", 'd', 0, 0, "what each other tool would report for the same steps", 0},
        {"compare", 'a', "ARM", OPTION_ARG_OPTIONAL,
         "arms compared prompt by prompt: with ARM, or each with its baseline", 0},
        {"breakdown", 'x', "AXIS", 0,
         "acceptance against turn, context, entropy, confidence (with calibration) or rank; may be repeated",
         0},
        {"follow", 'f', "SECONDS", OPTION_ARG_OPTIONAL,
         "print again whenever a file has grown, until the run ends (default every 2)", 0},
        {"what-if", 'w', "KEY=VALUES,...", 0,
         "predict drafts that were not run: keys of draft, values with | between them or as a range, such as "
         "strategy=ngram,max_depth=1..8; max_nodes follows max_depth unless given",
         0},
        {"cost-table", KEY_COST, "FILE", 0,
         "JSON of bench step --cost-table: when a further row pays, and the speeds of what-if", 0},
        {"back-test", KEY_BACK_TEST, "N", OPTION_ARG_OPTIONAL,
         "of what-if: run N of the variants (default all) and hold them against what was predicted", 0},
        {"texts", KEY_TEXTS, "ARM", 0,
         "of what-if: the arm whose texts are used (default the first that can be)", 0},
        {"html", KEY_HTML, "FILE", 0,
         "write a report as one page besides, with plots; what it shows needs no other option", 0},
        {"bootstrap", 'B', "N", 0, "replicates behind an interval (default 2000)", 0},
        {"seed", 's', "N", 0, "of the bootstrap (default 1)", 0},
        {0}};
    static const struct argp argp = {
        options,
        parse_option,
        "FILE...",
        "Print acceptance and speed of a run; of one that scored answers, "
        "perplexity and how near each arm is to the "
        "reference. Several files, such as its slices, are read as one; a folder "
        "means the *.h5 in it, a pattern what it matches.",
        0,
        0,
        0};
    struct invocation q = {.opts = analyze_defaults(), .path = calloc((size_t)argc + 1, sizeof *q.path)};
    if (!q.path)
        FAIL(ERR_MEMORY, "no memory for %d arguments", argc);
    argp_parse(&argp, argc, argv, 0, NULL, &q);
    if (q.opts.html)
        ask_for_page(&q.opts);
    struct analyze_input in = {0};
    int rc = analyze_input_init(&in, q.path, q.n);
    if (!rc && q.opts.what && in.n > 1)
        rc = ERR_SET(ERR_CONFIG, "--what-if: expected one file, found %d", in.n);
    if (!rc && q.opts.back_test && !q.opts.what)
        rc = ERR_SET(ERR_CONFIG, "--back-test goes with --what-if");
    if (!rc)
        rc = analyze_all(&in, &q);
    analyze_input_deinit(&in);
    free(q.path);
    return rc;
}
