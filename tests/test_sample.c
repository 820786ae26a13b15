/* Filters against a reference that sorts, draws against brute force and against the distribution they claim.
 *
 * Statistical tests: N = 20000 draws, Pearson's chi-square over the ids (all expected counts above 5),
 * against the quantile that a correct sampler passes with probability 1e-6, by Wilson and Hilferty: k (1 - 2
 * / 9k + z sqrt(2 / 9k))^3 for k degrees of freedom, z = 4.753. Seeds are fixed, so a pass stays a pass. */
#include "kernels/sample.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>

enum { MAX_VOCAB = 3000, ROWS = 60, DRAWS = 20000 };

static float logits[MAX_VOCAB], prob[MAX_VOCAB], work[2 * MAX_VOCAB];
static int id[MAX_VOCAB];
static struct sample_dist dist = {.id = id, .prob = prob, .work = work};

static float uniform(uint32_t stream, uint32_t i)
{
    return philox_uniform(philox(99, stream, 0, 0, i).v[0]);
}

/* Rows of growing spread; every third one rounded to whole numbers, for many ties. Returns the largest logit.
 */
static float fill(uint32_t row, int vocab)
{
    float max = -INFINITY;
    for (int v = 0; v < vocab; v++) {
        float x = 20 * (uniform(row, (uint32_t)v) - 0.5f) * (float)(row % 5) / 2;
        logits[v] = row % 3 == 0 ? floorf(x) : x;
        max = logits[v] > max ? logits[v] : max;
    }
    return max;
}

/* --- filters
 * ---------------------------------------------------------------------------------------------------- */

static int by_logit(const void *a, const void *b)
{
    int i = *(const int *)a, j = *(const int *)b;
    if (logits[i] != logits[j])
        return logits[i] < logits[j] ? 1 : -1;
    return i < j ? -1 : i > j;
}

/* expected[v]: the probability after all filters, 0 when dropped. Sorts, then cuts the order three times. */
static void reference(int vocab, const struct sample_filter *f, double *expected)
{
    static int order[MAX_VOCAB];
    static double w[MAX_VOCAB];
    int n = vocab, kept = 0;
    double sum = 0, reached = 0;
    for (int v = 0; v < vocab; v++)
        order[v] = v;
    qsort(order, (size_t)vocab, sizeof *order, by_logit);
    if (f->top_k > 0 && f->top_k < n)
        n = f->top_k;
    for (int i = 0; i < n; i++) {
        w[i] = exp(((double)logits[order[i]] - logits[order[0]]) / f->temperature);
        sum += w[i];
    }
    while (kept < n && (kept == 0 || f->top_p >= 1 || reached < f->top_p * sum))
        reached += w[kept++];
    for (n = kept, kept = 0, sum = 0; kept < n && w[kept] >= f->min_p; kept++)
        sum += w[kept];
    for (int v = 0; v < vocab; v++)
        expected[v] = 0;
    for (int i = 0; i < kept; i++)
        expected[order[i]] = w[i] / sum;
}

static const struct sample_filter filters[] = {
    {1.0f, 0, 1.0f, 0.0f},   {0.7f, 0, 1.0f, 0.0f},    {1.0f, 1, 1.0f, 0.0f},  {1.0f, 7, 1.0f, 0.0f},
    {1.3f, 50, 1.0f, 0.0f},  {1.0f, 5000, 1.0f, 0.0f}, {1.0f, 0, 0.9f, 0.0f},  {0.5f, 0, 0.5f, 0.0f},
    {1.0f, 0, 0.999f, 0.0f}, {1.0f, 0, 1e-6f, 0.0f},   {1.0f, 0, 1.0f, 0.05f}, {1.0f, 0, 1.0f, 1.0f},
    {0.8f, 40, 0.95f, 0.1f}, {1.5f, 200, 0.6f, 0.0f},
};
enum { N_FILTERS = sizeof filters / sizeof *filters };

/* exp is good to 2 ulp, its argument to 1 ulp of up to 100, the sum and the quotient to 1 ulp. */
static void check_filter(int vocab, float max, const struct sample_filter *f)
{
    static double expected[MAX_VOCAB];
    int n = 0;
    double sum = 0;
    reference(vocab, f, expected);
    sample_dist_from_logits(&dist, logits, vocab, max, f);
    for (int i = 0; i < dist.n; i++) {
        int v = dist.id[i];
        if (v < 0 || v >= vocab || (i > 0 && v <= dist.id[i - 1]))
            ck_abort_msg("place %d holds id %d", i, v);
        double off = fabs(dist.prob[i] - expected[v]), bound = 3e-5 * expected[v] + 1e-30;
        if (!(off <= bound) || expected[v] == 0)
            ck_abort_msg("id %d has probability %.9g, expected %.9g", v, dist.prob[i], expected[v]);
        sum += dist.prob[i];
    }
    for (int v = 0; v < vocab; v++)
        n += expected[v] > 0;
    ck_assert_int_eq(dist.n, n);
    ck_assert_double_eq_tol(sum, 1, 1e-6);
}

