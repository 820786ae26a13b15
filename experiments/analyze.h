/* analyze: what a result file says, as tables. The formulas are in metrics.h, the intervals in stats.h, the rows in summary.h.
 *
 * JSON form (--json), schema_version 1; undefined numbers are null, times are in the unit that the key ends in:
 *   schema_version 1
 *   source     {path, status, model, fingerprint, device, isa, host, threads, version, git_commit, build, started, ended, slice,
 *              trace_level, config}
 *   method     {interval: "percentile bootstrap over prompts", level, replicates, seed}
 *   results    [one object for every arm and group; its keys are the columns of the CSV form; intervals are {value, lo, hi}]
 *   positions  [one object for every arm, group and depth; none for scored answers]
 *   definitions [what other tools would have reported: one object for every arm that drafted, definition and position]
 *   breakdown  [acceptance against turn, context, entropy, confidence or rank: one object for every arm, axis and bin that was asked for]
 *   experts    [distinct experts by arm and rows of a pass; none for dense models]
 *   economics  [when a further row of a pass pays: one object for every point of the cost table; empty without one]
 *   what_if, best, back_test [predictions for drafts that were not run, the best of them by category, and runs of them: whatif.h; empty unless asked for]
 *   comparisons [arms against each other, paired by prompt; see stats_test.h]
 *   notes      [sentences]
 * A group is null for all prompts together. New keys may come; these keep name and meaning while schema_version is 1. */
#ifndef EXPERIMENTS_ANALYZE_H
#define EXPERIMENTS_ANALYZE_H
#include "experiments/summary.h"
#include <stdio.h>

enum analyze_form { ANALYZE_TEXT, ANALYZE_JSON, ANALYZE_CSV };
enum analyze_table { ANALYZE_RESULTS, ANALYZE_POSITIONS, ANALYZE_DEFINITIONS, ANALYZE_COMPARISONS, ANALYZE_BREAKDOWN, ANALYZE_EXPERTS, ANALYZE_ECONOMICS, ANALYZE_WHAT_IF, ANALYZE_BEST, ANALYZE_BACK_TEST, ANALYZE_TABLES };

struct analyze_opts {
    struct summary_opts summary;
    enum analyze_form form;
    unsigned tables;     /* 1 << enum analyze_table. Text: these too; CSV: the last of these instead of the results; JSON has all */
    unsigned axes;       /* 1 << enum metrics_axis: of the breakdown */
    const char *what, *source, *cost; /* of what-if: the question, the arm whose texts are used; the file with the cost table; NULL: none; borrowed */
    int tolerant;        /* 1: axes that the trace has nothing for are left out of the breakdown instead of an error */
    const char *html;    /* where a page is written besides, NULL: none; borrowed */
    int back_test;       /* so many variants are run, 0: none */
    const char *against; /* label of the arm that all others are compared with, NULL: each with its baseline; borrowed */
};
struct analyze_opts analyze_defaults(void); /* text, all prompts together, 2000 replicates, seed 1, 95 % */

/* t holds steps, full or lean, and scores; a breakdown by nodes takes lean ones that were read with their judged nodes. */
int analyze_trace(const struct trace *t, const struct analyze_opts *opts, FILE *out);
/* `specbed analyze PATH`: the file's text form with the defaults. */
int analyze_print(const char *path, FILE *out);
#endif
