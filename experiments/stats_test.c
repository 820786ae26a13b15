/* Exact where that is cheap, else by a fixed number of random swaps. */
#include "experiments/stats_test.h"
#include "engine/err.h"
#include "kernels/philox.h"
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { USE_PERMUTATION = 0x7065726d, EXACT_ROWS = 20 };

/* Sums of the same rows in another order differ in their last bits; such a tie is a tie. */
static const double TIE = 1e-12;

double stats_difference(const double *s)
{
    return s[1] > 0 && s[3] > 0 ? s[0] / s[1] - s[2] / s[3] : NAN;
}

double stats_log_ratio(const double *s)
{
    return s[0] > 0 && s[1] > 0 && s[2] > 0 && s[3] > 0 ? log(s[0] / s[1]) - log(s[2] / s[3]) : NAN;
}

/* log of n over k. */
static double log_choose(int64_t n, int64_t k)
{
    return lgamma((double)n + 1) - lgamma((double)k + 1) - lgamma((double)(n - k) + 1);
}

double stats_sign_test(int64_t higher, int64_t lower)
{
    int64_t n = higher + lower, k = higher < lower ? higher : lower;
    if (n == 0)
        return NAN;
    double tail = 0;
    for (int64_t i = 0; i <= k; i++)
        tail += exp(log_choose(n, i) - (double)n * log(2.0));
    return fmin(1, 2 * tail);
}

static void add_row(const double *row, int columns, int swapped, double *sums)
{
    for (int c = 0; c < columns; c++)
        sums[c] += row[swapped ? (c + columns / 2) % columns : c];
}

/* f of the table with row i swapped where bit i says so. */
static double swapped_by_bits(const double *x, int64_t n, int columns, stats_fn f, uint64_t bits)
{
    double sums[STATS_MAX_COLUMNS] = {0};
    for (int64_t i = 0; i < n; i++)
        add_row(x + i * columns, columns, (int)(bits >> i & 1), sums);
    return f(sums);
}

static double swapped_at_random(const double *x, int64_t n, int columns, stats_fn f, uint64_t seed,
                                uint32_t replicate)
{
    double sums[STATS_MAX_COLUMNS] = {0};
    struct philox4 random = {{0}};
    for (int64_t i = 0; i < n; i++) {
        if (i % 128 == 0)
            random = philox(seed, replicate, (uint32_t)(i / 128), USE_PERMUTATION, 0);
        add_row(x + i * columns, columns, (int)(random.v[i / 32 % 4] >> (i % 32) & 1), sums);
    }
    return f(sums);
}

double stats_permutation_test(const double *x, int64_t n, int columns, stats_fn f,
                              const struct stats_resampling *r)
{
    assert(columns >= 2 && columns <= STATS_MAX_COLUMNS && columns % 2 == 0);
    double seen = fabs(swapped_by_bits(x, n < 1 ? 0 : n, columns, f, 0));
    if (n < 1 || isnan(seen))
        return NAN;
    double limit = seen - TIE * fmax(1, seen);
    int64_t extreme = 0;
    if (n <= EXACT_ROWS && ((int64_t)1 << n) <= r->replicates) {
        for (uint64_t bits = 0; bits < (uint64_t)1 << n; bits++)
            extreme += fabs(swapped_by_bits(x, n, columns, f, bits)) >= limit;
        return (double)extreme / (double)((int64_t)1 << n);
    }
    for (int b = 0; b < r->replicates; b++)
        extreme += fabs(swapped_at_random(x, n, columns, f, r->seed, (uint32_t)b)) >= limit;
    return (double)(extreme + 1) / (double)(r->replicates + 1);
}

struct ranked {
    double p;
    int at;
};

static int compare_p(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    return (x->p > y->p) - (x->p < y->p);
}

int stats_holm(double *p, int n)
{
    struct ranked *rank = malloc(((size_t)n + 1) * sizeof *rank);
    if (!rank)
        FAIL(ERR_MEMORY, "no memory to correct %d tests", n);
    int m = 0;
    for (int i = 0; i < n; i++)
        if (!isnan(p[i]))
            rank[m++] = (struct ranked){p[i], i};
    qsort(rank, (size_t)m, sizeof *rank, compare_p);
    double least = 0;
    for (int i = 0; i < m; i++) {
        least = fmax(least, fmin(1, (m - i) * rank[i].p));
        p[rank[i].at] = least;
    }
    free(rank);
    return 0;
}

/* Bisection on erfc, which is accurate in both tails. */
double stats_normal_quantile(double p)
{
    assert(p > 0 && p < 1);
    double lo = -40, hi = 40;
    for (int i = 0; i < 200; i++) {
        double mid = (lo + hi) / 2;
        if (erfc(-mid / sqrt(2.0)) / 2 < p)
            lo = mid;
        else
            hi = mid;
    }
    return (lo + hi) / 2;
}

double stats_log_ratio_sd(const double *x, int64_t n)
{
    double sums[4] = {0}, squares = 0;
    for (int64_t i = 0; i < n; i++)
        add_row(x + 4 * i, 4, 0, sums);
    if (n < 2 || isnan(stats_log_ratio(sums)))
        return NAN;
    for (int64_t i = 0; i < n; i++) {
        const double *row = x + 4 * i;
        double u = (double)n * (row[0] / sums[0] - row[1] / sums[1] - row[2] / sums[2] + row[3] / sums[3]);
        squares += u * u;
    }
    return sqrt(squares / (double)(n - 1));
}

double stats_prompts_needed(double sd, double effect, double level, double power)
{
    double z = stats_normal_quantile((1 + level) / 2) + stats_normal_quantile(power);
    double root = z * sd / log1p(effect);
    return isnan(sd) ? NAN : fmax(2, ceil(root * root));
}

double stats_effect_seen(double sd, int64_t n, double level, double power)
{
    double z = stats_normal_quantile((1 + level) / 2) + stats_normal_quantile(power);
    return n > 0 ? expm1(z * sd / sqrt((double)n)) : NAN;
}

/* Sums of squares about the groups' means and about the mean of all. */
static void estimate(const double *y, const int *group, int64_t n, const double *sum, const double *count,
                     int n_groups, struct stats_noise *out)
{
    double total = 0, within = 0, between = 0, squares = 0;
    int groups = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = y[i] - sum[group[i]] / count[group[i]];
        within += d * d;
        total += y[i];
    }
    for (int g = 0; g < n_groups; g++) {
        if (!(count[g] > 0))
            continue;
        double d = sum[g] / count[g] - total / (double)n;
        between += count[g] * d * d;
        squares += count[g] * count[g];
        groups++;
    }
    double run = n > groups ? within / (double)(n - groups) : NAN, size = 0;
    if (groups > 1)
        size = ((double)n - squares / (double)n) / (groups - 1);
    out->run = sqrt(run);
    out->prompt = groups > 1 ? sqrt(fmax(0, (between / (groups - 1) - (isnan(run) ? 0 : run)) / size)) : NAN;
}

int stats_noise(const double *y, const int *group, int64_t n, int n_groups, struct stats_noise *out)
{
    double *sum = calloc(2 * (size_t)n_groups + 1, sizeof *sum), *count = sum ? sum + n_groups : NULL;
    if (!sum)
        FAIL(ERR_MEMORY, "no memory for the noise of %d prompts", n_groups);
    for (int64_t i = 0; i < n; i++) {
        sum[group[i]] += y[i];
        count[group[i]]++;
    }
    estimate(y, group, n, sum, count, n_groups, out);
    free(sum);
    return 0;
}
