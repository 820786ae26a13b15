/* Statistics of a row of logits on every instruction set of this machine, and the rank of an id. */
#include "kernels/cpu.h"
#include "kernels/philox.h"
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 12, MAX_VOCAB = 49152 };

static const int vocabs[] = {1, 2, 15, 16, 17, 97, 1000, MAX_VOCAB};
enum { N_VOCABS = sizeof vocabs / sizeof *vocabs };
static float logits[ROWS * MAX_VOCAB];

/* Rows of growing spread, from nearly flat to nearly one-hot. */
static void fill(int vocab)
{
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vocab; v++)
            logits[r * vocab + v] = (0.01f + 4 * (float)r) *
                                    (philox_uniform(philox(3, (uint32_t)r, 0, 0, (uint32_t)v).v[0]) - 0.3f);
}

static struct logits args(int vocab, int rows, int threads, struct logit_stats *out)
{
    return (struct logits){
        .logits = logits, .out = out, .rows = rows, .vocab = vocab, .threads = threads, .with_entropy = 1};
}

START_TEST(a_row_is_the_same_in_every_batch)
{
    int vocab = vocabs[_i];
    struct logit_stats alone[ROWS], out[ROWS];
    fill(vocab);
    for (int i = 0; cpu_kernels_at(i); i++) {
        for (int r = 0; r < ROWS; r++) {
            struct logits a = args(vocab, 1, 1, &alone[r]);
            a.logits += r * vocab;
            cpu_kernels_at(i)->logits(&a);
        }
        for (int threads = 1; threads <= 4; threads++)
            for (int rows = 2; rows <= ROWS; rows += 5) {
                struct logits a = args(vocab, rows, threads, out);
                cpu_kernels_at(i)->logits(&a);
                for (int r = 0; r < rows; r++) {
                    ck_assert_int_eq(out[r].argmax, alone[r].argmax);
                    ck_assert_mem_eq(&out[r].max, &alone[r].max, sizeof(float));
                    ck_assert_mem_eq(&out[r].second, &alone[r].second, sizeof(float));
                    ck_assert_mem_eq(&out[r].lse, &alone[r].lse, sizeof(float));
                    ck_assert_mem_eq(&out[r].entropy, &alone[r].entropy, sizeof(float));
                }
            }
    }
}
END_TEST

/* Moments of d = max - logit under the softmax: they carry the rounding of d (half an ulp of d) into the
 * sums. */
struct moments {
    double d, d2, log_sum;
};

static struct moments moments(const float *row, int vocab, float max)
{
    double sum = 0, d1 = 0, d2 = 0;
    for (int v = 0; v < vocab; v++) {
        double d = (double)max - row[v], e = exp(-d);
        sum += e;
        d1 += e * d;
        d2 += e * d * d;
    }
    return (struct moments){d1 / sum, d2 / sum, log(sum)};
}

static void check_row(const char *isa, const struct logit_stats *out, const struct logit_stats *ref,
                      struct moments m, int vocab, double *worst)
{
    double eps = 0x1p-24, terms = vocab / 16 + 16; /* additions in a lane, the tree, 2 ulp of exp, 1 of log */
    double lse_bound = eps * (terms + m.d + 2 * fabs(ref->lse) + m.log_sum);
    double entropy_bound =
        eps * (terms * (1 + 2 * m.d) + m.d2 + m.d * m.d + 4 * (m.log_sum + m.d + ref->entropy));
    double lse_share = fabs((double)out->lse - ref->lse) / lse_bound;
    double entropy_share = fabs((double)out->entropy - ref->entropy) / entropy_bound;
    ck_assert_int_eq(out->argmax, ref->argmax);
    ck_assert(out->max == ref->max && out->second == ref->second);
    ck_assert_msg(lse_share <= 1, "%s: lse is %.9g, expected %.9g", isa, out->lse, ref->lse);
    ck_assert_msg(entropy_share <= 1, "%s: entropy is %.9g, expected %.9g", isa, out->entropy, ref->entropy);
    *worst = fmax(*worst, fmax(lse_share, entropy_share));
}

START_TEST(it_is_within_its_bound_of_the_reference)
{
    int vocab = vocabs[_i];
    struct logit_stats ref[ROWS], out[ROWS];
    fill(vocab);
    struct logits a = args(vocab, ROWS, 1, ref);
    logits_ref(&a);
    a.out = out;
    for (int i = 0; cpu_kernels_at(i); i++) {
        double worst = 0;
        cpu_kernels_at(i)->logits(&a);
        for (int r = 0; r < ROWS; r++)
            check_row(cpu_kernels_at(i)->name, &out[r], &ref[r],
                      moments(logits + r * vocab, vocab, ref[r].max), vocab, &worst);
        printf("%s vocab %d: at most %.1f %% of the bound\n", cpu_kernels_at(i)->name, vocab, 100 * worst);
    }
}
END_TEST

