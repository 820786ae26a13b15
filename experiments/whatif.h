/* whatif: acceptance and speed of drafts that were not run, from a run's texts (whatif_replay.h) and measured times of passes (whatif_cost.h).
 *
 *   time of a step = factor * pass(rows, tokens before it) + the rest, which the trace's arm of the same strategy took besides its passes;
 *                    the factor brings the table's passes to the pace of the trace's own
 *   speed          = later tokens / time of later steps
 * Intervals: AL, the bootstrap over prompts, as everywhere. Speed-up and tokens/s: the same, widened by what the model of time got wrong on
 * the trace's own arms (root mean square of the log) and by the spread of the table's passes; both as normal deviations. */
#ifndef EXPERIMENTS_WHATIF_H
#define EXPERIMENTS_WHATIF_H
#include "experiments/stats.h"
#include "experiments/table.h"
#include "experiments/trace.h"
#include "experiments/whatif_cost.h"
#include "experiments/whatif_replay.h"

struct whatif_opts {
    const char *what;   /* "draft.max_depth=1..8,strategy=ngram": keys of draft, values with | between them or as a range */
    const char *source; /* label of the arm whose texts are used, NULL: the first that fits */
    struct stats_resampling resampling;
};

/* A configuration that is asked about. */
struct whatif_variant {
    char *label;              /* owned */
    char *config;             /* owned: YAML of the whole configuration */
    char *strategy;           /* owned */
    struct whatif_draft draft;
    int arm;                  /* whose texts, and of WHATIF_CHAIN whose drafts */
    int64_t steps, exact, tokens; /* replayed; exact: those that are certain */
    struct stats_interval al, speed, speedup; /* tokens a step; tokens/s; over plain decoding, predicted alike */
    double rows;              /* of a pass, the mean */
};

/* The best of a category, and of all (category NULL). */
struct whatif_best {
    const char *category;     /* borrowed from the trace */
    int variant;
    double speedup, oracle;   /* over plain decoding; of the variant; of choosing the best replayable draft at every step (n-gram variants only), NaN: none */
};

struct whatif {
    struct whatif_variant *variants; /* owned [n] */
    struct whatif_best *best;        /* owned [n_best] */
    int n, n_best;
    double factor, error;            /* of the model of time: the machine's factor; relative error on the trace's own arms */
};

/* t holds steps in full, tokens and prompt tokens. ERR_CONFIG with a sentence for what the trace does not determine: another key than the draft's,
 * a rule under which texts depend on the draft, several sequences at once, a chain that is deeper than was drafted, more rows than the
 * table has. */
int  whatif_init(struct whatif *w, const struct trace *t, const struct whatif_costs *costs, const struct whatif_opts *opts);
void whatif_deinit(struct whatif *w); /* a zeroed struct is fine */

/* The variants of opts->what around the arm that gives the texts: label, config, strategy, draft and arm of each. Part of whatif_init. */
int  whatif_variants(struct whatif *w, const struct trace *t, const struct whatif_opts *opts);
#endif
