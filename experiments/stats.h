/* stats: order statistics and bootstrap intervals.
 *
 * The unit that is drawn again is the prompt: turns and repeats of one prompt are alike, so they stay together as one cluster, and an
 * interval says how the number would move had other prompts of the same kind been asked. A comparison of two arms keeps both
 * answers to a prompt in the same cluster (paired): what makes a prompt hard for both arms cancels. */
#ifndef EXPERIMENTS_STATS_H
#define EXPERIMENTS_STATS_H
#include <stdint.h>

enum { STATS_MAX_COLUMNS = 4, STATS_REPLICATES = 2000, STATS_MAX_REPLICATES = 1000000 };

struct stats_interval {
    double value, lo, hi; /* lo, hi NaN: fewer than two clusters, or a statistic that most replicates leave undefined */
};
struct stats_resampling {
    int replicates; /* 1..STATS_MAX_REPLICATES */
    double level;   /* of the interval, 0.95 */
    uint64_t seed;
};

/* A statistic of column sums, sums [columns]. */
typedef double (*stats_fn)(const double *sums);
double stats_ratio(const double *sums);          /* s0 / s1 */
double stats_ratio_of_rates(const double *sums); /* (s0 / s1) / (s2 / s3); a speed-up from tokens and times of two arms */

void stats_sort(double *x, int64_t n);
/* p in [0, 1]; between two values in proportion (type 7 of Hyndman and Fan 1996, the default of NumPy and R); n = 0: NaN. */
double stats_percentile(const double *sorted, int64_t n, double p);

/* The same of values in any order, which it reorders: linear time on average. */
double stats_select(double *x, int64_t n, double p);

/* f of the column sums of x, f64 [n, columns], one row a cluster, and its percentile interval over `replicates` draws of n rows with
 * replacement. The random numbers depend on seed, replicate and draw alone, so equal calls give equal bits and two statistics
 * of one table are drawn alike. Replicates where f is NaN are left out. ERR_MEMORY. */
int stats_bootstrap(const double *x, int64_t n, int columns, stats_fn f, const struct stats_resampling *r, struct stats_interval *out);
#endif