START_TEST(entropy_is_zero_unless_asked_for_and_changes_nothing_else)
{
    struct logit_stats with[ROWS], without[ROWS];
    fill(97);
    for (int i = 0; cpu_kernels_at(i); i++) {
        struct logits a = args(97, ROWS, 1, with);
        cpu_kernels_at(i)->logits(&a);
        a.out = without;
        a.with_entropy = 0;
        cpu_kernels_at(i)->logits(&a);
        for (int r = 0; r < ROWS; r++) {
            ck_assert(without[r].entropy == 0 && with[r].entropy > 0);
            ck_assert_mem_eq(&without[r].lse, &with[r].lse, sizeof(float));
        }
    }
}
END_TEST

/* The largest value stands at two places: the lower id wins and the gap is 0. */
START_TEST(equal_logits_give_the_lowest_id)
{
    enum { VOCAB = 97 };
    struct logit_stats out;
    for (int i = 0; cpu_kernels_at(i); i++)
        for (int v = 0; v < VOCAB; v++)
            for (int u = v + 1; u < VOCAB; u++) {
                fill(VOCAB);
                logits[v] = logits[u] = 5;
                struct logits a = args(VOCAB, 1, 1, &out);
                cpu_kernels_at(i)->logits(&a);
                ck_assert_int_eq(out.argmax, v);
                ck_assert(out.max == 5 && out.second == 5);
            }
}
END_TEST

START_TEST(ids_of_no_probability_leave_the_rest_finite)
{
    enum { VOCAB = 40 };
    struct logit_stats out;
    for (int v = 0; v < VOCAB; v++)
        logits[v] = -INFINITY;
    logits[7] = 1;
    logits[33] = 1;
    logits[20] = -3e38f;
    for (int i = -1; i < 0 || cpu_kernels_at(i); i++) {
        struct logits a = args(VOCAB, 1, 1, &out);
        (i < 0 ? logits_ref : cpu_kernels_at(i)->logits)(&a);
        ck_assert_int_eq(out.argmax, 7);
        ck_assert(out.second == 1);
        ck_assert_float_eq_tol(out.lse, 1 + logf(2), 0x1p-22f);
        ck_assert_float_eq_tol(out.entropy, logf(2), 0x1p-22f);
    }
}
END_TEST

START_TEST(a_row_without_a_finite_logit_still_names_an_id)
{
    enum { VOCAB = 21 };
    const float bad[] = {-INFINITY, NAN, INFINITY};
    struct logit_stats out;
    for (int i = 0; cpu_kernels_at(i); i++)
        for (int b = 0; b < 3; b++) {
            for (int v = 0; v < VOCAB; v++)
                logits[v] = bad[b];
            struct logits a = args(VOCAB, 1, 1, &out);
            cpu_kernels_at(i)->logits(&a);
            ck_assert_int_eq(out.argmax, 0);
        }
}
END_TEST

START_TEST(nan_never_wins)
{
    enum { VOCAB = 50 };
    struct logit_stats out;
    fill(VOCAB);
    logits[3] = 9;
    logits[40] = 8;
    logits[19] = logits[20] = logits[49] = NAN;
    for (int i = 0; cpu_kernels_at(i); i++) {
        struct logits a = args(VOCAB, 1, 1, &out);
        cpu_kernels_at(i)->logits(&a);
        ck_assert_int_eq(out.argmax, 3);
        ck_assert(out.max == 9 && out.second == 8);
    }
}
END_TEST

START_TEST(the_rank_counts_who_stands_before)
{
    enum { VOCAB = 97 };
    for (int v = 0; v < VOCAB; v++)
        logits[v] = (float)(philox(3, 77, 0, 0, (uint32_t)v).v[0] % 20); /* many ties */
    for (int v = 0; v < VOCAB; v++) {
        int before = 0;
        for (int u = 0; u < VOCAB; u++)
            before += logits[u] > logits[v] || (logits[u] == logits[v] && u < v);
        ck_assert_int_eq(logits_rank(logits, VOCAB, v), 1 + before);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("logits");
    TCase *c = tcase_create("logits");
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, a_row_is_the_same_in_every_batch, 0, N_VOCABS);
    tcase_add_loop_test(c, it_is_within_its_bound_of_the_reference, 0, N_VOCABS);
    tcase_add_test(c, entropy_is_zero_unless_asked_for_and_changes_nothing_else);
    tcase_add_test(c, equal_logits_give_the_lowest_id);
    tcase_add_test(c, ids_of_no_probability_leave_the_rest_finite);
    tcase_add_test(c, a_row_without_a_finite_logit_still_names_an_id);
    tcase_add_test(c, nan_never_wins);
    tcase_add_test(c, the_rank_counts_who_stands_before);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