START_TEST(filters_keep_what_sorting_keeps)
{
    static const int vocabs[] = {1, 2, 97, 777, MAX_VOCAB};
    for (uint32_t row = 0; row < ROWS; row++) {
        int vocab = vocabs[row % 5];
        float max = fill(row, vocab);
        check_filter(vocab, max, &filters[_i]);
    }
}
END_TEST

START_TEST(ties_at_the_cut_go_to_the_lower_ids)
{
    enum { VOCAB = 40 };
    for (int v = 0; v < VOCAB; v++)
        logits[v] = v == 30 ? 2.0f : v % 2 ? -0.0f : 0.0f; /* the two zeros are equal */
    for (int k = 1; k < VOCAB; k++) {
        sample_dist_from_logits(&dist, logits, VOCAB, 2.0f, &(struct sample_filter){1.0f, k, 1.0f, 0.0f});
        ck_assert_int_eq(dist.n, k);
        for (int i = 0; i < k - 1;
             i++) /* 30 and the k - 1 lowest others; 30 comes last while those end below it */
            ck_assert_int_eq(dist.id[i], i);
        ck_assert(sample_dist_prob(&dist, 30) > 0);
    }
    for (int v = 0; v < VOCAB; v++)
        logits[v] = 1.0f;
    sample_dist_from_logits(&dist, logits, VOCAB, 1.0f, &(struct sample_filter){1.0f, 0, 0.25f, 0.0f});
    ck_assert_int_eq(dist.n, 10); /* a quarter of 40 equals */
    for (int i = 0; i < 10; i++)
        ck_assert_int_eq(dist.id[i], i);
}
END_TEST

START_TEST(without_filters_every_id_stays)
{
    float max = fill(4, 97);
    sample_dist_from_logits(&dist, logits, 97, max, &(struct sample_filter){1.0f, 0, 1.0f, 0.0f});
    ck_assert_int_eq(dist.n, 97);
    for (int v = 0; v < 97; v++)
        ck_assert_int_eq(dist.id[v], v);
}
END_TEST

START_TEST(probabilities_are_found_by_id)
{
    float max = fill(4, 777);
    sample_dist_from_logits(&dist, logits, 777, max, &(struct sample_filter){1.0f, 20, 1.0f, 0.0f});
    int at = 0;
    for (int v = -1; v <= 777; v++) {
        float expected = at < dist.n && dist.id[at] == v ? dist.prob[at++] : 0.0f;
        ck_assert(sample_dist_prob(&dist, v) == expected);
    }
    ck_assert_int_eq(at, 20);
}
END_TEST

START_TEST(rows_with_nan_still_give_an_id)
{
    enum { VOCAB = 97 };
    const struct sample_key key = {1, 2, 3};
    for (int f = 0; f < N_FILTERS; f++)
        for (int kind = 0; kind < 5; kind++) {
            float max = fill(1, VOCAB);
            for (int v = 0; v < VOCAB; v++)
                if (kind == 0)
                    logits[v] = NAN;
                else if (kind == 1)
                    logits[v] = -INFINITY;
                else if (kind == 2)
                    logits[v] = INFINITY;
                else if (v % kind == 0)
                    logits[v] = NAN;
            sample_dist_from_logits(&dist, logits, VOCAB, kind == 0 ? NAN : max, &filters[f]);
            ck_assert(dist.n >= 1 && dist.n <= VOCAB);
            int i = sample_categorical(dist.prob, dist.n, &key, PHILOX_TOKEN, 0),
                v = sample_gumbel(&dist, &key);
            ck_assert(i >= 0 && i < dist.n && v >= 0 && v < VOCAB);
            if (kind > 2)
                ck_assert(v % kind != 0 && dist.id[i] % kind != 0);
        }
}
END_TEST

/* --- draws
 * ------------------------------------------------------------------------------------------------------ */

static double quantile(double k)
{
    double c = 1 - 2 / (9 * k) + 4.753 * sqrt(2 / (9 * k));
    return k * c * c * c;
}

static double chi_square(const int *count, const double *p, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        if (p[i] > 0)
            sum += (count[i] - DRAWS * p[i]) * (count[i] - DRAWS * p[i]) / (DRAWS * p[i]);
        else
            ck_assert_int_eq(count[i], 0);
    return sum;
}

static const float weights[12] = {3, 0, 1, 4, 1, 5, 9, 2, 6, 5, 0, 0.5f};
enum { N_WEIGHTS = 12, N_POSITIVE = 10 };
static double exact[N_WEIGHTS];

static void normalise(void)
{
    double sum = 0;
    for (int i = 0; i < N_WEIGHTS; i++)
        sum += weights[i];
    for (int i = 0; i < N_WEIGHTS; i++)
        exact[i] = weights[i] / sum;
}

static void draw_categorical(int *count)
{
    for (uint32_t d = 0; d < DRAWS; d++) {
        struct sample_key key = {5, d / 100, d % 100};
        count[sample_categorical(weights, N_WEIGHTS, &key, PHILOX_DRAFT, 3)]++;
    }
}

