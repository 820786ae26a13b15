/* model_router: how a random router comes to prefer some experts. Its rows have random directions, so the
 * logits of a token are as good as independent, each N(0, its row's norm): with equal norms every expert is
 * the best alike, and a longer row wins more often. The norms that give wanted shares are found by iteration;
 * a share of integral of (f_e / F_e)(t) * product over j of F_j(t) dt needs each F_j once a point. At most
 * one half can be reached: that is how often a logit is positive at all. */
#include "engine/err.h"
#include "engine/model_build.h"
#include <math.h>
#include <stdlib.h>

enum { POINTS = 400, ROUNDS = 400 };

/* Of the best; all arrays [n]. */
static void find_shares(int n, const double *norm, double *share)
{
    double most = 0;
    for (int e = 0; e < n; e++) {
        most = norm[e] > most ? norm[e] : most;
        share[e] = 0;
    }
    const double step = 10 * most / POINTS;
    for (int i = 0; i < POINTS; i++) {
        const double t = (i + 0.5) * step - 4 * most;
        double all = 0;
        for (int e = 0; e < n; e++)
            all += log(0.5 * erfc(-t / norm[e] * M_SQRT1_2) + 1e-300);
        for (int e = 0; e < n && all > -700; e++) {
            const double z = t / norm[e], below = 0.5 * erfc(-z * M_SQRT1_2) + 1e-300;
            share[e] += step * exp(all - 0.5 * z * z - log(below)) / (norm[e] * 2.5066282746310002);
        }
    }
}

static int iterate(int n, const double *want, double *norm, double *share)
{
    double worst = 1;
    for (int round = 0; round < ROUNDS && worst > 0.01; round++) {
        worst = 0;
        find_shares(n, norm, share);
        for (int e = 0; e < n; e++) {
            const double off = log(want[e] / (share[e] + 1e-12));
            worst = fabs(off) > worst ? fabs(off) : worst;
            norm[e] *= exp(0.15 * off);
        }
    }
    return worst <= 0.01;
}

int build_router_norms(int experts, double skew, float *norm)
{
    double sum = 0;
    double *room = calloc(3 * (size_t)experts, sizeof *room), *want = room;
    if (!room)
        FAIL(ERR_MEMORY, "model: out of memory for the shares of %d experts", experts);
    for (int e = 0; e < experts; e++) {
        want[e] = pow(1.0 + e, -skew);
        sum += want[e];
        room[experts + e] = 1;
    }
    for (int e = 0; e < experts; e++)
        want[e] /= sum;
    const int found =
        skew == 0 || (want[0] < 0.5 && iterate(experts, want, room + experts, room + 2 * (size_t)experts));
    for (int e = 0; e < experts; e++)
        norm[e] = (float)room[experts + e];
    const double first = want[0];
    free(room);
    if (!found)
        FAIL(ERR_CONFIG,
             "expert_skew %g: expected shares that a router without biases can give, found %.3f for the "
             "first of "
             "%d experts; set it lower",
             skew, first, experts);
    return 0;
}
