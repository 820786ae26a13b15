/* metrics_bins: acceptance against what may explain it: turn, context, and for each node that the rule looked at the entropy of the target
 * there, the draft's confidence and the token's rank under the target.
 *
 * A node is judged when its parent is the root or was accepted. Its rate, accepted / judged, is conditional: how deep it stands does not
 * matter. Siblings on a tree are judged each, though one at most is accepted. */
#ifndef EXPERIMENTS_METRICS_BINS_H
#define EXPERIMENTS_METRICS_BINS_H
#include "experiments/trace_lean.h"

enum metrics_axis { METRICS_TURN, METRICS_CONTEXT, METRICS_ENTROPY, METRICS_CONFIDENCE, METRICS_RANK, METRICS_AXES };
enum { METRICS_BINS = 24 };
extern const char *const metrics_axis_names[METRICS_AXES];

/* Steps: n = steps, hits = accepted + steps, so that hits / n is AL. Nodes: judged and accepted. sum: of the value that was binned. */
struct metrics_bin {
    double n, hits, sum;
};

int metrics_axis_is_of_nodes(enum metrics_axis axis);
/* Edges: [lo, hi) of bin b; the last one's hi is infinity. Confidence has ten equal bins (Guo et al. 2017). */
double metrics_bin_from(enum metrics_axis axis, int b);
double metrics_bin_to(enum metrics_axis axis, int b);
/* One request into bins [METRICS_BINS]; nodes need t->judged. */
void metrics_bin_request(struct metrics_bin *bins, enum metrics_axis axis, const struct trace *t, int64_t request);
/* 1: what was binned was never measured: entropies that are all 0 (trace level below full), a draft without probabilities, whose confidences are all 1. */
int metrics_bins_are_void(const struct metrics_bin *bins, enum metrics_axis axis);
/* Expected calibration error (Guo et al. 2017): sum over bins of n / N |hits / n - sum / n|. NaN without nodes. */
double metrics_ece(const struct metrics_bin *bins);
#endif