START_TEST(categorical_draws_follow_the_weights)
{
    int count[N_WEIGHTS] = {0};
    normalise();
    draw_categorical(count);
    ck_assert_double_lt(chi_square(count, exact, N_WEIGHTS), quantile(N_POSITIVE - 1));
}
END_TEST

START_TEST(gumbel_draws_follow_the_probabilities)
{
    int count[N_WEIGHTS] = {0};
    normalise();
    dist.n = N_WEIGHTS;
    for (int i = 0; i < N_WEIGHTS; i++) {
        id[i] = i;
        prob[i] = (float)exact[i];
    }
    for (uint32_t d = 0; d < DRAWS; d++) {
        struct sample_key key = {5, d / 100, d % 100};
        count[sample_gumbel(&dist, &key)]++;
    }
    ck_assert_double_lt(chi_square(count, exact, N_WEIGHTS), quantile(N_POSITIVE - 1));
}
END_TEST

START_TEST(a_shifted_distribution_is_caught)
{
    int count[N_WEIGHTS] = {0};
    normalise();
    draw_categorical(count);
    exact[6] -= 0.02;
    exact[3] += 0.02;
    ck_assert_double_gt(chi_square(count, exact, N_WEIGHTS), quantile(N_POSITIVE - 1));
}
END_TEST

/* Scanning the same sum by hand: the first id whose running sum passes u times the total. */
START_TEST(categorical_is_the_inverse_of_the_running_sum)
{
    for (uint32_t d = 0; d < 2000; d++) {
        struct sample_key key = {6, d, 1};
        double u = philox_uniform(philox(6, d, 1, PHILOX_ACCEPT, 9).v[0]), total = 0, sum = 0;
        int n = 1 + (int)(d % MAX_VOCAB), expected = -1;
        for (int i = 0; i < n; i++) {
            prob[i] = uniform(d, (uint32_t)i) < 0.5f ? 0 : uniform(d + 5000, (uint32_t)i);
            total += prob[i];
        }
        for (int i = 0; i < n && expected < 0; i++)
            if ((sum += prob[i]) > u * total)
                expected = i;
        if (total > 0)
            ck_assert_int_eq(sample_categorical(prob, n, &key, PHILOX_ACCEPT, 9), expected);
    }
}
END_TEST

static int gumbel_by_brute_force(const struct sample_key *key)
{
    int winner = -1;
    double best = -INFINITY;
    for (int i = 0; i < dist.n; i++) {
        double u = philox_uniform(
            philox(key->seed, key->request, key->position, PHILOX_TOKEN, (uint32_t)dist.id[i]).v[0]);
        double score = log(dist.prob[i]) - log(-log(u));
        if (score > best) {
            best = score;
            winner = dist.id[i];
        }
    }
    return winner;
}

START_TEST(skipping_ids_changes_no_gumbel_draw)
{
    for (uint32_t row = 0; row < ROWS; row++) {
        int vocab = row % 2 ? MAX_VOCAB : 97;
        float max = fill(row, vocab);
        sample_dist_from_logits(&dist, logits, vocab, max, &filters[row % 7]);
        for (uint32_t position = 0; position < 40; position++) {
            struct sample_key key = {8, row, position};
            ck_assert_int_eq(sample_gumbel(&dist, &key), gumbel_by_brute_force(&key));
        }
    }
}
END_TEST

START_TEST(two_distributions_under_one_key_agree_often)
{
    int same = 0;
    for (uint32_t position = 0; position < 1000; position++) {
        struct sample_key key = {8, 1, position};
        float max = fill(4, 97);
        sample_dist_from_logits(&dist, logits, 97, max, &(struct sample_filter){4.0f, 0, 1.0f, 0.0f});
        int a = sample_gumbel(&dist, &key);
        sample_dist_from_logits(&dist, logits, 97, max, &(struct sample_filter){4.4f, 0, 1.0f, 0.0f});
        same += a == sample_gumbel(&dist, &key);
    }
    ck_assert_int_gt(same, 800); /* independent draws agree with probability sum p^2, under 0.1 here */
}
END_TEST

int main(void)
{
    Suite *s = suite_create("sample");
    TCase *c = tcase_create("sample");
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, filters_keep_what_sorting_keeps, 0, N_FILTERS);
    tcase_add_test(c, ties_at_the_cut_go_to_the_lower_ids);
    tcase_add_test(c, without_filters_every_id_stays);
    tcase_add_test(c, probabilities_are_found_by_id);
    tcase_add_test(c, rows_with_nan_still_give_an_id);
    tcase_add_test(c, categorical_draws_follow_the_weights);
    tcase_add_test(c, gumbel_draws_follow_the_probabilities);
    tcase_add_test(c, a_shifted_distribution_is_caught);
    tcase_add_test(c, categorical_is_the_inverse_of_the_running_sum);
    tcase_add_test(c, skipping_ids_changes_no_gumbel_draw);
    tcase_add_test(c, two_distributions_under_one_key_agree_often);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
