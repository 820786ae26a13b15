/* stats_test: is the difference between two arms more than chance, and how many prompts would tell?
 *
 * Everything is paired by prompt: row i of a table is what both arms did with prompt i. A table has an even number of columns, the first half
 * of one arm, the second half of the other, in the same order; swapping the halves of a row is what would have been seen had the
 * arms been named the other way round. If the arms are alike, every such swap was as likely, which is all that the permutation test supposes.
 * A comparison statistic changes its sign when all rows are swapped: a difference or the log of a ratio. */
#ifndef EXPERIMENTS_STATS_TEST_H
#define EXPERIMENTS_STATS_TEST_H
#include "experiments/stats.h"

/* Column sums of two arms {a, b, c, d}. */
double stats_difference(const double *sums); /* a / b - c / d */
double stats_log_ratio(const double *sums);  /* log((a / b) / (c / d)) */

/* Two-sided exact sign test (Arbuthnot 1710; ties are left out): the chance of a split at least as uneven under fair coins. NaN: no pair differs. */
double stats_sign_test(int64_t higher, int64_t lower);

/* Two-sided permutation test (Fisher 1935; Pitman 1937) of f, which is a comparison statistic of x, f64 [n, columns]: all 2^n swaps when
 * there are no more than `replicates`, else that many at random and p = (1 + as extreme) / (1 + replicates) (Phipson and Smyth 2010), never 0.
 * NaN: f is not defined. */
double stats_permutation_test(const double *x, int64_t n, int columns, stats_fn f, const struct stats_resampling *r);

/* Holm 1979: adjusted in place, so that p[i] <= alpha rejects hypothesis i with a family-wise error of at most alpha, whatever depends on
 * what. NaN is no hypothesis and stays. ERR_MEMORY. */
int stats_holm(double *p, int n);

double stats_normal_quantile(double p); /* of the standard normal, p in (0, 1) */

/* Standard deviation, a prompt, of the linearised log ratio of x, f64 [n, 4] (delta method: sd / sqrt(n) is the standard error of
 * stats_log_ratio). NaN: n < 2 or not defined. */
double stats_log_ratio_sd(const double *x, int64_t n);
/* Prompts that a two-sided test at 1 - level needs to see a true ratio of 1 + effect with this power; and the other way round, the
 * effect that n prompts would show. NaN: sd is. */
double stats_prompts_needed(double sd, double effect, double level, double power);
double stats_effect_seen(double sd, int64_t n, double level, double power);

/* Values that repeat: y[i] belongs to group[i] (any order, groups 0..n_groups). One-way random effects by analysis of variance
 * (Searle 1971; groups of different sizes): the standard deviations of a run about its prompt and of prompts. NaN run: nothing repeats; NaN
 * prompt: fewer than two groups. A negative estimate of a variance is 0. ERR_MEMORY. */
struct stats_noise {
    double run, prompt;
};
int stats_noise(const double *y, const int *group, int64_t n, int n_groups, struct stats_noise *out);
#endif
