/* Efron's percentile bootstrap on sums of clusters: a replicate costs n additions a column, whatever the
 * number of steps behind a cluster. 2000 replicates of 500 prompts: 10^6 draws, a few milliseconds. */
#include "experiments/stats.h"
#include "engine/err.h"
#include "kernels/philox.h"
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Apart from every philox_use: resampling must not share numbers with the answers it judges. */
enum { USE_BOOTSTRAP = 0x626f6f74 };

double stats_ratio(const double *s)
{
    return s[1] > 0 ? s[0] / s[1] : NAN;
}

double stats_ratio_of_rates(const double *s)
{
    if (!(s[1] > 0 && s[3] > 0 && s[2] > 0))
        return NAN;
    return (s[0] / s[1]) / (s[2] / s[3]);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void stats_sort(double *x, int64_t n)
{
    if (n > 1)
        qsort(x, (size_t)n, sizeof *x, compare);
}

double stats_percentile(const double *sorted, int64_t n, double p)
{
    if (n < 1)
        return NAN;
    double at = fmin(fmax(p, 0), 1) * (double)(n - 1);
    int64_t i = (int64_t)at;
    if (i >= n - 1)
        return sorted[n - 1];
    return sorted[i] + (at - (double)i) * (sorted[i + 1] - sorted[i]);
}

/* Hoare's selection: afterwards x[k] is where sorting would put it, nothing larger before it, nothing smaller
 * behind. */
static void select_rank(double *x, int64_t n, int64_t k)
{
    int64_t lo = 0, hi = n - 1;
    while (lo < hi) {
        double pivot = x[lo + (hi - lo) / 2];
        int64_t i = lo, j = hi;
        while (i <= j) {
            while (x[i] < pivot)
                i++;
            while (x[j] > pivot)
                j--;
            if (i <= j) {
                double t = x[i];
                x[i++] = x[j];
                x[j--] = t;
            }
        }
        if (k <= j)
            hi = j;
        else if (k >= i)
            lo = i;
        else
            return;
    }
}

double stats_select(double *x, int64_t n, double p)
{
    if (n < 1)
        return NAN;
    double at = fmin(fmax(p, 0), 1) * (double)(n - 1);
    int64_t i = (int64_t)at;
    select_rank(x, n, i);
    if (i >= n - 1)
        return x[n - 1];
    double next = x[i + 1];
    for (int64_t k = i + 2; k < n; k++)
        next = fmin(next, x[k]);
    return x[i] + (at - (double)i) * (next - x[i]);
}

/* Column sums of n rows drawn with replacement. bits * n >> 32 favours some rows by less than n / 2^32. */
static void draw(const double *x, int64_t n, int columns, uint64_t seed, uint32_t replicate, double *sums)
{
    struct philox4 bits = {{0}};
    memset(sums, 0, (size_t)columns * sizeof *sums);
    for (int64_t i = 0; i < n; i++) {
        if (i % 4 == 0)
            bits = philox(seed, replicate, (uint32_t)(i / 4), USE_BOOTSTRAP, 0);
        int64_t row = (int64_t)(((uint64_t)bits.v[i % 4] * (uint64_t)n) >> 32);
        for (int c = 0; c < columns; c++)
            sums[c] += x[row * columns + c];
    }
}

int stats_bootstrap(const double *x, int64_t n, int columns, stats_fn f, const struct stats_resampling *r,
                    struct stats_interval *out)
{
    assert(columns >= 1 && columns <= STATS_MAX_COLUMNS && n >= 0 && n <= INT32_MAX);
    assert(r->replicates >= 1 && r->replicates <= STATS_MAX_REPLICATES);
    double sums[STATS_MAX_COLUMNS] = {0};
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < columns; c++)
            sums[c] += x[i * columns + c];
    struct stats_interval result = {.value = f(sums), .lo = NAN, .hi = NAN};
    if (n >= 2 && !isnan(result.value)) {
        double *values = malloc((size_t)r->replicates * sizeof *values);
        if (!values)
            FAIL(ERR_MEMORY, "bootstrap: no memory for %d replicates", r->replicates);
        int kept = 0;
        for (int b = 0; b < r->replicates; b++) {
            draw(x, n, columns, r->seed, (uint32_t)b, sums);
            double v = f(sums);
            if (!isnan(v))
                values[kept++] = v;
        }
        if (2 * kept > r->replicates) {
            stats_sort(values, kept);
            result.lo = stats_percentile(values, kept, (1 - r->level) / 2);
            result.hi = stats_percentile(values, kept, (1 + r->level) / 2);
        }
        free(values);
    }
    *out = result;
    return 0;
}
